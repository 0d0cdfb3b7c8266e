//! Writing an image to an NFS share.
//!
//! Data go out as UNSTABLE writes, many in flight, and stay in memory (the window) until a COMMIT has shown them durable: the
//! server's write verifier in the reply to every WRITE and to the COMMIT that follows must be the same. Another verifier means
//! that the server restarted and may have forgotten: what it acknowledged under the old one is sent again, what was committed
//! never. COMMITs are sent by themselves as the window fills, and writing goes on meanwhile.
//!
//! The partial file is told from others by its file number. A left-over of a dead run is removed; a live writer that loses its
//! file that way finds out at once (stale handle) or when it publishes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::super::{ImageFile, NfsUrl, Options, PARTIAL_SUFFIX, Result, StoreError, StoreWriter};
use super::client::{Patience, Place};
use super::lane::{Answer, Payload};
use super::proto::{self, FileKind, Handle, Status, Written};
use super::publish::publish;
use super::reader::NfsImage;
use super::session::Session;

/// The most that is kept in memory until it is durable, the piece being filled included.
pub(super) const WINDOW_BYTES: u64 = 64 << 20;
/// Acknowledged data that are worth a COMMIT.
const COMMIT_STEP_BYTES: u64 = 16 << 20;
/// So many restarts of the server in a row without anything becoming durable are too many.
const MAX_FORGOTTEN: u32 = 20;
/// How long tidying up after a failure may take.
const TIDY_BUDGET: Duration = Duration::from_secs(10);
/// The tag of a COMMIT; writes are tagged with their piece's number.
const COMMIT_TAG: u64 = u64::MAX;

/// A part of the image that is not durable yet.
#[derive(Debug)]
struct Piece {
    data: Arc<Vec<u8>>,
    offset: u64,
    /// How much the server acknowledged.
    acknowledged: usize,
    /// Under which verifier; `None` when nothing is, or nothing unstable.
    verifier: Option<[u8; 8]>,
    in_flight: bool,
    /// The COMMIT under way was sent after this was acknowledged.
    covered: bool,
}

impl Piece {
    fn is_written(&self) -> bool {
        !self.in_flight && self.acknowledged == self.data.len()
    }

    fn is_durable(&self) -> bool {
        self.is_written() && self.verifier.is_none()
    }
}

/// An image being written.
pub(super) struct NfsWriter {
    session: Arc<Session>,
    url: NfsUrl,
    partial_url: NfsUrl,
    options: Options,
    name: String,
    partial: String,
    handle: Handle,
    /// The partial file's identity.
    id: (u64, u64),
    piece_bytes: usize,
    filling: Vec<u8>,
    spare: Vec<Vec<u8>>,
    pieces: VecDeque<Piece>,
    /// The number of the front piece.
    first: u64,
    in_flight: usize,
    committing: bool,
    verifier: Option<[u8; 8]>,
    forgotten: u32,
    resent_bytes: u64,
    len_bytes: u64,
    durable_bytes: u64,
    patience: Patience,
    sender: Sender<Answer>,
    answers: Receiver<Answer>,
    dead: bool,
    /// Published, or removed: nothing to tidy up.
    settled: bool,
}

