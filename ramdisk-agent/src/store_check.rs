//! Trying a store out: does it do what captures and restores need, and how fast.
//!
//! A probe of random bytes is written as an image is, made durable, read again and compared, published, not overwritten, listed and
//! removed. The first thing that fails ends the check, and what is left of the probe is removed as far as that goes. What a store does to
//! writers of several machines at once, or when it restarts, is not tried.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use agent_api::{ErrorKind, Failure, StoreReport};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::store::{self, ImageFile, Options, StoreUrl};

/// How much is written and read unless something else is asked for: long enough to fill caches of connections, short enough for a
/// slow line.
pub const PROBE_BYTES: u64 = 32 << 20;
/// What is appended at a time, as a capture does.
const PIECE_BYTES: usize = 4 << 20;
/// So much of the probe is different from the rest of it; a longer one repeats it.
const NOISE_BYTES: usize = 32 << 20;
/// Threads that read at once, as in a restore.
const READERS: u64 = 2;

/// Tries out the store in this folder with a probe of `probe_bytes`. What is wrong is in the report.
#[must_use]
pub fn check(folder: &StoreUrl, probe_bytes: u64, options: &Options) -> StoreReport {
    let mut report = StoreReport { probe_bytes, ..StoreReport::default() };
    let mut step = "making a file";
    if let Err(error) = run(folder, options, &mut report, &mut step) {
        report.failed_at = Some(step.to_owned());
        report.failure = Some(Failure { kind: error.kind(), message: error.chain() });
    }
    report
}

fn run(
    folder: &StoreUrl,
    options: &Options,
    report: &mut StoreReport,
    step: &mut &'static str,
) -> Result<()> {
    let id = Uuid::new_v4();
    // Lower-case letters, digits, '-' and '.': a name that every store takes.
    let name = format!("imprint-check-{}.probe", &id.simple().to_string()[..12]);
    let url = folder.join(&name);
    report.facts = Some(store::facts(folder, options)?);
    let mut writer = store::create(&url, id, options)?;
    report.done.push("a file can be made".to_owned());

    *step = "writing";
    let probe = Probe::new(id, report.probe_bytes);
    let began = Instant::now();
    for offset in probe.offsets() {
        go_on(options)?;
        writer.append(probe.piece(offset))?;
    }
    *step = "making it durable";
    if writer.commit()? != probe.len {
        return Err(wrong("it says that it kept another length than was written"));
    }
    report.write_bytes_per_second = Some(probe.per_second(began));
    report.done.push("it is written and flushed".to_owned());

    *step = "reading it again";
    let began = Instant::now();
    compare(&*writer.reader()?, &probe, options)?;
    report.read_bytes_per_second = Some(probe.per_second(began));
    report.done.push("it reads as it was written".to_owned());

    *step = "publishing it";
    let result = match writer.publish() {
        Ok(()) => published(folder, &name, &url, options, &probe, report, step),
        // It may have its name all the same: of who is cancelled the server's answer is not waited for.
        Err(error) => Err(error.into()),
    };
    result.map_err(|error| match store::remove(&url, &options.to_tidy_up()) {
        Err(left) if left.kind() != ErrorKind::NotFound => {
            error.context(format!("the probe could not be removed and stays as {url}"))
        }
        _ => error,
    })
}

/// The rest of the check, with the probe under its name.
fn published(
    folder: &StoreUrl,
    name: &str,
    url: &StoreUrl,
    options: &Options,
    probe: &Probe,
    report: &mut StoreReport,
    step: &mut &'static str,
) -> Result<()> {
    report.done.push("it gets its name when it is complete".to_owned());
    *step = "opening it by its name";
    compare(&*store::open_with(url, options)?, probe, options)?;
    *step = "trying to overwrite it";
    match store::create(url, Uuid::new_v4(), options) {
        Ok(_) => {
            return Err(wrong(
                "a second file of the same name was let in: images would be overwritten",
            ));
        }
        Err(error) if error.kind() == ErrorKind::Refused => {}
        Err(error) => return Err(error.into()),
    }
    report.done.push("it is not overwritten".to_owned());
    *step = "listing the folder";
    if !store::list(folder, options)?.iter().any(|entry| entry.name == name) {
        return Err(wrong("the list of the folder lacks the file"));
    }
    *step = "removing it";
    store::remove(url, options)?;
    report.done.push("it can be listed and removed".to_owned());
    Ok(())
}

/// Fails once the check is cancelled; what was written is removed then.
fn go_on(options: &Options) -> Result<()> {
    match options.cancelled.load(Ordering::Relaxed) {
        true => Err(Error::new(ErrorKind::Cancelled, "cancelled by a signal")),
        false => Ok(()),
    }
}

