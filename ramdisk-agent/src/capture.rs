//! Capture: a disk becomes an image.
//!
//! plan → read, compress and hash on all cores → `NAME.partial` in order → flush → re-read what the store holds and check every
//! hash → publish. The source is opened read-only and never written. Bytes that a filesystem calls free are zeros in the image
//! whatever the disk holds there, so equal filesystems give equal content. A capture that ends early leaves no image: the
//! partial is removed, or, if the machine lost power, still carries `.partial` in its name. Who asks for it has the partial kept, and gone on
//! with (`capture/resume.rs`).

mod base;
pub(crate) mod crew;
mod logical;
mod manifest;
pub(crate) mod plan;
mod rescue;
mod resume;
pub(crate) mod sink;
mod source;
pub(crate) mod span;

use std::sync::Arc;
use std::time::Instant;

use agent_api::{CaptureOptions, CaptureSummary, ErrorKind, Stage};
use image_format::{Beginning, Header, ImageReader, Manifest};
use uuid::Uuid;

pub use logical::PlannedLogicalVolume;
pub use manifest::describe_manifest;
pub use plan::{CapturePlan, PlannedVolume};

use crate::damage;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::opening;
use crate::pipeline;
use crate::progress::{Progress, millis};
use crate::store::{self, PARTIAL_SUFFIX, StoreUrl, StoreWriter};
use crate::sys::memory;
use crate::telemetry;
use crate::verify;
use crate::words;
use base::Base;
use crew::Crew;
use rescue::Rescue;
use resume::{Attempt, Start};
use sink::FrameSink;
use source::Source;
use span::{Spans, Worker};

/// Makes the plan and checks that the capture may go ahead. Reads metadata only.
pub fn plan(disk: &Disk, options: &CaptureOptions) -> Result<CapturePlan> {
    options.check().map_err(Error::refused)?;
    let users = crate::disk::in_use(disk.path(), true)?;
    if !users.is_empty() {
        return Err(Error::refused(format!(
            "{} is being written to by this system ({}); an image of it would mix moments in time: unmount it, or mount \
             it read-only (swap: swapoff)",
            disk.path().display(),
            users.join(", ")
        )));
    }
    crate::disk::refuse_claimed(disk.path(), "may be written to while it is read")?;
    disk.forget_cache();
    plan::make(disk, options)
}

/// Captures `disk` to `url`. `image_id` is what all attempts of a job in one boot have in common: what is stored under it was captured
/// with nothing else running since.
///
/// # Errors
/// Whatever goes wrong; there is no image then.
pub fn run(
    disk: &Disk,
    url: &StoreUrl,
    plan: &CapturePlan,
    options: &CaptureOptions,
    image_id: Option<Uuid>,
    progress: &Arc<Progress>,
) -> Result<CaptureSummary> {
    let start = Instant::now();
    let producer = format!("imprint-agent {}", env!("CARGO_PKG_VERSION"));
    let base = Base::open(&options.base, url, progress)?;
    let attempt = Attempt::new(plan, options, image_id)?;
    progress.begin_work()?;
    let Start { found, note } =
        resume::start(disk, url, plan, options, attempt, &producer, progress)?;
    if let Some(note) = &note {
        words::note(note);
    }
    let (begun, mut writer) = match found {
        Some((beginning, writer)) => (Begun::Earlier(beginning), writer),
        None => {
            let image_id = attempt.image_id.unwrap_or_else(Uuid::new_v4);
            let header = match base {
                Some(_) => Header::delta(image_id, producer),
                None => Header::new(image_id, producer),
            };
            (Begun::Now(header), store::create(url, image_id, &opening::store_options(progress))?)
        }
    };
    let result = write_image(disk, &mut *writer, plan, options, begun, base.as_ref(), progress);
    let (mut summary, root) = match result {
        Ok(done) => done,
        Err(error) => {
            return Err(give_up(writer, url, attempt.keeps(&error), error));
        }
    };
    summary.not_resumed = note;
    publish(writer, url, root, &mut summary, Some(attempt), progress)?;
    summary.total_ms = millis(start);
    Ok(summary)
}

