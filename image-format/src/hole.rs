//! Hole frames: long stretches of zeros as one standard zstd frame of run-length blocks.
//!
//! A frame is a header with a window of 128 KiB, the content size and the checksum flag, then a block of 4 bytes for every
//! 128 KiB, then zstd's checksum of the zeros: 32 KiB of file for 1 GiB of disk. The window is declared and not
//! "single segment": that form's window is the whole content, and stock tools refuse windows above 128 MiB.
//!
//! A frame depends on its length alone, so each length is made once and kept. The checksum of zeros needs no zeros in
//! memory; its state is remembered every few MiB, so that only the first long hole costs time (45 ms for 1 GiB).

use std::collections::HashMap;
use std::sync::Arc;

use crate::{Hash, MAX_HOLE_LEN};

/// The window of a hole frame, and the longest block in it.
pub(crate) const HOLE_WINDOW_LEN: u32 = 128 << 10;

/// The longest hole frame: header, blocks, checksum.
pub(crate) const MAX_HOLE_STORED_LEN: u64 = 10 + (MAX_HOLE_LEN / HOLE_WINDOW_LEN as u64) * 4 + 4;

/// Frames kept for reuse; a disk has few distinct hole lengths, and a hostile caller must not fill the memory.
const MAX_CACHED: usize = 256;

/// A finished hole frame.
#[derive(Debug)]
pub(crate) struct HoleFrame {
    pub(crate) stored: Vec<u8>,
    pub(crate) stored_hash: Hash,
}

/// Makes hole frames and keeps them by length.
#[derive(Debug, Default)]
pub(crate) struct HoleFrames {
    made: HashMap<u32, Arc<HoleFrame>>,
    zeros: ZerosChecksum,
}

impl HoleFrames {
    pub(crate) fn get(&mut self, len: u32) -> Arc<HoleFrame> {
        if let Some(frame) = self.made.get(&len) {
            return Arc::clone(frame);
        }
        if self.made.len() >= MAX_CACHED {
            self.made.clear();
        }
        let stored = build(len, self.zeros.of(len));
        let stored_hash = Hash::of(&stored);
        let frame = Arc::new(HoleFrame { stored, stored_hash });
        self.made.insert(len, Arc::clone(&frame));
        frame
    }
}

