//! Bytes of a source, and what is in them: numbers at places that are known to lie in them, bits, sizes, checksums.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::RangeInclusive;

use crc::{CRC_32_ISCSI, Crc, Table};

/// CRC-32C as it is stored by XFS and btrfs: begun with ones, and inverted at the end.
pub static CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

/// Fills a buffer.
pub fn read_at(src: &mut (impl Read + Seek), offset: u64, buf: &mut [u8]) -> io::Result<()> {
    src.seek(SeekFrom::Start(offset))?;
    src.read_exact(buf)
}

/// Reads bytes whose number was checked.
pub fn read(src: &mut (impl Read + Seek), offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).expect("it was checked")];
    read_at(src, offset, &mut bytes)?;
    Ok(bytes)
}

/// Whether a size is a power of two in a range.
pub fn is_size(bytes: u64, within: &RangeInclusive<u64>) -> bool {
    bytes.is_power_of_two() && within.contains(&bytes)
}

/// All bits, the least significant of each byte first.
pub fn bits(bytes: &[u8]) -> impl Iterator<Item = bool> {
    bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1))
}

/// How many of the first `count` bits are set, counted as [`bits`] does.
pub fn count_set(bytes: &[u8], count: u64) -> u64 {
    let whole = usize::try_from(count / 8).expect("within the bytes");
    let full: u64 = bytes[..whole].iter().map(|byte| u64::from(byte.count_ones())).sum();
    let rest = count % 8;
    let last = if rest == 0 { 0 } else { bytes[whole] & ((1 << rest) - 1) };
    full + u64::from(last.count_ones())
}

pub fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

pub fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

pub fn be16(bytes: &[u8], at: usize) -> u16 {
    le16(bytes, at).swap_bytes()
}

pub fn be32(bytes: &[u8], at: usize) -> u32 {
    le32(bytes, at).swap_bytes()
}

pub fn be64(bytes: &[u8], at: usize) -> u64 {
    le64(bytes, at).swap_bytes()
}
