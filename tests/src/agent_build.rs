//! Builds the static agent.
//!
//! Where rustup has the musl target, or can fetch it, plain cargo does it. Elsewhere Debian's `rustc-web` builds the standard
//! library along, and zig (from PyPI) compiles C and links. Either way the result is a program that needs nothing but a kernel,
//! which is checked. Objects stay in `target/agent`: the first build takes minutes, later ones seconds.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{command, packages, project};

const TARGET: &str = "x86_64-unknown-linux-musl";
/// Pinned together: each zig needs a zigbuild that knows it.
const ZIG_PACKAGES: [&str; 2] = ["ziglang==0.17.1", "cargo-zigbuild==0.24.0"];

/// Builds the agent; the path of the program.
///
/// # Errors
/// If no way to build leads to a static program.
pub fn build() -> Result<PathBuf> {
    let target_dir = project::target().join("agent");
    let mut cargo = if has_rustup_target() { by_rustup()? } else { by_zig()? };
    cargo
        .args(["--release", "--target", TARGET, "--package", "ramdisk-agent"])
        .env("CARGO_TARGET_DIR", &target_dir)
        .current_dir(project::root());
    command::show(&mut cargo).context("building the agent")?;
    let built = target_dir.join(TARGET).join("release/imprint-agent");
    ensure!(
        initramfs::is_static_program(&built)?,
        "{} is linked dynamically: the kernel could not start it as /init",
        built.display()
    );
    install(&built, &agent())?;
    Ok(agent())
}

/// Where [`build`] puts the agent.
#[must_use]
pub fn agent() -> PathBuf {
    project::artifacts().join("imprint-agent")
}

/// Replaces `to` as a whole: a machine may be reading it.
fn install(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().expect("a file in the artifacts folder");
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let partial = to.with_extension("partial");
    std::fs::copy(from, &partial).with_context(|| format!("copying {}", from.display()))?;
    std::fs::rename(&partial, to).with_context(|| format!("writing {}", to.display()))
}

/// Whether rustup's toolchain can build for musl, now or after fetching the target.
fn has_rustup_target() -> bool {
    let rustup = |args: &[&str]| {
        let mut command = clean("rustup");
        // In the checkout, so that an override of the toolchain counts.
        command::output(command.args(args).current_dir(project::root()))
    };
    let installed =
        || rustup(&["target", "list", "--installed"]).is_ok_and(|t| t.lines().any(|l| l == TARGET));
    if installed() {
        return true;
    }
    eprintln!("fetching rustup's target {TARGET}");
    match rustup(&["target", "add", TARGET]) {
        Ok(_) => installed(),
        Err(_) => {
            eprintln!("rustup cannot: using Debian's rustc-web with zig instead");
            false
        }
    }
}

fn by_rustup() -> Result<Command> {
    packages::ensure(&[packages::AGENT_BY_RUSTUP])?;
    let mut cargo = clean("cargo");
    cargo.arg("build").env("CC_x86_64_unknown_linux_musl", "musl-gcc");
    Ok(cargo)
}

fn by_zig() -> Result<Command> {
    packages::ensure(&[packages::AGENT_BY_ZIG])?;
    let bin = zig_tools()?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut cargo = clean(bin.join("cargo-zigbuild"));
    cargo
        .args(["zigbuild", "-Zbuild-std=std,panic_unwind"])
        .env("PATH", format!("/usr/bin:{}:{path}", bin.display()))
        .env("RUSTC", "/usr/bin/rustc")
        // -Zbuild-std is a nightly option; it is how a distribution's compiler gets a standard library for musl.
        .env("RUSTC_BOOTSTRAP", "1")
        // Zig brings its own start files and libc.
        .env("RUSTFLAGS", "-C link-self-contained=no");
    Ok(cargo)
}

/// A Python environment with zig; the folder of its programs.
fn zig_tools() -> Result<PathBuf> {
    let venv = project::target().join("tools/zig");
    let stamp = venv.join("installed");
    let wanted = ZIG_PACKAGES.join(" ");
    if std::fs::read_to_string(&stamp).is_ok_and(|text| text == wanted) {
        return Ok(venv.join("bin"));
    }
    eprintln!("installing {wanted} into {}", venv.display());
    command::output(Command::new("python3").args(["-m", "venv"]).arg(&venv))
        .context("making a Python environment")?;
    let mut pip = Command::new(venv.join("bin/pip"));
    command::output(pip.args(["install", "--quiet"]).args(ZIG_PACKAGES))
        .context("installing zig")?;
    std::fs::write(&stamp, wanted).with_context(|| format!("writing {}", stamp.display()))?;
    Ok(venv.join("bin"))
}

/// A command without what cargo and rustup set for the running xtask, which would tie it to the wrong toolchain.
fn clean(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    for name in [
        "CARGO",
        "RUSTC",
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTUP_TOOLCHAIN",
    ] {
        command.env_remove(name);
    }
    command
}
