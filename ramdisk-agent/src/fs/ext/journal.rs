//! The journal of a filesystem that was not unmounted, replayed in memory.
//!
//! Follows the kernel's `Documentation/filesystems/ext4/journal.rst` and `fs/jbd2/recovery.c`: of each block the last copy in a whole
//! transaction, if neither that one nor a later one has revoked it, is what a replay would write.
//! Every checksum of versions 2 and 3 must be right, and behind the first break there must be no commit: then it is the log's end.
//! A last transaction that is not whole, which a replay leaves out, is given as well, since its commit may be what is damaged. Deliberately absent, so
//! that a filesystem that has them stays "not clean": fast commits, checksums of version 1 with asynchronous commits, a journal
//! on another device.

use std::collections::BTreeMap;
use std::io::{Read, Seek};

use super::inode::{self, Runs};
use super::superblock::{Superblock, crc32c};
use crate::extents::Extents;
use crate::fs::bytes::{be16, be32, be64, read};
use crate::fs::failure::{Failure, doubt};

const MAGIC: u32 = 0xC03B_3998;
const HEADER_LEN: usize = 12;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_V1: u32 = 3;
const SUPERBLOCK_V2: u32 = 4;
const REVOKE: u32 = 5;

const INCOMPAT_REVOKE: u32 = 0x1;
const INCOMPAT_64BIT: u32 = 0x2;
const INCOMPAT_CSUM_V2: u32 = 0x8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_KNOWN: u32 = INCOMPAT_REVOKE | INCOMPAT_64BIT | INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
const CHECKSUM_CRC32C: u8 = 4;
const SUPERBLOCK_LEN: usize = 1024;
const SUPERBLOCK_CHECKSUM_AT: usize = 0xFC;
const COMMIT_CHECKSUM_AT: usize = 16;

/// More revoke records in one transaction are not gathered.
const MAX_REVOKED: usize = 1 << 22;

const FLAG_ESCAPED: u32 = 1;
const FLAG_SAME_UUID: u32 = 2;
const FLAG_LAST: u32 = 8;
const UUID_LEN: usize = 16;
/// At the end of descriptors and revoke records with checksums.
const TAIL_LEN: usize = 4;

/// What a replay would write.
#[derive(Debug)]
pub struct Replay {
    /// What all whole transactions together write.
    pub blocks: Blocks,
    /// The same with what the last one has that is not whole.
    pub tail: Blocks,
    /// Where the journal is, in bytes.
    pub own: Extents,
}

/// For a block of the filesystem the block of the journal that replaces it.
pub type Blocks = BTreeMap<u64, Copy>;

/// A block in the journal.
#[derive(Debug, Clone, Copy)]
pub struct Copy {
    /// Where it is, as a block of the filesystem.
    pub at: u64,
    /// Its first four bytes were those of the journal's magic number, and are zeros there.
    pub escaped: bool,
}

/// The first bytes of a block that is escaped in the journal.
pub const ESCAPED: [u8; 4] = MAGIC.to_be_bytes();

/// Reads the journal of a filesystem; `sb` is what is on the disk, and was checked.
pub fn replay(src: &mut (impl Read + Seek), sb: &Superblock) -> Result<Replay, Failure> {
    let runs = inode::journal(src, sb)?;
    let log = Log::open(src, sb, runs)?;
    let nothing = (Blocks::new(), Blocks::new());
    let (blocks, tail) = if log.start == 0 { nothing } else { log.replay(src, sb.blocks)? };
    Ok(Replay { blocks, tail, own: places(&log.runs, sb) })
}

