//! Logical partitions: a chain of tables inside the extended partition of an MBR.
//!
//! Each link is a sector like an MBR without boot code: an entry for a logical partition, counted from that sector, and one for
//! the next link, counted from the start of the extended partition. There is no specification but what systems do: numbers,
//! order and the entries that count are those of Linux (`block/partitions/msdos.c`). Where Linux would quietly end the list in the
//! middle, the table is refused here, as what lies behind would be lost.

use std::io::{self, Read, Seek};

use super::mbr::{self, ENTRIES, ENTRY_LEN, Entry, Mbr};
use super::{LOGICAL_TABLES, Partition, Sectors, Slot, Table, TablePiece, TableRefusal, too_small};
use crate::extents::Extents;

/// The number of the first logical partition.
const FIRST_NUMBER: u32 = 5;
/// Linux has names for this many partitions of a disk.
const LAST_NUMBER: u32 = 255;
/// The entries that systems write. Linux takes the others only when they make sense, since some systems left rubbish there.
const WRITTEN_ENTRIES: usize = 2;

/// What an extended partition holds.
pub struct Chain {
    /// The logical partitions, in the order of the chain.
    pub partitions: Vec<Partition>,
    /// The sectors of the chain.
    pub metadata: Extents,
    /// How it hangs together.
    pub extended: Extended,
}

/// An extended partition and the tables in it, in their order.
#[derive(Debug, Clone)]
pub struct Extended {
    /// Its entry's number in the MBR.
    number: u32,
    /// Its place.
    start_bytes: u64,
    end_bytes: u64,
    links: Vec<Link>,
}

/// A table of the chain.
#[derive(Debug, Clone)]
struct Link {
    at_bytes: u64,
    /// The partitions that it describes, with their entries' indexes.
    partitions: Vec<(u32, usize)>,
    /// The index of the entry that leads on.
    next: Option<usize>,
}

impl Link {
    /// Whether it is as all programs write it: one partition, or none, then the way on.
    fn is_usual(&self) -> bool {
        let partition = match self.partitions[..] {
            [] => true,
            [(_, index)] => index == 0,
            _ => false,
        };
        partition && self.next.is_none_or(|index| index == 1)
    }
}

impl Extended {
    /// Where the table that leads to a logical partition is.
    pub fn table_of(&self, number: u32) -> Option<u64> {
        let leads = |link: &&Link| link.partitions.iter().any(|(n, _)| *n == number);
        self.links.iter().find(leads).map(|link| link.at_bytes)
    }
}

/// Follows the chain of the extended partition `number`. `None` if it does not even begin: what lies there is then something else.
/// The extended partition must lie within the disk.
pub fn read(
    src: &mut (impl Read + Seek),
    mbr: &Mbr,
    number: u32,
    extended: Entry,
    sectors: Sectors,
) -> io::Result<Result<Option<Chain>, TableRefusal>> {
    let place = (sectors.offset(extended.start.into()), sectors.offset(extended.end()));
    let mut chain = Chain {
        partitions: Vec::new(),
        metadata: Extents::new(),
        extended: Extended { number, start_bytes: place.0, end_bytes: place.1, links: Vec::new() },
    };
    let broken = |lba: u64, fault| {
        let byte = sectors.offset(lba);
        Ok(Err(TableRefusal::BrokenChain { number, byte, fault }))
    };
    let (first, end) = (u64::from(extended.start), extended.end());
    let (mut at, mut len) = (first, end - first);
    let mut next_number = FIRST_NUMBER;
    loop {
        let link = match Mbr::parse(&sectors.read(src, at, 1)?) {
            Some(link) => link,
            None if at == first => return Ok(Ok(None)),
            None => return broken(at, "there is no table"),
        };
        chain.metadata.insert(sectors.offset(at), u64::from(sectors.bytes));
        let mut described = Vec::new();
        for (i, entry) in link.entries.iter().enumerate() {
            let (start, behind) = (at + u64::from(entry.start), at + entry.end());
            let sensible =
                i < WRITTEN_ENTRIES || (entry.end() <= len && start >= first && behind <= end);
            if entry.len == 0 || entry.is_extended() || !sensible {
                continue;
            }
            if next_number > LAST_NUMBER {
                return broken(at, "it has more partitions than Linux has names for");
            }
            match mbr.partition(sectors, next_number, entry, start, behind) {
                Ok(partition) => chain.partitions.push(partition),
                Err(refusal) => return Ok(Err(refusal)),
            }
            described.push((next_number, i));
            next_number += 1;
        }
        let next = link.entries.iter().position(|e| e.len != 0 && e.is_extended());
        let at_bytes = sectors.offset(at);
        chain.extended.links.push(Link { at_bytes, partitions: described, next });
        let Some(next) = next.map(|index| link.entries[index]) else {
            return Ok(Ok(Some(chain)));
        };
        (at, len) = (first + u64::from(next.start), u64::from(next.len));
        if at >= end {
            return broken(at, "it leaves the extended partition");
        }
        if chain.metadata.contains_range(sectors.offset(at), 1) {
            return broken(at, "it leads back to where it was");
        }
        if chain.metadata.total_bytes() >= u64::from(LAST_NUMBER) * u64::from(sectors.bytes) {
            return broken(at, "it is longer than Linux would follow");
        }
    }
}

