//! A layer: what programs wrote to a file since a version of it, as extents over sealed spool logs.
//!
//! A file has an `active` layer that takes writes and perhaps a `frozen` one that is being uploaded, above the version in the
//! bucket. A read asks the layers from the top down ([`Layer::fill`]): each fills what it has and names the gaps, which the
//! layer below fills, but only below the upper layer's `limit`: beyond it the file was cut, and the gap is zeros.

use super::extents::{ExtentMap, Source};
use super::spool::{DestroyLogs, Head, HeadVersion, Spool, SpoolLog};
use crate::error::{Error, Kind, Result};
use crate::sealedlog::{Opened, RecordPos};
use crate::store::UploadId;
use crate::types::CHUNK_SIZE;
use std::ops::Range;
use std::sync::Arc;

/// Longest data of one spool record: a read of a few bytes decrypts one record.
pub const RECORD_DATA: usize = CHUNK_SIZE;
/// Bytes in front of the data of a record: the file offset.
pub const RECORD_HEAD: usize = 8;

/// A record in one of a layer's logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pos {
    log: u16,
    record: RecordPos,
}

/// Types of spool records.
pub mod record {
    /// First record of a log: what file the log belongs to.
    pub const HEAD: u8 = 1;
    /// `offset u64 | data`.
    pub const DATA: u8 = 2;
    /// `size u64`: the file was cut or grown to this size.
    pub const SIZE: u8 = 3;
    /// `start u64 | end u64`: zeros.
    pub const ZERO: u8 = 4;
    /// `generation u64 | trailer hash`: the version that is about to be written from this layer.
    pub const INTENT: u8 = 5;
    /// The version that the layer lies on from now on, as in the head.
    pub const BASE: u8 = 6;
    /// `key length u16 | key | upload id`: a multipart upload was begun.
    pub const UPLOAD: u8 = 7;
    /// The file was unlinked on this machine: nobody wants the data after a crash.
    pub const GONE: u8 = 8;
}

/// What a layer makes of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stretch {
    /// Written to it.
    Data,
    /// Zeros: punched, or hidden by a truncation.
    Zeros,
    /// What the layer below says.
    Below,
}

/// What a replayed record says of the file's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeChange {
    /// Nothing.
    None,
    /// It reaches at least here.
    AtLeast(u64),
    /// It is this.
    To(u64),
}

impl SizeChange {
    /// The size after it.
    pub fn apply(self, size: u64) -> u64 {
        match self {
            SizeChange::None => size,
            SizeChange::AtLeast(n) => size.max(n),
            SizeChange::To(n) => n,
        }
    }
}

/// See the head of this file.
pub struct Layer {
    map: ExtentMap<Pos>,
    limit: u64,
    logs: Vec<Arc<SpoolLog>>,
    bytes: u64,
}

impl Default for Layer {
    fn default() -> Self {
        Layer { map: ExtentMap::default(), limit: u64::MAX, logs: Vec::new(), bytes: 0 }
    }
}

impl Layer {
    /// Whether nothing was written to it.
    pub fn is_clean(&self) -> bool {
        self.map.is_empty() && self.limit == u64::MAX
    }

    /// Bytes of the layers below from here on do not show.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Number of extents.
    pub fn extents(&self) -> usize {
        self.map.count()
    }

    /// Bytes of data ever written to it.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its spool logs.
    pub fn logs(&self) -> &[Arc<SpoolLog>] {
        &self.logs
    }

    /// The log that takes new records, made on first use.
    fn log(&mut self, spool: &Spool, head: Option<Head>) -> Result<(u16, Arc<SpoolLog>)> {
        if self.logs.is_empty() {
            let head = head.ok_or_else(|| Error::new(Kind::Bug, "a spool log without a head"))?;
            self.logs.push(spool.create(&head)?);
        }
        let i = self.logs.len() - 1;
        Ok((i as u16, self.logs[i].clone()))
    }

    /// A log that nothing was written to means nothing, and must not be found by a later mount.
    fn drop_bare_log(&mut self) {
        if self.is_clean() {
            drop(DestroyLogs(std::mem::take(&mut self.logs)));
        }
    }

    /// Writes `data` at `offset`. On an error nothing of the failed record is visible; records before it are.
    ///
    /// Returns how many bytes were written before an error, or all.
    pub fn write(&mut self, spool: &Spool, head: Option<Head>, offset: u64, data: &[u8]) -> (u64, Result<()>) {
        let (index, log) = match self.log(spool, head) {
            Ok(l) => l,
            Err(e) => return (0, Err(e)),
        };
        let mut at = offset;
        for piece in data.chunks(RECORD_DATA) {
            let appended = spool.append(&log, record::DATA, &[&at.to_be_bytes(), piece]);
            let record = match appended {
                Ok(r) => r,
                Err(e) => {
                    self.drop_bare_log();
                    return (at - offset, Err(e));
                }
            };
            let end = at + piece.len() as u64;
            self.map.insert(at, end, Source::Record { pos: Pos { log: index, record }, skip: 0 });
            self.bytes += piece.len() as u64;
            at = end;
        }
        (at - offset, Ok(()))
    }

