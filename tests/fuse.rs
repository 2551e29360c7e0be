//! Real kernel mounts of the reference filesystem through `smpfs::fuse`, with the control tree in front.
//!
//! Where there is no usable /dev/fuse every test prints `skipped: ...` and the reason.
#![allow(clippy::unwrap_used)]

mod support;

use proptest::prelude::*;
use smpfs::error::Kind;
use smpfs::fuse::{MountOptions, clear_stale, mount};
use smpfs::ops::*;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use support::model::{Fault, ModelFs};
use support::mount::{LONG, Mount, errno, mount_with, plain, until, why_not};
use support::opgen;

#[test]
fn files_are_written_and_read_back() {
    need_fuse!();
    let m = plain();
    let data: Vec<u8> = (0..3_000_001u32).map(|i| (i * 31 % 251) as u8).collect();
    fs::write(m.path("f"), &data).unwrap();
    assert!(fs::read(m.path("f")).unwrap() == data);
    assert_eq!(fs::metadata(m.path("f")).unwrap().len(), data.len() as u64);

    let mut f = OpenOptions::new().append(true).read(true).open(m.path("f")).unwrap();
    f.write_all(b"end").unwrap();
    f.seek(SeekFrom::End(-4)).unwrap();
    let mut tail = Vec::new();
    f.read_to_end(&mut tail).unwrap();
    assert_eq!(tail[1..], *b"end");
    f.set_len(10).unwrap();
    f.sync_all().unwrap();
    assert_eq!(fs::read(m.path("f")).unwrap(), data[..10]);
    f.set_len(20).unwrap();
    assert_eq!(fs::read(m.path("f")).unwrap()[10..], [0; 10]);
    // O_TRUNC.
    fs::write(m.path("f"), b"new").unwrap();
    assert_eq!(fs::read(m.path("f")).unwrap(), b"new");
    // copy_file_range is not offered; the kernel falls back.
    assert_eq!(fs::copy(m.path("f"), m.path("g")).unwrap(), 3);
    assert_eq!(fs::read(m.path("g")).unwrap(), b"new");
    drop(f);
    m.end();
}

#[test]
fn names_of_all_kinds() {
    need_fuse!();
    let m = plain();
    fs::create_dir_all(m.path("d/e")).unwrap();
    assert_eq!(errno(fs::remove_dir(m.path("d"))), libc::ENOTEMPTY);
    std::os::unix::fs::symlink("d/e", m.path("link")).unwrap();
    assert_eq!(fs::read_link(m.path("link")).unwrap(), Path::new("d/e"));
    fs::write(m.path("link/inside"), b"x").unwrap();
    assert_eq!(fs::read(m.path("d/e/inside")).unwrap(), b"x");
    fs::hard_link(m.path("d/e/inside"), m.path("second")).unwrap();
    assert_eq!(fs::metadata(m.path("second")).unwrap().nlink(), 2);
    assert_eq!(errno(fs::hard_link(m.path("d"), m.path("third"))), libc::EPERM);
    nix::unistd::mkfifo(&m.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(fs::symlink_metadata(m.path("fifo")).unwrap().file_type().is_fifo());
    let socket = std::os::unix::net::UnixListener::bind(m.path("socket")).unwrap();
    assert!(fs::symlink_metadata(m.path("socket")).unwrap().file_type().is_socket());
    drop(socket);
    assert_eq!(errno(File::open(m.path("x".repeat(256).as_str()))), libc::ENAMETOOLONG);
    fs::write(m.path(&"y".repeat(255)), b"").unwrap();
    assert_eq!(errno(fs::write(m.path("nowhere/f"), b"")), libc::ENOENT);
    m.end();
}

#[test]
fn attributes_are_set_and_kept() {
    need_fuse!();
    let m = plain();
    fs::write(m.path("f"), b"x").unwrap();
    fs::set_permissions(m.path("f"), PermissionsExt::from_mode(0o4640)).unwrap();
    std::os::unix::fs::chown(m.path("f"), Some(12), Some(34)).unwrap();
    let meta = fs::metadata(m.path("f")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (12, 34));
    let f = OpenOptions::new().write(true).open(m.path("f")).unwrap();
    // A quarter second past a whole one, before 1970.
    let old = UNIX_EPOCH - Duration::from_millis(1750);
    for t in [old, UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789)] {
        f.set_modified(t).unwrap();
        assert_eq!(fs::metadata(m.path("f")).unwrap().modified().unwrap(), t);
    }
    assert!(Command::new("touch").arg(m.path("f")).status().unwrap().success());
    let age = SystemTime::now().duration_since(fs::metadata(m.path("f")).unwrap().modified().unwrap());
    assert!(age.unwrap() < LONG);
    let stat = nix::sys::statvfs::statvfs(m.dir.path()).unwrap();
    assert_eq!((stat.block_size(), stat.name_max()), (4096, 255));
    drop(f);
    m.end();
}

