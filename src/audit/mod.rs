//! The audit log and the quarantine: what happened to this volume on this machine, in a form that cannot be changed unseen.
//!
//! ```text
//!  event() ──bounded queue──> writer thread: line = JSON {n, prev, time, event, ..}   prev = SHA-256 of the line before
//!     │ full: counted                │
//!     │                              ├─> sealed log files audit-N (a new one per mount, rotated, oldest destroyed)
//!     └──────> "dropped" line <──────┤
//!                                    └─> after each sync: the head {n, hash} in a log of its own
//! ```
//!
//! Every line names the hash of the line before, across files, so an edited, dropped or moved line breaks the chain; the head,
//! kept apart, shows a chain that was cut short; a rotation says in the chain itself where it begins now. What this cannot show:
//! that the whole local state directory was put back to an earlier copy of itself, or what happened while smpfs was not running.
//!
//! [`Audit::event`] neither blocks nor fails: a full disk must not stop a mount. What could not be written is counted, and the
//! count is written as soon as that is possible.

mod chain;
mod event;
mod quarantine;
mod unlock;

pub use chain::{Problem, Report, rfc3339};
pub use event::{Event, Names};
pub use quarantine::{Counts, Finding, Held, Quarantine, QuarantineLimits};
pub use unlock::note_failed_unlock;

use crate::crypto::secmem::SecretKey;
use crate::disk::Disk;
use crate::env::Env;
use crate::error::{Error, Kind, Result, fail};
use crate::sealedlog::{LogKind, LogOwner, LogSet};
use crate::types::{Time, VolumeId};
use chain::{Chain, Link};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Events that wait for the writer at most.
const QUEUE: usize = 1024;
/// Lines kept in memory for [`Audit::tail`].
const TAIL_LINES: usize = 1000;
/// Longest time for which a line of small importance waits for the disk.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// Bytes of the log of heads before it is written anew.
const HEADS_MAX: u64 = 64 << 10;

const LINE: u8 = 1;
const HEAD: u8 = 2;

/// How much of the past is kept, and how openly names are written.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes after which a new file is begun.
    pub file_bytes: u64,
    /// Files kept; the oldest is destroyed when there are more.
    pub files: usize,
    /// Whether object keys that are paths may stand in a line.
    pub names: Names,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { file_bytes: 4 << 20, files: 8, names: Names::Hidden }
    }
}

/// The audit log of one volume on this machine. Cheap to call from anywhere; one per state directory (hold its lock).
pub struct Audit {
    queue: Mutex<Option<SyncSender<Order>>>,
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// What callers and the writer share.
#[derive(Default)]
struct Shared {
    recent: Mutex<VecDeque<String>>,
    /// Events lost since the last line about losses.
    dropped: AtomicU64,
    /// Events lost in all.
    dropped_ever: AtomicU64,
}

impl Shared {
    fn lose(&self, n: u64) {
        self.dropped.fetch_add(n, Ordering::Relaxed);
        self.dropped_ever.fetch_add(n, Ordering::Relaxed);
    }

