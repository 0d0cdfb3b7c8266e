//! XFS: which blocks are in use, by the free-space trees of its allocation groups.
//!
//! Follows *XFS Algorithms & Data Structures* (3rd edition): versions 4 and 5, on one device. Every allocation group lists its
//! free space twice, in a B+tree by place and in one by length; what is in neither is kept, and so are the headers, the log, the
//! trees' own blocks and the short list of blocks that a group holds in reserve for its trees. The two trees must hold the same
//! records, and agree with the totals in the group's header and, over all groups, in the superblock; nothing that is known to be
//! the filesystem's own may be free; version 5 adds checksums and identities to each block. Any doubt means raw. Whether it was
//! unmounted is told by the log's last record, as the kernel tells it; the log is not replayed here. Deliberately absent:
//! real-time devices and external logs, which are not in the volume, and the reverse map, a third list of the same.

mod group;
mod log;
mod superblock;
mod tree;

use std::collections::BTreeSet;
use std::io::{self, Read, Seek};

use super::failure::{Believed, Failure, doubt, map_or_raw};
use super::tally::Tally;
use crate::extents::{Extent, Extents};
use crate::fs::{Clean, VolumeMap};
use crate::probe::Found;
use group::Group;
use superblock::Superblock;
use tree::Order;

/// The map of a volume whose first sector says that it is an XFS.
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
    *clean = is_clean(src, &sb)?;
    let mut used = Extents::new();
    let log = Extent { start: sb.log_start, len: sb.log_blocks * sb.block_bytes };
    let mut free_blocks = 0;
    for number in 0..sb.groups {
        let group = Group::read(src, &sb, number)?;
        let mut own = BTreeSet::new();
        add_used(src, &sb, &group, log, &mut own, &mut used)?;
        free_blocks += group.free_blocks + group.reserve.len() as u64 + group.tree_blocks;
        own.extend((0..sb.header_blocks()).filter_map(|block| u32::try_from(block).ok()));
        own.extend(&group.reserve);
        let places = own.into_iter().map(|block| group.start + u64::from(block) * sb.block_bytes);
        check_own(&used, places, sb.block_bytes)?;
    }
    check_own(&used, std::iter::once(log.start), log.len)?;
    if free_blocks != sb.free_blocks {
        return Err(doubt(format!(
            "the allocation groups have {free_blocks} free blocks, the superblock says {}",
            sb.free_blocks
        )));
    }
    // What lies behind the filesystem is not its own.
    let fs_bytes = sb.blocks * sb.block_bytes;
    used.push(fs_bytes, len_bytes - fs_bytes);
    Ok(Believed {
        block_bytes: sb.block_bytes,
        fs_bytes,
        used,
        used_bytes_claimed: (sb.blocks - sb.free_blocks) * sb.block_bytes,
    })
}

/// The filesystem's own structures must be kept.
fn check_own(
    used: &Extents,
    mut places: impl Iterator<Item = u64>,
    len: u64,
) -> Result<(), Failure> {
    match places.find(|at| !used.contains_range(*at, len)) {
        Some(at) => {
            Err(doubt(format!("the filesystem's own structures at byte {at} are marked as free")))
        }
        None => Ok(()),
    }
}

/// Adds what of a group is not free to `used`, and the blocks of its trees to `own`.
fn add_used(
    src: &mut (impl Read + Seek),
    sb: &Superblock,
    group: &Group,
    log: Extent,
    own: &mut BTreeSet<u32>,
    used: &mut Extents,
) -> Result<(), Failure> {
    let number = group.number;
    let [mut places, mut lengths] = Tally::pair();
    let (mut end, mut total, mut longest) = (0, 0, 0);
    tree::records(src, sb, group, Order::Place, log, own, |start, count| {
        // Neighbours would have been made one, and the first block holds the headers.
        if start <= end || count == 0 || start + count > group.blocks {
            return Err(doubt(format!(
                "group {number} has {count} free blocks at {start}, which cannot be"
            )));
        }
        used.push_coarsely(group.start + end * sb.block_bytes, (start - end) * sb.block_bytes);
        end = start + count;
        total += count;
        longest = longest.max(count);
        places.add(start, count);
        Ok(())
    })?;
    used.push_coarsely(group.start + end * sb.block_bytes, (group.blocks - end) * sb.block_bytes);
    tree::records(src, sb, group, Order::Length, log, own, |start, count| {
        lengths.add(start, count);
        Ok(())
    })?;
    if !places.is_same(&lengths) {
        return Err(doubt(format!("the two free-space trees of group {number} contradict")));
    }
    if (total, longest) != (group.free_blocks, group.longest) {
        return Err(doubt(format!(
            "the trees of group {number} have {total} free blocks, {longest} in a row; its header says {} and {}",
            group.free_blocks, group.longest
        )));
    }
    Ok(())
}

fn is_clean(src: &mut (impl Read + Seek), sb: &Superblock) -> io::Result<Clean> {
    let reason = if sb.needs_repair {
        "it needs xfs_repair"
    } else if log::ends_unmounted(src, sb)? {
        return Ok(Clean::Clean);
    } else {
        "the log needs recovery"
    };
    Ok(Clean::NotClean { reason: reason.into() })
}
