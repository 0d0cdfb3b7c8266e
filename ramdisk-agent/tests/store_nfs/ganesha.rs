//! A real NFS server (nfs-ganesha), which a test may kill and start again.
//!
//! It registers with rpcbind, of which a machine can have only one: so the test's thread moves into a network namespace of its
//! own, with its own `/run`, and everything it starts is there with it. Ports are the usual ones.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use ramdisk_agent::store::{NfsUrl, Options, StoreUrl};

use crate::real_servers::{self, RealServer, wait_until};

const START_LIMIT: Duration = Duration::from_secs(60);
const PLUGINS: &str = "/usr/lib/x86_64-linux-gnu/ganesha";

/// The server with its folder; both end with it.
pub struct Ganesha {
    run: tempfile::TempDir,
    exported: PathBuf,
    rpcbind: Child,
    child: Option<Child>,
}

pub const NFS_PORT: u16 = 2049;
pub const MOUNT_PORT: u16 = 20_048;

/// Moves this thread, and the threads and processes that it starts, to a network of its own, with its own `/run`.
pub fn isolate() {
    real_servers::isolate();
    mount(Some("run"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    for folder in ["/run/rpcbind", "/run/ganesha"] {
        std::fs::create_dir(folder).unwrap();
    }
}

fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

impl Ganesha {
    /// Exports a new folder, read and write.
    pub fn start() -> Self {
        Self::start_with("RW", None)
    }

    /// Exports `folder`, or a new one.
    pub fn start_with(access: &str, folder: Option<&Path>) -> Self {
        isolate();
        assert!(
            Path::new(PLUGINS).join("libfsalvfs.so").exists(),
            "install nfs-ganesha and nfs-ganesha-vfs: {PLUGINS}/libfsalvfs.so is missing"
        );
        // Not tmpfs: the server makes its file handles from the file system's own.
        let run = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let exported = folder.map_or_else(|| run.path().join("exported"), Path::to_owned);
        std::fs::create_dir_all(&exported).unwrap();
        std::fs::create_dir_all(run.path().join("recovery")).unwrap();
        let rpcbind = Command::new("rpcbind")
            // Not "-h 127.0.0.1": Debian 12's version then crashes.
            .arg("-f")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("rpcbind starts (package rpcbind)");
        wait_until("rpcbind listens", START_LIMIT, || listens(111));
        let mut config = String::new();
        write!(
            config,
            "NFS_CORE_PARAM {{ Protocols = 3; NFS_Port = {NFS_PORT}; MNT_Port = {MOUNT_PORT};
               Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false;
               Plugins_Dir = {PLUGINS}; mount_path_pseudo = true; }}
             NFSv4 {{ Graceless = true; RecoveryBackend = fs; RecoveryRoot = {recovery}; }}
             EXPORT {{ Export_Id = 1; Path = {exported}; Pseudo = /images; Access_Type = {access};
               Squash = No_Root_Squash; SecType = sys; Protocols = 3; Transports = TCP; FSAL {{ Name = VFS; }} }}
             LOG {{ Default_Log_Level = EVENT; }}",
            recovery = run.path().join("recovery").display(),
            exported = exported.display(),
        )
        .unwrap();
        std::fs::write(run.path().join("ganesha.conf"), config).unwrap();
        let mut server = Self { run, exported, rpcbind, child: None };
        server.restart();
        server
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, NFS_PORT).into()
    }

    /// The same by way of another NFS port, such as a proxy's.
    pub fn url_at(&self, port: u16, name: &str) -> StoreUrl {
        let path = format!("/images/{name}");
        let host = "127.0.0.1".into();
        let (port, mount_port) = (Some(port), Some(MOUNT_PORT));
        StoreUrl::Nfs(NfsUrl { host, port, mount_port, path, uid: 0, gid: 0 })
    }
}

impl RealServer for Ganesha {
    /// The URL of a name in the export, ports found by themselves.
    fn url(&self, name: &str) -> StoreUrl {
        format!("nfs://127.0.0.1/images/{name}").parse().unwrap()
    }

    /// Where the exported files lie on this machine.
    fn folder(&self) -> &Path {
        &self.exported
    }

    fn options(&self) -> Options {
        Options::default()
    }

    fn called(&self) -> &'static str {
        "nfs server 127.0.0.1"
    }

    /// Ends the server at once, as a crash would.
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts it, and waits until it listens.
    fn restart(&mut self) {
        self.kill();
        let log = self.run.path().join("ganesha.log");
        let child = Command::new("ganesha.nfsd")
            .args(["-F", "-f"])
            .arg(self.run.path().join("ganesha.conf"))
            .arg("-L")
            .arg(&log)
            .arg("-p")
            .arg(self.run.path().join("ganesha.pid"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("ganesha.nfsd starts (package nfs-ganesha)");
        let child = self.child.insert(child);
        wait_until("nfs-ganesha listens", START_LIMIT, || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!(
                    "nfs-ganesha ended with {status}:\n{}",
                    std::fs::read_to_string(&log).unwrap_or_default()
                );
            }
            listens(NFS_PORT) && listens(MOUNT_PORT)
        });
    }
}

impl Drop for Ganesha {
    fn drop(&mut self) {
        self.kill();
        // It may have ended; the test is over either way.
        let _ = self.rpcbind.kill();
        let _ = self.rpcbind.wait();
    }
}
