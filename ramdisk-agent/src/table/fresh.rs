//! Partition tables that are made anew.

use std::io;

use uuid::Uuid;

use super::kinds::TypeId;
use super::{MBR_LEN, Sectors, Slot, Table, TableKind, TablePiece, gpt, mbr, too_small};
use crate::extents::Extents;
use crate::table::Partition;

/// A partition of a new table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreshPartition {
    /// Its number and place. In whole sectors.
    pub slot: Slot,
    /// Its type, of the table's kind.
    pub type_id: TypeId,
    /// Its identity; an MBR has none.
    pub uuid: Uuid,
    /// Its name, at most 36 UTF-16 units; an MBR has none.
    pub name: String,
    /// The attribute bits of a GPT.
    pub attributes: u64,
    /// The active flag of an MBR.
    pub bootable: bool,
}

/// Where the space for partitions ends on a disk with such a table: before the backup GPT, or where an MBR cannot count further.
///
/// # Errors
/// `InvalidInput` for sectors of a size that cannot be handled.
pub fn room_end(kind: TableKind, disk_bytes: u64, sector_bytes: u32) -> io::Result<u64> {
    let sectors = Sectors::new(disk_bytes, sector_bytes)?;
    let end = match kind {
        TableKind::Gpt => sectors.count.saturating_sub(gpt::fresh::backup_sectors(sectors)),
        TableKind::Mbr => sectors.count.min(1 << 32),
        TableKind::None => sectors.count,
    };
    Ok(sectors.offset(end))
}

/// The sectors of a new table, in the order in which they are to be written. `disk_id` is the GUID of a GPT; an MBR has its first four bytes as
/// its signature.
///
/// # Errors
/// `InvalidInput` if the partitions do not fit.
pub fn pieces(
    kind: TableKind,
    disk_id: Uuid,
    partitions: &[FreshPartition],
    disk_bytes: u64,
    sector_bytes: u32,
) -> io::Result<Vec<TablePiece>> {
    let sectors = Sectors::new(disk_bytes, sector_bytes)?;
    let end = partitions.iter().map(|p| p.slot.end_bytes()).max().unwrap_or(0);
    if end > room_end(kind, disk_bytes, sector_bytes)? {
        return Err(too_small(disk_bytes));
    }
    let len = usize::try_from(sector_bytes).map_err(io::Error::other)?;
    let mut lba0 = vec![0; len];
    lba0[MBR_LEN - 2..MBR_LEN].copy_from_slice(&[0x55, 0xAA]);
    let mut pieces = Vec::new();
    match kind {
        TableKind::None => return Ok(pieces),
        TableKind::Gpt => {
            pieces = gpt::fresh::pieces(disk_id, partitions, sectors)?;
            mbr::protect(&mut lba0, sectors);
        }
        TableKind::Mbr => mbr::fill(&mut lba0, disk_id, partitions, sectors)?,
    }
    pieces.push(TablePiece { name: "LBA 0", offset: 0, bytes: lba0 });
    Ok(pieces)
}

/// A table that is not on any disk as such: for whoever looks into partitions by it.
#[must_use]
pub fn described(kind: TableKind, sector_bytes: u32, partitions: Vec<Partition>) -> Table {
    Table {
        kind,
        disk_id: None,
        logical_sector_bytes: sector_bytes,
        first_usable_lba: None,
        last_usable_lba: None,
        partitions,
        warnings: Vec::new(),
        may_lie_elsewhere: false,
        metadata: Extents::new(),
        gpt: None,
        extended: None,
        new_signature: None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::table::kinds::type_of;
    use crate::table::{TableOutcome, read_table};

    const MIB: u64 = 1 << 20;

    fn partition(number: u32, start: u64, len: u64, kind: TableKind) -> FreshPartition {
        FreshPartition {
            slot: Slot { number, start_bytes: start * MIB, len_bytes: len * MIB },
            type_id: type_of("linux", kind).unwrap(),
            uuid: Uuid::from_u128(u128::from(number)),
            name: if kind == TableKind::Gpt { format!("näme {number}") } else { String::new() },
            attributes: if kind == TableKind::Gpt { 1 << 60 } else { 0 },
            bootable: kind == TableKind::Mbr && number == 2,
        }
    }

    #[test]
    fn what_is_made_is_read_again() {
        for kind in [TableKind::Gpt, TableKind::Mbr] {
            for sector in [512, 4096] {
                let disk_bytes = 40 * MIB + 4096;
                let list = [partition(1, 1, 7, kind), partition(2, 8, 20, kind)];
                let id = Uuid::from_u128(0x1234_5678 << 96 | 5);
                let pieces = pieces(kind, id, &list, disk_bytes, sector).unwrap();
                assert_eq!(pieces.last().unwrap().name, "LBA 0");
                let mut disk = vec![0; usize::try_from(disk_bytes).unwrap()];
                for piece in &pieces {
                    let at = usize::try_from(piece.offset).unwrap();
                    disk[at..at + piece.bytes.len()].copy_from_slice(&piece.bytes);
                }
                let outcome = read_table(&mut Cursor::new(disk), disk_bytes, sector).unwrap();
                let TableOutcome::Table(table) = outcome else { panic!("{outcome:?}") };
                assert_eq!((table.kind, &table.warnings), (kind, &Vec::new()));
                assert_eq!(table.slots(), list.clone().map(|p| p.slot));
                let names: Vec<_> = table.partitions.iter().map(|p| p.name.clone()).collect();
                if kind == TableKind::Gpt {
                    assert_eq!(table.disk_id, Some(id.to_string()));
                    assert_eq!(names, [Some("näme 1".into()), Some("näme 2".into())]);
                    assert_eq!(table.partitions[1].attributes, 1 << 60);
                    assert_eq!(table.partitions[1].uuid, Some(list[1].uuid.to_string()));
                } else {
                    assert!(table.partitions[1].bootable && !table.partitions[0].bootable);
                    assert!(table.disk_id.is_some());
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let list = [partition(1, 1, 39, TableKind::Gpt)];
        let id = Uuid::from_u128(1);
        assert!(pieces(TableKind::Gpt, id, &list, 40 * MIB, 512).is_err());
        assert!(pieces(TableKind::Gpt, id, &list, 40 * MIB + 33 * 512, 512).is_ok());
    }
}
