//! A part of a disk as `Read + Seek`, for the parsers of tables and filesystems.

use std::io::{self, Read, Seek, SeekFrom};

use super::Disk;

/// A cursor over a part of a disk. A read that fails has an [`Unreadable`](super::Unreadable) as its cause.
#[derive(Debug)]
pub struct Window<'a> {
    disk: &'a Disk,
    start: u64,
    len: u64,
    at: u64,
}

impl Disk {
    /// The `len` bytes from `start`, which lie on the disk.
    #[must_use]
    pub fn window(&self, start: u64, len: u64) -> Window<'_> {
        Window { disk: self, start, len, at: 0 }
    }
}

impl Read for Window<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.len.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let len = left.min(buf.len());
        self.disk.read_exact_at(&mut buf[..len], self.start + self.at).map_err(io::Error::other)?;
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(n) => Some(n),
            SeekFrom::End(n) => self.len.checked_add_signed(n),
            SeekFrom::Current(n) => self.at.checked_add_signed(n),
        };
        self.at = target.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "seeking before the start")
        })?;
        Ok(self.at)
    }
}
