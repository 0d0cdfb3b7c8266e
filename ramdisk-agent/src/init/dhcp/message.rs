//! DHCP messages as bytes: RFC 2131 for the frame, RFC 2132 for the options, RFC 3442 for classless routes, RFC 3396 for options
//! cut in pieces.
//!
//! The reader is total: any bytes in, a reply or an error out. What it does not need it skips.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::super::net::Mac;

/// Fixed part, before the magic cookie.
const FIXED_LEN: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Old relays drop shorter messages (RFC 1542).
const MIN_LEN: usize = 300;
const BOOT_REQUEST: u8 = 1;
const BOOT_REPLY: u8 = 2;
const ETHERNET: u8 = 1;
/// "Answer to the broadcast address": this machine cannot hear its own address yet.
const BROADCAST_FLAG: u16 = 0x8000;
/// Options this client understands; in the order in which it asks for them.
const ASKED: [u8; 10] = [1, 121, 3, 6, 15, 26, 51, 54, 58, 59];
/// What this client calls itself.
const VENDOR_CLASS: &[u8] = b"imprint-agent";

/// Kinds of messages (option 53) that this client sends or understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Who is there?
    Discover,
    /// A server offers an address.
    Offer,
    /// The client wants it.
    Request,
    /// It is the client's.
    Ack,
    /// It is not.
    Nak,
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::Discover => 1,
            Self::Offer => 2,
            Self::Request => 3,
            Self::Ack => 5,
            Self::Nak => 6,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Discover, Self::Offer, Self::Request, Self::Ack, Self::Nak]
            .into_iter()
            .find(|k| k.code() == code)
    }
}

/// What the client sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// [`Kind::Discover`] or [`Kind::Request`].
    pub kind: Kind,
    /// Ties replies to requests.
    pub transaction: u32,
    /// Seconds since the client began.
    pub secs: u16,
    /// The client's card.
    pub mac: Mac,
    /// The client's address, if it has it already (renewal).
    pub client: Option<Ipv4Addr>,
    /// The address that it asks for (option 50).
    pub wanted: Option<Ipv4Addr>,
    /// The server whose offer it takes (option 54).
    pub server: Option<Ipv4Addr>,
}

impl Request {
    /// The message as bytes, without UDP and IP.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut m = vec![BOOT_REQUEST, ETHERNET, 6, 0];
        m.extend(self.transaction.to_be_bytes());
        m.extend(self.secs.to_be_bytes());
        let flags = if self.client.is_some() { 0 } else { BROADCAST_FLAG };
        m.extend(flags.to_be_bytes());
        m.extend(self.client.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
        m.extend([0; 12]);
        m.extend(self.mac.octets());
        m.resize(FIXED_LEN, 0);
        m.extend(COOKIE);
        option(&mut m, 53, &[self.kind.code()]);
        let mut id = vec![ETHERNET];
        id.extend(self.mac.octets());
        option(&mut m, 61, &id);
        option(&mut m, 57, &1500_u16.to_be_bytes());
        option(&mut m, 60, VENDOR_CLASS);
        if let Some(wanted) = self.wanted {
            option(&mut m, 50, &wanted.octets());
        }
        if let Some(server) = self.server {
            option(&mut m, 54, &server.octets());
        }
        option(&mut m, 55, &ASKED);
        m.push(255);
        m.resize(m.len().max(MIN_LEN), 0);
        m
    }
}

fn option(message: &mut Vec<u8>, code: u8, value: &[u8]) {
    message.push(code);
    message.push(u8::try_from(value.len()).expect("the options sent here are short"));
    message.extend(value);
}

