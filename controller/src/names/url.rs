//! What a URL of an image or a store may be: what `imprint-agent` will take.
//!
//! The same rules as the agent's own parser has (`ramdisk-agent/src/store/url`), so that what no agent could use is refused where it comes
//! in and not by a job hours later. Nothing is looked up.

/// What must be there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A file.
    Image,
    /// A folder.
    Store,
}

const RULE: &str = "an nfs://, nfs4://, smb://, http(s):// or file: URL or an absolute path, up to 1024 printable characters, without a password in it";

/// What is wrong with a URL, as a rule that it breaks.
pub(super) fn fault(text: &str, wanted: Wanted) -> Option<&'static str> {
    if !super::is_plain(text, super::URL_MAX) || text.contains(char::is_whitespace) {
        return Some(RULE);
    }
    if let Some(path) = text.strip_prefix("file:").or(Some(text)).filter(|t| t.starts_with('/')) {
        return (path.len() <= 1).then_some(RULE);
    }
    let Some((scheme, rest)) = text.split_once("://") else { return Some(RULE) };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (user, server) = authority.rsplit_once('@').unwrap_or(("", authority));
    let is_share = matches!(scheme, "nfs" | "nfs4" | "smb");
    let is_sound = (is_share || matches!(scheme, "http" | "https"))
        // Elsewhere a user comes with the credentials.
        && (scheme == "smb" || !authority.contains('@'))
        && !user.contains(':')
        && !user.to_ascii_lowercase().contains("%3a")
        // A password may hold a '/', and then ends what looks like the server.
        && has_port_or_none(server)
        && !(is_share && has_secret_option(rest));
    if !is_sound {
        return Some(RULE);
    }
    if !is_host(server) || (authority.contains('@') && user.is_empty()) {
        return Some(
            "it needs a host: letters, digits, '.', '-' and '_', or an IPv6 address in brackets",
        );
    }
    if rest.contains('#') {
        return Some("'#' has no meaning in it: write %23 for one in a name");
    }
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let Some(path) = decoded(&path[authority.len()..]) else {
        return Some("'%' stands before two hexadecimal digits of UTF-8 text in it");
    };
    path_fault(scheme, &path, wanted).or_else(|| option_fault(scheme, query))
}

fn path_fault(scheme: &str, path: &str, wanted: Wanted) -> Option<&'static str> {
    let is_web = scheme.starts_with("http");
    let mut names = path.split('/').filter(|name| !matches!(*name, "" | "."));
    if path.split('/').any(|name| name == ".." || (is_web && name == ".")) {
        return Some("'.' and '..' are not allowed in its path: write it out");
    }
    if path.contains('\0') || (!is_web && names.clone().any(|name| name.len() > 255)) {
        return Some("a name in its path is longer than 255 bytes or has a zero byte");
    }
    if scheme == "smb" && path.contains('\\') {
        return Some("names on an SMB share have no '\\': folders are separated by '/'");
    }
    if scheme == "smb" && path.contains([':', '*', '?', '"', '<', '>', '|']) {
        return Some("names on an SMB share have none of the signs : * ? \" < > |");
    }
    match (scheme, wanted, names.by_ref().take(2).count()) {
        ("nfs", Wanted::Store, 0) => Some("it needs a folder: nfs://HOST/EXPORT/FOLDER"),
        ("smb", Wanted::Store, 0) => Some("it needs a share: smb://HOST/SHARE/FOLDER"),
        ("smb", Wanted::Image, 0 | 1) => Some("it needs a share and a file: smb://HOST/SHARE/FILE"),
        (_, Wanted::Image, 0) => Some("it needs a file behind the host"),
        _ => None,
    }
}

fn option_fault(scheme: &str, query: &str) -> Option<&'static str> {
    let is_number =
        |text: &str| text.parse::<u32>().is_ok() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_port = |text: &str| is_number(text) && text.parse::<u16>().is_ok_and(|port| port > 0);
    let mut options = query
        .split('&')
        .filter(|option| !option.is_empty())
        .map(|option| option.split_once('=').unwrap_or((option, "")));
    let mut names: Vec<&str> = options.clone().map(|(name, _)| name).collect();
    names.sort_unstable();
    if !scheme.starts_with("http") && names.windows(2).any(|pair| pair[0] == pair[1]) {
        return Some("it gives an option more than once");
    }
    let (is_known, rule): (bool, _) = match scheme {
        "nfs" => (
            options.all(|(name, value)| match name {
                "mountport" => is_port(value),
                "uid" | "gid" => is_number(value),
                _ => false,
            }),
            "its options are mountport=PORT, uid=NUMBER and gid=NUMBER",
        ),
        "nfs4" => (
            options.all(|(name, value)| matches!(name, "uid" | "gid") && is_number(value)),
            "its options are uid=NUMBER and gid=NUMBER",
        ),
        "smb" => (
            options.all(|option| matches!(option, ("encrypt", "yes" | "no"))),
            "its option is encrypt=yes or encrypt=no",
        ),
        // Of a web server the query is the server's own.
        _ => return None,
    };
    (!is_known).then_some(rule)
}

