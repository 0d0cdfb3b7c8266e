//! One machine's disk, out over PXE and NFS, and onto another machine that boots.

use tests::machine::{BootDevice, Firmware};
use tests::template::{LOGIN_LIMIT, LOGIN_PROMPT};

use crate::rack::{IMAGE, SOURCE, TARGET, rack};
use crate::witness;

fn round_trip(firmware: Firmware) {
    let rack = rack(firmware);
    let lab = &rack.lab;
    lab.start_job(&["capture", SOURCE, IMAGE]).unwrap();
    let captured = lab.wait_job(SOURCE).unwrap();
    let raw = captured["summary"]["raw"].as_array().unwrap();
    // The BIOS boot partition holds GRUB's core, which is no filesystem.
    assert_eq!(raw.len(), 1, "only one partition has no map: {captured:#}");
    witness::check_unpacked(&rack.image(), &rack.template, rack.folder.path());

    lab.start_job(&["restore", TARGET, IMAGE]).unwrap();
    let restored = lab.wait_job(TARGET).unwrap();
    assert_eq!(restored["summary"]["root"], captured["summary"]["root"]);
    assert!(restored["summary"]["readback_bytes"].as_u64().unwrap() > 100 << 20);
    assert!(!rack.target.is_on(), "it powers off, as it was told");
    witness::check_restored(rack.target.disk.as_ref().unwrap(), &rack.template);

    // A machine whose firmware has never seen this disk.
    rack.target.forget_nvram().unwrap();
    rack.target.set_boot_device(BootDevice::Disk).unwrap();
    rack.power_on(&rack.target);
    rack.target.console().wait_for(LOGIN_PROMPT, &["Kernel panic"], LOGIN_LIMIT).unwrap();
    let _ = rack.source;
}

#[test]
fn with_bios() {
    round_trip(Firmware::Bios);
}

#[test]
fn with_uefi() {
    round_trip(Firmware::Uefi);
}
