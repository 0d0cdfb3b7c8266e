//! Keys, signatures and encryption of SMB2 messages (MS-SMB2, sections 3.1.4 and 3.1.5).
//!
//! What `ring` has comes from there (HMAC-SHA256, SHA-512, AES-GCM); AES-CMAC and AES-CCM, which SMB 3.0 wants, from RustCrypto, and
//! so does what [`Gmac`] is made of.
//! Deliberately absent: AES-256-CCM, which no server asks for alone.

use aes::Aes128;
use ccm::aead::{AeadInOut as _, KeyInit as _};
use ccm::consts::{U11, U16};
use cmac::{Cmac, Mac as _};
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::{digest, hmac};
use subtle::ConstantTimeEq as _;

use super::gmac::{self, Gmac};
use super::header::SIGNATURE_AT;

type Aes128Ccm = ccm::Ccm<Aes128, U16, U11>;

const CCM_NONCE_BYTES: usize = 11;
const TAG_BYTES: usize = 16;

/// How messages are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signing {
    HmacSha256,
    AesCmac,
    AesGmac,
}

/// How messages are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cipher {
    Aes128Ccm,
    Aes128Gcm,
    Aes256Gcm,
}

impl std::fmt::Display for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Aes128Ccm => "AES-128-CCM",
            Self::Aes128Gcm => "AES-128-GCM",
            Self::Aes256Gcm => "AES-256-GCM",
        })
    }
}

impl Cipher {
    /// Nonces are numbers, counted up; this is how long they are.
    pub(super) fn nonce_bytes(self) -> usize {
        match self {
            Self::Aes128Ccm => CCM_NONCE_BYTES,
            Self::Aes128Gcm | Self::Aes256Gcm => NONCE_LEN,
        }
    }

    pub(super) fn key_bytes(self) -> usize {
        match self {
            Self::Aes128Ccm | Self::Aes128Gcm => 16,
            Self::Aes256Gcm => 32,
        }
    }
}

/// A chain of hashes over the messages before authentication (SMB 3.1.1): whoever changes one of them changes all keys.
#[derive(Debug, Clone)]
pub(super) struct Preauth([u8; 64]);

impl Preauth {
    pub(super) fn new() -> Self {
        Self([0; 64])
    }

    pub(super) fn add(&mut self, message: &[u8]) {
        let mut hash = digest::Context::new(&digest::SHA512);
        hash.update(&self.0);
        hash.update(message);
        self.0.copy_from_slice(hash.finish().as_ref());
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// SP 800-108 in counter mode with HMAC-SHA256, as MS-SMB2 3.1.4.2 has it.
pub(super) fn derive(key: &[u8], label: &[u8], context: &[u8], len_bytes: usize) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let mut mac = hmac::Context::with_key(&key);
    let bits = u32::try_from(8 * len_bytes).expect("keys are 16 or 32 bytes long");
    for part in [&1_u32.to_be_bytes()[..], label, &[0], context, &bits.to_be_bytes()] {
        mac.update(part);
    }
    mac.sign().as_ref()[..len_bytes].to_vec()
}

/// Signs messages, and checks signatures.
pub(super) enum Signer {
    Hmac(hmac::Key),
    // Both hold round keys of some hundred bytes.
    Cmac(Box<Cmac<Aes128>>),
    Gmac(Box<Gmac>),
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys are nobody's business.
        f.write_str("Signer")
    }
}

impl Signer {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Hmac(_) => "HMAC-SHA256",
            Self::Cmac(_) => "AES-128-CMAC",
            Self::Gmac(_) => "AES-128-GMAC",
        }
    }

    pub(super) fn new(signing: Signing, key: &[u8]) -> Self {
        match signing {
            Signing::HmacSha256 => Self::Hmac(hmac::Key::new(hmac::HMAC_SHA256, key)),
            Signing::AesCmac => Self::Cmac(Box::new(
                Cmac::new_from_slice(key).expect("signing keys are 16 bytes long"),
            )),
            Signing::AesGmac => {
                let key = key.try_into().expect("signing keys are 16 bytes long");
                Self::Gmac(Box::new(Gmac::new(key)))
            }
        }
    }

    /// The signature of `message`, whose signature field is zero. `reply`: the server made it.
    fn signature(&self, message: &[u8], message_id: u64, reply: bool) -> [u8; 16] {
        match self {
            Self::Hmac(key) => {
                let tag = hmac::sign(key, message);
                *tag.as_ref().first_chunk().expect("SHA-256 gives 32 bytes")
            }
            Self::Cmac(mac) => {
                mac.as_ref().clone().chain_update(message).finalize().into_bytes().into()
            }
            Self::Gmac(key) => {
                let mut nonce = [0; gmac::NONCE_BYTES];
                nonce[..8].copy_from_slice(&message_id.to_le_bytes());
                nonce[8] = u8::from(reply);
                key.tag(nonce, message)
            }
        }
    }

    /// Signs a request whose signature field is zero.
    pub(super) fn sign(&self, message: &mut [u8], message_id: u64) {
        let signature = self.signature(message, message_id, false);
        message[SIGNATURE_AT].copy_from_slice(&signature);
    }

    /// Whether a reply is signed as it should be, found out in the same time wherever it differs. Its signature field is zero afterwards.
    pub(super) fn verify(&self, message: &mut [u8], message_id: u64) -> bool {
        let Some(field) = message.get_mut(SIGNATURE_AT) else { return false };
        let claimed: [u8; 16] = field.try_into().expect("the field has 16 bytes");
        field.fill(0);
        self.signature(message, message_id, true).ct_eq(&claimed).into()
    }
}

