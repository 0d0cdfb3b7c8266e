//! An image on a disk whose logical sectors have another size than those of the disk that it was taken from.
//!
//! Done where everything on it works there, refused with the partition and the reason otherwise: what a volume needs is for
//! [`fs::fits_sectors`] to say, what a table needs for [`table::retargetable`]. Partitions stay where they are in bytes, so they have to
//! begin and end on whole sectors of the target. What lies outside of partitions is not taken along: boot loaders there count in sectors.

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::fs::{self, Fits, FsKind};
use crate::image::ImageDisk;
use crate::probe;
use crate::restore::arrangement::{image_error, kind_of};
use crate::restore::commit::Piece;
use crate::restore::placement::Withheld;
use crate::table::{self, Partition, Slot, Table};

/// Types of partitions whose content is for nobody but a BIOS, or which have none.
const BIOS_BOOT: &str = "21686148-6449-6e6f-744e-656564454649";
const MICROSOFT_RESERVED: &str = "e3c9e316-0b5c-4db8-817d-f92df00215ae";
const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
/// The only sectors that a BIOS reads disks by.
const BIOS_SECTOR: u32 = 512;

/// The sectors that a target's table and volumes are made for: a device's own; those of the image's disk in a disk file.
pub fn sector_bytes(target: &Disk, image: u32) -> u32 {
    match target.is_block() || target.part_of().is_some() {
        true => target.logical_sector_bytes(),
        false => image,
    }
}

/// A size of sectors that is not the image's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sectors {
    /// That of the image's disk.
    pub from: u32,
    /// That of the target.
    pub to: u32,
}

impl Sectors {
    /// `None` if they are the same.
    pub fn new(from: u32, to: u32) -> Option<Self> {
        (from != to).then_some(Self { from, to })
    }

    /// The sectors of a volume that begin otherwise on the target; `None` if it works as it is. `base` is where its image's disk begins
    /// in `disk`; `what` names the volume.
    pub fn head_of(
        self,
        disk: &mut ImageDisk<'_>,
        base: u64,
        volume: Slot,
        what: &str,
    ) -> Result<Option<Vec<u8>>> {
        let kind = kind_of(disk, volume.start_bytes, volume.len_bytes)?;
        let refused = |why: &str| self.refused(&format!("{what} ({kind})"), why);
        let size = u64::from(self.to);
        let whole = |n: u64| n.is_multiple_of(size);
        let (start, end) = (volume.start_bytes - base, volume.end_bytes() - base);
        if !whole(start) || !whole(end) {
            return Err(refused(&format!(
                "it does not begin and end on whole sectors of that size, but at bytes {start} and {end}; move or resize the template's"
            )));
        }
        let mut inside = probe::Part::new(disk, volume.start_bytes, volume.len_bytes);
        let fits = fs::fits_sectors(&mut inside, volume.len_bytes, kind, self.to);
        match fits.map_err(image_error)? {
            Ok(Fits::AsItIs) => Ok(None),
            Ok(Fits::WithHead(head)) => Ok(Some(head)),
            Err(why) => Err(refused(&why)),
        }
    }

    fn refused(self, what: &str, why: &str) -> Error {
        Error::refused(format!(
            "{what} cannot go onto a disk with logical sectors of {} bytes, as it was taken from one with {}: {why}; nothing was written",
            self.to, self.from
        ))
    }

    /// What is said where a volume gets another head, in a sentence without a full stop.
    pub fn head_note(self, what: &str) -> String {
        format!(
            "{what} gets boot sectors for sectors of {} bytes; its files stay where they are",
            self.to
        )
    }
}

/// A disk with partitions that is made for sectors of another size.
#[derive(Debug)]
pub struct Retargeting {
    sectors: Sectors,
    /// Where partitions have to end.
    pub room_end: u64,
    /// What volumes begin with in place of their own bytes, by the number of their partition.
    heads: Vec<(u32, Vec<u8>)>,
    /// What is not as in the image, in sentences without a full stop.
    pub notes: Vec<String>,
}

