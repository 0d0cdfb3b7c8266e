//! Going on with a partial file that a dead run, or one that gave up, has left in a folder.
//!
//! It is locked from the moment that it is found until the writer ends, where that is done. Its length is changed only once the caller has looked at what is in
//! it and says how much of that counts.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};

use super::super::{ImageFile, LeftOver, Result, StoreError, StoreWriter};
use super::partial::{is_at, lock_partial, partial_of};
use super::writer::FileWriter;
use super::{FileImage, On, direct};

/// What a writer of the image at `path` has left behind.
pub(in crate::store) fn left_over(path: &Path, on: On) -> Result<Option<Box<dyn LeftOver>>> {
    let partial = partial_of(path)?;
    match partial.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // Whatever else is wrong with it shows when it is opened.
        _ => {}
    }
    let file = lock_partial(&partial, on)?;
    let failed = |source| StoreError::local("opening", partial.display(), source);
    if !is_at(&file, &partial).map_err(failed)? {
        return Err(StoreError::Busy { url: partial.display().to_string() });
    }
    // What can be read is to be on stable storage.
    file.sync_all().map_err(failed)?;
    Ok(Some(Box::new(FileLeftOver { path: path.to_owned(), partial, file, on })))
}

struct FileLeftOver {
    path: PathBuf,
    partial: PathBuf,
    /// Holds the lock, if there is one.
    file: File,
    on: On,
}

impl LeftOver for FileLeftOver {
    fn reader(&self) -> Result<Box<dyn ImageFile>> {
        let failed = |source| StoreError::local("opening", self.partial.display(), source);
        let file = File::open(&self.partial).map_err(failed)?;
        if !is_at(&file, &self.partial).map_err(failed)?
            || !is_at(&self.file, &self.partial).map_err(failed)?
        {
            return Err(StoreError::Replaced { url: self.partial.display().to_string() });
        }
        // As for a writer's own reader: what is read is to come from the disk.
        let _ = fadvise(&file, 0, None, Advice::DontNeed);
        let direct = match self.on {
            On::Machine => direct::open(&self.file, &self.partial),
            On::OwnShare => direct::open_to_read(&self.file, &self.partial),
        };
        Ok(Box::new(FileImage::new(file, direct, &self.partial)?))
    }

    fn go_on(self: Box<Self>, len_bytes: u64) -> Result<Box<dyn StoreWriter>> {
        let Self { path, partial, file, on } = *self;
        let failed = |source| StoreError::local("cutting off", partial.display(), source);
        if len_bytes > file.metadata().map_err(failed)?.len() {
            return Err(StoreError::Replaced { url: partial.display().to_string() });
        }
        file.set_len(len_bytes).map_err(failed)?;
        Ok(Box::new(FileWriter::behind(&path, partial, file, on, len_bytes, super::QUEUE_CHUNKS)?))
    }
}
