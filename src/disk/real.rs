//! A directory of the machine as a [`Disk`].
//!
//! The root is opened once; every path is walked from that descriptor, component by component, without following symbolic
//! links, so that nobody who can write nearby can lead a write elsewhere. Files are 0600, directories 0700, descriptors
//! close on exec.

use super::{Access, Disk, DiskFile, Entry, EntryKind, LockGuard, Space, check_dir, check_path, join, os_error, split};
use crate::error::{Error, Kind, Result, fail};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, FallocateFlags, OFlag, fallocate, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use rustix::io::{ReadWriteFlags, pwritev2};
use std::fs::{File, TryLockError};
use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const DIR_FLAGS: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// A directory of the machine.
pub struct RealDisk {
    root: File,
    path: PathBuf,
}

impl RealDisk {
    /// Opens `path` as the root of a disk; it and its missing parents are made with mode 0700.
    ///
    /// Refused with `Denied` when the directory belongs to another user (other than the superuser) or when others may write
    /// into it: they could put files in the place of ours.
    pub fn open(path: &Path) -> Result<RealDisk> {
        let what = || format!("opening the local directory {}", path.display());
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|e| os_error(e, &what()))?;
        let path = path.canonicalize().map_err(|e| os_error(e, &what()))?;
        let root = File::open(&path).map_err(|e| os_error(e, &what()))?;
        let meta = root.metadata().map_err(|e| os_error(e, &what()))?;
        if !meta.is_dir() {
            return fail(Kind::NotDir, format!("{} is not a directory", path.display()));
        }
        if meta.uid() != nix::unistd::geteuid().as_raw() && meta.uid() != 0 {
            return fail(Kind::Denied, format!("{} belongs to another user; choose a directory of your own", path.display()));
        }
        if meta.mode() & 0o022 != 0 {
            return fail(
                Kind::Denied,
                format!("others may write into {}; run `chmod go-w` on it or choose another directory", path.display()),
            );
        }
        Ok(RealDisk { root, path })
    }

    /// Descriptor of a directory.
    fn dir(&self, path: &str) -> Result<OwnedFd> {
        let mut at = self.root.as_fd().try_clone_to_owned().map_err(|e| os_error(e, "opening a local directory"))?;
        for part in path.split('/').filter(|p| !p.is_empty()) {
            at = openat(&at, part, DIR_FLAGS, Mode::empty()).map_err(|e| no_link(e, at.as_fd(), part))?;
        }
        Ok(at)
    }

    /// Descriptor of the directory that holds `path`, and the name in it.
    fn parent<'p>(&self, path: &'p str) -> Result<(OwnedFd, &'p str)> {
        check_path(path)?;
        let (dir, name) = split(path);
        Ok((self.dir(dir)?, name))
    }
}

/// With O_DIRECTORY a link shows as ENOTDIR: says which of the two it was.
fn no_link(e: Errno, at: BorrowedFd<'_>, name: &str) -> Error {
    let link = e == Errno::ENOTDIR && kind_at(at, name).is_ok_and(|(kind, _)| kind == EntryKind::Other);
    errno(if link { Errno::ELOOP } else { e }, "opening a local directory")
}

fn errno(e: Errno, what: &str) -> Error {
    os_error(e.into(), what)
}

fn kind_at(at: BorrowedFd<'_>, name: &str) -> Result<(EntryKind, u64)> {
    let stat = fstatat(at, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|e| errno(e, "looking at a local file"))?;
    Ok(match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFREG => (EntryKind::File, stat.st_size as u64),
        SFlag::S_IFDIR => (EntryKind::Dir, 0),
        _ => (EntryKind::Other, 0),
    })
}

