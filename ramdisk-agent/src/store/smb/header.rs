//! The header of every SMB2 message (MS-SMB2, section 2.2.1), and the transform header before an encrypted one (2.2.41).

use super::status::Status;
use super::wire::{Cursor, Put as _, WireError};

pub(super) const HEADER_BYTES: usize = 64;
pub(super) const SIGNATURE_AT: std::ops::Range<usize> = 48..64;
pub(super) const TRANSFORM_BYTES: usize = 52;
/// What the transform header's authenticated part begins at: after protocol id and signature.
pub(super) const TRANSFORM_NONCE_AT: usize = 20;
/// The credits of one request pay for this much data.
pub(super) const CREDIT_BYTES: usize = 64 << 10;

const PROTOCOL_ID: [u8; 4] = *b"\xFESMB";
pub(super) const TRANSFORM_ID: [u8; 4] = *b"\xFDSMB";
const REPLY: u32 = 1;
const ASYNC: u32 = 2;
pub(super) const SIGNED: u32 = 8;
/// The message id of what the server sends without being asked.
pub(super) const UNASKED: u64 = u64::MAX;

/// What a message asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Command {
    Negotiate = 0,
    SessionSetup = 1,
    TreeConnect = 3,
    Create = 5,
    Close = 6,
    Flush = 7,
    Read = 8,
    Write = 9,
    Ioctl = 11,
    Echo = 13,
    QueryDirectory = 14,
    QueryInfo = 16,
    SetInfo = 17,
}

/// A request's header.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestHeader {
    pub(super) command: Command,
    pub(super) credit_charge: u16,
    pub(super) credits_wanted: u16,
    pub(super) message_id: u64,
    pub(super) session_id: u64,
    pub(super) tree_id: u32,
    pub(super) signed: bool,
}

impl RequestHeader {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.bytes(&PROTOCOL_ID).u16(64).u16(self.credit_charge).u32(0).u16(self.command as u16);
        out.u16(self.credits_wanted).u32(if self.signed { SIGNED } else { 0 }).u32(0);
        out.u64(self.message_id).u32(0).u32(self.tree_id).u64(self.session_id).bytes(&[0; 16]);
    }
}

/// A reply's header.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReplyHeader {
    pub(super) command: u16,
    pub(super) status: Status,
    pub(super) credits: u16,
    pub(super) flags: u32,
    pub(super) message_id: u64,
    pub(super) tree_id: u32,
    pub(super) session_id: u64,
}

impl ReplyHeader {
    /// Reads the header of a message; what follows one reply in the same message (a compound) is an error, since none is asked for.
    pub(super) fn read(message: &[u8]) -> Result<Self, WireError> {
        let mut cursor = Cursor::new(message);
        let id: [u8; 4] = cursor.array()?;
        if id != PROTOCOL_ID {
            let value = u32::from_be_bytes(id).into();
            return Err(WireError::Value { field: "protocol id", value });
        }
        cursor.structure(64)?.skip(2)?;
        let status = Status(cursor.u32()?);
        let (command, credits, flags, next) =
            (cursor.u16()?, cursor.u16()?, cursor.u32()?, cursor.u32()?);
        if flags & REPLY == 0 {
            return Err(WireError::Value { field: "flags", value: flags.into() });
        }
        if next != 0 {
            return Err(WireError::Value { field: "next command", value: next.into() });
        }
        let message_id = cursor.u64()?;
        let mut tree_id = 0;
        if flags & ASYNC == 0 {
            tree_id = cursor.skip(4)?.u32()?;
        } else {
            cursor.skip(8)?;
        }
        let session_id = cursor.u64()?;
        cursor.skip(16)?;
        Ok(Self { command, status, credits, flags, message_id, tree_id, session_id })
    }

    /// The server works on it; the reply proper follows.
    pub(super) fn is_interim(&self) -> bool {
        self.status == Status::PENDING && self.flags & ASYNC != 0
    }
}

/// The header before an encrypted message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transform {
    pub(super) signature: [u8; 16],
    pub(super) nonce: [u8; 16],
    pub(super) len_bytes: u32,
    pub(super) session_id: u64,
}

impl Transform {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.bytes(&TRANSFORM_ID).bytes(&self.signature).bytes(&self.nonce).u32(self.len_bytes);
        // The flag says "encrypted", and in SMB 3.0 the same number said AES-128-CCM, the one cipher.
        out.u16(0).u16(1).u64(self.session_id);
    }

    pub(super) fn read(message: &[u8]) -> Result<Self, WireError> {
        let mut cursor = Cursor::new(message);
        cursor.skip(4)?;
        let (signature, nonce, len_bytes) = (cursor.array()?, cursor.array()?, cursor.u32()?);
        match cursor.skip(2)?.u16()? {
            1 => Ok(Self { signature, nonce, len_bytes, session_id: cursor.u64()? }),
            flags => Err(WireError::Value { field: "transform flags", value: flags.into() }),
        }
    }
}
