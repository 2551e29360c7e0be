//! Local files behind a trait: spool, cache, logs and pins reach the machine's disk only through [`Disk`].
//!
//! All calls block; asynchronous callers run them on a blocking pool. [`RealDisk`] is a directory of the machine, opened
//! once; [`SimDisk`] lives in memory and can run full, fail and lose power, so that crash consistency is tested and not hoped
//! for. Paths are relative, `/`-separated, and cannot leave the root: see [`check_path`].
//!
//! Durability, as on every POSIX system: written bytes are durable after [`DiskFile::sync_data`]; a created, renamed or removed
//! name is durable after [`Disk::sync_dir`] of its directory. After a failed sync nothing may be assumed of what was written
//! since the sync before, and trying again proves nothing: the kernel reports a lost page once.

mod real;
pub mod sim;

pub use real::RealDisk;
pub use sim::SimDisk;

use crate::error::{Error, Kind, Result, fail};
use std::sync::Arc;

/// Longest path that a disk accepts, in bytes.
pub const PATH_MAX: usize = 1024;

/// Bytes written at a time by [`overwrite`].
const OVERWRITE_STEP: usize = 1 << 20;

/// How [`Disk::open`] treats a file that is there or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read only; the file must exist.
    Read,
    /// Read and write; the file must exist.
    Write,
    /// Read and write; made when it is not there.
    Create,
    /// Read and write; made now, `Exists` when it is there.
    CreateNew,
}

/// What a listing found under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// Anything else (a symbolic link, a socket): never followed, never written.
    Other,
}

/// One line of [`Disk::list`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name within its directory.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
    /// Length in bytes of a file, 0 otherwise.
    pub len: u64,
}

/// Space of the filesystem below a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Free to this process.
    pub free: u64,
    /// In all.
    pub total: u64,
}

/// An open file. Positioned reads and writes only, so one handle serves many threads.
pub trait DiskFile: Send + Sync {
    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file.
    fn pread(&self, offset: u64, buf: &mut [u8]) -> Result<usize>;
    /// Writes all of `data` at `offset`. On an error any part of it may have been written.
    fn pwrite(&self, offset: u64, data: &[u8]) -> Result<()>;
    /// Length in bytes.
    fn len(&self) -> Result<u64>;
    /// Whether the length is 0.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or extends (with zeros) to `len` bytes.
    fn truncate(&self, len: u64) -> Result<()>;
    /// Gives the space of a range back; it reads as zeros then, and the length stays. `Unsupported` where the filesystem cannot.
    fn punch(&self, offset: u64, len: u64) -> Result<()>;
    /// Returns when contents and length are durable.
    fn sync_data(&self) -> Result<()>;
    /// Writes all of `data` at `offset` and returns when it is durable, without the rest of the file being written for it.
    fn pwrite_durable(&self, offset: u64, data: &[u8]) -> Result<()>;
}

/// Holds a lock until dropped (or until the process ends, however it ends).
pub trait LockGuard: Send + Sync {}

/// A directory tree on a local disk.
pub trait Disk: Send + Sync + 'static {
    /// Opens a file.
    fn open(&self, path: &str, access: Access) -> Result<Arc<dyn DiskFile>>;
    /// Makes a directory and its missing parents; fine when it is there.
    fn make_dir(&self, path: &str) -> Result<()>;
    /// Renames a file or directory; a file in the way is replaced in one step.
    fn rename(&self, from: &str, to: &str) -> Result<()>;
    /// Removes a file (or a link, itself).
    fn remove(&self, path: &str) -> Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, path: &str) -> Result<()>;
    /// Entries of a directory, sorted by name. "" is the root.
    fn list(&self, dir: &str) -> Result<Vec<Entry>>;
    /// Length of a file in bytes.
    fn len(&self, path: &str) -> Result<u64>;
    /// Returns when the names in a directory are durable. "" is the root.
    fn sync_dir(&self, dir: &str) -> Result<()>;
    /// Free and total space.
    fn space(&self) -> Result<Space>;
    /// Takes an exclusive lock on a file (made if need be), or fails at once with `Busy` and a message that names the holder.
    fn lock(&self, path: &str) -> Result<Box<dyn LockGuard>>;
    /// Where this disk is, for messages and status.
    fn describe(&self) -> String;
}

/// Refuses a path that is absolute, empty, too long, holds NUL, or has an empty, `.` or `..` component.
pub fn check_path(path: &str) -> Result<()> {
    let bad = path.len() > PATH_MAX || path.contains('\0') || path.split('/').any(|part| matches!(part, "" | "." | ".."));
    if bad {
        return fail(Kind::Invalid, "a local path must be relative, without empty, `.` or `..` components");
    }
    Ok(())
}

