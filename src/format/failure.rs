//! Failure classes: the stage at which a verification failed. Quarantine records, the audit log and the negative vectors name
//! them; `docs/FORMAT.md` says which check gives which class, and in which order the checks run.

use crate::error::{Error, Kind, Result};
use std::borrow::Cow;
use std::fmt;

/// The stage at which stored bytes failed verification; always attached to an error of kind `Corrupt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// A length that nothing of this kind has.
    Length,
    /// Not an object of this kind at all.
    Magic,
    /// A version this reader does not know.
    Version,
    /// A suite this reader does not know, or not the volume's.
    Suite,
    /// A parameter, flag or reserved byte that may not be there, or not the volume's.
    Params,
    /// The signature does not hold, or nobody known made it.
    Signature,
    /// An object of another volume, file or owner.
    Identity,
    /// An older version than the one that must be there.
    Rollback,
    /// Another version of the same generation.
    Fork,
    /// The header is not the one that was signed.
    HeaderHash,
    /// The manifest is not the one that was signed.
    ManifestHash,
    /// A wrapped key does not open, or is not the expected one.
    KeyWrap,
    /// The manifest does not open or is malformed.
    Manifest,
    /// Sizes and offsets contradict each other.
    Size,
    /// The segment roots are not the ones that were signed.
    BodyRoot,
    /// A chunk's ciphertext is not what was written.
    Chunk,
    /// A segment's leaves are not what was written.
    Leaf,
    /// A directory index object does not verify or is malformed.
    Index,
    /// An object that must exist is gone.
    Omission,
    /// The volume config was not made by a holder of the volume's keys.
    Mac,
    /// A local sealed log is damaged.
    Log,
    /// A lease does not verify or is malformed.
    Lease,
}

impl Failure {
    /// The word used in documents, vectors and records.
    pub fn name(self) -> &'static str {
        match self {
            Failure::Length => "length",
            Failure::Magic => "magic",
            Failure::Version => "version",
            Failure::Suite => "suite",
            Failure::Params => "params",
            Failure::Signature => "signature",
            Failure::Identity => "identity",
            Failure::Rollback => "rollback",
            Failure::Fork => "fork",
            Failure::HeaderHash => "header-hash",
            Failure::ManifestHash => "manifest-hash",
            Failure::KeyWrap => "key-wrap",
            Failure::Manifest => "manifest",
            Failure::Size => "size",
            Failure::BodyRoot => "body-root",
            Failure::Chunk => "chunk",
            Failure::Leaf => "leaf",
            Failure::Index => "index",
            Failure::Omission => "omission",
            Failure::Mac => "mac",
            Failure::Log => "log",
            Failure::Lease => "lease",
        }
    }

    /// The class attached to `error`, if verification caused it.
    pub fn of(error: &Error) -> Option<Failure> {
        error.cause::<Failure>().copied()
    }

    /// An error of kind `Corrupt` with this class attached.
    pub fn error(self, message: impl Into<Cow<'static, str>>) -> Error {
        Error::with_source(Kind::Corrupt, message, self)
    }

    /// The same as an `Err`.
    pub fn fail<T>(self, message: impl Into<Cow<'static, str>>) -> Result<T> {
        Err(self.error(message))
    }

    /// Fails with `message` unless `good`.
    pub fn unless(self, good: bool, message: &'static str) -> Result<()> {
        if good { Ok(()) } else { self.fail(message) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failure class {}", self.name())
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_carries_its_class_through_context() {
        let e = Failure::Leaf.error("a leaf differs").context("scrubbing");
        assert_eq!((e.kind(), Failure::of(&e)), (Kind::Corrupt, Some(Failure::Leaf)));
        assert_eq!(e.to_string(), "scrubbing: a leaf differs: failure class leaf");
        assert_eq!(Failure::of(&Error::new(Kind::Corrupt, "x")), None);
    }
}
