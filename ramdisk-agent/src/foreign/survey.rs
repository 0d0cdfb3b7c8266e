//! The first pass over a foreign image: it is decoded whole, nothing is written.
//!
//! What comes out of it is a list of spans with the hashes of their contents, as our own images have in their index. Whatever is
//! wrong with the image shows here: truncation, garbage behind its end, checksums that do not match, more bytes than there may be.
//! The second pass then writes only what has the same hashes.

use std::sync::Arc;

use agent_api::{ErrorKind, Stage};
use image_format::{
    FrameBase, FrameEntry, FrameKind, Hash, MAX_HOLE_LEN, MAX_RUNS, Root, Run, RunKind, Runs,
    UNIT_LEN, is_zero,
};

use super::kept::{Keeper, Kept};
use super::spans::{Body, Limit, Span, Spans};
use super::walk::Walk;
use crate::capture::cores;
use crate::error::{Error, Result};
use crate::pipeline;
use crate::progress::Progress;
use crate::sys::memory;

/// The most frames of a foreign image: 4 TiB of data, or far more of disk; their list takes 100 MB then.
const MAX_FRAMES: usize = 1 << 20;
/// When the frames' lists of runs have so many entries in all, new ones are made of longer pieces.
const MANY_RUNS: usize = 4 << 20;
/// Those longer pieces, in units.
const COARSE_UNITS: usize = 32;

/// Precedes the hashes that the root of a foreign image is made of.
const ROOT_LABEL: &[u8; 16] = b"imprint foreign\0";

/// What is known of a foreign image after its first pass.
#[derive(Debug)]
pub struct Survey {
    /// Length of the disk.
    pub disk_len: u64,
    /// The hash of the disk's content: of all frames, in order.
    pub root: Root,
    /// What was remembered of the disk.
    pub kept: Kept,
    /// The sector size of the disk's GPT.
    pub gpt_sector_bytes: Option<u32>,
    frames: Vec<Frame>,
}

#[derive(Debug)]
struct Frame {
    offset: u64,
    len: u32,
    kind: FrameKind,
    /// Of the content; zeros for a hole.
    hash: Hash,
    /// One run of data as a rule.
    runs: Option<Box<Runs>>,
}

/// Walks the image to its end.
pub fn make(
    walk: Box<dyn Walk>,
    limit: Limit,
    total_bytes: u64,
    progress: &Arc<Progress>,
) -> Result<Survey> {
    progress.begin(Stage::Planning, total_bytes);
    let workers = cores();
    // Hashing is faster than decoding, and few spans may wait beside a decoder's window.
    let depth = workers;
    let (pool_in, pool_out) = crossbeam_channel::bounded(2);
    let mut spans = Spans::new(walk, limit);
    let jobs = std::iter::from_fn(|| {
        if let Ok(bytes) = pool_out.try_recv() {
            spans.recycle(bytes);
        }
        spans.next_span().transpose()
    });
    let mut list = List::default();
    let mut keeper = Keeper::default();
    pipeline::run(jobs, vec![work; workers], depth, |(frame, bytes): (Frame, Option<Vec<u8>>)| {
        let len = u64::from(frame.len);
        if let Some(bytes) = bytes {
            if frame.kind == FrameKind::Data {
                keeper.see(frame.offset, &bytes);
            }
            // A full pool only means that this buffer is not needed again.
            let _ = pool_in.try_send(bytes);
        }
        list.push(frame)?;
        progress.advance(len, 0)
    })?;
    let disk_len = list.frames.last().map_or(0, |f| f.offset + u64::from(f.len));
    let gpt_sector_bytes = keeper.sector_bytes;
    let root = list.root(disk_len);
    drop((spans, pool_out));
    // A decoder's window may be most of what there is, and the next walk has one of its own.
    memory::give_back();
    Ok(Survey { disk_len, root, kept: keeper.finish(), gpt_sector_bytes, frames: list.frames })
}

fn work(span: Span) -> Result<(Frame, Option<Vec<u8>>)> {
    let Span { offset, len, body } = span;
    let len = u32::try_from(len).expect("holes are at most a GiB");
    let hole = |kind: RunKind| Frame {
        offset,
        len,
        kind: FrameKind::Hole,
        hash: Hash::ZERO,
        runs: Some(Box::new(Runs::uniform(kind, len))),
    };
    Ok(match body {
        Body::Zero => (hole(RunKind::Zero), None),
        Body::Free => (hole(RunKind::Free), None),
        Body::Bytes { bytes, free } if free.is_empty() => {
            if is_zero(&bytes) {
                (hole(RunKind::Zero), Some(bytes))
            } else {
                let hash = Hash::of(&bytes);
                (Frame { offset, len, kind: FrameKind::Data, hash, runs: None }, Some(bytes))
            }
        }
        Body::Bytes { bytes, free } => {
            let runs = classify(&bytes, &free);
            let frame = if runs.iter().any(|run| run.kind == RunKind::Data) {
                let runs = Some(Box::new(Runs::new(runs)));
                Frame { offset, len, kind: FrameKind::Data, hash: Hash::of(&bytes), runs }
            } else if runs.len() > MAX_RUNS {
                hole(RunKind::Zero)
            } else {
                Frame { runs: Some(Box::new(Runs::new(runs))), ..hole(RunKind::Zero) }
            };
            (frame, Some(bytes))
        }
    })
}

