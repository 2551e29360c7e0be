//! Reading a log that an earlier process left: in order, by position, and with a verdict on how it ends.

use super::{LogOwner, Opened, RecordPos, erase, read_record, read_record_into};
use crate::crypto::wiped::Wiped;
use crate::disk::{Access, Disk, DiskFile, read_exact};
use crate::error::{Kind, Result, fail};
use crate::format::log::{self, HEAD_LEN, HEADER_LEN, LogKey, MAX_PAYLOAD, OVERHEAD, SEQ_WINDOW};
use std::sync::Arc;

/// Bytes read from the disk at a time.
const READ_AHEAD: usize = 256 << 10;
/// Longest trace that one interrupted append can leave.
const TORN_MAX: u64 = (MAX_PAYLOAD + OVERHEAD) as u64;
/// Records tried, and bytes deciphered, in the search for life behind a bad record: a bound on work, not on honesty.
const SEARCH_TRIES: u32 = 4096;
const SEARCH_BYTES: usize = 64 << 20;
/// Numbers tried for each record found in that search.
const SEARCH_SEQS: u64 = 64;

/// How a log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// With a whole record, or none.
    Clean,
    /// With the trace of an interrupted write: `lost` bytes from offset `at` on, which no sync had covered.
    Torn {
        /// Where the last whole record ends.
        at: u64,
        /// Bytes behind it.
        lost: u64,
    },
    /// With bytes that no kill explains: somebody changed the file, the drive lost a sector, or the power failed while more than
    /// one record was on its way to the drive. The records before `at` are good.
    Damaged {
        /// Where the last whole record before the damage ends.
        at: u64,
        /// Bytes behind it.
        lost: u64,
    },
}

impl Tail {
    /// `Corrupt`, naming the position, when the log is damaged.
    pub fn check(self) -> Result<()> {
        match self {
            Tail::Damaged { at, lost } => {
                fail(Kind::Corrupt, format!("a local log is damaged at byte {at}: {lost} bytes from there on cannot be read"))
            }
            Tail::Clean | Tail::Torn { .. } => Ok(()),
        }
    }
}

/// A record of a log.
pub struct Record {
    /// Where it is, for [`ClosedLog::read`].
    pub pos: RecordPos,
    /// The type it was appended with.
    pub kind: u8,
    /// What was appended.
    pub payload: Wiped,
}

/// A log found on the disk: it can be read and destroyed, never appended to.
pub struct ClosedLog {
    disk: Arc<dyn Disk>,
    path: String,
    file: Arc<dyn DiskFile>,
    key: LogKey,
    len: u64,
}

impl ClosedLog {
    /// Opens the log at `path`.
    ///
    /// `None` when it was never durable or its destruction was interrupted: there is nothing in it, and the file may be removed.
    /// Fails with `Corrupt` when the header is not one of this owner's.
    pub fn open(disk: Arc<dyn Disk>, path: &str, owner: &LogOwner) -> Result<Option<ClosedLog>> {
        let file = disk.open(path, Access::Write)?;
        let len = file.len()?;
        if len < HEADER_LEN as u64 {
            return Ok(None);
        }
        let mut header = [0; HEADER_LEN];
        read_exact(&*file, 0, &mut header)?;
        if header == [0; HEADER_LEN] {
            return Ok(None);
        }
        let key =
            log::open_header(&header, owner.kind, owner.volume, &owner.wrap).map_err(|e| e.context("opening a local log"))?;
        Ok(Some(ClosedLog { disk, path: path.to_owned(), file, key, len }))
    }

    /// All records in order, up to the first that is not whole.
    pub fn records(&self) -> Records<'_> {
        let window = Window { start: HEADER_LEN as u64, bytes: Vec::new() };
        Records { log: self, window, at: HEADER_LEN as u64, seq: 0, tail: None }
    }

    /// Gives every record to `each` and returns how the log ends.
    pub fn replay(&self, mut each: impl FnMut(Record) -> Result<()>) -> Result<Tail> {
        let mut records = self.records();
        for record in &mut records {
            each(record?)?;
        }
        Ok(records.tail().unwrap_or(Tail::Clean))
    }

    /// The payload of a record, by a position that [`ClosedLog::records`] or an earlier append gave.
    pub fn read(&self, pos: RecordPos) -> Result<Wiped> {
        read_record(&*self.file, &self.key, pos)
    }

    /// [`ClosedLog::read`] into a buffer that many reads may use one after the other.
    pub fn read_into(&self, pos: RecordPos, buffer: &mut Opened) -> Result<()> {
        read_record_into(&*self.file, &self.key, pos, buffer)
    }

    /// Bytes of the file.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it holds nothing but its header.
    pub fn is_empty(&self) -> bool {
        self.len == HEADER_LEN as u64
    }

    /// Its path on the disk.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Overwrites the wrapped key and removes the file.
    pub fn destroy(&self) -> Result<()> {
        erase(&*self.disk, &self.path, &*self.file)
    }
}

