//! A BMC for each machine: OpenIPMI's `ipmi_sim`, whose chassis hook works the machine's power.
//!
//! `ipmi_sim` speaks real IPMI over the lab's network, and calls a program for every chassis command. That program is
//! `xtask bmc-chassis`, which is [`chassis`] here: it starts, stops and resets the machine's QEMU process and keeps its boot device.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command;
use crate::machine::{BootDevice, Machine};
use crate::net::Network;
use crate::process::Server;

/// The BMC's user.
pub const USER: &str = "admin";
/// Its password.
pub const PASSWORD: &str = "lab-secret";
/// How long `ipmi_sim` may take to answer: five times what was measured under load.
const READY_LIMIT: Duration = Duration::from_secs(15);

/// A running BMC.
#[derive(Debug)]
pub struct Bmc {
    _server: Server,
    address: String,
}

impl Bmc {
    /// Starts the BMC of a machine at its own address. `xtask` is the program whose `bmc-chassis` the hook calls.
    ///
    /// # Errors
    /// If `ipmi_sim` does not come up.
    pub fn start(network: &Network, machine: &Machine, xtask: &Path) -> Result<Self> {
        let address = format!("10.77.0.{}", 10 + machine.number);
        network.add_address(&address)?;
        let folder = machine.folder.join("bmc");
        std::fs::create_dir_all(folder.join("state"))
            .with_context(|| format!("making {}", folder.display()))?;
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
        };
        write("lan.conf", lan_conf(machine, &address, xtask))?;
        write("bmc.emu", EMULATION.to_owned())?;
        let mut ipmi_sim = network.command("ipmi_sim");
        ipmi_sim.arg("-n").arg("-c").arg(folder.join("lan.conf"));
        ipmi_sim.arg("-f").arg(folder.join("bmc.emu")).arg("-s").arg(folder.join("state"));
        let mut server = Server::start("ipmi_sim", &mut ipmi_sim, &folder.join("ipmi_sim.log"))?;
        let answers = || ipmitool(network, &address, &["mc", "info"]).is_ok();
        server.wait_ready(READY_LIMIT, answers)?;
        Ok(Self { _server: server, address })
    }

    /// The BMC's address.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Runs ipmitool against the BMC, as an administrator would.
    ///
    /// # Errors
    /// If the BMC refuses.
    pub fn ipmitool(&self, network: &Network, args: &[&str]) -> Result<String> {
        ipmitool(network, &self.address, args)
    }
}

fn ipmitool(network: &Network, address: &str, args: &[&str]) -> Result<String> {
    let mut ipmitool: Command = network.command("ipmitool");
    // Without -C, each call spends 10 s asking ipmi_sim for cipher suites that it does not list.
    ipmitool.args(["-I", "lanplus", "-C", "3", "-H", address, "-U", USER, "-E"]).args(args);
    command::output(ipmitool.env("IPMI_PASSWORD", PASSWORD))
}

fn lan_conf(machine: &Machine, address: &str, xtask: &Path) -> String {
    let name = &machine.name;
    let number = machine.number;
    let hook = format!("{} bmc-chassis {}", xtask.display(), machine.folder.display());
    format!(
        "name \"{name}\"\n\
         set_working_mc 0x20\n\
         startlan 1\n\
         addr {address} 623\n\
         priv_limit admin\n\
         allowed_auths_callback none md2 md5 straight\n\
         allowed_auths_user none md2 md5 straight\n\
         allowed_auths_operator none md2 md5 straight\n\
         allowed_auths_admin none md2 md5 straight\n\
         guid a123456789abcdefa123456789abcd{number:02x}\n\
         endlan\n\
         chassis_control \"{hook}\"\n\
         user 1 false \"\" \"none\" user 10 none md2 md5 straight\n\
         user 2 true \"{USER}\" \"{PASSWORD}\" admin 10 none md2 md5 straight\n"
    )
}

const EMULATION: &str = "\
mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
sel_enable 0x20 1000 0x0a
mc_enable 0x20
";

/// What `ipmi_sim` calls: `get power|boot…`, `set power|boot|reset|shutdown VALUE…`, `check …`. The answer goes to standard output.
///
/// # Errors
/// If the machine does not do what it was told: `ipmi_sim` then reports a failed command.
pub fn chassis(folder: &Path, words: &[String]) -> Result<String> {
    let machine = Machine::load(folder)?;
    let (verb, words) = words.split_first().context("bmc-chassis wants get, set or check")?;
    let mut answer = String::new();
    match verb.as_str() {
        "get" => {
            for word in words {
                match word.as_str() {
                    "power" => answer += &format!("power:{}\n", u8::from(machine.is_on())),
                    "boot" => answer += &format!("boot:{}\n", boot_name(machine.boot_device())),
                    word => bail!("cannot get {word}"),
                }
            }
        }
        "set" => {
            for pair in words.chunks(2) {
                let value = pair.get(1).map_or("", String::as_str);
                set(&machine, &pair[0], value)?;
            }
        }
        "check" => {}
        verb => bail!("cannot {verb}"),
    }
    Ok(answer)
}

fn set(machine: &Machine, what: &str, value: &str) -> Result<()> {
    match (what, value) {
        ("power", "1") => machine.power_on(),
        ("power", _) => machine.power_off(),
        ("reset", _) if machine.is_on() => machine.reset(),
        ("reset", _) => bail!("{} is off", machine.name),
        ("shutdown", _) => machine.press_power_button(),
        ("boot", "pxe") => machine.set_boot_device(BootDevice::Pxe),
        ("boot", _) => machine.set_boot_device(BootDevice::Disk),
        // The locate light, which no machine here has.
        ("identify", _) => Ok(()),
        (what, _) => bail!("cannot set {what}"),
    }
}

fn boot_name(device: BootDevice) -> &'static str {
    match device {
        BootDevice::Pxe => "pxe",
        BootDevice::Disk => "default",
    }
}
