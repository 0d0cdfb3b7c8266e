//! Tables as sfdisk writes them and sgdisk judges them, then damaged in every way.

mod arranged;
mod identity;
mod retargeted;

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;

use super::*;

const DISK_BYTES: usize = 16 << 20;

/// Runs a tool that must succeed, with a script on standard input.
fn tool(package: &str, name: &str, args: &[&str], stdin: &str) -> String {
    use std::io::Write as _;
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut child = Command::new("env")
        .args([&format!("PATH={path}"), "LC_ALL=C", name])
        .args(args)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_ne!(output.status.code(), Some(127), "{name} is missing: apt-get install {package}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{name}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A disk that sfdisk has partitioned.
fn disk(script: &str, len: usize) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, vec![0; len]).unwrap();
    tool("fdisk", "sfdisk", &["-q", "--no-reread", path.to_str().unwrap()], script);
    std::fs::read(path).unwrap()
}

fn gpt_disk() -> Vec<u8> {
    disk(
        "label: gpt\nlabel-id: 11111111-2222-3333-4444-555555555555\n\
         start=2048, size=4096, type=U, uuid=AAAAAAAA-0000-4000-8000-000000000001, name=\"ESP\"\n\
         start=8192, size=8192, type=L, attrs=\"LegacyBIOSBootable\"\n",
        DISK_BYTES,
    )
}

fn read(bytes: &[u8], sector: u32) -> TableOutcome {
    read_table(&mut Cursor::new(bytes), bytes.len() as u64, sector).unwrap()
}

fn table(bytes: &[u8]) -> Table {
    match read(bytes, 512) {
        TableOutcome::Table(table) => table,
        TableOutcome::Refused(refusal) => panic!("refused: {refusal}"),
    }
}

fn refusal(bytes: &[u8]) -> TableRefusal {
    match read(bytes, 512) {
        TableOutcome::Refused(refusal) => refusal,
        TableOutcome::Table(table) => panic!("taken: {table:?}"),
    }
}

/// The table's pieces written over a disk of `len` bytes.
fn moved(bytes: &[u8], len: usize) -> Vec<u8> {
    written(bytes, &table(bytes), len)
}

/// The disk, with `len` bytes, and this table's pieces over it.
fn written(bytes: &[u8], table: &Table, len: usize) -> Vec<u8> {
    let mut target = vec![0; len];
    let common = len.min(bytes.len());
    target[..common].copy_from_slice(&bytes[..common]);
    for piece in relocate_backup(&mut Cursor::new(bytes), table, len as u64).unwrap() {
        let at = usize::try_from(piece.offset).unwrap();
        target[at..at + piece.bytes.len()].copy_from_slice(&piece.bytes);
    }
    target
}

fn sgdisk_finds_no_problem(bytes: &[u8]) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let verdict = tool("gdisk", "sgdisk", &["-v", file.path().to_str().unwrap()], "");
    assert!(verdict.contains("No problems found"), "{verdict}");
}

