//! `http://host[:port]/path[?query]`, and the same with `https`.
//!
//! Path and query are the server's business and go to it byte for byte as they were written; only what no URL may hold (blanks, other
//! scripts) is encoded in the path. A query is often a secret, as in presigned URLs: it is sent, and shown nowhere.

use std::fmt;
use std::fmt::Write as _;
use std::net::IpAddr;

use super::{UrlError, authority, parse_authority, percent_decode};

/// The ports without which an address means these schemes.
pub(in crate::store) const PORT: u16 = 80;
pub(in crate::store) const TLS_PORT: u16 = 443;

/// The parts of an `http://` or `https://` URL. Neither [`Display`](fmt::Display) nor [`Debug`] shows the query.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct HttpUrl {
    /// Whether it is `https`.
    pub is_tls: bool,
    /// Host name or address, IPv6 without brackets, in lower case.
    pub host: String,
    /// The port; `None`: 80, or 443 with TLS.
    pub port: Option<u16>,
    /// The absolute path, encoded as it goes to the server.
    path: String,
    /// What is behind the question mark, as it goes to the server.
    query: Option<String>,
    /// The last component of the path, decoded.
    name: String,
}

impl HttpUrl {
    /// `http` or `https`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.is_tls { "https" } else { "http" }
    }

    /// Host and port as they stand in the URL.
    #[must_use]
    pub fn server(&self) -> String {
        authority(&self.host, self.port)
    }

    /// The port that is connected to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(if self.is_tls { TLS_PORT } else { PORT })
    }

    /// The absolute path, encoded as it goes to the server.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether there is a query: what is wrong then may be wrong with it.
    #[must_use]
    pub fn has_query(&self) -> bool {
        self.query.is_some()
    }

    /// The last component of the path, decoded; empty for a folder.
    pub(in crate::store) fn name(&self) -> &str {
        &self.name
    }

    /// Whether both are of one server: what may be told to one may be told to the other.
    pub(in crate::store) fn is_same_origin(&self, other: &Self) -> bool {
        self.is_tls == other.is_tls && self.host == other.host && self.port() == other.port()
    }

    /// Whether what is sent stays on this machine.
    pub(in crate::store) fn is_loopback(&self) -> bool {
        let address = self.host.parse::<IpAddr>();
        address.map_or(self.host == "localhost", |address| address.is_loopback())
    }

    /// The server as it stands in a request: with the port if it is not the usual one.
    pub(in crate::store) fn host_field(&self) -> String {
        let usual = if self.is_tls { TLS_PORT } else { PORT };
        authority(&self.host, self.port.filter(|&port| port != usual))
    }

    /// Path and query, as they stand in a request. The query is a secret.
    pub(in crate::store) fn target(&self) -> String {
        match &self.query {
            Some(query) => format!("{}?{query}", self.path),
            None => self.path.clone(),
        }
    }

    /// Where a redirection leads to.
    pub(in crate::store) fn resolve(&self, location: &str) -> Result<Self, UrlError> {
        let malformed = || UrlError::Malformed {
            url: shown(location),
            reason: "the server redirects to it, and it is no URL",
        };
        let base = format!("{}://{}{}", self.scheme(), self.server(), self.target());
        let base = reqwest::Url::parse(&base).map_err(|_| malformed())?;
        let mut to = base.join(location).map_err(|_| malformed())?;
        to.set_fragment(None);
        match to.scheme() {
            "http" | "https" => {
                let rest = to.as_str().split_once("://").map_or("", |(_, rest)| rest);
                parse(to.as_str(), rest, to.scheme() == "https")
            }
            scheme => Err(UrlError::Scheme { scheme: scheme.to_owned() }),
        }
    }

    /// The whole server.
    pub(super) fn server_root(&self) -> Self {
        Self { path: "/".to_owned(), query: None, name: String::new(), ..self.clone() }
    }

    /// The URL of `name` in this folder. A query that gives access to a folder gives it to what is beneath too.
    pub(in crate::store) fn join(&self, name: &str) -> Self {
        let mut path = self.path.trim_end_matches('/').to_owned();
        path.push('/');
        for byte in name.bytes() {
            push_encoded(&mut path, byte, matches!(byte, b'%' | b'?' | b'#' | b'/'));
        }
        Self { path, name: name.to_owned(), ..self.clone() }
    }

    /// The folder that this is in.
    pub(in crate::store) fn parent(&self) -> Option<Self> {
        let (parent, name) = self.path.rsplit_once('/')?;
        if name.is_empty() {
            return None;
        }
        let path = if parent.is_empty() { "/" } else { parent };
        let name = decoded_name(path)?;
        Some(Self { path: path.to_owned(), name, ..self.clone() })
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme(), self.server(), self.path)?;
        if self.has_query() { f.write_str("?…") } else { Ok(()) }
    }
}

