//! ext2, ext3 and ext4 made by mke2fs and changed by debugfs and resize2fs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;

use ramdisk_agent::extents::Extents;
use ramdisk_agent::fs::{FsKind, VolumeMap};

use crate::noise::{Noise, seeds};
use crate::oracle::{expect_map, fill_free, free};
use crate::tools::{blkid, e2fs};
use crate::tree::{Node, Shape, assert_same, plant, snapshot};

/// mke2fs options and the block size that they mean.
pub struct Recipe {
    pub options: &'static str,
    pub block: u64,
    kind: FsKind,
}

pub const fn ext4(block: u64, options: &'static str) -> Recipe {
    Recipe { options, block, kind: FsKind::Ext4 }
}

pub const EXT2: [Recipe; 6] = [
    Recipe { options: "-t ext2 -b 1024", block: 1024, kind: FsKind::Ext2 },
    Recipe { options: "-t ext2 -b 2048 -I 128", block: 2048, kind: FsKind::Ext2 },
    Recipe { options: "-t ext2 -b 4096", block: 4096, kind: FsKind::Ext2 },
    Recipe {
        options: "-t ext2 -b 1024 -g 1024 -O ^sparse_super,^resize_inode",
        block: 1024,
        kind: FsKind::Ext2,
    },
    Recipe {
        options: "-t ext2 -b 1024 -g 512 -O meta_bg,^resize_inode",
        block: 1024,
        kind: FsKind::Ext2,
    },
    Recipe { options: "-t ext2 -b 1024 -O none", block: 1024, kind: FsKind::Ext2 },
];

pub const EXT3: [Recipe; 4] = [
    Recipe { options: "-t ext3 -b 1024", block: 1024, kind: FsKind::Ext3 },
    Recipe { options: "-t ext3 -b 2048 -g 4096", block: 2048, kind: FsKind::Ext3 },
    Recipe { options: "-t ext3 -b 4096 -I 128", block: 4096, kind: FsKind::Ext3 },
    Recipe {
        options: "-t ext3 -b 1024 -g 768 -O ^sparse_super,^resize_inode",
        block: 1024,
        kind: FsKind::Ext3,
    },
];

pub const EXT4: [Recipe; 36] = [
    ext4(4096, "-b 4096"),
    ext4(1024, "-b 1024"),
    ext4(2048, "-b 2048"),
    ext4(8192, "-b 8192"),
    ext4(65536, "-b 65536 -N 400 -J size=64"),
    ext4(4096, "-b 4096 -O ^has_journal"),
    ext4(4096, "-b 4096 -O bigalloc -C 16384"),
    ext4(1024, "-b 1024 -O bigalloc -C 4096 -g 8192"),
    ext4(4096, "-b 4096 -O bigalloc,^metadata_csum,^64bit,uninit_bg -C 65536"),
    ext4(1024, "-b 1024 -g 512 -O meta_bg,^resize_inode"),
    ext4(1024, "-b 1024 -g 256 -O meta_bg,^resize_inode,64bit,^flex_bg"),
    ext4(1024, "-b 1024 -g 1024 -O meta_bg,^resize_inode,^64bit"),
    ext4(1024, "-b 1024 -O ^flex_bg"),
    ext4(1024, "-b 1024 -g 1024 -O ^flex_bg,^metadata_csum,uninit_bg"),
    ext4(1024, "-b 1024 -g 2048 -O sparse_super2,^resize_inode"),
    ext4(1024, "-b 1024 -g 2048 -O sparse_super2,^resize_inode,^flex_bg -E num_backup_sb=1"),
    ext4(1024, "-b 1024 -g 2048 -O sparse_super2,^resize_inode -E num_backup_sb=0"),
    ext4(4096, "-b 4096 -O ^64bit"),
    ext4(1024, "-b 1024 -g 1024 -O ^64bit,^metadata_csum,uninit_bg"),
    ext4(1024, "-b 1024 -g 1024 -O 64bit,^metadata_csum,uninit_bg"),
    ext4(1024, "-b 1024 -g 1024 -O ^metadata_csum,^uninit_bg"),
    ext4(4096, "-b 4096 -O inline_data -I 256"),
    ext4(1024, "-b 1024 -O inline_data -I 1024"),
    ext4(1024, "-b 1024 -g 1024 -O metadata_csum_seed"),
    ext4(1024, "-b 1024 -g 1024 -O ^sparse_super,^resize_inode"),
    ext4(1024, "-b 1024 -g 512 -G 4"),
    ext4(1024, "-b 1024 -g 512 -G 64 -E lazy_itable_init=1"),
    ext4(4096, "-b 4096 -O quota,project"),
    ext4(4096, "-b 4096 -O ea_inode,large_dir"),
    ext4(4096, "-b 4096 -O casefold,encrypt,verity,stable_inodes"),
    ext4(4096, "-b 4096 -O orphan_file"),
    ext4(4096, "-b 4096 -O fast_commit"),
    // With the usual interval its tools wait for half a minute.
    ext4(4096, "-b 4096 -O mmp -E mmp_update_interval=1"),
    ext4(1024, "-b 1024 -g 1024 -E packed_meta_blocks=1"),
    ext4(1024, "-b 1024 -E stride=8,stripe_width=32 -g 4096"),
    ext4(1024, "-b 1024 -E resize=4000000"),
];