#[test]
fn renames_keep_their_promises() {
    need_fuse!();
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    let m = plain();
    let rename = |a: &str, b: &str, flags| renameat2(AT_FDCWD, &m.path(a), AT_FDCWD, &m.path(b), flags).map_err(|e| e as i32);
    fs::write(m.path("a"), b"a").unwrap();
    fs::write(m.path("b"), b"b").unwrap();
    let open_b = File::open(m.path("b")).unwrap();
    assert_eq!(rename("a", "b", RenameFlags::RENAME_NOREPLACE), Err(libc::EEXIST));
    rename("a", "b", RenameFlags::RENAME_EXCHANGE).unwrap();
    assert_eq!(fs::read(m.path("a")).unwrap(), b"b");
    rename("a", "b", RenameFlags::empty()).unwrap();
    assert_eq!(fs::read(m.path("b")).unwrap(), b"b");
    assert!(!m.path("a").exists());
    fs::create_dir_all(m.path("d/e")).unwrap();
    assert_eq!(rename("d", "d/e/f", RenameFlags::empty()), Err(libc::EINVAL));
    assert_eq!(rename("b", "d", RenameFlags::empty()), Err(libc::EISDIR));
    assert_eq!(rename("d", "b", RenameFlags::empty()), Err(libc::ENOTDIR));
    fs::create_dir(m.path("empty")).unwrap();
    rename("d", "empty", RenameFlags::empty()).unwrap();
    assert!(m.path("empty/e").is_dir());
    drop(open_b);
    m.end();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 500, ..ProptestConfig::default() })]

    /// What a program sees through the kernel is what the filesystem answers: same sequences, same outcomes.
    #[test]
    fn the_kernel_sees_what_the_model_says(sequence in opgen::ops(60)) {
        if let Some(why) = why_not() {
            println!("skipped: {why}");
            return Ok(());
        }
        nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        let m = plain();
        let seen = opgen::run_dir(m.dir.path(), &sequence);
        let said = opgen::run(&ModelFs::new(), &sequence);
        for (i, (a, b)) in seen.iter().zip(&said).enumerate() {
            prop_assert!(a == b, "operation {i} {:?}: through the kernel {a:?}, directly {b:?}", sequence[i]);
        }
        m.end();
    }
}

#[test]
fn a_directory_of_20_000_names_is_listed_whole() {
    need_fuse!();
    let m = plain();
    let names: BTreeSet<String> = (0..20_000).map(|i| format!("file-{i:05}-with-a-longer-name")).collect();
    for name in &names {
        m.model.add_behind(ROOT, name.as_bytes());
    }
    let listed = |with_attributes: bool| {
        let mut count = 0;
        let mut set = BTreeSet::new();
        for e in fs::read_dir(m.dir.path()).unwrap() {
            let e = e.unwrap();
            if with_attributes {
                assert!(e.metadata().unwrap().is_file());
            }
            count += 1;
            set.insert(e.file_name().into_string().unwrap());
        }
        assert_eq!(count, set.len(), "a name came twice");
        set
    };
    assert!(listed(false) == names);
    assert!(listed(true) == names);
    m.end();
}

#[test]
fn a_hanging_read_is_eio_at_its_deadline_and_only_that() {
    need_fuse!();
    need_connections!();
    let opts = MountOptions { deadline: Duration::from_millis(1500), ..MountOptions::default() };
    let m = mount_with(ModelFs::new().direct_io(), opts);
    fs::write(m.path("good"), b"good").unwrap();
    fs::write(m.path("bad"), b"bad").unwrap();
    let bad = File::open(m.path("bad")).unwrap();
    m.model.break_inode(m.model.ino_of(b"bad").unwrap(), Fault::Hang);
    let reader = std::thread::spawn(move || errno(bad.read_at(&mut [0; 3], 0)));
    until("the read reaching us", || m.session.stats().in_flight > 0);
    assert_eq!(fs::read(m.path("good")).unwrap(), b"good");
    assert_eq!(fs::read_dir(m.dir.path()).unwrap().count(), 2);
    assert_eq!(reader.join().unwrap(), libc::EIO);
    assert_eq!(m.session.stats().late, 1);
    // The kernel has its answer; the operation itself goes on and is counted.
    until("the kernel waiting for nothing", || m.session.waiting().unwrap() == 0);
    assert_eq!(m.session.stats().in_flight, 1);
    // An open that succeeds too late is closed again.
    assert_eq!(errno(File::open(m.path("bad"))), libc::EIO);
    m.model.heal();
    assert!(m.session.drained(LONG));
    assert_eq!(fs::read(m.path("bad")).unwrap(), b"bad");
    m.end();
}

