//! The store that is a web server: images are read by ranges, over HTTP/1.1, with or without TLS.
//!
//! From the wire up: [`head`] is what a response says, [`transport`] a socket with or without TLS ([`tls`] says whom to trust),
//! [`connection`] one request at a time on it; [`client`] keeps connections, sends credentials to the right server, and knows with
//! [`status`] and [`retry`] what is worth another attempt; [`lanes`] limits how many requests are under way; [`version`] is what every
//! answer is compared with, [`location`] where a redirection led to; [`reader`] is what the engine sees. Threads that block, not an async runtime: bytes go from the socket into the caller's buffer, which takes less of a
//! processor than a runtime and its buffers (docs/stores.md has the numbers).
//!
//! A controller's own store can be written too: [`controller`] is its API, [`writer`] what the engine sees, with [`undurable`] for what
//! may have to be sent again.
//!
//! Deliberately absent: caches, proxies, HTTP/2 (more connections do the same for large files), and writing to other web servers: none
//! of their protocols publishes an image safely.

mod anything;
mod client;
mod connection;
mod controller;
mod head;
mod lanes;
mod left_over;
mod location;
mod reader;
mod retry;
mod status;
mod tls;
mod transport;
mod undurable;
mod version;
mod writer;

use super::{Entry, HttpUrl, ImageFile, LeftOver, Options, Result, StoreWriter};
use agent_api::StoreFacts;
pub use anything::read_anything;
use client::Client;
use reader::HttpImage;
use writer::HttpWriter;

/// Opens an image for reading.
pub(super) fn open(url: &HttpUrl, options: &Options) -> Result<Box<dyn ImageFile>> {
    Ok(Box::new(HttpImage::open(url, options)?))
}

/// Starts to write an image to a controller's own store. Other web servers are only read from.
pub(super) fn create(url: &HttpUrl, options: &Options) -> Result<Box<dyn StoreWriter>> {
    if url.has_query() {
        return Err(controller::only_read(url));
    }
    Ok(Box::new(HttpWriter::create(url, options)?))
}

/// What a writer of an image has left behind in a controller's own store.
pub(super) fn left_over(url: &HttpUrl, options: &Options) -> Result<Option<Box<dyn LeftOver>>> {
    if url.has_query() {
        return Err(controller::only_read(url));
    }
    left_over::find(url, options)
}

/// What is known without asking.
pub(super) fn facts(url: &HttpUrl) -> StoreFacts {
    let (protocol, protection) =
        if url.is_tls { ("HTTPS", "by TLS") } else { ("HTTP", "not at all") };
    StoreFacts {
        protocol: protocol.to_owned(),
        protection: Some(protection.to_owned()),
        ..StoreFacts::default()
    }
}

/// Lists a controller's own store: its URL ends in `/files`.
pub(super) fn list(folder: &HttpUrl, options: &Options) -> Result<Vec<Entry>> {
    controller::list(&Client::new(folder, options)?, folder)
}

/// Removes a file of a controller's own store.
pub(super) fn remove(url: &HttpUrl, options: &Options) -> Result<()> {
    controller::remove(&Client::new(url, options)?, url)
}
