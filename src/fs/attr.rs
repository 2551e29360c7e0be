//! Attributes: getattr, setattr, extended attributes, links' targets.

use super::Fs;
use super::file::File;
use super::state::{ROOT_SELF, State, file_type};
use crate::error::{Error, Kind, Result, fail};
use crate::format::entry::{Attributes, Body, Entry, XATTR_VALUE_MAX};
use crate::ops::{FileType, Found, Ino, ROOT, SetAttr, SetTime};
use crate::tree::dir::Change;
use crate::types::Time;
use std::sync::Arc;

impl Fs {
    /// The attributes of an inode; its directory is loaded already, or the inode would not be known.
    pub(super) fn do_getattr(&self, ino: Ino) -> Result<Found> {
        self.own(ino)?;
        let st = self.state.lock();
        self.found(&st, ino)
    }

    /// Puts a changed entry in the place of an inode's. An unlinked inode keeps it to itself.
    pub(super) fn set_entry(&self, st: &mut State, ino: Ino, entry: Entry) -> Result<()> {
        let entry = Arc::new(entry);
        let place = match ino {
            ROOT => Some((st.root, ROOT_SELF.to_vec())),
            _ => st.nodes.get(&ino).and_then(|n| n.place.clone()),
        };
        match place {
            Some((dir, name)) => {
                let change = Change { entry: Some(entry), ..Change::default() };
                drop(self.apply(st, vec![(dir, name, change)])?);
            }
            None => {
                if let Some(n) = st.nodes.get_mut(&ino) {
                    n.entry = entry;
                }
            }
        }
        Ok(())
    }

    pub(super) async fn do_setattr(&self, ino: Ino, set: SetAttr) -> Result<Found> {
        self.own(ino)?;
        self.writable()?;
        if ino == ROOT {
            self.dir(ROOT).await?;
        }
        if let Some(size) = set.size {
            self.truncate(ino, size).await?;
        }
        let mtime = set.mtime.or(set.size.map(|_| SetTime::Now));
        let rest = SetAttr { size: None, mtime, ..set };
        if rest.perm.is_none() && rest.uid.is_none() && rest.gid.is_none() && rest.atime.is_none() && rest.mtime.is_none() {
            return self.do_getattr(ino);
        }
        let now = self.env.clock.now();
        let at = |t: SetTime| match t {
            SetTime::Now => now,
            SetTime::To(t) => t,
        };
        let mut st = self.state.lock();
        let mut e = Entry::clone(&*self.entry_of(&st, ino)?);
        let a = &mut e.attributes;
        a.mode = rest.perm.map_or(a.mode, |p| p & 0o7777);
        a.uid = rest.uid.unwrap_or(a.uid);
        a.gid = rest.gid.unwrap_or(a.gid);
        a.atime = rest.atime.map_or(a.atime, at);
        a.ctime = now;
        let live = self.live_of(&st, &e);
        let written = live.as_ref().and_then(|f| f.live.lock().times);
        if let Some(t) = rest.mtime.map(at).or(written) {
            e.attributes.mtime = t;
        }
        if let Body::Dir { dir_id, .. } = &e.body
            && let Some(cell) = st.dirs.get_mut(dir_id)
            && let Some(t) = cell.times.take()
            && rest.mtime.is_none()
        {
            e.attributes.mtime = t.max(e.attributes.mtime);
        }
        self.set_entry(&mut st, ino, e)?;
        // From here on the entry knows better than the last write.
        if let Some(file) = live {
            file.live.lock().times = None;
        }
        self.found(&st, ino)
    }

    /// The file in use behind an entry, if there is one.
    pub(super) fn live_of(&self, st: &State, e: &Entry) -> Option<Arc<File>> {
        match &e.body {
            Body::File(f) => st.files.get(&f.file_id).cloned(),
            _ => None,
        }
    }

    pub(super) fn do_readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        self.own(ino)?;
        let st = self.state.lock();
        match &self.entry_of(&st, ino)?.body {
            Body::Symlink(t) => Ok(t.clone()),
            _ => fail(Kind::Invalid, "not a symbolic link"),
        }
    }

    pub(super) fn do_getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        self.own(ino)?;
        let st = self.state.lock();
        let e = self.entry_of(&st, ino)?;
        let found = e.xattrs.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        found.ok_or_else(|| Error::new(Kind::NoAttr, "no such attribute"))
    }

    pub(super) fn do_listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        self.own(ino)?;
        let st = self.state.lock();
        Ok(self.entry_of(&st, ino)?.xattrs.iter().map(|(n, _)| n.clone()).collect())
    }

    /// `value` of `None` removes.
    pub(super) async fn do_setxattr(&self, ino: Ino, name: &[u8], value: Option<&[u8]>, flags: i32) -> Result<()> {
        self.own(ino)?;
        self.writable()?;
        if ino == ROOT {
            self.dir(ROOT).await?;
        }
        if value.is_some_and(|v| v.len() > XATTR_VALUE_MAX) {
            return fail(Kind::Range, "an attribute's value holds up to 64 KiB");
        }
        let mut st = self.state.lock();
        let mut e = Entry::clone(&*self.entry_of(&st, ino)?);
        check_namespace(name, file_type(&e.body))?;
        let at = e.xattrs.binary_search_by(|(n, _)| n.as_slice().cmp(name));
        match (at, value) {
            (Ok(_), Some(_)) if flags & libc::XATTR_CREATE != 0 => return fail(Kind::Exists, "the attribute exists"),
            (Err(_), Some(_)) if flags & libc::XATTR_REPLACE != 0 => return fail(Kind::NoAttr, "no such attribute"),
            (Ok(i), Some(v)) => e.xattrs[i].1 = v.to_vec(),
            (Err(i), Some(v)) => e.xattrs.insert(i, (name.to_vec(), v.to_vec())),
            (Ok(i), None) => {
                e.xattrs.remove(i);
            }
            (Err(_), None) => return fail(Kind::NoAttr, "no such attribute"),
        }
        if e.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>() > XATTR_VALUE_MAX {
            return fail(Kind::NoSpace, "the attributes of one file hold up to 64 KiB");
        }
        e.attributes.ctime = self.env.clock.now();
        self.set_entry(&mut st, ino, e)
    }
}

/// Which attributes are kept: `user.` of files and directories, `trusted.` and `security.` of everything. POSIX ACLs are not.
fn check_namespace(name: &[u8], kind: FileType) -> Result<()> {
    let known = name.starts_with(b"trusted.") || name.starts_with(b"security.");
    match name {
        b"user." | b"trusted." | b"security." => fail(Kind::Invalid, "the name of an attribute ends with its kind"),
        _ if known => Ok(()),
        n if n.starts_with(b"user.") && matches!(kind, FileType::File | FileType::Dir) => Ok(()),
        n if n.starts_with(b"user.") => fail(Kind::NotPermitted, "only files and directories have user attributes"),
        _ => fail(Kind::Unsupported, "attributes of this kind are not kept"),
    }
}

/// Entry attributes with the times of the last write put in, where those are newer.
pub(super) fn with_times(mut a: Attributes, times: Option<Time>) -> Attributes {
    if let Some(t) = times {
        a.mtime = t;
        a.ctime = t.max(a.ctime);
    }
    a
}
