//! Sequences of filesystem operations over a small namespace, and drivers that run them on an [`Ops`] or on a real directory and
//! make what they saw comparable: bytes, names, errnos, attributes without times and inode numbers.
//!
//! The namespace is small on purpose: three names, three levels, two handles, so that operations meet. Symbolic links point
//! nowhere, because following them is the kernel's work and an `Ops` never does it.

use bytes::Bytes;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use proptest::prelude::*;
use smpfs::error::{Kind, Result, fail};
use smpfs::ops::*;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Handles a sequence can hold open.
const SLOTS: usize = 2;
/// A sequence writes and truncates below this offset.
const FILE_SPAN: u64 = 300_000;

/// A path in the generated namespace: one or two names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenPath(pub Vec<&'static str>);

/// One operation.
#[derive(Clone, Debug)]
pub enum Op {
    /// open(2) into a slot; what was in the slot is closed first.
    Open { slot: usize, path: GenPath, create: bool, excl: bool, trunc: bool, append: bool, access: Access },
    /// close(2): flush and release.
    Close { slot: usize },
    /// pread(2).
    Read { slot: usize, offset: u64, len: u32 },
    /// pwrite(2), or an append where the slot was opened so. `fill` makes the bytes.
    Write { slot: usize, offset: u64, len: u32, fill: u8 },
    /// ftruncate(2).
    TruncateOpen { slot: usize, size: u64 },
    /// fsync(2).
    Sync { slot: usize },
    /// fstat(2).
    StatOpen { slot: usize },
    /// Opens, reads the whole file, closes.
    ReadAll { path: GenPath },
    /// truncate(2).
    Truncate { path: GenPath, size: u64 },
    /// mkdir(2).
    Mkdir { path: GenPath, perm: u16 },
    /// rmdir(2).
    Rmdir { path: GenPath },
    /// unlink(2).
    Unlink { path: GenPath },
    /// renameat2(2).
    Rename { from: GenPath, to: GenPath, how: How },
    /// symlink(2) to somewhere that does not exist.
    Symlink { path: GenPath, target: &'static str },
    /// readlink(2).
    Readlink { path: GenPath },
    /// link(2).
    Link { from: GenPath, to: GenPath },
    /// chmod(2).
    Chmod { path: GenPath, perm: u16 },
    /// utimensat(2) of the modification time, in seconds.
    SetMtime { path: GenPath, sec: i64 },
    /// lstat(2).
    Stat { path: GenPath },
    /// The names in a directory.
    List { path: GenPath },
    /// Everything is closed and opened nowhere: a remount for drivers that can.
    Reopen,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Both,
}

/// How a name is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Replace,
    NoReplace,
    Exchange,
}

/// What an operation showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing but that it worked.
    Done,
    /// Bytes read.
    Bytes(Vec<u8>),
    /// Bytes written.
    Count(u32),
    /// Attributes that every implementation must agree on; sizes of files and links only, link counts of files only.
    Attr { kind: FileType, perm: u16, size: Option<u64>, nlink: Option<u32> },
    /// A modification time in seconds.
    Mtime(i64),
    /// Names without `.` and `..`.
    Names(BTreeSet<Vec<u8>>),
    /// It failed so.
    Errno(i32),
    /// The slot was empty.
    NoHandle,
}

/// Sequences of up to `max` operations. Most begin with a directory and two open files, so that the rest meets something.
pub fn ops(max: usize) -> impl Strategy<Value = Vec<Op>> {
    let begin = prop_oneof![4 => Just(beginning()), 1 => Just(Vec::new())];
    (begin, prop::collection::vec(op(), 1..max)).prop_map(|(mut all, rest)| {
        all.extend(rest);
        all
    })
}

fn beginning() -> Vec<Op> {
    let open = |slot, path| Op::Open {
        slot,
        path: GenPath(path),
        create: true,
        excl: false,
        trunc: false,
        append: false,
        access: Access::Both,
    };
    vec![Op::Mkdir { path: GenPath(vec!["a"]), perm: 0o755 }, open(0, vec!["b"]), open(1, vec!["a", "c"])]
}

