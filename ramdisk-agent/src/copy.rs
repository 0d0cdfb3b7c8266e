//! Copying an image of our own from one store to another, and removing one.
//!
//! A copy is the same bytes: every frame is compared with its hash on its way, all of the copy is read again and hashed before it gets
//! its name, and it has to come to the root that the source has. A signature goes along if the name stays, since it is of that too. A
//! delta image is of use only with the image that it is the difference to, so [`copy`] asks for that at the target, and [`remove`] asks
//! for delta images beside the one that is to go. Deliberately absent: images of other tools, which have no hashes (`convert` makes one
//! of ours of them), and going on with a copy that was cut off.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use agent_api::{CaptureSummary, CopySummary, DELTA_SUFFIX, ErrorKind, IMAGE_SUFFIX, Part, Stage};
use image_format::{FrameBase, FrameEntry, ImageReader, Parent, ReadAt, Root};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::image::{self, has_image_name};
use crate::opening::{open_own_reader, store_options};
use crate::progress::{Progress, millis};
use crate::restore::check_root;
use crate::store::{self, Options, StoreError, StoreUrl, StoreWriter};
use crate::words::size;
use crate::{capture, pipeline, trust, verify};

/// What lies between frames (index, tables) is moved in pieces of this length.
const PIECE_BYTES: u64 = 1 << 20;

/// What may be asked of a copy.
#[derive(Debug, Clone, Default)]
pub struct CopyOptions {
    /// The root that the image must have.
    pub expect_root: Option<String>,
    /// A delta image is copied to where its base is not.
    pub without_base: bool,
}

/// What is moved at once.
enum Piece {
    /// A frame, which its hash is known of.
    Frame(FrameEntry),
    /// Bytes of the index or the tables, which the root covers.
    Between { offset: u64, len: u64 },
}

/// Copies the image at `source` to `target`, which must not exist.
///
/// # Errors
/// If a store fails, the source is no image of ours or a damaged one, or the target lacks the base of a delta image. There is no
/// file of the target's name then.
pub fn copy(
    source: &StoreUrl,
    target: &StoreUrl,
    options: &CopyOptions,
    progress: &Arc<Progress>,
) -> Result<CopySummary> {
    let start = Instant::now();
    let stores = store_options(progress);
    let image = open_own_reader(source, progress)?;
    check_root(&image, options.expect_root.as_deref())?;
    check_name(target, image.header().is_delta())?;
    if let Some(parent) = image.manifest().parent.as_ref().filter(|_| !options.without_base) {
        require_base(parent, target, &stores, progress)?;
    }
    image.check_seek_table().map_err(|e| Error::from(e).context(format!("checking {source}")))?;
    let same_name = source.file_name() == target.file_name();
    let signed = trust::read_beside(source, &stores)?;
    progress.begin_work()?;
    // Of an id of its own: two copies of one image that are made at once are two files.
    let mut writer = store::create(target, Uuid::new_v4(), &stores)?;
    let written = write(&image, &mut *writer, progress).and_then(|()| match &signed {
        Some(signed) if same_name => signed.write(target, &stores),
        _ => Ok(Vec::new()),
    });
    let beside = match written {
        Ok(beside) => beside,
        Err(error) => {
            return Err(capture::give_up(writer, target, false, error));
        }
    };
    let mut checked =
        CaptureSummary { stored_bytes: image.stored_len(), ..CaptureSummary::default() };
    if let Err(error) = capture::publish(writer, target, image.root(), &mut checked, None, progress)
    {
        for url in beside {
            // The first error is the one that matters; what stays is a text that belongs to no image.
            let _ = store::remove(&url, &stores.to_tidy_up());
        }
        return Err(error);
    }
    let manifest = image.manifest();
    let used = manifest.volumes.iter().map(|volume| volume.used_bytes).sum();
    Ok(CopySummary {
        root: image.root().to_string(),
        image_id: image.header().image_id.to_string(),
        disk_bytes: image.disk_len(),
        used_bytes: used,
        stored_bytes: image.stored_len(),
        reread_bytes: checked.reread_bytes,
        parent_root: manifest.parent.as_ref().map(|parent| parent.root.to_string()),
        signature: signed.map(|_| same_name),
        total_ms: millis(start),
        limited_by: checked.limited_by,
    })
}

