//! Sequences of filesystem operations over a small namespace, and drivers that run them on an [`Ops`] or on a real directory and
//! make what they saw comparable: bytes, names, errnos, attributes without times and inode numbers.
//!
//! The namespace is small on purpose: three names, three levels, two handles, so that operations meet. Symbolic links point
//! nowhere, because following them is the kernel's work and an `Ops` never does it.

mod dir_target;
mod ops_target;

pub use dir_target::DirTarget;
pub use ops_target::OpsTarget;

use proptest::prelude::*;
use smpfs::ops::{FileType, Ops};
use std::collections::BTreeSet;
use std::path::Path;

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
    /// fallocate(2).
    Allocate { slot: usize, offset: u64, len: u32, what: Space },
    /// copy_file_range(2), gone on with until all is copied.
    Copy { from: usize, offset_in: u64, to: usize, offset_out: u64, len: u32 },
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

/// What is asked of fallocate(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Allocate,
    AllocateKeep,
    Punch,
    Zero,
    ZeroKeep,
}

impl Space {
    /// fallocate(2)'s mode.
    pub fn mode(self) -> i32 {
        match self {
            Space::Allocate => 0,
            Space::AllocateKeep => libc::FALLOC_FL_KEEP_SIZE,
            Space::Punch => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            Space::Zero => libc::FALLOC_FL_ZERO_RANGE,
            Space::ZeroKeep => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
        }
    }
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

fn space() -> impl Strategy<Value = Space> {
    prop::sample::select(vec![
        Space::Allocate,
        Space::AllocateKeep,
        Space::Punch,
        Space::Punch,
        Space::Punch,
        Space::Zero,
        Space::ZeroKeep,
    ])
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
        4 => (slot(), offset(), len(), space()).prop_map(|(slot, offset, len, what)| Op::Allocate { slot, offset, len, what }),
        2 => (slot(), offset(), slot(), offset(), len())
            .prop_map(|(from, offset_in, to, offset_out, len)| Op::Copy { from, offset_in, to, offset_out, len }),
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
