//! [`Control`]: the control tree as an [`Ops`] in front of another.
//!
//! Every call goes by the inode it names: the control tree's own are answered here, all others are passed on, and what concerns
//! the reserved name in the root is refused.

use super::nodes::{DIR, Node, Row, TABLE, children, ino_of, is_control, readme, row_of};
use super::{ControlSource, NAME};
use crate::error::{Error, Kind, Result, fail};
use crate::ops::{Attr, Caller, CopyEnd, DirEntry, Found, Ino, Invalidations, NewNode, Opened, Ops, ROOT, SetAttr, StatFs};
use crate::types::Time;
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The tree changes only with the program.
const TTL: Duration = Duration::from_secs(3600);
/// Open control files at most.
const MAX_OPEN: usize = 256;
/// Bytes of rendered content held at most, over all open files.
const MAX_BYTES: usize = 64 << 20;

/// The overlay.
pub struct Control {
    inner: Arc<dyn Ops>,
    source: Arc<dyn ControlSource>,
    owner: (u32, u32),
    since: Time,
    snapshots: Mutex<HashMap<u64, Bytes>>,
    next_fh: AtomicU64,
}

impl Control {
    /// Puts the control tree in front of `inner`. `uid` and `gid` own it (those of the mount); `since` is the time its files show.
    pub fn new(inner: Arc<dyn Ops>, source: Arc<dyn ControlSource>, uid: u32, gid: u32, since: Time) -> Control {
        Control { inner, source, owner: (uid, gid), since, snapshots: Mutex::default(), next_fh: AtomicU64::new(1) }
    }

    fn attr(&self, index: usize, row: &Row) -> Attr {
        // The size of what is rendered at open is not known before; 0 is what /proc says as well, and readers read to the end.
        let size = match row.node {
            Some(Node::Version) => version().len() as u64,
            Some(Node::Readme) => readme().len() as u64,
            _ => 0,
        };
        let subdirs = children(index).filter(|(_, r)| r.node.is_none()).count();
        Attr {
            ino: ino_of(index),
            size,
            blocks: 0,
            atime: self.since,
            mtime: self.since,
            ctime: self.since,
            btime: self.since,
            kind: row.kind(),
            perm: row.perm(),
            nlink: if row.node.is_none() { 2 + subdirs as u32 } else { 1 },
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
        }
    }

    fn found(&self, ino: Ino) -> Result<Found> {
        let (index, row) = row(ino)?;
        Ok(Found { attr: self.attr(index, row), ttl: TTL })
    }

    /// The answer for a name in the root or the control tree; `None` for what is the inner filesystem's.
    fn find(&self, parent: Ino, name: &[u8]) -> Option<Result<Found>> {
        if parent == ROOT {
            return (name == NAME).then(|| self.found(DIR));
        }
        if !is_control(parent) {
            return None;
        }
        let find = || {
            let (dir, row) = row(parent)?;
            if row.node.is_some() {
                return fail(Kind::NotDir, "not a directory of the control tree");
            }
            match children(dir).find(|(_, r)| r.name.as_bytes() == name) {
                Some((index, _)) => self.found(ino_of(index)),
                None => fail(Kind::NotFound, "no such file in the control tree"),
            }
        };
        Some(find())
    }

