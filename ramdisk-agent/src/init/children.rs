//! Children of PID 1: its own, whose end somebody waits for, and strangers', which are reaped so that no zombies pile up.
//!
//! Own children are started through [`spawn`] and waited for by tokio. The reaper looks at every dead child without taking it
//! (`WNOWAIT`) and takes only those that nobody here has started. It runs only as PID 1: elsewhere strangers are not ours.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// Processes that somebody in this program waits for.
static OWN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// How soon the reaper looks again when it has nothing to do.
const IDLE: Duration = Duration::from_millis(500);
/// How soon the reaper looks again when an own child is dead but not yet waited for.
const BUSY: Duration = Duration::from_millis(20);

/// A child of ours; the reaper leaves it alone as long as this lives.
#[derive(Debug)]
pub struct OwnChild {
    /// To wait for it.
    pub child: Child,
    pid: i32,
}

impl OwnChild {
    /// The process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.pid)
    }
}

impl Drop for OwnChild {
    fn drop(&mut self) {
        OWN.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.pid);
    }
}

/// Starts a child that the reaper leaves alone.
pub fn spawn(command: &mut Command) -> io::Result<OwnChild> {
    // Held over the start, so that the reaper cannot meet a child that died before it was written down.
    let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    let child = command.spawn()?;
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .ok_or_else(|| io::Error::other("the child has no id"))?;
    own.insert(pid);
    Ok(OwnChild { child, pid })
}

/// Sets how gladly the kernel ends a process when memory runs out: −1000 never, 1000 first.
pub fn set_oom_score(pid: i32, score: i32) -> io::Result<()> {
    std::fs::write(
        Path::new("/proc").join(pid.to_string()).join("oom_score_adj"),
        score.to_string(),
    )
}

/// Starts the thread that reaps strangers. For PID 1 only.
pub fn start_reaper() -> io::Result<()> {
    std::thread::Builder::new().name("reaper".into()).spawn(|| {
        loop {
            std::thread::sleep(reap_once());
        }
    })?;
    Ok(())
}

/// Waits for a dead child and takes it if it is a stranger's; how long to rest.
fn reap_once() -> Duration {
    match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
        Ok(status) => {
            let Some(pid) = status.pid() else { return BUSY };
            let own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
            if own.contains(&pid.as_raw()) {
                return BUSY;
            }
            // It may have been taken meanwhile; then there is nothing to do.
            let _: Result<_, Errno> = waitpid(pid, Some(WaitPidFlag::WNOHANG));
            Duration::ZERO
        }
        Err(Errno::EINTR) => Duration::ZERO,
        Err(_) => IDLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_own_child_is_left_to_whoever_waits_for_it() {
        let mut own = spawn(Command::new("true").kill_on_drop(true)).unwrap();
        let pid = own.pid;
        assert!(OWN.lock().unwrap().contains(&pid));
        assert!(own.child.wait().await.unwrap().success());
        drop(own);
        assert!(!OWN.lock().unwrap().contains(&pid));
    }
}
