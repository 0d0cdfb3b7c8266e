//! The URL of an image or a folder in a store.
//!
//! A plain path, `file:///path`, or one of a network store; each of those has its own file here. Pure: nothing is looked up.
//! Credentials are refused, since URLs end up in process lists and logs; unknown schemes and options are errors that name the known
//! ones.

mod http;
mod nfs;
mod nfs4;
mod smb;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use http::HttpUrl;
pub use nfs::NfsUrl;
pub use nfs4::Nfs4Url;
pub use smb::SmbUrl;

/// The longest URL that is accepted, in bytes.
const MAX_URL_BYTES: usize = 4096;

/// Where an image (or a folder of images) is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StoreUrl {
    /// A path of this machine.
    File(PathBuf),
    /// A share of an NFS server, spoken to in user space.
    Nfs(NfsUrl),
    /// A share of an NFS server of version 4, mounted by the kernel.
    Nfs4(Nfs4Url),
    /// A file of a web server.
    Http(HttpUrl),
    /// A share of an SMB server, spoken to in user space.
    Smb(SmbUrl),
}

/// Why a text is not a store URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Nothing there.
    #[error("the store URL is empty; give a path or nfs://host/export/folder/name.img.zst")]
    Empty,
    /// Longer than any real one.
    #[error("the store URL is longer than {MAX_URL_BYTES} bytes")]
    TooLong,
    /// A scheme that this version does not speak.
    #[error(
        "{scheme}:// is not a store of this version; known are paths, file://, nfs://, nfs4://, smb:// and http(s)://"
    )]
    Scheme {
        /// The scheme.
        scheme: String,
    },
    /// `user@` or `user:password@`.
    #[error(
        "the store URL names a user or a password; URLs are visible to everybody, so they may not: NFS takes ?uid= and ?gid=, web servers --credentials"
    )]
    Credentials,
    /// `user:password@`, where a user may stand.
    #[error(
        "the store URL holds a password; URLs are visible to everybody, so it comes from a file: --credentials FILE with the lines user=… and password=…"
    )]
    Password,
    /// A part that does not fit; the text says which.
    #[error("the store URL {url}: {reason}")]
    Malformed {
        /// The URL as given.
        url: String,
        /// What is wrong, and what would be right.
        reason: &'static str,
    },
    /// An option that is there more than once.
    #[error("the store URL gives the option {option} more than once; give it once")]
    Twice {
        /// Its name.
        option: &'static str,
    },
    /// An option that does not exist.
    #[error(
        "{option} is not an option of {scheme}:// URLs; known are {known} (a '?' in a name is written %3F)"
    )]
    Option {
        /// Its name.
        option: String,
        /// Of which kind of URL.
        scheme: &'static str,
        /// Those that exist.
        known: &'static str,
    },
}

impl FromStr for StoreUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        if text.is_empty() {
            return Err(UrlError::Empty);
        }
        if text.len() > MAX_URL_BYTES {
            return Err(UrlError::TooLong);
        }
        if let Some((scheme, rest)) = text.split_once("://").filter(|(s, _)| is_scheme(s)) {
            return match scheme.to_ascii_lowercase().as_str() {
                "file" => parse_file(text, rest),
                "nfs" => nfs::parse(text, rest).map(Self::Nfs),
                "nfs4" => nfs4::parse(text, rest).map(Self::Nfs4),
                "http" => http::parse(text, rest, false).map(Self::Http),
                "https" => http::parse(text, rest, true).map(Self::Http),
                "smb" => smb::parse(text, rest).map(Self::Smb),
                scheme => Err(UrlError::Scheme { scheme: scheme.to_owned() }),
            };
        }
        if let Some(path) = text.strip_prefix("file:") {
            return Ok(Self::File(PathBuf::from(percent_decode(text, path)?)));
        }
        if let Some((scheme, _)) = text.split_once(':').filter(|(s, _)| is_known(s)) {
            // What follows may hold a password.
            let url = format!("{scheme}:…");
            let reason = "'//' stands behind its ':'; a file of such a name is ./NAME";
            return Err(UrlError::Malformed { url, reason });
        }
        Ok(Self::File(PathBuf::from(text)))
    }
}

