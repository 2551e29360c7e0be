//! Opening an object: at most two parallel requests (one for a short object), verification in the order of FORMAT.md 4.5, and
//! the chunks that came along put into the cache.

use super::cache::Plain;
use super::fill::{Counted, Trouble, plain_cost};
use super::object::{ObjectParts, OpenObject};
use super::reader::{Engine, Reader};
use super::verify::{Leaves, Opened, open_all};
use super::witness::{CorruptReport, EVIDENCE_MAX};
use crate::crypto::secmem::SecretKey;
use crate::error::{Error, Kind, Result};
use crate::format::failure::Failure;
use crate::format::geometry::{MAX_SEGMENTS, TAIL_FETCH, TRAILER_LEN, WHOLE_FETCH};
use crate::format::object::{CheckedTrailer, Expect, ObjectRoot, Opening};
use crate::format::segment;
use crate::store::{ETag, Got, Span};
use crate::types::{FileId, Hash};
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use tokio::time::Instant;

/// How often an object that is replaced while it is being opened is tried again.
const STALE_TRIES: u32 = 4;

/// Which version of which object to open: what the index entry says.
#[derive(Clone)]
pub struct Ask {
    /// Key of the object in the store.
    pub key: String,
    /// The file.
    pub file_id: FileId,
    /// Its key.
    pub file_key: SecretKey,
    /// The version that must be there, or a later one.
    pub generation: u64,
    /// Trailer hash of that version.
    pub trailer_hash: Hash,
    /// Length of that version's object, bytes: a hint that saves a request; 0 when it is not known.
    pub object_len: u64,
}

/// Bytes of an object as fetched for opening it.
struct Ends {
    head: Bytes,
    tail: Bytes,
    /// Both are the whole object.
    whole: bool,
    got: crate::store::Meta,
    _memory: Counted,
}

