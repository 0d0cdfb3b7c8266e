//! Writing an image to a folder.
//!
//! Writing goes on in a thread of its own behind a bounded queue, past the page cache (O_DIRECT) on disk file systems: an image is not
//! read again soon, and pages of it would push out what this machine needs. Elsewhere write-back is started early, so that the last
//! flush has little left to do.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use rustix::fs::{Advice, fadvise};

use crate::buffer::{AlignedBuf, DIRECT_ALIGN};

use super::super::{ImageFile, Result, StoreError, StoreWriter, write_zeros};
use super::direct::{self, Output};
use super::partial::{create_partial, is_at, partial_of, remove_if_there, rename_new, sync_name};
use super::{FileImage, On, room};

/// What one write call takes: enough that a disk is kept busy by one call at a time.
pub(super) const CHUNK_BYTES: usize = 4 << 20;
/// Shorter stretches of zeros are written: a hole costs the file system an entry in its map.
const MIN_HOLE_BYTES: u64 = 64 << 10;
/// After how much written data write-back is started.
const WRITEBACK_STEP_BYTES: u64 = 16 << 20;

/// Bytes on their way to the write thread, in a buffer that direct writes take.
struct Chunk {
    buffer: AlignedBuf,
    len: usize,
}

impl Chunk {
    fn new() -> Self {
        Self { buffer: AlignedBuf::new(CHUNK_BYTES), len: 0 }
    }

    fn is_full(&self) -> bool {
        self.len == CHUNK_BYTES
    }

    fn as_slice(&self) -> &[u8] {
        &self.buffer.as_slice()[..self.len]
    }

    /// Takes what there is room for; gives how much.
    fn fill(&mut self, data: &[u8]) -> usize {
        let now = data.len().min(CHUNK_BYTES - self.len);
        self.buffer.as_mut_slice()[self.len..self.len + now].copy_from_slice(&data[..now]);
        self.len += now;
        now
    }
}

enum Job {
    Write(Chunk),
    /// Leave a hole of so many bytes, a whole number of sectors.
    Hole(u64),
    /// Flush to stable storage, then answer.
    Flush(Sender<()>),
}

/// Writes a file by way of a thread; see the module's description.
pub(super) struct FileWriter {
    queue_chunks: usize,
    path: PathBuf,
    partial: PathBuf,
    /// Holds the lock; the thread has the same open file.
    file: Arc<File>,
    on: On,
    chunk: Chunk,
    len_bytes: u64,
    durable_bytes: u64,
    /// `None` once the thread was told to end.
    jobs: Option<SyncSender<Job>>,
    spare: Receiver<Chunk>,
    thread: Option<JoinHandle<io::Result<()>>>,
    published: bool,
}

impl FileWriter {
    pub(super) fn create(path: &Path, on: On, queue_chunks: usize) -> Result<Self> {
        let partial = partial_of(path)?;
        let file = create_partial(&partial, on)?;
        Self::behind(path, partial.clone(), file, on, 0, queue_chunks).inspect_err(|_| {
            // Nothing is in it, and whoever comes next replaces it.
            let _ = fs::remove_file(&partial);
        })
    }

    /// Goes on with a partial file that is ours, behind its first `len_bytes`, which are all that it has.
    pub(super) fn behind(
        path: &Path,
        partial: PathBuf,
        file: File,
        on: On,
        len_bytes: u64,
        queue_chunks: usize,
    ) -> Result<Self> {
        let failed = |source| StoreError::local("creating", path.display(), source);
        // Direct writes begin at a sector: what stands in the last one already is written once more.
        let mut chunk = Chunk::new();
        let align = u64::try_from(DIRECT_ALIGN).expect("a sector's length fits 64 bits");
        let start = len_bytes / align * align;
        let mut last = vec![0; usize::try_from(len_bytes - start).expect("less than a sector")];
        FileExt::read_exact_at(&file, &mut last, start).map_err(failed)?;
        chunk.fill(&last);
        let file = Arc::new(file);
        let (jobs, queue) = sync_channel(queue_chunks);
        let (give_back, spare) = channel();
        let thread = std::thread::Builder::new()
            .name("store-file".to_owned())
            .spawn({
                let output =
                    Output { direct: direct::open(&file, &partial), file: Arc::clone(&file) };
                move || write_thread(output, start, &queue, &give_back)
            })
            .map_err(|e| StoreError::local("starting a thread to write", path.display(), e))?;
        Ok(Self {
            queue_chunks,
            path: path.to_owned(),
            partial,
            file,
            on,
            chunk,
            len_bytes,
            durable_bytes: 0,
            jobs: Some(jobs),
            spare,
            thread: Some(thread),
            published: false,
        })
    }

    fn url(&self) -> String {
        self.path.display().to_string()
    }

    fn send(&mut self, job: Job) -> Result<()> {
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if sent { Ok(()) } else { Err(self.thread_error()) }
    }

