//! The machine's way to the controller: cards up, one lease, routes and name servers.
//!
//! DHCP runs on the card that the firmware booted from (`BOOTIF`), or, if the boot did not say which, on all of them at once: the
//! first lease wins. It is tried for ever, since without a network there is nothing else to do, and each round says what is
//! missing. A lease is renewed while the agent runs; when its server is silent past the end, the address is kept until a server
//! says otherwise, because a job in progress is worth more than the letter of RFC 2131.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::cmdline::Settings;
use super::console::Log;
use super::dhcp::{self, DhcpError, Lease};
use super::netlink::Netlink;

const CLASS_NET: &str = "/sys/class/net";
const ARPHRD_ETHER: &str = "1";
/// How often to look for new cards.
const LOOK: Duration = Duration::from_millis(300);
/// The rest between two rounds.
const REST: Duration = Duration::from_secs(2);
/// Smaller packets than every IPv4 host must take (RFC 791) are a server's mistake.
const MIN_MTU: u16 = 576;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac([u8; 6]);

impl Mac {
    /// From its bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a hardware address")]
pub struct MacError;

impl FromStr for Mac {
    type Err = MacError;

    /// Reads `52:54:00:77:00:01`, and `01-52-54-00-77-00-01` as boot loaders write it (the first byte is the kind of network).
    fn from_str(text: &str) -> Result<Self, MacError> {
        let parts: Vec<&str> = text.split([':', '-']).collect();
        let digits = match parts.as_slice() {
            ["01", rest @ ..] if rest.len() == 6 => rest,
            rest if rest.len() == 6 => rest,
            _ => return Err(MacError),
        };
        let mut bytes = [0; 6];
        for (byte, text) in bytes.iter_mut().zip(digits) {
            if text.len() != 2 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(MacError);
            }
            *byte = u8::from_str_radix(text, 16).map_err(|_| MacError)?;
        }
        Ok(Self(bytes))
    }
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// The kernel's name.
    pub name: String,
    /// The kernel's number.
    pub index: u32,
    /// Its address.
    pub mac: Mac,
}

impl Card {
    fn path(&self) -> PathBuf {
        Path::new(CLASS_NET).join(&self.name)
    }

    /// Whether something answers at the other end of the cable.
    #[must_use]
    pub fn has_carrier(&self) -> bool {
        // Reading the carrier of a card that is down fails.
        fs::read_to_string(self.path().join("carrier")).is_ok_and(|t| t.trim() == "1")
    }

    /// The driver's name.
    #[must_use]
    pub fn driver(&self) -> Option<String> {
        let link = fs::read_link(self.path().join("device/driver")).ok()?;
        Some(link.file_name()?.to_str()?.to_owned())
    }

    /// IPv4 addresses with their prefix lengths.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        let Ok(all) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
        all.filter(|a| a.interface_name == self.name)
            .filter_map(|a| {
                let ip = a.address.as_ref()?.as_sockaddr_in()?.ip();
                let mask = a.netmask.as_ref()?.as_sockaddr_in()?.ip();
                Some(format!("{ip}/{}", mask.to_bits().leading_ones()))
            })
            .collect()
    }
}

/// The machine's Ethernet cards, in the order of their numbers.
#[must_use]
pub fn cards() -> Vec<Card> {
    let Ok(entries) = fs::read_dir(CLASS_NET) else { return Vec::new() };
    let mut cards: Vec<Card> = entries.flatten().filter_map(|entry| card(&entry.path())).collect();
    cards.sort_by_key(|c| c.index);
    cards
}

fn card(path: &Path) -> Option<Card> {
    let field = |name: &str| fs::read_to_string(path.join(name)).ok().map(|t| t.trim().to_owned());
    if field("type")? != ARPHRD_ETHER {
        return None;
    }
    Some(Card {
        name: path.file_name()?.to_str()?.to_owned(),
        index: field("ifindex")?.parse().ok()?,
        mac: field("address")?.parse().ok().filter(|m| *m != Mac([0; 6]))?,
    })
}

/// Brings the network up, however long it takes, and keeps it up from a thread of its own.
pub fn bring_up(settings: &Settings, log: &Log) {
    if let Err(e) = Netlink::open().and_then(|mut n| n.link_up(1)) {
        log.say(format!("cannot switch on the loopback link: {e}"));
    }
    let lease = acquire(settings, log);
    let (settings, log) = (settings.clone(), log.clone());
    std::thread::spawn(move || keep(lease, &settings, &log));
}

/// Gets a lease and configures its card, in as many rounds as it takes.
fn acquire(settings: &Settings, log: &Log) -> Lease {
    let mut boot_mac = settings.boot_mac;
    loop {
        match round(boot_mac, settings.dhcp_timeout, log) {
            Some(lease) => match configure(&lease, log) {
                Ok(()) => return lease,
                Err(e) => log.say(format!("cannot configure {}: {e}", lease.card.name)),
            },
            None if boot_mac.is_some_and(|mac| !cards().iter().any(|c| c.mac == mac)) => {
                log.say("trying all network cards, since the one that BOOTIF names is not here");
                boot_mac = None;
            }
            None => log.say("no network yet: trying again"),
        }
        std::thread::sleep(REST);
    }
}

