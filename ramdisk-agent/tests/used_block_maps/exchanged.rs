//! ext without checksums of its bitmaps: one used cluster marked as free, and a free one as used, in the same group. No count tells;
//! only the inodes do, and of whatever kind the block is, the volume must be taken raw. The same in the inode bitmaps.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Cursor;
use std::os::unix::fs::FileExt;

use ramdisk_agent::fs::{Clean, Taken, VolumeMap, map_volume};

use crate::crashed::journal_by_debugfs;
use crate::ext::{EXT2, EXT3, EXT4, Ext, Recipe, ext4};
use crate::noise::{Noise, rounds};
use crate::tools::e2fs;

/// Exchanges in each filesystem, per round asked for.
const PER_ROUND: u64 = 1;

/// Beside those of the other tests: what has blocks of its own that are rare.
const RARE: [Recipe; 3] = [
    ext4(4096, "-b 4096 -I 512 -O ^metadata_csum,quota,project,ea_inode,inline_data"),
    ext4(1024, "-b 1024 -O ^metadata_csum,orphan_file"),
    ext4(65536, "-b 65536 -N 400 -J size=64 -O ^metadata_csum,^resize_inode"),
];

fn recipes() -> impl Iterator<Item = &'static Recipe> + Clone {
    let unsealed = |recipe: &&Recipe| recipe.options.contains("^metadata_csum");
    EXT2.iter().chain(&EXT3).chain(EXT4.iter().filter(unsealed)).chain(&RARE)
}

/// Gives it files of every shape: attributes in blocks and in inodes, all levels of blocks of numbers, an extent tree with nodes, a block
/// that is bad.
fn enrich(ext: &Ext, noise: &mut Noise) {
    let folder = tempfile::tempdir().unwrap();
    let (value, long, far, comb) = (
        folder.path().join("value"),
        folder.path().join("long"),
        folder.path().join("far"),
        folder.path().join("comb"),
    );
    fs::write(&value, noise.bytes(700)).unwrap();
    fs::write(&long, noise.bytes(6000)).unwrap();
    let numbers = ext.block / 4;
    let sparse = File::create(&far).unwrap();
    for block in [11, 12, 12 + numbers, 12 + numbers + numbers * numbers] {
        // Of 64 KiB blocks the last level begins beyond what a file may have.
        if block < 1 << 31 {
            sparse.write_all_at(b"far", block * ext.block).unwrap();
        }
    }
    let sparse = File::create(&comb).unwrap();
    for tooth in 0..20 {
        sparse.write_all_at(b"tooth", tooth * 2 * ext.block.max(4096)).unwrap();
    }
    let (value, long) = (value.to_str().unwrap(), long.to_str().unwrap());
    let mut script = String::new();
    for (file, name) in [(&far, "far"), (&comb, "comb")] {
        script.push_str(&format!("write {} {name}\n", file.to_str().unwrap()));
    }
    script.push_str(&format!("ea_set -f {value} far user.own\nea_set -f {long} comb user.long\n"));
    script.push_str(&format!("symlink slow {}\n", "s/".repeat(100)));
    script.push_str("symlink fast short\nmknod pipe p\nmknod device b 8 1\n");
    ext.debugfs(&script);
    ext.repair();
    let bad = folder.path().join("bad");
    let free = ext.free_by_tool();
    let free = free.iter().last().unwrap();
    fs::write(&bad, format!("{}\n", (free.end() - 1) / ext.block)).unwrap();
    crate::tools::status("e2fsprogs", "e2fsck", &["-fy", "-l", bad.to_str().unwrap(), ext.path()]);
    ext.repair();
}

/// A bitmap: where it is, and how many bits it has.
struct Bits {
    at: usize,
    count: u64,
}

impl Bits {
    fn is_set(&self, bytes: &[u8], bit: u64) -> bool {
        bytes[self.at + (bit / 8) as usize] >> (bit % 8) & 1 == 1
    }

    fn flip(&self, bytes: &mut [u8], bit: u64) {
        bytes[self.at + (bit / 8) as usize] ^= 1 << (bit % 8);
    }

    /// A bit that is set, and one that is not; a bitmap may have only one kind.
    fn pair(&self, bytes: &[u8], noise: &mut Noise) -> Option<(u64, u64)> {
        let (set, clear): (Vec<u64>, Vec<u64>) =
            (0..self.count).partition(|bit| self.is_set(bytes, *bit));
        (!set.is_empty() && !clear.is_empty()).then(|| (*noise.pick(&set), *noise.pick(&clear)))
    }
}

