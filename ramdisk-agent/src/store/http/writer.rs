//! Writing an image to the controller's own store.
//!
//! What was appended is cut into pieces, which stay in memory until the controller says that they are on stable storage. One thread
//! sends them in order, another one has them made durable as they pile up, and the capture goes on meanwhile. After any break the
//! controller is asked how far it got: what it has is not sent again, and what it was told to keep never is. A controller that was
//! restarted has just that; what it had only received comes once more.
//!
//! The upload has an id of this writer's own, so that requests whose answers were lost can be sent again, and those of another writer are
//! told apart. A writer that has nothing to send asks how far it is now and then: the controller takes one that it does not hear of for
//! dead. Several pieces at once are deliberately absent: a piece is large enough to fill a connection.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::super::filling::Filling;
use super::super::window::{WINDOW_BYTES, bytes};
use super::super::{HttpUrl, ImageFile, Options, PARTIAL_SUFFIX, Result, StoreError, StoreWriter};
use super::client::{Client, Request};
use super::controller::{Refusal, UPLOAD_OFFSET, Upload, ask, attempt, call};
use super::reader::HttpImage;
use super::retry::Attempts;
use super::status::{Place, Trouble};
use super::undurable::State;

/// What one request carries.
const PIECE_BYTES: usize = 8 << 20;
/// How long the controller hears nothing at most, as far as it depends on this side.
const SIGN_OF_LIFE: Duration = Duration::from_secs(3);

/// Where the upload of a file with this id is.
pub(super) fn upload_of(url: &HttpUrl, id: Uuid) -> HttpUrl {
    url.join("uploads").join(&id.to_string())
}

/// Where what is durable of a file can be read before it has its name.
pub(super) fn partial_of(url: &HttpUrl) -> Result<HttpUrl> {
    let folder = url.parent().ok_or_else(|| StoreError::NotFound { url: url.to_string() })?;
    Ok(folder.join(&format!("{}{PARTIAL_SUFFIX}", url.name())))
}

/// When the controller last had more than before, and what has gone wrong since.
struct Growth {
    received: u64,
    at: Instant,
    is_troubled: bool,
    attempts: Attempts,
}

impl Default for Growth {
    fn default() -> Self {
        Self { received: 0, at: Instant::now(), is_troubled: false, attempts: Attempts::default() }
    }
}

impl Growth {
    /// It has so much now.
    fn since(&mut self, received: u64) -> &mut Self {
        if received > self.received || !self.is_troubled {
            *self = Self { received, ..Self::default() };
        }
        self
    }
}

struct Shared {
    client: Client,
    budget: Duration,
    url: HttpUrl,
    upload: HttpUrl,
    state: Mutex<State>,
    changed: Condvar,
}

/// An image being written.
pub(super) struct HttpWriter {
    shared: Arc<Shared>,
    options: Options,
    filling: Filling,
    threads: Vec<JoinHandle<()>>,
    is_dead: bool,
    /// Published, or removed: nothing to tidy up.
    is_settled: bool,
}

impl HttpWriter {
    pub(super) fn create(url: &HttpUrl, options: &Options) -> Result<Self> {
        let client = Client::new(url, options)?;
        let upload = upload_of(url, Uuid::new_v4());
        let place = Place { doing: "creating", url };
        let request = Request { method: "PUT", url: &upload, fields: &[], body: &[] };
        let found: Upload = call(&client, place.doing, &request).map_err(|refusal| match refusal {
            Refusal::Code(code) if matches!(code.as_str(), "not_found" | "method_not_allowed") => {
                let reason = "it is no file of a controller's own store, and nothing else is written to over HTTP; such a file's URL is https://HOST:8443/v1/stores/local/files/NAME".to_owned();
                StoreError::Unsupported { url: url.to_string(), reason }
            }
            refusal => refusal.into_error(place),
        })?;
        if found.is_published || found.received_bytes > 0 {
            return Err(StoreError::BeingWritten { url: url.to_string() });
        }
        Ok(Self::behind(client, url, upload, 0, options))
    }

