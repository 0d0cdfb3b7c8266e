//! The kernel of a restored system into memory, so that the machine starts it without going through its firmware.
//!
//! `imprint-agent load-kernel` gets a job that is done on standard input, looks at its disk read-only, finds what its boot loader would
//! start (`kexec/find.rs`), and has the running kernel load that (`kexec_file_load`). It runs in a child of PID 1 like a job, since the
//! disk's filesystems and configurations are not trusted; the supervisor then starts the loaded kernel, or reboots plainly where this
//! failed. Nothing is changed on the disk. What is not sure is refused: firmware gets it right.

mod bls;
mod find;
mod grub;

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use agent_api::{JobSpec, Selector};
use rustix::fs::MemfdFlags;

use crate::disk::{self, Disk};
use crate::error::{Error, IoContext, Result};
use crate::fs::{self, FsKind};
use crate::mounted::{self, Access, Mounted};
use crate::sys;
use crate::table::{self, TableOutcome};

use find::{Found, Volume};

/// A job's text is a few hundred bytes; with files for the restored system up to a megabyte.
const MAX_JOB_LEN: u64 = 1 << 20;
/// Kernels have some 15 MB, uncompressed ones 60.
const MAX_KERNEL: u64 = 256 << 20;
/// Initial RAM disks have some 100 MB; all of one system together.
const MAX_INITRD: u64 = 1 << 30;
/// The longest command line of x86 and arm64 (`COMMAND_LINE_SIZE`), with its end.
const MAX_COMMAND_LINE: usize = 2048;
/// What the machine needs beside the two copies that the kernel makes while it loads.
const SPARE_MEMORY: u64 = 64 << 20;
/// Initial RAM disks begin at multiples of this when they are put together (`Documentation/driver-api/early-userspace/buffer-format.rst`).
const CPIO_ALIGN: u64 = 4;
/// More filesystems than this are not looked at.
const MAX_VOLUMES: usize = 32;

/// What a boot loader would start. Paths are absolute, in one filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What its menu calls it.
    pub name: String,
    /// The kernel.
    pub kernel: String,
    /// What is put together to its initial RAM disk.
    pub initrds: Vec<String>,
    /// Its command line.
    pub command_line: String,
}

/// Loads the kernel of the system on the disk of the job on standard input, and says on standard output which it is.
///
/// # Errors
/// If it is not sure what to start, or the running kernel refuses.
pub fn load_stdin() -> Result<()> {
    let mut text = String::new();
    io::stdin()
        .take(MAX_JOB_LEN)
        .read_to_string(&mut text)
        .internal(|| "reading the job from standard input".into())?;
    let job = JobSpec::read(&text)
        .map_err(|e| Error::refused(format!("the job on standard input: {e}")))?;
    let selector = match &job.disk {
        Some(text) => disk::selector(text)?,
        None => Selector::Only,
    };
    let disk = Disk::open_source(&disk::resolve(&selector, &disk::inventory())?)?;
    let what = load_from(&disk)?;
    writeln!(io::stdout().lock(), "{what}").internal(|| "saying which kernel was loaded".into())
}

fn load_from(disk: &Disk) -> Result<String> {
    let mut mounts = Vec::new();
    let mut volumes = Vec::new();
    let mut unread = String::new();
    for part in parts(disk)? {
        // One that cannot be mounted is none that a boot loader's files are found in.
        match Mounted::new(disk, part.start, part.len, part.kind, Access::Read) {
            Ok(mounted) => {
                volumes.push(Volume {
                    name: part.name,
                    uuid: part.uuid,
                    is_btrfs: part.kind == FsKind::Btrfs,
                    root: mounted.open_root()?.into(),
                });
                mounts.push(mounted);
            }
            Err(e) => unread.push_str(&format!("; {}", e.chain())),
        }
    }
    let found = find::find(&volumes).map_err(|why| Error::refused(why + &unread));
    let loaded = found.and_then(|found| load(&found));
    drop(volumes);
    for mounted in mounts {
        // Nothing was written; and whatever is left is gone with this process.
        if let Err(e) = mounted.close() {
            crate::words::note(&e.chain());
        }
    }
    loaded
}

