//! Members of the RAIDs that a machine's firmware runs: Intel's, and those in SNIA's Disk Data Format.
//!
//! Both keep their metadata at the end of a disk. DDF as in chapter 5 of SNIA's Common RAID Disk Data Format 2.0; Intel's
//! fields as in mdadm's `super-intel.c`. What matters here is one thing: whether what lies on the disk from its first byte on is what the
//! array holds, so that its partitions and filesystems are to be believed. Deliberately absent: the state of an array, and which of two
//! mirrors is the newer one.

use std::fmt;
use std::io::{self, Read, Seek};

use super::{Part, Signature, SignatureKind, field, le32};

const SECTOR: u64 = 512;
const INTEL_MAGIC: &[u8] = b"Intel Raid ISM Cfg Sig. ";
const DDF_MAGIC: &[u8] = &0xDE11_DE11_u32.to_be_bytes();
/// Metadata longer than this are not looked into.
const MAX_LEN: u64 = 4 << 20;

/// What says that a disk is a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FirmwareRaid {
    /// `an Intel firmware RAID`
    name: &'static str,
    /// What lies on the disk may be only a part of what an array holds. It is all of it in a mirror, and in an array of one disk, that
    /// begins with the disk and is the only one there; and it is the disk's own where the disk is in no array, or the metadata are so
    /// damaged that no firmware takes them.
    pub is_striped: bool,
    offset: u64,
    len: u64,
}

impl FirmwareRaid {
    pub fn signature(&self) -> Signature {
        Signature {
            kind: SignatureKind::FirmwareRaid,
            offset: self.offset,
            len: self.len,
            what: format!("member of {self}"),
        }
    }
}

impl fmt::Display for FirmwareRaid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Looks at the end of a disk.
pub(crate) fn find<S: Read + Seek>(disk: &mut Part<'_, S>) -> io::Result<Option<FirmwareRaid>> {
    match ddf(disk)? {
        None => intel(disk),
        found => Ok(found),
    }
}

/// Intel's anchor is the last sector but one, whatever the length of a sector is. What does not fit follows in the sectors before it.
fn intel<S: Read + Seek>(disk: &mut Part<'_, S>) -> io::Result<Option<FirmwareRaid>> {
    for sector in [SECTOR, 4096] {
        let Some(offset) = (disk.len / sector).checked_sub(2).map(|lba| lba * sector) else {
            continue;
        };
        let Some(mut metadata) = disk.bytes(offset, index(sector))? else { continue };
        if !metadata.starts_with(INTEL_MAGIC) {
            continue;
        }
        let len = le32(&metadata, INTEL_LEN).map_or(0, u64::from);
        let more = len.saturating_sub(sector).next_multiple_of(sector);
        if len <= MAX_LEN
            && let Some(start) = offset.checked_sub(more)
            && let Some(rest) = disk.bytes(start, index(more))?
        {
            metadata.extend(rest);
        }
        let is_valid = metadata.get(..index(len.min(MAX_LEN))).is_some_and(intel_sum_is_right);
        return Ok(Some(FirmwareRaid {
            name: "an Intel firmware RAID",
            is_striped: is_valid && intel_is_striped(&metadata),
            offset,
            len: INTEL_MAGIC.len() as u64,
        }));
    }
    Ok(None)
}

const INTEL_SUM: usize = 32;
const INTEL_LEN: usize = 36;
/// How many disks and how many volumes there are, a byte each.
const INTEL_DISKS: usize = 56;
const INTEL_VOLUMES: usize = 57;
/// Where the table of disks begins, and the length of one's entry; the volumes follow.
const INTEL_TABLE: usize = 216;
const INTEL_DISK_LEN: usize = 48;
/// In a volume: whether it is being turned into another one, and what it is now.
const INTEL_MIGRATES: usize = 88;
const INTEL_MAP: usize = 112;

/// The sum of all words but its own.
fn intel_sum_is_right(metadata: &[u8]) -> bool {
    let words = metadata.chunks_exact(4).filter_map(|word| le32(word, 0));
    let sum = words.fold(0_u32, u32::wrapping_add);
    le32(metadata, INTEL_SUM).is_some_and(|own| sum.wrapping_sub(own) == own)
}

