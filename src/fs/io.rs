//! Files: open, read, write, truncate, flush, fsync, release.

use super::file::{File, Io, Version};
use super::state::{CONTROL_BIT, DirCell, State};
use super::{Fs, FsyncMode, Handle};
use crate::error::{Error, Kind, Result, fail};
use crate::format::entry::{Body, Entry};
use crate::format::failure::Failure;
use crate::ops::{Ino, Opened};
use crate::read::{Ask, OpenObject};
use crate::types::DirId;
use crate::write::spool::Head;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A read that finds its version replaced looks for the new one this often.
const CHASES: usize = 16;
/// Versions that stay open for a while after their files are closed.
pub(super) const RECENT: std::num::NonZeroUsize = std::num::NonZeroUsize::MIN.saturating_add(255);
/// Segments of a version that stays open; what is known of each takes about 150 bytes.
const RECENT_SEGMENTS: u64 = 512;
/// How long a write waits for room in a full spool.
const ROOM_PATIENCE: Duration = Duration::from_secs(15);
/// Extents of one layer in memory; a file written in more pieces is uploaded early.
pub(super) const MAX_EXTENTS: usize = 400_000;

impl Fs {
    pub(super) fn new_handle(&self, handle: Handle) -> u64 {
        let fh = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles.lock().insert(fh, Arc::new(handle));
        fh
    }

    pub(super) fn handle(&self, fh: u64) -> Result<Arc<Handle>> {
        self.handles.lock().get(&fh).cloned().ok_or_else(|| Error::new(Kind::Stale, "the file is not open"))
    }

    /// The file in use behind an inode, made when it is the first use.
    pub(super) fn file_of(&self, st: &mut State, ino: Ino) -> Result<Arc<File>> {
        let e = st.entry(ino)?;
        let Body::File(f) = &e.body else {
            return match e.body {
                Body::Dir { .. } => fail(Kind::IsDir, "is a directory"),
                Body::Link(_) => Err(super::links::dangling()),
                _ => fail(Kind::Invalid, "not a regular file"),
            };
        };
        if let Some(file) = st.files.get(&f.file_id).cloned() {
            let placed = st.nodes.get(&ino).is_some_and(|n| n.place.is_some());
            let (outcast, busy, stuck) = {
                let live = file.live.lock();
                (live.unlinked, live.rescuing(), !live.stuck.is_empty())
            };
            match placed && outcast {
                false => return Ok(file),
                // Another machine took its name and put it back, or gave it another one: what is opened now is a file like any other.
                true if !busy => st.stuck.extend(stuck.then_some(file)),
                true => {
                    return fail(Kind::Stale, "another machine changed the file's name; what was written here is being saved");
                }
            }
        }
        let (place, lost) = st.nodes.get(&ino).map_or((None, false), |n| (n.place.clone(), n.lost));
        let unlinked = place.is_none();
        if lost || unlinked && version_of(&e).is_none() {
            // Replaced between the kernel's lookup and its open, with nothing of it uploaded: the kernel looks the name up again.
            return fail(Kind::Stale, "the file was replaced");
        }
        let version = version_of(&e);
        let later = |v: &&Version| version.as_ref().is_some_and(|known| known.generation < v.generation);
        let version = st.unnamed.peek(&f.file_id).filter(later).cloned().or(version);
        let file = Arc::new(File::new(f.file_id, f.file_key.clone(), place, version));
        file.live.lock().unlinked = unlinked;
        st.files.insert(f.file_id, file.clone());
        Ok(file)
    }

    fn opened(&self, st: &mut State, ino: Ino, file: &Arc<File>, flags: i32) -> Opened {
        file.opens.fetch_add(1, Ordering::AcqRel);
        let mut keep_cache = true;
        if let Some(n) = st.nodes.get_mut(&ino) {
            n.opens += 1;
            keep_cache = !std::mem::take(&mut n.stale_pages);
        }
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let handle = Handle::File {
            file: file.clone(),
            read: parking_lot::Mutex::new(None),
            append: flags & libc::O_APPEND != 0,
            writes,
            epoch: file.epoch.load(Ordering::Acquire),
        };
        // The kernel's pages stay, unless another machine has changed the file since it was opened last: the kernel is told then,
        // and may not have heard yet.
        Opened { fh: self.new_handle(handle), keep_cache, direct_io: false }
    }

