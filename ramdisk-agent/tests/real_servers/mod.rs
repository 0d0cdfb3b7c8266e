//! What the tests of stores on real servers share: bytes to store, a network of its own for each test, and what a store has to live
//! through whatever the server is.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agent_api::ErrorKind;
use fault_proxy::Proxy;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use ramdisk_agent::store::{
    self, Observer, Options, ReadAt as _, Result, StoreError, StoreUrl, StoreWriter,
};
use uuid::Uuid;

/// A server that can be killed.
pub trait RealServer: Send {
    /// Where it has `name`.
    fn url(&self, name: &str) -> StoreUrl;
    /// Where its files are on this machine.
    fn folder(&self) -> &Path;
    /// For a user who may read and write.
    fn options(&self) -> Options;
    /// What an outage of it is called.
    fn called(&self) -> &'static str;
    /// Ends it at once.
    fn kill(&mut self);
    /// Starts it, and ends it before that if it runs.
    fn restart(&mut self);
}

/// Bytes that do not repeat within a request.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut out = vec![0; len];
    hasher.finalize_xof().fill(&mut out);
    out
}

/// Writes in pieces of this length, commits now and then, publishes; how much had to be sent again.
pub fn write_pieces(url: &StoreUrl, data: &[u8], options: &Options, piece: usize) -> Result<u64> {
    let mut writer = store::create(url, Uuid::new_v4(), options)?;
    for (index, piece) in data.chunks(piece).enumerate() {
        writer.append(piece)?;
        if index % 7 == 6 {
            assert_eq!(writer.commit()?, writer.len());
        }
    }
    writer.commit()?;
    let resent = writer.resent_bytes();
    writer.publish()?;
    Ok(resent)
}

/// Moves this thread, and the threads and processes that it starts, to a network of its own.
pub fn isolate() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "network namespaces and servers need root: run the tests as root"
    );
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let up = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status()
        .expect("ip (package iproute2)");
    assert!(up.success());
}

/// Waits for a condition, with a deadline.
pub fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Hears of outages.
#[derive(Default)]
pub struct Told {
    pub stalled: Mutex<Vec<String>>,
    pub resumed: AtomicUsize,
}

impl Observer for Told {
    fn stalled(&self, what: &str) {
        self.stalled.lock().unwrap().push(what.to_owned());
    }
    fn resumed(&self) {
        self.resumed.fetch_add(1, Ordering::SeqCst);
    }
}

/// Down for longer than the observer's first word comes.
const OUTAGE: Duration = Duration::from_secs(7);

/// Writes so many pieces of 8 MiB. While the tenth is on its way the server is away for [`OUTAGE`], and behind the one before the last
/// but one it starts anew at once, with requests under way.
pub fn writing_goes_on_after_kills(server: &mut impl RealServer, pieces: usize) {
    const PIECE: usize = 8 << 20;
    let told = Arc::new(Told::default());
    let options = Options { observer: Some(told.clone()), ..server.options() };
    let url = server.url("x.img.zst");
    let data = pattern(pieces * PIECE, 3);
    let mut writer = store::create(&url, Uuid::new_v4(), &options).unwrap();
    for (index, piece) in data.chunks(PIECE).enumerate() {
        if index == 9 {
            server.kill();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(OUTAGE);
                    server.restart();
                });
                writer.append(piece).unwrap();
                writer.commit().unwrap();
            });
        } else {
            writer.append(piece).unwrap();
        }
        if index + 3 == pieces {
            server.restart();
        }
    }
    writer.commit().unwrap();
    assert!(
        writer.resent_bytes() <= 128 << 20,
        "more than the window was sent again at each of two restarts"
    );
    let mut back = vec![0; data.len()];
    writer.reader().unwrap().read_exact_at(&mut back, 0).unwrap();
    assert!(back == data);
    writer.publish().unwrap();
    assert!(std::fs::read(server.folder().join("x.img.zst")).unwrap() == data);
    let outage = format!("{} does not answer (", server.called());
    let stalled = told.stalled.lock().unwrap();
    assert!(stalled.iter().any(|what| what.starts_with(&outage)), "{stalled:?}");
    assert!(told.resumed.load(Ordering::SeqCst) > 0);
}

