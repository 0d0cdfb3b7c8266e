//! FAT filesystems made by mkfs.fat and filled by mtools.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use ramdisk_agent::fs::{Clean, FsKind, Taken};

use crate::noise::{Noise, seeds};
use crate::oracle::{expect_map, fill_free, look};
use crate::tools::{blkid, run};
use crate::tree::{Shape, assert_same, plant, snapshot};

/// A volume in a folder that goes with it.
pub struct Fat {
    folder: tempfile::TempDir,
    pub volume: PathBuf,
    pub what: String,
}

impl Fat {
    /// Formats a volume with options that the seed decides.
    pub fn make(bits: u32, noise: &mut Noise, seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path().join("fat");
        let sectors: &[u64] =
            if bits == 32 { &[512, 512, 512, 1024] } else { &[512, 512, 512, 1024, 2048, 4096] };
        let sector = *noise.pick(sectors);
        let largest = 32_768 / sector;
        let per_cluster = 1
            << noise.below(match bits {
                12 => 5,
                16 => 3,
                _ => 1,
            });
        let per_cluster = per_cluster.min(largest);
        let clusters = match bits {
            12 => 200 + noise.below(3_700),
            16 => 4_300 + noise.below(12_000),
            // With fewer, mtools takes it for FAT16.
            _ => 66_000 + noise.below(20_000),
        };
        let len = (clusters * per_cluster + 600) * sector + 512 * noise.below(2);
        let len = if bits == 12 { len.min(4_000 * per_cluster * sector) } else { len };
        let len = len / sector * sector;
        File::create(&volume).unwrap().set_len(len + 700 * noise.below(3)).unwrap();
        let mut args = vec!["-F".to_owned(), bits.to_string(), "-S".into(), sector.to_string()];
        args.extend(["-s".into(), per_cluster.to_string(), "-n".into(), format!("VOL{seed}")]);
        for (option, values) in [("-f", ["1", "2"]), ("-R", ["48", "64"])] {
            if noise.chance(3) {
                args.extend([option.into(), noise.pick(&values).to_string()]);
            }
        }
        if bits != 32 && noise.chance(3) {
            args.extend(["-r".into(), "256".into()]);
        }
        if noise.chance(3) {
            args.push("-a".into());
        }
        args.push(volume.to_str().unwrap().into());
        args.push((len / 1024).to_string());
        run("dosfstools", "mkfs.fat", &args);
        Self { folder, volume, what: format!("seed {seed}: mkfs.fat {}", args.join(" ")) }
    }

    fn mtools(&self, tool: &str, args: &[&str]) -> String {
        let mut all = vec!["-i", self.volume.to_str().unwrap()];
        all.extend(args);
        run("mtools", tool, &all)
    }

    /// Copies a random tree in, removes some of it, copies more.
    pub fn populate(&self, noise: &mut Noise) {
        for (round, share) in [(0, 3), (1, 4)] {
            let source = self.folder.path().join(format!("source{round}"));
            fs::create_dir(&source).unwrap();
            let bytes = fs::metadata(&self.volume).unwrap().len() / share / 2;
            let files = plant(&source, &Shape { bytes, files: 40, unix: false }, noise);
            self.mtools("mmd", &[&format!("::t{round}")]);
            self.mtools("mcopy", &["-s", "-m", source.to_str().unwrap(), &format!("::t{round}/")]);
            let removed: Vec<_> = files
                .iter()
                .filter(|_| round == 0 && noise.chance(3))
                .map(|file| format!("::t{round}/source{round}/{file}"))
                .collect();
            if !removed.is_empty() {
                self.mtools("mdel", &removed.iter().map(String::as_str).collect::<Vec<_>>());
            }
        }
        self.mtools("mmd", &["::empty"]);
        // Several clusters, so that a wrong cluster size shows.
        let big = self.folder.path().join("big");
        fs::write(&big, noise.bytes(70_000)).unwrap();
        self.mtools("mcopy", &[big.to_str().unwrap(), "::big"]);
    }

