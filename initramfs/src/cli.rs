//! The command line of the builder: `imprint initramfs build`.
//!
//! The arguments and what they do are here, so that every program that offers the command offers the same.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use crate::{Compression, ModuleSet, Options, extras};

/// Build the initramfs that carries the agent, with the kernel beside it
#[derive(Debug, Clone, clap::Args)]
pub struct BuildArgs {
    /// The kernel image (vmlinuz)
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// The kernel's modules, such as /lib/modules/6.1.0-56-amd64
    #[arg(long, value_name = "DIR")]
    pub modules_dir: PathBuf,
    /// The static agent [default: imprint-agent beside this program, or /usr/lib/imprint/imprint-agent]
    #[arg(long, value_name = "FILE")]
    pub agent: Option<PathBuf>,
    /// The set of modules to begin with
    #[arg(long, value_enum, default_value_t)]
    pub modules: ModuleSet,
    /// Another module: a name, a folder such as drivers/infiniband/, or a modalias; a name is also loaded at boot
    #[arg(long = "module", value_name = "NAME")]
    pub module: Vec<String>,
    /// Where the modules' firmware files are, such as /lib/firmware
    #[arg(long, value_name = "DIR")]
    pub firmware_dir: Option<PathBuf>,
    /// Another file or folder, and its absolute path inside
    #[arg(long, value_name = "FILE:PATH")]
    pub add: Vec<String>,
    /// A script or program that the agent runs before work; hooks run in the order of their names
    #[arg(long, value_name = "SCRIPT")]
    pub hook: Vec<PathBuf>,
    /// A setting of the agent, such as imprint.dhcp_timeout=30; the kernel command line overrides it
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// How to compress
    #[arg(long, value_enum, default_value_t)]
    pub compress: Compression,
    /// The folder for kernel, initrd and manifest.json
    #[arg(short, long, value_name = "DIR", default_value = "boot")]
    pub output: PathBuf,
    /// Name the devices of a machine that the image cannot drive, and exit with 1 if there are any; the file holds the output of
    /// `cat /sys/bus/*/devices/*/modalias` on that machine
    #[arg(long, value_name = "MODALIAS-FILE")]
    pub audit: Option<PathBuf>,
    /// Print the manifest, and the audit, as JSON
    #[arg(long)]
    pub json: bool,
}

/// Does what the arguments say. The exit code is 1 if an audit found gaps.
///
/// # Errors
/// Whatever keeps the image from being built, with nothing written.
pub fn run(args: &BuildArgs) -> anyhow::Result<ExitCode> {
    let options = Options {
        kernel: args.kernel.clone(),
        modules_dir: args.modules_dir.clone(),
        agent: match &args.agent {
            Some(path) => path.clone(),
            None => installed_agent()?,
        },
        module_set: args.modules,
        modules: args.module.clone(),
        firmware_dir: args.firmware_dir.clone(),
        add: args.add.iter().map(|text| extras::split_add(text)).collect::<Result<_, _>>()?,
        hooks: args.hook.clone(),
        settings: args.set.clone(),
        compression: args.compress,
        mtime: source_date()?,
    };
    let machine = args
        .audit
        .as_ref()
        .map(|path| {
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
        })
        .transpose()?;
    let built = crate::build(&options)?;
    built.write(&args.output)?;
    let audit = machine.map(|modaliases| crate::audit(&built, &modaliases));
    if args.json {
        let value = serde_json::json!({ "manifest": built.manifest, "audit": audit });
        println!("{}", serde_json::to_string_pretty(&value).context("writing JSON")?);
    } else {
        print!("{}", built.manifest);
        println!("written to {}: kernel, initrd, manifest.json", args.output.display());
        if let Some(audit) = &audit {
            print!("{audit}");
        }
    }
    Ok(if audit.is_some_and(|a| a.has_gaps()) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The agent that was installed with this program.
fn installed_agent() -> anyhow::Result<PathBuf> {
    let beside =
        std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("imprint-agent")));
    let places = [beside, Some(PathBuf::from("/usr/lib/imprint/imprint-agent"))];
    let found =
        places.into_iter().flatten().find(|path| crate::is_static_program(path).unwrap_or(false));
    found.context("finding the agent: there is no static imprint-agent beside this program or in /usr/lib/imprint; give --agent FILE (cargo xtask agent builds one)")
}

/// The time of every entry: that of the source, if the builder's environment says it, as reproducible-builds.org defines.
fn source_date() -> anyhow::Result<u32> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text.parse().with_context(|| format!("reading SOURCE_DATE_EPOCH={text}")),
        Err(_) => Ok(0),
    }
}
