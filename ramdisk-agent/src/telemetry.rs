//! Where the time goes: for each stage, how long its threads were busy with what, how many bytes that moved, and how long they
//! waited; and from that, in words, what limited the work.
//!
//! A [`Meter`] is a few counters that threads add to around each call that takes long (a read of the disk, a write to the store):
//! two clock readings for some MiB. Deliberately absent: histograms and single events.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agent_api::{Part, PartTimes, Stage, StageTimes};
use image_format::ReadAt;

use crate::progress::Progress;
use crate::store::ImageFile;

/// The parts that are measured, in the order in which they are listed.
const PARTS: [Part; 8] = [
    Part::ReadSource,
    Part::Compress,
    Part::WriteStore,
    Part::ReadStore,
    Part::Decompress,
    Part::WriteTarget,
    Part::ReadTarget,
    Part::Limit,
];

/// Stages shorter than this have no bottleneck worth a line.
const WORTH_SAYING: Duration = Duration::from_millis(500);

/// Counters of the running stage.
#[derive(Debug, Default)]
pub struct Meter {
    counters: [Counter; PARTS.len()],
    /// How long reads of the store, and writes to it, waited because of the job's limit.
    limited_reads_ns: AtomicU64,
    limited_writes_ns: AtomicU64,
    threads: AtomicU32,
}

#[derive(Debug, Default)]
struct Counter {
    busy_ns: AtomicU64,
    bytes: AtomicU64,
}