    /// Goes on with an upload behind its first `len_bytes`, which are durable and all that it has.
    pub(super) fn behind(
        client: Client,
        url: &HttpUrl,
        upload: HttpUrl,
        len_bytes: u64,
        options: &Options,
    ) -> Self {
        client.watch.set_budget(options.budget);
        let shared = Arc::new(Shared {
            client,
            budget: options.budget,
            url: url.clone(),
            upload,
            state: Mutex::new(State::behind(len_bytes)),
            changed: Condvar::new(),
        });
        let thread = |work: fn(&Shared)| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || work(&shared))
        };
        let threads = vec![thread(Shared::send_pieces), thread(Shared::keep_pieces)];
        Self {
            shared,
            options: options.clone(),
            filling: Filling::behind(len_bytes, PIECE_BYTES),
            threads,
            is_dead: false,
            is_settled: false,
        }
    }

    /// Runs one step; an error in it ends the writer.
    fn alive<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.is_dead {
            return Err(StoreError::Dead { url: self.shared.url.to_string() });
        }
        let done = step(self);
        self.is_dead = done.is_err();
        done
    }

    /// Hands the piece that was being filled to the threads, once there is room for another one.
    fn push_filled(&mut self) -> Result<()> {
        let most = WINDOW_BYTES - bytes(PIECE_BYTES);
        let mut state = self
            .shared
            .wait_while(|state| state.appended - state.durable + bytes(PIECE_BYTES) > most)?;
        let piece = self.filling.next(state.spare.pop());
        state.appended += bytes(piece.len());
        state.pieces.push_back(Arc::new(piece));
        self.shared.changed.notify_all();
        Ok(())
    }

    fn commit_all(&mut self) -> Result<u64> {
        if !self.filling.is_empty() {
            self.push_filled()?;
        }
        self.shared.lock().wants_all = true;
        self.shared.changed.notify_all();
        let mut state = self.shared.wait_while(|state| state.durable < state.appended)?;
        state.wants_all = false;
        Ok(state.durable)
    }

    /// Ends the threads.
    fn end(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // One that panicked has said so; there is nothing left that it should have done.
            let _ = thread.join();
        }
    }

    fn give_up(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.is_settled, true) {
            return Ok(());
        }
        if self.shared.client.watch.is_called_off() {
            // The threads wait for nothing then, and not for as long as tidying up may take.
            self.end();
        }
        self.shared.client.watch.tidy(self.options.budget);
        self.end();
        let place = Place { doing: "removing", url: &self.shared.url };
        let request =
            Request { method: "DELETE", url: &self.shared.upload, fields: &[], body: &[] };
        match call::<()>(&self.shared.client, place.doing, &request) {
            Err(Refusal::Code(code)) if code == "no_upload" => Ok(()),
            result => result.map_err(|refusal| refusal.into_error(place)),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while `holds`; an error of the threads ends that.
    fn wait_while(&self, holds: impl Fn(&State) -> bool) -> Result<MutexGuard<'_, State>> {
        let busy = |state: &mut State| state.error.is_none() && holds(state);
        let state = self.changed.wait_while(self.lock(), busy);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        match state.error.take() {
            Some(error) => Err(error),
            None => Ok(state),
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self) -> Place<'_> {
        Place { doing: "writing", url: &self.url }
    }

    fn fail(&self, error: StoreError) {
        let mut state = self.lock();
        state.error = Some(error);
        state.is_over = true;
        self.changed.notify_all();
    }

    /// What one thread does: sends what the controller does not have.
    fn send_pieces(&self) {
        let mut growth = Growth::default();
        loop {
            let mut state = self.lock();
            let waited = Instant::now();
            while !state.is_over && !state.is_unsure && state.received == state.appended {
                let Some(rest) = SIGN_OF_LIFE.checked_sub(waited.elapsed()) else { break };
                let woken = self.changed.wait_timeout(state, rest);
                state = woken.unwrap_or_else(PoisonError::into_inner).0;
            }
            if state.is_over {
                return;
            }
            let asks = state.is_unsure || state.received == state.appended;
            let (piece, at, offset) = state.piece_at_received();
            drop(state);
            let result = match asks {
                true => self.ask(),
                false => self.send(&piece[at..], offset, growth.since(offset)),
            };
            drop(piece);
            let taken = result.map_err(|refusal| refusal.into_error(self.place()));
            if let Err(error) = taken.and_then(|upload| self.note(upload)) {
                return self.fail(error);
            }
        }
    }

    fn unreachable(&self, without: Duration) -> StoreError {
        self.client.watch.unreachable_with(self.place().doing, without, None)
    }

    /// How far the controller is. It goes on answering that while its disk hangs.
    fn ask(&self) -> Result<Upload, Refusal> {
        let request = Request { method: "GET", url: &self.upload, fields: &[], body: &[] };
        ask(&self.client, self.place().doing, &request)
    }

    /// Sends a piece. When that breaks off, it is not sent again before the controller said what it has. A controller that answers
    /// questions and takes no data is not waited for longer than one that does not answer.
    fn send(&self, data: &[u8], offset: u64, growth: &mut Growth) -> Result<Upload, Refusal> {
        let fields = [
            (UPLOAD_OFFSET, offset.to_string()),
            ("Content-Type", "application/octet-stream".to_owned()),
        ];
        let request = Request { method: "PATCH", url: &self.upload, fields: &fields, body: data };
        self.client.watch.began();
        match attempt(&self.client, self.place().doing, &request) {
            Ok(upload) => {
                self.client.watch.answered();
                return Ok(upload);
            }
            Err(Refusal::Code(code)) if matches!(code.as_str(), "wrong_offset" | "superseded") => {
                self.client.watch.answered();
            }
            Err(Refusal::Trouble(trouble)) => {
                growth.is_troubled = true;
                let paused = growth.attempts.pause(&self.client.watch, self.place(), trouble);
                self.client.watch.gave_up();
                paused.map_err(Trouble::Final)?;
                let without = growth.at.elapsed();
                if without >= self.budget {
                    return Err(Trouble::Final(self.unreachable(without)).into());
                }
            }
            Err(refusal) => {
                self.client.watch.answered();
                return Err(refusal);
            }
        }
        self.ask()
    }

    /// What the other thread does: has made durable what was received, as it piles up.
    fn keep_pieces(&self) {
        let commit = self.upload.join("commit");
        loop {
            let mut state = self.lock();
            while !state.is_over && !state.is_commit_worth_while() {
                state = self.wait(state);
            }
            if state.is_over {
                return;
            }
            drop(state);
            let request = Request { method: "POST", url: &commit, fields: &[], body: &[] };
            let place = Place { doing: "flushing", url: &self.url };
            let kept = call(&self.client, place.doing, &request);
            let kept = kept.map_err(|refusal: Refusal| refusal.into_error(place));
            if let Err(error) = kept.and_then(|upload| self.note_kept(upload)) {
                return self.fail(error);
            }
        }
    }

    /// Takes what the controller said last to the thread that sends.
    fn note(&self, upload: Upload) -> Result<()> {
        let mut state = self.lock();
        let before = state.received;
        state.note(self.place(), upload)?;
        let grown = state.received.saturating_sub(before);
        state.is_unsure = false;
        self.changed.notify_all();
        drop(state);
        self.client.watch.progressed(usize::try_from(grown).unwrap_or(usize::MAX));
        Ok(())
    }

    /// Takes what the controller said to the thread that keeps: of what is being sent it may know less or more by now.
    fn note_kept(&self, upload: Upload) -> Result<()> {
        let mut state = self.lock();
        if upload.received_bytes < state.received {
            state.is_unsure = true;
        }
        state.keep(self.place(), upload.durable_bytes)?;
        self.changed.notify_all();
        Ok(())
    }
}

