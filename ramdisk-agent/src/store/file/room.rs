//! Whether a file system has room for a file, told before anything of it is written.
//!
//! Only where the answer is certain: file systems that store bytes as they are. What may compress (btrfs, ZFS), and what lies on
//! servers, is not asked; there the write that finds no room says so.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{fstatfs, fstatvfs};

use super::super::{Result, StoreError};

/// ext2/3/4, xfs, f2fs, tmpfs: a hole takes nothing.
const WITH_HOLES: [u64; 4] = [0xef53, 0x5846_5342, 0xf2f5_2010, 0x0102_1994];
/// FAT and exFAT: a hole is filled with zeros.
const WITHOUT_HOLES: [u64; 2] = [0x4d44, 0x2011_bab0];
/// The space of a file that was just removed (a left-over that this one replaces) may be given back a little later, by xfs for one.
const TRIES: u32 = 10;
const BETWEEN_TRIES: Duration = Duration::from_millis(200);

/// Refuses what has no room: `len_bytes` in all, with `data_bytes` of data in them.
pub(super) fn check(file: &File, partial: &Path, len_bytes: u64, data_bytes: u64) -> Result<()> {
    let failed = |source| StoreError::local("looking at", partial.display(), source);
    let kind = fstatfs(file).map_err(|e| failed(e.into()))?.f_type;
    let kind = u64::try_from(kind).unwrap_or_default();
    let needed = match (WITH_HOLES.contains(&kind), WITHOUT_HOLES.contains(&kind)) {
        (true, _) => data_bytes,
        (_, true) => len_bytes,
        _ => return Ok(()),
    };
    let mut free = 0;
    for _ in 0..TRIES {
        let space = fstatvfs(file).map_err(|e| failed(e.into()))?;
        // What is reserved for root counts: this may be root. A tmpfs without a limit has no blocks.
        free = space.f_bfree.saturating_mul(space.f_frsize);
        if free >= needed || space.f_blocks == 0 {
            return Ok(());
        }
        std::thread::sleep(BETWEEN_TRIES);
    }
    Err(StoreError::NoRoom { url: partial.display().to_string(), needed, free })
}
