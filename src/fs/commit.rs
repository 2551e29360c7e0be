//! Names on their way to the bucket: group commit of directory indexes, refreshing, and waiting for both.
//!
//! A change kicks its directory; after `commit_delay` all names that gathered go into one index write per part. One task at a
//! time works on a directory (`busy`). A lost race reads the part again, merges by name and writes again.

use super::state::{DirCell, ROOT_SELF, State};
use super::{Doomed, Fs};
use crate::crypto::secmem::SecretKey;
use crate::env::failpoint::reach;
use crate::error::{Error, Kind, Result, fail};
use crate::format::entry::{Body, Entry};
use crate::ops::{Invalidate, ROOT};
use crate::store::refused;
use crate::tree::dir::{Change, Guard, Taken};
use crate::tree::io::Remote;
use crate::tree::meet::{Merged, Reading};
use crate::types::DirId;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Names of one index write at most.
const BATCH: usize = 16_384;
/// Lost races in a row before the directory has to wait.
const RACES: usize = 16;
/// Directories written at once.
const AT_ONCE: usize = 16;

/// What an index write starts from.
pub(super) struct Claim {
    pub(super) key: SecretKey,
    remote: Option<Remote>,
    /// Readings that were merged so far: what `remote` says belongs to the names as of then.
    merges: u64,
    leaving: bool,
}

impl Fs {
    /// Writes kicked directories until the mount ends.
    pub(super) async fn committer(fs: std::sync::Weak<Fs>, bell: Arc<tokio::sync::Notify>) {
        let slots = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
        loop {
            bell.notified().await;
            let Some(this) = fs.upgrade() else { return };
            let delay = if this.hurry.load(Ordering::Acquire) { Duration::ZERO } else { this.opts.commit_delay };
            drop(this);
            tokio::time::sleep(delay).await;
            let Some(this) = fs.upgrade() else { return };
            let dirs: Vec<DirId> = this.kicked.lock().drain().collect();
            for dir in dirs {
                let Ok(slot) = slots.clone().acquire_owned().await else { return };
                let fs = this.clone();
                this.rt.spawn(async move {
                    fs.flush_dir(dir).await;
                    drop(slot);
                });
            }
        }
    }

    /// Writes what is pending in a directory, unless somebody is at it (who will see it too, or kick again).
    pub(super) async fn flush_dir(self: &Arc<Self>, id: DirId) {
        if self.opts.read_only || !self.claim(id) {
            return;
        }
        let result = self.flush_claimed(id).await;
        let again = self.unclaim(id, result);
        self.committed.notify_waiters();
        self.tend_journal();
        if let Some(wait) = again {
            let fs = self.clone();
            self.rt.spawn(async move {
                tokio::time::sleep(wait).await;
                fs.kick(id);
            });
        }
    }

    fn claim(&self, id: DirId) -> bool {
        let mut st = self.state.lock();
        match st.dirs.get_mut(&id) {
            Some(c) if !c.busy && !c.dead => {
                c.busy = true;
                c.again = false;
                true
            }
            Some(c) => {
                c.again = true;
                false
            }
            None => false,
        }
    }

    /// Ends a claim. Returns when to try again, if at all.
    fn unclaim(&self, id: DirId, result: Result<()>) -> Option<Duration> {
        let mut st = self.state.lock();
        let unborn = st.unborn.contains(&id);
        let cell = st.dirs.get_mut(&id)?;
        cell.busy = false;
        if cell.dead {
            st.forget_dead(id);
            return None;
        }
        match result {
            Ok(()) => {
                cell.failures = 0;
                cell.error = None;
                // What came when the last write was decided has been missed.
                std::mem::take(&mut cell.again).then_some(Duration::ZERO)
            }
            Err(e) => {
                tracing::warn!(dir = ?id, unborn, "a directory index was not written, will be tried again: {e}");
                self.sink.trouble(&e);
                cell.failures += 1;
                cell.error = Some(e);
                let (first, most) = self.opts.retry;
                Some((first * 2u32.saturating_pow(cell.failures.min(16) - 1)).min(most))
            }
        }
    }

    async fn flush_claimed(self: &Arc<Self>, id: DirId) -> Result<()> {
        if !self.state.lock().unborn.contains(&id) {
            self.load_dir(id).await?;
        }
        self.root_times(id);
        if self.state.lock().dirs.get(&id).is_some_and(|c| c.remote.is_some() && c.dir.is_unsure()) {
            // What a write put there whose answer never came may have been seen and removed by now.
            self.reload(id).await?;
        }
        let mut races = 0;
        loop {
            self.remove_displaced(id).await;
            let Some(claim) = self.start_from(id) else { return Ok(()) };
            let done = match &claim.remote {
                None => self.write_first(id, &claim).await,
                Some(remote) if claim.leaving => self.write_last(id, &claim, remote).await,
                Some(remote) => self.write_next(id, &claim, remote).await,
            };
            match done {
                Ok(true) => races = 0,
                Ok(false) => break,
                // A shard that another machine has split away is not found.
                Err(e) if matches!(e.kind(), Kind::Stale | Kind::NotFound) && races < RACES => {
                    races += 1;
                    self.reload(id).await?;
                }
                Err(e) => return Err(e),
            }
        }
        self.parent_times(id);
        Ok(())
    }

