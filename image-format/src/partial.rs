//! The beginning of an image whose writer was cut off, and where a writer can go on behind it.
//!
//! There is no directory yet, so the last index page is looked for from the end of the file, and from there each page leads to the one
//! before it: a page says where its first frame starts, and that is where the page before it ends. Every page carries its own hash,
//! the image's id and its place, so bytes that only look like a page (of an image on the imaged disk, say) are passed over. What is
//! behind the last page is no part of a [`Partial`]: it may be anything after a power cut.
//!
//! That the stored bytes of the frames are there is for the caller to check ([`Partial::read_stored`]), and that the disk still has the same
//! content, too.

use std::fmt;

use crate::directory::Totals;
use crate::error::{FormatError, Result};
use crate::fields::SKIPPABLE_MAGIC;
use crate::header::{Header, Opening};
use crate::page::{DirectoryEntry, MAX_PAGE_LEN, MIN_PAGE_LEN, PAGE_KIND, Page, PageRef};
use crate::reader::{read, read_opening};
use crate::{FrameEntry, Hash, MAX_FRAMES, MAX_PAGES, ReadAt, StoredFrame, seek_table};

/// How much of the file is looked through at a time.
const STEP_LEN: u64 = 4 << 20;
/// So many bytes that look like a page and are none are enough: the file was made to keep its reader busy.
const MAX_DECOYS: u32 = 1 << 16;

/// A cut-off image, as far as its index pages reach.
pub struct Partial<R> {
    source: R,
    opening: Opening,
    opening_len: u32,
    opening_hash: Hash,
    pages: Vec<PageRef>,
}

impl<R: ReadAt> Partial<R> {
    /// Finds out how far a cut-off image reaches.
    ///
    /// # Errors
    /// [`FormatError::Read`] if the source fails; anything else if the file does not begin as an image does. One without a complete page is
    /// no error: nothing of it can be used.
    pub fn open(source: R) -> Result<Self> {
        let len =
            source.len().map_err(|error| FormatError::Read { offset: 0, len: 0, source: error })?;
        if len < u64::from(crate::header::MIN_OPENING_LEN) {
            return Err(FormatError::NotAnImage { reason: "it is too short" });
        }
        let (opening, opening_len, opening_hash) = read_opening(&source, len)?;
        let mut partial = Self { source, opening, opening_len, opening_hash, pages: Vec::new() };
        partial.pages = partial.find_pages(len)?;
        Ok(partial)
    }

    /// Walks the chain of pages from the end; where it breaks, what is behind the break does not count.
    fn find_pages(&self, len: u64) -> Result<Vec<PageRef>> {
        let mut decoys = 0;
        let mut end = len;
        let mut found: Vec<PageRef> = Vec::new();
        loop {
            if let Some(first) = found.last()
                && first.stored_offset == u64::from(self.opening_len)
            {
                if (first.index, first.first_frame, first.logical_offset) == (0, 0, 0) {
                    found.reverse();
                    return Ok(found);
                }
                return Ok(Vec::new());
            }
            let page = match found.last() {
                Some(next) => self.page_before(next, &mut decoys)?,
                None => self.last_page(end, &mut decoys)?,
            };
            match (page, found.last()) {
                (Some(page), _) => found.push(page),
                (None, Some(next)) => {
                    end = next.stored_offset;
                    found.clear();
                }
                (None, None) => return Ok(Vec::new()),
            }
        }
    }

    /// The last page that ends at or before `end`.
    fn last_page(&self, end: u64, decoys: &mut u32) -> Result<Option<PageRef>> {
        let start = u64::from(self.opening_len);
        let mut top = end;
        while top > start {
            let bottom = top.saturating_sub(STEP_LEN).max(start);
            // Pages that start in this step may reach beyond it.
            let until = top.saturating_add(u64::from(MAX_PAGE_LEN)).min(end);
            let bytes = self.read(bottom, until)?;
            let starts = usize::try_from(top - bottom).expect("at most a step");
            for at in page_starts(&bytes, starts) {
                if let Some(page) = self.page_at(&bytes[at..], bottom + at as u64, decoys)? {
                    return Ok(Some(page));
                }
            }
            top = bottom;
        }
        Ok(None)
    }

    /// The page that ends where the frames of `next` start.
    fn page_before(&self, next: &PageRef, decoys: &mut u32) -> Result<Option<PageRef>> {
        let end = next.stored_offset;
        let bottom = end.saturating_sub(u64::from(MAX_PAGE_LEN)).max(u64::from(self.opening_len));
        let bytes = self.read(bottom, end)?;
        for at in page_starts(&bytes, bytes.len()) {
            if page_len(&bytes[at..]) != Some(bytes.len() - at) {
                continue;
            }
            let Some(page) = self.page_at(&bytes[at..], bottom + at as u64, decoys)? else {
                continue;
            };
            let leads_on = page.index.checked_add(1) == Some(next.index)
                && page.first_frame + u64::from(page.frames) == next.first_frame
                && page.logical_offset + page.logical_len == next.logical_offset;
            return Ok(leads_on.then_some(page));
        }
        Ok(None)
    }

    /// The page at the start of these bytes, which are those at `offset` of the file.
    fn page_at(&self, bytes: &[u8], offset: u64, decoys: &mut u32) -> Result<Option<PageRef>> {
        let Some(len) = page_len(bytes) else { return Ok(None) };
        let Some(bytes) = bytes.get(..len) else { return Ok(None) };
        let page = Page::parse_alone(bytes, offset, &self.opening);
        if page.is_none() {
            *decoys += 1;
            if *decoys >= MAX_DECOYS {
                let reason = "it has too many parts that look like an index page and are none";
                return Err(FormatError::NotAnImage { reason });
            }
        }
        let possible = |page: &PageRef| {
            page.index < MAX_PAGES && page.stored_offset >= u64::from(self.opening_len)
        };
        Ok(page.filter(possible))
    }

