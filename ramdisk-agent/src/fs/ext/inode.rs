//! Where the journal's blocks are: the map of its inode, by extents or by indirect blocks.
//!
//! Follows the kernel's `Documentation/filesystems/ext4/` (inodes.rst, ifork.rst). Holes have no place in a journal.

use std::io::{Read, Seek};

use super::superblock::{Descriptor, Superblock};
use crate::fs::bytes::{le16, le32, read};
use crate::fs::failure::{Failure, doubt};

pub const FLAG_EXTENTS: u32 = 0x8_0000;
pub const BLOCK_MAP_AT: usize = 0x28;
pub const BLOCK_MAP_LEN: usize = 60;
pub const DIRECT: usize = 12;
pub const EXTENT_MAGIC: u16 = 0xF30A;
pub const EXTENT_LEN: usize = 12;
pub const MAX_DEPTH: u16 = 5;
/// An extent that was never written is longer than this.
pub const MAX_EXTENT_BLOCKS: u16 = 0x8000;
/// 4 GiB of blocks of 1 KiB; mke2fs makes at most 1 GiB.
const MAX_JOURNAL_BLOCKS: u64 = 1 << 22;

/// The blocks of a file in order, neighbours joined.
#[derive(Debug, Default)]
pub struct Runs {
    /// First block and how many.
    pub list: Vec<(u64, u64)>,
    /// Where each run begins in the file.
    starts: Vec<u64>,
    blocks: u64,
}

impl Runs {
    /// How many blocks there are.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Where a block of the file is.
    pub fn block(&self, number: u64) -> Option<u64> {
        let run = self.starts.partition_point(|start| *start <= number).checked_sub(1)?;
        let (first, count) = self.list[run];
        let into = number - self.starts[run];
        (into < count).then_some(first + into)
    }

    fn push(&mut self, sb: &Superblock, first: u64, count: u64) -> Result<(), Failure> {
        let inside = first > sb.first_data_block
            && first.checked_add(count).is_some_and(|end| end <= sb.blocks);
        if !inside || self.blocks + count > MAX_JOURNAL_BLOCKS {
            return Err(doubt("the journal's inode leads out of the filesystem"));
        }
        match self.list.last_mut() {
            Some((start, many)) if *start + *many == first => *many += count,
            _ => {
                self.starts.push(self.blocks);
                self.list.push((first, count));
            }
        }
        self.blocks += count;
        Ok(())
    }
}

/// The journal's blocks, by the inode that the superblock names.
pub fn journal(src: &mut (impl Read + Seek), sb: &Superblock) -> Result<Runs, Failure> {
    let number = u64::from(sb.journal_inode);
    if sb.journal_device != 0 || number == 0 {
        return Err(doubt("the journal is on another device"));
    }
    let group = (number - 1) / sb.inodes_per_group;
    if group >= sb.groups() {
        return Err(doubt("the journal's inode is not there"));
    }
    let per_block = sb.block_bytes / sb.descriptor_bytes;
    let at = sb.descriptor_block(group / per_block) * sb.block_bytes;
    let at = at + group % per_block * sb.descriptor_bytes;
    let descriptor = read(src, at, sb.descriptor_bytes)?;
    let descriptor = Descriptor::parse(sb, group, &descriptor).map_err(doubt)?;
    let index = (number - 1) % sb.inodes_per_group;
    let place = descriptor.inode_table * sb.block_bytes + index * sb.inode_bytes;
    let inode = read(src, place, sb.inode_bytes)?;
    let len = u64::from(le32(&inode, 4)) | u64::from(le32(&inode, 0x6C)) << 32;
    let blocks = len / sb.block_bytes;
    if blocks == 0 || blocks > MAX_JOURNAL_BLOCKS {
        return Err(doubt(format!("a journal of {len} bytes")));
    }
    let map = &inode[BLOCK_MAP_AT..BLOCK_MAP_AT + BLOCK_MAP_LEN];
    let mut runs = Runs::default();
    if le32(&inode, 0x20) & FLAG_EXTENTS != 0 {
        extents(src, sb, map, None, &mut runs)?;
    } else {
        for i in 0..DIRECT + 3 {
            let level = i.saturating_sub(DIRECT - 1);
            indirect(src, sb, u64::from(le32(map, i * 4)), level, blocks, &mut runs)?;
        }
    }
    if runs.blocks() < blocks { Err(doubt("the journal has holes")) } else { Ok(runs) }
}

/// A node of the extent tree; `above` is the depth of its parent.
fn extents(
    src: &mut (impl Read + Seek),
    sb: &Superblock,
    node: &[u8],
    above: Option<u16>,
    runs: &mut Runs,
) -> Result<(), Failure> {
    let broken = || doubt("the extent tree of the journal's inode is broken");
    let (entries, depth) = (usize::from(le16(node, 2)), le16(node, 6));
    // Depths count down, so that this ends on any input.
    let fits = above.map_or(depth <= MAX_DEPTH, |above| depth + 1 == above);
    if le16(node, 0) != EXTENT_MAGIC || !fits || (entries + 1) * EXTENT_LEN > node.len() {
        return Err(broken());
    }
    for entry in node[EXTENT_LEN..].chunks_exact(EXTENT_LEN).take(entries) {
        if u64::from(le32(entry, 0)) != runs.blocks() {
            return Err(broken());
        }
        if depth == 0 {
            let count = le16(entry, 4);
            if count == 0 || count > MAX_EXTENT_BLOCKS {
                return Err(broken());
            }
            let first = u64::from(le32(entry, 8)) | u64::from(le16(entry, 6)) << 32;
            runs.push(sb, first, u64::from(count))?;
        } else {
            let block = u64::from(le32(entry, 4)) | u64::from(le16(entry, 8)) << 32;
            if block >= sb.blocks {
                return Err(broken());
            }
            let before = runs.blocks();
            let below = read(src, block * sb.block_bytes, sb.block_bytes)?;
            extents(src, sb, &below, Some(depth), runs)?;
            // A node that leads nowhere could be visited for ever.
            if runs.blocks() == before {
                return Err(broken());
            }
        }
    }
    Ok(())
}

/// A block, or a block of block numbers of a level, until the file is complete.
fn indirect(
    src: &mut (impl Read + Seek),
    sb: &Superblock,
    block: u64,
    level: usize,
    blocks: u64,
    runs: &mut Runs,
) -> Result<(), Failure> {
    if runs.blocks() >= blocks {
        return Ok(());
    }
    if block == 0 || block >= sb.blocks {
        return Err(doubt("the journal has holes"));
    }
    if level == 0 {
        return runs.push(sb, block, 1);
    }
    let numbers = read(src, block * sb.block_bytes, sb.block_bytes)?;
    for number in numbers.chunks_exact(4) {
        indirect(src, sb, u64::from(le32(number, 0)), level - 1, blocks, runs)?;
    }
    Ok(())
}
