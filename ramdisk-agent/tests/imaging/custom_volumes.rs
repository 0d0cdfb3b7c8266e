//! Changes to systems that are spread over several filesystems, in logical volumes and subvolumes, too.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::agent::{agent, try_restore};
use crate::custom::{BTRFS, Custom, EXT4, IDENTITY, Volume, XFS, done};
use crate::custom_script::{script, with_shell};
use crate::tools::run;

const VAR_UUID: &str = "6f1c7f6e-30c4-4ad5-9c1e-2a3b4c5d6e7f";

/// A system whose fstab has these lines, with a folder for each point.
fn root(lines: &str) -> impl Fn(&Path) {
    move |at: &Path| {
        with_shell(at);
        // What it has there is not seen when it runs.
        fs::remove_dir_all(at.join("var")).unwrap();
        for line in lines.lines() {
            let point = line.split_ascii_whitespace().nth(1).unwrap();
            fs::create_dir_all(at.join(point.trim_start_matches('/'))).unwrap();
        }
        fs::write(at.join("etc/fstab"), format!("UUID=1 / auto defaults 0 1\n{lines}")).unwrap();
    }
}

/// Its `/var`.
fn var(at: &Path) {
    fs::create_dir_all(at.join("lib/dbus")).unwrap();
    fs::create_dir_all(at.join("lib/cloud/instances/old")).unwrap();
    fs::write(at.join("lib/dbus/machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
    symlink("/etc", at.join("absolute")).unwrap();
    symlink("lib/dbus", at.join("beside")).unwrap();
}

/// Changes in the root and in `/var`, each given by its number and the options to look at it.
fn changes_both(custom: &Custom, root: (usize, &str), var: (usize, &str)) {
    let at = |name: &str| custom.dir.path().join(name);
    fs::create_dir_all(at("seed")).unwrap();
    fs::write(at("seed/user-data"), "#cloud-config\n").unwrap();
    fs::write(at("seed/meta-data"), "instance-id: node7\n").unwrap();
    let flags = [
        format!("--cloud-init-seed={}", at("seed").display()),
        format!("--file=/var/beside/new={}", at("seed/user-data").display()),
        script(
            custom,
            "b=/bin/busybox; set -e; $b test -f /var/lib/dbus/new; echo x >/var/written",
        ),
    ];
    let flags: Vec<&str> = IDENTITY.into_iter().chain(flags.iter().map(String::as_str)).collect();
    let summary = custom.restore(&flags);
    let files = done(&summary);
    for (path, action) in [
        ("/etc/hostname", "replaced"),
        ("/etc/machine-id", "replaced"),
        ("/var/lib/dbus/machine-id", "removed"),
        ("/var/lib/cloud/instances/old/", "removed"),
        ("/var/lib/cloud/seed/", "created"),
        ("/var/lib/cloud/seed/nocloud/user-data", "created"),
        ("/var/beside/new", "created"),
    ] {
        assert_eq!(files.get(path).map(String::as_str), Some(action), "{path}: {summary:#}");
    }
    custom.look(root.0, root.1, |at| {
        assert_eq!(fs::read_to_string(at.join("etc/hostname")).unwrap(), "node7\n");
        let beneath = at.join("var").read_dir();
        assert!(beneath.map_or(true, |mut files| files.next().is_none()), "hidden files");
    });
    custom.look(var.0, var.1, |at| {
        let read = |path: &str| fs::read_to_string(at.join(path)).unwrap();
        assert_eq!(read("lib/cloud/seed/nocloud/meta-data"), "instance-id: node7\n");
        assert_eq!(read("lib/dbus/new"), "#cloud-config\n");
        assert_eq!(read("written"), "x\n");
        assert!(!at.join("lib/dbus/machine-id").exists() && at.join("absolute").is_symlink());
    });
    // A link that leads into another filesystem.
    let flag = format!("--file=/var/absolute/new={}", at("seed/user-data").display());
    custom.fails(&[&flag], "refused", &["/var/absolute", "out of its filesystem"]);
}

#[test]
fn a_system_with_a_filesystem_for_var() {
    let uuid = format!("uuid={VAR_UUID}");
    let xfs = [XFS, &["-m", &uuid]].concat();
    let line = format!("UUID={VAR_UUID} /var xfs defaults 0 2\n");
    let system = root(&line);
    let custom = Custom::new(&[(&xfs, 320, &var), (EXT4, 40, &system)]);
    changes_both(&custom, (2, "ro,noload"), (1, "ro,norecovery,nouuid"));
}

#[test]
fn a_system_in_logical_volumes() {
    let system = root("/dev/mapper/vg-v2 /var ext4 defaults 0 2\n");
    let volumes: [Volume<'_>; 2] = [(EXT4, 40, &system), (EXT4, 24, &var)];
    let custom = Custom::on_lvm(&volumes);
    let paths = [custom.image.to_str().unwrap(), custom.target.to_str().unwrap()];
    let plan = agent(&[&["plan", "restore"], &paths[..], &IDENTITY].concat()).stdout;
    assert!(plan.contains("vg/v1 in partition 1 (ext4), vg/v2 in partition 1 (ext4)"), "{plan}");
    changes_both(&custom, (1, "ro,noload"), (2, "ro,noload"));
    custom.restore(&[&IDENTITY[..], &["--root-partition", "1"]].concat());
    custom.check(1, &["e2fsck", "-fn"]);
    custom.check(2, &["e2fsck", "-fn"]);
}

#[test]
fn a_system_in_subvolumes() {
    let line = format!("UUID={VAR_UUID} /var btrfs subvol=/@var 0 0\n");
    let system = root(&line);
    let in_subvolumes = |at: &Path| {
        for name in ["@", "@var"] {
            run("btrfs-progs", "btrfs", &["subvolume", "create", at.join(name).to_str().unwrap()]);
        }
        system(&at.join("@"));
        var(&at.join("@var"));
        // As openSUSE has it: what is mounted without a name is not the top.
        run("btrfs-progs", "btrfs", &["subvolume", "set-default", at.join("@").to_str().unwrap()]);
    };
    let make = [BTRFS, &["-U", VAR_UUID]].concat();
    let custom = Custom::new(&[(&make, 160, &in_subvolumes)]);
    changes_both(&custom, (1, "ro"), (1, "ro,subvol=@var"));
    custom.restore(&IDENTITY);
    custom.check(1, &["btrfs", "check"]);
}

#[test]
fn what_is_out_of_reach_is_refused() {
    let system = root("/dev/sdb1 /var ext4 defaults 0 2\n/dev/vg/v2 /srv ext4 defaults 0 2\n");
    let with_links = |at: &Path| {
        system(at);
        symlink("/srv", at.join("opt")).unwrap();
        fs::remove_dir_all(at.join("etc/ssh")).unwrap();
        symlink("/srv", at.join("etc/ssh")).unwrap();
    };
    let custom = Custom::new(&[(EXT4, 40, &with_links)]);
    let summary = custom.restore(&["--clear-machine-id"]);
    assert!(summary["changes"].to_string().contains("/var is another filesystem"), "{summary:#}");
    let words = &["/etc/ssh would not be seen", "a link leads it to /srv"];
    custom.fails(&["--remove-ssh-host-keys"], "refused", words);
    let file = custom.dir.path().join("file");
    fs::write(&file, "x").unwrap();
    for (path, words) in [
        ("/var/lib/x", "/dev/sdb1, which is none of this disk's volumes"),
        ("/opt/x", "a link leads it to /srv"),
        ("/opt/a/x", "/opt/a would"),
        ("/srv", "mounts another filesystem on /srv"),
    ] {
        let flag = format!("--file={path}={}", file.display());
        let path = path.trim_end_matches("/a/x");
        custom.fails(&[&flag], "refused", &[path, words]);
    }
}

#[test]
fn a_logical_volume_in_pieces_is_refused_before_the_first_write() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = (dir.path().join("disk"), dir.path().join("a.img.zst"));
    crate::lvm::physical_volume(&disk, dir.path());
    crate::agent::capture(&disk, &image, &[]);
    let target = dir.path().join("target");
    crate::disks::noise_file(&target, fs::metadata(&disk).unwrap().len(), 5);
    let before = fs::read(&target).unwrap();
    try_restore(&image, &target, &["--hostname", "x"])
        .refused("refused", &["vg/root (ext4) may hold the system", "do not lie together"]);
    assert!(fs::read(&target).unwrap() == before);
}
