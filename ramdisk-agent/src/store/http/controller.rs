//! The controller's own store, as its API tells it: what an upload is, and what the controller's refusals mean.
//!
//! One request at a time, tried again for as long as the budget allows: each of them may be carried out twice. What an answer means for
//! the bytes of an image is the [`writer`](super::writer)'s business. Other web servers are recognised by not knowing these requests.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::super::{Entry, HttpUrl, PARTIAL_SUFFIX, Result, StoreError};
use super::client::{Answer, Client, Request};
use super::retry::Attempts;
use super::status::{Place, Trouble};

/// The longest answer that is read: a list of some ten thousand files.
const MAX_ANSWER_LEN: usize = 4 << 20;
/// Says where the first byte of a piece belongs.
pub(super) const UPLOAD_OFFSET: &str = "Upload-Offset";

/// How far an upload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct Upload {
    pub(super) received_bytes: u64,
    pub(super) durable_bytes: u64,
    pub(super) is_published: bool,
}

/// A file in the list of a store.
#[derive(Debug, Deserialize)]
struct File {
    name: String,
    len_bytes: u64,
    is_partial: bool,
}

/// Why a request was not carried out.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The controller says so, by the code of its problem document.
    Code(String),
    /// Anything else.
    Trouble(Trouble),
}

impl From<Trouble> for Refusal {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl Refusal {
    /// What is left to say when nobody knows better.
    pub(super) fn into_error(self, place: Place<'_>) -> StoreError {
        let url = place.url.to_string();
        match self {
            Self::Trouble(Trouble::Final(error)) => error,
            Self::Trouble(Trouble::Passing { error, .. }) => {
                StoreError::Io { doing: place.doing, url, source: error }
            }
            Self::Code(code) => match code.as_str() {
                "no_space" => StoreError::NoSpace { url },
                "file_exists" => StoreError::Exists { url },
                "being_written" => StoreError::BeingWritten { url },
                "no_upload" => StoreError::Lost { url },
                "wrong_file" => {
                    place.denied("the controller lets this job do that with its own image only")
                }
                // Nothing else of these requests is somebody's choice.
                "invalid" => place.denied(
                    "the controller does not take this name: it has 1 to 128 letters, digits, '.', '_' and '-', and begins with a letter or a digit",
                ),
                "upload_broken" => place.server(
                    "the controller's disk failed to keep what it was sent: look at its log",
                ),
                "store_read_only" => place.denied(
                    "the file system of the controller's store is mounted read-only: see why on its machine, and mount it writable",
                ),
                "file_in_use" => place.denied(
                    "it is an image of the controller's catalogue: `imprint image rm` removes it",
                ),
                _ => place.server(format!("it refuses: {code}")),
            },
        }
    }
}

/// One attempt: the answer's JSON, or why there is none.
pub(super) fn attempt<T: DeserializeOwned>(
    client: &Client,
    doing: &'static str,
    request: &Request<'_>,
) -> Result<T, Refusal> {
    let place = Place { doing, url: request.url };
    let mut answer = client.send(request)?;
    let status = answer.head.status;
    if !(200..=299).contains(&status) {
        return Err(refusal(client, place, answer));
    }
    let body = read_all(place, &mut answer)?;
    // No answer is as good as null; one that a controller does not give is somebody else's.
    let body = if body.is_empty() { b"null" } else { body.as_slice() };
    serde_json::from_slice(body).map_err(|_| Trouble::Final(only_read(place.url)).into())
}

fn read_all(place: Place<'_>, answer: &mut Answer<'_>) -> Result<Vec<u8>, Trouble> {
    let mut body = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let read = answer.read(&mut chunk)?;
        if read == 0 {
            return Ok(body);
        }
        if body.len() + read > MAX_ANSWER_LEN {
            return Err(Trouble::Final(
                place.protocol("it is longer than any answer of a controller"),
            ));
        }
        body.extend_from_slice(&chunk[..read]);
    }
}

