//! Directories (sections 6 and 7): sets of entries, their checksums, and what is allocated by them.

use std::io::{Read, Seek};

use super::super::failure::{Failure, doubt};
use super::allocation::{Allocation, Claims, Fat};
use super::boot::Boot;
use super::{Of, READ_LEN, sum16, sum32};
use crate::extents::Extent;
use crate::fs::bytes::{le16, le32, le64, read};

const ENTRY_LEN: usize = 32;
type Entry = [u8; ENTRY_LEN];

/// Bits of an entry's type (section 6.2.1).
const IN_USE: u8 = 0x80;
const SECONDARY: u8 = 0x40;
const BENIGN: u8 = 0x20;
/// Types of primary entries.
const END: u8 = 0;
const BITMAP: u8 = 0x81;
const UP_CASE: u8 = 0x82;
const LABEL: u8 = 0x83;
const FILE: u8 = 0x85;
/// Types of secondary entries.
const STREAM: u8 = 0xC0;
const NAME: u8 = 0xC1;

const ATTRIBUTE_DIRECTORY: u16 = 0x10;
const ALLOCATION_POSSIBLE: u8 = 1;
const NO_FAT_CHAIN: u8 = 2;
const SECOND_BITMAP: u8 = 1;
const NAME_CHARACTERS: u8 = 15;
/// 65536 characters of two bytes (section 7.2).
const MAX_UP_CASE_LEN: u64 = 128 << 10;

/// What only the root directory has.
#[derive(Debug)]
pub struct Root {
    /// First cluster and length of the allocation bitmap.
    pub bitmap: (u32, u64),
    up_case: (u32, u64),
    up_case_sum: u32,
}

impl Root {
    /// Looks for the entries of bitmap and up-case table; the others are left to the walk.
    pub fn read(
        src: &mut (impl Read + Seek),
        boot: &Boot,
        root: &Allocation,
    ) -> Result<Self, Failure> {
        let (mut bitmap, mut table) = (None, None);
        let mut entries = Entries::new(boot, root);
        while let Some(entry) = entries.next(src)? {
            let seen = match entry[0] {
                BITMAP => bitmap.replace(entry),
                UP_CASE => table.replace(entry),
                _ => None,
            };
            if seen.is_some() {
                return Err(doubt("the root directory has two bitmaps or up-case tables"));
            }
        }
        let (Some(bitmap), Some(table)) = (bitmap, table) else {
            return Err(doubt("the root directory lacks the bitmap or the up-case table"));
        };
        let need = u64::from(boot.clusters).div_ceil(8);
        let (first, len) = place(&bitmap);
        if bitmap[1] & SECOND_BITMAP != 0 || len < need {
            return Err(doubt(format!(
                "the allocation bitmap has {len} bytes, {} clusters need {need}",
                boot.clusters
            )));
        }
        Ok(Self { bitmap: (first, len), up_case: place(&table), up_case_sum: le32(&table, 4) })
    }
}

/// Claims everything that is allocated, beginning with the root directory, and checks what it belongs to.
pub fn walk(
    src: &mut (impl Read + Seek),
    boot: &Boot,
    fat: &mut Fat<'_>,
    claims: &mut Claims<'_>,
    root: &Root,
    directory: Allocation,
) -> Result<(), Failure> {
    claims.add(&directory).map_err(|failure| failure.of("the root directory"))?;
    let mut walk = Walk { boot, fat, claims, pending: vec![(boot.root, directory)] };
    walk.up_case_table(src, root).map_err(|failure| failure.of("the up-case table"))?;
    while let Some((first, directory)) = walk.pending.pop() {
        let what = format!("the directory at cluster {first}");
        walk.directory(src, &directory).map_err(|failure| failure.of(&what))?;
    }
    Ok(())
}

struct Walk<'w, 'f, 'c> {
    boot: &'w Boot,
    fat: &'w mut Fat<'f>,
    claims: &'w mut Claims<'c>,
    /// Directories still to be read, each with its first cluster for a name.
    pending: Vec<(u32, Allocation)>,
}

