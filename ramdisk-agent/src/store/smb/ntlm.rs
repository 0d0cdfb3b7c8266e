//! NTLMv2 (MS-NLMP): the two messages of a client, and the key that a session gets from them.
//!
//! Only NTLMv2 with a message integrity code; NTLMv1 and LM answers are never sent. A guest's session is an anonymous one (no name,
//! no answer), or that of the user "Guest" with an empty password. The challenge comes from outside: reading it is total.

use hmac::{Hmac, KeyInit as _, Mac as _};
use md4::{Digest as _, Md4};
use md5::Md5;

use super::wire::{Cursor, Put as _, WireError, len16, part, utf16};

const SIGNATURE: &[u8; 8] = b"NTLMSSP\0";

// NEGOTIATE flags (MS-NLMP 2.2.2.5).
const UNICODE: u32 = 1;
const REQUEST_TARGET: u32 = 1 << 2;
const SIGN: u32 = 1 << 4;
const NTLM: u32 = 1 << 9;
const ANONYMOUS: u32 = 1 << 11;
const ALWAYS_SIGN: u32 = 1 << 15;
const EXTENDED_SESSION_SECURITY: u32 = 1 << 19;
const TARGET_INFO: u32 = 1 << 23;
const VERSION: u32 = 1 << 25;
const KEY_128: u32 = 1 << 29;
const KEY_EXCHANGE: u32 = 1 << 30;
const KEY_56: u32 = 1 << 31;

const FLAGS: u32 = UNICODE
    | REQUEST_TARGET
    | SIGN
    | NTLM
    | ALWAYS_SIGN
    | EXTENDED_SESSION_SECURITY
    | TARGET_INFO
    | VERSION
    | KEY_128
    | KEY_EXCHANGE
    | KEY_56;

/// A version field: none that exists; revision 15 is the one there is.
const VERSION_FIELD: [u8; 8] = [6, 1, 0, 0, 0, 0, 0, 15];

// AV pairs of the target information (MS-NLMP 2.2.2.1).
const AV_END: u16 = 0;
const AV_FLAGS: u16 = 6;
const AV_TIMESTAMP: u16 = 7;
const AV_TARGET_NAME: u16 = 9;
/// "There is a message integrity code."
const AV_FLAG_MIC: u32 = 2;
/// The most pairs that are looked at.
const MAX_PAIRS: usize = 64;

const MIC_AT: std::ops::Range<usize> = 72..88;
const AUTHENTICATE_BYTES: usize = 88;
/// 100 ns steps between 1601 and 1970.
const UNIX_EPOCH: u64 = 116_444_736_000_000_000;

/// Who logs in.
#[derive(Clone, Copy)]
pub(super) struct Login<'a> {
    pub(super) user: &'a str,
    pub(super) domain: &'a str,
    pub(super) password: &'a str,
}

/// Random numbers of one login.
#[derive(Clone, Copy)]
pub(super) struct Random {
    pub(super) challenge: [u8; 8],
    pub(super) session_key: [u8; 16],
}

/// The server's challenge.
#[derive(Debug, Clone)]
pub(super) struct Challenge {
    flags: u32,
    nonce: [u8; 8],
    /// The AV pairs but for the end.
    pairs: Vec<u8>,
    timestamp: Option<u64>,
}

/// The first message.
pub(super) fn negotiate() -> Vec<u8> {
    let mut out = Vec::with_capacity(40);
    out.bytes(SIGNATURE).u32(1).u32(FLAGS);
    // No domain and no workstation.
    out.u64(0).u64(0).bytes(&VERSION_FIELD);
    out
}

