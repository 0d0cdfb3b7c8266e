//! Stores: where images lie.
//!
//! A store is a folder-like place named by a URL ([`StoreUrl`]): a path, a share of an NFS or SMB server, or a place on a web server
//! (reading only). Everything here blocks and is positional: [`open`] gives an [`ImageFile`] that several threads read at once, [`create`] a [`StoreWriter`] that only
//! appends. A writer writes `NAME.partial`; only [`StoreWriter::publish`] gives it its name, and never over something that is
//! there. What [`StoreWriter::commit`] reports is on stable storage as far as the server tells the truth;
//! [`StoreWriter::reader`] reads it again so that a caller can see for itself.
//!
//! Servers that go away are waited for within a budget ([`Options`]); an [`Observer`] hears of it. Deliberately absent: caches,
//! writing in the middle, credentials in URLs. `docs/stores.md` is the user's side of this.

mod access;
mod claim;
mod connect;
mod error;
mod file;
mod filling;
mod http;
mod limit;
mod nfs;
mod nfs4;
mod pool;
mod several;
mod smb;
mod url;
mod watch;
mod window;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agent_api::{StoreAccess, StoreFacts};
use uuid::Uuid;

pub use access::Access;
pub use error::StoreError;
use file::On;
#[doc(hidden)]
pub use http::read_anything as read_any_http;
pub use image_format::ReadAt;
pub use limit::{Limiter, Told, Way};
#[doc(hidden)]
pub use nfs::read_anything as read_any_nfs;
pub use several::{Several, Tally};
#[doc(hidden)]
pub use smb::read_anything as read_any_smb;
pub use url::{HttpUrl, Nfs4Url, NfsUrl, SmbUrl, StoreUrl, UrlError, shown};

/// What this module's functions return.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// What a writer adds to the final name while the image is not yet published.
pub const PARTIAL_SUFFIX: &str = ".partial";

/// The longest name of an image, in bytes: with what a writer adds it has the 255 bytes that file systems take.
pub const NAME_MAX_BYTES: usize = 255 - PARTIAL_SUFFIX.len();

/// What is written at once for zeros where a store can leave no hole.
const ZEROS_LEN: usize = 1 << 20;

/// An image in a store, opened for reading from any number of threads.
///
/// Reads fail with a [`std::io::Error`] that holds a [`StoreError`]; [`StoreError::find`] gets it back.
pub trait ImageFile: ReadAt {
    /// How long the image is, in bytes.
    fn len_bytes(&self) -> u64;
}

/// An image being written.
///
/// Dropping a writer that was not published removes what it wrote, as far as the store can be reached.
pub trait StoreWriter: Send {
    /// Appends `data`. It may stay in memory until [`commit`](Self::commit); an error may belong to an earlier call.
    fn append(&mut self, data: &[u8]) -> Result<()>;

    /// Appends so many zeros. Where files can have holes, nothing is written for them.
    fn append_zeros(&mut self, len_bytes: u64) -> Result<()> {
        write_zeros(self, len_bytes)
    }

    /// Whether [`append_zeros`](Self::append_zeros) leaves holes.
    fn leaves_holes(&self) -> bool {
        false
    }

    /// Whether there is room for a file of this length with so many bytes in it that are not appended as zeros; to be asked before anything is
    /// appended. Where a store does not tell, or may take less for them, the answer is yes.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`] with the bytes that are missing.
    fn check_room(&self, len_bytes: u64, data_bytes: u64) -> Result<()> {
        let _ = (len_bytes, data_bytes);
        Ok(())
    }

    /// Waits until everything appended is on stable storage and returns its length.
    fn commit(&mut self) -> Result<u64>;

    /// How many bytes were appended.
    fn len(&self) -> u64;

    /// Whether nothing was appended yet.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The most memory that it takes for bytes that are on their way.
    fn holds_bytes(&self) -> u64 {
        MOST_HELD_BYTES
    }

    /// How many bytes went over the network more than once because the server forgot them.
    fn resent_bytes(&self) -> u64 {
        0
    }

    /// Opens what is committed for reading, past the caches of this side: a new connection, or a fresh file handle.
    fn reader(&self) -> Result<Box<dyn ImageFile>>;

    /// Commits what is left and gives the image its name. Fails, and leaves no image, when the name is taken by now.
    fn publish(self: Box<Self>) -> Result<()>;

    /// Gives up: removes what was written.
    fn abort(self: Box<Self>) -> Result<()>;

    /// Stops writing, and leaves what was written for [`left_over`] to find; a store that cannot go on with it removes it.
    fn keep(self: Box<Self>) -> Result<()> {
        self.abort()
    }
}

