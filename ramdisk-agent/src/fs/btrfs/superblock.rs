//! The superblock. Offsets as in the kernel's `struct btrfs_super_block`; numbers are little-endian.

use std::io::{Read, Seek};
use std::ops::RangeInclusive;

use super::checksum::Checksum;
use super::tree::Root;
use crate::fs::bytes::{is_size, le16, le32, le64, read};
use crate::fs::failure::{Failure, doubt};

/// Where the first superblock is.
const OFFSET: u64 = 64 << 10;
/// How many bytes of a superblock are on the device.
pub const LEN: u64 = 4096;
const COPIES: [u64; 3] = [64 << 20, 256 << 30, 1 << 50];
const MAGIC: &[u8] = b"_BHRfS_M";

/// Written, its flag for relocation, and that others grow out of it (a seed); not among them: dumps of metadata, and a change of identity
/// that was cut off.
const FLAGS_KNOWN: u64 = 0x1_0000_0003;
/// Back references, default subvolume, mixed groups, compression, large nodes and links, RAID levels of chunks, short metadata
/// items, no holes, an identity of metadata, simple quotas. Not among them: zones, the second extent tree, the stripe tree.
const INCOMPAT_KNOWN: u64 = 0x1_0FFF;
const INCOMPAT_METADATA_UUID: u64 = 0x400;
/// Free space tree and whether it is valid, verity, block group tree.
const COMPAT_RO_KNOWN: u64 = 0xF;
/// The first two of them.
const FREE_SPACE_TREE: u64 = 0x3;

const SECTOR_BYTES: RangeInclusive<u64> = 512..=65536;
const NODE_BYTES: RangeInclusive<u64> = 1024..=65536;
const SYSTEM_CHUNKS_LEN: usize = 2048;

/// A superblock whose numbers make sense.
#[derive(Debug, Clone)]
pub struct Superblock {
    pub checksum: Checksum,
    pub device: u64,
    /// At most the volume's length.
    pub device_bytes: u64,
    pub used_bytes: u64,
    pub sector_bytes: u64,
    pub node_bytes: u64,
    /// What every node carries.
    pub identity: [u8; 16],
    pub root: Root,
    pub chunk_root: Root,
    pub has_log: bool,
    /// There is a free-space tree, and it is valid.
    pub has_free_space_tree: bool,
    /// The chunks that lead to the chunk tree: keys and items.
    pub system_chunks: Vec<u8>,
}

/// Where superblocks are on a device.
pub fn places(device_bytes: u64) -> impl Iterator<Item = u64> {
    let all = std::iter::once(OFFSET).chain(COPIES);
    all.filter(move |place| place + LEN <= device_bytes)
}

impl Superblock {
    pub fn read(src: &mut (impl Read + Seek), len_bytes: u64) -> Result<Self, Failure> {
        if len_bytes < OFFSET + LEN {
            return Err(doubt(format!("it is cut off after {len_bytes} bytes")));
        }
        let bytes = read(src, OFFSET, LEN)?;
        if &bytes[64..72] != MAGIC || le64(&bytes, 48) != OFFSET {
            return Err(doubt("its superblock is another one's"));
        }
        let kind = le16(&bytes, 196);
        let checksum = Checksum::of_type(kind).ok_or_else(|| {
            doubt(format!("its checksums are of type {kind}, which is not known here"))
        })?;
        if !checksum.is_right(&bytes) {
            return Err(doubt("the checksum of the superblock is wrong"));
        }
        check_features(&bytes)?;
        let devices = le64(&bytes, 136);
        if devices != 1 {
            return Err(doubt(format!("it has {devices} devices")));
        }
        let at = if le64(&bytes, 188) & INCOMPAT_METADATA_UUID != 0 { 571 } else { 32 };
        let system_len = usize::try_from(le32(&bytes, 160)).unwrap_or(usize::MAX);
        let sb = Self {
            checksum,
            device: le64(&bytes, 201),
            device_bytes: le64(&bytes, 209),
            used_bytes: le64(&bytes, 120),
            sector_bytes: u64::from(le32(&bytes, 144)),
            node_bytes: u64::from(le32(&bytes, 148)),
            identity: bytes[at..at + 16].try_into().expect("sixteen bytes"),
            root: Root {
                address: le64(&bytes, 80),
                level: bytes[198],
                generation: le64(&bytes, 72),
            },
            chunk_root: Root {
                address: le64(&bytes, 88),
                level: bytes[199],
                generation: le64(&bytes, 164),
            },
            has_log: le64(&bytes, 96) != 0,
            has_free_space_tree: le64(&bytes, 180) & FREE_SPACE_TREE == FREE_SPACE_TREE,
            system_chunks: bytes[811..811 + system_len.min(SYSTEM_CHUNKS_LEN)].to_vec(),
        };
        if !is_size(sb.sector_bytes, &SECTOR_BYTES)
            || !is_size(sb.node_bytes, &NODE_BYTES)
            || system_len > SYSTEM_CHUNKS_LEN
            || sb.used_bytes > sb.device_bytes
        {
            return Err(doubt("the superblock's numbers contradict each other"));
        }
        if sb.device_bytes > len_bytes {
            return Err(doubt(format!(
                "it claims {} bytes, more than the {len_bytes} that hold it",
                sb.device_bytes
            )));
        }
        Ok(sb)
    }
}

fn check_features(bytes: &[u8]) -> Result<(), Failure> {
    let unknown = le64(bytes, 188) & !INCOMPAT_KNOWN;
    if unknown != 0 {
        return Err(doubt(format!(
            "it has incompatible features that are not known here ({unknown:#x})"
        )));
    }
    let unknown = le64(bytes, 180) & !COMPAT_RO_KNOWN;
    if unknown != 0 {
        return Err(doubt(format!("it has features that are not known here ({unknown:#x})")));
    }
    let unknown = le64(bytes, 56) & !FLAGS_KNOWN;
    if unknown != 0 {
        return Err(doubt(format!("it has flags that are not known here ({unknown:#x})")));
    }
    Ok(())
}
