//! Which blocks of a volume are in use, by what its filesystem says.
//!
//! [`map_volume`] looks at the bytes, names what it finds and gives a map of used bytes, or takes the volume *raw*, every byte,
//! with the reason. A map is never trusted blindly: each filesystem's module checks the map against something else that the
//! filesystem says, and a map that fails is not used. A byte wrongly kept costs a little space; a byte wrongly dropped costs a
//! customer. All of it is pure over `Read + Seek`, allocates nothing from an unchecked size, and writes nothing.

mod btrfs;
pub(crate) mod bytes;
mod exfat;
mod ext;
mod failure;
pub(crate) mod fat;
mod lvm2;
mod ntfs;
mod sectors;
mod swap;
mod tally;
mod xfs;

pub(crate) use lvm2::{Backup as Lvm2Backup, Linear, Mapped, Place as Lvm2Place, logical_volumes};
pub(crate) use sectors::{Fits, fits as fits_sectors};
pub(crate) use swap::{HEAD_LEN as SWAP_HEAD_LEN, header_for as swap_header};

use std::fmt;
use std::io::{self, Read, Seek};

use crate::extents::{Extent, Extents};
use crate::probe::{self, Found};

/// What a volume holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FsKind {
    /// ext2
    Ext2,
    /// ext3
    Ext3,
    /// ext4
    Ext4,
    /// FAT with 12-bit entries
    Fat12,
    /// FAT with 16-bit entries
    Fat16,
    /// FAT with 32-bit entries
    Fat32,
    /// Linux swap
    Swap,
    /// NTFS
    Ntfs,
    /// exFAT
    Exfat,
    /// XFS
    Xfs,
    /// btrfs
    Btrfs,
    /// LUKS 1 or 2
    Luks,
    /// LVM2 physical volume
    Lvm2,
    /// Member of a Linux software RAID
    MdRaid,
    /// BitLocker
    BitLocker,
    /// ISO 9660
    Iso9660,
    /// ZFS
    Zfs,
    /// Nothing that is known
    Unknown,
}

impl fmt::Display for FsKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ext2 => "ext2",
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
            Self::Fat12 => "fat12",
            Self::Fat16 => "fat16",
            Self::Fat32 => "fat32",
            Self::Swap => "swap",
            Self::Ntfs => "ntfs",
            Self::Exfat => "exfat",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Luks => "luks",
            Self::Lvm2 => "lvm2",
            Self::MdRaid => "md",
            Self::BitLocker => "bitlocker",
            Self::Iso9660 => "iso9660",
            Self::Zfs => "zfs",
            Self::Unknown => "unknown",
        })
    }
}

/// How a volume is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// By the map of used bytes.
    Map,
    /// Every byte.
    Raw {
        /// Why.
        reason: String,
    },
}

/// Whether the filesystem was shut down cleanly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clean {
    /// It was.
    Clean,
    /// It was not.
    NotClean {
        /// What says so: `the journal needs recovery`.
        reason: String,
    },
    /// There is nothing that could say so.
    Unknown,
}

/// What a volume holds and which of its bytes are in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMap {
    /// What it is.
    pub kind: FsKind,
    /// The filesystem's UUID, as blkid prints it.
    pub uuid: Option<String>,
    /// The filesystem's label.
    pub label: Option<String>,
    /// The filesystem's block size in bytes; 0 if it has none.
    pub block_bytes: u32,
    /// How many bytes of the volume the filesystem covers.
    pub fs_bytes: u64,
    /// Bytes in use, from the volume's start; the whole volume if it is taken raw.
    pub used: Extents,
    /// How many bytes the filesystem itself says it uses; the whole volume if it is taken raw.
    pub used_bytes_claimed: u64,
    /// How the volume is taken.
    pub taken: Taken,
    /// Whether it was shut down cleanly.
    pub clean: Clean,
    /// What is worth knowing of a map that can be used: that the journal was not replayed.
    pub note: Option<String>,
    /// The logical volumes in it, whose used bytes are among `used`. What is not clean in one is said there only.
    pub logical_volumes: Vec<LogicalVolume>,
}

/// A logical volume in a physical one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogicalVolume {
    /// The volume group's name and its own: `vg/root`.
    pub name: String,
    /// Where its bytes are in the physical volume, in order.
    pub pieces: Vec<Extent>,
    /// What it holds.
    pub map: VolumeMap,
}

impl VolumeMap {
    /// A volume of which every byte is taken.
    #[must_use]
    pub fn raw(kind: FsKind, len_bytes: u64, reason: impl Into<String>) -> Self {
        Self {
            kind,
            uuid: None,
            label: None,
            block_bytes: 0,
            fs_bytes: len_bytes,
            used: Extents::single(0, len_bytes),
            used_bytes_claimed: len_bytes,
            taken: Taken::Raw { reason: reason.into() },
            clean: Clean::Unknown,
            note: None,
            logical_volumes: Vec::new(),
        }
    }

    /// Takes every byte after all.
    pub fn take_whole(&mut self, len_bytes: u64, reason: impl Into<String>) {
        self.used = Extents::single(0, len_bytes);
        self.used_bytes_claimed = len_bytes;
        self.taken = Taken::Raw { reason: reason.into() };
        self.note = None;
        self.logical_volumes.clear();
    }

