//! Damaged metadata must not make a map smaller without a word.
//!
//! One bit, or one whole field, is changed at a time. The result may be a map that holds at least what the map of the undamaged
//! filesystem held, or a volume taken raw, or one that is said to be not clean; never a panic or a search without end.

use std::fs;
use std::io::Cursor;
use std::ops::Range;
use std::time::{Duration, Instant};

use ramdisk_agent::extents::Extents;
use ramdisk_agent::fs::{Clean, Taken, VolumeMap, map_volume};

use crate::ext::{EXT2, EXT4, Ext, Recipe};
use crate::fat::Fat;
use crate::noise::{Noise, rounds};
use crate::tools::e2fs;

/// Mutations of each filesystem, per round asked for.
const PER_ROUND: u64 = 30;
/// From this length on a volume gets fewer mutations.
const LARGE_LEN: u64 = 8 << 20;
/// No mutation may take longer: the volumes have a few MiB, and a debug build maps them in milliseconds.
const LONGEST: Duration = Duration::from_secs(20);

fn look(bytes: &[u8]) -> VolumeMap {
    let start = Instant::now();
    let map = map_volume(&mut Cursor::new(bytes), bytes.len() as u64).unwrap();
    assert!(start.elapsed() < LONGEST, "took {:?}", start.elapsed());
    map
}

/// Whether every byte of `bytes` that `pristine` has in use would be kept, or something is said.
fn is_harmless(bytes: &[u8], pristine: &Extents) -> bool {
    let map = look(bytes);
    match (&map.taken, &map.clean) {
        (Taken::Raw { .. }, _) => map.used == Extents::single(0, bytes.len() as u64),
        (Taken::Map, Clean::NotClean { .. }) => true,
        (Taken::Map, _) => pristine.subtract(&map.used).is_empty(),
    }
}

/// A range that is changed, and by how much at once.
struct Target {
    range: Range<u64>,
    /// Bytes of the fields that are also changed as a whole; 0: single bits only.
    field: u64,
    /// Where a second copy is that gets the same change.
    copy: Option<u64>,
}

impl Target {
    /// Bits of a range of which there is no copy.
    fn bits(range: Range<u64>) -> Self {
        Self { range, field: 0, copy: None }
    }

    /// Changes bytes, or changes them back.
    fn apply(&self, bytes: &mut [u8], at: u64, change: &[u8]) {
        for start in [Some(self.range.start), self.copy].into_iter().flatten() {
            let at = (start + at) as usize;
            bytes[at..at + change.len()].iter_mut().zip(change).for_each(|(byte, c)| *byte ^= c);
        }
    }

    /// A place in the range and a change to make there.
    fn pick(&self, noise: &mut Noise) -> (u64, Vec<u8>) {
        let len = self.range.end - self.range.start;
        if self.field > 0 && noise.chance(2) {
            (noise.below(len / self.field) * self.field, noise.bytes(self.field as usize))
        } else {
            (noise.below(len), vec![1 << noise.below(8)])
        }
    }
}

fn mutate(bytes: &mut [u8], targets: &[Target], noise: &mut Noise, what: &str) {
    let pristine = look(bytes);
    assert_eq!((&pristine.taken, &pristine.clean), (&Taken::Map, &Clean::Clean), "{what}");
    // What lies behind the filesystem's end is kept as well, but a boot sector that claims a longer filesystem cannot be told from a
    // right one: nothing of that filesystem is lost by it.
    let behind = Extents::single(pristine.fs_bytes, bytes.len() as u64 - pristine.fs_bytes);
    let held = pristine.used.subtract(&behind);
    // Large volumes take longer to map.
    let changes = rounds() * PER_ROUND / (1 + bytes.len() as u64 / LARGE_LEN);
    let mut silent = Vec::new();
    for target in targets {
        for _ in 0..changes {
            let (at, change) = target.pick(noise);
            target.apply(bytes, at, &change);
            if !is_harmless(bytes, &held) {
                silent.push((target.range.start + at, change.clone()));
            }
            target.apply(bytes, at, &change);
        }
    }
    assert!(
        silent.is_empty(),
        "{what}: {} changes lose data silently, (byte, xor): {silent:x?}",
        silent.len()
    );
}