impl StoreUrl {
    /// The last component of the path: the image's name.
    #[must_use]
    pub fn file_name(&self) -> Option<&str> {
        match self {
            Self::File(path) => path.file_name()?.to_str(),
            Self::Http(http) => Some(http.name()).filter(|name| !name.is_empty()),
            Self::Nfs(NfsUrl { path, .. })
            | Self::Nfs4(Nfs4Url { path, .. })
            | Self::Smb(SmbUrl { path, .. }) => {
                path.rsplit('/').next().filter(|name| !name.is_empty())
            }
        }
    }

    /// The URL of `name` in this folder.
    #[must_use]
    pub fn join(&self, name: &str) -> Self {
        match self {
            Self::File(path) => Self::File(path.join(name)),
            Self::Http(http) => Self::Http(http.join(name)),
            Self::Nfs(nfs) => Self::Nfs(NfsUrl { path: below(&nfs.path, name), ..nfs.clone() }),
            Self::Nfs4(nfs) => Self::Nfs4(Nfs4Url { path: below(&nfs.path, name), ..nfs.clone() }),
            Self::Smb(smb) => Self::Smb(SmbUrl { path: below(&smb.path, name), ..smb.clone() }),
        }
    }

    /// The folder that this is in.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        match self {
            Self::File(path) => {
                let parent = path.parent()?;
                let here = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                Some(Self::File(here.to_owned()))
            }
            Self::Http(http) => http.parent().map(Self::Http),
            Self::Nfs(nfs) => Some(Self::Nfs(NfsUrl { path: above(&nfs.path)?, ..nfs.clone() })),
            Self::Nfs4(nfs) => Some(Self::Nfs4(Nfs4Url { path: above(&nfs.path)?, ..nfs.clone() })),
            // A share is in no folder.
            Self::Smb(smb) if smb.below_share().is_empty() => None,
            Self::Smb(smb) => Some(Self::Smb(SmbUrl { path: above(&smb.path)?, ..smb.clone() })),
        }
    }
}

/// The path of `name` in a folder.
fn below(folder: &str, name: &str) -> String {
    format!("{}/{name}", folder.trim_end_matches('/'))
}

/// The path of the folder that something is in.
fn above(path: &str) -> Option<String> {
    let (parent, name) = path.rsplit_once('/')?;
    let parent = if parent.is_empty() { "/" } else { parent };
    (!name.is_empty()).then(|| parent.to_owned())
}

/// Where on which server something is, in a form that can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place<'a> {
    pub(super) scheme: &'static str,
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) path: &'a str,
}

impl StoreUrl {
    /// `None` for what is on this machine.
    pub(super) fn place(&self) -> Option<Place<'_>> {
        match self {
            Self::File(_) => None,
            Self::Nfs(url) => Some(Place {
                scheme: "nfs",
                host: &url.host,
                port: url.port.unwrap_or(nfs::PORT),
                path: &url.path,
            }),
            Self::Nfs4(url) => Some(Place {
                scheme: "nfs4",
                host: &url.host,
                port: url.port.unwrap_or(nfs::PORT),
                path: &url.path,
            }),
            Self::Http(url) => Some(Place {
                scheme: url.scheme(),
                host: &url.host,
                port: url.port(),
                path: url.path(),
            }),
            Self::Smb(url) => Some(Place {
                scheme: "smb",
                host: &url.host,
                port: url.port.unwrap_or(smb::PORT),
                path: &url.path,
            }),
        }
    }

    /// The whole server; `None` for what is on this machine.
    pub(super) fn server_root(&self) -> Option<Self> {
        match self {
            Self::File(_) => None,
            Self::Nfs(url) => Some(Self::Nfs(NfsUrl { path: "/".to_owned(), ..url.clone() })),
            Self::Nfs4(url) => Some(Self::Nfs4(Nfs4Url { path: "/".to_owned(), ..url.clone() })),
            Self::Http(url) => Some(Self::Http(url.server_root())),
            Self::Smb(url) => Some(Self::Smb(SmbUrl { path: "/".to_owned(), ..url.clone() })),
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Nfs(nfs) => nfs.fmt(f),
            Self::Nfs4(nfs) => nfs.fmt(f),
            Self::Http(http) => http.fmt(f),
            Self::Smb(smb) => smb.fmt(f),
        }
    }
}

