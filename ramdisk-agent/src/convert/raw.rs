//! A raw disk out of an image, as it is or compressed: one stream of bytes, whatever [`Encode`] makes of each frame.

use std::sync::Arc;

use agent_api::{ErrorKind, Stage};
use image_format::{FrameEntry, FrameKind, ReadAt};
use uuid::Uuid;

use super::{ConvertSummary, fetch};
use crate::error::{Error, Result};
use crate::foreign::Source;
use crate::image::DiskImage;
use crate::pipeline;
use crate::progress::Progress;
use crate::store::{self, StoreUrl, StoreWriter};

/// What is hashed at once for a hole.
const ZEROS_LEN: usize = 4 << 20;

/// How frames become a stream: each is encoded for itself, on several threads, and then joined to the others in order.
pub trait Encode: Sync {
    /// What a worker makes of a frame.
    type Piece: Send;
    /// What is carried from piece to piece.
    type Joint: Default;
    /// Whether the stream is the disk, byte for byte: then it is known beforehand how much will be written.
    const IS_DISK: bool;

    /// Encodes the bytes of a data frame, or, if there are none, so many zeros.
    fn encode(&self, content: &[u8], len: u64, buffer: Vec<u8>) -> Result<Self::Piece>;

    /// Appends the next piece; its buffer comes back.
    fn append(
        &self,
        joint: &mut Self::Joint,
        piece: Self::Piece,
        out: &mut Output<'_>,
    ) -> Result<Vec<u8>>;

    /// Begins the stream.
    fn begin(&self, out: &mut Output<'_>) -> Result<()>;

    /// Ends the stream.
    fn finish(&self, joint: Self::Joint, out: &mut Output<'_>) -> Result<()>;
}

/// Where the stream goes, and the hash of what went there.
pub struct Output<'a> {
    store: &'a mut dyn StoreWriter,
    hasher: blake3::Hasher,
}

impl Output<'_> {
    /// Appends to the stream.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        Ok(self.store.append(bytes)?)
    }

    /// Appends so many zeros, as a hole where the store has holes.
    pub fn put_hole(&mut self, len: u64) -> Result<()> {
        let zeros = vec![0; ZEROS_LEN];
        let mut left = len;
        while left > 0 {
            let now = usize::try_from(left).unwrap_or(ZEROS_LEN).min(ZEROS_LEN);
            self.hasher.update(&zeros[..now]);
            left -= now as u64;
        }
        Ok(self.store.append_zeros(len)?)
    }
}

/// The disk as it is.
#[derive(Debug)]
pub struct Plain;

impl Encode for Plain {
    type Piece = (u64, Vec<u8>);
    type Joint = ();
    const IS_DISK: bool = true;

    fn encode(&self, content: &[u8], len: u64, mut buffer: Vec<u8>) -> Result<Self::Piece> {
        buffer.clear();
        buffer.extend_from_slice(content);
        Ok((len, buffer))
    }

    fn append(
        &self,
        (): &mut (),
        (len, bytes): Self::Piece,
        out: &mut Output<'_>,
    ) -> Result<Vec<u8>> {
        if bytes.is_empty() {
            out.put_hole(len)?;
        } else {
            out.put(&bytes)?;
        }
        Ok(bytes)
    }

    fn begin(&self, _: &mut Output<'_>) -> Result<()> {
        Ok(())
    }

    fn finish(&self, (): (), _: &mut Output<'_>) -> Result<()> {
        Ok(())
    }
}

