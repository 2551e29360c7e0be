//! Verified chunks on the local disk, sealed under a key that exists only in this process.
//!
//! One file of slots, each as long as a chunk of plaintext. Which slot holds what, and the tag of every slot, is in memory, like
//! the key; so when the process ends, however it ends, the file is noise, and nothing put into it behind our back is ever
//! believed. AES-256-GCM; the nonce is a count of slot writes that never repeats under the key, which is new for every cache.
//!
//! ```text
//!  create ──> on ──disk full, or failing──> off (every get misses, the space is given back)
//!              └──────────── destroy ─────> off, key wiped, file overwritten and removed
//! ```
//!
//! Calls block on the disk. A slot that is being written belongs to its writer and is in no list; a slot that is pushed out while
//! somebody reads it fails authentication and is a miss. The one lock is never held over disk calls.

use super::cache::{ChunkKey, LowerCache};
use crate::crypto::aead::{AeadKey, NONCE_LEN, TAG_LEN};
use crate::crypto::secmem::SecretKey;
use crate::disk::{self, Access, Disk, DiskFile};
use crate::env::Env;
use crate::error::{Error, Kind, Result, fail};
use crate::types::Suite;
use lru::LruCache;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Write buffers kept for the next insert.
const KEEP_BUFFERS: usize = 8;
/// Read errors after which the disk is not tried any more.
const MAX_ERRORS: u64 = 16;

/// Counters, for status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCacheStats {
    /// Chunks answered.
    pub hits: u64,
    /// Chunks asked for that were not there.
    pub misses: u64,
    /// Chunks kept now.
    pub entries: u64,
    /// Bytes of the file that hold chunks now.
    pub bytes: u64,
    /// Bytes that the file may grow to.
    pub capacity: u64,
    /// Slots that did not hold what was put there: the disk failed, or somebody changed the file.
    pub damaged: u64,
    /// Whether the cache has given up.
    pub off: bool,
}

/// The cache. Serves many threads.
pub struct DiskCache {
    disk: Arc<dyn Disk>,
    path: String,
    file: Arc<dyn DiskFile>,
    slot_len: usize,
    max_slots: u32,
    state: Mutex<State>,
    writes: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    damaged: AtomicU64,
    errors: AtomicU64,
}

struct State {
    /// `None` when the cache is off.
    key: Option<SecretKey>,
    index: LruCache<ChunkKey, Entry>,
    free: Vec<u32>,
    /// Slots from here on were never used.
    unused: u32,
    buffers: Vec<Vec<u8>>,
}

#[derive(Clone, Copy)]
struct Entry {
    slot: u32,
    len: u32,
    /// Number of the write that filled the slot: its nonce.
    write: u64,
    tag: [u8; TAG_LEN],
}

impl DiskCache {
    /// Makes the cache file at `path` (which must not exist) for chunks of up to `chunk_size` bytes. It grows up to `max_bytes`;
    /// about 150 bytes of memory go with each chunk in it.
    pub fn create(disk: Arc<dyn Disk>, path: &str, max_bytes: u64, chunk_size: usize, env: &Env) -> Result<DiskCache> {
        let slots = u32::try_from(max_bytes / (chunk_size as u64).max(1)).unwrap_or(u32::MAX);
        if slots == 0 || chunk_size == 0 {
            return fail(Kind::Invalid, format!("a disk cache of {max_bytes} bytes is too small for one chunk of {chunk_size}"));
        }
        let file = disk.open(path, Access::CreateNew).map_err(|e| e.context("making the disk cache"))?;
        let state = State {
            key: Some(SecretKey::from_fn(|k| env.rng.fill(k))),
            index: LruCache::unbounded(),
            free: Vec::new(),
            unused: 0,
            buffers: Vec::new(),
        };
        Ok(DiskCache {
            disk,
            path: path.to_owned(),
            file,
            slot_len: chunk_size,
            max_slots: slots,
            state: Mutex::new(state),
            writes: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        })
    }

    /// Forgets every chunk. The file keeps its length, and its slots are used again.
    pub fn clear(&self) {
        let state = &mut *self.state.lock();
        state.free.extend(state.index.iter().map(|(_, entry)| entry.slot));
        state.index.clear();
    }

    /// Counters.
    pub fn stats(&self) -> DiskCacheStats {
        let state = self.state.lock();
        let slot_len = self.slot_len as u64;
        DiskCacheStats {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            entries: state.index.len() as u64,
            bytes: state.index.len() as u64 * slot_len,
            capacity: u64::from(self.max_slots) * slot_len,
            damaged: self.damaged.load(Ordering::Relaxed),
            off: state.key.is_none(),
        }
    }

