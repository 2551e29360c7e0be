//! Uploading a large new file while it is still being written, so that close has little left to do.
//!
//! Only a file without a version in the bucket, written from its start without gaps, is uploaded ahead: whole parts, at least one
//! segment behind the end of the file. A write or truncation that touches a part makes it stale: it is uploaded again with the
//! rest. Nothing of it can be seen in the bucket before the upload is completed.
//!
//! ```text
//!   idle --first part--> started(upload id) --part done--> parts grow ... --save--> taken: the rest follows, then complete
//!                            |                                                 or given up: aborted
//!                            +-- part touched: stale, forgotten
//! ```

use super::Fs;
use super::file::{File, Io};
use super::upload::from_layer;
use crate::env::failpoint::reach;
use crate::error::Result;
use crate::format::geometry::Layout;
use crate::format::manifest::{Hints, Record};
use crate::format::segment::SegmentBuffer;
use crate::store::{Cond, Part};
use crate::types::{Hash, Time};
use crate::write::layer::Layer;
use crate::write::plan::{SegPlan, Touch};
use crate::write::upload::{Job, Plain, Started};
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// Parts of one file under way at once.
const PARTS_AT_ONCE: usize = 6;
/// A file shorter than this is not uploaded ahead: one PUT will do.
const MIN_SEGMENTS: u64 = 4;

/// How far a file is uploaded ahead.
#[derive(Default)]
pub struct Ahead {
    started: Option<(String, Started)>,
    starting: bool,
    /// Number of the last part that was begun.
    last: u32,
    flying: BTreeSet<u32>,
    /// Parts that were touched while under way.
    stale: BTreeSet<u32>,
    failed: bool,
}

impl Ahead {
    /// Whether anything of the file is on its way.
    pub fn begun(&self) -> bool {
        self.last > 0
    }
}

/// A piece of the active layer, as it was.
struct Excerpt(Arc<Layer>);

#[async_trait]
impl Plain for Excerpt {
    async fn plain(&self, range: Range<u64>, buffer: SegmentBuffer) -> Result<SegmentBuffer> {
        // The layer covers the range: nothing is left to anything below.
        from_layer(self.0.clone(), range, buffer).await.map(|(buffer, _)| buffer)
    }
}

impl Fs {
    /// The plaintext bytes of a part.
    fn part_bytes(&self, number: u32) -> Range<u64> {
        let seg = self.uploader.params.geometry.seg_size();
        let r = self.uploader.limits().body_part(number);
        r.start * seg..r.end * seg
    }

    /// Plaintext bytes of finished parts.
    fn bytes_of(&self, started: &Started) -> u64 {
        started.parts.keys().map(|n| self.part_bytes(*n)).map(|r| r.end - r.start).sum()
    }

    /// Bytes of a file that the bucket has before the file is saved.
    pub(super) fn bytes_ahead(&self, file: &File) -> u64 {
        file.ahead.lock().started.as_ref().map_or(0, |(_, started)| self.bytes_of(started))
    }

    /// What was uploaded ahead goes into the version that is being saved.
    pub(super) fn count_ahead(&self, file: &File, started: &Started) {
        file.live.lock().sent_bytes += self.bytes_of(started);
    }

    /// Called with every write, the file's layers locked: begins the next part when it is complete.
    pub(super) fn stream_ahead(&self, file: &Arc<File>, io: &Io, crowded: bool) {
        if crowded {
            return self.save_soon(file);
        }
        let seg = self.uploader.params.geometry.seg_size();
        if file.live.lock().unlinked {
            return;
        }
        if io.size < MIN_SEGMENTS * seg || io.version.is_some() || io.frozen.is_some() || !self.uploader.caps.multipart {
            return;
        }
        let mut ahead = file.ahead.lock();
        if ahead.failed || ahead.flying.len() >= PARTS_AT_ONCE {
            return;
        }
        let number = ahead.last + 1;
        let bytes = self.part_bytes(number);
        let fits = self.uploader.limits().fits(bytes.end / seg);
        if !fits || io.size < bytes.end + seg || !io.active.covers(bytes.clone()) {
            return;
        }
        // Parts count stored segments: behind a hole none can be told from its number.
        if (bytes.start / seg..bytes.end / seg).any(|k| io.active.touch(k * seg..(k + 1) * seg) != Touch::Data) {
            return;
        }
        if ahead.started.is_none() && std::mem::replace(&mut ahead.starting, true) {
            return;
        }
        ahead.last = number;
        ahead.flying.insert(number);
        drop(ahead);
        let excerpt = Excerpt(Arc::new(io.active.excerpt(bytes)));
        let Some(fs) = self.arc() else { return };
        let file = file.clone();
        self.rt.spawn(async move {
            let done = fs.part_ahead(&file, number, &excerpt).await;
            fs.note_part(&file, number, done);
        });
    }

