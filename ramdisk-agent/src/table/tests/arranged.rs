//! Tables for a target on which the partitions lie elsewhere.

use super::*;

const MIB: u64 = 1 << 20;

/// The table's pieces over a disk of zeros.
fn arranged(bytes: &[u8], slots: &[Slot], len: u64) -> io::Result<Vec<u8>> {
    let table = table(bytes);
    let mut target = vec![0; usize::try_from(len).unwrap()];
    for piece in arrange(&mut Cursor::new(bytes), &table, slots, len)? {
        let at = usize::try_from(piece.offset).unwrap();
        target[at..at + piece.bytes.len()].copy_from_slice(&piece.bytes);
    }
    Ok(target)
}

fn slot(number: u32, start_bytes: u64, len_bytes: u64) -> Slot {
    Slot { number, start_bytes, len_bytes }
}

/// Everything but the place is as it was.
fn same_but_moved(old: &Table, new: &Table, slots: &[Slot]) {
    assert_eq!(new.slots(), slots);
    assert_eq!((&old.disk_id, old.kind), (&new.disk_id, new.kind));
    for partition in &new.partitions {
        let before = old.partitions.iter().find(|p| p.number == partition.number).unwrap();
        let (start_bytes, len_bytes) = (before.start_bytes, before.len_bytes);
        assert_eq!(*before, Partition { start_bytes, len_bytes, ..partition.clone() });
    }
}

#[test]
fn partitions_of_a_gpt_grow_and_move() {
    let bytes = gpt_disk();
    let len = 40 * MIB + 512;
    let end = table(&bytes).room_end(len);
    assert_eq!(end, len - 33 * 512);
    for slots in [
        [slot(1, MIB, 2 * MIB), slot(2, 4 * MIB, end - 4 * MIB)],
        [slot(1, MIB, 20 * MIB), slot(2, 30 * MIB, 4 * MIB)],
    ] {
        let target = arranged(&bytes, &slots, len).unwrap();
        sgdisk_finds_no_problem(&target);
        same_but_moved(&table(&bytes), &table(&target), &slots);
        let witness = gptman::GPT::find_from(&mut Cursor::new(&target)).unwrap();
        assert_eq!(witness[1].starting_lba, 2048);
        assert_eq!(witness[2].ending_lba, slots[1].end_bytes() / 512 - 1);
    }
    // On the same disk, and without one of them.
    let slots = [slot(2, 2 * MIB, 3 * MIB)];
    let target = arranged(&bytes, &slots, DISK_BYTES as u64).unwrap();
    sgdisk_finds_no_problem(&target);
    same_but_moved(&table(&bytes), &table(&target), &slots);
    // Over the place of the backup.
    let slots = [slot(2, 8 * MIB, DISK_BYTES as u64 - 8 * MIB)];
    assert!(arranged(&bytes, &slots, DISK_BYTES as u64).is_err());
}

#[test]
fn a_damaged_copy_does_not_come_back_in_a_moved_table() {
    let mut bytes = gpt_disk();
    bytes[1024 + 40] ^= 1;
    let slots = [slot(1, MIB, 2 * MIB), slot(2, 5 * MIB, 4 * MIB)];
    let target = arranged(&bytes, &slots, 30 * MIB).unwrap();
    sgdisk_finds_no_problem(&target);
    assert_eq!(table(&target).slots(), slots);
}

