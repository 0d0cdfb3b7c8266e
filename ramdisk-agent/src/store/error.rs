//! What can go wrong with a store, in words for people and a kind for machines.
//!
//! Every message names the image or server, the cause and what to do. URLs hold no secrets, or do not
//! show them, so they may be shown.

use std::io;

use agent_api::ErrorKind;

use super::url::UrlError;
use super::{NAME_MAX_BYTES, PARTIAL_SUFFIX};
use crate::words::size;

/// Why an operation on a store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The text is not a store URL.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// The final name is taken.
    #[error(
        "{url} exists already; images are never overwritten: choose another name or remove it first"
    )]
    Exists {
        /// The image.
        url: String,
    },
    /// Another writer holds the partial file, or a reader the image.
    #[error(
        "{url} is in use by somebody else, who writes or reads it: a job, or a program by hand; wait until that is done, or end it"
    )]
    Busy {
        /// The partial image.
        url: String,
    },
    /// A restore writes to it, or to a loop device over it, or is to: this one perhaps.
    #[error(
        "{url} is the target of a restore, or beneath the loop device that is; an image is not read from what it overwrites: choose another target, or wait until that restore is done"
    )]
    Target {
        /// The image.
        url: String,
    },
    /// Another writer has an upload of this name in a controller's own store.
    #[error(
        "{url} is being written by somebody else: a job, a program by hand, or one that is gone; `imprint store files` says since when and as which upload, and `imprint store rm-file {} --upload UPLOAD` ends it. One by hand of which nothing was heard for 10 s gives way to the next by itself",
        file_name(url)
    )]
    BeingWritten {
        /// The image.
        url: String,
    },
    /// The name is longer than the store takes.
    #[error(
        "{doing} {url}: its name is too long for the store, which has to take it with {PARTIAL_SUFFIX} behind it; choose one of at most {NAME_MAX_BYTES} bytes, or a shorter one where names are limited further"
    )]
    NameTooLong {
        /// What was being done, as a gerund.
        doing: &'static str,
        /// The image.
        url: String,
    },
    /// Nothing of that name.
    #[error("{url} does not exist; {}", where_to_look(url))]
    NotFound {
        /// The image or folder.
        url: String,
    },
    /// A folder where an image is looked for.
    #[error("{url}: it is a folder, not an image")]
    Folder {
        /// The folder.
        url: String,
    },
    /// No share of that name.
    #[error("the server {server} has no share {share}; `smbclient -L` lists those that it has")]
    NoShare {
        /// The server.
        server: String,
        /// The share.
        share: String,
    },
    /// The store said no.
    #[error("{doing} {url}: not permitted: {reason}")]
    Denied {
        /// What was being done, as a gerund.
        doing: &'static str,
        /// The image, folder or server.
        url: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The server is not who it should be, as far as can be told.
    #[error("{server} cannot be trusted: {reason}")]
    Untrusted {
        /// The server.
        server: String,
        /// Why, and what to do.
        reason: String,
    },
    /// This kind of store, or this server, cannot do that.
    #[error("{url}: {reason}")]
    Unsupported {
        /// The image, folder or server.
        url: String,
        /// What is missing, and what to do.
        reason: String,
    },
    /// No room, or over quota.
    #[error(
        "{url}: the store is full or over its quota; make room and start again (what was written has no image's name)"
    )]
    NoSpace {
        /// The image.
        url: String,
    },
    /// No room, as can be told before anything is written.
    #[error(
        "{url}: {} must be written and its file system has {} free: {} are missing; make room and start again (nothing was written)",
        size(*needed), size(*free), size(needed - free)
    )]
    NoRoom {
        /// The image.
        url: String,
        /// How many bytes must be written.
        needed: u64,
        /// How many are free, fewer.
        free: u64,
    },
    /// The server did not answer within the budget.
    #[error("{what} for {seconds} s; check that the server runs and that this network reaches it")]
    Unreachable {
        /// Who does not answer, as a sentence without end.
        what: String,
        /// How long it was tried.
        seconds: u64,
        /// The last thing that went wrong.
        #[source]
        source: Option<io::Error>,
    },
    /// The work was cancelled while a server was waited for.
    #[error("cancelled by a signal or by the controller, {seconds} s after {server} last answered")]
    Cancelled {
        /// Who was waited for.
        server: String,
        /// For how long.
        seconds: u64,
        /// The last thing that went wrong.
        #[source]
        source: Option<io::Error>,
    },
    /// The host name has no address.
    #[error(
        "the name {host} cannot be resolved; check its spelling and this machine's name servers"
    )]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        #[source]
        source: Option<io::Error>,
    },
    /// The local system failed an operation.
    #[error("{doing} {url}")]
    Io {
        /// What was being done, as a gerund.
        doing: &'static str,
        /// The image or folder.
        url: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The server answered with an error.
    #[error("{doing} {url}: the server answered {status}")]
    Server {
        /// What was being done, as a gerund.
        doing: &'static str,
        /// The image or folder.
        url: String,
        /// The server's status.
        status: String,
    },
    /// The server answered something that is not the protocol.
    #[error("{doing} {url}: the server's answer is not valid: {reason}")]
    Protocol {
        /// What was being done, as a gerund.
        doing: &'static str,
        /// The image or folder.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The image is another one, or has another length, than when it was opened.
    #[error("{url} was replaced or changed while it was being read; start again")]
    Replaced {
        /// The image.
        url: String,
    },
    /// What a writer was writing is not there any more, or not as it left it.
    #[error(
        "{url} was removed, replaced or changed while it was being written, and got no image's name; see that nobody else writes or tidies up there and that the server keeps what it was sent, and start again"
    )]
    Lost {
        /// The partial image.
        url: String,
    },
    /// The image has its name, and the folder could not be flushed.
    #[error(
        "{url} is complete and has its name, but a power cut might undo that, since its folder could not be flushed; see to the disk that it is on, then verify the image or remove it and start again"
    )]
    NotDurable {
        /// The image.
        url: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A read past the end.
    #[error(
        "{url} ends at byte {len_bytes}, but bytes up to {wanted} were asked for; it is truncated"
    )]
    PastEnd {
        /// The image.
        url: String,
        /// Its length.
        len_bytes: u64,
        /// The end of the read.
        wanted: u64,
    },
    /// The server keeps forgetting unstable data.
    #[error(
        "{url}: the server lost unwritten data {times} times in a row without once keeping it; it restarts again and again or is faulty: check its log"
    )]
    KeepsForgetting {
        /// The image.
        url: String,
        /// How often.
        times: u32,
    },
    /// The writer failed earlier, or was used wrongly.
    #[error("{url}: the writer cannot go on after an earlier error")]
    Dead {
        /// The image.
        url: String,
    },
}

