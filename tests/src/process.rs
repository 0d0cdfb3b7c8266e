//! Servers that the lab starts and ends.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{command, wait};

/// How long a server may take to end when asked to.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts a server; what it says goes to `log`.
    ///
    /// # Errors
    /// If the program does not start.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("opening {}", log.display()))?;
        let again = file.try_clone().with_context(|| format!("opening {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file).stderr(again);
        let child =
            command.spawn().with_context(|| format!("starting {}", command::line(command)))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Waits until the server is ready; if it ended, shows what it said.
    ///
    /// # Errors
    /// If it ends, or is not ready in time.
    pub fn wait_ready(&mut self, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let what = format!("{} to be ready (log: {})", self.name, self.log.display());
        wait::until(&what, limit, || {
            if let Some(status) = self.child.try_wait().context("asking for a child's state")? {
                bail!("{} ended: {status}\n{}", self.name, tail(&self.log));
            }
            Ok(ready().then_some(()))
        })
    }

    /// Kills it as a crash would: no chance to tidy up.
    ///
    /// # Errors
    /// If the process cannot be signalled.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("killing {}", self.name))?;
        self.child.wait().with_context(|| format!("waiting for {}", self.name))?;
        Ok(())
    }
}

/// The last lines of a log, as far as it is there and text.
pub(crate) fn tail(log: &Path) -> String {
    let log = std::fs::read(log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        signal(self.child.id(), Signal::SIGTERM);
        let ended = wait::until(&self.name, END_LIMIT, || Ok(self.child.try_wait()?));
        if ended.is_err() {
            // Both can only fail if it ended by itself meanwhile.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Whether a process runs (and is no zombie).
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The state follows the name, which is in brackets and may hold anything.
    !matches!(
        stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next()),
        None | Some('Z' | 'X')
    )
}

/// Sends a signal, if the process is still there.
pub fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        // Fails only if the process is gone, which is what every caller wants in the end.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Ends processes that are not our children: asks, then insists.
pub fn end_all(pids: &[u32]) {
    let gone = |limit| {
        wait::until("processes", limit, || Ok(pids.iter().all(|p| !is_alive(*p)).then_some(())))
    };
    for (sign, limit) in [(Signal::SIGTERM, END_LIMIT), (Signal::SIGKILL, END_LIMIT)] {
        for pid in pids.iter().filter(|pid| is_alive(**pid)) {
            signal(*pid, sign);
        }
        if gone(limit).is_ok() {
            return;
        }
    }
}
