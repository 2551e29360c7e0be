//! What can be checked with public values alone: by an auditor, or by whoever runs the bucket.
//!
//! Every signature, and everything that a signature covers without a key in between: headers, sealed manifests, segment roots from
//! leaves, leaves from ciphertext, the body root over all. Not: which objects must exist, and which version of them; whether
//! ciphertext opens. FORMAT.md, section 9.

use super::report::{Find, Progress, Report, Tally, What, sentence};
use super::walk::PAGE;
use crate::crypto::hash::sha256;
use crate::crypto::sign::VerifyingKey;
use crate::error::{Error, Kind, Result};
use crate::format::failure::Failure;
use crate::format::geometry::{FOOT_LEN, HEADER_LEN, LEAF_LEN, MAX_SEGMENTS, MIN_OBJECT, TRAILER_LEN};
use crate::format::index::{self, MAX_OBJECT};
use crate::format::lease;
use crate::format::names::{CONFIG, INDEX_PREFIX, LEASE, PROBE_PREFIX, file_of_key};
use crate::format::object::CheckedTrailer;
use crate::format::segment::{PublicLeaves, body_root_of};
use crate::format::trailer::OWNER;
use crate::format::{Params, header};
use crate::store::{Listed, Span, Store};
use crate::types::Hash;
use bytes::Bytes;
use futures_util::stream::{self, TryStreamExt};
use std::ops::Range;
use std::sync::Arc;

/// Bytes of chunks fetched at once, for one object.
const PIECE: u64 = 4 << 20;
/// Versions of an object that are tried while it is being written.
const TRIES: usize = 4;

/// What a check without keys is made of.
#[derive(Clone)]
pub struct PublicParts {
    /// The bucket.
    pub store: Arc<dyn Store>,
    /// The volume's constants, from its config.
    pub params: Params,
    /// The owner's public key, from the config or from a pin.
    pub owner: VerifyingKey,
    /// Objects verified at once.
    pub jobs: usize,
}

/// Checks every object below the prefix. `progress` is called now and then.
pub async fn check_public(parts: &PublicParts, progress: impl Fn(Progress) + Sync) -> Result<Report> {
    let tally = Tally::default();
    let mut after: Option<String> = None;
    loop {
        let page = parts.store.list("", after.as_deref(), PAGE).await?;
        let items: Vec<Listed> = page.items.into_iter().filter(|i| !i.key.starts_with(PROBE_PREFIX)).collect();
        items.iter().for_each(|i| tally.seen(i.meta.len));
        stream::iter(items.into_iter().map(Ok))
            .try_for_each_concurrent(parts.jobs.max(1), |item| {
                let (tally, progress) = (&tally, &progress);
                async move {
                    tally.object(item.meta.len);
                    parts.one(&item, tally).await?;
                    progress(tally.progress());
                    Ok::<_, Error>(())
                }
            })
            .await?;
        after = page.next;
        if after.is_none() {
            tally.steady(true);
            tally.complete();
            return Ok(tally.report());
        }
    }
}

impl PublicParts {
    fn writer(&self, id: u32) -> Option<VerifyingKey> {
        (id == OWNER).then(|| self.owner.clone())
    }

