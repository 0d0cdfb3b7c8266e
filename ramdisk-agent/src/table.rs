//! Partition tables: what a disk is divided into, and the table's sectors for a disk of another size.
//!
//! [`read_table`] tells GPT, MBR and bare filesystems apart, as the kernel would, and refuses a table that cannot be trusted
//! rather than guess. Everything in it is checked against the size of the disk, so callers may use its offsets as they are. The
//! only allocation that a table sizes is its array of entries, and that has a limit. [`arrange`] makes the bytes that a restore
//! writes last, for a disk of any size on which the partitions may lie elsewhere, and [`retarget()`] those for a disk with sectors of
//! another size. Where they are to lie is for others to say.

mod chain;
mod fresh;
mod gpt;
mod identity;
mod kinds;
mod logical;
mod mbr;
mod retarget;

use std::io::{self, Read, Seek, SeekFrom};

use thiserror::Error;

use crate::extents::Extents;
use crate::probe;
use gpt::Gpt;
use mbr::Mbr;

pub use chain::{FreshLogical, logical_pieces};
pub use fresh::{FreshPartition, described, pieces as fresh_pieces, room_end};
pub use gpt::Damage;
pub use kinds::{TypeId, attribute_of, type_in, type_names, type_of};
pub(crate) use mbr::is_extended;
pub use retarget::{Retargetable, retarget, retargetable};

/// The bytes of LBA 0 that an MBR uses, at every sector size.
pub(crate) const MBR_LEN: usize = 512;
/// The name of a [`TablePiece`] that is a table of logical partitions.
pub const LOGICAL_TABLES: &str = "logical partitions";
/// The logical sector sizes that disks have.
pub(crate) const SECTOR_BYTES: [u32; 2] = [512, 4096];

/// The kind of a partition table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TableKind {
    /// A GUID partition table.
    Gpt,
    /// A master boot record, with primary and logical partitions.
    Mbr,
    /// None: the disk holds one bare filesystem, or nothing that is known.
    None,
}

/// A partition. Its bytes lie within the disk, outside the table's own sectors, and in no other partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number, as Linux counts: from 1, by its place in the table.
    pub number: u32,
    /// Where it starts, in bytes.
    pub start_bytes: u64,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// Its type as blkid prints it: a GUID, or for an MBR `0x83`.
    pub type_id: String,
    /// Its own identity as blkid prints it (PARTUUID).
    pub uuid: Option<String>,
    /// Its name; only a GPT has names.
    pub name: Option<String>,
    /// The attribute bits of a GPT.
    pub attributes: u64,
    /// Whether a BIOS may boot it: the MBR's active flag, the GPT's legacy boot bit.
    pub bootable: bool,
}

/// What a disk is divided into.
#[derive(Debug, Clone)]
pub struct Table {
    /// GPT, MBR or none.
    pub kind: TableKind,
    /// The disk's GUID, or the MBR's signature in hex, as blkid prints it (PTUUID).
    pub disk_id: Option<String>,
    /// The sector size that its numbers are counted in.
    pub logical_sector_bytes: u32,
    /// The first LBA that a GPT gives to partitions.
    pub first_usable_lba: Option<u64>,
    /// The last LBA that a GPT gives to partitions.
    pub last_usable_lba: Option<u64>,
    /// The partitions, by their start.
    pub partitions: Vec<Partition>,
    /// What is odd but not wrong, in sentences without a full stop.
    pub warnings: Vec<String>,
    /// Whether its partitions may lie elsewhere, as it may count in larger sectors.
    pub may_lie_elsewhere: bool,
    /// The table's own sectors: LBA 0, headers and entries of both copies, tables of logical partitions. Empty if there is no table.
    pub metadata: Extents,
    gpt: Option<Gpt>,
    extended: Option<logical::Extended>,
    /// What the signature in LBA 0 is to be; `None`: what it is.
    new_signature: Option<u32>,
}

/// Where a partition is to lie on a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// The partition's number.
    pub number: u32,
    /// Where it starts, in bytes.
    pub start_bytes: u64,
    /// Its length in bytes.
    pub len_bytes: u64,
}

impl Slot {
    /// First byte behind it.
    #[must_use]
    pub fn end_bytes(&self) -> u64 {
        self.start_bytes + self.len_bytes
    }
}

