//! A foreign image as a [`DiskImage`]: what the first pass found, and the second pass on demand.
//!
//! Content comes out only when its hash is that of the first pass. What can be read anywhere is read by each thread for itself. A
//! stream has one decoder for all threads: whoever asks moves it on, and spans that it passes on the way wait for those who
//! will ask for them. Asked for what has gone by, it starts again from the beginning, which is slow and right.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use agent_api::ErrorKind;
use image_format::{FrameEntry, FrameKind, Hash, Header, Manifest, Root};

use super::spans::{Body, Limit, SPAN_LEN, Spans};
use super::survey::Survey;
use super::walk::RandomDisk;
use super::{Access, ForeignDisk};
use crate::capture::cores;
use crate::error::{Error, Result};
use crate::image::{DiskImage, Fetch};
use crate::verify;

/// With a larger window, one thread works on what comes out of a stream: two, with what they hold, would take more memory than is
/// promised.
const MOST_WINDOW_BESIDE_TWO: u64 = 64 << 20;

/// A foreign image that was surveyed.
pub struct ForeignImage {
    disk: ForeignDisk,
    survey: Survey,
    manifest: Manifest,
    decoder: Mutex<Decoder>,
    /// The last span that a decoder is asked for.
    last_decoded: Option<u64>,
    /// What of the source's reads was reported already.
    reported: AtomicU64,
}

impl std::fmt::Debug for ForeignImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ForeignImage").field("disk", &self.disk).finish_non_exhaustive()
    }
}

/// The decoder that all threads share, and what it has passed.
#[derive(Debug, Default)]
struct Decoder {
    spans: Option<Spans>,
    passed: VecDeque<(u64, Vec<u8>)>,
}

impl Decoder {
    /// Takes a span's buffer for use again.
    fn recycle(&mut self, bytes: Vec<u8>) {
        if let Some(spans) = &mut self.spans {
            spans.recycle(bytes);
        }
    }
}

impl ForeignImage {
    /// Puts a disk, its survey and its manifest together.
    pub(super) fn new(disk: ForeignDisk, survey: Survey, manifest: Manifest) -> Self {
        let reported = AtomicU64::new(disk.fetched());
        let last_decoded = survey.last_data_not_kept();
        Self { disk, survey, manifest, decoder: Mutex::default(), last_decoded, reported }
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self) -> &ForeignDisk {
        &self.disk
    }

    /// What the first pass found.
    #[must_use]
    pub fn survey(&self) -> &Survey {
        &self.survey
    }

    /// The manifest if the table is not to be used, with the reason.
    pub(super) fn without_table(&self, reason: String) -> Manifest {
        let mut manifest = self.manifest.clone();
        manifest.disk.size_bytes = self.survey.disk_len;
        manifest.disk.logical_sector_bytes = self.survey.gpt_sector_bytes.unwrap_or(512);
        manifest.table.warnings.push(reason);
        manifest
    }

    pub(super) fn set_manifest(&mut self, manifest: Manifest) {
        self.manifest = manifest;
    }

    /// Fills `content` with that of the data frame, and checks it.
    fn fill(&self, entry: &FrameEntry, content: &mut [u8]) -> Result<()> {
        let offset = entry.logical_offset;
        match (self.survey.kept.span(offset), &self.disk.access) {
            (Some(kept), _) if kept.len() == content.len() => content.copy_from_slice(kept),
            (_, Access::Random(disk)) => read_span(&**disk, offset, content)?,
            (_, Access::Stream(_)) => {
                let mut decoder = self.decoder.lock().unwrap_or_else(PoisonError::into_inner);
                let bytes = self.decode_to(&mut decoder, offset)?;
                if bytes.len() != content.len() {
                    return Err(changed(offset));
                }
                content.copy_from_slice(&bytes);
                // Within the lock: the next reader's span comes into the same buffer.
                decoder.recycle(bytes);
            }
        }
        if Hash::of(content) != entry.content_hash {
            return Err(changed(offset));
        }
        Ok(())
    }

    /// Checks the content of the data frame as it comes out of the stream, without a copy of it.
    fn check_decoded(&self, entry: &FrameEntry) -> Result<()> {
        let offset = entry.logical_offset;
        let mut decoder = self.decoder.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = self.decode_to(&mut decoder, offset)?;
        drop(decoder);
        if bytes.len() as u64 != u64::from(entry.logical_len)
            || Hash::of(&bytes) != entry.content_hash
        {
            return Err(changed(offset));
        }
        self.decoder.lock().unwrap_or_else(PoisonError::into_inner).recycle(bytes);
        Ok(())
    }

