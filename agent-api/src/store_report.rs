//! What came of trying a store out.

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
