//! The lab's network: a namespace with one bridge, cut off from everything else.
//!
//! The namespace's name tells whose it is (`imprint-lab-PID`), so that one left behind by a crashed run is recognised: its
//! owner is gone. All of the lab's processes run inside, so everything found in such a namespace was the lab's own.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{command, process};

/// The bridge, with the controller's and the servers' address.
pub const BRIDGE: &str = "br0";
/// The host's address in the lab.
pub const ADDRESS: &str = "10.77.0.1";
const ADDRESS_6: &str = "fd77::1/64";
const PREFIX: &str = "imprint-lab-";

/// A namespace with a bridge. Dropping it ends everything inside and removes it.
#[derive(Debug)]
pub struct Network {
    name: String,
}

impl Network {
    /// Makes the namespace; removes those of runs that are gone.
    ///
    /// # Errors
    /// If `ip` fails: usually for want of root.
    pub fn create() -> Result<Self> {
        remove_leftovers()?;
        let network = Self { name: format!("{PREFIX}{}", std::process::id()) };
        ip(&["netns", "add", &network.name])
            .context("making a network namespace (are you root?)")?;
        for args in [
            &["link", "set", "lo", "up"][..],
            &["link", "add", BRIDGE, "type", "bridge", "stp_state", "0", "forward_delay", "0"],
            &["addr", "add", &format!("{ADDRESS}/24"), "dev", BRIDGE],
            &["addr", "add", ADDRESS_6, "dev", BRIDGE, "nodad"],
            &["link", "set", BRIDGE, "up"],
        ] {
            ip(&[&["-n", &network.name], args].concat())?;
        }
        Ok(network)
    }

    /// The namespace's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds an address to the bridge, for a BMC.
    ///
    /// # Errors
    /// If the address is taken.
    pub fn add_address(&self, address: &str) -> Result<()> {
        ip(&["-n", &self.name, "addr", "add", &format!("{address}/24"), "dev", BRIDGE])
    }

    /// Adds a port for a machine.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn add_tap(&self, tap: &str) -> Result<()> {
        ip(&["netns", "exec", &self.name, "ip", "tuntap", "add", "dev", tap, "mode", "tap"])?;
        ip(&["-n", &self.name, "link", "set", tap, "master", BRIDGE, "up"])
    }

    /// Pulls a machine's cable, or plugs it in again.
    ///
    /// # Errors
    /// If there is no such port.
    pub fn set_link(&self, tap: &str, up: bool) -> Result<()> {
        ip(&["-n", &self.name, "link", "set", tap, if up { "up" } else { "down" }])
    }

    /// A command that will run in the namespace.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Whether something listens on a TCP port inside.
    #[must_use]
    pub fn is_listening(&self, port: u16) -> bool {
        let mut ss = self.command("ss");
        let listing = command::output(ss.args(["-Hlnt", &format!("sport = :{port}")]));
        listing.is_ok_and(|text| !text.trim().is_empty())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name) {
            eprintln!("removing namespace {}: {error:#}", self.name);
        }
    }
}

fn ip(args: &[&str]) -> Result<()> {
    command::run("ip", args)
}

fn remove(name: &str) -> Result<()> {
    let listing = command::output(Command::new("ip").args(["netns", "pids", name]))?;
    let pids: Vec<u32> = listing.lines().filter_map(|line| line.trim().parse().ok()).collect();
    process::end_all(&pids);
    ip(&["netns", "del", name])
}

/// Removes namespaces whose owner is gone.
fn remove_leftovers() -> Result<()> {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return Ok(()) };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|pid| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !is_lab_process(pid)) {
            remove(&name)
                .with_context(|| format!("removing namespace {name} of an earlier run"))?;
        }
    }
    Ok(())
}

/// Whether a process is one that could own a namespace: an `xtask` or a test, and not some other program that got the number.
fn is_lab_process(pid: u32) -> bool {
    let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_else(|_| PathBuf::new());
    process::is_alive(pid) && exe.to_string_lossy().contains("target")
}
