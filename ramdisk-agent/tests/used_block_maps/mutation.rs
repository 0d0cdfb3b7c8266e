//! Damaged metadata must not make a map smaller without a word.
//!
//! One bit, or one whole field, is changed at a time. The result may be a map that holds at least what the map of the undamaged
//! filesystem held, or a volume taken raw, or one that is said to be not clean; never a panic or a search without end.

mod btrfs;
mod exfat;
mod ext;
mod fat;
mod lvm2;
mod ntfs;
mod xfs;

use std::io::Cursor;
use std::ops::Range;
use std::time::{Duration, Instant};

use crc::{CRC_32_ISCSI, Crc};
use ramdisk_agent::extents::Extents;
use ramdisk_agent::fs::{Clean, Taken, VolumeMap, map_volume};

use crate::noise::{Noise, mutations, rounds};

/// Mutations of each filesystem, per round asked for.
const PER_ROUND: u64 = 30;
/// From this length on a volume gets fewer mutations.
const LARGE_LEN: u64 = 8 << 20;
pub const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
/// No mutation may take longer: the volumes have a few MiB, and a debug build maps them in milliseconds.
const LONGEST: Duration = Duration::from_secs(20);

/// The map of a volume, which may not take long.
pub fn look(bytes: &[u8]) -> VolumeMap {
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
    /// Bytes and words are also changed to such as have as many bits set.
    same_count: bool,
}

impl Target {
    /// Bits of a range of which there is no copy.
    fn bits(range: Range<u64>) -> Self {
        Self { range, field: 0, copy: None, seal: None, reseal: None, same_count: false }
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
    fn pick(&self, bytes: &[u8], noise: &mut Noise) -> (u64, Vec<u8>) {
        let len = self.range.end - self.range.start;
        if self.same_count && noise.chance(2) {
            let range = &bytes[self.range.start as usize..self.range.end as usize];
            if let Some(change) = turned(range, noise) {
                return change;
            }
        }
        if self.field > 0 && noise.chance(2) {
            (noise.below(len / self.field) * self.field, noise.bytes(self.field as usize))
        } else {
            (noise.below(len), vec![1 << noise.below(8)])
        }
    }
}

/// A byte or a word in which the bits are turned round, so that as many are set; `None` where all are the same.
fn turned(bytes: &[u8], noise: &mut Noise) -> Option<(u64, Vec<u8>)> {
    let width = *noise.pick(&[1, 4]);
    let mixed: Vec<usize> = (0..bytes.len() / width)
        .map(|index| index * width)
        .filter(|at| bytes[*at..*at + width].iter().any(|byte| ![0, 0xFF].contains(byte)))
        .collect();
    let at = *mixed.get(noise.below(mixed.len().max(1) as u64) as usize)?;
    let by = 1 + noise.below(width as u64 * 8 - 1) as u32;
    let old = &bytes[at..at + width];
    let new = match *old {
        [byte] => vec![byte.rotate_left(by)],
        _ => {
            let word = u32::from_le_bytes(old.try_into().unwrap());
            word.rotate_left(by).to_le_bytes().to_vec()
        }
    };
    let change = new.iter().zip(old).map(|(new, old)| new ^ old).collect();
    Some((at as u64, change))
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
    let before = bytes.to_vec();
    targets.iter().for_each(|target| target.apply(bytes, 0, &[]));
    assert!(bytes == before, "{what}: a checksum is made in another way");
    drop(before);
    // Large volumes take longer to map.
    let changes = rounds() * PER_ROUND / (1 + bytes.len() as u64 / LARGE_LEN);
    let changes = changes.max(mutations().div_ceil(targets.len() as u64));
    let mut silent = Vec::new();
    let mut ends = Ends::default();
    for target in targets {
        for _ in 0..changes {
            let (at, change) = target.pick(bytes, noise);
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