/// A chunk that came along and does not verify.
type Spoilt = (u64, Failure, &'static str, Bytes);

impl Reader {
    /// Opens and verifies an object.
    ///
    /// Errors: `Corrupt` (after a second try past every cache; the witness knows), `NotFound` (the object is gone: whether it
    /// was removed on purpose only a fresh index tells), `Stale` (it is being replaced again and again), `Unavailable`, `Denied`.
    pub async fn open(&self, ask: &Ask) -> Result<Arc<OpenObject>> {
        self.try_open(ask).await?.map_err(|report| self.refuse(*report))
    }

    /// Tells the witness what an object was refused for, and gives the error for whoever asked for it.
    pub fn refuse(&self, report: CorruptReport) -> Error {
        let e = report.stage.error(format!("the stored object of a file was refused: {}", report.what));
        self.0.witness.corrupt(report);
        e
    }

    /// Like [`Reader::open`], and the caller decides what it means that an object is not what `ask` says: whether it is damaged,
    /// or `ask` is old. Then it calls [`Reader::refuse`].
    pub async fn try_open(&self, ask: &Ask) -> Result<Result<Arc<OpenObject>, Box<CorruptReport>>> {
        let engine = &self.0;
        let until = Instant::now() + engine.options.deadline;
        let (mut tries, mut bad_before) = (0, false);
        loop {
            let mut seen = None;
            let trouble = match engine.open_once(ask, until, &mut seen).await {
                Ok((object, spoilt)) if spoilt.is_empty() || bad_before => {
                    for (chunk, stage, what, evidence) in spoilt {
                        engine.condemn(&object, chunk, stage, what, evidence);
                    }
                    return Ok(Ok(object));
                }
                Ok(_) => {
                    bad_before = true;
                    continue;
                }
                Err(trouble) => trouble,
            };
            match trouble {
                Trouble::Failed(e) if e.kind() == Kind::Stale && tries < STALE_TRIES => tries += 1,
                Trouble::Failed(e) if e.kind() == Kind::NotFound && tries < 1 => tries += STALE_TRIES,
                Trouble::Failed(e) => return Err(e.duplicate()),
                Trouble::Bad(..) if !bad_before => bad_before = true,
                Trouble::Bad(stage, what, evidence) => {
                    return Ok(Err(Box::new(refused(ask, seen, stage, what, evidence))));
                }
            }
        }
    }
}

fn refused(ask: &Ask, seen: Option<ETag>, stage: Failure, what: &str, evidence: Bytes) -> CorruptReport {
    let kept = evidence.len().min(EVIDENCE_MAX);
    CorruptReport {
        key: ask.key.clone(),
        file_id: ask.file_id,
        generation: ask.generation,
        trailer_hash: ask.trailer_hash,
        etag: seen.map(|e| e.0),
        stage,
        chunk: None,
        range: 0..0,
        what: what.to_owned(),
        // The end of an object says most: it holds the trailer.
        evidence: evidence.slice(evidence.len() - kept..),
    }
}

impl Engine {
    /// `seen` is the version that was looked at.
    async fn open_once(
        self: &Arc<Self>,
        ask: &Ask,
        until: Instant,
        seen: &mut Option<ETag>,
    ) -> Result<(Arc<OpenObject>, Vec<Spoilt>), Trouble> {
        let ends = Arc::new(self.fetch_ends(ask, until).await?);
        *seen = Some(ends.got.etag.clone());
        let expect = Expect {
            file_id: ask.file_id,
            generation: ask.generation,
            trailer_hash: ask.trailer_hash,
            file_key: ask.file_key.clone(),
        };
        let (engine, from) = (self.clone(), ends.clone());
        let opened =
            self.pool.run(move || ObjectRoot::open(&engine.params, &engine.keys, &expect, &from.head, &from.tail, from.got.len));
        let root = match opened.await? {
            Ok(Opening::Done(root)) => *root,
            Ok(Opening::NeedManifest(checked)) => self.rest_of_manifest(ask, &ends, *checked, until).await?,
            Err(e) => return Err(bad(e, &ends.tail)),
        };
        let parts = ObjectParts {
            key: ask.key.clone(),
            etag: ends.got.etag.clone(),
            file_id: ask.file_id,
            file_key: root.file_key().clone(),
            params: self.params,
            generation: root.generation(),
            trailer_hash: root.trailer_hash(),
            layout: root.layout().clone(),
            records: root.manifest().records.clone(),
        };
        let object = Arc::new(OpenObject::new(parts)?);
        let (engine, opened) = (self.clone(), object.clone());
        let spoilt = self.pool.run(move || engine.harvest(&opened, &ends)).await?;
        Ok((object, spoilt))
    }

    /// The object's ends, of one version.
    async fn fetch_ends(&self, ask: &Ask, until: Instant) -> Result<Ends, Trouble> {
        if (1..=WHOLE_FETCH).contains(&ask.object_len) {
            let memory = self.ends_memory(ask.object_len, until).await?;
            match self.ask(&ask.key, Span::Whole { max: WHOLE_FETCH }, None, until).await {
                Ok(got) => {
                    let complete = got.start == 0 && got.bytes.len() as u64 == got.meta.len;
                    return match complete {
                        true => {
                            Ok(Ends { head: got.bytes.clone(), tail: got.bytes, whole: true, got: got.meta, _memory: memory })
                        }
                        false => Err(short(got.bytes)),
                    };
                }
                // A later, longer version.
                Err(e) if e.kind() == Kind::TooLarge => {}
                Err(e) => return Err(damaged(e)),
            }
        }
        let head_len = self.params.geometry.head_fetch();
        let memory = self.ends_memory(head_len + TAIL_FETCH, until).await?;
        let (head, tail) = tokio::join!(
            self.ask(&ask.key, Span::Range(0..head_len), None, until),
            self.ask(&ask.key, Span::Last(TAIL_FETCH), None, until),
        );
        let (head, tail) = (head.map_err(damaged)?, tail.map_err(damaged)?);
        if head.meta != tail.meta {
            return Err(Error::new(Kind::Stale, "the object was replaced while it was being opened").into());
        }
        let len = head.meta.len;
        let is = |got: &Got, range: Range<u64>| got.start == range.start && got.bytes.len() as u64 == range.end - range.start;
        if !is(&head, 0..head_len.min(len)) || !is(&tail, len.saturating_sub(TAIL_FETCH)..len) {
            return Err(short(tail.bytes));
        }
        Ok(Ends { head: head.bytes, tail: tail.bytes, whole: false, got: head.meta, _memory: memory })
    }

    async fn ends_memory(&self, len: u64, until: Instant) -> Result<Counted> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        Ok(Counted::new(self.cache.reserve(len, until).await?, len))
    }

    /// The manifest of a large file begins before the tail that was fetched.
    async fn rest_of_manifest(
        self: &Arc<Self>,
        ask: &Ask,
        ends: &Ends,
        checked: CheckedTrailer,
        until: Instant,
    ) -> Result<ObjectRoot, Trouble> {
        let range = checked.manifest_range();
        let len = range.end - range.start;
        if len > self.params.geometry.manifest_len(MAX_SEGMENTS) {
            return Err(Trouble::Bad(Failure::Size, "the manifest is longer than any file needs", ends.tail.clone()));
        }
        // Sealed, joined and opened: three times its length while it is being read.
        let _memory = self.ends_memory(3 * len, until).await?;
        let in_tail = (ends.tail.len() - TRAILER_LEN) as u64;
        let missing = range.start..range.end - in_tail;
        let got = match self.ask(&ask.key, Span::Range(missing.clone()), Some(&ends.got.etag), until).await {
            Ok(got) => got,
            Err(e) => return Err(damaged(e)),
        };
        if got.meta != ends.got {
            return Err(Error::new(Kind::Stale, "the object was replaced while it was being opened").into());
        }
        if got.start != missing.start || got.bytes.len() as u64 != missing.end - missing.start {
            return Err(short(got.bytes));
        }
        let mut sealed = Vec::with_capacity(len as usize);
        sealed.extend_from_slice(&got.bytes);
        sealed.extend_from_slice(&ends.tail[..in_tail as usize]);
        let (engine, file_key) = (self.clone(), ask.file_key.clone());
        let opened = self.pool.run(move || checked.open_manifest(&engine.keys, &sealed, Some(&file_key))).await?;
        opened.map_err(|e| bad(e, &ends.tail))
    }

    /// Verifies the chunks that came along and puts them into the cache, as far as there is room. Those that do not verify are
    /// returned when the whole object is here; otherwise a read will fetch them again.
    fn harvest(&self, object: &Arc<OpenObject>, ends: &Ends) -> Vec<Spoilt> {
        let chunks = if ends.whole { object.chunks_of(&(0..object.size())) } else { 0..1 };
        let mut run = Vec::new();
        for c in chunks {
            let here = object.stored_range(c..c + 1).is_ok_and(|r| r.end <= ends.head.len() as u64);
            let wanted = here && object.chunk_key(c).is_some_and(|key| !self.cache.contains(&key));
            if wanted && let Some(share) = self.cache.try_reserve(plain_cost(object, c)) {
                run.push((c, Plain::for_chunk(object.chunk_len(c), share)));
            }
        }
        let leaves = if ends.whole || self.options.verify_full { leaves_within(object, &ends.head) } else { Leaves::new() };
        if !ends.whole && self.options.verify_full && leaves.is_empty() {
            return Vec::new(); // its leaves are elsewhere: a read will check them
        }
        let mut spoilt = Vec::new();
        for (c, plain, outcome) in open_all(object, run, 0, &ends.head, &leaves) as Vec<Opened> {
            match outcome {
                Ok(()) => {
                    self.keep(object, c, plain, true);
                }
                Err(Trouble::Bad(stage, what, evidence)) if ends.whole => spoilt.push((c, stage, what, evidence)),
                Err(_) => {}
            }
        }
        spoilt
    }
}

