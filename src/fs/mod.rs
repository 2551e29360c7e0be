//! `Fs`: the filesystem. It joins what exists (`tree`), reading (`read`) and writing (`write`), and answers [`Ops`](crate::ops::Ops).
//!
//! - [`names`](self): lookup, create, mkdir, unlink (`names.rs`), rename (`rename.rs`), hard links (`links.rs`); attributes
//!   (`attr.rs`); files (`io.rs`), their holes and copies (`alloc.rs`); listings (`list.rs`).
//! - Changes of names show at once, are noted in the journal (`journal.rs`), and reach the bucket in groups (`commit.rs`);
//!   `settle.rs` waits for them.
//! - Contents go to the spool and are uploaded by `upload.rs`; `file.rs` draws the states.
//! - What two machines changed at once is settled by `conflict.rs` (names), `moves.rs` (names that move) and `rescue.rs` (contents);
//!   how old what is shown may be, by `fresh.rs`.
//! - A directory that is removed while it is in the bucket, on this machine or on another: `vanished.rs`.
//! - `recover.rs` puts back what an earlier mount left; `drain.rs` waits until the bucket has everything.
//!
//! Lock order: see `state.rs`.

mod ahead;
mod alloc;
mod attr;
mod commit;
pub mod conflict;
mod drain;
pub mod file;
mod fresh;
mod io;
mod journal;
mod landed;
mod links;
mod list;
mod moves;
mod names;
mod open;
mod ops;
mod recover;
mod rename;
mod rescue;
mod settle;
mod state;
pub mod status;
mod upload;
mod vanished;

pub use open::{FsParts, KnownMemory, NamesHeld, Sink};
pub use recover::Recovered;

use crate::env::Env;
use crate::error::{Error, Kind, Result, fail};
use crate::format::entry::{Body, Entry};
use crate::lease::Keeper;
use crate::ops::Ino;
use crate::read::{OpenObject, Reader};
use crate::store::Store;
use crate::tree::dir::{Change, Guard};
use crate::tree::io::{IndexIo, Remote};
use crate::types::{DirId, FileId, Mode};
use crate::write::spool::Spool;
use crate::write::upload::Uploader;
use file::File;
use journal::Journal;
use state::{DirCell, State};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore};

/// When fsync(2) returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsyncMode {
    /// When the bucket has the data and the index names it.
    Remote,
    /// When the sealed spool on the local disk has it durably; the upload goes on in the background.
    Local,
}

/// A change for the journal: directory, name, and what is there now.
type Noted = (DirId, Vec<u8>, Option<Arc<Entry>>);

/// What a mount can choose.
#[derive(Clone, Debug)]
pub struct Options {
    /// Refuse all changes.
    pub read_only: bool,
    /// Owner shown for every file.
    pub uid: Option<u32>,
    /// Group shown for every file.
    pub gid: Option<u32>,
    /// Permission bits hidden from every file.
    pub umask: Option<u16>,
    /// Owner and group of the root directory of a new volume.
    pub root_owner: (u32, u32),
    /// Its times: when the volume was made.
    pub root_time: crate::types::Time,
    /// How long the kernel may believe names and attributes.
    pub attr_ttl: Duration,
    /// How old a listing may be before the bucket is asked again.
    pub dir_ttl: Duration,
    /// When fsync returns.
    pub fsync: FsyncMode,
    /// How long names gather before their index is written.
    pub commit_delay: Duration,
    /// Longest wait of a request for the store.
    pub deadline: Duration,
    /// Files uploaded at once.
    pub uploads: usize,
    /// Files with unsent data; more have to wait for uploads.
    pub max_dirty_files: usize,
    /// Directory entries kept in memory.
    pub max_entries: usize,
    /// Entries of one directory; the format holds no more than its default.
    pub max_names: u64,
    /// First and longest pause between tries of an upload or an index write.
    pub retry: (Duration, Duration),
    /// This machine's name, for the names of conflicting files.
    pub host: String,
    /// The lease under which changes are taken, where the store takes one writer at a time.
    pub lease: Option<Arc<Keeper>>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            read_only: false,
            uid: None,
            gid: None,
            umask: None,
            root_owner: (0, 0),
            root_time: crate::types::Time::default(),
            attr_ttl: Duration::from_secs(1),
            dir_ttl: Duration::from_secs(1),
            fsync: FsyncMode::Remote,
            commit_delay: Duration::from_millis(500),
            deadline: Duration::from_secs(60),
            uploads: 16,
            max_dirty_files: 2048,
            max_entries: 1 << 20,
            max_names: crate::format::index::MAX_ENTRIES,
            retry: (Duration::from_secs(2), Duration::from_secs(60)),
            host: "another machine".to_owned(),
            lease: None,
        }
    }
}

