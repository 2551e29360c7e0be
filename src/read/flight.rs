//! Single flight: whoever wants a chunk that is being fetched waits for that fetch instead of starting another.
//!
//! A flight fetches a run of neighbouring chunks of one object. It runs in a task of its own, so a caller that gives up does not
//! take it from the others; when the last one who cares is gone, it is stopped. Its life:
//!
//! ```text
//! started (in the table) --fill--> landed: good chunks are in the cache, then the table forgets it, then waiters wake
//!                \--nobody cares, or a panic--> failed: the table forgets it, waiters wake with an error
//! ```
//! Because the cache is filled before the table forgets, a look into both under the table's lock never misses a chunk in between.

use super::cache::ChunkKey;
use super::object::OpenObject;
use crate::error::{Error, Kind};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

/// What became of one chunk.
pub(super) type Landed = Result<Bytes, Arc<Error>>;

/// A fetch under way.
pub(super) struct Flight {
    /// The object that it reads.
    pub(super) object: Arc<OpenObject>,
    /// Global numbers of the chunks, all of them stored (no holes).
    pub(super) chunks: Range<u64>,
    over: AtomicBool,
}

impl Flight {
    /// Whether it is over.
    pub(super) fn over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

struct Entry {
    flight: Arc<Flight>,
    /// Interests that keep it going.
    cared: usize,
    /// Where those of them that wait for bytes get them: each the chunks that it asked for and no others, so that a reader
    /// holds no more memory than it has paid for.
    readers: Vec<(Range<u64>, oneshot::Sender<Vec<Landed>>)>,
    abort: Option<AbortHandle>,
}

#[derive(Default)]
struct Inner {
    /// Which flight brings a chunk.
    chunks: HashMap<ChunkKey, u64>,
    flights: HashMap<u64, Entry>,
    next: u64,
    closed: bool,
}

/// The table of all fetches of a mount that are under way.
#[derive(Default)]
pub(super) struct Flights(Mutex<Inner>);

/// What [`Flights::join_or_start`] decided for a run of chunks.
pub(super) struct Joined {
    /// Interests in flights that were under way, in order.
    pub(super) interests: Vec<Interest>,
    /// Flights that are new: the caller spawns them.
    pub(super) started: Vec<Started>,
}

/// A new flight that waits to be spawned.
pub(super) struct Started {
    pub(super) flight: Arc<Flight>,
    pub(super) landing: Landing,
}

impl Flights {
    /// For every stored chunk of `wanted` that `cached` does not know: joins the flight that brings it, or starts one, at most
    /// `most` chunks long. `reader` tells whether the caller will wait for the bytes.
    pub(super) fn join_or_start(
        self: &Arc<Self>,
        object: &Arc<OpenObject>,
        wanted: Range<u64>,
        most: u64,
        reader: bool,
        cached: impl Fn(&ChunkKey) -> bool,
    ) -> Joined {
        let mut joined = Joined { interests: Vec::new(), started: Vec::new() };
        let mut inner = self.0.lock();
        if inner.closed {
            return joined;
        }
        let mut run: Option<Range<u64>> = None;
        let mut last = None;
        let reader = reader.then(|| wanted.clone());
        for chunk in wanted {
            let key = object.chunk_key(chunk).filter(|key| !cached(key) && object.known_bad(chunk).is_none());
            let flying = key.and_then(|key| inner.chunks.get(&key).copied());
            match (key, flying) {
                (Some(_), None) => match &mut run {
                    Some(r) if r.end - r.start < most => r.end = chunk + 1,
                    _ => {
                        self.start(&mut inner, object, run.replace(chunk..chunk + 1), &reader, &mut joined);
                    }
                },
                (_, flying) => {
                    self.start(&mut inner, object, run.take(), &reader, &mut joined);
                    if let Some(id) = flying.filter(|id| last != Some(*id)) {
                        last = Some(id);
                        joined.interests.extend(self.care(&mut inner, id, &reader));
                    }
                }
            }
        }
        self.start(&mut inner, object, run, &reader, &mut joined);
        joined
    }

    fn start(
        self: &Arc<Self>,
        inner: &mut Inner,
        object: &Arc<OpenObject>,
        run: Option<Range<u64>>,
        reader: &Option<Range<u64>>,
        joined: &mut Joined,
    ) {
        let Some(chunks) = run else { return };
        let flight = Arc::new(Flight { object: object.clone(), chunks: chunks.clone(), over: AtomicBool::new(false) });
        let id = inner.next;
        inner.next += 1;
        for key in chunks.filter_map(|c| object.chunk_key(c)) {
            inner.chunks.insert(key, id);
        }
        inner.flights.insert(id, Entry { flight: flight.clone(), cared: 0, readers: Vec::new(), abort: None });
        joined.interests.extend(self.care(inner, id, reader));
        joined.started.push(Started { flight: flight.clone(), landing: Landing { table: self.clone(), flight, id } });
    }

