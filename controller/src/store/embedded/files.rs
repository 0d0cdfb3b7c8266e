//! The folder of the controller's own store: what is opened, linked, removed and listed there.
//!
//! Everything here blocks. No link leads out of the folder, and nothing but regular files counts.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;

use super::error::io_error;
use super::{EmbeddedError, Entry, Result};
use crate::names::{FileName, PARTIAL_SUFFIX};

/// Opens a regular file: no link leads elsewhere, and nothing waits for the other end of a pipe.
pub(super) fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    // As the kernel says it of links.
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::from_raw_os_error(nix::libc::ELOOP))
    }
}

pub(super) fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Gives a partial file its name beside the one that it has; when it has both already, that was us before a crash.
pub(super) fn link(partial: &Path, path: &Path, folder: &Path, name: &str) -> Result<()> {
    match fs::hard_link(partial, path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            let inode = |path: &Path| path.symlink_metadata().map(|m| (m.dev(), m.ino()));
            let same = inode(partial).map_err(io_error("looking at", name))?;
            if inode(path).map_err(io_error("looking at", name))? != same {
                return Err(EmbeddedError::Exists(name.to_owned()));
            }
        }
        result => result.map_err(io_error("publishing", name))?,
    }
    sync_folder(folder).map_err(io_error("publishing", name))
}

pub(super) fn list(folder: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Ok(metadata) if metadata.is_file() => metadata,
            Ok(_) => continue,
            // Removed meanwhile.
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let Ok(name) = entry.file_name().into_string() else { continue };
        let (name, is_partial) = match name.strip_suffix(PARTIAL_SUFFIX) {
            Some(name) => (name.to_owned(), true),
            None => (name, false),
        };
        // What has another name than a file can have here cannot be asked for.
        if name.parse::<FileName>().is_err() {
            continue;
        }
        let modified_ms =
            metadata.mtime().saturating_mul(1000).saturating_add(metadata.mtime_nsec() / 1_000_000);
        entries.push(Entry { name, len_bytes: metadata.len(), modified_ms, is_partial });
    }
    Ok(entries)
}

/// Opens a partial file again and cuts it off behind this many bytes; `None` if it does not have them.
pub(super) fn reopen(path: &Path, len_bytes: u64) -> io::Result<Option<File>> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let opened = OpenOptions::new().read(true).write(true).custom_flags(flags.bits()).open(path);
    let file = match opened {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() < len_bytes {
        return Ok(None);
    }
    file.set_len(len_bytes)?;
    Ok(Some(file))
}
