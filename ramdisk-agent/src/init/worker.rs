//! One job in a child of the same binary, so that whatever happens to the job does not happen to PID 1.
//!
//! The job goes in as JSON on standard input. Out come JSON lines: `{"progress": …}` any number of times and, last,
//! `{"outcome": …}`; everything on standard error is log. A child that ends without an outcome has crashed: the outcome then says
//! how, with its last lines. Lines are bounded in length and log lines in number, so that no child can fill the memory.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::future::Future;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agent_api::{ErrorKind, Failure, JobAction, JobSpec, Outcome, StageProgress};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::children::{self, OwnChild};
use super::console::{Log, MAX_LINE_LEN};

/// The worker goes before the supervisor when memory runs out.
const OOM_SCORE: i32 = 500;
/// The longest line of the protocol: an outcome that lists raw partitions.
const MAX_PROTOCOL_LINE: usize = 1 << 20;
/// How many lines of a crashed worker are quoted.
const LAST_LINES: usize = 5;
/// Log lines that a worker may write in a second.
const LOG_LINES_PER_SEC: u32 = 100;
/// How long a worker may take to end after SIGTERM, and the kernel to end it after SIGKILL.
const TERM_LIMIT: Duration = Duration::from_secs(10);
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long output may go on after the end, held open by somebody else.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// What to run.
#[derive(Debug, Clone)]
pub struct WorkerCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments; no secrets, as everybody can read them.
    pub args: Vec<OsString>,
}

impl WorkerCommand {
    /// This same binary: `imprint-agent run -`.
    #[must_use]
    pub fn this_binary() -> Self {
        Self { program: "/proc/self/exe".into(), args: vec!["run".into(), "-".into()] }
    }

    /// This same binary: `imprint-agent load-kernel -`.
    #[must_use]
    pub fn this_binary_as_kernel_loader() -> Self {
        Self { program: "/proc/self/exe".into(), args: vec!["load-kernel".into(), "-".into()] }
    }

    /// As a child that is spoken to through pipes, and is killed when nobody holds it any more.
    pub(super) fn piped(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .arg0("imprint-agent")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }
}

/// A line of the protocol. Both may be missing in lines of newer workers.
#[derive(Debug, Deserialize)]
struct Line {
    #[serde(default)]
    progress: Option<StageProgress>,
    #[serde(default)]
    outcome: Option<Outcome>,
}

/// What was heard of a worker.
#[derive(Debug, Default)]
struct Heard {
    outcome: Option<Outcome>,
    last_lines: VecDeque<String>,
}

/// How a worker ended.
#[derive(Debug)]
pub struct Ended {
    /// The job's outcome.
    pub outcome: Outcome,
    /// Whether it could not be ended: it hangs in the kernel and may still write.
    pub is_alive: bool,
    /// Whether it was ended from outside of the agent, or by a defect of its own, without an outcome.
    pub is_crash: bool,
}

impl Ended {
    /// Whether another worker of the same job may go on where this one was cut off: a capture whose worker died or whose store went away,
    /// and which nobody wanted to end.
    #[must_use]
    pub fn may_go_on(&self, action: &JobAction) -> bool {
        let Outcome::Failed(failure) = &self.outcome else { return false };
        let cut_off = self.is_crash || failure.kind == ErrorKind::Network;
        cut_off && !self.is_alive && matches!(action, JobAction::Capture(_))
    }
}

