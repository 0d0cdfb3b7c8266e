//! Writing an image to an NFS share.
//!
//! Data go out as UNSTABLE writes, many in flight, and stay in memory until a COMMIT has shown them durable; [`Window`] knows
//! when. COMMITs are sent by themselves as the window fills, and writing goes on meanwhile. Committed bytes are never sent again.
//!
//! The partial file is told from others as [`Identity`] says. Other agents of this machine are kept from it by a [`Claim`]; from
//! elsewhere a left-over of a dead run is removed or gone on with, and a live writer that loses its file that way finds out by a stale
//! handle, or when it publishes: the file must be as it was when it was read again. Then it leaves alone what has its name now.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::super::claim::Claim;
use super::super::filling::Filling;
use super::super::watch::Patience;
use super::super::window::{Payload, Window, WindowError};
use super::super::{
    ImageFile, NfsUrl, Options, PARTIAL_SUFFIX, Result, StoreError, StoreUrl, StoreWriter,
};
use super::client::Place;
use super::identity::Identity;
use super::lane::Answer;
use super::proto::{self, Attributes, FileKind, Status};
use super::publish::publish;
use super::reader::NfsImage;
use super::session::{Found, Session};
use super::xdr::Encoder;

/// Acknowledged data that are worth a COMMIT.
const COMMIT_STEP_BYTES: u64 = 16 << 20;
/// So long a server may take to carry out a WRITE that was sent on a connection which is no more.
const LATE_AFTER: Duration = Duration::from_secs(120);
/// The tag of a COMMIT. Writes are tagged with their piece's number and, above this many bits, with the handle's number.
const COMMIT_TAG: u64 = u64::MAX;
const NUMBER_BITS: u32 = 48;

