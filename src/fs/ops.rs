//! `Ops`, call by call.

use super::Fs;
use crate::error::{Kind, Result, fail};
use crate::ops::{Caller, CopyEnd, DirEntry, FileType, Found, Ino, Invalidations, NewNode, Opened, Ops, SetAttr, StatFs};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;

/// Runs an operation again when a directory that it needs was dropped from memory in between.
macro_rules! again {
    ($work:expr) => {{
        let mut tries = 0;
        loop {
            match $work.await {
                Err(e) if e.kind() == Kind::Interrupted && tries < 8 => tries += 1,
                done => break done,
            }
        }
    }};
}

impl Fs {
    fn me(&self) -> Result<Arc<Fs>> {
        self.arc().ok_or_else(|| crate::error::Error::new(Kind::Interrupted, "the mount is going down"))
    }
}

#[async_trait]
impl Ops for Fs {
    async fn lookup(&self, _who: Caller, parent: Ino, name: &[u8]) -> Result<Found> {
        again!(self.do_lookup(parent, name))
    }

    fn lookup_now(&self, _who: Caller, parent: Ino, name: &[u8]) -> Option<Result<Found>> {
        self.try_lookup(parent, name)
    }

    fn forget(&self, ino: Ino, n: u64) {
        self.do_forget(ino, n);
    }

    async fn getattr(&self, _who: Caller, ino: Ino) -> Result<Found> {
        if ino == crate::ops::ROOT {
            self.dir(ino).await?;
        }
        self.do_getattr(ino)
    }

    fn getattr_now(&self, _who: Caller, ino: Ino) -> Option<Result<Found>> {
        (ino != crate::ops::ROOT || self.root_loaded()).then(|| self.do_getattr(ino))
    }

    async fn setattr(&self, _who: Caller, ino: Ino, _fh: Option<u64>, set: SetAttr) -> Result<Found> {
        again!(self.do_setattr(ino, set))
    }

    async fn readlink(&self, _who: Caller, ino: Ino) -> Result<Vec<u8>> {
        self.do_readlink(ino)
    }

    async fn mknod(&self, who: Caller, parent: Ino, name: &[u8], new: NewNode) -> Result<Found> {
        let (found, file) = again!(self.do_mknod(who, parent, name, new))?;
        if let Some(file) = file {
            self.save_soon(&file);
        }
        Ok(found)
    }

    async fn mkdir(&self, who: Caller, parent: Ino, name: &[u8], perm: u16) -> Result<Found> {
        again!(self.do_mkdir(who, parent, name, perm))
    }

    async fn unlink(&self, _who: Caller, parent: Ino, name: &[u8]) -> Result<()> {
        again!(self.do_unlink(parent, name))
    }

    async fn rmdir(&self, _who: Caller, parent: Ino, name: &[u8]) -> Result<()> {
        again!(self.do_rmdir(parent, name))
    }

    async fn symlink(&self, who: Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Found> {
        again!(self.do_symlink(who, parent, name, target))
    }

    async fn rename(&self, _who: Caller, parent: Ino, name: &[u8], newparent: Ino, newname: &[u8], flags: u32) -> Result<()> {
        again!(self.do_rename(parent, name, newparent, newname, flags))
    }

    async fn link(&self, _who: Caller, ino: Ino, newparent: Ino, newname: &[u8]) -> Result<Found> {
        again!(self.do_link(ino, newparent, newname))
    }

    async fn open(&self, _who: Caller, ino: Ino, flags: i32) -> Result<Opened> {
        again!(self.do_open(ino, flags))
    }

    async fn create(&self, who: Caller, parent: Ino, name: &[u8], perm: u16, flags: i32) -> Result<(Found, Opened)> {
        let new = NewNode { kind: FileType::File, perm, rdev: 0 };
        let (found, file) = again!(self.do_mknod(who, parent, name, new))?;
        let Some(file) = file else { return fail(Kind::Bug, "a file was made without being one") };
        let opened = self.open_created(found.attr.ino, &file, flags);
        Ok((found, opened))
    }

    async fn read(&self, _who: Caller, _ino: Ino, fh: u64, offset: u64, size: u32) -> Result<Bytes> {
        self.do_read(fh, offset, size).await
    }

    fn read_now(&self, _who: Caller, ino: Ino, fh: u64, offset: u64, size: u32) -> Option<Result<Bytes>> {
        self.try_read(ino, fh, offset, size)
    }

    async fn write(&self, _who: Caller, _ino: Ino, fh: u64, offset: u64, data: Bytes) -> Result<u32> {
        self.do_write(fh, offset, &data).await
    }

    async fn flush(&self, _who: Caller, _ino: Ino, fh: u64) -> Result<()> {
        self.do_flush(fh).await
    }

    async fn fsync(&self, _who: Caller, _ino: Ino, fh: u64, _datasync: bool) -> Result<()> {
        self.me()?.do_fsync(fh).await
    }

    async fn release(&self, ino: Ino, fh: u64) -> Result<()> {
        self.do_release(ino, fh).await
    }

    async fn opendir(&self, _who: Caller, ino: Ino) -> Result<u64> {
        self.do_opendir(ino).await
    }

    async fn readdir(&self, _who: Caller, ino: Ino, fh: u64, offset: u64, max: usize, plus: bool) -> Result<Vec<DirEntry>> {
        again!(self.do_readdir(ino, fh, offset, max, plus))
    }

    async fn releasedir(&self, _ino: Ino, fh: u64) -> Result<()> {
        self.handles.lock().remove(&fh);
        Ok(())
    }

    async fn fsyncdir(&self, _who: Caller, ino: Ino) -> Result<()> {
        let dir = self.dir(ino).await?;
        match self.opts.fsync {
            super::FsyncMode::Local => self.journal.sync(),
            super::FsyncMode::Remote => self.me()?.settle(dir, None).await,
        }
    }

    fn statfs(&self) -> StatFs {
        self.do_statfs()
    }

    async fn getxattr(&self, _who: Caller, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        self.do_getxattr(ino, name)
    }

    fn getxattr_now(&self, _who: Caller, ino: Ino, name: &[u8]) -> Option<Result<Vec<u8>>> {
        (ino != crate::ops::ROOT || self.root_loaded()).then(|| self.do_getxattr(ino, name))
    }

    async fn setxattr(&self, _who: Caller, ino: Ino, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        self.do_setxattr(ino, name, Some(value), flags).await
    }

    async fn listxattr(&self, _who: Caller, ino: Ino) -> Result<Vec<Vec<u8>>> {
        self.do_listxattr(ino)
    }

    async fn removexattr(&self, _who: Caller, ino: Ino, name: &[u8]) -> Result<()> {
        self.do_setxattr(ino, name, None, 0).await
    }

    async fn fallocate(&self, _who: Caller, _ino: Ino, fh: u64, offset: u64, len: u64, mode: i32) -> Result<()> {
        self.do_fallocate(fh, offset, len, mode).await
    }

    async fn copy_file_range(&self, _who: Caller, from: CopyEnd, to: CopyEnd, len: u64) -> Result<u32> {
        self.do_copy(from, to, len).await
    }

    async fn lseek(&self, _who: Caller, _ino: Ino, fh: u64, offset: i64, whence: i32) -> Result<i64> {
        self.do_lseek(fh, offset, whence).await
    }

    fn invalidations(&self) -> Option<Arc<Invalidations>> {
        self.sink.invalidations()
    }

    fn inodes(&self) -> Vec<Ino> {
        self.state.lock().nodes.iter().filter(|(_, n)| n.lookups > 0).map(|(i, _)| *i).collect()
    }
}
