//! Contents that lost their place to another machine become a file of their own.
//!
//! ```text
//!   both wrote one file, the other was first ---- beat() ----+
//!                                                            +--> beaten --save--> new object --> new entry
//!   written to here, removed or replaced there -- orphan ----+      |
//!                                                                   +--> incomplete: a part cannot be had, and is zeros
//! ```
//!
//! The new file is the whole of what this machine saw: its layers over the version below them. That version's object may be gone
//! or replaced, so a part that no layer holds comes from the chunk caches, or from the winner's object where the winner kept the
//! very same sealed segment. Nothing of the file's spool goes before the index names the copy.

use super::conflict::{ConflictKind, renamed};
use super::file::{File, Io, Version};
use super::landed::{Landed, note_gone};
use super::state::{Place, State};
use super::{Fs, Noted};
use crate::crypto::secmem::SecretKey;
use crate::error::{Error, Kind, Result, fail};
use crate::format::entry::{Body, Entry, FileRef, link_id};
use crate::format::failure::Failure;
use crate::format::manifest::Hints;
use crate::format::names::{object_key, readable_key};
use crate::format::segment::SegmentBuffer;
use crate::ops::Invalidate;
use crate::read::{Ask, OpenObject, Reader};
use crate::store::UploadId;
use crate::tree::dir::Change;
use crate::tree::merge::same;
use crate::types::{DirId, FileId, Hash, Mode, Time};
use crate::write::layer::Layer;
use crate::write::plan::{SegPlan, Touch};
use crate::write::spool::{DestroyLogs, SpoolLog};
use crate::write::upload::{Job, Plain, Watch, Written};
use async_trait::async_trait;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Longest single read of a version below.
const READ_STEP: u64 = 1 << 20;

/// A file whose name another machine took away while this one had written to it.
pub struct Orphan {
    pub(super) dir: DirId,
    pub(super) entry: Arc<Entry>,
    /// Versions of this machine that the index did not name yet, oldest first.
    pub(super) landed: Vec<Landed>,
    /// This machine has a name for it, to which it renamed it.
    pub(super) named: bool,
}

/// Contents on their way to become a file of their own.
#[derive(Clone)]
pub struct Beaten {
    kind: ConflictKind,
    /// See [`Orphan::named`].
    pub(super) named: bool,
    dir: DirId,
    entry: Arc<Entry>,
    /// The uppermost first.
    layers: Vec<Arc<Layer>>,
    logs: Vec<Arc<SpoolLog>>,
    /// What the layers lie on; its object is open where it could be had.
    version: Option<Version>,
    below: Option<Arc<OpenObject>>,
    winner: Option<Arc<OpenObject>>,
    size: u64,
    times: Option<Time>,
}

impl Beaten {
    /// Layers that a crash left, and whose file has another version now.
    pub(super) fn found(dir: DirId, entry: Arc<Entry>, layer: Layer, version: Option<Version>, size: u64) -> Beaten {
        let logs = layer.logs().to_vec();
        let (kind, layers) = (ConflictKind::Contents, vec![Arc::new(layer)]);
        Beaten { kind, named: false, dir, entry, layers, logs, version, below: None, winner: None, size, times: None }
    }

    /// Parts of what lies below cannot be had: they are zeros in the copy, and its name says so.
    fn is_incomplete(&self) -> bool {
        self.kind == ConflictKind::Incomplete
    }

    /// Where it was.
    pub(super) fn dir(&self) -> DirId {
        self.dir
    }

    /// Bytes of the version below from here on do not show.
    fn visible(&self) -> u64 {
        let cut = self.layers.iter().map(|l| l.limit()).min().unwrap_or(u64::MAX);
        cut.min(self.version.as_ref().map_or(0, |v| v.size))
    }
}

/// The plaintext of a beaten version.
struct Pieces {
    of: Arc<Beaten>,
    reader: Reader,
}

fn lost() -> Error {
    let what = "another machine replaced the file, and parts of the version that was edited here are gone from the bucket";
    Error::new(Kind::Stale, what)
}