impl Retargeting {
    /// Looks at everything on the image's disk; `None` if the target's sectors are the image's.
    pub fn new(disk: &mut ImageDisk<'_>, table: &Table, target: &Disk) -> Result<Option<Self>> {
        let from = table.logical_sector_bytes;
        let Some(sectors) = Sectors::new(from, sector_bytes(target, from)) else { return Ok(None) };
        let outcome = table::retargetable(disk, table, target.len_bytes(), sectors.to);
        let can = outcome
            .map_err(image_error)?
            .map_err(|why| sectors.refused("the image's disk", why))?;
        let mut notes = vec![format!(
            "the target has logical sectors of {} bytes and the image's disk had {from}: both copies of the GPT are made for those; boot \
             code in LBA 0 and what lies outside of partitions is not taken along",
            sectors.to
        )];
        notes.extend(by_bios(table, can.has_boot_code, sectors)?);
        let mut heads = Vec::new();
        for partition in &table.partitions {
            let number = partition.number;
            let what = format!("partition {number}");
            if partition.start_bytes < can.room_start {
                return Err(sectors.refused(
                    &what,
                    &format!(
                        "it begins at byte {}, and the table takes the first {}; move the template's",
                        partition.start_bytes, can.room_start
                    ),
                ));
            }
            let (start_bytes, len_bytes) = (partition.start_bytes, partition.len_bytes);
            if is_not_looked_at(disk, partition)? {
                continue;
            }
            let slot = Slot { number, start_bytes, len_bytes };
            if let Some(head) = sectors.head_of(disk, 0, slot, &what)? {
                notes.push(sectors.head_note(&what));
                heads.push((number, head));
            }
        }
        Ok(Some(Self { sectors, room_end: can.room_end, heads, notes }))
    }

    /// The sectors of the table.
    pub fn table_pieces(
        &self,
        disk: &mut ImageDisk<'_>,
        table: &Table,
        slots: &[Slot],
        target_bytes: u64,
    ) -> Result<Vec<Piece>> {
        let pieces = table::retarget(disk, table, slots, target_bytes, self.sectors.to);
        Ok(pieces.map_err(image_error)?.into_iter().map(Piece::from).collect())
    }

    /// What the frames leave out, with the image's bytes there, and what is written in its place.
    pub fn heads(
        &self,
        disk: &mut ImageDisk<'_>,
        table: &Table,
        slots: &[Slot],
    ) -> Result<(Vec<Withheld>, Vec<Piece>)> {
        let (mut withheld, mut pieces) = (Vec::new(), Vec::new());
        for (number, head) in &self.heads {
            let old = table.partitions.iter().find(|p| p.number == *number);
            let new = slots.iter().find(|slot| slot.number == *number);
            let (Some(old), Some(new)) = (old, new) else { continue };
            withheld.push((
                old.start_bytes..old.start_bytes + head.len() as u64,
                disk.bytes(old.start_bytes, head.len())?,
            ));
            pieces.push(head_piece(*number, new.start_bytes, head.clone()));
        }
        Ok((withheld, pieces))
    }
}

/// The start of a volume that is not the image's.
pub fn head_piece(number: u32, offset: u64, bytes: Vec<u8>) -> Piece {
    Piece { name: format!("boot sectors of partition {number}"), offset, bytes }
}

/// Whether nothing in a partition can mind the size of sectors: what only a BIOS runs, or nothing at all.
fn is_not_looked_at(disk: &mut ImageDisk<'_>, partition: &Partition) -> Result<bool> {
    let is_type = |guid: &str| partition.type_id.eq_ignore_ascii_case(guid);
    if !is_type(BIOS_BOOT) && !is_type(MICROSOFT_RESERVED) {
        return Ok(false);
    }
    Ok(kind_of(disk, partition.start_bytes, partition.len_bytes)? == FsKind::Unknown)
}

/// What becomes of a disk that a BIOS may have started. Refuses one that nothing else could start.
fn by_bios(table: &Table, has_boot_code: bool, sectors: Sectors) -> Result<Option<String>> {
    let has = |guid: &str| table.partitions.iter().any(|p| p.type_id.eq_ignore_ascii_case(guid));
    let is_started = sectors.from == BIOS_SECTOR && (has_boot_code || has(BIOS_BOOT));
    if !is_started {
        return Ok(None);
    }
    if !has(ESP) {
        return Err(sectors.refused(
            "the image's disk",
            "it is started by a BIOS, which reads sectors of 512 bytes only, and it has no EFI system partition; restore its partitions \
             with --layout, and make the system start by UEFI",
        ));
    }
    Ok(Some("a BIOS cannot start it there: it starts by UEFI only".into()))
}
