//! Fuzz targets of Imprint's parsers, and the seeds that they begin with.
//!
//! `cargo run --bin corpus` in this folder writes the seeds, then `cargo +nightly fuzz run TARGET`. The functions behind
//! the targets are run by ordinary tests as well, over the same seeds and mutations of them.

pub mod disk;
pub mod disk_seeds;
pub mod foreign;
pub mod http;
pub mod image;
pub mod image_seeds;
pub mod nfs;
pub mod smb;
