//! Putting a filesystem together from its parts, and starting what runs beside it.

use super::journal::{self};
use super::recover::{Recovered, recover};
use super::state::{DirCell, State};
use super::status::{Fill, Health, Status};
use super::{Deletion, Fs, FsyncMode, Options};
use crate::disk::Disk;
use crate::env::Env;
use crate::env::failpoint::reach;
use crate::error::{Error, Kind, Result, fail};
use crate::format::entry::{Attributes, Body, Entry};
use crate::format::index::DirRef;
use crate::format::keys::VolumeKeys;
use crate::format::names::{INDEX_PREFIX, object_key};
use crate::format::params::Params;
use crate::keyring::{Known, ObjectName};
use crate::lease::Standing;
use crate::ops::{Invalidate, Invalidations};
use crate::read::Reader;
use crate::sealedlog::{LogKind, LogOwner};
use crate::store::{Store, UploadId};
use crate::tree::dir::Dir;
use crate::tree::io::{IndexIo, Memory};
use crate::types::{DirId, FileId, Hash, Mode};
use crate::write::spool::Spool;
use crate::write::upload::Uploader;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use tokio::sync::{Notify, Semaphore, mpsc};

/// Looks at an object that is to be deleted and keeps being replaced.
const LOOKS: usize = 8;

/// Who is told what happens: audit log, quarantine, status, kernel.
pub trait Sink: Send + Sync + 'static {
    /// An index object failed verification.
    fn index_corrupt(&self, dir: DirId, error: &Error);
    /// An object that the index names is gone.
    fn object_missing(&self, key: &str, file: FileId, generation: u64);
    /// Something went wrong that a person may want to know of.
    fn trouble(&self, error: &Error);
    /// This machine and another one changed the same file or name.
    fn conflict(&self, _what: super::conflict::Conflict) {}
    /// A version of a file is in the bucket.
    fn saved(&self, file: FileId, generation: u64);
    /// The kernel shall forget something.
    fn invalidate(&self, what: Invalidate);
    /// The queue behind [`Sink::invalidate`], for whoever serves the mount.
    fn invalidations(&self) -> Option<Arc<Invalidations>>;
}

/// What a filesystem is made of.
pub struct FsParts {
    /// The bucket.
    pub store: Arc<dyn Store>,
    /// The volume's keys.
    pub keys: Arc<VolumeKeys>,
    /// Its constants.
    pub params: Params,
    /// How object names are chosen.
    pub mode: Mode,
    /// Its root directory.
    pub root: DirRef,
    /// What this machine has seen of it.
    pub known: Arc<Known>,
    /// Reads.
    pub reader: Reader,
    /// Local state: journal and spool.
    pub disk: Arc<dyn Disk>,
    /// Most bytes of the spool.
    pub spool_max: u64,
    /// Sealed bytes that uploads may hold in memory at once.
    pub upload_memory: u64,
    /// Listeners.
    pub sink: Arc<dyn Sink>,
    /// Clock and randomness.
    pub env: Env,
    /// Choices.
    pub options: Options,
}

/// Names in memory: what is counted against `Options::max_entries`, and what the kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamesHeld {
    /// Entries of directories.
    pub entries: usize,
    /// Inodes that the kernel knows, or that are open.
    pub inodes: usize,
}

/// What this machine has seen, as `tree` asks for it.
pub struct KnownMemory(pub Arc<Known>);

/// The name under which local state remembers an index object: the 16 bytes that its key spells out.
fn object_name(key: &str) -> Result<ObjectName> {
    let hex = key.strip_prefix(INDEX_PREFIX).unwrap_or_default();
    let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).ok().and_then(|b| b.try_into().ok());
    bytes.ok_or_else(|| Error::new(Kind::Bug, "not the key of an index object"))
}

impl Memory for KnownMemory {
    fn check(&self, key: &str, generation: u64, hash: &Hash) -> Result<()> {
        self.0.check(&object_name(key)?, generation, hash).into_result()
    }

    fn seen(&self, key: &str) -> bool {
        object_name(key).is_ok_and(|n| self.0.seen(&n))
    }

    fn generation(&self, key: &str) -> Option<u64> {
        self.0.generation(&object_name(key).ok()?)
    }

