//! Names that two machines changed at the same time: what `tree::merge` decided is carried out here.
//!
//! Whatever gives way lives on under a conflict name in the same directory. An object is deleted only by the machine whose index
//! write took the last name away: where another machine was first, the deletion that was planned here is called off.

use super::landed::Landed;
use super::rename::remember;
use super::rescue::Orphan;
use super::state::{DirCell, ROOT_SELF, State};
use super::{Fs, Noted};
use crate::error::Result;
use crate::format::entry::{Body, Entry, link_id};
use crate::format::names::Place as IndexPlace;
use crate::ops::{Invalidate, ROOT};
use crate::tree::dir::{Change, Dir, Guard};
use crate::tree::meet::Clash;
use crate::tree::merge::{self, Verdict, same};
use crate::types::{DirId, FileId, NAME_MAX, Time};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Longest host name in a conflict name, bytes.
const HOST_MAX: usize = 48;
/// Longest extension that stays behind the conflict's mark, bytes.
const EXTENSION_MAX: usize = 32;

/// What two machines did to one file or name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConflictKind {
    /// Both wrote the file: this machine's version is a file of its own now.
    Contents,
    /// Both gave the name to something: this machine's goes under a conflict name.
    Name,
    /// This machine removed or replaced what another one had changed: that stays.
    Kept,
    /// Another machine removed, replaced or renamed what this one had changed or renamed: this machine's is a file of its own now.
    Rescued,
    /// Both renamed a directory: it stays where the first put it.
    Undone,
    /// Both wrote the file, and parts of the version below this machine's are gone from the bucket: what it wrote is a file of its own,
    /// with zeros for those parts and a name that says so.
    Incomplete,
    /// This machine's version cannot be put together: what it wrote stays in the spool.
    Stuck,
}

impl ConflictKind {
    /// One word for the audit log.
    pub fn word(self) -> &'static str {
        match self {
            ConflictKind::Contents => "contents",
            ConflictKind::Name => "name",
            ConflictKind::Kept => "kept",
            ConflictKind::Rescued => "rescued",
            ConflictKind::Undone => "undone",
            ConflictKind::Incomplete => "incomplete",
            ConflictKind::Stuck => "stuck",
        }
    }
}

/// A conflict, for whoever is told. Holds no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// What happened.
    pub kind: ConflictKind,
    /// The file, if it is one.
    pub file: Option<FileId>,
    /// The file that this machine's version has become.
    pub copy: Option<FileId>,
}

/// `name` with a mark before its extension: at most 255 bytes, cut on a character boundary.
pub(super) fn marked(name: &[u8], host: &str, at: Time, note: &str, n: u32) -> Vec<u8> {
    let when = crate::audit::rfc3339(at);
    let (day, time) = (when.get(..10).unwrap_or("0"), when.get(11..19).unwrap_or("0").replace(':', "."));
    let host: String = host.chars().filter(|c| !c.is_control() && *c != '/').collect();
    let host = &host[..host.floor_char_boundary(HOST_MAX)];
    let again = if n > 1 { format!(", {n}") } else { String::new() };
    let mark = format!(" (conflict, {host}, {day} {time}{note}{again})");
    let dot = name.iter().rposition(|b| *b == b'.').filter(|i| *i > 0 && name.len() - i <= EXTENSION_MAX);
    let (stem, extension) = name.split_at(dot.unwrap_or(name.len()));
    let room = NAME_MAX - mark.len() - extension.len();
    let cut = match std::str::from_utf8(stem) {
        Ok(text) => text.floor_char_boundary(room),
        Err(_) => room.min(stem.len()),
    };
    [&stem[..cut], mark.as_bytes(), extension].concat()
}

impl Fs {
    /// A free name for what gives way under `name`.
    pub(super) fn conflict_name(&self, st: &State, dir: DirId, name: &[u8]) -> Vec<u8> {
        self.noted_name(st, dir, name, "")
    }

    /// The same, with a note in it.
    pub(super) fn noted_name(&self, st: &State, dir: DirId, name: &[u8], note: &str) -> Vec<u8> {
        let now = self.env.clock.now();
        let free = |n: &Vec<u8>| st.dirs.get(&dir).is_none_or(|c| c.dir.get(n).is_none() && c.dir.pending_seq(n).is_none());
        let names = (1..).map(|n| marked(name, &self.opts.host, now, note, n));
        names.take(100_000).find(free).unwrap_or_else(|| marked(name, &self.opts.host, now, note, u32::MAX))
    }

