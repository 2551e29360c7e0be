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
//! When the bucket holds for a pending name what this machine has neither seen nor written, another machine changed it at the
//! same time: `merge.rs` decides, and [`Dir::take_clashes`] tells.

use super::merge::{Verdict, judge, merge, same};
use crate::format::entry::Entry;
use crate::types::DirId;
use std::collections::BTreeMap;
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
struct Pending {
    seq: u64,
    /// `base` is what the bucket held. After a crash nobody may know.
    known: bool,
    /// What was written here or may have been, beside `base`.
    tried: Vec<Option<Arc<Entry>>>,
    /// The write under way is the first that holds what is pending.
    flew: bool,
    /// What `base` stands for has another name on this machine: taking this one away deletes nothing.
    moved: bool,
    /// The bucket has all changes before this number.
    since: u64,
    base: Option<Arc<Entry>>,
    /// Part of an index write under way: the bucket may get it any moment.
    in_flight: bool,
    /// An index write that had it failed, and may have been carried out all the same; a merge tells.
    unsure: bool,
    wait: Vec<Arc<MoveToken>>,
    carry: Vec<Arc<MoveToken>>,
    after: Vec<Guard>,
}

impl Pending {
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

struct Slot {
    cookie: u64,
    entry: Arc<Entry>,
}

/// A change: the new entry of a name (or none), and what hangs on it.
#[derive(Default)]
pub struct Change {
    /// The new entry; `None` removes the name.
    pub entry: Option<Arc<Entry>>,
    /// A removal waits for these.
    pub wait: Vec<Arc<MoveToken>>,
    /// An arrival sets these.
    pub carry: Vec<Arc<MoveToken>>,
    /// Dropped when the change is in the bucket.
    pub after: Vec<Guard>,
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

/// A name that this machine and another one changed at the same time.
pub struct Clash {
    /// The name.
    pub name: Vec<u8>,
    /// Its change number here.
    pub seq: u64,
    /// What this machine had seen in the bucket.
    pub base: Option<Arc<Entry>>,
    /// What it shows.
    pub mine: Option<Arc<Entry>>,
    /// What the bucket holds.
    pub theirs: Option<Arc<Entry>>,
    /// What becomes of it. But for `Mine` nothing is pending any more.
    pub verdict: Verdict,
    /// What `base` stands for was renamed here.
    pub moved: bool,
    /// What an arrival under this name would have set.
    pub carry: Vec<Arc<MoveToken>>,
    /// What hung on the change.
    pub after: Vec<Guard>,
}

/// What a journal must remember of a name: its change number while it is pending, and its entry.
pub type Unsettled = (Vec<u8>, Option<u64>, Option<Arc<Entry>>);

/// A directory in memory.
pub struct Dir {
    /// Its id.
    pub id: DirId,
    loaded: bool,
    /// Taken for new and empty after a crash, yet the bucket may hold a first version.
    presumed: bool,
    entries: BTreeMap<Vec<u8>, Slot>,
    order: BTreeMap<u64, Vec<u8>>,
    pending: BTreeMap<Vec<u8>, Pending>,
    clashes: Vec<Clash>,
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

    /// States of a name that this machine has seen in the bucket or may have put there: what it saw last comes first. Empty when
    /// nobody knows.
    pub fn seen(&self, name: &[u8]) -> Vec<Option<Arc<Entry>>> {
        match self.pending.get(name) {
            Some(p) if p.known => std::iter::once(&p.base).chain(&p.tried).cloned().collect(),
            Some(_) => Vec::new(),
            None if self.loaded && !self.presumed => vec![self.get(name).cloned()],
            None => Vec::new(),
        }
    }

    /// Gives a pending name of an earlier mount what that one had [`seen`](Dir::seen).
    /// `moved`: what it saw last has another name since.
    pub fn recall(&mut self, name: &[u8], seen: &[Option<Arc<Entry>>], moved: bool) {
        if let (Some(p), Some((base, tried))) = (self.pending.get_mut(name), seen.split_first()) {
            (p.base, p.tried, p.known, p.moved) = (base.clone(), tried.to_vec(), true, moved);
        }
    }

    /// Names that another machine changed while they were pending here, found by merging since the last call.
    pub fn take_clashes(&mut self) -> Vec<Clash> {
        std::mem::take(&mut self.clashes)
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
        let pending = self.pending.iter().map(|(n, p)| (n.clone(), Some(p.seq), self.get(n).cloned()));
        let rest = self.entries.iter().filter(|(n, s)| !self.pending.contains_key(*n) && behind(&s.entry));
        pending.chain(rest.map(|(n, s)| (n.clone(), None, Some(s.entry.clone())))).collect()
    }

