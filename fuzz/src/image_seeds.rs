//! Where the fuzzers of the image format begin: small images with everything in them, their pages, their manifests.
//!
//! Made by the writer itself and the same every time, so that no corpus needs to be committed.

use image_format::{
    Compression, Disk, EncodedFrame, Encoder, Hash, Header, ImageReader, ImageWriter, Manifest,
    Parent, PartitionTable, RunKind, Runs, TableKind,
};
use uuid::Uuid;

use crate::image::DELTA_FLAG;

const SPAN_LEN: u32 = 64 << 10;

/// The seeds of a target of this name, in no more than a few KiB each.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let mut images: Vec<Vec<u8>> = [0, 1, 5, 300].into_iter().map(image).collect();
    images.push(delta(7));
    match target {
        "image_open" => images,
        "image_page" => images.iter().flat_map(|image| pages(image)).collect(),
        "manifest" => images.iter().map(|image| open(image).manifest_json().to_vec()).collect(),
        other => panic!("there is no image target {other}"),
    }
}

fn open(image: &[u8]) -> ImageReader<&[u8]> {
    ImageReader::open(image).expect("the writer's images can be read")
}

fn image(pieces: u64) -> Vec<u8> {
    written(pieces, None)
}

/// The difference to the image of as many pieces, with frames of every kind.
fn delta(pieces: u64) -> Vec<u8> {
    let base = image(pieces);
    let base = open(&base);
    let parent =
        Parent { root: base.root(), image_id: base.header().image_id, name: "base".to_owned() };
    written(pieces, Some(parent))
}

fn written(pieces: u64, parent: Option<Parent>) -> Vec<u8> {
    let piece_lens = [4096, 16 << 10, SPAN_LEN];
    let piece_len = |piece: u64| piece_lens[usize::try_from(piece % 3).expect("below 3")];
    let disk_len = (0..pieces).map(|piece| u64::from(piece_len(piece))).sum::<u64>() + 512;
    let id = Uuid::from_u128(u128::from(pieces));
    let is_delta = parent.is_some();
    let header = if is_delta { Header::delta(id, "seeds") } else { Header::new(id, "seeds") };
    let table = PartitionTable { kind: TableKind::Gpt, ..PartitionTable::default() };
    let manifest = Manifest {
        format_version: image_format::VERSION,
        image_id: header.image_id,
        created: "2026-01-01T00:00:00Z".to_owned(),
        producer: header.producer.clone(),
        name: None,
        description: Some("a seed".to_owned()),
        parent,
        disk: Disk { size_bytes: disk_len, logical_sector_bytes: 512, ..Disk::default() },
        span_len: SPAN_LEN,
        compression: Compression::zstd(3),
        table,
        volumes: Vec::new(),
        bad_sectors: Vec::new(),
    };
    let mut encoder = Encoder::new(3).expect("zstd has level 3");
    let mut writer =
        ImageWriter::create(Vec::new(), header, disk_len, SPAN_LEN).expect("a small disk");
    let mut stored = Vec::new();
    let mut put = |writer: &mut ImageWriter<Vec<u8>>, span: &[u8], runs| {
        let frame = encoder.encode(span, runs, &mut stored).expect("the span fits its runs");
        writer.append(&frame, &stored).expect("memory can be written");
    };
    for piece in 0..pieces {
        let len = piece_len(piece);
        match piece % 4 {
            0 => writer.append_hole(u64::from(len), RunKind::Free).expect("memory can be written"),
            1 => writer.append_hole(u64::from(len), RunKind::Zero).expect("memory can be written"),
            _ => {
                let mut span: Vec<u8> =
                    (0..len).map(|at| (at >> 5 ^ at).to_le_bytes()[0]).collect();
                let runs = Runs::uniform(RunKind::Data, len);
                if is_delta {
                    let (frame, stored) = difference(&mut span, runs, piece % 4 == 2);
                    writer.append(&frame, &stored).expect("memory can be written");
                } else {
                    put(&mut writer, &span, runs);
                }
            }
        }
    }
    put(&mut writer, &[b'i'; 512], Runs::uniform(RunKind::Data, 512));
    writer.finish(&manifest).expect("the image is complete").0
}

/// A frame that refers to the span, or that was made of it, changed, with the span as prefix.
fn difference(span: &mut [u8], runs: Runs, reference: bool) -> (EncodedFrame, Vec<u8>) {
    let len = u32::try_from(span.len()).expect("small");
    let mut stored = Vec::new();
    if reference {
        return (EncodedFrame::reference(len, Hash::of(span), runs), stored);
    }
    let prefix = span.to_vec();
    span[100] ^= 0xFF;
    let frame = Encoder::new(3)
        .expect("zstd has level 3")
        .encode_with_prefix(span, runs, &prefix, &mut stored)
        .expect("the span fits its runs");
    (frame, stored)
}

/// The pages of an image, in the form in which the page target takes them. Only the first starts at offset 0, so only
/// it can be read whole; the others are mutated from.
fn pages(image: &[u8]) -> Vec<Vec<u8>> {
    let reader = open(image);
    let mut at = None;
    let mut out = Vec::new();
    for index in 0..reader.pages() {
        let page = reader.page(index).expect("the writer's images can be read");
        let frames = page.frames();
        let (first, last) = (&frames[0], &frames[frames.len() - 1]);
        let start = usize::try_from(last.stored_offset).expect("small") + last.stored_len as usize;
        let stored_len = start - usize::try_from(at.unwrap_or(first.stored_offset)).expect("small");
        let page_len = u32::from_le_bytes(image[start + 4..start + 8].try_into().expect("4 bytes"))
            as usize
            + 8;
        let disk_len = last.logical_offset + u64::from(last.logical_len) - first.logical_offset;
        let mut seed = Vec::new();
        seed.extend(u16::try_from(frames.len()).expect("at most 1024").to_le_bytes());
        seed.extend(u16::try_from(stored_len).unwrap_or(u16::MAX).to_le_bytes());
        let flag = if reader.header().is_delta() { DELTA_FLAG } else { 0 };
        seed.extend((u32::try_from(disk_len / 512).expect("small") | flag).to_le_bytes());
        seed.extend(&image[start + 64..start + page_len - 32]);
        out.push(seed);
        at = Some((start + page_len) as u64);
    }
    out
}
