//! Renames and exchanges.

use super::Fs;
use super::links::Step;
use super::moves::departs;
use super::names::has_room;
use super::state::State;
use crate::error::{Kind, Result, fail};
use crate::format::entry::{Body, Entry};
use crate::ops::Ino;
use crate::tree::dir::{Change, Guard, MoveToken};
use crate::tree::merge::same;
use crate::types::DirId;
use std::sync::Arc;

const RENAME_NOREPLACE: u32 = 1;
const RENAME_EXCHANGE: u32 = 2;

/// Both ends of a rename.
struct Move<'n> {
    from: DirId,
    name: &'n [u8],
    to: DirId,
    newname: &'n [u8],
    flags: u32,
}

impl Move<'_> {
    fn exchange(&self) -> bool {
        self.flags & RENAME_EXCHANGE != 0
    }
}

impl Fs {
    pub(super) async fn do_rename(&self, parent: Ino, name: &[u8], newparent: Ino, newname: &[u8], flags: u32) -> Result<()> {
        self.writable()?;
        if flags & !(RENAME_NOREPLACE | RENAME_EXCHANGE) != 0 || flags == RENAME_NOREPLACE | RENAME_EXCHANGE {
            return fail(Kind::Invalid, "this kind of rename is not supported");
        }
        self.check_name(parent, name)?;
        self.check_name(newparent, newname)?;
        let m = Move { from: self.dir(parent).await?, name, to: self.dir(newparent).await?, newname, flags };
        self.reach(&[(m.from, name), (m.to, newname)]).await?;
        // A directory in the way must be known to be empty.
        let way = {
            let mut st = self.state.lock();
            let e = st.loaded(m.to)?.dir.get(newname).cloned();
            if let Some(e) = &e {
                self.attach_dir(&mut st, m.to, e);
            }
            e
        };
        if let Some(Body::Dir { dir_id, .. }) = way.as_ref().map(|e| &e.body)
            && !m.exchange()
        {
            self.load_dir(*dir_id).await?;
            self.fresh_dir(*dir_id).await?;
        }
        let due = {
            let mut st = self.state.lock();
            self.rename_locked(&mut st, &m)?
        };
        drop(due);
        Ok(())
    }

    fn rename_locked(&self, st: &mut State, m: &Move<'_>) -> Result<Vec<Guard>> {
        let from = st.loaded(m.from)?;
        let Some(entry) = from.dir.get(m.name).cloned() else { return fail(Kind::NotFound, "no such name") };
        if m.exchange() && from.is_removed() {
            return fail(Kind::NotFound, "the directory was removed");
        }
        let there = {
            let to = st.loaded(m.to)?;
            if to.is_removed() {
                return fail(Kind::NotFound, "the directory was removed");
            }
            to.dir.get(m.newname).cloned()
        };
        if m.from == m.to && m.name == m.newname {
            return if m.flags & RENAME_NOREPLACE != 0 { fail(Kind::Exists, "the name is taken") } else { Ok(Vec::new()) };
        }
        self.attach_dir(st, m.from, &entry);
        self.check_rename(st, m, &entry, there.as_deref())?;
        if there.is_none() && m.from != m.to {
            has_room(st.loaded(m.to)?, self.opts.max_names)?;
        }
        let already = there.as_ref().is_some_and(|t| one(t, &entry));
        match there {
            // Two names of one file: POSIX says that nothing happens. What another machine is moving has both for a moment, and
            // replacing it by itself would delete it.
            Some(_) if already => Ok(Vec::new()),
            Some(there) if m.exchange() => self.exchange(st, m, &entry, &there),
            there => self.rename_to(st, m, &entry, there),
        }
    }

