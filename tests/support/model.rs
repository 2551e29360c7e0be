//! The reference filesystem: everything [`Ops`] asks, in memory, written to be obviously right rather than fast.
//!
//! It is the oracle of the property tests and the ceiling of the benches. One lock, one table of inodes, one table of handles.

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use smpfs::error::{Error, Kind, Result, fail};
use smpfs::ops::*;
use smpfs::types::{NAME_MAX, Time};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;

/// Larger files are refused: the model holds every byte.
pub const MAX_FILE: u64 = 8 << 30;
/// The filesystem.
pub struct ModelFs {
    state: Mutex<State>,
    invalidations: Arc<Invalidations>,
    keep_cache: bool,
    direct_io: bool,
    ttl: Duration,
    faults: Mutex<HashMap<Ino, Fault>>,
    healed: Notify,
}

/// What goes wrong when an inode is opened, read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operation waits until [`ModelFs::heal`].
    Hang,
    /// The operation panics.
    Panic,
}

struct State {
    inodes: HashMap<Ino, Inode>,
    handles: HashMap<u64, Handle>,
    next_ino: Ino,
    next_fh: u64,
    next_cookie: u64,
}

struct Handle {
    ino: Ino,
    flags: i32,
}

struct Inode {
    attr: Attr,
    body: Body,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    lookups: u64,
    opens: u64,
}

enum Body {
    File(Arc<Vec<u8>>),
    Dir(Dir),
    Symlink(Vec<u8>),
    Special,
}

/// A directory. Every entry has a cookie that it keeps for life: a listing goes on behind the last cookie, whatever changed.
struct Dir {
    parent: Ino,
    names: BTreeMap<Vec<u8>, (Ino, u64)>,
    cookies: BTreeMap<u64, Vec<u8>>,
}

/// Shared bytes of a file, for reads without a copy.
struct View(Arc<Vec<u8>>);

impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn now() -> Time {
    let d = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Time { sec: d.as_secs() as i64, nsec: d.subsec_nanos() }
}

fn check_name(name: &[u8]) -> Result<()> {
    match name {
        b"" | b"." | b".." => fail(Kind::Invalid, "not a name"),
        n if n.len() > NAME_MAX => fail(Kind::NameTooLong, "a name of more than 255 bytes"),
        n if n.contains(&b'/') || n.contains(&0) => fail(Kind::Invalid, "not a name"),
        _ => Ok(()),
    }
}

impl Default for ModelFs {
    fn default() -> Self {
        ModelFs::new()
    }
}

impl ModelFs {
    /// An empty filesystem.
    pub fn new() -> ModelFs {
        let mut state = State { inodes: HashMap::new(), handles: HashMap::new(), next_ino: ROOT, next_fh: 1, next_cookie: 3 };
        let root = state.make(Caller::default(), FileType::Dir, 0o755, 0, Body::Dir(Dir::new(ROOT)));
        // The root is always known.
        state.inodes.get_mut(&root).unwrap().lookups = 1;
        ModelFs {
            state: Mutex::new(state),
            invalidations: Arc::new(Invalidations::default()),
            keep_cache: false,
            direct_io: false,
            ttl: Duration::from_secs(1),
            faults: Mutex::default(),
            healed: Notify::new(),
        }
    }

    /// The same, with the kernel believing names and attributes for `ttl`.
    pub fn ttl(mut self, ttl: Duration) -> ModelFs {
        self.ttl = ttl;
        self
    }

    /// From now on, opening, reading and writing `ino` goes wrong.
    pub fn break_inode(&self, ino: Ino, fault: Fault) {
        self.faults.lock().insert(ino, fault);
    }

    /// Ends all faults; what hangs goes on.
    pub fn heal(&self) {
        self.faults.lock().clear();
        self.healed.notify_waiters();
    }

    async fn fault(&self, ino: Ino) {
        loop {
            let healed = self.healed.notified();
            let fault = self.faults.lock().get(&ino).copied();
            match fault {
                None => return,
                Some(Fault::Hang) => healed.await,
                Some(Fault::Panic) => panic!("a fault put in by a test"),
            }
        }
    }

    fn is_broken(&self, ino: Ino) -> bool {
        self.faults.lock().contains_key(&ino)
    }

