//! A disk in memory for tests: it can run full, fail, be killed and lose power, all from one seed.
//!
//! Every file has a live image (what the process sees) and a durable one (what [`DiskFile::sync_data`] promised), and so have
//! the names of the tree. [`SimDisk::crash`] with [`Crash::Power`] keeps what was durable and an arbitrary part of the rest:
//! none, all, a prefix that ends within a write, or any subset of 512-byte sectors with zeros in between. Handles opened
//! before a crash fail from then on, as those of a dead process would.

mod crash;
mod process;

use self::process::Process;
use super::{Access, Disk, DiskFile, Entry, EntryKind, LockGuard, Space, check_dir, check_path, split};
use crate::error::{Kind, Result, fail};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Free bytes of a disk without a limit.
const BOUNDLESS: u64 = 1 << 40;

/// How the world ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process is killed: all that was written is there (the kernel has it), locks are free.
    Kill,
    /// Power is lost: what was not synced is gone in part or whole.
    Power,
}

/// Failures to come. The default is none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Bytes that the disk holds in all; a write beyond writes what fits and fails with `NoSpace`.
    pub capacity: Option<u64>,
    /// The write this many writes from now (0 = the next) stops half-way with an input/output error.
    pub fail_write: Option<u64>,
    /// The same for syncs of files and directories.
    pub fail_sync: Option<u64>,
    /// The same for reads.
    pub fail_read: Option<u64>,
    /// The same for truncations.
    pub fail_truncate: Option<u64>,
}

/// The disk. Clones share it.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

struct State {
    inodes: BTreeMap<u64, Inode>,
    live: Names,
    durable: Names,
    name_ops: Vec<NameOp>,
    faults: Faults,
    seed: u64,
    next_inode: u64,
    life: u64,
    locks: BTreeSet<String>,
}

type Names = BTreeMap<String, Node>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Node {
    Dir,
    File(u64),
}

#[derive(Default)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<FileOp>,
}

enum FileOp {
    Write(u64, Vec<u8>),
    Truncate(u64),
}

enum NameOp {
    Put(String, Node),
    Rename(String, String),
    Remove(String),
}

impl SimDisk {
    /// An empty disk; `seed` decides what crashes leave.
    pub fn new(seed: u64) -> SimDisk {
        let state = State {
            inodes: BTreeMap::new(),
            live: Names::new(),
            durable: Names::new(),
            name_ops: Vec::new(),
            faults: Faults::default(),
            seed,
            next_inode: 1,
            life: 0,
            locks: BTreeSet::new(),
        };
        SimDisk { state: Arc::new(Mutex::new(state)) }
    }

    /// The disk as a process sees it: dead from the next crash on, unlike this object, which is the drive itself. What runs
    /// threads of its own is given this one, or its threads would go on writing after their death.
    pub fn process(&self) -> Arc<dyn Disk> {
        Arc::new(Process { disk: self.clone(), life: self.state.lock().life })
    }

    /// Arms faults; the ones before are forgotten.
    pub fn set_faults(&self, faults: Faults) {
        self.state.lock().faults = faults;
    }

    /// Ends the process or the power. The disk goes on with what is left; older handles, and [`SimDisk::process`], fail.
    pub fn crash(&self, how: Crash) {
        let state = &mut *self.state.lock();
        state.life += 1;
        state.locks.clear();
        if how == Crash::Power {
            state.lose_power();
        }
    }

    /// Changes a file behind everybody's back, in the live and the durable image. For tests of tampering.
    pub fn tamper(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        let state = &mut *self.state.lock();
        let inode = state.file(path)?;
        if let Some(i) = state.inodes.get_mut(&inode) {
            change(&mut i.live);
            i.durable.clone_from(&i.live);
            i.pending.clear();
        }
        Ok(())
    }