    fn start_from(&self, id: DirId) -> Option<Claim> {
        let st = self.state.lock();
        let cell = st.dirs.get(&id).filter(|c| !c.dead)?;
        Some(Claim { key: cell.key.clone(), remote: cell.remote.clone(), merges: cell.merges, leaving: cell.leaving })
    }

    /// Reads a directory's index and merges it: the only way in. Gives what [`Fs::after_merge`] and the kernel must know.
    ///
    /// `again`: files and directories in use are followed to where they are now.
    ///
    /// What was read is older than what is shown when the index was written, or read and merged, meanwhile: it is read again then.
    pub(super) async fn read_index(&self, id: DirId, again: bool) -> Result<Merged> {
        for _ in 0..RACES {
            let Some((key, state)) = self.state.lock().dirs.get(&id).filter(|c| !c.dead).map(|c| (c.key.clone(), c.state()))
            else {
                return Ok(Merged::default());
            };
            let (remote, entries) = match self.within(self.index.load(id, &key)).await {
                Ok(read) if !read.0.removed => read,
                other => return self.removed_there(id, other.map(|(remote, _)| remote)).await,
            };
            let mut st = self.state.lock();
            let Some(cell) = st.dirs.get_mut(&id) else { return Ok(Merged::default()) };
            if cell.state() != state {
                continue;
            }
            let before = cell.remote.take();
            let how = |name: &[u8]| Reading { own: remote.own(name), gap: remote.gap(before.as_ref(), name) };
            let merged = cell.dir.merge_with(entries, |_| true, how);
            cell.remote = Some(remote);
            cell.fetched = Some(Instant::now());
            cell.merges += 1;
            if st.unborn.remove(&id)
                && let Err(e) = self.journal.done(id, std::iter::empty())
            {
                tracing::debug!("the journal could not note that a directory exists: {e}");
            }
            let mut due = self.resolve(&mut st, id);
            due.extend(self.meet_removed(&mut st, id, &merged.changed));
            if again {
                self.follow(&mut st, id, &merged.changed);
            }
            drop(st);
            drop(due);
            return Ok(merged);
        }
        fail(Kind::Unavailable, "the directory keeps changing while it is read")
    }

    /// Reads a directory again after a lost race, and tells who knew what changed.
    pub(super) async fn reload(&self, id: DirId) -> Result<()> {
        let merged = self.read_index(id, true).await?;
        self.tell_kernel(id, merged.changed.clone());
        self.after_merge(id, merged).await
    }

    /// Reads a directory again when its listing is old: before something rests on its being empty.
    pub(super) async fn fresh_dir(&self, id: DirId) -> Result<()> {
        let old = self.state.lock().dirs.get(&id).is_some_and(|c| c.remote.is_some() && self.is_stale(c));
        if old { self.reload(id).await } else { Ok(()) }
    }

    /// Takes the names of one part that can be written, with what the part shall hold. `None` when the index was read again since
    /// the claim: names of one version must not be written under the tag of another.
    pub(super) fn take(
        &self,
        id: DirId,
        claim: &Claim,
        covers: impl Fn(&[u8]) -> bool + Copy,
    ) -> Option<(Vec<Taken>, Vec<Arc<Entry>>)> {
        let mut st = self.state.lock();
        let counted = id == st.links;
        let back: Vec<Vec<u8>> = super::vanished::leaving(&st, id).into_iter().map(|(name, _)| name).collect();
        let State { dirs, unborn, files, .. } = &mut *st;
        let cell = dirs.get_mut(&id).filter(|c| c.merges == claim.merges)?;
        let ready = |e: &Entry| match &e.body {
            _ if counted && e.refs.is_empty() => false,
            // What lost its object to another machine gets one of its own first; of what a crash left that is not known at once.
            Body::File(f) => f.generation > 0 && files.get(&f.file_id).is_none_or(|f| !f.live.lock().unsettled()),
            Body::Dir { dir_id, .. } => !unborn.contains(dir_id),
            _ => true,
        };
        cell.dir.keep_back(back);
        let batch = cell.dir.take(ready, covers, BATCH);
        let content = cell.dir.content(&batch, covers);
        Some((batch, content))
    }

