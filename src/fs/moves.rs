//! Files on their way from one directory to another, and other machines that meet them there.
//!
//! ```text
//!   bucket:   x/f            x/f, y/g              y/g
//!             | arrival: y/g is written | departure: x/f is taken away |
//!             +---- owner: x/f ---------+------------------------------+---- owner: y/g
//! ```
//!
//! Whoever takes a file's name out of an index may delete its object, for a file has one name, but for a moment, while it is moved.
//! Until the departure another machine may take the old name away, and the object with it, without knowing of the new one. So the
//! new name is not relied upon before: a new version keeps its layers in the spool, and `fsync` waits. When the departure meets
//! such a removal, the new name gets an object of its own (`conflict.rs`), or goes where nothing is left to make it of. The machine
//! that deleted the object knows that too, and takes away whatever name it meets for it later.

use super::file::{File, Version};
use super::state::{Place, State, derived_ino};
use super::{Fs, Noted};
use crate::error::{Kind, Result, fail};
use crate::format::entry::{Body, Entry};
use crate::tree::dir::{Change, Guard, Taken};
use crate::types::{DirId, FileId};
use std::time::{Duration, Instant};

/// Inode numbers that are looked at for another name of a file: those of names that it had at the same time follow one another.
const NEIGHBOURS: u64 = 4;

/// How long an entry may be behind its file before another machine than the writer's sees to it.
const LAG: Duration = Duration::from_secs(5);

/// Notes that the file of an entry leaves a name.
pub(super) fn departs(st: &mut State, entry: &Entry, from: &Place) {
    let Some(id) = entry.file_id() else { return };
    if st.departing.len().is_power_of_two() {
        let dirs = &st.dirs;
        st.departing.retain(|id, places| places.iter().any(|p| dirs.get(&p.0).is_some_and(|c| c.dir.departs(&p.1, *id))));
    }
    let places = st.departing.entry(id).or_default();
    if !places.contains(from) {
        places.push(from.clone());
    }
}

/// Old names of a file that the bucket still has.
pub(super) fn departing(st: &mut State, id: FileId) -> Vec<Place> {
    let dirs = &st.dirs;
    let Some(places) = st.departing.get_mut(&id) else { return Vec::new() };
    places.retain(|p| dirs.get(&p.0).is_some_and(|c| c.dir.departs(&p.1, id)));
    let left = places.clone();
    if left.is_empty() {
        st.departing.remove(&id);
    }
    left
}

/// Those that another write takes away than the one that brings the name in `here`: within one index object that is one step.
pub(super) fn apart(st: &mut State, id: FileId, here: Option<DirId>) -> Vec<Place> {
    let mut left = departing(st, id);
    let whole = |dir: &DirId| st.dirs.get(dir).and_then(|c| c.remote.as_ref()).is_some_and(|r| r.bits == 0);
    left.retain(|p| Some(p.0) != here || !whole(&p.0));
    left
}

/// Whether the bucket still has an old name of an entry's file.
pub(super) fn is_departing(st: &State, entry: &Entry) -> bool {
    let Some(id) = entry.file_id() else { return false };
    let places = st.departing.get(&id);
    places.into_iter().flatten().any(|p| st.dirs.get(&p.0).is_some_and(|c| c.dir.departs(&p.1, id)))
}

impl Fs {
    /// Names of a batch that is in the bucket, to which files are moving: the journal must know where they are until their old
    /// names are gone, and need not from then on.
    pub(super) fn note_arrivals(&self, id: DirId, batch: &[Taken]) {
        let mut st = self.state.lock();
        self.forget_arrivals(&mut st);
        for t in batch {
            let Some(entry) = t.entry.as_ref().filter(|e| is_departing(&st, e)) else { continue };
            let shown = st.dirs.get(&id).and_then(|c| c.dir.get(&t.name));
            let Some(file) = entry.file_id().filter(|_| shown == Some(entry)) else { continue };
            let old = departing(&mut st, file);
            let mut lines: Vec<Noted> = vec![(id, t.name.clone(), Some(entry.clone()))];
            // What has the old name by now does not go together with this one.
            let gone = |p: &Place| st.dirs.get(&p.0).is_some_and(|c| c.dir.get(&p.1).is_none());
            lines.extend(old.into_iter().filter(gone).map(|(dir, name)| (dir, name, None)));
            let noted = self.journal_only(&st, &lines);
            st.next_seq();
            if let Err(e) = noted {
                tracing::warn!("the journal could not note where a file is being moved: {e}");
            }
        }
    }

    fn forget_arrivals(&self, st: &mut State) {
        let ids: Vec<FileId> = st.departing.keys().copied().collect();
        for id in ids {
            let Some((dir, name)) = st.renamed.peek(&id).cloned().filter(|_| departing(st, id).is_empty()) else { continue };
            // Taken away by another machine: what becomes of the new name is not settled.
            // And one that is behind needs its line until it is saved: the spool knows the name that it had before.
            let needed = |f: &std::sync::Arc<File>| {
                let live = f.live.lock();
                live.homeless() || live.dirty()
            };
            if st.files.get(&id).is_some_and(needed) {
                continue;
            }
            let settled = st.dirs.get(&dir).is_some_and(|c| c.dir.pending_seq(&name).is_none());
            if settled && let Err(e) = self.journal.done(dir, [(name.as_slice(), st.seq)]) {
                tracing::debug!("the journal could not note that a file was moved: {e}");
            }
        }
    }

