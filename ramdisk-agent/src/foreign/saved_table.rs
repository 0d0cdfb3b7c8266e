//! The partition tables that Clonezilla and FOG save beside their images, held against the list of partitions that they save as well.
//!
//! The restored disk has the saved table, byte for byte, and the volumes where the list says: both have to say the same. Nothing is read
//! from these tables but where partitions are; what becomes of the disk is for `table` to say.

use super::error::{ForeignError, Result};
use super::sfdisk::{Dump, DumpedPartition};
use crate::fs::bytes::{le32, le64};
use crate::table::{self, MBR_LEN};

/// The least that an entry of a GPT has, in bytes.
const GPT_ENTRY_LEN: usize = 128;

/// The disk's length from a primary GPT that begins at LBA 1.
pub fn len_by_gpt(head: &[u8], sector_bytes: u64) -> Option<u64> {
    let at = usize::try_from(sector_bytes).ok()?;
    let header = head.get(at..at + 92).filter(|header| header.starts_with(b"EFI PART"))?;
    le64(header, 32).checked_add(1)?.checked_mul(sector_bytes)
}

/// Refuses a table that was saved if it is cut off, or places a partition elsewhere than the list, for the volumes go where that says and
/// nothing would lead to them; and one that has a partition which the list lacks, for nothing would be in it.
pub fn check_mbr(mbr: &[u8], dump: &Dump, name: &str, format: &'static str) -> Result<()> {
    if mbr.get(MBR_LEN - 2..MBR_LEN) != Some(&[0x55, 0xAA]) {
        let fault = format!("{name} has no MBR in its {} bytes", mbr.len());
        return Err(ForeignError::damaged(format, fault));
    }
    // Logical ones have tables of their own.
    let primary = dump.partitions.iter().chain(&dump.extended).filter(|p| p.number <= 4);
    for partition in primary {
        let entry = usize::try_from(partition.number).ok().and_then(|n| n.checked_sub(1));
        let entry = entry.map(|n| &mbr[446 + 16 * n..][..16]);
        let place = |at: usize| Some(u64::from(le32(entry?, at)) * dump.sector_bytes);
        if (place(8), place(12)) != (Some(partition.start), Some(partition.len)) {
            return Err(disagreement(name, partition, format));
        }
    }
    let is_listed = |number: u32| {
        dump.partitions.iter().chain(&dump.extended).any(|partition| partition.number == number)
    };
    let entries = mbr[446..].chunks_exact(16).zip(1..=4);
    // A list of logical partitions without the extended one is told by its own words.
    let is_told = |kind: u8| table::is_extended(kind) && !dump.logical().is_empty();
    let mut used =
        entries.filter(|(entry, _)| entry[4] != 0 && le32(entry, 12) != 0 && !is_told(entry[4]));
    match used.find(|(_, number)| !is_listed(*number)) {
        Some((_, number)) => Err(not_listed(name, number, format)),
        None => Ok(()),
    }
}

/// As [`check_mbr`], for a GPT whose header and entries are given.
pub fn check_gpt(
    header: &[u8],
    entries: &[u8],
    dump: &Dump,
    name: &str,
    format: &'static str,
) -> Result<()> {
    if header.len() < 92 || !header.starts_with(b"EFI PART") {
        return Err(ForeignError::damaged(format, format!("{name} has no GPT, or is cut off")));
    }
    let size = usize::try_from(le32(header, 84)).unwrap_or(usize::MAX);
    if size < GPT_ENTRY_LEN {
        return Err(ForeignError::damaged(format, format!("{name} has entries of {size} bytes")));
    }
    for partition in &dump.partitions {
        let at = usize::try_from(partition.number)
            .ok()
            .and_then(|number| number.checked_sub(1)?.checked_mul(size));
        let entry = at.and_then(|at| entries.get(at..)?.get(..48)).ok_or_else(|| {
            let fault = format!("{name} is cut off: the entry of {} is missing", partition.name);
            ForeignError::damaged(format, fault)
        })?;
        let (first, last) = (le64(entry, 32), le64(entry, 40));
        let start = first.checked_mul(dump.sector_bytes);
        let end = last.checked_add(1).and_then(|end| end.checked_mul(dump.sector_bytes));
        if (start, end) != (Some(partition.start), Some(partition.end())) {
            return Err(disagreement(name, partition, format));
        }
    }
    let is_listed = |number: u32| dump.partitions.iter().any(|p| p.number == number);
    let mut used = entries
        .chunks_exact(size)
        .zip(1..=le32(header, 80))
        .filter(|(entry, _)| entry[..16].iter().any(|byte| *byte != 0));
    match used.find(|(_, number)| !is_listed(*number)) {
        Some((_, number)) => Err(not_listed(name, number, format)),
        None => Ok(()),
    }
}

/// The partition would be there and empty: only what is listed was saved.
fn not_listed(table: &str, number: u32, format: &'static str) -> ForeignError {
    let fault = format!(
        "{table} has a partition {number} and the list of partitions has none: one of them was changed, or the list is cut off"
    );
    ForeignError::damaged(format, fault)
}

fn disagreement(table: &str, partition: &DumpedPartition, format: &'static str) -> ForeignError {
    let fault = format!(
        "{table} has another place for {} than the list of partitions: one of them was changed",
        partition.name
    );
    ForeignError::damaged(format, fault)
}

/// The header and the entries of a primary GPT, as far as they are there.
pub fn primary_gpt(head: &[u8], sector_bytes: u64) -> (&[u8], &[u8]) {
    let from = |at: Option<u64>| {
        let at = at.and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| head.get(at..)).unwrap_or_default()
    };
    let header = from(Some(sector_bytes));
    let entries = header.get(72..80).map(|_| le64(header, 72));
    (header, from(entries.and_then(|lba| lba.checked_mul(sector_bytes))))
}
