//! A flight's work: from the disk cache or the store, through verification, into the memory cache.
//!
//! What fails verification is fetched once more past every cache. If it fails again the chunk is `Corrupt`: the [`Witness`] gets
//! the evidence, nothing is cached, and the other chunks of the same request stay good.
//!
//! [`Witness`]: super::Witness

use super::cache::{Cache, Plain};
use super::flight::Landed;
use super::object::OpenObject;
use super::reader::{Engine, OnUnavailable};
use super::verify::Leaves;
use super::witness::CorruptReport;
use crate::error::{Error, Kind, Result};
use crate::format::failure::Failure;
use crate::store::{ETag, Got, Span};
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// First pause before the store is asked again while it does not answer, and the longest.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A request that could not be carried out, or whose bytes failed verification.
#[derive(Clone)]
pub(super) enum Trouble {
    /// No bytes: passed on as it is.
    Failed(Arc<Error>),
    /// Bytes that are not what was written: the stage, and what is wrong in words; the bytes are the evidence.
    Bad(Failure, &'static str, Bytes),
}

impl From<Error> for Trouble {
    fn from(e: Error) -> Self {
        Trouble::Failed(Arc::new(e))
    }
}

impl Engine {
    /// Brings `chunks` (stored ones, neighbours) into the cache; one outcome for each.
    pub(super) async fn fill(self: &Arc<Self>, object: &Arc<OpenObject>, chunks: Range<u64>) -> Vec<Landed> {
        match self.try_fill(object, chunks.clone()).await {
            Ok(all) => all,
            Err(e) => {
                let e = Arc::new(e);
                chunks.map(|_| Err(e.clone())).collect()
            }
        }
    }

    async fn try_fill(self: &Arc<Self>, object: &Arc<OpenObject>, chunks: Range<u64>) -> Result<Vec<Landed>> {
        let until = Instant::now() + self.options.deadline;
        let plain: usize = chunks.clone().map(|c| plain_cost(object, c)).sum();
        let sealed = object.stored_range(chunks.clone())?;
        let sealed_cost = usize::try_from(sealed.end - sealed.start).unwrap_or(usize::MAX);
        let mut share = self.cache.reserve(plain + sealed_cost.next_multiple_of(1024), until).await?;
        let mut buffers = Vec::new();
        for c in chunks.clone() {
            let part = share.split(plain_cost(object, c));
            let part = part.ok_or_else(|| Error::new(Kind::Bug, "a fetch took less memory than its chunks need"))?;
            buffers.push((c, Plain::for_chunk(object.chunk_len(c), part)));
        }
        let counted = Counted::new(share, sealed_cost);
        let first = chunks.start;
        let mut done: Vec<Option<Landed>> = chunks.clone().map(|_| None).collect();
        let missing = self.from_lower(object, buffers, &mut done, first).await?;
        for run in runs(missing) {
            for (c, landed) in self.fetch_run(object, run, until).await {
                if let Some(slot) = done.get_mut((c - first) as usize) {
                    *slot = Some(landed);
                }
            }
        }
        drop(counted);
        let lost = || Err(Arc::new(Error::new(Kind::Bug, "a fetch lost track of a chunk")));
        Ok(done.into_iter().map(|d| d.unwrap_or_else(lost)).collect())
    }

