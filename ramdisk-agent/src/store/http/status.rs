//! What an answer's status means for the one who asked: try again, or give up and say why.

use std::io;
use std::time::Duration;

use super::super::{HttpUrl, StoreError};
use super::head::Head;

/// So many characters of what a controller says are shown.
const MAX_SHOWN_LEN: usize = 500;

/// Why a request brought no bytes, or fewer than it should.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It may pass: a connection broke, or the server is busy.
    Passing {
        error: io::Error,
        /// The server's own idea of when to come back.
        after: Option<Duration>,
    },
    /// Saying the same again is pointless.
    Final(StoreError),
}

/// What is being done to what, for messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) doing: &'static str,
    pub(super) url: &'a HttpUrl,
}

impl Place<'_> {
    pub(super) fn protocol(self, reason: impl Into<String>) -> StoreError {
        StoreError::Protocol { doing: self.doing, url: self.url.to_string(), reason: reason.into() }
    }

    pub(super) fn server(self, status: impl Into<String>) -> StoreError {
        StoreError::Server { doing: self.doing, url: self.url.to_string(), status: status.into() }
    }

    pub(super) fn denied(self, reason: impl Into<String>) -> StoreError {
        StoreError::Denied { doing: self.doing, url: self.url.to_string(), reason: reason.into() }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Passing { error, after: None }
    }
}

/// Whether a server that answers so may do what it was asked for a little later.
pub(super) fn may_pass(status: u16) -> bool {
    // 501, 505, 507, 508, 510 and 511 say that it will not.
    matches!(status, 408 | 425 | 429 | 500 | 502..=504 | 509 | 520..=599)
}

/// The trouble that an answer is which holds nothing of what was asked for. `detail` is the beginning of its body; it is looked at
/// and, but for what a controller says of its disk, never shown, since some servers repeat the request's secrets in it. `has_access`:
/// credentials went with the request.
pub(super) fn trouble(place: Place<'_>, head: &Head, detail: &str, has_access: bool) -> Trouble {
    let status = head.status_text();
    if head.status == 500
        && let Some(why) = failed_disk(place, detail)
    {
        return Trouble::Final(
            place.server(format!("{status}: {why}; look at the controller's disk and its log")),
        );
    }
    if may_pass(head.status) {
        let error = io::Error::other(format!("the server answered {status}"));
        return Trouble::Passing { error, after: head.retry_after(jiff::Timestamp::now()) };
    }
    let url = place.url.to_string();
    Trouble::Final(match head.status {
        401 if has_access => place.denied(format!(
            "the server answered {status}: user and password, or the token, are not what it wants"
        )),
        401 => place.denied(format!(
            "the server answered {status}: it wants credentials; give a user and a password, or a token, with --credentials"
        )),
        403 if place.url.has_query() && is_expired(detail) => place.denied(format!(
            "the server answered {status}: the presigned URL has expired; make a new one"
        )),
        403 if place.url.has_query() => place.denied(format!(
            "the server answered {status}: if the URL is a presigned one, it may have expired or be for another request than GET; make a new one"
        )),
        403 => place.denied(format!(
            "the server answered {status}: look at who may read it, and give credentials for one who may"
        )),
        404 | 410 => StoreError::NotFound { url },
        412 => StoreError::Replaced { url },
        _ => StoreError::Server { doing: place.doing, url, status },
    })
}

/// What a controller says whose store failed, which asking again will not mend. Of other servers a 500 may be anything, and pass.
fn failed_disk(place: Place<'_>, detail: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Problem {
        code: String,
        detail: String,
    }
    let problem: Problem = serde_json::from_str(detail).ok()?;
    // No controller has a query, in which secrets could be that are repeated here.
    (problem.code == "store_failed" && !place.url.has_query())
        .then(|| problem.detail.chars().filter(|c| !c.is_control()).take(MAX_SHOWN_LEN).collect())
}

/// The words of S3, Google and Azure.
fn is_expired(detail: &str) -> bool {
    let detail = detail.to_ascii_lowercase();
    ["expired", "signed expiry time"].iter().any(|word| detail.contains(word))
}

#[cfg(test)]
mod tests {
    use agent_api::ErrorKind;

    use super::super::super::StoreUrl;
    use super::*;

    fn of(url: &str, status: u16, detail: &str, has_access: bool) -> Trouble {
        let StoreUrl::Http(url) = url.parse().unwrap() else { panic!("{url}") };
        let head = format!("HTTP/1.1 {status} x\r\nRetry-After: 7\r\n\r\n");
        let head = Head::parse(head.as_bytes()).unwrap().unwrap().0;
        trouble(Place { doing: "reading", url: &url }, &head, detail, has_access)
    }

    fn refused(url: &str, status: u16, detail: &str, has_access: bool) -> (ErrorKind, String) {
        match of(url, status, detail, has_access) {
            Trouble::Final(error) => (error.kind(), error.to_string()),
            passing @ Trouble::Passing { .. } => panic!("{status}: {passing:?}"),
        }
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        for status in [408, 425, 429, 500, 502, 503, 504, 520] {
            let Trouble::Passing { after, .. } = of("http://h/x", status, "", false) else {
                panic!("{status}")
            };
            assert_eq!(after, Some(Duration::from_secs(7)), "{status}");
        }
    }

    #[test]
    fn a_controller_whose_disk_fails_is_not_asked_again() {
        let problem = |code| {
            format!(r#"{{"status":500,"code":"{code}","title":"t","detail":"reading x:\nEIO"}}"#)
        };
        let (kind, text) = refused("https://h/x", 500, &problem("store_failed"), true);
        assert_eq!(kind, ErrorKind::Store);
        assert!(text.contains("reading x:EIO; look at the controller's disk"), "{text}");
        for (url, status, detail) in [
            ("https://h/x?s=1", 500, problem("store_failed")),
            ("https://h/x", 503, problem("store_failed")),
            ("https://h/x", 500, problem("internal")),
            ("https://h/x", 500, "store_failed".to_owned()),
        ] {
            let trouble = of(url, status, &detail, true);
            assert!(matches!(trouble, Trouble::Passing { .. }), "{trouble:?}");
        }
    }

    #[test]
    fn refusals_say_what_to_do() {
        let (kind, text) = refused("https://h/x", 401, "", false);
        assert_eq!(kind, ErrorKind::Refused);
        assert!(text.contains("--credentials"), "{text}");
        assert!(refused("https://h/x", 401, "", true).1.contains("not what it wants"));
        let (kind, text) = refused("https://h/x", 403, "", true);
        assert_eq!(kind, ErrorKind::Refused);
        assert!(text.contains("who may read it"), "{text}");
        let text = refused("https://h/x?s=1", 403, "<Message>Request has expired</Message>", false);
        assert!(text.1.contains("has expired; make a new one"), "{text:?}");
        assert!(refused("https://h/x?s=1", 403, "", false).1.contains("may have expired"));
        for status in [404, 410] {
            assert_eq!(refused("https://h/x", status, "", false).0, ErrorKind::NotFound);
        }
        assert_eq!(refused("https://h/x", 412, "", false).0, ErrorKind::Store);
        for status in [400, 405, 501, 505] {
            let (kind, text) = refused("https://h/x", status, "", false);
            assert_eq!(kind, ErrorKind::Store);
            assert!(text.contains(&status.to_string()), "{text}");
        }
    }
}
