//! Block devices: partitions that the kernel sees, devices in use, sectors of 4096 bytes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ramdisk_agent::buffer::AlignedBuf;
use ramdisk_agent::disk::Disk;

use crate::agent::{agent, capture, restore, try_capture, try_restore};
use crate::disks::{self, noise_file};
use crate::faulty::FaultyDisk;
use crate::round_trip::restored;
use crate::tools::run;

/// How long others may have a loop device that is to be detached.
const DETACHED_WITHIN: Duration = Duration::from_secs(5);

/// A loop device over a file; detached when dropped.
#[derive(Debug)]
pub struct Loop(pub PathBuf);

impl Loop {
    pub fn new(file: &Path, flags: &[&str]) -> Self {
        let args = [&["--find", "--show"], flags, &[file.to_str().unwrap()]].concat();
        Self(run("util-linux", "losetup", &args).trim().into())
    }

    /// Has the kernel read the partition table; not every kernel does so by itself. When somebody has just detached a device of this
    /// number, the kernel may take away some of the new partitions with the old ones, even a moment later: then once more, until all are
    /// there and stay.
    pub fn find_partitions(&self) {
        let shown =
            run("util-linux", "partx", &["--show", "--noheadings", "--output", "NR", self.text()]);
        let nodes: Vec<String> =
            shown.split_whitespace().map(|number| format!("{}p{number}", self.text())).collect();
        let are_there = || nodes.iter().all(|node| Path::new(node).exists());
        for _ in 0..50 {
            run("util-linux", "partx", &["--update", self.text()]);
            let came = are_there();
            std::thread::sleep(Duration::from_millis(100));
            if came && are_there() {
                return;
            }
        }
        panic!("the kernel does not make {nodes:?}");
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn text(&self) -> &str {
        self.0.to_str().unwrap()
    }

    /// The file behind it; `None` once it is detached.
    fn file(&self) -> Option<String> {
        let name = self.0.file_name()?.to_str()?;
        fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let file = self.file();
        // While somebody else has it open, say another test's agent that lists all disks, it is detached with the last of them, and what
        // was written through it is not in the file before. Both fail only if it is gone already.
        let _ = crate::tools::status("util-linux", "blockdev", &["--flushbufs", self.text()]);
        let _ = crate::tools::status("util-linux", "losetup", &["--detach", self.text()]);
        let start = Instant::now();
        while file.is_some() && self.file() == file && start.elapsed() < DETACHED_WITHIN {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A mounted filesystem.
pub struct Mounted(PathBuf);

impl Mounted {
    pub fn new(device: &str, at: &Path, options: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        run("mount", "mount", &["-o", options, device, at.to_str().unwrap()]);
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("mount", "umount", &[self.0.to_str().unwrap()]);
    }
}

/// Every file below a folder: owner, mode, times, links, extended attributes, content.
pub fn inventory(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let content = if meta.is_dir() {
                folders.push(path.clone());
                String::new()
            } else if meta.is_symlink() {
                fs::read_link(&path).unwrap().display().to_string()
            } else {
                blake3::hash(&fs::read(&path).unwrap()).to_string()
            };
            let mut names = vec![0_u8; 4096];
            let len = rustix::fs::llistxattr(&path, &mut names[..]).unwrap();
            let mut attributes = String::new();
            for name in names[..len].split(|b| *b == 0).filter(|n| !n.is_empty()) {
                let name = std::str::from_utf8(name).unwrap();
                let mut value = vec![0_u8; 4096];
                let len = rustix::fs::lgetxattr(&path, name, &mut value[..]).unwrap();
                attributes += &format!("{name}={:?} ", &value[..len]);
            }
            let facts = format!(
                "{:o} {}:{} {} links {} times {}.{} {}.{} blocks {} {attributes}{content}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.len(),
                meta.nlink(),
                meta.mtime(),
                meta.mtime_nsec(),
                meta.ctime(),
                meta.ctime_nsec(),
                meta.blocks(),
            );
            found.insert(path.strip_prefix(folder).unwrap().to_owned(), facts);
        }
    }
    found
}

#[test]
fn the_kernel_mounts_what_was_restored_and_every_file_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = restored(dir.path());
    let target = dir.path().join("t");
    noise_file(&target, disk.len, 1);
    let device = Loop::new(&target, &[]);
    restore(&image, &device.0, &[]);
    let source = Loop::new(&disk.path, &["--read-only"]);
    device.find_partitions();
    source.find_partitions();
    let trees = [&source, &device].map(|device| {
        let at = dir.path().join("mnt");
        let partition = format!("{}p2", device.text());
        let _mounted = Mounted::new(&partition, &at, "ro,noload");
        inventory(&at)
    });
    assert!(trees[0].len() > 60);
    assert_eq!(trees[0], trees[1]);
}

#[test]
fn the_cache_beneath_a_loop_device_is_out_of_the_way_for_a_while() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t");
    disks::noise_file(&file, 4 << 20, 1);
    let dio = |device: &Path| {
        let name = device.file_name().unwrap().to_str().unwrap();
        fs::read_to_string(format!("/sys/block/{name}/loop/dio")).unwrap().trim().to_owned()
    };
    let device = Loop::new(&file, &["--direct-io=off"]);
    let disk = Disk::open_target(&device.0).unwrap();
    assert!(disk.file_beneath_for_writing().is_none());
    let direct = disk.direct_backing().unwrap();
    assert_eq!(dio(&device.0), "1");
    let beneath = disk.file_beneath_for_writing().unwrap();
    let written = AlignedBuf::new(1 << 20);
    beneath.write_direct(written.as_slice(), 1 << 20).unwrap();
    let mut read = AlignedBuf::new(1 << 20);
    disk.read_direct(read.as_mut_slice(), 1 << 20).unwrap();
    assert!(read.as_slice() == written.as_slice());
    drop((beneath, direct));
    assert_eq!(dio(&device.0), "0");
    drop((disk, device));
    // Its first sector is another one of the file.
    let device = Loop::new(&file, &["--direct-io=on", "--offset", "1048576"]);
    assert!(Disk::open_target(&device.0).unwrap().file_beneath_for_writing().is_none());
    drop(device);
    // Whoever has it on keeps it on.
    let device = Loop::new(&file, &["--direct-io=on"]);
    assert!(Disk::open_target(&device.0).unwrap().direct_backing().is_none());
    assert_eq!(dio(&device.0), "1");
    assert!(Disk::open_target(&device.0).unwrap().file_beneath_for_writing().is_some());
    // A file that a program answers for, which may be busy with one request at a time.
    let faulty = FaultyDisk::target(&file, dir.path(), &[]);
    assert!(Disk::open_target(faulty.path()).unwrap().direct_backing().is_none());
    assert!(Disk::open_target(faulty.path()).unwrap().file_beneath_for_writing().is_none());
    // It has locks of its own.
    assert!(Disk::open_target(&file).unwrap_err().to_string().contains("qemu-storage"));
    drop(faulty);
    let served = FaultyDisk::file(&file, dir.path(), &[]);
    let by_link = dir.path().join("link");
    std::os::unix::fs::symlink(served.path(), &by_link).unwrap();
    for path in [served.path(), &by_link] {
        assert!(!Disk::open_source(path).unwrap().is_read_past_cache());
    }
    drop(served);
    drop(device);
    assert!(Disk::open_source(&file).unwrap().is_read_past_cache());
    assert!(Disk::open_target(&file).unwrap().direct_backing().is_none());
}

