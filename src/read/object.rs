//! One version of a file, opened and verified: what is needed to read any part of it, and to base the next version on it.

use super::cache::ChunkKey;
use crate::crypto::hash::sha256;
use crate::crypto::secmem::SecretKey;
use crate::error::{Error, Kind, Result};
use crate::format::failure::Failure;
use crate::format::geometry::{Geometry, Layout};
use crate::format::manifest::{Record, SegmentSecret};
use crate::format::params::Params;
use crate::format::segment::{SegmentAt, SegmentOpener};
use crate::store::ETag;
use crate::types::{FileId, Hash};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Corrupt chunks of an object that are remembered; beyond that they are fetched and reported again.
const BAD_MAX: usize = 4096;

/// What makes an [`OpenObject`]: verified by opening, or known from having written it.
pub struct ObjectParts {
    /// Key of the object in the store.
    pub key: String,
    /// Version tag under which it is read.
    pub etag: ETag,
    /// File id.
    pub file_id: FileId,
    /// File key, as the index entry holds it.
    pub file_key: SecretKey,
    /// Volume, cipher, chunk sizes.
    pub params: Params,
    /// Generation.
    pub generation: u64,
    /// SHA-256 of its trailer.
    pub trailer_hash: Hash,
    /// Sizes, holes and offsets.
    pub layout: Layout,
    /// What the manifest says of each segment, holes included.
    pub records: Vec<Record>,
}

/// An open version of a file. Immutable but for the memory of which chunks proved corrupt.
pub struct OpenObject {
    parts: ObjectParts,
    /// Names of the segments in the chunk caches.
    tags: Vec<[u8; 16]>,
    any_bad: AtomicBool,
    bad: Mutex<BTreeMap<u64, Failure>>,
}

impl OpenObject {
    /// An object whose parts are verified. `Bug` when records and layout contradict each other.
    pub(super) fn new(parts: ObjectParts) -> Result<OpenObject> {
        let layout = &parts.layout;
        let fit = |(k, r): (u64, &Record)| r.is_hole() == layout.is_hole(k);
        if parts.records.len() as u64 != layout.segments() || !(0..).zip(&parts.records).all(fit) {
            return Err(Error::new(Kind::Bug, "the segments of an object contradict its layout"));
        }
        let name = |(k, record): (u64, &Record)| match record {
            Record::Hole { .. } => [0; 16],
            Record::Stored { secret, root, .. } => segment_tag(&parts.file_id, k, secret, root),
        };
        let tags = (0..).zip(&parts.records).map(name).collect();
        Ok(OpenObject { parts, tags, any_bad: AtomicBool::new(false), bad: Mutex::default() })
    }

    /// An object that this process has just written, so that reading it needs no request first.
    pub fn from_written(parts: ObjectParts) -> Result<OpenObject> {
        OpenObject::new(parts)
    }

    /// Key in the store.
    pub fn key(&self) -> &str {
        &self.parts.key
    }

    /// Version tag under which every byte of it is read.
    pub fn etag(&self) -> &ETag {
        &self.parts.etag
    }

    /// File id.
    pub fn file_id(&self) -> FileId {
        self.parts.file_id
    }

    /// File key.
    pub fn file_key(&self) -> &SecretKey {
        &self.parts.file_key
    }

    /// Volume, cipher, chunk sizes.
    pub fn params(&self) -> &Params {
        &self.parts.params
    }

    /// Generation.
    pub fn generation(&self) -> u64 {
        self.parts.generation
    }

    /// SHA-256 of the trailer.
    pub fn trailer_hash(&self) -> Hash {
        self.parts.trailer_hash
    }

    /// Sizes, holes and offsets.
    pub fn layout(&self) -> &Layout {
        &self.parts.layout
    }

    /// Chunk and segment sizes.
    pub fn geometry(&self) -> Geometry {
        self.parts.layout.geometry()
    }

    /// Bytes of plaintext.
    pub fn size(&self) -> u64 {
        self.parts.layout.size()
    }

    /// Bytes of the object.
    pub fn object_len(&self) -> u64 {
        self.parts.layout.object_len()
    }

    /// What the manifest says of each segment, holes included.
    pub fn records(&self) -> &[Record] {
        &self.parts.records
    }

    /// What of `offset..offset + len` lies in the file.
    pub fn clip(&self, offset: u64, len: u64) -> Range<u64> {
        let size = self.size();
        offset.min(size)..offset.saturating_add(len).min(size)
    }

    /// The chunks (numbered through the file) that a range of plaintext touches.
    pub fn chunks_of(&self, plain: &Range<u64>) -> Range<u64> {
        let c = self.geometry().chunk_size();
        plain.start / c..plain.end.div_ceil(c)
    }

