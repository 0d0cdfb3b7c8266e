//! A disk as it comes out of a foreign image: from its first byte to its last, piece by piece.
//!
//! Every format gives a [`Walk`], since all can be read from start to end and many only so. What can be read anywhere is a
//! [`RandomDisk`] as well, and [`RandomWalk`] walks it.

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use super::error::{ForeignError, Result};
use crate::seek;

/// What comes next of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// So many bytes, at the start of the buffer.
    Data(usize),
    /// So many zeros.
    Zero(u64),
    /// So many bytes that nobody uses; they count as zero.
    Free(u64),
}

impl Piece {
    /// How many bytes of the disk it is.
    #[must_use]
    pub fn disk_bytes(self) -> u64 {
        match self {
            Self::Data(len) => len as u64,
            Self::Zero(len) | Self::Free(len) => len,
        }
    }
}

/// A disk from start to end.
pub trait Walk: Send {
    /// The next piece, never an empty one; `None` behind the disk's last byte, and only when everything that the image holds
    /// behind it was checked. Not called again after `None` or an error. `buf` is not empty.
    fn next(&mut self, buf: &mut [u8]) -> Result<Option<Piece>>;
}

/// What a [`RandomDisk`] holds at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stretch {
    /// Bytes to be read.
    Data,
    /// Zeros that need not be read.
    Zero,
}

/// A disk that can be read anywhere, by several threads.
pub trait RandomDisk: Send + Sync {
    /// Its length in bytes.
    fn len(&self) -> u64;

    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is at `offset`, and for how many bytes at least; never zero bytes, never past the end. `offset` lies on the disk.
    fn stretch(&self, offset: u64) -> Result<(Stretch, u64)>;

    /// Fills `buf` with the bytes at `offset`, all of which lie on the disk.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()>;
}

/// Walks a [`RandomDisk`].
pub struct RandomWalk {
    disk: Arc<dyn RandomDisk>,
    at: u64,
}

impl RandomWalk {
    /// From the first byte on.
    #[must_use]
    pub fn new(disk: Arc<dyn RandomDisk>) -> Self {
        Self { disk, at: 0 }
    }
}

impl std::fmt::Debug for RandomWalk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RandomWalk").field("at", &self.at).finish_non_exhaustive()
    }
}

impl Walk for RandomWalk {
    fn next(&mut self, buf: &mut [u8]) -> Result<Option<Piece>> {
        if self.at >= self.disk.len() {
            return Ok(None);
        }
        let (kind, mut len) = self.disk.stretch(self.at)?;
        let piece = match kind {
            Stretch::Zero => Piece::Zero(len),
            Stretch::Data => {
                // Neighbours go into one read, so that formats with small clusters are not read cluster by cluster.
                let want = (buf.len() as u64).min(self.disk.len() - self.at);
                while len < want {
                    let (kind, more) = self.disk.stretch(self.at + len)?;
                    if kind == Stretch::Zero {
                        break;
                    }
                    len += more;
                }
                len = len.min(want);
                let count = usize::try_from(len).expect("no longer than the buffer");
                self.disk.read(self.at, &mut buf[..count])?;
                Piece::Data(count)
            }
        };
        self.at += len;
        Ok(Some(piece))
    }
}

/// Walks whatever a reader gives, until its end.
pub struct ReadWalk<R> {
    reader: R,
    format: &'static str,
}

impl<R: Read + Send> ReadWalk<R> {
    /// `format` is the name for errors.
    pub fn new(reader: R, format: &'static str) -> Self {
        Self { reader, format }
    }
}

impl<R> std::fmt::Debug for ReadWalk<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadWalk").field("format", &self.format).finish_non_exhaustive()
    }
}

impl<R: Read + Send> Walk for ReadWalk<R> {
    fn next(&mut self, buf: &mut [u8]) -> Result<Option<Piece>> {
        let read = fill(&mut self.reader, buf).map_err(ForeignError::read(self.format))?;
        Ok((read > 0).then_some(Piece::Data(read)))
    }
}

/// Reads until the buffer is full or the reader's end is reached; how much was read.
pub fn fill(reader: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match reader.read(&mut buf[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// A part of a [`RandomDisk`] as `Read + Seek`.
pub struct Cursor<'a> {
    disk: &'a dyn RandomDisk,
    start: u64,
    len: u64,
    at: u64,
    /// A piece of the disk around the last read: parsers read little at a time.
    piece: (u64, Vec<u8>),
}

/// What the cursor reads at once.
const PIECE_LEN: u64 = 64 << 10;

impl<'a> Cursor<'a> {
    /// The `len` bytes from `start`, which lie on the disk.
    pub fn new(disk: &'a dyn RandomDisk, start: u64, len: u64) -> Self {
        Self { disk, start, len, at: 0, piece: (0, Vec::new()) }
    }
}

impl Read for Cursor<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.len.saturating_sub(self.at)).unwrap_or(usize::MAX);
        if left == 0 || buf.is_empty() {
            return Ok(0);
        }
        let at = self.start + self.at;
        let (start, bytes) = &mut self.piece;
        if !(*start..*start + bytes.len() as u64).contains(&at) {
            *start = at - at % PIECE_LEN;
            let piece_len = (self.disk.len() - *start).min(PIECE_LEN);
            bytes.resize(usize::try_from(piece_len).expect("64 KiB"), 0);
            if let Err(error) = self.disk.read(*start, bytes) {
                bytes.clear();
                return Err(io::Error::other(error));
            }
        }
        let within = usize::try_from(at - *start).expect("64 KiB");
        let len = (bytes.len() - within).min(buf.len()).min(left);
        buf[..len].copy_from_slice(&bytes[within..within + len]);
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for Cursor<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = seek::place(self.at, self.len, to)?;
        Ok(self.at)
    }
}