/// What an image begins with.
enum Begun {
    /// What an earlier attempt stored.
    Earlier(Beginning),
    /// Only what it says of itself.
    Now(Header),
}

/// Makes what was written durable, reads all of it again from the store, and gives it its name; or removes it. With an `attempt`, what a
/// store that went away may still hold is left for the next one.
pub(crate) fn publish(
    mut writer: Box<dyn StoreWriter>,
    url: &StoreUrl,
    root: image_format::Root,
    summary: &mut CaptureSummary,
    attempt: Option<Attempt>,
    progress: &Arc<Progress>,
) -> Result<()> {
    // What the frames were made in is not needed any more, and what reads them again takes as much.
    memory::give_back();
    let flushed = Instant::now();
    progress.begin(Stage::Flushing, 0);
    let durable = writer.commit();
    summary.flush_ms = millis(flushed);
    let checked = durable.map_err(Error::from).and_then(|durable| {
        let verified = Instant::now();
        progress.begin(Stage::Verifying, summary.disk_bytes);
        let reader = telemetry::Metered::new(writer.reader()?, progress);
        if durable != summary.stored_bytes {
            return Err(Error::new(
                ErrorKind::Store,
                format!(
                    "the store holds {durable} bytes of the {} that were written",
                    summary.stored_bytes
                ),
            ));
        }
        let image = ImageReader::open(reader)?;
        if image.root() != root {
            return Err(Error::new(
                ErrorKind::Store,
                "the store gives back another image than was written: its root hash differs",
            ));
        }
        summary.reread_bytes = verify::stored_bytes(&image, progress)?.stored_bytes;
        summary.verify_ms = millis(verified);
        Ok(())
    });
    if let Err(error) = checked {
        // What is there and not what was written is of no use, whoever asks for it.
        let went_away = matches!(error.kind(), ErrorKind::Network | ErrorKind::Cancelled);
        let keeps = went_away && attempt.is_some_and(|attempt| attempt.keeps(&error));
        return Err(give_up(writer, url, keeps, error.context("checking what the store holds")));
    }
    progress.begin(Stage::Committing, 0);
    writer.publish()?;
    summary.stages = progress.take_times();
    summary.limited_by = telemetry::limited_by(&summary.stages);
    Ok(())
}

/// Ends a writer after an error, whose partial file is kept or removed. The first error is the one that matters, and a partial that could not
/// be removed is not an image either; but whoever cancels expects that nothing stays.
pub(crate) fn give_up(
    writer: Box<dyn StoreWriter>,
    url: &StoreUrl,
    keeps: bool,
    error: Error,
) -> Error {
    let ended = if keeps { writer.keep() } else { writer.abort() };
    if ended.is_ok() || keeps || error.kind() != ErrorKind::Cancelled {
        return error;
    }
    let partial = match (url.parent(), url.file_name()) {
        (Some(folder), Some(name)) => folder.join(&format!("{name}{PARTIAL_SUFFIX}")).to_string(),
        _ => format!("{url}{PARTIAL_SUFFIX}"),
    };
    error.context(format!(
        "what was written could not be removed, since its store does not answer, and may stay as {partial} until the next writer of that image replaces it"
    ))
}

