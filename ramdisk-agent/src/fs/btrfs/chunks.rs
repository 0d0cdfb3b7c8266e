//! Chunks: where logical addresses are on the device.

use std::collections::BTreeMap;

use super::superblock::Superblock;
use super::tree::Key;
use crate::extents::Extent;
use crate::fs::bytes::{le16, le64};
use crate::fs::failure::{Failure, doubt};

const CHUNK_ITEM: u8 = 228;
const FIXED_LEN: usize = 48;
const STRIPE_LEN: usize = 32;
/// Data, system, metadata.
const USES: u64 = 0x7;
const DUP: u64 = 0x20;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Chunk {
    len: u64,
    /// Where its copies are on the device.
    places: Vec<u64>,
}

/// All chunks, by logical address; none overlap.
#[derive(Debug)]
pub struct Chunks(BTreeMap<u64, Chunk>);

impl Chunks {
    /// Those in the superblock, which lead to the others.
    pub fn of_system(sb: &Superblock) -> Result<Self, Failure> {
        let mut chunks = Self(BTreeMap::new());
        let mut rest = &sb.system_chunks[..];
        while !rest.is_empty() {
            let cut_off = || doubt("the superblock's list of chunks is cut off");
            let (key, item) = rest.split_at_checked(Key::LEN).ok_or_else(cut_off)?;
            let stripes = usize::from(le16(item.get(..FIXED_LEN).ok_or_else(cut_off)?, 44));
            let (item, later) =
                item.split_at_checked(FIXED_LEN + stripes * STRIPE_LEN).ok_or_else(cut_off)?;
            chunks.add(sb, &Key::parse(key), item)?;
            rest = later;
        }
        Ok(chunks)
    }

    /// Adds an item of the chunk tree if it is a chunk; that of a system chunk is there already.
    pub fn add(&mut self, sb: &Superblock, key: &Key, item: &[u8]) -> Result<(), Failure> {
        if key.kind != CHUNK_ITEM {
            return Ok(());
        }
        let start = key.offset;
        let broken = || doubt(format!("the chunk at {start} is damaged"));
        let fixed = item.get(..FIXED_LEN).ok_or_else(broken)?;
        let (len, kind, stripes) = (le64(fixed, 0), le64(fixed, 24), usize::from(le16(fixed, 44)));
        let copies = match kind & !USES {
            0 => 1,
            DUP => 2,
            other => {
                return Err(doubt(format!(
                    "the chunk at {start} is of a kind {other:#x} that is not for one device"
                )));
            }
        };
        if stripes != copies || item.len() != FIXED_LEN + stripes * STRIPE_LEN || len == 0 {
            return Err(broken());
        }
        let mut places = Vec::new();
        for stripe in item[FIXED_LEN..].chunks_exact(STRIPE_LEN) {
            let (device, place) = (le64(stripe, 0), le64(stripe, 8));
            let inside = place.checked_add(len).is_some_and(|end| end <= sb.device_bytes);
            if device != sb.device || !inside {
                return Err(broken());
            }
            places.push(place);
        }
        let chunk = Chunk { len, places };
        let end = start.checked_add(len).ok_or_else(broken)?;
        let before = self.0.range(..end).next_back().filter(|(at, c)| **at + c.len > start);
        match before {
            Some((at, there)) if *at == start && *there == chunk => Ok(()),
            Some(_) => Err(doubt(format!("the chunk at {start} overlaps another"))),
            None => {
                self.0.insert(start, chunk);
                Ok(())
            }
        }
    }

    /// How often a chunk of this start and length is on the device.
    pub fn copies(&self, start: u64, len: u64) -> Option<u64> {
        let chunk = self.0.get(&start).filter(|chunk| chunk.len == len)?;
        Some(chunk.places.len() as u64)
    }

    /// Where a range is, every copy.
    pub fn places(&self, range: Extent, places: &mut Vec<Extent>) -> Result<(), Failure> {
        let mut at = range.start;
        // Extents that follow each other were made one, also from chunk to chunk.
        while at < range.end() {
            let chunk = self.0.range(..=at).next_back().filter(|(start, c)| at - **start < c.len);
            let (start, chunk) =
                chunk.ok_or_else(|| doubt(format!("the address {at} is in no chunk")))?;
            let end = range.end().min(start + chunk.len);
            let extents = chunk.places.iter();
            places.extend(extents.map(|p| Extent { start: p + (at - start), len: end - at }));
            at = end;
        }
        Ok(())
    }
}
