//! One connection: a thread that moves bytes both ways between two sockets, with what its script does to them.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{Ending, Fault, Script, Shared, TICK_MS, Way};

/// What is held in memory of one direction; more stays with the sender.
const MAX_QUEUED: usize = 16 << 20;
/// Read at once.
const CHUNK: usize = 256 << 10;
/// How long an orderly end waits for the peers to end too. Closed earlier, unread bytes would make it a reset.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Bytes under way in one direction.
struct Direction {
    way: Way,
    queue: VecDeque<(Instant, Vec<u8>)>,
    /// How much of the front was forwarded.
    gone: usize,
    queued: usize,
    forwarded: u64,
    /// When the time of what was forwarded is over, at the script's rate.
    spent_until: Instant,
    ended: bool,
    end_forwarded: bool,
}

impl Direction {
    fn new(way: Way) -> Self {
        Self {
            way,
            queue: VecDeque::new(),
            gone: 0,
            queued: 0,
            forwarded: 0,
            spent_until: Instant::now(),
            ended: false,
            end_forwarded: false,
        }
    }

    /// When the next bytes may go, if there are any.
    fn due(&self) -> Option<Instant> {
        self.queue.front().map(|(due, _)| (*due).max(self.spent_until))
    }
}

/// Both sides and what is between them.
struct Connection<'a> {
    client: TcpStream,
    server: TcpStream,
    script: Script,
    shared: &'a Shared,
    directions: [Direction; 2],
    chunk: Vec<u8>,
}

/// Runs a connection to its end.
pub(crate) fn run(client: TcpStream, server: TcpStream, script: Script, shared: &Shared) {
    for socket in [&client, &server] {
        // A socket whose peer is gone already says so again when it is used.
        let _ = socket.set_nodelay(true);
        let _ = socket.set_nonblocking(true);
    }
    let directions = [Direction::new(Way::ToServer), Direction::new(Way::ToClient)];
    Connection { client, server, script, shared, directions, chunk: vec![0; CHUNK] }.run();
}

