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

use std::io::{self, Read, Seek};

use super::failure::{Believed, Failure, doubt, map_or_raw};
use crate::extents::Extents;
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
    let mut own = Extents::single(sb.log_start, sb.log_blocks * sb.block_bytes);
    let mut free_blocks = 0;
    for number in 0..sb.groups {
        let group = Group::read(src, &sb, number)?;
        let free = free_space(src, &sb, &group, &mut own)?;
        free_blocks += group.free_blocks + group.reserve.len() as u64 + group.tree_blocks;
        own.insert(group.start, sb.header_blocks() * sb.block_bytes);
        for block in &group.reserve {
            own.insert(group.start + u64::from(*block) * sb.block_bytes, sb.block_bytes);
        }
        let mut at = 0;
        for (start, count) in free {
            used.push(group.start + at * sb.block_bytes, (start - at) * sb.block_bytes);
            at = start + count;
        }
        used.push(group.start + at * sb.block_bytes, (group.blocks - at) * sb.block_bytes);
    }
    if free_blocks != sb.free_blocks {
        return Err(doubt(format!(
            "the allocation groups have {free_blocks} free blocks, the superblock says {}",
            sb.free_blocks
        )));
    }
    if let Some(lost) = own.subtract(&used).iter().next() {
        let at = lost.start;
        return Err(doubt(format!(
            "the filesystem's own structures at byte {at} are marked as free"
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

/// A group's free space: (first block, count), by place. Adds the trees' blocks to `own`.
fn free_space(
    src: &mut (impl Read + Seek),
    sb: &Superblock,
    group: &Group,
    own: &mut Extents,
) -> Result<Vec<(u64, u64)>, Failure> {
    let number = group.number;
    let by_place = tree::records(src, sb, group, Order::Place, own)?;
    let mut by_length = tree::records(src, sb, group, Order::Length, own)?;
    by_length.sort_unstable();
    if by_place != by_length {
        return Err(doubt(format!("the two free-space trees of group {number} contradict")));
    }
    let mut end = 0;
    for (start, count) in &by_place {
        // Neighbours would have been made one, and the first block holds the headers.
        if *start <= end || *count == 0 || start + count > group.blocks {
            return Err(doubt(format!(
                "group {number} has {count} free blocks at {start}, which cannot be"
            )));
        }
        end = start + count;
    }
    let total: u64 = by_place.iter().map(|(_, count)| count).sum();
    let longest = by_place.iter().map(|(_, count)| *count).max().unwrap_or(0);
    if (total, longest) != (group.free_blocks, group.longest) {
        return Err(doubt(format!(
            "the trees of group {number} have {total} free blocks, {longest} in a row; its header says {} and {}",
            group.free_blocks, group.longest
        )));
    }
    Ok(by_place)
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
