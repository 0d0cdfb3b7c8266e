//! nginx with a folder of its own, on ports that were free, with and without TLS.

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ramdisk_agent::init::controller::Pin;
use ramdisk_agent::store::StoreUrl;

const START_LIMIT: Duration = Duration::from_secs(30);

/// The server; it ends with it.
pub struct Nginx {
    dir: tempfile::TempDir,
    www: PathBuf,
    pub port: u16,
    pub tls_port: u16,
    /// Of the key that the server shows.
    pub pin: String,
    child: Option<Child>,
}

/// What a certificate of the server says.
#[derive(Clone, Copy)]
pub struct Certificate {
    pub name: &'static str,
    pub has_expired: bool,
}

pub const GOOD: Certificate = Certificate { name: "127.0.0.1", has_expired: false };

/// How a server is set up.
pub struct Setup<'a> {
    pub certificate: Certificate,
    /// What the server's workers run as. Root sees images that were captured for their owner's eyes only.
    pub user: &'a str,
    /// What it serves; its own new folder if not said.
    pub folder: Option<&'a Path>,
    /// More lines in the `server` block.
    pub lines: &'a str,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self { certificate: GOOD, user: "root", folder: None, lines: "" }
    }
}

impl Nginx {
    pub fn start() -> Self {
        Self::with(Setup::default())
    }

    pub fn with_lines(lines: &str) -> Self {
        Self::with(Setup { lines, ..Setup::default() })
    }

    pub fn with(setup: Setup<'_>) -> Self {
        let Setup { certificate, user, folder, lines } = setup;
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let www = folder.map_or_else(|| dir.path().join("www"), Path::to_owned);
        std::fs::create_dir_all(&www).unwrap();
        let pin = make_certificate(dir.path(), certificate);
        let (port, tls_port) = (free_port(), free_port());
        let (at, root) = (dir.path().display(), www.display());
        let config = format!(
            "user {user}; daemon off; pid {at}/pid; error_log {at}/error.log info; worker_processes 1;
             events {{ worker_connections 64; }}
             http {{
               access_log {at}/access.log; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;
               fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;
               server {{
                 listen 127.0.0.1:{port}; listen 127.0.0.1:{tls_port} ssl;
                 ssl_certificate {at}/cert.pem; ssl_certificate_key {at}/key.pem;
                 root {root};
                 {lines}
               }}
             }}"
        );
        std::fs::write(dir.path().join("nginx.conf"), config).unwrap();
        let mut server = Self { dir, www, port, tls_port, pin, child: None };
        server.run();
        server
    }

    /// Starts it, after [`kill`](Self::kill).
    pub fn run(&mut self) {
        let child = Command::new("nginx")
            .args([Path::new("-p"), self.dir.path(), Path::new("-c"), &self.path("nginx.conf")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx (package nginx-light)");
        let child = self.child.insert(child);
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.tls_port)).is_err() {
            if let Some(status) = child.try_wait().unwrap() {
                let log = std::fs::read_to_string(self.dir.path().join("error.log"));
                panic!("nginx ended with {status}: {}", log.unwrap_or_default());
            }
            assert!(start.elapsed() < START_LIMIT, "nginx does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it as `kill -9` would, its worker too: connections are reset.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let children = std::fs::read_to_string(children).unwrap_or_default();
        // Without a master nobody replaces the worker.
        let _ = child.kill();
        let _ = child.wait();
        for worker in children.split_whitespace() {
            let pid = nix::unistd::Pid::from_raw(worker.parse().unwrap());
            // It may have ended by itself.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }

    /// A file of the server's own folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file that it serves.
    pub fn served(&self, name: &str) -> PathBuf {
        self.www.join(name)
    }

    pub fn put(&self, name: &str, data: &[u8]) {
        std::fs::write(self.served(name), data).unwrap();
    }

    pub fn http(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    pub fn https(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}/{path}", self.tls_port)
    }

    pub fn url(&self, path: &str) -> StoreUrl {
        self.http(path).parse().unwrap()
    }

    pub fn access_log(&self) -> String {
        std::fs::read_to_string(self.path("access.log")).unwrap()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that nobody has: nginx cannot say which one it was given.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Key and certificate of the server, `ca.pem` of the authority that signed it; the key's pin.
fn make_certificate(dir: &Path, certificate: Certificate) -> String {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(vec![]).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![certificate.name.to_owned()]).unwrap();
    if certificate.has_expired {
        params.not_after = rcgen::date_time_ymd(2020, 1, 2);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    }
    let signed = params.signed_by(&key, &issuer).unwrap();
    std::fs::write(dir.join("ca.pem"), ca_pem).unwrap();
    std::fs::write(dir.join("cert.pem"), signed.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
    Pin::of(signed.der()).unwrap().to_string()
}