/// What a writer over a network takes: the bytes that it keeps until they are durable, and the requests that carry some of them.
pub const MOST_HELD_BYTES: u64 = 72 << 20;

/// Zeros, appended as any other bytes.
fn write_zeros<W: StoreWriter + ?Sized>(writer: &mut W, len_bytes: u64) -> Result<()> {
    let zeros = vec![0; ZEROS_LEN];
    let mut left = len_bytes;
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(ZEROS_LEN).min(ZEROS_LEN);
        writer.append(&zeros[..now])?;
        left -= now as u64;
    }
    Ok(())
}

/// What a writer that was cut off has left behind. As long as this lives, no other writer of this side gets at it, where the store
/// knows locks. Dropping it changes nothing.
pub trait LeftOver: Send {
    /// Opens it for reading. What can be read is on stable storage, as far as the server tells the truth.
    fn reader(&self) -> Result<Box<dyn ImageFile>>;

    /// Cuts it off behind this many bytes and goes on writing there.
    fn go_on(self: Box<Self>, len_bytes: u64) -> Result<Box<dyn StoreWriter>>;
}

/// Hears when a store does not answer.
pub trait Observer: Send + Sync {
    /// The store has not answered for a while; said again every few seconds with the new figure.
    fn stalled(&self, what: &str);
    /// It answers again.
    fn resumed(&self);
    /// One of several sources of an image is not used any more; which, and why.
    fn left_out(&self, what: &str) {
        let _ = what;
    }
}

/// How patient a store is, and who hears of it.
#[derive(Clone)]
pub struct Options {
    /// How long a server may make no progress before an operation fails.
    pub budget: Duration,
    /// The same for the first contact, where a wrong address is likelier than an outage.
    pub connect_budget: Duration,
    /// How long a connection may be silent with a request outstanding before it is replaced.
    pub silence: Duration,
    /// Connections per open image or writer.
    pub connections: usize,
    /// The same for web servers: such a connection carries one request at a time.
    pub http_connections: usize,
    /// The most requests in flight of one writer, or of one read; fewer when they are large.
    pub requests_in_flight: usize,
    /// The largest read or write request in bytes; the server may want smaller ones.
    pub request_bytes: u32,
    /// How many pieces of 4 MiB may wait to be written to a folder.
    pub queue_chunks: usize,
    /// What lets the agent in.
    pub access: Arc<Access>,
    /// Hears of stalls.
    pub observer: Option<Arc<dyn Observer>>,
    /// What holds the bytes back that are read and written.
    pub limiter: Option<Arc<Limiter>>,
    /// Once it is set, a server that does not answer is not waited for; operations fail with [`StoreError::Cancelled`] then.
    pub cancelled: Arc<AtomicBool>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            budget: Duration::from_secs(600),
            connect_budget: Duration::from_secs(60),
            silence: Duration::from_secs(60),
            connections: 2,
            http_connections: 4,
            requests_in_flight: 16,
            request_bytes: 1 << 20,
            queue_chunks: file::QUEUE_CHUNKS,
            access: Arc::default(),
            observer: None,
            limiter: None,
            cancelled: Arc::default(),
        }
    }
}

impl Options {
    /// The credentials for this URL.
    #[must_use]
    pub fn access_for(&self, url: &StoreUrl) -> Option<&StoreAccess> {
        self.access.of(url)
    }

    /// The same for removing what is left behind: whether the work is cancelled or not, and within less time.
    #[must_use]
    pub fn to_tidy_up(&self) -> Self {
        let most = watch::tidy_budget(self.cancelled.load(Ordering::Relaxed));
        Self {
            budget: self.budget.min(most),
            connect_budget: self.connect_budget.min(most),
            cancelled: Arc::default(),
            ..self.clone()
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("budget", &self.budget)
            .field("connect_budget", &self.connect_budget)
            .field("silence", &self.silence)
            .field("connections", &self.connections)
            .field("http_connections", &self.http_connections)
            .field("requests_in_flight", &self.requests_in_flight)
            .field("request_bytes", &self.request_bytes)
            .finish_non_exhaustive()
    }
}

/// A file in a store's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name in the folder.
    pub name: String,
    /// Its length in bytes.
    pub len_bytes: u64,
}

/// Opens an image for reading, with the default [`Options`].
pub fn open(url: &StoreUrl) -> Result<Box<dyn ImageFile>> {
    open_with(url, &Options::default())
}

/// Opens an image for reading.
pub fn open_with(url: &StoreUrl, options: &Options) -> Result<Box<dyn ImageFile>> {
    let file = match url {
        StoreUrl::File(path) => file::open(path, On::Machine),
        StoreUrl::Nfs(nfs) => nfs::open(nfs, options),
        StoreUrl::Nfs4(nfs) => nfs4::open(nfs, options),
        StoreUrl::Http(http) => http::open(http, options),
        StoreUrl::Smb(smb) => smb::open(smb, options),
    }?;
    Ok(limit::image(file, options.limiter.as_ref()))
}