impl Walk<'_, '_, '_> {
    fn up_case_table(&mut self, src: &mut (impl Read + Seek), root: &Root) -> Result<(), Failure> {
        let (first, len) = root.up_case;
        if len > MAX_UP_CASE_LEN {
            return Err(doubt(format!("{len} bytes are too many")));
        }
        let table = self.fat.chain(src, first, len)?;
        self.claims.add(&table)?;
        let mut sum = 0;
        for piece in table.pieces(self.boot, READ_LEN) {
            sum = sum32(sum, &read(src, piece.start, piece.len)?);
        }
        if sum == root.up_case_sum { Ok(()) } else { Err(doubt("its checksum is wrong")) }
    }

    fn directory(
        &mut self,
        src: &mut (impl Read + Seek),
        directory: &Allocation,
    ) -> Result<(), Failure> {
        let mut entries = Entries::new(self.boot, directory);
        let mut set: Vec<Entry> = Vec::new();
        while let Some(entry) = entries.next(src)? {
            let kind = entry[0];
            if set.is_empty() {
                match kind {
                    // These are looked for beforehand and stand alone.
                    BITMAP | UP_CASE | LABEL => continue,
                    // Deleted, or never used.
                    _ if kind & IN_USE == 0 => continue,
                    FILE => {}
                    _ if kind & SECONDARY != 0 => {
                        return Err(doubt("a secondary entry follows no primary one"));
                    }
                    _ if kind & BENIGN == 0 => {
                        return Err(doubt(format!("entries of type {kind:#x} are not known")));
                    }
                    _ => {}
                }
            } else if kind & (IN_USE | SECONDARY) != IN_USE | SECONDARY {
                return Err(doubt("a set of entries is not complete"));
            }
            set.push(entry);
            if set.len() > usize::from(set[0][1]) {
                self.set(src, &set)?;
                set.clear();
            }
        }
        if set.is_empty() { Ok(()) } else { Err(doubt("its last set of entries is not complete")) }
    }

    /// Checks a set of entries and claims its allocations.
    fn set(&mut self, src: &mut (impl Read + Seek), set: &[Entry]) -> Result<(), Failure> {
        // The checksum leaves itself out (section 6.3.3).
        let sum = sum16(sum16(0, &set[0][..2]), &set[0][4..]);
        let sum = set[1..].iter().fold(sum, |sum, entry| sum16(sum, entry));
        if sum != le16(&set[0], 2) {
            return Err(doubt("the checksum of a set of entries is wrong"));
        }
        let is_file = set[0][0] == FILE;
        if is_file {
            check_names(set)?;
        } else {
            self.claim(src, &set[0], set[0][4], false)?;
        }
        let directory = is_file && le16(&set[0], 4) & ATTRIBUTE_DIRECTORY != 0;
        for entry in &set[1..] {
            match entry[0] {
                NAME => {}
                STREAM => {
                    if le64(entry, 8) > le64(entry, 24) {
                        return Err(doubt("a file has more valid data than data"));
                    }
                    self.claim(src, entry, entry[1], directory)?;
                }
                kind if kind & BENIGN != 0 => self.claim(src, entry, entry[1], false)?,
                kind => return Err(doubt(format!("entries of type {kind:#x} are not known"))),
            }
        }
        Ok(())
    }

    /// Claims what an entry with these flags (sections 6.3.4 and 6.4.2) has, if it has anything.
    fn claim(
        &mut self,
        src: &mut (impl Read + Seek),
        entry: &Entry,
        flags: u8,
        directory: bool,
    ) -> Result<(), Failure> {
        if flags & ALLOCATION_POSSIBLE == 0 {
            return Ok(());
        }
        let (first, len) = place(entry);
        if first == 0 && len == 0 {
            return Ok(());
        }
        let mut claim = || {
            let allocation = if flags & NO_FAT_CHAIN != 0 {
                Allocation::contiguous(self.boot, first, len)?
            } else {
                self.fat.chain(src, first, len)?
            };
            self.claims.add(&allocation)?;
            if directory {
                self.pending.push((first, allocation));
            }
            Ok(())
        };
        claim().map_err(|failure: Failure| failure.of(&format!("the file at cluster {first}")))
    }
}

/// Whether a file's set begins with the file's stream and its name (section 7.4).
fn check_names(set: &[Entry]) -> Result<(), Failure> {
    let stream = set.get(1).filter(|entry| entry[0] == STREAM);
    let names = stream.map_or(0, |entry| usize::from(entry[3].div_ceil(NAME_CHARACTERS)));
    let all_names = set.get(2..2 + names).is_some_and(|all| all.iter().all(|e| e[0] == NAME));
    let others = set.iter().skip(2 + names).any(|entry| matches!(entry[0], STREAM | NAME));
    if names == 0 || !all_names || others {
        return Err(doubt("a file has not one stream and one name"));
    }
    Ok(())
}

/// First cluster and length, which stand at the same place in all entries that have them.
fn place(entry: &Entry) -> (u32, u64) {
    (le32(entry, 20), le64(entry, 24))
}

/// The entries of a directory up to its end.
struct Entries<'a> {
    pieces: Box<dyn Iterator<Item = Extent> + 'a>,
    bytes: Vec<u8>,
    at: usize,
}

impl<'a> Entries<'a> {
    fn new(boot: &'a Boot, directory: &'a Allocation) -> Self {
        Self { pieces: Box::new(directory.pieces(boot, READ_LEN)), bytes: Vec::new(), at: 0 }
    }

    fn next(&mut self, src: &mut (impl Read + Seek)) -> Result<Option<Entry>, Failure> {
        if self.at == self.bytes.len() {
            let Some(piece) = self.pieces.next() else { return Ok(None) };
            self.bytes = read(src, piece.start, piece.len)?;
            self.at = 0;
        }
        // A directory whose length is not one of entries ends before the broken one.
        let Some(entry) = self.bytes[self.at..].first_chunk::<ENTRY_LEN>() else { return Ok(None) };
        self.at += ENTRY_LEN;
        Ok((entry[0] != END).then_some(*entry))
    }
}
