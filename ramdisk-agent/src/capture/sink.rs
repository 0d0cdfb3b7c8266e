//! The end of the pipeline that makes an image: frames into the store, in order.
//!
//! Holes are gathered until data follow or the image ends. Buffers of stored frames go back to the workers, since fresh memory
//! costs more than what is done in it.

use agent_api::Part;
use crossbeam_channel::{Receiver, Sender};
use image_format::{Beginning, DEFAULT_SPAN_LEN, Header, ImageWriter, Manifest};

use super::crew::Crew;
use super::span::{Encoded, HoleRun};
use crate::error::Result;
use crate::progress::Progress;
use crate::store::StoreWriter;

/// Writes encoded frames to a store.
pub(crate) struct FrameSink<'a> {
    out: ImageWriter<StoreSink<'a>>,
    hole: HoleRun,
    used: Sender<Vec<u8>>,
    free: Receiver<Vec<u8>>,
    progress: &'a Progress,
}

impl<'a> FrameSink<'a> {
    pub(crate) fn create(
        store: &'a mut dyn StoreWriter,
        header: &Header,
        disk_len: u64,
        crew: Crew,
        progress: &'a Progress,
    ) -> Result<Self> {
        let (used, free) = crossbeam_channel::bounded(crew.depth + crew.workers);
        let sink = StoreSink { store, progress };
        let out = ImageWriter::create(sink, header.clone(), disk_len, DEFAULT_SPAN_LEN)?;
        Ok(Self { out, hole: HoleRun::default(), used, free, progress })
    }

    /// Goes on behind what the store holds already.
    pub(crate) fn resume(
        store: &'a mut dyn StoreWriter,
        beginning: Beginning,
        crew: Crew,
        progress: &'a Progress,
    ) -> Self {
        let (used, free) = crossbeam_channel::bounded(crew.depth + crew.workers);
        let out = ImageWriter::resume(StoreSink { store, progress }, beginning);
        Self { out, hole: HoleRun::default(), used, free, progress }
    }

    /// Buffers that may be filled again. There is none at first, and never a wait for one: without, take a new one.
    pub(crate) fn buffers(&self) -> Receiver<Vec<u8>> {
        self.free.clone()
    }

    /// Appends what comes next on the disk. Fails if the work was cancelled.
    pub(crate) fn append(&mut self, encoded: Encoded) -> Result<()> {
        let (disk_bytes, stored_bytes) = match encoded {
            Encoded::Hole { len, runs } => {
                self.hole.add(len, &runs, &mut self.out)?;
                (len, 0)
            }
            Encoded::Data { frame, stored } => {
                self.hole.write_to(&mut self.out)?;
                self.out.append(&frame, &stored)?;
                let lens = (u64::from(frame.logical_len), stored.len() as u64);
                // A full channel only means that this buffer is not needed again.
                let _ = self.used.try_send(stored);
                lens
            }
        };
        self.progress.advance(disk_bytes, stored_bytes)
    }

    /// Writes what is left, the index and the end.
    pub(crate) fn finish(mut self, manifest: &Manifest) -> Result<image_format::Summary> {
        self.hole.write_to(&mut self.out)?;
        let (_, written) = self.out.finish(manifest)?;
        Ok(written)
    }
}

/// Lets the image writer append to a store.
struct StoreSink<'a> {
    store: &'a mut dyn StoreWriter,
    progress: &'a Progress,
}

impl std::io::Write for StoreSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let append = || self.store.append(bytes);
        let appended = self.progress.meter().time(Part::WriteStore, bytes.len() as u64, append);
        appended.map_err(std::io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
