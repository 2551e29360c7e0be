//! Deleting what nothing names, and nothing else.
//!
//! ```text
//!  the store's time ─> listing ─> indexes, until they stand still ─> listing ─> left over: in both, old, named by nothing, ours
//!                                     ┌───────── for every batch ────────────┐
//!                                     │ indexes that changed are read again  │   an object that was moved, or linked back, is named now
//!                                     │ key, tag and time are listed again   │   one that was written again is another version
//!                                     └─> deleted under its tag              ┘
//! ```
//! An object is uploaded before its index names it: so it must be older than the grace period. A renamed file has both names for a
//! moment and never none: so indexes that stand still show it. When one index cannot be read, nothing is deleted at all.

use super::strays::{Kindred, Orphan};
use super::{Scrub, Seen};
use crate::error::{Kind, Result, fail};
use crate::types::Time;
use std::time::Duration;

/// The shortest grace period: an object must have had the time to get its name.
pub const MIN_GRACE: Duration = Duration::from_secs(3600);
/// Objects deleted between two looks at the indexes.
const BATCH: usize = 64;

/// What was deleted, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gc {
    /// Keys of objects.
    pub objects: Vec<String>,
    /// Keys of uploads.
    pub uploads: Vec<String>,
    /// Keys of objects that were left after all: named or changed meanwhile.
    pub spared: Vec<String>,
}

impl Scrub {
    /// Deletes left-over objects and aborts left-over uploads; with `dry`, only says which. `Corrupt` when an index cannot be read,
    /// `Busy` when the volume does not stand still, `Unsupported` when the store gives no times: then nothing is deleted.
    pub async fn gc(&self, seen: &mut Seen, dry: bool) -> Result<Gc> {
        let cutoff = self.may_collect(seen)?;
        let mut done = Gc::default();
        let orphans = std::mem::take(&mut seen.strays.orphans);
        if !dry && !orphans.is_empty() {
            tokio::time::sleep(self.parts.options.pause).await;
        }
        for batch in orphans.chunks(BATCH) {
            if !self.settle(&mut seen.tree, None).await? {
                return fail(Kind::Busy, "the volume changes all the time: what is left over cannot be told now");
            }
            self.may_collect(seen)?;
            for orphan in batch {
                let gone = !seen.tree.names(&orphan.key) && self.still_old(orphan).await? && (dry || self.delete(orphan).await?);
                if gone { done.objects.push(orphan.key.clone()) } else { done.spared.push(orphan.key.clone()) }
            }
        }
        let idle = self.parts.store.idle_uploads("", cutoff).await?;
        for (key, id) in idle.into_iter().filter(|(key, _)| self.may_be_ours(key)) {
            if !dry {
                self.parts.store.upload_abort(&key, &id).await?;
            }
            done.uploads.push(key);
        }
        seen.strays.orphans = orphans.into_iter().filter(|o| !done.objects.contains(&o.key)).collect();
        Ok(done)
    }

    fn may_collect(&self, seen: &Seen) -> Result<Time> {
        if self.parts.options.grace < MIN_GRACE {
            return fail(Kind::Invalid, "the grace period is shorter than an hour: objects on their way would be deleted");
        }
        if let Some(broken) = seen.tree.broken.values().next() {
            let e = broken.error.duplicate();
            return Err(crate::format::Failure::Index.error(format!("an index cannot be read, so nothing is deleted: {e}")));
        }
        match seen.cutoff {
            _ if !seen.steady => fail(Kind::Busy, "the volume changes all the time: what is left over cannot be told now"),
            Some(cutoff) => Ok(cutoff),
            None => fail(Kind::Unsupported, "the store does not tell when objects were written, or takes no writes"),
        }
    }

    /// Whether the very version is there that was listed before, with the time it had.
    async fn still_old(&self, o: &Orphan) -> Result<bool> {
        let page = self.parts.store.list(&o.key, None, 2).await?;
        let same = |i: &crate::store::Listed| i.key == o.key && i.meta.etag == o.etag && i.modified == Some(o.modified);
        Ok(page.items.iter().any(same))
    }

    /// `false` when somebody wrote it in the last moment.
    async fn delete(&self, o: &Orphan) -> Result<bool> {
        match self.parts.store.delete_if(&o.key, &o.etag).await {
            Ok(()) => {
                if matches!(o.kind, Kindred::Index) {
                    self.io.forget(&o.key)?;
                }
                Ok(true)
            }
            Err(e) if e.kind() == Kind::Stale => Ok(false),
            Err(e) => Err(e.context("deleting what is left over")),
        }
    }
}
