//! POSIX operations without the kernel: the trait that `fs::Fs`, the control overlay and the reference model answer.
//!
//! Nothing here knows FUSE. A request carries who asks ([`Caller`]); an answer is plain data or an [`Error`](crate::error::Error)
//! whose kind maps to an errno in one place. What the kernel should forget goes the other way, through [`Invalidations`].

mod invalidate;

pub use invalidate::{Invalidate, Invalidations, MAX_INVALIDATIONS};

use crate::error::Result;
use crate::types::Time;
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

/// An inode number. 1 is the root. Numbers are never reused while a mount lives; those with the top bit set belong to the
/// control tree.
pub type Ino = u64;
/// The root directory.
pub const ROOT: Ino = 1;

/// Who asks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Process.
    pub pid: u32,
}

/// What a directory entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileType {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device.
    CharDev,
    /// Block device.
    BlockDev,
}

/// Attributes as stat(2) shows them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Size in bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the contents.
    pub mtime: Time,
    /// Last change of contents or attributes.
    pub ctime: Time,
    /// Creation.
    pub btime: Time,
    /// Type.
    pub kind: FileType,
    /// Permission bits, 12 bits (suid, sgid, sticky, rwxrwxrwx).
    pub perm: u16,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u64,
}

/// A found or made inode: its attributes and how long the kernel may believe name and attributes.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Attributes.
    pub attr: Attr,
    /// How long both name and attributes may be cached by the kernel.
    pub ttl: Duration,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The current time.
    Now,
    /// A given time.
    To(Time),
}

/// Attributes to change; `None` leaves one alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permission bits (12 bits).
    pub perm: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Truncate or extend to this size.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
}

/// An open file: its handle and what the kernel may do with its pages.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// Handle: names this open until `release`.
    pub fh: u64,
    /// The kernel may keep pages it has of this inode (contents unchanged since they were read).
    pub keep_cache: bool,
    /// Bypass the page cache (virtual files).
    pub direct_io: bool,
}

/// One end of a copy between open files.
#[derive(Clone, Copy, Debug)]
pub struct CopyEnd {
    /// The file.
    pub ino: Ino,
    /// Its handle.
    pub fh: u64,
    /// Where the range begins.
    pub offset: u64,
}

/// One entry of a directory listing.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Name, raw bytes.
    pub name: Vec<u8>,
    /// Attributes (`ino` and `kind` at least; all of them when asked with `plus`).
    pub attr: Attr,
    /// With `plus`: how long name and attributes may be cached by the kernel.
    pub ttl: Duration,
    /// Offset of the entry after this one: give it to `readdir` to go on.
    pub next: u64,
}

/// What statfs(2) shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct StatFs {
    /// Block size in bytes.
    pub bsize: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Blocks free to ordinary users.
    pub bavail: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Longest name.
    pub namelen: u32,
}

/// A new inode made by [`Ops::mknod`], [`Ops::mkdir`], [`Ops::create`]: permission bits have the umask applied already.
#[derive(Clone, Copy, Debug)]
pub struct NewNode {
    /// Type (`File`, `Fifo`, `Socket`, `CharDev`, `BlockDev`; `mkdir` and `symlink` have calls of their own).
    pub kind: FileType,
    /// Permission bits (12 bits).
    pub perm: u16,
    /// Device number of a device node.
    pub rdev: u64,
}

