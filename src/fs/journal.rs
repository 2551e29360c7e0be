//! The journal: changes of names that were acknowledged and are not in the bucket yet, in a sealed log.
//!
//! Every change is appended before it shows; a record holds all names of one operation, so a rename is recovered whole. When an
//! index write has landed its names are noted as done. What a replay leaves is put back as pending. The journal is begun anew
//! when nothing is pending, and rewritten from memory when it grows beyond its bound.

use crate::crypto::secmem::SecretKey;
use crate::disk::Disk;
use crate::env::Env;
use crate::env::failpoint::reach;
use crate::error::{Error, Kind, Result};
use crate::format::entry::{Body, Entry};
use crate::format::failure::Failure;
use crate::format::wire::{Reader, Writer};
use crate::sealedlog::{ClosedLog, LogOwner, SealedLog};
use crate::tree::delta::Delta;
use crate::types::{DirId, LinkRef};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Folder of the journal on its disk.
pub const FOLDER: &str = "journal";
const NAMES: u8 = 1;
const DONE: u8 = 2;
/// Names of a directory are those of another one now, which is among the lines that follow.
const REHOMED: u8 = 3;
/// Where directories were when something was noted of their names.
const PLACES: u8 = 4;
/// A journal longer than this is rewritten from memory.
pub const REWRITE_BYTES: u64 = 64 << 20;
/// A journal longer than this is begun anew when nothing is pending.
pub const FRESH_BYTES: u64 = 1 << 20;

/// One name's change.
#[derive(Clone)]
pub struct Line {
    /// The directory.
    pub dir: DirId,
    /// Its key.
    pub key: SecretKey,
    /// The directory's own index is not in the bucket yet.
    pub unborn: bool,
    /// The name.
    pub name: Vec<u8>,
    /// Its entry from now on.
    pub entry: Option<Arc<Entry>>,
    /// The entry is a directory whose index is not in the bucket yet.
    pub entry_unborn: bool,
    /// The directory that went with the name's entry before: what was noted of its names means nothing any more.
    pub dead: Option<DirId>,
    /// In the links directory: what was done to the names of the inode and is not in the bucket yet.
    pub delta: Delta,
    /// Links that the bucket may still hold under the name.
    pub left: Vec<LinkRef>,
    /// What this machine had seen under the name in the bucket, or may have put there: another machine's changes are told by it.
    pub seen: Vec<Seen>,
}

impl Line {
    /// Whether the bucket held the entry when the line was noted.
    fn is_settled(&self) -> bool {
        self.entry.is_some() && self.seen.first() == Some(&self.entry)
    }
}

/// Where a directory is: its id, and its parent with key and name.
#[derive(Clone)]
pub struct PlaceLine {
    /// The directory.
    pub dir: DirId,
    /// The one that it is in.
    pub parent: DirId,
    /// That one's key.
    pub parent_key: SecretKey,
    /// The name.
    pub name: Vec<u8>,
}

/// A state of a name in the bucket.
pub type Seen = Option<Arc<Entry>>;

/// What a replay found: the last change of every name that is not done.
#[derive(Default)]
pub struct Replayed {
    /// By directory and name: change number and line.
    pub names: BTreeMap<(DirId, Vec<u8>), (u64, Line)>,
    /// The highest change number.
    pub seq: u64,
    /// Logs of which a part is lost.
    pub damaged: Vec<Error>,
    /// Logs that are lost as a whole.
    pub unreadable: Vec<Error>,
    /// Directories whose index is not in the bucket, as far as the journal tells: a first write may have landed unnoticed.
    pub unborn: BTreeSet<DirId>,
    /// Names that this machine removed, and that are done.
    pub removed: BTreeSet<(DirId, Vec<u8>)>,
    /// Where directories were, as far as it was noted.
    pub places: BTreeMap<DirId, PlaceLine>,
    /// Directories whose names are another one's by now.
    rehomed: BTreeSet<DirId>,
    /// Directories whose index is in the bucket.
    born: BTreeSet<DirId>,
    /// Directories that were removed.
    dead: BTreeSet<DirId>,
    /// Change numbers that are in the bucket: logs may be found in any order.
    done: BTreeMap<(DirId, Vec<u8>), u64>,
    /// Names that something was moved away from: change number, and what it was.
    moved: BTreeMap<(DirId, Vec<u8>), (u64, Vec<u8>)>,
}

