//! Replies: what each kind of request is answered with, and what must be taken back when an answer comes too late.

use crate::ops::{Attr, Caller, DirEntry, FileType, Found, Ino, Opened, Ops};
use crate::types::{CHUNK_SIZE, Time};
use bytes::Bytes;
use fuser::{Errno, FileHandle, FopenFlags, Generation, INodeNo};
use futures_util::future::BoxFuture;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Inode numbers are never reused, so one generation does.
const GENERATION: Generation = Generation(0);

/// What an operation yields. `undo` gives back what the kernel never heard of.
pub(super) trait Gain: Send + 'static {
    /// Takes the operation's effect on counts and handles back.
    fn undo(self, _ops: Arc<dyn Ops>) -> Option<BoxFuture<'static, ()>>
    where
        Self: Sized,
    {
        None
    }
}

/// A reply that can be sent once.
pub(super) trait Answer: Send + 'static {
    /// What the operation must yield.
    type Gain: Gain;
    /// Sends it.
    fn ok(self, gain: Self::Gain, ops: &Arc<dyn Ops>);
    /// Sends an errno.
    fn fail(self, errno: i32);
}

impl Gain for () {}
impl Gain for Bytes {}
impl Gain for u32 {}

/// A found or made inode: its lookup count went up.
pub(super) struct Entry(pub Found);

impl Gain for Entry {
    fn undo(self, ops: Arc<dyn Ops>) -> Option<BoxFuture<'static, ()>> {
        ops.forget(self.0.attr.ino, 1);
        None
    }
}

/// Attributes only.
pub(super) struct Attrs(pub Found);

impl Gain for Attrs {}

/// An open file.
pub(super) struct Handle {
    pub ino: Ino,
    pub opened: Opened,
    /// Opened for reading only: there is nothing to flush when it is closed.
    pub reader: bool,
}

impl Gain for Handle {
    fn undo(self, ops: Arc<dyn Ops>) -> Option<BoxFuture<'static, ()>> {
        Some(Box::pin(async move {
            // Nobody is left to tell about an error.
            let _ = ops.release(self.ino, self.opened.fh).await;
        }))
    }
}

/// An open directory.
pub(super) struct DirHandle {
    pub ino: Ino,
    pub fh: u64,
}

impl Gain for DirHandle {
    fn undo(self, ops: Arc<dyn Ops>) -> Option<BoxFuture<'static, ()>> {
        Some(Box::pin(async move {
            let _ = ops.releasedir(self.ino, self.fh).await;
        }))
    }
}

/// A file made and opened.
pub(super) struct Created(pub Found, pub Opened);

impl Gain for Created {
    fn undo(self, ops: Arc<dyn Ops>) -> Option<BoxFuture<'static, ()>> {
        Some(Box::pin(async move {
            let Created(found, opened) = self;
            let _ = ops.release(found.attr.ino, opened.fh).await;
            ops.forget(found.attr.ino, 1);
        }))
    }
}

/// Names and inode numbers.
pub(super) struct Names(pub Vec<DirEntry>);

impl Gain for Names {}

/// Names with full attributes: every lookup count went up.
pub(super) struct NamesPlus(pub Vec<DirEntry>);

impl Gain for NamesPlus {
    fn undo(self, ops: Arc<dyn Ops>) -> Option<BoxFuture<'static, ()>> {
        forget_entries(&self.0, &*ops);
        None
    }
}

fn forget_entries(entries: &[DirEntry], ops: &dyn Ops) {
    for e in entries.iter().filter(|e| e.name != b"." && e.name != b"..") {
        ops.forget(e.attr.ino, 1);
    }
}

/// A position found by lseek(2).
pub(super) struct Position(pub i64);

impl Gain for Position {}

/// The value of an extended attribute, or the list of names.
pub(super) struct Value(pub Vec<u8>);

impl Gain for Value {}

macro_rules! answer {
    ($reply:ty, $gain:ty, |$r:ident, $g:ident| $send:expr) => {
        impl Answer for $reply {
            type Gain = $gain;
            fn ok(self, $g: $gain, _ops: &Arc<dyn Ops>) {
                let $r = self;
                $send
            }
            fn fail(self, errno: i32) {
                self.error(Errno::from_i32(errno));
            }
        }
    };
}

answer!(fuser::ReplyEmpty, (), |r, _g| r.ok());
answer!(fuser::ReplyData, Bytes, |r, g| r.data(&g));
answer!(fuser::ReplyWrite, u32, |r, g| r.written(g));
answer!(fuser::ReplyEntry, Entry, |r, g| r.entry(&g.0.ttl, &to_fuser(&g.0.attr), GENERATION));
answer!(fuser::ReplyAttr, Attrs, |r, g| r.attr(&g.0.ttl, &to_fuser(&g.0.attr)));
answer!(fuser::ReplyLseek, Position, |r, g| r.offset(g.0));

/// open and opendir share a reply type, so each has a wrapper of its own.
pub(super) struct OpenReply(pub fuser::ReplyOpen);

impl Answer for OpenReply {
    type Gain = Handle;
    fn ok(self, gain: Handle, _ops: &Arc<dyn Ops>) {
        let mut flags = open_flags(&gain.opened);
        flags.set(FopenFlags::FOPEN_NOFLUSH, gain.reader);
        self.0.opened(FileHandle(gain.opened.fh), flags);
    }
    fn fail(self, errno: i32) {
        self.0.error(Errno::from_i32(errno));
    }
}

/// See [`OpenReply`].
pub(super) struct OpendirReply(pub fuser::ReplyOpen);

