//! A filesystem on a part of a disk, mounted where nobody else sees it.
//!
//! The part becomes a loop device, so that a disk file serves as well as a disk, and a disk stays claimed by us: its partitions
//! are not made known before everything is on it, and neither udev nor md nor LVM meets a half-made one. The mount is attached to
//! no folder (`fsopen`, `fsmount`; Linux 5.2): it is reached through a descriptor alone, and mount and loop device are gone with the
//! process, however that ends. Needs root.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use agent_api::ErrorKind;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{self, FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::disk::Disk;
use crate::error::{Error, IoContext, Result};
use crate::fs::FsKind;
use crate::sys;

const CONTROL: &str = "/dev/loop-control";
/// How often another program may be faster in taking a free loop device.
const ATTEMPTS: u32 = 16;
/// The kernel ends a mount a moment after the last descriptor was closed, if another thread or udev still has a look at it.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(30);

/// A part of a disk as a loop device of its own. It is gone when this is dropped and nothing has it mounted.
#[derive(Debug)]
struct Loop {
    path: PathBuf,
    file: File,
}

impl Loop {
    fn new(disk: &Disk, start: u64, len: u64, access: Access) -> io::Result<Self> {
        let control = OpenOptions::new().read(true).write(true).open(CONTROL)?;
        let mut left = ATTEMPTS;
        loop {
            let number = sys::loops::free_number(&control)?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            // A device that is set up by a descriptor for reading is read-only for everybody.
            let device =
                OpenOptions::new().read(true).write(access == Access::Write).open(&path)?;
            let sector = disk.logical_sector_bytes();
            match sys::loops::configure(&device, disk.file(), disk.origin() + start, len, sector) {
                // Kernels may refuse to mount what is open for writing.
                Ok(()) => return Ok(Self { file: File::open(&path)?, path }),
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) && left > 0 => left -= 1,
                Err(e) => return Err(e),
            }
        }
    }

    /// Whether a mount still has it.
    fn is_in_use(&self) -> bool {
        let claim = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&self.path);
        matches!(claim, Err(e) if e.raw_os_error() == Some(libc::EBUSY))
    }
}

/// What a filesystem is mounted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only to look at it: not a byte changes, and a journal is not replayed.
    Read,
    /// To change it.
    Write,
}

/// A mounted filesystem.
#[derive(Debug)]
pub struct Mounted {
    root: OwnedFd,
    device: Loop,
    kind: FsKind,
    access: Access,
    what: String,
}

/// The kernel's name for a filesystem that it can mount, and the options that it needs.
fn kernel_type(kind: FsKind, access: Access) -> Option<(&'static str, &'static [&'static str])> {
    match (kind, access) {
        // What is to be done about errors is in the superblock, too: an image could make this machine's kernel panic (tune2fs -e panic).
        (FsKind::Ext2 | FsKind::Ext3 | FsKind::Ext4, Access::Write) => {
            Some(("ext4", &["errors=remount-ro"]))
        }
        (FsKind::Ext2 | FsKind::Ext3 | FsKind::Ext4, Access::Read) => {
            Some(("ext4", &["ro", "noload", "errors=remount-ro"]))
        }
        // The disk that the image was taken from may be mounted on this machine.
        (FsKind::Xfs, Access::Write) => Some(("xfs", &["nouuid"])),
        (FsKind::Xfs, Access::Read) => Some(("xfs", &["ro", "nouuid", "norecovery"])),
        (FsKind::Btrfs, Access::Write) => Some(("btrfs", &[])),
        (FsKind::Btrfs, Access::Read) => Some(("btrfs", &["ro"])),
        // Only to look for boot files: what changes files on it has no business there.
        (FsKind::Fat12 | FsKind::Fat16 | FsKind::Fat32, Access::Read) => Some(("vfat", &["ro"])),
        _ => None,
    }
}

/// Whether a filesystem of that kind can be mounted at all, given a kernel that has it.
pub fn is_mountable(kind: FsKind) -> bool {
    kernel_type(kind, Access::Write).is_some()
}

/// Whether files of that kind can be read at all, given a kernel that has it.
pub fn is_readable(kind: FsKind) -> bool {
    kernel_type(kind, Access::Read).is_some()
}

/// Refuses what this machine could not mount, before anything depends on it.
pub fn check(kind: FsKind) -> Result<()> {
    let Some((name, _)) = kernel_type(kind, Access::Write) else {
        return Err(Error::refused(format!("{kind} cannot be mounted here")));
    };
    if let Err(e) = OpenOptions::new().read(true).write(true).open(CONTROL) {
        return Err(Error::refused(format!(
            "opening {CONTROL}: a {kind} is mounted through a loop device, which needs root and the kernel's module loop"
        ))
        .because(e));
    }
    match mount::fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::NODEV) => {
            Err(Error::refused(format!("the running kernel has no {name}, nor a module for it")))
        }
        Err(e) => Err(Error::refused(format!(
            "a {kind} cannot be mounted here (it needs root and Linux 5.8 or later)"
        ))
        .because(io::Error::from(e))),
    }
}

