//! Disks as sources: those with bad sectors, where a capture ends and names the sector, and what is in the page cache.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use ramdisk_agent::disk::Disk;

use crate::agent::{agent, capture, try_capture};
use crate::devices::Loop;
use crate::disks::{noise, noise_file, system};
use crate::faulty::{Fault, FaultyDisk};
use crate::round_trip::{unpack, used};
use crate::tools::run;

const MIB: u64 = 1 << 20;

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

/// An ext4 with a file of 16 KiB removed between two others: the byte where its first block was.
fn with_a_short_gap(folder: &Path, path: &Path) -> u64 {
    let (tree, text) = (folder.join("tree"), path.to_str().unwrap());
    fs::create_dir(&tree).unwrap();
    for n in 0..9 {
        fs::write(tree.join(format!("f{n}")), noise(16 << 10, n)).unwrap();
    }
    File::create(path).unwrap().set_len(64 * MIB).unwrap();
    let args = ["-q", "-F", "-t", "ext4", "-b", "4096", "-d", tree.to_str().unwrap(), text];
    run("e2fsprogs", "mke2fs", &args);
    let blocks = run("e2fsprogs", "debugfs", &["-R", "blocks /f4", text]);
    run("e2fsprogs", "debugfs", &["-w", "-R", "rm /f4", text]);
    blocks.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 4096
}

/// A short gap is read with what is around it.
#[test]
fn a_bad_sector_in_free_space_between_files_does_not_count() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (backing, image, unpacked) =
        (dir.path().join("s"), dir.path().join("a.img.zst"), dir.path().join("u"));
    let gap = with_a_short_gap(dir.path(), &backing);
    let mut whole = fs::read(&backing).unwrap();
    let disk = FaultyDisk::source(&backing, dir.path(), &[Fault::unreadable(gap / 512 + 3)], &[]);
    capture(disk.path(), &image, &[]);
    unpack(&image, &unpacked);
    let taken = fs::read(&unpacked).unwrap();
    let at = usize::try_from(gap).unwrap();
    // What is free is not taken, and everything around it is.
    assert!(whole[at..at + (16 << 10)].iter().any(|byte| *byte != 0));
    whole[at..at + (16 << 10)].fill(0);
    let around = at - (32 << 10)..at + (48 << 10);
    assert!(taken[around.clone()] == whole[around]);
    run("e2fsprogs", "e2fsck", &["-fn", unpacked.to_str().unwrap()]);
}

#[test]
fn a_device_is_read_past_its_page_cache() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (backing, unpacked) = (dir.path().join("s"), dir.path().join("u"));
    let len = 32 * MIB;
    noise_file(&backing, len, 1);
    let device = Loop::new(&backing, &["--direct-io=off"]);
    // Who has it open keeps its cache.
    let disk = Disk::open_source(device.path()).unwrap();
    let taken = |name: &str| {
        let image = dir.path().join(format!("{name}.img.zst"));
        capture(device.path(), &image, &[]);
        unpack(&image, &unpacked);
        fs::read(&unpacked).unwrap()
    };
    assert!(taken("first") == fs::read(&backing).unwrap());
    let cached = disk.cached_bytes(0, len);
    assert!(cached < len / 4, "{cached} bytes went through the cache");
    // What went another way than through its cache: there it is old, and nothing else would tell.
    fs::read(device.path()).unwrap();
    assert!(disk.cached_bytes(0, len) > len / 2);
    let below = fs::OpenOptions::new().write(true).open(&backing).unwrap();
    for at in (0..len).step_by(5 << 20) {
        below.write_all_at(&noise(70_000, at), at + 1234).unwrap();
    }
    assert!(taken("beneath") == fs::read(&backing).unwrap());
    // The file beneath, in memory and not.
    let file = disk.file_beneath().unwrap();
    assert!(file.has_in_memory(len, 0, len), "it was just read");
    run(
        "coreutils",
        "dd",
        &[
            &format!("of={}", backing.display()),
            "oflag=nocache",
            "conv=notrunc,fdatasync",
            "count=0",
        ],
    );
    assert!(!file.has_in_memory(len / 2, 0, len));
    assert!(taken("cold") == fs::read(&backing).unwrap());
    // What is in the cache alone, as yet, is what is on the disk.
    fs::read(device.path()).unwrap();
    let written = fs::OpenOptions::new().write(true).open(device.path()).unwrap();
    for at in (3 * MIB..len).step_by(5 << 20) {
        written.write_all_at(&noise(70_000, at), at + 1234).unwrap();
    }
    let before = fs::read(&backing).unwrap();
    let last = taken("above");
    written.sync_all().unwrap();
    assert!(last != before && last == fs::read(&backing).unwrap());
}

