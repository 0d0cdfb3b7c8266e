//! One logged-in connection with any number of requests in flight, for as long as it lives.
//!
//! A request is handed over without blocking and answered through a channel exactly once: with the server's reply, or with
//! [`Lost`] when the connection broke, fell silent or carried garbage. Unlike NFS's lanes a link does not heal: handles die with a
//! session, so whoever holds one has to open it again. One thread sends, as credits allow, one receives. While a request waits for
//! long, the server is asked for an ECHO: one that works on a slow disk answers that.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub(super) use super::super::connect::is_time_out;
use super::super::pool::Pool;
use super::super::watch::Watch;
use super::super::window::Payload;
use super::frame::{Inbound, Outbound, Reply, credit_charge, invalid};
use super::header::{Command, UNASKED};
use super::login::{Limits, Session};
use super::messages;
use super::negotiate::Dialect;
use super::status::Status;

/// So many credits are worth having; a server gives what it likes.
const CREDITS_WANTED: u32 = 512;
/// After this part of the silence that is borne the server is asked for a sign of life.
const ECHO_PART: u32 = 3;
/// Writes are made in pieces, so that a slow upload is seen to go on.
const SEND_BYTES: usize = 256 << 10;
/// Longer than the answer to reading a file's first bytes.
const SHORT_READ_BYTES: usize = 1024;

/// A request ready to be sent.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) command: Command,
    pub(super) body: Vec<u8>,
    pub(super) payload: Option<Payload>,
    /// The data of the request or of its reply, whichever are longer: what it costs.
    pub(super) data_bytes: usize,
}

/// What became of a request.
#[derive(Debug)]
pub(super) struct Answer {
    /// The caller's name for it.
    pub(super) tag: u64,
    /// Of which of a slot's connections.
    pub(super) life: u64,
    pub(super) reply: Result<Reply, Lost>,
}

/// The connection is no more; whether the request was carried out is not known.
#[derive(Debug, Clone)]
pub(super) struct Lost {
    pub(super) kind: io::ErrorKind,
    pub(super) reason: String,
    /// The budget is spent: nothing came for so long.
    pub(super) expired: Option<Duration>,
}

struct Waiting {
    tag: u64,
    /// `None`: an ECHO.
    answer: Option<Sender<Answer>>,
}

struct Queued {
    request: Request,
    waiting: Waiting,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Queued>,
    waiting: HashMap<u64, Waiting>,
    credits: u32,
    /// When requests began to wait, if any do.
    waiting_since: Option<Instant>,
    echo_under_way: bool,
    served: bool,
    lost: Option<Lost>,
}

struct Shared {
    stream: TcpStream,
    life: u64,
    silence: Duration,
    watch: Arc<Watch>,
    pool: Arc<Pool>,
    state: Mutex<State>,
    changed: Condvar,
    /// Counts sent pieces.
    pieces_sent: AtomicU32,
}

/// A connection. Dropping it ends it and its threads.
pub(super) struct Link {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    pub(super) limits: Limits,
    pub(super) dialect: Dialect,
    /// In words.
    pub(super) protection: String,
    /// The session's number at the server.
    pub(super) session_id: u64,
    /// Which of a slot's connections this is, from one.
    pub(super) life: u64,
}

impl Link {
    pub(super) fn start(
        session: Session,
        life: u64,
        silence: Duration,
        watch: Arc<Watch>,
        pool: Arc<Pool>,
    ) -> io::Result<Self> {
        let Session { stream, outbound, inbound, credits, limits, dialect } = session;
        let session_id = outbound.session_id;
        let protection = outbound.protection();
        let shared = Arc::new(Shared {
            stream,
            life,
            silence,
            watch,
            pool,
            state: Mutex::new(State { credits, ..State::default() }),
            changed: Condvar::new(),
            pieces_sent: AtomicU32::new(0),
        });
        // In this order: a link whose second thread does not start ends the first when it is dropped.
        let threads = Vec::with_capacity(2);
        let mut link = Self { shared, threads, limits, dialect, protection, session_id, life };
        let shared = Arc::clone(&link.shared);
        let sender = std::thread::Builder::new().name("smb-send".to_owned());
        link.threads.push(sender.spawn(move || send_thread(&shared, outbound))?);
        let shared = Arc::clone(&link.shared);
        let receiver = std::thread::Builder::new().name("smb-receive".to_owned());
        link.threads.push(receiver.spawn(move || receive_thread(&shared, &inbound))?);
        Ok(link)
    }

