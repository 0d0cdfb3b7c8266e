//! The checksums of ext4 with `metadata_csum` (`Documentation/filesystems/ext4/checksums.rst`), made right again after a change.

use std::ops::Range;

/// Seed, and where what it seeds is.
#[derive(Clone)]
pub struct Sums {
    seed: u32,
    bitmap_len: u64,
    /// Of each group: its descriptor, and its bitmap if that was ever written.
    groups: Vec<(Range<usize>, Option<u64>)>,
}

impl Sums {
    /// Where everything is in an undamaged filesystem; `None` if it has no checksums.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let sb = &bytes[1024..2048];
        let u32_at = |at: usize| u32::from_le_bytes(sb[at..at + 4].try_into().unwrap());
        let (incompat, ro_compat) = (u32_at(0x60), u32_at(0x64));
        if ro_compat & 0x400 == 0 {
            return None;
        }
        let block = 1024_u64 << u32_at(0x18);
        let (first, per_group) = (u64::from(u32_at(0x14)), u64::from(u32_at(0x20)));
        let descriptor = if incompat & 0x80 != 0 { u64::from(sb[0xFE]) } else { 32 };
        let groups = (u64::from(u32_at(4)) - first).div_ceil(per_group);
        let per_block = block / descriptor;
        let meta_bg = incompat & 0x10 != 0;
        let groups = (0..groups).map(|group| {
            // The first of a meta group has the descriptors of all: behind a superblock, which among them only group 0 has here.
            let index = group / per_block;
            let place = match index {
                0 => 1024 / block + 1,
                _ if meta_bg => {
                    let home = index * per_block;
                    assert!(
                        home > 1 && [3, 5, 7].iter().all(|root| !home.is_multiple_of(*root)),
                        "{home}"
                    );
                    first + home * per_group
                }
                _ => 1024 / block + 1 + index,
            };
            let at = (place * block + group % per_block * descriptor) as usize;
            let own = &bytes[at..at + descriptor as usize];
            let bitmap = u64::from(u32::from_le_bytes(own[..4].try_into().unwrap()));
            let written = own[0x12] & 2 == 0;
            (at..at + descriptor as usize, written.then_some(bitmap * block))
        });
        let seed = sum(!0, &sb[0x68..0x78]);
        let seed = if incompat & 0x2000 != 0 { u32_at(0x270) } else { seed };
        Some(Self { seed, bitmap_len: per_group / 8, groups: groups.collect() })
    }

    /// Every descriptor.
    pub fn descriptors(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.groups.iter().map(|(at, _)| at.start as u64..at.end as u64)
    }

    /// How many bytes of a bitmap its checksum covers.
    pub fn bitmap_len(&self) -> u64 {
        self.bitmap_len
    }

    /// Group and place of each written bitmap.
    pub fn bitmaps(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        let numbered = self.groups.iter().enumerate();
        numbered.filter_map(|(group, (_, bitmap))| bitmap.map(|at| (group, at)))
    }

    /// Of the superblock.
    pub fn seal_superblock(bytes: &mut [u8]) {
        let sum = sum(!0, &bytes[1024..1024 + 0x3FC]);
        bytes[1024 + 0x3FC..2048].copy_from_slice(&sum.to_le_bytes());
    }

    /// Of a group's descriptor.
    pub fn seal_descriptor(&self, bytes: &mut [u8], group: usize) {
        let own = &mut bytes[self.groups[group].0.clone()];
        own[0x1E..0x20].fill(0);
        let sum = sum(sum(self.seed, &(group as u32).to_le_bytes()), own);
        own[0x1E..0x20].copy_from_slice(&sum.to_le_bytes()[..2]);
    }

    /// Of a group's bitmap, in its descriptor.
    pub fn seal_bitmap(&self, bytes: &mut [u8], group: usize) {
        let (own, at) = &self.groups[group];
        let at = at.unwrap() as usize;
        let sum = sum(self.seed, &bytes[at..at + self.bitmap_len as usize]).to_le_bytes();
        bytes[own.start + 0x18..own.start + 0x1A].copy_from_slice(&sum[..2]);
        if own.len() >= 64 {
            bytes[own.start + 0x38..own.start + 0x3A].copy_from_slice(&sum[2..]);
        }
        self.seal_descriptor(bytes, group);
    }
}

/// The kernel's `crc32c()`, which inverts nothing, bit by bit.
pub fn sum(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |sum, byte| {
        let mixed = sum ^ u32::from(*byte);
        (0..8).fold(mixed, |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0x82F6_3B78 } else { sum >> 1 })
    })
}
