//! Which version of an image is being read: its length, and what the server calls the version.
//!
//! The first answer gives it. Every later request asks for that version only, and every later answer has to be of it, at the place
//! that was asked for. Pure: heads of answers in, a value or an error out.

use super::super::{Result, StoreError};
use super::head::{ContentRange, Framing, Head};
use super::status::Place;

/// One version of what is at a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) len_bytes: u64,
    etag: Option<String>,
    last_modified: Option<String>,
}

impl Version {
    /// What an answer to a request for the first byte says. It has to hold that byte, unless there is none.
    pub(super) fn of(place: Place<'_>, head: &Head) -> Result<Self> {
        check_coding(place, head)?;
        let len_bytes = match (head.status, range(place, head)?) {
            (206, Some(ContentRange { range: Some((0, 0)), total: Some(len_bytes) })) => len_bytes,
            (206, Some(ContentRange { range: Some((0, 0)), total: None })) => {
                return Err(unsuited(place, "does not tell how long it is"));
            }
            // There is no first byte.
            (416, Some(ContentRange { range: None, total: Some(0) })) => 0,
            (200, _) if head.framing() == Ok(Framing::Length(0)) => 0,
            (206, _) => return Err(place.protocol("it is not the range that was asked for")),
            _ => return Err(unsuited(place, "gives only the whole file, not a part of it")),
        };
        let text = |name| head.field(name).map(str::to_owned);
        Ok(Self { len_bytes, etag: text("etag"), last_modified: text("last-modified") })
    }

    /// The field that makes a request be for this version only, if the server can tell.
    pub(super) fn condition(&self) -> Option<(&'static str, String)> {
        match (&self.etag, &self.last_modified) {
            (Some(etag), _) if !etag.starts_with("W/") => Some(("If-Match", etag.clone())),
            (_, Some(time)) => Some(("If-Unmodified-Since", time.clone())),
            (_, None) => None,
        }
    }

    /// Whether an answer is of this version and begins at byte `first`; how many bytes it holds, up to `last`.
    pub(super) fn check(
        &self,
        place: Place<'_>,
        head: &Head,
        first: u64,
        last: u64,
    ) -> Result<u64> {
        check_coding(place, head)?;
        let replaced = || StoreError::Replaced { url: place.url.to_string() };
        let is_other = match (&self.etag, &self.last_modified, head.field("last-modified")) {
            (Some(etag), _, _) => head.field("etag") != Some(etag),
            (None, Some(then), Some(now)) => then != now,
            (None, _, _) => false,
        };
        if is_other {
            return Err(replaced());
        }
        let framing = head.framing().map_err(|reason| place.protocol(reason))?;
        if head.status == 200 {
            // All of it is a range too.
            return match framing {
                Framing::Length(len) if len != self.len_bytes => Err(replaced()),
                Framing::Length(len) if first == 0 && last == len - 1 => Ok(len),
                _ => Err(unsuited(place, "gives the whole file now, not a part of it as before")),
            };
        }
        let Some(range) = range(place, head)? else {
            return Err(place.protocol("it does not say which part of the file it is"));
        };
        if range.total.is_some_and(|total| total != self.len_bytes) {
            return Err(replaced());
        }
        let len = match range.range {
            // A server may give less than was asked for.
            Some((from, to)) if from == first && to <= last => to - from + 1,
            _ => return Err(place.protocol("it is not the range that was asked for")),
        };
        match framing {
            Framing::Length(framed) if framed != len => {
                Err(place.protocol("its length is not that of its range"))
            }
            _ => Ok(len),
        }
    }
}

fn range(place: Place<'_>, head: &Head) -> Result<Option<ContentRange>> {
    if head.field("content-type").is_some_and(|t| t.to_ascii_lowercase().starts_with("multipart/"))
        && head.status == 206
    {
        return Err(place.protocol("it has several parts, although one range was asked for"));
    }
    head.content_range().transpose().map_err(|reason| place.protocol(reason))
}

fn check_coding(place: Place<'_>, head: &Head) -> Result<()> {
    match head.content_coding() {
        Some(_) => Err(unsuited(
            place,
            "compresses what it sends, so that its ranges are of something else; turn that off for images",
        )),
        None => Ok(()),
    }
}

fn unsuited(place: Place<'_>, what: &str) -> StoreError {
    let reason = format!(
        "the server {what}. Images need a web server that serves ranges, as nginx, Apache, Caddy and S3 do; or fetch the file first and give its path"
    );
    StoreError::Unsupported { url: place.url.to_string(), reason }
}

#[cfg(test)]
mod tests {
    use agent_api::ErrorKind;

    use super::super::super::{HttpUrl, StoreUrl};
    use super::*;

    fn url() -> HttpUrl {
        match "https://h/x?5ecre7".parse().unwrap() {
            StoreUrl::Http(url) => url,
            other => panic!("{other:?}"),
        }
    }

