//! The lease: who may write to a volume whose store has no conditional writes (FORMAT.md, section 7.3).

use super::Salt;
use super::failure::Failure;
use super::keys::VolumeKeys;
use super::params::version_from;
use super::trailer::OWNER;
use super::wire::{Reader, Writer};
use crate::crypto::sealed_blob;
use crate::crypto::sign::VerifyingKey;
use crate::error::{Kind, Result, fail};
use crate::types::{Time, VolumeId};

/// What a lease begins with.
pub const MAGIC: [u8; 8] = *b"SMPLSE\x01\x0a";
/// Bytes of every lease: refuse to fetch more.
pub const OBJECT_LEN: usize = 8 + 2 + 2 + 4 + 16 + sealed_blob::sealed_len(PAYLOAD_LEN) + 64;
/// Longest name of a host that a lease holds, bytes: what Linux allows.
pub const HOST_MAX: usize = 64;
/// Periods that a lease may have, seconds.
pub const PERIODS: std::ops::RangeInclusive<u32> = 1..=600;
const PAYLOAD_LEN: usize = 192;
const LABEL: &[u8] = b"smpfs/v1/lease\0";
const CLASS: Failure = Failure::Lease;

/// What a lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Who holds it: random, one for each machine and user (for each place of local state).
    pub holder: [u8; 16],
    /// Which mount of the holder: random.
    pub mount: [u8; 16],
    /// Rises with every renewal, from 1.
    pub sequence: u64,
    /// When the mount took it, by its own clock. For people.
    pub taken: Time,
    /// When this version was written, by the same clock. For people.
    pub issued: Time,
    /// For so many seconds after this version was written the holder may write.
    pub period: u32,
    /// The holder's host. For people.
    pub host: String,
}

fn context(volume: &VolumeId) -> Vec<u8> {
    [LABEL, &volume.0[..]].concat()
}

/// A host's name as a lease holds it: without control characters, cut at a character.
pub fn host(name: &str) -> String {
    let shown: String = name.chars().filter(|c| !c.is_control()).collect();
    shown[..shown.floor_char_boundary(HOST_MAX)].to_owned()
}

impl Lease {
    /// Seals and signs it.
    pub fn seal(&self, keys: &VolumeKeys, salt: &Salt) -> Result<Vec<u8>> {
        let sound = self.sequence > 0 && PERIODS.contains(&self.period) && self.host.len() <= HOST_MAX;
        if !sound || !text(&self.host) {
            return fail(Kind::Bug, "a lease was to be written that the format does not allow");
        }
        let volume = keys.volume_id();
        let mut p = Writer::with_capacity(PAYLOAD_LEN);
        p.bytes(&self.holder).bytes(&self.mount).u64(self.sequence).time(self.taken).time(self.issued).u32(self.period);
        p.u8(self.host.len() as u8).bytes(self.host.as_bytes()).zeros_to(PAYLOAD_LEN);
        let blob = sealed_blob::seal(keys.lease().expose(), &context(&volume), salt, p.as_slice());
        let mut w = Writer::with_capacity(OBJECT_LEN);
        w.bytes(&MAGIC).u16(super::VERSION).u16(0).u32(OWNER).bytes(&volume.0).bytes(&blob);
        let signature = keys.owner().sign(&[LABEL, w.as_slice()]);
        w.bytes(&signature);
        Ok(w.public())
    }

    /// Opens a lease of this volume. Everything that does not hold is `lease`.
    pub fn open(keys: &VolumeKeys, bytes: &[u8]) -> Result<Lease> {
        let volume = keys.volume_id();
        let blob = verify_by(volume, |id| keys.writer(id).cloned(), bytes)?;
        let Ok(payload) = sealed_blob::open(keys.lease().expose(), &context(&volume), blob) else {
            return CLASS.fail("a lease does not open");
        };
        Lease::parse(&payload)
    }

    fn parse(payload: &[u8]) -> Result<Lease> {
        let mut r = Reader::new(payload, CLASS);
        let (holder, mount, sequence) = (r.array()?, r.array()?, r.u64()?);
        let (taken, issued, period) = (r.time()?, r.time()?, r.u32()?);
        let len = usize::from(r.u8()?);
        CLASS.unless(sequence > 0 && PERIODS.contains(&period) && len <= HOST_MAX, "a lease has an impossible number")?;
        let Ok(host) = std::str::from_utf8(r.bytes(len)?).map(str::to_owned) else {
            return CLASS.fail("the host in a lease is no text");
        };
        CLASS.unless(text(&host), "the host in a lease has control characters")?;
        r.zeros(r.left())?;
        Ok(Lease { holder, mount, sequence, taken, issued, period, host })
    }
}

/// It is shown on terminals.
fn text(host: &str) -> bool {
    !host.chars().any(char::is_control)
}

