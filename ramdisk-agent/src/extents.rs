//! Sorted lists of byte ranges: what of a disk or a volume is used.
//!
//! Ranges are disjoint, not empty and not adjacent (neighbours are joined), so that two lists are equal when they mean the same
//! bytes. Memory grows with the number of fragments, never with the size of the disk, and what is to be kept has a limit to that
//! number ([`Extents::push_coarsely`]).

/// How many ranges a volume's map, or a disk's, has at most: 16 MiB of them. A bitmap of some MiB could make a hundred million.
pub const MAX_PIECES: usize = 1 << 20;

/// A range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// First byte.
    pub start: u64,
    /// Number of bytes.
    pub len: u64,
}

impl Extent {
    /// First byte after it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// A sorted list of disjoint, non-adjacent, non-empty ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extents(Vec<Extent>);

impl Extents {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One range.
    #[must_use]
    pub fn single(start: u64, len: u64) -> Self {
        let mut extents = Self::new();
        extents.push(start, len);
        extents
    }

    /// Adds a range; cheap when it lies behind or touches the last one, correct anywhere.
    pub fn push(&mut self, start: u64, len: u64) {
        if len == 0 {
            return;
        }
        match self.0.last_mut() {
            Some(last) if start >= last.start && start <= last.end() => {
                last.len = last.len.max(start + len - last.start);
            }
            Some(last) if start < last.start => self.insert(start, len),
            _ => self.0.push(Extent { start, len }),
        }
    }

    /// Adds a range as [`Extents::push`] does, and keeps the list at [`MAX_PIECES`] by closing its smallest gaps: fit for what is to
    /// be kept, of which more is as good.
    pub fn push_coarsely(&mut self, start: u64, len: u64) {
        self.push(start, len);
        if self.0.len() > MAX_PIECES {
            // Half at once, so that the next so many are cheap.
            self.close_gaps(MAX_PIECES / 2);
        }
    }

    /// Closes the smallest gaps between ranges until there are at most `most` ranges.
    pub fn close_gaps(&mut self, most: usize) {
        let most = most.max(1);
        let Some(surplus) = self.0.len().checked_sub(most).filter(|surplus| *surplus > 0) else {
            return;
        };
        let mut gaps: Vec<u64> =
            self.0.windows(2).map(|pair| pair[1].start - pair[0].end()).collect();
        let (smaller, threshold, _) = gaps.select_nth_unstable(surplus - 1);
        let threshold = *threshold;
        // Of those that are just as long, as many as are needed.
        let mut equal = surplus - smaller.iter().filter(|gap| **gap < threshold).count();
        self.0.dedup_by(|next, last| {
            let gap = next.start - last.end();
            let close = gap < threshold || (gap == threshold && equal > 0);
            if close {
                equal -= usize::from(gap == threshold);
                last.len = next.end() - last.start;
            }
            close
        });
        self.0.shrink_to(MAX_PIECES);
    }

    /// Adds a range anywhere.
    pub fn insert(&mut self, start: u64, len: u64) {
        if len == 0 {
            return;
        }
        let end = start + len;
        // All ranges that overlap or touch the new one become one with it.
        let first = self.0.partition_point(|e| e.end() < start);
        let last = self.0.partition_point(|e| e.start <= end);
        let joined = self.0[first..last]
            .iter()
            .fold((start, end), |(from, to), e| (from.min(e.start), to.max(e.end())));
        let joined = Extent { start: joined.0, len: joined.1 - joined.0 };
        self.0.splice(first..last, [joined]);
    }

    /// The bytes that are in either list.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let (mut a, mut b) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut out = Self(Vec::with_capacity(self.len() + other.len()));
        loop {
            let next = match (a.peek(), b.peek()) {
                (Some(x), Some(y)) if x.start <= y.start => a.next(),
                (Some(_), None) => a.next(),
                _ => b.next(),
            };
            let Some(next) = next else { return out };
            out.push(next.start, next.len);
        }
    }

    /// The bytes of `self` that are not in `other`.
    #[must_use]
    pub fn subtract(&self, other: &Self) -> Self {
        let mut out = Self::new();
        for extent in &self.0 {
            let mut at = extent.start;
            for hole in other.overlapping(extent.start, extent.len) {
                out.push(at, hole.start - at);
                at = hole.end();
            }
            out.push(at, extent.end() - at);
        }
        out
    }

    /// The bytes of `within` that are not in the list.
    #[must_use]
    pub fn invert(&self, within: Extent) -> Self {
        Self::single(within.start, within.len).subtract(self)
    }

    /// The same ranges, `by` bytes further on.
    #[must_use]
    pub fn shifted(&self, by: u64) -> Self {
        Self(self.0.iter().map(|e| Extent { start: e.start + by, len: e.len }).collect())
    }