/// The tables of logical partitions for a target on which they lie as `slots` say; the entry of the extended partition in `lba0`
/// is made to fit. Where nothing changes they are the bytes of the disk that `table` was read from.
pub fn pieces(
    src: &mut (impl Read + Seek),
    lba0: &mut [u8],
    table: &Table,
    slots: &[Slot],
    target: Sectors,
) -> io::Result<Vec<TablePiece>> {
    let Some(extended) = &table.extended else { return Ok(Vec::new()) };
    let slot_of = |number: u32| slots.iter().find(|slot| slot.number == number).copied();
    let stays = |number: u32| {
        let partition = table.partitions.iter().find(|p| p.number == number);
        partition.zip(slot_of(number)).is_some_and(|(p, slot)| mbr::is_at(p, &slot))
    };
    let mut numbers = extended.links.iter().flat_map(|link| &link.partitions);
    let unchanged = numbers.all(|(number, _)| stays(*number));
    let whole = Slot {
        number: extended.number,
        start_bytes: extended.start_bytes,
        len_bytes: extended.end_bytes - extended.start_bytes,
    };
    // What lies in it in the image may do so here.
    let all_stay = table.partitions.iter().all(|p| stays(p.number));
    let fits = whole.end_bytes() <= target.offset(target.count);
    if unchanged && fits && (all_stay || free_of(&whole, slots)) {
        return extended.links.iter().map(|link| piece(src, link.at_bytes, target)).collect();
    }
    let links = moved_links(extended, table, slots)?;
    let Some((_, first_at, _)) = links.first().copied() else {
        // Nothing is left in it.
        entry_of(lba0, extended.number).fill(0);
        return Ok(Vec::new());
    };
    let end = links.iter().map(|(_, _, slot)| slot.end_bytes()).max().unwrap_or(first_at);
    let whole = Slot { start_bytes: first_at, len_bytes: end - first_at, ..whole };
    mbr::write_entry(entry_of(lba0, extended.number), &whole, 0, target)?;
    let sector = u64::from(target.bytes);
    let mut pieces = Vec::new();
    for (i, (link, at, slot)) in links.iter().enumerate() {
        let mut moved = piece(src, link.at_bytes, target)?;
        moved.offset = *at;
        mbr::write_entry(&mut moved.bytes[ENTRIES..][..ENTRY_LEN], slot, at / sector, target)?;
        let way_on = &mut moved.bytes[ENTRIES + ENTRY_LEN..][..ENTRY_LEN];
        way_on.fill(0);
        if let Some((_, next_at, next)) = links.get(i + 1) {
            let next =
                Slot { start_bytes: *next_at, len_bytes: next.end_bytes() - next_at, ..*next };
            way_on[4] = EXTENDED_IN_CHAIN;
            mbr::write_entry(way_on, &next, first_at / sector, target)?;
        }
        pieces.push(moved);
    }
    Ok(pieces)
}

/// The type of the entry that leads to the next table.
pub const EXTENDED_IN_CHAIN: u8 = 0x05;

/// Each table that is still needed, with its new place and that of its partition. The first is where the extended partition begins.
fn moved_links<'a>(
    extended: &'a Extended,
    table: &Table,
    slots: &[Slot],
) -> io::Result<Vec<(&'a Link, u64, Slot)>> {
    let cannot = |why: &str| {
        let what = format!(
            "{why}, so that none of them can move: leave --grow out and take a disk that is no smaller, or restore the partitions with --layout"
        );
        io::Error::new(io::ErrorKind::InvalidInput, what)
    };
    if !extended.links.iter().all(Link::is_usual) {
        return Err(cannot(
            "the logical partitions are chained in a way that cannot be rearranged",
        ));
    }
    let mut links = Vec::new();
    let mut left_out = false;
    for link in &extended.links {
        let Some((number, _)) = link.partitions.first() else { continue };
        let partition = table.partitions.iter().find(|p| p.number == *number);
        let slot = slots.iter().find(|slot| slot.number == *number);
        let (Some(partition), Some(slot)) = (partition, slot) else {
            left_out = true;
            continue;
        };
        if left_out {
            return Err(cannot(
                "without a logical partition before them, the others would get other numbers",
            ));
        }
        let front = partition.start_bytes.saturating_sub(link.at_bytes);
        let at = slot.start_bytes.checked_sub(front).filter(|_| front > 0);
        let at =
            at.ok_or_else(|| cannot("a table of logical partitions lies behind its partition"))?;
        links.push((link, at, *slot));
    }
    if links.windows(2).any(|pair| pair[0].2.end_bytes() > pair[1].1) {
        return Err(cannot("the logical partitions are not chained in the order of the disk"));
    }
    Ok(links)
}

/// Whether no partition but the logical ones, which are checked elsewhere, lies in the extended one.
fn free_of(whole: &Slot, slots: &[Slot]) -> bool {
    slots
        .iter()
        .filter(|slot| slot.number < FIRST_NUMBER)
        .all(|slot| slot.end_bytes() <= whole.start_bytes || slot.start_bytes >= whole.end_bytes())
}

fn entry_of(lba0: &mut [u8], number: u32) -> &mut [u8] {
    let index = usize::try_from(number - 1).expect("an MBR has four entries");
    &mut lba0[ENTRIES + index * ENTRY_LEN..][..ENTRY_LEN]
}

fn piece(src: &mut (impl Read + Seek), at: u64, sectors: Sectors) -> io::Result<TablePiece> {
    if at >= sectors.offset(sectors.count) {
        return Err(too_small(sectors.disk_bytes));
    }
    let bytes = sectors.read(src, at / u64::from(sectors.bytes), 1)?;
    Ok(TablePiece { name: LOGICAL_TABLES, offset: at, bytes })
}
