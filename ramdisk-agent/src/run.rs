//! `imprint-agent run -`: one job, as the supervisor hands it over. The job comes as JSON on standard input, so that nothing of
//! it shows in a process list; progress and, last, the outcome leave as JSON lines on standard output.

use std::io::{Read, Write};
use std::sync::Arc;

use agent_api::{
    CaptureSummary, ErrorKind, Failure, JobAction, JobSpec, Layout, MAX_SOURCES, Outcome,
    PlanSummary, RestoreOptions, RestoreSummary, SourceUse, Summary,
};
use image_format::ImageReader;

use crate::disk::{self, Disk, Selector};
use crate::error::{Error, IoContext, Result};
use crate::foreign::{self, Limit, Opened};
use crate::image::{self, DiskImage, Joined, Sources};
use crate::progress::{Face, Progress, Ticker};
use crate::restore::{Assembly, RestorePlan};
use crate::store::{self, Access, StoreUrl};
use crate::telemetry::Metered;
use crate::trust::{self, PublicKey};
use crate::{capture, restore};

/// A job's text is a few hundred bytes; more than this is not a job.
const MAX_JOB_LEN: u64 = 1 << 20;

/// Reads a job from standard input, does it, prints its outcome. Whether it succeeded.
pub fn run_stdin(progress: &Arc<Progress>) -> Result<bool> {
    let mut text = String::new();
    std::io::stdin()
        .take(MAX_JOB_LEN)
        .read_to_string(&mut text)
        .internal(|| "reading the job from standard input".into())?;
    let ticker = Ticker::start(progress, Face::Worker);
    let result = serde_json::from_str::<JobSpec>(&text)
        .map_err(|e| {
            Error::new(ErrorKind::Internal, "understanding the job on standard input").because(e)
        })
        .and_then(|job| run_job(&job, progress));
    ticker.finish();
    // From here on a signal does not make another outcome of it.
    let _ = progress.begin_work();
    print_outcome(result)
}

/// Prints what a job came to, for the supervisor. Whether it succeeded.
pub fn print_outcome(result: Result<Summary>) -> Result<bool> {
    let outcome = match result {
        Ok(summary) => Outcome::Succeeded(Box::new(summary)),
        Err(error) => Outcome::Failed(Failure { kind: error.kind(), message: error.chain() }),
    };
    let line = serde_json::json!({ "outcome": outcome });
    writeln!(std::io::stdout().lock(), "{line}").internal(|| "writing the outcome".into())?;
    Ok(matches!(outcome, Outcome::Succeeded(_)))
}

fn run_job(job: &JobSpec, progress: &Arc<Progress>) -> Result<Summary> {
    job.unknown.check().map_err(Error::refused)?;
    let selector = match &job.disk {
        Some(text) => text.parse()?,
        None => Selector::Only,
    };
    let path = disk::resolve(&selector, &disk::inventory())?;
    let url = parse_url(&job.image_url)?;
    progress.set_access(Access::new(job.access.clone(), std::slice::from_ref(&url))?);
    match &job.action {
        JobAction::Capture(options) => {
            progress.set_limit(options.limit);
            let disk = Disk::open_source(&path)?;
            progress.watch(&disk);
            let plan = capture::plan(&disk, options)?;
            let id = job.image_id.as_deref().map(image_id).transpose()?;
            Ok(Summary::Capture(capture::run(&disk, &url, &plan, options, id, progress)?))
        }
        JobAction::Restore(options) => {
            options.unknown.check().map_err(Error::refused)?;
            progress.set_limit(options.limit);
            let target = open_target(&path, Some(&url), options)?;
            progress.watch(&target);
            let (image, plan) = plan_restore(Some(&url), &target, options, progress)?;
            Ok(Summary::Restore(restore::run(&*image, &target, &plan, options, progress)?))
        }
        JobAction::Plan(options) => {
            options.unknown.check().map_err(Error::refused)?;
            progress.set_limit(options.limit);
            let target = part_of(Disk::open_source(&path)?, options)?;
            let (_, plan) = plan_restore(Some(&url), &target, options, progress)?;
            Ok(Summary::Plan(PlanSummary {
                hash: plan.hash.clone(),
                text: plan.to_string(),
                plan: serde_json::to_value(&plan)
                    .map_err(|e| Error::new(ErrorKind::Internal, "writing the plan").because(e))?,
                disk: disk::identity(&plan.target),
            }))
        }
    }
}

fn image_id(text: &str) -> Result<uuid::Uuid> {
    text.parse()
        .map_err(|e: uuid::Error| Error::refused("the job's image_id is no UUID").because(e))
}

