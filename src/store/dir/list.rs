//! Listings of a directory store, in the byte order of keys.

use super::super::*;
use super::key::{self, Decoded};
use super::place::{Place, err, meta, modified};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// An entry of a directory: for an object the last component of its key, for a directory the component and a slash. Sorted
/// by it, a walk meets whole keys in byte order.
struct Entry {
    name: String,
    dir: bool,
    path: PathBuf,
}

/// A walk that fills a page.
struct Walk<'a> {
    place: &'a Place,
    prefix: &'a str,
    after: Option<&'a str>,
    limit: usize,
    items: Vec<Listed>,
}

impl Place {
    pub(super) fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page> {
        let limit = limit.max(1);
        let mut walk = Walk { place: self, prefix, after, limit: limit.saturating_add(1), items: Vec::new() };
        walk.dir(&self.root, "")?;
        let mut items = walk.items;
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(|l| l.key.clone());
        Ok(Page { items, next })
    }
}

impl Walk<'_> {
    /// Whether keys that begin with `start` may be wanted.
    fn wanted(&self, start: &str) -> bool {
        let n = start.len().min(self.prefix.len());
        let inside = start.as_bytes()[..n] == self.prefix.as_bytes()[..n];
        // Everything below `start` comes before `after` when `start` does and is no prefix of it.
        inside && self.after.is_none_or(|a| a.starts_with(start) || start > a)
    }

    /// Lists a directory whose keys begin with `start`. False when the page is full.
    fn dir(&mut self, path: &Path, start: &str) -> Result<bool> {
        let mut entries = Vec::new();
        self.entries(path, "", &mut entries)?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        for e in entries {
            let key = format!("{start}{}", e.name);
            let more = match e.dir {
                true if self.wanted(&key) => self.dir(&e.path, &key)?,
                true => true,
                false => self.file(key, &e.path)?,
            };
            if !more {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn file(&mut self, key: String, path: &Path) -> Result<bool> {
        if !key.starts_with(self.prefix) || self.after.is_some_and(|a| key.as_str() <= a) {
            return Ok(true);
        }
        match fs::symlink_metadata(path) {
            Ok(stat) if stat.is_file() => {
                self.items.push(Listed { key, meta: meta(&stat), modified: Some(modified(&stat)) });
            }
            Ok(_) => {}
            // Deleted since the directory was read.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(err("reading an object's attributes", e)),
        }
        Ok(self.items.len() < self.limit)
    }

    /// Reads a directory; pieces of long components are followed here, so that they sort with their neighbours.
    fn entries(&self, path: &Path, piece: &str, out: &mut Vec<Entry>) -> Result<()> {
        let listing = match fs::read_dir(path) {
            Ok(l) => l,
            // Removed with its last object while we walked. (The root's absence is found by the caller.)
            Err(e) if e.kind() == io::ErrorKind::NotFound && path != self.place.root => return Ok(()),
            Err(e) => return Err(err("listing a directory", e)),
        };
        for entry in listing {
            let entry = entry.map_err(|e| err("listing a directory", e))?;
            let kind = match entry.file_type() {
                Ok(kind) => kind,
                // Deleted since, on a filesystem whose directories do not tell types.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(err("listing a directory", e)),
            };
            match key::decode(&entry.file_name()) {
                Decoded::Component(name) if kind.is_dir() => {
                    out.push(Entry { name: format!("{piece}{name}/"), dir: true, path: entry.path() });
                }
                Decoded::Component(name) if kind.is_file() => {
                    out.push(Entry { name: format!("{piece}{name}"), dir: false, path: entry.path() });
                }
                Decoded::Piece(name) if kind.is_dir() => self.entries(&entry.path(), &format!("{piece}{name}"), out)?,
                _ => {}
            }
        }
        Ok(())
    }
}
