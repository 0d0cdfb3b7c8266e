//! Messages on the wire: length, encryption, header, signature; and the same backwards.
//!
//! What arrives is believed only as far as the session allows: once a session has a key, every reply has to be signed or encrypted
//! with it; once it is encrypted, every reply has to be. The length of a message is limited before anything is allocated.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use super::super::pool::Pool;
use super::crypto::{Cipher, Sealer, Signer};
use super::header::{
    CREDIT_BYTES, Command, HEADER_BYTES, ReplyHeader, RequestHeader, SIGNED, TRANSFORM_BYTES,
    TRANSFORM_ID, TRANSFORM_NONCE_AT, Transform, UNASKED,
};

/// The largest read or write of this client.
pub(super) const MAX_REQUEST_BYTES: u32 = 4 << 20;
/// The longest message that a server may send: the largest read, and ample room for its headers.
const MAX_MESSAGE_BYTES: usize = (4 << 20) + (64 << 10);
/// Shorter messages are not worth a recycled buffer.
const POOLED_BYTES: usize = 16 << 10;
const LENGTH_BYTES: usize = 4;

/// What goes out: who we are, and how it is protected.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    pub(super) session_id: u64,
    pub(super) tree_id: u32,
    pub(super) next_message_id: u64,
    pub(super) signer: Option<Signer>,
    pub(super) sealer: Option<(Sealer, Cipher)>,
    /// Whether to use the sealer.
    pub(super) sealed: bool,
    /// Counted up: never twice the same under one key.
    nonce: u64,
}

impl Outbound {
    /// How what is sent is protected, in words.
    pub(super) fn protection(&self) -> String {
        match (&self.sealer, &self.signer) {
            (Some((_, cipher)), _) if self.sealed => format!("encrypted with {cipher}"),
            (_, Some(signer)) => format!("signed with {}", signer.name()),
            (_, None) => "not at all".to_owned(),
        }
    }
}

/// How many credits a request of so many bytes, or with so long a reply, costs.
pub(super) fn credit_charge(bytes: usize) -> u16 {
    u16::try_from(bytes.div_ceil(CREDIT_BYTES).max(1)).expect("requests are at most some MiB long")
}

impl Outbound {
    /// Puts a request with its length into `out` and returns its message id.
    pub(super) fn frame(
        &mut self,
        out: &mut Vec<u8>,
        command: Command,
        [body, payload]: [&[u8]; 2],
        credit_charge: u16,
        credits_wanted: u16,
    ) -> u64 {
        let sealer = self.sealer.as_ref().filter(|_| self.sealed);
        let start = LENGTH_BYTES + if sealer.is_some() { TRANSFORM_BYTES } else { 0 };
        out.clear();
        out.resize(start, 0);
        let message_id = self.next_message_id;
        self.next_message_id += u64::from(credit_charge);
        let signer = self.signer.as_ref().filter(|_| sealer.is_none());
        RequestHeader {
            command,
            credit_charge,
            credits_wanted,
            message_id,
            session_id: self.session_id,
            tree_id: self.tree_id,
            signed: signer.is_some(),
        }
        .put(out);
        out.extend_from_slice(body);
        out.extend_from_slice(payload);
        if let Some(signer) = signer {
            signer.sign(&mut out[start..], message_id);
        }
        if let Some((sealer, cipher)) = sealer {
            let mut nonce = [0; 16];
            nonce[..8].copy_from_slice(&self.nonce.to_le_bytes());
            debug_assert!(cipher.nonce_bytes() >= 8, "the counter fits the nonce");
            self.nonce += 1;
            let len_bytes = u32::try_from(out.len() - start).expect("a request and its header");
            let mut transform =
                Transform { signature: [0; 16], nonce, len_bytes, session_id: self.session_id };
            let mut head = Vec::with_capacity(TRANSFORM_BYTES);
            transform.put(&mut head);
            transform.signature =
                sealer.seal(&nonce, &head[TRANSFORM_NONCE_AT..], &mut out[start..]);
            head.clear();
            transform.put(&mut head);
            out[LENGTH_BYTES..start].copy_from_slice(&head);
        }
        let len = u32::try_from(out.len() - LENGTH_BYTES).expect("a request and its headers");
        out[..LENGTH_BYTES].copy_from_slice(&len.to_be_bytes());
        message_id
    }
}

