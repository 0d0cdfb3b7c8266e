//! Block device ioctls, as in `linux/fs.h` and `linux/blkpg.h`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

mod ioctl {
    nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
    nix::ioctl_read_bad!(blksszget, 0x1268, i32);
    nix::ioctl_none!(blkrrpart, 0x12, 95);
    nix::ioctl_none!(blkflsbuf, 0x12, 97);
    nix::ioctl_write_ptr_bad!(blkzeroout, 0x127f, [u64; 2]);
    nix::ioctl_write_ptr_bad!(blkpg, 0x1269, super::BlkpgIoctlArg);
}

/// Size in bytes (`BLKGETSIZE64`).
pub fn size_bytes(device: &File) -> io::Result<u64> {
    let mut size = 0_u64;
    // SAFETY: BLKGETSIZE64 writes one u64 through the pointer, which is valid and aligned for the call.
    unsafe { ioctl::blkgetsize64(device.as_raw_fd(), &raw mut size) }?;
    Ok(size)
}

/// Logical sector size in bytes (`BLKSSZGET`).
pub fn logical_sector_bytes(device: &File) -> io::Result<u32> {
    let mut size = 0_i32;
    // SAFETY: BLKSSZGET writes one int through the pointer, which is valid and aligned for the call.
    unsafe { ioctl::blksszget(device.as_raw_fd(), &raw mut size) }?;
    u32::try_from(size).map_err(|_| io::Error::other("the kernel gave a negative sector size"))
}

/// Asks the kernel to read the partition table again (`BLKRRPART`). `EBUSY` while a partition is in use.
pub fn reread_partitions(device: &File) -> io::Result<()> {
    // SAFETY: BLKRRPART takes no argument.
    unsafe { ioctl::blkrrpart(device.as_raw_fd()) }?;
    Ok(())
}

/// Writes back and drops the device's page cache (`BLKFLSBUF`), so that the next buffered read comes from the medium.
pub fn drop_cache(device: &File) -> io::Result<()> {
    // SAFETY: BLKFLSBUF takes no argument.
    unsafe { ioctl::blkflsbuf(device.as_raw_fd()) }?;
    Ok(())
}

/// Makes a range read as zeros (`BLKZEROOUT`): the device's own command where it has one, written zeros where not. Start and
/// length are multiples of the logical sector.
pub fn zero_out(device: &File, start: u64, len: u64) -> io::Result<()> {
    let range = [start, len];
    // SAFETY: BLKZEROOUT reads two u64 (start, length) through the pointer, which is valid for the call.
    unsafe { ioctl::blkzeroout(device.as_raw_fd(), &raw const range) }?;
    Ok(())
}

/// `struct blkpg_ioctl_arg` of `linux/blkpg.h`.
#[repr(C)]
#[derive(Debug)]
pub struct BlkpgIoctlArg {
    op: i32,
    flags: i32,
    datalen: i32,
    data: *mut BlkpgPartition,
}

/// `struct blkpg_partition` of `linux/blkpg.h`.
#[repr(C)]
#[derive(Debug)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    pno: i32,
    devname: [u8; 64],
    volname: [u8; 64],
}

const BLKPG_ADD_PARTITION: i32 = 1;
const BLKPG_DEL_PARTITION: i32 = 2;

fn blkpg(device: &File, op: i32, number: i32, start: i64, length: i64) -> io::Result<()> {
    let mut partition =
        BlkpgPartition { start, length, pno: number, devname: [0; 64], volname: [0; 64] };
    let datalen = i32::try_from(size_of::<BlkpgPartition>()).expect("152 bytes fit");
    let argument = BlkpgIoctlArg { op, flags: 0, datalen, data: &raw mut partition };
    // SAFETY: BLKPG reads the argument and the partition that it points to; both live until the call returns, and their
    // layout is that of linux/blkpg.h.
    unsafe { ioctl::blkpg(device.as_raw_fd(), &raw const argument) }?;
    Ok(())
}

/// Makes a partition known to the kernel without reading a table from the disk (`BLKPG_ADD_PARTITION`).
pub fn add_partition(device: &File, number: i32, start: i64, length: i64) -> io::Result<()> {
    blkpg(device, BLKPG_ADD_PARTITION, number, start, length)
}

/// Makes the kernel forget a partition (`BLKPG_DEL_PARTITION`).
pub fn delete_partition(device: &File, number: i32) -> io::Result<()> {
    blkpg(device, BLKPG_DEL_PARTITION, number, 0, 0)
}
