//! Segments: chunks sealed under one fresh secret, and the leaves that commit to them (FORMAT.md, section 4.2).
//!
//! A segment secret seals one segment once: [`SegmentSealer`] takes the secret by value, numbers its chunks itself and is
//! consumed by [`SegmentSealer::finish`]. A retried upload sends the same bytes again, or starts from a new secret.

use super::failure::Failure;
use super::geometry::{FOOT_LEN, Geometry, LEAF_LEN};
use super::manifest::{Record, SegmentSecret};
use super::params::{Params, suite_code};
use crate::crypto::aead::{AeadKey, NONCE_LEN, TAG_LEN, nonce_at};
use crate::crypto::hash::{Sha256, sha256};
use crate::crypto::kdf::{expand_sha512, hkdf_sha512};
use crate::crypto::secmem::SecretKey;
use crate::crypto::wiped::Wiped;
use crate::error::{Kind, Result, fail};
use crate::types::{FileId, Hash};
use zeroize::{Zeroize, Zeroizing};

/// Which segment of which file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentAt<'a> {
    /// Constants of the volume.
    pub params: &'a Params,
    /// The file.
    pub file_id: &'a FileId,
    /// k: the segment's number in the file, holes counted.
    pub k: u64,
    /// Plaintext bytes of the segment.
    pub plain: u64,
}

impl SegmentAt<'_> {
    fn chunks(&self) -> u32 {
        self.params.geometry.seg_chunks(self.plain)
    }

    /// The segment's FOOT: its number and its number of chunks.
    fn foot(&self) -> [u8; FOOT_LEN] {
        let mut foot = [0; FOOT_LEN];
        foot[..8].copy_from_slice(&self.k.to_be_bytes());
        foot[8..12].copy_from_slice(&self.chunks().to_be_bytes());
        foot
    }

    fn root(&self, leaves: &[u8]) -> Hash {
        Hash(sha256(&[b"smpfs/v1/segroot\0", &self.foot(), leaves]))
    }
}

/// A fresh segment secret, hedged: even from randomness that repeats, another file, segment, generation or `counter` (which
/// counts the calls of this process) gives another secret.
pub fn fresh_secret(
    random: &[u8; 32],
    file_key: &SecretKey,
    file: &FileId,
    k: u64,
    generation: u64,
    counter: u64,
) -> SegmentSecret {
    let info: [&[u8]; 5] =
        [b"smpfs/v1/segsecret\0", &file.0, &k.to_be_bytes(), &generation.to_be_bytes(), &counter.to_be_bytes()];
    SegmentSecret(*hkdf_sha512::<32>(random, file_key.expose(), &info))
}

/// Key, base nonce and associated data of a segment's chunks.
struct ChunkCipher {
    aead: AeadKey,
    base_nonce: [u8; NONCE_LEN],
    file_id: FileId,
    first_chunk: u64,
}

impl ChunkCipher {
    fn new(at: &SegmentAt<'_>, secret: &SegmentSecret) -> Self {
        let g = at.params.geometry;
        let suite = suite_code(at.params.suite).to_be_bytes();
        let info: [&[u8]; 5] = [b"smpfs/v1/seg\0", &suite, &[g.chunk_log2(), g.seg_log2()], &at.file_id.0, &at.k.to_be_bytes()];
        let okm = expand_sha512::<44>(&secret.0, &info);
        let mut key = Zeroizing::new([0; 32]);
        key.copy_from_slice(&okm[..32]);
        let mut base_nonce = [0; NONCE_LEN];
        base_nonce.copy_from_slice(&okm[32..]);
        let first_chunk = at.k << g.seg_log2();
        ChunkCipher { aead: AeadKey::new(at.params.suite, &key), base_nonce, file_id: *at.file_id, first_chunk }
    }

    fn nonce(&self, i: u32) -> [u8; NONCE_LEN] {
        nonce_at(&self.base_nonce, u64::from(i))
    }

    fn aad(&self, i: u32) -> [u8; 40] {
        let mut aad = [0; 40];
        aad[..32].copy_from_slice(&self.file_id.0);
        aad[32..].copy_from_slice(&(self.first_chunk + u64::from(i)).to_be_bytes());
        aad
    }
}

/// LEAF of a stored chunk: ciphertext and tag.
pub fn leaf(stored_chunk: &[u8]) -> [u8; LEAF_LEN] {
    sha256(&[&[0], stored_chunk])
}