fn is_host(server: &str) -> bool {
    let host = match server.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, _)) => {
            return host.bytes().all(|b| b.is_ascii_alphanumeric() || b":.%".contains(&b))
                && !host.is_empty();
        }
        None => server.split(':').next().unwrap_or_default(),
    };
    !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
}

fn has_port_or_none(server: &str) -> bool {
    let behind = server.rsplit_once(']').map_or(server, |(_, behind)| behind);
    behind.split_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Whether a share's options say who comes.
fn has_secret_option(rest: &str) -> bool {
    let options = rest.split_once('?').map_or("", |(_, options)| options);
    let name = |option: &str| option.split('=').next().unwrap_or_default().to_ascii_lowercase();
    let secret = ["user", "username", "password", "pass"];
    options.split('&').any(|option| secret.contains(&name(option).as_str()))
}

/// With `%XX` as what it stands for.
fn decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16));
        out.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ramdisk_agent::store::StoreUrl as AgentUrl;

    use super::super::{ImageUrl, StoreUrl};

    fn image(text: &str) -> Result<ImageUrl, String> {
        text.parse().map_err(|error: super::super::NameError| error.to_string())
    }

    fn store(text: &str) -> Result<StoreUrl, String> {
        text.parse().map_err(|error: super::super::NameError| error.to_string())
    }

    #[test]
    fn what_the_agent_refuses_is_refused_and_why() {
        for (text, why) in [
            ("nfs://h/images/../x", "'..'"),
            ("nfs://h/images/%2e%2E/x", "'..'"),
            ("https://h/a/./x", "'..'"),
            ("nfs://h/images/x?foo=1", "mountport=PORT, uid=NUMBER"),
            ("nfs://h/images/x?uid=me", "uid=NUMBER"),
            ("nfs://h/images/x?uid=1&uid=1", "more than once"),
            ("smb://h/s/x?encrypt=no&encrypt=yes", "more than once"),
            ("nfs4://h/images/x?mountport=1", "uid=NUMBER and gid=NUMBER"),
            ("smb://h/guest/x?encrypt=maybe", "encrypt=yes"),
            ("smb://h/s/a\\b", "SMB share"),
            ("nfs://h/a#b", "%23"),
            ("nfs://h/a%2", "hexadecimal"),
            ("nfs://h,i/a/x", "host"),
        ] {
            assert!(text.parse::<AgentUrl>().is_err(), "{text}");
            for error in [image(text).unwrap_err(), store(text).unwrap_err()] {
                assert!(error.contains(why), "{text}: {error}");
            }
        }
    }

    #[test]
    fn a_store_needs_a_folder_where_there_is_no_other_place() {
        for (text, why) in [
            ("nfs://h/", "needs a folder"),
            ("nfs://h", "needs a folder"),
            ("smb://h/", "needs a share"),
        ] {
            assert!(store(text).unwrap_err().contains(why), "{text}");
        }
        for text in [
            "http://h:8088/",
            "https://h",
            "nfs4://h/",
            "smb://h/s",
            "nfs://h/i?uid=7&gid=7&mountport=20048",
        ] {
            assert!(store(text).is_ok(), "{text}");
        }
        for text in ["http://h:8088/", "nfs4://h/", "smb://h/s"] {
            assert!(image(text).unwrap_err().contains("file"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_agent_takes_what_is_taken_here(
            scheme in "(nfs4?|smb|https?)", host in r"([a-z0-9.\-_]{1,8}|\[::1\])(:[0-9]{1,5})?",
            path in r"(/[a-z%0-9.~\\]{0,5}){1,4}", query in r"(\?((uid|gid|mountport|encrypt|x)=[a-z0-9]{0,3}&?){0,3})?",
        ) {
            let text = format!("{scheme}://{host}{path}{query}");
            if image(&text).is_ok() || store(&text).is_ok() {
                prop_assert!(text.parse::<AgentUrl>().is_ok(), "{}", text);
            }
        }
    }
}
