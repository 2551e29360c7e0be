//! Taking over what an earlier mount of this machine left: names from its journal, contents from its spool.
//!
//! Nothing here waits for the network: names become pending, files become dirty, and both go the usual ways. What must be looked
//! up in the bucket first (whether a file still has its name) is done by a task per file.

use super::Fs;
use super::file::{File, Froze, Version};
use super::journal::{Journal, Line, Replayed};
use super::rescue::Beaten;
use super::state::{DirCell, Place, State};
use crate::crypto::secmem::SecretKey;
use crate::disk::Disk;
use crate::env::Env;
use crate::env::failpoint::reach;
use crate::error::{Error, Result};
use crate::format::entry::{Body, Entry};
use crate::sealedlog::{ClosedLog, LogOwner};
use crate::store::UploadId;
use crate::tree::dir::{Change, Dir, Left as Parted, MoveToken};
use crate::types::{DirId, FileId, Hash, LinkRef};
use crate::write::spool::{DestroyLogs, Found, Head, HeadVersion, Spool};
use std::collections::{BTreeMap, HashMap, HashSet};
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
    for file in &files {
        let place = file.place.lock().clone();
        // Told now: once the names are in the bucket nobody knows any more whose doing it was that a file lost its name.
        file.live.lock().gone |= place.is_some_and(|p| taken_away(&replayed, &p, file));
    }
    files.extend(put_empty_files(st, &replayed));
    super::vanished::put_places(st, &replayed);
    let places: Vec<_> = replayed.places.into_values().collect();
    let lines: Vec<(u64, Line)> = replayed.names.into_values().collect();
    let places = if lines.is_empty() { Vec::new() } else { places };
    let journal = Journal::begin(disk.clone(), journal_owner.clone(), env.clone(), &lines, &places)?;
    reach("recovery-journalled");
    old.iter().try_for_each(ClosedLog::destroy)?;
    let report = Recovered { names: lines.len(), files: files.len(), damaged: damaged.len(), unreadable: unreadable.len() };
    let losses = damaged.into_iter().chain(unreadable).collect();
    Ok(Left { journal, files, report, uploads, losses })
}

/// Whether this machine removed the name of a file, moved it away or gave it to another one.
fn taken_away(replayed: &Replayed, place: &Place, file: &File) -> bool {
    let named = |line: &Line| line.entry.as_ref().and_then(|e| e.file_id());
    let pending = replayed.names.get(place).map(|(_, line)| named(line) != Some(file.id));
    pending.unwrap_or_else(|| replayed.removed.contains(place))
}

/// Makes the cell of a directory, when it is not there.
pub(super) fn cell<'s>(st: &'s mut State, id: DirId, key: &SecretKey) -> &'s mut DirCell {
    let unborn = st.unborn.contains(&id);
    st.dirs.entry(id).or_insert_with(|| {
        let dir = if unborn { Dir::presumed(id) } else { Dir::unloaded(id) };
        DirCell::new(dir, key.clone(), None)
    })
}

/// What tells files and directories apart.
fn id_of(e: &Entry) -> Option<[u8; 32]> {
    match &e.body {
        Body::File(f) => Some(f.file_id.0),
        Body::Dir { dir_id, .. } => {
            let mut id = [0; 32];
            id[..16].copy_from_slice(&dir_id.0);
            Some(id)
        }
        _ => None,
    }
}

