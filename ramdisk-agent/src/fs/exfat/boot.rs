//! The boot regions of an exFAT (section 3): geometry, flags, checksums.

use std::io::{Read, Seek};

use super::super::failure::{Failure, doubt};
use super::sum32;
use crate::fs::Clean;
use crate::fs::bytes::{le16, le32, le64, read};

/// The number of the first cluster.
pub const FIRST_CLUSTER: u32 = 2;
const MAX_CLUSTERS: u32 = u32::MAX - 10;
/// A region has so many sectors, the last of which repeats the checksum of the others.
const REGION_SECTORS: u64 = 12;
const FIELDS_LEN: u64 = 512;
const FLAG_ACTIVE_FAT: u16 = 1;
const FLAG_DIRTY: u16 = 2;
const FLAG_MEDIA_FAILURE: u16 = 4;
/// VolumeFlags and PercentInUse change without the checksum, and are not kept up to date in the backup.
const VOLATILE: [usize; 3] = [106, 107, 112];

/// What the boot sector says, checked.
#[derive(Debug, Clone)]
pub struct Boot {
    /// Bytes in a cluster.
    pub cluster_bytes: u64,
    /// How many clusters there are.
    pub clusters: u32,
    /// Where the first cluster begins.
    pub heap_offset: u64,
    /// Where the file allocation table begins.
    pub fat_offset: u64,
    /// First cluster of the root directory.
    pub root: u32,
    /// How many bytes the filesystem covers.
    pub volume_bytes: u64,
    flags: u16,
}

impl Boot {
    /// Reads both regions. After this no arithmetic on the geometry overflows, and all of it lies in the volume.
    pub fn read(src: &mut (impl Read + Seek), len_bytes: u64) -> Result<Self, Failure> {
        let short = || doubt("it is too short for its boot regions");
        if len_bytes < FIELDS_LEN {
            return Err(short());
        }
        let fields = read(src, 0, FIELDS_LEN)?;
        let boot = Self::parse(&fields, len_bytes).map_err(doubt)?;
        let region = REGION_SECTORS << fields[108];
        if len_bytes < 2 * region {
            return Err(short());
        }
        for (name, at) in [("main", 0), ("backup", region)] {
            let bytes = read(src, at, region)?;
            if !has_right_sum(&bytes, 1 << fields[108]) {
                return Err(doubt(format!("the checksum of the {name} boot region is wrong")));
            }
            if geometry(&bytes) != geometry(&fields) {
                return Err(doubt("the backup boot region describes another filesystem"));
            }
        }
        Ok(boot)
    }

    /// The fields of a boot sector (table 4), if they fit together and the volume.
    fn parse(bytes: &[u8], len_bytes: u64) -> Result<Self, String> {
        let (sector_shift, cluster_shift, fats) = (bytes[108], bytes[109], bytes[110]);
        if bytes[510..] != [0x55, 0xAA] || bytes[11..64].iter().any(|byte| *byte != 0) {
            return Err("the boot sector is not one of exFAT".into());
        }
        let revision = le16(bytes, 104);
        if revision >> 8 != 1 {
            return Err(format!("revision {}.{:02} is not known", revision >> 8, revision & 0xFF));
        }
        if fats != 1 {
            return Err(format!("it has {fats} file allocation tables (TexFAT)"));
        }
        if !(9..=12).contains(&sector_shift) || cluster_shift > 25 - sector_shift {
            return Err("the sizes of its sectors and clusters are not possible".into());
        }
        let sectors = le64(bytes, 72);
        let clusters = le32(bytes, 92);
        let (fat_sector, fat_sectors) = (u64::from(le32(bytes, 80)), u64::from(le32(bytes, 84)));
        let heap_sector = u64::from(le32(bytes, 88));
        let volume_bytes = sectors.checked_mul(1 << sector_shift);
        let Some(volume_bytes) = volume_bytes.filter(|bytes| *bytes <= len_bytes) else {
            return Err(format!(
                "it claims {sectors} sectors of {} bytes, more than the {len_bytes} bytes that hold it",
                1 << sector_shift
            ));
        };
        let boot = Self {
            cluster_bytes: 1 << (sector_shift + cluster_shift),
            clusters,
            heap_offset: heap_sector << sector_shift,
            fat_offset: fat_sector << sector_shift,
            root: le32(bytes, 96),
            volume_bytes,
            flags: le16(bytes, 106),
        };
        let fat_bytes = (u64::from(clusters) + u64::from(FIRST_CLUSTER)) * 4;
        let sane = (1..=MAX_CLUSTERS).contains(&clusters)
            && fat_sector >= 2 * REGION_SECTORS
            && fat_sectors << sector_shift >= fat_bytes
            && heap_sector >= fat_sector + fat_sectors
            && u64::from(clusters) <= (sectors.saturating_sub(heap_sector)) >> cluster_shift
            && boot.flags & FLAG_ACTIVE_FAT == 0
            && boot.has(boot.root, 1);
        if sane { Ok(boot) } else { Err("the boot sector's numbers contradict each other".into()) }
    }

    /// What the flags say.
    pub fn clean(&self) -> Clean {
        let reason = if self.flags & FLAG_DIRTY != 0 {
            "it was not unmounted"
        } else if self.flags & FLAG_MEDIA_FAILURE != 0 {
            "read or write errors were met in it"
        } else {
            return Clean::Clean;
        };
        Clean::NotClean { reason: reason.into() }
    }

    /// Whether there are so many clusters from `first` on.
    pub fn has(&self, first: u32, count: u64) -> bool {
        first >= FIRST_CLUSTER
            && count <= u64::from(self.clusters)
            && u64::from(first - FIRST_CLUSTER) <= u64::from(self.clusters) - count
    }

    /// Where a cluster begins.
    pub fn cluster_offset(&self, cluster: u32) -> u64 {
        self.heap_offset + u64::from(cluster - FIRST_CLUSTER) * self.cluster_bytes
    }

    /// Where the last cluster ends.
    pub fn heap_end(&self) -> u64 {
        self.heap_offset + u64::from(self.clusters) * self.cluster_bytes
    }

    #[cfg(test)]
    pub fn of_clusters(clusters: u32) -> Self {
        Self {
            cluster_bytes: 4096,
            clusters,
            heap_offset: 1 << 20,
            fat_offset: 1 << 16,
            root: FIRST_CLUSTER,
            volume_bytes: 1 << 30,
            flags: 0,
        }
    }
}

/// PartitionOffset, which partitioning tools may leave behind the times, is not part of it.
fn geometry(bytes: &[u8]) -> (&[u8], &[u8]) {
    (&bytes[72..106], &bytes[108..112])
}

fn has_right_sum(region: &[u8], sector: usize) -> bool {
    let (covered, sums) = region.split_at(sector * 11);
    let stable = |(at, byte): (usize, &u8)| (!VOLATILE.contains(&at)).then_some(*byte);
    let head: Vec<u8> = covered[..sector].iter().enumerate().filter_map(stable).collect();
    let sum = sum32(sum32(0, &head), &covered[sector..]).to_le_bytes();
    sums.chunks_exact(4).all(|word| word == sum)
}
