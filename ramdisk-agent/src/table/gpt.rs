//! The GUID partition table: both copies read and checked, and made for a disk of another size.
//!
//! Follows the UEFI specification 2.10, chapter 5. Nothing of a copy is used before its checksums were found right. Sectors are
//! kept as they were read, so that what the specification reserves, and what vendors put there, survives; only the fields that
//! depend on the size of the disk are changed. An array of entries has at most [`MAX_ENTRY_ARRAY_BYTES`].

mod arranged;
pub mod fresh;
mod identity;
mod retargeted;

use std::io::{self, Read, Seek};

use crc::{CRC_32_ISO_HDLC, Crc};
use thiserror::Error;
use uuid::Uuid;

use super::mbr::Mbr;
use super::{
    Partition, SECTOR_BYTES, Sectors, Table, TableKind, TableOutcome, TablePiece, TableRefusal,
    check_layout, place, u32_at, u64_at,
};
use crate::extents::Extents;

const CRC32: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
/// 8192 entries of the usual size; 128 are usual.
const MAX_ENTRY_ARRAY_BYTES: u64 = 1 << 20;
const MIN_ENTRY_BYTES: u32 = 128;
const MAX_ENTRY_BYTES: u32 = 4096;
/// Header up to the last defined field.
const HEADER_LEN: usize = 92;
const MAJOR_REVISION: u32 = 1;
const PRIMARY_LBA: u64 = 1;
/// Where the primary's entries are unless its header says otherwise.
const PRIMARY_ENTRIES_LBA: u64 = 2;
const LEGACY_BOOT_BIT: u64 = 1 << 2;
/// Field of a header: the checksum of the entries.
const ENTRIES_CHECKSUM: usize = 88;

/// What is wrong with a copy of a GPT.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Damage {
    /// It would lie behind the end of the disk.
    #[error("the disk ends before it")]
    OffDisk,
    /// The magic number is missing.
    #[error("no GPT header at LBA {lba}")]
    NoSignature {
        /// Where it was looked for.
        lba: u64,
    },
    /// Its revision or its length is none that is known.
    #[error("a header of revision {revision:#x} and {len} bytes, which is not known")]
    UnknownHeader {
        /// The revision.
        revision: u32,
        /// The header's length.
        len: u32,
    },
    /// The checksum of the header does not fit.
    #[error("the header's checksum is wrong")]
    HeaderChecksum,
    /// The header says that it lies elsewhere.
    #[error("the header at LBA {found} says that it belongs at LBA {claimed}")]
    Misplaced {
        /// Where it is.
        found: u64,
        /// Where it says it is.
        claimed: u64,
    },
    /// Partitions could begin nowhere: Linux refuses such a header as well.
    #[error("the header gives LBA {first} to {last} to partitions, which cannot be on this disk")]
    UsableRange {
        /// The first usable block.
        first: u64,
        /// The last.
        last: u64,
    },
    /// An array of entries that cannot be.
    #[error("the header claims {count} entries of {entry_bytes} bytes at LBA {lba}")]
    EntryArray {
        /// Number of entries.
        count: u32,
        /// Bytes in one.
        entry_bytes: u32,
        /// Where they would begin.
        lba: u64,
    },
    /// The checksum of the entries does not fit.
    #[error("the entries' checksum is wrong")]
    EntriesChecksum,
}

/// The fields of a header whose checksum is right.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Header {
    alternate_lba: u64,
    first_usable_lba: u64,
    last_usable_lba: u64,
    disk_guid: [u8; 16],
    entries_lba: u64,
    count: u32,
    entry_bytes: u32,
    entries_checksum: u32,
}

