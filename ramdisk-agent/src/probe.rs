//! What a disk or a volume holds, told by signatures.
//!
//! Two questions are answered here: what would be destroyed on a target ([`signatures`], everything, with where it is), and what a
//! volume is that has no used-block map ([`volume`]). Signatures are read as libblkid reads them, and each is checked beyond its
//! magic number where the format allows it. Where several are found, what a later formatter would have overwritten loses. Only
//! places that are known in advance are read, so a hostile disk costs no more than an empty one. Deliberately absent: whether
//! a filesystem is sound.

mod firmware;
mod front;
mod raid;
mod zfs;

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};

use crate::extents::Extent;
use crate::fs::{self, FsKind};
use crate::seek;
use crate::table::{self, SECTOR_BYTES, Table, TableKind, TableOutcome};

pub(crate) use firmware::FirmwareRaid;
pub(crate) use front::lvm_crc;

/// Every signature at a volume's start lies in so many bytes.
const HEAD_LEN: usize = 72 << 10;
/// No more partitions than this are looked into, though a table may have thousands.
const MAX_PARTITIONS: usize = 128;

/// What a volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its kind.
    pub kind: FsKind,
    /// Its identity, as blkid prints it.
    pub uuid: Option<String>,
    /// Its label.
    pub label: Option<String>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(label) = &self.label {
            // Labels come from disks and go to terminals.
            write!(f, " '{}'", label.escape_debug())?;
        }
        match &self.uuid {
            Some(uuid) => write!(f, " (uuid {})", uuid.escape_debug()),
            None => Ok(()),
        }
    }
}

/// The kind of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SignatureKind {
    /// A GUID partition table, or a copy of one.
    Gpt,
    /// A master boot record.
    Mbr,
    /// A filesystem, or something else that fills a volume.
    Volume(FsKind),
    /// Metadata of a RAID that firmware runs.
    FirmwareRaid,
}

/// Something that a system would recognise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// What it is.
    pub kind: SignatureKind,
    /// Where its bytes are on the disk.
    pub offset: u64,
    /// How many bytes make it recognisable; without them it is gone.
    pub len: u64,
    /// A phrase for people: `partition 2: ext4 'root' (uuid …)`.
    pub what: String,
}

/// A signature in a volume.
#[derive(Debug, Clone)]
struct Hit {
    found: Found,
    /// Where it is in the volume.
    at: Extent,
    /// It repeats one at the volume's start.
    copy: bool,
}

impl Hit {
    fn new(
        kind: FsKind,
        start: u64,
        len: u64,
        uuid: Option<String>,
        label: Option<String>,
    ) -> Self {
        Self { found: Found { kind, uuid, label }, at: Extent { start, len }, copy: false }
    }
}

/// Everything that is recognised on a disk and in its partitions: tables first, then by place.
pub fn signatures(src: &mut (impl Read + Seek), len_bytes: u64) -> io::Result<Vec<Signature>> {
    let mut disk = Part::new(src, 0, len_bytes);
    let head = disk.head()?;
    let has_gpt = |bytes: u32| {
        usize::try_from(bytes).is_ok_and(|at| head.get(at..).is_some_and(is_gpt_header))
    };
    let sector_bytes =
        SECTOR_BYTES.into_iter().find(|bytes| has_gpt(*bytes)).unwrap_or(SECTOR_BYTES[0]);
    let mut list = Vec::new();
    let mut partitions = Vec::new();
    match table::read_table(disk.src, len_bytes, sector_bytes)? {
        TableOutcome::Table(table) => {
            list.extend(of_table(&table));
            partitions = table.partitions;
        }
        TableOutcome::Refused(refusal) => list.push(Signature {
            kind: if has_gpt(sector_bytes) { SignatureKind::Gpt } else { SignatureKind::Mbr },
            offset: 0,
            len: 512,
            what: format!("a partition table that cannot be used: {refusal}"),
        }),
    }
    if !list.iter().any(|s| s.kind == SignatureKind::Gpt && s.offset > 0) {
        list.extend(left_over_gpt(&mut disk)?);
    }
    let mut found = Vec::new();
    for partition in partitions.iter().take(MAX_PARTITIONS) {
        let mut part = Part::new(disk.src, partition.start_bytes, partition.len_bytes);
        let hits = hits(&mut part)?;
        let name = format!("partition {}: ", partition.number);
        if hits.is_empty() {
            let what = format!("{name}nothing that is known");
            let kind = SignatureKind::Volume(FsKind::Unknown);
            found.push(Signature { kind, offset: partition.start_bytes, len: 0, what });
        }
        found.extend(hits.into_iter().map(|hit| of_hit(&name, partition.start_bytes, hit)));
    }
    // The last partition's end may be the disk's: what is found there is the partition's.
    let seen = |found: &[Signature], new: &Signature| {
        found.iter().any(|s| s.offset == new.offset && s.kind == new.kind)
    };
    let of_firmware = firmware::find(&mut disk)?.map(|raid| raid.signature());
    for new in hits(&mut disk)?.into_iter().map(|hit| of_hit("", 0, hit)).chain(of_firmware) {
        if !seen(&found, &new) {
            found.push(new);
        }
    }
    found.sort_by_key(|s| s.offset);
    list.append(&mut found);
    Ok(list)
}

