//! No damage goes unnoticed: every bit flipped, every length cut to, bytes appended and parts exchanged.
//!
//! "Noticed" means by opening, by the index, or by the hash of a frame's stored bytes: before anything is decompressed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::ops::Range;

use image_format::{FormatError, ImageReader, Root, RunKind};
use support::{Piece, image, noise, text};

const SPAN: u32 = 16 << 10;

/// Checks all that can be checked without decompressing, as a restore does, and gives the root.
fn check(bytes: &[u8]) -> Result<Root, FormatError> {
    let reader = ImageReader::open(bytes)?;
    reader.check_seek_table()?;
    let mut stored = Vec::new();
    for entry in reader.frames() {
        let entry = entry?;
        reader.read_stored(&entry, &mut stored)?;
    }
    Ok(reader.root())
}

fn stored_ranges(bytes: &[u8]) -> Vec<Range<usize>> {
    let reader = ImageReader::open(bytes).unwrap();
    let range = |start: u64, len: u32| {
        usize::try_from(start).unwrap()..usize::try_from(start).unwrap() + len as usize
    };
    reader
        .frames()
        .map(|entry| entry.unwrap())
        .map(|entry| range(entry.stored_offset, entry.stored_len))
        .collect()
}

fn small() -> Vec<u8> {
    let pieces = [
        Piece::data(noise(1, 4096)),
        Piece::Hole(1 << 20, RunKind::Free),
        Piece::mixed(2, [1, 1, 2]),
        Piece::Hole(8192, RunKind::Zero),
        Piece::data(text(3, 512)),
    ];
    image(&pieces, SPAN).0
}

/// Two pages.
fn paged() -> Vec<u8> {
    let pieces: Vec<Piece> = (0..270).map(|i| Piece::data(text(i % 5, 4096))).collect();
    image(&pieces, SPAN).0
}

/// Flips these bits of every so many bytes, expects each to be noticed, and those in a frame to name the frame.
fn flip(bytes: &mut [u8], step: usize, bits: impl Iterator<Item = u8> + Clone) {
    check(bytes).unwrap();
    let frames = stored_ranges(bytes);
    for at in (0..bytes.len()).step_by(step) {
        for bit in bits.clone() {
            bytes[at] ^= 1 << bit;
            let error = check(bytes).expect_err(&format!("bit {bit} of byte {at} flipped"));
            assert!(!matches!(error, FormatError::Decompress { .. }), "{at}: {error}");
            if let Some(hit) = frames.iter().position(|range| range.contains(&at)) {
                assert!(
                    matches!(error, FormatError::Frame { index, .. } if index == hit as u64),
                    "{at}: {error}"
                );
                assert!(
                    error.to_string().contains("stored bytes do not match their hash"),
                    "{error}"
                );
            }
            bytes[at] ^= 1 << bit;
        }
    }
    check(bytes).unwrap();
}

#[test]
fn every_bit_of_an_image_is_covered() {
    flip(&mut small(), 1, 0..8);
}

#[test]
fn an_image_of_several_pages_is_covered() {
    // 13 shares no factor with the 88 bytes of an entry here: every field of entries gets its turn.
    flip(&mut paged(), 13, std::iter::once(3));
}

#[test]
fn every_truncation_is_refused() {
    for bytes in [small(), paged()] {
        for len in 0..bytes.len() {
            ImageReader::open(&bytes[..len]).expect_err(&format!("cut to {len} bytes"));
        }
    }
}

#[test]
fn what_is_put_before_or_behind_an_image_is_refused() {
    let bytes = small();
    for garbage in
        [vec![0], vec![0xFF; 9], vec![0; 4096], bytes.clone(), bytes[bytes.len() - 9..].to_vec()]
    {
        ImageReader::open([bytes.as_slice(), &garbage].concat()).unwrap_err();
        ImageReader::open([garbage.as_slice(), &bytes].concat()).unwrap_err();
    }
}

#[test]
fn an_image_within_an_image_is_not_mistaken_for_it() {
    // The content of the first frame is stored as it is, and is itself a whole image.
    let inner = small();
    let mut padded = inner.clone();
    padded.resize(inner.len().next_multiple_of(4096), 0);
    let outer = image(&[Piece::data(padded)], 64 << 10).0;
    (0..outer.len()).for_each(|len| {
        ImageReader::open(&outer[..len]).unwrap_err();
    });
}

#[test]
fn parts_of_another_image_are_refused() {
    let pieces =
        |seed: u64| (0..300_u64).map(|i| Piece::data(noise(seed + i, 4096))).collect::<Vec<_>>();
    let (one, two) = (image(&pieces(1), SPAN).0, image(&pieces(1000), SPAN).0);
    assert_eq!(one.len(), two.len(), "noise is stored as it is, so that parts can be exchanged");
    let half = one.len() / 2;
    check(&[&one[..half], &two[half..]].concat()).unwrap_err();
    for (mine, theirs) in stored_ranges(&one).into_iter().zip(stored_ranges(&two)).step_by(37) {
        let mut mixed = one.clone();
        mixed[mine.clone()].copy_from_slice(&two[theirs]);
        let error = check(&mixed).unwrap_err();
        assert!(matches!(error, FormatError::Frame { .. }), "{error}");
    }
}

#[test]
fn errors_name_the_frame_and_the_place() {
    let mut bytes = small();
    let frames = stored_ranges(&bytes);
    bytes[frames[2].start + 5] ^= 1;
    let offset = frames[2].start;
    let expected = format!(
        "frame 2 at image offset 1052672 (byte {offset} of the file): stored bytes do not match their hash"
    );
    assert_eq!(check(&bytes).unwrap_err().to_string(), expected);
    let bytes = small();
    let cut = check(&bytes[..bytes.len() - 1]).unwrap_err().to_string();
    assert!(cut.contains("cut short or never finished"), "{cut}");
}
