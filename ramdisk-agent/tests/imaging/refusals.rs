//! What must not be done is refused before the first write, with a reason.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::agent::{agent, capture, restore, try_capture, try_restore};
use crate::devices::Loop;
use crate::disks::{self, noise_file};
use crate::round_trip::restored;
use crate::tools::run;

/// Asserts that a file does not change while something is tried.
fn untouched(path: &Path, attempt: impl FnOnce()) {
    let before = blake3::hash(&fs::read(path).unwrap());
    attempt();
    assert_eq!(blake3::hash(&fs::read(path).unwrap()), before, "it was written to");
}

#[test]
fn targets_that_do_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = restored(dir.path());
    let target = dir.path().join("t");
    // All but 1 MiB of swap gives way: 142 MiB and the backup GPT.
    noise_file(&target, (142 << 20) + 32 * 512, 1);
    untouched(&target, || {
        try_restore(&image, &target, &[]).refused("refused", &[": 512 bytes are missing"]);
    });
    noise_file(&target, disk.len, 1);
    untouched(&target, || {
        let root = "00".repeat(32);
        try_restore(&image, &target, &["--expect-root", &root])
            .refused("image_corrupt", &["another image"]);
        try_restore(&image, &target, &["--expect-root", "zz"]).refused("refused", &["64"]);
    });
}

#[test]
fn a_plan_that_is_not_the_approved_one() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = restored(dir.path());
    let (target, elsewhere) = (dir.path().join("t"), dir.path().join("renamed"));
    noise_file(&target, disk.len, 1);
    let plan = |target: &Path, flags: &[&str]| {
        let mut args = vec!["plan", "restore", "--json", image.to_str().unwrap()];
        args.push(target.to_str().unwrap());
        args.extend(flags);
        agent(&args).json()["hash"].as_str().unwrap().to_owned()
    };
    let hash = plan(&target, &[]);
    assert_eq!(plan(&target, &["--delta"]), hash, "how it is done is no part of the plan");
    assert_ne!(plan(&target, &["--scrub-free"]), hash, "what is done is");
    fs::rename(&target, &elsewhere).unwrap();
    assert_eq!(plan(&elsewhere, &[]), hash, "nor is the disk's name");
    untouched(&elsewhere, || {
        let wrong = "0".repeat(64);
        for (given, says) in [(wrong.as_str(), "not the plan that was approved"), ("abc", "64")] {
            try_restore(&image, &elsewhere, &["--expect-plan", given]).refused("refused", &[says]);
        }
    });
    // Somebody has made a filesystem on it since.
    let before = fs::read(&elsewhere).unwrap();
    disks::swap(&elsewhere, disk.len);
    assert_ne!(plan(&elsewhere, &[]), hash);
    untouched(&elsewhere, || {
        try_restore(&image, &elsewhere, &["--expect-plan", &hash]).refused("refused", &["changed"]);
    });
    // Nor is a disk the same whose partitions are others, unknown as what is in them is.
    fs::write(&elsewhere, &before).unwrap();
    let mut seen = vec![hash.clone()];
    for script in ["label: gpt\nsize=1M", "label: dos\nsize=1M", "label: dos\nsize=2M"] {
        let command = format!("printf '{script}' | sfdisk -q {}", elsewhere.display());
        run("fdisk", "sh", &["-c", &command]);
        seen.push(plan(&elsewhere, &[]));
    }
    for arguments in [["--part-type", "82"], ["--part-type", "83"]] {
        let [option, value] = arguments;
        run("fdisk", "sfdisk", &["-q", option, elsewhere.to_str().unwrap(), "1", value]);
        seen.push(plan(&elsewhere, &[]));
    }
    assert_eq!(seen.pop(), seen.get(3).cloned(), "the same table");
    let all = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), all, "{seen:?}");
    fs::write(&elsewhere, before).unwrap();
    restore(&image, &elsewhere, &["--expect-plan", &hash]);
}

#[test]
fn nothing_happens_unless_agreed_to() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = restored(dir.path());
    let target = dir.path().join("t");
    noise_file(&target, disk.len, 1);
    untouched(&target, || {
        let ran = agent(&["restore", image.to_str().unwrap(), target.to_str().unwrap()]);
        ran.refused("refused", &["--yes"]);
        assert!(ran.stdout.contains("primary GPT"), "the plan comes first: {}", ran.stdout);
    });
}

#[test]
fn an_image_is_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = restored(dir.path());
    untouched(&image, || {
        try_capture(&disk.path, &image, &[]).refused("refused", &["a.img.zst", "exists"]);
    });
}

/// Where an image of ours is wanted, one of another tool is no damaged one.
#[test]
fn another_tools_image_where_one_of_ours_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let [raw, target, delta] = ["a.raw", "t", "d.imgd"].map(|n| dir.path().join(n));
    noise_file(&raw, 2 << 20, 1);
    noise_file(&target, 2 << 20, 2);
    let says = ["a.raw is no image of Imprint", "`imprint-agent convert`"];
    let raw_text = raw.to_str().unwrap();
    try_capture(&target, &delta, &["--base", raw_text]).refused("refused", &says);
    untouched(&target, || {
        try_restore(&raw, &target, &["--also", raw_text]).refused("refused", &says);
    });
    let copied = dir.path().join("c.img.zst");
    agent(&["copy", raw_text, copied.to_str().unwrap()]).refused("refused", &says);
}

