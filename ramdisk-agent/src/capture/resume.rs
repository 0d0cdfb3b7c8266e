//! A capture that was cut off goes on.
//!
//! What is in `NAME.partial` counts up to its last complete index page. Within one boot of the agent nothing else has run on the machine:
//! there it goes on at once, once what the store holds of the end, which a server may have forgotten, was found to be whole.
//! At any other time the system may have run in between, and an image of two moments would pass every hash: so each stored span is read
//! again from the store, and the disk's span, with what the plan now calls used, must have the same content and the same runs. One
//! difference and the capture starts over, saying where.
//!
//! Deliberately not gone on with: delta images, since nothing in a partial says which base it refers to; and captures with --rescue, whose map
//! of bad sectors is not in a partial either.

use std::sync::Arc;

use agent_api::{CaptureOptions, ErrorKind, Part, Stage};
use image_format::{
    Beginning, Decoder, FormatError, FrameEntry, FrameKind, Hash, Partial, Run, Runs, UNIT_LEN,
};
use uuid::Uuid;

use super::crew::Crew;
use super::plan::CapturePlan;
use super::source::{Source, span_buffer};
use super::span::{self, Spans};
use crate::buffer::AlignedBuf;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::pipeline;
use crate::progress::Progress;
use crate::store::{self, ImageFile, LeftOver, StoreError, StoreUrl, StoreWriter};

/// What a server may have acknowledged and then forgotten is less than this: twice a writer's window.
const UNSURE_BYTES: u64 = 128 << 20;

/// How a capture begins.
pub struct Start {
    /// What is stored already, and who goes on writing behind it; `None`: nothing.
    pub found: Option<(Beginning, Box<dyn StoreWriter>)>,
    /// Why what was found does not count, or not all of it.
    pub note: Option<String>,
}

impl Start {
    fn anew(note: Option<String>) -> Self {
        Self { found: None, note }
    }
}

/// Which attempts of a capture may be gone on with, and what becomes of this one if it fails.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// Of those that nothing else ran in between, the id that all their images have; `None`: by hand.
    pub image_id: Option<Uuid>,
    /// Somebody asked to go on with what any earlier attempt has left.
    pub resume: bool,
}

impl Attempt {
    /// An attempt of this plan. That of another disk, of other used blocks or with other options has another id.
    pub fn new(plan: &CapturePlan, options: &CaptureOptions, boot: Option<Uuid>) -> Result<Self> {
        let image_id = boot.map(|boot| image_id(plan, options, boot)).transpose()?;
        Ok(Self { image_id, resume: options.resume })
    }

    /// Whether what was stored until this error is of use for another attempt.
    pub fn keeps(self, error: &Error) -> bool {
        match error.kind() {
            // A worker's next attempt comes soon.
            ErrorKind::Network => self.resume || self.image_id.is_some(),
            ErrorKind::Store | ErrorKind::Disk | ErrorKind::Internal => self.resume,
            // A job that is cancelled is not wanted; who stops a capture by hand and asked for this may want to go on.
            ErrorKind::Cancelled => self.resume && self.image_id.is_none(),
            _ => false,
        }
    }
}

fn image_id(plan: &CapturePlan, options: &CaptureOptions, boot: Uuid) -> Result<Uuid> {
    // What may differ between attempts of the same capture.
    let options = CaptureOptions { resume: false, limit: None, ..options.clone() };
    let told = serde_json::to_vec(&(plan, &options))
        .map_err(|e| Error::new(ErrorKind::Internal, "writing the plan").because(e))?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(boot.as_bytes()).update(&told);
    for extent in plan.used.iter() {
        hasher.update(&extent.start.to_le_bytes()).update(&extent.len.to_le_bytes());
    }
    let bytes = *hasher.finalize().as_bytes().first_chunk().expect("a hash has 32 bytes");
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid())
}