/// Whether a journal that is said to need no recovery holds transactions all the same, and where it is. A doubt says that this
/// cannot be told.
pub fn at_rest(src: &mut (impl Read + Seek), sb: &Superblock) -> Result<(bool, Extents), Failure> {
    let runs = inode::journal(src, sb)?;
    let at = runs.block(0).ok_or_else(|| doubt("the journal is empty"))?;
    let bytes = read(src, at * sb.block_bytes, SUPERBLOCK_LEN as u64)?;
    if be32(&bytes, 0) != MAGIC || !matches!(be32(&bytes, 4), SUPERBLOCK_V1 | SUPERBLOCK_V2) {
        return Err(doubt("the journal has no superblock"));
    }
    Ok((be32(&bytes, 0x1C) != 0, places(&runs, sb)))
}

/// Where the journal is, in bytes.
fn places(runs: &Runs, sb: &Superblock) -> Extents {
    let mut own = Extents::new();
    for (start, count) in &runs.list {
        own.insert(start * sb.block_bytes, count * sb.block_bytes);
    }
    own
}

/// A place in the log, and how many blocks have not been looked at.
#[derive(Clone, Copy)]
struct Place {
    at: u64,
    left: u64,
}

/// What was found of a transaction.
#[derive(Default)]
struct Transaction {
    written: Vec<(u64, Copy)>,
    revoked: Vec<u64>,
}

struct Log {
    runs: Runs,
    block_bytes: u64,
    first: u64,
    end: u64,
    start: u64,
    sequence: u32,
    wide: bool,
    checksums: Checksums,
    seed: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Checksums {
    None,
    V2,
    V3,
}

impl Log {
    fn open(src: &mut (impl Read + Seek), sb: &Superblock, runs: Runs) -> Result<Self, Failure> {
        let block_bytes = sb.block_bytes;
        let at = runs.block(0).ok_or_else(|| doubt("the journal is empty"))?;
        let bytes = read(src, at * block_bytes, SUPERBLOCK_LEN as u64)?;
        // Version 1 has no room for features; no kernel of the last twenty years makes it.
        if be32(&bytes, 0) != MAGIC || be32(&bytes, 4) != SUPERBLOCK_V2 {
            return Err(doubt("the journal's superblock is not of version 2"));
        }
        let (compat, incompat, ro_compat) =
            (be32(&bytes, 0x24), be32(&bytes, 0x28), be32(&bytes, 0x2C));
        if incompat & INCOMPAT_FAST_COMMIT != 0 {
            return Err(doubt("the journal has fast commits"));
        }
        if compat != 0 || incompat & !INCOMPAT_KNOWN != 0 || ro_compat != 0 {
            return Err(doubt(format!(
                "the journal has features that are not known here ({compat:#x}, {incompat:#x}, {ro_compat:#x})"
            )));
        }
        let checksums = match incompat & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3) {
            0 => Checksums::None,
            INCOMPAT_CSUM_V2 => Checksums::V2,
            INCOMPAT_CSUM_V3 => Checksums::V3,
            _ => return Err(doubt("the journal has checksums of two versions")),
        };
        if checksums != Checksums::None {
            let mut copy = bytes.clone();
            copy[SUPERBLOCK_CHECKSUM_AT..SUPERBLOCK_CHECKSUM_AT + 4].fill(0);
            if bytes[0x50] != CHECKSUM_CRC32C
                || crc32c(!0, &copy) != be32(&bytes, SUPERBLOCK_CHECKSUM_AT)
            {
                return Err(doubt("the checksum of the journal's superblock is wrong"));
            }
        }
        if be32(&bytes, 0x20) != 0 {
            return Err(doubt("the journal was aborted for an error"));
        }
        let (end, first, start) = (
            u64::from(be32(&bytes, 0x10)),
            u64::from(be32(&bytes, 0x14)),
            u64::from(be32(&bytes, 0x1C)),
        );
        let sane = u64::from(be32(&bytes, 0x0C)) == block_bytes
            && end <= runs.blocks()
            && (1..end).contains(&first)
            && (start == 0 || (first..end).contains(&start));
        if !sane {
            return Err(doubt("the numbers in the journal's superblock contradict each other"));
        }
        Ok(Self {
            runs,
            block_bytes,
            first,
            end,
            start,
            sequence: be32(&bytes, 0x18),
            wide: incompat & INCOMPAT_64BIT != 0,
            checksums,
            seed: crc32c(!0, &bytes[0x30..0x40]),
        })
    }

