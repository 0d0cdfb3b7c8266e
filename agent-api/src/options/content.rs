//! Files that a job brings along: read from disk where a command line names them, base64 in JSON, and nowhere in a log.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// What all files of a job may have together: requests and jobs have at most 1 MiB, and base64 takes a third more.
pub const MAX_CONTENT: usize = 512 << 10;
/// The longest path of a file in a restored system.
const MAX_PATH: usize = 1024;
/// The longest name of a file that filesystems have.
const MAX_NAME: usize = 255;
/// Where every system has the kernel's own filesystems, and one in memory: what is put there on the disk is never seen.
const NOT_ON_DISK: [&str; 4] = ["dev", "proc", "sys", "run"];

/// The bytes of a file. They may hold secrets: `Debug` shows how many there are.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Content(Vec<u8>);

impl Content {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads a file, of a size that a job can have.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub fn read(path: &Path) -> Result<Self, String> {
        let found = Self::read_if_there(path)?;
        found.ok_or_else(|| format!("there is no file {}", path.display()))
    }

    pub(super) fn read_if_there(path: &Path) -> Result<Option<Self>, String> {
        let failed = |e: io::Error| format!("reading {}: {e}", path.display());
        let file = match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed)?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_CONTENT as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() > MAX_CONTENT {
            return Err(format!("{} has more than {MAX_CONTENT} bytes", path.display()));
        }
        Ok(Some(Self(bytes)))
    }
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl TryFrom<String> for Content {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // The text itself is not for an error message.
        STANDARD
            .decode(text)
            .map(Self)
            .map_err(|_| "the content of a file is not base64".to_owned())
    }
}

impl From<Content> for String {
    fn from(content: Content) -> Self {
        STANDARD.encode(content.0)
    }
}

/// The permissions of a file; in text octal, as chmod has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileMode(u32);

impl FileMode {
    /// The bits.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl FromStr for FileMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_octal = (3..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        let bits = u32::from_str_radix(text, 8).ok().filter(|bits| is_octal && *bits <= 0o7777);
        bits.map(Self).ok_or_else(|| {
            format!("'{}' is no mode of a file: those are like 0644", text.escape_debug())
        })
    }
}

impl TryFrom<String> for FileMode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<FileMode> for String {
    fn from(mode: FileMode) -> Self {
        mode.to_string()
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// A file to put into the restored system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewFile {
    /// Its absolute path in that system.
    pub path: String,
    /// What is to be in it.
    pub content: Content,
    /// Its permissions; `None`: those of the file that it replaces, or 0644.
    #[serde(default)]
    pub mode: Option<FileMode>,
}

impl NewFile {
    /// Takes `PATH=SOURCE[:MODE]` apart and reads the source.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let (path, rest) = text
            .split_once('=')
            .ok_or("a file is wanted as PATH-IN-THE-SYSTEM=SOURCE[:MODE]".to_owned())?;
        let mode = |(source, mode): (&str, &str)| Some((source.to_owned(), mode.parse().ok()?));
        let (source, mode) = match rest.rsplit_once(':').and_then(mode) {
            Some((source, mode)) => (source, Some(mode)),
            None => (rest.to_owned(), None),
        };
        let content = Content::read(Path::new(&source))?;
        let file = Self { path: path.to_owned(), content, mode };
        file.check()?;
        Ok(file)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let is_name = |part: &str| !matches!(part, "" | "." | "..") && part.len() <= MAX_NAME;
        let names = self.path.strip_prefix('/');
        let is_path = self.path.len() <= MAX_PATH
            && !self.path.chars().any(char::is_control)
            && names.is_some_and(|names| names.split('/').all(is_name));
        if !is_path {
            return Err(format!("'{}' is no absolute path of a file", self.path.escape_debug()));
        }
        let first = names.and_then(|names| names.split_once('/'));
        match first.filter(|(first, _)| NOT_ON_DISK.contains(first)) {
            Some((first, _)) => Err(format!(
                "'{}' would not be seen in the restored system: /{first} is no folder of a disk when it runs",
                self.path.escape_debug()
            )),
            None => Ok(()),
        }
    }
}