    fn read(&self, start: u64, end: u64) -> Result<Vec<u8>> {
        let len = usize::try_from(end - start).expect("a step and a page");
        let mut bytes = vec![0; len];
        read(&self.source, &mut bytes, start)?;
        Ok(bytes)
    }

    /// The frames of a page, read and checked.
    ///
    /// # Errors
    /// As [`crate::ImageReader::page`].
    pub fn page(&self, index: usize) -> Result<Page> {
        let pages = self.pages.len();
        let page = self.pages.get(index).ok_or(FormatError::NoSuchPage { index, pages })?;
        let bytes = self.read(page.offset, page.offset + u64::from(page.len))?;
        Page::parse(&bytes, page, &self.opening)
    }

    /// Reads a frame's stored bytes into `buf`, whose contents are replaced, and compares them with their hash.
    ///
    /// # Errors
    /// As [`crate::ImageReader::read_stored`].
    pub fn read_stored<'a>(
        &self,
        entry: &'a FrameEntry,
        buf: &'a mut Vec<u8>,
    ) -> Result<StoredFrame<'a>> {
        buf.resize(entry.stored_len as usize, 0);
        read(&self.source, buf, entry.stored_offset)?;
        StoredFrame::check(entry, buf)
    }

    /// Reads all pages again, for a writer that goes on behind the last one.
    ///
    /// # Errors
    /// As [`Partial::page`].
    pub fn into_beginning(self) -> Result<Beginning> {
        let mut totals = Totals::default();
        let mut seek_entries = vec![seek_table::entry(self.opening_len, 0)];
        let mut pages = Vec::with_capacity(self.pages.len());
        for (index, page) in self.pages.iter().enumerate() {
            for frame in self.page(index)?.frames() {
                totals.add(frame);
                seek_entries.push(seek_table::entry(frame.stored_len, frame.logical_len));
            }
            seek_entries.push(seek_table::entry(page.len, 0));
            if seek_entries.len() > MAX_FRAMES as usize {
                return Err(FormatError::TooMany { what: "frames", limit: MAX_FRAMES });
            }
            let PageRef { offset, len, frames, logical_len, hash, .. } = *page;
            pages.push(DirectoryEntry { offset, len, frames, logical_len, hash });
        }
        let (written, covered) = (self.stored_len(), self.covered());
        let Self { opening, opening_len, opening_hash, .. } = self;
        Ok(Beginning {
            opening,
            opening_len,
            opening_hash,
            written,
            covered,
            totals,
            pages,
            seek_entries,
        })
    }
}

impl<R> Partial<R> {
    /// What the opening frame says.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.opening.header
    }

    /// The length of the imaged disk.
    #[must_use]
    pub fn disk_len(&self) -> u64 {
        self.opening.disk_len
    }

    /// The span that a data frame covers at most.
    #[must_use]
    pub fn span_len(&self) -> u32 {
        self.opening.span_len
    }

    /// How many complete pages there are.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// How much of the disk the pages cover.
    #[must_use]
    pub fn covered(&self) -> u64 {
        self.pages.last().map_or(0, |page| page.logical_offset + page.logical_len)
    }

    /// The end of the last page, where the next byte goes.
    #[must_use]
    pub fn stored_len(&self) -> u64 {
        self.pages
            .last()
            .map_or(u64::from(self.opening_len), |page| page.offset + u64::from(page.len))
    }

    /// The first page that any of the last `bytes` of the file up to [`Partial::stored_len`] belong to.
    #[must_use]
    pub fn page_of_last(&self, bytes: u64) -> usize {
        let from = self.stored_len().saturating_sub(bytes);
        self.pages.partition_point(|page| page.offset + u64::from(page.len) <= from)
    }

    /// Keeps the first pages only.
    pub fn cut(&mut self, pages: usize) {
        self.pages.truncate(pages);
    }
}

impl<R> fmt::Debug for Partial<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Partial");
        out.field("opening", &self.opening).field("pages", &self.pages.len());
        out.finish_non_exhaustive()
    }
}

/// What a writer has to know of the bytes that are there already: [`crate::ImageWriter::resume`].
#[derive(Debug)]
pub struct Beginning {
    pub(crate) opening: Opening,
    pub(crate) opening_len: u32,
    pub(crate) opening_hash: Hash,
    pub(crate) written: u64,
    pub(crate) covered: u64,
    pub(crate) totals: Totals,
    pub(crate) pages: Vec<DirectoryEntry>,
    pub(crate) seek_entries: Vec<[u8; 8]>,
}

impl Beginning {
    /// The end of its last page: the writer's first byte goes there.
    #[must_use]
    pub fn stored_len(&self) -> u64 {
        self.written
    }

    /// How much of the disk it covers.
    #[must_use]
    pub fn covered(&self) -> u64 {
        self.covered
    }

    /// What the opening frame says.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.opening.header
    }
}

/// Where pages may start in the first `starts` of these bytes, the last one first.
fn page_starts(bytes: &[u8], starts: usize) -> impl Iterator<Item = usize> {
    (0..starts).rev().filter(|&at| page_len(&bytes[at..]).is_some())
}

/// The length of the page that these bytes may begin with.
fn page_len(bytes: &[u8]) -> Option<usize> {
    let (head, _) = bytes.split_first_chunk::<16>()?;
    if head[8..] != *PAGE_KIND || head[..4] != SKIPPABLE_MAGIC.to_le_bytes() {
        return None;
    }
    let payload = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    let len = payload.checked_add(8).filter(|len| (MIN_PAGE_LEN..=MAX_PAGE_LEN).contains(len))?;
    usize::try_from(len).ok()
}
