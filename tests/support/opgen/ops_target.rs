//! Runs generated operations on an [`Ops`], in the kernel's place.

use super::{GenPath, How, Op, Outcome, SLOTS, Target, open_flags, pattern};
use bytes::Bytes;
use smpfs::error::{Kind, Result, fail};
use smpfs::ops::*;
use std::collections::BTreeSet;

struct OpenFile {
    ino: Ino,
    fh: u64,
    readable: bool,
    writable: bool,
    append: bool,
}

/// Drives an [`Ops`] as the kernel would: walks paths by lookup, forgets what it looked up, checks access modes.
pub struct OpsTarget<'a> {
    ops: &'a dyn Ops,
    rt: tokio::runtime::Runtime,
    slots: [Option<OpenFile>; SLOTS],
    who: Caller,
}

fn to_outcome(result: Result<Outcome>) -> Outcome {
    result.unwrap_or_else(|e| Outcome::Errno(e.errno()))
}

impl<'a> OpsTarget<'a> {
    /// A driver with nothing open.
    pub fn new(ops: &'a dyn Ops) -> Self {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let who = Caller { uid: nix::unistd::getuid().as_raw(), gid: nix::unistd::getgid().as_raw(), pid: 0 };
        OpsTarget { ops, rt, slots: Default::default(), who }
    }

    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.rt.block_on(future)
    }

    fn find(&self, parent: Ino, name: &str) -> Result<Attr> {
        let found = self.wait(self.ops.lookup(self.who, parent, name.as_bytes()))?;
        Ok(found.attr)
    }

    /// The directory of `path`, held by one lookup count that [`OpsTarget::done`] gives back.
    fn parent(&self, path: &GenPath) -> Result<Ino> {
        let mut at = ROOT;
        for name in &path.0[..path.0.len() - 1] {
            let next = self.find(at, name);
            self.done(at);
            let next = next?;
            at = next.ino;
            match next.kind {
                FileType::Dir => {}
                FileType::Symlink => {
                    self.done(at);
                    return fail(Kind::NotFound, "a link to nowhere");
                }
                _ => {
                    self.done(at);
                    return fail(Kind::NotDir, "not a directory");
                }
            }
        }
        Ok(at)
    }

    fn done(&self, ino: Ino) {
        if ino != ROOT {
            self.ops.forget(ino, 1);
        }
    }

    fn with_parent<T>(&self, path: &GenPath, f: impl FnOnce(Ino, &[u8]) -> Result<T>) -> Result<T> {
        let parent = self.parent(path)?;
        let result = f(parent, path.0[path.0.len() - 1].as_bytes());
        self.done(parent);
        result
    }

    fn with_inode<T>(&self, path: &GenPath, f: impl FnOnce(Attr) -> Result<T>) -> Result<T> {
        self.with_parent(path, |parent, name| {
            let attr = self.wait(self.ops.lookup(self.who, parent, name))?.attr;
            let result = f(attr);
            self.done(attr.ino);
            result
        })
    }

    fn close(&mut self, slot: usize) -> Outcome {
        let Some(file) = self.slots[slot].take() else { return Outcome::NoHandle };
        let flushed = self.wait(self.ops.flush(self.who, file.ino, file.fh));
        let released = self.wait(self.ops.release(file.ino, file.fh));
        self.done(file.ino);
        to_outcome(flushed.and(released).map(|()| Outcome::Done))
    }

    /// Closes every slot.
    pub fn close_all(&mut self) {
        for slot in 0..SLOTS {
            self.close(slot);
        }
    }

    fn open_existing(&self, attr: Attr, flags: i32) -> Result<OpenFile> {
        match attr.kind {
            FileType::Dir => return fail(Kind::IsDir, "a directory"),
            FileType::Symlink => return fail(Kind::Invalid, "a link"),
            _ => {}
        }
        let kept = flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC);
        let opened = self.wait(self.ops.open(self.who, attr.ino, kept))?;
        if flags & libc::O_TRUNC != 0 {
            let set = SetAttr { size: Some(0), ..SetAttr::default() };
            if let Err(e) = self.wait(self.ops.setattr(self.who, attr.ino, Some(opened.fh), set)) {
                self.wait(self.ops.release(attr.ino, opened.fh))?;
                return Err(e);
            }
        }
        let access = flags & libc::O_ACCMODE;
        let (readable, writable) = (access != libc::O_WRONLY, access != libc::O_RDONLY);
        Ok(OpenFile { ino: attr.ino, fh: opened.fh, readable, writable, append: flags & libc::O_APPEND != 0 })
    }

    fn open(&mut self, slot: usize, path: &GenPath, flags: i32) -> Result<Outcome> {
        self.close(slot);
        let file = self.with_parent(path, |parent, name| {
            match self.wait(self.ops.lookup(self.who, parent, name)) {
                Ok(found) if flags & libc::O_EXCL != 0 => {
                    self.done(found.attr.ino);
                    fail(Kind::Exists, "the name exists")
                }
                // The kernel with O_CREAT says EISDIR before anything else; links are not followed (O_NOFOLLOW).
                Ok(found) => self.open_existing(found.attr, flags).inspect_err(|_| self.done(found.attr.ino)),
                Err(e) if e.kind() == Kind::NotFound && flags & libc::O_CREAT != 0 => {
                    let (found, opened) = self.wait(self.ops.create(self.who, parent, name, 0o644, flags))?;
                    let access = flags & libc::O_ACCMODE;
                    let (readable, writable) = (access != libc::O_WRONLY, access != libc::O_RDONLY);
                    let append = flags & libc::O_APPEND != 0;
                    Ok(OpenFile { ino: found.attr.ino, fh: opened.fh, readable, writable, append })
                }
                Err(e) => Err(e),
            }
        })?;
        self.slots[slot] = Some(file);
        Ok(Outcome::Done)
    }

    fn on_slot(&self, slot: usize, f: impl FnOnce(&OpenFile) -> Outcome) -> Outcome {
        self.slots[slot].as_ref().map_or(Outcome::NoHandle, f)
    }

    /// Reads as the kernel does: in requests of 128 KiB, until a short one.
    fn read(&self, file: &OpenFile, offset: u64, len: u32) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        while (out.len() as u32) < len {
            let want = (len - out.len() as u32).min(128 << 10);
            let at = offset + out.len() as u64;
            let bytes = self.wait(self.ops.read(self.who, file.ino, file.fh, at, want))?;
            out.extend_from_slice(&bytes);
            if (bytes.len() as u32) < want {
                break;
            }
        }
        Ok(out)
    }

    /// What the kernel refuses by itself is refused here: no bytes, and descriptors for reading only.
    fn allocate(&self, file: &OpenFile, offset: u64, len: u32, mode: i32) -> Result<Outcome> {
        match (len, file.writable) {
            (0, _) => fail(Kind::Invalid, "a range of no bytes"),
            (_, false) => fail(Kind::BadHandle, "not open for writing"),
            _ => self.wait(self.ops.fallocate(self.who, file.ino, file.fh, offset, u64::from(len), mode)).map(|()| Outcome::Done),
        }
    }

    /// As the kernel: rights, the end of the source and overlaps are checked before anything is asked.
    fn copy(&self, from: (&OpenFile, u64), to: (&OpenFile, u64), len: u32) -> Result<Outcome> {
        if !from.0.readable || !to.0.writable || to.0.append {
            return fail(Kind::BadHandle, "not open for this");
        }
        let mut done = 0;
        while done < len {
            let at = |(file, offset): (&OpenFile, u64)| CopyEnd { ino: file.ino, fh: file.fh, offset: offset + u64::from(done) };
            match self.wait(self.ops.copy_file_range(self.who, at(from), at(to), u64::from(len - done)))? {
                0 => break,
                n => done += n,
            }
        }
        Ok(Outcome::Count(done))
    }

    fn read_all(&self, path: &GenPath) -> Result<Outcome> {
        self.with_inode(path, |attr| {
            let file = self.open_existing(attr, libc::O_RDONLY)?;
            let bytes = self.read(&file, 0, u32::MAX >> 1);
            self.wait(self.ops.release(file.ino, file.fh))?;
            bytes.map(Outcome::Bytes)
        })
    }

    fn list(&self, attr: Attr) -> Result<Outcome> {
        let fh = self.wait(self.ops.opendir(self.who, attr.ino))?;
        let (mut names, mut offset) = (BTreeSet::new(), 0);
        // Small pieces with attributes, so that continuing and counting are exercised.
        loop {
            let part = self.wait(self.ops.readdir(self.who, attr.ino, fh, offset, 2, true))?;
            let Some(last) = part.last() else { break };
            offset = last.next;
            for e in part.into_iter().filter(|e| e.name != b"." && e.name != b"..") {
                self.done(e.attr.ino);
                assert!(names.insert(e.name), "a name was listed twice");
            }
        }
        self.wait(self.ops.releasedir(attr.ino, fh))?;
        Ok(Outcome::Names(names))
    }

    fn set(&self, path: &GenPath, set: SetAttr) -> Result<Outcome> {
        self.with_inode(path, |attr| {
            // What the kernel refuses before it asks.
            match attr.kind {
                FileType::Symlink => return fail(Kind::NotFound, "a link to nowhere"),
                FileType::Dir if set.size.is_some() => return fail(Kind::IsDir, "a directory"),
                _ => {}
            }
            self.wait(self.ops.setattr(self.who, attr.ino, None, set)).map(|_| Outcome::Done)
        })
    }

    fn rename(&self, from: &GenPath, to: &GenPath, how: How) -> Result<Outcome> {
        let flags = match how {
            How::Replace => 0,
            How::NoReplace => libc::RENAME_NOREPLACE,
            How::Exchange => libc::RENAME_EXCHANGE,
        };
        self.with_parent(from, |p, n| {
            self.with_parent(to, |q, m| self.wait(self.ops.rename(self.who, p, n, q, m, flags)).map(|()| Outcome::Done))
        })
    }

    fn link(&self, from: &GenPath, to: &GenPath) -> Result<Outcome> {
        self.with_inode(from, |attr| {
            self.with_parent(to, |parent, name| {
                // The kernel looks whether the new name is free before it looks at the old inode's type.
                if let Ok(found) = self.wait(self.ops.lookup(self.who, parent, name)) {
                    self.done(found.attr.ino);
                    return fail(Kind::Exists, "the name exists");
                }
                let found = self.wait(self.ops.link(self.who, attr.ino, parent, name))?;
                self.done(found.attr.ino);
                Ok(Outcome::Done)
            })
        })
    }

    fn made(&self, result: Result<Found>) -> Result<Outcome> {
        result.map(|found| {
            self.done(found.attr.ino);
            Outcome::Done
        })
    }

    fn apply_open(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Close { slot } => self.close(*slot),
            Op::Read { slot, offset, len } => self.on_slot(*slot, |f| match f.readable {
                true => to_outcome(self.read(f, *offset, *len).map(Outcome::Bytes)),
                false => Outcome::Errno(libc::EBADF),
            }),
            Op::Write { slot, offset, len, fill } => self.on_slot(*slot, |f| match f.writable {
                true if *len == 0 => Outcome::Count(0),
                true => {
                    let data = Bytes::from(pattern(*fill, *len));
                    to_outcome(self.wait(self.ops.write(self.who, f.ino, f.fh, *offset, data)).map(Outcome::Count))
                }
                false => Outcome::Errno(libc::EBADF),
            }),
            Op::Allocate { slot, offset, len, what } => {
                self.on_slot(*slot, |f| to_outcome(self.allocate(f, *offset, *len, what.mode())))
            }
            Op::Copy { from, offset_in, to, offset_out, len } => {
                self.on_slot(*from, |a| self.on_slot(*to, |b| to_outcome(self.copy((a, *offset_in), (b, *offset_out), *len))))
            }
            Op::TruncateOpen { slot, size } => self.on_slot(*slot, |f| match f.writable {
                true => {
                    let set = SetAttr { size: Some(*size), ..SetAttr::default() };
                    to_outcome(self.wait(self.ops.setattr(self.who, f.ino, Some(f.fh), set)).map(|_| Outcome::Done))
                }
                false => Outcome::Errno(libc::EINVAL),
            }),
            Op::Sync { slot } => self
                .on_slot(*slot, |f| to_outcome(self.wait(self.ops.fsync(self.who, f.ino, f.fh, false)).map(|()| Outcome::Done))),
            Op::StatOpen { slot } => {
                self.on_slot(*slot, |f| to_outcome(self.wait(self.ops.getattr(self.who, f.ino)).map(|a| attr_outcome(&a.attr))))
            }
            _ => {
                self.close_all();
                Outcome::Done
            }
        }
    }
}

