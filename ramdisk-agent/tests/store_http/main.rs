//! The web server store against a real server (nginx), servers without ranges, and one that misbehaves as told.

#![allow(clippy::unwrap_used, reason = "a failed precondition ends the test")]

mod misbehaving;
mod nginx;
mod program;
mod real;
mod redirected;
mod scripted;

use std::time::Duration;

use ramdisk_agent::store::Options;

/// Bytes that do not repeat within a request.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut out = vec![0; len];
    hasher.finalize_xof().fill(&mut out);
    out
}

/// Patience for tests.
fn options() -> Options {
    Options {
        budget: Duration::from_secs(30),
        connect_budget: Duration::from_secs(10),
        silence: Duration::from_secs(1),
        ..Options::default()
    }
}
