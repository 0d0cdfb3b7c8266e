//! Verify: does an image hold what its index says? And what is in it, for `inspect`.
//!
//! [`stored_bytes`] reads every frame and compares the hash of its stored bytes; nothing is decompressed. It is what the re-read
//! of a capture and `imprint-agent verify` do. [`contents`] decompresses too and compares the content hashes (`verify --deep`).

use std::sync::Arc;

use agent_api::{Part, Stage};
use image_format::{FrameEntry, FrameKind};
use serde::Serialize;

use crate::capture::cores;
use crate::error::Result;
use crate::image::DiskImage;
use crate::pipeline;
use crate::progress::Progress;

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

/// How many reads are under way at once: enough to hide a network's delay, few enough for a restore to stay below 200 MB, of which each takes
/// 13 (four are 80 MB in all, twelve 194).
#[must_use]
pub fn readers() -> usize {
    (cores() * 2).clamp(4, 11)
}

/// Checks the stored bytes of every frame.
pub fn stored_bytes(image: &dyn DiskImage, progress: &Arc<Progress>) -> Result<Verified> {
    frames(image, progress, false)
}

/// Checks the stored bytes and the content of every frame.
pub fn contents(image: &dyn DiskImage, progress: &Arc<Progress>) -> Result<Verified> {
    frames(image, progress, true)
}

fn frames(image: &dyn DiskImage, progress: &Arc<Progress>, deep: bool) -> Result<Verified> {
    image.check_index()?;
    progress.begin(Stage::Verifying, image.disk_len());
    let meter = progress.meter();
    meter.set_threads(image.readers());
    let workers = (0..image.readers())
        .map(|_| {
            let mut fetcher = image.fetcher()?;
            let mut content = Vec::new();
            Ok(move |entry: FrameEntry| {
                let checked = meter.time(Part::Decompress, u64::from(entry.stored_len), || {
                    if deep {
                        fetcher.check_deeply(&entry, &mut content)
                    } else {
                        fetcher.check(&entry)
                    }
                });
                let fetched = checked?;
                Ok((entry.kind, u64::from(entry.logical_len), fetched))
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut verified = Verified::default();
    pipeline::run(image.frames(), workers, image.readers() * 2, |(kind, len, fetched)| {
        verified.frames += 1;
        verified.stored_bytes += fetched;
        if deep && kind == FrameKind::Data {
            verified.content_bytes += len;
        }
        progress.advance(len, fetched)
    })?;
    Ok(verified)
}
