//! The store that is a folder of this machine.
//!
//! A writer's `NAME.partial` is created exclusively and locked (flock) for as long as the writer lives, so that a left-over of a
//! dead run can be told from the file of a live one. Writing goes on in a thread of its own behind a bounded queue, past the page
//! cache (O_DIRECT) on disk file systems: an image is not read again soon, and pages of it would push out what this machine needs.
//! Elsewhere write-back is started early, so that the last flush has little left to do. Publishing is
//! `renameat2(RENAME_NOREPLACE)`, or link and unlink where the file system does not know that.

mod direct;
mod left_over;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use agent_api::StoreFacts;
use rustix::fs::{Advice, CWD, OFlags, RenameFlags, fadvise, renameat_with};
use rustix::io::Errno;

use crate::buffer::{AlignedBuf, DIRECT_ALIGN};

use self::direct::{DirectReads, Output};
use super::{Entry, ImageFile, PARTIAL_SUFFIX, ReadAt, Result, StoreError, StoreWriter};

pub(super) use left_over::left_over;

/// What one write call takes: enough that a disk is kept busy by one call at a time.
const CHUNK_BYTES: usize = 4 << 20;
/// Chunks that may wait for the write thread.
pub(super) const QUEUE_CHUNKS: usize = 4;
/// After how much written data write-back is started.
const WRITEBACK_STEP_BYTES: u64 = 16 << 20;

/// What a folder is on, as far as it changes what is done there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum On {
    /// Whatever this machine has mounted.
    Machine,
    /// A share that was mounted for one image, by NFS version 4. No locks: a server that was away for longer than its lease
    /// has given them up, and then everything behind them fails, though nobody else was there. Reads go past the page cache, so that they
    /// come from the server.
    OwnShare,
}

/// Opens an image (or a disk that holds one) for reading.
pub(super) fn open(path: &Path, on: On) -> Result<Box<dyn ImageFile>> {
    let failed = |source| StoreError::local("opening", path.display(), source);
    let flags = match on {
        On::Machine => OFlags::empty(),
        // A link that a server made would be followed on this machine.
        On::OwnShare => OFlags::NOFOLLOW | OFlags::NONBLOCK,
    };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(failed)?;
    let kind = file.metadata().map_err(failed)?;
    if kind.is_dir() {
        return Err(StoreError::Folder { url: path.display().to_string() });
    }
    let direct = match on {
        On::Machine => None,
        On::OwnShare if !kind.is_file() => {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
            return Err(failed(source));
        }
        On::OwnShare => direct::open_to_read(&file, path),
    };
    Ok(Box::new(FileImage::new(file, direct, path)?))
}

/// Starts to write an image.
pub(super) fn create(path: &Path, on: On, queue_chunks: usize) -> Result<Box<dyn StoreWriter>> {
    Ok(Box::new(FileWriter::create(path, on, queue_chunks)?))
}

/// Lists a folder's regular files.
pub(super) fn list(folder: &Path) -> Result<Vec<Entry>> {
    let failed = |source| StoreError::local("listing", folder.display(), source);
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            // Removed since the folder was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        if metadata.is_file() {
            let name = entry.file_name().to_string_lossy().into_owned();
            entries.push(Entry { name, len_bytes: metadata.len() });
        }
    }
    Ok(entries)
}

/// Removes an image.
pub(super) fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path)
        .map_err(|source| StoreError::local("removing", path.display(), source))?;
    sync_folder(path)
}

#[derive(Debug)]
struct FileImage {
    file: File,
    /// The same file for reads past the page cache.
    direct: Option<DirectReads>,
    path: PathBuf,
    len_bytes: u64,
}

impl FileImage {
    fn new(mut file: File, direct: Option<File>, path: &Path) -> Result<Self> {
        // Not the metadata: a block device has its length only here.
        let len_bytes = file
            .seek(SeekFrom::End(0))
            .map_err(|source| StoreError::local("measuring", path.display(), source))?;
        let direct = direct.map(DirectReads::new);
        Ok(Self { file, direct, path: path.to_owned(), len_bytes })
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if let Some(direct) = &self.direct
            && let Some(result) = direct.read_exact_at(buf, offset)
        {
            return result;
        }
        ReadAt::read_exact_at(&self.file, buf, offset)
    }
}

impl ReadAt for FileImage {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read(buf, offset).map_err(|source| {
            let url = self.path.display().to_string();
            if source.kind() == io::ErrorKind::UnexpectedEof {
                let wanted = offset.saturating_add(u64::try_from(buf.len()).unwrap_or(u64::MAX));
                return StoreError::PastEnd { url, len_bytes: self.len_bytes, wanted }.into();
            }
            StoreError::Io { doing: "reading", url, source }.into()
        })
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len_bytes)
    }
}

impl ImageFile for FileImage {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }
}

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
    /// Flush to stable storage, then answer.
    Flush(Sender<()>),
}

