//! Work on images that the controller has `imprint-agent` do on its own machine: copies, checks, removals; and how the program is started.
//!
//! The same program that captures and restores, with the credentials on standard input, so that they are in no process list and no
//! environment. Its progress comes as JSON lines on standard error, its last line there is why it failed, and its result is JSON on
//! standard output. It is asked to end before it is made to: what it has begun to write it removes by itself. When the controller ends,
//! that is waited for ([`AgentProgram::end`]); after a `kill -9` it ends by itself (`--attached`).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use agent_api::{CA_FILE_VARIABLES, ErrorKind, Failure, SecretText, StageProgress, StoreAccess};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::names::printable;

/// How long the program may take to end when it was asked to.
const END_LIMIT: Duration = Duration::from_secs(30);
/// Longest result that is read: a manifest with what is said of it.
const RESULT_MAX: u64 = 64 << 20;
/// Longest message of the program that is passed on, in characters.
const MESSAGE_MAX: usize = 1000;

/// `imprint-agent` on this machine, and the end of what it does.
#[derive(Debug)]
pub struct AgentProgram {
    path: PathBuf,
    is_ending: watch::Sender<bool>,
    held: watch::Sender<usize>,
}

/// Something that is finished before the controller ends.
#[derive(Debug)]
pub struct Held<'a>(&'a AgentProgram);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.send_modify(|held| *held -= 1);
    }
}

impl AgentProgram {
    /// The program in this file.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, is_ending: watch::Sender::new(false), held: watch::Sender::new(0) }
    }

    /// For what follows on the program's work: the controller's end waits until this is dropped.
    pub fn hold(&self) -> Held<'_> {
        self.held.send_modify(|held| *held += 1);
        Held(self)
    }

    /// Asks everything that runs to end, and what begins from now on, too; waits until that has happened.
    pub async fn end(&self) {
        self.is_ending.send_replace(true);
        // An error would mean that the sender is gone, which we hold.
        let _ = self.held.subscribe().wait_for(|held| *held == 0).await;
    }

    /// Waits until everything is to end.
    pub(super) async fn ending(&self) {
        // As above.
        let _ = self.is_ending.subscribe().wait_for(|is_ending| *is_ending).await;
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Why work was not done.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The program cannot be run.
    #[error("running {program}: install imprint-agent beside imprint, or name it with --agent", program = .0.display())]
    Program(PathBuf, #[source] std::io::Error),
    /// It did not do it.
    #[error("{}", .0.message)]
    Failed(Failure),
}

impl ProgramError {
    /// As what a task failed of.
    #[must_use]
    pub fn failure(&self) -> Failure {
        match self {
            Self::Program(..) => {
                Failure { kind: ErrorKind::Internal, message: crate::error_chain(self) }
            }
            Self::Failed(failure) => failure.clone(),
        }
    }
}

/// Runs the program with these arguments to its end, or until `cancelled` is over or the controller ends; its result.
///
/// # Errors
/// When it cannot be run, or says why it failed.
pub async fn run(
    program: &AgentProgram,
    args: &[String],
    access: &[StoreAccess],
    mut progressed: impl FnMut(StageProgress),
    cancelled: impl Future<Output = ()>,
) -> Result<Value, ProgramError> {
    let _held = program.hold();
    let failed = |error| ProgramError::Program(program.path.clone(), error);
    let mut command = Command::new(&program.path);
    command.args(["--progress", "json"]).args(args);
    let mut child = start(command, access).await.map_err(failed)?;
    let pid = child.id();
    let stdout = child.stdout.take().expect("it was asked for");
    let stderr = child.stderr.take().expect("it was asked for");
    let result = async {
        let mut text = Vec::new();
        stdout.take(RESULT_MAX).read_to_end(&mut text).await.map(|_| text)
    };
    let said = async {
        let (mut lines, mut last) = (BufReader::new(stderr).lines(), String::new());
        while let Some(line) = lines.next_line().await? {
            match serde_json::from_str(&line) {
                Ok(progress) => progressed(progress),
                Err(_) => last = line,
            }
        }
        Ok::<_, std::io::Error>(last)
    };
    let ended = async { tokio::try_join!(result, said) };
    tokio::pin!(ended);
    // One of them asks it, once: being asked again it would end wherever it is.
    let cancelled = async {
        tokio::select! { () = cancelled => {}, () = program.ending() => {} }
    };
    let (result, last) = tokio::select! {
        ended = &mut ended => ended.map_err(failed)?,
        () = cancelled => {
            ask_to_end(pid);
            match timeout(END_LIMIT, &mut ended).await {
                Ok(ended) => ended.map_err(failed)?,
                Err(_) => {
                    child.kill().await.map_err(failed)?;
                    return Err(ProgramError::Failed(Failure {
                        kind: ErrorKind::Cancelled,
                        message: "it did not end in time and was ended: a .partial file may be left".to_owned(),
                    }));
                }
            }
        }
    };
    let status = child.wait().await.map_err(failed)?;
    if status.success()
        && let Ok(value) = serde_json::from_slice(&result)
    {
        return Ok(value);
    }
    Err(ProgramError::Failed(failure(&last)))
}

/// Asks a program to end, by its process id while it is a child that was not waited for.
pub(super) fn ask_to_end(pid: Option<u32>) {
    if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()) {
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
}

/// Starts the program and hands it the credentials; it answers in JSON, and is killed when it is dropped. Of our environment it gets what
/// says whom it is to trust, and of the signals of our terminal none.
pub(super) async fn start(mut command: Command, access: &[StoreAccess]) -> std::io::Result<Child> {
    let trusted = CA_FILE_VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    let mut child = command
        .args(["--json", "--attached", "--credentials", "/dev/stdin"])
        .env_clear()
        .envs(trusted)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take().expect("it was asked for");
    let secrets: String = access.iter().map(credentials).collect();
    // A program that does not read them says why.
    let _ = stdin.write_all(secrets.as_bytes()).await;
    Ok(child)
}

/// As a section of a credentials file. None of the values has a line break in it: that was checked where they came in.
fn credentials(access: &StoreAccess) -> String {
    let secret = |secret: &Option<SecretText>| secret.as_ref().map(|text| text.expose().to_owned());
    let lines = [
        ("user", access.user.clone()),
        ("domain", access.domain.clone()),
        ("password", secret(&access.password)),
        ("token", secret(&access.token)),
        ("tls_key", access.tls_key.clone()),
    ];
    let lines = lines.into_iter().filter_map(|(key, value)| Some(format!("{key}={}\n", value?)));
    let lines: String = lines.collect();
    if lines.is_empty() { lines } else { format!("[{}]\n{lines}", access.prefix) }
}

/// `imprint-agent: TEXT [KIND]`.
fn failure(line: &str) -> Failure {
    let line = printable(line, MESSAGE_MAX);
    let text = line.strip_prefix("imprint-agent: ").unwrap_or(&line);
    let parts = text.strip_suffix(']').and_then(|text| text.rsplit_once(" ["));
    match parts {
        Some((message, kind)) => Failure {
            kind: serde_json::from_value(kind.into()).unwrap_or(ErrorKind::Unknown),
            message: message.to_owned(),
        },
        None => Failure {
            kind: ErrorKind::Internal,
            message: format!("imprint-agent gave no result: {text}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_says_why() {
        let told = failure("imprint-agent: opening smb://h/a [b]: no such file [not_found]");
        assert_eq!(told.kind, ErrorKind::NotFound);
        assert_eq!(told.message, "opening smb://h/a [b]: no such file");
        assert_eq!(failure("killed").kind, ErrorKind::Internal);
    }
}
