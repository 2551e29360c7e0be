//! Bounds on requests at a time and on bytes per second.

use super::*;
use parking_lot::Mutex;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};

/// Uploads of more bytes than this are bulk: they leave some slots to everybody else, so that reading goes on beside them.
const BULK: u64 = 1 << 20;
/// Time whose bytes may be sent at once after a pause.
const BURST: Duration = Duration::from_millis(250);

/// The layer.
pub struct Limit {
    slots: Semaphore,
    bulk: Semaphore,
    up: Option<Bucket>,
    down: Option<Bucket>,
}

/// A token bucket, kept as the time at which everything promised so far will have been moved.
struct Bucket {
    rate: f64,
    free: Mutex<Instant>,
}

impl Bucket {
    fn new(rate: u64) -> Bucket {
        Bucket { rate: rate.max(1) as f64, free: Mutex::new(Instant::now()) }
    }

    /// Books `bytes`; they may begin to move at the time returned.
    fn book(&self, bytes: u64) -> Instant {
        let now = Instant::now();
        let mut free = self.free.lock();
        let begin = (*free).max(now.checked_sub(BURST).unwrap_or(now));
        *free = begin + Duration::from_secs_f64(bytes as f64 / self.rate);
        begin
    }

    /// Gives back what was booked and not moved.
    fn refund(&self, bytes: u64) {
        let mut free = self.free.lock();
        *free = free.checked_sub(Duration::from_secs_f64(bytes as f64 / self.rate)).unwrap_or(*free);
    }
}

impl Limit {
    /// At most `requests` at a time; bytes per second both ways, `None` for no limit.
    pub fn new(requests: usize, up: Option<u64>, down: Option<u64>) -> Limit {
        let requests = requests.clamp(1, Semaphore::MAX_PERMITS);
        Limit {
            slots: Semaphore::new(requests),
            bulk: Semaphore::new((requests - requests / 4).max(1)),
            up: up.map(Bucket::new),
            down: down.map(Bucket::new),
        }
    }
}

async fn slot(of: &Semaphore) -> Result<tokio::sync::SemaphorePermit<'_>> {
    // Never closed.
    of.acquire().await.map_err(|_| crate::error::Error::new(Kind::Bug, "the limit of requests was closed"))
}

impl Around for Limit {
    async fn around<'a, T: Reply>(&'a self, _: &'a dyn Store, op: Op<'a>, call: Call<'a, T>) -> Result<T> {
        let _bulk = if op.up > BULK { Some(slot(&self.bulk).await?) } else { None };
        if let (Some(b), true) = (&self.up, op.up > 0) {
            sleep_until(b.book(op.up)).await;
        }
        if let (Some(b), true) = (&self.down, op.verb == Verb::Get) {
            sleep_until(b.book(op.down)).await;
        }
        let _slot = slot(&self.slots).await?;
        let result = call().await;
        if let Some(b) = &self.down {
            let moved = result.as_ref().map_or(0, Reply::down);
            match moved > op.down {
                // Only the store knew the length: later requests wait for these bytes.
                true => drop(b.book(moved - op.down)),
                false => b.refund(op.down - moved),
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::layers::{Fault, Faulty, Meter};
    use crate::store::memory::MemoryStore;
    use futures_util::future::join_all;

    #[tokio::test(start_paused = true)]
    async fn bytes_per_second_hold_both_ways() {
        let store = Wrap::new(Arc::new(MemoryStore::new()), Limit::new(8, Some(1000), Some(500)));
        let start = Instant::now();
        for _ in 0..11 {
            store.put("k", vec![Bytes::from(vec![0; 1000])], Cond::Any).await.unwrap();
        }
        let up = start.elapsed().as_secs_f32();
        assert!((9.0..=10.1).contains(&up), "ten seconds of bytes took {up}");
        let start = Instant::now();
        for i in 0..11 {
            let span = if i % 2 == 0 { Span::Whole { max: 1000 } } else { Span::Range(0..5000) };
            store.get("k", span, None).await.unwrap();
        }
        let down = start.elapsed().as_secs_f32();
        assert!((19.0..=35.0).contains(&down), "twenty seconds of bytes took {down}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_requests_at_a_time_than_allowed() {
        let faulty = Arc::new(Faulty::new(1));
        let slow = Arc::new(Wrap::new(Arc::new(MemoryStore::new()), faulty.clone()));
        let meter = Arc::new(Meter::new(crate::env::Env::real().clock));
        let metered = Arc::new(Wrap::new(slow, meter.clone()));
        let store = Wrap::new(metered, Limit::new(3, None, None));
        faulty.script(None, 20, Fault::Latency(Duration::from_secs(1)));
        let start = Instant::now();
        join_all((0..20).map(|_| store.head("k"))).await;
        assert_eq!(start.elapsed().as_secs(), 7);
        assert_eq!(meter.snapshot().most_in_flight, 3);
    }
}
