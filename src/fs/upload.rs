//! Saving files: from layers to a version in the bucket, and from there to the index.
//!
//! One task per file that is behind, bounded by `upload_slots`. A failed upload is tried again with growing pauses for as long
//! as the mount lives; its data stays in the spool. Whoever waits (fsync, unmount) is told.

use super::attr::with_times;
use super::file::{File, Froze, Io, Version};
use super::landed::Landed;
use super::moves::apart;
use super::rescue::Orphan;
use super::state::State;
use super::{Doomed, Fs};
use crate::env::failpoint::reach;
use crate::error::{Error, Kind, Result, fail};
use crate::format::entry::Entry;
use crate::format::header::Header;
use crate::format::manifest::Hints;
use crate::format::names::{object_key, readable_key};
use crate::format::segment::SegmentBuffer;
use crate::read::{Ask, ObjectParts, OpenObject, Reader};
use crate::store::{Cond, ETag, Span, UploadId, temporary};
use crate::tree::dir::{Change, Guard};
use crate::types::{DirId, FileId, Hash, Mode, Time};
use crate::write::layer::Layer;
use crate::write::plan::{Old, SegPlan, segments};
use crate::write::upload::{Job, OldObject, Plain, Started, Watch, Written};
use async_trait::async_trait;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Longest single read of the old version.
const READ_STEP: u64 = 1 << 20;

/// Plaintext of the next version: the frozen layer over the old version over zeros.
struct Source {
    layer: Arc<Layer>,
    old: Option<Arc<OpenObject>>,
    reader: Reader,
}

#[async_trait]
impl Plain for Source {
    async fn plain(&self, range: Range<u64>, buffer: SegmentBuffer) -> Result<SegmentBuffer> {
        let (mut buffer, gaps) = from_layer(self.layer.clone(), range.clone(), buffer).await?;
        let Some(old) = &self.old else { return Ok(buffer) };
        for gap in gaps {
            let (mut at, end) = (gap.start, gap.end.min(old.size()));
            while at < end {
                let step = (end - at).min(READ_STEP);
                let bytes = self.reader.read(old, at, step as u32).await?;
                if bytes.is_empty() {
                    return fail(Kind::Corrupt, "the stored file is shorter than it must be");
                }
                buffer.put((at - range.start) as usize, &bytes)?;
                at += bytes.len() as u64;
            }
        }
        Ok(buffer)
    }
}

/// Puts what a layer has of a range into `buffer`; returns what is left to what lies below.
pub(super) async fn from_layer(
    layer: Arc<Layer>,
    range: Range<u64>,
    mut buffer: SegmentBuffer,
) -> Result<(SegmentBuffer, Vec<Range<u64>>)> {
    let work = move || {
        let start = range.start;
        let gaps = layer.visit(std::slice::from_ref(&range), |at, bytes| buffer.put((at - start) as usize, bytes))?;
        Ok::<_, Error>((buffer, gaps))
    };
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::with_source(Kind::Bug, "reading the spool stopped", e))?
}

/// Keeps count of an upload, and of what a later mount must know of it.
struct Observer<'a> {
    fs: &'a Fs,
    file: &'a File,
    layer: &'a Layer,
}

impl Watch for Observer<'_> {
    fn began(&self, key: &str, id: &UploadId) -> Result<()> {
        self.layer.note_upload(&self.fs.spool, key, id)
    }

    fn intend(&self, generation: u64, hash: &Hash) -> Result<()> {
        self.file.live.lock().intends(*hash);
        self.layer.intend(&self.fs.spool, generation, &hash.0)
    }

    fn sent(&self, bytes: u64) {
        self.file.live.lock().sent_bytes += bytes;
        self.fs.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.file.progress.notify_waiters();
    }
}

/// How an attempt to save ended.
enum Saved {
    /// The bucket and the index (soon) have it.
    Yes,
    /// The key was taken by something else: try again with another.
    KeyTaken,
    /// Another machine was first.
    Beaten,
}