fn attr_outcome(a: &Attr) -> Outcome {
    let sized = matches!(a.kind, FileType::File | FileType::Symlink);
    let counted = a.kind != FileType::Dir;
    Outcome::Attr { kind: a.kind, perm: a.perm, size: sized.then_some(a.size), nlink: counted.then_some(a.nlink) }
}

impl Target for OpsTarget<'_> {
    fn apply(&mut self, op: &Op) -> Outcome {
        let result = match op {
            Op::Open { slot, path, .. } => self.open(*slot, path, open_flags(op)),
            Op::ReadAll { path } => self.read_all(path),
            Op::Truncate { path, size } => self.set(path, SetAttr { size: Some(*size), ..SetAttr::default() }),
            Op::Mkdir { path, perm } => {
                self.with_parent(path, |p, n| self.made(self.wait(self.ops.mkdir(self.who, p, n, *perm))))
            }
            Op::Rmdir { path } => {
                self.with_parent(path, |p, n| self.wait(self.ops.rmdir(self.who, p, n)).map(|()| Outcome::Done))
            }
            Op::Unlink { path } => {
                self.with_parent(path, |p, n| self.wait(self.ops.unlink(self.who, p, n)).map(|()| Outcome::Done))
            }
            Op::Rename { from, to, how } => self.rename(from, to, *how),
            Op::Symlink { path, target } => {
                self.with_parent(path, |p, n| self.made(self.wait(self.ops.symlink(self.who, p, n, target.as_bytes()))))
            }
            Op::Readlink { path } => self.with_inode(path, |a| match a.kind {
                FileType::Symlink => self.wait(self.ops.readlink(self.who, a.ino)).map(Outcome::Bytes),
                _ => fail(Kind::Invalid, "not a link"),
            }),
            Op::Link { from, to } => self.link(from, to),
            Op::Chmod { path, perm } => self.set(path, SetAttr { perm: Some(*perm), ..SetAttr::default() }),
            Op::SetMtime { path, sec } => {
                let time = SetTime::To(smpfs::types::Time { sec: *sec, nsec: 0 });
                let set = SetAttr { mtime: Some(time), ..SetAttr::default() };
                self.set(path, set).and_then(|_| {
                    self.with_inode(path, |a| Ok(Outcome::Mtime(self.wait(self.ops.getattr(self.who, a.ino))?.attr.mtime.sec)))
                })
            }
            Op::Stat { path } => {
                self.with_inode(path, |a| self.wait(self.ops.getattr(self.who, a.ino)).map(|f| attr_outcome(&f.attr)))
            }
            Op::List { path } => self.with_inode(path, |a| match a.kind {
                FileType::Dir => self.list(a),
                FileType::Symlink => fail(Kind::NotFound, "a link to nowhere"),
                _ => fail(Kind::NotDir, "not a directory"),
            }),
            on_open => return self.apply_open(on_open),
        };
        to_outcome(result)
    }
}
