//! NEGOTIATE (MS-SMB2, sections 2.2.3 and 2.2.4): which dialect, cipher and kind of signature.
//!
//! Dialects 2.1 to 3.1.1 are offered. The answer is read strictly: what was not offered is not accepted.

use std::fmt;

use super::crypto::{Cipher, Signing};
use super::wire::{Cursor, Put as _, WireError, len16, part};

pub(super) const SIGNING_ENABLED: u16 = 1;
pub(super) const SIGNING_REQUIRED: u16 = 2;
/// Requests may be larger than 64 KiB, and pay for it in credits.
const CAP_LARGE_MTU: u32 = 4;
const CAP_ENCRYPTION: u32 = 0x40;
pub(super) const CAPABILITIES: u32 = CAP_LARGE_MTU | CAP_ENCRYPTION;

const CONTEXT_PREAUTH: u16 = 1;
const CONTEXT_ENCRYPTION: u16 = 2;
const CONTEXT_SIGNING: u16 = 8;
const SHA_512: u16 = 1;
/// The most contexts of an answer that are looked at.
const MAX_CONTEXTS: u16 = 32;

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Dialect {
    Smb21 = 0x0210,
    Smb30 = 0x0300,
    Smb302 = 0x0302,
    Smb311 = 0x0311,
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Smb21 => "SMB 2.1",
            Self::Smb30 => "SMB 3.0",
            Self::Smb302 => "SMB 3.0.2",
            Self::Smb311 => "SMB 3.1.1",
        })
    }
}

pub(super) const DIALECTS: [Dialect; 4] =
    [Dialect::Smb21, Dialect::Smb30, Dialect::Smb302, Dialect::Smb311];

/// Ciphers and signatures in the order of preference.
const CIPHERS: [(Cipher, u16); 3] =
    [(Cipher::Aes128Gcm, 2), (Cipher::Aes256Gcm, 4), (Cipher::Aes128Ccm, 1)];
const SIGNINGS: [(Signing, u16); 3] =
    [(Signing::AesGmac, 2), (Signing::AesCmac, 1), (Signing::HmacSha256, 0)];

/// What was agreed on.
#[derive(Debug, Clone)]
pub(super) struct Negotiated {
    pub(super) dialect: Dialect,
    pub(super) security_mode: u16,
    pub(super) capabilities: u32,
    pub(super) server: [u8; 16],
    pub(super) max_read_bytes: u32,
    pub(super) max_write_bytes: u32,
    pub(super) signing: Signing,
    pub(super) cipher: Option<Cipher>,
}

impl Negotiated {
    pub(super) fn is_large_mtu(&self) -> bool {
        self.capabilities & CAP_LARGE_MTU != 0
    }
}