/// A filesystem on a disk.
struct Part {
    name: String,
    kind: FsKind,
    uuid: Option<String>,
    start: u64,
    len: u64,
}

fn parts(disk: &Disk) -> Result<Vec<Part>> {
    let len = disk.len_bytes();
    let reading = || format!("reading {}", disk.path().display());
    let table = table::read_table(&mut disk.window(0, len), len, disk.logical_sector_bytes())
        .on_disk(reading)?;
    let table = match table {
        TableOutcome::Table(table) => table,
        TableOutcome::Refused(refusal) => {
            return Err(Error::refused(format!("its partition table cannot be used: {refusal}")));
        }
    };
    let mut places: Vec<(Option<u32>, u64, u64)> =
        table.partitions.iter().map(|p| (Some(p.number), p.start_bytes, p.len_bytes)).collect();
    if places.is_empty() {
        places.push((None, 0, len));
    }
    let mut found = Vec::new();
    for (number, start, len) in places {
        let Some(held) = fs::identify(&mut disk.window(start, len), len).on_disk(reading)? else {
            continue;
        };
        if mounted::is_readable(held.kind) {
            let name = match number {
                Some(number) => format!("partition {number} ({})", held.kind),
                None => format!("the {}", held.kind),
            };
            found.push(Part { name, kind: held.kind, uuid: held.uuid, start, len });
        }
        if found.len() > MAX_VOLUMES {
            return Err(Error::refused(format!("it has more than {MAX_VOLUMES} filesystems")));
        }
    }
    Ok(found)
}

/// Has the running kernel load what was found; what that is.
fn load(found: &Found<'_>) -> Result<String> {
    let Found { volume, entry } = found;
    let kernel = open(volume, &entry.kernel, MAX_KERNEL)?;
    let initrds = entry
        .initrds
        .iter()
        .map(|path| open(volume, path, MAX_INITRD))
        .collect::<Result<Vec<_>>>()?;
    let initrd_bytes: u64 = initrds.iter().map(|(_, len)| len).sum();
    if initrd_bytes > MAX_INITRD {
        return Err(Error::refused(format!(
            "its initial RAM disks have {initrd_bytes} bytes, more than {MAX_INITRD}"
        )));
    }
    let command_line = CString::new(entry.command_line.as_str())
        .map_err(|_| Error::refused("its command line has a zero in it"))?;
    if command_line.as_bytes_with_nul().len() > MAX_COMMAND_LINE {
        return Err(Error::refused(format!(
            "its command line has more than {} characters",
            MAX_COMMAND_LINE - 1
        )));
    }
    // While it loads, the kernel has each file twice; several files are put together in memory before.
    let copies = if initrds.len() > 1 { 3 } else { 2 };
    let needed = 2 * kernel.1 + copies * initrd_bytes + SPARE_MEMORY;
    if let Some(available) = available_memory()
        && available < needed
    {
        return Err(Error::refused(format!(
            "there is too little memory for it: loading it takes {needed} bytes, and {available} are available"
        )));
    }
    let joined;
    let initrd = match initrds.as_slice() {
        [] => None,
        [(only, _)] => Some(only),
        several => {
            joined = join(several).internal(|| "putting its initial RAM disks together".into())?;
            Some(&joined)
        }
    };
    sys::kexec::load(&kernel.0, initrd, &command_line)
        .map_err(|e| refused_by_kernel(&entry.kernel, e))?;
    Ok(format!(
        "{} of {}, '{}'",
        entry.kernel.escape_debug(),
        volume.name,
        entry.name.escape_debug()
    ))
}

fn open(volume: &Volume, path: &str, limit: u64) -> Result<(File, u64)> {
    let shown = format!("{} of {}", path.escape_debug(), volume.name);
    let file = volume.open(path).on_disk(|| format!("opening {shown}"))?;
    let file = file.ok_or_else(|| Error::refused(format!("there is no {shown}")))?;
    let len = file.metadata().on_disk(|| format!("looking at {shown}"))?.len();
    match len {
        0 => Err(Error::refused(format!("{shown} is empty"))),
        _ if len > limit => {
            Err(Error::refused(format!("{shown} has {len} bytes, more than {limit}")))
        }
        _ => Ok((file, len)),
    }
}