impl Connection<'_> {
    fn sockets(&self, way: Way) -> (&TcpStream, &TcpStream) {
        match way {
            Way::ToServer => (&self.client, &self.server),
            Way::ToClient => (&self.server, &self.client),
        }
    }

    fn run(mut self) {
        let ended_before = self.shared.ended().0;
        loop {
            if self.shared.stopped.load(Ordering::SeqCst) {
                return;
            }
            if self.shared.silent.load(Ordering::SeqCst) {
                return self.end(Ending::Silence, Way::ToClient);
            }
            let (ended, ending) = self.shared.ended();
            if ended != ended_before {
                return self.end(ending, Way::ToClient);
            }
            for index in 0..2 {
                match self.forward(index) {
                    Ok(None) => {}
                    Ok(Some(fault)) => {
                        self.shared.faults.fetch_add(1, Ordering::SeqCst);
                        return self.end(fault.ending, fault.way);
                    }
                    // One side is gone: the other one is told.
                    Err(_) => return self.end(Ending::Reset, Way::ToClient),
                }
            }
            if self.directions.iter().all(|direction| direction.end_forwarded) {
                return;
            }
            self.wait();
            for index in 0..2 {
                if self.take(index).is_err() {
                    return self.end(Ending::Reset, Way::ToClient);
                }
            }
        }
    }

    /// Forwards what is due; the fault, once its byte has come.
    fn forward(&mut self, index: usize) -> io::Result<Option<Fault>> {
        let way = self.directions[index].way;
        let fault = self.script.fault.filter(|fault| fault.way == way);
        while self.directions[index].due().is_some_and(|due| due <= Instant::now()) {
            let direction = &self.directions[index];
            let Some((_, bytes)) = direction.queue.front() else { break };
            let mut piece = &bytes[direction.gone..];
            if let Some(rate) = self.script.bytes_per_second {
                // A hundredth of a second at a time.
                piece = &piece[..piece.len().min(usize_of(rate / 100).max(1))];
            }
            if let Some(fault) = fault {
                let left = fault.after_bytes.saturating_sub(direction.forwarded);
                piece = &piece[..piece.len().min(usize_of(left))];
            }
            let count = match self.sockets(way).1.write(piece) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if self.shared.recording.load(Ordering::SeqCst) {
                let mut kept = self.shared.recorded.lock().unwrap_or_else(PoisonError::into_inner);
                kept[way.index()].extend_from_slice(&piece[..count]);
            }
            self.shared.count(way).fetch_add(count as u64, Ordering::SeqCst);
            let rate = self.script.bytes_per_second;
            let direction = &mut self.directions[index];
            direction.forwarded += count as u64;
            direction.gone += count;
            direction.queued -= count;
            if let Some(rate) = rate {
                let takes = Duration::from_nanos(1_000_000_000 * count as u64 / rate.max(1));
                direction.spent_until = direction.spent_until.max(Instant::now()) + takes;
            }
            if direction.queue.front().is_some_and(|(_, bytes)| bytes.len() == direction.gone) {
                direction.queue.pop_front();
                direction.gone = 0;
            }
            if fault.is_some_and(|fault| fault.after_bytes == direction.forwarded) {
                return Ok(fault);
            }
        }
        let direction = &self.directions[index];
        if direction.ended && direction.queue.is_empty() && !direction.end_forwarded {
            self.directions[index].end_forwarded = true;
            self.sockets(way).1.shutdown(Shutdown::Write)?;
        }
        Ok(None)
    }

    /// Takes bytes from the sender, as far as there is room.
    fn take(&mut self, index: usize) -> io::Result<()> {
        while !self.directions[index].ended && self.directions[index].queued < MAX_QUEUED {
            let mut from = match self.directions[index].way {
                Way::ToServer => &self.client,
                Way::ToClient => &self.server,
            };
            match from.read(&mut self.chunk) {
                Ok(0) => self.directions[index].ended = true,
                Ok(count) => {
                    let due = Instant::now() + self.script.delay;
                    let direction = &mut self.directions[index];
                    direction.queue.push_back((due, self.chunk[..count].to_vec()));
                    direction.queued += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until there is something to do, but no longer than a tick.
    fn wait(&self) {
        let now = Instant::now();
        let mut limit = Duration::from_millis(TICK_MS.into());
        let mut interest = [PollFlags::empty(); 2];
        for direction in &self.directions {
            let (from, to) = match direction.way {
                Way::ToServer => (0, 1),
                Way::ToClient => (1, 0),
            };
            if !direction.ended && direction.queued < MAX_QUEUED {
                interest[from] |= PollFlags::POLLIN;
            }
            match direction.due() {
                Some(due) if due <= now => interest[to] |= PollFlags::POLLOUT,
                Some(due) => limit = limit.min(due - now),
                None => {}
            }
        }
        // The sockets' own calls tell what came of it. Delays below a millisecond are slept, as poll(2) does not know them.
        if limit < Duration::from_millis(1) {
            std::thread::sleep(limit);
            limit = Duration::ZERO;
        }
        let mut sockets = [
            PollFd::new(self.client.as_fd(), interest[0]),
            PollFd::new(self.server.as_fd(), interest[1]),
        ];
        let millis = u16::try_from(limit.as_millis()).unwrap_or(TICK_MS);
        let _ = poll(&mut sockets, PollTimeout::from(millis));
    }

    fn end(self, ending: Ending, way: Way) {
        match ending {
            Ending::Reset => {
                for socket in [&self.client, &self.server] {
                    // Closing sends a reset then. It may be gone already.
                    let now = Some(Duration::ZERO);
                    let _ = rustix::net::sockopt::set_socket_linger(socket, now);
                }
            }
            Ending::Close => {
                for socket in [&self.client, &self.server] {
                    // It may be gone already.
                    let _ = socket.shutdown(Shutdown::Write);
                }
                self.swallow(Some(Instant::now() + CLOSE_LIMIT), 2);
            }
            Ending::SlowClose(time) => {
                // As above.
                let _ = self.sockets(way).1.shutdown(Shutdown::Write);
                self.swallow(Some(Instant::now() + time), 2);
            }
            Ending::Silence => self.swallow(None, 1),
        }
    }

    /// Reads and forgets, until so many sides have ended, or the time is over.
    fn swallow(&self, until: Option<Instant>, sides: usize) {
        let mut open = vec![&self.client, &self.server];
        let mut chunk = vec![0; CHUNK];
        while 2 - open.len() < sides
            && !self.shared.stopped.load(Ordering::SeqCst)
            && until.is_none_or(|until| Instant::now() < until)
        {
            let mut sockets: Vec<PollFd<'_>> =
                open.iter().map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN)).collect();
            // Reading tells what came of it.
            let _ = poll(&mut sockets, PollTimeout::from(TICK_MS));
            open.retain(|socket| {
                let mut socket: &TcpStream = socket;
                match socket.read(&mut chunk) {
                    Ok(count) => count > 0,
                    Err(error) => error.kind() == io::ErrorKind::WouldBlock,
                }
            });
        }
    }
}

fn usize_of(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
