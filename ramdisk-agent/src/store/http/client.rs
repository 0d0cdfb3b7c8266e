//! Requests to a web server over connections that are kept: one attempt each, with everything that only the client may know.
//!
//! It sends the credentials of the job's store to that store's server and nobody else, believes a server as [`tls`] says, and uses
//! connections again. [`Client::send`] makes one attempt; what its [`Trouble`] is worth, [`Attempts`](super::retry::Attempts) and the
//! caller decide. A request goes out a second time by itself only when a kept connection turns out to have been closed: callers
//! make requests that may be carried out twice.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use key_pin::{Pin, WrongKey};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::super::connect::{connect, resolve};
use super::super::watch::Watch;
use super::super::{HttpUrl, Options, Result, StoreError, StoreUrl};
use super::connection::Connection;
use super::head::Head;
use super::lanes::Lanes;
use super::status::{self, Place, Trouble};
use super::tls;
use super::transport::Transport;

/// How much of a body that is not data is looked at.
const MAX_DETAIL_LEN: usize = 8 << 10;

/// A request without what every request has.
pub(super) struct Request<'a> {
    pub(super) method: &'static str,
    pub(super) url: &'a HttpUrl,
    /// Names and values of further fields. Values hold no line breaks.
    pub(super) fields: &'a [(&'static str, String)],
    pub(super) body: &'a [u8],
}

/// A server, and how to talk to it.
pub(super) struct Client {
    /// What the job named; credentials are for its server.
    url: HttpUrl,
    authorization: Option<String>,
    /// The one key that the job's server may have.
    key: Option<Pin>,
    wrong_key: WrongKey,
    by_authorities: OnceLock<Arc<ClientConfig>>,
    by_key: OnceLock<Arc<ClientConfig>>,
    idle: Mutex<Vec<(HttpUrl, Connection)>>,
    has_connected: AtomicBool,
    silence: Duration,
    pub(super) watch: Arc<Watch>,
    /// How many requests may be under way.
    pub(super) lanes: Lanes,
}

/// An answer whose body is still to be read. Its connection is kept when the body was read to its end.
pub(super) struct Answer<'a> {
    pub(super) head: Head,
    client: &'a Client,
    url: HttpUrl,
    connection: Option<Connection>,
}

impl Client {
    /// A client for this URL's server, and for those that it redirects to.
    pub(super) fn new(url: &HttpUrl, options: &Options) -> Result<Self> {
        let place = Place { doing: "opening", url };
        let access = options.access_for(&StoreUrl::Http(url.clone()));
        let mut authorization = None;
        let mut key = None;
        if let Some(access) = access {
            let token = access.token.as_ref().map(|token| token.expose());
            let password = access.password.as_ref().map(|password| password.expose());
            authorization = self::authorization(place, token, access.user.as_deref(), password)?;
            key = access.tls_key.as_deref().map(|key| parse_key(place, key)).transpose()?;
        }
        Ok(Self {
            url: url.clone(),
            authorization,
            key,
            wrong_key: WrongKey::default(),
            by_authorities: OnceLock::new(),
            by_key: OnceLock::new(),
            idle: Mutex::default(),
            has_connected: AtomicBool::new(false),
            silence: options.silence,
            watch: Arc::new(Watch::new(
                format!("{} server {}", url.scheme(), url.server()),
                options,
            )),
            lanes: Lanes::new(options.http_connections),
        })
    }

    /// Whether credentials go with requests to this URL.
    pub(super) fn has_access(&self, url: &HttpUrl) -> bool {
        self.authorization.is_some() && url.is_same_origin(&self.url)
    }

