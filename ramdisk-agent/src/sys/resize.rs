//! The kernel's own online resize of ext4, XFS and btrfs. Each takes a descriptor of the mounted filesystem's root.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

mod ioctl {
    nix::ioctl_write_ptr!(ext4_resize_fs, b'f', 16, u64);
    nix::ioctl_read!(xfs_geometry, b'X', 100, super::XfsGeometry);
    nix::ioctl_write_ptr!(xfs_grow_data, b'X', 110, super::XfsGrowData);
    nix::ioctl_write_ptr!(btrfs_resize, 0x94, 3, super::BtrfsVolArgs);
}

/// `struct xfs_fsop_geom_v1` of `xfs/libxfs/xfs_fs.h`: what XFS says of itself.
#[repr(C)]
#[derive(Debug, Default)]
pub struct XfsGeometry {
    /// Bytes in a block.
    pub block_bytes: u32,
    rt_extent_bytes: u32,
    ag_blocks: u32,
    ag_count: u32,
    log_blocks: u32,
    sector_bytes: u32,
    inode_bytes: u32,
    /// The most of the filesystem in per cent that inodes may take.
    pub max_inode_percent: u32,
    /// Blocks of the data section.
    pub data_blocks: u64,
    rt_blocks: u64,
    rt_extents: u64,
    log_start: u64,
    uuid: [u8; 16],
    stripe_unit: u32,
    stripe_width: u32,
    version: i32,
    flags: u32,
    log_sector_bytes: u32,
    rt_sector_bytes: u32,
    dir_block_bytes: u32,
}

/// `struct xfs_growfs_data` of `xfs/libxfs/xfs_fs.h`.
#[repr(C)]
#[derive(Debug)]
pub struct XfsGrowData {
    new_blocks: u64,
    max_inode_percent: u32,
}

const BTRFS_NAME_LEN: usize = 4088;

/// `struct btrfs_ioctl_vol_args` of `linux/btrfs.h`.
#[repr(C)]
#[derive(Debug)]
pub struct BtrfsVolArgs {
    fd: i64,
    name: [u8; BTRFS_NAME_LEN],
}

/// Resizes ext2, ext3 or ext4 to a number of blocks (`EXT4_IOC_RESIZE_FS`).
pub fn ext4(root: &File, blocks: u64) -> io::Result<()> {
    // SAFETY: EXT4_IOC_RESIZE_FS reads one u64 through the pointer, which is valid for the call.
    unsafe { ioctl::ext4_resize_fs(root.as_raw_fd(), &raw const blocks) }?;
    Ok(())
}

/// Asks XFS for its geometry (`XFS_IOC_FSGEOMETRY_V1`).
pub fn xfs_geometry(root: &File) -> io::Result<XfsGeometry> {
    let mut geometry = XfsGeometry::default();
    // SAFETY: XFS_IOC_FSGEOMETRY_V1 writes one struct xfs_fsop_geom_v1 through the pointer, which is valid for the call; the layout
    // is that of the kernel's header, its size being part of the request's number.
    unsafe { ioctl::xfs_geometry(root.as_raw_fd(), &raw mut geometry) }?;
    Ok(geometry)
}

/// Grows XFS to a number of blocks (`XFS_IOC_FSGROWFSDATA`).
pub fn xfs(root: &File, blocks: u64, max_inode_percent: u32) -> io::Result<()> {
    let data = XfsGrowData { new_blocks: blocks, max_inode_percent };
    // SAFETY: XFS_IOC_FSGROWFSDATA reads one struct xfs_growfs_data through the pointer, which is valid for the call.
    unsafe { ioctl::xfs_grow_data(root.as_raw_fd(), &raw const data) }?;
    Ok(())
}

/// Resizes a device of a btrfs to all that it has (`BTRFS_IOC_RESIZE` with `ID:max`).
pub fn btrfs(root: &File, device_id: u64) -> io::Result<()> {
    let mut arguments = BtrfsVolArgs { fd: 0, name: [0; BTRFS_NAME_LEN] };
    let text = format!("{device_id}:max");
    arguments.name[..text.len()].copy_from_slice(text.as_bytes());
    // SAFETY: BTRFS_IOC_RESIZE reads one struct btrfs_ioctl_vol_args through the pointer, which is valid for the call; the name ends
    // with a zero.
    unsafe { ioctl::btrfs_resize(root.as_raw_fd(), &raw const arguments) }?;
    Ok(())
}