/// Files one behind the other, as a file in memory that nobody can write to any more.
fn join(files: &[(File, u64)]) -> io::Result<File> {
    let mut joined = File::from(rustix::fs::memfd_create("initrd", MemfdFlags::CLOEXEC)?);
    let mut at: u64 = 0;
    for (file, len) in files {
        let padding = [0; 4];
        let missing = usize::try_from(at.next_multiple_of(CPIO_ALIGN) - at).unwrap_or(0);
        joined.write_all(&padding[..missing])?;
        let copied = io::copy(&mut file.take(*len), &mut joined)?;
        at += missing as u64 + copied;
    }
    // The kernel refuses to load a file that is open for writing.
    File::open(Path::new("/proc/self/fd").join(joined.as_raw_fd().to_string()))
}

/// Memory that can be had without swapping, in bytes; `None` if the kernel does not say.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// Why the running kernel does not load another, in words.
fn refused_by_kernel(kernel: &str, e: io::Error) -> Error {
    let why = match e.raw_os_error() {
        Some(libc::ENOSYS) => "the agent's kernel was built without kexec_file_load",
        Some(libc::EPERM) => {
            "the agent's kernel forbids it: it is locked down (Secure Boot), or kernel.kexec_load_disabled is set"
        }
        Some(libc::EKEYREJECTED | libc::ENOKEY | libc::EBADMSG | libc::ENODATA | libc::ENOPKG) => {
            "the agent's kernel wants kernels that are signed by a key that it knows (Secure Boot)"
        }
        Some(libc::ENOEXEC) => "it is of no format that the agent's kernel can start",
        Some(libc::ENOMEM | libc::EADDRNOTAVAIL) => "there is no room in memory for it",
        Some(libc::EBUSY) => "another kernel is being loaded",
        _ => "the agent's kernel does not load it",
    };
    Error::refused(format!("loading {}: {why}", kernel.escape_debug())).because(e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_ram_disks_are_aligned_and_cannot_be_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<(File, u64)> = ["abcde", "fg"]
            .iter()
            .map(|text| {
                let path = dir.path().join(text);
                std::fs::write(&path, text).unwrap();
                (File::open(path).unwrap(), text.len() as u64)
            })
            .collect();
        let mut joined = join(&files).unwrap();
        let mut bytes = Vec::new();
        joined.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"abcde\0\0\0fg");
        joined.write_all(b"x").unwrap_err();
    }

    #[test]
    fn memory_is_counted() {
        assert!(available_memory().unwrap() > 1 << 20);
    }

    #[test]
    fn a_kernels_files_are_within_limits() {
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume {
            name: "root".into(),
            uuid: None,
            is_btrfs: false,
            root: File::open(dir.path()).unwrap().into(),
        };
        let load = |kernel: &str, command_line: &str| {
            let (kernel, command_line) = (kernel.to_owned(), command_line.to_owned());
            let entry =
                Entry { name: "a".into(), kernel, initrds: vec!["/i".into()], command_line };
            load(&Found { volume: &volume, entry }).unwrap_err().chain()
        };
        assert!(load("/k", "").contains("there is no /k of root"));
        std::fs::write(dir.path().join("k"), "").unwrap();
        assert!(load("/k", "").contains("is empty"));
        File::create(dir.path().join("k")).unwrap().set_len(MAX_KERNEL + 1).unwrap();
        assert!(load("/k", "").contains("more than 268435456"));
        std::fs::write(dir.path().join("k"), "no kernel").unwrap();
        assert!(load("/k", "").contains("there is no /i of root"));
        std::fs::write(dir.path().join("i"), "no initrd").unwrap();
        assert!(load("/k", &"x".repeat(MAX_COMMAND_LINE)).contains("more than 2047 characters"));
        assert!(load("/k", "a\0b").contains("zero"));
        // The running kernel takes no such thing, whoever asks.
        let refused = load("/k", "quiet");
        assert!(refused.starts_with("loading /k: "), "{refused}");
        std::os::unix::fs::symlink("/etc", dir.path().join("etc")).unwrap();
        assert!(
            load("/etc/passwd", "").contains("opening")
                || load("/etc/passwd", "").contains("there is no")
        );
    }
}
