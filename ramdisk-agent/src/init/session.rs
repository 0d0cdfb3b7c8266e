//! The agent's life with its controller: redeem the ticket, run the hooks, ask for work, do it, report, leave when told.
//!
//! Heartbeats and log lines go out from tasks of their own, so that neither waits for a job nor a job for them. Progress is
//! dropped when the controller does not answer; an outcome is sent until it is acknowledged. Only the controller's own word
//! ends a session: a network that fails, or a controller that is being restarted, never does.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agent_api::{
    ErrorKind, Failure, Finish, Heartbeat, JobAction, JobSpec, Note, Orders, Outcome, Redeem,
    Report, StageProgress, Ticket, Work,
};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::console::Log;
use super::controller::{CallError, Controller};
use super::net::{Mac, chain};
use super::worker::{self, WorkerCommand};
use super::{clock, hooks, kernel, machine};
use crate::store::shown;

/// Between two attempts to reach the controller; the last repeats.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];
/// How often progress is reported.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// How often lines of the log are sent.
const LOG_EVERY: Duration = Duration::from_secs(1);
/// About what one request with log lines brings; the controller takes twice that.
const MAX_LOG_LEN: usize = 32 << 10;
/// Heartbeats are at least this far apart, whatever the controller says, and at most [`HEARTBEAT_MAX`].
const HEARTBEAT_MIN: Duration = Duration::from_secs(1);
const HEARTBEAT_MAX: Duration = Duration::from_secs(30);
/// How long a controller that cannot be reached, or shows another key, is waited for before the ticket is redeemed. Until then
/// nothing ties this machine to its job: leaving gets it a new boot script, or its own disk.
pub const REDEEM_LIMIT: Duration = Duration::from_secs(600);
/// How often a capture goes on that was cut off, the first time included.
const CAPTURE_ATTEMPTS: u32 = 3;
/// How soon a task that has panicked starts again.
const TASK_REST: Duration = Duration::from_secs(1);
/// How long the last lines of the log may take to reach the controller before the machine leaves.
const LAST_LOG_LIMIT: Duration = Duration::from_secs(3);
/// How long the controller may take to hear how the machine leaves.
const NOTE_LIMIT: Duration = Duration::from_secs(10);

/// What a session needs.
#[derive(Debug)]
pub struct Session {
    /// The controller.
    pub controller: Controller,
    /// This boot's ticket.
    pub ticket: Ticket,
    /// How long to try to redeem the ticket, usually [`REDEEM_LIMIT`].
    pub redeem_limit: Duration,
    /// The card that the machine booted from.
    pub boot_mac: Option<Mac>,
    /// The folder of hooks.
    pub hooks: PathBuf,
    /// What runs a job.
    pub worker: WorkerCommand,
    /// What loads the kernel of a restored system.
    pub kernel_loader: WorkerCommand,
    /// The log.
    pub log: Log,
}

/// Why a session ended without an order to leave.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The ticket is void, used, or another machine's.
    #[error("the controller at {url} does not take this boot's ticket")]
    Ticket {
        /// The controller.
        url: String,
        /// Its answer.
        #[source]
        source: CallError,
    },
    /// Nobody answered for too long.
    #[error("giving up after {} s without a session", .limit.as_secs())]
    Unreachable {
        /// How long it was tried.
        limit: Duration,
        /// The last error.
        #[source]
        source: CallError,
    },
    /// The credential is void: the job was taken away.
    #[error("the controller at {url} has taken this machine's job away")]
    Revoked {
        /// The controller.
        url: String,
        /// Its answer.
        #[source]
        source: Arc<CallError>,
    },
    /// The kernel has no random numbers.
    #[error("cannot make up an id for this boot: the kernel has no random numbers")]
    Random,
}

/// What the tasks of a session share.
#[derive(Debug)]
struct Shared {
    controller: Controller,
    log: Log,
    boot_id: String,
    /// The number of the last report; the controller drops reports that are not newer than the last.
    reports: AtomicU64,
    /// The job that a worker runs now.
    job: watch::Sender<Option<String>>,
    /// The latest job that is to be cancelled.
    cancelled: watch::Sender<Option<String>>,
    /// The controller's last word, once its credential is void.
    revoked: watch::Sender<Option<Arc<CallError>>>,
}

impl Shared {
    fn obey(&self, orders: Orders) {
        if orders.cancel_job.is_some() {
            self.cancelled.send_replace(orders.cancel_job);
        }
    }

