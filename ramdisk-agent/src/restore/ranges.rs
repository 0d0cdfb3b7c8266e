//! Arithmetic on short, sorted lists of byte ranges.

use std::ops::Range;

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
    fn gaps_are_what_is_left() {
        assert_eq!(gaps(&[10..20, 30..40], 0..50), [0..10, 20..30, 40..50]);
        assert_eq!(gaps(&[0..50], 10..40), []);
        assert_eq!(gaps(&[], 5..9), [5..9]);
        assert_eq!(gaps(&[0..3, 60..70], 5..9), [5..9]);
    }
}
