//! Runs generated operations on a directory of the machine.

use super::{Access, GenPath, How, Op, Outcome, SLOTS, Space, Target, open_flags, pattern};
use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, copy_file_range, fallocate, renameat2};
use smpfs::ops::FileType;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

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
            Op::Allocate { slot, offset, len, what } => {
                return self.on_slot(*slot, |f, _| allocate(f, *offset, *len, *what).map(|()| Outcome::Done));
            }
            Op::Copy { from, offset_in, to, offset_out, len } => {
                return self.on_slot(*from, |a, _| self.on_slot(*to, |b, _| copy((a, *offset_in), (b, *offset_out), *len)));
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

fn allocate(file: &File, offset: u64, len: u32, what: Space) -> std::io::Result<()> {
    let call = |what: Space| {
        let mode = FallocateFlags::from_bits_retain(what.mode());
        fallocate(file, mode, offset as i64, i64::from(len)).map_err(std::io::Error::from)
    };
    // tmpfs has holes and no zeros: a hole, and then the size, is what zeros are.
    match (call(what), what) {
        (Err(e), Space::Zero | Space::ZeroKeep) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            call(Space::Punch)?;
            if what == Space::Zero { call(Space::Allocate) } else { Ok(()) }
        }
        (done, _) => done,
    }
}

fn copy(from: (&File, u64), to: (&File, u64), len: u32) -> std::io::Result<Outcome> {
    let mut done = 0;
    while done == 0 || done < len {
        let at = |offset: u64| (offset + u64::from(done)) as i64;
        let (mut off_in, mut off_out) = (at(from.1), at(to.1));
        match copy_file_range(from.0, Some(&mut off_in), to.0, Some(&mut off_out), (len - done) as usize)? {
            0 => break,
            n => done += n as u32,
        }
    }
    Ok(Outcome::Count(done))
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
