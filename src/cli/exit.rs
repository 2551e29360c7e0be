//! Exit codes: part of the interface, listed in `--help` and docs/CONFIGURATION.md.

use crate::error::Kind;

/// How a subcommand ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Any other error.
    Other = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// Wrong passphrase or recovery code.
    Passphrase = 3,
    /// The store cannot be reached.
    Unreachable = 4,
    /// What the store holds failed verification.
    Corrupt = 5,
    /// Not everything is in the bucket yet; smpfs goes on uploading.
    Pending = 6,
    /// In use: files are open, or it is mounted already, here or elsewhere.
    Busy = 7,
    /// The store or the system denies access.
    Denied = 8,
    /// No such volume, store or mount.
    NotFound = 9,
    /// A scrub found something.
    Finds = 10,
    /// No process serves the mount any more, or what it left waits for the next one.
    Dead = 11,
}

impl Exit {
    /// Every code, in order, with its meaning: for `--help`.
    pub const ALL: [(Exit, &'static str); 12] = [
        (Exit::Ok, "done"),
        (Exit::Other, "any other error"),
        (Exit::Usage, "the command line or the configuration is wrong"),
        (Exit::Passphrase, "wrong passphrase or recovery code"),
        (Exit::Unreachable, "the store cannot be reached"),
        (Exit::Corrupt, "what the store holds failed verification"),
        (Exit::Pending, "not everything is in the bucket yet; smpfs, or the next mount, goes on"),
        (Exit::Busy, "in use: files are open, or it is mounted already, here or elsewhere"),
        (Exit::Denied, "the store or the system denies access"),
        (Exit::NotFound, "no such volume, store or mount"),
        (Exit::Finds, "scrub found something; its report says what"),
        (Exit::Dead, "the mount process has gone; what it left waits for the next mount"),
    ];

    /// The number.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The code of that number (of another process's exit, or of a message).
    pub fn from_code(code: u8) -> Exit {
        Exit::ALL.iter().map(|(e, _)| *e).find(|e| e.code() == code).unwrap_or(Exit::Other)
    }
}

impl From<Kind> for Exit {
    fn from(kind: Kind) -> Exit {
        match kind {
            Kind::Invalid => Exit::Usage,
            Kind::Locked => Exit::Passphrase,
            Kind::Unavailable => Exit::Unreachable,
            Kind::Corrupt => Exit::Corrupt,
            Kind::Busy => Exit::Busy,
            Kind::Denied | Kind::NotPermitted => Exit::Denied,
            Kind::NotFound => Exit::NotFound,
            _ => Exit::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_their_places_and_come_back() {
        for (i, (exit, _)) in Exit::ALL.iter().enumerate() {
            assert_eq!(usize::from(exit.code()), i);
            assert_eq!(Exit::from_code(exit.code()), *exit);
        }
        assert_eq!(Exit::from_code(77), Exit::Other);
        assert_eq!((Exit::from(Kind::Locked), Exit::from(Kind::NoSpace)), (Exit::Passphrase, Exit::Other));
    }

    #[test]
    fn the_document_lists_them() {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/CONFIGURATION.md")).unwrap();
        for (exit, meaning) in Exit::ALL {
            assert!(text.contains(&format!("| {} | {meaning} |", exit.code())), "{exit:?}");
        }
    }
}
