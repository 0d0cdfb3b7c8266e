//! One span of disk to one zstd frame, for worker threads: what zstd is told at each level, and what the index will say of a frame.
//!
//! An encoder keeps its zstd context. Deliberately absent: finding out which blocks are used; the caller has set free ones to zero.

use std::fmt;
use std::io;

use zstd::zstd_safe::{self, CCtx, CParameter};

use crate::decoder::MAX_WINDOW_LEN;
use crate::error::{FormatError, Result};
use crate::zeros::first_run_not_zero;
use crate::{FrameBase, Hash, MAX_SPAN_LEN, Runs};

/// The largest window that stock zstd accepts, as the logarithm that zstd counts in.
const MAX_WINDOW_LOG: u32 = MAX_WINDOW_LEN.trailing_zeros();
/// The smallest window that zstd has.
const MIN_PREFIX_WINDOW_LOG: u32 = 10;

/// The level that nearly every image has.
const DEFAULT_LEVEL: i32 = 3;
/// What is set otherwise than zstd sets it at that level. Of programs, libraries, documents, Python and Rust sources, in spans of 4 MiB, the
/// four together take 4 to 17 % less time than zstd's own for 0.6 % fewer to 1.5 % more bytes: a short-match table that fits the first-level
/// cache and no search for better places to split blocks (full blocks are searched, and these are never full) gain the time; the window of a
/// whole span, and twice the table of long matches, give most of the bytes back.
const TUNED: [CParameter; 4] = [
    CParameter::WindowLog(22),
    CParameter::HashLog(18),
    CParameter::ChainLog(15),
    CParameter::MaxBlockSize((128 << 10) - 1),
];

/// The same for a frame with a prefix: its tables must have room for both. Of a Debian system after an upgrade (800 MB of new and
/// changed files) 584 spans of 4 MiB take 577 MiB without a prefix, 556 with one and the tables above, 549 with zstd's own, and
/// 479 with these, for half more of zstd's own time.
const PREFIX_TUNED: [CParameter; 3] =
    [CParameter::HashLog(20), CParameter::ChainLog(19), CParameter::MaxBlockSize((128 << 10) - 1)];

/// From this level on zstd searches binary trees, in tables of up to 64 MiB for each thread.
const TREES_LEVEL: i32 = 13;
/// The tables there. Of 40 MB of programs in spans of 4 MiB, level 19 takes 0.1 % more bytes with these, and 8 % less time: a span has no more
/// places than that.
const TREES_TUNED: [CParameter; 2] = [CParameter::HashLog(20), CParameter::ChainLog(22)];
/// The same with a prefix: 0.5 % more bytes of those 40 MB with pieces put in and taken out, in half of the time.
const TREES_PREFIX_TUNED: [CParameter; 2] = [CParameter::HashLog(20), CParameter::ChainLog(23)];

/// Below that one level has a table of twice the places of a span: 32 MiB that give 0.06 %.
const LARGE_TABLE_LEVEL: i32 = 12;
const LARGE_TABLE_TUNED: [CParameter; 1] = [CParameter::HashLog(22)];

/// What is set otherwise than zstd sets it, at this level, for frames with a prefix or without.
fn tuned(level: i32, with_prefix: bool) -> &'static [CParameter] {
    match (level, with_prefix) {
        (DEFAULT_LEVEL, false) => &TUNED,
        (DEFAULT_LEVEL, true) => &PREFIX_TUNED,
        (LARGE_TABLE_LEVEL, _) => &LARGE_TABLE_TUNED,
        (TREES_LEVEL.., false) => &TREES_TUNED,
        (TREES_LEVEL.., true) => &TREES_PREFIX_TUNED,
        _ => &[],
    }
}

/// The memory that an [`Encoder`] takes at this level for spans of this length, beside the span, its prefix and the frame. It makes a frame
/// of zeros to find out.
///
/// # Errors
/// [`FormatError::Compress`] if zstd does not have the level.
pub fn working_memory(level: i32, span_len: u32, with_prefix: bool) -> Result<u64> {
    let zeros = vec![0; usize::try_from(span_len).expect("a span is in memory")];
    let mut encoder = Encoder::new(level)?;
    let mut out = Vec::new();
    let bytes = if with_prefix {
        encoder.with_prefix(&zeros, &zeros, &mut out)?
    } else {
        encoder.compress(&zeros, &mut out)?;
        encoder.compressor.context_mut().sizeof()
    };
    Ok(bytes as u64)
}

/// What the index will say of a data frame; made by [`Encoder::encode`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedFrame {
    /// What the frame needs of the parent image.
    pub base: FrameBase,
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

