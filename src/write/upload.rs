//! One version of a file on its way into the bucket: seal what changed, keep what did not, put it together atomically.
//!
//! Objects up to [`SINGLE_PUT`] go in one conditional PUT. Larger ones are multipart uploads: parts of whole segments (the first
//! with the header in front), made by copying inside the store where nothing in them changed, and a last part with manifest and
//! trailer. Until the final request the old version is untouched.

use super::plan::{PartLimits, SegPlan};
use crate::crypto::secmem::SecretKey;
use crate::env::Env;
use crate::env::failpoint::reach;
use crate::error::{Error, Kind, Result, fail};
use crate::format::geometry::{HEADER_LEN, Layout};
use crate::format::header::Header;
use crate::format::keys::VolumeKeys;
use crate::format::manifest::{Hints, Manifest, Record};
use crate::format::object::{NewVersion, SealedRoot, seal_root};
use crate::format::params::Params;
use crate::format::segment::{SegmentAt, SegmentBuffer, fresh_secret, seal_buffer};
use crate::store::{Capability, Cond, ETag, Meta, Part, PartAt, Store, UploadId};
use crate::types::{FileId, Hash};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Semaphore;

/// Objects up to this length are written with one PUT.
pub const SINGLE_PUT: u64 = 16 << 20;
/// Unfinished uploads remembered for a later abort.
const MAX_STRAYS: usize = 1024;
/// Parts of one upload under way at once: while some wait for the spool and the cipher, others are on the wire.
const PARTS_AT_ONCE: usize = 8;

/// Where the plaintext of a new version comes from.
#[async_trait]
pub trait Plain: Send + Sync {
    /// Puts the plaintext bytes of `range`, from layers and old version, into `buffer`, where there are zeros.
    async fn plain(&self, range: Range<u64>, buffer: SegmentBuffer) -> Result<SegmentBuffer>;
}

/// Who hears how an upload goes.
pub trait Watch: Send + Sync {
    /// A multipart upload was begun: whoever finds this after a crash aborts it.
    fn began(&self, key: &str, id: &UploadId) -> Result<()>;
    /// Generation and trailer hash are known, and the bucket may hold them from now on.
    fn intend(&self, generation: u64, hash: &Hash) -> Result<()>;
    /// The store has taken so many more bytes of plaintext.
    fn sent(&self, bytes: u64);
}

/// The old version, for segments that stay as they are.
#[derive(Clone)]
pub struct OldObject {
    /// Its key.
    pub key: String,
    /// Its tag.
    pub etag: ETag,
    /// Where its segments lie.
    pub layout: Layout,
    /// Their records.
    pub records: Arc<[Record]>,
}

/// What uploads share: the store, its limits, the keys, and bounds on memory.
pub struct Uploader {
    /// The store.
    pub store: Arc<dyn Store>,
    /// What it can do.
    pub caps: Capability,
    /// The volume's keys.
    pub keys: Arc<VolumeKeys>,
    /// The volume's constants.
    pub params: Params,
    /// Clock and randomness.
    pub env: Env,
    /// KiB of sealed bytes that uploads may hold at once.
    pub memory: Arc<Semaphore>,
    /// Its size in KiB.
    pub memory_kib: u32,
    /// Counts segment secrets of this process.
    pub counter: AtomicU64,
    /// Unfinished uploads that are still to be aborted.
    pub strays: parking_lot::Mutex<Vec<(String, UploadId)>>,
}

/// A version to write.
pub struct Job {
    /// The file.
    pub file_id: FileId,
    /// Its key.
    pub file_key: SecretKey,
    /// Generation to write.
    pub generation: u64,
    /// Trailer hash of the version before, or zeros.
    pub previous: Hash,
    /// Key of the object.
    pub key: String,
    /// What the store must hold there.
    pub cond: Cond,
    /// Plaintext size.
    pub size: u64,
    /// Hints for recovery.
    pub hints: Hints,
    /// What becomes of each segment.
    pub plan: Vec<SegPlan>,
    /// The version before, when segments are kept.
    pub old: Option<OldObject>,
    /// Parts uploaded ahead, whose segments did not change since.
    pub started: Option<Started>,
}