/// Seals the chunks of one segment in order.
pub struct SegmentSealer<'a> {
    at: SegmentAt<'a>,
    cipher: ChunkCipher,
    secret: SegmentSecret,
    next: u32,
    leaves: Vec<u8>,
}

impl<'a> SegmentSealer<'a> {
    /// A sealer for the segment `at`, which holds at least one byte and at most a full segment.
    pub fn new(at: SegmentAt<'a>, secret: SegmentSecret) -> Result<Self> {
        if at.plain == 0 || at.plain > at.params.geometry.seg_size() {
            return fail(Kind::Bug, "a segment of impossible length was to be sealed");
        }
        let cipher = ChunkCipher::new(&at, &secret);
        let leaves = Vec::with_capacity(at.chunks() as usize * LEAF_LEN);
        Ok(SegmentSealer { at, cipher, secret, next: 0, leaves })
    }

    /// Plaintext bytes that the next chunk takes; 0 when all are sealed.
    pub fn next_len(&self) -> usize {
        self.at.params.geometry.chunk_plain(self.at.plain, self.next) as usize
    }

    /// Seals the next chunk, exactly [`SegmentSealer::next_len`] bytes, and appends ciphertext and tag to `out`.
    pub fn chunk(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        out.extend_from_slice(plain);
        out.extend_from_slice(&[0; TAG_LEN]);
        let done = self.chunk_in_place(&mut out[start..]);
        if done.is_err() {
            out[start..].zeroize();
            out.truncate(start);
        }
        done
    }

    /// Seals the next chunk where it lies: `stored` is its plaintext and room for the tag.
    fn chunk_in_place(&mut self, stored: &mut [u8]) -> Result<()> {
        let len = self.next_len();
        let Some((text, tag)) = stored.split_last_chunk_mut::<TAG_LEN>().filter(|(text, _)| len > 0 && text.len() == len) else {
            return fail(Kind::Bug, "a chunk of another length than its place was to be sealed");
        };
        *tag = self.cipher.aead.seal_in_place(&self.cipher.nonce(self.next), &self.cipher.aad(self.next), text);
        self.leaves.extend_from_slice(&leaf(stored));
        self.next += 1;
        Ok(())
    }

    /// Appends foot and leaves to `out` and returns the segment's record for the manifest of generation `written`.
    pub fn finish(self, written: u64, out: &mut Vec<u8>) -> Result<Record> {
        if self.next_len() != 0 {
            return fail(Kind::Bug, "a segment was finished before all of its chunks were sealed");
        }
        out.extend_from_slice(&self.at.foot());
        out.extend_from_slice(&self.leaves);
        Ok(Record::Stored { root: self.at.root(&self.leaves), secret: self.secret, written })
    }
}

/// Room for a segment, in which its plaintext becomes its stored bytes: every chunk lies where it will be stored. Begins as zeros,
/// and is wiped when it goes unsealed.
pub struct SegmentBuffer {
    bytes: Wiped,
    chunk: usize,
    plain: usize,
}

impl SegmentBuffer {
    /// Room for a segment of `plain` bytes.
    pub fn new(geometry: Geometry, plain: u64) -> SegmentBuffer {
        let bytes = Wiped::zeros(geometry.seg_stored(plain) as usize);
        SegmentBuffer { bytes, chunk: geometry.chunk_size() as usize, plain: plain as usize }
    }

    /// Puts `data` at `offset` of the segment's plaintext. `Bug` when it does not fit.
    pub fn put(&mut self, offset: usize, mut data: &[u8]) -> Result<()> {
        if offset.checked_add(data.len()).is_none_or(|end| end > self.plain) {
            return fail(Kind::Bug, "bytes were put behind the end of a segment");
        }
        let mut at = offset;
        while !data.is_empty() {
            let (now, rest) = data.split_at(data.len().min(self.chunk - at % self.chunk));
            let to = at / self.chunk * (self.chunk + TAG_LEN) + at % self.chunk;
            self.bytes[to..to + now.len()].copy_from_slice(now);
            (at, data) = (at + now.len(), rest);
        }
        Ok(())
    }
}

