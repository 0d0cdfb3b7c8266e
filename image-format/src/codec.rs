//! One span of disk to one zstd frame and back, for worker threads.
//!
//! Both sides keep their zstd context. The decoder takes nothing but a [`StoredFrame`], whose hash was found right, and still
//! trusts nothing in it: its header is compared with the index first, the frame must be one and end with its bytes, and the
//! output is exactly as long as the index says.

use std::fmt;
use std::io;

use zstd::zstd_safe::{self, CCtx, CParameter, DCtx};

use crate::error::{FormatError, Result};
use crate::hole::HOLE_WINDOW_LEN;
use crate::zstd_header::ZstdHeader;
use crate::{FrameBase, FrameEntry, FrameKind, Hash, MAX_SPAN_LEN, RunKind, Runs};

/// The largest window that stock zstd accepts without being told to.
const MAX_WINDOW_LEN: u64 = 128 << 20;

/// The same as the logarithm that zstd counts in.
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

/// The stored bytes of a frame, found to be those that the index names. There is no other way to a [`Decoder`].
#[derive(Clone, Copy, Debug)]
pub struct StoredFrame<'a> {
    entry: &'a FrameEntry,
    bytes: &'a [u8],
}

impl<'a> StoredFrame<'a> {
    /// Checks the stored bytes of a frame against the index.
    ///
    /// # Errors
    /// [`FormatError::Frame`] naming the frame.
    pub fn check(entry: &'a FrameEntry, bytes: &'a [u8]) -> Result<Self> {
        if entry.base == FrameBase::Reference {
            return Err(entry.fault("is a reference to the parent image, nothing of it is stored"));
        }
        if bytes.len() as u64 != u64::from(entry.stored_len) {
            return Err(entry.fault("has not as many stored bytes as the index says"));
        }
        if Hash::of(bytes) != entry.stored_hash {
            return Err(entry.fault("stored bytes do not match their hash"));
        }
        Ok(Self { entry, bytes })
    }

    /// What must hold of the zstd frame before it is decompressed.
    fn check_header(self) -> Result<()> {
        let Self { entry, bytes } = self;
        let header = ZstdHeader::parse(bytes)
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
        if zstd_safe::find_frame_compressed_size(bytes) != Ok(bytes.len()) {
            return Err(entry.fault("its stored bytes are not exactly one zstd frame"));
        }
        Ok(())
    }

    fn decompress_error(self, source: io::Error) -> FormatError {
        let FrameEntry { index, logical_offset, stored_offset, .. } = *self.entry;
        FormatError::Decompress { index, logical_offset, stored_offset, source }
    }
}

