//! The memory that reading may take: one number from the configuration, counted in KiB and never exceeded.
//!
//! Two pools, so that nobody holds what somebody else needs to go on:
//! - *answers*: buffers that are put together for a caller. Taken first, when a read begins; held until the answer is dropped.
//! - *chunks*: the cache, ciphertext in flight, and chunks being verified. Taken whole when a fetch begins; a fetch never waits
//!   for anything but the store after that, and the cache can always give its part back.
//!
//! A read waits for answers, then for chunks, never the other way round; a fetch waits for chunks only. Hence no deadlock.

use crate::error::{Error, Kind, Result, fail};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Least budget that works with every allowed chunk size, bytes.
pub const MIN_BUDGET: u64 = 32 << 20;

const KIB: u64 = 1024;

/// Which pool memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pool {
    Answers,
    Chunks,
}

/// The budget of one mount's reads.
pub struct Budget {
    answers: Arc<Semaphore>,
    chunks: Arc<Semaphore>,
    answers_kib: u64,
    chunks_kib: u64,
    waiting: AtomicUsize,
    peak_kib: AtomicU64,
    live: AtomicU64,
    live_peak: AtomicU64,
}

impl Budget {
    /// A budget of `bytes`. `Invalid` below [`MIN_BUDGET`].
    pub fn new(bytes: u64) -> Result<Arc<Budget>> {
        if bytes < MIN_BUDGET {
            return fail(
                Kind::Invalid,
                format!("the memory budget for reading is {bytes} bytes; it must be at least {MIN_BUDGET}"),
            );
        }
        // More than 1 TiB is a typing mistake, and permits are counted in 32 bits.
        let kib = (bytes / KIB).min(1 << 30);
        let answers_kib = (kib / 8).clamp(2 * KIB, 32 * KIB);
        let chunks_kib = kib - answers_kib;
        Ok(Arc::new(Budget {
            answers: Arc::new(Semaphore::new(answers_kib as usize)),
            chunks: Arc::new(Semaphore::new(chunks_kib as usize)),
            answers_kib,
            chunks_kib,
            waiting: AtomicUsize::new(0),
            peak_kib: AtomicU64::new(0),
            live: AtomicU64::new(0),
            live_peak: AtomicU64::new(0),
        }))
    }

    /// Bytes in all.
    pub fn total(&self) -> u64 {
        (self.answers_kib + self.chunks_kib) * KIB
    }

    /// Bytes that are taken now.
    pub fn used(&self) -> u64 {
        let free = self.answers.available_permits() + self.chunks.available_permits();
        self.total() - free as u64 * KIB
    }

    /// The most that was ever taken, bytes.
    pub fn peak(&self) -> u64 {
        self.peak_kib.load(Ordering::Relaxed) * KIB
    }

    /// The most plaintext and ciphertext that ever lived at once, counted buffer by buffer, apart from what was taken for it.
    pub fn live_peak(&self) -> u64 {
        self.live_peak.load(Ordering::Relaxed)
    }

    /// What the cache may keep: three quarters of the chunk pool. The rest stays for fetches and for chunks being answered.
    pub fn cache_bytes(&self) -> u64 {
        self.chunks_kib / 4 * 3 * KIB
    }

    /// The largest fetch, in bytes of plaintext. Twice that (the ciphertext beside it) fits into what a full cache and the
    /// chunks that waiting answers hold leave free, so the first in the queue can always go on.
    pub(super) fn largest_fetch(&self) -> u64 {
        self.chunks_kib / 24 * KIB
    }

    /// The furthest to fetch ahead when `streams` handles do so: no more than the cache keeps until it is read, and no more in
    /// flight than is free beside a full cache.
    pub(super) fn largest_window(&self, streams: u64) -> u64 {
        let free = self.chunks_kib * KIB - self.cache_bytes();
        (free / 3).min(self.cache_bytes() / 2) / streams.max(1)
    }

    /// Chunk-pool bytes free now.
    pub(super) fn chunks_free(&self) -> u64 {
        self.chunks.available_permits() as u64 * KIB
    }

    /// Whether somebody waits for chunk memory.
    pub(super) fn waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    fn pool(&self, pool: Pool) -> (&Arc<Semaphore>, u64) {
        match pool {
            Pool::Answers => (&self.answers, self.answers_kib),
            Pool::Chunks => (&self.chunks, self.chunks_kib),
        }
    }