/// The files of a cloud-init NoCloud seed, under the names that they have there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CloudInitSeed {
    /// What is to be done.
    pub user_data: Content,
    /// Which machine this is: `instance-id`, `local-hostname`.
    pub meta_data: Content,
    /// How the network is set up.
    #[serde(default)]
    pub network_config: Option<Content>,
    /// What the vendor wants done.
    #[serde(default)]
    pub vendor_data: Option<Content>,
}

impl CloudInitSeed {
    /// Every file that a seed may have, by its name; `None`: this one does not have it.
    #[must_use]
    pub fn files(&self) -> [(&'static str, Option<&Content>); 4] {
        [
            ("meta-data", Some(&self.meta_data)),
            ("user-data", Some(&self.user_data)),
            ("network-config", self.network_config.as_ref()),
            ("vendor-data", self.vendor_data.as_ref()),
        ]
    }

    /// Reads a seed from a folder.
    pub(super) fn read(folder: &str) -> Result<Self, String> {
        let path = |name: &str| Path::new(folder).join(name);
        Ok(Self {
            user_data: Content::read(&path("user-data"))?,
            meta_data: Content::read(&path("meta-data"))?,
            network_config: Content::read_if_there(&path("network-config"))?,
            vendor_data: Content::read_if_there(&path("vendor-data"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_base64_on_the_wire_and_not_in_a_log() {
        let content = Content::from(b"secret\0\xff".to_vec());
        let text = serde_json::to_string(&content).unwrap();
        assert_eq!(text, "\"c2VjcmV0AP8=\"");
        assert_eq!(serde_json::from_str::<Content>(&text).unwrap(), content);
        assert_eq!(format!("{content:?}"), "8 bytes");
        let error = serde_json::from_str::<Content>("\"secret!\"").unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn modes_are_octal() {
        for (text, bits) in [("644", 0o644), ("0755", 0o755), ("4755", 0o4755)] {
            assert_eq!(text.parse::<FileMode>().unwrap().bits(), bits);
        }
        assert_eq!(serde_json::to_string(&FileMode(0o644)).unwrap(), "\"0644\"");
        for bad in ["", "8", "0o644", "-644", "+644", "77777", "64a"] {
            assert!(bad.parse::<FileMode>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_on_the_command_line() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path();
        let source = dir.join("a:b");
        std::fs::write(&source, "x").unwrap();
        let source = source.to_str().unwrap();
        let read = NewFile::read(&format!("/etc/motd={source}")).unwrap();
        assert_eq!(
            (read.path.as_str(), read.content.bytes(), read.mode),
            ("/etc/motd", &b"x"[..], None)
        );
        let read = NewFile::read(&format!("/etc/motd={source}:0600")).unwrap();
        assert_eq!(read.mode, Some(FileMode(0o600)));
        let long = format!("/{}", "x".repeat(256));
        for path in ["etc/motd", "", "/", "/etc/", "/etc/../x", "/a//b", "/a\nb", &long] {
            let error = NewFile::read(&format!("{path}={source}")).unwrap_err();
            assert!(error.contains("no absolute path"), "{error}");
        }
        for path in ["/dev/x", "/proc/sys/x", "/sys/x", "/run/systemd/x"] {
            let error = NewFile::read(&format!("{path}={source}")).unwrap_err();
            assert!(error.contains("would not be seen"), "{error}");
        }
        NewFile::read(&format!("/devices/x={source}")).unwrap();
        assert!(NewFile::read("/etc/motd").unwrap_err().contains("SOURCE"));
        assert!(NewFile::read("/etc/motd=/nowhere/x").unwrap_err().contains("/nowhere/x"));
        std::fs::write(dir.join("user-data"), "#cloud-config\n").unwrap();
        let folder = dir.to_str().unwrap();
        assert!(CloudInitSeed::read(folder).unwrap_err().contains("meta-data"));
        std::fs::write(dir.join("meta-data"), "").unwrap();
        let seed = CloudInitSeed::read(folder).unwrap();
        assert_eq!(seed.files().iter().filter(|(_, content)| content.is_some()).count(), 2);
        let text = serde_json::to_string(&seed).unwrap();
        assert_eq!(serde_json::from_str::<CloudInitSeed>(&text).unwrap(), seed);
        let wrong = r#"{"user-data":"","meta-data":"","network_config":""}"#;
        assert!(serde_json::from_str::<CloudInitSeed>(wrong).is_err());
    }
}
