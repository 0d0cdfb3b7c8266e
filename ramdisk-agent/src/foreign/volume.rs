//! A volume with an image of its own, as it is read piece by piece into the places that its bytes have on the disk.

use std::sync::Arc;

use super::error::{ForeignError, Result};
use super::walk::{Piece, Walk};

/// Starts a walk over a volume.
pub type Start = Arc<dyn Fn() -> Result<Box<dyn Walk>> + Send + Sync>;

/// A volume, and the room that the disk has for it. Where the volume is shorter the rest is free.
pub struct Volume {
    /// Its name for errors.
    pub name: String,
    /// What it lies in, for errors: a partition.
    pub within: &'static str,
    /// The room's length.
    pub len: u64,
    /// The way to its bytes.
    pub start: Start,
    /// It has every byte of the room, and nothing but their number tells that some are missing; others say themselves how long they are.
    pub is_raw: bool,
    /// How much memory its decoder takes, where that is much.
    pub window_bytes: u64,
}

/// A walk over a volume, at some place in it.
pub struct Reading {
    /// What is read.
    pub volume: Arc<Volume>,
    /// How far it was read.
    pub at: u64,
    /// None behind the end of the volume.
    walk: Option<Box<dyn Walk>>,
    /// What was left of a piece that was longer than asked for.
    rest: Option<Piece>,
    format: &'static str,
}

impl Reading {
    /// At the volume's start.
    pub fn begin(volume: Arc<Volume>, format: &'static str) -> Result<Self> {
        let walk = Some((volume.start)()?);
        Ok(Self { volume, at: 0, walk, rest: None, format })
    }

    /// The next piece, of at most so many bytes, which are still in the room.
    pub fn next(&mut self, most: u64, buf: &mut [u8]) -> Result<Piece> {
        let piece = match self.rest.take() {
            Some(rest) => rest,
            None => self.fetch(most, buf)?,
        };
        let (piece, rest) = match piece {
            Piece::Zero(len) if len > most => (Piece::Zero(most), Some(Piece::Zero(len - most))),
            Piece::Free(len) if len > most => (Piece::Free(most), Some(Piece::Free(len - most))),
            piece => (piece, None),
        };
        self.rest = rest;
        self.at += piece.disk_bytes();
        Ok(piece)
    }

    fn fetch(&mut self, most: u64, buf: &mut [u8]) -> Result<Piece> {
        let left = self.volume.len - self.at;
        let Some(walk) = &mut self.walk else { return Ok(Piece::Free(left)) };
        let room = usize::try_from(most).unwrap_or(usize::MAX).min(buf.len());
        match walk.next(&mut buf[..room])? {
            Some(piece) if piece.disk_bytes() <= left => Ok(piece),
            Some(_) => Err(self.too_long()),
            None if self.volume.is_raw => {
                let Volume { name, within, .. } = &*self.volume;
                let fault = format!(
                    "the image of {name} ends {left} bytes before its {within} does: it is cut off, or its last piece is missing"
                );
                Err(ForeignError::damaged(self.format, fault))
            }
            None => {
                self.walk = None;
                Ok(Piece::Free(left))
            }
        }
    }

    /// Reads on to a place that was not reached yet.
    pub fn skip_to(&mut self, at: u64, buf: &mut [u8]) -> Result<()> {
        while self.at < at {
            self.next(at - self.at, buf)?;
        }
        Ok(())
    }

    /// Ends the walk at the room's end: whatever the image has to check behind the volume is checked.
    pub fn finish(mut self, buf: &mut [u8]) -> Result<()> {
        let Some(walk) = &mut self.walk else { return Ok(()) };
        match walk.next(buf)? {
            None => Ok(()),
            Some(_) => Err(self.too_long()),
        }
    }

    fn too_long(&self) -> ForeignError {
        let Volume { name, within, .. } = &*self.volume;
        ForeignError::damaged(
            self.format,
            format!("the image of {name} is longer than its {within}"),
        )
    }
}
