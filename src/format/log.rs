//! The bytes of a local sealed log (`docs/FORMAT.md`, section 8): header and records. Files and crashes are `sealedlog`'s.
//!
//! A record is bound to its log, its number, its place in the file, its type and its length, so none can be moved, dropped from
//! the middle, repeated, or carried into another log.

use crate::crypto::aead::{AeadKey, NONCE_LEN, TAG_LEN};
use crate::crypto::sealed_blob;
use crate::crypto::secmem::SecretKey;
use crate::error::{Kind, Result, fail};
use crate::types::{Suite, VolumeId};

/// Bytes of the header.
pub const HEADER_LEN: usize = 256;
/// Bytes in front of a record's ciphertext.
pub const HEAD_LEN: usize = 8;
/// Bytes that a record is longer than its payload.
pub const OVERHEAD: usize = HEAD_LEN + TAG_LEN;
/// Longest payload of a record.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// How many numbers in a row a reader tries: a failed append burns one.
pub const SEQ_WINDOW: u64 = 8;

const MAGIC: &[u8; 8] = b"SMPLOG\x01\x0A";
const VERSION: u16 = 1;
const WRAPPED_AT: usize = 44;
const WRAPPED_LEN: usize = sealed_blob::sealed_len(32);
const WRAPPED_END: usize = WRAPPED_AT + WRAPPED_LEN;
const _: () = assert!(WRAPPED_LEN == 104 && WRAPPED_END <= HEADER_LEN);

/// What a log is for. A log of one kind never opens as another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum LogKind {
    /// What must still be uploaded or done.
    Journal = 1,
    /// Data written by programs and not yet in the bucket.
    Spool = 2,
    /// Generations of index objects that this machine has seen.
    Known = 3,
    /// The audit log.
    Audit = 4,
    /// Objects that failed verification.
    Quarantine = 5,
}

/// What a header says openly, and must be given again to open it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogId {
    /// What the log is for.
    pub kind: LogKind,
    /// The volume it belongs to.
    pub volume: VolumeId,
    /// 16 random bytes of its own.
    pub id: [u8; 16],
}

impl LogId {
    fn context(&self) -> Vec<u8> {
        [&b"smpfs/v1/log\0"[..], &(self.kind as u16).to_be_bytes(), &self.volume.0, &self.id].concat()
    }
}

/// The header of a new log: its key wrapped under `wrap` (K("local-log")). `salt` must be fresh randomness.
pub fn seal_header(log: LogId, wrap: &SecretKey, key: &SecretKey, salt: &[u8; sealed_blob::SALT_LEN]) -> [u8; HEADER_LEN] {
    let mut out = [0; HEADER_LEN];
    out[..8].copy_from_slice(MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_be_bytes());
    out[10..12].copy_from_slice(&(log.kind as u16).to_be_bytes());
    out[12..28].copy_from_slice(&log.volume.0);
    out[28..44].copy_from_slice(&log.id);
    let wrapped = sealed_blob::seal(wrap.expose(), &log.context(), salt, key.expose());
    out[WRAPPED_AT..WRAPPED_END].copy_from_slice(&wrapped);
    out
}

/// Opens a header; `kind` and `volume` are what the reader expects.
///
/// Fails with `Unsupported` on another version and with `Corrupt` on everything else that is not as it was written.
pub fn open_header(header: &[u8; HEADER_LEN], kind: LogKind, volume: VolumeId, wrap: &SecretKey) -> Result<LogKey> {
    if &header[..8] != MAGIC {
        return fail(Kind::Corrupt, "a local log does not begin as one");
    }
    if header[8..10] != VERSION.to_be_bytes() {
        return fail(Kind::Unsupported, "a local log was written by another release of smpfs, in a version unknown to this one");
    }
    let mut log = LogId { kind, volume, id: [0; 16] };
    log.id.copy_from_slice(&header[28..44]);
    if header[10..12] != (kind as u16).to_be_bytes() || header[12..28] != volume.0 {
        return fail(Kind::Corrupt, "a local log is of another kind or belongs to another volume");
    }
    if header[WRAPPED_END..].iter().any(|b| *b != 0) {
        return fail(Kind::Corrupt, "reserved bytes of a local log are not zero");
    }
    let key = sealed_blob::open(wrap.expose(), &log.context(), &header[WRAPPED_AT..WRAPPED_END])?;
    match key.as_slice().try_into() {
        Ok(key) => Ok(LogKey::new(key, log)),
        Err(_) => fail(Kind::Corrupt, "the key of a local log has the wrong length"),
    }
}