    /// All files, as mtools finds them.
    pub fn files(&self, name: &str) -> std::collections::BTreeMap<PathBuf, crate::tree::Node> {
        let out = self.folder.path().join(name);
        fs::create_dir(&out).unwrap();
        self.mtools("mcopy", &["-s", "-n", "-Q", "::*", out.to_str().unwrap()]);
        snapshot(&out)
    }

    /// Must find nothing; gives the numbers of used and of all clusters.
    pub fn check(&self) -> (u64, u64) {
        let report = run("dosfstools", "fsck.fat", &["-n", "-v", self.volume.to_str().unwrap()]);
        let numbers =
            report.lines().last().unwrap().rsplit_once(' ').unwrap().0.rsplit_once(' ').unwrap().1;
        let (used, all) = numbers.split_once('/').unwrap();
        (used.parse().unwrap(), all.parse().unwrap())
    }
}

fn oracle(bits: u32, kind: FsKind) {
    for seed in seeds(u64::from(bits)) {
        let mut noise = Noise::new(seed);
        let fat = Fat::make(bits, &mut noise, seed);
        fat.populate(&mut noise);
        let what = &fat.what;
        let (used, all) = fat.check();
        let before = fat.files("before");
        assert!(before.len() > 20, "{what}: only {} files", before.len());

        let map = expect_map(&fat.volume, kind, what);
        let cluster = u64::from(map.block_bytes);
        assert_eq!(map.uuid, blkid(&fat.volume, "UUID"), "{what}");
        assert_eq!(map.label, blkid(&fat.volume, "LABEL"), "{what}");
        let filled = fill_free(&fat.volume, &map, &mut noise);
        assert_eq!(filled, (all - used) * cluster, "{what}: bytes that are free");

        assert_eq!(fat.check(), (used, all), "{what}");
        assert_same(&before, &fat.files("after"), what);
    }
}

#[test]
fn fat12_survives_noise_in_its_free_space() {
    oracle(12, FsKind::Fat12);
}

#[test]
fn fat16_survives_noise_in_its_free_space() {
    oracle(16, FsKind::Fat16);
}

#[test]
fn fat32_survives_noise_in_its_free_space() {
    oracle(32, FsKind::Fat32);
}

fn raw_reason(volume: &Path) -> String {
    match look(volume).taken {
        Taken::Raw { reason } => reason,
        Taken::Map => panic!("it was mapped"),
    }
}

fn patch(volume: &Path, at: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    fs::OpenOptions::new().write(true).open(volume).unwrap().write_all_at(bytes, at).unwrap();
}

#[test]
fn damage_that_fsck_would_find_is_taken_raw() {
    let folder = tempfile::tempdir().unwrap();
    let volume = folder.path().join("fat");
    let path = volume.to_str().unwrap();
    // 2 KiB clusters; tables at sectors 4 and 36; the root directory behind them at sector 68.
    let fresh = || {
        File::create(&volume).unwrap().set_len(16 << 20).unwrap();
        run("dosfstools", "mkfs.fat", &["-F", "16", "-s", "4", "-R", "4", "-r", "512", path]);
        let file = folder.path().join("file");
        fs::write(&file, vec![7; 9_000]).unwrap();
        run("mtools", "mcopy", &["-i", path, file.to_str().unwrap(), "::a"]);
        run("mtools", "mcopy", &["-i", path, file.to_str().unwrap(), "::b"]);
    };
    let (first, second, root) = (4 * 512, 36 * 512, 68 * 512);
    let both = |at: u64, bytes: &[u8]| {
        patch(&volume, first + at, bytes);
        patch(&volume, second + at, bytes);
    };
    fresh();
    assert_eq!(look(&volume).taken, Taken::Map);
    patch(&volume, first + 2000, &[1]);
    assert!(raw_reason(&volume).contains("the copies of the table differ at entry 1000"));

    fresh();
    both(4 * 2, &[0, 0]);
    assert!(raw_reason(&volume).contains("cluster 4 is in use but marked as free"));

    fresh();
    both(6 * 2, &[2, 0]);
    assert!(raw_reason(&volume).contains("cluster 2 is in two chains"));

    fresh();
    both(6 * 2, &[8, 0]);
    assert!(raw_reason(&volume).contains("cluster 8 is in two chains"));

    fresh();
    patch(&volume, root + 26, &[9, 0]);
    assert!(raw_reason(&volume).contains("in two chains"));

    fresh();
    patch(&volume, root + 28, &[0, 0, 1, 0]);
    assert!(raw_reason(&volume).contains("65536 bytes in 5 clusters"));
}

