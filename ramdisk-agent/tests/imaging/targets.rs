//! Disks that fail as targets: the right kind of failure, the sector named, and nothing that would boot.

use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::Child;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::agent::{capture, restore, try_restore, worker};
use crate::damage::is_bootable;
use crate::devices::Mounted;
use crate::disks::{Part, noise_file, system, take};
use crate::faulty::{Fault, FaultyDisk};
use crate::round_trip::used;
use crate::tools::run;

const MIB: u64 = 1 << 20;

/// The image of a small disk: a GPT, and a partition of noise.
fn small(dir: &Path, len: u64) -> (PathBuf, PathBuf) {
    let (disk, image) = (dir.join("s"), dir.join("a.img.zst"));
    noise_file(&disk, len, 1);
    run("gdisk", "sgdisk", &["-Z", "-o", "-n1:2048:0", disk.to_str().unwrap()]);
    capture(&disk, &image, &[]);
    (disk, image)
}

/// A target with a system on it that boots.
fn old_system(target: &Path, len: u64) {
    noise_file(target, len, 2);
    run("gdisk", "sgdisk", &["-Z", "-o", "-n1:2048:+2M", target.to_str().unwrap()]);
    assert!(is_bootable(target));
}

#[test]
fn a_sector_that_cannot_be_written_ends_a_restore() {
    let dir = tempfile::tempdir().unwrap();
    let (_, image) = small(dir.path(), 6 * MIB);
    let target = dir.path().join("t");
    let last = 6 * MIB / 512 - 1;
    for (sector, errno, kind) in [
        (0, libc::EIO, "disk"),
        (1, libc::EIO, "disk"),
        (100, libc::ENOSPC, "no_space"),
        (2048, libc::EIO, "disk"),
        (6001, libc::EIO, "disk"),
        (6001, libc::ENOSPC, "no_space"),
        (last, libc::EIO, "disk"),
    ] {
        old_system(&target, 6 * MIB);
        let faults =
            ["write", "write-zeroes"].map(|iotype| Fault::always(iotype, errno).at(sector));
        let disk = FaultyDisk::target(&target, dir.path(), &faults);
        let lba = format!("LBA {sector} (byte {}) of {}", sector * 512, disk.path().display());
        let ran = try_restore(&image, disk.path(), &[]);
        ran.refused(kind, &["writing 512 bytes at", &lba]);
        drop(disk);
        // What cannot be erased is said to be there.
        let warned = ran.stderr.contains("may still boot it");
        assert!(warned || !is_bootable(&target), "{sector}: {}", ran.stderr);
        assert_eq!(warned, sector != 6001, "{}", ran.stderr);
    }
}

#[test]
fn an_error_that_only_a_flush_tells_ends_a_restore() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image) = small(dir.path(), 6 * MIB);
    let target = dir.path().join("t");
    // Three while the old system is erased, one for the frames, one for each piece of the commit.
    for n in 1.. {
        old_system(&target, 6 * MIB);
        let disk = FaultyDisk::target(&target, dir.path(), &[Fault::nth_flush(n)]);
        let ran = try_restore(&image, disk.path(), &[]);
        if ran.code == 0 {
            assert_eq!(n, 9, "so many flushes, and each of them counts: {}", ran.stdout);
            break;
        }
        ran.refused("disk", &["flushing", "may be lost"]);
        drop(disk);
        let erasing = n <= 3;
        assert_eq!(ran.stderr.contains("may still boot it"), erasing, "{n}: {}", ran.stderr);
        assert_eq!(ran.stderr.contains("no bootable system now"), !erasing, "{n}: {}", ran.stderr);
        // After the first two the GPT may be there, and everything that it leads to.
        assert!(n <= 2 || !is_bootable(&target), "{n}");
        // And the next restore makes it good.
        restore(&image, &target, &[]);
        assert!(fs::read(&source).unwrap() == fs::read(&target).unwrap());
    }
}

#[test]
fn a_disk_that_keeps_nothing_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let (_, image) = small(dir.path(), 4 * MIB);
    let node = format!("driver=null-co,node-name=top,read-zeroes=on,size={}", 4 * MIB);
    let disk = FaultyDisk::export(&[("--blockdev", &*node)], dir.path());
    let words = ["reads back other bytes than were written", "from LBA 2048)", "defective"];
    try_restore(&image, disk.path(), &[]).refused("disk", &words);
}

