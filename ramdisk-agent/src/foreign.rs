//! Images that other tools have made, read as disks.
//!
//! [`open`] tells an Imprint image from a foreign one and each foreign format from the others, by their first bytes. Every format
//! gives a [`Walk`] over its disk, from start to end. [`survey`] walks it once and writes nothing: an image without hashes of
//! its own gets them here, and all that is wrong with it shows. What comes out is a [`ForeignImage`], a
//! [`DiskImage`](crate::image::DiskImage) like our own: restore, verify, plan and convert work on it, and content comes out only if
//! it has the hash of the survey.
//!
//! The parsers are total, allocate nothing by an unchecked size, and follow no reference out of an image but to files beside it that
//! its descriptor lists. Deliberately absent: writing these formats, and guessing what a damaged image may have meant.
//! `docs/foreign-images.md` is the user's side of this.

mod assembled;
mod error;
pub mod folder;
mod image;
mod kept;
mod logical;
mod others;
pub mod partclone;
mod plan;
pub mod qcow2;
mod raw;
mod saved_table;
pub mod sfdisk;
mod source;
mod spans;
mod stream;
mod survey;
pub mod vmdk;
mod volume;
mod walk;

use std::fmt;
use std::io::Read;
use std::os::unix::fs::FileTypeExt as _;
use std::sync::Arc;

use agent_api::{CaptureOptions, ErrorKind};
use image_format::{Header, ReadAt};
use uuid::Uuid;

pub(crate) use assembled::swap_header;
pub use error::{ForeignError, Result};
pub use image::ForeignImage;
pub use others::Other;
pub use plan::{by_maps, by_survey};
pub use source::{Source, Stream};
pub use spans::{Body, Limit, SPAN_LEN, Span, Spans};
pub use stream::Codec;
pub use survey::Survey;
pub use walk::{Piece, RandomDisk, RandomWalk, ReadWalk, Stretch, Walk};

use crate::error::{Error, Result as EngineResult};
use crate::extents::Extents;
use crate::progress::Progress;
use crate::store::{self, ImageFile, StoreUrl};
use crate::sys;
use crate::words::size;

/// The most that a disk of unknown size may turn out to have, in bytes: enough for any, and an end to what has none.
pub const MAX_DISK_LEN: u64 = 64 << 40;
/// Enough of a file to tell its format.
const HEAD_LEN: usize = 4096;

/// What a file of a store turned out to be.
pub enum Opened {
    /// An image of our own; its reader says whether it is sound.
    Imprint(Box<dyn ImageFile>),
    /// Another tool's.
    Foreign(ForeignDisk),
}

/// How the disk in a foreign image can be read.
#[derive(Clone)]
pub enum Access {
    /// Anywhere.
    Random(Arc<dyn RandomDisk>),
    /// From the start on, as often as needed.
    Stream(Arc<dyn Fn() -> Result<Box<dyn Walk>> + Send + Sync>),
}

/// The disk in a foreign image, of which no more than the beginning was looked at.
#[derive(Clone)]
pub struct ForeignDisk {
    /// What it is, for people: `qcow2`, `raw disk in a stream of gzip`.
    pub format: String,
    /// The length that the image claims, if it claims one.
    pub declared_len: Option<u64>,
    /// What the image says of sectors, if it does.
    pub sector_bytes: Option<u32>,
    /// The files.
    pub sources: Vec<Source>,
    /// Parts of the disk for which the image itself knows what is in use.
    pub mapped: Extents,
    /// How much memory a stream's decoder takes, where it is much and its first bytes tell.
    pub window_bytes: u64,
    /// The way to its bytes.
    pub access: Access,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Imprint(_) => "Imprint",
            Self::Foreign(_) => "Foreign",
        })
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Random(_) => "Random",
            Self::Stream(_) => "Stream",
        })
    }
}

impl fmt::Debug for ForeignDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForeignDisk")
            .field("format", &self.format)
            .field("declared_len", &self.declared_len)
            .finish_non_exhaustive()
    }
}

impl ForeignDisk {
    /// Bytes in the files.
    #[must_use]
    pub fn stored_len(&self) -> u64 {
        self.sources.iter().map(Source::len).sum()
    }

