//! The blocks that inodes name: data, the blocks that say where data are, and attributes.
//!
//! Follows the kernel's `Documentation/filesystems/ext4/` (ifork.rst, attributes.rst). A block is read only after it was found to be marked
//! as used. Blocks that name others are gathered, and read in the order of the disk, the lowest level first, so that what waits
//! has a limit whatever they hold. As each belongs to one file, more than are in use at all are a contradiction, and the end.

use std::io::{Read, Seek};

use super::inode::{
    BLOCK_MAP_AT, BLOCK_MAP_LEN, DIRECT, EXTENT_LEN, EXTENT_MAGIC, FLAG_EXTENTS, MAX_DEPTH,
    MAX_EXTENT_BLOCKS,
};
use super::superblock::Superblock;
use crate::extents::Extents;
use crate::fs::bytes::{le16, le32, read_at};
use crate::fs::failure::{Failure, doubt};

const FLAG_INLINE_DATA: u32 = 0x1000_0000;
const TYPE_MASK: u16 = 0xF000;
const TYPE_DIRECTORY: u16 = 0x4000;
const TYPE_FILE: u16 = 0x8000;
const TYPE_LINK: u16 = 0xA000;

/// Levels of blocks that name others, in either kind of map.
const LEVELS: usize = MAX_DEPTH as usize;
/// How many blocks of one level wait to be read, but for what one inode or block adds.
const MOST_WAITING: usize = 1 << 16;

/// A block that names others.
#[derive(Debug, Clone, Copy)]
struct Node {
    block: u64,
    inode: u32,
    /// Of an extent tree, or else of block numbers.
    extents: bool,
}

/// See the module's documentation.
pub struct Owned<'a> {
    sb: &'a Superblock,
    used: &'a Extents,
    /// By how many levels are below: those of the first name data.
    waiting: [Vec<Node>; LEVELS],
    /// How many more are believed.
    left: u64,
    buffer: Vec<u8>,
}

impl<'a> Owned<'a> {
    /// For a filesystem whose bytes in use are these.
    pub fn new(sb: &'a Superblock, used: &'a Extents) -> Self {
        Self {
            sb,
            used,
            waiting: Default::default(),
            left: used.total_bytes() / sb.block_bytes,
            buffer: vec![0; usize::try_from(sb.block_bytes).expect("at most 64 KiB")],
        }
    }

    /// Checks the blocks of an inode in use; what takes further reading may wait until later.
    pub fn add(
        &mut self,
        src: &mut (impl Read + Seek),
        number: u64,
        inode: &[u8],
    ) -> Result<(), Failure> {
        let inode_number = u32::try_from(number).unwrap_or(u32::MAX);
        let high = if self.sb.is_wide() { u64::from(le16(inode, 0x76)) << 32 } else { 0 };
        // The second is the Hurd's: a program that stands for the file.
        let attributes = u64::from(le32(inode, 0x68)) | high;
        let translator = if self.sb.is_of_hurd() { u64::from(le32(inode, 0x24)) } else { 0 };
        for block in [attributes, translator] {
            if block != 0 {
                self.expect(inode_number, block, 1)?;
            }
        }
        if !has_map(number, inode) {
            return Ok(());
        }
        let map = &inode[BLOCK_MAP_AT..BLOCK_MAP_AT + BLOCK_MAP_LEN];
        if le32(inode, 0x20) & FLAG_EXTENTS != 0 {
            let depth = usize::from(le16(map, 6));
            self.extents(inode_number, map, depth)?;
        } else {
            self.numbers(inode_number, &map[..DIRECT * 4], 0)?;
            for (level, number) in (1..).zip(map[DIRECT * 4..].chunks_exact(4)) {
                self.numbers(inode_number, number, level)?;
            }
        }
        if self.waiting.iter().any(|level| level.len() >= MOST_WAITING) {
            self.finish(src)?;
        }
        Ok(())
    }