impl Header {
    fn parse(sector: &[u8], lba: u64) -> Result<Self, Damage> {
        if &sector[..8] != b"EFI PART" {
            return Err(Damage::NoSignature { lba });
        }
        let (revision, len) = (u32_at(sector, 8), u32_at(sector, 12));
        let covered =
            usize::try_from(len).ok().filter(|len| (HEADER_LEN..=sector.len()).contains(len));
        let covered = match covered {
            Some(covered) if revision >> 16 == MAJOR_REVISION => covered,
            _ => return Err(Damage::UnknownHeader { revision, len }),
        };
        if u32_at(sector, 16) != checksum(&sector[..covered]) {
            return Err(Damage::HeaderChecksum);
        }
        let claimed = u64_at(sector, 24);
        if claimed != lba {
            return Err(Damage::Misplaced { found: lba, claimed });
        }
        Ok(Self {
            alternate_lba: u64_at(sector, 32),
            first_usable_lba: u64_at(sector, 40),
            last_usable_lba: u64_at(sector, 48),
            disk_guid: sector[56..72].try_into().expect("sixteen bytes"),
            entries_lba: u64_at(sector, 72),
            count: u32_at(sector, 80),
            entry_bytes: u32_at(sector, 84),
            entries_checksum: u32_at(sector, 88),
        })
    }

    /// The length of the array, if it is one that can be.
    fn array_len(&self) -> Option<usize> {
        array_len(self.count, self.entry_bytes)
    }

    /// The lengths of the array and of an entry that a header states, if they can be.
    fn array_of(sector: &[u8]) -> Option<(usize, usize)> {
        let (count, entry_bytes) = (u32_at(sector, 80), u32_at(sector, 84));
        Some((array_len(count, entry_bytes)?, usize::try_from(entry_bytes).ok()?))
    }
}

fn array_len(count: u32, entry_bytes: u32) -> Option<usize> {
    let sane =
        entry_bytes.is_power_of_two() && (MIN_ENTRY_BYTES..=MAX_ENTRY_BYTES).contains(&entry_bytes);
    let len = u64::from(count) * u64::from(entry_bytes);
    (sane && (1..=MAX_ENTRY_ARRAY_BYTES).contains(&len))
        .then(|| usize::try_from(len).ok())
        .flatten()
}

/// The checksum of a header, whose own field counts as zero.
fn checksum(header: &[u8]) -> u32 {
    let mut digest = CRC32.digest();
    digest.update(&header[..16]);
    digest.update(&[0; 4]);
    digest.update(&header[20..]);
    digest.finalize()
}

/// A copy of the table: whole sectors, and where they belong.
#[derive(Debug, Clone)]
struct Copy {
    header_lba: u64,
    entries_lba: u64,
    header: Vec<u8>,
    entries: Vec<u8>,
}

impl Copy {
    fn sectors(&self, sectors: Sectors) -> Extents {
        let mut own = Extents::single(sectors.offset(self.header_lba), u64::from(sectors.bytes));
        own.insert(sectors.offset(self.entries_lba), self.entries.len() as u64);
        own
    }

    /// Makes the header say where it is, for a disk whose other copy and last usable sector are given.
    fn settle(&mut self, alternate_lba: u64, last_usable_lba: u64) {
        self.header[24..32].copy_from_slice(&self.header_lba.to_le_bytes());
        self.header[32..40].copy_from_slice(&alternate_lba.to_le_bytes());
        self.header[48..56].copy_from_slice(&last_usable_lba.to_le_bytes());
        self.header[72..80].copy_from_slice(&self.entries_lba.to_le_bytes());
        self.seal();
    }

    /// Makes the header's own checksum right.
    fn seal(&mut self) {
        let covered = usize::try_from(u32_at(&self.header, 12)).expect("checked when it was read");
        let sum = checksum(&self.header[..covered]);
        self.header[16..20].copy_from_slice(&sum.to_le_bytes());
    }

    /// Both copies of a GPT with the same header and entries, the backup first, which lies between the
    /// last usable sector and the disk's end.
    fn twins(
        header: Vec<u8>,
        entries: Vec<u8>,
        sectors: Sectors,
        last_usable_lba: u64,
    ) -> Vec<TablePiece> {
        let backup_lba = sectors.count - 1;
        let mut backup = Self {
            header_lba: backup_lba,
            entries_lba: last_usable_lba + 1,
            header: header.clone(),
            entries: entries.clone(),
        };
        let mut primary =
            Self { header_lba: PRIMARY_LBA, entries_lba: PRIMARY_ENTRIES_LBA, header, entries };
        backup.settle(PRIMARY_LBA, last_usable_lba);
        primary.settle(backup_lba, last_usable_lba);
        let mut pieces = backup.pieces("backup GPT", sectors);
        pieces.extend(primary.pieces("primary GPT", sectors));
        pieces
    }