    /// The file's size becomes `size`: what lies beyond is gone, in this layer and from below.
    pub fn resize(&mut self, spool: &Spool, head: Option<Head>, size: u64) -> Result<()> {
        let (_, log) = self.log(spool, head)?;
        if let Err(e) = spool.append(&log, record::SIZE, &[&size.to_be_bytes()]) {
            self.drop_bare_log();
            return Err(e);
        }
        self.apply_size(size);
        Ok(())
    }

    /// `start..end` reads as zeros from now on, whatever was there, in this layer and below. The size is as before: what lies
    /// beyond it must not be asked for.
    pub fn zero(&mut self, spool: &Spool, head: Option<Head>, start: u64, end: u64) -> Result<()> {
        if start >= end {
            return Ok(());
        }
        let (_, log) = self.log(spool, head)?;
        if let Err(e) = spool.append(&log, record::ZERO, &[&start.to_be_bytes(), &end.to_be_bytes()]) {
            self.drop_bare_log();
            return Err(e);
        }
        self.map.insert(start, end, Source::Zero);
        Ok(())
    }

    /// A record in the newest log, where this mount writes to it.
    fn note(&self, spool: &Spool, kind: u8, parts: &[&[u8]]) -> Result<()> {
        match self.logs.last().filter(|log| spool.takes(log)) {
            Some(log) => spool.append(log, kind, parts).map(|_| ()),
            None => Ok(()),
        }
    }

    /// Notes in the log which version is about to be written. A layer that an earlier mount left has a log of this one for it.
    pub fn intend(&self, spool: &Spool, generation: u64, trailer_hash: &[u8; 32]) -> Result<()> {
        self.note(spool, record::INTENT, &[&generation.to_be_bytes(), trailer_hash])
    }

    /// Notes that the layer lies on another version from now on: the one that the layer below it has become.
    pub fn rebase(&self, spool: &Spool, version: &HeadVersion) -> Result<()> {
        self.note(spool, record::BASE, &[&version.encode()])
    }

    /// Gives a layer of earlier mounts a log of this one, for what is to be noted of it.
    pub fn annex(&mut self, spool: &Spool, head: &Head) -> Result<()> {
        self.logs.push(spool.create(head)?);
        Ok(())
    }

    /// Notes in the log that a multipart upload was begun, so that a later mount can abort it.
    pub fn note_upload(&self, spool: &Spool, key: &str, id: &UploadId) -> Result<()> {
        let len = u16::try_from(key.len()).unwrap_or(u16::MAX).to_be_bytes();
        self.note(spool, record::UPLOAD, &[&len, key.as_bytes(), id.0.as_bytes()])
    }

    /// Notes that the file was unlinked here. Without the note a later mount takes a name that is missing for another machine's
    /// doing, and keeps the data.
    pub fn note_gone(&self, spool: &Spool) -> Result<()> {
        self.note(spool, record::GONE, &[])
    }

    /// Everything so far is durable on the local disk.
    pub fn sync(&self) -> Result<()> {
        self.logs.iter().try_for_each(|l| l.sync())
    }

    fn apply_size(&mut self, size: u64) {
        self.map.remove(size, u64::MAX);
        self.limit = self.limit.min(size);
    }

