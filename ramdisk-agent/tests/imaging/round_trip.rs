//! What comes back is what was there.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use ramdisk_agent::extents::Extent;
use ramdisk_agent::fs::{FsKind, map_volume};

use crate::agent::{agent, agent_unheard, capture, restore};
use crate::disks::{self, Part, TestDisk, dump, identity, judge, noise_file, system, take};
use crate::tools::run;

fn hash(path: &Path) -> blake3::Hash {
    blake3::Hasher::new().update_reader(File::open(path).unwrap()).unwrap().finalize()
}

/// Unpacks an image with stock zstd.
pub fn unpack(image: &Path, to: &Path) {
    let (image, to) = (image.to_str().unwrap(), to.to_str().unwrap());
    run("zstd", "zstd", &["-d", "-q", "-f", "-o", to, image]);
}

/// What is used of a part, by the agent's own map, which has tests of its own.
pub fn used(disk: &Path, part: Part, folder: &Path) -> (FsKind, Vec<Extent>) {
    let file = folder.join("mapped");
    take(disk, part, &file);
    let map = map_volume(&mut File::open(&file).unwrap(), part.len).unwrap();
    (map.kind, map.used.iter().copied().collect())
}

/// Bytes of one part of one stage, by a summary's account of where the time went.
fn moved(summary: &serde_json::Value, stage: &str, part: &str) -> u64 {
    let named = |list: &serde_json::Value, key: &str, name: &str| {
        list.as_array().unwrap().iter().find(|entry| entry[key] == name).cloned()
    };
    let stage = named(&summary["stages"], "stage", stage).unwrap_or_else(|| panic!("{summary:#}"));
    let part = named(&stage["parts"], "part", part).unwrap_or_else(|| panic!("{stage:#}"));
    assert!(part["busy_ms"].is_u64() && part["wait_ms"].is_u64(), "{part}");
    part["bytes"].as_u64().unwrap()
}

#[test]
fn the_summary_tells_where_the_time_went() {
    let dir = tempfile::tempdir().unwrap();
    let disk = system(dir.path(), "gpt");
    let (image, target) = (dir.path().join("a.img.zst"), dir.path().join("target"));
    let captured = capture(&disk.path, &image, &[]);
    let number = |summary: &serde_json::Value, name: &str| summary[name].as_u64().unwrap();
    assert!(moved(&captured, "capturing", "read_source") >= number(&captured, "data_bytes"));
    assert!(moved(&captured, "capturing", "compress") > 0);
    assert_eq!(moved(&captured, "capturing", "write_store"), number(&captured, "stored_bytes"));
    assert!(moved(&captured, "verifying", "read_store") >= number(&captured, "reread_bytes"));
    fs::File::create(&target).unwrap().set_len(disk.len).unwrap();
    let restored = restore(&image, &target, &[]);
    assert!(moved(&restored, "restoring", "read_store") >= number(&restored, "fetched_bytes"));
    assert!(moved(&restored, "restoring", "decompress") >= number(&captured, "data_bytes"));
    assert!(moved(&restored, "restoring", "write_target") > 0);
    assert!(moved(&restored, "verifying", "read_target") > 0);
}

fn onto_noise(label: &str, extra: u64) {
    let dir = tempfile::tempdir().unwrap();
    let disk = system(dir.path(), label);
    let (image, target) = (dir.path().join("a.img.zst"), dir.path().join("target"));
    let before = hash(&disk.path);
    let captured = capture(&disk.path, &image, &[]);
    assert_eq!(captured["raw"].as_array().unwrap().len(), 0, "{captured:#}");
    assert_eq!(hash(&disk.path), before, "a capture writes nothing to its source");
    assert!(!dir.path().join("a.img.zst.partial").exists());

    noise_file(&target, disk.len + extra, 4);
    let restored = restore(&image, &target, &[]);
    assert_eq!(restored["root"], captured["root"]);
    // Everything that was written is read back: at least the used bytes.
    assert!(restored["readback_bytes"].as_u64() >= captured["data_bytes"].as_u64());

    judge(&disk, &target, dir.path());
    assert_eq!(dump(&target), dump(&disk.path));
    for part in [disk.esp, disk.root, disk.swap] {
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        take(&disk.path, part, &a);
        take(&target, part, &b);
        assert_eq!(identity(&a), identity(&b));
        let (_, extents) = used(&disk.path, part, dir.path());
        let (a, b) = (fs::read(a).unwrap(), fs::read(b).unwrap());
        for extent in extents {
            let range = extent.start as usize..extent.end() as usize;
            assert!(a[range.clone()] == b[range], "used bytes differ at {extent:?} of {part:?}");
        }
    }
    let same = |range: std::ops::Range<u64>| {
        let read = |path: &Path| {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            File::open(path).unwrap().read_exact_at(&mut bytes, range.start).unwrap();
            bytes
        };
        read(&disk.path) == read(&target)
    };
    assert!(same(0..440), "boot code");
    assert!(same(64 << 10..disk.esp.start), "the gap before the first partition");
    if label == "gpt" {
        let verdict = run("gdisk", "sgdisk", &["-v", target.to_str().unwrap()]);
        assert!(verdict.contains("No problems found"), "{verdict}");
    }
}

