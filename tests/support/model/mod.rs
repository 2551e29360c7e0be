//! The reference filesystem: everything [`Ops`] asks, in memory, written to be obviously right rather than fast.
//!
//! It is the oracle of the property tests and the ceiling of the benches. One lock, one table of inodes, one table of handles.

mod state;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use smpfs::error::{Error, Kind, Result, fail};
use smpfs::ops::*;
use state::{Body, Dir, Inode, MAX_FILE, State, check_name, now};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

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

impl Default for ModelFs {
    fn default() -> Self {
        ModelFs::new()
    }
}

impl ModelFs {
    /// An empty filesystem.
    pub fn new() -> ModelFs {
        let mut state = State { inodes: HashMap::new(), handles: HashMap::new(), next_ino: ROOT, next_fh: 1, next_cookie: 3 };
        // Whoever mounts it owns the root.
        let me = Caller { uid: nix::unistd::getuid().as_raw(), gid: nix::unistd::getgid().as_raw(), pid: 0 };
        let root = state.make(me, FileType::Dir, 0o755, 0, Body::Dir(Dir::new(ROOT)));
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
        self.state.lock().allocate(ino, offset, len, mode)
    }
    async fn copy_file_range(&self, _who: Caller, from: CopyEnd, to: CopyEnd, len: u64) -> Result<u32> {
        self.state.lock().copy((from.ino, from.offset), (to.ino, to.offset), len)
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
