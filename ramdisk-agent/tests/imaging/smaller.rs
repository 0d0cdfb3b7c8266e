//! Onto smaller disks: what is not used at the end, and swap, give way. Onto those of the same size everything fits.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::agent::{agent, capture, restore, try_restore};
use crate::devices::Loop;
use crate::disks::{self, noise, noise_file};
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

#[test]
fn partitions_that_leave_no_room_for_a_backup_gpt() {
    let dir = tempfile::tempdir().unwrap();
    let [source, image, target] = ["s", "a.img.zst", "t"].map(|name| dir.path().join(name));
    let sectors = |count: u64| count * 512;
    let file = File::create_new(&source).unwrap();
    file.set_len(16 * MIB).unwrap();
    let table = "label: gpt\nstart=2048, size=4096\nstart=8192, size=8192\n";
    let script = dir.path().join("script");
    fs::write(&script, table).unwrap();
    let command = format!("sfdisk -q --no-reread {} < {}", source.display(), script.display());
    run("fdisk", "sh", &["-c", &command]);
    for (start, len) in [(2048, 4096), (8192, 8192)] {
        let len = usize::try_from(sectors(len)).unwrap();
        file.write_all_at(&noise(len, start), sectors(start)).unwrap();
    }
    // Six sectors behind the last partition, and no backup.
    let len = sectors(16384 + 6);
    file.set_len(len).unwrap();
    capture(&source, &image, &[]);
    let planned =
        agent(&["plan", "restore", image.to_str().unwrap(), source.to_str().unwrap()]).stdout;
    // In one sentence, and none that says something else.
    assert_eq!(planned.matches("backup GPT").count(), 1, "{planned}");
    assert!(
        planned.contains("and there is no room for another before the disk's end"),
        "{planned}"
    );

    let captured = fs::read(&source).unwrap();
    for (flags, more, word) in [
        (&[][..], 0, None),
        (&["--grow", "last"], 0, Some("no room to grow into")),
        (&[], 10, Some("the table stays as it was captured")),
        (&["--grow", "1"], 26, Some("the table stays as it was captured")),
    ] {
        noise_file(&target, len + sectors(more), 1);
        let summary = restore(&image, &target, flags);
        let changes = words(&summary["changes"]);
        assert_eq!(changes.is_empty(), word.is_none(), "{changes}");
        assert!(word.is_none_or(|word| changes.contains(word)), "{changes}");
        let mut restored = fs::read(&target).unwrap();
        restored.truncate(captured.len());
        // The protective MBR says how large its disk is.
        restored[..512].copy_from_slice(&captured[..512]);
        assert!(restored == captured, "{flags:?}, {more} sectors more");
        let again = restore(&image, &target, &[flags, &["--delta"]].concat());
        assert_eq!(again["written_bytes"], 0, "{again:#}");
    }
    noise_file(&target, len + sectors(27), 1);
    restore(&image, &target, &[]);
    let verdict = run("gdisk", "sgdisk", &["-v", target.to_str().unwrap()]);
    assert!(verdict.contains("No problems found"), "{verdict}");
    noise_file(&target, len - 512, 1);
    try_restore(&image, &target, &[]).refused("refused", &["bytes are missing"]);
}

#[test]
fn an_empty_table_onto_a_disk_that_is_smaller() {
    let dir = tempfile::tempdir().unwrap();
    let [source, image, target] = ["s", "a.img.zst", "t"].map(|name| dir.path().join(name));
    File::create_new(&source).unwrap().set_len(8 * MIB).unwrap();
    run("gdisk", "sgdisk", &["-o", source.to_str().unwrap()]);
    capture(&source, &image, &[]);
    for len in [8 * MIB - 512, MIB / 2] {
        noise_file(&target, len, 1);
        let summary = restore(&image, &target, &[]);
        assert!(words(&summary["changes"]).contains("left out"), "{summary:#}");
        let verdict = run("gdisk", "sgdisk", &["-v", target.to_str().unwrap()]);
        assert!(verdict.contains("No problems found"), "{verdict}");
        let again = restore(&image, &target, &["--delta"]);
        assert_eq!(again["written_bytes"], 0, "{again:#}");
    }
    noise_file(&target, 40 * 512, 1);
    try_restore(&image, &target, &[]).refused("refused", &["do not fit a disk of 20480 bytes"]);
}

#[test]
fn an_extended_partition_with_nothing_in_it_is_not_left_out_silently() {
    let dir = tempfile::tempdir().unwrap();
    let [source, image, target] = ["s", "a.img.zst", "t"].map(|name| dir.path().join(name));
    let file = File::create_new(&source).unwrap();
    file.set_len(16 * MIB).unwrap();
    let script = dir.path().join("script");
    fs::write(
        &script,
        "label: dos\nstart=2048, size=4096, type=83\nstart=8192, size=8192, type=5\n",
    )
    .unwrap();
    let command = format!("sfdisk -q --no-reread {} < {}", source.display(), script.display());
    run("fdisk", "sh", &["-c", &command]);
    file.write_all_at(&noise(2 << 20, 4), MIB).unwrap();
    file.write_all_at(&[0x55, 0xAA], 8192 * 512 + 510).unwrap();
    capture(&source, &image, &[]);
    let listed = |disk: &Path| run("fdisk", "sfdisk", &["-d", disk.to_str().unwrap()]);
    for (len, is_kept) in [(16 * MIB, true), (20 * MIB, true), (6 * MIB, false)] {
        noise_file(&target, len, 1);
        let summary = restore(&image, &target, &[]);
        let told =
            words(&summary["changes"]).contains("the extended partition has no logical ones");
        assert_eq!(told, !is_kept, "{summary:#}");
        assert_eq!(listed(&target).contains("type=5"), is_kept);
    }
}

#[test]
fn swap_beyond_what_its_header_can_say_is_refused_by_its_name() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let [source, image, target] = ["s", "a.img.zst", "t"].map(|name| dir.path().join(name));
    disks::swap(&source, 4 * MIB);
    capture(&source, &image, &[]);
    File::create_new(&target).unwrap().set_len(17 << 40).unwrap();
    let ran = try_restore(&image, &target, &["--grow", "last"]);
    ran.refused(
        "refused",
        &["the swap area cannot become one of 17.00 TiB", "nothing was written"],
    );
    assert!(!ran.stderr.contains("partition 0"), "{}", ran.stderr);
}
