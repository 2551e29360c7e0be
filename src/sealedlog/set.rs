//! A row of sealed logs that stands for one: a new file takes over after a restart, after a failure, and when an old one is full
//! or mostly out of date.
//!
//! Files are `<stem>-<16 hex digits>.log` in one directory, in ascending order of age. One process at a time: whoever opens a
//! set holds a lock over the directory.

use super::{ClosedLog, LogOwner, Record, RecordPos, SealedLog, Tail};
use crate::disk::{self, Disk};
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use parking_lot::Mutex;
use std::sync::Arc;

/// A row of logs. Serves many threads; calls block on the disk.
pub struct LogSet {
    disk: Arc<dyn Disk>,
    dir: String,
    stem: String,
    owner: LogOwner,
    env: Env,
    state: Mutex<State>,
}

struct State {
    /// Number of the next file.
    next: u64,
    /// Files of this row without the current one, oldest first.
    old: Vec<u64>,
    current: Option<(u64, Arc<SealedLog>)>,
    /// Former current logs that hold records which no sync has covered yet.
    unsynced: Vec<Arc<SealedLog>>,
    /// A sync failed: only a rewrite makes the row whole again.
    tainted: Option<Error>,
}

impl LogSet {
    /// Opens the row in `dir` (made when missing). Nothing is read yet and no file is made before the first append.
    pub fn open(disk: Arc<dyn Disk>, dir: &str, stem: &str, owner: LogOwner, env: Env) -> Result<LogSet> {
        disk.make_dir(dir)?;
        // A durable file in a directory whose own name is not durable is lost with it.
        let mut parent = dir;
        while !parent.is_empty() {
            parent = disk::split(parent).0;
            disk.sync_dir(parent)?;
        }
        let number = |name: &str| {
            let digits = name.strip_prefix(stem)?.strip_prefix('-')?.strip_suffix(".log")?;
            u64::from_str_radix(digits, 16).ok().filter(|n| name == file_name(stem, *n))
        };
        let mut old: Vec<u64> = disk.list(dir)?.iter().filter_map(|e| number(&e.name)).collect();
        old.sort_unstable();
        let next = old.last().map_or(1, |n| n + 1);
        let state = State { next, old, current: None, unsynced: Vec::new(), tainted: None };
        Ok(LogSet { disk, dir: dir.to_owned(), stem: stem.to_owned(), owner, env, state: Mutex::new(state) })
    }

    fn path(&self, number: u64) -> String {
        disk::join(&self.dir, &file_name(&self.stem, number))
    }

