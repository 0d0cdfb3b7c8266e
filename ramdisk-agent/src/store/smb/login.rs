//! From a TCP connection to a share: NEGOTIATE, SESSION_SETUP, TREE_CONNECT, one request at a time.
//!
//! Whoever has a password wants signatures, and does not go on as a guest. Dialects before 3.1.1, where the keys do not vouch for
//! the negotiation, repeat it signed (FSCTL_VALIDATE_NEGOTIATE_INFO). A refused login is final: it is never tried again.

use std::io::{self, Read, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::pool::Pool;
use super::super::watch::Watch;
use super::super::{SmbUrl, StoreError};
use super::crypto::{Preauth, Sealer, Signer, derive};
use super::frame::{Inbound, MAX_REQUEST_BYTES, Outbound, Reply, credit_charge, invalid};
use super::header::{CREDIT_BYTES, Command};
use super::link::{closed, is_time_out};
use super::messages::{self, SessionSetup};
use super::negotiate::{self, Dialect, Negotiated, SIGNING_ENABLED, SIGNING_REQUIRED};
use super::ntlm::{self, Challenge, Login, Random};
use super::spnego;
use super::status::Status;
use super::wire::{Put as _, WireError};

/// Credits asked for with each request: enough for the first burst of a writer.
const CREDITS_WANTED: u16 = 256;
/// The most interim answers to one request.
const MAX_INTERIM: u32 = 64;

/// Who we are to the server.
pub(super) enum Account {
    /// No name at all.
    Anonymous,
    /// "Guest" without a password: where nobody without a name is let in.
    Guest,
    /// A user.
    User { user: String, domain: String, password: agent_api::SecretText },
}

impl Account {
    fn is_user(&self) -> bool {
        matches!(self, Self::User { .. })
    }

    /// As it is called in messages.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Anonymous | Self::Guest => "a guest (no user was given)".to_owned(),
            Self::User { user, .. } => format!("the user {user}"),
        }
    }
}

/// What the server takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) read_bytes: u32,
    pub(super) write_bytes: u32,
}

/// A connection that has a share.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) stream: TcpStream,
    pub(super) outbound: Outbound,
    pub(super) inbound: Inbound,
    pub(super) credits: u32,
    pub(super) limits: Limits,
    pub(super) dialect: Dialect,
}

/// Why there is no session.
#[derive(Debug)]
pub(super) enum LoginError {
    /// The connection failed; another may do. `InvalidData`: what answers does not speak the protocol.
    Connection(io::Error),
    /// The server says so, and would say it again.
    Refused(StoreError),
    /// A guest is not let in this way.
    NoGuests(Status),
}

impl From<io::Error> for LoginError {
    fn from(error: io::Error) -> Self {
        Self::Connection(error)
    }
}

impl From<WireError> for LoginError {
    fn from(error: WireError) -> Self {
        Self::Connection(invalid(format!("an answer that is not valid: {error}")))
    }
}

/// A login under way.
struct Talk<'a> {
    url: &'a SmbUrl,
    account: &'a Account,
    session: Session,
    preauth: Preauth,
    pool: Arc<Pool>,
    watch: &'a Watch,
    silence: Duration,
    sent: Vec<u8>,
}

/// Logs in on a fresh connection; `previous` is a session of ours that the server is to end, 0 for none.
pub(super) fn log_in(
    stream: TcpStream,
    url: &SmbUrl,
    account: &Account,
    previous: u64,
    silence: Duration,
    watch: &Watch,
) -> Result<Session, LoginError> {
    let limits = Limits { read_bytes: 0, write_bytes: 0 };
    let (outbound, inbound) = (Outbound::default(), Inbound::default());
    // Limits and dialect are what the server says next.
    let dialect = Dialect::Smb21;
    let session = Session { stream, outbound, inbound, credits: 1, limits, dialect };
    let mut talk = Talk {
        url,
        account,
        session,
        preauth: Preauth::new(),
        pool: Arc::default(),
        watch,
        silence,
        sent: Vec::new(),
    };
    let client = *uuid::Uuid::new_v4().as_bytes();
    let negotiated = talk.negotiate(&client)?;
    let encrypts = talk.authenticate(&negotiated, previous)?;
    if encrypts || url.encrypt {
        talk.encrypt(&negotiated)?;
    }
    talk.connect_share(&negotiated)?;
    if account.is_user() && negotiated.dialect < Dialect::Smb311 {
        talk.validate(&negotiated, &client)?;
    }
    talk.stay_affordable();
    Ok(talk.session)
}

