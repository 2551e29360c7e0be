//! Hard links (FORMAT.md, section 7.1): the inode of what has several names lives in the links directory, and each name leads there.
//!
//! The order in the bucket: the inode counts a name before the name is there ([`Change::carry`] and [`Change::wait`]), and until
//! it is gone ([`Change::left`] and [`Change::held`]); an inode goes after its last name, its object after the inode.

use super::state::{Place, State};
use super::{Doomed, Fs};
use crate::error::{Error, Kind, Result, fail};
use crate::format::entry::{Attributes, Body, Entry, Link, link_id};
use crate::format::failure::Failure;
use crate::ops::{Found, Ino, ROOT};
use crate::tree::dir::{Change, Guard, MoveToken};
use crate::tree::meet::{Linked, Merged};
use crate::types::{DirId, LinkId, LinkRef};
use std::sync::Arc;

/// Names of one file at most.
const MAX_LINKS: usize = 1024;

/// One name's part in an operation.
pub(super) struct Step {
    pub dir: DirId,
    pub name: Vec<u8>,
    pub change: Change,
    /// What the name stood for is gone with the change.
    pub buries: Option<Arc<Entry>>,
}

impl Step {
    pub(super) fn new(dir: DirId, name: &[u8], change: Change) -> Step {
        Step { dir, name: name.to_vec(), change, buries: None }
    }
}

/// A link whose inode is not there.
pub(super) fn dangling() -> Error {
    Failure::Omission.error("a name leads to an inode that the links directory does not hold")
}

fn link_entry(name: &[u8], link: Link) -> Arc<Entry> {
    let (attributes, body) = (Attributes::default(), Body::Link(link));
    Arc::new(Entry { name: name.to_vec(), attributes, body, refs: Vec::new(), xattrs: Vec::new() })
}

impl Fs {
    /// Notes all steps of an operation in one record of the journal, then shows them. `between` is run when nothing can fail any
    /// more.
    pub(super) fn perform(
        &self,
        st: &mut State,
        mut steps: Vec<Step>,
        between: impl FnOnce(&mut State, &mut [Step]),
    ) -> Result<Vec<Guard>> {
        let lines: Vec<_> = steps.iter().map(|s| (s.dir, s.name.clone(), s.change.entry.clone())).collect();
        self.journal_only(st, &lines)?;
        for s in &mut steps {
            if let Some(entry) = s.buries.take() {
                s.change.after.extend(self.bury(st, s.dir, &entry));
            }
        }
        between(st, &mut steps);
        Ok(self.apply_journalled(st, steps.into_iter().map(|s| (s.dir, s.name, s.change)).collect()))
    }

    fn new_ref(&self) -> LinkRef {
        LinkRef(self.env.random())
    }

    /// The inode of a link with other names, as of now.
    fn recount(&self, inode: &Entry, add: &[LinkRef], remove: &[LinkRef]) -> Arc<Entry> {
        let mut e = inode.clone();
        e.refs.retain(|r| !remove.contains(r));
        e.refs.extend(add);
        e.refs.sort_unstable();
        e.refs.dedup();
        e.attributes.ctime = self.env.clock.now();
        Arc::new(e)
    }

    /// Adds to the steps what becomes of what the name of step `at` stood for.
    pub(super) fn part(&self, st: &State, steps: &mut Vec<Step>, at: usize, entry: &Arc<Entry>) {
        let Some(link) = entry.link() else {
            steps[at].buries = Some(entry.clone());
            return;
        };
        let token = Arc::new(MoveToken::default());
        steps[at].change.left.push((link.own, token.clone()));
        // A name that nothing counts, or that leads nowhere, can be removed all the same.
        let Some((links, inode)) = st.target(steps[at].dir, entry).filter(|(_, i)| i.refs.contains(&link.own)) else { return };
        let rest = self.recount(&inode, &[], &[link.own]);
        if steps[at].change.entry.is_none() && !rest.refs.is_empty() {
            // Not before the names that it got last: it must never be without one.
            let coming = st.coming.get(&inode.name).into_iter().flatten().filter(|t| is_coming(t));
            steps[at].change.wait.extend(coming.cloned());
        }
        steps.push(match rest.refs.is_empty() {
            false => {
                let change = Change { entry: Some(rest), held: vec![(link.own, token)], ..Change::default() };
                Step::new(links, &inode.name, change)
            }
            true => {
                let gone = Step::new(links, &inode.name, Change { wait: vec![token], ..Change::default() });
                Step { buries: Some(inode), ..gone }
            }
        });
    }

