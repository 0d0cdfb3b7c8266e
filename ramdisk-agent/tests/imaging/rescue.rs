//! `capture --rescue`: everything that can be read is saved, what cannot is mapped exactly, and nobody restores it unawares.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::agent::{agent, capture, restore, try_capture, try_restore};
use crate::disks::{dump, judge, noise_file, system};
use crate::faulty::{Fault, FaultyDisk};
use crate::round_trip::{unpack, used};
use crate::tools::run;

const LEN: u64 = 9 << 20;

/// The bad areas that an image's manifest lists, in sectors of 512 bytes.
fn bad_sectors(image: &Path) -> Vec<u64> {
    let manifest = &agent(&["inspect", "--json", image.to_str().unwrap()]).json()["manifest"];
    let number = |area: &Value, name: &str| area[name].as_u64().unwrap() / 512;
    let areas = manifest["bad_sectors"].as_array().cloned().unwrap_or_default();
    areas
        .iter()
        .flat_map(|area| {
            let start = number(area, "start_bytes");
            start..start + number(area, "len_bytes")
        })
        .collect()
}

/// A disk with zeros in place of these sectors.
fn without(backing: &Path, bad: &[u64]) -> Vec<u8> {
    let mut bytes = fs::read(backing).unwrap();
    bad.iter().for_each(|sector| bytes[*sector as usize * 512..][..512].fill(0));
    bytes
}

#[test]
fn the_map_of_bad_sectors_is_exact_and_everything_else_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    let (backing, unpacked) = (dir.path().join("s"), dir.path().join("u"));
    noise_file(&backing, LEN, 1);
    let sectors = LEN / 512;
    let patterns: [(&str, Vec<u64>); 11] = [
        ("one", vec![7777]),
        ("the first", vec![0]),
        ("the last", vec![sectors - 1]),
        ("neighbours", (1000..1003).collect()),
        ("a whole block", (128..256).collect()),
        ("across blocks", (500..700).collect()),
        ("across spans", (8192 - 20..8192 + 20).collect()),
        ("every 61st", (5..sectors).step_by(61).collect()),
        ("every other", (3000..3200).step_by(2).collect()),
        ("edges of blocks", (0..8).flat_map(|n| [n * 128, n * 128 + 127]).collect()),
        ("a span", (8192..16_384).step_by(64).chain(16_300..16_384).collect()),
    ];
    assert!(patterns.iter().map(|(_, bad)| bad.len()).sum::<usize>() >= 1000);
    for (name, mut bad) in patterns {
        let faults: Vec<Fault> = bad.iter().map(|sector| Fault::unreadable(*sector)).collect();
        let disk = FaultyDisk::source(&backing, dir.path(), &faults, &[]);
        let image = dir.path().join(format!("{name}.img.zst"));
        let summary = capture(disk.path(), &image, &["--rescue"]);
        bad.sort_unstable();
        bad.dedup();
        assert_eq!(bad_sectors(&image), bad, "{name}");
        assert_eq!(summary["bad_bytes"], bad.len() * 512, "{name}");
        unpack(&image, &unpacked);
        assert!(fs::read(&unpacked).unwrap() == without(&backing, &bad), "{name}");
    }
}

#[test]
fn sectors_of_4096_bytes_are_bad_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (backing, image) = (dir.path().join("s"), dir.path().join("a.img.zst"));
    noise_file(&backing, LEN, 1);
    let faults = [Fault::unreadable(803)];
    let disk = FaultyDisk::source(&backing, dir.path(), &faults, &["--sector-size", "4096"]);
    let summary = capture(disk.path(), &image, &["--rescue"]);
    assert_eq!(bad_sectors(&image), (800..808).collect::<Vec<_>>());
    let lines = summary["damaged"].as_array().unwrap();
    assert_eq!(lines, &["the disk (unknown): 1 sector could not be read, LBA 100"]);
}

#[test]
fn what_can_be_read_at_last_is_not_bad() {
    let dir = tempfile::tempdir().unwrap();
    let (backing, image) = (dir.path().join("s"), dir.path().join("a.img.zst"));
    noise_file(&backing, LEN, 1);
    // As often as it takes to get through the cache, the block and the trimming.
    let faults = vec![Fault::unreadable(5000).once(); 3];
    let disk = FaultyDisk::source(&backing, dir.path(), &faults, &[]);
    let summary = capture(disk.path(), &image, &["--rescue"]);
    assert_eq!(summary["bad_bytes"], 0);
    assert!(summary["damaged"].as_array().unwrap().is_empty());
    let target = dir.path().join("t");
    noise_file(&target, LEN, 2);
    restore(&image, &target, &[]);
    assert!(fs::read(&target).unwrap() == fs::read(&backing).unwrap());
}

