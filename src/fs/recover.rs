//! Taking over what an earlier mount of this machine left: names from its journal, contents from its spool.
//!
//! Nothing here waits for the network: names become pending, files become dirty, and both go the usual ways. What must be looked
//! up in the bucket first (whether a file still has its name) is done by a task per file.

use super::Fs;
use super::file::{File, Froze, Version};
use super::journal::{Journal, Line, Replayed};
use super::state::{DirCell, Place, State};
use crate::crypto::secmem::SecretKey;
use crate::disk::Disk;
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::format::entry::Body;
use crate::sealedlog::{ClosedLog, LogOwner};
use crate::tree::dir::{Change, Dir};
use crate::types::{DirId, FileId};
use crate::write::spool::{DestroyLogs, Found, Spool};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What was found, for the log, the audit log and status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Names that were not in the bucket yet.
    pub names: usize,
    /// Files whose contents were not in the bucket yet.
    pub files: usize,
    /// Spool logs that could not be read.
    pub unreadable: usize,
}

/// Everything that is put back before the mount serves.
pub(super) struct Left {
    pub journal: Journal,
    pub files: Vec<Arc<File>>,
    pub report: Recovered,
}

/// Reads journal and spool into `st`, and begins a new journal that holds what is pending.
pub(super) fn recover(st: &mut State, disk: &Arc<dyn Disk>, journal_owner: &LogOwner, spool: &Spool, env: &Env) -> Result<Left> {
    let (replayed, old) = Journal::replay(disk, journal_owner)?;
    let (found, unreadable) = spool.recover()?;
    for e in &unreadable {
        tracing::error!("a spool log of an earlier mount cannot be read and is kept aside: {e}");
    }
    let places = put_names(st, &replayed);
    let files = put_files(st, found, &places);
    let lines: Vec<(u64, Line)> = replayed.names.into_values().collect();
    let journal = Journal::begin(disk.clone(), journal_owner.clone(), env.clone(), &lines)?;
    old.iter().try_for_each(ClosedLog::destroy)?;
    let report = Recovered { names: lines.len(), files: files.len(), unreadable: unreadable.len() };
    Ok(Left { journal, files, report })
}

/// Makes the cell of a directory, when it is not there.
fn cell<'s>(st: &'s mut State, id: DirId, key: &SecretKey, unborn: bool) -> &'s mut DirCell {
    if unborn {
        st.unborn.insert(id);
    }
    st.dirs.entry(id).or_insert_with(|| {
        let dir = if unborn { Dir::empty(id) } else { Dir::unloaded(id) };
        DirCell::new(dir, key.clone(), None)
    })
}

/// Makes the journal's names pending again. Returns where it saw files.
fn put_names(st: &mut State, replayed: &Replayed) -> HashMap<FileId, Place> {
    let mut places = HashMap::new();
    let mut lines: Vec<&(u64, Line)> = replayed.names.values().collect();
    lines.sort_by_key(|(seq, _)| *seq);
    st.seq = st.seq.max(replayed.seq);
    for (seq, line) in lines {
        let change = Change { entry: line.entry.clone(), ..Change::default() };
        cell(st, line.dir, &line.key, line.unborn).dir.set(&line.name, *seq, change);
        let place = (line.dir, line.name.clone());
        match line.entry.as_deref().map(|e| &e.body) {
            Some(Body::File(f)) => {
                places.insert(f.file_id, place);
            }
            Some(Body::Dir { dir_id, dir_key }) => cell(st, *dir_id, dir_key, line.entry_unborn).place = Some(place),
            _ => {}
        }
    }
    places
}

/// Makes the spool's files dirty again.
fn put_files(st: &mut State, found: Vec<Found>, places: &HashMap<FileId, Place>) -> Vec<Arc<File>> {
    let mut by_file: BTreeMap<FileId, Vec<Found>> = BTreeMap::new();
    for f in found {
        by_file.entry(f.head.file_id).or_default().push(f);
    }
    let mut files = Vec::new();
    for (id, layers) in by_file {
        if let Some(file) = put_file(st, id, layers, places) {
            st.files.insert(id, file.clone());
            files.push(file);
        }
    }
    files
}

