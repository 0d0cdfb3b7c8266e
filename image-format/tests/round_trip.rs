//! What is written is what is read: the whole way through the public interface.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use proptest::prelude::*;

use image_format::{Decoder, FormatError, FrameKind, ImageReader, Manifest, RunKind, Runs};
use support::{Piece, content, image, noise, text};

const SPAN: u32 = 64 << 10;

/// A disk with everything in it, its last unit short.
fn pieces() -> Vec<Piece> {
    vec![
        Piece::data(noise(1, SPAN as usize)),
        Piece::Hole(3 << 20, RunKind::Free),
        Piece::mixed(2, [4, 5, 7]),
        Piece::Hole(4096, RunKind::Zero),
        Piece::data(text(3, SPAN as usize)),
        Piece::data(text(4, 4096 + 512)),
    ]
}

/// Reads a whole image the way a restore does.
fn read_all(reader: &ImageReader<Vec<u8>>) -> Vec<u8> {
    let mut decoder = Decoder::new().unwrap();
    let (mut out, mut stored) = (Vec::new(), Vec::new());
    for entry in reader.frames() {
        let entry = entry.unwrap();
        assert_eq!(entry.logical_offset, out.len() as u64);
        let frame = reader.read_stored(&entry, &mut stored).unwrap();
        let start = out.len();
        out.resize(start + entry.logical_len as usize, 0xAA);
        decoder.decode(frame, &mut out[start..]).unwrap();
        Decoder::check_content(&entry, &out[start..]).unwrap();
    }
    out
}

#[test]
fn what_is_written_is_read() {
    let pieces = pieces();
    let (bytes, summary) = image(&pieces, SPAN);
    assert_eq!(summary.stored_len, bytes.len() as u64);
    let reader = ImageReader::open(bytes).unwrap();
    reader.check_seek_table().unwrap();
    assert_eq!(reader.root(), summary.root);
    assert_eq!(reader.disk_len(), summary.disk_len);
    assert_eq!(reader.manifest(), &support::manifest(summary.image_id, summary.disk_len, SPAN));
    assert_eq!((summary.data_frames, summary.hole_frames), (4, 2));
    assert_eq!(summary.data_bytes + summary.zero_bytes + summary.free_bytes, summary.disk_len);
    assert_eq!(summary.zero_bytes, 6 * 4096);
    assert_eq!(read_all(&reader), content(&pieces));
    for offset in [0, 65_535, 65_536, 100_000, summary.disk_len - 1] {
        let entry = reader.frame_at(offset).unwrap();
        let end = entry.logical_offset + u64::from(entry.logical_len);
        assert!((entry.logical_offset..end).contains(&offset));
    }
    assert!(matches!(reader.frame_at(summary.disk_len), Err(FormatError::BeyondEnd { .. })));
    assert!(matches!(reader.page(1), Err(FormatError::NoSuchPage { .. })));
}

#[test]
fn pages_follow_after_256_data_frames_or_1024_in_all() {
    let mut pieces: Vec<Piece> = (0..600).map(|i| Piece::data(text(i, 4096))).collect();
    pieces.extend(
        (0..1030)
            .map(|i| Piece::Hole(4096, if i % 2 == 0 { RunKind::Free } else { RunKind::Zero })),
    );
    let (bytes, _) = image(&pieces, 4096);
    let reader = ImageReader::open(bytes).unwrap();
    let lens: Vec<_> =
        (0..reader.pages()).map(|i| reader.page(i).unwrap().frames().len()).collect();
    assert_eq!(lens, [256, 256, 1024, 94]);
    reader.check_seek_table().unwrap();
    assert_eq!(read_all(&reader), content(&pieces));
    for (index, entry) in reader.frames().enumerate() {
        let entry = entry.unwrap();
        assert_eq!(entry.index, index as u64);
        assert_eq!(reader.frame_at(entry.logical_offset).unwrap(), entry);
    }
}

#[test]
fn an_empty_disk_has_an_image() {
    let (bytes, summary) = image(&[], SPAN);
    let reader = ImageReader::open(bytes).unwrap();
    reader.check_seek_table().unwrap();
    assert_eq!(reader.frames().count(), 0);
    assert_eq!(summary.disk_len, 0);
}

#[test]
fn long_holes_are_split_and_cost_32_kib_a_gibibyte() {
    let len = (5_u64 << 30) + 4096;
    let (bytes, summary) = image(&[Piece::Hole(len, RunKind::Free)], SPAN);
    assert_eq!(summary.hole_frames, 6);
    assert!(bytes.len() < 5 * (33 << 10) + 4096);
    let reader = ImageReader::open(bytes).unwrap();
    let lens: Vec<u32> = reader.frames().map(|entry| entry.unwrap().logical_len).collect();
    assert_eq!(lens, [1 << 30, 1 << 30, 1 << 30, 1 << 30, 1 << 30, 4096]);
    assert!(reader.frames().all(|entry| entry.unwrap().kind == FrameKind::Hole));
}

