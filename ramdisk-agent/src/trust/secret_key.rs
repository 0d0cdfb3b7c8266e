//! minisign's secret keys: made, kept in a file of their own, and used for signing.
//!
//! The file holds, as base64 under a comment: signature algorithm (2 bytes), key derivation (2), checksum algorithm (2), salt (32),
//! scrypt's operations and memory limit (8 each), and then, encrypted by XOR with what scrypt gives: key id (8), Ed25519 seed and
//! public key (64), BLAKE2b-256 of algorithm, id and key (32). Without encryption (`minisign -W`) the derivation is two zero bytes.
//!
//! Neither key file is ever overwritten. The secret one has mode 0600 from its first moment.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use agent_api::ErrorKind;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use blake2::digest::consts::U32;
use blake2::{Blake2b, Digest as _};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair as _};

use super::minisign::{
    ED25519_PLAIN, KeyId, PublicKey, Signature, TrustError, UNTRUSTED, decode, prehash,
};
use crate::error::{Error, Result};

const SCRYPT: [u8; 2] = *b"Sc";
const NOT_ENCRYPTED: [u8; 2] = [0; 2];
const BLAKE2B: [u8; 2] = *b"B2";

/// Key id, key and checksum: what is encrypted.
const SECRET_LEN: usize = 8 + 64 + 32;
/// The whole, before base64.
const FILE_LEN: usize = 6 + 32 + 8 + 8 + SECRET_LEN;

/// scrypt's cost as minisign chooses it: 1 GiB of memory, a few seconds.
const OPERATIONS: u64 = 33_554_432;
const MEMORY: u64 = 1 << 30;
/// A key that demands more than minisign's own is not waited for.
const MAX_LOG_N: u8 = 20;
const MAX_P: u64 = 16;
const R: u32 = 8;

/// A secret key, decrypted.
pub struct SecretKey {
    id: KeyId,
    seed: [u8; 32],
    pair: Ed25519KeyPair,
}

impl SecretKey {
    /// A new key.
    ///
    /// # Errors
    /// Only if the system has no random numbers.
    pub fn generate() -> Result<Self> {
        let (mut id, mut seed) = ([0; 8], [0; 32]);
        let random = SystemRandom::new();
        random
            .fill(&mut id)
            .and_then(|()| random.fill(&mut seed))
            .map_err(|_| Error::new(ErrorKind::Internal, "the system gives no random numbers"))?;
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("any 32 bytes are a seed");
        Ok(Self { id: KeyId(id), seed, pair })
    }

