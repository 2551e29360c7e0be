//! Errors: one kind table, one errno table, one sentence of advice for people.

use std::borrow::Cow;
use std::fmt;

/// What went wrong, as every layer of smpfs understands it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The object, file or directory does not exist.
    NotFound,
    /// It exists already.
    Exists,
    /// A path component is not a directory.
    NotDir,
    /// The operation wants a file and got a directory.
    IsDir,
    /// The directory is not empty.
    NotEmpty,
    /// A name or path is too long.
    NameTooLong,
    /// An argument makes no sense.
    Invalid,
    /// Credentials or permissions do not allow it.
    Denied,
    /// The operation is not permitted to anybody (EPERM).
    NotPermitted,
    /// The mount or the volume is read-only.
    ReadOnly,
    /// The volume's keys could not be unlocked: wrong passphrase or recovery code.
    Locked,
    /// A precondition failed: somebody else changed it first.
    Stale,
    /// In use.
    Busy,
    /// No space left: local disk, quota or bucket.
    NoSpace,
    /// A file would grow beyond what the format holds.
    TooLarge,
    /// The store does not answer, or not in time. Trying again may help.
    Unavailable,
    /// Authentication failed: the bytes are not what was written. Never retried in silence.
    Corrupt,
    /// Not possible on this store, volume or kernel.
    Unsupported,
    /// The handle was not opened for this.
    BadHandle,
    /// No such extended attribute.
    NoAttr,
    /// A result does not fit the caller's buffer.
    Range,
    /// No data or hole at or behind this offset (ENXIO of lseek).
    NoData,
    /// Too many links, files or handles.
    TooMany,
    /// Interrupted by a signal or by unmount.
    Interrupted,
    /// A mistake in smpfs itself.
    Bug,
}

impl Kind {
    /// The errno that a program sees. The only such table in smpfs.
    pub fn errno(self) -> i32 {
        match self {
            Kind::NotFound => libc::ENOENT,
            Kind::Exists => libc::EEXIST,
            Kind::NotDir => libc::ENOTDIR,
            Kind::IsDir => libc::EISDIR,
            Kind::NotEmpty => libc::ENOTEMPTY,
            Kind::NameTooLong => libc::ENAMETOOLONG,
            Kind::Invalid => libc::EINVAL,
            Kind::Denied => libc::EACCES,
            Kind::NotPermitted => libc::EPERM,
            Kind::ReadOnly => libc::EROFS,
            Kind::Locked => libc::ENOKEY,
            Kind::Stale => libc::ESTALE,
            Kind::Busy => libc::EBUSY,
            Kind::NoSpace => libc::ENOSPC,
            Kind::TooLarge => libc::EFBIG,
            Kind::Unavailable | Kind::Corrupt | Kind::Bug => libc::EIO,
            Kind::Unsupported => libc::EOPNOTSUPP,
            Kind::BadHandle => libc::EBADF,
            Kind::NoAttr => libc::ENODATA,
            Kind::Range => libc::ERANGE,
            Kind::NoData => libc::ENXIO,
            Kind::TooMany => libc::EMLINK,
            Kind::Interrupted => libc::EINTR,
        }
    }

    /// What a person can do about it: one sentence, no names, no secrets.
    pub fn advice(self) -> &'static str {
        match self {
            Kind::NotFound => "Check the spelling of the path or URL.",
            Kind::Exists => "Choose another name or place; nothing there was changed.",
            Kind::NotDir | Kind::IsDir => "Check whether the path is a file or a directory.",
            Kind::NotEmpty => "Remove what is in the directory first.",
            Kind::NameTooLong => "Names hold up to 255 bytes, paths up to 4096.",
            Kind::Invalid => "Check the arguments; `smpfs help` explains them.",
            Kind::Denied => "Check the permissions and the credentials of the store.",
            Kind::NotPermitted => "This operation is not allowed here.",
            Kind::ReadOnly => {
                "Mount without --read-only to change files; where it was, `smpfs status` says why it takes no changes."
            }
            Kind::Locked => "Check the passphrase or the recovery code: either opens the volume.",
            Kind::Stale => "Another machine changed it first; open the file again.",
            Kind::Busy => "Close what uses it and try again.",
            Kind::NoSpace => "Free space for the spool or in the bucket and try again; nothing acknowledged was lost.",
            Kind::TooLarge => "The file would be larger than a volume can hold.",
            Kind::Unavailable => "Check the network and the store; what a mount has accepted it goes on uploading by itself.",
            Kind::Corrupt => {
                "The stored bytes failed verification; see .smpfs/status and the quarantine. Restore the object from a backup or an older version of the bucket."
            }
            Kind::Unsupported => "This store or volume cannot do that.",
            Kind::BadHandle => "Open the file for what is to be done with it.",
            Kind::NoAttr | Kind::Range | Kind::NoData => "Check the attribute's name and size.",
            Kind::TooMany => "Close some files or links and try again.",
            Kind::Interrupted => "Try again.",
            Kind::Bug => "This is a mistake in smpfs: please report it with the log.",
        }
    }
}

