//! The table of group descriptors, read in pieces: one contiguous table, or a block in each meta group.

use std::io::{self, Read, Seek};

use super::superblock::{Descriptor, Superblock};
use crate::fs::bytes::{read, read_at};
use crate::fs::failure::{Failure, doubt};

/// Descriptors are read in pieces of this size.
const READ_LEN: u64 = 1 << 20;

/// Reads descriptors in the order of their groups, from the first on.
#[derive(Debug, Default)]
pub struct Descriptors {
    piece: Vec<u8>,
}

impl Descriptors {
    /// The bytes of the next group's descriptor.
    pub fn bytes(
        &mut self,
        src: &mut (impl Read + Seek),
        sb: &Superblock,
        group: u64,
    ) -> Result<&[u8], Failure> {
        let per_block = sb.block_bytes / sb.descriptor_bytes;
        // Every piece starts at a block.
        let per_piece = per_block * (READ_LEN / sb.block_bytes).max(1);
        let index = group % per_piece;
        if index == 0 {
            let count = per_piece.min(sb.groups() - group);
            self.fill(src, sb, group / per_block, count.div_ceil(per_block))?;
        }
        let start = usize::try_from(index * sb.descriptor_bytes).expect("within the piece");
        let len = usize::try_from(sb.descriptor_bytes).expect("at most a block");
        Ok(&self.piece[start..start + len])
    }

    /// The next group's descriptor, which must be sound.
    pub fn next(
        &mut self,
        src: &mut (impl Read + Seek),
        sb: &Superblock,
        group: u64,
    ) -> Result<Descriptor, Failure> {
        Descriptor::parse(sb, group, self.bytes(src, sb, group)?).map_err(doubt)
    }

    /// Reads `count` blocks of descriptors from the `first`.
    fn fill(
        &mut self,
        src: &mut (impl Read + Seek),
        sb: &Superblock,
        first: u64,
        count: u64,
    ) -> Result<(), Failure> {
        let len = usize::try_from(count * sb.block_bytes).expect("at most a few MiB");
        self.piece.resize(len, 0);
        let block_len = usize::try_from(sb.block_bytes).expect("at most 64 KiB");
        for (index, chunk) in (first..).zip(self.piece.chunks_mut(block_len)) {
            let at = sb.descriptor_block(index);
            if at >= sb.blocks {
                return Err(doubt(format!("descriptor block {index} lies outside the filesystem")));
            }
            read_at(src, at * sb.block_bytes, chunk)?;
        }
        Ok(())
    }
}

/// The copy of a group's descriptor, if there is one that can be read. Kernels do not keep the counts in it up to date, but where
/// bitmaps and inode table are does not change.
pub fn copy(
    src: &mut (impl Read + Seek),
    sb: &Superblock,
    group: u64,
) -> io::Result<Option<Descriptor>> {
    let per_block = sb.block_bytes / sb.descriptor_bytes;
    let block = sb.descriptor_block_copy(group / per_block).filter(|block| *block < sb.blocks);
    let Some(block) = block else { return Ok(None) };
    let at = block * sb.block_bytes + group % per_block * sb.descriptor_bytes;
    let bytes = read(src, at, sb.descriptor_bytes)?;
    Ok(Descriptor::parse(sb, group, &bytes).ok())
}
