//! The controller's own store: a folder of images beside the database.
//!
//! A file is written as `NAME.partial`, by one writer at a time, who is known by the id of the image. It gets its name only when
//! it is complete and on stable storage, and never over something that is there; from then on it does not change. Who may do what is
//! the business of [`crate::api`]; here names are of checked types, so that no path leads out of the folder.
//!
//! What a writer was told is durable is remembered in the database before it is told. A controller that starts again cuts a partial
//! file to that length: what lies behind it may be anything after a power cut, and its writer still has it. Sparse files, several
//! ranges at once and changes to finished files are deliberately absent.

mod upload;

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::BodyDataStream;
use nix::fcntl::OFlag;
use nix::sys::statvfs::statvfs;
use tokio::task::spawn_blocking;

pub use upload::{APPEND_MAX, Upload};

use crate::db::{Db, DbError, UploadRow};
use crate::names::{FileName, PARTIAL_SUFFIX};

/// Bytes of the file system that images leave free: the database lies there too.
pub const RESERVE_BYTES: u64 = 128 << 20;

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
    /// No such file.
    #[error("there is no file {0} in the controller's store")]
    NotFound(String),
    /// A finished file has this name.
    #[error(
        "the controller's store has a file {0} already: choose another name, or remove the image that it is"
    )]
    Exists(String),
    /// Somebody else writes a file of this name.
    #[error(
        "{file} is being written as image {image_id}: wait until it is done, or give that upload up"
    )]
    BeingWritten {
        /// The file.
        file: String,
        /// The other's image.
        image_id: String,
    },
    /// There is no such upload, or no longer.
    #[error("there is no upload of {file} as image {image_id}")]
    NoUpload {
        /// The file.
        file: String,
        /// The image that was meant.
        image_id: String,
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
fn io_error(doing: &'static str, file: &str) -> impl FnOnce(io::Error) -> EmbeddedError {
    let file = file.to_owned();
    move |source| match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            EmbeddedError::Full { available_bytes: 0 }
        }
        _ => EmbeddedError::Io { doing, file, source },
    }
}

/// Runs what blocks on a thread for that.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// A file of the store, opened for reading.
#[derive(Debug)]
pub struct Opened {
    /// The file.
    pub file: File,
    /// So many of its bytes may be read.
    pub len_bytes: u64,
    /// Changes whenever the content does.
    pub etag: String,
}

/// A file in the store's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name; of one that is being written the name that it will have.
    pub name: String,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// When it was last written to, ms since 1970.
    pub modified_ms: i64,
    /// It is not finished.
    pub is_partial: bool,
}

/// The store.
#[derive(Debug)]
pub struct Embedded {
    folder: PathBuf,
    db: Db,
    /// By file name. An upload is here from the first request for it after the controller's start.
    open: Mutex<HashMap<String, Arc<Upload>>>,
    /// Taken while uploads begin, end and change places.
    changing: tokio::sync::Mutex<()>,
}

