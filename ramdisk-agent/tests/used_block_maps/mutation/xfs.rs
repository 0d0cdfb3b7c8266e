//! XFS: superblock, headers of groups, free-space trees.

use std::fs;

use ramdisk_agent::fs::VolumeMap;

use super::{Target, look, mutate};
use crate::noise::Noise;
use crate::xfs::{UNMOUNTED, VERSION_5, Xfs};

/// Headers of the first groups, and every block of their free-space trees, by its magic number.
fn xfs_targets(bytes: &[u8], map: &VolumeMap) -> Vec<Target> {
    let be32 = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let sector = u64::from(be32(100) & 0xFFFF);
    let (block, checksums) = (u64::from(map.block_bytes), be32(100) >> 16 & 0xF == 5);
    let group = u64::from(be32(84)) * block;
    let mut targets = Vec::new();
    let mut add = |start: u64, len: u64, seal: u64| {
        targets.push(Target { field: 4, ..Target::bits(start..start + len) });
        if checksums {
            let seal = Some(start + seal);
            targets.push(Target { field: 4, seal, ..Target::bits(start..start + len) });
        }
    };
    for start in [0, group] {
        // Most of the superblock's sector is empty.
        add(start, sector, 224);
        for (number, seal) in [(1, 216), (2, 312), (3, 32)] {
            add(start + number * sector, sector, seal);
        }
    }
    let trees: &[&[u8]] = &[b"AB3B", b"AB3C", b"ABTB", b"ABTC"];
    let blocks = map.used.iter().flat_map(|used| (used.start..used.end()).step_by(block as usize));
    let blocks = blocks.filter(|at| {
        bytes.get(*at as usize..).is_some_and(|at| trees.iter().any(|magic| at.starts_with(magic)))
    });
    let count = blocks.take(20).map(|at| add(at, block, 52)).count();
    assert!(count >= 4, "{count} blocks of trees");
    targets
}

fn mutate_xfs<'a>(recipes: impl Iterator<Item = &'a crate::xfs::Recipe>, mountable: bool) {
    for (seed, recipe) in (11_000..).zip(recipes) {
        let mut noise = Noise::new(seed);
        let xfs = Xfs::make(recipe, &mut noise, seed);
        if mountable {
            xfs.live(&mut noise);
        }
        let mut bytes = fs::read(&xfs.volume).unwrap();
        let targets = xfs_targets(&bytes, &look(&bytes));
        mutate(&mut bytes, &targets, &mut noise, &xfs.what);
    }
}

#[test]
fn damaged_xfs_of_version_5_is_never_mapped_short() {
    // Two groups; many levels and the reverse map.
    mutate_xfs(VERSION_5[9..11].iter(), true);
}

#[test]
fn damaged_xfs_of_version_4_is_never_mapped_short() {
    mutate_xfs(UNMOUNTED[..2].iter(), false);
}