    /// Moves the decoder on to this span and takes it out.
    fn decode_to(&self, decoder: &mut Decoder, offset: u64) -> Result<Vec<u8>> {
        if let Some(place) = decoder.passed.iter().position(|(at, _)| *at == offset) {
            return Ok(decoder.passed.remove(place).expect("it is there").1);
        }
        if decoder.spans.as_ref().is_none_or(|spans| spans.at() > offset) {
            decoder.spans = None;
            decoder.spans = Some(self.restart()?);
        }
        let spans = decoder.spans.as_mut().expect("it was just made");
        loop {
            // A decoder that has failed or ended is not used again.
            let span = match spans.next_span() {
                Ok(Some(span)) => span,
                Ok(None) => {
                    decoder.spans = None;
                    return Err(changed(offset));
                }
                Err(error) => {
                    decoder.spans = None;
                    return Err(error);
                }
            };
            let Body::Bytes { bytes, .. } = span.body else { continue };
            if span.offset == offset {
                if self.last_decoded == Some(offset) {
                    // Nothing more is asked for, and a decoder's window may be large.
                    decoder.spans = None;
                }
                return Ok(bytes);
            }
            if span.offset > offset {
                return Err(changed(offset));
            }
            // Nobody asks the decoder for what was kept.
            if self.survey.is_data(span.offset) && self.survey.kept.span(span.offset).is_none() {
                decoder.passed.push_back((span.offset, bytes));
                // Frames are handed out in order: no more of them than there are other readers can have been overtaken.
                if decoder.passed.len() >= self.readers()
                    && let Some((_, bytes)) = decoder.passed.pop_front()
                {
                    spans.recycle(bytes);
                }
            } else {
                spans.recycle(bytes);
            }
        }
    }

    fn restart(&self) -> Result<Spans> {
        let limit = Limit {
            bytes: self.survey.disk_len,
            reason: "it held less when it was read before: it changes while it is being read"
                .into(),
        };
        Ok(Spans::new(self.disk.walk()?, limit))
    }

    /// What was fetched since somebody last asked.
    fn fetched(&self) -> u64 {
        let now = self.disk.fetched();
        now.saturating_sub(self.reported.fetch_max(now, Ordering::Relaxed))
    }
}

/// Reads a span of a disk, zeros where it has none.
fn read_span(disk: &dyn RandomDisk, offset: u64, content: &mut [u8]) -> Result<()> {
    let len = content.len() as u64;
    if offset.checked_add(len).is_none_or(|end| end > disk.len()) {
        return Err(changed(offset));
    }
    Ok(disk.read(offset, content)?)
}

fn changed(offset: u64) -> Error {
    Error::new(
        ErrorKind::ImageCorrupt,
        format!(
            "the image gives other bytes for byte {offset} of the disk than when it was checked before: it changes while it \
             is being read, or this machine's memory is defective"
        ),
    )
}

impl DiskImage for ForeignImage {
    fn root(&self) -> Root {
        self.survey.root
    }

    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn disk_len(&self) -> u64 {
        self.survey.disk_len
    }

    fn span_len(&self) -> u32 {
        u32::try_from(SPAN_LEN).expect("4 MiB")
    }

    fn stored_len(&self) -> u64 {
        self.disk.stored_len()
    }

    /// All was checked by the survey.
    fn check_index(&self) -> Result<()> {
        Ok(())
    }

    fn frames(&self) -> Box<dyn Iterator<Item = Result<FrameEntry>> + Send + '_> {
        Box::new((0..self.survey.frames()).filter_map(|index| self.survey.entry(index)).map(Ok))
    }

    fn frame_at(&self, logical_offset: u64) -> Result<FrameEntry> {
        self.survey.index_at(logical_offset).and_then(|index| self.survey.entry(index)).ok_or_else(
            || {
                Error::new(
                    ErrorKind::ImageCorrupt,
                    format!(
                        "byte {logical_offset} was asked for, and the image's disk has {}",
                        self.survey.disk_len
                    ),
                )
            },
        )
    }

    /// A stream comes out of one decoder, whose window may be most of the memory that there is: few spans may wait beside it.
    fn readers(&self) -> usize {
        match self.disk.access {
            Access::Random(_) => verify::readers(),
            Access::Stream(_) if self.disk.window_bytes > MOST_WINDOW_BESIDE_TWO => 1,
            Access::Stream(_) => cores().max(2),
        }
    }

    fn fetcher(&self) -> Result<Box<dyn Fetch + '_>> {
        Ok(Box::new(Fetcher(self)))
    }
}

/// The manifest until it is known what is on the disk.
pub(super) fn bare_manifest(header: &Header) -> Manifest {
    Manifest {
        format_version: image_format::VERSION,
        image_id: header.image_id,
        created: String::new(),
        producer: header.producer.clone(),
        name: None,
        parent: None,
        description: None,
        disk: image_format::Disk::default(),
        span_len: image_format::DEFAULT_SPAN_LEN,
        compression: image_format::Compression::zstd(0),
        table: image_format::PartitionTable::default(),
        volumes: Vec::new(),
        bad_sectors: Vec::new(),
    }
}

struct Fetcher<'a>(&'a ForeignImage);

impl Fetch for Fetcher<'_> {
    /// The survey has checked every frame.
    fn check(&mut self, _: &FrameEntry) -> Result<u64> {
        Ok(self.0.fetched())
    }

    fn fetch(&mut self, entry: &FrameEntry, content: &mut [u8]) -> Result<u64> {
        if entry.kind == FrameKind::Data {
            self.0.fill(entry, content)?;
        }
        Ok(self.0.fetched())
    }

    fn check_deeply(&mut self, entry: &FrameEntry, content: &mut Vec<u8>) -> Result<u64> {
        if entry.kind == FrameKind::Data {
            if let Access::Stream(_) = self.0.disk.access
                && self.0.survey.kept.span(entry.logical_offset).is_none()
            {
                self.0.check_decoded(entry)?;
                return Ok(self.0.fetched());
            }
            content.resize(usize::try_from(entry.logical_len).expect("a frame is a few MiB"), 0);
            self.0.fill(entry, content)?;
        }
        Ok(self.0.fetched())
    }
}
