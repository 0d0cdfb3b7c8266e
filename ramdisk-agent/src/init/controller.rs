//! The controller, as the agent calls it: HTTPS to one pinned key, every request with a time limit, every answer with a size
//! limit.
//!
//! No proxy, no redirects, no retries: who calls decides what an error means ([`CallError`] says whether the controller was not
//! reached, or said no). Secrets go into requests and nowhere else.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use agent_api::{Heartbeat, Note, Orders, Outcome, Redeem, Report, Session, WORK_WAIT_SECS, Work};
use key_pin::WrongKey;
pub use key_pin::{Pin, PinError};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Method, RequestBuilder, StatusCode, Url, redirect};
use serde::de::DeserializeOwned;

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// The controller holds a question for work this long; then it answers.
const WORK_LIMIT: Duration = Duration::from_secs(WORK_WAIT_SECS + 15);
/// The longest answer that is read.
const MAX_ANSWER_LEN: usize = 1 << 20;
/// How much of a refusal's text goes into a message.
const MAX_DETAIL_LEN: usize = 200;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer: the network, the controller or its host is down.
    #[error("the controller at {url} does not answer")]
    Unreachable {
        /// Its base URL.
        url: String,
        /// What went wrong.
        #[source]
        source: reqwest::Error,
    },
    /// Somebody else answers.
    #[error("the server at {url} has the key {found}, not the pinned one: not talking to it")]
    WrongKey {
        /// The base URL.
        url: String,
        /// The key that it showed.
        found: Pin,
    },
    /// The controller said no.
    #[error("the controller answers {status}{}", .detail.as_deref().map(|d| format!(": {d}")).unwrap_or_default())]
    Refused {
        /// The status.
        status: StatusCode,
        /// Its explanation.
        detail: Option<String>,
    },
    /// The answer is not what was asked for.
    #[error("the controller's answer makes no sense")]
    Nonsense(#[source] serde_json::Error),
    /// The answer is too long.
    #[error("the controller's answer is longer than {MAX_ANSWER_LEN} bytes")]
    TooLong,
}

impl CallError {
    /// Whether the controller, and not the network, rejects this agent for good: its credential is void.
    #[must_use]
    pub fn is_revocation(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if matches!(status.as_u16(), 401 | 403))
    }

    /// Whether saying the same again is pointless: the controller was reached and rejects the request itself.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Refused { status, .. }
            if status.is_client_error() && !matches!(status.as_u16(), 408 | 425 | 429))
    }
}

/// Why there can be no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The base URL.
    #[error("'{0}' is no URL of a controller")]
    Url(String),
    /// TLS.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    /// HTTP.
    #[error("cannot set up HTTP")]
    Http(#[source] reqwest::Error),
}

/// A client of one controller; clones share its connections and its credential.
#[derive(Clone)]
pub struct Controller {
    base: Url,
    http: Client,
    credential: Arc<RwLock<Option<String>>>,
    wrong_key: WrongKey,
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}

