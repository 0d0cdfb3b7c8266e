//! Whether two lists hold the same ranges, in whatever order, without remembering either.
//!
//! A tally is the number of ranges and the sum of a hash of each, under a key that is random in each process: lists that differ have
//! the same tally once in 2^64 times, whoever made them. So a filesystem that lists its free space twice can be checked in the same
//! little memory however much it is fragmented.

use std::hash::{BuildHasher, RandomState};

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Tally {
    key: RandomState,
    count: u64,
    sum: u64,
}

impl Tally {
    /// Two tallies of nothing that can be compared with each other.
    pub fn pair() -> [Self; 2] {
        let first = Self { key: RandomState::new(), count: 0, sum: 0 };
        [first.clone(), first]
    }

    /// Adds a range.
    pub fn add(&mut self, start: u64, len: u64) {
        self.count += 1;
        self.sum = self.sum.wrapping_add(self.key.hash_one((start, len)));
    }

    /// Whether the other one of the pair has the same ranges.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.count, self.sum) == (other.count, other.sum)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_same_ranges_in_another_order_have_the_same_tally(
            ranges in prop::collection::vec((0..50_u64, 1..5_u64), 1..30),
            turn in 0..30_usize,
            change in 0..30_usize,
        ) {
            let mut other = ranges.clone();
            other.rotate_left(turn % ranges.len());
            let tallies = |a: &[(u64, u64)], b: &[(u64, u64)]| {
                let [mut first, mut second] = Tally::pair();
                a.iter().for_each(|(start, len)| first.add(*start, *len));
                b.iter().for_each(|(start, len)| second.add(*start, *len));
                first.is_same(&second)
            };
            prop_assert!(tallies(&ranges, &other));
            let changed = change % other.len();
            prop_assert!(!tallies(&ranges, &other[1..]));
            other[changed].0 += 1;
            prop_assert!(!tallies(&ranges, &other));
        }
    }
}