/// A URL of any kind as it may be shown: without user and password, and without what is behind the question mark.
#[must_use]
pub fn shown(url: &str) -> String {
    http::shown(url)
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

/// Whether this is the scheme of a network store.
fn is_known(scheme: &str) -> bool {
    ["nfs", "nfs4", "smb", "http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known))
}

fn parse_file(url: &str, rest: &str) -> Result<StoreUrl, UrlError> {
    let (host, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    if host.contains('@') {
        return Err(UrlError::Credentials);
    }
    if !host.is_empty() && host != "localhost" {
        return Err(malformed(url, "file:// names no host: write file:///path"));
    }
    if path.is_empty() {
        return Err(malformed(url, "it has no path: write file:///path"));
    }
    Ok(StoreUrl::File(PathBuf::from(percent_decode(url, path)?)))
}

fn parse_authority(url: &str, authority: &str) -> Result<(String, Option<u16>), UrlError> {
    let (host, port) = if let Some(bracketed) = authority.strip_prefix('[') {
        let (host, after) = bracketed
            .split_once(']')
            .ok_or_else(|| malformed(url, "the address has no closing ']'"))?;
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => return Err(malformed(url, "only :port may follow the ']'")),
        }
    } else {
        match authority.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err(malformed(url, "an IPv6 address stands in brackets: nfs://[::1]/…"));
            }
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
    if host.is_empty() || !host.chars().all(valid) {
        return Err(malformed(url, "it has no valid host: write nfs://host/export/folder/name"));
    }
    Ok((host.to_owned(), port.map(|port| parse_port(url, port)).transpose()?))
}

fn parse_path(url: &str, path: &str) -> Result<String, UrlError> {
    let decoded = percent_decode(url, path)?;
    let mut clean = String::with_capacity(decoded.len());
    for component in decoded.split('/') {
        match component {
            "" | "." => {}
            ".." => return Err(malformed(url, "'..' is not allowed in it: write the path out")),
            name if name.len() > 255 || name.contains('\0') => {
                return Err(malformed(
                    url,
                    "a name in it is longer than 255 bytes or has a zero byte",
                ));
            }
            name => {
                clean.push('/');
                clean.push_str(name);
            }
        }
    }
    if clean.is_empty() {
        clean.push('/');
    }
    Ok(clean)
}

fn parse_port(url: &str, text: &str) -> Result<u16, UrlError> {
    match text.parse::<u16>() {
        Ok(port) if port != 0 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
        _ => Err(malformed(url, "a port is a number from 1 to 65535")),
    }
}

/// Host and port as they stand in a URL.
fn authority(host: &str, port: Option<u16>) -> String {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    match port {
        Some(port) => format!("{host}:{port}"),
        None => host,
    }
}

/// The option that a URL gives and that does not exist, as far as it looks like one: it may be what somebody typed behind a '?' in a password.
fn unknown_option(option: &str, scheme: &'static str, known: &'static str) -> UrlError {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let is_shown = option.len() <= 32 && option.bytes().all(is_word);
    let option = if is_shown { option } else { "what is behind the '?'" };
    UrlError::Option { option: option.to_owned(), scheme, known }
}

/// Sets an option, once.
fn set_once<T>(place: &mut Option<T>, option: &'static str, value: T) -> Result<(), UrlError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(UrlError::Twice { option }),
    }
}

/// Writes a decoded path so that it can be parsed again.
fn write_path(f: &mut fmt::Formatter<'_>, path: &str) -> fmt::Result {
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z'
            | b'A'..=b'Z'
            | b'0'..=b'9'
            | b'/'
            | b'-'
            | b'_'
            | b'.'
            | b'~'
            | b'+'
            | b','
            | b'='
            | b'@'
            | b':' => write!(f, "{}", char::from(byte))?,
            other => write!(f, "%{other:02X}")?,
        }
    }
    Ok(())
}

