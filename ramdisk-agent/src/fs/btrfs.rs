//! btrfs on one device: which blocks are in use, by the extent tree.
//!
//! Follows the btrfs project's *On-disk Format* and the kernel's `include/uapi/linux/btrfs_tree.h`. The chunk tree says where a
//! logical address is on the device, once or, for DUP, twice; the extent tree lists every logical range in use. The extents of each
//! block group must be as many bytes as its item says, and all together as many as the superblock says; the free-space tree, where
//! there is one, must list the rest; every node has a checksum, an identity and its own address. A tree is never changed in place,
//! so what is on the device is consistent at any time; only a log of fsyncs, which the next mount replays, makes it unclean: what
//! such a log refers to is in no extent tree yet.
//!
//! Kept beside the extents: the first MiB, which btrfs leaves to boot loaders, and all superblocks. Taken raw: several devices,
//! seeds, zoned devices, checksums other than CRC-32C, and the second extent tree format.

mod chunks;
mod superblock;
mod tree;

use std::io::{self, Read, Seek};

use super::failure::{Believed, Failure, doubt, map_or_raw};
use crate::extents::Extents;
use crate::fs::bytes::{bits, le64};
use crate::fs::{Clean, VolumeMap};
use crate::probe::Found;
use chunks::Chunks;
use superblock::Superblock;
use tree::{Item, Key, Root, Trees};

const ROOT_ITEM: u8 = 132;
const EXTENT_ITEM: u8 = 168;
const METADATA_ITEM: u8 = 169;
const BLOCK_GROUP_ITEM: u8 = 192;
const FREE_SPACE_EXTENT: u8 = 199;
const FREE_SPACE_BITMAP: u8 = 200;
const EXTENT_TREE: u64 = 2;
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
        Ok(())
    })?;
    for (key, bytes) in &items {
        chunks.add(&sb, key, bytes)?;
    }
    let mut roots = Roots::default();
    trees.walk(src, &chunks, sb.root, |item| roots.look(item))?;
    let extent_root = roots.extents.ok_or_else(|| doubt("it has no extent tree"))?;
    let mut space = Space::default();
    trees.walk(src, &chunks, extent_root, |item| space.look(&sb, item))?;
    if let Some(root) = roots.groups {
        trees.walk(src, &chunks, root, |item| space.look(&sb, item))?;
    }
    if let Some(root) = roots.free_space.filter(|_| sb.has_free_space_tree) {
        let mut free = Extents::new();
        trees.walk(src, &chunks, root, |item| add_free(&sb, item, &mut free))?;
        space.compare(&free)?;
    }
    let used_bytes_claimed = space.check_totals(&sb, &chunks)?;
    let used = space.on_device(&sb, &chunks, len_bytes)?;
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

/// Adds what an item of the free-space tree says: a range, or a bitmap with a bit for each sector.
fn add_free(sb: &Superblock, item: &Item<'_>, free: &mut Extents) -> Result<(), Failure> {
    let Key { object: start, kind, offset: len } = item.key;
    let broken = || doubt(format!("the free-space tree is damaged at {start}"));
    let end = start.checked_add(len).ok_or_else(broken)?;
    if start < free.end() {
        return Err(broken());
    }
    match kind {
        FREE_SPACE_EXTENT => free.push(start, len),
        FREE_SPACE_BITMAP => {
            let sector = usize::try_from(sb.sector_bytes).expect("at most 64 KiB");
            let bits = bits(item.bytes);
            for (at, _) in (start..end).step_by(sector).zip(bits).filter(|(_, free)| *free) {
                free.push(at, sb.sector_bytes.min(end - at));
            }
        }
        _ => {}
    }
    Ok(())
}

/// What the extent tree says, in logical addresses.
#[derive(Default)]
struct Space {
    extents: Extents,
    /// Start, length, bytes in use.
    groups: Vec<(u64, u64, u64)>,
}

impl Space {
    fn look(&mut self, sb: &Superblock, item: &Item<'_>) -> Result<(), Failure> {
        let key = &item.key;
        let len = match key.kind {
            EXTENT_ITEM => key.offset,
            METADATA_ITEM => sb.node_bytes,
            BLOCK_GROUP_ITEM => {
                let bytes =
                    item.bytes.get(..24).filter(|_| key.object.checked_add(key.offset).is_some());
                let bytes = bytes.ok_or_else(|| {
                    doubt(format!("the block group at {} is damaged", key.object))
                })?;
                self.groups.push((key.object, key.offset, le64(bytes, 0)));
                return Ok(());
            }
            _ => return Ok(()),
        };
        let fits = key.object.checked_add(len).is_some() && key.object >= self.extents.end();
        if len == 0 || !fits {
            return Err(doubt(format!(
                "the extent of {len} bytes at {} overlaps another",
                key.object
            )));
        }
        self.extents.push(key.object, len);
        Ok(())
    }

    /// The free-space tree must list the rest of every block group.
    fn compare(&self, free: &Extents) -> Result<(), Failure> {
        let mut groups: Vec<_> = self.groups.iter().map(|(start, len, _)| (*start, *len)).collect();
        groups.sort_unstable();
        let mut all = Extents::new();
        for (start, len) in groups {
            all.insert(start, len);
        }
        // mkfs leaves entries of block groups that it had for a while.
        let outside = free.subtract(&all);
        if all.subtract(&self.extents) == free.subtract(&outside) {
            Ok(())
        } else {
            Err(doubt("the free-space tree and the extent tree contradict"))
        }
    }

    /// The extents must be as many bytes as the block groups and the superblock say. Gives how many that is on the device, where
    /// there may be two copies.
    fn check_totals(&self, sb: &Superblock, chunks: &Chunks) -> Result<u64, Failure> {
        if self.extents.total_bytes() != sb.used_bytes {
            return Err(doubt(format!(
                "its extents are {} bytes, the superblock says {}",
                self.extents.total_bytes(),
                sb.used_bytes
            )));
        }
        let mut claimed = 0;
        let mut counted = 0;
        for (start, len, used) in &self.groups {
            let copies = chunks
                .copies(*start, *len)
                .ok_or_else(|| doubt(format!("the block group at {start} is no chunk")))?;
            let within: u64 = self
                .extents
                .overlapping(*start, *len)
                .map(|extent| extent.end().min(start + len) - extent.start.max(*start))
                .sum();
            if within != *used {
                return Err(doubt(format!(
                    "the extents of the block group at {start} are {within} bytes, its item says {used}"
                )));
            }
            counted += within;
            claimed += within * copies;
        }
        if counted != sb.used_bytes {
            return Err(doubt("there are extents outside of all block groups"));
        }
        Ok(claimed)
    }

    /// What is in use on the device, with what is kept beside the extents.
    fn on_device(
        &self,
        sb: &Superblock,
        chunks: &Chunks,
        len_bytes: u64,
    ) -> Result<Extents, Failure> {
        let mut bytes = Extents::single(0, RESERVED_LEN.min(len_bytes));
        for place in superblock::places(sb.device_bytes) {
            bytes.insert(place, superblock::LEN);
        }
        let mut places = Vec::new();
        for extent in &self.extents {
            chunks.places(*extent, &mut places)?;
        }
        places.sort_unstable_by_key(|extent| extent.start);
        let mut data = Extents::new();
        for place in places {
            data.insert(place.start, place.len);
        }
        bytes = bytes.union(&data);
        bytes.insert(sb.device_bytes, len_bytes - sb.device_bytes);
        Ok(bytes)
    }
}
