//! Where large reads are fastest: in the page cache, or past it.
//!
//! A block device's page cache is copied page by page, at 1 to 2 GiB a second for all processors of a small machine together, which
//! takes from the compressors what they need; past it nothing is copied. But what is in the cache already may be on a slow disk. So a range
//! that the kernel has is read there, and any other past the cache, where a disk allows that. Both give the same bytes: the kernel writes
//! what is dirty in the cache before it reads past it. Files of a server or another program are read through the cache: one was seen to
//! give old bytes past it.

use super::{Disk, mounts};
use crate::sys;

impl Disk {
    /// Whether large reads go past the page cache, unless what they want is in it.
    #[must_use]
    pub fn is_read_past_cache(&self) -> bool {
        let is_of_kernel =
            || std::fs::canonicalize(&self.path).is_ok_and(|path| mounts::is_of_kernel(&path));
        self.direct.is_some() && (self.is_block || is_of_kernel())
    }

    /// How many bytes of a range are in the page cache, counted in whole pages; 0 on a kernel that does not tell (before 6.5).
    #[must_use]
    pub fn cached_bytes(&self, offset: u64, len: u64) -> u64 {
        let start = self.origin + offset;
        sys::cache::cached_bytes(&self.file, start..start + len).unwrap_or(0)
    }
}
