//! A limit on the bytes that a job moves to and from its stores.
//!
//! A [`Limiter`] is a token bucket that all files of a job share, whichever store and thread they belong to: each piece waits for its turn
//! before it is handed to the store, reads and writes alike. Pieces are an eighth of a second long, and what was not used is
//! saved up for a quarter of a second and no longer, so that neither a large frame nor a pause makes a burst. Nothing is locked while a
//! thread waits. What a store sends again after an outage is not counted twice.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{ImageFile, LeftOver, ReadAt, Result, StoreWriter};

/// How much unused time is saved up.
const SAVED: Duration = Duration::from_millis(250);
/// So many pieces go in a second.
const PIECES_PER_SECOND: u64 = 8;
/// How soon a waiting thread sees that the job was cancelled.
const TICK: Duration = Duration::from_millis(50);

/// Which way limited bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From a store.
    Read,
    /// To a store.
    Write,
}

/// Hears how long somebody waited.
pub type Told = Box<dyn Fn(Way, Duration) + Send + Sync>;

/// Lets bytes through at a rate.
pub struct Limiter {
    bytes_per_second: u64,
    piece_bytes: usize,
    /// When the time of everything is over that was let through so far.
    spent_until: Mutex<Instant>,
    /// Who is cancelled waits no more.
    cancelled: Arc<AtomicBool>,
    told: Told,
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter")
            .field("bytes_per_second", &self.bytes_per_second)
            .finish_non_exhaustive()
    }
}

impl Limiter {
    /// A limit of `bytes_per_second`, which is not 0. Nobody waits once `cancelled` is set.
    #[must_use]
    pub fn new(bytes_per_second: u64, cancelled: Arc<AtomicBool>, told: Told) -> Self {
        let piece_bytes =
            usize::try_from(bytes_per_second / PIECES_PER_SECOND).unwrap_or(usize::MAX);
        Self {
            bytes_per_second: bytes_per_second.max(1),
            piece_bytes: piece_bytes.max(1),
            spent_until: Mutex::new(Instant::now()),
            cancelled,
            told,
        }
    }

    /// Waits until a piece of this length may go.
    fn wait_for(&self, way: Way, len: usize) {
        let arrived = Instant::now();
        let due = self.reserve(arrived, len);
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() || self.cancelled.load(Ordering::Relaxed) {
                break;
            }
            std::thread::sleep(left.min(TICK));
        }
        (self.told)(way, arrived.elapsed());
    }

    /// When a piece may go that came at `now`.
    fn reserve(&self, now: Instant, len: usize) -> Instant {
        let nanos = u128::from(len as u64) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let earliest = now.checked_sub(SAVED).unwrap_or(now);
        let mut spent_until = self.spent_until.lock().unwrap_or_else(PoisonError::into_inner);
        *spent_until = (*spent_until).max(earliest) + takes;
        *spent_until
    }
}

/// An image whose reads wait their turn.
struct LimitedImage {
    file: Box<dyn ImageFile>,
    limiter: Arc<Limiter>,
}

/// `file` under a limit, if there is one.
pub(super) fn image(
    file: Box<dyn ImageFile>,
    limiter: Option<&Arc<Limiter>>,
) -> Box<dyn ImageFile> {
    match limiter {
        Some(limiter) => Box::new(LimitedImage { file, limiter: Arc::clone(limiter) }),
        None => file,
    }
}

impl ReadAt for LimitedImage {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut at = offset;
        for piece in buf.chunks_mut(self.limiter.piece_bytes) {
            self.limiter.wait_for(Way::Read, piece.len());
            self.file.read_exact_at(piece, at)?;
            // The read of bytes up to there would have failed if it could not be a file's offset.
            at = at.saturating_add(piece.len() as u64);
        }
        Ok(())
    }

    fn read_checked_at(
        &self,
        buf: &mut [u8],
        offset: u64,
        is_right: &dyn Fn(&[u8]) -> bool,
    ) -> io::Result<()> {
        if buf.len() > self.limiter.piece_bytes {
            // Pieces cannot be told from wrong ones.
            self.read_exact_at(buf, offset)?;
            if is_right(buf) {
                return Ok(());
            }
        }
        self.limiter.wait_for(Way::Read, buf.len());
        self.file.read_checked_at(buf, offset, is_right)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
}

impl ImageFile for LimitedImage {
    fn len_bytes(&self) -> u64 {
        self.file.len_bytes()
    }
}

/// A writer whose data wait their turn.
struct LimitedWriter {
    writer: Box<dyn StoreWriter>,
    limiter: Arc<Limiter>,
}

/// `writer` under a limit, if there is one.
pub(super) fn writer(
    writer: Box<dyn StoreWriter>,
    limiter: Option<&Arc<Limiter>>,
) -> Box<dyn StoreWriter> {
    match limiter {
        Some(limiter) => Box::new(LimitedWriter { writer, limiter: Arc::clone(limiter) }),
        None => writer,
    }
}

impl StoreWriter for LimitedWriter {
    fn append(&mut self, data: &[u8]) -> Result<()> {
        for piece in data.chunks(self.limiter.piece_bytes) {
            self.limiter.wait_for(Way::Write, piece.len());
            self.writer.append(piece)?;
        }
        Ok(())
    }

