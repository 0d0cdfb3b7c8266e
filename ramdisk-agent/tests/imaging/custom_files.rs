//! Files of one's own and cloud-init seeds in restored systems.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use serde_json::{Value, json};

use crate::agent::{capture, try_restore, worker};
use crate::custom::{Custom, EXT4, done, plant};
use crate::devices::{Loop, Mounted, inventory};
use crate::disks::noise_file;
use crate::tools::run;

/// A system in which cloud-init has run before.
fn cloud(at: &Path) {
    plant(at);
    for folder in ["etc/cloud", "var/lib/cloud/instances/i-1/sem", "var/lib/cloud/scripts/per-boot"]
    {
        fs::create_dir_all(at.join(folder)).unwrap();
    }
    fs::create_dir_all(at.join("var/lib/cloud/seed/nocloud")).unwrap();
    fs::write(at.join("var/lib/cloud/instances/i-1/user-data.txt"), "old").unwrap();
    fs::write(at.join("var/lib/cloud/seed/nocloud/network-config"), "old").unwrap();
    fs::write(at.join("var/lib/cloud/scripts/per-boot/mine"), "x").unwrap();
    symlink("/var/lib/cloud/instances/i-1", at.join("var/lib/cloud/instance")).unwrap();
}

fn has_seed(custom: &Custom) {
    custom.check(1, &["e2fsck", "-fn"]);
    custom.look(1, "ro,noload", |at| {
        let cloud = at.join("var/lib/cloud");
        let read = |path: &str| fs::read_to_string(cloud.join(path)).unwrap();
        assert_eq!(read("seed/nocloud/user-data"), "#cloud-config\n");
        assert_eq!(read("seed/nocloud/meta-data"), "instance-id: node7\n");
        let meta = fs::metadata(cloud.join("seed/nocloud/user-data")).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o600, 0));
        for gone in ["instance", "instances", "seed/nocloud/network-config"] {
            assert!(cloud.join(gone).symlink_metadata().is_err(), "{gone}");
        }
        assert_eq!(read("scripts/per-boot/mine"), "x");
        let motd = at.join("etc/motd");
        assert_eq!(fs::read_to_string(&motd).unwrap(), "hello\n");
        assert_eq!(fs::metadata(motd).unwrap().mode() & 0o7777, 0o644);
        let deep = at.join("opt/a/b");
        assert_eq!(fs::read(&deep).unwrap(), b"\0\xff");
        assert_eq!(fs::metadata(deep).unwrap().mode() & 0o7777, 0o755);
        // What is replaced keeps its owner and mode.
        let secret = fs::metadata(at.join("etc/secret")).unwrap();
        assert_eq!((secret.mode() & 0o7777, secret.uid()), (0o600, 1234));
    });
}

#[test]
fn files_and_a_seed_from_the_command_line_and_in_a_job() {
    let custom = Custom::new(&[(EXT4, 40, &cloud)]);
    let at = |name: &str| custom.dir.path().join(name);
    fs::create_dir(at("seed")).unwrap();
    fs::write(at("seed/user-data"), "#cloud-config\n").unwrap();
    fs::write(at("seed/meta-data"), "instance-id: node7\n").unwrap();
    fs::write(at("motd"), "hello\n").unwrap();
    fs::write(at("bytes"), b"\0\xff").unwrap();
    let file = |path: &str, source: &str, mode: &str| {
        format!("--file={path}={}{mode}", at(source).display())
    };
    let flags = [
        format!("--cloud-init-seed={}", at("seed").display()),
        file("/etc/motd", "motd", ""),
        file("/opt/a/b", "bytes", ":0755"),
        file("/etc/secret", "motd", ""),
    ];
    let flags = flags.each_ref().map(String::as_str);
    let summary = custom.restore(&flags);
    let files = done(&summary);
    for (path, action) in [
        ("/var/lib/cloud/instance", "removed"),
        ("/var/lib/cloud/instances/i-1/user-data.txt", "removed"),
        ("/var/lib/cloud/seed/nocloud/network-config", "removed"),
        ("/var/lib/cloud/seed/nocloud/user-data", "created"),
        ("/etc/motd", "created"),
        ("/opt/a/", "created"),
        ("/opt/a/b", "created"),
        ("/etc/secret", "replaced"),
    ] {
        assert_eq!(files.get(path).map(String::as_str), Some(action), "{path}: {summary:#}");
    }
    assert!(!summary["changes"].to_string().contains("cloud-init"), "{summary:#}");
    has_seed(&custom);

    noise_file(&custom.target, fs::metadata(&custom.target).unwrap().len(), 5);
    let options = json!({
        "cloud_init_seed": {
            "user-data": "I2Nsb3VkLWNvbmZpZwo=", "meta-data": "aW5zdGFuY2UtaWQ6IG5vZGU3Cg==",
        },
        "file": [
            {"path": "/etc/motd", "content": "aGVsbG8K"},
            {"path": "/opt/a/b", "content": "AP8=", "mode": "0755"},
            {"path": "/etc/secret", "content": ""},
        ],
    });
    let outcome = job(&custom, &options);
    assert_eq!(outcome["result"], "succeeded", "{outcome:#}");
    assert_eq!(done(&outcome).len(), files.len());
    has_seed(&custom);
    let outcome = job(&custom, &json!({"file": [{"path": "/a/../b", "content": ""}]}));
    assert_eq!(outcome["kind"], "refused", "{outcome:#}");
}

