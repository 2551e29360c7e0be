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
