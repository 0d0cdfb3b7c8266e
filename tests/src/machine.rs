//! A machine of the lab: a QEMU process, started and stopped by power actions only.
//!
//! What a machine is (firmware, memory, disk, network port) is written to `machine.json` in its folder, so that the BMC's hook,
//! which is another process, works the same machine as the test. Whether it is on is whether its process lives. A boot device that
//! was chosen is for one start only, as with a BMC's `bootdev pxe`: a guest that restarts itself meets its disk first.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::console::Console;
use crate::{command, process, wait};

/// What a machine starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Firmware {
    /// SeaBIOS, with iPXE in the network card.
    Bios,
    /// OVMF, with its own PXE client.
    Uefi,
}

impl Firmware {
    /// As the controller's command line calls it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bios => "bios",
            Self::Uefi => "uefi",
        }
    }
}

/// Which device comes first in the boot order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootDevice {
    /// The network card; then the disk.
    Pxe,
    /// The disk; then the network card.
    #[default]
    Disk,
}

/// A kernel that QEMU itself loads, without firmware or network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DirectBoot {
    /// The kernel image.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// The kernel command line.
    pub command_line: String,
}

/// A machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its number in the lab: last byte of its MAC, and its BMC's address.
    pub number: u8,
    /// Firmware.
    pub firmware: Firmware,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The disk, a raw file; `None`: no disk.
    pub disk: Option<PathBuf>,
    /// The port that its network card hangs on; `None`: no network.
    pub tap: Option<String>,
    /// Loads this instead of starting the firmware's boot order.
    pub direct: Option<DirectBoot>,
    /// How QEMU runs guest code: `tcg` or `kvm`.
    pub accel: String,
    /// State: console, sockets, NVRAM.
    pub folder: PathBuf,
}

/// A boot index greater than those of the others.
const BEHIND_THE_DISK: u32 = 9;
const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// How long QEMU may take to end when killed.
const END_LIMIT: Duration = Duration::from_secs(10);
/// How long a monitor command may take.
const MONITOR_LIMIT: Duration = Duration::from_secs(10);

impl Machine {
    /// Writes the machine's description into its folder, and makes its NVRAM, empty, if it has UEFI and none yet.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn save(&self) -> Result<()> {
        std::fs::create_dir_all(&self.folder)
            .with_context(|| format!("making {}", self.folder.display()))?;
        if self.firmware == Firmware::Uefi && !self.nvram().exists() {
            std::fs::copy(OVMF_VARS, self.nvram())
                .context("copying OVMF's empty NVRAM (package ovmf)")?;
        }
        let text = serde_json::to_string_pretty(self).context("describing a machine")?;
        let path = self.folder.join("machine.json");
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Empties its NVRAM, as that of a machine which has never booted. It must be off.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn forget_nvram(&self) -> Result<()> {
        if self.firmware == Firmware::Uefi {
            std::fs::copy(OVMF_VARS, self.nvram()).context("copying OVMF's empty NVRAM")?;
        }
        Ok(())
    }