impl Controller {
    /// A client for the controller at `base` whose key has `pin`.
    pub fn new(base: &str, pin: Pin) -> Result<Self, ClientError> {
        let base: Url = format!("{}/", base.trim_end_matches('/'))
            .parse()
            .map_err(|_| ClientError::Url(base.to_owned()))?;
        let wrong_key = WrongKey::default();
        let tls = key_pin::client_config(pin, &wrong_key).map_err(ClientError::Tls)?;
        let http = Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .no_proxy()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_LIMIT)
            .tcp_keepalive(Duration::from_secs(15))
            .user_agent(concat!("imprint-agent/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(ClientError::Http)?;
        Ok(Self { base, http, credential: Arc::default(), wrong_key })
    }

    /// The controller's base URL, for messages.
    #[must_use]
    pub fn url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// Turns a ticket into a session; the credential is kept for the later calls.
    pub async fn redeem(&self, redeem: &Redeem) -> Result<Session, CallError> {
        let request =
            self.request(Method::POST, "v1/agent/redeem").json(redeem).timeout(CALL_LIMIT);
        let session: Session = self.json(request).await?;
        *self.credential.write().unwrap_or_else(PoisonError::into_inner) =
            Some(session.credential.clone());
        Ok(session)
    }

    /// Asks for work; the controller answers when it has some, or after [`WORK_WAIT_SECS`].
    pub async fn work(&self) -> Result<Work, CallError> {
        self.json(self.request(Method::GET, "v1/agent/work").timeout(WORK_LIMIT)).await
    }

    /// Says that this agent lives.
    pub async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<Orders, CallError> {
        self.json(
            self.request(Method::POST, "v1/agent/heartbeat").json(heartbeat).timeout(CALL_LIMIT),
        )
        .await
    }

    /// Says how far a job has come.
    pub async fn report(&self, job: &str, report: &Report) -> Result<Orders, CallError> {
        self.json(self.job_request(job, "report").json(report).timeout(CALL_LIMIT)).await
    }

    /// Says how a job ended.
    pub async fn outcome(&self, job: &str, outcome: &Outcome) -> Result<Orders, CallError> {
        self.json(self.job_request(job, "outcome").json(outcome).timeout(CALL_LIMIT)).await
    }

    /// Says something about a job whose work is done.
    pub async fn note(&self, job: &str, note: &Note) -> Result<(), CallError> {
        self.send(self.job_request(job, "note").json(note).timeout(CALL_LIMIT)).await.map(drop)
    }

    /// Sends lines of the log.
    pub async fn log(&self, lines: String) -> Result<(), CallError> {
        let request = self
            .request(Method::POST, "v1/agent/log")
            .header(CONTENT_TYPE, "text/plain; charset=utf-8")
            .body(lines)
            .timeout(CALL_LIMIT);
        self.send(request).await.map(drop)
    }

    fn job_request(&self, job: &str, what: &str) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["v1", "agent", "jobs", job, what]);
        }
        self.authorized(self.http.request(Method::POST, url))
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path.split('/'));
        }
        self.authorized(self.http.request(method, url))
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match self.credential.read().unwrap_or_else(PoisonError::into_inner).as_deref() {
            // Marked sensitive by reqwest: it stays out of debug output.
            Some(credential) => request.bearer_auth(credential),
            None => request,
        }
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, CallError> {
        serde_json::from_slice(&self.send(request).await?).map_err(CallError::Nonsense)
    }

    /// Sends a request and reads its whole answer.
    async fn send(&self, request: RequestBuilder) -> Result<Vec<u8>, CallError> {
        let mut response = request.send().await.map_err(|e| self.unreachable(e))?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.unreachable(e))? {
            if body.len().saturating_add(chunk.len()) > MAX_ANSWER_LEN {
                return Err(CallError::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() {
            Ok(body)
        } else {
            Err(CallError::Refused { status, detail: detail(&body) })
        }
    }

    fn unreachable(&self, source: reqwest::Error) -> CallError {
        let url = self.url().to_owned();
        let wrong = Mutex::lock(&self.wrong_key).unwrap_or_else(PoisonError::into_inner).take();
        match wrong {
            Some(found) => CallError::WrongKey { url, found },
            // The URL is in the message already.
            None => CallError::Unreachable { url, source: source.without_url() },
        }
    }
}

/// The explanation in a refusal: the `detail` or `title` of a problem document (RFC 9457), or the text itself.
fn detail(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Problem {
        detail: Option<String>,
        title: Option<String>,
    }
    let text = match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => problem.detail.or(problem.title)?,
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let text: String = text.trim().chars().take(MAX_DETAIL_LEN).collect();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_from_troubles() {
        let refused = |code: u16| CallError::Refused {
            status: StatusCode::from_u16(code).unwrap(),
            detail: None,
        };
        assert!(refused(401).is_revocation() && refused(403).is_revocation());
        for code in [404, 409, 429, 500, 503] {
            assert!(!refused(code).is_revocation(), "{code}");
        }
        assert!(refused(404).is_final() && refused(409).is_final());
        assert!(!refused(429).is_final() && !refused(503).is_final());
        assert!(!CallError::TooLong.is_final());
    }

    #[test]
    fn a_problem_document_gives_its_detail() {
        assert_eq!(
            detail(br#"{"title":"Conflict","detail":"used before"}"#).as_deref(),
            Some("used before")
        );
        assert_eq!(detail(br#"{"title":"Conflict"}"#).as_deref(), Some("Conflict"));
        assert_eq!(detail(b"plain\n").as_deref(), Some("plain"));
        assert_eq!(detail(b""), None);
    }

    #[test]
    fn a_jobs_name_cannot_leave_its_place_in_the_path() {
        let pin = "00".repeat(32).parse().unwrap();
        let controller = Controller::new("https://10.0.0.1:8443/imprint", pin).unwrap();
        let request = controller.job_request("../../x y?z", "report").build().unwrap();
        assert_eq!(request.url().path(), "/imprint/v1/agent/jobs/..%2F..%2Fx%20y%3Fz/report");
    }
}
