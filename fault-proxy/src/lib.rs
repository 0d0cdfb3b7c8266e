//! A TCP proxy for tests that does to connections what networks do: it delays, slows, cuts, resets, half closes and silences them,
//! at an exact byte of either direction, and refuses new ones for a time.
//!
//! What happens to a connection is its [`Script`]; the k-th connection has the k-th one of the proxy's list, later ones what was
//! said for the rest. Some things are done to all connections while they run ([`Proxy::set_silent`], [`Proxy::end_all`],
//! [`Proxy::set_refusing`]). What was done can be counted, so that a test can tell that the fault it is about has happened. Nothing here is
//! random and nothing waits but for the faults themselves.
//!
//! Deliberately absent: knowledge of any protocol; lost packets, which TCP hides. A silenced connection is still acknowledged
//! by this machine's kernel, as by a server whose process hangs.

mod connection;

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
}

impl Way {
    fn index(self) -> usize {
        match self {
            Self::ToServer => 0,
            Self::ToClient => 1,
        }
    }
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ending {
    /// An orderly end of both sides.
    #[default]
    Close,
    /// A reset of both sides.
    Reset,
    /// It stays open, and nothing is forwarded any more: a hung server, a half-open connection.
    Silence,
    /// The side that the bytes went to sees their end; the rest stays open, and silent, for this long.
    SlowClose(Duration),
}

/// An end at a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Whose bytes are counted.
    pub way: Way,
    /// How many of them are forwarded. With 0 it happens when the first would be.
    pub after_bytes: u64,
    /// What happens then.
    pub ending: Ending,
}

/// What happens to one connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Script {
    /// Every byte is held back for this long, each way.
    pub delay: Duration,
    /// The most bytes a second, each way.
    pub bytes_per_second: Option<u64>,
    /// How it ends.
    pub fault: Option<Fault>,
}

impl Script {
    /// Ends when so many bytes have gone this way.
    #[must_use]
    pub fn ends(way: Way, after_bytes: u64, ending: Ending) -> Self {
        Self { fault: Some(Fault { way, after_bytes, ending }), ..Self::default() }
    }
}

/// How often threads look for what [`Proxy`]'s methods ask for.
const TICK_MS: u16 = 10;

/// What the proxy's threads share.
#[derive(Debug, Default)]
struct Shared {
    scripts: Mutex<VecDeque<Script>>,
    rest: Mutex<Script>,
    connections: AtomicUsize,
    faults: AtomicUsize,
    to_server: AtomicU64,
    to_client: AtomicU64,
    /// What connections carried, if that is wanted.
    recording: AtomicBool,
    recorded: Mutex<[Vec<u8>; 2]>,
    silent: AtomicBool,
    refusing: AtomicBool,
    /// Whether the listening socket is gone.
    refused: AtomicBool,
    /// How often all connections were ended, and how the last time.
    ended: Mutex<(usize, Ending)>,
    stopped: AtomicBool,
}

impl Shared {
    fn count(&self, way: Way) -> &AtomicU64 {
        match way {
            Way::ToServer => &self.to_server,
            Way::ToClient => &self.to_client,
        }
    }

    fn ended(&self) -> (usize, Ending) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A proxy in front of one server; it and its connections end when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a port of 127.0.0.1 that the kernel chooses. The first connections have these scripts, others live.
    ///
    /// # Errors
    /// If there is no port or no thread to be had.
    pub fn start(
        server: SocketAddr,
        scripts: impl IntoIterator<Item = Script>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared =
            Shared { scripts: Mutex::new(scripts.into_iter().collect()), ..Shared::default() };
        let shared = Arc::new(shared);
        let thread = std::thread::Builder::new().name("fault-proxy".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || listen(listener, address, server, &shared)
        })?;
        Ok(Self { address, shared, thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port of it.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// What happens to connections from now on for which there is no script in the list.
    pub fn set_rest(&self, script: Script) {
        *self.shared.rest.lock().unwrap_or_else(PoisonError::into_inner) = script;
    }

    /// While set nothing is forwarded on any connection, and none is closed. Connections that have met it stay silent.
    pub fn set_silent(&self, silent: bool) {
        self.shared.silent.store(silent, Ordering::SeqCst);
    }

    /// While set connections are refused. Returns when that, or the opposite, is so.
    pub fn set_refusing(&self, refusing: bool) {
        self.shared.refusing.store(refusing, Ordering::SeqCst);
        while self.shared.refused.load(Ordering::SeqCst) != refusing {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends all connections that there are.
    pub fn end_all(&self, ending: Ending) {
        let mut ended = self.shared.ended.lock().unwrap_or_else(PoisonError::into_inner);
        *ended = (ended.0 + 1, ending);
    }

    /// How many connections there have been.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How many connections have come to the end that their script has for them.
    #[must_use]
    pub fn faults(&self) -> usize {
        self.shared.faults.load(Ordering::SeqCst)
    }

    /// From now on the bytes of all connections are kept, for [`Proxy::recorded`]: with one connection, a whole dialogue.
    pub fn record(&self) {
        self.shared.recording.store(true, Ordering::SeqCst);
    }

    /// The bytes that were forwarded while they were [recorded](Proxy::record).
    #[must_use]
    pub fn recorded(&self, way: Way) -> Vec<u8> {
        self.shared.recorded.lock().unwrap_or_else(PoisonError::into_inner)[way.index()].clone()
    }

    /// How many bytes were forwarded.
    #[must_use]
    pub fn bytes(&self, way: Way) -> u64 {
        self.shared.count(way).load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // A panic in it was printed.
            let _ = thread.join();
        }
    }
}

fn listen(listener: TcpListener, address: SocketAddr, server: SocketAddr, shared: &Arc<Shared>) {
    let mut listener = Some(listener);
    let mut threads = Vec::new();
    while !shared.stopped.load(Ordering::SeqCst) {
        if shared.refusing.load(Ordering::SeqCst) {
            listener = None;
        } else if listener.is_none() {
            // The standard library's listeners share their address with connections of an earlier one. Should somebody else have
            // the port it is tried again.
            listener = TcpListener::bind(address)
                .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
                .ok();
        }
        shared.refused.store(listener.is_none(), Ordering::SeqCst);
        wait_readable(listener.as_ref());
        let Some(Ok((client, _))) = listener.as_ref().map(TcpListener::accept) else { continue };
        // A server that is down: the client sees its connection end.
        let Ok(server) = TcpStream::connect(server) else { continue };
        shared.connections.fetch_add(1, Ordering::SeqCst);
        let script = shared.scripts.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let rest = || *shared.rest.lock().unwrap_or_else(PoisonError::into_inner);
        let script = script.unwrap_or_else(rest);
        let shared = Arc::clone(shared);
        threads.push(std::thread::spawn(move || connection::run(client, server, script, &shared)));
    }
    for thread in threads {
        // As above.
        let _ = thread.join();
    }
}

/// Waits for a connection, but no longer than a tick.
fn wait_readable(listener: Option<&TcpListener>) {
    let mut sockets: Vec<PollFd<'_>> =
        listener.iter().map(|l| PollFd::new(l.as_fd(), PollFlags::POLLIN)).collect();
    // Whatever comes of it, accepting tells.
    let _ = poll(&mut sockets, PollTimeout::from(TICK_MS));
}