    /// Wipes the key, overwrites the file with zeros and removes it. The cache stays off.
    ///
    /// The key's end is what counts; of the overwriting, a drive may keep older copies. All steps are tried, the first error is
    /// returned.
    pub fn destroy(&self) -> Result<()> {
        self.forget_all();
        let overwritten = disk::overwrite(&*self.file, &mut |buf| buf.fill(0)).map(drop);
        let removed = self.disk.remove(&self.path).and_then(|()| self.disk.sync_dir(disk::split(&self.path).0));
        overwritten.and(removed).map_err(|e| e.context("destroying the disk cache"))
    }

    /// Drops the key (wiped with the last operation that is under way) and the index. False when that was done before.
    fn forget_all(&self) -> bool {
        let state = &mut *self.state.lock();
        state.index.clear();
        (state.free, state.buffers) = (Vec::new(), Vec::new());
        state.key.take().is_some()
    }

    /// Gives up and returns the space: the mount goes on without this cache.
    fn turn_off(&self, why: &Error) {
        if self.forget_all() {
            tracing::warn!("the disk cache is off until the next mount: {why}");
            if let Err(e) = self.file.truncate(0) {
                tracing::warn!("the disk cache could not give its space back: {e}");
            }
        }
    }

    /// A slot of its own for a writer: a free one, a new one, or the one used longest ago.
    fn take_slot(&self, state: &mut State) -> Option<u32> {
        if let Some(slot) = state.free.pop() {
            return Some(slot);
        }
        if state.unused < self.max_slots {
            state.unused += 1;
            return Some(state.unused - 1);
        }
        state.index.pop_lru().map(|(_, entry)| entry.slot)
    }

    fn offset(&self, slot: u32) -> u64 {
        u64::from(slot) * self.slot_len as u64
    }

    fn try_insert(&self, key: &ChunkKey, plain: &[u8]) -> Result<()> {
        let (secret, slot, mut buf) = {
            let state = &mut *self.state.lock();
            let Some(secret) = state.key.clone() else { return Ok(()) };
            // The name of a chunk stands for its contents, so what is there is the same.
            if plain.len() > self.slot_len || state.index.promote(key) {
                return Ok(());
            }
            let Some(slot) = self.take_slot(state) else { return Ok(()) };
            (secret, slot, state.buffers.pop().unwrap_or_default())
        };
        buf.clear();
        buf.extend_from_slice(plain);
        let write = self.writes.fetch_add(1, Ordering::Relaxed);
        // Expanded for each use and wiped behind it: between uses the key is in locked memory only.
        let tag = AeadKey::new(Suite::Aes256Gcm, secret.expose()).seal_in_place(&nonce(write), &associated(key), &mut buf);
        let written = self.file.pwrite(self.offset(slot), &buf);
        let state = &mut *self.state.lock();
        if state.key.is_none() {
            return written; // turned off meanwhile: the lists are gone
        }
        if state.buffers.len() < KEEP_BUFFERS {
            state.buffers.push(buf);
        }
        if let Err(e) = written {
            state.free.push(slot);
            return Err(e);
        }
        let entry = Entry { slot, len: plain.len() as u32, write, tag };
        if let Some(twin) = state.index.put(*key, entry) {
            state.free.push(twin.slot);
        }
        Ok(())
    }

    fn try_get(&self, key: &ChunkKey, out: &mut [u8]) -> Option<()> {
        let (secret, entry) = {
            let state = &mut *self.state.lock();
            (state.key.clone()?, *state.index.get(key)?)
        };
        if entry.len as usize != out.len() {
            return None;
        }
        let read = disk::read_exact(&*self.file, self.offset(entry.slot), out);
        let opened = read.and_then(|()| {
            let aead = AeadKey::new(Suite::Aes256Gcm, secret.expose());
            aead.open_in_place(&nonce(entry.write), &associated(key), out, &entry.tag)
        });
        opened.map_err(|e| self.failed(key, &entry, &e)).ok()
    }

