//! exFAT: boot regions, table, bitmap, directories.

use std::fs;
use std::ops::Range;

use super::{Reseal, Target, mutate};
use crate::exfat::{self, Exfat, Places};
use crate::noise::Noise;

/// Boot regions, table, bitmap and first directories; with checksums made right, too.
fn exfat_targets(bytes: &[u8]) -> Vec<Target> {
    let places = || Places::of(bytes);
    let Places { region, fat, heap, cluster, root, folder } = places();
    let mut targets = Vec::new();
    let boot = |range: Range<u64>, field| {
        let places = places();
        let seal: Reseal = Box::new(move |bytes| places.seal_boot(bytes));
        Target {
            field,
            copy: Some(range.start + region),
            reseal: Some(seal),
            ..Target::bits(range)
        }
    };
    targets.extend([boot(0..512, 1), boot(64..120, 4), boot(72..104, 1)]);
    targets.push(Target { field: 4, ..Target::bits(0..2 * region) });
    for len in [40, 400, 4000] {
        targets.push(Target { field: 4, ..Target::bits(fat..fat + len) });
    }
    // mkfs.exfat puts the bitmap first, behind it the table of capital letters.
    targets.push(Target { field: 1, ..Target::bits(heap..heap + 64) });
    targets.push(Target { field: 4, ..Target::bits(heap..heap + 2 * cluster) });
    for start in [root, folder] {
        let places = places();
        let seal: Reseal = Box::new(move |bytes| places.seal_sets(bytes));
        let range = start..start + cluster.min(2048);
        targets.push(Target { field: 4, ..Target::bits(range.clone()) });
        targets.push(Target { field: 4, reseal: Some(seal), ..Target::bits(range) });
    }
    // Entries of bitmap and table, which have no checksum.
    targets.push(Target { field: 1, ..Target::bits(root..root + 128) });
    targets
}

#[test]
fn damaged_exfat_is_never_mapped_short() {
    for (seed, recipe) in (14_000..).zip([&exfat::RECIPES[0], &exfat::RECIPES[4]]) {
        let mut noise = Noise::new(seed);
        let exfat = Exfat::make(recipe, &mut noise, seed);
        exfat.live(&mut noise);
        let mut bytes = fs::read(&exfat.volume).unwrap();
        let targets = exfat_targets(&bytes);
        mutate(&mut bytes, &targets, &mut noise, &exfat.what);
    }
}
