//! Delta restores: what is there already is neither fetched nor written, and what comes out is what a full restore gives.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::agent::{capture, restore, try_restore};
use crate::disks::{TestDisk, judge, noise, noise_file, system};
use crate::tools::run;

const MIB: u64 = 1 << 20;

/// A disk, its image, and a target that a full restore has written.
fn restored(dir: &Path, label: &str, extra: u64) -> (TestDisk, Value) {
    let disk = system(dir, label);
    let captured = capture(&disk.path, &dir.join("a.img.zst"), &[]);
    noise_file(&dir.join("target"), disk.len + extra, 4);
    restore(&dir.join("a.img.zst"), &dir.join("target"), &[]);
    (disk, captured)
}

fn bytes(summary: &Value, name: &str) -> u64 {
    summary[name].as_u64().unwrap_or_else(|| panic!("no {name} in {summary:#}"))
}

/// Restores by delta where nothing differs.
fn nothing_to_do(image: &Path, target: &Path, flags: &[&str]) {
    let before = (fs::read(target).unwrap(), fs::metadata(target).unwrap().modified().unwrap());
    let done = restore(image, target, &[&["--delta"], flags].concat());
    assert_eq!((bytes(&done, "fetched_bytes"), bytes(&done, "written_bytes")), (0, 0), "{done:#}");
    assert!(bytes(&done, "compared_bytes") > 0);
    let after = (fs::read(target).unwrap(), fs::metadata(target).unwrap().modified().unwrap());
    assert!(before == after, "a disk that holds the image already was written to");
}

#[test]
fn onto_an_identical_disk_nothing_is_written() {
    for (label, extra) in [("gpt", 0), ("gpt", 5 * MIB), ("logical", 0)] {
        let dir = tempfile::tempdir().unwrap();
        let (disk, _) = restored(dir.path(), label, extra);
        let (image, target) = (dir.path().join("a.img.zst"), dir.path().join("target"));
        nothing_to_do(&image, &target, &[]);
        assert_eq!(fs::metadata(&target).unwrap().len(), disk.len + extra);
    }
}

/// An ext4 of its own with blocks of 4 KiB, 96 MiB of files, and a deleted one whose blocks still hold data.
fn filesystem(dir: &Path) -> PathBuf {
    let (tree, path) = (dir.join("tree"), dir.join("ext4"));
    fs::create_dir(&tree).unwrap();
    for i in 0..12 {
        fs::write(tree.join(format!("file{i}")), noise(8 << 20, i)).unwrap();
    }
    File::create(&path).unwrap().set_len(256 * MIB).unwrap();
    let (text, tree_text) = (path.to_str().unwrap(), tree.to_str().unwrap());
    run("e2fsprogs", "mke2fs", &["-q", "-F", "-t", "ext4", "-b", "4096", "-d", tree_text, text]);
    run("e2fsprogs", "debugfs", &["-w", "-R", "rm /file5", text]);
    fs::remove_dir_all(tree).unwrap();
    path
}

#[test]
fn onto_the_source_itself_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let source = filesystem(dir.path());
    let image = dir.path().join("a.img.zst");
    capture(&source, &image, &[]);
    // Its free blocks hold other bytes than the image says: they do not count.
    nothing_to_do(&image, &source, &[]);
}

#[test]
fn free_space_counts_when_it_is_to_be_scrubbed() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, captured) = restored(dir.path(), "gpt", 3 * MIB);
    let (image, target) = (dir.path().join("a.img.zst"), dir.path().join("target"));
    let scrubbed = restore(&image, &target, &["--delta", "--scrub-free"]);
    assert!(bytes(&scrubbed, "written_bytes") > 0);
    nothing_to_do(&image, &target, &["--scrub-free"]);
    // Against what a full one gives.
    let full = dir.path().join("full");
    noise_file(&full, disk.len + 3 * MIB, 9);
    restore(&image, &full, &["--scrub-free"]);
    assert!(fs::read(&full).unwrap() == fs::read(&target).unwrap());
    assert_eq!(scrubbed["root"], captured["root"]);
}

#[test]
fn an_older_version_moves_only_the_difference() {
    let dir = tempfile::tempdir().unwrap();
    let source = filesystem(dir.path());
    let (old, target) = (dir.path().join("a.img.zst"), dir.path().join("target"));
    let first = capture(&source, &old, &[]);
    noise_file(&target, 256 * MIB, 4);
    restore(&old, &target, &[]);
    let file = dir.path().join("update");
    fs::write(&file, noise(600_000, 21)).unwrap();
    let command = format!("write {} update", file.display());
    run("e2fsprogs", "debugfs", &["-w", "-R", &command, source.to_str().unwrap()]);
    let image = dir.path().join("b.img.zst");
    let second = capture(&source, &image, &[]);

    let done = restore(&image, &target, &["--delta"]);
    assert!(bytes(&done, "fetched_bytes") * 4 < bytes(&second, "stored_bytes"), "{done:#}");
    assert!(bytes(&done, "written_bytes") * 4 < bytes(&second, "data_bytes"), "{done:#}");
    // All of it: what was written may have come elsewhere, too.
    assert!(bytes(&done, "readback_bytes") >= bytes(&second, "data_bytes"), "{done:#}");
    assert_ne!(first["root"], second["root"]);
    run("e2fsprogs", "e2fsck", &["-fn", target.to_str().unwrap()]);
    let full = dir.path().join("full");
    File::create(&full).unwrap().set_len(256 * MIB).unwrap();
    restore(&image, &full, &["--scrub-free"]);
    restore(&image, &target, &["--delta", "--scrub-free"]);
    assert!(fs::read(&full).unwrap() == fs::read(&target).unwrap());
    nothing_to_do(&image, &target, &[]);
}

#[test]
fn whatever_differs_is_found_and_mended() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, _) = restored(dir.path(), "gpt", 2 * MIB);
    let (image, target) = (dir.path().join("a.img.zst"), dir.path().join("target"));
    let whole = fs::read(&target).unwrap();
    let len = whole.len() as u64;
    // MBR, both copies of the GPT and their entries, the boot gap, the first and the last used bytes of a filesystem.
    let places = [
        0,
        510,
        512 + 16,
        1024,
        100 << 10,
        disk.esp.start,
        disk.root.start + 1100,
        len - 512,
        len - 1024,
    ];
    for at in places {
        let file = File::options().write(true).open(&target).unwrap();
        let was = whole[usize::try_from(at).unwrap()];
        file.write_all_at(&[was ^ 0x10], at).unwrap();
        let done = restore(&image, &target, &["--delta"]);
        assert!(bytes(&done, "written_bytes") > 0, "a flipped bit at {at} was not seen");
        judge(&disk, &target, dir.path());
        nothing_to_do(&image, &target, &[]);
    }
}

#[test]
fn a_damaged_image_is_noticed_before_the_disk_is_touched_again() {
    let dir = tempfile::tempdir().unwrap();
    let (_, captured) = restored(dir.path(), "gpt", 0);
    let (image, target) = (dir.path().join("a.img.zst"), dir.path().join("target"));
    // The index is read before anything is compared; frames that are equal on the disk are not read at all.
    let file = File::options().write(true).open(&image).unwrap();
    file.write_all_at(&[0xFF; 64], bytes(&captured, "stored_bytes") - 4096).unwrap();
    let before = fs::read(&target).unwrap();
    try_restore(&image, &target, &["--delta"]).refused("image_corrupt", &[]);
    assert!(before == fs::read(&target).unwrap());
}
