//! Chunks: where logical addresses are on the device.

use std::collections::BTreeMap;

use super::superblock::Superblock;
use super::tree::Key;
use crate::extents::Extent;
use crate::fs::bytes::{le16, le64};
use crate::fs::failure::{Failure, doubt};

/// The most chunks that are remembered; most have a GiB.
pub const MOST: usize = 1 << 17;
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

/// A piece of the device, and the logical address of the chunk that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Piece {
    pub place: u64,
    pub chunk: u64,
    pub len: u64,
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
            None if self.0.len() == MOST => Err(doubt(format!("it has more than {MOST} chunks"))),
            None => {
                self.0.insert(start, chunk);
                Ok(())
            }
        }
    }

    /// Whether these are all pieces of the device that chunks have, and none has two of them: nothing else would tell that a chunk
    /// of data is said to be in another place.
    pub fn compare(&self, mut pieces: Vec<Piece>) -> Result<(), Failure> {
        let chunks = self.0.iter();
        let mut own: Vec<Piece> = chunks
            .flat_map(|(chunk, Chunk { len, places })| {
                places.iter().map(|place| Piece { place: *place, chunk: *chunk, len: *len })
            })
            .collect();
        own.sort_unstable();
        pieces.sort_unstable();
        if own != pieces {
            return Err(doubt("the chunk tree and the device tree contradict"));
        }
        match own.windows(2).find(|two| two[0].place + two[0].len > two[1].place) {
            Some(two) => Err(doubt(format!("two chunks are at {}", two[1].place))),
            None => Ok(()),
        }
    }

    /// The address of the chunk that has all of a range.
    pub fn of(&self, start: u64, len: u64) -> Option<u64> {
        let (at, chunk) = self.0.range(..=start).next_back()?;
        (start.checked_add(len)? <= at + chunk.len).then_some(*at)
    }

    /// The parts of a range that lie in chunks, each in one.
    pub fn parts(&self, start: u64, end: u64) -> impl Iterator<Item = Extent> + '_ {
        let first = self.0.range(..=start).next_back().map_or(start, |(at, _)| *at);
        self.0.range(first..end.max(first)).filter_map(move |(at, chunk)| {
            let (from, to) = (start.max(*at), end.min(at + chunk.len));
            (from < to).then(|| Extent { start: from, len: to - from })
        })
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