impl Fs {
    /// Queues a file that is behind.
    pub(super) fn save_soon(&self, file: &Arc<File>) {
        {
            let mut live = file.live.lock();
            live.wanted = live.changes;
            if live.queued || live.held || !live.dirty() || self.opts.read_only {
                return;
            }
            live.queued = true;
        }
        if let Some(fs) = self.arc() {
            let file = file.clone();
            self.rt.spawn(async move { fs.save_loop(file).await });
        }
    }

    /// Saves a file and waits. `Unavailable` when the store does not take it within the deadline: the upload goes on.
    pub(super) async fn save_now(&self, file: &Arc<File>) -> Result<()> {
        let target = file.live.lock().changes;
        let mut moved = (Instant::now(), 0);
        loop {
            let bell = file.progress.notified();
            {
                let mut live = file.live.lock();
                if std::mem::take(&mut live.notice) {
                    return Err(super::file::beaten());
                }
                if !live.rescuing() && (live.unlinked || (!live.unborn && live.saved >= target)) {
                    return Ok(());
                }
                let stuck = live.error.as_ref().filter(|e| !temporary(e.kind()) || moved.0.elapsed() > self.opts.deadline);
                if let Some(e) = stuck {
                    let e = e.duplicate();
                    live.unreported = false;
                    return Err(e);
                }
                if live.sent_bytes != moved.1 {
                    moved = (Instant::now(), live.sent_bytes);
                }
            }
            self.save_soon(file);
            let _ = tokio::time::timeout(Duration::from_millis(500), bell).await;
        }
    }

    async fn save_loop(self: Arc<Self>, file: Arc<File>) {
        let mut pause = self.opts.retry.0;
        loop {
            let result = match self.upload_slots.acquire().await {
                Ok(_slot) => self.save(&file).await,
                Err(_) => return,
            };
            let failed = self.note_result(&file, result);
            file.progress.notify_waiters();
            self.uploaded.notify_waiters();
            if failed {
                let jitter = f64::from(u32::from_be_bytes(self.env.random())) / f64::from(u32::MAX);
                let wait = pause.mul_f64(0.5 + jitter / 2.0);
                pause = (pause * 2).min(self.opts.retry.1);
                let hurry = if self.hurry.load(Ordering::Acquire) { wait.min(self.opts.retry.0) } else { wait };
                let _ = tokio::time::timeout(hurry, self.kick_uploads.notified()).await;
                continue;
            }
            let mut st = self.state.lock();
            let mut live = file.live.lock();
            if live.rescuing() || live.dirty() && (file.opens.load(Ordering::Acquire) == 0 || live.wanted > live.saved) {
                continue;
            }
            live.queued = false;
            drop(live);
            self.retire(&mut st, &file);
            return;
        }
    }

    /// Keeps the outcome where waiters and status see it. Returns whether to try again.
    fn note_result(&self, file: &File, result: Result<()>) -> bool {
        let mut live = file.live.lock();
        live.sent_bytes = 0;
        match result {
            Ok(()) => {
                live.failures = 0;
                live.error = None;
                live.refused = None;
                live.unreported = false;
                false
            }
            Err(e) => {
                tracing::warn!(file = ?file.id, "upload failed, will be tried again: {e}");
                live.failures += 1;
                // Tried again and refused again is no news.
                if !temporary(e.kind()) && live.refused != Some(e.kind()) {
                    (live.refused, live.unreported) = (Some(e.kind()), true);
                }
                self.sink.trouble(&e);
                live.error = Some(e);
                !live.unlinked
            }
        }
    }

    /// One attempt to save what a file has now.
    async fn save(&self, file: &Arc<File>) -> Result<()> {
        let _turn = file.upload.lock().await;
        self.keep_beaten(file).await?;
        if file.live.lock().unlinked {
            self.give_up_ahead(file).await;
            return Ok(());
        }
        let old = self.base(file).await;
        if old.as_ref().is_err_and(|e| e.kind() == Kind::Stale) && !self.orphan_if_nameless(file) {
            self.rehome_if_whole(file).await;
        }
        if file.live.lock().rescuing() {
            return self.keep_beaten(file).await;
        }
        let Some((layer, froze)) = self.freeze(file).await else {
            self.give_up_ahead(file).await;
            return Ok(());
        };
        let (old, lost) = match old {
            Err(e) if e.kind() == Kind::Corrupt => (None, Some(self.replaceable(file, &layer, froze, e).await?)),
            old => (old?, None),
        };
        let mut readable = true;
        loop {
            match self.save_version(file, &layer, froze, old.clone(), lost.as_ref(), readable).await? {
                Saved::Yes => return Ok(()),
                Saved::KeyTaken => readable = false,
                Saved::Beaten => {
                    drop((layer, old));
                    return self.keep_beaten(file).await;
                }
            }
        }
    }