    /// Why the thread does not take jobs any more.
    fn thread_error(&mut self) -> StoreError {
        self.jobs = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err(source))) => StoreError::local("writing", self.partial.display(), source),
            _ => StoreError::Dead { url: self.url() },
        }
    }

    fn hand_over_chunk(&mut self) -> Result<()> {
        let next = self.spare.try_recv().unwrap_or_else(|_| Chunk::new());
        let full = std::mem::replace(&mut self.chunk, next);
        self.send(Job::Write(full))
    }

    fn end_thread(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // Its error was reported by the call that met it, or nobody wants the file any more.
            let _ = thread.join();
        }
    }

    fn remove_partial(&mut self) -> Result<()> {
        self.end_thread();
        // From here on it is somebody else's business whether the name is there.
        self.published = true;
        let failed = |source| StoreError::local("removing", self.partial.display(), source);
        if is_at(&self.file, &self.partial).map_err(failed)? {
            fs::remove_file(&self.partial).map_err(failed)?;
        }
        Ok(())
    }
}

impl StoreWriter for FileWriter {
    fn holds_bytes(&self) -> u64 {
        // Those that wait, the one that is filled, the one that is written, and one on its way back.
        let chunks = self.queue_chunks + 3;
        u64::try_from(chunks * CHUNK_BYTES).expect("a few chunks")
    }

    fn append(&mut self, mut data: &[u8]) -> Result<()> {
        while !data.is_empty() {
            let taken = self.chunk.fill(data);
            self.len_bytes += u64::try_from(taken).expect("a chunk's length fits 64 bits");
            data = &data[taken..];
            if self.chunk.is_full() {
                self.hand_over_chunk()?;
            }
        }
        Ok(())
    }

    fn append_zeros(&mut self, len_bytes: u64) -> Result<()> {
        let align = u64::try_from(DIRECT_ALIGN).expect("a sector's length fits 64 bits");
        let before = (self.len_bytes.next_multiple_of(align) - self.len_bytes).min(len_bytes);
        let hole = (len_bytes - before) / align * align;
        if hole < MIN_HOLE_BYTES {
            return write_zeros(self, len_bytes);
        }
        // What stands in front of the hole and behind it stays on whole sectors.
        write_zeros(self, before)?;
        if self.chunk.len > 0 {
            self.hand_over_chunk()?;
        }
        self.send(Job::Hole(hole))?;
        self.len_bytes += hole;
        write_zeros(self, len_bytes - before - hole)
    }

    fn leaves_holes(&self) -> bool {
        true
    }

    fn check_room(&self, len_bytes: u64, data_bytes: u64) -> Result<()> {
        room::check(&self.file, &self.partial, len_bytes, data_bytes)
    }

    fn commit(&mut self) -> Result<u64> {
        if self.chunk.len > 0 {
            self.hand_over_chunk()?;
        }
        let (done, answer) = channel();
        self.send(Job::Flush(done))?;
        answer.recv().map_err(|_| self.thread_error())?;
        self.durable_bytes = self.len_bytes;
        Ok(self.durable_bytes)
    }

    fn len(&self) -> u64 {
        self.len_bytes
    }

    fn reader(&self) -> Result<Box<dyn ImageFile>> {
        let failed = |source| StoreError::local("opening", self.partial.display(), source);
        if !is_at(&self.file, &self.partial).map_err(failed)? {
            return Err(StoreError::Lost { url: self.partial.display().to_string() });
        }
        let file = File::open(&self.partial).map_err(failed)?;
        // What is clean leaves the cache, so that reads come from the disk. A file system without a disk (tmpfs) ignores it.
        let _ = fadvise(&file, 0, None, Advice::DontNeed);
        let direct = match self.on {
            On::Machine => direct::open(&self.file, &self.partial),
            On::OwnShare => direct::open_to_read(&self.file, &self.partial),
        };
        Ok(Box::new(FileImage::new(file, direct, &self.partial)?))
    }

    fn publish(mut self: Box<Self>) -> Result<()> {
        if self.durable_bytes != self.len_bytes || self.len_bytes == 0 {
            self.commit()?;
        }
        self.end_thread();
        let failed = |source| StoreError::local("publishing", self.path.display(), source);
        if !is_at(&self.file, &self.partial).map_err(failed)? {
            return Err(StoreError::Lost { url: self.partial.display().to_string() });
        }
        if let Err(source) = rename_new(&self.partial, &self.path) {
            let is_taken = source.kind() == io::ErrorKind::AlreadyExists;
            // A server that is asked once more, since its answer was lost, finds what it did the first time.
            let is_ours = is_at(&self.file, &self.path).map_err(failed)?;
            match (is_taken, is_ours) {
                (true, false) => {
                    return Err(StoreError::Exists { url: self.path.display().to_string() });
                }
                (true, true) => remove_if_there(&self.partial).map_err(failed)?,
                (false, _) => return Err(failed(source)),
            }
        }
        self.published = true;
        sync_name(&self.path, &self.file).map_err(|source| StoreError::NotDurable {
            url: self.path.display().to_string(),
            source,
        })
    }

    fn abort(mut self: Box<Self>) -> Result<()> {
        self.remove_partial()
    }