    /// Takes from the disk cache what it has; returns the buffers of the rest.
    async fn from_lower(
        self: &Arc<Self>,
        object: &Arc<OpenObject>,
        buffers: Vec<(u64, Plain)>,
        done: &mut [Option<Landed>],
        first: u64,
    ) -> Result<Vec<(u64, Plain)>> {
        let Some(lower) = self.cache.lower().cloned() else { return Ok(buffers) };
        // What is read for the first time is the usual case: no thread is woken, no buffer touched for it.
        let holds = |c| object.chunk_key(c).is_some_and(|key| lower.holds(&key));
        if !buffers.iter().any(|(c, _)| holds(*c)) {
            return Ok(buffers);
        }
        let (object, from) = (object.clone(), object.clone());
        let work = move || {
            let mut found = Vec::new();
            let mut missing = Vec::new();
            for (c, mut buffer) in buffers {
                let Some(key) = from.chunk_key(c) else { continue };
                if !lower.holds(&key) {
                    missing.push((c, buffer));
                    continue;
                }
                buffer.buf().resize(from.chunk_len(c), 0);
                if lower.get(&key, buffer.buf()) {
                    found.push((c, buffer));
                } else {
                    buffer.buf().clear();
                    missing.push((c, buffer));
                }
            }
            (found, missing)
        };
        let (found, missing) = self.pool.run(work).await?;
        for (c, buffer) in found {
            let landed = Ok(self.keep(&object, c, buffer, false));
            if let Some(slot) = done.get_mut((c - first) as usize) {
                *slot = Some(landed);
            }
        }
        Ok(missing)
    }

    /// Puts a verified chunk into the caches.
    pub(super) fn keep(&self, object: &OpenObject, chunk: u64, plain: Plain, fresh: bool) -> Bytes {
        let bytes = plain.freeze();
        if let Some(key) = object.chunk_key(chunk) {
            self.cache.insert(key, bytes.clone());
            if fresh
                && let Some(lower) = self.cache.lower()
                && self.cache.worth_disk(&key)
            {
                let (lower, bytes) = (lower.clone(), bytes.clone());
                // Busy disks drop what they cannot take: the store still has it.
                self.pool.try_background(move || lower.insert(&key, &bytes));
            }
        }
        bytes
    }

    /// Fetches and verifies a run of neighbours, the bad ones among them twice.
    async fn fetch_run(self: &Arc<Self>, object: &Arc<OpenObject>, run: Vec<(u64, Plain)>, until: Instant) -> Vec<(u64, Landed)> {
        let mut done = Vec::new();
        let bad = self.attempt(object, run, until, &mut done).await;
        for again in runs(bad.into_iter().map(|(c, _, buffer)| (c, buffer)).collect()) {
            for (c, trouble, _) in self.attempt(object, again, until, &mut done).await {
                let error = match trouble {
                    Trouble::Failed(e) => e,
                    Trouble::Bad(stage, what, evidence) => Arc::new(self.condemn(object, c, stage, what, evidence)),
                };
                done.push((c, Err(error)));
            }
        }
        done
    }

    /// One request for a run. Good chunks and plain failures go to `done`; chunks whose bytes are wrong come back.
    async fn attempt(
        self: &Arc<Self>,
        object: &Arc<OpenObject>,
        run: Vec<(u64, Plain)>,
        until: Instant,
        done: &mut Vec<(u64, Landed)>,
    ) -> Vec<(u64, Trouble, Plain)> {
        let (Some(first), Some(last)) = (run.first().map(|r| r.0), run.last().map(|r| r.0)) else { return Vec::new() };
        let range = match object.stored_range(first..last + 1) {
            Ok(range) => range,
            Err(e) => {
                let e = Arc::new(e);
                done.extend(run.into_iter().map(|(c, _)| (c, Err(e.clone()))));
                return Vec::new();
            }
        };
        let sealed = match self.get(object, range.clone(), until).await {
            Ok(sealed) => sealed,
            Err(Trouble::Failed(e)) => {
                done.extend(run.into_iter().map(|(c, _)| (c, Err(e.clone()))));
                return Vec::new();
            }
            Err(Trouble::Bad(stage, what, bytes)) => {
                return run.into_iter().map(|(c, b)| (c, Trouble::Bad(stage, what, bytes.clone()), b)).collect();
            }
        };
        let leaves =
            if self.options.verify_full { self.leaves_of(object, first..last + 1, until).await } else { Leaves::default() };
        let mut bad = Vec::new();
        for (c, buffer, outcome) in self.open_chunks(object, run, range.start, sealed, leaves).await {
            match outcome {
                Ok(()) => done.push((c, Ok(self.keep(object, c, buffer, true)))),
                Err(Trouble::Failed(e)) => done.push((c, Err(e))),
                Err(trouble) => bad.push((c, trouble, buffer)),
            }
        }
        bad
    }

