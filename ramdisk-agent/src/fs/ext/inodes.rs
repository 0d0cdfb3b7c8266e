//! Every block that an inode names must be marked as used: what checks block bitmaps that have no checksum.
//!
//! Follows the kernel's `Documentation/filesystems/ext4/` (inodes.rst, bitmaps.rst) and, for which inodes are in use, `e2fsck/pass1.c`
//! and `pass5.c`: one is when it has links, and the inode bitmap says the same. Of a deleted one the table keeps what it was, without links or
//! with a time of deletion. Tables are read in pieces and only where the bitmap has an inode; what lies behind those that were ever
//! used was perhaps never written.

use std::io::{Read, Seek};

use super::descriptors::Descriptors;
use super::owned::Owned;
use super::superblock::{Descriptor, Superblock};
use crate::extents::Extents;
use crate::fs::bytes::{count_set, le16, le32, read, read_at};
use crate::fs::failure::{Failure, doubt};

/// Inode tables are read in pieces of this size.
const READ_LEN: u64 = 256 << 10;
/// The inode whose blocks are the bad ones; it has neither type nor links.
pub const BAD_BLOCKS: u64 = 1;

/// Whether inodes without links may be in use: files that were deleted while open, in a filesystem that was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orphans {
    /// There are none.
    None,
    /// There may be some.
    MayBe,
}

/// Looks at all inodes in use. A doubt names the first that has a block outside of `used`, or that its bitmap denies.
pub fn check(
    src: &mut (impl Read + Seek),
    sb: &Superblock,
    used: &Extents,
    orphans: Orphans,
) -> Result<(), Failure> {
    // Tables that lie on one another would be read again and again.
    if sb.groups() * sb.inode_table_blocks() > sb.blocks {
        return Err(doubt("it claims more inodes than there is room for"));
    }
    let mut owned = Owned::new(sb, used);
    let mut descriptors = Descriptors::default();
    let mut table = Vec::new();
    for group in 0..sb.groups() {
        let descriptor = descriptors.next(src, sb, group)?;
        if descriptor.inode_uninit {
            continue;
        }
        let unused = descriptor.unused_inodes;
        let ever_used = sb.inodes_per_group.checked_sub(unused).ok_or_else(|| {
            doubt(format!("group {group} has {unused} unused inodes, more than there are"))
        })?;
        let bitmap =
            read(src, descriptor.inode_bitmap * sb.block_bytes, sb.inodes_per_group.div_ceil(8))?;
        check_count(sb, group, &descriptor, &bitmap)?;
        let per_piece = READ_LEN / sb.inode_bytes;
        let mut first = 0;
        while first < sb.inodes_per_group {
            let count = per_piece.min(sb.inodes_per_group - first);
            if (first..first + count).any(|index| is_set(&bitmap, index)) {
                let len = usize::try_from(count * sb.inode_bytes).expect("at most a piece");
                table.resize(len, 0);
                let start = descriptor.inode_table * sb.block_bytes + first * sb.inode_bytes;
                read_at(src, start, &mut table)?;
                let inode_len = usize::try_from(sb.inode_bytes).expect("at most a block");
                for (index, inode) in (first..).zip(table.chunks_exact(inode_len)) {
                    let number = group * sb.inodes_per_group + index + 1;
                    let state =
                        State { marked: is_set(&bitmap, index), ever_used: index < ever_used };
                    if is_in_use(sb, number, inode, state, orphans)? {
                        owned.add(src, number, inode)?;
                    }
                }
            }
            first += count;
        }
    }
    owned.finish(src)
}

/// What group and bitmap say of an inode.
struct State {
    marked: bool,
    ever_used: bool,
}

fn is_in_use(
    sb: &Superblock,
    number: u64,
    inode: &[u8],
    state: State,
    orphans: Orphans,
) -> Result<bool, Failure> {
    let (links, deleted) = (le16(inode, 0x1A), le32(inode, 0x14));
    if !state.marked {
        // The first versions of ext2 left the links of deleted files as they were.
        if state.ever_used && links != 0 && deleted == 0 {
            return Err(doubt(format!("inode {number} is in use, and marked as free")));
        }
        return Ok(false);
    }
    let ordinary = number >= sb.first_inode;
    if links == 0 && ordinary && orphans == Orphans::None {
        return Err(doubt(format!("inode {number} is marked as used, and is not")));
    }
    Ok(links != 0 || ordinary || number == BAD_BLOCKS)
}

/// The bitmap against the descriptor's count.
fn check_count(
    sb: &Superblock,
    group: u64,
    descriptor: &Descriptor,
    bitmap: &[u8],
) -> Result<(), Failure> {
    let free = sb.inodes_per_group - count_set(bitmap, sb.inodes_per_group);
    if free == descriptor.free_inodes {
        return Ok(());
    }
    Err(doubt(format!(
        "the bitmap of group {group} has {free} free inodes, its descriptor says {}",
        descriptor.free_inodes
    )))
}

fn is_set(bitmap: &[u8], index: u64) -> bool {
    let byte = usize::try_from(index / 8).expect("within the bitmap");
    bitmap[byte] >> (index % 8) & 1 == 1
}