    /// Applies all whole transactions, in order.
    fn replay(
        &self,
        src: &mut (impl Read + Seek),
        blocks_in_fs: u64,
    ) -> Result<(Blocks, Blocks), Failure> {
        let mut blocks = Blocks::new();
        let mut tid = self.sequence;
        let mut place = Place { at: self.start, left: self.end - self.first };
        loop {
            let begin = place;
            let mut found = Transaction::default();
            let broken = match self.gather(src, &mut place, tid, blocks_in_fs, &mut found) {
                Ok(true) => None,
                Ok(false) => Some("the log goes on behind its end".into()),
                Err(Failure::Doubt(doubt)) => Some(doubt),
                Err(error) => return Err(error),
            };
            if let Some(broken) = broken {
                // A commit is written when all before it is on the disk: with one, this is damage, and not the log's end.
                if self.goes_on(src, begin, tid)? {
                    return Err(doubt(broken));
                }
                let mut tail = blocks.clone();
                tail.extend(found.written);
                return Ok((blocks, tail));
            }
            blocks.extend(found.written);
            for block in found.revoked {
                blocks.remove(&block);
            }
            tid = tid.wrapping_add(1);
        }
    }

    /// Gathers one transaction and says whether its commit is there.
    fn gather(
        &self,
        src: &mut (impl Read + Seek),
        place: &mut Place,
        tid: u32,
        blocks_in_fs: u64,
        found: &mut Transaction,
    ) -> Result<bool, Failure> {
        while let Some(at) = self.next(place) {
            let bytes = self.read(src, at, self.block_bytes)?;
            if be32(&bytes, 0) != MAGIC || be32(&bytes, 8) != tid {
                return Ok(false);
            }
            match be32(&bytes, 4) {
                DESCRIPTOR => {
                    self.check_tail(&bytes, tid)?;
                    for tag in self.tags(&bytes) {
                        let Some(at) = self.next(place) else { return Ok(false) };
                        if tag.block >= blocks_in_fs {
                            return Err(doubt(
                                "the journal has a block beyond the filesystem's end",
                            ));
                        }
                        if self.checksums != Checksums::None {
                            self.check_block(&self.read(src, at, self.block_bytes)?, &tag, tid)?;
                        }
                        let escaped = tag.flags & FLAG_ESCAPED != 0;
                        found.written.push((tag.block, Copy { at: self.place(at), escaped }));
                    }
                }
                REVOKE => {
                    self.check_tail(&bytes, tid)?;
                    found.revoked.extend(self.revokes(&bytes)?);
                }
                COMMIT => {
                    self.check_commit(&bytes, tid)?;
                    return Ok(true);
                }
                _ => return Err(doubt("the journal has a block of an unknown kind")),
            }
            if found.revoked.len() > MAX_REVOKED {
                return Err(doubt("the journal has too large a transaction"));
            }
        }
        Ok(false)
    }

