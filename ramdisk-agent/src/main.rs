//! The `imprint-agent` command.

use std::process::ExitCode;

use clap::Parser;

/// musl's allocator costs a factor of two to six under threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = ramdisk_agent::cli::Cli::parse();
    ExitCode::from(ramdisk_agent::cli::main(&cli))
}
