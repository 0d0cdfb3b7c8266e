//! Onto disks whose logical sectors have another size: done where it works there, refused with the reason where it does not.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::agent::{agent, capture, restore, try_restore};
use crate::devices::{Loop, Mounted, inventory};
use crate::disks::{identity, noise, noise_file, plant};
use crate::grow::words;
use crate::tools::run;

const MIB: u64 = 1 << 20;
const SMALL: &[&str] = &["--sector-size", "512"];
const LARGE: &[&str] = &["--sector-size", "4096"];

/// A disk of zeros.
fn empty(path: &Path, len: u64) {
    File::create(path).unwrap().set_len(len).unwrap();
}

/// One with noise at both ends, where tables lie.
fn disk(path: &Path, len: u64) {
    empty(path, len);
    let file = File::options().write(true).open(path).unwrap();
    for at in [0, len - 2 * MIB] {
        file.write_all_at(&noise(2 * MIB as usize, at), at).unwrap();
    }
}

fn hash_of(path: &Path) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path).unwrap()).unwrap();
    hasher.finalize()
}

/// A partition as a device of its own, with the sectors of its disk.
fn part(disk: &Path, (start, len): (u64, u64), sectors: &[&str]) -> Loop {
    let [start, len] = [start, len].map(|n| n.to_string());
    Loop::new(disk, &[sectors, &["--offset", &start, "--sizelimit", &len]].concat())
}

/// The table as sfdisk sees it on a device.
fn table(device: &Loop) -> Value {
    let text = run("fdisk", "sfdisk", &["--json", device.text()]);
    serde_json::from_str::<Value>(&text).unwrap()["partitiontable"].clone()
}

/// The partitions' places in bytes.
fn places(table: &Value) -> Vec<(u64, u64)> {
    let sector = table["sectorsize"].as_u64().unwrap();
    let bytes = |p: &Value, key: &str| p[key].as_u64().unwrap() * sector;
    let list = table["partitions"].as_array().unwrap();
    list.iter().map(|p| (bytes(p, "start"), bytes(p, "size"))).collect()
}

/// What a table says beside places.
fn names(table: &Value) -> Vec<String> {
    let said = |p: &Value| format!("{} {} {} {}", p["type"], p["uuid"], p["name"], p["attrs"]);
    let mut all: Vec<String> = table["partitions"].as_array().unwrap().iter().map(said).collect();
    all.push(table["id"].to_string());
    all
}

/// Makes a filesystem with files in a partition of a disk.
fn filled(device: &Loop, package: &str, mkfs: &[&str], scratch: &Path) {
    run(package, mkfs[0], &[&mkfs[1..], &[device.text()]].concat());
    let at = scratch.join("mnt");
    let _mounted = Mounted::new(device.text(), &at, "rw");
    plant(&at);
}

fn put_fat(device: &Loop, flags: &[&str], scratch: &Path) {
    run("dosfstools", "mkfs.vfat", &[flags, &["-I", "-n", "ESP", device.text()]].concat());
    run("mtools", "mmd", &["-i", device.text(), "::/EFI", "::/EFI/BOOT"]);
    let loader = scratch.join("loader");
    fs::write(&loader, noise(700_000, 5)).unwrap();
    let to = "::/EFI/BOOT/BOOTX64.EFI";
    run("mtools", "mcopy", &["-i", device.text(), loader.to_str().unwrap(), to]);
}

/// A disk with sectors of 512 bytes whose parts all work on larger ones: ESP, ext4, swap, XFS, btrfs.
fn system(path: &Path, scratch: &Path) -> Vec<(u64, u64)> {
    empty(path, 924 * MIB);
    let device = Loop::new(path, SMALL);
    let parts = [
        "-Z",
        "-o",
        "-n1:1M:+264M",
        "-t1:ef00",
        "-c1:esp",
        "-n2:0:+64M",
        "-A2:set:59",
        "-c2:rööt",
        "-n3:0:+8M",
        "-t3:8200",
        "-n4:0:+320M",
        "-n7:0:+128M",
    ];
    run("gdisk", "sgdisk", &[&parts[..], &[device.text()]].concat());
    let places = places(&table(&device));
    let [esp, ext, swap, xfs, btrfs] = [0, 1, 2, 3, 4].map(|n| part(path, places[n], SMALL));
    put_fat(&esp, &["-F", "32", "-s", "8"], scratch);
    filled(&ext, "e2fsprogs", &["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-L", "root"], scratch);
    run("util-linux", "mkswap", &["-L", "swap", swap.text()]);
    filled(&xfs, "xfsprogs", &["mkfs.xfs", "-q", "-s", "size=4096"], scratch);
    filled(&btrfs, "btrfs-progs", &["mkfs.btrfs", "-q"], scratch);
    places
}