#[test]
fn a_process_that_hangs_in_an_open_can_be_killed() {
    need_fuse!();
    let m = mount_with(ModelFs::new(), MountOptions::default());
    fs::write(m.path("bad"), b"bad").unwrap();
    m.model.break_inode(m.model.ino_of(b"bad").unwrap(), Fault::Hang);
    until("the release of what was written", || m.model.held().0 == 0);
    assert!(m.session.drained(LONG));
    let mut cat = Command::new("cat").arg(m.path("bad")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the open reaching us", || m.session.stats().in_flight > 0);
    cat.kill().unwrap();
    let mut status = None;
    until("the end of the killed process", || {
        status = cat.try_wait().unwrap();
        status.is_some()
    });
    assert!(!status.unwrap().success());
    // Long before the deadline of two minutes.
    let stats = m.session.stats();
    assert_eq!((stats.killed, stats.late), (1, 0));
    m.model.heal();
    assert!(m.session.drained(LONG));
    m.end();
}

#[test]
fn a_panic_is_one_eio() {
    need_fuse!();
    let m = mount_with(ModelFs::new().direct_io(), MountOptions::default());
    fs::write(m.path("bad"), b"bad").unwrap();
    let f = OpenOptions::new().read(true).write(true).open(m.path("bad")).unwrap();
    m.model.break_inode(m.model.ino_of(b"bad").unwrap(), Fault::Panic);
    assert_eq!(errno(f.read_at(&mut [0; 3], 0)), libc::EIO);
    assert_eq!(errno(f.write_at(b"x", 0)), libc::EIO);
    assert_eq!(m.session.stats().panics, 2);
    m.model.heal();
    let mut buf = [0; 3];
    f.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"bad");
    drop(f);
    m.end();
}

#[test]
fn an_unmount_by_somebody_else_is_noticed() {
    need_fuse!();
    let m = plain();
    assert!(!m.session.is_over() && m.session.is_mounted());
    assert!(Command::new("umount").arg(m.dir.path()).status().unwrap().success());
    assert!(m.session.wait(LONG));
    assert!(!m.session.is_mounted());
    // Fine twice.
    m.session.unmount().unwrap();
    m.end();
}

#[test]
fn a_mount_in_use_is_busy_and_can_be_detached() {
    need_fuse!();
    let m = plain();
    fs::write(m.path("f"), b"still here").unwrap();
    let mut f = File::open(m.path("f")).unwrap();
    let e = m.session.unmount().unwrap_err();
    assert_eq!(e.kind(), Kind::Busy, "{e}");
    m.session.detach().unwrap();
    assert!(!m.session.is_mounted() && !m.session.is_over());
    let mut text = String::new();
    f.read_to_string(&mut text).unwrap();
    assert_eq!(text, "still here");
    assert!(m.session.invalidate_all() >= 1);
    drop(f);
    assert!(m.session.wait(LONG) && m.session.drained(LONG));
}

#[test]
fn an_aborted_mount_is_stale_and_the_next_mount_clears_it() {
    need_fuse!();
    need_connections!();
    let m = plain();
    m.session.abort().unwrap();
    assert!(m.session.wait(LONG));
    assert_eq!(errno(fs::metadata(m.path("f"))), libc::ENOTCONN);
    assert!(m.session.is_mounted());
    let control = ModelFs::new();
    control.add_behind(ROOT, b"fresh");
    let rt = tokio::runtime::Runtime::new().unwrap();
    let next = mount(Arc::new(control), m.dir.path(), &MountOptions::default(), rt.handle().clone()).unwrap();
    assert!(m.path("fresh").is_file());
    assert!(!m.session.is_mounted(), "the old session must not take the new mount for its own");
    m.session.unmount().unwrap();
    assert!(next.is_mounted());
    let e = mount(Arc::new(ModelFs::new()), m.dir.path(), &MountOptions::default(), rt.handle().clone()).err().unwrap();
    assert_eq!(e.kind(), Kind::Busy, "{e}");
    assert!(!clear_stale(m.dir.path()).unwrap(), "a live mount is not stale");
    next.unmount().unwrap();
    assert!(next.wait(LONG));
}

