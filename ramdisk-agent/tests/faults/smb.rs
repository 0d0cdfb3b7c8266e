//! Samba's smbd, as a guest: credentials are for one port, and each scenario has its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ramdisk_agent::store::StoreUrl;

use crate::real_servers::RealServer as _;
use crate::samba::Samba;
use crate::store::{Store, prefixed};

pub struct Smb(Samba);

/// Where the command is in a message: behind its length, and twelve bytes of the header.
const COMMAND: std::ops::Range<usize> = 16..18;
const FLUSH: u16 = 7;

impl Store for Smb {
    const NAME: &'static str = "smb";
    const WRITES: bool = true;

    fn start(folder: Option<&Path>) -> Self {
        Self(Samba::start_with("", "", folder))
    }

    fn address(&self) -> SocketAddr {
        self.0.address()
    }

    fn url(&self, port: u16, name: &str) -> StoreUrl {
        self.0.url_at(port, name)
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
        let length = |head: &[u8]| u32::from_be_bytes(head.try_into().unwrap());
        prefixed(stream, 4, |head| usize::try_from(length(head)).unwrap())
    }

    fn is_commit(message: &[u8]) -> bool {
        message.get(COMMAND) == Some(&FLUSH.to_le_bytes())
    }
}