    /// The machine whose folder this is.
    ///
    /// # Errors
    /// If there is no description.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("machine.json");
        let text = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
    }

    /// The hardware address of its network card.
    #[must_use]
    pub fn mac(&self) -> String {
        format!("52:54:00:77:00:{:02x}", self.number)
    }

    /// The serial number of its disk.
    #[must_use]
    pub fn disk_serial(&self) -> String {
        format!("LAB{:04}", self.number)
    }

    /// The log of its serial console, all boots one after the other.
    #[must_use]
    pub fn console_log(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    /// Its console from now on.
    #[must_use]
    pub fn console(&self) -> Console {
        Console::from_now(&self.console_log())
    }

    /// The device that the next power-on boots first.
    #[must_use]
    pub fn boot_device(&self) -> BootDevice {
        let text = std::fs::read(self.folder.join("boot.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Chooses the device that the next power-on boots first.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn set_boot_device(&self, device: BootDevice) -> Result<()> {
        let path = self.folder.join("boot.json");
        let text = serde_json::to_string(&device).context("describing a boot device")?;
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Whether the machine is on.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.pid().is_some()
    }

    /// Switches on, if it is off. Must be called inside the lab's network namespace if the machine has a network card.
    ///
    /// # Errors
    /// If QEMU does not start.
    pub fn power_on(&self) -> Result<()> {
        let _lock = self.lock()?;
        if self.is_on() {
            return Ok(());
        }
        let mut qemu = self.qemu();
        let output = command::raw_output(&mut qemu)?;
        if !output.status.success() || !self.is_on() {
            bail!("starting {}: {}\n{}", self.name, output.status, command::last_words(&output));
        }
        if self.boot_device() == BootDevice::Pxe && self.tap.is_some() && self.disk.is_some() {
            // The firmware has the order of this start already and reads it anew after a reset.
            self.monitor(&json!({"execute": "qom-set", "arguments":
                {"path": "/machine/peripheral/nic", "property": "bootindex", "value": BEHIND_THE_DISK}}))?;
        }
        self.set_boot_device(BootDevice::default())
    }

    /// Switches off at once, as pulling the plug does.
    ///
    /// # Errors
    /// If the process does not end.
    pub fn power_off(&self) -> Result<()> {
        let _lock = self.lock()?;
        let Some(pid) = self.pid() else { return Ok(()) };
        process::signal(pid, Signal::SIGTERM);
        let gone = |limit| wait::until("QEMU to end", limit, || Ok((!self.is_on()).then_some(())));
        gone(END_LIMIT).or_else(|_| {
            process::signal(pid, Signal::SIGKILL);
            gone(END_LIMIT)
        })
    }

    /// Presses the power button for a moment: the system shuts down, if it listens.
    ///
    /// # Errors
    /// If the machine is off.
    pub fn press_power_button(&self) -> Result<()> {
        self.monitor(&json!({"execute": "system_powerdown"}))
    }

    /// Presses reset.
    ///
    /// # Errors
    /// If the machine is off.
    pub fn reset(&self) -> Result<()> {
        self.monitor(&json!({"execute": "system_reset"}))
    }

    /// Waits until the machine is off.
    ///
    /// # Errors
    /// If it is still on after `limit`: with the end of its console.
    pub fn wait_off(&self, limit: Duration) -> Result<()> {
        let what = format!("{} to switch off", self.name);
        wait::until(&what, limit, || Ok((!self.is_on()).then_some(()))).with_context(|| {
            format!("the end of its console:\n{}", Console::from_start(&self.console_log()).tail())
        })
    }

    /// Types something at the serial console.
    ///
    /// # Errors
    /// If the machine is off.
    pub fn type_line(&self, text: &str) -> Result<()> {
        let path = self.folder.join("serial.sock");
        let connecting = || format!("connecting to {}", path.display());
        let mut socket = UnixStream::connect(&path).with_context(connecting)?;
        socket.write_all(format!("{text}\n").as_bytes()).with_context(connecting)
    }

    /// The file of its UEFI firmware's variables.
    #[must_use]
    pub fn nvram(&self) -> PathBuf {
        self.folder.join("nvram.fd")
    }

    /// The process, if it lives and is this machine's: numbers of processes are used again.
    fn pid(&self) -> Option<u32> {
        let file = self.folder.join("qemu.pid");
        let pid = std::fs::read_to_string(&file).ok()?.trim().parse().ok()?;
        let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let own = String::from_utf8_lossy(&command_line).contains(&*file.to_string_lossy());
        (own && process::is_alive(pid)).then_some(pid)
    }

    /// Power actions come from the test and from the BMC's hook: one after the other.
    fn lock(&self) -> Result<Flock<std::fs::File>> {
        let path = self.folder.join("lock");
        let file =
            std::fs::File::create(&path).with_context(|| format!("opening {}", path.display()))?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .with_context(|| format!("locking {}", path.display()))
    }

    fn qemu(&self) -> Command {
        let path = |name: &str| self.folder.join(name).display().to_string();
        let (network, disk) = match self.boot_device() {
            BootDevice::Pxe => (1, 2),
            BootDevice::Disk => (2, 1),
        };
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-name",
            &self.name,
            "-M",
            "q35,graphics=off",
            "-nodefaults",
            "-display",
            "none",
        ]);
        qemu.args([
            "-accel",
            &self.accel,
            "-cpu",
            if self.accel == "kvm" { "host" } else { "max" },
        ]);
        qemu.args(["-m", &self.memory_mib.to_string(), "-uuid"]);
        qemu.arg(format!("77777777-0000-4000-8000-0000000000{:02x}", self.number));
        qemu.args(["-daemonize", "-pidfile", &path("qemu.pid")]);
        qemu.args(["-qmp", &format!("unix:{},server=on,wait=off", path("qmp.sock"))]);
        qemu.arg("-chardev").arg(format!(
            "socket,id=serial,path={},server=on,wait=off,logfile={},logappend=on",
            path("serial.sock"),
            path("console.log")
        ));
        qemu.args(["-serial", "chardev:serial", "-device", "virtio-rng-pci"]);
        if self.firmware == Firmware::Uefi {
            qemu.arg("-drive")
                .arg(format!("if=pflash,unit=0,format=raw,readonly=on,file={OVMF_CODE}"));
            qemu.arg("-drive")
                .arg(format!("if=pflash,unit=1,format=raw,file={}", self.nvram().display()));
        }
        if let Some(tap) = &self.tap {
            // With UEFI, without iPXE in the card: it is the firmware's own client that must find its way.
            let rom = if self.firmware == Firmware::Uefi { ",romfile=" } else { "" };
            qemu.arg("-netdev").arg(format!("tap,id=net,ifname={tap},script=no,downscript=no"));
            qemu.arg("-device").arg(format!(
                "virtio-net-pci,id=nic,netdev=net,mac={},bootindex={network}{rom}",
                self.mac()
            ));
        }
        if let Some(file) = &self.disk {
            qemu.arg("-drive").arg(format!(
                "if=none,id=disk,format=raw,file={},cache=writeback,discard=unmap",
                file.display()
            ));
            let serial = self.disk_serial();
            qemu.arg("-device")
                .arg(format!("virtio-blk-pci,drive=disk,serial={serial},bootindex={disk}"));
        }
        if let Some(direct) = &self.direct {
            qemu.arg("-kernel").arg(&direct.kernel).arg("-initrd").arg(&direct.initrd);
            qemu.args(["-append", &direct.command_line]);
        }
        qemu
    }

    /// One command of QEMU's monitor.
    fn monitor(&self, order: &Value) -> Result<()> {
        let path = self.folder.join("qmp.sock");
        let talking = || format!("talking to {}", path.display());
        let mut socket = UnixStream::connect(&path).with_context(talking)?;
        socket.set_read_timeout(Some(MONITOR_LIMIT)).with_context(talking)?;
        let mut lines = BufReader::new(socket.try_clone().with_context(talking)?).lines();
        for order in [&json!({"execute": "qmp_capabilities"}), order] {
            writeln!(socket, "{order}").with_context(talking)?;
            loop {
                let line =
                    lines.next().with_context(|| format!("{} closed its monitor", self.name))?;
                let answer: serde_json::Value =
                    serde_json::from_str(&line.with_context(talking)?).with_context(talking)?;
                if answer.get("error").is_some() {
                    bail!("QEMU of {} refuses {order}: {answer}", self.name);
                }
                if answer.get("return").is_some() {
                    break;
                }
            }
        }
        Ok(())
    }
}
