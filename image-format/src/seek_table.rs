//! The table of the published zstd seekable format (version 0.1.0), which lets third-party readers seek.
//!
//! A skippable frame of its own magic number at the very end of the file: 8 bytes for every frame before it, the
//! skippable ones included with a decompressed size of 0, then a footer. Our reader does not believe it: each page's
//! part is recomputed from the page and compared.

use crate::MAX_FRAMES;
use crate::fields::Fields;

const MAGIC: u32 = 0x184D_2A5E;
const FOOTER_MAGIC: u32 = 0x8F92_EAB1;
/// The footer of a delta image, whose frames other readers must not take for the disk's content.
const DELTA_FOOTER_MAGIC: u32 = u32::from_le_bytes(*b"IMGD");

pub(crate) const TABLE_HEADER_LEN: u64 = 8;
pub(crate) const FOOTER_LEN: usize = 9;
pub(crate) const ENTRY_LEN: u64 = 8;

/// One frame as the table lists it.
pub(crate) fn entry(stored_len: u32, logical_len: u32) -> [u8; 8] {
    let [a, b, c, d] = stored_len.to_le_bytes();
    let [e, f, g, h] = logical_len.to_le_bytes();
    [a, b, c, d, e, f, g, h]
}

pub(crate) fn header(entries: u32) -> [u8; 8] {
    let payload = u64::from(entries) * ENTRY_LEN + FOOTER_LEN as u64;
    let payload = u32::try_from(payload).expect("at most 2^27 entries of 8 bytes");
    entry(MAGIC, payload)
}

pub(crate) fn footer(entries: u32, delta: bool) -> [u8; FOOTER_LEN] {
    let [a, b, c, d] = entries.to_le_bytes();
    let magic = if delta { DELTA_FOOTER_MAGIC } else { FOOTER_MAGIC };
    let [e, f, g, h] = magic.to_le_bytes();
    // The descriptor is 0: no checksums in the table, each frame has its own.
    [a, b, c, d, 0, e, f, g, h]
}

/// The number of entries that a footer gives, if it is one that we write.
pub(crate) fn parse_footer(bytes: &[u8; FOOTER_LEN], delta: bool) -> Option<u32> {
    let entries = Fields::new(bytes).u32()?;
    (entries <= MAX_FRAMES && footer(entries, delta) == *bytes).then_some(entries)
}

/// The length of a whole table.
pub(crate) fn table_len(entries: u32) -> u64 {
    TABLE_HEADER_LEN + u64::from(entries) * ENTRY_LEN + FOOTER_LEN as u64
}