fn intel_is_striped(metadata: &[u8]) -> bool {
    let byte = |at: usize| metadata.get(at).copied();
    match byte(INTEL_VOLUMES) {
        Some(0) => return false,
        Some(1) => {}
        _ => return true,
    }
    let disks = byte(INTEL_DISKS).map_or(0, usize::from);
    let volume = INTEL_TABLE + disks * INTEL_DISK_LEN;
    let map = volume + INTEL_MAP;
    // A mirror of mirrors has level 1, too, and four members.
    let [level, members] = [15, 16].map(|at| byte(map + at));
    let is_whole = members == Some(1) || (level == Some(1) && members == Some(2));
    let starts_at_zero = [0, 20].iter().all(|at| le32(metadata, map + at) == Some(0));
    !(is_whole && starts_at_zero && byte(volume + INTEL_MIGRATES) == Some(0))
}

const DDF_PRIMARY: usize = 96;
const DDF_SECONDARY: usize = 104;
/// How many sectors a record has, and how many members it has room for.
const DDF_RECORD_SECTORS: usize = 134;
const DDF_MAX_MEMBERS: usize = 136;
/// Where the records of the disk's arrays are, in sectors behind the header, and how many sectors they take.
const DDF_RECORDS: usize = 216;
const DDF_ARRAY_MAGIC: &[u8] = &0xEEEE_EEEE_u32.to_be_bytes();
/// In such a record: members, level, and of how many such arrays one is made.
const DDF_MEMBERS: usize = 64;
const DDF_LEVEL: usize = 67;
const DDF_SPANS: usize = 69;
/// Then the members' names of four bytes each, and behind them where each begins, in sectors.
const DDF_NAMES: usize = 512;

/// The anchor is the last sector, and tells where two copies of all metadata are. Numbers are big-endian. Checksums are not looked at:
/// what they are of is not the same for all makers.
fn ddf<S: Read + Seek>(disk: &mut Part<'_, S>) -> io::Result<Option<FirmwareRaid>> {
    let Some(offset) = (disk.len / SECTOR).checked_sub(1).map(|lba| lba * SECTOR) else {
        return Ok(None);
    };
    let Some(anchor) = disk.bytes(offset, index(SECTOR))? else { return Ok(None) };
    if !anchor.starts_with(DDF_MAGIC) {
        return Ok(None);
    }
    // Without either copy no firmware takes it for a member.
    let mut is_striped = false;
    for copy in [DDF_PRIMARY, DDF_SECONDARY] {
        let Some(header) = be64(&anchor, copy).and_then(|lba| lba.checked_mul(SECTOR)) else {
            continue;
        };
        let magic = disk.bytes(header, DDF_MAGIC.len())?;
        if magic.is_some_and(|magic| magic == DDF_MAGIC) {
            is_striped = ddf_records(disk, &anchor, header)?
                .is_none_or(|records| ddf_is_striped(&anchor, &records));
            break;
        }
    }
    let len = DDF_MAGIC.len() as u64;
    Ok(Some(FirmwareRaid { name: "a DDF firmware RAID", is_striped, offset, len }))
}

fn ddf_records<S: Read + Seek>(
    disk: &mut Part<'_, S>,
    anchor: &[u8],
    header: u64,
) -> io::Result<Option<Vec<u8>>> {
    let sectors = |at| be32(anchor, at).map(|count| u64::from(count) * SECTOR);
    let (Some(from), Some(len)) = (sectors(DDF_RECORDS), sectors(DDF_RECORDS + 4)) else {
        return Ok(None);
    };
    match header.checked_add(from) {
        Some(start) if len <= MAX_LEN => disk.bytes(start, index(len)),
        _ => Ok(None),
    }
}

fn ddf_is_striped(anchor: &[u8], records: &[u8]) -> bool {
    let [record_sectors, max_members] =
        [DDF_RECORD_SECTORS, DDF_MAX_MEMBERS].map(|at| be16(anchor, at).map_or(0, usize::from));
    if record_sectors == 0 {
        return true;
    }
    let mut arrays = records
        .chunks(record_sectors * index(SECTOR))
        .filter(|record| record.starts_with(DDF_ARRAY_MAGIC));
    let Some(array) = arrays.next() else { return false };
    let byte = |at: usize| array.get(at).copied();
    let members = be16(array, DDF_MEMBERS).map_or(0, usize::from);
    let is_whole = members == 1 || (byte(DDF_LEVEL) == Some(1) && members > 1);
    let is_alone = arrays.next().is_none() && byte(DDF_SPANS).is_some_and(|spans| spans <= 1);
    let starts_at_zero =
        (0..members).all(|member| be64(array, DDF_NAMES + 4 * max_members + 8 * member) == Some(0));
    !(is_whole && is_alone && starts_at_zero)
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    field(bytes, at).map(u16::from_be_bytes)
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    field(bytes, at).map(u32::from_be_bytes)
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    field(bytes, at).map(u64::from_be_bytes)
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("metadata are a few MiB at most")
}

#[cfg(test)]
mod tests;
