//! A delta image with the images beneath it, as one image.
//!
//! A delta's frames are whole, or refer to its parent's frame at the same place: for all of their content, or as a prefix that they
//! were compressed with. The parent may be a delta itself. A frame is followed down until one is whole, and decompressed upwards
//! from there, so a restore reads every image once and nothing is kept in between. Content is used as a prefix only when its own hash is
//! right; which frames go together was compared when the index was checked, before anything is written.
//!
//! Whatever is wrong with a frame is said with the file that it is in, since only one of them has to be fetched again.
//!
//! A parent is the image of one root. It is one of those that the caller names, whatever their order, or lies beside its child: under the
//! name that it had, or under any other. What the caller names counts first, so that a copy can stand in for one that is damaged; and what
//! he names and no image of the chain needs is refused, since he took it for another.

use std::sync::Arc;

use agent_api::{ErrorKind, MAX_BASES};
use image_format::{
    Decoder, FrameBase, FrameEntry, FrameKind, ImageReader, Manifest, Parent, Root, StoredFrame,
};

use super::{DiskImage, Fetch, has_image_name, new_decoder};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::store::{self, ImageFile, StoreUrl};
use crate::telemetry::Metered;
use crate::verify;

/// The most images that one restore reads: a full one and the deltas on it.
pub const MAX_CHAIN_LEN: usize = MAX_BASES + 1;

/// How many frames are made at once, at most, out of images that need each other.
const MAX_READERS: usize = 6;

type Reader = ImageReader<Box<dyn ImageFile>>;

/// A delta image and its ancestors.
#[derive(Debug)]
pub struct Chain {
    /// The image itself, its parent, that one's parent, to a full one.
    links: Vec<Link>,
}

/// One of its images.
#[derive(Debug)]
struct Link {
    image: Reader,
    /// Where it is, for people: all of its places, if there are several.
    name: String,
    /// The delta that needs it; `None` for the image itself.
    beneath: Option<String>,
}

impl Link {
    /// Says in which file it is what is wrong, and what is to be done about that.
    fn at_fault(&self, error: impl Into<Error>) -> Error {
        let (error, name) = (error.into(), &self.name);
        if error.kind() != ErrorKind::ImageCorrupt {
            return error.context(format!("reading {name}"));
        }
        error.context(match &self.beneath {
            // What is captured anew has another root, and is of no use to the delta.
            Some(delta) => format!(
                "{name}, which the delta image {delta} needs, is damaged; put another copy of that same file, with the root {}, in its place",
                self.image.root()
            ),
            None => format!("{name} is damaged; take another copy of it, or capture it again"),
        })
    }

    /// What it is the difference to, and its own name.
    fn parent(&self) -> Option<(Parent, String)> {
        Some((self.image.manifest().parent.clone()?, self.name.clone()))
    }

    fn frame_at(&self, logical_offset: u64) -> Result<FrameEntry> {
        self.image.frame_at(logical_offset).map_err(|e| self.at_fault(e))
    }

    /// The stored bytes of a frame, checked.
    fn stored<'a>(
        &self,
        entry: &'a FrameEntry,
        stored: &'a mut Vec<u8>,
    ) -> Result<StoredFrame<'a>> {
        self.image.read_stored(entry, stored).map_err(|e| self.at_fault(e))
    }
}

/// Opens one image file.
pub(crate) fn open_one(url: &StoreUrl, options: &store::Options) -> Result<Reader> {
    read_index(url, store::open_with(url, options)?)
}

/// The same, with the time that its reads take in the job's times.
fn open_metered(
    url: &StoreUrl,
    options: &store::Options,
    progress: &Arc<Progress>,
) -> Result<Reader> {
    read_index(url, Box::new(Metered::new(store::open_with(url, options)?, progress)))
}

fn read_index(url: &StoreUrl, file: Box<dyn ImageFile>) -> Result<Reader> {
    ImageReader::open(file).map_err(|e| Error::from(e).context(format!("opening {url}")))
}

impl Chain {
    /// Opens the images beneath `image`, which was opened at all of `urls`. `bases` are where those of them are that do not lie beside
    /// their deltas; beside an image of several places means beside the first of those.
    ///
    /// # Errors
    /// `not_found` naming the root that is wanted; `refused` if it is none of the `bases`, one of those is not needed, or the chain is too long.
    pub fn open(
        image: Reader,
        urls: &[StoreUrl],
        bases: &[StoreUrl],
        options: &store::Options,
        progress: &Arc<Progress>,
    ) -> Result<Self> {
        let name = urls.iter().map(StoreUrl::to_string).collect::<Vec<_>>().join(" and ");
        let mut at = urls[0].clone();
        let mut given = Given::open(bases, options, progress)?;
        let mut links = vec![Link { image, name, beneath: None }];
        while let Some((parent, delta)) = links.last().and_then(Link::parent) {
            if links.len() == MAX_CHAIN_LEN {
                return Err(Error::refused(format!(
                    "{} is a delta on more than {} images; flatten one of them",
                    links[0].name,
                    MAX_CHAIN_LEN - 1
                )));
            }
            let (place, image) = match given.take(&parent) {
                Some(found) => found,
                None => beside(&parent, &at, options, progress)
                    .map_err(|error| given.blamed_for(error))?,
            };
            links.push(Link { image, name: place.to_string(), beneath: Some(delta) });
            at = place;
        }
        given.check_all_taken(&links)?;
        Ok(Self { links })
    }

