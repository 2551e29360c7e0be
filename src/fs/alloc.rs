//! Where a file has bytes and where it has none: fallocate(2), SEEK_DATA and SEEK_HOLE, copy_file_range(2).
//!
//! A hole is an extent of zeros in the active layer, one small record in the spool, and no bytes at all in the bucket where it covers
//! whole segments. A copy reads verified bytes and writes them to the spool; holes of the source become holes of the target.

use super::file::{File, Io};
use super::io::MAX_EXTENTS;
use super::{Fs, Handle};
use crate::error::{Kind, Result, fail};
use crate::ops::CopyEnd;
use libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::RwLockWriteGuard;

/// Bytes of a copy that are in memory at once.
const COPY_STEP: u64 = 1 << 20;
/// Bytes that one request copies at most, so that it ends within its deadline.
const COPY_MAX: u64 = 16 << 20;
/// Stretches of a file that one hold of its layers looks at.
const LOOK_STEP: usize = 4096;

/// What fallocate(2) is asked for, as far as it is offered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Request {
    /// Space. None is set aside: only the size may grow.
    Space { keep: bool },
    /// Zeros.
    Zeros { keep: bool },
}

impl Request {
    fn of(mode: i32) -> Result<Request> {
        const PUNCH: i32 = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
        const ZERO_KEEP: i32 = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
        match mode {
            0 => Ok(Request::Space { keep: false }),
            FALLOC_FL_KEEP_SIZE => Ok(Request::Space { keep: true }),
            PUNCH | ZERO_KEEP => Ok(Request::Zeros { keep: true }),
            FALLOC_FL_ZERO_RANGE => Ok(Request::Zeros { keep: false }),
            _ => fail(Kind::Unsupported, "only space, holes and zeros can be asked for"),
        }
    }
}

/// A file, and its epoch when it was opened.
struct Opened {
    file: Arc<File>,
    epoch: u64,
}

impl Opened {
    /// For changes: another machine may have replaced what was opened.
    async fn to_change(&self) -> Result<RwLockWriteGuard<'_, Io>> {
        let io = self.file.io.write().await;
        self.file.check_epoch(self.epoch)?;
        Ok(io)
    }
}

impl Fs {
    /// The file behind a handle that may write.
    fn written_through(&self, fh: u64) -> Result<Opened> {
        match &*self.handle(fh)? {
            Handle::File { file, writes: true, epoch, .. } => Ok(Opened { file: file.clone(), epoch: *epoch }),
            Handle::File { .. } => fail(Kind::BadHandle, "the file is not open for writing"),
            Handle::Dir { .. } => fail(Kind::IsDir, "is a directory"),
        }
    }

    pub(super) async fn do_fallocate(&self, fh: u64, offset: u64, len: u64, mode: i32) -> Result<()> {
        let file = self.written_through(fh)?;
        let request = Request::of(mode)?;
        if len == 0 {
            return fail(Kind::Invalid, "a range of no bytes");
        }
        let end = offset.checked_add(len).filter(|e| *e <= self.uploader.params.geometry.max_size());
        let Some(end) = end else { return fail(Kind::TooLarge, "the file would be larger than the volume can hold") };
        match request {
            Request::Space { keep: true } => self.writable(),
            Request::Space { keep: false } => self.grow(&file, end).await,
            Request::Zeros { keep } => self.zero(&file, offset..end, keep).await,
        }
    }

    /// The file reaches at least to `end`.
    async fn grow(&self, of: &Opened, end: u64) -> Result<()> {
        self.writable()?;
        let (file, mut io) = (&of.file, of.to_change().await?);
        if io.size < end {
            self.resize_locked(file, &mut io, end)?;
        }
        Ok(())
    }

    /// `range` reads as zeros. Beyond the end of the file it counts only when the size is not to be kept.
    async fn zero(&self, of: &Opened, range: Range<u64>, keep: bool) -> Result<()> {
        self.writable()?;
        let (file, mut io) = (&of.file, of.to_change().await?);
        let end = range.end.min(io.size);
        if range.start < end {
            let head = self.head_of(file, &io);
            io.active.zero(&self.spool, head, range.start, end)?;
            self.touch_ahead(file, range.start..end);
            file.changed(io.size, self.env.clock.now(), 0);
        }
        if !keep && range.end > io.size {
            self.resize_locked(file, &mut io, range.end)?;
        }
        if io.active.extents() > MAX_EXTENTS {
            self.save_soon(file);
        }
        Ok(())
    }