/// A GPT whose primary's entries begin at this LBA.
fn entries_at(lba: u64) -> Vec<u8> {
    let mut bytes = gpt_disk();
    let at = usize::try_from(lba * 512).unwrap();
    let entries = bytes[1024..1024 + 16384].to_vec();
    bytes[1024..1024 + 16384].fill(0xB0);
    bytes[at..at + 16384].copy_from_slice(&entries);
    let header = &mut bytes[512..512 + 92];
    header[72..80].copy_from_slice(&lba.to_le_bytes());
    header[16..20].fill(0);
    let sum = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[test]
fn no_partition_comes_to_lie_over_the_primary_s_entries() {
    let bytes = entries_at(20_000);
    let place = 20_000 * 512..20_032 * 512_usize;
    let old = table(&bytes);
    assert_eq!(old.warnings, Vec::<String>::new());
    for len in [DISK_BYTES as u64, 30 * MIB] {
        let target = arranged(&bytes, &old.slots(), len).unwrap();
        assert_eq!(target[place.clone()], bytes[place.clone()]);
        same_but_moved(&old, &table(&target), &old.slots());
    }
    let behind = place.end as u64;
    let slots = [slot(1, MIB, 2 * MIB), slot(2, behind, MIB)];
    same_but_moved(&old, &table(&arranged(&bytes, &slots, 30 * MIB).unwrap()), &slots);
    for (first, second) in
        [(slot(1, MIB, 2 * MIB), slot(2, behind - 512, MIB)), (slot(1, MIB, 10 * MIB), slots[1])]
    {
        let error = arranged(&bytes, &[first, second], 30 * MIB).unwrap_err().to_string();
        assert!(error.contains("over the primary GPT's entries"), "{error}");
    }
    // Behind the target's end.
    let error = arranged(&bytes, &old.slots(), 20_031 * 512).unwrap_err().to_string();
    assert!(error.contains("do not fit"), "{error}");
    // A partition over them in the image itself.
    assert_eq!(refusal(&entries_at(9000)), TableRefusal::OverTable { number: 2 });
}

#[test]
fn the_entries_of_a_hybrid_mbr_move_with_their_partitions() {
    let mut bytes = gpt_disk();
    let entry = 446 + 16;
    bytes[entry + 4] = 0x83;
    bytes[entry + 8..entry + 12].copy_from_slice(&8192_u32.to_le_bytes());
    bytes[entry + 12..entry + 16].copy_from_slice(&8192_u32.to_le_bytes());
    let slots = [slot(1, MIB, 2 * MIB), slot(2, 6 * MIB, 20 * MIB)];
    let target = arranged(&bytes, &slots, 30 * MIB).unwrap();
    assert_eq!(table(&target).slots(), slots);
    assert_eq!(u32_at(&target, entry + 8), 6 * 2048);
    assert_eq!(u32_at(&target, entry + 12), 20 * 2048);
    assert_eq!(target[entry + 4], 0x83);
}

/// What sfdisk makes of it: it complains on standard error about what it would not have written.
fn sfdisk_reads(bytes: &[u8]) -> Vec<(u32, u64, u64)> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let path = file.path().to_str().unwrap();
    let verdict = tool("fdisk", "sfdisk", &["-V", path], "");
    assert!(verdict.contains("No errors detected"), "{verdict}");
    let text = tool("fdisk", "sfdisk", &["-d", path], "");
    let number = |line: &str, key: &str| -> u64 {
        let rest = line.split(key).nth(1).unwrap().trim_start();
        rest[..rest.find(',').unwrap()].parse().unwrap()
    };
    let lines = text.lines().filter(|line| line.starts_with(path));
    lines
        .map(|line| {
            let name = line[path.len()..].split(' ').next().unwrap().trim_start_matches('p');
            (name.parse().unwrap(), number(line, "start="), number(line, "size="))
        })
        .collect()
}

#[test]
fn primary_partitions_of_an_mbr_grow_and_move() {
    let bytes = disk(
        "label: dos\nlabel-id: 0xcafe1234\nstart=63, size=2000, type=83, bootable\nstart=4096, size=2048, type=82\n",
        DISK_BYTES,
    );
    let slots = [slot(1, 63 * 512, 30 * MIB), slot(2, 38 * MIB, MIB)];
    let target = arranged(&bytes, &slots, 40 * MIB).unwrap();
    same_but_moved(&table(&bytes), &table(&target), &slots);
    assert_eq!(sfdisk_reads(&target), [(1, 63, 30 * 2048), (2, 38 * 2048, 2048)]);
    assert_eq!(table(&bytes).room_end(u64::MAX / 2), 512 << 32);
    let far = [slot(1, 63 * 512, 30 * MIB), slot(2, 512 << 32, MIB)];
    let error = arrange(&mut Cursor::new(&bytes), &table(&bytes), &far, 1 << 42).unwrap_err();
    assert!(error.to_string().contains("partition 2"), "{error}");
}

