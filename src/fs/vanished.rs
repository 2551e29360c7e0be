//! Directories that are removed while they are in the bucket, and what another machine makes in them at the same time.
//!
//! ```text
//!   remover                                       creator
//!   head: empty, frozen  <-- compare-and-swap --> head: one more name
//!   parent: without the name                      the remover finds it: the directory stays
//!   DELETE head
//! ```
//!
//! The head decides: what came into it before it was frozen calls the removal off, up to the root, and nothing comes into it
//! afterwards. Whoever meets a frozen head, or none under a name that is gone, makes a new directory under the old name for what
//! waits here to be written into it; the old id is never used again, for its deletion may come late.
//!
//! A directory that was removed here is `leaving` until its head is frozen. Its parent's index keeps the name until then.

use super::conflict::ConflictKind;
use super::journal::{Line, PlaceLine, Replayed};
use super::state::{DirCell, Place, State};
use super::{Doomed, Fs};
use crate::crypto::secmem::SecretKey;
use crate::error::{Result, fail};
use crate::format::entry::{Attributes, Body, Entry};
use crate::format::failure::Failure;
use crate::ops::Invalidate;
use crate::tree::delta::Delta;
use crate::tree::dir::{Change, Guard};
use crate::tree::io::Remote;
use crate::tree::meet::{Merged, Reading};
use crate::types::DirId;
use futures_util::stream::{self, StreamExt};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

/// Directories below one that are frozen at once.
const AT_ONCE: usize = 16;
/// Directories above one another that are noted at most.
const DEPTH: usize = 4096;
/// Names in one record of the journal.
const LINES: usize = 4096;
/// Longest that a batch of a leaving directory may be: all of it goes at once.
const ALL: fn(&[u8]) -> bool = |_| true;

type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Names that stand for directories which are leaving: no index write may take them away yet.
pub(super) fn leaving(st: &State, dir: DirId) -> Vec<(Vec<u8>, DirId)> {
    let all = st.dirs.get(&dir).map(|c| c.dir.displaced()).unwrap_or_default();
    let leaves = |id: &DirId| st.dirs.get(id).is_some_and(|c| c.leaving);
    all.into_iter().filter(|(_, id)| leaves(id)).collect()
}

/// A removal that an earlier mount did not finish goes on.
pub(super) fn leaves(st: &mut State, line: &Line, place: &Place) {
    let base = line.seen.first().and_then(|s| s.as_deref()).map(|e| &e.body);
    if let (Some(id), Some(Body::Dir { dir_id, dir_key })) = (line.dead, base)
        && *dir_id == id
    {
        let cell = super::recover::cell(st, id, dir_key);
        cell.leaving = true;
        cell.place.get_or_insert_with(|| place.clone());
    }
}

/// Where the directories are whose names an earlier mount left.
pub(super) fn put_places(st: &mut State, replayed: &Replayed) {
    let mut todo: Vec<DirId> = st.dirs.iter().filter(|(_, c)| c.place.is_none()).map(|(id, _)| *id).collect();
    while let Some(id) = todo.pop() {
        let Some(place) = replayed.places.get(&id) else { continue };
        if !st.dirs.contains_key(&place.parent) {
            super::recover::cell(st, place.parent, &place.parent_key);
            todo.push(place.parent);
        }
        if let Some(cell) = st.dirs.get_mut(&place.dir) {
            cell.place = Some((place.parent, place.name.clone()));
        }
    }
}

/// Whether a file belongs to a directory that is gone, and has something unsent.
fn waits_in(file: &super::file::File, dir: DirId) -> bool {
    let live = file.live.lock();
    let placed = live.dirty() && file.place.lock().as_ref().is_some_and(|p| p.0 == dir);
    placed || live.orphan.as_ref().is_some_and(|o| o.dir == dir) || live.beaten.iter().any(|b| b.dir() == dir)
}

impl Fs {
    /// A directory was removed here. Once the bucket has it, it goes step by step.
    pub(super) fn leave(&self, st: &mut State, (up, name): (DirId, &[u8]), id: DirId) {
        let named = st.dirs.get(&up).is_some_and(|c| c.dir.dir_in_bucket(name) == Some(id));
        let Some(cell) = st.dirs.get_mut(&id) else { return };
        if cell.remote.is_some() && !cell.dead {
            cell.leaving = true;
            if !named {
                self.kick(id);
            }
            return;
        }
        cell.dead = true;
        if !cell.busy {
            st.dirs.remove(&id);
        }
        st.unborn.remove(&id);
    }

