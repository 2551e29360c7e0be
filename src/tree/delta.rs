//! Names of an inode, combined: what two machines did to the same set at once. Pure.
//!
//! Every name has a number of its own that is never used again, so adding and removing commute: what both did holds, in whatever
//! order it reaches the bucket.

use crate::format::entry::{Body, Entry};
use crate::types::LinkRef;
use std::collections::BTreeSet;

/// What was done to a set of names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Names that came.
    pub added: BTreeSet<LinkRef>,
    /// Names that went.
    pub removed: BTreeSet<LinkRef>,
}

impl Delta {
    /// The way from one set to another.
    pub fn between(from: &[LinkRef], to: &[LinkRef]) -> Delta {
        let mut delta = Delta::default();
        delta.step(from, to);
        delta
    }

    /// Goes on from one set to another; both are in ascending order.
    pub fn step(&mut self, from: &[LinkRef], to: &[LinkRef]) {
        for one in to.iter().filter(|r| from.binary_search(r).is_err()) {
            self.removed.remove(one);
            self.added.insert(*one);
        }
        for one in from.iter().filter(|r| to.binary_search(r).is_err()) {
            self.added.remove(one);
            self.removed.insert(*one);
        }
    }

    /// Nothing was done.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }

    /// The same done to another set.
    pub fn applied(&self, to: &[LinkRef]) -> Vec<LinkRef> {
        let all: BTreeSet<LinkRef> = to.iter().chain(&self.added).copied().collect();
        all.into_iter().filter(|r| !self.removed.contains(r)).collect()
    }
}

/// An inode that this machine changed from `old` to `mine` and that the bucket holds as `theirs`: with the names of both, and of
/// every other field the value that was changed, this machine's when both did. `None` when no name is left.
pub fn combine(mine: Option<&Entry>, old: Option<&Entry>, theirs: Option<&Entry>, delta: &Delta) -> Option<Entry> {
    let refs = match theirs {
        Some(t) => delta.applied(&t.refs),
        // Never written, or removed by another machine: then only what was added here is left.
        None if old.is_none() => mine.map(|m| m.refs.clone()).unwrap_or_default(),
        None => delta.added.iter().copied().collect(),
    };
    let (Some(mine), Some(theirs)) = (mine, theirs) else {
        return mine.or(theirs).filter(|_| !refs.is_empty()).map(|e| Entry { refs, ..e.clone() });
    };
    let mut out = mine.clone();
    // A set that came down to nothing is for the caller to bury.
    out.refs = refs;
    if let (Body::File(m), Body::File(t)) = (&mut out.body, &theirs.body)
        && m.file_id == t.file_id
        && m.generation < t.generation
    {
        *m = t.clone();
    }
    let Some(old) = old else { return Some(out) };
    let (a, o, t) = (&mut out.attributes, &old.attributes, &theirs.attributes);
    a.mode = if a.mode == o.mode { t.mode } else { a.mode };
    a.uid = if a.uid == o.uid { t.uid } else { a.uid };
    a.gid = if a.gid == o.gid { t.gid } else { a.gid };
    a.atime = if a.atime == o.atime { t.atime } else { a.atime };
    a.mtime = if a.mtime == o.mtime { t.mtime } else { a.mtime };
    a.ctime = a.ctime.max(t.ctime);
    if out.xattrs == old.xattrs {
        out.xattrs.clone_from(&theirs.xattrs);
    }
    Some(out)
}
