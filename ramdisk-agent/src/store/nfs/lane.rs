//! One connection to a server with any number of calls in flight, and its resurrection.
//!
//! A call is handed over without blocking and answered through a channel exactly once: with the server's reply, or with an error
//! when the [`Watch`]'s budget is spent. One thread connects and sends, one per connection receives. When a connection
//! breaks, falls silent or carries garbage, it is replaced after a jittered pause and everything unanswered is sent again under
//! its old xid, so that a server with a reply cache can recognise it; an answer tells whether its call was sent more than once.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice, Read, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::super::connect::{connect_privileged, is_time_out};
use super::super::pool::Pool;
use super::super::watch::{Watch, pause};
use super::super::window::Payload;
use super::rpc::{Procedure, Record, invalid, read_record, reply_xid};

/// How often the watch may speak in a pause.
const TICK: Duration = Duration::from_millis(500);
/// After so many connections in a row that brought no answer only one call is under way at a time: where connections do not live long
/// enough for everything that is unanswered, sending all of it again each time would get nowhere.
const CAREFUL_AFTER: u32 = 2;
/// So many connections in a row that carried garbage, and calls fail instead of waiting for the budget's end.
const MAX_GARBAGE: u32 = 6;

/// A call ready to be sent.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) xid: u32,
    pub(super) procedure: Procedure,
    /// Record mark, header and arguments.
    pub(super) bytes: Vec<u8>,
    pub(super) payload: Option<Payload>,
    /// The caller's name for it, given back with the answer.
    pub(super) tag: u64,
    pub(super) answer: Sender<Answer>,
}

/// What became of a call.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) tag: u64,
    pub(super) procedure: Procedure,
    pub(super) reply: Result<Record, LaneError>,
    /// The call went out on more than one connection: the server may have carried it out before.
    pub(super) resent: bool,
}

/// Why a call has no reply.
#[derive(Debug)]
pub(super) enum LaneError {
    /// No progress for this long; the last error of a connection.
    Unreachable(Duration, Option<io::Error>),
    /// What answers there does not speak the protocol.
    Garbage(String),
}

/// A connection that heals. Dropping it ends its threads; calls without answer are forgotten.
pub(super) struct Lane {
    shared: Arc<Shared>,
    sender: Option<JoinHandle<()>>,
}

struct Waiting {
    call: Arc<Call>,
    sent: u32,
}

struct Shared {
    address: SocketAddr,
    silence: Duration,
    watch: Arc<Watch>,
    pool: Arc<Pool>,
    state: Mutex<State>,
    changed: Condvar,
    /// Counts sent pieces, so that the receiver sees that a slow upload goes on.
    pieces_sent: AtomicU32,
}

#[derive(Default)]
struct State {
    waiting: BTreeMap<u32, Waiting>,
    unsent: VecDeque<u32>,
    stream: Option<Arc<TcpStream>>,
    generation: u64,
    /// When calls began to wait, if any do.
    waiting_since: Option<Instant>,
    failures: u32,
    /// Calls without answer that were sent on this connection.
    under_way: usize,
    garbage: u32,
    last_error: Option<io::Error>,
    closed: bool,
}

impl State {
    /// Whether the next call waits for the answer to the last one.
    fn holds_back(&self) -> bool {
        self.stream.is_some() && self.failures >= CAREFUL_AFTER && self.under_way > 0
    }
}

