//! Loop devices, and the page cache of the file beneath.
//!
//! What is on a loop device is what is in the file, at the place where it begins: a source is read there, without the one thread that stands
//! between, from memory or past the cache.
//!
//! A loop device without direct I/O copies everything through that cache, by a single thread: a restore takes about twice as
//! long, and its read-back sees the cache and not the disk. While a restore compares and writes, direct I/O is on; afterwards the device is as it
//! was. Not so where a server or another program answers for the file: a FUSE file was seen to read back old bytes by direct I/O after it
//! had been written by it. There the file's cached pages are dropped before each read-back.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::inventory::{read_text, sysfs_dir};
use super::{Disk, drop_file_cache, mounts};
use crate::sys;

/// Direct I/O of a loop device, until this is dropped.
#[derive(Debug)]
pub struct DirectBacking<'a>(&'a Disk);

impl Disk {
    /// The file beneath a loop device, and where in it the device begins; `None`: it is none.
    #[must_use]
    pub fn backing_file(&self) -> Option<(PathBuf, u64)> {
        let dir = sysfs_dir(self.file.metadata().ok()?.rdev())?.join("loop");
        let offset = read_text(&dir.join("offset"))?.parse().ok()?;
        Some((read_text(&dir.join("backing_file"))?.into(), offset))
    }

    /// The file beneath a loop device as a disk, for reading what is on the device. `None`: it is none, or one over something else than a
    /// regular file of this kernel's that can be found.
    #[must_use]
    pub fn file_beneath(&self) -> Option<Self> {
        let (path, origin) = self.backing_file().filter(|(path, _)| mounts::is_of_kernel(path))?;
        let file = self.open_backing(&path)?;
        let found = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
        let flags = libc::O_DIRECT | libc::O_NONBLOCK;
        let direct = OpenOptions::new().read(true).custom_flags(flags).open(&path).ok();
        let is_same = |other: &File| {
            let other = other.metadata();
            other.is_ok_and(|other| (other.dev(), other.ino()) == (found.dev(), found.ino()))
        };
        Some(Self {
            path: self.path.clone(),
            file,
            direct: direct.filter(is_same),
            is_block: false,
            origin,
            len: self.len,
            part_of: None,
            logical_sector_bytes: self.logical_sector_bytes,
            watch: self.watch(),
            locks: Vec::new(),
        })
    }

    /// Takes the page cache of a loop device's file out of the way. `None`: it is no loop device, has direct I/O already, or can
    /// have none.
    #[must_use]
    pub fn direct_backing(&self) -> Option<DirectBacking<'_>> {
        let backing = self.cached_backing()?;
        let wanted = mounts::is_of_kernel(&backing);
        (wanted && sys::loops::set_direct(&self.file, true).is_ok()).then(|| DirectBacking(self))
    }

    /// The file beneath a loop device that goes through its page cache.
    fn cached_backing(&self) -> Option<PathBuf> {
        let dir = sysfs_dir(self.file.metadata().ok()?.rdev())?.join("loop");
        let is_cached = read_text(&dir.join("dio"))? == "0";
        is_cached.then(|| read_text(&dir.join("backing_file")).map(PathBuf::from))?
    }

    /// Forgets what is cached of the file beneath, as far as it can be found.
    pub(super) fn drop_backing_cache(&self) {
        if let Some(file) = self.cached_backing().and_then(|path| self.open_backing(&path)) {
            drop_file_cache(&file);
        }
    }

    /// The file beneath, if it is read through a cache that cannot be dropped: what is read back may come from there. A file in memory has
    /// nothing beneath.
    #[must_use]
    pub fn lasting_backing_cache(&self) -> Option<PathBuf> {
        self.cached_backing().filter(|path| self.open_backing(path).is_none())
    }

    /// Opens it by its path, which is all that is known of a removed file or of one in another mount namespace: the inode tells whether it is
    /// the file.
    fn open_backing(&self, path: &Path) -> Option<File> {
        // What is there now may be a pipe, which without this is waited for.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
        let found = file.metadata().ok()?;
        let told = sys::loops::backing(&self.file).ok()?;
        ((told.device, told.inode) == (found.dev(), found.ino())).then_some(file)
    }
}

impl Drop for DirectBacking<'_> {
    fn drop(&mut self) {
        // What is on the device does not depend on it.
        let _ = sys::loops::set_direct(&self.0.file, false);
    }
}
