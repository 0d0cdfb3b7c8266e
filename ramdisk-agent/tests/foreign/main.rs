//! Images of other tools, read: each format made by the tool that owns it, and what comes out compared byte for byte; then the same
//! images cut off, lengthened, changed and made to lie.
//!
//! Needs root only where filesystems are mounted; a missing tool fails the test with its package's name.

#![allow(clippy::unwrap_used, reason = "a failed precondition ends the test")]
#![allow(clippy::cast_possible_truncation, reason = "disks of some MiB, on hosts of 64 bits")]

#[allow(dead_code, reason = "shared with the tests of our own images, which use more of it")]
#[path = "../imaging/agent.rs"]
mod agent;
#[allow(dead_code, reason = "as above")]
#[path = "../used_block_maps/device.rs"]
mod device;
#[allow(dead_code, reason = "as above")]
#[path = "../imaging/disks.rs"]
mod disks;
mod folder_lvm;
mod folder_variants;
mod folders;
mod holes;
mod partclone;
mod streams;
mod support;
#[path = "../imaging/tools.rs"]
mod tools;
mod virtual_disks;