#[test]
fn a_gpt_disk_onto_one_full_of_noise() {
    onto_noise("gpt", 0);
}

#[test]
fn a_gpt_disk_onto_a_larger_one() {
    onto_noise("gpt", 7 * 1024 * 1024 + 512);
}

#[test]
fn an_mbr_disk_onto_one_full_of_noise() {
    onto_noise("dos", 0);
}

#[test]
fn an_mbr_disk_onto_a_larger_one() {
    onto_noise("dos", 3 * 1024 * 1024);
}

#[test]
fn logical_partitions_onto_a_disk_full_of_noise() {
    onto_noise("logical", 0);
}

#[test]
fn logical_partitions_onto_a_larger_disk() {
    onto_noise("logical", 3 * 1024 * 1024);
}

#[test]
fn stock_zstd_unpacks_the_disk_with_its_free_blocks_zeroed() {
    let dir = tempfile::tempdir().unwrap();
    let disk = system(dir.path(), "gpt");
    let (image, unpacked) = (dir.path().join("a.img.zst"), dir.path().join("unpacked"));
    capture(&disk.path, &image, &[]);
    unpack(&image, &unpacked);
    assert_eq!(fs::metadata(&unpacked).unwrap().len(), disk.len);
    judge(&disk, &unpacked, dir.path());

    // Restored onto zeros, every byte is that of the unpacked image.
    let target = dir.path().join("target");
    File::create(&target).unwrap().set_len(disk.len).unwrap();
    restore(&image, &target, &[]);
    assert_eq!(hash(&target), hash(&unpacked));

    // Outside of what is used there are only zeros.
    let bytes = fs::read(&unpacked).unwrap();
    for part in [disk.esp, disk.root, disk.swap] {
        let (_, extents) = used(&disk.path, part, dir.path());
        let mut at = part.start as usize;
        for extent in extents {
            let start = part.start as usize + extent.start as usize;
            assert!(bytes[at..start].iter().all(|b| *b == 0));
            at = part.start as usize + extent.end() as usize;
        }
    }
}

#[test]
fn what_free_blocks_hold_does_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let disk = system(dir.path(), "gpt");
    let images = [dir.path().join("a.img.zst"), dir.path().join("b.img.zst")];
    capture(&disk.path, &images[0], &[]);
    let file = File::options().write(true).open(&disk.path).unwrap();
    let mut filled = 0;
    for part in [disk.esp, disk.root, disk.swap] {
        let (_, extents) = used(&disk.path, part, dir.path());
        let mut at = 0;
        for extent in extents.into_iter().chain([Extent { start: part.len, len: 0 }]) {
            let len = (extent.start - at) as usize;
            file.write_all_at(&disks::noise(len, at), part.start + at).unwrap();
            filled += len;
            at = extent.end();
        }
    }
    assert!(filled > 100 << 20, "most of the disk is free");
    capture(&disk.path, &images[1], &[]);
    let unpacked = images.map(|image| {
        let to = image.with_extension("raw");
        unpack(&image, &to);
        hash(&to)
    });
    assert_eq!(unpacked[0], unpacked[1]);
}

#[test]
fn bare_filesystems() {
    let dir = tempfile::tempdir().unwrap();
    let volume = dir.path().join("volume");
    for (name, check) in [
        ("ext4", ["e2fsck", "-fn"]),
        ("fat12", ["fsck.vfat", "-n"]),
        ("fat16", ["fsck.vfat", "-n"]),
        ("fat32", ["fsck.vfat", "-n"]),
        ("swap", ["blkid", "-p"]),
    ] {
        match name {
            "ext4" => disks::ext4(&volume, 64 << 20, dir.path()),
            "fat12" => disks::fat(&volume, 4 << 20, "12"),
            "fat16" => disks::fat(&volume, 24 << 20, "16"),
            "fat32" => disks::fat(&volume, 48 << 20, "32"),
            _ => disks::swap(&volume, 8 << 20),
        }
        let (image, target) = (dir.path().join(format!("{name}.img.zst")), dir.path().join("t"));
        let captured = capture(&volume, &image, &[]);
        assert_eq!(captured["raw"].as_array().unwrap().len(), 0, "{name}: {captured:#}");
        noise_file(&target, fs::metadata(&volume).unwrap().len(), 8);
        restore(&image, &target, &[]);
        run(name, check[0], &[check[1], target.to_str().unwrap()]);
        assert_eq!(identity(&volume), identity(&target));
        let deep = agent(&["verify", "--deep", image.to_str().unwrap()]);
        assert_eq!(deep.code, 0, "{}", deep.stderr);
    }
}