    /// Sends a request and waits for the head of its answer, whatever that says. Redirections are not followed.
    pub(super) fn send(&self, request: &Request<'_>) -> Result<Answer<'_>, Trouble> {
        let url = request.url;
        let head = self.request_head(request);
        loop {
            let mut connection = match self.take_idle(url) {
                Some(connection) => connection,
                None => self.connect(url)?,
            };
            let sent = connection.send(head.as_bytes(), request.body);
            // A server that refuses a body may say why before it has read all of it.
            let received = match sent {
                Err(error) if connection.is_reused || request.body.is_empty() => Err(error),
                Err(error) => connection.receive_head().map_err(|_| error),
                Ok(()) => connection.receive_head(),
            };
            match received {
                Ok(head) => {
                    self.has_connected.store(true, Ordering::Relaxed);
                    connection.is_reused = true;
                    let connection = Some(connection);
                    return Ok(Answer { head, client: self, url: url.clone(), connection });
                }
                // The server had closed it: that says nothing about the server.
                Err(error)
                    if connection.is_reused
                        && !connection.has_answered
                        && error.kind() != io::ErrorKind::TimedOut =>
                {
                    self.lock_idle().retain(|(idle, _)| !idle.is_same_origin(url));
                }
                Err(error) => return Err(self.trouble(url, error)),
            }
        }
    }

    /// The trouble in an answer that holds nothing of what was asked for.
    pub(super) fn refused(&self, place: Place<'_>, mut answer: Answer<'_>) -> Trouble {
        let detail = answer.beginning();
        let detail = String::from_utf8_lossy(&detail);
        status::trouble(place, &answer.head, &detail, self.has_access(&answer.url))
    }

    fn request_head(&self, request: &Request<'_>) -> String {
        let url = request.url;
        let mut head = format!(
            "{} {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: {}\r\nAccept: */*\r\nAccept-Encoding: identity\r\n",
            request.method,
            url.target(),
            url.host_field(),
            concat!("imprint-agent/", env!("CARGO_PKG_VERSION")),
        );
        let mut field = |name: &str, value: &str| {
            head.push_str(name);
            head.push_str(": ");
            head.push_str(value);
            head.push_str("\r\n");
        };
        if let Some(authorization) = &self.authorization
            && self.has_access(url)
        {
            field("Authorization", authorization);
        }
        for (name, value) in request.fields {
            field(name, value);
        }
        if !request.body.is_empty() || matches!(request.method, "PUT" | "POST" | "PATCH") {
            field("Content-Length", &request.body.len().to_string());
        }
        head.push_str("\r\n");
        head
    }

    fn connect(&self, url: &HttpUrl) -> Result<Connection, Trouble> {
        let addresses = match resolve(&url.host, &self.watch) {
            Ok(addresses) => addresses,
            // A name server may be down for a while; at the first contact the name is likelier wrong.
            Err(error) if self.has_connected.load(Ordering::Relaxed) => {
                return Err(io::Error::other(error).into());
            }
            Err(error) => return Err(Trouble::Final(error)),
        };
        let tls = if url.is_tls { Some(self.tls_for(url)?) } else { None };
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in addresses {
            match connect(SocketAddr::new(address, url.port()), &self.watch) {
                Ok(socket) => {
                    let transport =
                        Transport::new(socket, tls).map_err(|e| self.trouble(url, e))?;
                    return Ok(Connection::new(transport, Arc::clone(&self.watch), self.silence));
                }
                Err(error) => last = error,
            }
        }
        Err(last.into())
    }

    fn tls_for(&self, url: &HttpUrl) -> Result<(Arc<ClientConfig>, ServerName<'static>), Trouble> {
        let name = ServerName::try_from(url.host.clone()).map_err(|_| {
            let reason = "its name cannot stand in a certificate".to_owned();
            Trouble::Final(StoreError::Untrusted { server: server(url), reason })
        })?;
        let config = match self.key {
            Some(key) if url.is_same_origin(&self.url) => {
                Arc::clone(self.by_key.get_or_init(|| tls::by_key(key, &self.wrong_key)))
            }
            _ => match self.by_authorities.get() {
                Some(config) => Arc::clone(config),
                None => {
                    let config = tls::by_authorities().map_err(Trouble::Final)?;
                    Arc::clone(self.by_authorities.get_or_init(|| config))
                }
            },
        };
        Ok((config, name))
    }

    /// What a failed connection is worth.
    fn trouble(&self, url: &HttpUrl, error: io::Error) -> Trouble {
        let refusal = error.get_ref().and_then(|inner| inner.downcast_ref()).and_then(|error| {
            let wrong = *self.wrong_key.lock().unwrap_or_else(PoisonError::into_inner);
            tls::refusal(error, wrong)
        });
        match refusal {
            Some(reason) => Trouble::Final(StoreError::Untrusted { server: server(url), reason }),
            None => error.into(),
        }
    }

    fn take_idle(&self, url: &HttpUrl) -> Option<Connection> {
        let mut idle = self.lock_idle();
        while let Some(at) = idle.iter().rposition(|(other, _)| other.is_same_origin(url)) {
            let (_, connection) = idle.swap_remove(at);
            if connection.is_reusable() {
                return Some(connection);
            }
        }
        None
    }

    fn lock_idle(&self) -> MutexGuard<'_, Vec<(HttpUrl, Connection)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Answer<'_> {
    /// Reads some of the body; 0 is its end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(connection) = &mut self.connection else { return Ok(0) };
        let read = connection.read_body(buffer);
        if read.is_err() {
            self.connection = None;
        }
        read
    }

    /// The beginning of a body that is not data, or what can be had of it.
    fn beginning(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; MAX_DETAIL_LEN];
        let mut len = 0;
        while let Ok(read @ 1..) = self.read(&mut bytes[len..]) {
            len += read;
        }
        bytes.truncate(len);
        bytes
    }