    fn keep(mut self: Box<Self>) -> Result<()> {
        self.end_thread();
        // As far as this writer is concerned: it must not be removed.
        self.published = true;
        Ok(())
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        if !self.published {
            // Nobody to tell; the next writer of this name replaces what is left.
            let _ = self.remove_partial();
        }
        self.end_thread();
    }
}

fn write_thread(
    mut output: Output,
    start: u64,
    queue: &Receiver<Job>,
    spare: &Sender<Chunk>,
) -> io::Result<()> {
    let mut offset = start;
    let mut started = start;
    let mut ends_in_hole = false;
    for job in queue {
        match job {
            Job::Write(mut chunk) => {
                ends_in_hole = false;
                let direct = output.write(chunk.as_slice(), offset)?;
                offset += u64::try_from(chunk.len).expect("a chunk's length fits 64 bits");
                chunk.len = 0;
                // The writer may be gone: then nobody needs the buffer.
                let _ = spare.send(chunk);
                if direct {
                    started = offset;
                } else if offset - started >= WRITEBACK_STEP_BYTES {
                    start_writeback(&output.file, started, offset - started);
                    started = offset;
                }
            }
            Job::Hole(len_bytes) => {
                if started < offset {
                    start_writeback(&output.file, started, offset - started);
                }
                // A hole is what nobody writes: the file is new, or ends at this place.
                offset += len_bytes;
                started = offset;
                ends_in_hole = true;
            }
            Job::Flush(done) => {
                if ends_in_hole {
                    output.file.set_len(offset)?;
                    output.file.sync_all()?;
                    ends_in_hole = false;
                } else {
                    output.file.sync_data()?;
                }
                // The writer may be gone: then nobody waits.
                let _ = done.send(());
            }
        }
    }
    Ok(())
}

/// Asks the kernel to write a range out now. `POSIX_FADV_DONTNEED` starts write-back of what is dirty (mm/fadvise.c) and drops
/// only what is clean already. It is a wish: nothing depends on it.
fn start_writeback(file: &File, offset: u64, len_bytes: u64) {
    let _ = fadvise(file, offset, std::num::NonZeroU64::new(len_bytes), Advice::DontNeed);
}

#[cfg(test)]
mod tests {
    use super::super::super::ReadAt as _;
    use super::*;

    #[test]
    fn zeros_are_zeros_wherever_they_begin_and_end() {
        use std::os::unix::fs::MetadataExt as _;
        // In the build's output, which is on a disk as a rule, and where direct writes work.
        let program = std::env::current_exe().unwrap();
        for folder in
            [tempfile::tempdir_in(program.parent().unwrap()).unwrap(), tempfile::tempdir().unwrap()]
        {
            // Data and zeros by turns.
            for lens in [
                &[0, 3 << 20][..],
                &[5, 4096, 70_000, 20, 1 << 20, (9 << 20) + 1, 4_095, 65_536],
                &[4096, 16 << 20, 4096],
                &[CHUNK_BYTES, CHUNK_BYTES, 1, 2 * CHUNK_BYTES, 3, 5],
                &[8191, 65_536, 1, 65_536 + 4095, 4096, 8 << 20],
            ] {
                let path = folder.path().join("x.raw");
                let mut writer = FileWriter::create(&path, On::Machine, 2).unwrap();
                let mut expected = Vec::new();
                for (number, len) in lens.iter().enumerate() {
                    if number % 2 == 0 {
                        expected.resize(expected.len() + len, 0xA5);
                        writer.append(&vec![0xA5; *len]).unwrap();
                    } else {
                        expected.resize(expected.len() + len, 0);
                        writer.append_zeros(*len as u64).unwrap();
                    }
                    // In the middle as well: a commit is no end.
                    if number == 1 {
                        assert_eq!(writer.commit().unwrap(), expected.len() as u64);
                    }
                }
                assert_eq!(writer.commit().unwrap(), expected.len() as u64);
                let mut read = vec![1; expected.len()];
                let reader = writer.reader().unwrap();
                assert_eq!(reader.len_bytes(), expected.len() as u64, "{lens:?}");
                reader.read_exact_at(&mut read, 0).unwrap();
                assert!(read == expected, "{lens:?}");
                Box::new(writer).publish().unwrap();
                assert!(fs::read(&path).unwrap() == expected, "{lens:?}");
                let data: usize = lens.iter().step_by(2).sum();
                let taken = fs::metadata(&path).unwrap().blocks() * 512;
                assert!(taken < (data + (1 << 20)) as u64, "{lens:?}: {taken} bytes");
                fs::remove_file(&path).unwrap();
            }
        }
    }

    #[test]
    fn a_full_file_system_is_no_space() {
        // /dev/full is a device: write through the thread as the writer does.
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (jobs, queue) = sync_channel(1);
        let (give_back, _spare) = channel();
        let mut chunk = Chunk::new();
        chunk.fill(&[1; 10]);
        jobs.send(Job::Write(chunk)).unwrap();
        drop(jobs);
        let output = Output { file: Arc::new(full), direct: None };
        let error = write_thread(output, 0, &queue, &give_back).unwrap_err();
        assert!(matches!(StoreError::local("writing", "x", error), StoreError::NoSpace { .. }));
    }
}
