//! Every directory index from the roots on, and the moment at which all of them stood still.
//!
//! Indexes change while they are read: a directory that moves from one that was not read yet to one that was read already is seen
//! nowhere. So after the walk all index objects are listed; those with another version tag than the one that was read are read again,
//! and so on, until a listing shows the tags of every index that was read. Each of them was then the same from the time it was read
//! until it was listed: all of them together are what the volume was at the moment before the listing.

use super::Scrub;
use super::report::{Find, What, sentence};
use super::verify::FileAt;
use crate::crypto::hash::sha256;
use crate::error::{Error, Kind, Result};
use crate::format::Failure;
use crate::format::entry::{Body, Entry};
use crate::format::index::DirRef;
use crate::format::keys::VolumeKeys;
use crate::format::names::INDEX_PREFIX;
use crate::store::ETag;
use crate::tree::io::Remote;
use crate::types::DirId;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Directories read at once.
const AT_ONCE: usize = 8;
/// Listings until one finds nothing changed, before the volume counts as restless.
const ROUNDS: usize = 12;
/// Objects asked for in one listing.
pub(super) const PAGE: usize = 1000;

/// A directory that no entry names.
#[derive(Clone, Debug)]
pub struct Root {
    /// Id and key.
    pub dir: DirRef,
    /// What paths in it begin with, for people.
    pub path: Vec<u8>,
    /// It may be absent, as long as this machine has never seen it.
    pub optional: bool,
}

impl Root {
    /// Those of a volume: its root directory, and the links directory, where files with several names have their entries.
    pub fn all(root: DirRef, keys: &VolumeKeys) -> Vec<Root> {
        let links = Root { dir: keys.links_dir().clone(), path: b"(linked)".to_vec(), optional: true };
        vec![Root { dir: root, path: Vec::new(), optional: false }, links]
    }
}

/// Sixteen bytes that stand for a key or an id, where many are kept.
pub(super) type Print = [u8; 16];

pub(super) fn print(parts: &[&[u8]]) -> Print {
    let hash = sha256(parts);
    let mut print = [0; 16];
    print.copy_from_slice(&hash[..16]);
    print
}

/// A directory to be read.
#[derive(Clone)]
pub(super) struct Visit {
    pub dir: DirRef,
    pub path: Arc<[u8]>,
    pub optional: bool,
}

/// A directory that was read.
pub(super) struct Node {
    pub visit: Visit,
    /// Its index objects, and the versions that were read.
    pub parts: Vec<(String, ETag)>,
    /// Subdirectories that it names.
    pub children: Vec<DirId>,
    pub frozen: bool,
}

/// A directory whose index cannot be read.
pub(super) struct Broken {
    pub visit: Visit,
    pub error: Error,
}

/// All that indexes say.
#[derive(Default)]
pub(super) struct Tree {
    pub dirs: HashMap<DirId, Node>,
    pub broken: BTreeMap<DirId, Broken>,
    /// Object keys that any version of any index named while we looked.
    pub named: HashSet<Print>,
    /// The same for file ids.
    pub files: HashSet<Print>,
    /// Versions of files that were handed on to be verified.
    handed: HashSet<Print>,
}

impl Tree {
    /// Whether an index names the object, or it is an index in use.
    pub fn names(&self, key: &str) -> bool {
        self.named.contains(&print(&[key.as_bytes()]))
    }

    pub fn path_of(&self, dir: &DirId) -> Option<&[u8]> {
        self.dirs.get(dir).map(|n| &n.visit.path[..])
    }

    /// Forgets directories that no path from a root leads to any more.
    fn prune(&mut self, roots: &[Root]) {
        let mut todo: Vec<DirId> = roots.iter().map(|r| r.dir.dir_id).collect();
        let mut reached: HashSet<DirId> = HashSet::new();
        while let Some(id) = todo.pop() {
            if reached.insert(id)
                && let Some(node) = self.dirs.get(&id)
            {
                todo.extend(&node.children);
            }
        }
        self.dirs.retain(|id, _| reached.contains(id));
        self.broken.retain(|id, _| reached.contains(id));
    }
}

pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    [dir, b"/", name].concat()
}

/// Subdirectories that entries name. (The root's attributes lie in an entry of the root that names itself.)
pub(super) fn children_of(visit: &Visit, entries: &[Arc<Entry>]) -> Vec<DirId> {
    let child = |e: &Arc<Entry>| match &e.body {
        Body::Dir { dir_id, .. } if *dir_id != visit.dir.dir_id => Some(*dir_id),
        _ => None,
    };
    entries.iter().filter_map(child).collect()
}

impl Scrub {
    pub(super) fn roots(&self) -> Vec<Visit> {
        let visit = |r: &Root| Visit { dir: r.dir.clone(), path: r.path.clone().into(), optional: r.optional };
        self.parts.roots.iter().map(visit).collect()
    }

    /// Reads directories and all that they lead to, as far as it is not known; tells of the files in them.
    pub(super) async fn walk(&self, tree: &mut Tree, mut todo: Vec<Visit>, out: Option<&mpsc::Sender<FileAt>>) -> Result<()> {
        let mut running = FuturesUnordered::new();
        let mut asked: HashSet<DirId> = todo.iter().map(|v| v.dir.dir_id).collect();
        loop {
            while running.len() < AT_ONCE
                && let Some(visit) = todo.pop()
            {
                running.push(async move {
                    let loaded = self.io.load(visit.dir.dir_id, &visit.dir.dir_key).await;
                    (visit, loaded)
                });
            }
            let Some((visit, loaded)) = running.next().await else { return Ok(()) };
            match loaded {
                Ok((remote, entries)) => {
                    let further = self.enter(tree, visit, &remote, &entries, out).await;
                    todo.extend(further.into_iter().filter(|v| asked.insert(v.dir.dir_id)));
                }
                Err(e) if e.kind() == Kind::Corrupt => {
                    tree.dirs.remove(&visit.dir.dir_id);
                    if !(visit.optional && self.is_absent(&visit, &e)) {
                        tree.broken.insert(visit.dir.dir_id, Broken { visit, error: e });
                    }
                }
                Err(e) if e.kind() == Kind::Stale => {
                    tree.dirs.remove(&visit.dir.dir_id);
                    tree.broken.insert(visit.dir.dir_id, Broken { visit, error: e });
                }
                Err(e) => return Err(e.context("reading a directory index")),
            }
        }
    }

    /// Whether a directory that need not exist does not, for all that this machine knows.
    fn is_absent(&self, visit: &Visit, e: &Error) -> bool {
        let key = self.parts.keys.index_key(&visit.dir.dir_id, crate::format::names::Place::HEAD);
        Failure::of(e) == Some(Failure::Omission) && !self.parts.memory.seen(&key)
    }

    /// Takes in what a directory holds; gives the subdirectories that are not known yet.
    pub(super) async fn enter(
        &self,
        tree: &mut Tree,
        visit: Visit,
        remote: &Remote,
        entries: &[Arc<Entry>],
        out: Option<&mpsc::Sender<FileAt>>,
    ) -> Vec<Visit> {
        let versions = std::iter::once(&remote.head).chain(&remote.shards);
        let keys = self.io.keys_of(visit.dir.dir_id, remote);
        let parts: Vec<(String, ETag)> = keys.into_iter().zip(versions.map(|v| v.etag.clone())).collect();
        let further = self.absorb(tree, &visit, &parts, entries, out).await;
        let (frozen, children) = (!remote.frozen.is_empty(), children_of(&visit, entries));
        tree.dirs.insert(visit.dir.dir_id, Node { visit, parts, children, frozen });
        further
    }