#[test]
fn a_loop_device_in_the_middle_of_a_file_is_read_there() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (backing, unpacked) = (dir.path().join("s"), dir.path().join("u"));
    noise_file(&backing, 16 * MIB, 1);
    let whole = fs::read(&backing).unwrap();
    // On a boundary of blocks, of sectors, and the end given.
    for (n, (start, len)) in [(4096, 9 * MIB), (1536, 5 * MIB + 512)].into_iter().enumerate() {
        let flags = [format!("--offset={start}"), format!("--sizelimit={len}")];
        let device = Loop::new(&backing, &[&flags[0], &flags[1], "--read-only"]);
        assert!(Disk::open_source(device.path()).unwrap().file_beneath().is_some());
        let image = dir.path().join(format!("{n}.img.zst"));
        capture(device.path(), &image, &[]);
        unpack(&image, &unpacked);
        let (start, len) = (usize::try_from(start).unwrap(), usize::try_from(len).unwrap());
        assert!(fs::read(&unpacked).unwrap() == whole[start..start + len], "{start}");
    }
    // A file of another name, and none any more.
    let device = Loop::new(&backing, &[]);
    fs::rename(&backing, dir.path().join("moved")).unwrap();
    fs::write(&backing, &whole[1..]).unwrap();
    let image = dir.path().join("moved.img.zst");
    capture(device.path(), &image, &[]);
    unpack(&image, &unpacked);
    assert!(fs::read(&unpacked).unwrap() == whole);
}

/// Of a disk of two volumes, of which the first is a mirror with a partition table, that table knows nothing of the second one, and what
/// is in no partition is not kept.
#[test]
fn a_member_of_a_firmware_raid_is_kept_whole_unless_it_is_a_mirror() {
    let two_volumes = include_bytes!("../../src/probe/firmware/samples/intel-two-volumes.bin");
    let mirror = include_bytes!("../../src/probe/firmware/samples/intel-mirror.bin");
    let dir = tempfile::tempdir().unwrap();
    let [disk, image, back] = ["disk", "a.img.zst", "back"].map(|name| dir.path().join(name));
    let len = 128 * MIB;
    let file = File::create(&disk).unwrap();
    file.set_len(len).unwrap();
    run("e2fsprogs", "mkfs.ext4", &["-q", "-F", disk.to_str().unwrap(), "8M"]);
    let filesystem = fs::read(&disk).unwrap();
    file.write_all_at(&vec![0; 8 << 20], 0).unwrap();
    file.write_all_at(&filesystem[..8 << 20], MIB).unwrap();
    file.write_all_at(&[0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 64, 0, 0], 446).unwrap();
    file.write_all_at(&[0x55, 0xaa], 510).unwrap();
    file.write_all_at(&noise(1 << 20, 7), 60 * MIB).unwrap();
    let end = |metadata: &[u8]| file.write_all_at(metadata, len - metadata.len() as u64).unwrap();
    let plan = || agent(&["plan", "capture", "--json", disk.to_str().unwrap()]).json();

    end(mirror);
    let shown = plan();
    assert_eq!(shown["volumes"][0]["filesystem"], "ext4");
    assert!(shown["volumes"][0]["raw_reason"].is_null());
    let warning = shown["warnings"][0].as_str().unwrap();
    assert!(warning.contains("Intel firmware RAID") && warning.contains("wipefs"), "{warning}");

    end(two_volumes);
    let reason = plan()["volumes"][0]["raw_reason"].clone();
    assert_eq!(reason, "the disk is a member of an Intel firmware RAID");
    capture(&disk, &image, &[]);
    unpack(&image, &back);
    assert!(fs::read(&disk).unwrap() == fs::read(&back).unwrap(), "something was left out");
}