/// Superblock, descriptors and block bitmaps, by what dumpe2fs says of them.
fn ext_targets(ext: &Ext, checksums: bool) -> Vec<Target> {
    let field = 4;
    let mut targets = vec![Target { range: 1024..2048, field, copy: None }];
    let block_at = |text: &str| -> u64 {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u64>().unwrap() * ext.block
    };
    let report = e2fs("dumpe2fs", &[ext.volume.to_str().unwrap()]);
    let bitmaps: Vec<_> =
        report.lines().filter_map(|line| line.split_once("Block bitmap at ")).collect();
    for (_, bitmap) in bitmaps.iter().take(4) {
        let at = block_at(bitmap);
        // Without checksums a changed word may have as many bits set as before, which nothing but all inodes would tell.
        targets.push(Target {
            range: at..at + ext.block,
            field: if checksums { field } else { 0 },
            copy: None,
        });
    }
    for (_, table) in
        report.lines().filter_map(|line| line.split_once("Group descriptors at ")).take(1)
    {
        let at = block_at(table);
        let len = (bitmaps.len() as u64 * 32).min(ext.block);
        targets.push(Target { range: at..at + len, field, copy: None });
    }
    assert!(targets.len() > 2, "{report}");
    targets
}

fn mutate_ext(recipes: &[Recipe], checksums: bool) {
    for (i, recipe) in recipes.iter().enumerate() {
        let seed = 9_000 + i as u64;
        let mut noise = Noise::new(seed);
        let ext = Ext::make(recipe, 5_000, &mut noise, seed);
        ext.churn(&mut noise);
        let mut bytes = fs::read(&ext.volume).unwrap();
        mutate(&mut bytes, &ext_targets(&ext, checksums), &mut noise, &ext.what);
    }
}

#[test]
fn damaged_ext_with_checksums_is_never_mapped_short() {
    mutate_ext(&EXT4[..2], true);
}

#[test]
fn damaged_ext_without_checksums_is_never_mapped_short() {
    mutate_ext(&EXT2[..2], false);
}

fn mutate_fat(bits: u32) {
    for round in 0..2 {
        let seed = 10_000 + u64::from(bits) + round;
        let mut noise = Noise::new(seed);
        let fat = Fat::make(bits, &mut noise, seed);
        fat.populate(&mut noise);
        let mut bytes = fs::read(&fat.volume).unwrap();
        let u16_at = |at: usize| u64::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        let sector = u16_at(11);
        let reserved = u16_at(14) * sector;
        let table = sector * if bits == 32 { u16_at(36) } else { u16_at(22) };
        let copies = u64::from(bytes[16]);
        let root = reserved + copies * table;
        let root_len = if bits == 32 { 512 } else { u16_at(17) * 32 };
        let used = look(&bytes).used;
        let start_of_directories = root..root + root_len;
        // The first entries of the table are those of directories and of the first files.
        let busy = table.min(512);
        let targets = [
            Target::bits(0..512),
            Target { range: 11..51, field: 1, copy: None },
            Target {
                range: reserved..reserved + busy,
                field: 2,
                copy: (copies > 1).then_some(reserved + table),
            },
            Target {
                range: reserved..reserved + table,
                field: 2,
                copy: (copies > 1).then_some(reserved + table),
            },
            Target { range: start_of_directories, field: 2, copy: None },
        ];
        assert!(used.contains_range(0, root + root_len), "{}", fat.what);
        mutate(&mut bytes, &targets, &mut noise, &fat.what);
    }
}

#[test]
fn damaged_fat12_is_never_mapped_short() {
    mutate_fat(12);
}

#[test]
fn damaged_fat16_is_never_mapped_short() {
    mutate_fat(16);
}

#[test]
fn damaged_fat32_is_never_mapped_short() {
    mutate_fat(32);
}
