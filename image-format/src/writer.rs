//! The writer: frames in disk order in, an image out, nothing ever rewritten.
//!
//! Between calls the sink holds a valid beginning of an image. Memory: 8 bytes for every frame (the seek table), 56 for
//! every page, and the page in the making.

use std::fmt;
use std::io::Write;

use uuid::Uuid;

use crate::directory::{Totals, encode_directory, encode_tail};
use crate::error::{FormatError, Result};
use crate::header::{Header, Opening};
use crate::hole::HoleFrames;
use crate::page::{DirectoryEntry, PageBuilder};
use crate::{
    Beginning, EncodedFrame, FrameBase, FrameEntry, FrameKind, Hash, MAX_FRAMES, MAX_HOLE_LEN,
    MAX_MANIFEST_LEN, MAX_PAGES, Manifest, Root, RunKind, Runs, VERSION, seek_table,
};

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The hash that pins the image.
    pub root: Root,
    /// The image's identity.
    pub image_id: Uuid,
    /// The length of the imaged disk.
    pub disk_len: u64,
    /// The length of the image file.
    pub stored_len: u64,
    /// Data frames.
    pub data_frames: u64,
    /// Hole frames.
    pub hole_frames: u64,
    /// Bytes of the disk in runs of data.
    pub data_bytes: u64,
    /// Bytes of the disk that must read as zero.
    pub zero_bytes: u64,
    /// Bytes of the disk that are not in use.
    pub free_bytes: u64,
}

/// Writes an image to `W`.
pub struct ImageWriter<W> {
    sink: W,
    opening: Opening,
    opening_len: u32,
    opening_hash: Hash,
    /// Bytes given to the sink.
    written: u64,
    /// How much of the disk is covered.
    covered: u64,
    totals: Totals,
    page: PageBuilder,
    pages: Vec<DirectoryEntry>,
    seek_entries: Vec<[u8; 8]>,
    holes: HoleFrames,
}

impl<W: Write> ImageWriter<W> {
    /// Begins an image of a disk of `disk_len` bytes whose data frames cover at most `span_len` each.
    ///
    /// # Errors
    /// If the header, the disk or the span is beyond the format's limits, or the sink fails.
    pub fn create(sink: W, header: Header, disk_len: u64, span_len: u32) -> Result<Self> {
        let opening = Opening { header, disk_len, span_len };
        opening.validate()?;
        let mut bytes = Vec::new();
        let opening_hash = opening.encode(&mut bytes);
        let opening_len =
            u32::try_from(bytes.len()).expect("an opening frame has at most 356 bytes");
        let mut writer = Self {
            sink,
            opening,
            opening_len,
            opening_hash,
            written: 0,
            covered: 0,
            totals: Totals::default(),
            page: PageBuilder::default(),
            pages: Vec::new(),
            seek_entries: vec![seek_table::entry(opening_len, 0)],
            holes: HoleFrames::default(),
        };
        writer.put(&bytes)?;
        Ok(writer)
    }

    /// Goes on behind what an earlier writer wrote. The sink holds these bytes already, and no more of them than
    /// [`Beginning::stored_len`].
    #[must_use]
    pub fn resume(sink: W, beginning: Beginning) -> Self {
        let Beginning {
            opening,
            opening_len,
            opening_hash,
            written,
            covered,
            totals,
            pages,
            seek_entries,
        } = beginning;
        Self {
            sink,
            opening,
            opening_len,
            opening_hash,
            written,
            covered,
            totals,
            page: PageBuilder::default(),
            pages,
            seek_entries,
            holes: HoleFrames::default(),
        }
    }