#[test]
fn without_the_list_of_connections_abort_forces() {
    need_fuse!();
    let m = plain();
    fs::write(m.path("f"), b"x").unwrap();
    let f = File::open(m.path("f")).unwrap();
    m.session.force().unwrap();
    assert!(m.session.wait(LONG));
    assert!(errno(f.metadata()) != 0);
    // It stays where it was as long as something is open.
    drop(f);
}

#[test]
fn options_reach_the_kernel() {
    need_fuse!();
    let opts = MountOptions { source: "dir:///tmp/a,b".into(), read_only: true, no_exec: true, ..MountOptions::default() };
    let m = mount_with(ModelFs::new(), opts);
    let table = fs::read_to_string("/proc/mounts").unwrap();
    let line = table.lines().find(|l| l.contains(&*m.dir.path().to_string_lossy())).unwrap();
    assert!(line.starts_with("dir:///tmp/a%2Cb ") && line.contains(" fuse.smpfs "), "{line}");
    for option in ["ro", "nosuid", "nodev", "noexec", "default_permissions"] {
        assert!(line.contains(option), "{option} is missing in {line}");
    }
    assert!(!line.contains("allow_other"), "{line}");
    assert_eq!(errno(fs::write(m.path("f"), b"")), libc::EROFS);
    let dev = fs::metadata(m.dir.path()).unwrap().dev();
    let bdi = format!("/sys/class/bdi/{}:{}/read_ahead_kb", nix::sys::stat::major(dev), nix::sys::stat::minor(dev));
    match fs::read_to_string(bdi) {
        Ok(kib) => assert_eq!(kib.trim(), "1024"),
        Err(e) => println!("skipped: readahead cannot be seen here: {e}"),
    }
    m.end();
}

