//! exFAT made by mkfs.exfat and used by exfat-fuse.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ramdisk_agent::fs::{Clean, FsKind, Taken, VolumeMap};

use crate::device::Device;
use crate::driven::{Driven, pepper};
use crate::live::live;
use crate::noise::{Noise, seeds};
use crate::oracle::{expect_map, fill_free, free, look};
use crate::tools::{blkid, run};
use crate::tree::{Node, assert_same, snapshot};

/// mkfs.exfat options, the sectors of the device, and how many MiB are enough for something to be left.
pub struct Recipe {
    options: &'static str,
    sector: u64,
    least_mib: u64,
}

const fn exfat(least_mib: u64, sector: u64, options: &'static str) -> Recipe {
    Recipe { options, sector, least_mib }
}

pub const RECIPES: [Recipe; 12] = [
    exfat(24, 512, "-c 4K"),
    exfat(16, 512, "-c 512"),
    exfat(24, 512, "-c 1K"),
    exfat(24, 512, "-c 2K"),
    exfat(24, 512, "-c 8K"),
    exfat(40, 512, "-c 32K"),
    exfat(90, 512, "-c 128K"),
    exfat(200, 512, "-c 1M"),
    exfat(30, 4096, "-c 4K"),
    exfat(60, 4096, "-c 64K"),
    exfat(24, 512, "-c 4K --pack-bitmap"),
    exfat(24, 512, "-c 16K -b 64K"),
];

/// A volume in a folder that goes with it.
pub struct Exfat {
    folder: tempfile::TempDir,
    pub volume: PathBuf,
    pub what: String,
    sector: u64,
}

impl Exfat {
    pub fn make(recipe: &Recipe, noise: &mut Noise, seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path().join("exfat");
        let len = (recipe.least_mib << 20) + noise.below(8 << 20) / 4096 * 4096;
        File::create(&volume).unwrap().set_len(len).unwrap();
        {
            let device = Device::new(&volume, recipe.sector);
            let mut args = vec!["-L", "a label"];
            args.extend(recipe.options.split(' '));
            args.push(device.path());
            run("exfatprogs", "mkfs.exfat", &args);
        }
        // What lies behind the filesystem is not its own.
        let file = File::options().write(true).open(&volume).unwrap();
        let behind = 512 * noise.below(9) as usize;
        file.write_all_at(&noise.bytes(behind), len).unwrap();
        let what = format!(
            "seed {seed}: mkfs.exfat {} of {len} bytes in sectors of {}",
            recipe.options, recipe.sector
        );
        Self { folder, volume, what, sector: recipe.sector }
    }

    fn mounted<T>(&self, options: &str, then: impl FnOnce(&Path) -> T) -> T {
        let device = Device::new(&self.volume, self.sector);
        let at = self.folder.path().join("mnt");
        let args = ["-d", "-o", options];
        let mounted = Driven::new("exfat-fuse", "mount.exfat-fuse", &args, &device.0, &at);
        then(&mounted.at)
    }

    /// Uses it as a system would: files in many pieces and in one, large folders, deleted ones.
    pub fn live(&self, noise: &mut Noise) {
        for round in 0..2 {
            self.mounted("noatime", |at| {
                live(at, false, noise, round);
                let folder = at.join(format!("peppered{round}"));
                fs::create_dir(&folder).unwrap();
                pepper(&folder, noise);
                let gone = at.join("gone");
                fs::create_dir(&gone).unwrap();
                live(&gone, false, noise, round);
                fs::remove_dir_all(&gone).unwrap();
            });
        }
    }

    /// Must find nothing.
    fn check(&self) {
        let report = run("exfatprogs", "fsck.exfat", &["-n", self.volume.to_str().unwrap()]);
        assert!(report.contains(": clean. "), "{}: {report}", self.what);
    }

    fn files(&self) -> BTreeMap<PathBuf, Node> {
        self.mounted("ro", snapshot)
    }

