//! Two agents, or an agent and a mount, on one disk by different nodes: partitions, loop devices over one file, the file itself.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ramdisk_agent::disk::Disk;

use crate::agent::{capture, try_capture, try_restore};
use crate::devices::{Loop, Mounted};
use crate::disks::noise_file;
use crate::faulty::FaultyDisk;
use crate::round_trip::restored;
use crate::tools::run;

const MIB: u64 = 1 << 20;

#[derive(Debug, Clone, Copy)]
enum As {
    Source,
    Target,
}
use As::{Source, Target};

fn open(path: &Path, purpose: As) -> Result<Disk, String> {
    let opened = match purpose {
        Source => Disk::open_source(path),
        Target => Disk::open_target(path),
    };
    opened.map_err(|e| e.chain())
}

/// While the first is open, each of the others is refused (`false`) or is not.
fn meets(first: (&Path, As), others: &[(&Path, As, bool)]) {
    let _held = open(first.0, first.1).unwrap();
    for (path, purpose, _) in others.iter().filter(|(.., free)| *free) {
        open(path, *purpose).unwrap_or_else(|e| panic!("{first:?}, {path:?} as {purpose:?}: {e}"));
    }
    // Some of them wait for udev, who might have the lock.
    std::thread::scope(|scope| {
        for (path, purpose, _) in others.iter().filter(|(.., free)| !free) {
            scope.spawn(move || {
                let said = open(path, *purpose).map(|_| ()).unwrap_err();
                let words = ["is locked by another program", "is in use"];
                assert!(
                    words.iter().any(|word| said.contains(word)),
                    "{first:?}, {path:?} as {purpose:?}: {said}"
                );
            });
        }
    });
}

fn part(file: &Path, start: u64, len: u64) -> Loop {
    let flags = [format!("--offset={start}"), format!("--sizelimit={len}")];
    Loop::new(file, &[&flags[0], &flags[1]])
}

#[test]
fn loop_devices_over_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("t"), dir.path().join("other name"));
    noise_file(&file, 8 * MIB, 1);
    fs::hard_link(&file, &link).unwrap();
    let whole = Loop::new(&file, &[]);
    let [first, second] = [part(&file, 0, 4 * MIB), part(&link, 4 * MIB, 4 * MIB)];
    let over = part(whole.path(), 5 * MIB, MIB);
    let [whole, first, second, over] = [&whole, &first, &second, &over].map(Loop::path);
    let all = |purpose, free| {
        [&*file, &link, whole, first, second, over].map(|path| (path, purpose, free))
    };
    for held in [&*file, whole] {
        meets((held, Target), &[all(Source, false), all(Target, false)].concat()[..]);
        meets((held, Source), &[all(Source, true), all(Target, false)].concat()[..]);
    }
    for purpose in [Source, Target] {
        meets(
            (second, Target),
            &[
                (first, purpose, true),
                (whole, purpose, false),
                (&file, purpose, false),
                (over, purpose, false),
            ],
        );
    }
    meets((first, Source), &[(second, Target, true), (over, Target, true), (&file, Target, false)]);
    // A file that is in no folder any more.
    fs::remove_file(&file).unwrap();
    fs::remove_file(&link).unwrap();
    meets((whole, Target), &[(second, Source, false), (over, Target, false)]);
    meets((second, Source), &[(first, Source, true), (whole, Target, false)]);
}

/// Nobody waits for a server or a program that may never answer, and the other loop devices are known all the same.
#[test]
fn loop_devices_over_a_file_that_a_program_answers_for() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t");
    noise_file(&file, 8 * MIB, 1);
    let served = FaultyDisk::file(&file, dir.path(), &[]);
    let whole = Loop::new(served.path(), &[]);
    let [first, second] = [0, 4].map(|start| part(served.path(), start * MIB, 4 * MIB));
    let [whole, first, second] = [&whole, &first, &second].map(Loop::path);
    meets((whole, Target), &[(second, Source, false), (served.path(), Target, false)]);
    meets((second, Source), &[(first, Source, true), (whole, Target, false)]);
    meets((served.path(), Source), &[(first, Target, false), (whole, Source, true)]);
}

