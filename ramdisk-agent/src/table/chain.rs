//! Tables of logical partitions that are made anew from a list of those partitions.
//!
//! A list, such as `sfdisk --dump` prints, says where the partitions and the extended one are, and not where the tables are. Any
//! free sector in front of a partition does: the first table lies where the extended partition begins, as it must, and the others as far in
//! front of their partitions as that one is, as most programs have it. The first table may be known as it was, and with it the place of the second.

use std::io;
use std::ops::Range;

use super::logical::EXTENDED_IN_CHAIN;
use super::mbr::{self, ENTRIES, ENTRY_LEN, Mbr};
use super::{LOGICAL_TABLES, MBR_LEN, Sectors, Slot, TablePiece};

/// A logical partition of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreshLogical {
    /// Its number and its place, in whole sectors.
    pub slot: Slot,
    /// Its type.
    pub kind: u8,
    /// Its active flag.
    pub bootable: bool,
}

/// The tables that lead to these partitions, which are in the order of their numbers, in the extended partition at `extended`. `saved` is the
/// first table as it was: it is kept if it says the same, and otherwise its boot code is. Without a partition there is an empty table.
///
/// # Errors
/// `InvalidInput`, with the reason, if there can be no such tables.
pub fn logical_pieces(
    extended: &Range<u64>,
    partitions: &[FreshLogical],
    saved: Option<&[u8; MBR_LEN]>,
    sector_bytes: u32,
) -> io::Result<Vec<TablePiece>> {
    let sectors = Sectors::new(extended.end, sector_bytes)?;
    check(extended, partitions)?;
    let saved_next = saved.and_then(|saved| next_of(saved, extended, partitions, sectors));
    let known = saved_next.and_then(|next| next);
    let places = places(extended, partitions, known, sectors)?;
    // What was saved says the same only if what it leads to can be there.
    let is_kept = saved_next.is_some_and(|next| next.is_none() || next == places.get(1).copied());
    let piece = |offset: u64, bytes| TablePiece { name: LOGICAL_TABLES, offset, bytes };
    let empty = || -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(sector_bytes).map_err(io::Error::other)?];
        bytes[MBR_LEN - 2..MBR_LEN].copy_from_slice(&[0x55, 0xAA]);
        Ok(bytes)
    };
    let mut pieces = Vec::new();
    for (i, (partition, at)) in partitions.iter().zip(&places).enumerate() {
        let mut bytes = empty()?;
        let next = partitions.get(i + 1).zip(places.get(i + 1).copied());
        fill(&mut bytes, partition, *at, next, extended.start, sectors)?;
        pieces.push(piece(*at, bytes));
    }
    if pieces.is_empty() {
        pieces.push(piece(extended.start, empty()?));
    }
    if let Some(saved) = saved {
        let kept = if is_kept { MBR_LEN } else { ENTRIES };
        pieces[0].bytes[..kept].copy_from_slice(&saved[..kept]);
    }
    Ok(pieces)
}