/// Seals a whole segment where it lies: its stored bytes and its record.
pub fn seal_buffer(
    at: SegmentAt<'_>,
    secret: SegmentSecret,
    written: u64,
    mut buffer: SegmentBuffer,
) -> Result<(Vec<u8>, Record)> {
    if buffer.plain as u64 != at.plain || buffer.chunk as u64 != at.params.geometry.chunk_size() {
        return fail(Kind::Bug, "a segment of another length than its place was to be sealed");
    }
    let mut sealer = SegmentSealer::new(at, secret)?;
    let body = buffer.plain + at.chunks() as usize * TAG_LEN;
    for stored in buffer.bytes[..body].chunks_mut(buffer.chunk + TAG_LEN) {
        sealer.chunk_in_place(stored)?;
    }
    let mut out = buffer.bytes.take();
    out.truncate(body);
    let record = sealer.finish(written, &mut out)?;
    Ok((out, record))
}

/// Seals a whole segment: its stored bytes and its record.
pub fn seal_segment(at: SegmentAt<'_>, secret: SegmentSecret, written: u64, plain: &[u8]) -> Result<(Vec<u8>, Record)> {
    let mut buffer = SegmentBuffer::new(at.params.geometry, plain.len() as u64);
    buffer.put(0, plain)?;
    seal_buffer(at, secret, written, buffer)
}

/// Opens single chunks of one segment, in any order and from many threads.
pub struct SegmentOpener {
    cipher: ChunkCipher,
    params: Params,
    plain: u64,
}

impl SegmentOpener {
    /// An opener for the segment `at`, with the secret from its record.
    pub fn new(at: &SegmentAt<'_>, secret: &SegmentSecret) -> Self {
        SegmentOpener { cipher: ChunkCipher::new(at, secret), params: *at.params, plain: at.plain }
    }

    /// Decrypts chunk `i` in place: `stored` is ciphertext and tag; its first bytes are the plaintext afterwards, as many as
    /// returned. On failure (`chunk`) the ciphertext's place holds zeros.
    pub fn open_in_place(&self, i: u32, stored: &mut [u8]) -> Result<usize> {
        let expected = self.params.geometry.chunk_plain(self.plain, i) as usize;
        let Some((text, tag)) = stored.split_last_chunk_mut::<TAG_LEN>() else {
            return Failure::Chunk.fail("a chunk is cut short");
        };
        Failure::Chunk.unless(expected > 0 && text.len() == expected, "a chunk has another length than its place")?;
        match self.cipher.aead.open_in_place(&self.cipher.nonce(i), &self.cipher.aad(i), text, tag) {
            Ok(()) => Ok(expected),
            Err(_) => Failure::Chunk.fail("a chunk's ciphertext is not what was written"),
        }
    }

    /// Decrypts chunk `i` into a buffer of its own.
    pub fn open(&self, i: u32, stored: &[u8]) -> Result<Vec<u8>> {
        let mut buf = stored.to_vec();
        let len = self.open_in_place(i, &mut buf)?;
        buf.truncate(len);
        Ok(buf)
    }
}

/// The leaves of a segment, verified against its root: what each stored chunk must hash to. Needs no key.
pub struct Leaves(Vec<u8>);

impl Leaves {
    /// Verifies foot and leaves as stored; `leaf` when they are not what was written.
    pub fn verify(at: &SegmentAt<'_>, foot_and_leaves: &[u8], root: &Hash) -> Result<Leaves> {
        let Some((foot, leaves)) = foot_and_leaves.split_at_checked(FOOT_LEN) else {
            return Failure::Leaf.fail("a segment's foot is cut short");
        };
        let good = foot == at.foot() && leaves.len() == at.chunks() as usize * LEAF_LEN && at.root(leaves) == *root;
        Failure::Leaf.unless(good, "a segment's leaves are not what was written")?;
        Ok(Leaves(leaves.to_vec()))
    }

    /// Checks chunk `i` as stored; `leaf` when it is not what was written.
    pub fn check(&self, i: u32, stored: &[u8]) -> Result<()> {
        let good = self.0.chunks(LEAF_LEN).nth(i as usize).is_some_and(|l| l == leaf(stored));
        Failure::Leaf.unless(good, "a chunk does not match its leaf")
    }
}

/// Foot and leaves of a segment of which nothing is known but its stored bytes: what somebody without keys can check.
pub struct PublicLeaves {
    /// The segment's number in the file.
    pub k: u64,
    /// The root that follows from foot and leaves.
    pub root: Hash,
    leaves: Leaves,
}

