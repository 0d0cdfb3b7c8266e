//! Where large reads of a source are best: in the page cache, or past it.
//!
//! A block device's page cache is copied page by page, at 1 to 2 GiB a second for all processors of a small machine together, which
//! takes from the compressors what they need; past it nothing is copied. And it may be old: what is written through a partition, by a mounted
//! filesystem or to the file beneath does not go through it, and it stays as long as anybody has the disk or a part of it open. So a device
//! is read past it, and it is forgotten before anything else of it is read. What is in the cache of a disk file is what is in the file, and
//! the disk beneath may be slow: there a range that the kernel has is read from memory. The kernel writes what is dirty in the cache before
//! it reads past it. Files of a server or another program are read through the cache: one was seen to give old bytes past it.

use std::fs;

use super::{Disk, drop_file_cache, mounts};
use crate::sys;

impl Disk {
    /// Whether large reads go past the page cache, unless what they want is in it.
    #[must_use]
    pub fn is_read_past_cache(&self) -> bool {
        // Mounts are told by whole paths.
        let is_of_kernel =
            || fs::canonicalize(&self.path).is_ok_and(|path| mounts::is_of_kernel(&path));
        self.direct.is_some() && (self.is_block || is_of_kernel())
    }

    /// Whether at least so many bytes of a range need not come from the disk.
    #[must_use]
    pub fn has_in_memory(&self, wanted: u64, offset: u64, len: u64) -> bool {
        !self.is_block && self.cached_bytes(offset, len) >= wanted
    }

    /// Forgets what the kernel has in memory of a device, so that what is read of it is what is on it. What is dirty there is written first, as
    /// the kernel would do sooner or later.
    pub fn forget_cache(&self) {
        if self.is_block {
            let _pending = self.watch.begin("flushing", None);
            // Only root may do the first; the second leaves what is dirty, which is not old.
            if sys::block::drop_cache(&self.file).is_err() {
                drop_file_cache(&self.file);
            }
        }
    }

    /// How many bytes of a range are in the page cache, counted in whole pages; 0 on a kernel that does not tell (before 6.5).
    #[must_use]
    pub fn cached_bytes(&self, offset: u64, len: u64) -> u64 {
        let start = self.origin + offset;
        sys::cache::cached_bytes(&self.file, start..start + len).unwrap_or(0)
    }
}
