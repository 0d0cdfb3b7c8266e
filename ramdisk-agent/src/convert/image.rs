//! An image of our own out of any other.

use std::sync::Arc;

use agent_api::{CaptureOptions, CaptureSummary, Stage};
use image_format::{
    Encoder, FrameEntry, FrameKind, Header, MAX_RUNS, Manifest, Run, RunKind, UNIT_LEN,
};
use uuid::Uuid;

use super::{ConvertOptions, ConvertSummary, fetch};
use crate::capture::crew::Crew;
use crate::capture::sink::FrameSink;
use crate::capture::span::{Encoded, encode_bytes};
use crate::capture::{self, CapturePlan};
use crate::error::Result;
use crate::extents::{Extent, Extents};
use crate::image::DiskImage;
use crate::pipeline;
use crate::progress::Progress;
use crate::store::{self, StoreUrl, StoreWriter};

/// What the image that is made keeps and says.
pub struct Made {
    /// What is in use; `None`: what the source's frames say.
    used: Option<Extents>,
    /// What the image says of the disk; what it says of itself is filled in when it is written.
    manifest: Manifest,
    raw: Vec<String>,
}

impl Made {
    /// Of a disk that was looked at as in a capture.
    pub fn by_plan(plan: &CapturePlan, options: &ConvertOptions) -> Self {
        let header = Header::new(Uuid::nil(), "");
        let capture = CaptureOptions {
            description: options.description.clone(),
            ..CaptureOptions::default()
        };
        Self {
            used: Some(plan.used.clone()),
            manifest: plan.manifest(&header, &capture, &Extents::new()),
            raw: plan.taken_raw(),
        }
    }

    /// Of one of our own images: all that it says of the disk stays.
    pub fn again(image: &dyn DiskImage, options: &ConvertOptions) -> Self {
        let mut manifest = image.manifest().clone();
        if options.description.is_some() {
            manifest.description.clone_from(&options.description);
        }
        Self { used: None, manifest, raw: Vec::new() }
    }

    fn manifest(&self, header: &Header, level: i32) -> Manifest {
        Manifest {
            format_version: image_format::VERSION,
            image_id: header.image_id,
            producer: header.producer.clone(),
            span_len: image_format::DEFAULT_SPAN_LEN,
            compression: image_format::Compression::zstd(level),
            // Whatever the source was the difference to, this image is whole.
            parent: None,
            ..self.manifest.clone()
        }
    }
}

/// Writes, checks and publishes the image.
pub fn write(
    image: &dyn DiskImage,
    target: &StoreUrl,
    made: &Made,
    level: i32,
    progress: &Arc<Progress>,
) -> Result<ConvertSummary> {
    let header =
        Header::new(Uuid::new_v4(), format!("imprint-agent {}", env!("CARGO_PKG_VERSION")));
    progress.begin_work()?;
    let mut writer = store::create(target, header.image_id, &super::stores(image, progress))?;
    let written = match write_frames(image, &mut *writer, made, &header, level, progress) {
        Ok(written) => written,
        Err(error) => {
            return Err(capture::give_up(writer, target, false, error));
        }
    };
    let mut summary =
        CaptureSummary { stored_bytes: written.stored_len, ..CaptureSummary::default() };
    capture::publish(writer, target, written.root, &mut summary, None, progress)?;
    Ok(ConvertSummary {
        root: written.root.to_string(),
        data_bytes: written.data_bytes,
        stored_bytes: written.stored_len,
        reread_bytes: summary.reread_bytes,
        raw: made.raw.clone(),
        ..ConvertSummary::default()
    })
}

fn write_frames(
    image: &dyn DiskImage,
    store: &mut dyn StoreWriter,
    made: &Made,
    header: &Header,
    level: i32,
    progress: &Arc<Progress>,
) -> Result<image_format::Summary> {
    progress.begin(Stage::Capturing, image.disk_len());
    let crew = Crew::of_conversion(level, store.holds_bytes())?;
    let mut sink = FrameSink::create(store, header, image.disk_len(), crew, progress)?;
    let threads = (0..super::workers(image).min(crew.workers))
        .map(|_| {
            let mut fetcher = image.fetcher()?;
            let mut encoder = Encoder::new(level)?;
            let (mut content, buffers) = (Vec::new(), sink.buffers());
            Ok(move |entry: FrameEntry| {
                let used = made.used_in(&entry);
                if entry.kind == FrameKind::Hole {
                    fetch(&mut *fetcher, &entry, &mut content)?;
                    return Ok(hole(&entry, &used));
                }
                let content = fetch(&mut *fetcher, &entry, &mut content)?;
                let offset = entry.logical_offset;
                let all = Extent { start: offset, len: u64::from(entry.logical_len) };
                let index = |at: u64| usize::try_from(at - offset).expect("within the frame");
                for free in used.invert(all).iter() {
                    content[index(free.start)..index(free.end())].fill(0);
                }
                let used: Vec<Extent> = used.iter().copied().collect();
                let stored = buffers.try_recv().unwrap_or_default();
                encode_bytes(&mut encoder, content, offset, &used, None, stored)
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let depth = crew.depth.min(image.readers());
    pipeline::run(image.frames(), threads, depth, |encoded| sink.append(encoded))?;
    sink.finish(&made.manifest(header, level))
}

impl Made {
    /// What of a frame is in use.
    fn used_in(&self, entry: &FrameEntry) -> Extents {
        let mut used = Extents::new();
        let (start, len) = (entry.logical_offset, u64::from(entry.logical_len));
        match &self.used {
            Some(all) => all.overlapping(start, len).for_each(|e| used.push(e.start, e.len)),
            None => entry
                .runs
                .byte_ranges(entry.logical_len)
                .filter(|(kind, _)| *kind != RunKind::Free)
                .for_each(|(_, range)| used.push(start + range.start, range.end - range.start)),
        }
        used
    }
}

/// A hole, zero where it is in use.
fn hole(entry: &FrameEntry, used: &Extents) -> Encoded {
    let unit = u64::from(UNIT_LEN);
    let len = u64::from(entry.logical_len);
    let units = |bytes: u64| u32::try_from(bytes.div_ceil(unit)).expect("a hole is at most a GiB");
    let mut runs: Vec<Run> = Vec::new();
    let mut push = |kind: RunKind, units: u32| match runs.last_mut() {
        _ if units == 0 => {}
        Some(last) if last.kind == kind => last.units += units,
        _ => runs.push(Run { kind, units }),
    };
    let mut at = 0;
    for extent in used.iter() {
        let first = u32::try_from((extent.start - entry.logical_offset) / unit).expect("as above");
        let end = units(extent.end() - entry.logical_offset);
        push(RunKind::Free, first.saturating_sub(at));
        push(RunKind::Zero, end.saturating_sub(first.max(at)));
        at = at.max(end);
    }
    push(RunKind::Free, units(len) - at);
    if runs.len() > MAX_RUNS {
        runs = vec![Run { kind: RunKind::Zero, units: units(len) }];
    }
    Encoded::Hole { len, runs }
}
