//! Who hears of corrupt bytes: `fs` writes the audit line and the quarantine record.

use super::object::OpenObject;
use crate::format::failure::Failure;
use crate::types::{FileId, Hash};
use bytes::Bytes;
use std::fmt;
use std::ops::Range;

/// Ciphertext that a report carries at most, bytes.
pub const EVIDENCE_MAX: usize = 2 << 20;

/// What failed verification, twice, the second time past every cache. Holds ciphertext only.
#[derive(Clone)]
pub struct CorruptReport {
    /// Key of the object.
    pub key: String,
    /// The file that it should hold.
    pub file_id: FileId,
    /// The generation that was expected (when opening) or opened (when reading).
    pub generation: u64,
    /// The trailer hash that belongs to it.
    pub trailer_hash: Hash,
    /// The store's version tag of the bytes, where one was seen.
    pub etag: Option<String>,
    /// The check that failed.
    pub stage: Failure,
    /// Number of the chunk in the file; `None` when the object as a whole was refused.
    pub chunk: Option<u64>,
    /// Bytes of the object that were looked at.
    pub range: Range<u64>,
    /// What was wrong, for people.
    pub what: String,
    /// The bytes as they came, at most [`EVIDENCE_MAX`] of them.
    pub evidence: Bytes,
}

impl CorruptReport {
    /// A report on bytes of an open object.
    pub(super) fn of(
        object: &OpenObject,
        stage: Failure,
        chunk: Option<u64>,
        range: Range<u64>,
        what: &'static str,
        evidence: Bytes,
    ) -> CorruptReport {
        CorruptReport {
            key: object.key().to_owned(),
            file_id: object.file_id(),
            generation: object.generation(),
            trailer_hash: object.trailer_hash(),
            etag: Some(object.etag().0.clone()),
            stage,
            chunk,
            range,
            what: what.to_owned(),
            evidence: evidence.slice(..evidence.len().min(EVIDENCE_MAX)),
        }
    }
}

impl fmt::Debug for CorruptReport {
    /// Without the key, which is a path in STANDARD mode, and without the evidence.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CorruptReport")
            .field("file_id", &self.file_id)
            .field("generation", &self.generation)
            .field("stage", &self.stage)
            .field("chunk", &self.chunk)
            .field("range", &self.range)
            .field("what", &self.what)
            .finish_non_exhaustive()
    }
}

/// Hears of corrupt bytes, once for each chunk or object opened. Called on threads that serve reads: must not wait long.
pub trait Witness: Send + Sync + 'static {
    /// These bytes failed twice.
    fn corrupt(&self, report: CorruptReport);
}
