//! The superblock and the group descriptors: fields, geometry, checksums. Offsets as in the kernel's `fs/ext4/ext4.h`.

use crc::{Algorithm, CRC_16_MODBUS, Crc, Table};

use crate::fs::bytes::{le16, le32, le64};

/// Where the superblock is, in bytes.
pub const OFFSET: u64 = 1024;
/// Its length.
pub const LEN: usize = 1024;

const MAGIC: u16 = 0xEF53;
/// Where the magic number is in it.
pub const MAGIC_AT: u64 = 0x38;

pub const STATE_VALID: u16 = 1;
pub const STATE_ERROR: u16 = 2;

pub const COMPAT_HAS_JOURNAL: u32 = 0x4;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
pub const COMPAT_FAST_COMMIT: u32 = 0x400;

const INCOMPAT_FILETYPE: u32 = 0x2;
pub const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_JOURNAL_DEV: u32 = 0x8;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_EXTENTS: u32 = 0x40;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_MMP: u32 = 0x100;
const INCOMPAT_FLEX_BG: u32 = 0x200;
const INCOMPAT_EA_INODE: u32 = 0x400;
const INCOMPAT_DIRDATA: u32 = 0x1000;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;
const INCOMPAT_LARGEDIR: u32 = 0x4000;
const INCOMPAT_INLINE_DATA: u32 = 0x8000;
const INCOMPAT_ENCRYPT: u32 = 0x1_0000;
const INCOMPAT_CASEFOLD: u32 = 0x2_0000;
/// What this code knows not to change the meaning of bitmaps. Not among them: compression, and a device that is only a journal.
const INCOMPAT_KNOWN: u32 = INCOMPAT_FILETYPE
    | INCOMPAT_RECOVER
    | INCOMPAT_META_BG
    | INCOMPAT_EXTENTS
    | INCOMPAT_64BIT
    | INCOMPAT_MMP
    | INCOMPAT_FLEX_BG
    | INCOMPAT_EA_INODE
    | INCOMPAT_DIRDATA
    | INCOMPAT_CSUM_SEED
    | INCOMPAT_LARGEDIR
    | INCOMPAT_INLINE_DATA
    | INCOMPAT_ENCRYPT
    | INCOMPAT_CASEFOLD;
/// What makes an ext filesystem an ext4 (libblkid's rule).
pub const INCOMPAT_EXT4: u32 = !(INCOMPAT_FILETYPE | INCOMPAT_RECOVER | INCOMPAT_META_BG);

const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
const RO_COMPAT_LARGE_FILE: u32 = 0x2;
const RO_COMPAT_BTREE_DIR: u32 = 0x4;
const RO_COMPAT_GDT_CSUM: u32 = 0x10;
const RO_COMPAT_BIGALLOC: u32 = 0x200;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
pub const RO_COMPAT_ORPHAN_PRESENT: u32 = 0x1_0000;
/// The same for these: sparse_super, large_file, btree_dir, huge_file, gdt_csum, dir_nlink, extra_isize, quota, bigalloc,
/// metadata_csum, read-only, project, shared_blocks, verity, orphan_present. Not among them: snapshots and replicas.
const RO_COMPAT_KNOWN: u32 = 0x1_FF7F & !0x800;
/// What makes an ext filesystem an ext4.
pub const RO_COMPAT_EXT4: u32 =
    !(RO_COMPAT_SPARSE_SUPER | RO_COMPAT_LARGE_FILE | RO_COMPAT_BTREE_DIR);

const DESCRIPTOR_INODE_UNINIT: u16 = 1;
const DESCRIPTOR_BLOCK_UNINIT: u16 = 2;
/// The first inode that is not reserved in the first revision.
const FIRST_INODE: u64 = 11;
const CREATOR_HURD: u32 = 1;

/// CRC-32C without the final inversion, as the kernel's `crc32c()` computes it.
const CRC32C: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&Algorithm {
    width: 32,
    poly: 0x1edc_6f41,
    init: 0xffff_ffff,
    refin: true,
    refout: true,
    xorout: 0,
    check: 0x1cf9_6d7c,
    residue: 0,
});
/// The kernel's `crc16()`, begun with all ones.
const CRC16: Crc<u16> = Crc::<u16>::new(&CRC_16_MODBUS);