    pub(super) fn tell_conflict(&self, kind: ConflictKind, file: Option<FileId>, copy: Option<FileId>) {
        if kind != ConflictKind::Stuck {
            self.conflicts.fetch_add(1, Ordering::Relaxed);
        }
        if kind == ConflictKind::Incomplete {
            self.incomplete.fetch_add(1, Ordering::Relaxed);
        }
        self.sink.conflict(Conflict { kind, file, copy });
    }

    /// Calls off a deletion that hung on removing an entry: another machine was first, and it may have given it another name.
    fn spare(&self, st: &mut State, e: &Entry) {
        let key = match &e.body {
            Body::File(f) => f.object_key(),
            Body::Dir { dir_id, .. } => {
                st.dirs.get_mut(dir_id).into_iter().for_each(|c| c.leaving = false);
                self.uploader.keys.index_key(dir_id, IndexPlace::HEAD)
            }
            _ => return,
        };
        self.spare_key(&key);
    }

    /// Carries out what the last merge of a directory decided. Returns guards to drop outside the lock.
    pub(super) fn resolve(&self, st: &mut State, dir: DirId) -> Vec<Guard> {
        let mut clashes = st.dirs.get_mut(&dir).map(|c| c.dir.take_clashes()).unwrap_or_default();
        if !clashes.is_empty() {
            // Some may have waited for what is settled now.
            st.dirs.iter().filter(|(_, c)| c.dir.has_pending()).for_each(|(d, _)| self.kick(*d));
        }
        // First what gives way: others may look for where they have put it.
        for c in clashes.iter_mut().filter(|c| c.verdict == Verdict::Both) {
            if let Err(e) = self.aside(st, dir, c) {
                tracing::warn!("the journal could not note a conflict: {e}");
            }
            self.tell_conflict(ConflictKind::Name, c.mine.as_ref().and_then(|e| e.file_id()), None);
        }
        clashes.into_iter().flat_map(|c| self.resolve_one(st, dir, c)).collect()
    }

    fn resolve_one(&self, st: &mut State, dir: DirId, mut c: Clash) -> Vec<Guard> {
        let stays = matches!((&c.base, &c.theirs), (Some(b), Some(t)) if same(b, t));
        if let Some(b) = c.base.as_ref().filter(|_| !(stays && matches!(c.verdict, Verdict::Mine(_)))) {
            self.spare(st, b);
        }
        let mut due = Vec::new();
        if c.moved {
            due.extend(self.source_changed(st, dir, &c, stays));
        }
        let carry = std::mem::take(&mut c.carry);
        match c.verdict {
            Verdict::Mine(_) => {
                // Another machine renamed it to the very same name: the bucket has it there, and not by this one's doing.
                let arrived = c.base.as_ref().is_none_or(|b| c.theirs.as_ref().is_some_and(|t| !same(b, t)));
                if let Some(id) = c.theirs.as_ref().filter(|_| arrived).and_then(|e| e.file_id()) {
                    st.renamed.pop(&id);
                }
                return due;
            }
            Verdict::Both => {}
            Verdict::Rescue => {
                carry.iter().for_each(|t| t.arrive());
                if let Some(moved) = self.follow_written(st, dir, &mut c) {
                    due.extend(moved);
                } else if let Some(mine) = &c.mine {
                    due.extend(self.orphan(st, dir, mine, std::mem::take(&mut c.after), false));
                }
            }
            Verdict::Theirs => {
                carry.iter().for_each(|t| t.arrive());
                if let Some(theirs) = c.theirs.as_ref().filter(|_| c.mine.is_none()) {
                    self.put_back(st, dir, theirs);
                    self.tell_conflict(ConflictKind::Kept, theirs.file_id(), None);
                }
            }
        }
        due.append(&mut c.after);
        if c.moved && !stays && c.base.as_ref().and_then(|e| e.file_id()).is_some() {
            // The name that it was moved to gets a file of its own: until it has that, a later mount has to be told.
            return due;
        }
        if let Err(e) = self.journal.done(dir, [(c.name.as_slice(), c.seq)]) {
            tracing::debug!("the journal could not note a conflict; it is met again after a crash: {e}");
        }
        due
    }