    fn found(&self, attr: Attr) -> Found {
        Found { attr, ttl: self.ttl }
    }

    /// The same, telling the kernel to keep pages over opens.
    pub fn keep_cache(mut self) -> ModelFs {
        self.keep_cache = true;
        self
    }

    /// The same, telling the kernel to hold no pages at all.
    pub fn direct_io(mut self) -> ModelFs {
        self.direct_io = true;
        self
    }

    /// Changes a file's bytes behind the kernel's back, as another machine would, and says so to nobody.
    pub fn change_behind(&self, ino: Ino, bytes: &[u8]) {
        let mut st = self.state.lock();
        let node = st.inodes.get_mut(&ino).unwrap();
        node.body = Body::File(Arc::new(bytes.to_vec()));
        node.attr.size = bytes.len() as u64;
        node.attr.mtime = now();
    }

    /// Adds an empty file behind the kernel's back.
    pub fn add_behind(&self, parent: Ino, name: &[u8]) -> Ino {
        let mut st = self.state.lock();
        let ino = st.make(Caller::default(), FileType::File, 0o644, 0, Body::File(Arc::default()));
        st.insert(parent, name, ino).unwrap();
        ino
    }

    /// Removes a name behind the kernel's back.
    pub fn remove_behind(&self, parent: Ino, name: &[u8]) {
        self.state.lock().remove(parent, name).unwrap();
    }

    /// Inode number of a name in the root.
    pub fn ino_of(&self, name: &[u8]) -> Option<Ino> {
        self.state.lock().child(ROOT, name).ok()
    }

    /// Handles that are open and inodes that are held: what a leak would show in.
    pub fn held(&self) -> (usize, usize) {
        let st = self.state.lock();
        (st.handles.len(), st.inodes.values().filter(|n| n.lookups > 0).count())
    }

    fn opened(&self, fh: u64) -> Opened {
        Opened { fh, keep_cache: self.keep_cache, direct_io: self.direct_io }
    }
}

impl Dir {
    fn new(parent: Ino) -> Dir {
        Dir { parent, names: BTreeMap::new(), cookies: BTreeMap::new() }
    }
}

impl State {
    fn make(&mut self, who: Caller, kind: FileType, perm: u16, rdev: u64, body: Body) -> Ino {
        let ino = self.next_ino;
        self.next_ino += 1;
        let t = now();
        let size = if let Body::Symlink(target) = &body { target.len() as u64 } else { 0 };
        let attr = Attr {
            ino,
            size,
            blocks: 0,
            atime: t,
            mtime: t,
            ctime: t,
            btime: t,
            kind,
            perm,
            nlink: if kind == FileType::Dir { 2 } else { 0 },
            uid: who.uid,
            gid: who.gid,
            rdev,
        };
        self.inodes.insert(ino, Inode { attr, body, xattrs: BTreeMap::new(), lookups: 0, opens: 0 });
        ino
    }

    fn node(&self, ino: Ino) -> Result<&Inode> {
        self.inodes.get(&ino).ok_or_else(|| Error::new(Kind::Stale, "no such inode"))
    }

    fn node_mut(&mut self, ino: Ino) -> Result<&mut Inode> {
        self.inodes.get_mut(&ino).ok_or_else(|| Error::new(Kind::Stale, "no such inode"))
    }

    fn dir(&self, ino: Ino) -> Result<&Dir> {
        match &self.node(ino)?.body {
            Body::Dir(d) => Ok(d),
            _ => fail(Kind::NotDir, "not a directory"),
        }
    }

    fn dir_mut(&mut self, ino: Ino) -> Result<&mut Dir> {
        match &mut self.node_mut(ino)?.body {
            Body::Dir(d) => Ok(d),
            _ => fail(Kind::NotDir, "not a directory"),
        }
    }

    fn is_dir(&self, ino: Ino) -> bool {
        matches!(self.inodes.get(&ino), Some(Inode { body: Body::Dir(_), .. }))
    }

    fn child(&self, parent: Ino, name: &[u8]) -> Result<Ino> {
        let found = self.dir(parent)?.names.get(name);
        found.map(|(ino, _)| *ino).ok_or_else(|| Error::new(Kind::NotFound, "no such name"))
    }

