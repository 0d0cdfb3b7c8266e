//! nginx, which is only read from, with and without TLS.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_api::StoreAccess;
use ramdisk_agent::store::{Access, Options, StoreUrl};

use crate::nginx::{Nginx, Setup};
use crate::store::{Store, patient, prefixed};

/// Over `http://`.
pub struct Http(Nginx);

/// Over `https://`.
pub struct Https {
    server: Nginx,
    access: Arc<Access>,
}

fn start(folder: Option<&Path>) -> Nginx {
    // Not root, who may do anything.
    Nginx::with(Setup { user: "www-data", folder, ..Setup::default() })
}

/// As many connections as a fault is about.
fn options() -> Options {
    Options { http_connections: 1, ..patient() }
}

impl Store for Http {
    const NAME: &'static str = "http";
    const WRITES: bool = false;

    fn start(folder: Option<&Path>) -> Self {
        Self(start(folder))
    }

    fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.0.port).into()
    }

    fn url(&self, port: u16, name: &str) -> StoreUrl {
        format!("http://127.0.0.1:{port}/{name}").parse().unwrap()
    }

    fn folder(&self) -> PathBuf {
        self.0.served("")
    }

    fn kill(&mut self) {
        self.0.kill();
    }

    fn restart(&mut self) {
        self.0.run();
    }

    /// Heads, and bodies of the length that their heads tell.
    fn message_ends(stream: &[u8]) -> Vec<u64> {
        const HEAD_END: &[u8] = b"\r\n\r\n";
        let (mut ends, mut at) = (Vec::new(), 0);
        while let Some(head_len) = stream[at..].windows(4).position(|four| four == HEAD_END) {
            let head = String::from_utf8_lossy(&stream[at..at + head_len]).into_owned();
            at += head_len + HEAD_END.len();
            ends.push(at as u64);
            let mut lines = head.lines();
            if let Some(len) = lines.find_map(|line| line.strip_prefix("Content-Length: ")) {
                at = (at + len.parse::<usize>().unwrap()).min(stream.len());
                ends.push(at as u64);
            }
        }
        ends
    }

    fn options(&self) -> Options {
        options()
    }
}

impl Store for Https {
    const NAME: &'static str = "https";
    const WRITES: bool = false;

    fn start(folder: Option<&Path>) -> Self {
        let server = start(folder);
        // A proxy has some port of this machine; behind each is the server with this key.
        let with_key = |port: u16| StoreAccess {
            prefix: format!("https://127.0.0.1:{port}/"),
            tls_key: Some(server.pin.clone()),
            ..StoreAccess::default()
        };
        let access = Access::new((1024..=u16::MAX).map(with_key).collect(), &[]).unwrap();
        Self { server, access: Arc::new(access) }
    }

    fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.server.tls_port).into()
    }

    fn url(&self, port: u16, name: &str) -> StoreUrl {
        format!("https://127.0.0.1:{port}/{name}").parse().unwrap()
    }

    fn folder(&self) -> PathBuf {
        self.server.served("")
    }

    fn kill(&mut self) {
        self.server.kill();
    }

    fn restart(&mut self) {
        self.server.run();
    }

    /// Records.
    fn message_ends(stream: &[u8]) -> Vec<u64> {
        prefixed(stream, 5, |head| usize::from(u16::from_be_bytes([head[3], head[4]])))
    }

    fn options(&self) -> Options {
        Options { access: Arc::clone(&self.access), ..options() }
    }
}