/// Why an unmount cannot end: contents that cannot be put together.
pub(super) fn stuck() -> Error {
    Error::new(
        Kind::Stale,
        "the version of a file that was edited here was replaced by another machine and cannot be put together",
    )
}

impl Pieces {
    /// Bytes of the version below, from wherever they can be had.
    async fn below(&self, at: u64, len: u64) -> Result<bytes::Bytes> {
        let Some(below) = &self.of.below else { return Err(lost()) };
        let e = match self.reader.read(below, at, len as u32).await {
            Ok(bytes) => return Ok(bytes),
            Err(e) => e,
        };
        if !matches!(e.kind(), Kind::Stale | Kind::NotFound) {
            return Err(e);
        }
        let k = at / below.geometry().seg_size();
        let same = |w: &&Arc<OpenObject>| {
            let of = |o: &OpenObject| o.records().get(k as usize).cloned();
            of(w).is_some() && of(w) == of(below) && w.layout().seg_plain(k) == below.layout().seg_plain(k)
        };
        match self.of.winner.as_ref().filter(same) {
            Some(winner) => self.reader.read(winner, at, len as u32).await,
            None => Err(lost()),
        }
    }
}

#[async_trait]
impl Plain for Pieces {
    async fn plain(&self, range: Range<u64>, mut buffer: SegmentBuffer) -> Result<SegmentBuffer> {
        let (of, all) = (self.of.clone(), range.clone());
        let filled = tokio::task::spawn_blocking(move || {
            let mut want = vec![all.clone()];
            for layer in &of.layers {
                want = layer.visit(&want, |at, bytes| buffer.put((at - all.start) as usize, bytes))?;
            }
            Ok::<_, Error>((buffer, want))
        });
        let (mut buffer, gaps) = filled.await.map_err(|e| Error::with_source(Kind::Bug, "reading the spool stopped", e))??;
        let size = self.of.version.as_ref().map_or(0, |v| v.size);
        let seg = self.of.below.as_ref().map_or(READ_STEP, |o| o.geometry().seg_size());
        for gap in gaps {
            let (mut at, end) = (gap.start, gap.end.min(size));
            while at < end {
                let len = (end - at).min(READ_STEP).min(seg - at % seg);
                let bytes = match self.below(at, len).await {
                    Err(e) if self.of.is_incomplete() && hopeless(&e) => {
                        at += len;
                        continue;
                    }
                    bytes => bytes?,
                };
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

/// Notes what a later mount must clean up.
struct Notes<'a> {
    fs: &'a Fs,
    of: &'a Beaten,
}

impl Watch for Notes<'_> {
    fn began(&self, key: &str, id: &UploadId) -> Result<()> {
        self.of.layers.first().map_or(Ok(()), |l| l.note_upload(&self.fs.spool, key, id))
    }

    fn intend(&self, _: u64, _: &Hash) -> Result<()> {
        Ok(())
    }

    fn sent(&self, bytes: u64) {
        self.fs.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Whether trying again is of no use.
fn hopeless(e: &Error) -> bool {
    matches!(e.kind(), Kind::Stale | Kind::Corrupt | Kind::NotFound | Kind::TooLarge)
}

/// The name that this machine gave the file: it may have been renamed since, or have given way to another machine's.
fn shown(st: &State, b: &Beaten) -> Option<(DirId, Arc<Entry>)> {
    let dir = st.home(b.dir);
    let cell = st.dirs.get(&dir).filter(|c| b.named && !c.dead)?;
    let there = cell.dir.get(&b.entry.name).filter(|e| same(e, &b.entry)).cloned();
    there.map(|e| (dir, e)).or_else(|| renamed(st, &b.entry, (dir, &b.entry.name)))
}

impl Fs {
    /// Takes all layers off a file: they are no part of it any more, and who has it open must not go on.
    fn unload(&self, file: &File, io: &mut Io) -> Vec<Arc<Layer>> {
        let mut layers = Vec::new();
        if !io.active.is_clean() {
            layers.push(Arc::new(std::mem::take(&mut io.active)));
        }
        layers.extend(io.frozen.take());
        file.epoch.fetch_add(1, Ordering::AcqRel);
        layers
    }

    fn forget_pages(&self, file: &File) {
        let place = file.place.lock().clone();
        let ino = place.and_then(|p| self.state.lock().places.get(&p).copied());
        if let Some(ino) = ino {
            self.sink.invalidate(Invalidate::Inode(ino));
        }
    }

    /// Another machine wrote the file first: its version is the file, and this machine's becomes one of its own.
    pub(super) fn beat(&self, file: &File, io: &mut Io, winner: Arc<OpenObject>) {
        let (dir, entry) = self.entry_for(&self.state.lock(), file);
        let (size, version, below) = (io.size, io.version.take(), io.object.take());
        let layers = self.unload(file, io);
        let logs = layers.iter().flat_map(|l| l.logs().iter().cloned()).collect();
        (io.size, io.version, io.object) = (winner.size(), Some(Version::of(&winner)), Some(winner.clone()));
        let mut live = file.live.lock();
        let times = live.times.take();
        (live.size, live.saved, live.unborn, live.unsaved_bytes) = (winner.size(), live.changes, false, 0);
        live.forget_intents();
        live.notice = true;
        let (won, winner) = (Version::of(&winner), Some(winner));
        let (kind, named) = (ConflictKind::Contents, false);
        let beaten = Beaten { kind, named, dir, entry, layers, logs, version, below, winner, size, times };
        if live.unlinked {
            // Removed here while it was on its way: nobody wants it.
            drop(live);
            return drop(DestroyLogs(beaten.logs));
        }
        live.beaten.push(Arc::new(beaten));
        drop(live);
        self.forget_pages(file);
        let place = file.place.lock().clone();
        self.catch_entry_up(file.id, place, &won);
    }

    /// The bucket has a version that no index names, as far as this machine can see, and whoever uploaded it may never name it.
    pub(super) fn catch_entry_up(&self, id: FileId, place: Option<Place>, v: &Version) {
        let mut st = self.state.lock();
        let shown = place.and_then(|(d, n)| Some((d, st.dirs.get(&d)?.dir.get(&n)?.clone())));
        let older = |e: &Entry| matches!(&e.body, Body::File(f) if f.file_id == id && f.generation < v.generation);
        let Some((dir, entry)) = shown.filter(|(_, e)| older(e)) else { return };
        let entry = Arc::new(v.named_by(&entry));
        let name = entry.name.clone();
        let change = Change { entry: Some(entry), ..Change::default() };
        match self.apply(&mut st, vec![(dir, name, change)]) {
            Ok(due) => {
                drop(st);
                drop(due);
            }
            Err(e) => tracing::debug!("an entry could not be brought up to date: {e}"),
        }
    }

    /// The file's name is another machine's now, or gone: what it holds becomes a file of its own, and this one is no more.
    pub(super) async fn adopt_orphan(&self, file: &Arc<File>) -> Result<()> {
        if file.live.lock().orphan.is_none() {
            return Ok(());
        }
        let open = file.io.read().await.object.clone();
        let below = match open {
            Some(o) => Some(o),
            None => self.reopen(file).await?,
        };
        let mut io = file.io.write().await;
        let Some(o) = file.live.lock().orphan.take() else { return Ok(()) };
        let mut layers = self.unload(file, &mut io);
        let mut logs: Vec<_> = layers.iter().flat_map(|l| l.logs().iter().cloned()).collect();
        for mut l in o.landed.into_iter().rev() {
            layers.extend(l.layer.take());
            logs.append(&mut l.logs.0);
        }
        let (size, version) = (io.size, below.as_deref().map(Version::of).or(io.version.clone()));
        let mut live = file.live.lock();
        let times = live.times.take();
        (live.saved, live.unborn, live.unlinked, live.unsaved_bytes) = (live.changes, false, true, 0);
        live.notice = file.opens.load(Ordering::Acquire) > 0;
        let (kind, named, dir, entry) = (ConflictKind::Rescued, o.named, o.dir, o.entry);
        live.beaten.push(Arc::new(Beaten { kind, named, dir, entry, layers, logs, version, below, winner: None, size, times }));
        drop(live);
        drop(io);
        self.forget_pages(file);
        *file.place.lock() = None;
        Ok(())
    }

    /// Notes in the spool that a file was unlinked here.
    pub(super) fn note_gone(&self, file: &Arc<File>) {
        let note = |io: &Io, spool: &crate::write::spool::Spool| {
            io.frozen.iter().map(|f| &**f).chain([&io.active]).for_each(|layer| note_gone(layer, spool));
        };
        if let Ok(io) = file.io.try_read() {
            return note(&io, &self.spool);
        }
        // Somebody writes to it at this moment.
        if let Some(fs) = self.arc() {
            let file = file.clone();
            self.rt.spawn(async move {
                let io = file.io.read().await;
                note(&io, &fs.spool);
            });
        }
    }

    /// A file that is about to be replaced by its copy cannot be opened before.
    pub(super) async fn wait_for_rescue(&self, ino: crate::ops::Ino) {
        let until = tokio::time::Instant::now() + self.opts.deadline;
        loop {
            let file = {
                let st = self.state.lock();
                st.entry(ino).ok().and_then(|e| self.live_of(&st, &e)).filter(|f| {
                    let live = f.live.lock();
                    live.orphan.is_some() || live.unlinked && live.rescuing()
                })
            };
            let Some(file) = file.filter(|_| tokio::time::Instant::now() < until) else { return };
            let _ = tokio::time::timeout(std::time::Duration::from_millis(50), file.progress.notified()).await;
        }
    }

    /// Whether another machine took the file's name away, as far as this one knows. What it holds is seen to then.
    pub(super) fn orphan_if_nameless(&self, file: &Arc<File>) -> bool {
        let st = self.state.lock();
        let Some(place) = file.place.lock().clone().filter(|_| !file.live.lock().unlinked) else { return false };
        let shown = st.dirs.get(&place.0).filter(|c| c.dir.is_loaded()).map(|c| c.dir.get(&place.1));
        let named = shown.is_none_or(|e| match e.map(|e| &e.body) {
            Some(Body::File(f)) => f.file_id == file.id && !st.deleted.contains(&file.id),
            // It has got another name, and moves into the links directory any moment.
            Some(Body::Link(l)) => l.id == link_id(&file.id),
            _ => false,
        });
        if named {
            return false;
        }
        let (dir, entry) = self.entry_for(&st, file);
        self.orphan_file(file, Orphan { dir, entry, landed: Vec::new(), named: false });
        true
    }

    /// The object of a file is gone while its name stands. One that was written anew from end to end needs nothing of it: it becomes
    /// a file of its own, under that name.
    pub(super) async fn rehome_if_whole(&self, file: &Arc<File>) -> bool {
        let whole = {
            let io = file.io.read().await;
            !io.is_clean() && io.holds(0..io.size)
        };
        if whole {
            let (dir, entry) = self.entry_for(&self.state.lock(), file);
            self.orphan_file(file, Orphan { dir, entry, landed: Vec::new(), named: true });
        }
        whole
    }

    /// Looks in the bucket what has become of a file's name.
    pub(super) async fn name_again(&self, file: &File) -> Result<()> {
        let place = file.place.lock().clone();
        let left = super::moves::departing(&mut self.state.lock(), file.id);
        for (dir, _) in left.into_iter().chain(place) {
            self.reload(dir).await?;
        }
        Ok(())
    }

    /// The file's object, as long as it is this machine's version or the one below it. `None` when it is gone.
    async fn reopen(&self, file: &File) -> Result<Option<Arc<OpenObject>>> {
        let Some(version) = file.io.read().await.version.clone() else { return Ok(None) };
        let ask = Ask {
            key: version.key.clone(),
            file_id: file.id,
            file_key: file.key.clone(),
            generation: 0,
            trailer_hash: Hash::ZERO,
            object_len: 0,
        };
        match self.within(self.reader.try_open(&ask)).await {
            // Another file may have taken a readable key since.
            Ok(Err(report)) => {
                if report.stage != Failure::Identity {
                    self.reader.refuse(*report);
                }
                Ok(None)
            }
            Ok(Ok(o)) => {
                let ours = o.trailer_hash() == version.trailer_hash || file.live.lock().intents.contains(&o.trailer_hash());
                Ok(Some(o).filter(|_| ours))
            }
            Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Stale) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Uploads what was beaten, and gives it a name.
    pub(super) async fn keep_beaten(&self, file: &Arc<File>) -> Result<()> {
        self.adopt_orphan(file).await?;
        loop {
            let Some(b) = file.live.lock().beaten.first().cloned() else { return Ok(()) };
            match self.keep(&b).await {
                Ok(copy) => {
                    file.live.lock().beaten.remove(0);
                    self.tell_conflict(b.kind, Some(file.id), copy);
                }
                // A file that was only renamed here, and is gone: the removal counts.
                Err(e) if hopeless(&e) && b.layers.is_empty() => {
                    file.live.lock().beaten.remove(0);
                    drop(self.take_name_away(&b));
                }
                Err(e) if hopeless(&e) && !b.is_incomplete() => {
                    tracing::warn!("parts of a version that another machine replaced are gone; what was written is kept: {e}");
                    let kept = Beaten { kind: ConflictKind::Incomplete, ..Beaten::clone(&b) };
                    if let Some(first) = file.live.lock().beaten.first_mut() {
                        *first = Arc::new(kept);
                    }
                    drop(self.take_name_away(&b));
                }
                Err(e) if hopeless(&e) => {
                    {
                        let mut live = file.live.lock();
                        let b = live.beaten.remove(0);
                        live.stuck.push(b);
                    }
                    drop(self.take_name_away(&b));
                    self.sink.trouble(&e);
                    self.tell_conflict(ConflictKind::Stuck, Some(file.id), None);
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn take_name_away(&self, b: &Beaten) -> Vec<crate::tree::dir::Guard> {
        let mut st = self.state.lock();
        let Some((dir, e)) = shown(&st, b) else { return Vec::new() };
        st.unplace(dir, &e.name, &e);
        self.apply(&mut st, vec![(dir, e.name.clone(), Change::default())]).unwrap_or_default()
    }

    fn copy_plan(&self, b: &Beaten) -> Vec<SegPlan> {
        let seg = self.uploader.params.geometry.seg_size();
        let visible = b.visible();
        (0..b.size.div_ceil(seg))
            .map(|k| {
                let range = k * seg..((k + 1) * seg).min(b.size);
                let touched = b.layers.iter().any(|l| l.touch(range.clone()) == Touch::Data);
                let below = range.start < visible && b.below.as_ref().is_none_or(|o| !o.layout().is_hole(k));
                if touched || below { SegPlan::Fresh } else { SegPlan::Hole }
            })
            .collect()
    }

    /// The copy of a beaten version is in the bucket, and its entry pending. Gives its id.
    async fn keep(&self, b: &Arc<Beaten>) -> Result<Option<FileId>> {
        let id = FileId(self.env.random());
        let key = SecretKey::from_fn(|k| self.env.rng.fill(k));
        let (hints, path_key) = self.copy_hints(b);
        let by_id = object_key(&id);
        let mut at = path_key.unwrap_or_else(|| by_id.clone());
        let written = loop {
            match self.write_copy(b, id, &key, at.clone(), hints.clone()).await {
                // Whatever lies at the readable key stays there, or lay there a moment ago.
                Err(e) if e.kind() == Kind::Stale && at != by_id => at = by_id.clone(),
                done => break done?,
            }
        };
        self.name_copy(b, id, key, written).await.map(|()| Some(id))
    }

    async fn write_copy(&self, b: &Arc<Beaten>, id: FileId, key: &SecretKey, at: String, hints: Hints) -> Result<Written> {
        let job = Job {
            file_id: id,
            file_key: key.clone(),
            generation: 1,
            previous: Hash::ZERO,
            cond: self.condition(None, &at).await?,
            key: at,
            size: b.size,
            hints,
            plan: self.copy_plan(b),
            old: None,
            started: None,
        };
        let pieces = Pieces { of: b.clone(), reader: self.reader.clone() };
        self.uploader.write(job, &pieces, &Notes { fs: self, of: b }).await
    }

    /// The name that a copy gets now: its file's own where that is free or still its own, else a conflict name.
    fn copy_name(&self, st: &State, b: &Beaten) -> (DirId, Vec<u8>) {
        if b.dir == st.links {
            // Its names went: they lead nowhere, and another machine may give them to something else.
            let leads = |e: &&Arc<Entry>| e.link().is_some_and(|l| l.inode_name() == b.entry.name);
            let shown =
                st.dirs.iter().filter(|(_, c)| !c.dead).find_map(|(d, c)| Some((*d, c.dir.iter().find(leads)?.name.clone())));
            let (dir, name) = shown.unwrap_or_else(|| (st.root, b"recovered".to_vec()));
            let name = self.conflict_name(st, dir, &name);
            return (dir, name);
        }
        if let Some((dir, e)) = shown(st, b).filter(|_| !b.is_incomplete()) {
            return (dir, e.name.clone());
        }
        let home = st.home(b.dir);
        let dir = if st.dirs.get(&home).is_some_and(|c| !c.is_removed()) { home } else { st.root };
        let free = st.dirs.get(&dir).is_none_or(|c| c.dir.get(&b.entry.name).is_none());
        match b.kind == ConflictKind::Rescued && free {
            _ if b.is_incomplete() => (dir, self.noted_name(st, dir, &b.entry.name, ", incomplete")),
            true => (dir, b.entry.name.clone()),
            false => (dir, self.conflict_name(st, dir, &b.entry.name)),
        }
    }

    fn copy_hints(&self, b: &Beaten) -> (Hints, Option<String>) {
        let st = self.state.lock();
        let (dir_id, name) = self.copy_name(&st, b);
        let a = super::attr::with_times(b.entry.attributes, b.times);
        let path = match self.mode {
            Mode::Standard => st.path(&(dir_id, name.clone())),
            Mode::ZeroKnowledge => None,
        };
        let key = path.and_then(|p| readable_key(p.split(|c| *c == b'/'))).filter(|k| !self.doomed.lock().contains_key(k));
        (Hints { mtime: a.mtime, ctime: a.ctime, mode: a.mode, dir_id, name }, key)
    }

    async fn name_copy(&self, b: &Arc<Beaten>, file_id: FileId, file_key: SecretKey, w: Written) -> Result<()> {
        let (dir, _) = self.copy_name(&self.state.lock(), b);
        self.load_dir(dir).await?;
        let due = {
            let mut st = self.state.lock();
            let (dir, name) = self.copy_name(&st, b);
            let mut e = Entry::clone(&b.entry);
            (e.name, e.refs) = (name.clone(), Vec::new());
            e.attributes = super::attr::with_times(e.attributes, b.times);
            e.attributes.ctime = self.env.clock.now();
            e.body = Body::File(FileRef {
                file_id,
                file_key,
                generation: w.generation,
                trailer_hash: w.root.trailer_hash,
                size: b.size,
                object_len: w.root.layout.object_len(),
                key: (w.key != object_key(&file_id)).then_some(w.key),
            });
            let e = Arc::new(e);
            let line: Noted = (dir, name.clone(), Some(e.clone()));
            self.journal_only(&st, std::slice::from_ref(&line))?;
            let after: Vec<crate::tree::dir::Guard> = vec![Box::new(DestroyLogs(b.logs.clone()))];
            let due =
                self.apply_journalled(&mut st, vec![(dir, name.clone(), Change { entry: Some(e), after, ..Change::default() })]);
            if let Some(parent) = self.ino_of_dir_in_use(&st, dir) {
                self.sink.invalidate(Invalidate::Entry(parent, name));
            }
            due
        };
        drop(due);
        Ok(())
    }
}
