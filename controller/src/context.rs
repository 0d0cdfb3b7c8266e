//! What every handler and every job's driver works with.

use std::path::PathBuf;
use std::sync::Arc;

use crate::bmc::Bmcs;
use crate::db::Db;
use crate::dhcp::Dhcp;
use crate::live::Live;
use crate::names::KernelArgs;
use crate::store::Stores;
use crate::store::agent_program::AgentProgram;
use crate::tasks::Tasks;

/// Kernel and initramfs of the agent.
#[derive(Debug, Clone)]
pub struct BootFiles {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
}

/// What boot scripts are made of.
#[derive(Debug, Clone)]
pub struct BootSettings {
    /// `http://A:P` of the boot files.
    pub http_url: String,
    /// `https://A:P` of API and agents.
    pub https_url: String,
    /// Pin of the controller's key.
    pub pin: String,
    /// For every machine.
    pub kernel_args: KernelArgs,
    /// The agent's files; without them no job is accepted.
    pub files: Option<BootFiles>,
    /// Where iPXE's own files lie, for UEFI HTTP boot.
    pub loader_dir: Option<PathBuf>,
}

/// The controller.
#[derive(Debug)]
pub struct Controller {
    /// What it remembers.
    pub db: Db,
    /// What it knows of the moment.
    pub live: Live,
    /// Its way to power and boot devices.
    pub bmcs: Bmcs,
    /// What its boot scripts are made of.
    pub boot: BootSettings,
    /// Its DHCP entries, if it serves DHCP.
    pub dhcp: Option<Arc<Dhcp>>,
    /// Where images lie.
    pub stores: Stores,
    /// What is being done with images without a machine.
    pub tasks: Tasks,
    /// `imprint-agent` for this machine, which does what is to be done in stores.
    pub agent: AgentProgram,
    /// Time limits of jobs.
    pub limits: crate::reconcile::Limits,
}

impl Controller {
    /// Whether there are files to boot an agent with.
    #[must_use]
    pub fn boots_agents(&self) -> bool {
        self.boot.files.is_some()
    }
}
