//! Faults on purpose, for tests: scripted ones, and seeded ones that come back the same with the same seed.

use super::*;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Old versions that are kept for stale reads, and counters of seeded faults.
const KEPT: usize = 4096;
/// Largest object of which the old version is kept.
const KEPT_LEN: u64 = 16 << 20;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// An error; the request is not carried out.
    Before(Kind),
    /// An error; the request is carried out all the same.
    After(Kind),
    /// The answer comes late.
    Latency(Duration),
    /// The answer never comes, and the request is not carried out.
    Stall,
    /// One bit of the content that comes back is wrong.
    Flip,
    /// The content that comes back is only the first half.
    Short,
    /// A get or head answers with the object as it was before the last write through this layer.
    Old,
}

struct Rule {
    verb: Option<Verb>,
    part: String,
    skip: u32,
    times: u32,
    fault: Fault,
}

/// The layer.
pub struct Faulty {
    seed: u64,
    black_hole: AtomicBool,
    seen: [AtomicU64; Verb::ALL.len()],
    rules: Mutex<Vec<Rule>>,
    rates: Mutex<Vec<(Option<Verb>, u32, Fault)>>,
    counts: Mutex<HashMap<u64, u32>>,
    old: Mutex<HashMap<String, Got>>,
}

impl Faulty {
    /// No faults yet. Which request a seeded fault hits depends on the seed, the kind of request, the key, and how often that
    /// was asked before: not on the order in which tasks run.
    pub fn new(seed: u64) -> Faulty {
        Faulty {
            seed,
            black_hole: AtomicBool::new(false),
            seen: Default::default(),
            rules: Mutex::default(),
            rates: Mutex::default(),
            counts: Mutex::default(),
            old: Mutex::default(),
        }
    }

    /// The next `times` requests of that kind (of any, with `None`) suffer `fault`.
    pub fn script(&self, verb: Option<Verb>, times: u32, fault: Fault) {
        self.script_on(verb, "", 0, times, fault);
    }

    /// The same for requests whose key contains `part`, after `skip` of them passed.
    pub fn script_on(&self, verb: Option<Verb>, part: &str, skip: u32, times: u32, fault: Fault) {
        self.rules.lock().push(Rule { verb, part: part.to_owned(), skip, times, fault });
    }

    /// From now on `fault` hits about `per_mille` of a thousand requests of that kind (of any, with `None`).
    pub fn seeded(&self, verb: Option<Verb>, per_mille: u32, fault: Fault) {
        self.rates.lock().push((verb, per_mille, fault));
    }

    /// While on, no request is answered.
    pub fn black_hole(&self, on: bool) {
        self.black_hole.store(on, Ordering::SeqCst);
    }

    /// Forgets all faults.
    pub fn clear(&self) {
        self.rules.lock().clear();
        self.rates.lock().clear();
        self.black_hole(false);
    }

    /// Requests of that kind that reached this layer.
    pub fn seen(&self, verb: Verb) -> u64 {
        self.seen[verb as usize].load(Ordering::SeqCst)
    }

    fn pick(&self, op: &Op<'_>) -> Option<Fault> {
        self.scripted(op).or_else(|| self.drawn(op))
    }

    fn scripted(&self, op: &Op<'_>) -> Option<Fault> {
        let mut rules = self.rules.lock();
        let at = rules.iter_mut().position(|r| {
            if r.verb.is_some_and(|v| v != op.verb) || !op.key.contains(&r.part) {
                return false;
            }
            let now = r.skip == 0;
            r.skip = r.skip.saturating_sub(1);
            now
        })?;
        rules[at].times = rules[at].times.saturating_sub(1);
        let fault = rules[at].fault;
        if rules[at].times == 0 {
            rules.remove(at);
        }
        Some(fault)
    }

    fn drawn(&self, op: &Op<'_>) -> Option<Fault> {
        let rates = self.rates.lock();
        if rates.is_empty() {
            return None;
        }
        let mut draw = self.draw(op, 0) % 1000;
        for (_, per_mille, fault) in rates.iter().filter(|(v, ..)| v.is_none_or(|v| v == op.verb)) {
            if draw < u64::from(*per_mille) {
                return Some(*fault);
            }
            draw -= u64::from(*per_mille);
        }
        None
    }

    /// A number that the seed, the request and its count decide.
    fn draw(&self, op: &Op<'_>, salt: u8) -> u64 {
        // SipHash with fixed keys: the same in every run.
        let mut h = DefaultHasher::new();
        (self.seed, op.verb, op.key, salt).hash(&mut h);
        let which = h.finish();
        let mut counts = self.counts.lock();
        if counts.len() >= KEPT {
            counts.clear();
        }
        let n = counts.entry(which).or_default();
        *n += 1;
        n.hash(&mut h);
        h.finish()
    }

    /// Keeps the version that a write is about to replace.
    async fn keep(&self, inner: &dyn Store, op: &Op<'_>) {
        if !matches!(op.verb, Verb::Put | Verb::Copy | Verb::UploadComplete) {
            return;
        }
        if let Ok(got) = inner.get(op.key, Span::Whole { max: KEPT_LEN }, None).await {
            let mut old = self.old.lock();
            if old.len() >= KEPT {
                old.clear();
            }
            old.insert(op.key.to_owned(), got);
        }
    }

