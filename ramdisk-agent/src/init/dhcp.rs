//! A DHCP client for one network card: get a lease, keep it.
//!
//! Before there is an address it speaks through a packet socket, so that it hears servers that answer to the address they are
//! about to give. It is patient: a switch that runs spanning tree drops everything for up to 50 s after the link is up, so
//! requests go on every few seconds until the caller's deadline. It does not probe whether an address is taken (RFC 5227): the
//! addresses of a provisioning network are the controller's.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use super::net::Card;
use crate::sys::packet::PacketSocket;

mod message;
mod packet;

pub use message::{DecodeError, Kind, Reply, Request, Route};

/// Waits between requests; the last one repeats.
const WAITS: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];
/// How often a request for an offered address is sent.
const REQUEST_TRIES: usize = 3;
/// How often to look whether somebody else has won, or the link has come.
const LOOK: Duration = Duration::from_millis(200);
/// An Ethernet packet with room for jumbo frames.
const MAX_PACKET_LEN: usize = 9216;
const BROADCAST_MAC: [u8; 6] = [0xff; 6];

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum DhcpError {
    /// The card has no link.
    #[error("{card} has no carrier: is the cable in, the switch port on?")]
    NoCarrier {
        /// The card.
        card: String,
    },
    /// Nobody offers an address.
    #[error("no DHCP server answers on {card} ({requests} requests)")]
    NoAnswer {
        /// The card.
        card: String,
        /// How many requests were sent.
        requests: usize,
    },
    /// The server takes the address back.
    #[error("the DHCP server refuses the address on {card}{}", .why.as_deref().map(|w| format!(": {w}")).unwrap_or_default())]
    Refused {
        /// The card.
        card: String,
        /// What the server says.
        why: Option<String>,
    },
    /// The kernel refuses.
    #[error("cannot {doing} on {card}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The card.
        card: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// Another card was faster.
    #[error("not needed any more")]
    Stopped,
}

/// An address for a while.
#[derive(Debug, Clone)]
pub struct Lease {
    /// The card it is for.
    pub card: Card,
    /// The server's last acknowledgement.
    pub reply: Reply,
    /// When it was given.
    pub since: Instant,
}

impl Lease {
    /// How long after `since` to renew, to ask any server, and to be without; `None`: it lasts for ever.
    #[must_use]
    pub fn times(&self) -> Option<[Duration; 3]> {
        let total = u64::from(self.reply.lease_secs?).max(4);
        let rebind = self.reply.rebind_secs.map_or(total / 8 * 7, u64::from).clamp(2, total);
        let renew = self.reply.renew_secs.map_or(total / 2, u64::from).clamp(1, rebind);
        Some([renew, rebind, total].map(Duration::from_secs))
    }
}

/// Gets a lease. Ends at `deadline`, or when `stop` is set.
pub fn acquire(card: &Card, stop: &AtomicBool, deadline: Instant) -> Result<Lease, DhcpError> {
    while !card.has_carrier() {
        pause(stop, deadline, LOOK)
            .map_err(|e| e.unwrap_or_else(|| DhcpError::NoCarrier { card: card.name.clone() }))?;
    }
    let client = Client { card, stop, deadline, began: Instant::now(), socket: open(card)? };
    let mut requests = 0;
    loop {
        let transaction = transaction();
        let wait = WAITS[requests.min(WAITS.len() - 1)];
        requests += 1;
        let no_answer = || DhcpError::NoAnswer { card: card.name.clone(), requests };
        client.broadcast(&client.request(Kind::Discover, transaction))?;
        let Some(offer) =
            client.reply(transaction, wait, no_answer, |r| r.kind == Kind::Offer && usable(r))?
        else {
            continue;
        };
        if let Some(reply) = client.take(&offer, transaction, no_answer)? {
            return Ok(Lease { card: card.clone(), reply, since: Instant::now() });
        }
    }
}

/// Renews a lease with its server, or with any server if `any`.
pub fn extend(lease: &Lease, any: bool) -> Result<Lease, DhcpError> {
    let card = &lease.card;
    let io_error = |doing| move |source| DhcpError::Io { doing, card: card.name.clone(), source };
    let never = AtomicBool::new(false);
    let wait = WAITS[2];
    let began = Instant::now();
    let client = Client { card, stop: &never, deadline: began + wait, began, socket: open(card)? };
    let own = lease.reply.address;
    let to = lease.reply.server.filter(|_| !any).unwrap_or(Ipv4Addr::BROADCAST);
    let udp = UdpSocket::bind(SocketAddrV4::new(own, packet::CLIENT_PORT))
        .map_err(io_error("use the lease's address"))?;
    udp.set_broadcast(true).map_err(io_error("broadcast"))?;
    setsockopt(&udp, sockopt::BindToDevice, &card.name.clone().into())
        .map_err(|e| io_error("bind to the card")(e.into()))?;
    let transaction = transaction();
    let request = Request { client: Some(own), ..client.request(Kind::Request, transaction) };
    udp.send_to(&request.encode(), SocketAddrV4::new(to, packet::SERVER_PORT))
        .map_err(io_error("send a renewal"))?;
    let no_answer = || DhcpError::NoAnswer { card: card.name.clone(), requests: 1 };
    let reply = client.reply(transaction, wait, no_answer, |r| {
        is_answer(r) && (r.kind == Kind::Nak || r.address == own)
    })?;
    match reply {
        Some(reply) if reply.kind == Kind::Ack => {
            let server = reply.server.or(lease.reply.server);
            Ok(Lease {
                card: card.clone(),
                reply: Reply { server, ..reply },
                since: Instant::now(),
            })
        }
        Some(nak) => Err(DhcpError::Refused { card: card.name.clone(), why: nak.message }),
        None => Err(no_answer()),
    }
}