#[test]
fn an_image_that_lacks_sectors_says_so_everywhere_and_is_not_restored_unawares() {
    let dir = tempfile::tempdir().unwrap();
    let disk = system(dir.path(), "gpt");
    let (_, extents) = used(&disk.path, disk.root, dir.path());
    let longest = extents.iter().max_by_key(|e| e.len).unwrap();
    let sector = (disk.root.start + longest.start + longest.len / 2) / 512;
    let (image, target) = (dir.path().join("a.img.zst"), dir.path().join("t"));
    let faulty = FaultyDisk::source(&disk.path, dir.path(), &[Fault::unreadable(sector)], &[]);
    let words = ["capture", "--rescue", faulty.path().to_str().unwrap(), image.to_str().unwrap()];
    let line = format!("partition 2 (ext4 'root'): 1 sector could not be read, LBA {sector}");
    let ran = agent(&words);
    assert!(ran.stdout.contains(&format!("DAMAGED    {line}")), "{}", ran.stdout);
    drop(faulty);
    let inspected = agent(&["inspect", image.to_str().unwrap()]).stdout;
    assert!(inspected.contains(&line), "{inspected}");
    let listed = agent(&["ls", dir.path().to_str().unwrap()]).stdout;
    assert!(listed.contains("DAMAGED"), "{listed}");

    // A raw disk cannot say it, another image of ours can.
    for (name, is_raw) in [("b.raw", true), ("b.gz", true), ("b.img.zst", false)] {
        let made = dir.path().join(name);
        let mut words = vec!["convert", image.to_str().unwrap(), made.to_str().unwrap()];
        if is_raw {
            agent(&words).refused("refused", &["--accept-bad-sectors", &line]);
            assert!(!made.exists());
            words.push("--accept-bad-sectors");
        }
        let ran = agent(&words);
        assert!(ran.stdout.contains(&format!("DAMAGED    {line}")), "{}", ran.stdout);
    }

    noise_file(&target, disk.len, 3);
    let before = blake3::hash(&fs::read(&target).unwrap());
    let words = ["--accept-bad-sectors", &line, "nothing was written"];
    try_restore(&image, &target, &[]).refused("refused", &words);
    assert_eq!(blake3::hash(&fs::read(&target).unwrap()), before);
    let plan = ["plan", "restore", "--accept-bad-sectors"].map(String::from).to_vec();
    let paths = [&image, &target].map(|path| path.to_str().unwrap().to_owned());
    let planned = agent(&[plan, paths.to_vec()].concat()).stdout;
    assert!(planned.contains(&format!("DAMAGED    {line}")), "{planned}");
    restore(&image, &target, &["--accept-bad-sectors"]);
    judge(&disk, &target, dir.path());
    let at = sector as usize * 512;
    assert!(fs::read(&target).unwrap()[at..at + 512].iter().all(|b| *b == 0));
}

#[test]
fn a_bad_copy_of_a_gpt_is_replaced_by_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let disk = system(dir.path(), "gpt");
    for sector in [1, 2, disk.len / 512 - 1] {
        let (image, target) = (dir.path().join(format!("{sector}.img.zst")), dir.path().join("t"));
        let faulty = FaultyDisk::source(&disk.path, dir.path(), &[Fault::unreadable(sector)], &[]);
        let summary = capture(faulty.path(), &image, &["--rescue"]);
        assert_eq!(summary["raw"].as_array().unwrap().len(), 0, "{summary:#}");
        assert_eq!(bad_sectors(&image), [sector]);
        noise_file(&target, disk.len, 3);
        restore(&image, &target, &["--accept-bad-sectors"]);
        judge(&disk, &target, dir.path());
        assert_eq!(dump(&target), dump(&disk.path));
        let verdict = run("gdisk", "sgdisk", &["-v", target.to_str().unwrap()]);
        assert!(verdict.contains("No problems found"), "{verdict}");
    }
}

