//! The superblock: geometry and features. Offsets as in *XFS Algorithms & Data Structures*, "Superblocks"; numbers are
//! big-endian, checksums little-endian.

use std::io::{Read, Seek};
use std::ops::RangeInclusive;

use crate::fs::bytes::{CRC32C, be16, be32, be64, is_size, read};
use crate::fs::failure::{Failure, doubt};

const VERSION_MASK: u16 = 0xF;
/// Attributes, link counts, quotas, alignment, stripe units, log version 2, large sectors, unwritten extents, directories of
/// version 2, names without case, and the second feature word. Not among them: shared read-only volumes.
const VERSION_KNOWN: u16 = 0xFDF0;
const VERSION_DIR2: u16 = 0x2000;
const VERSION_MORE_BITS: u16 = 0x8000;

/// Lazy counters, attributes of version 2, parent pointers, 32-bit project ids, checksums, file types in directories.
const FEATURES2_KNOWN: u32 = 0x39A;
/// Free-inode tree, reverse map, shared blocks, inode counts of trees.
const RO_COMPAT_KNOWN: u32 = 0xF;
const INCOMPAT_META_UUID: u32 = 0x4;
const INCOMPAT_NEEDS_REPAIR: u32 = 0x10;
/// File types, sparse inodes, a UUID of its own for metadata, large time stamps, needs repair, large extent counts, exchanged
/// ranges, parent pointers. What is not among them may change where free space is listed.
const INCOMPAT_KNOWN: u32 = 0xFF;

const SECTOR_BYTES: RangeInclusive<u64> = 512..=32768;
const BLOCK_BYTES: RangeInclusive<u64> = 512..=65536;
/// The kernel accepts no other group, but for a last one, which may be shorter.
const GROUP_BYTES: RangeInclusive<u64> = 16 << 20..=1 << 40;
const LEAST_GROUP_BLOCKS: u64 = 64;
/// Superblock, free space, inodes, reserve: a sector each at the start of a group.
const HEADER_SECTORS: u64 = 4;
const CRC_AT: usize = 224;
/// The log's first block.
const LOG_AT: usize = 48;

/// A superblock whose numbers make sense for its volume: no arithmetic on them overflows.
#[derive(Debug, Clone)]
pub struct Superblock {
    pub block_bytes: u64,
    pub sector_bytes: u64,
    pub blocks: u64,
    /// Blocks in every allocation group but the last.
    pub group_blocks: u64,
    pub groups: u64,
    /// Free blocks, with those that the groups' trees take or hold in reserve.
    pub free_blocks: u64,
    /// Where the log is, in bytes.
    pub log_start: u64,
    pub log_blocks: u64,
    /// Where the log is, as it stands there.
    log_number: u64,
    /// What version 5 puts into every block of metadata; none in version 4.
    pub identity: Option<[u8; 16]>,
    pub needs_repair: bool,
}

/// Whether the CRC-32C of all bytes but its own four at `at` is the one that stands there.
pub fn is_sound(bytes: &[u8], at: usize) -> bool {
    let mut digest = CRC32C.digest();
    digest.update(&bytes[..at]);
    digest.update(&[0; 4]);
    digest.update(&bytes[at + 4..]);
    digest.finalize().to_le_bytes() == bytes[at..at + 4]
}

impl Superblock {
    /// Reads and checks the one at the volume's start.
    pub fn read(src: &mut (impl Read + Seek), len_bytes: u64) -> Result<Self, Failure> {
        if len_bytes < *SECTOR_BYTES.start() {
            return Err(doubt(format!("it is cut off after {len_bytes} bytes")));
        }
        let head = read(src, 0, *SECTOR_BYTES.start())?;
        let sector_bytes = u64::from(be16(&head, 102));
        if !is_size(sector_bytes, &SECTOR_BYTES) || sector_bytes > len_bytes {
            return Err(doubt(format!("it claims sectors of {sector_bytes} bytes")));
        }
        let sector = read(src, 0, sector_bytes)?;
        let identity = features(&sector)?;
        let sb = Self {
            block_bytes: u64::from(be32(&sector, 4)),
            sector_bytes,
            blocks: be64(&sector, 8),
            group_blocks: u64::from(be32(&sector, 84)),
            groups: u64::from(be32(&sector, 88)),
            free_blocks: be64(&sector, 144),
            log_start: 0,
            log_blocks: u64::from(be32(&sector, 96)),
            log_number: be64(&sector, LOG_AT),
            identity,
            needs_repair: identity.is_some() && be32(&sector, 216) & INCOMPAT_NEEDS_REPAIR != 0,
        };
        sb.check(&sector, len_bytes)?;
        let log_start = sb.log_start(&sector)?;
        Ok(Self { log_start, ..sb })
    }

