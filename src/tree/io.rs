//! Index objects to and from the bucket: verified against what this machine has seen, written by compare-and-swap.

use crate::crypto::secmem::SecretKey;
use crate::env::Env;
use crate::env::failpoint::reach;
use crate::error::{Error, Kind, Result};
use crate::format::entry::Entry;
use crate::format::failure::Failure;
use crate::format::index::{DirRef, IndexNode, MAX_OBJECT, Role};
use crate::format::keys::VolumeKeys;
use crate::format::names::Place;
use crate::store::{Capability, Cond, ETag, Span, Store};
use crate::types::{DirId, Hash};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A head with more entries than this is split into shards.
pub const SPLIT_ABOVE: usize = 1024;
/// Mean entries of a shard above which a directory is split further.
const RESPLIT_ABOVE: usize = 4096;
/// Every split makes this many times the shards.
const SPLIT_BITS: u8 = 4;
/// Most shard bits: 4 096 shards.
const MAX_BITS: u8 = 12;
/// Epochs of splits are drawn from so many above the last.
const EPOCH_STEP: u32 = 1 << 24;
/// A head that is written anew has a generation so far above all that is known: no machine has seen a higher one.
const REBUILD_STEP: u64 = 1 << 32;
/// Index objects whose last writes had no answer that are remembered, and writes of each.
const UNHEARD: std::num::NonZeroUsize = std::num::NonZeroUsize::MIN.saturating_add(4095);
const TRIED: usize = 16;
/// Index objects in flight at once for one directory.
const AT_ONCE: usize = 16;

/// What this machine remembers of index objects: refuses rollbacks, forks and omissions.
pub trait Memory: Send + Sync + 'static {
    /// `Corrupt` when the version is older than one seen, or another of the same generation.
    fn check(&self, key: &str, generation: u64, hash: &Hash) -> Result<()>;
    /// Whether any version was ever seen.
    fn seen(&self, key: &str) -> bool;
    /// The highest generation that was seen.
    fn generation(&self, _key: &str) -> Option<u64> {
        None
    }
    /// Notes a version that was accepted or written.
    fn remember(&self, key: &str, generation: u64, hash: &Hash) -> Result<()>;
    /// Notes that this machine deleted the object.
    fn forget(&self, key: &str) -> Result<()>;
}

/// A version of an index object in the bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Generation.
    pub generation: u64,
    /// Index hash.
    pub hash: Hash,
    /// The store's tag.
    pub etag: ETag,
    /// This machine's last write of the object, whose outcome it did not hear, is this version or the one before.
    pub own: bool,
}

/// A directory's index objects in the bucket.
#[derive(Clone, Debug)]
pub struct Remote {
    /// The head.
    pub head: Version,
    /// Shards are `2^bits`; 0 when the head holds the entries.
    pub bits: u8,
    /// Epoch of the shards.
    pub epoch: u32,
    /// The shards.
    pub shards: Vec<Version>,
    /// Numbers of the shards that are frozen: somebody is splitting the directory, or stopped while doing so.
    pub frozen: BTreeSet<u32>,
    /// The head is frozen: somebody has removed the directory, and nothing comes into it any more.
    pub removed: bool,
}

impl Remote {
    /// A head without shards.
    fn of(head: Version) -> Remote {
        Remote { head, bits: 0, epoch: 0, shards: Vec::new(), frozen: BTreeSet::new(), removed: false }
    }

    /// The shard of a name.
    pub fn shard_of(&self, name: &[u8]) -> u32 {
        crate::format::index::shard_of(name, self.bits)
    }

    /// See [`Version::own`], for the object that holds a name.
    pub fn own(&self, name: &[u8]) -> bool {
        self.part_of(name).is_some_and(|v| v.own)
    }

    /// The object that holds a name.
    fn part_of(&self, name: &[u8]) -> Option<&Version> {
        match self.bits {
            0 => Some(&self.head),
            _ => self.shards.get(self.shard_of(name) as usize),
        }
    }

    /// Whether the object that holds a name may have had a version that this machine has not looked at, between the last that it
    /// has looked at in this mount and this one.
    pub fn gap(&self, before: Option<&Remote>, name: &[u8]) -> bool {
        let Some(before) = before else { return false };
        let next = before.part_of(name).map(|v| v.generation.saturating_add(1));
        let whole = (before.bits, before.epoch) == (self.bits, self.epoch);
        !whole || self.part_of(name).map(|v| v.generation) > next
    }

