//! Damaged metadata must not make a map smaller without a word.
//!
//! One bit, or one whole field, is changed at a time. The result may be a map that holds at least what the map of the undamaged
//! filesystem held, or a volume taken raw, or one that is said to be not clean; never a panic or a search without end.

use std::fs;
use std::io::Cursor;
use std::ops::Range;
use std::time::{Duration, Instant};

use crc::{CRC_32_ISCSI, Crc};
use ramdisk_agent::extents::Extents;
use ramdisk_agent::fs::{Clean, Taken, VolumeMap, map_volume};

use crate::btrfs::{self, Btrfs};
use crate::exfat::{self, Exfat, Places};
use crate::ext::{EXT2, EXT4, Ext, Recipe};
use crate::fat::Fat;
use crate::noise::{Noise, mutations, rounds};
use crate::ntfs::{Ntfs, RECIPES};
use crate::tools::e2fs;
use crate::xfs::{UNMOUNTED, VERSION_5, Xfs};

/// Mutations of each filesystem, per round asked for.
const PER_ROUND: u64 = 30;
/// From this length on a volume gets fewer mutations.
const LARGE_LEN: u64 = 8 << 20;
pub const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
/// No mutation may take longer: the volumes have a few MiB, and a debug build maps them in milliseconds.
const LONGEST: Duration = Duration::from_secs(20);

fn look(bytes: &[u8]) -> VolumeMap {
    let start = Instant::now();
    let map = map_volume(&mut Cursor::new(bytes), bytes.len() as u64).unwrap();
    assert!(start.elapsed() < LONGEST, "took {:?}", start.elapsed());
    map
}

/// How mutations ended.
#[derive(Debug, Default)]
struct Ends {
    raw: u64,
    not_clean: u64,
    /// With a map that holds all that it should.
    held: u64,
}

impl Ends {
    /// Whether every byte of `bytes` that `pristine` has in use would be kept, or something is said.
    fn add(&mut self, bytes: &[u8], pristine: &Extents) -> bool {
        let map = look(bytes);
        let (count, harmless) = match (&map.taken, &map.clean) {
            (Taken::Raw { .. }, _) => {
                (&mut self.raw, map.used == Extents::single(0, bytes.len() as u64))
            }
            (Taken::Map, Clean::NotClean { .. }) => (&mut self.not_clean, true),
            (Taken::Map, _) => (&mut self.held, pristine.subtract(&map.used).is_empty()),
        };
        *count += u64::from(harmless);
        harmless
    }
}

/// Makes checksums of a whole volume right.
type Reseal = Box<dyn Fn(&mut [u8])>;

/// A range that is changed, and by how much at once.
struct Target {
    range: Range<u64>,
    /// Bytes of the fields that are also changed as a whole; 0: single bits only.
    field: u64,
    /// Where a second copy is that gets the same change.
    copy: Option<u64>,
    /// Where the range's CRC-32C is, which is made right again: in it, and zero for its sake, or outside.
    seal: Option<u64>,
    /// Makes other checksums right.
    reseal: Option<Reseal>,
}

impl Target {
    /// Bits of a range of which there is no copy.
    fn bits(range: Range<u64>) -> Self {
        Self { range, field: 0, copy: None, seal: None, reseal: None }
    }

