//! The blocking half of the directory store: files, locks and version tags. Every function here may block.

use super::super::*;
use super::{key, own};
use crate::env::Env;
use crate::error::Error;
use parking_lot::Mutex;
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Locks that serialise writers of the same key, also those of other processes.
const LOCKS: u64 = 64;
/// A temporary file of a whole put that is older than this belongs to nobody.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// Attempts against a directory that another process removes while we fill it.
const RACES: usize = 64;

/// The root of a bucket.
pub(super) struct Place {
    pub(super) root: PathBuf,
    pub(super) area: PathBuf,
    identity: (u64, u64),
    writable: bool,
    durable: bool,
    env: Env,
    last: Mutex<u128>,
}

/// A finished temporary file.
pub(super) struct New<'a> {
    pub(super) file: &'a File,
    pub(super) temp: &'a Path,
    /// It stays when it cannot be committed (an upload that may be completed again).
    pub(super) keep: bool,
}

/// Whether the caller still waits. Work that was given up (a time limit ended it) must not replace an object later, when
/// another attempt has been answered and others have built upon it.
#[derive(Clone, Default)]
pub(super) struct Wanted(Arc<AtomicBool>);

/// Held by the caller: dropped, it says that nobody waits any more.
pub(super) struct Waiting(Arc<AtomicBool>);

impl Wanted {
    pub(super) fn new() -> (Waiting, Wanted) {
        let given_up = Arc::new(AtomicBool::new(false));
        (Waiting(given_up.clone()), Wanted(given_up))
    }

