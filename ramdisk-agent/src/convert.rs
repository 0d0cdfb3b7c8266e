//! Convert: an image of any format that is read becomes one of our own, a raw disk, or a gzip stream of one.
//!
//! What the target becomes is told by its name. A foreign source is read twice: the first pass checks all of it, the second writes
//! only what is as it was found. Where the source can be read anywhere, the filesystems in it are mapped as in a capture, and
//! what they do not use is left out of an image of our own; elsewhere the source's own word is taken for what is not in use, and
//! everything else is kept. As with a capture, nothing has the target's name before it is complete, durable and read again.

mod gzip;
mod image;
mod raw;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use agent_api::{DirtyPolicy, IMAGE_SUFFIX, MAX_LEVEL, MIN_LEVEL};
use image_format::{FrameEntry, FrameKind};
use serde::Serialize;

use crate::capture;
use crate::damage;
use crate::error::{Error, Result};
use crate::foreign::{self, Access, ForeignImage, Limit, Opened};
use crate::image::{DiskImage, Fetch, open as image_of_ours};
use crate::opening::{parse_urls, store_options};
use crate::progress::{Progress, millis};
use crate::store::{self, StoreUrl};
use crate::words::size;

/// The level of gzip streams unless another is asked for; the one of gzip itself.
const GZIP_LEVEL: u32 = 6;

/// Options of a conversion.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ConvertOptions {
    /// For .img.zst zstd's level, 1 to 19, 3 unless given; for .gz gzip's, 1 to 9, 6 unless given
    #[arg(long)]
    pub level: Option<i32>,
    /// What to do with a filesystem that was not shut down cleanly
    #[arg(long, value_enum, default_value_t)]
    pub dirty: DirtyPolicy,
    /// A text kept in the image's manifest
    #[arg(long)]
    pub description: Option<String>,
    /// Where an image beneath a delta image is, if not beside its delta; may be given several times
    #[arg(long, value_name = "IMAGE")]
    pub base: Vec<String>,
    /// Refuse a source whose disk is larger, in GiB; 65536 unless given
    #[arg(long, value_name = "GIB")]
    pub max_size: Option<u64>,
    /// Make a raw disk of an image that lacks sectors which could not be read when it was made; they become zeros
    #[arg(long)]
    pub accept_bad_sectors: bool,
}

/// What a conversion did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ConvertSummary {
    /// What the source was.
    pub source: String,
    /// Root hash of the image that was made; of the source's content for other targets.
    pub root: String,
    /// Size of the disk.
    pub disk_bytes: u64,
    /// Bytes of it that were kept as data.
    pub data_bytes: u64,
    /// Size of what was made.
    pub stored_bytes: u64,
    /// Stored bytes that were read again and compared before publishing.
    pub reread_bytes: u64,
    /// From start to published, in ms.
    pub total_ms: u64,
    /// Partitions that were taken without a map, each with its reason.
    pub raw: Vec<String>,
    /// What the source lacks because it could not be read, a line for each partition.
    pub damaged: Vec<String>,
}

/// What is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Image { level: i32 },
    Raw,
    Gzip { level: u32 },
}

impl Format {
    fn of(target: &StoreUrl, level: Option<i32>) -> Result<Self> {
        let name = target.file_name().unwrap_or_default().to_ascii_lowercase();
        let range = |max: i32| match level {
            Some(level) if !(MIN_LEVEL..=max).contains(&level) => {
                Err(Error::refused(format!("level {level} is not between {MIN_LEVEL} and {max}")))
            }
            level => Ok(level),
        };
        if name.ends_with(IMAGE_SUFFIX) {
            let level = range(MAX_LEVEL)?.unwrap_or(agent_api::CaptureOptions::default().level);
            return Ok(Self::Image { level });
        }
        if name.ends_with(".gz") {
            let level = range(9)?.map_or(GZIP_LEVEL, i32::unsigned_abs);
            return Ok(Self::Gzip { level });
        }
        if [".img", ".raw", ".dd"].iter().any(|suffix| name.ends_with(suffix)) {
            if level.is_some() {
                return Err(Error::refused("a raw disk has no compression level"));
            }
            return Ok(Self::Raw);
        }
        Err(Error::refused(format!(
            "{target} does not say what to make: the name must end in .img.zst (an image), .img, .raw or .dd (a raw disk), or \
             .gz (a raw disk, compressed)"
        )))
    }
}