/// What stays the same of a file or directory when it is moved.
fn identity(entry: &Entry) -> Option<Vec<u8>> {
    match &entry.body {
        // An inode with several names stays where it is while they move.
        _ if !entry.refs.is_empty() => None,
        Body::File(f) => Some(f.file_id.0.to_vec()),
        Body::Dir { dir_id, .. } => Some(dir_id.0.to_vec()),
        _ => entry.link().map(|l| l.inode_name()),
    }
}

/// See the head of this file.
pub struct Journal {
    disk: Arc<dyn Disk>,
    owner: LogOwner,
    env: Env,
    log: Mutex<SealedLog>,
    /// Directories whose places are in the log.
    placed: Mutex<BTreeSet<DirId>>,
}

fn file_name(env: &Env) -> String {
    format!("{FOLDER}/{}", data_encoding::HEXLOWER.encode(&env.random::<16>()))
}

impl Journal {
    /// Reads what earlier mounts left. The logs are returned with it; destroy them once a new journal holds their content.
    ///
    /// Of a damaged log counts what lies before the damage, which includes everything that was synced; one that does not open at
    /// all stays where it is. Both are reported.
    pub fn replay(disk: &Arc<dyn Disk>, owner: &LogOwner) -> Result<(Replayed, Vec<ClosedLog>)> {
        disk.make_dir(FOLDER)?;
        // A durable file in a folder whose own name is not durable is lost with it.
        disk.sync_dir("")?;
        let mut logs = Vec::new();
        let mut out = Replayed::default();
        for found in disk.list(FOLDER)? {
            let path = format!("{FOLDER}/{}", found.name);
            let log = match ClosedLog::open(disk.clone(), &path, owner) {
                Ok(Some(log)) => log,
                Ok(None) => {
                    disk.remove(&path)?;
                    continue;
                }
                Err(e) if e.kind() == Kind::Corrupt => {
                    out.unreadable.push(e.context("the journal of an earlier mount"));
                    continue;
                }
                Err(e) => return Err(e),
            };
            if let Err(e) = log.replay(|r| out.record(r.kind, &r.payload))?.check() {
                out.damaged.push(e.context("the journal of an earlier mount"));
            }
            logs.push(log);
        }
        out.conclude();
        Ok((out, logs))
    }

    /// Begins a journal that holds `lines` (with their change numbers) from the start.
    pub fn begin(disk: Arc<dyn Disk>, owner: LogOwner, env: Env, lines: &[(u64, Line)], places: &[PlaceLine]) -> Result<Journal> {
        let log = Self::fresh(&disk, &owner, &env, lines, places)?;
        let placed = Mutex::new(places.iter().map(|p| p.dir).collect());
        Ok(Journal { disk, owner, env, log: Mutex::new(log), placed })
    }

    fn fresh(
        disk: &Arc<dyn Disk>,
        owner: &LogOwner,
        env: &Env,
        lines: &[(u64, Line)],
        places: &[PlaceLine],
    ) -> Result<SealedLog> {
        let log = SealedLog::create(disk.clone(), &file_name(env), owner, env)?;
        places.iter().try_for_each(|p| log.append(PLACES, &encode_place(p)).map(|_| ()))?;
        for (seq, line) in lines {
            log.append(NAMES, &encode_names(*seq, std::slice::from_ref(line))?)?;
        }
        log.sync()?;
        Ok(log)
    }

    /// Notes the changes of one operation.
    pub fn names(&self, seq: u64, lines: &[Line]) -> Result<()> {
        let record = encode_names(seq, lines)?;
        self.log.lock().append(NAMES, &record).map_err(|e| e.context("writing the journal"))?;
        reach("name-journalled");
        Ok(())
    }

    /// Notes the changes of one operation that makes names of `old`, a directory that is gone, names of another one.
    pub fn rehomed(&self, old: DirId, seq: u64, lines: &[Line]) -> Result<()> {
        let mut w = Writer::with_capacity(512);
        w.bytes(&old.0).bytes(&encode_names(seq, lines)?);
        self.log.lock().append(REHOMED, &w.secret()).map_err(|e| e.context("writing the journal"))?;
        Ok(())
    }

    /// Whether the place of a directory is to be noted before its names.
    pub fn lacks_place(&self, dir: DirId) -> bool {
        !self.placed.lock().contains(&dir)
    }

    /// Notes where a directory is.
    pub fn place(&self, place: &PlaceLine) -> Result<()> {
        self.log.lock().append(PLACES, &encode_place(place))?;
        self.placed.lock().insert(place.dir);
        Ok(())
    }

