//! The boot sector of a FAT filesystem and the geometry that follows from it.

use super::Doubt;
use crate::fs::bytes::{le16, le32};
use crate::fs::{Clean, FsKind};

/// How much of the boot sector is read: its fields lie in the first 512 bytes at every sector size.
pub const LEN: usize = 512;
/// The number of the first cluster.
pub const FIRST_CLUSTER: u32 = 2;
/// The most clusters of FAT12, FAT16 and FAT32.
const MAX_CLUSTERS_12: u64 = 4084;
const MAX_CLUSTERS_16: u64 = 65524;
const MAX_CLUSTERS_32: u64 = 0x0fff_fff5;
/// A table may be longer than its clusters need, as formatters round up; much longer means wrong geometry.
const TABLE_SLACK_SECTORS: u64 = 256;
/// The most copies of the table that `mkfs.fat` makes; two are usual, and Linux takes any number.
const MAX_TABLES: u8 = 4;
/// A directory entry.
pub const ENTRY_LEN: usize = 32;

const STATE_DIRTY: u8 = 1;
const STATE_ERRORS: u8 = 2;
const MIRRORING_OFF: u16 = 0x80;
const NO_BACKUP: u16 = 0xffff;
const NO_LABEL: &[u8] = b"NO NAME    ";

/// What the boot sector says.
#[derive(Debug, Clone)]
pub struct Boot {
    /// FAT12, FAT16 or FAT32.
    pub kind: FsKind,
    /// The volume's serial number, as blkid prints it.
    pub uuid: Option<String>,
    /// The label in the boot sector; the one in the root directory goes before it.
    pub label: Option<String>,
    /// The media byte, which the table repeats.
    pub media: u8,
    /// How many copies of the table there are.
    pub tables: u8,
    /// First cluster of FAT32's root directory.
    pub root_cluster: u32,
    /// Bytes in a sector.
    pub sector_bytes: u64,
    /// Sectors in front of the first copy of the table.
    pub reserved_sectors: u64,
    /// Sectors of a copy of the table.
    pub table_sectors: u64,
    cluster_sectors: u64,
    root_entries: u64,
    total_sectors: u64,
    state: u8,
    flags: u16,
    version: u16,
    backup_sector: u16,
    geometry: Vec<u8>,
}

impl Boot {
    /// The fields, or `None` if this is not a FAT boot sector.
    pub fn parse(bytes: &[u8; LEN]) -> Option<Self> {
        let sector_bytes = le16(bytes, 11);
        let (cluster_sectors, reserved, tables, media) =
            (bytes[13], le16(bytes, 14), bytes[16], bytes[21]);
        let fat = bytes[510..] == [0x55, 0xaa]
            && matches!(bytes[0], 0xeb | 0xe9)
            && matches!(sector_bytes, 512 | 1024 | 2048 | 4096)
            && cluster_sectors.is_power_of_two()
            && reserved != 0
            && (1..=MAX_TABLES).contains(&tables)
            && (media == 0xf0 || media >= 0xf8);
        if !fat {
            return None;
        }
        let is_32 = le16(bytes, 22) == 0;
        let table_sectors = if is_32 { le32(bytes, 36) } else { u32::from(le16(bytes, 22)) };
        let total_sectors = match le16(bytes, 19) {
            0 => le32(bytes, 32),
            short => u32::from(short),
        };
        // State, serial number and label stand behind the fields that only FAT32 has.
        let tail = if is_32 { &bytes[64..90] } else { &bytes[36..62] };
        let mut boot = Self {
            kind: FsKind::Fat32,
            uuid: uuid(&tail[3..7]),
            label: label(&tail[7..18]).filter(|_| tail[2] == 0x29),
            media,
            tables,
            root_cluster: le32(bytes, 44),
            sector_bytes: u64::from(sector_bytes),
            cluster_sectors: u64::from(cluster_sectors),
            reserved_sectors: u64::from(reserved),
            table_sectors: u64::from(table_sectors),
            root_entries: u64::from(le16(bytes, 17)),
            total_sectors: u64::from(total_sectors),
            state: tail[1],
            flags: if is_32 { le16(bytes, 40) } else { 0 },
            version: if is_32 { le16(bytes, 42) } else { 0 },
            backup_sector: if is_32 { le16(bytes, 50) } else { 0 },
            geometry: geometry(bytes),
        };
        if !is_32 {
            boot.kind =
                if boot.clusters() <= MAX_CLUSTERS_12 { FsKind::Fat12 } else { FsKind::Fat16 };
        }
        Some(boot)
    }

