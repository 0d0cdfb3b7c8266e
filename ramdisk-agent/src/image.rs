//! Images as the engine sees them, whatever file they come from.
//!
//! Restore, verify and plan work on a [`DiskImage`]: the frames of a disk in order, each with what is data, zero and free in it
//! and the hash of its content, and a [`Fetch`] for each thread that gets that content. The contract that everything else rests
//! on: content comes out of a [`Fetch`] only when what it was made from was found to be what the index says. [`ImageReader`], an
//! image of our own format, is the first of them; a [`Chain`] is a delta image with the images beneath it. [`ImageDisk`] is the disk in an image as `Read + Seek`, for parsers.

mod chain;
mod disk;
mod joined;
mod sources;

use std::sync::Arc;

use agent_api::{DELTA_SUFFIX, IMAGE_SUFFIX};
use image_format::{
    Decoder, FrameBase, FrameEntry, FrameKind, ImageReader, Manifest, ReadAt, Root, StoredFrame,
};

pub use chain::{Chain, MAX_CHAIN_LEN};
pub(crate) use chain::{open_one, parent_beside};
pub use disk::ImageDisk;
pub(crate) use disk::disk_error;
pub use joined::Joined;
pub(crate) use sources::{Sources, open as open_sources};

use crate::error::{Error, IoContext, Result};
use crate::progress::Progress;
use crate::store::{self, ImageFile, StoreUrl};
use crate::verify;

/// The image of a disk.
pub trait DiskImage: Send + Sync {
    /// The hash that pins the image.
    fn root(&self) -> Root;

    /// What it says of itself.
    fn manifest(&self) -> &Manifest;

    /// Length of the imaged disk in bytes.
    fn disk_len(&self) -> u64;

    /// The most bytes that a data frame covers.
    fn span_len(&self) -> u32;

    /// Length of the image's file, or of all its files, in bytes; of a delta image without those beneath it.
    fn stored_len(&self) -> u64;

    /// Reads and checks all that there is beside the frames themselves.
    ///
    /// # Errors
    /// `image_corrupt`, naming what is wrong, or the store's error.
    fn check_index(&self) -> Result<()>;

    /// The frames in the order of the disk, without gap or overlap. Ends after the first error.
    fn frames(&self) -> Box<dyn Iterator<Item = Result<FrameEntry>> + Send + '_>;

    /// The frame that holds this byte of the disk.
    ///
    /// # Errors
    /// As [`DiskImage::check_index`]; also if the disk ends before this byte.
    fn frame_at(&self, logical_offset: u64) -> Result<FrameEntry>;

    /// How many threads may ask for frames at once with a gain; twice as many frames may be under way.
    fn readers(&self) -> usize {
        verify::readers()
    }

    /// A way to the content of frames for one thread.
    ///
    /// # Errors
    /// If there is no memory for it.
    fn fetcher(&self) -> Result<Box<dyn Fetch + '_>>;
}

/// One thread's way to the content of an image's frames.
pub trait Fetch: Send {
    /// Fetches the stored bytes of a frame and checks them. How many were fetched.
    ///
    /// # Errors
    /// `image_corrupt` naming the frame, or the store's error.
    fn check(&mut self, entry: &FrameEntry) -> Result<u64>;

    /// The same, and for a data frame puts its content into `content`, which is as long as the frame. A hole's content is known:
    /// `content` is empty then.
    ///
    /// # Errors
    /// As [`Fetch::check`]; `content` is in no defined state then.
    fn fetch(&mut self, entry: &FrameEntry, content: &mut [u8]) -> Result<u64>;

    /// The same, and whatever can be checked beyond that: the content's own hash, and that holes are zeros. `content` is room
    /// that is used again. How many bytes were fetched.
    ///
    /// # Errors
    /// As [`Fetch::check`].
    fn check_deeply(&mut self, entry: &FrameEntry, content: &mut Vec<u8>) -> Result<u64>;
}

/// Whether a file is, by its name, an image of our own.
#[must_use]
pub fn has_image_name(name: &str) -> bool {
    name.ends_with(IMAGE_SUFFIX) || name.ends_with(DELTA_SUFFIX)
}

/// An image of our own in its file, which is at each of `urls`: with the images beneath it, if it is a delta. `bases` are where
/// some of those are, if not beside their deltas.
///
/// # Errors
/// If one of the files is no image, or not the one that is wanted.
pub fn open(
    file: Box<dyn ImageFile>,
    urls: &[StoreUrl],
    bases: &[StoreUrl],
    options: &store::Options,
    progress: &Arc<Progress>,
) -> Result<Box<dyn DiskImage>> {
    let image = ImageReader::open(file)?;
    if image.header().is_delta() {
        return Ok(Box::new(Chain::open(image, urls, bases, options, progress)?));
    }
    if !bases.is_empty() {
        return Err(Error::refused(format!("{} is no delta image, it has no base", urls[0])));
    }
    Ok(Box::new(image))
}

impl<R: ReadAt> DiskImage for ImageReader<R> {
    fn root(&self) -> Root {
        self.root()
    }

    fn manifest(&self) -> &Manifest {
        self.manifest()
    }

    fn disk_len(&self) -> u64 {
        self.disk_len()
    }

    fn span_len(&self) -> u32 {
        self.span_len()
    }

    fn stored_len(&self) -> u64 {
        self.stored_len()
    }

    fn check_index(&self) -> Result<()> {
        Ok(self.check_seek_table()?)
    }

    fn frames(&self) -> Box<dyn Iterator<Item = Result<FrameEntry>> + Send + '_> {
        Box::new(self.frames().map(|frame| frame.map_err(Error::from)))
    }

    fn frame_at(&self, logical_offset: u64) -> Result<FrameEntry> {
        Ok(self.frame_at(logical_offset)?)
    }

    fn fetcher(&self) -> Result<Box<dyn Fetch + '_>> {
        Ok(Box::new(FrameReader { image: self, decoder: new_decoder()?, stored: Vec::new() }))
    }
}

/// Reads, checks and decompresses the frames of one image file.
struct FrameReader<'a, R> {
    image: &'a ImageReader<R>,
    decoder: Decoder,
    stored: Vec<u8>,
}

impl<R: ReadAt> Fetch for FrameReader<'_, R> {
    fn check(&mut self, entry: &FrameEntry) -> Result<u64> {
        // Of a reference there is nothing to check here; with the images beneath it, a chain looks further.
        if entry.base != FrameBase::Reference {
            self.image.read_stored(entry, &mut self.stored)?;
        }
        Ok(u64::from(entry.stored_len))
    }

    fn fetch(&mut self, entry: &FrameEntry, content: &mut [u8]) -> Result<u64> {
        let frame: StoredFrame<'_> = self.image.read_stored(entry, &mut self.stored)?;
        if entry.kind == FrameKind::Data {
            self.decoder.decode(frame, content)?;
        }
        Ok(u64::from(entry.stored_len))
    }

    fn check_deeply(&mut self, entry: &FrameEntry, content: &mut Vec<u8>) -> Result<u64> {
        let frame: StoredFrame<'_> = self.image.read_stored(entry, &mut self.stored)?;
        match entry.kind {
            FrameKind::Hole => Decoder::check_zeros(frame)?,
            FrameKind::Data => {
                content
                    .resize(usize::try_from(entry.logical_len).expect("a frame is a few MiB"), 0);
                self.decoder.decode(frame, content)?;
                Decoder::check_content(entry, content)?;
            }
        }
        Ok(u64::from(entry.stored_len))
    }
}

fn new_decoder() -> Result<Decoder> {
    Decoder::new().internal(|| "making a decompression context".into())
}
