//! The small set of failure kinds that machines act on; the message beside it is for people.

use serde::{Deserialize, Serialize};

/// Why work failed, at the edge of a job. Text form is `snake_case`, the same in JSON, exit messages and the job's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The network or a peer did not answer within the budget.
    Network,
    /// The store answered with an error that is not about space or permission.
    Store,
    /// A disk failed to read, write or flush, or reads back what was not written.
    Disk,
    /// The image does not match its hashes, is truncated, or is of an unknown version.
    ImageCorrupt,
    /// Store or target has not enough room.
    NoSpace,
    /// A safety rule said no before anything was changed: wrong, busy or small disk, existing image, missing permission.
    Refused,
    /// The source was not shut down cleanly; see `--dirty`.
    SourceNotClean,
    /// Somebody cancelled the job.
    Cancelled,
    /// What was named does not exist.
    NotFound,
    /// A defect of Imprint, or an environment that it cannot work in.
    Internal,
    /// A kind that a newer peer knows.
    #[serde(other)]
    Unknown,
}

impl ErrorKind {
    /// The text form, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Store => "store",
            Self::Disk => "disk",
            Self::ImageCorrupt => "image_corrupt",
            Self::NoSpace => "no_space",
            Self::Refused => "refused",
            Self::SourceNotClean => "source_not_clean",
            Self::Cancelled => "cancelled",
            Self::NotFound => "not_found",
            Self::Internal => "internal",
            Self::Unknown => "unknown",
        }
    }

    /// Whether the same job may succeed if it is simply tried again.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Network | Self::Store)
    }

    /// The exit code of `imprint-agent` for this kind: 2 is clap's, 1 is for everything without a kind.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Internal | Self::Unknown => 1,
            Self::Refused => 3,
            Self::SourceNotClean => 4,
            Self::ImageCorrupt => 5,
            Self::Disk => 6,
            Self::Store => 7,
            Self::Network => 8,
            Self::NoSpace => 9,
            Self::NotFound => 10,
            Self::Cancelled => 11,
        }
    }
}

impl std::fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::ErrorKind;

    #[test]
    fn text_form_is_the_json_form() {
        for kind in [
            ErrorKind::Network,
            ErrorKind::Store,
            ErrorKind::Disk,
            ErrorKind::ImageCorrupt,
            ErrorKind::NoSpace,
            ErrorKind::Refused,
            ErrorKind::SourceNotClean,
            ErrorKind::Cancelled,
            ErrorKind::NotFound,
            ErrorKind::Internal,
        ] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }

    #[test]
    fn a_kind_from_the_future_is_unknown() {
        let kind: ErrorKind = serde_json::from_str("\"meteor\"").unwrap();
        assert_eq!(kind, ErrorKind::Unknown);
    }
}
