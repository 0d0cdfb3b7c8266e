//! A sparse VMDK file: grains found through a directory of tables, plain or each compressed by zlib.

use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use image_format::ReadAt;

use super::FORMAT;
use crate::foreign::error::{ForeignError, Result};
use crate::foreign::source::Source;
use crate::foreign::walk::{RandomDisk, Stretch};
use crate::fs::bytes::{le16, le32, le64};

const SECTOR: u64 = 512;
const HEADER_LEN: usize = 512;
/// The directory's place in the header of a stream, whose true header comes last.
const AT_END: u64 = u64::MAX;
/// The footer lies before the marker of the end.
const FOOTER_FROM_END: u64 = 1024;
/// Grains have 4 KiB to 64 KiB in practice.
const MAX_GRAIN_LEN: u64 = 1 << 20;
/// The specification's only value is 512.
const MAX_TABLE_ENTRIES: u32 = 4096;
const MAX_DIRECTORY_LEN: u64 = 32 << 20;
const MAX_DESCRIPTOR_LEN: u64 = 64 << 10;
/// Tables that are kept.
const MAX_CACHED: usize = 256;

const FLAG_REDUNDANT: u32 = 1 << 1;
const FLAG_ZERO_GRAINS: u32 = 1 << 2;
const FLAG_COMPRESSED: u32 = 1 << 16;
const FLAG_MARKERS: u32 = 1 << 17;
/// With the flag, this entry is a grain of zeros.
const ZERO_GRAIN: u32 = 1;

/// A sparse file.
pub struct Sparse {
    source: Source,
    len: u64,
    grain_len: u64,
    table_entries: u64,
    directory: Vec<u32>,
    compressed: bool,
    zero_grains: bool,
    descriptor: (u64, u64),
    cache: Mutex<Vec<(usize, Arc<Vec<u8>>)>>,
}

impl std::fmt::Debug for Sparse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sparse").field("len", &self.len).finish_non_exhaustive()
    }
}

fn damaged(fault: impl Into<String>) -> ForeignError {
    ForeignError::damaged(FORMAT, fault)
}

impl Sparse {
    /// Reads header and directory.
    pub fn open(source: Source) -> Result<Self> {
        let mut header = read_header(&source, 0)?;
        if le64(&header, 56) == AT_END {
            let place = source
                .len()
                .checked_sub(FOOTER_FROM_END)
                .ok_or_else(|| damaged("it is cut off"))?;
            header = read_header(&source, place)
                .map_err(|_| damaged("its footer is not at its end: it is cut off"))?;
        }
        let (version, flags) = (le32(&header, 4), le32(&header, 8));
        if !(1..=3).contains(&version) {
            let reason = format!("version {version} is not known; 1 to 3 are");
            return Err(ForeignError::refused(FORMAT, reason));
        }
        if header[73..77] != *b"\n \r\n" && flags & 1 != 0 {
            return Err(damaged("its line ends were converted: it was copied as text"));
        }
        if header[72] != 0 {
            let reason = "it was not closed cleanly: open it once with the program that made it";
            return Err(ForeignError::refused(FORMAT, reason));
        }
        let known = 1 | FLAG_REDUNDANT | FLAG_ZERO_GRAINS | FLAG_COMPRESSED | FLAG_MARKERS;
        if flags & !known != 0 {
            let reason = format!("it has features that are not known: {:#x}", flags & !known);
            return Err(ForeignError::refused(FORMAT, reason));
        }
        let compressed = flags & FLAG_COMPRESSED != 0;
        if compressed && le16(&header, 77) != 1 {
            let reason = format!("its compression {} is not known", le16(&header, 77));
            return Err(ForeignError::refused(FORMAT, reason));
        }
        let bytes = |sectors: u64, what: &str| {
            sectors.checked_mul(SECTOR).ok_or_else(|| damaged(format!("its {what} is too large")))
        };
        let grain_len = bytes(le64(&header, 20), "grain")?;
        let table_entries = le32(&header, 44);
        if !grain_len.is_power_of_two() || !(4096..=MAX_GRAIN_LEN).contains(&grain_len) {
            return Err(damaged(format!("grains of {grain_len} bytes cannot be")));
        }
        if !table_entries.is_power_of_two() || table_entries > MAX_TABLE_ENTRIES {
            return Err(damaged(format!("tables of {table_entries} entries cannot be")));
        }
        let mut sparse = Self {
            len: bytes(le64(&header, 12), "capacity")?,
            grain_len,
            table_entries: table_entries.into(),
            directory: Vec::new(),
            compressed,
            zero_grains: flags & FLAG_ZERO_GRAINS != 0,
            descriptor: (
                bytes(le64(&header, 28), "descriptor")?,
                bytes(le64(&header, 36), "descriptor")?,
            ),
            source,
            cache: Mutex::default(),
        };
        sparse.read_directory(bytes(le64(&header, 56), "directory")?)?;
        Ok(sparse)
    }

    fn read_directory(&mut self, offset: u64) -> Result<()> {
        let entries = self.len.div_ceil(self.grain_len * self.table_entries);
        if entries * 4 > MAX_DIRECTORY_LEN {
            let reason = format!("its directory would take {} bytes", entries * 4);
            return Err(ForeignError::refused(FORMAT, reason));
        }
        let bytes = self.bytes(offset, entries * 4, "directory")?;
        self.directory = bytes.chunks_exact(4).map(|entry| le32(entry, 0)).collect();
        Ok(())
    }