/// Reads a file, with the server killed and started again every now and then.
pub fn reading_goes_on_after_kills(server: &mut impl RealServer) {
    const PIECE: usize = 4 << 20;
    let data = pattern(16 * PIECE, 4);
    std::fs::write(server.folder().join("x"), &data).unwrap();
    let image = store::open_with(&server.url("x"), &server.options()).unwrap();
    let mut back = vec![0; data.len()];
    for (index, piece) in back.chunks_mut(PIECE).enumerate() {
        let offset = (index * PIECE) as u64;
        if index % 5 == 2 {
            server.kill();
            std::thread::scope(|scope| {
                scope.spawn(|| server.restart());
                image.read_exact_at(piece, offset).unwrap();
            });
        } else {
            image.read_exact_at(piece, offset).unwrap();
        }
    }
    assert!(back == data);
}

/// Four threads read one file, and what is behind its end is not there.
pub fn several_threads_read_at_once(server: &impl RealServer, url: &StoreUrl, path: &Path) {
    let data = pattern(40 << 20, 2);
    std::fs::write(path, &data).unwrap();
    let image = store::open_with(url, &server.options()).unwrap();
    std::thread::scope(|scope| {
        for part in 0..4_usize {
            let (image, data) = (&image, &data);
            scope.spawn(move || {
                let mut buffer = vec![0; 3 << 20];
                for step in 0..3 {
                    let start = part * (10 << 20) + step * (3 << 20) + part;
                    image.read_exact_at(&mut buffer, start as u64).unwrap();
                    assert!(buffer == data[start..start + buffer.len()]);
                }
            });
        }
    });
    let error = image.read_exact_at(&mut [0; 2], data.len() as u64 - 1).unwrap_err();
    assert!(matches!(StoreError::find(&error), Some(StoreError::PastEnd { .. })), "{error}");
}

/// A server that is gone for good ends a capture after its budget.
pub fn a_server_that_stays_down_ends_the_budget(server: &mut impl RealServer) {
    let options = Options { budget: Duration::from_secs(3), ..server.options() };
    let mut writer = store::create(&server.url("x"), Uuid::new_v4(), &options).unwrap();
    writer.append(&pattern(1 << 20, 1)).unwrap();
    server.kill();
    let error = writer.append(&pattern(3 << 20, 1)).and_then(|()| writer.commit()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Network, "{error}");
    assert!(error.to_string().contains(server.called()), "{error}");
    assert!(matches!(writer.append(b"x"), Err(StoreError::Dead { .. })));
}

/// What a writer leaves is found, read, cut off somewhere and gone on with.
pub fn what_a_writer_leaves_is_gone_on_with(server: &impl RealServer) {
    let (url, options) = (server.url("x.img.zst"), server.options());
    let data = pattern((12 << 20) + 321, 17);
    assert!(store::left_over(&url, &options).unwrap().is_none());
    for cut in [0, 1, 5_345_678, data.len()] {
        let mut writer = store::create(&url, Uuid::new_v4(), &options).unwrap();
        writer.append(&data).unwrap();
        writer.commit().unwrap();
        writer.keep().unwrap();
        let left = store::left_over(&url, &options).unwrap().unwrap();
        let mut back = vec![0; data.len()];
        left.reader().unwrap().read_exact_at(&mut back, 0).unwrap();
        assert!(back == data);
        let mut writer = left.go_on(cut as u64).unwrap();
        assert_eq!(writer.len(), cut as u64);
        writer.append(&data[cut..]).unwrap();
        assert_eq!(writer.commit().unwrap(), data.len() as u64);
        writer.reader().unwrap().read_exact_at(&mut back, 0).unwrap();
        assert!(back == data);
        writer.publish().unwrap();
        assert!(std::fs::read(server.folder().join("x.img.zst")).unwrap() == data, "{cut}");
        assert!(matches!(store::left_over(&url, &options), Err(StoreError::Exists { .. })));
        store::remove(&url, &options).unwrap();
    }
}

