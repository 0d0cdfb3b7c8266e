//! A filesystem as it would be after its journal was replayed: `Read + Seek` over the disk and the blocks in the journal.

use std::io::{self, Read, Seek, SeekFrom};

use super::journal::{Blocks, ESCAPED};

/// See the module's documentation.
pub struct Overlay<'a, S> {
    src: &'a mut S,
    blocks: &'a Blocks,
    block_bytes: u64,
    at: u64,
}

impl<'a, S: Read + Seek> Overlay<'a, S> {
    pub fn new(src: &'a mut S, blocks: &'a Blocks, block_bytes: u64) -> Self {
        Self { src, blocks, block_bytes, at: 0 }
    }
}

impl<S: Read + Seek> Read for Overlay<'_, S> {
    /// Reads up to the end of a block.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let (block, into) = (self.at / self.block_bytes, self.at % self.block_bytes);
        let left = usize::try_from(self.block_bytes - into).expect("at most 64 KiB");
        let len = left.min(buf.len());
        let copy = self.blocks.get(&block);
        let place = copy.map_or(self.at, |copy| copy.at * self.block_bytes + into);
        self.src.seek(SeekFrom::Start(place))?;
        let read = self.src.read(&mut buf[..len])?;
        if copy.is_some_and(|copy| copy.escaped) {
            let from = usize::try_from(into).expect("at most 64 KiB").min(ESCAPED.len());
            let hidden = &ESCAPED[from..];
            let count = hidden.len().min(read);
            buf[..count].copy_from_slice(&hidden[..count]);
        }
        self.at += read as u64;
        Ok(read)
    }
}

impl<S: Seek> Seek for Overlay<'_, S> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = match to {
            SeekFrom::Start(n) => n,
            other => self.src.seek(other)?,
        };
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::super::journal::Copy;
    use super::*;

    const BLOCK: u64 = 16;
    const BLOCKS: u64 = 12;

    proptest! {
        #[test]
        fn replaced_blocks_are_read_from_the_journal(
            replaced in prop::collection::btree_map(0..BLOCKS, (0..BLOCKS, any::<bool>()), 0..6),
            at in 0..BLOCK * BLOCKS + 10,
            len in 0..100_usize,
        ) {
            let index = |n: u64| usize::try_from(n).unwrap();
            let disk: Vec<u8> = (0..200).take(index(BLOCK * BLOCKS)).collect();
            let mut expected = disk.clone();
            let mut blocks = BTreeMap::new();
            for (block, (at, escaped)) in replaced {
                let (to, from, len) = (index(block * BLOCK), index(at * BLOCK), index(BLOCK));
                expected[to..to + len].copy_from_slice(&disk[from..from + len]);
                if escaped {
                    expected[to..to + 4].copy_from_slice(&ESCAPED);
                }
                blocks.insert(block, Copy { at, escaped });
            }
            let mut src = Cursor::new(&disk);
            let mut overlay = Overlay::new(&mut src, &blocks, BLOCK);
            overlay.seek(SeekFrom::Start(at)).unwrap();
            let mut read = Vec::new();
            overlay.take(len as u64).read_to_end(&mut read).unwrap();
            let from = index(at).min(expected.len());
            prop_assert_eq!(&read[..], &expected[from..(from + len).min(expected.len())]);
        }
    }
}
