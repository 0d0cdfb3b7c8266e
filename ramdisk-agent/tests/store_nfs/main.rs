//! The NFS store against a real server (nfs-ganesha), a proxy that damages connections, and a server that misbehaves.

#![allow(clippy::unwrap_used, reason = "a failed precondition ends the test")]

mod fake;
mod ganesha;
mod misbehaving;
mod real;

/// Bytes that do not repeat within a request.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut out = vec![0; len];
    hasher.finalize_xof().fill(&mut out);
    out
}