    /// The map must be what dump.exfat prints.
    pub fn compare(&self) -> VolumeMap {
        let what = &self.what;
        let map = expect_map(&self.volume, FsKind::Exfat, what);
        let report = run("exfatprogs", "dump.exfat", &[self.volume.to_str().unwrap()]);
        let number = |name: &str| -> u64 {
            let line = report.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap();
            line.split_whitespace().last().unwrap().parse().unwrap()
        };
        let cluster = number("Cluster size:");
        assert_eq!(u64::from(map.block_bytes), cluster, "{what}");
        assert_eq!(map.fs_bytes, number("Volume Length(sectors):") * self.sector, "{what}");
        let mine = free(&self.volume, &map).total_bytes();
        assert_eq!(mine, number("Free Clusters:") * cluster, "{what}");
        // All but what is behind the last cluster.
        let heap = number("Cluster Heap Offset (sector offset):") * self.sector;
        let clusters = number("Cluster Count:") * cluster;
        assert_eq!(map.used_bytes_claimed, heap + clusters - mine, "{what}");
        assert_eq!(map.uuid, blkid(&self.volume, "UUID"), "{what}");
        assert_eq!(map.label, blkid(&self.volume, "LABEL"), "{what}");
        map
    }

    fn oracle(&self, noise: &mut Noise) {
        self.check();
        let before = self.files();
        let map = self.compare();
        fill_free(&self.volume, &map, noise);
        self.check();
        assert_same(&before, &self.files(), &self.what);
    }
}

#[test]
fn noise_in_free_space_does_not_matter() {
    for (seed, recipe) in seeds(40).zip(RECIPES.iter().cycle()) {
        let mut noise = Noise::new(seed);
        let exfat = Exfat::make(recipe, &mut noise, seed);
        exfat.live(&mut noise);
        exfat.oracle(&mut noise);
    }
}

#[test]
fn a_mounted_or_damaged_volume_is_not_clean() {
    let mut noise = Noise::new(41);
    let exfat = Exfat::make(&RECIPES[0], &mut noise, 41);
    let reason = |volume: &Path| match look(volume).clean {
        Clean::NotClean { reason } => reason,
        other => panic!("{other:?}"),
    };
    let copy = exfat.folder.path().join("copy");
    exfat.mounted("noatime", |at| {
        fs::write(at.join("file"), "in use").unwrap();
        File::open(at.join("file")).unwrap().sync_all().unwrap();
        fs::copy(&exfat.volume, &copy).unwrap();
    });
    assert_eq!(reason(&copy), "it was not unmounted");
    exfat.compare();
    // Flags and percentage are not covered by the checksum.
    let file = File::options().write(true).open(&exfat.volume).unwrap();
    file.write_all_at(&[4], 106).unwrap();
    assert_eq!(reason(&exfat.volume), "read or write errors were met in it");
    file.write_all_at(&[0], 106).unwrap();
    file.write_all_at(&[99], 112).unwrap();
    exfat.compare();
}

/// Places in a volume that mkfs.exfat and exfat-fuse have made.
pub struct Places {
    /// One boot region.
    pub region: u64,
    pub fat: u64,
    pub heap: u64,
    pub cluster: u64,
    pub root: u64,
    /// Of the first folder in the root directory.
    pub folder: u64,
}