    /// Makes step `to` give the name of step `from`'s entry a new place.
    pub(super) fn place_at(
        &self,
        st: &mut State,
        steps: &mut Vec<Step>,
        from: usize,
        to: usize,
        entry: &Arc<Entry>,
    ) -> Result<()> {
        let Some(link) = entry.link() else {
            let mut moved = Entry::clone(entry);
            moved.name = steps[to].name.clone();
            moved.attributes.ctime = self.env.clock.now();
            steps[to].change.entry = Some(Arc::new(moved));
            return Ok(());
        };
        let Some((links, inode)) = st.target(steps[from].dir, entry) else { return Err(dangling()) };
        let own = self.new_ref();
        let [gone, counted] = [(); 2].map(|()| Arc::new(MoveToken::default()));
        steps[from].change.left.push((link.own, gone.clone()));
        steps[to].change.entry = Some(link_entry(&steps[to].name, Link { own, ..link }));
        steps[to].change.wait.push(counted.clone());
        comes(st, &inode.name, &mut steps[to].change);
        let held = if inode.refs.contains(&link.own) { vec![(link.own, gone)] } else { Vec::new() };
        let next = self.recount(&inode, &[own], &[link.own]);
        let change = Change { entry: Some(next), carry: vec![counted], held, ..Change::default() };
        steps.push(Step::new(links, &inode.name, change));
        Ok(())
    }

    /// Makes sure that what these names lead to is known, as far as the bucket has it.
    pub(super) async fn reach(&self, names: &[(DirId, &[u8])]) -> Result<()> {
        self.reach_all(|st| names.iter().filter_map(|(d, n)| Some((*d, st.dirs.get(d)?.dir.get(n)?.clone()))).collect()).await
    }

    /// The same for a part of a listing.
    pub(super) async fn reach_listed(&self, dir: DirId, cookie: u64, max: usize) -> Result<()> {
        self.reach_all(|st| {
            let cell = st.dirs.get(&dir);
            cell.into_iter().flat_map(|c| c.dir.after(cookie).take(max)).map(|(_, e)| (dir, e.clone())).collect()
        })
        .await
    }

    async fn reach_all(&self, entries: impl Fn(&State) -> Vec<(DirId, Arc<Entry>)>) -> Result<()> {
        for again in [false, true] {
            let (missing, links) = {
                let st = self.state.lock();
                let entries: Vec<_> = entries(&st).into_iter().filter(|(_, e)| e.link().is_some()).collect();
                if entries.is_empty() {
                    return Ok(());
                }
                (entries.iter().any(|(d, e)| st.target(*d, e).is_none()), st.links)
            };
            match missing {
                false => {
                    self.fresh(links).await;
                    return Ok(());
                }
                true if again => self.reload(links).await?,
                true => self.load_dir(links).await?,
            }
        }
        Ok(())
    }

    /// Loads the links directory, which the volume may not have yet.
    async fn load_links(&self) -> Result<DirId> {
        let (links, known) = {
            let st = self.state.lock();
            let cell = st.dirs.get(&st.links);
            (st.links, cell.is_some_and(|c| c.dir.is_loaded() || c.dir.has_pending()))
        };
        if !known && !self.within(self.index.exists(links)).await? {
            let mut st = self.state.lock();
            if let Some(cell) = st.dirs.get_mut(&links).filter(|c| !c.dir.is_loaded() && !c.dir.has_pending()) {
                cell.dir = crate::tree::dir::Dir::empty(links);
            }
            return Ok(links);
        }
        self.load_dir(links).await?;
        Ok(links)
    }