    /// Returns when the bucket has no old name of a file any more.
    pub(super) async fn settle_moves(&self, file: &File) -> Result<()> {
        let until = Instant::now() + self.opts.deadline;
        loop {
            let bell = self.committed.notified();
            let here = file.place.lock().as_ref().map(|p| p.0);
            let left = apart(&mut self.state.lock(), file.id, here);
            let Some(fs) = self.arc().filter(|_| !left.is_empty()) else { return Ok(()) };
            if Instant::now() > until {
                return fail(Kind::Unavailable, "the old name of a file that was moved could not be taken away in time");
            }
            if file.live.lock().rescuing() {
                return fail(Kind::Unavailable, "another machine took the old name of a file that is being moved");
            }
            for dir in here.into_iter().chain(left.iter().map(|p| p.0)) {
                fs.flush_dir(dir).await;
            }
            if !apart(&mut self.state.lock(), file.id, here).is_empty() {
                let _ = tokio::time::timeout(Duration::from_millis(100), bell).await;
            }
        }
    }

    /// Old names of the file behind a name that the bucket still has.
    pub(super) fn old_names(&self, dir: DirId, name: &[u8]) -> Vec<Place> {
        let mut st = self.state.lock();
        let id = st.dirs.get(&dir).and_then(|c| c.dir.get(name)?.file_id());
        id.map_or_else(Vec::new, |id| apart(&mut st, id, Some(dir)))
    }

    /// Whether a file has another name, as far as this machine has looked: another machine is moving it, and who takes one of the
    /// names away must leave the object to the other.
    pub(super) fn named_elsewhere(&self, st: &State, id: FileId, but: (DirId, &[u8])) -> bool {
        let shows = |p: &Place| {
            let there = st.dirs.get(&p.0).filter(|c| !c.is_removed()).and_then(|c| c.dir.get(&p.1));
            (p.0, &p.1[..]) != but && there.and_then(|e| e.file_id()) == Some(id)
        };
        let first = |body: &Body| derived_ino(&(but.0, but.1.to_vec()), body);
        let entry = st.dirs.get(&but.0).and_then(|c| c.dir.get(but.1));
        let near = entry.map(|e| first(&e.body)).into_iter().flat_map(|i| i..i.saturating_add(NEIGHBOURS));
        st.renamed.peek(&id).is_some_and(shows) || near.filter_map(|i| st.nodes.get(&i)?.place.as_ref()).any(shows)
    }

    /// Names that another machine gave to files which this one removed: a deletion that has not begun is called off, and a name
    /// whose object is gone is taken away.
    pub(super) fn meet_removed(&self, st: &mut State, dir: DirId, changed: &[Vec<u8>]) -> Vec<Guard> {
        if dir == st.links || st.deleted.is_empty() && self.doomed.lock().is_empty() {
            return Vec::new();
        }
        let mut due = Vec::new();
        for name in changed {
            let Some(entry) = st.dirs.get(&dir).and_then(|c| c.dir.get(name)).cloned() else { continue };
            let Body::File(f) = &entry.body else { continue };
            if !st.deleted.contains(&f.file_id) {
                self.spare_key(&f.object_key());
                continue;
            }
            st.unplace(dir, name, &entry);
            match self.apply(st, vec![(dir, name.clone(), Change::default())]) {
                Ok(more) => due.extend(more),
                Err(e) => tracing::warn!("a name whose file is gone could not be taken away: {e}"),
            }
        }
        due
    }

    /// A file was found newer than its entry says. Whoever wrote it is about to tell the index, or has lost the name meanwhile to
    /// another machine that moved it: then nobody else would.
    pub(super) fn note_lag(&self, file: &File, v: &Version) {
        let Some(place) = file.place.lock().clone().filter(|_| !self.opts.read_only) else { return };
        let first = {
            let mut lagging = self.lagging.lock();
            lagging.put(file.id, (place, v.clone()));
            lagging.len() == 1
        };
        if let Some(fs) = self.arc().filter(|_| first) {
            self.rt.spawn(async move {
                tokio::time::sleep(LAG + fs.opts.dir_ttl.min(LAG)).await;
                fs.end_lag().await;
            });
        }
    }

    /// Entries that still are behind their files catch up.
    pub(super) async fn end_lag(&self) {
        while let Some((id, (place, v))) = { self.lagging.lock().pop_lru() } {
            if let Err(e) = self.reload(place.0).await {
                tracing::debug!("an entry may stay behind its file: {e}");
                continue;
            }
            self.catch_entry_up(id, Some(place), &v);
        }
    }

    /// A deletion failed: a name of the file may lead to something.
    pub(super) fn may_live(&self, file: Option<FileId>) {
        if let Some(id) = file {
            self.state.lock().deleted.pop(&id);
        }
    }

    /// An object is about to be deleted. `false` when that was called off.
    pub(super) fn deletes(&self, file: Option<FileId>, spared: &std::sync::atomic::AtomicBool) -> bool {
        let mut st = self.state.lock();
        if spared.load(std::sync::atomic::Ordering::Acquire) {
            return false;
        }
        if let Some(id) = file {
            st.deleted.put(id, ());
        }
        true
    }
}