    /// Renders a node and keeps it for the handle that is returned.
    async fn snapshot(&self, who: Caller, ino: Ino, flags: i32) -> Result<Opened> {
        let (_, row) = row(ino)?;
        let Some(node) = row.node else { return fail(Kind::IsDir, "a directory of the control tree") };
        if flags & libc::O_ACCMODE != libc::O_RDONLY {
            return fail(Kind::Denied, "this control file is read-only");
        }
        // The kernel checks the mode as well; this holds without it.
        if row.private && who.uid != 0 && who.uid != self.owner.0 {
            return fail(Kind::Denied, "this control file is for root and the owner of the mount");
        }
        if self.snapshots.lock().len() >= MAX_OPEN {
            return fail(Kind::Busy, "too many control files are open");
        }
        let content = match node {
            Node::Readme => readme(),
            Node::Version => version(),
            _ => {
                let source = self.source.clone();
                let rendered = tokio::task::spawn_blocking(move || source.render(node)).await;
                rendered.map_err(|e| Error::with_source(Kind::Bug, "a control file could not be rendered", e))??
            }
        };
        let fh = self.next_fh.fetch_add(1, Ordering::Relaxed);
        let mut snapshots = self.snapshots.lock();
        let held: usize = snapshots.values().map(Bytes::len).sum();
        if held + content.len() > MAX_BYTES {
            return fail(Kind::Busy, "too much control content is open");
        }
        snapshots.insert(fh, Bytes::from(content));
        Ok(Opened { fh, keep_cache: false, direct_io: true })
    }

    fn content(&self, fh: u64) -> Result<Bytes> {
        self.snapshots.lock().get(&fh).cloned().ok_or_else(|| Error::new(Kind::Stale, "the control file is not open"))
    }

    fn list(&self, ino: Ino, offset: u64, max: usize) -> Result<Vec<DirEntry>> {
        let (dir, row) = row(ino)?;
        if row.node.is_some() {
            return fail(Kind::NotDir, "not a directory of the control tree");
        }
        let dots = [(".", dir), ("..", row.parent)];
        let all = dots.into_iter().chain(children(dir).map(|(i, r)| (r.name, i)));
        let entry = |(place, (name, index)): (usize, (&str, usize))| DirEntry {
            name: name.as_bytes().to_vec(),
            attr: self.attr(index, &TABLE[index]),
            ttl: TTL,
            next: place as u64 + 1,
        };
        Ok(all.enumerate().skip(usize::try_from(offset).unwrap_or(usize::MAX)).take(max).map(entry).collect())
    }
}

fn row(ino: Ino) -> Result<(usize, &'static Row)> {
    row_of(ino).ok_or_else(|| Error::new(Kind::Stale, "no such control file"))
}

fn version() -> Vec<u8> {
    concat!("smpfs ", env!("CARGO_PKG_VERSION"), "\n").as_bytes().to_vec()
}

/// Refuses to make a name where the control tree is.
fn check_new(parent: Ino, name: &[u8]) -> Result<()> {
    match parent {
        ROOT if name == NAME => fail(Kind::Exists, "the name .smpfs is reserved in the root of a mount"),
        p if is_control(p) => fail(Kind::NotPermitted, "the control tree takes no new names"),
        _ => Ok(()),
    }
}

/// Refuses to take a name away, or change an inode, of the control tree.
fn check_name(parent: Ino, name: &[u8]) -> Result<()> {
    if is_control(parent) || (parent == ROOT && name == NAME) { not_permitted() } else { Ok(()) }
}

fn check_ino(ino: Ino) -> Result<()> {
    if is_control(ino) { not_permitted() } else { Ok(()) }
}

fn not_permitted<T>() -> Result<T> {
    fail(Kind::NotPermitted, "the control tree cannot be changed")
}

