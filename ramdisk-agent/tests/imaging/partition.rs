//! Single partitions out of images of disks, onto files, partition devices, and partitions of a disk that otherwise stays as it is.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::agent::{agent, restore, try_restore, worker};
use crate::devices::Loop;
use crate::disks::{Part, TestDisk, identity, noise_file, system, take};
use crate::round_trip::{restored, unpack};
use crate::tools::run;

const MIB: u64 = 1 << 20;

/// A system, its image, and what is to come out of it: free bytes are zeros there.
struct Bench {
    dir: tempfile::TempDir,
    disk: TestDisk,
    image: PathBuf,
    expected: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (disk, image) = restored(dir.path());
        let expected = dir.path().join("expected");
        unpack(&image, &expected);
        Self { dir, disk, image, expected }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The bytes of a part of a disk.
    fn bytes(&self, disk: &Path, part: Part) -> Vec<u8> {
        let file = self.path("taken");
        take(disk, part, &file);
        fs::read(file).unwrap()
    }

    /// A disk with another table and other things on it: an ESP in partition 1, 120 MiB for the system in 2 (5 if they are logical), swap behind
    /// it.
    fn other(&self, label: &str) -> TestDisk {
        let dir = self.path(label);
        fs::create_dir(&dir).unwrap();
        let disk = system(&dir, label);
        // Boot code, gaps and all parts are something else than in the image.
        for part in [disk.esp, disk.root, disk.swap] {
            let noise = self.path("noise");
            noise_file(&noise, part.len, part.start);
            let command = format!(
                "dd if={} of={} bs=1M seek={} conv=notrunc status=none",
                noise.display(),
                disk.path.display(),
                part.start / MIB
            );
            run("coreutils", "sh", &["-c", &command]);
        }
        disk
    }
}

fn hash_of(path: &Path) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path).unwrap()).unwrap();
    hasher.finalize()
}

fn written(summary: &Value) -> u64 {
    summary["written_bytes"].as_u64().unwrap()
}

#[test]
fn each_partition_comes_out_as_it_was() {
    let bench = Bench::new();
    let target = bench.path("t");
    for (number, part) in [("1", bench.disk.esp), ("2", bench.disk.root), ("3", bench.disk.swap)] {
        let _ = fs::remove_file(&target);
        noise_file(&target, part.len, 3);
        let flags = ["--partition", number, "--scrub-free"];
        let full = restore(&bench.image, &target, &flags);
        assert!(written(&full) >= part.len - MIB, "{full:#}");
        let expected = bench.bytes(&bench.expected, part);
        assert!(fs::read(&target).unwrap() == expected, "partition {number}");
        assert_eq!(identity(&target), {
            bench.bytes(&bench.disk.path, part);
            identity(&bench.path("taken"))
        });
        let again = restore(&bench.image, &target, &[&flags[..], &["--delta"]].concat());
        assert_eq!((written(&again), again["fetched_bytes"].as_u64()), (0, Some(0)), "{again:#}");
        // What was cut off goes on; only what differs is written.
        let cut = File::options().write(true).open(&target).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&cut, &[0x55; 9000], part.len / 2).unwrap();
        let delta = restore(&bench.image, &target, &[&flags[..], &["--delta"]].concat());
        // A hole that differs is zeroed whole; the root is data there.
        let most = if number == "2" { part.len / 2 } else { part.len + 2 * MIB };
        assert!(written(&delta) > 0 && written(&delta) < most, "{delta:#}");
        assert!(fs::read(&target).unwrap() == expected, "partition {number}");
    }
}

#[test]
fn a_partition_of_a_disk_is_written_and_not_a_byte_around_it() {
    let bench = Bench::new();
    for (label, into) in [("gpt", "2"), ("logical", "5")] {
        let other = bench.other(label);
        let before = fs::read(&other.path).unwrap();
        let flags = ["--partition", "2", "--into-partition", into, "--scrub-free"];
        let plan: Value = {
            let [image, disk] = [&bench.image, &other.path].map(|p| p.to_str().unwrap());
            agent(&[&["plan", "restore", "--json", image, disk], &flags[..]].concat()).json()
        };
        assert_eq!(plan["into"]["start_bytes"], other.root.start, "{plan:#}");
        assert_eq!(plan["from"]["what"], "ext4 root");
        assert_eq!(plan["target"]["size_bytes"], other.len);
        let hash = plan["hash"].as_str().unwrap();
        let device = Loop::new(&other.path, &[]);
        for target in [device.path(), &other.path] {
            // The plan is the same for a device and its file: they have the same identity, none.
            let approved = [&flags[..], &["--expect-plan", hash]].concat();
            if target == device.path() {
                restore(&bench.image, target, &approved);
            } else {
                let again = restore(&bench.image, target, &[&flags[..], &["--delta"]].concat());
                assert_eq!(written(&again), 0, "{again:#}");
            }
        }
        drop(device);
        let after = fs::read(&other.path).unwrap();
        let part = other.root.start as usize..(other.root.start + other.root.len) as usize;
        assert!(after[..part.start] == before[..part.start], "{label}: in front of it");
        assert!(after[part.end..] == before[part.end..], "{label}: behind it");
        assert!(after[part] == bench.bytes(&bench.expected, bench.disk.root)[..], "{label}");
    }
}

