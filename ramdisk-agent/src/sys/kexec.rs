//! kexec: another kernel into memory, to be started by reboot(2).

use std::ffi::CStr;
use std::fs::File;
use std::io;

/// Loads a kernel with its initial RAM disk and command line (`kexec_file_load(2)`, Linux 3.17). Both files are read by the kernel
/// during the call, must be regular ones, and must not be open for writing. Needs `CAP_SYS_BOOT`.
pub fn load(kernel: &File, initrd: Option<&File>, command_line: &CStr) -> io::Result<()> {
    arch::load(kernel, initrd, command_line)
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod arch {
    use std::ffi::CStr;
    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd;

    /// `KEXEC_FILE_NO_INITRAMFS` of `linux/kexec.h`.
    const NO_INITRAMFS: libc::c_ulong = 4;

    pub fn load(kernel: &File, initrd: Option<&File>, command_line: &CStr) -> io::Result<()> {
        let text = command_line.to_bytes_with_nul();
        let flags = if initrd.is_some() { 0 } else { NO_INITRAMFS };
        // SAFETY: kexec_file_load(2) reads two open files and `text.len()` bytes of `text`, the last of which is zero; all outlive
        // the call. It changes no memory of this process.
        let result = unsafe {
            libc::syscall(
                libc::SYS_kexec_file_load,
                kernel.as_raw_fd(),
                initrd.map_or(-1, AsRawFd::as_raw_fd),
                text.len(),
                text.as_ptr(),
                flags,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod arch {
    use std::ffi::CStr;
    use std::fs::File;
    use std::io;

    pub fn load(_: &File, _: Option<&File>, _: &CStr) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ENOSYS))
    }
}
