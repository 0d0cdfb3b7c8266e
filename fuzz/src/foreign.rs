//! What the target of foreign images does with its input, and the seeds that it begins with. A plain function, so that ordinary
//! tests run it as well.
//!
//! An input is a file, of whatever format it begins as; for the target of folders it is several, each behind a line with its name. Beyond "no panic" it is asserted that a walk over the disk holds what it
//! claims, and that reading anywhere gives what the walk gave.

use std::collections::BTreeMap;
use std::sync::Arc;

use image_format::ReadAt;
use ramdisk_agent::foreign::folder::{self, Folder};
use ramdisk_agent::foreign::{
    Access, Body, ForeignDisk, ForeignError, Limit, Source, Spans, detect,
};

/// Disks beyond this are not walked.
const MAX_LEN: u64 = 16 << 20;

/// Opens the file, walks its disk, and reads it again where that can be done.
pub fn foreign(data: &[u8]) {
    let refused = |_: &str| -> Result<Source, ForeignError> {
        Err(ForeignError::Refused { format: "test", reason: "no other files".into() })
    };
    if let Ok(disk) = detect(Source::of_bytes(data.to_vec()), "file", &refused) {
        walk(&disk);
    }
}

/// What stands in front of each file's name in a folder.
const FILE: &[u8] = b"\n=== ";

/// Opens a folder of these files, and walks its disk.
pub fn folder(data: &[u8]) {
    let mut files = BTreeMap::new();
    let mut rest = data;
    while let Some(at) = rest.windows(FILE.len()).position(|there| there == FILE) {
        rest = &rest[at + FILE.len()..];
        let end = rest.windows(FILE.len()).position(|there| there == FILE).unwrap_or(rest.len());
        let mut parts = rest[..end].splitn(2, |byte| *byte == b'\n');
        let (name, bytes) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        files.insert(String::from_utf8_lossy(name).into_owned(), bytes.to_vec());
    }
    if let Ok(disk) = open_folder(&files) {
        walk(&disk);
    }
}

fn open_folder(files: &BTreeMap<String, Vec<u8>>) -> Result<ForeignDisk, ForeignError> {
    let open =
        |name: &str| -> Result<Arc<dyn ReadAt>, ForeignError> { Ok(Arc::new(files[name].clone())) };
    folder::open(&Folder { names: files.keys().cloned().collect(), open: &open })
}

fn walk(disk: &ForeignDisk) {
    if disk.declared_len.is_some_and(|len| len > MAX_LEN) {
        return;
    }
    let Ok(walk) = disk.walk() else { return };
    let limit = Limit { bytes: MAX_LEN, reason: "the target allows no more".into() };
    let mut spans = Spans::new(walk, limit);
    let mut len = 0;
    loop {
        let span = match spans.next_span() {
            Ok(Some(span)) => span,
            Ok(None) => break,
            Err(_) => return,
        };
        assert_eq!(span.offset, len, "spans follow one another");
        len += span.len;
        if let Access::Random(random) = &disk.access {
            let mut again = vec![0xA5; usize::try_from(span.len).expect("16 MiB")];
            random.read(span.offset, &mut again).expect("it was read before");
            match span.body {
                Body::Bytes { bytes, .. } => assert!(bytes == again, "the same bytes"),
                _ => assert!(again.iter().all(|byte| *byte == 0), "zeros"),
            }
        }
    }
    assert!(disk.declared_len.is_none_or(|claimed| claimed == len), "as long as it claims");
}

/// A sound folder of Clonezilla: a partition, and a volume group whose volumes lie in pieces.
#[must_use]
pub fn folder_seeds() -> Vec<Vec<u8>> {
    let mut mbr = vec![0; 512];
    for (entry, kind, start, len) in [(446, 0x83, 8_u32, 8_u32), (462, 0x8E, 256, 2048)] {
        mbr[entry + 4] = kind;
        mbr[entry + 8..entry + 12].copy_from_slice(&start.to_le_bytes());
        mbr[entry + 12..entry + 16].copy_from_slice(&len.to_le_bytes());
    }
    mbr[510..].copy_from_slice(&[0x55, 0xAA]);
    let table = "label: dos\n/dev/sda1 : start=8, size=8, type=83\n/dev/sda2 : start=256, size=2048, type=8e\n";
    let swap = "UUID=\"0c8d0000-0000-0000-0000-000000000000\"\nLABEL=\"\"\n";
    let files: [(&str, Vec<u8>); 10] = [
        ("disk", b"sda\n".into()),
        ("parts", b"sda1 sda2\n".into()),
        ("sda-pt.sf", table.into()),
        ("sda-pt.parted", b"Disk /dev/sda: 4096s\n".into()),
        ("sda-mbr", mbr),
        ("sda1.dd-img", vec![7; 4096]),
        ("lvm_vg_dev.list", format!("vg /dev/sda2 {}\n", id(0)).into()),
        ("lvm_vg.conf", group().into()),
        ("vg-a.dd-img", vec![8; 3 * 4096]),
        ("swappt-vg-b.info", swap.into()),
    ];
    let mut seed = Vec::new();
    for (name, bytes) in &files {
        seed.extend([FILE, name.as_bytes(), b"\n", bytes].concat());
    }
    let disk = open_folder(&files.into_iter().map(|(name, bytes)| (name.into(), bytes)).collect());
    let disk = disk.expect("the seed is sound");
    let limit = Limit { bytes: MAX_LEN, reason: String::new() };
    let mut spans = Spans::new(disk.walk().expect("as above"), limit);
    while spans.next_span().expect("as above").is_some() {}
    vec![seed]
}

