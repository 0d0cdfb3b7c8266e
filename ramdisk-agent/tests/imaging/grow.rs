//! Onto larger disks: a partition grows and its filesystem with it, by the kernel, before the disk can boot.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::agent::{agent, capture, restore, try_restore};
use crate::devices::{Loop, Mounted, inventory};
use crate::disks::{self, identity, noise_file, plant};
use crate::round_trip::restored;
use crate::tools::{run, status};

const MIB: u64 = 1 << 20;

/// A partition as a device of its own: nodes of partitions outlive the loop devices of other tests.
fn part(disk: &Path, start_mib: u64, len_mib: u64) -> Loop {
    let [start, len] = [start_mib, len_mib].map(|mib| (mib * MIB).to_string());
    Loop::new(disk, &["--offset", &start, "--sizelimit", &len])
}

/// The files of a volume.
fn files(device: &str, options: &str, scratch: &Path) -> BTreeMap<PathBuf, String> {
    let _mounted = Mounted::new(device, &scratch.join("mnt"), options);
    inventory(&scratch.join("mnt"))
}

/// How many bytes a mounted filesystem has.
fn df(device: &str, options: &str, scratch: &Path) -> u64 {
    let at = scratch.join("mnt");
    let _mounted = Mounted::new(device, &at, options);
    let text = run("coreutils", "df", &["-B1", "--output=size", at.to_str().unwrap()]);
    text.lines().last().unwrap().trim().parse().unwrap()
}

pub fn words(value: &Value) -> String {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect::<Vec<_>>().join("\n")
}

/// Where sfdisk sees partitions: start and length in MiB.
pub fn layout(disk: &Path) -> Vec<(u64, u64)> {
    let text = run("fdisk", "sfdisk", &["--json", disk.to_str().unwrap()]);
    let table: Value = serde_json::from_str(&text).unwrap();
    let number = |p: &Value, key: &str| p[key].as_u64().unwrap() / 2048;
    let list = table["partitiontable"]["partitions"].as_array().unwrap();
    list.iter().map(|p| (number(p, "start"), number(p, "size"))).collect()
}

/// The kernel grows an ext only for processes with CAP_SYS_RESOURCE (bit 24), and not every container's root has that.
pub fn may_grow_ext() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap() >> 24 & 1 == 1
}

/// Grows an ext: where the kernel would not let us, the restore must be refused before the first write, and say why.
fn grown_ext(image: &Path, target: &Path, flags: &[&str]) -> Option<Value> {
    if may_grow_ext() {
        return Some(restore(image, target, flags));
    }
    let hash = || {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(target).unwrap()).unwrap();
        hasher.finalize()
    };
    let before = hash();
    try_restore(image, target, flags).refused("refused", &["CAP_SYS_RESOURCE", "--grow"]);
    assert_eq!(hash(), before);
    None
}

#[test]
fn ext4_grows_and_swap_goes_to_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = restored(dir.path());
    let target = dir.path().join("t");
    noise_file(&target, 400 * MIB, 1);
    let device = Loop::new(&target, &[]);
    let Some(summary) = grown_ext(&image, &device.0, &["--grow", "last"]) else { return };
    let changes = words(&summary["changes"]);
    assert!(changes.contains("grown from 100.00 MiB to 342.00 MiB"), "{changes}");
    assert_eq!(layout(&target), [(1, 40), (41, 342), (383, 16)]);
    same_system(&disk.path, &device, dir.path());
    let root = part(&target, 41, 342);
    assert!(df(root.text(), "ro,noload", dir.path()) > 320 * MIB);
    drop(root);
    // Again, over what has grown.
    let again = restore(&image, &device.0, &["--grow", "last", "--delta"]);
    assert!(again["written_bytes"].as_u64() < summary["written_bytes"].as_u64());
    same_system(&disk.path, &device, dir.path());
}

