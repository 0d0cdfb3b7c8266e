//! The disk cut into spans: which are holes, and what a worker does with the others.

use agent_api::Part;
use image_format::{
    EncodedFrame, Encoder, ImageWriter, MAX_HOLE_LEN, MAX_RUNS, Run, RunKind, Runs, UNIT_LEN,
    is_zero,
};

use super::base::BaseReader;
use super::source::{Source, span_buffer};
use crate::buffer::AlignedBuf;
use crate::error::Result;
use crate::extents::{Extent, Extents};
use crate::progress::Progress;

/// A piece of the disk that becomes one frame, or part of a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub offset: u64,
    /// The span length; shorter only at the disk's end.
    pub len: u32,
    /// Nothing in it is used.
    pub free: bool,
}

/// Walks a disk of `disk_bytes` in spans.
#[derive(Debug)]
pub struct Spans<'a> {
    used: &'a Extents,
    disk_bytes: u64,
    span_len: u32,
    at: u64,
}

impl<'a> Spans<'a> {
    pub fn new(used: &'a Extents, disk_bytes: u64, span_len: u32) -> Self {
        Self { used, disk_bytes, span_len, at: 0 }
    }

    /// The same from this byte on, where a span begins.
    pub fn from(self, at: u64) -> Self {
        Self { at, ..self }
    }
}

impl Iterator for Spans<'_> {
    type Item = Span;

    fn next(&mut self) -> Option<Span> {
        if self.at >= self.disk_bytes {
            return None;
        }
        let left = self.disk_bytes - self.at;
        let len = u32::try_from(left).unwrap_or(u32::MAX).min(self.span_len);
        let free = self.used.overlapping(self.at, u64::from(len)).next().is_none();
        let span = Span { offset: self.at, len, free };
        self.at += u64::from(len);
        Some(span)
    }
}

/// What a worker makes of a span.
#[derive(Debug)]
pub enum Encoded {
    /// A frame and its stored bytes.
    Data { frame: EncodedFrame, stored: Vec<u8> },
    /// Nothing but free and zero runs.
    Hole { len: u64, runs: Vec<Run> },
}

/// One thread's state.
#[derive(Debug)]
pub struct Worker<'a> {
    source: &'a Source<'a>,
    progress: &'a Progress,
    base: Option<BaseReader<'a>>,
    encoder: Encoder,
    buffer: AlignedBuf,
}

impl<'a> Worker<'a> {
    /// With `base`, only what differs from it is kept.
    pub fn new(
        source: &'a Source<'a>,
        base: Option<BaseReader<'a>>,
        progress: &'a Progress,
        level: i32,
    ) -> Result<Self> {
        let encoder = Encoder::new(level)?;
        Ok(Self { source, progress, base, encoder, buffer: span_buffer() })
    }

    /// Reads, classifies, hashes and compresses a span. `stored` is a recycled buffer.
    pub fn encode(&mut self, span: Span, stored: Vec<u8>) -> Result<Encoded> {
        let len = u64::from(span.len);
        if span.free {
            return Ok(Encoded::Hole {
                len,
                runs: vec![Run { kind: RunKind::Free, units: units_of(len) }],
            });
        }
        let (bytes, used) = self.source.read(span, &mut self.buffer)?;
        let base = self.base.as_mut();
        self.progress.meter().time(Part::Compress, len, || {
            encode_bytes(&mut self.encoder, bytes, span.offset, &used, base, stored)
        })
    }
}

/// What an image would hold of a span: its content, and its runs before any are merged. `buffer` has room for a span.
pub fn content<'b>(
    source: &Source<'_>,
    span: Span,
    buffer: &'b mut AlignedBuf,
) -> Result<(&'b [u8], Vec<Run>)> {
    let (bytes, used) = source.read(span, buffer)?;
    let runs = classify(bytes, span.offset, &used);
    Ok((bytes, runs))
}

/// Classifies, hashes and compresses the bytes of a span, of which those outside of `used` are zero; as the difference to the
/// base, if there is one.
pub fn encode_bytes(
    encoder: &mut Encoder,
    bytes: &[u8],
    offset: u64,
    used: &[Extent],
    base: Option<&mut BaseReader<'_>>,
    mut stored: Vec<u8>,
) -> Result<Encoded> {
    let len = bytes.len() as u64;
    let runs = classify(bytes, offset, used);
    if runs.iter().all(|run| run.kind != RunKind::Data) {
        return Ok(Encoded::Hole { len, runs: hole_runs(runs, len) });
    }
    stored.clear();
    let runs = Runs::new(runs);
    let frame = match base {
        Some(base) => base.encode(encoder, bytes, offset, runs, &mut stored)?,
        None => encoder.encode(bytes, runs, &mut stored)?,
    };
    Ok(Encoded::Data { frame, stored })
}