/// The bitmaps of all groups in which both kinds may be, by what dumpe2fs says: of blocks, and of inodes.
fn bitmaps(ext: &Ext) -> (Vec<Bits>, Vec<Bits>) {
    let report = e2fs("dumpe2fs", &[ext.path()]);
    let number = |text: &str| -> u64 {
        let digits = text.trim_start().chars().take_while(char::is_ascii_digit);
        digits.collect::<String>().parse().unwrap()
    };
    let field = |name: &str| report.lines().find_map(|line| line.strip_prefix(name)).map(number);
    let cluster = field("Cluster size:").unwrap_or(ext.block) / ext.block;
    let per_group = field("Inodes per group:").unwrap();
    let (mut blocks, mut inodes) = (Vec::new(), Vec::new());
    let (mut count, mut uninit) = (0, [false; 2]);
    for line in report.lines() {
        if let Some((_, range)) = line.split_once(": (Blocks ") {
            let (first, last) = range.split_once('-').unwrap();
            count = (number(last) + 1 - number(first)).div_ceil(cluster);
            uninit = ["BLOCK_UNINIT", "INODE_UNINIT"].map(|flag| line.contains(flag));
        }
        // Both on one line, if they are side by side.
        if let Some((_, at)) = line.split_once("Block bitmap at ").filter(|_| !uninit[0]) {
            blocks.push(Bits { at: (number(at) * ext.block) as usize, count });
        }
        if let Some((_, at)) = line.split_once("Inode bitmap at ").filter(|_| !uninit[1]) {
            inodes.push(Bits { at: (number(at) * ext.block) as usize, count: per_group });
        }
    }
    assert!(!blocks.is_empty() && !inodes.is_empty(), "{report}");
    (blocks, inodes)
}

fn look(bytes: &[u8]) -> VolumeMap {
    map_volume(&mut Cursor::new(bytes), bytes.len() as u64).unwrap()
}

