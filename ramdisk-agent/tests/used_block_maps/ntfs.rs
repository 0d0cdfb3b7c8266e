//! NTFS made by mkntfs and used by ntfs-3g.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ramdisk_agent::fs::{Clean, FsKind, VolumeMap};

use crate::driven::{Driven, pepper};
use crate::live::live;
use crate::noise::{Noise, seeds};
use crate::oracle::{expect_map, fill_free, free, look};
use crate::tools::{blkid, run};
use crate::tree::{Node, assert_same, snapshot_with_attributes};

/// mkntfs options, and how many MiB they need at least.
pub struct Recipe {
    options: &'static str,
    least_mib: u64,
}

const fn ntfs(least_mib: u64, options: &'static str) -> Recipe {
    Recipe { options, least_mib }
}

pub const RECIPES: [Recipe; 14] = [
    ntfs(40, "-c 4096"),
    ntfs(40, "-c 512"),
    ntfs(40, "-c 1024"),
    ntfs(40, "-c 2048"),
    ntfs(40, "-c 8192"),
    ntfs(48, "-c 16384"),
    ntfs(48, "-c 32768"),
    ntfs(90, "-c 65536"),
    ntfs(80, "-c 262144"),
    ntfs(40, "-s 1024"),
    ntfs(40, "-s 4096"),
    ntfs(56, "-s 4096 -c 65536"),
    ntfs(40, "-C"),
    ntfs(40, "-z 4 -p 2048"),
];
/// A volume in a folder that goes with it.
pub struct Ntfs {
    folder: tempfile::TempDir,
    pub volume: PathBuf,
    pub what: String,
}

impl Ntfs {
    pub fn make(recipe: &Recipe, noise: &mut Noise, seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path().join("ntfs");
        let len = (recipe.least_mib << 20) + noise.below(16 << 20) / 4096 * 4096;
        File::create(&volume).unwrap().set_len(len).unwrap();
        let mut args = vec!["-q", "-F", "-Q", "-L", "a label", "-H", "16", "-S", "63"];
        args.extend(recipe.options.split(' '));
        // mkntfs wants to know where the partition begins.
        if !recipe.options.contains("-p ") {
            args.extend(["-p", "0"]);
        }
        args.push(volume.to_str().unwrap());
        run("ntfs-3g", "mkntfs", &args);
        let what = format!("seed {seed}: mkntfs {} of {len} bytes", recipe.options);
        Self { folder, volume, what }
    }

    fn mount(&self, options: &str) -> Driven {
        let options = format!("no_detach,{options}");
        let at = self.folder.path().join("mnt");
        Driven::new("ntfs-3g", "ntfs-3g", &["-o", &options], &self.volume, &at)
    }

    /// Uses it as a system would; some files end in many pieces, whose lists need records of their own.
    pub fn live(&self, noise: &mut Noise) {
        for round in 0..2 {
            let mounted = self.mount("permissions,compression");
            live(&mounted.at, true, noise, round);
            let folder = mounted.at.join(format!("peppered{round}"));
            fs::create_dir(&folder).unwrap();
            pepper(&folder, noise);
            name_streams(&folder, noise);
        }
    }

    /// Must find nothing. ntfsresize compares all files with the bitmap.
    pub fn check(&self) {
        run("ntfs-3g", "ntfsresize", &["-i", "-f", "-P", self.volume.to_str().unwrap()]);
        run("ntfs-3g", "ntfsfix", &["-n", self.volume.to_str().unwrap()]);
    }

    /// All files with their named streams.
    fn files(&self) -> BTreeMap<PathBuf, Node> {
        let mounted = self.mount("ro");
        snapshot_with_attributes(&mounted.at)
    }