/// Writes, checks and publishes the stream.
pub fn write<E: Encode>(
    image: &dyn DiskImage,
    target: &StoreUrl,
    encode: &E,
    progress: &Arc<Progress>,
) -> Result<ConvertSummary> {
    progress.begin_work()?;
    let mut writer = store::create(target, Uuid::new_v4(), &super::stores(image, progress))?;
    let room = if E::IS_DISK { check_room(image, &*writer) } else { Ok(()) };
    let checked = room
        .and_then(|()| write_frames(image, &mut *writer, encode, progress))
        .and_then(|(hash, data_bytes)| Ok((check(&mut *writer, hash, progress)?, data_bytes)));
    let (stored_bytes, data_bytes) = match checked {
        Ok(done) => done,
        Err(error) => {
            return Err(crate::capture::give_up(writer, target, false, error));
        }
    };
    progress.begin(Stage::Committing, 0);
    writer.publish()?;
    Ok(ConvertSummary {
        root: image.root().to_string(),
        data_bytes,
        stored_bytes,
        reread_bytes: stored_bytes,
        ..ConvertSummary::default()
    })
}

/// Refuses a disk whose data have no room in the store, before hours are spent on it.
fn check_room(image: &dyn DiskImage, writer: &dyn StoreWriter) -> Result<()> {
    let mut data_bytes = 0;
    for frame in image.frames() {
        let frame = frame?;
        if frame.kind == FrameKind::Data {
            data_bytes += u64::from(frame.logical_len);
        }
    }
    Ok(writer.check_room(image.disk_len(), data_bytes)?)
}

fn write_frames<E: Encode>(
    image: &dyn DiskImage,
    store: &mut dyn StoreWriter,
    encode: &E,
    progress: &Arc<Progress>,
) -> Result<(blake3::Hash, u64)> {
    progress.begin(Stage::Capturing, image.disk_len());
    let mut out = Output { store, hasher: blake3::Hasher::new() };
    encode.begin(&mut out)?;
    let workers = super::workers(image);
    let depth = (workers * 2 + 2).min(image.readers());
    let (pool_in, pool_out) = crossbeam_channel::bounded::<Vec<u8>>(depth + workers);
    let threads = (0..workers)
        .map(|_| {
            let mut fetcher = image.fetcher()?;
            let (mut content, pool) = (Vec::new(), pool_out.clone());
            Ok(move |entry: FrameEntry| {
                let content = fetch(&mut *fetcher, &entry, &mut content)?;
                let buffer = pool.try_recv().unwrap_or_default();
                let len = u64::from(entry.logical_len);
                let data = content.len() as u64;
                Ok((encode.encode(content, len, buffer)?, len, data))
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let (mut data_bytes, mut joint) = (0, E::Joint::default());
    pipeline::run(image.frames(), threads, depth, |(piece, len, data)| {
        let buffer = encode.append(&mut joint, piece, &mut out)?;
        // A full pool only means that this buffer is not needed again.
        let _ = pool_in.try_send(buffer);
        data_bytes += data;
        progress.advance(len, 0)
    })?;
    encode.finish(joint, &mut out)?;
    Ok((out.hasher.finalize(), data_bytes))
}

/// Makes it durable and reads it again; how long it is.
fn check(
    writer: &mut dyn StoreWriter,
    hash: blake3::Hash,
    progress: &Arc<Progress>,
) -> Result<u64> {
    progress.begin(Stage::Flushing, 0);
    let len = writer.commit()?;
    progress.begin(Stage::Verifying, len);
    let file: Arc<dyn ReadAt> = Arc::new(writer.reader()?);
    let failed = |e| Error::new(ErrorKind::Store, "reading again what was written").because(e);
    let mut stream = Source::new(vec![file]).map_err(failed)?.stream();
    let mut hasher = blake3::Hasher::new();
    loop {
        let bytes = std::io::BufRead::fill_buf(&mut stream).map_err(failed)?;
        let len = bytes.len();
        if len == 0 {
            break;
        }
        hasher.update(bytes);
        std::io::BufRead::consume(&mut stream, len);
        progress.advance(len as u64, len as u64)?;
    }
    if hasher.finalize() != hash || hasher.count() != len {
        return Err(Error::new(
            ErrorKind::Store,
            "the store gives back other bytes than were written",
        ));
    }
    Ok(len)
}