    fn granted(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Share {
        self.peak_kib.fetch_max(self.used() / KIB, Ordering::Relaxed);
        Share { permit, budget: self.clone() }
    }

    /// Takes `bytes` if they are free and nobody waits in front.
    pub(super) fn try_take(self: &Arc<Self>, pool: Pool, bytes: usize) -> Option<Share> {
        let permits = u32::try_from(bytes.div_ceil(KIB as usize)).ok()?;
        let permit = self.pool(pool).0.clone().try_acquire_many_owned(permits).ok()?;
        Some(self.granted(permit))
    }

    /// Takes `bytes`, in turn. `TooLarge` when the pool could never give them, `Unavailable` when `until` passes.
    pub(super) async fn take(self: &Arc<Self>, pool: Pool, bytes: usize, until: Instant) -> Result<Share> {
        let (semaphore, kib) = self.pool(pool);
        let wanted = bytes.div_ceil(KIB as usize);
        let permits = match u32::try_from(wanted) {
            Ok(n) if u64::from(n) <= kib => n,
            _ => return fail(Kind::TooLarge, format!("a read needs {wanted} KiB at once and the memory budget gives {kib}")),
        };
        let _counted = Waiting::new(&self.waiting);
        match tokio::time::timeout_at(until, semaphore.clone().acquire_many_owned(permits)).await {
            Ok(Ok(permit)) => Ok(self.granted(permit)),
            Ok(Err(closed)) => Err(Error::with_source(Kind::Bug, "the memory budget was closed", closed)),
            Err(_) => fail(Kind::Unavailable, "no memory of the read budget became free in time"),
        }
    }
}

/// Counts a waiter for as long as it waits, also when its future is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Memory taken from the budget; given back when dropped.
pub(super) struct Share {
    permit: OwnedSemaphorePermit,
    budget: Arc<Budget>,
}

impl Share {
    /// Splits `bytes` (rounded up to KiB) off. `None` when there is not as much in it.
    pub(super) fn split(&mut self, bytes: usize) -> Option<Share> {
        let permit = self.permit.split(bytes.div_ceil(KIB as usize))?;
        Some(Share { permit, budget: self.budget.clone() })
    }

    /// Bytes in it.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.permit.num_permits() as u64 * KIB
    }

    /// Notes that a buffer of `bytes` came to life under this share.
    pub(super) fn live(&self, bytes: usize) {
        let now = self.budget.live.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        self.budget.live_peak.fetch_max(now, Ordering::Relaxed);
    }

    /// Notes that it is gone.
    pub(super) fn dead(&self, bytes: usize) {
        self.budget.live.fetch_sub(bytes as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    #[test]
    fn a_tiny_budget_is_refused() {
        assert_eq!(Budget::new(MIN_BUDGET - 1).err().map(|e| e.kind()), Some(Kind::Invalid));
    }

    #[test]
    fn pools_add_up_and_the_largest_fetch_fits_beside_cache_and_answers() {
        for mib in [32, 33, 64, 512, 4096] {
            let b = Budget::new(mib << 20).unwrap();
            assert_eq!(b.total(), mib << 20);
            assert_eq!(b.used(), 0);
            // The largest fetch, or one chunk of the largest size, beside half a mebibyte of leaves.
            let in_flight = (2 * b.largest_fetch()).max((2 << 20) + 8192) + (512 << 10);
            assert!(b.cache_bytes() + b.answers_kib * KIB + in_flight <= b.chunks_kib * KIB, "{mib}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn shares_come_back_and_waiters_are_served() {
        let b = Budget::new(MIN_BUDGET).unwrap();
        let all = (b.chunks_kib * KIB) as usize;
        let mut first = b.try_take(Pool::Chunks, all).unwrap();
        assert!(b.try_take(Pool::Chunks, 1).is_none());
        assert_eq!(b.take(Pool::Chunks, 1, soon()).await.err().map(|e| e.kind()), Some(Kind::Unavailable));
        let part = first.split(1500).unwrap();
        assert_eq!(part.bytes(), 2048);
        drop(part);
        assert!(b.take(Pool::Chunks, 2048, soon()).await.is_ok());
        drop(first);
        assert_eq!(b.used(), 0);
        assert_eq!(b.peak(), all as u64);
        assert_eq!(b.take(Pool::Chunks, all + 1, soon()).await.err().map(|e| e.kind()), Some(Kind::TooLarge));
    }
}
