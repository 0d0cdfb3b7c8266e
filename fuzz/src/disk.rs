//! What the disk targets do with their input. Plain functions, so that ordinary tests run them as well.
//!
//! An input is a sparse disk: its length, then pieces that say where they are; all else reads as zeros. So a few KiB describe a
//! volume of many MiB. Beyond "no panic" the targets assert what the agent's callers rely on: a map keeps to the volume and does
//! not depend on what it calls free, partitions keep to the disk, and a table that is written again reads the same. Checksums
//! would end most mutations at once, so each input is tried as it is, and once more with its checksums made right, by offsets
//! written down here a second time on purpose.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};

use crc::{Algorithm, CRC_32_ISO_HDLC, Crc};
use ramdisk_agent::extents::{Extent, Extents};
use ramdisk_agent::fs::{Taken, VolumeMap, map_volume};
use ramdisk_agent::probe::signatures;
use ramdisk_agent::table::{
    Partition, Table, TableKind, TableOutcome, read_table, relocate_backup,
};
use uuid::Uuid;

const SECTOR: usize = 512;
/// Longer volumes are cut for the maps, which read tables whose length goes with the volume's.
const MAX_MAPPED_LEN: u64 = 64 << 20;
/// Tables and signatures are looked for near both ends only.
const MAX_DISK_LEN: u64 = 1 << 50;
/// Twice the longest array of entries: a disk that has grown by this much always has room for a backup.
const GROWTH: u64 = 2 << 20;
/// What the maps' free space is filled with.
const NOISE: u8 = 0xA5;

/// The kernel's `crc32c()`: no inversion at the end.
const CRC32C: Crc<u32> = Crc::<u32>::new(&Algorithm {
    width: 32,
    poly: 0x1EDC_6F41,
    init: 0xFFFF_FFFF,
    refin: true,
    refout: true,
    xorout: 0,
    check: 0,
    residue: 0,
});
const CRC32: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// A disk of which only some sectors are not zero.
#[derive(Clone)]
pub struct Sparse {
    len: u64,
    sectors: BTreeMap<u64, [u8; SECTOR]>,
    /// Reads as noise, whatever the sectors say.
    noisy: Extents,
    at: u64,
}

impl Sparse {
    /// 8 bytes length, then pieces: 8 bytes place, 2 bytes length, the bytes. The last may be cut short.
    pub fn decode(data: &[u8], max_len: u64) -> Option<Self> {
        let (len, mut rest) = data.split_first_chunk::<8>()?;
        let len = u64::from_le_bytes(*len) % (max_len + 1);
        let mut disk = Self { len, sectors: BTreeMap::new(), noisy: Extents::new(), at: 0 };
        while let Some((place, more)) = rest.split_first_chunk::<8>() {
            let Some((count, more)) = more.split_first_chunk::<2>() else { break };
            let count = usize::from(u16::from_le_bytes(*count)).min(more.len());
            disk.write(u64::from_le_bytes(*place), &more[..count]);
            rest = &more[count..];
        }
        Some(disk)
    }

    /// The input for a disk; sectors of zeros are left out.
    pub fn encode(len: u64, pieces: &[(u64, &[u8])]) -> Vec<u8> {
        let mut out = len.to_le_bytes().to_vec();
        for (start, bytes) in pieces {
            let full: Vec<usize> = bytes
                .chunks(SECTOR)
                .enumerate()
                .filter(|(_, sector)| sector.iter().any(|byte| *byte != 0))
                .map(|(number, _)| number)
                .collect();
            for run in full.chunk_by(|a, b| a + 1 == *b) {
                for run in run.chunks(64) {
                    let from = run[0] * SECTOR;
                    let piece = &bytes[from..(from + run.len() * SECTOR).min(bytes.len())];
                    let count = u16::try_from(piece.len()).expect("at most 32 KiB");
                    out.extend((start + from as u64).to_le_bytes());
                    out.extend(count.to_le_bytes());
                    out.extend(piece);
                }
            }
        }
        out
    }

    /// Bytes behind the end are dropped.
    fn write(&mut self, place: u64, bytes: &[u8]) {
        let room = usize::try_from(self.len.saturating_sub(place)).unwrap_or(usize::MAX);
        let (mut at, mut rest) = (place, &bytes[..bytes.len().min(room)]);
        while !rest.is_empty() {
            let within = usize::try_from(at % SECTOR as u64).expect("below 512");
            let (now, later) = rest.split_at(rest.len().min(SECTOR - within));
            let sector = self.sectors.entry(at / SECTOR as u64).or_insert([0; SECTOR]);
            sector[within..within + now.len()].copy_from_slice(now);
            at += now.len() as u64;
            rest = later;
        }
    }