impl Meter {
    /// Says how many threads share the stage's work; the thread that writes to the store comes on top.
    pub fn set_threads(&self, threads: usize) {
        self.threads.store(u32::try_from(threads).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// Does something and counts the time that it took and the bytes that it moved.
    pub fn time<T>(&self, part: Part, bytes: u64, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = work();
        self.add(part, bytes, start.elapsed());
        done
    }

    /// Counts time and bytes.
    pub fn add(&self, part: Part, bytes: u64, busy: Duration) {
        if let Some(counter) = self.counter(part) {
            counter.busy_ns.fetch_add(nanos(busy), Ordering::Relaxed);
            counter.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Counts time that a read of the store or a write to it waited because of the job's limit. It is within the time that is
    /// counted for the read or write itself, and taken off there.
    pub fn add_limited(&self, part: Part, waited: Duration) {
        let counter = match part {
            Part::WriteStore => &self.limited_writes_ns,
            _ => &self.limited_reads_ns,
        };
        counter.fetch_add(nanos(waited), Ordering::Relaxed);
    }

    /// The time that has been counted for a part.
    #[must_use]
    pub fn busy(&self, part: Part) -> Duration {
        let ns = self.counter(part).map_or(0, |counter| counter.busy_ns.load(Ordering::Relaxed));
        Duration::from_nanos(ns)
    }

    fn counter(&self, part: Part) -> Option<&Counter> {
        PARTS.iter().position(|other| *other == part).map(|at| &self.counters[at])
    }

    /// What was counted since the last time, as the times of a stage that took `elapsed`.
    pub fn take(&self, stage: Stage, elapsed: Duration) -> StageTimes {
        let threads = self.threads.swap(0, Ordering::Relaxed).max(1);
        let mut parts = Vec::new();
        // Whoever decompresses, compares, or compresses what a base does not have counts the whole call: the reads within it are known, and
        // taken off here.
        let within = self.busy(Part::ReadStore) + self.busy(Part::ReadTarget);
        let taken = |ns: &AtomicU64| Duration::from_nanos(ns.swap(0, Ordering::Relaxed));
        let limited_reads = taken(&self.limited_reads_ns);
        let limited_writes = taken(&self.limited_writes_ns);
        for (part, counter) in PARTS.iter().zip(&self.counters) {
            let mut busy = Duration::from_nanos(counter.busy_ns.swap(0, Ordering::Relaxed));
            let bytes = counter.bytes.swap(0, Ordering::Relaxed);
            match part {
                Part::Decompress | Part::Compress => busy = busy.saturating_sub(within),
                Part::ReadStore => busy = busy.saturating_sub(limited_reads),
                Part::WriteStore => busy = busy.saturating_sub(limited_writes),
                Part::Limit => busy = limited_reads + limited_writes,
                _ => {}
            }
            if busy.is_zero() {
                continue;
            }
            // The store is written by one thread, in order; everything else by all of them.
            let by_one =
                *part == Part::WriteStore || *part == Part::Limit && limited_reads.is_zero();
            let there = if by_one { elapsed } else { elapsed * threads };
            parts.push(PartTimes {
                part: *part,
                bytes,
                busy_ms: millis(busy),
                wait_ms: millis(there.saturating_sub(busy)),
            });
        }
        StageTimes { stage, elapsed_ms: millis(elapsed), threads, parts }
    }
}

/// The file of an image, with the time that its reads take in the meter of a job's progress.
#[derive(Debug)]
pub struct Metered<F> {
    file: F,
    progress: Arc<Progress>,
}

impl<F> Metered<F> {
    /// Measures the reads of `file`.
    pub fn new(file: F, progress: &Arc<Progress>) -> Self {
        Self { file, progress: Arc::clone(progress) }
    }
}

impl<F: ReadAt> ReadAt for Metered<F> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let len = buf.len() as u64;
        let read = || self.file.read_exact_at(buf, offset);
        self.progress.meter().time(Part::ReadStore, len, read)
    }

    fn read_checked_at(
        &self,
        buf: &mut [u8],
        offset: u64,
        is_right: &dyn Fn(&[u8]) -> bool,
    ) -> io::Result<()> {
        let len = buf.len() as u64;
        let read = || self.file.read_checked_at(buf, offset, is_right);
        self.progress.meter().time(Part::ReadStore, len, read)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
}

impl ImageFile for Metered<Box<dyn ImageFile>> {
    fn len_bytes(&self) -> u64 {
        self.file.len_bytes()
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What limited the work, in words: the part that was busy for the greatest share of the longest stage.
#[must_use]
pub fn limited_by(stages: &[StageTimes]) -> Option<String> {
    // Planning waits for nothing in particular.
    let worked = stages.iter().filter(|stage| stage.stage != Stage::Planning);
    let longest = worked.max_by_key(|stage| stage.elapsed_ms)?;
    if longest.elapsed_ms < millis(WORTH_SAYING) {
        return None;
    }
    // Nothing in these is counted apart.
    let whole = match longest.stage {
        Stage::Flushing => Some("flushing what was written"),
        Stage::Finishing => Some("growing and changing what was restored"),
        Stage::Committing => Some("the last writes and their flushes"),
        _ => None,
    };
    if let Some(doing) = whole {
        return Some(format!(
            "{doing}: {} of {} ms",
            longest.elapsed_ms,
            stages.iter().map(|stage| stage.elapsed_ms).sum::<u64>()
        ));
    }
    let percent = |part: &PartTimes| part.busy_ms * 100 / (part.busy_ms + part.wait_ms).max(1);
    let part = longest.parts.iter().max_by_key(|part| percent(part))?;
    let (who, doing) = match part.part {
        Part::ReadSource => ("the source disk", "waiting to read it"),
        Part::Compress => ("the processors", "hashing and compressing"),
        Part::WriteStore => ("the store", "waiting to write to it"),
        Part::ReadStore => ("the store", "waiting to read from it"),
        Part::Decompress => ("the processors", "hashing and decompressing"),
        Part::WriteTarget => ("the target disk", "waiting to write"),
        Part::ReadTarget => ("the target disk", "waiting to read back"),
        Part::Limit => ("the limit that was given", "waiting because of it"),
        Part::Unknown => return None,
    };
    Some(format!("{who}: {} % of the time {doing} while {}", percent(part), longest.stage.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_and_waiting_make_up_the_threads_time() {
        let meter = Meter::default();
        meter.set_threads(4);
        meter.add(Part::WriteTarget, 100, Duration::from_secs(3));
        meter.add(Part::WriteTarget, 50, Duration::from_millis(640));
        meter.add(Part::Decompress, 150, Duration::from_millis(200));
        let times = meter.take(Stage::Restoring, Duration::from_secs(1));
        assert_eq!((times.threads, times.parts.len()), (4, 2));
        let write = &times.parts[1];
        assert_eq!((write.bytes, write.busy_ms, write.wait_ms), (150, 3640, 360));
        assert_eq!(
            limited_by(&[times]).unwrap(),
            "the target disk: 91 % of the time waiting to write while restoring"
        );
        assert!(meter.take(Stage::Verifying, Duration::from_secs(1)).parts.is_empty());
    }

    #[test]
    fn the_store_is_written_by_one_thread() {
        let meter = Meter::default();
        meter.set_threads(2);
        meter.add(Part::Compress, 1, Duration::from_millis(500));
        meter.add(Part::WriteStore, 1, Duration::from_millis(900));
        let capturing = meter.take(Stage::Capturing, Duration::from_secs(1));
        let flushing = meter.take(Stage::Flushing, Duration::from_millis(700));
        let text = limited_by(&[capturing, flushing]).unwrap();
        assert_eq!(text, "the store: 90 % of the time waiting to write to it while capturing");
    }

    #[test]
    fn waiting_because_of_the_limit_is_told_from_waiting_for_the_store() {
        let meter = Meter::default();
        meter.set_threads(4);
        meter.add(Part::Decompress, 1, Duration::from_millis(3_900));
        meter.add(Part::ReadStore, 1, Duration::from_millis(3_800));
        meter.add_limited(Part::ReadStore, Duration::from_millis(3_600));
        let times = meter.take(Stage::Restoring, Duration::from_secs(1));
        let busy: Vec<_> = times.parts.iter().map(|part| (part.part, part.busy_ms)).collect();
        assert_eq!(busy, [(Part::ReadStore, 200), (Part::Decompress, 100), (Part::Limit, 3_600)]);
        let text =
            "the limit that was given: 90 % of the time waiting because of it while restoring";
        assert_eq!(limited_by(&[times]).unwrap(), text);

        meter.set_threads(2);
        meter.add(Part::WriteStore, 1, Duration::from_millis(950));
        meter.add_limited(Part::WriteStore, Duration::from_millis(900));
        let times = meter.take(Stage::Capturing, Duration::from_secs(1));
        let text =
            "the limit that was given: 90 % of the time waiting because of it while capturing";
        assert_eq!(limited_by(&[times]).unwrap(), text);
    }

    #[test]
    fn reading_the_base_of_a_capture_is_not_compressing() {
        let meter = Meter::default();
        meter.add(Part::Compress, 1, Duration::from_millis(900));
        meter.add(Part::ReadStore, 1, Duration::from_millis(800));
        let times = meter.take(Stage::Capturing, Duration::from_secs(1));
        let text = "the store: 80 % of the time waiting to read from it while capturing";
        assert_eq!(limited_by(&[times]).unwrap(), text);
    }

    #[test]
    fn a_script_that_takes_long_is_what_limited() {
        let meter = Meter::default();
        meter.add(Part::WriteTarget, 1, Duration::from_millis(800));
        let restoring = meter.take(Stage::Restoring, Duration::from_secs(1));
        let finishing = meter.take(Stage::Finishing, Duration::from_secs(3));
        let text = "growing and changing what was restored: 3000 of 4000 ms";
        assert_eq!(limited_by(&[restoring, finishing]).unwrap(), text);
    }

    #[test]
    fn what_took_no_time_was_not_limited() {
        assert_eq!(limited_by(&[]), None);
        let meter = Meter::default();
        meter.add(Part::Compress, 1, Duration::from_millis(100));
        assert_eq!(limited_by(&[meter.take(Stage::Capturing, Duration::from_millis(120))]), None);
        meter.add(Part::ReadStore, 1, Duration::from_millis(1));
        assert_eq!(limited_by(&[meter.take(Stage::Planning, Duration::from_secs(9))]), None);
    }
}
