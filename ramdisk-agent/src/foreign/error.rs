//! What can be wrong with an image of another tool.

use std::io;

use agent_api::ErrorKind;

use crate::error::Error;
use crate::store::StoreError;

/// What the readers of foreign formats return.
pub type Result<T, E = ForeignError> = std::result::Result<T, E>;

/// Why a foreign image is not read.
#[derive(Debug, thiserror::Error)]
pub enum ForeignError {
    /// The bytes cannot be had, or do not decompress.
    #[error("reading the {format} image")]
    Read {
        /// The format's name.
        format: &'static str,
        /// What the store or the decompressor said.
        #[source]
        source: io::Error,
    },
    /// It is not what its format demands.
    #[error("the {format} image is damaged: {fault}")]
    Damaged {
        /// The format's name.
        format: &'static str,
        /// What is wrong, and where.
        fault: String,
    },
    /// It is sound, but not something that is read here.
    #[error("{format}: {reason}")]
    Refused {
        /// The format's name.
        format: &'static str,
        /// Why, and what to do.
        reason: String,
    },
}

impl ForeignError {
    pub(crate) fn damaged(format: &'static str, fault: impl Into<String>) -> Self {
        Self::Damaged { format, fault: fault.into() }
    }

    pub(crate) fn refused(format: &'static str, reason: impl Into<String>) -> Self {
        Self::Refused { format, reason: reason.into() }
    }

    /// For `map_err` on reads.
    pub(crate) fn read(format: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Read { format, source }
    }

    fn kind(&self) -> ErrorKind {
        // What came through a reader on its way.
        if let Self::Read { source, .. } = self
            && let Some(inner) = source.get_ref().and_then(|inner| inner.downcast_ref::<Self>())
        {
            return inner.kind();
        }
        match self {
            // What is neither a store's error nor the system's comes from a decompressor, or is an early end.
            Self::Read { source, .. } => match StoreError::find(source) {
                Some(error) => error.kind(),
                None if source.raw_os_error().is_some() => ErrorKind::Store,
                None => ErrorKind::ImageCorrupt,
            },
            Self::Damaged { .. } => ErrorKind::ImageCorrupt,
            Self::Refused { .. } => ErrorKind::Refused,
        }
    }
}

impl From<ForeignError> for Error {
    fn from(error: ForeignError) -> Self {
        Self::new(error.kind(), "checking the image").because(error)
    }
}
