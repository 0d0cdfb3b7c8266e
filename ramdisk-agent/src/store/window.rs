//! What a writer keeps in memory until it is durable: which parts of it the server acknowledged, and under which verifier.
//!
//! A pure state machine, in the words of NFS; the verifier of an SMB share is the number of the session. The rule: a piece is
//! durable once a COMMIT that was sent after the piece was acknowledged comes back with the verifier of that acknowledgement.
//! Another verifier, in whatever reply, means that the server restarted: everything that was acknowledged under an earlier one is
//! sent again. When that happens over and over, the window becomes careful and sends one piece at a time, each with its COMMIT.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// The most that a writer keeps in memory until it is durable, the piece being filled included, in bytes.
pub(super) const WINDOW_BYTES: u64 = 64 << 20;
/// The most pieces in memory, for servers with small requests.
const MAX_PIECES: usize = 1024;
/// So many restarts in a row without anything becoming durable make the window careful.
const CAREFUL_AFTER: u32 = 4;
/// So many are too many.
pub(super) const MAX_FORGOTTEN: u32 = 20;

type Verifier = [u8; 8];

/// What a server says of a write that it carried out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written {
    pub(super) count: u32,
    /// It is on stable storage already.
    pub(super) stable: bool,
    /// Changes when the server may have forgotten what was not committed.
    pub(super) verifier: Verifier,
}

/// A part of the file that is not durable yet.
#[derive(Debug)]
struct Piece {
    data: Arc<Vec<u8>>,
    offset: u64,
    /// How much of it the server acknowledged.
    acknowledged: usize,
    /// Under which verifier; `None` when nothing is, or nothing unstable.
    verifier: Option<Verifier>,
    in_flight: bool,
    /// The COMMIT under way was sent after this was acknowledged.
    covered: bool,
}

impl Piece {
    fn is_written(&self) -> bool {
        self.acknowledged == self.data.len()
    }

    fn is_durable(&self) -> bool {
        self.is_written() && self.verifier.is_none()
    }
}

/// Data of a request that are not copied into it.
#[derive(Debug, Clone)]
pub(super) struct Payload {
    pub(super) data: Arc<Vec<u8>>,
    pub(super) range: Range<usize>,
}

/// Something to be sent.
#[derive(Debug)]
pub(super) struct ToSend {
    /// The piece's number, to be given back with the reply.
    pub(super) number: u64,
    pub(super) data: Arc<Vec<u8>>,
    pub(super) range: Range<usize>,
    /// Where the range goes in the file.
    pub(super) offset: u64,
}

/// Why the window cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WindowError {
    /// A reply claims more bytes than were sent, or none.
    Count(u32),
    /// The server restarted so often without keeping anything.
    KeepsForgetting(u32),
}

/// The uncommitted end of a file.
#[derive(Debug, Default)]
pub(super) struct Window {
    pieces: VecDeque<Piece>,
    /// The number of the front piece.
    first: u64,
    in_flight: usize,
    committing: bool,
    /// The newest verifier.
    verifier: Option<Verifier>,
    forgotten: u32,
    durable_bytes: u64,
    held_bytes: u64,
    resent_bytes: u64,
    spare: Vec<Vec<u8>>,
}

impl Window {
    /// The window of a file whose first bytes are durable already.
    pub(super) fn behind(durable_bytes: u64) -> Self {
        Self { durable_bytes, ..Self::default() }
    }

    /// Bytes at the start of the file that are durable.
    pub(super) fn durable_bytes(&self) -> u64 {
        self.durable_bytes
    }

    /// Bytes that were acknowledged, forgotten and sent again.
    pub(super) fn resent_bytes(&self) -> u64 {
        self.resent_bytes
    }

    /// Whether a piece of this length can be filled beside what is in memory.
    pub(super) fn has_room_for(&self, piece_bytes: u64) -> bool {
        self.held_bytes + piece_bytes <= WINDOW_BYTES && self.pieces() < MAX_PIECES
    }

    pub(super) fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Whether the file has not its first bytes yet.
    pub(super) fn lacks_front(&self) -> bool {
        self.durable_bytes == 0 && !self.pieces.front().is_some_and(Piece::is_written)
    }

    fn is_careful(&self) -> bool {
        self.forgotten >= CAREFUL_AFTER
    }

