//! What the filesystem holds in memory: inodes, directories, open files. One lock, never held across an await or any IO but the
//! journal's append.
//!
//! **Lock order**: `Fs::state` first, then a file's `live`, then the journal. A file's `io` lock is taken before `state`, never
//! while holding it.

use super::file::{File, Version};
use super::journal::Line;
use crate::crypto::secmem::SecretKey;
use crate::error::{Kind, Result, fail};
use crate::format::entry::{Body, Entry};
use crate::ops::{Attr, FileType, Ino, ROOT};
use crate::tree::delta::Delta;
use crate::tree::dir::{Dir, Guard, MoveToken};
use crate::tree::io::Remote;
use crate::types::{DirId, FileId, Time};
use crate::write::layer::Layer;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Instant;

/// The reserved name in the root directory under which the index keeps the root's own attributes.
pub const ROOT_SELF: &[u8] = b".smpfs";
/// Inode numbers with this bit belong to the control tree.
pub const CONTROL_BIT: u64 = 1 << 63;

/// Renames that are remembered.
pub const RENAMED: std::num::NonZeroUsize = std::num::NonZeroUsize::MIN.saturating_add(65_535);

/// Where an inode is: directory and name.
pub type Place = (DirId, Vec<u8>);

/// An inode that the kernel knows, or that is open.
pub struct Node {
    /// Where it is; `None` once unlinked (and for the root).
    pub place: Option<Place>,
    /// The last entry, for unlinked inodes.
    pub entry: Arc<Entry>,
    /// The kernel's lookup count.
    pub lookups: u64,
    /// Open handles.
    pub opens: u32,
    /// Another machine changed it since it was opened last.
    pub stale_pages: bool,
    /// Kept until the last handle goes: the object of an unlinked file, its spool.
    pub guards: Vec<Guard>,
    /// Unlinked with writes that no version holds and nobody had open: they are gone, and the version before is not the file.
    pub lost: bool,
}

/// A directory with its key and what the bucket holds of it.
pub struct DirCell {
    /// Names.
    pub dir: Dir,
    /// Its key.
    pub key: SecretKey,
    /// Its index objects in the bucket; `None` before loading, and for a directory that is not in the bucket yet.
    pub remote: Option<Remote>,
    /// Where its entry is; `None` for the root, and for one found by recovery only.
    pub place: Option<Place>,
    /// When the bucket was last asked.
    pub fetched: Option<Instant>,
    /// Its index is being written, or read again.
    pub busy: bool,
    /// Index writes that landed.
    pub writes: u64,
    /// Readings of the index that were merged.
    pub merges: u64,
    /// Somebody wanted to write it meanwhile.
    pub again: bool,
    /// Serialises loading.
    pub loading: Arc<tokio::sync::Mutex<()>>,
    /// Names changed since the parent's entry had its times set.
    pub times: Option<Time>,
    /// Inodes in memory that live here.
    pub nodes: usize,
    /// Failures in a row of writing its index.
    pub failures: u32,
    /// The last of them.
    pub error: Option<crate::error::Error>,
    /// Removed: nothing more is written.
    pub dead: bool,
    /// Removed here, and the bucket has it still: the last version of its index comes first. See `vanished.rs`.
    pub leaving: bool,
    /// Removed by another machine.
    pub vanished: bool,
}

impl DirCell {
    /// A cell around `dir`.
    pub fn new(dir: Dir, key: SecretKey, place: Option<Place>) -> DirCell {
        DirCell {
            dir,
            key,
            remote: None,
            place,
            fetched: None,
            busy: false,
            writes: 0,
            merges: 0,
            again: false,
            loading: Arc::default(),
            times: None,
            nodes: 0,
            failures: 0,
            error: None,
            dead: false,
            leaving: false,
            vanished: false,
        }
    }

    /// Whether it was removed, here or by another machine.
    pub fn is_removed(&self) -> bool {
        self.dead || self.leaving
    }

    /// Changes whenever the bucket's side of the directory is known anew: what was read from the bucket before is too old then.
    pub fn state(&self) -> (u64, u64) {
        (self.writes, self.merges)
    }
}

