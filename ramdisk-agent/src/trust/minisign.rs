//! minisign's public keys and signatures (<https://jedisct1.github.io/minisign/>, "Signature format" and "Public key format").
//!
//! Both are lines of base64 under a comment. A signature has a second one: of the first signature and the *trusted comment*,
//! which binds that comment to the file. Two forms exist: `ED` signs the BLAKE2b-512 hash of the file and is what minisign and
//! this program write; `Ed`, the legacy one, signs the file itself, and is read as well. Any bytes in, a value or an error out.
//!
//! The crates `minisign` and `minisign-verify` do the same, each with an Ed25519 of its own; the agent has ring's already, and
//! `minisign` 0.10 prints secret keys in its `Debug` and prompts on standard output.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use blake2::{Blake2b512, Digest as _};
use ring::signature::{ED25519, UnparsedPublicKey};

use super::secret_key::read_key_file;
use crate::error::Error;

/// Begins the first line of every key and signature.
pub(super) const UNTRUSTED: &str = "untrusted comment: ";
/// Begins the third line of a signature.
const TRUSTED: &str = "trusted comment: ";
/// The algorithm of keys, and of signatures over the file itself.
pub(super) const ED25519_PLAIN: [u8; 2] = *b"Ed";
/// The algorithm of signatures over the file's hash.
const ED25519_HASHED: [u8; 2] = *b"ED";

/// What can be wrong with keys, signatures and what they are of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// Not a public key.
    #[error(
        "this is no minisign public key: those are 56 characters of base64, as the second line of a .pub file"
    )]
    PublicKey,
    /// Not a secret key.
    #[error("this is no minisign secret key of a kind that is known here: {0}")]
    SecretKey(&'static str),
    /// The password is wrong, or the key is damaged: the two cannot be told apart.
    #[error("the password is wrong, or the secret key is damaged")]
    WrongPassword,
    /// An encrypted key without a password.
    #[error("the secret key is encrypted and needs its password")]
    NeedsPassword,
    /// Not a signature.
    #[error("this is no minisign signature: {0}")]
    Signature(&'static str),
    /// A signature by somebody else.
    #[error("it was signed with key {found}, and {wanted} was asked for")]
    OtherKey {
        /// The id of the key that signed.
        found: KeyId,
        /// The id of the key that had to.
        wanted: KeyId,
    },
    /// The signature is not of this text.
    #[error("the signature is not of this file: one of the two was changed")]
    Mismatch,
    /// The signature's trusted comment was changed.
    #[error("the signature's trusted comment was changed")]
    TrustedComment,
    /// Not a root file.
    #[error("this is no root file: those are four lines, `imprint root 1`, root, size and name")]
    RootFile,
    /// A name that a root file cannot hold.
    #[error(
        "the image's name is empty, longer than 255 bytes, or has control characters: it cannot be signed"
    )]
    Name,
    /// What was signed is another image.
    #[error("signed is an image of {what} {signed}; this one has {found}")]
    Other {
        /// Root, size or name.
        what: &'static str,
        /// What was signed.
        signed: String,
        /// What was found.
        found: String,
    },
}

/// The number by which keys are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyId(pub(super) [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", u64::from_le_bytes(self.0))
    }
}

/// A minisign public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey {
    pub(super) id: KeyId,
    pub(super) key: [u8; 32],
}

impl PublicKey {
    /// The number by which the key is told from others.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The key that a text is, or that is in the file which the text names.
    ///
    /// # Errors
    /// `refused` if neither holds a public key; `not_found` if it is no key, and no file has that name.
    pub fn find(text: &str) -> Result<Self, Error> {
        if let Ok(key) = text.trim().parse() {
            return Ok(key);
        }
        let file = read_key_file(Path::new(text))?;
        file.parse().map_err(|e: TrustError| {
            Error::refused(format!("{text} cannot be used as the key")).because(e)
        })
    }

    /// The contents of a `.pub` file.
    #[must_use]
    pub fn to_file(&self) -> String {
        format!("{UNTRUSTED}minisign public key {}\n{self}\n", self.id)
    }

