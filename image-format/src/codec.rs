//! One span of disk to one zstd frame and back, for worker threads.
//!
//! Both sides keep their zstd context. The decoder is given bytes whose hash was checked, and still trusts nothing in the
//! frame: its header is compared with the index first, the frame must be one and end with its bytes, and the output is
//! exactly as long as the index says.

use std::fmt;
use std::io;

use zstd::zstd_safe;

use crate::error::{FormatError, Result};
use crate::hole::HOLE_WINDOW_LEN;
use crate::zstd_header::ZstdHeader;
use crate::{FrameEntry, FrameKind, Hash, MAX_SPAN_LEN, RunKind, Runs};

/// The largest window that stock zstd accepts without being told to.
const MAX_WINDOW_LEN: u64 = 128 << 20;

/// What the index will say of a data frame; made by [`Encoder::encode`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedFrame {
    /// The length of the span.
    pub logical_len: u32,
    /// The length of the frame.
    pub stored_len: u32,
    /// BLAKE3 of the frame.
    pub stored_hash: Hash,
    /// BLAKE3 of the span.
    pub content_hash: Hash,
    /// What is in the span.
    pub runs: Runs,
}

/// Compresses spans to data frames.
pub struct Encoder {
    level: i32,
    compressor: zstd::bulk::Compressor<'static>,
}

impl Encoder {
    /// An encoder for this zstd level.
    ///
    /// # Errors
    /// [`FormatError::Compress`] if zstd does not have the level.
    pub fn new(level: i32) -> Result<Self> {
        let failed = |source| FormatError::Compress { level, source };
        if !zstd::compression_level_range().contains(&level) {
            return Err(failed(io::Error::new(
                io::ErrorKind::InvalidInput,
                "zstd does not have this level",
            )));
        }
        let mut compressor = zstd::bulk::Compressor::new(level).map_err(failed)?;
        compressor.include_checksum(true).map_err(failed)?;
        compressor.include_contentsize(true).map_err(failed)?;
        Ok(Self { level, compressor })
    }

    /// Compresses a span into `out`, whose contents are replaced and whose capacity is reused.
    ///
    /// All bytes of the span that `runs` does not call data must be zero: the caller has set the free ones so.
    ///
    /// # Errors
    /// [`FormatError::BadSpan`] if the span is empty, too long, not covered by `runs` or not zero where it should be;
    /// [`FormatError::Compress`] if zstd fails.
    pub fn encode(&mut self, span: &[u8], runs: Runs, out: &mut Vec<u8>) -> Result<EncodedFrame> {
        let bad = |offset, fault| FormatError::BadSpan { offset, fault };
        let logical_len = u32::try_from(span.len())
            .ok()
            .filter(|len| (1..=MAX_SPAN_LEN).contains(len))
            .ok_or(bad(0, "the span is empty or too long"))?;
        if !runs.cover(logical_len) {
            return Err(bad(0, "the runs do not cover the span"));
        }
        for (kind, range) in runs.byte_ranges(logical_len) {
            let start = usize::try_from(range.start).expect("within the span, which is in memory");
            let end = usize::try_from(range.end).expect("within the span, which is in memory");
            if kind != RunKind::Data && !is_zero(&span[start..end]) {
                return Err(bad(
                    range.start,
                    "the run that starts here is not data, but its bytes are not zero",
                ));
            }
        }
        out.clear();
        out.reserve(zstd_safe::compress_bound(span.len()));
        let level = self.level;
        self.compressor
            .compress_to_buffer(span, out)
            .map_err(|source| FormatError::Compress { level, source })?;
        let stored_len =
            u32::try_from(out.len()).expect("a span of at most 64 MiB does not grow beyond 4 GiB");
        Ok(EncodedFrame {
            logical_len,
            stored_len,
            stored_hash: Hash::of(out),
            content_hash: Hash::of(span),
            runs,
        })
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").field("level", &self.level).finish_non_exhaustive()
    }
}

