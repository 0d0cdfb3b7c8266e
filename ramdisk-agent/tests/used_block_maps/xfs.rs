//! XFS made by mkfs.xfs and used by the kernel.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use ramdisk_agent::extents::Extents;
use ramdisk_agent::fs::{Clean, FsKind, Taken, VolumeMap};

use crate::live::Mounted;
use crate::noise::{Noise, seeds};
use crate::oracle::{expect_map, fill_free, free, look};
use crate::tools::{blkid, run};
use crate::tree::{Node, assert_same, snapshot_with_attributes};

/// mkfs.xfs options, and how many MiB they need at least.
pub struct Recipe {
    options: &'static str,
    least_mib: u64,
}

const fn xfs(least_mib: u64, options: &'static str) -> Recipe {
    Recipe { options, least_mib }
}

/// Version 5 with blocks that every kernel can mount.
pub const VERSION_5: [Recipe; 20] = [
    xfs(40, ""),
    xfs(40, "-b size=1024"),
    xfs(40, "-b size=2048"),
    xfs(40, "-m rmapbt=1,reflink=1"),
    xfs(40, "-m rmapbt=0,reflink=0"),
    xfs(40, "-m finobt=0,reflink=0,inobtcount=0,bigtime=0 -i sparse=0"),
    xfs(40, "-b size=1024 -m rmapbt=1"),
    xfs(130, "-d agcount=8"),
    xfs(130, "-d agcount=8 -m rmapbt=1"),
    xfs(70, "-d agsize=17m"),
    xfs(70, "-d agsize=16m -b size=1024 -m rmapbt=1"),
    xfs(40, "-s size=4096"),
    xfs(40, "-s size=2048 -b size=2048"),
    xfs(40, "-i size=1024"),
    xfs(40, "-i size=2048,sparse=0"),
    xfs(40, "-n size=16384"),
    xfs(40, "-l su=32k"),
    xfs(70, "-d su=64k,sw=2,agsize=18m -l internal,agnum=1"),
    xfs(40, "-i maxpct=50 -L twelve-chars"),
    xfs(40, "-m uuid=01234567-89ab-cdef-0123-456789abcdef"),
];

/// What the running kernel need not be able to mount: version 4, and blocks larger than a page.
pub const UNMOUNTED: [Recipe; 9] = [
    xfs(40, "-m crc=0"),
    xfs(40, "-m crc=0 -b size=512"),
    xfs(40, "-m crc=0 -b size=1024 -l version=1"),
    xfs(130, "-m crc=0 -d agcount=8 -l lazy-count=0"),
    xfs(40, "-m crc=0 -i attr=1,size=256,align=0 -n version=ci"),
    xfs(40, "-m crc=0 -s size=4096"),
    xfs(60, "-b size=8192"),
    xfs(200, "-b size=65536"),
    xfs(60, "-m crc=0 -b size=16384"),
];

/// A volume in a folder that goes with it.
pub struct Xfs {
    folder: tempfile::TempDir,
    pub volume: PathBuf,
    pub what: String,
}

impl Xfs {
    /// Makes a filesystem that holds a few files; bytes that are not its own may lie behind it.
    pub fn make(recipe: &Recipe, noise: &mut Noise, seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (volume, source) = (folder.path().join("xfs"), folder.path().join("source"));
        fs::create_dir(&source).unwrap();
        let proto = folder.path().join("proto");
        fs::write(&proto, protofile(&source, noise)).unwrap();
        let len = (recipe.least_mib << 20) + (noise.below(24 << 20) & !0xFFFF);
        File::create(&volume).unwrap().set_len(len).unwrap();
        // Filesystems below 300 MB are allowed with this option, and differ in nothing else.
        let mut args = vec!["--unsupported", "-q", "-f", "-p", proto.to_str().unwrap()];
        args.extend(recipe.options.split(' ').filter(|option| !option.is_empty()));
        args.push(volume.to_str().unwrap());
        run("xfsprogs", "mkfs.xfs", &args);
        File::options()
            .write(true)
            .open(&volume)
            .unwrap()
            .set_len(len + 700 * noise.below(3))
            .unwrap();
        let what = format!("seed {seed}: mkfs.xfs {} of {len} bytes", recipe.options);
        Self { folder, volume, what }
    }