impl Lane {
    pub(super) fn start(
        address: SocketAddr,
        silence: Duration,
        watch: Arc<Watch>,
        pool: Arc<Pool>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            address,
            silence,
            watch,
            pool,
            state: Mutex::default(),
            changed: Condvar::new(),
            pieces_sent: AtomicU32::new(0),
        });
        let sender = std::thread::Builder::new().name("nfs-send".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || send_thread(&shared)
        })?;
        Ok(Self { shared, sender: Some(sender) })
    }

    /// Hands a call over. It is answered exactly once, unless the lane is dropped before.
    pub(super) fn submit(&self, call: Call) {
        self.shared.watch.began();
        let mut state = self.shared.lock();
        state.waiting_since.get_or_insert_with(Instant::now);
        state.unsent.push_back(call.xid);
        state.waiting.insert(call.xid, Waiting { call: Arc::new(call), sent: 0 });
        self.shared.changed.notify_all();
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        for _ in 0..state.waiting.len() {
            self.shared.watch.gave_up();
        }
        state.waiting.clear();
        state.unsent.clear();
        if let Some(stream) = state.stream.take() {
            // It may be dead already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.shared.changed.notify_all();
        drop(state);
        if let Some(sender) = self.sender.take() {
            // A panic in it was printed; there is nothing to add.
            let _ = sender.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a connection, if it is still the current one.
    fn broken(&self, generation: u64, error: io::Error) {
        let mut state = self.lock();
        if state.generation != generation {
            return;
        }
        let Some(stream) = state.stream.take() else { return };
        // It may be dead already.
        let _ = stream.shutdown(Shutdown::Both);
        if !state.waiting.is_empty() {
            state.failures = state.failures.saturating_add(1);
        }
        if error.kind() == io::ErrorKind::InvalidData {
            state.garbage += 1;
            if state.garbage >= MAX_GARBAGE {
                let reason = error.to_string();
                self.fail_all(&mut state, || LaneError::Garbage(reason.clone()));
            }
        }
        state.last_error = Some(error);
        self.changed.notify_all();
    }

    /// Answers everything with an error.
    fn fail_all(&self, state: &mut State, mut error: impl FnMut() -> LaneError) {
        state.unsent.clear();
        state.waiting_since = None;
        state.garbage = 0;
        for waiting in std::mem::take(&mut state.waiting).into_values() {
            self.watch.gave_up();
            give_answer(&waiting, Err(error()));
        }
    }

    /// Lets the watch speak, and gives up when it says so.
    fn check(&self) {
        if let Some(without) = self.watch.check() {
            let mut state = self.lock();
            let mut last = state.last_error.take();
            self.fail_all(&mut state, || LaneError::Unreachable(without, last.take()));
        }
    }

    fn deliver(&self, record: Record) -> io::Result<()> {
        let xid =
            reply_xid(record.bytes()).map_err(|error| invalid(format!("no reply: {error}")))?;
        let mut state = self.lock();
        // An unknown xid is no answer of ours: ignored, and no progress.
        let Some(waiting) = state.waiting.remove(&xid) else { return Ok(()) };
        state.under_way = state.under_way.saturating_sub(1);
        if std::mem::take(&mut state.failures) >= CAREFUL_AFTER {
            self.changed.notify_all();
        }
        state.garbage = 0;
        state.waiting_since = (!state.waiting.is_empty()).then(Instant::now);
        drop(state);
        self.watch.answered();
        give_answer(&waiting, Ok(record));
        Ok(())
    }
}

fn give_answer(waiting: &Waiting, reply: Result<Record, LaneError>) {
    let Waiting { call, sent } = waiting;
    let answer = Answer { tag: call.tag, procedure: call.procedure, reply, resent: *sent > 1 };
    // Who asked may be gone.
    let _ = call.answer.send(answer);
}

/// Connects when there is something to send, and sends.
fn send_thread(shared: &Arc<Shared>) {
    let mut receiver: Option<JoinHandle<()>> = None;
    loop {
        let mut state = shared.lock();
        while !state.closed
            && (state.unsent.is_empty() || state.holds_back())
            && (state.stream.is_some() || state.waiting.is_empty())
        {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            break;
        }
        let Some(stream) = state.stream.clone() else {
            drop(state);
            if let Some(receiver) = receiver.take() {
                // Its connection is shut down: it ends at once.
                let _ = receiver.join();
            }
            receiver = reconnect(shared);
            continue;
        };
        let generation = state.generation;
        let next = state.unsent.pop_front();
        let Some(waiting) = next.and_then(|xid| state.waiting.get_mut(&xid)) else { continue };
        waiting.sent += 1;
        let call = Arc::clone(&waiting.call);
        state.under_way += 1;
        drop(state);
        if let Err(error) = send_call(shared, &stream, &call) {
            shared.broken(generation, error);
        }
    }
    if let Some(receiver) = receiver.take() {
        let _ = receiver.join();
    }
}

/// One attempt, after the pause that earlier failures call for. On success everything unanswered is queued again.
fn reconnect(shared: &Arc<Shared>) -> Option<JoinHandle<()>> {
    let mut state = shared.lock();
    if state.failures > 0 {
        let deadline = Instant::now() + pause(state.failures);
        while !state.closed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let wait = left.min(TICK);
            state =
                shared.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
            // Whoever waits hears of the outage in time, however long the pauses have become.
            drop(state);
            shared.check();
            state = shared.lock();
        }
    }
    if state.closed {
        return None;
    }
    drop(state);
    let connected = connect_privileged(shared.address, &shared.watch);
    let mut state = shared.lock();
    let started = connected.and_then(|stream| {
        if state.closed {
            return Ok(None);
        }
        let stream = Arc::new(stream);
        let generation = state.generation + 1;
        let receiver = std::thread::Builder::new().name("nfs-receive".to_owned()).spawn({
            let (shared, stream) = (Arc::clone(shared), Arc::clone(&stream));
            move || receive_thread(&shared, &stream, generation)
        })?;
        state.generation = generation;
        state.under_way = 0;
        state.stream = Some(stream);
        state.unsent = state.waiting.keys().copied().collect();
        state.waiting_since = (!state.waiting.is_empty()).then(Instant::now);
        Ok(Some(receiver))
    });
    match started {
        Ok(receiver) => receiver,
        Err(error) => {
            state.failures = state.failures.saturating_add(1);
            state.last_error = Some(error);
            drop(state);
            shared.check();
            None
        }
    }
}

fn send_call(shared: &Shared, mut stream: &TcpStream, call: &Call) -> io::Result<()> {
    let payload =
        call.payload.as_ref().map_or(&[][..], |payload| &payload.data[payload.range.clone()]);
    let padding = &[0; 3][..payload.len().next_multiple_of(4) - payload.len()];
    let mut parts = [IoSlice::new(&call.bytes), IoSlice::new(payload), IoSlice::new(padding)];
    let mut parts = &mut parts[..];
    // Also skips empty parts.
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        match stream.write_vectored(parts) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(sent) => IoSlice::advance_slices(&mut parts, sent),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        shared.pieces_sent.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn receive_thread(shared: &Shared, stream: &TcpStream, generation: u64) {
    let mut patient = Patient { shared, stream, generation, heard: Instant::now(), pieces_sent: 0 };
    let error = loop {
        let delivered =
            read_record(&mut patient, &shared.pool).and_then(|record| shared.deliver(record));
        if let Err(error) = delivered {
            break error;
        }
        shared.check();
    };
    shared.broken(generation, error);
}

/// Reads that wait through the socket's time-outs for as long as the connection may be silent.
struct Patient<'a> {
    shared: &'a Shared,
    stream: &'a TcpStream,
    generation: u64,
    /// When bytes last moved in either direction.
    heard: Instant,
    pieces_sent: u32,
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match (&mut &*self.stream).read(buffer) {
                Ok(0) if !buffer.is_empty() => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the server closed the connection",
                    ));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_time_out(&error) => self.tick()?,
                other => {
                    self.heard = Instant::now();
                    return other;
                }
            }
        }
    }
}

impl Patient<'_> {
    fn tick(&mut self) -> io::Result<()> {
        self.shared.check();
        let pieces_sent = self.shared.pieces_sent.load(Ordering::Relaxed);
        if pieces_sent != self.pieces_sent {
            self.pieces_sent = pieces_sent;
            self.heard = Instant::now();
        }
        let state = self.shared.lock();
        if state.closed || state.generation != self.generation {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let silent = match state.waiting_since {
            Some(since) => since.max(self.heard).elapsed(),
            None => Duration::ZERO,
        };
        if silent >= self.shared.silence {
            let text = format!("no byte from the server for {} s", silent.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        Ok(())
    }
}
