//! What can be mended without losing anything: files that tell their place are linked back, entries follow their objects, splits that
//! were given up are ended. An entry whose object is missing stays: it says what there was.

use super::edit::entry_of;
use super::strays::{Kindred, Lost};
use super::verify::ask_of;
use super::walk::{join, print};
use super::{Scrub, Seen};
use crate::error::{Kind, Result};
use crate::format::entry::{Body, Entry};
use crate::format::index::DirRef;
use crate::read::Ask;
use crate::store::ETag;
use crate::types::{DirId, FileId};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What was mended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Paths under which files were linked back.
    pub linked: Vec<Vec<u8>>,
    /// Paths of entries that now name the version that is there.
    pub advanced: Vec<Vec<u8>>,
    /// Directories whose split was ended.
    pub unfrozen: u64,
    /// Left-over files that tell of a directory that is not there: for `smpfs recover`.
    pub homeless: u64,
    /// Left-over objects of files that have a name elsewhere, or that do not open: they stay.
    pub left: u64,
}

impl Scrub {
    /// Mends what [`Scrub::check`] found, as far as nothing can be lost by it.
    pub async fn repair(&self, seen: &mut Seen) -> Result<Repaired> {
        let mut done = Repaired::default();
        self.end_splits(seen, &mut done).await?;
        self.advance(seen, &mut done).await?;
        let orphans: Vec<(String, ETag)> = seen
            .strays
            .orphans
            .iter()
            .filter(|o| matches!(o.kind, Kindred::File(_)))
            .map(|o| (o.key.clone(), o.etag.clone()))
            .collect();
        let count = orphans.len() as u64;
        let lost = self.open_all(orphans).await?;
        let mut by_dir: BTreeMap<DirId, Vec<Lost>> = BTreeMap::new();
        for l in lost.into_iter().filter(|l| !seen.tree.files.contains(&print(&[&l.file_id.0]))) {
            by_dir.entry(l.hints.dir_id).or_default().push(l);
        }
        for (id, files) in by_dir {
            // Which names led to an inode of the links directory no object tells.
            let links = self.parts.keys.links_dir().dir_id;
            let Some(node) = seen.tree.dirs.get(&id).filter(|_| id != links) else {
                done.homeless += files.len() as u64;
                continue;
            };
            let (dir, path) = (node.visit.dir.clone(), node.visit.path.clone());
            done.linked.extend(self.link_back(seen, &dir, &path, files).await?);
        }
        done.left = count.saturating_sub(done.linked.len() as u64 + done.homeless);
        Ok(done)
    }

    /// Opens files that nothing names; of several versions or copies of one the newest counts.
    pub(super) async fn open_all(&self, keys: Vec<(String, ETag)>) -> Result<Vec<Lost>> {
        let opening = keys.into_iter().map(|(key, etag)| async move { self.open_lost(&key, &etag).await });
        let mut opened = stream::iter(opening).buffer_unordered(self.parts.options.jobs.max(1));
        let mut newest: BTreeMap<FileId, Lost> = BTreeMap::new();
        while let Some(lost) = opened.try_next().await? {
            let Some(lost) = lost else { continue };
            let rank = |l: &Lost| (l.generation, l.key.starts_with(".smpfs/"), std::cmp::Reverse(l.key.clone()));
            if newest.get(&lost.file_id).is_none_or(|other| rank(other) < rank(&lost)) {
                newest.insert(lost.file_id, lost);
            }
        }
        let mut all: Vec<Lost> = newest.into_values().collect();
        // Of several that ask for one name, the one that was changed last gets it.
        all.sort_by_key(|l| std::cmp::Reverse((l.hints.mtime, l.file_id)));
        Ok(all)
    }

    /// Links files into a directory, unless an index names one of them by now. Gives their paths.
    pub(super) async fn link_back(&self, seen: &mut Seen, dir: &DirRef, path: &[u8], files: Vec<Lost>) -> Result<Vec<Vec<u8>>> {
        self.settle(&mut seen.tree, None).await?;
        let still: Vec<Lost> = files.into_iter().filter(|l| !seen.tree.files.contains(&print(&[&l.file_id.0]))).collect();
        if still.is_empty() {
            return Ok(Vec::new());
        }
        let entries: Vec<Entry> = still.iter().map(|l| entry_of(&self.parts, l)).collect();
        let names = self.link(dir, &entries).await?;
        for l in &still {
            seen.tree.named.insert(print(&[l.key.as_bytes()]));
            seen.tree.files.insert(print(&[&l.file_id.0]));
        }
        seen.strays.orphans.retain(|o| !still.iter().any(|l| l.key == o.key));
        Ok(names.iter().map(|n| join(path, n)).collect())
    }

    async fn end_splits(&self, seen: &Seen, done: &mut Repaired) -> Result<()> {
        for node in seen.tree.dirs.values().filter(|n| n.frozen) {
            self.edit(&node.visit.dir, |there| ((), there.to_vec())).await?;
            done.unfrozen += 1;
        }
        Ok(())
    }

    /// Entries that are behind their objects: a writer stopped between the two.
    async fn advance(&self, seen: &Seen, done: &mut Repaired) -> Result<()> {
        let lagging = std::mem::take(&mut *self.lagging.lock());
        for (dir, entry) in lagging {
            let Body::File(f) = &entry.body else { continue };
            // A newer version has another length.
            let ask = Ask { object_len: 0, ..ask_of(f) };
            let object = match self.reader.open(&ask).await {
                Ok(object) => object,
                Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Stale | Kind::Corrupt) => continue,
                Err(e) => return Err(e),
            };
            let change = |there: &[Arc<Entry>]| {
                let mut changed = false;
                let all = there.iter().map(|e| {
                    let mut new = Entry::clone(e);
                    if let Body::File(g) = &mut new.body
                        && g.file_id == f.file_id
                        && g.generation < object.generation()
                    {
                        (g.generation, g.trailer_hash) = (object.generation(), object.trailer_hash());
                        (g.size, g.object_len) = (object.size(), object.object_len());
                        changed = true;
                        return Arc::new(new);
                    }
                    e.clone()
                });
                let all = all.collect();
                (changed, all)
            };
            if self.edit(&dir, change).await? {
                let path = seen.tree.path_of(&dir.dir_id).unwrap_or_default();
                done.advanced.push(join(path, &entry.name));
            }
        }
        Ok(())
    }
}
