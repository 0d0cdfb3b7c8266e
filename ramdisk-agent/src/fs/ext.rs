//! ext2, ext3 and ext4: which blocks are in use, by the block bitmaps.
//!
//! Follows the kernel's `Documentation/filesystems/ext4/` (super.rst, group_descr.rst, bitmaps.rst, blockgroup.rst) and, for
//! groups whose bitmap was never written (`BLOCK_UNINIT`), `fs/ext4/balloc.c`. The map is checked against everything else that
//! the filesystem says: the checksums of superblock, descriptors and bitmaps where it has them, the free count of each group
//! against its bitmap and of the superblock against all groups, the padding of the last bitmap, that every superblock copy,
//! descriptor, bitmap and inode table is marked as used, and, where bitmaps have no checksum, every block of every inode. Any doubt
//! means raw. Where the journal needs recovery it is replayed in memory; the same checks must hold afterwards, but for the
//! superblock's free count, and what is used before or afterwards is kept. If the journal cannot be replayed here the filesystem is
//! reported as not clean.

mod bitmap;
mod descriptors;
mod inode;
mod inodes;
mod journal;
mod overlay;
mod owned;
mod superblock;

use std::io::{self, Read, Seek};

use crate::extents::{Extent, Extents, MAX_PIECES};
use crate::fs::bytes::read_at;
use crate::fs::failure::{Failure, doubt};
use crate::fs::{Clean, FsKind, Taken, VolumeMap};
use crate::probe::Found;
use bitmap::Bitmap;
use descriptors::Descriptors;
use inodes::Orphans;
use overlay::Overlay;
use superblock::{Descriptor, Superblock};

/// More groups than any filesystem that fits a disk of today; a bound on the work that a hostile superblock can cause.
const MAX_GROUPS: u64 = 1 << 24;

/// What is said of a filesystem whose journal was replayed in memory only.
const NOT_REPLAYED: &str =
    "it was not unmounted; the image has its journal as it is, which the first mount replays";

/// The map of an ext filesystem, or `None` if it is not one.
pub fn map(src: &mut (impl Read + Seek), len_bytes: u64) -> io::Result<Option<VolumeMap>> {
    let Some(sb) = superblock(src, len_bytes)? else { return Ok(None) };
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
        note: None,
        logical_volumes: Vec::new(),
    };
    let mut found = None;
    if sb.has_incompat(superblock::INCOMPAT_RECOVER) {
        match recovered(src, &sb, len_bytes) {
            Ok(used) => {
                map.clean = Clean::Clean;
                map.note = Some(NOT_REPLAYED.into());
                found = Some(used);
            }
            Err(Failure::Doubt(doubt)) => {
                map.clean =
                    Clean::NotClean { reason: format!("the journal needs recovery ({doubt})") };
            }
            Err(Failure::Read(error)) => return Err(error),
        }
    }
    let found = match found {
        Some(used) => Ok(used),
        None => by_bitmaps(src, &sb, len_bytes, &mut map.clean),
    };
    match found {
        Ok(used) => {
            map.used_bytes_claimed = map.fs_bytes - used.free_bytes;
            map.used = used.extents;
        }
        Err(Failure::Doubt(reason)) => map.take_whole(len_bytes, reason),
        Err(Failure::Read(error)) => return Err(error),
    }
    Ok(Some(map))
}

fn superblock(src: &mut (impl Read + Seek), len_bytes: u64) -> io::Result<Option<Superblock>> {
    let mut bytes = [0_u8; superblock::LEN];
    if len_bytes < superblock::OFFSET + superblock::LEN as u64 {
        return Ok(None);
    }
    read_at(src, superblock::OFFSET, &mut bytes)?;
    Ok(Superblock::parse(&bytes))
}

/// What is in use by the bitmaps as they are.
fn by_bitmaps(
    src: &mut (impl Read + Seek),
    sb: &Superblock,
    len_bytes: u64,
    clean: &mut Clean,
) -> Result<Used, Failure> {
    let used = used(src, sb, len_bytes, Claim::Exact)?;
    at_rest(src, sb, &used, clean)?;
    // Of one that is not clean no map is used.
    if *clean == Clean::Clean && sb.bitmap_seed().is_none() {
        inodes::check(src, sb, &used.extents, Orphans::None)?;
    }
    Ok(used)
}

