//! A part of a disk as `Read + Seek`, for the parsers of tables and filesystems.

use std::io::{self, Read, Seek, SeekFrom};

use super::{Disk, Unreadable, is_of_medium};
use crate::extents::Extents;
use crate::seek;

/// A cursor over a part of a disk. A read that fails has an [`Unreadable`] as its cause, unless bad sectors are to be zeros.
#[derive(Debug)]
pub struct Window<'a> {
    disk: &'a Disk,
    start: u64,
    len: u64,
    at: u64,
    zeroed: Option<Extents>,
}

impl Disk {
    /// The `len` bytes from `start`, which lie on the disk.
    #[must_use]
    pub fn window(&self, start: u64, len: u64) -> Window<'_> {
        Window { disk: self, start, len, at: 0, zeroed: None }
    }
}

impl Window<'_> {
    /// From now on bad sectors read as zeros. Only for structures that prove themselves, as by a checksum: a map of used blocks
    /// that is made of such zeros drops what is used.
    #[must_use]
    pub fn with_zeros_for_bad_sectors(self) -> Self {
        Self { zeroed: Some(Extents::new()), ..self }
    }

    /// Which parts of the disk were read as zeros because they are bad.
    #[must_use]
    pub fn zeroed(&self) -> Extents {
        self.zeroed.clone().unwrap_or_default()
    }

    fn read_exact_at(&mut self, buf: &mut [u8], mut at: u64) -> Result<(), Unreadable> {
        let mut rest = buf;
        while let Err(bad) = self.disk.read_exact_at(rest, at) {
            let Some(zeroed) = self.zeroed.as_mut().filter(|_| is_of_medium(&bad.source)) else {
                return Err(bad);
            };
            let end = bad.offset + u64::from(self.disk.logical_sector_bytes());
            zeroed.insert(bad.offset, end - bad.offset);
            // What lies before the bad sector has come; it is read again to be sure of that.
            let within = |to: u64| usize::try_from(to.saturating_sub(at)).unwrap_or(usize::MAX);
            let (good, bad_end) = (within(bad.offset), within(end).min(rest.len()));
            self.disk.read_exact_at(&mut rest[..good], at)?;
            rest[good..bad_end].fill(0);
            at += bad_end as u64;
            rest = &mut rest[bad_end..];
        }
        Ok(())
    }
}

impl Read for Window<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.len.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let len = left.min(buf.len());
        let at = self.start + self.at;
        self.read_exact_at(&mut buf[..len], at).map_err(io::Error::other)?;
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = seek::place(self.at, self.len, to)?;
        Ok(self.at)
    }
}