fn path() -> impl Strategy<Value = GenPath> {
    let name = || prop::sample::select(vec!["a", "b", "c"]);
    prop_oneof![
        6 => name().prop_map(|n| GenPath(vec![n])),
        4 => name().prop_map(|n| GenPath(vec!["a", n])),
        1 => (name(), name()).prop_map(|(d, n)| GenPath(vec![d, n])),
        1 => (name(), name(), name()).prop_map(|(d, e, n)| GenPath(vec![d, e, n])),
    ]
}

fn slot() -> impl Strategy<Value = usize> {
    0..SLOTS
}

fn offset() -> impl Strategy<Value = u64> {
    // Edges of chunks are where mistakes live.
    prop_oneof![Just(0u64), 0..64u64, Just(65_535u64), Just(65_536), Just(65_537), Just(131_072), 0..FILE_SPAN]
}

fn len() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0u32), 1..64u32, Just(65_536u32), 1..140_000u32]
}

fn open() -> impl Strategy<Value = Op> {
    let access = prop::sample::select(vec![Access::Read, Access::Write, Access::Both, Access::Both]);
    // Out of eight: how often each flag is set.
    (slot(), path(), (0..8u8, 0..8u8, 0..8u8, 0..8u8), access).prop_map(|(slot, path, (create, excl, trunc, append), access)| {
        let create = create < 6;
        // A truncation without the right to write is undefined.
        let trunc = trunc < 2 && access != Access::Read;
        Op::Open { slot, path, create, excl: create && excl < 1, trunc, append: append < 2, access }
    })
}

fn op() -> impl Strategy<Value = Op> {
    let perm = || prop::sample::select(vec![0o644u16, 0o600, 0o755, 0o444, 0o4711]);
    let how = prop::sample::select(vec![How::Replace, How::Replace, How::NoReplace, How::Exchange]);
    let target = prop::sample::select(vec!["nowhere", "no/where", "\u{e9}"]);
    prop_oneof![
        8 => open(),
        1 => slot().prop_map(|slot| Op::Close { slot }),
        6 => (slot(), offset(), len()).prop_map(|(slot, offset, len)| Op::Read { slot, offset, len }),
        8 => (slot(), offset(), len(), any::<u8>()).prop_map(|(slot, offset, len, fill)| Op::Write { slot, offset, len, fill }),
        2 => (slot(), offset()).prop_map(|(slot, size)| Op::TruncateOpen { slot, size }),
        1 => slot().prop_map(|slot| Op::Sync { slot }),
        1 => slot().prop_map(|slot| Op::StatOpen { slot }),
        3 => path().prop_map(|path| Op::ReadAll { path }),
        1 => (path(), offset()).prop_map(|(path, size)| Op::Truncate { path, size }),
        4 => (path(), perm()).prop_map(|(path, perm)| Op::Mkdir { path, perm: perm & 0o777 | 0o700 }),
        2 => path().prop_map(|path| Op::Rmdir { path }),
        2 => path().prop_map(|path| Op::Unlink { path }),
        4 => (path(), path(), how).prop_map(|(from, to, how)| Op::Rename { from, to, how }),
        1 => (path(), target).prop_map(|(path, target)| Op::Symlink { path, target }),
        1 => path().prop_map(|path| Op::Readlink { path }),
        1 => (path(), path()).prop_map(|(from, to)| Op::Link { from, to }),
        1 => (path(), perm()).prop_map(|(path, perm)| Op::Chmod { path, perm }),
        1 => (path(), -1000..2_000_000_000i64).prop_map(|(path, sec)| Op::SetMtime { path, sec }),
        2 => path().prop_map(|path| Op::Stat { path }),
        2 => path().prop_map(|path| Op::List { path }),
        1 => Just(Op::Reopen),
    ]
}

/// The bytes a write with `fill` writes: they depend on the place, so that a shift shows.
fn pattern(fill: u8, len: u32) -> Vec<u8> {
    (0..len).map(|i| fill.wrapping_add((i % 251) as u8)).collect()
}

/// Something a sequence can run on.
pub trait Target {
    /// Runs one operation.
    fn apply(&mut self, op: &Op) -> Outcome;
}

/// Runs a sequence on any [`Ops`] and closes what is left open.
pub fn run(ops: &dyn Ops, sequence: &[Op]) -> Vec<Outcome> {
    let mut target = OpsTarget::new(ops);
    let outcomes = sequence.iter().map(|op| target.apply(op)).collect();
    target.close_all();
    outcomes
}