fn of_table(table: &Table) -> Vec<Signature> {
    let (kind, name) = match table.kind {
        TableKind::Gpt => (SignatureKind::Gpt, "GPT"),
        TableKind::Mbr => (SignatureKind::Mbr, "MBR"),
        TableKind::None => return Vec::new(),
    };
    let count = match table.partitions.len() {
        0 => "without partitions".to_owned(),
        1 => "with 1 partition".to_owned(),
        n => format!("with {n} partitions"),
    };
    let sectors = table.metadata.iter().enumerate().map(|(i, e)| {
        let what =
            if i == 0 { format!("{name} {count}") } else { format!("more sectors of the {name}") };
        Signature { kind, offset: e.start, len: e.len, what }
    });
    sectors.collect()
}

fn of_hit(name: &str, start: u64, hit: Hit) -> Signature {
    let copy = if hit.copy { ", another copy" } else { "" };
    Signature {
        kind: SignatureKind::Volume(hit.found.kind),
        offset: start + hit.at.start,
        len: hit.at.len,
        what: format!("{name}{}{copy}", hit.found),
    }
}

fn is_gpt_header(bytes: &[u8]) -> bool {
    bytes.starts_with(b"EFI PART")
}

/// The backup of a GPT that is not in use any more, at the disk's end.
fn left_over_gpt<S: Read + Seek>(disk: &mut Part<'_, S>) -> io::Result<Option<Signature>> {
    for bytes in SECTOR_BYTES.map(u64::from) {
        let Some(offset) = (disk.len / bytes).checked_sub(1).map(|lba| lba * bytes) else {
            continue;
        };
        if disk.bytes(offset, 8)?.as_deref().is_some_and(is_gpt_header) {
            let what = "a left-over backup GPT".to_owned();
            return Ok(Some(Signature { kind: SignatureKind::Gpt, offset, len: bytes, what }));
        }
    }
    Ok(None)
}

/// What owns a volume's first sector by a mark that no boot code has.
pub(crate) fn boot_sector(
    src: &mut (impl Read + Seek),
    len_bytes: u64,
) -> io::Result<Option<Found>> {
    let mut part = Part::new(src, 0, len_bytes);
    let head = part.head()?;
    Ok(labelled_boot_sector(&mut part, &head)?.map(|hit| hit.found))
}

fn labelled_boot_sector<S: Read + Seek>(
    part: &mut Part<'_, S>,
    head: &[u8],
) -> io::Result<Option<Hit>> {
    let Some(mut hit) = front::boot_sector(head) else { return Ok(None) };
    if hit.found.kind == FsKind::Ntfs {
        hit.found.label = front::ntfs_label(part, head)?;
    }
    if hit.found.kind == FsKind::Exfat {
        hit.found.label = front::exfat_label(part, head)?;
    }
    Ok(Some(hit))
}

/// Recognises a btrfs, or a volume that has no used-block map; `None` for ext, XFS, NTFS, exFAT, FAT and swap, and for what is not known.
pub fn volume(src: &mut (impl Read + Seek), len_bytes: u64) -> io::Result<Option<Found>> {
    let hits = hits(&mut Part::new(src, 0, len_bytes))?;
    let first = hits
        .into_iter()
        .map(|hit| hit.found)
        .take_while(|f| !is_fat(f.kind))
        .find(|f| !is_told_elsewhere(f.kind));
    Ok(first)
}

