//! Where an image's bytes come from: positional reads of something with a length.
//!
//! Calls come from several threads at once. A read gives all the bytes asked for or an error; `UnexpectedEof` means that
//! the source is shorter than was asked for.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A source of bytes at positions.
pub trait ReadAt: Send + Sync {
    /// Fills `buf` with the bytes at `offset`.
    ///
    /// # Errors
    /// Whatever the source reports; `UnexpectedEof` when it ends too early.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// The same for bytes that can be told from wrong ones: a source that has them from several places goes on to another where `is_right`
    /// says no. Others do not look; whoever reads checks again in any case.
    ///
    /// # Errors
    /// As [`ReadAt::read_exact_at`].
    fn read_checked_at(
        &self,
        buf: &mut [u8],
        offset: u64,
        is_right: &dyn Fn(&[u8]) -> bool,
    ) -> io::Result<()> {
        let _ = is_right;
        self.read_exact_at(buf, offset)
    }

    /// The length of the source in bytes.
    ///
    /// # Errors
    /// Whatever the source reports.
    fn len(&self) -> io::Result<u64>;

    /// Whether the source is empty.
    ///
    /// # Errors
    /// As [`ReadAt::len`].
    fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|len| len == 0)
    }
}

impl ReadAt for File {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        let metadata = self.metadata()?;
        if metadata.is_file() {
            return Ok(metadata.len());
        }
        // A block device has no size in its metadata. Reads here are positional, so moving the cursor disturbs nothing.
        let mut cursor = self;
        cursor.seek(SeekFrom::End(0))
    }
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let part = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(buf.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(part);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(<[u8]>::len(self) as u64)
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.as_slice().read_exact_at(buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        ReadAt::len(self.as_slice())
    }
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        impl<T: ReadAt + ?Sized> ReadAt for $pointer {
            fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
                (**self).read_exact_at(buf, offset)
            }

            fn read_checked_at(
                &self,
                buf: &mut [u8],
                offset: u64,
                is_right: &dyn Fn(&[u8]) -> bool,
            ) -> io::Result<()> {
                (**self).read_checked_at(buf, offset, is_right)
            }

            fn len(&self) -> io::Result<u64> {
                ReadAt::len(&**self)
            }
        }
    )*};
}

forward!(&T, Arc<T>, Box<T>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_end_where_they_end() {
        let source: Box<dyn ReadAt> = Box::new(vec![1_u8, 2, 3]);
        let mut two = [0; 2];
        source.read_exact_at(&mut two, 1).unwrap();
        assert_eq!(two, [2, 3]);
        for offset in [2, 3, u64::MAX] {
            let error = source.read_exact_at(&mut two, offset).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
        assert_eq!(source.len().unwrap(), 3);
    }
}
