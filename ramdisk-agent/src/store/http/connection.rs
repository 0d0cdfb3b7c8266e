//! One connection to a web server: a request goes out, a head comes back, then a body of known end.
//!
//! It waits as long as the [`Watch`]'s budget and the limit of silence allow. A connection that failed is not used again; one whose
//! body was read to its end may be. Pipelining and anything but HTTP/1 is deliberately absent: several connections do what they
//! would, with every server.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::connect::is_time_out;
use super::super::watch::Watch;
use super::head::{Framing, Head, MAX_CHUNK_LINE_LEN, MAX_HEAD_LEN, chunk_len};
use super::transport::Transport;

/// As much is read at a time while the end of a head or a line is looked for; the rest of a body bypasses this buffer.
const READ_LEN: usize = 4 << 10;
/// Provisional answers before the real one.
const MAX_PROVISIONAL: u32 = 8;

/// A connection, between requests or within one.
pub(super) struct Connection {
    transport: Transport,
    /// Bytes that came with a head or a line and belong behind it.
    ahead: Vec<u8>,
    at: usize,
    body: Body,
    keeps: bool,
    /// Whether the server has said anything since the last request.
    pub(super) has_answered: bool,
    /// Whether it has answered an earlier request.
    pub(super) is_reused: bool,
    watch: Arc<Watch>,
    silence: Duration,
    heard: Instant,
}

/// What is still to come of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    /// So many bytes, at least one.
    Length(u64),
    /// The rest of a piece; `is_first`: no line break is due before the next one's line.
    Chunk {
        left: u64,
        is_first: bool,
    },
    UntilClose,
    Done,
}

impl Connection {
    pub(super) fn new(transport: Transport, watch: Arc<Watch>, silence: Duration) -> Self {
        Self {
            transport,
            ahead: Vec::new(),
            at: 0,
            body: Body::Done,
            keeps: true,
            has_answered: false,
            is_reused: false,
            watch,
            silence,
            heard: Instant::now(),
        }
    }

    /// Whether another request may be sent.
    pub(super) fn is_reusable(&self) -> bool {
        self.keeps
            && self.body == Body::Done
            && self.at == self.ahead.len()
            && self.transport.is_idle()
    }

    /// Sends a request: its head and its body.
    pub(super) fn send(&mut self, head: &[u8], body: &[u8]) -> io::Result<()> {
        self.has_answered = false;
        self.heard = Instant::now();
        for mut rest in [head, body] {
            while !rest.is_empty() {
                let sent = self.patiently(|transport| transport.write(rest))?;
                if sent == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                rest = &rest[sent..];
            }
        }
        self.patiently(Transport::flush)
    }

    /// Waits for the head of the answer.
    pub(super) fn receive_head(&mut self) -> io::Result<Head> {
        for _ in 0..MAX_PROVISIONAL {
            let head = loop {
                if let Some((head, len)) = Head::parse(&self.ahead[self.at..]).map_err(invalid)? {
                    self.at += len;
                    break head;
                }
                self.read_ahead()?;
            };
            if (100..=199).contains(&head.status) {
                continue;
            }
            self.body = match head.framing().map_err(invalid)? {
                Framing::Length(0) => Body::Done,
                Framing::Length(len) => Body::Length(len),
                Framing::Chunked => Body::Chunk { left: 0, is_first: true },
                Framing::UntilClose => Body::UntilClose,
            };
            self.keeps = head.keeps_connection() && self.body != Body::UntilClose;
            return Ok(head);
        }
        Err(invalid("it only gives provisional answers".to_owned()))
    }