impl fmt::Debug for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A URL of any kind without what may be secret in it: user and password, and what is behind the question mark. A password may hold
/// what ends the server's part of a URL elsewhere; then everything up to the last '@' counts as one.
pub(super) fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let user_end = match authority.split_once('@') {
        Some((user, _)) if user.contains(':') => rest.rfind('@'),
        Some(_) => authority.rfind('@'),
        None if has_odd_port(authority) => rest.rfind('@'),
        None => None,
    };
    let (user, rest) = match user_end {
        Some(at) => ("…@", &rest[at + 1..]),
        None => ("", rest),
    };
    let (rest, query) = match rest.split_once('?') {
        Some((rest, _)) => (rest, "?…"),
        None => (rest, ""),
    };
    // Without an '@' it may still be a password, whose server was forgotten.
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match host.rsplit_once(':') {
        Some((host, _)) if has_odd_port(&rest[..rest.len() - path.len()]) => {
            format!("{scheme}://{user}{host}:…{path}{query}")
        }
        _ => format!("{scheme}://{user}{host}{path}{query}"),
    }
}

/// Whether what follows the host is no number.
fn has_odd_port(authority: &str) -> bool {
    let behind = authority.rsplit_once(']').map_or(authority, |(_, behind)| behind);
    behind.split_once(':').is_some_and(|(_, port)| !port.bytes().all(|b| b.is_ascii_digit()))
}

pub(super) fn parse(url: &str, rest: &str, is_tls: bool) -> Result<HttpUrl, UrlError> {
    let url = &shown(url);
    let malformed = |reason| UrlError::Malformed { url: url.clone(), reason };
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, Some(query)),
        None => (rest, None),
    };
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, "/"),
    };
    if authority.contains('@') {
        return Err(UrlError::Credentials);
    }
    if rest.contains('#') || query.is_some_and(|query| query.contains('#')) {
        return Err(malformed("'#' has no meaning here: write %23 for one in a name"));
    }
    if query.is_some_and(|query| !query.bytes().all(|b| b.is_ascii_graphic())) {
        return Err(malformed("what is behind the '?' has to be encoded: blanks as %20"));
    }
    let (host, port) = parse_authority(url, authority)?;
    if host.contains('%') {
        return Err(malformed("its host has a '%'"));
    }
    let decoded = percent_decode(url, path)?;
    let name = decoded_name(path).ok_or_else(|| malformed("its name is not UTF-8 text"))?;
    if decoded.split('/').any(|part| matches!(part, "." | "..")) {
        return Err(malformed("'.' and '..' are not allowed in it: write the path out"));
    }
    let mut encoded = String::with_capacity(path.len());
    path.bytes().for_each(|byte| push_encoded(&mut encoded, byte, false));
    Ok(HttpUrl {
        is_tls,
        host: host.to_ascii_lowercase(),
        port,
        path: encoded,
        query: query.map(str::to_owned),
        name,
    })
}

/// The last component of a path, decoded.
fn decoded_name(path: &str) -> Option<String> {
    percent_decode("", path.rsplit('/').next()?).ok()
}

