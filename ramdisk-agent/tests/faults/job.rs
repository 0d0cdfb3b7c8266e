//! The two jobs that are disturbed, as the engine does them: frames are appended, committed, read again and published; or read by
//! several threads.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use agent_api::ErrorKind;
use ramdisk_agent::store::{self, ImageFile, Options, Result, StoreError, StoreUrl, StoreWriter};
use uuid::Uuid;

use crate::report::Ended;

pub const FRAME: usize = 64 << 10;
const READERS: usize = 2;

/// A name that no scenario has had: a server may remember files that were removed beneath it.
pub fn new_name() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("x{}.img.zst", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Bytes that do not repeat.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// Numbers that look random and are the same in every run.
pub struct Numbers(blake3::OutputReader);

impl Numbers {
    pub fn new(seed: &str) -> Self {
        Self(blake3::Hasher::new().update(seed.as_bytes()).finalize_xof())
    }

    /// One from 1 to `most`.
    pub fn up_to(&mut self, most: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        1 + u64::from_le_bytes(bytes) % most
    }
}

/// What a read or a comparison came to.
fn ended(result: io::Result<bool>) -> Ended {
    match result {
        Ok(true) => Ended::Same,
        // What the engine says when a hash is wrong.
        Ok(false) => Ended::Failed(ErrorKind::ImageCorrupt, "other bytes".into()),
        Err(error) => match StoreError::find(&error) {
            Some(found) => Ended::Failed(found.kind(), found.to_string()),
            None => Ended::Failed(ErrorKind::Store, error.to_string()),
        },
    }
}

fn failed(error: &StoreError) -> Ended {
    Ended::Failed(error.kind(), error.to_string())
}

/// Reads all of an image and compares it.
pub fn read(url: &StoreUrl, data: &[u8], options: &Options) -> Ended {
    match store::open_with(url, options) {
        Ok(image) => compare(&*image, data),
        Err(error) => failed(&error),
    }
}

/// Compares what an open image gives.
pub fn compare(image: &dyn ImageFile, data: &[u8]) -> Ended {
    if image.len_bytes() != data.len() as u64 {
        return ended(Ok(false));
    }
    let frames = data.len().div_ceil(FRAME);
    let result = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|reader| {
                scope.spawn(move || -> io::Result<bool> {
                    for frame in (reader..frames).step_by(READERS) {
                        let expected =
                            &data[frame * FRAME..][..FRAME.min(data.len() - frame * FRAME)];
                        let mut got = vec![0; expected.len()];
                        image.read_exact_at(&mut got, (frame * FRAME) as u64)?;
                        if got != expected {
                            return Ok(false);
                        }
                    }
                    Ok(true)
                })
            })
            .collect();
        readers
            .into_iter()
            .map(|reader| reader.join().unwrap())
            .try_fold(true, |all, one| one.map(|one| all && one))
    });
    ended(result)
}

fn append_all(writer: &mut dyn StoreWriter, data: &[u8]) -> Result<()> {
    for frame in data.chunks(FRAME) {
        writer.append(frame)?;
    }
    let durable = writer.commit()?;
    assert_eq!(durable, data.len() as u64, "commit says that less is durable");
    Ok(())
}

/// Writes an image as a capture does. `before_reread` is for what happens to it in between. Also how many bytes were sent again.
pub fn write(
    url: &StoreUrl,
    data: &[u8],
    options: &Options,
    before_reread: impl FnOnce(),
) -> (Ended, u64) {
    let mut writer = match store::create(url, Uuid::new_v4(), options) {
        Ok(writer) => writer,
        Err(error) => return (failed(&error), 0),
    };
    if let Err(error) = append_all(&mut *writer, data) {
        // The first error is the one that matters.
        let _ = writer.abort();
        return (failed(&error), 0);
    }
    let resent = writer.resent_bytes();
    before_reread();
    let reread = match writer.reader() {
        Ok(reader) => compare(&*reader, data),
        Err(error) => failed(&error),
    };
    if reread != Ended::Same {
        let _ = writer.abort();
        return (reread, resent);
    }
    match writer.publish() {
        Ok(()) => (Ended::Same, resent),
        Err(error) => (failed(&error), resent),
    }
}

/// Checks what is in the folder after a job that wrote `name`: the image, or nothing that looks like one.
pub fn check_folder(folder: &Path, name: &str, data: &[u8], ended: &Ended) {
    let path = folder.join(name);
    if *ended == Ended::Same {
        assert!(std::fs::read(&path).unwrap() == data, "{name} holds other bytes");
        assert!(!folder.join(format!("{name}.partial")).exists(), "{name}.partial is left");
        std::fs::remove_file(path).unwrap();
    } else {
        assert!(!path.exists(), "{name} is there after {ended:?}");
        // As far as the store could be reached it was removed; the next scenario begins afresh.
        let _ = std::fs::remove_file(folder.join(format!("{name}.partial")));
    }
}