/// What kind of reason it was: without the numbers in it.
fn kind_of(reason: &str) -> String {
    reason
        .split_whitespace()
        .filter(|word| word.parse::<u64>().is_err())
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn no_used_block_can_be_exchanged_for_a_free_one() {
    let mut reasons = BTreeMap::<String, u64>::new();
    // One of each kind, more often if more rounds are asked for.
    let count = recipes().count().max(rounds() as usize / 4);
    for (seed, recipe) in (70_000_000..).zip(recipes().cycle()).take(count) {
        let mut noise = Noise::new(seed);
        let ext = Ext::make(recipe, 6_000, &mut noise, seed);
        ext.churn(&mut noise);
        enrich(&ext, &mut noise);
        ext.check();
        let mut bytes = fs::read(&ext.volume).unwrap();
        let pristine = look(&bytes);
        assert_eq!(
            (&pristine.taken, &pristine.clean),
            (&Taken::Map, &Clean::Clean),
            "{}",
            ext.what
        );
        let (blocks, inodes) = bitmaps(&ext);
        for bits in [blocks, inodes] {
            for _ in 0..rounds() * PER_ROUND {
                let bits = noise.pick(&bits);
                let Some((set, clear)) = bits.pair(&bytes, &mut noise) else { continue };
                [set, clear].iter().for_each(|bit| bits.flip(&mut bytes, *bit));
                let map = look(&bytes);
                match (&map.taken, &map.clean) {
                    (Taken::Raw { reason }, Clean::Clean) => {
                        *reasons.entry(kind_of(reason)).or_default() += 1;
                    }
                    other => panic!(
                        "{}: bits {set} and {clear} of the bitmap at {} exchanged: {other:?}",
                        ext.what, bits.at
                    ),
                }
                [set, clear].iter().for_each(|bit| bits.flip(&mut bytes, *bit));
            }
        }
        assert_eq!(look(&bytes), pristine);
    }
    println!("{reasons:#?}");
    let found: BTreeSet<&str> = reasons.keys().map(String::as_str).collect();
    for reason in [
        "inode has blocks from on, some of which are marked as free",
        "inode is in use, and marked as free",
        "inode is marked as used, and is not",
    ] {
        assert!(found.contains(reason), "{found:?}");
    }
}

/// No inode has it, and no group.
#[test]
fn the_block_of_multiple_mount_protection_is_kept() {
    let mut noise = Noise::new(73);
    let ext = Ext::make(&ext4(1024, "-b 1024 -O ^metadata_csum,mmp"), 6_000, &mut noise, 73);
    let mut bytes = fs::read(&ext.volume).unwrap();
    let block = u64::from_le_bytes(bytes[1024 + 0x168..][..8].try_into().unwrap());
    let bits = &bitmaps(&ext).0[0];
    let (_, clear) = bits.pair(&bytes, &mut noise).unwrap();
    // Blocks of 1 KiB are counted from 1.
    [block - 1, clear].iter().for_each(|bit| bits.flip(&mut bytes, *bit));
    assert!(!bits.is_set(&bytes, block - 1));
    match look(&bytes).taken {
        Taken::Raw { reason } => assert!(reason.contains("own structures"), "{reason}"),
        Taken::Map => panic!("it was mapped"),
    }
}

/// What counts is the filesystem as a replay of its journal leaves it.
#[test]
fn an_exchange_in_a_filesystem_that_was_cut_off_is_not_believed() {
    let mut noise = Noise::new(71);
    for recipe in &EXT3[..2] {
        let ext = Ext::make(recipe, 6_000, &mut noise, 71);
        journal_by_debugfs(&ext, "", &mut noise);
        let mut bytes = fs::read(&ext.volume).unwrap();
        let pristine = look(&bytes);
        assert_eq!(
            (&pristine.taken, &pristine.clean),
            (&Taken::Map, &Clean::Clean),
            "{}",
            ext.what
        );
        assert!(pristine.note.is_some(), "{}", ext.what);
        let (blocks, _) = bitmaps(&ext);
        for _ in 0..rounds() {
            let bits = noise.pick(&blocks);
            let Some((set, clear)) = bits.pair(&bytes, &mut noise) else { continue };
            [set, clear].iter().for_each(|bit| bits.flip(&mut bytes, *bit));
            match look(&bytes).clean {
                Clean::NotClean { reason } => {
                    assert!(reason.contains("marked as free"), "{}: {reason}", ext.what);
                }
                other => panic!("{}: {other:?}", ext.what),
            }
            [set, clear].iter().for_each(|bit| bits.flip(&mut bytes, *bit));
        }
    }
}

/// An inode of a filesystem, and used blocks for its tree.
struct Victim {
    bytes: Vec<u8>,
    inode: usize,
    blocks: Vec<u64>,
    block: usize,
}

impl Victim {
    fn make(options: &'static str, noise: &mut Noise) -> Self {
        let ext = Ext::make(&ext4(1024, options), 6_000, noise, 72);
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        fs::write(&data, noise.bytes(40 << 10)).unwrap();
        ext.debugfs(&format!("write {} victim\n", data.to_str().unwrap()));
        ext.repair();
        let said = |command: &str| e2fs("debugfs", &["-R", command, ext.path()]);
        let blocks = said("blocks /victim");
        let place = said("imap /victim");
        let (_, place) = place.split_once("located at block ").unwrap();
        let (block, offset) = place.trim().split_once(", offset 0x").unwrap();
        let offset = usize::from_str_radix(offset.trim(), 16).unwrap();
        Self {
            bytes: fs::read(&ext.volume).unwrap(),
            inode: block.parse::<usize>().unwrap() * ext.block as usize + offset,
            blocks: blocks.split_whitespace().map(|block| block.parse().unwrap()).collect(),
            block: ext.block as usize,
        }
    }

    /// What it is taken for, with this map of blocks in the inode.
    fn reason(&mut self, map: &[u8], flags: u32) -> String {
        self.bytes[self.inode + 0x28..][..map.len()].copy_from_slice(map);
        self.bytes[self.inode + 0x20..][..4].copy_from_slice(&flags.to_le_bytes());
        match crate::mutation::look(&self.bytes).taken {
            Taken::Raw { reason } => reason,
            Taken::Map => panic!("it was mapped"),
        }
    }

    fn write(&mut self, block: u64, contents: &[u8]) {
        self.bytes[block as usize * self.block..][..contents.len()].copy_from_slice(contents);
    }
}

/// A node of an extent tree of so many levels, all entries of which lead to one block.
fn node(len: usize, depth: u16, block: u64) -> Vec<u8> {
    let entries = u16::try_from(len / 12 - 1).unwrap();
    let mut node = Vec::new();
    for field in [0xF30A, entries, entries, depth, 0, 0] {
        node.extend(field.to_le_bytes());
    }
    for number in 0..u32::from(entries) {
        node.extend(number.to_le_bytes());
        if depth == 0 {
            node.extend([1, 0, 0, 0]);
            node.extend(u32::try_from(block).unwrap().to_le_bytes());
        } else {
            node.extend(u32::try_from(block).unwrap().to_le_bytes());
            node.extend([0; 4]);
        }
    }
    node
}

/// In a tree whose nodes are each named hundreds of times there are more ways than any machine could follow.
#[test]
fn trees_that_mean_harm_end() {
    let mut noise = Noise::new(72);
    let mut victim = Victim::make("-b 1024 -O ^metadata_csum,^64bit,^extent", &mut noise);
    // A block of numbers that are its own.
    let own = victim.blocks[0];
    let numbers: Vec<u8> = (0..256).flat_map(|_| (own as u32).to_le_bytes()).collect();
    victim.write(own, &numbers);
    // Three levels of it are 16 million blocks.
    let mut map = [0; 60];
    map[56..].copy_from_slice(&(own as u32).to_le_bytes());
    let reason = victim.reason(&map, 0);
    assert!(reason.contains("or lead in a circle"), "{reason}");
    let far = [0xFF_u8; 60];
    assert!(victim.reason(&far, 0).contains("outside the filesystem"));

    let mut victim = Victim::make("-b 1024 -O ^metadata_csum", &mut noise);
    let blocks = victim.blocks.clone();
    for depth in 0..5 {
        let contents = node(victim.block, depth, blocks[usize::from(depth)]);
        victim.write(blocks[usize::from(depth) + 1], &contents);
    }
    let reason = victim.reason(&node(60, 5, blocks[5]), 0x8_0000);
    assert!(reason.contains("or lead in a circle"), "{reason}");
    let own = node(victim.block, 1, blocks[1]);
    victim.write(blocks[1], &own);
    for depth in [1, 2, 6, 400] {
        let reason = victim.reason(&node(60, depth, blocks[1]), 0x8_0000);
        assert!(reason.contains("the extent tree of inode"), "{depth}: {reason}");
    }
}
