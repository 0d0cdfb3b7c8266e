//! ONC RPC version 2 (RFC 5531): the call header with AUTH_UNIX, the reply header, record marking over TCP.
//!
//! A record may come in several fragments; its length is limited before anything is allocated. Large records come in buffers
//! that are used again.

use std::io::{self, Read};
use std::sync::Arc;

use super::super::pool::Pool;
use super::xdr::{Decoder, Encoder, XdrError};

/// The longest record that a server may send: the largest read that is ever asked for, and ample room for its header.
pub(super) const MAX_RECORD_BYTES: usize = (1 << 20) + (64 << 10);
/// The most fragments of a record.
const MAX_FRAGMENTS: u32 = 4096;
/// Shorter records are not worth a recycled buffer.
const POOLED_BYTES: usize = 16 << 10;
/// The longest authenticator of a reply (RFC 5531, section 8.2).
const MAX_AUTH_BYTES: u32 = 400;
/// The bit of a record mark that says "last fragment".
pub(super) const LAST_FRAGMENT: u32 = 1 << 31;

const RPC_VERSION: u32 = 2;
const CALL: u32 = 0;
const REPLY: u32 = 1;
const AUTH_NONE: u32 = 0;
const AUTH_UNIX: u32 = 1;

/// A program, its version and a procedure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Procedure {
    pub(super) program: u32,
    pub(super) version: u32,
    pub(super) number: u32,
}

/// Who calls, encoded once.
#[derive(Debug, Clone)]
pub(super) struct Credential {
    body: Vec<u8>,
}

impl Credential {
    pub(super) fn unix(uid: u32, gid: u32) -> Self {
        let mut body = Encoder::default();
        // Stamp, machine name, uid, gid, no further groups. Servers go by the address, not by the name.
        body.u32(0).opaque(b"imprint").u32(uid).u32(gid).u32(0);
        Self { body: body.into_bytes() }
    }
}

/// Starts a call: room for the record mark, then the header. The arguments follow; [`finish_call`] fills the mark.
pub(super) fn begin_call(xid: u32, procedure: Procedure, credential: &Credential) -> Encoder {
    let mut call = Encoder::with_capacity(256);
    call.u32(0).u32(xid).u32(CALL).u32(RPC_VERSION);
    call.u32(procedure.program).u32(procedure.version).u32(procedure.number);
    call.u32(AUTH_UNIX).opaque(&credential.body).u32(AUTH_NONE).u32(0);
    call
}

/// Sets the record mark of a call whose arguments are followed by `payload_bytes` that are sent from elsewhere.
pub(super) fn finish_call(call: Encoder, payload_bytes: usize) -> Vec<u8> {
    let mut bytes = call.into_bytes();
    let len = u32::try_from(bytes.len() - 4 + payload_bytes)
        .expect("a call is at most a write request long");
    bytes[..4].copy_from_slice(&(len | LAST_FRAGMENT).to_be_bytes());
    bytes
}

/// Why a server did not carry out a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RpcError {
    #[error("program {program} is not served there")]
    ProgramUnavailable { program: u32 },
    #[error("version {version} of program {program} is not served, only {low} to {high}")]
    VersionMismatch { program: u32, version: u32, low: u32, high: u32 },
    #[error("the procedure is not served")]
    ProcedureUnavailable,
    #[error("the server could not decode the arguments")]
    GarbageArguments,
    #[error("the server has a system error")]
    System,
    #[error(
        "authentication was refused (code {code}): the server wants a privileged source port (run as root) or another kind of authentication than AUTH_UNIX"
    )]
    Authentication { code: u32 },
    #[error("the reply is not valid")]
    Malformed(#[from] XdrError),
}

/// The xid of a record, when it is a reply.
pub(super) fn reply_xid(record: &[u8]) -> Result<u32, XdrError> {
    let mut decoder = Decoder::new(record);
    let xid = decoder.u32()?;
    match decoder.u32()? {
        REPLY => Ok(xid),
        value => Err(XdrError::Value { value }),
    }
}

