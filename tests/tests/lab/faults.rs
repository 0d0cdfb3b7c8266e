//! Servers that die in the middle of a job.
//!
//! The image is written, and read again before it is published, through the kernel's client for NFS version 4, whose only place for a test is
//! a guest; the restore reads it by version 3.

use std::time::{Duration, Instant};

use tests::machine::Firmware;
use tests::template::{LOGIN_LIMIT, LOGIN_PROMPT};
use tests::wait;

use crate::rack::{IMAGE, SOURCE, TARGET, rack};
use crate::witness;

/// How long the image store stays away.
const OUTAGE: Duration = Duration::from_secs(20);

#[test]
fn a_job_outlives_the_image_store_and_the_controller() {
    let mut rack = rack(Firmware::Bios);
    let lab = &mut rack.lab;
    let file = format!("{IMAGE}.img.zst");
    let (url, other_url) = (lab.nfs.url_of_version_4(&file), lab.nfs.url(&file));
    lab.start_job(&["capture", SOURCE, IMAGE, "--url", &url]).unwrap();
    lab.wait_stage(SOURCE, "capturing").unwrap();

    lab.nfs.crash().unwrap();
    let until = Instant::now() + OUTAGE;
    wait::until(
        "the end of the outage",
        OUTAGE * 2,
        || Ok((Instant::now() >= until).then_some(())),
    )
    .unwrap();
    let before = lab.last_job(SOURCE).unwrap();
    assert!(!rack.image().exists(), "nothing is published during the outage");
    let lab = &mut rack.lab;
    assert_eq!(before["state"], "running", "{before:#}");
    lab.nfs.restart(&lab.network).unwrap();

    lab.controller.kill().unwrap();
    lab.controller.restart(&lab.network).unwrap();
    let job = lab.wait_job(SOURCE).unwrap();
    assert_eq!(job["boots"], 1, "the machine went on where it was: {job:#}");
    witness::check_unpacked(&rack.image(), &rack.template, rack.folder.path());

    // A restore, with the controller away while the machine writes and when it reports. What was restored is started by kexec.
    let lab = &mut rack.lab;
    lab.controller.ask(&lab.network, &["host", "set", TARGET, "--finish", "kexec"]).unwrap();
    let (other, root) = ("by-version-3", job["summary"]["root"].as_str().unwrap());
    // A file has one entry in the catalogue: the one with the other address takes the place of the first.
    lab.controller.ask(&lab.network, &["image", "rm", "--keep-file", IMAGE]).unwrap();
    let add = ["image", "add", other, &other_url, "--root", root];
    lab.controller.ask(&lab.network, &add).unwrap();
    lab.start_job(&["restore", TARGET, other]).unwrap();
    lab.wait_state(TARGET, "running").unwrap();
    let console = rack.target.console();
    lab.controller.kill().unwrap();
    lab.controller.restart(&lab.network).unwrap();
    let restored = lab.wait_job(TARGET).unwrap();
    assert_eq!(restored["summary"]["root"], root);
    let power_ons = restored["power_actions"].as_array().unwrap().iter();
    let power_ons = power_ons.filter(|action| action["action"] == "on").count();
    assert_eq!(power_ons, 1, "{restored:#}");
    // Neither the firmware nor the network nor GRUB has a part in it.
    let bad = ["Kernel panic", "SeaBIOS", "iPXE", "GRUB", "rebooting"];
    console.wait_for(LOGIN_PROMPT, &bad, LOGIN_LIMIT).unwrap();
    assert!(console.text().unwrap().contains("imprint: starting the loaded kernel"));
    let events = rack.lab.last_job(TARGET).unwrap()["events"].to_string();
    let wanted = "of partition 3 (ext4), 'debian', by kexec";
    assert!(
        events.contains("the machine starts /boot/vmlinuz-") && events.contains(wanted),
        "{events}"
    );
}
