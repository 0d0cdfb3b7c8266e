//! The partial file of a folder: what it is called, who holds it, and how it gets its name.
//!
//! It is created exclusively and locked (flock) for as long as its writer lives, so that a left-over of a dead run can be told from the
//! file of a live one. It gets its name by `renameat2(RENAME_NOREPLACE)`, or link and unlink where the file system does not know that.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::super::{PARTIAL_SUFFIX, Result, StoreError};
use super::On;

/// Where an image is written that will be at `path`, where nothing may be yet.
pub(super) fn partial_of(path: &Path) -> Result<PathBuf> {
    // With a slash behind it the kernel would say so only when all is written.
    let is_folder = path.as_os_str().as_bytes().ends_with(b"/");
    let Some(name) = path.file_name().filter(|_| !is_folder) else {
        return Err(StoreError::Denied {
            doing: "creating",
            url: path.display().to_string(),
            reason: "it names a folder, and no file in one".to_owned(),
        });
    };
    let mut partial_name = name.to_owned();
    partial_name.push(PARTIAL_SUFFIX);
    if path.symlink_metadata().is_ok() {
        return Err(StoreError::Exists { url: path.display().to_string() });
    }
    Ok(path.with_file_name(partial_name))
}

/// Opens a partial file that somebody left behind, and locks it where that is done.
pub(super) fn lock_partial(partial: &Path, on: On) -> Result<File> {
    let failed = |source| StoreError::local("opening", partial.display(), source);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(partial)
        .map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "it is not a regular file",
        )));
    }
    if on == On::Machine {
        lock(&file, partial)?;
    }
    Ok(file)
}

/// Creates the partial file, and locks it where that is done, in place of a left-over that nobody holds.
pub(super) fn create_partial(partial: &Path, on: On) -> Result<File> {
    let failed = |source: io::Error| match source.kind() {
        // Of a file that is to be made only its folder can be missing.
        io::ErrorKind::NotFound => {
            StoreError::NotFound { url: folder_of(partial).display().to_string() }
        }
        _ => StoreError::local("creating", partial.display(), source),
    };
    let busy = || StoreError::Busy { url: partial.display().to_string() };
    let no_follow = OFlags::NOFOLLOW.bits().cast_signed();
    // Twice: the left-over may be in the way once.
    for _ in 0..2 {
        let new = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o640)
            .custom_flags(no_follow)
            .open(partial);
        match new {
            Ok(file) => {
                // Between creation and lock another process may have taken this for a left-over.
                if on == On::Machine
                    && let Err(error) = lock(&file, partial)
                {
                    if !matches!(error, StoreError::Busy { .. }) {
                        // Nobody else has it where nothing can be locked.
                        let _ = fs::remove_file(partial);
                    }
                    return Err(error);
                }
                if !is_at(&file, partial).map_err(failed)? {
                    return Err(busy());
                }
                return Ok(file);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(error)),
        }
        let left_over = lock_partial(partial, on)?;
        if is_at(&left_over, partial).map_err(failed)? {
            fs::remove_file(partial).map_err(failed)?;
        }
    }
    Err(busy())
}

/// Locks a partial file for as long as it is open.
fn lock(file: &File, partial: &Path) -> Result<()> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => StoreError::Busy { url: partial.display().to_string() },
        // A share that was mounted without its server's lock service, for instance.
        TryLockError::Error(source) => StoreError::local("locking", partial.display(), source),
    })
}

/// Whether `path` still names this open file.
pub(super) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match path.symlink_metadata() {
        Ok(there) => Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Renames, but never over something.
pub(super) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // The file system (or an old kernel) does not know the flag.
        Err(Errno::INVAL | Errno::NOSYS) => match fs::hard_link(from, to) {
            Ok(()) => remove_if_there(from),
            Err(error) if !has_no_links(&error) => Err(error),
            // There are no hard links either, which leaves the moment between these two.
            Err(_) if to.symlink_metadata().is_ok() => Err(io::ErrorKind::AlreadyExists.into()),
            Err(_) => fs::rename(from, to),
        },
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a file system, or the server behind it, has no hard links: VFAT says that it is not permitted (link(2)), FUSE's say what their programs like.
/// Where something else is meant, the rename that follows says so.
fn has_no_links(error: &io::Error) -> bool {
    // What the kernel's NFS client says (include/linux/errno.h), not meant for programs and seen by them.
    const ENOTSUPP: i32 = 524;
    let unknown = [
        libc::EOPNOTSUPP,
        ENOTSUPP,
        libc::EPERM,
        libc::EACCES,
        libc::ENOSYS,
        libc::EMLINK,
        libc::EINVAL,
    ];
    error.raw_os_error().is_some_and(|errno| unknown.contains(&errno))
}

/// Removes a name of ours, which may be gone already: a server does things twice when its answer was lost.
pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes a change of names durable, here of the name that `file` has now. A folder that this user may write to and not read (a drop box)
/// is not opened for that, and some file systems have no such flush for folders (9p, vboxsf: `EINVAL`): then all of the file system is flushed.
pub(super) fn sync_name(path: &Path, file: &File) -> io::Result<()> {
    match sync_folder(path) {
        Err(error) if has_no_flush(&error) => Ok(rustix::fs::syncfs(file)?),
        synced => synced,
    }
}

/// The same where a name is gone. That it comes back after a power cut does no harm where it cannot be helped.
pub(super) fn sync_removed(path: &Path) -> Result<()> {
    match sync_folder(path) {
        Err(error) if !has_no_flush(&error) => {
            Err(StoreError::local("flushing", folder_of(path).display(), error))
        }
        _ => Ok(()),
    }
}

fn has_no_flush(error: &io::Error) -> bool {
    let unknown = [libc::EACCES, libc::EPERM, libc::EINVAL, libc::ENOSYS, libc::EOPNOTSUPP];
    error.raw_os_error().is_some_and(|errno| unknown.contains(&errno))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