    /// `None` if they do not all lie on the disk, or are more than any structure that is made right here.
    fn bytes(&mut self, place: u64, len: u64) -> Option<Vec<u8>> {
        if len > 1 << 20 || place.checked_add(len)? > self.len {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(len).ok()?];
        self.at = place;
        self.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }
}

impl Read for Sparse {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.len.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let len = len.min(buf.len());
        let (start, buf) = (self.at, &mut buf[..len]);
        let end = start + len as u64;
        buf.fill(0);
        let index = |at: u64| usize::try_from(at - start).expect("within the buffer");
        for (number, sector) in
            self.sectors.range(start / SECTOR as u64..end.div_ceil(SECTOR as u64))
        {
            let own = number * SECTOR as u64;
            let (from, to) = (own.max(start), (own + SECTOR as u64).min(end));
            let skip = usize::try_from(from - own).expect("below 512");
            buf[index(from)..index(to)].copy_from_slice(&sector[skip..][..index(to) - index(from)]);
        }
        for extent in self.noisy.overlapping(start, len as u64) {
            let (from, to) = (extent.start.max(start), extent.end().min(end));
            buf[index(from)..index(to)].fill(NOISE);
        }
        self.at = end;
        Ok(len)
    }
}

impl Seek for Sparse {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(n) => Some(n),
            SeekFrom::End(n) => self.len.checked_add_signed(n),
            SeekFrom::Current(n) => self.at.checked_add_signed(n),
        };
        self.at = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Maps the input as a volume, then again with noise where the map says that nothing is.
fn map(disk: &mut Sparse) -> VolumeMap {
    let len = disk.len;
    let map = map_volume(disk, len).expect("memory can be read");
    assert!(map.used.iter().all(|e| e.end() <= len), "{map:?} in {len} bytes");
    match &map.taken {
        Taken::Raw { .. } => assert_eq!(map.used, Extents::single(0, len)),
        Taken::Map => {
            assert!(map.fs_bytes <= len && map.used_bytes_claimed <= map.used.total_bytes());
            let noisy = map.used.invert(Extent { start: 0, len });
            let mut noisy = Sparse { noisy, ..disk.clone() };
            assert_eq!(map_volume(&mut noisy, len).expect("memory can be read"), map);
        }
    }
    map
}

/// Maps an ext filesystem, as it is and with right checksums.
pub fn ext_map(data: &[u8]) {
    let Some(mut disk) = Sparse::decode(data, MAX_MAPPED_LEN) else { return };
    map(&mut disk);
    if reseal_ext(&mut disk).is_some() {
        map(&mut disk);
    }
}

/// Maps a FAT filesystem.
pub fn fat_map(data: &[u8]) {
    if let Some(mut disk) = Sparse::decode(data, MAX_MAPPED_LEN) {
        map(&mut disk);
    }
}

/// Maps an XFS, as it is and with right checksums.
pub fn xfs_map(data: &[u8]) {
    let Some(mut disk) = Sparse::decode(data, MAX_MAPPED_LEN) else { return };
    map(&mut disk);
    if reseal_xfs(&mut disk).is_some() {
        map(&mut disk);
    }
}

/// Maps a btrfs, as it is and with right checksums.
pub fn btrfs_map(data: &[u8]) {
    let Some(mut disk) = Sparse::decode(data, MAX_MAPPED_LEN) else { return };
    map(&mut disk);
    if reseal_btrfs(&mut disk).is_some() {
        map(&mut disk);
    }
}

/// Maps an NTFS, which has no checksums.
pub fn ntfs_map(data: &[u8]) {
    fat_map(data);
}

/// Maps an exFAT, as it is and with right checksums.
pub fn exfat_map(data: &[u8]) {
    let Some(mut disk) = Sparse::decode(data, MAX_MAPPED_LEN) else { return };
    map(&mut disk);
    if reseal_exfat(&mut disk).is_some() {
        map(&mut disk);
    }
}

/// Maps a physical volume of LVM, as it is and with right checksums.
pub fn lvm2_map(data: &[u8]) {
    let Some(mut disk) = Sparse::decode(data, MAX_MAPPED_LEN) else { return };
    map(&mut disk);
    if reseal_lvm2(&mut disk).is_some() {
        map(&mut disk);
    }
}

/// Maps a swap area.
pub fn swap_map(data: &[u8]) {
    fat_map(data);
}