    pub(super) async fn do_link(&self, ino: Ino, newparent: Ino, newname: &[u8]) -> Result<Found> {
        self.own(ino)?;
        self.writable()?;
        self.check_name(newparent, newname)?;
        let to = self.dir(newparent).await?;
        let links = self.load_links().await?;
        let mut st = self.state.lock();
        let cell = st.loaded(to)?;
        if cell.is_removed() {
            return fail(Kind::NotFound, "the directory was removed");
        }
        if cell.dir.get(newname).is_some() {
            return fail(Kind::Exists, "the name is taken");
        }
        st.loaded(links)?;
        let entry = self.entry_of(&st, ino)?;
        if ino == ROOT || entry.is_dir() {
            return fail(Kind::NotPermitted, "a directory has one name");
        }
        let Some(place) = st.nodes.get(&ino).and_then(|n| n.place.clone()) else {
            return fail(Kind::NotFound, "the file was removed");
        };
        let due = match place.0 == links {
            true => self.link_again(&mut st, &entry, to, newname)?,
            false => self.link_first(&mut st, &place, &entry, to, newname)?,
        };
        drop(due);
        let known = st.places.get(&place).or_else(|| st.places.get(&(links, inode_name(&st, ino))));
        let known = *known.ok_or_else(|| Error::new(Kind::Bug, "a linked inode without a place"))?;
        if let Some(n) = st.nodes.get_mut(&known) {
            n.lookups += 1;
        }
        self.found(&st, known)
    }

    /// One more name.
    fn link_again(&self, st: &mut State, inode: &Arc<Entry>, to: DirId, newname: &[u8]) -> Result<Vec<Guard>> {
        if inode.refs.len() >= MAX_LINKS {
            return fail(Kind::TooMany, "a file has up to 1024 names");
        }
        let (own, counted, links) = (self.new_ref(), Arc::new(MoveToken::default()), st.links);
        let link = self.link_to(&inode.name, own, &inode.body)?;
        let mut name = Change { entry: Some(link_entry(newname, link)), wait: vec![counted.clone()], ..Change::default() };
        comes(st, &inode.name, &mut name);
        let next = Some(self.recount(inode, &[own], &[]));
        let count = Change { entry: next, carry: vec![counted], ..Change::default() };
        let steps = vec![Step::new(to, newname, name), Step::new(links, &inode.name, count)];
        self.perform(st, steps, |_, _| {})
    }

    fn link_to(&self, inode_name: &[u8], own: LinkRef, body: &Body) -> Result<Link> {
        let id = data_encoding::HEXLOWER.decode(inode_name).ok().and_then(|b| b.try_into().ok());
        let id = id.ok_or_else(|| Error::new(Kind::Corrupt, "an entry of the links directory has a name that is no id"))?;
        Ok(Link { id: LinkId(id), own, kind: body.code() })
    }

    /// The second name: the entry moves into the links directory, and its name leads there from now on.
    fn link_first(&self, st: &mut State, place: &Place, entry: &Arc<Entry>, to: DirId, newname: &[u8]) -> Result<Vec<Guard>> {
        let id = match &entry.body {
            Body::File(f) => link_id(&f.file_id),
            _ => LinkId(self.env.random()),
        };
        let (links, [old, new]) = (st.links, [(); 2].map(|()| self.new_ref()));
        let [counted, converted] = [(); 2].map(|()| Arc::new(MoveToken::default()));
        let link = |own| Link { id, own, kind: entry.body.code() };
        let mut inode = Entry { name: link(old).inode_name(), ..Entry::clone(entry) };
        // Another machine may have been faster.
        if let Some(known) = st.loaded(links)?.dir.get(&inode.name) {
            inode = newer(Entry::clone(known), &inode);
        }
        let inode = self.recount(&inode, &[old, new], &[]);
        let at = (links, inode.name.clone());
        let first = link_entry(&place.1, link(old));
        let first =
            Change { entry: Some(first), wait: vec![counted.clone()], carry: vec![converted.clone()], ..Change::default() };
        // The old name first: who removes it from the bucket must see that it is not the only one any more.
        let wait = vec![counted.clone(), converted];
        let mut second = Change { entry: Some(link_entry(newname, link(new))), wait, ..Change::default() };
        comes(st, &inode.name, &mut second);
        let count = Change { entry: Some(inode), carry: vec![counted], ..Change::default() };
        if st.loaded(links)?.remote.is_none() {
            st.unborn.insert(links);
        }
        let steps = vec![Step::new(place.0, &place.1, first), Step::new(to, newname, second), Step::new(links, &at.1, count)];
        self.perform(st, steps, |st, _| self.settle_in(st, place, &at, entry))
    }