impl NfsWriter {
    pub(super) fn create(
        session: Session,
        url: &NfsUrl,
        name: &str,
        image_id: uuid::Uuid,
        options: &Options,
    ) -> Result<Self> {
        let place = Place { doing: "creating", url };
        if session.find(place, name)?.is_some() {
            return Err(StoreError::Exists { url: url.to_string() });
        }
        let partial = format!("{name}{PARTIAL_SUFFIX}");
        let partial_url = NfsUrl { path: format!("{}{PARTIAL_SUFFIX}", url.path), ..url.clone() };
        let place = Place { doing: "creating", url: &partial_url };
        if let Some(left_over) = session.find(place, &partial)? {
            if left_over.attributes.kind != FileKind::Regular {
                return Err(StoreError::Exists { url: partial_url.to_string() });
            }
            session.remove(place, &partial)?;
        }
        let verifier = image_id.as_bytes()[..8].try_into().expect("half of sixteen bytes");
        let found = session.create(place, &partial, verifier)?;
        let piece_bytes = usize::try_from(session.client.write_bytes).expect("u32 fits usize");
        let (sender, answers) = channel();
        Ok(Self {
            session: Arc::new(session),
            url: url.clone(),
            partial_url,
            options: options.clone(),
            name: name.to_owned(),
            partial,
            handle: found.handle,
            id: found.attributes.id,
            piece_bytes,
            filling: Vec::with_capacity(piece_bytes),
            spare: Vec::new(),
            pieces: VecDeque::new(),
            first: 0,
            in_flight: 0,
            committing: false,
            verifier: None,
            forgotten: 0,
            resent_bytes: 0,
            len_bytes: 0,
            durable_bytes: 0,
            patience: Patience::new(),
            sender,
            answers,
            dead: false,
            settled: false,
        })
    }

