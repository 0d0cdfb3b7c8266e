//! The URL of an image or a folder in a store.
//!
//! A plain path, `file:///path`, or `nfs://host[:port]/export/folder/name[?option=value…]`. Pure: nothing is looked up. Credentials
//! are refused, since URLs end up in process lists and logs; unknown schemes and options are errors that name the known ones.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The longest URL that is accepted, in bytes.
const MAX_URL_BYTES: usize = 4096;

/// Where an image (or a folder of images) is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StoreUrl {
    /// A path of this machine.
    File(PathBuf),
    /// A share of an NFS server, spoken to in user space.
    Nfs(NfsUrl),
}

/// The parts of an `nfs://` URL.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NfsUrl {
    /// Host name or address, IPv6 without brackets.
    pub host: String,
    /// The port of the NFS program; `None`: 2049, else what the portmapper says.
    pub port: Option<u16>,
    /// The port of the MOUNT program; `None`: what the portmapper says, else 20048, else the NFS port.
    pub mount_port: Option<u16>,
    /// The absolute path of export, folders and file, decoded, without `.`, `..` and empty components.
    pub path: String,
    /// The user to act as (AUTH_UNIX).
    pub uid: u32,
    /// The group to act as (AUTH_UNIX).
    pub gid: u32,
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
        "{scheme}:// is not a store of this version; known are paths, file:// and nfs:// (mount an SMB share and give its path)"
    )]
    Scheme {
        /// The scheme.
        scheme: String,
    },
    /// `user@` or `user:password@`.
    #[error(
        "the store URL names a user or a password; URLs are visible to everybody, so they may not: NFS takes ?uid= and ?gid="
    )]
    Credentials,
    /// A part that does not fit; the text says which.
    #[error("the store URL {url}: {reason}")]
    Malformed {
        /// The URL as given.
        url: String,
        /// What is wrong, and what would be right.
        reason: &'static str,
    },
    /// An option that does not exist.
    #[error("{option} is not an option of nfs:// URLs; known are mountport, uid and gid")]
    Option {
        /// Its name.
        option: String,
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
                "nfs" => parse_nfs(text, rest).map(Self::Nfs),
                scheme => Err(UrlError::Scheme { scheme: scheme.to_owned() }),
            };
        }
        if let Some(path) = text.strip_prefix("file:") {
            return Ok(Self::File(PathBuf::from(percent_decode(text, path)?)));
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
            Self::Nfs(nfs) => nfs.path.rsplit('/').next().filter(|name| !name.is_empty()),
        }
    }

    /// The URL of `name` in this folder.
    #[must_use]
    pub fn join(&self, name: &str) -> Self {
        match self {
            Self::File(path) => Self::File(path.join(name)),
            Self::Nfs(nfs) => {
                let path = format!("{}/{name}", nfs.path.trim_end_matches('/'));
                Self::Nfs(NfsUrl { path, ..nfs.clone() })
            }
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
            Self::Nfs(nfs) => {
                let (parent, name) = nfs.path.rsplit_once('/')?;
                if name.is_empty() {
                    return None;
                }
                let path = if parent.is_empty() { "/" } else { parent };
                Some(Self::Nfs(NfsUrl { path: path.to_owned(), ..nfs.clone() }))
            }
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Nfs(nfs) => nfs.fmt(f),
        }
    }
}

impl NfsUrl {
    /// The server as people call it: the host, and the port when it is an unusual one.
    #[must_use]
    pub fn server(&self) -> String {
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match self.port {
            Some(port) => format!("{host}:{port}"),
            None => host,
        }
    }
}

impl fmt::Display for NfsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nfs://{}", self.server())?;
        for byte in self.path.bytes() {
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
        let mut separator = '?';
        let mut option = |f: &mut fmt::Formatter<'_>, name: &str, value: Option<u32>| {
            let Some(value) = value else { return Ok(()) };
            write!(f, "{separator}{name}={value}")?;
            separator = '&';
            Ok(())
        };
        option(f, "mountport", self.mount_port.map(u32::from))?;
        option(f, "uid", Some(self.uid).filter(|&uid| uid != 0))?;
        option(f, "gid", Some(self.gid).filter(|&gid| gid != 0))
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
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

fn parse_nfs(url: &str, rest: &str) -> Result<NfsUrl, UrlError> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    if authority.contains('@') {
        return Err(UrlError::Credentials);
    }
    if rest.contains('#') || query.contains('#') {
        return Err(malformed(url, "'#' has no meaning here: write %23 for one in a name"));
    }
    let (host, port) = parse_authority(url, authority)?;
    let mut parsed =
        NfsUrl { host, port, mount_port: None, path: parse_path(url, path)?, uid: 0, gid: 0 };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match name {
            "mountport" => parsed.mount_port = Some(parse_port(url, value)?),
            "uid" => parsed.uid = parse_id(url, value)?,
            "gid" => parsed.gid = parse_id(url, value)?,
            "user" | "username" | "password" | "pass" => return Err(UrlError::Credentials),
            other => return Err(UrlError::Option { option: other.to_owned() }),
        }
    }
    Ok(parsed)
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

fn parse_id(url: &str, text: &str) -> Result<u32, UrlError> {
    match text.parse::<u32>() {
        Ok(id) if text.bytes().all(|b| b.is_ascii_digit()) => Ok(id),
        _ => Err(malformed(url, "uid and gid are numbers")),
    }
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
    UrlError::Malformed { url: url.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nfs(text: &str) -> NfsUrl {
        match text.parse::<StoreUrl>() {
            Ok(StoreUrl::Nfs(url)) => url,
            other => panic!("{text}: {other:?}"),
        }
    }

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
    fn nfs_parts() {
        let url = nfs("nfs://10.0.0.5:2050/images//a/./x.img.zst?mountport=20048&uid=1000&gid=100");
        assert_eq!(url.host, "10.0.0.5");
        assert_eq!((url.port, url.mount_port), (Some(2050), Some(20048)));
        assert_eq!(url.path, "/images/a/x.img.zst");
        assert_eq!((url.uid, url.gid), (1000, 100));
        let six = nfs("NFS://[fd77::1]/i/x%23y");
        assert_eq!((six.host.as_str(), six.port, six.path.as_str()), ("fd77::1", None, "/i/x#y"));
        assert_eq!(six.to_string(), "nfs://[fd77::1]/i/x%23y");
    }

    #[test]
    fn refusals_say_what_to_do() {
        assert!(refused("nfs://user:secret@host/x").contains("?uid="));
        assert!(!refused("nfs://user:secret@host/x").contains("secret"));
        assert!(!refused("file://user:secret@host/x").contains("secret"));
        assert!(refused("nfs://host/x?password=secret").contains("user or a password"));
        assert!(refused("smb://host/share/x").contains("smb:// is not a store of this version"));
        assert!(refused("https://host/x").contains("nfs://"));
        assert!(refused("nfs://host/x?mntport=1").contains("mountport, uid and gid"));
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

        #[test]
        fn shown_and_parsed_again_is_the_same(
            path in "/[a-zA-Z0-9 %?#&=é._-]{1,20}/[a-z?%# ]{1,10}", port in proptest::option::of(1u16..), uid in any::<u32>()
        ) {
            prop_assume!(!path.contains("/./") && !path.contains("/../"));
            let url = StoreUrl::Nfs(NfsUrl { host: "h".into(), port, mount_port: port, path, uid, gid: uid });
            prop_assert_eq!(url.to_string().parse::<StoreUrl>(), Ok(url));
        }
    }
}