    /// Number of objects that hold entries.
    pub fn parts(&self) -> u32 {
        1 << self.bits
    }

    /// Whether so many entries ask for a split. One that somebody began is taken over: frozen shards take no entries.
    pub fn wants_split(&self, entries: usize) -> bool {
        match self.bits {
            _ if !self.frozen.is_empty() => true,
            0 => entries > SPLIT_ABOVE,
            b => b < MAX_BITS && entries > RESPLIT_ABOVE << b,
        }
    }
}

/// What lies in the place of a head that is to be written anew.
#[derive(Clone, Debug)]
pub struct Ruin {
    /// The store's tag; `None` when nothing is there.
    pub etag: Option<ETag>,
    /// SHA-256 of the bytes that are there; of nothing when none are.
    pub hash: Hash,
    /// The highest generation that anybody here knows of.
    pub generation: u64,
    /// The highest epoch of shards that is known.
    pub epoch: u32,
}

/// Index objects of one volume.
pub struct IndexIo {
    store: Arc<dyn Store>,
    caps: Capability,
    keys: Arc<VolumeKeys>,
    memory: Arc<dyn Memory>,
    env: Env,
    /// By key: hashes of what was written and not answered, or refused after it was tried more than once.
    unheard: parking_lot::Mutex<lru::LruCache<String, Vec<Hash>>>,
}

fn dir_ref(id: DirId, key: &SecretKey) -> DirRef {
    DirRef { dir_id: id, dir_key: key.clone() }
}

impl IndexIo {
    /// Index objects in `store`.
    pub fn new(store: Arc<dyn Store>, caps: Capability, keys: Arc<VolumeKeys>, memory: Arc<dyn Memory>, env: Env) -> IndexIo {
        IndexIo { store, caps, keys, memory, env, unheard: parking_lot::Mutex::new(lru::LruCache::new(UNHEARD)) }
    }

    /// Keys of a directory's index objects.
    pub fn keys_of(&self, id: DirId, remote: &Remote) -> Vec<String> {
        let mut keys = vec![self.keys.index_key(&id, Place::HEAD)];
        if remote.bits > 0 {
            keys.extend((0..remote.parts()).map(|slot| self.keys.index_key(&id, Place { epoch: remote.epoch, slot })));
        }
        keys
    }