#[test]
fn the_writer_refuses_what_is_not_an_image() {
    use image_format::{Encoder, Header, ImageWriter};
    let id = uuid::Uuid::from_u128(1);
    let create = |disk_len, span_len| {
        ImageWriter::create(Vec::new(), Header::new(id, support::PRODUCER), disk_len, span_len)
    };
    assert!(matches!(create(1, 0), Err(FormatError::BadSpanLen { .. })));
    assert!(matches!(create(1, 5000), Err(FormatError::BadSpanLen { .. })));
    assert!(matches!(create(u64::MAX, 4096), Err(FormatError::DiskTooLarge { .. })));
    let long = Header::new(id, "x".repeat(257));
    assert!(matches!(
        ImageWriter::create(Vec::new(), long, 1, 4096),
        Err(FormatError::ProducerTooLong { .. })
    ));

    let finish =
        |writer: ImageWriter<Vec<u8>>, manifest: &Manifest| writer.finish(manifest).map(|_| ());
    let manifest = support::manifest(id, 8192, 4096);
    let short = create(8192, 4096).unwrap();
    assert!(matches!(
        finish(short, &manifest),
        Err(FormatError::Incomplete { covered: 0, disk_len: 8192 })
    ));
    let mut other = create(8192, 4096).unwrap();
    other.append_hole(8192, RunKind::Zero).unwrap();
    let wrong = support::manifest(id, 4096, 4096);
    assert!(matches!(
        finish(other, &wrong),
        Err(FormatError::ManifestMismatch { field: "disk.size_bytes" })
    ));

    let mut writer = create(8192, 4096).unwrap();
    assert!(matches!(writer.append_hole(4096, RunKind::Data), Err(FormatError::BadFrame { .. })));
    assert!(matches!(writer.append_hole(8193, RunKind::Free), Err(FormatError::BadFrame { .. })));
    assert!(matches!(writer.append_hole(100, RunKind::Free), Err(FormatError::BadFrame { .. })));
    let mut encoder = Encoder::new(1).unwrap();
    let mut stored = Vec::new();
    let two = encoder.encode(&[1; 8192], Runs::uniform(RunKind::Data, 8192), &mut stored).unwrap();
    let error = writer.append(&two, &stored).unwrap_err();
    assert!(error.to_string().contains("longer than a frame"), "{error}");
    assert!(matches!(writer.append(&two, &stored[1..]), Err(FormatError::BadFrame { .. })));
    assert_eq!(writer.covered(), 0);
}

#[test]
fn the_encoder_refuses_spans_that_contradict_their_runs() {
    use image_format::Encoder;
    let mut encoder = Encoder::new(1).unwrap();
    let mut out = Vec::new();
    for kind in [RunKind::Free, RunKind::Zero] {
        let mut span = vec![0; 4096];
        assert!(encoder.encode(&span, Runs::uniform(kind, 4096), &mut out).is_ok());
        span[4095] = 1;
        let refused = encoder.encode(&span, Runs::uniform(kind, 4096), &mut out);
        assert!(matches!(refused, Err(FormatError::BadSpan { .. })));
    }
    assert!(encoder.encode(&[], Runs::default(), &mut out).is_err());
    assert!(encoder.encode(&[0; 4097], Runs::uniform(RunKind::Data, 4096), &mut out).is_err());
    assert!(matches!(Encoder::new(23), Err(FormatError::Compress { level: 23, .. })));
}

/// Any disk: data, holes and mixed spans in any order, the last unit short or not.
fn any_pieces() -> impl Strategy<Value = Vec<Piece>> {
    let piece = prop_oneof![
        (any::<u64>(), 1..17_usize).prop_map(|(seed, units)| Piece::data(text(seed, units * 4096))),
        (1..4000_u64, any::<bool>()).prop_map(|(units, free)| Piece::Hole(
            units * 4096,
            if free { RunKind::Free } else { RunKind::Zero }
        )),
        (any::<u64>(), 0..6_u32, 0..6_u32, 1..5_u32)
            .prop_map(|(seed, a, b, c)| Piece::mixed(seed, [a, b, c])),
    ];
    let last = prop_oneof![
        Just(None),
        (1..4096_usize).prop_map(|len| Some(Piece::data(noise(1, len)))),
        (1..4096_u64).prop_map(|len| Some(Piece::Hole(len, RunKind::Zero))),
    ];
    (prop::collection::vec(piece, 0..12), last).prop_map(|(mut pieces, last)| {
        pieces.extend(last);
        pieces
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_disk_is_read_as_it_was_written(pieces in any_pieces()) {
        let (bytes, summary) = image(&pieces, SPAN);
        let reader = ImageReader::open(bytes).unwrap();
        reader.check_seek_table().unwrap();
        prop_assert_eq!(reader.root(), summary.root);
        prop_assert!(read_all(&reader) == content(&pieces));
    }
}
