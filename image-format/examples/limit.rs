//! The limit of a capture: `cargo run --release -p image-format --example limit IMAGE [LEVEL]`.
//!
//! Hashes (BLAKE3) and compresses (zstd as it comes, no tuning) what an image holds, on all cores, from memory and to nowhere.
//! Its last line is the time that this took, on the clock and in CPU time of all threads, in seconds.

use std::error::Error;
use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use image_format::{Decoder, FrameKind, Hash, ImageReader};

/// How much content is unpacked, and then worked on, at a time.
const BATCH_LEN: usize = 1 << 30;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: limit IMAGE [LEVEL]")?;
    let level: i32 = args.next().map_or(Ok(3), |level| level.parse())?;
    let reader = ImageReader::open(File::open(path)?)?;
    let mut decoder = Decoder::new()?;
    let mut stored = Vec::new();
    let mut batch: Vec<Vec<u8>> = Vec::new();
    let (mut bytes, mut wall_s, mut cpu_s) = (0, 0.0, 0.0);
    let mut work = |batch: &mut Vec<Vec<u8>>| -> Result<(), Box<dyn Error>> {
        let (wall, cpu) = hash_and_compress(batch, level)?;
        wall_s += wall;
        cpu_s += cpu;
        batch.clear();
        Ok(())
    };
    for entry in reader.frames() {
        let entry = entry?;
        if entry.kind != FrameKind::Data {
            continue;
        }
        let frame = reader.read_stored(&entry, &mut stored)?;
        let mut content = vec![0; usize::try_from(entry.logical_len)?];
        decoder.decode(frame, &mut content)?;
        bytes += content.len();
        batch.push(content);
        if batch.iter().map(Vec::len).sum::<usize>() >= BATCH_LEN {
            work(&mut batch)?;
        }
    }
    work(&mut batch)?;
    println!("{bytes} bytes, level {level}");
    println!("{wall_s:.3} {cpu_s:.3}");
    Ok(())
}

/// How long this thread has been on a CPU, in seconds (`proc_pid_schedstat(5)`).
#[allow(clippy::cast_precision_loss, reason = "a few minutes in nanoseconds")]
fn on_cpu() -> std::io::Result<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds: u64 = text
        .split(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .ok_or(std::io::ErrorKind::InvalidData)?;
    Ok(nanoseconds as f64 / 1e9)
}

/// Seconds on the clock, and those of the threads on CPUs.
fn hash_and_compress(batch: &[Vec<u8>], level: i32) -> Result<(f64, f64), Box<dyn Error>> {
    let threads = std::thread::available_parallelism()?.get();
    let next = AtomicUsize::new(0);
    let work = || -> std::io::Result<f64> {
        let mut compressor = zstd::bulk::Compressor::new(level)?;
        compressor.include_checksum(true)?;
        let mut out = Vec::new();
        while let Some(span) = batch.get(next.fetch_add(1, Ordering::Relaxed)) {
            out.clear();
            out.reserve(zstd::zstd_safe::compress_bound(span.len()));
            compressor.compress_to_buffer(span, &mut out)?;
            std::hint::black_box(Hash::of(span));
        }
        on_cpu()
    };
    let start = Instant::now();
    let busy = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().map(|t| t.join().expect("does not panic")).sum::<std::io::Result<f64>>()
    })?;
    Ok((start.elapsed().as_secs_f64(), busy))
}
