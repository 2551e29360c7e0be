//! Indexes that are lost, written anew from what the objects say of themselves.
//!
//! A file's manifest holds the directory it was in and the name it had when it was written; its trailer holds its key, wrapped under
//! a key of the volume. What only the index held is gone with it: the keys (and so the indexes) of subdirectories, symbolic links,
//! special files, owners, extended attributes, and every rename since a file was last written.
//!
//! ```text
//!  walk ─> broken? ─> salvage: shards that open, an old version that was put back ─> walk on from there
//!  files that nothing names ─> of a broken directory: into its new index
//!                            ─> of a directory that is there: linked back, when they are old
//!                            ─> of one that is gone for good: lost+found/<directory id>/
//! ```

use super::edit::{entry_of, with_free_names};
use super::strays::{Kindred, Lost, Strays};
use super::verify::not_ours;
use super::walk::{Node, Tree, Visit, children_of, join, print};
use super::{Scrub, Seen, before};
use crate::crypto::hash::sha256;
use crate::error::{Kind, Result, fail};
use crate::format::entry::Entry;
use crate::format::index::{DirRef, IndexNode, MAX_OBJECT, Role};
use crate::format::names::{OBJECT_PREFIX, Place};
use crate::store::{ETag, Span};
use crate::tree::io::Ruin;
use crate::types::{DirId, Hash, Time};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Where files go whose directory is gone for good.
const LOST_FOUND: &[u8] = b"lost+found";

/// A directory whose index is to be written anew.
struct Ruined {
    visit: Visit,
    ruin: Ruin,
    /// Index objects that do not verify, and their bytes.
    damaged: Vec<(String, Bytes)>,
    /// Entries that could still be read.
    kept: Vec<Arc<Entry>>,
    lost_parts: u32,
    /// Files that tell of this directory.
    found: Vec<Lost>,
}

/// What a recovery would do.
pub struct Outlook {
    seen: Seen,
    ruined: Vec<Ruined>,
    /// For directories that are there.
    returning: BTreeMap<DirId, Vec<Lost>>,
    /// For directories that are gone.
    homeless: BTreeMap<DirId, Vec<Lost>>,
    waiting: Waiting,
}

/// Files that nothing names and that are left alone: a mount may be about to name them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// How many.
    pub files: u64,
    /// When the last of them was written, by the store's clock; `None` when it tells no times.
    pub newest: Option<Time>,
}

/// What a recovery did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Directories whose index was written anew.
    pub dirs: Vec<Vec<u8>>,
    /// Entries that were still readable in them.
    pub kept: u64,
    /// Files that came back into them.
    pub found: u64,
    /// Paths of files that were linked back into directories that were there.
    pub linked: Vec<Vec<u8>>,
    /// Paths of files whose directory is gone.
    pub homeless: Vec<Vec<u8>>,
}

fn number(n: usize, one: &str, more: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { more })
}

impl Outlook {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ruined.is_empty() && self.returning.is_empty() && self.homeless.is_empty()
    }

    /// What is left out because it is young.
    pub fn waiting(&self) -> Waiting {
        self.waiting
    }

    /// What would be done, a line for each directory: paths, for the terminal only.
    pub fn lines(&self) -> Vec<String> {
        let show = |path: &[u8]| match path {
            b"" => "/".to_owned(),
            path => String::from_utf8_lossy(path).into_owned(),
        };
        let mut lines = Vec::new();
        for r in &self.ruined {
            lines.push(format!(
                "{}: a new index: {} that can still be read, {} of it by what the objects say ({} lost)",
                show(&r.visit.path),
                number(r.kept.len(), "entry", "entries"),
                number(r.found.len(), "file", "files"),
                number(r.lost_parts as usize, "index object is", "index objects are")
            ));
        }
        for (id, files) in &self.returning {
            let path = self.seen.tree.path_of(id).unwrap_or_default();
            let files = number(files.len(), "file that nothing names is", "files that nothing names are");
            lines.push(format!("{}: {files} linked back", show(path)));
        }
        for (id, files) in &self.homeless {
            let files = number(files.len(), "file", "files");
            lines.push(format!("/lost+found/{}: {files} of a directory that is gone", id.hex()));
        }
        lines
    }
}

