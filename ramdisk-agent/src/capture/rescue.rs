//! Reading a disk that has bad sectors, in ddrescue's order: what is easy to have comes first, and what may kill the drive last.
//!
//! Where a span cannot be read as a whole it is read in blocks; the blocks that fail are *trimmed*, sector by sector from both
//! edges up to the first bad one; what lies between is *scraped*, sector by sector; and what is bad then is tried again a few
//! times. Only what never came is bad: it is zero in the image and on the map of bad sectors in its manifest. The order holds
//! within a span, not across the disk, because an image is appended to in the disk's order: a drive that is about to die is
//! better copied with ddrescue first, and the copy captured. One thread at a time does this.
//!
//! A disk that has gone away reads like one of bad sectors only. So a sector that could be read before must still be readable
//! whenever something was found to be bad.

use std::io;
use std::sync::{Mutex, PoisonError};

use agent_api::ErrorKind;

use crate::buffer::AlignedBuf;
use crate::disk::{BLOCK_LEN, Disk, copy_shared, is_of_medium};
use crate::error::{Error, Result};
use crate::extents::{Extent, Extents};

/// How often what is bad is tried again.
const RETRIES: usize = 2;
/// More separate bad areas than this make no image: the map of them must fit into the manifest.
const MAX_BAD_AREAS: usize = 100_000;
/// A disk that cannot be read at any of so many places, its ends included, is no source.
const PLACES: u64 = 17;

/// The bad sectors found so far, and how to find more.
#[derive(Debug)]
pub struct Rescue<'a> {
    disk: &'a Disk,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    bad: Extents,
    /// Where a sector could be read last.
    good: u64,
    sector: AlignedBuf,
}

impl<'a> Rescue<'a> {
    /// Nothing is bad yet. Refuses a disk of which nothing can be read.
    pub fn new(disk: &'a Disk) -> Result<Self> {
        let sector = AlignedBuf::new(index(u64::from(disk.logical_sector_bytes())));
        let mut state = State { bad: Extents::new(), good: 0, sector };
        let places = (0..PLACES).map(|n| (disk.len_bytes() - 1) / (PLACES - 1) * n);
        match places.into_iter().find(|at| state.is_readable(disk, *at)) {
            Some(good) => state.good = good,
            None => {
                return Err(Error::new(
                    ErrorKind::Disk,
                    format!(
                        "{} gives nothing at any of {PLACES} places: check its power and its cable",
                        disk.path().display()
                    ),
                ));
            }
        }
        Ok(Self { disk, state: Mutex::new(state) })
    }

    /// Reads what can be read of these ranges into `buffer`, which begins at `offset`; the rest becomes zero. `check` fails when
    /// the work was cancelled.
    pub fn read(
        &self,
        buffer: &mut [u8],
        offset: u64,
        ranges: &[Extent],
        check: &impl Fn() -> Result<()>,
    ) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let whole: Vec<Extent> = ranges
            .iter()
            .map(|range| {
                let (start, end) = self.disk.whole_sectors(range.start, index(range.len));
                Extent { start, len: end - start }
            })
            .collect();
        let mut good = state.good;
        let read = |piece: &mut [u8], at: u64| {
            self.disk.read_past_cache(piece, at)?;
            good = at;
            copy_shared(piece, at, buffer, offset);
            Ok(())
        };
        let bad = salvage(&whole, u64::from(self.disk.logical_sector_bytes()), read, check)?;
        state.good = good;
        if bad.is_empty() {
            return Ok(());
        }
        if !state.is_readable(self.disk, good) {
            return Err(Error::new(
                ErrorKind::Disk,
                format!(
                    "{} does not answer any more, not even where it could be read before (byte {good}): check its power \
                     and its cable",
                    self.disk.path().display()
                ),
            ));
        }
        for range in &whole {
            for hole in bad.overlapping(range.start, range.len) {
                let zeros = vec![0; index(hole.len)];
                copy_shared(&zeros, hole.start, buffer, offset);
            }
        }
        state.bad = state.bad.union(&bad);
        if state.bad.len() > MAX_BAD_AREAS {
            return Err(Error::new(
                ErrorKind::Disk,
                format!(
                    "{} has bad sectors in more than {MAX_BAD_AREAS} places: copy it with ddrescue, and capture the copy",
                    self.disk.path().display()
                ),
            ));
        }
        Ok(())
    }

    /// All bad sectors.
    pub fn finish(self) -> Extents {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner).bad
    }
}

impl State {
    fn is_readable(&mut self, disk: &Disk, at: u64) -> bool {
        let (start, end) = disk.whole_sectors(at, 1);
        disk.read_past_cache(&mut self.sector.as_mut_slice()[..index(end - start)], start).is_ok()
    }
}

