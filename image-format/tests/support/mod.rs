//! Images for the tests: a disk described by pieces, its image, and the bytes that the image must decompress to.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use image_format::{
    Compression, Decoder, Disk, EncodedFrame, Encoder, FrameBase, FrameEntry, FrameKind, Hash,
    Header, ImageReader, ImageWriter, Manifest, Parent, PartitionTable, Run, RunKind, Runs,
    Summary, TableKind, Taken, UNIT_LEN, Volume,
};
use uuid::Uuid;

pub const PRODUCER: &str = "imprint-agent 0.1.0";

/// A part of a disk.
#[derive(Clone, Debug)]
pub enum Piece {
    /// A span for one data frame: its bytes (zero where the runs are not data) and its runs.
    Span(Vec<u8>, Runs),
    /// A hole.
    Hole(u64, RunKind),
}

impl Piece {
    /// A span that is all data.
    pub fn data(bytes: Vec<u8>) -> Self {
        let len = u32::try_from(bytes.len()).unwrap();
        Self::Span(bytes, Runs::uniform(RunKind::Data, len))
    }

    /// A span of data, a zero run and a free run of so many units each, filled from a generator.
    pub fn mixed(seed: u64, units: [u32; 3]) -> Self {
        let kinds = [RunKind::Data, RunKind::Zero, RunKind::Free];
        let runs: Runs =
            kinds.into_iter().zip(units).map(|(kind, units)| Run { kind, units }).collect();
        let mut bytes = noise(seed, (units[0] * UNIT_LEN) as usize);
        bytes.resize((units.iter().sum::<u32>() * UNIT_LEN) as usize, 0);
        Self::Span(bytes, runs)
    }

    pub fn len(&self) -> u64 {
        match self {
            Self::Span(bytes, _) => bytes.len() as u64,
            Self::Hole(len, _) => *len,
        }
    }
}

/// Bytes that do not compress, the same every time.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24).to_le_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

/// Bytes that compress like text.
pub fn text(seed: u64, len: usize) -> Vec<u8> {
    let words = [b"frame ".as_slice(), b"page ", b"disk ", b"hole ", b"imprint ", b"root\n"];
    noise(seed, len)
        .into_iter()
        .flat_map(|n| words[usize::from(n) % words.len()])
        .copied()
        .take(len)
        .collect()
}

pub fn disk_len(pieces: &[Piece]) -> u64 {
    pieces.iter().map(Piece::len).sum()
}

pub fn manifest(image_id: Uuid, size_bytes: u64, span_len: u32) -> Manifest {
    Manifest {
        format_version: image_format::VERSION,
        image_id,
        created: "2026-11-23T12:00:00Z".to_owned(),
        producer: PRODUCER.to_owned(),
        name: Some("small".to_owned()),
        description: None,
        parent: None,
        disk: Disk {
            model: Some("Test disk".to_owned()),
            size_bytes,
            logical_sector_bytes: 512,
            ..Disk::default()
        },
        span_len,
        compression: Compression::zstd(3),
        table: PartitionTable { kind: TableKind::None, ..PartitionTable::default() },
        volumes: vec![Volume {
            number: None,
            start_bytes: 0,
            len_bytes: size_bytes,
            type_id: None,
            part_uuid: None,
            part_name: None,
            attributes: 0,
            bootable: false,
            filesystem: Some("ext4".to_owned()),
            fs_uuid: None,
            fs_label: Some("root".to_owned()),
            block_bytes: Some(4096),
            used_bytes: size_bytes / 2,
            taken: Taken::Map,
            raw_reason: None,
            note: None,
            logical_volumes: Vec::new(),
        }],
        bad_sectors: Vec::new(),
    }
}

/// Writes the pieces as an image.
pub fn image(pieces: &[Piece], span_len: u32) -> (Vec<u8>, Summary) {
    let image_id = Uuid::from_u128(0x1234_5678_9abc_4def_8123_4567_89ab_cdef);
    let disk_len = disk_len(pieces);
    let header = Header::new(image_id, PRODUCER);
    let mut writer = ImageWriter::create(Vec::new(), header, disk_len, span_len).unwrap();
    let mut encoder = Encoder::new(3).unwrap();
    let mut stored = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Span(bytes, runs) => {
                let frame = encoder.encode(bytes, runs.clone(), &mut stored).unwrap();
                writer.append(&frame, &stored).unwrap();
            }
            Piece::Hole(len, kind) => writer.append_hole(*len, *kind).unwrap(),
        }
    }
    writer.finish(&manifest(image_id, disk_len, span_len)).unwrap()
}

