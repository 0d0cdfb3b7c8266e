//! `AF_PACKET` datagram sockets, as in packet(7): IPv4 packets of one interface that has no address yet.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, recv, socket};

/// An IPv4 packet socket bound to one interface. The kernel adds and takes off the link layer's header.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    interface_index: i32,
}

impl PacketSocket {
    /// Opens a socket that sees the IPv4 packets of interface `interface_index`.
    pub fn open(interface_index: u32) -> io::Result<Self> {
        let interface_index = i32::try_from(interface_index)
            .map_err(|_| io::Error::other("an interface index beyond what the kernel hands out"))?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Packet, SockType::Datagram, flags, SockProtocol::EthIp)?;
        let address = link_address(interface_index, [0; 6]);
        // SAFETY: bind(2) reads `address_len()` bytes of a sockaddr_ll, which `address` is and which outlives the call.
        let result = unsafe {
            libc::bind(fd.as_raw_fd(), (&raw const address).cast::<libc::sockaddr>(), address_len())
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { fd, interface_index })
    }

    /// Sends one IPv4 packet to a link-layer address.
    pub fn send_to(&self, packet: &[u8], mac: [u8; 6]) -> io::Result<()> {
        let address = link_address(self.interface_index, mac);
        // SAFETY: sendto(2) reads `packet.len()` bytes of `packet` and `address_len()` bytes of `address`; both outlive the call.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                packet.as_ptr().cast::<libc::c_void>(),
                packet.len(),
                0,
                (&raw const address).cast::<libc::sockaddr>(),
                address_len(),
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Takes the next packet, if one waits; its length (longer packets are cut to the buffer).
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.fd.as_raw_fd(), buffer, nix::sys::socket::MsgFlags::empty())?)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn address_len() -> libc::socklen_t {
    libc::socklen_t::try_from(mem::size_of::<libc::sockaddr_ll>()).expect("20 fits")
}

fn link_address(interface_index: i32, mac: [u8; 6]) -> libc::sockaddr_ll {
    let mut sll_addr = [0_u8; 8];
    sll_addr[..6].copy_from_slice(&mac);
    libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).expect("AF_PACKET is 17"),
        sll_protocol: u16::try_from(libc::ETH_P_IP).expect("ETH_P_IP is 0x0800").to_be(),
        sll_ifindex: interface_index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr,
    }
}