#[test]
fn free_space_of_many_gigabytes() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, image, target) =
        (dir.path().join("v"), dir.path().join("a.img.zst"), dir.path().join("t"));
    let len = 40 << 30;
    File::create(&volume).unwrap().set_len(len).unwrap();
    // Few groups with anything in them, so that the stretches between are longer than a hole frame, and longer than 4 GiB.
    let make = ["-q", "-F", "-t", "ext4", "-T", "largefile4", "-J", "size=4", "-G", "512"];
    run("e2fsprogs", "mke2fs", &[&make[..], &[volume.to_str().unwrap()]].concat());
    let captured = capture(&volume, &image, &[]);
    assert!(captured["stored_bytes"].as_u64() < Some(4 << 20), "{captured:#}");
    // What is free was not even read.
    let path = volume.to_str().unwrap();
    let cached = run("util-linux", "fincore", &["-b", "-n", "-o", "RES", path]);
    assert!(cached.trim().parse::<u64>().unwrap() < 256 << 20, "{cached}");
    File::create(&target).unwrap().set_len(len).unwrap();
    restore(&image, &target, &[]);
    run("e2fsprogs", "e2fsck", &["-fn", target.to_str().unwrap()]);
    assert_eq!(identity(&volume), identity(&target));
}

#[test]
fn a_disk_that_nothing_is_known_of_comes_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image, target) =
        (dir.path().join("s"), dir.path().join("a.img.zst"), dir.path().join("t"));
    noise_file(&source, (9 << 20) + 512, 3);
    let captured = capture(&source, &image, &[]);
    assert_eq!(captured["raw"].as_array().unwrap().len(), 1);
    noise_file(&target, (9 << 20) + 512, 5);
    restore(&image, &target, &[]);
    assert_eq!(hash(&source), hash(&target));
}

#[test]
fn what_lies_behind_a_table_without_partitions_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image, target) =
        (dir.path().join("s"), dir.path().join("a.img.zst"), dir.path().join("t"));
    let empty_mbr = |path: &Path| {
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(&[0; 510], 0).unwrap();
        file.write_all_at(&[0x55, 0xAA], 510).unwrap();
    };
    let empty_gpt = |path: &Path| {
        run("gdisk", "sgdisk", &["-o", path.to_str().unwrap()]);
    };
    for (number, make) in [&empty_mbr as &dyn Fn(&Path), &empty_gpt].into_iter().enumerate() {
        let image = image.with_extension(number.to_string());
        noise_file(&source, 80 << 20, 1);
        make(&source);
        let captured = capture(&source, &image, &[]);
        assert_eq!(captured["raw"].as_array().unwrap().len(), 1, "{captured:#}");
        noise_file(&target, 80 << 20, 2);
        restore(&image, &target, &[]);
        assert_eq!(hash(&source), hash(&target));
    }
}

#[test]
fn nothing_of_the_old_system_is_recognised_in_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let disk = system(dir.path(), "gpt");
    let (image, target) = (dir.path().join("a.img.zst"), dir.path().join("t"));
    capture(&disk.path, &image, &[]);
    noise_file(&target, disk.len, 6);
    let file = File::options().read(true).write(true).open(&target).unwrap();
    // An ISO 9660 header where the new swap area has nothing.
    let mut header = [0; 2048];
    header[..7].copy_from_slice(b"\x01CD001\x01");
    file.write_all_at(&header, disk.swap.start + (32 << 10)).unwrap();
    restore(&image, &target, &[]);
    let part = dir.path().join("part");
    take(&target, disk.swap, &part);
    // It fails, with "ambivalent result", if it finds both.
    let found = run("util-linux", "blkid", &["-p", part.to_str().unwrap()]);
    assert!(found.contains("swap") && !found.contains("iso9660"), "{found}");
    // RAID members are known by their end.
    let mut end = vec![1; 64 << 10];
    for part in [disk.esp, disk.swap] {
        file.read_exact_at(&mut end, part.start + part.len - (64 << 10)).unwrap();
        assert!(end.iter().all(|b| *b == 0), "{part:?}");
    }
}

