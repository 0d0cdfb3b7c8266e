//! Targets that are loop devices, and the page cache of the file beneath.
//!
//! A loop device without direct I/O copies everything through that cache, by a single thread: a restore takes about twice as
//! long, and its read-back sees the cache and not the disk. While a restore writes, direct I/O is on; afterwards the device is as it
//! was. Left alone: files that a server or another program answers for.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::inventory::{read_text, sysfs_dir};
use super::{Disk, users};
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

    /// Takes the page cache of a loop device's file out of the way. `None`: it is no loop device, has direct I/O already, or can
    /// have none.
    #[must_use]
    pub fn direct_backing(&self) -> Option<DirectBacking<'_>> {
        let dir = sysfs_dir(self.file.metadata().ok()?.rdev())?.join("loop");
        let is_off = read_text(&dir.join("dio"))? == "0";
        let backing = read_text(&dir.join("backing_file"))?;
        let wanted = is_off && users::is_of_kernel(Path::new(&backing));
        (wanted && sys::loops::set_direct(&self.file, true).is_ok()).then(|| DirectBacking(self))
    }
}

impl Drop for DirectBacking<'_> {
    fn drop(&mut self) {
        // What is on the device does not depend on it.
        let _ = sys::loops::set_direct(&self.0.file, false);
    }
}
