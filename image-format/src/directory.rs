//! The tail: manifest, directory of index pages, and the trailer by which both are found from the end of the file.
//!
//! The directory holds the hash of the opening frame and of every page; pages hold the hashes of the frames. So the hash
//! of manifest and directory, the root, pins every byte that matters. What follows from other fields (where a page's
//! frames start, how many frames came before) is not stored but added up.

use uuid::Uuid;

use crate::error::{FormatError, Part, Result};
use crate::fields::{Fields, SKIPPABLE_MAGIC, open_skippable, set_skippable_len};
use crate::header::{Opening, check_version};
use crate::page::{DirectoryEntry, MAX_PAGE_LEN, PageRef};
use crate::{Hash, MAX_FRAMES, MAX_FRAMES_PER_PAGE, MAX_MANIFEST_LEN, MAX_PAGES, Root, VERSION};

pub(crate) const TAIL_KIND: &[u8; 8] = b"IMPRINTT";
const DIRECTORY_KIND: &[u8; 8] = b"IMPRINTD";
const TRAILER_KIND: &[u8; 8] = b"IMPRINTE";

/// From the tail's magic number to the manifest.
pub(crate) const TAIL_HEADER_LEN: usize = 32;

/// The trailer.
pub(crate) const TRAILER_LEN: usize = 120;

const DIRECTORY_FIXED_LEN: u64 = 120;
const DIRECTORY_ENTRY_LEN: u64 = 56;

/// The longest directory.
pub(crate) const MAX_DIRECTORY_LEN: u64 =
    DIRECTORY_FIXED_LEN + MAX_PAGES as u64 * DIRECTORY_ENTRY_LEN;

/// What an image holds in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
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

impl Totals {
    pub(crate) fn add(&mut self, frame: &crate::FrameEntry) {
        match frame.kind {
            crate::FrameKind::Data => self.data_frames += 1,
            crate::FrameKind::Hole => self.hole_frames += 1,
        }
        for (kind, range) in frame.runs.byte_ranges(frame.logical_len) {
            let bytes = match kind {
                crate::RunKind::Data => &mut self.data_bytes,
                crate::RunKind::Zero => &mut self.zero_bytes,
                crate::RunKind::Free => &mut self.free_bytes,
            };
            *bytes += range.end - range.start;
        }
    }
}

/// Lays out the directory.
pub(crate) fn encode_directory(
    opening: &Opening,
    opening_len: u32,
    opening_hash: Hash,
    totals: &Totals,
    pages: &[DirectoryEntry],
) -> Vec<u8> {
    let mut out = Vec::with_capacity(120 + pages.len() * 56);
    out.extend_from_slice(DIRECTORY_KIND);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(
        &u32::try_from(pages.len()).expect("the writer keeps to MAX_PAGES").to_le_bytes(),
    );
    out.extend_from_slice(&opening_len.to_le_bytes());
    out.extend_from_slice(&opening.span_len.to_le_bytes());
    out.extend_from_slice(&opening.disk_len.to_le_bytes());
    out.extend_from_slice(opening.header.image_id.as_bytes());
    out.extend_from_slice(opening_hash.as_bytes());
    let Totals { data_frames, hole_frames, data_bytes, zero_bytes, free_bytes } = *totals;
    for total in [data_frames, hole_frames, data_bytes, zero_bytes, free_bytes] {
        out.extend_from_slice(&total.to_le_bytes());
    }
    for page in pages {
        out.extend_from_slice(&page.offset.to_le_bytes());
        out.extend_from_slice(&page.len.to_le_bytes());
        out.extend_from_slice(&page.frames.to_le_bytes());
        out.extend_from_slice(&page.logical_len.to_le_bytes());
        out.extend_from_slice(page.hash.as_bytes());
    }
    out
}