/// Reads a partition table, as it is and with right checksums, and moves it to other disks.
pub fn table(data: &[u8]) {
    let Some(mut disk) = Sparse::decode(data, MAX_DISK_LEN) else { return };
    for sector_bytes in [512, 4096] {
        read_and_move(&disk, sector_bytes);
        let mut sealed = disk.clone();
        if reseal_gpt(&mut sealed, u64::from(sector_bytes)).is_some() {
            read_and_move(&sealed, sector_bytes);
        }
    }
    // A sector size that no disk has is refused, not divided by.
    assert!(read_table(&mut disk, data.len() as u64, 0).is_err());
}

fn read_sound(disk: &mut Sparse, sector_bytes: u32) -> Option<Table> {
    let len = disk.len;
    match read_table(disk, len, sector_bytes).expect("memory can be read") {
        TableOutcome::Refused(_) => None,
        TableOutcome::Table(table) => {
            let mut end = 0;
            for partition in &table.partitions {
                let (start, len) = (partition.start_bytes, partition.len_bytes);
                assert!(start >= end && len > 0, "{partition:?} begins before {end}");
                assert!(table.metadata.overlapping(start, len).next().is_none(), "{partition:?}");
                end = start + len;
            }
            assert!(end <= len && table.metadata.iter().all(|e| e.end() <= len));
            Some(table)
        }
    }
}

fn read_and_move(disk: &Sparse, sector_bytes: u32) {
    let Some(table) = read_sound(&mut disk.clone(), sector_bytes) else { return };
    if table.kind == TableKind::None {
        return;
    }
    let cut = disk.len.saturating_sub(40 * u64::from(sector_bytes));
    for target_len in [disk.len, disk.len + GROWTH, disk.len * 3 + GROWTH, cut] {
        let Ok(pieces) = relocate_backup(&mut disk.clone(), &table, target_len) else {
            assert!(target_len < disk.len, "{} bytes more: {table:#?}", target_len - disk.len);
            continue;
        };
        let mut target = Sparse { len: target_len, ..disk.clone() };
        for piece in pieces {
            assert!(piece.offset + piece.bytes.len() as u64 <= target_len, "{}", piece.name);
            target.write(piece.offset, &piece.bytes);
        }
        let moved = read_sound(&mut target, sector_bytes).expect("what was written can be read");
        // Behind an MBR without partitions, of which the disk is taken whole, a GPT may lie that was made for a larger one: there it counts.
        let has_none = table.kind == TableKind::Mbr && table.partitions.is_empty();
        if has_none && target_len > disk.len && moved.kind == TableKind::Gpt {
            continue;
        }
        assert_eq!(moved.kind, table.kind);
        assert_eq!(moved.partitions, table.partitions);
        assert_eq!(moved.disk_id, table.disk_id);
    }
    identify(disk, table, sector_bytes);
}

/// Other identities, and nothing else that is not as it was.
fn identify(disk: &Sparse, mut table: Table, sector_bytes: u32) {
    let old = table.partitions.clone();
    table.identify(Uuid::from_u128(1 << 96), &|number| Uuid::from_u128(number.into()));
    let pieces = relocate_backup(&mut disk.clone(), &table, disk.len).expect("nothing moves");
    let mut target = disk.clone();
    pieces.iter().for_each(|piece| target.write(piece.offset, &piece.bytes));
    let made = read_sound(&mut target, sector_bytes).expect("what was written can be read");
    assert_eq!((&made.disk_id, &made.partitions), (&table.disk_id, &table.partitions));
    for (old, new) in old.iter().zip(&made.partitions) {
        assert_eq!(*old, Partition { uuid: old.uuid.clone(), ..new.clone() });
    }
}

/// Lists everything that is recognised on the disk.
pub fn probe(data: &[u8]) {
    let Some(mut disk) = Sparse::decode(data, MAX_DISK_LEN) else { return };
    let len = disk.len;
    for signature in signatures(&mut disk, len).expect("memory can be read") {
        let end = signature.offset.checked_add(signature.len);
        assert!(end.is_some_and(|end| end <= len), "{signature:?}");
        // Labels come from the disk and go to terminals.
        assert!(!signature.what.contains(char::is_control), "{signature:?}");
    }
}