/// An image being written.
pub(super) struct NfsWriter {
    session: Arc<Session>,
    url: NfsUrl,
    partial_url: NfsUrl,
    options: Options,
    name: String,
    partial: String,
    /// The partial file.
    ours: Identity,
    filling: Filling,
    window: Window,
    /// How often the handle was looked up anew, now and when the COMMIT under way was sent.
    lookups: u16,
    committing_lookups: u16,
    patience: Patience,
    sender: Sender<Answer>,
    answers: Receiver<Answer>,
    dead: bool,
    /// When an answer came to a WRITE that went out more than once.
    resent_at: Option<Instant>,
    /// The file as it was when it was last opened to be read again, where that tells something.
    read_as: Cell<Option<Attributes>>,
    /// No other agent of this machine writes the partial file meanwhile.
    _claim: Claim,
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
        let partial_url = partial_url(url);
        let claim = Claim::of(&StoreUrl::Nfs(partial_url.clone()))?;
        let place = Place { doing: "creating", url: &partial_url };
        if let Some(left_over) = session.find(place, &partial)? {
            if left_over.attributes.kind != FileKind::Regular {
                return Err(StoreError::Exists { url: partial_url.to_string() });
            }
            session.remove(place, &partial)?;
        }
        let verifier = image_id.as_bytes()[..8].try_into().expect("half of sixteen bytes");
        let ours = Identity::new(session.create(place, &partial, verifier)?);
        Ok(Self::behind(session, url, name, ours, claim, 0, options))
    }

    /// Goes on with a partial file behind its first `len_bytes`, which are durable and all that it has.
    pub(super) fn behind(
        session: Session,
        url: &NfsUrl,
        name: &str,
        ours: Identity,
        claim: Claim,
        len_bytes: u64,
        options: &Options,
    ) -> Self {
        let partial = format!("{name}{PARTIAL_SUFFIX}");
        let partial_url = partial_url(url);
        let piece_bytes = usize::try_from(session.client.write_bytes).expect("u32 fits usize");
        let (sender, answers) = channel();
        Self {
            session: Arc::new(session),
            url: url.clone(),
            partial_url,
            options: options.clone(),
            name: name.to_owned(),
            partial,
            ours,
            filling: Filling::behind(len_bytes, piece_bytes),
            window: Window::behind(len_bytes),
            lookups: 0,
            committing_lookups: 0,
            patience: Patience::default(),
            sender,
            answers,
            dead: false,
            resent_at: None,
            read_as: Cell::default(),
            _claim: claim,
            settled: false,
        }
    }

    /// Runs one step; an error in it ends the writer.
    fn alive<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.dead {
            return Err(StoreError::Dead { url: self.url.to_string() });
        }
        let done = step(self);
        self.dead = done.is_err();
        self.leave_if_lost(&done);
        done
    }

    /// What somebody else goes on with is not removed, even if it is the same file.
    fn leave_if_lost<T>(&mut self, done: &Result<T>) {
        self.settled |= matches!(done, Err(StoreError::Lost { .. }));
    }

    /// Sends the piece that was being filled, when its turn comes.
    fn push_filled(&mut self) {
        let spare = self.window.take_spare();
        self.window.push(self.filling.next(spare));
    }

    /// Sends what may be sent now.
    fn send(&mut self) {
        let client = &self.session.client;
        loop {
            // Nothing goes behind a front that is not there: a file with a hole in its place would not say whose it is.
            let limit = if self.window.lacks_front() { 1 } else { client.writes_in_flight };
            let Some(send) = self.window.next_to_send(limit) else { break };
            let count = u32::try_from(send.range.len()).expect("a piece is at most a request long");
            let tag = send.number | u64::from(self.lookups) << NUMBER_BITS;
            let payload = Payload { data: send.data, range: send.range };
            let arguments =
                |call: &mut Encoder| proto::put_write(call, &self.ours.handle, send.offset, count);
            client.submit(proto::WRITE, arguments, Some(payload), tag, &self.sender);
        }
        if let Some((offset, count)) = self.window.next_commit(COMMIT_STEP_BYTES) {
            self.committing_lookups = self.lookups;
            let arguments = |call: &mut Encoder| {
                call.opaque(&self.ours.handle.0).u64(offset).u32(count);
            };
            client.submit(proto::COMMIT, arguments, None, COMMIT_TAG, &self.sender);
        }
    }

    /// Takes one answer.
    fn take(&mut self, answer: &Answer) -> Result<()> {
        let place = Place { doing: "writing", url: &self.partial_url };
        let client = &self.session.client;
        let (failure, lookups) = if answer.tag == COMMIT_TAG {
            match client.results(place, answer, proto::read_committed)? {
                Ok(verifier) => {
                    client.calm(&mut self.patience);
                    return self.window.committed(verifier).map_err(|error| self.hopeless(error));
                }
                Err(status) => {
                    self.window.not_committed();
                    (status, self.committing_lookups)
                }
            }
        } else {
            let number = answer.tag & ((1 << NUMBER_BITS) - 1);
            if answer.resent {
                self.resent_at = Some(Instant::now());
            }
            match client.results(place, answer, proto::read_written)? {
                Ok(written) => {
                    client.calm(&mut self.patience);
                    let taken = self.window.written(number, written);
                    return taken.map_err(|error| self.hopeless(error));
                }
                Err(status) => {
                    self.window.not_written(number);
                    let lookups = u16::try_from(answer.tag >> NUMBER_BITS);
                    (status, lookups.expect("sixteen bits are left"))
                }
            }
        };
        match failure {
            Status::Jukebox => client.wait(place, &mut self.patience),
            // Others that went out with the old handle come back one after the other.
            status if status.is_stale() && lookups != self.lookups => Ok(()),
            status if status.is_stale() => self.find_partial(),
            status => Err(client.refused(place, status)),
        }
    }

    fn hopeless(&self, error: WindowError) -> StoreError {
        let url = self.partial_url.to_string();
        match error {
            WindowError::KeepsForgetting(times) => StoreError::KeepsForgetting { url, times },
            WindowError::Count(count) => {
                let reason = format!("it claims to have written {count} bytes of a request");
                StoreError::Protocol { doing: "writing", url, reason }
            }
        }
    }

    /// Finds the partial file again after the server forgot its handle.
    fn find_partial(&mut self) -> Result<()> {
        let place = Place { doing: "writing", url: &self.partial_url };
        match self.session.find(place, &self.partial)? {
            Some(found) if self.is_ours(place, &found)? => {
                if found.handle == self.ours.handle {
                    self.session.client.wait(place, &mut self.patience)?;
                }
                self.ours.handle = found.handle;
                self.lookups = self.lookups.wrapping_add(1);
                Ok(())
            }
            _ => Err(self.lost()),
        }
    }

    fn lost(&self) -> StoreError {
        StoreError::Lost { url: self.partial_url.to_string() }
    }

    /// Whether nobody else has written to our file, as far as its length and times tell.
    fn is_untouched(&self, now: &Attributes) -> bool {
        let as_read = |then: Attributes| {
            then.len_bytes != self.filling.len_bytes() || now.modified <= then.modified
        };
        now.len_bytes == self.filling.len_bytes() && self.read_as.get().is_none_or(as_read)
    }

    /// Whether our file could be so long: one that somebody has cut off or written on is theirs by now.
    fn may_be(&self, now: &Attributes) -> bool {
        (self.window.durable_bytes()..=self.filling.len_bytes()).contains(&now.len_bytes)
    }

    fn is_ours(&self, place: Place<'_>, found: &Found) -> Result<bool> {
        self.ours.is(&self.session, place, found, self.window.durable_bytes())
    }

    /// Takes the answers that are there and sends what they allow; waits for more while `busy` holds.
    fn pump(&mut self, busy: impl Fn(&Window) -> bool) -> Result<()> {
        loop {
            while let Ok(answer) = self.answers.try_recv() {
                self.take(&answer)?;
            }
            self.send();
            if !busy(&self.window) {
                return Ok(());
            }
            let answer = self.answers.recv().expect("this writer holds a sender");
            self.take(&answer)?;
        }
    }

    fn commit_all(&mut self) -> Result<u64> {
        if !self.filling.is_empty() {
            self.push_filled();
        }
        self.pump(|window| window.pieces() > 0)?;
        Ok(self.window.durable_bytes())
    }

    fn remove_partial(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.settled, true) {
            return Ok(());
        }
        self.session.client.tidy(self.options.budget);
        let place = Place { doing: "removing", url: &self.partial_url };
        match self.session.find(place, &self.partial)? {
            Some(found) if self.is_ours(place, &found)? && self.may_be(&found.attributes) => {
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
            writer.ours.appends(data);
            let mut data = data;
            while !data.is_empty() {
                data = writer.filling.take(data);
                if writer.filling.is_full() {
                    writer.push_filled();
                    let piece_bytes = writer.filling.piece_bytes();
                    writer.pump(|window| !window.has_room_for(piece_bytes))?;
                }
            }
            Ok(())
        })
    }

    fn commit(&mut self) -> Result<u64> {
        self.alive(Self::commit_all)
    }

    fn len(&self) -> u64 {
        self.filling.len_bytes()
    }

    fn resent_bytes(&self) -> u64 {
        self.window.resent_bytes()
    }

    fn reader(&self) -> Result<Box<dyn ImageFile>> {
        let place = Place { doing: "reading", url: &self.partial_url };
        let session = Session::open(super::folder_of(&self.partial_url)?.0, &self.options)?;
        let found = session.find(place, &self.partial)?.ok_or_else(|| self.lost())?;
        if !self.ours.is(&session, place, &found, self.window.durable_bytes())? {
            return Err(self.lost());
        }
        // A WRITE that was sent twice may be carried out twice, the second time late: that is not somebody else's.
        let is_quiet = self.resent_at.is_none_or(|at| at.elapsed() > LATE_AFTER);
        self.read_as.set(Some(found.attributes).filter(|_| is_quiet));
        let url = self.partial_url.clone();
        Ok(Box::new(NfsImage::new(Arc::new(session), url, self.partial.clone(), found)))
    }

    fn publish(mut self: Box<Self>) -> Result<()> {
        self.alive(Self::commit_all)?;
        let place = Place { doing: "publishing", url: &self.url };
        let published = publish(&self.session, place, &self.partial, &self.name, &|found| {
            Ok(self.is_ours(place, found)? && self.is_untouched(&found.attributes))
        });
        self.leave_if_lost(&published);
        self.settled |= published.is_ok();
        published
    }

    fn abort(mut self: Box<Self>) -> Result<()> {
        self.remove_partial()
    }

    fn keep(mut self: Box<Self>) -> Result<()> {
        self.settled = true;
        Ok(())
    }
}

/// Where an image is written that will be at `url`.
pub(super) fn partial_url(url: &NfsUrl) -> NfsUrl {
    NfsUrl { path: format!("{}{PARTIAL_SUFFIX}", url.path), ..url.clone() }
}

impl Drop for NfsWriter {
    fn drop(&mut self) {
        // Nobody to tell; the next writer of this name replaces what is left.
        let _ = self.remove_partial();
    }
}
