//! Names: lookup, create, mkdir, unlink, rmdir, symlink.

use super::file::File;
use super::links::{Step, dangling};
use super::state::{CONTROL_BIT, DirCell, ROOT_SELF, State, attr_of};
use super::{Doomed, Fs};
use crate::crypto::secmem::SecretKey;
use crate::error::{Error, Kind, Result, fail};
use crate::format::entry::{Attributes, Body, Entry, FileRef};
use crate::ops::{Caller, FileType, Found, Ino, NewNode, ROOT};
use crate::tree::dir::{Change, Dir, Guard};
use crate::types::{DirId, FileId, Hash, NAME_MAX};
use std::sync::Arc;
use std::sync::atomic::Ordering;

const S_ISGID: u16 = 0o2000;
/// Longest symlink target: PATH_MAX less the zero byte.
const TARGET_MAX: usize = 4095;

impl Fs {
    /// Refuses names that no directory can hold.
    pub(super) fn check_name(&self, parent: Ino, name: &[u8]) -> Result<()> {
        if name.len() > NAME_MAX {
            return fail(Kind::NameTooLong, "a name holds up to 255 bytes");
        }
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
            return fail(Kind::Invalid, "not a file name");
        }
        if parent == ROOT && name == ROOT_SELF {
            return fail(Kind::NotPermitted, "this name is reserved for the control directory");
        }
        Ok(())
    }

    pub(super) fn writable(&self) -> Result<()> {
        if self.opts.read_only {
            return fail(Kind::ReadOnly, "the mount is read-only");
        }
        if self.stopping.load(Ordering::Acquire) {
            return fail(Kind::Busy, "the volume is being unmounted");
        }
        self.opts.lease.as_ref().map_or(Ok(()), |lease| lease.permit())
    }

    pub(super) fn found(&self, st: &State, ino: Ino) -> Result<Found> {
        let e = self.entry_of(st, ino)?;
        if e.link().is_some() {
            return Err(dangling());
        }
        let cell = match &e.body {
            Body::Dir { dir_id, .. } => st.dirs.get(dir_id),
            _ => None,
        };
        let links = cell.filter(|c| c.dir.is_loaded()).map(|c| 2 + c.dir.subdirs());
        let mut attr = attr_of(ino, &e, links);
        if let Some(t) = cell.and_then(|c| c.times) {
            (attr.mtime, attr.ctime) = (t.max(attr.mtime), t.max(attr.ctime));
        }
        if let Body::File(f) = &e.body
            && let Some(file) = st.files.get(&f.file_id)
        {
            let live = file.live.lock();
            attr.size = live.size;
            if let Some(t) = live.times {
                (attr.mtime, attr.ctime) = (t, t.max(attr.ctime));
            }
            if live.dirty() {
                attr.blocks = attr.size.div_ceil(512);
            }
        }
        if st.nodes.get(&ino).is_some_and(|n| n.place.is_none()) && ino != ROOT {
            attr.nlink = 0;
        }
        if let Some(uid) = self.opts.uid {
            attr.uid = uid;
        }
        if let Some(gid) = self.opts.gid {
            attr.gid = gid;
        }
        if let Some(umask) = self.opts.umask {
            attr.perm &= !(umask & 0o777);
        }
        Ok(Found { attr, ttl: self.opts.attr_ttl })
    }

    /// The entry of an inode; the root's own is kept under a reserved name.
    pub(super) fn entry_of(&self, st: &State, ino: Ino) -> Result<Arc<Entry>> {
        if ino != ROOT {
            return st.entry(ino);
        }
        let kept = st.dirs.get(&st.root).and_then(|c| c.dir.get(ROOT_SELF));
        Ok(kept.cloned().unwrap_or_else(|| self.root_entry.clone()))
    }

    pub(super) async fn do_lookup(&self, parent: Ino, name: &[u8]) -> Result<Found> {
        if name.len() > NAME_MAX {
            return fail(Kind::NameTooLong, "a name holds up to 255 bytes");
        }
        let dir = self.dir(parent).await?;
        self.fresh(dir).await;
        for last in [false, true] {
            self.reach(&[(dir, name)]).await?;
            let found = self.lookup_in(&mut self.state.lock(), parent, dir, name);
            match found {
                // Another machine may have removed the name together with what it led to.
                Err(e) if e.kind() == Kind::Corrupt && !last => self.reload(dir).await?,
                Err(e) if e.kind() == Kind::Corrupt => return Err(self.report(e, dir)),
                done => return done,
            }
        }
        Err(dangling())
    }

    fn lookup_in(&self, st: &mut State, parent: Ino, dir: DirId, name: &[u8]) -> Result<Found> {
        if parent == ROOT && name == ROOT_SELF {
            return fail(Kind::NotFound, "no such name");
        }
        let entry = st.loaded(dir)?.dir.get(name).cloned();
        let Some(entry) = entry else { return fail(Kind::NotFound, "no such name") };
        let Some((at, target)) = st.target(dir, &entry) else { return Err(dangling()) };
        let ino = st.know(at, &target, 1);
        self.attach_dir(st, dir, &entry);
        self.found(st, ino)
    }

    /// A lookup that memory can answer.
    pub(super) fn try_lookup(&self, parent: Ino, name: &[u8]) -> Option<Result<Found>> {
        if name.len() > NAME_MAX {
            return Some(fail(Kind::NameTooLong, "a name holds up to 255 bytes"));
        }
        let mut st = self.state.try_lock()?;
        let dir = st.dir_of(parent).ok()?;
        let cell = st.dirs.get(&dir)?;
        if !cell.dir.is_loaded() || self.is_stale(cell) {
            return None;
        }
        if let Some(link) = cell.dir.get(name).filter(|e| e.link().is_some()) {
            // A number that is stale has to be asked for.
            st.target(dir, link).filter(|_| st.dirs.get(&st.links).is_some_and(|c| !self.is_stale(c)))?;
        }
        Some(self.lookup_in(&mut st, parent, dir, name))
    }

    /// Makes the cell of a subdirectory known, unloaded, with its place.
    pub(super) fn attach_dir(&self, st: &mut State, parent: DirId, entry: &Entry) {
        if let Body::Dir { dir_id, dir_key } = &entry.body {
            let place = Some((parent, entry.name.clone()));
            let cell = st.dirs.entry(*dir_id).or_insert_with(|| DirCell::new(Dir::unloaded(*dir_id), dir_key.clone(), None));
            cell.place = place;
        }
    }

    /// A fresh entry owned by the caller, with the setgid rule of the parent applied.
    fn new_entry(&self, st: &State, who: Caller, parent: Ino, name: &[u8], perm: u16, body: Body) -> Result<Entry> {
        let up = self.entry_of(st, parent)?;
        let now = self.env.clock.now();
        let mut attributes =
            Attributes { mode: perm & 0o7777, uid: who.uid, gid: who.gid, atime: now, mtime: now, ctime: now, btime: now };
        if up.attributes.mode & S_ISGID != 0 {
            attributes.gid = up.attributes.gid;
            if matches!(body, Body::Dir { .. }) {
                attributes.mode |= S_ISGID;
            }
        }
        Ok(Entry { name: name.to_vec(), attributes, body, refs: Vec::new(), xattrs: Vec::new() })
    }

    /// Puts a new entry into a loaded directory and answers with its inode.
    fn add(&self, st: &mut State, parent: Ino, entry: Entry) -> Result<Found> {
        let dir = st.dir_of(parent)?;
        let cell = st.loaded(dir)?;
        if cell.is_removed() {
            return fail(Kind::NotFound, "the directory was removed");
        }
        if cell.dir.get(&entry.name).is_some() {
            return fail(Kind::Exists, "the name is taken");
        }
        has_room(cell, self.opts.max_names)?;
        let entry = Arc::new(entry);
        let change = Change { entry: Some(entry.clone()), ..Change::default() };
        self.apply(st, vec![(dir, entry.name.clone(), change)])?;
        let ino = st.know(dir, &entry, 1);
        self.found(st, ino)
    }

    pub(super) async fn do_mknod(
        &self,
        who: Caller,
        parent: Ino,
        name: &[u8],
        new: NewNode,
    ) -> Result<(Found, Option<Arc<File>>)> {
        self.writable()?;
        self.check_name(parent, name)?;
        self.dir(parent).await?;
        self.wait_for_room().await?;
        let mut st = self.state.lock();
        let body = match new.kind {
            FileType::File => {
                let id = FileId(self.env.random());
                Body::File(FileRef {
                    file_id: id,
                    file_key: SecretKey::from_fn(|k| self.env.rng.fill(k)),
                    generation: 0,
                    trailer_hash: Hash::ZERO,
                    size: 0,
                    object_len: 0,
                    key: None,
                })
            }
            FileType::Fifo => Body::Fifo,
            FileType::Socket => Body::Socket,
            FileType::CharDev => Body::CharDevice { major: libc::major(new.rdev), minor: libc::minor(new.rdev) },
            FileType::BlockDev => Body::BlockDevice { major: libc::major(new.rdev), minor: libc::minor(new.rdev) },
            FileType::Dir | FileType::Symlink => return fail(Kind::Invalid, "mknod makes no directories and links"),
        };
        let entry = self.new_entry(&st, who, parent, name, new.perm, body)?;
        let made = match &entry.body {
            Body::File(f) => Some((f.file_id, f.file_key.clone())),
            _ => None,
        };
        let dir = st.dir_of(parent)?;
        let found = self.add(&mut st, parent, entry)?;
        let file = made.map(|(id, key)| {
            let file = Arc::new(File::new(id, key, Some((dir, name.to_vec())), None));
            st.files.insert(id, file.clone());
            file
        });
        Ok((found, file))
    }

    pub(super) async fn do_mkdir(&self, who: Caller, parent: Ino, name: &[u8], perm: u16) -> Result<Found> {
        self.writable()?;
        self.check_name(parent, name)?;
        let up = self.dir(parent).await?;
        let mut st = self.state.lock();
        let id = DirId(self.env.random());
        let key = SecretKey::from_fn(|k| self.env.rng.fill(k));
        let entry = self.new_entry(&st, who, parent, name, perm, Body::Dir { dir_id: id, dir_key: key.clone() })?;
        // Before the entry is pending: it must not reach the bucket before the directory's own index.
        st.unborn.insert(id);
        let cell = DirCell::new(Dir::empty(id), key, Some((up, name.to_vec())));
        st.dirs.insert(id, cell);
        let found = match self.add(&mut st, parent, entry) {
            Ok(f) => f,
            Err(e) => {
                st.dirs.remove(&id);
                st.unborn.remove(&id);
                return Err(e);
            }
        };
        self.kick(id);
        Ok(found)
    }

    pub(super) async fn do_symlink(&self, who: Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Found> {
        self.writable()?;
        self.check_name(parent, name)?;
        if target.is_empty() {
            return fail(Kind::NotFound, "a link needs a target");
        }
        if target.len() > TARGET_MAX {
            return fail(Kind::NameTooLong, "a link's target holds up to 4095 bytes");
        }
        self.dir(parent).await?;
        let mut st = self.state.lock();
        let entry = self.new_entry(&st, who, parent, name, 0o777, Body::Symlink(target.to_vec()))?;
        self.add(&mut st, parent, entry)
    }

    /// What hangs on the end of an entry: its object or index objects are deleted once the index no longer names them and the
    /// last handle is closed.
    pub(super) fn bury(&self, st: &mut State, dir: DirId, entry: &Arc<Entry>) -> Vec<Guard> {
        let mut after: Vec<Guard> = Vec::new();
        let ino = st.unplace(dir, &entry.name, entry);
        match &entry.body {
            Body::File(f) => {
                // What another machine is moving has a second name for a moment: the object is that one's.
                if f.generation > 0 && !self.named_elsewhere(st, f.file_id, (dir, &entry.name)) {
                    let doomed = Arc::new(Doomed::object(self, f.file_id, f.object_key()));
                    if let Some(n) = ino.and_then(|i| st.nodes.get_mut(&i)) {
                        n.guards.push(Box::new(doomed.clone()));
                    }
                    after.push(Box::new(doomed));
                }
                for layer in st.landing.of(f.file_id) {
                    super::landed::note_gone(&layer, &self.spool);
                }
                if let Some(file) = st.files.get(&f.file_id).cloned() {
                    let behind = {
                        let mut live = file.live.lock();
                        let behind = live.dirty();
                        (live.unlinked, live.nameless) = (true, f.generation == 0);
                        behind
                    };
                    *file.place.lock() = None;
                    self.note_gone(&file);
                    let rescue = {
                        let live = file.live.lock();
                        live.rescuing() || !live.stuck.is_empty()
                    };
                    if file.opens.load(Ordering::Acquire) == 0 && !rescue {
                        st.files.remove(&f.file_id);
                        if let Some(n) = ino.and_then(|i| st.nodes.get_mut(&i)) {
                            n.lost = behind;
                        }
                    }
                    file.progress.notify_waiters();
                    if let Some(fs) = self.arc().filter(|_| file.ahead.lock().begun()) {
                        self.rt.spawn(async move { fs.give_up_ahead(&file).await });
                    }
                }
            }
            Body::Dir { dir_id, .. } => self.leave(st, (dir, &entry.name), *dir_id),
            _ => {}
        }
        if let Some(ino) = ino {
            after.extend(st.release(ino));
        }
        after
    }

    pub(super) async fn do_unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.writable()?;
        let dir = self.dir(parent).await?;
        self.reach(&[(dir, name)]).await?;
        let due = {
            let mut st = self.state.lock();
            let Some(entry) = st.loaded(dir)?.dir.get(name).cloned().filter(|_| !(parent == ROOT && name == ROOT_SELF)) else {
                return fail(Kind::NotFound, "no such name");
            };
            if entry.is_dir() {
                return fail(Kind::IsDir, "is a directory");
            }
            let mut steps = vec![Step::new(dir, name, Change::default())];
            self.part(&st, &mut steps, 0, &entry);
            self.perform(&mut st, steps, |_, _| {})?
        };
        drop(due);
        Ok(())
    }

    pub(super) async fn do_rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.writable()?;
        if name == b"." {
            return fail(Kind::Invalid, "not a directory name");
        }
        let dir = self.dir(parent).await?;
        let child = {
            let mut st = self.state.lock();
            let Some(entry) = st.loaded(dir)?.dir.get(name).cloned().filter(|_| !(parent == ROOT && name == ROOT_SELF)) else {
                return fail(Kind::NotFound, "no such name");
            };
            self.attach_dir(&mut st, dir, &entry);
            match entry.body {
                Body::Dir { dir_id, .. } => dir_id,
                _ => return fail(Kind::NotDir, "not a directory"),
            }
        };
        self.load_dir(child).await?;
        self.fresh_dir(child).await?;
        let due = {
            let mut st = self.state.lock();
            let Some(entry) = st.loaded(dir)?.dir.get(name).cloned() else {
                return fail(Kind::NotFound, "no such name");
            };
            if entry.dir_id() != Some(child) {
                return fail(Kind::Interrupted, "the name changed meanwhile");
            }
            if !st.loaded(child)?.dir.is_empty() {
                return fail(Kind::NotEmpty, "the directory is not empty");
            }
            let left = st.loaded(child)?.dir.lefts();
            let gone = Step::new(dir, name, Change { left, ..Change::default() });
            self.perform(&mut st, vec![Step { buries: Some(entry), ..gone }], |_, _| {})?
        };
        drop(due);
        Ok(())
    }

    pub(super) fn do_forget(&self, ino: Ino, n: u64) {
        let due = {
            let mut st = self.state.lock();
            if let Some(node) = st.nodes.get_mut(&ino) {
                node.lookups = node.lookups.saturating_sub(n);
            }
            st.release(ino)
        };
        drop(due);
    }

    /// Refuses inode numbers of the control tree.
    pub(super) fn own(&self, ino: Ino) -> Result<()> {
        match ino & CONTROL_BIT {
            0 => Ok(()),
            _ => Err(Error::new(Kind::Stale, "unknown inode")),
        }
    }
}

/// Refuses one more entry where a directory holds as many as it may.
pub(super) fn has_room(cell: &DirCell, max: u64) -> Result<()> {
    if cell.dir.len() as u64 >= max {
        return fail(Kind::NoSpace, format!("a directory holds up to {max} entries"));
    }
    Ok(())
}