impl Embedded {
    /// The store in this folder, which is made if need be.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(folder: PathBuf, db: Db) -> io::Result<Self> {
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        Ok(Self { folder, db, open: Mutex::default(), changing: tokio::sync::Mutex::default() })
    }

    fn uploads(&self) -> MutexGuard<'_, HashMap<String, Arc<Upload>>> {
        // Its values are replaced, never half changed.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, file: &FileName) -> PathBuf {
        self.folder.join(file.as_str())
    }

    fn partial_path(&self, file: &FileName) -> PathBuf {
        self.folder.join(format!("{file}{PARTIAL_SUFFIX}"))
    }

    /// Opens a finished file.
    ///
    /// # Errors
    /// When there is none.
    pub async fn open(&self, file: &FileName) -> Result<Opened> {
        let (path, name) = (self.path(file), file.to_string());
        blocking(move || {
            let opened = open_regular(&path).map_err(|e| match e.kind() {
                ErrorKind::NotFound => EmbeddedError::NotFound(name.clone()),
                _ => io_error("opening", &name)(e),
            })?;
            let metadata = opened.metadata().map_err(io_error("looking at", &name))?;
            // A finished file is never written to; one that somebody puts in its place is another inode.
            let etag = format!(
                "\"{:x}-{:x}-{:x}\"",
                metadata.ino(),
                metadata.mtime().wrapping_mul(1_000_000_000).wrapping_add(metadata.mtime_nsec()),
                metadata.len()
            );
            Ok(Opened { file: opened, len_bytes: metadata.len(), etag })
        })
        .await
    }

    /// Opens a file that is being written, as far as it is durable.
    ///
    /// # Errors
    /// When nobody writes such a file.
    pub async fn open_partial(&self, file: &FileName) -> Result<(Opened, Arc<Upload>)> {
        let row = self.db.upload(file.as_str()).await?.filter(|row| !row.published);
        let not_found = || EmbeddedError::NotFound(format!("{file}{PARTIAL_SUFFIX}"));
        let upload = self.upload_of(file, row.ok_or_else(not_found)?).await?;
        let path = self.partial_path(file);
        let name = file.to_string();
        let opened =
            blocking(move || open_regular(&path).map_err(io_error("opening", &name))).await?;
        let len_bytes = upload.durable();
        let etag = format!("\"partial-{}-{len_bytes:x}\"", upload.image_id());
        Ok((Opened { file: opened, len_bytes, etag }, upload))
    }

    /// Begins an upload; the same once more changes nothing. A file that the same job began to write before, or a job that is
    /// over, is replaced: its writer is gone.
    ///
    /// # Errors
    /// When the name is taken, or somebody else writes it.
    pub async fn begin(
        &self,
        file: &FileName,
        image_id: &str,
        job: Option<i64>,
    ) -> Result<UploadState> {
        let _changing = self.changing.lock().await;
        let row = self.db.upload(file.as_str()).await?;
        if let Some(row) = row.clone().filter(|row| row.image_id == image_id) {
            if row.published {
                return Ok(UploadState::published(&row));
            }
            return Ok(self.upload_of(file, row).await?.state());
        }
        let (path, name) = (self.path(file), file.to_string());
        if blocking(move || path.symlink_metadata().is_ok()).await {
            return Err(EmbeddedError::Exists(name));
        }
        if let Some(row) = row.filter(|row| !row.published)
            && !self.is_left_over(&row, job).await?
        {
            return Err(EmbeddedError::BeingWritten { file: name, image_id: row.image_id });
        }
        self.check_room(0).await?;
        self.close(file);
        let path = self.partial_path(file);
        let created = blocking({
            let name = name.clone();
            move || {
                remove_if_there(&path).map_err(io_error("removing what is left of", &name))?;
                new_file(&path).map_err(io_error("making", &name))
            }
        })
        .await?;
        self.db.begin_upload(file.as_str(), image_id, job).await?;
        let upload = Arc::new(Upload::new(name, image_id.to_owned(), job, created, 0));
        self.uploads().insert(file.to_string(), Arc::clone(&upload));
        tracing::info!(file = file.as_str(), image_id, ?job, "upload begun");
        Ok(upload.state())
    }

    async fn is_left_over(&self, row: &UploadRow, job: Option<i64>) -> Result<bool> {
        match row.job_id {
            None => Ok(false),
            Some(id) if Some(id) == job => Ok(true),
            Some(id) => Ok(self.db.job(id).await?.state.is_terminal()),
        }
    }

    /// The upload of this file as this image.
    ///
    /// # Errors
    /// When there is none, or it is finished.
    pub async fn upload(&self, file: &FileName, image_id: &str) -> Result<Arc<Upload>> {
        let row = self.db.upload(file.as_str()).await?;
        match row.filter(|row| row.image_id == image_id && !row.published) {
            Some(row) => self.upload_of(file, row).await,
            None => Err(no_upload(file, image_id)),
        }
    }

    /// How far an upload is.
    ///
    /// # Errors
    /// When there is none.
    pub async fn state(&self, file: &FileName, image_id: &str) -> Result<UploadState> {
        match self.db.upload(file.as_str()).await? {
            Some(row) if row.image_id == image_id && row.published => {
                Ok(UploadState::published(&row))
            }
            Some(row) if row.image_id == image_id => Ok(self.upload_of(file, row).await?.state()),
            _ => Err(no_upload(file, image_id)),
        }
    }

    /// The open upload of a row; after a start of the controller its file is opened again.
    async fn upload_of(&self, file: &FileName, row: UploadRow) -> Result<Arc<Upload>> {
        let known = self.uploads().get(file.as_str()).cloned();
        if let Some(upload) = known.filter(|upload| upload.image_id() == row.image_id) {
            return Ok(upload);
        }
        let durable = u64::try_from(row.durable).unwrap_or(0);
        let (path, name) = (self.partial_path(file), file.to_string());
        let reopened = blocking(move || -> io::Result<File> {
            let options = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(OFlag::O_NOFOLLOW.bits())
                .open(&path)?;
            if options.metadata()?.len() < durable {
                return Err(io::Error::other(
                    "it is shorter than what was flushed: was it changed by hand?",
                ));
            }
            options.set_len(durable)?;
            Ok(options)
        })
        .await
        .map_err(io_error("going on with", &name))?;
        let upload = Arc::new(Upload::new(name, row.image_id, row.job_id, reopened, durable));
        // Of two that came here at once, one's upload counts for both.
        let mut uploads = self.uploads();
        let known =
            uploads.get(file.as_str()).filter(|known| known.image_id() == upload.image_id());
        if let Some(known) = known {
            return Ok(Arc::clone(known));
        }
        uploads.insert(file.to_string(), Arc::clone(&upload));
        Ok(upload)
    }

    /// Appends what a body brings; see [`Upload::append`].
    ///
    /// # Errors
    /// When there is no room, or as there.
    pub async fn append(
        &self,
        upload: &Upload,
        offset: u64,
        len_bytes: u64,
        body: &mut BodyDataStream,
    ) -> Result<()> {
        self.check_room(len_bytes).await?;
        upload.append(offset, body).await
    }

    /// Makes durable what was received so far.
    ///
    /// # Errors
    /// When the disk fails or is full.
    pub async fn commit(&self, upload: &Upload) -> Result<UploadState> {
        let durable = upload.flush().await?;
        let bytes = i64::try_from(durable).unwrap_or(i64::MAX);
        self.db.set_upload_durable(upload.file(), upload.image_id(), bytes).await?;
        upload.set_durable(durable);
        Ok(upload.state())
    }

    /// Makes everything durable and gives the file its name. The same once more changes nothing.
    ///
    /// # Errors
    /// When the name is taken by now.
    pub async fn publish(&self, file: &FileName, image_id: &str) -> Result<UploadState> {
        if !self.state(file, image_id).await?.is_published {
            // Others need not wait for this.
            self.commit(&*self.upload(file, image_id).await?).await?;
        }
        let _changing = self.changing.lock().await;
        let state = self.state(file, image_id).await?;
        if state.is_published {
            return Ok(state);
        }
        let upload = self.upload(file, image_id).await?;
        self.commit(&upload).await?;
        let (path, partial, folder) =
            (self.path(file), self.partial_path(file), self.folder.clone());
        let name = file.to_string();
        blocking(move || link(&partial, &path, &folder, &name)).await?;
        self.db.set_upload_published(file.as_str(), image_id).await?;
        self.close(file);
        let partial = self.partial_path(file);
        let (folder, name) = (self.folder.clone(), file.to_string());
        blocking(move || {
            remove_if_there(&partial)
                .and_then(|()| sync_folder(&folder))
                .map_err(io_error("tidying up behind", &name))
        })
        .await?;
        tracing::info!(
            file = file.as_str(),
            image_id,
            bytes = upload.durable(),
            "upload published"
        );
        Ok(UploadState { is_published: true, ..upload.state() })
    }

    /// Gives an upload up; one that is not there, or finished, is none.
    ///
    /// # Errors
    /// When there is no such upload.
    pub async fn abort(&self, file: &FileName, image_id: &str) -> Result<()> {
        let _changing = self.changing.lock().await;
        let row = self.db.upload(file.as_str()).await?;
        if !row.is_some_and(|row| row.image_id == image_id && !row.published) {
            return Err(no_upload(file, image_id));
        }
        self.remove_partial(file, image_id).await?;
        tracing::info!(file = file.as_str(), image_id, "upload given up");
        Ok(())
    }

    async fn remove_partial(&self, file: &FileName, image_id: &str) -> Result<()> {
        self.close(file);
        let (path, name) = (self.partial_path(file), file.to_string());
        blocking(move || remove_if_there(&path).map_err(io_error("removing", &name))).await?;
        Ok(self.db.forget_upload(file.as_str(), image_id).await?)
    }

    /// Removes a finished file.
    ///
    /// # Errors
    /// When there is none.
    pub async fn remove(&self, file: &FileName) -> Result<()> {
        let _changing = self.changing.lock().await;
        let (path, folder, name) = (self.path(file), self.folder.clone(), file.to_string());
        blocking(move || match fs::remove_file(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Err(EmbeddedError::NotFound(name)),
            result => {
                result.and_then(|()| sync_folder(&folder)).map_err(io_error("removing", &name))
            }
        })
        .await?;
        if let Some(row) = self.db.upload(file.as_str()).await?.filter(|row| row.published) {
            self.db.forget_upload(file.as_str(), &row.image_id).await?;
        }
        Ok(())
    }

    /// What is in the folder, by name.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn list(&self) -> Result<Vec<Entry>> {
        let folder = self.folder.clone();
        let mut entries =
            blocking(move || list(&folder)).await.map_err(io_error("listing", "the files"))?;
        entries.sort_by(|a, b| (&a.name, a.is_partial).cmp(&(&b.name, b.is_partial)));
        Ok(entries)
    }

    /// Bytes that images may still take.
    ///
    /// # Errors
    /// When the file system does not say.
    pub async fn available(&self) -> Result<u64> {
        let folder = self.folder.clone();
        let free = blocking(move || statvfs(&folder)).await;
        let free =
            free.map_err(|e| io_error("looking at the file system of", "the files")(e.into()))?;
        Ok(free
            .blocks_available()
            .saturating_mul(free.fragment_size())
            .saturating_sub(RESERVE_BYTES))
    }

    async fn check_room(&self, len_bytes: u64) -> Result<()> {
        let available = self.available().await?;
        if available == 0 || available < len_bytes {
            return Err(EmbeddedError::Full {
                available_bytes: available.saturating_add(RESERVE_BYTES),
            });
        }
        Ok(())
    }

    /// Removes what writers left behind whose job is over, and partial names of files that were published.
    ///
    /// # Errors
    /// When the database or the disk fails.
    pub async fn sweep(&self) -> Result<()> {
        let _changing = self.changing.lock().await;
        for row in self.db.uploads().await? {
            let Ok(file) = row.file.parse::<FileName>() else { continue };
            if row.published {
                let path = self.partial_path(&file);
                let name = row.file;
                blocking(move || {
                    remove_if_there(&path).map_err(io_error("tidying up behind", &name))
                })
                .await?;
            } else if self.is_left_over(&row, None).await? {
                self.remove_partial(&file, &row.image_id).await?;
                tracing::info!(
                    file = file.as_str(),
                    image_id = row.image_id,
                    "removed what an upload left behind"
                );
            }
        }
        Ok(())
    }

    /// Forgets an open upload; whoever still writes to it is stopped.
    fn close(&self, file: &FileName) {
        let upload = self.uploads().remove(file.as_str());
        if let Some(upload) = upload {
            upload.end();
        }
    }
}