    /// A slot did not give back its chunk: damage, unless somebody else got the slot meanwhile.
    fn failed(&self, key: &ChunkKey, entry: &Entry, why: &Error) {
        let still = {
            let state = &mut *self.state.lock();
            let still = state.index.peek(key).is_some_and(|now| now.write == entry.write);
            if still && state.index.pop(key).is_some() {
                state.free.push(entry.slot);
            }
            still
        };
        if !still {
            return;
        }
        self.damaged.fetch_add(1, Ordering::Relaxed);
        if why.kind() != Kind::Corrupt && self.errors.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_ERRORS {
            self.turn_off(why);
        }
    }
}

impl LowerCache for DiskCache {
    fn get(&self, key: &ChunkKey, out: &mut [u8]) -> bool {
        let found = self.try_get(key, out).is_some();
        let counter = if found { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    fn insert(&self, key: &ChunkKey, plain: &[u8]) {
        if let Err(e) = self.try_insert(key, plain) {
            self.turn_off(&e);
        }
    }
}

fn nonce(write: u64) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce[4..].copy_from_slice(&write.to_be_bytes());
    nonce
}

fn associated(key: &ChunkKey) -> [u8; 20] {
    let mut out = [0; 20];
    out[..16].copy_from_slice(&key.segment);
    out[16..].copy_from_slice(&key.chunk.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SimDisk;
    use crate::disk::sim::Faults;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const CHUNK: usize = 256;

    fn cache(disk: &SimDisk, slots: u64) -> DiskCache {
        DiskCache::create(Arc::new(disk.clone()), "chunks", slots * CHUNK as u64, CHUNK, &Env::real()).unwrap()
    }

    fn key(n: u32) -> ChunkKey {
        ChunkKey { segment: [n as u8; 16], chunk: n }
    }

    fn plain(n: u32) -> Vec<u8> {
        vec![n as u8; 1 + n as usize % CHUNK]
    }

    fn get(cache: &DiskCache, n: u32) -> bool {
        let mut out = vec![0; plain(n).len()];
        let found = cache.get(&key(n), &mut out);
        assert!(!found || out == plain(n), "a hit gives what was put in");
        found
    }

    #[test]
    fn round_trip_and_eviction_within_bounds() {
        let disk = SimDisk::new(1);
        let cache = cache(&disk, 4);
        for n in 0..4 {
            cache.insert(&key(n), &plain(n));
        }
        assert!(get(&cache, 0), "and 0 is young now");
        for n in 4..7 {
            cache.insert(&key(n), &plain(n));
        }
        assert_eq!((0..7).filter(|n| get(&cache, *n)).collect::<Vec<_>>(), [0, 4, 5, 6]);
        assert!(disk.len("chunks").unwrap() <= 4 * CHUNK as u64);
        assert!(!cache.get(&key(0), &mut [0; 2]), "another length is a miss");
        cache.insert(&key(9), &plain(9));
        assert_eq!((get(&cache, 4), get(&cache, 9), get(&cache, 0)), (false, true, true));
        cache.clear();
        assert_eq!((get(&cache, 9), cache.stats().entries), (false, 0));
        for n in 0..100 {
            cache.insert(&key(n), &plain(n));
        }
        let stats = cache.stats();
        assert_eq!((stats.entries, stats.capacity, stats.damaged, stats.off), (4, 1024, 0, false));
        cache.insert(&key(200), &[1; CHUNK + 1]);
        assert_eq!(cache.stats().entries, 4, "what fits no slot is dropped");
        assert!(DiskCache::create(Arc::new(disk), "small", CHUNK as u64 - 1, CHUNK, &Env::real()).is_err());
    }

    #[test]
    fn the_file_is_noise_and_destroy_overwrites_it() {
        let disk = SimDisk::new(2);
        let cache = cache(&disk, 8);
        let canary = b"CANARY-PATIENT-NAME-CANARY";
        cache.insert(&key(1), &canary.repeat(8));
        assert!(!disk.holds(&canary[..6]));
        let noise = disk.files()["chunks"][..64].to_vec();
        let handle = disk.open("chunks", Access::Read).unwrap();
        cache.destroy().unwrap();
        let mut left = vec![1; 4096];
        let n = handle.pread(0, &mut left).unwrap();
        assert!(n > 0 && left[..n].iter().all(|b| *b == 0), "overwritten before it was removed");
        assert!(!disk.holds(&noise) && disk.files().is_empty());
        cache.insert(&key(2), &plain(2));
        assert!(!get(&cache, 1) && !get(&cache, 2) && cache.stats().off);
    }

    #[test]
    fn tampering_and_swapped_slots_are_misses() {
        let disk = SimDisk::new(3);
        let cache = cache(&disk, 8);
        for n in [100, 101, 102] {
            cache.insert(&key(n), &vec![n as u8; CHUNK]);
        }
        disk.tamper("chunks", |f| f[..2 * CHUNK].rotate_left(CHUNK)).unwrap();
        let mut out = [0; CHUNK];
        assert!(!cache.get(&key(100), &mut out) && !cache.get(&key(101), &mut out) && cache.get(&key(102), &mut out));
        disk.tamper("chunks", |f| f[2 * CHUNK + 9] ^= 1).unwrap();
        assert!(!cache.get(&key(102), &mut out));
        assert_eq!(out, [0; CHUNK], "nothing unverified is handed out");
        disk.tamper("chunks", Vec::clear).unwrap();
        cache.insert(&key(7), &plain(7));
        assert!(get(&cache, 7));
        assert_eq!((cache.stats().damaged, cache.stats().entries), (3, 1));
    }

    #[test]
    fn a_full_disk_turns_it_off_and_gets_its_space_back() {
        let disk = SimDisk::new(4);
        let cache = cache(&disk, 100);
        disk.set_faults(Faults { capacity: Some(10 * CHUNK as u64), ..Faults::default() });
        for n in 0..20 {
            cache.insert(&key(n), &[n as u8; CHUNK]);
        }
        assert!(cache.stats().off && (0..20).all(|n| !get(&cache, n)));
        assert_eq!(disk.len("chunks").unwrap(), 0);
        cache.destroy().unwrap();
    }

    #[test]
    fn a_failing_disk_is_left_alone_after_a_while() {
        let disk = SimDisk::new(5);
        let cache = cache(&disk, 100);
        for n in 0..40 {
            cache.insert(&key(n), &plain(n));
        }
        for n in 0..MAX_ERRORS as u32 {
            assert!(!cache.stats().off);
            disk.set_faults(Faults { fail_read: Some(0), ..Faults::default() });
            assert!(!get(&cache, n));
        }
        assert!(cache.stats().off);
    }

    #[test]
    fn many_threads_share_few_slots() {
        let disk = SimDisk::new(6);
        let cache = cache(&disk, 5);
        std::thread::scope(|s| {
            for t in 0..4u32 {
                let cache = &cache;
                s.spawn(move || {
                    for i in 0..2000u32 {
                        let n = (i * 7 + t * 13) % 16;
                        if !get(cache, n) {
                            cache.insert(&key(n), &plain(n));
                        }
                        if i % 501 == 0 {
                            cache.clear();
                        }
                    }
                });
            }
        });
        // Whether the threads met each other's chunks is luck; that a chunk put in is found again is not.
        cache.insert(&key(1), &plain(1));
        assert!(get(&cache, 1));
        let stats = cache.stats();
        assert_eq!((stats.damaged, stats.off), (0, false), "a slot lost to another chunk is not damage");
        assert!(stats.entries <= 5 && stats.hits > 0 && disk.len("chunks").unwrap() <= 5 * CHUNK as u64);
        let state = cache.state.lock();
        let mut slots: Vec<u32> = state.free.iter().copied().chain(state.index.iter().map(|(_, e)| e.slot)).collect();
        slots.sort_unstable();
        assert_eq!(slots, (0..state.unused).collect::<Vec<_>>(), "every slot is in one place");
    }

    proptest! {
        /// Whatever is done, a hit gives the last contents of its key, the bound holds, and no write number repeats.
        #[test]
        fn agrees_with_a_map(steps in prop::collection::vec((0u8..3, 0u32..12), 1..200), slots in 1u64..6) {
            let disk = SimDisk::new(0);
            let cache = cache(&disk, slots);
            let mut model = HashMap::new();
            for (what, n) in steps {
                match what {
                    0 => {
                        cache.insert(&key(n), &plain(n));
                        model.insert(n, ());
                        prop_assert!(get(&cache, n), "what was just put in is there");
                    }
                    1 => {
                        cache.clear();
                        model.clear();
                        prop_assert!(!get(&cache, n));
                    }
                    _ => prop_assert!(!get(&cache, n) || model.contains_key(&n)),
                }
                let state = cache.state.lock();
                let mut writes: Vec<u64> = state.index.iter().map(|(_, e)| e.write).collect();
                writes.sort_unstable();
                writes.dedup();
                prop_assert_eq!(writes.len(), state.index.len());
                prop_assert!(state.index.len() as u64 <= slots);
            }
        }
    }
}
