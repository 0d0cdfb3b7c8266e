//! One image from several places at once.
//!
//! All sources hold the same image, as its root says; whoever makes a [`Several`] has seen to that. A read goes to the source that will
//! have it soonest, by what it has to do already and by the speed that was measured. A source that does not answer within seconds is
//! passed over until it does; one that fails, or gives bytes that the caller can tell are wrong, is left out for good, unless it is
//! the last: then its failure is the read's.
//!
//! A store's read cannot be called off, so each runs in a thread of its own. One that hangs outlives this value and ends with its
//! store's budget or with the process: the end of a job does not wait for a server that is not needed.

use std::fmt::{self, Write as _};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{ImageFile, Observer, ReadAt, StoreError, StoreUrl};

/// How long a read waits before it is asked of another source too: this, or several times what it should take.
const PATIENCE: Duration = Duration::from_secs(3);
const LONGEST_PATIENCE: Duration = Duration::from_secs(30);
const TIMES_EXPECTED: f64 = 4.0;
/// A source that was not used for so long is tried again, however slow it was.
const MEASURED_FOR: Duration = Duration::from_secs(10);
/// How often it is told that no source answers.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// How much of an estimate the newest measurement is.
const NEWEST: f64 = 0.3;

/// What came from one source, and what became of it.
#[derive(Debug)]
pub struct Tally {
    url: String,
    bytes: AtomicU64,
    left_out: Mutex<Option<String>>,
}

impl Tally {
    /// For a source that was not used from the start if there is a reason.
    #[must_use]
    pub fn new(url: &StoreUrl, left_out: Option<String>) -> Arc<Self> {
        let (url, bytes) = (url.to_string(), AtomicU64::new(0));
        Arc::new(Self { url, bytes, left_out: Mutex::new(left_out) })
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// How many bytes came from it and were used.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Why it is not used any more, if it is not.
    #[must_use]
    pub fn left_out(&self) -> Option<String> {
        self.left_out.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// An image file with several sources.
pub struct Several {
    shared: Arc<Shared>,
    len_bytes: u64,
}

struct Shared {
    sources: Vec<Source>,
    loads: Mutex<Vec<Load>>,
    /// Buffers of earlier reads.
    spare: Mutex<Vec<Vec<u8>>>,
    observer: Option<Arc<dyn Observer>>,
}

struct Source {
    file: Box<dyn ImageFile>,
    tally: Arc<Tally>,
}

/// What a source has to do, and how fast it is.
#[derive(Debug, Clone)]
struct Load {
    outstanding_bytes: u64,
    /// Bytes a second, once measured, and when.
    speed: Option<(f64, Instant)>,
    /// It has not answered in time, and not since.
    stalled: bool,
    left_out: bool,
}

/// What became of a read of one source.
struct Answer {
    source: usize,
    result: io::Result<Vec<u8>>,
}

impl fmt::Debug for Several {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tallies = self.shared.sources.iter().map(|source| &source.tally);
        f.debug_list().entries(tallies).finish()
    }
}

impl Several {
    /// The same image in these files, which are equally long. At least one.
    #[must_use]
    pub fn new(
        sources: Vec<(Box<dyn ImageFile>, Arc<Tally>)>,
        observer: Option<Arc<dyn Observer>>,
    ) -> Self {
        let len_bytes = sources.first().map_or(0, |(file, _)| file.len_bytes());
        let load = Load { outstanding_bytes: 0, speed: None, stalled: false, left_out: false };
        let loads = Mutex::new(vec![load; sources.len()]);
        let sources = sources.into_iter().map(|(file, tally)| Source { file, tally }).collect();
        let shared = Shared { sources, loads, spare: Mutex::default(), observer };
        Self { shared: Arc::new(shared), len_bytes }
    }

    fn read(
        &self,
        buf: &mut [u8],
        offset: u64,
        is_right: &dyn Fn(&[u8]) -> bool,
    ) -> io::Result<()> {
        let shared = &self.shared;
        let (sender, answers) = channel();
        let (mut asked, mut waiting) = (Vec::new(), Vec::new());
        let (mut failed, mut wrong) = (None, None);
        let began = Instant::now();
        let mut told = None;
        loop {
            if let Some(next) = shared.pick(&asked, buf.len(), waiting.is_empty()) {
                asked.push(next);
                waiting.push(next);
                shared.ask(next, offset, buf.len(), &sender);
            } else if waiting.is_empty() {
                break;
            }
            match answers.recv_timeout(shared.patience(buf.len())) {
                Ok(Answer { source, result }) => {
                    waiting.retain(|other| *other != source);
                    match result {
                        Ok(bytes) if is_right(&bytes) => {
                            buf.copy_from_slice(&bytes);
                            shared.recycle(bytes);
                            let len = buf.len() as u64;
                            shared.sources[source].tally.bytes.fetch_add(len, Ordering::Relaxed);
                            shared.resumed(told);
                            return Ok(());
                        }
                        Ok(bytes) => {
                            let why = format!("what it has at byte {offset} is not the image's");
                            shared.leave_out(source, why);
                            wrong = Some(bytes);
                        }
                        // The sources are not to blame, and the others need not be asked.
                        Err(error) if is_cancelled(&error) => return Err(error),
                        Err(error) => {
                            shared.leave_out(source, chain(&error));
                            failed = Some(error);
                        }
                    }
                }
                // This function holds a sender: they cannot all be gone.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    shared.stalled(&waiting, began, &mut told);
                }
            }
        }
        shared.resumed(told);
        match (wrong, failed) {
            // The caller finds out, and can say what of the image it is.
            (Some(bytes), _) => {
                buf.copy_from_slice(&bytes);
                Ok(())
            }
            (None, Some(error)) => Err(error),
            (None, None) => Err(io::Error::other("the image has no source")),
        }
    }
}

impl Shared {
    fn loads(&self) -> MutexGuard<'_, Vec<Load>> {
        self.loads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The source that will have so many bytes soonest, of those that were not asked; one that is stalled only if `any` will do.
    fn pick(&self, asked: &[usize], len: usize, any: bool) -> Option<usize> {
        let loads = self.loads();
        let fastest = fastest(&loads);
        let soonest = |stalled: bool| {
            loads
                .iter()
                .enumerate()
                .filter(|(index, load)| {
                    !load.left_out && load.stalled == stalled && !asked.contains(index)
                })
                .min_by(|(_, a), (_, b)| {
                    a.seconds(len, fastest).total_cmp(&b.seconds(len, fastest))
                })
                .map(|(index, _)| index)
        };
        soonest(false).or_else(|| if any { soonest(true) } else { None })
    }

