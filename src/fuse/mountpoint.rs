//! The mount point before and after: what is mounted where, stale mounts, errors in sentences, readahead.

use crate::error::{Error, Kind, Result, fail};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

/// The type our mounts have in /proc/mounts.
pub(super) const FS_TYPE: &str = "fuse.smpfs";
/// The kernel's list of FUSE connections, one directory for each.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";
/// How long a mount may take to answer a stat before it counts as hanging.
const STAT_LIMIT: Duration = Duration::from_secs(5);

/// One line of /proc/self/mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MountLine {
    /// Device number, "major:minor".
    pub dev: String,
    /// Where.
    pub dir: PathBuf,
    /// Type with subtype.
    pub fs_type: String,
    /// What is mounted: the store's URL.
    pub source: String,
    /// Whose it is; `None` where the options do not tell.
    pub user: Option<u32>,
}

/// A mount of ours that has lost its process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadMount {
    /// Where.
    pub dir: PathBuf,
    /// The store's URL.
    pub source: String,
}

/// This user's mounts whose process is gone. One that does not answer at all is none of them.
pub fn dead_mounts() -> Vec<DeadMount> {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let me = nix::unistd::geteuid().as_raw();
    let ours = parse_mountinfo(&table).into_iter().filter(|m| m.fs_type == FS_TYPE && m.user.is_none_or(|user| user == me));
    let mut dead: Vec<DeadMount> = Vec::new();
    for m in ours {
        if !dead.iter().any(|d| d.dir == m.dir) && is_dead(&m.dir) {
            dead.push(DeadMount { dir: m.dir, source: m.source });
        }
    }
    dead
}

/// What is mounted on `dir` now: the topmost, when there are several.
pub(super) fn mounted_at(dir: &Path) -> Option<MountLine> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    parse_mountinfo(&table).into_iter().rfind(|m| m.dir == dir)
}

/// proc_pid_mountinfo(5): fields divided by spaces, a lone "-" before type, source and options.
fn parse_mountinfo(table: &[u8]) -> Vec<MountLine> {
    let line = |line: &[u8]| {
        let mut fields = line.split(|&b| b == b' ');
        let dev = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
        let dir = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
        fields.find(|f| *f == b"-")?;
        let text = |field: &[u8]| String::from_utf8(unescape(field)).ok();
        let (fs_type, source) = (text(fields.next()?)?, text(fields.next()?)?.replace("%2C", ",").replace("%5C", "\\"));
        let options = fields.next().and_then(text).unwrap_or_default();
        let user = options.split(',').find_map(|o| o.strip_prefix("user_id=")?.parse().ok());
        Some(MountLine { dev, dir, fs_type, source, user })
    };
    table.split(|&b| b == b'\n').filter_map(line).collect()
}

/// Octal escapes: `\040` is a space.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&b, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 8).ok());
        match digits {
            Some(byte) if b == b'\\' => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(b);
                rest = tail;
            }
        }
    }
    out
}

/// Whether anything answers at `dir`. Asked by statfs: the kernel answers a stat from its cache long after the process has died.
/// It may hang for ever, so it is made on a thread that may be left behind.
fn stat_errno(dir: &Path) -> Option<i32> {
    let (tx, rx) = mpsc::channel();
    let path = dir.to_owned();
    std::thread::spawn(move || {
        // The receiver may have given up.
        let _ = tx.send(nix::sys::statvfs::statvfs(&path).err().map_or(0, |e| e as i32));
    });
    rx.recv_timeout(STAT_LIMIT).ok()
}

/// Whether the mount on `dir` has lost its process.
pub(super) fn is_dead(dir: &Path) -> bool {
    stat_errno(dir) == Some(libc::ENOTCONN)
}

/// Detaches a mount of ours on `dir` whose process is gone ("Transport endpoint is not connected"). Returns whether there was one.
///
/// # Errors
/// When it is there and cannot be detached.
pub fn clear_stale(dir: &Path) -> Result<bool> {
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let ours = mounted_at(&dir).is_some_and(|m| m.fs_type == FS_TYPE);
    if !ours || !is_dead(&dir) {
        return Ok(false);
    }
    unmount(&dir, true)?;
    tracing::info!("a stale mount on the mount point was detached");
    Ok(true)
}

/// The mount point, absolute and ready.
pub(super) fn prepare(dir: &Path) -> Result<PathBuf> {
    clear_stale(dir)?;
    let shown = dir.display();
    let taken = |dir: &Path| mounted_at(dir).is_some_and(|m| m.fs_type == FS_TYPE);
    let busy = || fail(Kind::Busy, format!("{shown} is an smpfs mount already: unmount it first, or choose another directory"));
    // Asked first, because a mount that hangs would hold up everything that walks the path.
    if taken(&std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned())) {
        return busy();
    }
    let real = dir.canonicalize().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Error::new(Kind::NotFound, format!("the mount point {shown} does not exist: make it first, with mkdir -p"))
        }
        _ => Error::from(e).context(format!("the mount point {shown} cannot be used")),
    })?;
    if taken(&real) {
        return busy();
    }
    if !real.is_dir() {
        return fail(Kind::NotDir, format!("the mount point {shown} is not a directory"));
    }
    Ok(real)
}