/// The disk of `disks::system` and one restored from it: checked by every part's tools, the same identities, the same files.
pub fn same_system(source: &Path, device: &Loop, scratch: &Path) {
    let verdict = run("gdisk", "sgdisk", &["-v", device.text()]);
    assert!(verdict.contains("No problems found"), "{verdict}");
    let [old, new] = [source, device.0.as_path()].map(|disk| -> Vec<Loop> {
        layout(disk).into_iter().map(|(start, len)| part(disk, start, len)).collect()
    });
    run("e2fsprogs", "e2fsck", &["-fn", new[1].text()]);
    run("dosfstools", "fsck.vfat", &["-n", new[0].text()]);
    let trees = [&old[1], &new[1]].map(|part| files(part.text(), "ro,noload", scratch));
    assert!(trees[0].len() > 60);
    assert_eq!(trees[0], trees[1]);
    for (old, new) in old.iter().zip(&new) {
        let (old, new) = (old.text(), new.text());
        let identity = |device: &str| -> Vec<String> {
            let all = identity(Path::new(device));
            let lines = all.lines().filter(|l| !l.contains("SIZE") && !l.contains("LAST"));
            lines.map(Into::into).collect()
        };
        assert_eq!(identity(old), identity(new));
    }
}

#[test]
fn what_lies_behind_a_partition_that_grows_moves_to_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = restored(dir.path());
    let target = dir.path().join("t");
    noise_file(&target, 200 * MIB + 512, 1);
    let device = Loop::new(&target, &[]);
    let flags = ["--grow", "1"];
    let command =
        [&["plan", "restore", image.to_str().unwrap(), device.text()], &flags[..]].concat();
    let planned = agent(&command).stdout;
    for words in ["partition 1 grows from 40.00 MiB to 82.00 MiB", "fat32) keeps its size"] {
        assert!(planned.contains(words), "{planned}");
    }
    let summary = restore(&image, &device.0, &flags);
    assert!(words(&summary["changes"]).contains("partition 3 moves"), "{summary:#}");
    assert_eq!(layout(&target), [(1, 82), (83, 100), (183, 16)]);
    same_system(&disk.path, &device, dir.path());
    // Once more, with nothing to do; a file instead of a device; a part that is not there; a disk without room.
    let again = restore(&image, &device.0, &["--grow", "1", "--delta"]);
    assert_eq!(again["written_bytes"], 0, "{again:#}");
    drop(device);
    noise_file(&target, 200 * MIB + 512, 7);
    restore(&image, &target, &["--grow", "1", "--scrub-free"]);
    assert_eq!(layout(&target), [(1, 82), (83, 100), (183, 16)]);
    same_system(&disk.path, &Loop::new(&target, &[]), dir.path());
    try_restore(&image, &target, &["--grow", "7"]).refused("refused", &["1, 2, 3"]);
    let same = restore(&image, &target, &["--grow", "3"]);
    assert_eq!(layout(&target), [(1, 40), (41, 100), (141, 58)]);
    assert!(words(&same["changes"]).contains("partition 3 grows"), "{same}");
}

pub fn target_part<'a>(disk: &Path, start: u64, len: u64, to: &'a Path) -> &'a str {
    disks::take(disk, disks::Part { start, len }, to);
    to.to_str().unwrap()
}

#[test]
fn logical_partitions_grow_and_move_in_their_extended_one() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disks::system(dir.path(), "logical");
    let (image, target, part) =
        (dir.path().join("a.img.zst"), dir.path().join("t"), dir.path().join("part"));
    capture(&disk.path, &image, &[]);
    for (grow, wanted) in [
        // Swap, whose header is made anew.
        ("6", [(1, 40), (41, 219), (42, 100), (143, 117)]),
        // FAT: the extended partition goes to the end with all in it.
        ("1", [(1, 141), (142, 118), (143, 100), (244, 16)]),
    ] {
        noise_file(&target, 260 * MIB, 1);
        restore(&image, &target, &["--grow", grow]);
        assert_eq!(layout(&target), wanted);
        let verdict = run("fdisk", "sfdisk", &["-V", target.to_str().unwrap()]);
        assert!(verdict.contains("No errors"), "{verdict}");
        let root = target_part(&target, wanted[2].0 * MIB, wanted[2].1 * MIB, &part);
        run("e2fsprogs", "e2fsck", &["-fn", root]);
        let swap = identity_of(&target, wanted[3].0 * MIB, wanted[3].1 * MIB, &part);
        assert!(swap.contains("LABEL=swap"), "{swap}");
        let space = run("util-linux", "swaplabel", &[part.to_str().unwrap()]);
        assert!(space.contains("UUID"), "{space}");
        let mut page = [0; 1032];
        File::open(&part).unwrap().read_exact_at(&mut page, 0).unwrap();
        let last_page = u32::from_le_bytes(page[1028..1032].try_into().unwrap());
        assert_eq!(u64::from(last_page) + 1, wanted[3].1 * 256);
    }
}

