//! A volume in a bucket, and mounts of it without a kernel: each with a runtime, a store stack and a local disk of its own, so
//! that one can be killed as a process is.

use crate::hold::Hold;
use parking_lot::Mutex;
use smpfs::crypto::secmem::SecretKey;
use smpfs::disk::{Disk, SimDisk};
use smpfs::env::Env;
use smpfs::error::Error;
use smpfs::format::index::{DirRef, IndexNode, Role};
use smpfs::format::names::Place;
use smpfs::format::{Geometry, Params, VolumeKeys};
use smpfs::fs::conflict::Conflict;
use smpfs::fs::{Fs, FsParts, FsyncMode, Options, Recovered, Sink};
use smpfs::keyring::Known;
use smpfs::ops::{Caller, FileType, Found, Ino, Invalidate, Invalidations, Opened, Ops, ROOT};
use smpfs::read::{CorruptReport, ReadOptions, Reader, Witness};
use smpfs::store::layers::{Faulty, Meter, Wrap};
use smpfs::store::memory::MemoryStore;
use smpfs::store::{Cond, Options as StoreOptions, Store, layer};
use smpfs::types::{DirId, FileId, Hash, Mode, Suite, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

pub const WHO: Caller = Caller { uid: 1000, gid: 1000, pid: 1 };
/// Plaintext bytes of a segment in these volumes.
pub const SEG: u64 = 1 << 18;
/// How long a drain may take before a test calls it stuck.
const PATIENCE: Duration = Duration::from_secs(20);

/// A volume and its bucket.
pub struct World {
    pub bucket: Arc<dyn Store>,
    pub keys: Arc<VolumeKeys>,
    pub params: Params,
    pub mode: Mode,
    pub root: DirRef,
}

/// Remembers what the filesystem tells.
#[derive(Default)]
pub struct Listener {
    pub corrupt: Mutex<Vec<String>>,
    pub saved: Mutex<Vec<(FileId, u64)>>,
    pub trouble: Mutex<Vec<String>>,
    pub conflicts: Mutex<Vec<Conflict>>,
    queue: Arc<Invalidations>,
}

impl Sink for Listener {
    fn index_corrupt(&self, dir: DirId, error: &Error) {
        self.corrupt.lock().push(format!("{dir:?}: {error}"));
    }
    fn object_missing(&self, key: &str, _file: FileId, _generation: u64) {
        self.corrupt.lock().push(format!("{key}: missing"));
    }
    fn trouble(&self, error: &Error) {
        self.trouble.lock().push(error.to_string());
    }
    fn conflict(&self, what: Conflict) {
        self.conflicts.lock().push(what);
    }
    fn saved(&self, file: FileId, generation: u64) {
        self.saved.lock().push((file, generation));
    }
    fn invalidate(&self, what: Invalidate) {
        self.queue.send(what);
    }
    fn invalidations(&self) -> Option<Arc<Invalidations>> {
        Some(self.queue.clone())
    }
}

impl Witness for Listener {
    fn corrupt(&self, report: CorruptReport) {
        self.corrupt.lock().push(format!("{}: {}", report.key, report.what));
    }
}

/// How a mount of these tests behaves: everything fast.
pub fn quick() -> Options {
    Options {
        dir_ttl: Duration::from_secs(3600),
        commit_delay: Duration::from_millis(2),
        deadline: Duration::from_secs(20),
        retry: (Duration::from_millis(5), Duration::from_millis(50)),
        fsync: FsyncMode::Remote,
        ..Options::default()
    }
}

impl World {
    /// A new, empty volume in a bucket in memory.
    pub fn new(mode: Mode, suite: Suite) -> World {
        World::at(Arc::new(MemoryStore::new()), mode, suite)
    }

    /// A new, empty volume.
    pub fn at(bucket: Arc<dyn Store>, mode: Mode, suite: Suite) -> World {
        let env = Env::real();
        let volume_id = VolumeId(env.random());
        let secret = || SecretKey::from_fn(|k| env.rng.fill(k));
        let keys = Arc::new(VolumeKeys::derive(&secret(), volume_id, vec![secret()]));
        let params = Params { volume_id, suite, geometry: Geometry::new(14, 4).unwrap() };
        let root = DirRef { dir_id: DirId(env.random()), dir_key: keys.root_dir().clone() };
        let role = Role::Head { shard_bits: 0, epoch: 0 };
        let head = IndexNode { role, frozen: false, generation: 1, previous: Hash::ZERO, entries: Vec::new() };
        let (bytes, _) = head.seal(&keys, &root, &env.random()).unwrap();
        let key = keys.index_key(&root.dir_id, Place::HEAD);
        let put = bucket.put(&key, vec![bytes.into()], Cond::Absent);
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(put).unwrap();
        World { bucket, keys, params, mode, root }
    }

    /// A mount with a fresh local disk and no faults.
    pub fn fresh(&self) -> Mount {
        self.mount(Arc::new(SimDisk::new(7)), quick())
    }

    /// A mount on a local disk.
    pub fn mount(&self, disk: Arc<dyn Disk>, options: Options) -> Mount {
        self.mount_with(disk, options, Arc::new(Faulty::new(1)), 1 << 30)
    }

    /// A mount on a local disk, behind faults.
    pub fn mount_with(&self, disk: Arc<dyn Disk>, options: Options, faulty: Arc<Faulty>, spool_max: u64) -> Mount {
        self.mount_behind(disk, options, faulty, spool_max, Arc::default())
    }

    /// A mount of which single requests can be held up.
    pub fn held(&self, options: Options) -> (Mount, Arc<Hold>) {
        self.held_on(Arc::new(SimDisk::new(11)), options)
    }

    /// The same on a local disk.
    pub fn held_on(&self, disk: Arc<dyn Disk>, options: Options) -> (Mount, Arc<Hold>) {
        let hold = Arc::new(Hold::default());
        (self.mount_behind(disk, options, Arc::new(Faulty::new(1)), 1 << 30, hold.clone()), hold)
    }

    fn mount_behind(&self, disk: Arc<dyn Disk>, options: Options, faulty: Arc<Faulty>, spool_max: u64, hold: Arc<Hold>) -> Mount {
        let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let env = Env::real();
        let base = Arc::new(Wrap::new(self.bucket.clone(), faulty.clone()));
        let store_options = StoreOptions {
            operation_timeout: Duration::from_millis(500),
            tries: 3,
            backoff_base: Duration::from_millis(2),
            backoff_cap: Duration::from_millis(10),
            down_pause: Duration::from_millis(10),
            // The deadline of a request grows with its bytes: a stall of a listing must not cost a test minutes.
            min_rate: 1 << 30,
            ..StoreOptions::default()
        };
        let stack = layer(base, &store_options);
        let store: Arc<dyn Store> = Arc::new(Wrap::new(stack.store, hold));
        let store = options.lease.as_ref().map_or(store.clone(), |keeper| keeper.guard(store));
        let sink = Arc::new(Listener::default());
        let volume = self.params.volume_id;
        let known = Arc::new(Known::open_in(disk.clone(), "known", volume, self.keys.local_log(), &env).unwrap());
        let opened = rt.block_on(async {
            let read = ReadOptions { budget: 64 << 20, deadline: options.deadline, ..ReadOptions::default() };
            let reader = Reader::new(store.clone(), self.params, self.keys.clone(), sink.clone(), None, read).unwrap();
            Fs::open(FsParts {
                store,
                keys: self.keys.clone(),
                params: self.params,
                mode: self.mode,
                root: self.root.clone(),
                known: known.clone(),
                reader,
                disk: disk.clone(),
                spool_max,
                upload_memory: 64 << 20,
                sink: sink.clone(),
                env,
                options,
            })
            .await
        });
        let (fs, recovered) = opened.unwrap();
        Mount { fs, recovered, faulty, meter: stack.meter, sink, known, disk, rt: Some(rt) }
    }

    /// Every key of the bucket.
    pub fn keys_in_bucket(&self) -> BTreeSet<String> {
        let page = self.bucket.list("", None, 1 << 20);
        let page = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(page).unwrap();
        page.items.into_iter().map(|i| i.key).collect()
    }
}

/// A mount without a kernel.
pub struct Mount {
    pub fs: Arc<Fs>,
    pub recovered: Recovered,
    pub faulty: Arc<Faulty>,
    pub meter: Arc<Meter>,
    pub sink: Arc<Listener>,
    pub known: Arc<Known>,
    pub disk: Arc<dyn Disk>,
    rt: Option<Runtime>,
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(rt) = self.rt.take() {
            rt.shutdown_background();
        }
    }
}