/// Where direct I/O is not switched on.
#[test]
fn what_is_cached_beneath_a_loop_device_is_dropped() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = dir.path().join("t");
    disks::noise_file(&file, 4 << 20, 1);
    let device = Loop::new(&file, &["--direct-io=off"]);
    let disk = Disk::open_target(&device.0).unwrap();
    let cached = || {
        let args = ["--noheadings", "--output", "PAGES", file.to_str().unwrap()];
        run("util-linux", "fincore", &args).trim().parse::<u64>().unwrap()
    };
    fs::read(&device.0).unwrap();
    disk.flush().unwrap();
    assert_eq!(cached(), 1024);
    disk.drop_cache();
    assert_eq!(cached(), 0);
    assert_eq!(disk.lasting_backing_cache(), None);
    // Another file of that name is not it.
    fs::rename(&file, dir.path().join("moved")).unwrap();
    assert_eq!(disk.lasting_backing_cache(), None);
    fs::remove_file(dir.path().join("moved")).unwrap();
    assert!(disk.lasting_backing_cache().is_some());
    fs::write(&file, "another").unwrap();
    assert!(disk.lasting_backing_cache().is_some());
}

/// Somebody has it open, so that the kernel keeps what was read of it, and it was written another way.
#[test]
fn what_is_on_a_target_is_not_told_from_an_old_cache() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (disk, image) = (dir.path().join("s"), dir.path().join("a.img.zst"));
    noise_file(&disk, 2 << 20, 1);
    capture(&disk, &image, &[]);
    let file = dir.path().join("t");
    fs::File::create(&file).unwrap().set_len(8 << 20).unwrap();
    let device = Loop::new(&file, &["--direct-io=off"]);
    let open = fs::File::open(&device.0).unwrap();
    let read_whole = || fs::read(&device.0).unwrap();
    let planned = || agent(&["plan", "restore", "--json", image.to_str().unwrap(), device.text()]);
    read_whole();
    assert_eq!(planned().json()["destroys"], serde_json::json!([]));
    read_whole();
    run("gdisk", "sgdisk", &["-o", "-n1:2048:0", file.to_str().unwrap()]);
    planned().refused("refused", &["a disk with partitions"]);
    read_whole();
    run("gdisk", "sgdisk", &["-d1", "-n2:2048:0", file.to_str().unwrap()]);
    Disk::open_target(&device.0).unwrap().into_partition(2).unwrap();
    drop(open);
}

