//! A share, over some connections that are made anew when they break, and requests that are answered in words.
//!
//! [`Share::link`] gives the living connection of a slot, or makes one: after a jittered pause, within what the watch allows. What
//! a server would say again (a wrong password, no such share) ends it at once; nothing is tried twice that could lock an account.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::super::connect::{connect, resolve};
use super::super::pool::Pool;
use super::super::watch::{Patience, Watch, pause};
use super::super::{Options, Result, SmbUrl, StoreError, StoreUrl};
use super::frame::Reply;
use super::link::{Link, Lost, Request};
use super::login::{Account, LoginError, log_in};
use super::status::Status;
use super::wire::WireError;

const SMB_PORT: u16 = 445;
/// The smallest request that is worth sending.
const MIN_REQUEST_BYTES: u32 = 4096;
/// How often the watch may speak in a pause.
const TICK: Duration = Duration::from_millis(500);
/// So many connections in a row that carried garbage, and it fails instead of waiting for the budget's end.
const MAX_GARBAGE: u32 = 6;
/// What is being done to what, for messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) doing: &'static str,
    pub(super) url: &'a SmbUrl,
}

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The session is gone; whether it was carried out is not known.
    Lost,
    /// The server's answer.
    Status(Status),
    /// The server's answer is not valid.
    Invalid(WireError),
    /// In words already.
    Store(StoreError),
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        Self::Invalid(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Sessions that end one after the other without having been of use.
#[derive(Debug, Default)]
pub(super) struct Losses {
    since: Option<Instant>,
    count: u32,
    /// For each slot, the last of its connections that was counted.
    counted: HashMap<usize, u64>,
}

impl Losses {
    /// One that was noted already.
    pub(super) fn one() -> Self {
        Self { since: Some(Instant::now()), count: 1, ..Self::default() }
    }

    /// One more; an error when that has gone on for longer than the budget.
    pub(super) fn note(&mut self, share: &Share) -> Result<()> {
        self.count = self.count.saturating_add(1);
        if let Some(error) = share.watch.called_off() {
            return Err(error);
        }
        let without = self.since.get_or_insert_with(Instant::now).elapsed();
        if without < share.options.budget {
            return Ok(());
        }
        let what =
            format!("smb server {} ended every session before it was of use", share.url.server());
        Err(StoreError::Unreachable { what, seconds: without.as_secs(), source: None })
    }

    /// The loss of one of a slot's connections, of which every request that was under way on it tells.
    pub(super) fn note_of(&mut self, share: &Share, slot: usize, life: u64) -> Result<()> {
        if self.counted.get(&slot).is_some_and(|&counted| counted >= life) {
            return Ok(());
        }
        self.counted.insert(slot, life);
        self.note(share)
    }

    /// Something was of use. What is still told of connections that were counted does not count again.
    pub(super) fn calm(&mut self) {
        (self.since, self.count) = (None, 0);
    }

    /// So many that there should be one request at a time until there is an answer: several at once may never get one.
    pub(super) fn are_many(&self) -> bool {
        self.count >= 2
    }

    /// Whether there were any since the last use.
    pub(super) fn any(&self) -> bool {
        self.since.is_some()
    }
}

#[derive(Default)]
struct Slot {
    link: Option<Arc<Link>>,
    life: u64,
    failures: u32,
    garbage: u32,
    session_id: u64,
}

/// A share.
pub(super) struct Share {
    pub(super) url: SmbUrl,
    options: Options,
    account: Account,
    /// "Guest" is let in where nobody without a name is.
    as_guest: AtomicBool,
    pub(super) watch: Arc<Watch>,
    pool: Arc<Pool>,
    slots: Vec<Mutex<Slot>>,
}

/// Something is being waited for, so the watch runs.
struct Busy<'a>(&'a Watch);

impl<'a> Busy<'a> {
    fn new(watch: &'a Watch) -> Self {
        watch.began();
        Self(watch)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.gave_up();
    }
}