    /// Appends data to the file.
    pub(super) fn push(&mut self, data: Vec<u8>) {
        let offset = self.durable_bytes + self.held_bytes;
        self.held_bytes += bytes(data.len());
        let data = Arc::new(data);
        self.pieces.push_back(Piece {
            data,
            offset,
            acknowledged: 0,
            verifier: None,
            in_flight: false,
            covered: false,
        });
    }

    /// An empty buffer of an earlier piece.
    pub(super) fn take_spare(&mut self) -> Option<Vec<u8>> {
        self.spare.pop()
    }

    /// The next thing to send, if fewer than `limit` are in flight.
    pub(super) fn next_to_send(&mut self, limit: usize) -> Option<ToSend> {
        let limit = if self.is_careful() { 1 } else { limit };
        let wait = self.is_careful() && self.pieces.front().is_some_and(Piece::is_written);
        if self.in_flight >= limit || wait {
            return None;
        }
        let index = self.pieces.iter().position(|piece| !piece.in_flight && !piece.is_written())?;
        let piece = &mut self.pieces[index];
        piece.in_flight = true;
        self.in_flight += 1;
        let range = piece.acknowledged..piece.data.len();
        let offset = piece.offset + bytes(range.start);
        Some(ToSend {
            number: self.first + bytes(index),
            data: Arc::clone(&piece.data),
            range,
            offset,
        })
    }

    /// A write came back; whatever became of it, it is not in flight any more.
    fn landed(&mut self, number: u64) -> usize {
        let index = number.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        let index = index.expect("a piece stays in the window while a write of it is in flight");
        self.pieces[index].in_flight = false;
        self.in_flight -= 1;
        index
    }

    /// A write was not carried out: it is to be sent again.
    pub(super) fn not_written(&mut self, number: u64) {
        self.landed(number);
    }

    /// A write was carried out, perhaps in part.
    pub(super) fn written(&mut self, number: u64, reply: Written) -> Result<(), WindowError> {
        let index = self.landed(number);
        let piece = &mut self.pieces[index];
        let count = usize::try_from(reply.count).expect("u32 fits usize on every target");
        if count == 0 || count > piece.data.len() - piece.acknowledged {
            return Err(WindowError::Count(reply.count));
        }
        if !reply.stable && piece.verifier.is_some_and(|earlier| earlier != reply.verifier) {
            // A short write, a restart, and then the rest: the first part may be lost.
            self.forget(index);
        } else {
            piece.acknowledged += count;
            if !reply.stable {
                piece.verifier = Some(reply.verifier);
            }
        }
        self.note_verifier(reply.verifier)?;
        self.drop_durable();
        Ok(())
    }

    /// The range that is worth a COMMIT now; none while one is under way.
    pub(super) fn next_commit(&mut self, at_least_bytes: u64) -> Option<(u64, u32)> {
        let at_least_bytes =
            if self.in_flight == 0 || self.is_careful() { 1 } else { at_least_bytes };
        if self.committing {
            return None;
        }
        let front = self.pieces.iter().take_while(|piece| piece.is_written());
        let (count, len_bytes) =
            front.fold((0, 0), |(count, len), piece| (count + 1, len + bytes(piece.data.len())));
        if len_bytes < at_least_bytes {
            return None;
        }
        self.committing = true;
        self.pieces.iter_mut().take(count).for_each(|piece| piece.covered = true);
        let len = u32::try_from(len_bytes).expect("the window is far below 4 GiB");
        Some((self.pieces[0].offset, len))
    }

    /// The COMMIT was not carried out.
    pub(super) fn not_committed(&mut self) {
        self.committing = false;
        self.pieces.iter_mut().for_each(|piece| piece.covered = false);
    }

    /// The COMMIT was carried out.
    pub(super) fn committed(&mut self, verifier: Verifier) -> Result<(), WindowError> {
        for piece in self.pieces.iter_mut().filter(|piece| piece.covered) {
            // Under another verifier it is forgotten just below.
            if piece.verifier == Some(verifier) {
                piece.verifier = None;
            }
        }
        self.not_committed();
        self.drop_durable();
        self.note_verifier(verifier)
    }

    /// A piece is as if it had not been sent.
    fn forget(&mut self, index: usize) {
        let piece = &mut self.pieces[index];
        self.resent_bytes += bytes(piece.acknowledged);
        piece.acknowledged = 0;
        piece.verifier = None;
        // A COMMIT under way may have been carried out before this arrives again.
        piece.covered = false;
    }