    fn remember(&self, key: &str, generation: u64, hash: &Hash) -> Result<()> {
        self.0.remember(&object_name(key)?, generation, hash)
    }

    fn forget(&self, key: &str) -> Result<()> {
        self.0.forget(&object_name(key)?)
    }
}

/// What the root directory is like until its index says otherwise.
fn root_entry(root: &DirRef, options: &Options) -> Arc<Entry> {
    let ((uid, gid), t) = (options.root_owner, options.root_time);
    Arc::new(Entry {
        name: super::state::ROOT_SELF.to_vec(),
        attributes: Attributes { mode: 0o755, uid, gid, atime: t, mtime: t, ctime: t, btime: t },
        body: Body::Dir { dir_id: root.dir_id, dir_key: crate::crypto::secmem::SecretKey::new(&[0; 32]) },
        refs: Vec::new(),
        xattrs: Vec::new(),
    })
}

impl Fs {
    /// Opens the filesystem: takes over what an earlier mount left, and starts the tasks that upload and commit. Within a tokio
    /// runtime.
    pub async fn open(parts: FsParts) -> Result<(Arc<Fs>, Recovered)> {
        let FsParts { store, keys, params, mode, root, known, reader, disk, env, options, sink, .. } = parts;
        let caps = store.caps();
        let owner = |kind| LogOwner { kind, volume: params.volume_id, wrap: keys.local_log().clone() };
        let spool = Spool::new(disk.clone(), owner(LogKind::Spool), env.clone(), parts.spool_max)?;
        let memory: Arc<dyn Memory> = Arc::new(KnownMemory(known));
        let index = IndexIo::new(store.clone(), caps, keys.clone(), memory, env.clone());
        let kib = u32::try_from(parts.upload_memory / 1024).unwrap_or(u32::MAX).max(1);
        let uploader = Arc::new(Uploader {
            store: store.clone(),
            caps,
            keys: keys.clone(),
            params,
            env: env.clone(),
            memory: Arc::new(Semaphore::new(kib as usize)),
            memory_kib: kib,
            counter: AtomicU64::new(0),
            strays: parking_lot::Mutex::default(),
        });
        let mut st = State::new(root.dir_id, keys.links_dir().dir_id);
        st.dirs.insert(root.dir_id, DirCell::new(Dir::unloaded(root.dir_id), root.dir_key.clone(), None));
        let left = recover(&mut st, &disk, &owner(LogKind::Journal), &spool, &env)?;
        let links = keys.links_dir();
        let unknown = || DirCell::new(Dir::unloaded(links.dir_id), links.dir_key.clone(), None);
        st.dirs.entry(links.dir_id).or_insert_with(unknown);
        left.losses.iter().for_each(|e| sink.trouble(e));
        let (deleter, deletions) = mpsc::unbounded_channel();
        let root_entry = root_entry(&root, &options);
        let kick_bell = Arc::new(Notify::new());
        let fs = Arc::new_cyclic(|this: &Weak<Fs>| Fs {
            this: this.clone(),
            mode,
            env,
            store,
            index,
            reader,
            uploader,
            spool,
            journal: left.journal,
            state: parking_lot::Mutex::new(st),
            handles: parking_lot::Mutex::default(),
            next_handle: AtomicU64::new(1),
            root_entry,
            sink,
            deleter,
            deletions: Arc::default(),
            doomed: parking_lot::Mutex::default(),
            lagging: parking_lot::Mutex::new(lru::LruCache::new(super::state::RENAMED)),
            conflicts: AtomicU64::new(0),
            incomplete: AtomicU64::new(0),
            away: AtomicBool::new(false),
            kicked: parking_lot::Mutex::default(),
            kick_bell: kick_bell.clone(),
            committed: Notify::new(),
            uploaded: Notify::new(),
            upload_slots: Arc::new(Semaphore::new(options.uploads.max(1))),
            kick_uploads: Notify::new(),
            hurry: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            sent_bytes: AtomicU64::new(0),
            recent: parking_lot::Mutex::new(lru::LruCache::new(super::io::RECENT)),
            rt: tokio::runtime::Handle::current(),
            opts: options,
        });
        fs.start(kick_bell, deletions, left.files, left.uploads);
        Ok((fs, left.report))
    }

