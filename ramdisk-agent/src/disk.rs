//! Disks: opening them safely, and what sysfs says of them.
//!
//! A *disk* here is a whole disk, a partition or a regular file that stands for one (`disk.raw`). A source is opened read-only
//! and never written. A target is opened exclusively: the kernel then refuses disks that are mounted, held by LVM or md, or
//! opened exclusively by somebody else; the refusals of [`in_use`] say the same earlier and in words. Sources are locked shared
//! and targets exclusively (`lock`), so that two agents never meet on one disk or disk file, by whatever nodes they come.

mod backing;
mod bad;
mod bulk;
mod claimed;
mod ground;
mod inventory;
mod lock;
mod mounts;
mod part;
mod selector;
mod users;
mod watch;
mod window;

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_api::{DiskInfo, ErrorKind};
use rustix::fs::{FallocateFlags, SeekFrom};

pub(crate) use bad::{BLOCK_LEN, copy_shared};
pub use bad::{Unreadable, is_of_medium, is_of_sector};
pub use claimed::refuse_claimed;
pub use inventory::{inventory, inventory_of};
pub use lock::is_target;
pub use part::{PartOf, list_of};
pub use selector::{identity, resolve, selector};
pub use users::in_use;
pub use watch::Watch;
pub use window::Window;

use crate::buffer::AlignedBuf;
use crate::error::{Error, IoContext, Result};
use crate::sys;
use ground::Place;
use lock::Access;

/// An open disk, partition or disk file.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    file: File,
    /// The same thing opened with O_DIRECT, where the filesystem beneath allows it.
    direct: Option<File>,
    is_block: bool,
    /// Where its first byte is in the file: not at its begin if it is a part of a disk.
    origin: u64,
    len: u64,
    part_of: Option<PartOf>,
    logical_sector_bytes: u32,
    watch: Arc<Watch>,
    /// What is open for nothing but the locks on it.
    locks: Vec<File>,
}

