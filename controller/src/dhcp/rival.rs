//! Looks for another DHCP server before ours starts.
//!
//! A DISCOVER goes out in the name of a machine that does not exist, and whoever offers it an address would offer one to any machine.
//! A server that, like ours, answers known machines only stays silent and is not found; two of them that know different machines
//! do not get in each other's way.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, OptionCode};
use dhcproto::{Decodable, Encodable};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use crate::secret::random_bytes;

/// How often servers are asked, and how long they have to answer each time. Some look with a ping of one second whether the address
/// is free before they offer it, and then answer an earlier question.
const QUESTIONS: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(1);
/// Ports of DHCP's clients and servers.
const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;
/// Longest answer that is read, in bytes: an Ethernet frame's.
const ANSWER_MAX: usize = 1500;

/// Another DHCP server answers on the interface.
#[derive(Debug, thiserror::Error)]
#[error(
    "a DHCP server at {0} answers on interface {1}: machines would follow whichever answers first; end it, serve with --no-dhcp, or insist with --allow-rival-dhcp"
)]
pub struct Rival(Ipv4Addr, String);

/// Refuses when somebody else answers. A look that cannot be taken is no reason to refuse: it is logged.
///
/// # Errors
/// [`Rival`].
pub async fn refuse_rivals(interface: &str, own: Ipv4Addr) -> Result<(), Rival> {
    match find(interface, own).await {
        Ok(None) => Ok(()),
        Ok(Some(address)) => Err(Rival(address, interface.to_owned())),
        Err(error) => {
            tracing::warn!(%error, interface, "could not look for other DHCP servers");
            Ok(())
        }
    }
}

/// The address of a server other than `own` that offers an address to anybody.
async fn find(interface: &str, own: Ipv4Addr) -> io::Result<Option<Ipv4Addr>> {
    let socket = client_socket(interface)?;
    let transaction = u32::from_le_bytes(random_bytes());
    let question = discover(transaction)?;
    let mut buffer = [0; ANSWER_MAX];
    for _ in 0..QUESTIONS {
        socket.send_to(&question, SocketAddr::from((Ipv4Addr::BROADCAST, SERVER_PORT))).await?;
        let deadline = Instant::now() + PATIENCE;
        while let Ok(received) = timeout_at(deadline, socket.recv_from(&mut buffer)).await {
            let (length, from) = received?;
            if let Some(server) = offer(&buffer[..length], transaction, from)
                && server != own
            {
                return Ok(Some(server));
            }
        }
    }
    Ok(None)
}

/// A socket for DHCP's client port that hears and speaks on one interface only.
fn client_socket(interface: &str) -> io::Result<UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::Broadcast, &true)?;
    setsockopt(&socket, sockopt::BindToDevice, &interface.into())?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrIn::new(0, 0, 0, 0, CLIENT_PORT))?;
    UdpSocket::from_std(std::net::UdpSocket::from(socket))
}

/// A DISCOVER of a machine with a random, locally administered MAC address, to be answered by broadcast.
fn discover(transaction: u32) -> io::Result<Vec<u8>> {
    let mut mac: [u8; 6] = random_bytes();
    mac[0] = (mac[0] & 0xfc) | 2;
    let nowhere = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(transaction, nowhere, nowhere, nowhere, nowhere, &mac);
    message.set_flags(Flags::default().set_broadcast());
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(MessageType::Discover));
    options.insert(DhcpOption::ParameterRequestList(vec![
        OptionCode::SubnetMask,
        OptionCode::ServerIdentifier,
    ]));
    message.to_vec().map_err(io::Error::other)
}

/// Who sent this, if it is an offer for our question.
fn offer(bytes: &[u8], transaction: u32, from: SocketAddr) -> Option<Ipv4Addr> {
    let message = Message::from_bytes(bytes).ok()?;
    let is_offer =
        message.xid() == transaction && message.opts().msg_type() == Some(MessageType::Offer);
    let named = match message.opts().get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(address)) => Some(*address),
        _ => None,
    };
    match from {
        SocketAddr::V4(from) if is_offer => Some(named.unwrap_or(*from.ip())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: MessageType, transaction: u32) -> Vec<u8> {
        let nowhere = Ipv4Addr::UNSPECIFIED;
        let mut message =
            Message::new_with_id(transaction, nowhere, nowhere, nowhere, nowhere, &[2; 6]);
        message.set_opcode(dhcproto::v4::Opcode::BootReply);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        message.opts_mut().insert(DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 0, 0, 9)));
        message.to_vec().unwrap()
    }

    #[test]
    fn only_offers_for_our_question_count() {
        let from = SocketAddr::from(([10, 0, 0, 8], SERVER_PORT));
        let server = Some(Ipv4Addr::new(10, 0, 0, 9));
        assert_eq!(offer(&answer(MessageType::Offer, 7), 7, from), server);
        assert_eq!(offer(&answer(MessageType::Offer, 8), 7, from), None);
        assert_eq!(offer(&answer(MessageType::Ack, 7), 7, from), None);
        let bytes = answer(MessageType::Offer, 7);
        for length in 0..240 {
            assert_eq!(offer(&bytes[..length], 7, from), None, "{length}");
        }
    }

    #[test]
    fn the_question_is_a_discover_of_nobody() {
        let message = Message::from_bytes(&discover(7).unwrap()).unwrap();
        assert_eq!(message.opts().msg_type(), Some(MessageType::Discover));
        assert_eq!(message.chaddr()[0] & 3, 2, "locally administered, one machine's");
        assert!(message.flags().broadcast());
    }
}
