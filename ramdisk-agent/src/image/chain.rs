//! A delta image with the images beneath it, as one image.
//!
//! A delta's frames are whole, or refer to its parent's frame at the same place: for all of their content, or as a prefix that they
//! were compressed with. The parent may be a delta itself. A frame is followed down until one is whole, and decompressed upwards
//! from there, so a restore reads every image once and nothing is kept in between. Content is used as a prefix only when its own hash is
//! right; which frames go together was compared when the index was checked, before anything is written.
//!
//! A parent is the image of one root. It is looked for beside its child: under the name that it had, then under any other; or it is
//! where the caller says.

use agent_api::ErrorKind;
use image_format::{
    Decoder, FrameBase, FrameEntry, FrameKind, ImageReader, Manifest, Parent, Root,
};

use super::{DiskImage, Fetch, has_image_name, new_decoder};
use crate::error::{Error, Result};
use crate::store::{self, ImageFile, StoreUrl};

/// The most images that one restore reads: a full one and the deltas on it.
pub const MAX_CHAIN_LEN: usize = 16;

type Reader = ImageReader<Box<dyn ImageFile>>;

/// A delta image and its ancestors.
#[derive(Debug)]
pub struct Chain {
    /// The image itself, its parent, that one's parent, to a full one.
    images: Vec<Reader>,
}

/// Opens one image file.
pub(crate) fn open_one(url: &StoreUrl, options: &store::Options) -> Result<Reader> {
    let file = store::open_with(url, options)?;
    ImageReader::open(file).map_err(|e| Error::from(e).context(format!("opening {url}")))
}

impl Chain {
    /// Opens the images beneath `image`, which was opened at `url`. `base` is where its parent is, if not beside it.
    ///
    /// # Errors
    /// `not_found` naming the root that is wanted; `refused` if `base` is another image, or the chain is too long.
    pub fn open(
        image: Reader,
        url: &StoreUrl,
        base: Option<&StoreUrl>,
        options: &store::Options,
    ) -> Result<Self> {
        let (mut images, mut at, mut base) = (vec![image], url.clone(), base.cloned());
        while let Some(parent) = images.last().and_then(|image| image.manifest().parent.clone()) {
            if images.len() == MAX_CHAIN_LEN {
                return Err(Error::refused(format!(
                    "{url} is a delta on more than {} images; flatten one of them",
                    MAX_CHAIN_LEN - 1
                )));
            }
            let (place, image) = match base.take() {
                Some(base) => (base.clone(), named(&parent, &base, options)?),
                None => beside(&parent, &at, options)?,
            };
            images.push(image);
            at = place;
        }
        Ok(Self { images })
    }

    /// How many images there are, the full one included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether there are none, which no chain is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    fn top(&self) -> &Reader {
        &self.images[0]
    }

    /// The entries that a frame is made of: its own, its parent's, down to one that is whole.
    fn entries(&self, level: usize, entry: &FrameEntry) -> Result<Vec<FrameEntry>> {
        let mut entries = vec![entry.clone()];
        for (level, parent) in self.images.iter().enumerate().skip(level + 1) {
            let child = entries.last().expect("it starts with one");
            if child.base == FrameBase::None {
                break;
            }
            let beneath = parent.frame_at(child.logical_offset)?;
            let fits = beneath.kind == FrameKind::Data
                && beneath.logical_offset == child.logical_offset
                && beneath.logical_len == child.logical_len
                && (child.base == FrameBase::Prefix || beneath.content_hash == child.content_hash);
            if !fits {
                return Err(Error::new(
                    ErrorKind::ImageCorrupt,
                    format!(
                        "frame {} at image offset {} needs a frame that image {} of the chain does not have",
                        child.index, child.logical_offset, level
                    ),
                ));
            }
            entries.push(beneath);
        }
        Ok(entries)
    }
}

/// Where in the folder of `child`, which need not be there, the parent is.
///
/// # Errors
/// `not_found` if it is not there.
pub(crate) fn parent_beside(
    parent: &Parent,
    child: &StoreUrl,
    options: &store::Options,
) -> Result<StoreUrl> {
    Ok(beside(parent, child, options)?.0)
}

/// The parent where the caller says that it is.
fn named(parent: &Parent, url: &StoreUrl, options: &store::Options) -> Result<Reader> {
    let image = open_one(url, options)?;
    if image.root() == parent.root {
        return Ok(image);
    }
    Err(Error::refused(format!(
        "{url} is not the image that is wanted as base: its root is {}, wanted is {} ({})",
        image.root(),
        parent.root,
        parent.name
    )))
}