#[test]
fn a_volume_that_was_not_unmounted_says_so() {
    for (bits, state_byte, table) in [("16", 37, 4), ("32", 65, 32)] {
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path().join("fat");
        File::create(&volume).unwrap().set_len(48 << 20).unwrap();
        let path = volume.to_str().unwrap();
        run(
            "dosfstools",
            "mkfs.fat",
            &["-F", bits, "-s", "1", "-R", &table.to_string(), path].map(|a| {
                // Clusters of 512 bytes would be too many for FAT16.
                if bits == "16" && a == "1" { "2" } else { a }
            }),
        );
        assert_eq!(look(&volume).clean, Clean::Clean);
        patch(&volume, state_byte, &[1]);
        let map = look(&volume);
        assert!(matches!(map.clean, Clean::NotClean { .. }));
        assert_eq!(map.taken, Taken::Map, "the table is still right");
        patch(&volume, state_byte, &[0]);

        // Windows keeps the same state in the table's second entry.
        let (at, entry): (u64, &[u8]) =
            if bits == "16" { (2, &[0xff, 0x7f]) } else { (4, &[0xff, 0xff, 0xff, 0x07]) };
        patch(&volume, table * 512 + at, entry);
        assert!(matches!(look(&volume).clean, Clean::NotClean { .. }));
    }
}

#[test]
fn bad_clusters_are_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let volume = folder.path().join("fat");
    File::create(&volume).unwrap().set_len(20 << 20).unwrap();
    let list = folder.path().join("bad");
    // In blocks of 1 KiB.
    fs::write(&list, "9000\n9001\n15000\n").unwrap();
    let args = ["-F", "16", "-s", "2", "-l", list.to_str().unwrap(), volume.to_str().unwrap()];
    run("dosfstools", "mkfs.fat", &args);
    let map = look(&volume);
    assert_eq!(map.taken, Taken::Map);
    for block in [9000, 9001, 15_000] {
        assert!(map.used.overlapping(block * 1024, 1024).next().is_none(), "block {block}");
    }
}

/// Small EFI system partitions are FAT32 with fewer clusters than the specification wants: firmware and kernel go by the size
/// field, mtools by the number. So mtools sees the volume in its full size, and all others see it cut short.
#[test]
fn fat32_with_few_clusters_is_still_fat32() {
    let folder = tempfile::tempdir().unwrap();
    let volume = folder.path().join("esp");
    let fat = Fat { folder, volume, what: "a short FAT32".into() };
    File::create(&fat.volume).unwrap().set_len(34 << 20).unwrap();
    run(
        "dosfstools",
        "mkfs.fat",
        &["-F", "32", "-s", "1", "-n", "ESP", fat.volume.to_str().unwrap()],
    );
    let mut noise = Noise::new(6);
    let file = fat.folder.path().join("file");
    for i in 0..20 {
        fs::write(&file, noise.bytes(100_000)).unwrap();
        fat.mtools("mcopy", &[file.to_str().unwrap(), &format!("::file{i}")]);
    }
    let before = fat.files("before");
    let boot = fs::read(&fat.volume).unwrap()[..8 * 512].to_vec();
    let sectors = 40_000_u32.to_le_bytes();
    for copy in [0, 6] {
        // Total sectors, and an unknown free count.
        patch(&fat.volume, copy * 512 + 32, &sectors);
        patch(&fat.volume, (copy + 1) * 512 + 488, &[0xff; 4]);
    }
    File::options().write(true).open(&fat.volume).unwrap().set_len(40_000 * 512).unwrap();
    let (used, all) = fat.check();
    assert!(all < 65_525);
    let map = expect_map(&fat.volume, FsKind::Fat32, &fat.what);
    assert_eq!(fill_free(&fat.volume, &map, &mut noise), (all - used) * 512);
    fat.check();
    File::options().write(true).open(&fat.volume).unwrap().set_len(34 << 20).unwrap();
    patch(&fat.volume, 0, &boot);
    assert_same(&before, &fat.files("after"), &fat.what);
}