#[test]
fn one_partition_of_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, _) = restored(dir.path());
    let device = Loop::new(&disk.path, &[]);
    device.find_partitions();
    let partition = PathBuf::from(format!("{}p2", device.text()));
    let (image, target) = (dir.path().join("root.img.zst"), dir.path().join("t"));
    let captured = capture(&partition, &image, &[]);
    assert_eq!(captured["disk_bytes"].as_u64(), Some(disk.root.len));
    noise_file(&target, disk.root.len, 2);
    restore(&image, &target, &[]);
    run("e2fsprogs", "e2fsck", &["-fn", target.to_str().unwrap()]);
    // And back into its place, where only it changes.
    restore(&image, &partition, &[]);
    run("e2fsprogs", "e2fsck", &["-fn", partition.to_str().unwrap()]);
    drop(device);
    disks::judge(&disk, &disk.path, dir.path());
}

#[test]
fn devices_in_use_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = restored(dir.path());
    let device = Loop::new(&disk.path, &[]);
    device.find_partitions();
    let partition = format!("{}p2", device.text());
    let before = blake3::hash(&fs::read(&disk.path).unwrap());
    {
        let _mounted = Mounted::new(&partition, &dir.path().join("mnt"), "ro,noload");
        try_restore(&image, &device.0, &[]).refused("refused", &[device.text()]);
        try_restore(&image, Path::new(&partition), &[]).refused("refused", &[]);
    }
    assert_eq!(blake3::hash(&fs::read(&disk.path).unwrap()), before);
    {
        // Through a loop device over the partition, and by the file beneath the loop device.
        let above = Loop::new(Path::new(&partition), &["--read-only"]);
        let _mounted = Mounted::new(above.text(), &dir.path().join("mnt"), "ro,noload");
        try_restore(&image, &device.0, &[]).refused("refused", &[above.text()]);
        try_restore(&image, &disk.path, &[]).refused("refused", &[above.text(), device.text()]);
    }
    assert_eq!(blake3::hash(&fs::read(&disk.path).unwrap()), before);
    let _mounted = Mounted::new(&partition, &dir.path().join("mnt"), "rw");
    let other = dir.path().join("b.img.zst");
    try_capture(&device.0, &other, &[]).refused("refused", &["mounted"]);
}

/// A process with a mount namespace of its own, which begins as a copy of ours.
struct Namespace(std::process::Child);

impl Namespace {
    fn new() -> Self {
        let args = ["--mount", "--propagation", "private", "sleep", "600"];
        let child = std::process::Command::new("unshare").args(args).spawn().unwrap();
        let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).unwrap();
        let process = child.id().to_string();
        while namespace(&process) == namespace("self") {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Self(child)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn what_a_container_has_mounted_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = restored(dir.path());
    let device = Loop::new(&disk.path, &[]);
    device.find_partitions();
    let other = dir.path().join("b.img.zst");
    let mounted = Mounted::new(&format!("{}p2", device.text()), &dir.path().join("mnt"), "rw");
    let container = Namespace::new();
    // Nothing of it is left in our own namespace.
    drop(mounted);
    let process = format!("process {} (sleep)", container.0.id());
    for disk in [&device.0, &disk.path] {
        try_capture(disk, &other, &[]).refused("refused", &["mounted", &process]);
        try_restore(&image, disk, &[]).refused("refused", &[]);
    }
    drop(container);
    assert!(!other.exists());
}

#[test]
fn sectors_of_4096_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("s"), dir.path().join("t"));
    noise_file(&source, 96 << 20, 1);
    let device = Loop::new(&source, &["--sector-size", "4096"]);
    run(
        "gdisk",
        "sgdisk",
        &["-o", "-n1:256:+16M", "-t1:ef00", "-n2:0:0", "-t2:8300", device.text()],
    );
    device.find_partitions();
    let parts = [1, 2].map(|n| format!("{}p{n}", device.text()));
    run("dosfstools", "mkfs.vfat", &["-S", "4096", &parts[0]]);
    run("e2fsprogs", "mke2fs", &["-q", "-t", "ext4", &parts[1]]);
    let image = dir.path().join("a.img.zst");
    let captured = capture(&device.0, &image, &[]);
    assert_eq!(captured["raw"].as_array().unwrap().len(), 0, "{captured:#}");
    drop(device);

    noise_file(&target, (96 << 20) + 8192, 2);
    let plain = Loop::new(&target, &[]);
    restore(&image, &plain.0, &[]);
    drop(plain);
    let device = Loop::new(&target, &["--sector-size", "4096"]);
    restore(&image, &device.0, &[]);
    device.find_partitions();
    let verdict = run("gdisk", "sgdisk", &["-v", device.text()]);
    assert!(verdict.contains("No problems found"), "{verdict}");
    run("dosfstools", "fsck.vfat", &["-n", &format!("{}p1", device.text())]);
    run("e2fsprogs", "e2fsck", &["-fn", &format!("{}p2", device.text())]);
}
