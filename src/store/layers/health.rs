//! Whether the store answers, so that callers need not wait to learn that it does not.
//!
//! ```text
//!          `after` failures in a row, over at least `span`
//!   up ────────────────────────────────────────────────> down ──┐ one request per `pause` goes through,
//!    ^                                                    │      │ the others fail at once
//!    └────────────────── any answer ──────────────────────┘ <────┘
//! ```
//! [`Watch`] sits next to the backend and sees every attempt; [`Gate`] sits above the retries and refuses.

use super::*;
use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// The state that both layers share.
pub struct Health {
    after: u32,
    span: Duration,
    pause: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    failures: u32,
    first: Option<Instant>,
    down: bool,
    next: Option<Instant>,
    error: String,
}

impl Health {
    /// Down after `after` failures in a row that span at least `span`; then one request per `pause` is let through.
    pub fn new(after: u32, span: Duration, pause: Duration) -> Health {
        Health { after, span, pause, state: Mutex::default() }
    }

    /// Whether the store has stopped answering.
    pub fn is_down(&self) -> bool {
        self.state.lock().down
    }

    /// For how long it has not answered, if it is down.
    pub fn down_for(&self) -> Option<Duration> {
        let state = self.state.lock();
        state.first.filter(|_| state.down).map(|t| t.elapsed())
    }

    /// Whether a request may go out now.
    fn admit(&self) -> Result<()> {
        let mut state = self.state.lock();
        let now = Instant::now();
        if !state.down || state.next.is_none_or(|t| t <= now) {
            state.next = Some(now + self.pause);
            return Ok(());
        }
        let seconds = state.first.map_or(0, |t| t.elapsed().as_secs());
        fail(Kind::Unavailable, format!("the store has not answered for {seconds} seconds ({})", state.error))
    }

    fn record<T>(&self, result: &Result<T>) {
        let mut state = self.state.lock();
        match result {
            Err(e) if e.kind() == Kind::Unavailable => {
                let now = Instant::now();
                let first = *state.first.get_or_insert(now);
                state.failures = state.failures.saturating_add(1);
                state.error = e.to_string();
                if !state.down && state.failures >= self.after && now - first >= self.span {
                    tracing::warn!(error = %e, "the store does not answer");
                    state.down = true;
                    state.next = Some(now + self.pause);
                }
            }
            // The caller's doing: it says nothing of the store.
            Err(e) if e.kind() == Kind::Interrupted => {}
            _ => {
                if state.down {
                    tracing::info!("the store answers again");
                }
                *state = State::default();
            }
        }
    }
}

/// The layer that sees the outcome of every attempt.
pub struct Watch(pub Arc<Health>);

impl Around for Watch {
    async fn around<'a, T: Reply>(&'a self, _: &'a dyn Store, _: Op<'a>, call: Call<'a, T>) -> Result<T> {
        let result = call().await;
        self.0.record(&result);
        result
    }
}

/// The layer that refuses while the store is down.
pub struct Gate(pub Arc<Health>);

impl Around for Gate {
    async fn around<'a, T: Reply>(&'a self, _: &'a dyn Store, _: Op<'a>, call: Call<'a, T>) -> Result<T> {
        self.0.admit()?;
        call().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::layers::{Fault, Faulty};
    use crate::store::memory::MemoryStore;

    #[tokio::test(start_paused = true)]
    async fn down_after_failures_in_a_row_and_up_after_one_answer() {
        let faulty = Arc::new(Faulty::new(1));
        let health = Arc::new(Health::new(3, Duration::from_secs(2), Duration::from_secs(5)));
        let inner = Arc::new(Wrap::new(Arc::new(MemoryStore::new()), faulty.clone()));
        let store = Wrap::new(Arc::new(Wrap::new(inner, Watch(health.clone()))), Gate(health.clone()));
        faulty.script(None, u32::MAX, Fault::Before(Kind::Unavailable));
        for _ in 0..3 {
            assert!(store.head("k").await.is_err());
        }
        assert!(!health.is_down(), "three failures at once may be chance");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(store.head("k").await.is_err());
        assert!(health.is_down());
        let sent = faulty.seen(Verb::Head);
        let e = store.head("k").await.unwrap_err();
        assert_eq!((e.kind(), faulty.seen(Verb::Head)), (Kind::Unavailable, sent), "refused without a request");
        faulty.clear();
        assert!(store.head("k").await.unwrap_err().to_string().contains("not answered"));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(store.head("k").await.unwrap_err().kind(), Kind::NotFound, "one is let through");
        assert!(!health.is_down());
    }
}