    /// Reads all that waits.
    pub fn finish(&mut self, src: &mut (impl Read + Seek)) -> Result<(), Failure> {
        // Each names at most so many.
        let names = self.buffer.len() / 4;
        while let Some(level) = self.waiting.iter().position(|nodes| !nodes.is_empty()) {
            let nodes = &mut self.waiting[level];
            // From the end, which is the lowest place.
            nodes.sort_unstable_by_key(|node| std::cmp::Reverse(node.block));
            let batch = if level == 0 { nodes.len() } else { (MOST_WAITING / names).max(1) };
            let batch = nodes.split_off(nodes.len().saturating_sub(batch));
            for node in batch.iter().rev() {
                self.read(src, *node, level)?;
            }
        }
        Ok(())
    }

    fn read(
        &mut self,
        src: &mut (impl Read + Seek),
        node: Node,
        level: usize,
    ) -> Result<(), Failure> {
        self.left = self.left.checked_sub(1).ok_or_else(|| {
            doubt("files share the blocks that say where they are, or lead in a circle")
        })?;
        let mut bytes = std::mem::take(&mut self.buffer);
        read_at(src, node.block * self.sb.block_bytes, &mut bytes)?;
        let done = if node.extents {
            self.extents(node.inode, &bytes, level)
        } else {
            self.numbers(node.inode, &bytes, level)
        };
        self.buffer = bytes;
        done
    }

    /// A node of an extent tree, which has to have so many levels below.
    fn extents(&mut self, inode: u32, node: &[u8], depth: usize) -> Result<(), Failure> {
        let entries = usize::from(le16(node, 2));
        if le16(node, 0) != EXTENT_MAGIC
            || usize::from(le16(node, 6)) != depth
            || depth > LEVELS
            || (entries + 1) * EXTENT_LEN > node.len()
        {
            return Err(doubt(format!("the extent tree of inode {inode} is broken")));
        }
        for entry in node[EXTENT_LEN..].chunks_exact(EXTENT_LEN).take(entries) {
            if let Some(below) = depth.checked_sub(1) {
                let block = u64::from(le32(entry, 4)) | u64::from(le16(entry, 8)) << 32;
                self.expect(inode, block, 1)?;
                self.waiting[below].push(Node { block, inode, extents: true });
            } else {
                let first = u64::from(le32(entry, 8)) | u64::from(le16(entry, 6)) << 32;
                let count = le16(entry, 4);
                let unwritten = count.checked_sub(MAX_EXTENT_BLOCKS).filter(|count| *count > 0);
                self.expect(inode, first, u64::from(unwritten.unwrap_or(count)))?;
            }
        }
        Ok(())
    }

    /// Block numbers with so many levels of such blocks below; zeros are holes.
    fn numbers(&mut self, inode: u32, numbers: &[u8], level: usize) -> Result<(), Failure> {
        for number in numbers.chunks_exact(4) {
            let block = u64::from(le32(number, 0));
            if block == 0 {
                continue;
            }
            self.expect(inode, block, 1)?;
            if let Some(below) = level.checked_sub(1) {
                self.waiting[below].push(Node { block, inode, extents: false });
            }
        }
        Ok(())
    }

    /// Blocks that have to be marked as used.
    fn expect(&self, inode: u32, first: u64, count: u64) -> Result<(), Failure> {
        let sb = self.sb;
        let inside = first >= sb.first_data_block
            && first.checked_add(count).is_some_and(|end| end <= sb.blocks);
        if !inside {
            return Err(doubt(format!(
                "inode {inode} has block {first}, which lies outside the filesystem"
            )));
        }
        if !self.used.contains_range(first * sb.block_bytes, count * sb.block_bytes) {
            return Err(doubt(format!(
                "inode {inode} has blocks from {first} on, some of which are marked as free"
            )));
        }
        Ok(())
    }
}

/// Whether an inode's map names blocks; else it is the contents, a device's number, or nothing.
fn has_map(number: u64, inode: &[u8]) -> bool {
    if le32(inode, 0x20) & FLAG_INLINE_DATA != 0 {
        return false;
    }
    match le16(inode, 0) & TYPE_MASK {
        TYPE_DIRECTORY | TYPE_FILE => true,
        // A short target is where the map would be.
        TYPE_LINK => le32(inode, 4) as usize >= BLOCK_MAP_LEN,
        _ => number == super::inodes::BAD_BLOCKS,
    }
}
