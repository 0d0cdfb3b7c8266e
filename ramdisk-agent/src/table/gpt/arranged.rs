//! Both copies of a GPT as a target gets them: for its size, with the partitions where they are to lie there.

use std::io;

use super::{CRC32, Copy, ENTRIES_CHECKSUM, Gpt, PRIMARY_LBA};
use crate::extents::Extents;
use crate::table::{Partition, Sectors, Slot, Table, TablePiece, mbr, too_small};

/// Fields of an entry: the first and the last sector.
const FIRST: usize = 32;
const LAST: usize = 40;

/// Refuses a target on which the primary would be under a partition or behind the end: its entries may lie anywhere, also behind
/// partitions that move or grow. They are not moved, as what is at the usual place is often boot code, and they make room for that.
fn check_primary(own: &Extents, slots: &[Slot], target: Sectors) -> io::Result<()> {
    if own.end() > target.offset(target.count) {
        return Err(too_small(target.disk_bytes));
    }
    let over = |slot: &&Slot| own.overlapping(slot.start_bytes, slot.len_bytes).next().is_some();
    match slots.iter().find(over) {
        None => Ok(()),
        Some(slot) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "partition {} would lie over the primary GPT's entries, which are not at their usual place: move them to the start of \
                 the template's disk (sgdisk --move-main-table=2), or let nothing grow over them",
                slot.number
            ),
        )),
    }
}

impl Gpt {
    /// The size of the disk that it was read from.
    pub fn disk_sectors(&self) -> u64 {
        self.disk.count
    }

    /// How many sectors the backup takes at the end of a disk.
    pub fn backup_sectors(&self) -> u64 {
        1 + self.disk.holding(self.used.entries.len())
    }

    /// Both copies for a disk of that size with the partitions in `slots`, the backup first.
    pub fn pieces(
        &self,
        target: Sectors,
        table: &Table,
        slots: &[Slot],
    ) -> io::Result<Vec<TablePiece>> {
        let mut primary = self.primary.clone();
        let mut backup = self.backup.clone();
        let moved = self.moved(target, table, slots)?;
        let stays =
            moved.is_none() && (target.count == self.disk.count || self.must_stay(target, slots));
        if !stays {
            let made = backup.get_or_insert_with(|| primary.clone());
            if let Some(said) = moved.as_ref().or((!self.agree).then_some(&self.used)) {
                for copy in [&mut primary, &mut *made] {
                    copy.header.clone_from(&said.header);
                    copy.entries.clone_from(&said.entries);
                }
            }
            made.header_lba = target.count - 1;
            let taken = target.holding(made.entries.len());
            let end = slots.iter().map(Slot::end_bytes).max().unwrap_or(0);
            let end = end.max(target.offset(self.header.first_usable_lba.min(target.count)));
            let entries_lba =
                made.header_lba.checked_sub(taken).filter(|lba| target.offset(*lba) >= end);
            made.entries_lba = entries_lba.ok_or_else(|| too_small(target.disk_bytes))?;
            let last_usable = made.entries_lba - 1;
            made.settle(PRIMARY_LBA, last_usable);
            primary.settle(made.header_lba, last_usable);
            let own = primary.sectors(target);
            if made.sectors(target).iter().any(|e| own.overlapping(e.start, e.len).next().is_some())
            {
                return Err(too_small(target.disk_bytes));
            }
            check_primary(&own, slots, target)?;
        }
        let mut pieces = backup.map(|copy| copy.pieces("backup GPT", target)).unwrap_or_default();
        pieces.extend(primary.pieces("primary GPT", target));
        Ok(pieces)
    }

    /// Whether the disk has become larger by so little that a partition lies where a backup would have to be. The copies then stay
    /// as they are, as they do on a disk of the same size.
    fn must_stay(&self, target: Sectors, slots: &[Slot]) -> bool {
        let end = slots.iter().map(Slot::end_bytes).max().unwrap_or(0);
        let place = target.count.saturating_sub(self.backup_sectors());
        target.count > self.disk.count && end > target.offset(place)
    }

    /// The copy that is used with other entries; `None` if all partitions stay where they are.
    fn moved(&self, target: Sectors, table: &Table, slots: &[Slot]) -> io::Result<Option<Copy>> {
        let stays = |p: &&Partition| {
            slots.iter().any(|slot| slot.number == p.number && mbr::is_at(p, slot))
        };
        if table.partitions.iter().all(|p| stays(&p)) {
            return Ok(None);
        }
        let mut copy = self.used.clone();
        let changed = table.partitions.iter().filter(|p| !stays(p));
        self.put_places(&mut copy.entries, target, changed, slots)?;
        let array = &copy.entries[..self.header.array_len().unwrap_or(0)];
        let sum = CRC32.checksum(array).to_le_bytes();
        // The header's own checksum is made anew when it is told where it is.
        copy.header[ENTRIES_CHECKSUM..ENTRIES_CHECKSUM + 4].copy_from_slice(&sum);
        Ok(Some(copy))
    }

    /// Makes the entries of partitions say where their slots are. One without a slot goes.
    pub(super) fn put_places<'a>(
        &self,
        entries: &mut [u8],
        target: Sectors,
        partitions: impl Iterator<Item = &'a Partition>,
        slots: &[Slot],
    ) -> io::Result<()> {
        let entry_len = usize::try_from(self.header.entry_bytes).expect("at most 4096");
        for partition in partitions {
            let index = usize::try_from(partition.number - 1).expect("as many as in the array");
            let entry = &mut entries[index * entry_len..][..entry_len];
            let Some(slot) = slots.iter().find(|slot| slot.number == partition.number) else {
                entry.fill(0);
                continue;
            };
            let sector = u64::from(target.bytes);
            let (first, end) = (slot.start_bytes / sector, slot.end_bytes() / sector);
            if end <= first {
                return Err(too_small(target.disk_bytes));
            }
            entry[FIRST..FIRST + 8].copy_from_slice(&first.to_le_bytes());
            entry[LAST..LAST + 8].copy_from_slice(&(end - 1).to_le_bytes());
        }
        Ok(())
    }

    /// The disk that it was read from.
    pub fn disk(&self) -> Sectors {
        self.disk
    }
}