/// A route to a network, directly or by a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The network.
    pub target: Ipv4Addr,
    /// Its prefix length.
    pub prefix_len: u8,
    /// The gateway; `None`: on the link.
    pub gateway: Option<Ipv4Addr>,
}

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Offer, acknowledgement or refusal.
    pub kind: Kind,
    /// The request it answers.
    pub transaction: u32,
    /// The card it is for.
    pub mac: Mac,
    /// The address that the client gets.
    pub address: Ipv4Addr,
    /// The server (option 54).
    pub server: Option<Ipv4Addr>,
    /// The network's prefix length; from the address's class if the server does not say.
    pub prefix_len: u8,
    /// Routes: the classless ones if there are any, else the default one.
    pub routes: Vec<Route>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// Domain for short names.
    pub domain: Option<String>,
    /// Largest packet.
    pub mtu: Option<u16>,
    /// How long the address is the client's; `None`: for ever.
    pub lease_secs: Option<u32>,
    /// When to renew it.
    pub renew_secs: Option<u32>,
    /// When to ask any server.
    pub rebind_secs: Option<u32>,
    /// Why the server refuses (option 56).
    pub message: Option<String>,
}

/// Why bytes are no reply for this client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than the fixed part, or another protocol.
    #[error("not a DHCP reply")]
    NotDhcp,
    /// Not Ethernet.
    #[error("not for an Ethernet card")]
    NotEthernet,
    /// An option runs over the end.
    #[error("an option is longer than the message")]
    Truncated,
    /// The kind is missing or not one for clients.
    #[error("no kind of message that a client knows")]
    UnknownKind,
}

impl Reply {
    /// Reads a message, without UDP and IP.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let fixed = bytes.get(..FIXED_LEN).ok_or(DecodeError::NotDhcp)?;
        let rest = bytes
            .get(FIXED_LEN..)
            .and_then(|r| r.strip_prefix(&COOKIE))
            .ok_or(DecodeError::NotDhcp)?;
        if fixed[0] != BOOT_REPLY {
            return Err(DecodeError::NotDhcp);
        }
        if fixed[1] != ETHERNET || fixed[2] != 6 {
            return Err(DecodeError::NotEthernet);
        }
        let mut options = BTreeMap::new();
        collect(rest, &mut options)?;
        // Option 52: the options go on in the fields for file (bit 0) and server name (bit 1).
        let overload = options.get(&52).and_then(|v: &Vec<u8>| v.first().copied()).unwrap_or(0);
        if overload & 1 != 0 {
            collect(&fixed[108..236], &mut options)?;
        }
        if overload & 2 != 0 {
            collect(&fixed[44..108], &mut options)?;
        }
        let kind = options
            .get(&53)
            .and_then(|v| Kind::from_code(*v.first()?))
            .ok_or(DecodeError::UnknownKind)?;
        let address = ipv4(&fixed[16..20]).ok_or(DecodeError::NotDhcp)?;
        let mac: [u8; 6] = fixed[28..34].try_into().map_err(|_| DecodeError::NotDhcp)?;
        Ok(Self {
            kind,
            transaction: u32_option(Some(&fixed[4..8].to_vec())).ok_or(DecodeError::NotDhcp)?,
            mac: Mac::new(mac),
            address,
            server: options.get(&54).and_then(|v| ipv4(v)),
            prefix_len: options
                .get(&1)
                .and_then(|v| prefix_of_mask(v))
                .unwrap_or_else(|| prefix_of_class(address)),
            routes: routes(&options),
            dns: options
                .get(&6)
                .map(|v| v.chunks_exact(4).filter_map(ipv4).collect())
                .unwrap_or_default(),
            domain: options.get(&15).and_then(|v| domain(v)),
            mtu: options
                .get(&26)
                .and_then(|v| <[u8; 2]>::try_from(v.as_slice()).ok())
                .map(u16::from_be_bytes),
            lease_secs: u32_option(options.get(&51)).filter(|s| *s != u32::MAX),
            renew_secs: u32_option(options.get(&58)),
            rebind_secs: u32_option(options.get(&59)),
            message: options.get(&56).map(|v| String::from_utf8_lossy(v).into_owned()),
        })
    }
}

/// Reads options up to the end mark; the pieces of one option are put together.
fn collect(mut bytes: &[u8], options: &mut BTreeMap<u8, Vec<u8>>) -> Result<(), DecodeError> {
    while let Some((&code, rest)) = bytes.split_first() {
        match code {
            0 => bytes = rest,
            255 => return Ok(()),
            _ => {
                let (&len, rest) = rest.split_first().ok_or(DecodeError::Truncated)?;
                let (value, rest) =
                    rest.split_at_checked(usize::from(len)).ok_or(DecodeError::Truncated)?;
                options.entry(code).or_default().extend(value);
                bytes = rest;
            }
        }
    }
    Ok(())
}

