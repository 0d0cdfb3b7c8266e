//! Power cuts: what is on a target when a restore is cut off at any moment, and whether that would boot.
//!
//! A restore runs onto a disk whose writes and flushes QEMU's `blklogwrites` logs. From the log every state is made that a power
//! cut may leave: every prefix of the writes, each of them with any one of the writes since the last flush missing, and the
//! writes of tables torn after every sector. A state that firmware or a kernel would take for a system must be the old one, of
//! which nothing but table headers is gone, or the new one, complete. Restores onto a sample of states end bit-identical.
//!
//! `IMPRINT_POWER_CUTS=all` looks at every state of every layout, a part of a layout's name at those of such layouts; otherwise it is every state of two of them, without the
//! missing writes of all but the last prefix.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::agent::{capture, restore};
use crate::devices::Loop;
use crate::disks::{ext4, noise_file};
use crate::faulty::FaultyDisk;
use crate::tools::run;

const MIB: u64 = 1 << 20;
const SECTOR: usize = 512;
/// The disk of every layout.
const LEN: u64 = 8 * MIB;

struct Layout {
    name: &'static str,
    sector_bytes: usize,
    /// The sectors of the disk in the image, where they are others.
    from_bytes: Option<usize>,
    /// How much larger the target is.
    extra: u64,
    make: fn(&str),
    /// What the restore is told beside that.
    flags: &'static [&'static str],
}

fn sfdisk(device: &str, script: &str) {
    run("fdisk", "sh", &["-c", &format!("printf '{script}' | sfdisk -q --no-reread {device}")]);
}

const LAYOUTS: [Layout; 15] = [
    Layout { name: "GPT", sector_bytes: 512, from_bytes: None, extra: 0, make: gpt, flags: &[] },
    Layout {
        name: "MBR with logical partitions",
        sector_bytes: 512,
        from_bytes: None,
        extra: 0,
        make: logical,
        flags: &[],
    },
    Layout {
        name: "GPT onto a larger disk",
        sector_bytes: 512,
        from_bytes: None,
        extra: 3 * MIB,
        make: gpt,
        flags: &[],
    },
    Layout { name: "MBR", sector_bytes: 512, from_bytes: None, extra: 0, make: mbr, flags: &[] },
    Layout {
        name: "hybrid MBR",
        sector_bytes: 512,
        from_bytes: None,
        extra: 0,
        make: hybrid,
        flags: &[],
    },
    Layout {
        name: "bare filesystem",
        sector_bytes: 512,
        from_bytes: None,
        extra: 0,
        make: bare,
        flags: &[],
    },
    Layout {
        name: "GPT, 4096",
        sector_bytes: 4096,
        from_bytes: None,
        extra: 0,
        make: gpt,
        flags: &[],
    },
    Layout {
        name: "GPT onto a larger disk, 4096",
        sector_bytes: 4096,
        from_bytes: None,
        extra: 2 * MIB,
        make: gpt,
        flags: &[],
    },
    Layout {
        name: "MBR, 4096",
        sector_bytes: 4096,
        from_bytes: None,
        extra: 0,
        make: mbr,
        flags: &[],
    },
    Layout {
        name: "one partition",
        sector_bytes: 512,
        from_bytes: None,
        extra: 0,
        make: with_filesystem,
        flags: &["--partition", "2"],
    },
    Layout {
        name: "GPT of a layout file",
        sector_bytes: 512,
        from_bytes: None,
        extra: MIB,
        make: with_filesystem,
        flags: &["--layout", GPT_FILE],
    },
    Layout {
        name: "MBR of a layout file",
        sector_bytes: 512,
        from_bytes: None,
        extra: 0,
        make: with_filesystem,
        flags: &["--layout", MBR_FILE],
    },
    Layout {
        name: "GPT of a layout file, 4096",
        sector_bytes: 4096,
        from_bytes: None,
        extra: MIB,
        make: with_filesystem,
        flags: &["--layout", GPT_FILE],
    },
    Layout {
        name: "GPT of 512 onto 4096",
        sector_bytes: 4096,
        from_bytes: Some(512),
        extra: MIB,
        make: volumes,
        flags: &[],
    },
    Layout {
        name: "GPT of 4096 onto 512",
        sector_bytes: 512,
        from_bytes: Some(4096),
        extra: 0,
        make: volumes,
        flags: &[],
    },
];