    /// Runs one step; an error in it ends the writer.
    fn alive<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.dead {
            return Err(StoreError::Dead { url: self.url.to_string() });
        }
        let done = step(self);
        self.dead = done.is_err();
        done
    }

    fn window_bytes(&self) -> u64 {
        self.len_bytes - self.durable_bytes
    }

    /// Sends the piece that was being filled.
    fn send_filled(&mut self) {
        let next = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(self.piece_bytes));
        let data = Arc::new(std::mem::replace(&mut self.filling, next));
        let offset = self
            .pieces
            .back()
            .map_or(self.durable_bytes, |last| last.offset + bytes(last.data.len()));
        self.pieces.push_back(Piece {
            data,
            offset,
            acknowledged: 0,
            verifier: None,
            in_flight: false,
            covered: false,
        });
        self.send_piece(self.pieces.len() - 1);
    }

    /// Sends what the server has not acknowledged of a piece.
    fn send_piece(&mut self, index: usize) {
        let tag = self.first + bytes(index);
        let piece = &mut self.pieces[index];
        piece.in_flight = true;
        self.in_flight += 1;
        let range = piece.acknowledged..piece.data.len();
        let count = u32::try_from(range.len()).expect("a piece is at most a request long");
        let offset = piece.offset + bytes(range.start);
        let payload = Payload { data: Arc::clone(&piece.data), range };
        let arguments =
            |call: &mut super::xdr::Encoder| proto::put_write(call, &self.handle, offset, count);
        self.session.client.submit(proto::WRITE, arguments, Some(payload), tag, &self.sender);
        self.session.client.hold(&self.patience);
    }

    /// Sends a piece again from its start.
    fn send_again(&mut self, index: usize) {
        let piece = &mut self.pieces[index];
        self.resent_bytes += bytes(piece.acknowledged);
        piece.acknowledged = 0;
        piece.verifier = None;
        // A COMMIT under way may have been carried out before this arrives.
        piece.covered = false;
        self.send_piece(index);
    }

    /// Sends a COMMIT for the acknowledged pieces at the front, if they are worth it and none is under way.
    fn commit_front(&mut self, at_least_bytes: u64) {
        if self.committing {
            return;
        }
        let front = self.pieces.iter().take_while(|piece| piece.is_written());
        let (count, len_bytes) =
            front.fold((0_usize, 0), |(n, len), piece| (n + 1, len + bytes(piece.data.len())));
        if count == 0 || len_bytes < at_least_bytes {
            return;
        }
        self.committing = true;
        self.pieces.iter_mut().take(count).for_each(|piece| piece.covered = true);
        let offset = self.pieces[0].offset;
        let count = u32::try_from(len_bytes).expect("the window is far below 4 GiB");
        let arguments = |call: &mut super::xdr::Encoder| {
            call.opaque(&self.handle.0).u64(offset).u32(count);
        };
        self.session.client.submit(proto::COMMIT, arguments, None, COMMIT_TAG, &self.sender);
        self.session.client.hold(&self.patience);
    }

    /// Takes one answer.
    fn take(&mut self, answer: &Answer) -> Result<()> {
        if answer.tag == COMMIT_TAG {
            return self.take_commit(answer);
        }
        let place = Place { doing: "writing", url: &self.partial_url };
        let outcome = self.session.client.results(place, answer, proto::read_written);
        let index =
            answer.tag.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        let index = index.expect("a piece stays in the window while a write of it is in flight");
        self.in_flight -= 1;
        self.pieces[index].in_flight = false;
        match outcome? {
            Ok(written) => {
                self.patience = Patience::new();
                self.take_written(index, written)
            }
            Err(Status::Jukebox) => {
                self.patience.wait();
                self.send_piece(index);
                Ok(())
            }
            Err(status) if status.is_stale() => {
                self.find_partial()?;
                self.send_piece(index);
                Ok(())
            }
            Err(status) => Err(self.session.client.refused(place, status)),
        }
    }

    fn take_written(&mut self, index: usize, written: Written) -> Result<()> {
        let piece = &mut self.pieces[index];
        let count = usize::try_from(written.count).expect("u32 fits usize on every target");
        if count == 0 || count > piece.data.len() - piece.acknowledged {
            return Err(StoreError::Protocol {
                doing: "writing",
                url: self.partial_url.to_string(),
                reason: format!("it claims to have written {count} bytes of a request"),
            });
        }
        if !written.stable {
            if piece.verifier.is_some_and(|earlier| earlier != written.verifier) {
                // A short write, a restart, and then the rest: the first part may be lost.
                self.send_again(index);
                return self.note_verifier(written.verifier);
            }
            piece.verifier = Some(written.verifier);
        }
        piece.acknowledged += count;
        if piece.acknowledged < piece.data.len() {
            self.send_piece(index);
        }
        self.note_verifier(written.verifier)?;
        self.drop_durable();
        Ok(())
    }

    fn take_commit(&mut self, answer: &Answer) -> Result<()> {
        let place = Place { doing: "committing", url: &self.partial_url };
        self.committing = false;
        match self.session.client.results(place, answer, proto::read_committed)? {
            Ok(verifier) => {
                self.patience = Patience::new();
                for piece in &mut self.pieces {
                    // Otherwise `note_verifier` sends it again.
                    if piece.covered && piece.verifier == Some(verifier) {
                        piece.verifier = None;
                    }
                    piece.covered = false;
                }
                self.drop_durable();
                self.note_verifier(verifier)
            }
            Err(Status::Jukebox) => {
                self.patience.wait();
                Ok(())
            }
            Err(status) if status.is_stale() => self.find_partial(),
            Err(status) => Err(self.session.client.refused(place, status)),
        }
    }

    /// Sends again what was acknowledged under another verifier than the newest.
    fn note_verifier(&mut self, newest: [u8; 8]) -> Result<()> {
        if self.verifier.replace(newest).is_none_or(|before| before == newest) {
            return Ok(());
        }
        self.forgotten += 1;
        if self.forgotten > MAX_FORGOTTEN {
            let url = self.partial_url.to_string();
            return Err(StoreError::KeepsForgetting { url, times: self.forgotten });
        }
        for index in 0..self.pieces.len() {
            let piece = &self.pieces[index];
            if piece.is_written() && piece.verifier.is_some_and(|verifier| verifier != newest) {
                self.send_again(index);
            }
        }
        Ok(())
    }

    /// Lets go of the durable pieces at the front.
    fn drop_durable(&mut self) {
        while self.pieces.front().is_some_and(Piece::is_durable) {
            let piece = self.pieces.pop_front().expect("there is a front");
            self.first += 1;
            self.durable_bytes += bytes(piece.data.len());
            self.forgotten = 0;
            // The sending thread may hold on to it for a moment: then it is not used again.
            if let Ok(mut data) = Arc::try_unwrap(piece.data) {
                data.clear();
                self.spare.push(data);
            }
        }
    }

    /// Finds the partial file again after the server forgot its handle.
    fn find_partial(&mut self) -> Result<()> {
        let place = Place { doing: "writing", url: &self.partial_url };
        match self.session.find(place, &self.partial)? {
            Some(found) if found.attributes.id == self.id && found.handle != self.handle => {
                self.handle = found.handle;
                Ok(())
            }
            // Pieces that went out with the old handle come back stale one after the other.
            Some(found) if found.attributes.id == self.id => {
                self.patience.wait();
                Ok(())
            }
            _ => Err(StoreError::Replaced { url: self.partial_url.to_string() }),
        }
    }

    /// Takes the answers that are there; waits for one while `busy` holds.
    fn pump(&mut self, busy: impl Fn(&Self) -> bool) -> Result<()> {
        loop {
            while let Ok(answer) = self.answers.try_recv() {
                self.take(&answer)?;
            }
            if !busy(self) {
                return Ok(());
            }
            let idle = self.in_flight == 0;
            self.commit_front(if idle { 0 } else { COMMIT_STEP_BYTES });
            let answer = self.answers.recv().expect("this writer holds a sender");
            self.take(&answer)?;
        }
    }

    fn commit_all(&mut self) -> Result<u64> {
        if !self.filling.is_empty() {
            self.send_filled();
        }
        self.pump(|writer| !writer.pieces.is_empty())?;
        Ok(self.durable_bytes)
    }

    fn remove_partial(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.settled, true) {
            return Ok(());
        }
        self.session.client.set_budget(self.options.budget.min(TIDY_BUDGET));
        let place = Place { doing: "removing", url: &self.partial_url };
        match self.session.find(place, &self.partial)? {
            Some(found) if found.attributes.id == self.id => {
                self.session.remove(place, &self.partial).map(drop)
            }
            // Somebody else's by now, or nobody's.
            _ => Ok(()),
        }
    }
}