    /// One record of a log found after a crash; [`Layer::adopt`] follows when all of its records were given.
    pub fn replay(&mut self, kind: u8, payload: &[u8], at: RecordPos) -> SizeChange {
        let log = self.logs.len() as u16;
        let number = |i: usize| payload.get(i..i + 8).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes);
        match (kind, number(0), number(8)) {
            (record::DATA, Some(start), _) => {
                let end = start.saturating_add((payload.len() - RECORD_HEAD) as u64);
                self.map.insert(start, end, Source::Record { pos: Pos { log, record: at }, skip: 0 });
                self.bytes += end - start;
                SizeChange::AtLeast(end)
            }
            (record::ZERO, Some(start), Some(end)) => {
                self.map.insert(start, end, Source::Zero);
                SizeChange::None
            }
            (record::SIZE, Some(size), _) => {
                self.apply_size(size);
                SizeChange::To(size)
            }
            _ => SizeChange::None,
        }
    }

    /// Takes the log whose records were replayed.
    pub fn adopt(&mut self, log: Arc<SpoolLog>) {
        self.logs.push(log);
    }

    /// Puts the layer `upper`, which lies above this one, on top of it: one layer with both logs.
    pub fn stack(&mut self, upper: Layer) {
        if upper.limit != u64::MAX {
            self.apply_size(upper.limit);
        }
        let shift = self.logs.len() as u16;
        for (start, end, source) in upper.map.iter() {
            let source = match source {
                Source::Zero => Source::Zero,
                Source::Record { pos, skip } => Source::Record { pos: Pos { log: pos.log + shift, ..pos }, skip },
            };
            self.map.insert(start, end, source);
        }
        self.logs.extend(upper.logs);
        self.bytes += upper.bytes;
    }

    /// Fills the parts of `buf` (which begins at file offset `start`, and holds zeros) that this layer knows, within `want`.
    /// Returns the parts that the layer below must fill.
    pub fn fill(&self, start: u64, buf: &mut [u8], want: &[Range<u64>]) -> Result<Vec<Range<u64>>> {
        self.visit(want, |at, bytes| {
            let to = (at - start) as usize;
            buf[to..to + bytes.len()].copy_from_slice(bytes);
            Ok(())
        })
    }

    /// Gives `put` the bytes that this layer holds within `want`, with their offsets in the file; what it does not get and is not
    /// left to the layer below is zeros. Returns what is left to it.
    pub fn visit(&self, want: &[Range<u64>], mut put: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<Vec<Range<u64>>> {
        let mut gaps = Vec::new();
        let (mut opened, mut record) = (None, Opened::default());
        for piece in want.iter().flat_map(|range| self.map.pieces(range.start, range.end)) {
            match piece.source {
                None => {
                    let end = piece.end.min(self.limit);
                    if piece.start < end {
                        gaps.push(piece.start..end);
                    }
                }
                Some(Source::Zero) => {}
                Some(Source::Record { pos, skip }) => {
                    if opened != Some(pos) {
                        self.logs[usize::from(pos.log)].read(pos.record, &mut record)?;
                        opened = Some(pos);
                    }
                    let from = RECORD_HEAD + skip as usize;
                    let data = record.payload().get(from..from + (piece.end - piece.start) as usize);
                    put(piece.start, data.ok_or_else(short_record)?)?;
                }
            }
        }
        Ok(gaps)
    }

    /// The parts of `want` that [`Layer::fill`] would leave to the layer below; nothing is read.
    pub fn gaps(&self, want: &[Range<u64>]) -> Vec<Range<u64>> {
        let pieces = want.iter().flat_map(|r| self.map.pieces(r.start, r.end)).filter(|p| p.source.is_none());
        pieces.map(|p| p.start..p.end.min(self.limit)).filter(|r| r.start < r.end).collect()
    }

    /// What the layer knows of a range, as of now: later writes do not show in it.
    pub fn excerpt(&self, range: Range<u64>) -> Layer {
        let mut map = ExtentMap::default();
        for p in self.map.pieces(range.start, range.end) {
            if let Some(source) = p.source {
                map.insert(p.start, p.end, source);
            }
        }
        Layer { map, limit: self.limit, logs: self.logs.clone(), bytes: 0 }
    }

    /// How the layer touches a range, for the upload's plan.
    pub fn touch(&self, range: Range<u64>) -> super::plan::Touch {
        use super::plan::Touch;
        let pieces = self.map.pieces(range.start, range.end);
        if pieces.iter().all(|p| p.source.is_none()) {
            Touch::None
        } else if pieces.iter().any(|p| matches!(p.source, Some(Source::Record { .. }))) {
            Touch::Data
        } else {
            Touch::Zeroed { gap: pieces.iter().find(|p| p.source.is_none()).map(|p| p.start) }
        }
    }

    /// What the layer makes of the byte at `at`, and up to where it says the same (`end` at most).
    pub fn stretch(&self, at: u64, end: u64) -> (Stretch, u64) {
        let piece = self.map.piece_at(at, end);
        match piece.source {
            Some(Source::Record { .. }) => (Stretch::Data, piece.end),
            Some(Source::Zero) => (Stretch::Zeros, piece.end),
            None if at >= self.limit => (Stretch::Zeros, piece.end),
            None => (Stretch::Below, piece.end.min(self.limit)),
        }
    }

    /// Whether data of this layer alone makes up all of `range`.
    pub fn covers(&self, range: Range<u64>) -> bool {
        self.map.covers(range.start, range.end)
    }
}

fn short_record() -> crate::error::Error {
    crate::error::Error::new(crate::error::Kind::Corrupt, "a spool record is shorter than its extent")
}
