//! The four things that the agent asks of the kernel's network: a link up, its MTU, an address, a route.
//!
//! rtnetlink(7) by hand: a request is a header, a fixed part and attributes, and the answer is one error number. Reading the
//! state of links is sysfs's business, not this module's. IPv4 only.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    socket,
};
use std::os::fd::AsFd;

/// How long the kernel may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
const HEADER_LEN: usize = 16;
/// Message type and flags of `linux/netlink.h` and `linux/rtnetlink.h`.
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const IFF_UP: u32 = 1;
const AF_INET: u8 = 2;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_DHCP: u8 = 16;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RTNH_F_ONLINK: u32 = 4;

/// A conversation with the kernel about its network.
#[derive(Debug)]
pub struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens the conversation.
    pub fn open() -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Switches a link on.
    pub fn link_up(&mut self, index: u32) -> io::Result<()> {
        self.ask(&Request::new(RTM_NEWLINK, 0).link(index, IFF_UP, IFF_UP))
    }

    /// Sets a link's largest packet.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        self.ask(
            &Request::new(RTM_NEWLINK, 0).link(index, 0, 0).attribute(IFLA_MTU, &mtu.to_ne_bytes()),
        )
    }

    /// Gives a link an address, or renews it.
    pub fn add_address(&mut self, index: u32, address: Ipv4Addr, prefix_len: u8) -> io::Result<()> {
        let mut request = Request::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE)
            .address(index, prefix_len)
            .attribute(IFA_LOCAL, &address.octets())
            .attribute(IFA_ADDRESS, &address.octets());
        if prefix_len < 31 {
            let broadcast =
                address.to_bits() | u32::MAX.checked_shr(u32::from(prefix_len)).unwrap_or(0);
            request = request.attribute(IFA_BROADCAST, &broadcast.to_be_bytes());
        }
        self.ask(&request)
    }

    /// Takes an address away.
    pub fn remove_address(
        &mut self,
        index: u32,
        address: Ipv4Addr,
        prefix_len: u8,
    ) -> io::Result<()> {
        self.ask(
            &Request::new(RTM_DELADDR, 0)
                .address(index, prefix_len)
                .attribute(IFA_LOCAL, &address.octets())
                .attribute(IFA_ADDRESS, &address.octets()),
        )
    }

    /// Adds a route; without a gateway its targets are on the link itself.
    pub fn add_route(
        &mut self,
        index: u32,
        target: Ipv4Addr,
        prefix_len: u8,
        gateway: Option<Ipv4Addr>,
    ) -> io::Result<()> {
        let mut request = Request::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE)
            .route(prefix_len, gateway.is_some())
            .attribute(RTA_OIF, &index.to_ne_bytes());
        if prefix_len > 0 {
            request = request.attribute(RTA_DST, &target.octets());
        }
        if let Some(gateway) = gateway {
            request = request.attribute(RTA_GATEWAY, &gateway.octets());
        }
        self.ask(&request)
    }

    fn ask(&mut self, request: &Request) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        send(self.fd.as_raw_fd(), &request.encode(self.sequence), MsgFlags::empty())?;
        let mut buffer = [0_u8; 4096];
        loop {
            let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(PATIENCE).expect("ten seconds fit");
            if poll(&mut fds, timeout)? == 0 {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel does not answer"));
            }
            let len = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            if let Some(answer) =
                acknowledgement(buffer.get(..len).unwrap_or_default(), self.sequence)
            {
                return answer;
            }
        }
    }
}

/// The kernel's answer to request `sequence`, if the message is one.
fn acknowledgement(message: &[u8], sequence: u32) -> Option<io::Result<()>> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let answered = u32::from_ne_bytes(message.get(8..12)?.try_into().ok()?);
    if kind != NLMSG_ERROR || answered != sequence {
        return None;
    }
    let code = i32::from_ne_bytes(message.get(HEADER_LEN..HEADER_LEN + 4)?.try_into().ok()?);
    Some(if code == 0 { Ok(()) } else { Err(Errno::from_raw(code.saturating_neg()).into()) })
}

struct Request {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Request {
    fn new(kind: u16, flags: u16) -> Self {
        Self { kind, flags: flags | NLM_F_REQUEST | NLM_F_ACK, body: Vec::new() }
    }

    /// `struct ifinfomsg`.
    fn link(mut self, index: u32, flags: u32, change: u32) -> Self {
        self.body.extend([0, 0, 0, 0]);
        self.body.extend(index.to_ne_bytes());
        self.body.extend(flags.to_ne_bytes());
        self.body.extend(change.to_ne_bytes());
        self
    }

