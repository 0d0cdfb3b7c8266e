//! The tasks.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use tests::machine::Firmware;
use tests::suite::{self, Part};
use tests::{agent_build, bench, bmc, demo, faults, packages, template};

/// The main job, on virtual machines.
pub fn demo(uefi: bool) -> Result<ExitCode> {
    let own = std::env::current_exe().context("finding the running program")?;
    demo::run(&own, if uefi { Firmware::Uefi } else { Firmware::Bios })?;
    Ok(ExitCode::SUCCESS)
}

/// All tests, or a part of them.
pub fn test(only: Option<Part>) -> Result<ExitCode> {
    let own = std::env::current_exe().context("finding the running program")?;
    suite::run(&own, only)?;
    Ok(ExitCode::SUCCESS)
}

/// The long forms of the suites.
pub fn test_long() -> Result<ExitCode> {
    suite::run_long()?;
    Ok(ExitCode::SUCCESS)
}

/// The fault suite of the stores.
pub fn test_faults() -> Result<ExitCode> {
    faults::run()?;
    Ok(ExitCode::SUCCESS)
}

/// Builds the agent.
pub fn agent() -> Result<ExitCode> {
    let agent = agent_build::build()?;
    println!("{}", agent.display());
    Ok(ExitCode::SUCCESS)
}

/// Compares speeds.
pub fn bench(options: &bench::Options) -> Result<ExitCode> {
    bench::run(options)?;
    Ok(ExitCode::SUCCESS)
}

/// Makes the template's disk.
pub fn template() -> Result<ExitCode> {
    packages::ensure(&[packages::LAB])?;
    let disk = template::disk("tcg", &mut |text| eprintln!("{text}"))?;
    println!("{}", disk.display());
    Ok(ExitCode::SUCCESS)
}

/// Answers a lab BMC.
pub fn bmc_chassis(machine: &Path, words: &[String]) -> Result<ExitCode> {
    print!("{}", bmc::chassis(machine, words)?);
    Ok(ExitCode::SUCCESS)
}