    /// An inode in use moves into the links directory.
    fn settle_in(&self, st: &mut State, from: &Place, at: &Place, entry: &Entry) {
        st.replace(from, at);
        if let Some(file) = self.live_of(st, entry) {
            *file.place.lock() = Some(at.clone());
        }
    }

    /// What another machine changed is the name of an inode in use that has become a link: the inode moves along.
    pub(super) fn now_linked(&self, st: &mut State, place: &Place, now: &Entry) -> bool {
        let Some(link) = now.link() else { return false };
        let was = st.places.get(place).and_then(|i| st.nodes.get(i)).map(|n| n.entry.clone());
        let Some(was) = was.filter(|w| matches!(&w.body, Body::File(f) if link_id(&f.file_id) == link.id)) else { return false };
        let at = (st.links, link.inode_name());
        if st.places.contains_key(&at) {
            return false;
        }
        self.settle_in(st, place, &at, &was);
        true
    }

    /// What a merge found beyond names that changed.
    pub(super) async fn after_merge(&self, id: DirId, merged: Merged) -> Result<()> {
        let (links, unknown) = {
            let st = self.state.lock();
            // Files in use have moved into the links directory: what is there must be known.
            let leads = |n: &Vec<u8>| st.dirs.get(&id)?.dir.get(n).filter(|e| e.link().is_some() && st.target(id, e).is_none());
            let used = |n: &Vec<u8>| {
                leads(n).and_then(|e| e.link()).is_some_and(|l| st.places.contains_key(&(st.links, l.inode_name())))
            };
            (st.links, id != st.links && merged.changed.iter().any(used))
        };
        if unknown || !merged.linked.is_empty() {
            Box::pin(self.reload(links)).await?;
        }
        if !merged.linked.is_empty() {
            let due = self.redirect(id, merged.linked)?;
            drop(due);
        }
        if !merged.outdated.is_empty() {
            let due = self.bring_inodes_up(id, merged.outdated)?;
            drop(due);
        }
        let due = self.after_links_merge(id, merged.changed, merged.kept)?;
        drop(due);
        Ok(())
    }

    /// Names that became links here, while another machine changed their files: the inodes take that.
    fn bring_inodes_up(&self, dir: DirId, outdated: Vec<(Arc<Entry>, Arc<Entry>)>) -> Result<Vec<Guard>> {
        let mut st = self.state.lock();
        let mut due = Vec::new();
        for (name, theirs) in outdated {
            let Some((links, inode)) = st.target(dir, &name) else { continue };
            let next = newer(Entry::clone(&inode), &theirs);
            if next != *inode {
                let change = Change { entry: Some(Arc::new(next)), ..Change::default() };
                due.extend(self.perform(&mut st, vec![Step::new(links, &inode.name, change)], |_, _| {})?);
            }
        }
        Ok(due)
    }

    fn after_links_merge(&self, id: DirId, changed: Vec<Vec<u8>>, kept: Vec<(Vec<u8>, Vec<Guard>)>) -> Result<Vec<Guard>> {
        let mut st = self.state.lock();
        let mut due = Vec::new();
        if id != st.links {
            return Ok(due);
        }
        for (name, guards) in kept {
            self.revive(&mut st, &name, &guards);
        }
        for name in changed {
            let entry = st.dirs.get(&id).and_then(|c| c.dir.get(&name)).cloned();
            if let Some(entry) = entry.filter(|e| e.refs.is_empty()) {
                // Each machine removed a name, and together they removed all.
                let gone = Step::new(id, &name, Change::default());
                due.extend(self.perform(&mut st, vec![Step { buries: Some(entry), ..gone }], |_, _| {})?);
            }
        }
        Ok(due)
    }

    /// Removed here as the last name, and another machine has given it one more.
    fn revive(&self, st: &mut State, name: &[u8], guards: &[Guard]) {
        for doomed in guards.iter().filter_map(|g| g.downcast_ref::<Arc<Doomed>>()) {
            doomed.spare(self);
        }
        let at = (st.links, name.to_vec());
        let Some(entry) = st.dirs.get(&at.0).and_then(|c| c.dir.get(name)).cloned() else { return };
        if let Some(file) = self.live_of(st, &entry) {
            file.live.lock().unlinked = false;
            *file.place.lock() = Some(at.clone());
        }
        let lost = st.nodes.iter().find(|(_, n)| n.place.is_none() && n.entry.name == name && !n.entry.refs.is_empty());
        let Some(ino) = lost.map(|(i, _)| *i) else { return };
        if st.places.contains_key(&at) {
            return;
        }
        if let Some(n) = st.nodes.get_mut(&ino) {
            n.place = Some(at.clone());
            n.guards.retain(|g| g.downcast_ref::<Arc<Doomed>>().is_none());
        }
        st.places.insert(at.clone(), ino);
        if let Some(c) = st.dirs.get_mut(&at.0) {
            c.nodes += 1;
        }
    }

