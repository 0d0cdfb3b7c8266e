//! Finding the server's ports and the handle of an export: portmapper (RFC 1833, version 2) and MOUNT version 3 (RFC 1813).
//!
//! Few and small calls, so each has a connection of its own. Which part of a path is the export is not written in it: the
//! longest leading part that the server mounts is taken, the rest is looked up. UMNT is not sent: it only tidies a list that
//! servers keep for people to read.

use std::io::{self, Read, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::connect::{connect_privileged, is_time_out, resolve};
use super::super::pool::Pool;
use super::super::watch::Watch;
use super::super::{NfsUrl, Options, Result, StoreError};
use super::proto::Handle;
use super::rpc::{
    Credential, Procedure, Record, RpcError, begin_call, finish_call, invalid, read_record,
    reply_results,
};
use super::xdr::{Decoder, Encoder, XdrError};

const GETPORT: Procedure = Procedure { program: 100_000, version: 2, number: 3 };
const MNT: Procedure = Procedure { program: 100_005, version: 3, number: 1 };
const EXPORT: Procedure = Procedure { program: 100_005, version: 3, number: 5 };
const NFS_PROGRAM: (u32, u32) = (100_003, 3);
const PORTMAPPER_PORT: u16 = 111;
const NFS_PORT: u16 = 2049;
const MOUNT_PORT: u16 = 20_048;
const AUTH_UNIX: u32 = 1;
const MAX_FLAVORS: u32 = 64;
const MAX_PATH_BYTES: u32 = 1024;
/// How long a server may take to answer one of these calls.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_secs(1);

/// What is needed to go on with NFS itself.
#[derive(Debug)]
pub(super) struct Mounted {
    pub(super) address: SocketAddr,
    pub(super) root: Handle,
    /// The folders below the root, to be looked up one by one.
    pub(super) below: Vec<String>,
}

/// Why an attempt failed: for good, or worth another one.
enum Failure {
    Final(StoreError),
    Again(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Again(error)
    }
}

/// Mounts what `folder` (the URL of a folder) is in; a server that does not answer is waited for within the options' budget.
pub(super) fn mount(folder: &NfsUrl, options: &Options, watch: &Watch) -> Result<Mounted> {
    let started = Instant::now();
    let credential = Credential::unix(folder.uid, folder.gid);
    watch.began();
    let mounted = loop {
        let attempt = resolve(&folder.host, watch).map_err(Failure::Final).and_then(|hosts| {
            let mut last = Failure::Again(io::ErrorKind::AddrNotAvailable.into());
            for host in hosts {
                match attempt(folder, host, &credential, watch) {
                    Ok(mounted) => return Ok(mounted),
                    Err(failure @ Failure::Final(_)) => return Err(failure),
                    Err(failure) => last = failure,
                }
            }
            Err(last)
        });
        match attempt {
            Ok(mounted) => break Ok(mounted),
            Err(Failure::Final(error)) => break Err(error),
            Err(Failure::Again(source)) if watch.is_called_off() => {
                break Err(watch.unreachable(started.elapsed(), Some(source)));
            }
            Err(Failure::Again(source)) if started.elapsed() + PAUSE >= options.connect_budget => {
                break Err(StoreError::Unreachable {
                    what: format!("{} could not be mounted", watch.server()),
                    seconds: started.elapsed().as_secs(),
                    source: Some(source),
                });
            }
            Err(Failure::Again(_)) => {
                // The budget is this function's own; the watch is only to tell.
                let _ = watch.check();
                watch.sleep(PAUSE);
            }
        }
    };
    match &mounted {
        Ok(_) => watch.answered(),
        Err(_) => watch.gave_up(),
    }
    mounted
}

fn attempt(
    folder: &NfsUrl,
    host: IpAddr,
    credential: &Credential,
    watch: &Watch,
) -> Result<Mounted, Failure> {
    let address = nfs_address(folder, host, credential, watch)?;
    let mut candidates = Vec::new();
    match folder.mount_port {
        Some(port) => candidates.push(port),
        None => {
            let program = (MNT.program, MNT.version);
            candidates.extend(getport(host, program, credential, watch).ok().flatten());
            candidates.extend([MOUNT_PORT, address.port()]);
            candidates.dedup();
        }
    }
    let mut last = Failure::Again(io::ErrorKind::AddrNotAvailable.into());
    for port in candidates {
        let server = SocketAddr::new(host, port);
        match mount_longest(folder, server, credential, watch) {
            Ok((root, below)) => return Ok(Mounted { address, root, below }),
            Err(failure @ Failure::Final(_)) => return Err(failure),
            Err(failure) => last = failure,
        }
    }
    Err(last)
}

/// Port 2049, unless the URL or (where nothing listens there) the portmapper says otherwise.
fn nfs_address(
    folder: &NfsUrl,
    host: IpAddr,
    credential: &Credential,
    watch: &Watch,
) -> io::Result<SocketAddr> {
    if let Some(port) = folder.port {
        return Ok(SocketAddr::new(host, port));
    }
    let usual = SocketAddr::new(host, NFS_PORT);
    match connect_privileged(usual, watch) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            match getport(host, NFS_PROGRAM, credential, watch) {
                Ok(Some(port)) => Ok(SocketAddr::new(host, port)),
                _ => Err(error),
            }
        }
        other => other.map(|_| usual),
    }
}

