//! One zstd frame back to its span of disk, for worker threads.
//!
//! A decoder keeps its zstd context. It takes nothing but a [`StoredFrame`], whose hash was found right, and still trusts nothing in
//! it: its header is compared with the index first, the frame must be one and end with its bytes, and the output is exactly as long
//! as the index says.

use std::fmt;
use std::io;

use zstd::zstd_safe::{self, DCtx};

use crate::error::{FormatError, Result};
use crate::hole::HOLE_WINDOW_LEN;
use crate::zeros::{first_run_not_zero, is_zero};
use crate::zstd_header::ZstdHeader;
use crate::{FrameBase, FrameEntry, FrameKind, Hash};

/// The largest window that stock zstd accepts without being told to.
pub(crate) const MAX_WINDOW_LEN: u64 = 128 << 20;

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
        if first_run_not_zero(&entry.runs, content).is_some() {
            return Err(entry.fault("content is not zero where the index says so"));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RunKind, Runs};

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
}
