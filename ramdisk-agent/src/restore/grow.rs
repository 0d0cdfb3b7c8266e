//! Filesystems grow into the space that their partitions have got, by the kernel's own online resize.
//!
//! This happens after everything was read back and before the commit: a filesystem that does not grow fails the restore while the
//! disk is still plainly not bootable. Only a volume without a partition table grows behind the commit, as there is nothing to mount
//! before. Others than ext, XFS and btrfs are not grown: their owners' tools can.

use std::fs::File;
use std::io;

use agent_api::ErrorKind;
use rustix::thread::CapabilitySet;
use serde::Serialize;

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::fs::FsKind;
use crate::mounted::{self, Access, Mounted};
use crate::sys::resize;
use crate::words::size;

/// A filesystem that is to fill its partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Growth {
    /// The partition's number; `None`: the whole target.
    pub number: Option<u32>,
    /// What it is.
    #[serde(serialize_with = "as_text")]
    pub kind: FsKind,
    /// Where it is on the target.
    pub start_bytes: u64,
    /// The space that it is to fill.
    pub len_bytes: u64,
}

pub fn as_text<S: serde::Serializer>(
    kind: &FsKind,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(kind)
}

/// The kernel resizes no btrfs to less (`SZ_256M` in `fs/btrfs/ioctl.c`).
const BTRFS_MIN_BYTES: u64 = 256 << 20;

/// Whether there is a kernel that can grow it to that size.
pub fn can_grow(kind: FsKind, len_bytes: u64) -> bool {
    match kind {
        FsKind::Ext2 | FsKind::Ext3 | FsKind::Ext4 | FsKind::Xfs => true,
        FsKind::Btrfs => len_bytes >= BTRFS_MIN_BYTES,
        _ => false,
    }
}

/// Refuses what this process could not grow, before anything depends on it.
pub fn check(kind: FsKind) -> Result<()> {
    mounted::check(kind)?;
    let is_ext = matches!(kind, FsKind::Ext2 | FsKind::Ext3 | FsKind::Ext4);
    let may = rustix::thread::capabilities(None)
        .is_ok_and(|own| own.effective.contains(CapabilitySet::SYS_RESOURCE));
    if is_ext && !may {
        return Err(Error::refused(format!(
            "the kernel grows {kind} only for processes with CAP_SYS_RESOURCE, which a container's root lacks"
        )));
    }
    Ok(())
}

/// Where a btrfs's superblock has the number of its device: `dev_item.devid` at 64 KiB (`btrfs/btrfs_tree.h`).
const BTRFS_DEVICE_ID: u64 = (64 << 10) + 0xC9;
/// And the size of all its devices.
const BTRFS_TOTAL_BYTES: u64 = (64 << 10) + 0x70;
/// Where an ext's superblock has the number of its blocks, low and high half, their size, and the features (`fs/ext4/ext4.h`).
const EXT_BLOCKS: [u64; 2] = [1024 + 4, 1024 + 0x150];
const EXT_LOG_BLOCK_BYTES: u64 = 1024 + 24;
const EXT_INCOMPAT: u64 = 1024 + 0x60;
const EXT_64BIT: u32 = 0x80;

/// Grows a filesystem, unmounts it and flushes the disk. What came of it, for people.
pub fn grow(target: &Disk, growth: &Growth) -> Result<String> {
    let Growth { kind, start_bytes, len_bytes, .. } = *growth;
    let name = match growth.number {
        None => format!("the {kind}"),
        Some(number) => format!("the {kind} of partition {number}"),
    };
    let volume = Volume { target, kind, start: start_bytes };
    let before = volume.size()?;
    let mounted = Mounted::new(target, start_bytes, len_bytes, kind, Access::Write)
        .map_err(|e| e.context(format!("growing {name}")))?;
    let root = mounted.open_root()?;
    let resized = match kind {
        FsKind::Xfs => grow_xfs(&root, len_bytes),
        FsKind::Btrfs => resize::btrfs(&root, volume.u64_at(BTRFS_DEVICE_ID)?),
        _ => resize::ext4(&root, len_bytes / volume.ext_block_bytes()?),
    };
    resized.map_err(|e| {
        Error::new(
            ErrorKind::Disk,
            format!(
                "growing {name} to {}: the kernel would not do it; restore without --grow, and grow it in the restored system",
                size(len_bytes)
            ),
        )
        .because(e)
    })?;
    drop(root);
    mounted.close()?;
    target.flush()?;
    target.drop_cache();
    let after = volume.size()?;
    if after < before || after > len_bytes {
        return Err(Error::new(
            ErrorKind::Disk,
            format!("{name} has {after} bytes after it was grown from {before} to {len_bytes}"),
        ));
    }
    Ok(format!("{name} was grown from {} to {}", size(before), size(after)))
}

fn grow_xfs(root: &File, len_bytes: u64) -> io::Result<()> {
    let geometry = resize::xfs_geometry(root)?;
    let blocks = len_bytes / u64::from(geometry.block_bytes.max(512));
    if blocks <= geometry.data_blocks {
        return Ok(());
    }
    resize::xfs(root, blocks, geometry.max_inode_percent)
}

/// What a superblock on the target says.
struct Volume<'a> {
    target: &'a Disk,
    kind: FsKind,
    start: u64,
}

impl Volume<'_> {
    fn size(&self) -> Result<u64> {
        match self.kind {
            FsKind::Xfs => {
                // `sb_blocksize` and `sb_dblocks`, big-endian.
                let blocks = u64::from_be_bytes(self.field(8)?);
                Ok(blocks.saturating_mul(u32::from_be_bytes(self.field(4)?).into()))
            }
            FsKind::Btrfs => self.u64_at(BTRFS_TOTAL_BYTES),
            _ => {
                let mut blocks = u64::from(self.u32_at(EXT_BLOCKS[0])?);
                if self.u32_at(EXT_INCOMPAT)? & EXT_64BIT != 0 {
                    blocks |= u64::from(self.u32_at(EXT_BLOCKS[1])?) << 32;
                }
                Ok(blocks.saturating_mul(self.ext_block_bytes()?))
            }
        }
    }

    fn ext_block_bytes(&self) -> Result<u64> {
        // At most 64 KiB.
        Ok(1024 << self.u32_at(EXT_LOG_BLOCK_BYTES)?.min(6))
    }

    fn u32_at(&self, at: u64) -> Result<u32> {
        self.field(at).map(u32::from_le_bytes)
    }

    fn u64_at(&self, at: u64) -> Result<u64> {
        self.field(at).map(u64::from_le_bytes)
    }

    fn field<const N: usize>(&self, at: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.target.read_exact_at(&mut bytes, self.start + at)?;
        Ok(bytes)
    }
}
