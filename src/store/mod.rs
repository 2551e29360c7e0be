//! Buckets: the trait that every backend answers, and the plain types around it.
//!
//! A store moves opaque bytes. It knows nothing of encryption, names or versions. Backends are one file or folder each;
//! retry, time limits, bandwidth limits, metering and faults are decorators ([`layers`]). Every backend passes the one
//! contract suite, `tests/store.rs`.

pub mod dir;
pub mod layers;
pub mod memory;
mod open;
pub mod probe;
#[cfg(feature = "s3")]
pub mod s3;
pub mod url;

pub use open::{Options, Stack, layer, open};
pub use probe::probe;
pub use url::StoreSpec;

use crate::error::{Error, Kind, Result, fail};
use crate::types::Time;
use async_trait::async_trait;
use bytes::Bytes;
use std::ops::Range;

/// Longest key in bytes, prefix included: the limit of S3, kept everywhere so that a volume can move between stores.
pub const KEY_MAX: usize = 1024;

/// An object's key inside the volume's prefix: `/`-separated, no leading slash, any UTF-8 (a backend escapes what it must).
pub type Key = str;

/// A version tag as the store gives it: opaque, compared for equality only.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ETag(pub String);

/// What a store says of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Length in bytes of the whole object.
    pub len: u64,
    /// Version tag.
    pub etag: ETag,
}

/// Which bytes of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Span {
    /// All of it. Refused with `TooLarge` when longer than the given limit.
    Whole {
        /// Limit in bytes.
        max: u64,
    },
    /// `start..end`; fewer bytes come back when the object ends before `end`, none when it ends before `start`
    /// (`Got::start` is then the object's length).
    Range(Range<u64>),
    /// The last `n` bytes, or all when it is shorter.
    Last(u64),
}

/// What a write demands of the object that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cond {
    /// Nothing.
    Any,
    /// No object of that key exists.
    Absent,
    /// The object there has this tag.
    Match(ETag),
}

/// Bytes that came back, and the version they belong to.
#[derive(Clone, Debug)]
pub struct Got {
    /// The bytes asked for.
    pub bytes: Bytes,
    /// Offset of the first of them in the object.
    pub start: u64,
    /// The object they are part of.
    pub meta: Meta,
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Key.
    pub key: String,
    /// Length and tag.
    pub meta: Meta,
    /// When it was written, by the store's own clock, where the store tells. S3 gives whole seconds, and for an object that was
    /// put together from parts the time at which that upload began.
    pub modified: Option<Time>,
}

/// A page of a listing, in ascending byte order of keys. So are pages among each other, but on S3-compatible servers that keep
/// objects in directories and list `a/b` before `a-b`: do not merge pages by order there, only by key.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Objects.
    pub items: Vec<Listed>,
    /// Give this to the next call as `after`; `None` at the end. A mark of the store's own, not always a key.
    pub next: Option<String>,
}

/// A multipart upload under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UploadId(pub String);

/// Where a part lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartAt {
    /// 1-based part number; parts are put together in this order.
    pub number: u32,
    /// Offset of the part's first byte in the finished object (known to the caller; lets a file store write in place).
    pub offset: u64,
}

/// A part that the store holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it lies.
    pub at: PartAt,
    /// Its length.
    pub len: u64,
    /// The store's tag, needed to complete.
    pub tag: String,
}

/// What a store can do; found out by asking or by probing, never assumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// These credentials may write at all.
    pub write: bool,
    /// Conditional create: `Cond::Absent` is honoured, also under a race.
    pub put_if_absent: bool,
    /// Compare-and-swap: `Cond::Match` is honoured, also under a race.
    pub put_if_match: bool,
    /// The same conditions on completing a multipart upload.
    pub complete_if: bool,
    /// `part_copy` works inside the store, without moving bytes through this machine.
    pub part_copy: bool,
    /// `copy` works inside the store.
    pub copy: bool,
    /// Multipart uploads exist.
    pub multipart: bool,
    /// Smallest part but the last, bytes.
    pub min_part: u64,
    /// Largest part, bytes.
    pub max_part: u64,
    /// Most parts of an upload.
    pub max_parts: u32,
    /// Largest object a single `put` takes, bytes.
    pub max_put: u64,
}