/// Refuses a name under which nobody would find the image again.
fn check_name(target: &StoreUrl, is_delta: bool) -> Result<()> {
    let suffix = if is_delta { DELTA_SUFFIX } else { IMAGE_SUFFIX };
    if target.file_name().is_some_and(|name| name.ends_with(suffix) && name != suffix) {
        return Ok(());
    }
    let kind = if is_delta { "delta" } else { "whole" };
    Err(Error::refused(format!(
        "{target} does not end in NAME{suffix}, as the names of {kind} images do"
    )))
}

fn require_base(
    parent: &Parent,
    target: &StoreUrl,
    stores: &Options,
    progress: &Arc<Progress>,
) -> Result<()> {
    match image::parent_beside(parent, target, stores, progress) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(Error::refused(format!(
            "the image is only the difference to image {} with the root {}, which is not where {target} would be: copy that one \
             first, or give --without-base",
            parent.name, parent.root
        ))),
        Err(error) => Err(error.context(format!("looking for the base, image {}", parent.name))),
    }
}

/// Appends every byte of the image, in order.
fn write(
    image: &ImageReader<impl ReadAt>,
    writer: &mut dyn StoreWriter,
    progress: &Arc<Progress>,
) -> Result<()> {
    progress.begin(Stage::Copying, image.stored_len());
    let meter = progress.meter();
    let readers = verify::readers();
    meter.set_threads(readers);
    let (give_back, spare) = crossbeam_channel::unbounded::<Vec<u8>>();
    let workers = (0..readers)
        .map(|_| {
            let spare = spare.clone();
            move |piece: Piece| {
                let mut bytes = spare.try_recv().unwrap_or_default();
                match piece {
                    Piece::Frame(entry) => {
                        image.read_stored(&entry, &mut bytes)?;
                    }
                    Piece::Between { offset, len } => {
                        bytes.resize(usize::try_from(len).expect("a piece is a MiB at most"), 0);
                        image.source().read_exact_at(&mut bytes, offset).map_err(|e| {
                            let kind =
                                StoreError::find(&e).map_or(ErrorKind::Store, StoreError::kind);
                            Error::new(kind, format!("reading the image at {offset}")).because(e)
                        })?;
                    }
                }
                Ok(bytes)
            }
        })
        .collect();
    pipeline::run(pieces(image), workers, readers + 2, |bytes: Vec<u8>| {
        let len = bytes.len() as u64;
        meter.time(Part::WriteStore, len, || writer.append(&bytes))?;
        // The readers may have ended: then nobody needs it.
        let _ = give_back.send(bytes);
        progress.advance(len, len)
    })?;
    if writer.len() == image.stored_len() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Internal, "the pieces of the image are not as long as it is"))
}

/// All of the file, in order: its frames, and what is between them.
fn pieces<R: ReadAt>(image: &ImageReader<R>) -> Pieces<impl Iterator<Item = Result<FrameEntry>>> {
    Pieces {
        frames: image.frames().map(|frame| frame.map_err(Error::from)),
        waiting: None,
        at: 0,
        end: image.stored_len(),
    }
}

struct Pieces<I> {
    frames: I,
    /// A frame that is reached when everything before it is.
    waiting: Option<FrameEntry>,
    at: u64,
    end: u64,
}

impl<I: Iterator<Item = Result<FrameEntry>>> Iterator for Pieces<I> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.waiting.is_none() {
            match self.frames.next() {
                // Of a reference nothing is stored.
                Some(Ok(frame)) if frame.base == FrameBase::Reference => {}
                Some(Ok(frame)) => self.waiting = Some(frame),
                Some(Err(error)) => return Some(Err(error)),
                None => break,
            }
        }
        let next = self.waiting.as_ref().map_or(self.end, |frame| frame.stored_offset);
        if let Some(len) = next.checked_sub(self.at).filter(|len| *len > 0) {
            let (offset, len) = (self.at, len.min(PIECE_BYTES));
            self.at += len;
            return Some(Ok(Piece::Between { offset, len }));
        }
        let frame = self.waiting.take()?;
        if frame.stored_offset < self.at {
            let fault = format!("frame {} begins within what is before it", frame.index);
            return Some(Err(Error::new(ErrorKind::ImageCorrupt, fault)));
        }
        self.at += u64::from(frame.stored_len);
        Some(Ok(Piece::Frame(frame)))
    }
}

