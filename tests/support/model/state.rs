//! The tables of the reference filesystem and every rule about them.

use bytes::Bytes;
use smpfs::error::{Error, Kind, Result, fail};
use smpfs::ops::*;
use smpfs::types::{NAME_MAX, Time};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Larger files are refused: the model holds every byte.
pub const MAX_FILE: u64 = 8 << 30;

pub(super) struct State {
    pub(super) inodes: HashMap<Ino, Inode>,
    pub(super) handles: HashMap<u64, Handle>,
    pub(super) next_ino: Ino,
    pub(super) next_fh: u64,
    pub(super) next_cookie: u64,
}

pub(super) struct Handle {
    pub(super) ino: Ino,
    pub(super) flags: i32,
}

pub(super) struct Inode {
    pub(super) attr: Attr,
    pub(super) body: Body,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) lookups: u64,
    pub(super) opens: u64,
}

pub(super) enum Body {
    File(Arc<Vec<u8>>),
    Dir(Dir),
    Symlink(Vec<u8>),
    Special,
}

/// A directory. Every entry has a cookie that it keeps for life: a listing goes on behind the last cookie, whatever changed.
pub(super) struct Dir {
    pub(super) parent: Ino,
    pub(super) names: BTreeMap<Vec<u8>, (Ino, u64)>,
    pub(super) cookies: BTreeMap<u64, Vec<u8>>,
}

/// Shared bytes of a file, for reads without a copy.
struct View(Arc<Vec<u8>>);

impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

pub(super) fn now() -> Time {
    let d = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Time { sec: d.as_secs() as i64, nsec: d.subsec_nanos() }
}

pub(super) fn check_name(name: &[u8]) -> Result<()> {
    match name {
        b"" | b"." | b".." => fail(Kind::Invalid, "not a name"),
        n if n.len() > NAME_MAX => fail(Kind::NameTooLong, "a name of more than 255 bytes"),
        n if n.contains(&b'/') || n.contains(&0) => fail(Kind::Invalid, "not a name"),
        _ => Ok(()),
    }
}

impl Dir {
    pub(super) fn new(parent: Ino) -> Dir {
        Dir { parent, names: BTreeMap::new(), cookies: BTreeMap::new() }
    }
}

