//! The header of a partclone image.

use crc::{CRC_32_JAMCRC, Crc};

use super::FORMAT;
use crate::foreign::MAX_DISK_LEN;
use crate::foreign::error::{ForeignError, Result};
use crate::fs::bytes::{le16, le32, le64};

/// The part of the header that all formats have, and all of it in format 0002.
pub const HEAD_LEN: usize = 110;
/// The header of format 0001, of which most is not used.
const HEAD_1_LEN: usize = 4160;
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_JAMCRC);
/// Clusters of NTFS have 2 MiB at most, blocks of all others less.
const MAX_BLOCK_BYTES: u32 = 16 << 20;

/// What a partclone image says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 1 or 2.
    pub version: u32,
    /// The filesystem, in partclone's words: `EXTFS`, `NTFS`, `raw` …
    pub filesystem: String,
    /// Length of the volume in bytes.
    pub len: u64,
    /// Length of a block in bytes.
    pub block_bytes: u32,
    /// Number of blocks.
    pub blocks: u64,
    /// What protects the blocks.
    pub checksum: Checksum,
    /// How many blocks each checksum covers.
    pub blocks_per_checksum: u32,
    /// Whether each checksum starts anew.
    pub reseed: bool,
    /// How the bitmap is stored.
    pub bitmap: Bitmap,
    /// Bytes of the header behind [`HEAD_LEN`].
    pub(super) rest_len: usize,
}

/// What protects the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// Nothing.
    None,
    /// CRC-32.
    Crc32,
    /// CRC-32 of the first byte of each block.
    Crc0001,
    /// XXH64.
    Xxh64,
    /// XXH3 of 128 bits.
    Xxh128,
}

/// How the bitmap is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bitmap {
    /// Not at all: every block is in use.
    None,
    /// A bit for each block.
    Bits,
    /// A byte for each block.
    Bytes,
}

impl Header {
    /// Any bytes in, a header or the reason against it out.
    pub fn parse(head: &[u8]) -> Result<Self> {
        let head: &[u8; HEAD_LEN] = head
            .first_chunk()
            .filter(|head| super::is_partclone(&head[..]))
            .ok_or_else(|| ForeignError::damaged(FORMAT, "it does not begin as an image"))?;
        let header = match &head[30..34] {
            b"0001" => Self::parse_1(head),
            b"0002" => Self::parse_2(head)?,
            other => {
                let version = String::from_utf8_lossy(other);
                let reason = format!("format '{}' is not known", version.escape_debug());
                return Err(ForeignError::refused(FORMAT, reason));
            }
        };
        header.check()
    }

    fn parse_1(head: &[u8]) -> Self {
        let (block_bytes, blocks) = (le32(head, 36), le64(head, 48));
        Self {
            version: 1,
            filesystem: text(&head[15..30]),
            // The tool itself does not believe the length that is stored.
            len: u64::from(block_bytes).saturating_mul(blocks),
            block_bytes,
            blocks,
            checksum: Checksum::Crc0001,
            blocks_per_checksum: 1,
            reseed: false,
            bitmap: Bitmap::Bytes,
            rest_len: HEAD_1_LEN - HEAD_LEN,
        }
    }

    fn parse_2(head: &[u8; HEAD_LEN]) -> Result<Self> {
        let refused = |what: &str, value: u32| {
            let reason = format!("its {what} {value:#x} is not known");
            Err(ForeignError::refused(FORMAT, reason))
        };
        if CRC.checksum(&head[..106]) != le32(head, 106) {
            return Err(ForeignError::damaged(FORMAT, "its header does not match its checksum"));
        }
        if le16(head, 34) != 0xC0DE {
            return refused("byte order", le16(head, 34).into());
        }
        if le16(head, 92) != 2 || le32(head, 88) != 18 {
            return refused("set of features", le32(head, 88));
        }
        let (checksum, checksum_len) = match le16(head, 96) {
            0 => (Checksum::None, 0),
            0x20 => (Checksum::Crc32, 4),
            0x30 => (Checksum::Xxh64, 8),
            0x31 => (Checksum::Xxh128, 16),
            mode => return refused("checksum", mode.into()),
        };
        if le16(head, 98) != checksum_len {
            return refused("length of a checksum", le16(head, 98).into());
        }
        let bitmap = match head[105] {
            0 => Bitmap::None,
            1 => Bitmap::Bits,
            8 => Bitmap::Bytes,
            mode => return refused("kind of bitmap", mode.into()),
        };
        let (block_bytes, blocks) = (le32(head, 84), le64(head, 60));
        let volume = le64(head, 52);
        Ok(Self {
            version: 2,
            filesystem: text(&head[36..52]),
            len: volume.max(u64::from(block_bytes).saturating_mul(blocks)),
            block_bytes,
            blocks,
            checksum,
            blocks_per_checksum: le32(head, 100),
            reseed: head[104] != 0,
            bitmap,
            rest_len: 0,
        })
    }

    fn check(mut self) -> Result<Self> {
        let damaged = |fault: String| Err(ForeignError::damaged(FORMAT, fault));
        if self.block_bytes == 0
            || !self.block_bytes.is_multiple_of(512)
            || self.block_bytes > MAX_BLOCK_BYTES
        {
            return damaged(format!("blocks of {} bytes cannot be", self.block_bytes));
        }
        if self.blocks == 0 || self.len > MAX_DISK_LEN {
            return damaged(format!("{} blocks cannot be", self.blocks));
        }
        if self.checksum != Checksum::None && self.blocks_per_checksum == 0 {
            return damaged("a checksum covers no block".into());
        }
        self.len = self.len.next_multiple_of(512);
        Ok(self)
    }
}

fn text(bytes: &[u8]) -> String {
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).escape_debug().to_string()
}
