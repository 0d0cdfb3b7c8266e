//! Reading spans of the disk that is captured: what is used of them, and zeros for the rest.
//!
//! Past the page cache, unless the kernel has a span of a disk file there already or the disk cannot be read so: see `disk/bulk.rs`; a loop
//! device by the file beneath it: see `disk/backing.rs`. What cannot be read so, and everything of a disk that is being rescued, is read by
//! its used parts alone, so that a bad sector in free space never counts.

use std::io;
use std::ops::Range;

use agent_api::Part;
use image_format::DEFAULT_SPAN_LEN;

use super::plan::{BAD_SECTOR_ADVICE, CapturePlan};
use super::rescue::Rescue;
use super::span::Span;
use crate::buffer::AlignedBuf;
use crate::disk::{Disk, Unreadable, is_of_medium};
use crate::error::{Error, Result};
use crate::extents::Extent;
use crate::progress::Progress;
use crate::ranges::{self, BRIDGE_LEN};

/// The disk, for all threads.
#[derive(Debug)]
pub struct Source<'a> {
    disk: &'a Disk,
    plan: &'a CapturePlan,
    rescue: Option<&'a Rescue<'a>>,
    progress: &'a Progress,
    past_cache: bool,
    /// The file that a loop device is of, which holds the same.
    beneath: Option<Disk>,
}

impl<'a> Source<'a> {
    /// With `rescue`, bad sectors do not end the capture.
    pub fn new(
        disk: &'a Disk,
        plan: &'a CapturePlan,
        rescue: Option<&'a Rescue<'a>>,
        progress: &'a Progress,
    ) -> Self {
        let past_cache = rescue.is_none() && disk.is_read_past_cache();
        let beneath = past_cache.then(|| disk.file_beneath()).flatten();
        Self { disk, plan, rescue, progress, past_cache, beneath }
    }

    /// Whether most of what is used is not in memory, so that whoever reads waits for the disk.
    pub fn waits(&self) -> bool {
        let used_bytes = self.plan.used_bytes_claimed();
        let from = self.beneath.as_ref().unwrap_or(self.disk);
        self.past_cache && !from.has_in_memory(used_bytes / 10 * 9, 0, self.plan.disk_bytes)
    }

    /// Whether the kernel is to read ahead.
    pub fn wants_read_ahead(&self) -> bool {
        !self.past_cache
    }

    /// Reads what is used of a span into a buffer that has room for it, and says what that is. Every other byte is zero in what is returned,
    /// which has the span's length.
    pub fn read<'b>(
        &self,
        span: Span,
        buffer: &'b mut AlignedBuf,
    ) -> Result<(&'b [u8], Vec<Extent>)> {
        let (disk, offset, len) = (self.disk, span.offset, u64::from(span.len));
        let used: Vec<Extent> = self.plan.used.overlapping(offset, len).collect();
        let used_bytes: u64 = used.iter().map(|extent| extent.len).sum();
        let from = self.beneath.as_ref().unwrap_or(disk);
        let in_memory = self.past_cache && from.has_in_memory(used_bytes.div_ceil(2), offset, len);
        let bytes = &mut buffer.as_mut_slice()[..index(len)];
        self.progress.meter().time(Part::ReadSource, used_bytes, || {
            let filled = if in_memory {
                fill(bytes, offset, &used, |buf, at| from.read_exact_at(buf, at)).is_ok()
            } else {
                self.past_cache && fill_past_cache(from, bytes, offset, &used).is_ok()
            };
            if filled {
                return Ok(());
            }
            let Some(rescue) = self.rescue else {
                let read = |buf: &mut [u8], at| disk.read_exact_at(buf, at);
                return fill(bytes, offset, &used, read).map_err(|bad| {
                    let place = self.plan.place(bad.offset);
                    Error::from(bad).context(format!("reading {place} failed; {BAD_SECTOR_ADVICE}"))
                });
            };
            // A drive that is failing is not asked for a bad sector more often than the rescue does.
            match fill(bytes, offset, &used, |buf, at| disk.read_once(buf, at)) {
                Err(bad) if is_of_medium(&bad.source) => {
                    rescue.read(bytes, offset, &used, &|| self.progress.check())?;
                    // What is used was read; this makes the rest zero.
                    Ok(fill(bytes, offset, &used, |_, _| Ok(()))?)
                }
                read => Ok(read?),
            }
        })?;
        Ok((bytes, used))
    }
}

/// Reads the used parts of a span; every other byte becomes zero.
fn fill(
    buffer: &mut [u8],
    offset: u64,
    used: &[Extent],
    read: impl Fn(&mut [u8], u64) -> std::result::Result<(), Unreadable>,
) -> std::result::Result<(), Unreadable> {
    let mut done = 0;
    for extent in used {
        let start = index(extent.start - offset);
        let end = start + index(extent.len);
        buffer[done..start].fill(0);
        read(&mut buffer[start..end], extent.start)?;
        done = end;
    }
    buffer[done..].fill(0);
    Ok(())
}

/// The same past the page cache: in whole sectors, and short gaps with them.
fn fill_past_cache(disk: &Disk, buffer: &mut [u8], offset: u64, used: &[Extent]) -> io::Result<()> {
    let within = |range: &Range<u64>| index(range.start - offset)..index(range.end - offset);
    let parts: Vec<Range<u64>> =
        used.iter().map(|extent| extent.start..extent.start + extent.len).collect();
    for range in ranges::bridged(&parts, BRIDGE_LEN) {
        let (start, end) = disk.whole_sectors(range.start, index(range.end - range.start));
        disk.read_past_cache(&mut buffer[within(&(start..end))], start)?;
    }
    for gap in ranges::gaps(&parts, offset..offset + buffer.len() as u64) {
        buffer[within(&gap)].fill(0);
    }
    Ok(())
}

/// A buffer that has room for a span.
pub fn span_buffer() -> AlignedBuf {
    AlignedBuf::new(index(u64::from(DEFAULT_SPAN_LEN)))
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("offsets within a span are a few MiB")
}