    /// The header and the entries, as one piece where they touch.
    fn pieces(&self, name: &'static str, sectors: Sectors) -> Vec<TablePiece> {
        let header = TablePiece {
            name,
            offset: sectors.offset(self.header_lba),
            bytes: self.header.clone(),
        };
        let entries = TablePiece {
            name,
            offset: sectors.offset(self.entries_lba),
            bytes: self.entries.clone(),
        };
        let (mut low, high) =
            if header.offset < entries.offset { (header, entries) } else { (entries, header) };
        if low.offset + low.bytes.len() as u64 == high.offset {
            low.bytes.extend_from_slice(&high.bytes);
            return vec![low];
        }
        // A header is what makes the entries valid: it comes last.
        let entries_first =
            if high.offset == sectors.offset(self.header_lba) { [low, high] } else { [high, low] };
        entries_first.into()
    }
}

/// A copy that cannot be used, with what of it can.
struct Unsound {
    damage: Damage,
    /// Where its entries belong, if its header is right.
    entries_lba: Option<u64>,
}

impl From<Damage> for Unsound {
    fn from(damage: Damage) -> Self {
        Self { damage, entries_lba: None }
    }
}

type Sound = (Header, Copy);

fn read_copy(
    src: &mut (impl Read + Seek),
    sectors: Sectors,
    lba: u64,
) -> io::Result<Result<Sound, Unsound>> {
    if lba == 0 || lba >= sectors.count {
        return Ok(Err(Damage::OffDisk.into()));
    }
    let sector = sectors.read(src, lba, 1)?;
    let header = match Header::parse(&sector, lba) {
        Ok(header) => header,
        Err(damage) => return Ok(Err(damage.into())),
    };
    let Header { count, entry_bytes, entries_lba, .. } = header;
    let (first, last) = (header.first_usable_lba, header.last_usable_lba);
    if first > last || first >= sectors.count {
        return Ok(Err(Damage::UsableRange { first, last }.into()));
    }
    let impossible = Damage::EntryArray { count, entry_bytes, lba: entries_lba };
    let Some(len) = header.array_len() else { return Ok(Err(impossible.into())) };
    let taken = sectors.holding(len);
    let inside = entries_lba > PRIMARY_LBA
        && entries_lba.checked_add(taken).is_some_and(|end| end <= sectors.count)
        && !(entries_lba..entries_lba + taken).contains(&lba);
    if !inside {
        return Ok(Err(impossible.into()));
    }
    let entries = sectors.read(src, entries_lba, taken)?;
    if CRC32.checksum(&entries[..len]) != header.entries_checksum {
        return Ok(Err(Unsound {
            damage: Damage::EntriesChecksum,
            entries_lba: Some(entries_lba),
        }));
    }
    Ok(Ok((header, Copy { header_lba: lba, entries_lba, header: sector, entries })))
}

/// Whether there is a primary GPT that can be used.
pub fn is_sound(src: &mut (impl Read + Seek), sectors: Sectors) -> io::Result<bool> {
    Ok(read_copy(src, sectors, PRIMARY_LBA)?.is_ok())
}

/// A GPT as it is to be written again.
#[derive(Debug, Clone)]
pub struct Gpt {
    disk: Sectors,
    /// Says what both copies say if the disk's size changes.
    header: Header,
    primary: Copy,
    /// `None` if it is damaged and a partition lies where it would be.
    backup: Option<Copy>,
    /// The copies say the same.
    agree: bool,
    /// The one that is used.
    used: Copy,
}

/// The table of a disk that has a protective MBR, or nothing else.
pub fn read(
    src: &mut (impl Read + Seek),
    sectors: Sectors,
    mbr: Option<&Mbr>,
) -> io::Result<TableOutcome> {
    let primary = read_copy(src, sectors, PRIMARY_LBA)?;
    let backup = read_backup(src, sectors, primary.as_ref().ok().map(|(header, _)| header), mbr)?;
    if let (Err(primary), Err(backup)) = (&primary, &backup) {
        for table in SECTOR_BYTES.into_iter().filter(|bytes| *bytes != sectors.bytes) {
            if is_sound(src, Sectors::new(sectors.disk_bytes, table)?)? {
                return Ok(TableOutcome::Refused(TableRefusal::SectorSize {
                    kind: "GPT",
                    table,
                    disk: sectors.bytes,
                }));
            }
        }
        let (primary, backup) = (primary.damage.clone(), backup.damage.clone());
        return Ok(TableOutcome::Refused(TableRefusal::BothDamaged { primary, backup }));
    }
    Ok(match assemble(sectors, primary, backup, mbr) {
        Ok(table) => TableOutcome::Table(table),
        Err(refusal) => TableOutcome::Refused(refusal),
    })
}