impl StoreWriter for NfsWriter {
    fn append(&mut self, data: &[u8]) -> Result<()> {
        self.alive(|writer| {
            let mut data = data;
            while !data.is_empty() {
                let room = writer.piece_bytes - writer.filling.len();
                let (now, later) = data.split_at(room.min(data.len()));
                writer.filling.extend_from_slice(now);
                writer.len_bytes += bytes(now.len());
                data = later;
                if writer.filling.len() == writer.piece_bytes {
                    writer.send_filled();
                    let piece_bytes = bytes(writer.piece_bytes);
                    writer.pump(|writer| {
                        writer.in_flight >= writer.session.client.in_flight
                            || writer.window_bytes() + piece_bytes > WINDOW_BYTES
                    })?;
                    writer.commit_front(COMMIT_STEP_BYTES);
                }
            }
            Ok(())
        })
    }

    fn commit(&mut self) -> Result<u64> {
        self.alive(Self::commit_all)
    }

    fn len(&self) -> u64 {
        self.len_bytes
    }

    fn resent_bytes(&self) -> u64 {
        self.resent_bytes
    }

    fn reader(&self) -> Result<Box<dyn ImageFile>> {
        let place = Place { doing: "reading", url: &self.partial_url };
        let session = Session::open(super::folder_of(&self.partial_url)?.0, &self.options)?;
        let found = session.find_file(place, &self.partial)?;
        if found.attributes.id != self.id {
            return Err(StoreError::Replaced { url: self.partial_url.to_string() });
        }
        let url = self.partial_url.clone();
        Ok(Box::new(NfsImage::new(Arc::new(session), url, self.partial.clone(), found)))
    }

    fn publish(mut self: Box<Self>) -> Result<()> {
        self.alive(Self::commit_all)?;
        let place = Place { doing: "publishing", url: &self.url };
        publish(&self.session, place, &self.partial, &self.name, self.id)?;
        self.settled = true;
        Ok(())
    }

    fn abort(mut self: Box<Self>) -> Result<()> {
        self.remove_partial()
    }
}

impl Drop for NfsWriter {
    fn drop(&mut self) {
        // Nobody to tell; the next writer of this name replaces what is left.
        let _ = self.remove_partial();
    }
}

/// A length in memory as a length in a file.
fn bytes(len: usize) -> u64 {
    u64::try_from(len).expect("a length in memory fits 64 bits")
}
