//! The file allocation table, read once from end to end and kept as runs of linked clusters.
//!
//! A run is a stretch of clusters each of which is followed by its neighbour, so memory grows with the fragments of the files,
//! not with the volume. Nothing but the run's first cluster may be pointed at: a pointer into the middle would be a second one.

use std::io::{self, Read, Seek};

use super::Doubt;
use super::boot::{Boot, FIRST_CLUSTER};
use crate::fs::bytes::read_at;
use crate::fs::{Clean, FsKind};

/// Read at once: a multiple of two, three and four bytes, so that no entry is cut.
const CHUNK_LEN: usize = 3 << 18;
/// A table in more pieces than this is not followed: 48 MiB of runs.
const MAX_RUNS: usize = 4 << 20;

/// Clusters that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First cluster.
    pub first: u32,
    /// How many there are.
    pub count: u32,
    /// What the last one's entry says.
    pub next: Next,
}

/// What an entry says of its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It is free, or cannot be read.
    Free,
    /// It is the last one.
    End,
    /// The chain goes on there.
    Cluster(u32),
    /// A value that no cluster can have.
    Invalid,
}

/// All of a table.
#[derive(Debug)]
pub struct Table {
    /// Runs of clusters that are in use, in order.
    pub runs: Vec<Run>,
    /// What the second entry says.
    pub clean: Clean,
}

/// Reads the table and compares its copies.
pub fn read(src: &mut (impl Read + Seek), boot: &Boot) -> io::Result<Result<Table, Doubt>> {
    let mut table = Table { runs: Vec::new(), clean: Clean::Clean };
    let entries = Entries::of(boot);
    let total = boot.table_bytes_used();
    let mut cluster = 0_u32;
    let mut at = 0;
    let room = usize::try_from(total).unwrap_or(CHUNK_LEN).min(CHUNK_LEN);
    let mut copies = vec![vec![0_u8; room]; boot.tables.into()];
    while at < total {
        let len = usize::try_from(total - at).unwrap_or(CHUNK_LEN).min(CHUNK_LEN);
        for (number, copy) in (0..).zip(&mut copies) {
            read_at(src, boot.table_offset(number) + at, &mut copy[..len])?;
        }
        let (first, others) = copies.split_first().expect("there is one table at least");
        for i in 0..entries.in_bytes(len) {
            if cluster >= boot.end_cluster() {
                break;
            }
            let value = entries.get(first, i);
            let mut others = others.iter().map(|copy| entries.get(copy, i));
            match cluster {
                0 if value & 0xff != u32::from(boot.media) => {
                    return Ok(Err("the table does not begin with the media byte".into()));
                }
                // Only one copy of the state bits may have been updated.
                1 => table.clean = entries.clean(others.fold(value, |all, other| all & other)),
                _ if others.any(|other| other != value) => {
                    return Ok(Err(format!("the copies of the table differ at entry {cluster}")));
                }
                0 => {}
                _ => table.push(cluster, entries.next(value, boot)),
            }
            cluster += 1;
        }
        if table.runs.len() > MAX_RUNS {
            return Ok(Err(format!("its files lie in more than {MAX_RUNS} pieces")));
        }
        at += len as u64;
    }
    Ok(Ok(table))
}

impl Table {
    fn push(&mut self, cluster: u32, next: Next) {
        if next == Next::Free {
            return;
        }
        match self.runs.last_mut() {
            Some(run) if run.next == Next::Cluster(cluster) && run.first + run.count == cluster => {
                run.count += 1;
                run.next = next;
            }
            _ => self.runs.push(Run { first: cluster, count: 1, next }),
        }
    }

    /// The index of the run that begins with this cluster, or why there is none.
    pub fn run_at(&self, cluster: u32) -> Result<usize, Doubt> {
        match self.runs.binary_search_by_key(&cluster, |run| run.first) {
            Ok(index) => Ok(index),
            Err(0) => Err(format!("cluster {cluster} is in use but marked as free")),
            Err(index) => {
                let before = self.runs[index - 1];
                Err(if cluster - before.first < before.count {
                    format!("cluster {cluster} is in two chains")
                } else {
                    format!("cluster {cluster} is in use but marked as free")
                })
            }
        }
    }
}

/// How entries of this width are written.
struct Entries {
    bits: u32,
    mask: u32,
}

impl Entries {
    fn of(boot: &Boot) -> Self {
        match boot.kind {
            FsKind::Fat12 => Self { bits: 12, mask: 0xfff },
            FsKind::Fat16 => Self { bits: 16, mask: 0xffff },
            // The highest four bits are reserved.
            _ => Self { bits: 32, mask: 0x0fff_ffff },
        }
    }

    fn in_bytes(&self, len: usize) -> usize {
        match self.bits {
            12 => len * 2 / 3,
            16 => len / 2,
            _ => len / 4,
        }
    }

    fn get(&self, bytes: &[u8], i: usize) -> u32 {
        match self.bits {
            12 => {
                let at = i + i / 2;
                let pair = u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
                if i.is_multiple_of(2) { pair & 0xfff } else { pair >> 4 }
            }
            16 => u32::from(u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])),
            _ => {
                let four = [bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]];
                u32::from_le_bytes(four) & self.mask
            }
        }
    }

    fn next(&self, value: u32, boot: &Boot) -> Next {
        match value {
            // A bad cluster holds nothing, and reading it would fail.
            0 => Next::Free,
            _ if value == self.mask - 8 => Next::Free,
            _ if value > self.mask - 8 => Next::End,
            _ if (FIRST_CLUSTER..boot.end_cluster()).contains(&value) => Next::Cluster(value),
            _ => Next::Invalid,
        }
    }

    /// The state bits of the second entry; FAT12 has none.
    fn clean(&self, value: u32) -> Clean {
        let top = (self.mask + 1) >> 1;
        let reason = match self.bits {
            12 => return Clean::Clean,
            _ if value & top == 0 => "it was not unmounted",
            _ if value & (top >> 1) == 0 => "read or write errors were met in it",
            _ => return Clean::Clean,
        };
        Clean::NotClean { reason: reason.into() }
    }
}
