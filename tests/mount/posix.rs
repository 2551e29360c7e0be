//! What the kernel and smpfs make of modes, owners and flags together: as a user without rights, on a mount for all users.

use super::world::*;
use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown};
use std::path::Path;

/// Somebody without rights.
const USER: u32 = 65_534;

/// Runs a script as [`USER`] with `$1`; its exit status.
fn as_user(script: &str, file: &Path) -> i32 {
    let mut c = std::process::Command::new("setpriv");
    c.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", script, "sh"]).arg(file);
    c.output().unwrap().status.code().unwrap()
}

fn mode(file: &Path) -> u32 {
    fs::symlink_metadata(file).unwrap().mode() & 0o7777
}

#[test]
fn privileges_go_when_somebody_else_changes_a_file() {
    need_mounts!("privileges_go_when_somebody_else_changes_a_file");
    let world = World::dir();
    fs::set_permissions(world.path(""), Permissions::from_mode(0o755)).unwrap();
    world.init(&[]);
    let mount = world.mount(&["--allow-other"]);
    let file = world.file("f");
    let with_mode = |mode: u32| {
        fs::write(&file, vec![7; 10_000]).unwrap();
        chown(&file, Some(USER), Some(USER)).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
    };
    for script in
        ["printf x | dd of=\"$1\" conv=notrunc", "truncate -s 5 \"$1\"", "fallocate -p -o 0 -l 4096 \"$1\"", "chown 65534 \"$1\""]
    {
        with_mode(0o6777);
        assert_eq!(as_user(script, &file), 0, "{script}");
        assert_eq!(mode(&file), 0o777, "{script}");
    }
    // Without the right to execute it, the bit of the group means something else and stays.
    with_mode(0o2767);
    assert_eq!(as_user("truncate -s 5 \"$1\"", &file), 0);
    assert_eq!(mode(&file), 0o2767);
    // Who is privileged keeps them on writes, and loses them with the owner.
    with_mode(0o6777);
    OpenOptions::new().append(true).open(&file).and_then(|mut f| std::io::Write::write_all(&mut f, b"x")).unwrap();
    assert_eq!(mode(&file), 0o6777);
    chown(&file, Some(1), Some(1)).unwrap();
    assert_eq!(mode(&file), 0o777);
    mount.unmount();
}

#[test]
fn directories_pass_on_their_group_and_protect_names() {
    need_mounts!("directories_pass_on_their_group_and_protect_names");
    let world = World::dir();
    fs::set_permissions(world.path(""), Permissions::from_mode(0o755)).unwrap();
    world.init(&[]);
    let mount = world.mount(&["--allow-other"]);
    let team = world.file("team");
    fs::create_dir(&team).unwrap();
    chown(&team, None, Some(1234)).unwrap();
    fs::set_permissions(&team, Permissions::from_mode(0o2777)).unwrap();
    fs::write(team.join("f"), "").unwrap();
    fs::create_dir(team.join("d")).unwrap();
    assert_eq!((fs::metadata(team.join("f")).unwrap().gid(), mode(&team.join("f")) & 0o2000), (1234, 0));
    assert_eq!((fs::metadata(team.join("d")).unwrap().gid(), mode(&team.join("d")) & 0o2000), (1234, 0o2000));
    let shared = world.file("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, Permissions::from_mode(0o1777)).unwrap();
    fs::write(shared.join("mine"), "").unwrap();
    assert_ne!(as_user("rm -f \"$1/mine\"", &shared), 0);
    assert_ne!(as_user("mv \"$1/mine\" \"$1/yours\"", &shared), 0);
    assert!(shared.join("mine").exists());
    std::os::unix::fs::symlink("mine", shared.join("link")).unwrap();
    lchown(shared.join("link"), Some(77), Some(78)).unwrap();
    let (link, file) = (fs::symlink_metadata(shared.join("link")).unwrap(), fs::metadata(shared.join("mine")).unwrap());
    assert_eq!((link.uid(), link.gid(), file.uid()), (77, 78, 0));
    let unnamed = OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).open(&shared);
    assert_eq!(errno(unnamed), libc::EOPNOTSUPP);
    mount.unmount();
}

#[test]
fn a_mount_becomes_read_only_and_writable_again() {
    need_mounts!("a_mount_becomes_read_only_and_writable_again");
    use nix::mount::{MsFlags, mount as mount2};
    let world = World::dir();
    world.init(&[]);
    let mount = world.mount(&[]);
    let (file, other) = (world.file("f"), world.file("g"));
    let remount = |flags: MsFlags| {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME | flags;
        mount2(None::<&str>, &world.mnt(), None::<&str>, flags, None::<&str>)
    };
    let writing = OpenOptions::new().write(true).create_new(true).open(&file).unwrap();
    assert_eq!(remount(MsFlags::MS_RDONLY), Err(nix::Error::EBUSY), "somebody writes");
    std::io::Write::write_all(&mut &writing, b"first").unwrap();
    drop(writing);
    // The kernel counts the file as written for as long as its release is under way.
    until("nothing is open for writing", || remount(MsFlags::MS_RDONLY).is_ok());
    assert_eq!(errno(fs::write(&file, "second")), libc::EROFS);
    assert_eq!(errno(fs::write(&other, "")), libc::EROFS);
    assert_eq!(errno(fs::remove_file(&file)), libc::EROFS);
    assert_eq!(errno(fs::set_permissions(&file, Permissions::from_mode(0o600))), libc::EROFS);
    assert_eq!(fs::read(&file).unwrap(), b"first");
    remount(MsFlags::empty()).unwrap();
    fs::write(&other, "third").unwrap();
    until("nothing is open for writing", || remount(MsFlags::MS_RDONLY).is_ok());
    mount.unmount();
    let mount = world.mount(&["--read-only"]);
    assert_eq!((fs::read(&file).unwrap(), fs::read(&other).unwrap()), (b"first".to_vec(), b"third".to_vec()));
    mount.unmount();
}

#[test]
fn what_fuse_has_no_request_for_is_refused() {
    need_mounts!("what_fuse_has_no_request_for_is_refused");
    let world = World::dir();
    world.init(&[]);
    let mount = world.mount(&[]);
    // FS_IOC_FIEMAP, FICLONE, FS_IOC_GETFLAGS and FS_IOC_ENABLE_VERITY.
    let script = "import fcntl, struct, sys\n\
        f, g = open(sys.argv[1], 'rb'), open(sys.argv[1] + '2', 'wb')\n\
        for file, call, value in ((f, 0xC020660B, bytearray(struct.pack('QQIIII', 0, 1 << 62, 0, 0, 0, 0))), (g, 0x40049409, f.fileno()),\n\
        \x20       (f, 0x80086601, bytearray(8)), (f, 0x40806685, bytearray(128))):\n\
        \x20   try: fcntl.ioctl(file, call, value); print(0)\n\
        \x20   except OSError as e: print(e.errno)\n";
    fs::write(world.file("f"), noise(1, 10_000)).unwrap();
    let mut python = std::process::Command::new("python3");
    python.args(["-c", script]).arg(world.file("f"));
    if python.output().is_err() {
        return skipped("what_fuse_has_no_request_for_is_refused", "there is no python3");
    }
    let said = run(python).ok();
    let answers: Vec<i32> = said.out.split_whitespace().map(|n| n.parse().unwrap()).collect();
    assert_eq!(answers, [libc::EOPNOTSUPP, libc::EOPNOTSUPP, libc::ENOTTY, libc::ENOTTY]);
    mount.unmount();
}