    /// What this machine shows under a name goes under a conflict name; the bucket's has the name.
    fn aside(&self, st: &mut State, dir: DirId, c: &mut Clash) -> Result<()> {
        let Some(mine) = c.mine.clone() else { return Ok(()) };
        let mut moved = Entry::clone(&mine);
        moved.name = self.conflict_name(st, dir, &mine.name);
        let moved = Arc::new(moved);
        let line: Noted = (dir, moved.name.clone(), Some(moved.clone()));
        let noted = self.journal_only(st, std::slice::from_ref(&line));
        st.replace(&(dir, mine.name.clone()), &(dir, moved.name.clone()));
        self.moved(st, &moved, dir);
        remember(st, &moved, dir);
        let [wait, carry] = [&mut c.wait, &mut c.carry].map(std::mem::take);
        let after = std::mem::take(&mut c.after);
        let change = Change { entry: Some(moved.clone()), wait, carry, after, ..Change::default() };
        drop(self.apply_journalled(st, vec![(dir, moved.name.clone(), change)]));
        if let Some(parent) = self.ino_of_dir_in_use(st, dir) {
            self.sink.invalidate(Invalidate::Entry(parent, mine.name.clone()));
            self.sink.invalidate(Invalidate::Entry(parent, moved.name.clone()));
        }
        noted
    }

    pub(super) fn ino_of_dir_in_use(&self, st: &State, dir: DirId) -> Option<u64> {
        if dir == st.root {
            return Some(ROOT);
        }
        st.dirs.get(&dir)?.place.as_ref().and_then(|p| st.places.get(p)).copied()
    }

    /// What was removed here is there again: its file or directory is not the removed one any more.
    fn put_back(&self, st: &mut State, dir: DirId, e: &Entry) {
        match &e.body {
            // Who has it open keeps what it had; whoever opens it now gets what is in the bucket.
            Body::File(f) if st.files.get(&f.file_id).is_some_and(|file| file.live.lock().unlinked) => {
                let file = st.files.remove(&f.file_id);
                st.stuck.extend(file.filter(|f| !f.live.lock().stuck.is_empty()));
            }
            Body::Dir { dir_id, dir_key } if e.name != ROOT_SELF => {
                let place = Some((dir, e.name.clone()));
                if st.dirs.get(dir_id).is_none_or(|c| c.dead) {
                    st.dirs.insert(*dir_id, DirCell::new(Dir::unloaded(*dir_id), dir_key.clone(), place));
                }
            }
            _ => {}
        }
    }

    /// Another machine changed what this one has renamed away from here.
    fn source_changed(&self, st: &mut State, dir: DirId, c: &Clash, stays: bool) -> Vec<Guard> {
        let Some(base) = &c.base else { return Vec::new() };
        let Some((to, there)) = renamed(st, base, (dir, &c.name)) else { return Vec::new() };
        if let Some(theirs) = c.theirs.as_ref().filter(|_| stays) {
            // It was written to, or its attributes changed: that goes along.
            let mut merged = merge::merge(Some(base), &there, theirs);
            merged.name = there.name.clone();
            if merged == *there {
                return Vec::new();
            }
            let merged = Arc::new(merged);
            let change = Change { entry: Some(merged.clone()), ..Change::default() };
            let due = self.apply(st, vec![(to, merged.name.clone(), change)]);
            self.adopt_version(st, &merged);
            return due.unwrap_or_default();
        }
        match &base.body {
            // Renamed there as well, or removed, and the object may go any moment: the new name gets a file of its own.
            Body::File(_) => self.orphan(st, to, &there, Vec::new(), true),
            // A directory has one name: the first rename counts.
            Body::Dir { .. } => {
                st.unplace(to, &there.name, &there);
                let due = self.apply(st, vec![(to, there.name.clone(), Change::default())]);
                if let Body::Dir { dir_id, .. } = &there.body
                    && let Some(cell) = st.dirs.get_mut(dir_id)
                {
                    cell.place = None;
                }
                if let Some(parent) = self.ino_of_dir_in_use(st, to) {
                    self.sink.invalidate(Invalidate::Entry(parent, there.name.clone()));
                }
                self.tell_conflict(ConflictKind::Undone, None, None);
                due.unwrap_or_default()
            }
            _ => Vec::new(),
        }
    }

