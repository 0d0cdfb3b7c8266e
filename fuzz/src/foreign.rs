//! What the target of foreign images does with its input, and the seeds that it begins with. A plain function, so that ordinary
//! tests run it as well.
//!
//! An input is a file, of whatever format it begins as. Beyond "no panic" it is asserted that a walk over the disk holds what it
//! claims, and that reading anywhere gives what the walk gave.

use ramdisk_agent::foreign::{Access, Body, ForeignError, Limit, Source, Spans, detect};

/// Disks beyond this are not walked.
const MAX_LEN: u64 = 16 << 20;

/// Opens the file, walks its disk, and reads it again where that can be done.
pub fn foreign(data: &[u8]) {
    let refused = |_: &str| -> Result<Source, ForeignError> {
        Err(ForeignError::Refused { format: "test", reason: "no other files".into() })
    };
    let Ok(disk) = detect(Source::of_bytes(data.to_vec()), "file", &refused) else { return };
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
