//! What came of work on stores: trying one out, copying an image.

use serde::{Deserialize, Serialize};

use crate::Failure;

/// What a store did with a probe that was written, read, published and removed: `imprint-agent store-check --json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreReport {
    /// What went well, in order and in words.
    pub done: Vec<String>,
    /// Length of the probe.
    pub probe_bytes: u64,
    /// How fast it was written and made durable.
    pub write_bytes_per_second: Option<u64>,
    /// How fast it was read again.
    pub read_bytes_per_second: Option<u64>,
    /// What was being done when the store failed.
    pub failed_at: Option<String>,
    /// Why it failed, and what to do; `None`: captures and restores work.
    pub failure: Option<Failure>,
}

/// What came of copying an image: `imprint-agent copy --json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CopySummary {
    /// Root hash of the image, and of its copy.
    pub root: String,
    /// Its id.
    pub image_id: String,
    /// Size of the disk in bytes.
    pub disk_bytes: u64,
    /// Bytes that its filesystems use.
    pub used_bytes: u64,
    /// Size of the image in bytes.
    pub stored_bytes: u64,
    /// Stored bytes of the copy that were read again and compared before it got its name.
    pub reread_bytes: u64,
    /// Root hash of the image that this one is the difference to.
    pub parent_root: Option<String>,
    /// Of a signed image: whether the signature was copied too.
    pub signature: Option<bool>,
    /// From start to published, in ms.
    pub total_ms: u64,
    /// What limited the work, in words.
    pub limited_by: Option<String>,
}
