//! What of a disk is remembered while it goes by, so that it can be told afterwards what is on it.
//!
//! A stream is read from start to end and has no way back. Both ends of the disk and of its partitions are kept, and the tables of
//! logical partitions, which are followed as they come. The table is read here only to know what to keep, without trust in
//! it; what counts is read again with [`crate::table`]. Memory is bounded by the number of partitions that are looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use super::spans::SPAN_LEN;
use crate::fs::bytes::{le32, le64};
use crate::seek;
use crate::table::{MBR_LEN, is_extended};

/// Kept of a partition's start: signatures lie there.
const HEAD_LEN: u64 = 128 << 10;
/// Kept of a partition's end: superblocks of RAIDs and pools.
const TAIL_LEN: u64 = 128 << 10;
/// Partitions beyond these are not looked at.
const MAX_PARTITIONS: usize = 64;
/// Tables of logical partitions beyond these are not followed.
const MAX_LOGICAL_TABLES: usize = 64;
/// Whole spans that are kept because tables of logical partitions lie in them.
const MAX_TABLE_SPANS: usize = 4;

/// Keeps what passes by.
#[derive(Debug, Default)]
pub struct Keeper {
    wanted: Vec<Range<u64>>,
    /// Places of tables of logical partitions, and the first of them.
    tables: BTreeSet<u64>,
    extended: u64,
    seen_tables: usize,
    pieces: BTreeMap<u64, Vec<u8>>,
    /// Whole spans: the first, the last two, those with tables.
    spans: BTreeMap<u64, Vec<u8>>,
    last: Vec<u64>,
    table_spans: usize,
    /// The sector size of a GPT.
    pub sector_bytes: Option<u32>,
}

/// What was kept of a disk.
#[derive(Debug, Default)]
pub struct Kept {
    pieces: BTreeMap<u64, Vec<u8>>,
    spans: BTreeMap<u64, Vec<u8>>,
}

impl Keeper {
    /// Looks at a span that is not all zero. Spans come in order.
    pub fn see(&mut self, offset: u64, bytes: &[u8]) {
        let range = offset..offset + bytes.len() as u64;
        if offset == 0 {
            self.read_head(bytes);
        }
        let mut has_table = false;
        while let Some(at) = self.tables.range(range.clone()).next().copied() {
            self.tables.remove(&at);
            has_table = true;
            let start = usize::try_from(at - offset).expect("within the span");
            if let Some(sector) = bytes.get(start..start + MBR_LEN) {
                self.read_logical(at, sector);
            }
        }
        for wanted in &self.wanted {
            let (from, to) = (wanted.start.max(range.start), wanted.end.min(range.end));
            if from < to {
                let index = |at: u64| usize::try_from(at - offset).expect("within the span");
                self.pieces.insert(from, bytes[index(from)..index(to)].to_vec());
            }
        }
        self.wanted.retain(|wanted| wanted.end > range.end);
        self.keep_span(offset, bytes, has_table);
    }

    fn keep_span(&mut self, offset: u64, bytes: &[u8], has_table: bool) {
        let for_good = offset == 0 || has_table && self.table_spans < MAX_TABLE_SPANS;
        if for_good {
            self.table_spans += usize::from(offset != 0);
        } else {
            self.last.push(offset);
        }
        // The buffer of the span that is not among the last two any more is used again.
        let mut buffer = if self.last.len() > 2 {
            self.spans.remove(&self.last.remove(0)).unwrap_or_default()
        } else {
            Vec::with_capacity(SPAN_LEN)
        };
        buffer.clear();
        buffer.extend_from_slice(bytes);
        self.spans.insert(offset, buffer);
    }

    /// Ends the walk.
    pub fn finish(self) -> Kept {
        Kept { pieces: self.pieces, spans: self.spans }
    }

    fn want(&mut self, start: u64, end: u64) {
        if self.wanted.len() < 2 * MAX_PARTITIONS && start < end {
            self.wanted.push(start..end.min(start.saturating_add(HEAD_LEN)));
            self.wanted.push(start.max(end.saturating_sub(TAIL_LEN))..end);
        }
    }