/// The leaves of the segments that lie in `bytes`, the beginning of the object.
fn leaves_within(object: &OpenObject, bytes: &Bytes) -> Leaves {
    let mut all = Leaves::new();
    for k in 0..object.layout().segments() {
        let Some(range) = object.layout().foot(k) else { continue };
        if range.end > bytes.len() as u64 {
            break;
        }
        let foot = bytes.slice(range.start as usize..range.end as usize);
        let leaves = match object.segment_root(k) {
            Some(root) => segment::Leaves::verify(&object.segment_at(k), &foot, &root).map(Arc::new),
            None => continue,
        };
        let what = "the leaves of a segment are not what was written";
        all.insert(k, leaves.map_err(|_| Trouble::Bad(Failure::Leaf, what, foot)));
    }
    all
}

fn short(evidence: Bytes) -> Trouble {
    Trouble::Bad(Failure::Length, "fewer bytes came back than the object has", evidence)
}

/// An error of the store while opening: damage on the way counts as bad bytes.
fn damaged(e: Error) -> Trouble {
    match e.kind() {
        Kind::Corrupt => Trouble::Bad(Failure::Length, "the bytes were damaged on their way", Bytes::new()),
        _ => e.into(),
    }
}

/// A refusal by the format.
fn bad(e: Error, evidence: &Bytes) -> Trouble {
    match Failure::of(&e) {
        Some(stage) => Trouble::Bad(stage, what_of(stage), evidence.clone()),
        None => e.into(),
    }
}

fn what_of(stage: Failure) -> &'static str {
    match stage {
        Failure::Length => "it has a length that no file has",
        Failure::Magic => "it is not a sealed file",
        Failure::Version | Failure::Suite | Failure::Params => "its version, cipher or sizes are not the volume's",
        Failure::Signature => "its signature does not hold",
        Failure::Identity => "it is another file",
        Failure::Rollback => "it is an older version than the one that must be there",
        Failure::Fork => "it is another version of the same generation",
        Failure::HeaderHash => "its header was changed",
        Failure::ManifestHash | Failure::Manifest => "its manifest was changed",
        Failure::KeyWrap => "its key is not the file's",
        Failure::Size => "its sizes and offsets contradict each other",
        Failure::BodyRoot => "its segment roots were changed",
        _ => "it failed verification",
    }
}
