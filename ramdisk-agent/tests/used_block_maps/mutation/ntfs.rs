//! NTFS: boot sector, file records, `$Bitmap`.

use std::fs;

use ramdisk_agent::fs::VolumeMap;

use super::{Target, look, mutate};
use crate::noise::Noise;
use crate::ntfs::{Ntfs, RECIPES};

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
