//! The clusters of files and directories: chains of the file allocation table, contiguous runs, and who has which.

use std::io::{Read, Seek};

use super::super::failure::{Failure, doubt};
use super::boot::{Boot, FIRST_CLUSTER};
use crate::extents::{Extent, Extents};
use crate::fs::bytes::{le32, read};

/// The table is read in pieces of this size: chains mostly go on nearby.
const PAGE_LEN: u64 = 4096;
const END_OF_CHAIN: u32 = u32::MAX;
/// The most bytes in a directory (section 7.4.9).
const MAX_DIRECTORY_LEN: u64 = 256 << 20;
/// More pieces than this are not remembered: 64 MiB of them.
const MAX_RUNS: usize = 8 << 20;

/// The clusters of a file, a directory or a table, in order.
#[derive(Debug, Clone, Default)]
pub struct Allocation {
    /// First cluster and how many, neighbours joined.
    runs: Vec<(u32, u32)>,
    /// How many bytes of them have a meaning.
    len_bytes: u64,
}

impl Allocation {
    /// A contiguous one.
    pub fn contiguous(boot: &Boot, first: u32, len_bytes: u64) -> Result<Self, Failure> {
        let count = len_bytes.div_ceil(boot.cluster_bytes);
        if !boot.has(first, count) {
            return Err(doubt(format!("{count} clusters from {first} on are not there")));
        }
        let count = u32::try_from(count).expect("there are so many clusters");
        Ok(Self { runs: vec![(first, count)], len_bytes })
    }

    /// Where its bytes are, in order and in pieces of at most `most`.
    pub fn pieces(&self, boot: &Boot, most: u64) -> impl Iterator<Item = Extent> {
        let mut left = self.len_bytes;
        self.runs.iter().flat_map(move |(first, count)| {
            let start = boot.cluster_offset(*first);
            let len = left.min(u64::from(*count) * boot.cluster_bytes);
            left -= len;
            let at = (0..len).step_by(usize::try_from(most).expect("some KiB"));
            at.map(move |at| Extent { start: start + at, len: most.min(len - at) })
        })
    }
}

/// The file allocation table.
#[derive(Debug)]
pub struct Fat<'a> {
    boot: &'a Boot,
    page: Vec<u8>,
    page_at: u64,
}

impl<'a> Fat<'a> {
    pub fn new(boot: &'a Boot) -> Self {
        Self { boot, page: Vec::new(), page_at: u64::MAX }
    }

    /// The chain of `len_bytes` that begins at a cluster; it must have exactly the clusters that those need.
    pub fn chain(
        &mut self,
        src: &mut (impl Read + Seek),
        first: u32,
        len_bytes: u64,
    ) -> Result<Allocation, Failure> {
        let most = len_bytes.div_ceil(self.boot.cluster_bytes);
        let (runs, count) = self.follow(src, first, most)?;
        if count != most {
            return Err(doubt(format!("{len_bytes} bytes in {count} clusters")));
        }
        Ok(Allocation { runs, len_bytes })
    }

    /// The root directory, whose length only the chain says.
    pub fn root(&mut self, src: &mut (impl Read + Seek)) -> Result<Allocation, Failure> {
        let most = MAX_DIRECTORY_LEN / self.boot.cluster_bytes;
        let most = most.min(u64::from(self.boot.clusters));
        let (runs, count) = self.follow(src, self.boot.root, most)?;
        Ok(Allocation { runs, len_bytes: count * self.boot.cluster_bytes })
    }

    /// Follows a chain of at most `most` clusters, so that it ends on any input.
    fn follow(
        &mut self,
        src: &mut (impl Read + Seek),
        first: u32,
        most: u64,
    ) -> Result<(Vec<(u32, u32)>, u64), Failure> {
        if most > u64::from(self.boot.clusters) {
            return Err(doubt("it has more clusters than there are"));
        }
        let mut runs: Vec<(u32, u32)> = Vec::new();
        let mut count = 0;
        let mut cluster = first;
        loop {
            if !self.boot.has(cluster, 1) {
                return Err(doubt(format!("its chain leads to {cluster:#x}, which is no cluster")));
            }
            if count == most {
                return Err(doubt(format!("its chain has more than {most} clusters")));
            }
            count += 1;
            match runs.last_mut() {
                Some((first, count)) if *first + *count == cluster => *count += 1,
                _ => runs.push((cluster, 1)),
            }
            if runs.len() > MAX_RUNS {
                return Err(too_many());
            }
            match self.entry(src, cluster)? {
                END_OF_CHAIN => return Ok((runs, count)),
                next => cluster = next,
            }
        }
    }

    fn entry(&mut self, src: &mut (impl Read + Seek), cluster: u32) -> Result<u32, Failure> {
        let at = u64::from(cluster) * 4;
        let page_at = at / PAGE_LEN * PAGE_LEN;
        if self.page_at != page_at {
            // The table begins and ends with a sector, and so does the last page.
            let end = (u64::from(self.boot.clusters) + u64::from(FIRST_CLUSTER)) * 4;
            let len = PAGE_LEN.min(end - page_at);
            self.page = read(src, self.boot.fat_offset + page_at, len)?;
            self.page_at = page_at;
        }
        Ok(le32(&self.page, usize::try_from(at - page_at).expect("within the page")))
    }
}

