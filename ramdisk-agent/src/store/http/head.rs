//! The head of an HTTP/1 response, and what its fields mean. Pure and total: any bytes in, a value or an error out.

use std::time::Duration;

use jiff::Timestamp;

/// The longest head that is read, in bytes.
pub(super) const MAX_HEAD_LEN: usize = 64 << 10;
const MAX_FIELDS: usize = 128;
/// The longest piece line of a chunked body, extensions included.
pub(super) const MAX_CHUNK_LINE_LEN: usize = 256;

/// Status line and fields of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    minor_version: u8,
    /// Names in lower case.
    fields: Vec<(String, String)>,
}

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// It has so many bytes.
    Length(u64),
    /// It comes in pieces that say their own length.
    Chunked,
    /// It ends with the connection.
    UntilClose,
}

/// What a `Content-Range` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ContentRange {
    /// First and last byte; `None` where a range could not be served.
    pub(super) range: Option<(u64, u64)>,
    /// The length of the whole; `None`: not told.
    pub(super) total: Option<u64>,
}

impl Head {
    /// Parses what has arrived; `None` if more is needed. The number is the head's length.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, String> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        let len = match response.parse(bytes) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) if bytes.len() >= MAX_HEAD_LEN => {
                return Err(format!("its head is longer than {MAX_HEAD_LEN} bytes"));
            }
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(format!("this is no HTTP: {error}")),
        };
        let fields = response
            .headers
            .iter()
            .map(|field| {
                let value = String::from_utf8_lossy(field.value).trim().to_owned();
                (field.name.to_ascii_lowercase(), value)
            })
            .collect();
        let (Some(status), Some(minor_version)) = (response.code, response.version) else {
            return Err("this is no HTTP: no status".to_owned());
        };
        Ok(Some((Self { status, minor_version, fields }, len)))
    }

    /// The first field of this name (in lower case).
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// All members of a list that may stand in several fields.
    fn members(&self, name: &str) -> impl Iterator<Item = &str> {
        self.fields
            .iter()
            .filter(move |(field, _)| field == name)
            .flat_map(|(_, value)| value.split(','))
            .map(str::trim)
    }

    /// The status with its usual words, for messages.
    pub(super) fn status_text(&self) -> String {
        match reqwest::StatusCode::from_u16(self.status) {
            Ok(status) => status.to_string().replace(" <unknown status code>", ""),
            Err(_) => self.status.to_string(),
        }
    }

    /// How the body ends; an error if the head contradicts itself or names a coding that was not asked for.
    pub(super) fn framing(&self) -> Result<Framing, String> {
        if matches!(self.status, 100..=199 | 204 | 304) {
            return Ok(Framing::Length(0));
        }
        let mut codings = self.members("transfer-encoding").filter(|coding| !coding.is_empty());
        if let Some(coding) = codings.next() {
            if !coding.eq_ignore_ascii_case("chunked") || codings.next().is_some() {
                return Err("it has a transfer coding other than chunked".to_owned());
            }
            return Ok(Framing::Chunked);
        }
        let mut lengths = self.members("content-length");
        let Some(length) = lengths.next() else { return Ok(Framing::UntilClose) };
        if lengths.any(|other| other != length) {
            return Err("it has several lengths".to_owned());
        }
        let length = digits(length).ok_or("its Content-Length is no number")?;
        Ok(Framing::Length(length))
    }

    /// Whether the connection may be used again after the body.
    pub(super) fn keeps_connection(&self) -> bool {
        let says = |what: &str| self.members("connection").any(|m| m.eq_ignore_ascii_case(what));
        !says("close") && (self.minor_version >= 1 || says("keep-alive"))
    }

    /// The coding of the content, if there is one that would have to be undone.
    pub(super) fn content_coding(&self) -> Option<&str> {
        self.members("content-encoding")
            .find(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case("identity"))
    }

    /// The range that the answer claims to hold.
    pub(super) fn content_range(&self) -> Option<Result<ContentRange, String>> {
        let text = self.field("content-range")?;
        Some(content_range(text).ok_or_else(|| "its Content-Range makes no sense".to_owned()))
    }

    /// How long the server wants to be left alone.
    pub(super) fn retry_after(&self, now: Timestamp) -> Option<Duration> {
        let text = self.field("retry-after")?;
        if let Some(seconds) = digits(text) {
            return Some(Duration::from_secs(seconds));
        }
        let then = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
        Some(Duration::try_from(then.duration_since(now)).unwrap_or_default())
    }
}

/// `bytes 0-99/200`, `bytes 0-99/*` or `bytes */200`.
fn content_range(text: &str) -> Option<ContentRange> {
    let (unit, rest) = text.split_once(' ')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (range, total) = rest.trim().split_once('/')?;
    let total = if total == "*" { None } else { Some(digits(total)?) };
    if range == "*" {
        return total.map(|_| ContentRange { range: None, total });
    }
    let (first, last) = range.split_once('-')?;
    let (first, last) = (digits(first)?, digits(last)?);
    // The last byte there is has to be countable from 1.
    (first <= last && last < total.unwrap_or(u64::MAX))
        .then_some(ContentRange { range: Some((first, last)), total })
}

