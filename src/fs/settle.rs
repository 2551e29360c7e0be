//! Waiting until the bucket has the names of a directory: for fsync.

use super::Fs;
use super::file::File;
use super::state::{DirCell, State};
use crate::error::{Error, Kind, Result, fail};
use crate::format::entry::Body;
use crate::store::temporary;
use crate::types::DirId;
use std::sync::Arc;
use std::time::{Duration, Instant};

impl Fs {
    /// Returns when a name (or all names) of a directory, and the directory itself, are in the bucket.
    pub(super) async fn settle(self: &Arc<Self>, mut dir: DirId, name: Option<&[u8]>) -> Result<()> {
        loop {
            self.settle_there(dir, name).await?;
            // Another machine may have removed the directory meanwhile: what was made in it is in a new one.
            let home = self.state.lock().home(dir);
            if home == dir {
                return Ok(());
            }
            dir = home;
        }
    }

    async fn settle_there(self: &Arc<Self>, dir: DirId, name: Option<&[u8]>) -> Result<()> {
        if let Some(inode) = name.filter(|_| self.state.lock().links == dir) {
            // The names that lead to it have to be there as well.
            self.settle_one(dir, name).await?;
            let names: Vec<(DirId, Vec<u8>)> = {
                let st = self.state.lock();
                st.dirs.iter().flat_map(|(d, c)| c.dir.pending_links(inode).into_iter().map(|n| (*d, n))).collect()
            };
            // One may wait for another in another directory.
            for (dir, _) in &names {
                self.flush_dir(*dir).await;
            }
            for (dir, name) in names {
                Box::pin(self.settle(dir, Some(&name))).await?;
            }
        }
        self.settle_one(dir, name).await?;
        if self.state.lock().home(dir) != dir {
            return Ok(());
        }
        // Another machine may take the old name of what was moved away, and the object with it.
        let old = name.map_or_else(Vec::new, |n| self.old_names(dir, n));
        for (dir, name) in old {
            self.settle_one(dir, Some(&name)).await?;
        }
        // Up to the root: that a parent names the directory is worth nothing while nobody names the parent.
        let mut at = dir;
        for _ in 0..4096 {
            let place = |st: &State| st.dirs.get(&st.home(at)).and_then(|c| c.place.clone());
            let (up, name, named) = {
                let st = self.state.lock();
                let Some((up, name)) = place(&st) else { return Ok(()) };
                let named = st.dirs.get(&up).is_none_or(|c| c.dir.is_reached(&name));
                (up, name, named)
            };
            if !named {
                self.settle_one(up, Some(&name)).await?;
                if place(&self.state.lock()) != Some((up, name)) {
                    continue;
                }
            }
            at = up;
        }
        fail(Kind::NameTooLong, "the path is too deep")
    }

    async fn settle_one(self: &Arc<Self>, id: DirId, name: Option<&[u8]>) -> Result<()> {
        let started = Instant::now();
        let target = {
            let st = self.state.lock();
            st.dirs.get(&id).map(|c| name.map_or(st.seq, |n| c.dir.pending_seq(n).unwrap_or(0)))
        };
        let Some(target) = target else { return Ok(()) };
        loop {
            let Some(behind) = self.unsettled(id, name, target, started)? else { return Ok(()) };
            if started.elapsed() > self.opts.deadline * 2 {
                return fail(Kind::Unavailable, "the directory index could not be written in time; it will be");
            }
            for file in behind {
                if let Some(e) = file.refusal() {
                    return Err(e);
                }
                self.save_soon(&file);
            }
            // Names may wait for the inodes that they lead to.
            let links = {
                let st = self.state.lock();
                Some(st.links).filter(|l| *l != id && st.dirs.get(l).is_some_and(|c| c.dir.has_pending()))
            };
            if let Some(links) = links {
                self.flush_dir(links).await;
            }
            self.flush_dir(id).await;
            if name.is_none() {
                self.flush_kicked().await;
            }
            // The flush has rung by itself: who listens from before it never waits, and what was spawned above never gets to run.
            let (written, saved) = (self.committed.notified(), self.uploaded.notified());
            let (mut written, mut saved) = (std::pin::pin!(written), std::pin::pin!(saved));
            written.as_mut().enable();
            saved.as_mut().enable();
            if self.unsettled(id, name, target, started)?.is_none() {
                return Ok(());
            }
            tokio::select! {
                () = written => {}
                () = saved => {}
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
        }
    }

    /// Files that a directory (or one of its names) waits for until the bucket has its changes up to `target`; `None` when it has.
    fn unsettled(&self, id: DirId, name: Option<&[u8]>, target: u64, started: Instant) -> Result<Option<Vec<Arc<File>>>> {
        let st = self.state.lock();
        let Some(cell) = st.dirs.get(&id) else { return Ok(None) };
        let settled = match name {
            Some(n) => cell.dir.name_settled_until(n, target),
            None => cell.dir.settled_until(target),
        };
        if settled && !st.unborn.contains(&id) {
            return Ok(None);
        }
        if let Some(e) = cell.error.as_ref().filter(|e| !temporary(e.kind()) || started.elapsed() > self.opts.deadline) {
            return Err(Error::duplicate(e));
        }
        Ok(Some(if name.is_none() { self.behind(&st, cell) } else { Vec::new() }))
    }

    /// Writes the directories whose turn would come soon. What a directory waits for may lie in another one: the first index of a
    /// subdirectory, the new name of what moved away.
    async fn flush_kicked(self: &Arc<Self>) {
        let dirs = std::mem::take(&mut *self.kicked.lock());
        for dir in dirs {
            self.flush_dir(dir).await;
        }
    }

    /// Files of a directory whose names wait for their contents.
    fn behind(&self, st: &State, cell: &DirCell) -> Vec<Arc<File>> {
        cell.dir
            .iter()
            .filter_map(|e| match e.link() {
                Some(_) => st.target(cell.dir.id, e).map(|(_, inode)| inode),
                None => Some(e.clone()),
            })
            .filter(|e| matches!(&e.body, Body::File(f) if f.generation == 0))
            .filter_map(|e| self.live_of(st, &e))
            .collect()
    }
}