impl StoreWriter for HttpWriter {
    fn append(&mut self, data: &[u8]) -> Result<()> {
        self.alive(|writer| {
            let mut data = data;
            while !data.is_empty() {
                data = writer.filling.take(data);
                if writer.filling.is_full() {
                    writer.push_filled()?;
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
        self.shared.lock().resent
    }

    fn reader(&self) -> Result<Box<dyn ImageFile>> {
        let partial = partial_of(&self.shared.url)?;
        Ok(Box::new(HttpImage::open(&partial, &self.options)?))
    }

    fn publish(mut self: Box<Self>) -> Result<()> {
        self.alive(Self::commit_all)?;
        let place = Place { doing: "publishing", url: &self.shared.url };
        let publish = self.shared.upload.join("publish");
        let request = Request { method: "POST", url: &publish, fields: &[], body: &[] };
        let published: Upload = call(&self.shared.client, place.doing, &request)
            .map_err(|refusal| refusal.into_error(place))?;
        if !published.is_published || published.durable_bytes != self.filling.len_bytes() {
            return Err(place.protocol("it says that the image is published, but not all of it"));
        }
        self.is_settled = true;
        Ok(())
    }

    fn abort(mut self: Box<Self>) -> Result<()> {
        self.give_up()
    }

    fn keep(mut self: Box<Self>) -> Result<()> {
        self.is_settled = true;
        self.shared.client.watch.tidy(self.options.budget);
        self.end();
        Ok(())
    }
}

impl Drop for HttpWriter {
    fn drop(&mut self) {
        // Nobody to tell; the controller removes what a job leaves behind.
        let _ = self.give_up();
        self.end();
    }
}
