//! Restore: an image becomes a disk.
//!
//! open and check the index → plan → refuse or confirm → invalidate → fetch, check, decompress and write on all cores → flush →
//! read back → commit. No byte reaches the disk before the hash of the stored frame it comes from was checked. The disk cannot
//! boot before everything is on it and read back: old tables go first, the new boot sectors come last, a flush between each
//! (`restore/commit.rs`). A restore that fails leaves a target that plainly does not boot.
//!
//! A delta restore (`restore/delta.rs`) first looks what of the image is there already and fetches and writes only the rest; that is
//! also how a restore that was cut off goes on.
//!
//! Several images that a layout puts into one table are joined, and then restored like one (`restore/assembly.rs`).
//!
//! Where the image's bytes go is for the plan to say (`restore/layout.rs`); filesystems that have got more room grow between the
//! read-back and the commit, and then the restored system is changed as asked (`restore/customise.rs`).

mod approval;
mod arrangement;
mod assembly;
mod commit;
mod customise;
mod delta;
mod gaps;
mod grow;
mod ids;
mod layout;
mod medium;
mod placement;
mod plan;
mod retargeting;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use agent_api::{ErrorKind, Layout, Part, RestoreOptions, RestoreSummary, Stage};
use image_format::{Decoder, FrameEntry, FrameKind, RunKind};

pub use assembly::Assembly;
pub use commit::Piece;
pub use customise::script::inside;
pub(crate) use customise::{SUBVOLUMES, names_in, resolve};
use delta::Difference;
use grow::Growth;
use medium::Medium;
pub use plan::{RestorePlan, check_root};

use crate::buffer::AlignedBuf;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::image::DiskImage;
use crate::pipeline;
use crate::progress::{Progress, millis};
use crate::ranges::{self, BRIDGE_LEN};
use crate::sys::memory;
use crate::telemetry;

/// Looks at image and target and makes the plan. Writes nothing; refuses what must not be done.
pub fn plan(image: &dyn DiskImage, target: &Disk, options: &RestoreOptions) -> Result<RestorePlan> {
    let plan = plan::make(image, target, options)?;
    approval::check(&plan, options)?;
    Ok(plan)
}

/// The same for a layout and its images.
pub fn plan_layout(
    assembly: &Assembly,
    layout: &Layout,
    target: &Disk,
    options: &RestoreOptions,
) -> Result<RestorePlan> {
    let plan = assembly::make(assembly, layout, target, options)?;
    approval::check(&plan, options)?;
    Ok(plan)
}

/// Carries the plan out.
pub fn run(
    image: &dyn DiskImage,
    target: &Disk,
    plan: &RestorePlan,
    options: &RestoreOptions,
    progress: &Arc<Progress>,
) -> Result<RestoreSummary> {
    let start = Instant::now();
    progress.begin_work()?;
    let path = target.name();
    let mut compared = RestoreSummary {
        root: image.root().to_string(),
        disk_bytes: image.disk_len(),
        target_bytes: target.len_bytes(),
        ..RestoreSummary::default()
    };
    if options.delta {
        // What somebody else wrote may be in memory only, and stays there as if it were on the disk where the kernel could not write it. Should
        // that show here, the comparison finds what is not there.
        let _ = target.flush();
        target.drop_cache();
    }
    // What is compared and read back is to come from the disk.
    let _direct = target.direct_backing();
    let beneath = target.file_beneath_for_writing();
    let mut work = Work {
        image,
        target,
        beneath: beneath.as_ref(),
        plan,
        options,
        progress,
        difference: None,
        committing: AtomicBool::new(false),
    };
    if options.delta {
        let difference =
            delta::compare(image, work.medium(), options, progress).map_err(|error| {
                error
                    .context(format!("comparing {path} with the image failed; nothing was written"))
            })?;
        compared.compared_bytes = difference.compared_bytes;
        compared.compare_ms = millis(start);
        let written_again = |what: &String| format!("{what}; it is written again");
        compared.changes.extend(difference.unreadable.iter().map(written_again));
        // An image that is there already may still have to be changed, or to grow where it was cut off.
        if difference.is_empty() && plan.customises.is_none() && plan.growths.is_empty() {
            target.flush()?;
            compared.changes.extend(not_from_the_disk(target));
            return Ok(finished(compared, start, progress));
        }
        work.difference = Some(difference);
    }
    let nodes = commit::invalidate(target, plan).map_err(|error| {
        error.context(format!(
            "destroying what was on {path} failed half-way; it may hold parts of the old system, and may still boot it"
        ))
    })?;
    match work.all(nodes, compared) {
        Ok(summary) => Ok(finished(summary, start, progress)),
        Err(error) => {
            // The first error is the one that matters.
            let outcome = match commit::invalidate_what_can_be(target, plan) {
                Ok(()) => "it holds no bootable system now".to_owned(),
                Err(_) if !work.committing.load(Ordering::Relaxed) => {
                    "it holds no bootable system: its tables were erased before, and no new ones were written".to_owned()
                }
                Err(again) => format!(
                    "the new boot sectors could not be taken away again ({}), so that it may boot",
                    again.chain()
                ),
            };
            Err(error.context(format!("restoring onto {path} failed; {outcome}")))
        }
    }
}