/// An error: its kind, what was being done, and where it came from.
///
/// The message is for people and logs: it never holds a key, a passphrase, plaintext or (at info level) a file name.
pub struct Error {
    kind: Kind,
    message: Cow<'static, str>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result of nearly everything in smpfs.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind`, described by `message`.
    pub fn new(kind: Kind, message: impl Into<Cow<'static, str>>) -> Self {
        Error { kind, message: message.into(), source: None }
    }

    /// The same with the error that caused it.
    pub fn with_source(
        kind: Kind,
        message: impl Into<Cow<'static, str>>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Error { kind, message: message.into(), source: Some(source.into()) }
    }

    /// Puts `what` in front of the message: "reading the index: the store does not answer".
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = Cow::Owned(format!("{what}: {}", self.message));
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The errno that a program sees.
    pub fn errno(&self) -> i32 {
        self.kind.errno()
    }

    /// The message without its sources.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The cause of type `T`, where one is attached: `format` attaches the class of a failed verification.
    pub fn cause<T: std::error::Error + 'static>(&self) -> Option<&T> {
        let mut source = self.source.as_ref().map(|s| s.as_ref() as &(dyn std::error::Error + 'static));
        while let Some(s) = source {
            if let Some(found) = s.downcast_ref() {
                return Some(found);
            }
            source = s.source();
        }
        None
    }

    /// A copy without the source (for errors that are kept and reported later).
    pub fn duplicate(&self) -> Self {
        Error { kind: self.kind, message: Cow::Owned(self.to_string()), source: None }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut source = self.source.as_ref().map(|s| s.as_ref() as &dyn std::error::Error);
        while let Some(s) = source {
            write!(f, ": {s}")?;
            source = s.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.kind)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let kind = match e.kind() {
            K::NotFound => Kind::NotFound,
            K::AlreadyExists => Kind::Exists,
            K::PermissionDenied => Kind::Denied,
            K::NotADirectory => Kind::NotDir,
            K::IsADirectory => Kind::IsDir,
            K::DirectoryNotEmpty => Kind::NotEmpty,
            K::StorageFull | K::QuotaExceeded => Kind::NoSpace,
            K::FileTooLarge => Kind::TooLarge,
            K::ReadOnlyFilesystem => Kind::ReadOnly,
            K::InvalidInput | K::InvalidFilename => Kind::Invalid,
            K::TimedOut | K::ConnectionRefused | K::ConnectionReset | K::BrokenPipe => Kind::Unavailable,
            K::Interrupted => Kind::Interrupted,
            _ => Kind::Unavailable,
        };
        Error::with_source(kind, "input/output", e)
    }
}

/// Shorthand for `Err(Error::new(..))`.
pub fn fail<T>(kind: Kind, message: impl Into<Cow<'static, str>>) -> Result<T> {
    Err(Error::new(kind, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corrupt_is_eio_and_names_the_quarantine() {
        assert_eq!(Kind::Corrupt.errno(), libc::EIO);
        assert!(Kind::Corrupt.advice().contains("quarantine"));
    }

    #[test]
    fn display_walks_the_sources_once() {
        let io = std::io::Error::from_raw_os_error(libc::ENOSPC);
        let e = Error::from(io).context("writing the spool");
        assert_eq!(e.kind(), Kind::NoSpace);
        assert!(e.to_string().starts_with("writing the spool: input/output: "), "{e}");
    }
}
