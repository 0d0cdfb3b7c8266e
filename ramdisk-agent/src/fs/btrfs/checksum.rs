//! The checksums that a btrfs may have, by `enum btrfs_csum_type` of `btrfs_tree.h`; each over everything behind the place for it.

use blake2::digest::consts::U32;
use blake2::{Blake2b, Digest as _};
use ring::digest::{SHA256, digest};
use xxhash_rust::xxh64::xxh64;

use crate::fs::bytes::CRC32C;

/// As many bytes are kept for one at the start of a superblock and of a node.
const PLACE_LEN: usize = 32;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    Crc32c,
    Xxhash,
    Sha256,
    Blake2b,
}

impl Checksum {
    /// `None`: a number that is not known here.
    pub fn of_type(number: u16) -> Option<Self> {
        Some(match number {
            0 => Self::Crc32c,
            1 => Self::Xxhash,
            2 => Self::Sha256,
            3 => Self::Blake2b,
            _ => return None,
        })
    }

    /// Whether the checksum of a superblock or of a node is the one that stands in it.
    pub fn is_right(self, bytes: &[u8]) -> bool {
        let (place, rest) = bytes.split_at(PLACE_LEN);
        match self {
            Self::Crc32c => place.starts_with(&CRC32C.checksum(rest).to_le_bytes()),
            Self::Xxhash => place.starts_with(&xxh64(rest, 0).to_le_bytes()),
            Self::Sha256 => place == digest(&SHA256, rest).as_ref(),
            Self::Blake2b => place == Blake2b::<U32>::digest(rest).as_slice(),
        }
    }
}
