//! The record of what is in an image, kept beside it as `manifest.json`.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::archive::{Node, Tree};
use crate::{Compression, ModuleSet};

/// What `build` made. Deterministic, like the image itself: no times, no paths of the building machine.
#[derive(Debug, Clone, Serialize)]
pub struct Manifest {
    /// Version of this record.
    pub version: u32,
    /// `x86_64` or `aarch64`.
    pub machine: String,
    /// As `uname -r` will give it.
    pub kernel_version: String,
    /// The kernel file.
    pub kernel: FileSum,
    /// The initramfs file, compressed.
    pub initrd: FileSum,
    /// How it is compressed.
    pub compression: Compression,
    /// Length of the archive before compression.
    pub unpacked_bytes: u64,
    /// The agent's program.
    pub agent: FileSum,
    /// Which set was asked for.
    pub module_set: ModuleSet,
    /// Names of all modules inside, with dependencies.
    pub modules: Vec<String>,
    /// Bytes of all modules.
    pub modules_bytes: u64,
    /// Modules that the agent loads whether or not a device asks for them.
    pub load: Vec<String>,
    /// Firmware files inside, as drivers name them.
    pub firmware: Vec<String>,
    /// Bytes of all firmware files.
    pub firmware_bytes: u64,
    /// Firmware files that modules inside may ask for in vain.
    pub missing_firmware: Vec<MissingFirmware>,
    /// The agent's settings, as in `/etc/imprint/agent.conf`.
    pub settings: Vec<String>,
    /// Hooks in the order they run.
    pub hooks: Vec<String>,
    /// Every entry of the archive.
    pub files: Vec<ManifestFile>,
}

/// Length and hash of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileSum {
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256, hex.
    pub sha256: String,
}

impl FileSum {
    /// Of some bytes.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, content);
        let sha256 = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { bytes: content.len() as u64, sha256 }
    }
}

/// A firmware file that was not found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MissingFirmware {
    /// As the driver names it.
    pub name: String,
    /// The modules that name it.
    pub modules: BTreeSet<String>,
}

/// One entry of the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ManifestFile {
    /// Absolute path inside.
    pub path: String,
    /// Type and permissions, octal, as in `stat`.
    pub mode: String,
    /// Length and hash of a regular file.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub sum: Option<FileSum>,
    /// Where a link points to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// The entries of a tree.
pub(crate) fn files(tree: &Tree) -> Vec<ManifestFile> {
    tree.iter()
        .map(|(path, node)| ManifestFile {
            path: format!("/{path}"),
            mode: format!("{:06o}", node.mode()),
            sum: matches!(node, Node::File { .. }).then(|| FileSum::of(node.content())),
            target: match node {
                Node::Link { target } => Some(target.clone()),
                _ => None,
            },
        })
        .collect()
}

impl std::fmt::Display for Manifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut row = |name: &str, bytes: u64, text: &str| {
            writeln!(f, "{name:10} {:>11}  {text}", size(bytes))
        };
        let set = format!("{:?}", self.module_set).to_lowercase();
        row("kernel", self.kernel.bytes, &format!("{} {}", self.kernel_version, self.machine))?;
        row("agent", self.agent.bytes, "as /init")?;
        row(
            "modules",
            self.modules_bytes,
            &format!("{} modules (set: {set})", self.modules.len()),
        )?;
        row("firmware", self.firmware_bytes, &format!("{} files", self.firmware.len()))?;
        if !self.hooks.is_empty() {
            row("hooks", 0, &self.hooks.join(" "))?;
        }
        let kind = format!("{:?}", self.compression).to_lowercase();
        let unpacked = size(self.unpacked_bytes);
        row(
            "initrd",
            self.initrd.bytes,
            &format!("{} entries, {unpacked} unpacked, {kind}", self.files.len()),
        )?;
        if !self.missing_firmware.is_empty() {
            writeln!(
                f,
                "{} firmware files that some of these drivers may ask for are not inside (manifest.json lists them; \
                 --audit says which matter to a machine)",
                self.missing_firmware.len()
            )?;
        }
        Ok(())
    }
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    let mb = bytes / 1_000_000;
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{}.{} kB", bytes / 1_000, bytes % 1_000 / 100),
        _ => format!("{mb}.{} MB", bytes % 1_000_000 / 100_000),
    }
}
