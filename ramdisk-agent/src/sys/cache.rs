//! What the page cache holds of a file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// `struct cachestat_range` of linux/mman.h.
#[repr(C)]
struct Asked {
    offset: u64,
    len_bytes: u64,
}

/// `struct cachestat` of linux/mman.h: numbers of pages.
#[repr(C)]
#[derive(Default)]
struct Told {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// How many bytes of a range of a file or a block device are in its page cache, in whole pages (`cachestat`). `ENOSYS` before Linux 6.5,
/// `EOPNOTSUPP` for huge pages.
pub fn cached_bytes(file: &File, range: Range<u64>) -> io::Result<u64> {
    // To the kernel a length of 0 is everything from there on.
    let Some(len_bytes) = range.end.checked_sub(range.start).filter(|len| *len > 0) else {
        return Ok(0);
    };
    let asked = Asked { offset: range.start, len_bytes };
    let mut told = Told::default();
    // SAFETY: cachestat reads one struct and writes the other, both of which live until the call returns and have the layout of
    // linux/mman.h; it has no flags yet.
    let done = unsafe {
        libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const asked, &raw mut told, 0)
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(told.cached.saturating_mul(rustix::param::page_size() as u64))
}

/// The same wherever new calls have one number, which is all but alpha and mips; the C library's header may not have it yet.
const SYS_CACHESTAT: libc::c_long = 451;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_in_the_cache_and_what_nobody_read_is_not() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        assert_eq!(cached_bytes(&file, 0..8 << 20).unwrap(), 0);
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 1 << 20], 1 << 20).unwrap();
        assert_eq!(cached_bytes(&file, 0..8 << 20).unwrap(), 1 << 20);
        assert_eq!(cached_bytes(&file, 1 << 20..2 << 20).unwrap(), 1 << 20);
        assert_eq!(cached_bytes(&file, 2 << 20..8 << 20).unwrap(), 0);
        assert_eq!(cached_bytes(&file, 1 << 20..1 << 20).unwrap(), 0);
    }
}
