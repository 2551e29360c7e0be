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
use crate::store::UploadId;
use crate::tree::dir::{Change, Dir, MoveToken};
use crate::types::{DirId, FileId, Hash};
use crate::write::spool::{DestroyLogs, Found, Head, Spool};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What was found, for the log, the audit log and status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Names that were not in the bucket yet.
    pub names: usize,
    /// Files whose contents were not in the bucket yet.
    pub files: usize,
    /// Logs of journal and spool of which a part was damaged; what lies before the damage was taken over.
    pub damaged: usize,
    /// Logs that could not be read at all and were left where they are.
    pub unreadable: usize,
}

/// Everything that is put back before the mount serves.
pub(super) struct Left {
    pub journal: Journal,
    pub files: Vec<Arc<File>>,
    pub report: Recovered,
    /// Multipart uploads that nobody will finish.
    pub uploads: Vec<(String, UploadId)>,
    /// What is lost.
    pub losses: Vec<Error>,
}

/// Reads journal and spool into `st`, and begins a new journal that holds what is pending.
pub(super) fn recover(st: &mut State, disk: &Arc<dyn Disk>, journal_owner: &LogOwner, spool: &Spool, env: &Env) -> Result<Left> {
    let (mut replayed, old) = Journal::replay(disk, journal_owner)?;
    let (mut found, unreadable) = spool.recover()?;
    let mut damaged = std::mem::take(&mut replayed.damaged);
    damaged.extend(found.iter_mut().filter_map(|f| f.damage.take()));
    let unreadable: Vec<Error> = std::mem::take(&mut replayed.unreadable).into_iter().chain(unreadable).collect();
    for e in &damaged {
        tracing::error!("data that was never made durable is lost: {e}");
    }
    for e in &unreadable {
        tracing::error!("a log of an earlier mount cannot be read and is left where it is: {e}");
    }
    let uploads = found.iter_mut().flat_map(|f| std::mem::take(&mut f.uploads)).collect();
    let places = put_names(st, &replayed);
    let mut files = put_files(st, found, &places, spool);
    files.extend(put_empty_files(st, &replayed));
    let lines: Vec<(u64, Line)> = replayed.names.into_values().collect();
    let journal = Journal::begin(disk.clone(), journal_owner.clone(), env.clone(), &lines)?;
    old.iter().try_for_each(ClosedLog::destroy)?;
    let report = Recovered { names: lines.len(), files: files.len(), damaged: damaged.len(), unreadable: unreadable.len() };
    let losses = damaged.into_iter().chain(unreadable).collect();
    Ok(Left { journal, files, report, uploads, losses })
}

/// Makes the cell of a directory, when it is not there.
fn cell<'s>(st: &'s mut State, id: DirId, key: &SecretKey) -> &'s mut DirCell {
    let unborn = st.unborn.contains(&id);
    st.dirs.entry(id).or_insert_with(|| {
        let dir = if unborn { Dir::presumed(id) } else { Dir::unloaded(id) };
        DirCell::new(dir, key.clone(), None)
    })
}

/// Arrivals that a removal of an earlier mount waits for at most.
const WAITED_FOR: usize = 256;

/// A name that something which the bucket holds already may have been moved to.
type Arrival<'a> = (u64, (&'a DirId, &'a [u8]), Arc<MoveToken>);

/// The journal does not say which removal belongs to which new name (a file can have moved on): a removal waits for every such name
/// that was given with it or later, so that what was moved has a name in the bucket all the time, also now.
fn arrivals<'a>(lines: &[&'a (u64, Line)], unborn: &BTreeSet<DirId>) -> Vec<Arrival<'a>> {
    let settled = |line: &Line| match line.entry.as_deref().map(|e| &e.body) {
        Some(Body::File(f)) => f.generation > 0,
        Some(Body::Dir { dir_id, .. }) => !unborn.contains(dir_id),
        Some(_) => true,
        None => false,
    };
    let all = lines.iter().filter(|(_, line)| settled(line));
    all.map(|(seq, line)| (*seq, (&line.dir, &line.name[..]), Arc::default())).collect()
}

