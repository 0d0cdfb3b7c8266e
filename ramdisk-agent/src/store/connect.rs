//! TCP connections to a server, whatever it speaks: addresses, time limits, and the privileged source port that an NFS server's
//! `secure` exports ask for.
//!
//! Neither a name server nor a server that is not there can be waited for in pieces: both are asked in a thread of its own, which is left
//! behind when nobody waits any more.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, connect as connect_socket, ipproto, socket_with,
};

use super::StoreError;
use super::watch::Watch;

/// How long one attempt to connect may take.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A receiver wakes up this often to see whether it is still wanted.
pub(super) const RECEIVE_TICK: Duration = Duration::from_millis(500);
/// How long sent data may stay unacknowledged, and how long a peer may leave probes unanswered.
const DEAD_PEER_AFTER: Duration = Duration::from_secs(20);
/// The ports that servers trust (the kernel's client takes the same range).
const PRIVILEGED: std::ops::RangeInclusive<u16> = 665..=1023;

/// The addresses of a host, IPv4 first as most servers' exports are by IPv4 address.
pub(super) fn resolve(host: &str, watch: &Watch) -> Result<Vec<IpAddr>, StoreError> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![address]);
    }
    let failed = |source| StoreError::Resolve { host: host.to_owned(), source };
    let name = host.to_owned();
    let ask = move || {
        let found = (name.as_str(), 0).to_socket_addrs()?;
        Ok(found.map(|address| address.ip()).collect::<Vec<IpAddr>>())
    };
    let mut addresses = unless_over(watch, ask)
        .map_err(|error| watch.called_off().unwrap_or_else(|| failed(Some(error))))?;
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses.dedup();
    if addresses.is_empty() { Err(failed(None)) } else { Ok(addresses) }
}

/// Connects.
pub(super) fn connect(to: SocketAddr, watch: &Watch) -> io::Result<TcpStream> {
    unless_over(watch, move || connect_from(None, to).map_err(describe_timeout))
}

/// Connects, from a privileged port if this process may have one.
pub(super) fn connect_privileged(to: SocketAddr, watch: &Watch) -> io::Result<TcpStream> {
    unless_over(watch, move || connect_from_privileged(to))
}

fn connect_from_privileged(to: SocketAddr) -> io::Result<TcpStream> {
    let ports = u16::try_from(PRIVILEGED.len()).expect("the range has 359 ports");
    let first = random_u16() % ports;
    for step in 0..ports {
        let port = PRIVILEGED.start() + (first + step) % ports;
        match connect_from(Some(port), to) {
            Err(Errno::ADDRINUSE | Errno::ADDRNOTAVAIL) => {}
            Err(Errno::ACCESS | Errno::PERM) => break,
            other => return other.map_err(describe_timeout),
        }
    }
    connect_from(None, to).map_err(describe_timeout)
}

/// Waits for something that cannot be called off for as long as the watch has patience.
fn unless_over<T: Send + 'static>(
    watch: &Watch,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (done, answer) = channel();
    std::thread::Builder::new().name("store-connect".to_owned()).spawn(move || {
        // Whoever waited may have given up.
        let _ = done.send(work());
    })?;
    loop {
        match answer.recv_timeout(RECEIVE_TICK) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Timeout) => {
                if watch.check().is_some() || watch.is_called_off() {
                    let text = "the time for it is over";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(io::Error::other("a thread of the agent ended without a result"));
            }
        }
    }
}

/// Whether a socket of ours had nothing for a tick ([`RECEIVE_TICK`]), and not TCP itself gave up.
pub(super) fn is_time_out(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
        && error.raw_os_error() != Some(libc::ETIMEDOUT)
}

fn describe_timeout(errno: Errno) -> io::Error {
    match errno {
        // What Linux answers when SO_SNDTIMEO ends a connect.
        Errno::INPROGRESS | Errno::AGAIN => {
            io::Error::new(io::ErrorKind::TimedOut, "no answer to the attempt to connect")
        }
        other => other.into(),
    }
}

/// Some number, so that two agents of one boot do not start at the same port.
fn random_u16() -> u16 {
    let random = uuid::Uuid::new_v4();
    u16::from_be_bytes([random.as_bytes()[0], random.as_bytes()[1]])
}

fn connect_from(port: Option<u16>, to: SocketAddr) -> Result<TcpStream, Errno> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
    if let Some(port) = port {
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        bind(&socket, &SocketAddr::new(any, port))?;
    }
    sockopt::set_socket_timeout(&socket, Timeout::Send, Some(CONNECT_TIMEOUT))?;
    connect_socket(&socket, &to)?;
    sockopt::set_socket_timeout(&socket, Timeout::Send, None)?;
    sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(RECEIVE_TICK))?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, DEAD_PEER_AFTER / 4)?;
    sockopt::set_tcp_keepintvl(&socket, DEAD_PEER_AFTER / 4)?;
    sockopt::set_tcp_keepcnt(&socket, 3)?;
    let millis = u32::try_from(DEAD_PEER_AFTER.as_millis()).expect("20 s in milliseconds");
    sockopt::set_tcp_user_timeout(&socket, millis)?;
    Ok(TcpStream::from(socket))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::atomic::Ordering;
    use std::time::Instant;

    use super::super::Options;
    use super::*;

    fn watch() -> Watch {
        Watch::new("a server".to_owned(), &Options::default())
    }

    #[test]
    fn who_is_cancelled_does_not_wait_for_what_cannot_be_called_off() {
        let options = Options::default();
        let watch = Watch::new("a server".to_owned(), &options);
        let began = Instant::now();
        let error = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(200));
                options.cancelled.store(true, Ordering::Relaxed);
            });
            let work = || {
                std::thread::sleep(Duration::from_secs(60));
                Ok(())
            };
            unless_over(&watch, work).unwrap_err()
        });
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }

    #[test]
    fn root_connects_from_a_privileged_port() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _stream = connect_privileged(listener.local_addr().unwrap(), &watch()).unwrap();
        let (_, from) = listener.accept().unwrap();
        let privileged = nix::unistd::geteuid().is_root();
        assert_eq!(from.port() < 1024, privileged, "{from}");
    }

    #[test]
    fn a_closed_port_refuses_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        for connect in [connect, connect_privileged] {
            assert_eq!(
                connect(address, &watch()).unwrap_err().kind(),
                io::ErrorKind::ConnectionRefused
            );
        }
    }

    #[test]
    fn names_and_addresses() {
        assert_eq!(resolve("127.0.0.1", &watch()).unwrap(), [IpAddr::from([127, 0, 0, 1])]);
        assert!(resolve("localhost", &watch()).unwrap()[0].is_ipv4());
        let error = resolve("no-such-host.invalid", &watch()).unwrap_err();
        assert!(error.to_string().contains("no-such-host.invalid"), "{error}");
        assert_eq!(error.kind(), agent_api::ErrorKind::Network);
    }
}