#[test]
fn scrubbing_leaves_nothing_of_the_previous_owner() {
    let dir = tempfile::tempdir().unwrap();
    let disk = system(dir.path(), "gpt");
    let (image, target, unpacked) =
        (dir.path().join("a.img.zst"), dir.path().join("t"), dir.path().join("u"));
    capture(&disk.path, &image, &[]);
    unpack(&image, &unpacked);
    noise_file(&target, disk.len, 6);
    restore(&image, &target, &["--scrub-free"]);
    assert_eq!(hash(&target), hash(&unpacked));
}

/// Restores a disk once and gives its parts: for tests that look at something else.
pub fn restored(dir: &Path) -> (TestDisk, std::path::PathBuf) {
    let disk = system(dir, "gpt");
    let image = dir.join("a.img.zst");
    capture(&disk.path, &image, &[]);
    (disk, image)
}

#[test]
fn an_ext4_that_was_not_unmounted_comes_back_with_its_journal() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, image, target) =
        (dir.path().join("v"), dir.path().join("a.img.zst"), dir.path().join("t"));
    disks::ext4(&volume, 48 << 20, dir.path());
    // A transaction that rewrites a file's first block.
    let (data, text) = (dir.path().join("data"), volume.to_str().unwrap());
    let block = run("e2fsprogs", "debugfs", &["-R", "bmap /etc/text 0", text]);
    // So small a filesystem has blocks of 1 KiB.
    fs::write(&data, disks::noise(1024, 8)).unwrap();
    let script = dir.path().join("script");
    let write = format!("journal_write -b {} {}", block.trim(), data.display());
    fs::write(&script, format!("journal_open -c\n{write}\njournal_close\n")).unwrap();
    run("e2fsprogs", "debugfs", &["-w", "-f", script.to_str().unwrap(), text]);

    let captured = capture(&volume, &image, &[]);
    assert_eq!(captured["raw"].as_array().unwrap().len(), 0, "{captured:#}");
    let manifest = agent(&["inspect", "--json", image.to_str().unwrap()]).stdout;
    assert!(manifest.contains("which the first mount replays"), "{manifest}");
    noise_file(&target, 48 << 20, 4);
    restore(&image, &target, &[]);
    let path = target.to_str().unwrap();
    let replayed = crate::tools::status("e2fsprogs", "e2fsck", &["-fy", path]);
    assert!(matches!(replayed.status.code(), Some(0 | 1)), "{replayed:?}");
    run("e2fsprogs", "e2fsck", &["-fn", path]);
    let out = dir.path().join("out");
    run("e2fsprogs", "debugfs", &["-R", &format!("dump /etc/text {}", out.display()), path]);
    assert!(fs::read(out).unwrap()[..1024] == fs::read(data).unwrap());
}

#[test]
fn a_full_standard_output_does_not_decide() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (disk, image, target) = (at("d"), at("a.img.zst"), at("t"));
    noise_file(Path::new(&disk), 8 << 20, 1);
    noise_file(Path::new(&target), 8 << 20, 2);
    // Nothing was begun: the plan cannot be shown.
    for words in [&["capture", &disk, &image][..], &["restore", "--yes", &disk, &target]] {
        let before = fs::read(&target).unwrap();
        agent_unheard(words).refused("internal", &["showing the plan", "nothing was begun"]);
        assert!(!Path::new(&image).exists() && fs::read(&target).unwrap() == before);
    }
    // What is done is done, and what it came to is told elsewhere.
    let (root, copy, raw) = ("\"root\":", at("b.img.zst"), at("r.raw"));
    for (words, told) in [
        (&["--json", "capture", &disk, &image][..], root),
        (&["--json", "restore", "--yes", &image, &target], root),
        (&["verify", &image], "all hashes right"),
        (&["copy", &image, &copy], "copied"),
        (&["convert", &image, &raw], "re-read"),
        (&["rm", &copy], "removed"),
    ] {
        let ran = agent_unheard(words);
        assert_eq!(ran.code, 0, "{words:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("note: writing to standard output"), "{}", ran.stderr);
        assert!(ran.stderr.contains(told), "{words:?}: {}", ran.stderr);
    }
    assert!(fs::read(&target).unwrap() == fs::read(&disk).unwrap());
    assert!(!Path::new(&copy).exists() && Path::new(&raw).exists());
    // Who only asks gets no answer.
    agent_unheard(&["inspect", &image]).refused("internal", &["standard output"]);
}
