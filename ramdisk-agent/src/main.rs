//! The `imprint-agent` command.

use std::process::ExitCode;

use clap::Parser;
use ramdisk_agent::init::{self, Role};

/// musl's allocator costs a factor of two to six under threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match init::role() {
        Some(Role::Init) => return init::main(),
        Some(Role::Modprobe) => return init::modprobe_main(),
        None => {}
    }
    let cli = ramdisk_agent::cli::Cli::parse();
    ExitCode::from(ramdisk_agent::cli::main(&cli))
}
