//! One directory in memory: what this machine shows, what the bucket holds, and which names differ. Pure.
//!
//! ```text
//!             set()                    take()+write                 commit()
//!   clean  ----------->  pending(seq)  ----------->  in flight  --------------->  clean
//!                            ^                            |
//!                            +--- set() again, or --------+
//!                                 the swap failed (merge() first)
//! ```
//!
//! A pending name remembers `base`, the entry that the bucket holds for it. What goes into the next index object is, name by
//! name: the local entry when the name is taken into the batch, `base` when it is pending but not ready, else the entry.
//!
//! In the links directory entries count their names (`refs`). Two machines' counts are combined as sets: see [`Delta`].
//!
//! What a pending name meets when the bucket is read again is in `meet.rs`.

use super::delta::Delta;
use super::meet::Clash;
use super::merge::same;
use crate::format::entry::Entry;
use crate::types::{DirId, FileId, LinkRef};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Something that is dropped once a name's change is in the bucket: an object to delete, a log to destroy.
pub type Guard = Box<dyn std::any::Any + Send + Sync>;

/// Ties the removal of an old name to the arrival of the new one, so that a moved file always has a name in the bucket.
#[derive(Debug, Default)]
pub struct MoveToken(AtomicBool);

impl MoveToken {
    /// The new name is in the bucket, or the file is gone for good.
    pub fn arrived(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Nobody needs to wait for the arrival any more.
    pub fn arrive(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// States of a name that this machine may have written, and that are no surprise when the bucket holds them.
const TRIED: usize = 16;

/// A change of one name that the bucket does not hold yet.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) seq: u64,
    /// `base` is what the bucket held. After a crash nobody may know.
    pub(super) known: bool,
    /// What was written here or may have been, beside `base`.
    pub(super) tried: Vec<Option<Arc<Entry>>>,
    /// The write under way is the first that holds what is pending.
    pub(super) flew: bool,
    /// What `base` stands for has another name on this machine: taking this one away deletes nothing.
    pub(super) moved: bool,
    /// What was shown when the name was moved away last.
    pub(super) off: Option<Arc<Entry>>,
    /// The bucket has all changes before this number.
    pub(super) since: u64,
    pub(super) base: Option<Arc<Entry>>,
    /// Part of an index write under way: the bucket may get it any moment.
    pub(super) in_flight: bool,
    /// An index write that had it failed, and may have been carried out all the same; a merge tells.
    pub(super) unsure: bool,
    /// What is on its way was seen in the bucket.
    pub(super) hidden: bool,
    pub(super) wait: Vec<Arc<MoveToken>>,
    pub(super) carry: Vec<Arc<MoveToken>>,
    pub(super) after: Vec<Guard>,
    /// Links that the bucket may still hold under this name, and the change that took them away.
    pub(super) left: Vec<(u64, Left)>,
    /// What was done to the names that lead here, since `base`.
    pub(super) delta: Delta,
    /// Names that were taken away here and may still be in the bucket: they are counted there until they have gone.
    pub(super) held: Vec<Left>,
}

/// A name of a file with several that is gone: set once the bucket does not hold it any more.
pub type Left = (LinkRef, Arc<MoveToken>);

impl Pending {
    /// The name stands for `entry` now, and what was `shown` has another name, if it `leaves`.
    fn leave(&mut self, shown: &Option<Arc<Entry>>, entry: &Option<Arc<Entry>>, leaves: bool) {
        if alike(entry, &self.base) {
            self.moved = false;
        } else if leaves && alike(shown, &self.base) {
            self.moved = true;
        }
        if leaves {
            self.off.clone_from(shown);
        } else if alike(entry, &self.off) {
            self.off = None;
        }
    }

    /// Part of an index write from now on.
    fn fly(&mut self, entry: Option<Arc<Entry>>) {
        self.in_flight = true;
        self.flew = !self.tried.contains(&entry);
        if self.flew {
            if self.tried.len() >= TRIED {
                self.tried.remove(0);
            }
            self.tried.push(entry);
        }
    }
}

pub(super) struct Slot {
    cookie: u64,
    entry: Arc<Entry>,
}

/// A change: the new entry of a name (or none), and what hangs on it.
#[derive(Default)]
pub struct Change {
    /// The new entry; `None` removes the name.
    pub entry: Option<Arc<Entry>>,
    /// The change waits for these.
    pub wait: Vec<Arc<MoveToken>>,
    /// An arrival sets these.
    pub carry: Vec<Arc<MoveToken>>,
    /// Dropped when the change is in the bucket.
    pub after: Vec<Guard>,
    /// The links that the name was and is not any more.
    pub left: Vec<Left>,
    /// In the links directory: names that are taken off the entry once they have gone.
    pub held: Vec<Left>,
    /// What the name stood for gets another name in the same step, and this one something else.
    pub exchanged: bool,
    /// After a crash: what was done to the entry's names. Otherwise it follows from what is shown.
    pub delta: Option<Delta>,
}

/// A name taken into an index write.
#[derive(Clone, Debug)]
pub struct Taken {
    /// The name.
    pub name: Vec<u8>,
    /// Its change number at the time.
    pub seq: u64,
    /// What is written: an entry or its absence.
    pub entry: Option<Arc<Entry>>,
}

/// What a journal must remember of a name.
pub struct Unsettled {
    /// The name.
    pub name: Vec<u8>,
    /// Its change number while it is pending.
    pub seq: Option<u64>,
    /// Its entry.
    pub entry: Option<Arc<Entry>>,
    /// What was done to the names that lead to it.
    pub delta: Delta,
    /// Links that the bucket may still hold under the name.
    pub left: Vec<LinkRef>,
}
/// A directory in memory.
pub struct Dir {
    /// Its id.
    pub id: DirId,
    pub(super) loaded: bool,
    /// Taken for new and empty after a crash, yet the bucket may hold a first version.
    pub(super) presumed: bool,
    pub(super) entries: BTreeMap<Vec<u8>, Slot>,
    order: BTreeMap<u64, Vec<u8>>,
    pub(super) pending: BTreeMap<Vec<u8>, Pending>,
    pub(super) clashes: Vec<Clash>,
    /// Names that no index write may take: they stand for directories which are about to be removed.
    pub(super) kept_back: BTreeSet<Vec<u8>>,
    next_cookie: u64,
    dirs: u32,
}

/// Cookies below this are `.` and `..`.
pub const FIRST_COOKIE: u64 = 3;

impl Dir {
    /// A directory of which nothing is known yet.
    pub fn unloaded(id: DirId) -> Dir {
        Dir {
            id,
            loaded: false,
            presumed: false,
            entries: BTreeMap::new(),
            order: BTreeMap::new(),
            pending: BTreeMap::new(),
            clashes: Vec::new(),
            kept_back: BTreeSet::new(),
            next_cookie: FIRST_COOKIE,
            dirs: 0,
        }
    }

    /// A new, empty directory.
    pub fn empty(id: DirId) -> Dir {
        Dir { loaded: true, ..Dir::unloaded(id) }
    }

    /// A directory that was new when its machine stopped: shown as empty, but what it removes is removed from the bucket too, in
    /// case a first version did land.
    pub fn presumed(id: DirId) -> Dir {
        Dir { presumed: true, ..Dir::empty(id) }
    }

    /// Whether the entries are known.
    pub fn is_loaded(&self) -> bool {
        self.loaded
    }

    /// Number of entries shown.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// No entries?
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of subdirectories (for the link count).
    pub fn subdirs(&self) -> u32 {
        self.dirs
    }

    /// Whether any name differs from the bucket.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether a write failed since the bucket was looked at last, and may have been carried out all the same.
    pub fn is_unsure(&self) -> bool {
        self.pending.values().any(|p| p.unsure && !p.in_flight)
    }

    /// Number of names that differ from the bucket.
    pub fn pending_count(&self) -> usize {
        self.pending.len()
    }

    /// The change number of a pending name.
    pub fn pending_seq(&self, name: &[u8]) -> Option<u64> {
        self.pending.get(name).map(|p| p.seq)
    }

    /// Whether the bucket holds an entry of this name, perhaps an older one.
    pub fn in_bucket(&self, name: &[u8]) -> bool {
        match self.pending.get(name) {
            Some(p) => p.base.is_some(),
            None => self.entries.contains_key(name),
        }
    }

    /// Whether the bucket had a name for a file when this machine looked last.
    pub fn names_in_bucket(&self, id: FileId) -> bool {
        let is_it = |e: &Entry| e.file_id() == Some(id);
        let settled = |(n, s): (&Vec<u8>, &Slot)| is_it(&s.entry) && !self.pending.contains_key(n);
        self.pending.values().any(|p| p.base.as_deref().is_some_and(is_it)) || self.entries.iter().any(settled)
    }

    /// Entries that the bucket does not hold under their name, not even in another state.
    pub fn arrivals(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.pending.iter().filter_map(|(n, p)| self.get(n).filter(|e| p.base.as_ref().is_none_or(|b| !same(b, e))))
    }

    /// Whether the bucket has all changes up to number `seq`.
    pub fn settled_until(&self, seq: u64) -> bool {
        self.pending.values().all(|p| p.since > seq)
    }

    /// Whether the bucket has all changes of a name up to number `seq`.
    pub fn name_settled_until(&self, name: &[u8], seq: u64) -> bool {
        self.pending.get(name).is_none_or(|p| p.since > seq)
    }

    /// Pending names with their change numbers, and names whose entry `behind` accepts: what a journal must remember.
    pub fn unsettled(&self, behind: impl Fn(&Entry) -> bool) -> Vec<Unsettled> {
        let pending = self.pending.iter().map(|(n, p)| Unsettled {
            name: n.clone(),
            seq: Some(p.seq),
            entry: self.get(n).cloned(),
            delta: p.delta.clone(),
            left: p.left.iter().map(|(_, (r, _))| *r).collect(),
        });
        let rest = self.entries.iter().filter(|(n, s)| !self.pending.contains_key(*n) && behind(&s.entry));
        let rest = rest.map(|(n, s)| Unsettled {
            name: n.clone(),
            seq: None,
            entry: Some(s.entry.clone()),
            delta: Delta::default(),
            left: Vec::new(),
        });
        pending.chain(rest).collect()
    }

    /// What a journal must remember of a name that is about to become `entry`: see [`Unsettled`].
    pub fn foresee(&self, name: &[u8], entry: Option<&Entry>) -> (Delta, Vec<LinkRef>) {
        let p = self.pending.get(name);
        let mut delta = p.map(|p| p.delta.clone()).unwrap_or_default();
        delta.step(refs_of(self.get(name).map(|e| &**e)), refs_of(entry));
        let left = p.iter().flat_map(|p| p.left.iter().map(|(_, (r, _))| *r));
        let shown = self.get(name).and_then(|e| e.link()).map(|l| l.own);
        let now = entry.and_then(Entry::link).map(|l| l.own);
        (delta, left.chain(shown.filter(|s| Some(*s) != now)).collect())
    }

    /// Links that the bucket may still hold in this directory: they go with it when it is removed.
    pub fn lefts(&self) -> Vec<Left> {
        self.pending.values().flat_map(|p| p.left.iter().map(|(_, l)| l.clone())).collect()
    }

    /// Pending names that are links to an inode.
    pub fn pending_links(&self, inode: &[u8]) -> Vec<Vec<u8>> {
        let leads = |n: &Vec<u8>| self.get(n).and_then(|e| e.link()).is_some_and(|l| l.inode_name() == inode);
        self.pending.keys().filter(|n| leads(n)).cloned().collect()
    }

    /// The entry shown for a name.
    pub fn get(&self, name: &[u8]) -> Option<&Arc<Entry>> {
        self.entries.get(name).map(|s| &s.entry)
    }

    /// Entries after a cookie, in a stable order: a name keeps its cookie while it exists.
    pub fn after(&self, cookie: u64) -> impl Iterator<Item = (u64, &Arc<Entry>)> {
        self.order.range(cookie.saturating_add(1)..).filter_map(|(&c, name)| self.entries.get(name).map(|s| (c, &s.entry)))
    }

    /// The cookie that the next new name gets: above all that there are.
    pub fn next_cookie(&self) -> u64 {
        self.next_cookie
    }

    /// All entries in order of name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.values().map(|s| &s.entry)
    }

    pub(super) fn show(&mut self, name: &[u8], entry: Option<Arc<Entry>>) {
        match entry {
            Some(entry) => {
                self.dirs += u32::from(entry.is_dir());
                if let Some(slot) = self.entries.get_mut(name) {
                    self.dirs -= u32::from(slot.entry.is_dir());
                    slot.entry = entry;
                } else {
                    let cookie = self.next_cookie;
                    self.next_cookie += 1;
                    self.order.insert(cookie, name.to_vec());
                    self.entries.insert(name.to_vec(), Slot { cookie, entry });
                }
            }
            None => {
                if let Some(slot) = self.entries.remove(name) {
                    self.dirs -= u32::from(slot.entry.is_dir());
                    self.order.remove(&slot.cookie);
                }
            }
        }
    }

    /// Changes a name here and marks it pending under change number `seq` (ever growing). Works before loading too (recovery).
    ///
    /// Returns guards that have become due at once: a file that came and went before the bucket heard of it.
    pub fn set(&mut self, name: &[u8], seq: u64, change: Change) -> Vec<Guard> {
        let shown = self.get(name).cloned();
        let Change { entry, wait, carry, after, left, held, exchanged, delta } = change;
        let known = self.loaded && !self.presumed;
        let fresh = || Pending { base: shown.clone(), since: seq, known, ..Pending::default() };
        let p = self.pending.entry(name.to_vec()).or_insert_with(fresh);
        p.seq = seq;
        let leaves = exchanged || entry.is_none() && !wait.is_empty();
        p.leave(&shown, &entry, leaves);
        p.after.extend(after);
        p.left.extend(left.into_iter().map(|l| (seq, l)));
        p.held.extend(held);
        match delta {
            Some(delta) => p.delta = delta,
            None => p.delta.step(refs_of(shown.as_deref()), refs_of(entry.as_deref())),
        }
        // Whoever waited for an arrival under this name waits no more once the name holds something else.
        let keep = std::mem::replace(&mut p.carry, carry);
        if entry.is_none() {
            keep.iter().for_each(|t| t.arrive());
            p.wait.extend(wait);
            p.wait.extend(p.held.drain(..).map(|(_, token)| token));
        } else {
            p.carry.extend(keep);
            p.wait = wait;
        }
        let gone = known && entry.is_none() && p.base.is_none() && !p.in_flight && !p.unsure;
        self.show(name, entry);
        match gone {
            true => self.pending.remove(name).map(Pending::settle).unwrap_or_default(),
            false => Vec::new(),
        }
    }

    /// The arrival tokens of a pending name.
    pub fn carried(&self, name: &[u8]) -> Vec<Arc<MoveToken>> {
        self.pending.get(name).map(|p| p.carry.clone()).unwrap_or_default()
    }

    /// Takes the arrival tokens off a pending name, for a rename that goes on from there.
    pub fn release_carry(&mut self, name: &[u8]) -> Vec<Arc<MoveToken>> {
        self.pending.get_mut(name).map(|p| std::mem::take(&mut p.carry)).unwrap_or_default()
    }

    /// Takes the pending names that can be written now: removals whose moved file has arrived, and entries that `ready` accepts
    /// (their object or index exists). At most `max` names.
    ///
    /// They count as in flight until [`Dir::commit`] or [`Dir::untake`].
    pub fn take(&mut self, ready: impl Fn(&Entry) -> bool, covers: impl Fn(&[u8]) -> bool, max: usize) -> Vec<Taken> {
        let mut batch = Vec::new();
        let mut here: Vec<Arc<MoveToken>> = Vec::new();
        // Arrivals first: a removal may go with the write that brings the file its new name, and never without it. An arrival
        // may wait for another one.
        loop {
            let before = batch.len();
            self.take_arrivals(&ready, &covers, max, &mut batch, &mut here);
            if batch.len() == before || here.is_empty() {
                break;
            }
        }
        let (entries, kept_back) = (&self.entries, &self.kept_back);
        let arrives = |t: &Arc<MoveToken>| t.arrived() || here.iter().any(|h| Arc::ptr_eq(h, t));
        let gone = |n: &Vec<u8>| covers(n) && !entries.contains_key(n) && !kept_back.contains(n);
        for (name, p) in self.pending.iter_mut().filter(|(n, _)| gone(n)) {
            if batch.len() >= max {
                break;
            }
            if p.wait.iter().all(arrives) {
                p.fly(None);
                batch.push(Taken { name: name.clone(), seq: p.seq, entry: None });
            }
        }
        batch
    }

    fn take_arrivals(
        &mut self,
        ready: &impl Fn(&Entry) -> bool,
        covers: &impl Fn(&[u8]) -> bool,
        max: usize,
        batch: &mut Vec<Taken>,
        here: &mut Vec<Arc<MoveToken>>,
    ) {
        let entries = &self.entries;
        let first = batch.is_empty();
        let kept_back = &self.kept_back;
        for (name, p) in self.pending.iter_mut().filter(|(n, _)| covers(n) && !kept_back.contains(*n)) {
            if batch.len() >= max {
                break;
            }
            // In a second round only what had to wait in the first.
            if !first && p.wait.is_empty() || p.in_flight {
                continue;
            }
            let Some(slot) = entries.get(name).filter(|s| ready(&s.entry)) else { continue };
            if !p.wait.iter().all(|t| t.arrived() || here.iter().any(|h| Arc::ptr_eq(h, t))) {
                continue;
            }
            let entry = p.with_held(&slot.entry);
            if p.base.as_ref() == Some(&entry) && !p.held.is_empty() && p.carry.is_empty() {
                // All that is left to do is to take names off, and they are still there.
                continue;
            }
            p.fly(Some(entry.clone()));
            here.extend(p.carry.iter().cloned());
            batch.push(Taken { name: name.clone(), seq: p.seq, entry: Some(entry) });
        }
    }

    /// The write of `batch` failed (`refused`: for certain), or nobody knows: its names are pending as before. Merge what the
    /// bucket holds before the next.
    pub fn untake(&mut self, batch: &[Taken], refused: bool) {
        for t in batch {
            if let Some(p) = self.pending.get_mut(&t.name) {
                p.in_flight = false;
                p.unsure = true;
                // Should the bucket hold the same by now, then it is another machine's doing.
                if std::mem::take(&mut p.flew) && refused {
                    p.tried.pop();
                }
            }
        }
    }

    /// What the bucket shall hold with `batch` (in order of name): see the head of this file.
    pub fn content(&self, batch: &[Taken], covers: impl Fn(&[u8]) -> bool) -> Vec<Arc<Entry>> {
        let taken: BTreeMap<&[u8], &Taken> = batch.iter().map(|t| (t.name.as_slice(), t)).collect();
        let mut out: BTreeMap<&[u8], Arc<Entry>> = BTreeMap::new();
        for (name, slot) in self.entries.iter().filter(|(n, _)| covers(n) && !self.pending.contains_key(*n)) {
            out.insert(name, slot.entry.clone());
        }
        for (name, p) in self.pending.iter().filter(|(n, _)| covers(n)) {
            let entry = match taken.get(name.as_slice()) {
                Some(t) => t.entry.clone(),
                None => p.base.clone(),
            };
            if let Some(e) = entry {
                out.insert(name, e);
            }
        }
        out.into_values().collect()
    }

    /// `batch` is in the bucket. Names that did not change since are clean; the others have a new base. Returns the guards that
    /// are due, and whether something arrived or went that somebody may be waiting for.
    pub fn commit(&mut self, batch: &[Taken]) -> (Vec<Guard>, bool) {
        let mut due = Vec::new();
        let mut awaited = false;
        self.presumed = false;
        for t in batch {
            let shown = self.get(&t.name).cloned();
            let Some(p) = self.pending.get_mut(&t.name) else { continue };
            p.in_flight = false;
            p.left.retain(|(seq, (_, token))| {
                let gone = *seq <= t.seq;
                if gone {
                    token.arrive();
                    awaited = true;
                }
                !gone
            });
            let whole = t.seq == p.seq && t.entry == shown;
            if t.seq == p.seq {
                awaited |= !p.carry.is_empty();
                p.carry.drain(..).for_each(|t| t.arrive());
            }
            if whole || (t.entry.is_none() && shown.is_none()) {
                due.extend(self.pending.remove(&t.name).map(Pending::settle).unwrap_or_default());
                continue;
            }
            if t.seq == p.seq {
                // Nothing is missing but that names are taken off which are still there.
                due.append(&mut p.after);
            }
            // Moved away while it was on its way: it has another name all the same.
            p.moved = alike(&p.off, &t.entry) && !alike(&shown, &t.entry);
            (p.base, p.since, p.known) = (t.entry.clone(), t.seq + 1, true);
            p.tried.clear();
            p.delta = Delta::between(refs_of(t.entry.as_deref()), refs_of(shown.as_deref()));
        }
        (due, awaited)
    }
}

impl Pending {
    /// The bucket has it: whoever waited for it goes on. Gives the guards that are due.
    pub(super) fn settle(self) -> Vec<Guard> {
        self.carry.iter().for_each(|t| t.arrive());
        self.left.iter().for_each(|(_, (_, t))| t.arrive());
        self.after
    }

    /// What the bucket shall hold of an inode: names that were taken off and are still there count on.
    fn with_held(&mut self, entry: &Arc<Entry>) -> Arc<Entry> {
        self.held.retain(|(_, token)| !token.arrived());
        if self.held.iter().all(|(r, _)| entry.refs.contains(r)) {
            return entry.clone();
        }
        let mut whole = Entry::clone(entry);
        whole.refs.extend(self.held.iter().map(|(r, _)| *r));
        whole.refs.sort_unstable();
        whole.refs.dedup();
        Arc::new(whole)
    }
}

fn alike(a: &Option<Arc<Entry>>, b: &Option<Arc<Entry>>) -> bool {
    matches!((a, b), (Some(a), Some(b)) if same(a, b))
}

pub(super) fn refs_of(entry: Option<&Entry>) -> &[LinkRef] {
    entry.map_or(&[], |e| &e.refs)
}