    /// Whether the rest of the log has the commit of a transaction, or anything of a later one.
    fn goes_on(
        &self,
        src: &mut (impl Read + Seek),
        mut place: Place,
        tid: u32,
    ) -> Result<bool, Failure> {
        while let Some(at) = self.next(&mut place) {
            let header = self.read(src, at, HEADER_LEN as u64)?;
            let ahead = be32(&header, 8).wrapping_sub(tid);
            let later = if ahead == 0 { be32(&header, 4) == COMMIT } else { ahead < 1 << 31 };
            if be32(&header, 0) == MAGIC && later {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The block of the log at a place, which then is the one behind it; the log goes round, but not twice.
    fn next(&self, place: &mut Place) -> Option<u64> {
        place.left = place.left.checked_sub(1)?;
        let at = place.at;
        place.at = if at + 1 == self.end { self.first } else { at + 1 };
        Some(at)
    }

    /// Where a block of the log is in the filesystem.
    fn place(&self, number: u64) -> u64 {
        self.runs.block(number).expect("the log lies in the journal")
    }

    fn read(
        &self,
        src: &mut (impl Read + Seek),
        number: u64,
        len: u64,
    ) -> Result<Vec<u8>, Failure> {
        Ok(read(src, self.place(number) * self.block_bytes, len)?)
    }

    /// What a descriptor says of the blocks behind it.
    fn tags(&self, bytes: &[u8]) -> Vec<Tag> {
        // `journal_tag_bytes()`
        let high = if self.wide { 4 } else { 0 };
        let len = match self.checksums {
            Checksums::V3 => 16,
            Checksums::V2 => 10 + high,
            Checksums::None => 8 + high,
        };
        let end = bytes.len() - self.tail_len();
        let mut tags = Vec::new();
        let mut at = HEADER_LEN;
        while at + len <= end {
            let tag = &bytes[at..at + len];
            let low = u64::from(be32(tag, 0));
            let (flags, checksum) = match self.checksums {
                Checksums::V3 => (be32(tag, 4), be32(tag, 12)),
                _ => (u32::from(be16(tag, 6)), u32::from(be16(tag, 4))),
            };
            let high = if self.wide { u64::from(be32(tag, 8)) << 32 } else { 0 };
            tags.push(Tag { block: low | high, flags, checksum });
            at += len;
            if flags & FLAG_SAME_UUID == 0 {
                at += UUID_LEN;
            }
            if flags & FLAG_LAST != 0 {
                break;
            }
        }
        // A full descriptor need not mark its last tag.
        tags
    }

    fn revokes(&self, bytes: &[u8]) -> Result<Vec<u64>, Failure> {
        let len = if self.wide { 8 } else { 4 };
        let used = usize::try_from(be32(bytes, HEADER_LEN)).unwrap_or(usize::MAX);
        if !(HEADER_LEN + 4..=bytes.len() - self.tail_len()).contains(&used) {
            return Err(doubt("a revoke record in the journal is broken"));
        }
        let records = bytes[HEADER_LEN + 4..used].chunks_exact(len);
        Ok(records.map(|r| if self.wide { be64(r, 0) } else { be32(r, 0).into() }).collect())
    }

    fn tail_len(&self) -> usize {
        if self.checksums == Checksums::None { 0 } else { TAIL_LEN }
    }

    fn check_tail(&self, bytes: &[u8], tid: u32) -> Result<(), Failure> {
        self.check_sum_at(bytes, bytes.len() - TAIL_LEN, tid)
    }

    fn check_commit(&self, bytes: &[u8], tid: u32) -> Result<(), Failure> {
        self.check_sum_at(bytes, COMMIT_CHECKSUM_AT, tid)
    }

    /// The checksum of a block of the journal's own, which leaves itself out as zeros.
    fn check_sum_at(&self, bytes: &[u8], at: usize, tid: u32) -> Result<(), Failure> {
        if self.checksums == Checksums::None {
            return Ok(());
        }
        let sum = crc32c(self.seed, &bytes[..at]);
        let sum = crc32c(crc32c(sum, &[0; 4]), &bytes[at + 4..]);
        if sum == be32(bytes, at) { Ok(()) } else { Err(wrong_sum(tid)) }
    }

    fn check_block(&self, data: &[u8], tag: &Tag, tid: u32) -> Result<(), Failure> {
        let sum = crc32c(crc32c(self.seed, &tid.to_be_bytes()), data);
        let stored = if self.checksums == Checksums::V2 { sum & 0xFFFF } else { sum };
        if stored == tag.checksum { Ok(()) } else { Err(wrong_sum(tid)) }
    }
}

struct Tag {
    block: u64,
    flags: u32,
    checksum: u32,
}

fn wrong_sum(tid: u32) -> Failure {
    doubt(format!("a checksum in transaction {tid} of the journal is wrong"))
}
