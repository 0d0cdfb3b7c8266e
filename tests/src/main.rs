//! `cargo xtask`: everything that a newcomer or CI types.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
    /// Build the static agent: target/imprint/imprint-agent
    Agent,
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Agent => xtask::agent(),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