    /// `struct ifaddrmsg`.
    fn address(mut self, index: u32, prefix_len: u8) -> Self {
        self.body.extend([AF_INET, prefix_len, 0, RT_SCOPE_UNIVERSE]);
        self.body.extend(index.to_ne_bytes());
        self
    }

    /// `struct rtmsg`. Gateways are taken to be on the link, since clouds give /32 addresses with a gateway outside.
    fn route(mut self, prefix_len: u8, has_gateway: bool) -> Self {
        let (scope, flags) =
            if has_gateway { (RT_SCOPE_UNIVERSE, RTNH_F_ONLINK) } else { (RT_SCOPE_LINK, 0) };
        self.body.extend([
            AF_INET,
            prefix_len,
            0,
            0,
            RT_TABLE_MAIN,
            RTPROT_DHCP,
            scope,
            RTN_UNICAST,
        ]);
        self.body.extend(flags.to_ne_bytes());
        self
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let len = u16::try_from(value.len() + 4).expect("attributes here are four bytes");
        self.body.extend(len.to_ne_bytes());
        self.body.extend(kind.to_ne_bytes());
        self.body.extend(value);
        self.body.resize(self.body.len().next_multiple_of(4), 0);
        self
    }

    fn encode(&self, sequence: u32) -> Vec<u8> {
        let len = u32::try_from(HEADER_LEN + self.body.len())
            .expect("requests are shorter than 100 bytes");
        let mut message = Vec::with_capacity(HEADER_LEN + self.body.len());
        message.extend(len.to_ne_bytes());
        message.extend(self.kind.to_ne_bytes());
        message.extend(self.flags.to_ne_bytes());
        message.extend(sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend(&self.body);
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_its_length_and_padded_attributes() {
        let bytes = Request::new(RTM_NEWADDR, NLM_F_CREATE)
            .address(3, 24)
            .attribute(IFA_LOCAL, &[10, 0, 0, 1])
            .encode(9);
        assert_eq!(bytes.len(), 16 + 8 + 8);
        assert_eq!(u32::from_ne_bytes(bytes[..4].try_into().unwrap()), 32);
        assert_eq!(bytes[16..20], [2, 24, 0, 0]);
        assert_eq!(bytes[28..], [10, 0, 0, 1]);
    }

    #[test]
    fn answers_are_told_apart() {
        let answer = |kind: u16, sequence: u32, code: i32| {
            let mut m = vec![36, 0, 0, 0];
            m.extend(kind.to_ne_bytes());
            m.extend([0, 0]);
            m.extend(sequence.to_ne_bytes());
            m.extend([0; 4]);
            m.extend(code.to_ne_bytes());
            m
        };
        assert!(acknowledgement(&answer(NLMSG_ERROR, 5, 0), 5).unwrap().is_ok());
        assert!(acknowledgement(&answer(NLMSG_ERROR, 4, 0), 5).is_none());
        assert!(acknowledgement(&answer(RTM_NEWLINK, 5, 0), 5).is_none());
        assert!(acknowledgement(&[1, 2, 3], 5).is_none());
        let error = acknowledgement(&answer(NLMSG_ERROR, 5, -17), 5).unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(17));
    }

    #[test]
    fn the_kernel_of_a_new_network_namespace_does_as_asked() {
        // Its own thread, since a namespace belongs to the thread that made it.
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                .expect("this test makes a network namespace: run it as root");
            let mut netlink = Netlink::open().unwrap();
            let index = nix::net::if_::if_nametoindex("lo").unwrap();
            netlink.link_up(index).unwrap();
            netlink.set_mtu(index, 1400).unwrap();
            let address = Ipv4Addr::new(10, 9, 8, 7);
            netlink.add_address(index, address, 24).unwrap();
            netlink.add_address(index, address, 24).unwrap();
            // Outside the address's network: the loopback link takes every address inside as its own.
            let gateway = Ipv4Addr::new(10, 77, 0, 1);
            netlink.add_route(index, Ipv4Addr::UNSPECIFIED, 0, Some(gateway)).unwrap();
            netlink.add_route(index, Ipv4Addr::new(172, 16, 0, 0), 12, None).unwrap();
            let has = || {
                nix::ifaddrs::getifaddrs().unwrap().any(|a| {
                    a.address.and_then(|s| s.as_sockaddr_in().map(|s| s.ip())) == Some(address)
                })
            };
            assert!(has());
            let routes = std::fs::read_to_string("/proc/thread-self/net/route").unwrap();
            assert!(routes.contains("lo\t00000000\t01004D0A"), "{routes}");
            netlink.remove_address(index, address, 24).unwrap();
            assert!(!has());
            let error = netlink.set_mtu(4242, 1400).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        })
        .join()
        .unwrap();
    }
}
