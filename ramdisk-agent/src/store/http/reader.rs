//! Reading an image from a web server.
//!
//! A read is one range request, or several at once when connections are free. What breaks off goes on from the byte at which it broke
//! off. Every answer is compared with the first one: other bytes under the same URL are an error, never a mixture.

use std::io;

use super::super::{HttpUrl, ImageFile, Options, ReadAt, Result, StoreError};
use super::client::Client;
use super::location::Location;
use super::retry::Attempts;
use super::status::{Place, Trouble};
use super::version::Version;

/// A read is not split into smaller pieces than this, measured (docs/stores.md).
const MIN_PIECE_LEN: usize = 1 << 20;

/// An image, opened.
pub(super) struct HttpImage {
    client: Client,
    url: HttpUrl,
    location: Location,
    version: Version,
}

impl HttpImage {
    pub(super) fn open(url: &HttpUrl, options: &Options) -> Result<Self> {
        let client = Client::new(url, options)?;
        let location = Location::new(url.clone());
        client.watch.began();
        match ask(&client, &location, Place { doing: "opening", url }) {
            Ok(version) => {
                client.watch.answered();
                client.watch.set_budget(options.budget);
                Ok(Self { client, url: url.clone(), location, version })
            }
            Err(error) => {
                client.watch.gave_up();
                Err(error)
            }
        }
    }

    fn place(&self) -> Place<'_> {
        Place { doing: "reading", url: &self.url }
    }

    /// Reads over as many connections as are free and worth while.
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let lanes = self.client.lanes.take(buffer.len() / MIN_PIECE_LEN);
        let piece_len = buffer.len().div_ceil(lanes.count()).max(1);
        let mut pieces = buffer.chunks_mut(piece_len).zip((offset..).step_by(piece_len));
        let Some((first, first_offset)) = pieces.next() else { return Ok(()) };
        std::thread::scope(|scope| {
            let start = |(piece, at)| {
                let read = move || self.read_piece(piece, at);
                std::thread::Builder::new().spawn_scoped(scope, read)
            };
            let others: Vec<_> = pieces.map(start).collect();
            let mut result = self.read_piece(first, first_offset);
            for other in others {
                let ended = match other {
                    Ok(thread) => {
                        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                    }
                    Err(e) => Err(StoreError::local("starting a thread to read", &self.url, e)),
                };
                result = result.and(ended);
            }
            result
        })
    }

    fn read_piece(&self, piece: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        let mut attempts = Attempts::default();
        while done < piece.len() {
            let before = done;
            let at = offset + u64::try_from(done).expect("a buffer's length fits 64 bits");
            let Err(trouble) = self.read_range(&mut piece[done..], at, &mut done) else { continue };
            if done > before {
                attempts = Attempts::default();
            }
            // What a redirection led to may have expired.
            if matches!(
                &trouble,
                Trouble::Final(StoreError::Denied { .. } | StoreError::NotFound { .. })
            ) && !attempts.has_restarted
                && self.location.forget()
            {
                attempts.has_restarted = true;
                continue;
            }
            attempts.pause(&self.client.watch, self.place(), trouble)?;
        }
        Ok(())
    }

    /// One request; what came well is counted in `done`.
    fn read_range(&self, piece: &mut [u8], offset: u64, done: &mut usize) -> Result<(), Trouble> {
        let place = self.place();
        let last = offset + u64::try_from(piece.len()).expect("a buffer's length fits 64 bits") - 1;
        let mut fields = vec![("Range", format!("bytes={offset}-{last}"))];
        fields.extend(self.version.condition());
        let mut answer = self.location.get(&self.client, place.doing, &fields)?;
        match answer.head.status {
            200 | 206 => {}
            // It is not as long as it was.
            416 => return Err(Trouble::Final(StoreError::Replaced { url: self.url.to_string() })),
            _ => return Err(self.client.refused(place, answer)),
        }
        let len = self.version.check(place, &answer.head, offset, last).map_err(Trouble::Final)?;
        let len = usize::try_from(len).expect("no longer than the piece that was asked for");
        let mut rest = &mut piece[..len];
        while !rest.is_empty() {
            let read = answer.read(rest)?;
            if read == 0 {
                let why = "the server ended its answer too early";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why).into());
            }
            self.client.watch.progressed(read);
            *done += read;
            rest = &mut rest[read..];
        }
        // The end of a body in pieces. The bytes are there: a connection that breaks now is only not used again.
        match answer.read(&mut [0]) {
            Ok(1..) => Err(Trouble::Final(place.protocol("it is longer than its range"))),
            Ok(0) | Err(_) => Ok(()),
        }
    }
}

/// Asks for the first byte until there is an answer: a HEAD would tell the same, but presigned URLs are good for GET only.
fn ask(client: &Client, location: &Location, place: Place<'_>) -> Result<Version> {
    let mut attempts = Attempts::default();
    let fields = [("Range", "bytes=0-0".to_owned())];
    loop {
        let trouble = match location.get(client, place.doing, &fields) {
            Ok(mut answer) if matches!(answer.head.status, 200 | 206 | 416) => {
                let version = Version::of(place, &answer.head)?;
                answer.skip();
                return Ok(version);
            }
            Ok(answer) => client.refused(place, answer),
            Err(trouble) => trouble,
        };
        attempts.pause(&client.watch, place, trouble)?;
    }
}

impl ReadAt for HttpImage {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let len_bytes = self.version.len_bytes;
        let len = u64::try_from(buffer.len()).expect("a buffer's length fits 64 bits");
        if offset.checked_add(len).is_none_or(|end| end > len_bytes) {
            let (url, wanted) = (self.url.to_string(), offset.saturating_add(len));
            return Err(StoreError::PastEnd { url, len_bytes, wanted }.into());
        }
        self.client.watch.began();
        let result = self.read(buffer, offset);
        match &result {
            Ok(()) => self.client.watch.answered(),
            Err(_) => self.client.watch.gave_up(),
        }
        Ok(result?)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.version.len_bytes)
    }
}

impl ImageFile for HttpImage {
    fn len_bytes(&self) -> u64 {
        self.version.len_bytes
    }
}
