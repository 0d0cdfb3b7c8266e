//! The file systems that PID 1 mounts before anything else, and the kernel settings it wants.
//!
//! The kernel mounts nothing for an initramfs, not even devtmpfs. A mount that is there already is left as it is. What fails is
//! reported once the console can be used.

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

struct Wanted {
    kind: &'static str,
    target: &'static str,
    flags: MsFlags,
    data: &'static str,
}

const QUIET: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NODEV);

const WANTED: &[Wanted] = &[
    Wanted { kind: "devtmpfs", target: "/dev", flags: MsFlags::MS_NOSUID, data: "mode=0755" },
    Wanted { kind: "proc", target: "/proc", flags: QUIET, data: "" },
    Wanted { kind: "sysfs", target: "/sys", flags: QUIET, data: "" },
    Wanted { kind: "tmpfs", target: "/run", flags: QUIET, data: "mode=0755,size=50%" },
    Wanted {
        kind: "tmpfs",
        target: "/tmp",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        data: "mode=1777,size=50%",
    },
    Wanted {
        kind: "devpts",
        target: "/dev/pts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        data: "mode=0620",
    },
];

/// Settings of the kernel: (file below `/proc/sys`, value).
const SYSCTLS: &[(&str, &str)] = &[
    // An oops in one driver ends the worker that met it; the supervisor goes on and reports it.
    ("kernel/panic_on_oops", "0"),
    // Writers of whole disks must not fill the memory with dirty pages.
    ("vm/dirty_background_bytes", "16777216"),
    ("vm/dirty_bytes", "67108864"),
];

/// Seconds from a kernel panic to a reboot, unless `panic=` says otherwise.
const PANIC_REBOOT_SECS: &str = "30";

/// Mounts what is missing; what went wrong.
pub fn mount_all() -> Vec<String> {
    let mut complaints = Vec::new();
    for wanted in WANTED {
        if let Err(why) = mount_one(wanted) {
            complaints.push(format!("cannot mount {} on {}: {why}", wanted.kind, wanted.target));
        }
    }
    complaints
}

fn mount_one(wanted: &Wanted) -> Result<(), String> {
    fs::create_dir_all(wanted.target).map_err(|e| e.to_string())?;
    let data = (!wanted.data.is_empty()).then_some(wanted.data);
    match mount(Some(wanted.kind), wanted.target, Some(wanted.kind), wanted.flags, data) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(errno) => Err(errno.desc().to_owned()),
    }
}

/// Mounts the variables of an UEFI firmware; nothing to do on other machines. Call when modules can be loaded.
pub fn mount_efivarfs() -> Option<String> {
    let target = "/sys/firmware/efi/efivars";
    if !Path::new(target).is_dir() {
        return None;
    }
    mount_one(&Wanted { kind: "efivarfs", target, flags: QUIET, data: "" })
        .err()
        .map(|why| format!("cannot mount efivarfs on {target}: {why}"))
}

/// Applies the kernel settings; what went wrong.
pub fn apply_sysctls(cmdline: &str) -> Vec<String> {
    let panic = (!cmdline.split_whitespace().any(|w| w.starts_with("panic=")))
        .then_some(("kernel/panic", PANIC_REBOOT_SECS));
    SYSCTLS
        .iter()
        .copied()
        .chain(panic)
        .filter_map(|(name, value)| {
            let error = fs::write(Path::new("/proc/sys").join(name), value).err()?;
            Some(format!("cannot set {name} to {value}: {error}"))
        })
        .collect()
}