/// Goes on with a CRC-32C.
pub fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    let mut digest = CRC32C.digest_with_initial(seed.reverse_bits());
    digest.update(bytes);
    digest.finalize()
}

/// A parsed superblock. Numbers are as on the disk; [`Superblock::check`] says whether they make sense.
#[derive(Debug, Clone)]
pub struct Superblock {
    pub blocks: u64,
    pub free_blocks: u64,
    pub first_data_block: u64,
    pub block_bytes: u64,
    /// Blocks in a cluster: 1 without bigalloc.
    pub cluster_blocks: u64,
    pub blocks_per_group: u64,
    pub clusters_per_group: u64,
    pub inodes_per_group: u64,
    pub inode_bytes: u64,
    pub descriptor_bytes: u64,
    pub state: u16,
    pub last_orphan: u32,
    /// 0 if the journal is on another device.
    pub journal_inode: u32,
    pub journal_device: u32,
    /// The first that is not reserved.
    pub first_inode: u64,
    creator_os: u32,
    mmp_block: u64,
    reserved_gdt_blocks: u64,
    first_meta_bg: u64,
    backup_bgs: [u64; 2],
    compat: u32,
    incompat: u32,
    ro_compat: u32,
    uuid: [u8; 16],
    label: [u8; 16],
    checksum_type: u8,
    /// Seed of all checksums but the superblock's.
    seed: u32,
    /// Whether the superblock's own checksum is right, if it has one.
    sound: bool,
}

impl Superblock {
    /// `None` without the magic number.
    pub fn parse(bytes: &[u8; LEN]) -> Option<Self> {
        if le16(bytes, 0x38) != MAGIC {
            return None;
        }
        let dynamic = le32(bytes, 0x4C) >= 1;
        // The first revision had no features; its fields beyond 0x54 are not defined.
        let features = |at| if dynamic { le32(bytes, at) } else { 0 };
        let (compat, incompat, ro_compat) = (features(0x5C), features(0x60), features(0x64));
        let wide = incompat & INCOMPAT_64BIT != 0;
        let high = |at| if wide { u64::from(le32(bytes, at)) << 32 } else { 0 };
        let shift = |at| 1024_u64.checked_shl(le32(bytes, at)).unwrap_or(0);
        let block_bytes = shift(0x18);
        let bigalloc = ro_compat & RO_COMPAT_BIGALLOC != 0;
        let cluster_blocks =
            if bigalloc { shift(0x1C).checked_div(block_bytes).unwrap_or(0) } else { 1 };
        let uuid: [u8; 16] = bytes[0x68..0x78].try_into().expect("sixteen bytes");
        let seed =
            if incompat & INCOMPAT_CSUM_SEED != 0 { le32(bytes, 0x270) } else { crc32c(!0, &uuid) };
        let sound = ro_compat & RO_COMPAT_METADATA_CSUM == 0
            || le32(bytes, 0x3FC) == crc32c(!0, &bytes[..0x3FC]);
        Some(Self {
            blocks: u64::from(le32(bytes, 0x4)) | high(0x150),
            free_blocks: u64::from(le32(bytes, 0xC)) | high(0x158),
            first_data_block: u64::from(le32(bytes, 0x14)),
            block_bytes,
            cluster_blocks,
            blocks_per_group: u64::from(le32(bytes, 0x20)),
            clusters_per_group: u64::from(le32(bytes, if bigalloc { 0x24 } else { 0x20 })),
            inodes_per_group: u64::from(le32(bytes, 0x28)),
            inode_bytes: if dynamic { u64::from(le16(bytes, 0x58)) } else { 128 },
            descriptor_bytes: if wide { u64::from(le16(bytes, 0xFE)) } else { 32 },
            state: le16(bytes, 0x3A),
            last_orphan: if dynamic { le32(bytes, 0xE8) } else { 0 },
            journal_inode: if dynamic { le32(bytes, 0xE0) } else { 0 },
            journal_device: if dynamic { le32(bytes, 0xE4) } else { 0 },
            first_inode: if dynamic { u64::from(le32(bytes, 0x54)) } else { FIRST_INODE },
            creator_os: le32(bytes, 0x48),
            mmp_block: le64(bytes, 0x168),
            reserved_gdt_blocks: if dynamic { u64::from(le16(bytes, 0xCE)) } else { 0 },
            first_meta_bg: u64::from(le32(bytes, 0x104)),
            backup_bgs: [u64::from(le32(bytes, 0x24C)), u64::from(le32(bytes, 0x250))],
            compat,
            incompat,
            ro_compat,
            uuid,
            label: bytes[0x78..0x88].try_into().expect("sixteen bytes"),
            checksum_type: bytes[0x175],
            seed,
            sound,
        })
    }

