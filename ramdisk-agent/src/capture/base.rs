//! What a capture is the difference to: an image that is there already.
//!
//! A span that has the same content as the base's frame at its place becomes a reference to it; any other is compressed with that
//! frame's content as zstd's prefix. Only frames that begin and end where the span does are compared: the base has to have been made with
//! the same span length, as all of Imprint's captures are.

use std::sync::Arc;

use agent_api::check_capture_name;
use image_format::{Decoder, EncodedFrame, Encoder, FrameEntry, FrameKind, Hash, Parent, Runs};

use crate::error::{Error, Result};
use crate::image::{Chain, DiskImage, Fetch, MAX_CHAIN_LEN};
use crate::opening::{open_own_reader, parse_url, parse_urls, store_options};
use crate::progress::Progress;
use crate::store::StoreUrl;

/// The image that a capture is the difference to.
pub struct Base {
    chain: Chain,
    parent: Parent,
}

impl Base {
    /// Opens the base of a capture to `target`, if it is to have one: the first of `bases`; the others lie beneath it. Names must say which
    /// it is: a delta alone is no disk.
    pub fn open(
        bases: &[String],
        target: &StoreUrl,
        progress: &Arc<Progress>,
    ) -> Result<Option<Self>> {
        let options = &store_options(progress);
        let name = target.file_name().unwrap_or_default();
        check_capture_name(name, !bases.is_empty()).map_err(Error::refused)?;
        let Some((base, beneath)) = bases.split_first() else { return Ok(None) };
        let url = parse_url(base)?;
        let image = open_own_reader(&url, progress).map_err(|e| e.context("the base"))?;
        let opening = |e: Error| e.context(format!("opening the base {url}"));
        let beneath = parse_urls(beneath)?;
        if !beneath.is_empty() && !image.header().is_delta() {
            return Err(Error::refused(format!(
                "{url} is no delta image, nothing lies beneath it: give --base once; it is the first of them that the capture is the difference to"
            )));
        }
        let parent = Parent {
            root: image.root(),
            image_id: image.header().image_id,
            name: url.file_name().unwrap_or_default().to_owned(),
        };
        let chain = Chain::open(image, std::slice::from_ref(&url), &beneath, options, progress)
            .map_err(opening)?;
        if chain.len() >= MAX_CHAIN_LEN {
            return Err(Error::refused(format!(
                "{url} is the last of {} images already, and a restore reads no more than {MAX_CHAIN_LEN}: flatten it first",
                chain.len()
            )));
        }
        chain.check_index().map_err(opening)?;
        Ok(Some(Self { chain, parent }))
    }

    /// What the image says of its base.
    pub fn parent(&self) -> Parent {
        self.parent.clone()
    }

    /// How many images it is made of.
    pub fn images(&self) -> usize {
        self.chain.len()
    }

    /// One thread's way to the base's content.
    pub fn reader(&self) -> Result<BaseReader<'_>> {
        Ok(BaseReader { base: &self.chain, fetcher: self.chain.fetcher()?, content: Vec::new() })
    }
}

/// One thread's way to a base's content.
pub struct BaseReader<'a> {
    base: &'a Chain,
    fetcher: Box<dyn Fetch + 'a>,
    content: Vec<u8>,
}

impl BaseReader<'_> {
    /// Makes the frame of a span.
    pub fn encode(
        &mut self,
        encoder: &mut Encoder,
        bytes: &[u8],
        offset: u64,
        runs: Runs,
        stored: &mut Vec<u8>,
    ) -> Result<EncodedFrame> {
        let Some(beneath) = self.beneath(offset, bytes.len())? else {
            return Ok(encoder.encode(bytes, runs, stored)?);
        };
        if Hash::of(bytes) == beneath.content_hash {
            return Ok(EncodedFrame::reference(beneath.logical_len, beneath.content_hash, runs));
        }
        self.content.resize(bytes.len(), 0);
        self.fetcher.fetch(&beneath, &mut self.content)?;
        Decoder::check_content(&beneath, &self.content)?;
        Ok(encoder.encode_with_prefix(bytes, runs, &self.content, stored)?)
    }

    /// The base's data frame at this place, if there is one of this length.
    fn beneath(&self, offset: u64, len: usize) -> Result<Option<FrameEntry>> {
        if offset >= self.base.disk_len() {
            return Ok(None);
        }
        let entry = self.base.frame_at(offset)?;
        let fits = entry.kind == FrameKind::Data
            && entry.logical_offset == offset
            && u64::from(entry.logical_len) == len as u64;
        Ok(fits.then_some(entry))
    }
}

impl std::fmt::Debug for BaseReader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BaseReader").field("base", &self.base.root()).finish_non_exhaustive()
    }
}
