//! Locks, so that two agents never meet on one disk, by whatever nodes they come to it.
//!
//! What is opened is locked whole (`flock(2)`), and its [ground](super::ground) over the range that is meant (open file description locks,
//! fcntl(2)): partitions of one disk, and loop devices over different parts of one file, are not each other's business. Sources are
//! locked shared, targets exclusively. The locks are gone with the process.
//!
//! Others see them: udev leaves a disk alone whose node is locked exclusively, partitioners leave one alone whose partition is read or
//! written (<https://systemd.io/BLOCK_DEVICE_LOCKING/>), and QEMU, which keeps locks of the same kind on the first few hundred bytes of its disk
//! files, does not start on a target, nor is a target taken that it runs on. Partitions' nodes are not opened for a restore of their
//! disk: the kernel would not read its new table.

use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use agent_api::ErrorKind;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::Disk;
use super::ground::{Ground, Node, Place, node_of};
use super::inventory::{is_partition, sysfs_dir};
use super::mounts::is_of_kernel;
use crate::error::{Error, IoContext, Result};

/// udev looks at a disk for less than this.
const PATIENCE: Duration = Duration::from_secs(3);
/// Where QEMU's locks on a disk file end (`RAW_LOCK_PERM_BASE`, `RAW_LOCK_SHARED_BASE` and 64 bits each in its `block/file-posix.c`). Whoever
/// only reads does not keep others from reading by QEMU's tools.
const QEMU_LOCKS_END: u64 = 4096;

/// What a disk is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

impl Disk {
    /// Takes all locks, but does not wait for another agent's: only as long as udev may look at a disk, whose lock is on the whole of it.
    pub(super) fn locked(mut self, access: Access) -> Result<Self> {
        self.take(&self.file, &self.path, PATIENCE, |file| whole(file, access))?;
        let meta =
            self.file.metadata().on_disk(|| format!("looking at {}", self.path.display()))?;
        let place = Place::of(&self.path, &meta)?;
        self.locks = match Lockable::of(&place, access)? {
            Lockable::Itself => {
                let all = 0..u64::MAX;
                let lock = |file: &File| range(file, access, all.clone());
                self.take(&self.file, &self.path, Duration::ZERO, lock)?;
                Vec::new()
            }
            Lockable::Other(ground) => self.beneath(ground, &place, access)?,
            Lockable::None => self.beside(&meta, &place, access)?,
        };
        Ok(self)
    }

    /// Locks on the ground, and on the disk of a partition.
    fn beneath(&self, ground: File, place: &Place, access: Access) -> Result<Vec<File>> {
        let path = match &place.ground {
            Ground::Device(dir) => node_of(dir),
            Ground::File(path, _) | Ground::Served(path) => path.clone(),
        };
        let bytes = place.range.clone();
        self.take(&ground, &path, Duration::ZERO, |file| range(file, access, bytes.clone()))?;
        let mut locks = vec![ground];
        if let Some(node) = place.whole.as_deref().map(node_of)
            && let Some(disk) = to_lock(&node, Access::Read)?
        {
            self.take(&disk, &node, PATIENCE, |file| whole(file, Access::Read))?;
            locks.push(disk);
        }
        Ok(locks)
    }

    /// Where the ground itself cannot be locked: every other loop device with bytes of this.
    fn beside(&self, meta: &Metadata, place: &Place, access: Access) -> Result<Vec<File>> {
        let own = sysfs_dir(meta.rdev());
        let is_other = |node: &Node| Some(&node.dir) != own.as_ref() && !is_partition(&node.dir);
        let mut locks = Vec::new();
        for node in place.nodes()?.iter().filter(|node| is_other(node)) {
            // Who may not open it has no lock of it, and nobody else's is broken by that.
            let Some(device) = to_lock(&node.path(), Access::Read)? else { continue };
            self.take(&device, &node.path(), PATIENCE, |file| whole(file, access))?;
            locks.push(device);
        }
        Ok(locks)
    }

    fn take(
        &self,
        file: &File,
        path: &Path,
        patience: Duration,
        lock: impl Fn(&File) -> std::result::Result<(), TryLockError>,
    ) -> Result<()> {
        let start = Instant::now();
        loop {
            match lock(file) {
                Err(TryLockError::WouldBlock) if start.elapsed() < patience => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(TryLockError::WouldBlock) => {
                    let own = self.path.display();
                    let of = match path == self.path {
                        true => String::new(),
                        false => format!(" ({own} has bytes of it)"),
                    };
                    let by = holder(file).unwrap_or_else(|| "another program".into());
                    return Err(Error::refused(format!(
                        "{}{of} is locked by {by}: a capture, a restore or the like is under way there; wait until that is done, or end it",
                        path.display()
                    )));
                }
                // Some network filesystems have no locks; there is nothing to be had from them then.
                Ok(()) | Err(TryLockError::Error(_)) => return Ok(()),
            }
        }
    }
}

