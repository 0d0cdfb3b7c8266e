//! Which parts of a frame hold data, which must read as zero, and which nobody cares about.
//!
//! Runs are consecutive and cover their frame from its start, in units of [`UNIT_LEN`]. At most [`MAX_RUNS`] are kept per
//! frame. A finer map is coarsened by calling its smallest gaps data: their bytes are zero in the span, so keeping them
//! costs a little space and loses nothing.

use std::ops::Range;

use crate::{MAX_RUNS, UNIT_LEN};

/// What a run of units is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunKind {
    /// Content that a restore writes.
    Data,
    /// In use, and zero: a restore must make it read as zero.
    Zero,
    /// Not in use: a restore may leave alone what is there. Zero in the image's content.
    Free,
}

/// Consecutive units of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    /// What they are.
    pub kind: RunKind,
    /// How many.
    pub units: u32,
}

/// The runs of one frame: no two neighbours of equal kind, none empty, at most [`MAX_RUNS`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Runs(Vec<Run>);

impl Runs {
    /// Makes a list that keeps the rules out of any list: empty runs go, equal neighbours are merged, and while there are
    /// too many the smallest runs that are not data become data.
    #[must_use]
    pub fn new(runs: Vec<Run>) -> Self {
        let runs = merged(runs.iter().copied());
        if runs.len() <= MAX_RUNS {
            return Self(runs);
        }
        let mut gaps: Vec<usize> =
            (0..runs.len()).filter(|&i| runs[i].kind != RunKind::Data).collect();
        gaps.sort_by_key(|&i| runs[i].units);
        let coarsened = |fill: usize| {
            let mut runs = runs.clone();
            gaps[..fill].iter().for_each(|&i| runs[i].kind = RunKind::Data);
            merged(runs.into_iter())
        };
        // Filling one more gap never makes the list longer, so the least number that suffices is found by halving.
        let (mut too_few, mut enough) = (0, gaps.len());
        while enough - too_few > 1 {
            let middle = too_few.midpoint(enough);
            if coarsened(middle).len() <= MAX_RUNS { enough = middle } else { too_few = middle }
        }
        Self(coarsened(enough))
    }

    /// One run over a frame of this length.
    #[must_use]
    pub fn uniform(kind: RunKind, frame_len: u32) -> Self {
        Self::new(vec![Run { kind, units: frame_len.div_ceil(UNIT_LEN) }])
    }

    /// Takes a list as it was stored, if it keeps the rules.
    pub(crate) fn checked(runs: Vec<Run>) -> Option<Self> {
        let in_order = runs.windows(2).all(|pair| pair[0].kind != pair[1].kind);
        let ok = in_order && runs.len() <= MAX_RUNS && runs.iter().all(|run| run.units > 0);
        ok.then_some(Self(runs))
    }

    /// The runs in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Run> {
        self.0.iter()
    }

    /// How many runs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none, which no frame has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many units the runs cover.
    #[must_use]
    pub fn units(&self) -> u64 {
        self.0.iter().map(|run| u64::from(run.units)).sum()
    }

    /// Whether the runs cover a frame of this length exactly.
    #[must_use]
    pub fn cover(&self, frame_len: u32) -> bool {
        self.units() == u64::from(frame_len.div_ceil(UNIT_LEN))
    }

    /// The byte range of each run within its frame, clamped to the frame's length.
    pub fn byte_ranges(&self, frame_len: u32) -> impl Iterator<Item = (RunKind, Range<u64>)> + '_ {
        let frame_len = u64::from(frame_len);
        let mut start = 0_u64;
        self.0.iter().map_while(move |run| {
            let end = (start + u64::from(run.units) * u64::from(UNIT_LEN)).min(frame_len);
            let range = start..end;
            start = end;
            (!range.is_empty()).then_some((run.kind, range))
        })
    }

    /// How many bytes of a frame of this length are of this kind.
    #[must_use]
    pub fn bytes_of(&self, kind: RunKind, frame_len: u32) -> u64 {
        self.byte_ranges(frame_len)
            .filter(|(k, _)| *k == kind)
            .map(|(_, range)| range.end - range.start)
            .sum()
    }
}

impl FromIterator<Run> for Runs {
    fn from_iter<I: IntoIterator<Item = Run>>(runs: I) -> Self {
        Self::new(runs.into_iter().collect())
    }
}

impl<'a> IntoIterator for &'a Runs {
    type Item = &'a Run;
    type IntoIter = std::slice::Iter<'a, Run>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

fn merged(runs: impl Iterator<Item = Run>) -> Vec<Run> {
    let mut out: Vec<Run> = Vec::new();
    for run in runs.filter(|run| run.units > 0) {
        match out.last_mut() {
            // A sum beyond u32 covers no frame, and is refused where the runs meet their frame.
            Some(last) if last.kind == run.kind => {
                last.units = last.units.saturating_add(run.units)
            }
            _ => out.push(run),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KINDS: [RunKind; 3] = [RunKind::Data, RunKind::Zero, RunKind::Free];

    fn units(runs: &[Run]) -> Vec<RunKind> {
        runs.iter().flat_map(|run| std::iter::repeat_n(run.kind, run.units as usize)).collect()
    }

    #[test]
    fn the_smallest_gaps_go_first() {
        let mut list = Vec::new();
        for i in 0..40 {
            list.push(Run { kind: RunKind::Data, units: 1 });
            list.push(Run { kind: RunKind::Free, units: if i == 7 { 1 } else { 2 + i } });
        }
        let runs = Runs::new(list);
        assert!(runs.len() <= MAX_RUNS);
        assert!(runs.len() >= MAX_RUNS - 2, "no more is given up than needed: {}", runs.len());
        let smallest =
            runs.iter().filter(|run| run.kind == RunKind::Free).map(|run| run.units).min();
        assert!(smallest > Some(2));
    }

    #[test]
    fn byte_ranges_are_clamped_to_the_frame() {
        let runs: Runs =
            [Run { kind: RunKind::Data, units: 1 }, Run { kind: RunKind::Free, units: 2 }]
                .into_iter()
                .collect();
        assert!(runs.cover(8193) && runs.cover(12288) && !runs.cover(8192) && !runs.cover(12289));
        let ranges: Vec<_> = runs.byte_ranges(8193).collect();
        assert_eq!(ranges, [(RunKind::Data, 0..4096), (RunKind::Free, 4096..8193)]);
        assert_eq!(runs.bytes_of(RunKind::Free, 8193), 4097);
        assert_eq!(runs.byte_ranges(100).count(), 1);
        assert_eq!(Runs::default().byte_ranges(100).count(), 0);
    }

    proptest! {
        #[test]
        fn new_keeps_the_rules_and_never_drops_data(list in prop::collection::vec((0..3_usize, 0..5_u32), 0..400)) {
            let list: Vec<Run> = list.into_iter().map(|(kind, units)| Run { kind: KINDS[kind], units }).collect();
            let runs = Runs::new(list.clone());
            prop_assert!(Runs::checked(runs.0.clone()).is_some());
            let (before, after) = (units(&list), units(&runs.0));
            prop_assert_eq!(before.len(), after.len());
            for (was, is) in before.iter().zip(&after) {
                prop_assert!(was == is || *is == RunKind::Data);
            }
            if Runs::checked(merged(list.iter().copied())).is_some() {
                prop_assert_eq!(before, after);
            }
        }
    }
}