    /// A directory that can take new names: it has not been removed.
    fn check_alive(&self, dir: Ino) -> Result<()> {
        self.dir(dir)?;
        if self.node(dir)?.attr.nlink == 0 { fail(Kind::NotFound, "the directory was removed") } else { Ok(()) }
    }

    fn check_new(&self, parent: Ino, name: &[u8]) -> Result<()> {
        check_name(name)?;
        self.check_alive(parent)?;
        if self.child(parent, name).is_ok() { fail(Kind::Exists, "the name exists") } else { Ok(()) }
    }

    /// Puts `ino` under a free name; link counts follow.
    fn insert(&mut self, parent: Ino, name: &[u8], ino: Ino) -> Result<()> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let dir = self.dir_mut(parent)?;
        dir.names.insert(name.to_vec(), (ino, cookie));
        dir.cookies.insert(cookie, name.to_vec());
        self.touch(parent)?;
        if self.is_dir(ino) {
            self.dir_mut(ino)?.parent = parent;
            self.node_mut(parent)?.attr.nlink += 1;
        } else {
            self.node_mut(ino)?.attr.nlink += 1;
        }
        self.node_mut(ino)?.attr.ctime = now();
        Ok(())
    }

    /// Takes a name away; the inode stays until nobody holds it. A directory's own count is left to the caller.
    fn remove(&mut self, parent: Ino, name: &[u8]) -> Result<Ino> {
        let dir = self.dir_mut(parent)?;
        let (ino, cookie) = dir.names.remove(name).ok_or_else(|| Error::new(Kind::NotFound, "no such name"))?;
        dir.cookies.remove(&cookie);
        self.touch(parent)?;
        if self.is_dir(ino) {
            self.node_mut(parent)?.attr.nlink -= 1;
        } else {
            self.node_mut(ino)?.attr.nlink -= 1;
        }
        self.node_mut(ino)?.attr.ctime = now();
        self.reap(ino);
        Ok(ino)
    }

    fn touch(&mut self, ino: Ino) -> Result<()> {
        let t = now();
        let attr = &mut self.node_mut(ino)?.attr;
        (attr.mtime, attr.ctime) = (t, t);
        Ok(())
    }

    /// Frees an inode without links, lookups and handles.
    fn reap(&mut self, ino: Ino) {
        if self.inodes.get(&ino).is_some_and(|n| n.attr.nlink == 0 && n.lookups == 0 && n.opens == 0) {
            self.inodes.remove(&ino);
        }
    }

    fn entry(&mut self, ino: Ino) -> Result<Attr> {
        let node = self.node_mut(ino)?;
        node.lookups += 1;
        Ok(node.attr)
    }

    fn open(&mut self, ino: Ino, flags: i32) -> Result<u64> {
        self.node_mut(ino)?.opens += 1;
        let fh = self.next_fh;
        self.next_fh += 1;
        self.handles.insert(fh, Handle { ino, flags });
        Ok(fh)
    }

    fn close(&mut self, fh: u64) -> Result<()> {
        let handle = self.handles.remove(&fh).ok_or_else(|| Error::new(Kind::Invalid, "no such handle"))?;
        self.node_mut(handle.ino)?.opens -= 1;
        self.reap(handle.ino);
        Ok(())
    }

    fn data_mut(&mut self, ino: Ino) -> Result<&mut Vec<u8>> {
        match &mut self.node_mut(ino)?.body {
            Body::File(data) => Ok(Arc::make_mut(data)),
            Body::Dir(_) => fail(Kind::IsDir, "a directory has no bytes"),
            _ => fail(Kind::Invalid, "not a regular file"),
        }
    }

    fn data(&self, ino: Ino) -> Result<&Arc<Vec<u8>>> {
        match &self.node(ino)?.body {
            Body::File(data) => Ok(data),
            Body::Dir(_) => fail(Kind::IsDir, "a directory has no bytes"),
            _ => fail(Kind::Invalid, "not a regular file"),
        }
    }

    fn resized(&mut self, ino: Ino) -> Result<()> {
        let size = self.data(ino)?.len() as u64;
        let attr = &mut self.node_mut(ino)?.attr;
        attr.size = size;
        attr.blocks = size.div_ceil(512);
        self.touch(ino)
    }

    fn truncate(&mut self, ino: Ino, size: u64) -> Result<()> {
        if size > MAX_FILE {
            return fail(Kind::TooLarge, "larger than the model holds");
        }
        self.data_mut(ino)?.resize(size as usize, 0);
        self.resized(ino)
    }

    fn read(&self, ino: Ino, offset: u64, size: u32) -> Result<Bytes> {
        let data = self.data(ino)?;
        let from = offset.min(data.len() as u64) as usize;
        let to = (from + size as usize).min(data.len());
        Ok(Bytes::from_owner(View(data.clone())).slice(from..to))
    }

    /// Whether `dir` is `ancestor` or lies below it.
    fn is_below(&self, dir: Ino, ancestor: Ino) -> Result<bool> {
        let mut at = dir;
        loop {
            if at == ancestor {
                return Ok(true);
            }
            let parent = self.dir(at)?.parent;
            if parent == at {
                return Ok(false);
            }
            at = parent;
        }
    }

    /// The checks of renameat2(2) in the kernel's order. Returns the inode moved and the inode in its way.
    fn check_rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), flags: u32) -> Result<(Ino, Option<Ino>)> {
        check_name(from.1)?;
        check_name(to.1)?;
        let exchange = flags & libc::RENAME_EXCHANGE != 0;
        self.check_alive(to.0)?;
        let ino = self.child(from.0, from.1)?;
        let target = self.child(to.0, to.1).ok();
        match target {
            Some(_) if flags & libc::RENAME_NOREPLACE != 0 => return fail(Kind::Exists, "the new name exists"),
            None if exchange => return fail(Kind::NotFound, "there is nothing to exchange with"),
            _ => {}
        }
        if self.is_dir(ino) && self.is_below(to.0, ino)? {
            return fail(Kind::Invalid, "a directory cannot move into itself");
        }
        let Some(other) = target else { return Ok((ino, None)) };
        if self.is_dir(other) && self.is_below(from.0, other)? {
            let kind = if exchange { Kind::Invalid } else { Kind::NotEmpty };
            return fail(kind, "a directory cannot replace what holds it");
        }
        if ino == other || exchange {
            return Ok((ino, target));
        }
        match (self.is_dir(ino), self.is_dir(other)) {
            (true, false) => fail(Kind::NotDir, "a directory cannot replace a file"),
            (false, true) => fail(Kind::IsDir, "a file cannot replace a directory"),
            (true, true) if !self.dir(other)?.names.is_empty() => fail(Kind::NotEmpty, "the directory is not empty"),
            _ => Ok((ino, target)),
        }
    }

    fn rename(&mut self, from: (Ino, &[u8]), to: (Ino, &[u8]), flags: u32) -> Result<()> {
        if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE) != 0
            || flags == libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE
        {
            return fail(Kind::Invalid, "unknown rename flags");
        }
        let (ino, target) = self.check_rename(from, to, flags)?;
        // Two names of one file: POSIX says that nothing happens.
        if target == Some(ino) {
            return Ok(());
        }
        // Held while it has no name.
        self.node_mut(ino)?.opens += 1;
        self.remove(from.0, from.1)?;
        if let Some(other) = target {
            if flags & libc::RENAME_EXCHANGE != 0 {
                self.node_mut(other)?.opens += 1;
                self.remove(to.0, to.1)?;
                self.insert(from.0, from.1, other)?;
                self.node_mut(other)?.opens -= 1;
            } else {
                self.drop_name(to.0, to.1)?;
            }
        }
        self.insert(to.0, to.1, ino)?;
        self.node_mut(ino)?.opens -= 1;
        Ok(())
    }

    /// Removes a name for good: an empty directory loses its last links.
    fn drop_name(&mut self, parent: Ino, name: &[u8]) -> Result<()> {
        let ino = self.remove(parent, name)?;
        if self.is_dir(ino) {
            self.node_mut(ino)?.attr.nlink = 0;
            self.reap(ino);
        }
        Ok(())
    }

    fn list(&mut self, ino: Ino, offset: u64, max: usize, plus: bool, ttl: Duration) -> Result<Vec<DirEntry>> {
        let dir = self.dir(ino)?;
        let dots = [(1, b".".to_vec(), ino), (2, b"..".to_vec(), dir.parent)];
        let rest = dir.cookies.range(offset.saturating_add(1).max(3)..).map(|(c, n)| (*c, n.clone(), dir.names[n].0));
        let wanted: Vec<_> = dots.into_iter().filter(|d| d.0 > offset).chain(rest).take(max).collect();
        let mut out = Vec::with_capacity(wanted.len());
        for (next, name, child) in wanted {
            let node = self.node_mut(child)?;
            if plus && next > 2 {
                node.lookups += 1;
            }
            out.push(DirEntry { name, attr: node.attr, ttl, next });
        }
        Ok(out)
    }

    fn set(&mut self, ino: Ino, set: SetAttr) -> Result<Attr> {
        if let Some(size) = set.size {
            self.truncate(ino, size)?;
        }
        let t = now();
        let attr = &mut self.node_mut(ino)?.attr;
        let pick = |s: SetTime| if let SetTime::To(t) = s { t } else { t };
        attr.perm = set.perm.unwrap_or(attr.perm);
        attr.uid = set.uid.unwrap_or(attr.uid);
        attr.gid = set.gid.unwrap_or(attr.gid);
        attr.atime = set.atime.map_or(attr.atime, pick);
        attr.mtime = set.mtime.map_or(attr.mtime, pick);
        attr.ctime = t;
        Ok(*attr)
    }
}