impl Share {
    /// Connects to the share of a URL, over up to `connections` connections of which the first is made at once.
    pub(super) fn open(url: &SmbUrl, options: &Options, connections: usize) -> Result<Self> {
        if url.share().is_empty() {
            return Err(StoreError::Denied {
                doing: "opening",
                url: url.to_string(),
                reason: "it names no share: write smb://host/share/folder/name".to_owned(),
            });
        }
        let account = account(url, options)?;
        let watch = Watch::new(format!("smb server {}", url.server()), options);
        let share = Self {
            url: url.clone(),
            options: options.clone(),
            account,
            as_guest: AtomicBool::new(false),
            watch: Arc::new(watch),
            pool: Arc::default(),
            slots: (0..connections.max(1)).map(|_| Mutex::default()).collect(),
        };
        share.link(0)?;
        share.watch.set_budget(options.budget);
        Ok(share)
    }

    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    fn slot(&self, slot: usize) -> MutexGuard<'_, Slot> {
        self.slots[slot].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As whom it was opened.
    pub(super) fn account_name(&self) -> String {
        self.account.name()
    }

    /// The living connection of a slot; connects if there is none.
    pub(super) fn link(&self, slot: usize) -> Result<Arc<Link>> {
        let mut slot = self.slot(slot);
        if let Some(link) = &slot.link {
            match link.lost() {
                None => return Ok(Arc::clone(link)),
                Some(lost) => self.mourn(&mut slot, &lost)?,
            }
        }
        // Each of several threads would wait for one more.
        if let Some(error) = self.watch.called_off() {
            return Err(error);
        }
        let _busy = Busy::new(&self.watch);
        loop {
            self.pause(slot.failures)?;
            let error = match self.connect(&mut slot) {
                Ok(link) => {
                    slot.session_id = link.session_id;
                    slot.link = Some(Arc::clone(&link));
                    return Ok(link);
                }
                Err(LoginError::Connection(error)) => error,
                Err(LoginError::Refused(error)) => return Err(error),
                Err(LoginError::NoGuests(status)) => return Err(self.no_guests(status)),
            };
            let lost = Lost { kind: error.kind(), reason: error.to_string(), expired: None };
            self.note(&mut slot, &lost)?;
            if let Some(without) = self.watch.check() {
                return Err(self.watch.unreachable(without, Some(error)));
            }
        }
    }

    /// From now on only what is left behind is tidied up, on connections of its own where the last ones ended since their time was over.
    pub(super) fn tidy(&self) {
        self.watch.tidy(self.options.budget);
        for slot in 0..self.slots.len() {
            self.slot(slot).link.take_if(|link| link.lost().is_some());
        }
    }

    /// Ends one of a slot's connections, if it is still in use, since the server does not know its session any more.
    pub(super) fn end(&self, slot: usize, life: u64, status: Status) {
        if let Some(link) = &self.slot(slot).link
            && link.life == life
        {
            link.end(&format!("the server answered {status}"));
        }
    }

    /// Takes note of a link's end.
    fn mourn(&self, slot: &mut Slot, lost: &Lost) -> Result<()> {
        if slot.link.take().is_some_and(|link| link.served()) {
            (slot.failures, slot.garbage) = (0, 0);
        }
        self.note(slot, lost)?;
        match lost.expired {
            Some(without) => {
                let source = std::io::Error::new(lost.kind, lost.reason.clone());
                Err(self.watch.unreachable(without, Some(source)))
            }
            None => Ok(()),
        }
    }

    fn note(&self, slot: &mut Slot, lost: &Lost) -> Result<()> {
        slot.failures = slot.failures.saturating_add(1);
        if lost.kind != std::io::ErrorKind::InvalidData {
            return Ok(());
        }
        slot.garbage += 1;
        if slot.garbage < MAX_GARBAGE {
            return Ok(());
        }
        slot.garbage = 0;
        Err(StoreError::Protocol {
            doing: "speaking to",
            url: self.url.to_string(),
            reason: lost.reason.clone(),
        })
    }