    /// How long to wait for so many bytes before another source is asked.
    fn patience(&self, len: usize) -> Duration {
        let loads = self.loads();
        let fastest = fastest(&loads);
        let slowest = loads
            .iter()
            .filter(|load| !load.left_out && load.outstanding_bytes > 0 && load.speed.is_some())
            .map(|load| load.seconds(len, fastest))
            .fold(0.0, f64::max);
        Duration::try_from_secs_f64(slowest * TIMES_EXPECTED)
            .unwrap_or(LONGEST_PATIENCE)
            .clamp(PATIENCE, LONGEST_PATIENCE)
    }

    /// Starts to read from a source; the answer comes over the channel.
    fn ask(self: &Arc<Self>, source: usize, offset: u64, len: usize, sender: &Sender<Answer>) {
        let load_bytes = {
            let mut loads = self.loads();
            loads[source].outstanding_bytes += len as u64;
            loads[source].outstanding_bytes
        };
        let (shared, answers) = (Arc::clone(self), sender.clone());
        let read = move || {
            let spare = shared.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut bytes = spare.unwrap_or_default();
            bytes.resize(len, 0);
            let began = Instant::now();
            let result = shared.sources[source].file.read_exact_at(&mut bytes, offset);
            shared.answered(source, len, load_bytes, began.elapsed(), result.is_ok());
            // Whoever asked may have it from elsewhere by now.
            let _ = answers.send(Answer { source, result: result.map(|()| bytes) });
        };
        if let Err(error) = std::thread::Builder::new().name("source".to_owned()).spawn(read) {
            self.answered(source, len, load_bytes, Duration::ZERO, false);
            // Received by the same thread.
            let _ = sender.send(Answer { source, result: Err(error) });
        }
    }