    /// Segment of a chunk, and its number there.
    pub(super) fn place(&self, chunk: u64) -> (u64, u32) {
        let log2 = self.geometry().seg_log2();
        (chunk >> log2, (chunk & ((1 << log2) - 1)) as u32)
    }

    /// The chunk's name in the caches; `None` for a hole or beyond the end.
    pub(super) fn chunk_key(&self, chunk: u64) -> Option<ChunkKey> {
        let (k, i) = self.place(chunk);
        let at = usize::try_from(k).ok()?;
        let stored = !self.parts.records.get(at)?.is_hole() && i < self.parts.layout.seg_chunks(k);
        stored.then_some(ChunkKey { segment: *self.tags.get(at)?, chunk: i })
    }

    /// Plaintext bytes of a chunk; 0 beyond the end.
    pub(super) fn chunk_len(&self, chunk: u64) -> usize {
        let c = self.geometry().chunk_size();
        self.size().saturating_sub(chunk.saturating_mul(c)).min(c) as usize
    }

    /// Bytes of the object from the first to the last of these chunks (with feet and leaves between them, when they lie in more
    /// than one segment). `Bug` when one of the two is not stored.
    pub(super) fn stored_range(&self, chunks: Range<u64>) -> Result<Range<u64>> {
        let one = |chunk: u64| {
            let (k, i) = self.place(chunk);
            self.parts.layout.chunks(k, i..i + 1)
        };
        match (one(chunks.start), chunks.end.checked_sub(1).and_then(one)) {
            (Some(first), Some(last)) => Ok(first.start..last.end),
            _ => Err(Error::new(Kind::Bug, "bytes of a chunk that is not stored were asked for")),
        }
    }

    /// The name of a segment in caches; `None` for a hole or beyond the end.
    pub(super) fn segment_tag(&self, k: u64) -> Option<[u8; 16]> {
        self.stored(k)?;
        self.tags.get(usize::try_from(k).ok()?).copied()
    }

    fn stored(&self, k: u64) -> Option<(&SegmentSecret, &Hash)> {
        match self.parts.records.get(usize::try_from(k).ok()?)? {
            Record::Stored { secret, root, .. } => Some((secret, root)),
            Record::Hole { .. } => None,
        }
    }

    /// The root that the leaves of segment `k` must have; `None` for a hole or beyond the end.
    pub fn segment_root(&self, k: u64) -> Option<Hash> {
        self.stored(k).map(|(_, root)| *root)
    }

    /// Segment `k`'s place.
    pub fn segment_at(&self, k: u64) -> SegmentAt<'_> {
        let plain = self.parts.layout.seg_plain(k);
        SegmentAt { params: &self.parts.params, file_id: &self.parts.file_id, k, plain }
    }

    /// An opener for the chunks of segment `k`; `None` for a hole or beyond the end.
    pub(super) fn opener(&self, k: u64) -> Option<SegmentOpener> {
        self.stored(k).map(|(secret, _)| SegmentOpener::new(&self.segment_at(k), secret))
    }

    /// The failure that a chunk is known for.
    pub(super) fn known_bad(&self, chunk: u64) -> Option<Failure> {
        // Nearly always false: the fast path takes no lock.
        self.any_bad.load(Ordering::Acquire).then(|| self.bad.lock().get(&chunk).copied()).flatten()
    }

    /// Remembers a corrupt chunk; returns whether that is news.
    /// Whether no chunk of it has failed verification.
    pub fn is_sound(&self) -> bool {
        !self.any_bad.load(Ordering::Acquire)
    }

    pub(super) fn condemn(&self, chunk: u64, stage: Failure) -> bool {
        let mut bad = self.bad.lock();
        if bad.contains_key(&chunk) {
            return false;
        }
        if bad.len() < BAD_MAX {
            bad.insert(chunk, stage);
            self.any_bad.store(true, Ordering::Release);
        }
        true
    }
}

/// Names a sealed segment. The secret decides the key, the root the ciphertext, file id and number the place: together they
/// decide the plaintext, and nobody can make two different segments share a name.
fn segment_tag(file: &FileId, k: u64, secret: &SegmentSecret, root: &Hash) -> [u8; 16] {
    let name = sha256(&[b"smpfs chunk cache\0", &file.0, &k.to_be_bytes(), &secret.0, &root.0]);
    let mut tag = [0; 16];
    tag.copy_from_slice(&name[..16]);
    tag
}

impl fmt::Debug for OpenObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenObject")
            .field("file_id", &self.file_id())
            .field("generation", &self.generation())
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}