#[test]
fn a_disk_without_a_readable_gpt_is_kept_whole() {
    let dir = tempfile::tempdir().unwrap();
    let disk = system(dir.path(), "gpt");
    let (image, unpacked) = (dir.path().join("a.img.zst"), dir.path().join("u"));
    let target = dir.path().join("t");
    let bad = [1, disk.len / 512 - 1];
    let faulty = FaultyDisk::source(&disk.path, dir.path(), &bad.map(Fault::unreadable), &[]);
    let path = faulty.path().to_str().unwrap();
    try_capture(faulty.path(), &image, &[])
        .refused("disk", &["reading the partition table", "LBA 1 ", "--rescue"]);
    let reason = "sectors of the partition table cannot be read";
    let planned = agent(&["plan", "capture", "--rescue", path]).stdout;
    assert!(planned.contains(reason), "{planned}");
    let summary = capture(faulty.path(), &image, &["--rescue"]);
    let raw = summary["raw"][0].as_str().unwrap();
    assert!(raw.contains("the disk: ") && raw.contains(reason), "{raw}");
    assert!(raw.contains("both copies of the GPT are damaged"), "{raw}");
    drop(faulty);
    let inspected = agent(&["inspect", image.to_str().unwrap()]).stdout;
    assert!(inspected.contains(reason), "{inspected}");
    assert_eq!(bad_sectors(&image), bad);
    let expected = without(&disk.path, &bad);
    unpack(&image, &unpacked);
    assert!(fs::read(&unpacked).unwrap() == expected);

    // It is restored as it is, for somebody to mend.
    noise_file(&target, disk.len, 3);
    try_restore(&image, &target, &[]).refused("refused", &["--accept-bad-sectors"]);
    let flags = ["--accept-bad-sectors"];
    let words = ["plan", "restore", flags[0], image.to_str().unwrap(), target.to_str().unwrap()];
    let planned = agent(&words).stdout;
    assert!(planned.contains("its table is made anew"), "{planned}");
    restore(&image, &target, &flags);
    assert!(fs::read(&target).unwrap() == expected);
    let (from, to) = (fs::read(&disk.path).unwrap(), fs::File::options().write(true).open(&target));
    let to = to.unwrap();
    for sector in bad {
        let at = sector as usize * 512;
        to.write_all_at(&from[at..at + 512], sector * 512).unwrap();
    }
    judge(&disk, &target, dir.path());

    // A table that makes no sense although all of it can be read is no case for it.
    for sector in bad {
        let at = sector * 512;
        fs::File::options()
            .write(true)
            .open(&disk.path)
            .unwrap()
            .write_all_at(&[0; 512], at)
            .unwrap();
    }
    try_capture(&disk.path, &dir.path().join("b.img.zst"), &["--rescue"])
        .refused("refused", &["both copies of the GPT are damaged"]);
}

#[test]
fn a_disk_without_a_readable_first_sector_is_kept_whole() {
    let dir = tempfile::tempdir().unwrap();
    for label in ["gpt", "dos"] {
        let disk = system(dir.path(), label);
        let (image, unpacked) = (dir.path().join(format!("{label}.img.zst")), dir.path().join("u"));
        let faulty = FaultyDisk::source(&disk.path, dir.path(), &[Fault::unreadable(0)], &[]);
        let summary = capture(faulty.path(), &image, &["--rescue"]);
        assert!(!summary["raw"].as_array().unwrap().is_empty(), "{summary:#}");
        assert_eq!(bad_sectors(&image), [0]);
        unpack(&image, &unpacked);
        assert!(fs::read(&unpacked).unwrap() == without(&disk.path, &[0]), "{label}");
    }
}

#[test]
fn a_filesystem_whose_metadata_cannot_be_read_is_kept_whole() {
    let dir = tempfile::tempdir().unwrap();
    let disk = system(dir.path(), "gpt");
    let (image, unpacked) = (dir.path().join("a.img.zst"), dir.path().join("u"));
    // The superblock, and somewhere in the block bitmaps and inode tables behind it.
    let dumped = dir.path().join("root");
    crate::disks::take(&disk.path, disk.root, &dumped);
    let groups = run("e2fsprogs", "dumpe2fs", &[dumped.to_str().unwrap()]);
    let bitmap = groups.lines().find(|l| l.contains("Block bitmap at")).unwrap();
    let block: u64 = bitmap.split_whitespace().nth(3).unwrap().parse().unwrap();
    let size = groups.lines().find(|l| l.starts_with("Block size:")).unwrap();
    let block_bytes: u64 = size.split_whitespace().last().unwrap().parse().unwrap();
    let bad = (disk.root.start + block * block_bytes) / 512;
    let faulty = FaultyDisk::source(&disk.path, dir.path(), &[Fault::unreadable(bad)], &[]);
    try_capture(faulty.path(), &image, &[])
        .refused("disk", &["mapping partition 2", &format!("LBA {bad} "), "--rescue"]);
    let summary = capture(faulty.path(), &image, &["--rescue"]);
    let raw = summary["raw"][0].as_str().unwrap();
    assert!(raw.contains("partition 2") && raw.contains(&format!("LBA {bad} ")), "{raw}");
    let inspected = agent(&["inspect", image.to_str().unwrap()]).stdout;
    assert!(inspected.contains("ext4") && inspected.contains("root"), "{inspected}");
    assert_eq!(bad_sectors(&image), [bad]);
    unpack(&image, &unpacked);
    let (is, was) = (fs::read(&unpacked).unwrap(), without(&disk.path, &[bad]));
    let root = disk.root.start as usize..(disk.root.start + disk.root.len) as usize;
    assert!(is[root.clone()] == was[root]);
}

#[test]
fn a_disk_that_has_gone_is_not_taken_for_a_bad_one() {
    let dir = tempfile::tempdir().unwrap();
    let (backing, image) = (dir.path().join("s"), dir.path().join("a.img.zst"));
    noise_file(&backing, LEN, 1);
    let disk = FaultyDisk::source(&backing, dir.path(), &[], &[]);
    disk.signal(Signal::SIGKILL);
    for (flags, word) in [(&[][..], "LBA 0 "), (&["--rescue"], "check its power")] {
        try_capture(disk.path(), &image, flags).refused("disk", &[word]);
        assert!(!image.exists());
    }
}