impl Talk<'_> {
    fn exchange(&mut self, command: Command, body: &[u8]) -> Result<Reply, LoginError> {
        let session = &mut self.session;
        let charge = credit_charge(0);
        session.outbound.frame(&mut self.sent, command, [body, &[]], charge, CREDITS_WANTED);
        session.credits = session.credits.saturating_sub(charge.into());
        (&session.stream).write_all(&self.sent)?;
        for _ in 0..MAX_INTERIM {
            let mut stream = Limited::new(&session.stream, self.watch, self.silence);
            let reply = session.inbound.read(&mut stream, &self.pool)?;
            session.credits = session.credits.saturating_add(reply.header.credits.into());
            if reply.header.is_interim() {
                continue;
            }
            if reply.header.command != command as u16 {
                return Err(invalid("an answer to another request").into());
            }
            return Ok(reply);
        }
        Err(invalid("one interim answer after the other").into())
    }

    fn security_mode(&self) -> u16 {
        if self.account.is_user() { SIGNING_ENABLED | SIGNING_REQUIRED } else { SIGNING_ENABLED }
    }

    fn denied(&self, reason: String) -> LoginError {
        LoginError::Refused(StoreError::Denied {
            doing: "opening",
            url: self.url.to_string(),
            reason,
        })
    }

    fn negotiate(&mut self, client: &[u8; 16]) -> Result<Negotiated, LoginError> {
        let mut salt = [0; 32];
        salt[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        salt[16..].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        let body = negotiate::request(self.security_mode(), client, &salt);
        let reply = match self.exchange(Command::Negotiate, &body) {
            Ok(reply) => reply,
            Err(LoginError::Connection(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(self.only_smb1().unwrap_or(LoginError::Connection(error)));
            }
            Err(error) => return Err(error),
        };
        if reply.header.status != Status::SUCCESS {
            let status = reply.header.status;
            return Err(self.denied(format!(
                "the server speaks none of SMB 2.1 to 3.1.1 ({status}); SMB 1 is not spoken here, as it protects nothing: let the server speak a newer version"
            )));
        }
        let negotiated = negotiate::read(reply.message())?;
        self.preauth.add(&self.sent[4..]);
        self.preauth.add(reply.message());
        if self.account.is_user() && negotiated.security_mode & SIGNING_ENABLED == 0 {
            return Err(self.denied(
                "the server does not sign messages, so a password is not used with it: turn signing on at the server".to_owned(),
            ));
        }
        let most = if negotiated.is_large_mtu() {
            MAX_REQUEST_BYTES
        } else {
            u32::try_from(CREDIT_BYTES).expect("64 KiB")
        };
        self.session.dialect = negotiated.dialect;
        self.session.limits = Limits {
            read_bytes: negotiated.max_read_bytes.clamp(1, most),
            write_bytes: negotiated.max_write_bytes.clamp(1, most),
        };
        Ok(negotiated)
    }

    /// A server that hung up on us: does it answer in SMB 1?
    fn only_smb1(&self) -> Option<LoginError> {
        let address = self.session.stream.peer_addr().ok()?;
        let stream = super::super::connect::connect(address, self.watch).ok()?;
        (&stream).write_all(negotiate::SMB1_PROBE).ok()?;
        let mut answer = [0; negotiate::SMB1_ANSWER_BYTES];
        Limited::new(&stream, self.watch, self.silence).read_exact(&mut answer).ok()?;
        negotiate::is_smb1(&answer).then(|| {
            self.denied(
                "the server speaks only SMB 1, which protects nothing and is not spoken here: let it speak SMB 2.1 or newer".to_owned(),
            )
        })
    }

    /// Logs in; whether the session is to be encrypted.
    fn authenticate(&mut self, negotiated: &Negotiated, previous: u64) -> Result<bool, LoginError> {
        let mode = self.security_mode();
        let first = ntlm::negotiate();
        let body = messages::session_setup(&spnego::init(&first), mode, previous);
        let reply = self.exchange(Command::SessionSetup, &body)?;
        self.preauth.add(&self.sent[4..]);
        if reply.header.status != Status::MORE_PROCESSING_REQUIRED {
            return Err(self.login_refused(reply.header.status));
        }
        self.preauth.add(reply.message());
        let token = messages::read_session_setup(reply.message())?.token;
        let second = spnego::response_token(token)?;
        let challenge = Challenge::read(second)?;
        self.session.outbound.session_id = reply.header.session_id;
        self.session.inbound.session_id = reply.header.session_id;

        let login = match self.account {
            Account::Anonymous => None,
            Account::Guest => Some(Login { user: "Guest", domain: "", password: "" }),
            Account::User { user, domain, password } => {
                Some(Login { user, domain, password: password.expose() })
            }
        };
        let random = Random {
            challenge: *uuid::Uuid::new_v4().as_bytes().first_chunk().expect("eight of sixteen"),
            session_key: random_key()?,
        };
        let target = format!("cifs/{}", self.url.host);
        let third = ntlm::authenticate(login, &challenge, &target, [&first, second], random);
        let mic = self.account.is_user().then(|| third.sign(&spnego::mechanisms()));
        let token = spnego::response(&third.message, mic.as_ref().map(|mic| &mic[..]));
        let body = messages::session_setup(&token, mode, previous);
        let reply = self.exchange(Command::SessionSetup, &body)?;
        // The last answer does not count: the keys are made before it.
        self.preauth.add(&self.sent[4..]);
        if reply.header.status != Status::SUCCESS {
            return Err(self.login_refused(reply.header.status));
        }
        let SessionSetup { is_guest, encrypts, .. } =
            messages::read_session_setup(reply.message())?;
        if is_guest || !self.account.is_user() {
            if self.account.is_user() {
                let name = self.account.name();
                return Err(self.denied(format!(
                    "the server does not know {name} and offers a guest's session instead, in which nothing is signed: check user and domain, or give no user"
                )));
            }
            if encrypts {
                return Err(self.denied(
                    "the server requires encryption, which a guest cannot have: give user and password (--credentials)".to_owned(),
                ));
            }
            return Ok(false);
        }
        self.take_keys(negotiated, &third.session_key);
        // The last answer is signed already; so far nothing was checked.
        let mut message = reply.message().to_vec();
        let is_signed = reply.header.flags & super::header::SIGNED != 0;
        let signer = self.session.inbound.signer.as_ref();
        if !is_signed || signer.is_none_or(|s| !s.verify(&mut message, reply.header.message_id)) {
            return Err(invalid("the answer to the login is not signed by the server").into());
        }
        Ok(encrypts)
    }

    fn take_keys(&mut self, negotiated: &Negotiated, key: &[u8; 16]) {
        let is_311 = negotiated.dialect == Dialect::Smb311;
        let context = |fixed: &'static [u8]| if is_311 { self.preauth.bytes() } else { fixed };
        let signing_key = match negotiated.dialect {
            Dialect::Smb21 => key.to_vec(),
            Dialect::Smb30 | Dialect::Smb302 => derive(key, b"SMB2AESCMAC\0", b"SmbSign\0", 16),
            Dialect::Smb311 => derive(key, b"SMBSigningKey\0", context(b""), 16),
        };
        let signer = || Some(Signer::new(negotiated.signing, &signing_key));
        (self.session.outbound.signer, self.session.inbound.signer) = (signer(), signer());
        if let Some(cipher) = negotiated.cipher {
            let sealer = |label_311: &[u8], fixed: &'static [u8]| {
                let label: &[u8] = if is_311 { label_311 } else { b"SMB2AESCCM\0" };
                Sealer::new(cipher, &derive(key, label, context(fixed), cipher.key_bytes()))
            };
            self.session.outbound.sealer =
                Some((sealer(b"SMBC2SCipherKey\0", b"ServerIn \0"), cipher));
            self.session.inbound.sealer = Some(sealer(b"SMBS2CCipherKey\0", b"ServerOut\0"));
        }
    }

    /// From now on everything is encrypted.
    fn encrypt(&mut self, negotiated: &Negotiated) -> Result<(), LoginError> {
        if self.session.outbound.sealer.is_none() {
            let reason = if self.account.is_user() {
                format!(
                    "encryption is required, but the server and this client share no cipher (the server speaks {}): let the server speak SMB 3 with AES-128-GCM",
                    negotiated.dialect
                )
            } else {
                "encryption is required, which a guest cannot have: give user and password (--credentials)".to_owned()
            };
            return Err(self.denied(reason));
        }
        self.session.outbound.sealed = true;
        self.session.inbound.sealed = true;
        Ok(())
    }

    fn connect_share(&mut self, negotiated: &Negotiated) -> Result<(), LoginError> {
        let share = self.url.share();
        let path = format!(r"\\{}\{share}", self.url.host);
        let reply = self.exchange(Command::TreeConnect, &messages::tree_connect(&path))?;
        match reply.header.status {
            Status::SUCCESS => {}
            Status::BAD_NETWORK_NAME => {
                return Err(LoginError::Refused(StoreError::NoShare {
                    server: self.url.server(),
                    share: share.to_owned(),
                }));
            }
            Status::ACCESS_DENIED | Status::NETWORK_ACCESS_DENIED => {
                if !self.account.is_user() {
                    return Err(LoginError::NoGuests(reply.header.status));
                }
                let name = self.account.name();
                let hint = if negotiated.cipher.is_some() {
                    ""
                } else {
                    ", and whether it requires encryption, which was not agreed on"
                };
                return Err(self.denied(format!(
                    "the server does not allow {name} on the share {share}: look at the share's list of users and hosts{hint}"
                )));
            }
            status if status.is_passing() => return Err(self.passing(status)),
            status => {
                return Err(self
                    .denied(format!("the server answered {status} to opening the share {share}")));
            }
        }
        let tree = messages::read_tree_connect(reply.message())?;
        if !tree.has_files {
            return Err(self.denied(format!(
                "{share} is no share with files, it is for printing or for programs: name one that has files"
            )));
        }
        self.session.outbound.tree_id = reply.header.tree_id;
        if tree.encrypts { self.encrypt(negotiated) } else { Ok(()) }
    }

    /// Compares what was negotiated with what the server says it was, signed.
    fn validate(&mut self, negotiated: &Negotiated, client: &[u8; 16]) -> Result<(), LoginError> {
        let mut info = Vec::with_capacity(32);
        info.u32(negotiate::CAPABILITIES).bytes(client).u16(self.security_mode());
        info.u16(super::wire::len16(negotiate::DIALECTS.len()));
        negotiate::DIALECTS.iter().for_each(|&dialect| {
            info.u16(dialect as u16);
        });
        let reply = self.exchange(Command::Ioctl, &messages::validate_negotiate(&info))?;
        match reply.header.status {
            Status::SUCCESS => {
                let validated = messages::read_validated(reply.message())?;
                let expected = (
                    negotiated.capabilities,
                    negotiated.server,
                    negotiated.security_mode,
                    negotiated.dialect as u16,
                );
                if validated == expected {
                    return Ok(());
                }
                Err(self.denied(
                    "somebody between here and the server changed what was negotiated: look for who is in this network".to_owned(),
                ))
            }
            // Servers of SMB 2.1 do not know it, and sign that they do not.
            Status::FILE_CLOSED | Status::NOT_SUPPORTED | Status::INVALID_DEVICE_REQUEST
                if negotiated.dialect == Dialect::Smb21 =>
            {
                Ok(())
            }
            status => {
                Err(self
                    .denied(format!("the server did not confirm what was negotiated ({status})")))
            }
        }
    }

    /// No request may cost more than the server grants.
    fn stay_affordable(&mut self) {
        let credit_bytes = u32::try_from(CREDIT_BYTES).expect("64 KiB");
        let most = self.session.credits.max(1).saturating_mul(credit_bytes);
        let limits = &mut self.session.limits;
        limits.read_bytes = limits.read_bytes.min(most);
        limits.write_bytes = limits.write_bytes.min(most);
    }

    fn passing(&self, status: Status) -> LoginError {
        LoginError::Connection(io::Error::other(format!("the server answered {status}")))
    }

    fn login_refused(&self, status: Status) -> LoginError {
        if status.is_passing() || status.is_session_lost() {
            return self.passing(status);
        }
        if !self.account.is_user() {
            return LoginError::NoGuests(status);
        }
        let name = self.account.name();
        self.denied(match status {
            Status::LOGON_FAILURE | Status::WRONG_PASSWORD | Status::NO_SUCH_USER => format!(
                "the server does not take {name} with this password ({status}); it was tried once, so that the account is not locked: check user, password and domain"
            ),
            Status::ACCOUNT_LOCKED_OUT => format!("the account of {name} is locked: unlock it at the server ({status})"),
            Status::ACCOUNT_DISABLED | Status::ACCOUNT_EXPIRED => {
                format!("the account of {name} is disabled or has expired ({status})")
            }
            Status::PASSWORD_EXPIRED | Status::PASSWORD_MUST_CHANGE => {
                format!("the password of {name} has to be changed first ({status})")
            }
            Status::ACCESS_DENIED
            | Status::ACCOUNT_RESTRICTION
            | Status::INVALID_LOGON_HOURS
            | Status::LOGON_TYPE_NOT_GRANTED => {
                format!("the server does not let {name} log in now or from here ({status})")
            }
            status => format!("the login of {name} failed ({status})"),
        })
    }
}

fn random_key() -> io::Result<[u8; 16]> {
    use ring::rand::{SecureRandom as _, SystemRandom};
    let mut key = [0; 16];
    SystemRandom::new()
        .fill(&mut key)
        .map_err(|_| io::Error::other("the system gives no random numbers"))?;
    Ok(key)
}

/// Reads that end when the server was silent for too long, or the budget is spent.
struct Limited<'a> {
    stream: &'a TcpStream,
    watch: &'a Watch,
    silence: Duration,
    heard: Instant,
}

impl<'a> Limited<'a> {
    fn new(stream: &'a TcpStream, watch: &'a Watch, silence: Duration) -> Self {
        Self { stream, watch, silence, heard: Instant::now() }
    }
}

impl Read for Limited<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(buffer) {
                Ok(0) if !buffer.is_empty() => return Err(closed()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_time_out(&error) => {
                    if self.watch.check().is_some() || self.heard.elapsed() >= self.silence {
                        let text = "no answer to the login";
                        return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                    }
                }
                other => return other,
            }
        }
    }
}
