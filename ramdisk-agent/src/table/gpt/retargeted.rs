//! Both copies of a GPT for a disk with sectors of another size: every number of theirs is counted anew.

use std::io;

use super::{CRC32, Copy, ENTRIES_CHECKSUM, Gpt, PRIMARY_ENTRIES_LBA};
use crate::table::{Sectors, Slot, Table, TablePiece, too_small, u32_at};

/// Field of a header: the first sector for partitions.
const FIRST_USABLE: usize = 40;

impl Gpt {
    /// Whether its header fits a sector of that size.
    pub fn header_fits(&self, sector_bytes: u32) -> bool {
        u32_at(&self.used.header, 12) <= sector_bytes
    }

    /// Where the space for partitions begins in sectors of that size: behind the primary.
    pub fn first_usable_in(&self, sectors: Sectors) -> u64 {
        PRIMARY_ENTRIES_LBA + sectors.holding(self.array_len())
    }

    /// How many of such sectors the backup takes at the end of a disk.
    pub fn backup_sectors_in(&self, sectors: Sectors) -> u64 {
        1 + sectors.holding(self.array_len())
    }

    /// The copy that is used, told twice in the target's sectors with the partitions in `slots`; the backup first.
    pub fn retargeted(
        &self,
        target: Sectors,
        table: &Table,
        slots: &[Slot],
    ) -> io::Result<Vec<TablePiece>> {
        let array_len = self.array_len();
        let covered = usize::try_from(u32_at(&self.used.header, 12)).map_err(io::Error::other)?;
        let sector = usize::try_from(target.bytes).map_err(io::Error::other)?;
        let taken = target.holding(array_len);
        let least = self.first_usable_in(target);
        let last_usable = target.count.saturating_sub(self.backup_sectors_in(target) + 1);
        let begin = slots.iter().map(|slot| slot.start_bytes / u64::from(target.bytes)).min();
        let end = slots.iter().map(Slot::end_bytes).max().unwrap_or(0);
        if covered > sector
            || last_usable < least
            || begin.is_some_and(|begin| begin < least)
            || end > target.offset(last_usable + 1)
        {
            return Err(too_small(target.disk_bytes));
        }

        let mut header = self.used.header[..covered].to_vec();
        header.resize(sector, 0);
        let mut entries = self.used.entries[..array_len].to_vec();
        self.put_places(&mut entries, target, table.partitions.iter(), slots)?;
        let sum = CRC32.checksum(&entries).to_le_bytes();
        header[ENTRIES_CHECKSUM..ENTRIES_CHECKSUM + 4].copy_from_slice(&sum);
        // Where it was in bytes, or as near to that as partitions and table allow.
        let first = self.disk.offset(self.header.first_usable_lba.min(self.disk.count));
        let first = first.div_ceil(u64::from(target.bytes)).min(begin.unwrap_or(last_usable));
        header[FIRST_USABLE..FIRST_USABLE + 8].copy_from_slice(&first.max(least).to_le_bytes());
        entries.resize(usize::try_from(target.offset(taken)).map_err(io::Error::other)?, 0);
        Ok(Copy::twins(header, entries, target, last_usable))
    }

    fn array_len(&self) -> usize {
        self.header.array_len().unwrap_or(0)
    }
}
