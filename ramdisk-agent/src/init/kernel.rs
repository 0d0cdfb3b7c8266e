//! The restored system's kernel, loaded by a child of PID 1 ([`crate::kexec`]), so that the machine can start it.
//!
//! The child looks into filesystems that nobody trusts, and is given up when it takes too long: the machine reboots plainly then. What
//! counts in the end is what the kernel says of itself.

use std::fs;
use std::time::Duration;

use agent_api::JobSpec;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::children;
use super::worker::WorkerCommand;

/// How long loading may take: a few seconds, more from a slow disk.
pub const LIMIT: Duration = Duration::from_secs(180);
/// What is read of what the child says, in bytes.
const MAX_SAID: u64 = 16 << 10;
/// `1` once a kernel is loaded.
const LOADED: &str = "/sys/kernel/kexec_loaded";

/// Loads the kernel of the system that a job has restored; which one that is, or why it cannot be started.
pub async fn load(
    command: &WorkerCommand,
    job: &JobSpec,
    limit: Duration,
) -> Result<String, String> {
    // Stores are not needed any more, nor what lets into them.
    let job = JobSpec { access: Vec::new(), ..job.clone() };
    let text = serde_json::to_vec(&job).map_err(|e| format!("cannot hand the job over: {e}"))?;
    let said = match timeout(limit, run(command, text)).await {
        Ok(said) => said?,
        Err(_) => return Err(format!("loading its kernel took longer than {} s", limit.as_secs())),
    };
    Ok(said)
}

/// Whether the kernel has another one that it could start.
#[must_use]
pub fn is_loaded() -> bool {
    fs::read_to_string(LOADED).is_ok_and(|text| text.trim() == "1")
}

async fn run(command: &WorkerCommand, job: Vec<u8>) -> Result<String, String> {
    let failed = |e: std::io::Error| format!("cannot run {}: {e}", command.program.display());
    let mut own = children::spawn(&mut command.piped()).map_err(failed)?;
    let (stdin, stdout, stderr) =
        (own.child.stdin.take(), own.child.stdout.take(), own.child.stderr.take());
    let give = async {
        if let Some(mut stdin) = stdin {
            // A child that does not read its job says something else, or nothing.
            let _ = stdin.write_all(&job).await;
        }
    };
    let ((), told, complaints, ended) =
        tokio::join!(give, said(stdout), said(stderr), own.child.wait());
    if ended.map_err(failed)?.success() {
        return Ok(told.trim().to_owned());
    }
    let last = complaints.lines().rev().find(|line| !line.trim().is_empty());
    Err(last.map_or("loading its kernel failed without a word", reason).to_owned())
}

/// The reason in a line of the command: without its name in front and the error's kind behind.
fn reason(line: &str) -> &str {
    let line = line.strip_prefix("imprint-agent: ").unwrap_or(line);
    let kind = line.strip_suffix(']').and_then(|line| line.rsplit_once(" ["));
    kind.map_or(line, |(line, _)| line)
}

/// What a pipe brings, to its end; only the first of it is kept.
async fn said(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // What cannot be read was not said.
        let _ = (&mut pipe).take(MAX_SAID).read_to_end(&mut bytes).await;
        let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn load_by(script: &str, limit: Duration) -> Result<String, String> {
        let args = vec!["-c".into(), script.into()];
        let command = WorkerCommand { program: "/bin/sh".into(), args };
        let job = r#"{"id":"j1","image_url":"/x","action":"restore","options":{},"access":[{}]}"#;
        load(&command, &serde_json::from_str(job).unwrap(), limit).await
    }

    #[tokio::test]
    async fn the_childs_word_counts() {
        let long = Duration::from_secs(60);
        let told = load_by("cat", long).await.unwrap();
        assert_eq!(serde_json::from_str::<JobSpec>(&told).unwrap().access, []);
        let why =
            "echo note >&2; echo 'imprint-agent: no grub.cfg [refused]' >&2; echo >&2; exit 1";
        assert_eq!(load_by(why, long).await.unwrap_err(), "no grub.cfg");
        assert!(load_by("exit 3", long).await.unwrap_err().contains("without a word"));
        let slow = load_by("sleep 60", Duration::from_millis(50)).await.unwrap_err();
        assert!(slow.contains("took longer"), "{slow}");
        // A flood is not kept, nor does it stop the child.
        let flood = load_by("head -c 1000000 /dev/zero | tr '\\0' x", long).await.unwrap();
        assert_eq!(flood.len() as u64, MAX_SAID);
    }
}
