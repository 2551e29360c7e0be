//! What the bucket holds meets what is pending here. Pure.
//!
//! When the bucket holds for a pending name what this machine has neither seen nor written, another machine changed it at the
//! same time: `merge.rs` decides, and [`Dir::take_clashes`] tells. Inodes of the links directory are combined, name by name, and
//! never clash but when they are gone; nor does a file that has got a second name meanwhile.

use super::delta::combine;
use super::dir::{Dir, Guard, Left, MoveToken, Pending};
use super::merge::{Verdict, judge, merge, newer, same};
use crate::format::entry::{Body, Entry, link_id};
use crate::types::{FileId, LinkId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a merge found besides names that changed.
#[derive(Default)]
pub struct Merged {
    /// Names whose shown entry changed.
    pub changed: Vec<Vec<u8>>,
    /// Names that this machine changed or removed as the only one of a file, and that another machine has made a link meanwhile:
    /// what they were to become here.
    pub linked: Vec<Linked>,
    /// Names of files that this machine makes links, and what another machine changed of the files meanwhile.
    pub outdated: Vec<(Arc<Entry>, Arc<Entry>)>,
    /// Removed here, and another machine has given it a name: what hung on the removal.
    pub kept: Vec<(Vec<u8>, Vec<Guard>)>,
}

/// A name that is a link now.
pub struct Linked {
    /// The name.
    pub name: Vec<u8>,
    /// This machine's entry for it; `None` when it was removed here.
    pub mine: Option<Arc<Entry>>,
    /// What the bucket holds.
    pub theirs: Arc<Entry>,
    /// What hung on the change.
    pub after: Vec<Guard>,
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
    /// What the change waits for.
    pub wait: Vec<Arc<MoveToken>>,
    /// What an arrival under this name would have set.
    pub carry: Vec<Arc<MoveToken>>,
    /// What hung on the change.
    pub after: Vec<Guard>,
}

/// How a name was read.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// The last write of the name whose outcome was not heard is known to have been carried out. That a name is gone is another
    /// machine's doing otherwise, which may have given what it stood for another name.
    pub own: bool,
    /// The index may have had versions in between that were not looked at: what was written here may have been there, seen by
    /// another machine, and removed.
    pub gap: bool,
}

/// The link id of a file that has one name.
fn file_link(entry: &Arc<Entry>) -> Option<LinkId> {
    match &entry.body {
        Body::File(f) => Some(link_id(&f.file_id)),
        _ => None,
    }
}

impl Clash {
    fn new(name: &[u8], p: &Pending, mine: &Option<Arc<Entry>>, theirs: &Option<Arc<Entry>>, verdict: Verdict) -> Clash {
        Clash {
            name: name.to_vec(),
            seq: p.seq,
            base: p.base.clone(),
            mine: mine.clone(),
            theirs: theirs.clone(),
            verdict,
            moved: p.moved,
            wait: Vec::new(),
            carry: Vec::new(),
            after: Vec::new(),
        }
    }

    /// Nothing is pending under the name any more: what hung on it goes with the clash.
    fn take_over(&mut self, p: Pending) {
        (self.wait, self.carry, self.after) = (p.wait, p.carry, p.after);
        // The bucket does not hold what another machine has replaced.
        let own = self.theirs.as_ref().and_then(|e| e.link()).map(|l| l.own);
        let gone = |(_, (r, _)): &&(u64, Left)| Some(*r) != own;
        p.left.iter().filter(gone).for_each(|(_, (_, t))| t.arrive());
    }
}

impl Dir {
    /// Names that another machine changed while they were pending here, found by merging since the last call.
    pub fn take_clashes(&mut self) -> Vec<Clash> {
        std::mem::take(&mut self.clashes)
    }

    /// Whether the bucket holds, or may be about to get, a name for a file that stands for something else here by now.
    pub fn departs(&self, name: &[u8], id: FileId) -> bool {
        let is_it = |e: &Entry| e.file_id() == Some(id);
        let old = |p: &Pending| p.base.iter().chain(p.tried.iter().flatten()).any(|e| is_it(e));
        self.pending.get(name).is_some_and(old) && !self.get(name).is_some_and(|e| is_it(e))
    }

    /// What was moved is gone for good: the old name that waits for one of the tokens is a removal like any other from now on, and
    /// takes `guards` over. They come back when no name here waits.
    pub fn end_of_move(&mut self, tokens: &[Arc<MoveToken>], guards: Vec<Guard>) -> Vec<Guard> {
        let waits = |p: &&mut Pending| p.wait.iter().any(|w| tokens.iter().any(|t| Arc::ptr_eq(t, w)));
        self.pending.values_mut().filter(waits).fold(guards, |guards, p| p.end_of_move(guards))
    }

