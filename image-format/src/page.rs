//! Index pages: what is known of up to 1024 consecutive frames, 256 of them data.
//!
//! A page is a skippable frame behind the frames that it lists. It carries its own hash, which the directory repeats, and
//! the two hashes of every frame. A page that is read must fit exactly to what the directory says and to the frames
//! before it: no gap, no overlap, no unknown kind, no byte left over.

use uuid::Uuid;

use crate::error::{FormatError, Part, Result};
use crate::fields::{Fields, open_skippable, seal, unseal};
use crate::header::Opening;
use crate::hole::MAX_HOLE_STORED_LEN;
use crate::{
    FRAMES_PER_PAGE, Hash, MAX_FRAMES, MAX_FRAMES_PER_PAGE, MAX_HOLE_LEN, MAX_RUNS, MAX_SPAN_LEN,
    Run, RunKind, Runs, UNIT_LEN,
};

pub(crate) const PAGE_KIND: &[u8; 8] = b"IMPRINTP";

/// From the magic number to the first entry.
const FIXED_LEN: usize = 64;

/// An entry without its runs.
const ENTRY_FIXED_LEN: usize = 84;

/// The shortest page: one entry with one run.
pub(crate) const MIN_PAGE_LEN: u32 = 64 + 84 + 4 + 32;

/// The longest page.
pub(crate) const MAX_PAGE_LEN: u32 = 64 + MAX_FRAMES_PER_PAGE * (84 + 64 * 4) + 32;

const _: () = assert!(FIXED_LEN == 64 && ENTRY_FIXED_LEN == 84 && MAX_RUNS == 64);

/// The longest data frame: zstd adds less than 1/256 and 64 bytes to what it cannot compress.
pub(crate) const MAX_STORED_LEN: u32 = MAX_SPAN_LEN + MAX_SPAN_LEN / 256 + 64;

const KIND_DATA: u8 = 1;
const KIND_HOLE: u8 = 2;
const KIND_REFERENCE: u8 = 3;
const KIND_PREFIXED: u8 = 4;

const RUN_DATA: u32 = 1;
const RUN_ZERO: u32 = 2;
const RUN_FREE: u32 = 3;
const RUN_KIND_SHIFT: u32 = 30;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// A span of the disk, compressed.
    Data,
    /// A stretch of zeros.
    Hole,
}

/// What a data frame needs of the parent image's frame that covers the same bytes of the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FrameBase {
    /// Nothing: it is complete.
    #[default]
    None,
    /// All of its content: nothing is stored here.
    Reference,
    /// Its content as what zstd calls a prefix: matches reach into it.
    Prefix,
}

/// What the index says of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameEntry {
    /// The frame's number, from 0, counting data and hole frames.
    pub index: u64,
    /// What it holds.
    pub kind: FrameKind,
    /// What it needs of the parent image; only of data, and only in delta images.
    pub base: FrameBase,
    /// Where its content starts on the disk.
    pub logical_offset: u64,
    /// How long its content is.
    pub logical_len: u32,
    /// Where its stored bytes start in the file.
    pub stored_offset: u64,
    /// How many stored bytes it has.
    pub stored_len: u32,
    /// BLAKE3 of the stored bytes.
    pub stored_hash: Hash,
    /// BLAKE3 of the content, free bytes as zero; [`Hash::ZERO`] for a hole.
    pub content_hash: Hash,
    /// What is where in the content.
    pub runs: Runs,
}