fn refusal(client: &Client, place: Place<'_>, mut answer: Answer<'_>) -> Refusal {
    #[derive(Deserialize)]
    struct Problem {
        code: String,
    }
    let status = answer.head.status;
    // Of these the status says as much, and more of it is known there.
    if matches!(status, 401 | 408 | 429 | 500 | 502..=504) {
        return client.refused(place, answer).into();
    }
    let problem = read_all(place, &mut answer)
        .ok()
        .and_then(|body| serde_json::from_slice::<Problem>(&body).ok())
        .filter(|problem| problem.code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
    match problem {
        Some(problem) => Refusal::Code(problem.code),
        None if matches!(status, 400 | 403..=405 | 409 | 411 | 415 | 501) => {
            Trouble::Final(only_read(place.url)).into()
        }
        None => client.refused(place, answer).into(),
    }
}

/// What is said when something else than reading is asked of a web server that is no controller.
pub(super) fn only_read(url: &HttpUrl) -> StoreError {
    let reason = "a web server is only read from, image by image: nothing is listed, written or removed there. `imprint-agent inspect` takes an image's own URL; what is to be written goes to a folder or a share of that machine (a path, nfs://, smb://) or to a controller's own store (https://HOST:8443/v1/stores/local/files/NAME)";
    StoreError::Unsupported { url: url.to_string(), reason: reason.to_owned() }
}

/// Sends a request until it is answered, within the budget.
pub(super) fn call<T: DeserializeOwned>(
    client: &Client,
    doing: &'static str,
    request: &Request<'_>,
) -> Result<T, Refusal> {
    client.watch.began();
    let result = call_unwatched(client, doing, request);
    match &result {
        Ok(_) | Err(Refusal::Code(_)) => client.watch.answered(),
        Err(Refusal::Trouble(_)) => client.watch.gave_up(),
    }
    result
}

/// Asks until there is an answer by which nothing gets further, so that it is no progress of what else waits for one.
pub(super) fn ask<T: DeserializeOwned>(
    client: &Client,
    doing: &'static str,
    request: &Request<'_>,
) -> Result<T, Refusal> {
    client.watch.asks();
    let result = call_unwatched(client, doing, request);
    client.watch.asked(matches!(&result, Ok(_) | Err(Refusal::Code(_))));
    result
}

fn call_unwatched<T: DeserializeOwned>(
    client: &Client,
    doing: &'static str,
    request: &Request<'_>,
) -> Result<T, Refusal> {
    let place = Place { doing, url: request.url };
    let mut attempts = Attempts::default();
    loop {
        match attempt(client, doing, request) {
            Err(Refusal::Trouble(trouble)) => {
                attempts.pause(&client.watch, place, trouble).map_err(Trouble::Final)?;
            }
            result => return result,
        }
    }
}

/// The files of a controller's store.
pub(super) fn list(client: &Client, folder: &HttpUrl) -> Result<Vec<Entry>> {
    let doing = "listing";
    let request = Request { method: "GET", url: folder, fields: &[], body: &[] };
    let files: Vec<File> = call(client, doing, &request)
        .map_err(|refusal| refusal.into_error(Place { doing, url: folder }))?;
    let name = |file: File| {
        let suffix = if file.is_partial { PARTIAL_SUFFIX } else { "" };
        Entry { name: file.name + suffix, len_bytes: file.len_bytes }
    };
    Ok(files.into_iter().map(name).collect())
}

/// Removes a file of a controller's store.
pub(super) fn remove(client: &Client, url: &HttpUrl) -> Result<()> {
    let doing = "removing";
    let request = Request { method: "DELETE", url, fields: &[], body: &[] };
    match call::<()>(client, doing, &request) {
        Err(Refusal::Code(code)) if code == "not_found" => {
            Err(StoreError::NotFound { url: url.to_string() })
        }
        result => result.map_err(|refusal| refusal.into_error(Place { doing, url })),
    }
}