    fn answered(&self, source: usize, len: usize, load_bytes: u64, took: Duration, well: bool) {
        let load = &mut self.loads()[source];
        load.outstanding_bytes = load.outstanding_bytes.saturating_sub(len as u64);
        if well && std::mem::take(&mut load.stalled) {
            // How long it hung says nothing of how fast it is.
            load.speed = None;
        } else if well {
            // What was under way before it was served in the same time.
            #[allow(clippy::cast_precision_loss, reason = "an estimate")]
            let newest = load_bytes as f64 / took.as_secs_f64().max(1e-6);
            let speed = match load.speed {
                Some((speed, _)) => speed + (newest - speed) * NEWEST,
                None => newest,
            };
            load.speed = Some((speed, Instant::now()));
        }
    }

    /// Uses a source no more, unless it is the last.
    fn leave_out(&self, source: usize, why: String) {
        {
            let mut loads = self.loads();
            let left = loads.iter().filter(|load| !load.left_out).count();
            if loads[source].left_out || left <= 1 {
                return;
            }
            loads[source].left_out = true;
        }
        let tally = &self.sources[source].tally;
        if let Some(observer) = &self.observer {
            observer.left_out(&format!("{} is not used any more: {why}", tally.url));
        }
        *tally.left_out.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    /// Passes over those that do not answer; says so if there are no others.
    fn stalled(&self, waiting: &[usize], began: Instant, told: &mut Option<Instant>) {
        let all = {
            let mut loads = self.loads();
            waiting.iter().for_each(|source| loads[*source].stalled = true);
            loads.iter().all(|load| load.left_out || load.stalled)
        };
        if all
            && told.is_none_or(|told| told.elapsed() >= TELL_EVERY)
            && let Some(observer) = &self.observer
        {
            *told = Some(Instant::now());
            let seconds = began.elapsed().as_secs();
            observer.stalled(&format!("no source of the image answers ({seconds} s)"));
        }
    }

    fn resumed(&self, told: Option<Instant>) {
        if told.is_some()
            && let Some(observer) = &self.observer
        {
            observer.resumed();
        }
    }

    fn recycle(&self, bytes: Vec<u8>) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < 2 * self.sources.len() {
            spare.push(bytes);
        }
    }
}

fn fastest(loads: &[Load]) -> f64 {
    loads.iter().filter_map(|load| load.speed).map(|(speed, _)| speed).fold(1.0, f64::max)
}

impl Load {
    /// How long so many bytes more will take; of a source whose speed is not known, as if it were as fast as the fastest.
    fn seconds(&self, len: usize, fastest: f64) -> f64 {
        let speed = match self.speed {
            Some((speed, at)) if self.outstanding_bytes > 0 || at.elapsed() < MEASURED_FOR => speed,
            _ => fastest,
        };
        #[allow(clippy::cast_precision_loss, reason = "an estimate")]
        let bytes = (self.outstanding_bytes + len as u64) as f64;
        bytes / speed.max(1.0)
    }
}

fn is_cancelled(error: &io::Error) -> bool {
    matches!(StoreError::find(error), Some(StoreError::Cancelled { .. }))
}

/// An error of a store in full.
fn chain(error: &io::Error) -> String {
    let mut text = error.to_string();
    let found = StoreError::find(error).map(|error| error as &dyn std::error::Error);
    let mut cause = found.and_then(std::error::Error::source);
    while let Some(error) = cause {
        // Writing to a string does not fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

impl ReadAt for Several {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read(buf, offset, &|_| true)
    }

    fn read_checked_at(
        &self,
        buf: &mut [u8],
        offset: u64,
        is_right: &dyn Fn(&[u8]) -> bool,
    ) -> io::Result<()> {
        self.read(buf, offset, is_right)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len_bytes)
    }
}

impl ImageFile for Several {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }
}

#[cfg(test)]
mod tests;
