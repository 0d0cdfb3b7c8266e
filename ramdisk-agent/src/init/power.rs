//! Leaving the agent: end what still runs, write everything back, unmount, then reboot, power off or start a loaded kernel.
//!
//! Every step has a limit, since a machine with a hung disk must still reboot when told to. A kernel that cannot be started is
//! followed by a plain reboot. If reboot(2) fails, the kernel's emergency key is the last resort.

use std::fs;
use std::time::{Duration, Instant};

use agent_api::Finish;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::console::Log;

/// How long processes may take to end by themselves.
const TERM_LIMIT: Duration = Duration::from_secs(3);
/// How long writing back may take; only a disk that hangs needs longer, since the engine flushes its own writes.
const SYNC_LIMIT: Duration = Duration::from_secs(60);
/// How long the consoles may take to show the last lines.
const LOG_LIMIT: Duration = Duration::from_secs(5);

/// Leaves; returns only if the kernel refuses. For PID 1.
pub fn leave(how: Finish, log: &Log) -> Errno {
    let (word, mode, key) = match how {
        Finish::PowerOff => ("powering off", RebootMode::RB_POWER_OFF, "o"),
        Finish::Kexec => ("starting the loaded kernel", RebootMode::RB_KEXEC, "b"),
        Finish::Reboot | Finish::Unknown => ("rebooting", RebootMode::RB_AUTOBOOT, "b"),
    };
    log.say(word);
    end_processes();
    write_back(log);
    unmount_disks(log);
    log.flush(LOG_LIMIT);
    let mut errno = refused(mode);
    if how == Finish::Kexec {
        log.say(format!("the kernel does not start the loaded one ({}): rebooting", errno.desc()));
        log.flush(LOG_LIMIT);
        errno = refused(RebootMode::RB_AUTOBOOT);
    }
    log.say(format!("the kernel refuses ({}); trying its emergency key", errno.desc()));
    log.flush(LOG_LIMIT);
    // Nothing is left to try if this fails too; the caller says so.
    let _ = fs::write("/proc/sysrq-trigger", key);
    errno
}

/// Asks the kernel, and returns only if it refuses.
fn refused(mode: RebootMode) -> Errno {
    match reboot(mode) {
        Ok(never) => match never {},
        Err(errno) => errno,
    }
}

/// Ends every process but this one: politely, then not.
fn end_processes() {
    let everyone = Pid::from_raw(-1);
    let until = Instant::now() + TERM_LIMIT;
    let mut signal = Signal::SIGTERM;
    // ESRCH: nobody is left.
    while kill(everyone, signal).is_ok() {
        if Instant::now() >= until {
            if signal == Signal::SIGKILL {
                return;
            }
            signal = Signal::SIGKILL;
        }
        std::thread::sleep(Duration::from_millis(100));
        if signal == Signal::SIGKILL && Instant::now() >= until + Duration::from_secs(1) {
            return;
        }
    }
}

fn write_back(log: &Log) {
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        nix::unistd::sync();
        // Past the limit nobody waits.
        let _ = done.send(());
    });
    if wait.recv_timeout(SYNC_LIMIT).is_err() {
        log.say(format!(
            "a disk did not take its data within {} s: leaving without it",
            SYNC_LIMIT.as_secs()
        ));
    }
}

/// Unmounts what stands on block devices, newest first; the agent mounts none, but hooks may.
fn unmount_disks(log: &Log) {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for target in disk_mounts(&mounts) {
        if let Err(errno) = umount2(target.as_str(), MntFlags::MNT_DETACH) {
            log.say(format!("cannot unmount {target}: {}", errno.desc()));
        }
    }
}

fn disk_mounts(mounts: &str) -> Vec<String> {
    let mut targets: Vec<String> = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (device, target) = (fields.next()?, fields.next()?);
            device.starts_with("/dev/").then(|| target.replace("\\040", " "))
        })
        .collect();
    targets.reverse();
    targets
}

#[cfg(test)]
mod tests {
    use super::disk_mounts;

    #[test]
    fn only_disks_are_unmounted_and_the_newest_first() {
        let mounts = "proc /proc proc rw 0 0\n/dev/sda1 /mnt ext4 rw 0 0\ntmpfs /run tmpfs rw 0 0\n\
                      /dev/sda2 /mnt/a\\040b vfat rw 0 0\n";
        assert_eq!(disk_mounts(mounts), vec!["/mnt/a b", "/mnt"]);
    }
}