    fn note_verifier(&mut self, newest: Verifier) -> Result<(), WindowError> {
        if self.verifier.replace(newest).is_none_or(|before| before == newest) {
            return Ok(());
        }
        // A burst that was under way when the window became careful tells of many restarts at once, in any order: those count as one.
        if !self.is_careful() || self.in_flight == 0 {
            self.forgotten += 1;
        }
        if self.forgotten > MAX_FORGOTTEN {
            return Err(WindowError::KeepsForgetting(self.forgotten));
        }
        for index in 0..self.pieces.len() {
            let piece = &self.pieces[index];
            // The reply of one in flight will tell by itself.
            if !piece.in_flight && piece.verifier.is_some_and(|verifier| verifier != newest) {
                self.forget(index);
            }
        }
        Ok(())
    }

    fn drop_durable(&mut self) {
        while self.pieces.front().is_some_and(Piece::is_durable) {
            let Some(piece) = self.pieces.pop_front() else { return };
            self.first += 1;
            let len_bytes = bytes(piece.data.len());
            self.durable_bytes += len_bytes;
            self.held_bytes -= len_bytes;
            self.forgotten = 0;
            // The sending thread may still hold on to it: then it is not used again.
            if let Ok(mut data) = Arc::try_unwrap(piece.data) {
                data.clear();
                self.spare.push(data);
            }
        }
    }
}