/// Takes the directory apart, whose pages must fill the file from the opening frame to the tail and the disk from end to
/// end.
pub(crate) fn parse_directory(
    bytes: &[u8],
    opening: &Opening,
    opening_len: u32,
    opening_hash: Hash,
    tail_offset: u64,
) -> std::result::Result<(Totals, Vec<PageRef>), &'static str> {
    const SHORT: &str = "is shorter than its fields";
    let mut fields = Fields::new(bytes);
    if fields.array() != Some(*DIRECTORY_KIND) || fields.u32() != Some(VERSION) {
        return Err("is not a directory of this version");
    }
    let page_count = fields.u32().ok_or(SHORT)?;
    let expected =
        (opening_len, opening.span_len, opening.disk_len, opening.header.image_id, opening_hash);
    let mut found = || {
        let lens = (fields.u32()?, fields.u32()?, fields.u64()?);
        Some((lens.0, lens.1, lens.2, Uuid::from_bytes(fields.array()?), Hash(fields.array()?)))
    };
    if found() != Some(expected) {
        return Err("belongs to another opening frame");
    }
    let mut total = || fields.u64().ok_or(SHORT);
    let totals = Totals {
        data_frames: total()?,
        hole_frames: total()?,
        data_bytes: total()?,
        zero_bytes: total()?,
        free_bytes: total()?,
    };
    if page_count > MAX_PAGES
        || fields.rest().len() as u64 != u64::from(page_count) * DIRECTORY_ENTRY_LEN
    {
        return Err("is not as long as its number of pages needs");
    }
    let mut pages = Vec::with_capacity(page_count as usize);
    let (mut first_frame, mut logical_offset, mut stored_offset) =
        (0_u64, 0_u64, u64::from(opening_len));
    for index in 0..page_count {
        let entry = directory_entry(&mut fields).ok_or(SHORT)?;
        let frames_ok = (1..=MAX_FRAMES_PER_PAGE).contains(&entry.frames);
        if !frames_ok || entry.len > MAX_PAGE_LEN || entry.offset < stored_offset {
            return Err("has a page of impossible size or place");
        }
        let DirectoryEntry { offset, len, frames, logical_len, hash } = entry;
        pages.push(PageRef {
            index,
            first_frame,
            frames,
            logical_offset,
            logical_len,
            stored_offset,
            offset,
            len,
            hash,
        });
        first_frame += u64::from(frames);
        logical_offset =
            logical_offset.checked_add(logical_len).ok_or("has pages beyond any disk")?;
        stored_offset = offset.checked_add(u64::from(len)).ok_or("has pages beyond any file")?;
    }
    if logical_offset != opening.disk_len || stored_offset != tail_offset {
        return Err("has pages that do not cover the disk or do not fill the file");
    }
    let frames = totals.data_frames.checked_add(totals.hole_frames);
    let bytes = [totals.zero_bytes, totals.free_bytes]
        .iter()
        .try_fold(totals.data_bytes, |sum, n| sum.checked_add(*n));
    if first_frame > u64::from(MAX_FRAMES)
        || frames != Some(first_frame)
        || bytes != Some(opening.disk_len)
    {
        return Err("has totals that do not add up");
    }
    Ok((totals, pages))
}

fn directory_entry(fields: &mut Fields<'_>) -> Option<DirectoryEntry> {
    Some(DirectoryEntry {
        offset: fields.u64()?,
        len: fields.u32()?,
        frames: fields.u32()?,
        logical_len: fields.u64()?,
        hash: Hash(fields.array()?),
    })
}

/// The fixed-size end of the tail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) seek_entries: u32,
    pub(crate) tail_offset: u64,
    pub(crate) manifest_len: u64,
    pub(crate) directory_len: u64,
    pub(crate) image_id: Uuid,
    pub(crate) root: Root,
}