/// Runs a sequence in a directory of the machine.
pub fn run_dir(root: &Path, sequence: &[Op]) -> Vec<Outcome> {
    let mut target = DirTarget::new(root);
    sequence.iter().map(|op| target.apply(op)).collect()
}

// ---------------------------------------------------------------- an Ops

struct OpenFile {
    ino: Ino,
    fh: u64,
    readable: bool,
    writable: bool,
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
        Ok(OpenFile { ino: attr.ino, fh: opened.fh, readable: access != libc::O_WRONLY, writable: access != libc::O_RDONLY })
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
                    Ok(OpenFile { ino: found.attr.ino, fh: opened.fh, readable, writable })
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

fn open_flags(op: &Op) -> i32 {
    let Op::Open { create, excl, trunc, append, access, .. } = op else { return 0 };
    let bits = [(*create, libc::O_CREAT), (*excl, libc::O_EXCL), (*trunc, libc::O_TRUNC), (*append, libc::O_APPEND)];
    let access = match access {
        Access::Read => libc::O_RDONLY,
        Access::Write => libc::O_WRONLY,
        Access::Both => libc::O_RDWR,
    };
    bits.into_iter().filter(|(on, _)| *on).fold(access, |flags, (_, bit)| flags | bit)
}

// ---------------------------------------------------------------- a directory of the machine

/// Drives a real directory by std::fs.
pub struct DirTarget {
    root: PathBuf,
    slots: [Option<(File, bool)>; SLOTS],
}

impl DirTarget {
    /// A driver in `root`.
    pub fn new(root: &Path) -> Self {
        DirTarget { root: root.to_owned(), slots: Default::default() }
    }

    fn at(&self, path: &GenPath) -> PathBuf {
        path.0.iter().fold(self.root.clone(), |p, n| p.join(n))
    }

    fn open(&mut self, slot: usize, path: &GenPath, op: &Op) -> std::io::Result<Outcome> {
        self.slots[slot] = None;
        let Op::Open { access, append, .. } = op else { return Ok(Outcome::NoHandle) };
        let mut options = OpenOptions::new();
        options.read(*access != Access::Write).write(*access != Access::Read).mode(0o644);
        // Through custom flags, because std refuses combinations that open(2) takes.
        let flags = open_flags(op) & !libc::O_ACCMODE;
        let file = options.custom_flags(flags | libc::O_NOFOLLOW).open(self.at(path))?;
        // Some combinations open directories for reading; an Ops is only asked for files.
        if file.metadata()?.is_dir() {
            return Err(std::io::Error::from_raw_os_error(libc::EISDIR));
        }
        self.slots[slot] = Some((file, *append));
        Ok(Outcome::Done)
    }

    fn on_slot(&self, slot: usize, f: impl FnOnce(&File, bool) -> std::io::Result<Outcome>) -> std::io::Result<Outcome> {
        self.slots[slot].as_ref().map_or(Ok(Outcome::NoHandle), |(file, append)| f(file, *append))
    }