    fn remember(&self, line: &str) {
        let mut recent = self.recent.lock();
        if recent.len() == TAIL_LINES {
            recent.pop_front();
        }
        recent.push_back(line.to_owned());
    }
}

enum Order {
    Write(Time, Event),
    Flush(SyncSender<Result<()>>),
    Verify(SyncSender<Result<Report>>),
}

impl Audit {
    /// Opens the audit log in `dir` of `disk`; `wrap` is K("local-log"). Reads what is there, and writes down what is wrong with it.
    /// Starts a thread, so a process that detaches itself does that before.
    ///
    /// Fails when the directory cannot be read and when no thread can be started; a full disk is only warned of, and what it
    /// refused is counted.
    pub fn open(disk: Arc<dyn Disk>, dir: &str, volume: VolumeId, wrap: &SecretKey, env: &Env, limits: Limits) -> Result<Audit> {
        let owner = LogOwner { kind: LogKind::Audit, volume, wrap: wrap.clone() };
        let lines = LogSet::open(disk.clone(), dir, "audit", owner.clone(), env.clone())?;
        let heads = LogSet::open(disk.clone(), dir, "head", owner, env.clone())?;
        let shared = Arc::new(Shared::default());
        let (chain, report) = chain::read(&lines, &heads, |line| shared.remember(line))?;
        let mut writer = Writer {
            lines,
            heads,
            chain,
            env: env.clone(),
            limits,
            shared: shared.clone(),
            dirty: false,
            synced: Instant::now(),
        };
        let problems = report.news();
        if !problems.is_empty() {
            writer.write(env.clock.now(), Event::AuditBroken { problems });
        }
        let notes = unlock::notes(&*disk, dir);
        notes.iter().for_each(|at| writer.write(*at, Event::UnlockFailed));
        match writer.begin() {
            Ok(()) if !notes.is_empty() => unlock::forget(&*disk, dir),
            Ok(()) => {}
            Err(e) => tracing::warn!("the audit log cannot be written now: {e}"),
        }
        let (queue, orders) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("smpfs-audit".to_owned()).spawn(move || writer.run(&orders));
        let thread = thread.map_err(|e| Error::from(e).context("starting the audit writer"))?;
        let (queue, writer) = (Mutex::new(Some(queue)), Mutex::new(Some(thread)));
        Ok(Audit { queue, shared, writer })
    }

    /// Writes an event, soon. Never blocks, never fails; see [`Audit::dropped`].
    pub fn event(&self, at: Time, event: Event) {
        let sent = self.queue.lock().as_ref().is_some_and(|q| q.try_send(Order::Write(at, event)).is_ok());
        if !sent {
            self.shared.lose(1);
        }
    }

    /// Events that could not be written since the mount began.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped_ever.load(Ordering::Relaxed)
    }

    /// The last `n` lines, oldest first; a thousand are kept in memory.
    pub fn tail(&self, n: usize) -> Vec<String> {
        let recent = self.shared.recent.lock();
        recent.iter().skip(recent.len().saturating_sub(n)).cloned().collect()
    }

    /// Returns when every event given before is durable. Blocks.
    pub fn flush(&self) -> Result<()> {
        self.ask(Order::Flush)?
    }

    /// Reads the whole log from the disk and checks the chain. Blocks.
    pub fn verify(&self) -> Result<Report> {
        self.ask(Order::Verify)?
    }

    fn ask<T>(&self, order: impl FnOnce(SyncSender<T>) -> Order) -> Result<T> {
        let (reply, answer) = sync_channel(1);
        let Some(queue) = self.queue.lock().clone() else { return fail(Kind::Stale, "the audit log is closed") };
        let gone = || Error::new(Kind::Bug, "the audit writer has stopped");
        queue.send(order(reply)).map_err(|_| gone())?;
        drop(queue);
        answer.recv().map_err(|_| gone())
    }

    /// Writes what is left and closes the log; later events count as dropped. Blocks.
    pub fn close(&self) -> Result<()> {
        let flushed = self.flush();
        drop(self.queue.lock().take());
        if let Some(thread) = self.writer.lock().take() {
            let ended = thread.join();
            if ended.is_err() {
                return fail(Kind::Bug, "the audit writer panicked");
            }
        }
        flushed
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        drop(self.queue.lock().take());
        if let Some(thread) = self.writer.lock().take() {
            let _ = thread.join(); // a panic there was reported when it happened
        }
    }
}

/// The thread that owns the files.
struct Writer {
    lines: LogSet,
    heads: LogSet,
    chain: Chain,
    env: Env,
    limits: Limits,
    shared: Arc<Shared>,
    /// Lines were written since the last sync.
    dirty: bool,
    /// When that was tried last.
    synced: Instant,
}