type Files = BTreeMap<PathBuf, String>;

/// Everything in the parts of a disk, after their own tools have found nothing wrong, and the kernel has mounted what it can.
fn judged(path: &Path, sectors: &[&str], scratch: &Path) -> (Vec<Files>, Vec<String>, Vec<u8>) {
    let device = Loop::new(path, sectors);
    let verdict = run("gdisk", "sgdisk", &["-v", device.text()]);
    assert!(verdict.contains("No problems found"), "{verdict}");
    let mut disk = File::open(device.path()).unwrap();
    let witness = gptman::GPT::read_from(&mut disk, sectors[1].parse().unwrap()).unwrap();
    assert_eq!(witness.iter().filter(|(_, p)| p.is_used()).count(), 5);
    let parts: Vec<Loop> =
        places(&table(&device)).into_iter().map(|place| part(path, place, sectors)).collect();
    let check = |package: &str, tool: &str, flags: &[&str], n: usize| {
        run(package, tool, &[flags, &[parts[n].text()]].concat());
    };
    check("dosfstools", "fsck.vfat", &["-n"], 0);
    check("e2fsprogs", "e2fsck", &["-fn"], 1);
    check("xfsprogs", "xfs_repair", &["-n"], 3);
    check("btrfs-progs", "btrfs", &["check", "--readonly"], 4);
    let files = |n: usize| {
        let at = scratch.join("mnt");
        let _mounted = Mounted::new(parts[n].text(), &at, "ro");
        inventory(&at)
    };
    let identities = parts.iter().map(|part| {
        let all = identity(part.path());
        let lines = all.lines().filter(|l| !["SIZE", "LAST"].iter().any(|word| l.contains(word)));
        lines.collect::<Vec<_>>().join("\n")
    });
    let identities = identities.collect();
    let loader = scratch.join("loader");
    let to = loader.to_str().unwrap();
    run("mtools", "mcopy", &["-n", "-i", parts[0].text(), "::/EFI/BOOT/BOOTX64.EFI", to]);
    ([1, 3, 4].map(files).into(), identities, fs::read(loader).unwrap())
}

#[test]
fn a_system_goes_from_512_to_4096_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (source, image, large) = (path("s"), path("a.img.zst"), path("large"));
    let before = system(&source, dir.path());
    let old = Loop::new(&source, SMALL);
    let names_before = names(&table(&old));
    capture(old.path(), &image, &[]);
    drop(old);
    let held = judged(&source, SMALL, dir.path());

    disk(&large, 944 * MIB);
    let device = Loop::new(&large, LARGE);
    let plan = |target: &Path| {
        let paths = [image.to_str().unwrap(), target.to_str().unwrap()];
        agent(&[&["plan", "restore", "--json"], &paths[..]].concat()).json()
    };
    let planned = plan(device.path());
    let notes = words(&planned["notes"]);
    for part in
        ["logical sectors of 4096 bytes", "not taken along", "partition 1 gets boot sectors"]
    {
        assert!(notes.contains(part), "no {part:?} in {notes}");
    }
    let hash = planned["hash"].as_str().unwrap();
    let summary = restore(&image, device.path(), &["--expect-plan", hash]);
    assert!(words(&summary["changes"]).contains("sectors of 4096"), "{summary:#}");
    assert_eq!(places(&table(&device)), before);
    assert_eq!(names(&table(&device)), names_before);

    // What is there already is not written again; what is not, is.
    let same = restore(&image, device.path(), &["--delta"]);
    assert_eq!(same["written_bytes"], 0, "{same:#}");
    let file = File::options().write(true).open(&large).unwrap();
    file.write_all_at(&[7], MIB + 4096 + 490).unwrap();
    drop(device);
    let device = Loop::new(&large, LARGE);
    let mended = restore(&image, device.path(), &["--delta"]);
    let written = |summary: &Value| summary["written_bytes"].as_u64().unwrap();
    assert!(written(&mended) > 0 && written(&mended) < written(&summary), "{mended:#}");

    // And back, onto a disk that is no larger than the partitions need.
    let again = path("b.img.zst");
    capture(device.path(), &again, &[]);
    drop(device);
    assert_eq!(judged(&large, LARGE, dir.path()), held);
    let back = path("back");
    disk(&back, 787 * MIB);
    let device = Loop::new(&back, SMALL);
    restore(&again, device.path(), &[]);
    assert_eq!(places(&table(&device)), before);
    assert_eq!(names(&table(&device)), names_before);
    drop(device);
    assert_eq!(judged(&back, SMALL, dir.path()), held);
}