    /// Passes over a short body that nobody wants, so that the connection can be used again.
    pub(super) fn skip(&mut self) {
        self.beginning();
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take()
            && connection.is_reusable()
        {
            self.client.lock_idle().push((self.url.clone(), connection));
        }
    }
}

fn server(url: &HttpUrl) -> String {
    format!("the server {}", url.server())
}

fn parse_key(place: Place<'_>, key: &str) -> Result<Pin> {
    key.parse().map_err(|error| place.denied(format!("the tls_key that was given is {error}")))
}

/// The value of the field `Authorization`. Secrets only go where nobody else can read them.
fn authorization(
    place: Place<'_>,
    token: Option<&str>,
    user: Option<&str>,
    password: Option<&str>,
) -> Result<Option<String>> {
    let value = match (token, user) {
        (Some(token), _) if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) => {
            return Err(place
                .denied("the token that was given has blanks or other signs that no token has"));
        }
        (Some(token), _) => format!("Bearer {token}"),
        (None, Some(user)) if user.contains(':') => {
            return Err(place.denied("a user's name has no ':' (HTTP's Basic authentication)"));
        }
        (None, Some(user)) => {
            let both = format!("{user}:{}", password.unwrap_or_default());
            format!("Basic {}", BASE64_STANDARD.encode(both))
        }
        (None, None) if password.is_some() => {
            return Err(place.denied(
                "a password was given, and no user: give that too, as user= or IMPRINT_STORE_USER, or neither",
            ));
        }
        (None, None) => return Ok(None),
    };
    if !place.url.is_tls && !place.url.is_loopback() {
        return Err(place.denied(
            "credentials are not sent over http://, where everybody on the way reads them: use https://",
        ));
    }
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(url: &str, token: Option<&str>, user: Option<&str>) -> Result<Option<String>> {
        let StoreUrl::Http(url) = url.parse().unwrap() else { panic!("{url}") };
        let password = (token.is_some() || user.is_some()).then_some("pässword");
        authorization(Place { doing: "opening", url: &url }, token, user, password)
    }

    #[test]
    fn secrets_go_only_where_nobody_listens() {
        assert_eq!(of("http://h/x", None, None).unwrap(), None);
        assert_eq!(of("https://h/x", Some("t0ken"), Some("u")).unwrap().unwrap(), "Bearer t0ken");
        let basic = format!("Basic {}", BASE64_STANDARD.encode("u:pässword"));
        assert_eq!(of("http://127.0.0.1/x", None, Some("u")).unwrap().unwrap(), basic);
        for (token, user) in [(Some("t0ken"), None), (None, Some("us3r"))] {
            let error = of("http://10.0.0.1/x", token, user).unwrap_err();
            assert_eq!(error.kind(), agent_api::ErrorKind::Refused);
            let text = error.to_string();
            assert!(text.contains("use https://"), "{text}");
            assert!(!text.contains("t0ken") && !text.contains("pässword"), "{text}");
        }
    }

    #[test]
    fn what_would_break_a_request_is_refused() {
        assert!(of("https://h/x", Some("a\r\nX: y"), None).is_err());
        assert!(of("https://h/x", Some(""), None).is_err());
        assert!(of("https://h/x", None, Some("a:b")).is_err());
        let StoreUrl::Http(url) = "https://h/x".parse().unwrap() else { panic!() };
        let place = Place { doing: "opening", url: &url };
        let error = authorization(place, None, None, Some("pässword")).unwrap_err().to_string();
        assert!(error.contains("and no user") && !error.contains("pässword"), "{error}");
    }
}