    fn read_head(&mut self, head: &[u8]) {
        for sector in [512_usize, 4096] {
            let header = head.get(sector..sector + 92);
            if let Some(header) = header.filter(|header| header.starts_with(b"EFI PART")) {
                self.sector_bytes = u32::try_from(sector).ok();
                self.read_gpt(head, header, sector as u64);
                return;
            }
        }
        let Some(mbr) = head.get(..MBR_LEN).filter(|mbr| mbr.ends_with(&[0x55, 0xAA])) else {
            return;
        };
        for (kind, start, len) in entries(mbr) {
            if is_extended(kind) {
                self.extended = start;
                self.tables.insert(start);
            } else if kind != 0 {
                self.want(start, start.saturating_add(len));
            }
        }
    }

    fn read_gpt(&mut self, head: &[u8], header: &[u8], sector: u64) {
        let entry_len = usize::try_from(le32(header, 84)).unwrap_or(0);
        let first = le64(header, 72).checked_mul(sector).and_then(|at| usize::try_from(at).ok());
        let entries = first.and_then(|first| head.get(first..));
        let (Some(entries), 128..=4096) = (entries, entry_len) else { return };
        let count = usize::try_from(le32(header, 80)).unwrap_or(0);
        for entry in entries.chunks_exact(entry_len).take(count) {
            let (first, last) = (le64(entry, 32), le64(entry, 40));
            if entry[..16] != [0; 16]
                && let Some(start) = first.checked_mul(sector)
                && let Some(end) = last.checked_add(1).and_then(|end| end.checked_mul(sector))
            {
                self.want(start, end);
            }
        }
    }

    fn read_logical(&mut self, at: u64, sector: &[u8]) {
        self.seen_tables += 1;
        if !sector.ends_with(&[0x55, 0xAA]) || self.seen_tables > MAX_LOGICAL_TABLES {
            return;
        }
        for (kind, start, len) in entries(sector) {
            if is_extended(kind) {
                // One that lies before this one has gone by, and would make a ring.
                let next = self.extended.saturating_add(start);
                if next > at {
                    self.tables.insert(next);
                }
            } else if kind != 0 {
                let start = at.saturating_add(start);
                self.want(start, start.saturating_add(len));
            }
        }
    }
}

/// Type, start and length in bytes of an MBR's four entries.
fn entries(mbr: &[u8]) -> impl Iterator<Item = (u8, u64, u64)> + '_ {
    mbr[446..510].chunks_exact(16).map(|entry| {
        let sectors = |at: usize| u64::from(le32(entry, at)) * MBR_LEN as u64;
        (entry[4], sectors(8), sectors(12))
    })
}

impl Kept {
    /// The whole span that starts here, if it was kept.
    pub fn span(&self, offset: u64) -> Option<&[u8]> {
        self.spans.get(&offset).map(Vec::as_slice)
    }

    /// What was kept as a disk; everything else reads as zeros.
    pub fn disk(&self, len: u64) -> KeptDisk<'_> {
        KeptDisk { kept: self, len, start: 0, at: 0 }
    }
}

/// A cursor over what was kept, or over a part of it.
#[derive(Debug)]
pub struct KeptDisk<'a> {
    kept: &'a Kept,
    len: u64,
    start: u64,
    at: u64,
}

impl KeptDisk<'_> {
    /// A part of the disk.
    pub fn part(&self, start: u64, len: u64) -> Self {
        Self { kept: self.kept, len, start: self.start + start, at: 0 }
    }
}

impl Read for KeptDisk<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.len.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let count = left.min(buf.len());
        let buf = &mut buf[..count];
        buf.fill(0);
        let range = self.start + self.at..self.start + self.at + buf.len() as u64;
        for list in [&self.kept.spans, &self.kept.pieces] {
            // Pieces may overlap, but none is longer than a span.
            let from = range.start.saturating_sub(SPAN_LEN as u64);
            for (start, bytes) in list.range(from..range.end) {
                let (from, to) =
                    (range.start.max(*start), range.end.min(start + bytes.len() as u64));
                if from < to {
                    let index = |at: u64, base: u64| usize::try_from(at - base).expect("in memory");
                    buf[index(from, range.start)..index(to, range.start)]
                        .copy_from_slice(&bytes[index(from, *start)..index(to, *start)]);
                }
            }
        }
        self.at += buf.len() as u64;
        Ok(buf.len())
    }
}

impl Seek for KeptDisk<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = seek::place(self.at, self.len, to)?;
        Ok(self.at)
    }
}
