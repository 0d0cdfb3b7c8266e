//! The SMB store against a real server (Samba's smbd), with smbclient as the independent witness.

#![allow(clippy::unwrap_used, reason = "a failed precondition ends the test")]

mod outages;
mod program;
mod real;
mod refusals;
mod samba;