#[test]
fn what_was_written_and_cannot_be_read_ends_a_restore() {
    let dir = tempfile::tempdir().unwrap();
    let (_, image) = small(dir.path(), 4 * MIB);
    let target = dir.path().join("t");
    noise_file(&target, 4 * MIB, 2);
    let disk = FaultyDisk::file(&target, dir.path(), &[Fault::unreadable(5001)]);
    let ran = try_restore(&image, disk.path(), &[]);
    ran.refused("disk", &["LBA 5001 ", "cannot be read", "no bootable system now"]);
    drop(disk);
    assert!(!is_bootable(&target));
}

/// As disks do that take another sector when the bad one is written.
#[test]
fn a_sector_that_cannot_be_compared_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image) = small(dir.path(), 12 * MIB);
    let target = dir.path().join("t");
    // In the boot gap, which comes last, and in the first and the second of three frames.
    for sector in [1501, 5001, 12001] {
        fs::copy(&source, &target).unwrap();
        // The first flush is that before the comparison.
        let fault = Fault::unreadable_until_flush(sector, 2);
        let disk = FaultyDisk::target(&target, dir.path(), &[fault]);
        let done = restore(&image, disk.path(), &["--delta"]);
        drop(disk);
        let told = done["changes"].to_string();
        // A loop device reads whole pages.
        let lba = format!("LBA {} (byte {}) of ", sector / 8 * 8, sector / 8 * 4096);
        assert!(told.contains(&lba) && told.contains("it is written again"), "{done:#}");
        assert!(fs::read(&source).unwrap() == fs::read(&target).unwrap());
    }
    // One that cannot be written either is found out by the read-back.
    fs::copy(&source, &target).unwrap();
    let disk = FaultyDisk::target(&target, dir.path(), &[Fault::unreadable(5001)]);
    let ran = try_restore(&image, disk.path(), &["--delta"]);
    ran.refused("disk", &["LBA 5000 ", "cannot be read", "no bootable system now"]);
}

#[test]
fn a_restore_of_a_whole_system_that_fails_late_leaves_nothing_bootable() {
    let dir = tempfile::tempdir().unwrap();
    let disk = system(dir.path(), "gpt");
    let (image, target) = (dir.path().join("a.img.zst"), dir.path().join("t"));
    capture(&disk.path, &image, &[]);
    let (_, extents) = used(&disk.path, disk.root, dir.path());
    let sector = (disk.root.start + extents.last().unwrap().start) / 512;
    // An older version of the same system is on it.
    fs::copy(&disk.path, &target).unwrap();
    assert!(is_bootable(&target));
    let faults = [Fault::always("write", libc::EIO).at(sector)];
    let faulty = FaultyDisk::target(&target, dir.path(), &faults);
    let ran = try_restore(&image, faulty.path(), &[]);
    ran.refused("disk", &[&format!("LBA {sector} "), "no bootable system now"]);
    drop(faulty);
    assert!(!is_bootable(&target));
    let whole = Part { start: 0, len: MIB };
    let head = dir.path().join("head");
    take(&target, whole, &head);
    assert!(fs::read(&head).unwrap().iter().all(|b| *b == 0));
}

/// A job on a disk that hangs as soon as it is in this stage, when it has said that the disk does not answer.
struct Hanging {
    disk: FaultyDisk,
    child: Child,
    lines: Box<dyn Iterator<Item = Value>>,
    says: String,
}

impl Hanging {
    fn new(disk: FaultyDisk, image: &Path, action: &str, stage: &str) -> Self {
        let job = json!({
            "id": "1", "disk": disk.path(), "image_url": image, "action": action, "options": {},
        });
        let mut child = worker(&job);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut lines = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
        lines.find(|line| line["progress"]["stage"] == stage).expect("the stage comes");
        disk.signal(Signal::SIGSTOP);
        let says = lines.find_map(|line| line["progress"]["stalled"].as_str().map(str::to_owned));
        Self { disk, child, lines: Box::new(lines), says: says.expect("it is told") }
    }

    /// How it ends.
    fn outcome(&mut self) -> Value {
        let outcome = self.lines.find(|line| line["outcome"].is_object()).unwrap();
        assert_eq!(
            self.child.wait().unwrap().success(),
            outcome["outcome"]["result"] == "succeeded"
        );
        outcome["outcome"].clone()
    }
}

/// Slow enough that a stage is seen before it is over.
const SLOW: u64 = 6 * MIB;

