//! Buffers of large messages, for use again: fresh memory costs more than the copy.

use std::sync::{Mutex, PoisonError};

/// Some buffers that nobody uses just now.
#[derive(Debug, Default)]
pub(super) struct Pool {
    pub(super) spare: Mutex<Vec<Vec<u8>>>,
}

impl Pool {
    /// More than this many are let go.
    const MAX_SPARE: usize = 32;

    /// A buffer with whatever it held last, or an empty one.
    pub(super) fn take(&self) -> Vec<u8> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    pub(super) fn give_back(&self, buffer: Vec<u8>) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < Self::MAX_SPARE {
            spare.push(buffer);
        }
    }
}