/// Everything behind `Fs::state`.
pub struct State {
    /// Inodes.
    pub nodes: HashMap<Ino, Node>,
    /// Inode of a place, for those in `nodes`.
    pub places: HashMap<Place, Ino>,
    /// Directories.
    pub dirs: HashMap<DirId, DirCell>,
    /// Files that are open or have unsent data.
    pub files: HashMap<FileId, Arc<File>>,
    /// Files that lost their name to another machine with contents that cannot be put together, while the name's new file is in use.
    pub stuck: Vec<Arc<File>>,
    /// Directories that another machine removed, and where what was made in them here is now.
    pub homes: lru::LruCache<DirId, DirId>,
    /// Directories whose index is not in the bucket yet.
    pub unborn: HashSet<DirId>,
    /// The root directory.
    pub root: DirId,
    /// The links directory.
    pub links: DirId,
    /// By inode of the links directory: names on their way to the bucket.
    pub coming: HashMap<Vec<u8>, Vec<Arc<MoveToken>>>,
    /// Where this machine renamed files to of late: another one may have renamed them too.
    pub renamed: lru::LruCache<FileId, Place>,
    /// Old names of files that this machine moves: see `moves.rs`.
    pub departing: HashMap<FileId, Vec<Place>>,
    /// Files whose objects this machine deleted of late.
    pub deleted: lru::LruCache<FileId, ()>,
    /// Versions of this machine that no index may name, because another one had taken the file's name away by then.
    pub unnamed: lru::LruCache<FileId, Version>,
    /// Layers that landed.
    pub landing: Landing,
    /// Last change number.
    pub seq: u64,
    /// Entries read from the bucket since they were last counted.
    pub grown: usize,
}

/// Layers whose versions are in the bucket while no index names them, by file. The file itself may have been forgotten by then,
/// and its logs have to hear of an unlink all the same.
#[derive(Default)]
pub struct Landing {
    layers: HashMap<FileId, Vec<Weak<Layer>>>,
    /// With so many files it is time to drop those whose layers are gone.
    full: usize,
}

impl Landing {
    /// The layer of a version is in the bucket.
    pub fn put(&mut self, file: FileId, layer: &Arc<Layer>) {
        if self.layers.len() > self.full {
            self.layers.retain(|_, layers| layers.iter().any(|l| l.strong_count() > 0));
            self.full = 2 * self.layers.len() + 64;
        }
        let layers = self.layers.entry(file).or_default();
        layers.retain(|l| l.strong_count() > 0);
        layers.push(Arc::downgrade(layer));
    }

    /// The layers of a file that no index tells of.
    pub fn of(&self, file: FileId) -> Vec<Arc<Layer>> {
        self.layers.get(&file).into_iter().flatten().filter_map(Weak::upgrade).collect()
    }
}

impl State {
    /// Files that may have something unsent.
    pub fn all_files(&self) -> impl Iterator<Item = &Arc<File>> {
        self.files.values().chain(&self.stuck)
    }

    /// Nothing but the ids of the root and of the links directory.
    pub fn new(root: DirId, links: DirId) -> State {
        State {
            nodes: HashMap::new(),
            places: HashMap::new(),
            dirs: HashMap::new(),
            files: HashMap::new(),
            stuck: Vec::new(),
            homes: lru::LruCache::new(RENAMED),
            unborn: HashSet::new(),
            root,
            links,
            coming: HashMap::new(),
            renamed: lru::LruCache::new(RENAMED),
            departing: HashMap::new(),
            deleted: lru::LruCache::new(RENAMED),
            unnamed: lru::LruCache::new(RENAMED),
            landing: Landing::default(),
            seq: 0,
            grown: 0,
        }
    }

    /// Nobody is busy with a removed directory any more: its cell goes, unless what was made in it has yet to find a new home.
    pub fn forget_dead(&mut self, dir: DirId) {
        if self.dirs.get(&dir).is_some_and(|c| !c.vanished) {
            self.dirs.remove(&dir);
        }
    }

    /// Where what was made in a directory is by now: see [`State::homes`].
    pub fn home(&self, mut dir: DirId) -> DirId {
        while let Some(next) = self.homes.peek(&dir) {
            dir = *next;
        }
        dir
    }

    /// The next change number.
    pub fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    /// What the journal is told of a name.
    pub fn line(&self, dir: DirId, cell: &DirCell, name: Vec<u8>, entry: Option<Arc<Entry>>, dead: Option<DirId>) -> Line {
        let entry_unborn =
            matches!(entry.as_deref().map(|e| &e.body), Some(Body::Dir { dir_id, .. }) if self.unborn.contains(dir_id));
        let (unborn, key, seen) = (self.unborn.contains(&dir), cell.key.clone(), cell.dir.seen(&name));
        Line { dir, key, unborn, name, entry, entry_unborn, dead, delta: Delta::default(), left: Vec::new(), seen }
    }

