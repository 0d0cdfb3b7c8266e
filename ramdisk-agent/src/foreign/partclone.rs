//! partclone's images, formats 0001 and 0002, after `IMAGE_FORMATS.md` of partclone and its reader.
//!
//! A header, a bitmap of the blocks in use, then those blocks, with a checksum after every so many. What the bitmap does not name
//! is free: it is not in the image. All is read in order, so any reader will do as the source, a decompressor above all. Every
//! checksum is compared, those of the header and the bitmap too. Format 0001's checksum covers only the first byte of each block,
//! by a mistake of the tool; so images of that format may be damaged without a sign of it.

mod header;

use std::io::Read;

use crc::{CRC_32_JAMCRC, Crc, Digest, Table};
use xxhash_rust::xxh3::Xxh3;
use xxhash_rust::xxh64::Xxh64;

use super::error::{ForeignError, Result};
use super::walk::{Piece, Walk, fill};
use crate::extents::{Extent, Extents};

pub use header::{Bitmap, Checksum, HEAD_LEN, Header};

pub(super) const FORMAT: &str = "partclone";
/// Fragments of free space that are kept track of.
const MAX_FRAGMENTS: usize = 4 << 20;
/// What the bitmap is read by.
const PIECE_LEN: usize = 64 << 10;
/// CRC-32 as partclone computes it: not inverted at the end.
static CRC: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_JAMCRC);
/// Format 0001 ends its bitmap with this.
const BITMAP_END: &[u8; 8] = b"BiTmAgIc";

/// Whether a file begins as a partclone image.
#[must_use]
pub fn is_partclone(head: &[u8]) -> bool {
    head.starts_with(b"partclone-image")
}

/// Walks the volume in an image.
pub struct Partclone<R> {
    reader: R,
    header: Header,
    /// Bytes in use.
    used: Extents,
    /// Which of them comes next.
    next: usize,
    at: u64,
    sum: Sum,
    /// Bytes until the next checksum; none if there are no checksums.
    until_sum: Option<u64>,
    until_sum_at_start: u64,
}

impl<R> std::fmt::Debug for Partclone<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Partclone").field("header", &self.header).field("at", &self.at).finish()
    }
}

fn damaged(fault: impl Into<String>) -> ForeignError {
    ForeignError::damaged(FORMAT, fault)
}

/// Reads exactly so many bytes.
fn read(reader: &mut impl Read, buf: &mut [u8], what: &str) -> Result<()> {
    let filled = fill(reader, buf).map_err(ForeignError::read(FORMAT))?;
    if filled < buf.len() {
        return Err(damaged(format!("it ends within {what}: it is truncated")));
    }
    Ok(())
}

impl<R: Read + Send> Partclone<R> {
    /// Reads header and bitmap.
    pub fn open(mut reader: R) -> Result<Self> {
        let mut head = vec![0; HEAD_LEN];
        read(&mut reader, &mut head, "its header")?;
        let header = Header::parse(&head)?;
        let mut rest = vec![0; header.rest_len];
        read(&mut reader, &mut rest, "its header")?;
        let used = read_bitmap(&mut reader, &header)?;
        let strip = u64::from(header.blocks_per_checksum) * u64::from(header.block_bytes);
        let until_sum = (header.checksum != Checksum::None).then_some(strip);
        let sum = Sum::new(header.checksum, header.block_bytes);
        Ok(Self { reader, header, used, next: 0, at: 0, sum, until_sum, until_sum_at_start: strip })
    }

    /// What the header says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    fn read_data(&mut self, extent: Extent, buf: &mut [u8]) -> Result<Piece> {
        let left = extent.end() - self.at;
        let len = self.until_sum.map_or(left, |until| until.min(left)).min(buf.len() as u64);
        let count = usize::try_from(len).expect("no longer than the buffer");
        read(&mut self.reader, &mut buf[..count], "its blocks")?;
        self.at += len;
        if let Some(until) = self.until_sum {
            self.sum.update(&buf[..count]);
            self.until_sum = Some(until - len);
            if until == len {
                self.check_sum()?;
            }
        }
        Ok(Piece::Data(count))
    }

    fn check_sum(&mut self) -> Result<()> {
        let expected = self.sum.value();
        let mut stored = vec![0; expected.len()];
        read(&mut self.reader, &mut stored, "its checksums")?;
        // The order of bytes of the longest one is not written down anywhere: both are taken.
        let turned = || expected.iter().rev().eq(stored.iter());
        let same = stored == expected || self.header.checksum == Checksum::Xxh128 && turned();
        if !same {
            let fault = format!("a checksum does not match before byte {} of the volume", self.at);
            return Err(damaged(fault));
        }
        if self.header.reseed {
            self.sum = Sum::new(self.header.checksum, self.header.block_bytes);
        }
        self.until_sum = Some(self.until_sum_at_start);
        Ok(())
    }

    /// The checksum of a last strip that is shorter, and nothing behind it.
    fn check_end(&mut self) -> Result<()> {
        if self.until_sum.is_some_and(|until| until < self.until_sum_at_start) {
            self.check_sum()?;
        }
        let more = fill(&mut self.reader, &mut [0]).map_err(ForeignError::read(FORMAT))?;
        if more > 0 {
            return Err(damaged("there is something behind its end"));
        }
        Ok(())
    }
}