/// Checks the header of a reply; what follows are the results.
pub(super) fn reply_results(record: &[u8], procedure: Procedure) -> Result<&[u8], RpcError> {
    let mut decoder = Decoder::new(record);
    let (_xid, _reply) = (decoder.u32()?, decoder.u32()?);
    match decoder.u32()? {
        0 => {}
        1 => {
            return match decoder.u32()? {
                1 => Err(RpcError::Authentication { code: decoder.u32()? }),
                value => Err(XdrError::Value { value }.into()),
            };
        }
        value => return Err(XdrError::Value { value }.into()),
    }
    let _flavor = decoder.u32()?;
    decoder.opaque(MAX_AUTH_BYTES)?;
    let Procedure { program, version, .. } = procedure;
    match decoder.u32()? {
        0 => Ok(decoder.rest()),
        1 => Err(RpcError::ProgramUnavailable { program }),
        2 => {
            let (low, high) = (decoder.u32()?, decoder.u32()?);
            Err(RpcError::VersionMismatch { program, version, low, high })
        }
        3 => Err(RpcError::ProcedureUnavailable),
        4 => Err(RpcError::GarbageArguments),
        5 => Err(RpcError::System),
        value => Err(XdrError::Value { value }.into()),
    }
}

/// A record as it came; its buffer goes back to the pool with it.
#[derive(Debug)]
pub(super) struct Record {
    buffer: Vec<u8>,
    len: usize,
    pool: Option<Arc<Pool>>,
}

impl Record {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.give_back(std::mem::take(&mut self.buffer));
        }
    }
}

/// Reads one record. `Interrupted` and time-outs are the reader's business: they must not reach this function.
pub(super) fn read_record(stream: &mut impl Read, pool: &Arc<Pool>) -> io::Result<Record> {
    let mut record = Record { buffer: Vec::new(), len: 0, pool: None };
    for _ in 0..MAX_FRAGMENTS {
        let mut mark = [0; 4];
        stream.read_exact(&mut mark)?;
        let mark = u32::from_be_bytes(mark);
        let fragment =
            usize::try_from(mark & !LAST_FRAGMENT).expect("u32 fits usize on every target");
        let end = record.len.saturating_add(fragment);
        if end > MAX_RECORD_BYTES {
            return Err(invalid(format!(
                "a record of at least {end} bytes, above {MAX_RECORD_BYTES}"
            )));
        }
        if record.buffer.len() < end {
            if end > POOLED_BYTES && record.pool.is_none() {
                let mut large = pool.take();
                if large.len() < end {
                    large.resize(end, 0);
                }
                large[..record.len].copy_from_slice(record.bytes());
                record.buffer = large;
                record.pool = Some(Arc::clone(pool));
            }
            if record.buffer.len() < end {
                record.buffer.resize(end, 0);
            }
        }
        stream.read_exact(&mut record.buffer[record.len..end])?;
        record.len = end;
        if mark & LAST_FRAGMENT != 0 {
            return Ok(record);
        }
    }
    Err(invalid(format!("a record in more than {MAX_FRAGMENTS} fragments")))
}

/// The error of bytes that are not the protocol.
pub(super) fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the server sent {reason}"))
}

#[cfg(test)]
mod tests {
    use nfs3_types::rpc as theirs;
    use nfs3_types::xdr_codec::{Pack, Unpack};
    use proptest::prelude::*;

    use super::*;

    const NULL: Procedure = Procedure { program: 100_003, version: 3, number: 0 };

