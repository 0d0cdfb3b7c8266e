//! Disks that mean harm: what the fuzzers run, over their seeds and over mutations of them, the same every time.
//!
//! `fuzz/src/disk.rs` says what is asserted. `IMPRINT_MUTATIONS` sets how many mutations each seed gets.

#![allow(clippy::unwrap_used, reason = "a failed precondition ends the test")]

#[path = "../../fuzz/src/disk.rs"]
mod disk;
#[path = "../../fuzz/src/disk_seeds.rs"]
mod disk_seeds;

#[path = "../../fuzz/src/foreign.rs"]
mod foreign;

use ramdisk_agent::fs::{Taken, map_volume};
use ramdisk_agent::table::{TableKind, TableOutcome, read_table};

/// A generator of numbers that is the same every time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % (limit.max(1) as u64)).unwrap()
    }
}

/// Values at the edges of fields of 1, 2, 4 and 8 bytes.
const EDGES: [u64; 10] =
    [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10_0000, 0x7FFF_FFFF, 0xFFFF_FFFF, u64::MAX];

fn mutate(bytes: &mut [u8], numbers: &mut Numbers) {
    for _ in 0..=numbers.below(3) {
        // The first pieces hold most of what says where the others are.
        let end = if numbers.below(2) == 0 { bytes.len() } else { bytes.len().min(3000) };
        let at = numbers.below(end);
        let width = (1 << numbers.below(4)).min(bytes.len() - at);
        if numbers.below(2) == 0 {
            bytes[at] ^= 1 << numbers.below(8);
        } else {
            let edge = EDGES[numbers.below(EDGES.len())].to_le_bytes();
            bytes[at..at + width].copy_from_slice(&edge[..width]);
        }
    }
}

fn run(target: fn(&[u8]), name: &str) {
    run_over(target, disk_seeds::seeds(name));
}

fn run_over(target: fn(&[u8]), seeds: Vec<Vec<u8>>) {
    let mutations = std::env::var("IMPRINT_MUTATIONS").map_or(300, |text| text.parse().unwrap());
    let mut numbers = Numbers(0x1234_5678_9ABC_DEF1);
    for seed in seeds {
        target(&seed);
        for _ in 0..mutations {
            let mut input = seed.clone();
            mutate(&mut input, &mut numbers);
            target(&input);
        }
    }
}

#[test]
fn the_seeds_are_what_they_are_meant_to_be() {
    for target in [
        "ext_map",
        "xfs_map",
        "btrfs_map",
        "ntfs_map",
        "exfat_map",
        "lvm2_map",
        "fat_map",
        "swap_map",
    ] {
        for seed in disk_seeds::seeds(target) {
            let mut disk = disk::Sparse::decode(&seed, 1 << 40).unwrap();
            let len = u64::from_le_bytes(seed[..8].try_into().unwrap());
            let map = map_volume(&mut disk, len).unwrap();
            assert_eq!(map.taken, Taken::Map, "{target}");
            assert!(target.starts_with(&map.kind.to_string()[..3]), "{target}: {}", map.kind);
        }
    }
    for seed in disk_seeds::seeds("table").split_last().unwrap().1 {
        let mut disk = disk::Sparse::decode(seed, 1 << 40).unwrap();
        let len = u64::from_le_bytes(seed[..8].try_into().unwrap());
        match read_table(&mut disk, len, 512).unwrap() {
            TableOutcome::Table(table) => assert_ne!(table.kind, TableKind::None),
            TableOutcome::Refused(refusal) => panic!("{refusal}"),
        }
    }
}

#[test]
fn mutated_ext_filesystems() {
    run(disk::ext_map, "ext_map");
}

#[test]
fn mutated_xfs() {
    run(disk::xfs_map, "xfs_map");
}

#[test]
fn mutated_btrfs() {
    run(disk::btrfs_map, "btrfs_map");
}

#[test]
fn mutated_ntfs() {
    run(disk::ntfs_map, "ntfs_map");
}

#[test]
fn mutated_exfat() {
    run(disk::exfat_map, "exfat_map");
}

#[test]
fn mutated_lvm2() {
    run(disk::lvm2_map, "lvm2_map");
}

#[test]
fn mutated_fat_filesystems() {
    run(disk::fat_map, "fat_map");
}

#[test]
fn mutated_swap_areas() {
    run(disk::swap_map, "swap_map");
}

#[test]
fn mutated_tables() {
    run(disk::table, "table");
}

#[test]
fn mutated_signatures() {
    run(disk::probe, "probe");
}

#[test]
fn mutated_foreign_images() {
    run_over(foreign::foreign, foreign::seeds());
    run_over(foreign::folder, foreign::folder_seeds());
}
