//! Directories that are removed while they are in the bucket, as the directory that names them and the directory itself see it. Pure.

use super::dir::{Change, Dir, Guard};
use super::merge::same;
use crate::format::entry::Entry;
use crate::types::DirId;
use std::sync::Arc;

impl Dir {
    /// The directory that the bucket holds under a name.
    pub fn dir_in_bucket(&self, name: &[u8]) -> Option<DirId> {
        self.bucket_entry(name).and_then(|e| e.dir_id())
    }

    /// What the bucket holds under a name, as far as is known.
    pub fn bucket_entry(&self, name: &[u8]) -> Option<&Arc<Entry>> {
        match self.pending.get(name) {
            Some(p) => p.base.as_ref(),
            None => self.get(name),
        }
    }

    /// The name under which the bucket holds a directory.
    pub fn name_in_bucket(&self, id: DirId) -> Option<Vec<u8>> {
        let is_it = |e: &Entry| e.dir_id() == Some(id);
        let pending = self.pending.iter().find(|(_, p)| p.base.as_deref().is_some_and(is_it)).map(|(n, _)| n);
        let settled = || self.iter().find(|e| is_it(e) && !self.pending.contains_key(&e.name)).map(|e| &e.name);
        pending.or_else(settled).cloned()
    }

    /// Directories that the bucket holds under pending names which stand for something else here, or for nothing.
    pub fn displaced(&self) -> Vec<(Vec<u8>, DirId)> {
        let other = |n: &Vec<u8>, base: &Entry| self.get(n).is_none_or(|e| !same(e, base));
        let all = self.pending.iter().filter_map(|(n, p)| Some((n, p.base.as_ref()?)));
        all.filter(|(n, base)| other(n, base)).filter_map(|(n, base)| Some((n.clone(), base.dir_id()?))).collect()
    }

    /// No index write takes these names, until the next call.
    pub fn keep_back(&mut self, names: impl IntoIterator<Item = Vec<u8>>) {
        self.kept_back = names.into_iter().collect();
    }

    /// Hangs something on the change of a name. Gives it back when nothing is pending there.
    pub fn hang(&mut self, name: &[u8], guard: Guard) -> Option<Guard> {
        match self.pending.get_mut(name) {
            Some(p) => {
                p.after.push(guard);
                None
            }
            None => Some(guard),
        }
    }

    /// A name that was removed here stands for what the bucket holds again. Gives that entry, its change number, and what hung on
    /// the removal.
    pub fn take_back(&mut self, name: &[u8]) -> Option<(Arc<Entry>, u64, Vec<Guard>)> {
        if self.get(name).is_some() {
            return None;
        }
        let base = self.pending.get(name)?.base.clone()?;
        let p = self.pending.remove(name)?;
        let seq = p.seq;
        self.show(name, Some(base.clone()));
        Some((base, seq, p.settle()))
    }

    /// A name that was given to something else here stands for what the bucket holds again. Gives what hung on the change.
    pub fn give_way(&mut self, name: &[u8]) -> Option<Change> {
        let base = self.pending.get(name)?.base.clone()?;
        let p = self.pending.remove(name)?;
        self.show(name, Some(base));
        p.left.iter().for_each(|(_, (_, token))| token.arrive());
        Some(Change { wait: p.wait, carry: p.carry, after: p.after, ..Change::default() })
    }

    /// Whether the bucket holds, under this name, what is shown for it (perhaps an older state of it).
    pub fn is_reached(&self, name: &[u8]) -> bool {
        match (self.pending.get(name), self.get(name)) {
            (Some(p), Some(e)) => p.base.as_ref().is_some_and(|b| same(b, e)),
            (Some(p), None) => p.base.is_some(),
            (None, shown) => shown.is_some(),
        }
    }

    /// The same names in another directory, of which the bucket holds nothing yet: the one that they were in is gone. Call it after
    /// what the bucket holds (nothing) was merged. Gives what hung on removals.
    pub fn rehome(&mut self, id: DirId) -> Vec<Guard> {
        (self.id, self.loaded, self.presumed) = (id, true, false);
        self.kept_back.clear();
        let mut due = Vec::new();
        let gone: Vec<Vec<u8>> = self.pending.keys().filter(|n| self.get(n).is_none()).cloned().collect();
        for name in gone {
            due.extend(self.pending.remove(&name).map(super::dir::Pending::settle).unwrap_or_default());
        }
        for p in self.pending.values_mut() {
            (p.known, p.flew, p.in_flight, p.unsure, p.moved) = (true, false, false, false, false);
            (p.base, p.off) = (None, None);
            p.tried.clear();
            p.left.drain(..).for_each(|(_, (_, token))| token.arrive());
        }
        due
    }
}