/// Runs a job to its end; progress goes to `progress`. Once `stop` is ready, the worker is asked to end, then forced.
pub async fn run(
    command: &WorkerCommand,
    job: &JobSpec,
    progress: &watch::Sender<Option<StageProgress>>,
    stop: impl Future<Output = ()>,
    log: &Log,
) -> Ended {
    let mut worker = match Worker::start(command, job, progress, log) {
        Ok(worker) => worker,
        Err(e) => {
            let message = format!("cannot start the worker {}: {e}", command.program.display());
            let outcome = failed(ErrorKind::Internal, message);
            return Ended { outcome, is_alive: false, is_crash: false };
        }
    };
    let mut stop = pin!(stop);
    let (ended, stopped) = tokio::select! {
        ended = worker.own.child.wait() => (Some(ended), false),
        () = &mut stop => (worker.end(log).await, true),
    };
    let heard = worker.drain().await;
    let is_alive = ended.is_none();
    let is_crash = heard.outcome.is_none() && !is_alive && !stopped;
    let outcome = match (heard.outcome, ended) {
        (Some(outcome), _) => outcome,
        (None, None) => failed(
            ErrorKind::Cancelled,
            format!(
                "the worker was killed and has not ended after {} s: a disk hangs",
                KILL_LIMIT.as_secs()
            ),
        ),
        (None, Some(_)) if stopped => failed(ErrorKind::Cancelled, "the worker was stopped"),
        (None, Some(status)) => {
            failed(ErrorKind::Internal, crash_message(status, &heard.last_lines))
        }
    };
    Ended { outcome, is_alive, is_crash }
}

fn failed(kind: ErrorKind, message: impl Into<String>) -> Outcome {
    Outcome::Failed(Failure { kind, message: message.into() })
}

fn crash_message(status: std::io::Result<ExitStatus>, last_lines: &VecDeque<String>) -> String {
    let mut text = match status {
        Ok(status) => match (status.signal(), status.code()) {
            (Some(number), _) => match Signal::try_from(number) {
                Ok(signal) => format!("worker ended by signal {number} ({signal})"),
                Err(_) => format!("worker ended by signal {number}"),
            },
            (None, code) => {
                format!("worker ended without an outcome, exit code {}", code.unwrap_or(-1))
            }
        },
        Err(e) => format!("cannot wait for the worker: {e}"),
    };
    if last_lines.is_empty() {
        text.push_str("; it wrote nothing to the log");
    } else {
        text.push_str("; its last lines: ");
        text.push_str(&Vec::from_iter(last_lines.iter().map(String::as_str)).join(" | "));
    }
    text
}

struct Worker {
    own: OwnChild,
    heard: Arc<Mutex<Heard>>,
    readers: JoinSet<()>,
}

impl Worker {
    fn start(
        command: &WorkerCommand,
        job: &JobSpec,
        progress: &watch::Sender<Option<StageProgress>>,
        log: &Log,
    ) -> std::io::Result<Self> {
        let text = serde_json::to_vec(job)?;
        let mut own = children::spawn(command.piped().process_group(0))?;
        if let Err(e) = children::set_oom_score(own.pid().as_raw(), OOM_SCORE) {
            log.say(format!(
                "cannot tell the kernel to end the worker first when memory runs out: {e}"
            ));
        }
        let missing = || std::io::Error::other("a pipe to it is missing");
        let mut stdin = own.child.stdin.take().ok_or_else(missing)?;
        let stdout = own.child.stdout.take().ok_or_else(missing)?;
        let stderr = own.child.stderr.take().ok_or_else(missing)?;
        let heard = Arc::new(Mutex::new(Heard::default()));
        let mut readers = JoinSet::new();
        readers.spawn(async move {
            // A worker that does not read its job ends without an outcome, and that is reported.
            let _ = stdin.write_all(&text).await;
        });
        readers.spawn(read_protocol(stdout, progress.clone(), Arc::clone(&heard), log.clone()));
        readers.spawn(read_log(stderr, Arc::clone(&heard), log.clone()));
        Ok(Self { own, heard, readers })
    }

