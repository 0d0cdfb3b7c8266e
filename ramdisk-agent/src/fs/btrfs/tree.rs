//! Nodes of B-trees, and walks through all items of a tree in order.

use std::io::{Read, Seek};

use super::chunks::Chunks;
use super::superblock::Superblock;
use crate::extents::Extent;
use crate::fs::bytes::{le32, le64, read};
use crate::fs::failure::{Failure, doubt};

const HEADER_LEN: usize = 101;
const ITEM_LEN: usize = 25;
const POINTER_LEN: usize = 33;
/// The most levels that a tree has (`BTRFS_MAX_LEVEL`).
const MOST_LEVELS: u8 = 8;

/// What items are ordered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub object: u64,
    pub kind: u8,
    pub offset: u64,
}

impl Key {
    pub const LEN: usize = 17;

    pub fn parse(bytes: &[u8]) -> Self {
        Self { object: le64(bytes, 0), kind: bytes[8], offset: le64(bytes, 9) }
    }
}

/// An item of a leaf.
pub struct Item<'a> {
    pub key: Key,
    pub bytes: &'a [u8],
}

/// Where a tree begins.
#[derive(Debug, Clone, Copy)]
pub struct Root {
    pub address: u64,
    pub level: u8,
    /// Of the transaction that wrote it.
    pub generation: u64,
}

/// Reads trees, and no more nodes than the device has room for.
pub struct Trees<'a> {
    sb: &'a Superblock,
    left: u64,
}

impl<'a> Trees<'a> {
    pub fn new(sb: &'a Superblock) -> Self {
        Self { sb, left: sb.device_bytes / sb.node_bytes }
    }

    /// Shows every item of the tree with this root, in order.
    pub fn walk(
        &mut self,
        src: &mut (impl Read + Seek),
        chunks: &Chunks,
        root: Root,
        mut look: impl FnMut(&Item<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if root.level >= MOST_LEVELS {
            return Err(doubt(format!("a tree claims to have {} levels", root.level)));
        }
        let mut last = None;
        let mut pending = vec![(root, None)];
        while let Some((at, first)) = pending.pop() {
            let node = self.node(src, chunks, at)?;
            let Root { address, level, .. } = at;
            let count = usize::try_from(le32(&node, 96)).unwrap_or(usize::MAX);
            let broken = || doubt(format!("the node at {address} is damaged"));
            let entry_len = if level == 0 { ITEM_LEN } else { POINTER_LEN };
            if count > (node.len() - HEADER_LEN) / entry_len {
                return Err(broken());
            }
            let entries = node[HEADER_LEN..].chunks_exact(entry_len).take(count);
            let keys: Vec<Key> = entries.clone().map(Key::parse).collect();
            // A node begins with the key that leads to it, and only an empty tree's root has nothing in it.
            let ordered = keys.windows(2).all(|pair| pair[0] < pair[1]);
            let begins = first.is_none_or(|first| keys.first() == Some(&first));
            if !ordered || !begins || (count == 0 && level > 0) {
                return Err(broken());
            }
            if level > 0 {
                let below = entries.zip(&keys);
                let below = below.map(|(entry, key)| {
                    let (address, generation) = (le64(entry, 17), le64(entry, 25));
                    (Root { address, level: level - 1, generation }, Some(*key))
                });
                let at = pending.len();
                pending.extend(below);
                pending[at..].reverse();
                continue;
            }
            for (entry, key) in entries.zip(keys) {
                if last.is_some_and(|last| last >= key) {
                    return Err(broken());
                }
                last = Some(key);
                let range =
                    [17, 21].map(|at| usize::try_from(le32(entry, at)).unwrap_or(usize::MAX));
                let end = range[0].checked_add(range[1]);
                let bytes = end.and_then(|end| node[HEADER_LEN..].get(range[0]..end));
                look(&Item { key, bytes: bytes.ok_or_else(broken)? })?;
            }
        }
        Ok(())
    }

    /// A node whose header is what it should be. A node that was to be replaced at its place, by a write that never came to the
    /// device, is in order but for its generation.
    fn node(
        &mut self,
        src: &mut (impl Read + Seek),
        chunks: &Chunks,
        Root { address, level, generation }: Root,
    ) -> Result<Vec<u8>, Failure> {
        self.left = self.left.checked_sub(1).ok_or_else(|| doubt("its trees have no end"))?;
        let len = self.sb.node_bytes;
        let mut places = Vec::new();
        if address.checked_add(len).is_none() {
            return Err(doubt(format!("a tree leads to address {address}")));
        }
        chunks.places(Extent { start: address, len }, &mut places)?;
        // The second copy is for a first one that cannot be believed.
        let mut wrong = doubt(format!("the node at {address} crosses chunks"));
        for place in places.iter().filter(|place| place.len == len) {
            let bytes = read(src, place.start, len)?;
            let right = self.sb.checksum.is_right(&bytes)
                && bytes[32..48] == self.sb.identity
                && le64(&bytes, 48) == address
                && le64(&bytes, 80) == generation
                && bytes[100] == level;
            if right {
                return Ok(bytes);
            }
            wrong = doubt(format!("the node at {address} is damaged or another one's"));
        }
        Err(wrong)
    }
}
