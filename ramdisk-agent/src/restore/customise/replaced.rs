//! One file in place of another: whole or not at all.
//!
//! It is written beside its place, flushed, and renamed over what was there, with the owner, the mode and the labels of that. Folders are
//! open descriptors, so that nothing is resolved here.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, XattrFlags};
use rustix::io::Errno;

use super::paths::file_type;

/// The most that Linux lets a list of attributes or a value have.
const MAX_XATTR: usize = 64 << 10;
/// A new file, where none is replaced.
const NEW_FILE: Mode = Mode::from_raw_mode(0o644);

/// Puts a file beside its place, complete and flushed, and then in its place.
pub fn replace(
    folder: &OwnedFd,
    name: &OsStr,
    content: &[u8],
    mode: Option<Mode>,
    old: Option<&Stat>,
) -> io::Result<()> {
    let beside = format!(".imprint-{}", uuid::Uuid::new_v4().simple());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, &beside, flags, Mode::RUSR | Mode::WUSR)?;
    let mut file = File::from(file);
    let put = || -> io::Result<()> {
        file.write_all(content)?;
        let old = old.filter(|stat| file_type(stat) == FileType::RegularFile);
        if let Some(stat) = old {
            let owner = rustix::fs::Uid::from_raw(stat.st_uid);
            let group = rustix::fs::Gid::from_raw(stat.st_gid);
            rustix::fs::fchown(&file, Some(owner), Some(group))?;
        }
        let kept = old.map(|stat| Mode::from_raw_mode(stat.st_mode));
        rustix::fs::fchmod(&file, mode.or(kept).unwrap_or(NEW_FILE))?;
        if old.is_some() {
            keep_attributes(&file, folder, name, mode.is_none())?;
        } else {
            inherit_label(&file, folder)?;
        }
        file.sync_all()?;
        rustix::fs::renameat(folder, &beside, folder, name)?;
        Ok(rustix::fs::fsync(folder)?)
    };
    let done = { put }();
    if done.is_err() {
        // The error is what matters; the restore fails, and with it goes whatever is left here.
        let _ = rustix::fs::unlinkat(folder, &beside, AtFlags::empty());
    }
    done
}

/// The label that a security module knows a file by.
const LABELS: [&str; 2] = ["security.selinux", "security.SMACK64"];
const ACL: &str = "system.posix_acl_access";

/// Gives a file the attributes of the one that it replaces, but for those that vouch for the old content.
fn keep_attributes(file: &File, folder: &OwnedFd, name: &OsStr, with_acl: bool) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let old = rustix::fs::openat(folder, name, flags, Mode::empty())?;
    let mut list = vec![0_u8; MAX_XATTR];
    let len = match rustix::fs::flistxattr(&old, &mut list[..]) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        len => len?,
    };
    let names = list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    for name in names.filter_map(|name| std::str::from_utf8(name).ok()) {
        if LABELS.contains(&name) || name.starts_with("user.") || (with_acl && name == ACL) {
            copy_attribute(&old, file, name)?;
        }
    }
    Ok(())
}

/// A new file gets the label of the folder that it is in, as most do.
pub fn inherit_label(file: impl AsFd, folder: &OwnedFd) -> rustix::io::Result<()> {
    LABELS.iter().try_for_each(|name| match copy_attribute(folder, file.as_fd(), name) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        copied => copied,
    })
}

fn copy_attribute(from: impl AsFd, to: impl AsFd, name: &str) -> rustix::io::Result<()> {
    let mut value = vec![0_u8; MAX_XATTR];
    let len = rustix::fs::fgetxattr(from, name, &mut value[..])?;
    rustix::fs::fsetxattr(to, name, &value[..len], XattrFlags::empty())
}
