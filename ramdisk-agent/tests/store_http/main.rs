//! The web server store against a real server (nginx), servers without ranges, and one that misbehaves as told.

#![allow(clippy::unwrap_used, reason = "a failed precondition ends the test")]

mod controller;
mod misbehaving;
mod nginx;
mod program;
mod real;
#[path = "../real_servers/mod.rs"]
#[allow(dead_code, reason = "tests of one store use more of it")]
mod real_servers;
mod redirected;
mod scripted;

use std::time::Duration;

use ramdisk_agent::store::Options;

/// Patience for tests.
fn options() -> Options {
    Options {
        budget: Duration::from_secs(30),
        connect_budget: Duration::from_secs(10),
        silence: Duration::from_secs(1),
        ..Options::default()
    }
}
