//! Changing a directory as a writer among others: read it, change it, swap it, and begin again when somebody was faster.

use super::strays::Lost;
use super::{Parts, Scrub};
use crate::crypto::secmem::SecretKey;
use crate::error::{Kind, Result, fail};
use crate::format::entry::{Attributes, Body, Entry, FileRef};
use crate::format::index::DirRef;
use crate::format::names::object_key;
use crate::types::{DirId, NAME_MAX};
use std::collections::HashSet;
use std::sync::Arc;

/// Lost races in a row before a directory is given up.
const RACES: usize = 16;

impl Scrub {
    /// Puts entries into a directory, each under a name that is free there: the one it has, or one made of it. Entries of a file
    /// that the directory has already are left out. Gives the names, in order.
    pub(super) async fn link(&self, dir: &DirRef, new: &[Entry]) -> Result<Vec<Vec<u8>>> {
        self.edit(dir, |there| {
            let all = with_free_names(there, new);
            let names = all[there.len()..].iter().map(|e| e.name.clone()).collect();
            (names, all)
        })
        .await
    }

    /// Replaces the entries of a directory by what `change` makes of them. It is called again after a lost race.
    pub(super) async fn edit<T>(&self, dir: &DirRef, change: impl Fn(&[Arc<Entry>]) -> (T, Vec<Arc<Entry>>)) -> Result<T> {
        for _ in 0..RACES {
            let (remote, there) = self.io.load(dir.dir_id, &dir.dir_key).await?;
            let (outcome, mut all) = change(&there);
            all.sort_by(|a, b| a.name.cmp(&b.name));
            let done = if remote.wants_split(all.len()) {
                self.io.split(dir.dir_id, &dir.dir_key, &remote, &all).await.map(drop)
            } else {
                self.write_changed(dir, &remote, &there, &all).await
            };
            match done {
                Err(e) if e.kind() == Kind::Stale => {}
                other => return other.map(|()| outcome),
            }
        }
        fail(Kind::Busy, "a directory is being changed all the time")
    }

    /// Writes the parts in which anything differs.
    async fn write_changed(
        &self,
        dir: &DirRef,
        remote: &crate::tree::io::Remote,
        there: &[Arc<Entry>],
        all: &[Arc<Entry>],
    ) -> Result<()> {
        for part in 0..remote.parts() {
            let of = |entries: &[Arc<Entry>]| -> Vec<Arc<Entry>> {
                let mut mine: Vec<_> =
                    entries.iter().filter(|e| remote.bits == 0 || remote.shard_of(&e.name) == part).cloned().collect();
                mine.sort_by(|a, b| a.name.cmp(&b.name));
                mine
            };
            let mine = of(all);
            if mine != of(there) {
                self.io.write_part(dir.dir_id, &dir.dir_key, remote, part, &mine).await?;
            }
        }
        Ok(())
    }

    /// A new, empty directory in `parent` under `name`, or the one that is there. What it holds is written first.
    pub(super) async fn subdirectory(&self, parent: &DirRef, name: &[u8]) -> Result<DirRef> {
        let there = self.entry_now(parent, name).await?;
        if let Some(Body::Dir { dir_id, dir_key }) = there.as_deref().map(|e| &e.body) {
            return Ok(DirRef { dir_id: *dir_id, dir_key: dir_key.clone() });
        }
        if there.is_some() {
            return fail(Kind::Exists, format!("{} is taken by something that is no directory", String::from_utf8_lossy(name)));
        }
        let env = &self.parts.env;
        let dir = DirRef { dir_id: DirId(env.random()), dir_key: SecretKey::from_fn(|k| env.rng.fill(k)) };
        self.io.create(dir.dir_id, &dir.dir_key, &[]).await?;
        let now = env.clock.now();
        let (uid, gid) = self.parts.options.owner;
        let attributes = Attributes { mode: 0o700, uid, gid, atime: now, mtime: now, ctime: now, btime: now };
        let body = Body::Dir { dir_id: dir.dir_id, dir_key: dir.dir_key.clone() };
        self.link(parent, &[Entry { name: name.to_vec(), attributes, body, xattrs: Vec::new(), refs: Vec::new() }]).await?;
        Ok(dir)
    }
}

/// Entries and new ones behind them, each under a name that is free: its own, or one made of it. New ones of a file that is there
/// already are left out.
pub(super) fn with_free_names(there: &[Arc<Entry>], new: &[Entry]) -> Vec<Arc<Entry>> {
    let has: HashSet<_> = there.iter().filter_map(|e| identity(e)).collect();
    let mut taken: HashSet<Vec<u8>> = there.iter().map(|e| e.name.clone()).collect();
    // Reserved in the root, and confusing elsewhere.
    taken.insert(b".smpfs".to_vec());
    let mut all = there.to_vec();
    for entry in new.iter().filter(|e| identity(e).is_none_or(|id| !has.contains(&id))) {
        let name = free_name(&taken, entry);
        taken.insert(name.clone());
        all.push(Arc::new(Entry { name, ..entry.clone() }));
    }
    all
}

/// What an entry stands for, where it stands for one thing in the world.
fn identity(e: &Entry) -> Option<[u8; 32]> {
    match &e.body {
        Body::File(f) => Some(f.file_id.0),
        _ => None,
    }
}

/// The entry's name where it is free, else one made of it and of what it stands for: the same each time.
fn free_name(taken: &HashSet<Vec<u8>>, entry: &Entry) -> Vec<u8> {
    if !taken.contains(&entry.name) {
        return entry.name.clone();
    }
    let id = identity(entry).map(|id| data_encoding::HEXLOWER.encode(&id[..4])).unwrap_or_default();
    for n in 0u32.. {
        let more = if n == 0 { String::new() } else { format!(" {n}") };
        let mark = format!("recovered ({id}{more}) ");
        let keep = entry.name.len().min(NAME_MAX - mark.len());
        let name = [mark.as_bytes(), &entry.name[..keep]].concat();
        if !taken.contains(&name) {
            return name;
        }
    }
    entry.name.clone()
}

/// The entry that a file asks for by its own hints.
pub(super) fn entry_of(parts: &Parts, lost: &Lost) -> Entry {
    let h = &lost.hints;
    let (uid, gid) = parts.options.owner;
    let name = match crate::format::entry::is_name(&h.name) {
        true => h.name.clone(),
        false => lost.file_id.hex().as_bytes()[..16].to_vec(),
    };
    let key = (lost.key != object_key(&lost.file_id)).then(|| lost.key.clone());
    let file = FileRef {
        file_id: lost.file_id,
        file_key: lost.file_key.clone(),
        generation: lost.generation,
        trailer_hash: lost.trailer_hash,
        size: lost.size,
        object_len: lost.object_len,
        key,
    };
    let attributes = Attributes { mode: h.mode, uid, gid, atime: h.mtime, mtime: h.mtime, ctime: h.ctime, btime: h.mtime };
    Entry { name, attributes, body: Body::File(file), xattrs: Vec::new(), refs: Vec::new() }
}
