//! How many threads make an image at once: as many as the machine can run, and where they wait for a disk a few more, within a limit of
//! memory.
//!
//! The whole program is to stay below 200 MB at every level and on every machine; what a thread takes depends on zstd's tables, which grow
//! from 1 MiB at level 3 to 37 MiB at level 19 with a base. So zstd is asked for that, and the rest is counted: a span and the frame made
//! of it for each thread, the frames that wait for the store, what the store's writer holds, what a base's content takes on its way.

use image_format::{DEFAULT_SPAN_LEN, working_memory};

use super::cores;
use crate::error::Result;
use crate::image::MAX_CHAIN_LEN;

/// What the whole program may take, with some room for what is not counted well.
const LIMIT_BYTES: u64 = 185_000_000;
/// What it takes whatever it does: itself, maps of used blocks, pages of the index, stacks, what the allocator has not given back yet.
const REST_BYTES: u64 = 30 << 20;
const SPAN_BYTES: u64 = DEFAULT_SPAN_LEN as u64;
/// So many threads more than processors, where each reads its spans from a disk by itself: on two processors a cold disk was captured in two
/// thirds of the time that it took without, and with four in about the same. Where nothing is waited for they only take the caches from each
/// other: 5 % slower.
const READING: usize = 2;

/// The threads that make an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Crew {
    /// How many there are.
    pub workers: usize,
    /// How many spans may be under way at once.
    pub depth: usize,
}

impl Crew {
    /// For a capture at a zstd level to a store whose writer holds so many bytes; with a base that so many images lead to, for frames with a
    /// prefix. `waits`: the threads wait for the disk themselves.
    ///
    /// # Errors
    /// If zstd does not have the level.
    pub(crate) fn new(
        level: i32,
        held_by_store: u64,
        base: Option<usize>,
        waits: bool,
    ) -> Result<Self> {
        let tables = working_memory(level, DEFAULT_SPAN_LEN, base.is_some())?;
        let each = tables + base.map_or(0, fetched_bytes);
        let threads = cores() + if waits { READING } else { 0 };
        Ok(Self::within(threads, each, held_by_store))
    }

    /// For a conversion, whose spans come out of an image, or of many.
    ///
    /// # Errors
    /// As [`Crew::new`].
    pub(crate) fn of_conversion(level: i32, held_by_store: u64) -> Result<Self> {
        let tables = working_memory(level, DEFAULT_SPAN_LEN, false)?;
        Ok(Self::within(cores(), tables + fetched_bytes(MAX_CHAIN_LEN), held_by_store))
    }

    /// For threads that only compare.
    pub(crate) fn of_comparison(held_by_store: u64) -> Self {
        Self::within(cores() + READING, SPAN_BYTES, held_by_store)
    }

    /// With so many bytes for each thread beside its span. More threads are worth more than frames that wait.
    fn within(threads: usize, each: u64, held_by_store: u64) -> Self {
        let fits = |crew: &Self| {
            // Frames that are being made or wait, and one that is being written.
            let frames = (crew.depth as u64 + 1) * SPAN_BYTES;
            let workers = crew.workers as u64 * (each + SPAN_BYTES);
            REST_BYTES + held_by_store + workers + frames <= LIMIT_BYTES
        };
        let mut crews = (1..=threads).rev().flat_map(|workers| {
            (workers + 1..=workers * 2 + 2).rev().map(move |depth| Self { workers, depth })
        });
        crews.find(fits).unwrap_or(Self { workers: 1, depth: 2 })
    }
}

/// What one thread takes to get a frame out of so many images: the stored bytes, the content, and what that is made from.
fn fetched_bytes(images: usize) -> u64 {
    (images as u64 + 1).clamp(2, 4) * SPAN_BYTES
}

#[cfg(test)]
mod tests {
    use agent_api::{MAX_LEVEL, MIN_LEVEL};

    use super::*;
    use crate::store::MOST_HELD_BYTES;

    const FOLDER: u64 = 28 << 20;

    #[test]
    fn every_level_stays_within_the_limit_on_every_machine() {
        for level in MIN_LEVEL..=MAX_LEVEL {
            for base in [None, Some(1), Some(MAX_CHAIN_LEN)] {
                let tables = working_memory(level, DEFAULT_SPAN_LEN, base.is_some()).unwrap();
                let each = tables + base.map_or(0, fetched_bytes);
                let stores = [FOLDER, MOST_HELD_BYTES].into_iter();
                for (held, cores) in stores.flat_map(|held| [1, 2, 8, 64, 512].map(|n| (held, n))) {
                    let crew = Crew::within(cores, each, held);
                    let frames = (crew.depth as u64 + 1) * SPAN_BYTES;
                    let workers = crew.workers as u64 * (each + SPAN_BYTES);
                    let all = REST_BYTES + held + workers + frames;
                    assert!(all <= LIMIT_BYTES, "{level} {base:?} {held} {cores}: {crew:?}, {all}");
                    assert!(crew.workers >= 1 && crew.depth > crew.workers);
                }
            }
        }
    }

    #[test]
    fn two_cores_are_used_as_far_as_it_goes() {
        let crew = |level, held, base: Option<usize>| {
            let tables = working_memory(level, DEFAULT_SPAN_LEN, base.is_some()).unwrap();
            Crew::within(2, tables + base.map_or(0, fetched_bytes), held)
        };
        let usual = Crew { workers: 2, depth: 6 };
        for level in MIN_LEVEL..=9 {
            for held in [FOLDER, MOST_HELD_BYTES] {
                assert_eq!(crew(level, held, None), usual, "{level}");
                assert_eq!(crew(level, held, Some(1)).workers, 2, "{level}");
            }
        }
        assert_eq!(crew(3, FOLDER, Some(1)), usual);
        for level in 10..=MAX_LEVEL {
            assert_eq!(crew(level, MOST_HELD_BYTES, None).workers, 2, "{level}");
            assert_eq!(crew(level, FOLDER, Some(1)).workers, 2, "{level}");
        }
    }
}