    /// Before a directory is written: what was removed in it here goes first.
    pub(super) fn remove_displaced(self: &Arc<Self>, id: DirId) -> Later<'_, ()> {
        Box::pin(async move {
            let all = leaving(&self.state.lock(), id);
            stream::iter(all).for_each_concurrent(AT_ONCE, |(_, child)| self.flush_dir(child)).await;
        })
    }

    /// The last version of a directory that was removed here: empty, and frozen. What another machine has made in it calls that
    /// off.
    pub(super) async fn write_last(&self, id: DirId, claim: &super::commit::Claim, remote: &Remote) -> Result<bool> {
        let due = {
            let mut st = self.state.lock();
            match st.dirs.get(&id).is_some_and(|c| c.dir.is_empty()) {
                true => None,
                false => Some(self.call_off(&mut st, id)),
            }
        };
        if due.is_some() {
            return Ok(true);
        }
        let Some((batch, content)) = self.take(id, claim, ALL) else { return Ok(true) };
        if !content.is_empty() {
            // Something is to move out first, or to be removed below.
            self.state.lock().dirs.get_mut(&id).into_iter().for_each(|c| c.dir.untake(&batch, true));
            return self.write_next(id, claim, remote).await;
        }
        match self.index.remove(id, &claim.key, remote).await {
            Ok(last) => {
                self.landed_names(id, &batch, |c| c.remote = Some(last));
                let due = self.frozen(&mut self.state.lock(), id);
                drop(due);
                Ok(false)
            }
            Err(e) => {
                self.give_back(id, &batch, &e);
                Err(e)
            }
        }
    }

    /// The name of a directory in the bucket, as far as is known here.
    fn holder(&self, st: &State, id: DirId) -> Option<Place> {
        let place = st.dirs.get(&id).and_then(|c| c.place.clone());
        let held = |p: &Place| st.dirs.get(&p.0).is_some_and(|c| c.dir.dir_in_bucket(&p.1) == Some(id));
        let mut all = st.dirs.iter().filter(|(_, c)| !c.dead);
        place.filter(held).or_else(|| all.find_map(|(d, c)| Some((*d, c.dir.name_in_bucket(id)?))))
    }

    /// The head is frozen: now the name may go, and then the objects.
    fn frozen(&self, st: &mut State, id: DirId) -> Vec<Guard> {
        let holder = self.holder(st, id);
        let Some(cell) = st.dirs.get_mut(&id) else { return Vec::new() };
        let was = std::mem::take(&mut cell.leaving);
        cell.dead = true;
        let (remote, busy) = (cell.remote.clone(), cell.busy);
        if !busy {
            st.dirs.remove(&id);
        }
        let Some(remote) = remote else { return Vec::new() };
        let doomed = Doomed::index(self, id, &remote);
        match holder {
            Some((up, name)) => {
                self.kick(up);
                let guard: Guard = Box::new(doomed);
                let left = st.dirs.get_mut(&up).and_then(|c| c.dir.hang(&name, guard));
                // The bucket holds it under a name that stays: whoever meets that one takes it away.
                if let Some(d) = left.as_ref().and_then(|g| g.downcast_ref::<Doomed>()) {
                    d.spare(self);
                }
                left.into_iter().collect()
            }
            None => {
                if !was {
                    doomed.spare(self);
                }
                vec![Box::new(doomed)]
            }
        }
    }

    /// Something is in a directory that was removed here: it stays, under its name or, where that is taken, under a conflict name.
    fn call_off(&self, st: &mut State, id: DirId) -> Vec<Guard> {
        let holder = self.holder(st, id);
        let Some(cell) = st.dirs.get_mut(&id) else { return Vec::new() };
        cell.leaving = false;
        self.tell_conflict(ConflictKind::Kept, None, None);
        let Some((up, name)) = holder else { return Vec::new() };
        self.kick(up);
        let back = st.dirs.get_mut(&up).and_then(|c| c.dir.take_back(&name));
        if let Some((entry, seq, due)) = back {
            self.put_node(st, id, &entry, up);
            if let Err(e) = self.journal.done(up, [(name.as_slice(), seq)]) {
                tracing::debug!("the journal could not note that a directory stays: {e}");
            }
            return due;
        }
        self.make_way(st, id, up, &name).unwrap_or_else(|e| {
            tracing::warn!("the journal could not note that a directory stays: {e}");
            Vec::new()
        })
    }

    /// What was to replace a directory goes under a conflict name, and the directory stays.
    fn make_way(&self, st: &mut State, id: DirId, up: DirId, name: &[u8]) -> Result<Vec<Guard>> {
        let aside = self.conflict_name(st, up, name);
        let there = st.dirs.get(&up).and_then(|c| Some((c.dir.get(name)?.clone(), c.dir.bucket_entry(name)?.clone())));
        let Some((mine, base)) = there else { return Ok(Vec::new()) };
        let moved = Arc::new(Entry { name: aside, ..Entry::clone(&mine) });
        self.journal_only(st, &[(up, moved.name.clone(), Some(moved.clone())), (up, name.to_vec(), Some(base.clone()))])?;
        st.replace(&(up, name.to_vec()), &(up, moved.name.clone()));
        self.moved(st, &moved, up);
        super::rename::remember(st, &moved, up);
        let change = st.dirs.get_mut(&up).and_then(|c| c.dir.give_way(name)).unwrap_or_default();
        let change = Change { entry: Some(moved.clone()), ..change };
        let due = self.apply_journalled(st, vec![(up, moved.name.clone(), change)]);
        self.put_node(st, id, &base, up);
        if let Some(parent) = self.ino_of_dir_in_use(st, up) {
            self.sink.invalidate(Invalidate::Entry(parent, moved.name.clone()));
        }
        self.journal.done(up, [(name, st.seq)])?;
        Ok(due)
    }

    /// A directory is at a place again: its inode, where somebody still knows it, goes there too.
    fn put_node(&self, st: &mut State, id: DirId, entry: &Arc<Entry>, up: DirId) {
        let place = (up, entry.name.clone());
        let lost = st.nodes.iter().find(|(_, n)| n.place.is_none() && n.entry.dir_id() == Some(id)).map(|(ino, _)| *ino);
        if let Some(node) = lost.filter(|_| !st.places.contains_key(&place)).and_then(|ino| st.nodes.get_mut(&ino)) {
            (node.place, node.entry) = (Some(place.clone()), entry.clone());
            st.places.extend(lost.map(|ino| (place.clone(), ino)));
            st.dirs.get_mut(&up).into_iter().for_each(|c| c.nodes += 1);
        }
        let now = entry.dir_id().unwrap_or(id);
        st.dirs.get_mut(&now).into_iter().for_each(|c| c.place = Some(place.clone()));
        if let Some(parent) = self.ino_of_dir_in_use(st, up) {
            self.sink.invalidate(Invalidate::Entry(parent, place.1));
        }
    }

    /// Reading a directory found its head frozen, or not at all. `Ok` when another machine (or this one) has removed it.
    pub(super) fn removed_there(&self, id: DirId, found: Result<Remote>) -> Later<'_, Result<Merged>> {
        Box::pin(async move {
            let remote = match found {
                Ok(remote) => Some(remote),
                Err(e) if Failure::of(&e) == Some(Failure::Omission) && self.is_unnamed(id).await? => None,
                Err(e) => return Err(self.report(e, id)),
            };
            let mut st = self.state.lock();
            let Some(cell) = st.dirs.get_mut(&id).filter(|c| !c.dead) else { return Ok(Merged::default()) };
            // What is to be named by nothing any more is what it was: the bucket holds nothing of it.
            let merged = cell.dir.merge_with(Vec::new(), ALL, |_| Reading { own: false, gap: false });
            cell.merges += 1;
            cell.fetched = Some(Instant::now());
            if remote.is_some() {
                cell.remote = remote;
            }
            let mut due = self.resolve(&mut st, id);
            self.follow(&mut st, id, &merged.changed);
            match st.dirs.get(&id).is_some_and(|c| c.leaving && c.dir.is_empty()) {
                true => due.extend(self.frozen(&mut st, id)),
                false => due.extend(self.vanish(&mut st, id)?),
            }
            drop(st);
            drop(due);
            Ok(merged)
        })
    }

    /// Whether the parent of a directory names it no more, by what the bucket holds now.
    async fn is_unnamed(&self, id: DirId) -> Result<bool> {
        let up = {
            let st = self.state.lock();
            let Some((up, _)) = st.dirs.get(&id).and_then(|c| c.place.clone()) else { return Ok(false) };
            st.home(up)
        };
        self.reload(up).await?;
        let st = self.state.lock();
        Ok(st.dirs.get(&up).is_none_or(|c| c.dead || c.dir.name_in_bucket(id).is_none()))
    }

    /// A directory is no more. What was made in it here gets a new one; its name goes, if the bucket still has it.
    fn vanish(&self, st: &mut State, id: DirId) -> Result<Vec<Guard>> {
        let Some(cell) = st.dirs.get_mut(&id) else { return Ok(Vec::new()) };
        (cell.dead, cell.vanished, cell.leaving) = (true, true, false);
        let (place, remote) = (cell.place.clone(), cell.remote.clone());
        if self.opts.read_only {
            return Ok(Vec::new());
        }
        if cell.dir.has_pending() || st.all_files().any(|f| waits_in(f, id)) {
            let (_, due) = self.rehome(st, id)?;
            self.tell_conflict(ConflictKind::Rescued, None, None);
            return Ok(due);
        }
        let Some((up, name)) = place else { return Ok(Vec::new()) };
        let shown = st.dirs.get(&up).filter(|c| !c.dead).and_then(|c| c.dir.get(&name)).cloned();
        let Some(entry) = shown.filter(|e| e.dir_id() == Some(id)) else { return Ok(Vec::new()) };
        st.unplace(up, &name, &entry);
        let after: Vec<Guard> = remote.iter().map(|r| Box::new(Doomed::index(self, id, r)) as Guard).collect();
        let due = self.apply(st, vec![(up, name.clone(), Change { after, ..Change::default() })])?;
        if let Some(parent) = self.ino_of_dir_in_use(st, up) {
            self.sink.invalidate(Invalidate::Entry(parent, name));
        }
        Ok(due)
    }

    /// Makes a new directory for what was made in one that is gone. Gives its id.
    fn rehome(&self, st: &mut State, id: DirId) -> Result<(DirId, Vec<Guard>)> {
        let now = st.home(id);
        if st.dirs.get(&now).is_none_or(|c| !c.vanished) {
            let there = st.dirs.get(&now).is_some_and(|c| !c.is_removed());
            return Ok((if there { now } else { st.root }, Vec::new()));
        }
        let id = now;
        let place = st.dirs.get(&id).and_then(|c| c.place.clone());
        let (up, name) = place.unwrap_or_else(|| (st.root, b"recovered".to_vec()));
        let (up, mut due) = self.rehome(st, up)?;
        let held = st.dirs.get(&up).and_then(|c| c.dir.get(&name)).cloned();
        let free = held.as_ref().is_none_or(|e| e.dir_id() == Some(id));
        let name = if free { name } else { self.conflict_name(st, up, &name) };
        let known = held.filter(|e| e.dir_id() == Some(id));
        let known = known.or_else(|| st.nodes.values().map(|n| &n.entry).find(|e| e.dir_id() == Some(id)).cloned());
        let entry = self.new_home(known.as_deref(), name);
        let Body::Dir { dir_id: new, dir_key } = &entry.body else { return fail(crate::error::Kind::Bug, "no directory") };
        self.note_home(st, id, up, &entry, (*new, dir_key))?;
        let Some(old) = st.dirs.remove(&id) else { return Ok((st.root, due)) };
        let mut cell = DirCell::new(old.dir, dir_key.clone(), Some((up, entry.name.clone())));
        (cell.nodes, cell.times) = (old.nodes, Some(self.env.clock.now()));
        due.extend(cell.dir.rehome(*new));
        st.unborn.insert(*new);
        st.dirs.insert(*new, cell);
        st.homes.put(id, *new);
        move_all(st, id, *new);
        // The inode is what the kernel knows the directory by: programs that are in it stay in it.
        self.put_node(st, id, &entry, up);
        let after: Vec<Guard> = old.remote.iter().map(|r| Box::new(Doomed::index(self, id, r)) as Guard).collect();
        let change = Change { entry: Some(entry.clone()), after, ..Change::default() };
        due.extend(self.apply_journalled(st, vec![(up, entry.name.clone(), change)]));
        self.kick(*new);
        Ok((*new, due))
    }

    /// The entry of a new directory in the place of one that is gone.
    fn new_home(&self, old: Option<&Entry>, name: Vec<u8>) -> Arc<Entry> {
        let now = self.env.clock.now();
        let (uid, gid) = self.opts.root_owner;
        let made = Attributes { mode: 0o700, uid, gid, atime: now, mtime: now, ctime: now, btime: now };
        let attributes = old.map_or(made, |e| Attributes { ctime: now, ..e.attributes });
        let key = SecretKey::from_fn(|k| self.env.rng.fill(k));
        let body = Body::Dir { dir_id: DirId(self.env.random()), dir_key: key };
        Arc::new(Entry { name, attributes, body, refs: Vec::new(), xattrs: old.map(|e| e.xattrs.clone()).unwrap_or_default() })
    }

    /// Notes in the journal that what waits in a directory waits in another one now.
    fn note_home(&self, st: &State, id: DirId, up: DirId, entry: &Arc<Entry>, new: (DirId, &SecretKey)) -> Result<()> {
        let seq = st.seq + 1;
        let (Some(parent), Some(cell)) = (st.dirs.get(&up), st.dirs.get(&id)) else { return Ok(()) };
        self.note_places(st, [up]);
        let line = st.line(up, parent, entry.name.clone(), Some(entry.clone()), None);
        let mut lines = vec![Line { entry_unborn: true, ..line }];
        let behind = |e: &Entry| self.live_of(st, e).is_some_and(|f| f.live.lock().dirty());
        let all = cell.dir.unsettled(behind).into_iter().filter(|u| u.entry.is_some());
        lines.extend(all.map(|u| {
            let unborn = u.entry.as_ref().and_then(|e| e.dir_id()).is_some_and(|d| st.unborn.contains(&d));
            Line {
                dir: new.0,
                key: new.1.clone(),
                unborn: true,
                name: u.name,
                entry: u.entry,
                entry_unborn: unborn,
                dead: None,
                delta: Delta::default(),
                left: Vec::new(),
                seen: vec![None],
            }
        }));
        // The last of them says that the old ones are over.
        let last = lines.split_off(lines.len().saturating_sub(LINES));
        lines.chunks(LINES).try_for_each(|some| self.journal.names(seq, some))?;
        self.journal.rehomed(id, seq, &last)
    }

    /// Where directories are, and those that they are in: a later mount must find its way when one is gone by then.
    pub(super) fn places_of(&self, st: &State, dirs: impl Iterator<Item = DirId>) -> Vec<PlaceLine> {
        let mut out: Vec<PlaceLine> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for mut dir in dirs {
            for _ in 0..DEPTH {
                let Some((up, name)) = st.dirs.get(&dir).and_then(|c| c.place.clone()).filter(|_| seen.insert(dir)) else {
                    break;
                };
                let Some(parent) = st.dirs.get(&up) else { break };
                out.push(PlaceLine { dir, parent: up, parent_key: parent.key.clone(), name });
                dir = up;
            }
        }
        out
    }

    /// Notes the places of directories that the journal does not know yet.
    pub(super) fn note_places(&self, st: &State, dirs: impl IntoIterator<Item = DirId>) {
        let new = dirs.into_iter().filter(|d| *d != st.root && self.journal.lacks_place(*d)).collect::<Vec<_>>();
        for place in self.places_of(st, new.into_iter()).into_iter().filter(|p| self.journal.lacks_place(p.dir)) {
            if let Err(e) = self.journal.place(&place) {
                tracing::debug!("the journal could not note where a directory is: {e}");
            }
        }
    }
}

/// Everything that is in a directory is in another one now.
fn move_all(st: &mut State, old: DirId, new: DirId) {
    let places: Vec<(Place, u64)> = st.places.iter().filter(|(p, _)| p.0 == old).map(|(p, ino)| (p.clone(), *ino)).collect();
    for (place, ino) in places {
        st.places.remove(&place);
        let at = (new, place.1);
        st.nodes.get_mut(&ino).into_iter().for_each(|n| n.place = Some(at.clone()));
        st.places.insert(at, ino);
    }
    for cell in st.dirs.values_mut() {
        cell.place.iter_mut().filter(|p| p.0 == old).for_each(|p| p.0 = new);
    }
    for file in st.files.values().chain(&st.stuck) {
        file.place.lock().iter_mut().filter(|p| p.0 == old).for_each(|p| p.0 = new);
    }
    st.renamed.iter_mut().filter(|(_, p)| p.0 == old).for_each(|(_, p)| p.0 = new);
    st.departing.values_mut().flatten().filter(|p| p.0 == old).for_each(|p| p.0 = new);
}
