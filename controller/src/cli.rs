//! The command line: `serve`, and a client for everything that the API offers.
//!
//! Exit codes: 0 done, 1 not done (a job that was waited for and failed is one), 2 wrong use.

pub mod connect;
mod hosts;
mod images;
mod jobs;
mod stores;
mod table;
mod tokens;
mod watch;

use std::io;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::serve::{self, ServeArgs};
use connect::{Client, Connection};

/// Capture machines' disks over the network and imprint them on others
#[derive(Debug, Parser)]
#[command(name = "imprint", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the controller: API, jobs, boot files, DHCP
    Serve(Box<ServeArgs>),
    /// Enter, show, change, remove and switch hosts
    #[command(subcommand)]
    Host(hosts::HostCommand),
    /// Save a host's disk as an image
    Capture(jobs::CaptureArgs),
    /// Write an image to a host's disk
    Restore(jobs::RestoreArgs),
    /// List images
    Images(images::ListArgs),
    /// Show, enter, copy, check and remove images
    #[command(subcommand)]
    Image(images::ImageCommand),
    /// Name, show, try out, change and forget stores, where images lie
    #[command(subcommand)]
    Store(stores::StoreCommand),
    /// List jobs
    Jobs(jobs::ListArgs),
    /// Show, approve, cancel and resume jobs
    #[command(subcommand)]
    Job(jobs::JobCommand),
    /// Follow a job until it ends
    Watch(watch::WatchArgs),
    /// Make, list and remove API tokens
    #[command(subcommand)]
    Token(tokens::TokenCommand),
    /// Bake the initramfs that machines boot the agent from
    #[command(subcommand)]
    Initramfs(InitramfsCommand),
    /// Print shell completions
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Write man pages to a folder
    Man {
        /// The folder; made if need be
        folder: std::path::PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum InitramfsCommand {
    /// Build the initramfs that carries the agent, with the kernel beside it
    Build(Box<initramfs::cli::BuildArgs>),
}

/// Parses the command line and does it.
#[must_use]
pub fn main() -> ExitCode {
    match dispatch(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("imprint: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Serve(args) => {
            log_to_stderr();
            serve::run(*args)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Initramfs(InitramfsCommand::Build(args)) => initramfs::cli::run(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "imprint", &mut io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { folder } => {
            std::fs::create_dir_all(&folder)
                .with_context(|| format!("making the folder {}", folder.display()))?;
            clap_mangen::generate_to(Cli::command(), &folder)
                .with_context(|| format!("writing man pages to {}", folder.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        command => {
            let client = Client::new(&cli.connection)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("starting the runtime")?;
            runtime.block_on(ask(&client, command))
        }
    }
}

async fn ask(client: &Client, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Host(command) => hosts::run(client, command).await?,
        Command::Images(args) => images::list(client, &args).await?,
        Command::Image(command) => images::run(client, command).await?,
        Command::Store(command) => stores::run(client, command).await?,
        Command::Jobs(args) => jobs::list(client, &args).await?,
        Command::Token(command) => tokens::run(client, command).await?,
        Command::Job(command) => jobs::run(client, command).await?,
        Command::Capture(args) => return jobs::capture(client, args).await,
        Command::Restore(args) => return jobs::restore(client, args).await,
        Command::Watch(args) => return watch::run(client, &args).await,
        Command::Serve(_)
        | Command::Initramfs(_)
        | Command::Completions { .. }
        | Command::Man { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn log_to_stderr() {
    let filter =
        EnvFilter::try_from_env("IMPRINT_LOG").unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_sound() {
        Cli::command().debug_assert();
    }

    /// Clap gives arguments of one id one value, and checks that only within a command: a secret for one place would go to another.
    #[test]
    fn no_command_has_an_argument_of_an_options_name_that_all_have() {
        fn check(command: &clap::Command, inherited: &[String]) {
            let own = || command.get_arguments();
            for argument in own() {
                let id = argument.get_id().to_string();
                assert!(!inherited.contains(&id), "{}: {id}", command.get_name());
            }
            let global = own().filter(|argument| argument.is_global_set());
            let mut inherited = inherited.to_vec();
            inherited.extend(global.map(|argument| argument.get_id().to_string()));
            command.get_subcommands().for_each(|below| check(below, &inherited));
        }
        let command = Cli::command();
        assert!(command.get_arguments().any(clap::Arg::is_global_set));
        check(&command, &[]);
    }
}
