//! `cargo xtask`: everything that a newcomer or CI types.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tests::suite::Part;

mod xtask;

/// Imprint's tasks
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Capture one virtual machine, imprint another, boot it: installs what is missing first
    Demo {
        /// Machines with UEFI firmware instead of BIOS
        #[arg(long)]
        uefi: bool,
    },
    /// Run the tests: checks, unit and property tests, virtual machines; installs what is missing first
    Test {
        /// Only this part
        #[arg(long, value_enum)]
        only: Option<Part>,
        /// Instead: the long forms of the suites that have one (hours)
        #[arg(long, conflicts_with = "only")]
        long: bool,
        /// Instead: everything that networks and servers do to stores (minutes)
        #[arg(long, conflicts_with_all = ["only", "long"])]
        faults: bool,
    },
    /// Build the static agent: target/imprint/imprint-agent
    Agent,
    /// Compare our speed with partclone's, qemu-img's and others', and write docs/performance.md
    Bench(tests::bench::Options),
    /// Make the lab's template: a small Debian disk that has booted once
    Template,
    /// What a lab BMC calls to work its machine's power
    #[command(hide = true)]
    BmcChassis {
        /// The machine's folder
        machine: PathBuf,
        /// What to do, as ipmi_sim says it
        words: Vec<String>,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Demo { uefi } => xtask::demo(uefi),
        Task::Test { faults: true, .. } => xtask::test_faults(),
        Task::Test { long: true, .. } => xtask::test_long(),
        Task::Test { only, .. } => xtask::test(only),
        Task::Agent => xtask::agent(),
        Task::Bench(options) => xtask::bench(&options),
        Task::Template => xtask::template(),
        Task::BmcChassis { machine, words } => xtask::bmc_chassis(&machine, &words),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