    /// The reply that the old version would have given.
    fn stale<T: Reply>(&self, op: &Op<'_>, reply: &mut T) {
        let Some(old) = self.old.lock().get(op.key).cloned() else { return };
        if let (Some(got), Some(span)) = (reply.as_got(), op.span) {
            if let Ok(r) = resolve(span, old.meta.len) {
                *got = Got { bytes: old.bytes.slice(r.start as usize..r.end as usize), start: r.start, meta: old.meta };
            }
        } else if let (Verb::Head, Some(head)) = (op.verb, T::from_meta(&old.meta)) {
            *reply = head;
        }
    }

    fn tamper<T: Reply>(&self, fault: Fault, op: &Op<'_>, reply: &mut T) {
        if fault == Fault::Old {
            return self.stale(op, reply);
        }
        let Some(got) = reply.as_got().filter(|g| !g.bytes.is_empty()) else { return };
        match fault {
            Fault::Short => got.bytes.truncate(got.bytes.len() / 2),
            Fault::Flip => {
                let bit = self.draw(op, 1) as usize % (got.bytes.len() * 8);
                let mut bytes = got.bytes.to_vec();
                bytes[bit / 8] ^= 1 << (bit % 8);
                got.bytes = bytes.into();
            }
            _ => {}
        }
    }
}

fn injected<T>(kind: Kind) -> Result<T> {
    fail(kind, "an injected fault")
}

impl Around for Faulty {
    async fn around<'a, T: Reply>(&'a self, inner: &'a dyn Store, op: Op<'a>, call: Call<'a, T>) -> Result<T> {
        self.seen[op.verb as usize].fetch_add(1, Ordering::SeqCst);
        if self.black_hole.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let fault = self.pick(&op);
        match fault {
            Some(Fault::Before(kind)) => return injected(kind),
            Some(Fault::Stall) => std::future::pending::<()>().await,
            Some(Fault::Latency(t)) => tokio::time::sleep(t).await,
            _ => {}
        }
        self.keep(inner, &op).await;
        let mut reply = call().await?;
        match fault {
            Some(Fault::After(kind)) => return injected(kind),
            Some(fault) => self.tamper(fault, &op, &mut reply),
            None => {}
        }
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    fn store(seed: u64) -> (Arc<Faulty>, Wrap<Arc<Faulty>>) {
        let faulty = Arc::new(Faulty::new(seed));
        (faulty.clone(), Wrap::new(Arc::new(MemoryStore::new()), faulty))
    }

    async fn put(store: &dyn Store, bytes: &'static [u8]) -> Result<Meta> {
        store.put("k", vec![Bytes::from_static(bytes)], Cond::Any).await
    }

    async fn get(store: &dyn Store) -> Result<Vec<u8>> {
        Ok(store.get("k", Span::Whole { max: 100 }, None).await?.bytes.to_vec())
    }

    #[tokio::test]
    async fn an_error_after_apply_leaves_the_write_done() {
        let (faulty, store) = store(1);
        faulty.script(Some(Verb::Put), 1, Fault::Before(Kind::NoSpace));
        assert_eq!(put(&store, b"one").await.unwrap_err().kind(), Kind::NoSpace);
        assert_eq!(get(&store).await.unwrap_err().kind(), Kind::NotFound);
        faulty.script_on(Some(Verb::Put), "k", 0, 1, Fault::After(Kind::Unavailable));
        assert!(put(&store, b"two").await.is_err());
        assert_eq!(get(&store).await.unwrap(), b"two");
    }

    #[tokio::test]
    async fn content_is_tampered_with() {
        let (faulty, store) = store(2);
        put(&store, b"first version").await.unwrap();
        let first = store.head("k").await.unwrap();
        put(&store, b"second version").await.unwrap();
        faulty.script(Some(Verb::Get), 1, Fault::Flip);
        let flipped = get(&store).await.unwrap();
        let wrong: u32 = flipped.iter().zip(b"second version").map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!(wrong, 1);
        faulty.script(Some(Verb::Get), 1, Fault::Short);
        assert_eq!(get(&store).await.unwrap(), b"second ");
        faulty.script(None, 2, Fault::Old);
        assert_eq!(get(&store).await.unwrap(), b"first version");
        assert_eq!(store.head("k").await.unwrap(), first);
        assert_eq!(get(&store).await.unwrap(), b"second version");
    }

    #[tokio::test]
    async fn seeded_faults_come_back_with_their_seed() {
        let mut runs = Vec::new();
        for seed in [7, 7, 8] {
            let (faulty, store) = store(seed);
            faulty.seeded(None, 300, Fault::Before(Kind::Unavailable));
            let mut run = Vec::new();
            for _ in 0..200 {
                run.push(put(&store, b"x").await.is_ok());
            }
            runs.push(run);
        }
        assert_eq!(runs[0], runs[1]);
        assert_ne!(runs[0], runs[2]);
        let failed = runs[0].iter().filter(|ok| !**ok).count();
        assert!((30..90).contains(&failed), "{failed} of 200 at 30 percent");
    }

    #[tokio::test(start_paused = true)]
    async fn the_black_hole_swallows_everything_until_it_is_off() {
        let (faulty, store) = store(3);
        faulty.black_hole(true);
        assert!(tokio::time::timeout(Duration::from_secs(9), store.head("k")).await.is_err());
        faulty.black_hole(false);
        assert_eq!(store.head("k").await.unwrap_err().kind(), Kind::NotFound);
    }
}
