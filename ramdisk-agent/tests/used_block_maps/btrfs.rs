//! btrfs made by mkfs.btrfs and used by the kernel.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;

use ramdisk_agent::fs::{Clean, FsKind, Taken, VolumeMap};

use crate::live::Mounted;
use crate::noise::{Noise, seeds};
use crate::oracle::{expect_map, fill_free, free, look};
use crate::tools::{blkid, run};
use crate::tree::{Node, assert_same, snapshot};

/// mkfs.btrfs options, and how many MiB they need at least.
pub struct Recipe {
    options: &'static str,
    least_mib: u64,
}

const fn btrfs(least_mib: u64, options: &'static str) -> Recipe {
    Recipe { options, least_mib }
}

pub const RECIPES: [Recipe; 13] = [
    btrfs(130, "-s 4096"),
    btrfs(40, "--mixed -s 4096"),
    btrfs(130, "-m single -d single"),
    btrfs(260, "-m dup -d dup"),
    btrfs(130, "-n 4096"),
    btrfs(130, "-n 65536"),
    btrfs(130, "-O ^no-holes -R ^free-space-tree"),
    btrfs(130, "-R quota"),
    btrfs(130, "--csum xxhash"),
    btrfs(130, "--csum sha256 -n 4096"),
    btrfs(130, "--csum blake2"),
    btrfs(200, "--mixed -n 4096 -s 4096 -m dup -d dup"),
    btrfs(130, "-U 01234567-89ab-cdef-0123-456789abcdef -L a.label"),
];

/// A volume in a folder that goes with it.
pub struct Btrfs {
    folder: tempfile::TempDir,
    pub volume: PathBuf,
    pub what: String,
}

impl Btrfs {
    pub fn make(options: &str, least_mib: u64, noise: &mut Noise, seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path().join("btrfs");
        let len = (least_mib << 20) + noise.below(40 << 20) / 4096 * 4096;
        File::create(&volume).unwrap().set_len(len).unwrap();
        let mut args = vec!["-q", "-f"];
        args.extend(options.split(' '));
        args.push(volume.to_str().unwrap());
        run("btrfs-progs", "mkfs.btrfs", &args);
        let file = File::options().write(true).open(&volume).unwrap();
        file.set_len(len + 700 * noise.below(3)).unwrap();
        let what = format!("seed {seed}: mkfs.btrfs {options} of {len} bytes");
        Self { folder, volume, what }
    }

    pub fn of(recipe: &Recipe, noise: &mut Noise, seed: u64) -> Self {
        Self::make(recipe.options, recipe.least_mib, noise, seed)
    }

    fn mount(&self, options: &str) -> Mounted<'_> {
        let at = self.folder.path().join("mnt");
        Mounted::new(&self.volume, &["-t", "btrfs", "-o", options], &at, &self.what)
    }

    /// Uses it as a system would, with compressed files, snapshots of which one is gone again, and blocks that files share.
    pub fn live(&self, noise: &mut Noise) {
        for round in 0..2 {
            let options = noise.pick(&["rw", "compress-force=zstd", "autodefrag"]);
            let mounted = self.mount(options);
            let text = |name: &str| mounted.at.join(name).to_str().unwrap().to_owned();
            mounted.live(noise, round);
            let tool = |args: &[&str]| run("btrfs-progs", "btrfs", args);
            tool(&["-q", "subvolume", "create", &text(&format!("sub{round}"))]);
            fs::write(mounted.at.join(format!("sub{round}/file")), noise.bytes(300_000)).unwrap();
            let from = File::open(mounted.at.join(format!("sub{round}/file"))).unwrap();
            let twin = File::create(mounted.at.join(format!("twin{round}"))).unwrap();
            rustix::fs::ioctl_ficlone(&twin, &from).unwrap();
            for kept in ["kept", "gone"] {
                tool(&["-q", "subvolume", "snapshot", &text(""), &text(&format!("{kept}{round}"))]);
            }
            fs::write(mounted.at.join(format!("sub{round}/file")), noise.bytes(100_000)).unwrap();
            tool(&["-q", "subvolume", "delete", "--commit-after", &text(&format!("gone{round}"))]);
        }
    }

    /// Must find nothing.
    pub fn check(&self) {
        run(
            "btrfs-progs",
            "btrfs",
            &["check", "--readonly", "--check-data-csum", self.volume.to_str().unwrap()],
        );
    }

    fn files(&self) -> BTreeMap<PathBuf, Node> {
        snapshot(&self.mount("ro").at)
    }

    /// The map must be as large as the tool says.
    pub fn compare(&self) -> VolumeMap {
        let what = &self.what;
        let map = expect_map(&self.volume, FsKind::Btrfs, what);
        let volume = self.volume.to_str().unwrap();
        let report = run("btrfs-progs", "btrfs", &["inspect-internal", "dump-super", volume]);
        let number = |name: &str| -> u64 {
            let line = report.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().parse().unwrap()
        };
        assert_eq!(map.fs_bytes, number("dev_item.total_bytes"), "{what}");
        let used = number("bytes_used");
        assert!((used..=2 * used).contains(&map.used_bytes_claimed), "{what}: {used}");
        let kept = map.fs_bytes - (free(&self.volume, &map).total_bytes());
        // The first MiB and a copy of the superblock.
        assert!(kept <= map.used_bytes_claimed + (1 << 20) + 8192, "{what}: {kept}");
        assert_eq!(map.uuid, blkid(&self.volume, "UUID"), "{what}");
        assert_eq!(map.label, blkid(&self.volume, "LABEL"), "{what}");
        map
    }

    /// Noise in its free space must not matter.
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
        let btrfs = Btrfs::of(recipe, &mut noise, seed);
        btrfs.live(&mut noise);
        btrfs.oracle(&mut noise);
    }
}

