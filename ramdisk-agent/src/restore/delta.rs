//! Delta restore: what of the image is on the target already?
//!
//! Before anything is written every frame's place is read and compared with the hash of its content; only frames that differ are
//! fetched and written afterwards. There is no journal that could lie: a restore that was cut off, or a machine that holds an
//! older version, is whatever the disk says. If nothing differs, nothing is written at all. If anything does, the target is
//! invalidated first as in every restore, and the frames that this wipes are written again.
//!
//! What cannot be read differs: a restore that was cut off goes on where a whole one would have succeeded.
//!
//! Free space is left as it is, as in every restore, with one exception: a label that a system would recognise there must go.

use std::ops::Range;
use std::sync::Arc;

use agent_api::{Part, RestoreOptions, Stage};
use image_format::{FrameEntry, RunKind};

use super::commit::Piece;
use super::medium::{self, Held, Medium};
use super::plan::RestorePlan;
use super::{byte_ranges, index, kept, ranges};
use crate::buffer::AlignedBuf;
use crate::disk::is_of_sector;
use crate::error::Result;
use crate::image::DiskImage;
use crate::pipeline;
use crate::progress::Progress;

/// A disk on which more frames than this have a sector that cannot be read is not written to.
const MAX_UNREADABLE: usize = 16;

/// What the target lacks.
#[derive(Debug, Default)]
pub struct Difference {
    /// A bit for each frame that differs, by its number.
    frames: Vec<u64>,
    /// Something else differs: a table, the boot gap, a label in free space, the space behind the image.
    elsewhere: bool,
    /// Bytes that were read to find out.
    pub compared_bytes: u64,
    /// What could not be read, and is written for that.
    pub unreadable: Vec<String>,
}

impl Difference {
    /// Whether anything has to be written.
    pub fn is_empty(&self) -> bool {
        !self.elsewhere && self.frames.iter().all(|word| *word == 0)
    }

    /// Whether a frame has to be written, once the target has been invalidated.
    pub fn wants(&self, entry: &FrameEntry, plan: &RestorePlan) -> bool {
        let (word, bit) = (index(entry.index / 64), entry.index % 64);
        let differs = self.frames.get(word).is_some_and(|word| word >> bit & 1 == 1);
        let is_wiped = |range| {
            plan.placement.on_target(range).any(|place| ranges::overlaps(&plan.wipes, &place))
        };
        differs || kept(entry).into_iter().any(is_wiped)
    }

    fn add(&mut self, frame: u64) {
        let word = index(frame / 64);
        if self.frames.len() <= word {
            self.frames.resize(word + 1, 0);
        }
        self.frames[word] |= 1 << (frame % 64);
    }
}

/// Compares the whole target with the image. Writes nothing.
pub fn compare(
    image: &dyn DiskImage,
    medium: Medium<'_>,
    options: &RestoreOptions,
    progress: &Arc<Progress>,
) -> Result<Difference> {
    progress.begin(Stage::Comparing, image.disk_len());
    let span_len = index(u64::from(image.span_len()));
    let meter = progress.meter();
    meter.set_threads(medium::readers());
    let workers = (0..medium::readers())
        .map(|_| {
            let mut buffer = AlignedBuf::new(span_len);
            move |entry: FrameEntry| {
                progress.check()?;
                let buffer = buffer.as_mut_slice();
                let len = u64::from(entry.logical_len);
                let compared = meter.time(Part::Decompress, len, || {
                    let held = medium.compare(&entry, buffer)?;
                    if held.differs.is_some() {
                        return Ok(held);
                    }
                    let free = must_be_zero(&entry, medium, options.scrub_free);
                    let space = medium.compare_zeros(free.into_iter(), buffer)?;
                    Ok(Held { differs: space.differs, read: held.read + space.read })
                });
                Ok((entry.index, len, compared))
            }
        })
        .collect::<Vec<_>>();
    let mut found = Difference::default();
    // Where the image is not restored whole, frames count as equal that are not for the target at all.
    let frames = image.frames().filter_map(|frame| match frame {
        Ok(entry) if !medium.plan.placement.concerns(&entry) => {
            progress.advance(u64::from(entry.logical_len), 0).err().map(Err)
        }
        frame => Some(frame),
    });
    pipeline::run(frames, workers, medium::readers() * 2, |(frame, len, compared)| {
        match compared {
            Ok(held) => {
                found.compared_bytes += held.read;
                held.differs.into_iter().for_each(|_| found.add(frame));
            }
            // A disk may have another sector for it once it is written; whether it has, the read-back shows.
            Err(error) if found.unreadable.len() < MAX_UNREADABLE && is_of_sector(&error) => {
                found.unreadable.push(error.chain());
                found.add(frame);
            }
            Err(error) => return Err(error),
        }
        progress.advance(len, 0)
    })?;
    let mut buffer = AlignedBuf::new(span_len);
    match elsewhere(medium, options, buffer.as_mut_slice()) {
        Ok((differs, read)) => {
            found.elsewhere = differs;
            found.compared_bytes += read;
        }
        Err(error) if is_of_sector(&error) => {
            found.unreadable.push(error.chain());
            found.elsewhere = true;
        }
        Err(error) => return Err(error),
    }
    Ok(found)
}

/// The places of a frame's free bytes that a restore would not leave as they are.
fn must_be_zero(entry: &FrameEntry, medium: Medium<'_>, scrub: bool) -> Vec<Range<u64>> {
    let free = byte_ranges(entry).filter(|(kind, _)| *kind == RunKind::Free);
    let free = free.flat_map(|(_, range)| medium.plan.placement.on_target(range));
    if scrub {
        return free.collect();
    }
    let labels = &medium.plan.found;
    free.flat_map(|free| labels.iter().filter_map(move |label| ranges::common(&free, label)))
        .collect()
}

/// Compares what no frame covers.
fn elsewhere(
    medium: Medium<'_>,
    options: &RestoreOptions,
    buffer: &mut [u8],
) -> Result<(bool, u64)> {
    let plan = medium.plan;
    let mut read = 0;
    for piece in plan.commit.iter().chain(&plan.fresh) {
        let mut bytes = AlignedBuf::new(piece.bytes.len());
        medium.target.read_direct(bytes.as_mut_slice(), piece.offset)?;
        read += piece.bytes.len() as u64;
        if bytes.as_slice() != piece.bytes {
            return Ok((true, read));
        }
    }
    let mut committed: Vec<Range<u64>> =
        plan.commit.iter().chain(&plan.fresh).map(Piece::range).collect();
    committed.sort_by_key(|range| range.start);
    // Where the image has a table and the target will have none, such as a backup GPT that moves to a larger disk's end.
    let withheld = plan.placement.withheld_on_target();
    let mut zeros: Vec<Range<u64>> =
        withheld.into_iter().flat_map(|range| ranges::gaps(&committed, range)).collect();
    for rest in plan.placement.not_covered(medium.target.len_bytes()) {
        if options.scrub_free {
            zeros.extend(ranges::gaps(&committed, rest));
        } else {
            let labels = plan.found.iter().filter_map(|label| ranges::common(&rest, label));
            zeros.extend(labels.flat_map(|label| ranges::gaps(&committed, label)));
        }
    }
    for range in zeros {
        let held = medium.first_nonzero(range, buffer)?;
        read += held.read;
        if held.differs.is_some() {
            return Ok((true, read));
        }
    }
    Ok((false, read))
}
