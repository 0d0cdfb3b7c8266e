//! The NFS store against a real server (nfs-ganesha), a proxy that damages connections, and a server that misbehaves.

#![allow(clippy::unwrap_used, reason = "a failed precondition ends the test")]

mod fake;
mod ganesha;
mod misbehaving;
mod real;
#[path = "../real_servers/mod.rs"]
mod real_servers;
