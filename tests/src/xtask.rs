//! The tasks.

use std::process::ExitCode;

use anyhow::Result;
use tests::agent_build;

/// Builds the agent.
pub fn agent() -> Result<ExitCode> {
    let agent = agent_build::build()?;
    println!("{}", agent.display());
    Ok(ExitCode::SUCCESS)
}
