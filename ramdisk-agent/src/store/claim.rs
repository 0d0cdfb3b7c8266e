//! Which partial files are being written from this machine, for shares on which nothing is locked.
//!
//! A claim is an abstract Unix socket whose name is made of the file's place. The kernel gives a name to one socket at a time and takes it
//! back when the process ends, however it ends, so that a claim is never left behind and two agents of one machine never write one partial
//! file. Deliberately absent: other machines, other network namespaces of this one, and a server that is spelled in two ways. Any user of
//! this machine can take a name first; then nothing is written, and the message says that the file is in use.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use super::{Result, StoreError, StoreUrl};

/// The right to write a partial file, as far as this machine is concerned, for as long as it lives.
#[derive(Debug)]
pub(super) struct Claim {
    /// Nothing is ever sent to it.
    _socket: UnixDatagram,
}

impl Claim {
    /// Claims the partial file at this URL of a share.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when somebody on this machine has claimed it.
    pub(super) fn of(partial: &StoreUrl) -> Result<Self> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => StoreError::Busy { url: partial.to_string() },
            _ => StoreError::local("claiming", partial, source),
        };
        let place = partial.place().expect("a share is on a server");
        // Whichever version of NFS a server is asked in, its port is the same.
        let of = format!("{}\n{}\n{}", place.host.to_ascii_lowercase(), place.port, place.path);
        let name = format!("imprint-agent/writes/{}", blake3::hash(of.as_bytes()).to_hex());
        let address = SocketAddr::from_abstract_name(name).map_err(failed)?;
        Ok(Self { _socket: UnixDatagram::bind_addr(&address).map_err(failed)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_claimed_once_at_a_time() {
        let own = uuid::Uuid::new_v4();
        let url = |text: &str| text.replace("OWN", &own.to_string()).parse::<StoreUrl>().unwrap();
        let claim = Claim::of(&url("nfs://nas/OWN/x.partial?uid=7")).unwrap();
        for same in ["nfs://NAS:2049//OWN/x.partial", "nfs4://nas/OWN/x.partial"] {
            let error = Claim::of(&url(same)).unwrap_err();
            assert!(matches!(error, StoreError::Busy { .. }), "{error}");
            assert!(error.to_string().starts_with(&url(same).to_string()), "{error}");
        }
        for other in
            ["nfs://nas/OWN/y.partial", "nfs://nas2/OWN/x.partial", "nfs://nas:1/OWN/x.partial"]
        {
            Claim::of(&url(other)).unwrap();
        }
        drop(claim);
        Claim::of(&url("nfs://nas/OWN/x.partial")).unwrap();
    }
}
