//! Names and values that end up in generated files, scripts, paths or argument lists.
//!
//! Each is checked once, where it comes in, and is a type of its own afterwards, so that a boot script, a DHCP entry or a command
//! line can only be built from values that need no quoting. What is allowed is listed; everything else is refused.

mod url;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest kernel command line that a host or `serve` may add, in bytes (the kernel takes 2,048 in all on x86).
pub const KERNEL_ARGS_MAX: usize = 512;
/// Longest URL of an image, in bytes.
pub const URL_MAX: usize = 1024;
/// Longest disk selector, in bytes.
pub const SELECTOR_MAX: usize = 256;
/// What the name of a file ends in while it is being written.
pub const PARTIAL_SUFFIX: &str = ".partial";
/// Longest free text (notes, descriptions), in bytes.
pub const TEXT_MAX: usize = 2048;

/// A value that is not allowed, and what would be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a valid {what}: {rule}")]
pub struct NameError {
    what: &'static str,
    value: String,
    rule: &'static str,
}

fn refuse(what: &'static str, value: &str, rule: &'static str) -> NameError {
    // A URL that is refused may hold a password, wherever in it; a hostile value may be long: the message need not be.
    let value = match value.split_once("://") {
        Some((scheme, _)) => format!("{}://…", scheme.chars().take(20).collect::<String>()),
        None => value.chars().take(80).collect(),
    };
    NameError { what, value, rule }
}

macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $check:expr) => {
        text_type! {
            $(#[$doc])* $name, $what, |text| {
                let check: fn(&str) -> bool = $check;
                (!check(text)).then_some($rule)
            }
        }
    };
    ($(#[$doc:meta])* $name:ident, $what:literal, $fault:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String)]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                let fault: fn(&str) -> Option<&'static str> = $fault;
                match fault(text) {
                    None => Ok(Self(text.to_owned())),
                    Some(rule) => Err(refuse($what, text, rule)),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn is_lower_alnum(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_name(text: &str, max: usize, extra: &[u8]) -> bool {
    text.len() <= max
        && text.bytes().next().is_some_and(is_lower_alnum)
        && text.bytes().all(|b| is_lower_alnum(b) || extra.contains(&b))
        && !text.contains("..")
}

fn is_plain(text: &str, max: usize) -> bool {
    text.len() <= max && !text.chars().any(char::is_control)
}

text_type! {
    /// Name of a host.
    HostName, "host name",
    "1 to 63 of a-z, 0-9, '.' and '-', beginning with a letter or digit, without '..'",
    |text| is_name(text, 63, b".-")
}

text_type! {
    /// Name of an image, of an API token.
    ImageName, "name",
    "1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit, without '..'",
    |text| is_name(text, 64, b"._-")
}

text_type! {
    /// Name of a store.
    StoreName, "store name",
    "1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit, without '..'",
    |text| is_name(text, 64, b"._-")
}

text_type! {
    /// Name of a finished file in a store: an image's, or of what belongs to one.
    FileName, "file name",
    "1 to 128 of letters, digits, '.', '_' and '-', beginning with a letter or digit, without '..', not ending in .partial",
    |text| is_name(&text.to_ascii_lowercase(), 128, b"._-") && !text.ends_with(PARTIAL_SUFFIX)
}

text_type! {
    /// Arguments for the agent's kernel, separated by single spaces.
    KernelArgs, "kernel argument list",
    "up to 512 of letters, digits and =,.:/_@+- between single spaces; imprint.controller and imprint.pin are set by the controller",
    |text| text.is_empty() || (text.len() <= KERNEL_ARGS_MAX && text.split(' ').all(is_kernel_arg))
}

fn is_kernel_arg(arg: &str) -> bool {
    !arg.is_empty()
        && arg.bytes().all(|b| b.is_ascii_alphanumeric() || b"=,.:/_@+-".contains(&b))
        && !arg.starts_with("imprint.controller")
        && !arg.starts_with("imprint.pin")
}

text_type! {
    /// Where an image lies.
    ImageUrl, "image URL", |text| url::fault(text, url::Wanted::Image)
}

impl ImageUrl {
    /// The last part of its path as it is written, without options.
    #[must_use]
    pub fn file_name(&self) -> &str {
        let text = self.as_str();
        // A file of this machine may have a '?' in its path.
        let is_local = text.starts_with('/') || text.starts_with("file:");
        let path = if is_local { text } else { text.split('?').next().unwrap_or_default() };
        path.rsplit('/').next().unwrap_or_default()
    }
}

text_type! {
    /// Where a store is: a folder of a server.
    StoreUrl, "URL of a store", |text| url::fault(text, url::Wanted::Store)
}

text_type! {
    /// Which disk of a machine: a device path or a selector such as `serial=VBLK01`. The agent knows what it fits.
    DiskSelector, "disk selector",
    "a path such as /dev/sda, or terms such as serial=…, wwn=…, model=…, transport=…, by-path=…, size>=100G, size<=2T, smallest>=100G, joined with commas; up to 256 printable characters",
    |text| is_plain(text, SELECTOR_MAX) && text.parse::<agent_api::Selector>().is_ok()
}

text_type! {
    /// Free text for people.
    FreeText, "text",
    "up to 2048 characters without control characters",
    |text| is_plain(text, TEXT_MAX)
}

/// What somebody else wrote, fit for a terminal, a log and a database: without control characters, at most `max` characters.
#[must_use]
pub fn printable(text: &str, max: usize) -> String {
    let shown = |c: char| if c.is_whitespace() { ' ' } else { c };
    text.chars().map(shown).filter(|c| !c.is_control()).take(max).collect()
}

/// A MAC address; its text form is `52:54:00:77:00:01`.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "52:54:00:77:00:01")]
pub struct Mac([u8; 6]);

impl Mac {
    /// With `-` between the bytes, as in `BOOTIF=01-52-54-00-77-00-01`.
    #[must_use]
    pub fn hyphenated(self) -> String {
        self.to_string().replace(':', "-")
    }
}

impl FromStr for Mac {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let fail =
            || refuse("MAC address", text, "six hex bytes with ':' or '-' between, one machine's");
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut bytes = [0; 6];
        let mut parts = text.split(separator);
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(fail)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(fail());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| fail())?;
        }
        // No machine has a group address or all zeros.
        if parts.next().is_some() || bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Err(fail());
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Mac {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An SMBIOS system UUID, lower case; `None` for texts that name no machine (empty, all zeros, all ones).
#[must_use]
pub fn machine_uuid(text: &str) -> Option<String> {
    let text = text.trim().to_ascii_lowercase();
    let shape = text.len() == 36
        && text.bytes().enumerate().all(|(at, b)| match at {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        });
    let says_something = text.bytes().any(|b| b != b'0' && b != b'-')
        && text.bytes().any(|b| b != b'f' && b != b'-');
    (shape && says_something).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Things that must not get into any generated file.
    const HOSTILE: &[&str] = &[
        "",
        " ",
        "a b",
        "a\nb",
        "a\rb",
        "a\0b",
        "../x",
        "a/../b",
        "a..b",
        "a/b",
        "a\\b",
        "${net0/mac}",
        "a;b",
        "a|b",
        "a`b",
        "a$(b)",
        "-a",
        ".a",
        "A",
        "é",
        "a\u{202e}b",
        "a\"b",
        "a'b",
        "a,b",
        "a#b",
        "a=b",
        "#!ipxe",
        "%2e%2e",
        "a\tb",
        "a:b",
    ];

    #[test]
    fn hostile_names_are_refused() {
        for text in HOSTILE {
            assert!(text.parse::<HostName>().is_err(), "{text:?}");
            assert!(text.parse::<ImageName>().is_err(), "{text:?}");
            assert!(text.parse::<Mac>().is_err(), "{text:?}");
        }
        assert!("a".repeat(64).parse::<HostName>().is_err());
        for text in ["node7", "rack-1.node-2", "7"] {
            assert!(text.parse::<HostName>().is_ok(), "{text:?}");
        }
        assert!("debian-12_a.b".parse::<ImageName>().is_ok());
        for text in HOSTILE.iter().filter(|text| **text != "A") {
            assert!(text.parse::<StoreName>().is_err(), "{text:?}");
            assert!(text.parse::<FileName>().is_err(), "{text:?}");
        }
        assert!("a.img.zst.partial".parse::<FileName>().is_err());
        assert!("Debian-12.img.zst".parse::<FileName>().is_ok());
    }

    #[test]
    fn kernel_args() {
        for text in ["", "console=ttyS0,115200n8", "a b", "ip=10.0.0.1::10.0.0.2", "imprint.hold"] {
            assert!(text.parse::<KernelArgs>().is_ok(), "{text:?}");
        }
        for text in [
            " a",
            "a  b",
            "a\nboot",
            "a${x}",
            "a;b",
            "a|b",
            "a&b",
            "\"",
            "imprint.pin=00",
            "imprint.controller=https://x",
            "a{b}",
        ] {
            assert!(text.parse::<KernelArgs>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_names_of_images_in_urls() {
        for text in [
            "nfs://h/i/a.raw",
            "nfs://h/i/a.raw?uid=7&gid=7",
            "file:///srv/a.raw",
            "file:///srv/b?c/a.raw",
        ] {
            assert_eq!(text.parse::<ImageUrl>().unwrap().file_name(), "a.raw", "{text}");
        }
    }

    #[test]
    fn image_urls() {
        for text in [
            "nfs://10.0.0.5/images/a.img.zst",
            "/srv/a.img.zst",
            "file:/srv/a",
            "file:///srv/a",
            "nfs4://nas/images/a.img.zst?uid=7&gid=7",
            "smb://user@srv/share/a",
            "https://srv:8443/a",
        ] {
            assert!(text.parse::<ImageUrl>().is_ok(), "{text:?}");
        }
        for text in [
            "",
            "a",
            "nfs://",
            "nfs:///x",
            "nfs://h",
            "nfs://h/",
            "smb://u:p@h/s/a",
            "smb://u:p/w@h/s/a",
            "smb://u:p?w@h/s/a",
            "smb://u:p@w@h/s/a",
            "smb://u%3Ap@h/s/a",
            "smb://h/s/a?password=p",
            "nfs://h/a?uid=7&PASS=p",
            "nfs://u@h/a",
            "nfs4://u@h/a",
            "nfs4://h/a?password=p",
            "https://u@h/a",
            "https://h:0/a",
            "https://h:8x/a",
            "ftp://h/a",
            "nfs://h/a b",
            "nfs://h/a\n",
            "/",
        ] {
            assert!(text.parse::<ImageUrl>().is_err(), "{text:?}");
        }
        for text in [
            "smb://u@h/s/a",
            "smb://u@[::1]:445/s/a",
            "nfs://h:2049/a@b:c?uid=7",
            "https://h/a?password=of-presigned",
            "https://[fd77::1]/a",
        ] {
            assert!(text.parse::<ImageUrl>().is_ok(), "{text:?}");
        }
        for text in ["smb://u:5ecre7@h/s/a", "smb://u:a/5ecre7@h/s/a", "https://5ecre7@h/a"] {
            let error = text.parse::<ImageUrl>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("5ecre7"), "{error}");
        }
    }

    #[test]
    fn macs() {
        let mac: Mac = "52-54-00-77-00-0A".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:77:00:0a");
        assert_eq!(mac.hyphenated(), "52-54-00-77-00-0a");
        for text in [
            "00:00:00:00:00:00",
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
            "52:54:00:77:00",
            "52:54:00:77:00:01:02",
            "+2:54:00:77:00:01",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn others_texts_command_no_terminal() {
        assert_eq!(printable("a\n\u{1b}[2Jb\t\0\u{9b}c", 100), "a [2Jb c");
        assert_eq!(printable("abc", 2), "ab");
    }

    #[test]
    fn uuids_that_say_nothing_are_none() {
        assert_eq!(machine_uuid("00000000-0000-0000-0000-000000000000"), None);
        assert_eq!(machine_uuid("FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF"), None);
        assert_eq!(machine_uuid("x"), None);
        assert_eq!(
            machine_uuid("4C4C4544-0000-2010-8020-80C04F202020\n").unwrap(),
            "4c4c4544-0000-2010-8020-80c04f202020"
        );
    }

    proptest! {
        #[test]
        fn a_name_that_is_accepted_needs_no_quoting(text in any::<String>()) {
            if let Ok(name) = text.parse::<HostName>() {
                prop_assert!(name.as_str().bytes().all(|b| is_lower_alnum(b) || b == b'.' || b == b'-'));
            }
            if let Ok(args) = text.parse::<KernelArgs>() {
                let special = args.as_str().bytes().find(|b| b"\n\r${;|&\"'`\\".contains(b));
                prop_assert_eq!(special, None);
            }
        }

        #[test]
        fn macs_survive_their_text(bytes in any::<[u8; 6]>()) {
            let mac = Mac(bytes);
            match mac.to_string().parse::<Mac>() {
                Ok(parsed) => prop_assert_eq!(parsed, mac),
                Err(_) => prop_assert!(bytes[0] & 1 == 1 || bytes == [0; 6]),
            }
        }
    }
}
