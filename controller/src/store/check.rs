//! Trying a store out, from the controller's machine.
//!
//! The controller speaks no store's protocol. It starts `imprint-agent store-check`, the same code that captures and restores use, with
//! the credentials on standard input, so that they are in no process list and no environment. What holds for the controller's
//! machine need not hold for the agents': a server may let one address in and not another.

use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_api::{StoreAccess, StoreReport};
use tokio::process::Command;
use tokio::time::timeout;

use super::agent_program;
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
    let mut command = Command::new(program);
    command.args(["--progress", "none", "store-check", folder]);
    let child =
        agent_program::start(command, std::slice::from_ref(access)).await.map_err(failed)?;
    let output = timeout(LIMIT, child.wait_with_output()).await.map_err(|_| CheckError::Slow)?;
    let output = output.map_err(failed)?;
    serde_json::from_slice(&output.stdout).map_err(|_| {
        CheckError::NoReport(printable(&String::from_utf8_lossy(&output.stderr), MESSAGE_MAX))
    })
}
