//! `nfs4://host[:port]/export/folder/name[?option=value…]`.

use std::fmt;

use super::nfs::{NfsUrl, parse_as, write_options};
use super::{UrlError, authority, write_path};

/// The parts of an `nfs4://` URL.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Nfs4Url {
    /// Host name or address, IPv6 without brackets.
    pub host: String,
    /// The server's port; `None`: 2049. Nobody else is asked for it.
    pub port: Option<u16>,
    /// The absolute path of export, folders and file, decoded, without `.`, `..` and empty components.
    pub path: String,
    /// The user to act as (AUTH_SYS).
    pub uid: u32,
    /// The group to act as (AUTH_SYS).
    pub gid: u32,
}

impl Nfs4Url {
    /// The server as people call it: the host, and the port when it is an unusual one.
    #[must_use]
    pub fn server(&self) -> String {
        authority(&self.host, self.port)
    }
}

impl fmt::Display for Nfs4Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nfs4://{}", self.server())?;
        write_path(f, &self.path)?;
        let uid = Some(self.uid).filter(|&uid| uid != 0);
        let gid = Some(self.gid).filter(|&gid| gid != 0);
        write_options(f, &[("uid", uid), ("gid", gid)])
    }
}

pub(super) fn parse(url: &str, rest: &str) -> Result<Nfs4Url, UrlError> {
    let NfsUrl { host, port, path, uid, gid, .. } = parse_as("nfs4", url, rest)?;
    Ok(Nfs4Url { host, port, path, uid, gid })
}

#[cfg(test)]
mod tests {
    use super::super::StoreUrl;

    #[test]
    fn parts() {
        let text = "nfs4://[fd77::1]:2050/images/a%20b.img.zst?uid=1000&gid=100";
        let StoreUrl::Nfs4(url) = text.parse::<StoreUrl>().unwrap() else { panic!("{text}") };
        assert_eq!((url.host.as_str(), url.port), ("fd77::1", Some(2050)));
        assert_eq!(url.path, "/images/a b.img.zst");
        assert_eq!((url.uid, url.gid), (1000, 100));
        assert_eq!(StoreUrl::Nfs4(url).to_string(), text);
        assert_eq!("nfs4://h/i/x".parse::<StoreUrl>().unwrap().to_string(), "nfs4://h/i/x");
    }

    #[test]
    fn refusals_name_its_own_options() {
        let refused = |text: &str| text.parse::<StoreUrl>().expect_err(text).to_string();
        let no_mount = refused("nfs4://h/x?mountport=1");
        assert!(no_mount.contains("nfs4:// URLs; known are uid and gid"), "{no_mount}");
        assert!(!refused("nfs4://u:5ecre7@h/x").contains("5ecre7"));
        assert!(refused("nfs4:/h/x").contains("'//'"));
    }
}
