//! Calls to one NFS server over a few connections, with answers turned into store errors.
//!
//! A call either waits for its answer ([`Client::call`]) or is answered through a channel ([`Client::submit`]); both may be used
//! from any thread. "Try later" and a server's passing errors are waited out within the budget.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use super::super::pool::Pool;
use super::super::watch::{Patience, Watch};
use super::super::window::Payload;
use super::super::{NfsUrl, Options, Result, StoreError};
use super::lane::{Answer, Call, Lane, LaneError};
use super::proto::{self, Handle, Outcome, Status};
use super::rpc::{Credential, Procedure, RpcError, begin_call, finish_call, reply_results};
use super::xdr::{Decoder, Encoder, XdrError};

/// The smallest request that a server may ask for; with less nothing would get anywhere.
const MIN_REQUEST_BYTES: u32 = 1024;
/// The largest request of this client, whatever its options say.
const MAX_REQUEST_BYTES: u32 = 1 << 20;

/// More than this in flight brings nothing, measured at 0 and 1 ms (docs/stores.md).
const IN_FLIGHT_BYTES: u32 = 8 << 20;
const MIN_IN_FLIGHT: usize = 4;

/// What is being done to what, for messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) doing: &'static str,
    pub(super) url: &'a NfsUrl,
}

/// A server, and how to talk to it.
pub(super) struct Client {
    lanes: Vec<Lane>,
    next_lane: AtomicUsize,
    next_xid: AtomicU32,
    credential: Credential,
    uid: u32,
    watch: Arc<Watch>,
    /// The largest read and write that the server takes.
    pub(super) read_bytes: u32,
    pub(super) write_bytes: u32,
    /// How many of them may be in flight.
    pub(super) reads_in_flight: usize,
    pub(super) writes_in_flight: usize,
}

