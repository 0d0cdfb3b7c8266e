//! Power and boot device of a host, through its BMC.
//!
//! [`Bmcs`] gives each BMC one command at a time with a pause between, repeats what may be repeated, remembers the cipher suite that
//! worked, and sends nothing more to a BMC that refused its password once. Judging whether a command had its effect is the caller's
//! part: a BMC that answers "ok" has promised something, not done it.

pub mod ipmi;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::db::{BmcRow, Db, Host};
use crate::host::Firmware;
use crate::secret::{Sealer, random_bytes};
use ipmi::Target;

/// Pause between two commands to one BMC: some crash when they are hurried.
const PAUSE: Duration = Duration::from_secs(1);
/// Waits before a command that failed is tried again; each is jittered by up to half of itself.
const LADDER: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(8)];

/// Whether a machine has power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// It runs.
    On,
    /// It does not.
    Off,
}

impl Power {
    /// The text form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

/// What a BMC can be asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Give power.
    On,
    /// Cut power.
    Off,
    /// Press the power button: the system shuts down if it listens.
    Soft,
    /// Cut power and give it again.
    Cycle,
    /// Boot from the network, the next time only.
    BootPxe,
    /// Boot from the disk, the next time only.
    BootDisk,
}

impl Command {
    /// The name under which it is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Soft => "soft",
            Self::Cycle => "cycle",
            Self::BootPxe => "boot_pxe",
            Self::BootDisk => "boot_disk",
        }
    }
}

/// Why a BMC did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BmcError {
    /// The host has none: somebody has to press the button.
    #[error("host {0} has no BMC: switch it by hand")]
    Manual(String),
    /// Wrong user or password; nothing more is sent until they change.
    #[error(
        "the BMC of host {0} refused its user or password: correct them with `imprint host set {0} --bmc-user … --bmc-password-file …`"
    )]
    Refused(String),
    /// It does not answer.
    #[error("the BMC of host {host} does not answer: {detail}")]
    Unreachable {
        /// The host.
        host: String,
        /// What ipmitool said.
        detail: String,
    },
    /// It answered with an error.
    #[error("the BMC of host {host} failed: {detail}")]
    Failed {
        /// The host.
        host: String,
        /// What ipmitool said.
        detail: String,
    },
    /// The tool cannot be run.
    #[error("running {tool}", tool = tool.display())]
    Tool {
        /// Path of ipmitool.
        tool: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The password cannot be opened.
    #[error(transparent)]
    Unseal(#[from] crate::secret::UnsealError),
    /// What was learned could not be stored.
    #[error(transparent)]
    Db(#[from] crate::db::DbError),
}

impl BmcError {
    /// Whether the same command may work a little later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Failed { .. })
    }
}

/// All BMCs.
#[derive(Debug)]
pub struct Bmcs {
    tool: PathBuf,
    db: Db,
    sealer: Sealer,
    // Per host: when its BMC may be spoken to again.
    gates: Mutex<HashMap<i64, Arc<tokio::sync::Mutex<Instant>>>>,
}

impl Bmcs {
    /// Commands go through the ipmitool at `tool`.
    #[must_use]
    pub fn new(tool: PathBuf, db: Db, sealer: Sealer) -> Self {
        Self { tool, db, sealer, gates: Mutex::default() }
    }

    /// Seals a BMC's password for the database.
    #[must_use]
    pub fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// Whether the machine has power.
    ///
    /// # Errors
    /// When the BMC does not say.
    pub async fn power(&self, host: &Host) -> Result<Power, BmcError> {
        let said = self.run(host, &["chassis", "power", "status"]).await?;
        // "Chassis Power is on"
        match said.trim().rsplit(' ').next() {
            Some("on") => Ok(Power::On),
            Some("off") => Ok(Power::Off),
            _ => Err(BmcError::Failed {
                host: host.name.clone(),
                detail: format!("it calls its power state {:?}", said.trim()),
            }),
        }
    }

    /// Asks the BMC to do something. All but [`Command::Cycle`] may be asked twice without harm.
    ///
    /// # Errors
    /// When it refuses or does not answer.
    pub async fn command(&self, host: &Host, command: Command) -> Result<(), BmcError> {
        let efi = host.firmware == Firmware::Uefi;
        let args: &[&str] = match command {
            Command::On => &["chassis", "power", "on"],
            Command::Off => &["chassis", "power", "off"],
            Command::Soft => &["chassis", "power", "soft"],
            Command::Cycle => &["chassis", "power", "cycle"],
            Command::BootPxe if efi => &["chassis", "bootdev", "pxe", "options=efiboot"],
            Command::BootPxe => &["chassis", "bootdev", "pxe"],
            Command::BootDisk if efi => &["chassis", "bootdev", "disk", "options=efiboot"],
            Command::BootDisk => &["chassis", "bootdev", "disk"],
        };
        tracing::info!(host = host.name, command = command.as_str(), "asking the BMC");
        self.run(host, args).await.map(drop)
    }

    async fn run(&self, host: &Host, args: &[&str]) -> Result<String, BmcError> {
        // The stored row is read again: the credentials may have changed, or been refused, since the caller got its copy.
        let host = self.db.host_by_id(host.id).await?;
        let BmcRow::Ipmi { host: address, port, user, password, cipher, refused } = &host.bmc
        else {
            return Err(BmcError::Manual(host.name));
        };
        if *refused {
            return Err(BmcError::Refused(host.name));
        }
        let target = Target {
            host: address.clone(),
            port: *port,
            user: user.clone(),
            password: self.sealer.open(&host.name, password)?,
        };
        let gate = {
            let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(
                gates
                    .entry(host.id)
                    .or_insert_with(|| Arc::new(tokio::sync::Mutex::new(Instant::now()))),
            )
        };
        let mut free_at = gate.lock().await;
        let mut waits = LADDER.iter();
        loop {
            sleep_until(*free_at).await;
            let result = ipmi::run(&self.tool, &target, *cipher, args).await;
            *free_at = Instant::now() + PAUSE;
            let error = match result {
                Ok((said, worked)) => {
                    if Some(worked) != *cipher {
                        self.db.set_bmc_cipher(host.id, worked).await?;
                    }
                    return Ok(said);
                }
                Err(ipmi::Failure::Refused) => {
                    self.db.set_bmc_refused(host.id).await?;
                    return Err(BmcError::Refused(host.name));
                }
                Err(ipmi::Failure::NoAnswer(detail) | ipmi::Failure::Unreachable(detail)) => {
                    BmcError::Unreachable { host: host.name.clone(), detail }
                }
                Err(ipmi::Failure::Other(detail)) => {
                    BmcError::Failed { host: host.name.clone(), detail }
                }
                Err(ipmi::Failure::Tool(source)) => {
                    return Err(BmcError::Tool { tool: self.tool.clone(), source });
                }
            };
            match waits.next() {
                Some(wait) => {
                    tracing::warn!(host = host.name, %error, "trying again");
                    sleep(jittered(*wait)).await;
                }
                None => return Err(error),
            }
        }
    }
}

/// Up to half longer, so that a rack whose switch came back does not answer in step.
fn jittered(wait: Duration) -> Duration {
    let [byte] = random_bytes::<1>();
    wait + wait.mul_f64(f64::from(byte) / 512.0)
}
