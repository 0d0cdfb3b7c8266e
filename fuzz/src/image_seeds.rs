//! Where the fuzzers of the image format begin: small images with everything in them, their pages, their manifests.
//!
//! Made by the writer itself and the same every time, so that no corpus needs to be committed.

use image_format::{
    Compression, Disk, Encoder, Header, ImageReader, ImageWriter, Manifest, PartitionTable,
    RunKind, Runs, TableKind,
};
use uuid::Uuid;

const SPAN_LEN: u32 = 64 << 10;

/// The seeds of a target of this name, in no more than a few KiB each.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let images: Vec<Vec<u8>> = [0, 1, 5, 300].into_iter().map(image).collect();
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
    let piece_lens = [4096, 16 << 10, SPAN_LEN];
    let piece_len = |piece: u64| piece_lens[usize::try_from(piece % 3).expect("below 3")];
    let disk_len = (0..pieces).map(|piece| u64::from(piece_len(piece))).sum::<u64>() + 512;
    let header = Header::new(Uuid::from_u128(u128::from(pieces)), "seeds");
    let table = PartitionTable { kind: TableKind::Gpt, ..PartitionTable::default() };
    let manifest = Manifest {
        format_version: image_format::VERSION,
        image_id: header.image_id,
        created: "2026-01-01T00:00:00Z".to_owned(),
        producer: header.producer.clone(),
        name: None,
        description: Some("a seed".to_owned()),
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
                let span: Vec<u8> = (0..len).map(|at| (at >> 5 ^ at).to_le_bytes()[0]).collect();
                put(&mut writer, &span, Runs::uniform(RunKind::Data, len));
            }
        }
    }
    put(&mut writer, &[b'i'; 512], Runs::uniform(RunKind::Data, 512));
    writer.finish(&manifest).expect("the image is complete").0
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
        seed.extend(u32::try_from(disk_len / 512).expect("small").to_le_bytes());
        seed.extend(&image[start + 64..start + page_len - 32]);
        out.push(seed);
        at = Some((start + page_len) as u64);
    }
    out
}