impl Client {
    /// Starts the connections and asks the server for its limits.
    pub(super) fn start(
        url: &NfsUrl,
        address: SocketAddr,
        root: &Handle,
        options: &Options,
        watch: Arc<Watch>,
    ) -> Result<Self> {
        let pool = Arc::new(Pool::default());
        let lanes = (0..options.connections.max(1))
            .map(|_| Lane::start(address, options.silence, Arc::clone(&watch), Arc::clone(&pool)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| StoreError::local("opening", url, source))?;
        let xid = uuid::Uuid::new_v4().as_fields().0;
        let limit = options.request_bytes.clamp(MIN_REQUEST_BYTES, MAX_REQUEST_BYTES);
        let mut client = Self {
            lanes,
            next_lane: AtomicUsize::new(0),
            next_xid: AtomicU32::new(xid),
            credential: Credential::unix(url.uid, url.gid),
            uid: url.uid,
            watch,
            read_bytes: limit,
            write_bytes: limit,
            reads_in_flight: 1,
            writes_in_flight: 1,
        };
        let place = Place { doing: "opening", url };
        let (info, _) = client.call(
            place,
            proto::FSINFO,
            |call| {
                call.opaque(&root.0);
            },
            proto::read_fsinfo,
        )?;
        let info = info.map_err(|status| client.refused(place, status))?;
        client.read_bytes = request_bytes(info.read_max, limit);
        client.write_bytes = request_bytes(info.write_max, limit);
        client.reads_in_flight = in_flight(client.read_bytes, options);
        client.writes_in_flight = in_flight(client.write_bytes, options);
        client.watch.set_budget(options.budget);
        Ok(client)
    }

    /// From now on gives up sooner: for tidying up after a failure.
    pub(super) fn tidy(&self, budget: Duration) {
        self.watch.tidy(budget);
    }

    /// Sends a call whose answer goes to `answer` with `tag`.
    pub(super) fn submit(
        &self,
        procedure: Procedure,
        arguments: impl FnOnce(&mut Encoder),
        payload: Option<Payload>,
        tag: u64,
        answer: &Sender<Answer>,
    ) {
        let xid = self.next_xid.fetch_add(1, Ordering::Relaxed);
        let mut call = begin_call(xid, procedure, &self.credential);
        arguments(&mut call);
        let payload_bytes =
            payload.as_ref().map_or(0, |payload| payload.range.len().next_multiple_of(4));
        let bytes = finish_call(call, payload_bytes);
        let lane = self.next_lane.fetch_add(1, Ordering::Relaxed) % self.lanes.len();
        self.lanes[lane].submit(Call {
            xid,
            procedure,
            bytes,
            payload,
            tag,
            answer: answer.clone(),
        });
    }

    /// The results in an answer. `Ok(Err(Jukebox))` also stands for a server that could not serve the call just now.
    pub(super) fn results<'a, T>(
        &self,
        place: Place<'_>,
        answer: &'a Answer,
        read: impl FnOnce(&mut Decoder<'a>) -> Result<T, XdrError>,
    ) -> Result<Outcome<T>> {
        let protocol = |reason: String| StoreError::Protocol {
            doing: place.doing,
            url: place.url.to_string(),
            reason,
        };
        match &answer.reply {
            Ok(record) => match reply_results(record.bytes(), answer.procedure) {
                Ok(results) => {
                    proto::outcome(results, read).map_err(|error| protocol(error.to_string()))
                }
                Err(RpcError::System) => Ok(Err(Status::Jukebox)),
                Err(error @ RpcError::Authentication { .. }) => Err(StoreError::Denied {
                    doing: place.doing,
                    url: place.url.to_string(),
                    reason: error.to_string(),
                }),
                Err(error) => Err(protocol(error.to_string())),
            },
            Err(LaneError::Garbage(reason)) => Err(protocol(reason.clone())),
            Err(LaneError::Unreachable(without, source)) => {
                let source = source
                    .as_ref()
                    .map(|error| std::io::Error::new(error.kind(), error.to_string()));
                Err(self.watch.unreachable(*without, source))
            }
        }
    }

    /// Calls and waits for the answer; the flag says that the call was sent more than once.
    pub(super) fn call<T>(
        &self,
        place: Place<'_>,
        procedure: Procedure,
        arguments: impl Fn(&mut Encoder),
        read: impl Fn(&mut Decoder<'_>) -> Result<T, XdrError>,
    ) -> Result<(Outcome<T>, bool)> {
        let (sender, answers) = channel();
        let mut patience = Patience::default();
        let mut resent = false;
        loop {
            self.submit(procedure, &arguments, None, 0, &sender);
            let answer = answers.recv().expect("this function holds a sender");
            resent |= answer.resent;
            match self.results(place, &answer, &read)? {
                Err(Status::Jukebox) => self.wait(place, &mut patience)?,
                outcome => {
                    self.calm(&mut patience);
                    return Ok((outcome, resent));
                }
            }
        }
    }

    /// Pauses because the server said "try later"; fails when it has said nothing else for longer than the budget.
    pub(super) fn wait(&self, place: Place<'_>, patience: &mut Patience) -> Result<()> {
        self.watch.wait(place.doing, patience)
    }

    /// The server did what it was asked for.
    pub(super) fn calm(&self, patience: &mut Patience) {
        self.watch.calm(patience);
    }

    /// A status in words.
    pub(super) fn refused(&self, place: Place<'_>, status: Status) -> StoreError {
        let Place { doing, url } = place;
        let url = url.to_string();
        match status {
            Status::NoEnt => StoreError::NotFound { url },
            Status::Exist => StoreError::Exists { url },
            Status::NoSpc | Status::DQuot => StoreError::NoSpace { url },
            Status::NameTooLong => StoreError::NameTooLong { doing, url },
            Status::Rofs => {
                let reason = "the server exports it read-only to this address".to_owned();
                StoreError::Denied { doing, url, reason }
            }
            Status::Acces | Status::Perm => {
                let reason = format!(
                    "the server does not allow it to uid {}: look at the export's squash setting and at the folder's owner and mode, or give ?uid= and ?gid=",
                    self.uid
                );
                StoreError::Denied { doing, url, reason }
            }
            status => StoreError::Server { doing, url, status: status.to_string() },
        }
    }
}

/// The largest multiple of 4 KiB (where there is one) that server and options allow.
fn request_bytes(server: u32, limit: u32) -> u32 {
    let bytes = server.clamp(MIN_REQUEST_BYTES, limit);
    if bytes >= 4096 { bytes - bytes % 4096 } else { bytes }
}

/// As many requests of a size as are useful: small ones need more of them to fill a path, large ones only fill memory.
fn in_flight(request_bytes: u32, options: &Options) -> usize {
    let useful =
        usize::try_from(IN_FLIGHT_BYTES / request_bytes).expect("u32 fits usize on every target");
    useful.max(MIN_IN_FLIGHT).min(options.requests_in_flight).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_in_flight() {
        let options = Options::default();
        assert_eq!(in_flight(1 << 20, &options), 8);
        assert_eq!(in_flight(64 << 10, &options), 16);
        assert_eq!(in_flight(64 << 10, &Options { requests_in_flight: 0, ..options }), 1);
    }

    #[test]
    fn request_sizes() {
        assert_eq!(request_bytes(u32::MAX, 1 << 20), 1 << 20);
        assert_eq!(request_bytes(65_536, 1 << 20), 65_536);
        assert_eq!(request_bytes(70_000, 1 << 20), 69_632);
        assert_eq!(request_bytes(0, 1 << 20), 1024);
    }
}
