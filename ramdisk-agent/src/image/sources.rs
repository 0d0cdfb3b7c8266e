//! Opening one image in several places.
//!
//! All are opened at once, and the index of each is read. The image is the one whose root was asked for, or else what the first place
//! holds that can be opened; a place that cannot be opened in time, or holds another image, is left out and named. With none left the
//! image cannot be opened.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use image_format::{ImageReader, Root};

use crate::error::{Error, Result};
use crate::store::{self, ImageFile, Observer, Options, Several, StoreUrl, Tally};

/// How long slower places are waited for once one is open.
const GRACE: Duration = Duration::from_secs(5);

/// An image opened in several places.
pub struct Sources {
    /// The places that are used; at least one.
    pub urls: Vec<StoreUrl>,
    /// The image, from all of them.
    pub file: Box<dyn ImageFile>,
    /// What comes from which, those that are left out included.
    pub tallies: Vec<Arc<Tally>>,
}

/// One place that was opened, and what is there.
type Place = Result<(Box<dyn ImageFile>, Root)>;

/// Opens an image in all of these places. `expect_root` is its root, if that is known.
///
/// # Errors
/// If none can be used: the first one's kind, and why each of them cannot.
pub fn open(urls: &[StoreUrl], expect_root: Option<&str>, options: &Options) -> Result<Sources> {
    let mut places = open_all(urls, options);
    let is_cancelled = |place: &Option<Place>| matches!(place, Some(Err(error)) if error.kind() == agent_api::ErrorKind::Cancelled);
    if let Some(Some(Err(error))) =
        places.iter().position(is_cancelled).map(|at| places.swap_remove(at))
    {
        return Err(error);
    }
    let first = || {
        let opened = places.iter().filter_map(|place| place.as_ref()?.as_ref().ok());
        opened.map(|(_, root)| root.to_string()).next()
    };
    let wanted = expect_root.map(|root| root.trim().to_ascii_lowercase()).or_else(first);
    let (mut sources, mut tallies, mut used) = (Vec::new(), Vec::new(), Vec::new());
    let mut failed: Option<Error> = None;
    for (url, place) in urls.iter().zip(places.drain(..)) {
        let why = match place {
            Some(Ok((file, root))) if Some(root.to_string()) == wanted => {
                let tally = Tally::new(url, None);
                tallies.push(Arc::clone(&tally));
                sources.push((file, tally));
                used.push(url.clone());
                continue;
            }
            Some(Ok((_, root))) => Error::new(
                agent_api::ErrorKind::ImageCorrupt,
                format!(
                    "it holds another image: its root is {root}, wanted is {}",
                    wanted.as_deref().unwrap_or("the first one's")
                ),
            ),
            Some(Err(error)) => error,
            None => Error::new(
                agent_api::ErrorKind::Network,
                format!("it is not open after {} s", GRACE.as_secs()),
            ),
        };
        let text = why.chain();
        if let Some(observer) = &options.observer {
            observer.left_out(&format!("{url} is left out: {text}"));
        }
        tallies.push(Tally::new(url, Some(text)));
        failed.get_or_insert(why);
    }
    if !used.is_empty() {
        let file = Box::new(Several::new(sources, options.observer.clone()));
        return Ok(Sources { urls: used, file: store::limited(file, options), tallies });
    }
    let whys: Vec<String> = tallies
        .iter()
        .map(|tally| format!("{}: {}", tally.url(), tally.left_out().unwrap_or_default()))
        .collect();
    let kind = failed.map_or(agent_api::ErrorKind::Internal, |error| error.kind());
    let count = urls.len();
    let text = format!("none of the {count} sources can be used: {}", whys.join("; "));
    Err(Error::new(kind, text))
}

/// Opens all at once; `None` for those that took too long.
fn open_all(urls: &[StoreUrl], options: &Options) -> Vec<Option<Place>> {
    // The limit is in front of all of them together.
    let until_open = options.observer.clone().map(|observer| Arc::new(UntilOpen::new(observer)));
    let observer = until_open.clone().map(|observer| observer as Arc<dyn Observer>);
    let options = Options { limiter: None, observer, ..options.clone() };
    let (sender, answers) = channel();
    for (index, url) in urls.iter().enumerate() {
        let (url, options, sender) = (url.clone(), options.clone(), sender.clone());
        let opening = move || {
            // Whoever asked may have gone on without it; then this is dropped.
            let _ = sender.send((index, open_one(&url, &options)));
        };
        // It ends with its store's budget: a server that is not needed is not waited for.
        std::thread::spawn(opening);
    }
    drop(sender);
    let mut places: Vec<Option<Place>> = urls.iter().map(|_| None).collect();
    let mut until = None;
    loop {
        let answer = match until {
            None => answers.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(until) => {
                answers.recv_timeout(Instant::saturating_duration_since(&until, Instant::now()))
            }
        };
        // All have answered, or those that have not took too long.
        let Ok((index, place)) = answer else { return places };
        if place.is_ok() {
            if let Some(until_open) = &until_open {
                until_open.opened();
            }
            until.get_or_insert_with(|| Instant::now() + GRACE);
        }
        places[index] = Some(place);
    }
}

/// Tells of places that do not answer while none is open: from then on a stall of one is no stall as long as others answer, and [`Several`]
/// tells when none does.
struct UntilOpen {
    observer: Arc<dyn Observer>,
    is_open: Mutex<bool>,
}

impl UntilOpen {
    fn new(observer: Arc<dyn Observer>) -> Self {
        Self { observer, is_open: Mutex::new(false) }
    }

    fn is_open(&self) -> MutexGuard<'_, bool> {
        self.is_open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opened(&self) {
        let mut is_open = self.is_open();
        if !std::mem::replace(&mut *is_open, true) {
            self.observer.resumed();
        }
    }
}

impl Observer for UntilOpen {
    fn stalled(&self, what: &str) {
        let is_open = self.is_open();
        if !*is_open {
            self.observer.stalled(what);
        }
    }

    fn resumed(&self) {
        let is_open = self.is_open();
        if !*is_open {
            self.observer.resumed();
        }
    }
}

fn open_one(url: &StoreUrl, options: &Options) -> Place {
    let file = store::open_with(url, options)?;
    let root = ImageReader::open(&*file)?.root();
    Ok((file, root))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::atomic::Ordering;

    use super::*;

    /// A server that takes connections and says nothing.
    fn silent() -> (TcpListener, StoreUrl) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/x.img.zst", listener.local_addr().unwrap());
        (listener, url.parse().unwrap())
    }

    #[test]
    fn who_is_cancelled_waits_for_none_of_them() {
        let (_server, url) = silent();
        let missing = StoreUrl::File("/nonexistent/x.img.zst".into());
        let options = Options::default();
        let began = Instant::now();
        let error = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_secs(1));
                options.cancelled.store(true, Ordering::Relaxed);
            });
            open(&[missing, url], None, &options).err().unwrap()
        });
        assert_eq!(error.kind(), agent_api::ErrorKind::Cancelled, "{}", error.chain());
        assert!(began.elapsed() < Duration::from_secs(6), "it took {:?}", began.elapsed());
    }
}