fn ipv4(bytes: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
}

fn u32_option(value: Option<&Vec<u8>>) -> Option<u32> {
    <[u8; 4]>::try_from(value?.as_slice()).ok().map(u32::from_be_bytes)
}

fn prefix_of_mask(bytes: &[u8]) -> Option<u8> {
    let mask = ipv4(bytes)?.to_bits();
    (mask.count_zeros() == mask.trailing_zeros())
        .then(|| u8::try_from(mask.leading_ones()).unwrap_or(32))
}

fn prefix_of_class(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        0..128 => 8,
        128..192 => 16,
        _ => 24,
    }
}

/// A domain goes into a configuration file: letters, digits, dots and hyphens only.
fn domain(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?.trim_end_matches('\0');
    let fits = !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    fits.then(|| text.to_owned())
}

fn routes(options: &BTreeMap<u8, Vec<u8>>) -> Vec<Route> {
    // RFC 3442: a client that gets classless routes ignores the router option.
    if let Some(routes) = options.get(&121).and_then(|v| classless_routes(v)) {
        return routes;
    }
    let router = options.get(&3).and_then(|v| ipv4(v.get(..4)?));
    router
        .map(|gateway| Route {
            target: Ipv4Addr::UNSPECIFIED,
            prefix_len: 0,
            gateway: Some(gateway),
        })
        .into_iter()
        .collect()
}

