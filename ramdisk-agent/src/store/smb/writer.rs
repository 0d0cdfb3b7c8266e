//! Writing an image to a share.
//!
//! Data go out as WRITEs, many in flight on one session, and stay in memory until a FLUSH on the handle that they were written
//! through has shown them durable; [`Window`] knows when. FLUSHes are sent by themselves as the window fills, and writing goes on
//! meanwhile. When the session ends, the partial file is opened again on the next one (it has to be the same file, with all that was
//! durable), and what no FLUSH covered is sent again; nothing before it is.
//!
//! The partial file is open all the time, and nobody else may write or remove it meanwhile: a second writer of the name is refused.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::super::filling::Filling;
use super::super::watch::Patience;
use super::super::window::{Payload, Window, WindowError, Written};
use super::super::{ImageFile, Options, Result, SmbUrl, StoreError, StoreWriter};
use super::file::{self, HEAD_BYTES, How, Opened, partial_of};
use super::frame::Reply;
use super::header::Command;
use super::link::{Answer, Link, Request};
use super::messages::{self, FileId};
use super::reader::{SmbImage, in_flight};
use super::share::{Failure, Losses, Place, Share};
use super::status::Status;

/// Acknowledged data that are worth a FLUSH.
const FLUSH_STEP_BYTES: u64 = 16 << 20;
/// The tag of a FLUSH; WRITEs are tagged with their piece's number.
const FLUSH_TAG: u64 = u64::MAX;

/// An image being written.
pub(super) struct SmbWriter {
    share: Share,
    url: SmbUrl,
    partial_url: SmbUrl,
    /// The partial file's number on the server.
    number: u64,
    /// The handle, with the life of the connection that it belongs to.
    handle: Option<(u64, FileId)>,
    /// The file's first bytes, by which it is known again.
    head: Vec<u8>,
    writes_in_flight: usize,
    filling: Filling,
    window: Window,
    patience: Patience,
    losses: Losses,
    sender: Sender<Answer>,
    answers: Receiver<Answer>,
    dead: bool,
    /// Published, or removed: nothing to tidy up.
    settled: bool,
}

/// What a partial file has that is gone on with.
pub(super) struct Begun {
    /// Its number on the server.
    pub(super) number: u64,
    /// Its first bytes.
    pub(super) head: Vec<u8>,
    /// So many are durable, and all that it has.
    pub(super) len_bytes: u64,
}

impl SmbWriter {
    pub(super) fn create(share: Share, url: &SmbUrl) -> Result<Self> {
        let partial_url = partial_of(url);
        let place = Place { doing: "creating", url };
        if share.until_done(place, |link, _| file::exists(link, url))? {
            return Err(StoreError::Exists { url: url.to_string() });
        }
        let place = Place { doing: "creating", url: &partial_url };
        let (life, opened) = share
            .until_done(place, |link, _| Ok((link.life, create_partial(link, &partial_url)?)))?;
        let begun = Begun { number: opened.number, head: Vec::new(), len_bytes: 0 };
        Self::behind(share, url, (life, opened.id), begun)
    }