/// The request's body. `client` is this client's own number, `salt` random.
pub(super) fn request(security_mode: u16, client: &[u8; 16], salt: &[u8; 32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(200);
    out.u16(36).u16(len16(DIALECTS.len())).u16(security_mode).u16(0).u32(CAPABILITIES);
    // The contexts' place is put in below.
    out.bytes(client).u32(0).u16(3).u16(0);
    for dialect in DIALECTS {
        out.u16(dialect as u16);
    }
    out.align8();
    // From the start of the header, whose length is a multiple of eight too.
    let offset = u32::try_from(out.len() + super::header::HEADER_BYTES).expect("a short message");
    out[28..32].copy_from_slice(&offset.to_le_bytes());
    let mut context = |kind: u16, data: &[u8]| {
        out.align8();
        out.u16(kind).u16(len16(data.len())).u32(0).bytes(data);
    };
    let mut data = Vec::new();
    data.u16(1).u16(32).u16(SHA_512).bytes(salt);
    context(CONTEXT_PREAUTH, &data);
    for (kind, numbers) in [
        (CONTEXT_ENCRYPTION, CIPHERS.map(|(_, number)| number)),
        (CONTEXT_SIGNING, SIGNINGS.map(|(_, number)| number)),
    ] {
        data.clear();
        data.u16(len16(numbers.len()));
        numbers.iter().for_each(|&number| {
            data.u16(number);
        });
        context(kind, &data);
    }
    out
}

/// Reads an answer: the whole message, and its body.
pub(super) fn read(message: &[u8]) -> Result<Negotiated, WireError> {
    let mut cursor = Cursor::new(message);
    cursor.skip(super::header::HEADER_BYTES)?;
    let security_mode = cursor.structure(65)?.u16()?;
    let (number, contexts) = (cursor.u16()?, cursor.u16()?);
    let dialect = DIALECTS.into_iter().find(|&dialect| dialect as u16 == number);
    let dialect = dialect.ok_or(WireError::Value { field: "dialect", value: number.into() })?;
    let (server, capabilities) = (cursor.array()?, cursor.u32()?);
    let (_transact, max_read_bytes, max_write_bytes) =
        (cursor.u32()?, cursor.u32()?, cursor.u32()?);
    // Two times and the security buffer, which only says what is known: NTLMSSP is tried.
    let context_offset = cursor.skip(16 + 4)?.u32()?;
    let mut negotiated = Negotiated {
        dialect,
        security_mode,
        capabilities,
        server,
        max_read_bytes,
        max_write_bytes,
        signing: if dialect == Dialect::Smb21 { Signing::HmacSha256 } else { Signing::AesCmac },
        cipher: None,
    };
    match dialect {
        Dialect::Smb21 => {}
        Dialect::Smb30 | Dialect::Smb302 => {
            negotiated.cipher = (capabilities & CAP_ENCRYPTION != 0).then_some(Cipher::Aes128Ccm);
        }
        Dialect::Smb311 => read_contexts(message, context_offset, contexts, &mut negotiated)?,
    }
    Ok(negotiated)
}

fn read_contexts(
    message: &[u8],
    offset: u32,
    count: u16,
    negotiated: &mut Negotiated,
) -> Result<(), WireError> {
    let len = u32::try_from(message.len()).map_err(|_| WireError::Short)?;
    let mut rest = part(message, offset, len.checked_sub(offset).ok_or(WireError::Short)?)?;
    let mut has_preauth = false;
    for _ in 0..count.min(MAX_CONTEXTS) {
        let mut cursor = Cursor::new(rest);
        let (kind, len) = (cursor.u16()?, usize::from(cursor.u16()?));
        let mut data = Cursor::new(cursor.skip(4)?.bytes(len)?);
        match kind {
            CONTEXT_PREAUTH => {
                let hash = data.skip(4)?.u16()?;
                if hash != SHA_512 {
                    return Err(WireError::Value { field: "preauth hash", value: hash.into() });
                }
                has_preauth = true;
            }
            CONTEXT_ENCRYPTION => {
                let chosen = data.skip(2)?.u16()?;
                // 0: none of those offered.
                let known = CIPHERS.iter().find(|(_, number)| *number == chosen);
                negotiated.cipher = known.map(|(cipher, _)| *cipher);
            }
            CONTEXT_SIGNING => {
                let chosen = data.skip(2)?.u16()?;
                let known = SIGNINGS.iter().find(|(_, number)| *number == chosen);
                let known =
                    known.ok_or(WireError::Value { field: "signing", value: chosen.into() })?;
                negotiated.signing = known.0;
            }
            _ => {}
        }
        let next = (8 + len).next_multiple_of(8);
        rest = rest.get(next..).unwrap_or_default();
        if rest.is_empty() {
            break;
        }
    }
    if has_preauth { Ok(()) } else { Err(WireError::Short) }
}

/// A NEGOTIATE of SMB 1 with its length, as old clients begin: a server that speaks anything newer answers in SMB 2.
pub(super) const SMB1_PROBE: &[u8] = b"\0\0\0\x45\xFFSMB\x72\0\0\0\0\x18\x01\x28\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xfe\xff\0\0\0\0\0\x22\0\x02NT LM 0.12\0\x02SMB 2.002\0\x02SMB 2.???\0";
/// How much of the answer tells.
pub(super) const SMB1_ANSWER_BYTES: usize = 39;

/// Whether the answer chooses "NT LM 0.12", the first of those offered.
pub(super) fn is_smb1(answer: &[u8; SMB1_ANSWER_BYTES]) -> bool {
    answer[4..9] == *b"\xFFSMB\x72" && answer[37..] == [0, 0]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_probes_length_is_right() {
        assert_eq!(SMB1_PROBE.len(), 4 + usize::from(SMB1_PROBE[3]));
    }

    proptest! {
        #[test]
        fn any_answer_is_read_or_an_error(
            dialect in 0_usize..4, contexts in 0_u16..9, offset in 0_u32..300, tail in proptest::collection::vec(any::<u8>(), 0..300)
        ) {
            let mut message = vec![0; 64];
            message.u16(65).u16(3).u16(DIALECTS[dialect] as u16).u16(contexts).bytes(&[0; 16]).u32(4).u32(0).u32(0).u32(0);
            message.bytes(&[0; 16]).u32(0).u32(offset).bytes(&tail);
            let _ = read(&message);
            let _ = read(&tail);
        }
    }
}