    /// Appends a data frame that an [`crate::Encoder`] made of the next span of the disk.
    ///
    /// # Errors
    /// If the frame does not fit where the last one ended, or the sink fails.
    pub fn append(&mut self, frame: &EncodedFrame, stored: &[u8]) -> Result<()> {
        if stored.len() as u64 != u64::from(frame.stored_len) {
            return Err(self.bad_frame("has not as many stored bytes as its description says"));
        }
        let index = self.totals.data_frames + self.totals.hole_frames;
        let entry = FrameEntry {
            index,
            kind: FrameKind::Data,
            base: frame.base,
            logical_offset: self.covered,
            logical_len: frame.logical_len,
            stored_offset: self.written,
            stored_len: frame.stored_len,
            stored_hash: frame.stored_hash,
            content_hash: frame.content_hash,
            runs: frame.runs.clone(),
        };
        self.append_frame(&entry, stored)
    }

    /// Appends a hole of any length: a stretch of the disk that is not in use, or must read as zero.
    ///
    /// # Errors
    /// If the hole does not fit into what is left of the disk, is of data, or the sink fails.
    pub fn append_hole(&mut self, len: u64, kind: RunKind) -> Result<()> {
        if kind == RunKind::Data {
            return Err(self.bad_frame("a hole cannot be of data"));
        }
        let mut left = len;
        while left > 0 {
            let frame_len = left.min(MAX_HOLE_LEN);
            left -= frame_len;
            let frame_len = u32::try_from(frame_len).expect("at most 1 GiB");
            self.append_hole_frame(frame_len, Runs::uniform(kind, frame_len))?;
        }
        Ok(())
    }

    /// Appends one hole frame of at most [`MAX_HOLE_LEN`] that mixes free and zero runs.
    ///
    /// # Errors
    /// As [`ImageWriter::append_hole`].
    pub fn append_mixed_hole(&mut self, len: u64, runs: Runs) -> Result<()> {
        let frame_len = u32::try_from(len).ok().filter(|len| u64::from(*len) <= MAX_HOLE_LEN);
        self.append_hole_frame(frame_len.ok_or(FormatError::HoleTooLong { len })?, runs)
    }

    fn append_hole_frame(&mut self, len: u32, runs: Runs) -> Result<()> {
        let hole = self.holes.get(len);
        let entry = FrameEntry {
            index: self.totals.data_frames + self.totals.hole_frames,
            kind: FrameKind::Hole,
            base: FrameBase::None,
            logical_offset: self.covered,
            logical_len: len,
            stored_offset: self.written,
            stored_len: u32::try_from(hole.stored.len()).expect("at most 32 KiB and a header"),
            stored_hash: hole.stored_hash,
            content_hash: Hash::ZERO,
            runs,
        };
        self.append_frame(&entry, &hole.stored)
    }

    fn append_frame(&mut self, entry: &FrameEntry, stored: &[u8]) -> Result<()> {
        if let Some(flaw) = entry.flaw(self.covered, &self.opening) {
            return Err(self.bad_frame(flaw));
        }
        // The frame, its page if it completes one, and the tail are listed as well.
        if self.seek_entries.len() + 3 > MAX_FRAMES as usize {
            return Err(FormatError::TooMany { what: "frames", limit: MAX_FRAMES });
        }
        if self.pages.len() >= MAX_PAGES as usize {
            return Err(FormatError::TooMany { what: "index pages", limit: MAX_PAGES });
        }
        self.put(stored)?;
        self.seek_entries.push(seek_table::entry(entry.stored_len, entry.logical_len));
        self.covered += u64::from(entry.logical_len);
        self.totals.add(entry);
        let page_index =
            u32::try_from(self.pages.len()).expect("the number of pages was just checked");
        self.page.push(page_index, entry, self.opening.header.image_id);
        if self.page.is_full() { self.put_page() } else { Ok(()) }
    }

    fn put_page(&mut self) -> Result<()> {
        let offset = self.written;
        let (bytes, entry) = self.page.finish(offset);
        self.sink.write_all(bytes).map_err(|source| FormatError::Write { offset, source })?;
        self.written += u64::from(entry.len);
        self.seek_entries.push(seek_table::entry(entry.len, 0));
        self.pages.push(entry);
        Ok(())
    }

