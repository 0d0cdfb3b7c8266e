//! Onto smaller disks: what is not used at the end, and swap, give way.

use std::path::Path;

use crate::agent::{capture, restore, try_restore};
use crate::devices::Loop;
use crate::disks::{self, noise_file};
use crate::grow::{layout, same_system, words};
use crate::round_trip::restored;
use crate::tools::run;

const MIB: u64 = 1 << 20;

#[test]
fn the_unpartitioned_end_and_swap_give_way() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = restored(dir.path());
    let target = dir.path().join("t");
    for (len, swap, word) in [
        (disk.len - 512, 16, "left out"),
        (150 * MIB, 8, "partition 3 shrinks from 16.00 MiB to 8.00 MiB"),
        (142 * MIB + 33 * 512, 1, "shrinks"),
    ] {
        noise_file(&target, len, 1);
        let device = Loop::new(&target, &[]);
        let summary = restore(&image, &device.0, &[]);
        assert!(words(&summary["changes"]).contains(word), "{summary:#}");
        assert_eq!(layout(&target), [(1, 40), (41, 100), (141, swap)]);
        same_system(&disk.path, &device, dir.path());
        let again = restore(&image, &device.0, &["--delta"]);
        assert_eq!(again["written_bytes"], 0, "{again:#}");
    }
}

#[test]
fn an_extended_partition_becomes_shorter() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disks::system(dir.path(), "logical");
    let (image, target) = (dir.path().join("a.img.zst"), dir.path().join("t"));
    capture(&disk.path, &image, &[]);
    noise_file(&target, 150 * MIB, 1);
    restore(&image, &target, &[]);
    assert_eq!(layout(&target), [(1, 40), (41, 109), (42, 100), (143, 7)]);
    let verdict = run("fdisk", "sfdisk", &["-V", target.to_str().unwrap()]);
    assert!(verdict.contains("No errors"), "{verdict}");
    let part = dir.path().join("part");
    let root = crate::grow::target_part(&target, 42 * MIB, 100 * MIB, &part);
    run("e2fsprogs", "e2fsck", &["-fn", root]);
}

#[test]
fn a_bare_filesystem_does_not_give_way() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, image, target) =
        (dir.path().join("v"), dir.path().join("a.img.zst"), dir.path().join("t"));
    disks::ext4(&volume, 48 * MIB, dir.path());
    capture(&volume, &image, &[]);
    noise_file(&target, 48 * MIB - 512, 2);
    let words = ["512 bytes are missing"];
    try_restore(&image, Path::new(&target), &[]).refused("refused", &words);
}