impl Capability {
    /// The same store for somebody who may only read.
    pub fn read_only(self) -> Capability {
        Capability {
            write: false,
            put_if_absent: false,
            put_if_match: false,
            complete_if: false,
            part_copy: false,
            copy: false,
            multipart: false,
            ..self
        }
    }
}

/// A bucket. Errors: `NotFound`, `Stale` (a condition failed), `Denied`, `Unavailable` (temporary), `NoSpace`, `TooLarge`,
/// `Unsupported`, `Invalid`, `Corrupt` (the transfer's checksum failed).
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// A URL for people: no credentials in it.
    fn url(&self) -> String;
    /// The URL, with what else tells this store from all others: two servers may have buckets of the same name. What this machine
    /// remembers of a store goes by it.
    fn identity(&self) -> String {
        self.url()
    }
    /// What it can do.
    fn caps(&self) -> Capability;
    /// Reads bytes. With `only`, fails with `Stale` when the object's tag differs.
    async fn get(&self, key: &Key, span: Span, only: Option<&ETag>) -> Result<Got>;
    /// Length and tag.
    async fn head(&self, key: &Key) -> Result<Meta>;
    /// Writes an object whole and atomically: a reader sees all of it or the one before. `body` pieces are joined in order.
    async fn put(&self, key: &Key, body: Vec<Bytes>, cond: Cond) -> Result<Meta>;
    /// Deletes; an absent object is no error.
    async fn delete(&self, key: &Key) -> Result<()>;
    /// Deletes the version with this tag, and no other: `Stale` when another one is there. An absent object is no error. A store
    /// that cannot do both in one step looks first.
    async fn delete_if(&self, key: &Key, only: &ETag) -> Result<()> {
        match self.head(key).await {
            Ok(meta) if meta.etag != *only => fail(Kind::Stale, "the object was changed"),
            Ok(_) => self.delete(key).await,
            Err(e) if e.kind() == Kind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }
    /// Copies inside the store, atomically. `Stale` when the source has another tag.
    async fn copy(&self, from: &Key, only: &ETag, to: &Key, cond: Cond) -> Result<Meta>;
    /// Objects whose key begins with `prefix`, `limit` at most (a store may return fewer). `after` is the `next` of the page
    /// before, or a key to begin behind.
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page>;
    /// Begins a multipart upload.
    async fn upload_start(&self, key: &Key) -> Result<UploadId>;
    /// Uploads a part; the same number again replaces it.
    async fn upload_part(&self, key: &Key, id: &UploadId, at: PartAt, body: Vec<Bytes>) -> Result<Part>;
    /// Makes a part from bytes of an object that the store has already. `Stale` when the source has another tag.
    async fn upload_part_copy(
        &self,
        key: &Key,
        id: &UploadId,
        at: PartAt,
        from: &Key,
        only: &ETag,
        range: Range<u64>,
    ) -> Result<Part>;
    /// Puts the listed parts together, atomically; parts that are not listed are dropped. `Invalid` when a listed part is not
    /// the one the store holds, `NotFound` when the upload is unknown (also after it was completed), `Stale` when `cond` failed:
    /// the upload is then still there, to be aborted. After `Unavailable` it may have happened or not: ask with `head`.
    async fn upload_complete(&self, key: &Key, id: &UploadId, parts: &[Part], cond: Cond) -> Result<Meta>;
    /// Drops an upload and its parts; an unknown one is no error.
    async fn upload_abort(&self, key: &Key, id: &UploadId) -> Result<()>;
    /// Uploads under way below a prefix: key and id.
    async fn uploads(&self, prefix: &str) -> Result<Vec<(String, UploadId)>>;
    /// Those of them that were begun before a moment of the store's clock, and got no part since. None from a store that cannot
    /// tell.
    async fn idle_uploads(&self, _prefix: &str, _before: Time) -> Result<Vec<(String, UploadId)>> {
        Ok(Vec::new())
    }
}

