//! Listings: opendir, readdir, statfs.

use super::state::{ROOT_SELF, attr_of};
use super::{Fs, Handle};
use crate::error::Result;
use crate::format::entry::{Body, Entry};
use crate::ops::{DirEntry, Ino, ROOT, StatFs};
use crate::tree::dir::FIRST_COOKIE;
use crate::types::NAME_MAX;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Entries of one answer at most, whatever is asked: the lock is held while they are gathered.
const MAX_BATCH: usize = 1024;
/// A bucket has no size; this many bytes make every installer content.
const CAPACITY: u64 = 1 << 50;
const BLOCK: u32 = 4096;

impl Fs {
    pub(super) async fn do_opendir(&self, ino: Ino) -> Result<u64> {
        let dir = self.dir(ino).await?;
        self.fresh(dir).await;
        Ok(self.new_handle(Handle::Dir { end: AtomicU64::new(0) }))
    }

    /// Where a listing ends that goes on at `offset`, when the directory's next cookie is `next`.
    fn listing_end(handle: Option<&Handle>, offset: u64, next: u64) -> u64 {
        let Some(Handle::Dir { end }) = handle else { return next };
        // The beginning, again after rewinddir(3): what has come since is listed from now on.
        if offset == 0 {
            end.store(next, Ordering::Relaxed);
        }
        match end.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => next,
            Err(end) => end,
        }
    }

    pub(super) async fn do_readdir(&self, ino: Ino, fh: u64, offset: u64, max: usize, plus: bool) -> Result<Vec<DirEntry>> {
        let dir = self.dir(ino).await?;
        let max = max.clamp(1, MAX_BATCH);
        if plus {
            self.reach_listed(dir, offset.max(FIRST_COOKIE - 1), max).await?;
        }
        let handle = self.handles.lock().get(&fh).cloned();
        let mut st = self.state.lock();
        let mut out = Vec::new();
        if offset < 1 {
            let attr = self.found(&st, ino)?.attr;
            out.push(DirEntry { name: b".".to_vec(), attr, next: 1, ttl: self.opts.attr_ttl });
        }
        if offset < 2 {
            let up = st.dirs.get(&dir).and_then(|c| c.place.clone()).map_or(st.root, |(p, _)| p);
            let up_ino = if up == st.root { ROOT } else { self.ino_of_dir(&st, up).unwrap_or(ino) };
            let mut attr = self.found(&st, ino)?.attr;
            attr.ino = up_ino;
            out.push(DirEntry { name: b"..".to_vec(), attr, next: 2, ttl: self.opts.attr_ttl });
        }
        let cell = st.loaded(dir)?;
        let room = max.saturating_sub(out.len());
        let end = Self::listing_end(handle.as_deref(), offset, cell.dir.next_cookie());
        let entries: Vec<_> = cell
            .dir
            .after(offset.max(FIRST_COOKIE - 1))
            .take_while(|(cookie, _)| *cookie < end)
            .filter(|(_, e)| ino != ROOT || e.name != ROOT_SELF)
            .take(room)
            .map(|(c, e)| (c, e.clone()))
            .collect();
        for (cookie, entry) in entries {
            let (mut ttl, target) = (self.opts.attr_ttl, st.target(dir, &entry));
            let attr = match target {
                Some((at, target)) if plus => {
                    let ino = st.know(at, &target, 1);
                    self.attach_dir(&mut st, dir, &entry);
                    self.found(&st, ino)?.attr
                }
                None if plus => {
                    // Listed, and everything else about it fails: the kernel has to ask.
                    ttl = Duration::ZERO;
                    let name = entry.link().map(|l| l.inode_name()).unwrap_or_default();
                    let links = st.links;
                    let ino = st.know(links, &Arc::new(Entry { name, ..Entry::clone(&entry) }), 1);
                    attr_of(ino, &entry, None)
                }
                _ => attr_of(st.ino_at(dir, &entry), &entry, None),
            };
            out.push(DirEntry { name: entry.name.clone(), attr, next: cookie, ttl });
        }
        Ok(out)
    }

    /// The inode of a known directory.
    fn ino_of_dir(&self, st: &super::state::State, dir: crate::types::DirId) -> Option<Ino> {
        let place = st.dirs.get(&dir)?.place.clone()?;
        let entry = st.dirs.get(&place.0)?.dir.get(&place.1)?;
        matches!(entry.body, Body::Dir { .. }).then(|| st.ino_at(place.0, entry))
    }

    pub(super) fn do_statfs(&self) -> StatFs {
        let blocks = CAPACITY / u64::from(BLOCK);
        StatFs { bsize: BLOCK, blocks, bfree: blocks, bavail: blocks, files: 1 << 40, ffree: 1 << 40, namelen: NAME_MAX as u32 }
    }
}
