//! Whether a volume works on a disk whose logical sectors have another size than those of the disk that it was made on.
//!
//! Linux sets a device's block size to the filesystem's own and refuses one that is smaller than the device's sectors
//! (`set_blocksize` in `block/bdev.c`), so the smallest unit that a filesystem is read by decides: ext's blocks, btrfs's sectors,
//! both kinds of sectors of XFS (`xfs_setup_devices`, `xlog_alloc_log`), a page of swap. Firmware and Windows want the FAT's, NTFS's and
//! exFAT's sectors to be the disk's. A FAT is made to fit where only its boot sectors have to change ([`fat::for_sectors`]). A
//! linear LVM2 volume counts in units of 512 bytes everywhere; it works where its extents lie on whole sectors and each logical volume
//! works. What cannot be looked into (LUKS, BitLocker) and what is not known is refused: nobody could say that it works.

use std::io::{self, Read, Seek};

use super::bytes::{be16, le16, le32, read};
use super::lvm2::Mapped;
use super::{Clean, FsKind, Taken, fat, map_volume, swap};

/// Where XFS's superblock has its version, and the sizes of its sectors and of its log's; the bit of the version that says that the
/// latter counts (*XFS Algorithms & Data Structures*, "Superblocks").
const XFS_VERSION: usize = 100;
const XFS_SECTOR: usize = 102;
const XFS_LOG_SECTOR: usize = 194;
const XFS_VERSION_SECTOR: u16 = 0x0800;
/// Where ext's superblock has the size of its blocks, as a power of two above 1024 (`fs/ext4/ext4.h`).
const EXT_LOG_BLOCK: u64 = 1024 + 24;
/// Where btrfs's superblock has the size of its sectors (`btrfs/btrfs_tree.h`).
const BTRFS_SECTOR: u64 = (64 << 10) + 144;

/// What becomes of a volume that works on sectors of another size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fits {
    /// It works as it is.
    AsItIs,
    /// It works with these bytes at its start in place of its own.
    WithHead(Vec<u8>),
}

/// Whether a volume of that kind works on sectors of `sector` bytes; or why not, and what to do, in a phrase.
pub fn fits(
    src: &mut (impl Read + Seek),
    len_bytes: u64,
    kind: FsKind,
    sector: u32,
) -> io::Result<Result<Fits, String>> {
    if kind == FsKind::Lvm2 {
        return lvm2(src, len_bytes, sector);
    }
    single(src, len_bytes, kind, sector)
}

fn single(
    src: &mut (impl Read + Seek),
    len_bytes: u64,
    kind: FsKind,
    sector: u32,
) -> io::Result<Result<Fits, String>> {
    let least = |own: u32, what: &str, cure: &str| {
        if own >= sector {
            return Ok(Fits::AsItIs);
        }
        Err(format!(
            "its {what} have {own} bytes, and what is smaller than a disk's sectors cannot be mounted; make the template's with {cure}"
        ))
    };
    Ok(match kind {
        FsKind::Ext2 | FsKind::Ext3 | FsKind::Ext4 => {
            let shift = le32(&read(src, EXT_LOG_BLOCK, 4)?, 0);
            least(1024 << shift.min(6), "blocks", "mke2fs -b 4096")
        }
        FsKind::Xfs => {
            let head = read(src, 0, 512)?;
            let log = match be16(&head, XFS_VERSION) & XFS_VERSION_SECTOR {
                0 => 512,
                _ => be16(&head, XFS_LOG_SECTOR).max(512),
            };
            let own = be16(&head, XFS_SECTOR).min(log);
            least(u32::from(own), "sectors", "mkfs.xfs -s size=4096")
        }
        FsKind::Btrfs => {
            least(le32(&read(src, BTRFS_SECTOR, 4)?, 0), "sectors", "mkfs.btrfs -s 4096")
        }
        FsKind::Swap => match swap::map(src, len_bytes)? {
            Some(map) if map.clean == Clean::Clean => {
                least(map.block_bytes, "pages", "mkswap -p 4096")
            }
            _ => Err("a system is hibernated in it: shut that down".into()),
        },
        FsKind::Fat12 | FsKind::Fat16 | FsKind::Fat32 => {
            return fat::for_sectors(src, len_bytes, sector);
        }
        FsKind::Ntfs => same(u32::from(le16(&read(src, 0, 512)?, 11)), sector),
        FsKind::Exfat => {
            let shift = read(src, 0, 512)?[108];
            same(1_u32.checked_shl(shift.into()).unwrap_or(0), sector)
        }
        FsKind::Luks | FsKind::BitLocker => Err(
            "what is encrypted cannot be looked into, and may need sectors of the size that it was made on; encrypt it anew there"
                .into(),
        ),
        _ => Err(format!("whether it works there is not known; {ANEW}")),
    })
}

const ANEW: &str = "make it anew on the target, and copy its files";

fn same(own: u32, sector: u32) -> Result<Fits, String> {
    if own == sector {
        return Ok(Fits::AsItIs);
    }
    Err(format!(
        "its boot sector counts in sectors of {own} bytes, and Windows and firmware want the disk's; {ANEW}"
    ))
}

fn lvm2(
    src: &mut (impl Read + Seek),
    len_bytes: u64,
    sector: u32,
) -> io::Result<Result<Fits, String>> {
    let map = map_volume(src, len_bytes)?;
    if let Taken::Raw { reason } = &map.taken {
        return Ok(Err(format!("what is in it cannot be looked at: {reason}")));
    }
    for volume in &map.logical_volumes {
        let size = u64::from(sector);
        let odd = |n: u64| !n.is_multiple_of(size);
        if volume.pieces.iter().any(|piece| odd(piece.start) || odd(piece.len)) {
            return Ok(Err(format!("{} does not lie on whole sectors", volume.name)));
        }
        let mut inside = Mapped::new(src, &volume.pieces);
        let len = inside.len_bytes();
        match single(&mut inside, len, volume.map.kind, sector)? {
            Ok(Fits::AsItIs) => {}
            Ok(Fits::WithHead(_)) => {
                let kind = volume.map.kind;
                return Ok(Err(format!(
                    "{}: a {kind} cannot be changed to fit there",
                    volume.name
                )));
            }
            Err(why) => {
                return Ok(Err(format!("{} ({}): {why}", volume.name, volume.map.kind)));
            }
        }
    }
    Ok(Ok(Fits::AsItIs))
}