impl Disk for RealDisk {
    fn open(&self, path: &str, access: Access) -> Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(self.open_file(path, access)?)))
    }

    fn make_dir(&self, path: &str) -> Result<()> {
        check_dir(path)?;
        let mut at = self.dir("")?;
        for part in path.split('/').filter(|p| !p.is_empty()) {
            match mkdirat(&at, part, Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(e) => return Err(errno(e, "making a local directory")),
            }
            at = openat(&at, part, DIR_FLAGS, Mode::empty()).map_err(|e| no_link(e, at.as_fd(), part))?;
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        let ((from_dir, from), (to_dir, to)) = (self.parent(from)?, self.parent(to)?);
        renameat(&from_dir, from, &to_dir, to).map_err(|e| errno(e, "renaming a local file"))
    }

    fn remove(&self, path: &str) -> Result<()> {
        let (dir, name) = self.parent(path)?;
        unlinkat(&dir, name, UnlinkatFlags::NoRemoveDir).map_err(|e| errno(e, "removing a local file"))
    }

    fn remove_dir(&self, path: &str) -> Result<()> {
        let (dir, name) = self.parent(path)?;
        unlinkat(&dir, name, UnlinkatFlags::RemoveDir).map_err(|e| errno(e, "removing a local directory"))
    }

    fn list(&self, path: &str) -> Result<Vec<Entry>> {
        check_dir(path)?;
        let what = "listing a local directory";
        // A descriptor of its own: the position of a shared one would be shared as well.
        let dir = self.dir(path)?;
        let own = openat(&dir, ".", DIR_FLAGS, Mode::empty()).map_err(|e| errno(e, what))?;
        let mut entries = Vec::new();
        for entry in Dir::from_fd(own).map_err(|e| errno(e, what))?.iter() {
            let entry = entry.map_err(|e| errno(e, what))?;
            // smpfs makes no name that is not UTF-8; a stranger's is left alone.
            let Ok(name) = entry.file_name().to_str() else { continue };
            if matches!(name, "." | "..") {
                continue;
            }
            match kind_at(dir.as_fd(), name) {
                Ok((kind, len)) => entries.push(Entry { name: name.to_owned(), kind, len }),
                Err(e) if e.kind() == Kind::NotFound => {} // removed since
                Err(e) => return Err(e),
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn len(&self, path: &str) -> Result<u64> {
        let (dir, name) = self.parent(path)?;
        match kind_at(dir.as_fd(), name)? {
            (EntryKind::File, len) => Ok(len),
            (EntryKind::Dir, _) => fail(Kind::IsDir, "a local path is a directory and should be a file"),
            (EntryKind::Other, _) => Err(errno(Errno::ELOOP, "looking at a local file")),
        }
    }

    fn sync_dir(&self, dir: &str) -> Result<()> {
        check_dir(dir)?;
        nix::unistd::fsync(self.dir(dir)?).map_err(|e| errno(e, "making a local directory durable"))
    }

    fn space(&self) -> Result<Space> {
        let s = nix::sys::statvfs::fstatvfs(&self.root).map_err(|e| errno(e, "asking for the free space"))?;
        let unit = s.fragment_size();
        Ok(Space { free: s.blocks_available().saturating_mul(unit), total: s.blocks().saturating_mul(unit) })
    }

    fn lock(&self, path: &str) -> Result<Box<dyn LockGuard>> {
        let file = self.open_file(path, Access::Create)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(busy(&file, &join(&self.path.to_string_lossy(), path))),
            Err(TryLockError::Error(e)) => return Err(os_error(e, "locking a local file")),
        }
        // The holder's number is a help for people; the lock itself is flock(2)'s and ends with the process.
        let holder = format!("{}\n", std::process::id());
        let noted = file.set_len(0).and_then(|()| file.write_all_at(holder.as_bytes(), 0));
        noted.map_err(|e| os_error(e, "locking a local file"))?;
        Ok(Box::new(RealLock { _file: file }))
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }
}

impl RealDisk {
    fn open_file(&self, path: &str, access: Access) -> Result<File> {
        let what = "opening a local file";
        let (dir, name) = self.parent(path)?;
        let flags = match access {
            Access::Read => OFlag::O_RDONLY,
            Access::Write => OFlag::O_RDWR,
            Access::Create => OFlag::O_RDWR | OFlag::O_CREAT,
            Access::CreateNew => OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL,
        };
        // O_NONBLOCK: a pipe put in the place of a file must not hang the open; it means nothing for regular files.
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let file = File::from(openat(&dir, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|e| errno(e, what))?);
        let meta = file.metadata().map_err(|e| os_error(e, what))?;
        if meta.is_dir() {
            return fail(Kind::IsDir, "a local path is a directory and should be a file");
        }
        if !meta.is_file() {
            let shown = join(&self.path.to_string_lossy(), path);
            return fail(Kind::Denied, format!("{shown} is no regular file, and local state uses nothing else: remove it"));
        }
        Ok(file)
    }
}

fn busy(mut file: &File, path: &str) -> Error {
    let mut holder = String::new();
    let read = file.by_ref().take(32).read_to_string(&mut holder);
    match holder.trim().parse::<u32>() {
        Ok(pid) if read.is_ok() => Error::new(Kind::Busy, format!("in use by process {pid} (lock file {path})")),
        _ => Error::new(Kind::Busy, format!("in use by another process (lock file {path})")),
    }
}

struct RealLock {
    _file: File,
}

impl LockGuard for RealLock {}

struct RealFile(File);

impl DiskFile for RealFile {
    fn pread(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.0.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(os_error(e, "reading a local file")),
            }
        }
        Ok(done)
    }

    fn pwrite(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.0.write_all_at(data, offset).map_err(|e| os_error(e, "writing a local file"))
    }

    fn len(&self) -> Result<u64> {
        Ok(self.0.metadata().map_err(|e| os_error(e, "looking at a local file"))?.len())
    }

    fn truncate(&self, len: u64) -> Result<()> {
        self.0.set_len(len).map_err(|e| os_error(e, "cutting a local file"))
    }

    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
            return fail(Kind::Invalid, "a range beyond what a local file can hold");
        };
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.0, flags, offset, len).map_err(|e| errno(e, "giving space back"))
    }

    fn sync_data(&self) -> Result<()> {
        self.0.sync_data().map_err(|e| os_error(e, "making a local file durable"))
    }

    fn pwrite_durable(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < data.len() {
            let rest = [IoSlice::new(&data[done..])];
            match pwritev2(&self.0, &rest, offset + done as u64, ReadWriteFlags::DSYNC) {
                Ok(0) => return fail(Kind::Unavailable, "writing a local file: the filesystem takes no more"),
                Ok(n) => done += n,
                Err(rustix::io::Errno::INTR) => {}
                // Not every filesystem makes a write durable on its own.
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => {
                    self.pwrite(offset, data)?;
                    return self.sync_data();
                }
                Err(e) => return Err(os_error(e.into(), "writing a local file")),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn disk() -> (tempfile::TempDir, RealDisk) {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(&dir.path().join("state")).unwrap();
        (dir, disk)
    }

    #[test]
    fn passes_the_contract() {
        let (_keep, disk) = disk();
        super::super::contract::run(&disk);
    }

    #[test]
    fn links_and_pipes_are_never_followed() {
        let (tmp, disk) = disk();
        let root = tmp.path().join("state");
        std::fs::write(tmp.path().join("victim"), b"untouched").unwrap();
        std::os::unix::fs::symlink("../victim", root.join("link")).unwrap();
        std::os::unix::fs::symlink("..", root.join("up")).unwrap();
        nix::unistd::mkfifo(&root.join("pipe"), Mode::S_IRWXU).unwrap();
        for access in [Access::Read, Access::Write, Access::Create] {
            assert_eq!(disk.open("link", access).err().map(|e| e.kind()), Some(Kind::Denied));
            assert_eq!(disk.open("up/victim", access).err().map(|e| e.kind()), Some(Kind::Denied));
        }
        for access in [Access::Read, Access::Write, Access::Create] {
            let e = disk.open("pipe", access).err().unwrap();
            assert_eq!(e.kind(), Kind::Denied);
            assert!(e.to_string().contains(&format!("{}/pipe is no regular file", disk.path.display())), "{e}");
        }
        assert_eq!(disk.lock("pipe").err().map(|e| e.kind()), Some(Kind::Denied));
        assert_eq!(disk.make_dir("up/new").err().map(|e| e.kind()), Some(Kind::Denied));
        assert_eq!(disk.list("up").err().map(|e| e.kind()), Some(Kind::Denied));
        assert!(disk.list("").unwrap().iter().all(|e| e.kind == EntryKind::Other));
        disk.remove("link").unwrap();
        assert_eq!(std::fs::read(tmp.path().join("victim")).unwrap(), b"untouched");
    }

    #[test]
    fn files_are_private_and_shared_roots_refused() {
        let (tmp, disk) = disk();
        let root = tmp.path().join("state");
        disk.make_dir("d/e").unwrap();
        disk.open("d/e/f", Access::Create).unwrap();
        let mode = |p: &str| std::fs::metadata(root.join(p)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(""), mode("d"), mode("d/e"), mode("d/e/f")), (0o700, 0o700, 0o700, 0o600));
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(RealDisk::open(&root).err().map(|e| e.kind()), Some(Kind::Denied));
        assert_eq!(RealDisk::open(&root.join("d/e/f")).err().map(|e| e.kind()), Some(Kind::Exists));
    }

    #[test]
    fn a_lock_names_its_holder_and_ends_with_the_guard() {
        let (_keep, disk) = disk();
        let held = disk.lock("lock").unwrap();
        let error = disk.lock("lock").err().unwrap();
        assert_eq!(error.kind(), Kind::Busy);
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(held);
        disk.lock("lock").unwrap();
    }
}
