//! A deadline for every attempt, so that nothing waits for ever on a store that is silent.

use super::*;
use std::time::Duration;

/// Requests for which the store itself moves the bytes may take this many times longer.
const INSIDE: u32 = 5;
/// Content of unknown length counts as this much at most, bytes.
const UNKNOWN: u64 = 64 << 20;

/// The layer. A request may take `operation`, and as long on top as its bytes need at `min_rate`.
pub struct Timeout {
    /// Time for a request without content.
    pub operation: Duration,
    /// Slowest acceptable transfer, bytes per second.
    pub min_rate: u64,
}

impl Timeout {
    fn deadline(&self, op: &Op<'_>) -> Duration {
        let down = match op.span {
            Some(Span::Whole { max }) => (*max).min(UNKNOWN),
            _ => op.down,
        };
        let moving = Duration::from_secs_f64((op.up + down) as f64 / self.min_rate.max(1) as f64);
        match op.verb {
            Verb::Copy | Verb::UploadPartCopy | Verb::UploadComplete => self.operation * INSIDE,
            _ => self.operation + moving,
        }
    }
}

impl Around for Timeout {
    async fn around<'a, T: Reply>(&'a self, _: &'a dyn Store, op: Op<'a>, call: Call<'a, T>) -> Result<T> {
        let limit = self.deadline(&op);
        match tokio::time::timeout(limit, call()).await {
            Ok(result) => result,
            Err(_) => fail(
                Kind::Unavailable,
                format!("the store gave no answer to a {} within {} seconds", op.verb.name(), limit.as_secs_f32().ceil()),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::layers::{Fault, Faulty};
    use crate::store::memory::MemoryStore;

    #[tokio::test(start_paused = true)]
    async fn a_silent_store_is_unavailable_in_time() {
        let faulty = Arc::new(Faulty::new(1));
        let inner = Arc::new(Wrap::new(Arc::new(MemoryStore::new()), faulty.clone()));
        let store = Wrap::new(inner, Timeout { operation: Duration::from_secs(3), min_rate: 1024 });
        faulty.script(None, 1, Fault::Stall);
        let start = tokio::time::Instant::now();
        let e = store.head("k").await.unwrap_err();
        assert_eq!((e.kind(), start.elapsed().as_secs()), (Kind::Unavailable, 3));
        assert!(e.to_string().contains("3 seconds"), "{e}");
        faulty.script(None, 1, Fault::Stall);
        let start = tokio::time::Instant::now();
        store.put("k", vec![Bytes::from(vec![0; 10 << 10])], Cond::Any).await.unwrap_err();
        assert_eq!(start.elapsed().as_secs(), 13, "ten seconds more for ten times the rate");
    }
}