    /// Looks at a failed call: a void credential ends the session.
    fn note(&self, error: CallError) -> Result<(), Refusal> {
        if !error.is_revocation() {
            return Ok(());
        }
        let source = Arc::new(error);
        self.revoked.send_replace(Some(Arc::clone(&source)));
        Err(self.refusal(source))
    }

    fn refusal(&self, source: Arc<CallError>) -> Refusal {
        Refusal::Revoked { url: self.controller.url().to_owned(), source }
    }
}

impl Session {
    /// Lives the session; how to leave.
    pub async fn live(self) -> Result<Finish, Refusal> {
        let boot_id = random_id().ok_or(Refusal::Random)?;
        let log = self.log.clone();
        let session = self.redeem(&boot_id).await?;
        log.say(format!(
            "this is {}, for the controller at {}",
            session.host,
            self.controller.url()
        ));
        match clock::set_if_off(session.unix_time_secs) {
            Ok(Some(off)) => log.say(format!("clock set: it was off by {off} s")),
            Ok(None) => {}
            Err(errno) => log.say(format!("cannot set the clock: {}", errno.desc())),
        }
        let shared = Arc::new(Shared {
            controller: self.controller.clone(),
            log: log.clone(),
            boot_id,
            reports: AtomicU64::new(0),
            job: watch::Sender::new(None),
            cancelled: watch::Sender::new(None),
            revoked: watch::Sender::new(None),
        });
        let every = Duration::from_secs(session.heartbeat_secs).clamp(HEARTBEAT_MIN, HEARTBEAT_MAX);
        // Ended with the set, when this function returns.
        let mut tasks = JoinSet::new();
        let shared_task = Arc::clone(&shared);
        tasks.spawn(lasting("heartbeat", log.clone(), move || {
            beat(Arc::clone(&shared_task), every)
        }));
        let shared_task = Arc::clone(&shared);
        tasks.spawn(lasting("log", log.clone(), move || send_log(Arc::clone(&shared_task))));
        let unprepared = hooks::run_all(&self.hooks, hooks::LIMIT, &log).await;
        let how = self.work(&shared, unprepared).await?;
        // What cannot be sent in this time stays on the console.
        let _ = tokio::time::timeout(LAST_LOG_LIMIT, flush_log(&shared)).await;
        Ok(how)
    }

    async fn redeem(&self, boot_id: &str) -> Result<agent_api::Session, Refusal> {
        let redeem = Redeem {
            secret: self.ticket.secret.clone(),
            boot_id: boot_id.to_owned(),
            machine: machine::inventory(self.boot_mac),
        };
        let mut pauses = Pauses::default();
        let until = Instant::now() + self.redeem_limit;
        loop {
            match self.controller.redeem(&redeem).await {
                Ok(session) => return Ok(session),
                Err(source) if source.is_final() => {
                    return Err(Refusal::Ticket { url: self.controller.url().to_owned(), source });
                }
                Err(source) if Instant::now() >= until => {
                    return Err(Refusal::Unreachable { limit: self.redeem_limit, source });
                }
                Err(error) => pauses.wait(&self.log, &chain(&error)).await,
            }
        }
    }

    /// Asks for work until told to leave. With `unprepared`, every job fails with it.
    async fn work(
        &self,
        shared: &Arc<Shared>,
        mut unprepared: Option<Failure>,
    ) -> Result<Finish, Refusal> {
        let mut revoked = shared.revoked.subscribe();
        let mut pauses = Pauses::default();
        let mut restored = None;
        loop {
            let asked = tokio::select! {
                asked = shared.controller.work() => asked,
                source = held(&mut revoked) => return Err(shared.refusal(source)),
            };
            match asked {
                Ok(work) => {
                    pauses = Pauses::default();
                    match work {
                        Work::Idle | Work::Unknown => sleep(PAUSES[0]).await,
                        Work::Finish { how: Finish::Kexec } => {
                            return Ok(self.load_kernel(shared, restored.as_ref()).await);
                        }
                        Work::Finish { how } => return Ok(how),
                        Work::Job(job) => {
                            let ended = self.job(shared, &job, unprepared.as_ref()).await?;
                            if let JobAction::Restore(_) = job.action {
                                restored = ended.is_done.then_some(*job);
                            }
                            unprepared = ended.hangs.or(unprepared);
                        }
                    }
                }
                Err(error) => {
                    let text = chain(&error);
                    shared.note(error)?;
                    pauses.wait(&shared.log, &text).await;
                }
            }
        }
    }