    async fn one(&self, item: &Listed, tally: &Tally) -> Result<()> {
        let key = item.key.as_str();
        let mut again = false;
        for _ in 0..TRIES {
            let outcome = match key {
                // Checked before anything else was.
                CONFIG => Ok(()),
                LEASE => self.lease().await,
                _ if key.starts_with(INDEX_PREFIX) => self.index(key).await,
                _ => self.object(key, tally).await,
            };
            match outcome {
                Ok(()) => {
                    tally.file();
                    return Ok(());
                }
                // Removed, or replaced, while we looked.
                Err(e) if e.kind() == Kind::NotFound => return Ok(()),
                Err(e) if e.kind() == Kind::Stale => {}
                Err(e) if !matches!(e.kind(), Kind::Corrupt | Kind::TooLarge) => return Err(e),
                // A second look past every cache.
                Err(_) if !again => again = true,
                Err(e) => {
                    tally.find(find(key, &e));
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn index(&self, key: &str) -> Result<()> {
        let bytes = self.store.get(key, Span::Whole { max: MAX_OBJECT }, None).await?.bytes;
        index::verify_by(self.params.volume_id, |id| self.writer(id), &bytes).map(drop)
    }

    async fn lease(&self) -> Result<()> {
        let bytes = self.store.get(LEASE, Span::Whole { max: lease::OBJECT_LEN as u64 }, None).await?.bytes;
        lease::verify_by(self.params.volume_id, |id| self.writer(id), &bytes).map(drop)
    }

    async fn object(&self, key: &str, tally: &Tally) -> Result<()> {
        let head = self.store.get(key, Span::Range(0..HEADER_LEN as u64), None).await?;
        let (len, etag) = (head.meta.len, head.meta.etag.clone());
        Failure::Length.unless(len >= MIN_OBJECT, "the object is shorter than an empty file")?;
        let get = |range: Range<u64>| {
            let etag = &etag;
            async move {
                let want = range.end - range.start;
                let got = self.store.get(key, Span::Range(range), Some(etag)).await?.bytes;
                tally.read(got.len() as u64);
                Failure::Length.unless(got.len() as u64 == want, "fewer bytes came back than the object has")?;
                Ok::<Bytes, Error>(got)
            }
        };
        let tail = get(len - TRAILER_LEN as u64..len).await?;
        let (Some(header), Some(trailer)) = (head.bytes.first_chunk(), tail.first_chunk()) else {
            return Failure::Length.fail("fewer bytes came back than the object has");
        };
        if header[..8] != header::MAGIC {
            return Failure::Magic.fail("this is not an object of smpfs");
        }
        let checked = CheckedTrailer::check_by(&self.params, |id| self.writer(id), header, trailer, len, None)?;
        let named = file_of_key(key).is_none_or(|id| id == checked.trailer().file_id);
        Failure::Identity.unless(named, "the object lies under the key of another file")?;
        let manifest = checked.manifest_range();
        let fits = manifest.end - manifest.start <= self.params.geometry.manifest_len(MAX_SEGMENTS);
        Failure::Size.unless(fits, "the manifest is longer than any file needs")?;
        let sealed = get(manifest.clone()).await?;
        let signed = Hash(sha256(&[&sealed])) == checked.trailer().manifest_hash;
        Failure::ManifestHash.unless(signed, "the manifest is not the one that was signed")?;
        self.body(HEADER_LEN as u64..manifest.start, checked.trailer().body_root, get).await
    }

    /// Every stored segment: its leaves against its chunks, and the root over all against the one that was signed.
    async fn body<F: Future<Output = Result<Bytes>>>(
        &self,
        body: Range<u64>,
        root: Hash,
        get: impl Fn(Range<u64>) -> F,
    ) -> Result<()> {
        let g = self.params.geometry;
        let full = g.seg_stored(g.seg_size());
        let (mut at, mut last, mut roots) = (body.start, None, Vec::new());
        while at < body.end {
            let stored = full.min(body.end - at);
            let Some(chunks) = chunks_of(g.chunk_stored(), stored) else {
                return Failure::Size.fail("what is stored of a segment has a length that no segment has");
            };
            let sealed = stored - FOOT_LEN as u64 - u64::from(chunks) * LEAF_LEN as u64;
            let leaves = PublicLeaves::read(chunks, &get(at + sealed..at + stored).await?)?;
            Failure::Leaf.unless(last.is_none_or(|k| k < leaves.k), "segments are out of order")?;
            last = Some(leaves.k);
            let per_piece = (PIECE / g.chunk_stored()).max(1) * g.chunk_stored();
            let (mut from, mut i) = (0, 0);
            while from < sealed {
                let to = (from + per_piece).min(sealed);
                for chunk in get(at + from..at + to).await?.chunks(g.chunk_stored() as usize) {
                    leaves.check(i, chunk)?;
                    i += 1;
                }
                from = to;
            }
            roots.push(leaves.root);
            at += stored;
        }
        Failure::BodyRoot.unless(body_root_of(roots) == root, "the segment roots are not the ones that were signed")
    }
}

/// Chunks of a segment of which so many bytes are stored; `None` when no segment has such a length.
fn chunks_of(chunk_stored: u64, stored: u64) -> Option<u32> {
    let body = stored.checked_sub(FOOT_LEN as u64)?;
    let each = chunk_stored + LEAF_LEN as u64;
    let chunks = body.div_ceil(each);
    // The last chunk holds at least a byte beside its tag and its leaf.
    let rest = body - chunks.checked_sub(1)? * each;
    (rest > 16 + LEAF_LEN as u64).then_some(u32::try_from(chunks).ok()?)
}

fn find(key: &str, e: &Error) -> Find {
    let what = match Failure::of(e) {
        Some(Failure::Index) => What::Index,
        Some(Failure::Magic | Failure::Lease) | None => What::Foreign,
        Some(Failure::Length) if !key.starts_with(".smpfs/") => What::Foreign,
        _ => What::Corrupt,
    };
    Find::new(what, key, sentence(e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Geometry;

    #[test]
    fn the_chunks_of_a_segment_follow_from_its_length() {
        let g = Geometry::new(14, 4).unwrap();
        let lens = |plain: u64| g.seg_stored(plain);
        for plain in (1..40_000).chain(g.seg_size() - 20..=g.seg_size()) {
            assert_eq!(chunks_of(g.chunk_stored(), lens(plain)), Some(g.seg_chunks(plain)), "{plain}");
        }
        // Lengths between those of a full chunk and of one byte more belong to nothing.
        let full = lens(g.chunk_size());
        for none in full + 1..lens(g.chunk_size() + 1) {
            assert_eq!(chunks_of(g.chunk_stored(), none), None, "{none}");
        }
        assert_eq!((chunks_of(g.chunk_stored(), 15), chunks_of(g.chunk_stored(), 16)), (None, None));
    }
}
