//! Opening what a job works on, for the command line and for jobs alike: images at their places, signatures checked, and targets.

use std::sync::Arc;

use agent_api::{ErrorKind, Layout, MAX_SOURCES, RestoreOptions};
use image_format::ImageReader;

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::foreign::{self, Limit, Opened};
use crate::image::{self, DiskImage, Joined, Sources};
use crate::progress::Progress;
use crate::restore::{self, Assembly, RestorePlan};
use crate::store::{self, ImageFile, StoreUrl};
use crate::telemetry::Metered;
use crate::trust::{self, PublicKey};
use crate::words::note;

/// An image opened from a store.
pub type Image = Box<dyn DiskImage>;

/// An image of our own by itself, a delta without those beneath it.
pub type OwnReader = ImageReader<Box<dyn ImageFile>>;

/// Where an image is, and what of it is known.
#[derive(Debug)]
pub struct Places<'a> {
    url: StoreUrl,
    also: Vec<StoreUrl>,
    bases: Vec<StoreUrl>,
    expect_root: Option<&'a str>,
}

impl<'a> Places<'a> {
    /// An image at `url`, also at these; with what lies beneath it, if it is a delta and that is elsewhere, and its root, if that is known.
    ///
    /// # Errors
    /// If one of the texts is no URL, or there are too many.
    pub fn new(
        url: &StoreUrl,
        also: &[String],
        bases: &[String],
        expect_root: Option<&'a str>,
    ) -> Result<Self> {
        if also.len() >= MAX_SOURCES {
            return Err(Error::refused(format!(
                "an image is read from {MAX_SOURCES} places at most"
            )));
        }
        Ok(Self {
            url: url.clone(),
            also: parse_urls(also)?,
            bases: parse_urls(bases)?,
            expect_root,
        })
    }

    /// Those of a restore.
    ///
    /// # Errors
    /// As [`Places::new`].
    pub fn of_restore(url: &StoreUrl, options: &'a RestoreOptions) -> Result<Self> {
        Self::new(url, &options.also, &options.base, options.expect_root.as_deref())
    }

    /// All places of the image itself.
    fn all(&self) -> impl Iterator<Item = &StoreUrl> {
        std::iter::once(&self.url).chain(&self.also)
    }
}

/// Opens what a restore restores, one image or those of a layout, checks signatures and makes the plan. Writes nothing. `url` is the
/// restore's own image, which only a layout can do without.
pub fn plan_restore(
    url: Option<&StoreUrl>,
    target: &Disk,
    options: &RestoreOptions,
    progress: &Arc<Progress>,
) -> Result<(Image, RestorePlan)> {
    if let Some(layout) = &options.layout {
        options.check_layout().map_err(|e| Error::refused(format!("{e}; nothing was written")))?;
        let assembly = open_layout(url, layout, options, progress)?;
        let plan = restore::plan_layout(&assembly, layout, target, options)?;
        return Ok((Box::new(assembly.image), plan));
    }
    let url = url.ok_or_else(|| Error::refused("there is no image to restore"))?;
    let places = Places::of_restore(url, options)?;
    let image = open_image(&places, limit_of(target, options), progress)?;
    check_signature(&*image, &places, options.require_signature.as_deref(), progress)?;
    let plan = restore::plan(&*image, target, options)?;
    Ok((image, plan))
}

/// Opens the images of a layout. One that several partitions come from is opened once; one whose same volume goes into several partitions
/// as often as it does. `own` is what partitions without a place of their own come from.
fn open_layout(
    own: Option<&StoreUrl>,
    layout: &Layout,
    options: &RestoreOptions,
    progress: &Arc<Progress>,
) -> Result<Assembly> {
    let mut images: Vec<Image> = Vec::new();
    let mut taken: Vec<(StoreUrl, Vec<Option<u32>>)> = Vec::new();
    let mut members = Vec::new();
    for (partition, number) in layout.partitions.iter().zip(1..) {
        if !partition.has_content() {
            members.push(None);
            continue;
        }
        let url = match &partition.image {
            Some(text) => parse_url(text)?,
            None => own.cloned().ok_or_else(|| {
                Error::refused(format!(
                    "partition {number} of the layout names no image, and the restore has none of its own; nothing was written"
                ))
            })?,
        };
        let volume = partition.image_partition;
        let fits = |(other, volumes): &(StoreUrl, Vec<Option<u32>>)| {
            *other == url && !volumes.contains(&volume)
        };
        let member = match taken.iter().position(fits) {
            Some(member) => member,
            None => {
                images.push(open_member(own, &url, options, progress)?);
                taken.push((url, Vec::new()));
                taken.len() - 1
            }
        };
        taken[member].1.push(volume);
        restore::check_root(&*images[member], partition.expect_root.as_deref())
            .map_err(|e| e.context(format!("partition {number} of the layout")))?;
        members.push(Some(member));
    }
    if let Some(own) = own
        && !taken.iter().any(|(url, _)| url == own)
    {
        return Err(Error::refused(format!(
            "no partition of the layout comes from {own}: give one of them image-partition; nothing was written"
        )));
    }
    if images.is_empty() {
        return Err(Error::refused(
            "no partition of the layout comes from an image; nothing was written",
        ));
    }
    let names = taken.iter().map(|(url, _)| url.to_string());
    Ok(Assembly { image: Joined::new(names.zip(images).collect())?, members })
}

