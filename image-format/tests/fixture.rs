//! Images of version 1 stay readable for ever: the committed fixture is read, and is what the writer makes today.
//!
//! `IMPRINT_BLESS=1 cargo nextest run -p image-format fixture` writes the fixture anew. There is no reason to do that once
//! version 1 has been released.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::fs;
use std::path::PathBuf;

use image_format::{Decoder, Hash, ImageReader, RunKind};
use support::{Piece, image, noise, text};

const SPAN: u32 = 32 << 10;

/// The BLAKE3 hash of the disk that the fixture holds.
const CONTENT: &str = "3a4dfa5684908f0cf58ee0ead66a82d8f21c608da1ff4ebec0056f31212f73a5";

/// The fixture's root.
const ROOT: &str = "91553a03970c04ff3b87f382ff63e7c00534f0b1101d0dc807bfbd0ee8fbe4bf";

/// The version of zstd, as a number, whose output the fixture holds.
const ZSTD: u32 = 10507;

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1-small.img.zst")
}

/// Everything that an image can hold, in two pages, with a short last unit.
fn pieces() -> Vec<Piece> {
    let mut pieces = vec![
        Piece::data(noise(1, 4096)),
        Piece::data(text(2, SPAN as usize)),
        Piece::Hole(5 << 20, RunKind::Free),
        Piece::mixed(3, [1, 5, 2]),
        Piece::Hole(8192, RunKind::Zero),
        Piece::mixed(4, [0, 3, 4]),
    ];
    let numbered = |number: u64| format!("block {number:9}\n").repeat(256).into_bytes();
    pieces.extend((0..260).map(|number| Piece::data(numbered(number))));
    pieces.push(Piece::Hole(4096, RunKind::Free));
    pieces.push(Piece::data(text(5, 4096 + 512)));
    pieces
}

#[test]
fn the_fixture_is_read_and_its_content_is_the_same() {
    if std::env::var_os("IMPRINT_BLESS").is_some() {
        fs::write(path(), image(&pieces(), SPAN).0).unwrap();
    }
    let bytes = fs::read(path()).unwrap();
    assert!(bytes.len() < 64 << 10, "{}", bytes.len());
    let reader = ImageReader::open(bytes).unwrap();
    reader.check_seek_table().unwrap();
    assert_eq!(reader.root().to_string(), ROOT);
    assert_eq!(reader.pages(), 2);
    let manifest = support::manifest(reader.header().image_id, reader.disk_len(), SPAN);
    assert_eq!(reader.manifest(), &manifest);
    assert_eq!(reader.header().producer, "imprint-agent 0.1.0");
    let (mut decoder, mut stored, mut disk) = (Decoder::new().unwrap(), Vec::new(), Vec::new());
    for entry in reader.frames() {
        let entry = entry.unwrap();
        let frame = reader.read_stored(&entry, &mut stored).unwrap();
        let start = disk.len();
        disk.resize(start + entry.logical_len as usize, 0xAA);
        decoder.decode(frame, &mut disk[start..]).unwrap();
        Decoder::check_content(&entry, &disk[start..]).unwrap();
    }
    assert_eq!(Hash::of(&disk).to_string(), CONTENT);
}

#[test]
fn the_writer_makes_the_fixture_again_bit_for_bit() {
    let fixture = fs::read(path()).unwrap();
    let (made, _) = image(&pieces(), SPAN);
    if zstd::zstd_safe::version_number() == ZSTD {
        assert!(made == fixture, "the writer no longer writes what version 1 was");
        return;
    }
    // Another zstd may compress otherwise; everything else must be the same.
    let (made, fixture) = (ImageReader::open(made).unwrap(), ImageReader::open(fixture).unwrap());
    assert_eq!(made.manifest_json(), fixture.manifest_json());
    assert_eq!(made.totals(), fixture.totals());
    for (made, fixture) in made.frames().zip(fixture.frames()) {
        let (made, fixture) = (made.unwrap(), fixture.unwrap());
        assert_eq!(
            (made.kind, made.content_hash, &made.runs),
            (fixture.kind, fixture.content_hash, &fixture.runs)
        );
    }
}