#[async_trait]
impl Ops for Control {
    async fn lookup(&self, who: Caller, parent: Ino, name: &[u8]) -> Result<Found> {
        match self.find(parent, name) {
            Some(found) => found,
            None => self.inner.lookup(who, parent, name).await,
        }
    }
    fn lookup_now(&self, who: Caller, parent: Ino, name: &[u8]) -> Option<Result<Found>> {
        self.find(parent, name).or_else(|| self.inner.lookup_now(who, parent, name))
    }
    fn forget(&self, ino: Ino, n: u64) {
        if !is_control(ino) {
            self.inner.forget(ino, n);
        }
    }
    async fn getattr(&self, who: Caller, ino: Ino) -> Result<Found> {
        if is_control(ino) { self.found(ino) } else { self.inner.getattr(who, ino).await }
    }
    fn getattr_now(&self, who: Caller, ino: Ino) -> Option<Result<Found>> {
        if is_control(ino) { Some(self.found(ino)) } else { self.inner.getattr_now(who, ino) }
    }
    async fn setattr(&self, who: Caller, ino: Ino, fh: Option<u64>, set: SetAttr) -> Result<Found> {
        check_ino(ino)?;
        self.inner.setattr(who, ino, fh, set).await
    }
    async fn readlink(&self, who: Caller, ino: Ino) -> Result<Vec<u8>> {
        if is_control(ino) { fail(Kind::Invalid, "not a symbolic link") } else { self.inner.readlink(who, ino).await }
    }
    async fn mknod(&self, who: Caller, parent: Ino, name: &[u8], new: NewNode) -> Result<Found> {
        check_new(parent, name)?;
        self.inner.mknod(who, parent, name, new).await
    }
    async fn mkdir(&self, who: Caller, parent: Ino, name: &[u8], perm: u16) -> Result<Found> {
        check_new(parent, name)?;
        self.inner.mkdir(who, parent, name, perm).await
    }
    async fn unlink(&self, who: Caller, parent: Ino, name: &[u8]) -> Result<()> {
        check_name(parent, name)?;
        self.inner.unlink(who, parent, name).await
    }
    async fn rmdir(&self, who: Caller, parent: Ino, name: &[u8]) -> Result<()> {
        check_name(parent, name)?;
        self.inner.rmdir(who, parent, name).await
    }
    async fn symlink(&self, who: Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Found> {
        check_new(parent, name)?;
        self.inner.symlink(who, parent, name, target).await
    }
    async fn rename(&self, who: Caller, parent: Ino, name: &[u8], newparent: Ino, newname: &[u8], flags: u32) -> Result<()> {
        check_name(parent, name)?;
        check_name(newparent, newname)?;
        self.inner.rename(who, parent, name, newparent, newname, flags).await
    }
    async fn link(&self, who: Caller, ino: Ino, newparent: Ino, newname: &[u8]) -> Result<Found> {
        check_ino(ino)?;
        check_new(newparent, newname)?;
        self.inner.link(who, ino, newparent, newname).await
    }
    async fn open(&self, who: Caller, ino: Ino, flags: i32) -> Result<Opened> {
        if is_control(ino) { self.snapshot(who, ino, flags).await } else { self.inner.open(who, ino, flags).await }
    }
    async fn create(&self, who: Caller, parent: Ino, name: &[u8], perm: u16, flags: i32) -> Result<(Found, Opened)> {
        check_new(parent, name)?;
        self.inner.create(who, parent, name, perm, flags).await
    }
    async fn read(&self, who: Caller, ino: Ino, fh: u64, offset: u64, size: u32) -> Result<Bytes> {
        match self.read_now(who, ino, fh, offset, size) {
            Some(bytes) => bytes,
            None => self.inner.read(who, ino, fh, offset, size).await,
        }
    }
    fn read_now(&self, who: Caller, ino: Ino, fh: u64, offset: u64, size: u32) -> Option<Result<Bytes>> {
        if !is_control(ino) {
            return self.inner.read_now(who, ino, fh, offset, size);
        }
        Some(self.content(fh).map(|content| {
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
            let to = from.saturating_add(size as usize).min(content.len());
            content.slice(from..to)
        }))
    }
    async fn write(&self, who: Caller, ino: Ino, fh: u64, offset: u64, data: Bytes) -> Result<u32> {
        if is_control(ino) {
            return fail(Kind::Denied, "this control file is read-only");
        }
        self.inner.write(who, ino, fh, offset, data).await
    }
    async fn flush(&self, who: Caller, ino: Ino, fh: u64) -> Result<()> {
        if is_control(ino) { Ok(()) } else { self.inner.flush(who, ino, fh).await }
    }
    async fn fsync(&self, who: Caller, ino: Ino, fh: u64, datasync: bool) -> Result<()> {
        if is_control(ino) { Ok(()) } else { self.inner.fsync(who, ino, fh, datasync).await }
    }
    async fn release(&self, ino: Ino, fh: u64) -> Result<()> {
        if !is_control(ino) {
            return self.inner.release(ino, fh).await;
        }
        self.snapshots.lock().remove(&fh);
        Ok(())
    }
    async fn opendir(&self, who: Caller, ino: Ino) -> Result<u64> {
        if is_control(ino) { Ok(0) } else { self.inner.opendir(who, ino).await }
    }
    async fn readdir(&self, who: Caller, ino: Ino, fh: u64, offset: u64, max: usize, plus: bool) -> Result<Vec<DirEntry>> {
        if is_control(ino) {
            return self.list(ino, offset, max);
        }
        let mut offset = offset;
        loop {
            let mut entries = self.inner.readdir(who, ino, fh, offset, max, plus).await?;
            let Some(last) = entries.last() else { return Ok(entries) };
            offset = last.next;
            if ino == ROOT {
                entries.retain(|e| {
                    if plus && e.name == NAME {
                        self.inner.forget(e.attr.ino, 1);
                    }
                    e.name != NAME
                });
            }
            // An empty answer would mean the end.
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
    }
    async fn releasedir(&self, ino: Ino, fh: u64) -> Result<()> {
        if is_control(ino) { Ok(()) } else { self.inner.releasedir(ino, fh).await }
    }
    async fn fsyncdir(&self, who: Caller, ino: Ino) -> Result<()> {
        if is_control(ino) { Ok(()) } else { self.inner.fsyncdir(who, ino).await }
    }
    fn statfs(&self) -> StatFs {
        self.inner.statfs()
    }
    async fn getxattr(&self, who: Caller, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        if is_control(ino) { no_attr() } else { self.inner.getxattr(who, ino, name).await }
    }
    fn getxattr_now(&self, who: Caller, ino: Ino, name: &[u8]) -> Option<Result<Vec<u8>>> {
        if is_control(ino) { Some(no_attr()) } else { self.inner.getxattr_now(who, ino, name) }
    }
    async fn setxattr(&self, who: Caller, ino: Ino, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        check_ino(ino)?;
        self.inner.setxattr(who, ino, name, value, flags).await
    }
    async fn listxattr(&self, who: Caller, ino: Ino) -> Result<Vec<Vec<u8>>> {
        if is_control(ino) { Ok(Vec::new()) } else { self.inner.listxattr(who, ino).await }
    }
    async fn removexattr(&self, who: Caller, ino: Ino, name: &[u8]) -> Result<()> {
        check_ino(ino)?;
        self.inner.removexattr(who, ino, name).await
    }
    async fn fallocate(&self, who: Caller, ino: Ino, fh: u64, offset: u64, len: u64, mode: i32) -> Result<()> {
        check_ino(ino)?;
        self.inner.fallocate(who, ino, fh, offset, len, mode).await
    }
    async fn copy_file_range(&self, who: Caller, from: CopyEnd, to: CopyEnd, len: u64) -> Result<u32> {
        if is_control(from.ino) || is_control(to.ino) {
            // The kernel says it to the program as what it means: read and write instead.
            return fail(Kind::Unsupported, "control files are read, not copied");
        }
        self.inner.copy_file_range(who, from, to, len).await
    }
    async fn lseek(&self, who: Caller, ino: Ino, fh: u64, offset: i64, whence: i32) -> Result<i64> {
        if !is_control(ino) {
            return self.inner.lseek(who, ino, fh, offset, whence).await;
        }
        let end = self.content(fh)?.len() as i64;
        match whence {
            _ if !(0..end).contains(&offset) => fail(Kind::NoData, "beyond the end of the control file"),
            libc::SEEK_DATA => Ok(offset),
            libc::SEEK_HOLE => Ok(end),
            _ => fail(Kind::Invalid, "unknown whence"),
        }
    }
    fn invalidations(&self) -> Option<Arc<Invalidations>> {
        self.inner.invalidations()
    }
    fn inodes(&self) -> Vec<Ino> {
        self.inner.inodes()
    }
}

fn no_attr<T>() -> Result<T> {
    fail(Kind::NoAttr, "control files have no extended attributes")
}