fn getport(
    host: IpAddr,
    (program, version): (u32, u32),
    credential: &Credential,
    watch: &Watch,
) -> io::Result<Option<u16>> {
    const TCP: u32 = 6;
    let arguments = |call: &mut Encoder| {
        call.u32(program).u32(version).u32(TCP).u32(0);
    };
    let server = SocketAddr::new(host, PORTMAPPER_PORT);
    let record = exchange(server, GETPORT, credential, watch, arguments)?;
    let results = reply_results(record.bytes(), GETPORT).map_err(io::Error::other)?;
    let port = Decoder::new(results).u32().map_err(|error| invalid(format!("no port: {error}")))?;
    Ok(u16::try_from(port).ok().filter(|&port| port != 0))
}

/// Mounts the longest leading part of the path that the server takes.
fn mount_longest(
    folder: &NfsUrl,
    server: SocketAddr,
    credential: &Credential,
    watch: &Watch,
) -> Result<(Handle, Vec<String>), Failure> {
    let names: Vec<&str> = folder.path.split('/').filter(|name| !name.is_empty()).collect();
    let mut denied = false;
    for taken in (0..=names.len()).rev() {
        let path = format!("/{}", names[..taken].join("/"));
        match mount_one(folder, server, credential, &path, watch)? {
            Ok(root) => {
                return Ok((root, names[taken..].iter().map(ToString::to_string).collect()));
            }
            Err(status) => denied |= matches!(status, 1 | 13),
        }
    }
    let url = folder.to_string();
    let exports = exports(server, credential, watch).unwrap_or_default();
    let offers = if exports.is_empty() {
        "it names no exports".to_owned()
    } else {
        format!("its exports are {}", exports.join(", "))
    };
    Err(Failure::Final(if denied || !exports.is_empty() {
        let reason = format!("the server mounts no part of this path for this address; {offers}");
        StoreError::Denied { doing: "mounting", url, reason }
    } else {
        StoreError::NotFound { url }
    }))
}

/// `Ok(Err(status))`: the server does not mount this path; perhaps a shorter one.
fn mount_one(
    folder: &NfsUrl,
    server: SocketAddr,
    credential: &Credential,
    path: &str,
    watch: &Watch,
) -> Result<Result<Handle, u32>, Failure> {
    let final_error = |error: StoreError| Failure::Final(error);
    let protocol = |reason: String| StoreError::Protocol {
        doing: "mounting",
        url: folder.to_string(),
        reason,
    };
    let record = exchange(server, MNT, credential, watch, |call| {
        call.opaque(path.as_bytes());
    })?;
    let results = match reply_results(record.bytes(), MNT) {
        Ok(results) => results,
        // Another service on a port that was only guessed, or a server that is still starting.
        Err(error @ (RpcError::ProgramUnavailable { .. } | RpcError::System)) => {
            return Err(Failure::Again(io::Error::other(error)));
        }
        Err(error @ RpcError::Authentication { .. }) => {
            let url = folder.to_string();
            return Err(final_error(StoreError::Denied {
                doing: "mounting",
                url,
                reason: error.to_string(),
            }));
        }
        Err(error) => return Err(final_error(protocol(error.to_string()))),
    };
    let (root, flavors) = match read_mounted(results) {
        Ok(Ok(mounted)) => mounted,
        Ok(Err(status)) => return Ok(Err(status)),
        Err(error) => return Err(final_error(protocol(error.to_string()))),
    };
    if !flavors.is_empty() && !flavors.contains(&AUTH_UNIX) {
        let reason = "the export wants Kerberos; allow sec=sys for this address".to_owned();
        let url = folder.to_string();
        return Err(final_error(StoreError::Denied { doing: "mounting", url, reason }));
    }
    Ok(Ok(root))
}