/// Reads ranges of whole sectors through `read`, easy ones first; the sectors that never came.
fn salvage(
    ranges: &[Extent],
    sector: u64,
    mut read: impl FnMut(&mut [u8], u64) -> io::Result<()>,
    check: &impl Fn() -> Result<()>,
) -> Result<Extents> {
    let mut buffer = AlignedBuf::new(BLOCK_LEN);
    // Whether it came. An error that is not of this place ends everything.
    let mut try_read = |at: u64, len: u64| {
        check()?;
        match read(&mut buffer.as_mut_slice()[..index(len)], at) {
            Ok(()) => Ok(true),
            Err(error) if is_of_medium(&error) => Ok(false),
            Err(error) => {
                Err(Error::new(ErrorKind::Disk, format!("reading {len} bytes at byte {at}"))
                    .because(error))
            }
        }
    };
    let mut skipped = Vec::new();
    for range in ranges {
        for start in (range.start..range.end()).step_by(BLOCK_LEN) {
            let len = (range.end() - start).min(BLOCK_LEN as u64);
            if !try_read(start, len)? {
                skipped.push((start, start + len));
            }
        }
    }
    let mut bad = Extents::new();
    // The last sector of a disk file may be a short one.
    let len_at = |at: u64, end: u64| sector.min(end - at);
    for (start, end) in &mut skipped {
        while *start < *end {
            let len = len_at(*start, *end);
            let came = try_read(*start, len)?;
            if !came {
                bad.insert(*start, len);
            }
            *start += len;
            if !came {
                break;
            }
        }
        while *start < *end {
            let last = (*end - 1) / sector * sector;
            let len = *end - last;
            let came = try_read(last, len)?;
            if !came {
                bad.insert(last, len);
            }
            *end = last;
            if !came {
                break;
            }
        }
    }
    for (start, end) in skipped {
        for at in (start..end).step_by(index(sector)) {
            if !try_read(at, len_at(at, end))? {
                bad.insert(at, len_at(at, end));
            }
        }
    }
    for _ in 0..RETRIES {
        let mut still = Extents::new();
        for area in &bad {
            for at in (area.start..area.end()).step_by(index(sector)) {
                let len = len_at(at, area.end());
                if !try_read(at, len)? {
                    still.push(at, len);
                }
            }
        }
        bad = still;
    }
    Ok(bad)
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("within a span")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const SECTOR: u64 = 512;
    const SECTORS: u64 = 600;

    /// A disk on which a sector fails so many times before it can be read, and where it was read in which order.
    fn run(failures: &BTreeMap<u64, usize>) -> (Extents, Vec<u8>, Vec<(u64, u64)>) {
        let mut left = failures.clone();
        let mut got = vec![0; index(SECTORS * SECTOR)];
        let mut order = Vec::new();
        let range = Extent { start: 0, len: SECTORS * SECTOR };
        let read = |piece: &mut [u8], at: u64| {
            let (first, count) = (at / SECTOR, piece.len() as u64 / SECTOR);
            order.push((first, count));
            if let Some((_, times)) =
                left.range_mut(first..first + count).find(|(_, times)| **times > 0)
            {
                *times -= 1;
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            got[index(at)..index(at) + piece.len()].fill(1);
            Ok(())
        };
        let bad = salvage(&[range], SECTOR, read, &|| Ok(())).unwrap();
        (bad, got, order)
    }

    #[test]
    fn what_is_easy_comes_first() {
        let failures = [200, 203, 210].map(|sector| (sector, usize::MAX)).into();
        let (bad, _, order) = run(&failures);
        assert_eq!(bad.total_bytes(), 3 * SECTOR);
        let blocks: Vec<_> = order.iter().take(5).copied().collect();
        assert_eq!(blocks, [(0, 128), (128, 128), (256, 128), (384, 128), (512, 88)]);
        let sectors: Vec<u64> = order[5..].iter().map(|(first, _)| *first).collect();
        let trimmed = (128..=200).chain((210..256).rev());
        let expected: Vec<u64> =
            trimmed.chain(201..210).chain([200, 203, 210, 200, 203, 210]).collect();
        assert_eq!(sectors, expected);
    }

    #[test]
    fn other_errors_end_it() {
        let gone = |_: &mut [u8], _| Err(io::Error::from_raw_os_error(libc::ENODEV));
        let range = Extent { start: 0, len: SECTOR };
        let error = salvage(&[range], SECTOR, gone, &|| Ok(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Disk);
    }

    proptest! {
        #[test]
        fn the_map_is_exact(bad in prop::collection::btree_set(0..SECTORS, 0..80)) {
            let failures = bad.iter().map(|sector| (*sector, usize::MAX)).collect();
            let (found, got, _) = run(&failures);
            for sector in 0..SECTORS {
                let is_bad = bad.contains(&sector);
                prop_assert_eq!(found.contains_range(sector * SECTOR, SECTOR), is_bad);
                let expected = u8::from(!is_bad);
                let at = index(sector * SECTOR);
                prop_assert!(got[at..at + index(SECTOR)].iter().all(|b| *b == expected));
            }
        }

        #[test]
        fn sectors_that_come_later_are_not_bad(list in prop::collection::btree_map(0..SECTORS, 0..3_usize, 0..40)) {
            let (found, got, _) = run(&list);
            prop_assert!(found.is_empty());
            prop_assert!(got.iter().all(|b| *b == 1));
        }
    }
}