/// Records in order; ask [`Records::tail`] at the end. An item is an error only when the disk fails.
pub struct Records<'l> {
    log: &'l ClosedLog,
    window: Window,
    at: u64,
    seq: u64,
    tail: Option<Tail>,
}

impl Records<'_> {
    /// How the log ends: known once the iterator has returned `None`.
    pub fn tail(&self) -> Option<Tail> {
        self.tail
    }

    fn step(&mut self) -> Result<Option<Record>> {
        if self.at == self.log.len {
            self.tail = Some(Tail::Clean);
            return Ok(None);
        }
        if let Some(len) = self.whole(self.at)? {
            for seq in self.seq..self.seq.saturating_add(SEQ_WINDOW) {
                if let Some(record) = self.open(seq, self.at, len)? {
                    self.at += len as u64;
                    self.seq = seq + 1;
                    return Ok(Some(record));
                }
            }
        }
        self.tail = Some(self.judge()?);
        Ok(None)
    }

    /// Length of the record that begins at `at`, when its head is sane and the file long enough.
    fn whole(&mut self, at: u64) -> Result<Option<usize>> {
        let Some(head) = self.bytes(at, HEAD_LEN)?.and_then(|b| b.first_chunk()) else { return Ok(None) };
        let len = log::payload_len(head).map(|n| n + OVERHEAD);
        Ok(len.filter(|len| *len as u64 <= self.log.len - at))
    }

    fn open(&mut self, seq: u64, at: u64, len: usize) -> Result<Option<Record>> {
        let key = &self.log.key;
        let Some(sealed) = self.window.get(&*self.log.file, self.log.len, at, len)? else { return Ok(None) };
        let mut payload = Wiped::new(sealed.to_vec());
        let Ok(kind) = key.open(seq, at, &mut payload) else { return Ok(None) };
        payload.truncate(len - (OVERHEAD - HEAD_LEN));
        payload.drain(..HEAD_LEN);
        let pos = RecordPos { offset: at, seq, len: payload.len() as u32 };
        Ok(Some(Record { pos, kind, payload }))
    }

    fn bytes(&mut self, at: u64, len: usize) -> Result<Option<&[u8]>> {
        self.window.get(&*self.log.file, self.log.len, at, len)
    }

    /// Tells an interrupted write from damage, as `docs/FORMAT.md` 8 has it.
    fn judge(&mut self) -> Result<Tail> {
        let (at, lost) = (self.at, self.log.len - self.at);
        if self.zeros_to_the_end()? {
            return Ok(Tail::Torn { at, lost });
        }
        let torn = lost <= TORN_MAX && !self.life_behind()?;
        Ok(if torn { Tail::Torn { at, lost } } else { Tail::Damaged { at, lost } })
    }

    fn zeros_to_the_end(&mut self) -> Result<bool> {
        let mut at = self.at;
        while at < self.log.len {
            let part = (self.log.len - at).min(READ_AHEAD as u64) as usize;
            if self.bytes(at, part)?.is_none_or(|b| b.iter().any(|b| *b != 0)) {
                return Ok(false);
            }
            at += part as u64;
        }
        Ok(true)
    }

    /// Whether a valid record begins anywhere behind the bad one.
    fn life_behind(&mut self) -> Result<bool> {
        let (mut tries, mut work) = (SEARCH_TRIES, SEARCH_BYTES);
        for at in self.at + 1..self.log.len {
            let Some(len) = self.whole(at)?.filter(|len| *len > OVERHEAD) else { continue };
            for seq in self.seq..self.seq.saturating_add(SEARCH_SEQS) {
                if tries == 0 || work < len {
                    // A file that looks like a thousand records and opens as none was not left by a crash.
                    return Ok(true);
                }
                (tries, work) = (tries - 1, work - len);
                if self.open(seq, at, len)?.is_some() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.tail.is_some() {
            return None;
        }
        self.step().transpose()
    }
}

/// A sliding piece of the file, so that small records cost no system call each.
struct Window {
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// `len` bytes at `at`; `None` when the file (of `end` bytes) ends before.
    fn get(&mut self, file: &dyn DiskFile, end: u64, at: u64, len: usize) -> Result<Option<&[u8]>> {
        if at.saturating_add(len as u64) > end {
            return Ok(None);
        }
        let inside = at >= self.start && at + len as u64 <= self.start + self.bytes.len() as u64;
        if !inside {
            let size = (len.max(READ_AHEAD) as u64).min(end - at) as usize;
            self.bytes.resize(size, 0);
            self.start = at;
            if let Err(e) = read_exact(file, at, &mut self.bytes) {
                self.bytes.clear();
                return Err(e);
            }
        }
        let from = (at - self.start) as usize;
        Ok(Some(&self.bytes[from..from + len]))
    }
}
