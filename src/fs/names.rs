//! Names: lookup, create, mkdir, unlink, rmdir, rename, symlink.

use super::file::File;
use super::state::{CONTROL_BIT, DirCell, ROOT_SELF, State, attr_of};
use super::{Doomed, Fs};
use crate::crypto::secmem::SecretKey;
use crate::error::{Error, Kind, Result, fail};
use crate::format::entry::{Attributes, Body, Entry, FileRef};
use crate::ops::{Caller, FileType, Found, Ino, NewNode, ROOT};
use crate::tree::dir::{Change, Dir, Guard, MoveToken};
use crate::types::{DirId, FileId, Hash, NAME_MAX};
use std::sync::Arc;
use std::sync::atomic::Ordering;

const S_ISGID: u16 = 0o2000;
const RENAME_NOREPLACE: u32 = 1;
/// Longest symlink target: PATH_MAX less the zero byte.
const TARGET_MAX: usize = 4095;

/// What a rename needs to know of both ends, found before the lock is taken.
struct Move {
    from: DirId,
    to: DirId,
}

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
        Ok(())
    }

    pub(super) fn found(&self, st: &State, ino: Ino) -> Result<Found> {
        let e = self.entry_of(st, ino)?;
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
            attr.blocks = attr.size.div_ceil(512);
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
        let mut st = self.state.lock();
        self.lookup_in(&mut st, parent, dir, name)
    }

    fn lookup_in(&self, st: &mut State, parent: Ino, dir: DirId, name: &[u8]) -> Result<Found> {
        if parent == ROOT && name == ROOT_SELF {
            return fail(Kind::NotFound, "no such name");
        }
        let entry = st.loaded(dir)?.dir.get(name).cloned();
        let Some(entry) = entry else { return fail(Kind::NotFound, "no such name") };
        let ino = st.know(dir, &entry, 1);
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
        Ok(Entry { name: name.to_vec(), attributes, body, xattrs: Vec::new() })
    }

    /// Puts a new entry into a loaded directory and answers with its inode.
    fn add(&self, st: &mut State, parent: Ino, entry: Entry) -> Result<Found> {
        let dir = st.dir_of(parent)?;
        let cell = st.loaded(dir)?;
        if cell.dead {
            return fail(Kind::NotFound, "the directory was removed");
        }
        if cell.dir.get(&entry.name).is_some() {
            return fail(Kind::Exists, "the name is taken");
        }
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
    fn bury(&self, st: &mut State, dir: DirId, entry: &Arc<Entry>) -> Vec<Guard> {
        let mut after: Vec<Guard> = Vec::new();
        let ino = st.unplace(dir, &entry.name, entry);
        match &entry.body {
            Body::File(f) => {
                if f.generation > 0 {
                    let doomed = Arc::new(Doomed::object(self, f.object_key()));
                    if let Some(n) = ino.and_then(|i| st.nodes.get_mut(&i)) {
                        n.guards.push(Box::new(doomed.clone()));
                    }
                    after.push(Box::new(doomed));
                }
                if let Some(file) = st.files.get(&f.file_id).cloned() {
                    file.live.lock().unlinked = true;
                    *file.place.lock() = None;
                    self.note_gone(&file);
                    let rescue = {
                        let live = file.live.lock();
                        live.rescuing() || !live.stuck.is_empty()
                    };
                    if file.opens.load(Ordering::Acquire) == 0 && !rescue {
                        st.files.remove(&f.file_id);
                    }
                    file.progress.notify_waiters();
                    if let Some(fs) = self.arc().filter(|_| file.ahead.lock().begun()) {
                        self.rt.spawn(async move { fs.give_up_ahead(&file).await });
                    }
                }
            }
            Body::Dir { dir_id, .. } => {
                if let Some(cell) = st.dirs.get_mut(dir_id) {
                    cell.dead = true;
                    if let Some(remote) = &cell.remote {
                        after.push(Box::new(Doomed::index(self, *dir_id, remote)));
                    }
                }
                st.unborn.remove(dir_id);
                if let Some(cell) = st.dirs.get(dir_id)
                    && !cell.busy
                {
                    st.dirs.remove(dir_id);
                }
            }
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
        let due = {
            let mut st = self.state.lock();
            let Some(entry) = st.loaded(dir)?.dir.get(name).cloned().filter(|_| !(parent == ROOT && name == ROOT_SELF)) else {
                return fail(Kind::NotFound, "no such name");
            };
            if entry.is_dir() {
                return fail(Kind::IsDir, "is a directory");
            }
            self.journal_only(&mut st, &[(dir, name.to_vec(), None)])?;
            let after = self.bury(&mut st, dir, &entry);
            self.apply_journalled(&mut st, vec![(dir, name.to_vec(), Change { after, ..Change::default() })])
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
            if !matches!(entry.body, Body::Dir { dir_id, .. } if dir_id == child) {
                return fail(Kind::Interrupted, "the name changed meanwhile");
            }
            if !st.loaded(child)?.dir.is_empty() {
                return fail(Kind::NotEmpty, "the directory is not empty");
            }
            self.journal_only(&mut st, &[(dir, name.to_vec(), None)])?;
            let after = self.bury(&mut st, dir, &entry);
            self.apply_journalled(&mut st, vec![(dir, name.to_vec(), Change { after, ..Change::default() })])
        };
        drop(due);
        Ok(())
    }

    pub(super) async fn do_rename(&self, parent: Ino, name: &[u8], newparent: Ino, newname: &[u8], flags: u32) -> Result<()> {
        self.writable()?;
        if flags & !RENAME_NOREPLACE != 0 {
            return fail(Kind::Invalid, "this kind of rename is not supported yet");
        }
        self.check_name(parent, name)?;
        self.check_name(newparent, newname)?;
        let m = Move { from: self.dir(parent).await?, to: self.dir(newparent).await? };
        // A directory in the way must be known to be empty.
        let way = {
            let mut st = self.state.lock();
            let e = st.loaded(m.to)?.dir.get(newname).cloned();
            if let Some(e) = &e {
                self.attach_dir(&mut st, m.to, e);
            }
            e
        };
        if let Some(Body::Dir { dir_id, .. }) = way.as_ref().map(|e| &e.body) {
            self.load_dir(*dir_id).await?;
            self.fresh_dir(*dir_id).await?;
        }
        let due = {
            let mut st = self.state.lock();
            self.rename_locked(&mut st, &m, name, newname, flags)?
        };
        drop(due);
        Ok(())
    }

    fn rename_locked(&self, st: &mut State, m: &Move, name: &[u8], newname: &[u8], flags: u32) -> Result<Vec<Guard>> {
        let Some(entry) = st.loaded(m.from)?.dir.get(name).cloned() else { return fail(Kind::NotFound, "no such name") };
        let there = {
            let to = st.loaded(m.to)?;
            if to.dead {
                return fail(Kind::NotFound, "the directory was removed");
            }
            to.dir.get(newname).cloned()
        };
        if m.from == m.to && name == newname {
            return if flags & RENAME_NOREPLACE != 0 { fail(Kind::Exists, "the name is taken") } else { Ok(Vec::new()) };
        }
        self.check_rename(st, m, &entry, there.as_deref(), flags)?;
        let mut moved = Entry::clone(&entry);
        moved.name = newname.to_vec();
        moved.attributes.ctime = self.env.clock.now();
        let moved = Arc::new(moved);
        self.journal_only(st, &[(m.to, newname.to_vec(), Some(moved.clone())), (m.from, name.to_vec(), None)])?;
        let mut after = match &there {
            Some(old) => self.bury(st, m.to, old),
            None => Vec::new(),
        };
        st.replace(&(m.from, name.to_vec()), &(m.to, newname.to_vec()));
        self.moved(st, &moved, m.to);
        if let Body::File(f) = &moved.body {
            st.renamed.put(f.file_id, (m.to, newname.to_vec()));
        }
        let token = Arc::new(MoveToken::default());
        let mut carry = st.loaded(m.from)?.dir.release_carry(name);
        carry.push(token.clone());
        let gone = Change { wait: vec![token], ..Change::default() };
        let due = self.apply_journalled(st, vec![(m.from, name.to_vec(), gone)]);
        // What the old name was still to drop belongs to the new one now.
        after.extend(due);
        let here = Change { entry: Some(moved), carry, after, ..Change::default() };
        Ok(self.apply_journalled(st, vec![(m.to, newname.to_vec(), here)]))
    }

    fn check_rename(&self, st: &mut State, m: &Move, entry: &Entry, there: Option<&Entry>, flags: u32) -> Result<()> {
        if flags & RENAME_NOREPLACE != 0 && there.is_some() {
            return fail(Kind::Exists, "the name is taken");
        }
        if let Body::Dir { dir_id, .. } = entry.body
            && st.lies_below(m.to, dir_id)
        {
            return fail(Kind::Invalid, "a directory cannot be moved into itself");
        }
        let Some(there) = there else { return Ok(()) };
        if let Body::Dir { dir_id, .. } = there.body
            && st.lies_below(m.from, dir_id)
        {
            return fail(Kind::NotEmpty, "the directory holds what is to take its place");
        }
        match (entry.is_dir(), &there.body) {
            (true, Body::Dir { dir_id, .. }) => match st.loaded(*dir_id)?.dir.is_empty() {
                true => Ok(()),
                false => fail(Kind::NotEmpty, "the directory is not empty"),
            },
            (true, _) => fail(Kind::NotDir, "not a directory"),
            (false, Body::Dir { .. }) => fail(Kind::IsDir, "is a directory"),
            (false, _) => Ok(()),
        }
    }

    /// Tells the file or directory behind an entry where it is now.
    pub(super) fn moved(&self, st: &mut State, entry: &Entry, to: DirId) {
        let place = Some((to, entry.name.clone()));
        match &entry.body {
            Body::File(f) => {
                if let Some(file) = st.files.get(&f.file_id) {
                    *file.place.lock() = place;
                }
            }
            Body::Dir { dir_id, .. } => {
                if let Some(cell) = st.dirs.get_mut(dir_id) {
                    cell.place = place;
                }
            }
            _ => {}
        }
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
