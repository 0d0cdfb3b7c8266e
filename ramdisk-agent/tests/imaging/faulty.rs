//! Disks that fail as told: a QEMU storage daemon exports a disk file through its `blkdebug` filter as a FUSE file, which is a disk
//! as it is, or through a loop device.
//!
//! While QEMU 7.2 works on a write through FUSE, the next request overwrites that write's bytes in its buffer (mended later: "fuse:
//! Copy write buffer content before polling"). So nobody may write to such a file with two requests in flight: a target is a loop
//! device without direct I/O, which has one thread; a disk file with a single frame is written by one thread, too.

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
/// How long it may take to end in good order. QEMU 7.2 was seen not to get its FUSE export closed, once in many runs; what was
/// written is in the file by then, and it is killed.
const GOOD_ORDER: Duration = Duration::from_secs(5);

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

    /// The `n`-th flush fails, counted from 1, and no other.
    pub fn nth_flush(n: usize) -> Self {
        // A flush moves the filter to its next state, after the rules of the present one were looked at.
        let states = (1..=n).map(|state| {
            format!(
                "[set-state]\nevent = \"flush_to_disk\"\nstate = \"{state}\"\nnew_state = \"{}\"\n",
                state + 1
            )
        });
        let fail = format!(
            "[inject-error]\nevent = \"flush_to_disk\"\niotype = \"flush\"\nstate = \"{n}\"\nerrno = \"5\"\nonce = \"on\"\n"
        );
        Self(states.collect::<String>() + &fail)
    }

    /// Reads that touch this sector of 512 bytes fail until the disk has been flushed so often.
    pub fn unreadable_until_flush(sector: u64, n: usize) -> Self {
        let inject = |state: usize, fault: &str| {
            format!("[inject-error]\nevent = \"read_aio\"\nstate = \"{state}\"\n{fault}\n")
        };
        let fault = format!("iotype = \"read\"\nerrno = \"5\"\nsector = \"{sector}\"");
        let states = (1..=n).map(|state| {
            let new_state = state + 1;
            format!("[set-state]\nevent = \"flush_to_disk\"\nstate = \"{state}\"\nnew_state = \"{new_state}\"\n")
                + &inject(state, &fault)
        });
        // A fault stays until there is another: one of what nobody asks for.
        Self(states.collect::<String>() + &inject(n + 1, "iotype = \"discard\""))
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
    /// `backing` as a block device with these faults, for reading; `folder` is for the daemon's files.
    pub fn source(backing: &Path, folder: &Path, faults: &[Fault], loop_flags: &[&str]) -> Self {
        let flags = [&["--direct-io=on"], loop_flags].concat();
        Self::file(backing, folder, faults).attached(&flags)
    }

    /// `backing` as a block device with these faults, for writing.
    pub fn target(backing: &Path, folder: &Path, faults: &[Fault]) -> Self {
        Self::file(backing, folder, faults).attached(&["--direct-io=off"])
    }

    /// As a loop device with these flags.
    pub fn attached(mut self, flags: &[&str]) -> Self {
        self.device = Some(Loop::new(&self.export, flags));
        self
    }

    /// `backing` as a disk file with these faults.
    pub fn file(backing: &Path, folder: &Path, faults: &[Fault]) -> Self {
        let config = folder.join("blkdebug.conf");
        let text: String = faults.iter().map(|fault| fault.0.as_str()).collect();
        fs::write(&config, text).unwrap();
        let file = format!("driver=file,node-name=file,filename={}", backing.display());
        let debug =
            format!("driver=blkdebug,node-name=debug,image=file,config={}", config.display());
        // Without a node above, blkdebug's events do not happen.
        let nodes = [&file, &debug, "driver=raw,node-name=top,file=debug"];
        Self::export(&nodes.map(|node| ("--blockdev", node)), folder)
    }

    /// `backing` as a disk file that reads and writes so many bytes a second.
    pub fn slow(backing: &Path, folder: &Path, bytes_per_sec: u64) -> Self {
        let group = format!("throttle-group,id=slow,x-bps-total={bytes_per_sec}");
        let file = format!("driver=file,node-name=file,filename={}", backing.display());
        let top = "driver=throttle,node-name=top,throttle-group=slow,file=file";
        let words = [("--object", &*group), ("--blockdev", &*file), ("--blockdev", top)];
        Self::export(&words, folder)
    }

    /// The node `top` of the block nodes that these options of the daemon make.
    pub fn export(options: &[(&str, &str)], folder: &Path) -> Self {
        let export = folder.join("export");
        fs::write(&export, "").unwrap();
        let pid_file = folder.join("daemon.pid");
        // One that was killed has left its own.
        let _ = fs::remove_file(&pid_file);
        let mut command = Command::new("qemu-storage-daemon");
        for (option, value) in options {
            command.args([option, value]);
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
        disk
    }

    /// The disk does not answer any more after `SIGSTOP`, until `SIGCONT`; `SIGKILL` takes it away.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.daemon.id().cast_signed()), signal).unwrap();
    }

    pub fn path(&self) -> &Path {
        self.device.as_ref().map_or(&*self.export, |device| device.path())
    }

    fn end(&mut self) {
        // It may be stopped, or gone.
        let pid = Pid::from_raw(self.daemon.id().cast_signed());
        let _ = kill(pid, Signal::SIGCONT);
        drop(self.device.take());
        let _ = kill(pid, Signal::SIGTERM);
        let until = Instant::now() + GOOD_ORDER;
        self.wait("ends", |daemon| {
            if Instant::now() >= until {
                // It may have ended just now.
                let _ = daemon.kill();
            }
            daemon.try_wait().unwrap().is_some()
        });
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