fn identity_of(disk: &Path, start: u64, len: u64, scratch: &Path) -> String {
    identity(Path::new(target_part(disk, start, len, scratch)))
}

/// A disk with one partition, made by a maker of filesystems and filled through a mount.
fn one_partition(dir: &Path, make: &[&str], mib: u64) -> PathBuf {
    let path = dir.join("source");
    File::create(&path).unwrap().set_len((mib + 2) * MIB).unwrap();
    run("gdisk", "sgdisk", &["-o", &format!("-n1:2048:+{mib}M"), path.to_str().unwrap()]);
    let device = part(&path, 1, mib);
    run("mkfs", make[0], &[&make[1..], &[device.text()]].concat());
    let _mounted = Mounted::new(device.text(), &dir.join("mnt"), "rw");
    plant(&dir.join("mnt"));
    // A mount namespace that another test makes just now keeps the filesystem mounted for a while: what was written is on the disk all
    // the same.
    run("coreutils", "sync", &["-f", dir.join("mnt").to_str().unwrap()]);
    path
}

fn other_filesystem(make: &[&str], options: &str, check: &[&str], mib: u64) {
    let dir = tempfile::tempdir().unwrap();
    let source = one_partition(dir.path(), make, mib);
    let (image, target) = (dir.path().join("a.img.zst"), dir.path().join("t"));
    let before = files(part(&source, 1, mib).text(), options, dir.path());
    let captured = capture(&source, &image, &[]);
    assert_eq!(captured["raw"].as_array().unwrap().len(), 0, "{captured:#}");
    File::create(&target).unwrap().set_len(2 * mib * MIB).unwrap();
    let device = Loop::new(&target, &[]);
    let flags = ["--grow", "1"];
    let summary = if make[0] == "mke2fs" {
        let Some(summary) = grown_ext(&image, &device.0, &flags) else { return };
        summary
    } else {
        restore(&image, &device.0, &flags)
    };
    assert!(words(&summary["changes"]).contains("was grown from"), "{summary:#}");
    drop(device);
    let grown = part(&target, 1, layout(&target)[0].1);
    run("fsck", check[0], &[&check[1..], &[grown.text()]].concat());
    let size = df(grown.text(), options, dir.path());
    assert!(size > (2 * mib - 2) * MIB * 8 / 10, "{size}");
    assert_eq!(files(grown.text(), options, dir.path()), before);
}

#[test]
fn xfs_grows() {
    let options = "ro,norecovery,nouuid";
    other_filesystem(&["mkfs.xfs", "-q"], options, &["xfs_repair", "-n"], 320);
}

#[test]
fn btrfs_grows() {
    other_filesystem(&["mkfs.btrfs", "-q"], "ro", &["btrfs", "check"], 160);
}

#[test]
fn ext2_grows() {
    let make = ["mke2fs", "-q", "-t", "ext2"];
    other_filesystem(&make, "ro", &["e2fsck", "-fn"], 64);
}

/// The kernel keeps what it has read of a device that somebody has open, and what is written to the file beneath does not go through that.
#[test]
fn what_others_read_of_a_loop_device_meanwhile_is_in_nobodys_way() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mib = 320;
    let source = one_partition(dir.path(), &["mkfs.xfs", "-q"], mib);
    let (image, target) = (dir.path().join("a.img.zst"), dir.path().join("t"));
    let options = "ro,norecovery,nouuid";
    let before = files(part(&source, 1, mib).text(), options, dir.path());
    capture(&source, &image, &[]);
    noise_file(&target, 2 * mib * MIB, 2);
    for flags in [&["--direct-io=off"][..], &["--direct-io=on"]] {
        let device = Loop::new(&target, flags);
        let is_over = AtomicBool::new(false);
        let summary = std::thread::scope(|scope| {
            scope.spawn(|| {
                let open = File::open(&device.0).unwrap();
                // The table, and the superblock behind it.
                let mut head = vec![0; 2 * MIB as usize];
                while !is_over.load(Ordering::Relaxed) {
                    open.read_exact_at(&mut head, 0).unwrap();
                }
            });
            let ran = try_restore(&image, &device.0, &["--grow", "1"]);
            is_over.store(true, Ordering::Relaxed);
            ran
        });
        let summary = summary.json();
        assert!(words(&summary["changes"]).contains("was grown from"), "{summary:#}");
        drop(device);
        let grown = part(&target, 1, layout(&target)[0].1);
        run("fsck", "xfs_repair", &["-n", grown.text()]);
        assert_eq!(files(grown.text(), options, dir.path()), before);
    }
}

