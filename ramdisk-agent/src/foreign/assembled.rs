//! A disk put together from pieces: tables and boot code as they were saved, volumes from images of their own, each at its place.
//! What lies between them was not saved, so it is free.
//!
//! The disk comes from start to end, and so does each image; a logical volume need not lie on the disk in one piece, nor in order. Its
//! image is read on from piece to piece where that can be, beside the one that is read in between; otherwise again from its start. What that
//! costs is known before, and has a limit.

use std::sync::Arc;

use super::error::{ForeignError, Result};
use super::volume::{Reading, Volume};
use super::walk::{Piece, Walk};

/// A walk that needs no more memory than this may wait for its next piece while another volume is read.
const MAX_WAITING_WINDOW: u64 = 16 << 20;
/// How often all images together are read once more, at most, for what lies out of order.
const MAX_PASSES: u64 = 16;
/// Each start of an image reads its map of used blocks.
const MAX_STARTS: usize = 1 << 10;

/// A piece of the disk.
#[derive(Clone)]
pub struct Segment {
    /// Where it starts.
    pub start: u64,
    /// Its length.
    pub len: u64,
    /// What it holds.
    pub content: Content,
}

/// What a piece holds.
#[derive(Clone)]
pub enum Content {
    /// These bytes.
    Bytes(Arc<[u8]>),
    /// Zeros.
    Zero,
    /// A volume, from the byte at `from` on.
    Volume { volume: Arc<Volume>, from: u64 },
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segment")
            .field("start", &self.start)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// Puts segments in order. Fails if two of them share bytes, or one goes beyond the disk, or images would be read too often.
pub fn in_order(
    mut segments: Vec<Segment>,
    disk_len: u64,
    format: &'static str,
) -> Result<Vec<Segment>> {
    segments.retain(|segment| segment.len > 0);
    segments.sort_by_key(|segment| segment.start);
    let mut end = 0;
    for segment in &segments {
        let next = segment.start.checked_add(segment.len).filter(|end| *end <= disk_len);
        match next {
            Some(next) if segment.start >= end => end = next,
            _ => {
                let fault = format!(
                    "what it holds for byte {} of the disk overlaps, or is beyond its end",
                    segment.start
                );
                return Err(ForeignError::damaged(format, fault));
            }
        }
    }
    check_passes(&segments, format)?;
    Ok(segments)
}

/// Goes through the segments as a walk will.
fn check_passes(segments: &[Segment], format: &'static str) -> Result<()> {
    let (mut len, mut skipped, mut starts) = (0_u64, 0_u64, 0_usize);
    let mut waiting: Option<(&Arc<Volume>, u64)> = None;
    for segment in segments {
        let Content::Volume { volume, from } = &segment.content else { continue };
        let at = match waiting.take_if(|(waits, at)| goes_on(waits, *at, volume, *from)) {
            Some((_, at)) => at,
            None => {
                starts += usize::from(*from > 0);
                0
            }
        };
        skipped = skipped.saturating_add(from - at);
        len += segment.len;
        let at = from + segment.len;
        if may_wait(volume, at) {
            waiting = Some((volume, at));
        }
    }
    if skipped / MAX_PASSES > len || starts > MAX_STARTS {
        let reason = "its logical volumes lie in so many pieces out of order that their images would be read again and again; restore it with \
                      its own tool and capture that disk";
        return Err(ForeignError::refused(format, reason));
    }
    Ok(())
}

/// Whether a walk that waits at a place is the one for what begins at `from`.
fn goes_on(waits: &Arc<Volume>, at: u64, volume: &Arc<Volume>, from: u64) -> bool {
    Arc::ptr_eq(waits, volume) && at <= from
}

/// Whether a walk at a place may wait.
fn may_wait(volume: &Volume, at: u64) -> bool {
    at < volume.len && volume.window_bytes <= MAX_WAITING_WINDOW
}

/// Walks a disk that is put together.
pub struct Assembled {
    segments: Arc<[Segment]>,
    next: usize,
    /// Of the present segment, if it is of a volume.
    reading: Option<Reading>,
    /// Of an earlier one, which is not at its end.
    waiting: Option<Reading>,
    at: u64,
    len: u64,
    format: &'static str,
}

impl Assembled {
    /// `segments` are [`in_order`].
    #[must_use]
    pub fn new(segments: Arc<[Segment]>, len: u64, format: &'static str) -> Self {
        Self { segments, next: 0, reading: None, waiting: None, at: 0, len, format }
    }

    fn free_to(&mut self, end: u64) -> Option<Piece> {
        let len = end - self.at;
        self.at = end;
        (len > 0).then_some(Piece::Free(len))
    }