    /// Loads the kernel of the system that was restored; how to leave then. Both are told.
    async fn load_kernel(&self, shared: &Shared, restored: Option<&JobSpec>) -> Finish {
        let log = &shared.log;
        let Some(job) = restored else {
            log.say("this boot has restored no system that could be started: rebooting");
            return Finish::Reboot;
        };
        let loaded = match kernel::load(&self.kernel_loader, job, kernel::LIMIT).await {
            Ok(_) if !kernel::is_loaded() => Err("the kernel says that none is loaded".to_owned()),
            loaded => loaded,
        };
        let (text, how) = match loaded {
            Ok(what) => (format!("the machine starts {what}, by kexec"), Finish::Kexec),
            Err(why) => (
                format!("the restored system is not started by kexec: {why}; the machine reboots"),
                Finish::Reboot,
            ),
        };
        log.say(&text);
        let note = Note { text };
        let told = shared.controller.note(&job.id, &note);
        match tokio::time::timeout(NOTE_LIMIT, told).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => log.say(format!("the controller could not be told: {}", chain(&e))),
            Err(_) => log.say("the controller could not be told: it does not answer"),
        }
        how
    }

    /// Does a job and delivers its outcome.
    async fn job(
        &self,
        shared: &Arc<Shared>,
        job: &JobSpec,
        unprepared: Option<&Failure>,
    ) -> Result<JobEnd, Refusal> {
        let log = &shared.log;
        log.say(format!("job {}: {}", job.id, shown(&job.image_url)));
        let mut job = job.clone();
        if matches!(job.action, JobAction::Capture(_)) {
            job.image_id = Some(image_id(&shared.boot_id, &job.id));
        }
        shared.job.send_replace(Some(job.id.clone()));
        let worker::Ended { outcome, is_alive, .. } = match unprepared {
            Some(failure) => worker::Ended {
                outcome: Outcome::Failed(failure.clone()),
                is_alive: false,
                is_crash: false,
            },
            None => {
                let (progress, seen) = watch::channel(None);
                let reports = tokio::spawn(report(Arc::clone(shared), job.id.clone(), seen));
                let (mut cancelled, mut revoked) =
                    (shared.cancelled.subscribe(), shared.revoked.subscribe());
                let stop = async {
                    tokio::select! {
                        () = names(&mut cancelled, &job.id) => log.say("the job was cancelled: ending the worker"),
                        _ = held(&mut revoked) => log.say("the job was taken away: ending the worker"),
                    }
                };
                let mut stop = std::pin::pin!(stop);
                let mut attempts_left = CAPTURE_ATTEMPTS;
                let ended = loop {
                    let ended =
                        worker::run(&self.worker, &job, &progress, stop.as_mut(), log).await;
                    attempts_left -= 1;
                    match &ended.outcome {
                        Outcome::Failed(failure)
                            if attempts_left > 0 && ended.may_go_on(&job.action) =>
                        {
                            let why = &failure.message;
                            log.say(format!("the capture was cut off: {why}; it goes on"));
                        }
                        _ => break ended,
                    }
                };
                reports.abort();
                ended
            }
        };
        match &outcome {
            Outcome::Succeeded(_) => log.say(format!("job {} is done", job.id)),
            Outcome::Failed(failure) => {
                log.say(format!("job {} failed: {}", job.id, failure.message))
            }
        }
        let mut pauses = Pauses::default();
        loop {
            match shared.controller.outcome(&job.id, &outcome).await {
                Ok(_) => break,
                Err(error) if error.is_final() => {
                    log.say(format!("the controller does not want the outcome: {}", chain(&error)));
                    shared.note(error)?;
                    break;
                }
                Err(error) => pauses.wait(log, &chain(&error)).await,
            }
        }
        shared.job.send_replace(None);
        let hangs = is_alive.then(|| Failure {
            kind: ErrorKind::Disk,
            message: format!(
                "the worker of job {} hangs in the kernel: restart this machine",
                job.id
            ),
        });
        Ok(JobEnd { is_done: matches!(outcome, Outcome::Succeeded(_)), hangs })
    }
}

/// How a job ended, as far as it matters for what comes next.
struct JobEnd {
    is_done: bool,
    /// If its worker is still there: what later jobs fail with, since two workers must never write to one disk.
    hangs: Option<Failure>,
}

