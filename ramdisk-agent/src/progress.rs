//! How far the work has come: counters that every thread may raise, and the faces that show them.
//!
//! The engine calls [`Progress::begin`] at each stage and [`Progress::advance`] for each finished piece; both are cheap. A
//! ticker thread draws a bar on a terminal or prints JSON lines. Cancelling is here too, because the same places ask for it.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use agent_api::{ErrorKind, Part, Rate, SourceUse, Stage, StageProgress, StageTimes};
use indicatif::{ProgressBar, ProgressStyle};

use crate::disk::{Disk, Watch};
use crate::error::{Error, Result};
use crate::store::{Access, Limiter, Tally, Way};
use crate::telemetry::Meter;

/// How often bars and lines are brought up to date.
const TICK: Duration = Duration::from_millis(250);
/// How often a JSON line is printed.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Counters of the running stage, and what else every thread of a job shares.
#[derive(Debug)]
pub struct Progress {
    stage: Mutex<(Stage, Instant)>,
    done: AtomicU64,
    total: AtomicU64,
    stored: AtomicU64,
    stalled: Mutex<Option<String>>,
    disk: Mutex<Option<Arc<Watch>>>,
    cancelled: Arc<AtomicBool>,
    /// Whether nothing was begun yet that has to be finished or cleaned up.
    idle: Mutex<bool>,
    /// The last state of stages that have ended and were not printed yet: some are shorter than a tick.
    ended: Mutex<Vec<StageProgress>>,
    meter: Arc<Meter>,
    /// What holds the job's bytes back, if it has a limit.
    limiter: OnceLock<Arc<Limiter>>,
    /// Where the time of the stages went that have ended.
    times: Mutex<Vec<StageTimes>>,
    access: OnceLock<Arc<Access>>,
    /// What comes from which source of the image, if there are several.
    sources: OnceLock<Vec<Arc<Tally>>>,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            stage: Mutex::new((Stage::Planning, Instant::now())),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            stored: AtomicU64::new(0),
            stalled: Mutex::new(None),
            disk: Mutex::new(None),
            cancelled: Arc::new(AtomicBool::new(false)),
            idle: Mutex::new(true),
            ended: Mutex::new(Vec::new()),
            meter: Arc::default(),
            limiter: OnceLock::new(),
            times: Mutex::new(Vec::new()),
            access: OnceLock::new(),
            sources: OnceLock::new(),
        }
    }
}

impl Progress {
    /// Starts a stage of `total_bytes` (0: does not count).
    pub fn begin(&self, stage: Stage, total_bytes: u64) {
        let last = self.snapshot();
        let mut now = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        // One that goes on with another part of it is one stage.
        if now.0 != stage {
            self.ended.lock().unwrap_or_else(PoisonError::into_inner).push(last);
            let times = self.meter.take(now.0, now.1.elapsed());
            self.times.lock().unwrap_or_else(PoisonError::into_inner).push(times);
            *now = (stage, Instant::now());
        }
        self.done.store(0, Ordering::Relaxed);
        self.stored.store(0, Ordering::Relaxed);
        self.total.store(total_bytes, Ordering::Relaxed);
    }

    /// What the threads of the running stage add their times to.
    #[must_use]
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Where the time of all stages went, the running one's so far included; they start anew.
    #[must_use]
    pub fn take_times(&self) -> Vec<StageTimes> {
        let (stage, since) = *self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        let mut times =
            std::mem::take(&mut *self.times.lock().unwrap_or_else(PoisonError::into_inner));
        times.push(self.meter.take(stage, since.elapsed()));
        times
    }

    /// Adds finished bytes of the disk and of the store. Fails if the work was cancelled.
    pub fn advance(&self, disk_bytes: u64, stored_bytes: u64) -> Result<()> {
        self.done.fetch_add(disk_bytes, Ordering::Relaxed);
        self.stored.fetch_add(stored_bytes, Ordering::Relaxed);
        self.check()
    }