impl<R: Read + Send> Walk for Partclone<R> {
    fn next(&mut self, buf: &mut [u8]) -> Result<Option<Piece>> {
        let extent = self.used.iter().as_slice().get(self.next).copied();
        match extent {
            Some(extent) if self.at >= extent.end() => {
                self.next += 1;
                self.next(buf)
            }
            Some(extent) if self.at >= extent.start => self.read_data(extent, buf).map(Some),
            Some(extent) => {
                let len = extent.start - self.at;
                self.at = extent.start;
                Ok(Some(Piece::Free(len)))
            }
            None if self.at < self.header.len => {
                let len = self.header.len - self.at;
                self.at = self.header.len;
                Ok(Some(Piece::Free(len)))
            }
            None => self.check_end().map(|()| None),
        }
    }
}

fn read_bitmap(reader: &mut impl Read, header: &Header) -> Result<Extents> {
    let block = u64::from(header.block_bytes);
    let mut used = Extents::new();
    let mut blocks = 0_u64;
    let mut piece = vec![0; PIECE_LEN];
    let mut digest = CRC.digest();
    let mut left = match header.bitmap {
        Bitmap::None => {
            used.push(0, header.blocks * block);
            return Ok(used);
        }
        Bitmap::Bits => header.blocks.div_ceil(8),
        Bitmap::Bytes => header.blocks,
    };
    let mut take = |is_used: bool| {
        // Bits behind the last block mean nothing.
        if is_used && blocks < header.blocks {
            used.push(blocks * block, block);
        }
        blocks += 1;
    };
    while left > 0 {
        let len = usize::try_from(left).unwrap_or(PIECE_LEN).min(PIECE_LEN);
        let now = &mut piece[..len];
        read(reader, now, "its bitmap")?;
        digest.update(now);
        for byte in now.iter() {
            match header.bitmap {
                Bitmap::Bits => (0..8).for_each(|bit| take(byte >> bit & 1 == 1)),
                // The tool takes any value but zero for a block in use.
                _ => take(*byte != 0),
            }
        }
        left -= len as u64;
    }
    if used.len() > MAX_FRAGMENTS {
        let reason = format!("its bitmap has {} fragments: that is more than is kept", used.len());
        return Err(ForeignError::refused(FORMAT, reason));
    }
    let mut end = vec![0; if header.version == 1 { BITMAP_END.len() } else { 4 }];
    read(reader, &mut end, "its bitmap")?;
    let expected = match header.version {
        1 => BITMAP_END.to_vec(),
        _ => digest.finalize().to_le_bytes().to_vec(),
    };
    if end != expected {
        return Err(damaged("its bitmap does not match its checksum"));
    }
    Ok(used)
}

/// A checksum on its way.
enum Sum {
    None,
    Crc(Digest<'static, u32, Table<16>>),
    /// Of the first byte of every block, once for each byte of the block.
    Crc0001 {
        crc: u32,
        block_bytes: u32,
        within: u32,
        first: u8,
    },
    Xxh64(Box<Xxh64>),
    Xxh128(Box<Xxh3>),
}

impl Sum {
    fn new(kind: Checksum, block_bytes: u32) -> Self {
        match kind {
            Checksum::None => Self::None,
            Checksum::Crc32 => Self::Crc(CRC.digest()),
            Checksum::Crc0001 => Self::Crc0001 { crc: u32::MAX, block_bytes, within: 0, first: 0 },
            Checksum::Xxh64 => Self::Xxh64(Box::new(Xxh64::new(0))),
            Checksum::Xxh128 => Self::Xxh128(Box::new(Xxh3::new())),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::None => {}
            Self::Crc(digest) => digest.update(bytes),
            Self::Xxh64(hasher) => hasher.update(bytes),
            Self::Xxh128(hasher) => hasher.update(bytes),
            Self::Crc0001 { crc, block_bytes, within, first } => {
                let mut rest = bytes;
                while let Some(byte) = rest.first() {
                    if *within == 0 {
                        *first = *byte;
                    }
                    let len =
                        (*block_bytes - *within).min(u32::try_from(rest.len()).unwrap_or(u32::MAX));
                    // The digest starts where the last one ended.
                    let mut digest = CRC.digest_with_initial(crc.reverse_bits());
                    let repeated = [*first; 512];
                    let mut left = len as usize;
                    while left > 0 {
                        let now = left.min(repeated.len());
                        digest.update(&repeated[..now]);
                        left -= now;
                    }
                    *crc = digest.finalize();
                    *within = (*within + len) % *block_bytes;
                    rest = &rest[len as usize..];
                }
            }
        }
    }

    fn value(&self) -> Vec<u8> {
        match self {
            Self::None => Vec::new(),
            Self::Crc(digest) => digest.clone().finalize().to_le_bytes().to_vec(),
            Self::Crc0001 { crc, .. } => crc.to_le_bytes().to_vec(),
            Self::Xxh64(hasher) => hasher.digest().to_le_bytes().to_vec(),
            Self::Xxh128(hasher) => hasher.digest128().to_le_bytes().to_vec(),
        }
    }
}
