//! Waiting until the bucket has everything, and what there is to tell meanwhile.

use super::Fs;
use super::file::File;
use super::state::State;
use super::status::Pending;
use crate::error::{Error, Kind, Result, fail};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

impl Fs {
    /// Whether the spool may get room soon: an upload is queued or under way, or its name is.
    pub(super) fn uploading(&self) -> bool {
        let names = || self.state.lock().dirs.values().any(|c| c.dir.has_pending());
        self.upload_slots.available_permits() < self.opts.uploads || names()
    }

    /// Waits while too many files have unsent data.
    pub(super) async fn wait_for_room(&self) -> Result<()> {
        let until = Instant::now() + self.opts.deadline;
        loop {
            let bell = self.uploaded.notified();
            if self.state.lock().files.len() < self.opts.max_dirty_files {
                return Ok(());
            }
            self.save_closed();
            if Instant::now() > until {
                return fail(Kind::NoSpace, "too many files wait to be uploaded; the store does not keep up");
            }
            let _ = tokio::time::timeout(Duration::from_millis(200), bell).await;
            // Open files alone may exceed the bound: they are limited by the process that holds them.
            if self.state.lock().files.values().all(|f| f.opens.load(Ordering::Acquire) > 0) {
                return Ok(());
            }
        }
    }

    /// Queues every closed file that is behind.
    pub(super) fn save_closed(&self) {
        let files: Vec<Arc<File>> = self.state.lock().files.values().cloned().collect();
        for file in files {
            if file.opens.load(Ordering::Acquire) == 0 {
                self.save_soon(&file);
            }
        }
    }

    /// What is not in the bucket yet.
    pub fn progress(&self) -> Pending {
        self.pending(&self.state.lock())
    }

    /// The same for who holds the state.
    pub(super) fn pending(&self, st: &State) -> Pending {
        let names = st.dirs.values().map(|c| c.dir.pending_count() as u64).sum::<u64>() + st.unborn.len() as u64;
        let mut p = Pending { names, sent_bytes: self.sent_bytes.load(Ordering::Relaxed), ..Pending::default() };
        for file in st.all_files() {
            let ahead = self.bytes_ahead(file);
            let live = file.live.lock();
            p.files += live.stuck.len() as u64;
            if live.dirty() {
                p.files += 1;
                p.bytes += live.unsaved_bytes.saturating_sub(live.sent_bytes + ahead);
            }
        }
        p
    }

    /// Takes no more changes: everything that would write is refused with `Busy`.
    pub fn stop_changes(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Returns when the bucket has everything that was acknowledged; `tell` hears how far it is. After `limit` it gives up with
    /// `Unavailable` (or the error that stands in the way); the spool keeps what is left.
    pub async fn drain(self: &Arc<Self>, limit: Option<Duration>, tell: &(dyn Fn(Pending) + Send + Sync)) -> Result<()> {
        if self.opts.read_only {
            return Ok(());
        }
        let started = Instant::now();
        self.hurry.store(true, Ordering::Release);
        self.end_lag().await;
        let result = loop {
            let p = self.progress();
            tell(p);
            if p.is_empty() && self.deletions.load(Ordering::Acquire) == 0 {
                break Ok(());
            }
            if limit.is_some_and(|l| started.elapsed() >= l) {
                break Err(self.obstacle());
            }
            self.push().await;
            let _ = tokio::time::timeout(Duration::from_millis(200), self.committed.notified()).await;
        };
        self.hurry.store(false, Ordering::Release);
        result
    }

    /// Gets everything going that can go.
    async fn push(self: &Arc<Self>) {
        let (files, dirs): (Vec<Arc<File>>, Vec<_>) = {
            let st = self.state.lock();
            let behind = st.files.values().filter(|f| f.live.lock().dirty()).cloned().collect();
            let dirs = st.dirs.iter().filter(|(id, c)| c.dir.has_pending() || st.unborn.contains(*id)).map(|(id, _)| *id);
            (behind, dirs.collect())
        };
        // First the contents: a directory is written once for all files that are ready.
        for file in &files {
            self.save_soon(file);
        }
        self.kick_uploads.notify_waiters();
        let until = Instant::now() + Duration::from_secs(1);
        while files.iter().any(|f| f.live.lock().dirty()) && Instant::now() < until {
            let _ = tokio::time::timeout(Duration::from_millis(100), self.uploaded.notified()).await;
        }
        for dir in dirs {
            self.flush_dir(dir).await;
        }
    }

    /// Why not everything is in the bucket.
    fn obstacle(&self) -> Error {
        let st = self.state.lock();
        let stuck = || st.all_files().any(|f| !f.live.lock().stuck.is_empty()).then(super::rescue::stuck);
        let of_file = st.files.values().find_map(|f| f.live.lock().error.as_ref().map(Error::duplicate)).or_else(stuck);
        let of_dir = || st.dirs.values().find_map(|c| c.error.as_ref().map(Error::duplicate));
        let why = of_file.or_else(of_dir);
        why.unwrap_or_else(|| Error::new(Kind::Unavailable, "the time was not enough"))
            .context("not everything is in the bucket yet; it is kept in the sealed spool")
    }

    /// After a drain: the journal and what hangs on it are not needed any more.
    pub fn close(&self) -> Result<()> {
        if self.opts.read_only || self.progress().is_empty() { self.journal.destroy() } else { self.journal.sync() }
    }
}