fn open_member(
    own: Option<&StoreUrl>,
    url: &StoreUrl,
    options: &RestoreOptions,
    progress: &Arc<Progress>,
) -> Result<Image> {
    let places = match own {
        Some(own) if own == url => Places::of_restore(url, options)?,
        _ => Places::new(url, &[], &[], None)?,
    };
    let image = open_image(&places, foreign::any_disk(), progress)?;
    check_signature(&*image, &places, options.require_signature.as_deref(), progress)?;
    restore::check_root(&*image, places.expect_root)?;
    Ok(image)
}

/// Opens an image and checks its index; a foreign image is read whole, and may hold no more than `limit`. A delta image is opened
/// with those beneath it, each of which is one of the bases, or beside its delta.
pub fn open_image(places: &Places<'_>, limit: Limit, progress: &Arc<Progress>) -> Result<Image> {
    let Places { url, bases, .. } = places;
    let opening = |e: Error| e.context(format!("opening {url}"));
    if !places.also.is_empty() {
        let urls: Vec<StoreUrl> = places.all().cloned().collect();
        let options = store_options(progress);
        let sources = image::open_sources(&urls, places.expect_root, &options)
            .map_err(|e| if is_others(url, &e, &options) { not_ours(url) } else { opening(e) })?;
        let Sources { urls, file, tallies } = sources;
        progress.set_sources(tallies);
        let file = Box::new(Metered::new(file, progress));
        return image::open(file, &urls, bases, &options, progress).map_err(opening);
    }
    match foreign::open(url, &store_options(progress)).map_err(opening)? {
        Opened::Imprint(file) => {
            let file = Box::new(Metered::new(file, progress));
            let urls = std::slice::from_ref(url);
            image::open(file, urls, bases, &store_options(progress), progress).map_err(opening)
        }
        Opened::Foreign(_) if !bases.is_empty() => {
            Err(Error::refused(format!("{url} is no delta image, it has no base")))
        }
        Opened::Foreign(disk) => {
            Ok(Box::new(foreign::survey(disk, limit, progress).map_err(opening)?))
        }
    }
}

/// Opens an image for what it says of itself: a delta without the images beneath it.
pub fn open_index(url: &StoreUrl, progress: &Arc<Progress>) -> Result<Image> {
    let opening = |e: Error| e.context(format!("opening {url}"));
    match foreign::open(url, &store_options(progress)).map_err(opening)? {
        Opened::Imprint(file) => {
            let image = ImageReader::open(Metered::new(file, progress));
            Ok(Box::new(image.map_err(|e| opening(e.into()))?))
        }
        Opened::Foreign(disk) => {
            let limit = foreign::any_disk();
            Ok(Box::new(foreign::survey(disk, limit, progress).map_err(opening)?))
        }
    }
}

/// Opens an image of our own, a delta without those beneath it; any other file is an error.
pub fn open_own_image(url: &StoreUrl, progress: &Arc<Progress>) -> Result<Image> {
    Ok(Box::new(open_own_reader(url, progress)?))
}

/// The same as a reader. Another tool's image is no damaged one: it is refused with what to do.
pub fn open_own_reader(url: &StoreUrl, progress: &Arc<Progress>) -> Result<OwnReader> {
    let opening = |e: Error| e.context(format!("opening {url}"));
    match foreign::open(url, &store_options(progress)).map_err(opening)? {
        Opened::Imprint(file) => {
            let file: Box<dyn ImageFile> = Box::new(Metered::new(file, progress));
            ImageReader::open(file).map_err(|e| opening(e.into()))
        }
        Opened::Foreign(_) => Err(not_ours(url)),
    }
}