#[test]
fn a_bare_filesystem_grows() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, image, target) =
        (dir.path().join("v"), dir.path().join("a.img.zst"), dir.path().join("t"));
    File::create(&volume).unwrap().set_len(200 * MIB).unwrap();
    run("btrfs-progs", "mkfs.btrfs", &["-q", volume.to_str().unwrap()]);
    capture(&volume, &image, &[]);
    noise_file(&target, 300 * MIB, 2);
    let summary = restore(&image, &target, &["--grow", "last"]);
    assert!(words(&summary["changes"]).contains("to 300.00 MiB"), "{summary:#}");
    run("btrfs-progs", "btrfs", &["check", target.to_str().unwrap()]);
    try_restore(&image, &target, &["--grow", "1"]).refused("refused", &["no partitions"]);
    // What is all there but has not grown yet, as after a power cut: nothing differs, and it grows.
    restore(&image, &target, &[]);
    let summary = restore(&image, &target, &["--delta", "--grow", "last"]);
    assert!(words(&summary["changes"]).contains("to 300.00 MiB"), "{summary:#}");
    run("btrfs-progs", "btrfs", &["check", target.to_str().unwrap()]);
}

/// A filesystem that the kernel will not mount: the restore fails, and the disk is plainly not bootable.
#[test]
fn what_does_not_grow_does_not_boot() {
    let dir = tempfile::tempdir().unwrap();
    let source = one_partition(dir.path(), &["mkfs.btrfs", "-q"], 160);
    // A feature that no kernel knows, in a superblock whose checksum is right.
    let file = File::options().read(true).write(true).open(&source).unwrap();
    let at = MIB + (64 << 10);
    let mut superblock = vec![0; 4096];
    file.read_exact_at(&mut superblock, at).unwrap();
    superblock[0xBC + 7] |= 0x40;
    let sum = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI).checksum(&superblock[32..]);
    superblock[..4].copy_from_slice(&sum.to_le_bytes());
    file.write_all_at(&superblock, at).unwrap();
    let (image, target) = (dir.path().join("a.img.zst"), dir.path().join("t"));
    capture(&source, &image, &[]);
    noise_file(&target, 400 * MIB, 2);
    // It is no fault of the disk's.
    try_restore(&image, &target, &["--grow", "1"])
        .refused("refused", &["growing", "partition 1", "newer kernel"]);
    let found = status("util-linux", "blkid", &["-p", target.to_str().unwrap()]);
    assert_ne!(found.status.code(), Some(0), "{found:?}");
    let mut head = vec![1; MIB as usize];
    File::open(&target).unwrap().read_exact_at(&mut head, 0).unwrap();
    assert!(head.iter().all(|b| *b == 0));
}

#[test]
fn a_bare_swap_area_grows() {
    let dir = tempfile::tempdir().unwrap();
    let [source, image, target] = ["s", "a.img.zst", "t"].map(|name| dir.path().join(name));
    disks::swap(&source, 8 * MIB);
    capture(&source, &image, &[]);
    noise_file(&target, 20 * MIB, 1);
    let summary = restore(&image, &target, &["--grow", "last"]);
    assert!(words(&summary["changes"]).contains("new header for 20.00 MiB"), "{summary:#}");
    let pages = |file: &Path| {
        let mut bytes = [0; 4];
        File::open(file).unwrap().read_exact_at(&mut bytes, 1024 + 4).unwrap();
        u64::from(u32::from_le_bytes(bytes)) + 1
    };
    assert_eq!([&source, &target].map(|file| pages(file) * 4096), [8 * MIB, 20 * MIB]);
    assert_eq!(uuid(&source), uuid(&target));
    let again = restore(&image, &target, &["--grow", "last", "--delta"]);
    assert_eq!(again["written_bytes"], 0, "{again:#}");
}

/// The UUID of a swap area.
fn uuid(file: &Path) -> [u8; 16] {
    let mut bytes = [0; 16];
    File::open(file).unwrap().read_exact_at(&mut bytes, 1024 + 12).unwrap();
    bytes
}