/// Looks for the backup where the primary says, else at the disk's end, else at the end of the disk that the protective MBR
/// was made for. An error is that of the first place.
fn read_backup(
    src: &mut (impl Read + Seek),
    sectors: Sectors,
    primary: Option<&Header>,
    mbr: Option<&Mbr>,
) -> io::Result<Result<Sound, Unsound>> {
    let mut places: Vec<u64> = primary.map(|header| header.alternate_lba).into_iter().collect();
    places.push(sectors.count - 1);
    places.extend(mbr.and_then(Mbr::protective).map(|entry| entry.end() - 1));
    let mut first = None;
    for lba in places.into_iter().filter(|lba| *lba != PRIMARY_LBA) {
        match read_copy(src, sectors, lba)? {
            Ok(sound) => return Ok(Ok(sound)),
            Err(unsound) => first = first.or(Some(unsound)),
        }
    }
    Ok(Err(first.unwrap_or_else(|| Damage::OffDisk.into())))
}

fn assemble(
    sectors: Sectors,
    primary: Result<Sound, Unsound>,
    backup: Result<Sound, Unsound>,
    mbr: Option<&Mbr>,
) -> Result<Table, TableRefusal> {
    let (header, used) = match (&primary, &backup) {
        (Ok(sound), _) | (Err(_), Ok(sound)) => sound.clone(),
        (Err(primary), Err(backup)) => {
            let (primary, backup) = (primary.damage.clone(), backup.damage.clone());
            return Err(TableRefusal::BothDamaged { primary, backup });
        }
    };
    let mut warnings = warnings(sectors, &header, &primary, &backup, mbr);
    let agree = match (&primary, &backup) {
        (Ok(a), Ok(b)) => same(a, b),
        _ => true,
    };
    if !agree {
        warnings.push("the two copies of the GPT differ; the primary is used".into());
    }
    let mut partitions = partitions(sectors, &header, &used, &mut warnings)?;
    let primary = primary.map(|(_, copy)| copy).unwrap_or_else(|unsound| {
        let entries_lba = unsound.entries_lba.unwrap_or(PRIMARY_ENTRIES_LBA);
        let mut copy = Copy { header_lba: PRIMARY_LBA, entries_lba, ..used.clone() };
        copy.settle(used.header_lba, header.last_usable_lba);
        copy
    });
    let mut metadata = Extents::single(0, u64::from(sectors.bytes));
    metadata = metadata.union(&primary.sectors(sectors));
    let backup = match backup {
        Ok((_, copy)) => Some(copy),
        Err(unsound) => {
            let damage = unsound.damage;
            let made = remade_backup(sectors, &header, &primary, &partitions);
            warnings.push(match made {
                Some(_) => format!("the backup GPT is damaged ({damage}); it will be restored from the primary"),
                None => format!("the backup GPT is damaged ({damage}), and there is no room for another before the disk's end; none will be written"),
            });
            made
        }
    };
    if let Some(copy) = &backup {
        metadata = metadata.union(&copy.sectors(sectors));
    }
    check_layout(&mut partitions, &metadata)?;
    Ok(Table {
        kind: TableKind::Gpt,
        disk_id: Some(Uuid::from_bytes_le(header.disk_guid).to_string()),
        logical_sector_bytes: sectors.bytes,
        first_usable_lba: Some(header.first_usable_lba),
        last_usable_lba: Some(header.last_usable_lba),
        partitions,
        warnings,
        may_lie_elsewhere: false,
        metadata,
        gpt: Some(Gpt { disk: sectors, header, primary, backup, agree, used }),
        extended: None,
        new_signature: None,
    })
}

