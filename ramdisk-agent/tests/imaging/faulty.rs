//! Block devices that fail as told: a QEMU storage daemon exports a disk file through its `blkdebug` filter as a FUSE file, and a
//! loop device makes that a disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::devices::Loop;
use crate::tools::status;

/// How long the daemon may take to start, and to end.
const LIMIT: Duration = Duration::from_secs(30);

/// A rule of blkdebug.
#[derive(Debug, Clone)]
pub struct Fault(String);

impl Fault {
    /// Requests of this type (`read`, `write`, `flush`) fail with this error, always.
    pub fn always(iotype: &str, errno: i32) -> Self {
        Self(format!(
            "[inject-error]\nevent = \"none\"\niotype = \"{iotype}\"\nerrno = \"{errno}\"\n"
        ))
    }

    /// Reads that touch this sector of 512 bytes fail.
    pub fn unreadable(sector: u64) -> Self {
        Self::always("read", libc::EIO).at(sector)
    }

    /// Only requests that touch this sector of 512 bytes.
    pub fn at(self, sector: u64) -> Self {
        Self(self.0 + &format!("sector = \"{sector}\"\n"))
    }

    /// Only the first such request.
    pub fn once(self) -> Self {
        Self(self.0 + "once = \"on\"\n")
    }
}

/// A disk with faults.
#[derive(Debug)]
pub struct FaultyDisk {
    /// Detached before the daemon ends.
    device: Option<Loop>,
    daemon: Child,
    export: PathBuf,
}

impl FaultyDisk {
    /// `backing` with these faults; `folder` is for the daemon's files.
    pub fn new(backing: &Path, folder: &Path, faults: &[Fault], loop_flags: &[&str]) -> Self {
        let config = folder.join("blkdebug.conf");
        let text: String = faults.iter().map(|fault| fault.0.as_str()).collect();
        fs::write(&config, text).unwrap();
        let file = format!("driver=file,node-name=file,filename={}", backing.display());
        let debug =
            format!("driver=blkdebug,node-name=debug,image=file,config={}", config.display());
        // Without a node above, blkdebug's events do not happen.
        Self::export(&[&file, &debug, "driver=raw,node-name=top,file=debug"], folder, loop_flags)
    }

    /// The node `top` of these block nodes.
    pub fn export(nodes: &[&str], folder: &Path, loop_flags: &[&str]) -> Self {
        let export = folder.join("export");
        fs::write(&export, "").unwrap();
        let pid_file = folder.join("daemon.pid");
        let mut command = Command::new("qemu-storage-daemon");
        for node in nodes {
            command.args(["--blockdev", node]);
        }
        let target = format!(
            "type=fuse,id=export,node-name=top,writable=on,mountpoint={}",
            export.display()
        );
        command.args(["--export", &target, "--pidfile"]).arg(&pid_file).stdin(Stdio::null());
        let daemon = command
            .spawn()
            .expect("qemu-storage-daemon is missing: apt-get install qemu-system-common");
        let mut disk = Self { device: None, daemon, export };
        // It is written when everything is in place.
        disk.wait("starts", |daemon| {
            assert_eq!(daemon.try_wait().unwrap(), None, "qemu-storage-daemon has ended");
            fs::read_to_string(&pid_file).is_ok_and(|text| text.ends_with('\n'))
        });
        let flags = [&["--direct-io=on"], loop_flags].concat();
        disk.device = Some(Loop::new(&disk.export, &flags));
        disk
    }

    /// The disk does not answer any more, until `SIGCONT`; `SIGKILL` takes it away.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.daemon.id().cast_signed()), signal).unwrap();
    }

    pub fn path(&self) -> &Path {
        self.device.as_ref().expect("it is there until the end").path()
    }

    fn end(&mut self) {
        let Some(device) = self.device.take() else { return };
        drop(device);
        // It may be stopped, or gone.
        let pid = Pid::from_raw(self.daemon.id().cast_signed());
        for signal in [Signal::SIGCONT, Signal::SIGTERM] {
            let _ = kill(pid, signal);
        }
        self.wait("ends", |daemon| daemon.try_wait().unwrap().is_some());
        // A daemon that was killed leaves its mount behind.
        let _ = status("mount", "umount", &["--lazy", self.export.to_str().unwrap()]);
    }

    fn wait(&mut self, what: &str, mut done: impl FnMut(&mut Child) -> bool) {
        let until = Instant::now() + LIMIT;
        while !done(&mut self.daemon) {
            assert!(Instant::now() < until, "qemu-storage-daemon: {what} not within {LIMIT:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        self.end();
    }
}