fn le16(bytes: &[u8], at: usize) -> u64 {
    u64::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

fn le32(bytes: &[u8], at: usize) -> u64 {
    le16(bytes, at) | le16(bytes, at + 2) << 16
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    le32(bytes, at) | le32(bytes, at + 4) << 32
}

/// Makes the checksums of both copies of a GPT right, as far as there are any.
fn reseal_gpt(disk: &mut Sparse, sector: u64) -> Option<()> {
    for lba in [1, (disk.len / sector).checked_sub(1)?] {
        let place = lba * sector;
        let Some(mut header) = disk.bytes(place, sector).filter(|h| h.starts_with(b"EFI PART"))
        else {
            continue;
        };
        let entries = le64(&header, 72)
            .checked_mul(sector)
            .and_then(|at| disk.bytes(at, le32(&header, 80) * le32(&header, 84)));
        if let Some(entries) = entries {
            header[88..92].copy_from_slice(&CRC32.checksum(&entries).to_le_bytes());
        }
        header[16..20].fill(0);
        let covered = usize::try_from(le32(&header, 12)).ok()?;
        let sum = header.get(..covered).map_or(0, |covered| CRC32.checksum(covered));
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        disk.write(place, &header);
    }
    Some(())
}

fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    let mut digest = CRC32C.digest_with_initial(seed.reverse_bits());
    digest.update(bytes);
    digest.finalize()
}

/// Makes the checksums of superblock, descriptors and block bitmaps right if the filesystem has `metadata_csum`.
fn reseal_ext(disk: &mut Sparse) -> Option<()> {
    const METADATA_CSUM: u64 = 0x400;
    const CSUM_SEED: u64 = 0x2000;
    const WIDE: u64 = 0x80;
    const MOST_GROUPS: u64 = 64;
    let mut sb = disk.bytes(1024, 1024)?;
    if le16(&sb, 0x38) != 0xEF53 || le32(&sb, 0x64) & METADATA_CSUM == 0 {
        return None;
    }
    let seed = if le32(&sb, 0x60) & CSUM_SEED != 0 {
        u32::try_from(le32(&sb, 0x270)).expect("four bytes")
    } else {
        crc32c(!0, &sb[0x68..0x78])
    };
    let block = 1024_u64.checked_shl(u32::try_from(le32(&sb, 0x18)).ok()?)?;
    let len = if le32(&sb, 0x60) & WIDE != 0 { le16(&sb, 0xFE) } else { 32 };
    let descriptors = (1024 / block.max(1) + 1).checked_mul(block)?;
    for group in 0..MOST_GROUPS {
        let place = descriptors.checked_add(group * len)?;
        let Some(mut descriptor) = disk.bytes(place, len.max(32)) else { break };
        if descriptor.iter().all(|byte| *byte == 0) {
            break;
        }
        let wide = descriptor.len() >= 64;
        let bitmap = le32(&descriptor, 0) | if wide { le32(&descriptor, 0x20) << 32 } else { 0 };
        let bits = le32(&sb, 0x24);
        if let Some(bitmap) = bitmap.checked_mul(block).and_then(|at| disk.bytes(at, bits / 8)) {
            let sum = crc32c(seed, &bitmap).to_le_bytes();
            descriptor[0x18..0x1A].copy_from_slice(&sum[..2]);
            if wide {
                descriptor[0x38..0x3A].copy_from_slice(&sum[2..]);
            }
        }
        descriptor[0x1E..0x20].fill(0);
        let number = u32::try_from(group).expect("few groups").to_le_bytes();
        let sum = crc32c(crc32c(seed, &number), &descriptor).to_le_bytes();
        descriptor[0x1E..0x20].copy_from_slice(&sum[..2]);
        disk.write(place, &descriptor);
    }
    let sum = crc32c(!0, &sb[..0x3FC]).to_le_bytes();
    sb[0x3FC..].copy_from_slice(&sum);
    disk.write(1024, &sb);
    Some(())
}

fn be32(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
}

/// Makes the checksums of the first groups' headers and of their free-space trees' roots right, if it is of version 5.
fn reseal_xfs(disk: &mut Sparse) -> Option<()> {
    const MOST_GROUPS: u64 = 8;
    let sb = disk.bytes(0, 512)?;
    if !sb.starts_with(b"XFSB") || sb[101] & 0xF != 5 {
        return None;
    }
    let sector = be32(&sb, 100) & 0xFFFF;
    let (block, group) = (be32(&sb, 4), be32(&sb, 84));
    for number in 0..MOST_GROUPS {
        let start = (number * group).checked_mul(block)?;
        for (i, at) in [(0, 224), (1, 216), (2, 312), (3, 32)] {
            reseal_xfs_block(disk, start.checked_add(i * sector)?, sector, at);
        }
        let agf = disk.bytes(start.checked_add(sector)?, 64)?;
        for root in [be32(&agf, 16), be32(&agf, 20)] {
            reseal_xfs_block(disk, start.checked_add(root * block)?, block, 52);
        }
    }
    Some(())
}

