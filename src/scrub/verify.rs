//! Every object that an entry names, whole: root, every chunk, every leaf, through the read path and its second look.
//!
//! What fails is a find only when a fresh index still names it: the file may have been replaced or removed while it was read.

use super::Scrub;
use super::report::{Find, What, sentence};
use super::walk::{Tree, join};
use crate::error::{Error, Kind, Result};
use crate::format::Failure;
use crate::format::entry::{Body, Entry, FileRef};
use crate::format::index::DirRef;
use crate::read::{Ask, CorruptReport, MAX_READ, OpenObject, Witness};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Files that were seen and are not verified yet.
const QUEUE: usize = 256;
/// Reads of one file at once.
const READS: usize = 4;
/// Versions of a file that are tried, while other machines write it.
const TRIES: usize = 4;
/// Reports on one object that are kept with their evidence.
const REPORTS_MAX: usize = 16;
/// Numbers of chunks that a find lists.
const CHUNKS_SHOWN: usize = 12;

/// A file that an entry names.
pub(super) struct FileAt {
    pub dir: DirRef,
    pub path: Arc<[u8]>,
    pub entry: Arc<Entry>,
}

/// Holds what the read path reports until it is certain that it is a find.
#[derive(Default)]
pub(super) struct Collector(Mutex<HashMap<String, Vec<CorruptReport>>>);

impl Witness for Collector {
    fn corrupt(&self, report: CorruptReport) {
        let mut all = self.0.lock();
        let of = all.entry(report.key.clone()).or_default();
        if of.len() < REPORTS_MAX {
            of.push(report);
        }
    }
}

impl Collector {
    fn take(&self, key: &str) -> Vec<CorruptReport> {
        self.0.lock().remove(key).unwrap_or_default()
    }
}

/// What reading a file gave, when its object is there and its root verifies.
struct Whole {
    object: Arc<OpenObject>,
    /// Chunks that failed, at most so many as are shown, and how many in all.
    bad: Vec<u64>,
    bad_count: u64,
    class: Option<Failure>,
}

impl Scrub {
    /// Walks from the roots and verifies what is found on the way.
    pub(super) async fn look(&self, tree: &mut Tree) -> Result<()> {
        let (out, files) = mpsc::channel::<FileAt>(QUEUE);
        let quick = self.parts.options.quick;
        let walking = async move {
            let out = (!quick).then_some(out);
            self.walk(tree, self.roots(), out.as_ref()).await?;
            self.settle(tree, out.as_ref()).await.map(drop)
        };
        let queue = stream::unfold(files, |mut files| async move { files.recv().await.map(|f| (Ok(f), files)) });
        let verifying = queue.try_for_each_concurrent(self.parts.options.jobs.max(1), |f| async move { self.verify(f).await });
        tokio::try_join!(walking, verifying).map(drop)
    }

