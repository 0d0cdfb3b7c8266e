//! Both copies of a GPT that is made anew: 128 entries of the usual size, as all tools make them.

use std::io;

use uuid::Uuid;

use super::{CRC32, Copy, HEADER_LEN, MIN_ENTRY_BYTES, PRIMARY_ENTRIES_LBA};
use crate::table::fresh::FreshPartition;
use crate::table::kinds::TypeId;
use crate::table::{Sectors, TablePiece, too_small};

const ENTRY_LEN: usize = 128;
const COUNT: u32 = 128;
const ARRAY_LEN: usize = 128 * ENTRY_LEN;
const REVISION: u32 = 0x0001_0000;
/// Where an entry has its name, and how many bytes of it.
const NAME: usize = 56;
const NAME_LEN: usize = 72;

/// How many sectors the backup takes at the end of a disk.
pub fn backup_sectors(sectors: Sectors) -> u64 {
    1 + sectors.holding(ARRAY_LEN)
}

/// Both copies, the backup first. The partitions lie before [`backup_sectors`].
pub fn pieces(
    disk_id: Uuid,
    partitions: &[FreshPartition],
    sectors: Sectors,
) -> io::Result<Vec<TablePiece>> {
    let taken = sectors.holding(ARRAY_LEN);
    let first_usable = PRIMARY_ENTRIES_LBA + taken;
    let last_usable = sectors.count.saturating_sub(backup_sectors(sectors) + 1);
    if last_usable < first_usable {
        return Err(too_small(sectors.disk_bytes));
    }
    let array_len = usize::try_from(sectors.offset(taken)).map_err(io::Error::other)?;
    let mut entries = vec![0; array_len];
    for partition in partitions {
        let index = usize::try_from(partition.slot.number).map_err(io::Error::other)? - 1;
        let entry = entries[..ARRAY_LEN].chunks_exact_mut(ENTRY_LEN).nth(index);
        write(
            entry.ok_or_else(|| too_small(sectors.disk_bytes))?,
            partition,
            sectors,
            first_usable,
        )?;
    }
    let sector = usize::try_from(sectors.bytes).map_err(io::Error::other)?;
    let mut header = vec![0; sector];
    header[..8].copy_from_slice(b"EFI PART");
    let len = u32::try_from(HEADER_LEN).map_err(io::Error::other)?;
    for (at, value) in [
        (8, REVISION),
        (12, len),
        (80, COUNT),
        (84, MIN_ENTRY_BYTES),
        (88, CRC32.checksum(&entries[..ARRAY_LEN])),
    ] {
        header[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    header[40..48].copy_from_slice(&first_usable.to_le_bytes());
    header[56..72].copy_from_slice(&disk_id.to_bytes_le());
    Ok(Copy::twins(header, entries, sectors, last_usable))
}

fn write(
    entry: &mut [u8],
    partition: &FreshPartition,
    sectors: Sectors,
    first_usable: u64,
) -> io::Result<()> {
    let wrong = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text.to_owned());
    let TypeId::Guid(kind) = partition.type_id else {
        return Err(wrong("a type of an MBR in a GPT"));
    };
    let sector = u64::from(sectors.bytes);
    let (first, end) = (partition.slot.start_bytes / sector, partition.slot.end_bytes() / sector);
    if end <= first || first < first_usable {
        return Err(too_small(sectors.disk_bytes));
    }
    entry[..16].copy_from_slice(&kind.to_bytes_le());
    entry[16..32].copy_from_slice(&partition.uuid.to_bytes_le());
    entry[32..40].copy_from_slice(&first.to_le_bytes());
    entry[40..48].copy_from_slice(&(end - 1).to_le_bytes());
    entry[48..56].copy_from_slice(&partition.attributes.to_le_bytes());
    let name: Vec<u8> = partition.name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    if name.len() > NAME_LEN {
        return Err(wrong("a name of more than 36 characters"));
    }
    entry[NAME..NAME + name.len()].copy_from_slice(&name);
    Ok(())
}