    /// Contents of every file as the process sees them.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.state.lock();
        state.images(&state.live, |i| &i.live)
    }

    /// Contents of every file as the drive has promised to keep them.
    pub fn durable_files(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.state.lock();
        state.images(&state.durable, |i| &i.durable)
    }

    /// Whether `needle` is anywhere on the drive: in live, durable or unsynced bytes of files that are there or were removed
    /// since the last crash, or in a name.
    pub fn holds(&self, needle: &[u8]) -> bool {
        let found = |hay: &[u8]| hay.windows(needle.len().max(1)).any(|w| w == needle);
        let state = self.state.lock();
        let names = state.live.keys().chain(state.durable.keys());
        let pending = |i: &Inode| i.pending.iter().any(|op| matches!(op, FileOp::Write(_, d) if found(d)));
        names.into_iter().any(|n| found(n.as_bytes()))
            || state.inodes.values().any(|i| found(&i.live) || found(&i.durable) || pending(i))
    }

    fn handle(&self, inode: u64, life: u64) -> Arc<dyn DiskFile> {
        Arc::new(SimFile { state: self.state.clone(), inode, life })
    }
}

/// Counts a fault down; true when it strikes now.
fn strikes(fault: &mut Option<u64>) -> bool {
    match fault {
        Some(0) => {
            *fault = None;
            true
        }
        Some(n) => {
            *n -= 1;
            false
        }
        None => false,
    }
}

fn broken<T>(what: &str) -> Result<T> {
    fail(Kind::Unavailable, format!("{what} a local file: input/output error (simulated)"))
}

/// Writes `data` at `offset`, with zeros in a gap before it.
fn put(image: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + data.len());
    if image.len() < end {
        image.resize(end, 0);
    }
    image[start..end].copy_from_slice(data);
}

impl FileOp {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            FileOp::Write(offset, data) => put(image, *offset, data),
            FileOp::Truncate(len) => image.resize(*len as usize, 0),
        }
    }
}

impl NameOp {
    fn apply(&self, names: &mut Names) {
        match self {
            NameOp::Put(path, node) => {
                names.insert(path.clone(), *node);
            }
            NameOp::Remove(path) => {
                names.remove(path);
            }
            NameOp::Rename(from, to) => move_names(names, from, to),
        }
    }

    fn touches(&self, dir: &str) -> bool {
        match self {
            NameOp::Put(path, _) | NameOp::Remove(path) => split(path).0 == dir,
            NameOp::Rename(from, to) => split(from).0 == dir || split(to).0 == dir,
        }
    }
}

/// Moves a file, or a directory with all below it. A missing source (lost in a crash) moves nothing.
fn move_names(names: &mut Names, from: &str, to: &str) {
    let below = format!("{from}/");
    let moved: Vec<String> = names.keys().filter(|p| *p == from || p.starts_with(&below)).cloned().collect();
    for old in moved {
        if let Some(node) = names.remove(&old) {
            names.insert(format!("{to}{}", &old[from.len()..]), node);
        }
    }
}

impl State {
    fn images(&self, names: &Names, of: impl Fn(&Inode) -> &Vec<u8>) -> BTreeMap<String, Vec<u8>> {
        let file = |(path, node): (&String, &Node)| match node {
            Node::File(i) => self.inodes.get(i).map(|i| (path.clone(), of(i).clone())),
            Node::Dir => None,
        };
        names.iter().filter_map(file).collect()
    }

    fn file(&self, path: &str) -> Result<u64> {
        check_path(path)?;
        match self.live.get(path) {
            Some(Node::File(inode)) => Ok(*inode),
            Some(Node::Dir) => fail(Kind::IsDir, "a local path is a directory and should be a file"),
            None => fail(Kind::NotFound, "a local file does not exist"),
        }
    }

    fn need_dir(&self, path: &str) -> Result<()> {
        match self.live.get(path) {
            _ if path.is_empty() => Ok(()),
            Some(Node::Dir) => Ok(()),
            Some(Node::File(_)) => fail(Kind::NotDir, "a local path is a file and should be a directory"),
            None => fail(Kind::NotFound, "a local directory does not exist"),
        }
    }

    fn change_name(&mut self, op: NameOp) {
        op.apply(&mut self.live);
        self.name_ops.push(op);
    }

