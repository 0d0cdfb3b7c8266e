//! Whether the log ends with the record that an unmount writes.
//!
//! The log is a ring of 512-byte blocks. Each begins with the number of the cycle in which it was written, or, where a record
//! begins, with a magic number and then the cycle; so the end of what was written last is where the number drops. Deliberately
//! absent: holes that a crash left before that end. A log that ends unmounted has none, and the kernel would not look at it.

use std::io::{self, Read, Seek};

use super::superblock::Superblock;
use crate::fs::bytes::{be32, read};

const BLOCK: u64 = 512;
const MAGIC: u32 = 0xFEED_BABE;
/// A record of the second version has a header block for so many bytes of it.
const HEADER_COVERS: u32 = 32 << 10;
const VERSION_2: u32 = 2;
/// The longest record, with its header, in blocks; an unmount is one operation, filled up to the log's stripe.
const LONGEST_RECORD: u64 = (256 << 10) / BLOCK + 8;
/// The flag of the operation that unmounts.
const UNMOUNT: u8 = 0x20;

/// Whether nothing has to be replayed: the last record is that of an unmount, or there is none.
pub fn ends_unmounted(src: &mut (impl Read + Seek), sb: &Superblock) -> io::Result<bool> {
    let len = sb.log_blocks * sb.block_bytes / BLOCK;
    let mut log = Log { src, start: sb.log_start, len };
    let Some(head) = log.head()? else { return Ok(true) };
    for back in 1..=LONGEST_RECORD.min(len) {
        let at = (head + len - back) % len;
        let header = log.block(at)?;
        if be32(&header, 0) == MAGIC {
            return log.is_unmount(at, &header, back);
        }
    }
    Ok(false)
}

struct Log<'a, S> {
    src: &'a mut S,
    start: u64,
    /// In blocks.
    len: u64,
}

impl<S: Read + Seek> Log<'_, S> {
    fn block(&mut self, number: u64) -> io::Result<Vec<u8>> {
        read(self.src, self.start + number * BLOCK, BLOCK)
    }

    fn cycle(&mut self, number: u64) -> io::Result<u32> {
        let block = self.block(number)?;
        let first = be32(&block, 0);
        Ok(if first == MAGIC { be32(&block, 4) } else { first })
    }

    /// The block behind the last that was written; `None` if none was.
    fn head(&mut self) -> io::Result<Option<u64>> {
        let first = self.cycle(0)?;
        if first == 0 {
            return Ok(None);
        }
        if self.cycle(self.len - 1)? == first {
            return Ok(Some(self.len));
        }
        // `before` is of the first block's cycle, `behind` of an older one.
        let (mut before, mut behind) = (0, self.len - 1);
        while behind - before > 1 {
            let middle = before + (behind - before) / 2;
            if self.cycle(middle)? == first {
                before = middle;
            } else {
                behind = middle;
            }
        }
        Ok(Some(behind))
    }

    /// Whether the record at `at`, which begins `back` blocks before the head, ends there and unmounts.
    fn is_unmount(&mut self, at: u64, header: &[u8], back: u64) -> io::Result<bool> {
        let header_blocks = if be32(header, 8) & VERSION_2 == 0 {
            1
        } else {
            u64::from(be32(header, 320).div_ceil(HEADER_COVERS)).max(1)
        };
        let data_blocks = u64::from(be32(header, 12)).div_ceil(BLOCK);
        let operations = be32(header, 40);
        if header_blocks + data_blocks != back || operations != 1 {
            return Ok(false);
        }
        let operation = self.block((at + header_blocks) % self.len)?;
        Ok(operation[9] & UNMOUNT != 0)
    }
}
