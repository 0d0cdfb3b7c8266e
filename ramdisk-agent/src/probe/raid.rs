//! Members of RAIDs: Linux's md, and the two formats of firmware that are still met.
//!
//! Places and fields of md as in the kernel's `include/uapi/linux/raid/md_p.h`; DDF as in SNIA's Common RAID Disk Data Format 2.0,
//! section 5.3; Intel's as in mdadm's `super-intel.c`. Metadata at the end of a disk survives most formatters, so that a member
//! found there may be one no more.

use std::io::{self, Read, Seek};

use super::{Hit, Part, Signature, SignatureKind, field, le32, le64, text, uuid};
use crate::fs::FsKind;

const MD_MAGIC: u32 = 0xa92b_4efc;
/// Where the superblocks of 1.1 and of 1.2 are.
const MD_FRONT: [usize; 2] = [0, 4096];
const MD_LEN: usize = 256;
/// The old superblock is in the last 64 KiB that are aligned.
const MD_0_ALIGN: u64 = 64 << 10;
const SECTOR: u64 = 512;

/// Superblocks 1.1 and 1.2.
pub fn md_front(head: &[u8]) -> Option<Hit> {
    MD_FRONT.into_iter().find_map(|at| md_1(head.get(at..)?, at as u64))
}

/// Superblocks 1.0 and 0.90, near the end.
pub fn md_back<S: Read + Seek>(part: &mut Part<'_, S>) -> io::Result<Option<Hit>> {
    let sectors = part.len / SECTOR;
    if let Some(sector) = sectors.checked_sub(16).map(|n| n & !7).filter(|n| *n > 0) {
        let offset = sector * SECTOR;
        if let Some(hit) = part.bytes(offset, MD_LEN)?.and_then(|bytes| md_1(&bytes, offset)) {
            return Ok(Some(hit));
        }
    }
    let offset = (part.len & !(MD_0_ALIGN - 1)).checked_sub(MD_0_ALIGN).filter(|n| *n > 0);
    let Some(offset) = offset else { return Ok(None) };
    Ok(part.bytes(offset, MD_LEN)?.and_then(|bytes| md_0(&bytes, offset)))
}

fn md_1(bytes: &[u8], offset: u64) -> Option<Hit> {
    let here = le64(bytes, 144)? == offset / SECTOR;
    (le32(bytes, 0)? == MD_MAGIC && le32(bytes, 4)? == 1 && here)
        .then(|| Hit::new(FsKind::MdRaid, offset, 4, uuid(bytes, 16), text(bytes.get(32..64))))
}

fn md_0(bytes: &[u8], offset: u64) -> Option<Hit> {
    // Its numbers have the byte order of the machine that made it.
    let magic = field(bytes, 0)?;
    let order: fn([u8; 4]) -> u32 = match MD_MAGIC {
        m if u32::from_le_bytes(magic) == m => u32::from_le_bytes,
        m if u32::from_be_bytes(magic) == m => u32::from_be_bytes,
        _ => return None,
    };
    if order(field(bytes, 4)?) != 0 || order(field(bytes, 8)?) < 90 {
        return None;
    }
    // The first word stands apart from the other three.
    let id = [bytes.get(20..24)?, bytes.get(52..64)?].concat();
    Some(Hit::new(FsKind::MdRaid, offset, 4, uuid(&id, 0), None))
}

/// What firmware keeps at the end of a disk.
pub fn firmware<S: Read + Seek>(disk: &mut Part<'_, S>) -> io::Result<Option<Signature>> {
    let places: [(u64, &[u8], &str); 2] = [
        (1, &0xDE11_DE11_u32.to_be_bytes(), "member of a DDF firmware RAID"),
        (2, b"Intel Raid ISM Cfg Sig. ", "member of an Intel firmware RAID"),
    ];
    for (from_end, magic, what) in places {
        let Some(sector) = (disk.len / SECTOR).checked_sub(from_end) else { continue };
        let offset = sector * SECTOR;
        if disk.bytes(offset, magic.len())?.is_some_and(|bytes| bytes == magic) {
            let len = magic.len() as u64;
            return Ok(Some(Signature {
                kind: SignatureKind::FirmwareRaid,
                offset,
                len,
                what: what.into(),
            }));
        }
    }
    Ok(None)
}