    fn check(&self) -> Result<()> {
        match self.0.load(Ordering::SeqCst) {
            false => Ok(()),
            true => fail(Kind::Interrupted, "the write was given up before it was carried out"),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Translates an input/output error; `what` says what was being done, without naming the file.
pub(super) fn err(what: &'static str, e: io::Error) -> Error {
    let kind = match e.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => Kind::NotFound,
        Some(libc::ENOSPC | libc::EDQUOT) => Kind::NoSpace,
        Some(libc::EFBIG) => Kind::TooLarge,
        Some(libc::ENAMETOOLONG) => Kind::NameTooLong,
        Some(libc::EACCES | libc::EPERM) => Kind::Denied,
        Some(libc::EROFS) => Kind::ReadOnly,
        _ => Kind::Unavailable,
    };
    Error::with_source(kind, what, e)
}

fn no_directory(root: &Path) -> Error {
    let url = StoreSpec::Dir { path: root.to_owned() };
    let what = format!(
        "there is no directory {}; `smpfs init {url}` makes it and a volume in it. If there was one, its disk or share may not be mounted",
        root.display()
    );
    Error::new(Kind::NotFound, what)
}

impl Place {
    /// Opens the bucket at `root`; with `create`, makes what is missing.
    pub(super) fn open(root: &Path, create: bool, durable: bool, env: Env) -> Result<Place> {
        if create {
            fs::create_dir_all(root).map_err(|e| err("making the bucket's directory", e))?;
        }
        let meta = match fs::metadata(root) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(no_directory(root)),
            Err(e) => return Err(err("opening the bucket's directory", e).context(root.display())),
        };
        if !meta.is_dir() {
            return fail(Kind::NotDir, format!("{} is not a directory", root.display()));
        }
        let root = fs::canonicalize(root).map_err(|e| err("opening the bucket's directory", e))?;
        let area = root.join(key::RESERVED);
        let mut place =
            Place { identity: (meta.dev(), meta.ino()), root, area, writable: true, durable, env, last: Mutex::new(0) };
        match place.prepare() {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), Kind::Denied | Kind::ReadOnly) => place.writable = false,
            Err(e) => return Err(e),
        }
        Ok(place)
    }

    fn prepare(&self) -> Result<()> {
        match fs::create_dir(&self.area) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(err("making the reserved area", e)),
            _ => {}
        }
        let (file, path) = self.temp()?;
        let kept = self.stamp(&file).and_then(|at| Ok(at == mtime(&file.metadata().map_err(|e| err("reading a time", e))?)));
        let _ = fs::remove_file(&path);
        if !kept? {
            return fail(
                Kind::Unsupported,
                format!(
                    "the filesystem below {} keeps no nanosecond times, which tell one version of an object from the next; use ext4, xfs, btrfs, zfs or tmpfs",
                    self.root.display()
                ),
            );
        }
        self.sweep()
    }

    /// Removes what died long ago and nobody can name: temporary files of puts, uploads without a key.
    fn sweep(&self) -> Result<()> {
        for entry in fs::read_dir(&self.area).map_err(|e| err("listing the reserved area", e))?.flatten() {
            let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
            if age.is_none_or(|a| a < STALE) {
                continue;
            }
            let (name, path) = (entry.file_name(), entry.path());
            if name.as_encoded_bytes().starts_with(b"put-") {
                let _ = fs::remove_file(path);
            } else if name.as_encoded_bytes().starts_with(b"up-") && !path.join("key").exists() {
                let _ = fs::remove_dir_all(path);
            }
        }
        Ok(())
    }

    /// Refuses writes to a bucket that cannot be written.
    pub(super) fn writable(&self) -> Result<()> {
        match self.writable {
            true => Ok(()),
            false => fail(Kind::Denied, format!("the directory {} is not writable", self.root.display())),
        }
    }

    /// Whether writes are forced to disk before they are acknowledged.
    pub(super) fn durable(&self) -> bool {
        self.durable
    }

    pub(super) fn may_write(&self) -> bool {
        self.writable
    }

    /// Turns "no such file" into `Unavailable` when the bucket's directory itself has gone (a disk was unplugged, a share
    /// unmounted): an absent bucket must never look like an empty one.
    pub(super) fn settle<T>(&self, result: Result<T>) -> Result<T> {
        match result {
            Err(e) if e.kind() == Kind::NotFound => match fs::metadata(&self.root) {
                Ok(m) if (m.dev(), m.ino()) == self.identity => Err(e),
                _ => fail(Kind::Unavailable, format!("the directory {} is not there any more", self.root.display())),
            },
            other => other,
        }
    }

    pub(super) fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key::path(key))
    }

    /// Random name.
    pub(super) fn random(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.env.random::<16>())
    }

    /// Opens an object for reading.
    pub(super) fn open_object(&self, key: &Key, only: Option<&ETag>) -> Result<(File, Meta)> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(self.path(key)) {
            Ok(f) => f,
            // A symbolic link, a socket, a device: not something this store wrote.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ELOOP | libc::ENXIO | libc::ENODEV)) => {
                return fail(Kind::NotFound, "no such object");
            }
            Err(e) => return Err(err("opening an object", e)),
        };
        let stat = file.metadata().map_err(|e| err("reading an object's attributes", e))?;
        if !stat.is_file() {
            return fail(Kind::NotFound, "no such object");
        }
        let meta = meta(&stat);
        match only {
            Some(tag) if *tag != meta.etag => fail(Kind::Stale, "the object was changed"),
            _ => Ok((file, meta)),
        }
    }

    /// Length and tag of an object, without opening it.
    pub(super) fn stat(&self, key: &Key) -> Result<Meta> {
        let stat = fs::symlink_metadata(self.path(key)).map_err(|e| err("reading an object's attributes", e))?;
        if stat.is_file() { Ok(meta(&stat)) } else { fail(Kind::NotFound, "no such object") }
    }

    pub(super) fn get(&self, key: &Key, span: &Span, only: Option<&ETag>) -> Result<Got> {
        let (mut file, meta) = self.open_object(key, only)?;
        let r = resolve(span, meta.len)?;
        let len = (r.end - r.start) as usize;
        let mut bytes = Vec::with_capacity(len);
        let read = |e| err("reading an object", e);
        file.seek(SeekFrom::Start(r.start)).map_err(read)?;
        file.take(len as u64).read_to_end(&mut bytes).map_err(read)?;
        if bytes.len() != len {
            return fail(Kind::Corrupt, "an object is shorter than its own length says: it was changed in place");
        }
        Ok(Got { bytes: bytes.into(), start: r.start, meta })
    }

    /// A new temporary file for a whole put.
    pub(super) fn temp(&self) -> Result<(File, PathBuf)> {
        let path = self.area.join(format!("put-{}", self.random()));
        let file = OpenOptions::new().write(true).read(true).create_new(true).mode(0o600).open(&path);
        Ok((file.map_err(|e| err("making a temporary file", e))?, path))
    }

    /// Gives a file a modification time that no other version of it has: the clock, but always later than the last one given.
    /// With the inode's number and the length this makes the version tag.
    pub(super) fn stamp(&self, file: &File) -> Result<u128> {
        let now = self.env.clock.now();
        let now = u128::from(now.sec.max(0).unsigned_abs()) * 1_000_000_000 + u128::from(now.nsec);
        let at = {
            let mut last = self.last.lock();
            *last = now.max(*last + 1);
            *last
        };
        let time = UNIX_EPOCH + Duration::new((at / 1_000_000_000) as u64, (at % 1_000_000_000) as u32);
        file.set_times(FileTimes::new().set_modified(time)).map_err(|e| err("setting a time", e))?;
        Ok(at)
    }

    /// Makes a finished temporary file the object `key`, if `cond` holds, atomically and durably. Removes it otherwise.
    pub(super) fn commit(&self, key: &Key, new: New<'_>, cond: &Cond, wanted: &Wanted) -> Result<Meta> {
        let done = self.try_commit(key, &new, cond, wanted);
        if done.is_err() && !new.keep {
            let _ = fs::remove_file(new.temp);
        }
        done
    }

    fn try_commit(&self, key: &Key, new: &New<'_>, cond: &Cond, wanted: &Wanted) -> Result<Meta> {
        let file = new.file;
        self.stamp(file)?;
        if self.durable {
            file.sync_all().map_err(|e| err("writing an object to disk", e))?;
        }
        let meta = meta(&file.metadata().map_err(|e| err("reading an object's attributes", e))?);
        let path = self.path(key);
        {
            let _lock = self.lock(key)?;
            self.check(key, cond)?;
            wanted.check()?;
            self.rename(new.temp, &path)?;
        }
        self.sync_dir(path.parent().unwrap_or(&self.root))?;
        Ok(meta)
    }

    /// Whether `cond` holds; call it under the key's lock.
    fn check(&self, key: &Key, cond: &Cond) -> Result<()> {
        let holds = match cond {
            Cond::Any => true,
            Cond::Absent => match self.stat(key) {
                Ok(_) => false,
                Err(e) if e.kind() == Kind::NotFound => true,
                Err(e) => return Err(e),
            },
            Cond::Match(tag) => self.stat(key).is_ok_and(|m| m.etag == *tag),
        };
        if holds { Ok(()) } else { fail(Kind::Stale, "the condition of the write does not hold: the object was changed") }
    }

    fn rename(&self, temp: &Path, path: &Path) -> Result<()> {
        let conflict = || {
            Error::new(
                Kind::Invalid,
                "a directory store cannot hold both an object and objects below it (`a` and `a/b`); use another name or another kind of store",
            )
        };
        for _ in 0..RACES {
            match fs::rename(temp, path) {
                Ok(()) => return Ok(()),
                Err(e) => match e.raw_os_error() {
                    Some(libc::ENOENT) => self.make_parents(path)?,
                    Some(libc::ENOTDIR) => return Err(conflict()),
                    // An empty directory is what a delete left when it was interrupted.
                    Some(libc::EISDIR | libc::EEXIST | libc::ENOTEMPTY) => fs::remove_dir(path).map_err(|_| conflict())?,
                    _ => return Err(err("putting an object in its place", e)),
                },
            }
        }
        fail(Kind::Unavailable, "another process keeps removing the directory that an object is to be put in")
    }

    /// Makes the directories above `path`, never the root itself.
    fn make_parents(&self, path: &Path) -> Result<()> {
        let mut made = Vec::new();
        let Ok(below) = path.strip_prefix(&self.root) else { return fail(Kind::Bug, "a path outside the bucket") };
        let mut dir = self.root.clone();
        for c in below.parent().into_iter().flat_map(Path::iter) {
            let parent = dir.clone();
            dir.push(c);
            match fs::create_dir(&dir) {
                Ok(()) => made.push(parent),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                // Another process removed the parent in between: the caller's loop comes back.
                Err(e) if e.kind() == io::ErrorKind::NotFound && self.root.is_dir() => break,
                Err(e) => return Err(err("making a directory", e)),
            }
        }
        made.iter().try_for_each(|d| self.sync_dir(d))
    }

    /// Makes a directory's entries durable. One that is gone by now (its last object was deleted) needs nothing.
    pub(super) fn sync_dir(&self, dir: &Path) -> Result<()> {
        if !self.durable {
            return Ok(());
        }
        match File::open(dir).and_then(|d| d.sync_all()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(err("writing a directory to disk", e)),
            _ => Ok(()),
        }
    }

    /// The lock of a key. It ends with the file, also when the process dies.
    fn lock(&self, key: &Key) -> Result<File> {
        let n = key.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)) % LOCKS;
        let path = self.area.join(format!("lock-{n:02}"));
        let file = own::open(&path, OpenOptions::new().write(true).create(true).truncate(false), "opening a lock")?;
        file.lock().map_err(|e| err("locking an object", e))?;
        Ok(file)
    }

    /// Writes a body to a new temporary file and commits it.
    pub(super) fn put(&self, key: &Key, body: &[Bytes], cond: &Cond, wanted: &Wanted) -> Result<Meta> {
        self.writable()?;
        let (mut file, temp) = self.temp()?;
        if let Err(e) = body.iter().try_for_each(|b| file.write_all(b)) {
            let _ = fs::remove_file(&temp);
            return Err(err("writing an object", e));
        }
        self.commit(key, New { file: &file, temp: &temp, keep: false }, cond, wanted)
    }

    pub(super) fn copy(&self, from: &Key, only: &ETag, to: &Key, cond: &Cond, wanted: &Wanted) -> Result<Meta> {
        self.writable()?;
        let (mut source, _) = self.open_object(from, Some(only))?;
        let (mut file, temp) = self.temp()?;
        // std uses copy_file_range, which shares blocks where the filesystem can.
        if let Err(e) = io::copy(&mut source, &mut file) {
            let _ = fs::remove_file(&temp);
            return Err(err("copying an object", e));
        }
        self.commit(to, New { file: &file, temp: &temp, keep: false }, cond, wanted)
    }

    pub(super) fn delete(&self, key: &Key, only: Option<&ETag>) -> Result<()> {
        self.writable()?;
        let path = self.path(key);
        {
            let _lock = self.lock(key)?;
            if let Some(tag) = only
                && self.stat(key)?.etag != *tag
            {
                return fail(Kind::Stale, "the object was changed");
            }
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::EISDIR)) => {
                    return self.settle(fail(Kind::NotFound, "no such object"));
                }
                Err(e) => return Err(err("deleting an object", e)),
            }
        }
        // Directories exist only while objects are below them: otherwise a later object of that name could not be.
        let mut dir = path.parent();
        while let Some(d) = dir.filter(|d| *d != self.root) {
            if fs::remove_dir(d).is_err() {
                break;
            }
            dir = d.parent();
        }
        self.sync_dir(dir.unwrap_or(&self.root))
    }
}

fn mtime(stat: &fs::Metadata) -> u128 {
    let time = stat.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos())
}

/// What a file's attributes say of the object.
pub(super) fn meta(stat: &fs::Metadata) -> Meta {
    Meta { len: stat.len(), etag: ETag(format!("{:x}-{:x}-{:x}", stat.ino(), stat.len(), mtime(stat))) }
}

/// When a file was written, as far as its filesystem tells.
pub(super) fn modified(stat: &fs::Metadata) -> Time {
    let at = mtime(stat);
    Time { sec: i64::try_from(at / 1_000_000_000).unwrap_or(i64::MAX), nsec: (at % 1_000_000_000) as u32 }
}
