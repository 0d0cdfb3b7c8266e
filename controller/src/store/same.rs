//! Whether two places are the same file, however they are spelled.
//!
//! The same file can be written as a file of a named store, as one of another store with the same URL, or as a plain URL; with a default
//! port or without, with options, `%2e` or `//`. A [`Spot`] is equal for all of these. In doubt two places are taken for one: that
//! refuses something which could have been done, where the opposite would remove what somebody needs. Nothing is looked up: two names of
//! one server are two servers.

use std::collections::HashMap;

use super::below;

/// Where a file is. Made to be compared, not to be read or shown.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Spot(String);

/// Where every store is, as the database has it.
#[derive(Debug)]
pub struct Spots(HashMap<String, Option<String>>);

impl Spots {
    /// Of all stores, each with its URL; the controller's own has none.
    #[must_use]
    pub fn new(stores: impl IntoIterator<Item = (String, Option<String>)>) -> Self {
        Self(stores.into_iter().collect())
    }

    /// Where a place is, written as in the catalogue: a URL, or `store:NAME/FILE`.
    #[must_use]
    pub fn of(&self, place: &str) -> Spot {
        let named = place.strip_prefix("store:").and_then(|rest| rest.split_once('/'));
        let folder = named.and_then(|(store, file)| Some((self.0.get(store)?.as_ref()?, file)));
        match (folder, named) {
            (Some((folder, file)), _) => Spot(canonical(&below(folder, file))),
            (None, Some(_)) => Spot(place.to_owned()),
            (None, None) => Spot(canonical(place)),
        }
    }
}

fn canonical(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return match url.strip_prefix("file:") {
            Some(path) => local(&decoded(path)),
            None => local(url),
        };
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (server, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let server = server.rsplit_once('@').map_or(server, |(_, server)| server).to_ascii_lowercase();
    let (family, port) = match scheme {
        "file" => return local(&decoded(path)),
        // The same server and folder, as a rule.
        "nfs" | "nfs4" => ("nfs", ":2049"),
        "smb" => ("smb", ":445"),
        "http" => ("http", ":80"),
        "https" => ("https", ":443"),
        other => (other, ""),
    };
    let server = server.strip_suffix(port).unwrap_or(&server);
    let path = decoded(path);
    match family {
        // What a web server makes of a path and a query only it knows.
        "http" | "https" => format!("{family}://{server}{path}?{query}"),
        "smb" => format!("smb://{server}{}", clean(&path).to_lowercase()),
        _ => format!("{family}://{server}{}", clean(&path)),
    }
}

/// A path of whichever machine it is a path of.
fn local(path: &str) -> String {
    format!("file://{}", clean(path))
}

/// Without what leads nowhere.
fn clean(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.iter().map(|name| format!("/{name}")).collect()
}

/// With `%XX` as what it stands for; what is no such thing stays.
fn decoded(text: &str) -> String {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(byte) = bytes.get(at) {
        let value = match (byte, digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => u8::try_from(high * 16 + low).ok(),
            _ => None,
        };
        out.push(value.unwrap_or(*byte));
        at += if value.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spots() -> Spots {
        let store = |name: &str, url: Option<&str>| (name.to_owned(), url.map(str::to_owned));
        Spots::new([
            store("local", None),
            store("nas", Some("nfs://nas/images")),
            store("again", Some("nfs://NAS:2049/images/?uid=7")),
            store("share", Some("smb://nas/Images?encrypt=yes")),
            store("disk", Some("/srv/images")),
        ])
    }

    #[test]
    fn one_file_has_one_spot() {
        let spots = spots();
        for [one, other] in [
            ["store:nas/a.img.zst", "store:again/a.img.zst"],
            ["store:nas/a.img.zst", "nfs://nas/images/a.img.zst"],
            ["store:nas/a.img.zst", "nfs://nas//images/./%61.img.zst?gid=1"],
            ["store:nas/a.img.zst", "nfs4://nas/images/a.img.zst"],
            ["store:share/a.img.zst", "smb://me@NAS/images/A.img.zst"],
            ["store:disk/a.img.zst", "file:///srv/images/a.img.zst"],
            ["store:disk/a.img.zst", "/srv//x/../images/a.img.zst"],
            ["https://H/a.img.zst", "https://h:443/a.img.zst"],
        ] {
            assert_eq!(spots.of(one), spots.of(other), "{one} {other}");
        }
    }

    #[test]
    fn other_files_have_others() {
        let spots = spots();
        for [one, other] in [
            ["store:nas/a.img.zst", "store:local/a.img.zst"],
            ["store:nas/a.img.zst", "store:nas/A.img.zst"],
            ["store:nas/a.img.zst", "store:share/a.img.zst"],
            ["store:nas/a.img.zst", "nfs://nas:2050/images/a.img.zst"],
            ["store:gone/a.img.zst", "store:local/a.img.zst"],
            ["https://h/get?a", "https://h/get?b"],
            ["/a%2eb", "/a.b"],
        ] {
            assert_ne!(spots.of(one), spots.of(other), "{one} {other}");
        }
    }
}
