//! A disk that is a physical volume of LVM, with an ext4 and free extents in it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::agent::{agent, capture, restore, try_capture, try_restore};
use crate::devices::Loop;
use crate::disks::{self, Part, noise_file, take};
use crate::tools::run;

const MIB: u64 = 1 << 20;
/// Where pvcreate begins its extents, which are of 4 MiB: the volume is what its first segment and a later one hold.
const SEGMENTS: [Part; 2] =
    [Part { start: MIB, len: 20 * MIB }, Part { start: MIB + 24 * MIB, len: 28 * MIB }];

/// A disk without a table; its free extents are full of noise.
pub fn physical_volume(path: &Path, folder: &Path) {
    noise_file(path, 90 * MIB, 3);
    let commands = [
        "lvcreate -y -an -Zn -Wn -n root -l 5 vg",
        "lvcreate -y -an -Zn -Wn -n gap -l 1 vg",
        "lvextend -y -l 12 vg/root",
        "lvremove -y vg/gap",
    ];
    group(&Loop::new(path, &[]), folder, &commands);
    let inside = folder.join("inside");
    disks::ext4(&inside, 48 * MIB, folder);
    put(path, &fs::read(inside).unwrap());
}

/// Makes a device the group `vg`, with what these commands make in it.
pub fn group(device: &Loop, folder: &Path, commands: &[&str]) {
    let device = device.text();
    let system = format!("LVM_SYSTEM_DIR={}", folder.display());
    let lvm = |command: &str| {
        let mut args = vec![system.as_str(), "LVM_SUPPRESS_FD_WARNINGS=1"];
        args.extend(command.split(' '));
        args.extend(["--devices", device, "--driverloaded", "n"]);
        args.extend(["--config", "backup{backup=0 archive=0}"]);
        run("lvm2", "env", &args)
    };
    lvm(&format!("pvcreate -y {device}"));
    lvm(&format!("vgcreate vg {device}"));
    for command in commands {
        lvm(command);
    }
}

fn put(disk: &Path, bytes: &[u8]) {
    let file = File::options().write(true).open(disk).unwrap();
    let (first, second) = bytes.split_at(SEGMENTS[0].len as usize);
    file.write_all_at(first, SEGMENTS[0].start).unwrap();
    file.write_all_at(second, SEGMENTS[1].start).unwrap();
}

/// The logical volume, in a file.
fn inside(disk: &Path, folder: &Path) -> std::path::PathBuf {
    let (piece, whole) = (folder.join("piece"), folder.join("taken"));
    let mut bytes = Vec::new();
    for segment in SEGMENTS {
        take(disk, segment, &piece);
        bytes.extend(fs::read(&piece).unwrap());
    }
    fs::write(&whole, bytes).unwrap();
    whole
}

#[test]
fn a_volume_group_comes_back_with_what_its_volumes_use() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image, target) =
        (dir.path().join("disk"), dir.path().join("a.img.zst"), dir.path().join("target"));
    physical_volume(&disk, dir.path());
    let captured = capture(&disk, &image, &[]);
    assert_eq!(captured["raw"].as_array().unwrap().len(), 0, "{captured:#}");
    assert!(captured["data_bytes"].as_u64().unwrap() < 20 * MIB, "{captured:#}");

    let manifest = agent(&["inspect", "--json", image.to_str().unwrap()]).stdout;
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    let text = manifest.to_string();
    assert!(
        text.contains(r#""name":"vg/root""#) && text.contains(r#""fs_label":"root""#),
        "{text}"
    );
    let plan = agent(&["plan", "capture", disk.to_str().unwrap()]).stdout;
    assert!(plan.contains("vg/root") && plan.contains("ext4"), "{plan}");

    noise_file(&target, 90 * MIB, 4);
    restore(&image, &target, &[]);
    let whole = inside(&target, dir.path());
    run("e2fsprogs", "e2fsck", &["-fn", whole.to_str().unwrap()]);
    let read = |path: &Path, len: u64| {
        let mut bytes = vec![0; len as usize];
        File::open(path).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert!(read(&disk, MIB) == read(&target, MIB), "label and metadata");

    // On larger sectors it works if what is in it does.
    let device = Loop::new(&target, &["--sector-size", "4096"]);
    try_restore(&image, device.path(), &[])
        .refused("refused", &["(lvm2)", "vg/root (ext4): its blocks have 1024 bytes"]);
    run("e2fsprogs", "mke2fs", &["-q", "-F", "-b", "4096", whole.to_str().unwrap()]);
    put(&disk, &fs::read(whole).unwrap());
    let other = dir.path().join("b.img.zst");
    capture(&disk, &other, &[]);
    restore(&other, device.path(), &[]);
    run("e2fsprogs", "e2fsck", &["-fn", inside(&target, dir.path()).to_str().unwrap()]);
}

#[test]
fn a_logical_volume_that_was_not_shut_down_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = (dir.path().join("disk"), dir.path().join("a.img.zst"));
    physical_volume(&disk, dir.path());
    let whole = inside(&disk, dir.path());
    run("e2fsprogs", "tune2fs", &["-O", "^metadata_csum", whole.to_str().unwrap()]);
    let mut bytes = fs::read(whole).unwrap();
    // s_state in the superblock: cleanly unmounted is 1.
    bytes[1024 + 0x3a] = 0;
    put(&disk, &bytes);
    try_capture(&disk, &image, &[]).refused("source_not_clean", &["vg/root (ext4)", "--dirty raw"]);
    let captured = capture(&disk, &image, &["--dirty", "raw"]);
    let raw = captured["raw"].as_array().unwrap();
    assert!(raw.len() == 1 && raw[0].as_str().unwrap().contains("vg/root: not shut"), "{raw:?}");
    let target = dir.path().join("target");
    noise_file(&target, 90 * MIB, 4);
    restore(&image, &target, &[]);
    assert!(fs::read(inside(&target, dir.path())).unwrap() == bytes);
}
