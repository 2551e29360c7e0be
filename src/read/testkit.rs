//! For the tests of the read path: sealed objects in a memory store behind a layer of faults, and a witness that remembers.

use super::cache::{ChunkKey, LowerCache};
use super::{Ask, CorruptReport, OpenObject, ReadOptions, Reader, Witness};
use crate::crypto::secmem::SecretKey;
use crate::format::header::Header;
use crate::format::manifest::{Hints, Manifest, Record, SegmentSecret};
use crate::format::object::{NewVersion, seal_root};
use crate::format::segment::{SegmentAt, seal_segment};
use crate::format::{Failure, Geometry, Params, VolumeKeys};
use crate::store::layers::{Faulty, Verb, Wrap};
use crate::store::memory::MemoryStore;
use crate::store::{Cond, Store};
use crate::types::{DirId, FileId, Hash, Suite, Time, VolumeId};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Remembers reports.
#[derive(Default)]
pub(super) struct Recorder(pub(super) Mutex<Vec<CorruptReport>>);

impl Witness for Recorder {
    fn corrupt(&self, report: CorruptReport) {
        self.0.lock().push(report);
    }
}

impl Recorder {
    pub(super) fn stages(&self) -> Vec<Failure> {
        self.0.lock().iter().map(|r| r.stage).collect()
    }
}

/// A lower cache in memory.
#[derive(Default)]
pub(super) struct Lower {
    pub(super) chunks: Mutex<HashMap<ChunkKey, Vec<u8>>>,
    pub(super) answered: AtomicU64,
}

impl LowerCache for Lower {
    fn get(&self, key: &ChunkKey, out: &mut [u8]) -> bool {
        let chunks = self.chunks.lock();
        let Some(found) = chunks.get(key).filter(|c| c.len() == out.len()) else { return false };
        out.copy_from_slice(found);
        self.answered.fetch_add(1, Ordering::SeqCst);
        true
    }
    fn insert(&self, key: &ChunkKey, plain: &[u8]) {
        self.chunks.lock().insert(*key, plain.to_vec());
    }
}

/// A sealed object, as built.
#[derive(Clone)]
pub(super) struct Built {
    pub(super) ask: Ask,
    pub(super) bytes: Vec<u8>,
    pub(super) records: Vec<Record>,
    pub(super) plain: Vec<u8>,
}

/// A volume in memory with a reader on it.
pub(super) struct World {
    pub(super) memory: Arc<MemoryStore>,
    pub(super) faulty: Arc<Faulty>,
    pub(super) witness: Arc<Recorder>,
    pub(super) params: Params,
    pub(super) keys: Arc<VolumeKeys>,
    pub(super) reader: Reader,
    counter: AtomicU64,
}