impl Mount {
    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.rt.as_ref().unwrap().block_on(work)
    }

    /// Begins something that nobody waits for.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        drop(self.rt.as_ref().unwrap().spawn(work));
    }

    /// Waits until the bucket has everything.
    #[track_caller]
    pub fn drain(&self) {
        let done = self.wait(self.fs.drain(Some(PATIENCE), &|_| {}));
        if let Err(e) = done {
            panic!("the drain did not end: {e}; left: {:?}; troubles: {:?}", self.fs.progress(), self.sink.trouble.lock());
        }
    }

    /// Drains and ends properly.
    #[track_caller]
    pub fn unmount(self) {
        self.fs.close_handles();
        self.fs.stop_changes();
        self.drain();
        self.fs.close().unwrap();
        self.known.flush().unwrap();
        self.kill();
    }

    /// Ends without a word. A simulated disk must be crashed first, so that threads on their way cannot write any more.
    pub fn kill(mut self) {
        self.faulty.black_hole(true);
        if let Some(rt) = self.rt.take() {
            rt.shutdown_timeout(Duration::from_secs(5));
        }
    }

    /// The inode of a path like `a/b`, held by a lookup count ([`Mount::close`] gives that of a file back).
    pub fn ino(&self, path: &str) -> Result<Ino, Error> {
        self.found(path).map(|f| f.attr.ino)
    }

    pub fn found(&self, path: &str) -> Result<Found, Error> {
        let mut at = self.wait(self.fs.getattr(WHO, ROOT))?;
        for name in path.split('/').filter(|n| !n.is_empty()) {
            at = self.wait(self.fs.lookup(WHO, at.attr.ino, name.as_bytes()))?;
        }
        Ok(at)
    }

    /// The inode of the directory of a path, and the name in it.
    fn place<'p>(&self, path: &'p str) -> Result<(Ino, &'p [u8]), Error> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.ino(dir)?, name.as_bytes()))
    }

    pub fn mkdir(&self, path: &str) -> Ino {
        let (dir, name) = self.place(path).unwrap();
        self.wait(self.fs.mkdir(WHO, dir, name, 0o755)).unwrap().attr.ino
    }

    /// Creates and opens a file for reading and writing.
    pub fn create(&self, path: &str) -> (Ino, u64) {
        self.try_create(path).unwrap()
    }

    /// The same, where the name may be taken.
    pub fn try_create(&self, path: &str) -> Result<(Ino, u64), Error> {
        let (dir, name) = self.place(path)?;
        let (found, opened) = self.wait(self.fs.create(WHO, dir, name, 0o644, libc::O_RDWR))?;
        Ok((found.attr.ino, opened.fh))
    }

    pub fn open(&self, path: &str, flags: i32) -> Result<(Ino, Opened), Error> {
        let ino = self.ino(path)?;
        Ok((ino, self.wait(self.fs.open(WHO, ino, flags))?))
    }

    pub fn write(&self, at: (Ino, u64), offset: u64, data: &[u8]) -> Result<u32, Error> {
        self.wait(self.fs.write(WHO, at.0, at.1, offset, bytes::Bytes::copy_from_slice(data)))
    }

    pub fn close(&self, at: (Ino, u64)) -> Result<(), Error> {
        let flushed = self.wait(self.fs.flush(WHO, at.0, at.1));
        let released = self.wait(self.fs.release(at.0, at.1));
        self.fs.forget(at.0, 1);
        released.and(flushed)
    }

    /// A whole file, made or replaced.
    #[track_caller]
    pub fn put(&self, path: &str, data: &[u8]) {
        let at = match self.open(path, libc::O_RDWR | libc::O_TRUNC) {
            Ok((ino, opened)) => (ino, opened.fh),
            Err(_) => self.create(path),
        };
        for (i, piece) in data.chunks(1 << 20).enumerate() {
            assert_eq!(self.write(at, (i as u64) << 20, piece).unwrap() as usize, piece.len());
        }
        self.close(at).unwrap();
    }

    pub fn read_open(&self, at: (Ino, u64), offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        while out.len() < len {
            let want = (len - out.len()).min(128 << 10) as u32;
            let got = self.wait(self.fs.read(WHO, at.0, at.1, offset + out.len() as u64, want))?;
            out.extend_from_slice(&got);
            if got.len() < want as usize {
                break;
            }
        }
        Ok(out)
    }

    pub fn get(&self, path: &str) -> Result<Vec<u8>, Error> {
        let (ino, opened) = self.open(path, libc::O_RDONLY)?;
        let bytes = self.read_open((ino, opened.fh), 0, 1 << 30);
        self.close((ino, opened.fh))?;
        bytes
    }

    pub fn unlink(&self, path: &str) -> Result<(), Error> {
        let (dir, name) = self.place(path)?;
        self.wait(self.fs.unlink(WHO, dir, name))
    }

    pub fn rmdir(&self, path: &str) -> Result<(), Error> {
        let (dir, name) = self.place(path)?;
        self.wait(self.fs.rmdir(WHO, dir, name))
    }

    pub fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        let (a, b) = (self.place(from)?, self.place(to)?);
        self.wait(self.fs.rename(WHO, a.0, a.1, b.0, b.1, 0))
    }

    pub fn exchange(&self, a: &str, b: &str) -> Result<(), Error> {
        let (a, b) = (self.place(a)?, self.place(b)?);
        self.wait(self.fs.rename(WHO, a.0, a.1, b.0, b.1, libc::RENAME_EXCHANGE))
    }

    /// A second name; the inode that both lead to.
    pub fn link(&self, old: &str, new: &str) -> Result<Ino, Error> {
        let (ino, (dir, name)) = (self.ino(old)?, self.place(new)?);
        let found = self.wait(self.fs.link(WHO, ino, dir, name));
        self.fs.forget(ino, 1);
        let ino = found?.attr.ino;
        self.fs.forget(ino, 1);
        Ok(ino)
    }

    pub fn names(&self, path: &str) -> BTreeSet<String> {
        self.try_names(path).unwrap()
    }

    /// The names of a directory, unless it cannot be read now.
    pub fn try_names(&self, path: &str) -> Result<BTreeSet<String>, Error> {
        let ino = self.ino(path)?;
        let found = list(self.rt.as_ref().unwrap(), &*self.fs, ino)?;
        Ok(found.into_iter().map(|e| String::from_utf8(e.0).unwrap()).collect())
    }

    /// The whole tree, unless something cannot be read now.
    pub fn try_tree(&self) -> Result<Tree, Error> {
        tree(self.rt.as_ref().unwrap(), &*self.fs)
    }

    /// The whole tree as a program sees it.
    pub fn tree(&self) -> Tree {
        tree(self.rt.as_ref().unwrap(), &*self.fs).unwrap()
    }
}

