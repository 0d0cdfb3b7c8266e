//! The arithmetic of [`std::io::Seek`], for everything that is a window onto something else.

use std::io::{self, SeekFrom};

/// Where a cursor at `at` in something of `len` bytes goes. Behind the end is a place too, as in a file.
///
/// # Errors
/// `InvalidInput` for a place before the start, or beyond what 64 bits count.
pub fn place(at: u64, len: u64, to: SeekFrom) -> io::Result<u64> {
    let place = match to {
        SeekFrom::Start(n) => Some(n),
        SeekFrom::End(n) => len.checked_add_signed(n),
        SeekFrom::Current(n) => at.checked_add_signed(n),
    };
    place.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "seeking before the start"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let go = |to| place(10, 100, to).ok();
        assert_eq!(go(SeekFrom::Start(7)), Some(7));
        assert_eq!(go(SeekFrom::End(-1)), Some(99));
        assert_eq!(go(SeekFrom::End(1)), Some(101));
        assert_eq!(go(SeekFrom::Current(-10)), Some(0));
        assert_eq!(go(SeekFrom::Current(-11)), None);
        assert_eq!(go(SeekFrom::End(-101)), None);
    }
}