fn write_image(
    disk: &Disk,
    store: &mut dyn StoreWriter,
    plan: &CapturePlan,
    options: &CaptureOptions,
    begun: Begun,
    base: Option<&Base>,
    progress: &Arc<Progress>,
) -> Result<(CaptureSummary, image_format::Root)> {
    let start = Instant::now();
    progress.begin(Stage::Capturing, plan.disk_bytes);
    let rescue = options.rescue.then(|| Rescue::new(disk)).transpose()?;
    let source = Source::new(disk, plan, rescue.as_ref(), progress);
    let crew =
        Crew::new(options.level, store.holds_bytes(), base.map(Base::images), source.waits())?;
    progress.meter().set_threads(crew.workers);
    let (header, covered) = match &begun {
        Begun::Earlier(beginning) => (beginning.header().clone(), beginning.covered()),
        Begun::Now(header) => (header.clone(), 0),
    };
    let spans =
        Spans::new(&plan.used, plan.disk_bytes, image_format::DEFAULT_SPAN_LEN).from(covered);
    // What goes through the page cache is read by the kernel ahead of the compressors: one span for each that may be under way.
    let ahead = u64::from(image_format::DEFAULT_SPAN_LEN) * (crew.depth as u64 + 2);
    let jobs = spans.map(|span| {
        progress.check()?;
        let later = source.wants_read_ahead().then_some(span.offset + ahead);
        for soon in later.into_iter().flat_map(|at| plan.used.overlapping(at, u64::from(span.len)))
        {
            disk.read_ahead(soon.start, soon.len);
        }
        Ok(span)
    });
    let stored = store.len();
    let mut sink = match begun {
        Begun::Earlier(beginning) => FrameSink::resume(store, beginning, crew, progress),
        Begun::Now(header) => FrameSink::create(store, &header, plan.disk_bytes, crew, progress)?,
    };
    progress.advance(covered, stored)?;
    let threads = (0..crew.workers)
        .map(|_| {
            let base = base.map(Base::reader).transpose()?;
            let mut worker = Worker::new(&source, base, progress, options.level)?;
            let buffers = sink.buffers();
            Ok(move |span| worker.encode(span, buffers.try_recv().unwrap_or_default()))
        })
        .collect::<Result<Vec<_>>>()?;
    pipeline::run(jobs, threads, crew.depth, |encoded| sink.append(encoded))?;
    let bad = rescue.map(Rescue::finish).unwrap_or_default();
    let manifest =
        Manifest { parent: base.map(Base::parent), ..plan.manifest(&header, options, &bad) };
    let written = sink.finish(&manifest)?;
    let summary = CaptureSummary {
        root: written.root.to_string(),
        image_id: header.image_id.to_string(),
        disk_bytes: plan.disk_bytes,
        used_bytes: plan.used_bytes_claimed(),
        data_bytes: written.data_bytes,
        stored_bytes: written.stored_len,
        resumed_bytes: covered,
        capture_ms: millis(start),
        raw: plan.taken_raw(),
        bad_bytes: bad.total_bytes(),
        damaged: damage::describe(&manifest),
        ..CaptureSummary::default()
    };
    Ok((summary, written.root))
}

/// The number of threads that the machine can run at once.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{ImageFile, StoreError};

    /// A writer whose store has gone.
    struct Gone;

    fn gone<T>() -> store::Result<T> {
        Err(StoreError::Dead { url: "x".to_owned() })
    }

    impl StoreWriter for Gone {
        fn append(&mut self, _: &[u8]) -> store::Result<()> {
            gone()
        }
        fn commit(&mut self) -> store::Result<u64> {
            gone()
        }
        fn len(&self) -> u64 {
            0
        }
        fn reader(&self) -> store::Result<Box<dyn ImageFile>> {
            gone()
        }
        fn publish(self: Box<Self>) -> store::Result<()> {
            gone()
        }
        fn abort(self: Box<Self>) -> store::Result<()> {
            gone()
        }
    }

    #[test]
    fn who_cancels_is_told_the_name_of_what_stays() {
        for (url, partial) in [
            ("nfs://nas/images/a.img.zst?uid=7", "nfs://nas/images/a.img.zst.partial?uid=7 until"),
            ("/srv/a.img.zst", "/srv/a.img.zst.partial until"),
        ] {
            let url: StoreUrl = url.parse().unwrap();
            let cancelled = || Error::new(ErrorKind::Cancelled, "cancelled");
            let error = give_up(Box::new(Gone), &url, false, cancelled());
            assert_eq!(error.kind(), ErrorKind::Cancelled);
            assert!(error.chain().contains(partial), "{}", error.chain());
            let text = give_up(Box::new(Gone), &url, true, cancelled()).chain();
            assert!(!text.contains("partial"), "{text}");
        }
    }
}