impl Challenge {
    /// Reads the second message.
    pub(super) fn read(message: &[u8]) -> Result<Self, WireError> {
        let mut cursor = Cursor::new(message);
        if cursor.bytes(8)? != SIGNATURE {
            return Err(WireError::Value { field: "NTLMSSP signature", value: 0 });
        }
        match cursor.u32()? {
            2 => {}
            value => return Err(WireError::Value { field: "NTLMSSP type", value: value.into() }),
        }
        let flags = cursor.skip(8)?.u32()?;
        let nonce = cursor.array()?;
        let (len, offset) = (cursor.skip(8)?.u16()?, cursor.skip(2)?.u32()?);
        let info = part(message, offset, len.into())?;
        let (mut pairs, mut timestamp) = (Vec::new(), None);
        let mut cursor = Cursor::new(info);
        // An empty one has not even an end.
        for _ in 0..if info.is_empty() { 0 } else { MAX_PAIRS } {
            let (id, len) = (cursor.u16()?, cursor.u16()?);
            let value = cursor.bytes(len.into())?;
            match id {
                AV_END => break,
                AV_TIMESTAMP => timestamp = Some(Cursor::new(value).u64()?),
                _ => {}
            }
            if !matches!(id, AV_FLAGS | AV_TARGET_NAME) {
                pairs.u16(id).u16(len).bytes(value);
            }
        }
        Ok(Self { flags, nonce, pairs, timestamp })
    }
}

/// The third message, and what the session has from it.
pub(super) struct Authenticated {
    pub(super) message: Vec<u8>,
    pub(super) session_key: [u8; 16],
    flags: u32,
}

impl Authenticated {
    /// The signature of the session's first message (MS-NLMP 3.4.4.2), here under the list of mechanisms.
    pub(super) fn sign(&self, message: &[u8]) -> [u8; 16] {
        let key = |purpose: &[u8]| {
            let text = [&self.session_key, &b"session key to client-to-server "[..], purpose];
            Md5::digest([&text.concat()[..], b" key magic constant\0"].concat())
        };
        let sequence = [0; 4];
        let mac = hmac_md5(&key(b"signing"), &[&sequence, message]);
        let mut checksum = mac[..8].to_vec();
        if self.flags & KEY_EXCHANGE != 0 {
            checksum = rc4(&key(b"sealing"), &checksum);
        }
        let mut signature = [0; 16];
        signature[0] = 1;
        signature[4..12].copy_from_slice(&checksum);
        signature
    }
}

/// The third message, and the key of the session.
///
/// `target` is the server as this client knows it ("cifs/host"), which a relaying attacker could not say. `messages` are the first
/// two.
pub(super) fn authenticate(
    login: Option<Login<'_>>,
    challenge: &Challenge,
    target: &str,
    messages: [&[u8]; 2],
    random: Random,
) -> Authenticated {
    let Some(login) = login else { return anonymous(challenge) };
    let response_key = response_key(&login);
    let timestamp = challenge.timestamp.unwrap_or_else(now);
    let mut temp = vec![1, 1, 0, 0, 0, 0, 0, 0];
    temp.u64(timestamp).bytes(&random.challenge).u32(0).bytes(&challenge.pairs);
    temp.u16(AV_FLAGS).u16(4).u32(AV_FLAG_MIC);
    temp.u16(AV_TARGET_NAME).u16(len16(2 * target.encode_utf16().count())).utf16(target);
    temp.u32(AV_END.into()).u32(0);
    let proof = hmac_md5(&response_key, &[&challenge.nonce, &temp]);
    let base_key = hmac_md5(&response_key, &[&proof]);
    let flags = FLAGS & challenge.flags | UNICODE | TARGET_INFO | VERSION;
    let (session_key, encrypted_key) = if flags & KEY_EXCHANGE == 0 {
        (base_key, Vec::new())
    } else {
        (random.session_key, rc4(&base_key, &random.session_key))
    };
    let nt_response = [&proof[..], &temp].concat();
    // With a timestamp from the server the LM answer is empty.
    let mut message = assemble(
        flags,
        [&[0; 24], &nt_response, &utf16(login.domain), &utf16(login.user), &[], &encrypted_key],
    );
    let mic = hmac_md5(&session_key, &[messages[0], messages[1], &message]);
    message[MIC_AT].copy_from_slice(&mic);
    Authenticated { message, session_key, flags }
}

fn anonymous(challenge: &Challenge) -> Authenticated {
    let flags = (FLAGS & challenge.flags | UNICODE | ANONYMOUS | VERSION) & !KEY_EXCHANGE;
    // The LM answer of nobody is one zero (MS-NLMP 3.2.5.1.2).
    let message = assemble(flags, [&[0], &[], &[], &[], &[], &[]]);
    Authenticated { message, session_key: [0; 16], flags }
}