/// What was allocated to somebody so far.
#[derive(Debug)]
pub struct Claims<'a> {
    boot: &'a Boot,
    /// What the bitmap marks as used.
    marked: &'a Extents,
    marked_clusters: u64,
    runs: Vec<(u32, u32)>,
    clusters: u64,
}

impl<'a> Claims<'a> {
    /// `marked_bytes` of the clusters in `marked` are marked as used; the others are kept with them.
    pub fn new(boot: &'a Boot, marked: &'a Extents, marked_bytes: u64) -> Self {
        let marked_clusters = marked_bytes / boot.cluster_bytes;
        Self { boot, marked, marked_clusters, runs: Vec::new(), clusters: 0 }
    }

    /// Adds an allocation. All of them together cannot be more than is marked, so a walk ends on any input.
    pub fn add(&mut self, allocation: &Allocation) -> Result<(), Failure> {
        for (first, count) in &allocation.runs {
            let len = u64::from(*count) * self.boot.cluster_bytes;
            if !self.marked.contains_range(self.boot.cluster_offset(*first), len) {
                return Err(doubt(format!("its clusters at {first} are marked as free")));
            }
            self.clusters += u64::from(*count);
            if self.clusters > self.marked_clusters {
                return Err(doubt("more clusters are allocated than are marked as used"));
            }
            match self.runs.last_mut() {
                Some((last, many)) if *last + *many == *first => *many += count,
                _ => self.runs.push((*first, *count)),
            }
        }
        if self.runs.len() > MAX_RUNS {
            self.settle()?;
            if self.runs.len() > MAX_RUNS / 2 {
                return Err(too_many());
            }
        }
        Ok(())
    }

    /// Whether nothing was allocated twice; joins neighbours.
    pub fn settle(&mut self) -> Result<(), Failure> {
        self.runs.sort_unstable();
        let mut joined: Vec<(u32, u32)> = Vec::new();
        for (first, count) in self.runs.drain(..) {
            match joined.last_mut() {
                Some((last, many)) if first < *last + *many => {
                    return Err(doubt(format!("cluster {first} is allocated twice")));
                }
                Some((last, many)) if first == *last + *many => *many += count,
                _ => joined.push((first, count)),
            }
        }
        self.runs = joined;
        Ok(())
    }
}

fn too_many() -> Failure {
    doubt(format!("its files lie in more than {MAX_RUNS} pieces"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLUSTERS: u32 = 60;

    proptest! {
        #[test]
        fn what_is_allocated_twice_or_marked_as_free_is_noticed(
            marked in prop::collection::vec(any::<bool>(), CLUSTERS as usize),
            runs in prop::collection::vec((2..50_u32, 1..4_u32), 0..8),
        ) {
            let boot = Boot::of_clusters(CLUSTERS);
            let mut extents = Extents::new();
            for cluster in (0..CLUSTERS).filter(|cluster| marked[*cluster as usize]) {
                extents.push(boot.cluster_offset(cluster + FIRST_CLUSTER), boot.cluster_bytes);
            }
            let mut claims = Claims::new(&boot, &extents, extents.total_bytes());
            let added = runs.iter().all(|(first, count)| {
                let len_bytes = u64::from(*count) * boot.cluster_bytes;
                claims.add(&Allocation { runs: vec![(*first, *count)], len_bytes }).is_ok()
            });
            let mut clusters: Vec<u32> =
                runs.iter().flat_map(|(first, count)| *first..first + count).collect();
            let total = clusters.len();
            clusters.sort_unstable();
            clusters.dedup();
            let sound = clusters.len() == total
                && clusters.iter().all(|cluster| marked[(cluster - FIRST_CLUSTER) as usize]);
            prop_assert_eq!(added && claims.settle().is_ok(), sound);
        }

        #[test]
        fn pieces_are_the_bytes_of_the_runs_in_order(
            runs in prop::collection::vec((2..50_u32, 1..4_u32), 0..8),
            cut in 0..5000_u64,
            most in 1..10_000_u64,
        ) {
            let boot = Boot::of_clusters(CLUSTERS);
            let all: u64 = runs.iter().map(|(_, count)| u64::from(*count) * 4096).sum();
            let allocation = Allocation { runs: runs.clone(), len_bytes: all.saturating_sub(cut) };
            let bytes = |start: u64, len: u64| start..start + len;
            let pieces: Vec<u64> = allocation
                .pieces(&boot, most)
                .inspect(|piece| assert!(piece.len <= most))
                .flat_map(|piece| bytes(piece.start, piece.len))
                .collect();
            let expected: Vec<u64> = runs
                .iter()
                .flat_map(|(first, count)| bytes(boot.cluster_offset(*first), u64::from(*count) * 4096))
                .take(usize::try_from(all.saturating_sub(cut)).unwrap())
                .collect();
            prop_assert_eq!(pieces, expected);
        }
    }
}