    pub(super) async fn do_open(&self, ino: Ino, flags: i32) -> Result<Opened> {
        self.own(ino)?;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        if writes || flags & libc::O_TRUNC != 0 {
            self.writable()?;
        }
        self.fresh_file(ino).await;
        self.wait_for_rescue(ino).await;
        let (file, opened) = {
            let mut st = self.state.lock();
            let nameless = st.nodes.get(&ino).is_some_and(|n| n.place.is_none() && n.opens == 0);
            if nameless && (writes || flags & libc::O_TRUNC != 0) {
                // Gone between the kernel's lookup and its open: what would be written to it now nobody would ever see.
                return fail(Kind::Stale, "the name was removed while it was being opened");
            }
            let file = self.file_of(&mut st, ino)?;
            let opened = self.opened(&mut st, ino, &file, flags);
            (file, opened)
        };
        let ready = if flags & libc::O_TRUNC != 0 {
            self.truncate(ino, 0).await
        } else if !writes {
            // A file that fails verification fails to open, rather than at some later read; unless it is being written anew.
            let whole = {
                let io = file.io.read().await;
                !io.is_clean() && io.holds(0..io.size)
            };
            if whole { Ok(()) } else { self.base(&file).await.map(|_| ()) }
        } else {
            Ok(())
        };
        if let Err(e) = ready {
            self.do_release(ino, opened.fh).await?;
            return Err(e);
        }
        Ok(opened)
    }

    pub(super) fn open_created(&self, ino: Ino, file: &Arc<File>, flags: i32) -> Opened {
        let mut st = self.state.lock();
        self.opened(&mut st, ino, file, flags)
    }

    /// The version below a file's layers, opened and verified; `None` when there is none. No lock is held while the store works.
    pub(super) async fn base(&self, file: &Arc<File>) -> Result<Option<Arc<OpenObject>>> {
        for _ in 0..CHASES {
            let version = {
                let io = file.io.read().await;
                match (&io.version, &io.object) {
                    (None, _) => return Ok(None),
                    (_, Some(o)) => return Ok(Some(o.clone())),
                    (Some(v), None) => v.clone(),
                }
            };
            let object = self.open_version(file, &version).await?;
            let mut io = file.io.write().await;
            if io.version.as_ref() != Some(&version) {
                // An upload of ours was faster, or another machine's version was taken over.
                continue;
            }
            // The bucket may be one version ahead of the index: whoever wrote it stopped in between.
            if object.generation() > version.generation {
                if !io.is_clean() && !file.live.lock().intents.contains(&object.trailer_hash()) {
                    self.beat(file, &mut io, object.clone());
                    self.save_soon(file);
                    return Ok(Some(object));
                }
                io.version = Some(Version::of(&object));
                if io.is_clean() {
                    self.note_lag(file, &Version::of(&object));
                    io.size = object.size();
                    file.live.lock().size = object.size();
                }
            }
            io.object = Some(object.clone());
            return Ok(Some(object));
        }
        fail(Kind::Stale, "the file keeps being replaced")
    }