/// Looks for what an earlier attempt has left, and whether it still holds.
pub fn start(
    disk: &Disk,
    url: &StoreUrl,
    plan: &CapturePlan,
    options: &CaptureOptions,
    attempt: Attempt,
    producer: &str,
    progress: &Arc<Progress>,
) -> Result<Start> {
    if !attempt.resume && attempt.image_id.is_none() {
        return Ok(Start::anew(None));
    }
    let left = match store::left_over(url, &crate::opening::store_options(progress)) {
        Ok(Some(left)) => left,
        Ok(None) => return Ok(Start::anew(None)),
        Err(StoreError::Unsupported { reason, .. }) if attempt.image_id.is_some() => {
            return Ok(Start::anew(attempt.resume.then_some(reason)));
        }
        Err(error) => return Err(error.into()),
    };
    let mut partial = match Partial::open(left.reader()?) {
        Ok(partial) => partial,
        Err(error @ FormatError::Read { .. }) => return Err(error.into()),
        Err(error) => return Ok(Start::anew(over(attempt, format!("cannot be used: {error}")))),
    };
    if let Some(why) = other_plan(&partial, plan, options, producer) {
        return Ok(Start::anew(over(attempt, why)));
    }
    let same_boot = attempt.image_id == Some(partial.header().image_id);
    if !same_boot && !attempt.resume {
        return Ok(Start::anew(None));
    }
    if partial.pages() == 0 {
        return Ok(Start::anew(over(attempt, "has no complete index page yet".into())));
    }
    let found = if same_boot {
        let first = partial.page_of_last(UNSURE_BYTES);
        check(&partial, first, None, progress)?
    } else {
        check(&partial, 0, Some((disk, plan)), progress)?
    };
    let note = match found {
        None => None,
        Some(Flaw::DiskDiffers { offset }) => {
            let text = format!(
                "is of other content than {} has now, from byte {offset} on ({})",
                disk.path().display(),
                plan.place(offset)
            );
            return Ok(Start::anew(over(attempt, text)));
        }
        Some(Flaw::StoreDamaged { page, frame }) => {
            partial.cut(page);
            Some(format!(
                "what an earlier attempt stored is damaged at byte {frame} of the file: all behind byte {} of the disk is captured again",
                partial.covered()
            ))
        }
    };
    if partial.pages() == 0 {
        return Ok(Start::anew(note));
    }
    go_on(left, partial, note)
}

fn go_on(
    left: Box<dyn LeftOver>,
    partial: Partial<Box<dyn ImageFile>>,
    note: Option<String>,
) -> Result<Start> {
    let beginning = partial.into_beginning()?;
    let writer = left.go_on(beginning.stored_len())?;
    Ok(Start { found: Some((beginning, writer)), note })
}

/// Why a capture starts over; nobody hears it who did not ask.
fn over(attempt: Attempt, why: String) -> Option<String> {
    attempt.resume.then(|| format!("what an earlier attempt stored {why}: started over"))
}

/// What of a partial says that it is of another plan, before anything of it is compared.
fn other_plan<R>(
    partial: &Partial<R>,
    plan: &CapturePlan,
    options: &CaptureOptions,
    producer: &str,
) -> Option<String> {
    if partial.header().is_delta() || !options.base.is_empty() {
        return Some("cannot be gone on with: delta images are always captured whole".into());
    }
    if options.rescue {
        return Some("cannot be gone on with: with --rescue the whole disk is read".into());
    }
    if partial.header().producer != producer {
        let other: String = partial.header().producer.chars().filter(|c| !c.is_control()).collect();
        return Some(format!("was made by {other}, this is {producer}"));
    }
    if partial.disk_len() != plan.disk_bytes {
        return Some(format!(
            "is of a disk of {} bytes, this one has {}",
            partial.disk_len(),
            plan.disk_bytes
        ));
    }
    (partial.span_len() != image_format::DEFAULT_SPAN_LEN)
        .then(|| "has frames of another length".to_owned())
}

/// What is wrong with what was stored.
enum Flaw {
    /// The disk has other content, or other used blocks, from here on.
    DiskDiffers { offset: u64 },
    /// The store does not hold what the frame at this byte of the file was, which is listed in this page.
    StoreDamaged { page: usize, frame: u64 },
}

