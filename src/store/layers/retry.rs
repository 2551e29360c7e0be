//! Tries again what failed for a time, with exponential backoff and full jitter.
//!
//! A request that failed with `Unavailable` may have been carried out. For most that does not matter: the same bytes are
//! written again, a deleted object is deleted again, a second upload is begun (the first stays listed by `uploads`). A
//! conditional write is different: if the first attempt was carried out, the second finds its own work and is told `Stale`.
//! - After a conditional **put**, the object there is compared with what was sent, byte for byte; if it is the same, the put
//!   has succeeded. If another writer has replaced it since, `Stale` stands, with [`Undecided`] attached: to most callers both come
//!   to a conflict to merge, but what the first attempt wrote may have been seen before it was replaced.
//! - After a conditional **copy** or **completion**, `Stale` (or `NotFound` of the upload) becomes `Unavailable` with a message
//!   that says the outcome is not known; the caller looks at the object and decides, since only it knows what it wrote.

use super::*;
use crate::env::Rng;
use crate::error::Error;
use std::time::Duration;

/// The layer.
pub struct Retry {
    /// Attempts in all.
    pub tries: u32,
    /// Bound of the first pause; each further one is twice as long.
    pub base: Duration,
    /// Bound of every pause.
    pub cap: Duration,
    /// Source of the jitter.
    pub rng: Arc<dyn Rng>,
    /// Who counts.
    pub meter: Arc<Meter>,
}

impl Retry {
    /// A pause before attempt `n + 1`: uniform between nothing and the bound.
    fn pause(&self, n: u32) -> Duration {
        let bound = self.base.saturating_mul(1 << n.saturating_sub(1).min(20)).min(self.cap);
        let mut random = [0; 4];
        self.rng.fill(&mut random);
        bound.mul_f64(f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX))
    }

    /// What a refusal means when an earlier attempt may have been carried out.
    async fn settle<T: Reply>(&self, inner: &dyn Store, op: &Op<'_>, refusal: Error) -> Result<T> {
        match (op.verb, refusal.kind()) {
            (Verb::Put, Kind::Stale) => {
                let mut n = 1;
                loop {
                    match landed(inner, op).await {
                        Ok(Some(meta)) => return T::from_meta(&meta).ok_or(refusal),
                        Ok(None) => return Err(Undecided::attach(refusal)),
                        Err(e) if temporary(e.kind()) && n < self.tries => tokio::time::sleep(self.pause(n)).await,
                        Err(e) => return Err(unknown(e)),
                    }
                    n += 1;
                }
            }
            (Verb::Copy, Kind::Stale) | (Verb::UploadComplete, Kind::Stale | Kind::NotFound) => Err(unknown(refusal)),
            _ => Err(refusal),
        }
    }
}

fn unknown(e: Error) -> Error {
    Error::with_source(Kind::Unavailable, "a write got no answer, and whether it was carried out is not known", e)
}

/// The object, if it is what the put sent.
async fn landed(inner: &dyn Store, op: &Op<'_>) -> Result<Option<Meta>> {
    let head = match inner.head(op.key).await {
        Err(e) if e.kind() == Kind::NotFound => return Ok(None),
        other => other?,
    };
    if head.len != op.up {
        return Ok(None);
    }
    let got = match inner.get(op.key, Span::Whole { max: op.up }, Some(&head.etag)).await {
        Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Stale) => return Ok(None),
        other => other?,
    };
    let mut rest = &got.bytes[..];
    for piece in op.body.unwrap_or_default() {
        match rest.strip_prefix(&piece[..]) {
            Some(r) => rest = r,
            None => return Ok(None),
        }
    }
    Ok(rest.is_empty().then_some(got.meta))
}