/// The parent in the folder of its child.
fn beside(
    parent: &Parent,
    child: &StoreUrl,
    options: &store::Options,
) -> Result<(StoreUrl, Reader)> {
    let wanted = |why: String| {
        Error::new(
            ErrorKind::NotFound,
            format!(
                "{child} is the difference to image {} with the root {}, {why}; give --base with its URL",
                parent.name, parent.root
            ),
        )
    };
    let folder = child.parent().ok_or_else(|| wanted("which cannot be looked for".into()))?;
    let is_name = !parent.name.is_empty() && !parent.name.contains('/') && parent.name != "..";
    let recorded = is_name.then(|| parent.name.clone());
    let first = recorded.iter().map(|name| folder.join(name));
    if let Some(found) = first.into_iter().find_map(|url| matching(parent, url, options)) {
        return Ok(found);
    }
    // It was renamed, or its name belongs to another image by now.
    let others = store::list(&folder, options)
        .map_err(|e| wanted("which was looked for".into()).because(e))?;
    others
        .iter()
        .map(|entry| entry.name.as_str())
        .filter(|name| has_image_name(name))
        .find_map(|name| matching(parent, folder.join(name), options))
        .ok_or_else(|| wanted(format!("which is not in {folder}")))
}

/// The image at a place, if it is there and is the parent. Why it is not does not matter: there may be others.
fn matching(
    parent: &Parent,
    url: StoreUrl,
    options: &store::Options,
) -> Option<(StoreUrl, Reader)> {
    let image = open_one(&url, options).ok()?;
    (image.root() == parent.root).then_some((url, image))
}

impl DiskImage for Chain {
    fn root(&self) -> Root {
        self.top().root()
    }

    fn manifest(&self) -> &Manifest {
        self.top().manifest()
    }

    fn disk_len(&self) -> u64 {
        self.top().disk_len()
    }

    fn span_len(&self) -> u32 {
        self.top().span_len()
    }

    fn stored_len(&self) -> u64 {
        self.top().stored_len()
    }

    fn check_index(&self) -> Result<()> {
        for image in &self.images {
            image.check_seek_table()?;
        }
        // Every frame leads to one that is whole: a restore must not find out half-way that it does not.
        for entry in self.top().frames() {
            self.entries(0, &entry?)?;
        }
        Ok(())
    }

    fn frames(&self) -> Box<dyn Iterator<Item = Result<FrameEntry>> + Send + '_> {
        DiskImage::frames(self.top())
    }

    fn frame_at(&self, logical_offset: u64) -> Result<FrameEntry> {
        Ok(self.top().frame_at(logical_offset)?)
    }

    fn fetcher(&self) -> Result<Box<dyn Fetch + '_>> {
        Ok(Box::new(ChainReader {
            chain: self,
            decoder: new_decoder()?,
            stored: Vec::new(),
            beneath: Vec::new(),
            above: Vec::new(),
        }))
    }
}

/// Reads, checks and decompresses frames with what they need of the images beneath.
struct ChainReader<'a> {
    chain: &'a Chain,
    decoder: Decoder,
    stored: Vec<u8>,
    /// The content of one level, and room for that of the next.
    beneath: Vec<u8>,
    above: Vec<u8>,
}

impl ChainReader<'_> {
    /// The content of a data frame. How many bytes were fetched for it.
    fn content(&mut self, entry: &FrameEntry, content: &mut [u8]) -> Result<u64> {
        let entries = self.chain.entries(0, entry)?;
        // What is to be a prefix, or was made with one, is compared with its own hash as well.
        let hashes = entries.iter().any(|entry| entry.base == FrameBase::Prefix);
        let mut fetched = 0;
        for (entry, image) in entries.iter().zip(&self.chain.images).rev() {
            if entry.base == FrameBase::Reference {
                continue;
            }
            let frame = image.read_stored(entry, &mut self.stored)?;
            fetched += u64::from(entry.stored_len);
            self.above.resize(content.len(), 0);
            if entry.base == FrameBase::Prefix {
                Decoder::decode_with_prefix(frame, &self.beneath, &mut self.above)?;
            } else {
                self.decoder.decode(frame, &mut self.above)?;
            }
            std::mem::swap(&mut self.above, &mut self.beneath);
            if hashes {
                Decoder::check_content(entry, &self.beneath)?;
            }
        }
        content.copy_from_slice(&self.beneath);
        Ok(fetched)
    }
}

impl Fetch for ChainReader<'_> {
    fn check(&mut self, entry: &FrameEntry) -> Result<u64> {
        let entries = self.chain.entries(0, entry)?;
        let mut fetched = 0;
        for (entry, image) in entries.iter().zip(&self.chain.images) {
            if entry.base != FrameBase::Reference {
                image.read_stored(entry, &mut self.stored)?;
                fetched += u64::from(entry.stored_len);
            }
        }
        Ok(fetched)
    }

    fn fetch(&mut self, entry: &FrameEntry, content: &mut [u8]) -> Result<u64> {
        match entry.kind {
            FrameKind::Data => self.content(entry, content),
            FrameKind::Hole => self.check(entry),
        }
    }

    fn check_deeply(&mut self, entry: &FrameEntry, content: &mut Vec<u8>) -> Result<u64> {
        match entry.kind {
            FrameKind::Hole => {
                Decoder::check_zeros(self.chain.top().read_stored(entry, &mut self.stored)?)?;
                Ok(u64::from(entry.stored_len))
            }
            FrameKind::Data => {
                content
                    .resize(usize::try_from(entry.logical_len).expect("a frame is a few MiB"), 0);
                let fetched = self.content(entry, content)?;
                Decoder::check_content(entry, content)?;
                Ok(fetched)
            }
        }
    }
}
