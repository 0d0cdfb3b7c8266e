//! What is recognised by the first bytes of a volume.
//!
//! Offsets as in libblkid's probers and in the formats' own documents: XFS Algorithms & Data Structures, the btrfs wiki's On-disk
//! Format, the LUKS1 and LUKS2 On-Disk Format Specifications, LVM2's `lib/format_text/layout.h`, ECMA-119, Microsoft's exFAT
//! specification, and the Linux-NTFS documentation.

use std::io::{self, Read, Seek};

use crc::{Algorithm, Crc};

use super::{Hit, Part, field, le16, le32, le64, text, utf16, uuid};
use crate::fs::FsKind;

const SECTOR: usize = 512;
const BTRFS_SUPERBLOCK: usize = 64 << 10;
const ISO_DESCRIPTOR: usize = 32 << 10;
/// BitLocker To Go looks like FAT32 but for this.
const BITLOCKER_TO_GO: [u8; 16] = [
    0x3b, 0xd6, 0x67, 0x49, 0x29, 0x2e, 0xd8, 0x4a, 0x83, 0x99, 0xf6, 0xa3, 0x39, 0xe3, 0xd0, 0x01,
];
const NTFS_VOLUME_RECORD: u64 = 3;
const NTFS_VOLUME_NAME: u32 = 0x60;
const EXFAT_LABEL_ENTRY: u8 = 0x83;
/// How much of exFAT's root directory is searched for the label, which stands at its beginning.
const EXFAT_ROOT_LEN: usize = 4096;
/// The CRC of LVM2, which begins with a number of its own and does not invert.
const LVM_CRC: Crc<u32> = Crc::<u32>::new(&Algorithm {
    width: 32,
    poly: 0x04c1_1db7,
    // 0xf597_a6cf, with its bits in the other order, as the algorithm reflects.
    init: 0xf365_e9af,
    refin: true,
    refout: true,
    xorout: 0,
    check: 0,
    residue: 0,
});

/// What owns the first sector by a mark that no boot code has.
pub fn boot_sector(head: &[u8]) -> Option<Hit> {
    xfs(head)
        .or_else(|| luks(head))
        .or_else(|| bitlocker(head))
        .or_else(|| ntfs(head))
        .or_else(|| exfat(head))
}

fn xfs(head: &[u8]) -> Option<Hit> {
    let block_bytes = u32::from_be_bytes(field(head, 4)?);
    let sane = block_bytes.is_power_of_two() && (512..=65536).contains(&block_bytes);
    (head.starts_with(b"XFSB") && sane)
        .then(|| Hit::new(FsKind::Xfs, 0, 4, uuid(head, 32), text(head.get(108..120))))
}

fn luks(head: &[u8]) -> Option<Hit> {
    let version = u16::from_be_bytes(field(head, 6)?);
    if !head.starts_with(b"LUKS\xba\xbe") || !matches!(version, 1 | 2) {
        return None;
    }
    let label = if version == 2 { text(head.get(24..72)) } else { None };
    Some(Hit::new(FsKind::Luks, 0, 6, text(head.get(168..208)), label))
}

fn bitlocker(head: &[u8]) -> Option<Hit> {
    let whole = head.get(3..11)? == b"-FVE-FS-";
    let to_go = head.get(3..11)? == b"MSWIN4.1" && field::<16>(head, 424)? == BITLOCKER_TO_GO;
    (whole || to_go).then(|| Hit::new(FsKind::BitLocker, 3, 8, None, None))
}

fn ntfs(head: &[u8]) -> Option<Hit> {
    if head.get(3..11)? != b"NTFS    " {
        return None;
    }
    let serial = le64(head, 72)?;
    Some(Hit::new(FsKind::Ntfs, 3, 8, Some(format!("{serial:016X}")), None))
}

fn exfat(head: &[u8]) -> Option<Hit> {
    if head.get(3..11)? != b"EXFAT   " {
        return None;
    }
    let serial = le32(head, 100)?;
    Some(Hit::new(
        FsKind::Exfat,
        3,
        8,
        Some(format!("{:04X}-{:04X}", serial >> 16, serial & 0xFFFF)),
        None,
    ))
}

