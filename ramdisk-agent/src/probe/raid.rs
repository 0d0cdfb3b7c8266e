//! Members of Linux's software RAID.
//!
//! Places and fields as in the kernel's `include/uapi/linux/raid/md_p.h`. Metadata at the end of a disk survives some formatters, so
//! that a member found there may be one no more; those of ext, XFS and btrfs clear it.

use std::io::{self, Read, Seek};

use super::{Hit, Part, field, le32, le64, text, uuid};
use crate::fs::FsKind;

const MD_MAGIC: u32 = 0xa92b_4efc;
/// Where the superblocks of 1.1 and of 1.2 are.
const MD_FRONT: [usize; 2] = [0, 4096];
/// As much as a superblock may have: that of 1.x has 256 bytes and two for each device.
const MD_LEN: usize = 4096;
const MD_1_LEN: usize = 256;
/// Where the levels are: a byte, and a word.
const MD_1_LEVEL: usize = 72;
const MD_0_LEVEL: usize = 7;
/// Where the checksums are: a byte, and a word.
const MD_1_SUM: usize = 216;
const MD_0_SUM: usize = 38;
/// Words with the length of a member in KiB and that of a chunk in bytes.
const MD_0_SIZE: usize = 8;
const MD_0_CHUNK: usize = 65;
/// The old superblock is in the last 64 KiB that are aligned.
const MD_0_ALIGN: u64 = 64 << 10;
const SECTOR: u64 = 512;

/// Superblocks 1.1 and 1.2.
pub fn md_front(head: &[u8]) -> Option<Hit> {
    MD_FRONT.into_iter().find_map(|at| md_1(head.get(at..)?, at as u64))
}

/// Superblocks 1.0 and 0.90, near the end.
pub fn md_back<S: Read + Seek>(part: &mut Part<'_, S>) -> io::Result<Option<Hit>> {
    if let Some((offset, bytes)) = md_1_back(part)?
        && let Some(hit) = md_1(&bytes, offset)
    {
        return Ok(Some(hit));
    }
    let found = md_0_back(part)?;
    Ok(found.and_then(|(offset, bytes)| md_0(&bytes, offset).map(|(hit, _)| hit)))
}

/// A member by a superblock near its end whose checksum is right: what lies before it may be a part of every stripe only.
pub fn md_member<S: Read + Seek>(part: &mut Part<'_, S>) -> io::Result<Option<Member>> {
    if let Some((offset, bytes)) = md_1_back(part)?
        && let Some(hit) = md_1(&bytes, offset)
        && md_1_sum(&bytes) == le32(&bytes, MD_1_SUM)
    {
        let is_mirror = le32(&bytes, MD_1_LEVEL) == Some(1);
        return Ok(Some(Member { hit, is_mirror, fills: true }));
    }
    let Some((offset, bytes)) = md_0_back(part)? else { return Ok(None) };
    let Some((hit, order)) = md_0(&bytes, offset) else { return Ok(None) };
    let word = |index: usize| field(&bytes, 4 * index).map(order);
    if word(MD_0_SUM) != Some(md_0_sum(&bytes, order)) {
        return Ok(None);
    }
    // RAID 0 has no size here. Others have that of a member, in KiB and rounded down to whole chunks.
    let (size, chunk) = (word(MD_0_SIZE).unwrap_or(0), word(MD_0_CHUNK).unwrap_or(0));
    let rest = offset.saturating_sub(u64::from(size) << 10);
    let fills = size == 0 || rest <= u64::from(chunk).max(MD_0_ALIGN);
    Ok(Some(Member { hit, is_mirror: word(MD_0_LEVEL) == Some(1), fills }))
}

/// A member of an array, told by what is near its end.
pub struct Member {
    pub hit: Hit,
    /// What lies before is what the array holds.
    pub is_mirror: bool,
    /// The array has all that lies before; else it may be that of a last partition which ends where the disk ends.
    pub fills: bool,
}

type Place = Option<(u64, Vec<u8>)>;

fn md_1_back<S: Read + Seek>(part: &mut Part<'_, S>) -> io::Result<Place> {
    let sector = (part.len / SECTOR).checked_sub(16).map(|n| n & !7).filter(|n| *n > 0);
    let Some(offset) = sector.map(|sector| sector * SECTOR) else { return Ok(None) };
    Ok(part.bytes(offset, MD_LEN)?.map(|bytes| (offset, bytes)))
}

fn md_0_back<S: Read + Seek>(part: &mut Part<'_, S>) -> io::Result<Place> {
    let offset = (part.len & !(MD_0_ALIGN - 1)).checked_sub(MD_0_ALIGN).filter(|n| *n > 0);
    let Some(offset) = offset else { return Ok(None) };
    Ok(part.bytes(offset, MD_LEN)?.map(|bytes| (offset, bytes)))
}

fn md_1(bytes: &[u8], offset: u64) -> Option<Hit> {
    let here = le64(bytes, 144)? == offset / SECTOR;
    (le32(bytes, 0)? == MD_MAGIC && le32(bytes, 4)? == 1 && here)
        .then(|| Hit::new(FsKind::MdRaid, offset, 4, uuid(bytes, 16), text(bytes.get(32..64))))
}

/// The checksum of a superblock 1.x: of 256 bytes and two for each device, in words, with the sum itself as zero.
fn md_1_sum(bytes: &[u8]) -> Option<u32> {
    let roles = usize::try_from(le32(bytes, MD_1_SUM + 4)?).ok()?;
    let summed = bytes.get(..MD_1_LEN + 2 * roles.min(MD_LEN))?;
    let words = summed.chunks(4).map(|word| {
        let mut whole = [0; 4];
        whole[..word.len()].copy_from_slice(word);
        u64::from(u32::from_le_bytes(whole))
    });
    let sum = words.sum::<u64>() - u64::from(le32(bytes, MD_1_SUM)?);
    Some(folded(sum))
}

/// The checksum of a superblock 0.90: of all of its words, with the sum itself as zero.
fn md_0_sum(bytes: &[u8], order: Order) -> u32 {
    let words =
        bytes.chunks_exact(4).map(|word| u64::from(order(field(word, 0).unwrap_or([0; 4]))));
    let all = words.enumerate().filter(|(index, _)| *index != MD_0_SUM);
    folded(all.map(|(_, word)| word).sum())
}

/// The kernel adds the carry once.
fn folded(sum: u64) -> u32 {
    let low = sum & u64::from(u32::MAX);
    u32::try_from((low + (sum >> 32)) & u64::from(u32::MAX)).expect("it was masked")
}

/// The numbers of version 0.90 have the byte order of the machine that made it.
type Order = fn([u8; 4]) -> u32;

fn md_0(bytes: &[u8], offset: u64) -> Option<(Hit, Order)> {
    let magic = field(bytes, 0)?;
    let order: Order = match MD_MAGIC {
        m if u32::from_le_bytes(magic) == m => u32::from_le_bytes,
        m if u32::from_be_bytes(magic) == m => u32::from_be_bytes,
        _ => return None,
    };
    if order(field(bytes, 4)?) != 0 || order(field(bytes, 8)?) < 90 {
        return None;
    }
    // The first word stands apart from the other three.
    let id = [bytes.get(20..24)?, bytes.get(52..64)?].concat();
    Some((Hit::new(FsKind::MdRaid, offset, 4, uuid(&id, 0), None), order))
}