impl Scrub {
    /// Looks for lost indexes and for what could fill them. Changes nothing.
    pub async fn outlook(&self) -> Result<Outlook> {
        let cutoff = self.store_time().await?.map(|t| before(t, self.parts.options.grace));
        let under_way = self.uploads_under_way().await?;
        let first = self.listing().await?;
        let mut tree = Tree::default();
        self.walk(&mut tree, self.roots(), None).await?;
        let mut ruined: Vec<Ruined> = Vec::new();
        loop {
            let steady = self.settle(&mut tree, None).await?;
            if !steady || tree.broken.values().any(|b| b.error.kind() == Kind::Stale) {
                return fail(Kind::Busy, "the volume changes all the time: unmount it everywhere, and try again");
            }
            if tree.broken.is_empty() {
                let strays = self.strays(&tree, cutoff, &first, &under_way).await?;
                let seen = Seen { tree, strays, cutoff, steady };
                return self.assign(seen, ruined).await;
            }
            for broken in std::mem::take(&mut tree.broken).into_values() {
                let r = self.salvage(broken.visit).await?;
                let further = self.absorb(&mut tree, &r.visit, &[], &r.kept, None).await;
                let node =
                    Node { visit: r.visit.clone(), parts: Vec::new(), children: children_of(&r.visit, &r.kept), frozen: false };
                tree.dirs.insert(r.visit.dir.dir_id, node);
                ruined.push(r);
                self.walk(&mut tree, further, None).await?;
            }
        }
    }

