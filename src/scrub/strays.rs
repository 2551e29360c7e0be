//! Objects that no index names: ours and left over, somebody else's, or too young to tell.

use super::Scrub;
use super::report::{Find, What};
use super::verify::not_ours;
use super::walk::{PAGE, Print, Tree, print};
use crate::crypto::secmem::SecretKey;
use crate::error::{Error, Kind, Result};
use crate::format::Failure;
use crate::format::geometry::{HEADER_LEN, MAX_SEGMENTS, MIN_OBJECT, TAIL_FETCH, TRAILER_LEN};
use crate::format::index::{self, MAX_OBJECT};
use crate::format::lease::{self, Lease};
use crate::format::manifest::Hints;
use crate::format::names::{CONFIG, INDEX_PREFIX, LEASE, PROBE_PREFIX, is_readable_key, object_key};
use crate::format::object::CheckedTrailer;
use crate::store::{ETag, Listed, Span};
use crate::types::{FileId, Hash, Mode, Time};
use futures_util::stream::{self, StreamExt};
use std::collections::HashSet;

/// Strays that are kept in memory; further ones are left for the next run.
const STRAYS_MAX: usize = 1 << 18;

/// What an object that nothing names is.
#[derive(Clone)]
pub(super) enum Kindred {
    /// A sealed file of this volume.
    File(FileId),
    /// An index object of this volume.
    Index,
    /// A scratch object of a probe.
    Scratch,
}

/// An object of ours that nothing names.
#[derive(Clone)]
pub(super) struct Orphan {
    pub key: String,
    pub etag: ETag,
    pub modified: Time,
    pub kind: Kindred,
}

/// An object that nothing names, too young to tell what it is.
#[derive(Clone)]
pub(super) struct Young {
    pub key: String,
    pub etag: ETag,
    pub modified: Option<Time>,
}

#[derive(Default)]
pub(super) struct Strays {
    pub orphans: Vec<Orphan>,
    pub foreign: Vec<String>,
    /// What is named by nothing, and too young to be left over: recovery may want it all the same.
    pub young: Vec<Young>,
}

/// A sealed file that was opened by its own trailer, without an entry.
pub(super) struct Lost {
    pub key: String,
    pub file_id: FileId,
    pub file_key: SecretKey,
    pub generation: u64,
    pub trailer_hash: Hash,
    pub size: u64,
    pub object_len: u64,
    pub hints: Hints,
}

impl Scrub {
    /// Every object that is there, as a print of key and version: what a later listing shows in addition came meanwhile.
    pub(super) async fn listing(&self) -> Result<HashSet<Print>> {
        let (mut all, mut after) = (HashSet::new(), None);
        loop {
            let page = self.parts.store.list("", after.as_deref(), PAGE).await?;
            all.extend(page.items.iter().map(version));
            after = page.next;
            if after.is_none() {
                return Ok(all);
            }
        }
    }

    pub(super) async fn uploads_under_way(&self) -> Result<HashSet<String>> {
        match self.parts.store.uploads("").await {
            Ok(all) => Ok(all.into_iter().map(|(key, _)| key).collect()),
            Err(e) if matches!(e.kind(), Kind::Denied | Kind::Unsupported) => Ok(HashSet::new()),
            Err(e) => Err(e.context("listing uploads")),
        }
    }

    /// Lists the bucket and looks at what the tree does not name.
    pub(super) async fn strays(
        &self,
        tree: &Tree,
        cutoff: Option<Time>,
        first: &HashSet<Print>,
        under_way: &HashSet<String>,
    ) -> Result<Strays> {
        let (mut strays, mut after) = (Strays::default(), None);
        loop {
            let page = self.parts.store.list("", after.as_deref(), PAGE).await?;
            let mut old = Vec::new();
            for item in page.items {
                self.tally.object(item.meta.len);
                if item.key == CONFIG || tree.names(&item.key) || (item.key == LEASE && self.is_lease().await?) {
                    continue;
                }
                let age = cutoff.zip(item.modified).is_some_and(|(cutoff, at)| at < cutoff);
                if age && first.contains(&version(&item)) && !under_way.contains(&item.key) {
                    old.push(item);
                } else {
                    self.tally.young();
                    if strays.young.len() < STRAYS_MAX {
                        strays.young.push(Young { key: item.key, etag: item.meta.etag, modified: item.modified });
                    }
                }
            }
            let looks = old.into_iter().map(|item| async move { self.kin(&item).await.map(|kin| (item, kin)) });
            let mut looks = stream::iter(looks.collect::<Vec<_>>()).buffer_unordered(self.parts.options.jobs.max(1));
            while let Some(look) = looks.next().await {
                let (item, kin) = look?;
                match kin.zip(item.modified) {
                    _ if strays.orphans.len() + strays.foreign.len() >= STRAYS_MAX => {}
                    Some((kind, modified)) => {
                        strays.orphans.push(Orphan { key: item.key, etag: item.meta.etag, modified, kind });
                    }
                    None => strays.foreign.push(item.key),
                }
            }
            after = page.next;
            if after.is_none() {
                return Ok(strays);
            }
        }
    }

