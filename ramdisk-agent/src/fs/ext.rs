//! ext2, ext3 and ext4: which blocks are in use, by the block bitmaps.
//!
//! Follows the kernel's `Documentation/filesystems/ext4/` (super.rst, group_descr.rst, bitmaps.rst, blockgroup.rst) and, for
//! groups whose bitmap was never written (`BLOCK_UNINIT`), `fs/ext4/balloc.c`. The map is checked against everything else that
//! the filesystem says: the checksums of superblock, descriptors and bitmaps where it has them, the free count of each group
//! against its bitmap and of the superblock against all groups, the padding of the last bitmap, and that every superblock copy,
//! descriptor, bitmap and inode table is marked as used. Any doubt means raw. The journal is not replayed here: a filesystem
//! that needs it is reported as not clean.

mod bitmap;
mod superblock;

use std::io::{self, Read, Seek};

use crate::extents::{Extent, Extents};
use crate::fs::bytes::read_at;
use crate::fs::{Clean, FsKind, Taken, VolumeMap};
use crate::probe::Found;
use bitmap::Bitmap;
use superblock::{Descriptor, Superblock};

/// Descriptors are read in pieces of this size.
const DESCRIPTOR_READ_LEN: u64 = 1 << 20;
/// More groups than any filesystem that fits a disk of today; a bound on the work that a hostile superblock can cause.
const MAX_GROUPS: u64 = 1 << 24;

/// The map of an ext filesystem, or `None` if it is not one.
pub fn map(src: &mut (impl Read + Seek), len_bytes: u64) -> io::Result<Option<VolumeMap>> {
    let mut bytes = [0_u8; superblock::LEN];
    if len_bytes < superblock::OFFSET + superblock::LEN as u64 {
        return Ok(None);
    }
    read_at(src, superblock::OFFSET, &mut bytes)?;
    let Some(sb) = Superblock::parse(&bytes) else { return Ok(None) };
    let mut map = VolumeMap {
        kind: sb.kind(),
        uuid: sb.uuid(),
        label: sb.label(),
        block_bytes: u32::try_from(sb.block_bytes).unwrap_or(0),
        fs_bytes: sb.blocks.saturating_mul(sb.block_bytes),
        used: Extents::new(),
        used_bytes_claimed: 0,
        taken: Taken::Map,
        clean: clean(&sb),
        logical_volumes: Vec::new(),
    };
    match used(src, &sb, len_bytes)? {
        Ok(used) => {
            map.used_bytes_claimed = (sb.blocks - sb.free_blocks) * sb.block_bytes;
            map.used = used;
        }
        Err(reason) => {
            map.used = Extents::single(0, len_bytes);
            map.used_bytes_claimed = len_bytes;
            map.taken = Taken::Raw { reason };
        }
    }
    Ok(Some(map))
}

/// What the superblock says it is, and where its magic number is.
pub fn recognise(
    src: &mut (impl Read + Seek),
    len_bytes: u64,
) -> io::Result<Option<(Found, Extent)>> {
    let mut bytes = [0_u8; superblock::LEN];
    if len_bytes < superblock::OFFSET + superblock::LEN as u64 {
        return Ok(None);
    }
    read_at(src, superblock::OFFSET, &mut bytes)?;
    let at = Extent { start: superblock::OFFSET + superblock::MAGIC_AT, len: 2 };
    Ok(Superblock::parse(&bytes)
        .map(|sb| (Found { kind: sb.kind(), uuid: sb.uuid(), label: sb.label() }, at)))
}

fn clean(sb: &Superblock) -> Clean {
    let reason = if sb.has_incompat(superblock::INCOMPAT_RECOVER) {
        "the journal needs recovery"
    } else if sb.state & superblock::STATE_ERROR != 0 {
        "errors were found in it; it needs e2fsck"
    } else if sb.state & superblock::STATE_VALID == 0 {
        "it was not unmounted"
    } else if sb.last_orphan != 0 || sb.has_ro_compat(superblock::RO_COMPAT_ORPHAN_PRESENT) {
        "deleted files wait to be cleaned up"
    } else {
        return Clean::Clean;
    };
    Clean::NotClean { reason: reason.into() }
}

type Doubt = String;