/// Writes a file by way of a thread; see the module's description.
struct FileWriter {
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
    fn create(path: &Path, on: On, queue_chunks: usize) -> Result<Self> {
        let partial = partial_of(path)?;
        let file = create_partial(&partial, on)?;
        Self::behind(path, partial, file, on, 0, queue_chunks)
    }

    /// Goes on with a partial file that is ours, behind its first `len_bytes`, which are all that it has.
    fn behind(
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
            .map_err(failed)?;
        Ok(Self {
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
        let file = File::open(&self.partial)
            .map_err(|source| StoreError::local("opening", self.partial.display(), source))?;
        if !is_at(&self.file, &self.partial).unwrap_or(false) {
            return Err(StoreError::Replaced { url: self.partial.display().to_string() });
        }
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
            return Err(StoreError::Replaced { url: self.partial.display().to_string() });
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
        sync_folder(&self.path)
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
    for job in queue {
        match job {
            Job::Write(mut chunk) => {
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
            Job::Flush(done) => {
                output.file.sync_data()?;
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

/// How large the file system is that a folder is in.
pub(super) fn facts(folder: &Path) -> Result<StoreFacts> {
    let space = rustix::fs::statvfs(folder)
        .map_err(|e| StoreError::local("looking at", folder.display(), e.into()))?;
    let bytes = |blocks: u64| Some(blocks.saturating_mul(space.f_frsize));
    Ok(StoreFacts {
        protocol: "folder".to_owned(),
        free_bytes: bytes(space.f_bavail),
        total_bytes: bytes(space.f_blocks),
        ..StoreFacts::default()
    })
}

/// Where an image is written that will be at `path`, where nothing may be yet.
fn partial_of(path: &Path) -> Result<PathBuf> {
    let failed = |source| StoreError::local("creating", path.display(), source);
    let Some(name) = path.file_name() else {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it has no file name")));
    };
    let mut partial_name = name.to_owned();
    partial_name.push(PARTIAL_SUFFIX);
    if path.symlink_metadata().is_ok() {
        return Err(StoreError::Exists { url: path.display().to_string() });
    }
    Ok(path.with_file_name(partial_name))
}

/// Opens a partial file that somebody left behind, and locks it where that is done.
fn lock_partial(partial: &Path, on: On) -> Result<File> {
    let failed = |source| StoreError::local("opening", partial.display(), source);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(partial)
        .map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "it is not a regular file",
        )));
    }
    if on == On::Machine && file.try_lock().is_err() {
        return Err(StoreError::Busy { url: partial.display().to_string() });
    }
    Ok(file)
}

/// Creates the partial file, and locks it where that is done, in place of a left-over that nobody holds.
fn create_partial(partial: &Path, on: On) -> Result<File> {
    let failed = |source| StoreError::local("creating", partial.display(), source);
    let busy = || StoreError::Busy { url: partial.display().to_string() };
    let no_follow = OFlags::NOFOLLOW.bits().cast_signed();
    // Twice: the left-over may be in the way once.
    for _ in 0..2 {
        let new = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o640)
            .custom_flags(no_follow)
            .open(partial);
        match new {
            Ok(file) => {
                // Between creation and lock another process may have taken this for a left-over.
                let is_locked = on != On::Machine || file.try_lock().is_ok();
                if !is_locked || !is_at(&file, partial).map_err(failed)? {
                    return Err(busy());
                }
                return Ok(file);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(error)),
        }
        let left_over = lock_partial(partial, on)?;
        if is_at(&left_over, partial).map_err(failed)? {
            fs::remove_file(partial).map_err(failed)?;
        }
    }
    Err(busy())
}

/// Whether `path` still names this open file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match path.symlink_metadata() {
        Ok(there) => Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Renames, but never over something.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // The file system (or an old kernel) does not know the flag.
        Err(Errno::INVAL | Errno::NOSYS) => match fs::hard_link(from, to) {
            Ok(()) => remove_if_there(from),
            Err(error) if !is_unknown(&error) => Err(error),
            // There are no hard links either, which leaves the moment between these two.
            Err(_) if to.symlink_metadata().is_ok() => Err(io::ErrorKind::AlreadyExists.into()),
            Err(_) => fs::rename(from, to),
        },
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a file system, or the server behind it, does not know what it was asked for.
fn is_unknown(error: &io::Error) -> bool {
    // What the kernel's NFS client says (include/linux/errno.h), not meant for programs and seen by them.
    const ENOTSUPP: i32 = 524;
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | ENOTSUPP))
}

/// Removes a name of ours, which may be gone already: a server does things twice when its answer was lost.
fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes a change of names durable.
fn sync_folder(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| StoreError::local("flushing", folder.display(), source))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(len: usize, seed: u32) -> Vec<u8> {
        let mut state = seed | 1;
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            out.extend_from_slice(&state.to_be_bytes());
        }
        out.truncate(len);
        out
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = list(folder).unwrap().into_iter().map(|entry| entry.name).collect();
        names.sort();
        names
    }

    fn create(path: &Path, on: On) -> Result<Box<dyn StoreWriter>> {
        super::create(path, on, QUEUE_CHUNKS)
    }

    #[test]
    fn what_was_written_is_read_back_and_published() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.img.zst");
        let data = pattern(5 * CHUNK_BYTES + 4321, 7);
        let mut writer = create(&path, On::Machine).unwrap();
        for piece in data.chunks(777_777) {
            writer.append(piece).unwrap();
        }
        assert_eq!(writer.commit().unwrap(), writer.len());
        let mut back = vec![0; data.len()];
        writer.reader().unwrap().read_exact_at(&mut back, 0).unwrap();
        assert!(back == data);
        assert_eq!(names(folder.path()), ["x.img.zst.partial"]);
        writer.append(b"tail").unwrap();
        writer.publish().unwrap();
        assert_eq!(names(folder.path()), ["x.img.zst"]);
        let image = open(&path, On::Machine).unwrap();
        assert_eq!(image.len_bytes(), u64::try_from(data.len() + 4).unwrap());
        let mut tail = [0; 4];
        image.read_exact_at(&mut tail, image.len_bytes() - 4).unwrap();
        assert_eq!(&tail, b"tail");
        let error = image.read_exact_at(&mut tail, image.len_bytes() - 3).unwrap_err();
        assert!(matches!(StoreError::find(&error), Some(StoreError::PastEnd { .. })), "{error}");
        remove(&path).unwrap();
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn an_existing_image_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, "old").unwrap();
        assert!(matches!(create(&path, On::Machine), Err(StoreError::Exists { .. })));
        fs::remove_file(&path).unwrap();
        let mut writer = create(&path, On::Machine).unwrap();
        writer.append(b"new").unwrap();
        // Somebody was faster.
        fs::write(&path, "old").unwrap();
        assert!(matches!(writer.publish(), Err(StoreError::Exists { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["x"]);
    }

    #[test]
    fn a_left_over_is_replaced_but_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(folder.path().join("x.partial"), "of a dead run").unwrap();
        let mut writer = create(&path, On::Machine).unwrap();
        assert!(matches!(create(&path, On::Machine), Err(StoreError::Busy { .. })));
        writer.append(b"new").unwrap();
        writer.publish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn what_was_kept_is_gone_on_with_at_any_byte() {
        // On a disk, as a rule, so that writes go past the page cache.
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("x");
        let data = pattern(2 * CHUNK_BYTES + 4321, 11);
        assert!(left_over(&path, On::Machine).unwrap().is_none());
        for cut in [0, 1, 4095, 4096, 4097, CHUNK_BYTES, CHUNK_BYTES + 777, 2 * CHUNK_BYTES - 1] {
            let mut writer = create(&path, On::Machine).unwrap();
            writer.append(&data).unwrap();
            assert!(matches!(left_over(&path, On::Machine), Err(StoreError::Busy { .. })));
            writer.commit().unwrap();
            writer.keep().unwrap();
            let left = left_over(&path, On::Machine).unwrap().unwrap();
            assert!(matches!(create(&path, On::Machine), Err(StoreError::Busy { .. })));
            let mut back = vec![0; data.len()];
            left.reader().unwrap().read_exact_at(&mut back, 0).unwrap();
            assert!(back == data);
            let mut writer = left.go_on(u64::try_from(cut).unwrap()).unwrap();
            assert_eq!(writer.len(), u64::try_from(cut).unwrap());
            writer.append(&data[cut..]).unwrap();
            assert_eq!(writer.commit().unwrap(), u64::try_from(data.len()).unwrap());
            writer.publish().unwrap();
            assert!(fs::read(&path).unwrap() == data, "cut at {cut}");
            remove(&path).unwrap();
        }
        let mut writer = create(&path, On::Machine).unwrap();
        writer.append(b"a").unwrap();
        writer.keep().unwrap();
        let left = left_over(&path, On::Machine).unwrap().unwrap();
        assert!(matches!(left.go_on(2), Err(StoreError::Replaced { .. })));
        assert_eq!(names(folder.path()), ["x.partial"], "it stays as it is");
    }

    #[test]
    fn abort_and_drop_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let mut writer = create(&path, On::Machine).unwrap();
        writer.append(&pattern(3 * CHUNK_BYTES, 1)).unwrap();
        drop(writer);
        assert!(names(folder.path()).is_empty());
        let mut writer = create(&path, On::Machine).unwrap();
        writer.append(b"a").unwrap();
        writer.abort().unwrap();
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_symlink_in_the_partials_place_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let victim = folder.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, folder.path().join("x.partial")).unwrap();
        assert!(create(&folder.path().join("x"), On::Machine).is_err());
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
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

    #[test]
    fn a_missing_folder_is_named() {
        let error = create(Path::new("/nonexistent/x"), On::Machine).err().unwrap();
        assert!(error.to_string().contains("/nonexistent/x.partial"), "{error}");
        assert_eq!(error.kind(), agent_api::ErrorKind::NotFound);
    }
}
