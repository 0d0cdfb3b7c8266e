//! Metadata that mdadm 4.2 wrote to disks of 128 MiB: of Intel's the last three sectors; of DDF the anchor, the first header, and the
//! first record of an array.

use std::io::Cursor;

use super::*;
use crate::table::{self, TableOutcome};

const LEN: usize = 128 << 20;

const INTEL_MIRROR: &[u8] = include_bytes!("samples/intel-mirror.bin");
const INTEL_STRIPES: &[u8] = include_bytes!("samples/intel-stripes.bin");
/// A mirror, and stripes behind it.
const INTEL_TWO_VOLUMES: &[u8] = include_bytes!("samples/intel-two-volumes.bin");
const DDF_MIRROR: &[u8] = include_bytes!("samples/ddf-mirror.bin");
const DDF_STRIPES: &[u8] = include_bytes!("samples/ddf-stripes.bin");
/// Where the parts of DDF are on such a disk: the header, and the records behind it.
const HEADER: usize = LEN - (16 << 20);
const RECORDS: usize = HEADER + 162 * 512;

fn intel_disk(metadata: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; LEN];
    disk[LEN - metadata.len()..].copy_from_slice(metadata);
    disk
}

fn ddf_disk(metadata: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; LEN];
    disk[LEN - 512..].copy_from_slice(&metadata[..512]);
    disk[HEADER..HEADER + 512].copy_from_slice(&metadata[512..1024]);
    disk[RECORDS..RECORDS + metadata.len() - 1024].copy_from_slice(&metadata[1024..]);
    disk
}

fn look(disk: &[u8]) -> Option<FirmwareRaid> {
    find(&mut Part::new(&mut Cursor::new(disk), 0, disk.len() as u64)).unwrap()
}

fn is_striped(disk: &[u8]) -> bool {
    look(disk).expect("there are metadata").is_striped
}

#[test]
fn mirrors_are_told_from_what_is_only_a_part() {
    assert!(!is_striped(&intel_disk(INTEL_MIRROR)));
    assert!(is_striped(&intel_disk(INTEL_STRIPES)));
    assert!(is_striped(&intel_disk(INTEL_TWO_VOLUMES)));
    assert!(!is_striped(&ddf_disk(DDF_MIRROR)));
    assert!(is_striped(&ddf_disk(DDF_STRIPES)));
    assert_eq!(look(&[0; 1 << 20]), None);
    assert_eq!(look(&[]), None);
}

#[test]
fn metadata_that_no_firmware_takes_say_nothing() {
    let mut disk = intel_disk(INTEL_STRIPES);
    disk[LEN - 1024 + 60] ^= 1;
    assert!(!is_striped(&disk), "the sum is wrong");
    let mut disk = ddf_disk(DDF_STRIPES);
    disk[HEADER..HEADER + 4].fill(0);
    assert!(!is_striped(&disk), "both headers are gone");
    // The second copy is in the place of the first.
    disk[LEN - 512 + DDF_SECONDARY..][..8].copy_from_slice(&(HEADER as u64 / 512).to_be_bytes());
    disk[HEADER..HEADER + 4].copy_from_slice(DDF_MAGIC);
    disk[LEN - 512 + DDF_PRIMARY..][..8].fill(0xff);
    assert!(is_striped(&disk));
}

/// Intel's are summed; of DDF a wrong byte hides the stripes only where it hides the array.
#[test]
fn damaged_metadata_are_no_mirrors() {
    // Sectors: the second one of two volumes, the anchor, and one that is not looked at.
    for (metadata, from, len) in [(INTEL_STRIPES, 512, 512), (INTEL_TWO_VOLUMES, 0, 1024)] {
        for at in 0..metadata.len() {
            let mut metadata = metadata.to_vec();
            metadata[at] = !metadata[at];
            let expected = (from..from + len).contains(&at);
            let found = look(&metadata).filter(|raid| raid.is_striped);
            assert!(found.is_none() || !expected || is_behind_sum(&metadata, at), "byte {at}");
            assert!(found.is_some() || expected, "byte {at}");
        }
    }
    let hiding = [
        0..4,                         // the anchor
        DDF_PRIMARY..DDF_PRIMARY + 8, // the header's place
        DDF_RECORDS..DDF_RECORDS + 4, // the array's place
        512..516,                     // the header
        1024..1028,                   // the array
    ];
    for at in 0..DDF_STRIPES.len() {
        let mut metadata = DDF_STRIPES.to_vec();
        metadata[at] = !metadata[at];
        let found = look(&ddf_disk(&metadata)).filter(|raid| raid.is_striped);
        assert!(found.is_some() || hiding.iter().any(|range| range.contains(&at)), "byte {at}");
    }
}

/// Whether a byte of Intel's metadata is behind what the sum is of.
fn is_behind_sum(metadata: &[u8], at: usize) -> bool {
    let anchor = &metadata[512..1024];
    let len = usize::try_from(le32(anchor, INTEL_LEN).unwrap()).unwrap();
    // The sector in front of the anchor comes behind it.
    let place = if at < 512 { at + 512 } else { at - 512 };
    place >= len
}

#[test]
fn the_table_of_a_mirror_is_that_of_each_disk() {
    let table = |mut disk: Vec<u8>| {
        disk[446..462].copy_from_slice(&[0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0]);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        match table::read_table(&mut Cursor::new(&disk), LEN as u64, 512).unwrap() {
            TableOutcome::Table(table) => table.partitions.len(),
            TableOutcome::Refused(refusal) => panic!("{refusal}"),
        }
    };
    assert_eq!(table(intel_disk(INTEL_MIRROR)), 1);
    assert_eq!(table(ddf_disk(DDF_MIRROR)), 1);
    assert_eq!(table(intel_disk(INTEL_STRIPES)), 0);
    assert_eq!(table(ddf_disk(DDF_STRIPES)), 0);
}
