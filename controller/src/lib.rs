//! Imprint's controller: hosts, images, jobs; boot files and power; API and command line.
//!
//! Thin: it owns intentions, not bytes. What is wanted is stored in one SQLite database before anything is done about it, so that a
//! controller that was killed goes on where it stood. The work itself is done by agents, which ask for it over HTTPS; machines get
//! an agent only while a job wants one.

pub mod api;
pub mod bmc;
pub mod boot;
pub mod cli;
pub mod clock;
pub mod context;
pub mod data_dir;
pub mod db;
pub mod dhcp;
pub mod host;
pub mod job;
pub mod live;
pub mod names;
pub mod net;
pub mod reconcile;
pub mod secret;
pub mod serve;
pub mod store;
pub mod tasks;
pub mod tls;

/// An error and its causes in one line.
#[must_use]
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
