//! The boot sector: geometry. Numbers are little-endian, here and everywhere in NTFS.

use std::io::{Read, Seek};

use crate::fs::bytes::{is_size, le16, le64, read};
use crate::fs::failure::{Failure, doubt};

const BOOT_LEN: u64 = 512;
const SECTOR_BYTES: std::ops::RangeInclusive<u64> = 256..=4096;
const MOST_CLUSTER_BYTES: u64 = 2 << 20;
const RECORD_BYTES: std::ops::RangeInclusive<u64> = 512..=65536;

/// The geometry, checked: no arithmetic on it overflows.
#[derive(Debug, Clone)]
pub struct Boot {
    pub cluster_bytes: u64,
    /// All of them lie in the volume.
    pub clusters: u64,
    /// Where the master file table begins.
    pub table_cluster: u64,
    /// Where the copy of its first records is.
    pub mirror_cluster: u64,
    pub record_bytes: u64,
}

impl Boot {
    pub fn read(src: &mut (impl Read + Seek), len_bytes: u64) -> Result<Self, Failure> {
        let contradiction = || doubt("the boot sector's numbers contradict each other");
        if len_bytes < BOOT_LEN {
            return Err(contradiction());
        }
        let sector = read(src, 0, BOOT_LEN)?;
        if sector[510..] != [0x55, 0xAA] {
            return Err(doubt("the boot sector does not end as boot sectors do"));
        }
        let sector_bytes = u64::from(le16(&sector, 11));
        // Above 0x80 a number is a negative power of two.
        let power = |code: u8| 1_u64.checked_shl(u32::from(code.wrapping_neg())).unwrap_or(0);
        let cluster_sectors = match sector[13] {
            code @ 0x81.. => power(code),
            count => u64::from(count),
        };
        let cluster_bytes = sector_bytes.saturating_mul(cluster_sectors);
        let record_bytes = match sector[64] {
            code @ 0x80.. => power(code),
            count => u64::from(count) * cluster_bytes,
        };
        let sane = is_size(sector_bytes, &SECTOR_BYTES)
            && cluster_sectors.is_power_of_two()
            && cluster_bytes <= MOST_CLUSTER_BYTES
            && is_size(record_bytes, &RECORD_BYTES);
        if !sane {
            return Err(contradiction());
        }
        let sectors = le64(&sector, 40);
        if sectors.checked_mul(sector_bytes).is_none_or(|bytes| bytes > len_bytes) {
            return Err(doubt(format!(
                "it claims {sectors} sectors of {sector_bytes} bytes, more than the {len_bytes} bytes that hold it"
            )));
        }
        let boot = Self {
            cluster_bytes,
            clusters: sectors / cluster_sectors,
            table_cluster: le64(&sector, 48),
            mirror_cluster: le64(&sector, 56),
            record_bytes,
        };
        let inside = |cluster: u64| (1..boot.clusters).contains(&cluster);
        if !inside(boot.table_cluster) || !inside(boot.mirror_cluster) {
            return Err(contradiction());
        }
        Ok(boot)
    }
}