/// As [`check_path`], but "" (the root) is fine.
pub fn check_dir(path: &str) -> Result<()> {
    if path.is_empty() { Ok(()) } else { check_path(path) }
}

/// The directory part of a path ("" for the root) and the name.
pub fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// `dir/name`, or `name` in the root.
pub fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

/// Fills `buf` from `offset`; a file that ends before is `Corrupt`.
pub fn read_exact(file: &dyn DiskFile, offset: u64, buf: &mut [u8]) -> Result<()> {
    if file.pread(offset, buf)? != buf.len() {
        return fail(Kind::Corrupt, "a local file ends before the data that it should hold");
    }
    Ok(())
}

/// A whole file; `TooLarge` when it is longer than `max` bytes.
pub fn read_all(disk: &dyn Disk, path: &str, max: usize) -> Result<Vec<u8>> {
    let file = disk.open(path, Access::Read)?;
    let len = file.len()?;
    if len > max as u64 {
        return fail(Kind::TooLarge, format!("a local file of {len} bytes is longer than the {max} that are allowed"));
    }
    let mut data = vec![0; len as usize];
    read_exact(&*file, 0, &mut data)?;
    Ok(data)
}

/// Puts `data` at `path` so that after a crash either the old or the new contents are there, and durable on return.
///
/// One writer per path at a time: the temporary name is `path` with `.tmp` behind it.
pub fn replace(disk: &dyn Disk, path: &str, data: &[u8]) -> Result<()> {
    let tmp = format!("{path}.tmp");
    let written = write_tmp(disk, &tmp, data).and_then(|()| disk.rename(&tmp, path));
    if let Err(e) = written {
        // The half-written file is of no use; when even removing fails, the next replace truncates it.
        let _ = disk.remove(&tmp);
        return Err(e);
    }
    disk.sync_dir(split(path).0)
}

/// Overwrites all of a file with what `fill` puts into each buffer, makes that durable, and returns the bytes overwritten.
///
/// On flash, on copy-on-write filesystems and on anything that remaps or keeps snapshots, the old bytes may stay somewhere on
/// the drive: what makes them worthless there is that they are ciphertext whose key is gone.
pub fn overwrite(file: &dyn DiskFile, fill: &mut dyn FnMut(&mut [u8])) -> Result<u64> {
    let len = file.len()?;
    let mut buf = vec![0; OVERWRITE_STEP.min(usize::try_from(len).unwrap_or(OVERWRITE_STEP))];
    let mut at = 0;
    while at < len {
        let part = (len - at).min(buf.len() as u64) as usize;
        fill(&mut buf[..part]);
        file.pwrite(at, &buf[..part])?;
        at += part as u64;
    }
    file.sync_data()?;
    Ok(len)
}

fn write_tmp(disk: &dyn Disk, tmp: &str, data: &[u8]) -> Result<()> {
    let file = disk.open(tmp, Access::Create)?;
    file.truncate(0)?;
    file.pwrite(0, data)?;
    file.sync_data()
}

/// An operating-system error with what was being done. `what` names no user file.
fn os_error(e: std::io::Error, what: &str) -> Error {
    match e.raw_os_error() {
        Some(libc::ELOOP) => {
            Error::new(Kind::Denied, format!("{what}: a symbolic link is in the way; local state never follows links"))
        }
        Some(libc::EOPNOTSUPP | libc::ENOSYS) => Error::with_source(Kind::Unsupported, what.to_owned(), e),
        Some(libc::EMFILE | libc::ENFILE) => Error::with_source(Kind::TooMany, what.to_owned(), e),
        _ => Error::with_source(Error::from(std::io::Error::from(e.kind())).kind(), what.to_owned(), e),
    }
}

#[cfg(test)]
mod contract;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_the_root_are_refused() {
        for bad in ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\0b"] {
            assert_eq!(check_path(bad).map_err(|e| e.kind()), Err(Kind::Invalid), "{bad:?}");
        }
        assert_eq!(check_path(&"a".repeat(PATH_MAX + 1)).map_err(|e| e.kind()), Err(Kind::Invalid));
        for good in ["a", "a/b", ".a", "..a", "a/...", "ä"] {
            assert!(check_path(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn full_disk_is_no_space() {
        for errno in [libc::ENOSPC, libc::EDQUOT] {
            assert_eq!(os_error(std::io::Error::from_raw_os_error(errno), "x").kind(), Kind::NoSpace);
        }
        assert_eq!(os_error(std::io::Error::from_raw_os_error(libc::ELOOP), "x").kind(), Kind::Denied);
        assert_eq!(os_error(std::io::Error::from_raw_os_error(libc::EIO), "x").kind(), Kind::Unavailable);
    }
}
