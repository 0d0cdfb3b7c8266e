//! `cargo xtask bench`: how fast we are, beside those that we want to replace.
//!
//! Programs run in turn, on the same input, and are compared with their neighbours in time: on a machine with other work, seconds
//! mean little and ratios nearly as much as ever. What is measured is the static agent, as users run it. Results are kept in
//! `docs/performance.md`, whose plot is drawn of them.

mod block;
mod content;
mod deltas;
mod figures;
mod filesystem;
mod peers;
mod plot;
mod races;
mod report;
mod run;
mod stats;
mod stores;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

pub use filesystem::Filesystem;

use crate::{agent_build, command, packages, project};
use peers::Sleepless;
use report::{Results, Table};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Measure {
    /// Capture, with the disk's content in memory
    Capture,
    /// Capture, with nothing of the disk in memory
    Cold,
    /// Restore onto a disk
    Restore,
    /// Restore onto a disk that is memory
    IntoMemory,
    /// An image of an updated system, beside restic and borg
    DeltaImage,
    /// What a partition costs, however small
    Fixed,
    /// Restore of what is there already
    Delta,
    /// Peak memory, and a machine that has little
    Memory,
    /// Rates of NFS, SMB and HTTP beside other clients
    Stores,
}

/// What to measure, and with what.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only these measures
    #[arg(long, value_enum, value_delimiter = ',')]
    pub only: Vec<Measure>,
    /// The size of the measured filesystem, in GiB
    #[arg(long, default_value_t = 6, value_name = "GIB", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub size: u64,
    /// How often each program runs
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub rounds: u32,
    /// The measured filesystems
    #[arg(long, value_enum, value_delimiter = ',', default_value = "ext4,xfs,ntfs,btrfs")]
    pub filesystem: Vec<Filesystem>,
    /// Leave out the programs that run once only, because they take long
    #[arg(long)]
    pub quick: bool,
    /// Keep the inputs for another time
    #[arg(long)]
    pub keep: bool,
}

/// A run of the benchmarks.
#[derive(Debug)]
struct Bench<'a> {
    options: &'a Options,
    agent: PathBuf,
    limit: PathBuf,
    sleepless: Sleepless,
    /// Inputs, targets, images to restore from.
    folder: PathBuf,
    /// Where images are written to in races: memory, so that no disk is measured along.
    memory: tempfile::TempDir,
}

/// Measures, and writes the report.
///
/// # Errors
/// If we are not root, a program is missing or fails, or there is no room.
pub fn run(options: &Options) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the benchmarks mount filesystems and make loop devices: run them as root");
    }
    packages::ensure(&[packages::BENCH, packages::BENCH_STORES])?;
    let folder = project::target().join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let bench = Bench {
        options,
        agent: agent_build::build()?,
        // Of no use to stores, and minutes of building.
        limit: if options.only == [Measure::Stores] { PathBuf::new() } else { build_limit()? },
        sleepless: Sleepless::build(&folder)?,
        memory: tempfile::tempdir_in("/dev/shm").context("making a folder in memory")?,
        folder,
    };
    let mut results = Results::load()?;
    if options.only.is_empty() || options.only.contains(&Measure::Stores) {
        let table = bench.stores().context("measuring stores")?;
        results.put("8 stores", &table)?;
    }
    for &filesystem in &options.filesystem {
        let name = filesystem.name();
        let mut put = |measure: Measure, key: String, make: &dyn Fn() -> Result<Table>| {
            if options.only.is_empty() || options.only.contains(&measure) {
                eprintln!("{key}");
                let table = make().with_context(|| format!("measuring {key}"))?;
                results.put(&key, &table)?;
            }
            Ok::<_, anyhow::Error>(())
        };
        put(Measure::Capture, format!("1 capture {name}"), &|| bench.capture(filesystem, false))?;
        put(Measure::Cold, format!("2 cold {name}"), &|| bench.capture(filesystem, true))?;
        put(Measure::Restore, format!("3 restore {name}"), &|| bench.restore(filesystem))?;
        if filesystem == Filesystem::Ext4 {
            put(Measure::IntoMemory, "4 into memory".into(), &|| bench.restore_into_memory())?;
            put(Measure::Delta, "5 delta".into(), &|| bench.delta_restore())?;
            put(Measure::DeltaImage, "5 delta image".into(), &|| bench.delta_image())?;
            put(Measure::Fixed, "6 fixed".into(), &|| bench.fixed_cost())?;
            put(Measure::Memory, "7 memory".into(), &|| bench.memory())?;
        }
        if !options.keep {
            run::remove(&bench.input_path(filesystem))?;
        }
    }
    if !options.keep {
        // What is left are targets and images.
        for name in ["images", "inputs", "targets"] {
            let _ = fs::remove_dir_all(bench.folder.join(name));
        }
    }
    Ok(())
}

impl Bench<'_> {
    fn input_path(&self, filesystem: Filesystem) -> PathBuf {
        self.folder.join(format!("{}-{}.img", filesystem.name(), self.options.size))
    }

    /// The filesystem to measure; made now if it is not there.
    fn input(&self, filesystem: Filesystem) -> Result<PathBuf> {
        let path = self.input_path(filesystem);
        if !path.exists() {
            eprintln!("  making {}", path.display());
            filesystem.make(&path, self.options.size << 30)?;
        }
        Ok(path)
    }

    /// A folder of ours for this.
    fn subfolder(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(path)
    }

    /// What everything depends on, in a sentence.
    fn conditions(&self, what: &str) -> Result<String> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")
            .context("asking the kernel's version")?;
        let cpus = fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let cores = std::thread::available_parallelism().context("counting cores")?;
        Ok(format!(
            "{what} {} rounds. {cores} cores ({}), Linux {}; {}.",
            self.options.rounds,
            model.map_or("unknown", |(_, name)| name),
            kernel.trim(),
            versions()?
        ))
    }
}

/// The peers' versions, as Debian names them.
fn versions() -> Result<String> {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f", "${Package} ${Version}\n"]);
    query.args(["partclone", "zstd", "lz4", "pigz", "qemu-utils"]);
    Ok(command::output(&mut query)?.lines().collect::<Vec<_>>().join(", "))
}

/// Builds the program that measures the limit.
fn build_limit() -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "image-format",
        "--example",
        "limit",
    ]);
    command::show(cargo.current_dir(project::root())).context("building the limit's program")?;
    Ok(project::target().join("release/examples/limit"))
}

/// Bytes of a file.
fn file_len(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path).with_context(|| format!("looking at {}", path.display()))?.len())
}