fn job(custom: &Custom, options: &Value) -> Value {
    let job = json!({
        "id": "1", "disk": custom.target, "image_url": custom.image, "action": "restore",
        "options": options,
    });
    let output = worker(&job).wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str::<Value>(text.lines().last().unwrap()).unwrap()["outcome"].clone()
}

#[test]
fn a_file_that_does_not_fit_or_may_not_be_there() {
    let full = |at: &Path| {
        plant(at);
        noise_file(&at.join("fill"), 200 << 10, 1);
        // Until there is no room for a file of 300 KiB.
        let mut piece = 0;
        while rustix::fs::statvfs(at).unwrap().f_bavail > 64 {
            let path = at.join(format!("fill{piece}"));
            fs::write(path, vec![7; 32 << 10]).unwrap();
            piece += 1;
        }
    };
    let make = [EXT4, &["-m", "0"]].concat();
    let custom = Custom::new(&[(&make, 24, &full)]);
    let source = custom.dir.path().join("big");
    noise_file(&source, 300 << 10, 2);
    let flag = format!("--file=/opt/big={}", source.display());
    custom.fails(&[&flag], "no_space", &["writing /opt/big", "No space left"]);
    let flag = format!("--file=/etc={}", source.display());
    custom.fails(&[&flag], "refused", &["/etc is a folder"]);
    noise_file(&source, 600 << 10, 2);
    let flag = format!("--file=/opt/big={}", source.display());
    let ran = try_restore(&custom.image, &custom.target, &[&flag]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("more than 524288 bytes"), "{}", ran.stderr);
}

/// What an image has in the way of a change is no failure of a disk.
#[test]
fn a_loop_of_links_is_refused() {
    let hostile = |at: &Path| {
        plant(at);
        symlink("loop", at.join("loop")).unwrap();
    };
    let custom = Custom::new(&[(EXT4, 40, &hostile)]);
    let source = custom.dir.path().join("small");
    fs::write(&source, "x").unwrap();
    let flag = format!("--file=/loop/x={}", source.display());
    custom.fails(&[&flag], "refused", &["/loop", "too many links"]);
}

#[test]
fn a_filesystem_that_is_read_only_is_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, image, target) =
        (dir.path().join("v"), dir.path().join("a.img.zst"), dir.path().join("t"));
    File::create(&volume).unwrap().set_len(40 << 20).unwrap();
    run("e2fsprogs", "mke2fs", &["-q", "-t", "ext4", volume.to_str().unwrap()]);
    let device = Loop::new(&volume, &[]);
    let mounted = Mounted::new(device.text(), &dir.path().join("mnt"), "rw");
    plant(&dir.path().join("mnt"));
    drop(mounted);
    drop(device);
    run("e2fsprogs", "tune2fs", &["-O", "read-only", volume.to_str().unwrap()]);
    capture(&volume, &image, &[]);
    noise_file(&target, 40 << 20, 2);
    try_restore(&image, &target, &["--hostname", "x"])
        .refused("refused", &["/etc/hostname", "has its filesystem or subvolume read-only"]);
    let mut head = vec![1; 4096];
    File::open(&target).unwrap().read_exact_at(&mut head, 0).unwrap();
    assert!(head.iter().all(|b| *b == 0));
}

/// Folders of the image that lead to files of this machine.
#[test]
fn files_stay_in_the_restored_system() {
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir_all(outside.path().join("nocloud")).unwrap();
    fs::write(outside.path().join("nocloud/user-data"), "mine").unwrap();
    fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let before = inventory(outside.path());
    let hostile = |at: &Path| {
        plant(at);
        fs::create_dir_all(at.join("var/lib/cloud/seed")).unwrap();
        symlink(outside.path(), at.join("opt")).unwrap();
        symlink(outside.path(), at.join("var/lib/cloud/instances")).unwrap();
        symlink("/etc", at.join("srv")).unwrap();
    };
    let custom = Custom::new(&[(EXT4, 40, &hostile)]);
    let at = |name: &str| custom.dir.path().join(name);
    fs::create_dir(at("seed")).unwrap();
    fs::write(at("seed/user-data"), "theirs").unwrap();
    fs::write(at("seed/meta-data"), "").unwrap();
    let seed = format!("--cloud-init-seed={}", at("seed").display());
    let file = format!("--file=/srv/motd={}", at("seed/user-data").display());
    let summary = custom.restore(&[&seed, &file]);
    assert_eq!(done(&summary)["/var/lib/cloud/instances"], "removed");
    assert!(summary["changes"].to_string().contains("no cloud-init"), "{summary:#}");
    custom.look(1, "ro,noload", |at| {
        assert_eq!(fs::read_to_string(at.join("etc/motd")).unwrap(), "theirs");
    });
    let flag = format!("--file=/opt/nocloud/user-data={}", at("seed/user-data").display());
    custom.fails(&[&flag], "refused", &["/opt", "no folder"]);
    assert_eq!(inventory(outside.path()), before);
}

/// This machine has no UEFI, or nobody may write to it from here: then nothing is written at all.
#[test]
fn a_boot_entry_needs_uefi_and_a_gpt() {
    let custom = Custom::new(&[(EXT4, 24, &plant)]);
    custom.refused(&["--efi-boot-entry", "Debian"], &["no EFI boot entry can be made"]);
    custom.refused(&["--efi-boot-order", "first"], &["efi_boot_order is for an efi_boot_entry"]);
}
