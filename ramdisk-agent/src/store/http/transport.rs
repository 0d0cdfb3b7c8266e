//! A socket to a web server, with or without TLS, that never blocks for longer than a tick.
//!
//! Reading goes into the caller's buffer: from the socket itself, or from what TLS has decrypted. Both directions give `WouldBlock`
//! when nothing moved for [`RECEIVE_TICK`], so that who waits can look around; nothing is lost by that.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::super::connect::RECEIVE_TICK;

/// As much is read from a socket under TLS at a time: some records of 16 KiB.
const SEALED_LEN: usize = 64 << 10;

pub(super) enum Transport {
    Plain(TcpStream),
    Tls(Box<Tls>),
}

/// A TLS session on a socket.
pub(super) struct Tls {
    session: ClientConnection,
    socket: TcpStream,
    /// What came from the socket and was not yet given to the session: `sealed[at..end]`.
    sealed: Vec<u8>,
    at: usize,
    end: usize,
}

impl Transport {
    /// Prepares a connected socket; with TLS the handshake follows with the first use.
    pub(super) fn new(
        socket: TcpStream,
        tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    ) -> io::Result<Self> {
        socket.set_write_timeout(Some(RECEIVE_TICK))?;
        let Some((config, name)) = tls else { return Ok(Self::Plain(socket)) };
        let session = ClientConnection::new(config, name).map_err(tls_error)?;
        Ok(Self::Tls(Box::new(Tls { session, socket, sealed: Vec::new(), at: 0, end: 0 })))
    }

    /// Reads what there is, up to the buffer's length; 0 is the end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }

    /// Writes what can be written.
    pub(super) fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(data),
            Self::Tls(tls) => {
                // What the session still holds goes first, so that it never holds more than one call's data.
                tls.finish_handshake()?;
                tls.send()?;
                tls.session.writer().write(data)
            }
        }
    }

    /// Makes sure that everything written is on its way.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(tls) => tls.send(),
        }
    }

    /// Whether the server has neither closed the connection nor said something that nobody asked for.
    pub(super) fn is_idle(&self) -> bool {
        // Under TLS there may be session tickets; what it is shows when it is read.
        let (socket, may_wait) = match self {
            Self::Plain(socket) => (socket, false),
            Self::Tls(tls) => (&tls.socket, true),
        };
        if socket.set_nonblocking(true).is_err() {
            return false;
        }
        let is_idle = match socket.peek(&mut [0]) {
            Ok(waiting) => waiting > 0 && may_wait,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        };
        socket.set_nonblocking(false).is_ok() && is_idle
    }
}

impl Tls {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.session.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.receive()?,
                other => return other,
            }
        }
    }

    fn finish_handshake(&mut self) -> io::Result<()> {
        while self.session.is_handshaking() {
            self.send()?;
            self.receive()?;
        }
        Ok(())
    }

    /// Sends what the session wants to say.
    fn send(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            self.session.write_tls(&mut self.socket)?;
        }
        Ok(())
    }

    /// Gives the session more of what the server sent.
    fn receive(&mut self) -> io::Result<()> {
        if self.at == self.end {
            self.sealed.resize(SEALED_LEN, 0);
            (self.at, self.end) = (0, self.socket.read(&mut self.sealed)?);
        }
        // Without data this tells the session that the connection has ended.
        let mut rest = &self.sealed[self.at..self.end];
        let is_end = rest.is_empty();
        self.at += self.session.read_tls(&mut rest)?;
        if let Err(error) = self.session.process_new_packets() {
            // Tells the server why, if it still listens.
            let _ = self.send();
            return Err(tls_error(error));
        }
        if is_end && self.session.is_handshaking() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the server closed the connection in the TLS handshake",
            ));
        }
        self.send()
    }
}

/// Carries the TLS error, for the one who puts it in words.
fn tls_error(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
