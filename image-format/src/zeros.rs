//! Whether bytes are zero, and where they are not although a span's runs say so.

use crate::{RunKind, Runs};

/// Whether all these bytes are zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // Folding a whole chunk without an early way out lets the compiler use wide registers.
    bytes.chunks(1024).all(|chunk| chunk.iter().fold(0, |any, byte| any | byte) == 0)
}

/// Where the first run starts that is not data, and whose bytes of this span are not all zero.
pub(crate) fn first_run_not_zero(runs: &Runs, span: &[u8]) -> Option<u64> {
    let len = u32::try_from(span.len()).expect("a span's length has 32 bits");
    runs.byte_ranges(len)
        .filter(|(kind, _)| *kind != RunKind::Data)
        .find(|(_, range)| {
            let [start, end] = [range.start, range.end]
                .map(|at| usize::try_from(at).expect("within the span, which is in memory"));
            !is_zero(&span[start..end])
        })
        .map(|(_, range)| range.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_told_from_other_bytes_at_any_place() {
        for len in [0, 1, 1023, 1024, 1025, 5000] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in (0..len).step_by(251).chain(len.checked_sub(1)) {
                bytes[at] = 0x80;
                assert!(!is_zero(&bytes), "byte {at} of {len}");
                bytes[at] = 0;
            }
        }
    }
}