/// The disk to compare with, and what of it is used.
type Compared<'a> = (&'a Disk, &'a CapturePlan);

/// Reads the frames from page `first` on again from the store, and compares them with the disk if there is one. Gives the first flaw.
fn check(
    partial: &Partial<Box<dyn ImageFile>>,
    first: usize,
    disk: Option<Compared<'_>>,
    progress: &Arc<Progress>,
) -> Result<Option<Flaw>> {
    progress.begin(Stage::Comparing, partial.covered());
    let crew = Crew::of_comparison(store::MOST_HELD_BYTES);
    progress.meter().set_threads(crew.workers);
    let mut pages = (first..partial.pages()).map(|index| (index, partial.page(index)));
    let frames = std::iter::from_fn(move || pages.next()).flat_map(|(index, page)| {
        let frames: Vec<Result<(usize, FrameEntry)>> = match page {
            Ok(page) => page.frames().iter().map(|frame| Ok((index, frame.clone()))).collect(),
            Err(error) => vec![Err(error.into())],
        };
        frames
    });
    let source = disk.map(|(disk, plan)| (Source::new(disk, plan, None, progress), plan));
    let workers = (0..crew.workers)
        .map(|_| {
            let mut checker = Checker::new(partial, source.as_ref(), progress);
            move |(page, frame): (usize, FrameEntry)| {
                let flaw = checker.check(page, &frame)?;
                Ok((flaw, u64::from(frame.logical_len), u64::from(frame.stored_len)))
            }
        })
        .collect::<Vec<_>>();
    let mut found = None;
    let checked = pipeline::run(frames, workers, crew.depth, |(flaw, disk_len, stored_len)| {
        progress.advance(disk_len, stored_len)?;
        match flaw {
            None => Ok(()),
            Some(flaw) => {
                found = Some(flaw);
                // It only ends the pipeline.
                Err(Error::new(ErrorKind::Internal, "what was stored has a flaw"))
            }
        }
    });
    match found {
        Some(flaw) => Ok(Some(flaw)),
        None => checked.map(|()| None),
    }
}

/// One thread's part in that.
struct Checker<'a> {
    partial: &'a Partial<Box<dyn ImageFile>>,
    disk: Option<&'a (Source<'a>, &'a CapturePlan)>,
    buffer: AlignedBuf,
    progress: &'a Progress,
    stored: Vec<u8>,
}

impl<'a> Checker<'a> {
    fn new(
        partial: &'a Partial<Box<dyn ImageFile>>,
        disk: Option<&'a (Source<'a>, &'a CapturePlan)>,
        progress: &'a Progress,
    ) -> Self {
        Self { partial, disk, buffer: span_buffer(), progress, stored: Vec::new() }
    }

    fn check(&mut self, page: usize, frame: &FrameEntry) -> Result<Option<Flaw>> {
        let meter = self.progress.meter();
        let read = meter.time(Part::ReadStore, u64::from(frame.stored_len), || {
            self.partial.read_stored(frame, &mut self.stored).map(|_| ())
        });
        match read {
            Ok(()) => {}
            Err(error @ FormatError::Read { .. }) => return Err(error.into()),
            Err(_) => return Ok(Some(Flaw::StoreDamaged { page, frame: frame.stored_offset })),
        }
        let Some((source, plan)) = self.disk else { return Ok(None) };
        let differs = match frame.kind {
            FrameKind::Data => data_differs(source, plan, frame, &self.stored, &mut self.buffer)?,
            FrameKind::Hole => hole_differs(source, plan, frame, &mut self.buffer)?,
        };
        Ok(differs.map(|offset| Flaw::DiskDiffers { offset }))
    }
}