/// One round of DHCP on every card in question; the first lease wins.
fn round(boot_mac: Option<Mac>, limit: Duration, log: &Log) -> Option<Lease> {
    let deadline = Instant::now() + limit;
    let stop = AtomicBool::new(false);
    let (send, results) = channel();
    std::thread::scope(|scope| {
        let mut seen = BTreeSet::new();
        let mut running = 0_usize;
        loop {
            for card in cards() {
                if !seen.insert(card.index) {
                    continue;
                }
                if let Err(e) = Netlink::open().and_then(|mut n| n.link_up(card.index)) {
                    log.say(format!("cannot switch on {}: {e}", card.name));
                }
                if boot_mac.is_none_or(|mac| mac == card.mac) {
                    log.say(format!("DHCP on {} ({})", card.name, card.mac));
                    running += 1;
                    let (send, stop) = (send.clone(), &stop);
                    scope.spawn(move || {
                        // Nobody listens after another card has won.
                        let _ = send.send(dhcp::acquire(&card, stop, deadline));
                    });
                }
            }
            match results.recv_timeout(LOOK) {
                Ok(Ok(lease)) => break Some(lease),
                Ok(Err(e)) => {
                    log.say(chain(&e));
                    running -= 1;
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            if running == 0 && Instant::now() >= deadline {
                if seen.is_empty() {
                    log.say("this machine has no network card that the initramfs has a driver for");
                } else if let Some(mac) = boot_mac.filter(|m| !cards().iter().any(|c| c.mac == *m))
                {
                    log.say(format!("no network card has the address {mac} that BOOTIF names"));
                }
                break None;
            }
        }
        .inspect(|_| stop.store(true, Ordering::Relaxed))
    })
}

/// Gives the card its address, the kernel its routes, and the resolver its servers.
fn configure(lease: &Lease, log: &Log) -> std::io::Result<()> {
    let (card, reply) = (&lease.card, &lease.reply);
    let mut netlink = Netlink::open()?;
    if let Some(mtu) = reply.mtu.filter(|m| *m >= MIN_MTU)
        && let Err(e) = netlink.set_mtu(card.index, u32::from(mtu))
    {
        log.say(format!("{} does not take the MTU {mtu}: {e}", card.name));
    }
    netlink.add_address(card.index, reply.address, reply.prefix_len)?;
    // Routes on the link first: later gateways may be reached by them.
    for route in reply
        .routes
        .iter()
        .filter(|r| r.gateway.is_none())
        .chain(reply.routes.iter().filter(|r| r.gateway.is_some()))
    {
        if let Err(e) = netlink.add_route(card.index, route.target, route.prefix_len, route.gateway)
        {
            log.say(format!("cannot add the route to {}/{}: {e}", route.target, route.prefix_len));
        }
    }
    if let Err(e) = write_resolv_conf(Path::new("/etc/resolv.conf"), lease) {
        log.say(format!("cannot write /etc/resolv.conf: {e}"));
    }
    log.say(describe(lease));
    Ok(())
}

fn describe(lease: &Lease) -> String {
    let reply = &lease.reply;
    let mut text = format!("{} has {}/{}", lease.card.name, reply.address, reply.prefix_len);
    if let Some(server) = reply.server {
        text.push_str(&format!(" from {server}"));
    }
    if let Some(gateway) = reply.routes.iter().find(|r| r.prefix_len == 0).and_then(|r| r.gateway) {
        text.push_str(&format!(", gateway {gateway}"));
    }
    if let Some(secs) = reply.lease_secs {
        text.push_str(&format!(", for {secs} s"));
    }
    text
}

fn write_resolv_conf(path: &Path, lease: &Lease) -> std::io::Result<()> {
    let mut text = String::new();
    if let Some(domain) = &lease.reply.domain {
        text.push_str(&format!("search {domain}\n"));
    }
    for server in &lease.reply.dns {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, text)
}

/// Renews the lease for as long as the agent runs.
fn keep(mut lease: Lease, settings: &Settings, log: &Log) {
    let mut silent = false;
    loop {
        let Some([renew, rebind, _]) = lease.times() else { return };
        let age = lease.since.elapsed();
        if age < renew {
            std::thread::sleep(renew - age);
            continue;
        }
        match dhcp::extend(&lease, age >= rebind) {
            Ok(new) => {
                if silent {
                    log.say(format!("the lease on {} is renewed", new.card.name));
                }
                silent = false;
                lease = new;
            }
            Err(DhcpError::Refused { .. }) => {
                log.say(format!(
                    "the DHCP server takes {} back: asking for another address",
                    lease.reply.address
                ));
                let old = lease;
                lease = acquire(settings, log);
                if (old.card.index, old.reply.address) != (lease.card.index, lease.reply.address) {
                    forget(&old, log);
                }
            }
            Err(e) => {
                if !silent {
                    log.say(format!(
                        "the lease of {} is not renewed, going on with it: {}",
                        lease.reply.address,
                        chain(&e)
                    ));
                }
                silent = true;
                // RFC 2131, 4.4.5: wait half of what is left, a minute at least; more often for the short leases of labs.
                std::thread::sleep(
                    (renew / 4).clamp(Duration::from_secs(1), Duration::from_secs(60)),
                );
            }
        }
    }
}

fn forget(lease: &Lease, log: &Log) {
    let result = Netlink::open().and_then(|mut n| {
        n.remove_address(lease.card.index, lease.reply.address, lease.reply.prefix_len)
    });
    if let Err(e) = result {
        log.say(format!("cannot take {} from {}: {e}", lease.reply.address, lease.card.name));
    }
}

/// An error and its causes on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_as_people_and_boot_loaders_write_them() {
        let mac = Mac([0x52, 0x54, 0, 0x77, 0, 0xab]);
        assert_eq!("52:54:00:77:00:ab".parse(), Ok(mac));
        assert_eq!("01-52-54-00-77-00-AB".parse(), Ok(mac));
        assert_eq!(mac.to_string(), "52:54:00:77:00:ab");
        for bad in [
            "",
            "52:54:00:77:00",
            "02-52-54-00-77-00-ab",
            "52:54:00:77:00:+b",
            "52:54:00:77:00:ab:cd:ef",
        ] {
            assert_eq!(bad.parse::<Mac>(), Err(MacError), "{bad}");
        }
    }
}