#[test]
fn an_image_is_not_restored_over_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image, link) =
        (dir.path().join("s"), dir.path().join("a.img.zst"), dir.path().join("link"));
    noise_file(&source, 1 << 20, 1);
    capture(&source, &image, &[]);
    std::os::unix::fs::symlink(&image, &link).unwrap();
    untouched(&image, || {
        try_restore(&image, &image, &[]).refused("refused", &["the image itself"]);
        try_restore(&image, &link, &[]).refused("refused", &["the image itself"]);
    });
}

/// By a loop device over its file, too, and where it is merely beneath the delta image that was named.
#[test]
fn no_image_that_a_restore_reads_is_its_target() {
    let dir = tempfile::tempdir().unwrap();
    let [source, base, delta, raw] =
        ["s", "a.img.zst", "b.imgd", "raw"].map(|name| dir.path().join(name));
    // Noise is not compressed, so that the image is larger than its disk.
    noise_file(&source, 4 << 20, 1);
    capture(&source, &base, &[]);
    File::options().write(true).open(&source).unwrap().write_all_at(b"changed", 0).unwrap();
    capture(&source, &delta, &["--base", base.to_str().unwrap()]);
    fs::copy(&source, &raw).unwrap();
    untouched(&base, || {
        try_restore(&delta, &base, &[]).refused("refused", &["the target of a restore"]);
        let base_again = ["--base", base.to_str().unwrap()];
        try_restore(&delta, &base, &base_again).refused("refused", &["the image itself"]);
        // Loop devices have whole sectors.
        let device = Loop::new(&base, &["--sizelimit", "4194304"]);
        try_restore(&base, device.path(), &[]).refused("refused", &["has bytes of the image"]);
        try_restore(&delta, device.path(), &[]).refused("refused", &["the target of a restore"]);
    });
    untouched(&raw, || {
        let device = Loop::new(&raw, &[]);
        try_restore(&raw, device.path(), &[]).refused("refused", &["has bytes of the image"]);
        let also = ["--also", device.text()];
        try_restore(&base, device.path(), &also).refused("refused", &["the image itself"]);
    });
}

#[test]
fn two_agents_do_not_meet_on_one_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = restored(dir.path());
    let other = dir.path().join("b.img.zst");
    let held = File::open(&disk.path).unwrap();
    held.lock_shared().unwrap();
    untouched(&disk.path, || {
        try_restore(&image, &disk.path, &[]).refused("refused", &["under way"]);
    });
    // Another capture is no hindrance to one.
    capture(&disk.path, &other, &[]);
    held.unlock().unwrap();
    held.lock().unwrap();
    try_capture(&disk.path, &dir.path().join("c.img.zst"), &[]).refused("refused", &["under way"]);
}

#[test]
fn sources_that_were_not_shut_down() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, image) = (dir.path().join("v"), dir.path().join("a.img.zst"));
    disks::ext4(&volume, 48 << 20, dir.path());
    let file = File::options().read(true).write(true).open(&volume).unwrap();
    // s_state in the superblock: cleanly unmounted is 1. Without its checksum the map would be refused for another reason.
    crate::tools::run("e2fsprogs", "tune2fs", &["-O", "^metadata_csum", volume.to_str().unwrap()]);
    file.write_all_at(&[0, 0], 1024 + 0x3a).unwrap();
    try_capture(&volume, &image, &[]).refused("source_not_clean", &["--dirty raw"]);
    assert!(!image.exists() && !image.with_extension("zst.partial").exists());
    let captured = capture(&volume, &image, &["--dirty", "raw"]);
    assert_eq!(captured["raw"].as_array().unwrap().len(), 1);
    let target = dir.path().join("t");
    noise_file(&target, 48 << 20, 2);
    restore(&image, &target, &[]);
    assert!(fs::read(&volume).unwrap() == fs::read(&target).unwrap());
}

#[test]
fn places_that_are_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("nowhere");
    let image = dir.path().join("a.img.zst");
    try_capture(&nowhere, &image, &[]).refused("not_found", &["nowhere"]);
    let missing = Path::new("nowhere/disk.img");
    try_capture(missing, &image, &[]).refused("not_found", &["nowhere/disk.img"]);
    for attempt in [["capture", nowhere.to_str().unwrap(), "-"], ["restore", "-", "/dev/null"]] {
        agent(&attempt).refused("refused", &["'-' names no image"]);
        assert!(!Path::new("-").exists() && !Path::new("-.partial").exists());
    }
    try_capture(Path::new("nowhere.img"), &image, &[]).refused("refused", &["./disk.raw"]);
    noise_file(&nowhere, 1 << 20, 1);
    try_restore(&image, &nowhere, &[]).refused("not_found", &["a.img.zst"]);
    try_restore(&nowhere, &nowhere, &[]).refused("refused", &["is the image itself"]);
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    try_capture(&fifo, &image, &[]).refused("refused", &["neither"]);
    try_capture(Path::new("serial=NONE77"), &image, &[]).refused("refused", &["NONE77"]);
}
