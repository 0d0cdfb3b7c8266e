//! Sectors that cannot be read or written: which errors mean that, and which sector it is.
//!
//! A read through the page cache fails in whole pages, and one of a few MiB says only that something in it is bad. So where one
//! fails, the range is read again past the cache, in blocks and then in sectors, up to the first that fails by itself. What
//! could be read on this way is as good as what a first read gives. A write that failed is narrowed down in the same way, but
//! only to name the sector. Deliberately absent: going on behind a bad sector, which is
//! `capture/rescue.rs`.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::Disk;
use crate::buffer::AlignedBuf;
use crate::error::Error;
use agent_api::ErrorKind;

/// What is read at once on the way to a bad sector.
pub(crate) const BLOCK_LEN: usize = 64 << 10;

/// A sector that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("LBA {} (byte {}) of {} cannot be read", (.origin + .offset) / u64::from(*.sector_bytes), .origin + .offset, .path.display())]
pub struct Unreadable {
    /// The disk.
    pub path: PathBuf,
    /// Its logical sector size.
    pub sector_bytes: u32,
    /// Where on the disk the part begins that was read; 0: it is the whole disk.
    pub origin: u64,
    /// Where the sector begins, counted from there.
    pub offset: u64,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

impl From<Unreadable> for Error {
    fn from(bad: Unreadable) -> Self {
        Self::new(ErrorKind::Disk, bad.to_string()).because(bad.source)
    }
}

/// Whether an error is of one place of the medium: elsewhere the disk may well answer. These are the numbers that the kernel
/// gives for BLK_STS_IOERR, _MEDIUM, _PROTECTION, _TARGET and _TIMEOUT (`blk_errors` in block/blk-core.c).
#[must_use]
pub fn is_of_medium(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::ENODATA | libc::EILSEQ | libc::EREMOTEIO | libc::ETIMEDOUT)
    )
}

/// Whether an error is of a sector that cannot be read or written, and not of the whole disk.
#[must_use]
pub fn is_of_sector(error: &Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref());
    error.kind() == ErrorKind::Disk && cause.is_some_and(is_of_medium)
}

impl Disk {
    /// Reads through the page cache, or past it where that fails; the error names the first sector that cannot be read.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Unreadable> {
        match self.read_once(buf, offset) {
            Err(bad) if is_of_medium(&bad.source) => self.read_up_to_bad(buf, offset),
            read => read,
        }
    }

    /// Reads through the page cache, once; the error names the place of the whole read.
    pub(crate) fn read_once(&self, buf: &mut [u8], offset: u64) -> Result<(), Unreadable> {
        let _pending = self.watch.begin("reading", Some(self.origin + offset));
        self.file.read_exact_at(buf, self.origin + offset).map_err(|e| self.unreadable(offset, e))
    }

    pub(super) fn read_up_to_bad(&self, buf: &mut [u8], offset: u64) -> Result<(), Unreadable> {
        let (start, end) = self.whole_sectors(offset, buf.len());
        let sector = index(u64::from(self.logical_sector_bytes));
        let mut block = AlignedBuf::new(BLOCK_LEN);
        for at in (start..end).step_by(BLOCK_LEN) {
            let len = index(end - at).min(BLOCK_LEN);
            let block = &mut block.as_mut_slice()[..len];
            if self.read_past_cache(block, at).is_err() {
                for (piece, at) in block.chunks_mut(sector).zip((at..).step_by(sector)) {
                    self.read_past_cache(piece, at).map_err(|e| self.unreadable(at, e))?;
                }
            }
            copy_shared(block, at, buf, offset);
        }
        Ok(())
    }

    /// The sectors that a range lies in, as first byte and first byte behind; the odd end of a disk file is its last sector.
    pub(crate) fn whole_sectors(&self, offset: u64, len: usize) -> (u64, u64) {
        let sector = u64::from(self.logical_sector_bytes);
        let end = (offset + len as u64).next_multiple_of(sector);
        (offset / sector * sector, end.min(self.len))
    }

    /// Reads from the medium where that is possible. `buf` and `offset` as for [`Disk::read_direct`].
    pub(crate) fn read_past_cache(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let _pending = self.watch.begin("reading", Some(self.origin + offset));
        self.direct_for(buf, offset).read_exact_at(buf, self.origin + offset)
    }

    pub(super) fn write_past_cache(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let _pending = self.watch.begin("writing", Some(self.origin + offset));
        self.direct_for(buf, offset).write_all_at(buf, self.origin + offset)
    }

    /// Where in a write that has failed the first sector is that fails by itself, and its length.
    pub(super) fn first_unwritable(&self, buf: &[u8], offset: u64) -> Option<(u64, usize)> {
        let sector = index(u64::from(self.logical_sector_bytes));
        for (block, at) in buf.chunks(BLOCK_LEN).zip((offset..).step_by(BLOCK_LEN)) {
            if self.write_past_cache(block, at).is_ok() {
                continue;
            }
            for (piece, at) in block.chunks(sector).zip((at..).step_by(sector)) {
                if self.write_past_cache(piece, at).is_err() {
                    return Some((at, piece.len()));
                }
            }
        }
        None
    }

    fn unreadable(&self, offset: u64, source: io::Error) -> Unreadable {
        let (path, sector_bytes) = (self.path.clone(), self.logical_sector_bytes);
        Unreadable { path, sector_bytes, origin: self.origin, offset, source }
    }
}

/// Copies what two pieces of a disk have in common, each given by its bytes and the place of the first.
pub(crate) fn copy_shared(from: &[u8], from_at: u64, to: &mut [u8], to_at: u64) {
    let start = from_at.max(to_at);
    let end = (from_at + from.len() as u64).min(to_at + to.len() as u64);
    if start < end {
        to[index(start - to_at)..index(end - to_at)]
            .copy_from_slice(&from[index(start - from_at)..index(end - from_at)]);
    }
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("within a buffer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_pieces_share_is_copied() {
        let cases = [
            (6, [0; 3]),
            (7, [4, 0, 0]),
            (9, [2, 3, 4]),
            (10, [1, 2, 3]),
            (12, [0, 0, 1]),
            (13, [0; 3]),
        ];
        for (from_at, expected) in cases {
            let mut to = [0; 3];
            copy_shared(&[1, 2, 3, 4], from_at, &mut to, 10);
            assert_eq!(to, expected, "from {from_at}");
        }
    }
}