/// An open handle.
enum Handle {
    File {
        file: Arc<File>,
        read: parking_lot::Mutex<Option<Arc<crate::read::Handle>>>,
        append: bool,
        writes: bool,
        /// The file's epoch when it was opened.
        epoch: u64,
    },
    Dir {
        /// Names that come after a listing has begun have cookies from here on and are not in it: who renames what it lists
        /// would never come to the end. 0 before the first listing.
        end: AtomicU64,
    },
}

/// What is to become of a key.
#[derive(Default)]
struct Fate {
    /// Deletions to come: a file that is removed while a version of it is on its way is deleted twice.
    deletions: u32,
    /// Set when they are called off.
    spared: Arc<AtomicBool>,
}

/// Deletes objects of the bucket when dropped: the index no longer names them, and no handle is open.
pub(crate) struct Doomed {
    keys: Vec<String>,
    file: Option<FileId>,
    /// Set when the deletion is called off: see `conflict.rs`.
    spared: Arc<AtomicBool>,
    to: tokio::sync::mpsc::UnboundedSender<Deletion>,
    count: Arc<AtomicU64>,
}

/// Objects to delete.
pub(crate) struct Deletion {
    keys: Vec<String>,
    /// The file whose object it is; `None` for index objects, which local state forgets first.
    file: Option<FileId>,
    spared: Arc<AtomicBool>,
    counted: Counted,
}

