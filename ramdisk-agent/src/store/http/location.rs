//! Where an image is at the moment: at its URL, or where the server redirected to.
//!
//! A redirection is followed once and remembered, so that not every range costs two requests. When the place that it led to refuses
//! later, as presigned URLs do when they expire, the image's own URL is asked again.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::{HttpUrl, UrlError, shown};
use super::client::{Answer, Client, Request};
use super::status::{Place, Trouble};

/// The most redirections in a row.
const MAX_REDIRECTIONS: u32 = 5;

/// An image's URL, and where it led to.
#[derive(Debug)]
pub(super) struct Location {
    own: HttpUrl,
    found: Mutex<Option<HttpUrl>>,
}

impl Location {
    pub(super) fn new(own: HttpUrl) -> Self {
        Self { own, found: Mutex::default() }
    }

    /// Asks with GET, along redirections. Credentials stay with the server that they are for.
    pub(super) fn get<'a>(
        &self,
        client: &'a Client,
        doing: &'static str,
        fields: &[(&'static str, String)],
    ) -> Result<Answer<'a>, Trouble> {
        let mut url = self.lock().clone().unwrap_or_else(|| self.own.clone());
        for _ in 0..=MAX_REDIRECTIONS {
            let request = Request { method: "GET", url: &url, fields, body: &[] };
            let mut answer = client.send(&request)?;
            if !matches!(answer.head.status, 301..=303 | 307 | 308) {
                if url != self.own {
                    *self.lock() = Some(url);
                }
                return Ok(answer);
            }
            url = redirected(Place { doing, url: &url }, answer.head.field("location"))?;
            answer.skip();
        }
        let place = Place { doing, url: &self.own };
        Err(Trouble::Final(
            place.protocol(format!("it redirects more than {MAX_REDIRECTIONS} times")),
        ))
    }

    /// Forgets where a redirection led to; whether there was one.
    pub(super) fn forget(&self) -> bool {
        self.lock().take().is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Option<HttpUrl>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An address of a server's choice as it may be shown: without what may be secret in it, and not at any length.
fn named(location: &str) -> String {
    const MOST: usize = 200;
    let shown = shown(location);
    let end = shown.find(['?', '#']);
    let place = &shown[..end.unwrap_or(shown.len())];
    let place = match place.rsplit_once('@') {
        Some((_, place)) if !place.is_empty() => format!("…@{place}"),
        _ => place.to_owned(),
    };
    let cut = if place.chars().count() > MOST || end.is_some() { "…" } else { "" };
    let place: String = place.chars().filter(|c| !c.is_control()).take(MOST).collect();
    format!("{place}{cut}")
}

fn redirected(place: Place<'_>, location: Option<&str>) -> Result<HttpUrl, Trouble> {
    let Some(location) = location else {
        return Err(Trouble::Final(place.protocol("it redirects without saying where to")));
    };
    let to = place.url.resolve(location).map_err(|error| {
        // What the address holds may be secret, and is the server's doing.
        let why = match error {
            UrlError::Scheme { .. } => "that is no http:// or https:// address, and others are not followed",
            UrlError::Credentials => "a user or a password stands in that address, and is not taken from there",
            _ => "that is no address that an image could have",
        };
        Trouble::Final(place.denied(format!(
            "the server redirects to {}: {why}; look at its configuration, or give the URL of the image itself",
            named(location)
        )))
    })?;
    if place.url.is_tls && !to.is_tls {
        return Err(Trouble::Final(place.denied(format!(
            "it redirects to {to}, where nothing protects the connection; a redirection from https to http is not followed"
        ))));
    }
    Ok(to)
}

#[cfg(test)]
mod tests {
    use agent_api::ErrorKind;

    use super::super::super::StoreUrl;
    use super::*;

    #[test]
    fn where_a_redirection_must_not_lead_is_said_with_what_to_do() {
        let StoreUrl::Http(url) = "https://h/a/x.img.zst".parse().unwrap() else { panic!() };
        let place = Place { doing: "opening", url: &url };
        assert_eq!(redirected(place, Some("../y")).unwrap().to_string(), "https://h/y");
        for (location, words) in [
            ("file:///etc/shadow", "redirects to file:///etc/shadow: that is no http:// or"),
            ("nfs://nas/images/x", "redirects to nfs://nas/images/x: that is no http:// or"),
            ("FTP://h/x?5ecre7", "redirects to FTP://h/x…: that is no http:// or"),
            ("https://u:5ecre7@g/x", "redirects to …@g/x: a user or a password"),
            ("//u:5ecre7@g/x?5ecre7", "redirects to …@g/x…: a user or a password"),
            ("https://:0/x#5ecre7", "redirects to https://:0/x…: that is no address"),
            ("http://h/x", "redirects to http://h/x, where nothing protects"),
        ] {
            let Trouble::Final(error) = redirected(place, Some(location)).unwrap_err() else {
                panic!("{location}")
            };
            let text = error.to_string();
            assert_eq!(error.kind(), ErrorKind::Refused, "{text}");
            assert!(text.starts_with("opening https://h/a/x.img.zst: "), "{text}");
            assert!(text.contains(words), "{text}");
            assert!(!text.contains("5ecre7"), "{text}");
        }
    }
}