    /// How many images there are, the full one included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Whether there are none, which no chain is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    fn top(&self) -> &Link {
        &self.links[0]
    }

    /// The entries that a frame is made of: its own, its parent's, down to one that is whole.
    fn entries(&self, entry: &FrameEntry) -> Result<Vec<FrameEntry>> {
        let mut entries = vec![entry.clone()];
        for pair in self.links.windows(2) {
            let (link, parent) = (&pair[0], &pair[1]);
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
                        "frame {} at image offset {} of {} needs a frame that {} does not have; capture the delta again",
                        child.index, child.logical_offset, link.name, parent.name
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
    progress: &Arc<Progress>,
) -> Result<StoreUrl> {
    Ok(beside(parent, child, options, progress)?.0)
}

/// The images that the caller names and that have not found their place yet.
struct Given(Vec<(StoreUrl, Reader)>);

impl Given {
    fn open(urls: &[StoreUrl], options: &store::Options, progress: &Arc<Progress>) -> Result<Self> {
        if urls.len() > MAX_BASES {
            return Err(Error::refused(format!(
                "--base is given {} times: no more than {MAX_BASES} images lie beneath a delta",
                urls.len()
            )));
        }
        let open = |url: &StoreUrl| Ok((url.clone(), open_metered(url, options, progress)?));
        Ok(Self(urls.iter().map(open).collect::<Result<_>>()?))
    }

    /// The parent, if it is one of them.
    fn take(&mut self, parent: &Parent) -> Option<(StoreUrl, Reader)> {
        let at = self.0.iter().position(|(_, image)| image.root() == parent.root)?;
        Some(self.0.remove(at))
    }

    /// What is left, each with its root.
    fn shown(&self) -> String {
        let line = |(url, image): &(StoreUrl, Reader)| format!("{url} (root {})", image.root());
        self.0.iter().map(line).collect::<Vec<_>>().join(", ")
    }

    /// The error of a parent that is nowhere, with what was given instead, if something was.
    fn blamed_for(&self, error: Error) -> Error {
        if self.0.is_empty() || error.kind() != ErrorKind::NotFound {
            return error;
        }
        let none = "what --base gives is not the image that is wanted";
        Error::refused(format!("{none}: {}", self.shown())).because(error)
    }

    /// Refuses what is not needed: whoever gave it means that it is.
    fn check_all_taken(&self, links: &[Link]) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let needed = |link: &Link| format!("{} (root {})", link.name, link.image.root());
        Err(Error::refused(format!(
            "--base gives what {} is no difference to: {}; beneath it are {}",
            links[0].name,
            self.shown(),
            links[1..].iter().map(needed).collect::<Vec<_>>().join(", ")
        )))
    }
}

/// The parent in the folder of its child.
fn beside(
    parent: &Parent,
    child: &StoreUrl,
    options: &store::Options,
    progress: &Arc<Progress>,
) -> Result<(StoreUrl, Reader)> {
    let wanted = |kind: ErrorKind, why: String| {
        Error::new(
            kind,
            format!(
                "{child} is the difference to image {} with the root {}, {why}; give --base with its URL",
                parent.name, parent.root
            ),
        )
    };
    let missing = |why: &str| wanted(ErrorKind::NotFound, why.into());
    let folder = child.parent().ok_or_else(|| missing("which cannot be looked for"))?;
    let is_name = !parent.name.is_empty() && !parent.name.contains('/') && parent.name != "..";
    // Why the file that has its name cannot be opened.
    let mut unreadable = None;
    if is_name {
        let url = folder.join(&parent.name);
        match open_metered(&url, options, progress) {
            Ok(image) if image.root() == parent.root => return Ok((url, image)),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                unreadable = Some(
                    wanted(error.kind(), format!("and {url} cannot be opened")).because(error),
                );
            }
        }
    }
    // It was renamed, or its name belongs to another image by now.
    let others = match store::list(&folder, options) {
        Ok(others) => others,
        Err(error) => {
            // A web server has no lists, and a job's token is for files whose names are known.
            let why =
                "which is not beside it by that name, and what else is there cannot be listed";
            return Err(unreadable.unwrap_or_else(|| missing(why).because(error)));
        }
    };
    others
        .iter()
        .map(|entry| entry.name.as_str())
        .filter(|name| has_image_name(name))
        .find_map(|name| matching(parent, folder.join(name), options, progress))
        .ok_or_else(|| unreadable.unwrap_or_else(|| missing(&format!("which is not in {folder}"))))
}