/// Each route: prefix length, as many bytes of the target as it covers, gateway.
fn classless_routes(mut bytes: &[u8]) -> Option<Vec<Route>> {
    let mut routes = Vec::new();
    while let Some((&prefix_len, rest)) = bytes.split_first() {
        if prefix_len > 32 {
            return None;
        }
        let (covered, rest) = rest.split_at_checked(usize::from(prefix_len.div_ceil(8)))?;
        let (gateway, rest) = rest.split_at_checked(4)?;
        let mut target = [0; 4];
        target[..covered.len()].copy_from_slice(covered);
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix_len)).unwrap_or(0);
        routes.push(Route {
            target: Ipv4Addr::from_bits(u32::from_be_bytes(target) & mask),
            prefix_len,
            gateway: ipv4(gateway).filter(|g| !g.is_unspecified()),
        });
        bytes = rest;
    }
    Some(routes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: Mac = Mac::new([0x52, 0x54, 0, 0x77, 0, 1]);

    /// A reply with the given options, as servers build them.
    fn reply(options: &[u8]) -> Vec<u8> {
        let mut m = vec![2, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef];
        m.resize(16, 0);
        m.extend([10, 77, 0, 100]);
        m.resize(28, 0);
        m.extend(MAC.octets());
        m.resize(FIXED_LEN, 0);
        m.extend(COOKIE);
        m.extend(options);
        m
    }

    #[test]
    fn a_request_is_what_the_rfc_says() {
        let bytes = Request {
            kind: Kind::Request,
            transaction: 0x0102_0304,
            secs: 7,
            mac: MAC,
            client: None,
            wanted: Some(Ipv4Addr::new(10, 77, 0, 100)),
            server: Some(Ipv4Addr::new(10, 77, 0, 1)),
        }
        .encode();
        assert!(bytes.len() >= MIN_LEN);
        assert_eq!(bytes[..12], [1, 1, 6, 0, 1, 2, 3, 4, 0, 7, 0x80, 0]);
        assert_eq!(bytes[28..34], MAC.octets());
        assert_eq!(bytes[236..243], [99, 130, 83, 99, 53, 1, 3]);
        assert!(bytes.windows(6).any(|w| w == [50, 4, 10, 77, 0, 100]));
        assert!(bytes.windows(6).any(|w| w == [54, 4, 10, 77, 0, 1]));
    }

    #[test]
    fn an_acknowledgement_of_dnsmasq() {
        let bytes = reply(&[
            53, 1, 5, 54, 4, 10, 77, 0, 1, 51, 4, 0, 0, 0x0e, 0x10, 58, 4, 0, 0, 7, 8, 59, 4, 0, 0,
            12, 78, 1, 4, 255, 255, 255, 0, 28, 4, 10, 77, 0, 255, 6, 8, 10, 77, 0, 1, 9, 9, 9, 9,
            3, 4, 10, 77, 0, 254, 15, 3, b'l', b'a', b'b', 26, 2, 5, 120, 255,
        ]);
        let r = Reply::decode(&bytes).unwrap();
        assert_eq!((r.kind, r.transaction, r.mac), (Kind::Ack, 0xdead_beef, MAC));
        assert_eq!((r.address, r.prefix_len), (Ipv4Addr::new(10, 77, 0, 100), 24));
        assert_eq!(r.server, Some(Ipv4Addr::new(10, 77, 0, 1)));
        assert_eq!(
            (r.lease_secs, r.renew_secs, r.rebind_secs),
            (Some(3600), Some(1800), Some(3150))
        );
        assert_eq!(r.dns, vec![Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(9, 9, 9, 9)]);
        assert_eq!((r.domain.as_deref(), r.mtu), (Some("lab"), Some(1400)));
        let gateway = Some(Ipv4Addr::new(10, 77, 0, 254));
        assert_eq!(r.routes, vec![Route { target: Ipv4Addr::UNSPECIFIED, prefix_len: 0, gateway }]);
    }

    #[test]
    fn classless_routes_replace_the_router() {
        let bytes = reply(&[
            53, 1, 2, 3, 4, 10, 77, 0, 254, 121, 14, 12, 172, 16, 0, 0, 0, 0, 0, 10, 77, 0, 1, 255,
            255, 255,
        ]);
        let r = Reply::decode(&bytes).unwrap();
        assert_eq!(
            r.routes.len(),
            1,
            "a list with a prefix of 255 bits is damaged: the router counts"
        );
        let bytes = reply(&[
            53, 1, 2, 3, 4, 10, 77, 0, 254, 121, 12, 12, 172, 31, 0, 0, 0, 0, 0, 10, 77, 0, 1, 255,
        ]);
        let r = Reply::decode(&bytes).unwrap();
        assert_eq!(
            r.routes,
            vec![
                Route { target: Ipv4Addr::new(172, 16, 0, 0), prefix_len: 12, gateway: None },
                Route {
                    target: Ipv4Addr::UNSPECIFIED,
                    prefix_len: 0,
                    gateway: Some(Ipv4Addr::new(10, 77, 0, 1))
                },
            ]
        );
    }

    #[test]
    fn pieces_and_overloaded_fields_are_put_together() {
        let mut bytes = reply(&[53, 1, 5, 52, 1, 3, 6, 2, 10, 77, 6, 2, 0, 1, 255]);
        bytes[108..115].copy_from_slice(&[1, 4, 255, 255, 0, 0, 255]);
        bytes[44..51].copy_from_slice(&[54, 4, 10, 77, 0, 9, 255]);
        let r = Reply::decode(&bytes).unwrap();
        assert_eq!(r.dns, vec![Ipv4Addr::new(10, 77, 0, 1)]);
        assert_eq!((r.prefix_len, r.server), (16, Some(Ipv4Addr::new(10, 77, 0, 9))));
    }

    #[test]
    fn strange_replies_are_named() {
        assert_eq!(Reply::decode(&[]), Err(DecodeError::NotDhcp));
        assert_eq!(Reply::decode(&reply(&[53])), Err(DecodeError::Truncated));
        assert_eq!(Reply::decode(&reply(&[53, 9, 5])), Err(DecodeError::Truncated));
        assert_eq!(Reply::decode(&reply(&[53, 1, 77])), Err(DecodeError::UnknownKind));
        assert_eq!(Reply::decode(&reply(&[255])), Err(DecodeError::UnknownKind));
        let r = Reply::decode(&reply(&[
            53, 1, 5, 1, 4, 255, 0, 255, 0, 15, 4, b'a', b'\n', b'b', b'c', 255,
        ]))
        .unwrap();
        assert_eq!((r.prefix_len, r.domain), (8, None));
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
            let _ = Reply::decode(&bytes);
        }

        #[test]
        fn no_options_are_too_strange(options in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Reply::decode(&reply(&options));
        }
    }
}