    /// The contents behind an entry need a file of their own: another machine removed or replaced what they were written to.
    /// Takes the layers out of `guards`; returns the rest. `named`: this machine still has a name for them.
    fn orphan(&self, st: &mut State, dir: DirId, e: &Arc<Entry>, guards: Vec<Guard>, named: bool) -> Vec<Guard> {
        let Body::File(f) = &e.body else { return guards };
        let file = st.files.get(&f.file_id).cloned().unwrap_or_else(|| {
            let place = Some((dir, e.name.clone()));
            let file = super::file::File::new(f.file_id, f.file_key.clone(), place, super::io::version_of(e));
            let file = Arc::new(file);
            st.files.insert(f.file_id, file.clone());
            file
        });
        let mut landed = Vec::new();
        let mut rest: Vec<Guard> = Vec::new();
        for g in guards {
            match g.downcast::<Landed>() {
                Ok(l) => landed.push(*l),
                Err(g) => rest.push(g),
            }
        }
        if let Some(v) = super::io::version_of(e).filter(|_| !landed.is_empty()) {
            st.unnamed.put(f.file_id, v);
        }
        self.orphan_file(&file, Orphan { dir, entry: e.clone(), landed, named });
        rest
    }

    /// What was written to here has another name in the same directory now, by another machine's doing: it goes along.
    fn follow_written(&self, st: &mut State, dir: DirId, c: &mut Clash) -> Option<Vec<Guard>> {
        let mine = c.mine.clone()?;
        let there = st.dirs.get(&dir)?.dir.iter().find(|e| same(e, &mine) && e.name != c.name)?.clone();
        let mut merged = merge::merge(c.base.as_deref(), &mine, &there);
        merged.name = there.name.clone();
        let merged = Arc::new(merged);
        let change = Change { entry: Some(merged.clone()), after: std::mem::take(&mut c.after), ..Change::default() };
        if !st.places.contains_key(&(dir, there.name.clone())) {
            st.replace(&(dir, c.name.clone()), &(dir, there.name.clone()));
        }
        self.moved(st, &merged, dir);
        // What could not be noted here the spool's log still tells.
        let line: Noted = (dir, there.name.clone(), Some(merged));
        if let Err(e) = self.journal_only(st, std::slice::from_ref(&line)) {
            tracing::warn!("the journal could not note a conflict: {e}");
        }
        Some(self.apply_journalled(st, vec![(dir, there.name.clone(), change)]))
    }

    pub(super) fn orphan_file(&self, file: &Arc<super::file::File>, o: Orphan) {
        {
            let mut live = file.live.lock();
            // Seen to already.
            if live.unlinked && o.landed.is_empty() {
                return;
            }
            match &mut live.orphan {
                Some(old) => old.landed.extend(o.landed),
                none => *none = Some(o),
            }
        }
        self.save_soon(file);
    }

    /// Names of a directory that another machine took away or gave to something else: a file or directory that has another name
    /// there now is followed, and what has unsent data is kept.
    pub(super) fn follow(&self, st: &mut State, dir: DirId, changed: &[Vec<u8>]) {
        for name in changed {
            let place = (dir, name.clone());
            let now = st.dirs.get(&dir).and_then(|c| c.dir.get(name)).cloned();
            let node = st.places.get(&place).and_then(|ino| st.nodes.get(ino)).map(|n| n.entry.clone());
            let at_place = |f: &&Arc<super::file::File>| f.place.lock().as_ref() == Some(&place);
            let file = match node.as_ref().and_then(|e| e.file_id()) {
                Some(id) => st.files.get(&id).cloned(),
                None => st.files.values().find(at_place).cloned(),
            };
            let old = match (&node, &file) {
                (Some(e), _) => e.clone(),
                (None, Some(f)) => self.entry_for(st, f).1,
                (None, None) => continue,
            };
            if now.is_some_and(|e| same(&e, &old) || leads_to(&e, &old)) || matches!(old.body, Body::Symlink(_)) {
                continue;
            }
            let here = |n: &&Vec<u8>| st.dirs.get(&dir).and_then(|c| c.dir.get(n)).is_some_and(|e| same(e, &old));
            if let Some(to) = changed.iter().find(here).cloned() {
                st.replace(&place, &(dir, to.clone()));
                if let Some(e) = st.dirs.get(&dir).and_then(|c| c.dir.get(&to)).cloned() {
                    self.moved(st, &e, dir);
                }
            } else if let Some(file) = file.filter(|f| f.live.lock().dirty()) {
                self.orphan_file(&file, Orphan { dir, entry: old, landed: Vec::new(), named: false });
            }
        }
    }