    /// Asks the worker to end, then forces it; `None` if even that does not help.
    async fn end(&mut self, log: &Log) -> Option<std::io::Result<ExitStatus>> {
        let pid = self.own.pid();
        // ESRCH: it has ended by itself, which the wait will tell.
        let _ = kill(pid, Signal::SIGTERM);
        if let Ok(ended) = timeout(TERM_LIMIT, self.own.child.wait()).await {
            return Some(ended);
        }
        log.say(format!(
            "the worker has not ended {} s after SIGTERM: killing it",
            TERM_LIMIT.as_secs()
        ));
        // The whole group, so that nothing of it goes on writing. ESRCH as above.
        let _ = kill(Pid::from_raw(-pid.as_raw()), Signal::SIGKILL);
        timeout(KILL_LIMIT, self.own.child.wait()).await.ok()
    }

    /// Reads what is left in the pipes.
    async fn drain(&mut self) -> Heard {
        let readers = async { while self.readers.join_next().await.is_some() {} };
        // Somebody else holds the pipes open: what was heard so far counts.
        let _ = timeout(DRAIN_LIMIT, readers).await;
        self.readers.abort_all();
        std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn read_protocol(
    stdout: impl AsyncRead + Unpin,
    progress: watch::Sender<Option<StageProgress>>,
    heard: Arc<Mutex<Heard>>,
    log: Log,
) {
    let mut reader = BufReader::new(stdout);
    while let Some(line) = next_line(&mut reader, MAX_PROTOCOL_LINE).await {
        match serde_json::from_str::<Line>(&line) {
            Ok(Line { progress: now, outcome }) => {
                if let Some(now) = now {
                    progress.send_replace(Some(now));
                }
                if let Some(outcome) = outcome {
                    heard.lock().unwrap_or_else(PoisonError::into_inner).outcome = Some(outcome);
                }
            }
            Err(_) => log.say(format!("the worker says something that is no message: {line}")),
        }
    }
}

async fn read_log(stderr: impl AsyncRead + Unpin, heard: Arc<Mutex<Heard>>, log: Log) {
    let mut reader = BufReader::new(stderr);
    let mut throttle = Throttle::new(Instant::now());
    while let Some(line) = next_line(&mut reader, MAX_LINE_LEN).await {
        if line.trim().is_empty() {
            continue;
        }
        let (pass, dropped) = throttle.admit(Instant::now());
        if dropped > 0 {
            log.say(format!("({dropped} lines of the worker were left out)"));
        }
        if pass {
            log.say(&line);
        }
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.last_lines.len() == LAST_LINES {
            heard.last_lines.pop_front();
        }
        heard.last_lines.push_back(line);
    }
}

/// Lets [`LOG_LINES_PER_SEC`] pass and counts the others.
struct Throttle {
    since: Instant,
    passed: u32,
    dropped: u32,
}

impl Throttle {
    fn new(now: Instant) -> Self {
        Self { since: now, passed: 0, dropped: 0 }
    }

    /// Whether a line passes, and how many did not in the second before.
    fn admit(&mut self, now: Instant) -> (bool, u32) {
        let mut dropped = 0;
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            dropped = self.dropped;
            *self = Self::new(now);
        }
        if self.passed < LOG_LINES_PER_SEC {
            self.passed += 1;
            (true, dropped)
        } else {
            self.dropped = self.dropped.saturating_add(1);
            (false, dropped)
        }
    }
}

/// The next line without its end, cut to `limit` bytes; `None` at the end.
async fn next_line(reader: &mut (impl AsyncBufRead + Unpin), limit: usize) -> Option<String> {
    let mut line = Vec::new();
    loop {
        // A pipe that cannot be read any more has ended.
        let bytes = reader.fill_buf().await.ok()?;
        if bytes.is_empty() {
            return (!line.is_empty()).then(|| String::from_utf8_lossy(&line).into_owned());
        }
        let end = bytes.iter().position(|b| *b == b'\n');
        let piece = &bytes[..end.unwrap_or(bytes.len())];
        line.extend_from_slice(&piece[..piece.len().min(limit.saturating_sub(line.len()))]);
        let used = piece.len() + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            return Some(String::from_utf8_lossy(&line).into_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> WorkerCommand {
        WorkerCommand { program: "/bin/sh".into(), args: vec!["-c".into(), script.into()] }
    }

    fn job() -> JobSpec {
        serde_json::from_str(r#"{"id":"j1","image_url":"/x","action":"capture","options":{}}"#)
            .unwrap()
    }

    async fn outcome_of(script: &str) -> (Outcome, Option<StageProgress>) {
        let (sender, receiver) = watch::channel(None);
        let ended =
            run(&sh(script), &job(), &sender, std::future::pending(), &Log::to(Vec::new())).await;
        assert!(!ended.is_alive);
        (ended.outcome, receiver.borrow().clone())
    }

    fn failure(outcome: Outcome) -> Failure {
        match outcome {
            Outcome::Failed(failure) => failure,
            Outcome::Succeeded(_) => panic!("it succeeded"),
        }
    }

    #[tokio::test]
    async fn a_worker_reads_its_job_and_reports() {
        let script = r#"cat >&2; echo; echo noise; echo '{"later":1}'
            echo '{"progress":{"stage":"capturing","done_bytes":5,"total_bytes":9,"stored_bytes":1,"elapsed_ms":7}}'
            echo '{"outcome":{"result":"failed","kind":"no_space","message":"full"}}'; exit 1"#;
        let (outcome, progress) = outcome_of(script).await;
        let failure = failure(outcome);
        assert_eq!((failure.kind, failure.message.as_str()), (ErrorKind::NoSpace, "full"));
        assert_eq!(progress.unwrap().done_bytes, 5);
    }

    #[tokio::test]
    async fn a_crash_is_told_with_its_last_lines() {
        let (outcome, _) =
            outcome_of("for i in 1 2 3 4 5 6 7; do echo line $i >&2; done; kill -ABRT $$").await;
        let failure = failure(outcome);
        assert_eq!(failure.kind, ErrorKind::Internal);
        let expected = "worker ended by signal 6 (SIGABRT); its last lines: line 3 | line 4 | line 5 | line 6 | line 7";
        assert_eq!(failure.message, expected);
    }

    #[tokio::test]
    async fn an_end_without_an_outcome_is_a_failure() {
        let failure = failure(outcome_of("exit 0").await.0);
        assert_eq!(
            failure.message,
            "worker ended without an outcome, exit code 0; it wrote nothing to the log"
        );
    }

    #[tokio::test]
    async fn a_program_that_cannot_be_started_is_a_failure() {
        let command = WorkerCommand { program: "/nonsuch".into(), args: Vec::new() };
        let (sender, _receiver) = watch::channel(None);
        let ended =
            run(&command, &job(), &sender, std::future::pending(), &Log::to(Vec::new())).await;
        assert!(failure(ended.outcome).message.starts_with("cannot start the worker /nonsuch: "));
    }

    #[tokio::test]
    async fn a_grandchild_with_the_pipes_does_not_hold_up_the_end() {
        let script =
            r#"sleep 60 & echo '{"outcome":{"result":"failed","kind":"disk","message":"m"}}'"#;
        let began = Instant::now();
        assert_eq!(failure(outcome_of(script).await.0).kind, ErrorKind::Disk);
        assert!(began.elapsed() < Duration::from_secs(30));
    }

    #[tokio::test]
    async fn lines_are_cut_and_never_lost() {
        let text: &[u8] = b"short\n0123456789ABC\n\xff\nlast";
        let mut reader = BufReader::with_capacity(3, text);
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut reader, 10).await {
            lines.push(line);
        }
        assert_eq!(lines, ["short", "0123456789", "\u{fffd}", "last"]);
    }

    #[test]
    fn a_flood_is_counted() {
        let start = Instant::now();
        let mut throttle = Throttle::new(start);
        let passed = (0..LOG_LINES_PER_SEC + 40).filter(|_| throttle.admit(start).0).count();
        assert_eq!(passed, usize::try_from(LOG_LINES_PER_SEC).unwrap());
        assert_eq!(throttle.admit(start + Duration::from_secs(1)), (true, 40));
    }
}