/// Decompresses frames.
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

    /// Decompresses a frame into `out`, which has the frame's logical length.
    ///
    /// # Errors
    /// [`FormatError::Frame`] or [`FormatError::Decompress`] naming the frame; `out` is then in no defined state.
    pub fn decode(&mut self, frame: StoredFrame<'_>, out: &mut [u8]) -> Result<()> {
        let entry = frame.entry;
        if out.len() as u64 != u64::from(entry.logical_len) {
            return Err(entry.fault("the buffer is not as long as the frame's content"));
        }
        if entry.base != FrameBase::None {
            return Err(entry.fault("needs the parent image to be decompressed"));
        }
        frame.check_header()?;
        let written = self
            .decompressor
            .decompress_to_buffer(frame.bytes, out)
            .map_err(|source| frame.decompress_error(source))?;
        if written != out.len() {
            return Err(entry.fault("decompresses to fewer bytes than the index says"));
        }
        Ok(())
    }

    /// Decompresses a frame that needs the content of the parent's frame at its place, which the caller has found to be what the
    /// parent's index says ([`Decoder::check_content`]).
    ///
    /// # Errors
    /// As [`Decoder::decode`].
    pub fn decode_with_prefix(frame: StoredFrame<'_>, prefix: &[u8], out: &mut [u8]) -> Result<()> {
        let entry = frame.entry;
        if entry.base != FrameBase::Prefix {
            return Err(entry.fault("does not need the parent image"));
        }
        if out.len() as u64 != u64::from(entry.logical_len) {
            return Err(entry.fault("the buffer is not as long as the frame's content"));
        }
        frame.check_header()?;
        let failed =
            |code| frame.decompress_error(io::Error::other(zstd_safe::get_error_name(code)));
        // As for compressing: a context cannot outlive its prefix.
        let mut context = DCtx::create();
        context.ref_prefix(prefix).map_err(failed)?;
        let written = context.decompress(out, frame.bytes).map_err(failed)?;
        if written != out.len() {
            return Err(entry.fault("decompresses to fewer bytes than the index says"));
        }
        Ok(())
    }

    /// Checks that a frame, of a hole as a rule, decompresses to zeros, in little memory however long it is.
    ///
    /// # Errors
    /// As [`Decoder::decode`].
    pub fn check_zeros(frame: StoredFrame<'_>) -> Result<()> {
        frame.check_header()?;
        let failed = |source| frame.decompress_error(source);
        let mut zeros = zstd::stream::read::Decoder::with_buffer(frame.bytes).map_err(failed)?;
        let mut piece = vec![0; 128 << 10];
        let mut len = 0;
        loop {
            let read = io::Read::read(&mut zeros, &mut piece).map_err(failed)?;
            if read == 0 {
                break;
            }
            if !is_zero(&piece[..read]) {
                return Err(frame
                    .entry
                    .fault("is a hole, but decompresses to other bytes than zeros"));
            }
            len += read as u64;
        }
        if len != u64::from(frame.entry.logical_len) {
            return Err(frame.entry.fault("decompresses to another length than the index says"));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: FrameKind, logical_len: u32, stored: &[u8]) -> FrameEntry {
        FrameEntry {
            index: 812,
            kind,
            base: FrameBase::None,
            logical_offset: 4096,
            logical_len,
            stored_offset: 100,
            stored_len: u32::try_from(stored.len()).unwrap(),
            stored_hash: Hash::of(stored),
            content_hash: Hash::ZERO,
            runs: Runs::uniform(RunKind::Data, logical_len),
        }
    }

    fn compressed(content: &[u8], checksum: bool, window_log: Option<u32>) -> Vec<u8> {
        let mut compressor = zstd::bulk::Compressor::new(3).unwrap();
        compressor.include_checksum(checksum).unwrap();
        if let Some(log) = window_log {
            compressor.window_log(log).unwrap();
        }
        compressor.compress(content).unwrap()
    }

    /// What the decoder says of bytes whose hash is right.
    fn decode(kind: FrameKind, logical_len: u32, stored: &[u8]) -> Result<Vec<u8>> {
        let entry = entry(kind, logical_len, stored);
        let mut out = vec![0xAA; logical_len as usize];
        let frame = StoredFrame::check(&entry, stored)?;
        Decoder::new().unwrap().decode(frame, &mut out).map(|()| out)
    }

    #[test]
    fn frames_that_are_not_what_the_index_says_are_refused() {
        let content = b"imprint ".repeat(1024);
        let good = compressed(&content, true, None);
        assert_eq!(decode(FrameKind::Data, 8192, &good).unwrap(), content);
        let skippable = b"\x50\x2A\x4D\x18\x04\0\0\0abcd".as_slice();
        let refused = [
            ("another length", 4096, good.clone()),
            ("another length", 16384, good.clone()),
            ("exactly one zstd frame", 8192, [good.as_slice(), &good].concat()),
            ("exactly one zstd frame", 8192, [good.as_slice(), skippable].concat()),
            ("exactly one zstd frame", 8192, [good.as_slice(), b"x"].concat()),
            ("exactly one zstd frame", 8192, good[..good.len() - 1].to_vec()),
            ("zstd header", 8192, [skippable, &good].concat()),
            ("zstd header", 8192, Vec::new()),
            ("checksum", 8192, compressed(&content, false, None)),
        ];
        for (fault, logical_len, stored) in refused {
            let error = decode(FrameKind::Data, logical_len, &stored).unwrap_err().to_string();
            assert!(
                error.starts_with("frame 812 at image offset 4096 (byte 100 of the file): "),
                "{error}"
            );
            assert!(error.contains(fault), "{fault}: {error}");
        }
        let mut wrong_checksum = good;
        *wrong_checksum.last_mut().unwrap() ^= 1;
        let error = decode(FrameKind::Data, 8192, &wrong_checksum).unwrap_err();
        assert!(matches!(error, FormatError::Decompress { .. }), "{error}");
    }

    #[test]
    fn stored_bytes_are_compared_with_their_hash() {
        let stored = compressed(&[7; 8192], true, None);
        let entry = entry(FrameKind::Data, 8192, &stored);
        StoredFrame::check(&entry, &stored).unwrap();
        let mut flipped = stored.clone();
        // The unused bit of zstd's frame header descriptor: zstd itself does not notice.
        flipped[4] ^= 0x10;
        for (bytes, fault) in [(&flipped[..], "hash"), (&stored[1..], "as many")] {
            let error = StoredFrame::check(&entry, bytes).unwrap_err().to_string();
            assert!(error.starts_with("frame 812 ") && error.contains(fault), "{error}");
        }
    }

    #[test]
    fn holes_must_be_zeros() {
        let check = |content: &[u8], logical_len| {
            let stored = compressed(content, true, Some(17));
            let entry = entry(FrameKind::Hole, logical_len, &stored);
            Decoder::check_zeros(StoredFrame::check(&entry, &stored).unwrap())
        };
        let mut content = vec![0; 1 << 20];
        check(&content, 1 << 20).unwrap();
        assert!(check(&content, 1 << 19).unwrap_err().to_string().contains("length"));
        content[777_777] = 1;
        assert!(check(&content, 1 << 20).unwrap_err().to_string().contains("zeros"));
    }

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

    #[test]
    fn windows_are_limited() {
        // A frame of zeros as a careless writer makes it: single segment, or with a window of 1 GiB.
        let zeros = vec![0; 1 << 20];
        let error = decode(FrameKind::Hole, 1 << 20, &compressed(&zeros, true, None)).unwrap_err();
        assert!(error.to_string().contains("window"), "{error}");
        let small = compressed(&zeros, true, Some(17));
        assert_eq!(decode(FrameKind::Hole, 1 << 20, &small).unwrap(), zeros);
        let mut large = small;
        large[5] = 20 << 3;
        let error = decode(FrameKind::Data, 1 << 20, &large).unwrap_err();
        assert!(error.to_string().contains("window"), "{error}");
    }

    #[test]
    fn content_is_compared_with_hash_and_runs() {
        let mut content = vec![0; 8192];
        content[..4096].fill(7);
        let mut entry = entry(FrameKind::Data, 8192, b"");
        entry.content_hash = Hash::of(&content);
        entry.runs = [(RunKind::Data, 1), (RunKind::Free, 1)]
            .map(|(kind, units)| crate::Run { kind, units })
            .into_iter()
            .collect();
        Decoder::check_content(&entry, &content).unwrap();
        content[4095] = 8;
        assert!(Decoder::check_content(&entry, &content).unwrap_err().to_string().contains("hash"));
        content[4096] = 8;
        assert!(Decoder::check_content(&entry, &content).unwrap_err().to_string().contains("zero"));
        assert!(Decoder::check_content(&entry, &content[1..]).is_err());
    }

    #[test]
    fn workers_can_own_both() {
        fn assert_send<T: Send>() {}
        assert_send::<Encoder>();
        assert_send::<Decoder>();
        assert_send::<crate::ImageWriter<Vec<u8>>>();
        assert_send::<crate::ImageReader<std::fs::File>>();
        assert_send::<FormatError>();
    }

    #[test]
    fn zeros_are_told_from_other_bytes_at_any_place() {
        for len in [0, 1, 1023, 1024, 1025, 5000] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in (0..len).step_by(251).chain(len.checked_sub(1)) {
                bytes[at] = 0x80;
                assert!(!is_zero(&bytes), "byte {at} of {len}");
                bytes[at] = 0;
            }
        }
    }
}