/// Whether what is not taken for an image of ours is one of another tool.
fn is_others(url: &StoreUrl, error: &Error, options: &store::Options) -> bool {
    error.kind() == ErrorKind::ImageCorrupt
        && matches!(foreign::open(url, options), Ok(Opened::Foreign(_)))
}

fn not_ours(url: &StoreUrl) -> Error {
    Error::refused(format!(
        "{url} is no image of Imprint: make one of it with `imprint-agent convert`"
    ))
}

/// Refuses an image that the given key has not signed; without a key there is nothing to refuse. The signature may be at any of the
/// image's places.
pub fn check_signature(
    image: &dyn DiskImage,
    places: &Places<'_>,
    key: Option<&str>,
    progress: &Arc<Progress>,
) -> Result<()> {
    let Some(key) = key else { return Ok(()) };
    let options = store_options(progress);
    let key = PublicKey::find(key)?;
    let check = |url| trust::require(&key, url, image.root(), image.stored_len(), &options);
    // What the first place says is the answer, unless another one has a signature that is right.
    let first = check(&places.url);
    if first.is_err() && places.also.iter().any(|url| check(url).is_ok()) {
        return Ok(());
    }
    first
}

/// What an image for this target may hold; of one that is restored in part nothing is known yet.
#[must_use]
pub fn limit_of(target: &Disk, options: &RestoreOptions) -> Limit {
    if options.partition.is_some() {
        return foreign::any_disk();
    }
    Limit {
        bytes: target.len_bytes(),
        reason: format!("{} has no more; nothing was written", target.path().display()),
    }
}

/// Opens a disk to write an image to it. The image itself is not overwritten.
pub fn open_target(
    path: &std::path::Path,
    image: Option<&StoreUrl>,
    options: &RestoreOptions,
) -> Result<Disk> {
    let target = Disk::open_target(path)?;
    let of_layout = options.layout.iter().flat_map(|layout| &layout.partitions);
    let texts = options.also.iter().chain(&options.base);
    let texts = texts.chain(of_layout.filter_map(|p| p.image.as_ref()));
    let images = texts.filter_map(|text| text.parse::<StoreUrl>().ok()).chain(image.cloned());
    let images = images.filter_map(|url| match url {
        StoreUrl::File(file) => Some(file),
        _ => None,
    });
    let images: Vec<_> = images.collect();
    let refused =
        |why: &str| Error::refused(format!("{} {why}; nothing was written", path.display()));
    if images.iter().any(|file| target.is_at(file)) {
        return Err(refused("is the image itself"));
    }
    let target = part_of(target, options)?;
    match images.iter().find(|file| target.has_bytes_of(file)) {
        Some(file) => Err(refused(&format!("has bytes of the image {}", file.display()))),
        None => Ok(target),
    }
}

/// A disk, or the partition of it that is to be written.
pub fn part_of(disk: Disk, options: &RestoreOptions) -> Result<Disk> {
    match options.into_partition {
        Some(number) => disk.into_partition(number),
        None => Ok(disk),
    }
}

/// Parses a store's URL.
pub fn parse_url(text: &str) -> Result<StoreUrl> {
    if text == "-" {
        return Err(Error::refused(
            "'-' names no image: images are read twice, which a pipe cannot be; give a path or a URL (./- is a file of that name)",
        ));
    }
    text.parse().map_err(|e: store::UrlError| {
        Error::refused(format!("'{}' names no image", store::shown(text))).because(e)
    })
}

/// Parses several.
pub fn parse_urls(texts: &[String]) -> Result<Vec<StoreUrl>> {
    texts.iter().map(|text| parse_url(text)).collect()
}

/// The patience of stores, with the job's credentials, and with stalls shown in the progress.
#[must_use]
pub fn store_options(progress: &Arc<Progress>) -> store::Options {
    struct Show(Arc<Progress>);
    impl store::Observer for Show {
        fn stalled(&self, what: &str) {
            self.0.set_stalled(Some(what.to_owned()));
        }
        fn resumed(&self) {
            self.0.set_stalled(None);
        }
        fn left_out(&self, what: &str) {
            note(what);
        }
    }
    store::Options {
        access: progress.access(),
        observer: Some(Arc::new(Show(Arc::clone(progress)))),
        limiter: progress.limiter(),
        cancelled: progress.cancel_flag(),
        ..store::Options::default()
    }
}
