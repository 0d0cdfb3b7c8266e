//! A whole lab: network, image store, controller, and machines with BMCs that are entered as its hosts.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

use crate::bmc::{self, Bmc};
use crate::controller::{self, Controller};
use crate::kernel::Kernel;
use crate::machine::{Firmware, Machine};
use crate::net::Network;
use crate::nfs::NfsServer;
use crate::{accel, agent_build, command, kernel, packages, project, template, wait};

/// Memory of a machine in MiB: the agent takes part of it, the template's system needs little.
const MEMORY_MIB: u32 = 512;
/// What a source's and a target's disk and an image take at most.
const ROOM_BYTES: u64 = 2 * template::DISK_BYTES;
/// Noise for a target's disk comes in pieces of this size.
const NOISE_PIECE: usize = 1 << 20;
/// How long a job may take from its command to its end: five times what the slowest took.
pub const JOB_LIMIT: Duration = Duration::from_secs(900);

/// What the lab runs: built once, the same in every test.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `imprint`.
    pub imprint: PathBuf,
    /// The static agent.
    pub agent: PathBuf,
    /// This package's `xtask`, which the BMCs' hooks call.
    pub xtask: PathBuf,
    /// A folder with the agent's kernel and initrd.
    pub boot: PathBuf,
}

impl Programs {
    /// Builds what is not built yet. `xtask` is the path of that program.
    ///
    /// # Errors
    /// If something does not compile, or a package cannot be fetched.
    pub fn build(xtask: &Path, say: &mut dyn FnMut(&str)) -> Result<Self> {
        say("building the controller");
        let imprint = controller::build()?;
        say("building the static agent (the first time takes minutes)");
        let agent = agent_build::build()?;
        say("fetching a kernel for the agent, unless it is there");
        let kernel = kernel::debian("linux-image-cloud-amd64")?;
        say("baking the initramfs");
        let boot = project::artifacts().join("boot");
        bake(&imprint, &agent, &kernel, &boot)?;
        Ok(Self { imprint, agent, xtask: xtask.to_owned(), boot })
    }
}

/// Everything that takes long and is kept between runs.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// What the lab runs.
    pub programs: Programs,
    /// How QEMU runs guest code: `kvm` or `tcg`.
    pub accel: String,
    /// The template's disk. Work on copies of it.
    pub template: PathBuf,
}

impl Prepared {
    /// Installs, builds and fetches what is not there yet. `xtask` is the path of that program.
    ///
    /// # Errors
    /// If a step fails; the message names it.
    pub fn new(xtask: &Path, say: &mut dyn FnMut(&str)) -> Result<Self> {
        project::ensure_room(ROOM_BYTES)?;
        // Two tests at once would write the same files.
        let lock = project::cache().join("lock");
        let file =
            std::fs::File::create(&lock).with_context(|| format!("creating {}", lock.display()))?;
        let _locked = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .with_context(|| format!("locking {}", lock.display()))?;
        packages::ensure(&[packages::LAB])?;
        let programs = Programs::build(xtask, say)?;
        let accel = accel::choose(&programs.boot)?;
        let template = template::disk(&accel, say)?;
        Ok(Self { programs, accel, template })
    }
}

/// Bakes the agent's initramfs with the command that users have.
fn bake(imprint: &Path, agent: &Path, kernel: &Kernel, boot: &Path) -> Result<()> {
    let mut build = std::process::Command::new(imprint);
    build.args(["initramfs", "build"]).arg("--kernel").arg(&kernel.image);
    build.arg("--modules-dir").arg(&kernel.modules).arg("--agent").arg(agent).arg("-o").arg(boot);
    command::output(&mut build).context("baking the initramfs").map(drop)
}

/// A running lab. Dropping it ends everything that it started.
#[derive(Debug)]
pub struct Lab {
    /// The controller.
    pub controller: Controller,
    /// The image store.
    pub nfs: NfsServer,
    bmcs: Vec<Bmc>,
    // Last: with the namespace everything ends that still runs in it, machines too.
    /// The network.
    pub network: Network,
    programs: Programs,
    accel: String,
    folder: PathBuf,
}

impl Lab {
    /// Starts network, store and controller; everything that they keep is in `folder`.
    ///
    /// # Errors
    /// If one of them does not come up.
    pub fn start(prepared: &Prepared, folder: &Path) -> Result<Self> {
        let programs = &prepared.programs;
        let network = Network::create()?;
        let nfs = NfsServer::start(&network, &folder.join("nfs"))?;
        let store = nfs.url("");
        let controller = Controller::start(
            &network,
            programs,
            store.trim_end_matches('/'),
            &folder.join("controller"),
        )?;
        Ok(Self {
            controller,
            nfs,
            bmcs: Vec::new(),
            network,
            programs: programs.clone(),
            accel: prepared.accel.clone(),
            folder: folder.to_owned(),
        })
    }

    /// Puts a machine into the rack, with its BMC, switched off. Its disk file comes as it is.
    ///
    /// # Errors
    /// If its BMC does not come up.
    pub fn add_machine(
        &mut self,
        name: &str,
        number: u8,
        firmware: Firmware,
        disk: &Path,
    ) -> Result<Machine> {
        let tap = format!("tap{number}");
        self.network.add_tap(&tap)?;
        let machine = Machine {
            name: name.to_owned(),
            number,
            firmware,
            memory_mib: MEMORY_MIB,
            disk: Some(disk.to_owned()),
            tap: Some(tap),
            direct: None,
            accel: self.accel.clone(),
            folder: self.folder.join(name),
        };
        machine.save()?;
        self.bmcs.push(Bmc::start(&self.network, &machine, &self.programs.xtask)?);
        Ok(machine)
    }