    pub fn mount(&self) -> Mounted<'_> {
        Mounted::new(&self.volume, &["-t", "xfs"], &self.folder.path().join("mnt"), &self.what)
    }

    /// Uses it as a system would, and leaves much of its free space in small pieces.
    pub fn live(&self, noise: &mut Noise) {
        for round in 0..2 {
            let mounted = self.mount();
            mounted.live(noise, round);
            pepper(&mounted.at.join(format!("peppered{round}")), noise);
        }
    }

    fn db(&self, command: &str) -> String {
        run("xfsprogs", "xfs_db", &["-r", "-c", command, self.volume.to_str().unwrap()])
    }

    fn number(&self, structure: &str, field: &str) -> u64 {
        let args =
            ["-r", "-c", structure, "-c", &format!("p {field}"), self.volume.to_str().unwrap()];
        let line = run("xfsprogs", "xfs_db", &args);
        line.trim().rsplit_once(" = ").unwrap().1.parse().unwrap()
    }

    /// Must find nothing.
    pub fn check(&self) {
        run("xfsprogs", "xfs_repair", &["-n", "-f", self.volume.to_str().unwrap()]);
    }

    /// All files with their attributes, as the kernel finds them without replaying the log.
    fn files(&self) -> BTreeMap<PathBuf, Node> {
        let options = ["-t", "xfs", "-o", "ro,norecovery"];
        let at = self.folder.path().join("mnt");
        let mounted = Mounted::new(&self.volume, &options, &at, &self.what);
        snapshot_with_attributes(&mounted.at)
    }

    /// The map must be what xfs_db prints.
    pub fn compare(&self) -> VolumeMap {
        let what = &self.what;
        let map = expect_map(&self.volume, FsKind::Xfs, what);
        let block = u64::from(map.block_bytes);
        assert_eq!(block, self.number("sb 0", "blocksize"), "{what}");
        let (mine, theirs) = (free(&self.volume, &map), self.free_by_tool(block));
        assert_eq!(mine.subtract(&theirs), Extents::new(), "{what}: only we call these free");
        // xfs_db counts the reserve of the trees as well, which is not free to be dropped.
        let groups = self.number("sb 0", "agcount");
        let sum = |field| -> u64 {
            (0..groups).map(|group| self.number(&format!("agf {group}"), field)).sum()
        };
        let reserve = sum("flcount");
        assert_eq!(theirs.subtract(&mine).total_bytes(), reserve * block, "{what}");
        let (blocks, free) = (self.number("sb 0", "dblocks"), self.number("sb 0", "fdblocks"));
        assert_eq!(map.fs_bytes, blocks * block, "{what}");
        assert_eq!(map.used_bytes_claimed, (blocks - free) * block, "{what}");
        assert_eq!(map.uuid, blkid(&self.volume, "UUID"), "{what}");
        assert_eq!(map.label, blkid(&self.volume, "LABEL"), "{what}");
        let behind = fs::metadata(&self.volume).unwrap().len() - map.fs_bytes;
        let kept = map.used.total_bytes() - behind;
        // The superblock counts the trees' blocks beyond their roots as free.
        let own = (reserve + sum("btreeblks")) * block;
        assert_eq!(kept, map.used_bytes_claimed + own, "{what}");
        map
    }

    fn free_by_tool(&self, block: u64) -> Extents {
        let group_blocks = self.number("sb 0", "agblocks");
        let mut free = Extents::new();
        for line in self.db("freesp -d").lines() {
            let numbers: Result<Vec<u64>, _> = line.split_whitespace().map(str::parse).collect();
            let Ok([group, start, count]) = numbers.as_deref() else { continue };
            free.insert((group * group_blocks + start) * block, count * block);
        }
        free
    }

    /// Noise in its free space must not matter.
    fn oracle(&self, mountable: bool, noise: &mut Noise) {
        self.check();
        let before = mountable.then(|| self.files());
        let map = self.compare();
        fill_free(&self.volume, &map, noise);
        self.check();
        if let Some(before) = before {
            assert_same(&before, &self.files(), &self.what);
        }
    }
}