fn percent_decode(url: &str, text: &str) -> Result<String, UrlError> {
    let bad = || malformed(url, "'%' stands before two hexadecimal digits of UTF-8 text");
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
        let (high, low) = (digit().ok_or_else(bad)?, digit().ok_or_else(bad)?);
        out.push(u8::try_from(high * 16 + low).expect("two hexadecimal digits are at most 255"));
    }
    String::from_utf8(out).map_err(|_| bad())
}

fn malformed(url: &str, reason: &'static str) -> UrlError {
    UrlError::Malformed { url: shown(url), reason }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(text: &str) -> String {
        text.parse::<StoreUrl>().expect_err(text).to_string()
    }

    #[test]
    fn paths_are_taken_as_they_are() {
        for text in ["/a/b.img.zst", "b.img.zst", "./x y%20?z", "a:b"] {
            assert_eq!(text.parse::<StoreUrl>().unwrap(), StoreUrl::File(PathBuf::from(text)));
        }
        assert_eq!(
            "file:///a/b%20c".parse::<StoreUrl>().unwrap(),
            StoreUrl::File(PathBuf::from("/a/b c"))
        );
        assert_eq!("file:/a".parse::<StoreUrl>().unwrap(), StoreUrl::File(PathBuf::from("/a")));
    }

    #[test]
    fn refusals_say_what_to_do() {
        assert!(refused("nfs://user:secret@host/x").contains("?uid="));
        assert!(!refused("nfs://user:secret@host/x").contains("secret"));
        assert!(!refused("file://user:secret@host/x").contains("secret"));
        assert!(refused("nfs://host/x?password=secret").contains("user or a password"));
        assert!(refused("afp://host/x").contains("afp:// is not a store of this version"));
        assert!(refused("gopher://host/x").contains("nfs://"));
        assert!(refused("nfs://host/x?mntport=1").contains("mountport, uid and gid"));
        assert!(refused("nfs://host/x?y").contains("a '?' in a name is written %3F"));
        for (twice, option) in [
            ("uid=1&uid=2", "uid"),
            ("gid=0&uid=1&gid=0", "gid"),
            ("mountport=1&mountport=1", "mountport"),
        ] {
            let text = refused(&format!("nfs://host/x?{twice}"));
            assert!(text.contains(&format!("the option {option} more than once")), "{text}");
        }
        assert!(!refused("nfs://user:1?secret@host/x").contains("secret"));
        assert!(refused("nfs:///x").contains("no valid host"));
        assert!(refused("nfs://host:0/x").contains("1 to 65535"));
        assert!(refused("nfs://host:+1/x").contains("1 to 65535"));
        assert!(refused("nfs://::1/x").contains("brackets"));
        assert!(refused("nfs://host/a/../b").contains("'..'"));
        assert!(refused("nfs://host/a%2").contains("hexadecimal"));
        assert!(refused("file://elsewhere/x").contains("file:///path"));
        assert_eq!("".parse::<StoreUrl>().unwrap_err(), UrlError::Empty);
    }

    #[test]
    fn folders() {
        let url: StoreUrl = "nfs://h/images/x.img.zst".parse().unwrap();
        assert_eq!(url.file_name(), Some("x.img.zst"));
        let folder = url.parent().unwrap();
        assert_eq!(folder.to_string(), "nfs://h/images");
        assert_eq!(folder.join("y").to_string(), "nfs://h/images/y");
        assert_eq!(folder.parent().unwrap().to_string(), "nfs://h/");
        assert_eq!(folder.parent().unwrap().parent(), None);
        let path: StoreUrl = "x.img.zst".parse().unwrap();
        assert_eq!(path.parent(), Some(StoreUrl::File(PathBuf::from("."))));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in ".{0,80}") {
            let _: Result<StoreUrl, UrlError> = text.parse();
            let _: Result<StoreUrl, UrlError> = format!("nfs://{text}").parse();
        }
    }
}