    fn pause(&self, failures: u32) -> Result<()> {
        if failures == 0 {
            return Ok(());
        }
        let deadline = Instant::now() + pause(failures);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(TICK));
            // Whoever waits hears of the outage in time, however long the pauses have become.
            if let Some(without) = self.watch.check() {
                return Err(self.watch.unreachable(without, None));
            }
        }
    }

    fn connect(&self, slot: &mut Slot) -> Result<Arc<Link>, LoginError> {
        let mut failed = None;
        // Resolved anew each time: a server may come back at another address.
        let addresses = match resolve(&self.url.host, &self.watch) {
            Ok(addresses) => addresses,
            Err(error) if slot.life == 0 => return Err(LoginError::Refused(error)),
            Err(error) => return Err(LoginError::Connection(std::io::Error::other(error))),
        };
        for address in addresses {
            let address = SocketAddr::new(address, self.url.port.unwrap_or(SMB_PORT));
            match self.connect_to(address, slot) {
                Err(LoginError::Connection(error)) => failed = Some(error),
                other => return other,
            }
        }
        let failed = failed.unwrap_or_else(|| std::io::Error::other("the server has no address"));
        Err(LoginError::Connection(failed))
    }

    fn connect_to(&self, address: SocketAddr, slot: &mut Slot) -> Result<Arc<Link>, LoginError> {
        let login = |account: &Account| {
            let stream = connect(address, &self.watch)?;
            let previous = slot.session_id;
            log_in(stream, &self.url, account, previous, self.options.silence, &self.watch)
        };
        let session = if self.as_guest.load(Ordering::Relaxed) {
            login(&Account::Guest)?
        } else {
            match login(&self.account) {
                Err(LoginError::NoGuests(status)) => {
                    let session = login(&Account::Guest).map_err(|error| match error {
                        LoginError::NoGuests(_) => LoginError::NoGuests(status),
                        error => error,
                    })?;
                    self.as_guest.store(true, Ordering::Relaxed);
                    session
                }
                other => other?,
            }
        };
        slot.life += 1;
        let (watch, pool) = (Arc::clone(&self.watch), Arc::clone(&self.pool));
        Ok(Arc::new(Link::start(session, slot.life, self.options.silence, watch, pool)?))
    }

    fn no_guests(&self, status: Status) -> StoreError {
        StoreError::Denied {
            doing: "opening",
            url: self.url.to_string(),
            reason: format!(
                "the server does not let guests in ({status}), or requires encryption, which a guest cannot have: give user and password (--credentials)"
            ),
        }
    }

    /// The largest multiple of 4 KiB (where there is one) that server and options allow.
    pub(super) fn request_bytes(&self, server: u32) -> u32 {
        let limit = self.options.request_bytes.max(MIN_REQUEST_BYTES);
        let bytes = server.min(limit);
        if bytes >= 4096 { bytes - bytes % 4096 } else { bytes }
    }

    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    /// Does something on the first connection until the session that it is done on lasts. `step` hears whether one went under it
    /// before.
    pub(super) fn until_done<T>(
        &self,
        place: Place<'_>,
        step: impl FnMut(&Link, bool) -> Result<T, Failure>,
    ) -> Result<T> {
        self.until_done_after(Losses::default(), place, step)
    }

    /// The same after sessions have ended already.
    pub(super) fn until_done_after<T>(
        &self,
        mut losses: Losses,
        place: Place<'_>,
        mut step: impl FnMut(&Link, bool) -> Result<T, Failure>,
    ) -> Result<T> {
        let _busy = Busy::new(&self.watch);
        let mut patience = Patience::default();
        loop {
            let link = self.link(0)?;
            match step(&link, losses.any()) {
                Ok(done) => {
                    self.watch.calm(&mut patience);
                    return Ok(done);
                }
                // A session of ours that ended may still hold the file.
                Err(Failure::Status(status))
                    if status.is_passing()
                        || losses.any() && status == Status::SHARING_VIOLATION =>
                {
                    self.watch.wait(place.doing, &mut patience)?;
                }
                Err(Failure::Status(status)) if status.is_session_lost() => {
                    link.end(&format!("the server answered {status}"));
                    losses.note(self)?;
                }
                Err(Failure::Lost) => losses.note(self)?,
                Err(failure) => return Err(self.words(place, failure)),
            }
        }
    }

    /// A failure that is not waited out, in words.
    pub(super) fn words(&self, place: Place<'_>, failure: Failure) -> StoreError {
        let Place { doing, url } = place;
        match failure {
            Failure::Store(error) => error,
            Failure::Status(status) => self.refused(place, status),
            Failure::Invalid(error) => {
                StoreError::Protocol { doing, url: url.to_string(), reason: error.to_string() }
            }
            Failure::Lost => {
                let status = "nothing: the session ended".to_owned();
                StoreError::Server { doing, url: url.to_string(), status }
            }
        }
    }

    /// A status in words.
    fn refused(&self, place: Place<'_>, status: Status) -> StoreError {
        let Place { doing, url } = place;
        let url = url.to_string();
        let denied = |reason: String| StoreError::Denied { doing, url: url.clone(), reason };
        match status {
            status if status.is_not_found() => StoreError::NotFound { url },
            status if status.is_no_space() => StoreError::NoSpace { url },
            Status::OBJECT_NAME_COLLISION => StoreError::Exists { url },
            Status::SHARING_VIOLATION | Status::DELETE_PENDING => StoreError::Busy { url },
            Status::MEDIA_WRITE_PROTECTED => denied("the server offers the share read-only".to_owned()),
            Status::ACCESS_DENIED | Status::NETWORK_ACCESS_DENIED => denied(format!(
                "the server does not allow it to {}: the share may be read-only, or the folder's owner and mode forbid it",
                self.account.name()
            )),
            Status::OBJECT_NAME_INVALID
            | Status::OBJECT_PATH_SYNTAX_BAD
            | Status::OBJECT_PATH_INVALID => denied(
                "the server does not take this name: leave out : * ? \" < > | and a dot or blank at an end".to_owned(),
            ),
            Status::NAME_TOO_LONG => StoreError::NameTooLong { doing, url },
            Status::FILE_IS_A_DIRECTORY => StoreError::Folder { url },
            Status::NOT_A_DIRECTORY => denied("it is not a folder".to_owned()),
            status => StoreError::Server { doing, url, status: status.to_string() },
        }
    }
}