#[test]
fn fragmented_and_deep_trees_are_followed() {
    let mut noise = Noise::new(5);
    let fat = Fat::make(32, &mut noise, 5);
    let piece = fat.folder.path().join("piece");
    fs::write(&piece, noise.bytes(9_000)).unwrap();
    let mut path = "::".to_owned();
    for depth in 0..30 {
        path.push_str(&format!("/d{depth}"));
        fat.mtools("mmd", &[&path]);
        fat.mtools("mcopy", &[piece.to_str().unwrap(), &format!("{path}/one")]);
        fat.mtools("mcopy", &[piece.to_str().unwrap(), &format!("{path}/two")]);
        fat.mtools("mdel", &[&format!("{path}/one")]);
    }
    let big = fat.folder.path().join("big");
    fs::write(&big, noise.bytes(300_000)).unwrap();
    fat.mtools("mcopy", &[big.to_str().unwrap(), "::/big"]);
    let (used, all) = fat.check();
    let before = fat.files("before");
    let map = expect_map(&fat.volume, FsKind::Fat32, &fat.what);
    let filled = fill_free(&fat.volume, &map, &mut noise);
    assert_eq!(filled, (all - used) * u64::from(map.block_bytes));
    fat.check();
    assert_same(&before, &fat.files("after"), &fat.what);
}

/// mkfs.fat makes up to four; the tools keep the first two of them equal, so the others are made equal here.
#[test]
fn all_copies_of_the_table_are_compared() {
    let mut noise = Noise::new(8);
    for (bits, copies) in [("12", 3), ("16", 4), ("32", 4)] {
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path().join("fat");
        let fat = Fat { folder, volume, what: format!("FAT{bits} with {copies} tables") };
        let len = match bits {
            "12" => 1 << 20,
            "16" => 20 << 20,
            _ => 36 << 20,
        };
        File::create(&fat.volume).unwrap().set_len(len).unwrap();
        let path = fat.volume.to_str().unwrap();
        let count = copies.to_string();
        run("dosfstools", "mkfs.fat", &["-F", bits, "-s", "1", "-f", &count, path]);
        let file = fat.folder.path().join("file");
        for i in 0..3 {
            fs::write(&file, noise.bytes(20_000)).unwrap();
            fat.mtools("mcopy", &[file.to_str().unwrap(), &format!("::file{i}")]);
        }
        fat.mtools("mdel", &["::file1"]);
        let bytes = fs::read(&fat.volume).unwrap();
        let u16_at = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        let (first, table) = (u16_at(14) * 512, u16_at(if bits == "32" { 36 } else { 22 }) * 512);
        assert_eq!(usize::from(bytes[16]), copies);
        let place = |copy: usize| (first + copy * table) as u64;
        for copy in 1..copies {
            patch(&fat.volume, place(copy), &bytes[first..first + table]);
        }
        let before = fat.files("before");
        let map = look(&fat.volume);
        assert_eq!((&map.taken, &map.clean), (&Taken::Map, &Clean::Clean), "{}", fat.what);
        assert!(map.used.contains_range(0, place(copies)));
        assert!(fill_free(&fat.volume, &map, &mut noise) > len / 2);
        assert_same(&before, &fat.files("after"), &fat.what);
        patch(&fat.volume, place(copies - 1) + 300, &[0x55]);
        let reason = raw_reason(&fat.volume);
        assert!(reason.contains("the copies of the table differ"), "{}: {reason}", fat.what);
    }
}
