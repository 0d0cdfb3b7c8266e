//! One gzip stream, compressed on all cores: each frame is compressed for itself and ends on a byte, so that the pieces can be
//! put one behind the other; the checksums are combined. Any reader takes it, also one that knows of one member only.

use agent_api::ErrorKind;
use flate2::{Compress, Compression, Crc, FlushCompress, Status};

use super::raw::{Encode, Output};
use crate::error::{Error, Result};

/// Magic, deflate, no flags, no time, no hints, made on Unix.
const HEADER: [u8; 10] = [0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 3];
/// A last block with nothing in it.
const END: [u8; 2] = [3, 0];
/// Zeros are compressed in pieces of this length, once, and put as often as needed.
const ZEROS_LEN: usize = 4 << 20;

/// Compresses frames.
#[derive(Debug)]
pub struct Gzip {
    level: Compression,
}

/// What is carried from frame to frame.
#[derive(Debug, Default)]
pub struct Joint {
    crc: Crc,
    /// Compressed zeros of [`ZEROS_LEN`], once there was a need.
    zeros: Option<Piece>,
}

impl Joint {
    fn put(&mut self, piece: &Piece, out: &mut Output<'_>) -> Result<()> {
        self.crc.combine(&piece.crc);
        out.put(&piece.bytes)
    }
}

/// A compressed frame.
#[derive(Debug)]
pub struct Piece {
    bytes: Vec<u8>,
    crc: Crc,
    /// Zeros that are still to be compressed, instead.
    zeros: u64,
}

impl Gzip {
    /// `level` is 1 to 9.
    pub fn new(level: u32) -> Self {
        Self { level: Compression::new(level) }
    }

    fn compress(&self, content: &[u8], mut bytes: Vec<u8>) -> Result<Piece> {
        let mut crc = Crc::new();
        crc.update(content);
        bytes.clear();
        let mut deflate = Compress::new(self.level, false);
        loop {
            // Room for what does not compress; grown if that was not enough.
            let consumed = usize::try_from(deflate.total_in()).expect("within the content");
            bytes.reserve((content.len() - consumed) + (content.len() >> 8) + 1024);
            let before = bytes.len();
            let status = deflate
                .compress_vec(&content[consumed..], &mut bytes, FlushCompress::Sync)
                .map_err(|e| Error::new(ErrorKind::Internal, "compressing").because(e))?;
            let consumed = usize::try_from(deflate.total_in()).expect("within the content");
            // With room left, the flush is complete.
            if consumed == content.len() && bytes.len() < bytes.capacity() {
                return Ok(Piece { bytes, crc, zeros: 0 });
            }
            if status == Status::BufError && bytes.len() == before {
                return Err(Error::new(ErrorKind::Internal, "the compressor makes no progress"));
            }
        }
    }
}

impl Encode for Gzip {
    type Piece = Piece;
    type Joint = Joint;
    const IS_DISK: bool = false;

    fn encode(&self, content: &[u8], len: u64, buffer: Vec<u8>) -> Result<Piece> {
        if content.is_empty() {
            return Ok(Piece { bytes: buffer, crc: Crc::new(), zeros: len });
        }
        self.compress(content, buffer)
    }

    fn append(&self, joint: &mut Joint, piece: Piece, out: &mut Output<'_>) -> Result<Vec<u8>> {
        let mut left = piece.zeros;
        if left == 0 {
            joint.put(&piece, out)?;
            return Ok(piece.bytes);
        }
        while left >= ZEROS_LEN as u64 {
            let zeros = match joint.zeros.take() {
                Some(zeros) => zeros,
                None => self.compress(&vec![0; ZEROS_LEN], Vec::new())?,
            };
            joint.put(&zeros, out)?;
            joint.zeros = Some(zeros);
            left -= ZEROS_LEN as u64;
        }
        if left > 0 {
            let rest = usize::try_from(left).expect("less than 4 MiB");
            let rest = self.compress(&vec![0; rest], Vec::new())?;
            joint.put(&rest, out)?;
        }
        Ok(piece.bytes)
    }

    fn begin(&self, out: &mut Output<'_>) -> Result<()> {
        out.put(&HEADER)
    }

    fn finish(&self, joint: Joint, out: &mut Output<'_>) -> Result<()> {
        out.put(&END)?;
        out.put(&joint.crc.sum().to_le_bytes())?;
        // The length modulo 2^32, as the format has it.
        out.put(&joint.crc.amount().to_le_bytes())
    }
}