/// Appends a byte of a path; encodes what may not stand in a URL, and what `also` says.
fn push_encoded(path: &mut String, byte: u8, also: bool) {
    let is_plain = byte.is_ascii_graphic()
        && !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}');
    if is_plain && !also {
        path.push(char::from(byte));
    } else {
        write!(path, "%{byte:02X}").expect("a String takes everything");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::StoreUrl;
    use super::*;

    fn http(text: &str) -> HttpUrl {
        match text.parse().expect(text) {
            StoreUrl::Http(url) => url,
            other => panic!("{other:?}"),
        }
    }

    fn refused(text: &str) -> String {
        text.parse::<StoreUrl>().expect_err(text).to_string()
    }

    #[test]
    fn parts() {
        let url = http("https://Images.Example:8443/a%2Fb/deb%20ian+.img.zst?X-Sig=a%2Bb&x");
        assert_eq!((url.is_tls, url.host.as_str(), url.port()), (true, "images.example", 8443));
        assert_eq!(url.target(), "/a%2Fb/deb%20ian+.img.zst?X-Sig=a%2Bb&x");
        assert_eq!(StoreUrl::Http(url).file_name(), Some("deb ian+.img.zst"));
        let url = http("http://[::1]/ö x");
        assert_eq!((url.port(), url.server().as_str()), (80, "[::1]"));
        assert_eq!(url.target(), "/%C3%B6%20x");
        assert_eq!(http("HTTPS://h").to_string(), "https://h/");
        assert_eq!(http("https://h//k//x").target(), "//k//x");
    }

    #[test]
    fn a_query_is_sent_and_not_shown() {
        let text = "https://h/x.img.zst?X-Amz-Signature=5ecre7";
        let url = http(text);
        assert!(url.target().ends_with("?X-Amz-Signature=5ecre7"));
        assert_eq!(url.to_string(), "https://h/x.img.zst?…");
        assert!(!format!("{:?}", StoreUrl::Http(url)).contains("5ecre7"));
        for bad in [
            "https://h:0/x?5ecre7",
            "https:///x?5ecre7",
            "https://h/x?5ecre7 ",
            "https://h/%x?5ecre7",
            "htps://h/x?5ecre7",
            "https://u:5ecre7@h/x",
            "https://u:a/5ecre7@h/x",
            "https://u:a?5ecre7@h/x",
            "https://u:a#5ecre7@h/x",
            "https://u:a@5ecre7@h/x",
            "https://u:a@b/5ecre7@h/x",
            "https://u:5ecre7/x",
            "smb://u:a/5ecre7@h/s/x",
            "smb://u:5ecre7#@h/s/x",
            "smb://u%3A5ecre7@h/s/x",
            "nfs://u:a/5ecre7@h/x",
            "smb:/u:5ecre7@h/x",
            "HTTPS:u:5ecre7@h/x",
        ] {
            assert!(!refused(bad).contains("5ecre7"), "{bad}");
            assert!(
                !bad.contains("://") || !shown(bad).contains("5ecre7") || bad.contains('%'),
                "{bad}"
            );
        }
        for (text, expected) in [
            ("smb://me@h:1/a@b/x?encrypt=yes", "smb://…@h:1/a@b/x?…"),
            ("https://[::1]:8/a@b", "https://[::1]:8/a@b"),
            ("https://h:8/a:b@c/x", "https://h:8/a:b@c/x"),
            ("https://h/a:b@c/x", "https://h/a:b@c/x"),
            ("/a:b@c?d", "/a:b@c?d"),
        ] {
            assert_eq!(shown(text), expected);
        }
        assert!(refused("https://u:p@h/x").contains("user or a password"));
        assert!(refused("https://h/x#y").contains("%23"));
        assert!(refused("https://h/a/%2e%2e/b").contains("'..'"));
        assert!(refused("https://h/a/..%2fb").contains("'..'"));
    }

    #[test]
    fn folders() {
        let url = StoreUrl::Http(http("https://h/images/x.img.zst?sig=1"));
        let folder = url.parent().unwrap();
        assert_eq!(folder.to_string(), "https://h/images?…");
        let StoreUrl::Http(beside) = folder.join("a b%?.root") else { panic!() };
        assert_eq!(beside.target(), "/images/a%20b%25%3F.root?sig=1");
        assert_eq!(StoreUrl::Http(beside).file_name(), Some("a b%?.root"));
        assert_eq!(folder.parent().unwrap().parent(), None);
    }

    #[test]
    fn redirections() {
        let base = http("https://h:8443/a/b?q=1");
        let to = |location| base.resolve(location).map(|url| format!("{url:?} {}", url.target()));
        assert_eq!(to("/x").unwrap(), "https://h:8443/x /x");
        assert_eq!(to("c?s=2#f").unwrap(), "https://h:8443/a/c?… /a/c?s=2");
        assert_eq!(to("//other/x").unwrap(), "https://other/x /x");
        assert_eq!(to("http://h:80/x").unwrap(), "http://h/x /x");
        assert!(to("ftp://h/x").is_err());
        assert_eq!(to("https://u:p@h/x").unwrap_err(), UrlError::Credentials);
        assert!(base.is_same_origin(&http("https://H:8443/")));
        assert!(!base.is_same_origin(&http("https://h/")));
        assert!(http("http://h:80/").is_same_origin(&http("http://h/")));
        assert!(!http("http://h:443/").is_same_origin(&http("https://h/")));
    }

    #[test]
    fn this_machine() {
        for near in ["http://localhost/", "http://127.0.0.9:81/", "http://[::1]/"] {
            assert!(http(near).is_loopback(), "{near}");
        }
        for far in ["http://localhost.example/", "http://10.0.0.1/", "http://127.example/"] {
            assert!(!http(far).is_loopback(), "{far}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(rest in ".{0,60}", location in ".{0,60}") {
            if let Ok(url) = parse("", &rest, true) {
                // Nothing in it can end a line or a header.
                prop_assert!(url.target().bytes().all(|b| b.is_ascii_graphic()));
                prop_assert!(!url.host.bytes().any(|b| b <= b' '));
                let _ = url.resolve(&location);
            }
        }

        #[test]
        fn what_was_parsed_parses_again(path in "(/[a-zA-Z0-9 ö%+,=@:~-]{1,8}){1,4}", query in proptest::option::of("[!-\"$-~]{0,20}")) {
            let rest = match &query { Some(query) => format!("h:1{path}?{query}"), None => format!("h:1{path}") };
            if let Ok(url) = parse("", &rest, false) {
                let again = parse("", &format!("h:1{}", url.target()), false).unwrap();
                prop_assert_eq!(&again, &url);
                prop_assert_eq!(url.target().split_once('?').map(|(_, q)| q.to_owned()), query);
            }
        }
    }
}