/// What is made behind a volume's first sector and may leave an older filesystem's superblock there: the filesystem's own formatter
/// would have overwritten it, so it is the later one. Gives the signature's place, too.
pub(crate) fn covering(
    src: &mut (impl Read + Seek),
    len_bytes: u64,
) -> io::Result<Option<(Found, Extent)>> {
    let mut part = Part::new(src, 0, len_bytes);
    let head = part.head()?;
    let hit = match raid::md_front(&head) {
        Some(hit) => Some(hit),
        None => zfs::first_label(&mut part)?.or_else(|| front::lvm2(&head)),
    };
    Ok(hit.map(|hit| (hit.found, hit.at)))
}

/// A member of a software RAID whose metadata are near its end, and where they begin. What is before them begins as what the array
/// holds does, and is the whole of it in a mirror only.
pub(crate) fn member(
    src: &mut (impl Read + Seek),
    len_bytes: u64,
) -> io::Result<Option<(Found, u64)>> {
    let member = raid::md_member(&mut Part::new(src, 0, len_bytes))?;
    Ok(member.map(|member| (member.hit.found, member.hit.at.start)))
}

/// Whether a whole disk is a member of an array that is no mirror: the partitions that it shows are the array's.
pub(crate) fn is_striped(src: &mut (impl Read + Seek), len_bytes: u64) -> bool {
    // Where the end of a disk cannot be read, the copy of its GPT is missed first: that is for the table to say.
    let member = raid::md_member(&mut Part::new(src, 0, len_bytes)).unwrap_or(None);
    member.is_some_and(|member| member.fills && !member.is_mirror)
        || firmware(src, len_bytes).is_some_and(|raid| raid.is_striped)
}

/// The RAID of a firmware that a whole disk is a member of; `None` too where the end of the disk cannot be read.
pub(crate) fn firmware(src: &mut (impl Read + Seek), len_bytes: u64) -> Option<FirmwareRaid> {
    firmware::find(&mut Part::new(src, 0, len_bytes)).unwrap_or(None)
}

/// The name of a filesystem that has no map and may leave an older one's superblock, and with it a map of what was there before.
pub(crate) fn stranger(
    src: &mut (impl Read + Seek),
    len_bytes: u64,
) -> io::Result<Option<&'static str>> {
    let mut part = Part::new(src, 0, len_bytes);
    let head = part.head()?;
    if let Some(name) = front::stranger(&head) {
        return Ok(Some(name));
    }
    let magic = Part::bytes(&mut part, front::VMFS_AT, front::VMFS_MAGIC.len())?;
    Ok(magic.filter(|bytes| *bytes == front::VMFS_MAGIC).map(|_| "VMFS"))
}

/// What fills a whole disk, with or without a map.
pub(crate) fn whole(src: &mut (impl Read + Seek), len_bytes: u64) -> io::Result<Option<Found>> {
    Ok(hits(&mut Part::new(src, 0, len_bytes))?.into_iter().next().map(|hit| hit.found))
}

/// Whether a volume begins in the disk's first sector, so that no partition table can be there; or is a hybrid ISO image.
pub(crate) fn starts_with_volume(src: &mut (impl Read + Seek), len_bytes: u64) -> io::Result<bool> {
    let mut disk = Part::new(src, 0, len_bytes);
    let head = disk.head()?;
    if owns_boot_sector(&head) || front::iso9660(&head).is_some() {
        return Ok(true);
    }
    Ok(fs::recognise(&mut disk, len_bytes)?.is_some_and(|(found, _)| is_fat(found.kind)))
}

/// Whether a sector is the first of a volume by a mark that no boot code has.
pub(crate) fn owns_boot_sector(sector: &[u8]) -> bool {
    front::boot_sector(sector).is_some()
}

fn is_fat(kind: FsKind) -> bool {
    matches!(kind, FsKind::Fat12 | FsKind::Fat16 | FsKind::Fat32)
}