/// The length in the line that starts a piece of a chunked body.
pub(super) fn chunk_len(line: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(line).ok()?;
    let digits = text.split(';').next()?.trim();
    let is_hex = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
    is_hex.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

fn digits(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(text: &str) -> Head {
        Head::parse(format!("{text}\r\n\r\n").as_bytes()).unwrap().unwrap().0
    }

    #[test]
    fn a_head_in_pieces() {
        let bytes = b"HTTP/1.1 206 Partial Content\r\nETag: \"a\"\r\nX: y\r\n\r\nbody";
        for len in 0..bytes.len() - 4 {
            assert_eq!(Head::parse(&bytes[..len]), Ok(None), "{len}");
        }
        let (head, len) = Head::parse(bytes).unwrap().unwrap();
        assert_eq!((head.status, len), (206, bytes.len() - 4));
        assert_eq!(head.field("etag"), Some("\"a\""));
        assert_eq!(head.status_text(), "206 Partial Content");
        assert!(Head::parse(b"SSH-2.0-OpenSSH\r\n").is_err());
        let endless = [b"HTTP/1.1 200 OK\r\nA: ".as_slice(), &[b'x'; MAX_HEAD_LEN]].concat();
        assert!(Head::parse(&endless).is_err());
    }

    #[test]
    fn framings() {
        let framing = |fields: &str| head(&format!("HTTP/1.1 200 OK{fields}")).framing();
        assert_eq!(framing("\r\nContent-Length: 7"), Ok(Framing::Length(7)));
        assert_eq!(framing("\r\nContent-Length: 7\r\nContent-Length: 7"), Ok(Framing::Length(7)));
        assert_eq!(framing("\r\nTransfer-Encoding: Chunked"), Ok(Framing::Chunked));
        assert_eq!(framing(""), Ok(Framing::UntilClose));
        assert!(framing("\r\nContent-Length: 7\r\nContent-Length: 8").is_err());
        assert!(framing("\r\nContent-Length: +7").is_err());
        assert!(framing("\r\nContent-Length: 99999999999999999999").is_err());
        assert!(framing("\r\nTransfer-Encoding: gzip, chunked").is_err());
        assert_eq!(head("HTTP/1.1 204 No").framing(), Ok(Framing::Length(0)));
    }

    #[test]
    fn connections() {
        assert!(head("HTTP/1.1 200 OK").keeps_connection());
        assert!(!head("HTTP/1.1 200 OK\r\nConnection: x, Close").keeps_connection());
        assert!(!head("HTTP/1.0 200 OK").keeps_connection());
        assert!(head("HTTP/1.0 200 OK\r\nConnection: keep-alive").keeps_connection());
        assert_eq!(
            head("HTTP/1.1 200 OK\r\nContent-Encoding: gzip").content_coding(),
            Some("gzip")
        );
        assert_eq!(head("HTTP/1.1 200 OK\r\nContent-Encoding: identity").content_coding(), None);
    }

    #[test]
    fn content_ranges() {
        let range = |first, last, total| Some(ContentRange { range: Some((first, last)), total });
        assert_eq!(content_range("bytes 0-99/200"), range(0, 99, Some(200)));
        assert_eq!(content_range("Bytes 0-99/*"), range(0, 99, None));
        assert_eq!(
            content_range("bytes */200"),
            Some(ContentRange { range: None, total: Some(200) })
        );
        for bad in [
            "",
            "bytes",
            "bytes 0-99",
            "bytes 9-8/20",
            "bytes 0-20/20",
            "bytes */*",
            "bytes -5/20",
            "bytes +1-2/9",
            "items 0-1/2",
            "bytes 0-18446744073709551615/*",
            "bytes 0-1/99999999999999999999",
        ] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn when_to_come_back() {
        let now: Timestamp = "2026-11-06T08:49:37Z".parse().unwrap();
        let after =
            |text: &str| head(&format!("HTTP/1.1 503 x\r\nRetry-After: {text}")).retry_after(now);
        assert_eq!(after("120"), Some(Duration::from_secs(120)));
        assert_eq!(after("Fri, 06 Nov 2026 08:50:37 GMT"), Some(Duration::from_secs(60)));
        assert_eq!(after("Fri, 06 Nov 2026 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(after("soon"), None);
    }

    #[test]
    fn pieces() {
        assert_eq!(chunk_len(b"1aF"), Some(0x1af));
        assert_eq!(chunk_len(b"0;x=y"), Some(0));
        for bad in ["", "-1", "+1", "g", "11111111111111111"] {
            assert_eq!(chunk_len(bad.as_bytes()), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_head_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Head::parse(&bytes);
        }

        #[test]
        fn any_fields_have_a_meaning_or_none(name in "(content-range|content-length|transfer-encoding|retry-after|connection)", value in "[ -~]{0,40}") {
            if let Ok(Some((head, _))) = Head::parse(format!("HTTP/1.1 206 x\r\n{name}: {value}\r\n\r\n").as_bytes()) {
                let _ = (head.framing(), head.content_range(), head.keeps_connection());
                let _ = head.retry_after(Timestamp::UNIX_EPOCH);
            }
        }

        #[test]
        fn content_ranges_round_trip(first in any::<u64>(), len in 1_u64..1 << 40, more in any::<u32>()) {
            let Some(last) = first.checked_add(len) else { return Ok(()) };
            let Some(total) = last.checked_add(1 + u64::from(more)) else { return Ok(()) };
            let expected = ContentRange { range: Some((first, last)), total: Some(total) };
            prop_assert_eq!(content_range(&format!("bytes {first}-{last}/{total}")), Some(expected));
        }

        #[test]
        fn any_text_is_a_content_range_or_none(text in "(bytes )?[0-9*/ -]{0,24}") {
            if let Some(ContentRange { range: Some((first, last)), total }) = content_range(&text) {
                prop_assert!(first <= last && total.is_none_or(|total| last < total));
            }
        }
    }
}