impl Mounted {
    /// Mounts the filesystem in a part of a disk.
    pub fn new(disk: &Disk, start: u64, len: u64, kind: FsKind, access: Access) -> Result<Self> {
        let what = format!("the {kind} at byte {start} of {}", disk.path().display());
        let device = Loop::new(disk, start, len, access)
            .internal(|| format!("making a loop device for {what}"))?;
        let root = attach(kind, access, &device, None, &what)?;
        Ok(Self { root, device, kind, access, what })
    }

    /// Another mount of the same filesystem, or of a subvolume of a btrfs by its path from the top. It must be gone before [`close`](Self::close).
    pub fn again(&self, subvolume: Option<&str>) -> Result<OwnedFd> {
        let what = match subvolume {
            Some(name) => format!("the subvolume {name:?} of {}", self.what),
            None => self.what.clone(),
        };
        attach(self.kind, self.access, &self.device, subvolume, &what)
    }

    /// The mount itself, by which it can be attached to a folder.
    pub fn mount(&self) -> &OwnedFd {
        &self.root
    }

    /// The root as an open folder.
    pub fn open_root(&self) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.root, ".", flags, Mode::empty())
            .map(File::from)
            .map_err(io::Error::from)
            .on_disk(|| format!("opening the root of {}", self.what))
    }

    /// Writes everything out and unmounts. What it says is on the disk's way to the medium then; flushing the disk is for the caller.
    pub fn close(self) -> Result<()> {
        let Self { root, device, what, .. } = self;
        let synced = rustix::fs::openat(
            &root,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .and_then(rustix::fs::syncfs);
        synced.map_err(io::Error::from).on_disk(|| format!("writing out {what}"))?;
        drop(root);
        let start = Instant::now();
        while device.is_in_use() {
            if start.elapsed() > UNMOUNT_PATIENCE {
                return Err(Error::new(
                    ErrorKind::Internal,
                    format!("unmounting {what}: something still uses it"),
                ));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        device.file.sync_all().on_disk(|| format!("flushing {what}"))
    }
}

/// Mounts a device without a place in the tree.
fn attach(
    kind: FsKind,
    access: Access,
    device: &Loop,
    subvolume: Option<&str>,
    what: &str,
) -> Result<OwnedFd> {
    let (name, options) = kernel_type(kind, access).ok_or_else(|| {
        Error::new(ErrorKind::Internal, format!("{what} is of no kind that can be mounted"))
    })?;
    mount_detached(name, options, subvolume, device).map_err(|e| {
        let (kind, advice) = match e.kind() {
            // What is read from the disk was compared with the image before.
            io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported => (
                ErrorKind::Refused,
                ", which the running kernel does not take: it may be made by a newer system (try a newer kernel), or be damaged in the \
                 image; the kernel's log says which",
            ),
            _ => (ErrorKind::Disk, ""),
        };
        Error::new(kind, format!("mounting {what}{advice}")).because(e)
    })
}

fn mount_detached(
    name: &str,
    options: &[&str],
    subvolume: Option<&str>,
    device: &Loop,
) -> io::Result<OwnedFd> {
    let context = mount::fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let source = CString::new(device.path.as_os_str().as_encoded_bytes())
        .expect("the name of a loop device");
    let made = mount::fsconfig_set_string(context.as_fd(), "source", &source)
        .and_then(|()| {
            let set = |option: &&str| match option.split_once('=') {
                Some((key, value)) => mount::fsconfig_set_string(context.as_fd(), key, value),
                None => mount::fsconfig_set_flag(context.as_fd(), *option),
            };
            options.iter().try_for_each(set)
        })
        .and_then(|()| match subvolume {
            Some(path) => mount::fsconfig_set_string(context.as_fd(), "subvol", path),
            None => Ok(()),
        })
        .and_then(|()| mount::fsconfig_create(context.as_fd()));
    if let Err(e) = made {
        let e = io::Error::from(e);
        return Err(io::Error::new(e.kind(), format!("{e}{}", said(&context))));
    }
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    Ok(mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// What the filesystem says of a mount that failed, a message a read.
pub(crate) fn said(context: &OwnedFd) -> String {
    let mut text = String::new();
    let mut buffer = [0; 512];
    while let Ok(len) = rustix::io::read(context, &mut buffer)
        && len > 0
        && text.len() < 2048
    {
        // Each begins with a letter for its level and a space.
        let message = String::from_utf8_lossy(&buffer[..len]);
        text.push_str("; ");
        text.push_str(message.trim_end().get(2..).unwrap_or_default());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The machine that would show it otherwise is the one that the test runs on.
    #[test]
    fn no_superblock_says_what_the_kernel_does_about_errors() {
        for kind in [FsKind::Ext2, FsKind::Ext3, FsKind::Ext4] {
            for access in [Access::Read, Access::Write] {
                let (_, options) = kernel_type(kind, access).unwrap();
                assert!(options.contains(&"errors=remount-ro"), "{kind} {access:?}");
            }
        }
    }
}