impl Table {
    /// That there is none.
    #[must_use]
    pub fn none(logical_sector_bytes: u32) -> Self {
        Self {
            kind: TableKind::None,
            disk_id: None,
            logical_sector_bytes,
            first_usable_lba: None,
            last_usable_lba: None,
            partitions: Vec::new(),
            warnings: Vec::new(),
            may_lie_elsewhere: false,
            metadata: Extents::new(),
            gpt: None,
            extended: None,
            new_signature: None,
        }
    }

    /// The places that the partitions have now.
    #[must_use]
    pub fn slots(&self) -> Vec<Slot> {
        let slot = |p: &Partition| Slot {
            number: p.number,
            start_bytes: p.start_bytes,
            len_bytes: p.len_bytes,
        };
        self.partitions.iter().map(slot).collect()
    }

    /// How many bytes in front of a partition belong to it: those from the table that leads to a logical partition.
    #[must_use]
    pub fn front_bytes(&self, partition: &Partition) -> u64 {
        let table = self.extended.as_ref().and_then(|e| e.table_of(partition.number));
        table.map_or(0, |at| partition.start_bytes.saturating_sub(at))
    }

    /// Whether there is an extended partition with a table in it.
    #[must_use]
    pub fn has_extended(&self) -> bool {
        self.extended.is_some()
    }

    /// Where the space for partitions ends on a disk of that size: before the backup GPT, or where an MBR cannot count further.
    #[must_use]
    pub fn room_end(&self, disk_bytes: u64) -> u64 {
        let sector = u64::from(self.logical_sector_bytes);
        let sectors = disk_bytes / sector;
        let end = match (&self.gpt, self.kind) {
            (Some(gpt), _) => sectors.saturating_sub(gpt.backup_sectors()),
            (None, TableKind::Mbr) => sectors.min(1 << 32),
            (None, _) => sectors,
        };
        end * sector
    }
}

/// What was found.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "made once for a disk and taken apart at once")]
pub enum TableOutcome {
    /// A table, or surely none.
    Table(Table),
    /// Something that must not be acted on.
    Refused(TableRefusal),
}

/// Why a table is not used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TableRefusal {
    /// Both copies of a GPT are damaged.
    #[error(
        "both copies of the GPT are damaged (primary: {primary}; backup: {backup}): repair it with gdisk, or erase the \
         disk's signatures with wipefs; a disk that cannot be read there is copied with ddrescue before anything is written to it"
    )]
    BothDamaged {
        /// What is wrong with the primary.
        primary: Damage,
        /// What is wrong with the backup.
        backup: Damage,
    },
    /// The table was made on a disk with another sector size.
    #[error(
        "the {kind} counts in sectors of {table} bytes and the disk's have {disk}: the disk was copied from one of another \
         kind, or its enclosure translates; read it the way it was partitioned (a disk file on a loop device: losetup \
         --sector-size {table})"
    )]
    SectorSize {
        /// `GPT` or `MBR`.
        kind: &'static str,
        /// Sector size of the table.
        table: u32,
        /// Sector size of the disk.
        disk: u32,
    },
    /// A partition that ends before it begins, or has no length.
    #[error("partition {number} ends before it begins: correct the table with fdisk or gdisk")]
    Backwards {
        /// The partition.
        number: u32,
    },
    /// A partition that is longer than the disk.
    #[error(
        "partition {number} ends at byte {end_bytes} and the disk at byte {disk_bytes}: the table belongs to a larger disk, \
         or the copy was cut off; shrink the partition first"
    )]
    PastEnd {
        /// The partition.
        number: u32,
        /// Its end.
        end_bytes: u128,
        /// The disk's end.
        disk_bytes: u64,
    },
    /// Two partitions that share sectors.
    #[error("partitions {first} and {second} overlap: correct the table with fdisk or gdisk")]
    Overlap {
        /// The one that starts first.
        first: u32,
        /// The other.
        second: u32,
    },
    /// A partition that holds sectors of the table.
    #[error(
        "partition {number} lies over sectors of the partition table itself: correct the table with fdisk or gdisk"
    )]
    OverTable {
        /// The partition.
        number: u32,
    },
    /// Two extended partitions.
    #[error(
        "partitions {first} and {second} are both extended ones, which systems number differently: delete one with fdisk"
    )]
    SecondExtended {
        /// The first.
        first: u32,
        /// The other.
        second: u32,
    },
    /// A chain of logical partitions that breaks off.
    #[error(
        "the chain of logical partitions in partition {number} is broken at byte {byte}: {fault}; repair it with fdisk, or \
         capture the partitions one by one"
    )]
    BrokenChain {
        /// The extended partition.
        number: u32,
        /// Where the next table should be.
        byte: u64,
        /// What is wrong there.
        fault: &'static str,
    },
    /// A GPT that the kernel does not see, and a filesystem over it.
    #[error(
        "the disk has a GPT without the protective MBR that would make it valid, and also {filesystem}: erase the one that \
         is not in use with wipefs"
    )]
    Ambiguous {
        /// The filesystem.
        filesystem: String,
    },
}