/// The runs of a span without data, as a hole has them.
pub fn hole_runs(runs: Vec<Run>, len: u64) -> Vec<Run> {
    // Too many changes between zero and free for one entry: all of it must read as zero then, which is safe.
    if runs.len() > MAX_RUNS {
        vec![Run { kind: RunKind::Zero, units: units_of(len) }]
    } else {
        runs
    }
}

fn units_of(len: u64) -> u32 {
    u32::try_from(len.div_ceil(u64::from(UNIT_LEN))).expect("a span has at most 2^32 units")
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("offsets within a span are a few MiB")
}

/// The runs of a span: a unit is free if no byte of it is used, zero if its used bytes are all zero, otherwise data.
fn classify(buffer: &[u8], offset: u64, used: &[Extent]) -> Vec<Run> {
    let unit = u64::from(UNIT_LEN);
    let mut runs: Vec<Run> = Vec::with_capacity(used.len() * 2 + 1);
    let mut push = |kind: RunKind, units: u32| match runs.last_mut() {
        _ if units == 0 => {}
        Some(last) if last.kind == kind => last.units += units,
        _ => runs.push(Run { kind, units }),
    };
    let total = units_of(buffer.len() as u64);
    let mut at = 0_u32;
    for extent in used {
        let first = u32::try_from((extent.start - offset) / unit).expect("within a span");
        let end = units_of(extent.start + extent.len - offset);
        // Two extents may share a unit: it has been classified with the first, by all of its bytes.
        push(RunKind::Free, first.saturating_sub(at));
        for n in first.max(at)..end {
            let start = index(u64::from(n) * unit);
            let bytes = &buffer[start..(start + index(unit)).min(buffer.len())];
            push(if is_zero(bytes) { RunKind::Zero } else { RunKind::Data }, 1);
        }
        at = at.max(end);
    }
    push(RunKind::Free, total - at);
    runs
}

/// Neighbouring holes, gathered until the next data frame, or until they fill one frame.
#[derive(Debug, Default)]
pub struct HoleRun {
    len: u64,
    runs: Vec<Run>,
}

impl HoleRun {
    /// Adds a hole; writes the gathered one first when the two together would be too much for one frame.
    pub fn add<W: std::io::Write>(
        &mut self,
        len: u64,
        runs: &[Run],
        out: &mut ImageWriter<W>,
    ) -> Result<()> {
        if self.runs.len() + runs.len() > MAX_RUNS || self.len + len > MAX_HOLE_LEN {
            self.write_to(out)?;
        }
        self.len += len;
        for run in runs {
            match self.runs.last_mut() {
                Some(last) if last.kind == run.kind => last.units += run.units,
                _ => self.runs.push(*run),
            }
        }
        Ok(())
    }

    /// Writes the hole, if there is one, and starts anew.
    pub fn write_to<W: std::io::Write>(&mut self, out: &mut ImageWriter<W>) -> Result<()> {
        if self.len > 0 {
            out.append_mixed_hole(self.len, Runs::new(std::mem::take(&mut self.runs)))?;
            self.len = 0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(list: &[(u64, u64)]) -> Extents {
        let mut extents = Extents::new();
        for (start, len) in list {
            extents.insert(*start, *len);
        }
        extents
    }

    fn run(kind: RunKind, units: u32) -> Run {
        Run { kind, units }
    }

    #[test]
    fn spans_cover_the_disk_and_know_what_is_free() {
        let used = extents(&[(5000, 10)]);
        let spans: Vec<Span> = Spans::new(&used, 10_000, 4096).collect();
        assert_eq!(spans.len(), 3);
        assert_eq!(spans.iter().map(|s| s.free).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(spans[2], Span { offset: 8192, len: 1808, free: true });
    }

    #[test]
    fn units_are_classified_by_their_used_bytes() {
        let mut buffer = vec![0_u8; 6 * 4096 + 512];
        buffer[4096] = 1;
        buffer[2 * 4096 + 1024] = 1;
        let used = [
            (1_000_000 * 4096 + 4096, 4096),
            (1_000_000 * 4096 + 2 * 4096 + 1024, 1024),
            (1_000_000 * 4096 + 4 * 4096, 4096),
        ];
        let used: Vec<Extent> =
            used.iter().map(|(start, len)| Extent { start: *start, len: *len }).collect();
        let runs = classify(&buffer, 1_000_000 * 4096, &used);
        assert_eq!(
            runs,
            [
                run(RunKind::Free, 1),
                run(RunKind::Data, 2),
                run(RunKind::Free, 1),
                run(RunKind::Zero, 1),
                run(RunKind::Free, 2)
            ]
        );
    }

    #[test]
    fn extents_that_share_a_unit_count_once() {
        let mut buffer = vec![0_u8; 8192];
        buffer[100] = 1;
        let used = [
            Extent { start: 0, len: 512 },
            Extent { start: 1024, len: 512 },
            Extent { start: 3584, len: 1024 },
        ];
        let runs = classify(&buffer, 0, &used);
        assert_eq!(runs, [run(RunKind::Data, 1), run(RunKind::Zero, 1)]);
    }
}