/// Runs of units: free if all of the unit is, zero or data otherwise.
fn classify(bytes: &[u8], free: &[std::ops::Range<usize>]) -> Vec<Run> {
    let unit = UNIT_LEN as usize;
    let mut runs: Vec<Run> = Vec::new();
    let mut free = free.iter().peekable();
    for (number, piece) in bytes.chunks(unit).enumerate() {
        let (start, end) = (number * unit, number * unit + piece.len());
        while free.peek().is_some_and(|range| range.end <= start) {
            free.next();
        }
        let is_free = free.peek().is_some_and(|range| range.start <= start && end <= range.end);
        let kind = match is_free {
            true => RunKind::Free,
            false if is_zero(piece) => RunKind::Zero,
            false => RunKind::Data,
        };
        match runs.last_mut() {
            Some(last) if last.kind == kind => last.units += 1,
            _ => runs.push(Run { kind, units: 1 }),
        }
    }
    runs
}

/// The list of frames, as it grows.
#[derive(Debug, Default)]
struct List {
    frames: Vec<Frame>,
    runs: usize,
}

impl List {
    fn push(&mut self, mut frame: Frame) -> Result<()> {
        if self.join(&frame) {
            return Ok(());
        }
        if self.frames.len() == MAX_FRAMES {
            return Err(Error::new(
                ErrorKind::Refused,
                "the image holds more data than is read from foreign formats (4 TiB); write it to a disk with the tool that \
                 made it, and capture that",
            ));
        }
        if let Some(runs) = &mut frame.runs {
            if self.runs > MANY_RUNS {
                **runs = coarse(runs);
            }
            self.runs += runs.len();
        }
        self.frames.push(frame);
        Ok(())
    }

    /// Whether the frame is a hole that became one with the hole before it.
    fn join(&mut self, frame: &Frame) -> bool {
        let uniform = |frame: &Frame| match (frame.kind, &frame.runs) {
            (FrameKind::Hole, Some(runs)) if runs.len() == 1 => runs.iter().next().map(|r| r.kind),
            _ => None,
        };
        let Some(last) = self.frames.last_mut() else { return false };
        let len = u64::from(last.len) + u64::from(frame.len);
        let (Some(a), Some(b)) = (uniform(last), uniform(frame)) else { return false };
        if a != b || len > MAX_HOLE_LEN {
            return false;
        }
        last.len = u32::try_from(len).expect("at most a GiB");
        last.runs = Some(Box::new(Runs::uniform(a, last.len)));
        true
    }

    fn root(&self, disk_len: u64) -> Root {
        let mut hasher = blake3::Hasher::new();
        hasher.update(ROOT_LABEL);
        hasher.update(&disk_len.to_le_bytes());
        for frame in &self.frames {
            hasher.update(&frame.offset.to_le_bytes());
            hasher.update(&frame.len.to_le_bytes());
            hasher.update(frame.hash.as_bytes());
        }
        Root(Hash(*hasher.finalize().as_bytes()))
    }
}

/// The same runs in longer pieces: a piece is free or zero only if all of it is.
fn coarse(runs: &Runs) -> Runs {
    let units: Vec<RunKind> =
        runs.iter().flat_map(|run| std::iter::repeat_n(run.kind, run.units as usize)).collect();
    let pieces = units.chunks(COARSE_UNITS).map(|piece| {
        let kind = if piece.iter().all(|kind| *kind == piece[0]) {
            piece[0]
        } else if piece.contains(&RunKind::Data) {
            RunKind::Data
        } else {
            RunKind::Zero
        };
        Run { kind, units: u32::try_from(piece.len()).expect("a few") }
    });
    pieces.collect()
}

impl Survey {
    /// How many frames there are.
    pub fn frames(&self) -> usize {
        self.frames.len()
    }

    /// The frame of this number.
    pub fn entry(&self, index: usize) -> Option<FrameEntry> {
        let frame = self.frames.get(index)?;
        Some(FrameEntry {
            index: index as u64,
            base: FrameBase::None,
            kind: frame.kind,
            logical_offset: frame.offset,
            logical_len: frame.len,
            stored_offset: 0,
            stored_len: 0,
            stored_hash: Hash::ZERO,
            content_hash: frame.hash,
            runs: match &frame.runs {
                Some(runs) => (**runs).clone(),
                None => Runs::uniform(RunKind::Data, frame.len),
            },
        })
    }

    /// The number of the frame that holds this byte.
    pub fn index_at(&self, offset: u64) -> Option<usize> {
        let after = self.frames.partition_point(|frame| frame.offset <= offset);
        let index = after.checked_sub(1)?;
        let frame = &self.frames[index];
        (offset < frame.offset + u64::from(frame.len)).then_some(index)
    }

    /// Where the last data frame begins whose span was not kept whole.
    pub fn last_data_not_kept(&self) -> Option<u64> {
        let decoded = |f: &&Frame| f.kind == FrameKind::Data && self.kept.span(f.offset).is_none();
        self.frames.iter().rev().find(decoded).map(|frame| frame.offset)
    }

    /// Whether a data frame starts here.
    pub fn is_data(&self, offset: u64) -> bool {
        self.index_at(offset).is_some_and(|index| {
            let frame = &self.frames[index];
            frame.offset == offset && frame.kind == FrameKind::Data
        })
    }
}