/// Some sectors of a table, to be written as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablePiece {
    /// `logical partitions`, `backup GPT`, `primary GPT` or `LBA 0`.
    pub name: &'static str,
    /// Where they go, in bytes.
    pub offset: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Reads the partition table of a disk. `Err` only when the source cannot be read.
pub fn read_table(
    src: &mut (impl Read + Seek),
    disk_bytes: u64,
    logical_sector_bytes: u32,
) -> io::Result<TableOutcome> {
    let sector = Sectors::new(disk_bytes, logical_sector_bytes)?;
    let nothing = || Table::none(logical_sector_bytes);
    if sector.count == 0 || probe::is_striped(src, disk_bytes) {
        return Ok(TableOutcome::Table(nothing()));
    }
    let lba0 = sector.read(src, 0, 1)?;
    let mbr = Mbr::parse(&lba0);
    let protective = mbr.as_ref().is_some_and(|mbr| mbr.protective().is_some());
    if protective && !probe::owns_boot_sector(&lba0) {
        return gpt::read(src, sector, mbr.as_ref());
    }
    if let Some(mbr) = mbr.as_ref().filter(|mbr| !mbr.is_empty()) {
        if !mbr.is_plausible() || mbr.starts_at_zero() || probe::owns_boot_sector(&lba0) {
            // Code and messages of a boot sector stand where the entries would be; a hybrid ISO has an entry that begins at
            // the disk's first byte. A filesystem that begins elsewhere proves nothing here: it may be a left-over.
            if probe::starts_with_volume(src, disk_bytes)? {
                return Ok(TableOutcome::Table(nothing()));
            }
        }
        if !mbr.is_plausible() {
            let mut table = nothing();
            table.warnings.push(
                "LBA 0 is signed like a partition table and its entries make no sense; it is not taken as one".into(),
            );
            return Ok(TableOutcome::Table(table));
        }
        let mut outcome = mbr::read(src, mbr, sector)?;
        if let TableOutcome::Table(table) = &mut outcome
            && gpt::is_sound(src, sector)?
        {
            table.warnings.push(
                "a GPT without a protective MBR lies behind the MBR; it is not used, and systems do not use it".into(),
            );
        }
        return Ok(outcome);
    }
    // No partitions in LBA 0: what else is there decides.
    let filesystem = probe::whole(src, disk_bytes)?;
    let unprotected = gpt::is_sound(src, sector)? && !probe::owns_boot_sector(&lba0);
    match (filesystem, unprotected, mbr) {
        (Some(found), true, _) => {
            let filesystem = found.to_string();
            Ok(TableOutcome::Refused(TableRefusal::Ambiguous { filesystem }))
        }
        (Some(_), false, _) => Ok(TableOutcome::Table(nothing())),
        (None, true, mbr) => gpt::read(src, sector, mbr.as_ref()),
        (None, false, Some(mbr)) => mbr::read(src, &mbr, sector),
        (None, false, None) => Ok(TableOutcome::Table(nothing())),
    }
}

