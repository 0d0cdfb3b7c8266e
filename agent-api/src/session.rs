//! Who the agent is, and how it proves that this boot was wanted.

use serde::{Deserialize, Serialize};

/// What the per-host initrd segment holds. Minted for one fetch of the boot files while a job is armed; worth one redemption.
#[derive(Clone, Serialize, Deserialize)]
pub struct Ticket {
    /// The host's name, for messages only.
    pub host: String,
    /// The secret that [`Redeem`] sends: 256 random bits in hex.
    pub secret: String,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket").field("host", &self.host).field("secret", &"…").finish()
    }
}

/// The agent's first request: a ticket for a credential.
#[derive(Clone, Serialize, Deserialize)]
pub struct Redeem {
    /// The ticket's secret.
    pub secret: String,
    /// Random 128 bits in hex, new at every boot of the agent: the same value again is a retry of the same redemption, whose
    /// answer got lost, and not a second redemption.
    pub boot_id: String,
    /// The machine that asks; must be the host that the ticket was minted for.
    pub machine: Machine,
}

impl std::fmt::Debug for Redeem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redeem")
            .field("secret", &"…")
            .field("boot_id", &self.boot_id)
            .field("machine", &self.machine)
            .finish()
    }
}

/// The answer to [`Redeem`].
#[derive(Clone, Serialize, Deserialize)]
pub struct Session {
    /// Bearer credential for every later request. Lives as long as the job.
    pub credential: String,
    /// The host's name.
    pub host: String,
    /// Seconds since 1970-01-01 UTC at the controller: the agent sets its clock to it when its own is off by more than a minute.
    pub unix_time_secs: u64,
    /// How often to send [`Heartbeat`], in seconds.
    pub heartbeat_secs: u64,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("credential", &"…")
            .field("host", &self.host)
            .field("unix_time_secs", &self.unix_time_secs)
            .field("heartbeat_secs", &self.heartbeat_secs)
            .finish()
    }
}

/// What a machine says of itself; from DMI and sysfs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// SMBIOS system UUID, lower case, if the firmware has one.
    pub uuid: Option<String>,
    /// SMBIOS vendor, product and serial.
    pub vendor: Option<String>,
    /// Product name.
    pub product: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// `bios` or `uefi`.
    pub firmware: String,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Logical processors.
    pub cpus: u32,
    /// Network interfaces.
    pub nics: Vec<Nic>,
    /// Disks.
    pub disks: Vec<DiskInfo>,
    /// Version of the agent.
    pub agent_version: String,
}

/// One network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Nic {
    /// Kernel name.
    pub name: String,
    /// `52:54:00:77:00:01`, lower case.
    pub mac: String,
    /// Whether it has a carrier.
    pub link: bool,
    /// IPv4 addresses with prefix length, `10.77.0.100/24`.
    pub addresses: Vec<String>,
    /// Kernel driver.
    pub driver: Option<String>,
    /// Whether the machine booted from it (`BOOTIF`).
    pub booted: bool,
}

/// One disk, as found in sysfs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskInfo {
    /// Device node, `/dev/sda`. Names move between boots: identity is `wwn` and `serial`.
    pub path: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Logical sector size in bytes.
    pub logical_sector_bytes: u32,
    /// Physical sector size in bytes.
    pub physical_sector_bytes: u32,
    /// Model.
    pub model: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// World wide name.
    pub wwn: Option<String>,
    /// `virtio`, `nvme`, `sata`, `sas`, `usb`, `loop` …
    pub transport: Option<String>,
    /// Stable path names below `/dev/disk/by-path`, without the folder.
    pub by_path: Option<String>,
    /// Whether the kernel says that it spins.
    pub rotational: bool,
    /// Whether the medium can be taken out.
    pub removable: bool,
    /// Whether the kernel refuses writes.
    pub read_only: bool,
}

/// Sent every [`Session::heartbeat_secs`], whatever the worker does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Heartbeat {
    /// Same as in [`Redeem`].
    pub boot_id: String,
    /// Seconds since the kernel started.
    pub uptime_secs: u64,
    /// The job that a worker runs now.
    pub job: Option<String>,
}

/// What the controller wants of the agent, in every answer to a report or heartbeat.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Orders {
    /// End this job's worker: the job was cancelled.
    pub cancel_job: Option<String>,
}
