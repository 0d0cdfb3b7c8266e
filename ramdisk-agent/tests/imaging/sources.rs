//! Disks with bad sectors as sources: a capture ends and names the sector.

use std::fs;
use std::path::Path;

use crate::agent::{capture, try_capture};
use crate::disks::{noise_file, system};
use crate::faulty::{Fault, FaultyDisk};
use crate::round_trip::used;

/// Captures a disk with this bad sector; it fails, names the sector and what is there, and leaves no image.
fn fails_at(backing: &Path, folder: &Path, sector: u64, place: &str) {
    let disk = FaultyDisk::source(backing, folder, &[Fault::unreadable(sector)], &[]);
    let image = folder.join("a.img.zst");
    let lba = format!("LBA {sector} (byte {}) of {}", sector * 512, disk.path().display());
    try_capture(disk.path(), &image, &[]).refused("disk", &[&lba, place, "check the drive"]);
    let left = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().starts_with("a.img.zst")));
}

#[test]
fn a_bad_sector_is_named_with_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let disk = system(dir.path(), "gpt");
    let root = disk.root.start / 512;
    let (_, extents) = used(&disk.path, disk.root, dir.path());
    let longest = extents.iter().max_by_key(|e| e.len).unwrap();
    let data = root + (longest.start + longest.len / 2) / 512 + 3;
    for (sector, place) in [
        (0, "the partition table"),
        (1, "the partition table"),
        (200, "the space outside of partitions"),
        (disk.esp.start / 512, "mapping partition 1"),
        (root + 2, "mapping partition 2"),
        (data, "partition 2 (ext4 'root')"),
        (disk.len / 512 - 1, "the partition table"),
    ] {
        fails_at(&disk.path, dir.path(), sector, place);
    }
}

#[test]
fn the_first_of_several_bad_sectors_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let backing = dir.path().join("s");
    noise_file(&backing, (9 << 20) + 4096, 1);
    let faults = [12_345, 12_346, 12_399, 17_000].map(Fault::unreadable);
    let image = dir.path().join("a.img.zst");
    let disk = FaultyDisk::source(&backing, dir.path(), &faults, &[]);
    try_capture(disk.path(), &image, &[]).refused("disk", &["LBA 12345 ", "the disk (unknown)"]);
    drop(disk);
    let disk = FaultyDisk::source(&backing, dir.path(), &faults, &["--sector-size", "4096"]);
    let lba = format!("LBA {} ", 12_345 / 8);
    try_capture(disk.path(), &image, &[]).refused("disk", &[&lba]);
}

#[test]
fn a_sector_that_can_be_read_the_second_time_is_not_bad() {
    let dir = tempfile::tempdir().unwrap();
    let (backing, image) = (dir.path().join("s"), dir.path().join("a.img.zst"));
    noise_file(&backing, 9 << 20, 1);
    let disk = FaultyDisk::source(&backing, dir.path(), &[Fault::unreadable(12_345).once()], &[]);
    capture(disk.path(), &image, &[]);
}
