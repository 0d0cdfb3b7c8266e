//! The reader: any file in, a checked image or an error out.
//!
//! Opening reads the opening frame and the end of the file, and checks everything there against the root. Index pages are
//! read and checked when they are asked for, each together with its part of the seek table, so memory does not grow with
//! the disk: the directory takes about 100 bytes in memory for every page (1 GiB of data), and one page is kept.
//!
//! Stored bytes come out of [`ImageReader::read_stored`] only when their hash is right. It is for the caller to compare
//! [`ImageReader::root`] with the root that was promised.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::directory::{TRAILER_LEN, Totals, Trailer, parse_directory};
use crate::error::{FormatError, Part, Result};
use crate::header::{Header, Opening, opening_len};
use crate::page::{Page, PageRef};
use crate::seek_table::{ENTRY_LEN, FOOTER_LEN, TABLE_HEADER_LEN};
use crate::{FrameEntry, Hash, Manifest, ReadAt, Root, StoredFrame, seek_table};

/// An image that was opened and, but for its pages and frames, checked.
pub struct ImageReader<R> {
    source: R,
    opening: Opening,
    manifest: Manifest,
    manifest_json: Vec<u8>,
    root: Root,
    totals: Totals,
    pages: Vec<PageRef>,
    seek_offset: u64,
    stored_len: u64,
    /// The page that was read last: callers walk the frames in order.
    last_page: Mutex<Option<Arc<Page>>>,
}

impl<R: ReadAt> ImageReader<R> {
    /// Opens an image and checks all of it but the index pages and the frames.
    ///
    /// # Errors
    /// [`FormatError::Read`] if the source fails; anything else says what is wrong with the file.
    pub fn open(source: R) -> Result<Self> {
        let stored_len =
            source.len().map_err(|error| FormatError::Read { offset: 0, len: 0, source: error })?;
        let too_short = FormatError::NotAnImage { reason: "it is too short" };
        let smallest = u64::from(crate::header::MIN_OPENING_LEN) + TRAILER_LEN as u64;
        if stored_len < smallest {
            return Err(too_short);
        }
        let (opening, opening_len, opening_hash) = read_opening(&source, stored_len)?;
        let delta = opening.header.is_delta();
        let (seek_entries, seek_offset) = read_seek_table_ends(&source, stored_len, delta)?;
        let trailer_offset = seek_offset.checked_sub(TRAILER_LEN as u64).ok_or(too_short)?;
        let trailer = Trailer::parse(&read_array(&source, trailer_offset)?, seek_offset)?;
        if trailer.seek_entries != seek_entries {
            return Err(seek_table_fault(
                seek_offset,
                "has another number of entries than the trailer says",
            ));
        }
        let (manifest_json, directory) = read_tail(&source, &trailer)?;
        let root = Root::of(&manifest_json, &directory);
        if root != trailer.root || trailer.image_id != opening.header.image_id {
            let fault = "manifest and directory do not match the root hash, or are another image's";
            return Err(FormatError::Damaged {
                part: Part::Tail,
                offset: trailer.tail_offset,
                fault,
            });
        }
        let manifest_offset = trailer.tail_offset + crate::directory::TAIL_HEADER_LEN as u64;
        let manifest: Manifest = serde_json::from_slice(&manifest_json)
            .map_err(|source| FormatError::Manifest { offset: manifest_offset, source })?;
        if let Some(field) = manifest.contradiction(&opening) {
            return Err(FormatError::ManifestMismatch { field });
        }
        let directory_offset = manifest_offset + trailer.manifest_len;
        let (totals, pages) =
            parse_directory(&directory, &opening, opening_len, opening_hash, trailer.tail_offset)
                .map_err(|fault| FormatError::Damaged {
                part: Part::Directory,
                offset: directory_offset,
                fault,
            })?;
        let reader = Self {
            source,
            opening,
            manifest,
            manifest_json,
            root,
            totals,
            pages,
            seek_offset,
            stored_len,
            last_page: Mutex::new(None),
        };
        reader.check_outer_seek_entries(opening_len, &trailer)?;
        Ok(reader)
    }

    /// The page of this number, read and checked.
    ///
    /// # Errors
    /// As [`ImageReader::open`]; a damaged entry is named by its frame.
    pub fn page(&self, index: usize) -> Result<Arc<Page>> {
        let page = self
            .pages
            .get(index)
            .ok_or(FormatError::NoSuchPage { index, pages: self.pages.len() })?;
        let mut last = self.last_page.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = last.as_ref().filter(|last| last.index() == page.index) {
            return Ok(Arc::clone(last));
        }
        let read = Arc::new(self.read_page(page)?);
        *last = Some(Arc::clone(&read));
        Ok(read)
    }