    /// The directory behind an inode.
    pub fn dir_of(&self, ino: Ino) -> Result<DirId> {
        if ino == ROOT {
            return Ok(self.root);
        }
        match self.entry(ino)?.body {
            Body::Dir { dir_id, .. } => Ok(dir_id),
            _ => fail(Kind::NotDir, "not a directory"),
        }
    }

    /// A directory that was loaded.
    pub fn loaded(&mut self, id: DirId) -> Result<&mut DirCell> {
        match self.dirs.get_mut(&id) {
            Some(c) if c.dir.is_loaded() => Ok(c),
            // It was evicted or lost in between: the caller loads it again and tries once more.
            _ => fail(Kind::Interrupted, "the directory has to be read again"),
        }
    }

    /// The entry of an inode.
    pub fn entry(&self, ino: Ino) -> Result<Arc<Entry>> {
        let node = self.nodes.get(&ino).ok_or_else(|| crate::error::Error::new(Kind::Stale, "unknown inode"))?;
        if let Some((dir, name)) = &node.place
            && let Some(e) = self.dirs.get(dir).and_then(|c| c.dir.get(name))
        {
            return Ok(e.clone());
        }
        Ok(node.entry.clone())
    }

    /// The inode number of the entry at a place: the one in use, else one derived from what it is.
    pub fn ino_at(&self, dir: DirId, entry: &Entry) -> Ino {
        let place = match entry.link() {
            Some(link) => (self.links, link.inode_name()),
            None => (dir, entry.name.clone()),
        };
        if let Some(&ino) = self.places.get(&place) {
            return ino;
        }
        let mut ino = derived_ino(&place, &entry.body);
        while self.nodes.contains_key(&ino) || ino <= ROOT {
            ino = (ino + 1) & !CONTROL_BIT;
        }
        ino
    }

    /// Makes sure that the inode of an entry is in memory, raises its lookup count by `lookups`, and gives its number.
    pub fn know(&mut self, dir: DirId, entry: &Arc<Entry>, lookups: u64) -> Ino {
        let ino = self.ino_at(dir, entry);
        if let Some(n) = self.nodes.get_mut(&ino) {
            n.lookups += lookups;
            return ino;
        }
        let place = (dir, entry.name.clone());
        let (opens, guards) = (0, Vec::new());
        let node =
            Node { place: Some(place.clone()), entry: entry.clone(), lookups, opens, stale_pages: false, guards, lost: false };
        self.nodes.insert(ino, node);
        self.places.insert(place, ino);
        if let Some(c) = self.dirs.get_mut(&dir) {
            c.nodes += 1;
        }
        ino
    }

    /// Forgets an inode that nobody refers to. Returns guards to drop outside the lock.
    pub fn release(&mut self, ino: Ino) -> Vec<Guard> {
        let Some(n) = self.nodes.get(&ino) else { return Vec::new() };
        if ino == ROOT || n.lookups > 0 || n.opens > 0 {
            return Vec::new();
        }
        let Some(node) = self.nodes.remove(&ino) else { return Vec::new() };
        if let Some(place) = node.place {
            if let Some(c) = self.dirs.get_mut(&place.0) {
                c.nodes = c.nodes.saturating_sub(1);
            }
            self.places.remove(&place);
        }
        node.guards
    }

    /// The inode at a place loses its name: it lives on while it is referred to.
    pub fn unplace(&mut self, dir: DirId, name: &[u8], last: &Arc<Entry>) -> Option<Ino> {
        let ino = self.places.remove(&(dir, name.to_vec()))?;
        if let Some(n) = self.nodes.get_mut(&ino) {
            n.place = None;
            n.entry = last.clone();
        }
        if let Some(c) = self.dirs.get_mut(&dir) {
            c.nodes = c.nodes.saturating_sub(1);
        }
        Some(ino)
    }

    /// The inode at `from` is now at `to`.
    pub fn replace(&mut self, from: &Place, to: &Place) {
        if let Some(ino) = self.places.remove(from) {
            self.put_at(ino, from, to);
        }
    }

    /// Notes that an inode, taken off its old place, is at a new one.
    fn put_at(&mut self, ino: Ino, from: &Place, to: &Place) {
        if let Some(c) = self.dirs.get_mut(&from.0) {
            c.nodes = c.nodes.saturating_sub(1);
        }
        if let Some(c) = self.dirs.get_mut(&to.0) {
            c.nodes += 1;
        }
        if let Some(n) = self.nodes.get_mut(&ino) {
            n.place = Some(to.clone());
        }
        self.places.insert(to.clone(), ino);
    }