    fn used(&self) -> u64 {
        let size = |n: &Node| if let Node::File(i) = n { self.inodes.get(i).map_or(0, |i| i.live.len() as u64) } else { 0 };
        self.live.values().map(size).sum()
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &str, access: Access) -> Result<Arc<dyn DiskFile>> {
        let state = &mut *self.state.lock();
        let life = state.life;
        match state.file(path) {
            Ok(_) if access == Access::CreateNew => fail(Kind::Exists, "a local file exists already"),
            Ok(inode) => Ok(self.handle(inode, life)),
            Err(e) if e.kind() == Kind::NotFound && matches!(access, Access::Create | Access::CreateNew) => {
                state.need_dir(split(path).0)?;
                let inode = state.next_inode;
                state.next_inode += 1;
                state.inodes.insert(inode, Inode::default());
                state.change_name(NameOp::Put(path.to_owned(), Node::File(inode)));
                Ok(self.handle(inode, life))
            }
            Err(e) => Err(e),
        }
    }

    fn make_dir(&self, path: &str) -> Result<()> {
        check_dir(path)?;
        let state = &mut *self.state.lock();
        let ends = path.match_indices('/').map(|(i, _)| i).chain(std::iter::once(path.len()));
        for end in ends.filter(|end| *end > 0) {
            match state.live.get(&path[..end]) {
                Some(Node::Dir) => {}
                Some(Node::File(_)) => return fail(Kind::NotDir, "a local path is a file and should be a directory"),
                None => state.change_name(NameOp::Put(path[..end].to_owned(), Node::Dir)),
            }
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        check_path(from)?;
        check_path(to)?;
        let state = &mut *self.state.lock();
        state.need_dir(split(to).0)?;
        match (state.live.get(from), state.live.get(to)) {
            (None, _) => fail(Kind::NotFound, "a local file does not exist"),
            (Some(Node::File(_)), Some(Node::Dir)) => fail(Kind::IsDir, "a directory is in the way"),
            (Some(Node::Dir), Some(_)) => fail(Kind::Exists, "something is in the way"),
            _ => {
                state.change_name(NameOp::Rename(from.to_owned(), to.to_owned()));
                Ok(())
            }
        }
    }

    fn remove(&self, path: &str) -> Result<()> {
        let state = &mut *self.state.lock();
        state.file(path)?;
        state.change_name(NameOp::Remove(path.to_owned()));
        Ok(())
    }

    fn remove_dir(&self, path: &str) -> Result<()> {
        check_path(path)?;
        let state = &mut *self.state.lock();
        state.need_dir(path)?;
        if state.live.keys().any(|p| split(p).0 == path) {
            return fail(Kind::NotEmpty, "a local directory is not empty");
        }
        state.change_name(NameOp::Remove(path.to_owned()));
        Ok(())
    }

    fn list(&self, dir: &str) -> Result<Vec<Entry>> {
        check_dir(dir)?;
        let state = self.state.lock();
        state.need_dir(dir)?;
        let mut entries = Vec::new();
        for (path, node) in state.live.iter().filter(|(p, _)| split(p).0 == dir) {
            let name = split(path).1.to_owned();
            entries.push(match node {
                Node::Dir => Entry { name, kind: EntryKind::Dir, len: 0 },
                Node::File(i) => {
                    Entry { name, kind: EntryKind::File, len: state.inodes.get(i).map_or(0, |i| i.live.len() as u64) }
                }
            });
        }
        Ok(entries)
    }

    fn len(&self, path: &str) -> Result<u64> {
        let state = self.state.lock();
        let inode = state.file(path)?;
        Ok(state.inodes.get(&inode).map_or(0, |i| i.live.len() as u64))
    }

    fn sync_dir(&self, dir: &str) -> Result<()> {
        check_dir(dir)?;
        let state = &mut *self.state.lock();
        state.need_dir(dir)?;
        if strikes(&mut state.faults.fail_sync) {
            return broken("syncing");
        }
        let (done, rest) = std::mem::take(&mut state.name_ops).into_iter().partition(|op| op.touches(dir));
        state.name_ops = rest;
        let done: Vec<NameOp> = done;
        done.iter().for_each(|op| op.apply(&mut state.durable));
        Ok(())
    }

    fn space(&self) -> Result<Space> {
        let state = self.state.lock();
        let total = state.faults.capacity.unwrap_or(BOUNDLESS);
        Ok(Space { free: total.saturating_sub(state.used()), total })
    }

    fn lock(&self, path: &str) -> Result<Box<dyn LockGuard>> {
        self.open(path, Access::Create)?;
        let state = &mut *self.state.lock();
        if !state.locks.insert(path.to_owned()) {
            return fail(Kind::Busy, format!("in use by another process (lock file {path})"));
        }
        Ok(Box::new(SimLock { state: self.state.clone(), path: path.to_owned(), life: state.life }))
    }

    fn describe(&self) -> String {
        "a simulated disk".to_owned()
    }
}

struct SimLock {
    state: Arc<Mutex<State>>,
    path: String,
    life: u64,
}

impl LockGuard for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let state = &mut *self.state.lock();
        if state.life == self.life {
            state.locks.remove(&self.path);
        }
    }
}