/// What the kernel asks of a filesystem. Permission checks are the kernel's (`default_permissions`).
///
/// The kernel checks much before it asks (that a name is no directory before `unlink`, that a rename makes no cycle), yet an
/// implementation checks again: the kernel's picture may be stale, and tests come without a kernel. Symbolic links are followed
/// by the kernel, never here. Every call must end by itself: whoever serves the mount answers a request that takes too long with
/// EIO, and the call goes on to its end without anybody waiting (it is not cancelled).
///
/// The lookup count rule: every successful `lookup`, `mknod`, `mkdir`, `symlink`, `create`, `link` and every entry returned by
/// `readdir` with `plus` (but `.` and `..`) raises the inode's count by one; `forget` lowers it. An entry that was returned and
/// could not be delivered is forgotten by the caller at once.
/// `*_now` methods never wait: they answer from memory or return `None`, and the caller then takes the async method.
#[async_trait]
pub trait Ops: Send + Sync + 'static {
    /// Finds `name` in `parent`.
    async fn lookup(&self, who: Caller, parent: Ino, name: &[u8]) -> Result<Found>;
    /// [`Ops::lookup`] answered from memory, or `None`.
    fn lookup_now(&self, _who: Caller, _parent: Ino, _name: &[u8]) -> Option<Result<Found>> {
        None
    }
    /// Lowers the lookup count by `n`. Never waits, never fails.
    fn forget(&self, ino: Ino, n: u64);
    /// Attributes of an inode.
    async fn getattr(&self, who: Caller, ino: Ino) -> Result<Found>;
    /// [`Ops::getattr`] answered from memory, or `None`.
    fn getattr_now(&self, _who: Caller, _ino: Ino) -> Option<Result<Found>> {
        None
    }
    /// Changes attributes, truncates.
    async fn setattr(&self, who: Caller, ino: Ino, fh: Option<u64>, set: SetAttr) -> Result<Found>;
    /// Target of a symbolic link.
    async fn readlink(&self, who: Caller, ino: Ino) -> Result<Vec<u8>>;
    /// Makes a file, fifo, socket or device node.
    async fn mknod(&self, who: Caller, parent: Ino, name: &[u8], new: NewNode) -> Result<Found>;
    /// Makes a directory.
    async fn mkdir(&self, who: Caller, parent: Ino, name: &[u8], perm: u16) -> Result<Found>;
    /// Removes a name that is not a directory.
    async fn unlink(&self, who: Caller, parent: Ino, name: &[u8]) -> Result<()>;
    /// Removes an empty directory.
    async fn rmdir(&self, who: Caller, parent: Ino, name: &[u8]) -> Result<()>;
    /// Makes a symbolic link.
    async fn symlink(&self, who: Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Found>;
    /// Renames. `flags` are renameat2(2)'s; unknown ones are `Invalid`.
    async fn rename(&self, who: Caller, parent: Ino, name: &[u8], newparent: Ino, newname: &[u8], flags: u32) -> Result<()>;
    /// Makes a hard link.
    async fn link(&self, who: Caller, ino: Ino, newparent: Ino, newname: &[u8]) -> Result<Found>;
    /// Opens a file. `flags` are open(2)'s, without `O_CREAT`, `O_EXCL` and `O_TRUNC`: a truncation arrives as a
    /// [`Ops::setattr`] of size 0 afterwards.
    async fn open(&self, who: Caller, ino: Ino, flags: i32) -> Result<Opened>;
    /// Creates and opens a file in one step. Where the name exists already (another machine was faster) and `flags` hold no
    /// `O_EXCL`, it is opened as it is, truncated with `O_TRUNC`; with `O_EXCL` the answer is `Exists`.
    async fn create(&self, who: Caller, parent: Ino, name: &[u8], perm: u16, flags: i32) -> Result<(Found, Opened)>;
    /// Reads up to `size` bytes at `offset`; fewer only at the end of the file.
    async fn read(&self, who: Caller, ino: Ino, fh: u64, offset: u64, size: u32) -> Result<Bytes>;
    /// [`Ops::read`] answered from memory, or `None`.
    fn read_now(&self, _who: Caller, _ino: Ino, _fh: u64, _offset: u64, _size: u32) -> Option<Result<Bytes>> {
        None
    }
    /// Writes all of `data` at `offset` (at the end when the handle was opened with O_APPEND) and returns its length.
    async fn write(&self, who: Caller, ino: Ino, fh: u64, offset: u64, data: Bytes) -> Result<u32>;
    /// A descriptor was closed: reports errors of earlier writes, starts the upload.
    async fn flush(&self, who: Caller, ino: Ino, fh: u64) -> Result<()>;
    /// Returns when the file's data and attributes are durable.
    async fn fsync(&self, who: Caller, ino: Ino, fh: u64, datasync: bool) -> Result<()>;
    /// The last descriptor of a handle was closed.
    async fn release(&self, ino: Ino, fh: u64) -> Result<()>;
    /// Opens a directory.
    async fn opendir(&self, who: Caller, ino: Ino) -> Result<u64>;
    /// Entries from `offset` on (0 = from the start; `.` and `..` included), about `max` of them at most; empty at the end.
    /// With `plus`, attributes are complete and every entry but `.` and `..` raises its lookup count.
    async fn readdir(&self, who: Caller, ino: Ino, fh: u64, offset: u64, max: usize, plus: bool) -> Result<Vec<DirEntry>>;
    /// Closes a directory handle.
    async fn releasedir(&self, ino: Ino, fh: u64) -> Result<()>;
    /// Returns when the directory's entries are durable.
    async fn fsyncdir(&self, who: Caller, ino: Ino) -> Result<()>;
    /// Sizes. Never waits for the network.
    fn statfs(&self) -> StatFs;
    /// Reads an extended attribute.
    async fn getxattr(&self, who: Caller, ino: Ino, name: &[u8]) -> Result<Vec<u8>>;
    /// [`Ops::getxattr`] answered from memory, or `None`. The kernel asks for `security.capability` before every write, so this
    /// is worth having.
    fn getxattr_now(&self, _who: Caller, _ino: Ino, _name: &[u8]) -> Option<Result<Vec<u8>>> {
        None
    }
    /// Sets an extended attribute. `flags`: 0, XATTR_CREATE or XATTR_REPLACE.
    async fn setxattr(&self, who: Caller, ino: Ino, name: &[u8], value: &[u8], flags: i32) -> Result<()>;
    /// Names of extended attributes.
    async fn listxattr(&self, who: Caller, ino: Ino) -> Result<Vec<Vec<u8>>>;
    /// Removes an extended attribute.
    async fn removexattr(&self, who: Caller, ino: Ino, name: &[u8]) -> Result<()>;
    /// fallocate(2). What `mode` asks for and nobody offers is `Unsupported`.
    async fn fallocate(&self, who: Caller, ino: Ino, fh: u64, offset: u64, len: u64, mode: i32) -> Result<()>;
    /// copy_file_range(2): copies up to `len` bytes from one open file to another, or within one where the ranges do not overlap,
    /// and returns how many it copied: fewer at the end of the source, or when there is much to copy, and then the caller comes back.
    async fn copy_file_range(&self, who: Caller, from: CopyEnd, to: CopyEnd, len: u64) -> Result<u32>;
    /// SEEK_DATA and SEEK_HOLE.
    async fn lseek(&self, who: Caller, ino: Ino, fh: u64, offset: i64, whence: i32) -> Result<i64>;
    /// The queue by which this filesystem tells the kernel what to forget; `None` when it never has to.
    fn invalidations(&self) -> Option<Arc<Invalidations>> {
        None
    }
    /// The inodes the kernel may hold pages of (lookup count above zero), for [`Invalidate::All`].
    fn inodes(&self) -> Vec<Ino> {
        Vec::new()
    }
}
