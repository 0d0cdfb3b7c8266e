//! A controller for tests: TLS with its own certificate, the agent's requests kept, answers as a test wants them.
//!
//! What it remembers outlives a restart, as the real one's database does.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use agent_api::{Heartbeat, Note, Orders, Outcome, Redeem, Report, Session, WORK_WAIT_SECS, Work};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use axum_server::tls_rustls::RustlsConfig;
use ramdisk_agent::init::controller::Pin;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;
use tokio::time::timeout;

/// The secret of the only good ticket.
pub const SECRET: &str = "7e57ab1e";
const CREDENTIAL: &str = "c0ffee00";
/// How long anything may take that a test waits for.
const LIMIT: Duration = Duration::from_secs(60);

/// What the controller was told, and what it is to say.
#[derive(Debug, Default)]
pub struct Book {
    pub redemptions: Vec<Redeem>,
    pub heartbeats: Vec<Heartbeat>,
    pub reports: Vec<Report>,
    pub notes: Vec<(String, String)>,
    pub outcomes: Vec<(String, Outcome)>,
    pub log: String,
    /// Handed out in this order.
    pub work: VecDeque<Work>,
    /// Answers to redemptions before the good one.
    pub redeem_answers: VecDeque<StatusCode>,
    /// Answers to outcomes before the good one.
    pub outcome_answers: VecDeque<StatusCode>,
    pub cancel_job: Option<String>,
    pub is_revoked: bool,
}

type Shared = Arc<watch::Sender<Book>>;

/// The controller.
pub struct Server {
    book: Shared,
    tls: RustlsConfig,
    pub pin: Pin,
    address: SocketAddr,
    handle: axum_server::Handle<SocketAddr>,
}

impl Server {
    /// Starts one that hands out `work`.
    pub fn start(work: impl IntoIterator<Item = Work>) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["elsewhere".into()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let der: CertificateDer<'static> = certificate.der().clone();
        let pin = Pin::of(&der).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![der], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        let book = Book { work: work.into_iter().collect(), ..Book::default() };
        let mut server = Self {
            book: Arc::new(watch::Sender::new(book)),
            tls: RustlsConfig::from_config(Arc::new(tls)),
            pin,
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            handle: axum_server::Handle::new(),
        };
        server.listen();
        server
    }

    /// Listens, at first on a free port, later on the same one.
    pub fn listen(&mut self) {
        let listener = TcpListener::bind(self.address).unwrap();
        listener.set_nonblocking(true).unwrap();
        self.address = listener.local_addr().unwrap();
        self.handle = axum_server::Handle::new();
        let server = axum_server::from_tcp_rustls(listener, self.tls.clone())
            .unwrap()
            .handle(self.handle.clone())
            .serve(routes(Arc::clone(&self.book)).into_make_service());
        tokio::spawn(async { server.await.unwrap() });
    }

