//! `cargo xtask demo`: the main job, on virtual machines, with nothing faked.
//!
//! A machine with a real Debian system is captured over the network, another one with a disk full of noise is imprinted with
//! the image and boots from its own disk. Both are switched on by their BMCs and boot the agent by PXE. Everything that a user of
//! a rack would type is typed here too, and shown.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use agent_api::{CaptureSummary, RestoreSummary, Summary};
use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::lab::{self, Lab, Prepared};
use crate::machine::Firmware;
use crate::template::{self, LOGIN_LIMIT, LOGIN_PROMPT};
use crate::{command, project, wait};

/// The target's disk is larger than the template's, as in a rack where no two deliveries are alike.
const TARGET_DISK_BYTES: u64 = template::DISK_BYTES + (64 << 20);
const SOURCE: &str = "template";
const TARGET: &str = "node1";
const IMAGE: &str = "debian-12";

/// Runs the demo. `xtask` is the path of the running program.
///
/// # Errors
/// If any step fails: the message names it and shows what the machines last said.
pub fn run(xtask: &Path, firmware: Firmware) -> Result<()> {
    let steps = Steps { start: Instant::now() };
    let mut say = |text: &str| steps.say(text);
    wait::catch_interrupts()?;
    let prepared = Prepared::new(xtask, &mut say)?;

    let folder = project::cache().join("demo");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)
            .with_context(|| format!("removing {}", folder.display()))?;
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    say("filling the target's disk with noise");
    let (source_disk, target_disk) = (folder.join("template.img"), folder.join("node1.img"));
    template::copy_disk(&prepared.template, &source_disk)?;
    lab::noise_disk(&target_disk, TARGET_DISK_BYTES)?;

    let round_trip = Instant::now();
    say(&format!(
        "starting network, NFS server, controller and BMCs ({} machines, {})",
        firmware.as_str().to_uppercase(),
        if prepared.accel == "kvm" { "KVM" } else { "QEMU's software emulation" }
    ));
    let mut lab = Lab::start(&prepared, &folder)?;
    let source = lab.add_machine(SOURCE, 1, firmware, &source_disk)?;
    let target = lab.add_machine(TARGET, 2, firmware, &target_disk)?;
    lab.enter_host(&source, "off")?;
    lab.enter_host(&target, "disk")?;

    show(&steps, &lab, &["capture", SOURCE, IMAGE, "--wait"])?;
    let captured = lab.last_job(SOURCE)?;
    show(&steps, &lab, &["restore", TARGET, IMAGE, "--wait"])?;
    let restored = lab.last_job(TARGET)?;
    say(&format!("{TARGET} boots from its own disk"));
    let booting = Instant::now();
    target.console().wait_for(LOGIN_PROMPT, &["Kernel panic"], LOGIN_LIMIT)?;
    say(&format!("{TARGET} shows its login prompt: {LOGIN_PROMPT}"));

    let boot_time = booting.elapsed();
    let image = lab.nfs.images().join(format!("{IMAGE}.img.zst"));
    let table = table(summary(&captured)?, summary(&restored)?, boot_time)?;
    let mut out = std::io::stdout().lock();
    write!(
        out,
        "\n{table}round trip      {:>35.0} s\n\nThe image: {}\n",
        round_trip.elapsed().as_secs_f64(),
        image.display()
    )
    .context("printing the result")
}

/// Says what happens, and when.
struct Steps {
    start: Instant,
}

impl Steps {
    fn say(&self, text: &str) {
        eprintln!("[{:4} s] {text}", self.start.elapsed().as_secs());
    }
}

/// Types a command and shows what it prints.
fn show(steps: &Steps, lab: &Lab, words: &[&str]) -> Result<()> {
    steps.say(&format!("$ imprint {}", words.join(" ")));
    command::show(&mut lab.controller.imprint(&lab.network, words))
        .with_context(|| lab.explain(words[1]))
}

fn summary(job: &serde_json::Value) -> Result<Summary> {
    Summary::deserialize(&job["summary"]).context("reading a job's summary")
}

fn table(captured: Summary, restored: Summary, boot_time: Duration) -> Result<String> {
    let (Summary::Capture(captured), Summary::Restore(restored)) = (captured, restored) else {
        bail!("the jobs' summaries are not those of a capture and a restore");
    };
    let CaptureSummary { disk_bytes, used_bytes, stored_bytes, reread_bytes, .. } = captured;
    let RestoreSummary { written_bytes, readback_bytes, .. } = restored;
    let mut text = String::new();
    text += &format!("disk            {:>12}\n", mib(disk_bytes));
    text += &format!("used            {:>12}\n", mib(used_bytes));
    text += &format!("image           {:>12}\n", mib(stored_bytes));
    for (stage, bytes, millis) in [
        ("capture", used_bytes, captured.capture_ms),
        ("flush", 0, captured.flush_ms),
        ("re-read", reread_bytes, captured.verify_ms),
        ("restore", written_bytes, restored.restore_ms),
        ("flush", 0, restored.flush_ms),
        ("read-back", readback_bytes, restored.verify_ms),
        ("boot to login", 0, u64::try_from(boot_time.as_millis()).context("a time too long")?),
    ] {
        let secs = format!("{}.{} s", millis / 1000, millis % 1000 / 100);
        let rate = bytes.saturating_mul(1000).checked_div(millis).filter(|rate| *rate > 0);
        let rate = rate.map(|rate| format!("{}/s", mib(rate))).unwrap_or_default();
        let bytes = if bytes > 0 { mib(bytes) } else { String::new() };
        text += format!("{stage:<15} {bytes:>12} {secs:>10} {rate:>14}").trim_end();
        text.push('\n');
    }
    Ok(text)
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
