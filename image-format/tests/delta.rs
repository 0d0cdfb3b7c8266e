//! Delta images: with their parent they give the disk, alone they give nothing, and no damage goes unnoticed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::fs;
use std::path::PathBuf;

use image_format::{
    Decoder, EncodedFrame, Encoder, FormatError, FrameBase, Hash, Header, INCOMPATIBLE_DELTA,
    ImageReader, ImageWriter, Manifest, RunKind, Runs,
};
use proptest::prelude::*;
use support::{DELTA_ID, PRODUCER, Piece, content, delta, delta_content, image, noise, text};

const SPAN: u32 = 16 << 10;

/// The BLAKE3 hash of the disk that the fixtures hold together.
const CONTENT: &str = "e8975a42329ebae03b9fae79a6733ac592fbff51e86bfe215065c37cef63bbf9";

/// The root of the delta fixture.
const ROOT: &str = "9493f3d02f3e7f3afb62372695334d5764c7939300897319a937a21b79af1377";

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn base_pieces() -> Vec<Piece> {
    vec![
        Piece::data(noise(1, SPAN as usize)),
        Piece::data(noise(2, SPAN as usize)),
        Piece::Hole(1 << 20, RunKind::Free),
        Piece::mixed(3, [1, 1, 2]),
        Piece::data(text(4, 512)),
    ]
}

/// The same disk with a span changed a little, a hole filled in part, and the end replaced.
fn pieces() -> Vec<Piece> {
    let mut changed = noise(2, SPAN as usize);
    changed[5000..5100].fill(b'!');
    vec![
        Piece::data(noise(1, SPAN as usize)),
        Piece::data(changed),
        Piece::data(text(9, SPAN as usize)),
        Piece::Hole((1 << 20) - u64::from(SPAN), RunKind::Free),
        Piece::mixed(3, [1, 1, 2]),
        Piece::data(text(5, 512)),
    ]
}

/// Checks all that can be checked without the parent.
fn check(bytes: &[u8]) -> Result<(), FormatError> {
    let reader = ImageReader::open(bytes)?;
    reader.check_seek_table()?;
    let mut stored = Vec::new();
    for entry in reader.frames() {
        let entry = entry?;
        if entry.base != FrameBase::Reference {
            reader.read_stored(&entry, &mut stored)?;
        }
    }
    Ok(())
}

#[test]
fn with_its_parent_a_delta_gives_the_disk() {
    let base = image(&base_pieces(), SPAN).0;
    let (bytes, summary) = delta(&pieces(), SPAN, &base);
    let reader = ImageReader::open(bytes.as_slice()).unwrap();
    reader.check_seek_table().unwrap();
    let kinds: Vec<FrameBase> = reader.frames().map(|entry| entry.unwrap().base).collect();
    use FrameBase::{None, Prefix, Reference};
    assert_eq!(kinds, [Reference, Prefix, None, None, Reference, Prefix]);
    assert_eq!(reader.root(), summary.root);
    let parent = reader.manifest().parent.clone().unwrap();
    assert_eq!(parent.root, ImageReader::open(base.as_slice()).unwrap().root());
    assert_eq!(delta_content(&bytes, &base), content(&pieces()));
    assert_eq!(&bytes[..4], b"IMGD");
    assert_eq!(&bytes[bytes.len() - 4..], b"IMGD");
    // The changed span costs a few bytes, not its own compressed length.
    let changed = reader.frames().nth(1).unwrap().unwrap();
    assert!(changed.stored_len < 200, "{}", changed.stored_len);
}

#[test]
fn without_its_parent_a_frame_gives_an_error() {
    let base = image(&base_pieces(), SPAN).0;
    let bytes = delta(&pieces(), SPAN, &base).0;
    let reader = ImageReader::open(bytes.as_slice()).unwrap();
    let entries: Vec<_> = reader.frames().map(Result::unwrap).collect();
    let mut stored = Vec::new();
    let error = reader.read_stored(&entries[0], &mut stored).unwrap_err().to_string();
    assert!(error.contains("reference to the parent"), "{error}");
    let mut out = vec![0; SPAN as usize];
    let frame = reader.read_stored(&entries[1], &mut stored).unwrap();
    let error = Decoder::new().unwrap().decode(frame, &mut out).unwrap_err().to_string();
    assert!(error.contains("needs the parent"), "{error}");
    // Another prefix gives other bytes, or none: zstd's checksum, or else the content's hash, says so.
    let wrong = noise(77, SPAN as usize);
    assert!(Decoder::decode_with_prefix(frame, &wrong, &mut out).is_err());
    let frame = reader.read_stored(&entries[2], &mut stored).unwrap();
    assert!(Decoder::decode_with_prefix(frame, &wrong, &mut out).is_err());
}

#[test]
fn every_bit_of_a_delta_is_covered() {
    let base = image(&base_pieces(), SPAN).0;
    let mut bytes = delta(&pieces(), SPAN, &base).0;
    check(&bytes).unwrap();
    for (at, bit) in (0..bytes.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
        bytes[at] ^= 1 << bit;
        check(&bytes).expect_err(&format!("bit {bit} of byte {at} flipped"));
        bytes[at] ^= 1 << bit;
    }
    for len in 0..bytes.len() {
        ImageReader::open(&bytes[..len]).expect_err(&format!("cut to {len} bytes"));
    }
}