fn compare(file: &dyn ImageFile, probe: &Probe, options: &Options) -> Result<()> {
    if file.len_bytes() != probe.len {
        return Err(wrong("it has another length than was written"));
    }
    let next = AtomicU64::new(0);
    let read = || {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let offset = next.fetch_add(PIECE_BYTES as u64, Ordering::Relaxed);
            if offset >= probe.len {
                return Ok(());
            }
            go_on(options)?;
            compare_piece(file, offset, probe.piece(offset), &mut piece)?;
        }
    };
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(read)).collect();
        readers.into_iter().try_for_each(|reader| {
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

fn compare_piece(
    file: &dyn ImageFile,
    offset: u64,
    wanted: &[u8],
    buffer: &mut [u8],
) -> Result<()> {
    let piece = &mut buffer[..wanted.len()];
    file.read_exact_at(piece, offset).map_err(|error| match store::StoreError::find(&error) {
        Some(store) => Error::new(store.kind(), store.to_string()),
        None => Error::new(ErrorKind::Store, "reading the probe").because(error),
    })?;
    if !is_same(piece, wanted) {
        return Err(wrong("it reads differently from what was written"));
    }
    Ok(())
}

/// Comparing slices is memcmp, which goes byte by byte in musl and would be slower than a network.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<64>(), b.as_chunks::<64>());
    let differs = |(a, b): (&[u8; 64], &[u8; 64])| {
        a.iter().zip(b).fold(0, |bits, (a, b)| bits | (a ^ b)) != 0
    };
    a.len() == b.len() && !a.iter().zip(b).any(differs) && a_rest == b_rest
}

fn wrong(what: &str) -> Error {
    Error::new(ErrorKind::Store, what)
}

/// Bytes that no compression makes smaller, other ones each time.
struct Probe {
    noise: Vec<u8>,
    len: u64,
}

impl Probe {
    fn new(id: Uuid, len: u64) -> Self {
        let mut noise = vec![0; NOISE_BYTES];
        blake3::Hasher::new().update(id.as_bytes()).finalize_xof().fill(&mut noise);
        Self { noise, len }
    }

    /// Where its pieces begin.
    fn offsets(&self) -> impl Iterator<Item = u64> + use<> {
        (0..self.len).step_by(PIECE_BYTES)
    }

    /// The piece that begins here.
    fn piece(&self, offset: u64) -> &[u8] {
        let within = |n: u64| usize::try_from(n).expect("less than the noise");
        let start = within(offset % NOISE_BYTES as u64);
        &self.noise[start..start + within((self.len - offset).min(PIECE_BYTES as u64))]
    }

    fn per_second(&self, began: Instant) -> u64 {
        let micros = began.elapsed().as_micros().max(1);
        u64::try_from(u128::from(self.len) * 1_000_000 / micros).unwrap_or(u64::MAX)
    }
}

/// A report for people.
#[derive(Debug)]
pub struct Shown<'a>(pub &'a StoreReport);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        for line in report.facts.iter().flat_map(|facts| facts.lines(crate::words::size)) {
            writeln!(f, "store    {line}")?;
        }
        for done in &report.done {
            writeln!(f, "ok       {done}")?;
        }
        let rate = |bytes: Option<u64>| {
            bytes.map_or_else(|| "-".to_owned(), |bytes| format!("{}/s", crate::words::size(bytes)))
        };
        write!(
            f,
            "probe    {}, written at {}, read at {}",
            crate::words::size(report.probe_bytes),
            rate(report.write_bytes_per_second),
            rate(report.read_bytes_per_second),
        )?;
        if let (Some(step), Some(failure)) = (&report.failed_at, &report.failure) {
            write!(f, "\nFAILED   {step}: {} [{}]", failure.message, failure.kind)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_counts() {
        for len in [0, 1, 63, 64, 65, 200] {
            let bytes = vec![7; len];
            assert!(
                is_same(&bytes, &bytes.clone()) && !is_same(&bytes, &[&bytes[..], &[7]].concat())
            );
            for at in 0..len {
                let mut other = bytes.clone();
                other[at] ^= 0x10;
                assert!(!is_same(&bytes, &other), "byte {at} of {len}");
            }
        }
    }

    #[test]
    fn a_folder_does_what_is_needed_and_is_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let url = StoreUrl::File(folder.path().to_owned());
        let report = check(&url, PROBE_BYTES, &Options::default());
        assert_eq!(report.failure, None, "{}", Shown(&report));
        assert_eq!(report.done.len(), 6);
        let facts = report.facts.as_ref().unwrap();
        assert!(facts.free_bytes.unwrap() > 0 && facts.total_bytes > facts.free_bytes, "{facts:?}");
        assert!(Shown(&report).to_string().starts_with("store    folder\nstore    "));
        assert!(report.write_bytes_per_second.is_some() && report.read_bytes_per_second.is_some());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        // Longer than its noise, and no number of pieces.
        let report = check(&url, (66 << 20) + 5, &Options::default());
        assert_eq!((&report.failure, report.probe_bytes), (&None, (66 << 20) + 5));
        assert!(Shown(&report).to_string().contains("ok       it is not overwritten"));
    }

    #[test]
    fn what_is_wrong_is_said_in_words() {
        let url = StoreUrl::File("/nonexistent/images".into());
        let report = check(&url, PROBE_BYTES, &Options::default());
        assert_eq!(report.failed_at.as_deref(), Some("making a file"));
        assert_eq!(report.failure.as_ref().unwrap().kind, ErrorKind::NotFound);
        assert!(Shown(&report).to_string().contains("FAILED   making a file: "));
    }
}