/// Where the disk differs from a data frame, which covers one span.
fn data_differs(
    source: &Source<'_>,
    plan: &CapturePlan,
    frame: &FrameEntry,
    stored: &[u8],
    buffer: &mut AlignedBuf,
) -> Result<Option<u64>> {
    let start = frame.logical_offset;
    let Some(span) = spans(plan, start).next().filter(|span| span.len == frame.logical_len) else {
        return Ok(Some(start));
    };
    let (content, runs) = span::content(source, span, buffer)?;
    if Hash::of(content) != frame.content_hash {
        let mut earlier = vec![0; content.len()];
        let mut decoder = Decoder::new()
            .map_err(|e| Error::new(ErrorKind::Internal, "setting zstd up").because(e))?;
        decoder.decode(image_format::StoredFrame::check(frame, stored)?, &mut earlier)?;
        let at = content.iter().zip(&earlier).position(|(now, then)| now != then);
        return Ok(Some(start + at.unwrap_or(0) as u64));
    }
    Ok(first_difference(&Runs::new(runs), &frame.runs).map(|at| start + at))
}

/// Where the disk differs from a hole, which covers whole spans.
fn hole_differs(
    source: &Source<'_>,
    plan: &CapturePlan,
    frame: &FrameEntry,
    buffer: &mut AlignedBuf,
) -> Result<Option<u64>> {
    let start = frame.logical_offset;
    let end = start + u64::from(frame.logical_len);
    let mut list: Vec<Run> = Vec::new();
    for span in spans(plan, start).take_while(|span| span.offset < end) {
        if span.offset + u64::from(span.len) > end {
            return Ok(Some(span.offset));
        }
        let (content, runs) = span::content(source, span, buffer)?;
        if let Some(at) = content.iter().position(|byte| *byte != 0) {
            return Ok(Some(span.offset + at as u64));
        }
        list.extend(span::hole_runs(runs, u64::from(span.len)));
    }
    // Not coarsened: the writer never merges a hole's runs.
    Ok(first_difference(&Runs::new(list), &frame.runs).map(|at| start + at))
}

/// The spans of the disk from here on.
fn spans(plan: &CapturePlan, start: u64) -> Spans<'_> {
    Spans::new(&plan.used, plan.disk_bytes, image_format::DEFAULT_SPAN_LEN).from(start)
}

/// The first byte, from their start, that two lists of runs call different things.
fn first_difference(one: &Runs, other: &Runs) -> Option<u64> {
    let mut at = 0_u64;
    let (mut ones, mut others) = (one.iter(), other.iter());
    let (mut a, mut b) = (ones.next().copied(), others.next().copied());
    loop {
        match (&mut a, &mut b) {
            (None, None) => return None,
            (Some(x), Some(y)) if x.kind == y.kind => {
                let units = x.units.min(y.units);
                at += u64::from(units);
                x.units -= units;
                y.units -= units;
                if x.units == 0 {
                    a = ones.next().copied();
                }
                if b.is_some_and(|y| y.units == 0) {
                    b = others.next().copied();
                }
            }
            _ => return Some(at * u64::from(UNIT_LEN)),
        }
    }
}

#[cfg(test)]
mod tests {
    use image_format::RunKind;

    use super::*;

    fn runs(list: &[(RunKind, u32)]) -> Runs {
        list.iter().map(|(kind, units)| Run { kind: *kind, units: *units }).collect()
    }

    #[test]
    fn runs_differ_at_the_first_unit_that_is_something_else() {
        use RunKind::{Data, Free, Zero};
        let one = runs(&[(Data, 3), (Free, 2), (Zero, 5)]);
        assert_eq!(first_difference(&one, &one), None);
        let at = |units: u64| Some(units * u64::from(UNIT_LEN));
        assert_eq!(first_difference(&one, &runs(&[(Free, 10)])), at(0));
        assert_eq!(first_difference(&one, &runs(&[(Data, 4), (Free, 1), (Zero, 5)])), at(3));
        assert_eq!(first_difference(&one, &runs(&[(Data, 3), (Free, 7)])), at(5));
        assert_eq!(first_difference(&one, &runs(&[(Data, 3), (Free, 2)])), at(5));
    }
}
