//! ext: superblock, descriptors, block bitmaps, the journal.

mod sums;

use std::fs;

use super::{Reseal, Target, mutate};
use crate::ext::{EXT2, EXT4, Ext, Recipe, ext4};
use crate::noise::Noise;
use crate::tools::e2fs;
use sums::Sums;

/// Groups with a bitmap of their own, and such as have none yet: by the first backup, and in meta groups.
const GROUPS: [Recipe; 3] = [
    ext4(1024, "-b 1024 -g 1024 -O ^flex_bg"),
    ext4(1024, "-b 1024 -g 256 -O meta_bg,^resize_inode,^flex_bg"),
    ext4(1024, "-b 1024 -g 1024 -O ^64bit,metadata_csum_seed"),
];

/// Checksums of descriptors only.
const UNSEALED: Recipe = ext4(1024, "-b 1024 -g 2048 -O ^64bit,^metadata_csum,uninit_bg");

/// Superblock, descriptors and bitmaps, by what dumpe2fs says of them.
fn ext_targets(ext: &Ext, checksums: bool) -> Vec<Target> {
    let field = 4;
    let mut targets = vec![Target { field, ..Target::bits(1024..2048) }];
    let block_at = |text: &str| -> u64 {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u64>().unwrap() * ext.block
    };
    let report = e2fs("dumpe2fs", &[ext.volume.to_str().unwrap()]);
    let places = |what: &str| -> Vec<u64> {
        report
            .lines()
            .filter_map(|line| line.split_once(what))
            .map(|(_, at)| block_at(at))
            .collect()
    };
    let bitmaps = places("Block bitmap at ");
    for at in bitmaps.iter().take(4) {
        let range = *at..at + ext.block;
        targets.push(Target { field, same_count: true, ..Target::bits(range) });
    }
    if !checksums {
        for at in places("Inode bitmap at ").iter().take(1) {
            // Few of its bits are ever used.
            targets.push(Target { field, same_count: true, ..Target::bits(*at..at + 64) });
        }
        for at in places("Inode table at ").iter().take(1) {
            targets.push(Target { field, ..Target::bits(*at..at + 16 * ext.block) });
        }
        let said = e2fs("debugfs", &["-R", "stat new1", ext.volume.to_str().unwrap()]);
        if let Some((_, at)) = said.split_once("(IND):") {
            let at = block_at(at);
            targets.push(Target { field, ..Target::bits(at..at + 64) });
        }
    }
    for (_, table) in
        report.lines().filter_map(|line| line.split_once("Group descriptors at ")).take(1)
    {
        let at = block_at(table);
        let len = (bitmaps.len() as u64 * 32).min(ext.block);
        targets.push(Target { field, ..Target::bits(at..at + len) });
    }
    assert!(targets.len() > 2, "{report}");
    targets
}

/// The same with the checksums made right again: nothing but counts and copies tells.
fn sealed_targets(bytes: &[u8]) -> Vec<Target> {
    let Some(sums) = Sums::of(bytes) else { return Vec::new() };
    let seal: Reseal = Box::new(Sums::seal_superblock);
    let mut targets =
        vec![Target { field: 4, reseal: Some(seal), ..Target::bits(1024..1024 + 0x300) }];
    for (group, range) in sums.descriptors().enumerate().take(8) {
        let sums = sums.clone();
        let seal: Reseal = Box::new(move |bytes| sums.seal_descriptor(bytes, group));
        targets.push(Target { field: 4, reseal: Some(seal), ..Target::bits(range) });
    }
    for (group, at) in sums.bitmaps().take(4) {
        let sums = sums.clone();
        let range = at..at + sums.bitmap_len();
        let seal: Reseal = Box::new(move |bytes| sums.seal_bitmap(bytes, group));
        // A changed word may have as many bits set as before, which nothing but all inodes would tell.
        targets.push(Target { reseal: Some(seal), ..Target::bits(range) });
    }
    targets
}

fn mutate_ext<'a>(recipes: impl IntoIterator<Item = &'a Recipe>, checksums: bool) {
    for (seed, recipe) in (9_000..).zip(recipes) {
        let mut noise = Noise::new(seed);
        let ext = Ext::make(recipe, 5_000, &mut noise, seed);
        ext.churn(&mut noise);
        let mut bytes = fs::read(&ext.volume).unwrap();
        let mut targets = ext_targets(&ext, checksums);
        targets.extend(sealed_targets(&bytes));
        mutate(&mut bytes, &targets, &mut noise, &ext.what);
    }
}

#[test]
fn damaged_ext_with_checksums_is_never_mapped_short() {
    mutate_ext(&EXT4[..2], true);
}

#[test]
fn damaged_groups_of_ext_are_never_mapped_short() {
    mutate_ext(&GROUPS, true);
}

#[test]
fn damaged_ext_without_checksums_is_never_mapped_short() {
    mutate_ext(EXT2[..2].iter().chain([&UNSEALED]), false);
}

/// Superblock, descriptors and the journal, but not its other structures: a filesystem that was cut off has older bitmaps on the disk,
/// of which nothing is believed.
#[test]
fn damaged_journals_are_never_mapped_short() {
    let mut noise = Noise::new(9_100);
    let ext = crate::crashed::crash(&EXT4[1], &mut noise, 9_100);
    let mut bytes = fs::read(&ext.volume).unwrap();
    let mut targets = ext_targets(&ext, true);
    targets.retain(|target| {
        target.range.start == 1024 || target.range.end < target.range.start + ext.block
    });
    let journal = crate::crashed::journal_at(&ext);
    let start = u32::from_be_bytes(bytes[journal as usize + 0x1C..][..4].try_into().unwrap());
    let log = journal + u64::from(start.max(1)) * ext.block;
    targets.push(Target { field: 4, ..Target::bits(journal..journal + 256) });
    for len in [64, 1024, 64 << 10] {
        targets.push(Target { field: 4, ..Target::bits(log..log + len) });
    }
    let seal: Reseal = Box::new(Sums::seal_superblock);
    targets.push(Target { field: 4, reseal: Some(seal), ..Target::bits(1024..1024 + 0x300) });
    // The headers of the log's own blocks.
    for at in (log..log + (1 << 20)).step_by(ext.block as usize) {
        if bytes[at as usize..].starts_with(&crate::crashed::JOURNAL_MAGIC) {
            targets.push(Target { field: 4, ..Target::bits(at..at + 16) });
        }
    }
    assert!(targets.len() > 8, "{} places", targets.len());
    mutate(&mut bytes, &targets, &mut noise, &ext.what);
}