    /// Notes that names of a directory are in the bucket as of their change numbers.
    pub fn done<'a>(&self, dir: DirId, names: impl IntoIterator<Item = (&'a [u8], u64)>) -> Result<()> {
        let log = self.log.lock();
        let mut w = Writer::with_capacity(256);
        w.bytes(&dir.0);
        for (name, seq) in names {
            w.u64(seq).u16(name.len() as u16).bytes(name);
            if w.as_slice().len() > 512 << 10 {
                log.append(DONE, w.as_slice())?;
                w = Writer::with_capacity(256);
                w.bytes(&dir.0);
            }
        }
        log.append(DONE, w.as_slice()).map(|_| ())
    }

    /// Returns when everything noted so far is durable on the local disk.
    pub fn sync(&self) -> Result<()> {
        self.log.lock().sync().map_err(|e| e.context("writing the journal"))
    }

    /// Bytes of the journal.
    pub fn len(&self) -> u64 {
        self.log.lock().len()
    }

    /// Begins anew with `lines`, and drops the old journal. The caller holds the lock that orders changes.
    pub fn rewrite(&self, lines: &[(u64, Line)], places: &[PlaceLine]) -> Result<()> {
        let fresh = Self::fresh(&self.disk, &self.owner, &self.env, lines, places)?;
        *self.placed.lock() = places.iter().map(|p| p.dir).collect();
        let old = std::mem::replace(&mut *self.log.lock(), fresh);
        reach("journal-begun-anew");
        old.destroy()
    }

    /// Removes the journal: nothing is pending, and the mount ends.
    pub fn destroy(&self) -> Result<()> {
        self.log.lock().destroy()
    }
}

/// Flag of a line: the directory is unborn.
const UNBORN: u8 = 1;
/// Flag of a line: an entry follows.
const ENTRY: u8 = 2;
/// Flag of a line: the entry's file has no object yet (generation 0, which an entry in the bucket never has).
const LOCAL: u8 = 4;
/// Flag of a line: the entry is an unborn directory.
const ENTRY_UNBORN: u8 = 8;
/// Flag of a line: the id of a directory that was removed follows.
const DEAD: u8 = 16;
/// Flag of a line: names of an inode that came, and that went, follow.
const DELTA: u8 = 32;
/// Flag of a line: links that the name was follow.
const LEFT: u8 = 64;
/// Flag of a line: what was seen in the bucket follows.
const SEEN: u8 = 128;
/// States of a name that a replay keeps.
const MAX_SEEN: usize = 64;
/// Bytes of them that a line holds.
const SEEN_BYTES: usize = 128 << 10;

fn encode_names(seq: u64, lines: &[Line]) -> Result<Zeroizing<Vec<u8>>> {
    let mut w = Writer::with_capacity(512);
    w.u64(seq).u16(lines.len() as u16);
    for l in lines {
        let local = matches!(l.entry.as_deref(), Some(Entry { body: Body::File(f), .. }) if f.generation == 0);
        let flags = [
            (l.unborn, UNBORN),
            (l.entry.is_some(), ENTRY),
            (local, LOCAL),
            (l.entry_unborn, ENTRY_UNBORN),
            (l.dead.is_some(), DEAD),
            (!l.delta.is_empty(), DELTA),
            (!l.left.is_empty(), LEFT),
            (!l.seen.is_empty(), SEEN),
        ];
        let flags = flags.iter().filter(|(set, _)| *set).fold(0, |all, (_, flag)| all | flag);
        w.bytes(&l.dir.0).bytes(&l.key.expose()[..]).u8(flags).u16(l.name.len() as u16).bytes(&l.name);
        if let Some(dead) = &l.dead {
            w.bytes(&dead.0);
        }
        if !l.delta.is_empty() {
            write_refs(&mut w, l.delta.added.iter());
            write_refs(&mut w, l.delta.removed.iter());
        }
        if !l.left.is_empty() {
            write_refs(&mut w, l.left.iter());
        }
        if let Some(e) = &l.entry {
            let mut e = Entry::clone(e);
            if let Body::File(f) = &mut e.body {
                f.generation = f.generation.max(1);
            }
            let bytes = e.encode()?;
            w.u32(bytes.len() as u32).bytes(&bytes);
        }
        if !l.seen.is_empty() {
            encode_seen(&mut w, &l.seen)?;
        }
    }
    Ok(w.secret())
}

fn encode_place(p: &PlaceLine) -> Zeroizing<Vec<u8>> {
    let mut w = Writer::with_capacity(128);
    w.bytes(&p.dir.0).bytes(&p.parent.0).bytes(&p.parent_key.expose()[..]).bytes(&p.name);
    w.secret()
}