    fn append_zeros(&mut self, len_bytes: u64) -> Result<()> {
        // A hole is not written, so there is nothing to wait for.
        if self.writer.leaves_holes() {
            return self.writer.append_zeros(len_bytes);
        }
        super::write_zeros(self, len_bytes)
    }

    fn leaves_holes(&self) -> bool {
        self.writer.leaves_holes()
    }

    fn check_room(&self, len_bytes: u64, data_bytes: u64) -> Result<()> {
        self.writer.check_room(len_bytes, data_bytes)
    }

    fn commit(&mut self) -> Result<u64> {
        self.writer.commit()
    }

    fn len(&self) -> u64 {
        self.writer.len()
    }

    fn resent_bytes(&self) -> u64 {
        self.writer.resent_bytes()
    }

    fn reader(&self) -> Result<Box<dyn ImageFile>> {
        Ok(image(self.writer.reader()?, Some(&self.limiter)))
    }

    fn publish(self: Box<Self>) -> Result<()> {
        self.writer.publish()
    }

    fn abort(self: Box<Self>) -> Result<()> {
        self.writer.abort()
    }

    fn keep(self: Box<Self>) -> Result<()> {
        self.writer.keep()
    }
}

/// Something left behind whose reader and writer wait their turn.
struct LimitedLeftOver {
    found: Box<dyn LeftOver>,
    limiter: Arc<Limiter>,
}

/// `found` under a limit, if there is one.
pub(super) fn left_over(
    found: Box<dyn LeftOver>,
    limiter: Option<&Arc<Limiter>>,
) -> Box<dyn LeftOver> {
    match limiter {
        Some(limiter) => Box::new(LimitedLeftOver { found, limiter: Arc::clone(limiter) }),
        None => found,
    }
}

impl LeftOver for LimitedLeftOver {
    fn reader(&self) -> Result<Box<dyn ImageFile>> {
        Ok(image(self.found.reader()?, Some(&self.limiter)))
    }

    fn go_on(self: Box<Self>, len_bytes: u64) -> Result<Box<dyn StoreWriter>> {
        Ok(writer(self.found.go_on(len_bytes)?, Some(&self.limiter)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(bytes_per_second: u64) -> Limiter {
        Limiter::new(bytes_per_second, Arc::default(), Box::new(|_, _| {}))
    }

    #[test]
    fn pieces_go_at_the_rate_however_they_come() {
        let limiter = limiter(1_000_000);
        let start = *limiter.spent_until.lock().unwrap();
        // All at once, then one after the other.
        for n in 1..=20 {
            assert_eq!(limiter.reserve(start, 100_000), start + Duration::from_millis(100 * n));
        }
        let later = start + Duration::from_secs(2);
        assert_eq!(limiter.reserve(later, 100_000), later + Duration::from_millis(100));
    }

    #[test]
    fn a_pause_saves_up_a_quarter_of_a_second() {
        let limiter = limiter(1_000_000);
        let start = *limiter.spent_until.lock().unwrap();
        let later = start + Duration::from_secs(3600);
        assert_eq!(limiter.reserve(later, 250_000), later, "what was saved up goes at once");
        assert_eq!(limiter.reserve(later, 1_000), later + Duration::from_millis(1));
    }

    #[test]
    fn who_is_cancelled_does_not_wait() {
        let cancelled = Arc::new(AtomicBool::new(true));
        let limiter = Limiter::new(1, cancelled, Box::new(|_, _| {}));
        let file = image(Box::new(Bytes(vec![7; 100_000])), Some(&Arc::new(limiter)));
        let start = Instant::now();
        file.read_exact_at(&mut [0; 100], 0).unwrap();
        assert!(start.elapsed() < Duration::from_secs(60), "100 s are what the rate allows");
    }

    struct Bytes(Vec<u8>);

    impl ReadAt for Bytes {
        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            self.0.read_exact_at(buf, offset)
        }
        fn len(&self) -> io::Result<u64> {
            ReadAt::len(&self.0)
        }
    }

    impl ImageFile for Bytes {
        fn len_bytes(&self) -> u64 {
            self.0.len() as u64
        }
    }

    #[test]
    fn threads_share_the_rate_and_hear_how_long_they_waited() {
        let waited = Arc::new(Mutex::new(Duration::ZERO));
        let told = {
            let waited = Arc::clone(&waited);
            Box::new(move |way, time| {
                assert_eq!(way, Way::Read);
                *waited.lock().unwrap() += time;
            })
        };
        let data: Vec<u8> = (0..=255).cycle().take(6 << 20).collect();
        let limiter = Arc::new(Limiter::new(2 << 20, Arc::default(), told));
        let file = image(Box::new(Bytes(data.clone())), Some(&limiter));
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in 0..3_usize {
                let (file, data) = (&file, &data);
                scope.spawn(move || {
                    let mut buf = vec![0; 2 << 20];
                    let start = part * buf.len();
                    file.read_exact_at(&mut buf, start as u64).unwrap();
                    assert!(buf == data[start..][..buf.len()]);
                });
            }
        });
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(2_700), "6 MiB at 2 MiB/s took {took:?}");
        assert!(*waited.lock().unwrap() >= took, "three threads waited together");
    }
}