/// A UUID as LVM shows it.
fn id(number: u32) -> String {
    format!("{number:06}-0000-0000-0000-0000-0000-000000")
}

/// What vgcfgbackup writes.
fn group() -> String {
    let volume = |number: u32, name: &str, pieces: &[(u32, u32)]| {
        let mut text = format!(
            "{name} {{\nid = \"{}\"\nstatus = [\"READ\", \"WRITE\", \"VISIBLE\"]\nsegment_count = {}\n",
            id(number),
            pieces.len()
        );
        let mut start = 0;
        for (i, (first, many)) in pieces.iter().enumerate() {
            text += &format!(
                "segment{} {{\nstart_extent = {start}\nextent_count = {many}\ntype = \"striped\"\nstripe_count = 1\n\
                 stripes = [\"pv0\", {first}]\n}}\n",
                i + 1
            );
            start += many;
        }
        text + "}\n"
    };
    format!(
        "contents = \"Text Format Volume Group\"\nversion = 1\nvg {{\nid = \"{}\"\nseqno = 1\nstatus = [\"READ\", \"WRITE\"]\n\
         extent_size = 8\nmax_lv = 0\nmax_pv = 0\nphysical_volumes {{\npv0 {{\nid = \"{}\"\nstatus = [\"ALLOCATABLE\"]\n\
         dev_size = 2048\npe_start = 64\npe_count = 100\n}}\n}}\nlogical_volumes {{\n{}{}}}\n}}\n",
        id(9),
        id(0),
        volume(1, "a", &[(4, 1), (0, 1), (6, 1)]),
        volume(2, "b", &[(5, 1)]),
    )
}

/// Small sound images.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let seeds = vec![qcow2(), vmdk(), partclone(), vec![7; 1024]];
    for seed in &seeds {
        let none =
            |_: &str| -> Result<Source, ForeignError> { unreachable!("no seed has other files") };
        let disk = detect(Source::of_bytes(seed.clone()), "file", &none).expect("a seed is sound");
        let limit = Limit { bytes: MAX_LEN, reason: String::new() };
        let mut spans = Spans::new(disk.walk().expect("as above"), limit);
        while spans.next_span().expect("as above").is_some() {}
    }
    seeds
}

/// Version 3, clusters of 512 bytes: one plain, one zero, the rest not there.
fn qcow2() -> Vec<u8> {
    let mut file = vec![0; 4 * 512];
    file[..4].copy_from_slice(b"QFI\xfb");
    file[4..8].copy_from_slice(&3_u32.to_be_bytes());
    file[20..24].copy_from_slice(&9_u32.to_be_bytes());
    file[24..32].copy_from_slice(&(64_u64 << 10).to_be_bytes());
    file[36..40].copy_from_slice(&2_u32.to_be_bytes());
    file[40..48].copy_from_slice(&512_u64.to_be_bytes());
    file[96..100].copy_from_slice(&4_u32.to_be_bytes());
    file[100..104].copy_from_slice(&104_u32.to_be_bytes());
    file[512..520].copy_from_slice(&(1 << 63 | 1024_u64).to_be_bytes());
    file[1024..1032].copy_from_slice(&(1 << 63 | 1536_u64).to_be_bytes());
    file[1032..1040].copy_from_slice(&1_u64.to_be_bytes());
    file[1536..].fill(0x5A);
    file
}

/// One grain of 4 KiB, the rest not there.
fn vmdk() -> Vec<u8> {
    let mut file = vec![0; 8 * 512 + 4096];
    file[..4].copy_from_slice(b"KDMV");
    file[4] = 1;
    file[12..20].copy_from_slice(&64_u64.to_le_bytes());
    file[20..28].copy_from_slice(&8_u64.to_le_bytes());
    file[44..48].copy_from_slice(&512_u32.to_le_bytes());
    file[56..64].copy_from_slice(&1_u64.to_le_bytes());
    file[73..77].copy_from_slice(b"\n \r\n");
    file[512] = 2;
    file[1024] = 8;
    file[4096..].fill(0x5A);
    file
}

/// Format 0001, whose header has no checksum: two blocks of 512 bytes, one in use.
fn partclone() -> Vec<u8> {
    let mut file = b"partclone-image".to_vec();
    file.resize(30, 0);
    file.extend(b"0001\0\0");
    file.extend(512_u32.to_le_bytes());
    for number in [1024_u64, 2, 1] {
        file.extend(number.to_le_bytes());
    }
    file.resize(4160, 0);
    file.extend([1, 0]);
    file.extend(b"BiTmAgIc");
    file.extend([0; 512]);
    let crc = crc::Crc::<u32>::new(&crc::CRC_32_JAMCRC);
    file.extend(crc.checksum(&[0; 512]).to_le_bytes());
    file
}