fn build(len: u32, checksum: u32) -> Vec<u8> {
    // Content size in 4 bytes, no single segment, checksum, no dictionary; then the window: 2^(10 + 7).
    const HEADER: [u8; 6] = [0x28, 0xB5, 0x2F, 0xFD, 0b1000_0100, 7 << 3];
    const RLE_BLOCK: u32 = 1 << 1;
    let mut out = Vec::with_capacity(14 + (len.div_ceil(HOLE_WINDOW_LEN) as usize) * 4);
    out.extend_from_slice(&HEADER);
    out.extend_from_slice(&len.to_le_bytes());
    let mut left = len;
    while left > 0 {
        let block_len = left.min(HOLE_WINDOW_LEN);
        left -= block_len;
        let header = u32::from(left == 0) | RLE_BLOCK | block_len << 3;
        out.extend_from_slice(&header.to_le_bytes()[..3]);
        out.push(0);
    }
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

const PRIME_1: u64 = 0x9E37_79B1_85EB_CA87;
const PRIME_2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const PRIME_3: u64 = 0x1656_67B1_9E37_79F9;
const PRIME_4: u64 = 0x85EB_CA77_C2B2_AE63;
const PRIME_5: u64 = 0x27D4_EB2F_1656_67C5;

/// XXH64 takes 32 bytes at a time.
const STRIPE_LEN: u32 = 32;

/// The state is remembered every so many bytes of zeros.
const CHECKPOINT_LEN: u32 = 4 << 20;

/// XXH64 (seed 0) of zeros, of which zstd's checksum is the lower half.
#[derive(Debug)]
struct ZerosChecksum {
    /// The four lanes after 0, 1, 2 … times `CHECKPOINT_LEN` zeros.
    checkpoints: Vec<[u64; 4]>,
}

impl Default for ZerosChecksum {
    fn default() -> Self {
        let start = [PRIME_1.wrapping_add(PRIME_2), PRIME_2, 0, PRIME_1.wrapping_neg()];
        Self { checkpoints: vec![start] }
    }
}

impl ZerosChecksum {
    fn of(&mut self, len: u32) -> u32 {
        let mut hash = if len >= STRIPE_LEN { self.converged(len) } else { PRIME_5 };
        hash = hash.wrapping_add(u64::from(len));
        let tail = len % STRIPE_LEN;
        for _ in 0..tail / 8 {
            hash = hash.rotate_left(27).wrapping_mul(PRIME_1).wrapping_add(PRIME_4);
        }
        for _ in 0..tail % 8 / 4 {
            hash = hash.rotate_left(23).wrapping_mul(PRIME_2).wrapping_add(PRIME_3);
        }
        for _ in 0..tail % 4 {
            hash = hash.rotate_left(11).wrapping_mul(PRIME_1);
        }
        hash = (hash ^ hash >> 33).wrapping_mul(PRIME_2);
        hash = (hash ^ hash >> 29).wrapping_mul(PRIME_3);
        hash ^= hash >> 32;
        let [a, b, c, d, ..] = hash.to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    fn converged(&mut self, len: u32) -> u64 {
        let whole = (len / CHECKPOINT_LEN) as usize;
        let mut lanes = self.checkpoints[whole.min(self.checkpoints.len() - 1)];
        while self.checkpoints.len() <= whole {
            lanes = after_zeros(lanes, CHECKPOINT_LEN / STRIPE_LEN);
            self.checkpoints.push(lanes);
        }
        lanes = after_zeros(lanes, len % CHECKPOINT_LEN / STRIPE_LEN);
        let [a, b, c, d] = lanes;
        let start = a
            .rotate_left(1)
            .wrapping_add(b.rotate_left(7))
            .wrapping_add(c.rotate_left(12))
            .wrapping_add(d.rotate_left(18));
        lanes.iter().fold(start, |hash, lane| {
            let round = lane.wrapping_mul(PRIME_2).rotate_left(31).wrapping_mul(PRIME_1);
            (hash ^ round).wrapping_mul(PRIME_1).wrapping_add(PRIME_4)
        })
    }
}

/// The lanes after so many stripes of zeros.
fn after_zeros(mut lanes: [u64; 4], stripes: u32) -> [u64; 4] {
    for _ in 0..stripes {
        lanes = lanes.map(|lane| lane.rotate_left(31).wrapping_mul(PRIME_1));
    }
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zstd_header::ZstdHeader;

    #[test]
    fn zstd_accepts_every_length_and_its_checksum() {
        let mut frames = HoleFrames::default();
        let lens = (1..70).chain([
            4095,
            4096,
            4097,
            131_071,
            131_072,
            131_073,
            (4 << 20) + 77,
            9 << 20,
            4 << 20,
        ]);
        for len in lens {
            let frame = frames.get(len);
            let header = ZstdHeader::parse(&frame.stored).unwrap();
            assert!(!header.single_segment && header.checksum);
            assert_eq!(header.window_len, u64::from(HOLE_WINDOW_LEN));
            let content = zstd::bulk::decompress(&frame.stored, len as usize).unwrap();
            assert_eq!(content.len(), len as usize);
            assert!(crate::is_zero(&content));
        }
    }

    #[test]
    fn a_gibibyte_takes_32_kib() {
        let mut frames = HoleFrames::default();
        let frame = frames.get(1 << 30);
        assert_eq!(frame.stored.len() as u64, MAX_HOLE_STORED_LEN);
        assert!(Arc::ptr_eq(&frame, &frames.get(1 << 30)));
    }
}