    /// The entry shown for a name.
    pub fn get(&self, name: &[u8]) -> Option<&Arc<Entry>> {
        self.entries.get(name).map(|s| &s.entry)
    }

    /// Entries after a cookie, in a stable order: a name keeps its cookie while it exists.
    pub fn after(&self, cookie: u64) -> impl Iterator<Item = (u64, &Arc<Entry>)> {
        self.order.range(cookie.saturating_add(1)..).filter_map(|(&c, name)| self.entries.get(name).map(|s| (c, &s.entry)))
    }

    /// All entries in order of name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.values().map(|s| &s.entry)
    }

    fn show(&mut self, name: &[u8], entry: Option<Arc<Entry>>) {
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
        let Change { entry, wait, carry, after } = change;
        let known = self.loaded && !self.presumed;
        let fresh = || Pending { base: shown.clone(), since: seq, known, ..Pending::default() };
        let p = self.pending.entry(name.to_vec()).or_insert_with(fresh);
        p.seq = seq;
        let is_base = |e: &Option<Arc<Entry>>| matches!((e, &p.base), (Some(e), Some(b)) if same(e, b));
        if is_base(&entry) {
            p.moved = false;
        } else if entry.is_none() && !wait.is_empty() && is_base(&shown) {
            p.moved = true;
        }
        p.after.extend(after);
        // Whoever waited for an arrival under this name waits no more once the name holds something else.
        let keep = std::mem::replace(&mut p.carry, carry);
        if entry.is_none() {
            keep.iter().for_each(|t| t.arrive());
            p.wait.extend(wait);
        } else {
            p.carry.extend(keep);
            p.wait.clear();
        }
        let gone = known && entry.is_none() && p.base.is_none() && !p.in_flight && !p.unsure;
        self.show(name, entry);
        match gone {
            true => self.pending.remove(name).map(|p| p.after).unwrap_or_default(),
            false => Vec::new(),
        }
    }

    /// The arrival tokens of a pending name.
    pub fn carried(&self, name: &[u8]) -> Vec<Arc<MoveToken>> {
        self.pending.get(name).map(|p| p.carry.clone()).unwrap_or_default()
    }

    /// What was moved is gone for good: the old name that waits for one of the tokens is a removal like any other from now on, and
    /// takes `guards` over. They come back when no name here waits.
    pub fn end_of_move(&mut self, tokens: &[Arc<MoveToken>], guards: Vec<Guard>) -> Vec<Guard> {
        let waits = |p: &&mut Pending| p.wait.iter().any(|w| tokens.iter().any(|t| Arc::ptr_eq(t, w)));
        let mut guards = Some(guards);
        for p in self.pending.values_mut().filter(waits) {
            p.moved = false;
            if p.base.is_some()
                && let Some(g) = guards.take()
            {
                p.after.extend(g);
            }
        }
        guards.unwrap_or_default()
    }

    /// Takes the arrival tokens off a pending name, for a rename that goes on from there.
    pub fn release_carry(&mut self, name: &[u8]) -> Vec<Arc<MoveToken>> {
        self.pending.get_mut(name).map(|p| std::mem::take(&mut p.carry)).unwrap_or_default()
    }

    /// Takes in what the bucket holds for the names that `covers` accepts (a shard's, or all). Pending names keep their local
    /// entry and learn their base, but where another machine changed the name meanwhile. Returns the names whose shown entry
    /// changed.
    pub fn merge(&mut self, remote: Vec<Arc<Entry>>, covers: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let mut changed = Vec::new();
        let mut theirs: BTreeMap<Vec<u8>, Arc<Entry>> = remote.into_iter().map(|e| (e.name.clone(), e)).collect();
        let gone: Vec<Vec<u8>> = self
            .entries
            .keys()
            .filter(|n| covers(n) && !theirs.contains_key(*n) && !self.pending.contains_key(*n))
            .cloned()
            .collect();
        for name in gone {
            self.show(&name, None);
            changed.push(name);
        }
        let names: Vec<Vec<u8>> = self.pending.keys().filter(|n| covers(n)).cloned().collect();
        for name in names {
            let there = theirs.remove(&name);
            if self.meet(&name, there) {
                changed.push(name);
            }
        }
        for (name, entry) in theirs {
            if self.get(&name).is_none_or(|e| **e != *entry) {
                self.show(&name, Some(entry));
                changed.push(name);
            }
        }
        // A removal of something the bucket does not hold is done.
        let done: Vec<Vec<u8>> = self
            .pending
            .iter()
            .filter(|(n, p)| covers(n) && p.base.is_none() && !p.in_flight && !self.entries.contains_key(*n))
            .map(|(n, _)| n.clone())
            .collect();
        for name in done {
            self.pending.remove(&name);
        }
        self.loaded = true;
        self.presumed = false;
        changed
    }