/// Whether two copies describe the same table.
fn same((a, a_copy): &Sound, (b, b_copy): &Sound) -> bool {
    let said =
        |h: &Header| (h.first_usable_lba, h.last_usable_lba, h.disk_guid, h.count, h.entry_bytes);
    let len = a.array_len().unwrap_or(0);
    said(a) == said(b) && a_copy.entries[..len] == b_copy.entries[..len]
}

fn warnings(
    sectors: Sectors,
    header: &Header,
    primary: &Result<Sound, Unsound>,
    backup: &Result<Sound, Unsound>,
    mbr: Option<&Mbr>,
) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Err(unsound) = primary {
        let damage = &unsound.damage;
        warnings.push(format!("the primary GPT is damaged ({damage}); the backup is used, and both will be restored from it"));
    }
    // Whether a damaged one can be made anew is not known yet.
    if let Ok((_, copy)) = backup
        && copy.header_lba != sectors.count - 1
    {
        warnings.push(format!(
            "the backup GPT is at LBA {} and not at the disk's end, LBA {}: the disk has grown since it was partitioned",
            copy.header_lba,
            sectors.count - 1
        ));
    }
    if header.last_usable_lba >= sectors.count {
        warnings.push("the GPT was made for a larger disk".into());
    }
    match mbr.map(|mbr| (mbr.protective().is_some(), mbr.count())) {
        Some((true, 0)) => {}
        Some((true, count)) => {
            warnings.push(format!(
                "hybrid MBR: {count} entries beside the GPT's; they are kept, and the GPT is used"
            ));
        }
        _ => warnings.push("the GPT has no protective MBR: most systems will not see it".into()),
    }
    warnings
}

fn partitions(
    sectors: Sectors,
    header: &Header,
    used: &Copy,
    warnings: &mut Vec<String>,
) -> Result<Vec<Partition>, TableRefusal> {
    let entry_len = usize::try_from(header.entry_bytes).expect("at most 4096");
    let array = &used.entries[..header.array_len().unwrap_or(0)];
    let mut partitions = Vec::new();
    for (entry, number) in array.chunks_exact(entry_len).zip(1..) {
        let guid =
            |at: usize| -> [u8; 16] { entry[at..at + 16].try_into().expect("sixteen bytes") };
        if guid(0) == [0; 16] {
            continue;
        }
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        let (start_bytes, len_bytes) = place(sectors, number, first, u128::from(last) + 1)?;
        if first < header.first_usable_lba || last > header.last_usable_lba {
            warnings.push(format!(
                "partition {number} lies outside the range that the GPT gives to partitions"
            ));
        }
        let attributes = u64_at(entry, 48);
        partitions.push(Partition {
            number,
            start_bytes,
            len_bytes,
            type_id: Uuid::from_bytes_le(guid(0)).to_string(),
            uuid: Some(guid(16))
                .filter(|id| *id != [0; 16])
                .map(|id| Uuid::from_bytes_le(id).to_string()),
            name: name(&entry[56..128]),
            attributes,
            bootable: attributes & LEGACY_BOOT_BIT != 0,
        });
    }
    Ok(partitions)
}

fn name(bytes: &[u8]) -> Option<String> {
    let units = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    (!units.is_empty()).then(|| String::from_utf16_lossy(&units))
}

/// A backup made from the primary, where the primary says or else at the disk's end, if nothing else lies there.
fn remade_backup(
    sectors: Sectors,
    header: &Header,
    primary: &Copy,
    partitions: &[Partition],
) -> Option<Copy> {
    let taken = sectors.holding(primary.entries.len());
    [header.alternate_lba, sectors.count - 1]
        .into_iter()
        .filter(|lba| *lba < sectors.count)
        .find_map(|header_lba| {
            let entries_lba = header_lba.checked_sub(taken)?;
            let mut copy = Copy { header_lba, entries_lba, ..primary.clone() };
            copy.settle(PRIMARY_LBA, header.last_usable_lba);
            let own = copy.sectors(sectors);
            let mut others = primary.sectors(sectors);
            others.insert(0, u64::from(sectors.bytes));
            for partition in partitions {
                others.insert(partition.start_bytes, partition.len_bytes);
            }
            own.iter().all(|e| others.overlapping(e.start, e.len).next().is_none()).then_some(copy)
        })
}
