//! Why the controller's own store did not do something.

use std::io::{self, ErrorKind};

use super::RESERVE_BYTES;
use crate::db::DbError;
use crate::names::FileName;

/// Why the store did not do something.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// A file operation failed.
    #[error("{doing} {file} in the controller's store")]
    Io {
        /// What was tried, as a gerund.
        doing: &'static str,
        /// On which file.
        file: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file system is full, or as full as it may get.
    #[error(
        "the file system of the controller's store is full: {available_bytes} bytes are free, of which {RESERVE_BYTES} stay free for the controller; remove images, or give it more room"
    )]
    Full {
        /// What is free.
        available_bytes: u64,
    },
    /// The folder's file system takes nothing.
    #[error(
        "{doing} {file} in the controller's store: its file system is mounted read-only; see why, and mount it writable"
    )]
    ReadOnly {
        /// What was tried, as a gerund.
        doing: &'static str,
        /// On which file.
        file: String,
    },
    /// No such file.
    #[error("there is no file {0} in the controller's store")]
    NotFound(String),
    /// Something that somebody put into the folder, and that is not followed.
    #[error(
        "{0} in the controller's store is a link, a folder or a device, and none of these is followed there: put the file itself in its place, or enter the folder that it is in as a store of its own (`imprint store add`)"
    )]
    NotRegular(String),
    /// A finished file has this name.
    #[error(
        "the controller's store has a file {0} already: choose another name, or remove the image that it is"
    )]
    Exists(String),
    /// Somebody else writes a file of this name.
    #[error(
        "{file} is being written as upload {upload_id}: wait until it is done, or end it (`imprint store rm-file {file} --upload {upload_id}`); somebody's who writes with an API token gives way when nothing was heard of the writer for 10 seconds"
    )]
    BeingWritten {
        /// The file.
        file: String,
        /// The other's upload.
        upload_id: String,
    },
    /// There is no such upload, or no longer.
    #[error("there is no upload {upload_id} of {file}")]
    NoUpload {
        /// The file.
        file: String,
        /// The upload that was meant.
        upload_id: String,
    },
    /// Data does not begin where the file ends.
    #[error(
        "data at {offset} cannot be appended to {received} bytes: send what lies between first"
    )]
    Gap {
        /// Where the data would begin.
        offset: u64,
        /// How long the file is.
        received: u64,
    },
    /// A write or flush of this upload failed: what its file holds is not known.
    #[error("an earlier write to {0} failed: give this upload up and begin again")]
    Broken(String),
    /// What was flushed of an upload is not there any more.
    #[error(
        "what was kept of {0} is gone, or shorter than it was: was it changed by hand? Give this upload up and begin again"
    )]
    Lost(String),
    /// The body did not come.
    #[error("receiving data for {0}")]
    Body(String, #[source] axum::Error),
    /// No data for too long.
    #[error("no data for {0} came for a minute")]
    Idle(String),
    /// The writer sends over another connection by now.
    #[error("another request goes on with {0}")]
    Superseded(String),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// Result of what the store does.
pub type Result<T> = std::result::Result<T, EmbeddedError>;

/// Turns an error of a file operation into one that says whether there was no room.
pub(super) fn io_error(doing: &'static str, file: &str) -> impl FnOnce(io::Error) -> EmbeddedError {
    let file = file.to_owned();
    move |source| match source.kind() {
        _ if source.raw_os_error() == Some(nix::libc::ELOOP) => EmbeddedError::NotRegular(file),
        ErrorKind::IsADirectory => EmbeddedError::NotRegular(file),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            EmbeddedError::Full { available_bytes: 0 }
        }
        ErrorKind::ReadOnlyFilesystem => EmbeddedError::ReadOnly { doing, file },
        _ => EmbeddedError::Io { doing, file, source },
    }
}

/// Whether the same may succeed a little later: the machine was short of something, and the disk has nothing to do with it.
#[must_use]
pub fn may_pass(source: &io::Error) -> bool {
    use nix::libc::{EAGAIN, EMFILE, ENFILE, ENOMEM};
    matches!(source.raw_os_error(), Some(EAGAIN | EMFILE | ENFILE | ENOMEM))
}

pub(super) fn no_upload(file: &FileName, upload_id: &str) -> EmbeddedError {
    EmbeddedError::NoUpload { file: file.to_string(), upload_id: upload_id.to_owned() }
}

#[cfg(test)]
mod tests {
    use nix::libc::{EIO, EMFILE, EROFS};

    use super::*;

    #[test]
    fn a_disk_that_takes_nothing_is_told_from_one_that_fails() {
        let of = |errno| io_error("making", "x")(io::Error::from_raw_os_error(errno));
        assert!(matches!(of(EROFS), EmbeddedError::ReadOnly { .. }));
        assert!(matches!(of(EIO), EmbeddedError::Io { source, .. } if !may_pass(&source)));
        assert!(matches!(of(EMFILE), EmbeddedError::Io { source, .. } if may_pass(&source)));
    }
}
