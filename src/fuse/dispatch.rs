//! From a request to its answer: fast path, lanes, deadlines, panics.

use super::MountOptions;
use super::answer::{Answer, Gain};
use super::patience::{GivenUp, patience};
use crate::error::{Error, Kind, Result, fail};
use crate::ops::{Caller, Ops};
use futures_util::FutureExt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Requests that wait for a permit or run, at most; further ones are answered EAGAIN. The kernel's own limits are far below
/// unless thousands of processes wait at once.
const MAX_TASKS: usize = 16_384;

/// What a request waits with: a reader that hangs on the network must not keep `ls` from its permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Names and attributes.
    Names,
    /// Reads, writes, and opens, which may read from the store as well.
    Data,
    /// flush and fsync, which wait for uploads.
    Sync,
    /// release: must run, or a handle leaks; waits for no permit.
    Release,
}

/// What the layer counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Operations waiting or running now, those whose request was answered already included.
    pub in_flight: usize,
    /// Requests answered EIO because their operation took too long.
    pub late: u64,
    /// Requests answered EINTR because their process was killed.
    pub killed: u64,
    /// Operations that panicked.
    pub panics: u64,
}

#[derive(Default)]
struct Counters {
    in_flight: AtomicUsize,
    late: AtomicU64,
    killed: AtomicU64,
    panics: AtomicU64,
}

/// Everything that requests share.
pub(super) struct Dispatch {
    pub ops: Arc<dyn Ops>,
    rt: tokio::runtime::Handle,
    names: Arc<Semaphore>,
    data: Arc<Semaphore>,
    sync: Arc<Semaphore>,
    payload: Arc<Semaphore>,
    max_payload: u32,
    deadline: Duration,
    sync_deadline: Duration,
    counters: Counters,
}

impl Dispatch {
    pub(super) fn new(ops: Arc<dyn Ops>, opts: &MountOptions, rt: tokio::runtime::Handle) -> Arc<Dispatch> {
        let lane = || Arc::new(Semaphore::new(opts.max_in_flight.max(1)));
        // A request larger than the whole budget would wait for ever.
        let max_payload = u32::try_from(opts.max_write_bytes).unwrap_or(u32::MAX >> 1).max(opts.max_write);
        Arc::new(Dispatch {
            ops,
            rt,
            names: lane(),
            data: lane(),
            sync: lane(),
            payload: Arc::new(Semaphore::new(max_payload as usize)),
            max_payload,
            deadline: opts.deadline,
            sync_deadline: opts.sync_deadline,
            counters: Counters::default(),
        })
    }

    pub(super) fn stats(&self) -> Stats {
        let c = &self.counters;
        Stats {
            in_flight: c.in_flight.load(Ordering::Relaxed),
            late: c.late.load(Ordering::Relaxed),
            killed: c.killed.load(Ordering::Relaxed),
            panics: c.panics.load(Ordering::Relaxed),
        }
    }

    fn panicked(&self, op: &'static str) -> Error {
        self.counters.panics.fetch_add(1, Ordering::Relaxed);
        tracing::error!(op, "a filesystem operation panicked; its request is answered EIO");
        Error::new(Kind::Bug, "a filesystem operation panicked")
    }

    /// Runs `f` on this thread with panics caught; for what never waits and answers nothing.
    pub(super) fn quiet(&self, op: &'static str, f: impl FnOnce(&dyn Ops)) {
        if catch_unwind(AssertUnwindSafe(|| f(&*self.ops))).is_err() {
            let _ = self.panicked(op);
        }
    }

    /// The fast path: answers at once when `f` can, and hands `reply` back when it cannot.
    pub(super) fn now<A: Answer>(
        &self,
        op: &'static str,
        reply: A,
        f: impl FnOnce(&dyn Ops) -> Option<Result<A::Gain>>,
    ) -> Option<A> {
        match catch_unwind(AssertUnwindSafe(|| f(&*self.ops))) {
            Ok(None) => return Some(reply),
            Ok(Some(result)) => self.send(op, reply, result),
            Err(_) => reply.fail(self.panicked(op).errno()),
        }
        None
    }

    fn send<A: Answer>(&self, op: &'static str, reply: A, result: Result<A::Gain>) {
        match result {
            Ok(gain) => reply.ok(gain, &self.ops),
            Err(e) => {
                tracing::debug!(op, errno = e.errno(), "{e}");
                reply.fail(e.errno());
            }
        }
    }

