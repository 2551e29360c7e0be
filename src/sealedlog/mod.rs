//! Append-only files of sealed records: everything that smpfs keeps on the local disk and may need after a crash.
//!
//! ```text
//!  SealedLog::create ──append, read, sync──> dropped, killed, out of power
//!        │                                        │
//!        │ destroy (key overwritten)              └─> ClosedLog::open ──records, read──> destroy
//!        v                                                  never appended to: a new log takes over
//!      gone
//! ```
//!
//! A log's key is random, its own, and wrapped in the header under a key of the volume, so the file survives a crash and tells
//! nothing to whoever finds it (`docs/FORMAT.md`, section 8). The nonce of a record is its number. Two rules keep numbers from
//! ever repeating under one key: nothing is appended to a log that was opened again (there is no such call), and a failed append
//! burns its number, because its bytes may have reached the disk.
//!
//! What is durable: all records appended before a [`SealedLog::sync`] that returned `Ok`. After a kill every appended record is
//! there; after a power loss a prefix of them that contains all synced ones.
//!
//! Lock order: `synced`, then `tail`.

mod closed;
mod set;

pub use crate::format::log::{LogKind, MAX_PAYLOAD};
pub use closed::{ClosedLog, Record, Records, Tail};
pub use set::LogSet;

use crate::crypto::secmem::SecretKey;
use crate::crypto::wiped::Wiped;
use crate::disk::{self, Access, Disk, DiskFile};
use crate::env::Env;
use crate::env::failpoint::reach;
use crate::error::{Error, Kind, Result, fail};
use crate::format::log::{self, HEAD_LEN, HEADER_LEN, LogId, LogKey, OVERHEAD, SEQ_WINDOW};
use crate::types::VolumeId;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A record buffer larger than this is not kept for the next append.
const KEEP_BUFFER: usize = 128 << 10;

/// Where a record is: what [`SealedLog::append`] returns and `read` wants back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordPos {
    /// Its first byte in the file.
    pub offset: u64,
    /// Its number.
    pub seq: u64,
    /// Bytes of payload.
    pub len: u32,
}

/// Which logs: their purpose, their volume, and the key K("local-log") that wraps theirs.
#[derive(Clone)]
pub struct LogOwner {
    /// What the logs are for.
    pub kind: LogKind,
    /// The volume they belong to.
    pub volume: VolumeId,
    /// The key that wraps each log's own.
    pub wrap: SecretKey,
}

/// A log that this process made and appends to. Serves many threads; calls block on the disk.
pub struct SealedLog {
    disk: Arc<dyn Disk>,
    path: String,
    file: Arc<dyn DiskFile>,
    key: LogKey,
    tail: Mutex<WriteTail>,
    /// Offset behind the last whole record: `tail.end`, readable without the lock.
    end: AtomicU64,
    synced: Mutex<Synced>,
}

struct WriteTail {
    end: u64,
    seq: u64,
    /// Numbers burnt since the last good record.
    burnt: u64,
    /// The last append found no space: make sure there is some before a number is risked.
    cautious: bool,
    /// Set by a failure after which nothing may be appended any more.
    broken: Option<Error>,
    buffer: Vec<u8>,
}

struct Synced {
    end: u64,
    /// Whether the file's name is durable.
    named: bool,
    /// Set by a failed sync, or by destruction.
    failed: Option<Error>,
}

impl SealedLog {
    /// Makes a new log at `path`, which must not exist, with a random key of its own. Durable with the first [`SealedLog::sync`].
    pub fn create(disk: Arc<dyn Disk>, path: &str, owner: &LogOwner, env: &Env) -> Result<SealedLog> {
        let id = LogId { kind: owner.kind, volume: owner.volume, id: env.random() };
        let key = SecretKey::from_fn(|k| env.rng.fill(k));
        let header = log::seal_header(id, &owner.wrap, &key, &env.random());
        let file = disk.open(path, Access::CreateNew).map_err(|e| e.context("making a local log"))?;
        if let Err(e) = file.pwrite(0, &header) {
            // Without a whole header the file is an empty log to every reader; leaving it would only clutter.
            let _ = disk.remove(path);
            return Err(e.context("making a local log"));
        }
        let end = HEADER_LEN as u64;
        let tail = WriteTail { end, seq: 0, burnt: 0, cautious: false, broken: None, buffer: Vec::new() };
        Ok(SealedLog {
            disk,
            path: path.to_owned(),
            file,
            key: LogKey::new(key.expose(), id),
            tail: Mutex::new(tail),
            end: AtomicU64::new(end),
            synced: Mutex::new(Synced { end: 0, named: false, failed: None }),
        })
    }

