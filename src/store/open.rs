//! Opens a store with all its layers.

use super::dir::DirStore;
use super::layers::{Gate, Health, Limit, Meter, Probed, Retry, Timeout, Watch, Wrap};
use super::memory::MemoryStore;
use super::*;
use crate::env::Env;
use std::sync::Arc;
use std::time::Duration;

/// How a store is opened. The defaults suit a bucket on the internet.
#[derive(Clone)]
pub struct Options {
    /// Time and randomness.
    pub env: Env,
    /// Make a directory store's directory when it is missing (`init` does, `mount` must not).
    pub create: bool,
    /// Force a directory store's writes to disk before they are acknowledged.
    pub durable: bool,
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Time until the first byte of an answer.
    pub read_timeout: Duration,
    /// Time for a whole request without its content.
    pub operation_timeout: Duration,
    /// Slowest transfer that is waited for, bytes per second.
    pub min_rate: u64,
    /// Attempts of a request that fails for a time.
    pub tries: u32,
    /// Bound of the first pause between attempts; each further one is twice as long.
    pub backoff_base: Duration,
    /// Bound of every pause between attempts.
    pub backoff_cap: Duration,
    /// Requests at a time.
    pub max_requests: usize,
    /// Bytes per second sent, `None` for no limit.
    pub up_limit: Option<u64>,
    /// Bytes per second received, `None` for no limit.
    pub down_limit: Option<u64>,
    /// Failures in a row after which the store counts as down.
    pub down_after: u32,
    /// While it is down, how often a request is let through to see.
    pub down_pause: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            env: Env::real(),
            create: false,
            durable: true,
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(30),
            operation_timeout: Duration::from_secs(60),
            min_rate: 32 << 10,
            tries: 4,
            backoff_base: Duration::from_secs(2),
            backoff_cap: Duration::from_secs(60),
            max_requests: 64,
            up_limit: None,
            down_limit: None,
            down_after: 4,
            down_pause: Duration::from_secs(5),
        }
    }
}

/// A store with its layers, and the handles to them.
#[derive(Clone)]
pub struct Stack {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The same without limits, retries and gate, for small requests that must not wait behind transfers.
    pub beside: Arc<dyn Store>,
    /// Counts.
    pub meter: Arc<Meter>,
    /// Whether it answers.
    pub health: Arc<Health>,
    probed: Arc<Probed>,
    env: Env,
}

/// Opens the store that `spec` names. Nothing is asked of a remote store yet: a bucket that is absent or refuses shows at the
/// first request.
pub async fn open(spec: &StoreSpec, opts: &Options) -> Result<Stack> {
    let base: Arc<dyn Store> = match spec {
        StoreSpec::Dir { path } => Arc::new(DirStore::open(path, opts.create, opts.durable, opts.env.clone()).await?),
        StoreSpec::Memory { name } => MemoryStore::named(name),
        #[cfg(feature = "s3")]
        StoreSpec::S3(s3) => Arc::new(super::s3::S3Store::open(s3, opts).await?),
        #[cfg(not(feature = "s3"))]
        StoreSpec::S3(_) => return fail(Kind::Unsupported, "this smpfs was built without S3 (cargo feature `s3`)"),
    };
    Ok(layer(base, opts))
}

/// Puts the layers around a backend (tests put a faulty one in).
///
/// From outside to inside: what the probe found; the gate that refuses while the store is down; retry; limits on requests and
/// bytes; counting; health; the deadline of an attempt.
pub fn layer(base: Arc<dyn Store>, opts: &Options) -> Stack {
    let meter = Arc::new(Meter::new(opts.env.clock.clone()));
    let health = Arc::new(Health::new(opts.down_after, opts.down_pause, opts.down_pause));
    let probed = Arc::new(Probed::default());
    let (rng, counts) = (opts.env.rng.clone(), meter.clone());
    let retry = Retry { tries: opts.tries, base: opts.backoff_base, cap: opts.backoff_cap, rng, meter: counts };
    let timeout = Timeout { operation: opts.operation_timeout, min_rate: opts.min_rate };

    let store: Arc<dyn Store> = Arc::new(Wrap::new(base, timeout));
    let store: Arc<dyn Store> = Arc::new(Wrap::new(store, Watch(health.clone())));
    let store: Arc<dyn Store> = Arc::new(Wrap::new(store, meter.clone()));
    let beside = store.clone();
    let store: Arc<dyn Store> = Arc::new(Wrap::new(store, Limit::new(opts.max_requests, opts.up_limit, opts.down_limit)));
    let store: Arc<dyn Store> = Arc::new(Wrap::new(store, retry));
    let store: Arc<dyn Store> = Arc::new(Wrap::new(store, Gate(health.clone())));
    let store: Arc<dyn Store> = Arc::new(Wrap::new(store, probed.clone()));
    Stack { store, beside, meter, health, probed, env: opts.env.clone() }
}

impl Stack {
    /// Asks the store what it truly does (see [`probe`](super::probe::probe())); from now on `store.caps()` says so. Gives the
    /// notes: one sentence for each thing that it claims and does not do.
    pub async fn probe(&self) -> Result<Vec<String>> {
        let found = probe(&*self.store, &*self.env.rng).await?;
        self.probed.set(found.caps);
        Ok(found.notes)
    }
}
