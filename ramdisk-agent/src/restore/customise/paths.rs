//! Paths and folders of a filesystem that nobody trusts, resolved by the kernel below a folder of it and nowhere else.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat};
use rustix::io::Errno;

/// How often a path is resolved again when something was renamed or mounted on this machine meanwhile (`openat2(2)`, EAGAIN).
const RESOLVE_ATTEMPTS: u32 = 1000;
/// How many files a folder may have.
const MAX_NAMES: usize = 4096;

/// What lies at a path below a folder, if anything does; links are followed, below that folder.
pub fn kind_below(root: impl AsFd, path: &str) -> Option<FileType> {
    let found = resolve(root, path, OFlags::PATH).ok()?;
    Some(file_type(&rustix::fs::fstat(found).ok()?))
}

/// Opens a path below a folder, and nothing that is not below it: links lead to where they would if that folder were the root.
pub fn resolve(root: impl AsFd, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    open(root, path, flags, ResolveFlags::IN_ROOT)
}

/// Opens a path below a folder that is not the root of its system: a link that leads out of it is an error (`EXDEV`).
pub fn resolve_beneath(at: impl AsFd, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    open(at, path, flags, ResolveFlags::BENEATH)
}

fn open(
    root: impl AsFd,
    path: &str,
    flags: OFlags,
    within: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let within = within | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::CLOEXEC;
    let mut attempts = RESOLVE_ATTEMPTS;
    loop {
        match rustix::fs::openat2(root.as_fd(), path, flags, Mode::empty(), within) {
            Err(Errno::AGAIN | Errno::INTR) if attempts > 0 => attempts -= 1,
            result => return result,
        }
    }
}

/// What a file is.
pub fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// What a folder has under a name, links not followed.
pub fn entry(folder: &OwnedFd, name: &OsStr) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The names in a folder, sorted.
pub fn names_in(folder: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut buffer = Vec::with_capacity(8 << 10);
    let mut names = Vec::new();
    let mut entries = RawDir::new(folder, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
        if names.len() > MAX_NAMES {
            return Err(io::Error::other(format!("it holds more than {MAX_NAMES} files")));
        }
    }
    names.sort();
    Ok(names)
}
