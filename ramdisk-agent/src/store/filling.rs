//! What is appended to a file, cut into pieces of one length. The writers over a network share it; how a piece goes away, and when there is room
//! for another one, is theirs.

use super::window::bytes;

/// The piece that is being filled.
#[derive(Debug)]
pub(super) struct Filling {
    piece: Vec<u8>,
    piece_bytes: usize,
    len_bytes: u64,
}

impl Filling {
    /// Behind what the file has already.
    pub(super) fn behind(len_bytes: u64, piece_bytes: usize) -> Self {
        Self { piece: Vec::with_capacity(piece_bytes), piece_bytes, len_bytes }
    }

    /// Takes as much of `data` as there is room for, and gives what is left.
    pub(super) fn take<'a>(&mut self, data: &'a [u8]) -> &'a [u8] {
        let room = self.piece_bytes - self.piece.len();
        let (now, later) = data.split_at(room.min(data.len()));
        self.piece.extend_from_slice(now);
        self.len_bytes += bytes(now.len());
        later
    }

    pub(super) fn is_empty(&self) -> bool {
        self.piece.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.piece.len() == self.piece_bytes
    }

    /// Gives the piece, and begins the next one in a buffer that is empty again, if there is one.
    pub(super) fn next(&mut self, spare: Option<Vec<u8>>) -> Vec<u8> {
        let next = spare.unwrap_or_else(|| Vec::with_capacity(self.piece_bytes));
        std::mem::replace(&mut self.piece, next)
    }

    /// Length of a full piece.
    pub(super) fn piece_bytes(&self) -> u64 {
        bytes(self.piece_bytes)
    }

    /// Length of the file, this piece included.
    pub(super) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }
}