    /// Whether the geometry makes sense for a volume of `len_bytes`; after this no arithmetic on it overflows.
    pub fn check(&self, len_bytes: u64) -> Result<(), String> {
        if self.incompat & INCOMPAT_JOURNAL_DEV != 0 {
            return Err("it is the journal of another filesystem".into());
        }
        let unknown = self.incompat & !INCOMPAT_KNOWN;
        if unknown != 0 {
            return Err(format!(
                "it has incompatible features that are not known here ({unknown:#x})"
            ));
        }
        let unknown = self.ro_compat & !RO_COMPAT_KNOWN;
        if unknown != 0 {
            return Err(format!("it has features that are not known here ({unknown:#x})"));
        }
        if !self.sound || (self.has_ro_compat(RO_COMPAT_METADATA_CSUM) && self.checksum_type != 1) {
            return Err("the checksum of the superblock is wrong or of an unknown type".into());
        }
        let sane = self.block_bytes.is_power_of_two()
            && (1024..=65536).contains(&self.block_bytes)
            && (1..=65536).contains(&self.cluster_blocks)
            && self.cluster_blocks.is_power_of_two()
            && (8..=self.block_bytes * 8).contains(&self.clusters_per_group)
            && self.clusters_per_group.is_multiple_of(8)
            && self.blocks_per_group == self.clusters_per_group * self.cluster_blocks
            && self.first_data_block
                == u64::from(self.block_bytes == 1024 && self.cluster_blocks == 1)
            && self.first_data_block < self.blocks
            && self.free_blocks <= self.blocks
            && self.mmp_block().is_none_or(|block| block < self.blocks)
            && self.inodes_per_group > 0
            && self.inodes_per_group <= self.block_bytes * 8
            && (128..=self.block_bytes).contains(&self.inode_bytes)
            && self.inode_bytes.is_power_of_two()
            && (32..=1024).contains(&self.descriptor_bytes)
            && (self.descriptor_bytes == 32 || self.descriptor_bytes >= 64)
            && self.descriptor_bytes.is_power_of_two();
        if !sane {
            return Err("the superblock's numbers contradict each other".into());
        }
        match self.blocks.checked_mul(self.block_bytes) {
            Some(bytes) if bytes <= len_bytes => Ok(()),
            _ => Err(format!(
                "it claims {} blocks of {} bytes, more than the {len_bytes} bytes that hold it",
                self.blocks, self.block_bytes
            )),
        }
    }

    /// Whether another superblock describes the same blocks and groups.
    pub fn has_geometry_of(&self, other: &Self) -> bool {
        let sizes = |sb: &Self| {
            [sb.blocks, sb.first_data_block, sb.block_bytes, sb.cluster_blocks, sb.blocks_per_group]
        };
        let tables = |sb: &Self| [sb.inodes_per_group, sb.inode_bytes, sb.descriptor_bytes];
        sizes(self) == sizes(other) && tables(self) == tables(other)
    }

    pub fn has_compat(&self, bits: u32) -> bool {
        self.compat & bits != 0
    }

    pub fn has_incompat(&self, bits: u32) -> bool {
        self.incompat & bits != 0
    }

    pub fn has_ro_compat(&self, bits: u32) -> bool {
        self.ro_compat & bits != 0
    }

    /// Whether block numbers may be longer than 32 bits.
    pub fn is_wide(&self) -> bool {
        self.has_incompat(INCOMPAT_64BIT)
    }

    pub fn is_of_hurd(&self) -> bool {
        self.creator_os == CREATOR_HURD
    }

