//! Secrets: how they are made, kept and compared.
//!
//! Bearer secrets (API tokens, tickets, agent credentials) are 256 random bits in hex. Only their SHA-256 is stored: a stolen
//! database opens nothing, and a lookup by hash leaks nothing through its timing. What must be used again (passwords of BMCs and
//! stores, what jobs were asked to do) is sealed with AES-256-GCM under a key that lies beside the database in its own file, bound to the name of what they belong to.

use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac};
use zeroize::{Zeroize, Zeroizing};

/// Length of the sealing key in bytes.
pub const KEY_LEN: usize = 32;

/// A secret text that never shows in logs. Its memory is cleared when it is dropped; copies that other libraries make are not.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Secret {
    /// Takes a text that came from outside.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// 256 random bits in hex.
    #[must_use]
    pub fn random() -> Self {
        Self(hex(&random_bytes::<32>()))
    }

    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What is stored in place of the secret.
    #[must_use]
    pub fn hash(&self) -> Vec<u8> {
        sha256(self.0.as_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Random bytes of the system.
///
/// # Panics
/// When the kernel gives none, in which case nothing may go on.
#[must_use]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("getrandom works on every supported kernel");
    bytes
}

/// SHA-256.
#[must_use]
pub fn sha256(data: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, data).as_ref().to_vec()
}

/// Lower-case hex.
#[must_use]
pub fn hex(data: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(data.len() * 2);
    for byte in data {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// Whether `text` is exactly `len` lower-case hex digits.
#[must_use]
pub fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Why a sealed secret could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("the sealed secret of {owner} does not open with this controller's key file")]
pub struct UnsealError {
    /// What the secret belongs to.
    pub owner: String,
}

/// Seals and opens the secrets in the database.
pub struct Sealer {
    key: LessSafeKey,
    hashing: hmac::Key,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(…)")
    }
}

impl Sealer {
    /// From the bytes of the key file.
    #[must_use]
    pub fn new(key: &[u8; KEY_LEN]) -> Self {
        // A key of its own: one key is for one algorithm.
        let hashing = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), b"imprint: keyed hashes");
        let hashing = hmac::Key::new(hmac::HMAC_SHA256, hashing.as_ref());
        let key = UnboundKey::new(&AES_256_GCM, key).expect("the key has the algorithm's length");
        Self { key: LessSafeKey::new(key), hashing }
    }

    /// 128 bits in hex that are the same for the same text, and tell nothing of it without the key.
    #[must_use]
    pub fn keyed_hash(&self, text: &str) -> String {
        hex(&hmac::sign(&self.hashing, text.as_bytes()).as_ref()[..16])
    }

    /// Nonce, ciphertext and tag. `owner` must be given again to open.
    #[must_use]
    pub fn seal(&self, owner: &str, secret: &Secret) -> Vec<u8> {
        let nonce = random_bytes::<NONCE_LEN>();
        let mut sealed = secret.0.clone().into_bytes();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(owner.as_bytes()),
                &mut sealed,
            )
            .expect("a password is shorter than the cipher's limit of 64 GiB");
        [&nonce[..], &sealed].concat()
    }

    /// The secret that was sealed for `owner`.
    ///
    /// # Errors
    /// When key, owner or bytes are not the ones of [`Sealer::seal`].
    pub fn open(&self, owner: &str, sealed: &[u8]) -> Result<Secret, UnsealError> {
        let fail = || UnsealError { owner: owner.to_owned() };
        let (nonce, body) = sealed.split_first_chunk::<NONCE_LEN>().ok_or_else(fail)?;
        let mut body = Zeroizing::new(body.to_vec());
        let plain = self
            .key
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(owner.as_bytes()),
                &mut body,
            )
            .map_err(|_| fail())?;
        String::from_utf8(plain.to_vec()).map(Secret).map_err(|_| fail())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_secret_opens_for_its_owner_only() {
        let sealer = Sealer::new(&[7; KEY_LEN]);
        let secret = Secret::new("correct horse".into());
        let sealed = sealer.seal("node7", &secret);
        assert_eq!(sealer.open("node7", &sealed).unwrap(), secret);
        assert!(sealer.open("node8", &sealed).is_err());
        assert!(Sealer::new(&[8; KEY_LEN]).open("node7", &sealed).is_err());
        for length in 0..sealed.len() {
            assert!(sealer.open("node7", &sealed[..length]).is_err());
        }
        assert!(!sealed.windows(5).any(|w| w == b"horse"));
        assert_ne!(sealed, sealer.seal("node7", &secret), "nonces must differ");
    }

    #[test]
    fn a_keyed_hash_is_of_key_and_text() {
        let [one, other] = [7, 8].map(|byte| Sealer::new(&[byte; KEY_LEN]));
        assert!(is_hex(&one.keyed_hash("sig=1"), 32));
        assert_eq!(one.keyed_hash("sig=1"), Sealer::new(&[7; KEY_LEN]).keyed_hash("sig=1"));
        assert_ne!(one.keyed_hash("sig=1"), one.keyed_hash("sig=2"));
        assert_ne!(one.keyed_hash("sig=1"), other.keyed_hash("sig=1"));
    }

    #[test]
    fn debug_shows_no_secret() {
        let secret = Secret::new("hunter2".into());
        assert!(!format!("{secret:?}").contains("hunter2"));
    }

    #[test]
    fn hex_is_the_usual_one() {
        assert_eq!(hex(&[0, 0xab, 0xff]), "00abff");
        assert!(is_hex(Secret::random().expose(), 64));
        assert!(!is_hex("AB", 2));
        assert!(!is_hex("abc", 2));
    }
}
