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

    fn set(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A change of one name that the bucket does not hold yet.
#[derive(Default)]
struct Pending {
    seq: u64,
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
        let p = self.pending.entry(name.to_vec()).or_insert_with(|| Pending { base: shown, since: seq, ..Pending::default() });
        p.seq = seq;
        p.after.extend(after);
        // Whoever waited for an arrival under this name waits no more once the name holds something else.
        let keep = std::mem::replace(&mut p.carry, carry);
        if entry.is_none() {
            keep.iter().for_each(|t| t.set());
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

    /// Takes the arrival tokens off a pending name, for a rename that goes on from there.
    pub fn release_carry(&mut self, name: &[u8]) -> Vec<Arc<MoveToken>> {
        self.pending.get_mut(name).map(|p| std::mem::take(&mut p.carry)).unwrap_or_default()
    }

    /// Takes in what the bucket holds for the names that `covers` accepts (a shard's, or all). Pending names keep their local
    /// entry and learn their base. Returns the names whose shown entry changed.
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
        for (name, p) in self.pending.iter_mut().filter(|(n, _)| covers(n)) {
            p.base = theirs.remove(name);
            p.unsure = false;
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
                p.in_flight = true;
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
                p.in_flight = true;
                batch.push(Taken { name: name.clone(), seq: p.seq, entry: None });
            }
        }
        batch
    }

    /// The write of `batch` failed, or nobody knows: its names are pending as before. Merge what the bucket holds before the next.
    pub fn untake(&mut self, batch: &[Taken]) {
        for t in batch {
            if let Some(p) = self.pending.get_mut(&t.name) {
                p.in_flight = false;
                p.unsure = true;
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
                    p.carry.iter().for_each(|t| t.set());
                }
            } else {
                (p.base, p.since) = (t.entry.clone(), t.seq + 1);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::entry::{Attributes, Body};
    use proptest::prelude::*;

    fn entry(name: &str, tag: u32) -> Arc<Entry> {
        Arc::new(Entry {
            name: name.as_bytes().to_vec(),
            attributes: Attributes { uid: tag, ..Attributes::default() },
            body: Body::Fifo,
            xattrs: Vec::new(),
        })
    }
    fn put(name: &str, tag: u32) -> Change {
        Change { entry: Some(entry(name, tag)), ..Change::default() }
    }
    fn shown(d: &Dir) -> Vec<(String, u32)> {
        d.iter().map(|e| (String::from_utf8_lossy(&e.name).into_owned(), e.attributes.uid)).collect()
    }
    fn tags(v: &[Arc<Entry>]) -> Vec<u32> {
        v.iter().map(|e| e.attributes.uid).collect()
    }
    const ALL: fn(&[u8]) -> bool = |_| true;

    #[test]
    fn a_change_is_settled_once_the_bucket_has_it_and_not_before() {
        let mut d = Dir::unloaded(DirId([1; 16]));
        d.merge(vec![entry("a", 1)], ALL);
        d.set(b"a", 5, put("a", 10));
        let batch = d.take(|_| true, ALL, 100);
        d.set(b"a", 6, put("a", 11));
        // A newer change is pending: that says nothing about the one before it.
        assert!(d.settled_until(4) && !d.settled_until(5) && !d.name_settled_until(b"a", 5));
        d.commit(&batch);
        assert!(d.settled_until(5) && d.name_settled_until(b"a", 5) && !d.name_settled_until(b"a", 6));
        let batch = d.take(|_| true, ALL, 100);
        d.commit(&batch);
        assert!(d.settled_until(6) && d.name_settled_until(b"a", 6));
    }

    #[test]
    fn a_name_that_is_not_ready_keeps_its_old_entry_in_the_bucket() {
        let mut d = Dir::unloaded(DirId([1; 16]));
        d.merge(vec![entry("a", 1), entry("b", 2)], ALL);
        d.set(b"a", 1, put("a", 10));
        d.set(b"b", 2, put("b", 20));
        let batch = d.take(|e| e.attributes.uid != 10, ALL, 100);
        assert_eq!(tags(&d.content(&batch, ALL)), [1, 20]);
        d.commit(&batch);
        assert_eq!(d.pending_count(), 1);
        assert_eq!(shown(&d), [("a".into(), 10), ("b".into(), 20)]);
    }

    #[test]
    fn a_removal_waits_for_the_arrival_of_the_moved_file() {
        let mut a = Dir::unloaded(DirId([1; 16]));
        a.merge(vec![entry("x", 1)], ALL);
        let mut b = Dir::empty(DirId([2; 16]));
        let token = Arc::new(MoveToken::default());
        a.set(b"x", 1, Change { wait: vec![token.clone()], ..Change::default() });
        b.set(b"y", 2, Change { carry: vec![token], ..put("y", 1) });
        assert!(a.take(|_| true, ALL, 9).is_empty());
        let batch = b.take(|_| true, ALL, 9);
        assert!(b.commit(&batch).1);
        assert_eq!(a.take(|_| true, ALL, 9).len(), 1);
    }

    #[test]
    fn came_and_went_leaves_nothing_pending_and_frees_its_guards() {
        let mut d = Dir::empty(DirId([1; 16]));
        d.set(b"t", 1, Change { after: vec![Box::new(1u8)], ..put("t", 1) });
        let due = d.set(b"t", 2, Change::default());
        assert_eq!(due.len(), 1);
        assert!(!d.has_pending());
    }

    #[test]
    fn changed_again_while_in_flight_stays_pending_with_the_new_base() {
        let mut d = Dir::empty(DirId([1; 16]));
        d.set(b"f", 1, put("f", 1));
        let batch = d.take(|_| true, ALL, 9);
        d.set(b"f", 2, Change::default());
        assert!(d.has_pending(), "the write under way may bring f back");
        d.commit(&batch);
        let batch = d.take(|_| true, ALL, 9);
        assert_eq!(batch.len(), 1);
        assert!(batch[0].entry.is_none());
        d.commit(&batch);
        assert!(!d.has_pending());
    }

    #[test]
    fn a_failed_write_may_have_landed_until_a_merge_tells() {
        let mut d = Dir::empty(DirId([1; 16]));
        d.set(b"f", 1, put("f", 1));
        let batch = d.take(|_| true, ALL, 9);
        d.untake(&batch);
        assert!(d.set(b"f", 2, Change { after: vec![Box::new(1u8)], ..Change::default() }).is_empty());
        assert!(d.has_pending(), "the bucket may hold f by now");
        d.merge(vec![entry("f", 1)], ALL);
        assert_eq!(d.take(|_| true, ALL, 9).len(), 1);
        d.merge(Vec::new(), ALL);
        assert!(d.has_pending(), "in flight");
    }

    #[test]
    fn a_removal_never_goes_without_the_arrival_it_waits_for() {
        let mut d = Dir::unloaded(DirId([1; 16]));
        d.merge((0..50).map(|i| entry(&format!("a{i:02}"), i)).collect(), ALL);
        for i in 0..50u64 {
            let token = Arc::new(MoveToken::default());
            d.set(format!("a{i:02}").as_bytes(), i + 1, Change { wait: vec![token.clone()], ..Change::default() });
            d.set(format!("z{i:02}").as_bytes(), i + 1, Change { carry: vec![token], ..put(&format!("z{i:02}"), i as u32) });
        }
        while d.has_pending() {
            let batch = d.take(|_| true, ALL, 30);
            let held = tags(&d.content(&batch, ALL));
            assert!((0..50).all(|i| held.contains(&i)), "every file has a name at every moment");
            d.commit(&batch);
        }
    }

    #[test]
    fn cookies_are_stable_while_the_directory_changes() {
        let mut d = Dir::unloaded(DirId([1; 16]));
        d.merge((0..100).map(|i| entry(&format!("f{i:03}"), i)).collect(), ALL);
        let first: Vec<u64> = d.after(0).take(50).map(|(c, _)| c).collect();
        for i in 0..100 {
            if i % 3 == 0 {
                d.set(format!("f{i:03}").as_bytes(), i + 1, Change::default());
            }
        }
        d.set(b"a-new", 1000, put("a-new", 1));
        let rest: Vec<u32> = d.after(first[49]).map(|(_, e)| e.attributes.uid).collect();
        let want: Vec<u32> = (50..100).filter(|i| i % 3 != 0).chain([1]).collect();
        assert_eq!(rest, want);
    }

    proptest! {
        /// Whatever two writers do, once both have committed with merges, both show what the bucket holds, and no name that
        /// only one of them touched is lost.
        #[test]
        fn two_writers_converge(ops in proptest::collection::vec((0..2usize, 0..6u8, 0..3u8), 1..60)) {
            let mut bucket: Vec<Arc<Entry>> = vec![];
            let mut version = 0u32;
            let mut dirs = [Dir::empty(DirId([1; 16])), Dir::empty(DirId([1; 16]))];
            let mut seen = [0u32; 2];
            let mut seq = 0;
            let commit = |d: &mut Dir, seen: &mut u32, bucket: &mut Vec<Arc<Entry>>, version: &mut u32| {
                if *seen != *version {
                    d.merge(bucket.clone(), ALL);
                }
                let batch = d.take(|_| true, ALL, 100);
                *bucket = d.content(&batch, ALL);
                *version += 1;
                *seen = *version;
                d.commit(&batch);
            };
            for (who, name, what) in ops {
                seq += 1;
                let name = format!("n{name}");
                match what {
                    0 => { dirs[who].set(name.as_bytes(), seq, put(&name, seq as u32)); }
                    1 => { dirs[who].set(name.as_bytes(), seq, Change::default()); }
                    _ => { commit(&mut dirs[who], &mut seen[who], &mut bucket, &mut version); }
                }
            }
            for _ in 0..2 {
                for who in 0..2 {
                    commit(&mut dirs[who], &mut seen[who], &mut bucket, &mut version);
                }
            }
            for dir in &mut dirs {
                dir.merge(bucket.clone(), ALL);
                prop_assert!(!dir.has_pending());
                prop_assert_eq!(tags(&dir.content(&[], ALL)), tags(&bucket));
            }
        }
    }
}