/// Why a local file system says no, as [`StoreError::local`] has it.
pub(super) const MOUNTED_READ_ONLY: &str = "the file system is mounted read-only";

impl StoreError {
    /// The kind that a job reports.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Url(_)
            | Self::Exists { .. }
            | Self::Busy { .. }
            | Self::Target { .. }
            | Self::BeingWritten { .. }
            | Self::NameTooLong { .. }
            | Self::Folder { .. }
            | Self::Denied { .. }
            | Self::Untrusted { .. }
            | Self::Unsupported { .. } => ErrorKind::Refused,
            Self::NotFound { .. } | Self::NoShare { .. } => ErrorKind::NotFound,
            Self::NoSpace { .. } | Self::NoRoom { .. } => ErrorKind::NoSpace,
            Self::Unreachable { .. } | Self::Resolve { .. } => ErrorKind::Network,
            Self::Cancelled { .. } => ErrorKind::Cancelled,
            Self::PastEnd { .. } => ErrorKind::ImageCorrupt,
            Self::Io { .. }
            | Self::Server { .. }
            | Self::Protocol { .. }
            | Self::Replaced { .. }
            | Self::Lost { .. }
            | Self::NotDurable { .. }
            | Self::KeepsForgetting { .. } => ErrorKind::Store,
            Self::Dead { .. } => ErrorKind::Internal,
        }
    }

    /// The store error that an I/O error from [`ReadAt`](super::ReadAt) carries.
    #[must_use]
    pub fn find(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// The same with another name for the image or folder that it is about.
    pub(super) fn renamed(mut self, rename: impl Fn(&str) -> String) -> Self {
        match &mut self {
            Self::Exists { url }
            | Self::Busy { url }
            | Self::Target { url }
            | Self::BeingWritten { url }
            | Self::NameTooLong { url, .. }
            | Self::Folder { url }
            | Self::NotFound { url }
            | Self::Denied { url, .. }
            | Self::Unsupported { url, .. }
            | Self::NoSpace { url }
            | Self::NoRoom { url, .. }
            | Self::Io { url, .. }
            | Self::Server { url, .. }
            | Self::Protocol { url, .. }
            | Self::Replaced { url }
            | Self::Lost { url }
            | Self::NotDurable { url, .. }
            | Self::PastEnd { url, .. }
            | Self::KeepsForgetting { url, .. }
            | Self::Dead { url } => *url = rename(url),
            Self::Url(_)
            | Self::NoShare { .. }
            | Self::Untrusted { .. }
            | Self::Unreachable { .. }
            | Self::Cancelled { .. }
            | Self::Resolve { .. } => {}
        }
        self
    }

    /// A local I/O error with its place, sorted into the variants that have their own words.
    pub(super) fn local(doing: &'static str, url: impl ToString, source: io::Error) -> Self {
        let url = url.to_string();
        let denied =
            |reason: &str| Self::Denied { doing, url: url.clone(), reason: reason.to_owned() };
        match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound { url },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { url },
            io::ErrorKind::InvalidFilename => Self::NameTooLong { doing, url },
            io::ErrorKind::ReadOnlyFilesystem => denied(MOUNTED_READ_ONLY),
            io::ErrorKind::PermissionDenied => {
                denied("this user may not; run as root or correct the folder's owner and mode")
            }
            _ => Self::Io { doing, url, source },
        }
    }
}

/// The last component of a URL or path.
fn file_name(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or(url)
}

/// Where somebody who misses an image finds out more.
fn where_to_look(url: &str) -> &'static str {
    if url.starts_with("http") {
        "check its address: a web server's folders cannot be listed"
    } else if url.starts_with("nfs4:") {
        "`imprint-agent ls` of its folder shows what is there; an export that this machine may not have looks as if it were not there"
    } else {
        "`imprint-agent ls` of its folder shows what is there"
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        let kind = match &error {
            StoreError::NotFound { .. } | StoreError::NoShare { .. } => io::ErrorKind::NotFound,
            StoreError::NoSpace { .. } => io::ErrorKind::StorageFull,
            StoreError::Denied { .. } | StoreError::Untrusted { .. } => {
                io::ErrorKind::PermissionDenied
            }
            StoreError::Unsupported { .. } => io::ErrorKind::Unsupported,
            StoreError::PastEnd { .. } => io::ErrorKind::UnexpectedEof,
            StoreError::Unreachable { .. } => io::ErrorKind::TimedOut,
            StoreError::Io { source, .. } => source.kind(),
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
