//! What the target holds, frame by frame, by the same rule for everybody who asks: free bytes count as zero, and what is withheld
//! until the commit counts as if it were there. The read-back after writing and the comparison of a delta restore ask here.

use std::ops::Range;

use agent_api::Part;
use image_format::{Decoder, FrameEntry, FrameKind, RunKind};

use super::plan::RestorePlan;
use super::{BRIDGE_LEN, byte_ranges, index, kept, ranges};
use crate::capture::cores;
use crate::disk::Disk;
use crate::error::Result;
use crate::image::DiskImage;
use crate::telemetry::Meter;

/// How many reads of a target are under way at once. Each has a buffer of one span (4 MiB) and waits for the disk most of the time, so
/// there are more than of an image, where each needs three times as much and a processor.
#[must_use]
pub fn readers() -> usize {
    (cores() * 2).clamp(8, 16)
}

/// The target, seen through the plan.
#[derive(Clone, Copy)]
pub struct Medium<'a> {
    pub image: &'a dyn DiskImage,
    pub target: &'a Disk,
    pub plan: &'a RestorePlan,
    pub meter: &'a Meter,
}

/// What a frame's place on the target was found to hold.
#[derive(Debug, PartialEq, Eq)]
pub struct Held {
    /// The first bytes that are not as they should be; `None` if all are.
    pub differs: Option<Range<u64>>,
    /// Bytes that were read.
    pub read: u64,
}

impl Medium<'_> {
    /// Compares data and zeros of a frame. `buffer` has room for a frame of data.
    pub fn compare(&self, entry: &FrameEntry, buffer: &mut [u8]) -> Result<Held> {
        match entry.kind {
            FrameKind::Data => self.compare_data(entry, buffer),
            FrameKind::Hole => {
                let zeros = byte_ranges(entry).filter(|(kind, _)| *kind == RunKind::Zero);
                let places = zeros.flat_map(|(_, range)| self.plan.placement.on_target(range));
                self.compare_zeros(places, buffer)
            }
        }
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let len = buffer.len() as u64;
        self.meter.time(Part::ReadTarget, len, || self.target.read_direct(buffer, offset))
    }

    fn compare_data(&self, entry: &FrameEntry, buffer: &mut [u8]) -> Result<Held> {
        let base = entry.logical_offset;
        let whole = base..base + u64::from(entry.logical_len);
        let buffer = &mut buffer[..index(u64::from(entry.logical_len))];
        let kept = kept(entry);
        let mut read = 0;
        for range in ranges::bridged(&kept, BRIDGE_LEN) {
            for piece in self.plan.placement.pieces(range) {
                let within = index(piece.image.start - base)..index(piece.image.end - base);
                read += within.len() as u64;
                self.read(&mut buffer[within], piece.target)?;
            }
        }
        let left_out = self.plan.placement.left_out(whole.clone());
        if !left_out.is_empty() {
            // The hash is of the whole frame, and its other bytes are only in the image.
            let mut content = vec![0; buffer.len()];
            self.image.fetcher()?.fetch(entry, &mut content)?;
            for range in left_out {
                let within = index(range.start - base)..index(range.end - base);
                buffer[within.clone()].copy_from_slice(&content[within]);
            }
        }
        for gap in ranges::gaps(&kept, whole.clone()) {
            buffer[index(gap.start - base)..index(gap.end - base)].fill(0);
        }
        self.plan.placement.fill_withheld(base, buffer);
        let differs = Decoder::check_content(entry, buffer).is_err().then_some(whole);
        Ok(Held { differs, read })
    }

    /// Compares places on the target that should be zero.
    pub fn compare_zeros(
        &self,
        zeros: impl Iterator<Item = Range<u64>>,
        buffer: &mut [u8],
    ) -> Result<Held> {
        let mut read = 0;
        for place in zeros {
            let found = self.first_nonzero(place, buffer)?;
            if found.differs.is_some() {
                return Ok(Held { read: read + found.read, ..found });
            }
            read += found.read;
        }
        Ok(Held { differs: None, read })
    }

    /// Compares one place with zeros, withheld or not.
    pub fn first_nonzero(&self, range: Range<u64>, buffer: &mut [u8]) -> Result<Held> {
        first_nonzero(range, buffer, |bytes, at| self.read(bytes, at))
    }
}

/// Reads a range by `read`, a piece of the buffer's length at a time, and finds the first piece that is not all zeros.
pub fn first_nonzero(
    range: Range<u64>,
    buffer: &mut [u8],
    mut read_at: impl FnMut(&mut [u8], u64) -> Result<()>,
) -> Result<Held> {
    let mut read = 0;
    for at in range.clone().step_by(buffer.len()) {
        let len = (range.end - at).min(buffer.len() as u64);
        let bytes = &mut buffer[..index(len)];
        read_at(bytes, at)?;
        read += len;
        if !image_format::is_zero(bytes) {
            return Ok(Held { differs: Some(at..at + len), read });
        }
    }
    Ok(Held { differs: None, read })
}