    /// What can be read of a broken directory, whatever this machine remembers of it.
    async fn salvage(&self, visit: Visit) -> Result<Ruined> {
        let dir = &visit.dir;
        let key = self.parts.keys.index_key(&dir.dir_id, Place::HEAD);
        let (bytes, etag) = self.raw(&key).await?;
        let mut ruin =
            Ruin { etag, hash: Hash(sha256(&[&bytes])), generation: self.parts.memory.generation(&key).unwrap_or(0), epoch: 0 };
        let (mut damaged, mut kept, mut lost_parts) = (Vec::new(), Vec::new(), 0);
        match IndexNode::open(&self.parts.keys, dir, Place::HEAD, &bytes) {
            Ok((node, _)) => {
                ruin.generation = ruin.generation.max(node.generation);
                if let Role::Head { shard_bits, epoch } = node.role {
                    ruin.epoch = epoch;
                    let shards = if shard_bits == 0 { 0 } else { 1u32 << shard_bits };
                    for slot in 0..shards {
                        let place = Place { epoch, slot };
                        let key = self.parts.keys.index_key(&dir.dir_id, place);
                        let (bytes, _) = self.raw(&key).await?;
                        match IndexNode::open(&self.parts.keys, dir, place, &bytes) {
                            Ok((node, _)) => kept.extend(node.entries.into_iter().map(Arc::new)),
                            Err(e) if not_ours(&e) => {
                                lost_parts += 1;
                                damaged.push((key, bytes));
                            }
                            Err(e) => return Err(e),
                        }
                    }
                }
                kept.extend(node.entries.into_iter().map(Arc::new));
                // Also a head that opens is kept: it may be an old one that was put back.
                damaged.push((key, bytes));
            }
            Err(e) if not_ours(&e) => {
                lost_parts += 1;
                damaged.push((key, bytes));
            }
            Err(e) => return Err(e),
        }
        damaged.retain(|(_, bytes)| !bytes.is_empty());
        kept.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Ruined { visit, ruin, damaged, kept, lost_parts, found: Vec::new() })
    }

    /// The bytes in an index object's place, and their tag; nothing when none are there.
    async fn raw(&self, key: &str) -> Result<(Bytes, Option<ETag>)> {
        let got = match self.parts.store.get(key, Span::Whole { max: MAX_OBJECT }, None).await {
            Err(e) if e.kind() == Kind::TooLarge => self.parts.store.get(key, Span::Range(0..MAX_OBJECT), None).await,
            other => other,
        };
        match got {
            Ok(got) => Ok((got.bytes, Some(got.meta.etag))),
            Err(e) if e.kind() == Kind::NotFound => Ok((Bytes::new(), None)),
            Err(e) => Err(e.context("reading a damaged index")),
        }
    }

    /// Opens what nothing names, and sees where it belongs.
    async fn assign(&self, mut seen: Seen, mut ruined: Vec<Ruined>) -> Result<Outlook> {
        let Strays { orphans, young, .. } = &mut seen.strays;
        let files = orphans.iter().filter(|o| matches!(o.kind, Kindred::File(_))).map(|o| (o.key.clone(), o.etag.clone()));
        // What is young may be on its way to a directory that is there; one that is lost gets it in any case.
        let mut keys: Vec<(String, ETag)> = files.collect();
        let young: HashMap<String, Option<Time>> = std::mem::take(young)
            .into_iter()
            .filter(|y| !y.key.starts_with(".smpfs/") || y.key.starts_with(OBJECT_PREFIX))
            .map(|y| {
                keys.push((y.key.clone(), y.etag));
                (y.key, y.modified)
            })
            .collect();
        let mut waiting = Waiting::default();
        let (mut returning, mut homeless) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::<_, Vec<_>>::new());
        for lost in self.open_all(keys).await? {
            let id = lost.hints.dir_id;
            if seen.tree.files.contains(&print(&[&lost.file_id.0])) {
                continue;
            }
            // Which names led to an inode of the links directory no object tells: its file is homeless.
            let inode = id == self.parts.keys.links_dir().dir_id;
            let ruin = ruined.iter_mut().find(|r| r.visit.dir.dir_id == id);
            if let Some(r) = ruin.filter(|_| !inode) {
                r.found.push(lost);
            } else if let Some(modified) = young.get(&lost.key) {
                waiting = Waiting { files: waiting.files + 1, newest: waiting.newest.max(*modified) };
            } else if seen.tree.dirs.contains_key(&id) && !inode {
                returning.entry(id).or_default().push(lost);
            } else {
                homeless.entry(id).or_default().push(lost);
            }
        }
        Ok(Outlook { seen, ruined, returning, homeless, waiting })
    }

    /// Does what the outlook says. Each step is whole in itself: begun again after a stop, the rest is done.
    pub async fn recover(&self, outlook: Outlook) -> Result<Recovered> {
        let Outlook { mut seen, ruined, returning, homeless, .. } = outlook;
        let mut done = Recovered::default();
        for r in ruined {
            for (key, bytes) in &r.damaged {
                self.keep(r.visit.dir.dir_id, key.clone(), bytes.clone()).await?;
            }
            let entries: Vec<Entry> = r.found.iter().map(|l| entry_of(&self.parts, l)).collect();
            let mut all = with_free_names(&r.kept, &entries);
            all.sort_by(|a, b| a.name.cmp(&b.name));
            let dir = &r.visit.dir;
            self.io.rebuild(dir.dir_id, &dir.dir_key, &r.ruin, &all).await?;
            done.kept += r.kept.len() as u64;
            done.found += r.found.len() as u64;
            done.dirs.push(join(&r.visit.path, b""));
        }
        for (id, files) in returning {
            if let Some(node) = seen.tree.dirs.get(&id) {
                let (dir, path) = (node.visit.dir.clone(), node.visit.path.clone());
                done.linked.extend(self.link_back(&mut seen, &dir, &path, files).await?);
            }
        }
        done.homeless = self.shelter(&mut seen, homeless).await?;
        Ok(done)
    }

    /// Files whose directory is gone, in a folder for each such directory.
    async fn shelter(&self, seen: &mut Seen, homeless: BTreeMap<DirId, Vec<Lost>>) -> Result<Vec<Vec<u8>>> {
        let mut paths = Vec::new();
        let Some(root) = self.parts.roots.first().map(|r| r.dir.clone()).filter(|_| !homeless.is_empty()) else {
            return Ok(paths);
        };
        let top: DirRef = self.subdirectory(&root, LOST_FOUND).await?;
        for (id, files) in homeless {
            let name = id.hex();
            let dir = self.subdirectory(&top, name.as_bytes()).await?;
            let path = [b"/", LOST_FOUND, b"/", name.as_bytes()].concat();
            paths.extend(self.link_back(seen, &dir, &path, files).await?);
        }
        Ok(paths)
    }
}