/// What is to be told where a comparison with the target may have been with the cache of a file beneath it.
fn not_from_the_disk(target: &Disk) -> Option<String> {
    let file = target.lasting_backing_cache()?;
    Some(format!(
        "what was read back may have come from the cache of {}, which cannot be reached here",
        file.display()
    ))
}

fn finished(mut summary: RestoreSummary, start: Instant, progress: &Progress) -> RestoreSummary {
    summary.total_ms = millis(start);
    summary.sources = progress.sources();
    summary.stages = progress.take_times();
    summary.limited_by = telemetry::limited_by(&summary.stages);
    summary
}

struct Work<'a> {
    image: &'a dyn DiskImage,
    target: &'a Disk,
    /// The file that the target is made of, if frames are written to that and read from it (`disk/backing.rs`).
    beneath: Option<&'a Disk>,
    plan: &'a RestorePlan,
    options: &'a RestoreOptions,
    progress: &'a Arc<Progress>,
    /// What the target lacks; `None`: everything.
    difference: Option<Difference>,
    /// Whether the writes that make it bootable have begun.
    committing: AtomicBool,
}

impl Work<'_> {
    fn all(&self, nodes: commit::HandMadeNodes, summary: RestoreSummary) -> Result<RestoreSummary> {
        let started = Instant::now();
        let (fetched_bytes, mut written_bytes) = self.write_frames()?;
        let restore_ms = millis(started);

        // What the frames were unpacked in is not needed any more, and what reads them back takes as much.
        memory::give_back();
        let started = Instant::now();
        self.progress.begin(Stage::Flushing, 0);
        if let Some(beneath) = self.beneath {
            beneath.flush()?;
        }
        self.target.flush()?;
        self.target.drop_cache();
        let flush_ms = millis(started);

        let started = Instant::now();
        let mut readback_bytes = self.read_back()?;
        let verify_ms = millis(started);
        if self.beneath.is_some() {
            // What somebody was reading when it was dropped before stayed, and may be older than what was written past it.
            self.target.drop_cache();
        }

        let mut changes = self.plan.changes.clone();
        changes.extend(summary.changes.iter().cloned());
        changes.extend(not_from_the_disk(self.target));
        let (bare, partitions): (Vec<&Growth>, Vec<&Growth>) =
            self.plan.growths.iter().partition(|growth| growth.number.is_none());
        self.grow(&partitions, &mut changes)?;
        let mut done = self.customise(false)?;
        self.progress.begin(Stage::Committing, 0);
        self.committing.store(true, Ordering::Relaxed);
        let committed = commit::commit(self.target, self.plan, nodes)?;
        self.grow(&bare, &mut changes)?;
        let behind = self.customise(true)?;
        done.files.extend(behind.files);
        changes.extend(done.notes.into_iter().chain(behind.notes));
        written_bytes += committed;
        readback_bytes += committed;
        Ok(RestoreSummary {
            fetched_bytes,
            written_bytes,
            readback_bytes,
            restore_ms,
            flush_ms,
            verify_ms,
            changes,
            files: done.files,
            ..summary
        })
    }

    /// Changes the restored system, if that is asked for and its turn is now: in front of the commit or behind it.
    fn customise(&self, behind_commit: bool) -> Result<customise::Done> {
        match &self.plan.customises {
            Some(changes) if changes.is_bare() == behind_commit => {
                self.progress.begin(Stage::Finishing, 0);
                self.progress.check()?;
                let asked = &self.options.customise;
                customise::carry_out(self.target, changes, asked, self.progress)
            }
            _ => Ok(customise::Done::default()),
        }
    }

    /// Grows filesystems, and says how large they are then.
    fn grow(&self, growths: &[&Growth], changes: &mut Vec<String>) -> Result<()> {
        for growth in growths {
            self.progress.begin(Stage::Finishing, 0);
            self.progress.check()?;
            changes.push(grow::grow(self.target, growth)?);
        }
        Ok(())
    }

    /// Where frames are written to and read from.
    fn bulk(&self) -> &Disk {
        self.beneath.unwrap_or(self.target)
    }

    fn medium(&self) -> Medium<'_> {
        Medium {
            image: self.image,
            target: self.bulk(),
            plan: self.plan,
            meter: self.progress.meter(),
        }
    }

    /// The frames that are written.
    fn written_frames(&self) -> impl Iterator<Item = Result<FrameEntry>> + Send {
        self.frames(|entry| self.difference.as_ref().is_none_or(|d| d.wants(entry, self.plan)))
    }

    /// The frames of which something comes to the target, and that are `wanted`. Those that are not count as done.
    fn frames(
        &self,
        wanted: impl Fn(&FrameEntry) -> bool + Send,
    ) -> impl Iterator<Item = Result<FrameEntry>> + Send {
        let wanted = move |entry: &FrameEntry| self.plan.placement.concerns(entry) && wanted(entry);
        self.image.frames().filter_map(move |frame| match frame {
            Ok(entry) if !wanted(&entry) => {
                self.progress.advance(u64::from(entry.logical_len), 0).err().map(Err)
            }
            frame => Some(frame),
        })
    }

    /// Fetches, checks, decompresses and writes every frame. Order does not matter here: each worker writes its own.
    fn write_frames(&self) -> Result<(u64, u64)> {
        self.progress.begin(Stage::Restoring, self.image.disk_len());
        let meter = self.progress.meter();
        let readers = self.image.readers();
        meter.set_threads(readers);
        let written = AtomicU64::new(0);
        let workers = (0..readers)
            .map(|_| {
                let mut fetcher = self.image.fetcher()?;
                let mut content = AlignedBuf::new(index(u64::from(self.image.span_len())));
                let written = &written;
                Ok(move |entry: FrameEntry| {
                    self.progress.check()?;
                    // A hole is fetched too: a wrong bit in it means that the image is not what was captured.
                    let len = match entry.kind {
                        FrameKind::Data => index(u64::from(entry.logical_len)),
                        FrameKind::Hole => 0,
                    };
                    let content = &mut content.as_mut_slice()[..len];
                    let fetched = meter
                        .time(Part::Decompress, len as u64, || fetcher.fetch(&entry, content))?;
                    if entry.kind == FrameKind::Data {
                        written.fetch_add(self.write_content(&entry, content)?, Ordering::Relaxed);
                    }
                    written.fetch_add(self.write_zeros(&entry)?, Ordering::Relaxed);
                    Ok((entry.logical_len, fetched))
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let mut fetched = 0;
        pipeline::run(self.written_frames(), workers, readers * 2, |(len, stored): (u32, u64)| {
            fetched += stored;
            self.progress.advance(u64::from(len), stored)
        })?;
        let mut written = written.into_inner();
        if self.options.scrub_free {
            for rest in self.plan.placement.not_covered(self.target.len_bytes()) {
                self.target.zero(rest.start, rest.end - rest.start)?;
                written += rest.end - rest.start;
            }
        }
        written += commit::write_pieces(self.target, &self.plan.fresh)?;
        Ok((fetched, written))
    }

    fn write_content(&self, entry: &FrameEntry, content: &[u8]) -> Result<u64> {
        let mut written = 0;
        for range in ranges::bridged(&kept(entry), BRIDGE_LEN) {
            for piece in self.plan.placement.pieces(range) {
                let within = index(piece.image.start - entry.logical_offset)
                    ..index(piece.image.end - entry.logical_offset);
                let len = within.len() as u64;
                self.progress.meter().time(Part::WriteTarget, len, || {
                    self.bulk().write_direct(&content[within], piece.target)
                })?;
                written += len;
            }
        }
        Ok(written)
    }

    /// Zeroes what must read as zero in a hole, and free space if that was asked for.
    fn write_zeros(&self, entry: &FrameEntry) -> Result<u64> {
        let mut written = 0;
        for (kind, range) in byte_ranges(entry) {
            let wanted = match kind {
                RunKind::Data => false,
                // In a data frame zero runs were written with the content.
                RunKind::Zero => entry.kind == FrameKind::Hole,
                RunKind::Free => self.options.scrub_free,
            };
            if !wanted {
                continue;
            }
            for place in self.plan.placement.on_target(range) {
                let len = place.end - place.start;
                self.progress
                    .meter()
                    .time(Part::WriteTarget, len, || self.target.zero(place.start, len))?;
                written += len;
            }
        }
        Ok(written)
    }

    /// Reads every data and zero byte from the medium and compares content hashes. Also what a delta restore found as it should be and left
    /// alone: a disk that puts a write elsewhere damages that.
    fn read_back(&self) -> Result<u64> {
        self.progress.begin(Stage::Verifying, self.image.disk_len());
        let meter = self.progress.meter();
        meter.set_threads(medium::readers());
        let workers = (0..medium::readers())
            .map(|_| {
                let mut buffer = AlignedBuf::new(index(u64::from(self.image.span_len())));
                move |entry: FrameEntry| {
                    self.progress.check()?;
                    let held =
                        meter.time(Part::Decompress, u64::from(entry.logical_len), || {
                            self.medium().compare(&entry, buffer.as_mut_slice())
                        })?;
                    match held.differs {
                        Some(range) => Err(self.blame(&entry, range)),
                        None => Ok((entry.logical_len, held.read)),
                    }
                }
            })
            .collect::<Vec<_>>();
        let mut total = 0;
        let frames = self.frames(|_| true);
        pipeline::run(frames, workers, medium::readers() * 2, |(len, read): (u32, u64)| {
            total += read;
            self.progress.advance(u64::from(len), read)
        })?;
        Ok(total)
    }

    /// Whose fault it is that a span reads back otherwise than its hash says: the disk's, unless the image itself holds
    /// something else than its index says.
    fn blame(&self, entry: &FrameEntry, range: Range<u64>) -> Error {
        let mut content = vec![0; index(u64::from(entry.logical_len))];
        let mut in_image = || -> Result<()> {
            if entry.kind == FrameKind::Data {
                self.image.fetcher()?.fetch(entry, &mut content)?;
                Decoder::check_content(entry, &content)?;
            }
            Ok(())
        };
        match in_image() {
            Err(error) if error.kind() == ErrorKind::ImageCorrupt => error,
            Ok(()) => self.differs(self.first_difference(entry, &content).unwrap_or(range)),
            // If the image cannot be read again, the disk's fault is the likelier one.
            Err(_) => self.differs(range),
        }
    }

    /// The first sector of a frame that the disk holds otherwise than the image.
    fn first_difference(&self, entry: &FrameEntry, content: &[u8]) -> Option<Range<u64>> {
        let sector = index(u64::from(self.target.logical_sector_bytes()));
        let mut held = AlignedBuf::new(content.len());
        let base = entry.logical_offset;
        let places = &self.plan.placement;
        for piece in kept(entry).into_iter().flat_map(|range| places.pieces(range)) {
            let within = index(piece.image.start - base)..index(piece.image.end - base);
            let held = &mut held.as_mut_slice()[within.clone()];
            self.bulk().read_direct(held, piece.target).ok()?;
            let pairs = held.chunks(sector).zip(content[within].chunks(sector));
            if let Some(n) = pairs.into_iter().position(|(is, should)| is != should) {
                let at = piece.target + (n * sector) as u64;
                return Some(at..at + sector as u64);
            }
        }
        None
    }

    fn differs(&self, range: Range<u64>) -> Error {
        Error::new(
            ErrorKind::Disk,
            format!(
                "{} reads back other bytes than were written between byte {} and {} (from LBA {}): the disk, its \
                 controller or the memory is defective",
                self.target.path().display(),
                self.target.origin() + range.start,
                self.target.origin() + range.end,
                (self.target.origin() + range.start)
                    / u64::from(self.target.logical_sector_bytes())
            ),
        )
    }
}

/// The runs of a frame as absolute byte ranges of the disk.
fn byte_ranges(entry: &FrameEntry) -> impl Iterator<Item = (RunKind, Range<u64>)> {
    let base = entry.logical_offset;
    entry
        .runs
        .byte_ranges(entry.logical_len)
        .map(move |(kind, range)| (kind, base + range.start..base + range.end))
}

/// What of a data frame must be on the disk: data and zeros, neighbours joined.
fn kept(entry: &FrameEntry) -> Vec<Range<u64>> {
    let kept: Vec<Range<u64>> = byte_ranges(entry)
        .filter(|(kind, _)| *kind != RunKind::Free)
        .map(|(_, range)| range)
        .collect();
    ranges::bridged(&kept, 0)
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("offsets within a frame are a few MiB")
}