    /// The text of the descriptor, if there is one.
    pub fn descriptor(&self) -> Result<Option<Vec<u8>>> {
        let (offset, len) = self.descriptor;
        if offset == 0 || len == 0 {
            return Ok(None);
        }
        if len > MAX_DESCRIPTOR_LEN {
            return Err(damaged("its descriptor is longer than a page of text"));
        }
        self.bytes(offset, len, "descriptor").map(Some)
    }

    /// Reads bytes whose number was checked, if they lie in the file.
    fn bytes(&self, offset: u64, len: u64, what: &str) -> Result<Vec<u8>> {
        if offset.checked_add(len).is_none_or(|end| end > self.source.len()) {
            return Err(damaged(format!(
                "its {what} at byte {offset} goes beyond the end of the file at byte {}: it is truncated",
                self.source.len()
            )));
        }
        let mut bytes = vec![0; usize::try_from(len).expect("it was checked")];
        self.source.read_exact_at(&mut bytes, offset).map_err(ForeignError::read(FORMAT))?;
        Ok(bytes)
    }

    fn table(&self, index: usize) -> Result<Option<Arc<Vec<u8>>>> {
        let sector = self.directory[index];
        if sector == 0 || self.zero_grains && sector == ZERO_GRAIN {
            return Ok(None);
        }
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = cache.iter().position(|(cached, _)| *cached == index) {
            let hit = cache.remove(place);
            cache.push(hit);
            return Ok(cache.last().map(|(_, table)| Arc::clone(table)));
        }
        let table = self.bytes(u64::from(sector) * SECTOR, self.table_entries * 4, "table")?;
        let table = Arc::new(table);
        if cache.len() >= MAX_CACHED {
            cache.remove(0);
        }
        cache.push((index, Arc::clone(&table)));
        Ok(Some(table))
    }

    /// Where the grain is that holds this byte, and for how many bytes it, or its absence, goes on.
    fn grain(&self, offset: u64) -> Result<(Option<u64>, u64)> {
        let (number, within) = (offset / self.grain_len, offset % self.grain_len);
        let (index, slot) = (number / self.table_entries, number % self.table_entries);
        let index = usize::try_from(index).expect("the directory is in memory");
        let Some(table) = self.table(index)? else {
            return Ok((None, (self.table_entries - slot) * self.grain_len - within));
        };
        let slot = usize::try_from(slot).expect("a table has 4096 entries at most");
        let sector = le32(&table, slot * 4);
        let none = sector == 0 || self.zero_grains && sector == ZERO_GRAIN;
        Ok(((!none).then_some(u64::from(sector) * SECTOR), self.grain_len - within))
    }

    /// How much of a grain the disk has.
    fn grain_on_disk(&self, number: u64) -> u64 {
        (self.len - number * self.grain_len).min(self.grain_len)
    }

    fn decompress(&self, place: u64, number: u64) -> Result<Vec<u8>> {
        let marker = self.bytes(place, 12, "grain")?;
        let (lba, len) = (le64(&marker, 0), u64::from(le32(&marker, 8)));
        if lba != number * (self.grain_len / SECTOR) || len > 2 * self.grain_len + 1024 {
            let fault = format!("the grain at byte {place} is not the one that its table says");
            return Err(damaged(fault));
        }
        let packed = self.bytes(place + 12, len, "grain")?;
        let mut grain = vec![0; usize::try_from(self.grain_len).expect("at most a MiB")];
        let needed = usize::try_from(self.grain_on_disk(number)).expect("at most a MiB");
        let mut decoder = flate2::bufread::ZlibDecoder::new(&packed[..]);
        // To the end of its stream, where its checksum is; the last grain may be short.
        let mut end = [0];
        let read = super::super::walk::fill(&mut decoder, &mut grain)
            .and_then(|filled| Ok((filled, decoder.read(&mut end)?)));
        match read {
            Ok((filled, 0)) if filled >= needed => Ok(grain),
            Ok(_) => Err(damaged(format!("grain {number} has another length than a grain"))),
            Err(error) => Err(damaged(format!("grain {number} does not decompress: {error}"))),
        }
    }
}

fn read_header(source: &Source, place: u64) -> Result<[u8; HEADER_LEN]> {
    let mut header = [0; HEADER_LEN];
    source.read_exact_at(&mut header, place).map_err(ForeignError::read(FORMAT))?;
    if !super::is_sparse(&header) {
        return Err(damaged("its header is not where it must be"));
    }
    Ok(header)
}

impl RandomDisk for Sparse {
    fn len(&self) -> u64 {
        self.len
    }

    fn stretch(&self, offset: u64) -> Result<(Stretch, u64)> {
        let (place, len) = self.grain(offset)?;
        let kind = if place.is_none() { Stretch::Zero } else { Stretch::Data };
        Ok((kind, len.min(self.len - offset)))
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let (place, len) = self.grain(at)?;
            let len = usize::try_from(len).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            let within = at % self.grain_len;
            match place {
                None => now.fill(0),
                Some(place) if self.compressed => {
                    let grain = self.decompress(place, at / self.grain_len)?;
                    let within = usize::try_from(within).expect("at most a MiB");
                    now.copy_from_slice(&grain[within..within + len]);
                }
                Some(place) => {
                    self.source
                        .read_exact_at(now, place + within)
                        .map_err(ForeignError::read(FORMAT))?;
                }
            }
            at += len as u64;
            rest = later;
        }
        Ok(())
    }
}
