//! nfs-ganesha.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ramdisk_agent::store::{NfsUrl, StoreUrl};

use crate::ganesha::Ganesha;
use crate::real_servers::RealServer as _;
use crate::store::{Store, prefixed};

pub struct Nfs(Ganesha);

/// Where the procedure's number is in a call: behind record mark, xid, direction, version of RPC, program and its version.
const PROCEDURE: std::ops::Range<usize> = 24..28;
const COMMIT: u32 = 21;
/// Not root, who may do anything.
const USER: u32 = 12_345;

impl Store for Nfs {
    const NAME: &'static str = "nfs";
    const WRITES: bool = true;

    fn start(folder: Option<&Path>) -> Self {
        let server = Ganesha::start_with("RW", folder);
        std::os::unix::fs::chown(server.folder(), Some(USER), Some(USER)).unwrap();
        Self(server)
    }

    fn address(&self) -> SocketAddr {
        self.0.address()
    }

    fn url(&self, port: u16, name: &str) -> StoreUrl {
        match self.0.url_at(port, name) {
            StoreUrl::Nfs(url) => StoreUrl::Nfs(NfsUrl { uid: USER, gid: USER, ..url }),
            other => other,
        }
    }

    fn folder(&self) -> PathBuf {
        self.0.folder().to_owned()
    }

    fn kill(&mut self) {
        self.0.kill();
    }

    fn restart(&mut self) {
        self.0.restart();
    }

    fn message_ends(stream: &[u8]) -> Vec<u64> {
        // Without the bit for the last fragment.
        let length = |mark: &[u8]| u32::from_be_bytes(mark.try_into().unwrap()) & 0x7FFF_FFFF;
        prefixed(stream, 4, |mark| usize::try_from(length(mark)).unwrap())
    }

    fn is_commit(message: &[u8]) -> bool {
        message.get(PROCEDURE) == Some(&COMMIT.to_be_bytes())
    }
}
