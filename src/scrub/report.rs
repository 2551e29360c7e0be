//! What was found and how far it is, kept where others can look while the work goes on.

use crate::error::Error;
use crate::format::Failure;
use crate::types::FileId;
use parking_lot::Mutex;
use serde::{Serialize, Serializer};
use std::sync::atomic::{AtomicU64, Ordering};

/// Finds that are listed; further ones are only counted.
const FINDS_MAX: usize = 100_000;

/// What kind of find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// An entry names an object that is not there.
    Missing,
    /// An object does not verify.
    Corrupt,
    /// An older version, or another one of the same generation, lies where a newer one must be.
    RolledBack,
    /// A directory index does not verify, is gone, or is an old one.
    Index,
    /// An object below the prefix that is not of this volume.
    Foreign,
    /// An object of this volume that no index names.
    Orphan,
    /// A multipart upload that nobody has gone on with.
    Upload,
    /// The object is newer than the entry that names it.
    Lagging,
    /// A directory was being split, and whoever did that stopped half way.
    Frozen,
}

impl What {
    /// All of them, in the order of reports.
    pub const ALL: [What; 9] = [
        What::Missing,
        What::Corrupt,
        What::RolledBack,
        What::Index,
        What::Foreign,
        What::Orphan,
        What::Upload,
        What::Lagging,
        What::Frozen,
    ];

    /// The word in reports.
    pub fn name(self) -> &'static str {
        match self {
            What::Missing => "missing",
            What::Corrupt => "corrupt",
            What::RolledBack => "rolled-back",
            What::Index => "index",
            What::Foreign => "foreign",
            What::Orphan => "orphan",
            What::Upload => "upload",
            What::Lagging => "lagging",
            What::Frozen => "frozen",
        }
    }

    /// What a failed verification of an object is.
    pub(super) fn of(class: Option<Failure>) -> What {
        match class {
            Some(Failure::Rollback | Failure::Fork) => What::RolledBack,
            _ => What::Corrupt,
        }
    }
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Find {
    /// What kind.
    pub what: What,
    /// Key of the object; empty where there is none.
    pub key: String,
    /// The path in the volume, where one is known: for people who hold the key, never for logs.
    #[serde(serialize_with = "lossy", skip_serializing_if = "Option::is_none")]
    pub path: Option<Vec<u8>>,
    /// The file, in hex; empty where there is none.
    pub file: String,
    /// What is wrong, and where.
    pub detail: String,
}

fn lossy<S: Serializer>(path: &Option<Vec<u8>>, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&String::from_utf8_lossy(path.as_deref().unwrap_or_default()))
}

impl Find {
    pub(super) fn new(what: What, key: impl Into<String>, detail: impl Into<String>) -> Find {
        Find { what, key: key.into(), path: None, file: String::new(), detail: detail.into() }
    }

    pub(super) fn at(self, path: &[u8]) -> Find {
        Find { path: Some(path.to_vec()), ..self }
    }

    pub(super) fn of(self, file: FileId) -> Find {
        Find { file: file.hex(), ..self }
    }
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Directories read.
    pub dirs: u64,
    /// Their index objects.
    pub indexes: u64,
    /// Entries in them.
    pub entries: u64,
    /// Files verified.
    pub files: u64,
    /// Bytes of their contents.
    pub bytes: u64,
    /// Objects listed.
    pub objects: u64,
    /// Their bytes.
    pub object_bytes: u64,
    /// Objects that no index names and that are too young to be left over.
    pub young: u64,
    /// Finds beyond those that are listed.
    pub more_finds: u64,
}

/// The outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Everything was looked at.
    pub complete: bool,
    /// The indexes stood still for a moment: what no index names could be told.
    pub steady: bool,
    /// What was looked at.
    #[serde(flatten)]
    pub counts: Counts,
    /// What was found.
    pub finds: Vec<Find>,
}

impl Report {
    /// Nothing was found.
    pub fn is_clean(&self) -> bool {
        self.finds.is_empty() && self.counts.more_finds == 0
    }

    /// How many finds of a kind are listed.
    pub fn count(&self, what: What) -> usize {
        self.finds.iter().filter(|f| f.what == what).count()
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Directories read.
    pub dirs: u64,
    /// Files verified.
    pub files: u64,
    /// Files that are known to be there so far.
    pub files_seen: u64,
    /// Bytes verified.
    pub bytes: u64,
    /// Bytes of the files that are known so far.
    pub bytes_seen: u64,
    /// Finds.
    pub finds: u64,
}

/// Counters and finds, shared.
#[derive(Default)]
pub(super) struct Tally {
    report: Mutex<Report>,
    dirs: AtomicU64,
    files: AtomicU64,
    files_seen: AtomicU64,
    bytes: AtomicU64,
    bytes_seen: AtomicU64,
}

impl Tally {
    pub(super) fn find(&self, find: Find) {
        tracing::debug!(what = find.what.name(), "{}", find.detail);
        let report = &mut *self.report.lock();
        match report.finds.len() < FINDS_MAX {
            true => report.finds.push(find),
            false => report.counts.more_finds += 1,
        }
    }

    pub(super) fn dir(&self, indexes: u64, entries: u64) {
        self.dirs.fetch_add(1, Ordering::Relaxed);
        let c = &mut self.report.lock().counts;
        (c.dirs, c.indexes, c.entries) = (c.dirs + 1, c.indexes + indexes, c.entries + entries);
    }

    pub(super) fn seen(&self, bytes: u64) {
        self.files_seen.fetch_add(1, Ordering::Relaxed);
        self.bytes_seen.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn read(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.report.lock().counts.bytes += bytes;
    }

    pub(super) fn file(&self) {
        self.files.fetch_add(1, Ordering::Relaxed);
        self.report.lock().counts.files += 1;
    }

    pub(super) fn object(&self, bytes: u64) {
        let c = &mut self.report.lock().counts;
        (c.objects, c.object_bytes) = (c.objects + 1, c.object_bytes + bytes);
    }

    pub(super) fn young(&self) {
        self.report.lock().counts.young += 1;
    }

    pub(super) fn steady(&self, steady: bool) {
        self.report.lock().steady = steady;
    }

    pub(super) fn complete(&self) {
        let report = &mut *self.report.lock();
        report.complete = true;
        report.finds.sort_by(|a, b| (a.what, &a.path, &a.key).cmp(&(b.what, &b.path, &b.key)));
    }

    pub(super) fn report(&self) -> Report {
        self.report.lock().clone()
    }

    pub(super) fn progress(&self) -> Progress {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let finds = self.report.lock().finds.len() as u64;
        Progress {
            dirs: get(&self.dirs),
            files: get(&self.files),
            files_seen: get(&self.files_seen),
            bytes: get(&self.bytes),
            bytes_seen: get(&self.bytes_seen),
            finds,
        }
    }
}

/// The sentence of an error with its class, without what it was wrapped in.
pub(super) fn sentence(e: &Error) -> String {
    match Failure::of(e) {
        Some(class) => format!("{} ({})", e.message(), class.name()),
        None => e.message().to_owned(),
    }
}
