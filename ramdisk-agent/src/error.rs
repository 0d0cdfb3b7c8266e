//! The engine's error: a small kind for machines, a sentence for people, and the cause.
//!
//! The sentence names the thing and what to do; it never repeats its cause, which follows when the chain is printed. Modules
//! with their own error types (stores, the image format) are causes here.

use std::error::Error as StdError;
use std::fmt;

use agent_api::ErrorKind;
use image_format::FormatError;

use crate::store::StoreError;

/// Result of the engine.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, for machines (`kind`) and for people (the chain of messages).
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error without a deeper cause.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// A safety rule said no; nothing was changed.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused, message)
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// Puts a sentence in front; the kind stays.
    #[must_use]
    pub fn context(self, message: impl Into<String>) -> Self {
        Self { kind: self.kind, message: message.into(), source: Some(Box::new(self)) }
    }

    /// The kind, for exit codes and job records.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The whole chain on one line: "restoring …: writing …: No space left on device".
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}

impl From<FormatError> for Error {
    fn from(error: FormatError) -> Self {
        // A store's own error travels inside the I/O error: its kind is the better one.
        let (kind, message) = match &error {
            FormatError::Read { source, .. } => (io_kind(source), "reading the image"),
            FormatError::Write { source, .. } => (io_kind(source), "writing the image"),
            FormatError::Compress { .. }
            | FormatError::BadSpan { .. }
            | FormatError::BadFrame { .. }
            | FormatError::HoleTooLong { .. }
            | FormatError::BadSpanLen { .. }
            | FormatError::ProducerTooLong { .. } => (ErrorKind::Internal, "making the image"),
            FormatError::DiskTooLarge { .. }
            | FormatError::ManifestTooLong { .. }
            | FormatError::TooMany { .. } => (ErrorKind::Refused, "making the image"),
            _ => (ErrorKind::ImageCorrupt, "checking the image"),
        };
        Self::new(kind, message).because(error)
    }
}

fn io_kind(error: &std::io::Error) -> ErrorKind {
    StoreError::find(error).map_or(ErrorKind::Store, StoreError::kind)
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::new(error.kind(), "using the store").because(error)
    }
}

/// Turns the error of a system call into [`Error`] with a kind and a sentence.
pub trait IoContext<T> {
    /// The failure of a disk: its message says what was being done, where.
    fn on_disk(self, doing: impl FnOnce() -> String) -> Result<T>;
    /// A failure of the environment: missing files, descriptors, threads.
    fn internal(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn on_disk(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| {
            let kind = match e.kind() {
                // Of the filesystem beneath a disk file or a loop device.
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                    ErrorKind::NoSpace
                }
                _ => ErrorKind::Disk,
            };
            Error::new(kind, doing()).because(e)
        })
    }

    fn internal(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::new(ErrorKind::Internal, doing()).because(e))
    }
}