    /// The public half.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey { id: self.id, key: self.public_bytes() }
    }

    fn public_bytes(&self) -> [u8; 32] {
        self.pair.public_key().as_ref().try_into().expect("Ed25519's public keys have 32 bytes")
    }

    /// A signature of this text, as the contents of a `.minisig` file. The comment must be one line.
    #[must_use]
    pub fn sign(&self, text: &[u8], trusted_comment: &str) -> String {
        let sign = |bytes: &[u8]| -> [u8; 64] {
            self.pair.sign(bytes).as_ref().try_into().expect("Ed25519's signatures have 64 bytes")
        };
        let mut signature = Signature {
            hashed: true,
            key_id: self.id,
            signature: sign(&prehash(text)),
            trusted_comment: trusted_comment.to_owned(),
            global: [0; 64],
        };
        signature.global = sign(&signature.globally_signed());
        signature.to_file()
    }

    /// The contents of a secret key's file; without a password it is not encrypted.
    ///
    /// # Errors
    /// Only if the system has no random numbers.
    pub fn to_file(&self, password: Option<&str>) -> Result<String> {
        self.to_file_at(password, OPERATIONS, MEMORY)
    }

    fn to_file_at(&self, password: Option<&str>, operations: u64, memory: u64) -> Result<String> {
        let mut salt = [0; 32];
        SystemRandom::new()
            .fill(&mut salt)
            .map_err(|_| Error::new(ErrorKind::Internal, "the system gives no random numbers"))?;
        let mut secret = [0; SECRET_LEN];
        secret[..8].copy_from_slice(&self.id.0);
        secret[8..40].copy_from_slice(&self.seed);
        secret[40..72].copy_from_slice(&self.public_bytes());
        let sum = checksum(&secret);
        secret[72..].copy_from_slice(&sum);
        let (derivation, limits, comment) = match password {
            Some(password) => {
                encrypt(&mut secret, password, &salt, operations, memory)
                    .expect("these limits are within ours");
                (SCRYPT, [operations, memory], "minisign encrypted secret key")
            }
            None => {
                salt.fill(0);
                (NOT_ENCRYPTED, [0, 0], "minisign secret key")
            }
        };
        let bytes = [
            ED25519_PLAIN.as_slice(),
            &derivation,
            &BLAKE2B,
            &salt,
            &limits[0].to_le_bytes(),
            &limits[1].to_le_bytes(),
            &secret,
        ]
        .concat();
        Ok(format!("{UNTRUSTED}{comment}\n{}\n", BASE64.encode(bytes)))
    }

    /// Takes the contents of a secret key's file apart. The password is asked for only when there is something to decrypt.
    ///
    /// # Errors
    /// [`TrustError`] saying what is wrong; or what `password` returns.
    pub fn parse<E: From<TrustError>>(
        file: &str,
        password: impl FnOnce() -> std::result::Result<String, E>,
    ) -> std::result::Result<Self, E> {
        let bad = |what| E::from(TrustError::SecretKey(what));
        let mut lines = file.lines();
        if !lines.next().is_some_and(|line| line.starts_with(UNTRUSTED)) {
            return Err(bad("its first line is no untrusted comment"));
        }
        let bytes: [u8; FILE_LEN] = lines
            .next()
            .and_then(decode)
            .ok_or_else(|| bad("its second line is not 158 bytes of base64"))?;
        if lines.next().is_some() {
            return Err(bad("it goes on after its second line"));
        }
        let (kinds, rest) = bytes.split_first_chunk::<6>().expect("158 bytes");
        let (salt, rest) = rest.split_first_chunk::<32>().expect("152 bytes");
        let (operations, rest) = rest.split_first_chunk::<8>().expect("120 bytes");
        let (memory, secret) = rest.split_first_chunk::<8>().expect("112 bytes");
        let mut secret: [u8; SECRET_LEN] = secret.try_into().expect("the other 104 bytes");
        if kinds[..2] != ED25519_PLAIN || kinds[4..] != BLAKE2B {
            return Err(bad("it is of an algorithm that is not known here"));
        }
        let encrypted = match [kinds[2], kinds[3]] {
            SCRYPT => {
                let (operations, memory) =
                    (u64::from_le_bytes(*operations), u64::from_le_bytes(*memory));
                encrypt(&mut secret, &password()?, salt, operations, memory)?;
                true
            }
            NOT_ENCRYPTED => false,
            _ => return Err(bad("it is encrypted in a way that is not known here")),
        };
        let seed: [u8; 32] = secret[8..40].try_into().expect("32 bytes");
        let pair = Ed25519KeyPair::from_seed_and_public_key(&seed, &secret[40..72]);
        match pair {
            // Stock minisign leaves the checksum of a key that it does not encrypt zero.
            Ok(pair)
                if checksum(&secret) == secret[72..]
                    || !encrypted && secret[72..].iter().all(|byte| *byte == 0) =>
            {
                Ok(Self { id: KeyId(secret[..8].try_into().expect("8 bytes")), seed, pair })
            }
            _ if encrypted => Err(TrustError::WrongPassword.into()),
            _ => Err(bad("its checksum is wrong")),
        }
    }

    /// Refuses names under which there is something: before anybody has thought of a password.
    ///
    /// # Errors
    /// `refused`, naming the file.
    pub fn refuse_existing(secret: &Path, public: &Path) -> Result<()> {
        let there = [secret, public].into_iter().find(|path| path.symlink_metadata().is_ok());
        there.map_or(Ok(()), |path| Err(exists(path)))
    }

    /// Writes a new pair of key files.
    ///
    /// # Errors
    /// `refused` if one of them is there, or may not be written; whatever is wrong, nothing is left behind.
    pub fn save(&self, secret: &Path, public: &Path, password: Option<&str>) -> Result<()> {
        Self::refuse_existing(secret, public)?;
        write_new(secret, &self.to_file(password)?, 0o600)?;
        write_new(public, &self.public_key().to_file(), 0o644).inspect_err(|_| {
            // Nobody has the public half. The error is what matters.
            let _ = fs::remove_file(secret);
        })
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// If it cannot be read or understood, or the password is wrong.
    pub fn load(path: &Path, password: impl FnOnce() -> Result<String>) -> Result<Self> {
        let text = read_key_file(path)?;
        Self::parse(&text, || password().map_err(Failed::Asking)).map_err(|failed| match failed {
            Failed::Asking(error) => error,
            Failed::Key(error) => {
                Error::refused(format!("{} cannot be used", path.display())).because(error)
            }
        })
    }
}

/// The secret key shows nothing of itself.
impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretKey").field("id", &self.id).finish_non_exhaustive()
    }
}

enum Failed {
    Asking(Error),
    Key(TrustError),
}

impl From<TrustError> for Failed {
    fn from(error: TrustError) -> Self {
        Self::Key(error)
    }
}

/// Reads a key's file, which is text of a few hundred bytes.
pub(super) fn read_key_file(path: &Path) -> Result<String> {
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(super::MAX_FILE_LEN).read_to_string(&mut text))
        .map_err(|e| {
            let kind = match e.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                _ => ErrorKind::Refused,
            };
            Error::new(kind, format!("reading the key in {}", path.display())).because(e)
        })?;
    Ok(text)
}

fn exists(path: &Path) -> Error {
    Error::refused(format!("{} is there already; a key is never overwritten", path.display()))
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<()> {
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(mode).open(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(exists(path)),
        opened => opened.map_err(|e| unwritten(path, e))?,
    };
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|e| {
        // An empty one would be in the way of the next. The error is what matters.
        let _ = fs::remove_file(path);
        unwritten(path, e)
    })
}