/// How to check and decrypt what comes in.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    pub(super) session_id: u64,
    pub(super) signer: Option<Signer>,
    pub(super) sealer: Option<Sealer>,
    pub(super) sealed: bool,
}

/// A reply; its buffer goes back to the pool with it.
#[derive(Debug)]
pub(super) struct Reply {
    buffer: Vec<u8>,
    range: Range<usize>,
    pool: Option<Arc<Pool>>,
    pub(super) header: ReplyHeader,
}

impl Reply {
    /// The whole message, from its header on.
    pub(super) fn message(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.give_back(std::mem::take(&mut self.buffer));
        }
    }
}

impl Inbound {
    /// Reads one message. Errors of kind `InvalidData` are the server's.
    pub(super) fn read(&self, stream: &mut impl Read, pool: &Arc<Pool>) -> io::Result<Reply> {
        let mut length = [0; LENGTH_BYTES];
        stream.read_exact(&mut length)?;
        // The first byte is the type of a NetBIOS session message, zero.
        let len = usize::try_from(u32::from_be_bytes(length)).map_err(|_| invalid("a length"))?;
        if len > MAX_MESSAGE_BYTES {
            return Err(invalid(format!("a message of {len} bytes, above {MAX_MESSAGE_BYTES}")));
        }
        let is_large = len > POOLED_BYTES;
        let mut buffer = if is_large { pool.take() } else { Vec::new() };
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        stream.read_exact(&mut buffer[..len])?;
        let opened = self.open(&mut buffer, len);
        let pool = is_large.then(|| Arc::clone(pool));
        match opened {
            Ok((range, header)) => Ok(Reply { buffer, range, pool, header }),
            Err(reason) => Err(invalid(reason)),
        }
    }

    fn open(
        &self,
        buffer: &mut Vec<u8>,
        len: usize,
    ) -> Result<(Range<usize>, ReplyHeader), String> {
        if buffer[..len].starts_with(&TRANSFORM_ID) {
            let bad = |error| format!("the header of an encrypted message: {error}");
            let transform = Transform::read(&buffer[..len]).map_err(bad)?;
            let sealer =
                self.sealer.as_ref().ok_or("an encrypted message that nobody asked for")?;
            let range = TRANSFORM_BYTES..len;
            if usize::try_from(transform.len_bytes) != Ok(range.len())
                || transform.session_id != self.session_id
            {
                return Err("an encrypted message of another length or session".to_owned());
            }
            let mut associated = [0; TRANSFORM_BYTES - TRANSFORM_NONCE_AT];
            associated.copy_from_slice(&buffer[TRANSFORM_NONCE_AT..TRANSFORM_BYTES]);
            let tag = transform.signature;
            if !sealer.open(&transform.nonce, &associated, buffer, range.clone(), tag) {
                return Err("a message that is not encrypted with this session's key".to_owned());
            }
            let header = read_header(&buffer[range.clone()])?;
            return Ok((range, header));
        }
        let message = &mut buffer[..len];
        let header = read_header(message)?;
        // Neither is signed; both only say "wait" or are not listened to.
        if header.is_interim() || header.message_id == UNASKED {
            return Ok((0..len, header));
        }
        if self.sealed {
            return Err("a reply that is not encrypted".to_owned());
        }
        if let Some(signer) = &self.signer
            && (header.flags & SIGNED == 0 || !signer.verify(message, header.message_id))
        {
            return Err(format!("a reply ({}) that is not signed by the server", header.status));
        }
        Ok((0..len, header))
    }
}

fn read_header(message: &[u8]) -> Result<ReplyHeader, String> {
    if message.len() < HEADER_BYTES {
        return Err(format!("a message of {} bytes", message.len()));
    }
    ReplyHeader::read(message).map_err(|error| format!("a header that is not valid: {error}"))
}

pub(super) fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}