/// A multipart upload begun before the file was complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// The upload.
    pub id: UploadId,
    /// Finished parts and the records of their segments.
    pub parts: BTreeMap<u32, (Part, Vec<Record>)>,
}

/// A version that is in the bucket.
pub struct Written {
    /// Its root.
    pub root: SealedRoot,
    /// Its manifest.
    pub manifest: Manifest,
    /// The store's word for it.
    pub meta: Meta,
    /// Its key.
    pub key: String,
    /// Generation.
    pub generation: u64,
}

/// Stored bytes of consecutive segments.
fn body_len(layout: &Layout, segments: &[u64]) -> u64 {
    segments.iter().filter_map(|k| layout.segment(*k)).map(|r| r.end - r.start).sum()
}

/// An upload that the store does not know any more was aborted by somebody (a rule of the bucket, a clean-up), or lost what it
/// copies from: nothing is wrong with the file, and the next try looks again and begins a new upload.
fn upload_gone(e: Error) -> Error {
    match e.kind() {
        Kind::NotFound => Error::with_source(Kind::Unavailable, "the upload was aborted by somebody; it is begun again", e),
        _ => e,
    }
}

/// The sealed bytes of some segments, and their records.
struct SealedPart {
    body: Vec<Bytes>,
    records: Vec<Record>,
}

impl Uploader {
    /// Limits of parts on this store.
    pub fn limits(&self) -> PartLimits {
        PartLimits::new(&self.caps, self.params.geometry)
    }

    /// Writes a version, and tells `watch` how it goes.
    ///
    /// After an error the bucket holds the old version, or (when the answer was lost) the new one.
    pub async fn write(&self, job: Job, plain: &dyn Plain, watch: &dyn Watch) -> Result<Written> {
        let holes: Vec<u64> = (0..).zip(&job.plan).filter(|(_, p)| **p == SegPlan::Hole).map(|(k, _)| k).collect();
        let stored = job.plan.len() as u64 - holes.len() as u64;
        let layout = Layout::new(self.params.geometry, job.size, holes);
        if job.size > self.params.geometry.max_size() {
            return fail(Kind::TooLarge, "the file is larger than a volume of this geometry can hold");
        }
        let single = job.started.is_none() && (layout.object_len() <= SINGLE_PUT || !self.caps.multipart);
        if single && layout.object_len() > self.caps.max_put.max(SINGLE_PUT) {
            return fail(Kind::TooLarge, "the file is larger than this store takes in one piece");
        }
        // In one piece it is sealed in memory as a whole.
        let memory = u64::from(self.memory_kib) << 10;
        if single && layout.object_len() > memory.max(SINGLE_PUT) {
            let why = "this store takes no uploads in parts, so that a file is sealed in memory as a whole";
            let (has, needs) = (memory >> 20, layout.object_len().div_ceil(1 << 20));
            return fail(
                Kind::TooLarge,
                format!(
                    "{why}: this file needs {needs} MiB where uploads have {has} MiB; raise memory-budget, of which they have a \
                     quarter (at most 128 MiB)"
                ),
            );
        }
        if !single && !self.limits().fits(stored) {
            return fail(Kind::TooLarge, "the file needs more parts than this store takes");
        }
        match single {
            true => self.write_single(job, layout, plain, watch).await,
            false => self.write_parts(job, layout, plain, watch).await,
        }
    }

    fn header(&self, job: &Job) -> Bytes {
        Bytes::copy_from_slice(&Header { params: self.params, file_id: job.file_id }.encode())
    }

    /// Seals manifest and trailer over the records of all segments.
    fn seal_tail(&self, job: &Job, records: Vec<Record>) -> Result<(SealedRoot, Manifest)> {
        let manifest = Manifest { size: job.size, hints: job.hints.clone(), content_sha256: None, records };
        let new = NewVersion {
            params: &self.params,
            file_id: job.file_id,
            file_key: &job.file_key,
            generation: job.generation,
            previous: job.previous,
            manifest: &manifest,
        };
        let root = seal_root(&self.keys, &new, &self.env.random(), &self.env.random())?;
        Ok((root, manifest))
    }