    /// Notes what index objects and entries of a directory name; gives the subdirectories that are not known yet.
    pub(super) async fn absorb(
        &self,
        tree: &mut Tree,
        visit: &Visit,
        parts: &[(String, ETag)],
        entries: &[Arc<Entry>],
        out: Option<&mpsc::Sender<FileAt>>,
    ) -> Vec<Visit> {
        let id = visit.dir.dir_id;
        if !tree.dirs.contains_key(&id) {
            self.tally.dir(parts.len() as u64, entries.len() as u64);
        }
        tree.named.extend(parts.iter().map(|(key, _)| print(&[key.as_bytes()])));
        let mut further = Vec::new();
        for entry in entries {
            match &entry.body {
                Body::File(f) => {
                    tree.named.insert(print(&[f.object_key().as_bytes()]));
                    tree.files.insert(print(&[&f.file_id.0]));
                    if let Some(out) = out
                        && tree.handed.insert(print(&[&f.file_id.0, &f.trailer_hash.0]))
                    {
                        self.tally.seen(f.size);
                        let at = FileAt { dir: visit.dir.clone(), path: visit.path.clone(), entry: entry.clone() };
                        // Who listens ends only after the walk.
                        let _ = out.send(at).await;
                    }
                }
                Body::Dir { dir_id, .. } if *dir_id == id => {}
                Body::Dir { dir_id, dir_key } => {
                    let path: Arc<[u8]> = join(&visit.path, &entry.name).into();
                    if let Some(node) = tree.dirs.get_mut(dir_id) {
                        node.visit.path = path;
                    } else {
                        let dir = DirRef { dir_id: *dir_id, dir_key: dir_key.clone() };
                        further.push(Visit { dir, path, optional: false });
                    }
                }
                _ => {}
            }
        }
        tree.broken.remove(&id);
        further
    }

    /// Reads again what changed since it was read, until nothing did. `false` when the volume does not stand still.
    pub(super) async fn settle(&self, tree: &mut Tree, out: Option<&mpsc::Sender<FileAt>>) -> Result<bool> {
        for _ in 0..ROUNDS {
            let suspects: Vec<Visit> = tree.broken.values().map(|b| b.visit.clone()).collect();
            let there = self.index_tags().await?;
            let differs = |n: &&Node| n.parts.iter().any(|(key, tag)| there.get(key) != Some(tag));
            let changed: Vec<Visit> = tree.dirs.values().filter(differs).map(|n| n.visit.clone()).collect();
            let still = changed.is_empty();
            if still && suspects.is_empty() {
                return Ok(true);
            }
            let before = suspects.len();
            let readable = tree.dirs.len();
            self.walk(tree, suspects.into_iter().chain(changed).collect(), out).await?;
            tree.prune(&self.parts.roots);
            if still && tree.broken.len() == before && tree.dirs.len() == readable {
                // What cannot be read could not be read twice, and all that leads there is as it was.
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn index_tags(&self) -> Result<HashMap<String, ETag>> {
        let (mut tags, mut after) = (HashMap::new(), None);
        loop {
            let page = self.parts.store.list(INDEX_PREFIX, after.as_deref(), PAGE).await?;
            tags.extend(page.items.into_iter().map(|i| (i.key, i.meta.etag)));
            after = page.next;
            if after.is_none() {
                return Ok(tags);
            }
        }
    }

    /// Reports directories that cannot be read, and splits that were given up.
    pub(super) fn tell_broken(&self, tree: &Tree) {
        for (id, b) in &tree.broken {
            self.parts.listener.index_corrupt(*id, &b.error);
            let key = self.parts.keys.index_key(id, crate::format::names::Place::HEAD);
            self.tally.find(Find::new(What::Index, key, sentence(&b.error)).at(&join(&b.visit.path, b"")));
        }
        for node in tree.dirs.values().filter(|n| n.frozen) {
            let key = node.parts.first().map(|(key, _)| key.clone()).unwrap_or_default();
            let detail = "a split of this directory was begun and not ended; the next write to it ends it";
            self.tally.find(Find::new(What::Frozen, key, detail).at(&join(&node.visit.path, b"")));
        }
    }
}