#[test]
fn the_control_directory_is_hidden_and_readable() {
    need_fuse!();
    let opts = MountOptions { allow_other: true, ..MountOptions::default() };
    let m = mount_with(ModelFs::new(), opts);
    fs::set_permissions(m.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(fs::read_dir(m.dir.path()).unwrap().count(), 0);
    let read = |name: &str| fs::read_to_string(m.path(".smpfs").join(name)).unwrap();
    assert_eq!(read("version"), format!("smpfs {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(read("status"), "Status: all is well\n");
    assert_eq!(read("audit"), "Audit: all is well\n");
    assert!(read("README").contains("quarantine"));
    assert_eq!(fs::metadata(m.path(".smpfs/version")).unwrap().len() as usize, read("version").len());
    assert_eq!(fs::read_dir(m.path(".smpfs")).unwrap().count(), 6);
    let cat = |name: &str, uid| {
        Command::new("cat").arg(m.path(".smpfs").join(name)).uid(uid).gid(uid).stderr(Stdio::null()).output().unwrap()
    };
    assert_eq!(cat("status.json", 65_534).stdout, b"StatusJson: all is well\n");
    assert!(!cat("audit", 65_534).status.success());
    assert!(cat("audit", 0).status.success());
    // Nobody makes, renames or removes it.
    assert_eq!(errno(fs::create_dir(m.path(".smpfs"))), libc::EEXIST);
    assert_eq!(errno(fs::write(m.path(".smpfs/new"), b"")), libc::EPERM);
    assert_eq!(errno(fs::write(m.path(".smpfs/status"), b"")), libc::EACCES);
    assert_eq!(errno(fs::rename(m.path(".smpfs"), m.path("x"))), libc::EPERM);
    assert_eq!(errno(fs::remove_file(m.path(".smpfs/status"))), libc::EPERM);
    assert!(errno(fs::remove_dir(m.path(".smpfs"))) != 0);
    assert!(errno(fs::set_permissions(m.path(".smpfs/audit"), PermissionsExt::from_mode(0o777))) != 0);
    m.end();
}

#[test]
fn the_notifier_makes_the_kernel_forget() {
    need_fuse!();
    let model = ModelFs::new().keep_cache().ttl(Duration::from_secs(3600));
    let m = mount_with(model, MountOptions::default());
    fs::write(m.path("f"), b"old content").unwrap();
    fs::write(m.path("gone"), b"").unwrap();
    assert_eq!(fs::read(m.path("f")).unwrap(), b"old content");
    let ino = m.model.ino_of(b"f").unwrap();
    m.model.change_behind(ino, b"NEW CONTENT");
    assert_eq!(fs::read(m.path("f")).unwrap(), b"old content", "the kernel has it in its cache");
    let queue = m.model.invalidations().unwrap();
    queue.send(Invalidate::Inode(ino));
    until("new content", || fs::read(m.path("f")).unwrap() == b"NEW CONTENT");
    m.model.change_behind(ino, b"third thing");
    queue.send(Invalidate::All);
    until("third content", || fs::read(m.path("f")).unwrap() == b"third thing");

    m.model.remove_behind(ROOT, b"gone");
    assert!(m.path("gone").exists(), "the kernel believes in the name");
    queue.send(Invalidate::Entry(ROOT, b"gone".to_vec()));
    until("the name being gone", || !m.path("gone").exists());
    m.end();
}

#[test]
fn an_unlinked_file_lives_as_long_as_it_is_open() {
    need_fuse!();
    let m = plain();
    let mut f = OpenOptions::new().read(true).write(true).create_new(true).open(m.path("f")).unwrap();
    f.write_all(b"before").unwrap();
    fs::remove_file(m.path("f")).unwrap();
    assert!(!m.path("f").exists());
    f.write_all(b" and after").unwrap();
    f.rewind().unwrap();
    let mut text = String::new();
    f.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before and after");
    assert_eq!(f.metadata().unwrap().nlink(), 0);
    drop(f);
    m.end();
}

/// Runs a Python script with the mount as its argument, or says that it was skipped.
fn python(m: &Mount, script: &str) {
    match Command::new("python3").arg("-c").arg(script).arg(m.dir.path()).status() {
        Ok(status) => assert!(status.success(), "the script failed"),
        Err(e) => println!("skipped: python3: {e}"),
    }
}

#[test]
fn extended_attributes_of_all_sizes() {
    need_fuse!();
    let m = plain();
    let script = r#"
import os, sys, errno
f = sys.argv[1] + "/f"
open(f, "w").close()
for size in (0, 1, 255, 4096, 60000):
    os.setxattr(f, "user.x", b"v" * size)
    assert os.getxattr(f, "user.x") == b"v" * size, size
for i in range(200):
    os.setxattr(f, "user.name-%03d" % i, b"%d" % i)
assert len(os.listxattr(f)) == 201
os.removexattr(f, "user.x")
def code(call):
    try:
        call()
    except OSError as e:
        return e.errno
assert code(lambda: os.getxattr(f, "user.x")) == errno.ENODATA
assert code(lambda: os.removexattr(f, "user.x")) == errno.ENODATA
assert code(lambda: os.setxattr(f, "user.name-000", b"", os.XATTR_CREATE)) == errno.EEXIST
assert code(lambda: os.setxattr(f, "user.none", b"", os.XATTR_REPLACE)) == errno.ENODATA
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
buf = ctypes.create_string_buffer(1)
assert libc.getxattr(f.encode(), b"user.name-100", None, 0) == 3
assert libc.getxattr(f.encode(), b"user.name-100", buf, 1) == -1 and ctypes.get_errno() == errno.ERANGE
"#;
    python(&m, script);
    m.end();
}

#[test]
fn mmap_large_writes_holes_and_locks() {
    need_fuse!();
    let m = plain();
    let script = r#"
import fcntl, mmap, os, sys
f = sys.argv[1] + "/f"
data = bytes(range(256)) * 4096 * 9
fd = os.open(f, os.O_RDWR | os.O_CREAT)
assert os.pwrite(fd, data, 0) == len(data)
with mmap.mmap(fd, len(data)) as view:
    assert view[:] == data
    view[5:8] = b"abc"
    view.flush()
assert os.pread(fd, 3, 5) == b"abc"
os.posix_fallocate(fd, 0, len(data) + 1000)
assert os.fstat(fd).st_size == len(data) + 1000
assert os.lseek(fd, 0, os.SEEK_DATA) == 0 and os.lseek(fd, 0, os.SEEK_HOLE) == len(data) + 1000
fcntl.flock(fd, fcntl.LOCK_EX)
fcntl.lockf(fd, fcntl.LOCK_EX)
other = os.open(f, os.O_RDWR)
try:
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    raise SystemExit("two exclusive locks")
except BlockingIOError:
    pass
import termios
try:
    fcntl.ioctl(fd, termios.TCGETS, b"\0" * 60)
    raise SystemExit("a file is no terminal")
except OSError as e:
    assert e.errno == 25, e
with open(sys.argv[1] + "/.smpfs/version", "rb") as v, mmap.mmap(v.fileno(), 5, access=mmap.ACCESS_READ) as view:
    assert view[:5] == b"smpfs"
"#;
    python(&m, script);
    m.end();
}

#[test]
fn more_parallel_writers_than_there_is_room_for_all_succeed() {
    need_fuse!();
    // Less room than is written at once: writers wait, none fails.
    let opts = MountOptions { max_write_bytes: 2 << 20, max_in_flight: 4, ..MountOptions::default() };
    let m = mount_with(ModelFs::new(), opts);
    std::thread::scope(|s| {
        for i in 0..64 {
            let path = m.path(&format!("f{i}"));
            s.spawn(move || fs::write(path, vec![i as u8; 1_500_000]).unwrap());
        }
    });
    for i in 0..64 {
        let data = fs::read(m.path(&format!("f{i}"))).unwrap();
        assert!(data.len() == 1_500_000 && data.iter().all(|b| *b == i as u8));
    }
    m.end();
}

#[test]
fn a_mount_that_cannot_be_says_why() {
    need_fuse!();
    let rt = tokio::runtime::Runtime::new().unwrap();
    let e = mount(Arc::new(ModelFs::new()), Path::new("/no/such/dir"), &MountOptions::default(), rt.handle().clone());
    let e = e.err().unwrap();
    assert!(e.kind() == Kind::NotFound && e.to_string().contains("mkdir -p"), "{e}");
    let file = tempfile::NamedTempFile::new().unwrap();
    let e = mount(Arc::new(ModelFs::new()), file.path(), &MountOptions::default(), rt.handle().clone()).err().unwrap();
    assert_eq!(e.kind(), Kind::NotDir, "{e}");
}

/// Set in the copy of this program that runs as an ordinary user.
const AS_USER: &str = "SMPFS_TEST_AS_USER";

#[test]
fn an_ordinary_user_mounts_through_fusermount3() {
    if std::env::var_os(AS_USER).is_some() {
        return mounted_by_a_user();
    }
    need_fuse!();
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    fs::copy(std::env::current_exe().unwrap(), dir.path().join("test")).unwrap();
    // Some containers keep /dev/fuse to root: in a mount namespace of its own the test gives itself the usual rights.
    let script = "mknod -m 666 fuse c 10 229 && mount --bind fuse /dev/fuse && fusermount3 -V >&2 || exit 77\n\
        exec setpriv --reuid 65534 --regid 65534 --clear-groups ./test --exact --nocapture \
        an_ordinary_user_mounts_through_fusermount3";
    let mut child = Command::new("unshare");
    child.args(["--mount", "sh", "-c", script]).env(AS_USER, "1").current_dir(dir.path());
    match child.status().map(|s| s.code()) {
        Ok(Some(0)) => {}
        Ok(Some(101)) => panic!("the test failed as an ordinary user"),
        other => println!("skipped: no namespace with /dev/fuse for users, or no fusermount3: {other:?}"),
    }
}

fn mounted_by_a_user() {
    let m = plain();
    fs::write(m.path("f"), b"mine").unwrap();
    assert_eq!(fs::read(m.path("f")).unwrap(), b"mine");
    assert_eq!(fs::read_to_string(m.path(".smpfs/version")).unwrap().split(' ').next(), Some("smpfs"));
    let f = File::open(m.path("f")).unwrap();
    let e = m.session.unmount().unwrap_err();
    assert_eq!(e.kind(), Kind::Busy, "{e}");
    drop(f);
    m.end();

    let (dir, rt) = (tempfile::tempdir().unwrap(), tokio::runtime::Runtime::new().unwrap());
    let opts = MountOptions { allow_other: true, ..MountOptions::default() };
    match mount(Arc::new(ModelFs::new()), dir.path(), &opts, rt.handle().clone()) {
        Ok(session) => session.unmount().unwrap(),
        Err(e) => assert!(e.kind() == Kind::Denied && e.to_string().contains("user_allow_other"), "{e}"),
    }
    let e = mount(Arc::new(ModelFs::new()), Path::new("/usr"), &MountOptions::default(), rt.handle().clone()).err().unwrap();
    assert_eq!(e.kind(), Kind::Denied, "{e}");
}
