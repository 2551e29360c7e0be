//! One file in use: its layers above the version in the bucket, and how far the bucket is behind.
//!
//! ```text
//!            write, truncate            close, fsync, unmount          object and index written
//!   clean ------------------> dirty ---------------------------> uploading ------------------> clean
//!     ^  active empty          active layer       freeze(): active becomes frozen                |
//!     |                          ^                  |  writes go to a new active layer           |
//!     |                          |                  v                                            |
//!     |                          +--- failed: the frozen layer stays, tried again with back-off  |
//!     +------------------------------------------------------------------------------------------+
//! ```
//!
//! Data that was acknowledged is in a spool log (and, after `fsync`, on the platter or in the bucket) until the index names the
//! version that holds it. An unlinked file goes through the same states, but is never uploaded.

use super::ahead::Ahead;
use super::rescue::{Beaten, Orphan};
use super::state::Place;
use crate::crypto::secmem::SecretKey;
use crate::error::{Error, Kind, Result};
use crate::format::entry::{Body, Entry};
use crate::format::names::object_key;
use crate::read::OpenObject;
use crate::types::{FileId, Hash, Time};
use crate::write::layer::{Layer, Stretch};
use crate::write::spool::{DestroyLogs, HeadVersion};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Attempts of one upload that are told from another machine's versions. An attempt older than that has failed or landed for
/// good: its condition does not hold any more.
const MAX_INTENTS: usize = 256;

/// The version in the bucket that the layers lie on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Generation, 1 or higher.
    pub generation: u64,
    /// Trailer hash.
    pub trailer_hash: Hash,
    /// Size of the plaintext in bytes.
    pub size: u64,
    /// Length of the object in bytes.
    pub object_len: u64,
    /// The object's key in the store.
    pub key: String,
}

impl Version {
    /// The entry of the file when it names this version.
    pub fn named_by(&self, entry: &Entry) -> Entry {
        let mut e = entry.clone();
        if let Body::File(f) = &mut e.body {
            (f.generation, f.trailer_hash, f.size, f.object_len) =
                (self.generation, self.trailer_hash, self.size, self.object_len);
            f.key = (self.key != object_key(&f.file_id)).then(|| self.key.clone());
        }
        e
    }

    /// The version that an open object is.
    pub fn of(o: &OpenObject) -> Version {
        Version {
            generation: o.generation(),
            trailer_hash: o.trailer_hash(),
            size: o.size(),
            object_len: o.object_len(),
            key: o.key().to_owned(),
        }
    }

    /// As the spool remembers it.
    pub fn head(&self) -> HeadVersion {
        HeadVersion {
            generation: self.generation,
            trailer_hash: self.trailer_hash,
            size: self.size,
            object_len: self.object_len,
            key: self.key.clone(),
        }
    }
}

/// State of a file at the moment its layer was frozen for an upload.
#[derive(Clone, Copy, Debug, Default)]
pub struct Froze {
    /// Size.
    pub size: u64,
    /// Count of changes.
    pub changes: u64,
    /// Time of the last write.
    pub times: Option<Time>,
}

/// Layers and version: what a read is answered from.
#[derive(Default)]
pub struct Io {
    /// The version below the layers; `None` for a file that was never uploaded.
    pub version: Option<Version>,
    /// The version, opened; `None` until first needed.
    pub object: Option<Arc<OpenObject>>,
    /// Being uploaded.
    pub frozen: Option<Arc<Layer>>,
    /// What the file was like when `frozen` was frozen.
    pub froze: Froze,
    /// Takes writes.
    pub active: Layer,
    /// Current size.
    pub size: u64,
}

impl Io {
    /// Whether reads come from the version alone.
    pub fn is_clean(&self) -> bool {
        self.active.is_clean() && self.frozen.is_none()
    }

    /// Fills `buf` from the layers; returns the ranges that must come from the version, already cut to what shows through.
    pub fn fill(&self, start: u64, buf: &mut [u8]) -> Result<Vec<Range<u64>>> {
        let all = start..start + buf.len() as u64;
        let mut want = self.active.fill(start, buf, std::slice::from_ref(&all))?;
        if let Some(frozen) = &self.frozen {
            want = frozen.fill(start, buf, &want)?;
        }
        let size = self.version.as_ref().map_or(0, |v| v.size);
        want.retain_mut(|r| {
            r.end = r.end.min(size);
            r.start < r.end
        });
        Ok(want)
    }