    /// The bytes `range` of the object, under its version tag.
    pub(super) async fn get(&self, object: &OpenObject, range: Range<u64>, until: Instant) -> Result<Bytes, Trouble> {
        let got = self.ask(object.key(), Span::Range(range.clone()), Some(object.etag()), until).await;
        let got = match got {
            Ok(got) => got,
            Err(e) if e.kind() == Kind::Corrupt => {
                return Err(Trouble::Bad(Failure::Chunk, "the bytes were damaged on their way", Bytes::new()));
            }
            Err(e) => return Err(e.into()),
        };
        if got.meta.etag != *object.etag() {
            return Err(Error::new(Kind::Stale, "the object was replaced while it was open").into());
        }
        if got.meta.len != object.object_len() {
            return Err(Trouble::Bad(Failure::Length, "the object has another length under the same version tag", got.bytes));
        }
        if got.start != range.start || got.bytes.len() as u64 != range.end - range.start {
            return Err(Trouble::Bad(Failure::Length, "fewer bytes came back than the object has there", got.bytes));
        }
        Ok(got.bytes)
    }

    /// One get, within the deadline; while the store does not answer, asked again if the options say so.
    pub(super) async fn ask(&self, key: &str, span: Span, only: Option<&ETag>, until: Instant) -> Result<Got> {
        let mut pause = PAUSE;
        loop {
            let asked = timeout_at(until, self.store.get(key, span.clone(), only)).await;
            let error = match asked {
                Ok(Ok(got)) => return Ok(got),
                Ok(Err(e)) => e,
                Err(_) => return Err(Error::new(Kind::Unavailable, "the store did not answer within the deadline of a read")),
            };
            let wait = error.kind() == Kind::Unavailable && self.options.on_unavailable == OnUnavailable::Wait;
            if !wait || Instant::now() + pause >= until {
                return Err(match error.kind() {
                    Kind::NotFound if only.is_some() => {
                        Error::with_source(Kind::Stale, "the object was removed while it was open", error)
                    }
                    _ => error.context("reading an object"),
                });
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Tells the witness that a chunk is corrupt, remembers it, and returns the error for readers.
    pub(super) fn condemn(&self, object: &OpenObject, chunk: u64, stage: Failure, what: &'static str, evidence: Bytes) -> Error {
        if object.condemn(chunk, stage) {
            let range = object.stored_range(chunk..chunk + 1).unwrap_or_default();
            self.witness.corrupt(CorruptReport::of(object, stage, Some(chunk), range, what, evidence));
        }
        bad_chunk(stage)
    }
}

/// The error of a chunk that failed verification twice.
pub(super) fn bad_chunk(stage: Failure) -> Error {
    stage.error("stored bytes of this file failed verification")
}

/// What the plaintext of a chunk takes of the budget, whole KiB.
pub(super) fn plain_cost(object: &OpenObject, chunk: u64) -> usize {
    Cache::cost(object.chunk_len(chunk))
}

/// Cuts chunks in ascending order into runs of neighbours.
fn runs<T>(chunks: Vec<(u64, T)>) -> Vec<Vec<(u64, T)>> {
    let mut out: Vec<Vec<(u64, T)>> = Vec::new();
    for item in chunks {
        match out.last_mut() {
            Some(run) if run.last().is_some_and(|l| l.0 + 1 == item.0) => run.push(item),
            _ => out.push(vec![item]),
        }
    }
    out
}

/// Ciphertext in flight, counted while it lives.
pub(super) struct Counted {
    share: super::budget::Share,
    len: usize,
}

impl Counted {
    pub(super) fn new(share: super::budget::Share, len: usize) -> Counted {
        share.live(len);
        Counted { share, len }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.share.dead(self.len);
    }
}