/// The number of the image that is the difference to another.
pub const DELTA_ID: Uuid = Uuid::from_u128(0x2345_6789_abcd_4ef1_8123_4567_89ab_cdef);

/// What a delta says of its parent.
pub fn parent(image: &ImageReader<&[u8]>) -> Parent {
    Parent {
        root: image.root(),
        image_id: image.header().image_id,
        name: "v1-small.img.zst".to_owned(),
    }
}

/// Writes the pieces as the difference to another image, whose frames are where the pieces are.
pub fn delta(pieces: &[Piece], span_len: u32, base: &[u8]) -> (Vec<u8>, Summary) {
    let base = ImageReader::open(base).unwrap();
    let disk_len = disk_len(pieces);
    let header = Header::delta(DELTA_ID, PRODUCER);
    let mut writer = ImageWriter::create(Vec::new(), header, disk_len, span_len).unwrap();
    let (mut encoder, mut stored) = (Encoder::new(3).unwrap(), Vec::new());
    for piece in pieces {
        let (bytes, runs) = match piece {
            Piece::Span(bytes, runs) => (bytes, runs.clone()),
            Piece::Hole(len, kind) => {
                writer.append_hole(*len, *kind).unwrap();
                continue;
            }
        };
        let len = u32::try_from(bytes.len()).unwrap();
        let beneath = (writer.covered() < base.disk_len())
            .then(|| base.frame_at(writer.covered()).unwrap())
            .filter(|entry| entry.kind == FrameKind::Data && entry.logical_len == len);
        let frame = match beneath {
            Some(entry) if entry.content_hash == Hash::of(bytes) => {
                stored.clear();
                EncodedFrame::reference(len, entry.content_hash, runs)
            }
            Some(entry) => {
                let prefix = whole_content(&base, &entry);
                encoder.encode_with_prefix(bytes, runs, &prefix, &mut stored).unwrap()
            }
            None => encoder.encode(bytes, runs, &mut stored).unwrap(),
        };
        writer.append(&frame, &stored).unwrap();
    }
    let manifest =
        Manifest { parent: Some(parent(&base)), ..manifest(DELTA_ID, disk_len, span_len) };
    writer.finish(&manifest).unwrap()
}

/// The content of a data frame that needs no parent.
pub fn whole_content(image: &ImageReader<&[u8]>, entry: &FrameEntry) -> Vec<u8> {
    let (mut stored, mut content) = (Vec::new(), vec![0; entry.logical_len as usize]);
    let frame = image.read_stored(entry, &mut stored).unwrap();
    Decoder::new().unwrap().decode(frame, &mut content).unwrap();
    Decoder::check_content(entry, &content).unwrap();
    content
}

/// The disk that a delta and its parent hold together.
pub fn delta_content(delta: &[u8], base: &[u8]) -> Vec<u8> {
    let (delta, base) = (ImageReader::open(delta).unwrap(), ImageReader::open(base).unwrap());
    let (mut disk, mut stored) = (Vec::new(), Vec::new());
    for entry in delta.frames().map(Result::unwrap) {
        let beneath = || base.frame_at(entry.logical_offset).unwrap();
        let content = match (entry.kind, entry.base) {
            (FrameKind::Hole, _) => vec![0; entry.logical_len as usize],
            (_, FrameBase::None) => whole_content(&delta, &entry),
            (_, FrameBase::Reference) => whole_content(&base, &beneath()),
            (_, FrameBase::Prefix) => {
                let prefix = whole_content(&base, &beneath());
                let mut content = vec![0; entry.logical_len as usize];
                let frame = delta.read_stored(&entry, &mut stored).unwrap();
                Decoder::decode_with_prefix(frame, &prefix, &mut content).unwrap();
                content
            }
        };
        Decoder::check_content(&entry, &content).unwrap();
        disk.extend_from_slice(&content);
    }
    disk
}

/// What the image must decompress to. Only for disks that fit into memory.
pub fn content(pieces: &[Piece]) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Span(bytes, _) => out.extend_from_slice(bytes),
            Piece::Hole(len, _) => out.resize(out.len() + usize::try_from(*len).unwrap(), 0),
        }
    }
    out
}