    /// The parts of the list that lie in a window, cut to it.
    pub fn overlapping(&self, start: u64, len: u64) -> impl Iterator<Item = Extent> + '_ {
        let end = start.saturating_add(len);
        let first = self.0.partition_point(|e| e.end() <= start);
        self.0[first..].iter().take_while(move |e| e.start < end).map(move |e| {
            let from = e.start.max(start);
            Extent { start: from, len: e.end().min(end) - from }
        })
    }

    /// Whether every byte of the window is in the list.
    #[must_use]
    pub fn contains_range(&self, start: u64, len: u64) -> bool {
        len == 0
            || self.overlapping(start, len).next().is_some_and(|e| e.start == start && e.len == len)
    }

    /// First byte after the last range, zero where there is none.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.0.last().map_or(0, Extent::end)
    }

    /// How many bytes it holds.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.0.iter().map(|e| e.len).sum()
    }

    /// The ranges in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Extent> {
        self.0.iter()
    }

    /// How many ranges there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> IntoIterator for &'a Extents {
    type Item = &'a Extent;
    type IntoIter = std::slice::Iter<'a, Extent>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 200;

    fn list() -> impl Strategy<Value = Vec<(u64, u64)>> {
        prop::collection::vec((0..190_u64, 0..10_u64), 0..30)
    }

    fn build(list: &[(u64, u64)]) -> (Extents, [bool; SIZE]) {
        let (mut extents, mut model) = (Extents::new(), [false; SIZE]);
        for (i, (start, len)) in list.iter().enumerate() {
            if i % 2 == 0 {
                extents.insert(*start, *len)
            } else {
                extents.push(*start, *len)
            }
            model[index(*start)..index(*start + *len)].fill(true);
        }
        (extents, model)
    }

    fn index(n: u64) -> usize {
        usize::try_from(n).unwrap()
    }

    fn as_model(extents: &Extents) -> [bool; SIZE] {
        let mut model = [false; SIZE];
        for e in extents {
            model[index(e.start)..index(e.end())].fill(true);
        }
        model
    }

    fn well_formed(extents: &Extents) -> bool {
        extents.iter().all(|e| e.len > 0) && extents.0.windows(2).all(|w| w[0].end() < w[1].start)
    }

    #[test]
    fn a_list_of_what_is_kept_has_a_limit() {
        let mut extents = Extents::new();
        let count = 3 * MAX_PIECES as u64;
        for i in 0..count {
            // Every hundredth gap is a large one.
            extents.push_coarsely(i * 8192 + i / 100 * (1 << 20), 4096);
            assert!(extents.len() <= MAX_PIECES);
        }
        for i in (0..count).step_by(1001) {
            assert!(extents.contains_range(i * 8192 + i / 100 * (1 << 20), 4096));
        }
        // The large ones are still there.
        assert!(extents.total_bytes() <= count * 8192);
    }

    proptest! {
        #[test]
        fn the_smallest_gaps_are_closed(list in list(), most in 1..20_usize) {
            let (before, model) = build(&list);
            let mut after = before.clone();
            after.close_gaps(most);
            prop_assert!(well_formed(&after));
            prop_assert_eq!(after.len(), before.len().min(most));
            prop_assert!(before.subtract(&after).is_empty());
            // What was added is as little as can be.
            let mut gaps: Vec<u64> =
                before.0.windows(2).map(|pair| pair[1].start - pair[0].end()).collect();
            gaps.sort_unstable();
            let least: u64 = gaps.iter().take(before.len() - after.len()).sum();
            let used = model.iter().filter(|byte| **byte).count() as u64;
            prop_assert_eq!(after.total_bytes(), used + least);
        }

        #[test]
        fn every_operation_matches_a_bitmap(a in list(), b in list(), start in 0..150_u64, len in 0..50_u64) {
            let ((a, ma), (b, mb)) = (build(&a), build(&b));
            prop_assert!(well_formed(&a));
            prop_assert_eq!(as_model(&a), ma);
            let union = a.union(&b);
            prop_assert!(well_formed(&union));
            prop_assert_eq!(as_model(&union), std::array::from_fn(|i| ma[i] || mb[i]));
            let difference = a.subtract(&b);
            prop_assert!(well_formed(&difference));
            prop_assert_eq!(as_model(&difference), std::array::from_fn(|i| ma[i] && !mb[i]));
            let rest = a.invert(Extent { start, len });
            let window = index(start)..index(start + len);
            prop_assert_eq!(as_model(&rest), std::array::from_fn(|i| window.contains(&i) && !ma[i]));
            let inside: u64 = a.overlapping(start, len).map(|e| e.len).sum();
            prop_assert_eq!(inside, ma[window.clone()].iter().filter(|b| **b).count() as u64);
            prop_assert_eq!(a.contains_range(start, len), ma[window].iter().all(|b| *b));
            prop_assert_eq!(a.total_bytes(), ma.iter().filter(|b| **b).count() as u64);
        }
    }
}
