//! Tables that get other identities.

use uuid::Uuid;

use super::*;

const DISK: Uuid = Uuid::from_u128(0xDDDD_DDDD_0000_4000_8000_0000_0000_0001);

fn partition(number: u32) -> Uuid {
    Uuid::from_u128(0xEEEE_EEEE_0000_4000_8000_0000_0000_0000 + u128::from(number))
}

/// The disk with its table's pieces over it, once the table has other identities.
fn identified(bytes: &[u8], len: usize) -> Vec<u8> {
    let mut table = table(bytes);
    table.identify(DISK, &partition);
    let target = written(bytes, &table, len);
    // What the table said of itself is what is read from the disk.
    assert_eq!(self::table(&target).partitions, table.partitions);
    assert_eq!(self::table(&target).disk_id, table.disk_id);
    target
}

/// Everything but the identities is as it was.
fn same_but_identified(old: &Table, new: &Table) {
    assert_eq!(new.warnings, old.warnings);
    assert_eq!(new.partitions.len(), old.partitions.len());
    for (old, new) in old.partitions.iter().zip(&new.partitions) {
        assert_ne!(old.uuid, new.uuid);
        assert_eq!(*old, Partition { uuid: old.uuid.clone(), ..new.clone() });
    }
}

#[test]
fn both_copies_of_a_gpt() {
    let bytes = gpt_disk();
    for len in [DISK_BYTES, DISK_BYTES + (3 << 20) + 512] {
        let target = identified(&bytes, len);
        sgdisk_finds_no_problem(&target);
        same_but_identified(&table(&bytes), &table(&target));
        // Each copy by itself, as another reader sees it.
        for damaged in [512, len - 512] {
            let mut one = target.clone();
            one[damaged] ^= 1;
            let gpt = gptman::GPT::find_from(&mut Cursor::new(&one)).unwrap();
            assert_eq!(gpt.header.disk_guid, DISK.to_bytes_le());
            assert_eq!(gpt[1].unique_partition_guid, partition(1).to_bytes_le());
            assert_eq!(gpt[2].unique_partition_guid, partition(2).to_bytes_le());
            assert_eq!(gpt[1].partition_name.as_str(), "ESP");
            assert_eq!((gpt[2].attribute_bits, gpt[2].starting_lba), (4, 8192));
        }
        // Where there was no partition there is none.
        assert!(target[1024 + 2 * 128..1024 + 128 * 128].iter().all(|b| *b == 0));
    }
    let only = |range: std::ops::Range<usize>| {
        let target = identified(&bytes, DISK_BYTES);
        assert!(target[range.clone()] == bytes[range], "no other byte");
    };
    only(0..512);
    only(34 * 512..DISK_BYTES - 33 * 512);
}

#[test]
fn copies_that_differ_or_are_damaged() {
    let good = gpt_disk();
    for at in [512, 1024 + 8, DISK_BYTES - 512 + 30] {
        let mut bytes = good.clone();
        bytes[at] ^= 0x40;
        let target = identified(&bytes, DISK_BYTES);
        sgdisk_finds_no_problem(&target);
        assert!(target == identified(&good, DISK_BYTES), "byte {at}");
    }
    // The backup has another name for the first partition, and its checksums are right.
    let mut bytes = good;
    let (header, entries) = (DISK_BYTES - 512, DISK_BYTES - 33 * 512);
    bytes[entries + 56] = b'X';
    let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);
    let sum = crc.checksum(&bytes[entries..entries + 128 * 128]);
    bytes[header + 88..header + 92].copy_from_slice(&sum.to_le_bytes());
    bytes[header + 16..header + 20].fill(0);
    let sum = crc.checksum(&bytes[header..header + 92]);
    bytes[header + 16..header + 20].copy_from_slice(&sum.to_le_bytes());
    let old = table(&bytes);
    assert!(old.warnings.iter().any(|w| w.contains("differ")), "{:?}", old.warnings);
    let mut target = identified(&bytes, DISK_BYTES);
    same_but_identified(&old, &table(&target));
    target[512] ^= 1;
    let backup = table(&target);
    assert_eq!(backup.partitions[0].name.as_deref(), Some("XSP"));
    assert_eq!(backup.partitions[0].uuid, Some(partition(1).to_string()));
    assert_eq!(backup.disk_id, Some(DISK.to_string()));
}

#[test]
fn the_signature_of_an_mbr() {
    let bytes = logical_disk();
    let target = identified(&bytes, DISK_BYTES);
    same_but_identified(&table(&bytes), &table(&target));
    assert_eq!(table(&target).partitions[4].uuid.as_deref(), Some("dddddddd-07"));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &target).unwrap();
    let id = tool("fdisk", "sfdisk", &["--disk-id", file.path().to_str().unwrap()], "");
    assert_eq!(id.trim(), "0xdddddddd");
    // Four bytes, and no other.
    let mut back = target;
    back[440..444].copy_from_slice(&bytes[440..444]);
    assert!(back == bytes);
    // One that has none gets one: its partitions are then told apart from others.
    let unsigned = mbr(&[(0x83, 2048, 100)]);
    assert_eq!(table(&unsigned).partitions[0].uuid, None);
    let target = identified(&unsigned, DISK_BYTES);
    assert_eq!(table(&target).partitions[0].uuid.as_deref(), Some("dddddddd-01"));
}

#[test]
fn the_signature_beside_a_gpt() {
    let mut bytes = gpt_disk();
    assert_eq!(u32_at(&identified(&bytes, DISK_BYTES), 440), 0, "there was none");
    bytes[440..444].copy_from_slice(&0xcafe_1234_u32.to_le_bytes());
    assert_eq!(u32_at(&identified(&bytes, DISK_BYTES), 440), 0xdddd_dddd);
}

#[test]
fn no_table_has_no_identity() {
    let mut none = table(&vec![0; DISK_BYTES]);
    none.identify(DISK, &partition);
    assert_eq!(none.disk_id, None);
    let pieces = relocate_backup(&mut Cursor::new(vec![0; DISK_BYTES]), &none, DISK_BYTES as u64);
    assert_eq!(pieces.unwrap(), []);
}
