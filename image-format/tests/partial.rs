//! A writer that was cut off at any byte: another one goes on behind the last page, and the image is the same to the byte.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use image_format::{
    Encoder, FRAMES_PER_PAGE, FormatError, Header, ImageReader, ImageWriter, Partial, RunKind,
};
use support::{Piece, image, manifest, noise, text};

const SPAN: u32 = 4096;

/// Three pages and a half: data that compress and data that do not, holes of both kinds between.
fn pieces() -> Vec<Piece> {
    let frames = u64::from(FRAMES_PER_PAGE) * 7 / 2;
    let mut pieces = Vec::new();
    for n in 0..frames {
        let bytes = if n % 5 == 0 { noise(n, SPAN as usize) } else { text(n, SPAN as usize) };
        pieces.push(Piece::data(bytes));
        if n % 16 == 0 {
            let kind = if n % 32 == 0 { RunKind::Free } else { RunKind::Zero };
            pieces.push(Piece::Hole(u64::from(SPAN) * (n % 7 + 1), kind));
        }
    }
    pieces
}

/// Goes on behind what is left with the pieces that it does not cover.
fn go_on(left: &[u8], pieces: &[Piece]) -> Vec<u8> {
    let beginning = Partial::open(left).unwrap().into_beginning().unwrap();
    let kept = usize::try_from(beginning.stored_len()).unwrap();
    let image_id = beginning.header().image_id;
    let mut writer = ImageWriter::resume(left[..kept].to_vec(), beginning);
    let (mut at, start) = (0, writer.covered());
    let (mut encoder, mut stored) = (Encoder::new(3).unwrap(), Vec::new());
    for piece in pieces {
        if at >= start {
            match piece {
                Piece::Span(bytes, runs) => {
                    let frame = encoder.encode(bytes, runs.clone(), &mut stored).unwrap();
                    writer.append(&frame, &stored).unwrap();
                }
                Piece::Hole(len, kind) => writer.append_hole(*len, *kind).unwrap(),
            }
        }
        at += piece.len();
    }
    assert!(at > start || start == at, "a page ends where a piece does");
    writer.finish(&manifest(image_id, at, SPAN)).unwrap().0
}

/// Where pages end, by the whole image's own index.
fn page_ends(bytes: &[u8]) -> Vec<(usize, u64)> {
    let reader = ImageReader::open(bytes).unwrap();
    let mut ends = Vec::new();
    for index in 0..reader.pages() {
        let next = reader.page(index + 1).ok();
        let last = reader.page(index).unwrap().frames().last().cloned().unwrap();
        let covered = last.logical_offset + u64::from(last.logical_len);
        // The frames of the next page start where this one ends; of the last one that is not known, and not needed.
        if let Some(next) = next {
            ends.push((usize::try_from(next.frames()[0].stored_offset).unwrap(), covered));
        }
    }
    ends
}

#[test]
fn an_image_cut_off_anywhere_becomes_the_same_image() {
    let pieces = pieces();
    let (whole, _) = image(&pieces, SPAN);
    let ends = page_ends(&whole);
    assert!(ends.len() >= 3, "{ends:?}");
    let opening = usize::try_from(
        ImageReader::open(whole.as_slice())
            .unwrap()
            .frames()
            .next()
            .unwrap()
            .unwrap()
            .stored_offset,
    )
    .unwrap();
    let mut cuts: Vec<usize> = (opening..whole.len()).step_by(29_989).collect();
    for (end, _) in &ends {
        cuts.extend(end - 2..end + 3);
    }
    cuts.extend(whole.len() - 40..=whole.len());
    for cut in cuts {
        let left = &whole[..cut];
        let partial = Partial::open(left).unwrap();
        let expected = ends.iter().rev().find(|(end, _)| *end <= cut);
        let (stored, covered) = expected.copied().unwrap_or((opening, 0));
        if partial.covered() != partial.disk_len() {
            assert_eq!(
                (partial.stored_len(), partial.covered()),
                (stored as u64, covered),
                "{cut}"
            );
        }
        assert!(go_on(left, &pieces) == whole, "cut at {cut}");
    }
}