    /// The same for an old name.
    pub fn end_of_move_from(&mut self, name: &[u8], guards: Vec<Guard>) -> Vec<Guard> {
        match self.pending.get_mut(name) {
            Some(p) => p.end_of_move(guards),
            None => guards,
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
        let last = self.get(name).cloned();
        if let (Some(p), Some((base, tried))) = (self.pending.get_mut(name), seen.split_first()) {
            (p.base, p.tried, p.known, p.moved) = (base.clone(), tried.to_vec(), true, moved);
            // That mount may have written it and not lived to hear of it. Of a removal nobody can say whose it was.
            if last.is_some() && !p.tried.contains(&last) {
                p.tried.push(last);
            }
        }
    }

    /// Takes in what the bucket holds for the names that `covers` accepts (a shard's, or all). Pending names keep their local
    /// entry and learn their base, but where another machine changed the name meanwhile; names of inodes are combined.
    pub fn merge(&mut self, remote: Vec<Arc<Entry>>, covers: impl Fn(&[u8]) -> bool) -> Merged {
        self.merge_with(remote, covers, |_| Reading { own: true, gap: false })
    }

    /// The same, where more is known of [how](Reading) names were read.
    pub fn merge_with(
        &mut self,
        remote: Vec<Arc<Entry>>,
        covers: impl Fn(&[u8]) -> bool,
        how: impl Fn(&[u8]) -> Reading,
    ) -> Merged {
        let mut out = Merged::default();
        let mut theirs: BTreeMap<Vec<u8>, Arc<Entry>> = remote.into_iter().map(|e| (e.name.clone(), e)).collect();
        let gone: Vec<Vec<u8>> = self
            .entries
            .keys()
            .filter(|n| covers(n) && !theirs.contains_key(*n) && !self.pending.contains_key(*n))
            .cloned()
            .collect();
        for name in gone {
            self.show(&name, None);
            out.changed.push(name);
        }
        let names: Vec<Vec<u8>> = self.pending.keys().filter(|n| covers(n)).cloned().collect();
        for name in names {
            let there = theirs.remove(&name);
            if self.meet(&name, there, how(&name), &mut out) {
                out.changed.push(name);
            }
        }
        for (name, entry) in theirs {
            if self.get(&name).is_none_or(|e| **e != *entry) {
                self.show(&name, Some(entry));
                out.changed.push(name);
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
            drop(self.pending.remove(&name).map(Pending::settle));
        }
        self.loaded = true;
        self.presumed = false;
        out
    }

    /// A pending name meets what the bucket holds. Returns whether what is shown for it changed.
    fn meet(&mut self, name: &[u8], theirs: Option<Arc<Entry>>, how: Reading, out: &mut Merged) -> bool {
        let mine = self.get(name).cloned();
        let Some(p) = self.pending.get_mut(name) else { return false };
        p.unsure = false;
        if [&mine, &theirs, &p.base].into_iter().flatten().any(|e| !e.refs.is_empty()) || !p.delta.is_empty() {
            return self.meet_inode(name, mine, theirs, out);
        }
        if meet_link(name, p, &mine, &theirs, out) {
            return false;
        }
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
        let gone = p.went(&mine, &theirs, how.gap);
        let ours = theirs.is_some() || p.in_flight || how.own;
        if gone {
            return self.lose(name, mine, theirs);
        }
        if p.base == theirs || ours && p.tried.contains(&theirs) {
            // Of a write under way nobody knows yet whether it was that.
            if !p.in_flight {
                p.base = theirs;
            }
            return false;
        }
        let verdict = judge(p.base.as_deref(), mine.as_deref(), theirs.as_deref(), p.moved);
        let mut clash = Clash::new(name, p, &mine, &theirs, verdict.clone());
        p.base.clone_from(&theirs);
        let shown = match verdict {
            Verdict::Mine(entry) => {
                // Renamed there as well, or replaced: the base is not what was moved away any more.
                p.moved &= matches!((&clash.base, &clash.theirs), (Some(b), Some(t)) if same(b, t));
                entry
            }
            _ => {
                if let Some(p) = self.pending.remove(name) {
                    clash.take_over(p);
                }
                theirs
            }
        };
        let changed = shown != mine;
        self.show(name, shown);
        self.clashes.push(clash);
        changed
    }

    /// The file of a name may have been in the bucket and be gone, with its object: what is here of its contents needs another.
    fn lose(&mut self, name: &[u8], mine: Option<Arc<Entry>>, theirs: Option<Arc<Entry>>) -> bool {
        let Some(p) = self.pending.remove(name) else { return false };
        let mut clash = Clash::new(name, &p, &mine, &theirs, Verdict::Rescue);
        clash.take_over(p);
        self.clashes.push(clash);
        let changed = theirs != mine;
        self.show(name, theirs);
        changed
    }

    /// An inode of the links directory: the names of both, and of every other field what was changed.
    fn meet_inode(&mut self, name: &[u8], mine: Option<Arc<Entry>>, theirs: Option<Arc<Entry>>, out: &mut Merged) -> bool {
        let Some(p) = self.pending.get_mut(name) else { return false };
        let combined = combine(mine.as_deref(), p.base.as_deref(), theirs.as_deref(), &p.delta);
        if combined.is_none() && theirs.is_none() && matches!((&mine, &p.base), (Some(m), Some(b)) if newer(m, b)) {
            // All names went there while new contents came here: they need a file of their own.
            let mut clash = Clash::new(name, p, &mine, &theirs, Verdict::Rescue);
            if let Some(p) = self.pending.remove(name) {
                clash.take_over(p);
            }
            self.clashes.push(clash);
            self.show(name, None);
            return true;
        }
        (p.base, p.known) = (theirs, true);
        if mine.is_none() && combined.is_some() {
            out.kept.push((name.to_vec(), std::mem::take(&mut p.after)));
        }
        let combined = match &mine {
            Some(m) if combined.as_ref() == Some(&**m) => return false,
            _ => combined.map(Arc::new),
        };
        self.show(name, combined);
        true
    }
}

impl Pending {
    /// What left the name will not arrive anywhere: see [`Dir::end_of_move`]. Gives back what a name that the bucket never had does
    /// not take over.
    fn end_of_move(&mut self, guards: Vec<Guard>) -> Vec<Guard> {
        (self.moved, self.off) = (false, None);
        if self.base.is_none() {
            return guards;
        }
        self.after.extend(guards);
        Vec::new()
    }

    /// Whether the file that the name stands for here may have been in the bucket under it, by a write whose outcome was not heard,
    /// and is not there any more: whoever took it away has seen it, and deletes its object.
    fn went(&mut self, mine: &Option<Arc<Entry>>, theirs: &Option<Arc<Entry>>, gap: bool) -> bool {
        let Some(mine) = mine.as_ref().filter(|m| matches!(&m.body, Body::File(f) if f.generation > 0)) else { return false };
        let is_it = |e: &&Arc<Entry>| same(e, mine);
        if theirs.iter().any(|t| is_it(&t)) {
            // A write under way: its answer may be lost, and the name be gone by the next look.
            self.hidden = self.in_flight;
            return false;
        }
        let hidden = std::mem::take(&mut self.hidden) || gap;
        hidden && self.tried.iter().flatten().any(|e| is_it(&e)) && !self.base.iter().any(|b| is_it(&b))
    }
}

/// A file has got a second name, on one of the two machines: no conflict. Returns whether that is so.
fn meet_link(name: &[u8], p: &mut Pending, mine: &Option<Arc<Entry>>, theirs: &Option<Arc<Entry>>, out: &mut Merged) -> bool {
    let Some(t) = theirs else { return false };
    let here = mine.as_ref().and_then(|m| m.link()).filter(|l| file_link(t) == Some(l.id));
    if let (Some(_), Some(m)) = (here, mine) {
        // Here; there it was changed, or is what it was.
        if p.base.as_ref() != Some(t) {
            out.outdated.push((m.clone(), t.clone()));
        }
        (p.base, p.known) = (Some(t.clone()), true);
        return true;
    }
    // There. What this machine made a link itself is none of that.
    let was = [mine, &p.base].map(|e| e.as_ref().and_then(file_link));
    let there = t.link().is_some_and(|l| was.contains(&Some(l.id)));
    if !there || mine.as_ref() == Some(t) || p.tried.iter().flatten().any(|e| e == t) {
        return false;
    }
    (p.base, p.known, p.moved) = (Some(t.clone()), true, false);
    let after = std::mem::take(&mut p.after);
    out.linked.push(Linked { name: name.to_vec(), mine: mine.clone(), theirs: t.clone(), after });
    true
}