    /// A pending name meets what the bucket holds. Returns whether what is shown for it changed.
    fn meet(&mut self, name: &[u8], theirs: Option<Arc<Entry>>) -> bool {
        let mine = self.get(name).cloned();
        let Some(p) = self.pending.get_mut(name) else { return false };
        p.unsure = false;
        if !p.known {
            // Nothing to compare with; the contents of a file never go back all the same.
            let merged = match (&mine, &theirs) {
                (Some(m), Some(t)) if same(m, t) => Some(Arc::new(merge(None, m, t))),
                _ => mine.clone(),
            };
            (p.base, p.known) = (theirs, true);
            let changed = merged != mine;
            self.show(name, merged);
            return changed;
        }
        if p.base == theirs || p.tried.contains(&theirs) {
            // Of a write under way nobody knows yet whether it was that.
            if !p.in_flight {
                p.base = theirs;
            }
            return false;
        }
        let verdict = judge(p.base.as_deref(), mine.as_deref(), theirs.as_deref(), p.moved);
        let mut clash = Clash {
            name: name.to_vec(),
            seq: p.seq,
            base: std::mem::replace(&mut p.base, theirs.clone()),
            mine: mine.clone(),
            theirs: theirs.clone(),
            verdict: verdict.clone(),
            moved: p.moved,
            carry: Vec::new(),
            after: Vec::new(),
        };
        let shown = match verdict {
            Verdict::Mine(entry) => {
                // Renamed there as well, or replaced: the base is not what was moved away any more.
                p.moved &= matches!((&clash.base, &clash.theirs), (Some(b), Some(t)) if same(b, t));
                entry
            }
            _ => {
                if let Some(p) = self.pending.remove(name) {
                    (clash.carry, clash.after) = (p.carry, p.after);
                }
                theirs
            }
        };
        let changed = shown != mine;
        self.show(name, shown);
        self.clashes.push(clash);
        changed
    }

    /// Takes the pending names that can be written now: removals whose moved file has arrived, and entries that `ready` accepts
    /// (their object or index exists). At most `max` names.
    ///
    /// They count as in flight until [`Dir::commit`] or [`Dir::untake`].
    pub fn take(&mut self, ready: impl Fn(&Entry) -> bool, covers: impl Fn(&[u8]) -> bool, max: usize) -> Vec<Taken> {
        let entries = &self.entries;
        let mut batch = Vec::new();
        let mut here: Vec<Arc<MoveToken>> = Vec::new();
        // Arrivals first: a removal may go with the write that brings the file its new name, and never without it.
        for (name, p) in self.pending.iter_mut().filter(|(n, _)| covers(n)) {
            if batch.len() >= max {
                break;
            }
            if let Some(slot) = entries.get(name).filter(|s| ready(&s.entry)) {
                p.fly(Some(slot.entry.clone()));
                here.extend(p.carry.iter().cloned());
                batch.push(Taken { name: name.clone(), seq: p.seq, entry: Some(slot.entry.clone()) });
            }
        }
        let arrives = |t: &Arc<MoveToken>| t.arrived() || here.iter().any(|h| Arc::ptr_eq(h, t));
        for (name, p) in self.pending.iter_mut().filter(|(n, _)| covers(n) && !entries.contains_key(*n)) {
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
    /// are due, and whether a moved file arrived (somebody may be waiting).
    pub fn commit(&mut self, batch: &[Taken]) -> (Vec<Guard>, bool) {
        let mut due = Vec::new();
        let mut arrived = false;
        self.presumed = false;
        for t in batch {
            let Some(p) = self.pending.get_mut(&t.name) else { continue };
            p.in_flight = false;
            if t.seq == p.seq {
                if let Some(p) = self.pending.remove(&t.name) {
                    due.extend(p.after);
                    arrived |= !p.carry.is_empty();
                    p.carry.iter().for_each(|t| t.arrive());
                }
            } else {
                (p.base, p.since, p.known) = (t.entry.clone(), t.seq + 1, true);
                p.moved = false;
                p.tried.clear();
                if p.base.is_none()
                    && !self.entries.contains_key(&t.name)
                    && let Some(p) = self.pending.remove(&t.name)
                {
                    due.extend(p.after);
                }
            }
        }
        (due, arrived)
    }
}
