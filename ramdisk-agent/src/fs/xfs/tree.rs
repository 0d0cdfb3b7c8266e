//! The B+trees of a group's free space: one ordered by place, one by length, with the same records.
//!
//! A tree is read level by level. Every block must say that it is of that level, name its neighbours in it, and be met once; so
//! a tree costs no more than the blocks that the group has.

use std::collections::BTreeSet;
use std::io::{Read, Seek};

use super::group::Group;
use super::superblock::{Superblock, is_sound};
use crate::extents::Extent;
use crate::fs::bytes::{be16, be32, be64, read};
use crate::fs::failure::{Failure, doubt};

/// More levels than the largest group needs with the smallest blocks.
const MOST_LEVELS: u32 = 16;
/// More blocks of a level are not remembered: even of the smallest, they list fragments by the ten million.
const MOST_BLOCKS: usize = 1 << 20;
/// No neighbour.
const NONE: u32 = u32::MAX;
/// Start and count, four bytes each.
const RECORD_LEN: usize = 8;
const POINTER_LEN: usize = 4;

/// What a tree is ordered by.
#[derive(Debug, Clone, Copy)]
pub enum Order {
    Place,
    Length,
}

impl Order {
    fn magic(self, sb: &Superblock) -> &'static [u8; 4] {
        match (self, sb.identity.is_some()) {
            (Self::Place, true) => b"AB3B",
            (Self::Place, false) => b"ABTB",
            (Self::Length, true) => b"AB3C",
            (Self::Length, false) => b"ABTC",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Place => "by place",
            Self::Length => "by length",
        }
    }
}

/// One tree of one group.
struct Tree<'a> {
    sb: &'a Superblock,
    group: &'a Group,
    order: Order,
}

/// Shows all records, first block and count, in the tree's order. Adds the tree's blocks to `own`, where they must be new.
pub fn records(
    src: &mut (impl Read + Seek),
    sb: &Superblock,
    group: &Group,
    order: Order,
    log: Extent,
    own: &mut BTreeSet<u32>,
    mut look: impl FnMut(u64, u64) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let tree = Tree { sb, group, order };
    let (root, levels) = group.roots[order as usize];
    if !(1..=MOST_LEVELS).contains(&levels) {
        return Err(tree.doubt(&format!("claims {levels} levels")));
    }
    let mut blocks = vec![root];
    for level in (0..levels).rev() {
        let mut below = Vec::new();
        for (i, number) in blocks.iter().enumerate() {
            let left = if i == 0 { NONE } else { blocks[i - 1] };
            let right = blocks.get(i + 1).copied().unwrap_or(NONE);
            let bytes = tree.read(src, *number, log, own)?;
            tree.check(&bytes, *number, level, [left, right])?;
            let (header, count) = (tree.header_len(), usize::from(be16(&bytes, 6)));
            if level > 0 {
                let pointers = header + tree.most_pointers() * RECORD_LEN;
                below.extend((0..count).map(|i| be32(&bytes, pointers + i * POINTER_LEN)));
                if below.len() > MOST_BLOCKS {
                    return Err(tree.doubt(&format!("has more than {MOST_BLOCKS} blocks")));
                }
            } else {
                for at in (0..count).map(|i| header + i * RECORD_LEN) {
                    look(u64::from(be32(&bytes, at)), u64::from(be32(&bytes, at + 4)))?;
                }
            }
        }
        blocks = below;
    }
    Ok(())
}

impl Tree<'_> {
    fn doubt(&self, what: &str) -> Failure {
        let (name, number) = (self.order.name(), self.group.number);
        doubt(format!("the free-space tree {name} of group {number} {what}"))
    }

    fn read(
        &self,
        src: &mut (impl Read + Seek),
        number: u32,
        log: Extent,
        own: &mut BTreeSet<u32>,
    ) -> Result<Vec<u8>, Failure> {
        let at = self.group.start + u64::from(number) * self.sb.block_bytes;
        let inside = (self.sb.header_blocks()..self.group.blocks).contains(&u64::from(number))
            && !(log.start..log.end()).contains(&at);
        if !inside || !own.insert(number) {
            return Err(self.doubt(&format!("leads to block {number}")));
        }
        Ok(read(src, at, self.sb.block_bytes)?)
    }

    fn check(
        &self,
        bytes: &[u8],
        number: u32,
        level: u32,
        neighbours: [u32; 2],
    ) -> Result<(), Failure> {
        let count = usize::from(be16(bytes, 6));
        // Only a root has nothing in it: that of a group without free space.
        let alone = neighbours == [NONE; 2];
        let most = if level > 0 { self.most_pointers() } else { self.most_records() };
        let right = bytes.starts_with(self.order.magic(self.sb))
            && u32::from(be16(bytes, 4)) == level
            && [be32(bytes, 8), be32(bytes, 12)] == neighbours
            && count <= most
            && (count > 0 || (alone && level == 0));
        if !right {
            return Err(self.doubt(&format!("has a block {number} that is not of it")));
        }
        let Some(identity) = self.sb.identity else { return Ok(()) };
        if !is_sound(bytes, 52) {
            return Err(self.doubt(&format!("has a wrong checksum in block {number}")));
        }
        let place = self.group.start + u64::from(number) * self.sb.block_bytes;
        let right = be64(bytes, 16) == place / 512
            && bytes[32..48] == identity
            && u64::from(be32(bytes, 48)) == self.group.number;
        if right { Ok(()) } else { Err(self.doubt(&format!("has another one's block {number}"))) }
    }

    fn header_len(&self) -> usize {
        if self.sb.identity.is_some() { 56 } else { 16 }
    }

    fn room(&self) -> usize {
        usize::try_from(self.sb.block_bytes).expect("at most 64 KiB") - self.header_len()
    }

    fn most_records(&self) -> usize {
        self.room() / RECORD_LEN
    }

    fn most_pointers(&self) -> usize {
        self.room() / (RECORD_LEN + POINTER_LEN)
    }
}
