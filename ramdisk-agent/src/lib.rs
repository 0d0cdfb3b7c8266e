//! Imprint's agent: captures disks to images and imprints images on disks.
//!
//! The library holds everything that `imprint-agent` does; the binary only parses its command line. On any Linux machine the
//! verbs work by hand; in the initramfs the same binary is PID 1 (`init`) and runs each job in a child of itself (`run`).
//! One pipeline ([`pipeline`]) serves capture, restore, verify and read-back. Nothing here knows of DHCP servers, boot files
//! or BMCs: those are the controller's.

pub mod buffer;
pub mod capture;
pub mod cli;
pub mod convert;
pub mod copy;
pub mod damage;
pub mod disk;
mod efi;
pub mod error;
pub mod extents;
pub mod foreign;
pub mod fs;
pub mod image;
pub mod init;
pub mod kexec;
mod mounted;
pub mod opening;
pub mod pipeline;
pub mod probe;
pub mod progress;
mod ranges;
pub mod restore;
pub mod run;
mod seek;
pub mod store;
pub mod store_check;
pub mod sys;
pub mod table;
pub mod telemetry;
pub mod trust;
pub mod verify;
pub mod words;