#[test]
fn too_little_is_no_partial() {
    let (whole, _) = image(&pieces(), SPAN);
    for cut in [0, 1, 19, 20, 80] {
        let error = Partial::open(&whole[..cut]).unwrap_err();
        assert!(
            matches!(error, FormatError::NotAnImage { .. } | FormatError::Read { .. }),
            "{error}"
        );
    }
    let mut other = whole.clone();
    other[70] ^= 1;
    Partial::open(other.as_slice()).unwrap_err();
}

#[test]
fn a_damaged_page_is_the_end_of_what_counts() {
    let pieces = pieces();
    let (whole, _) = image(&pieces, SPAN);
    let ends = page_ends(&whole);
    let cut = ends[2].0 + 1000;
    for (number, (end, _)) in ends.iter().enumerate().take(3) {
        for back in [1, 33, 700, 20_000] {
            let mut left = whole[..cut].to_vec();
            left[end - back] ^= 0x10;
            let partial = Partial::open(left.as_slice()).unwrap();
            assert_eq!(partial.pages(), number, "page {number}, {back} bytes before its end");
            assert!(go_on(&left, &pieces) == whole);
        }
    }
}

#[test]
fn damaged_frames_are_found_by_their_hash_and_cut_off() {
    let pieces = pieces();
    let (whole, _) = image(&pieces, SPAN);
    let ends = page_ends(&whole);
    let mut left = whole[..ends[2].0].to_vec();
    // Far before the second page itself, among its frames.
    let at = ends[0].0 + 5000;
    left[at] ^= 1;
    let mut partial = Partial::open(left.as_slice()).unwrap();
    assert_eq!(partial.pages(), 3, "pages say nothing of the bytes of frames");
    let mut stored = Vec::new();
    let bad: Vec<usize> = (0..partial.pages())
        .filter(|&index| {
            let page = partial.page(index).unwrap();
            page.frames().iter().any(|frame| partial.read_stored(frame, &mut stored).is_err())
        })
        .collect();
    assert_eq!(bad, [1]);
    assert_eq!(partial.page_of_last(1), 2);
    assert_eq!(partial.page_of_last(u64::MAX), 0);
    partial.cut(1);
    assert_eq!(partial.stored_len(), ends[0].0 as u64);
}

#[test]
fn pages_of_other_images_are_passed_over() {
    let pieces = pieces();
    let (whole, _) = image(&pieces, SPAN);
    // The same pages under another id, as an image file on the imaged disk would have them, in the middle of raw data.
    let other = uuid::Uuid::from_u128(99);
    let header = Header::new(other, support::PRODUCER);
    let len = support::disk_len(&pieces);
    let mut writer = ImageWriter::create(Vec::new(), header, len, SPAN).unwrap();
    let (mut encoder, mut stored) = (Encoder::new(3).unwrap(), Vec::new());
    for piece in &pieces {
        match piece {
            Piece::Span(bytes, runs) => {
                let frame = encoder.encode(bytes, runs.clone(), &mut stored).unwrap();
                writer.append(&frame, &stored).unwrap();
            }
            Piece::Hole(len, kind) => writer.append_hole(*len, *kind).unwrap(),
        }
    }
    let foreign = writer.into_inner();
    let ends = page_ends(&whole);
    let mut left = whole[..ends[1].0].to_vec();
    left.extend_from_slice(&foreign[..ends[2].0]);
    // Also one of its own, but elsewhere.
    left.extend_from_slice(&whole[..ends[2].0]);
    let partial = Partial::open(left.as_slice()).unwrap();
    assert_eq!(partial.pages(), 2);
    assert!(go_on(&left, &pieces) == whole);
}