#[test]
fn a_gpt_is_read_as_sfdisk_wrote_it() {
    let bytes = gpt_disk();
    let table = table(&bytes);
    assert_eq!(table.kind, TableKind::Gpt);
    assert_eq!(table.disk_id.as_deref(), Some("11111111-2222-3333-4444-555555555555"));
    assert_eq!(table.warnings, Vec::<String>::new());
    assert_eq!((table.first_usable_lba, table.last_usable_lba), (Some(2048), Some(32734)));
    let [esp, root] = &table.partitions[..] else { panic!("{:?}", table.partitions) };
    assert_eq!((esp.number, esp.start_bytes, esp.len_bytes), (1, 1 << 20, 2 << 20));
    assert_eq!(esp.name.as_deref(), Some("ESP"));
    assert_eq!(esp.uuid.as_deref(), Some("aaaaaaaa-0000-4000-8000-000000000001"));
    assert_eq!(esp.type_id, "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
    assert_eq!((root.number, root.bootable, esp.bootable), (2, true, false));
    // LBA 0, header and entries of both copies: the usual 34 and 33 sectors.
    assert_eq!(table.metadata.iter().map(|e| e.len).sum::<u64>(), (34 + 33) * 512);
}

#[test]
fn an_mbr_is_read_as_sfdisk_wrote_it() {
    let script = "label: dos\nlabel-id: 0xcafe1234\nstart=63, size=2000, type=83, bootable\nstart=4096, type=82\n";
    let table = table(&disk(script, DISK_BYTES));
    assert_eq!(table.kind, TableKind::Mbr);
    assert_eq!(table.disk_id.as_deref(), Some("cafe1234"));
    let [first, second] = &table.partitions[..] else { panic!("{:?}", table.partitions) };
    assert_eq!((first.start_bytes, first.len_bytes, first.bootable), (63 * 512, 2000 * 512, true));
    assert_eq!(second.start_bytes + second.len_bytes, DISK_BYTES as u64);
    assert_eq!((second.type_id.as_str(), second.uuid.as_deref()), ("0x82", Some("cafe1234-02")));
}

#[test]
fn sectors_of_4096_bytes() {
    // Debian 12's tools make them only on a device that has such sectors.
    let mut disk = Cursor::new(vec![0; DISK_BYTES]);
    let mut gpt = gptman::GPT::new_from(&mut disk, 4096, [7; 16]).unwrap();
    gpt[1] = gptman::GPTPartitionEntry {
        partition_type_guid: [1; 16],
        unique_partition_guid: [2; 16],
        starting_lba: 256,
        ending_lba: 767,
        attribute_bits: 0,
        partition_name: "root".into(),
    };
    gpt.write_into(&mut disk).unwrap();
    gptman::GPT::write_protective_mbr_into(&mut disk, 4096).unwrap();
    let bytes = disk.into_inner();
    let TableOutcome::Table(table) = read(&bytes, 4096) else { panic!("refused") };
    assert_eq!((table.kind, table.partitions[0].start_bytes), (TableKind::Gpt, 1 << 20));
    // On a disk that counts otherwise it is not guessed at.
    let TableRefusal::SectorSize { kind: "GPT", table: 4096, disk: 512 } = refusal(&bytes) else {
        panic!("taken")
    };
}

/// An MBR of two partitions, with a volume in the second if its numbers count in sectors of so many bytes.
fn counted_in(sector: usize, script: &str) -> Vec<u8> {
    let mut bytes = disk(script, DISK_BYTES);
    let start = u32::from_le_bytes(bytes[446 + 24..446 + 28].try_into().unwrap()) as usize * sector;
    let swap = crate::foreign::swap_header(1 << 20, [7; 16], "x");
    bytes[start..start + swap.len()].copy_from_slice(&swap);
    bytes
}

#[test]
fn an_mbr_that_counts_in_other_sectors_is_refused() {
    let script = "label: dos\nstart=256,size=512,type=83\nstart=1024,size=512,type=82\n";
    let large = counted_in(4096, script);
    let expected = |table, disk| TableRefusal::SectorSize { kind: "MBR", table, disk };
    assert_eq!(refusal(&large), expected(4096, 512));
    let TableOutcome::Table(found) = read(&large, 4096) else { panic!("refused") };
    assert_eq!(found.partitions[1].start_bytes, 4 << 20);
    let small = counted_in(512, script);
    assert_eq!(self::table(&small).partitions.len(), 2);
    match read(&small, 4096) {
        TableOutcome::Refused(refusal) => assert_eq!(refusal, expected(512, 4096)),
        TableOutcome::Table(table) => panic!("{table:?}"),
    }
    // Partitions that would end behind the disk's end by its own sectors.
    let far = "label: dos\nstart=2048,size=4096,type=83\nstart=8192,size=16000,type=82\n";
    match read(&counted_in(512, far), 4096) {
        TableOutcome::Refused(refusal) => assert_eq!(refusal, expected(512, 4096)),
        TableOutcome::Table(table) => panic!("{table:?}"),
    }
    // Nothing that is known anywhere says nothing; so it is warned of, unless by larger sectors it would not fit.
    let unknown = self::table(&disk(script, DISK_BYTES));
    assert_eq!((unknown.partitions.len(), unknown.may_lie_elsewhere), (2, true));
    assert!(unknown.warnings[0].contains("4096 bytes"), "{:?}", unknown.warnings);
    let fits = self::table(&disk(far, DISK_BYTES));
    assert!(!fits.may_lie_elsewhere && fits.warnings.is_empty());
    let own = self::table(&small);
    assert!(!own.may_lie_elsewhere && own.warnings.is_empty());
}

#[test]
fn nothing_and_filesystems_are_no_table() {
    assert_eq!(table(&vec![0; DISK_BYTES]).kind, TableKind::None);
    assert_eq!(table(&[]).kind, TableKind::None);
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    for (package, name, args) in [
        ("dosfstools", "mkfs.vfat", &["-F", "16"][..]),
        ("e2fsprogs", "mke2fs", &["-q", "-F"]),
        ("util-linux", "mkswap", &[]),
    ] {
        std::fs::write(path, vec![0; DISK_BYTES]).unwrap();
        tool(package, name, &[args, &[path]].concat(), "");
        let table = table(&std::fs::read(path).unwrap());
        assert_eq!((table.kind, table.partitions.len()), (TableKind::None, 0), "{name}");
    }
}

#[test]
fn a_damaged_copy_is_replaced_by_the_other() {
    let good = gpt_disk();
    let wanted = table(&good).partitions;
    // Bytes of the primary's header and entries; the same of the backup.
    for (at, primary) in
        [(512, true), (512 + 40, true), (1024 + 8, true), (DISK_BYTES - 512 + 30, false)]
    {
        let mut bytes = good.clone();
        bytes[at] ^= 0x40;
        let table = table(&bytes);
        assert_eq!(table.partitions, wanted, "byte {at}");
        let word = if primary { "primary" } else { "backup" };
        assert!(table.warnings.iter().any(|w| w.contains(word)), "byte {at}: {:?}", table.warnings);
        // A restore writes both copies whole.
        assert!(moved(&bytes, DISK_BYTES) == good, "byte {at}");
    }
    let mut bytes = good;
    bytes[512] ^= 1;
    bytes[DISK_BYTES - 512] ^= 1;
    assert!(matches!(refusal(&bytes), TableRefusal::BothDamaged { .. }));
}

#[test]
fn a_copy_whose_usable_range_cannot_be_is_damaged() {
    let good = gpt_disk();
    let sectors = DISK_BYTES as u64 / 512;
    // Behind the disk's end, and empty.
    for (first, last) in [(sectors, sectors + 9), (2048, 2047)] {
        let mut bytes = good.clone();
        bytes[512 + 40..512 + 48].copy_from_slice(&first.to_le_bytes());
        bytes[512 + 48..512 + 56].copy_from_slice(&last.to_le_bytes());
        bytes[512 + 16..512 + 20].fill(0);
        let sum = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(&bytes[512..512 + 92]);
        bytes[512 + 16..512 + 20].copy_from_slice(&sum.to_le_bytes());
        let table = table(&bytes);
        assert!(table.warnings.iter().any(|w| w.contains("to partitions")), "{:?}", table.warnings);
        assert!(moved(&bytes, DISK_BYTES) == good, "{first} to {last}");
    }
}

#[test]
fn on_a_disk_of_the_same_size_every_byte_stays() {
    let bytes = gpt_disk();
    assert!(moved(&bytes, DISK_BYTES) == bytes);
}

#[test]
fn on_a_larger_disk_the_backup_goes_to_the_end() {
    let bytes = gpt_disk();
    for more in [512, 4096 + 512, 8 << 20] {
        let target = moved(&bytes, DISK_BYTES + more);
        sgdisk_finds_no_problem(&target);
        assert_eq!(table(&target).partitions, table(&bytes).partitions);
        assert_eq!(table(&target).disk_id, table(&bytes).disk_id);
    }
}

#[test]
fn the_order_of_pieces_makes_the_disk_bootable_last() {
    let bytes = gpt_disk();
    let pieces =
        relocate_backup(&mut Cursor::new(&bytes), &table(&bytes), DISK_BYTES as u64 * 2).unwrap();
    let names: Vec<_> = pieces.iter().map(|p| p.name).collect();
    assert_eq!(names, ["backup GPT", "primary GPT", "LBA 0"]);
}

#[test]
fn a_disk_that_is_too_small_is_refused() {
    let bytes = gpt_disk();
    let table = table(&bytes);
    let end = 8 << 20;
    for len in [0, 511, 1 << 20, end, end + 33 * 512 - 1] {
        let error = relocate_backup(&mut Cursor::new(&bytes), &table, len).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{len}");
    }
}

/// Writes an MBR's entries by hand: tools refuse to make such tables.
fn mbr(entries: &[(u8, u32, u32)]) -> Vec<u8> {
    let mut bytes = vec![0; DISK_BYTES];
    bytes[510..512].copy_from_slice(&[0x55, 0xAA]);
    for ((kind, start, len), at) in entries.iter().zip((446..).step_by(16)) {
        bytes[at + 4] = *kind;
        bytes[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        bytes[at + 12..at + 16].copy_from_slice(&len.to_le_bytes());
    }
    bytes
}

#[test]
fn tables_that_cannot_be_are_refused() {
    let end = u32::try_from(DISK_BYTES / 512).unwrap();
    assert_eq!(
        refusal(&mbr(&[(0x83, 2048, 100), (0x83, 2100, 100)])),
        TableRefusal::Overlap { first: 1, second: 2 }
    );
    assert!(matches!(refusal(&mbr(&[(0x83, 2048, end)])), TableRefusal::PastEnd { number: 1, .. }));
    assert!(matches!(refusal(&mbr(&[(0x83, u32::MAX, u32::MAX)])), TableRefusal::PastEnd { .. }));
    assert_eq!(
        refusal(&mbr(&[(0x05, 2048, 100), (0x83, 4096, 100), (0x0F, 8192, 100)])),
        TableRefusal::SecondExtended { first: 1, second: 3 }
    );
    assert!(table(&mbr(&[(0x83, 1, 1), (0x83, 2, end - 2)])).partitions.len() == 2);
}

/// An MBR with two primary partitions, and three logical ones in the third.
fn logical_disk() -> Vec<u8> {
    disk(
        "label: dos\nlabel-id: 0xcafe1234\nstart=2048, size=2048, type=83\nstart=4096, size=2048, type=82\n\
         start=6144, size=24576, type=5\nstart=8192, size=4096, type=83\nstart=14336, size=63, type=c\nstart=20480, size=8192, \
         type=83, bootable\n",
        DISK_BYTES,
    )
}

/// The tables of logical partitions on that disk.
const LINKS: [usize; 3] = [6144 * 512, 12288 * 512, 18432 * 512];

#[test]
fn logical_partitions_are_read_as_sfdisk_wrote_them() {
    let bytes = logical_disk();
    let table = table(&bytes);
    assert_eq!((table.kind, &table.warnings), (TableKind::Mbr, &vec![]));
    let found: Vec<_> = table
        .partitions
        .iter()
        .map(|p| (p.number, p.start_bytes / 512, p.len_bytes / 512))
        .collect();
    let wanted =
        [(1, 2048, 2048), (2, 4096, 2048), (5, 8192, 4096), (6, 14336, 63), (7, 20480, 8192)];
    assert_eq!(found, wanted);
    let last = &table.partitions[4];
    assert_eq!((last.uuid.as_deref(), last.bootable), (Some("cafe1234-07"), true));
    // LBA 0 and three links.
    assert_eq!(table.metadata.total_bytes(), 4 * 512);
    assert!(
        LINKS.iter().all(|at| table.metadata.contains_range(*at as u64, 512)),
        "{:?}",
        table.metadata
    );
}

#[test]
fn tables_of_logical_partitions_come_before_the_first_sector() {
    let bytes = logical_disk();
    let pieces =
        relocate_backup(&mut Cursor::new(&bytes), &table(&bytes), DISK_BYTES as u64).unwrap();
    let names: Vec<_> = pieces.iter().map(|p| p.name).collect();
    assert_eq!(names, ["logical partitions", "logical partitions", "logical partitions", "LBA 0"]);
    for len in [DISK_BYTES, 2 * DISK_BYTES] {
        assert_eq!(table(&moved(&bytes, len)).partitions, table(&bytes).partitions, "{len}");
    }
    assert!(moved(&bytes, DISK_BYTES) == bytes);
    let cut = 28671 * 512;
    let error = relocate_backup(&mut Cursor::new(&bytes), &table(&bytes), cut).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_chain_that_cannot_move_says_what_to_do() {
    let mut bytes = logical_disk();
    // A table that leads on in its first entry.
    bytes[LINKS[1] + 446..][..32].rotate_left(16);
    let table = table(&bytes);
    let mut slots = table.slots();
    slots.last_mut().unwrap().start_bytes += 1 << 20;
    let size = 2 * DISK_BYTES as u64;
    let error = super::arrange(&mut Cursor::new(&bytes), &table, &slots, size).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert!(error.to_string().contains("leave --grow out"), "{error}");
}

#[test]
fn a_broken_chain_is_refused() {
    let good = logical_disk();
    let broken = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        match refusal(&bytes) {
            TableRefusal::BrokenChain { number: 3, byte, fault } => (byte, fault),
            other => panic!("{other:?}"),
        }
    };
    // The second entry of each link leads to the next one, in sectors from the extended partition.
    let link = |bytes: &mut Vec<u8>, to: u32| {
        bytes[LINKS[1] + 446 + 16 + 8..][..4].copy_from_slice(&to.to_le_bytes());
    };
    let second = LINKS[1] as u64;
    assert_eq!(broken(&|b| b[LINKS[1] + 510] = 0), (second, "there is no table"));
    assert_eq!(broken(&|b| link(b, 0)), (6144 * 512, "it leads back to where it was"));
    assert_eq!(broken(&|b| link(b, 6144)), (second, "it leads back to where it was"));
    assert_eq!(
        broken(&|b| link(b, 24576)),
        ((6144 + 24576) * 512, "it leaves the extended partition")
    );
}

#[test]
fn an_extended_partition_without_a_table_is_kept_whole() {
    let table = table(&mbr(&[(0x83, 2048, 100), (0x05, 4096, 100)]));
    let numbers: Vec<_> = table.partitions.iter().map(|p| p.number).collect();
    assert_eq!(numbers, [1, 2]);
    assert!(table.warnings[0].contains("extended partition 2"), "{:?}", table.warnings);
}

/// Linux reads them, and systems left rubbish there.
#[test]
fn third_entries_of_a_link_count_when_they_make_sense() {
    let with_third = |start: u32, len: u32| {
        let mut bytes = logical_disk();
        let at = LINKS[0] + 446 + 32;
        bytes[at + 4] = 0x83;
        bytes[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        bytes[at + 12..at + 16].copy_from_slice(&len.to_le_bytes());
        table(&bytes).partitions.len()
    };
    assert_eq!(with_third(15000 - 6144, 100), 6, "within the extended partition, and in no other");
    assert_eq!(with_third(24576, 100), 5, "longer than the extended partition");
    assert_eq!(with_third(u32::MAX, 100), 5, "behind the disk");
}

#[test]
fn a_hybrid_mbr_is_a_gpt() {
    let mut bytes = gpt_disk();
    // What gdisk makes for systems that read only an MBR: a second entry for partition 2.
    let entry = 446 + 16;
    bytes[entry + 4] = 0x83;
    bytes[entry + 8..entry + 12].copy_from_slice(&8192_u32.to_le_bytes());
    bytes[entry + 12..entry + 16].copy_from_slice(&8192_u32.to_le_bytes());
    let table = table(&bytes);
    assert_eq!((table.kind, table.partitions.len()), (TableKind::Gpt, 2));
    assert!(!table.warnings.is_empty());
    assert!(moved(&bytes, DISK_BYTES) == bytes);
}

#[test]
fn every_single_byte_of_a_table_may_be_wrong() {
    let good = gpt_disk();
    let wanted = table(&good).partitions;
    // All of LBA 0, of both headers and of the first entries; of the empty entries some.
    let (front, back) = (1024 + 512, DISK_BYTES - 33 * 512);
    let dense = (0..front).chain(back..back + 512).chain(DISK_BYTES - 512..DISK_BYTES);
    let sparse = (front..34 * 512).chain(back + 512..DISK_BYTES - 512).step_by(61);
    for at in dense.chain(sparse) {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        // Refused, or the same partitions; boot code and unused entries of the MBR say nothing about them. Without its protective
        // entry a GPT is an MBR's, or none, and the data are then taken raw or by another table: never by a wrong GPT.
        if let TableOutcome::Table(table) = read(&bytes, 512)
            && table.kind == TableKind::Gpt
        {
            assert_eq!(table.partitions, wanted, "byte {at}");
        }
    }
}

fn inside(outcome: &TableOutcome, len: u64) -> bool {
    match outcome {
        TableOutcome::Refused(_) => true,
        TableOutcome::Table(table) => {
            let ends = table.partitions.iter().map(|p| p.start_bytes + p.len_bytes);
            let apart = table
                .partitions
                .windows(2)
                .all(|w| w[0].start_bytes + w[0].len_bytes <= w[1].start_bytes);
            apart && ends.chain(table.metadata.iter().map(|e| e.end())).all(|end| end <= len)
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_table_or_none(mut bytes in proptest::collection::vec(any::<u8>(), 0..70_000), sign in any::<bool>()) {
        if sign && bytes.len() > 520 {
            bytes[510..520].copy_from_slice(b"\x55\xAAEFI PART");
            for flags in [446, 462, 478, 494] {
                bytes[flags] = 0;
            }
        }
        for sector in SECTOR_BYTES {
            prop_assert!(inside(&read(&bytes, sector), bytes.len() as u64));
        }
    }

    #[test]
    fn wrong_bytes_in_a_chain(places in proptest::collection::vec((0..4_usize, 446..512_usize, any::<u8>()), 1..6)) {
        static DISK: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let mut bytes = DISK.get_or_init(logical_disk).clone();
        for (link, at, value) in places {
            let link = if link == 0 { 0 } else { LINKS[link - 1] };
            bytes[link + at] = value;
        }
        prop_assert!(inside(&read(&bytes, 512), DISK_BYTES as u64));
    }

    #[test]
    fn several_wrong_bytes(places in proptest::collection::vec((0..40 * 512_usize, any::<u8>()), 1..6), back in any::<bool>()) {
        let mut bytes = gpt_disk_once().to_vec();
        for (at, value) in places {
            let at = if back { DISK_BYTES - 1 - at } else { at };
            bytes[at] = value;
        }
        prop_assert!(inside(&read(&bytes, 512), DISK_BYTES as u64));
    }
}

fn gpt_disk_once() -> &'static [u8] {
    static DISK: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    DISK.get_or_init(gpt_disk)
}

/// Any entry count and size that sgdisk can make.
#[test]
fn other_entry_counts() {
    let dir = tempfile::tempdir().unwrap();
    for count in ["4", "56", "256", "1024"] {
        let path: PathBuf = dir.path().join(count);
        std::fs::write(&path, vec![0; DISK_BYTES]).unwrap();
        tool("gdisk", "sgdisk", &["-S", count, "-n1:4096:8191", path.to_str().unwrap()], "");
        let bytes = std::fs::read(Path::new(&path)).unwrap();
        assert_eq!(table(&bytes).partitions.len(), 1, "{count} entries");
        sgdisk_finds_no_problem(&moved(&bytes, DISK_BYTES + (1 << 20)));
    }
}