/// Makes the journal's names pending again. Returns where it saw files.
fn put_names(st: &mut State, replayed: &Replayed) -> HashMap<FileId, Place> {
    let mut places = HashMap::new();
    let mut lines: Vec<&(u64, Line)> = replayed.names.values().collect();
    lines.sort_by_key(|(seq, _)| *seq);
    st.seq = st.seq.max(replayed.seq);
    st.unborn.extend(&replayed.unborn);
    let tokens = arrivals(&lines, &replayed.unborn);
    for (seq, line) in lines {
        let at = tokens.partition_point(|(s, ..)| s < seq);
        let mut change = Change { entry: line.entry.clone(), ..Change::default() };
        match line.entry {
            Some(_) => {
                let here = tokens[at..]
                    .iter()
                    .take_while(|(s, ..)| s == seq)
                    .filter(|(_, place, _)| *place == (&line.dir, &line.name[..]));
                change.carry.extend(here.map(|(.., token)| token.clone()));
            }
            None => change.wait.extend(tokens[at..].iter().take(WAITED_FOR).map(|(.., token)| token.clone())),
        }
        cell(st, line.dir, &line.key).dir.set(&line.name, *seq, change);
        let place = (line.dir, line.name.clone());
        match line.entry.as_deref().map(|e| &e.body) {
            Some(Body::File(f)) => {
                places.insert(f.file_id, place);
            }
            Some(Body::Dir { dir_id, dir_key }) => cell(st, *dir_id, dir_key).place = Some(place),
            _ => {}
        }
    }
    places
}

/// Makes the spool's files dirty again.
fn put_files(st: &mut State, found: Vec<Found>, places: &HashMap<FileId, Place>, spool: &Spool) -> Vec<Arc<File>> {
    let mut by_file: BTreeMap<FileId, Vec<Found>> = BTreeMap::new();
    for f in found {
        by_file.entry(f.head.file_id).or_default().push(f);
    }
    let mut files = Vec::new();
    for (id, layers) in by_file {
        if let Some(file) = put_file(st, id, layers, places, spool) {
            st.files.insert(id, file.clone());
            files.push(file);
        }
    }
    files
}

/// Makes files dirty that have a name and neither an object nor anything in the spool: nothing was ever written to them.
fn put_empty_files(st: &mut State, replayed: &Replayed) -> Vec<Arc<File>> {
    let mut files = Vec::new();
    for (place, (_, line)) in &replayed.names {
        let Some(Body::File(f)) = line.entry.as_deref().map(|e| &e.body) else { continue };
        if f.generation == 0 && !st.files.contains_key(&f.file_id) {
            let file = Arc::new(File::new(f.file_id, f.file_key.clone(), Some(place.clone()), None));
            st.files.insert(f.file_id, file.clone());
            files.push(file);
        }
    }
    files
}