#[test]
fn a_disk_that_hangs_is_told_and_the_job_goes_on_when_it_answers() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image) = small(dir.path(), 16 * MIB);
    let target = dir.path().join("t");
    old_system(&target, 16 * MIB);
    let disk = FaultyDisk::slow(&target, dir.path(), SLOW).attached(&["--direct-io=off"]);
    let device = disk.path().display().to_string();
    let mut job = Hanging::new(disk, &image, "restore", "restoring");
    let expected = format!("{device} does not answer: writing at LBA ");
    assert!(job.says.starts_with(&expected), "{}", job.says);
    job.disk.signal(Signal::SIGCONT);
    let outcome = job.outcome();
    assert_eq!(outcome["result"], "succeeded", "{outcome}");
    drop(job);
    assert!(fs::read(&source).unwrap() == fs::read(&target).unwrap());
}

#[test]
fn a_job_whose_disk_hangs_can_be_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let (source, _) = small(dir.path(), 16 * MIB);
    let image = dir.path().join("b.img.zst");
    let disk = FaultyDisk::slow(&source, dir.path(), SLOW);
    let mut job = Hanging::new(disk, &image, "capture", "capturing");
    assert!(job.says.contains("reading at LBA "), "{}", job.says);
    kill(Pid::from_raw(job.child.id().cast_signed()), Signal::SIGTERM).unwrap();
    // The thread that waits in the kernel cannot be woken up; the first thing that it does afterwards is to end.
    job.disk.signal(Signal::SIGCONT);
    assert_eq!(job.outcome()["kind"], "cancelled");
    assert!(!image.exists());
}

#[test]
fn a_disk_that_vanishes_ends_a_restore() {
    let dir = tempfile::tempdir().unwrap();
    let (_, image) = small(dir.path(), 16 * MIB);
    let target = dir.path().join("t");
    old_system(&target, 16 * MIB);
    let disk = FaultyDisk::slow(&target, dir.path(), SLOW).attached(&["--direct-io=off"]);
    let mut job = Hanging::new(disk, &image, "restore", "restoring");
    job.disk.signal(Signal::SIGKILL);
    let outcome = job.outcome();
    assert_eq!(outcome["kind"], "disk", "{outcome}");
    let message = outcome["message"].as_str().unwrap();
    assert!(message.contains("no bootable system: its tables were erased before"), "{message}");
    drop(job);
    assert!(!is_bootable(&target));
}

#[test]
fn a_disk_file_that_is_moved_away_ends_a_restore() {
    let dir = tempfile::tempdir().unwrap();
    let (_, image) = small(dir.path(), 16 * MIB);
    let (target, away) = (dir.path().join("t"), dir.path().join("away"));
    old_system(&target, 16 * MIB);
    let job = json!({
        "id": "1", "disk": target, "image_url": image, "action": "restore", "options": {"limit": "16M"},
    });
    let mut child = worker(&job);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    lines.find(|line| line.contains("\"restoring\"")).expect("the stage comes");
    fs::rename(&target, &away).unwrap();
    let outcome = lines.find(|line| line.contains("\"outcome\"")).unwrap();
    assert!(outcome.contains("is not the file any more that was restored to"), "{outcome}");
    assert!(!child.wait().unwrap().success());
    assert!(!is_bootable(&away));
}

/// After a write-back that has failed the kernel gives what it could not write, from memory, as if nothing had been.
#[test]
fn a_comparison_is_with_the_disk_and_not_with_what_is_in_memory_of_it() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (source, image) = small(dir.path(), 6 * MIB);
    let (tree, volume) = (dir.path().join("tree"), dir.path().join("fs"));
    fs::create_dir(&tree).unwrap();
    noise_file(&tree.join("t"), 6 * MIB, 2);
    fs::File::create(&volume).unwrap().set_len(64 * MIB).unwrap();
    let text = volume.to_str().unwrap();
    let args = ["-q", "-F", "-t", "ext4", "-b", "4096", "-d", tree.to_str().unwrap(), text];
    run("e2fsprogs", "mke2fs", &args);
    let blocks = run("e2fsprogs", "debugfs", &["-R", "blocks /t", text]);
    let sector = blocks.split_whitespace().nth(700).unwrap().parse::<u64>().unwrap() * 8;
    let fault = Fault::always("write", libc::EIO).at(sector);
    let faulty = FaultyDisk::target(&volume, dir.path(), &[fault]);
    let mounted = Mounted::new(faulty.path().to_str().unwrap(), &dir.path().join("mnt"), "rw");
    let target = dir.path().join("mnt/t");
    let mut file = fs::File::options().write(true).open(&target).unwrap();
    file.write_all(&fs::read(&source).unwrap()).unwrap();
    file.sync_all().unwrap_err();
    // It is told once.
    file.sync_all().unwrap();
    assert!(fs::read(&target).unwrap() == fs::read(&source).unwrap());
    try_restore(&image, &target, &["--delta"]).refused("disk", &["writing 512 bytes at LBA"]);
    drop((file, mounted));
}