    /// The block by which systems that share the disk keep each other from mounting it.
    pub fn mmp_block(&self) -> Option<u64> {
        self.has_incompat(INCOMPAT_MMP).then_some(self.mmp_block)
    }

    pub fn uuid(&self) -> Option<String> {
        (self.uuid != [0; 16]).then(|| uuid::Uuid::from_bytes(self.uuid).to_string())
    }

    pub fn label(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.label);
        let text = text.split('\0').next().unwrap_or_default();
        (!text.is_empty()).then(|| text.to_owned())
    }

    pub fn cluster_bytes(&self) -> u64 {
        self.cluster_blocks * self.block_bytes
    }

    pub fn groups(&self) -> u64 {
        (self.blocks - self.first_data_block).div_ceil(self.blocks_per_group)
    }

    /// First block of a group.
    pub fn group_start(&self, group: u64) -> u64 {
        self.first_data_block + group * self.blocks_per_group
    }

    /// Clusters in a group; the last group may have fewer.
    pub fn clusters_in_group(&self, group: u64) -> u64 {
        let blocks = (self.blocks - self.group_start(group)).min(self.blocks_per_group);
        blocks.div_ceil(self.cluster_blocks)
    }

    pub fn inode_table_blocks(&self) -> u64 {
        (self.inodes_per_group * self.inode_bytes).div_ceil(self.block_bytes)
    }

    /// Where the superblock is, as a block number.
    fn superblock_block(&self) -> u64 {
        OFFSET / self.block_bytes
    }

    fn descriptors_per_block(&self) -> u64 {
        self.block_bytes / self.descriptor_bytes
    }

    /// Block that holds the `index`th block of descriptors (`descriptor_loc()` in fs/ext4/super.c).
    pub fn descriptor_block(&self, index: u64) -> u64 {
        if !self.has_incompat(INCOMPAT_META_BG) || index < self.first_meta_bg {
            return self.superblock_block() + 1 + index;
        }
        let group = index * self.descriptors_per_block();
        // With 1 KiB blocks and clusters, block 0 is the boot block and yet belongs to group 0.
        let boot_block =
            u64::from(self.block_bytes == 1024 && index == 0 && self.first_data_block == 0);
        self.group_start(group) + u64::from(self.has_superblock(group)) + boot_block
    }

    /// A block with a copy of the `index`th block of descriptors, if there is one: in the first group behind the first that has a
    /// copy of the superblock, or in the second of a meta group.
    pub fn descriptor_block_copy(&self, index: u64) -> Option<u64> {
        if self.has_incompat(INCOMPAT_META_BG) && index >= self.first_meta_bg {
            let group = index * self.descriptors_per_block() + 1;
            return (group < self.groups())
                .then(|| self.group_start(group) + u64::from(self.has_superblock(group)));
        }
        let groups = if self.has_compat(COMPAT_SPARSE_SUPER2) { self.backup_bgs } else { [1, 0] };
        let group = groups.into_iter().find(|group| (1..self.groups()).contains(group))?;
        Some(self.group_start(group) + 1 + index)
    }

    /// Whether a group begins with a copy of the superblock (`ext4_bg_has_super()`).
    fn has_superblock(&self, group: u64) -> bool {
        if group == 0 {
            return true;
        }
        if self.has_compat(COMPAT_SPARSE_SUPER2) {
            return self.backup_bgs.contains(&group);
        }
        if group == 1 || !self.has_ro_compat(RO_COMPAT_SPARSE_SUPER) {
            return true;
        }
        [3, 5, 7].iter().any(|root| {
            let mut power: u64 = *root;
            while power < group {
                power *= root;
            }
            power == group
        })
    }

    /// Blocks at a group's start that hold the superblock, descriptors and their reserve (`ext4_num_base_meta_blocks()`).
    pub fn base_metadata_blocks(&self, group: u64) -> u64 {
        let superblock = u64::from(self.has_superblock(group));
        let meta_bg = self.has_incompat(INCOMPAT_META_BG);
        let per_block = self.descriptors_per_block();
        // With 1 KiB blocks and clusters, group 0 begins with the boot block.
        let boot_block =
            u64::from(group == 0 && self.first_data_block == 0 && self.block_bytes == 1024);
        if !meta_bg || group < self.first_meta_bg.saturating_mul(per_block) {
            if superblock == 0 {
                return 0;
            }
            let tables =
                if meta_bg { self.first_meta_bg } else { self.groups().div_ceil(per_block) };
            return boot_block + superblock + tables + self.reserved_gdt_blocks;
        }
        let within = group % per_block;
        let table = u64::from(within == 0 || within == 1 || within == per_block - 1);
        boot_block + superblock + table
    }

    pub fn bitmap_seed(&self) -> Option<u32> {
        self.has_ro_compat(RO_COMPAT_METADATA_CSUM).then_some(self.seed)
    }
}