/// Makes the journal's names pending again. Returns where it saw files.
fn put_names(st: &mut State, replayed: &Replayed) -> HashMap<FileId, Place> {
    let mut places = HashMap::new();
    let mut lines: Vec<&(u64, Line)> = replayed.names.values().collect();
    lines.sort_by_key(|(seq, _)| *seq);
    st.seq = st.seq.max(replayed.seq);
    st.unborn.extend(&replayed.unborn);
    let ids: HashSet<[u8; 32]> =
        lines.iter().filter(|(_, l)| l.dir != st.links).filter_map(|(_, l)| id_of(l.entry.as_deref()?)).collect();
    // In the bucket, an inode counts a name before it comes and until it is gone.
    let token = || Arc::new(MoveToken::default());
    let gone: HashMap<LinkRef, _> = lines.iter().flat_map(|(_, l)| &l.left).map(|r| (*r, token())).collect();
    let inodes = lines.iter().filter(|(_, l)| l.dir == st.links && l.entry.is_some());
    let counted: HashMap<Vec<u8>, _> = inodes.map(|(_, l)| (l.name.clone(), token())).collect();
    let left = |refs: &mut dyn Iterator<Item = &LinkRef>| -> Vec<Parted> {
        refs.filter_map(|r| Some((*r, gone.get(r)?.clone()))).collect()
    };
    // The old name of what was moved goes when the new one is there, as before the crash.
    let arrivals = lines.iter().filter(|(_, l)| l.entry.is_some() && l.dir != st.links);
    let moves: HashMap<u64, Arc<MoveToken>> = arrivals.map(|(seq, _)| (*seq, token())).collect();
    for (seq, line) in lines {
        let mut change = Change { entry: line.entry.clone(), delta: Some(line.delta.clone()), ..Change::default() };
        change.left = left(&mut line.left.iter());
        change.held = left(&mut line.delta.removed.iter());
        if line.dir == st.links {
            change.carry.extend(counted.get(&line.name).cloned());
        } else if let Some(link) = line.entry.as_ref().and_then(|e| e.link()) {
            change.wait.extend(counted.get(&link.inode_name()).cloned());
        }
        if line.dir != st.links {
            let side = if line.entry.is_some() { &mut change.carry } else { &mut change.wait };
            side.extend(moves.get(seq).cloned());
        }
        let base = line.seen.first().and_then(|b| id_of(b.as_deref()?));
        let moved = base.is_some_and(|b| line.entry.as_deref().and_then(id_of) != Some(b) && ids.contains(&b));
        let dir = &mut cell(st, line.dir, &line.key).dir;
        dir.set(&line.name, *seq, change);
        dir.recall(&line.name, &line.seen, moved);
        let place = (line.dir, line.name.clone());
        super::vanished::leaves(st, line, &place);
        if let Some(e) = line.seen.first().and_then(|b| b.as_deref()).filter(|_| moved) {
            super::moves::departs(st, e, &place);
        }
        match line.entry.as_deref().map(|e| &e.body) {
            Some(Body::File(f)) => {
                st.renamed.put(f.file_id, place.clone());
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
    let Found { mut head, mut layer, mut size, mut intents, mut gone, .. } = layers.next()?;
    let place = places.get(&id).cloned().or_else(|| {
        (!head.name.is_empty()).then(|| {
            cell(st, head.dir_id, &head.dir_key);
            (head.dir_id, head.name.clone())
        })
    });
    // Versions that were about to be written from the topmost layer with data hold everything; those of lower ones do not.
    let mut whole = intents.clone();
    let mut beaten = Vec::new();
    for upper in layers {
        gone |= upper.gone;
        // The upper layer lies on another machine's version: what lies below it was on its way to a file of its own.
        let over = |v: &HeadVersion| head.version.as_ref().is_some_and(|h| v.generation > h.generation);
        if upper.head.version.as_ref().is_some_and(|v| over(v) && !intents.contains(&v.trailer_hash)) {
            beaten.push((std::mem::take(&mut layer), head.version.take(), size));
            (layer, size, intents, head) = (upper.layer, upper.size, upper.intents, upper.head);
            whole.clone_from(&intents);
            continue;
        }
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
    let mut file = File::new(id, head.file_key, place, head.version.map(version));
    let io = file.io.get_mut();
    io.size = size;
    io.froze = Froze { size, changes: 1, times: None };
    let bytes = layer.bytes();
    io.frozen = Some(Arc::new(layer));
    let live = file.live.get_mut();
    (live.size, live.changes, live.unsaved_bytes) = (size, 1, bytes);
    (live.intents, live.whole, live.held, live.gone) = (intents, whole, true, gone);
    live.found = beaten.into_iter().map(|(layer, below, size)| (layer, below.map(version), size)).collect();
    Some(Arc::new(file))
}

fn version(v: HeadVersion) -> Version {
    Version { generation: v.generation, trailer_hash: v.trailer_hash, size: v.size, object_len: v.object_len, key: v.key }
}

impl Fs {
    /// Sees a recovered file through: finds its entry, then saves it the usual way.
    pub(super) async fn resume(self: Arc<Self>, file: Arc<File>) {
        let mut pause = self.opts.retry.0;
        loop {
            match self.find_entry(&file).await {
                Ok(true) => {
                    file.live.lock().held = false;
                    self.save_soon(&file);
                    return self.kick_place(&file);
                }
                Ok(false) => {
                    self.discard(&file).await;
                    return self.kick_place(&file);
                }
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

    /// The file's name may go to the bucket now.
    fn kick_place(&self, file: &File) {
        let place = file.place.lock().clone();
        place.into_iter().for_each(|(dir, _)| self.kick(dir));
    }

    /// A name that the bucket does not hold may have been there, by a write that the earlier mount did not live to hear of: another
    /// machine that saw and removed it deleted the object too.
    async fn went_unheard(&self, file: &File, key: &str) -> Result<bool> {
        let there = {
            let st = self.state.lock();
            let place = file.place.lock();
            place.as_ref().and_then(|(d, _)| st.dirs.get(d)).is_none_or(|c| c.dir.names_in_bucket(file.id))
        };
        Ok(!there && self.lies_at(key, file.id).await? != Some(true))
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
        self.take_found(file);
        let named = entry.as_ref().and_then(|e| match &e.body {
            Body::File(f) if f.file_id == file.id => Some(f),
            _ => None,
        });
        let Some(f) = named else { return Ok(self.outlives_its_name(file)) };
        let (ours, whole) = {
            let live = file.live.lock();
            let names = |hashes: &[Hash]| f.generation > 0 && hashes.contains(&f.trailer_hash);
            (names(&live.intents), names(&live.whole))
        };
        if whole && self.went_unheard(file, &f.object_key()).await? && self.rehome_if_whole(file).await {
            return Ok(true);
        }
        let mut io = file.io.write().await;
        let below = io.version.as_ref().map_or(0, |v| v.generation);
        if whole && below < f.generation {
            // The index was written; only the spool's log was still there.
            io.version = entry.as_ref().and_then(|e| super::io::version_of(e));
            io.object = None;
            return Ok(false);
        }
        if below < f.generation && below > 0 && !ours {
            // The save that follows finds the other machine's version in the way, and makes this one a file of its own.
            return Ok(true);
        }
        if below < f.generation
            && let Some(e) = &entry
        {
            io.version = super::io::version_of(e);
            io.object = None;
        }
        Ok(true)
    }

    /// Layers below another machine's version go on to become a file of their own.
    fn take_found(&self, file: &File) {
        let (dir, entry) = self.entry_for(&self.state.lock(), file);
        let mut live = file.live.lock();
        for (layer, below, size) in std::mem::take(&mut live.found) {
            live.beaten.push(Arc::new(Beaten::found(dir, entry.clone(), layer, below, size)));
        }
    }

    /// Whether a file that has lost its name is kept: it is, unless this machine took the name away.
    fn outlives_its_name(&self, file: &Arc<File>) -> bool {
        let ours = {
            let st = self.state.lock();
            let live = file.live.lock();
            let place = file.place.lock().clone();
            let removing = |(d, n): &(DirId, Vec<u8>)| st.dirs.get(d).is_some_and(|c| c.dir.pending_seq(n).is_some());
            live.unlinked || live.gone || place.as_ref().is_none_or(removing)
        };
        !ours && self.orphan_if_nameless(file)
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