    /// What an object is, as far as it is of this volume and its signature holds.
    async fn kin(&self, item: &Listed) -> Result<Option<Kindred>> {
        if item.key.starts_with(PROBE_PREFIX) {
            return Ok(Some(Kindred::Scratch));
        }
        let ours = match item.key.starts_with(INDEX_PREFIX) {
            true => self.is_index(item).await.map(|ours| ours.then_some(Kindred::Index)),
            false => {
                self.trailer_of(&item.key, item.meta.len, &item.meta.etag).await.map(|t| Some(Kindred::File(t.trailer().file_id)))
            }
        };
        match ours {
            Err(e) if not_ours(&e) => Ok(None),
            // Gone or replaced since the listing: the next run sees what it is now, and nothing is done to it in this one.
            Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Stale | Kind::TooLarge) => Ok(None),
            done => done,
        }
    }

    /// Whether a lease lies in its place: it comes, changes and goes with the mount that holds it.
    async fn is_lease(&self) -> Result<bool> {
        match self.parts.store.get(LEASE, Span::Whole { max: lease::OBJECT_LEN as u64 }, None).await {
            Ok(got) => Ok(Lease::open(&self.parts.keys, &got.bytes).is_ok()),
            Err(e) if e.kind() == Kind::NotFound => Ok(true),
            Err(e) if e.kind() == Kind::TooLarge => Ok(false),
            Err(e) => Err(e),
        }
    }

    async fn is_index(&self, item: &Listed) -> Result<bool> {
        let got = self.parts.store.get(&item.key, Span::Whole { max: MAX_OBJECT }, Some(&item.meta.etag)).await?;
        Ok(index::verify(&self.parts.keys, &got.bytes).is_ok())
    }

    /// Header and trailer of an object, verified without an entry.
    async fn trailer_of(&self, key: &str, len: u64, etag: &ETag) -> Result<CheckedTrailer> {
        Failure::Length.unless(len >= MIN_OBJECT, "the object is shorter than an empty file")?;
        let get = |span| self.parts.store.get(key, span, Some(etag));
        let (head, tail) = tokio::try_join!(get(Span::Range(0..HEADER_LEN as u64)), get(Span::Last(TRAILER_LEN as u64)))?;
        let (Some(header), Some(trailer)) = (head.bytes.first_chunk(), tail.bytes.last_chunk()) else {
            return Failure::Length.fail("fewer bytes came back than the object has");
        };
        CheckedTrailer::check(&self.parts.params, &self.parts.keys, header, trailer, len, None)
    }

    /// Opens a file that no entry names by what it says of itself. `None` when it is not ours, or damaged.
    pub(super) async fn open_lost(&self, key: &str, etag: &ETag) -> Result<Option<Lost>> {
        match self.try_open_lost(key, etag).await {
            Ok(lost) => Ok(Some(lost)),
            Err(e) if matches!(e.kind(), Kind::Corrupt | Kind::NotFound | Kind::Stale) => Ok(None),
            Err(e) => Err(e),
        }
    }

    async fn try_open_lost(&self, key: &str, etag: &ETag) -> Result<Lost> {
        let len = self.parts.store.head(key).await?.len;
        let checked = self.trailer_of(key, len, etag).await?;
        let range = checked.manifest_range();
        let fits = range.end - range.start <= self.parts.params.geometry.manifest_len(MAX_SEGMENTS).max(TAIL_FETCH);
        Failure::Size.unless(fits, "the manifest is longer than any file needs")?;
        let manifest = self.parts.store.get(key, Span::Range(range), Some(etag)).await?.bytes;
        let (keys, hash) = (self.parts.keys.clone(), checked.hash());
        let opened = tokio::task::spawn_blocking(move || checked.open_manifest(&keys, &manifest, None)).await;
        let root = opened.map_err(|e| Error::with_source(Kind::Bug, "opening a manifest stopped", e))??;
        let t = root.trailer();
        // Under any other key it is a copy that somebody made, which no entry could name.
        let placed = key == object_key(&t.file_id) || (self.parts.mode == Mode::Standard && is_readable_key(key));
        Failure::Identity.unless(placed, "the object lies under a key that no file of this volume can have")?;
        Ok(Lost {
            key: key.to_owned(),
            file_id: t.file_id,
            file_key: root.file_key().clone(),
            generation: t.generation,
            trailer_hash: hash,
            size: root.size(),
            object_len: len,
            hints: root.manifest().hints.clone(),
        })
    }

    pub(super) fn tell_strays(&self, tree: &Tree, strays: &Strays) {
        for o in &strays.orphans {
            let detail = match &o.kind {
                Kindred::File(id) if tree.files.contains(&print(&[&id.0])) => {
                    "another object of a file that an index names: left over, and not needed"
                }
                Kindred::File(_) => {
                    "a file of this volume that no index names: `smpfs recover` can link it back, `scrub --gc` deletes it for good"
                }
                Kindred::Index => "an index of this volume that no directory uses",
                Kindred::Scratch => "a scratch object that a probe left",
            };
            let find = Find::new(What::Orphan, &o.key, detail);
            self.tally.find(match &o.kind {
                Kindred::File(id) => find.of(*id),
                _ => find,
            });
        }
        for key in &strays.foreign {
            self.parts.listener.foreign(key);
            self.tally.find(Find::new(What::Foreign, key, "not an object of this volume, or a damaged one that no index names"));
        }
    }

    /// Whether an unfinished upload to this key can be one of this volume.
    pub(super) fn may_be_ours(&self, key: &str) -> bool {
        self.parts.mode == Mode::Standard || key.starts_with(".smpfs/")
    }

    pub(super) async fn tell_uploads(&self, cutoff: Option<Time>) -> Result<()> {
        let Some(cutoff) = cutoff else { return Ok(()) };
        match self.parts.store.idle_uploads("", cutoff).await {
            Ok(all) => {
                for (key, _) in all.into_iter().filter(|(key, _)| self.may_be_ours(key)) {
                    self.tally.find(Find::new(What::Upload, key, "an upload that was begun and not gone on with"));
                }
                Ok(())
            }
            Err(e) if matches!(e.kind(), Kind::Denied | Kind::Unsupported) => Ok(()),
            Err(e) => Err(e.context("listing uploads")),
        }
    }
}

fn version(item: &Listed) -> Print {
    print(&[item.key.as_bytes(), b"\0", item.meta.etag.0.as_bytes()])
}
