//! Imprint's end-to-end lab, and what `cargo xtask` is made of.
//!
//! The lab is a rack in a network namespace: QEMU machines with firmware and PXE, a BMC for each that really starts and stops it,
//! an NFS server, and the controller itself. Nothing in it is a double: the programs are those of Debian, and ours as built.
//! Everything runs as root on one machine, touches nothing outside its namespace and its folder under `target/lab`, and ends only
//! what it started; what a crashed run left behind is found by the namespace's name and ended at the next start.

pub mod accel;
pub mod agent_build;
pub mod bench;
pub mod bmc;
pub mod command;
pub mod console;
pub mod controller;
pub mod demo;
pub mod faults;
pub mod kernel;
pub mod lab;
pub mod machine;
pub mod net;
pub mod nfs;
pub mod packages;
pub mod process;
pub mod project;
pub mod smb;
pub mod suite;
pub mod template;
pub mod wait;