    /// The old version is damaged: a file that was written anew from end to end replaces it all the same, for that is how a
    /// person repairs it. Gives what the new version must follow and replace; else the error.
    async fn replaceable(&self, file: &File, layer: &Layer, froze: Froze, damage: Error) -> Result<(Version, Cond)> {
        let version = file.io.read().await.version.clone();
        let hidden = layer.limit() == 0 || layer.covers(0..froze.size.max(version.as_ref().map_or(0, |v| v.size)));
        let Some(version) = version.filter(|_| hidden) else { return Err(damage) };
        let cond = match self.store.head(&version.key).await {
            Ok(meta) if self.uploader.caps.put_if_match => Cond::Match(meta.etag),
            Err(e) if e.kind() == Kind::NotFound && self.uploader.caps.put_if_absent => Cond::Absent,
            Err(e) if e.kind() != Kind::NotFound => return Err(e),
            _ => Cond::Any,
        };
        Ok((version, cond))
    }

    /// Takes the active layer out of the way of new writes. `None` when there is nothing to save.
    async fn freeze(&self, file: &Arc<File>) -> Option<(Arc<Layer>, Froze)> {
        let mut io = file.io.write().await;
        let mut live = file.live.lock();
        if live.unlinked {
            return None;
        }
        if io.frozen.is_none() {
            if io.active.is_clean() && io.version.is_some() {
                live.saved = live.changes;
                return None;
            }
            io.frozen = Some(Arc::new(std::mem::take(&mut io.active)));
            io.froze = Froze { size: io.size, changes: live.changes, times: live.times };
            reach("layer-frozen");
        }
        io.frozen.clone().map(|f| (f, io.froze))
    }

    /// What is known of a file's place, for hints and the readable key.
    fn hints(&self, file: &File, froze: Froze) -> (Hints, Option<String>) {
        let st = self.state.lock();
        let place = file.place.lock().clone();
        let now = self.env.clock.now();
        let entry = place.as_ref().and_then(|(d, n)| st.dirs.get(d)?.dir.get(n).cloned());
        let a = entry.as_ref().map(|e| with_times(e.attributes, froze.times)).unwrap_or_default();
        let key = match (&self.mode, &place) {
            (Mode::Standard, Some(p)) => st.path(p).and_then(|path| readable_key(path.split(|b| *b == b'/'))),
            _ => None,
        };
        let key = key.filter(|key: &String| !self.doomed.lock().contains_key(key));
        let (dir_id, name) = place.unwrap_or((DirId([0; 16]), Vec::new()));
        let time = |t: Time| if t == Time::default() { now } else { t };
        (Hints { mtime: time(a.mtime), ctime: time(a.ctime), mode: a.mode, dir_id, name }, key)
    }

