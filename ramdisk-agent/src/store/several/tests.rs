//! Several sources, some of which do wrong.

use std::sync::Condvar;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use super::*;

const LEN: usize = 1 << 20;

/// What a source does wrong.
#[derive(Default)]
struct Fake {
    delay: Duration,
    /// From the n-th read on.
    fails_after: Option<usize>,
    wrong: bool,
    hangs: Arc<(Mutex<bool>, Condvar)>,
    reads: AtomicUsize,
}

fn right(offset: u64, len: usize) -> Vec<u8> {
    let start = usize::try_from(offset).unwrap();
    (start..start + len).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect()
}

impl ReadAt for Fake {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let read = self.reads.fetch_add(1, Ordering::SeqCst);
        if !self.delay.is_zero() {
            std::thread::sleep(self.delay);
        }
        let hangs = self.hangs.0.lock().unwrap();
        drop(self.hangs.1.wait_while(hangs, |hangs| *hangs).unwrap());
        if self.fails_after.is_some_and(|after| read >= after) {
            return Err(io::Error::other("it broke"));
        }
        buf.copy_from_slice(&right(offset, buf.len()));
        buf[0] ^= u8::from(self.wrong);
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(LEN as u64)
    }
}

impl ImageFile for Fake {
    fn len_bytes(&self) -> u64 {
        LEN as u64
    }
}

#[derive(Default)]
struct Told {
    left_out: Mutex<Vec<String>>,
    stalled: AtomicBool,
    resumed: AtomicBool,
}

impl Observer for Told {
    fn stalled(&self, _: &str) {
        self.stalled.store(true, Ordering::SeqCst);
    }
    fn resumed(&self) {
        self.resumed.store(true, Ordering::SeqCst);
    }
    fn left_out(&self, what: &str) {
        self.left_out.lock().unwrap().push(what.to_owned());
    }
}

struct Sources {
    image: Several,
    tallies: Vec<Arc<Tally>>,
    told: Arc<Told>,
}

fn several(fakes: Vec<Fake>) -> Sources {
    let told = Arc::new(Told::default());
    let mut tallies = Vec::new();
    let sources = fakes.into_iter().enumerate().map(|(index, fake)| {
        let url: StoreUrl = format!("/images/{index}").parse().unwrap();
        tallies.push(Tally::new(&url, None));
        (Box::new(fake) as Box<dyn ImageFile>, Arc::clone(&tallies[index]))
    });
    let sources = sources.collect();
    Sources { image: Several::new(sources, Some(Arc::clone(&told) as _)), tallies, told }
}

/// Reads everything in pieces by two threads.
fn read_all(image: &Several, pieces: usize) -> io::Result<bool> {
    let len = LEN / pieces;
    let part = |first: usize| {
        (first..pieces).step_by(2).try_fold(true, |all, piece| {
            let (mut buf, offset) = (vec![0; len], (piece * len) as u64);
            let expected = right(offset, len);
            image.read_checked_at(&mut buf, offset, &|bytes| bytes == expected)?;
            io::Result::Ok(all && buf == expected)
        })
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| part(1));
        let own = part(0)?;
        Ok(own && other.join().unwrap()?)
    })
}

#[test]
fn reads_are_spread_by_speed() {
    let slow = Fake { delay: Duration::from_millis(200), ..Fake::default() };
    let quick = || Fake { delay: Duration::from_millis(2), ..Fake::default() };
    let Sources { image, tallies, .. } = several(vec![slow, quick(), quick()]);
    assert!(read_all(&image, 64).unwrap());
    let bytes: Vec<u64> = tallies.iter().map(|tally| tally.bytes()).collect();
    assert_eq!(bytes.iter().sum::<u64>(), LEN as u64);
    assert!(bytes[0] < (bytes[1] + bytes[2]) / 4, "{bytes:?}");
}

#[test]
fn a_source_that_fails_or_lies_is_left_out_with_its_reason() {
    let broken = Fake { fails_after: Some(3), ..Fake::default() };
    let wrong = Fake { wrong: true, ..Fake::default() };
    let good = Fake { delay: Duration::from_millis(5), ..Fake::default() };
    let Sources { image, tallies, told } = several(vec![broken, wrong, good]);
    assert!(read_all(&image, 64).unwrap());
    assert_eq!(tallies[0].left_out().unwrap(), "it broke");
    assert!(tallies[1].left_out().unwrap().contains("is not the image's"));
    assert_eq!((tallies[1].bytes(), tallies[2].left_out()), (0, None));
    assert_eq!(told.left_out.lock().unwrap().len(), 2);
}

#[test]
fn the_last_source_says_what_is_wrong() {
    let one = || Fake { fails_after: Some(2), ..Fake::default() };
    let Sources { image, .. } = several(vec![one(), one()]);
    assert_eq!(read_all(&image, 64).unwrap_err().to_string(), "it broke");
    let wrong = || Fake { wrong: true, ..Fake::default() };
    let Sources { image, .. } = several(vec![wrong(), wrong()]);
    assert!(!read_all(&image, 64).unwrap(), "the caller sees the wrong bytes, and says so");
}

#[test]
fn a_source_that_hangs_is_passed_over_and_comes_back() {
    let hangs = Arc::new((Mutex::new(true), Condvar::new()));
    let hanging = Fake { hangs: Arc::clone(&hangs), ..Fake::default() };
    let good = Fake { delay: Duration::from_millis(5), ..Fake::default() };
    let Sources { image, tallies, told } = several(vec![hanging, good]);
    let start = Instant::now();
    assert!(read_all(&image, 64).unwrap());
    assert!(start.elapsed() < PATIENCE * 4, "{:?}", start.elapsed());
    assert_eq!((tallies[0].bytes(), tallies[0].left_out()), (0, None));
    assert!(!told.stalled.load(Ordering::SeqCst), "the other one answers");
    *hangs.0.lock().unwrap() = false;
    hangs.1.notify_all();
    // It answers what it was asked long ago, and then it is one of them again.
    while image.shared.loads()[0].stalled {
        std::thread::yield_now();
    }
    assert!(read_all(&image, 64).unwrap());
    assert!(tallies[0].bytes() > 0);
}

#[test]
fn all_that_hang_are_waited_for() {
    let hangs = Arc::new((Mutex::new(true), Condvar::new()));
    let one = || Fake { hangs: Arc::clone(&hangs), ..Fake::default() };
    let Sources { image, told, .. } = several(vec![one(), one()]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !told.stalled.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            *hangs.0.lock().unwrap() = false;
            hangs.1.notify_all();
        });
        assert!(read_all(&image, 8).unwrap());
    });
    assert!(told.resumed.load(Ordering::SeqCst));
}
