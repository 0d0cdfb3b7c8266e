//! FAT: boot sector, both copies of the table, the first directories.

use std::fs;

use super::{Target, look, mutate};
use crate::fat::Fat;
use crate::noise::Noise;

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