    async fn write_single(&self, job: Job, layout: Layout, plain: &dyn Plain, watch: &dyn Watch) -> Result<Written> {
        let _room = self.room(layout.object_len()).await?;
        let mut body = vec![self.header(&job)];
        let mut records = Vec::with_capacity(job.plan.len());
        for k in 0..job.plan.len() as u64 {
            let part = self.seal(&job, k, plain).await?;
            body.extend(part.body);
            records.extend(part.records);
        }
        let (root, manifest) = self.seal_tail(&job, records)?;
        body.push(Bytes::from(root.tail.clone()));
        watch.intend(job.generation, &root.trailer_hash)?;
        reach("version-intended");
        let meta = self.store.put(&job.key, body, job.cond.clone()).await?;
        reach("object-written");
        watch.sent(job.size);
        Ok(Written { root, manifest, meta, key: job.key, generation: job.generation })
    }

    async fn write_parts(&self, mut job: Job, layout: Layout, plain: &dyn Plain, watch: &dyn Watch) -> Result<Written> {
        let Started { id, parts: ahead } = match job.started.take() {
            Some(s) => s,
            None => {
                let id = self.store.upload_start(&job.key).await?;
                reach("upload-begun");
                if let Err(e) = watch.began(&job.key, &id) {
                    self.abort(&job.key, &id).await;
                    return Err(e);
                }
                reach("upload-noted");
                Started { id, parts: BTreeMap::new() }
            }
        };
        let result = self.all_parts(&job, &layout, &id, ahead, plain, watch).await;
        if result.is_err() {
            self.abort(&job.key, &id).await;
        }
        let (root, manifest, meta) = result?;
        self.abort_strays().await;
        Ok(Written { root, manifest, meta, key: job.key, generation: job.generation })
    }

    async fn all_parts(
        &self,
        job: &Job,
        layout: &Layout,
        id: &UploadId,
        ahead: BTreeMap<u32, (Part, Vec<Record>)>,
        plain: &dyn Plain,
        watch: &dyn Watch,
    ) -> Result<(SealedRoot, Manifest, Meta)> {
        // Segments that are stored, in order: parts count these.
        let stored: Vec<u64> = (0..job.plan.len() as u64).filter(|k| !layout.is_hole(*k)).collect();
        let count = self.limits().body_parts(stored.len() as u64) as u32;
        let ahead = &ahead;
        let stored = &stored;
        let segments_of = |number: u32| {
            let r = self.limits().body_part(number);
            &stored[r.start as usize..(r.end as usize).min(stored.len())]
        };
        // Stores refuse parts that are too small, but for the last one: a short end of the body goes with the tail.
        let short = count > 0 && body_len(layout, segments_of(count)) < self.caps.min_part;
        let alone = count - u32::from(short);
        let mut done: Vec<(Part, Vec<Record>)> = stream::iter(1..=alone)
            .map(|number| async move {
                if let Some(done) = ahead.get(&number) {
                    return Ok(done.clone());
                }
                let segments = segments_of(number);
                let done = self.part(job, layout, id, number, segments, plain).await?;
                watch.sent(segments.iter().map(|k| layout.seg_plain(*k)).sum());
                Ok::<_, Error>(done)
            })
            .buffered(PARTS_AT_ONCE)
            .try_collect()
            .await?;
        let mut last = SealedPart { body: Vec::new(), records: Vec::new() };
        let mut offset = layout.manifest().start;
        if alone == 0 {
            last.body.push(self.header(job));
            offset = 0;
        }
        for k in if short { segments_of(count) } else { &[] } {
            offset = offset.min(layout.segment(*k).map_or(offset, |r| r.start));
            let sealed = self.seal(job, *k, plain).await?;
            last.body.extend(sealed.body);
            last.records.extend(sealed.records);
        }
        let records = done.iter_mut().flat_map(|(_, r)| std::mem::take(r)).chain(last.records);
        let mut by_segment: BTreeMap<u64, Record> = stored.iter().copied().zip(records).collect();
        let mut parts: Vec<Part> = done.into_iter().map(|(part, _)| part).collect();
        let hole = Record::Hole { written: job.generation };
        let records = (0..job.plan.len() as u64).map(|k| by_segment.remove(&k).unwrap_or_else(|| hole.clone())).collect();
        let (root, manifest) = self.seal_tail(job, records)?;
        last.body.push(Bytes::from(root.tail.clone()));
        let tail = self.store.upload_part(&job.key, id, PartAt { number: alone + 1, offset }, last.body).await;
        parts.push(tail.map_err(upload_gone)?);
        reach("parts-sent");
        watch.intend(job.generation, &root.trailer_hash)?;
        reach("version-intended");
        if !self.caps.complete_if {
            self.look_before(&job.key, &job.cond).await?;
        }
        let meta = self.store.upload_complete(&job.key, id, &parts, job.cond.clone()).await.map_err(upload_gone)?;
        reach("object-written");
        Ok((root, manifest, meta))
    }