#[async_trait]
impl Ops for ModelFs {
    async fn lookup(&self, _who: Caller, parent: Ino, name: &[u8]) -> Result<Found> {
        let mut st = self.state.lock();
        let ino = st.child(parent, name)?;
        st.entry(ino).map(|a| self.found(a))
    }
    fn lookup_now(&self, _who: Caller, parent: Ino, name: &[u8]) -> Option<Result<Found>> {
        let mut st = self.state.lock();
        Some(st.child(parent, name).and_then(|ino| st.entry(ino)).map(|a| self.found(a)))
    }
    fn forget(&self, ino: Ino, n: u64) {
        let mut st = self.state.lock();
        if let Some(node) = st.inodes.get_mut(&ino) {
            assert!(node.lookups >= n, "more forgotten than looked up");
            node.lookups -= n;
        }
        st.reap(ino);
    }
    async fn getattr(&self, _who: Caller, ino: Ino) -> Result<Found> {
        Ok(self.found(self.state.lock().node(ino)?.attr))
    }
    fn getattr_now(&self, _who: Caller, ino: Ino) -> Option<Result<Found>> {
        Some(self.state.lock().node(ino).map(|n| self.found(n.attr)))
    }
    async fn setattr(&self, _who: Caller, ino: Ino, _fh: Option<u64>, set: SetAttr) -> Result<Found> {
        self.state.lock().set(ino, set).map(|a| self.found(a))
    }
    async fn readlink(&self, _who: Caller, ino: Ino) -> Result<Vec<u8>> {
        match &self.state.lock().node(ino)?.body {
            Body::Symlink(target) => Ok(target.clone()),
            _ => fail(Kind::Invalid, "not a symbolic link"),
        }
    }
    async fn mknod(&self, who: Caller, parent: Ino, name: &[u8], new: NewNode) -> Result<Found> {
        let mut st = self.state.lock();
        st.check_new(parent, name)?;
        let body = if new.kind == FileType::File { Body::File(Arc::default()) } else { Body::Special };
        let ino = st.make(who, new.kind, new.perm, new.rdev, body);
        st.insert(parent, name, ino)?;
        st.entry(ino).map(|a| self.found(a))
    }
    async fn mkdir(&self, who: Caller, parent: Ino, name: &[u8], perm: u16) -> Result<Found> {
        let mut st = self.state.lock();
        st.check_new(parent, name)?;
        let ino = st.make(who, FileType::Dir, perm, 0, Body::Dir(Dir::new(parent)));
        st.insert(parent, name, ino)?;
        st.entry(ino).map(|a| self.found(a))
    }
    async fn unlink(&self, _who: Caller, parent: Ino, name: &[u8]) -> Result<()> {
        let mut st = self.state.lock();
        let ino = st.child(parent, name)?;
        if st.is_dir(ino) {
            return fail(Kind::IsDir, "a directory");
        }
        st.drop_name(parent, name)
    }
    async fn rmdir(&self, _who: Caller, parent: Ino, name: &[u8]) -> Result<()> {
        let mut st = self.state.lock();
        let ino = st.child(parent, name)?;
        if !st.dir(ino)?.names.is_empty() {
            return fail(Kind::NotEmpty, "the directory is not empty");
        }
        st.drop_name(parent, name)
    }
    async fn symlink(&self, who: Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Found> {
        let mut st = self.state.lock();
        st.check_new(parent, name)?;
        let ino = st.make(who, FileType::Symlink, 0o777, 0, Body::Symlink(target.to_vec()));
        st.insert(parent, name, ino)?;
        st.entry(ino).map(|a| self.found(a))
    }
    async fn rename(&self, _w: Caller, parent: Ino, name: &[u8], newparent: Ino, newname: &[u8], flags: u32) -> Result<()> {
        self.state.lock().rename((parent, name), (newparent, newname), flags)
    }
    async fn link(&self, _who: Caller, ino: Ino, newparent: Ino, newname: &[u8]) -> Result<Found> {
        let mut st = self.state.lock();
        st.check_new(newparent, newname)?;
        if st.is_dir(ino) {
            return fail(Kind::NotPermitted, "directories have one name");
        }
        if st.node(ino)?.attr.nlink == 0 {
            return fail(Kind::NotFound, "the file was removed");
        }
        st.insert(newparent, newname, ino)?;
        st.entry(ino).map(|a| self.found(a))
    }
    async fn open(&self, _who: Caller, ino: Ino, flags: i32) -> Result<Opened> {
        self.fault(ino).await;
        let mut st = self.state.lock();
        st.data(ino)?;
        st.open(ino, flags).map(|fh| self.opened(fh))
    }
    async fn create(&self, who: Caller, parent: Ino, name: &[u8], perm: u16, flags: i32) -> Result<(Found, Opened)> {
        let mut st = self.state.lock();
        check_name(name)?;
        st.check_alive(parent)?;
        let ino = match st.child(parent, name) {
            Ok(_) if flags & libc::O_EXCL != 0 => return fail(Kind::Exists, "the name exists"),
            Ok(ino) => {
                st.data(ino)?;
                if flags & libc::O_TRUNC != 0 {
                    st.truncate(ino, 0)?;
                }
                ino
            }
            Err(_) => {
                let ino = st.make(who, FileType::File, perm, 0, Body::File(Arc::default()));
                st.insert(parent, name, ino)?;
                ino
            }
        };
        let fh = st.open(ino, flags)?;
        Ok((self.found(st.entry(ino)?), self.opened(fh)))
    }
    async fn read(&self, _who: Caller, ino: Ino, _fh: u64, offset: u64, size: u32) -> Result<Bytes> {
        self.fault(ino).await;
        self.state.lock().read(ino, offset, size)
    }
    fn read_now(&self, _who: Caller, ino: Ino, _fh: u64, offset: u64, size: u32) -> Option<Result<Bytes>> {
        (!self.is_broken(ino)).then(|| self.state.lock().read(ino, offset, size))
    }
    async fn write(&self, _who: Caller, ino: Ino, fh: u64, offset: u64, data: Bytes) -> Result<u32> {
        self.fault(ino).await;
        let mut st = self.state.lock();
        let append = st.handles.get(&fh).is_some_and(|h| h.flags & libc::O_APPEND != 0);
        let at = if append { st.data(ino)?.len() as u64 } else { offset };
        let end = at + data.len() as u64;
        if end > MAX_FILE {
            return fail(Kind::TooLarge, "larger than the model holds");
        }
        let file = st.data_mut(ino)?;
        if file.len() < end as usize && !data.is_empty() {
            file.resize(end as usize, 0);
        }
        if !data.is_empty() {
            file[at as usize..end as usize].copy_from_slice(&data);
        }
        st.resized(ino)?;
        Ok(data.len() as u32)
    }
    async fn flush(&self, _who: Caller, _ino: Ino, _fh: u64) -> Result<()> {
        Ok(())
    }
    async fn fsync(&self, _who: Caller, _ino: Ino, _fh: u64, _datasync: bool) -> Result<()> {
        Ok(())
    }
    async fn release(&self, _ino: Ino, fh: u64) -> Result<()> {
        self.state.lock().close(fh)
    }
    async fn opendir(&self, _who: Caller, ino: Ino) -> Result<u64> {
        let mut st = self.state.lock();
        st.dir(ino)?;
        st.open(ino, 0)
    }
    async fn readdir(&self, _who: Caller, ino: Ino, _fh: u64, offset: u64, max: usize, plus: bool) -> Result<Vec<DirEntry>> {
        self.state.lock().list(ino, offset, max, plus, self.ttl)
    }
    async fn releasedir(&self, _ino: Ino, fh: u64) -> Result<()> {
        self.state.lock().close(fh)
    }
    async fn fsyncdir(&self, _who: Caller, _ino: Ino) -> Result<()> {
        Ok(())
    }
    fn statfs(&self) -> StatFs {
        let files = self.state.lock().inodes.len() as u64;
        let blocks = MAX_FILE / 4096;
        StatFs { bsize: 4096, blocks, bfree: blocks, bavail: blocks, files: files + 1_000_000, ffree: 1_000_000, namelen: 255 }
    }
    async fn getxattr(&self, _who: Caller, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let st = self.state.lock();
        st.node(ino)?.xattrs.get(name).cloned().ok_or_else(|| Error::new(Kind::NoAttr, "no such attribute"))
    }
    fn getxattr_now(&self, _who: Caller, ino: Ino, name: &[u8]) -> Option<Result<Vec<u8>>> {
        let st = self.state.lock();
        let get = |n: &Inode| n.xattrs.get(name).cloned().ok_or_else(|| Error::new(Kind::NoAttr, "no such attribute"));
        Some(st.node(ino).and_then(get))
    }
    async fn setxattr(&self, _who: Caller, ino: Ino, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        let mut st = self.state.lock();
        let node = st.node_mut(ino)?;
        match node.xattrs.contains_key(name) {
            true if flags == libc::XATTR_CREATE => return fail(Kind::Exists, "the attribute exists"),
            false if flags == libc::XATTR_REPLACE => return fail(Kind::NoAttr, "no such attribute"),
            _ => {}
        }
        node.xattrs.insert(name.to_vec(), value.to_vec());
        node.attr.ctime = now();
        Ok(())
    }
    async fn listxattr(&self, _who: Caller, ino: Ino) -> Result<Vec<Vec<u8>>> {
        Ok(self.state.lock().node(ino)?.xattrs.keys().cloned().collect())
    }
    async fn removexattr(&self, _who: Caller, ino: Ino, name: &[u8]) -> Result<()> {
        let mut st = self.state.lock();
        let node = st.node_mut(ino)?;
        node.attr.ctime = now();
        node.xattrs.remove(name).map(drop).ok_or_else(|| Error::new(Kind::NoAttr, "no such attribute"))
    }
    async fn fallocate(&self, _who: Caller, ino: Ino, _fh: u64, offset: u64, len: u64, mode: i32) -> Result<()> {
        let mut st = self.state.lock();
        let end = offset + len;
        let file_len = st.data(ino)?.len() as u64;
        match mode {
            0 if end > file_len => st.truncate(ino, end),
            0 | libc::FALLOC_FL_KEEP_SIZE => Ok(()),
            m if m == libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE => {
                let (from, to) = (offset.min(file_len) as usize, end.min(file_len) as usize);
                st.data_mut(ino)?[from..to].fill(0);
                st.resized(ino)
            }
            _ => fail(Kind::Unsupported, "only allocation and holes"),
        }
    }
    async fn lseek(&self, _who: Caller, ino: Ino, _fh: u64, offset: i64, whence: i32) -> Result<i64> {
        // The model knows no holes: all is data, and one hole is at the end.
        let len = self.state.lock().data(ino)?.len() as i64;
        match whence {
            _ if offset < 0 || offset >= len => fail(Kind::NoData, "beyond the end"),
            libc::SEEK_DATA => Ok(offset),
            libc::SEEK_HOLE => Ok(len),
            _ => fail(Kind::Invalid, "unknown whence"),
        }
    }
    fn invalidations(&self) -> Option<Arc<Invalidations>> {
        Some(self.invalidations.clone())
    }
    fn inodes(&self) -> Vec<Ino> {
        let st = self.state.lock();
        st.inodes.iter().filter(|(_, n)| n.lookups > 0).map(|(ino, _)| *ino).collect()
    }
}