impl Trailer {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(TRAILER_LEN);
        out.extend_from_slice(TRAILER_KIND);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.seek_entries.to_le_bytes());
        out.extend_from_slice(&self.tail_offset.to_le_bytes());
        out.extend_from_slice(&self.manifest_len.to_le_bytes());
        out.extend_from_slice(&self.directory_len.to_le_bytes());
        out.extend_from_slice(self.image_id.as_bytes());
        out.extend_from_slice(self.root.as_bytes());
        let hash = Hash::of(&out);
        out.extend_from_slice(hash.as_bytes());
        out
    }

    /// Takes a trailer apart whose last byte is at `seek_offset - 1` of the file.
    pub(crate) fn parse(bytes: &[u8; TRAILER_LEN], seek_offset: u64) -> Result<Self> {
        let damaged = |fault| {
            let offset = seek_offset.saturating_sub(TRAILER_LEN as u64);
            FormatError::Damaged { part: Part::Trailer, offset, fault }
        };
        let (body, seal) = bytes.split_last_chunk::<32>().ok_or(damaged("is too short"))?;
        let mut fields = Fields::new(body);
        if fields.array() != Some(*TRAILER_KIND) {
            return Err(FormatError::NotAnImage {
                reason: "there is no trailer before its seek table",
            });
        }
        if Hash::of(body).as_bytes() != seal {
            return Err(damaged("does not match its hash"));
        }
        check_version(fields.u32().ok_or(damaged("is too short"))?)?;
        let trailer = Self::fields(&mut fields).ok_or(damaged("is too short"))?;
        if trailer.manifest_len > MAX_MANIFEST_LEN || trailer.directory_len > MAX_DIRECTORY_LEN {
            return Err(damaged("gives a manifest or a directory beyond the format's limits"));
        }
        if trailer.tail_offset.checked_add(trailer.tail_len()) != Some(seek_offset) {
            return Err(damaged(
                "puts the tail where it is not: the file was cut, joined or padded",
            ));
        }
        Ok(trailer)
    }

    fn fields(fields: &mut Fields<'_>) -> Option<Self> {
        Some(Self {
            seek_entries: fields.u32()?,
            tail_offset: fields.u64()?,
            manifest_len: fields.u64()?,
            directory_len: fields.u64()?,
            image_id: Uuid::from_bytes(fields.array()?),
            root: Root(Hash(fields.array()?)),
        })
    }

    /// The length of the whole tail frame. The lengths in it were checked, so the sum is small.
    pub(crate) fn tail_len(&self) -> u64 {
        TAIL_HEADER_LEN as u64 + self.manifest_len + self.directory_len + TRAILER_LEN as u64
    }

    /// The tail frame's header as it must be.
    pub(crate) fn tail_header(&self) -> [u8; TAIL_HEADER_LEN] {
        let payload_len =
            u32::try_from(self.tail_len() - 8).expect("manifest and directory are limited");
        let mut header = [0; TAIL_HEADER_LEN];
        header[..4].copy_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
        header[4..8].copy_from_slice(&payload_len.to_le_bytes());
        header[8..16].copy_from_slice(TAIL_KIND);
        header[16..24].copy_from_slice(&self.manifest_len.to_le_bytes());
        header[24..].copy_from_slice(&self.directory_len.to_le_bytes());
        header
    }
}

/// Lays out the whole tail frame that will stand at `tail_offset`, and gives the root.
pub(crate) fn encode_tail(
    manifest: &[u8],
    directory: &[u8],
    image_id: Uuid,
    seek_entries: u32,
    tail_offset: u64,
) -> (Vec<u8>, Root) {
    let root = Root::of(manifest, directory);
    let (manifest_len, directory_len) = (manifest.len() as u64, directory.len() as u64);
    let trailer =
        Trailer { seek_entries, tail_offset, manifest_len, directory_len, image_id, root };
    let mut out = Vec::new();
    open_skippable(&mut out, TAIL_KIND);
    out.extend_from_slice(&manifest_len.to_le_bytes());
    out.extend_from_slice(&directory_len.to_le_bytes());
    out.extend_from_slice(manifest);
    out.extend_from_slice(directory);
    out.extend_from_slice(&trailer.encode());
    let len = out.len();
    set_skippable_len(&mut out, len);
    (out, root)
}