impl FrameEntry {
    pub(crate) fn fault(&self, fault: &'static str) -> FormatError {
        let Self { index, logical_offset, stored_offset, .. } = *self;
        FormatError::Frame { index, logical_offset, stored_offset, fault }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(match (self.kind, self.base) {
            (FrameKind::Hole, _) => KIND_HOLE,
            (FrameKind::Data, FrameBase::None) => KIND_DATA,
            (FrameKind::Data, FrameBase::Reference) => KIND_REFERENCE,
            (FrameKind::Data, FrameBase::Prefix) => KIND_PREFIXED,
        });
        out.push(u8::try_from(self.runs.len()).expect("a list of runs has at most 64"));
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.logical_len.to_le_bytes());
        out.extend_from_slice(&self.logical_offset.to_le_bytes());
        out.extend_from_slice(&self.stored_len.to_le_bytes());
        out.extend_from_slice(self.stored_hash.as_bytes());
        out.extend_from_slice(self.content_hash.as_bytes());
        for run in &self.runs {
            let kind = match run.kind {
                RunKind::Data => RUN_DATA,
                RunKind::Zero => RUN_ZERO,
                RunKind::Free => RUN_FREE,
            };
            out.extend_from_slice(&(kind << RUN_KIND_SHIFT | run.units).to_le_bytes());
        }
    }

    fn parse(fields: &mut Fields<'_>, index: u64, stored_offset: u64) -> Option<Self> {
        let (kind, base) = match fields.u8()? {
            KIND_DATA => (FrameKind::Data, FrameBase::None),
            KIND_HOLE => (FrameKind::Hole, FrameBase::None),
            KIND_REFERENCE => (FrameKind::Data, FrameBase::Reference),
            KIND_PREFIXED => (FrameKind::Data, FrameBase::Prefix),
            _ => return None,
        };
        let run_count = usize::from(fields.u8()?);
        if run_count > MAX_RUNS || fields.u16()? != 0 {
            return None;
        }
        let logical_len = fields.u32()?;
        let logical_offset = fields.u64()?;
        let stored_len = fields.u32()?;
        let stored_hash = Hash(fields.array()?);
        let content_hash = Hash(fields.array()?);
        let runs = (0..run_count).map(|_| run(fields.u32()?)).collect::<Option<_>>()?;
        let runs = Runs::checked(runs)?;
        Some(Self {
            index,
            kind,
            base,
            logical_offset,
            logical_len,
            stored_offset,
            stored_len,
            stored_hash,
            content_hash,
            runs,
        })
    }

    /// What is wrong with this entry, were it to stand at this offset of this disk. The writer asks the same.
    pub(crate) fn flaw(&self, expected_offset: u64, opening: &Opening) -> Option<&'static str> {
        let (max_len, max_stored) = match self.kind {
            FrameKind::Data => (u64::from(opening.span_len), u64::from(MAX_STORED_LEN)),
            FrameKind::Hole => (MAX_HOLE_LEN, MAX_HOLE_STORED_LEN),
        };
        let len = u64::from(self.logical_len);
        let end = self.logical_offset.saturating_add(len);
        if self.logical_offset != expected_offset {
            return Some("does not start where the frame before it ends");
        }
        if !(1..=max_len).contains(&len) {
            return Some("is empty or longer than a frame of its kind may be");
        }
        if end > opening.disk_len {
            return Some("reaches beyond the end of the disk");
        }
        if !self.logical_len.is_multiple_of(UNIT_LEN) && end != opening.disk_len {
            return Some("is not a whole number of units and not the last");
        }
        if self.base != FrameBase::None
            && (self.kind != FrameKind::Data || !opening.header.is_delta())
        {
            return Some("needs a parent, which a frame of its kind or its image does not have");
        }
        let stored_ok = match self.base {
            FrameBase::Reference => self.stored_len == 0 && self.stored_hash == Hash::ZERO,
            _ => (1..=max_stored).contains(&u64::from(self.stored_len)),
        };
        if !stored_ok {
            return Some("has an impossible number of stored bytes");
        }
        if !self.runs.cover(self.logical_len) {
            return Some("has runs that do not cover it");
        }
        let is_hole = self.kind == FrameKind::Hole;
        if is_hole
            && (self.content_hash != Hash::ZERO
                || self.runs.iter().any(|run| run.kind == RunKind::Data))
        {
            return Some("is a hole with data in it");
        }
        None
    }
}

fn run(word: u32) -> Option<Run> {
    let kind = match word >> RUN_KIND_SHIFT {
        RUN_DATA => RunKind::Data,
        RUN_ZERO => RunKind::Zero,
        RUN_FREE => RunKind::Free,
        _ => return None,
    };
    Some(Run { kind, units: word & ((1 << RUN_KIND_SHIFT) - 1) })
}

/// An index page that has been read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    index: u32,
    frames: Vec<FrameEntry>,
}

impl Page {
    /// The page's number, from 0.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The frames that it lists, in order.
    #[must_use]
    pub fn frames(&self) -> &[FrameEntry] {
        &self.frames
    }

    /// Takes a page apart that stands at `offset` and that no directory describes yet; gives what a directory would say.
    pub(crate) fn parse_alone(bytes: &[u8], offset: u64, opening: &Opening) -> Option<PageRef> {
        let (hash, mut fields) = unseal(bytes, PAGE_KIND).ok()?;
        let (index, frames) = (fields.u32()?, fields.u32()?);
        let (first_frame, logical_offset) = (fields.u64()?, fields.u64()?);
        let stored_offset = fields.u64()?;
        let image_id = Uuid::from_bytes(fields.array()?);
        let ours = image_id == opening.header.image_id
            && (1..=MAX_FRAMES_PER_PAGE).contains(&frames)
            && first_frame <= u64::from(MAX_FRAMES)
            && logical_offset <= opening.disk_len;
        if !ours {
            return None;
        }
        let mut logical_len = 0_u64;
        for number in 0..u64::from(frames) {
            let frame = FrameEntry::parse(&mut fields, first_frame + number, stored_offset)?;
            logical_len += u64::from(frame.logical_len);
        }
        let len = u32::try_from(bytes.len()).ok()?;
        let page = PageRef {
            index,
            first_frame,
            frames,
            logical_offset,
            logical_len,
            stored_offset,
            offset,
            len,
            hash,
        };
        // What a page has to be is said there; it must hold whoever describes it.
        Self::parse(bytes, &page, opening).is_ok().then_some(page)
    }