    /// Reads some of the body; 0 is its end. A body that ends too early is an error.
    pub(super) fn read_body(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let limit = match self.body {
                Body::Done => return Ok(0),
                Body::UntilClose => u64::MAX,
                Body::Chunk { left: 0, is_first } => {
                    self.next_chunk(is_first)?;
                    continue;
                }
                Body::Length(left) | Body::Chunk { left, .. } => left,
            };
            let len = usize::try_from(limit).unwrap_or(usize::MAX).min(buffer.len());
            let read = self.read_some(&mut buffer[..len])?;
            let read_len = u64::try_from(read).expect("a buffer's length fits 64 bits");
            self.body = match self.body {
                Body::UntilClose if read == 0 => Body::Done,
                Body::UntilClose | Body::Done => self.body,
                Body::Length(_) | Body::Chunk { .. } if read == 0 => return Err(closed()),
                Body::Length(left) if left == read_len => Body::Done,
                Body::Length(left) => Body::Length(left - read_len),
                Body::Chunk { left, is_first } => Body::Chunk { left: left - read_len, is_first },
            };
            return Ok(read);
        }
    }

    /// Reads the line of the next piece, and what follows the last one.
    fn next_chunk(&mut self, is_first: bool) -> io::Result<()> {
        if !is_first && !self.read_line()?.is_empty() {
            return Err(invalid("a piece of it is longer than it says".to_owned()));
        }
        let line = self.read_line()?;
        let left = chunk_len(&line)
            .ok_or_else(|| invalid("a piece of it does not say how long it is".to_owned()))?;
        if left > 0 {
            self.body = Body::Chunk { left, is_first: false };
            return Ok(());
        }
        // Trailing fields say nothing that is wanted here.
        let mut trailers_len = 0;
        loop {
            let line = self.read_line()?;
            trailers_len += line.len();
            if line.is_empty() {
                self.body = Body::Done;
                return Ok(());
            }
            if trailers_len > MAX_HEAD_LEN {
                return Err(invalid("its trailer is too long".to_owned()));
            }
        }
    }

    fn read_line(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let waiting = &self.ahead[self.at..];
            if let Some(end) = waiting.iter().position(|&b| b == b'\n') {
                let line = waiting[..end].strip_suffix(b"\r").unwrap_or(&waiting[..end]).to_vec();
                self.at += end + 1;
                return Ok(line);
            }
            if waiting.len() >= MAX_CHUNK_LINE_LEN {
                return Err(invalid("a line between its pieces is too long".to_owned()));
            }
            self.read_ahead()?;
        }
    }

    /// Reads more into the buffer for heads and lines.
    fn read_ahead(&mut self) -> io::Result<()> {
        self.ahead.drain(..self.at);
        self.at = 0;
        let have = self.ahead.len();
        self.ahead.resize(have + READ_LEN, 0);
        let mut ahead = std::mem::take(&mut self.ahead);
        let read = self.patiently(|transport| transport.read(&mut ahead[have..]));
        ahead.truncate(have + *read.as_ref().unwrap_or(&0));
        self.ahead = ahead;
        match read? {
            0 => Err(closed()),
            _ => {
                self.has_answered = true;
                Ok(())
            }
        }
    }

    /// Reads what there is: what came ahead first, then from the connection.
    fn read_some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let waiting = &self.ahead[self.at..];
        if waiting.is_empty() {
            return self.patiently(|transport| transport.read(buffer));
        }
        let len = waiting.len().min(buffer.len());
        buffer[..len].copy_from_slice(&waiting[..len]);
        self.at += len;
        Ok(len)
    }

    /// Does something with the connection for as long as it may take.
    fn patiently<T>(
        &mut self,
        mut what: impl FnMut(&mut Transport) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match what(&mut self.transport) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_time_out(&error) => self.tick()?,
                Ok(done) => {
                    self.heard = Instant::now();
                    return Ok(done);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn tick(&self) -> io::Result<()> {
        if let Some(without) = self.watch.check() {
            let text = format!("no progress for {} s", without.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        let silent = self.heard.elapsed();
        if silent >= self.silence {
            let text = format!("no byte from the server for {} s", silent.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        Ok(())
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection")
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