    /// The entry of a file in use, wherever it is; made up from what is known when nothing shows it any more.
    pub(super) fn entry_for(&self, st: &State, file: &super::file::File) -> (DirId, Arc<Entry>) {
        let place = file.place.lock().clone();
        let dir = place.as_ref().map_or(st.root, |p| p.0);
        let of = |e: &Entry| e.file_id() == Some(file.id);
        let shown = place.as_ref().and_then(|(d, n)| st.dirs.get(d)?.dir.get(n)).filter(|e| of(e));
        if let Some(e) = shown.or_else(|| st.nodes.values().map(|n| &n.entry).find(|e| of(e))) {
            return (dir, e.clone());
        }
        let now = self.env.clock.now();
        let attributes = crate::format::entry::Attributes {
            mode: 0o600,
            uid: self.opts.root_owner.0,
            gid: self.opts.root_owner.1,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
        };
        let body = Body::File(crate::format::entry::FileRef {
            file_id: file.id,
            file_key: file.key.clone(),
            generation: 0,
            trailer_hash: crate::types::Hash::ZERO,
            size: 0,
            object_len: 0,
            key: None,
        });
        let name = place.map_or_else(|| b"recovered".to_vec(), |p| p.1);
        (dir, Arc::new(Entry { name, attributes, body, refs: Vec::new(), xattrs: Vec::new() }))
    }
}

/// Whether a name leads to a file that had but one name before.
pub(super) fn leads_to(name: &Entry, file: &Entry) -> bool {
    name.link().is_some_and(|l| file.file_id().is_some_and(|id| link_id(&id) == l.id))
}

/// Where this machine has renamed the file or directory of an entry to, from the name `old`.
pub(super) fn renamed(st: &State, e: &Entry, old: (DirId, &[u8])) -> Option<(DirId, Arc<Entry>)> {
    let known = match &e.body {
        Body::File(f) => st.renamed.peek(&f.file_id).cloned(),
        Body::Dir { dir_id, .. } => st.dirs.get(dir_id)?.place.clone(),
        _ => return None,
    };
    let is_it = |d: DirId, x: &Entry| same(x, e) && (d, &x.name[..]) != old;
    let known = known.and_then(|(d, name)| Some((d, st.dirs.get(&d)?.dir.get(&name).filter(|x| is_it(d, x))?.clone())));
    // Renamed so often since that it is forgotten: conflicts are rare enough to look everywhere. Names that the bucket holds are
    // not this machine's.
    known.or_else(|| {
        let mut all = st.dirs.iter().filter(|(d, c)| !c.dead && **d != st.links);
        all.find_map(|(d, c)| Some((*d, c.dir.arrivals().find(|x| is_it(*d, x))?.clone())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Time = Time { sec: 1_795_724_103, nsec: 5 };

    #[test]
    fn conflict_names_keep_the_extension_and_fit() {
        let text = |name: &str, n| String::from_utf8(marked(name.as_bytes(), "ward-3", AT, "", n)).unwrap();
        assert_eq!(text("scan.dcm", 1), "scan (conflict, ward-3, 2026-11-26 20.15.03).dcm");
        assert_eq!(text("scan.dcm", 2), "scan (conflict, ward-3, 2026-11-26 20.15.03, 2).dcm");
        assert_eq!(text(".profile", 1), ".profile (conflict, ward-3, 2026-11-26 20.15.03)");
        assert_eq!(text("README", 1), "README (conflict, ward-3, 2026-11-26 20.15.03)");
        let long = text(&format!("{}.dcm", "ä".repeat(125)), 7);
        assert!(long.len() <= NAME_MAX && long.len() > NAME_MAX - 2 && long.ends_with(", 7).dcm"), "{long}");
        let bytes = marked(&[0xff; 255], &"h/\n".repeat(99), AT, ", incomplete", u32::MAX);
        assert!(bytes.len() == NAME_MAX && !bytes.contains(&b'/') && !bytes.contains(&b'\n'));
    }
}
