//! What a mount says of itself: the plain struct behind `.smpfs/status`, `smpfs status` and the watchdog.
//!
//! It holds counts, sizes and states, never a key; the one path in it is the mount point, which the user chose.

use crate::lease::{Account, Standing};
use serde::{Deserialize, Serialize};

/// How a mount is doing, in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// Everything answers.
    #[default]
    Ok,
    /// It serves, with errors that somebody should look at (failed uploads, quarantined objects).
    Degraded,
    /// The store does not answer; cached data is still readable.
    Offline,
    /// Unmounted from the directory tree, uploading what is left.
    Draining,
    /// No process serves it any more; what it had not uploaded waits for the next mount.
    Dead,
}

impl Health {
    /// The word as it is printed.
    pub fn word(self) -> &'static str {
        match self {
            Health::Ok => "ok",
            Health::Degraded => "degraded",
            Health::Offline => "offline",
            Health::Draining => "draining",
            Health::Dead => "dead",
        }
    }
}

/// Data that has been acknowledged to programs but is not in the bucket yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pending {
    /// Files with something to upload.
    pub files: u64,
    /// Bytes of plaintext still to upload.
    pub bytes: u64,
    /// Bytes of plaintext uploaded since the mount began: with `bytes` it makes a progress bar.
    pub sent_bytes: u64,
    /// Changes of names and attributes that no index in the bucket holds yet.
    pub names: u64,
}

impl Pending {
    /// Whether everything is in the bucket.
    pub fn is_empty(&self) -> bool {
        self.files == 0 && self.bytes == 0 && self.names == 0
    }
}

/// A cache and how full it is. Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fill {
    /// In use.
    pub used: u64,
    /// Limit; 0 when it is switched off.
    pub limit: u64,
}

/// Traffic since the mount began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// Requests sent to the store.
    pub requests: u64,
    /// Requests that were tried again.
    pub retries: u64,
    /// Bytes received from the store.
    pub bytes_down: u64,
    /// Bytes sent to the store.
    pub bytes_up: u64,
    /// Chunks answered from a cache.
    pub cache_hits: u64,
    /// Chunks fetched.
    pub cache_misses: u64,
}

/// Errors since the mount began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Trouble {
    /// Operations that ended with an error of the store.
    pub store_errors: u64,
    /// Verifications that failed.
    pub corrupt: u64,
    /// Objects in the quarantine.
    pub quarantined: u64,
    /// Panics caught in an operation.
    pub panics: u64,
    /// The last error, as a sentence without file names.
    pub last_error: Option<String>,
    /// When it happened, seconds since 1970 UTC.
    pub last_error_time: Option<i64>,
}

/// What this machine and others changed at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Conflicts {
    /// Settled since the mount began: nothing is lost, look for names with "conflict" in them.
    pub settled: u64,
    /// Versions of files on their way to become files of their own.
    pub waiting: u64,
    /// Settled ones whose copy has zeros for parts that are gone from the bucket; their names have "incomplete" in them.
    pub incomplete: u64,
    /// Versions that cannot be kept; what was written is in the spool.
    pub stuck: u64,
}

/// The lease under which a mount writes, where the store takes one writer at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lease {
    /// `held`; `lapsed`: it could not be renewed in time, and nothing is written meanwhile; `lost`: another machine has it, and this
    /// mount is read-only; `released`. Empty where none is needed.
    pub state: String,
    /// When this mount took it, seconds since 1970 UTC.
    pub since: Option<i64>,
    /// When it was renewed last, seconds since 1970 UTC.
    pub renewed: Option<i64>,
}

impl From<&Account> for Lease {
    fn from(a: &Account) -> Lease {
        let state = match a.standing {
            Standing::Held => "held",
            Standing::Lapsed => "lapsed",
            Standing::Lost => "lost",
            Standing::Released => "released",
        };
        Lease { state: state.to_owned(), since: Some(a.taken.sec), renewed: Some(a.renewed.sec) }
    }
}

/// A mount's own account of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Version of smpfs that serves it.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Volume id, hexadecimal.
    pub volume_id: String,
    /// The volume's name, when it has one.
    pub volume_name: String,
    /// `zero-knowledge` or `standard`.
    pub mode: String,
    /// The store's URL, without credentials.
    pub store: String,
    /// Where it is mounted.
    pub mount_point: String,
    /// Whether it refuses changes.
    pub read_only: bool,
    /// Seconds since the mount began to serve.
    pub uptime_s: u64,
    /// In one word.
    pub health: Health,
    /// The store does not answer, whatever the word is.
    pub store_away: bool,
    /// What the store does not do, and what follows from it: a sentence each.
    pub notes: Vec<String>,
    /// What waits for the next mount, in words, when no process serves this one.
    pub unsent: Option<String>,
    /// What is not in the bucket yet.
    pub pending: Pending,
    /// Verified plaintext in memory.
    pub memory: Fill,
    /// Sealed chunks on disk.
    pub disk_cache: Fill,
    /// Sealed dirty data on disk.
    pub spool: Fill,
    /// Open files.
    pub open_files: u64,
    /// Requests and bytes.
    pub traffic: Traffic,
    /// Errors.
    pub trouble: Trouble,
    /// Conflicts with other machines.
    pub conflicts: Conflicts,
    /// The lease of a store that takes one writer.
    pub lease: Lease,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_daemon_may_leave_fields_out() {
        let s: Status = serde_json::from_str(r#"{"version":"0.1.0","health":"draining","pending":{"files":2}}"#).unwrap();
        assert_eq!((s.health, s.pending.files, s.pending.bytes), (Health::Draining, 2, 0));
        assert!(!s.pending.is_empty());
        assert_eq!(s.health.word(), serde_json::to_value(s.health).unwrap().as_str().unwrap());
    }
}