/// The key of one log, ready to seal and open its records.
pub struct LogKey {
    aead: AeadKey,
    id: [u8; 16],
}

impl LogKey {
    /// Prepares `key` for the records of `log`.
    pub fn new(key: &[u8; 32], log: LogId) -> LogKey {
        LogKey { aead: AeadKey::new(Suite::Aes256Gcm, key), id: log.id }
    }

    /// Appends a whole record to `out`: head, ciphertext, tag. The parts of `payload` are joined.
    ///
    /// `seq` must never have been used under this key; `offset` is where the record begins in the file. Fails with `TooLarge`
    /// beyond [`MAX_PAYLOAD`].
    pub fn seal(&self, seq: u64, offset: u64, kind: u8, payload: &[&[u8]], out: &mut Vec<u8>) -> Result<()> {
        let len: usize = payload.iter().map(|p| p.len()).sum();
        if len > MAX_PAYLOAD {
            return fail(Kind::TooLarge, "a record of a local log holds up to 1 MiB");
        }
        let mut head = [0; HEAD_LEN];
        head[..4].copy_from_slice(&(len as u32).to_be_bytes());
        head[4] = kind;
        // All at once: growing on the way would leave plaintext behind.
        out.reserve(len + OVERHEAD);
        out.extend_from_slice(&head);
        let start = out.len();
        payload.iter().for_each(|part| out.extend_from_slice(part));
        let tag = self.aead.seal_in_place(&nonce(seq), &self.aad(&head, offset), &mut out[start..]);
        out.extend_from_slice(&tag);
        Ok(())
    }

    /// Opens a whole record in place and returns its type; the payload is `record[HEAD_LEN..record.len() - TAG_LEN]` then.
    ///
    /// Fails with `Corrupt`; the ciphertext is zeros then.
    pub fn open(&self, seq: u64, offset: u64, record: &mut [u8]) -> Result<u8> {
        let Some((head, rest)) = record.split_first_chunk_mut::<HEAD_LEN>() else {
            return fail(Kind::Corrupt, "a record of a local log is cut short");
        };
        let Some((body, tag)) = rest.split_last_chunk_mut::<TAG_LEN>() else {
            return fail(Kind::Corrupt, "a record of a local log is cut short");
        };
        if payload_len(head) != Some(body.len()) {
            return fail(Kind::Corrupt, "a record of a local log has another length than it says");
        }
        self.aead.open_in_place(&nonce(seq), &self.aad(head, offset), body, tag)?;
        Ok(head[4])
    }

    fn aad(&self, head: &[u8; HEAD_LEN], offset: u64) -> [u8; HEAD_LEN + 8 + 16] {
        let mut aad = [0; HEAD_LEN + 8 + 16];
        aad[..HEAD_LEN].copy_from_slice(head);
        aad[HEAD_LEN..HEAD_LEN + 8].copy_from_slice(&offset.to_be_bytes());
        aad[HEAD_LEN + 8..].copy_from_slice(&self.id);
        aad
    }
}

/// Length of the payload that a head announces; `None` when no record begins like this.
pub fn payload_len(head: &[u8; HEAD_LEN]) -> Option<usize> {
    let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    (len <= MAX_PAYLOAD && head[5..] == [0; 3]).then_some(len)
}