    /// Takes a page apart that the directory describes as `page`.
    pub(crate) fn parse(bytes: &[u8], page: &PageRef, opening: &Opening) -> Result<Self> {
        let damaged = |fault| FormatError::Damaged {
            part: Part::Page(page.index),
            offset: page.offset,
            fault,
        };
        let (hash, mut fields) = unseal(bytes, PAGE_KIND).map_err(damaged)?;
        if hash != page.hash {
            return Err(damaged("is not the page whose hash the directory holds"));
        }
        let place =
            (|| Some((fields.u32()?, fields.u32()?, fields.u64()?, fields.u64()?, fields.u64()?)))(
            );
        let expected =
            (page.index, page.frames, page.first_frame, page.logical_offset, page.stored_offset);
        if place != Some(expected)
            || fields.array().map(Uuid::from_bytes) != Some(opening.header.image_id)
        {
            return Err(damaged("is the page of another place or another image"));
        }
        let mut frames = Vec::with_capacity(page.frames.min(MAX_FRAMES_PER_PAGE) as usize);
        let (mut logical_offset, mut stored_offset) = (page.logical_offset, page.stored_offset);
        let mut data_frames = 0_u32;
        for number in 0..u64::from(page.frames) {
            let frame = FrameEntry::parse(&mut fields, page.first_frame + number, stored_offset)
                .ok_or(damaged("has an entry that cannot be read"))?;
            if let Some(flaw) = frame.flaw(logical_offset, opening) {
                return Err(frame.fault(flaw));
            }
            data_frames += u32::from(frame.kind == FrameKind::Data);
            logical_offset += u64::from(frame.logical_len);
            stored_offset = stored_offset
                .checked_add(u64::from(frame.stored_len))
                .ok_or_else(|| frame.fault("ends beyond any file"))?;
            frames.push(frame);
        }
        if !fields.rest().is_empty() || data_frames > FRAMES_PER_PAGE {
            return Err(damaged("has more in it than it may"));
        }
        if logical_offset - page.logical_offset != page.logical_len || stored_offset != page.offset
        {
            return Err(damaged("lists frames that do not reach as far as the directory says"));
        }
        Ok(Self { index: page.index, frames })
    }
}

/// What the directory says of a page, and where that puts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PageRef {
    pub(crate) index: u32,
    /// The number of its first frame.
    pub(crate) first_frame: u64,
    pub(crate) frames: u32,
    pub(crate) logical_offset: u64,
    pub(crate) logical_len: u64,
    /// Where its first frame starts in the file.
    pub(crate) stored_offset: u64,
    /// Where the page itself starts in the file, behind its frames.
    pub(crate) offset: u64,
    pub(crate) len: u32,
    pub(crate) hash: Hash,
}

/// A page in the making.
#[derive(Debug, Default)]
pub(crate) struct PageBuilder {
    bytes: Vec<u8>,
    frames: u32,
    data_frames: u32,
    logical_len: u64,
}

impl PageBuilder {
    /// Takes a frame in. The first one decides where the page begins.
    pub(crate) fn push(&mut self, page_index: u32, frame: &FrameEntry, image_id: Uuid) {
        if self.frames == 0 {
            open_skippable(&mut self.bytes, PAGE_KIND);
            self.bytes.extend_from_slice(&page_index.to_le_bytes());
            self.bytes.extend_from_slice(&[0; 4]);
            self.bytes.extend_from_slice(&frame.index.to_le_bytes());
            self.bytes.extend_from_slice(&frame.logical_offset.to_le_bytes());
            self.bytes.extend_from_slice(&frame.stored_offset.to_le_bytes());
            self.bytes.extend_from_slice(image_id.as_bytes());
        }
        frame.encode(&mut self.bytes);
        self.frames += 1;
        self.data_frames += u32::from(frame.kind == FrameKind::Data);
        self.logical_len += u64::from(frame.logical_len);
    }

    pub(crate) fn is_full(&self) -> bool {
        self.data_frames >= FRAMES_PER_PAGE || self.frames >= MAX_FRAMES_PER_PAGE
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames == 0
    }

    /// Completes the page, which will stand at `offset`; its bytes stay until the next page is begun.
    pub(crate) fn finish(&mut self, offset: u64) -> (&[u8], DirectoryEntry) {
        self.bytes[20..24].copy_from_slice(&self.frames.to_le_bytes());
        let hash = seal(&mut self.bytes);
        let len = u32::try_from(self.bytes.len()).expect("a page is at most 340 KiB");
        let entry = DirectoryEntry {
            offset,
            len,
            frames: self.frames,
            logical_len: self.logical_len,
            hash,
        };
        self.frames = 0;
        self.data_frames = 0;
        self.logical_len = 0;
        (&self.bytes, entry)
    }
}

/// What the directory stores of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DirectoryEntry {
    pub(crate) offset: u64,
    pub(crate) len: u32,
    pub(crate) frames: u32,
    pub(crate) logical_len: u64,
    pub(crate) hash: Hash,
}
