//! The tasks.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use tests::{agent_build, bmc, packages, template};

/// Builds the agent.
pub fn agent() -> Result<ExitCode> {
    let agent = agent_build::build()?;
    println!("{}", agent.display());
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
