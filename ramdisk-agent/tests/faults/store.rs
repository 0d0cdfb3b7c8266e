//! What the scenarios need of a store.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ramdisk_agent::store::{Options, StoreUrl};

/// A real server with a folder of this machine. It ends when it is dropped.
pub trait Store: Sized + Send {
    /// For reports.
    const NAME: &'static str;
    /// Whether images can be written to it.
    const WRITES: bool;

    /// Starts it, on `folder` or on a new one.
    fn start(folder: Option<&Path>) -> Self;

    /// Where the proxy leads.
    fn address(&self) -> SocketAddr;

    /// The URL of an image, by way of a port of 127.0.0.1.
    fn url(&self, port: u16, name: &str) -> StoreUrl;

    /// Where its files are.
    fn folder(&self) -> PathBuf;

    /// Ends it at once, as a crash would. What it holds in memory is lost.
    fn kill(&mut self);

    /// Starts it again.
    fn restart(&mut self);

    /// The ends of the messages in what went one way over a connection; none if they cannot be told.
    fn message_ends(stream: &[u8]) -> Vec<u64>;

    /// Whether the message that begins here asks for data to be made durable.
    fn is_commit(_message: &[u8]) -> bool {
        false
    }

    /// Credentials and the like.
    fn options(&self) -> Options {
        patient()
    }
}

/// Patience that a test has. One connection, so that the bytes of a fault are those of the dialogue that was recorded.
pub fn patient() -> Options {
    Options {
        budget: Duration::from_secs(30),
        connect_budget: Duration::from_secs(10),
        silence: Duration::from_secs(1),
        connections: 1,
        request_bytes: 64 << 10,
        ..Options::default()
    }
}

/// Messages with their length in front: `header` bytes, of which `length` makes the number that follow.
pub fn prefixed(stream: &[u8], header: usize, length: impl Fn(&[u8]) -> usize) -> Vec<u64> {
    let (mut ends, mut at) = (Vec::new(), 0);
    while let Some(head) = stream.get(at..at + header) {
        at += header + length(head);
        ends.push(at as u64);
    }
    ends
}
