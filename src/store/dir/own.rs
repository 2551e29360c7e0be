//! The store's own files in its reserved area: locks, and what lies in the folder of an upload.
//!
//! Whoever may write into the bucket's directory may put anything in their place: a pipe must not hang the caller, a link must
//! not lead a write elsewhere.

use super::super::*;
use super::place::err;
use crate::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Longest record that is read; a key is the longest, and far shorter.
const MAX_RECORD: u64 = 64 << 10;

/// Opens a file of the reserved area. What is no regular file is told by its name: the area holds no names of the user's. It is
/// `Unavailable`, not `Denied`: nobody may take a bucket for a read-only one because of it, and once it is gone all goes on.
pub(super) fn open(path: &Path, how: &mut OpenOptions, what: &'static str) -> Result<File> {
    // O_NONBLOCK: a pipe answers at once; it means nothing for regular files.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = match how.mode(0o600).custom_flags(flags).open(path) {
        Ok(file) => file,
        // A link; a pipe nobody reads, a socket, or a device that is not there; a directory.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ELOOP | libc::ENXIO | libc::ENODEV | libc::EISDIR)) => {
            return Err(irregular(path));
        }
        Err(e) => return Err(err(what, e)),
    };
    match file.metadata().map_err(|e| err(what, e))?.is_file() {
        true => Ok(file),
        false => Err(irregular(path)),
    }
}

/// Reads a small file of the reserved area whole.
pub(super) fn read(path: &Path, what: &'static str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = open(path, OpenOptions::new().read(true), what)?;
    let mut limited = file.take(MAX_RECORD);
    limited.read_to_end(&mut bytes).map_err(|e: io::Error| err(what, e))?;
    Ok(bytes)
}

fn irregular(path: &Path) -> Error {
    Error::new(Kind::Unavailable, format!("{} is no regular file, and smpfs puts nothing else there: remove it", path.display()))
}