    fn start(
        self: &Arc<Self>,
        bell: Arc<Notify>,
        deletions: mpsc::UnboundedReceiver<Deletion>,
        recovered: Vec<Arc<super::file::File>>,
        uploads: Vec<(String, UploadId)>,
    ) {
        if self.opts.fsync == FsyncMode::Local {
            let this = Arc::downgrade(self);
            self.spool.guard(move || this.upgrade().map_or(Ok(()), |fs| fs.journal.sync()));
        }
        self.rt.spawn(Fs::committer(Arc::downgrade(self), bell));
        self.rt.spawn(Fs::sweeper(Arc::downgrade(self), deletions));
        if self.opts.read_only {
            return;
        }
        for file in recovered {
            self.rt.spawn(self.clone().resume(file));
        }
        let uploader = self.uploader.clone();
        self.rt.spawn(async move {
            for (key, id) in uploads {
                uploader.abort(&key, &id).await;
            }
        });
        let pending: Vec<DirId> = {
            let st = self.state.lock();
            st.dirs.iter().filter(|(id, c)| c.dir.has_pending() || st.unborn.contains(*id)).map(|(id, _)| *id).collect()
        };
        for dir in pending {
            self.kick(dir);
        }
    }

    /// Deletes objects that nothing names any more. What fails stays behind as an orphan.
    async fn sweeper(fs: Weak<Fs>, mut deletions: mpsc::UnboundedReceiver<Deletion>) {
        let slots = Arc::new(Semaphore::new(16));
        while let Some(d) = deletions.recv().await {
            let (Some(this), Ok(slot)) = (fs.upgrade(), slots.clone().acquire_owned().await) else { return };
            this.rt.clone().spawn(async move {
                let _slot = slot;
                let _counted = d.counted;
                for key in &d.keys {
                    if !this.deletes(d.file, &d.spared) {
                        return;
                    }
                    if d.file.is_none()
                        && let Err(e) = this.index.forget(key)
                    {
                        tracing::warn!("local state could not forget an index object: {e}");
                    }
                    reach("object-doomed");
                    let deleted = match d.file.filter(|file| *key != object_key(file)) {
                        Some(file) => this.delete_readable(key, file).await,
                        None => this.store.delete(key).await,
                    };
                    reach("object-deleted");
                    match deleted {
                        Ok(()) => this.reprieve(key, &d.spared),
                        // It may still be carried out: the key stays out of use.
                        Err(e) => {
                            this.may_live(d.file);
                            tracing::warn!("an unneeded object could not be deleted and stays behind: {e}");
                        }
                    }
                }
            });
        }
    }

    /// Deletes the object of a file at a readable key, which another machine may have taken for another file since: the object is
    /// looked at, and that version deleted and no other. A request that is carried out late, or twice, does no harm then.
    async fn delete_readable(&self, key: &str, file: FileId) -> Result<()> {
        for _ in 0..LOOKS {
            let there = match self.owner_of(key, file).await {
                Ok(Some((true, there))) => there,
                // Another's, or nothing of ours: shorter than a header.
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == Kind::Invalid => return Ok(()),
                Err(e) => return Err(e),
            };
            match self.store.delete_if(key, &there).await {
                Err(e) if e.kind() == Kind::Stale => {}
                done => return done,
            }
        }
        fail(Kind::Unavailable, "the object keeps being replaced")
    }

    /// Begins the journal anew when it has grown and nothing is pending, or rewrites it from memory when it has grown too long.
    pub(super) fn tend_journal(&self) {
        let len = self.journal.len();
        if len < journal::FRESH_BYTES {
            return;
        }
        let st = self.state.lock();
        let lines = self.journal_lines(&st);
        if (lines.is_empty() || len > journal::REWRITE_BYTES)
            && let Err(e) = self.journal.rewrite(&lines, &self.places_of(&st, lines.iter().map(|(_, l)| l.dir)))
        {
            tracing::warn!("the journal could not be begun anew: {e}");
        }
    }

