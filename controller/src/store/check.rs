//! Trying a store out, from the controller's machine.
//!
//! The controller speaks no store's protocol. It starts `imprint-agent store-check`, the same code that captures and restores use, with
//! the credentials on standard input, so that they are in no process list and no environment. What holds for the controller's
//! machine need not hold for the agents': a server may let one address in and not another.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use agent_api::{SecretText, StoreAccess, StoreReport};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::names::printable;

/// Less than an answer of the API may take.
const LIMIT: Duration = Duration::from_secs(140);
/// Longest message of the program that is passed on, in characters.
const MESSAGE_MAX: usize = 1000;

/// Why a store could not be tried out.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The program cannot be run.
    #[error("running {program}: install imprint-agent beside imprint, or name it with --agent", program = .0.display())]
    Program(PathBuf, #[source] std::io::Error),
    /// It takes too long.
    #[error("the store did not do its part within {} s", LIMIT.as_secs())]
    Slow,
    /// It did not answer what it should.
    #[error("imprint-agent gave no report: {0}")]
    NoReport(String),
}

/// Has the agent's program try out the store in this folder.
///
/// # Errors
/// When there is no report. A store that does not do what it should is no error here: the report says so.
pub async fn check(
    program: &Path,
    folder: &str,
    access: &StoreAccess,
) -> Result<StoreReport, CheckError> {
    let failed = |error| CheckError::Program(program.to_owned(), error);
    let mut child = Command::new(program)
        .args([
            "--json",
            "--progress",
            "none",
            "--credentials",
            "/dev/stdin",
            "store-check",
            folder,
        ])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let mut stdin = child.stdin.take().expect("it was asked for");
    // A program that does not read them says why.
    let _ = stdin.write_all(credentials(access).as_bytes()).await;
    drop(stdin);
    let output = timeout(LIMIT, child.wait_with_output()).await.map_err(|_| CheckError::Slow)?;
    let output = output.map_err(failed)?;
    serde_json::from_slice(&output.stdout).map_err(|_| {
        CheckError::NoReport(printable(&String::from_utf8_lossy(&output.stderr), MESSAGE_MAX))
    })
}

/// As a section of a credentials file. None of the values has a line break in it: that was checked where they came in.
pub(super) fn credentials(access: &StoreAccess) -> String {
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