/// What stands in place of the names of layout files.
const GPT_FILE: &str = "[[partition]]\nsize = \"1M\"\nformat = \"swap\"\n[[partition]]\nimage-partition = 2\n\
    [[partition]]\nsize = \"rest\"\n";
const MBR_FILE: &str = "table = \"mbr\"\n[[partition]]\nimage-partition = 2\nbootable = true\n\
    [[partition]]\nsize = \"1M\"\nformat = \"swap\"\n";

/// The flags of a layout, its file written.
fn flags(layout: &Layout, folder: &Path) -> Vec<String> {
    let flag = |text: &&str| {
        if !text.contains('\n') {
            return (*text).to_owned();
        }
        let path = folder.join("layout.toml");
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    layout.flags.iter().map(flag).chain(["--scrub-free".to_owned()]).collect()
}

fn gpt(device: &str) {
    let parts = ["-Z", "-o", "-n1:1M:+1M", "-t1:ef02", "-n2:0:+2M", "-t2:ef00", "-n3:0:0"];
    run("gdisk", "sgdisk", &[&parts[..], &[device]].concat());
}

fn hybrid(device: &str) {
    gpt(device);
    run("gdisk", "sgdisk", &["-h", "2:3", device]);
}

fn mbr(device: &str) {
    sfdisk(device, "label: dos\\nstart=1MiB,size=2MiB,bootable\\nstart=3MiB,size=4MiB\\n");
}

fn logical(device: &str) {
    let script = "label: dos\\nstart=1MiB,size=1MiB\\nstart=2MiB,size=6MiB,type=5\\nstart=3MiB,size=2MiB\\nstart=6MiB\\n";
    sfdisk(device, script);
}

fn bare(device: &str) {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("fs");
    ext4(&made, LEN, dir.path());
    run("coreutils", "cp", &[made.to_str().unwrap(), device]);
}

/// A GPT with an ext4 of 4 MiB in its second partition.
fn with_filesystem(device: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (made, tree) = (dir.path().join("fs"), dir.path().join("tree"));
    fs::create_dir(&tree).unwrap();
    noise_file(&tree.join("file"), MIB, 3);
    let (text, from) = (made.to_str().unwrap(), tree.to_str().unwrap());
    run("e2fsprogs", "mke2fs", &["-q", "-F", "-t", "ext4", "-d", from, text, "4M"]);
    run("gdisk", "sgdisk", &["-Z", "-o", "-n1:1M:+1M", "-n2:2M:+4M", device]);
    let (from, to) = (format!("if={text}"), format!("of={device}"));
    run("coreutils", "dd", &[&from, &to, "bs=1M", "seek=2", "conv=notrunc", "status=none"]);
}

/// A GPT with an ext4 and a FAT that work on sectors of both sizes; the FAT, with sectors of 4096 bytes, gets other boot sectors on smaller ones.
fn volumes(device: &str) {
    let dir = tempfile::tempdir().unwrap();
    let made = ["fat", "ext"].map(|name| dir.path().join(name));
    let [fat, ext] = [0, 1].map(|n| made[n].to_str().unwrap());
    noise_file(&made[0], 2 * MIB, 3);
    run("dosfstools", "mkfs.vfat", &["-S", "4096", fat]);
    run("e2fsprogs", "mke2fs", &["-q", "-F", "-t", "ext4", "-b", "4096", ext, "4M"]);
    run("gdisk", "sgdisk", &["-Z", "-o", "-n1:1M:+2M", "-t1:ef00", "-n2:3M:+4M", device]);
    for (file, at) in [(fat, "seek=1"), (ext, "seek=3")] {
        let (from, to) = (format!("if={file}"), format!("of={device}"));
        run("coreutils", "dd", &[&from, &to, "bs=1M", at, "conv=notrunc", "status=none"]);
    }
}

/// Makes a disk of this layout in a file full of noise.
fn make(layout: &Layout, path: &Path) {
    noise_file(path, LEN, 1);
    match layout.from_bytes {
        None if layout.sector_bytes == SECTOR => (layout.make)(path.to_str().unwrap()),
        from => {
            // No code for a BIOS, which larger sectors would be refused for.
            if from.is_some() {
                File::options().write(true).open(path).unwrap().write_all_at(&[0; 512], 0).unwrap();
            }
            let size = from.unwrap_or(layout.sector_bytes).to_string();
            let device = Loop::new(path, &["--sector-size", &size]);
            (layout.make)(device.path().to_str().unwrap());
        }
    }
}

/// A write, or a flush: an empty one.
struct Entry {
    offset: usize,
    bytes: Vec<u8>,
}

/// Reads a log of `blklogwrites`: the format of dm-log-writes (`struct log_write_super` and `log_write_entry` in
/// drivers/md/dm-log-writes.c), with entries of one sector in front of their data.
fn read_log(path: &Path) -> Vec<Entry> {
    let log = fs::read(path).unwrap();
    let word = |at: usize| u64::from_le_bytes(log[at..at + 8].try_into().unwrap()) as usize;
    assert_eq!(word(0), 0x6a_7366_7773_6872, "the magic number");
    assert_eq!(word(24) as u32, 512, "the sector size");
    let mut at = SECTOR;
    (0..word(16))
        .map(|_| {
            let (sector, sectors, flags) = (word(at), word(at + 8), word(at + 16));
            at += SECTOR;
            let len = if flags & 4 == 0 { sectors * SECTOR } else { 0 };
            let bytes = log[at..at + len].to_vec();
            at += len;
            Entry { offset: sector * SECTOR, bytes }
        })
        .collect()
}

/// Restores onto `target` with its writes logged.
fn logged_restore(layout: &Layout, image: &Path, target: &Path, folder: &Path) -> Vec<Entry> {
    let log = folder.join("log");
    fs::write(&log, "").unwrap();
    let target = format!("driver=file,node-name=file,filename={}", target.display());
    let log_file = format!("driver=file,node-name=log,filename={}", log.display());
    let top = "driver=blklogwrites,node-name=top,file=file,log=log";
    let options = [("--blockdev", &*target), ("--blockdev", &*log_file), ("--blockdev", top)];
    let size = layout.sector_bytes.to_string();
    let disk =
        FaultyDisk::export(&options, folder).attached(&["--direct-io=off", "--sector-size", &size]);
    let name = disk.path().file_name().unwrap().to_str().unwrap();
    fs::write(format!("/sys/block/{name}/queue/max_sectors_kb"), "64").unwrap();
    let flags = flags(layout, folder);
    restore(image, disk.path(), &flags.iter().map(String::as_str).collect::<Vec<_>>());
    drop(disk);
    read_log(&log)
}

fn crc32(bytes: &[u8]) -> u32 {
    crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(bytes)
}

/// Whether there is a GPT header at this sector whose checksums are right.
fn gpt_at(disk: &[u8], sector: usize, lba: usize) -> bool {
    let header = &disk[lba * sector..][..sector];
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
    if &header[..8] != b"EFI PART" || !(92..=512).contains(&word(12)) {
        return false;
    }
    let mut checked = header[..word(12) as usize].to_vec();
    checked[16..20].fill(0);
    let (entries, count, len) = (word(72) as usize, word(80) as usize, word(84) as usize);
    let entries = disk.get(entries * sector..entries * sector + count * len);
    crc32(&checked) == word(16) && entries.is_some_and(|e| crc32(e) == word(88))
}

/// Whether firmware or a kernel would find something: a boot sector, a copy of a GPT (also without its protective MBR, which
/// only careless firmware accepts), or a filesystem on the bare disk.
fn is_recognised(disk: &[u8], sector: usize) -> bool {
    disk[510..512] == [0x55, 0xAA]
        || gpt_at(disk, sector, 1)
        || gpt_at(disk, sector, disk.len() / sector - 1)
        || disk[1080..1082] == [0x53, 0xEF]
        || &disk[..4] == b"XFSB"
        || &disk[4086..4096] == b"SWAPSPACE2"
        || &disk[0x10040..0x10048] == b"_BHRfS_M"
}

/// Some sectors, and their hashes.
struct Patch {
    offset: usize,
    bytes: Vec<u8>,
    hashes: Vec<u64>,
}

impl Patch {
    fn new(entry: &Entry) -> Self {
        let sectors = entry.bytes.chunks(SECTOR).zip(entry.offset / SECTOR..);
        let hashes = sectors.map(|(bytes, at)| sector_hash(at, bytes)).collect();
        Self { offset: entry.offset, bytes: entry.bytes.clone(), hashes }
    }

    fn end(&self) -> usize {
        self.offset + self.bytes.len()
    }
}

/// The states of one restore.
struct Replay {
    sector: usize,
    old: Vec<u8>,
    new: Vec<u8>,
    disk: Vec<u8>,
    /// Of each sector's content and place, and their sum, which names the state.
    hashes: Vec<u64>,
    sum: u64,
    seen: HashSet<u64>,
    recognised: usize,
}

fn sector_hash(at: usize, bytes: &[u8]) -> u64 {
    bytes.chunks_exact(8).fold(at as u64 ^ 0x9E37_79B9_7F4A_7C15, |hash, word| {
        (hash ^ u64::from_le_bytes(word.try_into().unwrap()))
            .wrapping_mul(0xFF51_AFD7_ED55_8CCD)
            .rotate_left(29)
    })
}

impl Replay {
    fn new(old: Vec<u8>, new: Vec<u8>, sector: usize) -> Self {
        let hashes: Vec<u64> =
            old.chunks(SECTOR).enumerate().map(|(at, bytes)| sector_hash(at, bytes)).collect();
        let sum = hashes.iter().fold(0, |sum: u64, hash| sum.wrapping_add(*hash));
        let disk = old.clone();
        Self { sector, old, new, disk, hashes, sum, seen: HashSet::new(), recognised: 0 }
    }

    /// What is on the disk there.
    fn current(&self, offset: usize, len: usize) -> Patch {
        let sectors = offset / SECTOR..(offset + len) / SECTOR;
        let (bytes, hashes) =
            (self.disk[offset..offset + len].to_vec(), self.hashes[sectors].to_vec());
        Patch { offset, bytes, hashes }
    }

    /// Puts the part of a patch that lies in this range onto the disk.
    fn apply(&mut self, patch: &Patch, start: usize, end: usize) {
        let (start, end) = (start.max(patch.offset), end.min(patch.end()));
        if start >= end {
            return;
        }
        let within = start - patch.offset..end - patch.offset;
        self.disk[start..end].copy_from_slice(&patch.bytes[within.clone()]);
        for (at, n) in (start / SECTOR..end / SECTOR).zip(within.start / SECTOR..) {
            let hash = patch.hashes[n];
            self.sum = self.sum.wrapping_sub(self.hashes[at]).wrapping_add(hash);
            self.hashes[at] = hash;
        }
    }

    fn judge(&mut self, what: &str) {
        if !self.seen.insert(self.sum) || !is_recognised(&self.disk, self.sector) {
            return;
        }
        self.recognised += 1;
        let end = self.disk.len();
        // Headers of a GPT may be gone from the old system, or have come of the new one; LBA 0 makes the new one complete.
        let is_old = self.disk[8192..end - 4096] == self.old[8192..end - 4096];
        let tables = MIB as usize..end - 64 * 1024;
        let lba0 = self.disk[510..512] == [0x55, 0xAA];
        let is_new = if lba0 {
            self.disk[self.sector..] == self.new[self.sector..]
        } else {
            self.disk[tables.clone()] == self.new[tables]
        };
        assert!(is_old || is_new, "{what}: half of a system would be booted");
    }

    /// All states of an epoch, the writes between two flushes. With `all`, each prefix with each of its writes missing.
    fn epoch(&mut self, writes: &[Entry], all: bool, what: &str) {
        let writes: Vec<Patch> = writes.iter().map(Patch::new).collect();
        let mut before = Vec::new();
        for (n, write) in writes.iter().enumerate() {
            before.push(self.current(write.offset, write.bytes.len()));
            // Tables and labels are torn; of the many writes of content it would be too much.
            let step = if writes.len() <= 16 { SECTOR } else { write.bytes.len() };
            for at in (write.offset..write.end()).step_by(step) {
                self.apply(write, at, at + step);
                self.judge(what);
            }
            let missing = if all || n + 1 == writes.len() { n } else { 0 };
            for skipped in 0..missing {
                let (start, end) = (writes[skipped].offset, writes[skipped].end());
                let whole = self.current(start, end - start);
                self.apply(&before[skipped], start, end);
                writes[skipped + 1..=n].iter().for_each(|later| self.apply(later, start, end));
                self.judge(what);
                self.apply(&whole, start, end);
            }
        }
    }
}

/// Cuts a restore of one layout off everywhere; how many distinct states there were.
fn cut(layout: &Layout, all: bool) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let (source, image, target) =
        (dir.path().join("s"), dir.path().join("a.img.zst"), dir.path().join("t"));
    make(layout, &source);
    let size = layout.from_bytes.unwrap_or(layout.sector_bytes).to_string();
    let device = Loop::new(&source, &["--sector-size", &size]);
    capture(device.path(), &image, &[]);
    drop(device);
    let size = layout.sector_bytes.to_string();
    // An older system, of another layout, that boots.
    noise_file(&target, LEN + layout.extra, 2);
    let text = target.to_str().unwrap();
    if layout.name == "one partition" {
        bare(text);
    } else if layout.name.contains("GPT") || layout.sector_bytes != SECTOR {
        sfdisk(text, "label: dos\\nstart=1MiB,size=3MiB,bootable\\nstart=5MiB,size=2MiB\\n");
    } else {
        run("gdisk", "sgdisk", &["-Z", "-o", "-n1:2048:+2M", "-t1:ef00", "-n2:0:0", text]);
    }
    let old = fs::read(&target).unwrap();
    assert!(is_recognised(&old, layout.sector_bytes));
    let log = logged_restore(layout, &image, &target, dir.path());
    let new = fs::read(&target).unwrap();
    assert!(is_recognised(&new, layout.sector_bytes));

    let mut replay = Replay::new(old, new.clone(), layout.sector_bytes);
    replay.judge(layout.name);
    let epochs: Vec<&[Entry]> = log.split(|entry| entry.bytes.is_empty()).collect();
    let cuts = [2, epochs.len() / 2, epochs.len() - 3];
    let mut samples = Vec::new();
    for (n, epoch) in epochs.iter().enumerate() {
        if cuts.contains(&n) {
            // In the middle of it, with its first write missing.
            let was: Vec<_> = epoch.iter().take(epoch.len() / 2).skip(1).collect();
            let mut disk = replay.disk.clone();
            was.iter()
                .for_each(|e| disk[e.offset..e.offset + e.bytes.len()].copy_from_slice(&e.bytes));
            samples.push(disk);
        }
        replay.epoch(epoch, all, layout.name);
    }
    assert!(replay.disk == new, "the log is not what was written");
    for disk in samples {
        fs::write(&target, disk).unwrap();
        let device = Loop::new(&target, &["--sector-size", &size]);
        let flags = flags(layout, dir.path());
        restore(&image, device.path(), &flags.iter().map(String::as_str).collect::<Vec<_>>());
        drop(device);
        let again = fs::read(&target).unwrap();
        // A new table has the identities of its disk, which for a loop device is its name: another one now.
        let same = if layout.name.contains("layout file") {
            MIB as usize..(LEN + layout.extra - MIB) as usize
        } else {
            0..new.len()
        };
        assert!(again[same.clone()] == new[same], "{}: run again, it differs", layout.name);
    }
    println!(
        "{}: {} writes, {} distinct states, {} of them boot, each a whole system",
        layout.name,
        log.iter().filter(|entry| !entry.bytes.is_empty()).count(),
        replay.seen.len(),
        replay.recognised
    );
    replay.seen.len()
}

#[test]
fn a_power_cut_leaves_a_whole_system_or_none() {
    let asked = std::env::var("IMPRINT_POWER_CUTS").ok();
    let layouts: Vec<&Layout> = match asked.as_deref() {
        None => LAYOUTS[..2].iter().collect(),
        Some("all") => LAYOUTS.iter().collect(),
        Some(name) => LAYOUTS.iter().filter(|layout| layout.name.contains(name)).collect(),
    };
    assert!(!layouts.is_empty(), "no layout of that name");
    let states: usize = layouts.iter().map(|layout| cut(layout, asked.is_some())).sum();
    println!("{} layouts, {states} distinct states", layouts.len());
    if asked.as_deref() == Some("all") {
        assert!(states >= 12_109, "{states}");
    }
}