    /// Appends a record of up to [`MAX_PAYLOAD`] bytes in one write. It survives a kill from here on, and a power loss after the
    /// next [`SealedLog::sync`].
    ///
    /// After an error the record is not in the log and the log goes on as if it had not been tried, except when the file could
    /// not be repaired or eight appends in a row failed: then every later call fails, and a new log must take over.
    pub fn append(&self, kind: u8, payload: &[u8]) -> Result<RecordPos> {
        self.append_parts(kind, &[payload])
    }

    /// [`SealedLog::append`] of a payload that lies in parts.
    pub fn append_parts(&self, kind: u8, payload: &[&[u8]]) -> Result<RecordPos> {
        let len: usize = payload.iter().map(|p| p.len()).sum();
        if len > MAX_PAYLOAD {
            return fail(Kind::TooLarge, "a record of a local log holds up to 1 MiB");
        }
        let tail = &mut *self.tail.lock();
        if let Some(e) = &tail.broken {
            return Err(e.duplicate());
        }
        let (offset, seq) = (tail.end, tail.seq);
        if tail.cautious {
            self.probe(tail, len + OVERHEAD)?;
        }
        tail.buffer.clear();
        self.key.seal(seq, offset, kind, payload, &mut tail.buffer)?;
        // From here on bytes under this number may be on the disk, whatever happens next.
        tail.seq += 1;
        if let Err(e) = self.file.pwrite(offset, &tail.buffer) {
            tail.burnt += 1;
            tail.cautious = true;
            self.repair(tail);
            return Err(e.context("appending to a local log"));
        }
        (tail.burnt, tail.cautious) = (0, false);
        tail.end += tail.buffer.len() as u64;
        self.end.store(tail.end, Ordering::Release);
        if tail.buffer.capacity() > KEEP_BUFFER {
            tail.buffer = Vec::new();
        }
        Ok(RecordPos { offset, seq, len: len as u32 })
    }

    /// Takes the space of the next record with zeros, so that a full disk costs no number.
    fn probe(&self, tail: &mut WriteTail, len: usize) -> Result<()> {
        tail.buffer.clear();
        tail.buffer.resize(len, 0);
        self.file.pwrite(tail.end, &tail.buffer).map_err(|e| {
            self.repair(tail);
            e.context("appending to a local log")
        })
    }

    /// Cuts off what a failed write left, and gives the log up when that fails or a reader could no longer follow the numbers.
    fn repair(&self, tail: &mut WriteTail) {
        if let Err(e) = self.file.truncate(tail.end) {
            tail.broken = Some(e.context("repairing a local log"));
        } else if tail.burnt >= SEQ_WINDOW - 1 {
            tail.broken = Some(Error::new(Kind::Unavailable, "a local log was given up after too many failed writes in a row"));
        }
    }

    /// The payload of a record of this log.
    pub fn read(&self, pos: RecordPos) -> Result<Wiped> {
        read_record(&*self.file, &self.key, pos)
    }

    /// [`SealedLog::read`] into a buffer that many reads may use one after the other.
    pub fn read_into(&self, pos: RecordPos, buffer: &mut Opened) -> Result<()> {
        read_record_into(&*self.file, &self.key, pos, buffer)
    }