impl PublicLeaves {
    /// Reads foot and leaves of a segment of `chunks` chunks; `leaf` when the foot says otherwise.
    pub fn read(chunks: u32, foot_and_leaves: &[u8]) -> Result<PublicLeaves> {
        let Some((foot, leaves)) = foot_and_leaves.split_first_chunk::<FOOT_LEN>() else {
            return Failure::Leaf.fail("a segment's foot is cut short");
        };
        let (k, rest) = foot.split_at(8);
        let fits = rest[..4] == chunks.to_be_bytes() && rest[4..] == [0; 4] && leaves.len() == chunks as usize * LEAF_LEN;
        Failure::Leaf.unless(fits, "a segment's foot is not what was written")?;
        let k = k.iter().fold(0, |k, b| k << 8 | u64::from(*b));
        let root = Hash(sha256(&[b"smpfs/v1/segroot\0", foot, leaves]));
        Ok(PublicLeaves { k, root, leaves: Leaves(leaves.to_vec()) })
    }

    /// Checks chunk `i` as stored; `leaf` when it is not what was written.
    pub fn check(&self, i: u32, stored: &[u8]) -> Result<()> {
        self.leaves.check(i, stored)
    }
}

/// Verifies all stored bytes of a segment against its root, without any key; `leaf` when they are not what was written.
pub fn verify_segment(at: &SegmentAt<'_>, stored: &[u8], root: &Hash) -> Result<()> {
    let geometry = at.params.geometry;
    let right_length = stored.len() as u64 == geometry.seg_stored(at.plain) && at.plain > 0;
    Failure::Leaf.unless(right_length, "a segment has another length than its place")?;
    let body = at.plain as usize + at.chunks() as usize * TAG_LEN;
    let leaves = Leaves::verify(at, &stored[body..], root)?;
    for (i, chunk) in (0..).zip(stored[..body].chunks(geometry.chunk_stored() as usize)) {
        leaves.check(i, chunk)?;
    }
    Ok(())
}

/// body_root: the hash over the roots of all stored segments in order.
pub fn body_root<'a>(records: impl IntoIterator<Item = &'a Record>) -> Hash {
    body_root_of(records.into_iter().filter_map(|record| match record {
        Record::Stored { root, .. } => Some(*root),
        Record::Hole { .. } => None,
    }))
}

