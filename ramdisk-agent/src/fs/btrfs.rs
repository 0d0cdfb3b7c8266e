//! btrfs on one device: which blocks are in use, by the extent tree.
//!
//! Follows the btrfs project's *On-disk Format* and the kernel's `include/uapi/linux/btrfs_tree.h`. The chunk tree says where a
//! logical address is on the device, once or, for DUP, twice, and the device tree must say the same the other way round, as the kernel
//! wants it of a filesystem that it mounts; the extent tree lists every logical range in use. The extents of each
//! block group must be as many bytes as its item says, and all together as many as the superblock says; the free-space tree, where
//! there is one, must list the rest; every node has a checksum, an identity and its own address. A tree is never changed in place,
//! so what is on the device is consistent at any time; only a log of fsyncs, which the next mount replays, makes it unclean: what
//! such a log refers to is in no extent tree yet.
//!
//! Kept beside the extents: the first MiB, which btrfs leaves to boot loaders, and all superblocks. Taken raw: several devices,
//! seeds, zoned devices, checksums other than CRC-32C, and the second extent tree format.

mod checksum;
mod chunks;
mod superblock;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Seek};

use super::failure::{Believed, Failure, doubt, map_or_raw};
use super::tally::Tally;
use crate::extents::{Extent, Extents, MAX_PIECES};
use crate::fs::bytes::{bits, le64};
use crate::fs::{Clean, VolumeMap};
use crate::probe::Found;
use chunks::{Chunks, Piece};
use superblock::Superblock;
use tree::{Item, Key, Root, Trees};

const ROOT_ITEM: u8 = 132;
const EXTENT_ITEM: u8 = 168;
const METADATA_ITEM: u8 = 169;
const BLOCK_GROUP_ITEM: u8 = 192;
const FREE_SPACE_EXTENT: u8 = 199;
const FREE_SPACE_BITMAP: u8 = 200;
const DEVICE_EXTENT: u8 = 204;
const EXTENT_TREE: u64 = 2;
const DEVICE_TREE: u64 = 4;
const FREE_SPACE_TREE: u64 = 10;
const BLOCK_GROUP_TREE: u64 = 11;
/// Nothing is allocated before.
const RESERVED_LEN: u64 = 1 << 20;

/// The map of a volume that has the superblock of a btrfs.
pub fn map(src: &mut (impl Read + Seek), len_bytes: u64, found: Found) -> io::Result<VolumeMap> {
    map_or_raw(found, len_bytes, |clean| used(src, len_bytes, clean))
}

/// See [`map_or_raw`].
fn used(
    src: &mut (impl Read + Seek),
    len_bytes: u64,
    clean: &mut Clean,
) -> Result<Believed, Failure> {
    let sb = Superblock::read(src, len_bytes)?;
    *clean = if sb.has_log {
        Clean::NotClean { reason: "a log of fsyncs waits to be replayed".into() }
    } else {
        Clean::Clean
    };
    let mut trees = Trees::new(&sb);
    let mut chunks = Chunks::of_system(&sb)?;
    let mut items = Vec::new();
    trees.walk(src, &chunks, sb.chunk_root, |item| {
        items.push((item.key, item.bytes.to_vec()));
        if items.len() > 2 * chunks::MOST {
            Err(doubt("its chunk tree is too large"))
        } else {
            Ok(())
        }
    })?;
    for (key, bytes) in &items {
        chunks.add(&sb, key, bytes)?;
    }
    let mut roots = Roots::default();
    trees.walk(src, &chunks, sb.root, |item| roots.look(item))?;
    let device_root = roots.devices.ok_or_else(|| doubt("it has no device tree"))?;
    let mut pieces = Vec::new();
    trees.walk(src, &chunks, device_root, |item| add_piece(&sb, item, &mut pieces))?;
    chunks.compare(pieces)?;
    let extent_root = roots.extents.ok_or_else(|| doubt("it has no extent tree"))?;
    let [gaps, listed] = Tally::pair();
    let mut space = Space::new(&sb, &chunks, gaps);
    trees.walk(src, &chunks, extent_root, |item| space.look(item))?;
    if let Some(root) = roots.groups {
        trees.walk(src, &chunks, root, |item| space.look(item))?;
    }
    space.add_gaps(u64::MAX);
    if let Some(root) = roots.free_space.filter(|_| sb.has_free_space_tree) {
        let mut free = Free { sb: &sb, chunks: &chunks, listed, last: None, end: 0 };
        trees.walk(src, &chunks, root, |item| free.look(item))?;
        free.add_last();
        if !space.gaps.is_same(&free.listed) {
            return Err(doubt("the free-space tree and the extent tree contradict"));
        }
    }
    let used_bytes_claimed = space.check_totals()?;
    let used = space.on_device(len_bytes)?;
    Ok(Believed {
        block_bytes: sb.sector_bytes,
        fs_bytes: sb.device_bytes,
        used,
        used_bytes_claimed,
    })
}

