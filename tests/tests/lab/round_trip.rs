//! One machine's disk, out over PXE to a store, and onto another machine that boots. NFS is the store of `faults`.

use std::path::Path;

use tests::bmc;
use tests::console::Console;
use tests::machine::{BootDevice, Firmware, Machine};
use tests::smb::{self, SmbServer};
use tests::template::{LOGIN_LIMIT, LOGIN_PROMPT};

use crate::rack::{IMAGE, Rack, SOURCE, TARGET, rack};
use crate::secrets::{self, Secret, Watch};
use crate::witness;

/// Through the store of this name, whose files lie in `images` on this machine. The restore has these options, its target is
/// looked at before it boots, and then asks for a login with this prompt. Its console from that boot on.
fn round_trip(
    rack: &Rack,
    store: &str,
    images: &Path,
    options: &[&str],
    look: impl FnOnce(&Machine),
    prompt: &str,
) -> Console {
    let lab = &rack.lab;
    lab.start_job(&["capture", SOURCE, IMAGE, "--store", store]).unwrap();
    let captured = lab.wait_job(SOURCE).unwrap();
    let raw = captured["summary"]["raw"].as_array().unwrap();
    // The BIOS boot partition holds GRUB's core, which is no filesystem.
    assert_eq!(raw.len(), 1, "only one partition has no map: {captured:#}");
    let image = images.join(format!("{IMAGE}.img.zst"));
    witness::check_unpacked(&image, &rack.template, rack.folder.path());

    lab.start_job(&[&["restore", TARGET, IMAGE], options].concat()).unwrap();
    let restored = lab.wait_job(TARGET).unwrap();
    assert_eq!(restored["summary"]["root"], captured["summary"]["root"]);
    assert!(restored["summary"]["readback_bytes"].as_u64().unwrap() > 100 << 20);
    assert!(!rack.target.is_on(), "it powers off, as it was told");
    look(&rack.target);

    // A machine whose firmware has never seen this disk.
    rack.target.forget_nvram().unwrap();
    rack.target.set_boot_device(BootDevice::Disk).unwrap();
    rack.power_on(&rack.target);
    let console = rack.target.console();
    console.wait_for(prompt, &["Kernel panic"], LOGIN_LIMIT).unwrap();
    console
}

/// What the firmware's menu calls the restored system.
const LABEL: &str = "Restored in the lab";

/// Nothing but the controller itself keeps the image.
#[test]
fn with_bios_through_the_controllers_own_store() {
    let rack = rack(Firmware::Bios);
    let look = |target: &Machine| {
        witness::check_restored(target.disk.as_ref().unwrap(), &rack.template);
    };
    round_trip(&rack, "local", &rack.lab.controller.images(), &[], look, LOGIN_PROMPT);
}

/// What the restored system says before it asks for a login.
const ISSUE: &str = "changed on its way to this machine";

/// The controller hands out the password; the server speaks to nobody without encryption. The firmware gets a boot entry. Nobody
/// else gets to see a secret. The disk is larger and has identities of its own, its root grows, and the system gets another name and
/// a file, which it shows.
#[test]
fn with_uefi_through_smb() {
    let mut rack = rack(Firmware::Uefi);
    rack.lab.controller.restart_talkative(&rack.lab.network).unwrap();
    let lab = &rack.lab;
    let watched = rack.folder.path().join("watched");
    std::fs::create_dir(&watched).unwrap();
    let watch = Watch::start(&lab.network, &watched);
    let server = SmbServer::start(&lab.network, &rack.folder.path().join("smb")).unwrap();
    let password = rack.folder.path().join("password");
    std::fs::write(&password, smb::PASSWORD).unwrap();
    let (url, password) = (server.url(), password.to_str().unwrap().to_owned());
    let add = ["store", "add", "nas", &url, "--user", smb::USER, "--password-file", &password];
    lab.controller.ask(&lab.network, &add).unwrap();
    let file = rack.folder.path().join("issue");
    std::fs::write(&file, format!("{ISSUE}\n\n")).unwrap();
    let file = format!("/etc/issue={}", file.display());
    let options = [
        ["--efi-boot-entry", LABEL, "--efi-boot-order", "first"].as_slice(),
        &["--grow", "last", "--fresh-ids", "--hostname", "node-7"],
        &["--clear-machine-id", "--file", &file],
    ];
    let look = |target: &Machine| {
        let disk = target.disk.as_ref().unwrap();
        witness::check_changed(disk, &rack.template);
        // The target has 64 MiB more, and most of that goes to the root.
        let [new, old] = [disk, &rack.template].map(|disk| witness::root_mib(disk));
        assert!(new > old + 40, "the root had {old} MiB, and has {new}");
        let wanted: Vec<u8> = LABEL.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let nvram = std::fs::read(target.nvram()).unwrap();
        let has_entry = nvram.windows(wanted.len()).any(|window| window == wanted);
        assert!(has_entry, "the firmware keeps the boot entry");
    };
    let images = server.images();
    let console = round_trip(&rack, "nas", &images, &options.concat(), look, "node-7 login:");
    assert!(console.text().unwrap().contains(ISSUE));
    look_for_secrets(&rack, watch, &server);
}

fn look_for_secrets(rack: &Rack, watch: Watch, server: &SmbServer) {
    let controller = &rack.lab.controller;
    let answers = rack.folder.path().join("answers");
    let mut text = String::new();
    for args in [
        &["store", "show", "nas"][..],
        &["store", "check", "nas"],
        &["jobs"],
        &["host", "show", TARGET],
        &["image", "show", IMAGE],
    ] {
        text += &controller.ask_json(&rack.lab.network, args).unwrap().to_string();
    }
    for host in [SOURCE, TARGET] {
        text += &rack.lab.last_job(host).unwrap().to_string();
    }
    std::fs::write(&answers, text).unwrap();
    let client: serde_json::Value =
        serde_json::from_slice(&std::fs::read(controller.client_file()).unwrap()).unwrap();
    let token = client["token"].as_str().unwrap();
    // The one file that is there to hold it.
    std::fs::remove_file(controller.client_file()).unwrap();
    let secrets = [
        Secret::text("the store's password", smb::PASSWORD),
        Secret::hex("the hash of the store's password", &server.password_hash().unwrap()),
        Secret::text("the BMC's password", bmc::PASSWORD),
        Secret::text("the administrator's token", token),
    ];
    let watched = watch.end();
    let user: Vec<u8> = smb::USER.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let known =
        [(&user[..], &*watched[0]), (b"qemu-system", &watched[1]), (b"smb://", &controller.log())];
    let consoles = [&rack.source, &rack.target].map(|machine| machine.folder.join("console.log"));
    let ours = [controller.folder().to_owned(), server.images(), answers];
    secrets::check(&secrets, &[&watched[..], &consoles, &ours].concat(), &known);
}