/// Waits until a channel holds something. A channel whose sender is gone never will.
async fn held<T: Clone>(receiver: &mut watch::Receiver<Option<T>>) -> T {
    let found = match receiver.wait_for(Option::is_some).await {
        Ok(held) => held.clone(),
        Err(_) => None,
    };
    match found {
        Some(found) => found,
        None => std::future::pending().await,
    }
}

/// Waits until a channel holds this name.
async fn names(receiver: &mut watch::Receiver<Option<String>>, name: &str) {
    if receiver.wait_for(|held| held.as_deref() == Some(name)).await.is_err() {
        std::future::pending().await
    }
}

/// Pauses between attempts, and what is said of them: the first time, and whenever the reason changes.
#[derive(Debug, Default)]
struct Pauses {
    attempts: usize,
    said: String,
}

impl Pauses {
    async fn wait(&mut self, log: &Log, why: &str) {
        if self.said != why {
            log.say(format!("{why}; trying again"));
            why.clone_into(&mut self.said);
        }
        let pause = PAUSES[self.attempts.min(PAUSES.len() - 1)];
        self.attempts += 1;
        sleep(pause).await;
    }
}

/// Runs a task; one that panics is a bug, is reported, and starts again.
async fn lasting<F: Future<Output = ()> + Send + 'static>(
    name: &'static str,
    log: Log,
    task: impl Fn() -> F,
) {
    loop {
        // A set of its own, so that the task ends with this one.
        let mut running = JoinSet::new();
        running.spawn(task());
        match running.join_next().await {
            Some(Err(e)) if e.is_panic() => {
                log.say(format!("the {name} task has panicked: starting it again"))
            }
            _ => return,
        }
        sleep(TASK_REST).await;
    }
}

async fn beat(shared: Arc<Shared>, every: Duration) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let heartbeat = Heartbeat {
            boot_id: shared.boot_id.clone(),
            uptime_secs: clock::uptime_secs(),
            job: shared.job.borrow().clone(),
        };
        match shared.controller.heartbeat(&heartbeat).await {
            Ok(orders) => shared.obey(orders),
            // The next one is due soon; whether the controller can be reached is for the work loop to say.
            Err(error) => {
                if shared.note(error).is_err() {
                    return;
                }
            }
        }
    }
}

/// Reports a job's progress, at most once a second, always the newest.
async fn report(
    shared: Arc<Shared>,
    job: String,
    mut seen: watch::Receiver<Option<StageProgress>>,
) {
    while seen.changed().await.is_ok() {
        let Some(progress) = seen.borrow_and_update().clone() else { continue };
        let sequence = shared.reports.fetch_add(1, Ordering::Relaxed) + 1;
        match shared.controller.report(&job, &Report { sequence, progress }).await {
            Ok(orders) => shared.obey(orders),
            // Dropped: newer progress follows.
            Err(error) => {
                if shared.note(error).is_err() {
                    return;
                }
            }
        }
        sleep(REPORT_EVERY).await;
    }
}

async fn send_log(shared: Arc<Shared>) {
    loop {
        sleep(LOG_EVERY).await;
        flush_log(&shared).await;
    }
}

/// Sends what the backlog holds, until it is empty or the controller does not take it.
async fn flush_log(shared: &Shared) {
    while let Some(lines) = shared.log.take(MAX_LOG_LEN) {
        match shared.controller.log(lines.clone()).await {
            Ok(()) => {}
            // It will not take them later either.
            Err(error) if error.is_final() => return,
            Err(_) => {
                shared.log.put_back(&lines);
                return;
            }
        }
    }
}

/// What all attempts of a capture in this boot have in common: a UUID.
fn image_id(boot_id: &str, job: &str) -> String {
    let hash = blake3::hash(format!("{boot_id} {job}").as_bytes());
    let bytes = hash.as_bytes().first_chunk().expect("a hash has 32 bytes");
    uuid::Builder::from_random_bytes(*bytes).into_uuid().to_string()
}

/// 128 random bits in hex.
fn random_id() -> Option<String> {
    use ring::rand::SecureRandom;
    let mut bytes = [0_u8; 16];
    ring::rand::SystemRandom::new().fill(&mut bytes).ok()?;
    Some(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_starts_again() {
        let log = Log::to(Vec::new());
        let runs = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&runs);
        let task = move || {
            let run = counted.fetch_add(1, Ordering::Relaxed);
            async move { assert!(run >= 2, "a bug, for this test") }
        };
        lasting("test", log.clone(), task).await;
        assert_eq!(runs.load(Ordering::Relaxed), 3);
        assert!(log.take(1000).unwrap().contains("the test task has panicked"));
    }
}