#[test]
fn a_filesystem_grows_onto_larger_sectors() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("s"), dir.path().join("t"));
    empty(&source, 330 * MIB);
    let device = Loop::new(&source, SMALL);
    run("gdisk", "sgdisk", &["-Z", "-o", "-n1:1M:+320M", device.text()]);
    let place = places(&table(&device))[0];
    let mkfs = ["mkfs.xfs", "-q", "-s", "size=4096"];
    filled(&part(&source, place, SMALL), "xfsprogs", &mkfs, dir.path());
    let image = dir.path().join("a.img.zst");
    capture(device.path(), &image, &[]);
    drop(device);
    disk(&target, 400 * MIB);
    let device = Loop::new(&target, LARGE);
    let grown = restore(&image, device.path(), &["--grow", "last", "--fresh-ids"]);
    assert!(words(&grown["changes"]).contains("to 398.00 MiB"), "{grown:#}");
    let place = places(&table(&device))[0];
    assert_eq!(place, (MIB, 398 * MIB));
    run("xfsprogs", "xfs_repair", &["-n", part(&target, place, LARGE).text()]);
}

/// Has `image` taken of a disk that sgdisk has partitioned, with what these programs make in its partitions.
fn taken(image: &Path, source: &Path, parts: &[&str], mkfs: &[&[&str]]) {
    empty(source, 400 * MIB);
    let device = Loop::new(source, SMALL);
    run("gdisk", "sgdisk", &[parts, &[device.text()]].concat());
    for (n, mkfs) in mkfs.iter().enumerate() {
        let made = part(source, places(&table(&device))[n], SMALL);
        run("a filesystem's tools", mkfs[0], &[&mkfs[1..], &[made.text()]].concat());
    }
    capture(device.path(), image, &[]);
    drop(device);
    fs::remove_file(source).unwrap();
}

const WORDS: &[&str] = &["sectors of 4096 bytes", "512", "nothing was written"];
const EXT: &[&str] = &["mke2fs", "-q", "-b", "4096"];

#[test]
fn volumes_that_do_not_work_there_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image, target) =
        (dir.path().join("s"), dir.path().join("a.img.zst"), dir.path().join("t"));
    noise_file(&target, 41 * MIB, 1);
    let onto = Loop::new(&target, LARGE);
    let before = hash_of(&target);
    let cases: [(&[&str], &[&str]); 7] = [
        (&["mke2fs", "-q", "-t", "ext4", "-b", "1024"], &["blocks have 1024", "-b 4096"]),
        (&["mkfs.vfat", "-I", "-F", "32", "-s", "1"], &["clusters have 512", "mkfs.fat -s 8"]),
        (&["mkfs.vfat", "-I", "-s", "8", "-a", "-R", "33"], &["do not lie on whole"]),
        (&["mkfs.ntfs", "-q", "-F", "-f", "-s", "512"], &["ntfs", "sectors of 512"]),
        (&["mkfs.exfat"], &["exfat", "sectors of 512 bytes"]),
        (&["true"], &["(unknown)", "not known"]),
        (EXT, &["does not begin and end on whole sectors", "at bytes 240123904 and 282066432"]),
    ];
    let parts = [
        "-Z",
        "-o",
        "-a1",
        "-n1:1M:+32M",
        "-n2:0:+40M",
        "-n3:0:+40M",
        "-n4:0:+40M",
        "-n5:0:+40M",
        "-n6:0:+36M",
        "-n7:0:+81919",
    ];
    taken(&image, &source, &parts, &cases.map(|(mkfs, _)| mkfs));
    for (n, (_, words)) in (1..).zip(cases) {
        let flags = ["--partition", &n.to_string()];
        let words = [WORDS, words].concat();
        try_restore(&image, onto.path(), &flags).refused("refused", &words);
    }
    try_restore(&image, onto.path(), &[]).refused("refused", &["partition 1 (ext4)"]);
    assert_eq!(hash_of(&target), before);
}

#[test]
fn tables_that_do_not_work_there_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image, target) =
        (dir.path().join("s"), dir.path().join("a.img.zst"), dir.path().join("t"));
    disk(&target, 450 * MIB);
    let onto = Loop::new(&target, LARGE);
    let before = hash_of(&target);
    let cases: [(&[&str], &[&str]); 4] = [
        (&["-Z", "-o", "-a8", "-n1:40:+40M"], &["begins at byte 20480"]),
        (&["-Z", "-o", "-n1:1M:+40M", "-n2:0:+1M", "-t2:ef02"], &["BIOS", "--layout"]),
        (&["-Z", "-o", "-n1:1M:+40M", "-h1:EE"], &["hybrid"]),
        (&["-Z", "-o", "-n1:1M:+40M", "-m1"], &["MBR", "--layout"]),
    ];
    for (parts, words) in cases {
        taken(&image, &source, parts, &[EXT]);
        let words = [WORDS, words].concat();
        try_restore(&image, onto.path(), &[]).refused("refused", &words);
        fs::remove_file(&image).unwrap();
    }
    assert_eq!(hash_of(&target), before);
}