    #[test]
    fn an_independent_codec_reads_our_call() {
        let mut call = begin_call(77, NULL, &Credential::unix(1000, 100));
        call.u32(42);
        let bytes = finish_call(call, 8);
        let mark = theirs::fragment_header::from(<[u8; 4]>::try_from(&bytes[..4]).unwrap());
        assert!(mark.eof());
        assert_eq!(usize::try_from(mark.fragment_length()).unwrap(), bytes.len() - 4 + 8);
        let mut rest = &bytes[4..];
        let (message, _) = theirs::rpc_msg::unpack(&mut rest).unwrap();
        assert_eq!((message.xid, rest), (77, &[0, 0, 0, 42][..]));
        let theirs::msg_body::CALL(body) = message.body else { panic!("not a call") };
        assert_eq!((body.rpcvers, body.prog, body.vers, body.proc), (2, 100_003, 3, 0));
        let (auth, _) = theirs::auth_unix::unpack(&mut &*body.cred.body).unwrap();
        assert_eq!((auth.uid, auth.gid, auth.gids.len()), (1000, 100, 0));
    }

    fn reply(body: theirs::reply_body<'static>) -> Vec<u8> {
        let mut out = Vec::new();
        theirs::rpc_msg { xid: 5, body: theirs::msg_body::REPLY(body) }.pack(&mut out).unwrap();
        out
    }

    #[test]
    fn replies_of_every_kind() {
        let accepted = |reply_data| {
            let verf = theirs::opaque_auth::default();
            reply(theirs::reply_body::MSG_ACCEPTED(theirs::accepted_reply { verf, reply_data }))
        };
        let mut ok = accepted(theirs::accept_stat_data::SUCCESS);
        ok.extend_from_slice(&[1, 2, 3, 4]);
        assert_eq!(reply_xid(&ok), Ok(5));
        assert_eq!(reply_results(&ok, NULL), Ok(&[1, 2, 3, 4][..]));
        let error = |bytes: &[u8]| reply_results(bytes, NULL).unwrap_err();
        assert_eq!(
            error(&accepted(theirs::accept_stat_data::PROG_MISMATCH { low: 4, high: 4 })),
            RpcError::VersionMismatch { program: 100_003, version: 3, low: 4, high: 4 }
        );
        assert_eq!(error(&accepted(theirs::accept_stat_data::SYSTEM_ERR)), RpcError::System);
        assert_eq!(
            error(&reply(theirs::reply_body::MSG_DENIED(theirs::rejected_reply::AUTH_ERROR(
                theirs::auth_stat::AUTH_TOOWEAK
            )))),
            RpcError::Authentication { code: 5 }
        );
        for cut in 0..ok.len() - 4 {
            assert!(reply_results(&ok[..cut], NULL).is_err(), "cut at {cut}");
        }
    }

    fn fragments(body: &[u8], size: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let count = body.len().div_ceil(size);
        for (index, part) in body.chunks(size).enumerate() {
            let last = if index + 1 == count { LAST_FRAGMENT } else { 0 };
            out.extend_from_slice(&(u32::try_from(part.len()).unwrap() | last).to_be_bytes());
            out.extend_from_slice(part);
        }
        out
    }

    #[test]
    fn records_in_fragments_of_any_size() {
        let pool = Arc::new(Pool::default());
        let body: Vec<u8> = (0..100_000_u32).map(|i| i.to_le_bytes()[0]).collect();
        for size in [33, 1000, 20_000, 100_000] {
            let record = read_record(&mut &fragments(&body, size)[..], &pool).unwrap();
            assert!(record.bytes() == body, "fragments of {size}");
        }
        assert_eq!(pool.spare.lock().unwrap().len(), 1, "one buffer was used again and again");
    }

    #[test]
    fn a_claimed_length_allocates_nothing() {
        let pool = Arc::new(Pool::default());
        for mark in [u32::MAX, LAST_FRAGMENT - 1, LAST_FRAGMENT | 0x0020_0000] {
            let error = read_record(&mut &mark.to_be_bytes()[..], &pool).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        let endless = vec![0; 4 * 5000];
        assert_eq!(
            read_record(&mut &endless[..], &pool).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }

    proptest! {
        #[test]
        fn any_reply_is_results_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = reply_xid(&bytes);
            let _ = reply_results(&bytes, NULL);
        }
    }
}