    /// Where the store does not honour a condition: what is there now fits it, or `Stale`. Not more than that: somebody may be
    /// faster still.
    pub async fn look_before(&self, key: &str, cond: &Cond) -> Result<()> {
        if *cond == Cond::Any {
            return Ok(());
        }
        let there = match self.store.head(key).await {
            Ok(meta) => Some(meta.etag),
            Err(e) if e.kind() == Kind::NotFound => None,
            Err(e) => return Err(e),
        };
        let fits = match cond {
            Cond::Match(tag) => there.as_ref() == Some(tag),
            _ => there.is_none(),
        };
        if fits { Ok(()) } else { fail(Kind::Stale, "the object was changed by another machine") }
    }

    /// Aborts an upload; one that the store does not let go of now is tried again later.
    pub async fn abort(&self, key: &str, id: &UploadId) {
        if let Err(e) = self.store.upload_abort(key, id).await {
            tracing::debug!("an unfinished upload could not be aborted: {e}");
            let mut strays = self.strays.lock();
            if strays.len() < MAX_STRAYS {
                strays.push((key.to_owned(), id.clone()));
            }
        }
    }

    /// Aborts what could not be aborted before.
    async fn abort_strays(&self) {
        let strays = std::mem::take(&mut *self.strays.lock());
        for (key, id) in strays {
            self.abort(&key, &id).await;
        }
    }

    /// Uploads one part: `segments` are consecutive stored segments.
    pub async fn part(
        &self,
        job: &Job,
        layout: &Layout,
        id: &UploadId,
        number: u32,
        segments: &[u64],
        plain: &dyn Plain,
    ) -> Result<(Part, Vec<Record>)> {
        let (Some(first), Some(last)) = (segments.first(), segments.last()) else {
            return fail(Kind::Bug, "a part without segments");
        };
        let (Some(a), Some(b)) = (layout.segment(*first), layout.segment(*last)) else {
            return fail(Kind::Bug, "a part with a hole");
        };
        let offset = if number == 1 { 0 } else { a.start };
        let at = PartAt { number, offset };
        if let Some(copied) = self.copy_part(job, id, at, segments, b.end - offset).await? {
            return Ok(copied);
        }
        let _room = self.room(b.end - offset).await?;
        let mut body = Vec::new();
        if number == 1 {
            body.push(self.header(job));
        }
        let mut records = Vec::new();
        for k in segments {
            let part = self.seal(job, *k, plain).await?;
            body.extend(part.body);
            records.extend(part.records);
        }
        let part = self.store.upload_part(&job.key, id, at, body).await.map_err(upload_gone)?;
        reach("part-sent");
        Ok((part, records))
    }