    /// Returns when everything appended before the call is durable. Callers at the same time share one disk sync.
    ///
    /// After a failure the log promises nothing more and every later append and sync fails: the kernel forgets pages that it
    /// could not write, so a second try that succeeds would prove nothing. Records can still be read.
    pub fn sync(&self) -> Result<()> {
        let wanted = self.len();
        let synced = &mut *self.synced.lock();
        if let Some(e) = &synced.failed {
            return Err(e.duplicate());
        }
        if synced.named && synced.end >= wanted {
            return Ok(());
        }
        let reached = self.len();
        let mut result = self.file.sync_data();
        if result.is_ok() && !synced.named {
            result = self.disk.sync_dir(disk::split(&self.path).0);
        }
        match result {
            Ok(()) => {
                (synced.end, synced.named) = (reached, true);
                Ok(())
            }
            Err(e) => {
                let e = e.context("making a local log durable");
                synced.failed = Some(e.duplicate());
                self.tail.lock().broken = Some(e.duplicate());
                Err(e)
            }
        }
    }

    /// Bytes of the file up to the end of the last record.
    pub fn len(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// Whether it holds no record.
    pub fn is_empty(&self) -> bool {
        self.len() == HEADER_LEN as u64
    }

    /// Its path on the disk.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether a failure ended it: appends fail, a new log must take over.
    pub fn is_broken(&self) -> bool {
        self.tail.lock().broken.is_some()
    }

    /// Overwrites the wrapped key, so that nothing of the log can be read again, and removes the file.
    ///
    /// Later calls fail. A drive that writes elsewhere (flash, copy-on-write) may keep the old header for a while; whoever finds
    /// it still lacks the volume's key.
    pub fn destroy(&self) -> Result<()> {
        let gone = || Some(Error::new(Kind::Stale, "this local log was destroyed"));
        let mut synced = self.synced.lock();
        synced.failed = gone();
        self.tail.lock().broken = gone();
        erase(&*self.disk, &self.path, &*self.file)
    }
}

/// Overwrites a log's header and removes the file, as far as the disk lets it; the first error is returned.
///
/// Only the header is brought to the drive: records that never got there need not be written to be forgotten.
fn erase(disk: &dyn Disk, path: &str, file: &dyn DiskFile) -> Result<()> {
    let wiped = file.pwrite_durable(0, &[0; HEADER_LEN]);
    reach("spool-key-erased");
    let removed = disk.remove(path).and_then(|()| disk.sync_dir(disk::split(path).0));
    wiped.and(removed).map_err(|e| e.context("destroying a local log"))
}

/// A buffer for records that are opened one after the other.
#[derive(Default)]
pub struct Opened {
    bytes: Wiped,
    len: usize,
}

impl Opened {
    /// The payload of the record that was opened last; empty before the first and after a failure.
    pub fn payload(&self) -> &[u8] {
        self.bytes.get(HEAD_LEN..HEAD_LEN + self.len).unwrap_or_default()
    }
}

fn read_record(file: &dyn DiskFile, key: &LogKey, pos: RecordPos) -> Result<Wiped> {
    let mut opened = Opened::default();
    read_record_into(file, key, pos, &mut opened)?;
    let mut record = opened.bytes;
    record.truncate(HEAD_LEN + pos.len as usize);
    record.drain(..HEAD_LEN);
    Ok(record)
}

fn read_record_into(file: &dyn DiskFile, key: &LogKey, pos: RecordPos, buffer: &mut Opened) -> Result<()> {
    let len = pos.len as usize;
    if len > MAX_PAYLOAD {
        return fail(Kind::Invalid, "no record of a local log is that long");
    }
    buffer.len = 0;
    if buffer.bytes.capacity() < len + OVERHEAD {
        // A new one: a vector that grows leaves what it held behind.
        buffer.bytes = Wiped::zeros(len + OVERHEAD);
    }
    buffer.bytes.resize(len + OVERHEAD, 0);
    disk::read_exact(file, pos.offset, &mut buffer.bytes)?;
    key.open(pos.seq, pos.offset, &mut buffer.bytes)?;
    buffer.len = len;
    Ok(())
}

#[cfg(test)]
mod tests;
