//! A script of whoever asked for the restore, in a chroot of the restored system.
//!
//! It runs as root in namespaces of its own for mounts, processes and the host's name, so that whatever it starts or mounts ends with it.
//! `/dev`, `/proc` and `/sys` of this machine are there. A program of our own, [`inside`], makes that place; the mount and the
//! system's folder are reached by this process' descriptors, and the script is an anonymous file that is its standard input, so that it is
//! never written to the disk. It has a time limit, what it prints goes to the log, and an exit code other than 0 is an error.

pub mod inside;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use agent_api::{Content, ErrorKind};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::MemfdFlags;

use crate::disk::Disk;
use crate::error::{Error, IoContext, Result};
use crate::progress::Progress;

/// How long a script may take unless the job says otherwise: enough to rebuild an initramfs on a slow machine.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(600);
/// How often cancellation is looked for while the script says nothing.
const TICK: Duration = Duration::from_millis(100);
/// How long the script's end may take when it is killed.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// Longer lines are cut there.
const MAX_LINE: u64 = 1024;
/// How many lines of a script that failed are quoted.
const LAST_LINES: usize = 5;
/// Lines that wait to be logged.
const QUEUE: usize = 64;

/// What a script has as its root.
#[derive(Debug)]
pub struct Tree<'a> {
    /// The mount of the system's root filesystem.
    pub mount: &'a OwnedFd,
    /// The system's folder in it.
    pub folder: &'a OwnedFd,
    /// What its `fstab` mounts over that, in the order in which it has to be done, and where.
    pub others: &'a [(String, Rc<OwnedFd>)],
}

/// Runs a script in a system.
pub fn run(
    tree: &Tree<'_>,
    script: &Content,
    limit: Duration,
    target: &Disk,
    progress: &Progress,
) -> Result<()> {
    let child = start(tree, script, target).internal(|| "starting the post-script".to_owned())?;
    let mut script = Running { child };
    let (sender, lines) = mpsc::sync_channel(QUEUE);
    // They end with their pipes, or with their first line after `lines` is gone.
    if let Some(pipe) = script.child.stderr.take() {
        let sender = sender.clone();
        std::thread::spawn(move || read_lines(pipe, &sender));
    }
    if let Some(pipe) = script.child.stdout.take() {
        std::thread::spawn(move || read_lines(pipe, &sender));
    }
    let mut last = VecDeque::new();
    let start = Instant::now();
    loop {
        match lines.recv_timeout(TICK) {
            Ok(line) => {
                log(&line);
                if last.len() == LAST_LINES {
                    last.pop_front();
                }
                last.push_back(line);
            }
            Err(RecvTimeoutError::Timeout) => {}
            // Both pipes are closed: nothing of the script is left.
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if let Err(error) = progress.check().and_then(|()| in_time(start, limit)) {
            script.end();
            return Err(error);
        }
    }
    let status = script.child.wait().internal(|| "waiting for the post-script".to_owned())?;
    if status.success() {
        return Ok(());
    }
    let quoted = match last.len() {
        0 => "it printed nothing".to_owned(),
        _ => format!("its last lines: {}", Vec::from(last).join(" | ")),
    };
    Err(Error::new(ErrorKind::Refused, format!("the post-script failed ({status}); {quoted}")))
}

fn in_time(start: Instant, limit: Duration) -> Result<()> {
    if start.elapsed() <= limit {
        return Ok(());
    }
    let secs = limit.as_secs();
    let message = format!("the post-script was still running after {secs} s");
    Err(Error::new(ErrorKind::Refused, message))
}

fn start(tree: &Tree<'_>, script: &Content, target: &Disk) -> std::io::Result<Child> {
    // Its offset stays at the end, so that a script which reads its standard input finds nothing there.
    let mut file = File::from(rustix::fs::memfd_create("post-script", MemfdFlags::CLOEXEC)?);
    file.write_all(script.bytes())?;
    let ours = |fd: &OwnedFd| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
    let others = tree.others.iter().map(|(point, mount)| format!("{}:{point}", ours(mount)));
    Command::new("/proc/self/exe")
        .args(["in-system", &ours(tree.mount), &ours(tree.folder)])
        .args(others)
        .env_clear()
        .envs([
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("HOME", "/root"),
            ("LANG", "C.UTF-8"),
        ])
        .env("IMPRINT_TARGET", std::path::absolute(target.path())?)
        .stdin(Stdio::from(file))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

/// The program of ours that the script runs below.
struct Running {
    child: Child,
}

impl Running {
    /// Asks our program to end the script, then forces it.
    fn end(&mut self) {
        let Ok(pid) = i32::try_from(self.child.id()) else { return };
        // ESRCH: it has ended by itself.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if start.elapsed() > KILL_LIMIT {
                // As above; the unmounting tells if anything is left.
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(TICK);
        }
    }
}

fn read_lines(pipe: impl Read, to: &mpsc::SyncSender<String>) {
    let mut reader = BufReader::new(pipe);
    loop {
        let mut line = Vec::new();
        match (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end().chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        if to.send(text).is_err() {
            return;
        }
    }
}

fn log(line: &str) {
    // With standard error gone there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "post-script: {line}");
}
