//! One file that is being written.
//!
//! Its writer appends at the end and nowhere else. A request that a broken network left hanging gives way to the writer's next one:
//! the newest request is the one that writes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{BodyDataStream, Bytes};
use futures_util::StreamExt;
use tokio::sync::{MutexGuard, watch};
use tokio::time::timeout;

use super::error::io_error;
use super::uploads::UploadState;
use super::{EmbeddedError, Result, blocking};

/// The most bytes that one request may bring.
pub const APPEND_MAX: u64 = 64 << 20;
/// A request that brings nothing for so long has ended.
const IDLE: Duration = Duration::from_secs(60);
/// Bytes that are gathered before they are written.
const WRITE_BYTES: usize = 1 << 20;

/// The file and how far it is.
#[derive(Debug)]
pub struct Upload {
    file: String,
    id: String,
    job: Option<i64>,
    content: Arc<File>,
    received: AtomicU64,
    durable: AtomicU64,
    /// What its file holds is not known.
    is_broken: AtomicBool,
    /// Another one takes its place, or none.
    is_ended: AtomicBool,
    /// Held by the request that writes.
    writing: tokio::sync::Mutex<()>,
    /// Number of the newest request that wants to write.
    newest: watch::Sender<u64>,
    /// When its writer was last heard of.
    heard: Mutex<Instant>,
}

impl Upload {
    pub(super) fn new(
        file: String,
        id: String,
        job: Option<i64>,
        content: File,
        len_bytes: u64,
        heard: Instant,
    ) -> Self {
        Self {
            file,
            id,
            job,
            content: Arc::new(content),
            received: AtomicU64::new(len_bytes),
            durable: AtomicU64::new(len_bytes),
            is_broken: AtomicBool::new(false),
            is_ended: AtomicBool::new(false),
            writing: tokio::sync::Mutex::default(),
            newest: watch::Sender::new(0),
            heard: Mutex::new(heard),
        }
    }

    /// Name of the file when it is finished.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// What its writer calls it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The job whose agent writes it; `None`: somebody with an API token.
    #[must_use]
    pub fn job(&self) -> Option<i64> {
        self.job
    }

    /// So many bytes are on stable storage.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// How far it is.
    #[must_use]
    pub fn state(&self) -> UploadState {
        UploadState {
            file: self.file.clone(),
            upload_id: self.id.clone(),
            received_bytes: self.received.load(Ordering::Acquire),
            durable_bytes: self.durable(),
            is_published: false,
        }
    }

    /// Its writer is there.
    pub(super) fn hear(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// When its writer was last heard of.
    pub(super) fn heard(&self) -> Instant {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its file once more, to be read.
    pub(super) fn file_again(&self) -> io::Result<File> {
        self.content.try_clone()
    }

    pub(super) fn set_durable(&self, bytes: u64) {
        self.durable.fetch_max(bytes, Ordering::AcqRel);
    }

    /// Whoever writes is stopped, and nobody writes any more.
    pub(super) fn end(&self) {
        self.is_ended.store(true, Ordering::Release);
        self.newest.send_modify(|number| *number += 1);
    }

    /// Stops whoever writes, and lets nobody else begin for as long as this is held.
    pub(super) async fn still(&self) -> MutexGuard<'_, ()> {
        self.newest.send_modify(|number| *number += 1);
        self.writing.lock().await
    }

    fn check(&self) -> Result<()> {
        if self.is_ended.load(Ordering::Acquire) {
            let (file, upload_id) = (self.file.clone(), self.id.clone());
            return Err(EmbeddedError::NoUpload { file, upload_id });
        }
        if self.is_broken.load(Ordering::Acquire) {
            return Err(EmbeddedError::Broken(self.file.clone()));
        }
        Ok(())
    }

    /// Appends what a body brings. `offset` is where its first byte belongs: what is there already is dropped, so that a request
    /// whose answer got lost can be sent again. What came before an error is kept.
    ///
    /// # Errors
    /// When there is a gap, the body ends early, or the disk fails.
    pub async fn append(&self, offset: u64, body: &mut BodyDataStream) -> Result<()> {
        let mut newest = self.newest.subscribe();
        self.newest.send_modify(|number| *number += 1);
        let own = *newest.borrow_and_update();
        self.hear();
        let _writing = self.writing.lock().await;
        self.check()?;
        let received = self.received.load(Ordering::Acquire);
        if offset > received {
            return Err(EmbeddedError::Gap { offset, received });
        }
        let mut known = received - offset;
        let mut gathered = Vec::with_capacity(WRITE_BYTES);
        let result = loop {
            if *newest.borrow() != own {
                break Err(EmbeddedError::Superseded(self.file.clone()));
            }
            let next = tokio::select! {
                next = timeout(IDLE, body.next()) => next,
                _ = newest.changed() => continue,
            };
            let data: Bytes = match next {
                Ok(Some(Ok(data))) => data,
                Ok(Some(Err(error))) => break Err(EmbeddedError::Body(self.file.clone(), error)),
                Ok(None) => break Ok(()),
                Err(_) => break Err(EmbeddedError::Idle(self.file.clone())),
            };
            self.hear();
            let skipped = usize::try_from(known).unwrap_or(usize::MAX).min(data.len());
            known -= skipped as u64;
            gathered.extend_from_slice(&data[skipped..]);
            if gathered.len() >= WRITE_BYTES {
                gathered = self.write(gathered).await?;
            }
        };
        // What came before the connection broke is worth keeping: it need not be sent again.
        if !gathered.is_empty() {
            self.write(gathered).await?;
        }
        result
    }

    /// Writes at the end and gives the buffer back, empty.
    async fn write(&self, data: Vec<u8>) -> Result<Vec<u8>> {
        self.check()?;
        let at = self.received.load(Ordering::Acquire);
        let content = Arc::clone(&self.content);
        let len_bytes = data.len() as u64;
        let (result, mut buffer) = blocking(move || (content.write_all_at(&data, at), data)).await;
        if let Err(error) = result {
            // A part may be there; it is behind what counts as received, and is written over.
            return Err(io_error("writing", &self.file)(error));
        }
        self.received.store(at + len_bytes, Ordering::Release);
        buffer.clear();
        Ok(buffer)
    }

    /// Puts on stable storage what was received until now; so many bytes it is.
    ///
    /// # Errors
    /// When that fails. The upload is then worth nothing: the kernel may have dropped what it could not write.
    pub(super) async fn flush(&self) -> Result<u64> {
        self.check()?;
        let received = self.received.load(Ordering::Acquire);
        if received == self.durable() {
            return Ok(received);
        }
        let content = Arc::clone(&self.content);
        if let Err(error) = blocking(move || content.sync_all()).await {
            self.is_broken.store(true, Ordering::Release);
            return Err(io_error("flushing", &self.file)(error));
        }
        Ok(received)
    }
}