    async fn save_version(
        &self,
        file: &Arc<File>,
        layer: &Arc<Layer>,
        froze: Froze,
        old: Option<Arc<OpenObject>>,
        lost: Option<&(Version, Cond)>,
        readable: bool,
    ) -> Result<Saved> {
        let (hints, path_key) = self.hints(file, froze);
        let plan = self.plan(layer, froze.size, old.as_deref());
        let ahead = self.usable_ahead(file, &plan, old.is_none() && lost.is_none()).await;
        let key = match (&old, &ahead) {
            (Some(o), _) => o.key().to_owned(),
            (None, _) if lost.is_some() => lost.map_or_else(String::new, |(v, _)| v.key.clone()),
            (None, Some((key, _))) => key.clone(),
            (None, None) => path_key.filter(|_| readable).unwrap_or_else(|| object_key(&file.id)),
        };
        let below = old.as_ref().map(|o| (o.generation(), o.trailer_hash()));
        let below = below.or(lost.map(|(v, _)| (v.generation, v.trailer_hash)));
        let generation = below.map_or(1, |(g, _)| g + 1);
        let cond = match lost {
            Some((_, cond)) => Ok(cond.clone()),
            None => self.condition(old.as_deref(), &key).await,
        };
        let cond = match cond {
            Ok(cond) => cond,
            Err(e) => {
                if let Some((key, started)) = &ahead {
                    self.uploader.abort(key, &started.id).await;
                }
                // A look beforehand finds what the store would have found.
                return if e.kind() == Kind::Stale { self.after_stale(file, froze, &key, generation, e).await } else { Err(e) };
            }
        };
        let job = Job {
            file_id: file.id,
            file_key: file.key.clone(),
            generation,
            previous: below.map_or(Hash::ZERO, |(_, hash)| hash),
            key: key.clone(),
            cond,
            size: froze.size,
            hints,
            plan,
            old: old.as_ref().map(|o| OldObject {
                key: o.key().to_owned(),
                etag: o.etag().clone(),
                layout: o.layout().clone(),
                records: o.records().into(),
            }),
            started: ahead.map(|(_, s)| s),
        };
        let source = Source { layer: layer.clone(), old: old.clone(), reader: self.reader.clone() };
        let watch = Observer { fs: self, file, layer };
        match self.uploader.write(job, &source, &watch).await {
            Ok(written) => self.landed(file, froze, written).await.map(|()| Saved::Yes),
            Err(e) if e.kind() == Kind::Stale => self.after_stale(file, froze, &key, generation, e).await,
            // A path that is longer than the store's keys.
            Err(e) if e.kind() == Kind::NameTooLong && generation == 1 && key != object_key(&file.id) => Ok(Saved::KeyTaken),
            Err(e) => Err(e),
        }
    }

    /// What was uploaded ahead, when this version can go on from it.
    async fn usable_ahead(&self, file: &File, plan: &[SegPlan], first: bool) -> Option<(String, Started)> {
        let (key, mut started) = self.take_ahead(file).await?;
        // Up to the first hole, segments and stored segments have the same numbers.
        let fresh = plan.iter().take_while(|s| **s == SegPlan::Fresh).count() as u64;
        started.parts.retain(|n, _| self.uploader.limits().body_part(*n).end <= fresh);
        if first && !started.parts.is_empty() {
            self.count_ahead(file, &started);
            return Some((key, started));
        }
        self.uploader.abort(&key, &started.id).await;
        None
    }

    /// The key of a file's first version.
    pub(super) fn first_key(&self, file: &File) -> String {
        let path_key = self.hints(file, Froze::default()).1;
        path_key.unwrap_or_else(|| object_key(&file.id))
    }

    fn plan(&self, layer: &Layer, size: u64, old: Option<&OpenObject>) -> Vec<SegPlan> {
        let seg = self.uploader.params.geometry.seg_size();
        let below = Old { size: old.map_or(0, |o| o.size()), visible: layer.limit() };
        segments(size, seg, below, |k| old.is_none_or(|o| o.layout().is_hole(k)), |r| layer.touch(r))
    }

    /// What the store must hold for the write to go through; without conditions, a look beforehand.
    pub(super) async fn condition(&self, old: Option<&OpenObject>, key: &str) -> Result<Cond> {
        let caps = &self.uploader.caps;
        let (cond, honoured) = match old {
            Some(o) => (Cond::Match(o.etag().clone()), caps.put_if_match),
            None => (Cond::Absent, caps.put_if_absent),
        };
        if honoured {
            return Ok(cond);
        }
        self.uploader.look_before(key, &cond).await.map(|()| Cond::Any)
    }

