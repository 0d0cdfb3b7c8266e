//! Verify: does an image hold what its index says? And what is in it, for `inspect`.
//!
//! [`stored_bytes`] reads every frame and compares the hash of its stored bytes; nothing is decompressed. It is what the re-read
//! of a capture and `imprint-agent verify` do. [`contents`] decompresses too and compares the content hashes (`verify --deep`).

use std::sync::Arc;

use agent_api::Stage;
use image_format::{Decoder, FrameEntry, FrameKind, ImageReader, ReadAt};
use serde::Serialize;

use crate::capture::cores;
use crate::error::{Error, IoContext, Result};
use crate::pipeline;
use crate::progress::Progress;

/// A decompression context.
pub fn new_decoder() -> Result<Decoder> {
    Decoder::new().internal(|| "making a decompression context".into())
}

/// What was verified.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Frames read.
    pub frames: u64,
    /// Bytes read from the store.
    pub stored_bytes: u64,
    /// Bytes that were decompressed and compared; 0 unless asked for.
    pub content_bytes: u64,
}

/// How many reads are under way at once: enough to hide a network's delay, few enough to stay small in memory.
#[must_use]
pub fn readers() -> usize {
    (cores() * 2).clamp(4, 16)
}

/// Checks the stored bytes of every frame.
pub fn stored_bytes<R: ReadAt>(
    image: &ImageReader<R>,
    progress: &Arc<Progress>,
) -> Result<Verified> {
    frames(image, progress, false)
}

/// Checks the stored bytes and the content of every frame.
pub fn contents<R: ReadAt>(image: &ImageReader<R>, progress: &Arc<Progress>) -> Result<Verified> {
    frames(image, progress, true)
}

fn frames<R: ReadAt>(
    image: &ImageReader<R>,
    progress: &Arc<Progress>,
    deep: bool,
) -> Result<Verified> {
    image.check_seek_table()?;
    progress.begin(Stage::Verifying, image.disk_len());
    let workers = (0..readers())
        .map(|_| {
            let mut decoder = new_decoder()?;
            let (mut stored, mut content) = (Vec::new(), Vec::new());
            Ok(move |entry: FrameEntry| {
                let frame = image.read_stored(&entry, &mut stored)?;
                match entry.kind {
                    _ if !deep => {}
                    FrameKind::Hole => Decoder::check_zeros(frame)?,
                    FrameKind::Data => {
                        let len = usize::try_from(entry.logical_len);
                        content.resize(len.expect("a frame is a few MiB"), 0);
                        decoder.decode(frame, &mut content)?;
                        Decoder::check_content(&entry, &content)?;
                    }
                }
                Ok(entry)
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut verified = Verified::default();
    let depth = readers() * 2;
    pipeline::run(
        image.frames().map(|f| f.map_err(Error::from)),
        workers,
        depth,
        |entry: FrameEntry| {
            verified.frames += 1;
            verified.stored_bytes += u64::from(entry.stored_len);
            if deep && entry.kind == FrameKind::Data {
                verified.content_bytes += u64::from(entry.logical_len);
            }
            progress.advance(u64::from(entry.logical_len), u64::from(entry.stored_len))
        },
    )?;
    Ok(verified)
}
