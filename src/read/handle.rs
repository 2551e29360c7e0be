//! Reading through an open file: the reader, with an eye on what will be asked next.

use super::flight::Interest;
use super::object::OpenObject;
use super::pattern::{Pattern, pieces};
use super::reader::Reader;
use crate::error::Result;
use bytes::Bytes;
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The shortest request that fetches ahead, bytes (but for the end of a window).
const PIECE_MIN: u64 = 2 << 20;

/// One open file handle. Dropping it stops what was fetched ahead for it alone.
pub struct Handle(Arc<Shared>);

struct Shared {
    reader: Reader,
    object: Arc<OpenObject>,
    ahead: Mutex<Ahead>,
}

#[derive(Default)]
struct Ahead {
    pattern: Pattern,
    /// Keeps fetches ahead going.
    interests: Vec<Interest>,
    /// Counted among the reader's streams.
    streaming: bool,
}

impl Handle {
    /// A handle on an open object.
    pub fn new(reader: &Reader, object: Arc<OpenObject>) -> Handle {
        Handle(Arc::new(Shared { reader: reader.clone(), object, ahead: Mutex::default() }))
    }

    /// The object that it reads.
    pub fn object(&self) -> &Arc<OpenObject> {
        &self.0.object
    }

    /// [`Reader::read`], and fetches ahead of sequential readers.
    pub async fn read(&self, offset: u64, len: u32) -> Result<Bytes> {
        let shared = &self.0;
        // What is asked for goes first; what may be asked for comes behind it, and both are under way before we wait.
        let then = || {
            if let Some(more) = shared.note(shared.object.clip(offset, u64::from(len))) {
                shared.fetch_ahead(more);
            }
        };
        shared.reader.read_and(&shared.object, offset, len, then).await
    }

    /// [`Reader::read_now`], and fetches ahead of sequential readers.
    pub fn read_now(&self, offset: u64, len: u32) -> Option<Result<Bytes>> {
        let shared = &self.0;
        let answer = shared.reader.read_now(&shared.object, offset, len)?;
        if let Some(more) = shared.note(shared.object.clip(offset, u64::from(len))) {
            let shared = shared.clone();
            let runtime = shared.reader.0.runtime.clone();
            runtime.spawn(async move { shared.fetch_ahead(more) });
        }
        Some(answer)
    }
}

impl Shared {
    /// Notes a read and returns what to fetch ahead.
    fn note(&self, range: Range<u64>) -> Option<Range<u64>> {
        if range.is_empty() {
            return None;
        }
        let engine = &self.reader.0;
        let mut ahead = self.ahead.lock();
        let streams = engine.streams.load(Ordering::Relaxed) + u64::from(!ahead.streaming);
        let max = engine.options.prefetch_max.min(engine.cache.budget().largest_window(streams));
        ahead.pattern.read(range, self.object.size(), max)
    }

    /// Starts fetching `wanted` in parallel pieces, as far as memory allows.
    fn fetch_ahead(&self, wanted: Range<u64>) {
        let engine = &self.reader.0;
        let request = engine.largest_request();
        let mut ahead = self.ahead.lock();
        ahead.interests.retain(|i| !i.flight.over());
        if !ahead.streaming {
            ahead.streaming = true;
            engine.streams.fetch_add(1, Ordering::Relaxed);
        }
        for piece in pieces(wanted.clone(), PIECE_MIN, request, self.object.geometry().chunk_size()) {
            // Plaintext and ciphertext; and readers who wait for their bytes come before those who might.
            let cost = 2 * (piece.end - piece.start);
            if !engine.cache.spare(cost, 2 * request) {
                ahead.pattern.fell_short(&wanted, piece.start);
                return;
            }
            let chunks = self.object.chunks_of(&piece);
            ahead.interests.extend(engine.launch(&self.object, chunks, false));
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.ahead.get_mut().streaming {
            self.reader.0.streams.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
