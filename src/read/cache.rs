//! Verified plaintext chunks: their names, their buffers, and the bounded cache in memory that holds them.
//!
//! A chunk enters only after its AEAD tag (and, with `verify=full`, its leaf and segment root) held. It is wiped when the last
//! view of it goes. Every buffer carries its share of the [`Budget`], so a chunk that was pushed out of the cache but is still
//! being answered counts until it is truly gone.

use super::budget::{Budget, Pool, Share};
use crate::crypto::aead::TAG_LEN;
use crate::error::Result;
use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use zeroize::Zeroize;

/// How often a reader that waits for memory makes the cache give back what it has pushed out.
const NUDGE: Duration = Duration::from_millis(5);
/// What an entry costs beside its plaintext, bytes: table, order lists, reference counts (a rounded-up estimate).
const ENTRY_OVERHEAD: usize = 512;

/// Names the plaintext of one chunk, whatever object it lies in.
///
/// `segment` is a digest over file id, segment number, segment secret and segment root. It changes whenever the segment's bytes,
/// key or place change, so two versions of a file (also two that claim the same generation) share exactly the chunks that are
/// the same, and a chunk of one can never be taken for a chunk of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkKey {
    /// Digest that names the sealed segment.
    pub segment: [u8; 16],
    /// Number of the chunk in its segment, from 0.
    pub chunk: u32,
}

/// A second, larger cache below the one in memory, sealed under a key that lives only in memory. Calls block for local disk IO
/// and are made on blocking threads.
pub trait LowerCache: Send + Sync + 'static {
    /// Fills `out` (exactly the chunk's plaintext length) and returns true when the chunk is there and authenticates; otherwise
    /// returns false, and the contents of `out` mean nothing. A damaged entry is a miss, never an error.
    fn get(&self, key: &ChunkKey, out: &mut [u8]) -> bool;
    /// Keeps a verified chunk, or drops it silently (full, busy, disk error).
    fn insert(&self, key: &ChunkKey, plain: &[u8]);
}

/// A plaintext buffer that is counted while it lives and wiped when it dies.
pub(super) struct Plain {
    data: Vec<u8>,
    share: Share,
}

impl Plain {
    /// An empty buffer with room for `len` bytes, paid for by `share`.
    pub(super) fn with_capacity(len: usize, share: Share) -> Plain {
        share.live(len);
        Plain { data: Vec::with_capacity(len), share }
    }

    /// An empty buffer for a chunk of `len` bytes, with room for its tag so that it can be opened in place.
    pub(super) fn for_chunk(len: usize, share: Share) -> Plain {
        Plain::with_capacity(len + TAG_LEN, share)
    }

    /// The bytes, to be filled; must not grow beyond the capacity (it would leave an unwiped copy behind).
    pub(super) fn buf(&mut self) -> &mut Vec<u8> {
        &mut self.data
    }

    /// Shared, read-only from here on.
    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Plain {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.share.dead(self.data.capacity());
        self.data.zeroize();
    }
}

/// Counters of the cache, for status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Chunks answered from memory.
    pub hits: u64,
    /// Chunks that were not in memory.
    pub misses: u64,
    /// Bytes of budget that chunks in memory and requests in flight hold now.
    pub used: u64,
    /// The most they ever held.
    pub peak: u64,
    /// Bytes that the cache may hold.
    pub capacity: u64,
}

/// Chunks in memory, least recently used out first.
pub(super) struct Cache {
    chunks: moka::sync::Cache<ChunkKey, Bytes>,
    budget: Arc<Budget>,
    lower: Option<Arc<dyn LowerCache>>,
    fetched: Mutex<LruCache<ChunkKey, ()>>,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// Chunks that the doorkeeper of the disk cache remembers: 16 GiB at the default geometry, about 20 MiB of memory when full.
const DOORKEEPER: usize = 1 << 18;

impl Cache {
    pub(super) fn new(budget: Arc<Budget>, lower: Option<Arc<dyn LowerCache>>) -> Cache {
        let chunks = moka::sync::Cache::builder()
            .max_capacity(budget.cache_bytes())
            .weigher(|_: &ChunkKey, v: &Bytes| u32::try_from(Cache::cost(v.len())).unwrap_or(u32::MAX))
            // Not TinyLFU: it would refuse chunks that were fetched ahead and not asked for yet, and fetch them twice.
            .eviction_policy(moka::policy::EvictionPolicy::lru())
            .build();
        let fetched = Mutex::new(LruCache::new(NonZeroUsize::new(DOORKEEPER).unwrap_or(NonZeroUsize::MIN)));
        Cache { chunks, budget, lower, fetched, hits: AtomicU64::new(0), misses: AtomicU64::new(0) }
    }

    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    pub(super) fn lower(&self) -> Option<&Arc<dyn LowerCache>> {
        self.lower.as_ref()
    }

    /// Whether a chunk that was just fetched is worth a place on the disk: it was fetched before, and memory did not keep it.
    /// What is read once, however large, costs the disk nothing.
    pub(super) fn worth_disk(&self, key: &ChunkKey) -> bool {
        self.fetched.lock().put(*key, ()).is_some()
    }

    /// The chunk, if it is in memory.
    pub(super) fn get(&self, key: &ChunkKey) -> Option<Bytes> {
        let found = self.chunks.get(key);
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// Whether the chunk is in memory, without counting as a use.
    pub(super) fn contains(&self, key: &ChunkKey) -> bool {
        self.chunks.contains_key(key)
    }

    /// Keeps a verified chunk.
    pub(super) fn insert(&self, key: ChunkKey, plain: Bytes) {
        self.chunks.insert(key, plain);
        if self.budget.waiting() {
            self.chunks.run_pending_tasks();
        }
    }

    /// Forgets everything in memory; the buffers are wiped as their last views go.
    pub(super) fn clear(&self) {
        self.chunks.invalidate_all();
        self.chunks.run_pending_tasks();
    }

    /// What a chunk of `len` plaintext bytes takes of the budget, whole KiB in bytes.
    pub(super) fn cost(len: usize) -> usize {
        (len + ENTRY_OVERHEAD).next_multiple_of(1024)
    }

    /// Memory for chunks and ciphertext in flight, without waiting.
    pub(super) fn try_reserve(&self, bytes: usize) -> Option<Share> {
        if let Some(share) = self.budget.try_take(Pool::Chunks, bytes) {
            return Some(share);
        }
        // The cache frees what it has pushed out only now and then: ask for it.
        self.chunks.run_pending_tasks();
        self.budget.try_take(Pool::Chunks, bytes)
    }

    /// Memory for chunks and ciphertext in flight; waits until others give some back, `Unavailable` when that takes too long.
    pub(super) async fn reserve(&self, bytes: usize, until: Instant) -> Result<Share> {
        if let Some(share) = self.try_reserve(bytes) {
            return Ok(share);
        }
        let mut taking = std::pin::pin!(self.budget.take(Pool::Chunks, bytes, until));
        loop {
            tokio::select! {
                done = &mut taking => return done,
                () = tokio::time::sleep(NUDGE) => self.chunks.run_pending_tasks(),
            }
        }
    }

    /// Whether `bytes` are free and would leave `rest` to others.
    pub(super) fn spare(&self, bytes: u64, rest: u64) -> bool {
        if self.budget.chunks_free() >= bytes + rest {
            return true;
        }
        self.chunks.run_pending_tasks();
        self.budget.chunks_free() >= bytes + rest
    }

    pub(super) fn stats(&self) -> CacheStats {
        CacheStats {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            used: self.budget.used(),
            peak: self.budget.peak(),
            capacity: self.budget.cache_bytes(),
        }
    }
}