/// Sets the flag a second from now, and checks that `work` was ended by it soon after.
pub fn is_cancelled_soon<T>(
    cancelled: &AtomicBool,
    work: impl FnOnce() -> Result<T, StoreError>,
) -> Duration {
    std::thread::scope(|scope| {
        let setter = scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(1));
            cancelled.store(true, Ordering::SeqCst);
            Instant::now()
        });
        let error = work().err().expect("it is cancelled");
        let took = setter.join().unwrap().elapsed();
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
        assert!(took < Duration::from_secs(4), "it took {took:?}: {error}");
        took
    })
}

/// Removing what was written fails, and not after the budget of a job.
pub fn fails_to_tidy_up_soon(writer: Box<dyn StoreWriter>) {
    let began = Instant::now();
    assert!(writer.abort().is_err());
    assert!(began.elapsed() < Duration::from_secs(6), "it took {:?}", began.elapsed());
}

/// Whatever waits for the server behind this proxy, reached at the URLs of `url_at`, ends soon after a cancellation.
pub fn who_is_cancelled_does_not_wait_for_a_server_that_hangs(
    server: &impl RealServer,
    proxy: &Proxy,
    url_at: impl Fn(&str) -> StoreUrl,
    options: &Options,
) {
    let url = url_at("x");
    let with = || Options { cancelled: Arc::default(), ..options.clone() };
    // In the middle of writing: it ends at once, and so does tidying up.
    let options = with();
    let mut writer = store::create(&url, Uuid::new_v4(), &options).unwrap();
    writer.append(&pattern(4 << 20, 7)).unwrap();
    writer.commit().unwrap();
    proxy.set_silent(true);
    is_cancelled_soon(&options.cancelled, || {
        writer.append(&pattern(4 << 20, 8))?;
        writer.commit()
    });
    fails_to_tidy_up_soon(writer);
    // Also when nothing was waited for until then.
    proxy.set_silent(false);
    let options = with();
    let mut writer = store::create(&url_at("w"), Uuid::new_v4(), &options).unwrap();
    writer.append(&pattern(4 << 20, 7)).unwrap();
    writer.commit().unwrap();
    proxy.set_silent(true);
    options.cancelled.store(true, Ordering::SeqCst);
    fails_to_tidy_up_soon(writer);
    // At the first contact, and in the middle of reading.
    let options = with();
    is_cancelled_soon(&options.cancelled, || store::open_with(&url, &options));
    proxy.set_silent(false);
    std::fs::write(server.folder().join("y"), pattern(4 << 20, 9)).unwrap();
    let options = with();
    let image = store::open_with(&url_at("y"), &options).unwrap();
    proxy.set_silent(true);
    let read = || {
        let read = image.read_exact_at(&mut vec![0; 4 << 20], 0);
        read.map_err(|error| error.downcast::<StoreError>().unwrap())
    };
    // From several threads, of which each would make a connection.
    is_cancelled_soon(&options.cancelled, || {
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..4).map(|_| scope.spawn(read)).collect();
            readers.into_iter().try_for_each(|reader| reader.join().unwrap())
        })
    });
    drop(image);
    // A server that answers is tidied up after.
    proxy.set_silent(false);
    let options = with();
    let mut writer = store::create(&url_at("z"), Uuid::new_v4(), &options).unwrap();
    writer.append(&pattern(4 << 20, 7)).unwrap();
    writer.commit().unwrap();
    options.cancelled.store(true, Ordering::SeqCst);
    writer.abort().unwrap();
    assert!(!server.folder().join("z.partial").exists());
}
