//! The real program: `imprint serve` as a child process, spoken to over its own sockets, and `imprint` as its client.

#![allow(clippy::unwrap_used, reason = "a failed precondition ends the test")]

mod agent_store;
mod agents;
mod api;
mod approval;
mod boot;
mod cli;
mod copies;
mod crash;
mod dhcp;
mod files;
mod gone_on;
mod ipmi;
mod limits;
mod rig;
mod same_file;
mod secrets;
mod stores;
mod tickets;
mod tidy;
mod witness;
