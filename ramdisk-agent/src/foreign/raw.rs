//! A raw disk: the file is the disk.

use image_format::ReadAt;

use super::error::{ForeignError, Result};
use super::source::Source;
use super::walk::{RandomDisk, Stretch};

/// A file that is a disk, byte for byte.
#[derive(Debug)]
pub struct RawDisk(pub Source);

impl RandomDisk for RawDisk {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn stretch(&self, offset: u64) -> Result<(Stretch, u64)> {
        Ok((Stretch::Data, self.0.len() - offset))
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_exact_at(buf, offset).map_err(ForeignError::read("raw"))
    }
}