/// The same from the roots alone.
pub fn body_root_of(roots: impl IntoIterator<Item = Hash>) -> Hash {
    let mut hash = Sha256::new();
    hash.update(b"smpfs/v1/body\0");
    roots.into_iter().for_each(|root| hash.update(&root.0));
    Hash(hash.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Geometry;
    use crate::types::{Suite, VolumeId};
    use proptest::prelude::*;

    fn params(suite: Suite) -> Params {
        Params { volume_id: VolumeId([1; 16]), suite, geometry: Geometry::new(14, 4).unwrap() }
    }

    fn stored(record: &Record) -> (&SegmentSecret, &Hash) {
        match record {
            Record::Stored { secret, root, .. } => (secret, root),
            Record::Hole { .. } => panic!("a hole"),
        }
    }

    #[test]
    fn chunks_open_alone_and_only_in_their_place() {
        for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
            let params = params(suite);
            let file = FileId([2; 32]);
            let plain: Vec<u8> = (0..40_000u32).map(|i| i as u8).collect();
            let at = SegmentAt { params: &params, file_id: &file, k: 5, plain: plain.len() as u64 };
            let (bytes, record) = seal_segment(at, SegmentSecret([3; 32]), 1, &plain).unwrap();
            assert_eq!(bytes.len() as u64, params.geometry.seg_stored(at.plain));
            let (secret, root) = stored(&record);
            verify_segment(&at, &bytes, root).unwrap();
            let opener = SegmentOpener::new(&at, secret);
            let size = (1 << 14) + 16;
            assert_eq!(opener.open(1, &bytes[size..2 * size]).unwrap(), plain[1 << 14..2 << 14]);
            assert_eq!(opener.open(2, &bytes[2 * size..40_000 + 48]).unwrap(), plain[2 << 14..]);
            let refused = |opener: &SegmentOpener, i, bytes: &[u8]| {
                assert_eq!(Failure::of(&opener.open(i, bytes).unwrap_err()), Some(Failure::Chunk));
            };
            refused(&opener, 0, &bytes[size..2 * size]);
            refused(&opener, 3, &bytes[..16]);
            refused(&opener, 0, &[]);
            for other in [SegmentAt { k: 6, ..at }, SegmentAt { file_id: &FileId([9; 32]), ..at }] {
                refused(&SegmentOpener::new(&other, secret), 0, &bytes[..size]);
                assert!(verify_segment(&other, &bytes, root).is_err() || other.k == at.k);
            }
        }
    }

    #[test]
    fn a_segment_may_be_put_together_in_its_place() {
        let params = params(Suite::Aes256Gcm);
        let file = FileId([2; 32]);
        let plain: Vec<u8> = (0..40_000u32).map(|i| (i / 7) as u8).collect();
        let at = SegmentAt { params: &params, file_id: &file, k: 1, plain: plain.len() as u64 };
        let whole = seal_segment(at, SegmentSecret([3; 32]), 4, &plain).unwrap();
        let mut sealed = Vec::new();
        let mut sealer = SegmentSealer::new(at, SegmentSecret([3; 32])).unwrap();
        for chunk in plain.chunks(1 << 14) {
            sealer.chunk(chunk, &mut sealed).unwrap();
        }
        let record = sealer.finish(4, &mut sealed).unwrap();
        assert_eq!((&sealed, &record), (&whole.0, &whole.1));
        // In pieces across the bounds of chunks, last things first, and with something that is overwritten.
        let mut buffer = SegmentBuffer::new(params.geometry, at.plain);
        buffer.put(100, &[0xEE; 30_000]).unwrap();
        for start in [33_000, 16_384, 16_383, 5, 0] {
            let end = [5, 16_383, 16_384, 33_000, 40_000].into_iter().find(|e| *e > start).unwrap();
            buffer.put(start, &plain[start..end]).unwrap();
        }
        assert_eq!(seal_buffer(at, SegmentSecret([3; 32]), 4, buffer).unwrap(), whole);
        let mut buffer = SegmentBuffer::new(params.geometry, at.plain);
        assert!(buffer.put(39_999, &[1; 2]).is_err() && buffer.put(usize::MAX, &[1; 2]).is_err());
        assert!(seal_buffer(SegmentAt { plain: at.plain - 1, ..at }, SegmentSecret([3; 32]), 4, buffer).is_err());
    }

    #[test]
    fn a_sealer_takes_exactly_its_chunks() {
        let params = params(Suite::Aes256Gcm);
        let file = FileId([2; 32]);
        let at = SegmentAt { params: &params, file_id: &file, k: 0, plain: (1 << 14) + 1 };
        let mut out = Vec::new();
        let mut sealer = SegmentSealer::new(at, SegmentSecret([3; 32])).unwrap();
        assert!(sealer.chunk(&[0; 1], &mut out).is_err());
        sealer.chunk(&[0; 1 << 14], &mut out).unwrap();
        assert_eq!(sealer.next_len(), 1);
        assert!(sealer.finish(1, &mut out).is_err());
        let mut sealer = SegmentSealer::new(at, SegmentSecret([3; 32])).unwrap();
        sealer.chunk(&[0; 1 << 14], &mut out).unwrap();
        sealer.chunk(&[0; 1], &mut out).unwrap();
        assert!(sealer.chunk(&[], &mut out).is_err());
        assert!(SegmentSealer::new(SegmentAt { plain: 0, ..at }, SegmentSecret([3; 32])).is_err());
        assert!(SegmentSealer::new(SegmentAt { plain: (1 << 18) + 1, ..at }, SegmentSecret([3; 32])).is_err());
    }

    #[test]
    fn secrets_differ_with_every_input() {
        let key = SecretKey::new(&[1; 32]);
        let make = |r: u8, f: u8, k, g, c| fresh_secret(&[r; 32], &key, &FileId([f; 32]), k, g, c);
        let all = [
            make(0, 0, 0, 0, 0),
            make(1, 0, 0, 0, 0),
            make(0, 1, 0, 0, 0),
            make(0, 0, 1, 0, 0),
            make(0, 0, 0, 1, 0),
            make(0, 0, 0, 0, 1),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_flipped_bit_fails_the_leaves(len in 1usize..70_000, k in 0u64..1 << 40, at_bit: prop::sample::Index) {
            let params = params(Suite::Aes256Gcm);
            let file = FileId([2; 32]);
            let at = SegmentAt { params: &params, file_id: &file, k, plain: len as u64 };
            let (mut bytes, record) = seal_segment(at, SegmentSecret([3; 32]), 1, &vec![7; len]).unwrap();
            let (_, root) = stored(&record);
            prop_assert!(verify_segment(&at, &bytes, root).is_ok());
            let bit = at_bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Failure::of(&verify_segment(&at, &bytes, root).unwrap_err()), Some(Failure::Leaf));
        }
    }
}