/// Where the trees begin that are wanted.
#[derive(Default)]
struct Roots {
    extents: Option<Root>,
    devices: Option<Root>,
    groups: Option<Root>,
    free_space: Option<Root>,
}

impl Roots {
    fn look(&mut self, item: &Item<'_>) -> Result<(), Failure> {
        if item.key.kind != ROOT_ITEM {
            return Ok(());
        }
        let place = match item.key.object {
            EXTENT_TREE => &mut self.extents,
            DEVICE_TREE => &mut self.devices,
            BLOCK_GROUP_TREE => &mut self.groups,
            FREE_SPACE_TREE => &mut self.free_space,
            _ => return Ok(()),
        };
        let bytes = item.bytes.get(..239).ok_or_else(|| doubt("a root item is cut off"))?;
        *place = Some(Root {
            address: le64(bytes, 176),
            level: bytes[238],
            generation: le64(bytes, 160),
        });
        Ok(())
    }
}

/// Adds what an item of the device tree says: which chunk has a piece of the device.
fn add_piece(sb: &Superblock, item: &Item<'_>, pieces: &mut Vec<Piece>) -> Result<(), Failure> {
    let Key { object: device, kind, offset: place } = item.key;
    if kind == DEVICE_EXTENT {
        let bytes = item.bytes.get(..32).filter(|_| device == sb.device);
        let bytes = bytes.ok_or_else(|| doubt(format!("the device tree is damaged at {place}")))?;
        if pieces.len() > 2 * chunks::MOST {
            return Err(doubt("its device tree is too large"));
        }
        pieces.push(Piece { place, chunk: le64(bytes, 16), len: le64(bytes, 24) });
    }
    Ok(())
}

/// What the free-space tree says: ranges, or bitmaps with a bit for each sector.
struct Free<'a> {
    sb: &'a Superblock,
    chunks: &'a Chunks,
    listed: Tally,
    /// What was listed last, with neighbours that are joined to it.
    last: Option<Extent>,
    /// Where the last item ends.
    end: u64,
}

impl Free<'_> {
    fn look(&mut self, item: &Item<'_>) -> Result<(), Failure> {
        let Key { object: start, kind, offset: len } = item.key;
        if !matches!(kind, FREE_SPACE_EXTENT | FREE_SPACE_BITMAP) {
            return Ok(());
        }
        let broken = || doubt(format!("the free-space tree is damaged at {start}"));
        let end = start.checked_add(len).ok_or_else(broken)?;
        if start < self.end {
            return Err(broken());
        }
        self.end = end;
        if kind == FREE_SPACE_EXTENT {
            self.add(start, len);
            return Ok(());
        }
        let sector = usize::try_from(self.sb.sector_bytes).expect("at most 64 KiB");
        let bits = bits(item.bytes);
        for (at, _) in (start..end).step_by(sector).zip(bits).filter(|(_, free)| *free) {
            self.add(at, self.sb.sector_bytes.min(end - at));
        }
        Ok(())
    }

    fn add(&mut self, start: u64, len: u64) {
        match &mut self.last {
            Some(last) if last.end() == start => last.len += len,
            _ => {
                self.add_last();
                self.last = Some(Extent { start, len });
            }
        }
    }

    /// By chunks, as the gaps between extents are. What is in no chunk is left out: mkfs leaves entries of block groups that it had
    /// for a while.
    fn add_last(&mut self) {
        if let Some(last) = self.last.take() {
            for part in self.chunks.parts(last.start, last.end()) {
                self.listed.add(part.start, part.len);
            }
        }
    }
}

