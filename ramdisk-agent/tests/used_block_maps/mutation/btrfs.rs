//! btrfs: superblock and trees.

use std::fs;
use std::ops::Range;

use ramdisk_agent::fs::VolumeMap;

use super::{CRC32C, Reseal, Target, look, mutate};
use crate::btrfs::{self, Btrfs};
use crate::noise::Noise;

/// Makes the checksum of what begins there right.
fn seal(bytes: &mut [u8], len: u64) {
    let sum = CRC32C.checksum(&bytes[32..len as usize]);
    bytes[..4].copy_from_slice(&sum.to_le_bytes());
}

/// Superblock and every node of the trees that are read.
fn btrfs_targets(bytes: &[u8], map: &VolumeMap) -> Vec<Target> {
    const SUPERBLOCK: usize = 64 << 10;
    let sb = &bytes[SUPERBLOCK..SUPERBLOCK + 4096];
    let node = u64::from(u32::from_le_bytes(sb[148..152].try_into().unwrap()));
    // Those of roots, extents, chunks and the device.
    let (identity, trees) = (&sb[32..48], [1, 2, 3, 4]);
    let super_sums: Reseal = Box::new(|bytes| seal(&mut bytes[SUPERBLOCK..], 4096));
    let mut targets = vec![
        Target { field: 4, ..Target::bits(SUPERBLOCK as u64..SUPERBLOCK as u64 + 1200) },
        Target { field: 8, ..Target::bits(SUPERBLOCK as u64 + 48..SUPERBLOCK as u64 + 200) },
        Target {
            field: 8,
            reseal: Some(super_sums),
            ..Target::bits(SUPERBLOCK as u64 + 40..SUPERBLOCK as u64 + 1200)
        },
    ];
    let places = map.used.iter().flat_map(|used| (used.start..used.end()).step_by(node as usize));
    let nodes = places.filter(|at| {
        let header = &bytes[*at as usize..][..101];
        *at > 1 << 20 && &header[32..48] == identity && trees.contains(&header[88])
    });
    for at in nodes {
        targets.push(Target { field: 4, ..Target::bits(at..at + 300) });
        targets.push(Target::bits(at..at + node));
        // With a right checksum, an extent tree is contradicted by the free-space tree, chunks are by the device tree, and a wrong
        // root leads to a tree that does not hold as many bytes as the superblock says.
        let mut sealed = |range: Range<u64>, field| {
            let reseal: Reseal = Box::new(move |bytes| seal(&mut bytes[at as usize..], node));
            targets.push(Target { field, reseal: Some(reseal), ..Target::bits(range) });
        };
        sealed(at + 32..at + node, 0);
        sealed(at + 32..at + 400, 4);
        // Items are filled in from the end: that of a chunk has 80 bytes.
        sealed(at + node - 800..at + node, 8);
    }
    assert!(targets.len() >= 8, "{} places", targets.len());
    targets
}

#[test]
fn damaged_btrfs_is_never_mapped_short() {
    // Of the second copies of nodes nothing is told: this one has none.
    let mut noise = Noise::new(13_000);
    let btrfs = Btrfs::of(&btrfs::RECIPES[2], &mut noise, 13_000);
    btrfs.live(&mut noise);
    let mut bytes = fs::read(&btrfs.volume).unwrap();
    let targets = btrfs_targets(&bytes, &look(&bytes));
    mutate(&mut bytes, &targets, &mut noise, &btrfs.what);
}