    /// A machine's BMC.
    ///
    /// # Panics
    /// If the machine is not of this lab.
    #[must_use]
    pub fn bmc(&self, machine: &Machine) -> &Bmc {
        let address = format!("10.77.0.{}", 10 + machine.number);
        self.bmcs.iter().find(|bmc| bmc.address() == address).expect("the machine is of this lab")
    }

    /// Enters a machine as a host of the controller. `finish` is what it does after a job: `disk` or `off`.
    ///
    /// # Errors
    /// If the controller refuses.
    pub fn enter_host(&self, machine: &Machine, finish: &str) -> Result<()> {
        let bmc = format!("ipmi://10.77.0.{}", 10 + machine.number);
        let mut add = self.controller.imprint(
            &self.network,
            &[
                "host",
                "add",
                &machine.name,
                "--mac",
                &machine.mac(),
                "--bmc",
                &bmc,
                "--bmc-user",
                bmc::USER,
                "--firmware",
                machine.firmware.as_str(),
                "--finish",
                finish,
            ],
        );
        command::output(add.env("IMPRINT_BMC_PASSWORD", bmc::PASSWORD)).map(drop)
    }

    /// The newest job of a host, as `imprint job show --json` has it.
    ///
    /// # Errors
    /// If there is none.
    pub fn last_job(&self, host: &str) -> Result<Value> {
        let jobs =
            self.controller.ask_json(&self.network, &["jobs", "--host", host, "--limit", "1"])?;
        let id = jobs[0]["id"].as_i64().with_context(|| format!("{host} has no job"))?;
        self.controller.ask_json(&self.network, &["job", "show", &id.to_string()])
    }

    /// Starts a job without waiting for it.
    ///
    /// # Errors
    /// If the controller refuses.
    pub fn start_job(&self, words: &[&str]) -> Result<()> {
        self.controller.ask(&self.network, words).map(drop)
    }

    /// Waits until the newest job of a host has succeeded; the job.
    ///
    /// # Errors
    /// If it failed, or takes too long: with the end of the controller's log.
    pub fn wait_job(&self, host: &str) -> Result<Value> {
        let result = wait::until("the job", JOB_LIMIT, || {
            // Between two lives of the controller nobody answers.
            let Ok(job) = self.last_job(host) else { return Ok(None) };
            match job["state"].as_str() {
                Some("succeeded") => Ok(Some(job)),
                Some("failed" | "cancelled") => bail!("the job ended: {job:#}"),
                _ => Ok(None),
            }
        });
        result.with_context(|| self.explain(host))
    }

    /// Waits until the newest job of a host has done part of a stage.
    ///
    /// # Errors
    /// If the job ends before, or takes too long.
    pub fn wait_stage(&self, host: &str, stage: &str) -> Result<()> {
        self.wait_for(host, stage, |job| {
            let progress = &job["progress"];
            progress["stage"] == stage && progress["done_bytes"].as_u64() > Some(0)
        })
    }

    /// Waits until the newest job of a host is in a state.
    ///
    /// # Errors
    /// If the job ends before, or takes too long.
    pub fn wait_state(&self, host: &str, state: &str) -> Result<()> {
        self.wait_for(host, state, |job| job["state"] == state)
    }

    fn wait_for(&self, host: &str, what: &str, there: impl Fn(&Value) -> bool) -> Result<()> {
        let result = wait::until(what, JOB_LIMIT, || {
            let job = self.last_job(host)?;
            ensure!(
                !matches!(job["state"].as_str(), Some("succeeded" | "failed" | "cancelled")),
                "the job ended before it was {what}: {job:#}"
            );
            Ok(there(&job).then_some(()))
        });
        result.with_context(|| self.explain(host))
    }

    /// The ends of the controller's log and of a machine's console, for an error's context.
    #[must_use]
    pub fn explain(&self, host: &str) -> String {
        let tail = |path: &Path| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(15)..].join("\n")
        };
        let console =
            crate::console::Console::from_start(&self.folder.join(host).join("console.log"));
        format!(
            "the controller's log:\n{}\n{host}'s console:\n{}",
            tail(&self.controller.log()),
            console.tail()
        )
    }
}

/// Makes a disk file full of noise, so that nothing on a restored disk can come from anywhere but the image.
///
/// # Errors
/// If it cannot be written.
pub fn noise_disk(path: &Path, len_bytes: u64) -> Result<()> {
    use std::io::{Read, Write};
    let writing = || format!("writing {}", path.display());
    let mut random = std::fs::File::open("/dev/urandom").context("opening /dev/urandom")?;
    let mut file = std::fs::File::create(path).with_context(writing)?;
    let mut piece = vec![0; NOISE_PIECE];
    let mut left = len_bytes;
    while left > 0 {
        let len = usize::try_from(left).unwrap_or(NOISE_PIECE).min(NOISE_PIECE);
        random.read_exact(&mut piece[..len]).context("reading /dev/urandom")?;
        file.write_all(&piece[..len]).with_context(writing)?;
        left -= len as u64;
    }
    Ok(())
}
