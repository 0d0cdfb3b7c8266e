//! The controller's own store: a folder of images beside the database.
//!
//! A file is written as `NAME.partial`, by one writer at a time, who is known by the id of an upload. It gets its name only when
//! it is complete and on stable storage, and never over something that is there; from then on it does not change. Who may do what is
//! the business of [`crate::api`]; here names are of checked types, so that no path leads out of the folder.
//!
//! What a writer was told is durable is remembered in the database before it is told. A controller that starts again cuts a partial
//! file to that length: what lies behind it may be anything after a power cut, and its writer still has it. Sparse files, several
//! ranges at once and changes to finished files are deliberately absent.

mod error;
mod files;
mod upload;
mod uploads;

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use image_format::{FormatError, ImageReader};
use nix::sys::statvfs::statvfs;
use tokio::task::spawn_blocking;

use error::io_error;
pub use error::{EmbeddedError, Result, may_pass};
use files::{list, open_regular, sync_folder};
pub use upload::{APPEND_MAX, Upload};
pub use uploads::{LEASE, UploadState};

use crate::db::Db;
use crate::names::FileName;

/// Bytes of the file system that images leave free: the database lies there too.
pub const RESERVE_BYTES: u64 = 128 << 20;

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
    /// Taken while uploads begin, go on, end and change places.
    changing: tokio::sync::Mutex<()>,
    started: Instant,
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
        Ok(Self {
            folder,
            db,
            open: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            started: Instant::now(),
        })
    }

    fn path(&self, file: &FileName) -> PathBuf {
        self.folder.join(file.as_str())
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

    /// The root hash of the image that a finished file is; `None` if it is damaged, or none of ours.
    ///
    /// # Errors
    /// When there is no such file, or it cannot be read.
    pub async fn root_of(&self, file: &FileName) -> Result<Option<String>> {
        let opened = self.open(file).await?;
        let name = file.to_string();
        blocking(move || match ImageReader::open(opened.file) {
            Ok(image) => Ok(Some(image.root().to_string())),
            Err(FormatError::Read { source, .. }) => Err(io_error("reading", &name)(source)),
            Err(_) => Ok(None),
        })
        .await
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
            self.db.forget_upload(file.as_str(), &row.upload_id).await?;
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
}