/// The sectors of the table for a disk of `target_bytes` on which the partitions lie as `slots` say, in the order in which they are
/// to be written: the backup GPT at the disk's end, the primary; or the tables of logical partitions; LBA 0 last. `src` is the disk
/// that `table` was read from. A partition without a slot is left out. If nothing moves and the disk has the same size, the pieces
/// are that disk's own bytes, but a damaged copy of a GPT is made anew from the other, and the identities are those that the table was
/// [given](Table::identify). Fails with `InvalidInput` if the table cannot
/// say that.
pub fn arrange(
    src: &mut (impl Read + Seek),
    table: &Table,
    slots: &[Slot],
    target_bytes: u64,
) -> io::Result<Vec<TablePiece>> {
    if table.kind == TableKind::None {
        return Ok(Vec::new());
    }
    let target = Sectors::new(target_bytes, table.logical_sector_bytes)?;
    let end = slots.iter().map(Slot::end_bytes).max().unwrap_or(0);
    if target.count == 0 || end > target_bytes {
        return Err(too_small(target_bytes));
    }
    let mut lba0 = target.read(src, 0, 1)?;
    if let Some(signature) = table.new_signature {
        mbr::sign(&mut lba0, table.kind, signature);
    }
    let mut pieces = Vec::new();
    if let Some(gpt) = &table.gpt {
        pieces = gpt.pieces(target, table, slots)?;
        mbr::move_entries(&mut lba0, table, slots, target)?;
        if target.count != gpt.disk_sectors() {
            mbr::resize_protective(&mut lba0, gpt.disk_sectors(), target.count);
        }
    }
    if table.kind == TableKind::Mbr {
        mbr::move_entries(&mut lba0, table, slots, target)?;
        pieces = logical::pieces(src, &mut lba0, table, slots, target)?;
    }
    pieces.push(TablePiece { name: "LBA 0", offset: 0, bytes: lba0 });
    Ok(pieces)
}

/// [`arrange`] for partitions that stay where they are.
pub fn relocate_backup(
    src: &mut (impl Read + Seek),
    table: &Table,
    target_bytes: u64,
) -> io::Result<Vec<TablePiece>> {
    arrange(src, table, &table.slots(), target_bytes)
}

fn too_small(target_bytes: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("the partitions and their table do not fit a disk of {target_bytes} bytes"),
    )
}

/// A disk counted in sectors.
#[derive(Debug, Clone, Copy)]
struct Sectors {
    /// Bytes in one.
    bytes: u32,
    /// How many whole ones the disk has.
    count: u64,
    disk_bytes: u64,
}

impl Sectors {
    fn new(disk_bytes: u64, bytes: u32) -> io::Result<Self> {
        if !bytes.is_power_of_two() || !(512..=65536).contains(&bytes) {
            let message = format!("a disk with sectors of {bytes} bytes cannot be handled");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Ok(Self { bytes, count: disk_bytes / u64::from(bytes), disk_bytes })
    }

    /// Where a sector begins. For sectors of the disk, so that it cannot overflow.
    fn offset(self, lba: u64) -> u64 {
        lba * u64::from(self.bytes)
    }

    /// How many sectors `len` bytes take.
    fn holding(self, len: usize) -> u64 {
        (len as u64).div_ceil(u64::from(self.bytes))
    }

    /// Reads sectors that lie within the disk and whose number has a limit.
    fn read(self, src: &mut (impl Read + Seek), lba: u64, count: u64) -> io::Result<Vec<u8>> {
        let len = usize::try_from(self.offset(count)).map_err(io::Error::other)?;
        let mut bytes = vec![0; len];
        src.seek(SeekFrom::Start(self.offset(lba)))?;
        src.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// Makes a partition of what a table says, or says why not. `end_lba` is the first sector behind it.
fn place(
    sectors: Sectors,
    number: u32,
    start_lba: u64,
    end_lba: u128,
) -> Result<(u64, u64), TableRefusal> {
    if end_lba <= u128::from(start_lba) {
        return Err(TableRefusal::Backwards { number });
    }
    match u64::try_from(end_lba) {
        Ok(end) if end <= sectors.count => {
            Ok((sectors.offset(start_lba), sectors.offset(end - start_lba)))
        }
        _ => {
            let end_bytes = end_lba * u128::from(sectors.bytes);
            Err(TableRefusal::PastEnd { number, end_bytes, disk_bytes: sectors.disk_bytes })
        }
    }
}

/// Sorts partitions by their start, and finds those that share sectors with another or with the table.
fn check_layout(partitions: &mut [Partition], metadata: &Extents) -> Result<(), TableRefusal> {
    partitions.sort_by_key(|p| p.start_bytes);
    if let Some(pair) =
        partitions.windows(2).find(|p| p[0].start_bytes + p[0].len_bytes > p[1].start_bytes)
    {
        return Err(TableRefusal::Overlap { first: pair[0].number, second: pair[1].number });
    }
    match partitions
        .iter()
        .find(|p| metadata.overlapping(p.start_bytes, p.len_bytes).next().is_some())
    {
        Some(p) => Err(TableRefusal::OverTable { number: p.number }),
        None => Ok(()),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests;
