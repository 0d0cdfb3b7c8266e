//! The master file table: reading its records, and values that they keep in clusters.

use std::io::{Read, Seek};

use super::boot::Boot;
use super::record::{ATTRIBUTE_LIST, BITMAP, DATA, Place, Record, referenced};
use super::runs::{Run, Runs};
use crate::extents::MAX_PIECES;
use crate::fs::bytes::{bits, le16, le32, le64, read};
use crate::fs::failure::{Failure, doubt};

const MIRRORED_RECORDS: u64 = 4;
/// Records are read in pieces of this size.
const READ_LEN: u64 = 1 << 20;
/// Windows allows no longer list of attributes.
const MOST_LIST_LEN: u64 = 256 << 10;

/// A value in clusters, or in a record.
#[derive(Debug, Clone, Default)]
pub struct Stream {
    cluster_bytes: u64,
    /// Without gaps from the first cluster on.
    runs: Vec<Run>,
    /// The value if it is short.
    here: Option<Vec<u8>>,
    /// How many bytes mean something; behind them all is zero.
    pub initialized_bytes: u64,
}

impl Stream {
    fn new(boot: &Boot) -> Self {
        Self { cluster_bytes: boot.cluster_bytes, ..Self::default() }
    }

    /// Bytes that lie within its clusters; a hole is in doubt, since nothing that is read here has any.
    pub fn read(
        &self,
        src: &mut (impl Read + Seek),
        offset: u64,
        len: u64,
    ) -> Result<Vec<u8>, Failure> {
        let outside = || doubt("a list of clusters is shorter than what it holds");
        if let Some(here) = &self.here {
            let range = usize::try_from(offset).ok().zip(usize::try_from(offset + len).ok());
            let bytes = range.and_then(|(from, to)| here.get(from..to));
            return bytes.map(<[u8]>::to_vec).ok_or_else(outside);
        }
        let mut bytes = Vec::new();
        let (mut start, end) = (0, offset + len);
        for run in &self.runs {
            let run_len = run.count.saturating_mul(self.cluster_bytes);
            let from = offset.max(start);
            let to = end.min(start.saturating_add(run_len));
            if from < to {
                let cluster = run.cluster.ok_or_else(outside)?;
                let at = cluster * self.cluster_bytes + (from - start);
                bytes.append(&mut read(src, at, to - from)?);
            }
            start = start.saturating_add(run_len);
        }
        if bytes.len() as u64 == len { Ok(bytes) } else { Err(outside()) }
    }

    /// Adds runs that lie in the volume.
    fn extend(&mut self, boot: &Boot, runs: &[Run]) -> Result<(), Failure> {
        let beyond = |run: &&Run| {
            let end = run.cluster.unwrap_or(0).checked_add(run.count);
            end.is_none_or(|end| run.cluster.is_some() && end > boot.clusters)
        };
        if let Some(run) = runs.iter().find(beyond) {
            return Err(doubt(format!("a list of clusters leads to {run:?}, beyond the last")));
        }
        if self.runs.len() + runs.len() > MAX_PIECES {
            return Err(doubt(format!("a list of clusters has more than {MAX_PIECES} pieces")));
        }
        self.runs.extend_from_slice(runs);
        Ok(())
    }

    fn holds_its_bytes(&self) -> bool {
        self.clusters().saturating_mul(self.cluster_bytes) >= self.initialized_bytes
    }

    fn clusters(&self) -> u64 {
        self.runs.iter().map(|run| run.count).fold(0, u64::saturating_add)
    }
}

/// Where a part of an attribute is: its first cluster in the attribute, and the record that has it.
struct Part {
    first: u64,
    record: u64,
}

fn apart(base: &Record) -> Failure {
    doubt(format!("the parts of file record {} do not fit together", base.number))
}

/// The master file table.
#[derive(Debug)]
pub struct Table {
    boot: Boot,
    records: Stream,
    /// A bit for each record that is a file's.
    allocated: Stream,
}

impl Table {
    pub fn open(src: &mut (impl Read + Seek), boot: &Boot) -> Result<Self, Failure> {
        let at = boot.table_cluster * boot.cluster_bytes;
        if at + boot.record_bytes > boot.clusters * boot.cluster_bytes {
            return Err(doubt("the master file table begins behind the last cluster"));
        }
        let bytes = read(src, at, boot.record_bytes)?;
        let first = Record::parse(0, bytes, true)?
            .ok_or_else(|| doubt("the master file table is not in use"))?;
        let (records, allocated) = (Stream::new(boot), Stream::new(boot));
        let mut table = Self { boot: boot.clone(), records, allocated };
        // The record that has a part lies in the parts before it.
        let (_, initialized_bytes) = first.part(DATA, 0)?.ok_or_else(|| apart(&first))?;
        table.records.initialized_bytes = initialized_bytes;
        for part in table.parts(src, &first, DATA)? {
            let (runs, _) = table.follow(src, &first, DATA, &part, table.records.clusters())?;
            table.records.extend(boot, &runs.list)?;
        }
        let start = table.records.runs.first().and_then(|run| run.cluster);
        if start != Some(boot.table_cluster) {
            return Err(doubt("the master file table is not where the boot sector says"));
        }
        if !table.records.holds_its_bytes() {
            return Err(doubt("the master file table has less clusters than records"));
        }
        table.allocated = table.stream_of(src, &first, BITMAP)?;
        if table.allocated.initialized_bytes < table.len().div_ceil(8) {
            return Err(doubt("the master file table's own bitmap is too short"));
        }
        Ok(table)
    }