fn put_file(st: &mut State, id: FileId, layers: Vec<Found>, places: &HashMap<FileId, Place>, spool: &Spool) -> Option<Arc<File>> {
    let mut layers = layers.into_iter();
    let Found { head, mut layer, mut size, mut intents, .. } = layers.next()?;
    let place = places.get(&id).cloned().or_else(|| {
        (!head.name.is_empty()).then(|| {
            cell(st, head.dir_id, &head.dir_key);
            (head.dir_id, head.name.clone())
        })
    });
    // Versions that were about to be written from the topmost layer with data hold everything; those of lower ones do not.
    let mut whole = intents.clone();
    for upper in layers {
        if !upper.layer.is_clean() {
            whole.clear();
        }
        whole.extend(&upper.intents);
        intents.extend(upper.intents);
        size = if upper.layer.is_clean() { size } else { upper.size };
        layer.stack(upper.layer);
    }
    if let Err(e) = layer.annex(spool, &Head { size, ..head.clone() }) {
        tracing::warn!("the spool has no room for a note on a recovered file: {e}");
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
    io.size = size;
    io.froze = Froze { size, changes: 1, times: None };
    let bytes = layer.bytes();
    io.frozen = Some(Arc::new(layer));
    let live = file.live.get_mut();
    (live.size, live.changes, live.unsaved_bytes) = (size, 1, bytes);
    (live.intents, live.whole, live.held) = (intents, whole, true);
    Some(Arc::new(file))
}

impl Fs {
    /// Sees a recovered file through: finds its entry, then saves it the usual way.
    pub(super) async fn resume(self: Arc<Self>, file: Arc<File>) {
        let mut pause = self.opts.retry.0;
        loop {
            match self.find_entry(&file).await {
                Ok(true) => {
                    file.live.lock().held = false;
                    return self.save_soon(&file);
                }
                Ok(false) => return self.discard(&file).await,
                Err(e) => {
                    tracing::warn!(file = ?file.id, "a file of an earlier mount has to wait: {e}");
                    self.sink.trouble(&e);
                    file.live.lock().error = Some(e);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(self.opts.retry.1);
                }
            }
        }
    }

    /// Whether the file still has its name; brings its version up to what the entry says.
    async fn find_entry(&self, file: &Arc<File>) -> Result<bool> {
        let entry = loop {
            let Some((dir, name)) = file.place.lock().clone() else { return Ok(false) };
            self.load_dir(dir).await?;
            let st = self.state.lock();
            // It may have been renamed while the directory was being read.
            if file.place.lock().as_ref() == Some(&(dir, name.clone())) {
                break st.dirs.get(&dir).and_then(|c| c.dir.get(&name)).cloned();
            }
        };
        let Some(Body::File(f)) = entry.as_ref().map(|e| &e.body) else { return Ok(false) };
        if f.file_id != file.id {
            return Ok(false);
        }
        let (ours, whole) = {
            let live = file.live.lock();
            let names = |hashes: &[Hash]| f.generation > 0 && hashes.contains(&f.trailer_hash);
            (names(&live.intents), names(&live.whole))
        };
        let mut io = file.io.write().await;
        let below = io.version.as_ref().map_or(0, |v| v.generation);
        if whole && below < f.generation {
            // The index was written; only the spool's log was still there.
            io.version = entry.as_ref().and_then(|e| super::io::version_of(e));
            io.object = None;
            return Ok(false);
        }
        if below < f.generation && below > 0 && !ours {
            return Err(Error::new(Kind::Stale, "another machine changed a file that this one has unsent data of"));
        }
        if below < f.generation
            && let Some(e) = &entry
        {
            io.version = super::io::version_of(e);
            io.object = None;
        }
        Ok(true)
    }

    /// The bucket has a recovered file's contents already, or the file is gone: its spool goes.
    async fn discard(&self, file: &Arc<File>) {
        let logs = {
            let mut io = file.io.write().await;
            let mut live = file.live.lock();
            if live.unlinked && file.opens.load(Ordering::Acquire) > 0 {
                // Unlinked meanwhile, and somebody still reads it: the last handle takes the spool along.
                return;
            }
            (live.saved, live.unborn, live.held) = (io.froze.changes, false, false);
            let logs = io.frozen.take().map(|f| f.logs().to_vec()).unwrap_or_default();
            if let Some(v) = io.version.as_ref().map(Version::head)
                && let Err(e) = io.active.rebase(&self.spool, &v)
            {
                tracing::warn!("the spool could not note a version: {e}");
            }
            logs
        };
        drop(DestroyLogs(logs));
        // What was written since the mount began lies on the version that is there.
        self.save_soon(file);
        self.retire(&mut self.state.lock(), file);
    }
}