impl Answer for OpendirReply {
    type Gain = DirHandle;
    fn ok(self, gain: DirHandle, _ops: &Arc<dyn Ops>) {
        self.0.opened(FileHandle(gain.fh), FopenFlags::empty());
    }
    fn fail(self, errno: i32) {
        self.0.error(Errno::from_i32(errno));
    }
}

impl Answer for fuser::ReplyCreate {
    type Gain = Created;
    fn ok(self, Created(found, opened): Created, _ops: &Arc<dyn Ops>) {
        self.created(&found.ttl, &to_fuser(&found.attr), GENERATION, FileHandle(opened.fh), open_flags(&opened));
    }
    fn fail(self, errno: i32) {
        self.error(Errno::from_i32(errno));
    }
}

impl Answer for fuser::ReplyDirectory {
    type Gain = Names;
    fn ok(mut self, Names(entries): Names, _ops: &Arc<dyn Ops>) {
        for e in &entries {
            if self.add(INodeNo(e.attr.ino), e.next, kind_to_fuser(e.attr.kind), OsStr::from_bytes(&e.name)) {
                break;
            }
        }
        // The inherent method, which sends what was added.
        fuser::ReplyDirectory::ok(self);
    }
    fn fail(self, errno: i32) {
        self.error(Errno::from_i32(errno));
    }
}

impl Answer for fuser::ReplyDirectoryPlus {
    type Gain = NamesPlus;
    fn ok(mut self, NamesPlus(entries): NamesPlus, ops: &Arc<dyn Ops>) {
        let mut sent = 0;
        for e in &entries {
            let name = OsStr::from_bytes(&e.name);
            if self.add(INodeNo(e.attr.ino), e.next, name, &e.ttl, &to_fuser(&e.attr), GENERATION) {
                break;
            }
            sent += 1;
        }
        fuser::ReplyDirectoryPlus::ok(self);
        forget_entries(&entries[sent..], &**ops);
    }
    fn fail(self, errno: i32) {
        self.error(Errno::from_i32(errno));
    }
}

/// getxattr and listxattr: `size` 0 asks how large the answer would be.
pub(super) struct XattrReply {
    pub reply: fuser::ReplyXattr,
    pub size: u32,
}

impl Answer for XattrReply {
    type Gain = Value;
    fn ok(self, Value(value): Value, _ops: &Arc<dyn Ops>) {
        if self.size == 0 {
            self.reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX));
        } else if value.len() > self.size as usize {
            self.reply.error(Errno::ERANGE);
        } else {
            self.reply.data(&value);
        }
    }
    fn fail(self, errno: i32) {
        self.reply.error(Errno::from_i32(errno));
    }
}

fn open_flags(opened: &Opened) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
    flags.set(FopenFlags::FOPEN_DIRECT_IO, opened.direct_io);
    flags
}

/// Who sent a request.
pub(super) fn caller(req: &fuser::Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

fn kind_to_fuser(kind: FileType) -> fuser::FileType {
    match kind {
        FileType::File => fuser::FileType::RegularFile,
        FileType::Dir => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::Socket => fuser::FileType::Socket,
        FileType::CharDev => fuser::FileType::CharDevice,
        FileType::BlockDev => fuser::FileType::BlockDevice,
    }
}

fn to_fuser(a: &Attr) -> fuser::FileAttr {
    fuser::FileAttr {
        ino: INodeNo(a.ino),
        size: a.size,
        blocks: a.blocks,
        atime: to_system_time(a.atime),
        mtime: to_system_time(a.mtime),
        ctime: to_system_time(a.ctime),
        crtime: to_system_time(a.btime),
        kind: kind_to_fuser(a.kind),
        perm: a.perm,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        // The kernel's 32-bit encoding; the low half of glibc's dev_t is the same for every number Linux hands out.
        rdev: a.rdev as u32,
        blksize: CHUNK_SIZE as u32,
        flags: 0,
    }
}

fn to_system_time(t: Time) -> SystemTime {
    let whole = Duration::from_secs(t.sec.unsigned_abs());
    let base = if t.sec >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
    base.and_then(|b| b.checked_add(Duration::from_nanos(u64::from(t.nsec)))).unwrap_or(UNIX_EPOCH)
}

/// The time a request asks to set.
///
/// `fuser` 0.18 turns (sec, nsec) before 1970 into `epoch - (|sec| s + nsec ns)` where `epoch - |sec| s + nsec ns` is meant; the
/// parts are intact, and are put together here.
pub(super) fn from_request_time(t: SystemTime) -> Time {
    match t.duration_since(UNIX_EPOCH) {
        Ok(d) => Time { sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX), nsec: d.subsec_nanos() },
        Err(e) => {
            let d = e.duration();
            Time { sec: i64::try_from(d.as_secs()).map_or(i64::MIN, |s| -s), nsec: d.subsec_nanos() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_survive_both_ways() {
        // What fuser makes of utimensat(-2 s, 300 ns).
        let asked = UNIX_EPOCH - Duration::new(2, 300);
        let t = from_request_time(asked);
        assert_eq!(t, Time { sec: -2, nsec: 300 });
        assert_eq!(to_system_time(t), UNIX_EPOCH - Duration::new(2, 0) + Duration::from_nanos(300));
        let t = Time { sec: 1_700_000_000, nsec: 999_999_999 };
        assert_eq!(from_request_time(to_system_time(t)), t);
    }

    #[test]
    fn an_impossible_time_is_the_epoch() {
        assert_eq!(to_system_time(Time { sec: i64::MIN, nsec: 0 }), UNIX_EPOCH - Duration::from_secs(1 << 63));
        assert_eq!(to_system_time(Time { sec: i64::MAX, nsec: 2_000_000_000 }), UNIX_EPOCH);
    }
}