/// Counts deletions under way, for whoever waits until all is done.
pub(crate) struct Counted(Arc<AtomicU64>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Doomed {
    pub(crate) fn object(fs: &Fs, file: FileId, key: String) -> Doomed {
        Doomed::new(fs, vec![key], Some(file))
    }

    pub(crate) fn index(fs: &Fs, dir: DirId, remote: &Remote) -> Doomed {
        Doomed::new(fs, fs.index.keys_of(dir, remote), None)
    }

    fn new(fs: &Fs, keys: Vec<String>, file: Option<FileId>) -> Doomed {
        let first = keys.first().cloned().unwrap_or_default();
        let spared = {
            let mut doomed = fs.doomed.lock();
            let fate = doomed.entry(first).or_default();
            fate.deletions += 1;
            fate.spared.clone()
        };
        Doomed { keys, file, spared, to: fs.deleter.clone(), count: fs.deletions.clone() }
    }

    /// Nothing is deleted after all.
    pub(crate) fn spare(&self, fs: &Fs) {
        self.keys.first().into_iter().for_each(|key| fs.spare_key(key));
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        if self.spared.load(Ordering::Acquire) {
            return;
        }
        // When nobody listens the mount is going down: the objects stay as orphans, which harm nothing.
        self.count.fetch_add(1, Ordering::AcqRel);
        let counted = Counted(self.count.clone());
        let (keys, spared) = (std::mem::take(&mut self.keys), self.spared.clone());
        let _ = self.to.send(Deletion { keys, file: self.file, spared, counted });
    }
}

/// The filesystem of one mount.
pub struct Fs {
    this: Weak<Fs>,
    opts: Options,
    mode: Mode,
    env: Env,
    store: Arc<dyn Store>,
    index: IndexIo,
    reader: Reader,
    uploader: Arc<Uploader>,
    spool: Spool,
    journal: Journal,
    state: parking_lot::Mutex<State>,
    handles: parking_lot::Mutex<HashMap<u64, Arc<Handle>>>,
    next_handle: AtomicU64,
    root_entry: Arc<Entry>,
    sink: Arc<dyn Sink>,
    deleter: tokio::sync::mpsc::UnboundedSender<Deletion>,
    deletions: Arc<AtomicU64>,
    /// Keys of file objects that are to be deleted, until the store has said that they are. A deletion whose answer was lost is
    /// repeated: no new object may have such a key.
    doomed: parking_lot::Mutex<HashMap<String, Fate>>,
    /// Files that were found newer than their entries.
    lagging: parking_lot::Mutex<lru::LruCache<FileId, (state::Place, file::Version)>>,
    /// The last look at a directory found the store away: nobody waits for the next.
    away: AtomicBool,
    /// Conflicts with other machines that were settled.
    conflicts: AtomicU64,
    /// Copies among them that lack parts.
    incomplete: AtomicU64,
    /// Directories with names to write, and whether somebody waits for them.
    kicked: parking_lot::Mutex<HashSet<DirId>>,
    kick_bell: Arc<Notify>,
    /// Rings after every index write.
    committed: Notify,
    /// Rings after every upload.
    uploaded: Notify,
    upload_slots: Arc<Semaphore>,
    /// Wakes uploads that pause after a failure.
    kick_uploads: Notify,
    /// Somebody waits for everything: no delays.
    hurry: AtomicBool,
    /// The mount takes no more changes.
    stopping: AtomicBool,
    sent_bytes: AtomicU64,
    /// Versions that were open a short time ago: what is cached of them can be read again without asking the store, also when
    /// it does not answer.
    recent: parking_lot::Mutex<lru::LruCache<FileId, Arc<OpenObject>>>,
    rt: tokio::runtime::Handle,
}

impl Fs {
    /// One deletion of a key is done.
    fn reprieve(&self, key: &str, spared: &Arc<AtomicBool>) {
        let mut doomed = self.doomed.lock();
        // Deletions that were called off do not count against later ones.
        if let Some(fate) = doomed.get_mut(key).filter(|f| Arc::ptr_eq(&f.spared, spared)) {
            fate.deletions -= 1;
            if fate.deletions == 0 {
                doomed.remove(key);
            }
        }
    }

    /// Calls off all deletions of what begins with a key.
    fn spare_key(&self, key: &str) {
        if let Some(fate) = self.doomed.lock().remove(key) {
            fate.spared.store(true, Ordering::Release);
        }
    }

    /// A strong reference to itself, for tasks.
    fn arc(&self) -> Option<Arc<Fs>> {
        self.this.upgrade()
    }

    /// Notes changes in the journal and shows them. Returns guards to drop outside the lock.
    fn apply(&self, st: &mut State, ops: Vec<(DirId, Vec<u8>, Change)>) -> Result<Vec<Guard>> {
        let lines: Vec<_> = ops.iter().map(|(d, n, c)| (*d, n.clone(), c.entry.clone())).collect();
        self.journal_only(st, &lines)?;
        Ok(self.apply_journalled(st, ops))
    }

    /// Notes changes in the journal, under the number that the next [`Fs::apply_journalled`] takes.
    fn journal_only(&self, st: &State, ops: &[Noted]) -> Result<()> {
        let mut lines = Vec::with_capacity(ops.len());
        for (dir, name, entry) in ops {
            let cell = st.dirs.get(dir).ok_or_else(|| Error::new(Kind::Stale, "unknown directory"))?;
            let dead = match (cell.dir.get(name).map(|e| &e.body), entry.as_deref().map(|e| &e.body)) {
                (Some(Body::Dir { dir_id: old, .. }), Some(Body::Dir { dir_id, .. })) if old == dir_id => None,
                // A directory that is renamed away lives on: its new name is among the same lines.
                (Some(Body::Dir { dir_id: old, .. }), _) if !names_dir(ops, old) => Some(*old),
                _ => None,
            };
            let mut line = st.line(*dir, cell, name.clone(), entry.clone(), dead);
            (line.delta, line.left) = cell.dir.foresee(name, entry.as_deref());
            // Links that the bucket may still hold in a directory that goes.
            let below = dead.and_then(|d| st.dirs.get(&d)).map(|c| c.dir.lefts()).unwrap_or_default();
            line.left.extend(below.into_iter().map(|(r, _)| r));
            lines.push(line);
        }
        self.note_places(st, ops.iter().map(|(dir, ..)| *dir));
        self.journal.names(st.seq + 1, &lines)
    }

    /// Shows changes that the journal has.
    fn apply_journalled(&self, st: &mut State, ops: Vec<(DirId, Vec<u8>, Change)>) -> Vec<Guard> {
        let seq = st.next_seq();
        let now = self.env.clock.now();
        let links = st.links;
        let mut due = Vec::new();
        for (dir, name, mut change) in ops {
            // What an old name was still to drop belongs to the new one.
            change.after.append(&mut due);
            self.end_moves(st, dir, &name, &mut change);
            if let Some(cell) = st.dirs.get_mut(&dir) {
                let names_change = cell.dir.get(&name).is_none() != change.entry.is_none() || change.entry.is_none();
                due.extend(cell.dir.set(&name, seq, change));
                if names_change && dir != links {
                    cell.times = Some(now);
                }
                self.kick(dir);
            }
        }
        due
    }

    /// What was renamed to a name here and is removed or replaced now goes with its old name: not before that is taken away.
    fn end_moves(&self, st: &mut State, dir: DirId, name: &[u8], change: &mut Change) {
        let Some(cell) = st.dirs.get(&dir) else { return };
        let stays = match (cell.dir.get(name), &change.entry) {
            (Some(old), Some(new)) => crate::tree::merge::same(old, new),
            (old, _) => old.is_none() || !change.wait.is_empty(),
        };
        if stays {
            return;
        }
        let (tokens, file) = (cell.dir.carried(name), cell.dir.get(name).and_then(|e| e.file_id()));
        let old = file.map_or_else(Vec::new, |id| moves::departing(st, id));
        for (dir, name) in old.iter().filter(|p| (p.0, &p.1[..]) != (dir, name)) {
            if let Some(cell) = st.dirs.get_mut(dir) {
                change.after = cell.dir.end_of_move_from(name, std::mem::take(&mut change.after));
            }
        }
        if tokens.is_empty() {
            return;
        }
        for cell in st.dirs.values_mut() {
            change.after = cell.dir.end_of_move(&tokens, std::mem::take(&mut change.after));
        }
    }

    /// Asks for an index write of a directory, soon.
    fn kick(&self, dir: DirId) {
        self.kicked.lock().insert(dir);
        self.kick_bell.notify_one();
    }

    /// The directory of an inode, loaded.
    async fn dir(&self, ino: Ino) -> Result<DirId> {
        self.own(ino)?;
        let id = self.state.lock().dir_of(ino)?;
        self.load_dir(id).await?;
        Ok(id)
    }

    /// Makes sure that a directory's entries are in memory.
    async fn load_dir(&self, id: DirId) -> Result<()> {
        let cell = |st: &State| match st.dirs.get(&id) {
            Some(c) if c.dir.is_loaded() => Ok(None),
            Some(c) => Ok(Some(c.loading.clone())),
            None => fail(Kind::Stale, "unknown directory"),
        };
        let Some(loading) = cell(&self.state.lock())? else { return Ok(()) };
        let _one = loading.lock().await;
        if cell(&self.state.lock())?.is_none() {
            return Ok(());
        }
        let merged = self.read_index(id, false).await?;
        let pending = {
            let mut st = self.state.lock();
            let Some(cell) = st.dirs.get(&id) else { return fail(Kind::Stale, "the directory was removed") };
            let pending = cell.dir.has_pending();
            st.grown += cell.dir.len() + 1;
            // Whoever needs the links directory needs another one with it.
            if id != st.links {
                self.evict(&mut st, id);
            }
            pending
        };
        if pending {
            self.kick(id);
        }
        self.after_merge(id, merged).await
    }

    /// Runs a request to the store within the mount's deadline.
    async fn within<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        match tokio::time::timeout(self.opts.deadline, work).await {
            Ok(r) => r,
            Err(_) => fail(Kind::Unavailable, "the store did not answer in time"),
        }
    }

    /// Passes a failed verification on to audit and quarantine.
    fn report(&self, e: Error, dir: DirId) -> Error {
        if e.kind() == Kind::Corrupt {
            self.sink.index_corrupt(dir, &e);
        }
        e.context("reading a directory index")
    }

    /// Drops listings that nobody uses, when too many entries are in memory.
    fn evict(&self, st: &mut State, keep: DirId) {
        // Counting costs a step per directory: only now and then.
        if st.grown < self.opts.max_entries / 16 {
            return;
        }
        st.grown = 0;
        let mut total: usize = st.dirs.values().map(|c| c.dir.len()).sum();
        if total <= self.opts.max_entries {
            return;
        }
        // A file on its way to the bucket must find its entry when it arrives.
        let used: HashSet<DirId> = st.files.values().filter_map(|f| f.place.lock().as_ref().map(|(d, _)| *d)).collect();
        let mut idle: Vec<(Option<Instant>, DirId)> = st
            .dirs
            .iter()
            .filter(|(id, c)| **id != keep && **id != st.root && evictable(c) && !st.unborn.contains(*id) && !used.contains(*id))
            .map(|(id, c)| (c.fetched, *id))
            .collect();
        idle.sort();
        for (_, id) in idle {
            if total <= self.opts.max_entries / 4 * 3 {
                break;
            }
            if let Some(c) = st.dirs.get_mut(&id) {
                total -= c.dir.len();
                c.dir = crate::tree::dir::Dir::unloaded(id);
                c.remote = None;
                c.fetched = None;
            }
        }
    }

    /// Whether the bucket should be asked again before believing a listing.
    fn is_stale(&self, cell: &DirCell) -> bool {
        cell.remote.is_some() && cell.fetched.is_none_or(|t| t.elapsed() > self.opts.dir_ttl)
    }
}

/// Whether one of the changes is an entry for the directory.
fn names_dir(ops: &[Noted], dir: &DirId) -> bool {
    ops.iter().any(|(_, _, e)| matches!(e.as_deref().map(|e| &e.body), Some(Body::Dir { dir_id, .. }) if dir_id == dir))
}

fn evictable(c: &DirCell) -> bool {
    c.dir.is_loaded() && c.nodes == 0 && !c.busy && !c.leaving && !c.dir.has_pending() && c.times.is_none()
}
