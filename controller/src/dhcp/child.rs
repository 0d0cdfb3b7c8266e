//! The life of the dnsmasq child: started, watched, started again; a left-over of a killed controller is ended first.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use super::{Dhcp, DhcpError};
use crate::db::Db;
use crate::names::Mac;

/// Waits before a child that died is started again.
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A child that ran so long had no trouble at its start.
const RAN_WELL: Duration = Duration::from_secs(60);
/// Strangers are noted no more often: whoever sends from ever new addresses does not keep the database busy.
const BETWEEN_STRANGERS: Duration = Duration::from_millis(100);
/// A left-over has so long to end, first asked, then made to.
const END_LIMIT: Duration = Duration::from_secs(3);

impl Dhcp {
    /// Has the child read all entries anew.
    pub(super) fn reread(&self) {
        let child = *self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pid) = child {
            // A child that has just died reads everything at its next start.
            let _ = kill(Pid::from_raw(pid), Signal::SIGHUP);
        }
    }

    /// Whether the child runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn set_child(&self, pid: Option<i32>) {
        *self.child.lock().unwrap_or_else(PoisonError::into_inner) = pid;
    }
}

/// Keeps a dnsmasq running until `stop` resolves, then ends it. Machines that ask and are no hosts are noted in `db`.
pub async fn supervise(dhcp: Arc<Dhcp>, db: Db, stop: impl Future<Output = ()>) {
    tokio::pin!(stop);
    let mut backoff = BACKOFF_MIN;
    loop {
        let started = Instant::now();
        match spawn(&dhcp) {
            Ok(mut child) => {
                let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
                dhcp.set_child(pid);
                tokio::select! {
                    (status, last_words) = follow(&mut child, &db) => {
                        dhcp.set_child(None);
                        tracing::error!(?status, last_words, "dnsmasq ended: no machine gets an address until it runs again");
                    }
                    () = &mut stop => {
                        dhcp.set_child(None);
                        if let Some(pid) = pid {
                            // It may have ended this very moment.
                            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
                        }
                        // Whether it ended by itself or not, dropping the child kills it.
                        let _ = tokio::time::timeout(END_LIMIT, child.wait()).await;
                        return;
                    }
                }
            }
            Err(error) => {
                tracing::error!(%error, path = %dhcp.settings.dnsmasq.display(), "dnsmasq cannot be started");
            }
        }
        if started.elapsed() > RAN_WELL {
            backoff = BACKOFF_MIN;
        }
        tokio::select! {
            () = sleep(backoff) => backoff = (backoff * 2).min(BACKOFF_MAX),
            () = &mut stop => return,
        }
    }
}

fn spawn(dhcp: &Dhcp) -> std::io::Result<Child> {
    Command::new(&dhcp.settings.dnsmasq)
        .arg("--keep-in-foreground")
        .arg(config_option(&dhcp.settings.run_dir))
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
}

/// The option that names the configuration; one word, since its value is optional.
fn config_option(run_dir: &Path) -> OsString {
    let mut option = OsString::from("--conf-file=");
    option.push(run_dir.join("dnsmasq.conf"));
    option
}

/// Passes on what the child says until it ends; how it ended, and its last words.
async fn follow(child: &mut Child, db: &Db) -> (std::io::Result<std::process::ExitStatus>, String) {
    let mut last = String::new();
    let mut noted: Option<Instant> = None;
    if let Some(stderr) = child.stderr.take() {
        let mut lines = BufReader::new(stderr).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let text = line.trim_start_matches("dnsmasq: ").trim_start_matches("dnsmasq-dhcp: ");
            if text.contains("failed") || text.contains("bad ") || text.contains("error") {
                tracing::warn!(target: "imprint::dnsmasq", "{text}");
            } else {
                tracing::debug!(target: "imprint::dnsmasq", "{text}");
            }
            if let Some(mac) = stranger(text)
                && noted.is_none_or(|at| at.elapsed() > BETWEEN_STRANGERS)
            {
                noted = Some(Instant::now());
                if let Err(error) = db.see_machine(mac, None).await {
                    tracing::warn!(%error, %mac, "a machine that is no host was not noted");
                }
            }
            text.clone_into(&mut last);
        }
    }
    (child.wait().await, last)
}

/// The machine that was ignored since it is no host: `DHCPDISCOVER(eth1) 52:54:00:77:00:01 ignored`, with an address in front if it
/// asked for one.
fn stranger(text: &str) -> Option<Mac> {
    let (_, said) = text.split_once("DHCPDISCOVER(")?;
    said.strip_suffix(" ignored")?.rsplit(' ').next()?.parse().ok()
}

/// Ends the dnsmasq that a killed controller left over the same folder, after checking that it is one.
pub(super) fn end_stale(run_dir: &Path) -> Result<(), DhcpError> {
    let Ok(text) = fs::read_to_string(run_dir.join("dnsmasq.pid")) else { return Ok(()) };
    let Ok(pid) = text.trim().parse::<i32>() else { return Ok(()) };
    if pid <= 1 || !is_ours(pid, run_dir) {
        return Ok(());
    }
    tracing::info!(pid, "ending the dnsmasq of an earlier run");
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        // It may end by itself between the check and this.
        let _ = kill(Pid::from_raw(pid), signal);
        let deadline = std::time::Instant::now() + END_LIMIT;
        while std::time::Instant::now() < deadline {
            if !is_ours(pid, run_dir) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Err(DhcpError::Stale(pid))
}

fn is_ours(pid: i32, run_dir: &Path) -> bool {
    let Ok(cmdline) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let config = config_option(run_dir);
    let words: Vec<&[u8]> = cmdline.split(|b| *b == 0).collect();
    let names_dnsmasq = words.first().is_some_and(|word| word.ends_with(b"dnsmasq"));
    let names_config = words.contains(&config.as_encoded_bytes());
    // A process that has ended but was not waited for yet has an empty command line: it does not count.
    names_dnsmasq && names_config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_told_from_hosts_and_from_others_lines() {
        let mac: Mac = "52:54:00:77:00:01".parse().unwrap();
        for text in [
            "DHCPDISCOVER(eth1) 52:54:00:77:00:01 ignored",
            "DHCPDISCOVER(eth1) 10.77.0.9 52:54:00:77:00:01 ignored",
            "Nov 30 22:00:00 dnsmasq-dhcp[7]: DHCPDISCOVER(eth1) 52:54:00:77:00:01 ignored",
        ] {
            assert_eq!(stranger(text), Some(mac), "{text}");
        }
        for text in [
            "DHCPDISCOVER(eth1) 52:54:00:77:00:01",
            "DHCPDISCOVER(eth1) 52:54:00:77:00:01 no address available",
            "DHCPOFFER(eth1) 10.77.0.100 52:54:00:77:00:01",
            "DHCPDISCOVER(eth1) ignored",
            "",
        ] {
            assert_eq!(stranger(text), None, "{text}");
        }
    }
}