impl Disk {
    /// Opens a source read-only. Reads go through the page cache, and past it where they fail.
    pub fn open_source(path: &Path) -> Result<Self> {
        // Without O_NONBLOCK, opening a FIFO waits for its other end.
        let open = |flags: i32| {
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | flags).open(path)
        };
        let file = open(0).map_err(|e| open_error(path, "opening", e))?;
        let disk = Self::from_file(path, file, open(libc::O_DIRECT).ok())?;
        disk.locked(Access::Read)
    }

    /// Opens a target for writing, exclusively if it is a block device.
    pub fn open_target(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(|e| open_error(path, "looking at", e))?;
        let exclusive = if meta.file_type().is_block_device() { libc::O_EXCL } else { 0 };
        let open =
            |flags: i32| OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        let file = open(exclusive).map_err(|e| match e.raw_os_error() {
            Some(libc::EBUSY) => claimed_error(path, e),
            _ => open_error(path, "opening for writing", e),
        })?;
        // The exclusive claim belongs to `file`; a second exclusive open would be refused as somebody else's. tmpfs has no
        // O_DIRECT: then everything goes through the page cache and is dropped from it before the read-back.
        let direct = open(libc::O_DIRECT).ok();
        let disk = Self::from_file(path, file, direct)?;
        disk.locked(Access::Write)
    }

    /// Whether a path leads to this very file or device.
    #[must_use]
    pub fn is_at(&self, path: &Path) -> bool {
        let (Ok(own), Ok(other)) = (self.file.metadata(), std::fs::metadata(path)) else {
            return false;
        };
        if self.is_block {
            other.file_type().is_block_device() && own.rdev() == other.rdev()
        } else {
            (own.dev(), own.ino()) == (other.dev(), other.ino())
        }
    }

    /// Whether what is at a path has bytes of this in it, by whatever node: it is a loop device over the file there, or a partition of the disk.
    #[must_use]
    pub fn has_bytes_of(&self, path: &Path) -> bool {
        let place = |path: &Path, meta: &std::fs::Metadata| Place::of(path, meta).ok();
        let (Ok(own), Ok(other)) = (self.file.metadata(), std::fs::metadata(path)) else {
            return false;
        };
        let (Some(mut own), Some(other)) = (place(&self.path, &own), place(path, &other)) else {
            return false;
        };
        if self.part_of.is_some() {
            own.range = own.range.start + self.origin..own.range.start + self.origin + self.len;
        }
        own.meets(&other)
    }

    fn from_file(path: &Path, file: File, direct: Option<File>) -> Result<Self> {
        let meta = file.metadata().on_disk(|| format!("looking at {}", path.display()))?;
        let is_block = meta.file_type().is_block_device();
        if !is_block && !meta.is_file() {
            return Err(Error::refused(format!(
                "{} is neither a block device nor a regular file",
                path.display()
            )));
        }
        let (len, logical_sector_bytes) = if is_block {
            let doing = || format!("asking the size of {}", path.display());
            (
                sys::block::size_bytes(&file).on_disk(doing)?,
                sys::block::logical_sector_bytes(&file).on_disk(doing)?,
            )
        } else {
            (meta.len(), 512)
        };
        if len == 0 {
            return Err(Error::refused(format!(
                "{} has no bytes: an empty file, a drive without a medium, or a loop device without a file",
                path.display()
            )));
        }
        let path = path.to_owned();
        let watch = Arc::new(Watch::new(path.clone(), logical_sector_bytes));
        Ok(Self {
            path,
            file,
            direct,
            is_block,
            origin: 0,
            len,
            part_of: None,
            logical_sector_bytes,
            watch,
            locks: Vec::new(),
        })
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.len
    }

    /// Logical sector size in bytes; 512 for a regular file.
    #[must_use]
    pub fn logical_sector_bytes(&self) -> u32 {
        self.logical_sector_bytes
    }

    /// Whether it is a block device.
    #[must_use]
    pub fn is_block(&self) -> bool {
        self.is_block
    }

    /// The file, for system calls that are about the whole disk.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What sysfs says of it; of a part what it says of the whole disk.
    pub fn info(&self) -> DiskInfo {
        let mut info = inventory_of(&self.path).unwrap_or_default();
        info.path = self.path.display().to_string();
        info.size_bytes = self.part_of.map_or(self.len, |part| part.disk_bytes);
        info.logical_sector_bytes = self.logical_sector_bytes;
        info
    }

    /// What it was asked for and has not answered.
    #[must_use]
    pub fn watch(&self) -> Arc<Watch> {
        Arc::clone(&self.watch)
    }

    /// Reads past the page cache where that is possible; the error names the first sector that cannot be read. `buf` starts aligned
    /// to [`DIRECT_ALIGN`](crate::buffer::DIRECT_ALIGN) relative to `offset`.
    pub fn read_direct(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        match self.read_past_cache(buf, offset) {
            Err(e) if is_of_medium(&e) => Ok(self.read_up_to_bad(buf, offset)?),
            read => read.on_disk(|| self.at("reading", buf.len(), offset)),
        }
    }

    /// Writes past the page cache where that is possible; the error names the first sector that cannot be written.
    pub fn write_direct(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.write_past_cache(buf, offset).or_else(|error| {
            // Whatever comes of it, a disk that has refused a write once is not trusted with this restore.
            let (at, len) = self.first_unwritable(buf, offset).unwrap_or((offset, buf.len()));
            Err(error).on_disk(|| self.at("writing", len, at))
        })
    }

    /// O_DIRECT wants memory, offset and length in whole sectors; the odd end of a file goes through the cache.
    fn direct_for(&self, buf: &[u8], offset: u64) -> &File {
        let sector = u64::from(self.logical_sector_bytes.max(512));
        let aligned = (self.origin + offset).is_multiple_of(sector)
            && (buf.len() as u64).is_multiple_of(sector)
            && (buf.as_ptr().addr() as u64).is_multiple_of(sector);
        match &self.direct {
            Some(direct) if aligned => direct,
            _ => &self.file,
        }
    }

    fn at(&self, doing: &str, len: usize, offset: u64) -> String {
        let byte = self.origin + offset;
        let lba = byte / u64::from(self.logical_sector_bytes.max(1));
        format!("{doing} {len} bytes at LBA {lba} (byte {byte}) of {}", self.path.display())
    }

    /// Makes a range read as zeros: by the disk's own command where it has one, by writing them where it has none or fails.
    pub fn zero(&self, offset: u64, len: u64) -> Result<()> {
        let sector = u64::from(self.logical_sector_bytes);
        if self.is_block && offset.is_multiple_of(sector) && len.is_multiple_of(sector) {
            let _pending = self.watch.begin("zeroing", Some(self.origin + offset));
            if sys::block::zero_out(&self.file, self.origin + offset, len).is_ok() {
                return Ok(());
            }
        }
        if !self.is_block && self.punch_hole(offset, len) {
            // Some filesystems say that they have and have not: what is left of the data is overwritten.
            let mut at = offset;
            while let Some(data) = self.next_data(at..offset + len)? {
                self.write_zeros(data.clone())?;
                at = data.end;
            }
            return Ok(());
        }
        self.write_zeros(offset..offset + len)
    }

    fn write_zeros(&self, range: Range<u64>) -> Result<()> {
        let zeros = AlignedBuf::new(1 << 20);
        let mut at = range.start;
        while at < range.end {
            let piece = (range.end - at).min(1 << 20);
            let piece_len = usize::try_from(piece).expect("at most a MiB");
            self.write_direct(&zeros.as_slice()[..piece_len], at)?;
            at += piece;
        }
        Ok(())
    }

    /// Gives the blocks of a range of a disk file back, so that a file of a disk of terabytes takes what the disk holds. `false`:
    /// the filesystem beneath has no holes, or something is wrong that writing zeros will meet too.
    fn punch_hole(&self, offset: u64, len: u64) -> bool {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.file, flags, self.origin + offset, len).is_ok()
    }

    /// The first part of a range of a disk file that is no hole. Blocks that a hole covers only in part are among it.
    fn next_data(&self, range: Range<u64>) -> Result<Option<Range<u64>>> {
        let seek = |to| rustix::fs::seek(&self.file, to);
        let doing = || format!("looking for data in {}", self.path.display());
        let end = self.origin + range.end;
        let start = match seek(SeekFrom::Data(self.origin + range.start)) {
            Ok(at) if at >= end => return Ok(None),
            Err(rustix::io::Errno::NXIO) => return Ok(None),
            at => at.map_err(std::io::Error::from).on_disk(doing)?,
        };
        let hole = seek(SeekFrom::Hole(start)).map_err(std::io::Error::from).on_disk(doing)?;
        Ok(Some(start - self.origin..hole.min(end) - self.origin))
    }

    /// Waits until everything written is on the medium, and the medium's own cache is flushed. After an error what was written
    /// since the last flush may be lost, and a later success does not mean otherwise: the kernel tells such an error once.
    pub fn flush(&self) -> Result<()> {
        let _pending = self.watch.begin("flushing", None);
        self.file.sync_all().on_disk(|| {
            format!("flushing {}, what was written to it last may be lost", self.path.display())
        })
    }

    /// Hints that a range will be read soon; returns at once.
    pub fn read_ahead(&self, offset: u64, len: u64) {
        let (Ok(offset), Ok(len)) = (i64::try_from(self.origin + offset), i64::try_from(len))
        else {
            return;
        };
        // A hint: if the kernel will not take it, the read is only later.
        let _ = nix::fcntl::posix_fadvise(
            &self.file,
            offset,
            len,
            nix::fcntl::PosixFadviseAdvice::POSIX_FADV_WILLNEED,
        );
    }

    /// Forgets cached pages, so that what is read next comes from the medium. Call after [`Disk::flush`].
    pub fn drop_cache(&self) {
        if self.is_block {
            // Without the right to do so, O_DIRECT reads still pass the cache by.
            let _ = sys::block::drop_cache(&self.file);
            self.drop_backing_cache();
        } else {
            drop_file_cache(&self.file);
        }
    }
}