/// Checks and decompresses frames.
pub struct Decoder {
    decompressor: zstd::bulk::Decompressor<'static>,
}

impl Decoder {
    /// A decoder.
    ///
    /// # Errors
    /// Only if zstd cannot allocate its context.
    pub fn new() -> io::Result<Self> {
        Ok(Self { decompressor: zstd::bulk::Decompressor::new()? })
    }

    /// Checks the stored bytes of a frame against the index. Do this before anything else with them.
    ///
    /// # Errors
    /// [`FormatError::Frame`] naming the frame.
    pub fn check(entry: &FrameEntry, stored: &[u8]) -> Result<()> {
        if stored.len() as u64 != u64::from(entry.stored_len) {
            return Err(entry.fault("has not as many stored bytes as the index says"));
        }
        if Hash::of(stored) != entry.stored_hash {
            return Err(entry.fault("stored bytes do not match their hash"));
        }
        Ok(())
    }

    /// Decompresses a frame that passed [`Decoder::check`] into `out`, which has the frame's logical length.
    ///
    /// # Errors
    /// [`FormatError::Frame`] or [`FormatError::Decompress`] naming the frame; `out` is then in no defined state.
    pub fn decode(&mut self, entry: &FrameEntry, stored: &[u8], out: &mut [u8]) -> Result<()> {
        if out.len() as u64 != u64::from(entry.logical_len) {
            return Err(entry.fault("the buffer is not as long as the frame's content"));
        }
        let header = ZstdHeader::parse(stored)
            .ok_or_else(|| entry.fault("does not start with a zstd header"))?;
        if header.content_len != Some(u64::from(entry.logical_len)) {
            return Err(entry.fault("its zstd header gives another length than the index"));
        }
        if !header.checksum || header.dictionary {
            return Err(entry.fault("its zstd header lacks a checksum or wants a dictionary"));
        }
        let window_ok = match entry.kind {
            FrameKind::Data => header.window_len <= MAX_WINDOW_LEN,
            FrameKind::Hole => {
                !header.single_segment && header.window_len <= u64::from(HOLE_WINDOW_LEN)
            }
        };
        if !window_ok {
            return Err(entry.fault("its zstd window is larger than allowed"));
        }
        if zstd_safe::find_frame_compressed_size(stored) != Ok(stored.len()) {
            return Err(entry.fault("its stored bytes are not exactly one zstd frame"));
        }
        let written = self.decompressor.decompress_to_buffer(stored, out).map_err(|source| {
            FormatError::Decompress {
                index: entry.index,
                logical_offset: entry.logical_offset,
                stored_offset: entry.stored_offset,
                source,
            }
        })?;
        if written != out.len() {
            return Err(entry.fault("decompresses to fewer bytes than the index says"));
        }
        Ok(())
    }

    /// Checks decompressed content against the index: its hash, and that it is zero where the runs say so.
    ///
    /// # Errors
    /// [`FormatError::Frame`] naming the frame.
    pub fn check_content(entry: &FrameEntry, content: &[u8]) -> Result<()> {
        if content.len() as u64 != u64::from(entry.logical_len) {
            return Err(entry.fault("has not as much content as the index says"));
        }
        for (kind, range) in entry.runs.byte_ranges(entry.logical_len) {
            let start =
                usize::try_from(range.start).expect("within the content, which is in memory");
            let end = usize::try_from(range.end).expect("within the content, which is in memory");
            if kind != RunKind::Data && !is_zero(&content[start..end]) {
                return Err(entry.fault("content is not zero where the index says so"));
            }
        }
        if entry.kind == FrameKind::Data && Hash::of(content) != entry.content_hash {
            return Err(entry.fault("content does not match its hash"));
        }
        Ok(())
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

/// Whether all these bytes are zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // Folding a whole chunk without an early way out lets the compiler use wide registers.
    bytes.chunks(1024).all(|chunk| chunk.iter().fold(0, |any, byte| any | byte) == 0)
}