/// `mountres3`.
pub(super) fn read_mounted(results: &[u8]) -> Result<Result<(Handle, Vec<u32>), u32>, XdrError> {
    let mut decoder = Decoder::new(results);
    let status = decoder.u32()?;
    if status != 0 {
        return Ok(Err(status));
    }
    let root = Handle::read(&mut decoder)?;
    let count = decoder.u32()?;
    if count > MAX_FLAVORS {
        return Err(XdrError::TooLong { len: count, limit: MAX_FLAVORS });
    }
    let flavors = (0..count).map(|_| decoder.u32()).collect::<Result<_, _>>()?;
    Ok(Ok((root, flavors)))
}

/// The exports that the server tells everybody.
fn exports(server: SocketAddr, credential: &Credential, watch: &Watch) -> io::Result<Vec<String>> {
    let record = exchange(server, EXPORT, credential, watch, |_| {})?;
    let results = reply_results(record.bytes(), EXPORT).map_err(io::Error::other)?;
    read_exports(results).map_err(io::Error::other)
}

pub(super) fn read_exports(results: &[u8]) -> Result<Vec<String>, XdrError> {
    let mut decoder = Decoder::new(results);
    let mut exports = Vec::new();
    while decoder.bool()? {
        exports.push(String::from_utf8_lossy(decoder.opaque(MAX_PATH_BYTES)?).into_owned());
        while decoder.bool()? {
            decoder.opaque(MAX_PATH_BYTES)?;
        }
    }
    Ok(exports)
}

/// One call on a connection of its own.
fn exchange(
    server: SocketAddr,
    procedure: Procedure,
    credential: &Credential,
    watch: &Watch,
    arguments: impl FnOnce(&mut Encoder),
) -> io::Result<Record> {
    go_on(watch)?;
    let mut stream = connect_privileged(server, watch)?;
    let mut call = begin_call(uuid::Uuid::new_v4().as_fields().0, procedure, credential);
    arguments(&mut call);
    stream.write_all(&finish_call(call, 0))?;
    let mut limited = Limited { stream, deadline: Instant::now() + ANSWER_TIMEOUT, watch };
    read_record(&mut limited, &Arc::new(Pool::default()))
}

/// Lets the watch speak, and fails once nothing is waited for any more.
fn go_on(watch: &Watch) -> io::Result<()> {
    match watch.check() {
        Some(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the time for it is over")),
        None => Ok(()),
    }
}

/// Reads with a deadline over all reads.
struct Limited<'a> {
    stream: TcpStream,
    deadline: Instant,
    watch: &'a Watch,
}

impl Read for Limited<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(buffer) {
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) && Instant::now() < self.deadline =>
                {
                    go_on(self.watch)?;
                }
                Err(error) if is_time_out(&error) => {
                    let text = format!("no answer within {} s", ANSWER_TIMEOUT.as_secs());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
                other => return other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nfs3_types::mount as theirs;
    use nfs3_types::xdr_codec::{List, Opaque, Pack};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn results_of_an_independent_codec() {
        let mut bytes = Vec::new();
        let ok = theirs::mountres3_ok {
            fhandle: theirs::fhandle3(Opaque::borrowed(b"handle")),
            auth_flavors: vec![AUTH_UNIX, 390_003],
        };
        theirs::mountres3::Ok(ok).pack(&mut bytes).unwrap();
        let (handle, flavors) = read_mounted(&bytes).unwrap().unwrap();
        assert_eq!((handle.0.as_slice(), flavors.as_slice()), (&b"handle"[..], &[1, 390_003][..]));

        let mut bytes = Vec::new();
        let node = |path: &'static [u8]| theirs::export_node {
            ex_dir: theirs::dirpath(Opaque::borrowed(path)),
            ex_groups: List(vec![theirs::name(Opaque::borrowed(b"10.0.0.0/8"))]),
        };
        List(vec![node(b"/images"), node(b"/b")]).pack(&mut bytes).unwrap();
        assert_eq!(read_exports(&bytes).unwrap(), ["/images", "/b"]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_result_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = read_mounted(&bytes);
            let _ = read_exports(&bytes);
        }
    }
}