    /// Everything that a later mount would have to be told.
    fn journal_lines(&self, st: &State) -> Vec<(u64, journal::Line)> {
        let mut lines = Vec::new();
        for (id, cell) in st.dirs.iter().filter(|(_, c)| !c.dead) {
            let dirty =
                |e: &Entry| matches!(&e.body, Body::File(f) if st.files.get(&f.file_id).is_some_and(|f| f.live.lock().dirty()));
            let behind = |e: &Entry| dirty(e) || super::moves::is_departing(st, e);
            for u in cell.dir.unsettled(behind) {
                let dead = cell.dir.dir_in_bucket(&u.name).filter(|d| st.dirs.get(d).is_some_and(|c| c.leaving));
                let line = st.line(*id, cell, u.name, u.entry, dead);
                lines.push((u.seq.unwrap_or(st.seq), journal::Line { delta: u.delta, left: u.left, ..line }));
            }
        }
        lines
    }

    /// Reads the root directory: a mount whose root cannot be read does not begin.
    pub async fn check_root(&self) -> Result<()> {
        self.dir(crate::ops::ROOT).await.map(|_| ())
    }

    pub(super) fn root_loaded(&self) -> bool {
        let st = self.state.lock();
        st.dirs.get(&st.root).is_some_and(|c| c.dir.is_loaded())
    }

    /// How many names are in memory.
    pub fn names_held(&self) -> NamesHeld {
        let st = self.state.lock();
        NamesHeld { entries: st.dirs.values().map(|c| c.dir.len()).sum(), inodes: st.nodes.len() }
    }

    /// Fills in what the filesystem knows of itself.
    pub fn fill_status(&self, s: &mut Status) {
        let lease = self.opts.lease.as_ref().map(|keeper| keeper.account());
        s.lease = lease.as_ref().map(|account| account.into()).unwrap_or_default();
        s.read_only = self.opts.read_only || lease.as_ref().is_some_and(|account| account.standing != Standing::Held);
        let (used, limit) = self.spool.usage();
        s.spool = Fill { used, limit };
        s.open_files = self.handles.lock().len() as u64;
        s.conflicts.settled = self.conflicts.load(Ordering::Relaxed);
        s.conflicts.incomplete = self.incomplete.load(Ordering::Relaxed);
        let st = self.state.lock();
        s.pending = self.pending(&st);
        for file in st.all_files() {
            let live = file.live.lock();
            s.conflicts.waiting += live.beaten.len() as u64 + u64::from(live.orphan.is_some());
            s.conflicts.stuck += live.stuck.len() as u64;
        }
        let held = lease.is_none_or(|account| matches!(account.standing, Standing::Held | Standing::Released));
        // A writer's next record may be refused.
        let record = (crate::format::log::MAX_PAYLOAD as u64).min(limit / 16);
        let full = limit > 0 && used.saturating_add(record) > limit;
        let failing = full || !held || s.conflicts.stuck > 0 || st.files.values().any(|f| f.live.lock().error.is_some());
        s.health = match s.health {
            _ if self.stopping.load(Ordering::Acquire) => Health::Draining,
            Health::Ok if failing => Health::Degraded,
            other => other,
        };
    }

    /// The kernel has let go of the mount without closing what was open: every handle counts as closed, every inode as forgotten.
    pub fn close_handles(&self) {
        let handles = std::mem::take(&mut *self.handles.lock());
        let mut st = self.state.lock();
        for handle in handles.into_values() {
            if let super::Handle::File { file, .. } = &*handle {
                file.opens.store(0, Ordering::Release);
            }
        }
        let inos: Vec<_> = st.nodes.keys().copied().collect();
        let mut due = Vec::new();
        for ino in inos {
            if let Some(n) = st.nodes.get_mut(&ino) {
                (n.opens, n.lookups) = (0, 0);
            }
            due.extend(st.release(ino));
        }
        let files: Vec<_> = st.files.values().cloned().collect();
        for file in files {
            self.retire(&mut st, &file);
        }
        drop(st);
        drop(due);
    }

    /// Drops what can be read again: cached chunks.
    pub fn drop_caches(&self) {
        self.recent.lock().clear();
        self.reader.clear();
    }
}
