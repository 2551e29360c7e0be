//! The reader of a mount: answers reads of open objects from the cache, or waits for flights.

use super::budget::{Budget, Pool as Memory};
use super::cache::{Cache, CacheStats, LowerCache, Plain};
use super::fill::bad_chunk;
use super::flight::{Flights, Interest, Joined};
use super::object::OpenObject;
use super::pool::Pool;
use super::verify::LeafCache;
use super::witness::Witness;
use crate::error::{Error, Kind, Result, fail};
use crate::format::failure::Failure;
use crate::format::keys::VolumeKeys;
use crate::format::params::Params;
use crate::store::Store;
use bytes::Bytes;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::runtime::Handle as Runtime;
use tokio::time::{Instant, timeout_at};

/// The longest read that one call answers, bytes.
pub const MAX_READ: u32 = 1 << 20;
/// How often a read starts over when what it waited for was another reader's, and failed for that reader alone.
const TRIES: usize = 3;

/// Zeros for holes. Never written, so it costs address space but hardly memory.
static ZEROS: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(vec![0; MAX_READ as usize]));

/// What a read does while the store does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnUnavailable {
    /// Fails as soon as the store's own retries are used up.
    Fail,
    /// Asks again until the deadline.
    Wait,
}

/// How a mount reads.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// Memory for cache, fetches and answers, bytes; at least [`super::budget::MIN_BUDGET`].
    pub budget: u64,
    /// The furthest that is fetched ahead of a sequential reader, bytes; 0 turns it off.
    pub prefetch_max: u64,
    /// The longest request, bytes of plaintext (also bounded by the budget).
    pub request_max: u64,
    /// The longest that any read or open takes.
    pub deadline: Duration,
    /// What happens while the store does not answer.
    pub on_unavailable: OnUnavailable,
    /// Check leaves and segment roots too (`verify=full`).
    pub verify_full: bool,
}

impl Default for ReadOptions {
    fn default() -> Self {
        ReadOptions {
            budget: 512 << 20,
            prefetch_max: 32 << 20,
            request_max: 8 << 20,
            deadline: Duration::from_secs(60),
            on_unavailable: OnUnavailable::Fail,
            verify_full: false,
        }
    }
}

/// What all parts of the read path share.
pub(super) struct Engine {
    pub(super) store: Arc<dyn Store>,
    pub(super) params: Params,
    pub(super) keys: Arc<VolumeKeys>,
    pub(super) witness: Arc<dyn Witness>,
    pub(super) options: ReadOptions,
    pub(super) cache: Cache,
    pub(super) flights: Arc<Flights>,
    pub(super) pool: Pool,
    pub(super) leaves: LeafCache,
    pub(super) runtime: Runtime,
    /// Handles that are being read sequentially now.
    pub(super) streams: AtomicU64,
}

/// Reads objects of one mount. Cheap to clone.
#[derive(Clone)]
pub struct Reader(pub(super) Arc<Engine>);

impl Reader {
    /// A reader for the volume of `params` and `keys` in `store`; must be made within a tokio runtime, which serves its fetches.
    /// `lower` is the disk cache, if there is one. `Invalid` when the budget is too small.
    pub fn new(
        store: Arc<dyn Store>,
        params: Params,
        keys: Arc<VolumeKeys>,
        witness: Arc<dyn Witness>,
        lower: Option<Arc<dyn LowerCache>>,
        options: ReadOptions,
    ) -> Result<Reader> {
        let runtime = Runtime::try_current().map_err(|e| Error::with_source(Kind::Bug, "a reader outside of a runtime", e))?;
        let budget = Budget::new(options.budget)?;
        let leaves = LeafCache::new(&budget, options.verify_full)?;
        Ok(Reader(Arc::new(Engine {
            store,
            params,
            keys,
            witness,
            cache: Cache::new(budget, lower),
            flights: Arc::default(),
            pool: Pool::new(runtime.clone()),
            leaves,
            runtime,
            streams: AtomicU64::new(0),
            options,
        })))
    }

    /// Up to `len` bytes (at most [`MAX_READ`]) at `offset`; fewer only at the end of the file.
    ///
    /// The answer may be a view of a cached chunk and counts against the budget until it is dropped: do not keep many.
    /// Errors: `Corrupt`, `Stale` (the object was replaced or removed: open it again), `Unavailable`, `Denied`, `Invalid`.
    pub async fn read(&self, object: &Arc<OpenObject>, offset: u64, len: u32) -> Result<Bytes> {
        self.read_and(object, offset, len, || ()).await
    }