    /// Hands a request over. It is answered exactly once.
    pub(super) fn submit(&self, request: Request, tag: u64, answer: &Sender<Answer>) {
        let mut state = self.shared.lock();
        if let Some(lost) = &state.lost {
            // Who asked holds the other end.
            let life = self.life;
            let _ = answer.send(Answer { tag, life, reply: Err(lost.clone()) });
            return;
        }
        self.shared.watch.began();
        state.waiting_since.get_or_insert_with(Instant::now);
        let waiting = Waiting { tag, answer: Some(answer.clone()) };
        state.queue.push_back(Queued { request, waiting });
        self.shared.changed.notify_all();
    }

    /// Why it is no more, if it is.
    pub(super) fn lost(&self) -> Option<Lost> {
        self.shared.lock().lost.clone()
    }

    /// Whether anything was done on it that files are opened for.
    pub(super) fn served(&self) -> bool {
        self.shared.lock().served
    }

    /// Ends it: its session is of no more use.
    pub(super) fn end(&self, reason: &str) {
        self.shared.broken(&io::Error::new(io::ErrorKind::ConnectionAborted, reason), None);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.end("it is not needed any more");
        for thread in self.threads.drain(..) {
            // A panic in it was printed; there is nothing to add.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection and answers everything.
    fn broken(&self, error: &io::Error, expired: Option<Duration>) {
        let mut state = self.lock();
        if state.lost.is_some() {
            return;
        }
        let lost = Lost { kind: error.kind(), reason: error.to_string(), expired };
        state.lost = Some(lost.clone());
        // It may be dead already.
        let _ = self.stream.shutdown(Shutdown::Both);
        let queued = std::mem::take(&mut state.queue).into_iter().map(|queued| queued.waiting);
        let waiting = std::mem::take(&mut state.waiting).into_values();
        for Waiting { tag, answer } in waiting.chain(queued) {
            if let Some(answer) = answer {
                self.watch.gave_up();
                let life = self.life;
                // Who asked may be gone.
                let _ = answer.send(Answer { tag, life, reply: Err(lost.clone()) });
            }
        }
        self.changed.notify_all();
    }

    fn deliver(&self, reply: Reply) -> io::Result<()> {
        let mut state = self.lock();
        state.credits = state.credits.saturating_add(reply.header.credits.into());
        self.changed.notify_all();
        if reply.header.is_interim() || reply.header.message_id == UNASKED {
            return Ok(());
        }
        let Some(waiting) = state.waiting.remove(&reply.header.message_id) else {
            return Err(invalid("a reply to a request that was not made"));
        };
        let is_idle = state.waiting.is_empty() && state.queue.is_empty();
        state.waiting_since = (!is_idle).then(Instant::now);
        let Some(answer) = waiting.answer else {
            state.echo_under_way = false;
            return Ok(());
        };
        state.served |= serves(&reply);
        drop(state);
        self.watch.answered();
        // Who asked may be gone.
        let _ = answer.send(Answer { tag: waiting.tag, life: self.life, reply: Ok(reply) });
        Ok(())
    }

    /// What a while without any byte calls for.
    fn tick(&self, heard: Instant) -> io::Result<()> {
        if let Some(without) = self.watch.check() {
            let error = io::Error::new(io::ErrorKind::TimedOut, "the time for it is over");
            self.broken(&error, Some(without));
        }
        let mut state = self.lock();
        if state.lost.is_some() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let Some(since) = state.waiting_since else { return Ok(()) };
        let silent = since.max(heard).elapsed();
        if silent >= self.silence {
            let text = format!("no byte from the server for {} s", silent.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        if silent >= self.silence / ECHO_PART && !state.echo_under_way {
            state.echo_under_way = true;
            let body = messages::nothing();
            let request = Request { command: Command::Echo, body, payload: None, data_bytes: 0 };
            state.queue.push_front(Queued { request, waiting: Waiting { tag: 0, answer: None } });
            self.changed.notify_all();
        }
        Ok(())
    }
}

/// Opening a file, looking at it and reading its first bytes is what every session begins with.
fn serves(reply: &Reply) -> bool {
    let begins = [Command::Create, Command::QueryInfo, Command::Close].map(|c| c as u16);
    let is_short_read =
        reply.header.command == Command::Read as u16 && reply.message().len() <= SHORT_READ_BYTES;
    reply.header.status == Status::SUCCESS
        && !is_short_read
        && !begins.contains(&reply.header.command)
}

fn send_thread(shared: &Shared, mut outbound: Outbound) {
    let mut buffer = Vec::new();
    loop {
        let mut state = shared.lock();
        let (request, charge) = loop {
            if state.lost.is_some() {
                return;
            }
            let charge = state.queue.front().map(|queued| credit_charge(queued.request.data_bytes));
            match charge {
                Some(charge) if state.credits >= u32::from(charge) => {
                    if let Some(queued) = state.queue.pop_front() {
                        let id = outbound.next_message_id;
                        state.waiting.insert(id, queued.waiting);
                        break (queued.request, charge);
                    }
                }
                Some(charge) if state.waiting.is_empty() => {
                    let credits = state.credits;
                    drop(state);
                    let text = format!(
                        "the server grants {credits} credits where a request costs {charge}"
                    );
                    shared.broken(&invalid(text), None);
                    return;
                }
                _ => {}
            }
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        state.credits -= u32::from(charge);
        let missing = CREDITS_WANTED.saturating_sub(state.credits).min(CREDITS_WANTED / 4);
        drop(state);
        let wanted = charge.saturating_add(u16::try_from(missing).unwrap_or(u16::MAX));
        let payload = request.payload.as_ref();
        let payload = payload.map_or(&[][..], |payload| &payload.data[payload.range.clone()]);
        outbound.frame(&mut buffer, request.command, [&request.body, payload], charge, wanted);
        for piece in buffer.chunks(SEND_BYTES) {
            if let Err(error) = (&shared.stream).write_all(piece) {
                shared.broken(&error, None);
                return;
            }
            shared.pieces_sent.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn receive_thread(shared: &Shared, inbound: &Inbound) {
    let mut patient = Patient { shared, heard: Instant::now(), pieces_sent: 0 };
    let error = loop {
        let read = inbound.read(&mut patient, &shared.pool);
        if let Err(error) = read.and_then(|reply| shared.deliver(reply)) {
            break error;
        }
    };
    shared.broken(&error, None);
}

/// Reads that wait through the socket's time-outs for as long as the connection may be silent.
struct Patient<'a> {
    shared: &'a Shared,
    /// When bytes last moved in either direction.
    heard: Instant,
    pieces_sent: u32,
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match (&self.shared.stream).read(buffer) {
                Ok(0) if !buffer.is_empty() => return Err(closed()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_time_out(&error) => {
                    let pieces_sent = self.shared.pieces_sent.load(Ordering::Relaxed);
                    if pieces_sent != self.pieces_sent {
                        self.pieces_sent = pieces_sent;
                        self.heard = Instant::now();
                    }
                    self.shared.tick(self.heard)?;
                }
                other => {
                    self.heard = Instant::now();
                    return other;
                }
            }
        }
    }
}

pub(super) fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection")
}