    /// Bytes that were read from the files.
    #[must_use]
    pub fn fetched(&self) -> u64 {
        self.sources.iter().map(Source::fetched).sum()
    }

    /// From the disk's first byte to its last.
    pub fn walk(&self) -> Result<Box<dyn Walk>> {
        match &self.access {
            Access::Random(disk) => Ok(Box::new(RandomWalk::new(Arc::clone(disk)))),
            Access::Stream(start) => start(),
        }
    }

    fn random(format: &str, sources: Vec<Source>, disk: impl RandomDisk + 'static) -> Self {
        Self {
            format: format.to_owned(),
            declared_len: Some(disk.len()),
            sector_bytes: None,
            sources,
            mapped: Extents::new(),
            window_bytes: 0,
            access: Access::Random(Arc::new(disk)),
        }
    }
}

/// Opens a file or a folder of a store and tells what it is.
pub fn open(url: &StoreUrl, options: &store::Options) -> EngineResult<Opened> {
    let file = match store::open_with(url, options) {
        Ok(file) => file,
        Err(error) if may_be_folder(url, &error) => {
            return open_folder(url, options).unwrap_or_else(|| Err(error.into()));
        }
        Err(error) => return Err(error.into()),
    };
    let len = file.len_bytes();
    let mut head = vec![0; usize::try_from(len).unwrap_or(HEAD_LEN).min(HEAD_LEN)];
    let reading = |e| Error::from(ForeignError::Read { format: "foreign", source: e });
    file.read_exact_at(&mut head, 0).map_err(reading)?;
    if image_format::is_image(&head) {
        return Ok(Opened::Imprint(file));
    }
    let mut source = Source::new(vec![Arc::new(file)]).map_err(reading)?;
    if let StoreUrl::File(path) = url
        && std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device())
    {
        let device = std::fs::File::open(path).map_err(reading)?;
        source = source.of_device(sys::block::logical_sector_bytes(&device).map_err(reading)?);
    }
    let beside = |name: &str| {
        let folder = url.parent().ok_or_else(|| {
            ForeignError::refused("VMDK", "the files that it lists cannot be found from its URL")
        })?;
        let failed = |e: store::StoreError| ForeignError::read("VMDK")(e.into());
        let file = store::open_with(&folder.join(name), options).map_err(failed)?;
        Source::new(vec![Arc::new(file)]).map_err(ForeignError::read("VMDK"))
    };
    Ok(Opened::Foreign(detect(source, url.file_name().unwrap_or_default(), &beside)?))
}

/// Whether it is worth while to look for a folder where no file could be opened. A server that was waited for in vain is not waited for
/// again, and a password that was refused is not tried a second time, which could lock the account. An export of NFS cannot be looked up
/// in the folder above it, whatever that says.
fn may_be_folder(url: &StoreUrl, error: &store::StoreError) -> bool {
    use store::StoreError::{Cancelled, Folder, Resolve, Unreachable, Untrusted, Url};
    match error {
        Folder { .. } | Url(_) => true,
        Unreachable { .. } | Cancelled { .. } | Resolve { .. } | Untrusted { .. } => false,
        _ => !matches!(url, StoreUrl::Smb(_)),
    }
}

/// What cannot be opened as a file may be a folder.
fn open_folder(url: &StoreUrl, options: &store::Options) -> Option<EngineResult<Opened>> {
    let entries = store::list(url, options).ok()?;
    let opening = |name: &str| -> Result<Arc<dyn ReadAt>> {
        let failed = |e: store::StoreError| ForeignError::read("folder")(e.into());
        Ok(Arc::new(store::open_with(&url.join(name), options).map_err(failed)?))
    };
    let names = entries.into_iter().map(|entry| entry.name).collect();
    let disk = folder::open(&folder::Folder { names, open: &opening });
    Some(disk.map(Opened::Foreign).map_err(Error::from))
}

/// The volume in a file that holds one partition.
fn volume_of(source: Source) -> Result<ForeignDisk> {
    let head = source.head(HEAD_LEN).map_err(ForeignError::read("foreign"))?;
    match Codec::detect(&head) {
        None if !partclone::is_partclone(&head) => match Other::by_head(&head) {
            Some(other) => Err(other.refused()),
            None => stream_of(None, source),
        },
        codec => stream_of(codec, source),
    }
}