/// A length in memory as a length in a file.
pub(super) fn bytes(len: usize) -> u64 {
    u64::try_from(len).expect("a length in memory fits 64 bits")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reply(count: usize, verifier: u8) -> Written {
        Written { count: u32::try_from(count).unwrap(), stable: false, verifier: [verifier; 8] }
    }

    fn with_two_pieces() -> Window {
        let mut window = Window::default();
        window.push(vec![1; 10]);
        window.push(vec![2; 10]);
        assert_eq!(window.next_to_send(2).unwrap().number, 0);
        assert_eq!(window.next_to_send(2).unwrap().number, 1);
        assert!(window.next_to_send(2).is_none());
        window
    }

    #[test]
    fn a_commit_under_the_same_verifier_makes_durable() {
        let mut window = with_two_pieces();
        window.written(1, reply(10, 7)).unwrap();
        assert_eq!(window.next_commit(1), None, "the front is not written yet");
        window.written(0, reply(10, 7)).unwrap();
        assert_eq!(
            window.next_commit(100),
            Some((0, 20)),
            "nothing is in flight: any amount is worth it"
        );
        assert_eq!(window.next_commit(1), None, "one at a time");
        window.committed([7; 8]).unwrap();
        assert_eq!((window.durable_bytes(), window.held_bytes, window.resent_bytes()), (20, 0, 0));
    }

    #[test]
    fn a_commit_under_another_verifier_makes_nothing_durable() {
        let mut window = with_two_pieces();
        window.written(0, reply(10, 7)).unwrap();
        window.written(1, reply(10, 7)).unwrap();
        window.next_commit(1).unwrap();
        window.committed([8; 8]).unwrap();
        assert_eq!((window.durable_bytes(), window.resent_bytes()), (0, 20));
        assert_eq!(window.next_to_send(9).unwrap().range, 0..10);
    }

    #[test]
    fn a_commit_does_not_cover_what_was_sent_again_after_it() {
        let mut window = with_two_pieces();
        window.written(0, reply(10, 7)).unwrap();
        assert_eq!(window.next_commit(1), Some((0, 10)));
        // A restart shows in the other write; the first is sent again and written before the COMMIT's reply.
        window.written(1, reply(10, 8)).unwrap();
        assert_eq!(window.next_to_send(9).unwrap().number, 0);
        window.written(0, reply(10, 8)).unwrap();
        window.committed([8; 8]).unwrap();
        assert_eq!(window.durable_bytes(), 0, "the COMMIT may have come before the second sending");
        assert_eq!(window.next_commit(1), Some((0, 20)));
        window.committed([8; 8]).unwrap();
        assert_eq!(window.durable_bytes(), 20);
    }

    #[test]
    fn short_writes_with_a_restart_between() {
        let mut window = with_two_pieces();
        window.written(0, reply(4, 7)).unwrap();
        let rest = window.next_to_send(9).unwrap();
        assert_eq!((rest.number, rest.range, rest.offset), (0, 4..10, 4));
        window.written(0, reply(6, 8)).unwrap();
        assert_eq!(window.next_to_send(9).unwrap().range, 0..10);
        assert_eq!(window.resent_bytes(), 4);
    }

    #[test]
    fn the_front_is_there_once_all_of_its_piece_is() {
        let mut window = Window::default();
        assert!(window.lacks_front());
        window.push(vec![1; 10]);
        window.next_to_send(1).unwrap();
        assert!(window.lacks_front());
        window.written(0, reply(4, 7)).unwrap();
        assert!(window.lacks_front());
        window.next_to_send(1).unwrap();
        window.written(0, reply(6, 7)).unwrap();
        assert!(!window.lacks_front());
        window.next_commit(1).unwrap();
        window.committed([8; 8]).unwrap();
        assert!(window.lacks_front(), "a restart has lost it");
        assert!(!Window::behind(1).lacks_front());
    }

    #[test]
    fn impossible_counts() {
        assert_eq!(with_two_pieces().written(0, reply(11, 7)), Err(WindowError::Count(11)));
        assert_eq!(with_two_pieces().written(0, reply(0, 7)), Err(WindowError::Count(0)));
    }

    /// A server that restarts, writes short and answers out of order as the numbers say.
    #[derive(Default)]
    struct Server {
        stable: Vec<u8>,
        view: Vec<u8>,
        verifier: u8,
        committed: usize,
    }

    impl Server {
        fn restart(&mut self) {
            self.view = self.stable.clone();
            self.verifier = self.verifier.wrapping_add(1);
        }

        fn write(&mut self, send: &ToSend, short: bool) -> Written {
            let count = if short { send.range.len().div_ceil(2) } else { send.range.len() };
            let start = usize::try_from(send.offset).unwrap();
            assert!(start >= self.committed, "a committed byte was sent again");
            let end = self.view.len().max(start + count);
            self.view.resize(end, 0);
            self.view[start..start + count]
                .copy_from_slice(&send.data[send.range.start..][..count]);
            reply(count, self.verifier)
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_whatever_the_server_does(events in proptest::collection::vec(0_u8..12, 1..400)) {
            let (mut window, mut server) = (Window::default(), Server::default());
            let mut written = Vec::new();
            // Replies under way: executed already, not yet seen.
            let mut writes: Vec<(u64, Written)> = Vec::new();
            let mut commit: Option<u8> = None;
            let mut events = events.into_iter().chain(std::iter::repeat_n(5, 4000));
            let mut pushed = 0_u8;
            loop {
                let event = events.next().expect("it ends when the server is quiet");
                match event {
                    0 if pushed < 40 => {
                        pushed += 1;
                        written.extend_from_slice(&[pushed; 9]);
                        window.push(vec![pushed; 9]);
                    }
                    1 => server.restart(),
                    2 | 3 => if let Some(send) = window.next_to_send(4) {
                        let reply = server.write(&send, event == 3);
                        writes.push((send.number, reply));
                    },
                    4 if !writes.is_empty() => {
                        let (number, reply) = writes.remove(writes.len() / 2);
                        if window.written(number, reply).is_err() { return Ok(()) }
                    }
                    // The quiet end: everything in turn, no restarts.
                    5.. => {
                        if let Some(verifier) = commit.take() {
                            if window.committed([verifier; 8]).is_err() { return Ok(()) }
                            server.committed = usize::try_from(window.durable_bytes()).unwrap();
                        } else if !writes.is_empty() {
                            let (number, reply) = writes.remove(0);
                            if window.written(number, reply).is_err() { return Ok(()) }
                        } else if window.next_commit(20).is_some() {
                            server.stable = server.view.clone();
                            commit = Some(server.verifier);
                        } else if let Some(send) = window.next_to_send(4) {
                            writes.push((send.number, server.write(&send, false)));
                        } else if window.pieces() == 0 {
                            break;
                        }
                    }
                    _ => {}
                }
                let durable = usize::try_from(window.durable_bytes()).unwrap();
                prop_assert_eq!(&server.stable.get(..durable), &written.get(..durable), "durable bytes are on the disk");
            }
            prop_assert_eq!(server.stable, written);
        }
    }
}
