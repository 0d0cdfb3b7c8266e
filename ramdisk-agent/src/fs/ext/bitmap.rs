//! A group's block bitmap: one bit a cluster, set when it is in use, least significant bit first.

use super::superblock::{Descriptor, Superblock, crc32c};
use crate::fs::bytes::count_set;

/// One block of bits, reused from group to group.
#[derive(Debug)]
pub struct Bitmap {
    bytes: Vec<u8>,
}

impl Bitmap {
    pub fn new(sb: &Superblock) -> Self {
        Self { bytes: vec![0; usize::try_from(sb.block_bytes).expect("at most 64 KiB")] }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    pub fn clear(&mut self) {
        self.bytes.fill(0);
    }

    /// What the kernel would write into a bitmap that was never written (`ext4_init_block_bitmap()`).
    pub fn set_own_metadata(&mut self, sb: &Superblock, group: u64, descriptor: &Descriptor) {
        let start = sb.group_start(group);
        let end = start + sb.blocks_per_group;
        let mut set = |first: u64, count: u64| {
            for block in first.max(start)..(first + count).min(end) {
                let cluster = (block - start) / sb.cluster_blocks;
                let at = usize::try_from(cluster / 8).expect("within the bitmap");
                self.bytes[at] |= 1 << (cluster % 8);
            }
        };
        set(start, sb.base_metadata_blocks(group));
        set(descriptor.block_bitmap, 1);
        set(descriptor.inode_bitmap, 1);
        set(descriptor.inode_table, sb.inode_table_blocks());
    }

    /// Checks the checksum, and that the bits behind the last cluster are set.
    pub fn check(
        &self,
        sb: &Superblock,
        group: u64,
        descriptor: &Descriptor,
    ) -> Result<(), String> {
        if let Some(seed) = sb.bitmap_seed() {
            let len = usize::try_from(sb.clusters_per_group / 8).expect("within the bitmap");
            let (expected, bits) = descriptor.bitmap_checksum;
            let mask = if bits == 32 { !0 } else { 0xFFFF };
            if crc32c(seed, &self.bytes[..len]) & mask != expected {
                return Err(format!("the checksum of the block bitmap of group {group} is wrong"));
            }
        }
        let clusters = sb.clusters_in_group(group);
        let padding = sb.clusters_per_group - clusters;
        if padding > 0
            && self.count_set(sb.clusters_per_group) - self.count_set(clusters) != padding
        {
            return Err(format!("the padding of the block bitmap of group {group} is not set"));
        }
        Ok(())
    }

    /// How many of the first `clusters` are in use.
    pub fn count_set(&self, clusters: u64) -> u64 {
        count_set(&self.bytes, clusters)
    }

    /// The runs of used clusters among the first `clusters`: (first, count).
    pub fn runs(&self, clusters: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next(at, clusters, true)?;
            let end = self.next(start, clusters, false).unwrap_or(clusters);
            at = end;
            Some((start, end - start))
        })
    }

    /// First cluster from `at` on whose bit is `set`.
    fn next(&self, mut at: u64, clusters: u64, set: bool) -> Option<u64> {
        let skipped = if set { 0x00 } else { 0xFF };
        while at < clusters {
            let byte = self.bytes[usize::try_from(at / 8).expect("within the bitmap")];
            if at.is_multiple_of(8) && byte == skipped {
                at += 8;
            } else if (byte >> (at % 8) & 1 == 1) == set {
                return Some(at);
            } else {
                at += 1;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_counts() {
        let bitmap = Bitmap { bytes: vec![0xFF, 0x00, 0x0F, 0xF0, 0xFF, 0xFF] };
        assert_eq!(bitmap.runs(48).collect::<Vec<_>>(), [(0, 8), (16, 4), (28, 20)]);
        assert_eq!(bitmap.runs(30).collect::<Vec<_>>(), [(0, 8), (16, 4), (28, 2)]);
        assert_eq!((bitmap.count_set(48), bitmap.count_set(30), bitmap.count_set(17)), (32, 14, 9));
        assert_eq!(bitmap.runs(0).count(), 0);
    }
}