/// The image at a place, if it is there and is the parent. Why it is not does not matter: there may be others.
fn matching(
    parent: &Parent,
    url: StoreUrl,
    options: &store::Options,
    progress: &Arc<Progress>,
) -> Option<(StoreUrl, Reader)> {
    let image = open_metered(&url, options, progress).ok()?;
    (image.root() == parent.root).then_some((url, image))
}

impl DiskImage for Chain {
    fn root(&self) -> Root {
        self.top().image.root()
    }

    fn manifest(&self) -> &Manifest {
        self.top().image.manifest()
    }

    fn disk_len(&self) -> u64 {
        self.top().image.disk_len()
    }

    fn span_len(&self) -> u32 {
        self.top().image.span_len()
    }

    fn stored_len(&self) -> u64 {
        self.top().image.stored_len()
    }

    fn check_index(&self) -> Result<()> {
        for link in &self.links {
            link.image.check_seek_table().map_err(|e| link.at_fault(e))?;
        }
        // Every frame leads to one that is whole: a restore must not find out half-way that it does not.
        for entry in self.frames() {
            self.entries(&entry?)?;
        }
        Ok(())
    }

    fn frames(&self) -> Box<dyn Iterator<Item = Result<FrameEntry>> + Send + '_> {
        let top = self.top();
        Box::new(top.image.frames().map(|frame| frame.map_err(|e| top.at_fault(e))))
    }

    fn frame_at(&self, logical_offset: u64) -> Result<FrameEntry> {
        self.top().frame_at(logical_offset)
    }

    fn readers(&self) -> usize {
        // Each holds up to four spans, where others hold two.
        verify::readers().min(MAX_READERS)
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
    /// The content of a data frame. How many bytes were fetched for it. What is to be a prefix, or was made with one, is compared with
    /// its own hash; with `deep` everything is.
    fn content(&mut self, entry: &FrameEntry, content: &mut [u8], deep: bool) -> Result<u64> {
        let entries = self.chain.entries(entry)?;
        let hashes = deep || entries.iter().any(|entry| entry.base == FrameBase::Prefix);
        // What is only referred to is in the frame beneath. The last of the others is what was asked for; of what comes before, one
        // step at a time is kept.
        let mut stored = entries.iter().zip(&self.chain.links);
        let last = stored
            .position(|(entry, _)| entry.base != FrameBase::Reference)
            .expect("a chain of frames ends in one that is whole");
        let mut fetched = 0;
        for (at, (entry, link)) in
            entries.iter().zip(&self.chain.links).enumerate().skip(last).rev()
        {
            if entry.base == FrameBase::Reference {
                continue;
            }
            let frame = link.stored(entry, &mut self.stored)?;
            fetched += u64::from(entry.stored_len);
            let above = match at == last {
                true => &mut *content,
                false => {
                    self.above.resize(content.len(), 0);
                    self.above.as_mut_slice()
                }
            };
            let decoded = if entry.base == FrameBase::Prefix {
                Decoder::decode_with_prefix(frame, &self.beneath, above)
            } else {
                self.decoder.decode(frame, above)
            };
            decoded.map_err(|e| link.at_fault(e))?;
            if hashes {
                Decoder::check_content(entry, above).map_err(|e| link.at_fault(e))?;
            }
            if at != last {
                std::mem::swap(&mut self.above, &mut self.beneath);
            }
        }
        Ok(fetched)
    }
}

impl Fetch for ChainReader<'_> {
    fn check(&mut self, entry: &FrameEntry) -> Result<u64> {
        let entries = self.chain.entries(entry)?;
        let mut fetched = 0;
        for (entry, link) in entries.iter().zip(&self.chain.links) {
            if entry.base != FrameBase::Reference {
                link.stored(entry, &mut self.stored)?;
                fetched += u64::from(entry.stored_len);
            }
        }
        Ok(fetched)
    }

    fn fetch(&mut self, entry: &FrameEntry, content: &mut [u8]) -> Result<u64> {
        match entry.kind {
            FrameKind::Data => self.content(entry, content, false),
            FrameKind::Hole => self.check(entry),
        }
    }

    fn check_deeply(&mut self, entry: &FrameEntry, content: &mut Vec<u8>) -> Result<u64> {
        match entry.kind {
            FrameKind::Hole => {
                let top = self.chain.top();
                let frame = top.stored(entry, &mut self.stored)?;
                Decoder::check_zeros(frame).map_err(|e| top.at_fault(e))?;
                Ok(u64::from(entry.stored_len))
            }
            FrameKind::Data => {
                content
                    .resize(usize::try_from(entry.logical_len).expect("a frame is a few MiB"), 0);
                self.content(entry, content, true)
            }
        }
    }
}
