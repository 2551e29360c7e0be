//! From ciphertext to verified plaintext: AEAD for every chunk, leaves and segment roots with `verify=full`. Long runs are
//! split over the cores.

use super::budget::{Budget, Pool, Share};
use super::cache::Plain;
use super::fill::Trouble;
use super::object::OpenObject;
use super::reader::Engine;
use crate::error::{Error, Kind, Result};
use crate::format::failure::Failure;
use crate::format::segment::{self, SegmentOpener};
use bytes::Bytes;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use tokio::time::Instant;

/// Runs up to this many chunks are opened where they are: going to another thread would cost as much.
const INLINE: usize = 2;
/// Chunks that are worth a thread.
const PER_THREAD: usize = 4;
/// Verified leaves that are kept, bytes: those of 128 full segments at the default geometry.
const LEAVES_MAX: u64 = 512 << 10;

/// A chunk, its buffer, and whether the buffer holds verified plaintext now.
pub(super) type Opened = (u64, Plain, Result<(), Trouble>);

/// Leaves of segments, or why there are none.
pub(super) type Leaves = HashMap<u64, Result<Arc<segment::Leaves>, Trouble>>;

/// Verified leaves of segments that are being read, bounded. Empty unless `verify=full`.
pub(super) struct LeafCache {
    /// With their length in bytes.
    leaves: moka::sync::Cache<[u8; 16], (Arc<segment::Leaves>, u32)>,
    _share: Option<Share>,
}

impl LeafCache {
    pub(super) fn new(budget: &Arc<Budget>, on: bool) -> Result<LeafCache> {
        let share = if on { budget.try_take(Pool::Chunks, LEAVES_MAX as usize) } else { None };
        if on && share.is_none() {
            return Err(Error::new(Kind::Invalid, "the memory budget does not hold the leaves that verify=full needs"));
        }
        let weigh = |_: &[u8; 16], leaves: &(Arc<segment::Leaves>, u32)| leaves.1.saturating_add(256);
        let leaves = moka::sync::Cache::builder().max_capacity(LEAVES_MAX).weigher(weigh).build();
        Ok(LeafCache { leaves, _share: share })
    }
}

impl Engine {
    /// Opens the chunks of `run`, whose sealed bytes begin at object offset `start` of `sealed`.
    pub(super) async fn open_chunks(
        &self,
        object: &Arc<OpenObject>,
        run: Vec<(u64, Plain)>,
        start: u64,
        sealed: Bytes,
        leaves: Leaves,
    ) -> Vec<Opened> {
        if run.len() <= INLINE {
            return open_all(object, run, start, &sealed, &leaves);
        }
        let leaves = Arc::new(leaves);
        let each = run.len().div_ceil(self.pool.cores()).max(PER_THREAD);
        let mut rest = run;
        let mut groups = Vec::new();
        while !rest.is_empty() {
            let tail = rest.split_off(each.min(rest.len()));
            let group = std::mem::replace(&mut rest, tail);
            let (object, sealed, leaves) = (object.clone(), sealed.clone(), leaves.clone());
            groups.push(self.pool.run(move || open_all(&object, group, start, &sealed, &leaves)));
        }
        // A group that panicked is missing here; its chunks count as lost, an error, further up.
        futures_util::future::join_all(groups).await.into_iter().flatten().flatten().collect()
    }

    /// The verified leaves of all segments that `chunks` touch.
    pub(super) async fn leaves_of(&self, object: &Arc<OpenObject>, chunks: Range<u64>, until: Instant) -> Leaves {
        let mut all = Leaves::new();
        let last = object.place(chunks.end.saturating_sub(1)).0;
        for k in object.place(chunks.start).0..=last {
            all.insert(k, self.leaves_of_segment(object, k, until).await);
        }
        all
    }

    async fn leaves_of_segment(&self, object: &Arc<OpenObject>, k: u64, until: Instant) -> Result<Arc<segment::Leaves>, Trouble> {
        let lost = || Error::new(Kind::Bug, "leaves of a segment that is not stored");
        let tag = object.segment_tag(k).ok_or_else(lost)?;
        if let Some((leaves, _)) = self.leaves.leaves.get(&tag) {
            return Ok(leaves);
        }
        let range = object.layout().foot(k).ok_or_else(lost)?;
        let bytes = self.get(object, range, until).await?;
        let root = object.segment_root(k).ok_or_else(lost)?;
        match segment::Leaves::verify(&object.segment_at(k), &bytes, &root) {
            Ok(leaves) => {
                let leaves = Arc::new(leaves);
                self.leaves.leaves.insert(tag, (leaves.clone(), bytes.len() as u32));
                Ok(leaves)
            }
            Err(_) => Err(Trouble::Bad(Failure::Leaf, "the leaves of a segment are not what was written", bytes)),
        }
    }
}

/// Opens chunks one after the other.
pub(super) fn open_all(object: &OpenObject, run: Vec<(u64, Plain)>, start: u64, sealed: &Bytes, leaves: &Leaves) -> Vec<Opened> {
    let mut out = Vec::with_capacity(run.len());
    let mut opener: Option<(u64, SegmentOpener)> = None;
    for (c, mut buffer) in run {
        let k = object.place(c).0;
        if opener.as_ref().is_none_or(|(of, _)| *of != k) {
            opener = object.opener(k).map(|o| (k, o));
        }
        let outcome = match &opener {
            Some((_, opener)) => open_one(object, opener, c, &mut buffer, start, sealed, leaves),
            None => Err(Error::new(Kind::Bug, "a chunk of a segment that is not stored").into()),
        };
        out.push((c, buffer, outcome));
    }
    out
}

fn open_one(
    object: &OpenObject,
    opener: &SegmentOpener,
    chunk: u64,
    buffer: &mut Plain,
    start: u64,
    sealed: &Bytes,
    leaves: &Leaves,
) -> Result<(), Trouble> {
    let (k, i) = object.place(chunk);
    let range = object.stored_range(chunk..chunk + 1)?;
    let (from, to) = (range.start.checked_sub(start), range.end.checked_sub(start));
    let bytes = match (from, to) {
        (Some(from), Some(to)) if to <= sealed.len() as u64 => sealed.slice(from as usize..to as usize),
        _ => return Err(Error::new(Kind::Bug, "the bytes of a chunk were not fetched").into()),
    };
    if let Some(leaves) = leaves.get(&k) {
        let leaves = leaves.as_ref().map_err(Trouble::clone)?;
        if leaves.check(i, &bytes).is_err() {
            return Err(Trouble::Bad(Failure::Leaf, "a chunk does not match its leaf", bytes));
        }
    }
    let buf = buffer.buf();
    buf.clear();
    buf.extend_from_slice(&bytes);
    match opener.open_in_place(i, buf) {
        Ok(len) => {
            buf.truncate(len);
            Ok(())
        }
        Err(_) => {
            buf.clear();
            Err(Trouble::Bad(Failure::Chunk, "a chunk does not authenticate", bytes))
        }
    }
}
