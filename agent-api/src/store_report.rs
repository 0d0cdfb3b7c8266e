//! What came of work on stores: trying one out, copying an image.

use serde::{Deserialize, Serialize};

use crate::Failure;

/// What a store did with a probe that was written, read, published and removed: `imprint-agent store-check --json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreReport {
    /// What went well, in order and in words.
    pub done: Vec<String>,
    /// What is known of the store, once it let the agent in.
    pub facts: Option<StoreFacts>,
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

/// How a store is spoken to, and what it takes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreFacts {
    /// Protocol and version: `NFS 3`, `SMB 3.1.1`, `folder`.
    pub protocol: String,
    /// Who the agent is to the store: `uid 0, gid 0`, `the user imprint`.
    pub identity: Option<String>,
    /// How the connection is protected: `signed`, `encrypted with AES-128-GCM`, `not at all`.
    pub protection: Option<String>,
    /// The largest request to read that is used: the store's limit, or the agent's own if that is lower.
    pub max_read_bytes: Option<u64>,
    /// The same for writing.
    pub max_write_bytes: Option<u64>,
    /// Bytes that the agent may still fill.
    pub free_bytes: Option<u64>,
    /// Size of the store.
    pub total_bytes: Option<u64>,
}

impl StoreFacts {
    /// For people, a line each; `size` makes text of bytes.
    #[must_use]
    pub fn lines(&self, size: impl Fn(u64) -> String) -> Vec<String> {
        let identity = self.identity.iter().map(|identity| format!(", as {identity}"));
        let protected = self.protection.iter().map(|how| format!(", protected: {how}"));
        let mut lines =
            vec![[self.protocol.clone()].into_iter().chain(identity).chain(protected).collect()];
        if let (Some(read), Some(write)) = (self.max_read_bytes, self.max_write_bytes) {
            lines.push(format!(
                "requests of up to {} to read, {} to write",
                size(read),
                size(write)
            ));
        }
        if let (Some(free), Some(total)) = (self.free_bytes, self.total_bytes) {
            lines.push(format!("{} free of {}", size(free), size(total)));
        }
        lines
    }
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
