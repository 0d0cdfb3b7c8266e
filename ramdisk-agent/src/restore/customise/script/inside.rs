//! The process between the agent and a post-script: makes the place that the script runs in, starts it, and ends it when told to.
//!
//! It is a program of its own (`imprint-agent in-system`) because namespaces and roots are a whole process' matter. Nothing of the
//! restored system is resolved outside of it: its root is entered by a descriptor, and other folders are attached when that is
//! done. A signal, or the end of the agent, ends the script and all that it has started: its first process is the namespace's.

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::restore::customise::fstab;

/// What of this machine a script sees.
const SHARED: [&str; 3] = ["/dev", "/proc", "/sys"];
/// What this process ends with if the script was not started: what shells use for that.
const NOT_STARTED: u8 = 126;
/// The script: an anonymous file as standard input.
const SCRIPT: &str = "/proc/self/fd/0";

/// Runs the script that is the standard input in the system whose root folder is `folder`, in the filesystem that `mount` is; both are paths of
/// open descriptors. `others` are what is mounted over it, each as the path of a descriptor, a colon and the place. The exit code.
pub fn main(mount: &str, folder: &str, others: &[String]) -> u8 {
    match run(mount, folder, others) {
        Ok(code) => code,
        Err((doing, error)) => {
            eprintln!("the script could not be run: {doing}: {error}");
            NOT_STARTED
        }
    }
}

/// The script's first process, which the kernel ends the others with.
#[derive(Debug, Clone, Default)]
struct Script(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    pid: Option<Pid>,
    is_unwanted: bool,
}

impl Script {
    /// From here on signals end the script and not this process, which ends when the script has.
    fn to_end_with_us() -> io::Result<Self> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
        let script = Self::default();
        let end = script.clone();
        std::thread::spawn(move || {
            for _ in signals.forever() {
                end.with(|state| state.is_unwanted = true);
            }
        });
        Ok(script)
    }

    fn has_started(&self, pid: u32) {
        let pid = i32::try_from(pid).expect("the kernel's numbers of processes are positive");
        self.with(|state| state.pid = Some(Pid::from_raw(pid)));
    }

    fn with(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        if let (Some(pid), true) = (state.pid, state.is_unwanted) {
            // ESRCH: it has ended by itself.
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

type Failed = (&'static str, io::Error);

fn run(mount: &str, folder: &str, others: &[String]) -> Result<u8, Failed> {
    let doing = |doing: &'static str| move |e: io::Error| (doing, e);
    // In front of the namespaces: a process has no new threads where its children are in another one.
    let script = Script::to_end_with_us().map_err(doing("installing a signal handler"))?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)
        .map_err(|e| ("asking for a signal at the agent's end", e.into()))?;
    // A process group is signalled in all namespaces: that of the agent, its own and all that were started with it, is none of the script's, for
    // which `kill 0` is usual, and neither is its terminal.
    nix::unistd::setsid().map_err(|e| ("leaving the agent's session", e.into()))?;
    enter(mount, folder, others).map_err(doing("entering the restored system"))?;
    let mut child = Command::new(SCRIPT).process_group(0).spawn().map_err(doing("starting it"))?;
    script.has_started(child.id());
    let status = child.wait().map_err(doing("waiting for it"))?;
    script.with(|state| state.pid = None);
    // As shells do it.
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}

fn enter(mount: &str, folder: &str, others: &[String]) -> io::Result<()> {
    let open = |path: &str| {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    };
    let (mount, folder) = (open(mount)?, open(folder)?);
    let others = others.iter().map(|other| {
        let (path, at) = other.split_once(':').unwrap_or((other, "/"));
        Ok((open(path)?, at))
    });
    let others = others.collect::<io::Result<Vec<_>>>()?;
    // Processes that are started from now on are in the new namespace of processes, the first as its init.
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWUTS)?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    let whole = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let trees = SHARED.map(|path| Ok((path, rustix::mount::open_tree(CWD, path, whole)?)));
    // The new namespace has a copy of every mount of this machine, which must not keep those in use while the script runs.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let points: Vec<String> = mounts.lines().filter_map(mount_point).collect();
    for point in points.iter().rev().filter(|point| *point != "/") {
        // Those below one that is gone are gone with it; one that stays is only in use for longer.
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        let _ = rustix::mount::unmount(point.as_str(), flags);
    }
    let attach = |tree: &rustix::fd::OwnedFd, at: &str| {
        rustix::mount::move_mount(tree, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
    };
    // Over the root of this namespace, which nobody resolves a path from any more.
    attach(&mount, "/")?;
    rustix::process::fchdir(&folder)?;
    rustix::process::chroot(".")?;
    for (tree, at) in &others {
        if let Err(e) = attach(tree, at) {
            // A system makes the folder when it starts; here nothing is made that nobody asked for.
            eprintln!("{at} is not mounted for the script: {}", io::Error::from(e));
        }
    }
    for tree in trees {
        let (path, tree) = tree.map_err(|e: rustix::io::Errno| io::Error::from(e))?;
        attach(&tree, path).map_err(|e| {
            let e = io::Error::from(e);
            io::Error::new(e.kind(), format!("attaching {path}: {e}"))
        })?;
    }
    std::env::set_current_dir("/")
}

/// The place in a line of `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`), whose spaces are written as in `fstab`.
fn mount_point(line: &str) -> Option<String> {
    line.split(' ').nth(4).map(fstab::unescaped)
}