    /// Goes on with a partial file that is open for writing.
    pub(super) fn behind(
        share: Share,
        url: &SmbUrl,
        handle: (u64, FileId),
        begun: Begun,
    ) -> Result<Self> {
        let link = share.link(0)?;
        let request_bytes = share.request_bytes(link.limits.write_bytes);
        let piece_bytes = usize::try_from(request_bytes).expect("u32 fits usize");
        let writes_in_flight = in_flight(request_bytes, share.options().requests_in_flight);
        let (sender, answers) = channel();
        let Begun { number, mut head, len_bytes } = begun;
        head.reserve_exact(HEAD_BYTES.saturating_sub(head.len()));
        Ok(Self {
            share,
            url: url.clone(),
            partial_url: partial_of(url),
            number,
            handle: Some(handle),
            head,
            writes_in_flight,
            filling: Filling::behind(len_bytes, piece_bytes),
            window: Window::behind(len_bytes),
            patience: Patience::default(),
            losses: Losses::default(),
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

    fn place(&self) -> Place<'_> {
        Place { doing: "writing", url: &self.partial_url }
    }

    fn lost(&self) -> StoreError {
        StoreError::Lost { url: self.partial_url.to_string() }
    }

    /// The connection, with the partial file's handle on it.
    fn handle(&mut self) -> Result<(Arc<Link>, FileId)> {
        loop {
            let link = self.share.link(0)?;
            if let Some((life, id)) = self.handle
                && life == link.life
            {
                return Ok((link, id));
            }
            match self.reopen(&link) {
                Ok(id) => self.handle = Some((link.life, id)),
                Err(Failure::Lost) => self.losses.note(&self.share)?,
                Err(Failure::Status(status)) if status.is_session_lost() => {
                    link.end(&format!("the server answered {status}"));
                    self.losses.note(&self.share)?;
                }
                Err(Failure::Status(status)) if status.is_not_found() => {
                    return Err(self.lost());
                }
                // Also while the server has not yet noticed that our last session is gone.
                Err(Failure::Status(status))
                    if status.is_passing() || status == Status::SHARING_VIOLATION =>
                {
                    self.share.watch.wait("opening", &mut self.patience)?;
                }
                Err(failure) => return Err(self.share.words(self.place(), failure)),
            }
        }
    }

    /// Opens the partial file on a new session: it has to be ours, with everything that was durable.
    fn reopen(&self, link: &Link) -> Result<FileId, Failure> {
        let opened = file::open(link, &self.partial_url, How::WRITE)?;
        let durable_bytes = self.window.durable_bytes();
        let known = self.head.len().min(usize::try_from(durable_bytes).unwrap_or(usize::MAX));
        if opened.number != self.number
            || opened.len_bytes < durable_bytes
            || !file::begins_with(link, opened.id, &self.head[..known])?
        {
            return Err(self.lost().into());
        }
        Ok(opened.id)
    }

    /// Something was written.
    fn succeeded(&mut self) {
        self.losses = Losses::default();
        self.share.watch.calm(&mut self.patience);
    }

    /// Sends the piece that was being filled, when its turn comes.
    fn push_filled(&mut self) {
        let spare = self.window.take_spare();
        self.window.push(self.filling.next(spare));
    }

    /// Sends what may be sent now.
    fn send(&mut self) -> Result<()> {
        if self.window.pieces() == 0 {
            return Ok(());
        }
        let (link, id) = self.handle()?;
        let most = usize::try_from(link.limits.write_bytes).expect("u32 fits usize");
        let in_flight = if self.losses.are_many() { 1 } else { self.writes_in_flight };
        while let Some(send) = self.window.next_to_send(in_flight) {
            // A connection made anew may take less: that is a short write, and the rest follows.
            let data_bytes = send.range.len().min(most);
            let len = u32::try_from(data_bytes).expect("a piece is at most a request long");
            let range = send.range.start..send.range.start + data_bytes;
            let request = Request {
                command: Command::Write,
                body: messages::write(id, send.offset, len),
                payload: Some(Payload { data: send.data, range }),
                data_bytes,
            };
            link.submit(request, send.number, &self.sender);
        }
        if self.window.next_commit(FLUSH_STEP_BYTES).is_some() {
            let body = messages::flush(id);
            let request = Request { command: Command::Flush, body, payload: None, data_bytes: 0 };
            link.submit(request, FLUSH_TAG, &self.sender);
        }
        Ok(())
    }

    /// Takes one answer.
    fn take(&mut self, answer: &Answer) -> Result<()> {
        // A new session is to the window what a restarted server is: what was not flushed on the old one may be gone.
        let verifier = answer.life.to_le_bytes();
        let failure = match (taken(answer), answer.tag) {
            (Ok(_), FLUSH_TAG) => {
                self.succeeded();
                return self.window.committed(verifier).map_err(|error| self.hopeless(error));
            }
            (Ok(reply), number) => {
                let count = messages::read_written(reply.message());
                let count = count.map_err(|error| self.share.words(self.place(), error.into()))?;
                self.succeeded();
                let written = Written { count, stable: false, verifier };
                let taken = self.window.written(number, written);
                return taken.map_err(|error| self.hopeless(error));
            }
            (Err(failure), FLUSH_TAG) => {
                self.window.not_committed();
                failure
            }
            (Err(failure), number) => {
                self.window.not_written(number);
                failure
            }
        };
        let is_current = self.handle.is_some_and(|(life, _)| life == answer.life);
        match failure {
            // Others of the same session come back one after the other.
            Failure::Lost if !is_current => Ok(()),
            Failure::Lost => {
                self.handle = None;
                self.losses.note(&self.share)
            }
            Failure::Status(status) if status.is_session_lost() => {
                if is_current {
                    self.share.end(0, answer.life, status);
                    self.handle = None;
                    self.losses.note(&self.share)?;
                }
                Ok(())
            }
            Failure::Status(status) if status.is_passing() => {
                self.share.watch.wait("writing", &mut self.patience)
            }
            failure => Err(self.share.words(self.place(), failure)),
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

    /// Takes the answers that are there and sends what they allow; waits for more while `busy` holds.
    fn pump(&mut self, busy: impl Fn(&Window) -> bool) -> Result<()> {
        loop {
            while let Ok(answer) = self.answers.try_recv() {
                self.take(&answer)?;
            }
            self.send()?;
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

    /// Closes the handle that was written through. What a server says only now counts too.
    fn close(&mut self) -> Result<()> {
        let Some((life, id)) = self.handle.take() else { return Ok(()) };
        let place = Place { doing: "closing", url: &self.partial_url };
        self.share.until_done(place, |link, _| match link.life == life {
            true => file::close(link, id),
            // It went with its session, after everything was flushed.
            false => Ok(()),
        })
    }

    /// Gives the partial file its name, on one session.
    fn name_it(&self, link: &Link) -> Result<(), Failure> {
        let (opened, named) = match file::open(link, &self.partial_url, How::OWN) {
            // Carried out on an earlier session, its answer lost?
            Err(Failure::Status(status)) if status.is_not_found() => {
                (file::open(link, &self.url, How::OWN)?, true)
            }
            opened => (opened?, false),
        };
        let done = self.name_opened(link, &opened, named);
        // After an error the handle has to go too: it would be in the way of removing the file.
        let closed = file::close(link, opened.id);
        done.and(closed)
    }

    fn name_opened(&self, link: &Link, opened: &Opened, named: bool) -> Result<(), Failure> {
        let is_ours = opened.number == self.number
            && opened.len_bytes == self.filling.len_bytes()
            && file::begins_with(link, opened.id, &self.head)?;
        if !is_ours {
            return Err(self.lost().into());
        }
        if !named {
            file::rename(link, opened.id, &self.url)?;
        }
        // The name, too, is to survive a power cut.
        file::flush(link, opened.id)
    }

    fn remove_partial(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.settled, true) {
            return Ok(());
        }
        self.share.tidy();
        let life = self.handle.map(|(life, _)| life);
        // Its end is what matters; but a server that does not answer is not waited for twice.
        if let Err(error @ StoreError::Unreachable { .. }) = self.close() {
            return Err(error);
        }
        // A session of ours that ended may still hold the file.
        let losses = match life == Some(self.share.link(0)?.life) {
            true => Losses::default(),
            false => Losses::one(),
        };
        let (url, number) = (&self.partial_url, self.number);
        let place = Place { doing: "removing", url };
        self.share.until_done_after(losses, place, |link, _| {
            match file::open(link, url, How::OWN) {
                Ok(found) if found.number == number => file::remove(link, found.id),
                // Somebody else's by now, or nobody's.
                Ok(found) => file::close(link, found.id),
                Err(Failure::Status(status)) if status.is_not_found() => Ok(()),
                Err(failure) => Err(failure),
            }
        })
    }
}

/// The reply in an answer, if the server did what it was asked for.
fn taken(answer: &Answer) -> Result<&Reply, Failure> {
    let reply = answer.reply.as_ref().map_err(|_| Failure::Lost)?;
    match reply.header.status {
        Status::SUCCESS => Ok(reply),
        status => Err(Failure::Status(status)),
    }
}

/// Makes the partial file; a left-over of a dead run, which nobody holds open, goes first.
fn create_partial(link: &Link, url: &SmbUrl) -> Result<Opened, Failure> {
    match file::open(link, url, How::CREATE) {
        Err(Failure::Status(Status::OBJECT_NAME_COLLISION)) => {
            let left_over = file::open(link, url, How::REMOVE)?;
            file::remove(link, left_over.id)?;
            file::open(link, url, How::CREATE)
        }
        opened => opened,
    }
}

impl StoreWriter for SmbWriter {
    fn append(&mut self, data: &[u8]) -> Result<()> {
        self.alive(|writer| {
            let mut data = data;
            let head_missing = HEAD_BYTES.saturating_sub(writer.head.len()).min(data.len());
            writer.head.extend_from_slice(&data[..head_missing]);
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
        let options: &Options = self.share.options();
        let share = Share::open(&self.partial_url, options, options.connections)?;
        let (how, number) = (How::READ_PARTIAL, Some(self.number));
        Ok(Box::new(SmbImage::open(share, &self.partial_url, how, number)?))
    }

    fn publish(mut self: Box<Self>) -> Result<()> {
        self.alive(Self::commit_all)?;
        self.alive(Self::close)?;
        let place = Place { doing: "publishing", url: &self.url };
        self.share.until_done(place, |link, _| self.name_it(link))?;
        self.settled = true;
        Ok(())
    }

    fn abort(mut self: Box<Self>) -> Result<()> {
        self.remove_partial()
    }

    fn keep(mut self: Box<Self>) -> Result<()> {
        self.settled = true;
        self.share.tidy();
        // So that the next writer gets at it; the handle of a server that cannot be reached goes with its session.
        let _ = self.close();
        Ok(())
    }
}

impl Drop for SmbWriter {
    fn drop(&mut self) {
        // Nobody to tell; the next writer of this name replaces what is left.
        let _ = self.remove_partial();
    }
}