/// An error of mounting, in a sentence that says what to do.
pub(super) fn explain(e: std::io::Error, dir: &Path) -> Error {
    let shown = dir.display();
    let root = nix::unistd::geteuid().is_root();
    let text = e.to_string();
    let (kind, what) = if !Path::new("/dev/fuse").exists() {
        (
            Kind::Unsupported,
            "there is no /dev/fuse: load the kernel module with `modprobe fuse`; in a container, pass --device /dev/fuse and \
             --cap-add SYS_ADMIN"
                .to_owned(),
        )
    } else if text.contains("user_allow_other") {
        (
            Kind::Denied,
            "--allow-other is not permitted to ordinary users here: put the line `user_allow_other` into /etc/fuse.conf, or \
             mount without it"
                .to_owned(),
        )
    } else if !root && e.kind() == std::io::ErrorKind::NotFound {
        (Kind::Unsupported, "fusermount3 is not installed: install the package fuse3, or mount as root".to_owned())
    } else if matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM))
        || ["Operation not permitted", "Permission denied", "no write access"].iter().any(|t| text.contains(t))
    {
        (
            Kind::Denied,
            format!(
                "mounting on {shown} is not permitted: it takes rights on /dev/fuse and on the directory, and in a container CAP_SYS_ADMIN"
            ),
        )
    } else {
        (Kind::Unavailable, format!("mounting on {shown} failed"))
    };
    Error::with_source(kind, what, e)
}

/// Unmounts `dir`: umount2(2), or `fusermount3 -u` where that is not permitted. `lazy` detaches a mount that is in use.
pub(super) fn unmount(dir: &Path, lazy: bool) -> Result<()> {
    let flags = MntFlags::UMOUNT_NOFOLLOW | if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    match umount2(dir, flags) {
        Ok(()) => Ok(()),
        Err(Errno::EBUSY) => fail(Kind::Busy, busy(dir)),
        Err(Errno::EPERM) => by_fusermount(dir, lazy),
        Err(e) => Err(Error::from(std::io::Error::from(e)).context(format!("unmounting {}", dir.display()))),
    }
}

fn busy(dir: &Path) -> String {
    format!("{0} is in use: close what uses it (`fuser -vm {0}` lists it), or unmount with --lazy", dir.display())
}

fn by_fusermount(dir: &Path, lazy: bool) -> Result<()> {
    let mut command = Command::new("fusermount3");
    command.env("LC_ALL", "C").arg("-u");
    if lazy {
        command.arg("-z");
    }
    let output = command.arg("--").arg(dir).output().map_err(|e| {
        Error::with_source(Kind::Unsupported, "fusermount3, which unmounts for ordinary users, cannot be run: install fuse3", e)
    })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if text.contains("busy") {
        return fail(Kind::Busy, busy(dir));
    }
    fail(Kind::Denied, format!("fusermount3 did not unmount {}: {text}", dir.display()))
}

/// A file of the mount's FUSE connection: `waiting` or `abort`. Connections are named by the device's minor number.
pub(super) fn connection_file(dev: &str, file: &str) -> PathBuf {
    let minor = dev.split(':').nth(1).unwrap_or(dev);
    Path::new(CONNECTIONS).join(minor).join(file)
}

/// Raises the mount's readahead, which FUSE itself caps at the system's 128 KiB. Needs root; without it reads work as well.
pub(super) fn set_read_ahead(dev: &str, kib: u32) {
    let file = format!("/sys/class/bdi/{dev}/read_ahead_kb");
    if kib > 0
        && let Err(e) = std::fs::write(file, kib.to_string())
    {
        tracing::debug!(errno = e.raw_os_error(), "the readahead of the mount stays as the system set it");
    }
}

/// The source as /proc/mounts can hold it: fusermount divides options at commas.
pub(super) fn source_name(source: &str) -> String {
    source.replace(',', "%2C").replace('\\', "%5C")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_with_escapes_and_optional_fields() {
        let table = b"22 1 0:21 / /proc rw,nosuid shared:5 master:2 - proc proc rw\n\
            100 22 0:57 / /mnt/a\\040b rw,relatime - fuse.smpfs dir:///x rw,user_id=0\n\
            broken\n";
        let lines = parse_mountinfo(table);
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[1].dev.as_str(), lines[1].dir.as_path()), ("0:57", Path::new("/mnt/a b")));
        assert_eq!((lines[1].fs_type.as_str(), lines[1].source.as_str(), lines[1].user), ("fuse.smpfs", "dir:///x", Some(0)));
        assert_eq!((lines[0].source.as_str(), lines[0].user), ("proc", None));
        assert_eq!(connection_file(&lines[1].dev, "waiting"), Path::new("/sys/fs/fuse/connections/57/waiting"));
    }

    #[test]
    fn a_backslash_that_escapes_nothing_stays() {
        assert_eq!(unescape(b"a\\134b\\9"), b"a\\b\\9");
        assert_eq!(unescape(b"\\04"), b"\\04");
    }

    #[test]
    fn a_missing_mount_point_is_a_sentence() {
        let e = prepare(Path::new("/nowhere/at/all")).unwrap_err();
        assert_eq!(e.kind(), Kind::NotFound);
        assert!(e.to_string().contains("does not exist"), "{e}");
        let e = prepare(Path::new("/proc/self/mountinfo")).unwrap_err();
        assert_eq!(e.kind(), Kind::NotDir, "{e}");
    }

    #[test]
    fn a_source_survives_the_option_list() {
        assert_eq!(source_name("s3://b/a,b"), "s3://b/a%2Cb");
    }
}