/// An image file that is not a store's own, under the limit of these options.
#[must_use]
pub fn limited(file: Box<dyn ImageFile>, options: &Options) -> Box<dyn ImageFile> {
    limit::image(file, options.limiter.as_ref())
}

/// Starts to write an image: refuses when the name is taken, or when somebody else is writing it.
///
/// `image_id` tells this writer's file from another's after a cut-off.
pub fn create(url: &StoreUrl, image_id: Uuid, options: &Options) -> Result<Box<dyn StoreWriter>> {
    check_name(url, "creating")?;
    let writer = match url {
        StoreUrl::File(path) => file::create(path, On::Machine, options.queue_chunks),
        StoreUrl::Nfs(nfs) => nfs::create(nfs, image_id, options),
        StoreUrl::Nfs4(nfs) => nfs4::create(nfs, options),
        StoreUrl::Http(http) => http::create(http, options),
        StoreUrl::Smb(smb) => smb::create(smb, options),
    }?;
    Ok(limit::writer(writer, options.limiter.as_ref()))
}

/// Refuses what has no room for a writer's suffix, and what has it already: the next writer would take that for what it replaces. A store may
/// take less; then it says so itself.
fn check_name(url: &StoreUrl, doing: &'static str) -> Result<()> {
    let Some(name) = url.file_name() else { return Ok(()) };
    if name.len() > NAME_MAX_BYTES {
        return Err(StoreError::NameTooLong { doing, url: url.to_string() });
    }
    // Some servers do not tell upper from lower case.
    if name.to_ascii_lowercase().ends_with(PARTIAL_SUFFIX) {
        let reason = format!("{PARTIAL_SUFFIX} is the end of names that are not finished yet");
        return Err(StoreError::Denied { doing, url: url.to_string(), reason });
    }
    Ok(())
}

/// What a writer of this image has left behind; `None` if there is nothing. Refuses as [`create`] does.
///
/// # Errors
/// Also [`StoreError::Unsupported`], where the store has no way to go on with it.
pub fn left_over(url: &StoreUrl, options: &Options) -> Result<Option<Box<dyn LeftOver>>> {
    check_name(url, "opening")?;
    let found = match url {
        StoreUrl::File(path) => file::left_over(path, On::Machine),
        StoreUrl::Nfs(nfs) => nfs::left_over(nfs, options),
        StoreUrl::Nfs4(nfs) => nfs4::left_over(nfs, options),
        StoreUrl::Smb(smb) => smb::left_over(smb, options),
        StoreUrl::Http(http) => http::left_over(http, options),
    }?;
    Ok(found.map(|found| limit::left_over(found, options.limiter.as_ref())))
}

/// What is known of the store that this folder is in.
///
/// # Errors
/// If the store does not let the agent in.
pub fn facts(folder: &StoreUrl, options: &Options) -> Result<StoreFacts> {
    match folder {
        StoreUrl::File(path) => file::facts(path),
        StoreUrl::Nfs(nfs) => nfs::facts(nfs, options),
        StoreUrl::Nfs4(nfs) => nfs4::facts(nfs, options),
        StoreUrl::Http(http) => Ok(http::facts(http)),
        StoreUrl::Smb(smb) => smb::facts(smb, options),
    }
}

/// Lists the files of a folder, `.partial` ones included, by name.
pub fn list(folder: &StoreUrl, options: &Options) -> Result<Vec<Entry>> {
    let mut entries = match folder {
        StoreUrl::File(path) => file::list(path),
        StoreUrl::Nfs(nfs) => nfs::list(nfs, options),
        StoreUrl::Nfs4(nfs) => nfs4::list(nfs, options),
        StoreUrl::Http(http) => http::list(http, options),
        StoreUrl::Smb(smb) => smb::list(smb, options),
    }?;
    // A server says what it likes; what is put behind a folder's URL has to stay in that folder.
    entries.retain(|entry| !entry.name.contains(['/', '\\', '\0']) && entry.name != "..");
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// Removes an image.
pub fn remove(url: &StoreUrl, options: &Options) -> Result<()> {
    match url {
        StoreUrl::File(path) => file::remove(path),
        StoreUrl::Nfs(nfs) => nfs::remove(nfs, options),
        StoreUrl::Nfs4(nfs) => nfs4::remove(nfs, options),
        StoreUrl::Http(http) => http::remove(http, options),
        StoreUrl::Smb(smb) => smb::remove(smb, options),
    }
}