/// Filesystems without a map whose makers leave most of a volume's first bytes as they are, and with them what an older filesystem
/// wrote there; whoever makes one with a map afterwards overwrites these marks: name, place, mark.
const STRANGERS: [(&str, usize, &[u8]); 2] = [("ReFS", 0, b"\0\0\0ReFS\0"), ("APFS", 32, b"NXSB")];
/// VMFS leaves the whole first MiB.
pub const VMFS_AT: u64 = 1 << 20;
pub const VMFS_MAGIC: [u8; 4] = 0xC001_D00D_u32.to_le_bytes();

/// The name of a filesystem without a map that owns the first sector.
pub fn stranger(head: &[u8]) -> Option<&'static str> {
    let owns = |(_, at, mark): &&(&str, usize, &[u8])| {
        head.get(*at..).is_some_and(|bytes| bytes.starts_with(mark))
    };
    STRANGERS.iter().find(owns).map(|(name, ..)| *name)
}

/// The name in the record `$Volume` of an NTFS.
pub fn ntfs_label<S: Read + Seek>(
    part: &mut Part<'_, S>,
    head: &[u8],
) -> io::Result<Option<String>> {
    let Some((offset, len)) = ntfs_volume_record(head) else { return Ok(None) };
    Ok(part.bytes(offset, len)?.and_then(|record| ntfs_volume_name(&record)))
}

fn ntfs_volume_record(head: &[u8]) -> Option<(u64, usize)> {
    // Above 0x80 a number is a negative power of two.
    let power = |code: u8| 1_u64.checked_shl(u32::from(code.wrapping_neg()));
    let sector_bytes = u64::from(le16(head, 11)?);
    let [sectors] = field(head, 13)?;
    let cluster_bytes = sector_bytes.checked_mul(if sectors > 0x80 {
        power(sectors)?
    } else {
        u64::from(sectors)
    })?;
    let [record] = field(head, 64)?;
    let record_bytes = if record >= 0x80 {
        power(record)?
    } else {
        cluster_bytes.checked_mul(u64::from(record))?
    };
    let len =
        usize::try_from(record_bytes).ok().filter(|len| (SECTOR..=SECTOR * 8).contains(len))?;
    let table = le64(head, 48)?.checked_mul(cluster_bytes)?;
    Some((table.checked_add(NTFS_VOLUME_RECORD * record_bytes)?, len))
}

fn ntfs_volume_name(record: &[u8]) -> Option<String> {
    if !record.starts_with(b"FILE") {
        return None;
    }
    let mut at = usize::from(le16(record, 20)?);
    loop {
        let kind = le32(record, at)?;
        let len = usize::try_from(le32(record, at + 4)?).ok()?;
        if kind == NTFS_VOLUME_NAME && record.get(at + 8) == Some(&0) {
            let value_len = usize::try_from(le32(record, at + 16)?).ok()?;
            let value = at + usize::from(le16(record, at + 20)?);
            return utf16(record.get(value..value.checked_add(value_len)?)?);
        }
        // Attributes are in the order of their kinds, and have at least a header.
        if kind > NTFS_VOLUME_NAME || len < 16 {
            return None;
        }
        at = at.checked_add(len)?;
    }
}

/// The label in the root directory of an exFAT.
pub fn exfat_label<S: Read + Seek>(
    part: &mut Part<'_, S>,
    head: &[u8],
) -> io::Result<Option<String>> {
    let Some((offset, len)) = exfat_root(head) else { return Ok(None) };
    let root = part.bytes(offset, len)?.unwrap_or_default();
    let label = root
        .chunks_exact(32)
        .take_while(|entry| entry[0] != 0)
        .find(|entry| entry[0] == EXFAT_LABEL_ENTRY);
    Ok(label.and_then(|entry| utf16(entry.get(2..2 + 2 * usize::from(entry[1].min(11)))?)))
}