/// A journal that needs no recovery must be empty, and lie in blocks that are used. One that cannot be found says nothing.
fn at_rest(
    src: &mut (impl Read + Seek),
    sb: &Superblock,
    used: &Used,
    clean: &mut Clean,
) -> Result<(), Failure> {
    if sb.has_incompat(superblock::INCOMPAT_RECOVER)
        || !sb.has_compat(superblock::COMPAT_HAS_JOURNAL)
    {
        return Ok(());
    }
    match journal::at_rest(src, sb) {
        Ok((_, own)) if !own.subtract(&used.extents).is_empty() => {
            Err(doubt("blocks of the journal are marked as free"))
        }
        Ok((true, _)) if *clean == Clean::Clean => {
            let reason = "the journal holds transactions, of which the superblock says nothing; it needs e2fsck";
            *clean = Clean::NotClean { reason: reason.into() };
            Ok(())
        }
        Ok(_) | Err(Failure::Doubt(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// What is in use in a filesystem that was not unmounted: by its bitmaps as they are; by those that a replay of the journal gives,
/// which must pass every check; and by those of a last transaction that is not whole. A doubt says why the journal cannot be replayed here.
fn recovered(
    src: &mut (impl Read + Seek),
    sb: &Superblock,
    len_bytes: u64,
) -> Result<Used, Failure> {
    sb.check(len_bytes).map_err(doubt)?;
    if sb.groups() > MAX_GROUPS || !sb.has_compat(superblock::COMPAT_HAS_JOURNAL) {
        return Err(doubt("it has no journal"));
    }
    if sb.has_compat(superblock::COMPAT_FAST_COMMIT) {
        return Err(doubt("it has fast commits"));
    }
    let replay = journal::replay(src, sb)?;
    let mut after = Overlay::new(src, &replay.blocks, sb.block_bytes);
    let replayed = superblock(&mut after, len_bytes)?;
    let replayed = replayed.ok_or_else(|| doubt("a replay destroys the superblock"))?;
    for state in [sb, &replayed] {
        if state.state & superblock::STATE_ERROR != 0 || state.state & superblock::STATE_VALID == 0
        {
            return Err(doubt("errors were found in it, or it was not clean before"));
        }
    }
    if !replayed.has_geometry_of(sb) {
        return Err(doubt("a replay changes the filesystem's size"));
    }
    // The superblock's count is brought up to date at an unmount only.
    let used = used(&mut after, &replayed, len_bytes, Claim::OfGroups)?;
    if !replay.own.subtract(&used.extents).is_empty() {
        return Err(doubt("blocks of the journal are marked as free"));
    }
    if sb.bitmap_seed().is_none() {
        inodes::check(&mut after, &replayed, &used.extents, Orphans::MayBe)?;
    }
    let before = marked(src, sb)?;
    let tail = marked(&mut Overlay::new(src, &replay.tail, sb.block_bytes), sb)?;
    let mut kept = used.extents.union(&before).union(&tail);
    kept.close_gaps(MAX_PIECES);
    // The last cluster may reach beyond the volume's end.
    let beyond = kept.subtract(&Extents::single(0, len_bytes));
    Ok(Used { extents: kept.subtract(&beyond), ..used })
}

/// What the bitmaps mark as used, right or wrong; a group that makes no sense is used.
fn marked(src: &mut (impl Read + Seek), sb: &Superblock) -> Result<Extents, Failure> {
    let mut marked = Extents::new();
    let mut bits = Bitmap::new(sb);
    let mut descriptors = Descriptors::default();
    for group in 0..sb.groups() {
        let clusters = sb.clusters_in_group(group);
        let base = sb.group_start(group) * sb.block_bytes;
        match Descriptor::parse(sb, group, descriptors.bytes(src, sb, group)?) {
            Ok(descriptor) if descriptor.block_uninit => {}
            Ok(descriptor) => {
                read_at(src, descriptor.block_bitmap * sb.block_bytes, bits.bytes_mut())?;
                for (start, len) in bits.runs(clusters) {
                    marked
                        .push_coarsely(base + start * sb.cluster_bytes(), len * sb.cluster_bytes());
                }
            }
            Err(_) => marked.push_coarsely(base, clusters * sb.cluster_bytes()),
        }
    }
    Ok(marked)
}

/// What the superblock says it is, and where its magic number is.
pub fn recognise(
    src: &mut (impl Read + Seek),
    len_bytes: u64,
) -> io::Result<Option<(Found, Extent)>> {
    let at = Extent { start: superblock::OFFSET + superblock::MAGIC_AT, len: 2 };
    Ok(superblock(src, len_bytes)?
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

/// The bytes in use.
struct Used {
    extents: Extents,
    /// How many bytes of the filesystem are free by the counts of its groups.
    free_bytes: u64,
}

/// Whether the superblock's free count is to be that of all groups.
#[derive(PartialEq, Eq)]
enum Claim {
    Exact,
    OfGroups,
}

/// The bytes in use, or why the bitmaps cannot be believed.
fn used(
    src: &mut (impl Read + Seek),
    sb: &Superblock,
    len_bytes: u64,
    claim: Claim,
) -> Result<Used, Failure> {
    sb.check(len_bytes).map_err(doubt)?;
    if sb.groups() > MAX_GROUPS {
        return Err(doubt(format!("it claims {} block groups", sb.groups())));
    }
    let mut used = Extents::new();
    // The boot block belongs to no group when blocks are 1 KiB.
    used.push(0, superblock::OFFSET);
    let mut metadata = Extents::new();
    if let Some(block) = sb.mmp_block() {
        metadata.insert(block * sb.block_bytes, sb.block_bytes);
    }
    // What copies of descriptors say of groups without a written bitmap.
    let mut by_copies = Extents::new();
    let mut free_clusters = 0_u64;
    let mut bits = Bitmap::new(sb);
    let mut descriptors = Descriptors::default();
    for group in 0..sb.groups() {
        let descriptor = descriptors.next(src, sb, group)?;
        add_metadata(sb, group, &descriptor, &mut metadata);
        if metadata.len() > MAX_PIECES {
            return Err(doubt(format!("its structures lie in more than {MAX_PIECES} pieces")));
        }
        if descriptor.block_uninit {
            bits.clear();
            bits.set_own_metadata(sb, group, &descriptor);
            // No bitmap contradicts a descriptor that points to the wrong place.
            if let Some(copy) = descriptors::copy(src, sb, group)? {
                add_metadata(sb, group, &copy, &mut by_copies);
            }
        } else {
            read_at(src, descriptor.block_bitmap * sb.block_bytes, bits.bytes_mut())?;
            bits.check(sb, group, &descriptor).map_err(doubt)?;
        }
        let clusters = sb.clusters_in_group(group);
        let free = clusters - bits.count_set(clusters);
        if free != descriptor.free_clusters {
            return Err(doubt(format!(
                "the bitmap of group {group} has {free} free clusters, its descriptor says {}",
                descriptor.free_clusters
            )));
        }
        free_clusters += free;
        let base = sb.group_start(group) * sb.block_bytes;
        for (start, len) in bits.runs(clusters) {
            used.push_coarsely(base + start * sb.cluster_bytes(), len * sb.cluster_bytes());
        }
    }
    let free_blocks = free_clusters * sb.cluster_blocks;
    if claim == Claim::Exact && free_blocks != sb.free_blocks {
        return Err(doubt(format!(
            "the groups have {free_blocks} free blocks, the superblock says {}",
            sb.free_blocks
        )));
    }
    if let Some(lost) = metadata.subtract(&used).iter().next() {
        return Err(doubt(format!(
            "the filesystem's own structures at byte {} are marked as free",
            lost.start
        )));
    }
    let mut used = used.union(&by_copies);
    used.close_gaps(MAX_PIECES);
    // What lies behind the filesystem is not its own; a cluster may reach beyond the last block.
    let fs_bytes = sb.blocks * sb.block_bytes;
    used.insert(fs_bytes, len_bytes - fs_bytes);
    let beyond = used.subtract(&Extents::single(0, len_bytes));
    // The last cluster may reach beyond the last block.
    let free_bytes = (free_blocks * sb.block_bytes).min(fs_bytes);
    Ok(Used { extents: used.subtract(&beyond), free_bytes })
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
