//! Tables for sectors of another size.

use std::sync::LazyLock;

use super::*;

const MIB: u64 = 1 << 20;

/// The table's pieces for these sectors over a disk of zeros.
fn retargeted(bytes: &[u8], from: u32, slots: &[Slot], len: u64, to: u32) -> io::Result<Vec<u8>> {
    let TableOutcome::Table(table) = read(bytes, from) else { panic!("no table") };
    let mut target = vec![0; usize::try_from(len).unwrap()];
    for piece in retarget(&mut Cursor::new(bytes), &table, slots, len, to)? {
        let at = usize::try_from(piece.offset).unwrap();
        target[at..at + piece.bytes.len()].copy_from_slice(&piece.bytes);
    }
    Ok(target)
}

fn same(old: &Table, new: &Table) {
    assert_eq!(new.partitions, old.partitions);
    assert_eq!((&new.disk_id, new.kind, &new.warnings), (&old.disk_id, old.kind, &Vec::new()));
}

#[test]
fn a_gpt_is_counted_anew_and_comes_back() {
    let bytes = gpt_disk();
    let old = table(&bytes);
    let len = DISK_BYTES as u64;
    let can = retargetable(&mut Cursor::new(&bytes), &old, len, 4096).unwrap().unwrap();
    assert!(!can.has_boot_code);
    // LBA 0, the header and four sectors of entries; at the end without LBA 0.
    assert_eq!((can.room_start, can.room_end), (6 * 4096, len - 5 * 4096));
    let large = retargeted(&bytes, 512, &old.slots(), len, 4096).unwrap();
    let TableOutcome::Table(table) = read(&large, 4096) else { panic!("no table") };
    same(&old, &table);
    assert_eq!(table.last_usable_lba, Some(len / 4096 - 6));
    let witness = gptman::GPT::read_from(&mut Cursor::new(&large), 4096).unwrap();
    assert_eq!((witness[1].starting_lba, witness[2].starting_lba), (256, 1024));
    assert!(read_table(&mut Cursor::new(&large), len, 512).is_ok());
    let back = retargeted(&large, 4096, &table.slots(), len, 512).unwrap();
    sgdisk_finds_no_problem(&back);
    same(&old, &super::table(&back));
}

#[test]
fn partitions_that_do_not_fit_are_refused() {
    let bytes = gpt_disk();
    let len = DISK_BYTES as u64;
    let slot = |start_bytes, len_bytes| [Slot { number: 2, start_bytes, len_bytes }];
    for slots in [slot(5 * 4096, MIB), slot(MIB, len - MIB - 4 * 4096)] {
        assert!(retargeted(&bytes, 512, &slots, len, 4096).is_err());
    }
    let slots = slot(MIB, len - MIB - 5 * 4096);
    assert!(retargeted(&bytes, 512, &slots, len, 4096).is_ok());
    assert!(retargeted(&bytes, 512, &[], 8 * 4096, 4096).is_err());
}

proptest! {
    /// Whatever a table holds: other counts, the same places.
    #[test]
    fn places_stay(places in proptest::collection::vec((0..3_u64, 1..50_u64), 0..20)) {
        static DISK: LazyLock<Vec<u8>> = LazyLock::new(gpt_disk);
        let bytes: &[u8] = &DISK;
        let mut old = table(bytes);
        let first = old.partitions[0].clone();
        let (mut at, mut slots) = (MIB, Vec::new());
        old.partitions.clear();
        for ((gap, len), number) in places.into_iter().zip(1..) {
            let slot = Slot { number, start_bytes: at + gap * 4096, len_bytes: len * 4096 };
            at = slot.end_bytes();
            slots.push(slot);
            old.partitions.push(Partition { number, ..first.clone() });
        }
        let len = DISK_BYTES as u64;
        let mut entries = Cursor::new(bytes);
        let pieces = retarget(&mut entries, &old, &slots, len, 4096).unwrap();
        prop_assert_eq!(pieces.last().unwrap().name, "LBA 0");
        let total: usize = pieces.iter().map(|piece| piece.bytes.len()).sum();
        prop_assert_eq!(total, 11 * 4096);
        for piece in &pieces {
            let end = piece.offset + piece.bytes.len() as u64;
            prop_assert!(slots.iter().all(|s| s.end_bytes() <= piece.offset || s.start_bytes >= end));
        }
    }
}