    /// The slow path: runs `f` in a task and answers when it ends or patience does.
    pub(super) fn spawn<A, F, Fut>(self: &Arc<Self>, op: &'static str, lane: Lane, who: Caller, reply: A, f: F)
    where
        A: Answer,
        F: FnOnce(Arc<dyn Ops>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<A::Gain>> + Send + 'static,
    {
        let running = Running::new(self);
        if running.count > MAX_TASKS && lane != Lane::Release {
            tracing::warn!(op, "too many requests wait; answered EAGAIN");
            return reply.fail(libc::EAGAIN);
        }
        let this = self.clone();
        self.rt.spawn(async move {
            let _running = running;
            this.serve(op, lane, who, reply, f).await;
        });
    }

    async fn serve<A, F, Fut>(&self, op: &'static str, lane: Lane, who: Caller, reply: A, f: F)
    where
        A: Answer,
        F: FnOnce(Arc<dyn Ops>) -> Fut + Send,
        Fut: Future<Output = Result<A::Gain>> + Send,
    {
        let limit = if lane == Lane::Sync { self.sync_deadline } else { self.deadline };
        let patience = patience(Instant::now() + limit, who.pid);
        tokio::pin!(patience);
        let _permit = tokio::select! {
            biased;
            permit = self.permit(lane) => permit,
            why = &mut patience => return reply.fail(self.give_up(op, why, limit)),
        };
        let work = AssertUnwindSafe(async { f(self.ops.clone()).await }).catch_unwind();
        tokio::pin!(work);
        tokio::select! {
            biased;
            result = &mut work => {
                let result = result.unwrap_or_else(|_| Err(self.panicked(op)));
                self.send(op, reply, result);
            }
            why = &mut patience => {
                reply.fail(self.give_up(op, why, limit));
                self.finish_unheard(op, work.await).await;
            }
        }
    }

    async fn permit(&self, lane: Lane) -> Option<OwnedSemaphorePermit> {
        let semaphore = match lane {
            Lane::Names => &self.names,
            Lane::Data => &self.data,
            Lane::Sync => &self.sync,
            Lane::Release => return None,
        };
        // Never closed, so never an error.
        semaphore.clone().acquire_owned().await.ok()
    }

    fn give_up(&self, op: &'static str, why: GivenUp, limit: Duration) -> i32 {
        match why {
            GivenUp::Late => {
                self.counters.late.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    op,
                    seconds = limit.as_secs(),
                    "no answer in time; the request is answered EIO, the operation goes on"
                );
            }
            GivenUp::Killed => {
                self.counters.killed.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(op, "the asking process was killed; the operation goes on");
            }
        }
        why.errno()
    }

    /// The operation came to its end and the kernel does not know: what it opened or counted is given back.
    async fn finish_unheard<G: Gain>(&self, op: &'static str, result: std::thread::Result<Result<G>>) {
        match result {
            Ok(Ok(gain)) => {
                let undo = catch_unwind(AssertUnwindSafe(|| gain.undo(self.ops.clone())));
                let failed = match undo {
                    Ok(Some(undo)) => AssertUnwindSafe(undo).catch_unwind().await.is_err(),
                    Ok(None) => false,
                    Err(_) => true,
                };
                if failed {
                    let _ = self.panicked(op);
                }
            }
            Ok(Err(e)) => tracing::warn!(op, kind = ?e.kind(), "an operation failed after its request had been answered"),
            Err(_) => drop(self.panicked(op)),
        }
    }

    /// Room for `bytes` of written data. Blocks this thread only when the whole budget is in use, until the deadline.
    pub(super) fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.max_payload);
        if let Ok(permit) = self.payload.clone().try_acquire_many_owned(bytes) {
            return Ok(permit);
        }
        let payload = self.payload.clone();
        // The timer belongs to the runtime, so it is made inside.
        let wait = async { tokio::time::timeout(self.deadline, payload.acquire_many_owned(bytes)).await };
        // A runtime that is being shut down panics; that must not end the loop thread.
        match catch_unwind(AssertUnwindSafe(|| self.rt.block_on(wait))) {
            Ok(Ok(Ok(permit))) => Ok(permit),
            _ => fail(Kind::Unavailable, "written data waits for room for too long"),
        }
    }
}

/// Counts an operation while it waits or runs, even when its task is dropped.
struct Running {
    dispatch: Arc<Dispatch>,
    count: usize,
}

impl Running {
    fn new(dispatch: &Arc<Dispatch>) -> Running {
        let count = dispatch.counters.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        Running { dispatch: dispatch.clone(), count }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.dispatch.counters.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