    /// The batch is in the bucket.
    pub(super) fn landed_names(&self, id: DirId, batch: &[Taken], update: impl FnOnce(&mut DirCell)) {
        let (due, wake): (Vec<Guard>, Vec<DirId>) = {
            let mut st = self.state.lock();
            st.unborn.remove(&id);
            let Some(cell) = st.dirs.get_mut(&id) else { return };
            let first = cell.remote.is_none();
            update(cell);
            cell.writes += 1;
            cell.fetched = Some(Instant::now());
            let (mut due, arrived) = cell.dir.commit(batch);
            if let Some(remote) = cell.remote.as_ref().filter(|_| first && cell.dead) {
                // Removed while its first index was on its way: no entry ever names it.
                due.push(Box::new(Doomed::index(self, id, remote)));
            }
            let wake = match arrived {
                true => st.dirs.iter().filter(|(_, c)| c.dir.has_pending()).map(|(d, _)| *d).collect(),
                false => Vec::new(),
            };
            (due, wake)
        };
        // Logs of the spool go before the journal forgets their names: a later mount would take what is left of a file that was
        // unlinked here for one that another machine has unlinked.
        reach("names-landed");
        drop(due);
        reach("spool-logs-gone");
        self.forget_lines(id, batch);
        reach("names-forgotten");
        for dir in wake {
            self.kick(dir);
        }
    }

    /// The journal need not remember a batch that is in the bucket.
    fn forget_lines(&self, id: DirId, batch: &[Taken]) {
        let st = self.state.lock();
        // A file that is behind stays: its line tells a later mount where the spool's data belongs. So does an inode that still has to
        // lose names.
        let whole = |t: &&Taken| st.dirs.get(&id).is_none_or(|c| c.dir.pending_seq(&t.name) != Some(t.seq));
        let settled = batch.iter().filter(whole).filter(|t| !t.entry.as_ref().is_some_and(|e| self.is_behind(&st, e)));
        // Of a name that is not pending any more, whatever was noted until now is done.
        let until = |t: &Taken| st.dirs.get(&id).filter(|c| c.dir.pending_seq(&t.name).is_some()).map_or(st.seq, |_| t.seq);
        if let Err(e) = self.journal.done(id, settled.map(|t| (t.name.as_slice(), until(t)))) {
            tracing::debug!("the journal could not note a commit; the names will be written again: {e}");
        }
        drop(st);
        self.note_arrivals(id, batch);
    }

    fn is_behind(&self, st: &State, e: &Entry) -> bool {
        self.live_of(st, e).is_some_and(|f| f.live.lock().dirty()) || super::moves::is_departing(st, e)
    }

    pub(super) fn give_back(&self, id: DirId, batch: &[Taken], e: &Error) {
        if let Some(cell) = self.state.lock().dirs.get_mut(&id) {
            cell.dir.untake(batch, refused(e));
        }
    }

    /// The first index of a new directory; then its parent may name it.
    async fn write_first(&self, id: DirId, claim: &Claim) -> Result<bool> {
        let Some((batch, content)) = self.take(id, claim, |_| true) else { return Ok(true) };
        match self.index.create(id, &claim.key, &content).await {
            Ok(remote) => {
                reach("directory-written");
                self.landed_names(id, &batch, |c| c.remote = Some(remote));
                let parent = self.state.lock().dirs.get(&id).and_then(|c| c.place.clone()).map(|p| p.0);
                if let Some(parent) = parent {
                    self.kick(parent);
                }
                Ok(true)
            }
            Err(e) => {
                self.give_back(id, &batch, &e);
                Err(e)
            }
        }
    }

    /// Writes every part that has names to write. `true` when there may be more to do.
    pub(super) async fn write_next(&self, id: DirId, claim: &Claim, remote: &Remote) -> Result<bool> {
        let count = {
            let st = self.state.lock();
            let Some(cell) = st.dirs.get(&id) else { return Ok(false) };
            if !cell.dir.has_pending() {
                return Ok(false);
            }
            cell.dir.len()
        };
        if remote.wants_split(count) {
            return self.split(id, claim, remote).await;
        }
        let mut any = false;
        for part in 0..remote.parts() {
            let covers = |name: &[u8]| remote.bits == 0 || remote.shard_of(name) == part;
            let Some((batch, content)) = self.take(id, claim, covers) else { return Ok(true) };
            if batch.is_empty() {
                continue;
            }
            any = true;
            match self.index.write_part(id, &claim.key, remote, part, &content).await {
                Ok(version) => self.landed_names(id, &batch, |c| {
                    if let Some(r) = &mut c.remote {
                        match r.bits {
                            0 => r.head = version,
                            _ => r.shards[part as usize] = version,
                        }
                    }
                }),
                Err(e) => {
                    self.give_back(id, &batch, &e);
                    return Err(e);
                }
            }
        }
        Ok(any)
    }