#[test]
fn a_page_of_nothing_but_references_is_read() {
    let pieces: Vec<Piece> = (0..600).map(|i| Piece::data(text(i % 5, 4096))).collect();
    let base = image(&pieces, SPAN).0;
    let bytes = delta(&pieces, SPAN, &base).0;
    check(&bytes).unwrap();
    assert_eq!(ImageReader::open(bytes.as_slice()).unwrap().pages(), 3);
    assert_eq!(delta_content(&bytes, &base), content(&pieces));
}

#[test]
fn a_whole_image_has_no_parent_and_a_delta_has_one() {
    let runs = || Runs::uniform(RunKind::Data, 4096);
    let reference = EncodedFrame::reference(4096, Hash::of(&[7; 4096]), runs());
    let header = Header::new(DELTA_ID, PRODUCER);
    let mut writer = ImageWriter::create(Vec::new(), header, 4096, SPAN).unwrap();
    assert!(writer.append(&reference, &[]).unwrap_err().to_string().contains("needs a parent"));
    let mut stored = Vec::new();
    let frame = Encoder::new(3).unwrap().encode(&[7; 4096], runs(), &mut stored).unwrap();
    writer.append(&frame, &stored).unwrap();
    let base = image(&base_pieces(), SPAN).0;
    let manifest = Manifest {
        parent: Some(support::parent(&ImageReader::open(base.as_slice()).unwrap())),
        ..support::manifest(DELTA_ID, 4096, SPAN)
    };
    let error = writer.finish(&manifest).unwrap_err().to_string();
    assert!(error.contains("parent"), "{error}");

    let header = Header::delta(DELTA_ID, PRODUCER);
    assert_eq!(header.incompatible, INCOMPATIBLE_DELTA);
    let mut writer = ImageWriter::create(Vec::new(), header, 4096, SPAN).unwrap();
    writer.append(&reference, &[]).unwrap();
    let error = writer.finish(&support::manifest(DELTA_ID, 4096, SPAN)).unwrap_err().to_string();
    assert!(error.contains("parent"), "{error}");
}

/// What the fixture's disk became.
fn fixture_pieces() -> Vec<Piece> {
    let span = 32 << 10;
    let mut changed = text(2, span);
    changed[100..164].fill(b'#');
    let mut pieces = vec![
        Piece::data(noise(1, 4096)),
        Piece::data(changed),
        Piece::data(text(11, span)),
        Piece::Hole((5 << 20) - span as u64, RunKind::Free),
        Piece::mixed(3, [1, 5, 2]),
        Piece::Hole(8192, RunKind::Zero),
        Piece::mixed(4, [0, 3, 4]),
    ];
    let numbered = |number: u64| format!("block {number:9}\n").repeat(256).into_bytes();
    pieces.extend((0..260).map(|number| Piece::data(numbered(number + number / 200))));
    pieces.push(Piece::Hole(4096, RunKind::Free));
    pieces.push(Piece::data(text(5, 4096 + 512)));
    pieces
}

/// As for whole images, `IMPRINT_BLESS=1` writes the fixture anew, and there is no reason to do that once it was released.
#[test]
fn the_fixture_is_read_and_its_content_is_the_same() {
    let base = fs::read(fixture("v1-small.img.zst")).unwrap();
    if std::env::var_os("IMPRINT_BLESS").is_some() {
        let made = delta(&fixture_pieces(), 32 << 10, &base).0;
        fs::write(fixture("v1-small-delta.imgd"), made).unwrap();
    }
    let bytes = fs::read(fixture("v1-small-delta.imgd")).unwrap();
    check(&bytes).unwrap();
    let reader = ImageReader::open(bytes.as_slice()).unwrap();
    let disk = delta_content(&bytes, &base);
    assert_eq!(disk, content(&fixture_pieces()));
    assert_eq!(
        (Hash::of(&disk).to_string().as_str(), reader.root().to_string().as_str()),
        (CONTENT, ROOT)
    );
}

proptest! {
    #[test]
    fn any_change_comes_back(
        base in prop::collection::vec((0..4_u64, 1..5_usize), 1..8),
        changes in prop::collection::vec((0..60_000_usize, any::<u8>()), 0..40),
    ) {
        let pieces: Vec<Piece> =
            base.iter().map(|(seed, units)| Piece::data(text(*seed, units * 4096))).collect();
        let whole = image(&pieces, 4 * 4096).0;
        let mut changed = pieces;
        for (at, byte) in changes {
            let count = changed.len();
            if let Piece::Span(bytes, _) = &mut changed[at % count] {
                let len = bytes.len();
                bytes[at % len] = byte;
            }
        }
        let bytes = delta(&changed, 4 * 4096, &whole).0;
        check(&bytes).unwrap();
        prop_assert_eq!(delta_content(&bytes, &whole), content(&changed));
    }
}
