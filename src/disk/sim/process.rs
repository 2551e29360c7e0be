//! The drive as one process sees it.

use super::SimDisk;
use crate::disk::{Access, Disk, DiskFile, Entry, LockGuard, Space};
use crate::error::{Kind, Result, fail};
use std::sync::Arc;

/// A view of the disk that ends with a crash.
pub(super) struct Process {
    pub(super) disk: SimDisk,
    pub(super) life: u64,
}

impl Process {
    fn disk(&self) -> Result<&SimDisk> {
        if self.disk.state.lock().life != self.life {
            return fail(Kind::Unavailable, "this process died in a (simulated) crash");
        }
        Ok(&self.disk)
    }
}

impl Disk for Process {
    fn open(&self, path: &str, access: Access) -> Result<Arc<dyn DiskFile>> {
        self.disk()?.open(path, access)
    }
    fn make_dir(&self, path: &str) -> Result<()> {
        self.disk()?.make_dir(path)
    }
    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.disk()?.rename(from, to)
    }
    fn remove(&self, path: &str) -> Result<()> {
        self.disk()?.remove(path)
    }
    fn remove_dir(&self, path: &str) -> Result<()> {
        self.disk()?.remove_dir(path)
    }
    fn list(&self, dir: &str) -> Result<Vec<Entry>> {
        self.disk()?.list(dir)
    }
    fn len(&self, path: &str) -> Result<u64> {
        self.disk()?.len(path)
    }
    fn sync_dir(&self, dir: &str) -> Result<()> {
        self.disk()?.sync_dir(dir)
    }
    fn space(&self) -> Result<Space> {
        self.disk()?.space()
    }
    fn lock(&self, path: &str) -> Result<Box<dyn LockGuard>> {
        self.disk()?.lock(path)
    }
    fn describe(&self) -> String {
        self.disk.describe()
    }
}