fn write_refs<'a>(w: &mut Writer, refs: impl ExactSizeIterator<Item = &'a LinkRef>) {
    w.u32(refs.len() as u32);
    for one in refs {
        w.bytes(&one.0);
    }
}

fn read_refs(r: &mut Reader<'_>) -> Result<Vec<LinkRef>> {
    let n = r.u32()? as usize;
    Failure::Log.unless(n <= r.left() / 16, "the journal claims more names than it has bytes")?;
    (0..n).map(|_| Ok(LinkRef(r.array()?))).collect()
}

fn encode_seen(w: &mut Writer, seen: &[Seen]) -> Result<()> {
    let mut states = Vec::new();
    let mut room = SEEN_BYTES;
    for s in seen.iter().take(MAX_SEEN).filter(|s| in_bucket(s)) {
        let bytes = s.as_ref().map_or_else(|| Ok(Zeroizing::new(Vec::new())), |e| e.encode())?;
        // What is left out may be taken for another machine's change, which costs a conflict name and no data.
        if bytes.len() > room {
            break;
        }
        room -= bytes.len();
        states.push(bytes);
    }
    w.u8(states.len() as u8);
    for bytes in states {
        w.u32(bytes.len() as u32).bytes(&bytes);
    }
    Ok(())
}

/// Whether the bucket can hold this for a name: no entry of a file without an object.
fn in_bucket(s: &Seen) -> bool {
    !matches!(s.as_deref(), Some(Entry { body: Body::File(f), .. }) if f.generation == 0)
}

impl Replayed {
    /// Everything was read: drops what is done, and what belongs to directories that are gone.
    fn conclude(&mut self) {
        let (done, dead) = (std::mem::take(&mut self.done), std::mem::take(&mut self.dead));
        let over = |key: &(DirId, Vec<u8>), seq: u64| done.get(key).is_some_and(|d| *d >= seq);
        let removed = self.names.iter().filter(|(key, (seq, line))| line.entry.is_none() && over(key, *seq));
        self.removed = removed.map(|(key, _)| key.clone()).collect();
        // Of a directory that never reached the bucket nothing is left. What waits in one that did waits for its removal.
        let nothing = |dir: &DirId| dead.contains(dir) && self.unborn.contains(dir) && !self.born.contains(dir);
        let past = |dir: &DirId| nothing(dir) || self.rehomed.contains(dir);
        self.names.retain(|key, (seq, _)| !past(&key.0) && done.get(key).is_none_or(|d| *d < *seq));
        self.tie_moves();
        let born = std::mem::take(&mut self.born);
        // One that no line speaks of is named by the bucket already.
        let mut spoken = BTreeSet::new();
        for (_, line) in self.names.values() {
            spoken.insert(line.dir);
            spoken.extend(line.entry.as_ref().and_then(|e| e.dir_id()));
        }
        self.unborn.retain(|dir| !born.contains(dir) && !dead.contains(dir) && spoken.contains(dir));
        for (_, line) in self.names.values_mut() {
            line.unborn = self.unborn.contains(&line.dir);
            let made = line.entry.as_ref().and_then(|e| e.dir_id());
            line.entry_unborn = made.is_some_and(|d| self.unborn.contains(&d));
        }
        let live: BTreeSet<DirId> = self.names.values().filter_map(|(_, l)| l.entry.as_ref()?.dir_id()).collect();
        for (_, line) in self.names.values_mut() {
            let base = line.seen.first().and_then(|s| s.as_ref()?.dir_id());
            line.dead = base.filter(|d| dead.contains(d) && !live.contains(d));
        }
    }

    /// A name that something was moved away from gets the change number of where that is now: equal numbers go together.
    fn tie_moves(&mut self) {
        let moved = std::mem::take(&mut self.moved);
        let entries = self.names.values().filter_map(|(seq, l)| Some((identity(l.entry.as_deref()?)?, *seq)));
        let now: BTreeMap<Vec<u8>, u64> = entries.collect();
        for (place, (seq, line)) in self.names.iter_mut().filter(|(_, (_, l))| l.entry.is_none()) {
            let id = moved.get(place).filter(|(s, _)| s == seq).map(|(_, id)| id);
            if let Some(arrival) = id.and_then(|id| now.get(id)) {
                // The arrival may be older: where a file has come from is noted again until its old name is gone.
                debug_assert!(line.entry.is_none());
                *seq = *arrival;
            }
        }
    }

