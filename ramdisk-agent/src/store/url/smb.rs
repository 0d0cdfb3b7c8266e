//! `smb://[user@]host[:port]/share/folder/name[?encrypt=yes]`.

use std::fmt;

use super::{
    UrlError, authority, malformed, parse_authority, parse_path, percent_decode, set_once,
    unknown_option, write_path,
};

/// The port that SMB servers listen on.
pub(super) const PORT: u16 = 445;

/// The parts of an `smb://` URL.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SmbUrl {
    /// The user to log in as; its password comes from elsewhere. `None`: what the credentials say, else a guest.
    pub user: Option<String>,
    /// Host name or address, IPv6 without brackets.
    pub host: String,
    /// The port; `None`: 445.
    pub port: Option<u16>,
    /// The absolute path of share, folders and file, decoded, without `.`, `..` and empty components.
    pub path: String,
    /// Refuse to go on without encryption.
    pub encrypt: bool,
}

impl SmbUrl {
    /// The server as people call it: the host, and the port when it is an unusual one.
    #[must_use]
    pub fn server(&self) -> String {
        authority(&self.host, self.port)
    }

    /// The share's name; empty where only the server is named, as credentials do.
    #[must_use]
    pub fn share(&self) -> &str {
        let path = self.path.trim_start_matches('/');
        path.split_once('/').map_or(path, |(share, _)| share)
    }

    /// The path below the share, without a slash before it; empty for the share itself.
    #[must_use]
    pub fn below_share(&self) -> &str {
        let path = self.path.trim_start_matches('/');
        path.split_once('/').map_or("", |(_, below)| below)
    }
}

impl fmt::Display for SmbUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("smb://")?;
        if let Some(user) = &self.user {
            for byte in user.bytes() {
                match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                        write!(f, "{}", char::from(byte))?;
                    }
                    other => write!(f, "%{other:02X}")?,
                }
            }
            f.write_str("@")?;
        }
        f.write_str(&self.server())?;
        write_path(f, &self.path)?;
        if self.encrypt { f.write_str("?encrypt=yes") } else { Ok(()) }
    }
}

/// What no name has in the file systems that SMB is for (MS-FSCC 2.1.5.2), and '\\' besides.
const NOT_IN_NAMES: [char; 7] = [':', '*', '?', '"', '<', '>', '|'];

pub(super) fn parse(url: &str, rest: &str) -> Result<SmbUrl, UrlError> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    let (user, authority) = match authority.rsplit_once('@') {
        Some((user, _)) if user.contains(':') => return Err(UrlError::Password),
        Some((user, authority)) => (Some(percent_decode(url, user)?), authority),
        None => (None, authority),
    };
    // No account has one in its name: it is a password that was hidden from the line above.
    if user.as_deref().is_some_and(|user| user.contains(':')) {
        return Err(UrlError::Password);
    }
    if user.as_deref().is_some_and(|user| user.is_empty() || user.len() > 255) {
        return Err(malformed(url, "the user before the '@' is empty or too long"));
    }
    if rest.contains('#') || query.contains('#') {
        return Err(malformed(url, "'#' has no meaning here: write %23 for one in a name"));
    }
    let (host, port) = parse_authority(url, authority)?;
    let path = parse_path(url, path)?;
    if path.contains('\\') {
        return Err(malformed(
            url,
            "names on an SMB share have no '\\': folders are separated by '/'",
        ));
    }
    // Behind a ':' a server sees a second stream of the file before it; the others stand for many names.
    if path.contains(NOT_IN_NAMES) {
        return Err(malformed(
            url,
            "names on an SMB share have none of the signs : * ? \" < > |, which mean something else there",
        ));
    }
    let mut encrypt = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match (name, value) {
            ("encrypt", "yes") => set_once(&mut encrypt, "encrypt", true)?,
            ("encrypt", "no") => set_once(&mut encrypt, "encrypt", false)?,
            ("encrypt", _) => return Err(malformed(url, "encrypt is yes or no")),
            ("user" | "username" | "password" | "pass", _) => return Err(UrlError::Password),
            (other, _) => {
                return Err(unknown_option(other, "smb", "encrypt=yes and encrypt=no"));
            }
        }
    }
    Ok(SmbUrl { user, host, port, path, encrypt: encrypt.unwrap_or(false) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::StoreUrl;
    use super::*;

    fn smb(text: &str) -> SmbUrl {
        match text.parse::<StoreUrl>() {
            Ok(StoreUrl::Smb(url)) => url,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn parts() {
        let url = smb("smb://imprint@nas:4455/images//a/./x%20y.img.zst?encrypt=yes");
        assert_eq!(
            (url.user.as_deref(), url.host.as_str(), url.port),
            (Some("imprint"), "nas", Some(4455))
        );
        assert_eq!((url.share(), url.below_share()), ("images", "a/x y.img.zst"));
        assert!(url.encrypt);
        assert_eq!(url.to_string(), "smb://imprint@nas:4455/images/a/x%20y.img.zst?encrypt=yes");
        let root = smb("SMB://[fd77::1]/images");
        assert_eq!((root.share(), root.below_share(), &root.user), ("images", "", &None));
        assert_eq!((smb("smb://nas").share(), smb("smb://nas/").below_share()), ("", ""));
    }

    #[test]
    fn refusals() {
        for (text, word) in [
            ("smb://user:secret@nas/images/x", "password"),
            ("smb://user%3Asecret@nas/images/x", "password"),
            ("smb://user:a/secret@nas/images/x", "port"),
            ("smb://nas/images/x?password=secret", "password"),
            ("smb://nas/images/a%5Cb", "separated by '/'"),
            ("smb://nas/images/x:y.img.zst", "none of the signs :"),
            ("smb://nas/images/x%3Ay/z", "none of the signs :"),
            ("smb://nas/images/%22x%22", "none of the signs :"),
            ("smb://@nas/i/x", "empty"),
            ("smb://nas/i/x?seal", "known are encrypt"),
            ("smb://nas/i/x?encrypt=perhaps", "yes or no"),
            ("smb://nas/i/x?encrypt=yes&encrypt=no", "encrypt more than once"),
            (
                "smb://nas/i/x?v=3&secret",
                "v is not an option of smb:// URLs; known are encrypt=yes",
            ),
            ("smb://nas/i/x?secret@y", "what is behind the '?' is not an option"),
            ("smb://user:1?secret@nas/i/x", "is not an option"),
        ] {
            let error = text.parse::<StoreUrl>().expect_err(text).to_string();
            assert!(error.contains(word), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn shown_and_parsed_again_is_the_same(
            path in "/[a-zA-Z0-9 %#&=é._-]{1,20}/[a-z%# ]{1,10}", port in proptest::option::of(1u16..),
            user in proptest::option::of("[a-zA-Z\\\\@é]{1,9}"), encrypt in any::<bool>()
        ) {
            prop_assume!(!path.contains("/./") && !path.contains("/../"));
            let url = StoreUrl::Smb(SmbUrl { user, host: "h".into(), port, path, encrypt });
            prop_assert_eq!(url.to_string().parse::<StoreUrl>(), Ok(url));
        }
    }
}