    /// Takes every byte of one of its logical volumes after all.
    pub fn take_logical_volume_whole(&mut self, index: usize, reason: impl Into<String>) {
        let volume = &mut self.logical_volumes[index];
        let len_bytes = volume.len_bytes();
        self.used_bytes_claimed += len_bytes - volume.map.used_bytes_claimed;
        volume.map.take_whole(len_bytes, reason);
        self.used = self.used.union(&volume.used());
    }
}

impl LogicalVolume {
    /// Its length.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len).sum()
    }
}

/// Looks at a volume of `len_bytes`. `Err` only when the source cannot be read: damaged or unknown structures are taken raw.
pub fn map_volume(src: &mut (impl Read + Seek), len_bytes: u64) -> io::Result<VolumeMap> {
    if let Some(name) = probe::stranger(src, len_bytes)? {
        let reason = format!("it is marked as {name}, of which there is no used-block map");
        return Ok(VolumeMap::raw(FsKind::Unknown, len_bytes, reason));
    }
    match probe::covering(src, len_bytes)? {
        Some((found, label)) if found.kind == FsKind::Lvm2 => {
            match probe::member(src, len_bytes)? {
                Some((member, _)) => Ok(without_map(member, len_bytes)),
                None => lvm2::map(src, len_bytes, found, label),
            }
        }
        _ => without_lvm(src, len_bytes),
    }
}

/// The same, where a physical volume has no map: in one.
fn without_lvm(src: &mut (impl Read + Seek), len_bytes: u64) -> io::Result<VolumeMap> {
    let Some((member, start)) = probe::member(src, len_bytes)? else {
        return alone(src, len_bytes);
    };
    // In a member of a RAID a filesystem's map may fit what the first stripe shows, and is of the whole array. One that reaches over
    // the RAID's metadata was made after it.
    let map = alone(src, len_bytes)?;
    let is_later = map.taken == Taken::Map && map.fs_bytes > start;
    Ok(if is_later { map } else { without_map(member, len_bytes) })
}

/// What fills a volume, unless that is a member of a RAID.
fn alone(src: &mut (impl Read + Seek), len_bytes: u64) -> io::Result<VolumeMap> {
    // A bitmap that an earlier filesystem left behind would drop what a RAID or a pool has written since.
    if let Some((found, _)) = probe::covering(src, len_bytes)? {
        return Ok(without_map(found, len_bytes));
    }
    // Before ext and swap, whose formatters clear the sector that these begin with.
    match probe::boot_sector(src, len_bytes)? {
        Some(found) if found.kind == FsKind::Xfs => return xfs::map(src, len_bytes, found),
        Some(found) if found.kind == FsKind::Ntfs => return ntfs::map(src, len_bytes, found),
        Some(found) if found.kind == FsKind::Exfat => return exfat::map(src, len_bytes, found),
        _ => {}
    }
    if let Some(map) = ext::map(src, len_bytes)? {
        return Ok(map);
    }
    if let Some(map) = swap::map(src, len_bytes)? {
        return Ok(map);
    }
    // After the others: a boot sector alone says little, and other filesystems carry one too.
    match probe::volume(src, len_bytes)? {
        Some(found) if found.kind == FsKind::Btrfs => btrfs::map(src, len_bytes, found),
        Some(found) => Ok(without_map(found, len_bytes)),
        None => match fat::map(src, len_bytes)? {
            Some(map) => Ok(map),
            None => Ok(VolumeMap::raw(FsKind::Unknown, len_bytes, "no known filesystem")),
        },
    }
}

/// What a volume holds, without its map. Reads no more than signatures and superblocks.
pub fn identify(src: &mut (impl Read + Seek), len_bytes: u64) -> io::Result<Option<Found>> {
    if let Some((found, _)) = probe::covering(src, len_bytes)? {
        return Ok(Some(found));
    }
    if let Some(found) = probe::boot_sector(src, len_bytes)? {
        return Ok(Some(found));
    }
    match recognise(src, len_bytes)? {
        Some((found, _)) => Ok(Some(found)),
        None => probe::volume(src, len_bytes),
    }
}

/// One that is taken whole for its kind.
fn without_map(found: Found, len_bytes: u64) -> VolumeMap {
    let reason = format!("{}: no used-block map in this version", found.kind);
    let map = VolumeMap::raw(found.kind, len_bytes, reason);
    VolumeMap { uuid: found.uuid, label: found.label, ..map }
}

/// Recognises a filesystem that may have a map, and says where its signature is. Reads no more than a superblock.
pub(crate) fn recognise(
    src: &mut (impl Read + Seek),
    len_bytes: u64,
) -> io::Result<Option<(Found, Extent)>> {
    if let Some(found) = ext::recognise(src, len_bytes)? {
        return Ok(Some(found));
    }
    if let Some(map) = swap::map(src, len_bytes)? {
        let at = swap::signature_place(&map);
        return Ok(Some((Found { kind: map.kind, uuid: map.uuid, label: map.label }, at)));
    }
    fat::recognise(src, len_bytes)
}
