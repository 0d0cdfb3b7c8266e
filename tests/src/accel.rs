//! Chooses how QEMU runs guest code: `kvm` where it really works, else `tcg`.
//!
//! That `/dev/kvm` opens says little: inside some virtual machines it does, and no guest gets far. So with `IMPRINT_ACCEL=auto`,
//! the default, a kernel is booted with KVM once, and has to reach its first program within a few seconds. `IMPRINT_ACCEL=tcg`
//! and `=kvm` skip the trial.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::machine::{DirectBoot, Firmware, Machine};
use crate::project;

const VARIABLE: &str = "IMPRINT_ACCEL";
/// With KVM a kernel is up in a second or two.
const TRIAL_LIMIT: Duration = Duration::from_secs(15);
/// What the agent, started as PID 1, prints before anything else can go wrong.
const MARKER: &str = "imprint";

/// `kvm` or `tcg`. `boot` is a folder with an agent's kernel and initrd for the trial.
///
/// # Errors
/// If the variable has another value.
pub fn choose(boot: &Path) -> Result<String> {
    match std::env::var(VARIABLE).as_deref() {
        Ok(value @ ("kvm" | "tcg")) => Ok(value.to_owned()),
        Ok("auto") | Err(_) => Ok(if kvm_works(boot)? { "kvm" } else { "tcg" }.to_owned()),
        Ok(value) => bail!("{VARIABLE}={value}: must be kvm, tcg or auto"),
    }
}

fn kvm_works(boot: &Path) -> Result<bool> {
    if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(false);
    }
    // The answer holds until the host is restarted.
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .context("reading the host's boot id")?;
    let memo = project::cache().join("kvm");
    if let Ok(text) = std::fs::read_to_string(&memo)
        && let Some(answer) = text.strip_prefix(boot_id.as_str())
    {
        return Ok(answer == "works");
    }
    eprintln!("trying whether KVM runs guests here ({} s at most)", TRIAL_LIMIT.as_secs());
    let works = trial(boot)?;
    std::fs::write(&memo, boot_id + if works { "works" } else { "does not" })
        .with_context(|| format!("writing {}", memo.display()))?;
    Ok(works)
}

fn trial(boot: &Path) -> Result<bool> {
    let folder = tempfile::tempdir_in(project::cache()).context("making a folder")?;
    let machine = Machine {
        name: "kvm-trial".into(),
        number: 0,
        firmware: Firmware::Bios,
        memory_mib: 512,
        disk: None,
        tap: None,
        direct: Some(DirectBoot {
            kernel: boot.join("kernel"),
            initrd: boot.join("initrd"),
            command_line: "console=ttyS0 quiet panic=-1".into(),
        }),
        accel: "kvm".into(),
        folder: folder.path().to_owned(),
    };
    machine.save()?;
    // A QEMU that refuses to start is an answer as well.
    let works =
        machine.power_on().is_ok() && machine.console().wait_for(MARKER, &[], TRIAL_LIMIT).is_ok();
    machine.power_off()?;
    Ok(works)
}