#[test]
fn a_partition_device_and_one_that_is_larger() {
    let bench = Bench::new();
    let other = bench.path("other");
    noise_file(&other, 200 * MIB, 1);
    let text = other.to_str().unwrap();
    run("gdisk", "sgdisk", &["-Z", "-o", "-n1:1M:+20M", "-n2:0:+130M", "-n3:0:0", text]);
    let before = fs::read(&other).unwrap();
    let device = Loop::new(&other, &[]);
    device.find_partitions();
    let node = PathBuf::from(format!("{}p2", device.text()));
    try_restore(&bench.image, &node, &[]).refused("refused", &["is a partition", "--partition ("]);
    restore(&bench.image, &node, &["--partition", "2"]);
    run("e2fsprogs", "e2fsck", &["-fn", node.to_str().unwrap()]);
    run("util-linux", "partx", &["--delete", device.text()]);
    drop(device);
    let after = fs::read(&other).unwrap();
    let part = 21 * MIB as usize..151 * MIB as usize;
    assert!(after[..part.start] == before[..part.start] && after[part.end..] == before[part.end..]);
}

#[test]
fn what_does_not_fit_or_is_not_there_is_refused_before_the_first_write() {
    let bench = Bench::new();
    let (bare, disk) = (bench.path("bare"), bench.other("gpt"));
    noise_file(&bare, bench.disk.root.len - 512, 1);
    let volume = bench.path("volume.img.zst");
    crate::agent::capture(
        &{
            bench.bytes(&bench.disk.path, bench.disk.root);
            bench.path("taken")
        },
        &volume,
        &[],
    );
    let cases: [(&Path, &Path, &[&str], &[&str]); 10] = [
        (
            &bench.image,
            &bare,
            &["--partition", "2"],
            &["partition 2 of the image", ": 512 bytes are missing"],
        ),
        (&bench.image, &bare, &["--partition", "4"], &["no partition 4", "partitions 1, 2, 3"]),
        (&bench.image, &bare, &["--into-partition", "1"], &["has no partition 1"]),
        (&bench.image, &disk.path, &["--partition", "2"], &["--into-partition", "wipefs"]),
        (&bench.image, &disk.path, &["--into-partition", "2"], &["--partition"]),
        (&volume, &disk.path, &[], &["--into-partition", "wipefs"]),
        (
            &bench.image,
            &disk.path,
            &["--partition", "2", "--into-partition", "9"],
            &["no partition 9"],
        ),
        (
            &bench.image,
            &disk.path,
            &["--partition", "2", "--into-partition", "3"],
            &["partition 3 of ", "88080384 bytes are missing"],
        ),
        (&volume, &disk.path, &["--partition", "1", "--into-partition", "2"], &["no partition 1"]),
        (
            &bench.image,
            &disk.path,
            &["--partition", "1", "--into-partition", "2", "--grow", "2"],
            &["no partition to grow"],
        ),
    ];
    for (image, target, flags, words) in cases {
        let before = hash_of(target);
        try_restore(image, target, flags).refused("refused", words);
        let mut planned = vec!["plan", "restore", image.to_str().unwrap()];
        planned.push(target.to_str().unwrap());
        agent(&[&planned[..], flags].concat()).refused("refused", words);
        assert_eq!(hash_of(target), before, "{flags:?}");
    }
    // An image of a volume needs no --partition.
    let before = fs::read(&disk.path).unwrap();
    restore(&volume, &disk.path, &["--into-partition", "2"]);
    let after = fs::read(&disk.path).unwrap();
    let (start, end) = (disk.root.start as usize, (disk.root.start + disk.root.len) as usize);
    assert!(before[..start] == after[..start] && before[end..] == after[end..]);
    let part = bench.path("part");
    take(&disk.path, disk.root, &part);
    run("e2fsprogs", "e2fsck", &["-fn", part.to_str().unwrap()]);
}

#[test]
fn sectors_that_are_larger_than_blocks_are_refused() {
    let bench = Bench::new();
    let other = bench.path("other");
    noise_file(&other, 200 * MIB, 1);
    let device = Loop::new(&other, &["--sector-size", "4096"]);
    run("gdisk", "sgdisk", &["-Z", "-o", "-n1:1M:+150M", device.text()]);
    let before = hash_of(&other);
    let flags = ["--partition", "2", "--into-partition", "1"];
    try_restore(&bench.image, device.path(), &flags)
        .refused("refused", &["logical sectors of 4096 bytes", "blocks have 1024"]);
    assert_eq!(hash_of(&other), before);
}

#[test]
fn in_a_job() {
    let bench = Bench::new();
    let disk = bench.other("dos");
    let job = |action: &str, options: Value| {
        let mut child = worker(&json!({
            "id": "1", "disk": disk.path, "image_url": bench.image, "action": action, "options": options,
        }));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let lines: Vec<String> = lines.map(Result::unwrap).collect();
        child.wait().unwrap();
        serde_json::from_str::<Value>(lines.last().unwrap()).unwrap()["outcome"].clone()
    };
    let planned = job("plan", json!({ "partition": 2, "into_partition": 2 }));
    let text = planned.to_string();
    assert!(text.contains("the table and all other partitions stay"), "{text}");
    let failed = job("restore", json!({ "partition": 2, "into_partition": 7 })).to_string();
    assert!(failed.contains("no partition 7") && failed.contains("refused"), "{failed}");
    let done = job("restore", json!({ "partition": 2, "into_partition": 2, "delta": true }));
    assert!(done.to_string().contains("written_bytes"), "{done}");
    let part = bench.path("part");
    take(&disk.path, disk.root, &part);
    run("e2fsprogs", "e2fsck", &["-fn", part.to_str().unwrap()]);
    let esp = bench.bytes(&disk.path, disk.esp);
    noise_file(&bench.path("noise"), disk.esp.len, disk.esp.start);
    assert!(esp == fs::read(bench.path("noise")).unwrap(), "the ESP is as it was");
}