    async fn part_ahead(&self, file: &Arc<File>, number: u32, plain: &Excerpt) -> Result<(Part, Vec<Record>)> {
        let begun = file.ahead.lock().started.as_ref().map(|(key, s)| (key.clone(), s.id.clone()));
        let (key, id) = match begun {
            Some(b) => b,
            None => {
                let key = self.first_key(file);
                let id = self.store.upload_start(&key).await?;
                reach("upload-ahead-begun");
                if let Err(e) = plain.0.note_upload(&self.spool, &key, &id) {
                    self.uploader.abort(&key, &id).await;
                    return Err(e);
                }
                let started = Started { id: id.clone(), parts: BTreeMap::new() };
                file.ahead.lock().started = Some((key.clone(), started));
                (key, id)
            }
        };
        let geometry = self.uploader.params.geometry;
        let segments: Vec<u64> = self.uploader.limits().body_part(number).collect();
        let count = segments.last().map_or(0, |k| k + 1);
        let size = count * geometry.seg_size();
        let job = Job {
            file_id: file.id,
            file_key: file.key.clone(),
            generation: 1,
            previous: Hash::ZERO,
            key,
            cond: Cond::Any,
            size,
            hints: Hints {
                mtime: Time::default(),
                ctime: Time::default(),
                mode: 0,
                dir_id: crate::types::DirId([0; 16]),
                name: Vec::new(),
            },
            plan: vec![SegPlan::Fresh; count as usize],
            old: None,
            started: None,
        };
        let layout = Layout::new(geometry, size, Vec::new());
        self.uploader.part(&job, &layout, &id, number, &segments, plain).await
    }

    fn note_part(&self, file: &File, number: u32, done: Result<(Part, Vec<Record>)>) {
        let sent = self.part_bytes(number);
        let mut ahead = file.ahead.lock();
        ahead.flying.remove(&number);
        ahead.starting = false;
        let stale = ahead.stale.remove(&number);
        match done {
            Ok(part) if !stale => {
                if let Some((_, s)) = &mut ahead.started {
                    s.parts.insert(number, part);
                }
                self.sent_bytes.fetch_add(sent.end - sent.start, std::sync::atomic::Ordering::Relaxed);
            }
            Ok(_) => {}
            Err(e) => {
                // The save that follows uploads what is missing, and tells who waits when it cannot.
                tracing::debug!(file = ?file.id, "a part was not uploaded ahead: {e}");
                ahead.failed = true;
            }
        }
        drop(ahead);
        file.progress.notify_waiters();
    }

    /// A write to, or truncation of, bytes that are uploaded already: their parts go again.
    pub(super) fn touch_ahead(&self, file: &File, bytes: Range<u64>) {
        let mut ahead = file.ahead.lock();
        if ahead.last == 0 {
            return;
        }
        let touched: Vec<u32> = (1..=ahead.last)
            .rev()
            .take_while(|n| self.part_bytes(*n).end > bytes.start)
            .filter(|n| self.part_bytes(*n).start < bytes.end)
            .collect();
        for n in touched {
            if ahead.flying.contains(&n) {
                ahead.stale.insert(n);
            }
            if let Some((_, s)) = &mut ahead.started {
                s.parts.remove(&n);
            }
        }
    }

    /// Ends uploading ahead, when the last part under way is done, and gives what there is: key, upload, parts.
    pub(super) async fn take_ahead(&self, file: &File) -> Option<(String, Started)> {
        loop {
            let bell = file.progress.notified();
            {
                let mut ahead = file.ahead.lock();
                // No new part begins: the file has a frozen layer, or a version.
                if ahead.flying.is_empty() {
                    return std::mem::take(&mut *ahead).started;
                }
            }
            let _ = tokio::time::timeout(std::time::Duration::from_millis(200), bell).await;
        }
    }

    /// Drops an upload that was begun ahead and is of no use.
    pub(super) async fn give_up_ahead(&self, file: &File) {
        if let Some((key, started)) = self.take_ahead(file).await {
            self.uploader.abort(&key, &started.id).await;
        }
    }
}