fn nonce(seq: u64) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce[4..].copy_from_slice(&seq.to_be_bytes());
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LOG: LogId = LogId { kind: LogKind::Spool, volume: VolumeId([3; 16]), id: [4; 16] };

    fn keys() -> (SecretKey, SecretKey) {
        (SecretKey::new(&[1; 32]), SecretKey::new(&[2; 32]))
    }

    #[test]
    fn header_opens_and_every_flipped_bit_is_refused() {
        let (wrap, key) = keys();
        let header = seal_header(LOG, &wrap, &key, &[5; 24]);
        assert!(open_header(&header, LOG.kind, LOG.volume, &wrap).is_ok());
        assert!(open_header(&header, LogKind::Journal, LOG.volume, &wrap).is_err());
        assert!(open_header(&header, LOG.kind, VolumeId([0; 16]), &wrap).is_err());
        assert!(open_header(&header, LOG.kind, LOG.volume, &key).is_err());
        for bit in 0..HEADER_LEN * 8 {
            let mut bad = header;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(open_header(&bad, LOG.kind, LOG.volume, &wrap).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn the_layout_is_that_of_the_document() {
        let (wrap, key) = keys();
        let header = seal_header(LOG, &wrap, &key, &[5; 24]);
        assert_eq!(header[..12], *b"SMPLOG\x01\x0A\0\x01\0\x02");
        assert_eq!((&header[12..28], &header[28..44], &header[44..68]), (&[3; 16][..], &[4; 16][..], &[5; 24][..]));
        let context = [&b"smpfs/v1/log\0\0\x02"[..], &[3; 16], &[4; 16]].concat();
        assert_eq!(sealed_blob::open(&[1; 32], &context, &header[44..148]).unwrap().as_slice(), [2; 32]);
        let mut record = Vec::new();
        LogKey::new(&[2; 32], LOG).seal(0x0102, 0x0304, 9, &[b"pay", b"load"], &mut record).unwrap();
        assert_eq!(record[..8], [0, 0, 0, 7, 9, 0, 0, 0]);
        let aad = [&record[..8], &[0, 0, 0, 0, 0, 0, 3, 4], &[4; 16]].concat();
        let tag = record[15..].try_into().unwrap();
        let aead = AeadKey::new(Suite::Aes256Gcm, &[2; 32]);
        aead.open_in_place(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2], &aad, &mut record[8..15], &tag).unwrap();
        assert_eq!(&record[8..15], b"payload");
        assert!(LogKey::new(&[2; 32], LOG).seal(0, 0, 0, &[&vec![0; MAX_PAYLOAD], &[0]], &mut record).is_err());
    }

    proptest! {
        #[test]
        fn a_record_opens_in_its_place_only(
            seq: u64,
            offset: u64,
            kind: u8,
            payload in prop::collection::vec(any::<u8>(), 0..300),
            at: prop::sample::Index,
            bit in 0u8..8,
        ) {
            let key = LogKey::new(&[7; 32], LOG);
            let mut record = Vec::new();
            key.seal(seq, offset, kind, &[&payload], &mut record).unwrap();
            prop_assert_eq!(record.len(), payload.len() + OVERHEAD);
            let mut good = record.clone();
            prop_assert_eq!(key.open(seq, offset, &mut good).unwrap(), kind);
            prop_assert_eq!(&good[HEAD_LEN..HEAD_LEN + payload.len()], &payload[..]);
            prop_assert!(key.open(seq ^ 1, offset, &mut record.clone()).is_err());
            prop_assert!(key.open(seq, offset ^ 1, &mut record.clone()).is_err());
            let other = LogKey::new(&[7; 32], LogId { id: [0; 16], ..LOG });
            prop_assert!(other.open(seq, offset, &mut record.clone()).is_err());
            let cut = at.index(record.len());
            prop_assert!(key.open(seq, offset, &mut record[..cut].to_vec()).is_err());
            record[cut] ^= 1 << bit;
            prop_assert!(key.open(seq, offset, &mut record).is_err());
        }
    }
}