    fn read_page(&self, page: &PageRef) -> Result<Page> {
        let mut bytes = vec![0; page.len as usize];
        let is_right = |bytes: &[u8]| Page::parse(bytes, page, &self.opening).is_ok();
        read_checked(&self.source, &mut bytes, page.offset, &is_right)?;
        let parsed = Page::parse(&bytes, page, &self.opening)?;
        let mut expected: Vec<[u8; 8]> = parsed
            .frames()
            .iter()
            .map(|frame| seek_table::entry(frame.stored_len, frame.logical_len))
            .collect();
        expected.push(seek_table::entry(page.len, 0));
        // The opening frame is entry 0, and every page before this one has its own.
        let first = 1 + page.first_frame + u64::from(page.index);
        self.check_seek_entries(first, expected.as_flattened())?;
        Ok(parsed)
    }

    /// Reads and checks every index page, the whole seek table and the totals.
    ///
    /// # Errors
    /// As [`ImageReader::page`].
    pub fn check_seek_table(&self) -> Result<()> {
        let mut totals = Totals::default();
        for index in 0..self.pages.len() {
            self.page(index)?.frames().iter().for_each(|frame| totals.add(frame));
        }
        if totals != self.totals {
            let fault = "has other totals than its pages";
            return Err(FormatError::Damaged {
                part: Part::Directory,
                offset: self.tail_offset(),
                fault,
            });
        }
        Ok(())
    }

    /// The frames in disk order; pages are read as they are reached. Ends after the first error.
    pub fn frames(&self) -> Frames<'_, R> {
        Frames { reader: self, page: None, next_page: 0, next_frame: 0 }
    }

    /// The frame that holds this byte of the disk.
    ///
    /// # Errors
    /// [`FormatError::BeyondEnd`], or as [`ImageReader::page`].
    pub fn frame_at(&self, logical_offset: u64) -> Result<FrameEntry> {
        let beyond =
            FormatError::BeyondEnd { offset: logical_offset, disk_len: self.opening.disk_len };
        if logical_offset >= self.opening.disk_len {
            return Err(beyond);
        }
        let after = self.pages.partition_point(|page| page.logical_offset <= logical_offset);
        let page = self.page(after.saturating_sub(1))?;
        let after = page.frames().partition_point(|frame| frame.logical_offset <= logical_offset);
        after.checked_sub(1).and_then(|index| page.frames().get(index)).cloned().ok_or(beyond)
    }

    /// Reads a frame's stored bytes into `buf`, whose contents are replaced, and compares them with their hash.
    ///
    /// # Errors
    /// [`FormatError::Read`], or [`FormatError::Frame`] naming the frame; also for a reference, of which nothing is stored.
    pub fn read_stored<'a>(
        &self,
        entry: &'a FrameEntry,
        buf: &'a mut Vec<u8>,
    ) -> Result<StoredFrame<'a>> {
        buf.resize(entry.stored_len as usize, 0);
        let is_right = |bytes: &[u8]| Hash::of(bytes) == entry.stored_hash;
        read_checked(&self.source, buf, entry.stored_offset, &is_right)?;
        StoredFrame::check(entry, buf)
    }

    fn check_outer_seek_entries(&self, opening_len: u32, trailer: &Trailer) -> Result<()> {
        let frames = self.totals.data_frames + self.totals.hole_frames;
        let last = 1 + frames + self.pages.len() as u64;
        if u64::from(trailer.seek_entries) != last + 1 {
            return Err(seek_table_fault(
                self.seek_offset,
                "has another number of entries than there are frames",
            ));
        }
        self.check_seek_entries(0, &seek_table::entry(opening_len, 0))?;
        let tail_len =
            u32::try_from(trailer.tail_len()).expect("its parts were checked against their limits");
        self.check_seek_entries(last, &seek_table::entry(tail_len, 0))
    }

    fn check_seek_entries(&self, first: u64, expected: &[u8]) -> Result<()> {
        let mut found = vec![0; expected.len()];
        // `first` is below 2^28, and the table ends before the file does.
        let offset = self.seek_offset + TABLE_HEADER_LEN + first * ENTRY_LEN;
        read_checked(&self.source, &mut found, offset, &|bytes| bytes == expected)?;
        if found != expected {
            return Err(seek_table_fault(self.seek_offset, "does not agree with the index pages"));
        }
        Ok(())
    }
}

impl<R> ImageReader<R> {
    /// The hash that pins the image.
    #[must_use]
    pub fn root(&self) -> Root {
        self.root
    }