struct SimFile {
    state: Arc<Mutex<State>>,
    inode: u64,
    life: u64,
}

impl SimFile {
    /// Runs `f` on the state unless the process that opened this handle is dead.
    fn alive<T>(&self, f: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let state = &mut *self.state.lock();
        if state.life != self.life || !state.inodes.contains_key(&self.inode) {
            return fail(Kind::Unavailable, "this handle was opened before a (simulated) crash");
        }
        f(state)
    }

    fn change(&self, state: &mut State, op: FileOp) {
        if let Some(inode) = state.inodes.get_mut(&self.inode) {
            op.apply(&mut inode.live);
            inode.pending.push(op);
        }
    }
}

impl DiskFile for SimFile {
    fn pread(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.alive(|state| {
            if strikes(&mut state.faults.fail_read) {
                return broken("reading");
            }
            let live = &state.inodes[&self.inode].live;
            let start = live.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
            let n = buf.len().min(live.len() - start);
            buf[..n].copy_from_slice(&live[start..start + n]);
            Ok(n)
        })
    }

    fn pwrite(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.alive(|state| {
            if strikes(&mut state.faults.fail_write) {
                self.change(state, FileOp::Write(offset, data[..data.len() / 2].to_vec()));
                return broken("writing");
            }
            let len = state.inodes[&self.inode].live.len() as u64;
            let room = state.faults.capacity.map_or(BOUNDLESS, |c| c.saturating_sub(state.used()));
            let fits = (len + room).saturating_sub(offset).min(data.len() as u64) as usize;
            if fits > 0 {
                self.change(state, FileOp::Write(offset, data[..fits].to_vec()));
            }
            if fits < data.len() {
                return fail(Kind::NoSpace, "writing a local file: no space left (simulated)");
            }
            Ok(())
        })
    }

    fn len(&self) -> Result<u64> {
        self.alive(|state| Ok(state.inodes[&self.inode].live.len() as u64))
    }

    fn truncate(&self, len: u64) -> Result<()> {
        self.alive(|state| {
            if strikes(&mut state.faults.fail_truncate) {
                return broken("cutting");
            }
            self.change(state, FileOp::Truncate(len));
            Ok(())
        })
    }

    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        self.alive(|state| {
            let end = (state.inodes[&self.inode].live.len() as u64).min(offset.saturating_add(len));
            if offset < end {
                self.change(state, FileOp::Write(offset, vec![0; (end - offset) as usize]));
            }
            Ok(())
        })
    }

    fn sync_data(&self) -> Result<()> {
        self.alive(|state| {
            if strikes(&mut state.faults.fail_sync) {
                return broken("syncing");
            }
            if let Some(inode) = state.inodes.get_mut(&self.inode) {
                inode.durable.clone_from(&inode.live);
                inode.pending.clear();
            }
            Ok(())
        })
    }

    fn pwrite_durable(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.pwrite(offset, data)?;
        self.alive(|state| {
            if strikes(&mut state.faults.fail_sync) {
                return broken("syncing");
            }
            if let Some(inode) = state.inodes.get_mut(&self.inode) {
                inode.sync_range(offset..offset + data.len() as u64);
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests;