fn exfat_root(head: &[u8]) -> Option<(u64, usize)> {
    let [sector_shift, cluster_shift] = field(head, 108)?;
    if !(9..=12).contains(&sector_shift) || cluster_shift > 25 - sector_shift {
        return None;
    }
    let cluster_bytes = 1_u64 << (sector_shift + cluster_shift);
    let heap = u64::from(le32(head, 88)?) << sector_shift;
    let cluster = u64::from(le32(head, 96)?.checked_sub(2)?);
    let len = EXFAT_ROOT_LEN.min(usize::try_from(cluster_bytes).ok()?);
    Some((heap.checked_add(cluster.checked_mul(cluster_bytes)?)?, len))
}

/// LVM2's checksum of labels and metadata.
pub fn lvm_crc(bytes: &[u8]) -> u32 {
    LVM_CRC.checksum(bytes)
}

/// A label in one of the first four sectors.
pub fn lvm2(head: &[u8]) -> Option<Hit> {
    (0..4_u64).zip(head.chunks_exact(SECTOR)).find_map(|(number, sector)| {
        let label = sector.starts_with(b"LABELONE")
            && &sector[24..32] == b"LVM2 001"
            && le64(sector, 8)? == number
            && le32(sector, 16)? == lvm_crc(&sector[20..]);
        let header = usize::try_from(le32(sector, 20)?).ok()?;
        let id = sector.get(header..header.checked_add(32)?);
        label.then(|| Hit::new(FsKind::Lvm2, number * SECTOR as u64, 8, id.and_then(lvm_id), None))
    })
}

/// Thirty-two characters, in groups as LVM shows them.
fn lvm_id(id: &[u8]) -> Option<String> {
    let id = std::str::from_utf8(id).ok().filter(|id| id.bytes().all(|b| b.is_ascii_graphic()))?;
    let cuts = [0..6, 6..10, 10..14, 14..18, 18..22, 22..26, 26..32];
    Some(cuts.map(|cut| &id[cut]).join("-"))
}

pub fn btrfs(head: &[u8]) -> Option<Hit> {
    let superblock = head.get(BTRFS_SUPERBLOCK..)?;
    let here = le64(superblock, 48)? == BTRFS_SUPERBLOCK as u64;
    (superblock.get(64..72)? == b"_BHRfS_M" && here).then(|| {
        let at = BTRFS_SUPERBLOCK as u64 + 64;
        Hit::new(FsKind::Btrfs, at, 8, uuid(superblock, 32), text(superblock.get(299..555)))
    })
}

pub fn iso9660(head: &[u8]) -> Option<Hit> {
    let descriptor = head.get(ISO_DESCRIPTOR..)?;
    if descriptor.get(1..6)? != b"CD001" {
        return None;
    }
    // What changes last names the image: the modification date, or the creation date if there is none.
    let date = |at: usize| {
        let digits = std::str::from_utf8(descriptor.get(at..at + 16)?).ok()?;
        let real = digits.bytes().all(|b| b.is_ascii_digit()) && digits.bytes().any(|b| b != b'0');
        let cuts = [0..4, 4..6, 6..8, 8..10, 10..12, 12..14, 14..16];
        real.then(|| cuts.map(|cut| &digits[cut]).join("-"))
    };
    let id = date(830).or_else(|| date(813));
    Some(Hit::new(FsKind::Iso9660, ISO_DESCRIPTOR as u64 + 1, 5, id, text(descriptor.get(40..72))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ntfs_with_impossible_clusters_has_no_volume_record() {
        let mut head = vec![0; 512];
        head[11..13].copy_from_slice(&512_u16.to_le_bytes());
        (head[13], head[64]) = (8, 0xF6);
        head[48..56].copy_from_slice(&4_u64.to_le_bytes());
        assert_eq!(ntfs_volume_record(&head), Some((4 * 4096 + NTFS_VOLUME_RECORD * 1024, 1024)));
        // 2 to the power of 55 sectors.
        head[13] = 0xC9;
        assert_eq!(ntfs_volume_record(&head), None);
    }
}
