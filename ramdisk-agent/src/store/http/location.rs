//! Where an image is at the moment: at its URL, or where the server redirected to.
//!
//! A redirection is followed once and remembered, so that not every range costs two requests. When the place that it led to refuses
//! later, as presigned URLs do when they expire, the image's own URL is asked again.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::{HttpUrl, StoreError};
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

fn redirected(place: Place<'_>, location: Option<&str>) -> Result<HttpUrl, Trouble> {
    let to = match location {
        Some(location) => place.url.resolve(location).map_err(StoreError::from),
        None => Err(place.protocol("it redirects without saying where to")),
    };
    let to = to.map_err(Trouble::Final)?;
    if place.url.is_tls && !to.is_tls {
        return Err(Trouble::Final(place.denied(format!(
            "it redirects to {to}, where nothing protects the connection; a redirection from https to http is not followed"
        ))));
    }
    Ok(to)
}