fn reseal_xfs_block(disk: &mut Sparse, place: u64, len: u64, at: usize) {
    let Some(mut bytes) = disk.bytes(place, len).filter(|bytes| bytes.len() >= at + 4) else {
        return;
    };
    bytes[at..at + 4].fill(0);
    let sum = !crc32c(!0, &bytes);
    bytes[at..at + 4].copy_from_slice(&sum.to_le_bytes());
    disk.write(place, &bytes);
}

/// Makes the checksums of the superblock and of all nodes right, by the identity that they carry.
fn reseal_btrfs(disk: &mut Sparse) -> Option<()> {
    const SUPERBLOCK: u64 = 64 << 10;
    let sb = disk.bytes(SUPERBLOCK, 4096)?;
    if &sb[64..72] != b"_BHRfS_M" {
        return None;
    }
    let node = le32(&sb, 148);
    if !node.is_power_of_two() || !(1024..=65536).contains(&node) {
        return None;
    }
    let is_node = |(number, sector): (&u64, &[u8; SECTOR])| {
        let place = number * SECTOR as u64;
        (place.is_multiple_of(node) && sector[32..48] == sb[32..48]).then_some(place)
    };
    let nodes: Vec<u64> = disk.sectors.iter().filter_map(is_node).collect();
    for (place, len) in nodes.into_iter().map(|place| (place, node)).chain([(SUPERBLOCK, 4096)]) {
        if let Some(mut bytes) = disk.bytes(place, len) {
            let sum = !crc32c(!0, &bytes[32..]);
            bytes[..4].copy_from_slice(&sum.to_le_bytes());
            disk.write(place, &bytes);
        }
    }
    Some(())
}

/// Makes the checksums of both boot regions right, and of what looks like a set of entries at the start of a sector.
fn reseal_exfat(disk: &mut Sparse) -> Option<()> {
    let boot = disk.bytes(0, 512)?;
    if &boot[3..11] != b"EXFAT   " || !(9..=12).contains(&boot[108]) {
        return None;
    }
    let sector = 1_u64 << boot[108];
    for region in [0, 12 * sector] {
        let mut covered = disk.bytes(region, 11 * sector)?;
        for at in [112, 107, 106] {
            covered.remove(at);
        }
        let sum =
            covered.iter().fold(0_u32, |sum, b| sum.rotate_right(1).wrapping_add((*b).into()));
        let words = sum.to_le_bytes().repeat(usize::try_from(sector / 4).ok()?);
        disk.write(region + 11 * sector, &words);
    }
    let heap = le32(&boot, 88).checked_mul(sector)?;
    let first = heap / SECTOR as u64;
    let numbers: Vec<u64> = disk.sectors.range(first..).map(|(number, _)| *number).collect();
    for number in numbers {
        reseal_exfat_sets(disk.sectors.get_mut(&number)?);
    }
    Some(())
}

/// Sets that reach into the next sector are left as they are.
fn reseal_exfat_sets(mut rest: &mut [u8]) {
    while let [kind, count, ..] = rest {
        let len = if *kind == 0x85 { 32 * (1 + usize::from(*count)) } else { 32 };
        let Some((set, more)) = rest.split_at_mut_checked(len) else { return };
        if set[0] == 0x85 {
            let covered = set[..2].iter().chain(&set[4..]);
            let sum = covered.fold(0_u16, |sum, b| sum.rotate_right(1).wrapping_add((*b).into()));
            set[2..4].copy_from_slice(&sum.to_le_bytes());
        }
        rest = more;
    }
}

/// LVM's checksum, bit by bit.
pub fn lvm2_sum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0xF597_A6CF, |sum: u32, byte| {
        let mixed = sum ^ u32::from(*byte);
        (0..8).fold(mixed, |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xEDB8_8320 } else { sum >> 1 })
    })
}

/// Makes the checksums of the label in the second sector, of the first metadata area and of its text right.
fn reseal_lvm2(disk: &mut Sparse) -> Option<()> {
    let mut label = disk.bytes(512, 512)?;
    if !label.starts_with(b"LABELONE") {
        return None;
    }
    let sum = lvm2_sum(&label[20..]).to_le_bytes();
    label[16..20].copy_from_slice(&sum);
    disk.write(512, &label);
    // Header, one data area, the end of that list.
    let area = le64(&label, 32 + 40 + 32);
    let mut header = disk.bytes(area, 512)?;
    if let Some(text) =
        area.checked_add(le64(&header, 40)).and_then(|at| disk.bytes(at, le64(&header, 48)))
    {
        header[56..60].copy_from_slice(&lvm2_sum(&text).to_le_bytes());
    }
    let sum = lvm2_sum(&header[4..]).to_le_bytes();
    header[..4].copy_from_slice(&sum);
    disk.write(area, &header);
    Some(())
}
