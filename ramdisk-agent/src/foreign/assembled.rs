//! A disk put together from pieces: tables and boot code as they were saved, volumes from images of their own, each at its place.
//! What lies between them was not saved, so it is free.

use std::sync::Arc;

use super::error::{ForeignError, Result};
use super::walk::{Piece, Walk};

/// Starts a walk over a volume.
pub type Start = Arc<dyn Fn() -> Result<Box<dyn Walk>> + Send + Sync>;

/// A piece of the disk.
#[derive(Clone)]
pub struct Segment {
    /// Where it starts.
    pub start: u64,
    /// Its length; a volume may be shorter, and leaves the rest free.
    pub len: u64,
    /// What it holds.
    pub content: Content,
}

/// What a piece holds.
#[derive(Clone)]
pub enum Content {
    /// These bytes.
    Bytes(Arc<[u8]>),
    /// A volume, with its name for errors.
    Volume {
        name: String,
        start: Start,
        /// It has every byte of the piece, and nothing but their number tells that some are missing; others say themselves how long they are.
        is_raw: bool,
    },
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segment")
            .field("start", &self.start)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// Puts segments in order. Fails if two of them share bytes, or one goes beyond the disk.
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
    Ok(segments)
}

/// Walks a disk that is put together.
pub struct Assembled {
    segments: Arc<[Segment]>,
    next: usize,
    /// The walk in the present segment, if it is a volume.
    walk: Option<Box<dyn Walk>>,
    at: u64,
    len: u64,
    format: &'static str,
}

impl Assembled {
    /// `segments` are [`in_order`].
    #[must_use]
    pub fn new(segments: Arc<[Segment]>, len: u64, format: &'static str) -> Self {
        Self { segments, next: 0, walk: None, at: 0, len, format }
    }

    fn free_to(&mut self, end: u64) -> Option<Piece> {
        let len = end - self.at;
        self.at = end;
        (len > 0).then_some(Piece::Free(len))
    }

    fn volume(
        &mut self,
        name: &str,
        start: &Start,
        is_raw: bool,
        end: u64,
        buf: &mut [u8],
    ) -> Result<Option<Piece>> {
        let walk = match &mut self.walk {
            Some(walk) => walk,
            None => self.walk.insert(start()?),
        };
        let Some(piece) = walk.next(buf)? else {
            let missing = end - self.at;
            if is_raw && missing > 0 {
                let fault = format!(
                    "the image of {name} ends {missing} bytes before its partition does: it is cut off, or its last piece is missing"
                );
                return Err(ForeignError::damaged(self.format, fault));
            }
            self.walk = None;
            self.next += 1;
            return Ok(self.free_to(end));
        };
        let (Piece::Zero(len) | Piece::Free(len)) = piece else {
            let Piece::Data(len) = piece else { unreachable!("the other two were taken out") };
            return self.advance(name, len as u64, end).map(|()| Some(piece));
        };
        self.advance(name, len, end).map(|()| Some(piece))
    }

    fn advance(&mut self, name: &str, len: u64, end: u64) -> Result<()> {
        match self.at.checked_add(len).filter(|at| *at <= end) {
            Some(at) => {
                self.at = at;
                Ok(())
            }
            None => {
                let fault = format!("the image of {name} is longer than its partition");
                Err(ForeignError::damaged(self.format, fault))
            }
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
            match &segment.content {
                Content::Bytes(bytes) => {
                    let within = usize::try_from(self.at - segment.start).expect("in memory");
                    let count = (bytes.len() - within).min(buf.len());
                    if count == 0 {
                        self.next += 1;
                        continue;
                    }
                    buf[..count].copy_from_slice(&bytes[within..within + count]);
                    self.at += count as u64;
                    return Ok(Some(Piece::Data(count)));
                }
                Content::Volume { name, start, is_raw } => {
                    if let Some(piece) = self.volume(name, start, *is_raw, end, buf)? {
                        return Ok(Some(piece));
                    }
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
