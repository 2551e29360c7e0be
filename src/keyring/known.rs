//! Known generations: what this machine has seen of every index object, so that the past cannot be served again as the present.
//!
//! The bucket is signed throughout, but an old signed object is as well signed as a new one. Only memory tells them apart:
//! [`Known`] holds generation and hash of each index object that was accepted or written here, and judges what a store
//! returns ([`Known::check`]). What it learns reaches the disk as records of a sealed log (`docs/FORMAT.md` 8, kind 3)
//! through the small trait [`KnownLog`].
//!
//! Nothing is remembered before it is true: an object is remembered after it was read and accepted, or after a write of it
//! was confirmed. So a crash loses knowledge and never raises a false alarm.
//!
//! ```text
//!  check ──> Accept ──> remember ──> pending ──flush──> log record      (pending is bounded: a full one is flushed at once)
//!  forget ───────────────────────────┘                    └─ the log is rewritten when it is mostly old news
//! ```

use crate::crypto::secmem::SecretKey;
use crate::disk::Disk;
use crate::env::Env;
use crate::error::{Error, Kind, Result, fail};
use crate::format::Failure;
use crate::format::names::INDEX_PREFIX;
use crate::sealedlog::{LogKind, LogOwner, LogSet, Tail};
use crate::types::{Hash, VolumeId};
use data_encoding::HEXLOWER;
use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

/// Which index object: the 16 bytes that its key spells as 32 hex digits.
pub type ObjectName = [u8; 16];

/// The object that a key in the bucket names: `.smpfs/d/` and 32 hex digits. `Bug` for any other key.
pub fn object_of_key(key: &str) -> Result<ObjectName> {
    let hex = key.strip_prefix(INDEX_PREFIX).and_then(|hex| HEXLOWER.decode(hex.as_bytes()).ok());
    match hex.and_then(|bytes| bytes.try_into().ok()) {
        Some(object) => Ok(object),
        None => fail(Kind::Bug, "generations are known of index objects only"),
    }
}

/// Objects remembered at most. Beyond it, those not met for the longest time are forgotten: about 120 bytes each, 126 MB when full.
pub const MAX_KNOWN: usize = 1 << 20;
/// How long knowledge may wait in memory: what a killed process can lose.
pub const FLUSH_EVERY: Duration = Duration::from_secs(2);
/// Changes that wait for a flush at most.
const MAX_PENDING: usize = 4096;
/// Bytes of one remembered object in a record: name, generation, hash.
const SEEN_LEN: usize = 16 + 8 + 32;
/// Objects per record of a rewritten log: far below the 1 MiB that a record may hold.
const PER_RECORD: usize = 4096;
/// A log is rewritten when it holds this many times more objects than are alive.
const REWRITE_FACTOR: usize = 4;
/// No log with fewer objects in it than this is rewritten.
const REWRITE_FLOOR: usize = 16_384;

/// A record that says: these objects were seen.
const TYPE_SEEN: u8 = 1;
/// A record that says: these objects were deleted by this machine.
const TYPE_FORGOTTEN: u8 = 2;

/// Where records of known generations are kept: a [`LogSet`], or a test's own. Calls block; one caller at a time.
pub trait KnownLog: Send {
    /// Gives every record that earlier processes left to `each`, oldest first, and returns how many bytes could not be read
    /// because a file was damaged.
    fn replay(&mut self, each: &mut dyn FnMut(u8, &[u8]) -> Result<()>) -> Result<u64>;
    /// Adds a record of up to 1 MiB. It is durable after the next [`KnownLog::sync`].
    fn append(&mut self, kind: u8, record: &[u8]) -> Result<()>;
    /// Returns when every record appended is durable.
    fn sync(&mut self) -> Result<()>;
    /// Replaces everything so far: starts a new log, appends `records` (type and bytes) to it, makes it durable, and only then
    /// drops what was before.
    fn rewrite(&mut self, records: &mut dyn Iterator<Item = (u8, Vec<u8>)>) -> Result<()>;
}

