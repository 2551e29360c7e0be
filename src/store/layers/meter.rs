//! Counts requests, errors and bytes, for status and metrics.

use super::*;
use crate::env::Clock;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The layer, shared by handle.
pub struct Meter {
    clock: Arc<dyn Clock>,
    verbs: [Count; Verb::ALL.len()],
    up: AtomicU64,
    down: AtomicU64,
    again: AtomicU64,
    in_flight: AtomicU64,
    most_in_flight: AtomicU64,
    last_error: Mutex<Option<(i64, String)>>,
}

#[derive(Default)]
struct Count {
    requests: AtomicU64,
    errors: AtomicU64,
}

/// What was counted, since the store was opened.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Snapshot {
    /// By kind of request; only kinds that occurred.
    pub verbs: BTreeMap<&'static str, VerbCount>,
    /// Requests in all; each attempt counts.
    pub requests: u64,
    /// Requests among them that repeat one that failed.
    pub retries: u64,
    /// Errors in all. `NotFound` and `Stale` are answers, not errors.
    pub errors: u64,
    /// Bytes of content that were sent and accepted.
    pub bytes_up: u64,
    /// Bytes of content that were received.
    pub bytes_down: u64,
    /// Requests under way.
    pub in_flight: u64,
    /// Most requests that were ever under way at once.
    pub most_in_flight: u64,
    /// The last error, for people.
    pub last_error: Option<String>,
    /// When it happened: seconds since 1970-01-01 UTC.
    pub last_error_at: Option<i64>,
}

/// One kind of request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct VerbCount {
    /// Attempts.
    pub requests: u64,
    /// Errors.
    pub errors: u64,
}

/// Counts a request down even when its caller gives it up.
struct InFlight<'a>(&'a AtomicU64);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Meter {
    /// All counts at zero.
    pub fn new(clock: Arc<dyn Clock>) -> Meter {
        Meter {
            clock,
            verbs: Default::default(),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            again: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            most_in_flight: AtomicU64::new(0),
            last_error: Mutex::new(None),
        }
    }

    /// A request that failed is about to be sent again.
    pub(super) fn tried_again(&self) {
        self.again.fetch_add(1, Relaxed);
    }

    /// The counts now.
    pub fn snapshot(&self) -> Snapshot {
        let mut s = Snapshot {
            bytes_up: self.up.load(Relaxed),
            bytes_down: self.down.load(Relaxed),
            retries: self.again.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            most_in_flight: self.most_in_flight.load(Relaxed),
            ..Snapshot::default()
        };
        for (verb, count) in Verb::ALL.into_iter().zip(&self.verbs) {
            let c = VerbCount { requests: count.requests.load(Relaxed), errors: count.errors.load(Relaxed) };
            s.requests += c.requests;
            s.errors += c.errors;
            if c.requests > 0 {
                s.verbs.insert(verb.name(), c);
            }
        }
        if let Some((at, text)) = &*self.last_error.lock() {
            s.last_error = Some(text.clone());
            s.last_error_at = Some(*at);
        }
        s
    }
}

impl Around for Meter {
    async fn around<'a, T: Reply>(&'a self, _: &'a dyn Store, op: Op<'a>, call: Call<'a, T>) -> Result<T> {
        let count = &self.verbs[op.verb as usize];
        count.requests.fetch_add(1, Relaxed);
        let now = self.in_flight.fetch_add(1, Relaxed) + 1;
        let _guard = InFlight(&self.in_flight);
        self.most_in_flight.fetch_max(now, Relaxed);
        let result = call().await;
        match &result {
            Ok(reply) => {
                self.up.fetch_add(op.up, Relaxed);
                self.down.fetch_add(reply.down(), Relaxed);
            }
            Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Stale) => {}
            Err(e) => {
                count.errors.fetch_add(1, Relaxed);
                *self.last_error.lock() = Some((self.clock.now().sec, format!("{}: {e}", op.verb.name())));
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::layers::{Fault, Faulty};
    use crate::store::memory::MemoryStore;

    #[tokio::test]
    async fn requests_errors_and_bytes_are_counted() {
        let faulty = Arc::new(Faulty::new(1));
        let inner = Arc::new(Wrap::new(Arc::new(MemoryStore::new()), faulty.clone()));
        let meter = Arc::new(Meter::new(crate::env::Env::real().clock));
        let store = Wrap::new(inner, meter.clone());
        store.put("k", vec![Bytes::from_static(b"12345")], Cond::Any).await.unwrap();
        store.get("k", Span::Last(2), None).await.unwrap();
        assert!(store.head("absent").await.is_err());
        faulty.script(None, 1, Fault::Before(Kind::Denied));
        assert!(store.head("k").await.is_err());
        let s = meter.snapshot();
        assert_eq!((s.requests, s.errors, s.bytes_up, s.bytes_down, s.in_flight), (4, 1, 5, 2, 0));
        assert_eq!(s.verbs["head"], VerbCount { requests: 2, errors: 1 });
        assert!(s.last_error.as_deref().unwrap().starts_with("head: "), "{s:?}");
        assert!(serde_json::to_string(&s).unwrap().contains("\"bytes_up\":5"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_given_up_is_not_in_flight() {
        let faulty = Arc::new(Faulty::new(1));
        let inner = Arc::new(Wrap::new(Arc::new(MemoryStore::new()), faulty.clone()));
        let meter = Arc::new(Meter::new(crate::env::Env::real().clock));
        let store = Wrap::new(inner, meter.clone());
        faulty.script(None, 1, Fault::Stall);
        let given_up = tokio::time::timeout(std::time::Duration::from_secs(1), store.head("k")).await;
        assert!(given_up.is_err());
        assert_eq!(meter.snapshot().in_flight, 0);
    }
}