    /// Whether all of a range lies in the layers, so that the version is not needed.
    pub fn holds(&self, range: Range<u64>) -> bool {
        let gaps = self.active.gaps(std::slice::from_ref(&range));
        let gaps = self.frozen.as_ref().map_or(gaps.clone(), |f| f.gaps(&gaps));
        let size = self.version.as_ref().map_or(0, |v| v.size);
        gaps.iter().all(|r| r.start >= size)
    }

    /// Whether the byte at `at` (below the size) was written or lies in a hole, and up to where it is the same. Of the version,
    /// which must be open when there is one, only whole segments are holes.
    pub fn stretch(&self, at: u64) -> (bool, u64) {
        let mut end = self.size;
        for layer in std::iter::once(&self.active).chain(self.frozen.as_deref()) {
            match layer.stretch(at, end) {
                (Stretch::Data, to) => return (true, to),
                (Stretch::Zeros, to) => return (false, to),
                (Stretch::Below, to) => end = to,
            }
        }
        match &self.object {
            Some(o) if at < o.size() => {
                let seg = o.layout().geometry().seg_size();
                (!o.layout().is_hole(at / seg), end.min((at / seg + 1) * seg).min(o.size()))
            }
            _ => (false, end),
        }
    }
}

/// What can be asked without waiting.
#[derive(Default)]
pub struct Live {
    /// Current size.
    pub size: u64,
    /// mtime and ctime of the last write, when newer than the entry's.
    pub times: Option<Time>,
    /// Counts changes of the contents.
    pub changes: u64,
    /// `changes` that somebody waits for, or that were closed: uploaded even while the file is open.
    pub wanted: u64,
    /// `changes` that the bucket and the index hold.
    pub saved: u64,
    /// The file has no version in the bucket yet.
    pub unborn: bool,
    /// An upload is queued or under way.
    pub queued: bool,
    /// Uploads that failed in a row.
    pub failures: u32,
    /// The error of the last one, kept for status and for whoever waits.
    pub error: Option<Error>,
    /// Trailer hashes of the versions that attempts to upload the frozen layer may have written, also those of earlier mounts.
    pub intents: Vec<Hash>,
    /// Those of them that hold everything of the frozen layer: after a crash some of earlier mounts may not.
    pub whole: Vec<Hash>,
    /// Found after a crash, and its entry is not looked up yet: nothing is uploaded before.
    pub held: bool,
    /// How the store refused the upload for good, since the last one that landed.
    pub refused: Option<Kind>,
    /// Found after a crash: unlinked by the mount that left it.
    pub gone: bool,
    /// Found after a crash: layers that lie below another machine's version, with what they lie on and the file's size.
    pub found: Vec<(Layer, Option<Version>, u64)>,
    /// An error that close or fsync has still to report.
    pub unreported: bool,
    /// Another machine was first, and nobody was told yet.
    pub notice: bool,
    /// Its name went to another machine: see `rescue.rs`.
    pub orphan: Option<Orphan>,
    /// Contents that become files of their own.
    pub beaten: Vec<Arc<Beaten>>,
    /// Contents that cannot be put together; the spool keeps what there is.
    pub stuck: Vec<Arc<Beaten>>,
    /// Has no name any more: nothing of it needs to reach the bucket.
    pub unlinked: bool,
    /// It lost its name before any entry told of an object: one that lands now is nobody's.
    pub nameless: bool,
    /// Bytes written since the last version.
    pub unsaved_bytes: u64,
    /// Bytes of the upload under way that the store has.
    pub sent_bytes: u64,
}

impl Live {
    /// Notes that a version is about to be written.
    pub fn intends(&mut self, hash: Hash) {
        for list in [&mut self.intents, &mut self.whole] {
            if list.len() >= MAX_INTENTS {
                list.remove(0);
            }
            list.push(hash);
        }
    }

    /// No attempt is under way any more, or of any interest.
    pub fn forget_intents(&mut self) {
        self.intents.clear();
        self.whole.clear();
    }

    /// Whether the bucket is behind.
    pub fn dirty(&self) -> bool {
        self.rescuing() || !self.unlinked && (self.unborn || self.changes > self.saved)
    }

    /// Whether contents are on their way to become a file of their own.
    pub fn rescuing(&self) -> bool {
        self.orphan.is_some() || !self.beaten.is_empty()
    }

