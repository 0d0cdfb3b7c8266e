//! AES-128-GMAC (NIST SP 800-38D): GCM that encrypts nothing, which is how SMB 3.1.1 signs.
//!
//! ring hashes additional data block by block, and here there is nothing else. `polyval` takes less than half of its time (docs/stores.md),
//! but a multiple of it where the processor lacks the instructions that it wants; there ring does it. POLYVAL is GHASH in the opposite
//! order of bytes: RFC 8452, appendix A, says how to get from the one to the other.

use aes::Aes128;
use aes::cipher::{BlockCipherEncrypt as _, KeyInit as _};
use polyval::Polyval;
use polyval::universal_hash::UniversalHash as _;
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

const BLOCK_BYTES: usize = 16;
/// So many blocks are turned around at a time.
const TURNED_BLOCKS: usize = 32;

pub(super) const NONCE_BYTES: usize = NONCE_LEN;

/// A key of AES-128-GMAC, in the form that this processor is fast with.
pub(super) enum Gmac {
    Polyval(WithPolyval),
    Ring(LessSafeKey),
}

impl Gmac {
    pub(super) fn new(key: &[u8; 16]) -> Self {
        if polyval_is_fast() { Self::Polyval(WithPolyval::new(key)) } else { Self::with_ring(key) }
    }

    fn with_ring(key: &[u8; 16]) -> Self {
        let key = UnboundKey::new(&AES_128_GCM, key).expect("the key has the cipher's length");
        Self::Ring(LessSafeKey::new(key))
    }

    /// The tag of `message`. No nonce may be used for two messages.
    pub(super) fn tag(&self, nonce: [u8; NONCE_BYTES], message: &[u8]) -> [u8; BLOCK_BYTES] {
        match self {
            Self::Polyval(key) => key.tag(nonce, message),
            Self::Ring(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                let tag = key
                    .seal_in_place_separate_tag(nonce, Aad::from(message), &mut [])
                    .expect("a message is far below the limit of GCM");
                *tag.as_ref().first_chunk().expect("GCM's tag has 16 bytes")
            }
        }
    }
}

/// Whether the processor has what `polyval` looks for; it counts in software otherwise.
fn polyval_is_fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx") && is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// GMAC out of AES and POLYVAL.
pub(super) struct WithPolyval {
    cipher: Aes128,
    /// With the key, and nothing hashed yet.
    hash: Polyval,
}

impl WithPolyval {
    fn new(key: &[u8; 16]) -> Self {
        let cipher = Aes128::new(key.into());
        let hash = Polyval::new(&polyval_key(encrypted(&cipher, [0; BLOCK_BYTES])).into());
        Self { cipher, hash }
    }

    fn tag(&self, nonce: [u8; NONCE_BYTES], message: &[u8]) -> [u8; BLOCK_BYTES] {
        let mut hash = self.hash.clone();
        let mut turned = [polyval::Block::default(); TURNED_BLOCKS];
        let (blocks, rest) = message.as_chunks();
        for blocks in blocks.chunks(TURNED_BLOCKS) {
            for (turned, block) in turned.iter_mut().zip(blocks) {
                *turned = reversed(*block).into();
            }
            hash.update(&turned[..blocks.len()]);
        }
        if !rest.is_empty() {
            let mut block = [0; BLOCK_BYTES];
            block[..rest.len()].copy_from_slice(rest);
            hash.update(&[reversed(block).into()]);
        }
        // The length of what is authenticated, and that of what is encrypted: nothing.
        let bits = 8 * u64::try_from(message.len()).expect("a message's length fits 64 bits");
        hash.update(&[(u128::from(bits) << 64).to_le_bytes().into()]);
        let mut counter = [0; BLOCK_BYTES];
        counter[..NONCE_BYTES].copy_from_slice(&nonce);
        counter[BLOCK_BYTES - 1] = 1;
        let pad = u128::from_be_bytes(encrypted(&self.cipher, counter));
        (u128::from_le_bytes(hash.finalize().into()) ^ pad).to_be_bytes()
    }
}

fn encrypted(cipher: &Aes128, block: [u8; BLOCK_BYTES]) -> [u8; BLOCK_BYTES] {
    let mut block = block.into();
    cipher.encrypt_block(&mut block);
    block.into()
}

fn reversed(block: [u8; BLOCK_BYTES]) -> [u8; BLOCK_BYTES] {
    u128::from_be_bytes(block).to_le_bytes()
}

/// POLYVAL's key for a key of GHASH: reversed, and multiplied by x in POLYVAL's field (x^128 = x^127 + x^126 + x^121 + 1).
fn polyval_key(ghash_key: [u8; BLOCK_BYTES]) -> [u8; BLOCK_BYTES] {
    let key = u128::from_be_bytes(ghash_key);
    // No branch: the bit is secret.
    let carry = key >> 127;
    (key << 1 ^ carry ^ carry << 121 ^ carry << 126 ^ carry << 127).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex<const N: usize>(text: &str) -> [u8; N] {
        assert_eq!(text.len(), 2 * N);
        std::array::from_fn(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
    }

    fn both(key: &[u8; 16]) -> [Gmac; 2] {
        [Gmac::Polyval(WithPolyval::new(key)), Gmac::with_ring(key)]
    }

    #[test]
    fn known_answers() {
        // The first test case of GCM's authors, which NIST kept: everything is zero or empty.
        for gmac in both(&[0; 16]) {
            assert_eq!(gmac.tag([0; 12], &[]), hex("58e2fccefa7e3061367f1d57a4e7455a"));
        }
        // NIST's gcmEncryptExtIV128.rsp: no text, one block of additional data.
        for gmac in both(&hex("77be63708971c4e240d1cb79e8d77feb")) {
            let data: [u8; 16] = hex("7a43ec1d9c0a5a78a0b16533a6213cab");
            let tag = gmac.tag(hex("e0e00f19fed7ba0136a797f3"), &data);
            assert_eq!(tag, hex("209fcc8d3675ed938e9c7166709dd946"));
        }
        // IEEE 802.1AE's test of integrity alone: 70 bytes, not a number of blocks.
        for gmac in both(&hex("ad7a2bd03eac835a6f620fdcb506b345")) {
            let data: [u8; 70] =
                hex("d609b1f056637a0d46df998d88e5222ab2c2846512153524c0895e8108000f10\
                 1112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f30313233340001");
            let tag = gmac.tag(hex("12153524c0895e81b2c28465"), &data);
            assert_eq!(tag, hex("f09478a9b09007d06f46e9b6a1da25dd"));
        }
    }

    /// Every length around blocks and groups of them, each with another key: some carry in the multiplication and some do not.
    #[test]
    fn polyval_says_the_same_as_ring() {
        let message: Vec<u8> =
            (0..2100_usize).map(|i| (i * 7 + i / 256).to_le_bytes()[0]).collect();
        for len in 0..=message.len() {
            let [low, high, ..] = len.to_le_bytes();
            let key = [low ^ 0x5a, high, 3, low, 4, 5, low, 7, 8, 9, 1, 2, 3, 4, 5, 6];
            let [polyval, ring] = both(&key).map(|gmac| gmac.tag([low; 12], &message[..len]));
            assert_eq!(polyval, ring, "{len} bytes");
        }
    }
}