/// What mkfs.xfs puts into a new filesystem.
fn protofile(source: &Path, noise: &mut Noise) -> String {
    let mut text = "boot\n0 0\nd--755 0 0\n".to_owned();
    for i in 0..noise.below(40) {
        let file = source.join(format!("made{i}"));
        fs::write(&file, noise.bytes(noise_len(i))).unwrap();
        text.push_str(&format!("made{i} ---644 0 0 {}\n", file.to_str().unwrap()));
    }
    text.push_str("$\n");
    text
}

fn noise_len(i: u64) -> usize {
    (i * i * 97) as usize
}

/// Many small files with every other one removed, large attributes, a file that shares its blocks.
fn pepper(at: &Path, noise: &mut Noise) {
    fs::create_dir(at).unwrap();
    let files = 200 + noise.below(600);
    for i in 0..files {
        fs::write(at.join(i.to_string()), noise.bytes(3000)).unwrap();
    }
    let directory = File::open(at).unwrap();
    rustix::fs::syncfs(&directory).unwrap();
    for i in (0..files).step_by(2) {
        fs::remove_file(at.join(i.to_string())).unwrap();
    }
    for i in [1, 3, 5, 7] {
        let value = noise.bytes(100 + noise_len(i * 3) % 60_000);
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(at.join(i.to_string()), "user.noise", &value, flags).unwrap();
        let (from, to) = (
            File::open(at.join(i.to_string())).unwrap(),
            File::create(at.join(format!("twin{i}"))).unwrap(),
        );
        // Not all of them can share blocks.
        let _ = rustix::fs::ioctl_ficlone(&to, &from);
    }
}

#[test]
fn noise_in_free_space_does_not_matter() {
    for (seed, recipe) in seeds(20).zip(VERSION_5.iter().cycle()) {
        let mut noise = Noise::new(seed);
        let xfs = Xfs::make(recipe, &mut noise, seed);
        xfs.live(&mut noise);
        xfs.oracle(true, &mut noise);
    }
}

#[test]
fn noise_in_the_free_space_of_version_4_and_of_large_blocks_does_not_matter() {
    for (seed, recipe) in seeds(21).zip(UNMOUNTED.iter().cycle()) {
        let mut noise = Noise::new(seed);
        Xfs::make(recipe, &mut noise, seed).oracle(false, &mut noise);
    }
}

#[test]
fn a_mounted_one_is_not_clean_until_its_log_is_replayed() {
    for recipe in &VERSION_5[..2] {
        let mut noise = Noise::new(22);
        let mut xfs = Xfs::make(recipe, &mut noise, 22);
        xfs.live(&mut noise);
        let copy = xfs.folder.path().join("copy");
        {
            let mounted = xfs.mount();
            mounted.live(&mut noise, 9);
            run("coreutils", "sync", &["-f", mounted.at.to_str().unwrap()]);
            fs::copy(&xfs.volume, &copy).unwrap();
        }
        xfs.compare();
        let map = look(&copy);
        assert_eq!(map.kind, FsKind::Xfs);
        assert_eq!(map.clean, Clean::NotClean { reason: "the log needs recovery".into() });
        assert!(map.uuid.is_some());
        xfs.volume = copy;
        // Its twin is unmounted by now.
        drop(xfs.mount());
        assert_eq!(xfs.compare().taken, Taken::Map);
        xfs.oracle(true, &mut noise);
    }
}