    /// Whether its name must not reach the bucket now.
    pub fn unsettled(&self) -> bool {
        self.held || self.homeless()
    }

    /// It has a name here, and another machine owns the object that it would lead to.
    pub fn homeless(&self) -> bool {
        self.orphan.as_ref().is_some_and(|o| o.named) || self.beaten.iter().any(|b| b.named)
    }
}

/// One file in use.
pub struct File {
    /// Its id.
    pub id: FileId,
    /// Its key.
    pub key: SecretKey,
    /// Layers and version. Readers share it, writers and version changes have it alone.
    pub io: tokio::sync::RwLock<Io>,
    /// Sizes, times and states that `getattr` and status ask for.
    pub live: parking_lot::Mutex<Live>,
    /// Held by whoever uploads it: one version at a time.
    pub upload: tokio::sync::Mutex<()>,
    /// Where it is now.
    pub place: parking_lot::Mutex<Option<Place>>,
    /// Open handles.
    pub opens: AtomicU32,
    /// Counts the times that another machine replaced the contents: a handle opened before must not read on.
    pub epoch: AtomicU64,
    /// Dropped with the file: the object of an upload that landed after the file was unlinked.
    pub guards: parking_lot::Mutex<Vec<crate::tree::dir::Guard>>,
    /// Parts uploaded before the file was closed.
    pub ahead: parking_lot::Mutex<Ahead>,
    /// Set when an upload finished or failed.
    pub progress: tokio::sync::Notify,
}

impl Drop for File {
    /// What an unlinked file still had in the spool nobody wants any more.
    fn drop(&mut self) {
        if !self.live.get_mut().unlinked {
            return;
        }
        let io = self.io.get_mut();
        let frozen = io.frozen.iter().flat_map(|f| f.logs().iter().cloned());
        drop(DestroyLogs(frozen.chain(io.active.logs().iter().cloned()).collect()));
    }
}

impl File {
    /// A file at a place, with the version that its entry names.
    pub fn new(id: FileId, key: SecretKey, place: Option<Place>, version: Option<Version>) -> File {
        let size = version.as_ref().map_or(0, |v| v.size);
        File {
            id,
            key,
            live: parking_lot::Mutex::new(Live { size, unborn: version.is_none(), ..Live::default() }),
            io: tokio::sync::RwLock::new(Io { version, size, ..Io::default() }),
            upload: tokio::sync::Mutex::default(),
            place: parking_lot::Mutex::new(place),
            opens: AtomicU32::new(0),
            epoch: AtomicU64::new(0),
            guards: parking_lot::Mutex::default(),
            ahead: parking_lot::Mutex::default(),
            progress: tokio::sync::Notify::new(),
        }
    }

    /// Whether nobody has it open and the bucket has all of it.
    pub fn idle(&self) -> bool {
        self.opens.load(Ordering::Acquire) == 0 && {
            let live = self.live.lock();
            !live.dirty() && !live.queued && live.stuck.is_empty()
        }
    }

    /// Notes a change of the contents.
    pub fn changed(&self, size: u64, now: Time, bytes: u64) {
        let mut live = self.live.lock();
        live.size = size;
        live.times = Some(now);
        live.changes += 1;
        live.unsaved_bytes += bytes;
    }

    /// Why the store does not take the file, where waiting does not help.
    pub fn refusal(&self) -> Option<Error> {
        let live = self.live.lock();
        live.error.as_ref().filter(|e| !crate::store::temporary(e.kind())).map(Error::duplicate)
    }

    /// Whether a handle that was opened at `epoch` may go on: `Stale` when another machine has replaced the file since.
    pub fn check_epoch(&self, epoch: u64) -> Result<()> {
        match self.epoch.load(Ordering::Acquire) == epoch {
            true => Ok(()),
            false => crate::error::fail(Kind::Stale, "another machine replaced the file; open it again"),
        }
    }

    /// An error of an earlier upload that nobody was told of.
    pub fn take_error(&self) -> Option<Error> {
        let mut live = self.live.lock();
        if std::mem::take(&mut live.notice) {
            return Some(beaten());
        }
        if !std::mem::take(&mut live.unreported) {
            return None;
        }
        live.error.as_ref().map(Error::duplicate)
    }
}

/// What a writer is told whose file another machine has changed.
pub(super) fn beaten() -> Error {
    Error::new(Kind::Stale, "another machine changed the file first; what was written here becomes a file of its own")
}