    /// [`Reader::read`]; calls `then` when all that is asked for is under way, before waiting for it.
    pub(super) async fn read_and(&self, object: &Arc<OpenObject>, offset: u64, len: u32, then: impl FnOnce()) -> Result<Bytes> {
        if len > MAX_READ {
            return fail(Kind::Invalid, format!("a read of {len} bytes; the longest is {MAX_READ}"));
        }
        let range = object.clip(offset, u64::from(len));
        if let Some(answer) = self.simple(object, &range) {
            then();
            return answer;
        }
        let until = Instant::now() + self.0.options.deadline;
        let chunks = object.chunks_of(&range);
        if chunks.end - chunks.start == 1 {
            let flying = self.0.want(object, chunks.clone());
            then();
            let plain = self.0.chunk(object, chunks.start, &mut flying.into(), until).await?;
            return Ok(part(object, &range, chunks.start, &plain));
        }
        self.assemble(object, range, chunks, until, then).await
    }

    /// [`Reader::read`] answered from memory alone, or `None`. Never waits: fit for threads that serve the kernel.
    pub fn read_now(&self, object: &OpenObject, offset: u64, len: u32) -> Option<Result<Bytes>> {
        if len > MAX_READ {
            return None;
        }
        let range = object.clip(offset, u64::from(len));
        if let Some(answer) = self.simple(object, &range) {
            return Some(answer);
        }
        let cache = &self.0.cache;
        let chunks = object.chunks_of(&range);
        if chunks.end - chunks.start == 1 {
            let plain = cache.get(&object.chunk_key(chunks.start)?)?;
            return Some(Ok(part(object, &range, chunks.start, &plain)));
        }
        let there = |c| object.chunk_key(c).is_none_or(|key| cache.contains(&key));
        if !chunks.clone().all(there) {
            return None;
        }
        let bytes = (range.end - range.start) as usize;
        let mut answer = Plain::with_capacity(bytes, cache.budget().try_take(Memory::Answers, bytes)?);
        for c in chunks {
            match object.chunk_key(c) {
                Some(key) => append(&mut answer, object, &range, c, &cache.get(&key)?),
                None => append_zeros(&mut answer, object, &range, c),
            }
        }
        Some(Ok(answer.freeze()))
    }

    /// Counters of cache and budget.
    pub fn stats(&self) -> CacheStats {
        self.0.cache.stats()
    }

    /// The budget, for its figures.
    pub fn budget(&self) -> &Budget {
        self.0.cache.budget()
    }

    /// Requests to the store that are under way for reads.
    pub fn in_flight(&self) -> usize {
        self.0.flights.count()
    }

    /// Forgets all chunks in memory (they are wiped as their last views go). Reading goes on.
    pub fn clear(&self) {
        self.0.cache.clear();
    }

    /// Stops all fetches, forgets all chunks. Reads that need the store fail from now on.
    pub fn close(&self) {
        self.0.flights.close();
        self.0.cache.clear();
    }

    /// Answers that need no chunk: nothing, holes only, or a chunk that is known to be corrupt.
    fn simple(&self, object: &OpenObject, range: &Range<u64>) -> Option<Result<Bytes>> {
        if range.is_empty() {
            return Some(Ok(Bytes::new()));
        }
        let mut holes_only = true;
        for c in object.chunks_of(range) {
            if let Some(stage) = object.known_bad(c) {
                return Some(Err(bad_chunk(stage)));
            }
            holes_only &= object.chunk_key(c).is_none();
        }
        let len = (range.end - range.start) as usize;
        holes_only.then(|| Ok(ZEROS.slice(..len)))
    }

    /// Puts an answer together from several chunks.
    async fn assemble(
        &self,
        object: &Arc<OpenObject>,
        range: Range<u64>,
        chunks: Range<u64>,
        until: Instant,
        then: impl FnOnce(),
    ) -> Result<Bytes> {
        // The answer pays for the chunks that this read may hold while it waits, so that all waiting reads together
        // hold a bounded part of the chunk memory.
        let budget = self.0.cache.budget();
        let len = (range.end - range.start) as usize;
        let span = ((chunks.end - chunks.start) * object.geometry().chunk_size()) as usize;
        let mut paid = budget.take(Memory::Answers, span.max(len), until).await?;
        let share = paid.split(len).ok_or_else(|| Error::new(Kind::Bug, "an answer is longer than its chunks"))?;
        let mut answer = Plain::with_capacity(len, share);
        let mut flying: VecDeque<Interest> = self.0.want(object, chunks.clone()).into();
        then();
        for c in chunks {
            if object.chunk_key(c).is_none() {
                append_zeros(&mut answer, object, &range, c);
                continue;
            }
            while flying.front().is_some_and(|i| i.end() <= c) {
                flying.pop_front(); // its chunks are copied: what it holds of the budget goes
            }
            let plain = self.0.chunk(object, c, &mut flying, until).await?;
            append(&mut answer, object, &range, c, &plain);
        }
        drop(paid);
        Ok(answer.freeze())
    }
}