    /// The last change of a name counts; what was seen or written before is no surprise in the bucket.
    fn take(&mut self, seq: u64, mut line: Line) {
        let key = (line.dir, line.name.clone());
        match self.names.entry(key) {
            std::collections::btree_map::Entry::Vacant(v) => {
                v.insert((seq, line));
            }
            std::collections::btree_map::Entry::Occupied(mut o) => {
                let (last, kept) = o.get_mut();
                if *last <= seq {
                    *last = seq;
                    std::mem::swap(kept, &mut line);
                }
                // A line that does not know keeps that: nothing can be told then. One that was in the bucket when it was noted needs no
                // older states: they are history.
                if !kept.seen.is_empty() && !kept.is_settled() {
                    kept.seen.extend(line.seen.drain(..).chain([line.entry]).filter(in_bucket));
                    kept.seen.truncate(MAX_SEEN);
                }
            }
        }
    }

    /// The names of one operation.
    fn step(&mut self, r: &mut Reader<'_>) -> Result<()> {
        let seq = r.u64()?;
        self.seq = self.seq.max(seq);
        let count = r.u16()?;
        let lines = (0..count).map(|_| read_line(r)).collect::<Result<Vec<Line>>>()?;
        // What one name lost and one name got in the same step was moved.
        let mut arrived = lines.iter().filter_map(|l| identity(l.entry.as_deref()?));
        let here = arrived.next().filter(|_| arrived.next().is_none());
        for line in lines {
            if let (None, Some(id)) = (&line.entry, &here) {
                let old = self.moved.get(&(line.dir, line.name.clone())).map_or(0, |(s, _)| *s);
                if old <= seq {
                    self.moved.insert((line.dir, line.name.clone()), (seq, id.clone()));
                }
            }
            match line.unborn {
                true => self.unborn.insert(line.dir),
                false => self.born.insert(line.dir),
            };
            self.unborn.extend(line.entry.as_ref().filter(|_| line.entry_unborn).and_then(|e| e.dir_id()));
            self.dead.extend(line.dead);
            self.take(seq, line);
        }
        Ok(())
    }

    fn record(&mut self, kind: u8, payload: &[u8]) -> Result<()> {
        let mut r = Reader::new(payload, Failure::Log);
        match kind {
            NAMES => self.step(&mut r)?,
            REHOMED => {
                self.rehomed.insert(DirId(r.array()?));
                self.step(&mut r)?;
            }
            PLACES => {
                let (dir, parent) = (DirId(r.array()?), DirId(r.array()?));
                let (parent_key, n) = (SecretKey::new(r.slice()?), r.left());
                let name = r.bytes(n)?.to_vec();
                self.places.insert(dir, PlaceLine { dir, parent, parent_key, name });
            }
            DONE => {
                let dir = DirId(r.array()?);
                self.born.insert(dir);
                while r.left() > 0 {
                    let seq = r.u64()?;
                    let n = usize::from(r.u16()?);
                    let key = (dir, r.bytes(n)?.to_vec());
                    let done = self.done.entry(key).or_default();
                    *done = seq.max(*done);
                }
            }
            _ => return Failure::Log.fail("the journal holds a record that this version does not know"),
        }
        Ok(())
    }
}

fn read_line(r: &mut Reader<'_>) -> Result<Line> {
    let dir = DirId(r.array()?);
    let key = SecretKey::new(r.slice()?);
    let flags = r.u8()?;
    let n = usize::from(r.u16()?);
    let name = r.bytes(n)?.to_vec();
    let dead = if flags & DEAD != 0 { Some(DirId(r.array()?)) } else { None };
    let mut delta = Delta::default();
    if flags & DELTA != 0 {
        delta.added = read_refs(r)?.into_iter().collect();
        delta.removed = read_refs(r)?.into_iter().collect();
    }
    let left = if flags & LEFT != 0 { read_refs(r)? } else { Vec::new() };
    let entry = if flags & ENTRY != 0 {
        let n = r.u32()? as usize;
        let mut e = Entry::decode(r.bytes(n)?)?;
        if let (true, Body::File(f)) = (flags & LOCAL != 0, &mut e.body) {
            f.generation = 0;
        }
        Some(Arc::new(e))
    } else {
        None
    };
    let mut seen = Vec::new();
    if flags & SEEN != 0 {
        for _ in 0..r.u8()? {
            let n = r.u32()? as usize;
            seen.push(if n == 0 { None } else { Some(Arc::new(Entry::decode(r.bytes(n)?)?)) });
        }
    }
    let (unborn, entry_unborn) = (flags & UNBORN != 0, flags & ENTRY_UNBORN != 0);
    Ok(Line { dir, key, unborn, name, entry, entry_unborn, dead, delta, left, seen })
}