impl KnownLog for LogSet {
    fn replay(&mut self, each: &mut dyn FnMut(u8, &[u8]) -> Result<()>) -> Result<u64> {
        let tails = LogSet::replay(self, |_, record| each(record.kind, &record.payload))?;
        let damage = tails.into_iter().map(|(_, tail)| match tail {
            Tail::Damaged { lost, .. } => lost,
            Tail::Clean | Tail::Torn { .. } => 0,
        });
        Ok(damage.sum())
    }

    fn append(&mut self, kind: u8, record: &[u8]) -> Result<()> {
        LogSet::append(self, kind, record).map(drop)
    }

    fn sync(&mut self) -> Result<()> {
        LogSet::sync(self)
    }

    fn rewrite(&mut self, records: &mut dyn Iterator<Item = (u8, Vec<u8>)>) -> Result<()> {
        LogSet::rewrite(self, records)
    }
}

/// What this machine's memory says of an index object that a store returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// New, newer, or the very same.
    Accept,
    /// Older than what was seen here: somebody put the past back.
    Rollback,
    /// The generation that was seen here, with other bytes.
    Fork,
}

impl Verdict {
    /// Turns everything but acceptance into `Corrupt`, with a sentence.
    pub fn into_result(self) -> Result<()> {
        match self {
            Verdict::Accept => Ok(()),
            Verdict::Rollback => Failure::Rollback.fail("an index object is older than the one this machine has seen"),
            Verdict::Fork => {
                Failure::Fork.fail("an index object has the generation that this machine has seen, and other contents")
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    generation: u64,
    hash: Hash,
}

impl Seen {
    fn judge(&self, generation: u64, hash: &Hash) -> Verdict {
        match generation.cmp(&self.generation) {
            std::cmp::Ordering::Less => Verdict::Rollback,
            std::cmp::Ordering::Equal if *hash != self.hash => Verdict::Fork,
            _ => Verdict::Accept,
        }
    }
}

/// Generations of index objects, as this machine knows them.
///
/// One opened with [`Known::open_in`] writes what it learns every [`FLUSH_EVERY`] by itself, and when it is dropped.
pub struct Known {
    inner: Arc<Inner>,
    _keeper: Option<Keeper>,
}

/// Lock order: `disk` before `memory`. Judging takes `memory` alone, so it never waits for the disk.
struct Inner {
    memory: Mutex<Memory>,
    disk: Mutex<State>,
}

/// The thread that flushes. Ends, after a last flush, when this is dropped.
struct Keeper {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Memory {
    seen: LruCache<ObjectName, Seen>,
    limit: usize,
    /// Changes that no log record holds yet, in their order.
    pending: Vec<Change>,
    /// Whether changes are to be written at all.
    kept: bool,
    /// Bytes of earlier logs that could not be read.
    lost: u64,
}

struct State {
    /// `None`: this mount keeps no state on disk.
    log: Option<Box<dyn KnownLog>>,
    /// Objects named by records of the log, dead ones included.
    logged: usize,
    /// Changes were given up on while the disk refused: only a rewrite makes the log complete again.
    incomplete: bool,
}

enum Change {
    Seen(ObjectName, Seen),
    Forgotten(ObjectName),
}

impl Known {
    /// Nothing known, nothing kept: for a mount without local state.
    pub fn in_memory() -> Known {
        Known::of(Memory::new(MAX_KNOWN), None)
    }

    /// Takes up what earlier processes left in `log`, and rewrites it to hold that and no more.
    ///
    /// A damaged log costs what it can no longer say: [`Known::lost`] tells how many bytes. Fails with `Corrupt` on a record that
    /// no release of smpfs writes, and as the log fails.
    pub fn open(log: Box<dyn KnownLog>) -> Result<Known> {
        Known::open_with_limit(log, MAX_KNOWN)
    }

    /// The same in a directory of the local disk: the logs of `docs/FORMAT.md` 8, kind 3. The caller holds the lock of the volume's
    /// state.
    pub fn open_in(disk: Arc<dyn Disk>, dir: &str, volume: VolumeId, local_log: &SecretKey, env: &Env) -> Result<Known> {
        let open = || Known::open(Box::new(log_set(disk, dir, volume, local_log, env)?));
        let mut known = open().map_err(|e: Error| e.context("reading what this machine knows of the volume"))?;
        known._keeper = Some(Keeper::start(known.inner.clone(), FLUSH_EVERY)?);
        Ok(known)
    }

    fn open_with_limit(mut log: Box<dyn KnownLog>, limit: usize) -> Result<Known> {
        let mut memory = Memory::new(limit);
        let lost = log.replay(&mut |kind, record| memory.replay(kind, record))?;
        memory.lost = lost;
        let known = Known::of(memory, Some(log));
        known.inner.rewrite(&mut known.inner.disk.lock())?;
        Ok(known)
    }

    fn of(mut memory: Memory, log: Option<Box<dyn KnownLog>>) -> Known {
        memory.kept = log.is_some();
        let disk = State { log, logged: 0, incomplete: false };
        Known { inner: Arc::new(Inner { memory: Mutex::new(memory), disk: Mutex::new(disk) }), _keeper: None }
    }

    /// Judges an index object that a store returned. Does not remember it: see [`Known::remember`].
    pub fn check(&self, object: &ObjectName, generation: u64, hash: &Hash) -> Verdict {
        self.inner.memory.lock().seen.get(object).map_or(Verdict::Accept, |seen| seen.judge(generation, hash))
    }

    /// Whether this machine has seen the object and not deleted it: when it is gone from the store, that is an omission.
    pub fn seen(&self, object: &ObjectName) -> bool {
        self.inner.memory.lock().seen.contains(object)
    }

    /// The generation that was seen last.
    pub fn generation(&self, object: &ObjectName) -> Option<u64> {
        self.inner.memory.lock().seen.peek(object).map(|seen| seen.generation)
    }

    /// Remembers an object that was accepted, or whose write was confirmed. Never goes back to a lower generation, and never
    /// takes other contents for the same one, whatever order threads call in.
    ///
    /// Writes to the log (and blocks on it) once in a few thousand calls, and fails only as the log fails; the knowledge holds
    /// in memory all the same.
    pub fn remember(&self, object: &ObjectName, generation: u64, hash: &Hash) -> Result<()> {
        let mut memory = self.inner.memory.lock();
        if memory.seen.get(object).is_some_and(|seen| generation <= seen.generation) {
            return Ok(());
        }
        let seen = Seen { generation, hash: *hash };
        memory.put(*object, seen);
        self.inner.note(memory, Change::Seen(*object, seen))
    }

    /// Forgets an object that this machine itself deletes (a removed directory, a shard of an old epoch).
    ///
    /// Blocks and fails as [`Known::remember`] does.
    pub fn forget(&self, object: &ObjectName) -> Result<()> {
        let mut memory = self.inner.memory.lock();
        match memory.seen.pop(object) {
            Some(_) => self.inner.note(memory, Change::Forgotten(*object)),
            None => Ok(()),
        }
    }

    /// Makes everything learnt so far durable. Blocks on the disk.
    pub fn flush(&self) -> Result<()> {
        self.inner.flush()
    }

    /// Bytes of damaged logs that could not be read at the start: what they held is known no more, and worth a warning.
    pub fn lost(&self) -> u64 {
        self.inner.memory.lock().lost
    }

    /// Changes that a [`Known::flush`] would write.
    pub fn pending(&self) -> usize {
        self.inner.memory.lock().pending.len()
    }

    /// Objects remembered.
    pub fn len(&self) -> usize {
        self.inner.memory.lock().seen.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn log_set(disk: Arc<dyn Disk>, dir: &str, volume: VolumeId, local_log: &SecretKey, env: &Env) -> Result<LogSet> {
    let owner = LogOwner { kind: LogKind::Known, volume, wrap: local_log.clone() };
    LogSet::open(disk, dir, "known", owner, env.clone())
}

impl Inner {
    fn flush(&self) -> Result<()> {
        let mut disk = self.disk.lock();
        self.write_pending(&mut disk)?;
        let synced = match &mut disk.log {
            Some(log) => log.sync(),
            None => Ok(()),
        };
        // What a failed sync did not cover may be gone: only a log written anew is known to be whole.
        disk.incomplete |= synced.is_err();
        synced
    }

    fn note(&self, mut memory: MutexGuard<'_, Memory>, change: Change) -> Result<()> {
        if !memory.kept {
            return Ok(());
        }
        memory.pending.push(change);
        let full = memory.pending.len() >= MAX_PENDING;
        drop(memory);
        if full { self.write_pending(&mut self.disk.lock()) } else { Ok(()) }
    }

    /// Moves pending changes into the log, in their order.
    fn write_pending(&self, disk: &mut State) -> Result<()> {
        let Some(log) = &mut disk.log else { return Ok(()) };
        if disk.incomplete {
            return self.rewrite(disk);
        }
        let changes = std::mem::take(&mut self.memory.lock().pending);
        if let Err(e) = append_all(&mut **log, &changes) {
            // Memory must not grow while a disk refuses: these changes reach the log with the rewrite that is due now.
            disk.incomplete = true;
            return Err(e);
        }
        disk.logged += changes.len();
        if disk.logged > REWRITE_FLOOR.max(self.memory.lock().seen.len() * REWRITE_FACTOR) { self.rewrite(disk) } else { Ok(()) }
    }

    /// A new log that holds what is alive, oldest first, so that a later reader ends with the same order.
    fn rewrite(&self, disk: &mut State) -> Result<()> {
        let Some(log) = &mut disk.log else { return Ok(()) };
        let mut memory = self.memory.lock();
        memory.pending.clear();
        let alive: Vec<(ObjectName, Seen)> = memory.seen.iter().rev().map(|(object, seen)| (*object, *seen)).collect();
        drop(memory);
        disk.incomplete = true;
        log.rewrite(&mut alive.chunks(PER_RECORD).map(|some| {
            let mut record = Vec::with_capacity(some.len() * SEEN_LEN);
            some.iter().for_each(|(object, seen)| seen.encode(object, &mut record));
            (TYPE_SEEN, record)
        }))?;
        disk.incomplete = false;
        disk.logged = alive.len();
        Ok(())
    }
}

impl Keeper {
    fn start(inner: Arc<Inner>, every: Duration) -> Result<Keeper> {
        let (stop, stopped) = mpsc::channel();
        let work = move || {
            let mut failing = false;
            loop {
                let last = stopped.recv_timeout(every) != Err(mpsc::RecvTimeoutError::Timeout);
                let waiting = !inner.memory.lock().pending.is_empty() || inner.disk.lock().incomplete;
                let outcome = if waiting { inner.flush() } else { Ok(()) };
                if let Err(e) = &outcome
                    && !failing
                {
                    tracing::warn!("what this machine knows of the volume cannot be kept: {e}");
                }
                failing = outcome.is_err();
                if last {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("known".to_owned()).spawn(work)?;
        Ok(Keeper { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there is in the log already; there is nobody to pass it on to.
            let _ = thread.join();
        }
    }
}

/// Appends changes: a run of the same kind is one record.
fn append_all(log: &mut dyn KnownLog, changes: &[Change]) -> Result<()> {
    for run in changes.chunk_by(|a, b| a.kind() == b.kind()).flat_map(|run| run.chunks(PER_RECORD)) {
        let mut record = Vec::with_capacity(run.len() * SEEN_LEN);
        run.iter().for_each(|change| change.encode(&mut record));
        log.append(run[0].kind(), &record)?;
    }
    Ok(())
}

impl Memory {
    fn new(limit: usize) -> Memory {
        Memory { seen: LruCache::unbounded(), limit, pending: Vec::new(), kept: false, lost: 0 }
    }

    fn put(&mut self, object: ObjectName, seen: Seen) {
        self.seen.put(object, seen);
        while self.seen.len() > self.limit {
            self.seen.pop_lru();
        }
    }

    fn replay(&mut self, kind: u8, record: &[u8]) -> Result<()> {
        let unit = match kind {
            TYPE_SEEN => SEEN_LEN,
            TYPE_FORGOTTEN => 16,
            _ => return fail(Kind::Corrupt, "the log of known generations holds a record of an unknown type"),
        };
        if !record.len().is_multiple_of(unit) {
            return fail(Kind::Corrupt, "the log of known generations holds a record of an impossible length");
        }
        for item in record.chunks_exact(unit) {
            let Some((object, rest)) = item.split_first_chunk::<16>() else { continue };
            match Seen::decode(rest) {
                Some(seen) => self.put(*object, seen),
                None => drop(self.seen.pop(object)),
            }
        }
        Ok(())
    }
}

impl Seen {
    fn encode(&self, object: &ObjectName, out: &mut Vec<u8>) {
        out.extend_from_slice(object);
        out.extend_from_slice(&self.generation.to_be_bytes());
        out.extend_from_slice(&self.hash.0);
    }

    fn decode(bytes: &[u8]) -> Option<Seen> {
        let (generation, hash) = bytes.split_first_chunk::<8>()?;
        Some(Seen { generation: u64::from_be_bytes(*generation), hash: Hash(hash.try_into().ok()?) })
    }
}

impl Change {
    /// Which type of record holds it.
    fn kind(&self) -> u8 {
        match self {
            Change::Seen(..) => TYPE_SEEN,
            Change::Forgotten(_) => TYPE_FORGOTTEN,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Change::Seen(object, seen) => seen.encode(object, out),
            Change::Forgotten(object) => out.extend_from_slice(object),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SimDisk;
    use crate::disk::sim::{Crash, Faults};
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[derive(Default)]
    struct Kept {
        records: Vec<(u8, Vec<u8>)>,
        synced: usize,
        rewrites: usize,
        refuse: bool,
    }

    /// A log in memory that a test can look into, make fail, and cut at its last sync as a crash would.
    #[derive(Clone, Default)]
    struct TestLog(Arc<Mutex<Kept>>);

    impl TestLog {
        fn records(&self) -> Vec<(u8, Vec<u8>)> {
            self.0.lock().records.clone()
        }
        fn durable(&self) -> Vec<(u8, Vec<u8>)> {
            let kept = self.0.lock();
            kept.records[..kept.synced].to_vec()
        }
    }

    impl KnownLog for TestLog {
        fn replay(&mut self, each: &mut dyn FnMut(u8, &[u8]) -> Result<()>) -> Result<u64> {
            self.records().iter().try_for_each(|(kind, record)| each(*kind, record))?;
            Ok(0)
        }
        fn append(&mut self, kind: u8, record: &[u8]) -> Result<()> {
            let mut kept = self.0.lock();
            if kept.refuse {
                return Err(Error::new(Kind::NoSpace, "full"));
            }
            assert!(record.len() <= 1 << 20, "a record of {} bytes", record.len());
            kept.records.push((kind, record.to_vec()));
            Ok(())
        }
        fn sync(&mut self) -> Result<()> {
            let mut kept = self.0.lock();
            kept.synced = kept.records.len();
            Ok(())
        }
        fn rewrite(&mut self, records: &mut dyn Iterator<Item = (u8, Vec<u8>)>) -> Result<()> {
            if self.0.lock().refuse {
                return Err(Error::new(Kind::NoSpace, "full"));
            }
            let fresh: Vec<_> = records.collect();
            assert!(fresh.iter().all(|(_, record)| record.len() <= 1 << 20));
            let mut kept = self.0.lock();
            kept.synced = fresh.len();
            kept.records = fresh;
            kept.rewrites += 1;
            Ok(())
        }
    }

    /// Opens what a log held, in a log that the test does not look at again.
    fn reopened(records: Vec<(u8, Vec<u8>)>) -> Result<Known> {
        let log = TestLog::default();
        log.0.lock().records = records;
        Known::open(Box::new(log))
    }

    fn object(n: u32) -> ObjectName {
        let mut name = [0; 16];
        name[..4].copy_from_slice(&n.to_be_bytes());
        name
    }

    #[test]
    fn keys_of_index_objects_name_objects() {
        let key = crate::format::names::index_key(
            &SecretKey::new(&[1; 32]),
            &crate::types::DirId([2; 16]),
            crate::format::names::Place::HEAD,
        );
        assert_eq!(key, format!("{INDEX_PREFIX}{}", HEXLOWER.encode(&object_of_key(&key).unwrap())));
        for other in [".smpfs/volume", ".smpfs/d/", ".smpfs/d/00", &key[..key.len() - 1], &key.to_uppercase()] {
            assert_eq!(object_of_key(other).unwrap_err().kind(), Kind::Bug, "{other}");
        }
    }

    #[test]
    fn judges_by_generation_and_hash() {
        let known = Known::in_memory();
        let (o, h) = (object(1), Hash([1; 32]));
        assert_eq!(known.check(&o, 7, &h), Verdict::Accept, "never seen");
        assert!(!known.seen(&o));
        known.remember(&o, 7, &h).unwrap();
        assert!(known.seen(&o));
        assert_eq!(known.check(&o, 7, &h), Verdict::Accept);
        assert_eq!(known.check(&o, 8, &Hash([2; 32])), Verdict::Accept);
        assert_eq!(known.check(&o, 6, &h), Verdict::Rollback);
        assert_eq!(known.check(&o, 7, &Hash([2; 32])), Verdict::Fork);
        assert_eq!(known.check(&object(2), 1, &h), Verdict::Accept, "another object");
    }

    #[test]
    fn remembering_never_goes_back() {
        let known = Known::in_memory();
        known.remember(&object(1), 7, &Hash([7; 32])).unwrap();
        known.remember(&object(1), 6, &Hash([6; 32])).unwrap();
        known.remember(&object(1), 7, &Hash([9; 32])).unwrap();
        assert_eq!(known.generation(&object(1)), Some(7));
        assert_eq!(known.check(&object(1), 7, &Hash([7; 32])), Verdict::Accept);
        assert_eq!(known.check(&object(1), 7, &Hash([9; 32])), Verdict::Fork);
    }

    #[test]
    fn verdicts_are_errors_with_a_class() {
        assert!(Verdict::Accept.into_result().is_ok());
        for (verdict, class) in [(Verdict::Rollback, Failure::Rollback), (Verdict::Fork, Failure::Fork)] {
            let e = verdict.into_result().unwrap_err();
            assert_eq!((e.kind(), Failure::of(&e)), (Kind::Corrupt, Some(class)));
        }
    }

    #[test]
    fn survives_a_restart_and_loses_only_what_was_not_flushed() {
        let log = TestLog::default();
        let known = Known::open(Box::new(log.clone())).unwrap();
        known.remember(&object(1), 3, &Hash([3; 32])).unwrap();
        known.remember(&object(2), 1, &Hash([1; 32])).unwrap();
        known.forget(&object(2)).unwrap();
        known.flush().unwrap();
        known.remember(&object(1), 4, &Hash([4; 32])).unwrap();
        let after_crash = reopened(log.durable()).unwrap();
        assert_eq!(after_crash.generation(&object(1)), Some(3));
        assert!(!after_crash.seen(&object(2)));
        known.flush().unwrap();
        let after_exit = reopened(log.durable()).unwrap();
        assert_eq!(after_exit.generation(&object(1)), Some(4));
    }

    #[test]
    fn a_new_log_begins_with_all_that_is_known() {
        let first = TestLog::default();
        let known = Known::open(Box::new(first.clone())).unwrap();
        for n in 0..10_000 {
            known.remember(&object(n), 1, &Hash([1; 32])).unwrap();
        }
        known.flush().unwrap();
        let rewrites = first.0.lock().rewrites;
        let again = Known::open(Box::new(first.clone())).unwrap();
        assert_eq!((again.len(), first.0.lock().rewrites), (10_000, rewrites + 1));
        assert_eq!(reopened(first.durable()).unwrap().len(), 10_000, "durable without a flush");
    }

    #[test]
    fn the_log_stays_small_under_many_changes_to_few_objects() {
        let log = TestLog::default();
        let known = Known::open(Box::new(log.clone())).unwrap();
        for generation in 1..=200_000 {
            known.remember(&object(generation as u32 % 7), generation, &Hash([1; 32])).unwrap();
        }
        let bytes: usize = log.records().iter().map(|(_, record)| record.len()).sum();
        assert!(bytes <= (REWRITE_FLOOR + MAX_PENDING) * SEEN_LEN, "{bytes} bytes");
        assert!(log.0.lock().rewrites > 3);
        assert!(known.pending() < MAX_PENDING);
    }

    #[test]
    fn memory_is_bounded_and_the_longest_unmet_go_first() {
        let known = Known::open_with_limit(Box::new(TestLog::default()), 100).unwrap();
        for n in 0..150 {
            known.remember(&object(n), 1, &Hash([1; 32])).unwrap();
            assert_eq!(known.check(&object(0), 1, &Hash([1; 32])), Verdict::Accept, "object 0 is met again and again");
        }
        assert_eq!(known.len(), 100);
        assert!(known.seen(&object(0)) && known.seen(&object(149)) && !known.seen(&object(1)));
    }

    #[test]
    fn a_full_disk_costs_persistence_but_neither_knowledge_nor_memory() {
        let log = TestLog::default();
        let known = Known::open(Box::new(log.clone())).unwrap();
        log.0.lock().refuse = true;
        let mut errors = 0;
        for n in 0..3 * MAX_PENDING as u32 {
            errors += known.remember(&object(n), 1, &Hash([1; 32])).is_err() as usize;
        }
        assert_eq!(errors, 3);
        assert!(known.pending() < MAX_PENDING);
        assert_eq!(known.check(&object(0), 0, &Hash([1; 32])), Verdict::Rollback);
        log.0.lock().refuse = false;
        known.flush().unwrap();
        let later = reopened(log.durable()).unwrap();
        assert_eq!(later.len(), 3 * MAX_PENDING, "what the full disk refused is written once there is room");
    }

    /// Opened without the thread that flushes, so that only the test decides what is durable.
    fn on(disk: &Arc<SimDisk>) -> Known {
        let set = log_set(disk.clone(), "known", VolumeId([7; 16]), &SecretKey::new(&[1; 32]), &Env::real());
        Known::open(Box::new(set.unwrap())).unwrap()
    }

    /// Opened as a mount does.
    fn kept_on(disk: &Arc<SimDisk>) -> Known {
        Known::open_in(disk.clone(), "known", VolumeId([7; 16]), &SecretKey::new(&[1; 32]), &Env::real()).unwrap()
    }

    #[test]
    fn sealed_on_a_disk_that_loses_power() {
        for seed in 0..20 {
            let disk = Arc::new(SimDisk::new(seed));
            let known = on(&disk);
            for generation in 1..=5 {
                known.remember(&object(1), generation, &Hash([1; 32])).unwrap();
                known.flush().unwrap();
            }
            known.remember(&object(1), 6, &Hash([1; 32])).unwrap();
            disk.crash(Crash::Power);
            let known = on(&disk);
            assert_eq!(known.generation(&object(1)), Some(5), "seed {seed}");
            assert_eq!(known.lost(), 0);
            assert!(!disk.holds(&object(1)), "object names are sealed");
        }
    }

    #[test]
    fn knowledge_reaches_the_disk_without_being_told() {
        let disk = Arc::new(SimDisk::new(1));
        let known = kept_on(&disk);
        known.remember(&object(1), 1, &Hash([1; 32])).unwrap();
        let began = std::time::Instant::now();
        let durable = || disk.durable_files().values().map(Vec::len).sum::<usize>();
        let empty = durable();
        while durable() == empty {
            assert!(began.elapsed() < Duration::from_secs(60), "never flushed");
            std::thread::sleep(Duration::from_millis(20));
        }
        disk.crash(Crash::Power);
        drop(known);
        assert!(on(&disk).seen(&object(1)));
    }

    #[test]
    fn dropping_flushes() {
        let disk = Arc::new(SimDisk::new(1));
        kept_on(&disk).remember(&object(1), 1, &Hash([1; 32])).unwrap();
        disk.crash(Crash::Power);
        assert!(on(&disk).seen(&object(1)));
    }

    #[test]
    fn a_failed_sync_is_made_good_by_the_next_flush() {
        let disk = Arc::new(SimDisk::new(1));
        let known = on(&disk);
        known.remember(&object(1), 1, &Hash([1; 32])).unwrap();
        disk.set_faults(Faults { fail_sync: Some(0), ..Faults::default() });
        assert!(known.flush().is_err());
        known.remember(&object(2), 1, &Hash([1; 32])).unwrap();
        known.flush().unwrap();
        disk.crash(Crash::Power);
        let later = on(&disk);
        assert!(later.seen(&object(1)) && later.seen(&object(2)));
    }

    #[test]
    fn a_damaged_log_is_told_and_does_not_stop_the_mount() {
        let disk = Arc::new(SimDisk::new(1));
        let known = on(&disk);
        for n in 0..3 {
            known.remember(&object(n), 1, &Hash([1; 32])).unwrap();
            known.flush().unwrap();
        }
        drop(known);
        let log = disk.files().into_iter().max_by_key(|(_, bytes)| bytes.len()).map(|(path, _)| path).unwrap();
        disk.tamper(&log, |bytes| bytes[300] ^= 1).unwrap();
        let later = on(&disk);
        assert!(later.lost() > 0);
        assert!(!later.seen(&object(0)));
        assert_eq!(on(&disk).lost(), 0, "the damage is told once");
    }

    #[test]
    fn records_of_no_release_are_refused() {
        for (kind, record) in [(0, vec![]), (3, vec![0; 56]), (TYPE_SEEN, vec![0; 55]), (TYPE_FORGOTTEN, vec![0; 17])] {
            let refused = reopened(vec![(kind, record)]);
            assert_eq!(refused.err().map(|e| e.kind()), Some(Kind::Corrupt));
        }
    }

    proptest! {
        #[test]
        fn the_log_and_memory_agree(ops in prop::collection::vec((0u32..5, 0u64..6, any::<bool>()), 0..200)) {
            let log = TestLog::default();
            let known = Known::open(Box::new(log.clone())).unwrap();
            let mut model: HashMap<u32, u64> = HashMap::new();
            for (n, generation, forget) in ops {
                if forget {
                    known.forget(&object(n)).unwrap();
                    model.remove(&n);
                } else {
                    known.remember(&object(n), generation, &Hash([generation as u8; 32])).unwrap();
                    let held = model.entry(n).or_insert(generation);
                    *held = generation.max(*held);
                }
            }
            known.flush().unwrap();
            let later = reopened(log.durable()).unwrap();
            for n in 0..5 {
                prop_assert_eq!(known.generation(&object(n)), model.get(&n).copied());
                prop_assert_eq!(later.generation(&object(n)), model.get(&n).copied());
            }
        }
    }
}
