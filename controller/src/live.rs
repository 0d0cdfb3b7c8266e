//! What is true of the moment and need not survive a restart: progress, and when each job's agent was last heard of.
//!
//! Also the bell of each job: rung after every stored change, so that its driver, the answers that are held open and the event
//! streams look again at once instead of polling fast.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agent_api::{Report, StageProgress};
use tokio::sync::watch;

/// Silence is counted from the controller's start when an agent was not heard of since: it had no chance to speak before.
#[derive(Debug)]
pub struct Live {
    started: Instant,
    jobs: Mutex<HashMap<i64, LiveJob>>,
}

#[derive(Debug)]
struct LiveJob {
    bell: watch::Sender<u64>,
    heard: Option<Instant>,
    heard_count: u64,
    boot_id: String,
    report: Option<Report>,
}

impl Default for LiveJob {
    fn default() -> Self {
        Self {
            bell: watch::Sender::new(0),
            heard: None,
            heard_count: 0,
            boot_id: String::new(),
            report: None,
        }
    }
}

impl Default for Live {
    fn default() -> Self {
        Self { started: Instant::now(), jobs: Mutex::default() }
    }
}

impl Live {
    fn jobs(&self) -> MutexGuard<'_, HashMap<i64, LiveJob>> {
        // A panic elsewhere leaves the map whole: its values are replaced, never half changed.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells everybody who waits for this job to look again.
    pub fn ring(&self, job: i64) {
        self.jobs()
            .entry(job)
            .or_default()
            .bell
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Hears the job's bell.
    pub fn listen(&self, job: i64) -> watch::Receiver<u64> {
        self.jobs().entry(job).or_default().bell.subscribe()
    }

    /// The job's agent spoke.
    pub fn heard(&self, job: i64) {
        let mut jobs = self.jobs();
        let live = jobs.entry(job).or_default();
        live.heard = Some(Instant::now());
        live.heard_count += 1;
    }

    /// How often the job's agent spoke since the controller's start.
    #[must_use]
    pub fn heard_count(&self, job: i64) -> u64 {
        self.jobs().get(&job).map_or(0, |live| live.heard_count)
    }

    /// How long the job's agent has not spoken.
    #[must_use]
    pub fn silence(&self, job: i64) -> Duration {
        self.jobs().get(&job).and_then(|live| live.heard).unwrap_or(self.started).elapsed()
    }

    /// Takes a report of a boot; older ones than the last are dropped. Returns whether it was taken.
    pub fn report(&self, job: i64, boot_id: &str, report: Report) -> bool {
        let mut jobs = self.jobs();
        let live = jobs.entry(job).or_default();
        let stale = live.boot_id == boot_id
            && live.report.as_ref().is_some_and(|last| last.sequence >= report.sequence);
        if stale {
            return false;
        }
        boot_id.clone_into(&mut live.boot_id);
        live.report = Some(report);
        live.bell.send_modify(|count| *count = count.wrapping_add(1));
        true
    }

    /// How far the job's worker is.
    #[must_use]
    pub fn progress(&self, job: i64) -> Option<StageProgress> {
        self.jobs()
            .get(&job)
            .and_then(|live| live.report.as_ref())
            .map(|report| report.progress.clone())
    }

    /// Forgets a job that is over. Who listens hears the bell a last time.
    pub fn forget(&self, job: i64) {
        self.jobs().remove(&job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_api::Stage;

    fn report(sequence: u64) -> Report {
        let progress = StageProgress {
            stage: Stage::Capturing,
            done_bytes: sequence,
            total_bytes: 10,
            stored_bytes: 0,
            elapsed_ms: 0,
            stalled: None,
        };
        Report { sequence, progress }
    }

    #[test]
    fn old_reports_are_dropped_but_a_new_boot_counts_anew() {
        let live = Live::default();
        assert!(live.report(1, "a", report(5)));
        assert!(!live.report(1, "a", report(5)));
        assert!(!live.report(1, "a", report(4)));
        assert!(live.report(1, "b", report(1)));
        assert_eq!(live.progress(1).unwrap().done_bytes, 1);
    }

    #[test]
    fn silence_ends_when_the_agent_speaks() {
        let live = Live::default();
        let before = live.silence(1);
        live.heard(1);
        assert!(live.silence(1) <= before + Duration::from_secs(1));
        assert_eq!(live.heard_count(1), 1);
    }
}