    /// Fails if the work was cancelled.
    pub fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(Error::new(
                ErrorKind::Cancelled,
                "cancelled by a signal or by the controller",
            ));
        }
        Ok(())
    }

    /// From here on something is written: who cancels waits until it was cleaned up. Until now, while a plan was made or a server waited for,
    /// the program may just have ended.
    ///
    /// # Errors
    /// If the work was cancelled already.
    pub fn begin_work(&self) -> Result<()> {
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.check()
    }

    /// Cancels the work, and does this if none has begun; none begins meanwhile.
    pub fn cancel(&self, if_idle: impl FnOnce()) {
        self.cancelled.store(true, Ordering::Relaxed);
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if *idle {
            if_idle();
        }
    }

    /// The flag that a signal handler sets to cancel the work.
    #[must_use]
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancelled)
    }

    /// Says what the work waits for, or that it goes on.
    pub fn set_stalled(&self, what: Option<String>) {
        *self.stalled.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    /// Says what lets this job into its stores. Once, before the first is opened.
    pub fn set_access(&self, access: Access) {
        // A second time would be a defect of the caller, and what is open already keeps the first.
        debug_assert!(self.access.get().is_none(), "a job has one list of credentials");
        let _ = self.access.set(Arc::new(access));
    }

    /// What lets this job into its stores.
    #[must_use]
    pub fn access(&self) -> Arc<Access> {
        self.access.get().cloned().unwrap_or_default()
    }

    /// Says where the job's image comes from. Once.
    pub fn set_sources(&self, tallies: Vec<Arc<Tally>>) {
        // A job opens one image; should it open it again, the first one's are kept.
        let _ = self.sources.set(tallies);
    }

    /// How much came from which source; empty unless there are several.
    #[must_use]
    pub fn sources(&self) -> Vec<SourceUse> {
        let used = |tally: &Arc<Tally>| SourceUse {
            url: tally.url().to_owned(),
            bytes: tally.bytes(),
            left_out: tally.left_out(),
        };
        self.sources.get().map(|tallies| tallies.iter().map(used).collect()).unwrap_or_default()
    }

    /// From now on the job's stores move no more bytes than this; the first limit of a job stays.
    pub fn set_limit(&self, rate: Option<Rate>) {
        let Some(rate) = rate else { return };
        let meter = Arc::clone(&self.meter);
        let told = move |way, waited| {
            let part = match way {
                Way::Read => Part::ReadStore,
                Way::Write => Part::WriteStore,
            };
            meter.add_limited(part, waited);
        };
        self.limiter.get_or_init(|| {
            Arc::new(Limiter::new(rate.bytes_per_second(), self.cancel_flag(), Box::new(told)))
        });
    }

    /// What holds the job's bytes back, if it has a limit.
    #[must_use]
    pub fn limiter(&self) -> Option<Arc<Limiter>> {
        self.limiter.get().cloned()
    }

    /// Opens the disk at a path. From now on it is told when it does not answer, while it is opened, too.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn open(&self, path: &Path, open: impl FnOnce(&Path) -> Result<Disk>) -> Result<Disk> {
        let opening = Arc::new(Watch::of_opening(path));
        let _pending = opening.begin("opening", None);
        self.watch(Arc::clone(&opening));
        let disk = open(path)?;
        self.watch(disk.watch());
        Ok(disk)
    }

    fn watch(&self, watch: Arc<Watch>) {
        *self.disk.lock().unwrap_or_else(PoisonError::into_inner) = Some(watch);
    }

    fn stalled(&self) -> Option<String> {
        let store = self.stalled.lock().unwrap_or_else(PoisonError::into_inner).clone();
        store.or_else(|| {
            self.disk.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.stalled()
        })
    }

    /// The present state.
    #[must_use]
    pub fn snapshot(&self) -> StageProgress {
        let (stage, since) = *self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        StageProgress {
            stage,
            done_bytes: self.done.load(Ordering::Relaxed),
            total_bytes: self.total.load(Ordering::Relaxed),
            stored_bytes: self.stored.load(Ordering::Relaxed),
            elapsed_ms: millis(since),
            stalled: self.stalled(),
        }
    }
}