    /// Checks a signature of this text: by this key, of these bytes, with the trusted comment that it was made with.
    ///
    /// # Errors
    /// [`TrustError`] saying which of these does not hold.
    pub fn verify(&self, text: &[u8], signature: &Signature) -> Result<(), TrustError> {
        if signature.key_id != self.id {
            return Err(TrustError::OtherKey { found: signature.key_id, wanted: self.id });
        }
        let key = UnparsedPublicKey::new(&ED25519, self.key);
        let signed = if signature.hashed {
            key.verify(&Blake2b512::digest(text), &signature.signature)
        } else {
            key.verify(text, &signature.signature)
        };
        signed.map_err(|_| TrustError::Mismatch)?;
        key.verify(&signature.globally_signed(), &signature.global)
            .map_err(|_| TrustError::TrustedComment)
    }
}

/// The 56 characters of base64, alone or as the second line of a `.pub` file.
impl FromStr for PublicKey {
    type Err = TrustError;

    fn from_str(text: &str) -> Result<Self, TrustError> {
        let text = match text.strip_prefix(UNTRUSTED) {
            Some(file) => file.split_once('\n').ok_or(TrustError::PublicKey)?.1,
            None => text,
        };
        let bytes: [u8; 42] =
            decode(text.trim_end_matches(['\r', '\n'])).ok_or(TrustError::PublicKey)?;
        let (algorithm, id, key) = (&bytes[..2], &bytes[2..10], &bytes[10..]);
        if algorithm != ED25519_PLAIN {
            return Err(TrustError::PublicKey);
        }
        Ok(Self {
            id: KeyId(id.try_into().expect("eight bytes")),
            key: key.try_into().expect("the other 32 of 42 bytes"),
        })
    }
}

/// The 56 characters of base64.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [ED25519_PLAIN.as_slice(), &self.id.0, &self.key].concat();
        f.write_str(&BASE64.encode(bytes))
    }
}

/// A minisign signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    pub(super) hashed: bool,
    pub(super) key_id: KeyId,
    pub(super) signature: [u8; 64],
    pub(super) trusted_comment: String,
    pub(super) global: [u8; 64],
}

impl Signature {
    /// Takes the contents of a `.minisig` file apart.
    ///
    /// # Errors
    /// [`TrustError::Signature`] saying which line is wrong.
    pub fn parse(file: &[u8]) -> Result<Self, TrustError> {
        let bad = TrustError::Signature;
        let text = std::str::from_utf8(file).map_err(|_| bad("it is not text"))?;
        let mut lines = text.lines();
        let mut line = || lines.next().unwrap_or_default();
        if !line().starts_with(UNTRUSTED) {
            return Err(bad("its first line is no untrusted comment"));
        }
        let bytes: [u8; 74] = decode(line()).ok_or(bad("its second line is no signature"))?;
        let (algorithm, rest) = bytes.split_first_chunk::<2>().expect("74 bytes");
        let (key_id, signature) = rest.split_first_chunk::<8>().expect("72 bytes");
        let hashed = match *algorithm {
            ED25519_HASHED => true,
            ED25519_PLAIN => false,
            _ => return Err(bad("it is of an algorithm that is not known here")),
        };
        let trusted_comment =
            line().strip_prefix(TRUSTED).ok_or(bad("its third line is no trusted comment"))?;
        let global = decode(line()).ok_or(bad("its fourth line is no signature"))?;
        if lines.any(|line| !line.trim().is_empty()) {
            return Err(bad("it goes on after its fourth line"));
        }
        Ok(Self {
            hashed,
            key_id: KeyId(*key_id),
            signature: signature.try_into().expect("the other 64 of 74 bytes"),
            trusted_comment: trusted_comment.to_owned(),
            global,
        })
    }

    /// What the second signature is of.
    pub(super) fn globally_signed(&self) -> Vec<u8> {
        [self.signature.as_slice(), self.trusted_comment.as_bytes()].concat()
    }

    /// The contents of a `.minisig` file.
    #[must_use]
    pub fn to_file(&self) -> String {
        let algorithm = if self.hashed { ED25519_HASHED } else { ED25519_PLAIN };
        let bytes = [algorithm.as_slice(), &self.key_id.0, &self.signature].concat();
        format!(
            "{UNTRUSTED}signature from minisign secret key\n{}\n{TRUSTED}{}\n{}\n",
            BASE64.encode(bytes),
            self.trusted_comment,
            BASE64.encode(self.global)
        )
    }
}

/// What is hashed of a file before it is signed.
pub(super) fn prehash(text: &[u8]) -> [u8; 64] {
    Blake2b512::digest(text).into()
}

/// Exactly so many bytes of base64, in the one way that they are written.
pub(super) fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    BASE64.decode(text).ok()?.try_into().ok()
}