    /// Whether a directory has an index, as far as the bucket says or this machine has seen.
    pub async fn exists(&self, id: DirId) -> Result<bool> {
        let key = self.keys.index_key(&id, Place::HEAD);
        if self.memory.seen(&key) {
            return Ok(true);
        }
        match self.store.head(&key).await {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == Kind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Forgets an object that this machine deletes.
    pub fn forget(&self, key: &str) -> Result<()> {
        self.memory.forget(key)
    }

    async fn fetch(&self, dir: &DirRef, place: Place) -> Result<(IndexNode, Version)> {
        let key = self.keys.index_key(&dir.dir_id, place);
        let mut again = false;
        loop {
            match self.fetch_once(dir, place, &key).await {
                // A second look past every cache before anybody is told that the bucket lies.
                Err(e) if e.kind() == Kind::Corrupt && !again => again = true,
                done => return done,
            }
        }
    }

    async fn fetch_once(&self, dir: &DirRef, place: Place, key: &str) -> Result<(IndexNode, Version)> {
        let got = match self.store.get(key, Span::Whole { max: MAX_OBJECT }, None).await {
            Ok(got) => got,
            Err(e) if e.kind() == Kind::NotFound => {
                return Err(Failure::Omission.error("an index object that must exist is gone from the bucket"));
            }
            Err(e) => return Err(e),
        };
        let (node, hash) = IndexNode::open(&self.keys, dir, place, &got.bytes)?;
        self.memory.check(key, node.generation, &hash)?;
        self.memory.remember(key, node.generation, &hash)?;
        let own = self.unheard.lock().peek(key).is_some_and(|tried| tried.contains(&hash) || tried.contains(&node.previous));
        let version = Version { generation: node.generation, hash, etag: got.meta.etag, own };
        Ok((node, version))
    }

    /// Reads a whole directory.
    pub async fn load(&self, id: DirId, key: &SecretKey) -> Result<(Remote, Vec<Arc<Entry>>)> {
        let dir = dir_ref(id, key);
        // A split between head and shards makes a shard vanish: look at the head again then.
        for last in [false, false, true] {
            let (node, head) = self.fetch(&dir, Place::HEAD).await?;
            let Role::Head { shard_bits, epoch } = node.role else {
                return Err(Failure::Index.error("a shard lies in the place of a head"));
            };
            let mut remote = Remote { bits: shard_bits, epoch, removed: node.frozen, ..Remote::of(head) };
            if shard_bits == 0 {
                return Ok((remote, node.entries.into_iter().map(Arc::new).collect()));
            }
            match self.load_shards(&dir, &mut remote).await {
                Ok(entries) => return Ok((remote, entries)),
                Err(e) if !last && Failure::of(&e) == Some(Failure::Omission) => continue,
                Err(e) => return Err(e),
            }
        }
        Err(Error::new(Kind::Stale, "the directory keeps being split"))
    }

    async fn load_shards(&self, dir: &DirRef, remote: &mut Remote) -> Result<Vec<Arc<Entry>>> {
        let epoch = remote.epoch;
        let parts: Vec<(IndexNode, Version)> = stream::iter(0..remote.parts())
            .map(|slot| self.fetch(dir, Place { epoch, slot }))
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        let mut entries = Vec::new();
        for (slot, (node, version)) in (0..).zip(parts) {
            entries.extend(node.entries.into_iter().map(Arc::new));
            remote.shards.push(version);
            if node.frozen {
                remote.frozen.insert(slot);
            }
        }
        Ok(entries)
    }

    /// Reads one part of a directory again: the head without shards, or a shard. `Stale` when the directory was split meanwhile.
    pub async fn reload_part(
        &self,
        id: DirId,
        key: &SecretKey,
        remote: &Remote,
        part: u32,
    ) -> Result<(Version, Vec<Arc<Entry>>)> {
        let dir = dir_ref(id, key);
        let place = match remote.bits {
            0 => Place::HEAD,
            _ => Place { epoch: remote.epoch, slot: part },
        };
        let (node, version) = self.fetch(&dir, place).await.map_err(|e| match Failure::of(&e) {
            Some(Failure::Omission) if remote.bits > 0 => Error::new(Kind::Stale, "the directory was split"),
            _ => e,
        })?;
        if node.frozen || matches!(node.role, Role::Head { shard_bits, .. } if shard_bits != remote.bits) {
            return Err(Error::new(Kind::Stale, "the directory is being split"));
        }
        Ok((version, node.entries.into_iter().map(Arc::new).collect()))
    }

    /// Whether the bucket holds other versions than `remote` says.
    pub async fn changed(&self, id: DirId, remote: &Remote) -> Result<bool> {
        let mut places = vec![(Place::HEAD, remote.head.etag.clone())];
        places.extend(remote.shards.iter().zip(0..).map(|(v, slot)| (Place { epoch: remote.epoch, slot }, v.etag.clone())));
        let asked = places.into_iter().map(|(place, etag)| self.differs(self.keys.index_key(&id, place), etag));
        let differs: Vec<bool> = stream::iter(asked.collect::<Vec<_>>()).buffered(AT_ONCE).try_collect().await?;
        Ok(differs.contains(&true))
    }

    async fn differs(&self, key: String, etag: ETag) -> Result<bool> {
        match self.store.head(&key).await {
            Ok(meta) => Ok(meta.etag != etag),
            Err(e) if e.kind() == Kind::NotFound => Ok(true),
            Err(e) => Err(e),
        }
    }

    async fn put(&self, dir: &DirRef, node: &IndexNode, old: Option<&Version>) -> Result<Version> {
        // Stores without conditions take one writer at a time; the mount has made sure of that.
        let cond = match old {
            Some(v) if self.caps.put_if_match => Cond::Match(v.etag.clone()),
            None if self.caps.put_if_absent => Cond::Absent,
            _ => Cond::Any,
        };
        self.put_under(dir, node, cond).await
    }

    async fn put_under(&self, dir: &DirRef, node: &IndexNode, cond: Cond) -> Result<Version> {
        let key = self.keys.index_key(&dir.dir_id, node.role.place());
        let (bytes, hash) = node.seal(&self.keys, dir, &self.env.random())?;
        let meta = match self.store.put(&key, vec![Bytes::from(bytes)], cond).await {
            Ok(meta) => meta,
            Err(e) => {
                let mut unheard = self.unheard.lock();
                let tried = unheard.get_or_insert_mut(key, Vec::new);
                if tried.len() >= TRIED {
                    tried.remove(0);
                }
                tried.push(hash);
                return Err(e);
            }
        };
        reach("index-written");
        self.unheard.lock().pop(&key);
        self.memory.remember(&key, node.generation, &hash)?;
        Ok(Version { generation: node.generation, hash, etag: meta.etag, own: false })
    }

    /// Writes the first head of a new directory.
    pub async fn create(&self, id: DirId, key: &SecretKey, entries: &[Arc<Entry>]) -> Result<Remote> {
        let dir = dir_ref(id, key);
        let node = node(Role::Head { shard_bits: 0, epoch: 0 }, None, entries);
        let head = self.put(&dir, &node, None).await?;
        Ok(Remote::of(head))
    }

    /// Writes the next version of one part: the head without shards, or a shard.
    pub async fn write_part(
        &self,
        id: DirId,
        key: &SecretKey,
        remote: &Remote,
        part: u32,
        entries: &[Arc<Entry>],
    ) -> Result<Version> {
        let dir = dir_ref(id, key);
        let (role, old) = match remote.bits {
            0 => (Role::Head { shard_bits: 0, epoch: remote.epoch }, &remote.head),
            b => (Role::Shard { shard_bits: b, epoch: remote.epoch, slot: part }, &remote.shards[part as usize]),
        };
        self.put(&dir, &node(role, Some(old), entries), Some(old)).await
    }

    /// Writes a directory anew over an index that is lost, with shards where it needs them: see FORMAT.md, section 7, "Rebuilding".
    pub async fn rebuild(&self, id: DirId, key: &SecretKey, over: &Ruin, entries: &[Arc<Entry>]) -> Result<Remote> {
        let dir = dir_ref(id, key);
        let bits = (0..=MAX_BITS).step_by(SPLIT_BITS.into()).find(|b| entries.len() <= SPLIT_ABOVE << b).unwrap_or(MAX_BITS);
        let epoch = if bits == 0 { over.epoch } else { self.next_epoch(over.epoch)? };
        let shards = if bits == 0 { Vec::new() } else { self.put_shards(&dir, bits, epoch, entries).await? };
        let mine = if bits == 0 { entries } else { &[] };
        let jump = u64::from(u32::from_be_bytes(self.env.random()) >> 16);
        let generation = over.generation.saturating_add(REBUILD_STEP + jump);
        let head = IndexNode { generation, previous: over.hash, ..node(Role::Head { shard_bits: bits, epoch }, None, mine) };
        let cond = match &over.etag {
            Some(etag) if self.caps.put_if_match => Cond::Match(etag.clone()),
            None if self.caps.put_if_absent => Cond::Absent,
            _ => Cond::Any,
        };
        let head = self.put_under(&dir, &head, cond).await?;
        Ok(Remote { bits, epoch, shards, ..Remote::of(head) })
    }

    /// Splits a directory that holds `entries` (all of them) into more shards: new shards, then the head, then the old shards
    /// go. `Stale` when somebody else changed it meanwhile; nothing is lost then.
    ///
    /// Two machines may split at once. Each writes shards of an epoch of its own, so neither touches the other's, and the swap
    /// of the head decides.
    pub async fn split(&self, id: DirId, key: &SecretKey, remote: &Remote, entries: &[Arc<Entry>]) -> Result<Remote> {
        let dir = dir_ref(id, key);
        let bits = (remote.bits + SPLIT_BITS).min(MAX_BITS);
        let epoch = self.next_epoch(remote.epoch)?;
        if remote.bits > 0 {
            self.freeze(&dir, remote, entries).await?;
        }
        let done = self.write_split(&dir, remote, bits, epoch, entries).await;
        if matches!(&done, Err(e) if e.kind() == Kind::Stale) {
            // The head is another's: nobody will ever ask for these shards.
            self.drop_shards(id, epoch, 1 << bits).await?;
        }
        let (head, shards) = done?;
        if remote.bits > 0 {
            self.drop_shards(id, remote.epoch, remote.parts()).await?;
        }
        Ok(Remote { bits, epoch, shards, ..Remote::of(head) })
    }

    /// An epoch above `old` that no other machine draws at the same time.
    fn next_epoch(&self, old: u32) -> Result<u32> {
        let step = u32::from_be_bytes(self.env.random()) % EPOCH_STEP + 1;
        old.checked_add(step).ok_or_else(|| Error::new(Kind::TooLarge, "the directory was split too often"))
    }

    async fn write_split(
        &self,
        dir: &DirRef,
        remote: &Remote,
        bits: u8,
        epoch: u32,
        entries: &[Arc<Entry>],
    ) -> Result<(Version, Vec<Version>)> {
        let shards = self.put_shards(dir, bits, epoch, entries).await?;
        let head = node(Role::Head { shard_bits: bits, epoch }, Some(&remote.head), &[]);
        reach("shards-written");
        let head = self.put(dir, &head, Some(&remote.head)).await?;
        reach("shards-named");
        Ok((head, shards))
    }

    async fn put_shards(&self, dir: &DirRef, bits: u8, epoch: u32, entries: &[Arc<Entry>]) -> Result<Vec<Version>> {
        let mut by_slot: BTreeMap<u32, Vec<Arc<Entry>>> = BTreeMap::new();
        for e in entries {
            by_slot.entry(crate::format::index::shard_of(&e.name, bits)).or_default().push(e.clone());
        }
        let by_slot = &by_slot;
        stream::iter(0..1u32 << bits)
            .map(|slot| async move {
                let role = Role::Shard { shard_bits: bits, epoch, slot };
                let mine = by_slot.get(&slot).map_or(&[][..], Vec::as_slice);
                self.put(dir, &node(role, None, mine), None).await
            })
            .buffered(AT_ONCE)
            .try_collect()
            .await
    }

    async fn drop_shards(&self, id: DirId, epoch: u32, count: u32) -> Result<()> {
        for slot in 0..count {
            let key = self.keys.index_key(&id, Place { epoch, slot });
            self.memory.forget(&key)?;
            if let Err(e) = self.store.delete(&key).await {
                tracing::debug!("a shard that nothing names stays behind: {e}");
            }
        }
        Ok(())
    }

    /// Marks an empty directory as removed, for good: the last version of its head, written over the one that was seen. `Stale`
    /// when somebody else wrote to it meanwhile. Shards are frozen first, for a name that comes into one of them leaves the head as
    /// it is; who meets frozen shards under a head that is not frozen goes on as after a split that was begun.
    pub async fn remove(&self, id: DirId, key: &SecretKey, remote: &Remote) -> Result<Remote> {
        let dir = dir_ref(id, key);
        if remote.bits > 0 {
            self.freeze(&dir, remote, &[]).await?;
        }
        let last = node(Role::Head { shard_bits: 0, epoch: remote.epoch }, Some(&remote.head), &[]);
        let head = self.put(&dir, &IndexNode { frozen: true, ..last }, Some(&remote.head)).await?;
        Ok(Remote { head, removed: true, ..remote.clone() })
    }

    /// Marks all shards as frozen, so that no other machine writes to them while they are being replaced. What is frozen already
    /// does not change any more.
    async fn freeze(&self, dir: &DirRef, remote: &Remote, entries: &[Arc<Entry>]) -> Result<()> {
        for (slot, old) in (0u32..).zip(&remote.shards).filter(|(slot, _)| !remote.frozen.contains(slot)) {
            let mine: Vec<Arc<Entry>> = entries.iter().filter(|e| remote.shard_of(&e.name) == slot).cloned().collect();
            let role = Role::Shard { shard_bits: remote.bits, epoch: remote.epoch, slot };
            self.put(dir, &IndexNode { frozen: true, ..node(role, Some(old), &mine) }, Some(old)).await?;
        }
        Ok(())
    }
}

/// The version of an index object after `old`.
fn node(role: Role, old: Option<&Version>, entries: &[Arc<Entry>]) -> IndexNode {
    IndexNode {
        role,
        frozen: false,
        generation: old.map_or(1, |v| v.generation + 1),
        previous: old.map_or(Hash::ZERO, |v| v.hash),
        entries: entries.iter().map(|e| Entry::clone(e)).collect(),
    }
}
