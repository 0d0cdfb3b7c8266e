//! LVM2: label, metadata areas, text.

use std::fs;
use std::ops::Range;

use super::{Reseal, Target, mutate};
use crate::noise::Noise;

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
