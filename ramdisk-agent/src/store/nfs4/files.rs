//! Images on a mounted share: those of [a folder](super::super::file), each call of which is waited for within the share's budget.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::super::claim::Claim;
use super::super::{ImageFile, LeftOver, Nfs4Url, ReadAt, Result, StoreError, StoreWriter};
use super::share::Share;

/// After how much a writer makes durable what it has written, of itself: so little is in memory only, or sent again after a restart of the
/// server, and so soon it shows that a server is silent.
const COMMIT_STEP_BYTES: u64 = 16 << 20;

pub(super) fn image(share: Share, image: Box<dyn ImageFile>) -> Box<dyn ImageFile> {
    let len_bytes = image.len_bytes();
    Box::new(Nfs4Image { share, image: Some(Arc::from(image)), len_bytes, spare: Mutex::default() })
}

pub(super) fn writer(
    share: Share,
    writer: Box<dyn StoreWriter>,
    url: &Nfs4Url,
    claim: Claim,
) -> Box<dyn StoreWriter> {
    let len_bytes = writer.len();
    let held = Held { share, held: Mutex::new(Some(writer)), url: url.to_string() };
    Box::new(Nfs4Writer { held, len_bytes, durable_bytes: len_bytes, _claim: claim })
}

pub(super) fn left_over(
    share: Share,
    found: Box<dyn LeftOver>,
    url: &Nfs4Url,
    claim: Claim,
) -> Box<dyn LeftOver> {
    let held = Held { share, held: Mutex::new(Some(found)), url: url.to_string() };
    Box::new(Nfs4LeftOver { held, url: url.clone(), claim })
}

/// An open image.
struct Nfs4Image {
    share: Share,
    /// `None` only while it is dropped.
    image: Option<Arc<dyn ImageFile>>,
    len_bytes: u64,
    /// Buffers of earlier reads: a read that hangs must not have the caller's.
    spare: Mutex<Vec<Vec<u8>>>,
}

impl ReadAt for Nfs4Image {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let image = Arc::clone(self.image.as_ref().expect("it is not being dropped"));
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut own = spare.unwrap_or_default();
        own.resize(buf.len(), 0);
        let own = self.share.run(move |_| match image.read_exact_at(&mut own, offset) {
            Ok(()) => Ok(own),
            Err(error) => Err(error.downcast::<StoreError>().unwrap_or_else(|source| {
                StoreError::Io { doing: "reading", url: String::new(), source }
            })),
        })?;
        buf.copy_from_slice(&own);
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(own);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len_bytes)
    }
}

impl ImageFile for Nfs4Image {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }
}

impl Drop for Nfs4Image {
    fn drop(&mut self) {
        self.share.discard(self.image.take());
    }
}

/// Something of a folder that only one thread uses at a time, and that is lost to whoever waited for it in vain.
struct Held<T: ?Sized + Send + 'static> {
    share: Share,
    held: Mutex<Option<Box<T>>>,
    url: String,
}

impl<T: ?Sized + Send + 'static> Held<T> {
    /// Does something with it, within the share's budget.
    fn with<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut T) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let mut inner = self.take()?;
        let began = Instant::now();
        let (inner, result) = self.share.run(move |_| {
            let result = work(&mut inner);
            Ok((inner, result))
        })?;
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(inner);
        result.map_err(|error| self.share.translated(error, began.elapsed()))
    }

    /// The same, at its end.
    fn finish<R: Send + 'static>(
        &self,
        work: impl FnOnce(Box<T>) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let inner = self.take()?;
        self.share.run(move |_| work(inner))
    }

    fn take(&self) -> Result<Box<T>> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        held.ok_or_else(|| StoreError::Dead { url: self.url.clone() })
    }
}

impl<T: ?Sized + Send + 'static> Drop for Held<T> {
    fn drop(&mut self) {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.share.discard(held);
    }
}

/// An image being written.
struct Nfs4Writer {
    held: Held<dyn StoreWriter>,
    len_bytes: u64,
    durable_bytes: u64,
    /// No other agent of this machine writes the partial file meanwhile.
    _claim: Claim,
}

impl StoreWriter for Nfs4Writer {
    fn append(&mut self, data: &[u8]) -> Result<()> {
        let own = data.to_vec();
        self.held.with(move |writer| writer.append(&own))?;
        self.len_bytes += u64::try_from(data.len()).expect("a slice's length fits 64 bits");
        if self.len_bytes - self.durable_bytes >= COMMIT_STEP_BYTES {
            self.commit()?;
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<u64> {
        self.durable_bytes = self.held.with(StoreWriter::commit)?;
        Ok(self.durable_bytes)
    }

    fn len(&self) -> u64 {
        self.len_bytes
    }

    fn reader(&self) -> Result<Box<dyn ImageFile>> {
        let reader = self.held.with(|writer| writer.reader())?;
        Ok(image(self.held.share.clone(), reader))
    }

    fn publish(self: Box<Self>) -> Result<()> {
        self.held.finish(|writer| writer.publish())
    }

    fn abort(self: Box<Self>) -> Result<()> {
        self.held.share.tidy();
        self.held.finish(|writer| writer.abort())
    }

    fn keep(self: Box<Self>) -> Result<()> {
        self.held.share.tidy();
        self.held.finish(|writer| writer.keep())
    }
}

/// What a writer left behind.
struct Nfs4LeftOver {
    held: Held<dyn LeftOver>,
    url: Nfs4Url,
    claim: Claim,
}

impl LeftOver for Nfs4LeftOver {
    fn reader(&self) -> Result<Box<dyn ImageFile>> {
        let reader = self.held.with(|found| found.reader())?;
        Ok(image(self.held.share.clone(), reader))
    }

    fn go_on(self: Box<Self>, len_bytes: u64) -> Result<Box<dyn StoreWriter>> {
        let Self { held, url, claim } = *self;
        let inner = held.finish(move |found| found.go_on(len_bytes))?;
        Ok(writer(held.share.clone(), inner, &url, claim))
    }
}