    async fn open_version(&self, file: &Arc<File>, version: &Version) -> Result<Arc<OpenObject>> {
        // Taken out: one that turns out to be replaced in the store is not found here again.
        if let Some(o) = self.recent.lock().pop(&file.id).filter(|o| o.trailer_hash() == version.trailer_hash) {
            return Ok(o);
        }
        let ask = Ask {
            key: version.key.clone(),
            file_id: file.id,
            file_key: file.key.clone(),
            generation: version.generation,
            trailer_hash: version.trailer_hash,
            object_len: version.object_len,
        };
        let stale = || Error::new(Kind::Stale, "the file was removed or replaced by another machine");
        match self.within(self.reader.try_open(&ask)).await {
            Err(e) if e.kind() == Kind::NotFound => {
                if !self.is_named(file, version).await? {
                    return Err(stale());
                }
                self.sink.object_missing(&version.key, file.id, version.generation);
                Err(Failure::Omission.error("an object that the index names is gone from the bucket"))
            }
            // With readable keys another file may have taken the key since.
            Ok(Err(report)) => match self.is_named(file, version).await? {
                true => Err(self.reader.refuse(*report)),
                false => Err(stale()),
            },
            done => done?.map_err(|report| self.reader.refuse(*report)),
        }
    }

    /// Whether a file still is at this version when the bucket's indexes are read again. If not, another machine removed or
    /// replaced it, and what is not as expected about its object says nothing.
    async fn is_named(&self, file: &Arc<File>, version: &Version) -> Result<bool> {
        let Some((dir, _)) = file.place.lock().clone() else { return Ok(false) };
        // Renamed here: the bucket may name it elsewhere.
        let others: Vec<DirId> = {
            let st = self.state.lock();
            let named = |(d, c): &(&DirId, &DirCell)| **d != dir && !c.dead && c.dir.names_in_bucket(file.id);
            st.dirs.iter().filter(named).map(|(d, _)| *d).collect()
        };
        for id in std::iter::once(dir).chain(others) {
            self.reload(id).await?;
        }
        let st = self.state.lock();
        let place = file.place.lock().clone();
        // A name that the bucket does not have may have been there, and gone with the object.
        let named = |c: &&DirCell| c.dir.names_in_bucket(file.id);
        let shown = place.and_then(|(d, n)| version_of(st.dirs.get(&d).filter(named)?.dir.get(&n)?));
        Ok(!file.live.lock().rescuing() && shown.as_ref() == Some(version))
    }

    /// Whether any index in the bucket named a file when it was read last: if none does, another machine may have taken its names
    /// and its object away, and given a readable key to something else.
    pub(super) fn bucket_names(&self, file: &File) -> bool {
        self.state.lock().dirs.values().any(|c| !c.dead && c.dir.names_in_bucket(file.id))
    }

