//! The owner's own programs, baked into the initramfs: run in the order of their names, with the network up, before any work.
//!
//! Each has a minute. What they write goes to the log. A hook that fails makes every job of this boot fail with its name, unless
//! its name begins with `optional-`: a machine that was not prepared as its owner wants must not be imaged.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use agent_api::{ErrorKind, Failure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::children;
use super::console::Log;

/// Where the builder puts hooks.
pub const FOLDER: &str = "/etc/imprint/hooks.d";
/// How long one hook may take.
pub const LIMIT: Duration = Duration::from_secs(60);
const OPTIONAL: &str = "optional-";
/// How long output may go on after a hook's end, held open by what it started.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// Runs the hooks of a folder. The first failure that matters ends them and is what jobs fail with.
pub async fn run_all(folder: &Path, limit: Duration, log: &Log) -> Option<Failure> {
    for hook in hooks(folder) {
        let name = hook.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        log.say(format!("hook {name}"));
        if let Err(why) = run(&hook, &name, limit, log).await {
            let message = format!("hook {name} {why}");
            log.say(&message);
            if !name.starts_with(OPTIONAL) {
                return Some(Failure { kind: ErrorKind::Internal, message });
            }
        }
    }
    None
}

/// The executables of a folder, by name. No folder: no hooks.
fn hooks(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut hooks: Vec<PathBuf> = entries
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0))
        .collect();
    hooks.sort();
    hooks
}

async fn run(hook: &Path, name: &str, limit: Duration, log: &Log) -> Result<(), String> {
    let mut own = children::spawn(
        Command::new(hook)
            .env("PATH", "/sbin:/bin:/usr/sbin:/usr/bin")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true),
    )
    .map_err(|e| format!("cannot be started: {e}"))?;
    let mut readers = JoinSet::new();
    if let Some(out) = own.child.stdout.take() {
        readers.spawn(copy(out, name.to_owned(), log.clone()));
    }
    if let Some(err) = own.child.stderr.take() {
        readers.spawn(copy(err, name.to_owned(), log.clone()));
    }
    let ended = timeout(limit, own.child.wait()).await;
    if ended.is_err() {
        // With all it started. ESRCH: it has ended in this moment.
        let _ = kill(Pid::from_raw(-own.pid().as_raw()), Signal::SIGKILL);
        // Killed: the wait only collects it, unless it hangs in the kernel.
        let _ = timeout(DRAIN_LIMIT, own.child.wait()).await;
    }
    // What a hook leaves running may keep its output open: not waited for.
    let _ = timeout(DRAIN_LIMIT, async { while readers.join_next().await.is_some() {} }).await;
    readers.detach_all();
    match ended {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(describe(status)),
        Ok(Err(e)) => Err(format!("cannot be waited for: {e}")),
        Err(_) => Err(format!("was ended after {} s", limit.as_secs())),
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was ended by signal {signal}"),
        (None, code) => format!("failed with exit code {}", code.unwrap_or(-1)),
    }
}

async fn copy(from: impl AsyncRead + Unpin, name: String, log: Log) {
    let mut lines = BufReader::new(from).split(b'\n');
    // Output that cannot be read any more has ended.
    while let Ok(Some(line)) = lines.next_segment().await {
        log.say(format!("{name}: {}", String::from_utf8_lossy(&line)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, script: &str, mode: u32) {
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[tokio::test]
    async fn hooks_run_in_order_and_optional_ones_may_fail() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "10-first", "echo one", 0o755);
        write(dir.path(), "optional-firmware", "echo oh >&2; exit 3", 0o755);
        write(dir.path(), "notes.txt", "exit 9", 0o644);
        let log = Log::to(Vec::new());
        assert_eq!(run_all(dir.path(), LIMIT, &log).await, None);
        let text = log.take(usize::MAX).unwrap();
        let expected = "hook 10-first\n10-first: one\nhook optional-firmware\noptional-firmware: oh\n\
                        hook optional-firmware failed with exit code 3\n";
        assert_eq!(text, expected);
    }

    #[tokio::test]
    async fn a_failing_hook_fails_the_jobs_and_the_later_ones_do_not_run() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "10-raid", "exit 4", 0o755);
        write(dir.path(), "20-never", "echo no", 0o755);
        let log = Log::to(Vec::new());
        let failure = run_all(dir.path(), LIMIT, &log).await.unwrap();
        assert_eq!(failure.message, "hook 10-raid failed with exit code 4");
        assert!(!log.take(usize::MAX).unwrap().contains("20-never"));
    }

    #[tokio::test]
    async fn a_hook_that_hangs_is_ended_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "10-hang", "sleep 600 & wait", 0o755);
        let failure =
            run_all(dir.path(), Duration::from_millis(300), &Log::to(Vec::new())).await.unwrap();
        assert!(failure.message.starts_with("hook 10-hang was ended after"), "{}", failure.message);
    }

    #[tokio::test]
    async fn no_folder_means_no_hooks() {
        assert_eq!(run_all(Path::new("/nonsuch"), LIMIT, &Log::to(Vec::new())).await, None);
    }
}