    fn head(status: u16, fields: &[&str]) -> Head {
        let text = format!("HTTP/1.1 {status} x\r\n{}\r\n\r\n", fields.join("\r\n"));
        Head::parse(text.replace("\r\n\r\n\r\n", "\r\n\r\n").as_bytes()).unwrap().unwrap().0
    }

    fn of(status: u16, fields: &[&str]) -> Result<Version> {
        Version::of(Place { doing: "opening", url: &url() }, &head(status, fields))
    }

    #[test]
    fn the_first_answer() {
        let version =
            of(206, &["Content-Range: bytes 0-0/9", "ETag: \"a\"", "Last-Modified: M"]).unwrap();
        assert_eq!(
            (version.len_bytes, version.condition()),
            (9, Some(("If-Match", "\"a\"".into())))
        );
        let version =
            of(206, &["Content-Range: bytes 0-0/9", "ETag: W/\"a\"", "Last-Modified: M"]).unwrap();
        assert_eq!(version.condition(), Some(("If-Unmodified-Since", "M".into())));
        assert_eq!(of(206, &["Content-Range: bytes 0-0/9"]).unwrap().condition(), None);
        assert_eq!(of(416, &["Content-Range: bytes */0"]).unwrap().len_bytes, 0);
        assert_eq!(of(200, &["Content-Length: 0"]).unwrap().len_bytes, 0);
        for (status, fields, words) in [
            (200, &["Content-Length: 9"][..], "gives only the whole file"),
            (200, &["Transfer-Encoding: chunked"], "gives only the whole file"),
            (206, &["Content-Range: bytes 0-0/*"], "how long it is"),
            (206, &["Content-Range: bytes 0-0/9", "Content-Encoding: gzip"], "compresses"),
        ] {
            let error = of(status, fields).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert!(error.to_string().contains(words), "{error}");
            assert!(!error.to_string().contains("5ecre7"), "{error}");
        }
        for fields in [
            &["Content-Range: bytes 0-1/9"][..],
            &["Content-Range: bytes 1-1/9"],
            &["Content-Range: nonsense"],
            &["Content-Length: 1"],
            &["Content-Type: multipart/byteranges; boundary=x", "Content-Range: bytes 0-0/9"],
        ] {
            assert_eq!(of(206, fields).unwrap_err().kind(), ErrorKind::Store, "{fields:?}");
        }
    }

    fn check(first: &[&str], status: u16, fields: &[&str]) -> Result<u64> {
        let version = of(206, &[&["Content-Range: bytes 0-0/9"], first].concat()).unwrap();
        version.check(Place { doing: "reading", url: &url() }, &head(status, fields), 2, 5)
    }

    #[test]
    fn later_answers() {
        assert_eq!(check(&[], 206, &["Content-Range: bytes 2-5/9"]).unwrap(), 4);
        assert_eq!(
            check(&[], 206, &["Content-Range: bytes 2-5/*", "Content-Length: 4"]).unwrap(),
            4
        );
        assert_eq!(check(&[], 206, &["Content-Range: bytes 2-3/9"]).unwrap(), 2);
        assert_eq!(
            check(&["ETag: \"a\""], 206, &["ETag: \"a\"", "Content-Range: bytes 2-5/9"]).unwrap(),
            4
        );
        let replaced = |first: &[&str], status, fields: &[&str]| {
            let error = check(first, status, fields).unwrap_err();
            assert!(matches!(error, StoreError::Replaced { .. }), "{error}");
        };
        replaced(&["ETag: \"a\""], 206, &["ETag: \"b\"", "Content-Range: bytes 2-5/9"]);
        replaced(&["ETag: \"a\""], 206, &["Content-Range: bytes 2-5/9"]);
        replaced(&["Last-Modified: M"], 206, &["Last-Modified: N", "Content-Range: bytes 2-5/9"]);
        replaced(&[], 206, &["Content-Range: bytes 2-5/10"]);
        replaced(&[], 200, &["Content-Length: 10"]);
        let wrong = |status, fields: &[&str]| {
            let error = check(&[], status, fields).unwrap_err();
            assert!(
                matches!(error, StoreError::Protocol { .. } | StoreError::Unsupported { .. }),
                "{error}"
            );
        };
        wrong(206, &["Content-Range: bytes 3-5/9"]);
        wrong(206, &["Content-Range: bytes 2-6/9"]);
        wrong(206, &["Content-Range: bytes 2-5/9", "Content-Length: 5"]);
        wrong(206, &["Content-Range: bytes 2-5/9", "Content-Encoding: br"]);
        wrong(206, &["Content-Length: 4"]);
        wrong(200, &["Content-Length: 9"]);
        wrong(200, &["Transfer-Encoding: chunked"]);
    }

    #[test]
    fn all_of_it_is_a_range_too() {
        let version = of(206, &["Content-Range: bytes 0-0/9"]).unwrap();
        let place = Place { doing: "reading", url: &url() };
        let answer = head(200, &["Content-Length: 9"]);
        assert_eq!(version.check(place, &answer, 0, 8).unwrap(), 9);
    }
}