    fn care(self: &Arc<Self>, inner: &mut Inner, id: u64, reader: &Option<Range<u64>>) -> Option<Interest> {
        let entry = inner.flights.get_mut(&id)?;
        entry.cared += 1;
        let of = &entry.flight.chunks;
        let inbox = reader.as_ref().map(|wanted| {
            let chunks = wanted.start.max(of.start)..wanted.end.min(of.end);
            let (send, receive) = oneshot::channel();
            entry.readers.push((chunks.clone(), send));
            Inbox { chunks, receive: Some(receive), landed: Vec::new() }
        });
        Some(Interest { table: self.clone(), flight: entry.flight.clone(), id, inbox })
    }

    /// Notes the task that runs a new flight, so that it can be stopped. (If everybody left, or
    /// the table was closed, in between, it is stopped now.)
    pub(super) fn spawned(&self, id: u64, abort: AbortHandle) {
        let mut inner = self.0.lock();
        let closed = inner.closed;
        match inner.flights.get_mut(&id) {
            Some(entry) if !closed => entry.abort = Some(abort),
            _ => abort.abort(),
        }
    }

    /// Stops everything under way and starts nothing more.
    pub(super) fn close(&self) {
        let mut inner = self.0.lock();
        inner.closed = true;
        for entry in inner.flights.values() {
            if let Some(abort) = &entry.abort {
                abort.abort();
            }
        }
    }

    /// Whether nothing starts any more.
    pub(super) fn closed(&self) -> bool {
        self.0.lock().closed
    }

    /// Flights under way.
    pub(super) fn count(&self) -> usize {
        self.0.lock().flights.len()
    }
}

impl Inner {
    /// Takes a flight out of the table.
    fn forget(&mut self, id: u64) -> Option<Entry> {
        let entry = self.flights.remove(&id)?;
        for key in entry.flight.chunks.clone().filter_map(|c| entry.flight.object.chunk_key(c)) {
            if self.chunks.get(&key) == Some(&id) {
                self.chunks.remove(&key);
            }
        }
        Some(entry)
    }
}

/// Somebody cares for a flight. Dropping the last one of a flight stops it.
pub(super) struct Interest {
    table: Arc<Flights>,
    pub(super) flight: Arc<Flight>,
    id: u64,
    inbox: Option<Inbox>,
}

/// Where a reader gets its chunks.
struct Inbox {
    chunks: Range<u64>,
    receive: Option<oneshot::Receiver<Vec<Landed>>>,
    landed: Vec<Landed>,
}

impl Interest {
    /// The last chunk, plus one, that this interest brings its reader.
    pub(super) fn end(&self) -> u64 {
        self.inbox.as_ref().map_or(0, |i| i.chunks.end)
    }

    /// Whether it brings its reader this chunk.
    pub(super) fn brings(&self, chunk: u64) -> bool {
        self.inbox.as_ref().is_some_and(|i| i.chunks.contains(&chunk))
    }

    /// Waits until the flight is over and says what became of `chunk`; `None` when it does not bring that one.
    pub(super) async fn landed(&mut self, chunk: u64) -> Option<Landed> {
        let inbox = self.inbox.as_mut()?;
        if let Some(receive) = &mut inbox.receive {
            // A flight always lands: its landing sends when it is dropped, too.
            inbox.landed = receive.await.unwrap_or_default();
            inbox.receive = None;
        }
        let at = usize::try_from(chunk.checked_sub(inbox.chunks.start)?).ok()?;
        inbox.landed.get(at).cloned()
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        if self.flight.over() {
            return;
        }
        let mut inner = self.table.0.lock();
        let Some(entry) = inner.flights.get_mut(&self.id) else { return };
        entry.cared -= 1;
        if entry.cared == 0
            && let Some(entry) = inner.forget(self.id)
            && let Some(abort) = entry.abort
        {
            abort.abort();
        }
    }
}

/// The duty to end a flight: dropped without [`Landing::land`] (a panic, an abort), it ends it with an error.
pub(super) struct Landing {
    table: Arc<Flights>,
    flight: Arc<Flight>,
    id: u64,
}

impl Landing {
    /// The flight's number in the table.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Ends the flight. The good chunks of `outcome` must be in the cache by now.
    pub(super) fn land(self, outcome: Vec<Landed>) {
        self.end(outcome);
    }

    fn end(&self, outcome: Vec<Landed>) {
        let entry = self.table.0.lock().forget(self.id);
        self.flight.over.store(true, Ordering::Release);
        for (chunks, send) in entry.into_iter().flat_map(|e| e.readers) {
            let first = self.flight.chunks.start;
            let (from, to) = ((chunks.start - first) as usize, (chunks.end - first) as usize);
            // A reader that gave up does not listen any more.
            let _ = send.send(outcome.get(from..to).unwrap_or_default().to_vec());
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if !self.flight.over() {
            let error = Arc::new(if std::thread::panicking() {
                Error::new(Kind::Bug, "a fetch panicked")
            } else {
                Error::new(Kind::Interrupted, "a fetch was stopped before it ended")
            });
            let chunks = self.flight.chunks.clone();
            self.end(chunks.map(|_| Err(error.clone())).collect());
        }
    }
}