/// Removes the image at `url`, with the signature beside it.
///
/// # Errors
/// If it is an image with another root than is expected; if a delta image in the same folder is the difference to it, or that cannot be
/// told, unless `force` is given; or the store fails.
pub fn remove(
    url: &StoreUrl,
    expect_root: Option<&str>,
    force: bool,
    progress: &Arc<Progress>,
) -> Result<()> {
    if !url.file_name().is_some_and(has_image_name) {
        return Err(Error::refused(format!(
            "{url} is no image by its name, which ends in {IMAGE_SUFFIX} or {DELTA_SUFFIX}: remove other files with other tools"
        )));
    }
    let stores = store_options(progress);
    if let Some(text) = expect_root {
        let root = text.trim().parse::<Root>().map_err(|_| {
            Error::refused(format!(
                "'{text}' is no root hash: those are 64 hexadecimal digits, as inspect prints them"
            ))
        })?;
        refuse_other(url, root, &stores)?;
    }
    if !force {
        refuse_base(url, &stores)?;
    }
    progress.begin_work()?;
    store::remove(url, &stores).map_err(|e| Error::from(e).context(format!("removing {url}")))?;
    trust::remove_beside(url, &stores)
}

/// Refuses an image that is not the one with this root. A damaged one cannot be known by its root, only by its name.
fn refuse_other(url: &StoreUrl, root: Root, stores: &Options) -> Result<()> {
    match image::open_one(url, stores) {
        Ok(image) if image.root() != root => Err(Error::refused(format!(
            "{url} holds another image: its root hash is {}, not {root}; nothing was removed",
            image.root()
        ))),
        Err(error) if error.kind() != ErrorKind::ImageCorrupt => Err(error),
        _ => Ok(()),
    }
}

/// Refuses an image that another one in its folder needs.
fn refuse_base(url: &StoreUrl, stores: &Options) -> Result<()> {
    let Some(folder) = url.parent() else { return Ok(()) };
    let own_name = url.file_name().unwrap_or_default();
    let entries = store::list(&folder, stores)
        .map_err(|e| Error::from(e).context(format!("looking for delta images in {folder}")))?;
    let others = |name: &&str| name.ends_with(DELTA_SUFFIX) && *name != own_name;
    let deltas: Vec<&str> =
        entries.iter().map(|entry| entry.name.as_str()).filter(others).collect();
    if deltas.is_empty() {
        return Ok(());
    }
    // A damaged image has no root to go by; it can still be meant by its name.
    let root = match image::open_one(url, stores) {
        Ok(image) => Some(image.root()),
        Err(error) if error.kind() == ErrorKind::ImageCorrupt => None,
        Err(error) => return Err(error),
    };
    for name in deltas {
        let delta = folder.join(name);
        let image = match image::open_one(&delta, stores) {
            Ok(image) => image,
            // Removed since the folder was listed.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => {
                return Err(Error::refused(format!(
                    "{delta} cannot be read, so nobody knows whether it needs {url}; nothing was removed: remove that one first, or \
                     give --force"
                ))
                .because(error));
            }
        };
        let Some(parent) = &image.manifest().parent else { continue };
        if root.map_or(parent.name == own_name, |root| root == parent.root) {
            return Err(Error::refused(format!(
                "{delta} is only the difference to {url} and is worth nothing without it; nothing was removed: remove that one \
                 first, make a whole image of it (`imprint-agent flatten`), or give --force"
            )));
        }
    }
    Ok(())
}

/// A copy for people.
#[derive(Debug)]
pub struct Shown<'a>(pub &'a CopySummary);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CopySummary { stored_bytes, reread_bytes, total_ms, root, .. } = self.0;
        writeln!(f, "copied     {}", size(*stored_bytes))?;
        writeln!(f, "re-read    {}, all hashes right", size(*reread_bytes))?;
        match self.0.signature {
            Some(true) => writeln!(f, "signature  copied too")?,
            Some(false) => writeln!(
                f,
                "signature  not copied: it is of the image's old name as well; sign the copy"
            )?,
            None => {}
        }
        writeln!(f, "total      {}.{:02} s", total_ms / 1000, total_ms % 1000 / 10)?;
        write!(f, "root       {root}")?;
        self.0.limited_by.iter().try_for_each(|what| write!(f, "\nlimited by {what}"))
    }
}
