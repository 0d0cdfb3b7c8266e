//! `nfs://host[:port]/export/folder/name[?option=value…]`.

use std::fmt;

use super::{
    UrlError, authority, malformed, parse_authority, parse_path, parse_port, set_once,
    unknown_option, write_path,
};

/// Where the NFS program usually is.
pub(super) const PORT: u16 = 2049;

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

impl NfsUrl {
    /// The server as people call it: the host, and the port when it is an unusual one.
    #[must_use]
    pub fn server(&self) -> String {
        authority(&self.host, self.port)
    }
}

impl fmt::Display for NfsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nfs://{}", self.server())?;
        write_path(f, &self.path)?;
        let uid = Some(self.uid).filter(|&uid| uid != 0);
        let gid = Some(self.gid).filter(|&gid| gid != 0);
        write_options(
            f,
            &[("mountport", self.mount_port.map(u32::from)), ("uid", uid), ("gid", gid)],
        )
    }
}

/// Writes those options that have a value.
pub(super) fn write_options(
    f: &mut fmt::Formatter<'_>,
    options: &[(&str, Option<u32>)],
) -> fmt::Result {
    let mut separator = '?';
    for (name, value) in options {
        if let Some(value) = value {
            write!(f, "{separator}{name}={value}")?;
            separator = '&';
        }
    }
    Ok(())
}

pub(super) fn parse(url: &str, rest: &str) -> Result<NfsUrl, UrlError> {
    parse_as("nfs", url, rest)
}

/// Parses the URL of an NFS share of any version; only `nfs` has MOUNT's port.
pub(super) fn parse_as(scheme: &'static str, url: &str, rest: &str) -> Result<NfsUrl, UrlError> {
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
    let path = parse_path(url, path)?;
    let (mut mount_port, mut uid, mut gid) = (None, None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match name {
            "mountport" if scheme == "nfs" => {
                set_once(&mut mount_port, "mountport", parse_port(url, value)?)?;
            }
            "uid" => set_once(&mut uid, "uid", parse_id(url, value)?)?,
            "gid" => set_once(&mut gid, "gid", parse_id(url, value)?)?,
            "user" | "username" | "password" | "pass" => return Err(UrlError::Credentials),
            other => {
                let known = if scheme == "nfs" { "mountport, uid and gid" } else { "uid and gid" };
                return Err(unknown_option(other, scheme, known));
            }
        }
    }
    let (uid, gid) = (uid.unwrap_or(0), gid.unwrap_or(0));
    Ok(NfsUrl { host, port, mount_port, path, uid, gid })
}

fn parse_id(url: &str, text: &str) -> Result<u32, UrlError> {
    match text.parse::<u32>() {
        Ok(id) if text.bytes().all(|b| b.is_ascii_digit()) => Ok(id),
        _ => Err(malformed(url, "uid and gid are numbers")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::StoreUrl;
    use super::*;

    fn nfs(text: &str) -> NfsUrl {
        match text.parse::<StoreUrl>() {
            Ok(StoreUrl::Nfs(url)) => url,
            other => panic!("{text}: {other:?}"),
        }
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

    proptest! {
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
