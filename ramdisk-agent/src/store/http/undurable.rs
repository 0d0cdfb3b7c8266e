//! What a writer keeps in memory until the controller says that it is durable, and how far the controller is.
//!
//! Pure: what the controller says goes in, what is to be sent next comes out. The rule: what was durable once is never sent again, and
//! a controller that has less of it than it said has lost the image.

use std::collections::VecDeque;
use std::sync::Arc;

use super::super::window::{MAX_FORGOTTEN, bytes};
use super::super::{Result, StoreError};
use super::controller::Upload;
use super::status::Place;

/// Received data that are worth being made durable.
const COMMIT_STEP_BYTES: u64 = 16 << 20;

/// The undurable end of the image, and how far it is.
#[derive(Debug, Default)]
pub(super) struct State {
    /// In order; the first one begins at `durable`.
    pub(super) pieces: VecDeque<Arc<Vec<u8>>>,
    /// On stable storage.
    pub(super) durable: u64,
    /// The controller has so much, as far as is known.
    pub(super) received: u64,
    /// Cut into pieces.
    pub(super) appended: u64,
    /// Somebody waits until everything is durable.
    pub(super) wants_all: bool,
    /// The controller has less than was believed: its next answer to that says how much.
    pub(super) is_unsure: bool,
    pub(super) resent: u64,
    pub(super) forgotten: u32,
    pub(super) spare: Vec<Vec<u8>>,
    pub(super) error: Option<StoreError>,
    /// The threads are to end.
    pub(super) is_over: bool,
}

impl State {
    /// That of an upload whose first bytes are durable already.
    pub(super) fn behind(durable: u64) -> Self {
        Self { durable, received: durable, appended: durable, ..Self::default() }
    }

    /// The piece with the first byte that the controller does not have, where in it that is, and where in the file.
    pub(super) fn piece_at_received(&self) -> (Arc<Vec<u8>>, usize, u64) {
        let mut at = self.durable;
        for piece in &self.pieces {
            let end = at + bytes(piece.len());
            if self.received < end {
                let within = usize::try_from(self.received - at).expect("a piece fits in memory");
                return (Arc::clone(piece), within, self.received);
            }
            at = end;
        }
        (Arc::default(), 0, self.received)
    }

    /// Whether a request to make things durable is worth its price.
    pub(super) fn is_commit_worth_while(&self) -> bool {
        let waiting = self.received - self.durable;
        let is_last = self.wants_all && self.received == self.appended && !self.is_unsure;
        waiting >= COMMIT_STEP_BYTES || (waiting > 0 && is_last)
    }

    pub(super) fn note(&mut self, place: Place<'_>, upload: Upload) -> Result<()> {
        let received = upload.received_bytes;
        if received > self.appended || upload.durable_bytes > received {
            return Err(place.protocol("it claims to have bytes that it was never sent"));
        }
        if received < self.durable {
            return Err(StoreError::Lost { url: place.url.to_string() });
        }
        if received < self.received {
            self.resent += self.received - received;
            self.forgotten += 1;
            if self.forgotten > MAX_FORGOTTEN {
                let url = place.url.to_string();
                return Err(StoreError::KeepsForgetting { url, times: self.forgotten });
            }
        }
        self.received = received;
        self.keep(place, upload.durable_bytes)
    }

    /// Lets go of pieces that are durable as a whole.
    pub(super) fn keep(&mut self, place: Place<'_>, durable: u64) -> Result<()> {
        if durable > self.appended {
            return Err(place.protocol("it claims to keep bytes that it was never sent"));
        }
        while let Some(piece) = self.pieces.front() {
            let len_bytes = bytes(piece.len());
            if self.durable + len_bytes > durable {
                break;
            }
            self.durable += len_bytes;
            self.received = self.received.max(self.durable);
            self.forgotten = 0;
            // The sending thread may still hold on to it: then it is not used again.
            if let Some(Ok(mut data)) = self.pieces.pop_front().map(Arc::try_unwrap) {
                data.clear();
                self.spare.push(data);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn note(state: &mut State, received: u64, durable: u64) -> Result<()> {
        let crate::store::StoreUrl::Http(url) = "https://h/x".parse().unwrap() else {
            panic!("it is https")
        };
        let upload =
            Upload { received_bytes: received, durable_bytes: durable, is_published: false };
        state.note(Place { doing: "writing", url: &url }, upload)
    }

    fn state(pieces: &[usize]) -> State {
        let pieces: VecDeque<_> = pieces.iter().map(|len| Arc::new(vec![0; *len])).collect();
        let appended = pieces.iter().map(|piece| bytes(piece.len())).sum();
        State { pieces, appended, ..State::default() }
    }

    #[test]
    fn what_was_kept_never_comes_again_and_what_was_not_does() {
        let mut state = state(&[10, 10, 10]);
        note(&mut state, 25, 0).unwrap();
        assert_eq!(state.piece_at_received().1, 5);
        note(&mut state, 25, 15).unwrap();
        assert_eq!((state.durable, state.pieces.len(), state.received), (10, 2, 25));
        // A restart: it has what it had made durable.
        note(&mut state, 15, 15).unwrap();
        assert_eq!((state.resent, state.piece_at_received().1), (10, 5));
        note(&mut state, 30, 30).unwrap();
        assert_eq!((state.durable, state.pieces.len(), state.forgotten), (30, 0, 0));
        assert!(note(&mut state, 29, 29).is_err(), "it lost what it had kept");
        assert!(note(&mut state, 31, 30).is_err(), "it was never sent");
    }

    #[test]
    fn a_controller_that_only_forgets_is_given_up() {
        let mut state = state(&[10]);
        for _ in 0..MAX_FORGOTTEN {
            note(&mut state, 10, 0).unwrap();
            note(&mut state, 0, 0).unwrap();
        }
        note(&mut state, 10, 0).unwrap();
        let error = note(&mut state, 0, 0).unwrap_err();
        assert!(matches!(error, StoreError::KeepsForgetting { .. }));
    }

    proptest! {
        #[test]
        fn whatever_it_says_the_next_piece_begins_where_it_ends(
            lens in proptest::collection::vec(1_usize..20, 1..8),
            said in proptest::collection::vec((0_u64..200, 0_u64..200), 0..20),
        ) {
            let mut state = state(&lens);
            for (received, durable) in said {
                let before = state.durable;
                if note(&mut state, received, durable).is_err() {
                    break;
                }
                prop_assert!(before <= state.durable && state.durable <= state.received);
                prop_assert!(state.received <= state.appended);
                let (piece, at, offset) = state.piece_at_received();
                prop_assert_eq!(offset, state.received);
                let is_end = offset == state.appended;
                prop_assert!(is_end == piece.is_empty() && (is_end || at < piece.len()));
            }
        }
    }
}
