//! Arithmetic on short, sorted lists of byte ranges.

use std::ops::Range;

/// Free gaps up to this long are written as zeros, or read and ignored, where that saves a separate request to a disk.
pub const BRIDGE_LEN: u64 = 64 << 10;

/// Joins neighbours that are at most `gap` bytes apart.
pub fn bridged(ranges: &[Range<u64>], gap: u64) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(gap) => {
                last.end = last.end.max(range.end)
            }
            _ => joined.push(range.clone()),
        }
    }
    joined
}

/// What of `whole` is in none of the ranges.
pub fn gaps(ranges: &[Range<u64>], whole: Range<u64>) -> Vec<Range<u64>> {
    let mut free = Vec::new();
    let mut at = whole.start;
    for range in ranges {
        if range.start.min(whole.end) > at {
            free.push(at..range.start.min(whole.end));
        }
        at = at.max(range.end);
    }
    if at < whole.end {
        free.push(at..whole.end);
    }
    free
}

/// What two ranges share.
pub fn common(a: &Range<u64>, b: &Range<u64>) -> Option<Range<u64>> {
    let (start, end) = (a.start.max(b.start), a.end.min(b.end));
    (start < end).then_some(start..end)
}

/// Whether a range shares a byte with any of a sorted list of ranges that do not overlap.
pub fn overlaps(sorted: &[Range<u64>], range: &Range<u64>) -> bool {
    let first = sorted.partition_point(|other| other.end <= range.start);
    sorted.get(first).is_some_and(|other| common(other, range).is_some())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, reason = "lists of ranges of one")]

    use super::*;

    #[test]
    fn neighbours_join_within_the_gap() {
        let list = [0..10, 10..20, 25..30, 100..110];
        assert_eq!(bridged(&list, 0), [0..20, 25..30, 100..110]);
        assert_eq!(bridged(&list, 5), [0..30, 100..110]);
        assert_eq!(bridged(&[], 5), []);
    }

    #[test]
    fn what_ranges_share() {
        assert_eq!(common(&(0..10), &(5..20)), Some(5..10));
        assert_eq!(common(&(0..10), &(10..20)), None);
        let list = [10..20, 30..40];
        let inside = |range| overlaps(&list, &range);
        assert!(inside(0..11) && inside(15..16) && inside(19..30) && inside(25..35));
        assert!(!inside(0..10) && !inside(20..30) && !inside(40..50));
    }

    #[test]
    fn gaps_are_what_is_left() {
        assert_eq!(gaps(&[10..20, 30..40], 0..50), [0..10, 20..30, 40..50]);
        assert_eq!(gaps(&[0..50], 10..40), []);
        assert_eq!(gaps(&[], 5..9), [5..9]);
        assert_eq!(gaps(&[0..3, 60..70], 5..9), [5..9]);
    }
}