/// Forgets what is cached of a file and was written to it.
fn drop_file_cache(file: &File) {
    // It fails for what has no cache.
    let _ =
        nix::fcntl::posix_fadvise(file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}

/// Who has a device that cannot be claimed. Another restore has it locked as well, and that says which process it is.
fn claimed_error(path: &Path, busy: std::io::Error) -> Error {
    if let Err(locked) = Disk::open_source(path)
        && locked.kind() == ErrorKind::Refused
    {
        return locked;
    }
    Error::refused(format!(
        "{} is in use: something has it mounted or opened exclusively; unmount it first",
        path.display()
    ))
    .because(busy)
}

fn open_error(path: &Path, doing: &str, error: std::io::Error) -> Error {
    let (kind, advice) = match error.kind() {
        std::io::ErrorKind::NotFound => (ErrorKind::NotFound, ""),
        std::io::ErrorKind::PermissionDenied => {
            (ErrorKind::Refused, " (run as root, or be given the right to it)")
        }
        std::io::ErrorKind::ReadOnlyFilesystem => (ErrorKind::Refused, ""),
        std::io::ErrorKind::IsADirectory => {
            (ErrorKind::Refused, " (a block device or a regular file is meant)")
        }
        _ => (ErrorKind::Disk, ""),
    };
    Error::new(kind, format!("{doing} {}{advice}", path.display())).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::DIRECT_ALIGN;

    #[test]
    fn buffers_are_aligned_and_zeroed() {
        let mut buf = AlignedBuf::new(10_000);
        assert_eq!(buf.as_slice().as_ptr().addr() % DIRECT_ALIGN, 0);
        assert!(buf.as_slice().iter().all(|b| *b == 0));
        assert_eq!(buf.as_mut_slice().len(), 10_000);
    }

    #[test]
    fn a_file_is_written_zeroed_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        std::fs::write(&path, vec![0xAA; 3 << 20]).unwrap();
        let disk = Disk::open_target(&path).unwrap();
        let mut buf = AlignedBuf::new(8192);
        buf.as_mut_slice().fill(7);
        disk.write_direct(buf.as_slice(), 4096).unwrap();
        disk.zero(1 << 20, (1 << 20) + 512).unwrap();
        disk.flush().unwrap();
        disk.drop_cache();
        let mut back = AlignedBuf::new(3 << 20);
        disk.read_direct(back.as_mut_slice(), 0).unwrap();
        let back = back.as_slice();
        assert!(back[..4096].iter().all(|b| *b == 0xAA));
        assert!(back[4096..12288].iter().all(|b| *b == 7));
        let zeroed = (1 << 20)..(2 << 20) + 512;
        assert!(back[zeroed.clone()].iter().all(|b| *b == 0));
        assert_eq!(back[zeroed.end], 0xAA);
    }

    #[test]
    fn folders_and_empty_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Disk::open_source(dir.path()).unwrap_err().to_string().contains("neither"));
        let error = Disk::open_target(dir.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("is meant"), "{error}");
        let path = dir.path().join("empty");
        std::fs::write(&path, "").unwrap();
        assert!(Disk::open_source(&path).unwrap_err().to_string().contains("no bytes"));
    }
}