impl Places {
    pub fn of(bytes: &[u8]) -> Self {
        let le32 = |at: u64| {
            let at = at as usize;
            u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()))
        };
        let sector = 1 << bytes[108];
        let cluster = sector << bytes[109];
        let heap = le32(88) * sector;
        let place = |number: u64| heap + (number - 2) * cluster;
        let root = place(le32(96));
        let sets = (root..root + cluster).step_by(32);
        let folder = sets
            .filter(|at| bytes[*at as usize] == 0x85 && bytes[*at as usize + 4] & 0x10 != 0)
            .map(|at| place(le32(at + 32 + 20)))
            .next();
        Self {
            region: 12 * sector,
            fat: le32(80) * sector,
            heap,
            cluster,
            root,
            folder: folder.unwrap(),
        }
    }

    /// Makes the checksums of both boot regions right.
    pub fn seal_boot(&self, bytes: &mut [u8]) {
        for start in [0, self.region] {
            let region = &mut bytes[start as usize..][..self.region as usize];
            let (covered, sums) = region.split_at_mut(region.len() / 12 * 11);
            let kept = covered.iter().enumerate().filter(|(at, _)| ![106, 107, 112].contains(at));
            let sum = kept
                .fold(0_u32, |sum, (_, byte)| sum.rotate_right(1).wrapping_add(u32::from(*byte)));
            sums.chunks_exact_mut(4).for_each(|word| word.copy_from_slice(&sum.to_le_bytes()));
        }
    }

    /// Makes the checksums of the sets of entries in the first clusters of root directory and folder right.
    pub fn seal_sets(&self, bytes: &mut [u8]) {
        for start in [self.root, self.folder] {
            let mut rest = &mut bytes[start as usize..][..self.cluster as usize];
            while rest.len() >= 32 {
                let len = if rest[0] == 0x85 { 32 * (1 + usize::from(rest[1])) } else { 32 };
                let Some((set, more)) = rest.split_at_mut_checked(len) else { break };
                if set[0] == 0x85 {
                    let kept = set.iter().enumerate().filter(|(at, _)| ![2, 3].contains(at));
                    let sum = kept.fold(0_u16, |sum, (_, byte)| {
                        sum.rotate_right(1).wrapping_add(u16::from(*byte))
                    });
                    set[2..4].copy_from_slice(&sum.to_le_bytes());
                }
                rest = more;
            }
        }
    }
}

#[test]
fn damage_that_fsck_would_find_is_taken_raw() {
    let mut noise = Noise::new(42);
    let exfat = Exfat::make(&RECIPES[0], &mut noise, 42);
    exfat.mounted("noatime", |at| {
        fs::create_dir(at.join("folder")).unwrap();
        fs::write(at.join("folder/one"), noise.bytes(30_000)).unwrap();
        fs::write(at.join("folder/two"), noise.bytes(30_000)).unwrap();
    });
    exfat.compare();
    let pristine = fs::read(&exfat.volume).unwrap();
    let places = Places::of(&pristine);
    let stream = |number: usize| places.folder as usize + number * 96 + 32;
    assert_eq!(pristine[stream(0)], 0xC0);
    let reason = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = pristine.clone();
        change(&mut bytes);
        places.seal_boot(&mut bytes);
        fs::write(&exfat.volume, bytes).unwrap();
        let map = look(&exfat.volume);
        match map.taken {
            Taken::Raw { reason } => reason,
            Taken::Map => panic!("mapped"),
        }
    };
    let both = |at: usize, value: u8| {
        move |bytes: &mut Vec<u8>| {
            bytes[at] = value;
            bytes[at + 12 * 512] = value;
        }
    };
    assert!(reason(&both(110, 2)).contains("TexFAT"));
    assert!(reason(&both(105, 2)).contains("revision 2.00"));
    assert!(reason(&both(88, 1)).contains("contradict"));
    assert!(reason(&|bytes| bytes[72] ^= 1).contains("the backup boot region describes"));
    // The table of capital letters, two clusters behind the heap's start.
    let up_case = places.heap as usize + 4096;
    assert!(reason(&|bytes| bytes[up_case + 40] ^= 1).contains("the up-case table: its checksum"));
    assert!(reason(&|bytes| bytes[stream(0) + 1] ^= 8).contains("the checksum of a set"));
    // The first file gets the second one's clusters; one set of entries goes in the middle.
    let shared = reason(&|bytes| {
        let second: [u8; 4] = bytes[stream(1) + 20..][..4].try_into().unwrap();
        bytes[stream(0) + 20..][..4].copy_from_slice(&second);
        places.seal_sets(bytes);
    });
    assert!(shared.contains("allocated twice"), "{shared}");
    assert!(reason(&|bytes| bytes[stream(0)] ^= 0x80).contains("not complete"));
    assert!(reason(&|bytes| bytes[stream(0) - 32] = 5).contains("follows no primary"));
    // The bitmap's first bytes are those of the first clusters.
    let marked = reason(&|bytes| bytes[places.heap as usize] = 0x0F);
    assert!(marked.contains("marked as free"), "{marked}");
    let chain = reason(&|bytes| bytes[places.fat as usize + 8] = 9);
    assert!(chain.contains("the allocation bitmap"), "{chain}");
}