impl Writer {
    /// Makes durable what opening wrote, and a head even when there was nothing: from here on a missing head means something.
    fn begin(&mut self) -> Result<()> {
        self.dirty = true;
        self.sync()
    }

    fn run(mut self, orders: &Receiver<Order>) {
        loop {
            match orders.recv_timeout(SYNC_EVERY) {
                Ok(Order::Write(at, event)) => {
                    let urgent = event.urgent();
                    self.write(at, event);
                    if urgent || self.synced.elapsed() >= SYNC_EVERY {
                        self.sync_or_warn();
                    }
                }
                Ok(Order::Flush(reply)) => {
                    self.settle();
                    let _ = reply.try_send(self.sync()); // nobody listens any more: fine
                }
                Ok(Order::Verify(reply)) => {
                    self.settle();
                    self.sync_or_warn();
                    let _ = reply.try_send(chain::read(&self.lines, &self.heads, |_| ()).map(|(_, report)| report));
                }
                Err(RecvTimeoutError::Timeout) => self.sync_or_warn(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.settle();
        self.sync_or_warn();
    }

    /// Writes a line; what cannot be written is counted.
    fn write(&mut self, at: Time, event: Event) {
        self.settle();
        if let Err(e) = self.try_write(at, event) {
            self.shared.lose(1);
            tracing::warn!("the audit log could not take a line: {e}");
        }
    }

    /// Writes down how many events were lost, once that is possible again.
    fn settle(&mut self) {
        let count = self.shared.dropped.swap(0, Ordering::Relaxed);
        if count > 0 && self.try_write(self.env.clock.now(), Event::Dropped { count }).is_err() {
            self.shared.dropped.fetch_add(count, Ordering::Relaxed);
        }
    }

    fn try_write(&mut self, at: Time, event: Event) -> Result<()> {
        let link = self.chain.next(at, &event.shown(self.limits.names))?;
        self.append(&link)?;
        if self.lines.current_len() >= self.limits.file_bytes
            && let Err(e) = self.rotate()
        {
            tracing::warn!("the audit log could not begin a new file and grows on: {e}");
        }
        Ok(())
    }

    fn append(&mut self, link: &Link) -> Result<()> {
        let (file, _) = self.lines.append(LINE, link.line.as_bytes())?;
        self.chain.accept(link, file);
        self.shared.remember(&link.line);
        self.dirty = true;
        Ok(())
    }

    /// Begins a new file and destroys what is too old, after the chain says so durably.
    fn rotate(&mut self) -> Result<()> {
        self.lines.rotate()?;
        let files = self.lines.files()?;
        let excess = (files.len()).saturating_sub(self.limits.files.max(2));
        if excess == 0 {
            return Ok(());
        }
        let (oldest, _) = files[excess];
        let first = self.chain.first_in(oldest);
        let link = self.chain.next(self.env.clock.now(), &Event::Rotated { first })?;
        self.append(&link)?;
        self.sync()?;
        self.lines.destroy_before(oldest)
    }

    fn sync_or_warn(&mut self) {
        if let Err(e) = self.sync() {
            tracing::warn!("the audit log could not be made durable: {e}");
        }
    }

    /// Makes the lines durable, and only then the head that says so.
    fn sync(&mut self) -> Result<()> {
        if !self.dirty {
            return Ok(());
        }
        self.synced = Instant::now();
        if let Err(e) = self.lines.sync() {
            // The chain goes on: lines that were lost with this failure will show as a gap, which is the truth.
            self.lines.accept_loss()?;
            return Err(e);
        }
        self.write_head()?;
        self.dirty = false;
        Ok(())
    }

    fn write_head(&self) -> Result<()> {
        let head = self.chain.head();
        let appended = self.heads.append(HEAD, &head).and_then(|_| self.heads.sync());
        // Only the last head counts, so a long log of heads, or one that failed, is one head in a new file.
        if appended.is_err() || self.heads.current_len() > HEADS_MAX {
            return self.heads.rewrite(&mut std::iter::once((HEAD, head)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