fn unwritten(path: &Path, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::NotADirectory => ErrorKind::Refused,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, format!("writing {}", path.display())).because(error)
}

fn checksum(secret: &[u8; SECRET_LEN]) -> [u8; 32] {
    Blake2b::<U32>::new().chain_update(ED25519_PLAIN).chain_update(&secret[..72]).finalize().into()
}

/// Encrypts, or decrypts, in place.
fn encrypt(
    secret: &mut [u8; SECRET_LEN],
    password: &str,
    salt: &[u8; 32],
    operations: u64,
    memory: u64,
) -> std::result::Result<(), TrustError> {
    let (log_n, p) = scrypt_cost(operations, memory)
        .ok_or(TrustError::SecretKey("it demands more memory or time than minisign ever does"))?;
    let params = scrypt::Params::new(log_n, R, p)
        .map_err(|_| TrustError::SecretKey("scrypt cannot do with its limits"))?;
    let mut stream = [0; SECRET_LEN];
    scrypt::scrypt(password.as_bytes(), salt, &params, &mut stream)
        .expect("scrypt gives any length up to 128 GiB");
    secret.iter_mut().zip(stream).for_each(|(byte, with)| *byte ^= with);
    Ok(())
}

/// scrypt's log₂ N and p from libsodium's two limits, as `crypto_pwhash_scryptsalsa208sha256` picks them; r is always 8.
fn scrypt_cost(operations: u64, memory: u64) -> Option<(u8, u32)> {
    let operations = operations.max(32_768);
    let least_log_n = |max_n: u64| (1_u8..63).find(|log_n| 1_u64 << log_n > max_n / 2);
    let (log_n, p) = if operations < memory / 32 {
        (least_log_n(operations / (u64::from(R) * 4))?, 1)
    } else {
        let log_n = least_log_n(memory / (u64::from(R) * 128))?;
        let rp = (operations / 4 / (1 << log_n)).min(0x3FFF_FFFF);
        (log_n, rp / u64::from(R))
    };
    let within = log_n <= MAX_LOG_N && (1..=MAX_P).contains(&p);
    within.then_some((log_n, u32::try_from(p).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Limits that take a millisecond.
    const QUICK: (u64, u64) = (32_768, 1 << 20);

    fn password(text: &str) -> impl FnOnce() -> std::result::Result<String, TrustError> {
        let text = text.to_owned();
        || Ok(text)
    }

    fn never() -> std::result::Result<String, TrustError> {
        panic!("nothing is encrypted here")
    }

    #[test]
    fn the_cost_is_picked_as_libsodium_does() {
        assert_eq!(scrypt_cost(OPERATIONS, MEMORY), Some((20, 1)));
        // libsodium's limits for interactive use.
        assert_eq!(scrypt_cost(524_288, 16 << 20), Some((14, 1)));
        for hostile in [(u64::MAX, MEMORY), (u64::MAX, u64::MAX), (u64::MAX, 0)] {
            assert_eq!(scrypt_cost(hostile.0, hostile.1), None, "{hostile:?}");
        }
    }

    #[test]
    fn a_key_comes_back_from_its_file_with_its_password_only() {
        let key = SecretKey::generate().unwrap();
        let plain = key.to_file(None).unwrap();
        assert_eq!(SecretKey::parse(&plain, never).unwrap().public_key(), key.public_key());
        let file = key.to_file_at(Some("hunter2"), QUICK.0, QUICK.1).unwrap();
        let again = SecretKey::parse(&file, password("hunter2")).unwrap();
        assert_eq!(again.public_key(), key.public_key());
        let wrong = SecretKey::parse(&file, password("hunter3")).unwrap_err();
        assert_eq!(wrong, TrustError::WrongPassword);
        let text = format!("{key:?}");
        assert!(!text.contains("seed"), "{text}");
    }

    #[test]
    fn a_changed_byte_of_a_key_never_gives_another_key() {
        let key = SecretKey::generate().unwrap();
        for file in
            [key.to_file(None).unwrap(), key.to_file_at(Some("x"), QUICK.0, QUICK.1).unwrap()]
        {
            let mut harmless = 0;
            for at in 0..file.len() {
                let mut bytes = file.clone().into_bytes();
                bytes[at] ^= 1;
                let Ok(text) = String::from_utf8(bytes) else { continue };
                // Comments, and salt and limits where nothing is encrypted, are without meaning.
                if let Ok(read) = SecretKey::parse(&text, password("x")) {
                    assert_eq!(read.public_key(), key.public_key(), "byte {at}");
                    harmless += 1;
                }
            }
            assert!(harmless < file.len() / 2, "{harmless} of {}", file.len());
        }
    }

    #[test]
    fn a_pair_that_cannot_be_written_leaves_nothing_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let (secret, public) = (dir.path().join("a.key"), dir.path().join("none/a.pub"));
        let key = SecretKey::generate().unwrap();
        let error = key.save(&secret, &public, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.chain());
        assert!(!secret.exists());
        key.save(&secret, &dir.path().join("a.pub"), None).unwrap();
    }
}