/// The most bytes in a volume, if so many blocks are enough for its kind.
const LARGEST: u64 = 80 << 20;

/// A volume in a folder that goes with it.
pub struct Ext {
    folder: tempfile::TempDir,
    pub volume: PathBuf,
    pub what: String,
    pub block: u64,
    kind: FsKind,
    files: Vec<String>,
}

impl Ext {
    /// Makes a filesystem of up to `most` blocks that holds a random tree; bytes that are not its own lie behind it.
    pub fn make(recipe: &Recipe, most: u64, noise: &mut Noise, seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (volume, source) = (folder.path().join("ext"), folder.path().join("source"));
        // A journal wants at least 1024 blocks, and 64 KiB ones are large.
        let least = if recipe.block > 8192 { 1700 } else { 4200 };
        let most = most.min(LARGEST / recipe.block);
        let blocks = least + noise.below(most.saturating_sub(least).max(1));
        let len = blocks * recipe.block;
        fs::create_dir(&source).unwrap();
        let shape = Shape { bytes: (len / 8).min(6 << 20), files: 60, unix: true };
        let files = plant(&source, &shape, noise);
        File::create(&volume).unwrap().set_len(len + 700 * noise.below(3)).unwrap();
        let (path, count) = (volume.to_str().unwrap().to_owned(), blocks.to_string());
        let type_ext4 = if recipe.kind == FsKind::Ext4 { "-t ext4 " } else { "" };
        let options = format!("{type_ext4}{}", recipe.options);
        let mut args = vec!["-q", "-F", "-d", source.to_str().unwrap(), "-L", "a label"];
        args.extend(options.split(' '));
        args.extend([path.as_str(), &count]);
        e2fs("mke2fs", &args);
        let what = format!("seed {seed}: mke2fs {options} with {blocks} blocks");
        Self { folder, volume, what, block: recipe.block, kind: recipe.kind, files }
    }

    pub fn path(&self) -> &str {
        self.volume.to_str().unwrap()
    }

    /// Has debugfs run these commands.
    pub fn debugfs(&self, commands: &str) {
        let script = self.folder.path().join("script");
        fs::write(&script, commands).unwrap();
        e2fs("debugfs", &["-w", "-f", script.to_str().unwrap(), self.path()]);
    }

    /// Deletes some files, writes others, gives one a large attribute.
    pub fn churn(&self, noise: &mut Noise) {
        let (value, extra) = (self.folder.path().join("value"), self.folder.path().join("extra"));
        fs::write(&value, noise.bytes(600)).unwrap();
        fs::write(&extra, noise.bytes((self.block * 20) as usize)).unwrap();
        let mut script = String::new();
        for file in self.files.iter().filter(|_| noise.chance(3)) {
            script.push_str(&format!("rm \"{file}\"\n"));
        }
        for i in 0..5 {
            script.push_str(&format!("write {} new{i}\n", extra.to_str().unwrap()));
        }
        script.push_str(&format!("ea_set -f {} new0 user.large\n", value.to_str().unwrap()));
        self.debugfs(&script);
        // debugfs leaves link counts, quotas and the like as they are.
        self.repair();
    }

    /// Makes right what debugfs leaves.
    pub fn repair(&self) {
        let output = crate::tools::status("e2fsprogs", "e2fsck", &["-fy", self.path()]);
        assert!(
            matches!(output.status.code(), Some(0 | 1)),
            "{}: e2fsck -fy: {output:?}",
            self.what
        );
    }

    /// Must find nothing.
    pub fn check(&self) {
        e2fs("e2fsck", &["-fn", self.path()]);
    }