impl State {
    pub(super) fn make(&mut self, who: Caller, kind: FileType, perm: u16, rdev: u64, body: Body) -> Ino {
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

    pub(super) fn node(&self, ino: Ino) -> Result<&Inode> {
        self.inodes.get(&ino).ok_or_else(|| Error::new(Kind::Stale, "no such inode"))
    }

    pub(super) fn node_mut(&mut self, ino: Ino) -> Result<&mut Inode> {
        self.inodes.get_mut(&ino).ok_or_else(|| Error::new(Kind::Stale, "no such inode"))
    }

    pub(super) fn dir(&self, ino: Ino) -> Result<&Dir> {
        match &self.node(ino)?.body {
            Body::Dir(d) => Ok(d),
            _ => fail(Kind::NotDir, "not a directory"),
        }
    }

    pub(super) fn dir_mut(&mut self, ino: Ino) -> Result<&mut Dir> {
        match &mut self.node_mut(ino)?.body {
            Body::Dir(d) => Ok(d),
            _ => fail(Kind::NotDir, "not a directory"),
        }
    }

    pub(super) fn is_dir(&self, ino: Ino) -> bool {
        matches!(self.inodes.get(&ino), Some(Inode { body: Body::Dir(_), .. }))
    }

    pub(super) fn child(&self, parent: Ino, name: &[u8]) -> Result<Ino> {
        let found = self.dir(parent)?.names.get(name);
        found.map(|(ino, _)| *ino).ok_or_else(|| Error::new(Kind::NotFound, "no such name"))
    }

    /// A directory that can take new names: it has not been removed.
    pub(super) fn check_alive(&self, dir: Ino) -> Result<()> {
        self.dir(dir)?;
        if self.node(dir)?.attr.nlink == 0 { fail(Kind::NotFound, "the directory was removed") } else { Ok(()) }
    }

    pub(super) fn check_new(&self, parent: Ino, name: &[u8]) -> Result<()> {
        check_name(name)?;
        self.check_alive(parent)?;
        if self.child(parent, name).is_ok() { fail(Kind::Exists, "the name exists") } else { Ok(()) }
    }

    /// Puts `ino` under a free name; link counts follow.
    pub(super) fn insert(&mut self, parent: Ino, name: &[u8], ino: Ino) -> Result<()> {
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
    pub(super) fn remove(&mut self, parent: Ino, name: &[u8]) -> Result<Ino> {
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

    pub(super) fn touch(&mut self, ino: Ino) -> Result<()> {
        let t = now();
        let attr = &mut self.node_mut(ino)?.attr;
        (attr.mtime, attr.ctime) = (t, t);
        Ok(())
    }

    /// Frees an inode without links, lookups and handles.
    pub(super) fn reap(&mut self, ino: Ino) {
        if self.inodes.get(&ino).is_some_and(|n| n.attr.nlink == 0 && n.lookups == 0 && n.opens == 0) {
            self.inodes.remove(&ino);
        }
    }

    pub(super) fn entry(&mut self, ino: Ino) -> Result<Attr> {
        let node = self.node_mut(ino)?;
        node.lookups += 1;
        Ok(node.attr)
    }

    pub(super) fn open(&mut self, ino: Ino, flags: i32) -> Result<u64> {
        self.node_mut(ino)?.opens += 1;
        let fh = self.next_fh;
        self.next_fh += 1;
        self.handles.insert(fh, Handle { ino, flags });
        Ok(fh)
    }

    pub(super) fn close(&mut self, fh: u64) -> Result<()> {
        let handle = self.handles.remove(&fh).ok_or_else(|| Error::new(Kind::Invalid, "no such handle"))?;
        self.node_mut(handle.ino)?.opens -= 1;
        self.reap(handle.ino);
        Ok(())
    }

    pub(super) fn data_mut(&mut self, ino: Ino) -> Result<&mut Vec<u8>> {
        match &mut self.node_mut(ino)?.body {
            Body::File(data) => Ok(Arc::make_mut(data)),
            Body::Dir(_) => fail(Kind::IsDir, "a directory has no bytes"),
            _ => fail(Kind::Invalid, "not a regular file"),
        }
    }

    pub(super) fn data(&self, ino: Ino) -> Result<&Arc<Vec<u8>>> {
        match &self.node(ino)?.body {
            Body::File(data) => Ok(data),
            Body::Dir(_) => fail(Kind::IsDir, "a directory has no bytes"),
            _ => fail(Kind::Invalid, "not a regular file"),
        }
    }

    pub(super) fn resized(&mut self, ino: Ino) -> Result<()> {
        let size = self.data(ino)?.len() as u64;
        let attr = &mut self.node_mut(ino)?.attr;
        attr.size = size;
        attr.blocks = size.div_ceil(512);
        self.touch(ino)
    }

    pub(super) fn truncate(&mut self, ino: Ino, size: u64) -> Result<()> {
        if size > MAX_FILE {
            return fail(Kind::TooLarge, "larger than the model holds");
        }
        self.data_mut(ino)?.resize(size as usize, 0);
        self.resized(ino)
    }

    pub(super) fn allocate(&mut self, ino: Ino, offset: u64, len: u64, mode: i32) -> Result<()> {
        let end = offset.checked_add(len).filter(|e| *e <= MAX_FILE);
        let Some(end) = end else { return fail(Kind::TooLarge, "larger than the model holds") };
        let size = self.data(ino)?.len() as u64;
        let keep = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => {}
            libc::FALLOC_FL_ZERO_RANGE => self.blank(ino, offset, end)?,
            libc::FALLOC_FL_PUNCH_HOLE if keep => self.blank(ino, offset, end)?,
            _ => return fail(Kind::Unsupported, "only space, zeros and holes"),
        }
        if !keep && end > size { self.truncate(ino, end) } else { Ok(()) }
    }

    fn blank(&mut self, ino: Ino, from: u64, to: u64) -> Result<()> {
        let size = self.data(ino)?.len() as u64;
        let (from, to) = (from.min(size) as usize, to.min(size) as usize);
        self.data_mut(ino)?[from..to].fill(0);
        self.resized(ino)
    }

    pub(super) fn copy(&mut self, from: (Ino, u64), to: (Ino, u64), len: u64) -> Result<u32> {
        let source = self.data(from.0)?;
        let start = from.1.min(source.len() as u64);
        let end = from.1.saturating_add(len).min(source.len() as u64).max(start);
        let n = end - start;
        if from.0 == to.0 && from.1 < to.1 + n && to.1 < from.1 + n {
            return fail(Kind::Invalid, "the ranges overlap");
        }
        let bytes = source[start as usize..end as usize].to_vec();
        if n == 0 {
            return Ok(0);
        }
        let target = self.data_mut(to.0)?;
        if (target.len() as u64) < to.1 + n {
            target.resize((to.1 + n) as usize, 0);
        }
        target[to.1 as usize..(to.1 + n) as usize].copy_from_slice(&bytes);
        self.resized(to.0)?;
        Ok(n as u32)
    }

    pub(super) fn read(&self, ino: Ino, offset: u64, size: u32) -> Result<Bytes> {
        let data = self.data(ino)?;
        let from = offset.min(data.len() as u64) as usize;
        let to = (from + size as usize).min(data.len());
        Ok(Bytes::from_owner(View(data.clone())).slice(from..to))
    }

    /// Whether `dir` is `ancestor` or lies below it.
    pub(super) fn is_below(&self, dir: Ino, ancestor: Ino) -> Result<bool> {
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
    pub(super) fn check_rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), flags: u32) -> Result<(Ino, Option<Ino>)> {
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

    pub(super) fn rename(&mut self, from: (Ino, &[u8]), to: (Ino, &[u8]), flags: u32) -> Result<()> {
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
    pub(super) fn drop_name(&mut self, parent: Ino, name: &[u8]) -> Result<()> {
        let ino = self.remove(parent, name)?;
        if self.is_dir(ino) {
            self.node_mut(ino)?.attr.nlink = 0;
            self.reap(ino);
        }
        Ok(())
    }

    pub(super) fn list(&mut self, ino: Ino, offset: u64, max: usize, plus: bool, ttl: Duration) -> Result<Vec<DirEntry>> {
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

    pub(super) fn set(&mut self, ino: Ino, set: SetAttr) -> Result<Attr> {
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
