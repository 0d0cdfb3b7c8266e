//! A table for a disk with sectors of another size.
//!
//! Only a GPT can be told so: its numbers are counted anew, and the partitions stay where they are in bytes. Boot code in LBA 0 and
//! boot loaders in gaps count sectors of the size that they were made for, and no BIOS reads others than of 512 bytes: LBA 0 has nothing but
//! the protective entry and the disk's signature. An MBR is for a BIOS, and so are entries of a hybrid one.

use std::io::{self, Read, Seek};

use super::{MBR_LEN, Mbr, Sectors, Slot, Table, TableKind, TablePiece, mbr, too_small};

/// Bytes of LBA 0 that a BIOS would run.
const BOOT_CODE_LEN: usize = 440;
/// The signature of the disk behind them, and two reserved bytes.
const SIGNATURE_END: usize = 446;

/// What of a table matters before it is made for another sector size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retargetable {
    /// There is code for a BIOS in LBA 0.
    pub has_boot_code: bool,
    /// Where partitions may begin.
    pub room_start: u64,
    /// Where partitions have to end.
    pub room_end: u64,
}

/// Whether a table can be made for a disk with sectors of another size; or why not, in a phrase.
///
/// # Errors
/// When the source cannot be read, and `InvalidInput` for sectors of a size that cannot be handled.
pub fn retargetable(
    src: &mut (impl Read + Seek),
    table: &Table,
    target_bytes: u64,
    sector_bytes: u32,
) -> io::Result<Result<Retargetable, &'static str>> {
    let target = Sectors::new(target_bytes, sector_bytes)?;
    let Some(gpt) = table.gpt.as_ref().filter(|_| table.kind == TableKind::Gpt) else {
        return Ok(Err(
            "it has an MBR, which a BIOS reads by sectors of 512 bytes; restore its partitions into a GPT with --layout",
        ));
    };
    let lba0 = source_lba0(src, table)?;
    if Mbr::parse(&lba0).is_some_and(|mbr| mbr.count() > 0) {
        return Ok(Err(
            "it has a hybrid MBR, whose entries a BIOS reads by sectors of 512 bytes; take those away with sgdisk -o or gdisk",
        ));
    }
    if !gpt.header_fits(sector_bytes) {
        return Ok(Err("the header of its GPT is longer than a sector"));
    }
    let taken = gpt.backup_sectors_in(target);
    Ok(Ok(Retargetable {
        has_boot_code: !image_format::is_zero(&lba0[..BOOT_CODE_LEN]),
        room_start: target.offset(gpt.first_usable_in(target)),
        room_end: target.offset(target.count.saturating_sub(taken)),
    }))
}

/// The sectors of a [retargetable] table with its partitions where `slots` say, in the order in which they are to be written: the
/// backup GPT, the primary, LBA 0.
///
/// # Errors
/// As [`retargetable`], and `InvalidInput` where the partitions do not fit.
pub fn retarget(
    src: &mut (impl Read + Seek),
    table: &Table,
    slots: &[Slot],
    target_bytes: u64,
    sector_bytes: u32,
) -> io::Result<Vec<TablePiece>> {
    let target = Sectors::new(target_bytes, sector_bytes)?;
    let Some(gpt) = &table.gpt else { return Err(too_small(target_bytes)) };
    let mut pieces = gpt.retargeted(target, table, slots)?;
    let from = source_lba0(src, table)?;
    let mut lba0 = vec![0; usize::try_from(target.bytes).map_err(io::Error::other)?];
    lba0[BOOT_CODE_LEN..SIGNATURE_END].copy_from_slice(&from[BOOT_CODE_LEN..SIGNATURE_END]);
    lba0[MBR_LEN - 2..MBR_LEN].copy_from_slice(&[0x55, 0xAA]);
    if let Some(signature) = table.new_signature {
        mbr::sign(&mut lba0, table.kind, signature);
    }
    mbr::protect(&mut lba0, target);
    pieces.push(TablePiece { name: "LBA 0", offset: 0, bytes: lba0 });
    Ok(pieces)
}

fn source_lba0(src: &mut (impl Read + Seek), table: &Table) -> io::Result<Vec<u8>> {
    let Some(gpt) = &table.gpt else { return Ok(vec![0; MBR_LEN]) };
    gpt.disk().read(src, 0, 1)
}
