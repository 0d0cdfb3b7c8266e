//! What a disk was asked for and has not answered yet.
//!
//! A thread that waits for a disk that hangs is in the kernel and can be neither interrupted nor asked. So every request is noted
//! here before it is made, and whoever shows the progress looks how old the oldest is.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A request that takes longer than this is worth telling.
const STALLED_AFTER: Duration = Duration::from_secs(5);

/// The requests to one disk that are under way.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    sector_bytes: u32,
    /// One place for each thread that waits; places are used again.
    requests: Mutex<Vec<Option<Request>>>,
}

#[derive(Debug, Clone, Copy)]
struct Request {
    since: Instant,
    doing: &'static str,
    /// `None`: it is about the whole disk.
    offset: Option<u64>,
}

/// A request that is under way until this is dropped.
#[derive(Debug)]
pub struct Pending<'a> {
    watch: &'a Watch,
    place: usize,
}

impl Watch {
    pub(super) fn new(path: PathBuf, sector_bytes: u32) -> Self {
        Self { path, sector_bytes, requests: Mutex::new(Vec::new()) }
    }

    /// Of a disk that is only about to be opened: nothing is known of it but its path.
    #[must_use]
    pub fn of_opening(path: &Path) -> Self {
        Self::new(path.to_owned(), 512)
    }

    pub(crate) fn begin(&self, doing: &'static str, offset: Option<u64>) -> Pending<'_> {
        let request = Some(Request { since: Instant::now(), doing, offset });
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let place = requests.iter().position(Option::is_none).unwrap_or_else(|| {
            requests.push(None);
            requests.len() - 1
        });
        requests[place] = request;
        Pending { watch: self, place }
    }

    /// What the disk does not answer, if it does not.
    #[must_use]
    pub fn stalled(&self) -> Option<String> {
        self.older_than(STALLED_AFTER)
    }

    fn older_than(&self, age: Duration) -> Option<String> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = requests.iter().flatten().min_by_key(|request| request.since)?;
        let waited = oldest.since.elapsed();
        if waited < age {
            return None;
        }
        let place = oldest
            .offset
            .map(|at| format!(" at LBA {}", at / u64::from(self.sector_bytes)))
            .unwrap_or_default();
        Some(format!(
            "{} does not answer: {}{place} ({} s)",
            self.path.display(),
            oldest.doing,
            waited.as_secs()
        ))
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let mut requests = self.watch.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests[self.place] = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_request_is_told() {
        let watch = Watch::new("/dev/x".into(), 4096);
        assert_eq!(watch.older_than(Duration::ZERO), None);
        let first = watch.begin("writing", Some(40_960));
        let second = watch.begin("flushing", None);
        let text = "/dev/x does not answer: writing at LBA 10 (0 s)";
        assert_eq!(watch.older_than(Duration::ZERO).as_deref(), Some(text));
        assert_eq!(watch.stalled(), None);
        drop(first);
        let third = watch.begin("reading", Some(0));
        let text = "/dev/x does not answer: flushing (0 s)";
        assert_eq!(watch.older_than(Duration::ZERO).as_deref(), Some(text));
        drop((second, third));
        assert_eq!(watch.older_than(Duration::ZERO), None);
        assert_eq!(watch.requests.lock().unwrap().len(), 2);
    }
}