    /// The condition failed: either an earlier try of ours did land, or the key is somebody else's, or another machine was first.
    async fn after_stale(&self, file: &Arc<File>, froze: Froze, key: &str, generation: u64, error: Error) -> Result<Saved> {
        if generation == 1 && self.mode == Mode::Standard && !self.holds_file(key, file.id).await? {
            return Ok(Saved::KeyTaken);
        }
        let ask = Ask {
            key: key.to_owned(),
            file_id: file.id,
            file_key: file.key.clone(),
            generation: 0,
            trailer_hash: Hash::ZERO,
            object_len: 0,
        };
        // Gone, or another file has taken the readable key: then the name is another one's as well.
        let report = match self.within(self.reader.try_open(&ask)).await {
            Ok(Ok(there)) => return self.after_beaten(file, froze, there, generation == 1).await,
            Ok(Err(report)) => Some(report),
            Err(e) if e.kind() == Kind::NotFound => None,
            Err(e) => return Err(e),
        };
        self.name_again(file).await?;
        match report {
            _ if self.orphan_if_nameless(file) => Ok(Saved::Beaten),
            Some(report) if self.bucket_names(file) => Err(self.reader.refuse(*report)),
            _ if generation > 1 && self.rehome_if_whole(file).await => Ok(Saved::Beaten),
            _ => Err(error),
        }
    }

    /// The store holds this version of the file where one before it was expected.
    async fn after_beaten(&self, file: &Arc<File>, froze: Froze, there: Arc<OpenObject>, first: bool) -> Result<Saved> {
        let (ours, whole) = {
            let (live, hash) = (file.live.lock(), there.trailer_hash());
            (live.intents.contains(&hash), live.whole.contains(&hash))
        };
        if whole {
            self.settled(file, froze, there).await?;
            return Ok(Saved::Yes);
        }
        let mut io = file.io.write().await;
        if io.version.as_ref().is_some_and(|v| v.trailer_hash == there.trailer_hash()) {
            // The same version under a new tag: somebody copied the object, or put it back.
            io.object = Some(there);
            return fail(Kind::Unavailable, "the object of the file has another tag; it is tried again with that one");
        }
        if first && io.frozen.as_ref().is_some_and(|l| l.is_clean()) {
            // Only the name was known here, after a power loss, and nothing was written since: the version is the file.
            if io.active.is_clean() {
                io.size = there.size();
                file.live.lock().size = there.size();
            }
            drop(io);
            self.settled(file, froze, there).await?;
            return Ok(Saved::Yes);
        }
        if first || ours {
            // An earlier try whose answer was lost, or one of an earlier mount with what it had then: go on from there.
            io.version = Some(Version::of(&there));
            io.object = Some(there);
            return fail(Kind::Unavailable, "an earlier upload of the file did land; it is being replaced");
        }
        self.beat(file, &mut io, there);
        Ok(Saved::Beaten)
    }

    /// Whether the object at a readable key is one of the file. That it is another's is no reason for alarm: a file keeps its key
    /// when it is renamed, and people may have put anything there.
    async fn holds_file(&self, key: &str, file_id: FileId) -> Result<bool> {
        match self.lies_at(key, file_id).await? {
            Some(ours) => Ok(ours),
            // It went away meanwhile: the next try finds the key free.
            None => fail(Kind::Unavailable, "the object in the way of an upload was just removed"),
        }
    }

    /// Whether what lies at a key is the file's; `None` when nothing does.
    pub(super) async fn lies_at(&self, key: &str, file_id: FileId) -> Result<Option<bool>> {
        Ok(self.within(self.owner_of(key, file_id)).await?.map(|(ours, _)| ours))
    }