/// An image opened from a store.
pub type Image = Box<dyn DiskImage>;

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
        let sources = image::open_sources(&urls, places.expect_root, &options).map_err(opening)?;
        let Sources { urls, file, tallies } = sources;
        progress.set_sources(tallies);
        let file = Box::new(Metered::new(file, progress));
        return image::open(file, &urls, bases, &options).map_err(opening);
    }
    match foreign::open(url, &store_options(progress)).map_err(opening)? {
        Opened::Imprint(file) => {
            let file = Box::new(Metered::new(file, progress));
            let urls = std::slice::from_ref(url);
            image::open(file, urls, bases, &store_options(progress)).map_err(opening)
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
    let file = store::open_with(url, &store_options(progress))?;
    let image = ImageReader::open(Metered::new(file, progress))
        .map_err(|e| Error::from(e).context(format!("opening {url}")))?;
    Ok(Box::new(image))
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
    text.parse().map_err(|e: store::UrlError| {
        Error::refused(format!("'{}' names no image", store::shown(text))).because(e)
    })
}

/// Parses several.
pub fn parse_urls(texts: &[String]) -> Result<Vec<StoreUrl>> {
    texts.iter().map(|text| parse_url(text)).collect()
}

/// Says something on standard error that the summary says as well.
pub fn note(what: &str) {
    let text: String = what.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    // With standard error gone the summary still says it.
    let _ = writeln!(std::io::stderr(), "imprint-agent: note: {text}");
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

/// A summary for people: what, how much, how fast.
#[must_use]
pub fn describe(summary: &Summary) -> String {
    match summary {
        Summary::Capture(s) => describe_capture(s),
        Summary::Restore(s) => describe_restore(s),
        Summary::Plan(s) => s.text.clone(),
    }
}

fn describe_capture(s: &CaptureSummary) -> String {
    let mut text = format!(
        "captured   {} of disk, {} kept, in {}\nstored     {} ({:.1} % of what was kept)\nre-read    {} in {}, all hashes \
         right\ntotal      {}\nroot       {}",
        size(s.disk_bytes),
        size(s.data_bytes),
        rate(s.data_bytes, s.capture_ms),
        size(s.stored_bytes),
        percent(s.stored_bytes, s.data_bytes),
        size(s.reread_bytes),
        seconds(s.verify_ms),
        seconds(s.total_ms),
        s.root,
    );
    if s.resumed_bytes > 0 {
        text.push_str(&format!("\nresumed    at {} of disk", size(s.resumed_bytes)));
    }
    text.push_str(&limit(s.limited_by.as_deref()));
    for raw in &s.raw {
        text.push_str("\ntaken raw  ");
        text.push_str(raw);
    }
    for lacking in &s.damaged {
        text.push_str("\nDAMAGED    ");
        text.push_str(lacking);
    }
    text
}

fn describe_restore(s: &RestoreSummary) -> String {
    let compared = if s.compared_bytes > 0 {
        format!("compared   {}\n", rate(s.compared_bytes, s.compare_ms))
    } else {
        String::new()
    };
    if s.compared_bytes > 0 && s.written_bytes == 0 {
        return format!(
            "{compared}identical: nothing was written\ntotal      {}\nroot       {}{}",
            seconds(s.total_ms),
            s.root,
            limit(s.limited_by.as_deref()),
        );
    }
    let mut text = format!(
        "{compared}fetched    {} in {}\nwritten    {}, flushed in {}\nread back  {} in {}, all hashes right\ntotal      {}\nroot       {}{}",
        size(s.fetched_bytes),
        rate(s.written_bytes, s.restore_ms),
        size(s.written_bytes),
        seconds(s.flush_ms),
        size(s.readback_bytes),
        rate(s.readback_bytes, s.verify_ms),
        seconds(s.total_ms),
        s.root,
        limit(s.limited_by.as_deref()),
    );
    text.push_str(&describe_sources(&s.sources));
    for change in &s.changes {
        text.push_str("\nchanged    ");
        text.push_str(change);
    }
    for file in &s.files {
        text.push_str(&format!("\n{:10} {}", file.action.as_str(), file.path));
    }
    text
}

/// How much came from which source: a line each.
#[must_use]
pub fn describe_sources(sources: &[SourceUse]) -> String {
    let line = |source: &SourceUse| {
        let why = source.left_out.as_ref().map(|why| format!(", then left out: {why}"));
        format!("\nfrom       {}: {}{}", source.url, size(source.bytes), why.unwrap_or_default())
    };
    sources.iter().map(line).collect()
}

/// Bytes for people, in powers of 1024.
#[must_use]
pub fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

fn limit(limited_by: Option<&str>) -> String {
    limited_by.map(|what| format!("\nlimited by {what}")).unwrap_or_default()
}

fn seconds(ms: u64) -> String {
    format!("{}.{:02} s", ms / 1000, ms % 1000 / 10)
}

fn rate(bytes: u64, ms: u64) -> String {
    format!("{} ({}/s)", seconds(ms), size(bytes.saturating_mul(1000) / ms.max(1)))
}

fn percent(part: u64, whole: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "one decimal of a percentage")]
    let share = part as f64 / whole.max(1) as f64;
    share * 100.0
}
