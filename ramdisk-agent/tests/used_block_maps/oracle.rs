//! Mapping a volume and putting noise where its map says nothing is.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use ramdisk_agent::extents::{Extent, Extents};
use ramdisk_agent::fs::{Clean, FsKind, Taken, VolumeMap, map_volume};

use crate::noise::Noise;

/// The map of a volume in a file.
pub fn look(volume: &Path) -> VolumeMap {
    let mut file = File::open(volume).unwrap();
    let len = file.metadata().unwrap().len();
    let map = map_volume(&mut file, len).unwrap();
    assert!(map.used.iter().all(|e| e.end() <= len), "the map goes beyond the volume");
    map
}

/// A map that was not refused, of a filesystem that was left in order.
pub fn expect_map(volume: &Path, kind: FsKind, what: &str) -> VolumeMap {
    let map = look(volume);
    assert_eq!(map.kind, kind, "{what}");
    assert_eq!(map.taken, Taken::Map, "{what}");
    assert_eq!(map.clean, Clean::Clean, "{what}");
    map
}

/// The bytes that the map calls free.
pub fn free(volume: &Path, map: &VolumeMap) -> Extents {
    map.used.invert(Extent { start: 0, len: std::fs::metadata(volume).unwrap().len() })
}

/// Overwrites them; gives how many they are. The map must be the same afterwards: it may not depend on what is free.
pub fn fill_free(volume: &Path, map: &VolumeMap, noise: &mut Noise) -> u64 {
    let free = free(volume, map);
    let file = OpenOptions::new().write(true).open(volume).unwrap();
    // Made once and read from anywhere: it need not be different everywhere, only different from what was there.
    let buffer = noise.bytes((1 << 20) + 4096);
    for extent in &free {
        let mut at = extent.start;
        while at < extent.end() {
            let from = noise.below(4096) as usize;
            let len = (extent.end() - at).min(1 << 20) as usize;
            file.write_all_at(&buffer[from..from + len], at).unwrap();
            at += len as u64;
        }
    }
    assert_eq!(look(volume), *map, "noise in free space changed the map");
    free.total_bytes()
}