    /// Writes the last page, manifest, directory and seek table, and flushes the sink. Whether the bytes are durable is the
    /// sink's matter.
    ///
    /// # Errors
    /// If the frames do not cover the disk exactly, the manifest contradicts the image, or the sink fails.
    pub fn finish(mut self, manifest: &Manifest) -> Result<(W, Summary)> {
        let Opening { ref header, disk_len, .. } = self.opening;
        let (image_id, delta) = (header.image_id, header.is_delta());
        if self.covered != disk_len {
            return Err(FormatError::Incomplete { covered: self.covered, disk_len });
        }
        if let Some(field) = manifest.contradiction(&self.opening) {
            return Err(FormatError::ManifestMismatch { field });
        }
        let manifest =
            serde_json::to_vec(manifest).expect("a manifest has only text keys and finite numbers");
        if manifest.len() as u64 > MAX_MANIFEST_LEN {
            return Err(FormatError::ManifestTooLong { len: manifest.len() as u64 });
        }
        if !self.page.is_empty() {
            self.put_page()?;
        }
        let directory = encode_directory(
            &self.opening,
            self.opening_len,
            self.opening_hash,
            &self.totals,
            &self.pages,
        );
        let entries =
            u32::try_from(self.seek_entries.len() + 1).expect("the writer keeps to MAX_FRAMES");
        let (tail, root) = encode_tail(&manifest, &directory, image_id, entries, self.written);
        self.put(&tail)?;
        let tail_len = u32::try_from(tail.len()).expect("manifest and directory are limited");
        self.seek_entries.push(seek_table::entry(tail_len, 0));
        self.put(&seek_table::header(entries))?;
        let table = std::mem::take(&mut self.seek_entries);
        self.put(table.as_flattened())?;
        self.put(&seek_table::footer(entries, delta))?;
        let stored_len = self.written;
        self.sink.flush().map_err(|source| FormatError::Write { offset: stored_len, source })?;
        let Totals { data_frames, hole_frames, data_bytes, zero_bytes, free_bytes } = self.totals;
        let summary = Summary {
            root,
            image_id,
            disk_len,
            stored_len,
            data_frames,
            hole_frames,
            data_bytes,
            zero_bytes,
            free_bytes,
        };
        Ok((self.sink, summary))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let offset = self.written;
        self.sink.write_all(bytes).map_err(|source| FormatError::Write { offset, source })?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

impl<W> ImageWriter<W> {
    /// How much of the disk is covered: where the next frame starts.
    #[must_use]
    pub fn covered(&self) -> u64 {
        self.covered
    }

    /// The sink, which must not be written through this.
    #[must_use]
    pub fn inner(&self) -> &W {
        &self.sink
    }

    /// The sink of an image that is given up.
    #[must_use]
    pub fn into_inner(self) -> W {
        self.sink
    }

    fn bad_frame(&self, fault: &'static str) -> FormatError {
        FormatError::BadFrame { logical_offset: self.covered, fault }
    }
}

impl<W> fmt::Debug for ImageWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("ImageWriter");
        out.field("opening", &self.opening)
            .field("covered", &self.covered)
            .field("written", &self.written);
        out.finish_non_exhaustive()
    }
}

impl Manifest {
    /// The first field that says something else than the image it is in.
    pub(crate) fn contradiction(&self, opening: &Opening) -> Option<&'static str> {
        let fields = [
            ("format_version", self.format_version == VERSION),
            ("image_id", self.image_id == opening.header.image_id),
            ("producer", self.producer == opening.header.producer),
            ("disk.size_bytes", self.disk.size_bytes == opening.disk_len),
            ("span_len", self.span_len == opening.span_len),
            ("parent", self.parent.is_some() == opening.header.is_delta()),
        ];
        fields.iter().find(|(_, agrees)| !agrees).map(|(field, _)| *field)
    }
}