impl EncodedFrame {
    /// A frame of which nothing is stored: the parent's frame at the same place has the same content.
    #[must_use]
    pub fn reference(logical_len: u32, content_hash: Hash, runs: Runs) -> Self {
        let (base, stored_hash) = (FrameBase::Reference, Hash::ZERO);
        Self { base, logical_len, stored_len: 0, stored_hash, content_hash, runs }
    }
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
        for parameter in tuned(level, false) {
            compressor.set_parameter(*parameter).map_err(failed)?;
        }
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
        let logical_len = check_span(span, &runs)?;
        self.compress(span, out)?;
        Ok(encoded(FrameBase::None, logical_len, span, runs, out))
    }

    fn compress(&mut self, span: &[u8], out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        out.reserve(zstd_safe::compress_bound(span.len()));
        let level = self.level;
        self.compressor
            .compress_to_buffer(span, out)
            .map_err(|source| FormatError::Compress { level, source })?;
        Ok(())
    }

    /// The same, with the content of the parent's frame at this place for zstd to find matches in.
    ///
    /// # Errors
    /// As [`Encoder::encode`].
    pub fn encode_with_prefix(
        &mut self,
        span: &[u8],
        runs: Runs,
        prefix: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<EncodedFrame> {
        let logical_len = check_span(span, &runs)?;
        self.with_prefix(span, prefix, out)?;
        Ok(encoded(FrameBase::Prefix, logical_len, span, runs, out))
    }

    /// Compresses a span with a prefix. How much memory that took.
    fn with_prefix(&self, span: &[u8], prefix: &[u8], out: &mut Vec<u8>) -> Result<usize> {
        let level = self.level;
        let failed = |code| FormatError::Compress {
            level,
            source: io::Error::other(zstd_safe::get_error_name(code)),
        };
        // Matches must reach from the end of the span to the start of the prefix.
        let reach = (span.len() + prefix.len()).next_power_of_two().trailing_zeros();
        let parameters = [
            CParameter::CompressionLevel(level),
            CParameter::ChecksumFlag(true),
            CParameter::ContentSizeFlag(true),
            CParameter::WindowLog(reach.clamp(MIN_PREFIX_WINDOW_LOG, MAX_WINDOW_LOG)),
        ];
        // A context keeps what its prefix is for as long as it lives, so each frame has its own.
        let mut context = CCtx::create();
        for parameter in parameters.iter().chain(tuned(level, true)).copied() {
            context.set_parameter(parameter).map_err(failed)?;
        }
        context.ref_prefix(prefix).map_err(failed)?;
        out.clear();
        out.reserve(zstd_safe::compress_bound(span.len()));
        context.compress2(out, span).map_err(failed)?;
        Ok(context.sizeof())
    }
}

/// Refuses a span that its runs do not describe. Its length.
fn check_span(span: &[u8], runs: &Runs) -> Result<u32> {
    let bad = |offset, fault| FormatError::BadSpan { offset, fault };
    let logical_len = u32::try_from(span.len())
        .ok()
        .filter(|len| (1..=MAX_SPAN_LEN).contains(len))
        .ok_or(bad(0, "the span is empty or too long"))?;
    if !runs.cover(logical_len) {
        return Err(bad(0, "the runs do not cover the span"));
    }
    if let Some(start) = first_run_not_zero(runs, span) {
        let fault = "the run that starts here is not data, but its bytes are not zero";
        return Err(bad(start, fault));
    }
    Ok(logical_len)
}

fn encoded(
    base: FrameBase,
    logical_len: u32,
    span: &[u8],
    runs: Runs,
    stored: &[u8],
) -> EncodedFrame {
    EncodedFrame {
        base,
        logical_len,
        stored_len: u32::try_from(stored.len())
            .expect("a span of at most 64 MiB does not grow beyond 4 GiB"),
        stored_hash: Hash::of(stored),
        content_hash: Hash::of(span),
        runs,
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").field("level", &self.level).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RunKind;

    #[test]
    fn no_level_takes_much_memory() {
        let mib =
            |level, prefix| working_memory(level, 4 << 20, prefix).unwrap() as f64 / 1048576.0;
        for level in 1..=19 {
            let (alone, with_prefix) = (mib(level, false), mib(level, true));
            println!("level {level}: {alone:.1} MiB, {with_prefix:.1} with a prefix");
            assert!(alone < 29.0 && with_prefix < 45.0, "{level}: {alone} MiB, {with_prefix}");
        }
        // What a level takes does not depend on what is compressed.
        let mut encoder = Encoder::new(19).unwrap();
        let span: Vec<u8> =
            (0..4_u32 << 18).flat_map(|n| n.wrapping_mul(n).to_le_bytes()).collect();
        let runs = Runs::uniform(RunKind::Data, 4 << 20);
        encoder.encode(&span, runs, &mut Vec::new()).unwrap();
        let taken = encoder.compressor.context_mut().sizeof() as u64;
        assert_eq!(taken, working_memory(19, 4 << 20, false).unwrap());
    }
}