/// Tells the format of a file that is not ours. A name that says something else than the bytes makes it refused. `beside` opens
/// the files that a descriptor lists.
pub fn detect(source: Source, name: &str, beside: &vmdk::Beside<'_>) -> Result<ForeignDisk> {
    let head = &source.head(HEAD_LEN).map_err(ForeignError::read("foreign"))?;
    if let Some(codec) = Codec::detect(head) {
        return Ok(end_checked(stream_of(Some(codec), source)?, codec.name()));
    }
    if partclone::is_partclone(head) {
        return stream_of(None, source);
    }
    if qcow2::is_qcow2(head) {
        let disk = qcow2::Qcow2::open(source.clone())?;
        return Ok(ForeignDisk::random("qcow2 image", vec![source], disk));
    }
    if vmdk::is_sparse(head) {
        let disk = vmdk::open_sparse(source.clone())?;
        return Ok(ForeignDisk::random("VMDK image", vec![source], disk));
    }
    if vmdk::is_descriptor(head) {
        let (disk, files) = vmdk::open_descriptor(&source, beside)?;
        return Ok(ForeignDisk::random("VMDK image", files, disk));
    }
    if let Some(other) = Other::by_head(head) {
        return Err(other.refused());
    }
    let tail = source.tail(others::TAIL_LEN).map_err(ForeignError::read("raw"))?;
    if let Some(other) = Other::by_tail(&tail).filter(|_| !source.is_device()) {
        return Err(other.refused());
    }
    // A stream whose first bytes are damaged must not become a disk.
    const SUFFIXES: [&str; 30] = [
        ".gz", ".xz", ".bz2", ".zst", ".zstd", ".lz4", ".lzo", ".lz", ".lzma", ".lrz", ".qcow2",
        ".qed", ".vmdk", ".vhd", ".vhdx", ".vdi", ".vma", ".tar", ".zip", ".7z", ".rar", ".wim",
        ".esd", ".ffu", ".e01", ".aff", ".gho", ".tib", ".fsa", ".imgd",
    ];
    let lower = name.to_ascii_lowercase();
    if let Some(suffix) = SUFFIXES.iter().find(|suffix| lower.ends_with(**suffix)) {
        return Err(ForeignError::damaged(
            "raw disk",
            format!("by its name it is a {suffix} file, but it does not begin as one"),
        ));
    }
    check_disk_len(source.len())?;
    let sector_bytes = source.sector_bytes();
    let disk = ForeignDisk::random("raw disk", vec![source.clone()], raw::RawDisk(source));
    Ok(ForeignDisk { sector_bytes, ..disk })
}

/// The bytes of a file, decompressed if they are compressed.
fn decoded(codec: Option<Codec>, source: &Source) -> Result<Box<dyn Read + Send>> {
    match codec {
        Some(codec) => codec.decode(source),
        None => Ok(Box::new(source.stream())),
    }
}

/// What is only read from start to end: a disk or a partclone image in a compressed stream, or a partclone image.
fn stream_of(codec: Option<Codec>, source: Source) -> Result<ForeignDisk> {
    let name = codec.map_or(partclone::FORMAT, Codec::name);
    let compressed = source.head(HEAD_LEN).map_err(ForeignError::read(name))?;
    codec.map_or(Ok(()), |codec| codec.check_window(&compressed))?;
    let window_bytes = codec.map_or(0, |codec| codec.window_bytes(&compressed));
    let mut head = vec![0; HEAD_LEN];
    let read =
        walk::fill(&mut decoded(codec, &source)?, &mut head).map_err(ForeignError::read(name))?;
    head.truncate(read);
    let within = codec.map(|codec| format!(" in a stream of {}", codec.name())).unwrap_or_default();
    let inner = source.clone();
    if partclone::is_partclone(&head) {
        let header = partclone::Header::parse(&head)?;
        let start = move || -> Result<Box<dyn Walk>> {
            Ok(Box::new(partclone::Partclone::open(decoded(codec, &inner)?)?))
        };
        return Ok(ForeignDisk {
            format: format!("partclone image of {}{within}", header.filesystem),
            declared_len: Some(header.len),
            sector_bytes: None,
            sources: vec![source],
            mapped: Extents::single(0, header.len),
            window_bytes,
            access: Access::Stream(Arc::new(start)),
        });
    }
    if image_format::is_image(&head) {
        let reason = "an Imprint image is in this stream: unpack it first";
        return Err(ForeignError::refused(name, reason));
    }
    if let Some(other) = Other::by_head(&head) {
        return Err(other.refused_in(name));
    }
    let start = move || -> Result<Box<dyn Walk>> {
        Ok(Box::new(ReadWalk::new(decoded(codec, &inner)?, name)))
    };
    Ok(ForeignDisk {
        format: format!("raw disk{within}"),
        declared_len: None,
        sector_bytes: None,
        sources: vec![source],
        mapped: Extents::new(),
        window_bytes,
        access: Access::Stream(Arc::new(start)),
    })
}