/// LM answer, NT answer, domain, user, workstation, encrypted key.
fn assemble(flags: u32, fields: [&[u8]; 6]) -> Vec<u8> {
    let mut out =
        Vec::with_capacity(AUTHENTICATE_BYTES + fields.iter().map(|f| f.len()).sum::<usize>());
    out.bytes(SIGNATURE).u32(3);
    let mut offset = AUTHENTICATE_BYTES;
    for field in fields {
        let len = len16(field.len());
        out.u16(len).u16(len).u32(u32::try_from(offset).expect("six short fields"));
        offset += field.len();
    }
    out.u32(flags).bytes(&VERSION_FIELD).bytes(&[0; 16]);
    fields.iter().for_each(|field| out.extend_from_slice(field));
    out
}

/// NTOWFv2: the user's name in capitals.
fn response_key(login: &Login<'_>) -> [u8; 16] {
    let hash = Md4::digest(utf16(login.password));
    let name = utf16(&login.user.to_uppercase());
    hmac_md5(&hash, &[&name, &utf16(login.domain)])
}

fn hmac_md5(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    let mut mac = Hmac::<Md5>::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let steps = since.map_or(0, |since| since.as_nanos() / 100);
    UNIX_EPOCH.saturating_add(u64::try_from(steps).unwrap_or(u64::MAX))
}

/// RC4, here for sixteen random bytes under a fresh key, which is all that NTLM still needs it for.
fn rc4(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut state: [u8; 256] = std::array::from_fn(|i| u8::try_from(i).expect("below 256"));
    let mut j = 0_u8;
    for i in 0..=255_u8 {
        let at = usize::from(i);
        j = j.wrapping_add(state[at]).wrapping_add(key[at % key.len()]);
        state.swap(at, usize::from(j));
    }
    let (mut i, mut j) = (0_u8, 0_u8);
    let mut next = || {
        i = i.wrapping_add(1);
        j = j.wrapping_add(state[usize::from(i)]);
        state.swap(usize::from(i), usize::from(j));
        state[usize::from(state[usize::from(i)].wrapping_add(state[usize::from(j)]))]
    };
    text.iter().map(|byte| byte ^ next()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOGIN: Login<'_> = Login { user: "User", domain: "Domain", password: "Password" };

    /// The worked example of MS-NLMP, section 4.2.4.
    #[test]
    fn the_specifications_example() {
        assert_eq!(
            response_key(&LOGIN),
            *b"\x0c\x86\x8a\x40\x3b\xfd\x7a\x93\xa3\x00\x1e\xf2\x2e\xf0\x2e\x3f"
        );
        let pairs = b"\x02\0\x0c\0D\0o\0m\0a\0i\0n\0\x01\0\x0c\0S\0e\0r\0v\0e\0r\0";
        let mut temp = vec![1, 1, 0, 0, 0, 0, 0, 0];
        temp.u64(0).bytes(&[0xaa; 8]).u32(0).bytes(pairs).u32(0).u32(0);
        let key = response_key(&LOGIN);
        let proof = hmac_md5(&key, &[b"\x01\x23\x45\x67\x89\xab\xcd\xef", &temp]);
        assert_eq!(proof, *b"\x68\xcd\x0a\xb8\x51\xe5\x1c\x96\xaa\xbc\x92\x7b\xeb\xef\x6a\x1c");
        let base_key = hmac_md5(&key, &[&proof]);
        assert_eq!(base_key, *b"\x8d\xe4\x0c\xca\xdb\xc1\x4a\x82\xf1\x5c\xb0\xad\x0d\xe9\x5c\xa3");
        assert_eq!(
            rc4(&base_key, &[0x55; 16]),
            b"\xc5\xda\xd2\x54\x4f\xc9\x79\x90\x94\xce\x1c\xe9\x0b\xc9\xd0\x3e"
        );
    }

    proptest! {
        #[test]
        fn any_challenge_is_read_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Challenge::read(&bytes);
            let with_head = [&SIGNATURE[..], &[2, 0, 0, 0], &bytes].concat();
            if let Ok(challenge) = Challenge::read(&with_head) {
                let random = Random { challenge: [1; 8], session_key: [2; 16] };
                authenticate(Some(LOGIN), &challenge, "cifs/h", [b"", b""], random);
            }
        }
    }
}