/// What the extent tree says, in logical addresses.
struct Space<'a> {
    sb: &'a Superblock,
    chunks: &'a Chunks,
    /// What is in use; where it is in very many pieces, more. It may reach over what is in no chunk.
    extents: Extents,
    /// Where the last extent ends.
    end: u64,
    /// What lies between extents, by chunks.
    gaps: Tally,
    /// Bytes in use, by the chunk's address.
    in_chunks: BTreeMap<u64, u64>,
    /// Start, length, bytes in use.
    groups: Vec<(u64, u64, u64)>,
}

impl<'a> Space<'a> {
    fn new(sb: &'a Superblock, chunks: &'a Chunks, gaps: Tally) -> Self {
        Self {
            sb,
            chunks,
            extents: Extents::new(),
            end: 0,
            gaps,
            in_chunks: BTreeMap::new(),
            groups: Vec::new(),
        }
    }

    fn look(&mut self, item: &Item<'_>) -> Result<(), Failure> {
        let Key { object: start, kind, offset } = item.key;
        let len = match kind {
            EXTENT_ITEM => offset,
            METADATA_ITEM => self.sb.node_bytes,
            BLOCK_GROUP_ITEM => {
                let bytes = item.bytes.get(..24).filter(|_| self.groups.len() < chunks::MOST);
                let bytes =
                    bytes.ok_or_else(|| doubt(format!("the block group at {start} is damaged")))?;
                self.groups.push((start, offset, le64(bytes, 0)));
                return Ok(());
            }
            _ => return Ok(()),
        };
        if len == 0 || start < self.end {
            return Err(doubt(format!("the extent of {len} bytes at {start} overlaps another")));
        }
        let chunk = self.chunks.of(start, len).ok_or_else(|| {
            doubt(format!("the extent of {len} bytes at {start} is outside of all block groups"))
        })?;
        *self.in_chunks.entry(chunk).or_default() += len;
        self.add_gaps(start);
        self.end = start + len;
        self.extents.push_coarsely(start, len);
        Ok(())
    }

    /// Adds what is free up to an address.
    fn add_gaps(&mut self, to: u64) {
        for part in self.chunks.parts(self.end, to) {
            self.gaps.add(part.start, part.len);
        }
    }

    /// The extents must be as many bytes as the block groups and the superblock say, and the block groups be the chunks. Gives how
    /// many that is on the device, where there may be two copies.
    fn check_totals(&self) -> Result<u64, Failure> {
        let total: u64 = self.in_chunks.values().sum();
        if total != self.sb.used_bytes {
            return Err(doubt(format!(
                "its extents are {total} bytes, the superblock says {}",
                self.sb.used_bytes
            )));
        }
        let mut claimed = 0;
        let mut seen = BTreeSet::new();
        for (start, len, used) in &self.groups {
            let copies = self.chunks.copies(*start, *len).filter(|_| seen.insert(*start));
            let copies =
                copies.ok_or_else(|| doubt(format!("the block group at {start} is no chunk")))?;
            let within = self.in_chunks.get(start).copied().unwrap_or(0);
            if within != *used {
                return Err(doubt(format!(
                    "the extents of the block group at {start} are {within} bytes, its item says {used}"
                )));
            }
            claimed += within * copies;
        }
        if self.in_chunks.keys().any(|chunk| !seen.contains(chunk)) {
            return Err(doubt("there are extents outside of all block groups"));
        }
        Ok(claimed)
    }

    /// What is in use on the device, with what is kept beside the extents.
    fn on_device(self, len_bytes: u64) -> Result<Extents, Failure> {
        let Self { sb, chunks, mut extents, .. } = self;
        let mut bytes = Extents::single(0, RESERVED_LEN.min(len_bytes));
        for place in superblock::places(sb.device_bytes) {
            bytes.insert(place, superblock::LEN);
        }
        // There may be two copies of each.
        extents.close_gaps(MAX_PIECES / 2);
        let mut places = Vec::with_capacity(extents.len());
        for extent in &extents {
            for part in chunks.parts(extent.start, extent.end()) {
                chunks.places(part, &mut places)?;
            }
        }
        drop(extents);
        places.sort_unstable_by_key(|extent| extent.start);
        let mut data = Extents::new();
        for place in places {
            data.push_coarsely(place.start, place.len);
        }
        bytes = bytes.union(&data);
        bytes.insert(sb.device_bytes, len_bytes - sb.device_bytes);
        Ok(bytes)
    }
}