/// What a name shows, times left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    pub kind: FileType,
    pub perm: u16,
    pub size: u64,
    /// Contents of a file, target of a link.
    pub bytes: Vec<u8>,
    /// Hard links; 0 for a directory.
    pub links: u32,
    /// The first path of the same inode.
    pub first: String,
}

pub type Tree = BTreeMap<String, Leaf>;

fn list(rt: &Runtime, ops: &dyn Ops, ino: Ino) -> Result<Vec<(Vec<u8>, Ino, FileType)>, Error> {
    let fh = rt.block_on(ops.opendir(WHO, ino))?;
    let (mut out, mut offset, mut seen) = (Vec::new(), 0, BTreeSet::new());
    loop {
        let part = rt.block_on(ops.readdir(WHO, ino, fh, offset, 100, false))?;
        let Some(last) = part.last() else { break };
        offset = last.next;
        for e in part.into_iter().filter(|e| e.name != b"." && e.name != b"..") {
            assert!(seen.insert(e.name.clone()), "a name was listed twice");
            out.push((e.name, e.attr.ino, e.attr.kind));
        }
    }
    rt.block_on(ops.releasedir(ino, fh))?;
    Ok(out)
}

/// The whole tree of any [`Ops`].
pub fn tree(rt: &Runtime, ops: &dyn Ops) -> Result<Tree, Error> {
    let mut out = Tree::new();
    let mut inodes: BTreeMap<Ino, Vec<String>> = BTreeMap::new();
    let mut todo = vec![(String::new(), ROOT)];
    while let Some((path, ino)) = todo.pop() {
        for (name, _, _) in list(rt, ops, ino)? {
            let path = format!("{path}/{}", String::from_utf8_lossy(&name));
            let attr = rt.block_on(ops.lookup(WHO, ino, &name))?.attr;
            let bytes = match attr.kind {
                FileType::File => contents(rt, ops, attr.ino)?,
                FileType::Symlink => rt.block_on(ops.readlink(WHO, attr.ino))?,
                _ => Vec::new(),
            };
            let size = if attr.kind == FileType::Dir { 0 } else { attr.size };
            match attr.kind {
                FileType::Dir => todo.push((path.clone(), attr.ino)),
                _ => ops.forget(attr.ino, 1),
            }
            let links = if attr.kind == FileType::Dir { 0 } else { attr.nlink };
            inodes.entry(attr.ino).or_default().push(path.clone());
            out.insert(path, Leaf { kind: attr.kind, perm: attr.perm, size, bytes, links, first: String::new() });
        }
        if ino != ROOT {
            ops.forget(ino, 1);
        }
    }
    for paths in inodes.into_values() {
        let first = paths.iter().min().cloned().unwrap_or_default();
        for path in paths {
            if let Some(leaf) = out.get_mut(&path) {
                leaf.first.clone_from(&first);
            }
        }
    }
    Ok(out)
}