    /// Gives every record to `each`, oldest first, with the number of its file, and returns how each file ends. Earlier files
    /// that never held anything are removed.
    ///
    /// A file that does not open at all (another key, a changed header) counts as damaged from its first byte, and stays. The
    /// file that is current now is read as well; an append at the same time may show as its torn tail.
    pub fn replay(&self, mut each: impl FnMut(u64, Record) -> Result<()>) -> Result<Vec<(u64, Tail)>> {
        let (old, current) = {
            let state = self.state.lock();
            (state.old.clone(), state.current.as_ref().map(|(n, _)| *n))
        };
        let mut tails = Vec::new();
        for number in old.into_iter().chain(current) {
            match ClosedLog::open(self.disk.clone(), &self.path(number), &self.owner) {
                Ok(Some(log)) => tails.push((number, log.replay(|record| each(number, record))?)),
                Ok(None) if current == Some(number) => tails.push((number, Tail::Damaged { at: 0, lost: 0 })),
                Ok(None) => {
                    self.disk.remove(&self.path(number))?;
                    self.state.lock().old.retain(|n| *n != number);
                }
                Err(e) if e.kind() == Kind::Corrupt => {
                    tails.push((number, Tail::Damaged { at: 0, lost: self.disk.len(&self.path(number))? }));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(tails)
    }

    /// Opens one of the earlier files, to read records by position.
    pub fn closed(&self, number: u64) -> Result<Option<ClosedLog>> {
        ClosedLog::open(self.disk.clone(), &self.path(number), &self.owner)
    }

    /// Appends to the current file, as [`SealedLog::append`], and returns its number too. A file that failed is followed by a
    /// new one.
    pub fn append(&self, kind: u8, payload: &[u8]) -> Result<(u64, RecordPos)> {
        let (number, log) = self.current()?;
        Ok((number, log.append(kind, payload)?))
    }

    fn current(&self) -> Result<(u64, Arc<SealedLog>)> {
        let state = &mut *self.state.lock();
        match &state.current {
            Some((number, log)) if !log.is_broken() => Ok((*number, log.clone())),
            _ => self.next(state),
        }
    }

    /// Makes the next file the current one.
    fn next(&self, state: &mut State) -> Result<(u64, Arc<SealedLog>)> {
        let number = state.next;
        let log = Arc::new(SealedLog::create(self.disk.clone(), &self.path(number), &self.owner, &self.env)?);
        state.next += 1;
        if let Some((before, old)) = state.current.replace((number, log.clone())) {
            state.old.push(before);
            state.unsynced.push(old);
        }
        Ok((number, log))
    }

    /// Returns when everything appended before the call is durable. After a failure it fails until [`LogSet::rewrite`] succeeds:
    /// what could not be written then is not in the row.
    pub fn sync(&self) -> Result<()> {
        let (waiting, current) = {
            let state = self.state.lock();
            if let Some(e) = &state.tainted {
                return Err(e.duplicate());
            }
            (state.unsynced.clone(), state.current.clone())
        };
        let logs = waiting.iter().chain(current.iter().map(|(_, log)| log));
        let result = logs.map(|log| log.sync()).find(Result::is_err).unwrap_or(Ok(()));
        let state = &mut *self.state.lock();
        match &result {
            Ok(()) => state.unsynced.retain(|log| !waiting.iter().any(|done| Arc::ptr_eq(done, log))),
            Err(e) => state.tainted = Some(e.duplicate()),
        }
        result
    }

    /// Starts a new file; the earlier ones stay.
    pub fn rotate(&self) -> Result<u64> {
        Ok(self.next(&mut self.state.lock())?.0)
    }

    /// Replaces the row: writes `records` (type and payload) into a new file, makes it durable, and only then destroys the others.
    ///
    /// After a crash in between both are there, the old files first; after a failure the old files go on.
    pub fn rewrite(&self, records: &mut dyn Iterator<Item = (u8, Vec<u8>)>) -> Result<()> {
        let state = &mut *self.state.lock();
        let number = state.next;
        let log = SealedLog::create(self.disk.clone(), &self.path(number), &self.owner, &self.env)?;
        state.next += 1;
        let append = |(kind, payload): (u8, Vec<u8>)| log.append(kind, &payload).map(drop);
        let written = records.map(append).find(Result::is_err).unwrap_or(Ok(())).and_then(|()| log.sync());
        if let Err(e) = written {
            let _ = log.destroy(); // it holds nothing that the old files lack
            return Err(e);
        }
        let before = state.current.replace((number, Arc::new(log)));
        state.unsynced.clear();
        state.tainted = None;
        state.old.extend(before.map(|(number, _)| number));
        let old = std::mem::take(&mut state.old);
        old.into_iter().map(|n| self.destroy_file(state, n)).fold(Ok(()), Result::and)
    }

    /// Goes on in a new file after a failed sync, for an owner who can live with the loss of what was appended before it.
    pub fn accept_loss(&self) -> Result<()> {
        let state = &mut *self.state.lock();
        self.next(state)?;
        state.unsynced.clear();
        state.tainted = None;
        Ok(())
    }

    /// Destroys the earlier files with numbers below `number`.
    pub fn destroy_before(&self, number: u64) -> Result<()> {
        let state = &mut *self.state.lock();
        let (gone, kept) = std::mem::take(&mut state.old).into_iter().partition(|n| *n < number);
        state.old = kept;
        let gone: Vec<u64> = gone;
        gone.into_iter().map(|n| self.destroy_file(state, n)).fold(Ok(()), Result::and)
    }

    fn destroy_file(&self, state: &mut State, number: u64) -> Result<()> {
        let path = self.path(number);
        state.unsynced.retain(|log| log.path() != path);
        let file = self.disk.open(&path, disk::Access::Write)?;
        let result = super::erase(&*self.disk, &path, &*file);
        if result.is_err() && self.disk.len(&path).is_ok() {
            state.old.push(number);
            state.old.sort_unstable();
        }
        result
    }

    /// Numbers and lengths in bytes of all files, oldest first.
    pub fn files(&self) -> Result<Vec<(u64, u64)>> {
        let state = self.state.lock();
        let numbers = state.old.iter().copied().chain(state.current.iter().map(|(n, _)| *n));
        numbers.map(|n| Ok((n, self.disk.len(&self.path(n))?))).collect()
    }

    /// Bytes of the current file, 0 when there is none.
    pub fn current_len(&self) -> u64 {
        self.state.lock().current.as_ref().map_or(0, |(_, log)| log.len())
    }
}

fn file_name(stem: &str, number: u64) -> String {
    format!("{stem}-{number:016x}.log")
}