    /// All files, as debugfs finds them.
    pub fn files(&self, name: &str) -> BTreeMap<PathBuf, Node> {
        let out = self.folder.path().join(name);
        fs::create_dir(&out).unwrap();
        e2fs("debugfs", &["-R", &format!("rdump / {}", out.to_str().unwrap()), self.path()]);
        let mut nodes = snapshot(&out);
        let attribute = self.folder.path().join("attribute");
        let command = format!("ea_get -f {} new0 user.large", attribute.to_str().unwrap());
        e2fs("debugfs", &["-R", &command, self.path()]);
        if let Ok(bytes) = fs::read(&attribute) {
            nodes.insert(
                "new0 user.large".into(),
                Node::File { len: 0, hash: blake3::hash(&bytes), mode: 0 },
            );
            fs::remove_file(attribute).unwrap();
        }
        fs::remove_dir_all(out).unwrap();
        nodes
    }

    /// The map must be what dumpe2fs prints, and noise in its free space must not matter.
    pub fn oracle(&self, noise: &mut Noise) {
        let what = &self.what;
        self.check();
        let before = self.files("before");
        let map = self.compare();
        assert_eq!(fill_free(&self.volume, &map, noise), self.free_by_tool().total_bytes());
        self.check();
        assert_same(&before, &self.files("after"), what);
    }

    /// Compares the map with dumpe2fs and blkid.
    pub fn compare(&self) -> VolumeMap {
        let what = &self.what;
        let map = expect_map(&self.volume, self.kind, what);
        let mine = free(&self.volume, &map);
        let theirs = self.free_by_tool();
        assert_eq!(mine.subtract(&theirs), Extents::new(), "{what}: only we call these free");
        assert_eq!(
            theirs.subtract(&mine),
            Extents::new(),
            "{what}: only dumpe2fs calls these free"
        );
        assert_eq!(map.used_bytes_claimed, map.fs_bytes - theirs.total_bytes(), "{what}");
        assert_eq!(u64::from(map.block_bytes), self.block, "{what}");
        assert_eq!(map.uuid, blkid(&self.volume, "UUID"), "{what}");
        assert_eq!(map.label, blkid(&self.volume, "LABEL"), "{what}");
        assert_eq!(Some(map.kind.to_string()), blkid(&self.volume, "TYPE"), "{what}");
        map
    }

    /// What dumpe2fs calls free.
    pub fn free_by_tool(&self) -> Extents {
        let report = e2fs("dumpe2fs", &[self.path()]);
        // With bigalloc a range ends with the first block of its last cluster.
        let cluster = report.lines().find_map(|line| line.strip_prefix("Cluster size:"));
        let cluster = cluster.map_or(self.block, |bytes| bytes.trim().parse().unwrap());
        let mut free = Extents::new();
        for line in report.lines() {
            let Some(ranges) = line.strip_prefix("  Free blocks: ") else { continue };
            for range in ranges.split(", ").filter(|range| !range.is_empty()) {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
                free.insert(first * self.block, (last - first) * self.block + cluster);
            }
        }
        free
    }
}

fn rounds_over(recipes: &[Recipe], test: u64) {
    for (seed, recipe) in seeds(test).zip(recipes.iter().cycle()) {
        let mut noise = Noise::new(seed);
        let ext = Ext::make(recipe, 20_000, &mut noise, seed);
        ext.churn(&mut noise);
        ext.oracle(&mut noise);
    }
}

#[test]
fn ext2_survives_noise_in_its_free_space() {
    rounds_over(&EXT2, 2);
}

#[test]
fn ext3_survives_noise_in_its_free_space() {
    rounds_over(&EXT3, 3);
}

/// The first and the second half of the recipes: two tests, as they run side by side.
#[test]
fn ext4_survives_noise_in_its_free_space() {
    rounds_over(&EXT4[..18], 4);
}

#[test]
fn ext4_survives_noise_in_its_free_space_with_rarer_features() {
    rounds_over(&EXT4[18..], 5);
}

#[test]
fn resized_filesystems_keep_their_maps() {
    // Shrinking moves metadata, growing uses up reserved descriptor blocks or turns to meta groups.
    let recipes = [
        "-b 1024 -g 1024",
        "-b 1024 -g 1024 -O ^flex_bg",
        "-b 1024 -g 1024 -O meta_bg,^resize_inode",
        "-b 4096",
    ];
    for (seed, options) in seeds(6).zip(recipes.iter().cycle()).take(12) {
        let mut noise = Noise::new(seed);
        let block = if options.contains("4096") { 4096 } else { 1024 };
        let mut ext = Ext::make(&ext4(block, options), 12_000, &mut noise, seed);
        for _ in 0..2 {
            let blocks = 10_000 + noise.below(50_000);
            let file = File::options().write(true).open(&ext.volume).unwrap();
            file.set_len(file.metadata().unwrap().len().max(blocks * block)).unwrap();
            ext.check();
            e2fs("resize2fs", &[ext.path(), &blocks.to_string()]);
            ext.what.push_str(&format!(", resized to {blocks}"));
            ext.oracle(&mut noise);
        }
    }
}
