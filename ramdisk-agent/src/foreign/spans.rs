//! A walk over a disk, cut into spans: what the engine works on.
//!
//! Spans lie on a grid of [`SPAN_LEN`], as in our own images. Long stretches of zeros or of free space become holes of up to a
//! GiB without ever being in memory. A walk that goes on beyond the limit it was given ends with an error: that is what a
//! decompression bomb does.

use std::ops::Range;

use agent_api::ErrorKind;
use image_format::{DEFAULT_SPAN_LEN, MAX_HOLE_LEN};

use super::walk::{Piece, Walk};
use crate::error::{Error, Result};
use crate::words::size;

/// The grid of spans, in bytes.
pub const SPAN_LEN: usize = DEFAULT_SPAN_LEN as usize;

/// A piece of a disk on the grid.
#[derive(Debug)]
pub struct Span {
    /// Where it starts.
    pub offset: u64,
    /// How long it is; a whole number of grid steps but at the disk's end.
    pub len: u64,
    /// What is in it.
    pub body: Body,
}

/// What a span holds.
#[derive(Debug)]
pub enum Body {
    /// Nothing but zeros.
    Zero,
    /// Nothing that is in use.
    Free,
    /// These bytes, of which these ranges are free, and zero.
    Bytes {
        /// The bytes.
        bytes: Vec<u8>,
        /// The free ones, in order.
        free: Vec<Range<usize>>,
    },
}

/// Cuts a walk into spans.
pub struct Spans {
    walk: Box<dyn Walk>,
    at: u64,
    limit: Limit,
    /// What is left of the last piece that was longer than its span.
    pending: Option<(bool, u64)>,
    ended: bool,
    spare: Vec<Vec<u8>>,
}

/// How many bytes a disk may have, and why.
#[derive(Debug, Clone)]
pub struct Limit {
    /// So many.
    pub bytes: u64,
    /// What sets the limit: `the target has`.
    pub reason: String,
}

impl Spans {
    /// From the walk's start.
    pub fn new(walk: Box<dyn Walk>, limit: Limit) -> Self {
        Self { walk, at: 0, limit, pending: None, ended: false, spare: Vec::new() }
    }

    /// Where the next span starts.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Takes a buffer for use again.
    pub fn recycle(&mut self, bytes: Vec<u8>) {
        if self.spare.is_empty() {
            self.spare.push(bytes);
        }
    }

    /// The next span; `None` at the disk's end.
    pub fn next_span(&mut self) -> Result<Option<Span>> {
        let offset = self.at;
        if let Some(hole) = self.hole() {
            return Ok(Some(hole));
        }
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.resize(SPAN_LEN, 0);
        let mut filled = 0;
        let mut free: Vec<Range<usize>> = Vec::new();
        while filled < SPAN_LEN {
            let Some((is_free, left)) = self.pending else {
                match self.next_piece(&mut bytes[filled..])? {
                    Some(n) => filled += n,
                    None if self.ended => break,
                    None if filled == 0 => {
                        if let Some(hole) = self.hole() {
                            self.recycle(bytes);
                            return Ok(Some(hole));
                        }
                    }
                    None => {}
                }
                continue;
            };
            let len = usize::try_from(left).unwrap_or(SPAN_LEN).min(SPAN_LEN - filled);
            bytes[filled..filled + len].fill(0);
            if is_free {
                match free.last_mut().filter(|last| last.end == filled) {
                    Some(last) => last.end = filled + len,
                    None => free.push(filled..filled + len),
                }
            }
            filled += len;
            self.take_pending(len as u64);
        }
        bytes.truncate(filled);
        if filled == 0 {
            return Ok(None);
        }
        self.at += filled as u64;
        let len = filled as u64;
        let body = if free.first() == Some(&(0..filled)) {
            self.recycle(bytes);
            Body::Free
        } else {
            Body::Bytes { bytes, free }
        };
        Ok(Some(Span { offset, len, body }))
    }

    /// A hole of at least one span, if one is pending.
    fn hole(&mut self) -> Option<Span> {
        let grid = SPAN_LEN as u64;
        let (is_free, left) = self.pending.filter(|(_, left)| *left >= grid)?;
        let len = (left - left % grid).min(MAX_HOLE_LEN);
        self.take_pending(len);
        let span =
            Span { offset: self.at, len, body: if is_free { Body::Free } else { Body::Zero } };
        self.at += len;
        Some(span)
    }

    fn take_pending(&mut self, len: u64) {
        self.pending = self.pending.map(|(f, left)| (f, left - len)).filter(|(_, left)| *left > 0);
    }

    /// Bytes put into `buf`, or `None` if what came is pending now, or the end was reached.
    fn next_piece(&mut self, buf: &mut [u8]) -> Result<Option<usize>> {
        if self.ended {
            return Ok(None);
        }
        let filled = SPAN_LEN - buf.len();
        let piece = self.walk.next(buf)?;
        let len = match piece {
            None => {
                self.ended = true;
                return Ok(None);
            }
            Some(Piece::Data(n)) => n as u64,
            Some(Piece::Zero(n) | Piece::Free(n)) => n,
        };
        let end = (self.at + filled as u64).checked_add(len);
        if end.is_none_or(|end| end > self.limit.bytes) {
            return Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "the image holds more than {}, and {}",
                    size(self.limit.bytes),
                    self.limit.reason
                ),
            ));
        }
        Ok(match piece {
            Some(Piece::Data(n)) => Some(n),
            Some(Piece::Free(n)) => {
                self.pending = Some((true, n));
                None
            }
            _ => {
                self.pending = Some((false, len));
                None
            }
        })
    }
}

impl std::fmt::Debug for Spans {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spans").field("at", &self.at).finish_non_exhaustive()
    }
}
