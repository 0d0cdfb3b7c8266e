//! Which credentials are for which URL.
//!
//! Each has a prefix: a server, a share or a folder. Of those that a URL lies beneath, the longest is taken. Compared are scheme, host,
//! port and whole names of the path, so that what is for `smb://nas/images` is for no `smb://nas/images2` and no `smb://nas.example/…`.
//! Deliberately absent: credentials for everybody. Those without a prefix are for the server of the job's own image, and no other
//! server that a job reads from ever sees them.

use agent_api::StoreAccess;

use super::StoreUrl;
use super::url::Place;
use crate::error::{Error, Result};

/// The credentials of a job.
#[derive(Debug, Clone, Default)]
pub struct Access(Vec<(StoreUrl, StoreAccess)>);

impl Access {
    /// Takes the credentials of a job; `own` are the images or folders that the job itself names.
    ///
    /// # Errors
    /// `refused` when a prefix is no URL of a server, or when it is missing and `own` are on several servers.
    pub fn new(list: Vec<StoreAccess>, own: &[StoreUrl]) -> Result<Self> {
        let mut entries = Vec::with_capacity(list.len());
        for access in list {
            if let Some(prefix) = prefix_of(&access, own)? {
                entries.push((prefix, access));
            }
        }
        Ok(Self(entries))
    }

    /// Those for this URL.
    #[must_use]
    pub fn of(&self, url: &StoreUrl) -> Option<&StoreAccess> {
        let place = url.place()?;
        let fitting = self.0.iter().filter_map(|(prefix, access)| {
            let prefix = prefix.place()?;
            prefix.covers(&place).then_some((names(prefix.path).count(), access))
        });
        // The first of several that are equally long, as they were given.
        fitting.rev().max_by_key(|(len, _)| *len).map(|(_, access)| access)
    }
}

fn prefix_of(access: &StoreAccess, own: &[StoreUrl]) -> Result<Option<StoreUrl>> {
    if access.prefix.is_empty() {
        let mut servers: Vec<StoreUrl> = Vec::new();
        for server in own.iter().filter_map(StoreUrl::server_root) {
            // Who comes, and how, may be spelled in two ways: it is one server.
            let is_known = |known: &StoreUrl| match (known.place(), server.place()) {
                (Some(known), Some(server)) => known.covers(&server),
                _ => false,
            };
            if !servers.iter().any(is_known) {
                servers.push(server);
            }
        }
        return match servers.len() {
            0 | 1 => Ok(servers.pop()),
            _ => Err(Error::refused(
                "credentials without a server do not say which of the servers they are for: put each under a line [URL]",
            )),
        };
    }
    let no_server = || {
        Error::refused(format!(
            "credentials are for '{}', which is no URL of a server, share or folder",
            super::url::shown(&access.prefix)
        ))
    };
    let prefix: StoreUrl = access.prefix.parse().map_err(|e| no_server().because(e))?;
    if prefix.place().is_none() {
        return Err(no_server());
    }
    Ok(Some(prefix))
}

impl Place<'_> {
    fn covers(&self, other: &Place<'_>) -> bool {
        let mut below = names(other.path);
        self.scheme == other.scheme
            && self.host.eq_ignore_ascii_case(other.host)
            && self.port == other.port
            && names(self.path).all(|name| below.next() == Some(name))
    }
}

fn names(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(prefix: &str, user: &str) -> StoreAccess {
        let (prefix, user) = (prefix.into(), Some(user.into()));
        StoreAccess { prefix, user, ..StoreAccess::default() }
    }

    fn url(text: &str) -> StoreUrl {
        text.parse().unwrap()
    }

    fn user_of(access: &Access, text: &str) -> Option<String> {
        access.of(&url(text))?.user.clone()
    }

    #[test]
    fn the_longest_prefix_of_whole_names_is_taken() {
        let list = vec![
            access("nfs://nas", "server"),
            access("nfs://nas/images", "share"),
            access("nfs://nas/images/", "twice"),
            access("nfs://nas:2050/images", "port"),
        ];
        let all = Access::new(list, &[]).unwrap();
        for (text, user) in [
            ("nfs://nas/images/x.img.zst", Some("share")),
            ("nfs://NAS:2049/images/a/x.img.zst", Some("share")),
            ("nfs://nas/images2/x.img.zst", Some("server")),
            ("nfs://nas:2050/images/x", Some("port")),
            ("nfs://nas:2050/x", None),
            ("nfs://nas.example/images/x", None),
            ("/images/x", None),
        ] {
            assert_eq!(user_of(&all, text).as_deref(), user, "{text}");
        }
    }

    #[test]
    fn without_a_prefix_they_are_for_the_jobs_own_server() {
        let own = [url("nfs://nas/images/x"), url("nfs://nas/other/y"), url("/a/file")];
        let one = Access::new(vec![access("", "me")], &own).unwrap();
        assert_eq!(user_of(&one, "nfs://nas/base").as_deref(), Some("me"));
        assert_eq!(user_of(&one, "nfs://elsewhere/base"), None);
        let spelled =
            ["smb://me@nas/a/x", "smb://nas/b/y?encrypt=yes", "/f", "smb://NAS:445/c"].map(url);
        let same = Access::new(vec![access("", "me")], &spelled).unwrap();
        assert_eq!(user_of(&same, "smb://nas/a/z").as_deref(), Some("me"));
        let two = [url("nfs://nas/x"), url("nfs://elsewhere/y")];
        let error = Access::new(vec![access("", "me")], &two).unwrap_err().to_string();
        assert!(error.contains("which of the servers"), "{error}");
        assert!(Access::new(vec![access("", "me")], &[url("/a")]).unwrap().0.is_empty());
    }

    #[test]
    fn what_is_no_server_has_no_credentials() {
        for prefix in ["/images", "nas", "gopher://nas/"] {
            let error = Access::new(vec![access(prefix, "me")], &[]).unwrap_err().to_string();
            assert!(error.contains(prefix) && error.contains("no URL of a server"), "{error}");
        }
        for prefix in ["https://me:hunter2@nas/", "smb://me:a/hunter2@nas/", "ftp://nas/?hunter2"] {
            let error = Access::new(vec![access(prefix, "me")], &[]).unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
