//! Where a foreign image's bytes come from: files of a store, as one run of bytes, read at positions or as a stream.
//!
//! A stream is read ahead by a thread of its own, so that a network's delay and the decompressor's work overlap; the thread ends
//! with the stream.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, bounded};
use image_format::ReadAt;

/// What one read of the store asks for.
const CHUNK_LEN: usize = 1 << 20;
/// Chunks that may wait for the reader.
const CHUNKS_AHEAD: usize = 2;

/// The bytes of an image's file or files, and how many were read.
#[derive(Clone)]
pub struct Source {
    files: Arc<[(u64, Arc<dyn ReadAt>)]>,
    len: u64,
    fetched: Arc<AtomicU64>,
    /// The sectors that it has, if it is a device.
    device: Option<u32>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("files", &self.files.len()).field("len", &self.len).finish()
    }
}

impl Source {
    /// One file, or several that are one behind the other, as `split` makes them.
    pub fn new(files: Vec<Arc<dyn ReadAt>>) -> io::Result<Self> {
        let mut len = 0_u64;
        let mut placed = Vec::with_capacity(files.len());
        for file in files {
            let file_len = file.len()?;
            placed.push((len, file));
            len = len.checked_add(file_len).ok_or(io::ErrorKind::FileTooLarge)?;
        }
        Ok(Self { files: placed.into(), len, fetched: Arc::default(), device: None })
    }

    /// Bytes that are in memory.
    #[must_use]
    pub fn of_bytes(bytes: Vec<u8>) -> Self {
        let len = bytes.len() as u64;
        let file: Arc<dyn ReadAt> = Arc::new(bytes);
        Self { files: Arc::new([(0, file)]), len, fetched: Arc::default(), device: None }
    }

    /// The same bytes, said to be a device with logical sectors of that size, and not a file.
    #[must_use]
    pub fn of_device(self, sector_bytes: u32) -> Self {
        Self { device: Some(sector_bytes), ..self }
    }

    /// The size of its logical sectors, if it is a device.
    #[must_use]
    pub fn sector_bytes(&self) -> Option<u32> {
        self.device
    }

    /// Whether it is a device: its last sector is a disk's, not the end of a file's format.
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.device.is_some()
    }

    /// The length of all files together.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many bytes were read in all; shared by all clones.
    #[must_use]
    pub fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    /// Up to `max` bytes at the beginning.
    pub fn head(&self, max: usize) -> io::Result<Vec<u8>> {
        let mut head = vec![0; usize::try_from(self.len).unwrap_or(max).min(max)];
        self.read_exact_at(&mut head, 0)?;
        Ok(head)
    }

    /// Up to `max` bytes at the end.
    pub fn tail(&self, max: usize) -> io::Result<Vec<u8>> {
        let len = usize::try_from(self.len).unwrap_or(max).min(max);
        let mut tail = vec![0; len];
        self.read_exact_at(&mut tail, self.len - len as u64)?;
        Ok(tail)
    }

    /// Reads all of it in order.
    #[must_use]
    pub fn stream(&self) -> Stream {
        let (full_in, full) = bounded::<io::Result<Vec<u8>>>(CHUNKS_AHEAD);
        let (empty, empty_out) = bounded::<Vec<u8>>(CHUNKS_AHEAD + 1);
        let source = self.clone();
        let thread = std::thread::spawn(move || {
            let mut at = 0;
            while at < source.len {
                let len = usize::try_from(source.len - at).unwrap_or(CHUNK_LEN).min(CHUNK_LEN);
                let mut chunk = empty_out.try_recv().unwrap_or_default();
                chunk.resize(len, 0);
                let read = source.read_exact_at(&mut chunk, at).map(|()| chunk);
                at += len as u64;
                let failed = read.is_err();
                if full_in.send(read).is_err() || failed {
                    return;
                }
            }
        });
        Stream { full: Some(full), empty, chunk: Vec::new(), at: 0, thread: Some(thread) }
    }
}

impl ReadAt for Source {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.len);
        if end.is_none() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "it ends at byte {} and more is needed, at byte {offset}: it is truncated",
                    self.len
                ),
            ));
        }
        self.fetched.fetch_add(buf.len() as u64, Ordering::Relaxed);
        let (mut at, mut rest) = (offset, buf);
        let mut file = self.files.partition_point(|(start, _)| *start <= offset).saturating_sub(1);
        while !rest.is_empty() {
            let (start, source) = &self.files[file];
            let next = self.files.get(file + 1).map_or(self.len, |(next, _)| *next);
            let len = usize::try_from(next - at).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            if len > 0 {
                source.read_exact_at(now, at - start)?;
            }
            at += len as u64;
            rest = later;
            file += 1;
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }
}

/// All bytes of a [`Source`] in order; made by [`Source::stream`].
#[derive(Debug)]
pub struct Stream {
    full: Option<Receiver<io::Result<Vec<u8>>>>,
    empty: crossbeam_channel::Sender<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
    thread: Option<JoinHandle<()>>,
}

impl io::BufRead for Stream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.chunk.len()
            && let Some(full) = &self.full
        {
            // The other end is gone when all was read, or after an error, which was handed out then.
            if let Ok(next) = full.recv() {
                let old = std::mem::replace(&mut self.chunk, next?);
                self.at = 0;
                // A full queue only means that this buffer is not needed again.
                let _ = self.empty.try_send(old);
            }
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, len: usize) {
        self.at = (self.at + len).min(self.chunk.len());
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let ready = io::BufRead::fill_buf(self)?;
        let len = ready.len().min(buf.len());
        buf[..len].copy_from_slice(&ready[..len]);
        io::BufRead::consume(self, len);
        Ok(len)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Without a receiver the thread's next send fails.
        self.full = None;
        if let Some(thread) = self.thread.take() {
            // It has nothing to say: errors went through the queue.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(lens: &[usize]) -> (Source, Vec<u8>) {
        let all: Vec<u8> = (0..=250).cycle().take(lens.iter().sum()).collect();
        let mut at = 0;
        let files = lens
            .iter()
            .map(|len| {
                at += len;
                Arc::new(all[at - len..at].to_vec()) as Arc<dyn ReadAt>
            })
            .collect();
        (Source::new(files).unwrap(), all)
    }

    #[test]
    fn files_are_read_as_one() {
        let (source, all) = pieces(&[10, 0, 1, 3 << 20, 7]);
        assert_eq!(source.len(), all.len() as u64);
        let mut read = Vec::new();
        source.stream().read_to_end(&mut read).unwrap();
        assert!(read == all);
        for (at, len) in [(0, 5), (8, 4), (9, 3), (all.len() - 8, 8), (0, all.len())] {
            let mut buf = vec![0; len];
            source.read_exact_at(&mut buf, at as u64).unwrap();
            assert!(buf == all[at..at + len]);
        }
        let mut one = [0];
        for beyond in [all.len() as u64, u64::MAX] {
            let error = source.read_exact_at(&mut one, beyond).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn a_stream_may_be_dropped_early_and_errors_come_through() {
        struct Broken;
        impl ReadAt for Broken {
            fn read_exact_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
                Err(io::Error::other("no"))
            }
            fn len(&self) -> io::Result<u64> {
                Ok(100 << 20)
            }
        }
        let (source, _) = pieces(&[9 << 20]);
        drop(source.stream());
        let mut stream = Source::new(vec![Arc::new(Broken)]).unwrap().stream();
        assert_eq!(stream.read(&mut [0; 10]).unwrap_err().to_string(), "no");
    }
}
