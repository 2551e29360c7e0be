//! How old what is shown may be: directories in use are compared with the bucket, one request for each index object.
//!
//! Whoever looks a name up, opens a file or lists a directory waits for that when the last look is older than `dir_ttl`. While the
//! store is away nobody waits: what is known is served, and asking goes on in the background.

use super::Fs;
use super::file::{File, Version};
use super::state::State;
use crate::error::Kind;
use crate::format::entry::Entry;
use crate::ops::Ino;
use crate::tree::io::Remote;
use crate::types::DirId;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Longest wait for a look at the bucket, where what is known can be served instead.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether a directory has to be looked at.
enum Look {
    No,
    /// Somebody is at it.
    Busy,
    /// This caller does it.
    Yes(Box<Remote>),
}

impl Fs {
    fn look(&self, id: DirId) -> Look {
        let mut st = self.state.lock();
        let Some(cell) = st.dirs.get_mut(&id) else { return Look::No };
        if cell.dead || !self.is_stale(cell) {
            return Look::No;
        }
        let Some(remote) = cell.remote.clone() else { return Look::No };
        // A large directory costs a request per shard: ask less often.
        let ttl = self.opts.dir_ttl * remote.parts().min(64);
        if cell.fetched.is_some_and(|t| t.elapsed() < ttl) {
            return Look::No;
        }
        if std::mem::replace(&mut cell.busy, true) {
            return Look::Busy;
        }
        Look::Yes(Box::new(remote))
    }

    /// Returns when what is known of a directory is fresh enough, or when that is not to be had now.
    pub(super) async fn fresh(&self, id: DirId) {
        let until = tokio::time::Instant::now() + PATIENCE.min(self.opts.deadline);
        let asked = Instant::now();
        loop {
            let bell = self.committed.notified();
            match self.look(id) {
                Look::No => return,
                Look::Yes(remote) => {
                    let Some(fs) = self.arc() else { return };
                    let look = self.rt.spawn(async move { fs.look_now(id, *remote).await });
                    if !self.away.load(Ordering::Acquire) {
                        let _ = tokio::time::timeout_at(until, look).await;
                    }
                    return;
                }
                Look::Busy => {}
            }
            let over = self.away.load(Ordering::Acquire) || tokio::time::Instant::now() >= until;
            if over || tokio::time::timeout_at(until, bell).await.is_err() {
                return;
            }
            // Whoever was at it has looked after this caller came.
            if self.state.lock().dirs.get(&id).is_none_or(|c| c.fetched.is_some_and(|t| t >= asked)) {
                return;
            }
        }
    }

    async fn look_now(&self, id: DirId, remote: Remote) {
        let result = match self.within(self.index.changed(id, &remote)).await {
            Ok(true) => self.reload(id).await,
            Ok(false) => Ok(()),
            Err(e) => Err(e),
        };
        let pending = {
            let mut st = self.state.lock();
            let Some(cell) = st.dirs.get_mut(&id) else { return };
            cell.busy = false;
            // Also after a failure: a store that is down is not asked on every lookup.
            cell.fetched = Some(Instant::now());
            if cell.dead {
                st.forget_dead(id);
                return;
            }
            cell.dir.has_pending()
        };
        self.away.store(result.as_ref().is_err_and(|e| e.kind() == Kind::Unavailable), Ordering::Release);
        if let Err(e) = result {
            tracing::debug!(dir = ?id, "looking for changes: {e}");
            if e.kind() == Kind::Corrupt {
                self.sink.trouble(&e);
            }
        }
        self.committed.notify_waiters();
        if pending {
            self.kick(id);
        }
    }

    /// Before an open: the directory is fresh, and a file without unsent data is at the version that its entry names.
    pub(super) async fn fresh_file(&self, ino: Ino) {
        let place = self.state.lock().nodes.get(&ino).and_then(|n| n.place.clone());
        let Some((dir, _)) = place else { return };
        self.fresh(dir).await;
        let behind = {
            let st = self.state.lock();
            let of = |e: Arc<Entry>| Some((self.live_of(&st, &e)?, super::io::version_of(&e)?));
            st.entry(ino).ok().and_then(of)
        };
        if let Some((file, version)) = behind {
            self.catch_up(&file, version, &mut *file.io.write().await);
        }
    }

    /// A file without unsent data goes over to the version that another machine wrote.
    fn catch_up(&self, file: &File, v: Version, io: &mut super::file::Io) {
        if io.is_clean() && io.version.as_ref().is_none_or(|old| old.generation < v.generation) {
            io.size = v.size;
            file.live.lock().size = v.size;
            io.version = Some(v);
            io.object = None;
            file.epoch.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// A file in use goes over to the version that another machine wrote, unless somebody works with it just now: the next one
    /// who opens it sees to that.
    pub(super) fn adopt_version(&self, st: &State, e: &Entry) {
        let (Some(file), Some(v)) = (self.live_of(st, e), super::io::version_of(e)) else { return };
        if let Ok(mut io) = file.io.try_write() {
            self.catch_up(&file, v, &mut io);
        }
    }
}