/// An MBR does not say what sectors it counts in: what a disk of 4096 has in its partitions would lie outside of them by 512.
#[test]
fn an_mbr_of_large_sectors_is_read_by_them_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let source = path("s");
    empty(&source, 100 * MIB);
    let device = Loop::new(&source, LARGE);
    let script = path("script");
    fs::write(&script, "label: dos\nstart=256,size=20480,type=83\n").unwrap();
    let command = format!("sfdisk -q --no-reread {} < {}", device.text(), script.display());
    run("fdisk", "sh", &["-c", &command]);
    let root = part(&source, (MIB, 80 * MIB), LARGE);
    filled(&root, "e2fsprogs", &["mkfs.ext4", "-q", "-F"], &path("mnt"));
    drop(root);
    let [raw, image] = [path("c.raw"), path("c.img.zst")];
    let command = |args: &[&str], from: &str, to: &Path| {
        agent(&[args, &[from, to.to_str().unwrap(), "--json"]].concat())
    };
    let words = ["MBR counts in sectors of 4096", "losetup --sector-size 4096"];
    let file = source.to_str().unwrap();
    command(&["capture"], file, &image).refused("refused", &words);
    command(&["convert"], file, &image).refused("refused", &words);
    assert!(!image.exists());
    let done = command(&["convert"], device.text(), &image).json();
    assert_eq!(done["raw"].as_array().unwrap().len(), 0, "{done:#}");
    // Free blocks are zero there.
    let ran = command(&["convert"], image.to_str().unwrap(), &raw);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let root = part(&raw, (MIB, 80 * MIB), LARGE);
    run("e2fsprogs", "e2fsck", &["-fn", root.text()]);
    // A single volume does not replace such a disk by mistake.
    let own = path("volume");
    fs::copy(&source, &own).unwrap();
    let flags = ["--partition", "1"];
    try_restore(&image, &own, &flags).refused("refused", &["sectors of 4096", "single volume"]);
}

#[test]
fn single_volumes_and_layouts() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (source, image, target) = (path("s"), path("a.img.zst"), path("t"));
    empty(&source, 64 * MIB);
    let device = Loop::new(&source, SMALL);
    run("gdisk", "sgdisk", &["-Z", "-o", "-n1:1M:+20M", "-t1:ef00", "-n2:0:+40M", device.text()]);
    let found = places(&table(&device));
    put_fat(&part(&source, found[0], SMALL), &["-s", "8"], dir.path());
    let mkfs = ["mke2fs", "-q", "-t", "ext4", "-b", "4096"];
    filled(&part(&source, found[1], SMALL), "e2fsprogs", &mkfs, dir.path());
    capture(device.path(), &image, &[]);
    drop(device);
    let loader = |device: &Loop| {
        run("dosfstools", "fsck.vfat", &["-n", device.text()]);
        let to = path("loader");
        let from = "::/EFI/BOOT/BOOTX64.EFI";
        run("mtools", "mcopy", &["-n", "-i", device.text(), from, to.to_str().unwrap()]);
        assert!(fs::read(to).unwrap() == noise(700_000, 5));
    };

    // The ESP alone onto a whole disk, and into a partition of one.
    noise_file(&target, 20 * MIB, 1);
    let device = Loop::new(&target, LARGE);
    restore(&image, device.path(), &["--partition", "1"]);
    loader(&device);
    let same = restore(&image, device.path(), &["--partition", "1", "--delta"]);
    assert_eq!(same["written_bytes"], 0);
    drop(device);
    disk(&target, 100 * MIB);
    let device = Loop::new(&target, LARGE);
    run("gdisk", "sgdisk", &["-Z", "-o", "-n1:1M:+30M", "-n2:0:+50M", device.text()]);
    let flags = ["--partition", "2", "--into-partition", "2"];
    restore(&image, device.path(), &flags);
    let place = places(&table(&device))[1];
    run("e2fsprogs", "e2fsck", &["-fn", part(&target, place, LARGE).text()]);

    // Both into a new table.
    let layout = path("layout.toml");
    let text =
        "[[partition]]\nimage-partition = 2\n[[partition]]\nimage-partition = 1\ntype = \"esp\"\n";
    fs::write(&layout, text).unwrap();
    let flags = ["--layout", layout.to_str().unwrap()];
    restore(&image, device.path(), &flags);
    let found = places(&table(&device));
    assert_eq!(found, [(MIB, 40 * MIB), (41 * MIB, 20 * MIB)]);
    run("e2fsprogs", "e2fsck", &["-fn", part(&target, found[0], LARGE).text()]);
    loader(&part(&target, found[1], LARGE));
    let same = restore(&image, device.path(), &[&flags[..], &["--delta"]].concat());
    assert_eq!(same["written_bytes"], 0);
}