/// Length of a body in pieces.
pub fn body_len(body: &[Bytes]) -> u64 {
    body.iter().map(|b| b.len() as u64).sum()
}

/// Refuses what no store takes as a key: nothing, too much, a leading slash, control characters (XML listings cannot carry
/// them).
pub fn check_key(key: &Key) -> Result<()> {
    if key.is_empty() || key.starts_with('/') || key.chars().any(|c| c.is_control()) {
        return fail(Kind::Invalid, "an object key is empty, begins with a slash or holds control characters");
    }
    if key.len() > KEY_MAX {
        return fail(Kind::NameTooLong, format!("an object key has {} bytes; stores take {KEY_MAX}", key.len()));
    }
    Ok(())
}

/// Checks the parts of an upload before it is completed: ascending numbers and, since offsets are known, no gap or overlap.
/// Gives the length of the object.
pub fn check_parts(parts: &[Part]) -> Result<u64> {
    let mut at = 0;
    let mut number = 0;
    for p in parts {
        if p.at.number <= number || p.at.offset != at {
            return fail(Kind::Invalid, format!("part {} does not follow on the part before it", p.at.number));
        }
        number = p.at.number;
        at += p.len;
    }
    if parts.is_empty() {
        return fail(Kind::Invalid, "an upload of no parts cannot be completed");
    }
    Ok(at)
}

/// Refuses numbers that no part of an upload has.
pub fn check_part_number(number: u32, max: u32) -> Result<()> {
    match (1..=max).contains(&number) {
        true => Ok(()),
        false => fail(Kind::Invalid, format!("part {number} is outside 1..={max}")),
    }
}

/// Refuses to make a part from bytes that its source, an object of `len` bytes, does not have.
pub fn check_source(range: &Range<u64>, len: u64) -> Result<()> {
    match range.start < range.end && range.end <= len {
        true => Ok(()),
        false => fail(Kind::Invalid, "a part is copied from no bytes, or from beyond the end of its source"),
    }
}

/// The part of an object of `len` bytes that a span means. `TooLarge` when `Whole` exceeds its limit.
pub fn resolve(span: &Span, len: u64) -> Result<Range<u64>> {
    match span {
        Span::Whole { max } if len > *max => {
            fail(Kind::TooLarge, format!("an object has {len} bytes where at most {max} are expected"))
        }
        Span::Whole { .. } => Ok(0..len),
        Span::Range(r) => {
            let start = r.start.min(len);
            Ok(start..r.end.min(len).max(start))
        }
        Span::Last(n) => Ok(len.saturating_sub(*n)..len),
    }
}

/// Attached to the refusal of a conditional write that was tried more than once: an earlier attempt may have been carried out, and
/// been replaced since.
#[derive(Debug)]
pub struct Undecided(Error);

impl Undecided {
    /// `refusal`, marked.
    pub fn attach(refusal: Error) -> Error {
        Error::with_source(
            refusal.kind(),
            "a write was refused, and whether an earlier try was carried out is not known",
            Undecided(refusal),
        )
    }
}

impl std::fmt::Display for Undecided {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Undecided {}

/// Whether a write that failed was certainly not carried out: its condition did not hold, at the first try.
pub fn refused(e: &Error) -> bool {
    matches!(e.kind(), Kind::Stale | Kind::NotFound) && e.cause::<Undecided>().is_none()
}

/// Whether trying again may help.
pub fn temporary(kind: Kind) -> bool {
    matches!(kind, Kind::Unavailable | Kind::Interrupted)
}