impl Around for Retry {
    async fn around<'a, T: Reply>(&'a self, inner: &'a dyn Store, op: Op<'a>, call: Call<'a, T>) -> Result<T> {
        let conditional = op.cond.is_some_and(|c| *c != Cond::Any) || op.verb == Verb::UploadComplete;
        let mut n = 1;
        loop {
            match call().await {
                Err(e) if temporary(e.kind()) && n < self.tries => {
                    tracing::debug!(verb = op.verb.name(), attempt = n, error = %e, "store request failed, trying again");
                    tokio::time::sleep(self.pause(n)).await;
                    self.meter.tried_again();
                    n += 1;
                }
                Err(e) if n > 1 && conditional => return self.settle(inner, &op, e).await,
                other => return other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Env;
    use crate::store::layers::{Fault, Faulty};
    use crate::store::memory::MemoryStore;

    fn meter() -> Arc<Meter> {
        Arc::new(Meter::new(Env::real().clock))
    }

    fn retry() -> Retry {
        Retry { tries: 4, base: Duration::from_secs(2), cap: Duration::from_secs(5), rng: Env::real().rng, meter: meter() }
    }

    fn faulty() -> (Arc<Faulty>, Wrap<Retry>) {
        let faulty = Arc::new(Faulty::new(1));
        let inner = Wrap::new(Arc::new(MemoryStore::new()), faulty.clone());
        (faulty, Wrap::new(Arc::new(inner), retry()))
    }

    fn body(text: &'static str) -> Vec<Bytes> {
        text.split_inclusive(' ').map(|s| Bytes::from_static(s.as_bytes())).collect()
    }

    #[test]
    fn pauses_stay_within_their_bound() {
        for n in 1..60 {
            let bound = Duration::from_secs(2u64.saturating_pow(n).min(5));
            assert!(retry().pause(n) <= bound, "{n}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn temporary_errors_are_tried_four_times_others_once() {
        let (faulty, meter) = (Arc::new(Faulty::new(1)), meter());
        let inner = Wrap::new(Arc::new(MemoryStore::new()), faulty.clone());
        let store = Wrap::new(Arc::new(inner), Retry { meter: meter.clone(), ..retry() });
        faulty.script(Some(Verb::Put), 3, Fault::Before(Kind::Unavailable));
        store.put("k", body("x"), Cond::Any).await.unwrap();
        faulty.script(Some(Verb::Head), 4, Fault::Before(Kind::Unavailable));
        assert_eq!(store.head("k").await.unwrap_err().kind(), Kind::Unavailable);
        faulty.script(Some(Verb::Head), 1, Fault::Before(Kind::Denied));
        assert_eq!(store.head("k").await.unwrap_err().kind(), Kind::Denied);
        assert_eq!(faulty.seen(Verb::Put), 4);
        assert_eq!(faulty.seen(Verb::Head), 5);
        assert_eq!(meter.snapshot().retries, 6);
    }

    #[tokio::test(start_paused = true)]
    async fn a_conditional_put_whose_answer_was_lost_is_no_conflict() {
        let (faulty, store) = faulty();
        faulty.script(Some(Verb::Put), 1, Fault::After(Kind::Unavailable));
        let first = store.put("k", body("one two"), Cond::Absent).await.unwrap();
        assert_eq!(store.head("k").await.unwrap(), first);
        faulty.script(Some(Verb::Put), 1, Fault::After(Kind::Unavailable));
        let second = store.put("k", body("one three"), Cond::Match(first.etag)).await.unwrap();
        assert_eq!(store.head("k").await.unwrap(), second);
    }

    #[tokio::test(start_paused = true)]
    async fn a_real_conflict_stays_one_after_a_lost_request() {
        let (faulty, store) = faulty();
        store.put("k", body("theirs "), Cond::Any).await.unwrap();
        faulty.script(Some(Verb::Put), 1, Fault::Before(Kind::Unavailable));
        for mine in ["mine ... ", "longer than theirs"] {
            assert_eq!(store.put("k", body(mine), Cond::Absent).await.unwrap_err().kind(), Kind::Stale);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_completion_whose_answer_was_lost_says_so() {
        let (faulty, store) = faulty();
        let id = store.upload_start("k").await.unwrap();
        let part = store.upload_part("k", &id, PartAt { number: 1, offset: 0 }, body("part")).await.unwrap();
        faulty.script(Some(Verb::UploadComplete), 1, Fault::After(Kind::Unavailable));
        let e = store.upload_complete("k", &id, &[part], Cond::Absent).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Unavailable);
        assert!(e.to_string().contains("not known"), "{e}");
        assert_eq!(store.head("k").await.unwrap().len, 4);
    }
}
