//! The disk inside an image as `Read + Seek`, so that the parsers of real disks can look into images. Every frame that is
//! touched is checked first. For planning: the pipeline does not use it.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use image_format::{FrameEntry, FrameKind};

use crate::error::{Error, Result};
use crate::image::{DiskImage, Fetch};
use crate::seek;

/// The error of a read from an [`ImageDisk`].
pub(crate) fn disk_error(error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) => {
            Error::new(agent_api::ErrorKind::ImageCorrupt, "reading the disk inside the image")
                .because(error)
        }
    }
}

/// A cursor over the disk in an image, with the last frame kept.
pub struct ImageDisk<'a> {
    image: &'a dyn DiskImage,
    fetcher: Box<dyn Fetch + 'a>,
    frame: Option<(FrameEntry, Vec<u8>)>,
    at: u64,
}

impl<'a> ImageDisk<'a> {
    /// Starts at the first byte.
    pub fn new(image: &'a dyn DiskImage) -> Result<Self> {
        Ok(Self { image, fetcher: image.fetcher()?, frame: None, at: 0 })
    }

    /// Reads `len` bytes at `offset`.
    pub fn bytes(&mut self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.at = offset;
        self.read_exact(&mut bytes).map_err(disk_error)?;
        Ok(bytes)
    }

    /// How many bytes of a range of the disk are not zero, and from the first to behind the last of them. Holes are not fetched.
    pub fn not_zero(&mut self, range: Range<u64>) -> Result<Option<(u64, Range<u64>)>> {
        let (mut count, mut place) = (0, None::<Range<u64>>);
        let mut at = range.start;
        while at < range.end {
            let entry = self.image.frame_at(at)?;
            let end = (entry.logical_offset + u64::from(entry.logical_len)).min(range.end);
            if entry.kind == FrameKind::Data {
                self.at = at;
                self.load()?;
                let (entry, content) = self.frame.as_ref().expect("just loaded");
                let index = |at: u64| {
                    usize::try_from(at - entry.logical_offset).expect("a frame is a few MiB")
                };
                let found =
                    (at..end).zip(&content[index(at)..index(end)]).filter(|(_, b)| **b != 0);
                for (at, _) in found {
                    count += 1;
                    place = Some(place.map_or(at, |place| place.start)..at + 1);
                }
            }
            at = end;
        }
        Ok(place.map(|place| (count, place)))
    }

    fn load(&mut self) -> Result<()> {
        let covers = |e: &FrameEntry| {
            (e.logical_offset..e.logical_offset + u64::from(e.logical_len)).contains(&self.at)
        };
        if self.frame.as_ref().is_some_and(|(entry, _)| covers(entry)) {
            return Ok(());
        }
        let entry = self.image.frame_at(self.at)?;
        let mut content = Vec::new();
        if entry.kind == FrameKind::Data {
            content.resize(usize::try_from(entry.logical_len).expect("a frame is a few MiB"), 0);
        }
        self.fetcher.fetch(&entry, &mut content)?;
        self.frame = Some((entry, content));
        Ok(())
    }
}

impl Read for ImageDisk<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.image.disk_len() || buf.is_empty() {
            return Ok(0);
        }
        self.load().map_err(io::Error::other)?;
        let (entry, content) = self.frame.as_ref().expect("just loaded");
        let within = self.at - entry.logical_offset;
        let left = u64::from(entry.logical_len) - within;
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let start = usize::try_from(within).expect("a frame is at most a GiB");
        match entry.kind {
            FrameKind::Data => buf[..len].copy_from_slice(&content[start..start + len]),
            FrameKind::Hole => buf[..len].fill(0),
        }
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for ImageDisk<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = seek::place(self.at, self.image.disk_len(), to)?;
        Ok(self.at)
    }
}

impl fmt::Debug for ImageDisk<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageDisk").field("at", &self.at).finish_non_exhaustive()
    }
}