    fn rename_to(&self, st: &mut State, m: &Move<'_>, entry: &Arc<Entry>, there: Option<Arc<Entry>>) -> Result<Vec<Guard>> {
        let token = Arc::new(MoveToken::default());
        let gone = Change { wait: vec![token.clone()], ..Change::default() };
        let mut steps = vec![Step::new(m.from, m.name, gone), Step::new(m.to, m.newname, Change::default())];
        self.place_at(st, &mut steps, 0, 1, entry)?;
        steps[1].change.carry.push(token);
        if let Some(there) = &there {
            self.part(st, &mut steps, 1, there);
            if let Body::Dir { dir_id, .. } = &there.body {
                steps[1].change.left.extend(st.loaded(*dir_id)?.dir.lefts());
            }
        }
        let places = [(m.from, m.name.to_vec()), (m.to, m.newname.to_vec())];
        let due = self.perform(st, steps, |st, steps| {
            st.replace(&places[0], &places[1]);
            departs(st, entry, &places[0]);
            if let Some(moved) = &steps[1].change.entry {
                self.moved(st, moved, places[1].0);
                remember(st, moved, places[1].0);
            }
            // Who waits for the arrival of what had the old name waits for that of the new one.
            let carried = st.dirs.get_mut(&places[0].0).map(|c| c.dir.release_carry(&places[0].1));
            steps[1].change.carry.extend(carried.unwrap_or_default());
        })?;
        self.touch_dir(st, m.to);
        Ok(due)
    }

    /// Both names stay, and each stands for what the other stood for. In the bucket both always stand for something.
    fn exchange(&self, st: &mut State, m: &Move<'_>, entry: &Arc<Entry>, there: &Arc<Entry>) -> Result<Vec<Guard>> {
        self.attach_dir(st, m.to, there);
        let change = || Change { exchanged: true, ..Change::default() };
        let mut steps = vec![Step::new(m.from, m.name, change()), Step::new(m.to, m.newname, change())];
        self.place_at(st, &mut steps, 0, 1, entry)?;
        self.place_at(st, &mut steps, 1, 0, there)?;
        let places = [(m.from, m.name.to_vec()), (m.to, m.newname.to_vec())];
        let due = self.perform(st, steps, |st, steps| {
            st.swap(&places[0], &places[1]);
            departs(st, entry, &places[0]);
            departs(st, there, &places[1]);
            for (i, place) in places.iter().enumerate() {
                if let Some(moved) = &steps[i].change.entry {
                    self.moved(st, moved, place.0);
                    remember(st, moved, place.0);
                }
                let carried = st.dirs.get_mut(&place.0).map(|c| c.dir.release_carry(&place.1));
                steps[1 - i].change.carry.extend(carried.unwrap_or_default());
            }
        })?;
        self.touch_dir(st, m.from);
        self.touch_dir(st, m.to);
        Ok(due)
    }

    /// Names of a directory changed.
    fn touch_dir(&self, st: &mut State, dir: DirId) {
        if let Some(cell) = st.dirs.get_mut(&dir) {
            cell.times = Some(self.env.clock.now());
        }
    }

    fn check_rename(&self, st: &mut State, m: &Move<'_>, entry: &Entry, there: Option<&Entry>) -> Result<()> {
        if m.flags & RENAME_NOREPLACE != 0 && there.is_some() {
            return fail(Kind::Exists, "the name is taken");
        }
        if m.exchange() && there.is_none() {
            return fail(Kind::NotFound, "there is nothing to exchange with");
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
            let kind = if m.exchange() { Kind::Invalid } else { Kind::NotEmpty };
            return fail(kind, "the directory holds what is to take its place");
        }
        match (entry.is_dir(), &there.body) {
            _ if m.exchange() => Ok(()),
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
        match &entry.body {
            Body::File(f) => {
                if let Some(file) = st.files.get(&f.file_id) {
                    *file.place.lock() = Some((to, entry.name.clone()));
                }
            }
            Body::Dir { dir_id, .. } => {
                if let Some(cell) = st.dirs.get_mut(dir_id) {
                    cell.place = Some((to, entry.name.clone()));
                }
            }
            _ => {}
        }
    }
}

/// Whether two names stand for one file or directory.
fn one(a: &Entry, b: &Entry) -> bool {
    match (&a.body, &b.body) {
        (Body::Link(a), Body::Link(b)) => a.id == b.id,
        (Body::File(_), Body::File(_)) | (Body::Dir { .. }, Body::Dir { .. }) => same(a, b),
        _ => false,
    }
}

/// Another machine may rename the file too: where this one put it.
pub(super) fn remember(st: &mut State, entry: &Entry, to: DirId) {
    if let Body::File(f) = &entry.body {
        st.renamed.put(f.file_id, (to, entry.name.clone()));
    }
}