/// Nothing is ever written to it, but to what has grown out of it.
#[test]
fn a_seed_is_mapped() {
    let mut noise = Noise::new(44);
    let btrfs = Btrfs::of(&RECIPES[0], &mut noise, 44);
    btrfs.live(&mut noise);
    run("btrfs-progs", "btrfstune", &["-S", "1", btrfs.volume.to_str().unwrap()]);
    btrfs.oracle(&mut noise);
}

#[test]
fn a_log_of_fsyncs_is_not_clean_until_it_is_replayed() {
    let mut noise = Noise::new(41);
    let mut btrfs = Btrfs::of(&RECIPES[0], &mut noise, 41);
    let copy = btrfs.folder.path().join("copy");
    {
        let mounted = btrfs.mount("rw");
        mounted.live(&mut noise, 0);
        run("coreutils", "sync", &["-f", mounted.at.to_str().unwrap()]);
        let file = File::create(mounted.at.join("synced")).unwrap();
        std::io::Write::write_all(&mut &file, &noise.bytes(50_000)).unwrap();
        file.sync_all().unwrap();
        fs::copy(&btrfs.volume, &copy).unwrap();
    }
    btrfs.compare();
    btrfs.volume = copy;
    let map = look(&btrfs.volume);
    assert_eq!(
        map.clean,
        Clean::NotClean { reason: "a log of fsyncs waits to be replayed".into() }
    );
    drop(btrfs.mount("rw"));
    btrfs.oracle(&mut noise);
}

#[test]
fn what_one_device_does_not_hold_is_taken_raw() {
    let mut noise = Noise::new(42);
    let btrfs = Btrfs::of(&RECIPES[0], &mut noise, 42);
    let other = btrfs.folder.path().join("other");
    File::create(&other).unwrap().set_len(130 << 20).unwrap();
    let (first, second) = (btrfs.volume.to_str().unwrap(), other.to_str().unwrap());
    run("btrfs-progs", "mkfs.btrfs", &["-q", "-f", "-m", "raid1", "-d", "single", first, second]);
    let Taken::Raw { reason } = look(&btrfs.volume).taken else { panic!("two devices") };
    assert!(reason.contains("2 devices"), "{reason}");
}

/// A write that never came to the device leaves a node in order, but of an older generation than its parent expects.
#[test]
fn a_node_of_another_generation_is_not_believed() {
    let mut noise = Noise::new(43);
    for (recipe, copies) in [(&RECIPES[3], 2), (&RECIPES[2], 1)] {
        let btrfs = Btrfs::of(recipe, &mut noise, 43);
        let pristine = expect_map(&btrfs.volume, FsKind::Btrfs, &btrfs.what);
        let bytes = fs::read(&btrfs.volume).unwrap();
        let leaves = extent_leaves(&bytes, &pristine);
        assert_eq!(leaves.len(), copies, "{}", btrfs.what);
        for at in leaves {
            let mut stale = bytes.clone();
            let node = &mut stale[at..at + 16384];
            // One item less, and an older generation.
            for (place, less) in [(80, 1), (96, 1)] {
                node[place] = node[place].checked_sub(less).unwrap();
            }
            let sum = crate::mutation::CRC32C.checksum(&node[32..]);
            node[..4].copy_from_slice(&sum.to_le_bytes());
            fs::write(&btrfs.volume, stale).unwrap();
            let map = look(&btrfs.volume);
            match map.taken {
                // The other copy tells.
                Taken::Map if copies == 2 => assert_eq!(map, pristine, "{}", btrfs.what),
                Taken::Raw { reason } if copies == 1 => {
                    assert!(reason.contains("damaged or another one's"), "{reason}");
                }
                taken => panic!("{}: {taken:?}", btrfs.what),
            }
        }
    }
}

/// Where the copies of the extent tree's only leaf are.
fn extent_leaves(bytes: &[u8], map: &VolumeMap) -> Vec<usize> {
    let identity = &bytes[(64 << 10) + 32..][..16];
    let places = map.used.iter().flat_map(|used| (used.start..used.end()).step_by(4096));
    let leaf = |at: &usize| {
        let header = &bytes[*at..][..101];
        *at > 1 << 20 && &header[32..48] == identity && header[88] == 2 && header[100] == 0
    };
    places.map(|at| at as usize).filter(leaf).collect()
}
