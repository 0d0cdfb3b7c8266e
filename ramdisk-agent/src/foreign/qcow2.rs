//! QEMU's qcow2, versions 2 and 3, after `docs/interop/qcow2.txt` of QEMU.
//!
//! The active state of the disk is read: internal snapshots are passed over. Clusters may be plain, zero, unallocated, or compressed by
//! zlib or zstd; extended L2 entries are understood. Refused are images that need another file (backing, data), encryption,
//! images that QEMU itself has marked corrupt, and every incompatible feature that is not known. Reference counts are not read:
//! they say nothing about the content. A cluster that lies outside of the file is damage, not zeros.

use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use image_format::ReadAt;

use super::error::{ForeignError, Result};
use super::source::Source;
use super::walk::{RandomDisk, Stretch};
use crate::fs::bytes::{be32, be64};

const FORMAT: &str = "qcow2";
/// QEMU's own limit for the first-level table.
const MAX_L1_LEN: u64 = 32 << 20;
/// Second-level tables that are kept, in bytes.
const MAX_CACHED: usize = 8 << 20;
/// Host offsets are in these bits of an entry.
const OFFSET_MASK: u64 = 0x00FF_FFFF_FFFF_FE00;
const COMPRESSED: u64 = 1 << 62;
const COPIED: u64 = 1 << 63;
const ZERO: u64 = 1;

const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// Whether a file begins as a qcow2 image.
#[must_use]
pub fn is_qcow2(head: &[u8]) -> bool {
    head.starts_with(b"QFI\xfb")
}

/// A qcow2 image.
pub struct Qcow2 {
    source: Source,
    len: u64,
    cluster_bits: u32,
    l1: Vec<u64>,
    extended: bool,
    zstd: bool,
    version: u32,
    cache: Mutex<Vec<(usize, Arc<Vec<u8>>)>>,
}

impl std::fmt::Debug for Qcow2 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qcow2").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Where the bytes at a place of the disk are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Zero,
    /// At this offset of the file.
    Plain(u64),
    /// A compressed cluster: where its bytes begin, and how many there are at most.
    Compressed(u64, u64),
}

impl Qcow2 {
    /// Reads the header and the first-level table.
    pub fn open(source: Source) -> Result<Self> {
        let reading = ForeignError::read(FORMAT);
        let damaged = |fault: String| ForeignError::damaged(FORMAT, fault);
        let refused = |reason: &str| Err(ForeignError::refused(FORMAT, reason));
        let mut head = [0; 112];
        let available = usize::try_from(source.len()).unwrap_or(head.len()).min(head.len());
        source.read_exact_at(&mut head[..available], 0).map_err(&reading)?;
        let version = be32(&head, 4);
        let header_len = match version {
            2 => 72,
            3 => u64::from(be32(&head, 100)),
            _ => {
                let reason = format!("version {version} is not known; 2 and 3 are");
                return Err(ForeignError::refused(FORMAT, reason));
            }
        };
        if version == 3 && header_len < 104 || source.len() < header_len.max(72) {
            return Err(damaged("its header is cut off".into()));
        }
        let (incompatible, header_len) = match version {
            2 => (0, 72),
            _ => (be64(&head, 72), header_len),
        };
        if be64(&head, 8) != 0 {
            return refused("it needs a backing file: flatten it with `qemu-img convert`");
        }
        if be32(&head, 32) != 0 {
            return refused("it is encrypted: decrypt it with `qemu-img convert`");
        }
        if incompatible & DATA_FILE != 0 {
            return refused("its data are in another file: join them with `qemu-img convert`");
        }
        if incompatible & CORRUPT != 0 {
            return refused("QEMU has marked it as corrupt: try `qemu-img check -r all`");
        }
        let known = DIRTY | COMPRESSION_TYPE | EXTENDED_L2;
        if incompatible & !known != 0 {
            let bits = incompatible & !known;
            let reason = format!("it has incompatible features that are not known: {bits:#x}");
            return Err(ForeignError::refused(FORMAT, reason));
        }
        let compression = if header_len > 104 { head[104] } else { 0 };
        let zstd = match (compression, incompatible & COMPRESSION_TYPE != 0) {
            (0, _) => false,
            (1, true) => true,
            (kind, _) => {
                let reason = format!("its compression type {kind} is not known");
                return Err(ForeignError::refused(FORMAT, reason));
            }
        };
        let cluster_bits = be32(&head, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(damaged(format!("clusters of 2^{cluster_bits} bytes cannot be")));
        }
        let extended = incompatible & EXTENDED_L2 != 0;
        if extended && cluster_bits < 14 {
            return Err(damaged("its clusters are too small for extended L2 entries".into()));
        }
        let mut image = Self {
            len: be64(&head, 24),
            source,
            cluster_bits,
            l1: Vec::new(),
            extended,
            zstd,
            version,
            cache: Mutex::default(),
        };
        image.read_l1(be64(&head, 40), u64::from(be32(&head, 36)))?;
        Ok(image)
    }