    /// The object is not the one that was opened, and no upload of ours explains it: the next look opens and verifies what is
    /// there now. Handles that were open keep out of it when it is another version.
    async fn look_again(&self, file: &Arc<File>, old: &Arc<OpenObject>) -> Result<()> {
        {
            let mut io = file.io.write().await;
            match &io.object {
                Some(o) if Arc::ptr_eq(o, old) => io.object = None,
                _ => return Ok(()),
            }
        }
        let new = self.base(file).await?;
        if new.is_none_or(|n| n.trailer_hash() != old.trailer_hash()) {
            file.epoch.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }

    pub(super) async fn do_read(&self, fh: u64, offset: u64, size: u32) -> Result<Bytes> {
        let handle = self.handle(fh)?;
        let Handle::File { file, read, epoch, .. } = &*handle else { return fail(Kind::IsDir, "is a directory") };
        let mut last = None;
        for _ in 0..CHASES {
            file.check_epoch(*epoch)?;
            let before = file.io.read().await.object.clone();
            match self.read_once(file, read, offset, size).await {
                Err(e) if e.kind() == Kind::Interrupted => last = Some(e),
                // The version was replaced under the read: by our own upload, which is about to say so, or by another machine.
                Err(e) if e.kind() == Kind::Stale => {
                    *read.lock() = None;
                    let settled = file.upload.lock().await;
                    drop(settled);
                    if let Some(old) = before {
                        self.look_again(file, &old).await?;
                    }
                    last = Some(e);
                }
                done => return done,
            }
        }
        Err(last.unwrap_or_else(|| Error::new(Kind::Stale, "the file keeps changing")))
    }

    async fn read_once(
        &self,
        file: &Arc<File>,
        read: &parking_lot::Mutex<Option<Arc<crate::read::Handle>>>,
        offset: u64,
        size: u32,
    ) -> Result<Bytes> {
        {
            // Before the version is asked for: it may be damaged, or the store away.
            let io = file.io.read().await;
            let end = offset.saturating_add(u64::from(size)).min(io.size);
            if !io.is_clean() && offset < end && io.holds(offset..end) {
                let mut buf = vec![0; (end - offset) as usize];
                io.fill(offset, &mut buf)?;
                return Ok(Bytes::from(buf));
            }
        }
        let base = self.base(file).await?;
        let io = file.io.read().await;
        let same = match (&base, &io.object) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, _) => io.version.is_none(),
            (Some(_), None) => false,
        };
        if !same {
            // An upload landed in between: layers and version must be of one moment.
            return fail(Kind::Interrupted, "the file was saved meanwhile");
        }
        if offset >= io.size {
            return Ok(Bytes::new());
        }
        let len = u64::from(size).min(io.size - offset);
        let stream = base.map(|o| reading(read, &self.reader, &o));
        if io.is_clean() {
            return match stream {
                Some(s) => s.read(offset, len as u32).await,
                None => Ok(Bytes::from(vec![0; len as usize])),
            };
        }
        let mut buf = vec![0; len as usize];
        let want = io.fill(offset, &mut buf)?;
        for r in want {
            let Some(s) = &stream else { break };
            let bytes = s.read(r.start, (r.end - r.start) as u32).await?;
            if bytes.len() as u64 != r.end - r.start {
                return fail(Kind::Corrupt, "the stored file is shorter than it must be");
            }
            let at = (r.start - offset) as usize;
            buf[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(Bytes::from(buf))
    }

    /// A read that memory can answer: clean file, chunks in the cache.
    pub(super) fn try_read(&self, ino: Ino, fh: u64, offset: u64, size: u32) -> Option<Result<Bytes>> {
        if ino & CONTROL_BIT != 0 {
            return None;
        }
        let handle = self.handles.lock().get(&fh).cloned()?;
        let Handle::File { file, read, epoch, .. } = &*handle else { return None };
        if file.epoch.load(Ordering::Acquire) != *epoch {
            return None;
        }
        let io = file.io.try_read().ok()?;
        if !io.is_clean() {
            return None;
        }
        if offset >= io.size {
            return Some(Ok(Bytes::new()));
        }
        let object = io.object.as_ref()?;
        let len = u64::from(size).min(io.size - offset);
        reading(read, &self.reader, object).read_now(offset, len as u32).filter(|r| r.is_ok())
    }

    pub(super) async fn do_write(&self, fh: u64, offset: u64, data: &[u8]) -> Result<u32> {
        let handle = self.handle(fh)?;
        let Handle::File { file, append, writes: true, epoch, .. } = &*handle else {
            return fail(Kind::BadHandle, "the file is not open for writing");
        };
        self.write_file(file, offset, data, (*append, *epoch)).await
    }

    pub(super) async fn write_file(&self, file: &Arc<File>, offset: u64, data: &[u8], how: (bool, u64)) -> Result<u32> {
        // Within the deadline of the request: who waits longer hears EIO, and not what is wrong.
        let patience = ROOM_PATIENCE.min(self.opts.deadline);
        let until = Instant::now() + patience;
        loop {
            match self.write_once(file, offset, data, how).await {
                // A full spool is given the chance that a running upload frees some of it.
                Err(e) if e.kind() == Kind::NoSpace && Instant::now() < until && self.uploading() => {
                    let _ = tokio::time::timeout(patience / 4, self.spool.bell().notified()).await;
                }
                done => return done,
            }
        }
    }

    async fn write_once(&self, file: &Arc<File>, offset: u64, data: &[u8], (append, epoch): (bool, u64)) -> Result<u32> {
        let mut io = file.io.write().await;
        file.check_epoch(epoch)?;
        let at = if append { io.size } else { offset };
        let end = at.checked_add(data.len() as u64).filter(|e| *e <= self.uploader.params.geometry.max_size());
        let Some(end) = end else { return fail(Kind::TooLarge, "the file would be larger than the volume can hold") };
        self.writable()?;
        if end > io.size && self.stored_at_most(&io) + data.len() as u64 > self.largest() {
            // Told now: an upload that the store refuses for ever would be told too late.
            return fail(Kind::TooLarge, "the store holds no object with so much data");
        }
        let head = self.head_of(file, &io);
        let io = &mut *io;
        let (done, result) = io.active.write(&self.spool, head, at, data);
        if done > 0 {
            self.touch_ahead(file, at..at + done);
            io.size = io.size.max(at + done);
            file.changed(io.size, self.env.clock.now(), done);
        }
        let crowded = io.active.extents() > MAX_EXTENTS;
        match result {
            Err(e) if done == 0 => return Err(e),
            // A short write: the caller comes back with the rest and gets the error then.
            Err(_) => return Ok(done as u32),
            Ok(()) => {}
        }
        debug_assert!(data.is_empty() || end == at + done);
        self.stream_ahead(file, io, crowded);
        Ok(done as u32)
    }

    /// Bytes that the object of a file can hold in this store, holes not counted.
    fn largest(&self) -> u64 {
        self.uploader.limits().max_stored().saturating_mul(self.uploader.params.geometry.seg_size())
    }

    /// No less than the next version of a file stores, as long as programs write whole segments.
    fn stored_at_most(&self, io: &Io) -> u64 {
        let frozen = io.frozen.as_ref().map_or(0, |f| f.bytes());
        io.version.as_ref().map_or(0, |v| v.object_len) + frozen + io.active.bytes()
    }

    /// What a new spool log of a file is to remember; `None` when its active layer has a log already.
    pub(super) fn head_of(&self, file: &File, io: &Io) -> Option<Head> {
        if !io.active.logs().is_empty() {
            return None;
        }
        let place = file.place.lock().clone();
        let (dir_id, name) = place.unwrap_or((DirId([0; 16]), Vec::new()));
        let dir_key = self.state.lock().dirs.get(&dir_id).map(|c| c.key.clone()).unwrap_or_else(|| file.key.clone());
        Some(Head {
            file_id: file.id,
            file_key: file.key.clone(),
            dir_id,
            dir_key,
            name,
            layer: 0,
            size: io.size,
            version: io.version.as_ref().map(Version::head),
        })
    }

    /// Sets the size of a file.
    pub(super) async fn truncate(&self, ino: Ino, size: u64) -> Result<()> {
        self.writable()?;
        if size > self.uploader.params.geometry.max_size() {
            return fail(Kind::TooLarge, "the file would be larger than the volume can hold");
        }
        let file = {
            let mut st = self.state.lock();
            let file = self.file_of(&mut st, ino)?;
            // In use for as long as this takes: nobody may retire it and make another one of the same file.
            file.opens.fetch_add(1, Ordering::AcqRel);
            file
        };
        let done = self.resize(&file, size).await;
        if file.opens.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.save_soon(&file);
            self.retire(&mut self.state.lock(), &file);
        }
        done
    }