    async fn verify(&self, at: FileAt) -> Result<()> {
        let mut entry = at.entry.clone();
        for _ in 0..TRIES {
            let Body::File(f) = &entry.body else { return Ok(()) };
            let key = f.object_key();
            let outcome = self.read_whole(f).await;
            let reports = self.collector.take(&key);
            let trouble = match &outcome {
                Ok(whole) => whole.bad_count > 0 || whole.object.generation() > f.generation,
                Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Corrupt | Kind::Stale) => true,
                Err(e) => return Err(e.duplicate()),
            };
            if !trouble {
                self.tally.file();
                return Ok(());
            }
            // Somebody may have changed it meanwhile: only what a fresh index still names is a find.
            let Some(now) = self.entry_now(&at.dir, &entry.name).await? else { return Ok(()) };
            match &now.body {
                Body::File(g) if g.file_id != f.file_id => return Ok(()),
                Body::File(g) if g.generation == f.generation && g.trailer_hash == f.trailer_hash => {
                    self.tally.file();
                    self.tell(&at, f, outcome, reports);
                    return Ok(());
                }
                Body::File(_) => entry = now.clone(),
                _ => return Ok(()),
            }
        }
        // It is written faster than it can be read: who writes it verifies it.
        Ok(())
    }

    /// The entry as the bucket has it now; `None` when it, or its directory, is gone.
    pub(super) async fn entry_now(&self, dir: &DirRef, name: &[u8]) -> Result<Option<Arc<Entry>>> {
        match self.io.load(dir.dir_id, &dir.dir_key).await {
            Ok((_, entries)) => Ok(entries.into_iter().find(|e| e.name == name)),
            // The directory was removed, or damaged since: the walk tells which.
            Err(e) if matches!(e.kind(), Kind::Corrupt | Kind::Stale) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn tell(&self, at: &FileAt, f: &FileRef, outcome: Result<Whole>, reports: Vec<CorruptReport>) {
        let key = f.object_key();
        let find = |what, detail: String| Find::new(what, &key, detail).at(&join(&at.path, &at.entry.name)).of(f.file_id);
        match outcome {
            Err(e) if e.kind() == Kind::NotFound => {
                self.parts.listener.object_missing(&key, f.file_id, f.generation);
                self.tally.find(find(What::Missing, format!("the object of generation {} is gone", f.generation)));
            }
            Err(e) => self.tally.find(find(What::of(Failure::of(&e)), sentence(&e))),
            Ok(w) if w.bad_count == 0 => {
                let detail = format!("the object has generation {}, its entry {}", w.object.generation(), f.generation);
                self.tally.find(find(What::Lagging, detail));
                self.lagging.lock().push((at.dir.clone(), at.entry.clone()));
            }
            Ok(w) => {
                let shown: Vec<String> = w.bad.iter().map(u64::to_string).collect();
                let more = if w.bad_count > w.bad.len() as u64 { ", ..." } else { "" };
                let class = w.class.map_or("chunk", Failure::name);
                let all = w.object.chunks_of(&(0..w.object.size())).end;
                let detail = format!("{} of {all} chunks do not verify ({class}): {}{more}", w.bad_count, shown.join(", "));
                self.tally.find(find(What::Corrupt, detail));
            }
        }
        reports.into_iter().for_each(|r| self.parts.listener.corrupt(r));
    }

    async fn read_whole(&self, f: &FileRef) -> Result<Whole> {
        let object = self.reader.open(&ask_of(f)).await?;
        let steps = steps_of(&object);
        let read = |(offset, len): (u64, u32)| {
            let object = &object;
            async move {
                match self.reader.read(object, offset, len).await {
                    Ok(bytes) => {
                        self.tally.read(bytes.len() as u64);
                        Ok(Vec::new())
                    }
                    Err(e) if e.kind() == Kind::Corrupt => self.each_chunk(object, offset, len).await,
                    Err(e) => Err(e),
                }
            }
        };
        let failed = stream::iter(steps).map(read).buffered(READS);
        let mut whole = Whole { object: object.clone(), bad: Vec::new(), bad_count: 0, class: None };
        futures_util::pin_mut!(failed);
        while let Some(some) = failed.try_next().await? {
            for (chunk, class) in some {
                whole.bad_count += 1;
                whole.class = whole.class.or(class);
                if whole.bad.len() < CHUNKS_SHOWN {
                    whole.bad.push(chunk);
                }
            }
        }
        Ok(whole)
    }

    /// A step failed: which of its chunks?
    async fn each_chunk(&self, object: &Arc<OpenObject>, offset: u64, len: u32) -> Result<Vec<(u64, Option<Failure>)>> {
        let size = object.geometry().chunk_size();
        let mut bad = Vec::new();
        for chunk in object.chunks_of(&object.clip(offset, len.into())) {
            match self.reader.read(object, chunk * size, size as u32).await {
                Ok(bytes) => self.tally.read(bytes.len() as u64),
                Err(e) if e.kind() == Kind::Corrupt => bad.push((chunk, Failure::of(&e))),
                Err(e) => return Err(e),
            }
        }
        Ok(bad)
    }
}

/// The reads that cover what is stored of a file: holes have no bytes to verify.
fn steps_of(object: &OpenObject) -> impl Iterator<Item = (u64, u32)> + use<> {
    let (layout, seg) = (object.layout().clone(), object.geometry().seg_size());
    let stored = (0..layout.segments()).filter(move |k| !layout.is_hole(*k)).map(move |k| k * seg);
    let size = object.size();
    stored.flat_map(move |start| {
        let end = start.saturating_add(seg).min(size);
        let step = u64::from(MAX_READ);
        (0..(end - start).div_ceil(step)).map(move |i| {
            let at = start + i * step;
            (at, step.min(end - at) as u32)
        })
    })
}

/// An error of an object as a whole, for callers that open objects themselves.
pub(super) fn not_ours(e: &Error) -> bool {
    matches!(e.kind(), Kind::Corrupt)
}

/// What an entry says of the object that it names.
pub(super) fn ask_of(f: &FileRef) -> Ask {
    Ask {
        key: f.object_key(),
        file_id: f.file_id,
        file_key: f.file_key.clone(),
        generation: f.generation,
        trailer_hash: f.trailer_hash,
        object_len: f.object_len,
    }
}