/// One request and its answer.
pub(super) fn call(link: &Link, request: Request) -> Result<Reply, Failure> {
    let (sender, answers) = channel();
    link.submit(request, 0, &sender);
    let answer = answers.recv().expect("this function holds a sender");
    let reply = answer.reply.map_err(|_| Failure::Lost)?;
    match reply.header.status {
        Status::SUCCESS => Ok(reply),
        status => Err(Failure::Status(status)),
    }
}

/// Whose login a URL is opened with.
fn account(url: &SmbUrl, options: &Options) -> Result<Account> {
    let access = options.access_for(&StoreUrl::Smb(url.clone()));
    let denied =
        |reason: String| StoreError::Denied { doing: "opening", url: url.to_string(), reason };
    let given = access.and_then(|access| access.user.as_deref()).filter(|user| !user.is_empty());
    if let (Some(here), Some(there)) = (url.user.as_deref(), given)
        && here != there
    {
        return Err(denied(format!(
            "the URL names the user {here}, the credentials {there}: name one, or the same"
        )));
    }
    let Some(user) = url.user.as_deref().or(given) else {
        return match access {
            // As a guest, whoever gave it would be believed to be who they are not.
            Some(access) if access.password.is_some() || access.domain.is_some() => Err(denied(
                "a password or a domain was given, and no user: give that too, as user= or IMPRINT_STORE_USER, or as smb://USER@…; or neither, to come as a guest".to_owned(),
            )),
            Some(access) if access.token.is_some() => Err(denied(
                "a token was given, which SMB servers do not take: give user and password, or neither, to come as a guest".to_owned(),
            )),
            _ => Ok(Account::Anonymous),
        };
    };
    let Some(password) = access.and_then(|access| access.password.clone()) else {
        return Err(denied(format!(
            "there is no password for the user {user}: give one with --credentials FILE or IMPRINT_STORE_PASSWORD"
        )));
    };
    let domain = access.and_then(|access| access.domain.as_deref());
    let (domain, user) = match (domain, user.split_once('\\')) {
        (None, Some((domain, user))) => (domain, user),
        (domain, _) => (domain.unwrap_or_default(), user),
    };
    Ok(Account::User { user: user.to_owned(), domain: domain.to_owned(), password })
}