/// Content that tells every offset from every other one nearby, different for each `seed`.
pub(super) fn content(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend_from_slice(&x.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Chunks of 16 KiB, segments of 256 KiB.
pub(super) fn small() -> Geometry {
    Geometry::new(14, 4).unwrap()
}

/// Default options under a small budget.
pub(super) fn options() -> ReadOptions {
    ReadOptions { budget: 64 << 20, ..ReadOptions::default() }
}

impl World {
    pub(super) fn new(geometry: Geometry, options: ReadOptions) -> World {
        World::with(geometry, options, Suite::Aes256Gcm, None)
    }

    pub(super) fn with(geometry: Geometry, options: ReadOptions, suite: Suite, lower: Option<Arc<dyn LowerCache>>) -> World {
        let params = Params { volume_id: VolumeId([1; 16]), suite, geometry };
        let keys = Arc::new(VolumeKeys::derive(&SecretKey::new(&[2; 32]), params.volume_id, vec![SecretKey::new(&[3; 32])]));
        let memory = Arc::new(MemoryStore::new());
        let faulty = Arc::new(Faulty::new(1));
        let store: Arc<dyn Store> = Arc::new(Wrap::new(memory.clone(), faulty.clone()));
        let witness = Arc::new(Recorder::default());
        let reader = Reader::new(store, params, keys.clone(), witness.clone(), lower, options).unwrap();
        World { memory, faulty, witness, params, keys, reader, counter: AtomicU64::new(1) }
    }

    /// Seals `plain` as generation 1 of a new file, or the next one of `before` (all segments new).
    pub(super) fn seal(&self, mut plain: Vec<u8>, holes: &[u64], before: Option<&Built>) -> Built {
        let id = self.counter.fetch_add(1, Ordering::SeqCst);
        let mut raw = [0; 32];
        raw[..8].copy_from_slice(&id.to_be_bytes());
        let (file_id, file_key) = match before {
            Some(b) => (b.ask.file_id, b.ask.file_key.clone()),
            None => (FileId(raw), SecretKey::new(&raw)),
        };
        let generation = before.map_or(1, |b| b.ask.generation + 1);
        let previous = before.map_or(Hash::ZERO, |b| b.ask.trailer_hash);
        let s = self.params.geometry.seg_size() as usize;
        let mut bytes = Header { params: self.params, file_id }.encode().to_vec();
        let mut records = Vec::new();
        for (k, part) in plain.chunks_mut(s).enumerate() {
            if holes.contains(&(k as u64)) {
                part.fill(0);
                records.push(Record::Hole { written: generation });
                continue;
            }
            let mut secret = [k as u8; 32];
            secret[..8].copy_from_slice(&id.to_be_bytes());
            let at = SegmentAt { params: &self.params, file_id: &file_id, k: k as u64, plain: part.len() as u64 };
            let (stored, record) = seal_segment(at, SegmentSecret(secret), generation, part).unwrap();
            bytes.extend_from_slice(&stored);
            records.push(record);
        }
        let hints =
            Hints { mtime: Time::default(), ctime: Time::default(), mode: 0o600, dir_id: DirId([0; 16]), name: b"f".to_vec() };
        let manifest = Manifest { size: plain.len() as u64, hints, content_sha256: None, records: records.clone() };
        let new = NewVersion { params: &self.params, file_id, file_key: &file_key, generation, previous, manifest: &manifest };
        let root = seal_root(&self.keys, &new, &[id as u8; 24], &[id as u8 ^ 0xff; 24]).unwrap();
        bytes.extend_from_slice(&root.tail);
        assert_eq!(bytes.len() as u64, root.object_len);
        let key = before.map_or_else(|| format!("o/{id}"), |b| b.ask.key.clone());
        let ask = Ask { key, file_id, file_key, generation, trailer_hash: root.trailer_hash, object_len: root.object_len };
        Built { ask, bytes, records, plain }
    }

    /// Puts bytes under a key, replacing what is there.
    pub(super) async fn put(&self, key: &str, bytes: &[u8]) {
        self.memory.put(key, vec![Bytes::copy_from_slice(bytes)], Cond::Any).await.unwrap();
    }

    /// Seals and stores a new file.
    pub(super) async fn file(&self, plain: Vec<u8>, holes: &[u64]) -> Built {
        let built = self.seal(plain, holes, None);
        self.put(&built.ask.key, &built.bytes).await;
        built
    }

    /// Seals, stores and opens a new file.
    pub(super) async fn open(&self, plain: Vec<u8>) -> (Built, Arc<OpenObject>) {
        let built = self.file(plain, &[]).await;
        let object = self.reader.open(&built.ask).await.unwrap();
        (built, object)
    }

    /// A file of 64 MiB at the default geometry, sealed once for all tests.
    pub(super) async fn big(&self) -> (&'static Built, Arc<OpenObject>) {
        static BIG: OnceLock<Built> = OnceLock::new();
        let built = BIG.get_or_init(|| self.seal(content(64 << 20, 2), &[], None));
        self.put(&built.ask.key, &built.bytes).await;
        (built, self.reader.open(&built.ask).await.unwrap())
    }

    /// Gets that reached the store so far.
    pub(super) fn gets(&self) -> u64 {
        self.faulty.seen(Verb::Get)
    }
}

/// Waits until no fetch is under way.
pub(super) async fn settle(reader: &Reader) {
    while reader.in_flight() > 0 {
        tokio::task::yield_now().await;
    }
}