    async fn split(&self, id: DirId, claim: &Claim, remote: &Remote) -> Result<bool> {
        let Some((batch, content)) = self.take(id, claim, |_| true) else { return Ok(true) };
        match self.index.split(id, &claim.key, remote, &content).await {
            Ok(new) => {
                let any = !batch.is_empty();
                self.landed_names(id, &batch, |c| c.remote = Some(new));
                Ok(any)
            }
            Err(e) => {
                self.give_back(id, &batch, &e);
                Err(e)
            }
        }
    }

    /// The root keeps its own times in its own index: they go with the names.
    fn root_times(&self, id: DirId) {
        let mut st = self.state.lock();
        if id != st.root || self.opts.read_only {
            return;
        }
        let pending = st.dirs.get(&id).is_some_and(|c| c.dir.has_pending());
        let times = st.dirs.get_mut(&id).filter(|_| pending).and_then(|c| c.times.take());
        if let (Some(t), Ok(e)) = (times, self.entry_of(&st, ROOT)) {
            let mut e = Entry::clone(&e);
            (e.attributes.mtime, e.attributes.ctime) = (t.max(e.attributes.mtime), t.max(e.attributes.ctime));
            let seq = st.next_seq();
            if let Some(cell) = st.dirs.get_mut(&id) {
                drop(cell.dir.set(ROOT_SELF, seq, Change { entry: Some(Arc::new(e)), ..Change::default() }));
            }
        }
    }

    /// After its names are written, a directory's times go into its parent's entry: once per group, not once per name.
    fn parent_times(&self, id: DirId) {
        let mut st = self.state.lock();
        if id == st.root {
            return;
        }
        let Some(cell) = st.dirs.get_mut(&id) else { return };
        let (Some(t), Some((up, name))) = (cell.times, cell.place.clone()) else { return };
        let Some(e) = st.dirs.get(&up).and_then(|c| c.dir.get(&name)).cloned() else { return };
        if e.dir_id() != Some(id) {
            return;
        }
        let mut e = Entry::clone(&e);
        (e.attributes.mtime, e.attributes.ctime) = (t.max(e.attributes.mtime), t.max(e.attributes.ctime));
        let seq = st.next_seq();
        if let Some(cell) = st.dirs.get_mut(&up) {
            drop(cell.dir.set(&name, seq, Change { entry: Some(Arc::new(e)), ..Change::default() }));
        }
        if let Some(cell) = st.dirs.get_mut(&id) {
            cell.times = None;
        }
        drop(st);
        self.kick(up);
    }

    /// Tells the kernel about names that another machine changed, and files in use about their new versions.
    fn tell_kernel(&self, id: DirId, changed: Vec<Vec<u8>>) {
        let mut st = self.state.lock();
        let parent = if id == st.root { Some(ROOT) } else { self.ino_of_known_dir(&st, id) };
        for name in changed {
            if let Some(p) = parent {
                self.sink.invalidate(Invalidate::Entry(p, name.clone()));
            }
            let place = (id, name);
            let entry = st.dirs.get(&id).and_then(|c| c.dir.get(&place.1)).cloned();
            let Some(&ino) = st.places.get(&place) else { continue };
            match entry {
                Some(e) if same_object(&st, ino, &e) => {
                    if let Some(n) = st.nodes.get_mut(&ino) {
                        n.entry = e.clone();
                        n.stale_pages = true;
                    }
                    self.adopt_version(&st, &e);
                    self.sink.invalidate(Invalidate::Inode(ino));
                }
                Some(e) if self.now_linked(&mut st, &place, &e) => self.sink.invalidate(Invalidate::Inode(ino)),
                _ => {
                    // Removed or replaced elsewhere: who has it open keeps what it had.
                    let last = st.nodes.get(&ino).map(|n| n.entry.clone());
                    if let Some(last) = last {
                        st.unplace(id, &place.1, &last);
                    }
                }
            }
        }
    }

    fn ino_of_known_dir(&self, st: &State, id: DirId) -> Option<u64> {
        let place = st.dirs.get(&id)?.place.clone()?;
        st.places.get(&place).copied()
    }
}

/// Whether an inode in use and an entry are the same file, directory or link.
fn same_object(st: &State, ino: u64, e: &Entry) -> bool {
    let Some(node) = st.nodes.get(&ino) else { return false };
    match (&node.entry.body, &e.body) {
        (Body::File(a), Body::File(b)) => a.file_id == b.file_id,
        (Body::Dir { dir_id: a, .. }, Body::Dir { dir_id: b, .. }) => a == b,
        (Body::File(_) | Body::Dir { .. }, _) | (_, Body::File(_) | Body::Dir { .. }) => false,
        (a, b) => a == b,
    }
}