    /// The next piece of a volume, whose present segment ends at `end`.
    fn volume(
        &mut self,
        volume: &Arc<Volume>,
        from: u64,
        end: u64,
        buf: &mut [u8],
    ) -> Result<Piece> {
        let reading = match &mut self.reading {
            Some(reading) => reading,
            None => {
                let waits = |waits: &mut Reading| goes_on(&waits.volume, waits.at, volume, from);
                let mut reading = match self.waiting.take_if(waits) {
                    Some(reading) => reading,
                    None => Reading::begin(Arc::clone(volume), self.format)?,
                };
                reading.skip_to(from, buf)?;
                self.reading.insert(reading)
            }
        };
        let piece = reading.next(end - self.at, buf)?;
        self.at += piece.disk_bytes();
        Ok(piece)
    }

    /// Behind a segment.
    fn leave(&mut self, buf: &mut [u8]) -> Result<()> {
        self.next += 1;
        match self.reading.take() {
            Some(reading) if reading.at == reading.volume.len => reading.finish(buf),
            Some(reading) if may_wait(&reading.volume, reading.at) => {
                self.waiting = Some(reading);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl Walk for Assembled {
    fn next(&mut self, buf: &mut [u8]) -> Result<Option<Piece>> {
        loop {
            let segments = Arc::clone(&self.segments);
            let Some(segment) = segments.get(self.next) else {
                return Ok(self.free_to(self.len));
            };
            if self.at < segment.start {
                return Ok(self.free_to(segment.start));
            }
            let end = segment.start + segment.len;
            if self.at == end {
                self.leave(buf)?;
                continue;
            }
            match &segment.content {
                Content::Bytes(bytes) => {
                    let within = usize::try_from(self.at - segment.start).expect("in memory");
                    let count = (bytes.len() - within).min(buf.len());
                    buf[..count].copy_from_slice(&bytes[within..within + count]);
                    self.at += count as u64;
                    return Ok(Some(Piece::Data(count)));
                }
                Content::Zero => {
                    let len = end - self.at;
                    self.at = end;
                    return Ok(Some(Piece::Zero(len)));
                }
                Content::Volume { volume, from } => {
                    return self.volume(volume, *from, end, buf).map(Some);
                }
            }
        }
    }
}

/// A swap area without content, as mkswap makes it: its first page.
pub fn swap_header(len: u64, uuid: [u8; 16], label: &str) -> Arc<[u8]> {
    const PAGE: usize = 4096;
    let mut page = vec![0; PAGE];
    let last_page = u32::try_from(len / PAGE as u64).unwrap_or(u32::MAX).saturating_sub(1);
    page[1024..1028].copy_from_slice(&1_u32.to_le_bytes());
    page[1028..1032].copy_from_slice(&last_page.to_le_bytes());
    page[1036..1052].copy_from_slice(&uuid);
    let label = label.as_bytes();
    let label = &label[..label.len().min(15)];
    page[1052..1052 + label.len()].copy_from_slice(label);
    page[PAGE - 10..].copy_from_slice(b"SWAPSPACE2");
    page.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A volume of these bytes, in whose walk every run of zeros is one piece.
    struct Bytes(Arc<Vec<u8>>, usize);

    impl Walk for Bytes {
        fn next(&mut self, buf: &mut [u8]) -> Result<Option<Piece>> {
            let rest = &self.0[self.1..];
            let run = |zero: bool| rest.iter().take_while(|byte| (**byte == 0) == zero).count();
            let (zeros, others) = (run(true), run(false).min(buf.len()));
            self.1 += zeros.max(others);
            Ok(match (zeros, others) {
                (0, 0) => None,
                (0, _) => {
                    buf[..others].copy_from_slice(&rest[..others]);
                    Some(Piece::Data(others))
                }
                _ => Some(Piece::Zero(zeros as u64)),
            })
        }
    }

    fn volume(bytes: Vec<u8>, len: u64, is_raw: bool) -> Arc<Volume> {
        let bytes = Arc::new(bytes);
        let start = Arc::new(move || -> Result<Box<dyn Walk>> {
            Ok(Box::new(Bytes(Arc::clone(&bytes), 0)))
        });
        let name = "vg/a".to_owned();
        Arc::new(Volume { name, within: "logical volume", len, start, is_raw, window_bytes: 0 })
    }

    fn walked(segments: Vec<Segment>, len: u64, buf: usize) -> Result<Vec<u8>> {
        let segments: Arc<[Segment]> = in_order(segments, len, "x")?.into();
        let mut walk = Assembled::new(segments, len, "x");
        let (mut buf, mut disk) = (vec![0xAA; buf], Vec::new());
        while let Some(piece) = walk.next(&mut buf)? {
            assert!(piece.disk_bytes() > 0);
            match piece {
                Piece::Data(len) => disk.extend_from_slice(&buf[..len]),
                piece => disk.resize(disk.len() + usize::try_from(piece.disk_bytes()).unwrap(), 0),
            }
        }
        Ok(disk)
    }

    proptest! {
        #[test]
        fn volumes_in_pieces_come_back_wherever_these_lie(
            lens in prop::collection::vec((1..20_u64, 0..3_usize, any::<u64>()), 1..12),
            missing in prop::collection::vec(0..30_usize, 3),
            seed in any::<u8>(),
            buf in 1..30_usize,
        ) {
            // Which volume each piece is of, and in what order they are on the disk.
            let room = |number: usize| -> u64 {
                lens.iter().filter(|(_, of, _)| *of == number).map(|(len, ..)| *len).sum()
            };
            let contents: Vec<Vec<u8>> = (0..3).map(|number| {
                let len = usize::try_from(room(number)).unwrap();
                let byte = |i: usize| match i / 7 % 3 {
                    0 => 0,
                    _ => seed.wrapping_add(u8::try_from(i * 3 % 256).unwrap()),
                };
                (0..len.saturating_sub(missing[number])).map(byte).collect()
            }).collect();
            let volumes: Vec<_> =
                contents.iter().enumerate().map(|(i, bytes)| volume(bytes.clone(), room(i), false)).collect();
            let mut order: Vec<usize> = (0..lens.len()).collect();
            order.sort_by_key(|i| lens[*i].2);
            let mut starts = vec![0; lens.len()];
            let mut end = 0;
            for i in order {
                starts[i] = end + u64::from(seed % 3);
                end = starts[i] + lens[i].0;
            }
            let mut expected = vec![0; usize::try_from(end + 5).unwrap()];
            let (mut segments, mut froms) = (Vec::new(), [0_u64; 3]);
            for ((len, of, _), start) in lens.iter().zip(starts) {
                let from = froms[*of];
                froms[*of] += len;
                let content = Content::Volume { volume: Arc::clone(&volumes[*of]), from };
                segments.push(Segment { start, len: *len, content });
                for i in 0..*len {
                    let there = contents[*of].get(usize::try_from(from + i).unwrap());
                    expected[usize::try_from(start + i).unwrap()] = there.copied().unwrap_or(0);
                }
            }
            prop_assert_eq!(walked(segments, end + 5, buf).unwrap(), expected);
        }
    }

    /// The pieces of a volume, each of ten bytes, in these places of the disk.
    fn pieces(volume: &Arc<Volume>, places: impl Iterator<Item = u64>) -> Vec<Segment> {
        let piece = |(place, from): (u64, u64)| Segment {
            start: place * 10,
            len: 10,
            content: Content::Volume { volume: Arc::clone(volume), from: from * 10 },
        };
        places.zip(0..).map(piece).collect()
    }

    #[test]
    fn what_is_too_long_or_too_short_is_damaged_wherever_its_end_lies() {
        for places in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let walk = |len: usize, is_raw| {
                let volume = volume(vec![7; len], 30, is_raw);
                walked(pieces(&volume, places.into_iter()), 30, 8).map_err(|e| e.to_string())
            };
            assert_eq!(walk(30, true).unwrap(), [7; 30]);
            assert!(walk(31, false).unwrap_err().contains("longer than its logical volume"));
            assert!(walk(29, true).unwrap_err().contains("ends 1 bytes before its logical volume"));
            assert!(walk(11, true).unwrap_err().contains("ends 19 bytes before"));
            assert!(walk(0, false).unwrap().iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn images_are_not_read_again_and_again() {
        let turned = |many: u64| {
            let volume = volume(vec![7; usize::try_from(many).unwrap() * 10], many * 10, true);
            in_order(pieces(&volume, (0..many).rev()), many * 10, "x")
        };
        assert!(turned(30).is_ok());
        assert!(turned(40).unwrap_err().to_string().contains("again and again"));
        // In order they cost nothing, however many.
        let volume = volume(Vec::new(), 100_000, false);
        let apart = |volume: &Arc<Volume>| {
            in_order(pieces(volume, (0..10_000).map(|place| place * 2)), 200_000, "x")
        };
        assert!(apart(&volume).is_ok());
        // But where nothing waits, as its decoder takes much memory.
        let mut large = Arc::into_inner(volume).unwrap();
        large.window_bytes = 128 << 20;
        assert!(apart(&Arc::new(large)).is_err());
    }
}