struct Client<'a> {
    card: &'a Card,
    stop: &'a AtomicBool,
    deadline: Instant,
    began: Instant,
    socket: PacketSocket,
}

impl Client<'_> {
    fn request(&self, kind: Kind, transaction: u32) -> Request {
        let secs = u16::try_from(self.began.elapsed().as_secs()).unwrap_or(u16::MAX);
        Request {
            kind,
            transaction,
            secs,
            mac: self.card.mac,
            client: None,
            wanted: None,
            server: None,
        }
    }

    fn broadcast(&self, request: &Request) -> Result<(), DhcpError> {
        let packet = packet::wrap(&request.encode(), Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
        match self.socket.send_to(&packet, BROADCAST_MAC) {
            // A link that has just gone away: it comes back, or the deadline comes.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENETDOWN | libc::ENOBUFS)) => Ok(()),
            result => result.map_err(|source| self.io("send a request", source)),
        }
    }

    /// Asks for an offered address. `None`: start over.
    fn take(
        &self,
        offer: &Reply,
        transaction: u32,
        no_answer: impl Fn() -> DhcpError + Copy,
    ) -> Result<Option<Reply>, DhcpError> {
        let request = Request {
            wanted: Some(offer.address),
            server: offer.server,
            ..self.request(Kind::Request, transaction)
        };
        for wait in WAITS.iter().take(REQUEST_TRIES) {
            self.broadcast(&request)?;
            let same_server = |r: &Reply| r.server.is_none() || r.server == offer.server;
            if let Some(reply) =
                self.reply(transaction, *wait, no_answer, |r| is_answer(r) && same_server(r))?
            {
                let good = reply.kind == Kind::Ack && usable(&reply);
                return Ok(good.then(|| Reply { server: reply.server.or(offer.server), ..reply }));
            }
        }
        Ok(None)
    }

    /// Waits for a reply that fits; `None` when the wait is over. Fails at the deadline, or when stopped.
    fn reply(
        &self,
        transaction: u32,
        wait: Duration,
        no_answer: impl Fn() -> DhcpError,
        fits: impl Fn(&Reply) -> bool,
    ) -> Result<Option<Reply>, DhcpError> {
        let until = Instant::now() + wait;
        let mut buffer = vec![0_u8; MAX_PACKET_LEN];
        loop {
            let now = Instant::now();
            if self.stop.load(Ordering::Relaxed) {
                return Err(DhcpError::Stopped);
            }
            if now >= self.deadline {
                return Err(no_answer());
            }
            if now >= until {
                return Ok(None);
            }
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            let look = LOOK.min(until - now).max(Duration::from_millis(1));
            poll(&mut fds, PollTimeout::try_from(look).expect("a fifth of a second fits"))
                .map_err(|e| self.io("wait for a reply", e.into()))?;
            let len = match self.socket.recv(&mut buffer) {
                Ok(len) => len,
                Err(e) if is_passing(&e) => continue,
                Err(e) => return Err(self.io("receive", e)),
            };
            let message = buffer.get(..len).and_then(packet::unwrap);
            if let Some(Ok(reply)) = message.map(Reply::decode)
                && reply.transaction == transaction
                && reply.mac == self.card.mac
                && fits(&reply)
            {
                return Ok(Some(reply));
            }
        }
    }

    fn io(&self, doing: &'static str, source: io::Error) -> DhcpError {
        DhcpError::Io { doing, card: self.card.name.clone(), source }
    }
}

fn open(card: &Card) -> Result<PacketSocket, DhcpError> {
    PacketSocket::open(card.index).map_err(|source| DhcpError::Io {
        doing: "open a packet socket (is the kernel's af_packet in the initramfs?)",
        card: card.name.clone(),
        source,
    })
}

/// `EAGAIN`: nothing there. `ENETDOWN`: the link went down, and is noticed elsewhere.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR | libc::ENETDOWN))
}

fn is_answer(reply: &Reply) -> bool {
    matches!(reply.kind, Kind::Ack | Kind::Nak)
}

fn usable(reply: &Reply) -> bool {
    let a = reply.address;
    !(a.is_unspecified() || a.is_broadcast() || a.is_multicast() || a.is_loopback())
}

/// A new transaction number.
fn transaction() -> u32 {
    let bytes: [u8; 16] = *uuid::Uuid::new_v4().as_bytes();
    u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Rests; fails with `None` at the deadline.
fn pause(stop: &AtomicBool, deadline: Instant, time: Duration) -> Result<(), Option<DhcpError>> {
    if stop.load(Ordering::Relaxed) {
        return Err(Some(DhcpError::Stopped));
    }
    if Instant::now() >= deadline {
        return Err(None);
    }
    std::thread::sleep(time);
    Ok(())
}