    fn check(&self, sector: &[u8], len_bytes: u64) -> Result<(), Failure> {
        let contradiction = || doubt("the superblock's numbers contradict each other");
        if !is_size(self.block_bytes, &BLOCK_BYTES)
            || self.sector_bytes > self.block_bytes
            || u32::from(sector[120]) != self.block_bytes.ilog2()
            || u32::from(sector[121]) != self.sector_bytes.ilog2()
            || self.group_blocks < LEAST_GROUP_BLOCKS
            || !GROUP_BYTES.contains(&(self.group_blocks * self.block_bytes))
            || u32::from(sector[124]) != self.group_blocks.next_power_of_two().ilog2()
            || self.free_blocks > self.blocks
        {
            return Err(contradiction());
        }
        if self.blocks.checked_mul(self.block_bytes).is_none_or(|bytes| bytes > len_bytes) {
            return Err(doubt(format!(
                "it claims {} blocks of {} bytes, more than the {len_bytes} bytes that hold it",
                self.blocks, self.block_bytes
            )));
        }
        let last = self.blocks.checked_sub(self.groups.saturating_sub(1) * self.group_blocks);
        if self.groups == 0 || last.is_none_or(|n| n < LEAST_GROUP_BLOCKS || n > self.group_blocks)
        {
            return Err(contradiction());
        }
        if sector[126] != 0 {
            return Err(doubt("mkfs did not finish it"));
        }
        if be64(sector, 16) != 0 {
            return Err(doubt("part of it is on a real-time device"));
        }
        Ok(())
    }

    /// Where the log is, in bytes. Block numbers have the group in their upper bits.
    fn log_start(&self, sector: &[u8]) -> Result<u64, Failure> {
        let number = self.log_number;
        if number == 0 {
            return Err(doubt("its log is on another device"));
        }
        let shift = u32::from(sector[124]);
        let (group, block) = (number >> shift, number & ((1 << shift) - 1));
        // The log is one piece within a group.
        if group >= self.groups || block + self.log_blocks > self.blocks_in(group) {
            return Err(doubt("its log is said to be outside of it"));
        }
        if self.log_blocks == 0 {
            return Err(doubt("it has a log without a length"));
        }
        Ok((group * self.group_blocks + block) * self.block_bytes)
    }

    /// How many blocks a group has.
    pub fn blocks_in(&self, group: u64) -> u64 {
        (self.blocks - group * self.group_blocks).min(self.group_blocks)
    }

    /// Blocks at a group's start that hold its headers.
    pub fn header_blocks(&self) -> u64 {
        self.header_bytes().div_ceil(self.block_bytes)
    }

    /// The headers' length.
    pub fn header_bytes(&self) -> u64 {
        HEADER_SECTORS * self.sector_bytes
    }

    /// Whether a group's copy of the superblock tells of the same geometry and the same log.
    pub fn is_copy(&self, sector: &[u8]) -> bool {
        sector.starts_with(b"XFSB")
            && u64::from(be32(sector, 4)) == self.block_bytes
            && u64::from(be32(sector, 84)) == self.group_blocks
            && u64::from(be16(sector, 102)) == self.sector_bytes
            && u64::from(be32(sector, 96)) == self.log_blocks
            && be64(sector, LOG_AT) == self.log_number
    }
}

/// Checks that all features are known; gives what identifies its metadata, if it is of version 5.
fn features(sector: &[u8]) -> Result<Option<[u8; 16]>, Failure> {
    let version = be16(sector, 100);
    let unknown = version & !VERSION_MASK & !VERSION_KNOWN;
    if unknown != 0 || version & VERSION_DIR2 == 0 {
        return Err(doubt(format!("it has features that are not known here ({version:#x})")));
    }
    let features2 = if version & VERSION_MORE_BITS == 0 { 0 } else { be32(sector, 200) };
    if features2 & !FEATURES2_KNOWN != 0 {
        return Err(doubt(format!("it has features that are not known here ({features2:#x})")));
    }
    match version & VERSION_MASK {
        4 => return Ok(None),
        5 => {}
        other => return Err(doubt(format!("it is of version {other}, not 4 or 5"))),
    }
    if !is_sound(sector, CRC_AT) {
        return Err(doubt("the checksum of the superblock is wrong"));
    }
    let (ro_compat, incompat) = (be32(sector, 212), be32(sector, 216));
    let unknown = incompat & !INCOMPAT_KNOWN;
    if unknown != 0 {
        return Err(doubt(format!(
            "it has incompatible features that are not known here ({unknown:#x})"
        )));
    }
    let unknown = ro_compat & !RO_COMPAT_KNOWN;
    if unknown != 0 {
        return Err(doubt(format!("it has features that are not known here ({unknown:#x})")));
    }
    let at = if incompat & INCOMPAT_META_UUID != 0 { 248 } else { 32 };
    Ok(Some(sector[at..at + 16].try_into().expect("sixteen bytes")))
}
