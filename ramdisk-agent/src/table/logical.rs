//! Logical partitions: a chain of tables inside the extended partition of an MBR.
//!
//! Each link is a sector like an MBR without boot code: an entry for a logical partition, counted from that sector, and one for
//! the next link, counted from the start of the extended partition. There is no specification but what systems do: numbers,
//! order and the entries that count are those of Linux (`block/partitions/msdos.c`). Where Linux would quietly end the list in the
//! middle, the table is refused here, as what lies behind would be lost.

use std::io::{self, Read, Seek};

use super::mbr::{Entry, Mbr};
use super::{Partition, Sectors, TableRefusal};
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
    let mut chain = Chain { partitions: Vec::new(), metadata: Extents::new() };
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
            next_number += 1;
        }
        let Some(next) = link.entries.iter().find(|e| e.len != 0 && e.is_extended()) else {
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