fn put_file(st: &mut State, id: FileId, layers: Vec<Found>, places: &HashMap<FileId, Place>) -> Option<Arc<File>> {
    let mut layers = layers.into_iter();
    let first = layers.next()?;
    let head = first.head;
    let place = places.get(&id).cloned().or_else(|| {
        (!head.name.is_empty()).then(|| {
            cell(st, head.dir_id, &head.dir_key, false);
            (head.dir_id, head.name.clone())
        })
    });
    let (mut layer, mut size, mut intent, mut count) = (first.layer, first.size, first.intent, head.layer + 1);
    for upper in layers {
        layer.stack(upper.layer);
        (size, count) = (upper.size, upper.head.layer + 1);
        intent = upper.intent.or(intent);
    }
    let version = head.version.map(|v| Version {
        generation: v.generation,
        trailer_hash: v.trailer_hash,
        size: v.size,
        object_len: v.object_len,
        key: v.key,
    });
    let mut file = File::new(id, head.file_key, place, version);
    let io = file.io.get_mut();
    (io.layers, io.size) = (count, size);
    io.froze = Froze { size, changes: 1, times: None };
    let bytes = layer.bytes();
    io.frozen = Some(Arc::new(layer));
    let live = file.live.get_mut();
    (live.size, live.changes, live.unsaved_bytes) = (size, 1, bytes);
    live.intent = intent.map(|(_, hash)| hash);
    Some(Arc::new(file))
}

impl Fs {
    /// Sees a recovered file through: finds its entry, then saves it the usual way.
    pub(super) async fn resume(self: Arc<Self>, file: Arc<File>) {
        let mut pause = self.opts.retry.0;
        loop {
            match self.find_entry(&file).await {
                Ok(true) => return self.save_soon(&file),
                Ok(false) => return self.discard(&file),
                Err(e) => {
                    tracing::warn!(file = ?file.id, "a file of an earlier mount has to wait: {e}");
                    self.sink.trouble(&e);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(self.opts.retry.1);
                }
            }
        }
    }

    /// Whether the file still has its name; brings its version up to what the entry says.
    async fn find_entry(&self, file: &Arc<File>) -> Result<bool> {
        let Some((dir, name)) = file.place.lock().clone() else { return Ok(false) };
        self.load_dir(dir).await?;
        let entry = {
            let st = self.state.lock();
            st.dirs.get(&dir).and_then(|c| c.dir.get(&name)).cloned()
        };
        let Some(Body::File(f)) = entry.as_ref().map(|e| &e.body) else { return Ok(false) };
        if f.file_id != file.id {
            return Ok(false);
        }
        let landed = file.live.lock().intent == Some(f.trailer_hash) && f.generation > 0;
        if landed {
            // The index was written; only the spool's log was still there.
            return Ok(false);
        }
        let mut io = file.io.write().await;
        let behind = io.version.as_ref().map_or(0, |v| v.generation) < f.generation;
        if behind && io.version.is_some() {
            return Err(Error::new(Kind::Stale, "another machine changed a file that this one has unsent data of"));
        }
        if behind && let Some(e) = &entry {
            io.version = super::io::version_of(e);
            io.object = None;
        }
        Ok(true)
    }

    /// The bucket has a recovered file's contents already, or the file is gone: its spool goes.
    fn discard(&self, file: &Arc<File>) {
        let mut st = self.state.lock();
        if file.opens.load(std::sync::atomic::Ordering::Acquire) == 0 {
            st.files.remove(&file.id);
        }
        drop(st);
        let Ok(mut io) = file.io.try_write() else { return };
        let mut live = file.live.lock();
        (live.saved, live.unborn) = (live.changes, false);
        let logs = io.frozen.take().map(|f| f.logs().to_vec()).unwrap_or_default();
        drop(DestroyLogs(logs));
    }
}
