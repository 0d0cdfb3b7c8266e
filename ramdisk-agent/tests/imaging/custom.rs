//! Changes to the restored system: made by the kernel on a disk that cannot boot yet, all or none, and nothing else touched.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::agent::{agent, capture, restore, try_restore, worker};
use crate::devices::{Loop, Mounted, inventory};
use crate::disks::noise_file;
use crate::lvm::group;
use crate::tools::run;

const MIB: u64 = 1 << 20;
pub const EXT4: &[&str] = &["mke2fs", "-q", "-t", "ext4"];
pub const XFS: &[&str] = &["mkfs.xfs", "-q"];
pub const BTRFS: &[&str] = &["mkfs.btrfs", "-q"];

/// A disk whose partitions were made by makers of filesystems and filled through the kernel, its image, and a target.
pub struct Custom {
    pub dir: tempfile::TempDir,
    pub image: PathBuf,
    pub target: PathBuf,
    /// Start and length of each partition in MiB.
    parts: Vec<(u64, u64)>,
}

/// A maker's command, a size in MiB, and what goes in.
pub type Volume<'a> = (&'a [&'a str], u64, &'a dyn Fn(&Path));

impl Custom {
    pub fn new(volumes: &[Volume<'_>]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut parts = Vec::new();
        let mut at = 1;
        for (_, mib, _) in volumes {
            parts.push((at, *mib));
            at += mib;
        }
        partitioned(dir.path(), &parts);
        Self::filled(dir, parts, volumes)
    }

    /// One partition with the group `vg`: its volumes are `v1` and so on, whose sizes are multiples of 4 MiB.
    pub fn on_lvm(volumes: &[Volume<'_>]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sum: u64 = volumes.iter().map(|(_, mib, _)| mib).sum();
        let whole = (1, sum + 8);
        partitioned(dir.path(), &[whole]);
        // pvcreate begins its extents behind the first MiB.
        let mut at = whole.0 + 1;
        let (mut parts, mut commands) = (Vec::new(), Vec::new());
        for (number, (_, mib, _)) in volumes.iter().enumerate() {
            let (number, extents) = (number + 1, mib / 4);
            commands.push(format!("lvcreate -y -an -Zn -Wn -n v{number} -l {extents} vg"));
            parts.push((at, *mib));
            at += mib;
        }
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        group(&device(&dir.path().join("source"), whole), dir.path(), &commands);
        Self::filled(dir, parts, volumes)
    }

    fn filled(dir: tempfile::TempDir, parts: Vec<(u64, u64)>, volumes: &[Volume<'_>]) -> Self {
        let (source, image, target) =
            (dir.path().join("source"), dir.path().join("a.img.zst"), dir.path().join("target"));
        for ((make, _, fill), part) in volumes.iter().zip(&parts) {
            let device = device(&source, *part);
            run("mkfs", make[0], &[&make[1..], &[device.text()]].concat());
            let at = dir.path().join("mnt");
            let _mounted = Mounted::new(device.text(), &at, "rw");
            fill(&at);
            run("coreutils", "sync", &["-f", at.to_str().unwrap()]);
        }
        let captured = capture(&source, &image, &[]);
        assert_eq!(captured["raw"].as_array().unwrap().len(), 0, "{captured:#}");
        noise_file(&target, fs::metadata(&source).unwrap().len() + 2 * MIB, 3);
        Self { dir, image, target, parts }
    }

    /// One filesystem with a system in it.
    pub fn system(make: &[&str], mib: u64) -> Self {
        Self::new(&[(make, mib, &plant)])
    }

    pub fn restore(&self, flags: &[&str]) -> Value {
        restore(&self.image, &self.target, flags)
    }

    /// Looks at the files of a partition of the target.
    pub fn look<T>(&self, number: usize, options: &str, f: impl FnOnce(&Path) -> T) -> T {
        let device = device(&self.target, self.parts[number - 1]);
        let at = self.dir.path().join("mnt");
        let _mounted = Mounted::new(device.text(), &at, options);
        f(&at)
    }

    pub fn check(&self, number: usize, check: &[&str]) {
        let device = device(&self.target, self.parts[number - 1]);
        run("fsck", check[0], &[&check[1..], &[device.text()]].concat());
    }

    /// The restore fails for this reason, and the disk is plainly not bootable.
    pub fn fails(&self, flags: &[&str], kind: &str, words: &[&str]) {
        noise_file(&self.target, fs::metadata(&self.target).unwrap().len(), 4);
        try_restore(&self.image, &self.target, flags).refused(kind, words);
        let mut head = vec![1; MIB as usize];
        File::open(&self.target).unwrap().read_exact_at(&mut head, 0).unwrap();
        assert!(head.iter().all(|b| *b == 0), "it may boot");
    }

    /// The restore is refused before the first write.
    pub fn refused(&self, flags: &[&str], words: &[&str]) {
        let hash = || {
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(File::open(&self.target).unwrap()).unwrap();
            hasher.finalize()
        };
        let before = hash();
        try_restore(&self.image, &self.target, flags).refused("refused", words);
        assert_eq!(hash(), before);
    }
}

/// The source, with a partition in each of these places in MiB.
fn partitioned(dir: &Path, parts: &[(u64, u64)]) {
    let mut script = "label: gpt\nunit: sectors\n".to_owned();
    let mut end = 0;
    for (start, len) in parts {
        script += &format!("start={}, size={}, type=L\n", start * 2048, len * 2048);
        end = start + len;
    }
    let (source, path) = (dir.join("source"), dir.join("script"));
    File::create(&source).unwrap().set_len((end + 1) * MIB).unwrap();
    fs::write(&path, script).unwrap();
    let command = format!("sfdisk -q --no-reread {} < {}", source.display(), path.display());
    run("fdisk", "sh", &["-c", &command]);
}

/// A partition, or another part, as a device of its own.
fn device(disk: &Path, (start, len): (u64, u64)) -> Loop {
    let [start, len] = [start, len].map(|mib| (mib * MIB).to_string());
    Loop::new(disk, &["--offset", &start, "--sizelimit", &len])
}

/// What a system has that knows who it is.
pub fn plant(at: &Path) {
    crate::disks::plant(at);
    for folder in ["usr", "etc/ssh", "var/lib/dbus"] {
        fs::create_dir_all(at.join(folder)).unwrap();
    }
    fs::write(at.join("etc/hostname"), "gold\n").unwrap();
    fs::set_permissions(at.join("etc/hostname"), fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(at.join("etc/hostname"), Some(0), Some(42)).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    let label = b"system_u:object_r:hostname_etc_t:s0\0";
    rustix::fs::setxattr(at.join("etc/hostname"), "security.selinux", label, flags).unwrap();
    fs::write(at.join("etc/hosts"), "127.0.0.1 localhost\n127.0.1.1 gold.lan gold\n").unwrap();
    fs::write(at.join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
    symlink("/etc/machine-id", at.join("var/lib/dbus/machine-id")).unwrap();
    for name in ["ssh_host_rsa_key", "ssh_host_rsa_key.pub", "sshd_config"] {
        fs::write(at.join("etc/ssh").join(name), name).unwrap();
    }
}

/// What was done with which file.
pub fn done(summary: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let files = summary["files"].as_array().unwrap();
    files.iter().map(|file| (text(&file["path"]), text(&file["action"]))).collect()
}

pub const IDENTITY: [&str; 4] =
    ["--hostname", "node7", "--clear-machine-id", "--remove-ssh-host-keys"];

/// A new identity on one kind of filesystem: these files are changed, all others are bit for bit the same.
fn new_identity(make: &[&str], mib: u64, options: &str, check: &[&str]) {
    let custom = Custom::system(make, mib);
    custom.restore(&[]);
    let before = custom.look(1, options, inventory);
    let summary = custom.restore(&IDENTITY);
    let wanted = [
        ("/etc/hostname", "replaced"),
        ("/etc/hosts", "replaced"),
        ("/etc/machine-id", "replaced"),
        ("/etc/ssh/ssh_host_rsa_key", "removed"),
        ("/etc/ssh/ssh_host_rsa_key.pub", "removed"),
    ];
    let wanted = wanted.map(|(path, action)| (path.to_owned(), action.to_owned()));
    assert_eq!(done(&summary), BTreeMap::from(wanted));
    custom.check(1, check);
    let after = custom.look(1, options, |at| {
        let read = |path: &str| fs::read_to_string(at.join(path)).unwrap();
        assert_eq!(read("etc/hostname"), "node7\n");
        assert_eq!(read("etc/hosts"), "127.0.0.1 localhost\n127.0.1.1 node7.lan node7\n");
        assert_eq!(read("etc/machine-id"), "");
        let meta = fs::metadata(at.join("etc/hostname")).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o640, 0, 42));
        let mut label = [0_u8; 100];
        let path = at.join("etc/hostname");
        let len = rustix::fs::getxattr(&path, "security.selinux", &mut label).unwrap();
        assert_eq!(&label[..len], b"system_u:object_r:hostname_etc_t:s0\0");
        inventory(at)
    });
    let changed = ["etc", "etc/hostname", "etc/hosts", "etc/machine-id", "etc/ssh"];
    let others = |mut all: BTreeMap<PathBuf, String>| {
        all.retain(|path, _| {
            !path.to_str().is_some_and(|p| changed.contains(&p) || p.contains("ssh_host_"))
        });
        all
    };
    let (before, after) = (others(before), others(after));
    assert!(before.len() > 60);
    assert_eq!(before, after);
}

#[test]
fn a_new_identity_on_ext4() {
    new_identity(EXT4, 40, "ro,noload", &["e2fsck", "-fn"]);
}

#[test]
fn a_new_identity_on_xfs() {
    new_identity(XFS, 320, "ro,norecovery,nouuid", &["xfs_repair", "-n"]);
}

#[test]
fn a_new_identity_on_btrfs() {
    new_identity(BTRFS, 160, "ro", &["btrfs", "check"]);
}

#[test]
fn a_system_in_a_subvolume() {
    let in_subvolume = |at: &Path| {
        run("btrfs-progs", "btrfs", &["subvolume", "create", at.join("@").to_str().unwrap()]);
        plant(&at.join("@"));
    };
    let custom = Custom::new(&[(BTRFS, 160, &in_subvolume)]);
    custom.restore(&IDENTITY);
    custom.check(1, &["btrfs", "check"]);
    let name = custom.look(1, "ro", |at| fs::read_to_string(at.join("@/etc/hostname")).unwrap());
    assert_eq!(name, "node7\n");
}

#[test]
fn of_two_systems_in_subvolumes_none_is_guessed() {
    let two = |at: &Path| {
        for name in ["@", "@rootfs"] {
            let at = at.join(name);
            run("btrfs-progs", "btrfs", &["subvolume", "create", at.to_str().unwrap()]);
            plant(&at);
        }
    };
    let custom = Custom::new(&[(BTRFS, 160, &two)]);
    custom.fails(&IDENTITY, "refused", &["@rootfs and @ each hold a system", "set-default"]);
}

#[test]
fn the_one_filesystem_that_holds_a_system_is_found() {
    let boot = |at: &Path| fs::write(at.join("vmlinuz"), "x").unwrap();
    let custom = Custom::new(&[(EXT4, 16, &boot), (EXT4, 40, &plant), (EXT4, 16, &boot)]);
    custom.restore(&[]);
    let before = custom.look(1, "ro,noload", inventory);
    let plan = |flags: &[&str]| {
        let paths = [custom.image.to_str().unwrap(), custom.target.to_str().unwrap()];
        agent(&[&["plan", "restore"], &paths[..], flags].concat()).stdout
    };
    let text = plan(&IDENTITY);
    assert!(
        text.contains("the system is named node7, in whichever of partition 1 (ext4)"),
        "{text}"
    );
    let hash = |text: &str| text.lines().last().unwrap().to_owned();
    assert_ne!(hash(&text), hash(&plan(&["--hostname", "node8"])));
    assert_ne!(hash(&text), hash(&plan(&[])));
    let summary = custom.restore(&IDENTITY);
    assert_eq!(done(&summary)["/etc/hostname"], "replaced");
    assert_eq!(custom.look(1, "ro,noload", inventory), before);
    custom.check(2, &["e2fsck", "-fn"]);
    // The volumes that were only looked at are as in the image.
    custom.check(1, &["e2fsck", "-fn"]);
    custom.fails(
        &["--hostname", "x", "--root-partition", "1"],
        "refused",
        &["partition 1 (ext4) holds no system", "no bootable system now"],
    );
    custom.refused(&["--hostname", "x", "--root-partition", "4"], &["no partition 4"]);
    custom.refused(&["--root-partition", "1"], &["nothing is to be changed"]);
}

#[test]
fn of_two_systems_one_must_be_named() {
    let custom = Custom::new(&[(EXT4, 40, &plant), (EXT4, 40, &plant)]);
    custom.fails(
        &["--hostname", "x"],
        "refused",
        &["partition 1 (ext4) and partition 2 (ext4) each hold a system", "--root-partition"],
    );
    custom.restore(&["--hostname", "x", "--root-partition", "2"]);
    let name =
        |n| custom.look(n, "ro,noload", |at| fs::read_to_string(at.join("etc/hostname")).unwrap());
    assert_eq!([name(1), name(2)], ["gold\n", "x\n"]);
}

#[test]
fn a_system_that_cannot_be_reached_is_refused_before_the_first_write() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, image, target) =
        (dir.path().join("v"), dir.path().join("a.img.zst"), dir.path().join("t"));
    crate::disks::fat(&volume, 40 * MIB, "32");
    capture(&volume, &image, &[]);
    noise_file(&target, 40 * MIB, 2);
    let before = fs::read(&target).unwrap();
    try_restore(&image, &target, &["--hostname", "x"]).refused("refused", &["has the fat32"]);
    assert_eq!(fs::read(&target).unwrap(), before);
}

#[test]
fn what_cannot_be_changed_does_not_boot() {
    let immutable = |at: &Path| {
        plant(at);
        run("e2fsprogs", "chattr", &["+i", at.join("etc/hostname").to_str().unwrap()]);
    };
    let custom = Custom::new(&[(EXT4, 40, &immutable)]);
    custom.fails(&IDENTITY, "refused", &["writing /etc/hostname", "immutable", "not permitted"]);
    let mounted_over = |at: &Path| {
        plant(at);
        fs::write(at.join("etc/fstab"), "UUID=1 / ext4\nUUID=2 /etc/ssh ext4\n").unwrap();
    };
    let custom = Custom::new(&[(EXT4, 40, &mounted_over)]);
    custom.fails(
        &IDENTITY,
        "refused",
        &["fstab mounts another filesystem on /etc/ssh", "UUID=2, which is none of this disk's"],
    );
}

/// An image whose links lead out of it, to files of this machine.
#[test]
fn a_hostile_image_changes_nothing_of_this_machine() {
    let outside = tempfile::tempdir().unwrap();
    let at = |name: &str| outside.path().join(name);
    fs::create_dir(at("ssh")).unwrap();
    fs::write(at("ssh/ssh_host_rsa_key"), "mine").unwrap();
    fs::write(at("hostname"), "mine").unwrap();
    let before = inventory(outside.path());
    let by_files = |to: &Path| {
        plant(to);
        fs::remove_file(to.join("etc/hostname")).unwrap();
        fs::remove_dir_all(to.join("etc/ssh")).unwrap();
        symlink(at("hostname"), to.join("etc/hostname")).unwrap();
        symlink(at("ssh"), to.join("etc/ssh")).unwrap();
    };
    let custom = Custom::new(&[(EXT4, 40, &by_files)]);
    let summary = custom.restore(&IDENTITY);
    assert_eq!(done(&summary)["/etc/hostname"], "replaced");
    assert_eq!(inventory(outside.path()), before);
    custom.look(1, "ro,noload", |root| {
        assert_eq!(fs::read_to_string(root.join("etc/hostname")).unwrap(), "node7\n");
        assert!(!root.join("etc/hostname").is_symlink());
    });
    for link in ["/proc/1/root/etc", "../../../../etc"] {
        let etc = |to: &Path| {
            fs::create_dir(to.join("usr")).unwrap();
            symlink(link, to.join("etc")).unwrap();
        };
        let custom = Custom::new(&[(EXT4, 40, &etc)]);
        custom.fails(&IDENTITY, "refused", &["no folder /etc"]);
    }
}

#[test]
fn a_job_changes_the_system_and_an_identical_disk_is_changed_too() {
    let custom = Custom::system(EXT4, 40);
    custom.restore(&[]);
    let job = |options: Value| {
        let job = json!({
            "id": "1", "disk": custom.target, "image_url": custom.image, "action": "restore",
            "options": options,
        });
        let output = worker(&job).wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        last["outcome"].clone()
    };
    let outcome = job(json!({"delta": true, "hostname": "node9"}));
    assert_eq!(done(&outcome)["/etc/hosts"], "replaced", "{outcome:#}");
    assert_eq!(
        custom.look(1, "ro,noload", |at| fs::read_to_string(at.join("etc/hostname")).unwrap()),
        "node9\n"
    );
    let outcome = job(json!({"hostname": "../x"}));
    assert_eq!(outcome["kind"], "refused", "{outcome:#}");
}

#[test]
fn a_bare_volume_is_changed_behind_its_last_write() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, image, target) =
        (dir.path().join("v"), dir.path().join("a.img.zst"), dir.path().join("t"));
    File::create(&volume).unwrap().set_len(64 * MIB).unwrap();
    run("e2fsprogs", "mke2fs", &["-q", "-t", "ext4", volume.to_str().unwrap()]);
    let fill = |plant: &dyn Fn(&Path)| {
        let device = Loop::new(&volume, &[]);
        let _mounted = Mounted::new(device.text(), &dir.path().join("mnt"), "rw");
        plant(&dir.path().join("mnt"));
    };
    fill(&plant);
    capture(&volume, &image, &[]);
    noise_file(&target, 64 * MIB, 2);
    let summary = restore(&image, &target, &IDENTITY);
    assert_eq!(done(&summary).len(), 5, "{summary:#}");
    run("e2fsprogs", "e2fsck", &["-fn", target.to_str().unwrap()]);
    // One that cannot be changed is destroyed again.
    fill(&|at| {
        run("e2fsprogs", "chattr", &["+i", at.join("etc/hostname").to_str().unwrap()]);
    });
    let image = dir.path().join("b.img.zst");
    capture(&volume, &image, &[]);
    try_restore(&image, &target, &IDENTITY).refused("refused", &["writing /etc/hostname"]);
    let mut head = vec![1; 4096];
    File::open(&target).unwrap().read_exact_at(&mut head, 0).unwrap();
    assert!(head.iter().all(|b| *b == 0));
}
