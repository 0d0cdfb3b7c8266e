//! Builds the initramfs that carries the agent.
//!
//! An initramfs holds the agent as `/init`, the kernel modules of a set with everything they depend on, the firmware files that
//! those modules name, and the user's own files and hooks. [`build`] makes it; [`audit()`] says which devices of a machine it could
//! not drive. The same inputs give the same bytes: entries are sorted, inode numbers and times are fixed.
//!
//! Nothing here runs another program, loads a module or needs root: module trees and firmware folders are read as plain files,
//! so an image for another kernel, or another architecture, is built the same way.

pub mod alias;
pub mod archive;
pub mod audit;
mod build;
pub mod cli;
mod compress;
mod elf;
mod error;
mod extras;
mod firmware;
mod kernel_image;
mod manifest;
mod module_sets;
mod module_tree;

pub use audit::{Audit, Finding, audit};
pub use build::{Built, Options, build, is_static_program};
pub use compress::Compression;
pub use error::Error;
pub use manifest::{Manifest, ManifestFile, MissingFirmware};
pub use module_sets::ModuleSet;
pub use module_tree::{Module, ModuleTree};

/// What this crate's functions return.
pub type Result<T> = std::result::Result<T, Error>;