    pub fn boot(&self) -> &Boot {
        &self.boot
    }

    /// How many records there are.
    fn len(&self) -> u64 {
        self.records.initialized_bytes / self.boot.record_bytes
    }

    /// A record that must be in use.
    pub fn record(&self, src: &mut (impl Read + Seek), number: u64) -> Result<Record, Failure> {
        let missing = || doubt(format!("file record {number} is missing"));
        if number >= self.len() {
            return Err(missing());
        }
        let (at, len) = (number * self.boot.record_bytes, self.boot.record_bytes);
        Record::parse(number, self.records.read(src, at, len)?, true)?.ok_or_else(missing)
    }

    /// Every record in use.
    pub fn walk(
        &self,
        src: &mut (impl Read + Seek),
        mut look: impl FnMut(&Record) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let record = self.boot.record_bytes;
        let per_read = READ_LEN / record;
        let mut first = 0;
        while first < self.len() {
            let count = per_read.min(self.len() - first);
            let bytes = self.records.read(src, first * record, count * record)?;
            let chunks = bytes.chunks_exact(usize::try_from(record).expect("at most 64 KiB"));
            // A piece has a multiple of eight records.
            let allocated = self.allocated.read(src, first / 8, count.div_ceil(8))?;
            for ((number, bytes), allocated) in (first..).zip(chunks).zip(bits(&allocated)) {
                if let Some(record) = Record::parse(number, bytes.to_vec(), allocated)? {
                    look(&record)?;
                }
            }
            first += count;
        }
        Ok(())
    }

    /// The first records must be what their mirror says.
    pub fn compare_mirror(&self, src: &mut (impl Read + Seek)) -> Result<(), Failure> {
        let record = self.boot.record_bytes;
        let at = self.boot.mirror_cluster * self.boot.cluster_bytes;
        if at + MIRRORED_RECORDS * record > self.boot.clusters * self.boot.cluster_bytes {
            return Err(doubt("$MFTMirr lies behind the last cluster"));
        }
        for number in 0..MIRRORED_RECORDS {
            let mirrored = read(src, at + number * record, record)?;
            let mirrored = Record::parse(number, mirrored, true)?;
            let own = self.record(src, number)?;
            if mirrored.is_none_or(|mirrored| mirrored.used() != own.used()) {
                return Err(doubt(format!("file record {number} and its copy in $MFTMirr differ")));
            }
        }
        Ok(())
    }

    /// The unnamed value of a kind of a file.
    pub fn stream(
        &self,
        src: &mut (impl Read + Seek),
        number: u64,
        kind: u32,
    ) -> Result<Stream, Failure> {
        let record = self.record(src, number)?;
        self.stream_of(src, &record, kind)
    }

    fn stream_of(
        &self,
        src: &mut (impl Read + Seek),
        base: &Record,
        kind: u32,
    ) -> Result<Stream, Failure> {
        let mut stream = Stream::new(&self.boot);
        if let Some(here) = base.value(kind)? {
            stream.initialized_bytes = here.len() as u64;
            stream.here = Some(here);
            return Ok(stream);
        }
        for part in self.parts(src, base, kind)? {
            let (runs, initialized_bytes) =
                self.follow(src, base, kind, &part, stream.clusters())?;
            stream.extend(&self.boot, &runs.list)?;
            if part.first == 0 {
                stream.initialized_bytes = initialized_bytes;
            }
        }
        if !stream.holds_its_bytes() {
            return Err(apart(base));
        }
        Ok(stream)
    }

    /// The runs of a part, which must begin with the attribute's cluster `next`, and the length that it tells.
    fn follow(
        &self,
        src: &mut (impl Read + Seek),
        base: &Record,
        kind: u32,
        part: &Part,
        next: u64,
    ) -> Result<(Runs, u64), Failure> {
        let found = if part.record == base.number {
            base.part(kind, next)?
        } else {
            let record = self.record(src, part.record)?;
            record.part(kind, next)?.filter(|_| record.base() == base.number)
        };
        found.filter(|_| part.first == next).ok_or_else(|| apart(base))
    }

    /// The parts of an attribute in clusters: what a list of attributes names, or the whole of it in its base record.
    fn parts(
        &self,
        src: &mut (impl Read + Seek),
        base: &Record,
        kind: u32,
    ) -> Result<Vec<Part>, Failure> {
        let attributes = base.attributes()?;
        let Some(list) = attributes.iter().find(|attribute| attribute.kind == ATTRIBUTE_LIST)
        else {
            return Ok(vec![Part { first: 0, record: base.number }]);
        };
        let bytes = match &list.place {
            Place::Here(bytes) => bytes.to_vec(),
            Place::Runs { runs, initialized_bytes } => {
                let mut stream = Stream::new(&self.boot);
                stream.extend(&self.boot, &runs.list)?;
                stream.read(src, 0, (*initialized_bytes).min(MOST_LIST_LEN))?
            }
        };
        let mut parts = Vec::new();
        let mut rest = &bytes[..];
        while rest.len() >= 26 {
            let len = usize::from(le16(rest, 4));
            if len < 26 || len > rest.len() {
                return Err(doubt(format!(
                    "the list of attributes of file record {} is damaged",
                    base.number
                )));
            }
            if le32(rest, 0) == kind && rest[6] == 0 {
                parts.push(Part { first: le64(rest, 8), record: referenced(le64(rest, 16)) });
            }
            rest = &rest[len..];
        }
        Ok(parts)
    }
}
