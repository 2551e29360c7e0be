//! `fuser`'s callbacks: each copies what the request borrows, tries the fast path, and hands the rest to [`Dispatch`].

use super::answer::{
    Attrs, Created, DirHandle, Entry, Handle, Names, NamesPlus, OpenReply, OpendirReply, Position, Value, XattrReply, caller,
    from_request_time,
};
use super::dispatch::{Dispatch, Lane};
use crate::ops::{CopyEnd, FileType, NewNode, SetAttr, SetTime};
use crate::types::NAME_MAX;
use bytes::Bytes;
use fuser::{
    Errno, FileHandle, INodeNo, InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, Request, TimeOrNow,
    WriteFlags,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::watch;

/// Entries asked for per READDIR. A usual reply of 32 KiB holds about 1 000 short names without attributes...
const NAMES_PER_READDIR: usize = 1024;
/// ...and about 190 with them. What does not fit is forgotten again and costs another call.
const NAMES_PER_READDIRPLUS: usize = 192;
/// Permission bits of a mode.
const PERM: u32 = 0o7777;

/// What `fuser` calls.
pub(super) struct Callbacks {
    pub dispatch: Arc<Dispatch>,
    pub max_write: u32,
    pub max_background: u16,
    /// Set to true when the mount has ended.
    pub ended: watch::Sender<bool>,
}

/// The bytes of `name`, or the reply is answered ENAMETOOLONG (the kernel lets 1024 bytes through).
macro_rules! name {
    ($name:expr, $reply:expr) => {
        match $name.as_bytes() {
            n if n.len() > NAME_MAX => return $reply.error(Errno::ENAMETOOLONG),
            n => n,
        }
    };
}

fn kind_of_mode(mode: u32) -> Option<FileType> {
    match mode & libc::S_IFMT {
        libc::S_IFREG | 0 => Some(FileType::File),
        libc::S_IFIFO => Some(FileType::Fifo),
        libc::S_IFSOCK => Some(FileType::Socket),
        libc::S_IFCHR => Some(FileType::CharDev),
        libc::S_IFBLK => Some(FileType::BlockDev),
        _ => None,
    }
}

fn set_time(t: TimeOrNow) -> SetTime {
    match t {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(t) => SetTime::To(from_request_time(t)),
    }
}

impl fuser::Filesystem for Callbacks {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        ];
        for flag in wanted {
            // An older kernel does without.
            let _ = config.add_capabilities(flag);
        }
        if let Err(nearest) = config.set_max_write(self.max_write) {
            let _ = config.set_max_write(nearest);
        }
        if let Err(nearest) = config.set_max_background(self.max_background) {
            let _ = config.set_max_background(nearest);
        }
        Ok(())
    }

    fn destroy(&mut self) {
        self.ended.send_replace(true);
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: fuser::ReplyEntry) {
        let (who, name) = (caller(req), name!(name, reply));
        let fast = |o: &dyn crate::ops::Ops| Some(o.lookup_now(who, parent.0, name)?.map(Entry));
        let Some(reply) = self.dispatch.now("lookup", reply, fast) else { return };
        let name = name.to_vec();
        self.dispatch
            .spawn("lookup", Lane::Names, who, reply, move |o| async move { o.lookup(who, parent.0, &name).await.map(Entry) });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.dispatch.quiet("forget", |o| o.forget(ino.0, nlookup));
    }

    // batch_forget: fuser calls forget for each; its item type is private.

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: fuser::ReplyAttr) {
        let who = caller(req);
        let Some(reply) = self.dispatch.now("getattr", reply, |o| Some(o.getattr_now(who, ino.0)?.map(Attrs))) else { return };
        self.dispatch.spawn("getattr", Lane::Names, who, reply, move |o| async move { o.getattr(who, ino.0).await.map(Attrs) });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: fuser::ReplyAttr,
    ) {
        let who = caller(req);
        let perm = mode.map(|m| (m & PERM) as u16);
        let set = SetAttr { perm, uid, gid, size, atime: atime.map(set_time), mtime: mtime.map(set_time) };
        // Truncation moves data; the rest is about names.
        let lane = if size.is_some() { Lane::Data } else { Lane::Names };
        self.dispatch.spawn("setattr", lane, who, reply, move |o| async move {
            o.setattr(who, ino.0, fh.map(|f| f.0), set).await.map(Attrs)
        });
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: fuser::ReplyData) {
        let who = caller(req);
        self.dispatch
            .spawn("readlink", Lane::Names, who, reply, move |o| async move { o.readlink(who, ino.0).await.map(Bytes::from) });
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: fuser::ReplyEntry) {
        let (who, name) = (caller(req), name!(name, reply).to_vec());
        let Some(kind) = kind_of_mode(mode) else { return reply.error(Errno::EINVAL) };
        let new = NewNode { kind, perm: (mode & !umask & PERM) as u16, rdev: u64::from(rdev) };
        self.dispatch
            .spawn("mknod", Lane::Names, who, reply, move |o| async move { o.mknod(who, parent.0, &name, new).await.map(Entry) });
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: fuser::ReplyEntry) {
        let (who, name) = (caller(req), name!(name, reply).to_vec());
        let perm = (mode & !umask & PERM) as u16;
        self.dispatch.spawn("mkdir", Lane::Names, who, reply, move |o| async move {
            o.mkdir(who, parent.0, &name, perm).await.map(Entry)
        });
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: fuser::ReplyEmpty) {
        let (who, name) = (caller(req), name!(name, reply).to_vec());
        self.dispatch.spawn("unlink", Lane::Names, who, reply, move |o| async move { o.unlink(who, parent.0, &name).await });
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: fuser::ReplyEmpty) {
        let (who, name) = (caller(req), name!(name, reply).to_vec());
        self.dispatch.spawn("rmdir", Lane::Names, who, reply, move |o| async move { o.rmdir(who, parent.0, &name).await });
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: fuser::ReplyEntry) {
        let (who, name) = (caller(req), name!(name, reply).to_vec());
        let target = target.as_os_str().as_bytes().to_vec();
        self.dispatch.spawn("symlink", Lane::Names, who, reply, move |o| async move {
            o.symlink(who, parent.0, &name, &target).await.map(Entry)
        });
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: fuser::ReplyEmpty,
    ) {
        let (who, name, newname) = (caller(req), name!(name, reply).to_vec(), name!(newname, reply).to_vec());
        self.dispatch.spawn("rename", Lane::Names, who, reply, move |o| async move {
            o.rename(who, parent.0, &name, newparent.0, &newname, flags.bits()).await
        });
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: fuser::ReplyEntry) {
        let (who, name) = (caller(req), name!(newname, reply).to_vec());
        self.dispatch.spawn("link", Lane::Names, who, reply, move |o| async move {
            o.link(who, ino.0, newparent.0, &name).await.map(Entry)
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: fuser::ReplyOpen) {
        let who = caller(req);
        let reader = flags.acc_mode() == OpenAccMode::O_RDONLY;
        self.dispatch.spawn("open", Lane::Data, who, OpenReply(reply), move |o| async move {
            o.open(who, ino.0, flags.0).await.map(|opened| Handle { ino: ino.0, opened, reader })
        });
    }

    fn create(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32, reply: fuser::ReplyCreate) {
        let (who, name) = (caller(req), name!(name, reply).to_vec());
        let perm = (mode & !umask & PERM) as u16;
        self.dispatch.spawn("create", Lane::Names, who, reply, move |o| async move {
            o.create(who, parent.0, &name, perm, flags).await.map(|(found, opened)| Created(found, opened))
        });
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: fuser::ReplyData,
    ) {
        let who = caller(req);
        let Some(reply) = self.dispatch.now("read", reply, |o| o.read_now(who, ino.0, fh.0, offset, size)) else { return };
        self.dispatch.spawn("read", Lane::Data, who, reply, move |o| async move { o.read(who, ino.0, fh.0, offset, size).await });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: fuser::ReplyWrite,
    ) {
        let who = caller(req);
        let room = match self.dispatch.room(data.len()) {
            Ok(room) => room,
            Err(e) => return reply.error(Errno::from_i32(e.errno())),
        };
        let data = Bytes::copy_from_slice(data);
        self.dispatch.spawn("write", Lane::Data, who, reply, move |o| async move {
            let _room = room;
            o.write(who, ino.0, fh.0, offset, data).await
        });
    }

    fn flush(&self, req: &Request, ino: INodeNo, fh: FileHandle, _lock_owner: LockOwner, reply: fuser::ReplyEmpty) {
        let who = caller(req);
        self.dispatch.spawn("flush", Lane::Sync, who, reply, move |o| async move { o.flush(who, ino.0, fh.0).await });
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: fuser::ReplyEmpty,
    ) {
        let who = caller(req);
        self.dispatch.spawn("release", Lane::Release, who, reply, move |o| async move { o.release(ino.0, fh.0).await });
    }

    fn fsync(&self, req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: fuser::ReplyEmpty) {
        let who = caller(req);
        self.dispatch.spawn("fsync", Lane::Sync, who, reply, move |o| async move { o.fsync(who, ino.0, fh.0, datasync).await });
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: fuser::ReplyOpen) {
        let who = caller(req);
        self.dispatch.spawn("opendir", Lane::Names, who, OpendirReply(reply), move |o| async move {
            o.opendir(who, ino.0).await.map(|fh| DirHandle { ino: ino.0, fh })
        });
    }

    fn readdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: fuser::ReplyDirectory) {
        let who = caller(req);
        self.dispatch.spawn("readdir", Lane::Names, who, reply, move |o| async move {
            o.readdir(who, ino.0, fh.0, offset, NAMES_PER_READDIR, false).await.map(Names)
        });
    }

    fn readdirplus(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: fuser::ReplyDirectoryPlus) {
        let who = caller(req);
        self.dispatch.spawn("readdirplus", Lane::Names, who, reply, move |o| async move {
            o.readdir(who, ino.0, fh.0, offset, NAMES_PER_READDIRPLUS, true).await.map(NamesPlus)
        });
    }

    fn releasedir(&self, req: &Request, ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: fuser::ReplyEmpty) {
        let who = caller(req);
        self.dispatch.spawn("releasedir", Lane::Release, who, reply, move |o| async move { o.releasedir(ino.0, fh.0).await });
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: fuser::ReplyEmpty) {
        let who = caller(req);
        self.dispatch.spawn("fsyncdir", Lane::Sync, who, reply, move |o| async move { o.fsyncdir(who, ino.0).await });
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: fuser::ReplyStatfs) {
        let mut answer = None;
        self.dispatch.quiet("statfs", |o| answer = Some(o.statfs()));
        match answer {
            Some(s) => reply.statfs(s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.bsize),
            None => reply.error(Errno::EIO),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: fuser::ReplyEmpty,
    ) {
        let (who, name, value) = (caller(req), name!(name, reply).to_vec(), value.to_vec());
        self.dispatch.spawn("setxattr", Lane::Names, who, reply, move |o| async move {
            o.setxattr(who, ino.0, &name, &value, flags).await
        });
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: fuser::ReplyXattr) {
        let (who, name) = (caller(req), name!(name, reply));
        let reply = XattrReply { reply, size };
        let fast = |o: &dyn crate::ops::Ops| Some(o.getxattr_now(who, ino.0, name)?.map(Value));
        let Some(reply) = self.dispatch.now("getxattr", reply, fast) else { return };
        let name = name.to_vec();
        self.dispatch
            .spawn("getxattr", Lane::Names, who, reply, move |o| async move { o.getxattr(who, ino.0, &name).await.map(Value) });
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: fuser::ReplyXattr) {
        let who = caller(req);
        self.dispatch.spawn("listxattr", Lane::Names, who, XattrReply { reply, size }, move |o| async move {
            let names = o.listxattr(who, ino.0).await?;
            Ok(Value(names.into_iter().flat_map(|n| n.into_iter().chain([0])).collect()))
        });
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: fuser::ReplyEmpty) {
        let (who, name) = (caller(req), name!(name, reply).to_vec());
        self.dispatch.spawn(
            "removexattr",
            Lane::Names,
            who,
            reply,
            move |o| async move { o.removexattr(who, ino.0, &name).await },
        );
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: fuser::ReplyEmpty,
    ) {
        let who = caller(req);
        self.dispatch.spawn("fallocate", Lane::Data, who, reply, move |o| async move {
            o.fallocate(who, ino.0, fh.0, offset, length, mode).await
        });
    }

    fn lseek(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: fuser::ReplyLseek) {
        let who = caller(req);
        self.dispatch.spawn("lseek", Lane::Data, who, reply, move |o| async move {
            o.lseek(who, ino.0, fh.0, offset, whence).await.map(Position)
        });
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: fuser::CopyFileRangeFlags,
        reply: fuser::ReplyWrite,
    ) {
        let who = caller(req);
        let from = CopyEnd { ino: ino_in.0, fh: fh_in.0, offset: offset_in };
        let to = CopyEnd { ino: ino_out.0, fh: fh_out.0, offset: offset_out };
        self.dispatch.spawn("copy_file_range", Lane::Data, who, reply, move |o| async move {
            o.copy_file_range(who, from, to, len).await
        });
    }

    // What follows is not offered. The kernel remembers an ENOSYS and does without: poll is always ready, access is the kernel's
    // own check.

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: fuser::AccessFlags, reply: fuser::ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: fuser::PollNotifier,
        _events: fuser::PollEvents,
        _flags: fuser::PollFlags,
        reply: fuser::ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: fuser::IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: fuser::ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn bmap(&self, _req: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: fuser::ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }
}
