//! The SMB store against a real server (Samba's smbd), with smbclient as the independent witness.

#![allow(clippy::unwrap_used, reason = "a failed precondition ends the test")]

mod outages;
mod program;
mod real;
#[path = "../real_servers/mod.rs"]
mod real_servers;
mod refusals;
mod samba;