/// The bytes in use, or why the bitmaps cannot be believed.
fn used(
    src: &mut (impl Read + Seek),
    sb: &Superblock,
    len_bytes: u64,
) -> io::Result<Result<Extents, Doubt>> {
    if let Err(doubt) = sb.check(len_bytes) {
        return Ok(Err(doubt));
    }
    if sb.groups() > MAX_GROUPS {
        return Ok(Err(format!("it claims {} block groups", sb.groups())));
    }
    let mut used = Extents::new();
    // The boot block belongs to no group when blocks are 1 KiB.
    used.push(0, superblock::OFFSET);
    let mut metadata = Extents::new();
    let mut free_clusters = 0_u64;
    let mut bits = Bitmap::new(sb);
    let mut table = Vec::new();
    for group in 0..sb.groups() {
        let index = group % sb.descriptors_per_read();
        if index == 0 {
            let count = sb.descriptors_per_read().min(sb.groups() - group);
            if let Err(doubt) = read_descriptors(src, sb, group, count, &mut table)? {
                return Ok(Err(doubt));
            }
        }
        let descriptor = match Descriptor::parse(sb, group, descriptor_bytes(sb, &table, index)) {
            Ok(descriptor) => descriptor,
            Err(doubt) => return Ok(Err(doubt)),
        };
        add_metadata(sb, group, &descriptor, &mut metadata);
        if descriptor.block_uninit {
            bits.clear();
            bits.set_own_metadata(sb, group, &descriptor);
        } else {
            read_at(src, descriptor.block_bitmap * sb.block_bytes, bits.bytes_mut())?;
            if let Err(doubt) = bits.check(sb, group, &descriptor) {
                return Ok(Err(doubt));
            }
        }
        let clusters = sb.clusters_in_group(group);
        let free = clusters - bits.count_set(clusters);
        if free != descriptor.free_clusters {
            return Ok(Err(format!(
                "the bitmap of group {group} has {free} free clusters, its descriptor says {}",
                descriptor.free_clusters
            )));
        }
        free_clusters += free;
        let base = sb.group_start(group) * sb.block_bytes;
        for (start, len) in bits.runs(clusters) {
            used.push(base + start * sb.cluster_bytes(), len * sb.cluster_bytes());
        }
    }
    if free_clusters * sb.cluster_blocks != sb.free_blocks {
        return Ok(Err(format!(
            "the groups have {} free blocks, the superblock says {}",
            free_clusters * sb.cluster_blocks,
            sb.free_blocks
        )));
    }
    if let Some(lost) = metadata.subtract(&used).iter().next() {
        return Ok(Err(format!(
            "the filesystem's own structures at byte {} are marked as free",
            lost.start
        )));
    }
    // What lies behind the filesystem is not its own; a cluster may reach beyond the last block.
    let fs_bytes = sb.blocks * sb.block_bytes;
    used.insert(fs_bytes, len_bytes - fs_bytes);
    let beyond = used.subtract(&Extents::single(0, len_bytes));
    Ok(Ok(used.subtract(&beyond)))
}

/// Reads `count` descriptors from `group` on: one contiguous table, or a block in each meta group.
fn read_descriptors(
    src: &mut (impl Read + Seek),
    sb: &Superblock,
    group: u64,
    count: u64,
    table: &mut Vec<u8>,
) -> io::Result<Result<(), Doubt>> {
    let per_block = sb.block_bytes / sb.descriptor_bytes;
    let first = group / per_block;
    let blocks = (group + count).div_ceil(per_block) - first;
    table.resize(usize::try_from(blocks * sb.block_bytes).expect("at most a few MiB"), 0);
    let block_len = usize::try_from(sb.block_bytes).expect("at most 64 KiB");
    for (i, chunk) in (first..).zip(table.chunks_mut(block_len)) {
        let at = sb.descriptor_block(i);
        if at >= sb.blocks {
            return Ok(Err(format!("descriptor block {i} lies outside the filesystem")));
        }
        read_at(src, at * sb.block_bytes, chunk)?;
    }
    Ok(Ok(()))
}

fn descriptor_bytes<'a>(sb: &Superblock, table: &'a [u8], index: u64) -> &'a [u8] {
    let start = usize::try_from(index * sb.descriptor_bytes).expect("within the table");
    &table[start..start + usize::try_from(sb.descriptor_bytes).expect("at most a block")]
}

/// The blocks that a group's superblock copy, descriptor copies, bitmaps and inode table take.
fn add_metadata(sb: &Superblock, group: u64, descriptor: &Descriptor, metadata: &mut Extents) {
    let mut add =
        |block: u64, count: u64| metadata.insert(block * sb.block_bytes, count * sb.block_bytes);
    add(sb.group_start(group), sb.base_metadata_blocks(group));
    add(descriptor.block_bitmap, 1);
    add(descriptor.inode_bitmap, 1);
    add(descriptor.inode_table, sb.inode_table_blocks());
}

impl Superblock {
    fn descriptors_per_read(&self) -> u64 {
        // A multiple of the descriptors in a block, so that every read starts at a block.
        let per_block = self.block_bytes / self.descriptor_bytes;
        per_block * (DESCRIPTOR_READ_LEN / self.block_bytes).max(1)
    }

    fn kind(&self) -> FsKind {
        let ext4 = self.has_incompat(superblock::INCOMPAT_EXT4)
            || self.has_ro_compat(superblock::RO_COMPAT_EXT4);
        match (ext4, self.has_compat(superblock::COMPAT_HAS_JOURNAL)) {
            (true, _) => FsKind::Ext4,
            (false, true) => FsKind::Ext3,
            (false, false) => FsKind::Ext2,
        }
    }
}