    fn read_l1(&mut self, offset: u64, entries: u64) -> Result<()> {
        let needed = self.len.div_ceil(self.l2_entries() << self.cluster_bits);
        if entries < needed {
            let fault = format!("its first-level table has {entries} entries of {needed}");
            return Err(ForeignError::damaged(FORMAT, fault));
        }
        if needed * 8 > MAX_L1_LEN {
            let reason = format!("its first-level table would take {} bytes", needed * 8);
            return Err(ForeignError::refused(FORMAT, reason));
        }
        self.check_inside(offset, needed * 8, "first-level table")?;
        let mut bytes = vec![0; usize::try_from(needed * 8).expect("at most 32 MiB")];
        self.source.read_exact_at(&mut bytes, offset).map_err(ForeignError::read(FORMAT))?;
        self.l1 = bytes.chunks_exact(8).map(|entry| be64(entry, 0)).collect();
        Ok(())
    }

    fn cluster_len(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of a second-level table.
    fn l2_entries(&self) -> u64 {
        self.cluster_len() / if self.extended { 16 } else { 8 }
    }

    fn check_inside(&self, offset: u64, len: u64, what: &str) -> Result<()> {
        if offset.checked_add(len).is_some_and(|end| end <= self.source.len()) {
            return Ok(());
        }
        Err(ForeignError::damaged(
            FORMAT,
            format!(
                "its {what} at byte {offset} goes beyond the end of the file at byte {}: it is truncated",
                self.source.len()
            ),
        ))
    }

    /// The second-level table for this entry of the first; `None` if there is none.
    fn l2(&self, index: usize) -> Result<Option<Arc<Vec<u8>>>> {
        let entry = self.l1[index];
        let offset = entry & OFFSET_MASK;
        if offset == 0 {
            return Ok(None);
        }
        if entry & !(OFFSET_MASK | COPIED) != 0 || !offset.is_multiple_of(self.cluster_len()) {
            let fault = format!("entry {index} of its first-level table is {entry:#x}");
            return Err(ForeignError::damaged(FORMAT, fault));
        }
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = cache.iter().position(|(cached, _)| *cached == index) {
            // The one that was used last is last, and goes last.
            let hit = cache.remove(place);
            cache.push(hit);
            return Ok(cache.last().map(|(_, table)| Arc::clone(table)));
        }
        self.check_inside(offset, self.cluster_len(), "second-level table")?;
        let mut table = vec![0; usize::try_from(self.cluster_len()).expect("at most 2 MiB")];
        self.source.read_exact_at(&mut table, offset).map_err(ForeignError::read(FORMAT))?;
        let table = Arc::new(table);
        if cache.len() * table.as_slice().len() >= MAX_CACHED {
            cache.remove(0);
        }
        cache.push((index, Arc::clone(&table)));
        Ok(Some(table))
    }

    /// Where the bytes at `offset` are, and for how many bytes this holds.
    fn place(&self, offset: u64) -> Result<(Place, u64)> {
        let cluster = self.cluster_len();
        let (number, within) = (offset >> self.cluster_bits, offset & (cluster - 1));
        let entries = self.l2_entries();
        let l1_index = usize::try_from(number / entries).expect("the table is in memory");
        let slot = number % entries;
        let Some(table) = self.l2(l1_index)? else {
            // Nothing of what this entry stands for is allocated.
            return Ok((Place::Zero, (entries - slot) * cluster - within));
        };
        let at =
            usize::try_from(slot).expect("within a table") * if self.extended { 16 } else { 8 };
        let entry = be64(&table, at);
        if entry & COMPRESSED != 0 {
            return Ok((self.compressed(entry, number)?, cluster - within));
        }
        let zero_allowed = self.version >= 3 && !self.extended;
        let reserved = !(OFFSET_MASK | COPIED | if zero_allowed { ZERO } else { 0 });
        let host = entry & OFFSET_MASK;
        if entry & reserved != 0 || !host.is_multiple_of(cluster) {
            let fault = format!("the entry of cluster {number} is {entry:#x}");
            return Err(ForeignError::damaged(FORMAT, fault));
        }
        if self.extended {
            return self.subcluster(be64(&table, at + 8), host, number, within);
        }
        if entry & ZERO != 0 || host == 0 {
            return Ok((Place::Zero, cluster - within));
        }
        self.check_data(host, number)?;
        Ok((Place::Plain(host + within), cluster - within))
    }

    /// The last cluster may be cut to what the disk has of it.
    fn check_data(&self, host: u64, number: u64) -> Result<()> {
        let len = (self.len - (number << self.cluster_bits)).min(self.cluster_len());
        self.check_inside(host, len, &format!("cluster {number}"))
    }

    /// An extended entry has two bits for each of 32 parts of a cluster: allocated, and zero.
    fn subcluster(&self, bits: u64, host: u64, number: u64, within: u64) -> Result<(Place, u64)> {
        let part = self.cluster_len() / 32;
        let index = within / part;
        let left = part - within % part;
        let (allocated, zero) = (bits >> index & 1 == 1, bits >> (32 + index) & 1 == 1);
        match (allocated, zero) {
            (true, true) => {
                let fault = format!("part {index} of cluster {number} is both data and zero");
                Err(ForeignError::damaged(FORMAT, fault))
            }
            (true, false) if host == 0 => {
                let fault = format!("part {index} of cluster {number} is nowhere");
                Err(ForeignError::damaged(FORMAT, fault))
            }
            (true, false) => {
                self.check_data(host, number)?;
                Ok((Place::Plain(host + within), left))
            }
            (false, _) => Ok((Place::Zero, left)),
        }
    }

    fn compressed(&self, entry: u64, number: u64) -> Result<Place> {
        let offset_bits = 62 - (self.cluster_bits - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
        // Whole sectors after the one that it begins in; the last one may go beyond the end of the file.
        let len = (sectors + 1) * 512 - offset % 512;
        let left = self.source.len().saturating_sub(offset);
        if entry & COPIED != 0 || left == 0 {
            let fault = format!("compressed cluster {number} at byte {offset} is not in the file");
            return Err(ForeignError::damaged(FORMAT, fault));
        }
        Ok(Place::Compressed(offset, len.min(left)))
    }

    fn decompress(&self, offset: u64, len: u64, number: u64) -> Result<Vec<u8>> {
        let mut packed = vec![0; usize::try_from(len).expect("at most twice a cluster")];
        self.source.read_exact_at(&mut packed, offset).map_err(ForeignError::read(FORMAT))?;
        let mut cluster = vec![0; usize::try_from(self.cluster_len()).expect("at most 2 MiB")];
        let read = if self.zstd {
            zstd::stream::read::Decoder::with_buffer(&packed[..]).and_then(|mut decoder| {
                decoder.window_log_max(self.cluster_bits.max(10))?;
                decoder.single_frame().read_exact(&mut cluster)
            })
        } else {
            flate2::bufread::DeflateDecoder::new(&packed[..]).read_exact(&mut cluster)
        };
        match read {
            Ok(()) => Ok(cluster),
            Err(error) => {
                let fault = format!("cluster {number} does not decompress: {error}");
                Err(ForeignError::damaged(FORMAT, fault))
            }
        }
    }
}

impl RandomDisk for Qcow2 {
    fn len(&self) -> u64 {
        self.len
    }

    fn stretch(&self, offset: u64) -> Result<(Stretch, u64)> {
        let (place, len) = self.place(offset)?;
        let kind = if place == Place::Zero { Stretch::Zero } else { Stretch::Data };
        Ok((kind, len.min(self.len - offset)))
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let (place, len) = self.place(at)?;
            let len = usize::try_from(len).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            match place {
                Place::Zero => now.fill(0),
                Place::Plain(host) => {
                    self.source.read_exact_at(now, host).map_err(ForeignError::read(FORMAT))?;
                }
                Place::Compressed(host, packed_len) => {
                    let number = at >> self.cluster_bits;
                    let cluster = self.decompress(host, packed_len, number)?;
                    let within = usize::try_from(at & (self.cluster_len() - 1)).expect("2 MiB");
                    now.copy_from_slice(&cluster[within..within + len]);
                }
            }
            at += len as u64;
            rest = later;
        }
        Ok(())
    }
}
