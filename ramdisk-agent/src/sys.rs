//! The only place with unsafe code: ioctls and system calls that no safe library offers.
//!
//! Each block names the kernel's contract it relies on. Wrappers take file descriptors by reference and return
//! `std::io::Result`; policy lives elsewhere.
#![allow(
    unsafe_code,
    reason = "ioctls have no safe interface; this module is where they are contained"
)]

pub mod block;
pub mod cache;
pub mod kexec;
pub mod loops;
pub mod memory;
pub mod packet;
pub mod resize;
