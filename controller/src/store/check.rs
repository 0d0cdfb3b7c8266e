//! Trying a store out, from the controller's machine.
//!
//! The controller speaks no store's protocol. It starts `imprint-agent store-check`, the same code that captures and restores use, with
//! the credentials on standard input, so that they are in no process list and no environment. What holds for the controller's
//! machine need not hold for the agents': a server may let one address in and not another.

use std::path::PathBuf;
use std::time::Duration;

use agent_api::{StoreAccess, StoreReport};
use tokio::process::Command;
use tokio::time::timeout;

use super::agent_program::{self, AgentProgram};
use crate::names::printable;

/// With [`END_LIMIT`], less than an answer of the API may take.
const LIMIT: Duration = Duration::from_secs(130);
/// How long the program may take to remove its probe when it was asked to end.
const END_LIMIT: Duration = Duration::from_secs(10);
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
    program: &AgentProgram,
    folder: &str,
    access: &StoreAccess,
) -> Result<StoreReport, CheckError> {
    check_within(LIMIT, program, folder, access).await
}

async fn check_within(
    limit: Duration,
    program: &AgentProgram,
    folder: &str,
    access: &StoreAccess,
) -> Result<StoreReport, CheckError> {
    let _held = program.hold();
    let failed = |error| CheckError::Program(program.path().to_owned(), error);
    let mut command = Command::new(program.path());
    command.args(["--progress", "none", "store-check", folder]);
    let child =
        agent_program::start(command, std::slice::from_ref(access)).await.map_err(failed)?;
    let pid = child.id();
    let output = child.wait_with_output();
    tokio::pin!(output);
    let is_over = async {
        tokio::select! { () = tokio::time::sleep(limit) => true, () = program.ending() => false }
    };
    let ended = tokio::select! {
        ended = &mut output => Some(ended),
        is_slow = is_over => {
            agent_program::ask_to_end(pid);
            // Killed if that takes too long as well.
            timeout(END_LIMIT, output).await.ok().filter(|_| !is_slow)
        }
    };
    let output = ended.ok_or(CheckError::Slow)?.map_err(failed)?;
    serde_json::from_slice(&output.stdout).map_err(|_| {
        CheckError::NoReport(printable(&String::from_utf8_lossy(&output.stderr), MESSAGE_MAX))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// It may be about to remove its probe.
    #[tokio::test]
    async fn a_slow_program_is_asked_to_end() {
        let folder = tempfile::tempdir().unwrap();
        let (program, asked) = (folder.path().join("slow"), folder.path().join("asked"));
        let text = format!(
            "#!/bin/sh\ntrap 'echo > {}; exit 11' TERM\necho > {}\nread nothing < {}\n",
            asked.display(),
            folder.path().join("ready").display(),
            folder.path().join("never").display(),
        );
        nix::unistd::mkfifo(&folder.path().join("never"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        let limit = Duration::from_secs(2);
        let program = AgentProgram::new(program);
        let result = check_within(limit, &program, "nfs://h/e", &StoreAccess::default()).await;
        assert!(matches!(result, Err(CheckError::Slow)), "{result:?}");
        assert!(folder.path().join("ready").exists(), "it was started");
        assert!(asked.exists());
    }
}