impl Engine {
    /// Makes sure that every chunk of `chunks` that is not in memory is on its way, for a reader who will wait.
    pub(super) fn want(self: &Arc<Self>, object: &Arc<OpenObject>, chunks: Range<u64>) -> Vec<Interest> {
        self.launch(object, chunks, true)
    }

    /// Joins or starts flights for the chunks that are not in memory.
    pub(super) fn launch(self: &Arc<Self>, object: &Arc<OpenObject>, chunks: Range<u64>, reader: bool) -> Vec<Interest> {
        let most = (self.largest_request() / object.geometry().chunk_size()).max(1);
        let Joined { interests, started } =
            self.flights.join_or_start(object, chunks, most, reader, |key| self.cache.contains(key));
        for new in started {
            let (engine, flight, landing) = (self.clone(), new.flight, new.landing);
            let id = landing.id();
            let task = self.runtime.spawn(async move {
                let outcome = engine.fill(&flight.object, flight.chunks.clone()).await;
                landing.land(outcome);
            });
            self.flights.spawned(id, task.abort_handle());
        }
        interests
    }

    /// Bytes of plaintext in the longest request: the option, or what the budget allows (half of a fetch is ciphertext).
    pub(super) fn largest_request(&self) -> u64 {
        self.options.request_max.min(self.cache.budget().largest_fetch())
    }

    /// A chunk from memory, or from the flight that brings it.
    async fn chunk(
        self: &Arc<Self>,
        object: &Arc<OpenObject>,
        chunk: u64,
        flying: &mut VecDeque<Interest>,
        until: Instant,
    ) -> Result<Bytes> {
        let Some(key) = object.chunk_key(chunk) else {
            return fail(Kind::Bug, "a hole was asked for as a chunk");
        };
        for attempt in 0..TRIES {
            if let Some(plain) = self.cache.get(&key) {
                return Ok(plain);
            }
            if let Some(stage) = object.known_bad(chunk) {
                return Err(bad_chunk(stage));
            }
            if attempt > 0 || flying.is_empty() {
                // It was pushed out since, or the flight of another reader failed: this one is ours.
                flying.extend(self.want(object, chunk..chunk + 1));
            }
            for interest in flying.iter_mut().filter(|i| i.brings(chunk)) {
                let Ok(landed) = timeout_at(until, interest.landed(chunk)).await else {
                    return fail(Kind::Unavailable, "the store did not answer within the deadline of a read");
                };
                let ours = Arc::ptr_eq(&interest.flight.object, object);
                match landed {
                    Some(Ok(plain)) => return Ok(plain),
                    Some(Err(e)) if ours || attempt + 1 == TRIES => return Err(again(&e)),
                    _ => {}
                }
            }
        }
        if self.flights.closed() {
            return fail(Kind::Interrupted, "the volume is being unmounted");
        }
        fail(Kind::Unavailable, "a chunk was pushed out of memory again and again before it could be read")
    }
}

/// A copy of an error that several readers get, with its failure class.
fn again(e: &Error) -> Error {
    match Failure::of(e) {
        Some(stage) => bad_chunk(stage),
        None => e.duplicate(),
    }
}

/// Where the bytes of `range` that lie in `chunk` are in it.
fn within(object: &OpenObject, range: &Range<u64>, chunk: u64) -> Range<usize> {
    let c = object.geometry().chunk_size();
    let start = range.start.max(chunk * c) - chunk * c;
    let end = range.end.min((chunk + 1) * c) - chunk * c;
    start as usize..end as usize
}

/// The bytes of `range` in a chunk, shared with the cache.
fn part(object: &OpenObject, range: &Range<u64>, chunk: u64, plain: &Bytes) -> Bytes {
    plain.slice(within(object, range, chunk))
}

fn append(answer: &mut Plain, object: &OpenObject, range: &Range<u64>, chunk: u64, plain: &Bytes) {
    answer.buf().extend_from_slice(&plain[within(object, range, chunk)]);
}

fn append_zeros(answer: &mut Plain, object: &OpenObject, range: &Range<u64>, chunk: u64) {
    let more = within(object, range, chunk);
    let len = answer.buf().len() + (more.end - more.start);
    answer.buf().resize(len, 0);
}