    /// Copies a part inside the store when all its segments are kept and lie together in the old object.
    async fn copy_part(
        &self,
        job: &Job,
        id: &UploadId,
        at: PartAt,
        segments: &[u64],
        len: u64,
    ) -> Result<Option<(Part, Vec<Record>)>> {
        let Some(old) = job.old.as_ref().filter(|_| self.caps.part_copy && len >= self.caps.min_part) else { return Ok(None) };
        if !segments.iter().all(|k| job.plan[*k as usize] == SegPlan::Keep) {
            return Ok(None);
        }
        let (Some(a), Some(b)) = (old.layout.segment(segments[0]), segments.last().and_then(|k| old.layout.segment(*k))) else {
            return Ok(None);
        };
        // The header in front of the first part is the same in every version.
        let start = if at.number == 1 { 0 } else { a.start };
        if (at.number == 1 && a.start != HEADER_LEN as u64) || b.end - start != len {
            return Ok(None);
        }
        let part = self.store.upload_part_copy(&job.key, id, at, &old.key, &old.etag, start..b.end).await;
        let part = part.map_err(upload_gone)?;
        let records = segments.iter().map(|k| old.records[*k as usize].clone()).collect();
        Ok(Some((part, records)))
    }

    /// The stored bytes of a segment: sealed anew, or those of the old version.
    async fn seal(&self, job: &Job, k: u64, plain: &dyn Plain) -> Result<SealedPart> {
        let seg = self.params.geometry.seg_size();
        match job.plan[k as usize] {
            SegPlan::Hole => Ok(SealedPart { body: Vec::new(), records: vec![Record::Hole { written: job.generation }] }),
            SegPlan::Keep => {
                let old = job.old.as_ref().ok_or_else(|| Error::new(Kind::Bug, "nothing to keep a segment from"))?;
                let range = old.layout.segment(k).ok_or_else(|| Error::new(Kind::Bug, "a hole cannot be kept as data"))?;
                let len = range.end - range.start;
                let got = self.store.get(&old.key, crate::store::Span::Range(range), Some(&old.etag)).await?;
                if got.bytes.len() as u64 != len {
                    return fail(Kind::Corrupt, "the store returned fewer bytes than the object has");
                }
                let record = old.records[k as usize].clone();
                if let Record::Stored { root, .. } = &record {
                    let at = SegmentAt { params: &self.params, file_id: &job.file_id, k, plain: old.layout.seg_plain(k) };
                    crate::format::segment::verify_segment(&at, &got.bytes, root)?;
                }
                Ok(SealedPart { body: vec![got.bytes], records: vec![record] })
            }
            SegPlan::Fresh => {
                let range = k * seg..((k + 1) * seg).min(job.size);
                let len = range.end - range.start;
                let buffer = plain.plain(range, SegmentBuffer::new(self.params.geometry, len)).await?;
                self.seal_fresh(job, k, len, buffer).await
            }
        }
    }

    async fn seal_fresh(&self, job: &Job, k: u64, len: u64, buffer: SegmentBuffer) -> Result<SealedPart> {
        let count = self.counter.fetch_add(1, Ordering::Relaxed);
        let secret = fresh_secret(&self.env.random(), &job.file_key, &job.file_id, k, job.generation, count);
        let (params, file_id, generation) = (self.params, job.file_id, job.generation);
        let work = move || {
            let at = SegmentAt { params: &params, file_id: &file_id, k, plain: len };
            seal_buffer(at, secret, generation, buffer)
        };
        // Small pieces are not worth a hop to the pool.
        let (sealed, record) = if self.params.geometry.seg_chunks(job.size.min(self.params.geometry.seg_size())) <= 2 {
            work()?
        } else {
            tokio::task::spawn_blocking(work).await.map_err(|e| Error::with_source(Kind::Bug, "sealing stopped", e))??
        };
        Ok(SealedPart { body: vec![Bytes::from(sealed)], records: vec![record] })
    }

    /// Waits until `bytes` of sealed data may be held.
    async fn room(&self, bytes: u64) -> Result<tokio::sync::OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).clamp(1, self.memory_kib);
        let permit = self.memory.clone().acquire_many_owned(kib).await;
        permit.map_err(|_| Error::new(Kind::Interrupted, "the mount is going down"))
    }
}