    /// The inodes at two places change places.
    pub fn swap(&mut self, a: &Place, b: &Place) {
        let moves = [(a, b), (b, a)].map(|(from, to)| (self.places.remove(from), from, to));
        for (ino, from, to) in moves {
            if let Some(ino) = ino {
                self.put_at(ino, from, to);
            }
        }
    }

    /// What a name stands for: its own entry, or the inode that it is a link to. `None` when that is not known (yet).
    pub fn target(&self, dir: DirId, entry: &Arc<Entry>) -> Option<(DirId, Arc<Entry>)> {
        let Some(link) = entry.link() else { return Some((dir, entry.clone())) };
        let links = self.dirs.get(&self.links).filter(|c| c.dir.is_loaded())?;
        Some((self.links, links.dir.get(&link.inode_name())?.clone()))
    }

    /// Whether `dir` is `inside` or lies below it (as far as directories are known, and all on a path are).
    pub fn lies_below(&self, mut dir: DirId, inside: DirId) -> bool {
        for _ in 0..4096 {
            if dir == inside {
                return true;
            }
            match self.dirs.get(&dir).and_then(|c| c.place.as_ref()) {
                Some((parent, _)) => dir = *parent,
                None => return false,
            }
        }
        false
    }

    /// The path of a place from the root, if all of it is known.
    pub fn path(&self, place: &Place) -> Option<Vec<u8>> {
        let mut parts = vec![place.1.clone()];
        let mut dir = place.0;
        while dir != self.root {
            let (parent, name) = self.dirs.get(&dir)?.place.clone()?;
            parts.push(name);
            dir = parent;
            if parts.len() > 4096 {
                return None;
            }
        }
        parts.reverse();
        Some(parts.join(&b'/'))
    }
}

/// A number for an inode that nobody uses yet: from its id, so that it is the same in every mount.
pub fn derived_ino(place: &Place, body: &Body) -> Ino {
    let bytes: [u8; 8] = match body {
        Body::File(f) => first8(&f.file_id.0),
        Body::Dir { dir_id, .. } => first8(&dir_id.0),
        Body::Link(link) if file_type(body) == FileType::File => first8(&link.id.0),
        _ => first8(&crate::crypto::hash::sha256(&[&place.0.0, &place.1])),
    };
    (u64::from_be_bytes(bytes) & !CONTROL_BIT).max(ROOT + 1)
}

fn first8(b: &[u8]) -> [u8; 8] {
    let mut out = [0; 8];
    out.copy_from_slice(&b[..8]);
    out
}

/// The type of an entry.
pub fn file_type(body: &Body) -> FileType {
    match body {
        Body::File(_) => FileType::File,
        Body::Dir { .. } => FileType::Dir,
        Body::Symlink(_) => FileType::Symlink,
        Body::Fifo => FileType::Fifo,
        Body::Socket => FileType::Socket,
        Body::CharDevice { .. } => FileType::CharDev,
        Body::BlockDevice { .. } => FileType::BlockDev,
        Body::Link(link) => match link.kind {
            3 => FileType::Symlink,
            4 => FileType::Fifo,
            5 => FileType::Socket,
            6 => FileType::CharDev,
            7 => FileType::BlockDev,
            _ => FileType::File,
        },
    }
}

/// Attributes of an entry. `links` is 2 + subdirectories for a directory, when known.
pub fn attr_of(ino: Ino, e: &Entry, links: Option<u32>) -> Attr {
    let size = match &e.body {
        Body::File(f) => f.size,
        Body::Symlink(t) => t.len() as u64,
        Body::Dir { .. } => 4096,
        _ => 0,
    };
    // Holes take no room in the object; nothing else makes it shorter than the file.
    let stored = match &e.body {
        Body::File(f) if f.generation > 0 => size.min(f.object_len),
        _ => size,
    };
    let rdev = match e.body {
        Body::CharDevice { major, minor } | Body::BlockDevice { major, minor } => libc::makedev(major, minor),
        _ => 0,
    };
    let a = &e.attributes;
    Attr {
        ino,
        size,
        blocks: stored.div_ceil(512),
        atime: a.atime,
        mtime: a.mtime,
        ctime: a.ctime,
        btime: a.btime,
        kind: file_type(&e.body),
        perm: a.mode,
        nlink: match e.body {
            Body::Dir { .. } => links.unwrap_or(2),
            _ => e.refs.len().max(1) as u32,
        },
        uid: a.uid,
        gid: a.gid,
        rdev,
    }
}
