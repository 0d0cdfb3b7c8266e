//! A logical volume as `Read + Seek`: its pieces of the physical volume, one behind the other.

use std::io::{self, Read, Seek, SeekFrom};

use crate::extents::Extent;
use crate::seek;

/// See the module's documentation.
pub struct Mapped<'a, S> {
    src: &'a mut S,
    /// Where each piece begins in the logical volume, and where it is in the physical one.
    pieces: Vec<(u64, Extent)>,
    len: u64,
    at: u64,
}

impl<'a, S> Mapped<'a, S> {
    pub fn new(src: &'a mut S, pieces: &[Extent]) -> Self {
        let mut len = 0;
        let place = |piece: &Extent| {
            let start = len;
            len += piece.len;
            (start, *piece)
        };
        let pieces = pieces.iter().map(place).collect();
        Self { src, pieces, len, at: 0 }
    }

    pub fn len_bytes(&self) -> u64 {
        self.len
    }
}

impl<S: Read + Seek> Read for Mapped<'_, S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let after = self.pieces.partition_point(|(start, _)| *start <= self.at);
        let Some((start, piece)) = after.checked_sub(1).map(|i| self.pieces[i]) else {
            return Ok(0);
        };
        let into = (self.at - start).min(piece.len);
        let len = usize::try_from(piece.len - into).unwrap_or(usize::MAX).min(buf.len());
        self.src.seek(SeekFrom::Start(piece.start + into))?;
        let read = self.src.read(&mut buf[..len])?;
        self.at += read as u64;
        Ok(read)
    }
}

impl<S: Read + Seek> Seek for Mapped<'_, S> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = seek::place(self.at, self.len, to)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_are_those_of_the_pieces_in_order(
            pieces in prop::collection::vec((0..200_u64, 1..40_u64), 0..6),
            at in 0..250_u64,
            len in 0..100_usize,
        ) {
            let disk: Vec<u8> = (0..240).collect();
            let pieces: Vec<Extent> =
                pieces.iter().map(|(start, len)| Extent { start: *start, len: *len }).collect();
            let index = |n: u64| usize::try_from(n).unwrap();
            let all: Vec<u8> = pieces
                .iter()
                .flat_map(|p| disk[index(p.start)..index(p.end())].iter().copied())
                .collect();
            let mut src = Cursor::new(&disk);
            let mut mapped = Mapped::new(&mut src, &pieces);
            prop_assert_eq!(mapped.len_bytes(), all.len() as u64);
            mapped.seek(SeekFrom::Start(at)).unwrap();
            let mut read = Vec::new();
            mapped.take(len as u64).read_to_end(&mut read).unwrap();
            let from = index(at).min(all.len());
            prop_assert_eq!(&read[..], &all[from..(from + len).min(all.len())]);
        }
    }
}
