//! `NAME.root`: the text that is signed.
//!
//! ```text
//! imprint root 1
//! root 91553a03970c04ff3b87f382ff63e7c00534f0b1101d0dc807bfbd0ee8fbe4bf
//! size 401234567
//! name debian-12.img.zst
//! ```
//!
//! Exactly these four lines, each ended by a line feed. There is one way to write it: whatever parses is what
//! [`RootFile::encode`] gives. The first line gives later versions room.

use image_format::Root;

use super::minisign::TrustError;

const FIRST_LINE: &str = "imprint root 1";

/// The longest name: what file systems allow.
const MAX_NAME_LEN: usize = 255;

/// What is signed of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootFile {
    root: Root,
    size: u64,
    name: String,
}

impl RootFile {
    /// What there is to sign of an image of this root, length and file name.
    ///
    /// # Errors
    /// [`TrustError::Name`] if the name cannot stand in a line.
    pub fn new(root: Root, size: u64, name: &str) -> Result<Self, TrustError> {
        let fits = !name.is_empty()
            && name.len() <= MAX_NAME_LEN
            && !name.chars().any(|c| c.is_control() || c == '/');
        if !fits {
            return Err(TrustError::Name);
        }
        Ok(Self { root, size, name: name.to_owned() })
    }

    /// The text.
    #[must_use]
    pub fn encode(&self) -> String {
        let Self { root, size, name } = self;
        format!("{FIRST_LINE}\nroot {root}\nsize {size}\nname {name}\n")
    }

    /// Takes a text apart.
    ///
    /// # Errors
    /// [`TrustError::RootFile`] for anything that [`RootFile::encode`] would not give.
    pub fn parse(bytes: &[u8]) -> Result<Self, TrustError> {
        Self::fields(bytes)
            .filter(|file| file.encode().as_bytes() == bytes)
            .ok_or(TrustError::RootFile)
    }

    fn fields(bytes: &[u8]) -> Option<Self> {
        let mut lines = std::str::from_utf8(bytes).ok()?.lines().skip(1);
        let mut value = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix(' ');
        let root = value("root")?.parse().ok()?;
        let size = value("size")?.parse().ok()?;
        Self::new(root, size, value("name")?).ok()
    }

    /// Compares what was signed with the image at hand.
    ///
    /// # Errors
    /// [`TrustError::Other`] naming what differs.
    pub fn check(&self, image: &Self) -> Result<(), TrustError> {
        let fields = [
            ("root", self.root.to_string(), image.root.to_string()),
            ("size", self.size.to_string(), image.size.to_string()),
            ("name", self.name.clone(), image.name.clone()),
        ];
        match fields.into_iter().find(|(_, signed, found)| signed != found) {
            Some((what, signed, found)) => Err(TrustError::Other { what, signed, found }),
            None => Ok(()),
        }
    }
}