    /// The same, with the tag of what lies there.
    pub(super) async fn owner_of(&self, key: &str, file_id: FileId) -> Result<Option<(bool, ETag)>> {
        let header = Header { params: self.uploader.params, file_id }.encode();
        match self.store.get(key, Span::Range(0..header.len() as u64), None).await {
            Ok(got) => Ok(Some((got.bytes[..] == header[..], got.meta.etag))),
            Err(e) if e.kind() == Kind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    async fn landed(&self, file: &Arc<File>, froze: Froze, w: Written) -> Result<()> {
        let object = OpenObject::from_written(ObjectParts {
            key: w.key,
            etag: w.meta.etag,
            file_id: file.id,
            file_key: file.key.clone(),
            params: self.uploader.params,
            generation: w.generation,
            trailer_hash: w.root.trailer_hash,
            layout: w.root.layout,
            records: w.manifest.records,
        })?;
        self.settled(file, froze, Arc::new(object)).await
    }

    /// The bucket has a version: it becomes what the layers lie on, and the index is told.
    async fn settled(&self, file: &Arc<File>, froze: Froze, object: Arc<OpenObject>) -> Result<()> {
        let version = Version::of(&object);
        loop {
            let place = file.place.lock().clone();
            if let Some((dir, _)) = place {
                // The entry must be in sight; after a failure here the next try finds the version landed.
                self.load_dir(dir).await?;
            }
            // Another machine may take an old name away, and the object with it: the layers are needed until then.
            self.settle_moves(file).await?;
            let mut io = file.io.write().await;
            let mut st = self.state.lock();
            let here = file.place.lock().as_ref().map(|p| p.0);
            if !apart(&mut st, file.id, here).is_empty() {
                continue;
            }
            let due = self.land(&mut st, file, &mut io, froze, (&version, object));
            drop(st);
            drop(io);
            drop(due);
            self.sink.saved(file.id, version.generation);
            return Ok(());
        }
    }

    fn land(&self, st: &mut State, file: &Arc<File>, io: &mut Io, froze: Froze, now: (&Version, Arc<OpenObject>)) -> Vec<Guard> {
        let (version, object) = now;
        let guard = Landed::new(io.frozen.take(), &io.active);
        io.version = Some(version.clone());
        io.object = Some(object);
        {
            let mut live = file.live.lock();
            live.unsaved_bytes = io.active.bytes();
            live.forget_intents();
        }
        // Before the index can name the version: a later mount must know that it is ours.
        if let Err(e) = io.active.rebase(&self.spool, &version.head()) {
            tracing::warn!("the spool could not note a version: {e}");
        }
        reach("version-noted");
        let due = self.point_entry(st, file, froze, version, guard);
        // Not a moment before the entry is pending: whoever waits for both would see neither.
        let mut live = file.live.lock();
        (live.saved, live.unborn) = (froze.changes, false);
        due
    }

    /// Makes the entry of a file name its new version. The spool's logs go when the index has it.
    fn point_entry(&self, st: &mut State, file: &Arc<File>, froze: Froze, v: &Version, guard: Landed) -> Vec<Guard> {
        guard.layer.iter().for_each(|layer| st.landing.put(file.id, layer));
        let place = file.place.lock().clone();
        let entry = place.as_ref().and_then(|(d, n)| st.dirs.get(d)?.dir.get(n).cloned());
        let ours = |e: &Arc<Entry>| e.file_id() == Some(file.id);
        let (Some((dir, name)), Some(entry)) = (place, entry.filter(ours)) else {
            if file.live.lock().unlinked {
                // While it was on its way: nothing will ever name the object, but who has the file open still reads it. An older
                // version is what the index may still name: it goes with that.
                if file.live.lock().nameless {
                    file.guards.lock().push(Box::new(Doomed::object(self, file.id, v.key.clone())));
                }
                return vec![Box::new(guard)];
            }
            // Renamed or removed by another machine, which may delete the object any moment.
            st.unnamed.put(file.id, v.clone());
            let (dir, entry) = self.entry_for(st, file);
            self.orphan_file(file, Orphan { dir, entry, landed: vec![guard], named: false });
            return Vec::new();
        };
        let mut e = v.named_by(&entry);
        {
            let mut live = file.live.lock();
            // A setattr after the write knows better; a write after the freeze keeps its own times for the next version.
            e.attributes = with_times(e.attributes, live.times.filter(|_| live.times == froze.times));
            if live.times == froze.times {
                live.times = None;
            }
        }
        let entry = Arc::new(e);
        if let Err(e) = self.journal_only(st, &[(dir, name.clone(), Some(entry.clone()))]) {
            // The spool's log still tells a later mount what to do.
            tracing::warn!("the journal could not note an upload: {e}");
        }
        let change = Change { entry: Some(entry), after: vec![Box::new(guard)], ..Change::default() };
        self.apply_journalled(st, vec![(dir, name, change)])
    }
}
