//! The agent as PID 1 of the initramfs.
pub mod children;
pub mod clock;
pub mod cmdline;
pub mod console;
pub mod controller;
pub mod dhcp;
pub mod machine;
pub mod mounts;
pub mod modules;
pub mod net;
pub mod uevents;
mod netlink;
pub mod power;
pub mod ticket;