fn contents(rt: &Runtime, ops: &dyn Ops, ino: Ino) -> Result<Vec<u8>, Error> {
    let opened = rt.block_on(ops.open(WHO, ino, libc::O_RDONLY))?;
    let mut out = Vec::new();
    loop {
        let got = rt.block_on(ops.read(WHO, ino, opened.fh, out.len() as u64, 128 << 10))?;
        out.extend_from_slice(&got);
        if got.len() < 128 << 10 {
            break;
        }
    }
    rt.block_on(ops.release(ino, opened.fh))?;
    Ok(out)
}

/// Names the first difference of two trees.
#[track_caller]
pub fn same(what: &str, expected: &Tree, found: &Tree) {
    let names = |t: &Tree| t.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(expected), names(found), "{what}: names");
    for (path, e) in expected {
        let f = &found[path];
        assert_eq!((e.kind, e.perm, e.size), (f.kind, f.perm, f.size), "{what}: {path}");
        assert_eq!((e.links, &e.first), (f.links, &f.first), "{what}: {path}");
        let at = e.bytes.iter().zip(&f.bytes).position(|(a, b)| a != b);
        assert!(e.bytes == f.bytes, "{what}: {path}: {} and {} bytes differ from {at:?} on", e.bytes.len(), f.bytes.len());
    }
}

/// Bytes that differ from place to place and from seed to seed.
pub fn data(seed: u8, len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8 ^ seed.wrapping_mul(31)).collect()
}