/// Converts `source` to `target`.
pub fn run(
    source: &StoreUrl,
    target: &StoreUrl,
    options: &ConvertOptions,
    progress: &Arc<Progress>,
) -> Result<ConvertSummary> {
    let start = Instant::now();
    let format = Format::of(target, options.level)?;
    let limit = match options.max_size {
        Some(gib) => {
            Limit { bytes: gib.saturating_mul(1 << 30), reason: "--max-size allows no more".into() }
        }
        None => foreign::any_disk(),
    };
    let opening = |e: Error| e.context(format!("opening {source}"));
    let mut summary = match foreign::open(source, &store_options(progress)).map_err(opening)? {
        Opened::Imprint(file) => {
            let bases = parse_urls(&options.base)?;
            let stores = store_options(progress);
            let urls = std::slice::from_ref(source);
            let image = image_of_ours(file, urls, &bases, &stores, progress).map_err(opening)?;
            image.check_index().map_err(opening)?;
            check_damage(&*image, source, format, options)?;
            let made = image::Made::again(&*image, options);
            make(&*image, "Imprint image", target, format, progress, || Ok(made))?
        }
        Opened::Foreign(disk) => {
            let image = foreign::survey(disk, limit, progress).map_err(opening)?;
            let made = || Ok(image::Made::by_plan(&plan(&image, options)?, options));
            make(&image, &image.disk().format, target, format, progress, made)?
        }
    };
    summary.total_ms = millis(start);
    Ok(summary)
}

/// Refuses to make a file that cannot say what it lacks of an image that can.
fn check_damage(
    image: &dyn DiskImage,
    source: &StoreUrl,
    format: Format,
    options: &ConvertOptions,
) -> Result<()> {
    let damaged = damage::describe(image.manifest());
    let can_say = matches!(format, Format::Image { .. });
    if damaged.is_empty() || can_say || options.accept_bad_sectors {
        return Ok(());
    }
    Err(Error::refused(format!(
        "{source} lacks {} that could not be read when it was made ({}), and a raw disk would have zeros there and not say so; to make it \
         all the same give --accept-bad-sectors",
        size(damage::bytes(image.manifest())),
        damaged.join("; ")
    )))
}

/// What of a foreign image is kept.
fn plan(image: &ForeignImage, options: &ConvertOptions) -> Result<capture::CapturePlan> {
    match &image.disk().access {
        Access::Random(disk) => foreign::by_maps(image, &**disk, options.dirty),
        Access::Stream(_) => foreign::by_survey(image),
    }
}

fn make(
    image: &dyn DiskImage,
    what: &str,
    target: &StoreUrl,
    format: Format,
    progress: &Arc<Progress>,
    made: impl FnOnce() -> Result<image::Made>,
) -> Result<ConvertSummary> {
    let mut summary = match format {
        Format::Image { level } => image::write(image, target, &made()?, level, progress)?,
        Format::Raw => raw::write(image, target, &raw::Plain, progress)?,
        Format::Gzip { level } => raw::write(image, target, &gzip::Gzip::new(level), progress)?,
    };
    summary.source = what.to_owned();
    summary.disk_bytes = image.disk_len();
    summary.damaged = damage::describe(image.manifest());
    Ok(summary)
}

/// How many threads make frames of it: one where a decoder takes most of the memory that there is.
fn workers(image: &dyn DiskImage) -> usize {
    if image.readers() == 1 { 1 } else { capture::cores() }
}

/// The stores' options, with a short queue where a decoder takes most of the memory that there is.
fn stores(image: &dyn DiskImage, progress: &Arc<Progress>) -> store::Options {
    let mut options = store_options(progress);
    if image.readers() == 1 {
        options.queue_chunks = 1;
    }
    options
}

/// Fetches a frame into `content`: its bytes, or nothing for a hole.
fn fetch<'a>(
    fetcher: &mut dyn Fetch,
    entry: &FrameEntry,
    content: &'a mut Vec<u8>,
) -> Result<&'a mut [u8]> {
    let len = match entry.kind {
        FrameKind::Data => usize::try_from(entry.logical_len).expect("a frame is a few MiB"),
        FrameKind::Hole => 0,
    };
    content.resize(len, 0);
    fetcher.fetch(entry, content)?;
    Ok(content)
}

impl fmt::Display for ConvertSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "source     {}, {} of disk", self.source, size(self.disk_bytes))?;
        writeln!(
            f,
            "stored     {} for {} of data",
            size(self.stored_bytes),
            size(self.data_bytes)
        )?;
        writeln!(f, "re-read    {}, all as written", size(self.reread_bytes))?;
        writeln!(f, "total      {}.{:02} s", self.total_ms / 1000, self.total_ms % 1000 / 10)?;
        write!(f, "root       {}", self.root)?;
        self.raw.iter().try_for_each(|raw| write!(f, "\ntaken raw  {raw}"))?;
        self.damaged.iter().try_for_each(|lacking| write!(f, "\nDAMAGED    {lacking}"))
    }
}