    /// Answers from the layers and the version below them, of one moment.
    async fn looked_at<T>(&self, file: &Arc<File>, look: impl Fn(&Io) -> Result<T>) -> Result<T> {
        loop {
            self.base(file).await?;
            let io = file.io.read().await;
            // An upload that landed in between leaves its version open; another machine's has to be opened first.
            if io.version.is_none() || io.object.is_some() {
                return look(&io);
            }
        }
    }

    /// From `at` on: up to where the file is all data, or all hole. `None` from the end of the file on.
    async fn stretch(&self, file: &Arc<File>, at: u64) -> Result<Option<(bool, u64)>> {
        let mut found: Option<(bool, u64)> = None;
        loop {
            let from = found.map_or(at, |(_, to)| to);
            let (next, over) = self
                .looked_at(file, |io| {
                    let mut so_far = found;
                    let mut at = from;
                    for _ in 0..LOOK_STEP {
                        if at >= io.size {
                            return Ok((so_far, true));
                        }
                        let (data, to) = io.stretch(at);
                        if so_far.is_some_and(|(before, _)| before != data) {
                            return Ok((so_far, true));
                        }
                        so_far = Some((data, to));
                        at = to;
                    }
                    Ok((so_far, false))
                })
                .await?;
            found = next;
            if over {
                return Ok(found);
            }
        }
    }

    pub(super) async fn do_lseek(&self, fh: u64, offset: i64, whence: i32) -> Result<i64> {
        let handle = self.handle(fh)?;
        let Handle::File { file, epoch, .. } = &*handle else { return fail(Kind::Invalid, "is a directory") };
        if file.epoch.load(Ordering::Acquire) != *epoch {
            return fail(Kind::Stale, "another machine replaced the file; open it again");
        }
        let wants_data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return fail(Kind::Invalid, "unknown whence"),
        };
        let none = || crate::error::Error::new(Kind::NoData, "nothing from here to the end of the file");
        let at = u64::try_from(offset).map_err(|_| none())?;
        let (data, to) = self.stretch(file, at).await?.ok_or_else(none)?;
        let found = match data == wants_data {
            true => at,
            // The end of the file is a hole, and never data.
            false if wants_data && self.stretch(file, to).await?.is_none() => return Err(none()),
            false => to,
        };
        i64::try_from(found).map_err(|_| none())
    }

    pub(super) async fn do_copy(&self, from: CopyEnd, to: CopyEnd, len: u64) -> Result<u32> {
        let target = self.written_through(to.fh)?;
        let handle = self.handle(from.fh)?;
        let Handle::File { file: source, .. } = &*handle else { return fail(Kind::IsDir, "is a directory") };
        self.writable()?;
        let len = len.min(COPY_MAX).min(source.io.read().await.size.saturating_sub(from.offset));
        let most = self.uploader.params.geometry.max_size();
        if to.offset.checked_add(len).is_none_or(|end| end > most) {
            return fail(Kind::TooLarge, "the file would be larger than the volume can hold");
        }
        if source.id == target.file.id && from.offset < to.offset + len && to.offset < from.offset + len {
            return fail(Kind::Invalid, "the ranges overlap");
        }
        let mut done = 0;
        while done < len {
            match self.copy_step(source, from.fh, &target, from.offset + done, to.offset + done, len - done).await {
                Ok(0) => break,
                Ok(n) => done += n,
                // What was copied counts; the caller comes back for the rest and hears of it then.
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done as u32)
    }

    /// Copies what lies at `from`, data or hole, `most` bytes at most; 0 at the end of the source.
    async fn copy_step(&self, source: &Arc<File>, fh: u64, target: &Opened, from: u64, to: u64, most: u64) -> Result<u64> {
        let Some((data, end)) = self.stretch(source, from).await? else { return Ok(0) };
        let n = (end - from).min(most);
        if !data {
            self.zero(target, to..to + n, false).await?;
            return Ok(n);
        }
        let bytes = self.do_read(fh, from, n.min(COPY_STEP) as u32).await?;
        match bytes.is_empty() {
            true => Ok(0),
            false => self.write_file(&target.file, to, &bytes, (false, target.epoch)).await.map(u64::from),
        }
    }
}
