//! The store that is a web server: images are read by ranges, over HTTP/1.1, with or without TLS.
//!
//! From the wire up: [`head`] is what a response says, [`transport`] a socket with or without TLS ([`tls`] says whom to trust),
//! [`connection`] one request at a time on it; [`client`] keeps connections, sends credentials to the right server, and knows with
//! [`status`] and [`retry`] what is worth another attempt; [`lanes`] limits how many requests are under way; [`version`] is what every
//! answer is compared with, [`location`] where a redirection led to; [`reader`] is what the engine sees. Threads that block, not an async runtime: bytes go from the socket into the caller's buffer, which takes less of a
//! processor than a runtime and its buffers (docs/stores.md has the numbers).
//!
//! Deliberately absent: caches, proxies, HTTP/2 (more connections do the same for large files), and any way to write: a web server is
//! not a place where an image can be published safely.

mod client;
mod connection;
mod head;
mod lanes;
mod location;
mod reader;
mod retry;
mod status;
mod tls;
mod transport;
mod version;

use super::{Entry, HttpUrl, ImageFile, Options, Result, StoreError, StoreWriter};
use reader::HttpImage;

/// Opens an image for reading.
pub(super) fn open(url: &HttpUrl, options: &Options) -> Result<Box<dyn ImageFile>> {
    Ok(Box::new(HttpImage::open(url, options)?))
}

/// Refuses.
pub(super) fn create(url: &HttpUrl) -> Result<Box<dyn StoreWriter>> {
    Err(only_read(url, "images are written to a folder, or to a share by nfs://"))
}

/// Refuses.
pub(super) fn list(folder: &HttpUrl) -> Result<Vec<Entry>> {
    Err(only_read(folder, "its folders cannot be listed; give the URL of an image"))
}

/// Refuses.
pub(super) fn remove(url: &HttpUrl) -> Result<()> {
    Err(only_read(url, "remove the file on the server itself"))
}

fn only_read(url: &HttpUrl, instead: &str) -> StoreError {
    let reason = format!("a web server is only read from: {instead}");
    StoreError::Unsupported { url: url.to_string(), reason }
}