    /// Whether the numbers fit together and the filesystem fits the volume.
    pub fn check(&self, len_bytes: u64) -> Result<(), Doubt> {
        let fail = |doubt: String| Err(format!("{} boot sector: {doubt}", self.kind));
        if self.fs_bytes() > len_bytes {
            return fail(format!("it claims {} bytes of a volume of {len_bytes}", self.fs_bytes()));
        }
        let clusters = self.clusters();
        if clusters == 0 {
            return fail("it leaves no room for data".into());
        }
        let most = match self.kind {
            FsKind::Fat12 => MAX_CLUSTERS_12,
            FsKind::Fat16 => MAX_CLUSTERS_16,
            _ => MAX_CLUSTERS_32,
        };
        if clusters > most {
            return fail(format!("{clusters} clusters, at most {most} are possible"));
        }
        let needed = self.table_bytes_used().div_ceil(self.sector_bytes);
        if self.table_sectors < needed {
            return fail(format!(
                "a table of {} sectors for {clusters} clusters",
                self.table_sectors
            ));
        }
        if self.table_sectors > needed + needed / 2 + TABLE_SLACK_SECTORS {
            return fail(format!(
                "a table of {} sectors where {needed} are enough",
                self.table_sectors
            ));
        }
        let is_32 = self.kind == FsKind::Fat32;
        if is_32 != (self.root_entries == 0)
            || !(self.root_entries * ENTRY_LEN as u64).is_multiple_of(self.sector_bytes)
        {
            return fail(format!("a root directory of {} entries", self.root_entries));
        }
        if self.version != 0 {
            return fail(format!("version {:#x} is not known", self.version));
        }
        if self.flags & MIRRORING_OFF != 0 {
            return fail("the copies of the table are not kept equal".into());
        }
        Ok(())
    }

    /// Whether FAT32's backup boot sector describes the same filesystem. An empty backup says nothing.
    pub fn check_backup(&self, backup: &[u8; LEN]) -> Result<(), Doubt> {
        if backup[510..] == [0x55, 0xaa] && geometry(backup) != self.geometry {
            return Err("the backup boot sector has another geometry".into());
        }
        Ok(())
    }

    /// What the state byte says.
    pub fn clean(&self) -> Clean {
        let reason = if self.state & STATE_DIRTY != 0 {
            "it was not unmounted"
        } else if self.state & STATE_ERRORS != 0 {
            "read or write errors were met in it"
        } else {
            return Clean::Clean;
        };
        Clean::NotClean { reason: reason.into() }
    }

    /// Where FAT32's backup boot sector is.
    pub fn backup_offset(&self) -> Option<u64> {
        let sector = u64::from(self.backup_sector);
        let there = !matches!(self.backup_sector, 0 | NO_BACKUP) && sector < self.reserved_sectors;
        there.then_some(sector * self.sector_bytes)
    }

    /// How many bytes the filesystem covers.
    pub fn fs_bytes(&self) -> u64 {
        self.total_sectors * self.sector_bytes
    }

    /// Bytes in a cluster.
    pub fn cluster_bytes(&self) -> u64 {
        self.cluster_sectors * self.sector_bytes
    }

    /// Where a copy of the table begins.
    pub fn table_offset(&self, copy: u8) -> u64 {
        (self.reserved_sectors + u64::from(copy) * self.table_sectors) * self.sector_bytes
    }

    /// How many bytes of the table are entries of clusters, the two special ones included.
    pub fn table_bytes_used(&self) -> u64 {
        let entries = self.clusters() + u64::from(FIRST_CLUSTER);
        match self.kind {
            FsKind::Fat12 => (entries * 3).div_ceil(2),
            FsKind::Fat16 => entries * 2,
            _ => entries * 4,
        }
    }

    /// Where the root directory of FAT12 and FAT16 begins, and its length in bytes.
    pub fn fixed_root(&self) -> (u64, u64) {
        (self.table_offset(self.tables), self.root_entries * ENTRY_LEN as u64)
    }

    /// Where the first cluster begins.
    pub fn data_start(&self) -> u64 {
        let (root, len) = self.fixed_root();
        root + len.next_multiple_of(self.sector_bytes)
    }

    /// The first cluster number that is too large. Only meaningful after [`Boot::check`].
    pub fn end_cluster(&self) -> u32 {
        u32::try_from(self.clusters()).map_or(u32::MAX, |count| count.saturating_add(FIRST_CLUSTER))
    }

    /// Where a cluster begins.
    pub fn cluster_offset(&self, cluster: u32) -> u64 {
        self.data_start() + u64::from(cluster - FIRST_CLUSTER) * self.cluster_bytes()
    }

    fn clusters(&self) -> u64 {
        self.fs_bytes().saturating_sub(self.data_start()) / self.cluster_bytes()
    }
}

/// The fields that say where things are. Disk geometry and hidden sectors differ between copies where tools changed one only.
fn geometry(bytes: &[u8; LEN]) -> Vec<u8> {
    [&bytes[11..24], &bytes[32..50]].concat()
}

fn uuid(serial: &[u8]) -> Option<String> {
    (serial != [0; 4])
        .then(|| format!("{:02X}{:02X}-{:02X}{:02X}", serial[3], serial[2], serial[1], serial[0]))
}

/// A label of eleven bytes, filled up with spaces.
pub fn label(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_end_matches([' ', '\0']);
    (bytes != NO_LABEL && !text.is_empty()).then(|| text.to_owned())
}