/// Where the ground of a place can be locked.
enum Lockable {
    /// What is open is the ground.
    Itself,
    Other(File),
    /// Nowhere: a server or a program answers for it, its path leads elsewhere, or this user may not.
    None,
}

impl Lockable {
    fn of(place: &Place, access: Access) -> Result<Self> {
        let path = match &place.ground {
            Ground::Served(_) => return Ok(Self::None),
            Ground::File(path, _) => path.clone(),
            Ground::Device(dir) => node_of(dir),
        };
        if !is_of_kernel(&path) {
            return Ok(Self::None);
        }
        if place.is_ground {
            return Ok(Self::Itself);
        }
        let is_it = |meta: &Metadata| match &place.ground {
            Ground::File(_, id) => (meta.dev(), meta.ino()) == *id,
            Ground::Device(dir) => sysfs_dir(meta.rdev()).as_ref() == Some(dir),
            Ground::Served(_) => false,
        };
        Ok(match to_lock(&path, access)? {
            Some(file) if file.metadata().is_ok_and(|meta| is_it(&meta)) => Self::Other(file),
            _ => Self::None,
        })
    }
}

/// Opens what is to be locked; `None` if it is not there, or not for this user. An exclusive lock of a range is to be had of what is open for
/// writing only.
fn to_lock(path: &Path, access: Access) -> Result<Option<File>> {
    let mut options = OpenOptions::new();
    options.read(true).write(access == Access::Write).custom_flags(libc::O_NONBLOCK);
    match options.open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if is_shortage(&error) => {
            let doing = format!("opening {} to lock it", path.display());
            Err(Error::new(ErrorKind::Internal, doing).because(error))
        }
        Err(_) => Ok(None),
    }
}

/// Whether this process or the system has too little of something: that says nothing of who else has a disk.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

/// Whether a regular file is what a restore writes to, or is to: the disk file that was given to it, or what is beneath its loop device. That may
/// be this very process, whose other open files are others for such locks.
pub fn is_target(path: &Path, file: &File) -> bool {
    if !is_of_kernel(path) {
        return false;
    }
    let mut found = lock_of(Access::Read, 0..u64::MAX);
    // What has no locks has no such lock.
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut found)).is_ok()
        && libc::c_int::from(found.l_type) == libc::F_WRLCK
}

fn whole(file: &File, access: Access) -> std::result::Result<(), TryLockError> {
    match access {
        Access::Read => file.try_lock_shared(),
        Access::Write => file.try_lock(),
    }
}

fn range(file: &File, access: Access, bytes: Range<u64>) -> std::result::Result<(), TryLockError> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&lock_of(access, bytes))) {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => Err(TryLockError::WouldBlock),
        Err(e) => Err(TryLockError::Error(e.into())),
    }
}

fn lock_of(access: Access, bytes: Range<u64>) -> libc::flock {
    let (kind, start) = match access {
        Access::Read => (libc::F_RDLCK, bytes.start.max(QEMU_LOCKS_END)),
        Access::Write => (libc::F_WRLCK, bytes.start),
    };
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    libc::flock {
        l_type: libc::c_short::try_from(kind).expect("a small number"),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).expect("a small number"),
        l_start: number(start),
        // 0 would be everything behind it.
        l_len: (number(bytes.end) - number(start)).max(1),
        l_pid: 0,
    }
}

/// Another process that has a lock on a file, as far as procfs tells (`/proc/PID/fdinfo/FD`, proc(5)).
fn holder(file: &File) -> Option<String> {
    let meta = file.metadata().ok()?;
    let (major, minor) = (nix::sys::stat::major(meta.dev()), nix::sys::stat::minor(meta.dev()));
    let id = format!(" {major:02x}:{minor:02x}:{} ", meta.ino());
    let has_lock = |info: &Path| {
        let text = std::fs::read_to_string(info).unwrap_or_default();
        text.lines().any(|line| line.starts_with("lock:") && line.contains(&id))
    };
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    let own = std::process::id();
    let is_other = |name: &OsStr| {
        name.to_str().and_then(|name| name.parse::<u32>().ok()).is_some_and(|n| n != own)
    };
    let process = entries(Path::new("/proc")).find(|process| {
        is_other(&process.file_name())
            && entries(&process.path().join("fdinfo")).any(|info| has_lock(&info.path()))
    })?;
    let name = super::inventory::read_text(&process.path().join("comm")).unwrap_or_default();
    Some(format!("process {} ({name})", process.file_name().display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_has_no_lock_and_a_shortage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(to_lock(&dir.path().join("missing"), Access::Read).unwrap().is_none());
        assert!(to_lock(dir.path(), Access::Read).unwrap().is_some());
        for (errno, wanted) in [
            (libc::EMFILE, true),
            (libc::ENFILE, true),
            (libc::EACCES, false),
            (libc::ENXIO, false),
        ] {
            assert_eq!(is_shortage(&io::Error::from_raw_os_error(errno)), wanted, "{errno}");
        }
    }
}
