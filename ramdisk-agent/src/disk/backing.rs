//! Loop devices, and the page cache of the file beneath.
//!
//! What is on a loop device is what is in the file, at the place where it begins: a source is read there, without the one thread that stands
//! between, from memory or past the cache.
//!
//! A loop device without direct I/O copies everything through that cache, by a single thread: a restore takes about twice as
//! long, and its read-back sees the cache and not the disk. While a restore compares and writes, direct I/O is on; afterwards the device is as it
//! was. Not so where a server or another program answers for the file: a FUSE file was seen to read back old bytes by direct I/O after it
//! had been written by it. There the file's cached pages are dropped before each read-back.
//!
//! With direct I/O the device's own thread still costs a fifth of a restore's time. So the bulk of it, frames and their read-back, goes to
//! the file, past its cache; before and behind that the device's cache is dropped, and everything else (zeroing, tables, what the kernel
//! mounts) goes through the device.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::inventory::{read_text, sysfs_dir};
use super::{Disk, drop_file_cache, mounts};
use crate::sys;

/// Direct I/O of a loop device, until this is dropped.
#[derive(Debug)]
pub struct DirectBacking<'a>(&'a Disk);

/// What the file beneath a loop device is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    Reading,
    Writing,
}

impl For {
    /// What is there now may be a pipe, which without `O_NONBLOCK` is waited for.
    fn open(self, path: &Path, flags: i32) -> std::io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(self == Self::Writing)
            .custom_flags(libc::O_NONBLOCK | flags)
            .open(path)
    }
}

impl Disk {
    /// The file beneath a loop device, and where in it the device begins; `None`: it is none.
    #[must_use]
    pub fn backing_file(&self) -> Option<(PathBuf, u64)> {
        let offset = self.loop_says("offset")?.parse().ok()?;
        Some((self.loop_says("backing_file")?.into(), offset))
    }

    /// What the kernel says of a loop device; `None`: it is none.
    fn loop_says(&self, what: &str) -> Option<String> {
        let dir = sysfs_dir(self.file.metadata().ok()?.rdev())?;
        read_text(&dir.join("loop").join(what))
    }

    /// The file beneath a loop device as a disk, for reading what is on the device. `None`: it is none, or one over something else than a
    /// regular file of this kernel's that can be found.
    #[must_use]
    pub fn file_beneath(&self) -> Option<Self> {
        self.open_beneath(For::Reading)
    }

    /// The same for the bulk of what is written to a target, and for reading that back, always past the file's cache. What the device itself
    /// has in memory was dropped; [`Disk::drop_cache`] does so again once everything is written. `None` too where the kernel cannot pass
    /// by the file's cache, and where the device begins in the middle of the file: what is told of a bad sector counts from the device's
    /// begin. Given only with direct I/O, be it its own or by [`Disk::direct_backing`], which is to be held as long.
    #[must_use]
    pub fn file_beneath_for_writing(&self) -> Option<Self> {
        let is_direct = self.loop_says("dio")? == "1";
        let beneath = is_direct.then(|| self.open_beneath(For::Writing))??;
        let usable = beneath.direct.is_some() && beneath.origin == self.origin;
        (usable && sys::block::drop_cache(&self.file).is_ok()).then_some(beneath)
    }

    fn open_beneath(&self, wanted: For) -> Option<Self> {
        let (path, start) = self.backing_file().filter(|(path, _)| mounts::is_of_kernel(path))?;
        let file = self.open_backing(&path, wanted)?;
        let found = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
        let is_same = |other: &File| {
            let other = other.metadata();
            other.is_ok_and(|other| (other.dev(), other.ino()) == (found.dev(), found.ino()))
        };
        Some(Self {
            path: self.path.clone(),
            file,
            direct: wanted.open(&path, libc::O_DIRECT).ok().filter(is_same),
            is_block: false,
            origin: start + self.origin,
            len: self.len,
            part_of: self.part_of,
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
        let is_cached = self.loop_says("dio")? == "0";
        is_cached.then(|| self.loop_says("backing_file").map(PathBuf::from))?
    }

    /// Forgets what is cached of the file beneath, as far as it can be found.
    pub(super) fn drop_backing_cache(&self) {
        if let Some(file) =
            self.cached_backing().and_then(|path| self.open_backing(&path, For::Reading))
        {
            drop_file_cache(&file);
        }
    }

    /// The file beneath, if it is read through a cache that cannot be dropped: what is read back may come from there. A file in memory has
    /// nothing beneath.
    #[must_use]
    pub fn lasting_backing_cache(&self) -> Option<PathBuf> {
        self.cached_backing().filter(|path| self.open_backing(path, For::Reading).is_none())
    }

    /// Opens it by its path, which is all that is known of a removed file or of one in another mount namespace: the inode tells whether it is
    /// the file.
    fn open_backing(&self, path: &Path, wanted: For) -> Option<File> {
        let file = wanted.open(path, 0).ok()?;
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