    /// What the opening frame says.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.opening.header
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest as it is stored, with fields that this version does not know.
    #[must_use]
    pub fn manifest_json(&self) -> &[u8] {
        &self.manifest_json
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

    /// The length of the image file.
    #[must_use]
    pub fn stored_len(&self) -> u64 {
        self.stored_len
    }

    /// What the image holds in all; compared with the pages by [`ImageReader::check_seek_table`].
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// How many index pages there are.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Where the image's bytes come from.
    #[must_use]
    pub fn source(&self) -> &R {
        &self.source
    }

    fn tail_offset(&self) -> u64 {
        self.pages.last().map_or(0, |page| page.offset + u64::from(page.len))
    }
}

impl<R> fmt::Debug for ImageReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("ImageReader");
        out.field("root", &self.root).field("opening", &self.opening).field("totals", &self.totals);
        out.finish_non_exhaustive()
    }
}

/// The frames of an image in disk order; made by [`ImageReader::frames`].
pub struct Frames<'a, R> {
    reader: &'a ImageReader<R>,
    page: Option<Arc<Page>>,
    next_page: usize,
    next_frame: usize,
}

impl<R: ReadAt> Iterator for Frames<'_, R> {
    type Item = Result<FrameEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(frame) =
                self.page.as_ref().and_then(|page| page.frames().get(self.next_frame))
            {
                self.next_frame += 1;
                return Some(Ok(frame.clone()));
            }
            if self.next_page >= self.reader.pages() {
                return None;
            }
            match self.reader.page(self.next_page) {
                Ok(page) => self.page = Some(page),
                Err(error) => {
                    self.page = None;
                    self.next_page = usize::MAX;
                    return Some(Err(error));
                }
            }
            self.next_page += 1;
            self.next_frame = 0;
        }
    }
}

impl<R> fmt::Debug for Frames<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames").field("next_page", &self.next_page).finish_non_exhaustive()
    }
}

pub(crate) fn read_opening(
    source: &impl ReadAt,
    stored_len: u64,
) -> Result<(Opening, u32, crate::Hash)> {
    let len = opening_len(&read_array(source, 0)?)?;
    if u64::from(len) > stored_len {
        return Err(FormatError::NotAnImage { reason: "it ends within its opening frame" });
    }
    let mut frame = vec![0; len as usize];
    read(source, &mut frame, 0)?;
    let (opening, hash) = Opening::parse(&frame)?;
    Ok((opening, len, hash))
}

/// Checks the seek table's footer and header; gives the number of its entries and where it starts.
fn read_seek_table_ends(source: &impl ReadAt, stored_len: u64, delta: bool) -> Result<(u32, u64)> {
    let unfinished = FormatError::NotAnImage {
        reason: "it has no seek table at its end, it was cut short or never finished",
    };
    let footer: [u8; FOOTER_LEN] = read_array(source, stored_len - FOOTER_LEN as u64)?;
    let Some(entries) = seek_table::parse_footer(&footer, delta) else { return Err(unfinished) };
    let Some(offset) = stored_len.checked_sub(seek_table::table_len(entries)) else {
        return Err(unfinished);
    };
    if read_array(source, offset)? != seek_table::header(entries) {
        return Err(seek_table_fault(offset, "does not start with its header"));
    }
    Ok((entries, offset))
}

/// Gives the manifest and the directory, unchecked but for the header before them.
fn read_tail(source: &impl ReadAt, trailer: &Trailer) -> Result<(Vec<u8>, Vec<u8>)> {
    let header = trailer.tail_header();
    if read_array(source, trailer.tail_offset)? != header {
        let fault = "does not start as its trailer says";
        return Err(FormatError::Damaged { part: Part::Tail, offset: trailer.tail_offset, fault });
    }
    let manifest_len =
        usize::try_from(trailer.manifest_len).expect("checked against its limit of 16 MiB");
    let directory_len =
        usize::try_from(trailer.directory_len).expect("checked against its limit of 28 MiB");
    let mut manifest = vec![0; manifest_len + directory_len];
    read(source, &mut manifest, trailer.tail_offset + header.len() as u64)?;
    let directory = manifest.split_off(manifest_len);
    Ok((manifest, directory))
}

fn seek_table_fault(offset: u64, fault: &'static str) -> FormatError {
    FormatError::Damaged { part: Part::SeekTable, offset, fault }
}

pub(crate) fn read(source: &impl ReadAt, buf: &mut [u8], offset: u64) -> Result<()> {
    let len = buf.len() as u64;
    source.read_exact_at(buf, offset).map_err(|source| FormatError::Read { offset, len, source })
}

fn read_checked(
    source: &impl ReadAt,
    buf: &mut [u8],
    offset: u64,
    is_right: &dyn Fn(&[u8]) -> bool,
) -> Result<()> {
    let len = buf.len() as u64;
    source.read_checked_at(buf, offset, is_right).map_err(|source| FormatError::Read {
        offset,
        len,
        source,
    })
}

fn read_array<const N: usize>(source: &impl ReadAt, offset: u64) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    read(source, &mut bytes, offset)?;
    Ok(bytes)
}