/// Checks everything around the blob of a lease, signature included, with the public keys of writers alone; gives the blob.
pub fn verify_by(volume: VolumeId, writer_key: impl Fn(u32) -> Option<VerifyingKey>, bytes: &[u8]) -> Result<&[u8]> {
    CLASS.unless(bytes.len() == OBJECT_LEN, "a lease has another length")?;
    let mut r = Reader::new(bytes, CLASS);
    CLASS.unless(r.array::<8>()? == MAGIC, "this is not a lease of smpfs")?;
    if version_from(&mut r).is_err() {
        return CLASS.fail("a lease of unknown version; a newer smpfs may have written this");
    }
    r.zeros(2)?;
    let writer = writer_key(r.u32()?);
    CLASS.unless(r.array()? == volume.0, "a lease of another volume")?;
    let blob = r.bytes(sealed_blob::sealed_len(PAYLOAD_LEN))?;
    let signed = &bytes[..bytes.len() - r.left()];
    let signature = r.slice()?;
    r.finish()?;
    let good = writer.is_some_and(|w| w.verify(&[LABEL, signed], signature).is_ok());
    CLASS.unless(good, "a lease's signature does not hold")?;
    Ok(blob)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::secmem::SecretKey;

    fn keys(volume: u8) -> VolumeKeys {
        VolumeKeys::derive(&SecretKey::new(&[1; 32]), VolumeId([volume; 16]), Vec::new())
    }

    fn lease() -> Lease {
        let time = |sec| Time { sec, nsec: 7 };
        let host = "h\u{e4}ndel".to_owned();
        Lease { holder: [3; 16], mount: [4; 16], sequence: 5, taken: time(-6), issued: time(7), period: 60, host }
    }

    fn payload_of(keys: &VolumeKeys, bytes: &[u8]) -> Vec<u8> {
        let blob = verify_by(keys.volume_id(), |id| keys.writer(id).cloned(), bytes).unwrap();
        sealed_blob::open(keys.lease().expose(), &context(&keys.volume_id()), blob).unwrap().to_vec()
    }

    #[test]
    fn a_lease_comes_back_and_all_have_one_length() {
        let keys = keys(2);
        for host in ["", "x", &"y".repeat(HOST_MAX)] {
            let lease = Lease { host: host.to_owned(), ..lease() };
            let bytes = lease.seal(&keys, &[9; 24]).unwrap();
            assert_eq!(bytes.len(), OBJECT_LEN);
            assert_eq!(Lease::open(&keys, &bytes).unwrap(), lease);
        }
    }

    #[test]
    fn every_changed_bit_every_cut_and_another_volume_are_refused() {
        let keys = keys(2);
        let bytes = lease().seal(&keys, &[9; 24]).unwrap();
        let refused = |keys: &VolumeKeys, bytes: &[u8]| {
            let e = Lease::open(keys, bytes).unwrap_err();
            assert_eq!((e.kind(), Failure::of(&e)), (Kind::Corrupt, Some(Failure::Lease)), "{e}");
        };
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            refused(&keys, &bad);
        }
        (0..bytes.len()).for_each(|len| refused(&keys, &bytes[..len]));
        refused(&keys, &[&bytes[..], b"x"].concat());
        refused(&super::tests::keys(3), &bytes);
    }

    #[test]
    fn payloads_that_nobody_writes_are_refused() {
        let keys = keys(2);
        let good = payload_of(&keys, &lease().seal(&keys, &[9; 24]).unwrap());
        assert_eq!(Lease::parse(&good).unwrap(), lease());
        let changed = |at: usize, bytes: &[u8]| {
            let mut bad = good.clone();
            bad[at..at + bytes.len()].copy_from_slice(bytes);
            Lease::parse(&bad).map_err(|e| Failure::of(&e))
        };
        // Sequence 0, impossible nanoseconds, periods out of bounds, lengths and texts of hosts, bytes behind the host.
        let long = [&[65][..], &[b'x'; 65]].concat();
        let cases: [(usize, &[u8]); 9] = [
            (32, &[0; 8]),
            (48, &[0xff; 4]),
            (60, &[0xff; 4]),
            (64, &[0; 4]),
            (64, &[0xff; 4]),
            (68, &long),
            (69, &[0xff]),
            (69, b"\x1b"),
            (PAYLOAD_LEN - 1, &[1]),
        ];
        for (at, bytes) in cases {
            assert_eq!(changed(at, bytes), Err(Some(Failure::Lease)), "{at}");
        }
        assert!(Lease::parse(&good[..PAYLOAD_LEN - 130]).is_err());
    }

    #[test]
    fn what_cannot_be_read_is_not_written() {
        let keys = keys(2);
        for bad in [
            Lease { sequence: 0, ..lease() },
            Lease { period: 0, ..lease() },
            Lease { host: "\n".to_owned(), ..lease() },
            Lease { host: "x".repeat(HOST_MAX + 1), ..lease() },
        ] {
            assert_eq!(bad.seal(&keys, &[9; 24]).unwrap_err().kind(), Kind::Bug);
        }
        assert_eq!(host(&"\u{e4}".repeat(40)), "\u{e4}".repeat(32));
        assert_eq!(host(&format!("x{}", "\u{e4}".repeat(40))).len(), 63);
    }
}