/// Encrypts or decrypts.
pub(super) enum Sealer {
    Ccm(Box<Aes128Ccm>),
    Gcm(Box<LessSafeKey>),
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer")
    }
}

impl Sealer {
    pub(super) fn new(cipher: Cipher, key: &[u8]) -> Self {
        match cipher {
            Cipher::Aes128Ccm => Self::Ccm(Box::new(
                Aes128Ccm::new_from_slice(key).expect("keys of AES-128 are 16 bytes long"),
            )),
            Cipher::Aes128Gcm => Self::Gcm(Box::new(gcm(&AES_128_GCM, key))),
            Cipher::Aes256Gcm => Self::Gcm(Box::new(gcm(&AES_256_GCM, key))),
        }
    }

    /// Encrypts `message` in place; the tag is what the transform header has as its signature.
    pub(super) fn seal(&self, nonce: &[u8; 16], associated: &[u8], message: &mut [u8]) -> [u8; 16] {
        match self {
            Self::Ccm(key) => {
                let nonce = nonce.first_chunk::<CCM_NONCE_BYTES>().expect("it has 16 bytes");
                let tag = key
                    .encrypt_inout_detached(nonce.into(), associated, message.into())
                    .expect("a message is far below the limit of CCM");
                tag.into()
            }
            Self::Gcm(key) => {
                let tag = key
                    .seal_in_place_separate_tag(gcm_nonce(nonce), Aad::from(associated), message)
                    .expect("a message is far below the limit of GCM");
                *tag.as_ref().first_chunk().expect("GCM's tag has 16 bytes")
            }
        }
    }

    /// Decrypts a range of `message` in place; false when it is not what the server encrypted. Bytes behind the range may change.
    pub(super) fn open(
        &self,
        nonce: &[u8; 16],
        associated: &[u8],
        message: &mut Vec<u8>,
        range: std::ops::Range<usize>,
        tag: [u8; 16],
    ) -> bool {
        match self {
            Self::Ccm(key) => {
                let nonce = nonce.first_chunk::<CCM_NONCE_BYTES>().expect("it has 16 bytes");
                let message = &mut message[range];
                key.decrypt_inout_detached(nonce.into(), associated, message.into(), &tag.into())
                    .is_ok()
            }
            Self::Gcm(key) => {
                // ring wants the tag behind the text.
                let end = range.end + TAG_BYTES;
                if message.len() < end {
                    message.resize(end, 0);
                }
                message[range.end..end].copy_from_slice(&tag);
                let text = &mut message[range.start..end];
                key.open_in_place(gcm_nonce(nonce), Aad::from(associated), text).is_ok()
            }
        }
    }
}

fn gcm(algorithm: &'static ring::aead::Algorithm, key: &[u8]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(algorithm, key).expect("the key has the cipher's length"))
}

fn gcm_nonce(nonce: &[u8; 16]) -> Nonce {
    Nonce::assume_unique_for_key(*nonce.first_chunk().expect("12 of 16 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_message_alone() {
        for signing in [Signing::HmacSha256, Signing::AesCmac, Signing::AesGmac] {
            let signer = Signer::new(signing, &[7; 16]);
            let mut message = vec![3; 200];
            message[SIGNATURE_AT].fill(0);
            let signature = signer.signature(&message, 5, true);
            message[SIGNATURE_AT].copy_from_slice(&signature);
            assert!(signer.verify(&mut message.clone(), 5), "{signing:?}");
            message[199] ^= 1;
            assert!(!signer.verify(&mut message.clone(), 5), "{signing:?}");
            assert!(!signer.verify(&mut [0; 10], 5));
        }
    }

    #[test]
    fn what_is_sealed_opens_and_nothing_else() {
        for cipher in [Cipher::Aes128Ccm, Cipher::Aes128Gcm, Cipher::Aes256Gcm] {
            let sealer = Sealer::new(cipher, &vec![9; cipher.key_bytes()]);
            let mut message = vec![0x55; 1000];
            let tag = sealer.seal(&[1; 16], b"header", &mut message);
            assert_ne!(message, vec![0x55; 1000]);
            let mut damaged = message.clone();
            damaged[500] ^= 1;
            assert!(!sealer.open(&[1; 16], b"header", &mut damaged, 0..1000, tag));
            assert!(!sealer.open(&[1; 16], b"heaper", &mut message.clone(), 0..1000, tag));
            assert!(sealer.open(&[1; 16], b"header", &mut message, 0..1000, tag));
            assert_eq!(message[..1000], vec![0x55; 1000]);
        }
    }

    /// The published trace "Encrypting and signing with SMB 3.0" of the protocol's authors.
    #[test]
    fn keys_of_a_published_session() {
        let session_key = hex("7CD451825D0450D235424E44BA6E78CC");
        let key = |label: &[u8], context: &[u8]| derive(&session_key, label, context, 16);
        assert_eq!(key(b"SMB2AESCMAC\0", b"SmbSign\0"), hex("0B7E9C5CAC36C0F6EA9AB275298CEDCE"));
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len() / 2)
            .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
            .collect()
    }
}