    async fn resize(&self, file: &Arc<File>, size: u64) -> Result<()> {
        let mut io = file.io.write().await;
        if io.size != size {
            self.resize_locked(file, &mut io, size)?;
        }
        Ok(())
    }

    /// The file's size becomes `size`, which it is not yet.
    pub(super) fn resize_locked(&self, file: &File, io: &mut Io, size: u64) -> Result<()> {
        let head = self.head_of(file, io);
        io.active.resize(&self.spool, head, size)?;
        self.touch_ahead(file, size..u64::MAX);
        io.size = size;
        file.changed(size, self.env.clock.now(), 0);
        Ok(())
    }

    /// A descriptor was closed. The upload starts with the last one (see `do_release`): a child that inherits a descriptor and
    /// closes it at exec must not send half a file.
    pub(super) async fn do_flush(&self, fh: u64) -> Result<()> {
        let handle = self.handle(fh)?;
        let Handle::File { file, writes, .. } = &*handle else { return Ok(()) };
        if !writes {
            return Ok(());
        }
        if let Some(e) = file.take_error() {
            return Err(e);
        }
        Ok(())
    }

    pub(super) async fn do_fsync(self: &Arc<Self>, fh: u64) -> Result<()> {
        let handle = self.handle(fh)?;
        let Handle::File { file, .. } = &*handle else { return Ok(()) };
        self.fsync_file(file).await
    }

