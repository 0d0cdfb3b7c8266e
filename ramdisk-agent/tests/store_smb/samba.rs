//! A real SMB server (Samba's smbd), which a test may kill and start again.
//!
//! The test's thread moves into a network namespace of its own, so that the server has the usual port, and several tests theirs at
//! once; everything else that it keeps lies in a folder that ends with the test.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use agent_api::{SecretText, StoreAccess};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use ramdisk_agent::store::{Access, Options, StoreUrl};

use crate::real_servers::{RealServer, isolate, wait_until};

const START_LIMIT: Duration = Duration::from_secs(60);
pub const PORT: u16 = 445;
/// A Unix account that every Debian has; what it may do in the folder is what root may.
pub const USER: &str = "games";
pub const PASSWORD: &str = "correct horse: battery staple";

/// The server with its folder; both end with it.
pub struct Samba {
    run: tempfile::TempDir,
    shared: PathBuf,
    child: Option<Child>,
}

impl Samba {
    /// Shares a new folder as `images`, to a user and to guests.
    pub fn start() -> Self {
        Self::start_with("", "", None)
    }

    /// The same with further lines for the server and for the share, and perhaps another folder.
    pub fn start_with(global: &str, share: &str, folder: Option<&Path>) -> Self {
        isolate();
        let run = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let shared = folder.map_or_else(|| run.path().join("shared"), Path::to_owned);
        std::fs::create_dir_all(&shared).unwrap();
        let mut config = String::from("[global]\n");
        for (key, name) in [
            ("private dir", "private"),
            ("state directory", "state"),
            ("cache directory", "cache"),
            ("lock directory", "lock"),
            ("pid directory", "pid"),
            ("ncalrpc dir", "ncalrpc"),
        ] {
            let folder = run.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            writeln!(config, "{key} = {}", folder.display()).unwrap();
        }
        write!(
            config,
            "smb ports = {PORT}
             passdb backend = smbpasswd:{passwords}
             log file = {log}
             disable netbios = yes
             disable spoolss = yes
             load printers = no
             map to guest = Bad User
             guest account = {USER}
             server role = standalone server
             {global}
             [images]
             path = {shared}
             guest ok = yes
             read only = no
             force user = root
             {share}\n",
            passwords = run.path().join("private/smbpasswd").display(),
            log = run.path().join("log").display(),
            shared = shared.display(),
        )
        .unwrap();
        std::fs::write(run.path().join("smb.conf"), config).unwrap();
        let mut server = Self { run, shared, child: None };
        server.add_user();
        server.restart();
        server
    }

    fn config(&self) -> PathBuf {
        self.run.path().join("smb.conf")
    }

    fn add_user(&self) {
        let mut smbpasswd = Command::new("smbpasswd")
            .arg("-c")
            .arg(self.config())
            .args(["-s", "-a", USER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("smbpasswd (package samba-common-bin)");
        let mut input = smbpasswd.stdin.take().unwrap();
        writeln!(input, "{PASSWORD}\n{PASSWORD}").unwrap();
        drop(input);
        let output = smbpasswd.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], PORT))
    }

    /// The same by way of another port, such as a proxy's.
    pub fn url_at(&self, port: u16, name: &str) -> StoreUrl {
        format!("smb://127.0.0.1:{port}/images/{name}").parse().unwrap()
    }

    /// Changes the configuration of the running server, for whoever comes from now on.
    pub fn reconfigure(&self, from: &str, to: &str) {
        let config = std::fs::read_to_string(self.config()).unwrap();
        assert!(config.contains(from), "{config}");
        std::fs::write(self.config(), config.replace(from, to)).unwrap();
        self.control(&["reload-config"]);
    }

    /// Says something to the running server.
    pub fn control(&self, what: &[&str]) {
        let mut smbcontrol = Command::new("smbcontrol");
        smbcontrol.arg("-s").arg(self.config()).arg("smbd").args(what);
        let output = smbcontrol.output().expect("smbcontrol (package samba-common-bin)");
        assert!(output.status.success(), "{what:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Sends a signal to the server and its children.
    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        killpg(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    }

    /// smbclient, which runs one of its commands in the share.
    pub fn smbclient(&self, command: &str, user: bool) -> String {
        let mut smbclient = Command::new("smbclient");
        smbclient.arg("//127.0.0.1/images").arg("-s").arg(self.config()).args(["-c", command]);
        if user {
            smbclient.env("USER", USER).env("PASSWD", PASSWORD).arg("-U").arg(USER);
        } else {
            smbclient.arg("-N");
        }
        let output = smbclient.output().expect("smbclient (package smbclient)");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{command}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }
}

impl RealServer for Samba {
    /// The URL of a name in the share.
    fn url(&self, name: &str) -> StoreUrl {
        format!("smb://127.0.0.1/images/{name}").parse().unwrap()
    }

    /// Where the shared files lie on this machine.
    fn folder(&self) -> &Path {
        &self.shared
    }

    fn options(&self) -> Options {
        as_user(&self.url("x"))
    }

    fn called(&self) -> &'static str {
        "smb server 127.0.0.1"
    }

    /// Ends the server and its children at once, as a crash would.
    fn kill(&mut self) {
        if self.child.is_some() {
            self.signal(Signal::SIGKILL);
        }
        if let Some(mut child) = self.child.take() {
            child.wait().unwrap();
        }
    }

    /// Starts it, and waits until it listens.
    fn restart(&mut self) {
        self.kill();
        let log = std::fs::File::create(self.run.path().join("output")).unwrap();
        let child = Command::new("smbd")
            .args(["-F", "--no-process-group", "-s"])
            .arg(self.config())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("smbd starts (package samba)");
        let child = self.child.insert(child);
        let run = self.run.path();
        wait_until("smbd listens", START_LIMIT, || {
            if let Some(status) = child.try_wait().unwrap() {
                let read = |name| std::fs::read_to_string(run.join(name)).unwrap_or_default();
                panic!("smbd ended with {status}:\n{}{}", read("output"), read("log"));
            }
            TcpStream::connect(("127.0.0.1", PORT)).is_ok()
        });
    }
}

impl Drop for Samba {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Patience that a test has, and no name.
pub fn as_guest() -> Options {
    Options {
        budget: Duration::from_secs(60),
        connect_budget: Duration::from_secs(20),
        silence: Duration::from_secs(4),
        ..Options::default()
    }
}

/// The same with a user and this password, for the server of this URL.
pub fn with_password(password: &str, url: &StoreUrl) -> Options {
    let access = StoreAccess {
        user: Some(USER.to_owned()),
        password: Some(SecretText::from(password.to_owned())),
        ..StoreAccess::default()
    };
    let access = Access::new(vec![access], std::slice::from_ref(url)).unwrap();
    Options { access: Arc::new(access), ..as_guest() }
}

/// The same with the right password.
pub fn as_user(url: &StoreUrl) -> Options {
    with_password(PASSWORD, url)
}