    /// The map must be what ntfsinfo prints.
    pub fn compare(&self) -> VolumeMap {
        let what = &self.what;
        let map = expect_map(&self.volume, FsKind::Ntfs, what);
        let report = run("ntfs-3g", "ntfsinfo", &["-m", self.volume.to_str().unwrap()]);
        let number = |name: &str| -> u64 {
            let line = report.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        let cluster = number("Cluster Size:");
        assert_eq!(u64::from(map.block_bytes), cluster, "{what}");
        assert_eq!(map.fs_bytes, number("Volume Size in Clusters:") * cluster, "{what}");
        let mine = free(&self.volume, &map).total_bytes();
        assert_eq!(mine, number("Free Clusters:") * cluster, "{what}");
        assert_eq!(map.used_bytes_claimed, map.fs_bytes - mine, "{what}");
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

/// Named streams, small and large; [`pepper`] leaves the files of odd numbers, if there was room.
fn name_streams(at: &Path, noise: &mut Noise) {
    for i in [1, 3, 5].into_iter().filter(|i: &u64| at.join(i.to_string()).exists()) {
        let value = noise.bytes((100 + i * 481) as usize);
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(at.join(i.to_string()), "user.noise", &value, flags).unwrap();
    }
}

#[test]
fn noise_in_free_space_does_not_matter() {
    for (seed, recipe) in seeds(30).zip(RECIPES.iter().cycle()) {
        let mut noise = Noise::new(seed);
        let ntfs = Ntfs::make(recipe, &mut noise, seed);
        ntfs.live(&mut noise);
        ntfs.oracle(&mut noise);
    }
}

#[test]
fn a_hibernated_windows_is_not_clean() {
    let mut noise = Noise::new(31);
    for (begins, clean) in [("hibr", false), ("HIBR", false), ("wake", true), ("", true)] {
        let ntfs = Ntfs::make(&RECIPES[0], &mut noise, 31);
        {
            let mounted = ntfs.mount("permissions");
            fs::write(mounted.at.join("HiberFil.sys"), begins.repeat(3000)).unwrap();
            // Elsewhere it means nothing.
            fs::create_dir(mounted.at.join("folder")).unwrap();
            fs::write(mounted.at.join("folder/hiberfil.sys"), "hibr").unwrap();
        }
        match look(&ntfs.volume).clean {
            Clean::Clean => assert!(clean, "{begins}"),
            Clean::NotClean { reason } => {
                assert!(!clean && reason.contains("hibernated"), "{reason}")
            }
            Clean::Unknown => panic!("{begins}"),
        }
    }
}

#[test]
fn a_dirty_volume_and_an_open_log_are_not_clean() {
    let mut noise = Noise::new(32);
    let ntfs = Ntfs::make(&RECIPES[0], &mut noise, 32);
    let bytes = fs::read(&ntfs.volume).unwrap();
    let file = File::options().write(true).open(&ntfs.volume).unwrap();
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let records = [48, 56].map(|at| u64_at(at) * 4096 + 3 * 1024);
    let information = bytes[records[0] as usize..][..1024]
        .windows(8)
        .position(|bytes| bytes == [0x70, 0, 0, 0, 0x28, 0, 0, 0])
        .unwrap();
    // The value lies 24 bytes into the attribute, the flags ten bytes into the value.
    let set_flags = |flags: u8| {
        for record in records {
            file.write_all_at(&[flags], record + information as u64 + 34).unwrap();
        }
    };
    let reason = || match look(&ntfs.volume).clean {
        Clean::NotClean { reason } => reason,
        other => panic!("{other:?}"),
    };
    set_flags(1);
    assert!(reason().contains("dirty"));
    set_flags(0);
    expect_map(&ntfs.volume, FsKind::Ntfs, "without flags");

    // A restart page of a log in use, as Windows writes it: one client, not clean.
    let log = run("ntfs-3g", "ntfsinfo", &["-v", "-i", "2", ntfs.volume.to_str().unwrap()]);
    let run_line = log.lines().find(|line| line.trim().starts_with("0x0\t")).unwrap().to_owned();
    let cluster = run_line.split_whitespace().nth(1).unwrap().trim_start_matches("0x");
    let place = u64::from_str_radix(cluster, 16).unwrap() * 4096;
    let mut page = vec![0; 4096];
    page[..4].copy_from_slice(b"RSTR");
    page[16..20].copy_from_slice(&4096_u32.to_le_bytes());
    page[24..26].copy_from_slice(&0x30_u16.to_le_bytes());
    file.write_all_at(&page, place).unwrap();
    assert!(reason().contains("$LogFile"));
    // The later page tells: this one is closed.
    page[0x30] = 7;
    page[0x3C..0x3E].copy_from_slice(&[0xFF, 0xFF]);
    file.write_all_at(&page, place + 4096).unwrap();
    expect_map(&ntfs.volume, FsKind::Ntfs, "with a closed log");
}

#[test]
fn a_file_table_in_many_pieces_is_followed() {
    let mut noise = Noise::new(33);
    let ntfs = Ntfs::make(&RECIPES[2], &mut noise, 33);
    {
        let mounted = ntfs.mount("permissions");
        let piece = noise.bytes(1024);
        let full =
            |at: &Path, i: u64, bytes: &[u8]| fs::write(at.join(i.to_string()), bytes).is_err();
        let files = (0..).find(|i| full(&mounted.at, *i, &piece)).unwrap();
        for i in (0..files).step_by(2) {
            fs::remove_file(mounted.at.join(i.to_string())).unwrap();
        }
        let folder = mounted.at.join("empty");
        fs::create_dir(&folder).unwrap();
        (0..).find(|i| full(&folder, *i, &[])).unwrap();
    }
    let table = run("ntfs-3g", "ntfsinfo", &["-i", "0", ntfs.volume.to_str().unwrap()]);
    assert!(table.contains("$ATTRIBUTE_LIST"), "{table}");
    ntfs.oracle(&mut noise);
}