    async fn fsync_file(self: &Arc<Self>, file: &Arc<File>) -> Result<()> {
        if let Some(e) = file.take_error() {
            return Err(e);
        }
        match self.opts.fsync {
            FsyncMode::Local => {
                {
                    let io = file.io.read().await;
                    io.active.sync()?;
                    io.frozen.as_ref().map_or(Ok(()), |f| f.sync())?;
                }
                self.journal.sync()
            }
            FsyncMode::Remote => {
                self.save_now(file).await?;
                let place = file.place.lock().clone();
                if let Some((dir, name)) = place {
                    self.settle(dir, Some(&name)).await?;
                }
                // Another machine may have been first with the name.
                if file.live.lock().rescuing() { self.save_now(file).await } else { file.take_error().map_or(Ok(()), Err) }
            }
        }
    }

    pub(super) async fn do_release(&self, ino: Ino, fh: u64) -> Result<()> {
        let Some(handle) = self.handles.lock().remove(&fh) else { return Ok(()) };
        let Handle::File { file, writes, .. } = &*handle else { return Ok(()) };
        let due = {
            let mut st = self.state.lock();
            file.opens.fetch_sub(1, Ordering::AcqRel);
            if let Some(n) = st.nodes.get_mut(&ino) {
                n.opens = n.opens.saturating_sub(1);
            }
            self.retire(&mut st, file);
            st.release(ino)
        };
        drop(due);
        // Whoever only read is no reason to send what somebody else is in the middle of writing.
        if (*writes || file.opens.load(Ordering::Acquire) == 0) && file.live.lock().dirty() {
            self.save_soon(file);
        }
        Ok(())
    }

    /// Forgets a file that nobody uses and that has nothing unsent.
    pub(super) fn retire(&self, st: &mut State, file: &Arc<File>) {
        if !file.idle() {
            return;
        }
        // The entry takes the times of writes that changed nothing.
        if st.files.get(&file.id).is_none_or(|f| !Arc::ptr_eq(f, file)) {
            return;
        }
        st.files.remove(&file.id);
        if file.live.lock().unlinked {
            return;
        }
        let object = file.io.try_read().ok().and_then(|io| io.object.clone());
        // One that failed is looked at anew the next time: somebody may have repaired it.
        if let Some(o) = object.filter(|o| o.is_sound() && o.layout().segments() <= RECENT_SEGMENTS) {
            self.recent.lock().put(file.id, o);
        }
    }
}

/// The version that an entry names.
pub(super) fn version_of(e: &Entry) -> Option<Version> {
    match &e.body {
        Body::File(f) if f.generation > 0 => Some(Version {
            generation: f.generation,
            trailer_hash: f.trailer_hash,
            size: f.size,
            object_len: f.object_len,
            key: f.object_key(),
        }),
        _ => None,
    }
}

/// The read handle of an open file on a version: the one it has, or a new one when the version is another.
fn reading(
    slot: &parking_lot::Mutex<Option<Arc<crate::read::Handle>>>,
    reader: &crate::read::Reader,
    object: &Arc<OpenObject>,
) -> Arc<crate::read::Handle> {
    let mut slot = slot.lock();
    match &*slot {
        Some(h) if Arc::ptr_eq(h.object(), object) => h.clone(),
        _ => {
            let h = Arc::new(crate::read::Handle::new(reader, object.clone()));
            *slot = Some(h.clone());
            h
        }
    }
}