/// A parsed group descriptor whose checksum and block numbers were checked.
#[derive(Debug, Clone)]
pub struct Descriptor {
    pub block_bitmap: u64,
    pub inode_bitmap: u64,
    pub inode_table: u64,
    pub free_clusters: u64,
    pub free_inodes: u64,
    /// How many at the end of the inode table were never used.
    pub unused_inodes: u64,
    /// The inode bitmap was never written: no inode is used.
    pub inode_uninit: bool,
    /// The block bitmap was never written: nothing but the group's own metadata is used.
    pub block_uninit: bool,
    /// Checksum of the block bitmap, and how many of its bits are stored.
    pub bitmap_checksum: (u32, u32),
}

impl Descriptor {
    pub fn parse(sb: &Superblock, group: u64, bytes: &[u8]) -> Result<Self, String> {
        let wide = sb.descriptor_bytes >= 64;
        let high32 = |at| if wide { u64::from(le32(bytes, at)) << 32 } else { 0 };
        let high16 = |at| if wide { u32::from(le16(bytes, at)) << 16 } else { 0 };
        let count = |low, high| u64::from(u32::from(le16(bytes, low)) | high16(high));
        let checksummed = sb.has_ro_compat(RO_COMPAT_GDT_CSUM | RO_COMPAT_METADATA_CSUM);
        if checksummed && le16(bytes, 0x1E) != checksum(sb, group, bytes) {
            return Err(format!("the checksum of the descriptor of group {group} is wrong"));
        }
        let flag = |flag| checksummed && le16(bytes, 0x12) & flag != 0;
        let descriptor = Self {
            block_bitmap: u64::from(le32(bytes, 0)) | high32(0x20),
            inode_bitmap: u64::from(le32(bytes, 4)) | high32(0x24),
            inode_table: u64::from(le32(bytes, 8)) | high32(0x28),
            free_clusters: count(0xC, 0x2C),
            free_inodes: count(0xE, 0x2E),
            unused_inodes: if checksummed { count(0x1C, 0x32) } else { 0 },
            inode_uninit: flag(DESCRIPTOR_INODE_UNINIT),
            block_uninit: flag(DESCRIPTOR_BLOCK_UNINIT),
            bitmap_checksum: (
                u32::from(le16(bytes, 0x18)) | high16(0x38),
                if wide { 32 } else { 16 },
            ),
        };
        let inside = |block: u64, count: u64| {
            block > 0
                && block >= sb.first_data_block
                && block.checked_add(count).is_some_and(|end| end <= sb.blocks)
        };
        if !inside(descriptor.block_bitmap, 1)
            || !inside(descriptor.inode_bitmap, 1)
            || !inside(descriptor.inode_table, sb.inode_table_blocks())
        {
            return Err(format!("the descriptor of group {group} points outside the filesystem"));
        }
        Ok(descriptor)
    }
}

fn checksum(sb: &Superblock, group: u64, bytes: &[u8]) -> u16 {
    let number = u32::try_from(group).unwrap_or(u32::MAX).to_le_bytes();
    if sb.has_ro_compat(RO_COMPAT_METADATA_CSUM) {
        let mut copy = bytes.to_vec();
        copy[0x1E..0x20].fill(0);
        let crc = crc32c(crc32c(sb.seed, &number), &copy);
        return u16::try_from(crc & 0xFFFF).expect("sixteen bits");
    }
    let mut digest = CRC16.digest();
    digest.update(&sb.uuid);
    digest.update(&number);
    digest.update(&bytes[..0x1E]);
    digest.update(&bytes[0x20..]);
    digest.finalize()
}