#[test]
fn logical_partitions_grow_and_move_with_their_tables() {
    let bytes = logical_disk();
    let old = table(&bytes);
    let fronts: Vec<_> = old.partitions.iter().map(|p| old.front_bytes(p)).collect();
    assert_eq!(fronts, [0, 0, MIB, MIB, MIB]);
    let (mut slots, len) = (old.slots(), 64 * MIB);
    // The last one grows.
    slots[4].len_bytes = len - slots[4].start_bytes;
    let target = arranged(&bytes, &slots, len).unwrap();
    same_but_moved(&old, &table(&target), &slots);
    let numbers: Vec<_> = sfdisk_reads(&target).into_iter().map(|(n, ..)| n).collect();
    assert_eq!(numbers, [1, 2, 3, 5, 6, 7]);
    // The first one grows, and the others go to the end.
    let mut slots = old.slots();
    slots[3].start_bytes += 20 * MIB;
    slots[4].start_bytes += 20 * MIB;
    slots[2].len_bytes = slots[3].start_bytes - MIB - slots[2].start_bytes;
    same_but_moved(&old, &table(&arranged(&bytes, &slots, len).unwrap()), &slots);
    // A primary one grows, and the extended partition with all in it goes to the end.
    let mut slots = old.slots();
    slots[1].len_bytes += 5 * MIB;
    slots[2..].iter_mut().for_each(|slot| slot.start_bytes += 5 * MIB);
    let target = arranged(&bytes, &slots, len).unwrap();
    same_but_moved(&old, &table(&target), &slots);
    sfdisk_reads(&target);
}

#[test]
fn a_primary_partition_inside_the_extended_one_stays() {
    let mut bytes = logical_disk();
    let old = table(&bytes);
    // The last logical partition ends at 14 MiB, the extended one at 15.
    let extended = &mut bytes[446 + 32..][..16];
    assert!([0x05, 0x0F].contains(&extended[4]), "{extended:?}");
    let entry = &mut bytes[446 + 48..][..16];
    entry[4] = 0x83;
    entry[8..12].copy_from_slice(&(14_u32 * 2048 + 512).to_le_bytes());
    entry[12..16].copy_from_slice(&256_u32.to_le_bytes());
    let with = table(&bytes);
    assert_eq!(with.partitions.len(), old.partitions.len() + 1);
    for len in [DISK_BYTES as u64, 30 * MIB] {
        let target = arranged(&bytes, &with.slots(), len).unwrap();
        assert_eq!(target[..512], bytes[..512]);
        same_but_moved(&with, &table(&target), &with.slots());
    }
}

#[test]
fn an_extended_partition_becomes_shorter_where_its_disk_does() {
    let bytes = logical_disk();
    let old = table(&bytes);
    // It ends at 15 MiB, and the last logical partition at 14.
    let target = arranged(&bytes, &old.slots(), 14 * MIB).unwrap();
    same_but_moved(&old, &table(&target), &old.slots());
    sfdisk_reads(&target);
    // Without its last one, and without any.
    let slots = &old.slots()[..4];
    same_but_moved(&old, &table(&arranged(&bytes, slots, 14 * MIB).unwrap()), slots);
    let slots = &old.slots()[..2];
    let target = arranged(&bytes, slots, 14 * MIB).unwrap();
    assert_eq!(sfdisk_reads(&target).len(), 2);
    // Without one in the middle the last would get its number.
    let mut slots = old.slots();
    slots.remove(3);
    assert!(arranged(&bytes, &slots, 14 * MIB).unwrap_err().to_string().contains("numbers"));
}

proptest! {
    #[test]
    fn what_is_arranged_is_read(
        sizes in proptest::collection::vec((1..6_u64, 0..3_u64), 5),
        logical in any::<bool>(),
        more in 0..4000_u64,
    ) {
        static DISKS: std::sync::OnceLock<[Vec<u8>; 2]> = std::sync::OnceLock::new();
        let bytes = &DISKS.get_or_init(|| [gpt_disk(), logical_disk()])[usize::from(logical)];
        let old = table(bytes);
        let mut at = 2048 * 512;
        let mut slots = old.slots();
        for (slot, (len, gap)) in slots.iter_mut().zip(sizes) {
            let front = if slot.number > 4 { MIB } else { 0 };
            *slot = Slot { start_bytes: at + front, len_bytes: len * MIB, ..*slot };
            at = slot.end_bytes() + gap * 64 * 1024;
        }
        let len = at + 33 * 512 + more * 512;
        same_but_moved(&old, &table(&arranged(bytes, &slots, len).unwrap()), &slots);
    }
}
