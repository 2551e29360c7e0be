//! What the audit log speaks of.

use crate::crypto::hash::sha256;
use serde::Serialize;

/// How object keys that may be paths are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// As the first 16 hex digits of their SHA-256.
    Hidden,
    /// As they are.
    Shown,
}

/// Something that happened. Holds no plaintext; an object key may be a path in STANDARD mode, see [`Names`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The volume was made.
    Init,
    /// A mount began to serve.
    Mount {
        /// Whether it refuses changes.
        read_only: bool,
        /// Version of smpfs.
        version: String,
    },
    /// A mount ended.
    Unmount {
        /// Whether everything written is in the bucket.
        clean: bool,
        /// Files that still wait for their upload.
        pending: u64,
    },
    /// Somebody tried to unlock the volume with a wrong secret.
    UnlockFailed,
    /// Bytes failed verification.
    Corrupt {
        /// Key of the object.
        object: String,
        /// Version tag that the store gave.
        version: String,
        /// File id in hex, when known.
        file: String,
        /// Generation that was expected.
        generation: u64,
        /// Number of the chunk in the file; `None` for the object as a whole.
        chunk: Option<u64>,
        /// The check that failed.
        stage: String,
        /// What should have been there.
        expected: String,
        /// What was there.
        got: String,
    },
    /// An object that no index entry names.
    Foreign {
        /// Its key.
        object: String,
    },
    /// A version older than one this machine has seen, or another one of the same generation.
    Rollback {
        /// Key of the object.
        object: String,
        /// Generation that was seen here before.
        seen: u64,
        /// Generation that the store returned.
        got: u64,
    },
    /// An object that this machine has seen is gone.
    Omission {
        /// Key of the object.
        object: String,
    },
    /// Local files were overwritten and removed.
    Wipe {
        /// Files.
        files: u64,
        /// Bytes overwritten.
        bytes: u64,
        /// Files that could not be overwritten or removed.
        failed: u64,
    },
    /// A new version of a file is in the bucket.
    Committed {
        /// File id in hex.
        file: String,
        /// Its generation.
        generation: u64,
    },
    /// This machine and another one changed the same file or name.
    Conflict {
        /// What became of it: `contents`, `name`, `kept`, `rescued`, `undone`, `incomplete` or `stuck`.
        kind: String,
        /// File id in hex, if it is a file.
        file: String,
        /// The file that this machine's version has become, if it has.
        copy: String,
    },
    /// The lease of a store that takes one writer at a time changed hands, or was not renewed in time.
    Lease {
        /// `taken-over` by this mount from somebody; `lapsed`; or `lost` to somebody.
        what: String,
        /// Whose it was, or why: a sentence.
        detail: String,
    },
    /// Somebody used the control files or commands.
    Control {
        /// What was asked.
        action: String,
        /// User who asked.
        uid: u32,
        /// Whether it was done.
        ok: bool,
    },
    /// A local log could not be read to its end.
    LocalDamage {
        /// Which log.
        log: String,
        /// First byte that cannot be read.
        at: u64,
        /// Bytes lost.
        lost: u64,
    },
    /// Events that could not be written here.
    Dropped {
        /// How many.
        count: u64,
    },
    /// The oldest files were destroyed to keep the log within its bound: the chain begins with this line number.
    Rotated {
        /// Number of the first line that is kept.
        first: u64,
    },
    /// The log did not verify when it was opened.
    AuditBroken {
        /// What was wrong.
        problems: Vec<String>,
    },
}

impl Event {
    /// Whether the line must be on the disk before anything else is written.
    pub(super) fn urgent(&self) -> bool {
        !matches!(self, Event::Committed { .. } | Event::Control { .. } | Event::Dropped { .. })
    }

    /// The event as it may be written.
    pub(super) fn shown(mut self, names: Names) -> Event {
        if names == Names::Hidden
            && let Event::Corrupt { object, .. }
            | Event::Foreign { object }
            | Event::Rollback { object, .. }
            | Event::Omission { object } = &mut self
        {
            *object = shown_key(object, names);
        }
        self
    }
}

/// An object's key as it may be written: keys below `.smpfs/` say nothing anyway, others are paths.
pub(super) fn shown_key(key: &str, names: Names) -> String {
    if names == Names::Shown || key.starts_with(".smpfs/") || key.starts_with("sha256:") {
        return key.to_owned();
    }
    format!("sha256:{}", &data_encoding::HEXLOWER.encode(&sha256(&[key.as_bytes()]))[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_hidden_unless_allowed() {
        let event = |object: &str| Event::Foreign { object: object.to_owned() };
        assert_eq!(event("patients/doe.dcm").shown(Names::Shown), event("patients/doe.dcm"));
        let hidden = event("patients/doe.dcm").shown(Names::Hidden);
        assert_ne!(hidden, event("patients/doe.dcm"));
        assert_eq!(hidden.clone().shown(Names::Hidden), hidden);
        assert_eq!(event(".smpfs/o/ab/cd").shown(Names::Hidden), event(".smpfs/o/ab/cd"));
        let omitted = Event::Omission { object: "a/b".to_owned() }.shown(Names::Hidden);
        assert!(!serde_json::to_string(&omitted).unwrap().contains("a/b"));
    }
}