/// Looks at the last bytes of a stream's disk as well: some formats have their mark there.
fn end_checked(mut disk: ForeignDisk, stream: &'static str) -> ForeignDisk {
    // A partclone image says how long its volume is.
    if let (Access::Stream(start), None) = (&disk.access, disk.declared_len) {
        let start = Arc::clone(start);
        disk.access = Access::Stream(Arc::new(move || {
            Ok(Box::new(others::EndChecked::new(start()?, stream)))
        }));
    }
    disk
}

/// Refuses what cannot be a disk.
fn check_disk_len(len: u64) -> Result<()> {
    if len == 0 || !len.is_multiple_of(512) {
        return Err(ForeignError::refused(
            "raw disk",
            format!(
                "{len} bytes are not a whole number of sectors, so this is no disk, or not all of it; known formats are listed \
                 in docs/foreign-images.md"
            ),
        ));
    }
    Ok(())
}

/// Refuses a disk that claims to be larger than it may be.
pub fn check_declared_len(disk: &ForeignDisk, limit: &Limit) -> EngineResult<()> {
    match disk.declared_len {
        Some(len) if len > limit.bytes => {
            Err(Error::refused(format!("the image's disk has {}, and {}", size(len), limit.reason)))
        }
        _ => Ok(()),
    }
}

/// The limit where there is no target.
#[must_use]
pub fn any_disk() -> Limit {
    Limit {
        bytes: MAX_DISK_LEN,
        reason: format!("no more than {} are read from foreign images", size(MAX_DISK_LEN)),
    }
}

/// Walks a foreign image once, without writing anything.
pub fn survey(
    disk: ForeignDisk,
    limit: Limit,
    progress: &Arc<Progress>,
) -> EngineResult<ForeignImage> {
    check_declared_len(&disk, &limit)?;
    let format = disk.format.clone();
    let reading = |e: Error| e.context(format!("reading the {format}"));
    let walk = disk.walk().map_err(|e| reading(e.into()))?;
    let total = disk.declared_len.unwrap_or(0);
    let survey = survey::make(walk, limit, total, progress).map_err(reading)?;
    if let Some(declared) = disk.declared_len.filter(|len| *len != survey.disk_len) {
        return Err(Error::from(ForeignError::damaged(
            "foreign",
            format!("it holds {} bytes of disk and claims {declared}", survey.disk_len),
        )));
    }
    check_disk_len(survey.disk_len)?;
    let header =
        Header::new(Uuid::from_bytes(id_of(&survey)), format!("{} (foreign)", disk.format));
    let mut image = ForeignImage::new(disk, survey, image::bare_manifest(&header));
    let manifest = match plan::by_survey(&image) {
        Ok(plan) => plan.manifest(&header, &CaptureOptions::default(), &Extents::new()),
        // What cannot be restored for its table can still be verified, and converted to a raw disk.
        Err(error) if error.kind() == ErrorKind::Refused => image.without_table(error.chain()),
        Err(error) => return Err(error),
    };
    image.set_manifest(manifest);
    Ok(image)
}

/// The same content has the same identity.
fn id_of(survey: &Survey) -> [u8; 16] {
    let mut id = [0; 16];
    id.copy_from_slice(&survey.root.as_bytes()[..16]);
    id
}