    /// Changes bytes, or changes them back.
    fn apply(&self, bytes: &mut [u8], at: u64, change: &[u8]) {
        for start in [Some(self.range.start), self.copy].into_iter().flatten() {
            let at = (start + at) as usize;
            bytes[at..at + change.len()].iter_mut().zip(change).for_each(|(byte, c)| *byte ^= c);
        }
        if let Some(seal) = self.seal {
            let seal = seal as usize..seal as usize + 4;
            bytes[seal.clone()].fill(0);
            let all = &bytes[self.range.start as usize..self.range.end as usize];
            let sum = CRC32C.checksum(all);
            bytes[seal].copy_from_slice(&sum.to_le_bytes());
        }
        if let Some(reseal) = &self.reseal {
            reseal(bytes);
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
    // Cut off anywhere it is read without complaint.
    for len in (0..2000).step_by(37).chain((0..50).map(|_| noise.below(bytes.len() as u64))) {
        look(&bytes[..len as usize]);
    }
    // What lies behind the filesystem's end is kept as well, but a boot sector that claims a longer filesystem cannot be told from a
    // right one: nothing of that filesystem is lost by it.
    let behind = Extents::single(pristine.fs_bytes, bytes.len() as u64 - pristine.fs_bytes);
    let held = pristine.used.subtract(&behind);
    // Large volumes take longer to map.
    let changes = rounds() * PER_ROUND / (1 + bytes.len() as u64 / LARGE_LEN);
    let changes = changes.max(mutations().div_ceil(targets.len() as u64));
    let mut silent = Vec::new();
    let mut ends = Ends::default();
    for target in targets {
        for _ in 0..changes {
            let (at, change) = target.pick(noise);
            target.apply(bytes, at, &change);
            if !ends.add(bytes, &held) {
                silent.push((target.range.start + at, change.clone()));
            }
            target.apply(bytes, at, &change);
        }
    }
    println!("{what}: {} mutations: {ends:?}", changes * targets.len() as u64);
    assert!(
        silent.is_empty(),
        "{what}: {} changes lose data silently, (byte, xor): {silent:x?}",
        silent.len()
    );
}

/// Superblock, descriptors and block bitmaps, by what dumpe2fs says of them.
fn ext_targets(ext: &Ext, checksums: bool) -> Vec<Target> {
    let field = 4;
    let mut targets = vec![Target { field, ..Target::bits(1024..2048) }];
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
            field: if checksums { field } else { 0 },
            ..Target::bits(at..at + ext.block)
        });
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
    // The headers of the log's own blocks.
    for at in (log..log + (1 << 20)).step_by(ext.block as usize) {
        if bytes[at as usize..].starts_with(&crate::crashed::JOURNAL_MAGIC) {
            targets.push(Target { field: 4, ..Target::bits(at..at + 16) });
        }
    }
    assert!(targets.len() > 8, "{} places", targets.len());
    mutate(&mut bytes, &targets, &mut noise, &ext.what);
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
        let copy = (copies > 1).then_some(reserved + table);
        let targets = [
            Target::bits(0..512),
            Target { field: 1, ..Target::bits(11..51) },
            Target { field: 2, copy, ..Target::bits(reserved..reserved + busy) },
            Target { field: 2, copy, ..Target::bits(reserved..reserved + table) },
            Target { field: 2, ..Target::bits(start_of_directories) },
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

/// Boot sector, the first file records with their mirror, others, `$Bitmap`.
fn ntfs_targets(bytes: &[u8], map: &VolumeMap, noise: &mut Noise) -> Vec<Target> {
    let cluster = u64::from(map.block_bytes);
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let (table, mirror) = (u64_at(48) * cluster, u64_at(56) * cluster);
    let record = 1024;
    assert!(bytes[table as usize..].starts_with(b"FILE"));
    let mut targets = vec![
        Target { field: 1, ..Target::bits(0..512) },
        Target { field: 8, ..Target::bits(40..64) },
    ];
    for number in 0..4 {
        let at = table + number * record;
        let copy = Some(mirror + number * record);
        targets.push(Target { field: 2, ..Target::bits(at..at + 400) });
        targets.push(Target { field: 2, copy, ..Target::bits(at..at + 400) });
    }
    let last = bytes.len() as u64 - record;
    let in_use: Vec<u64> = (table..last)
        .step_by(record as usize)
        .filter(|at| {
            bytes[*at as usize..].starts_with(b"FILE") && bytes[*at as usize + 22] & 1 == 1
        })
        .collect();
    assert!(in_use.len() > 40, "{} records", in_use.len());
    let others = (0..20).map(|_| *noise.pick(&in_use)).collect::<Vec<_>>();
    for at in [vec![table + 6 * record], others].concat() {
        targets.push(Target { field: 2, ..Target::bits(at..at + 400) });
    }
    // mkntfs gives the bitmap one run: one byte of length, and one or two of place.
    let record = &bytes[(table + 6 * record) as usize..][..record as usize];
    let data = record.windows(4).position(|bytes| bytes == [0x80, 0, 0, 0]).unwrap();
    let runs = data + usize::from(u16::from_le_bytes([record[data + 32], record[data + 33]]));
    let place = match record[runs] {
        0x11 => u64::from(record[runs + 2]),
        0x21 => u64::from(u16::from_le_bytes([record[runs + 2], record[runs + 3]])),
        head => panic!("a run list begins with {head:#x}"),
    };
    let start = place * cluster;
    let len = map.fs_bytes / cluster / 8;
    targets.push(Target { field: 1, ..Target::bits(start..start + len) });
    targets.push(Target { field: 1, ..Target::bits(start..start + 40) });
    targets
}

#[test]
fn damaged_ntfs_is_never_mapped_short() {
    for (seed, recipe) in (12_000..).zip(&RECIPES[..2]) {
        let mut noise = Noise::new(seed);
        let ntfs = Ntfs::make(recipe, &mut noise, seed);
        ntfs.live(&mut noise);
        let mut bytes = fs::read(&ntfs.volume).unwrap();
        let targets = ntfs_targets(&bytes, &look(&bytes), &mut noise);
        mutate(&mut bytes, &targets, &mut noise, &ntfs.what);
    }
}

/// Superblock and every node of the trees that are read.
fn btrfs_targets(bytes: &[u8], map: &VolumeMap) -> Vec<Target> {
    const SUPERBLOCK: usize = 64 << 10;
    let sb = &bytes[SUPERBLOCK..SUPERBLOCK + 4096];
    let node = u64::from(u32::from_le_bytes(sb[148..152].try_into().unwrap()));
    let (identity, trees) = (&sb[32..48], [1, 2, 3]);
    let mut targets = vec![
        Target { field: 4, ..Target::bits(SUPERBLOCK as u64..SUPERBLOCK as u64 + 1200) },
        Target { field: 8, ..Target::bits(SUPERBLOCK as u64 + 48..SUPERBLOCK as u64 + 200) },
    ];
    let places = map.used.iter().flat_map(|used| (used.start..used.end()).step_by(node as usize));
    let nodes = places.filter(|at| {
        let header = &bytes[*at as usize..][..101];
        *at > 1 << 20 && &header[32..48] == identity && trees.contains(&header[88])
    });
    for at in nodes {
        targets.push(Target { field: 4, ..Target::bits(at..at + 300) });
        targets.push(Target::bits(at..at + node));
        if bytes[at as usize + 88] == 2 {
            // With a right checksum, an extent tree is contradicted by the free-space tree.
            targets.push(Target { seal: Some(at), ..Target::bits(at + 32..at + node) });
            targets.push(Target { field: 4, seal: Some(at), ..Target::bits(at + 32..at + 400) });
        }
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

/// LVM's checksum, without a table, where the bytes say it is to be.
fn lvm_sum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0xF597_A6CF, |sum: u32, byte| {
        let mixed = sum ^ u32::from(*byte);
        (0..8).fold(mixed, |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xEDB8_8320 } else { sum >> 1 })
    })
}

/// Label, headers of the metadata areas, text; label and headers with checksums made right, too.
fn lvm2_targets(bytes: &[u8]) -> Vec<Target> {
    let sealed = |range: Range<u64>, sum_at: u64, from: u64| {
        let (start, end) = (range.start as usize, range.end as usize);
        let (sum_at, from) = (start + sum_at as usize, start + from as usize);
        let reseal: Reseal = Box::new(move |bytes| {
            let sum = lvm_sum(&bytes[from..end]);
            bytes[sum_at..sum_at + 4].copy_from_slice(&sum.to_le_bytes());
        });
        Target { field: 8, reseal: Some(reseal), ..Target::bits(range) }
    };
    let label = 512..1024;
    assert!(bytes[512..].starts_with(b"LABELONE"));
    let mut targets = vec![
        Target { field: 8, ..Target::bits(label.clone()) },
        Target { field: 8, ..Target::bits(512..680) },
        sealed(label, 16, 20),
    ];
    let sectors = (0..bytes.len() as u64 / 512).map(|number| number * 512);
    for area in sectors.filter(|at| bytes[*at as usize + 4..].starts_with(b" LVM2 x[5A%r0N*>")) {
        targets.push(Target { field: 8, ..Target::bits(area..area + 100) });
        targets.push(sealed(area..area + 512, 0, 4));
        let field = |at: u64| {
            let at = (area + at) as usize;
            u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
        };
        let text = area + field(40)..area + field(40) + field(48);
        targets.push(Target { field: 1, ..Target::bits(text.clone()) });
        targets.push(Target { field: 8, ..Target::bits(text) });
    }
    assert!(targets.len() >= 7, "{} places", targets.len());
    targets
}

#[test]
fn damaged_lvm2_is_never_mapped_short() {
    for seed in [15_000, 15_001] {
        let mut noise = Noise::new(seed);
        let (physical, _) = crate::lvm2::simple(&mut noise, seed);
        let mut bytes = fs::read(&physical.volume).unwrap();
        let targets = lvm2_targets(&bytes);
        mutate(&mut bytes, &targets, &mut noise, &physical.what);
    }
}