#[test]
fn partitions_and_their_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = restored(dir.path());
    let device = Loop::new(&disk.path, &[]);
    device.find_partitions();
    let [first, second] = [1, 2].map(|n| PathBuf::from(format!("{}p{n}", device.text())));
    let over = part(&disk.path, disk.root.start, disk.root.len);
    for purpose in [Source, Target] {
        meets(
            (&second, Target),
            &[
                (&first, purpose, true),
                (device.path(), purpose, false),
                (&disk.path, purpose, false),
                (over.path(), purpose, false),
            ],
        );
        meets((device.path(), purpose), &[(&second, Target, false), (&first, Target, false)]);
    }
    meets((&second, Source), &[(device.path(), Source, true), (&second, Source, true)]);
    // As two processes, of which one says who the other is.
    let mut held = Command::new(env!("CARGO_BIN_EXE_imprint-agent"))
        .args(["capture", "--limit", "1M"])
        .args([&second, &dir.path().join("b.img.zst")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while fs::metadata(dir.path().join("b.img.zst.partial")).is_err() {
        assert!(held.try_wait().unwrap().is_none());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let ran = try_restore(&image, device.path(), &[]);
    let who = format!("is locked by process {} (imprint-agent)", held.id());
    ran.refused("refused", &[&who, "under way"]);
    held.kill().unwrap();
    held.wait().unwrap();
}

/// The kernel keeps the second one out, and does not say why.
#[test]
fn two_restores_onto_one_device() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = restored(dir.path());
    let device = Loop::new(&disk.path, &[]);
    let before = fs::metadata(&disk.path).unwrap().modified().unwrap();
    let mut first = Command::new(env!("CARGO_BIN_EXE_imprint-agent"))
        .args(["restore", "--yes", "--limit", "2M"])
        .args([&*image, device.path()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while fs::metadata(&disk.path).unwrap().modified().unwrap() == before {
        assert!(first.try_wait().unwrap().is_none());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let pid = nix::unistd::Pid::from_raw(first.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let who = format!("{} is locked by process {pid} (imprint-agent)", device.text());
    try_restore(&image, device.path(), &[]).refused("refused", &[&who, "under way"]);
    first.kill().unwrap();
    first.wait().unwrap();
}

#[test]
fn what_is_mounted_by_another_node() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = restored(dir.path());
    let device = Loop::new(&disk.path, &[]);
    device.find_partitions();
    let [first, second] = [1, 2].map(|n| PathBuf::from(format!("{}p{n}", device.text())));
    let over = part(&disk.path, disk.root.start, disk.root.len);
    let before = fs::read(&disk.path).unwrap();
    let at = dir.path().join("mnt");
    let is_mounted = format!("{} is mounted at {}", over.text(), at.display());
    let mounted = Mounted::new(over.text(), &at, "ro,noload");
    for target in [device.path(), &disk.path] {
        try_restore(&image, target, &[]).refused("refused", &[&is_mounted]);
    }
    let root = dir.path().join("root.img.zst");
    // What is only read may be captured.
    capture(&second, &root, &[]);
    try_restore(&root, &second, &[]).refused("refused", &[&is_mounted]);
    assert!(fs::read(&disk.path).unwrap() == before);
    drop(mounted);
    let _mounted = Mounted::new(over.text(), &at, "rw");
    for (source, name) in [(device.path(), "c"), (&second, "d")] {
        let ran = try_capture(source, &dir.path().join(format!("{name}.img.zst")), &[]);
        ran.refused("refused", &[&is_mounted, "being written to"]);
    }
    capture(&first, &dir.path().join("e.img.zst"), &[]);
}

/// The table of mounts names one device of a btrfs that has several.
#[test]
fn every_device_of_a_mounted_btrfs_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let files = ["a", "b"].map(|name| {
        fs::File::create(at(name)).unwrap().set_len(150 * MIB).unwrap();
        at(name)
    });
    let devices = files.each_ref().map(|file| Loop::new(file, &[]));
    let [first, second] = devices.each_ref().map(Loop::text);
    run("btrfs-progs", "mkfs.btrfs", &["-q", "-d", "raid1", "-m", "raid1", first, second]);
    let image = at("x.img.zst");
    capture(&files[1], &image, &[]);
    let mounted = Mounted::new(first, &at("mnt"), "rw");
    for (device, file) in devices.iter().zip(&files) {
        let is_mounted = format!("{} is mounted at {}", device.text(), at("mnt").display());
        let words = [is_mounted.as_str(), "being written to"];
        for source in [device.path(), file] {
            try_capture(source, &at("y.img.zst"), &[]).refused("refused", &words);
        }
        try_restore(&image, file, &[]).refused("refused", &words[..1]);
    }
    // By a node that somebody has made, and when it is only in use any more.
    drop(mounted);
    let number = fs::metadata(second).unwrap().rdev();
    let numbers = [nix::sys::stat::major(number), nix::sys::stat::minor(number)];
    let [major, minor] = numbers.map(|number| number.to_string());
    let (node, mount) = (at("node"), at("mnt"));
    run("coreutils", "mknod", &[node.to_str().unwrap(), "b", &major, &minor]);
    run("mount", "mount", &["-t", "btrfs", node.to_str().unwrap(), mount.to_str().unwrap()]);
    try_restore(&image, &files[0], &[]).refused("refused", &["is mounted at"]);
    let held = fs::File::open(&mount).unwrap();
    run("mount", "umount", &["--lazy", mount.to_str().unwrap()]);
    for file in &files {
        try_restore(&image, file, &[]).refused("refused", &["is part of a mounted btrfs"]);
    }
    drop(held);
}

/// No table of mounts has it any more.
#[test]
fn what_was_taken_off_its_folder_and_is_used_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = restored(dir.path());
    let over = part(&disk.path, disk.root.start, disk.root.len);
    let mount = dir.path().join("mnt");
    fs::create_dir(&mount).unwrap();
    let at = mount.to_str().unwrap();
    run("mount", "mount", &[over.text(), at]);
    let held = fs::File::open(&mount).unwrap();
    run("mount", "umount", &["--lazy", at]);
    let words = format!("{} is a mounted ext4", over.text());
    try_restore(&image, &disk.path, &[]).refused("refused", &[&words]);
    let other = dir.path().join("y.img.zst");
    try_capture(&disk.path, &other, &[]).refused("refused", &[&words, "being written to"]);
    drop(held);
}

/// The journal of a mounted ext4 is in no table.
#[test]
fn what_is_only_claimed_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (name, len) in [("a", 32 * MIB), ("log", 8 * MIB)] {
        fs::File::create(at(name)).unwrap().set_len(len).unwrap();
    }
    let [device, log] = ["a", "log"].map(|name| Loop::new(&at(name), &[]));
    let journal = format!("device={}", log.text());
    run("e2fsprogs", "mke2fs", &["-q", "-O", "journal_dev", log.text()]);
    run("e2fsprogs", "mke2fs", &["-q", "-t", "ext4", "-J", &journal, device.text()]);
    let image = at("log.img.zst");
    capture(log.path(), &image, &[]);
    let mounted = Mounted::new(device.text(), &at("mnt"), "rw");
    for source in [log.path(), &at("log")] {
        let words = ["may be written to", &*format!("has opened {}", log.text())];
        try_capture(source, &at("x.img.zst"), &[]).refused("refused", &words);
        try_restore(&image, source, &[]).refused("refused", &["is in use"]);
    }
    drop(mounted);
    capture(log.path(), &at("x.img.zst"), &[]);
    // Read-only mounts claim as well, and are let be.
    let _mounted = Mounted::new(device.text(), &at("mnt"), "ro,noload");
    capture(device.path(), &at("y.img.zst"), &[]);
}

/// A loop device over a partition or over another loop device, beneath or above what is meant.
#[test]
fn what_is_mounted_through_several_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = restored(dir.path());
    let device = Loop::new(&disk.path, &[]);
    device.find_partitions();
    let second = PathBuf::from(format!("{}p2", device.text()));
    let [over, upper] = [Loop::new(&second, &[]), part(device.path(), disk.root.start, MIB)];
    let at = dir.path().join("mnt");
    for node in [&second, over.path()] {
        let is_mounted = format!("{} is mounted at {}", node.display(), at.display());
        let _mounted = Mounted::new(node.to_str().unwrap(), &at, "ro,noload");
        for target in [&disk.path, over.path(), upper.path()] {
            let ran = try_restore(&image, target, &[]);
            let words = [is_mounted.as_str(), "is in use: something has it mounted"];
            assert!(words.iter().any(|word| ran.stderr.contains(word)), "{}", ran.stderr);
        }
    }
}