/// What [`fs::map_volume`] has looked for, or will look for, by itself.
fn is_told_elsewhere(kind: FsKind) -> bool {
    use FsKind::{Exfat, Ext2, Ext3, Ext4, Ntfs, Swap, Xfs};
    is_fat(kind) || matches!(kind, Exfat | Ext2 | Ext3 | Ext4 | Ntfs | Swap | Xfs)
}

/// Everything that a volume carries, what is most likely in use first.
fn hits<S: Read + Seek>(part: &mut Part<'_, S>) -> io::Result<Vec<Hit>> {
    let head = part.head()?;
    let mut hits = Vec::new();
    hits.extend(labelled_boot_sector(part, &head)?);
    let len = part.len;
    let mapped = fs::recognise(part, len)?.map(|(found, at)| Hit { found, at, copy: false });
    // mdadm and zpool leave the first sectors as they are, and with them superblocks of ext and swap and FAT's boot sector, and
    // pvcreate may; the formatters of those overwrite what these write. So these come first.
    hits.extend(raid::md_front(&head));
    let labels = zfs::labels(part)?;
    let (zfs_front, zfs_back): (Vec<Hit>, Vec<Hit>) = labels.into_iter().partition(|hit| !hit.copy);
    hits.extend(zfs_front);
    hits.extend(front::lvm2(&head));
    let (fat, other): (Vec<Hit>, Vec<Hit>) =
        mapped.into_iter().partition(|hit| is_fat(hit.found.kind));
    hits.extend(other);
    // The makers of these clear the boot sector, and mkfs.fat may leave them: so these come behind it.
    hits.extend(fat);
    hits.extend(front::btrfs(&head));
    hits.extend(front::iso9660(&head));
    hits.extend(raid::md_back(part)?);
    hits.extend(zfs_back);
    Ok(hits)
}

/// A part of a disk.
pub(crate) struct Part<'a, S> {
    src: &'a mut S,
    start: u64,
    len: u64,
    at: u64,
}

impl<'a, S: Read + Seek> Part<'a, S> {
    pub(crate) fn new(src: &'a mut S, start: u64, len: u64) -> Self {
        Self { src, start, len, at: 0 }
    }

    /// `None` if they do not all lie in the part.
    fn bytes(&mut self, offset: u64, len: usize) -> io::Result<Option<Vec<u8>>> {
        if offset.checked_add(len as u64).is_none_or(|end| end > self.len) {
            return Ok(None);
        }
        let mut bytes = vec![0; len];
        self.seek(SeekFrom::Start(offset))?;
        self.read_exact(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn head(&mut self) -> io::Result<Vec<u8>> {
        let len = usize::try_from(self.len).unwrap_or(HEAD_LEN).min(HEAD_LEN);
        Ok(self.bytes(0, len)?.unwrap_or_default())
    }
}

impl<S: Read + Seek> Read for Part<'_, S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.len.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let len = left.min(buf.len());
        self.src.seek(SeekFrom::Start(self.start + self.at))?;
        let read = self.src.read(&mut buf[..len])?;
        self.at += read as u64;
        Ok(read)
    }
}

impl<S: Read + Seek> Seek for Part<'_, S> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = seek::place(self.at, self.len, to)?;
        Ok(self.at)
    }
}

/// Some bytes at a place that may not be there.
fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    field(bytes, at).map(u16::from_le_bytes)
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    field(bytes, at).map(u32::from_le_bytes)
}

fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    field(bytes, at).map(u64::from_le_bytes)
}

/// A UUID in the byte order of its text; none if it is zero.
fn uuid(bytes: &[u8], at: usize) -> Option<String> {
    field::<16>(bytes, at)
        .filter(|id| *id != [0; 16])
        .map(|id| uuid::Uuid::from_bytes(id).to_string())
}

/// Text up to a NUL, without the spaces that fill it up.
fn text(bytes: Option<&[u8]>) -> Option<String> {
    let bytes = bytes?.split(|b| *b == 0).next()?;
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_end();
    (!text.is_empty()).then(|| text.to_owned())
}

fn utf16(bytes: &[u8]) -> Option<String> {
    let units = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    (!units.is_empty()).then(|| String::from_utf16_lossy(&units))
}

#[cfg(test)]
mod tests;