/// Whole milliseconds since `since`.
#[must_use]
pub fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// A bar on standard error.
    Bar,
    /// A [`StageProgress`] as a JSON line on standard error, once a second and at the end of each stage.
    JsonLines,
    /// `{"progress": …}` lines on standard output, for the supervisor.
    Worker,
    /// Nothing.
    Quiet,
}

impl Face {
    /// A bar if standard error is a terminal, otherwise nothing.
    #[must_use]
    pub fn auto() -> Self {
        if std::io::stderr().is_terminal() { Self::Bar } else { Self::Quiet }
    }
}

/// Draws a [`Progress`] until it is dropped or [`Ticker::finish`]ed.
#[derive(Debug)]
pub struct Ticker {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// Starts the thread that draws.
    #[must_use]
    pub fn start(progress: &Arc<Progress>, face: Face) -> Self {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let thread = (face != Face::Quiet).then(|| {
            let (progress, stop) = (Arc::clone(progress), Arc::clone(&stop));
            std::thread::spawn(move || draw(&progress, face, &stop))
        });
        Self { stop, thread }
    }

    /// Draws the last state and ends the thread.
    pub fn finish(mut self) {
        self.end();
    }

    fn end(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic while drawing has been printed; the work itself is not touched by it.
            let _ = thread.join();
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.end();
    }
}

fn draw(progress: &Progress, face: Face, stop: &(Mutex<bool>, Condvar)) {
    let bar = (face == Face::Bar).then(new_bar);
    let mut last: Option<(Stage, Instant)> = None;
    loop {
        let stopped = {
            let guard = stop.0.lock().unwrap_or_else(PoisonError::into_inner);
            let (guard, _) = stop
                .1
                .wait_timeout_while(guard, TICK, |stopped| !*stopped)
                .unwrap_or_else(PoisonError::into_inner);
            *guard
        };
        let ended =
            std::mem::take(&mut *progress.ended.lock().unwrap_or_else(PoisonError::into_inner));
        let now = progress.snapshot();
        if bar.is_none() {
            for stage in ended {
                // As below.
                let _ = print_line(face, &stage);
            }
        }
        if let Some(bar) = &bar {
            draw_bar(bar, &now);
        } else if stopped
            || last.is_none_or(|(stage, at)| stage != now.stage || at.elapsed() >= LINE_EVERY)
        {
            last = Some((now.stage, Instant::now()));
            // A reader that has gone away must not stop the work.
            let _ = print_line(face, &now);
        }
        if stopped {
            break;
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}

fn print_line(face: Face, now: &StageProgress) -> std::io::Result<()> {
    if face == Face::Worker {
        let line = serde_json::json!({ "progress": now });
        writeln!(std::io::stdout().lock(), "{line}")
    } else {
        let line = serde_json::to_string(now)?;
        writeln!(std::io::stderr().lock(), "{line}")
    }
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let style = "{msg:11} {wide_bar} {binary_bytes:>10} of {binary_total_bytes} {binary_bytes_per_sec:>12} {eta:>4}";
    bar.set_style(ProgressStyle::with_template(style).expect("the template is a constant"));
    bar
}

fn draw_bar(bar: &ProgressBar, now: &StageProgress) {
    let name = now.stage.as_str();
    if bar.message() != name {
        bar.reset();
        bar.set_message(name);
    }
    bar.set_length(now.total_bytes);
    bar.set_position(now.done_bytes);
    if let Some(what) = &now.stalled {
        bar.set_message(format!("{name}: waiting, {what}"));
    }
}
