//! Where an image lies, as it is stored: a URL, or a file of a named store.

use std::fmt;
use std::str::FromStr;

use crate::names::{FileName, ImageUrl, NameError, StoreName};

const SCHEME: &str = "store:";

/// A URL, or `store:NAME/FILE`. Where a named store is, and how one gets in, is found out only when a job is handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Anywhere.
    Url(ImageUrl),
    /// In a store that has a name here.
    Store {
        /// Which.
        store: StoreName,
        /// The file's name there.
        file: FileName,
    },
}

impl Place {
    /// The store, if it has a name here.
    #[must_use]
    pub fn store(&self) -> Option<&StoreName> {
        match self {
            Self::Url(_) => None,
            Self::Store { store, .. } => Some(store),
        }
    }

    /// The file's name there, as it is written.
    #[must_use]
    pub fn file_name(&self) -> &str {
        match self {
            Self::Url(url) => url.file_name(),
            Self::Store { file, .. } => file.as_str(),
        }
    }
}

impl FromStr for Place {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/')) {
            Some((store, file)) => Ok(Self::Store { store: store.parse()?, file: file.parse()? }),
            None => text.parse().map(Self::Url),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => write!(f, "{url}"),
            Self::Store { store, file } => write!(f, "{SCHEME}{store}/{file}"),
        }
    }
}

/// A URL as it may be shown: of a web server without the query, which is often a secret, as in presigned URLs.
#[must_use]
pub fn shown(url: &str) -> String {
    let is_web = url.starts_with("http://") || url.starts_with("https://");
    match url.split_once('?').filter(|_| is_web) {
        Some((url, _)) => format!("{url}?…"),
        None => url.to_owned(),
    }
}

/// The URL of a file below a store's URL. Options of network stores stay behind the path: `nfs://h/images?uid=7` and `a` make
/// `nfs://h/images/a?uid=7`.
#[must_use]
pub fn below(store: &str, file: &str) -> String {
    let (folder, options) = split_options(store);
    format!("{}/{file}{options}", folder.trim_end_matches('/'))
}

/// A store's URL as far as every URL in it begins with it.
#[must_use]
pub fn folder_of(store: &str) -> &str {
    split_options(store).0.trim_end_matches('/')
}

fn split_options(url: &str) -> (&str, &str) {
    // In a path a question mark is one more character.
    match url.find('?').filter(|_| url.contains("://") && !url.starts_with("file:")) {
        Some(at) => url.split_at(at),
        None => (url, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_survives_its_text() {
        for text in ["nfs://h/e/a.img.zst", "/srv/a", "store:local/a.img.zst", "https://h/v1/a"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for text in [
            "store:local",
            "store:local/",
            "store:/a",
            "store:local/../a",
            "store:local/a/b",
            "store:local/a.partial",
        ] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }

    #[test]
    fn queries_of_web_servers_are_not_shown() {
        assert_eq!(shown("https://h/a.img.zst?X-Amz-Signature=5ecre7"), "https://h/a.img.zst?…");
        for text in ["https://h/a", "nfs://h/images?uid=7", "/srv/odd?name"] {
            assert_eq!(shown(text), text);
        }
    }

    #[test]
    fn options_stay_behind_the_path() {
        assert_eq!(below("nfs://h/images/", "a"), "nfs://h/images/a");
        assert_eq!(below("nfs://h/images?uid=7", "a"), "nfs://h/images/a?uid=7");
        assert_eq!(below("/srv/odd?name", "a"), "/srv/odd?name/a");
        assert_eq!(folder_of("nfs://h/images/?uid=7"), "nfs://h/images");
    }
}
