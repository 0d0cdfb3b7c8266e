//! The address and network of an interface.

use std::fmt;
use std::net::Ipv4Addr;

use nix::ifaddrs::getifaddrs;

/// An IPv4 address and the network it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// Our own address.
    pub address: Ipv4Addr,
    /// Length of the prefix, 0 to 32.
    pub prefix: u8,
}

impl Subnet {
    /// The netmask.
    #[must_use]
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0))
    }

    /// The network's own address.
    #[must_use]
    pub fn network(&self) -> Ipv4Addr {
        self.address & self.mask()
    }

    /// The last address.
    #[must_use]
    pub fn broadcast(&self) -> Ipv4Addr {
        self.address | !self.mask()
    }

    /// Whether a machine of this network may have the address.
    #[must_use]
    pub fn is_host(&self, ip: Ipv4Addr) -> bool {
        ip & self.mask() == self.network() && ip != self.network() && ip != self.broadcast()
    }

    /// Addresses for hosts that were given none: .100 to .199, or everything in a small network.
    #[must_use]
    pub fn default_pool(&self) -> (Ipv4Addr, Ipv4Addr) {
        let network = u32::from(self.network());
        if self.prefix <= 24 {
            (Ipv4Addr::from(network + 100), Ipv4Addr::from(network + 199))
        } else {
            let last = u32::from(self.broadcast()).saturating_sub(1).max(network);
            (Ipv4Addr::from((network + 1).min(last)), Ipv4Addr::from(last))
        }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

/// The first IPv4 address of an interface.
///
/// # Errors
/// When interfaces cannot be listed.
pub fn subnet_of_interface(name: &str) -> nix::Result<Option<Subnet>> {
    Ok(all()?.into_iter().find(|(interface, _)| interface == name).map(|(_, subnet)| subnet))
}

/// The interface that has the address.
///
/// # Errors
/// When interfaces cannot be listed.
pub fn interface_of_address(address: Ipv4Addr) -> nix::Result<Option<(String, Subnet)>> {
    Ok(all()?.into_iter().find(|(_, subnet)| subnet.address == address))
}

fn all() -> nix::Result<Vec<(String, Subnet)>> {
    let mut found = Vec::new();
    for entry in getifaddrs()? {
        let ip = |address: Option<nix::sys::socket::SockaddrStorage>| {
            address.as_ref().and_then(|a| a.as_sockaddr_in()).map(nix::sys::socket::SockaddrIn::ip)
        };
        if let (Some(address), Some(mask)) = (ip(entry.address), ip(entry.netmask)) {
            let prefix = u8::try_from(u32::from(mask).leading_ones()).unwrap_or(32);
            found.push((entry.interface_name, Subnet { address, prefix }));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str, prefix: u8) -> Subnet {
        Subnet { address: text.parse().unwrap(), prefix }
    }

    #[test]
    fn arithmetic() {
        let net = subnet("10.77.0.1", 24);
        assert_eq!(net.to_string(), "10.77.0.0/24");
        assert_eq!(net.mask(), Ipv4Addr::new(255, 255, 255, 0));
        assert!(net.is_host("10.77.0.254".parse().unwrap()));
        for no in ["10.77.0.0", "10.77.0.255", "10.77.1.1"] {
            assert!(!net.is_host(no.parse().unwrap()), "{no}");
        }
        assert_eq!(net.default_pool().0, Ipv4Addr::new(10, 77, 0, 100));
        assert_eq!(
            subnet("10.0.0.1", 30).default_pool(),
            (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2))
        );
        assert_eq!(subnet("10.0.0.1", 32).mask(), Ipv4Addr::BROADCAST);
        assert_eq!(subnet("10.0.0.1", 0).mask(), Ipv4Addr::UNSPECIFIED);
    }

    #[test]
    fn loopback_is_found() {
        assert_eq!(subnet_of_interface("lo").unwrap().unwrap().address, Ipv4Addr::LOCALHOST);
        assert_eq!(interface_of_address(Ipv4Addr::LOCALHOST).unwrap().unwrap().0, "lo");
        assert_eq!(subnet_of_interface("no-such-interface").unwrap(), None);
    }
}