    /// Changes of what was the only name of a file here, and is one of several by another machine's doing, go to the inode.
    fn redirect(&self, dir: DirId, linked: Vec<Linked>) -> Result<Vec<Guard>> {
        let mut st = self.state.lock();
        let mut due = Vec::new();
        for Linked { name, mine, theirs, after } in linked {
            let (Some(link), Some((links, inode))) = (theirs.link(), st.target(dir, &theirs)) else { continue };
            let same = |e: &Entry| matches!(&e.body, Body::File(f) if link_id(&f.file_id) == link.id);
            if let Some(mine) = mine.filter(|m| same(m)) {
                // Changed here: the name is what the other machine made it, the inode takes the change.
                let next = Arc::new(newer(Entry::clone(&inode), &mine));
                let at = (links, inode.name.clone());
                let change = Change { entry: Some(next), after, ..Change::default() };
                let back = Change { entry: Some(theirs.clone()), ..Change::default() };
                let steps = vec![Step::new(dir, &name, back), Step::new(links, &at.1, change)];
                let place = (dir, name);
                due.extend(self.perform(&mut st, steps, |st, _| self.settle_in(st, &place, &at, &mine))?);
                continue;
            }
            // Removed, replaced or moved here: one name fewer, and a link where it went to.
            for doomed in after.iter().filter_map(|g| g.downcast_ref::<Arc<Doomed>>()) {
                doomed.spare(self);
            }
            due.extend(after);
            let now = st.dirs.get(&dir).and_then(|c| c.dir.get(&name)).cloned();
            let mut steps = vec![Step::new(dir, &name, Change { entry: now, ..Change::default() })];
            let moved = st.dirs.iter().filter(|(d, _)| **d != links).find_map(|(d, c)| {
                let e = c.dir.iter().find(|e| same(e))?;
                Some(((*d, e.name.clone()), e.clone()))
            });
            let at = (links, inode.name.clone());
            match moved {
                Some((place, e)) => {
                    steps.push(Step::new(place.0, &place.1, Change::default()));
                    self.place_at(&mut st, &mut steps, 0, 1, &theirs)?;
                    due.extend(self.perform(&mut st, steps, |st, _| self.settle_in(st, &place, &at, &e))?);
                }
                None => {
                    self.part(&st, &mut steps, 0, &theirs);
                    due.extend(self.perform(&mut st, steps, |_, _| {})?);
                }
            }
        }
        Ok(due)
    }
}

/// An inode with the body and attributes of another copy of its entry, where those are newer.
fn newer(mut inode: Entry, other: &Entry) -> Entry {
    if let (Body::File(a), Body::File(b)) = (&mut inode.body, &other.body)
        && a.generation < b.generation
    {
        *a = b.clone();
    }
    if inode.attributes.ctime < other.attributes.ctime {
        inode.attributes = other.attributes;
        inode.xattrs.clone_from(&other.xattrs);
    }
    inode
}

fn is_coming(token: &Arc<MoveToken>) -> bool {
    // One that nobody else holds belongs to an operation that failed.
    !token.arrived() && Arc::strong_count(token) > 1
}

/// A name of an inode is on its way with this change.
fn comes(st: &mut State, inode: &[u8], change: &mut Change) {
    let token = Arc::new(MoveToken::default());
    change.carry.push(token.clone());
    if st.coming.len().is_power_of_two() {
        st.coming.retain(|_, tokens| tokens.iter().any(is_coming));
    }
    let tokens = st.coming.entry(inode.to_vec()).or_default();
    tokens.retain(is_coming);
    tokens.push(token);
}

/// Name of an inode's entry in the links directory.
fn inode_name(st: &State, ino: Ino) -> Vec<u8> {
    st.nodes.get(&ino).and_then(|n| n.place.clone()).map(|p| p.1).unwrap_or_default()
}
