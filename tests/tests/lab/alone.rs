//! Machines that nobody asked to be imaged.

use std::time::Duration;

use tests::lab::Prepared;
use tests::machine::{BootDevice, DirectBoot, Firmware, Machine};
use tests::project;
use tests::template::{LOGIN_LIMIT, LOGIN_PROMPT};

use crate::rack::{prepared, rack};

/// Five times what a boot of the agent's kernel takes under load.
const AGENT_LIMIT: Duration = Duration::from_secs(120);
/// What the agent says first.
const AGENT: &str = "imprint: agent";

#[test]
fn a_host_without_a_job_boots_its_disk_with_and_without_a_controller() {
    let mut rack = rack(Firmware::Bios);
    let bad = [AGENT, "Kernel panic"];
    // Network first, as in a rack; the controller has nothing for it.
    rack.source.set_boot_device(BootDevice::Pxe).unwrap();
    let console = rack.source.console();
    rack.power_on(&rack.source);
    console.wait_for("no job is armed", &bad, LOGIN_LIMIT).unwrap();
    console.wait_for(LOGIN_PROMPT, &bad, LOGIN_LIMIT).unwrap();
    rack.source.power_off().unwrap();

    rack.lab.controller.kill().unwrap();
    rack.source.set_boot_device(BootDevice::Pxe).unwrap();
    let console = rack.source.console();
    rack.lab.bmc(&rack.source).ipmitool(&rack.lab.network, &["power", "on"]).unwrap();
    console.wait_for(LOGIN_PROMPT, &bad, LOGIN_LIMIT).unwrap();
}

#[test]
fn a_uefi_host_without_a_job_boots_its_disk() {
    let rack = rack(Firmware::Uefi);
    let bad = [AGENT, "Kernel panic"];
    rack.source.set_boot_device(BootDevice::Pxe).unwrap();
    let console = rack.source.console();
    rack.power_on(&rack.source);
    console.wait_for("no job is armed", &bad, LOGIN_LIMIT).unwrap();
    console.wait_for(LOGIN_PROMPT, &bad, LOGIN_LIMIT).unwrap();
}

#[test]
fn an_agent_that_nobody_sent_says_so_and_leaves() {
    let Prepared { programs, accel, .. } = prepared();
    let folder = tempfile::tempdir_in(project::cache()).unwrap();
    let machine = Machine {
        name: "stray".into(),
        number: 9,
        firmware: Firmware::Bios,
        memory_mib: 512,
        disk: None,
        tap: None,
        direct: Some(DirectBoot {
            kernel: programs.boot.join("kernel"),
            initrd: programs.boot.join("initrd"),
            command_line: "console=ttyS0 quiet panic=30 imprint.spelling=mistake".into(),
        }),
        accel,
        folder: folder.path().to_owned(),
    };
    machine.save().unwrap();
    let console = machine.console();
    machine.power_on().unwrap();
    let bad = ["Kernel panic"];
    console.wait_for("ignoring 'imprint.spelling=mistake'", &bad, AGENT_LIMIT).unwrap();
    console
        .wait_for("no imprint.controller on the kernel command line", &bad, AGENT_LIMIT)
        .unwrap();
    console.wait_for("rebooting in 60 s", &bad, AGENT_LIMIT).unwrap();
    console.wait_for("imprint: rebooting\n", &bad, AGENT_LIMIT).unwrap();
    machine.power_off().unwrap();
}
