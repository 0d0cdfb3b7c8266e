//! The one folder with everything that the controller remembers.
//!
//! `imprint.db` (SQLite, with `-wal` and `-shm` beside it), `secret.key` (opens what is sealed in the database), `tls.key` and
//! `tls.crt` (the controller's identity), `client.json` (what the command line needs to talk to it), `images/` (the controller's own store). Folders are 0700, every
//! file in them 0600. A lock held on `lock` keeps a second controller away. What is made anew at each start (DHCP entries, TFTP files)
//! is not here; see [`crate::dhcp`].

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::secret::{self, KEY_LEN, Sealer};

/// Why the data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// A file operation failed.
    #[error("{doing} {path}", path = path.display())]
    Io {
        /// What was tried, as a gerund.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Another controller runs on this folder.
    #[error(
        "{path} is in use by another `imprint serve`: end that one first or give another --data",
        path = .0.display()
    )]
    Locked(PathBuf),
    /// The key file is damaged.
    #[error(
        "{path} does not hold {KEY_LEN} bytes: put the key file of this folder back from a backup, or remove it and enter the passwords of BMCs and stores again",
        path = .0.display()
    )]
    Key(PathBuf),
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| DataDirError::Io { doing, path, source }
}

/// The folder, locked.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the folder if need be and locks it.
    ///
    /// # Errors
    /// When it cannot be made, or another controller holds it.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(io_error("making the folder", path))?;
        let path = path.canonicalize().map_err(io_error("resolving", path))?;
        fs::set_permissions(&path, Permissions::from_mode(0o700))
            .map_err(io_error("closing to others the folder", &path))?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(io_error("opening", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => Err(DataDirError::Locked(path)),
            Err(fs::TryLockError::Error(e)) => Err(io_error("locking", &lock_path)(e)),
        }
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The database. Its file is made here, so that it is never readable by others.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn database(&self) -> Result<PathBuf, DataDirError> {
        let path = self.path.join("imprint.db");
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("opening", &path))?;
        Ok(path)
    }

    /// Folder of the controller's own store.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.path.join("images")
    }

    /// The sealer with this folder's key, made at the first start.
    ///
    /// # Errors
    /// When the file cannot be read or written, or is damaged.
    pub fn sealer(&self) -> Result<Sealer, DataDirError> {
        let path = self.path.join("secret.key");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let key = secret::random_bytes::<KEY_LEN>().to_vec();
                write_private(&path, &key)?;
                key
            }
            Err(e) => return Err(io_error("reading", &path)(e)),
        };
        let key: [u8; KEY_LEN] = bytes.try_into().map_err(|_| DataDirError::Key(path))?;
        Ok(Sealer::new(&key))
    }
}

/// Writes a file that only its owner can read; whole or not at all.
///
/// # Errors
/// When a step fails; the old content is then still there.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), DataDirError> {
    let partial = path.with_extension("partial");
    let write = || -> io::Result<()> {
        match fs::remove_file(&partial) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file =
            OpenOptions::new().create_new(true).write(true).mode(0o600).open(&partial)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        if let Some(folder) = path.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(io_error("writing", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_controller_per_folder() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("a/b");
        let first = DataDir::open(&data).unwrap();
        assert!(matches!(DataDir::open(&data), Err(DataDirError::Locked(_))));
        drop(first);
        DataDir::open(&data).unwrap();
    }

    #[test]
    fn everything_is_private_and_the_key_stays() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        let sealed = data.sealer().unwrap().seal("x", &crate::secret::Secret::new("y".into()));
        assert_eq!(data.sealer().unwrap().open("x", &sealed).unwrap().expose(), "y");
        data.database().unwrap();
        assert_eq!(fs::metadata(data.path()).unwrap().permissions().mode() & 0o777, 0o700);
        for entry in fs::read_dir(data.path()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
        }
    }

    #[test]
    fn a_damaged_key_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        fs::write(data.path().join("secret.key"), b"short").unwrap();
        assert!(matches!(data.sealer(), Err(DataDirError::Key(_))));
    }
}