fn cannot(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// Refuses partitions that are not all in the extended one, and each by itself.
fn check(extended: &Range<u64>, partitions: &[FreshLogical]) -> io::Result<()> {
    let mut slots: Vec<Slot> = partitions.iter().map(|p| p.slot).collect();
    slots.sort_by_key(|slot| slot.start_bytes);
    for slot in &slots {
        if slot.start_bytes <= extended.start || slot.end_bytes() > extended.end {
            return Err(cannot(format!(
                "logical partition {} does not lie in the extended one behind its first sector",
                slot.number
            )));
        }
    }
    match slots.windows(2).find(|pair| pair[0].end_bytes() > pair[1].start_bytes) {
        Some(pair) => Err(cannot(format!(
            "logical partitions {} and {} overlap",
            pair[0].number, pair[1].number
        ))),
        None => Ok(()),
    }
}

/// Where a first table leads on to, if anywhere. `None` if it is not the table of the first of these partitions.
fn next_of(
    table: &[u8; MBR_LEN],
    extended: &Range<u64>,
    partitions: &[FreshLogical],
    sectors: Sectors,
) -> Option<Option<u64>> {
    let table = Mbr::parse(table)?;
    let [own, on, ..] = table.entries;
    let first = partitions.first()?;
    let is_first = extended.start + sectors.offset(own.start.into()) == first.slot.start_bytes
        && sectors.offset(own.len.into()) == first.slot.len_bytes
        && own.kind() == first.kind;
    let leads_on = on.len != 0 && on.is_extended();
    if !is_first || leads_on != (partitions.len() > 1) || (on.len != 0 && !leads_on) {
        return None;
    }
    Some(leads_on.then(|| extended.start + sectors.offset(on.start.into())))
}

/// A place for the table of each partition. `second` is where that of the second one was.
fn places(
    extended: &Range<u64>,
    partitions: &[FreshLogical],
    second: Option<u64>,
    sectors: Sectors,
) -> io::Result<Vec<u64>> {
    let sector = u64::from(sectors.bytes);
    let mut places: Vec<u64> = Vec::with_capacity(partitions.len());
    for (i, FreshLogical { slot, .. }) in partitions.iter().enumerate() {
        let is_free = |at: u64| {
            at >= extended.start
                && !places.contains(&at)
                && !partitions
                    .iter()
                    .any(|p| at + sector > p.slot.start_bytes && at < p.slot.end_bytes())
        };
        // Nothing else lies between this and the partition.
        let gap = partitions
            .iter()
            .map(|p| p.slot.end_bytes())
            .chain(places.iter().map(|at| at + sector))
            .filter(|end| *end <= slot.start_bytes)
            .fold(extended.start, u64::max);
        // What is known of the second one says more than the first, which may have had to give way.
        let front = match second.filter(|at| i > 1 && places[1] == *at) {
            Some(at) => partitions[1].slot.start_bytes - at,
            None => partitions[0].slot.start_bytes - extended.start,
        };
        let usual = slot.start_bytes.checked_sub(front).filter(|at| *at >= gap);
        let wanted = match i {
            0 => [Some(extended.start), None, None],
            1 => [second, usual, Some(gap)],
            _ => [None, usual, Some(gap)],
        };
        let fits = |at: &u64| at + sector <= slot.start_bytes && is_free(*at);
        let at = wanted.into_iter().flatten().find(fits);
        places.push(at.ok_or_else(|| {
            cannot(format!(
                "no sector in front of logical partition {} is free for its table",
                slot.number
            ))
        })?);
    }
    Ok(places)
}

/// Fills an empty table: with its partition, and the way on to the next table.
fn fill(
    bytes: &mut [u8],
    partition: &FreshLogical,
    at: u64,
    next: Option<(&FreshLogical, u64)>,
    extended_start: u64,
    sectors: Sectors,
) -> io::Result<()> {
    let sector = u64::from(sectors.bytes);
    let own = &mut bytes[ENTRIES..][..ENTRY_LEN];
    own[0] = if partition.bootable { mbr::ACTIVE } else { 0 };
    own[4] = partition.kind;
    mbr::write_entry(own, &partition.slot, at / sector, sectors)?;
    if let Some((next, next_at)) = next {
        let way_on = &mut bytes[ENTRIES + ENTRY_LEN..][..ENTRY_LEN];
        way_on[4] = EXTENDED_IN_CHAIN;
        let len_bytes = next.slot.end_bytes() - next_at;
        let slot = Slot { start_bytes: next_at, len_bytes, ..next.slot };
        mbr::write_entry(way_on, &slot, extended_start / sector, sectors)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;
    use crate::table::{TableOutcome, read_table};

    const SECTOR: u64 = 512;

    fn logical(number: u32, start: u64, len: u64) -> FreshLogical {
        let slot = Slot { number, start_bytes: start * SECTOR, len_bytes: len * SECTOR };
        FreshLogical { slot, kind: 0x83, bootable: number == 6 }
    }

    fn made(
        extended: Range<u64>,
        partitions: &[FreshLogical],
        saved: Option<&[u8; MBR_LEN]>,
    ) -> io::Result<Vec<TablePiece>> {
        let extended = extended.start * SECTOR..extended.end * SECTOR;
        logical_pieces(&extended, partitions, saved, 512)
    }

    fn places(pieces: &[TablePiece]) -> Vec<u64> {
        pieces.iter().map(|piece| piece.offset / SECTOR).collect()
    }

    /// A disk with an MBR whose only entry is the extended partition, read again.
    fn read_again(extended: &Range<u64>, pieces: &[TablePiece]) -> Vec<(u32, u64, u64, bool)> {
        let index = |n: u64| usize::try_from(n).unwrap();
        let field = |n: u64| u32::try_from(n).unwrap().to_le_bytes();
        let mut disk = vec![0; index(extended.end * SECTOR)];
        disk[510..512].copy_from_slice(&[0x55, 0xAA]);
        let entry = &mut disk[ENTRIES..][..ENTRY_LEN];
        entry[4] = 0x0F;
        entry[8..12].copy_from_slice(&field(extended.start));
        entry[12..16].copy_from_slice(&field(extended.end - extended.start));
        for piece in pieces {
            disk[index(piece.offset)..][..piece.bytes.len()].copy_from_slice(&piece.bytes);
        }
        let len = disk.len() as u64;
        match read_table(&mut Cursor::new(disk), len, 512).unwrap() {
            TableOutcome::Table(table) => table
                .partitions
                .iter()
                .map(|p| (p.number, p.start_bytes / SECTOR, p.len_bytes / SECTOR, p.bootable))
                .collect(),
            TableOutcome::Refused(refusal) => panic!("{refusal}"),
        }
    }

    #[test]
    fn tables_lie_as_far_in_front_as_the_first() {
        let partitions = [logical(5, 110, 20), logical(6, 145, 20), logical(7, 170, 20)];
        let pieces = made(100..200, &partitions, None).unwrap();
        // In front of the last one is less room.
        assert_eq!(places(&pieces), [100, 135, 165]);
        assert_eq!(
            read_again(&(100..200), &pieces),
            [(5, 110, 20, false), (6, 145, 20, true), (7, 170, 20, false)]
        );
        let none = made(100..200, &[], None).unwrap();
        assert_eq!(places(&none), [100]);
        assert_eq!(read_again(&(100..200), &none), []);
    }

    #[test]
    fn partitions_that_are_not_in_the_order_of_the_disk_keep_their_numbers() {
        let partitions = [logical(5, 150, 20), logical(6, 110, 20), logical(7, 180, 10)];
        let pieces = made(100..200, &partitions, None).unwrap();
        let found = read_again(&(100..200), &pieces);
        let numbers: Vec<_> = found.iter().map(|(number, start, ..)| (*number, *start)).collect();
        assert_eq!(numbers, [(6, 110), (5, 150), (7, 180)]);
    }

    #[test]
    fn a_first_table_that_was_saved_is_kept_where_it_says_the_same() {
        let partitions = [logical(5, 110, 20), logical(6, 145, 20)];
        let own = made(100..200, &partitions, None).unwrap();
        let mut saved: [u8; MBR_LEN] = own[0].bytes.as_slice().try_into().unwrap();
        // Boot code, an odd CHS address, and a second table right behind the first partition.
        saved[..9].copy_from_slice(b"boot code");
        saved[ENTRIES + 1] = 77;
        saved[ENTRIES + ENTRY_LEN + 8] = 31;
        let pieces = made(100..200, &partitions, Some(&saved)).unwrap();
        assert_eq!(pieces[0].bytes, saved);
        assert_eq!(places(&pieces), [100, 131]);
        read_again(&(100..200), &pieces);
        // It leads into a partition, or is of another one: only the boot code is taken.
        for (at, value) in [(ENTRIES + ENTRY_LEN + 8, 50), (ENTRIES + 8, 11), (ENTRIES + 4, 7)] {
            let mut other = saved;
            other[at] = value;
            let pieces = made(100..200, &partitions, Some(&other)).unwrap();
            assert_eq!(pieces[0].bytes[..9], *b"boot code");
            assert_eq!(pieces[0].bytes[ENTRIES..], own[0].bytes[ENTRIES..]);
            assert_eq!(pieces[1], own[1]);
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_reason() {
        let refused = |partitions: &[FreshLogical], words: &str| {
            let error = made(100..200, partitions, None).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        refused(&[logical(5, 100, 20)], "5 does not lie in");
        refused(&[logical(5, 90, 5)], "5 does not lie in");
        refused(&[logical(5, 190, 20)], "5 does not lie in");
        refused(&[logical(5, 110, 20), logical(6, 120, 20)], "5 and 6 overlap");
        refused(&[logical(5, 110, 20), logical(6, 130, 20)], "front of logical partition 6");
    }

    proptest! {
        #[test]
        fn whatever_can_be_made_is_read_as_it_was_meant(
            list in proptest::collection::vec((1..40_u64, 0..9_u64), 1..9),
            order in any::<usize>(),
        ) {
            let (mut at, mut partitions) = (100, Vec::new());
            for (len, gap) in list {
                partitions.push((at + gap, len));
                at += gap + len;
            }
            let turn = order % partitions.len();
            partitions.rotate_left(turn);
            let list: Vec<_> = partitions
                .iter()
                .zip(5..)
                .map(|((start, len), number)| logical(number, *start, *len))
                .collect();
            let Ok(pieces) = made(100..at, &list, None) else { return Ok(()) };
            let mut meant: Vec<_> = list
                .iter()
                .map(|p| (p.slot.number, p.slot.start_bytes / 512, p.slot.len_bytes / 512, p.bootable))
                .collect();
            meant.sort_by_key(|(_, start, ..)| *start);
            prop_assert_eq!(read_again(&(100..at), &pieces), meant);
        }
    }
}
