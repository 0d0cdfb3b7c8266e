//! The first and the last writes of a restore: making the target plainly invalid, and making it bootable.

use std::ops::Range;

use agent_api::ErrorKind;
use serde::Serialize;

use super::medium;
use crate::buffer::AlignedBuf;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::restore::plan::RestorePlan;
use crate::sys;
use crate::table::TablePiece;

/// The highest partition number that nodes are looked for: the usual size of a GPT.
const MAX_NODES: i32 = 128;
/// The header of a primary GPT ends here at the latest, with the largest sectors in use.
const GPT_HEADERS_END: u64 = 8192;
/// The header of a backup GPT is in so many bytes at the disk's end.
const BACKUP_HEADER_LEN: u64 = 4096;
/// How much is read at once to see whether it is zero.
const WIPE_CHECK_LEN: usize = 1 << 20;

/// Bytes that are written after everything else, in the order of the plan, with a flush after each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Piece {
    /// What it is: `boot gap`, `backup GPT`, `primary GPT`, `LBA 0` …
    pub name: String,
    /// Where it goes on the target.
    pub offset: u64,
    /// The bytes.
    #[serde(skip)]
    pub bytes: Vec<u8>,
}

impl Piece {
    /// Its place on the target.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.bytes.len() as u64
    }
}

impl From<TablePiece> for Piece {
    fn from(piece: TablePiece) -> Self {
        Self { name: piece.name.into(), offset: piece.offset, bytes: piece.bytes }
    }
}

/// Whether the kernel had partition nodes that were made by hand (`partx -a`): they are taken away with the old table, and the new
/// table's are made the same way at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandMadeNodes(bool);

/// Destroys every table and label that firmware or a kernel would act on, and makes sure that it is gone.
///
/// LBA 0 goes first and alone: a BIOS and every system that keeps to the UEFI specification find nothing to boot then, while
/// nothing else has changed. Next the headers of both copies of a GPT, for firmware that does without a protective MBR. Only
/// when these are gone for sure is anything touched that the old system would miss.
pub fn invalidate(target: &Disk, plan: &RestorePlan) -> Result<HandMadeNodes> {
    for ranges in steps(target, plan) {
        erase(target, &ranges)?;
    }
    Ok(forget_partitions(target))
}

/// The same when a restore has failed: what cannot be erased does not keep the rest from being erased. The first error is the one that
/// is returned.
pub fn invalidate_what_can_be(target: &Disk, plan: &RestorePlan) -> Result<()> {
    let ranges = steps(target, plan).into_iter().flatten();
    let done: Vec<Result<()>> = ranges.map(|range| erase(target, &[range])).collect();
    forget_partitions(target);
    done.into_iter().collect()
}

fn steps(target: &Disk, plan: &RestorePlan) -> [Vec<Range<u64>>; 3] {
    let len = target.len_bytes();
    let lba0 = u64::from(target.logical_sector_bytes()).min(len);
    let headers = vec![lba0..GPT_HEADERS_END.min(len), len.saturating_sub(BACKUP_HEADER_LEN)..len];
    [std::iter::once(0..lba0).collect(), headers, plan.wipes.clone()]
}

/// Writes zeros, and makes sure that they are there.
fn erase(target: &Disk, ranges: &[Range<u64>]) -> Result<()> {
    let mut buffer = AlignedBuf::new(WIPE_CHECK_LEN);
    for range in ranges {
        target.zero(range.start, range.end - range.start)?;
    }
    target.flush()?;
    target.drop_cache();
    for range in ranges {
        let read = |bytes: &mut [u8], at| target.read_direct(bytes, at);
        let held = medium::first_nonzero(range.clone(), buffer.as_mut_slice(), read)?;
        if let Some(range) = held.differs {
            return Err(Error::new(
                ErrorKind::Disk,
                format!(
                    "{} cannot be erased: it says that zeros were written between byte {} and {}, and reads back \
                     something else",
                    target.path().display(),
                    target.origin() + range.start,
                    target.origin() + range.end
                ),
            ));
        }
    }
    Ok(())
}

/// Writes the withheld pieces, reads each back, and tells the kernel. Returns the bytes written.
pub fn commit(target: &Disk, plan: &RestorePlan, nodes: HandMadeNodes) -> Result<u64> {
    check_place(target)?;
    let written = write_pieces(target, &plan.commit)?;
    if target.is_block() && target.part_of().is_none() {
        announce_partitions(target, plan, nodes);
    }
    Ok(written)
}

/// Refuses a disk file that was moved away or removed meanwhile: what was restored is not where it was wanted, or is gone when this program ends.
/// Nodes of devices are another matter, since links to them by what was on the disk go with its old table.
fn check_place(target: &Disk) -> Result<()> {
    if target.is_block() || target.is_at(target.path()) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Disk,
        format!(
            "{} is not the file any more that was restored to: it was removed, renamed or replaced meanwhile",
            target.path().display()
        ),
    ))
}

/// Writes pieces one after the other, each flushed and read back before the next. Returns the bytes written.
pub fn write_pieces(target: &Disk, pieces: &[Piece]) -> Result<u64> {
    let mut written = 0;
    for piece in pieces {
        let mut buffer = AlignedBuf::new(piece.bytes.len());
        buffer.as_mut_slice().copy_from_slice(&piece.bytes);
        let doing = || format!("writing the {}", piece.name);
        target.write_direct(buffer.as_slice(), piece.offset).map_err(|e| e.context(doing()))?;
        target.flush().map_err(|e| e.context(doing()))?;
        target.drop_cache();
        buffer.as_mut_slice().fill(0);
        target.read_direct(buffer.as_mut_slice(), piece.offset)?;
        if buffer.as_slice() != piece.bytes {
            return Err(Error::new(
                ErrorKind::Disk,
                format!(
                    "the {} reads back other bytes than were written: the disk is defective",
                    piece.name
                ),
            ));
        }
        written += piece.bytes.len() as u64;
    }
    Ok(written)
}

/// Partition nodes of the old table would let udev, md or LVM find what is left of the old system, and keep stale pages.
fn forget_partitions(target: &Disk) -> HandMadeNodes {
    // The table around a partition stays.
    if !target.is_block()
        || target.part_of().is_some()
        || sys::block::reread_partitions(target.file()).is_ok()
    {
        return HandMadeNodes(false);
    }
    // A kernel without table parsers, or a loop device without partition scanning: nodes made by hand go by hand. The call
    // fails for every number that is not there.
    let gone =
        (1..=MAX_NODES).filter(|n| sys::block::delete_partition(target.file(), *n).is_ok()).count();
    HandMadeNodes(gone > 0)
}

/// Makes the new partitions known. The data are safe whatever the kernel says to this, so its refusal is not an error.
fn announce_partitions(target: &Disk, plan: &RestorePlan, nodes: HandMadeNodes) {
    if sys::block::reread_partitions(target.file()).is_ok() || !nodes.0 {
        return;
    }
    for partition in &plan.partitions {
        let number = i32::try_from(partition.number).ok().filter(|n| *n <= MAX_NODES);
        let (start, len) =
            (i64::try_from(partition.start_bytes).ok(), i64::try_from(partition.len_bytes).ok());
        if let (Some(number), Some(start), Some(len)) = (number, start, len) {
            // As above.
            let _ = sys::block::add_partition(target.file(), number, start, len);
        }
    }
}