/// How far an upload is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadState {
    /// The file's name when it is finished.
    pub file: String,
    /// Which image.
    pub image_id: String,
    /// So many bytes came.
    pub received_bytes: u64,
    /// So many of them are on stable storage.
    pub durable_bytes: u64,
    /// It has its name.
    pub is_published: bool,
}

impl UploadState {
    fn published(row: &UploadRow) -> Self {
        let durable = u64::try_from(row.durable).unwrap_or(0);
        Self {
            file: row.file.clone(),
            image_id: row.image_id.clone(),
            received_bytes: durable,
            durable_bytes: durable,
            is_published: true,
        }
    }
}

fn no_upload(file: &FileName, image_id: &str) -> EmbeddedError {
    EmbeddedError::NoUpload { file: file.to_string(), image_id: image_id.to_owned() }
}

/// Opens a regular file: no link leads elsewhere, and nothing waits for the other end of a pipe.
fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(ErrorKind::NotFound.into()) }
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Gives a partial file its name beside the one that it has; when it has both already, that was us before a crash.
fn link(partial: &Path, path: &Path, folder: &Path, name: &str) -> Result<()> {
    match fs::hard_link(partial, path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            let inode = |path: &Path| path.symlink_metadata().map(|m| (m.dev(), m.ino()));
            let same = inode(partial).map_err(io_error("looking at", name))?;
            if inode(path).map_err(io_error("looking at", name))? != same {
                return Err(EmbeddedError::Exists(name.to_owned()));
            }
        }
        result => result.map_err(io_error("publishing", name))?,
    }
    sync_folder(folder).map_err(io_error("publishing", name))
}

fn list(folder: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Ok(metadata) if metadata.is_file() => metadata,
            Ok(_) => continue,
            // Removed meanwhile.
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let Ok(name) = entry.file_name().into_string() else { continue };
        let (name, is_partial) = match name.strip_suffix(PARTIAL_SUFFIX) {
            Some(name) => (name.to_owned(), true),
            None => (name, false),
        };
        // What has another name than a file can have here cannot be asked for.
        if name.parse::<FileName>().is_err() {
            continue;
        }
        let modified_ms =
            metadata.mtime().saturating_mul(1000).saturating_add(metadata.mtime_nsec() / 1_000_000);
        entries.push(Entry { name, len_bytes: metadata.len(), modified_ms, is_partial });
    }
    Ok(entries)
}