    fn try_apply(&mut self, op: &Op) -> std::io::Result<Outcome> {
        match op {
            Op::Open { slot, path, .. } => return self.open(*slot, path, op),
            Op::Close { slot } => return Ok(self.slots[*slot].take().map_or(Outcome::NoHandle, |_| Outcome::Done)),
            Op::Read { slot, offset, len } => return self.on_slot(*slot, |f, _| read_at(f, *offset, *len)),
            Op::Write { slot, offset, len, fill } => {
                return self.on_slot(*slot, |f, _| {
                    let n = f.write_at(&pattern(*fill, *len), *offset)?;
                    Ok(Outcome::Count(n as u32))
                });
            }
            Op::TruncateOpen { slot, size } => return self.on_slot(*slot, |f, _| f.set_len(*size).map(|()| Outcome::Done)),
            Op::Sync { slot } => return self.on_slot(*slot, |f, _| f.sync_all().map(|()| Outcome::Done)),
            Op::StatOpen { slot } => return self.on_slot(*slot, |f, _| Ok(meta_outcome(&f.metadata()?))),
            Op::ReadAll { path } => {
                let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(self.at(path))?;
                return read_at(&file, 0, u32::MAX >> 1);
            }
            Op::Truncate { path, size } => {
                nix::unistd::truncate(&self.at(path), i64::try_from(*size).unwrap())?;
            }
            Op::Mkdir { path, perm } => {
                fs::create_dir(self.at(path))?;
                fs::set_permissions(self.at(path), PermissionsExt::from_mode(u32::from(*perm)))?;
            }
            Op::Rmdir { path } => fs::remove_dir(self.at(path))?,
            Op::Unlink { path } => fs::remove_file(self.at(path))?,
            Op::Rename { from, to, how } => {
                let flags = match how {
                    How::Replace => RenameFlags::empty(),
                    How::NoReplace => RenameFlags::RENAME_NOREPLACE,
                    How::Exchange => RenameFlags::RENAME_EXCHANGE,
                };
                renameat2(AT_FDCWD, &self.at(from), AT_FDCWD, &self.at(to), flags)?;
            }
            Op::Symlink { path, target } => std::os::unix::fs::symlink(target, self.at(path))?,
            Op::Readlink { path } => {
                let target = fs::read_link(self.at(path))?;
                return Ok(Outcome::Bytes(target.into_os_string().into_encoded_bytes()));
            }
            Op::Link { from, to } => fs::hard_link(self.at(from), self.at(to))?,
            Op::Chmod { path, perm } => fs::set_permissions(self.at(path), PermissionsExt::from_mode(u32::from(*perm)))?,
            Op::SetMtime { path, sec } => {
                set_mtime(&self.at(path), *sec)?;
                return Ok(Outcome::Mtime(fs::metadata(self.at(path))?.mtime()));
            }
            Op::Stat { path } => return Ok(meta_outcome(&fs::symlink_metadata(self.at(path))?)),
            Op::List { path } => {
                let names: std::io::Result<BTreeSet<_>> =
                    fs::read_dir(self.at(path))?.map(|e| Ok(e?.file_name().into_encoded_bytes())).collect();
                return names.map(Outcome::Names);
            }
            Op::Reopen => self.slots = Default::default(),
        }
        Ok(Outcome::Done)
    }
}

impl Target for DirTarget {
    fn apply(&mut self, op: &Op) -> Outcome {
        self.try_apply(op).unwrap_or_else(|e| {
            Outcome::Errno(match e.raw_os_error() {
                // A link that is not followed; an Ops driver says so too.
                Some(libc::ELOOP) => libc::EINVAL,
                code => code.unwrap_or(libc::EIO),
            })
        })
    }
}

fn read_at(file: &File, offset: u64, len: u32) -> std::io::Result<Outcome> {
    let left = file.metadata()?.len().saturating_sub(offset).min(u64::from(len)) as usize;
    // One more byte than should be there, so that too much shows.
    let mut buf = vec![0; (left + 1).min(len as usize)];
    let mut got = 0;
    while got < buf.len() {
        match file.read_at(&mut buf[got..], offset + got as u64)? {
            0 => break,
            n => got += n,
        }
    }
    buf.truncate(got);
    if buf.is_empty() && len == 0 {
        // Even nothing needs the right to read.
        file.read_at(&mut [], offset)?;
    }
    Ok(Outcome::Bytes(buf))
}

fn set_mtime(path: &Path, sec: i64) -> std::io::Result<()> {
    use nix::sys::stat::{UtimensatFlags, utimensat};
    use nix::sys::time::TimeSpec;
    let time = TimeSpec::new(sec, 0);
    utimensat(AT_FDCWD, path, &TimeSpec::UTIME_OMIT, &time, UtimensatFlags::FollowSymlink)?;
    Ok(())
}

fn meta_outcome(m: &fs::Metadata) -> Outcome {
    let kind = match m.file_type() {
        t if t.is_dir() => FileType::Dir,
        t if t.is_symlink() => FileType::Symlink,
        t if t.is_fifo() => FileType::Fifo,
        t if t.is_socket() => FileType::Socket,
        _ => FileType::File,
    };
    let sized = matches!(kind, FileType::File | FileType::Symlink);
    let counted = kind != FileType::Dir;
    Outcome::Attr {
        kind,
        perm: (m.mode() & 0o7777) as u16,
        size: sized.then_some(m.len()),
        nlink: counted.then_some(m.nlink() as u32),
    }
}