    /// Ends as if killed: connections are cut. Returns when nothing listens any more.
    pub async fn stop(&self) {
        self.handle.shutdown();
        let gone = async {
            while tokio::net::TcpStream::connect(self.address).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        timeout(LIMIT, gone).await.expect("the server goes on listening");
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Changes what it says from now on.
    pub fn set(&self, change: impl FnOnce(&mut Book)) {
        self.book.send_modify(change);
    }

    /// Waits until it was told something.
    pub async fn until(&self, what: &str, mut is_so: impl FnMut(&Book) -> bool) {
        let mut book = self.book.subscribe();
        if timeout(LIMIT, book.wait_for(|b| is_so(b))).await.is_err() {
            panic!("in vain waiting for: {what}; {:#?}", self.book.borrow());
        }
    }

    /// Looks into the book.
    pub fn read<T>(&self, look: impl FnOnce(&Book) -> T) -> T {
        look(&self.book.borrow())
    }
}

fn routes(book: Shared) -> Router {
    Router::new()
        .route("/v1/agent/redeem", post(redeem))
        .route("/v1/agent/work", get(work))
        .route("/v1/agent/heartbeat", post(heartbeat))
        .route("/v1/agent/log", post(log))
        .route("/v1/agent/jobs/{id}/report", post(report))
        .route("/v1/agent/jobs/{id}/outcome", post(outcome))
        .route("/v1/agent/jobs/{id}/note", post(job_note))
        .with_state(book)
}

fn problem(status: StatusCode) -> Response {
    (status, Json(serde_json::json!({ "title": "no", "detail": "because the test says so" })))
        .into_response()
}

/// Changes the book and says what follows from it.
fn note<T>(book: &Shared, change: impl FnOnce(&mut Book) -> T) -> T {
    let mut result = None;
    book.send_modify(|b| result = Some(change(b)));
    result.unwrap()
}

fn is_allowed(book: &Shared, headers: &HeaderMap) -> bool {
    let given = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    given == Some(&format!("Bearer {CREDENTIAL}")) && !book.borrow().is_revoked
}

fn orders(book: &Shared) -> Response {
    Json(Orders { cancel_job: book.borrow().cancel_job.clone() }).into_response()
}

async fn redeem(State(book): State<Shared>, Json(redeem): Json<Redeem>) -> Response {
    let is_good = redeem.secret == SECRET;
    let answer = note(&book, |b| {
        b.redemptions.push(redeem);
        b.redeem_answers.pop_front()
    });
    match answer {
        Some(status) => problem(status),
        None if !is_good => problem(StatusCode::FORBIDDEN),
        None => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
            Json(Session {
                credential: CREDENTIAL.into(),
                host: "node7".into(),
                // The right time: the agent would set this machine's clock to another.
                unix_time_secs: now.as_secs(),
                heartbeat_secs: 1,
            })
            .into_response()
        }
    }
}

async fn work(State(book): State<Shared>, headers: HeaderMap) -> Response {
    if !is_allowed(&book, &headers) {
        return problem(StatusCode::UNAUTHORIZED);
    }
    let mut changes = book.subscribe();
    let some = changes.wait_for(|b| !b.work.is_empty() || b.is_revoked);
    // Nothing came: idle.
    let _ = timeout(Duration::from_secs(WORK_WAIT_SECS), some).await;
    if !is_allowed(&book, &headers) {
        return problem(StatusCode::UNAUTHORIZED);
    }
    Json(note(&book, |b| b.work.pop_front()).unwrap_or(Work::Idle)).into_response()
}

async fn heartbeat(
    State(book): State<Shared>,
    headers: HeaderMap,
    Json(beat): Json<Heartbeat>,
) -> Response {
    if !is_allowed(&book, &headers) {
        return problem(StatusCode::UNAUTHORIZED);
    }
    note(&book, |b| b.heartbeats.push(beat));
    orders(&book)
}

async fn log(State(book): State<Shared>, headers: HeaderMap, lines: String) -> Response {
    if !is_allowed(&book, &headers) {
        return problem(StatusCode::UNAUTHORIZED);
    }
    note(&book, |b| b.log.push_str(&lines));
    StatusCode::NO_CONTENT.into_response()
}

async fn report(
    State(book): State<Shared>,
    headers: HeaderMap,
    Json(report): Json<Report>,
) -> Response {
    if !is_allowed(&book, &headers) {
        return problem(StatusCode::UNAUTHORIZED);
    }
    note(&book, |b| b.reports.push(report));
    orders(&book)
}

async fn job_note(
    State(book): State<Shared>,
    headers: HeaderMap,
    Path(id): Path<String>,
    Json(said): Json<Note>,
) -> Response {
    if !is_allowed(&book, &headers) {
        return problem(StatusCode::UNAUTHORIZED);
    }
    note(&book, |b| b.notes.push((id, said.text)));
    StatusCode::NO_CONTENT.into_response()
}

async fn outcome(
    State(book): State<Shared>,
    headers: HeaderMap,
    Path(id): Path<String>,
    Json(outcome): Json<Outcome>,
) -> Response {
    if !is_allowed(&book, &headers) {
        return problem(StatusCode::UNAUTHORIZED);
    }
    if let Some(status) = note(&book, |b| b.outcome_answers.pop_front()) {
        return problem(status);
    }
    note(&book, |b| b.outcomes.push((id, outcome)));
    orders(&book)
}
