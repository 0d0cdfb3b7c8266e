//! Loop devices: a part of a file or of a disk as a block device of its own.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

mod ioctl {
    nix::ioctl_none_bad!(ctl_get_free, 0x4C82);
    nix::ioctl_read_bad!(get_status, 0x4C05, super::LoopInfo);
    nix::ioctl_write_int_bad!(set_direct_io, 0x4C08);
    nix::ioctl_write_ptr_bad!(configure, 0x4C0A, super::LoopConfig);
}

/// `struct loop_info64` of `linux/loop.h`.
#[repr(C)]
#[derive(Debug)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

impl LoopInfo {
    fn of(offset: u64, size_limit: u64, flags: u32) -> Self {
        Self {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset,
            size_limit,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

/// `struct loop_config` of `linux/loop.h`.
#[repr(C)]
#[derive(Debug)]
pub struct LoopConfig {
    fd: u32,
    block_bytes: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// The device goes away with its last user (`LO_FLAGS_AUTOCLEAR`), be it that this program was killed.
const AUTOCLEAR: u32 = 4;

/// The number of a loop device that nobody uses, made if there is none (`LOOP_CTL_GET_FREE`). `control` is `/dev/loop-control`.
pub fn free_number(control: &File) -> io::Result<i32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument.
    Ok(unsafe { ioctl::ctl_get_free(control.as_raw_fd()) }?)
}

/// Whether the device reads and writes its file past the file's page cache (`LOOP_SET_DIRECT_IO`). What is in that cache is written
/// back first. `EINVAL` where the filesystem beneath cannot, or has larger blocks than the device.
pub fn set_direct(device: &File, on: bool) -> io::Result<()> {
    // SAFETY: LOOP_SET_DIRECT_IO takes a number and no pointer.
    unsafe { ioctl::set_direct_io(device.as_raw_fd(), i32::from(on)) }?;
    Ok(())
}

/// What is behind a loop device, whatever leads there now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backing {
    /// The device number of the filesystem that the file is on.
    pub device: u64,
    /// The file's inode.
    pub inode: u64,
    /// The device number that it is the node of; 0: it is a regular file.
    pub rdevice: u64,
}

/// What is behind a loop device (`LOOP_GET_STATUS64`). Looks at the file: where a server or a program answers for it, that may take as long as
/// they do.
pub fn backing(device: &File) -> io::Result<Backing> {
    let mut info = LoopInfo::of(0, 0, 0);
    // SAFETY: LOOP_GET_STATUS64 writes one struct loop_info64 through the pointer, which lives until the call returns and whose
    // layout is that of linux/loop.h; any bytes are a valid value of it.
    unsafe { ioctl::get_status(device.as_raw_fd(), &raw mut info) }?;
    // The kernel's own encoding of device numbers is that of the C library's.
    Ok(Backing { device: info.device, inode: info.inode, rdevice: info.rdevice })
}

/// Puts `len` bytes of `backing`, from `offset` on, behind a loop device (`LOOP_CONFIGURE`, Linux 5.8). `EBUSY` if somebody else was
/// faster.
pub fn configure(
    device: &File,
    backing: &File,
    offset: u64,
    len: u64,
    block_bytes: u32,
) -> io::Result<()> {
    let config = LoopConfig {
        fd: u32::try_from(backing.as_raw_fd()).expect("a descriptor is not negative"),
        block_bytes,
        info: LoopInfo::of(offset, len, AUTOCLEAR),
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads one struct loop_config through the pointer, which lives until the call returns and whose layout
    // is that of linux/loop.h.
    unsafe { ioctl::configure(device.as_raw_fd(), &raw const config) }?;
    Ok(())
}
