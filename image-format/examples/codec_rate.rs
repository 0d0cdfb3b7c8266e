//! Measures what the format costs: `cargo run --release -p image-format --example codec_rate FILE`.
//!
//! Prints the rate of one thread for compressing the file's spans at level 3 (zstd alone, then with both hashes), for
//! checking and decompressing them, and for making and decompressing a hole of 1 GiB.

use std::error::Error;
use std::time::Instant;

use image_format::{Compression, Disk, Manifest, PartitionTable};
use image_format::{
    DEFAULT_SPAN_LEN, Decoder, Encoder, Header, ImageReader, ImageWriter, MAX_HOLE_LEN, RunKind,
    Runs,
};
use uuid::Uuid;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: codec_rate FILE")?;
    let disk = std::fs::read(path)?;
    let spans = || disk.chunks(DEFAULT_SPAN_LEN as usize);

    let mut compressor = zstd::bulk::Compressor::new(3)?;
    compressor.include_checksum(true)?;
    let mut out = Vec::with_capacity(zstd::zstd_safe::compress_bound(DEFAULT_SPAN_LEN as usize));
    let start = Instant::now();
    for span in spans() {
        out.clear();
        compressor.compress_to_buffer(span, &mut out)?;
    }
    report("zstd alone", disk.len() as u64, start);

    let header = Header::new(Uuid::nil(), "codec_rate");
    let disk_len = disk.len() as u64 + MAX_HOLE_LEN;
    let mut writer =
        ImageWriter::create(Vec::with_capacity(disk.len()), header, disk_len, DEFAULT_SPAN_LEN)?;
    let start = Instant::now();
    writer.append_hole(MAX_HOLE_LEN, RunKind::Free)?;
    report("make a hole", MAX_HOLE_LEN, start);
    let mut encoder = Encoder::new(3)?;
    let start = Instant::now();
    for span in spans() {
        let frame = encoder.encode(
            span,
            Runs::uniform(RunKind::Data, u32::try_from(span.len())?),
            &mut out,
        )?;
        writer.append(&frame, &out)?;
    }
    report("encode", disk.len() as u64, start);
    let manifest = Manifest {
        format_version: image_format::VERSION,
        image_id: Uuid::nil(),
        created: String::new(),
        producer: "codec_rate".to_owned(),
        name: None,
        description: None,
        parent: None,
        disk: Disk { size_bytes: disk_len, logical_sector_bytes: 512, ..Disk::default() },
        span_len: DEFAULT_SPAN_LEN,
        compression: Compression::zstd(3),
        table: PartitionTable::default(),
        volumes: Vec::new(),
        bad_sectors: Vec::new(),
    };
    let reader = ImageReader::open(writer.finish(&manifest)?.0)?;

    let mut decoder = Decoder::new()?;
    let mut content = vec![0; usize::try_from(MAX_HOLE_LEN)?];
    let mut start = Instant::now();
    for (number, entry) in reader.frames().enumerate() {
        let entry = entry?;
        let frame = reader.read_stored(&entry, &mut out)?;
        decoder.decode(frame, &mut content[..entry.logical_len as usize])?;
        if number == 0 {
            report("decode a hole", MAX_HOLE_LEN, start);
            start = Instant::now();
        }
    }
    report("check and decode", disk.len() as u64, start);
    Ok(())
}

fn report(what: &str, bytes: u64, start: Instant) {
    let elapsed = start.elapsed();
    let rate = u128::from(bytes) / elapsed.as_micros().max(1);
    println!("{what:<20} {:>7} ms  {rate:>6} MB/s", elapsed.as_millis());
}
