//! The helpers of mount(8): the real binaries, called directly and by the real mount(8), with a program in place of `smpfs` that
//! records how it was called. Belongs to the package in mount-helper/.

#![allow(clippy::unwrap_used)] // helpers of tests stop at the first surprise, as tests do

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

/// A scratch directory with a recorder that is called `smpfs`.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let world = World { dir: tempfile::tempdir().unwrap() };
        let script = format!(
            "#!/bin/sh\nfor word; do echo \"$word\"; done > {0}/args\necho \"$HOME:$PATH\" > {0}/env\nexit $(cat {0}/exit)\n",
            world.dir.path().display()
        );
        std::fs::write(world.path("smpfs"), script).unwrap();
        std::fs::set_permissions(world.path("smpfs"), PermissionsExt::from_mode(0o755)).unwrap();
        world.exits_with(0);
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn exits_with(&self, code: u8) {
        std::fs::write(self.path("exit"), code.to_string()).unwrap();
    }

    /// Calls a helper as systemd does: with nothing in the environment.
    fn call(&self, helper: &str, words: &[&str]) -> Output {
        Command::new(helper).env_clear().env("SMPFS_BIN", self.path("smpfs")).args(words).output().unwrap()
    }

    fn recorded(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("args")).unwrap_or_default();
        let _ = std::fs::remove_file(self.path("args"));
        text.lines().map(str::to_owned).collect()
    }
}

const MOUNT: &str = env!("CARGO_BIN_EXE_mount-smpfs");
const UMOUNT: &str = env!("CARGO_BIN_EXE_umount-smpfs");

#[test]
fn mount_passes_everything_on_and_sets_up_a_bare_environment() {
    let world = World::new();
    let out = world.call(MOUNT, &["work-s3:/", "/mnt/w x", "-sn", "-o", "rw,_netdev,profile=\"a,b\"", "-t", "smpfs"]);
    assert_eq!(out.status.code(), Some(0));
    assert_eq!(world.recorded(), ["mount", "-o", "rw,_netdev,profile=\"a,b\"", "--sloppy", "--", "work-s3:/", "/mnt/w x"]);
    let env = std::fs::read_to_string(world.path("env")).unwrap();
    let (home, path) = env.trim_end().split_once(':').unwrap();
    assert!(home.starts_with('/') && path.split(':').any(|p| p == "/usr/bin"), "{env}");
}

#[test]
fn exit_codes_become_those_of_mount() {
    let world = World::new();
    for (smpfs, mount) in [(0, 0), (1, 32), (2, 1), (3, 32), (4, 32), (7, 32), (101, 4)] {
        world.exits_with(smpfs);
        assert_eq!(world.call(MOUNT, &["a", "b"]).status.code(), Some(mount), "{smpfs}");
    }
    assert_eq!(world.call(MOUNT, &["only-a-spec"]).status.code(), Some(1));
    assert_eq!(world.call(MOUNT, &["a", "b", "-x"]).status.code(), Some(1));
    let missing = Command::new(MOUNT).env_clear().env("SMPFS_BIN", "/no/such/smpfs").args(["a", "b"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(2));
}

#[test]
fn a_secret_among_the_options_goes_no_further() {
    let world = World::new();
    let out = world.call(MOUNT, &["a", "b", "-o", "ro,passphrase=geheim"]);
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(world.recorded(), Vec::<String>::new());
    assert!(!String::from_utf8_lossy(&out.stderr).contains("geheim"));
}

#[test]
fn umount_waits_for_smpfs_and_never_comes_back_to_itself() {
    let world = World::new();
    assert_eq!(world.call(UMOUNT, &["/mnt/w", "-n", "-t", "fuse.smpfs"]).status.code(), Some(0));
    assert_eq!(world.recorded(), ["unmount", "--", "/mnt/w"]);
    world.exits_with(6);
    assert_eq!(world.call(UMOUNT, &["/mnt/w"]).status.code(), Some(32), "uploads are not finished");
    assert_eq!(world.call(UMOUNT, &["-f", "/mnt/w"]).status.code(), Some(0), "nobody asked to wait");
    world.recorded();

    // No process of smpfs there: umount(8) itself, and with -i, so that it does not call this helper.
    world.exits_with(9);
    let script = format!("#!/bin/sh\necho \"$@\" > {}/umount-args\nexit 32\n", world.dir.path().display());
    std::fs::write(world.path("umount"), script).unwrap();
    std::fs::set_permissions(world.path("umount"), PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", world.dir.path().display());
    let out =
        Command::new(UMOUNT).env_clear().env("SMPFS_BIN", world.path("smpfs")).env("PATH", path).args(["-l", "/m"]).output();
    assert_eq!(out.unwrap().status.code(), Some(32));
    assert_eq!(std::fs::read_to_string(world.path("umount-args")).unwrap(), "-i -l -- /m\n");
}

#[test]
fn smpfs_is_found_beside_the_helper_even_through_a_link() {
    let world = World::new();
    let (bin, sbin) = (world.path("bin"), world.path("sbin"));
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::create_dir_all(&sbin).unwrap();
    // Not by this process: what another thread forks meanwhile would hold the copy open for writing, and nobody could run it.
    assert!(Command::new("cp").arg(MOUNT).arg(bin.join("mount-smpfs")).status().unwrap().success());
    std::fs::rename(world.path("smpfs"), bin.join("smpfs")).unwrap();
    std::os::unix::fs::symlink(bin.join("mount-smpfs"), sbin.join("mount.smpfs")).unwrap();
    let out = Command::new(sbin.join("mount.smpfs")).env_clear().args(["s3://b", "/m"]).output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(world.recorded(), ["mount", "--", "s3://b", "/m"]);
}

/// `mount -t smpfs` and a line of an fstab, through the real mount(8), in a mount namespace of its own where /sbin has the helper.
/// Skipped (and said so) without root or overlayfs.
#[test]
fn the_real_mount_calls_the_helper() {
    let world = World::new();
    std::fs::create_dir(world.path("m")).unwrap();
    let m = world.path("m").display().to_string();
    std::fs::write(
        world.path("fstab"),
        format!("work-s3:/ {m} smpfs _netdev,nofail,noauto,x-systemd.automount,ro,config=/etc/x 0 0\n"),
    )
    .unwrap();
    let script = r#"
        set -e
        t=$(mktemp -d) && mount -t tmpfs none "$t" && mkdir "$t/up" "$t/work" || exit 77
        sbin=$(readlink -f /sbin)
        mount -t overlay overlay -o "lowerdir=$sbin,upperdir=$t/up,workdir=$t/work" "$sbin" || exit 77
        ln -s "$HELPER" "$sbin/mount.smpfs"
        mount -t smpfs s3://b/p "$DIR/m" -o 'rw,_netdev,allow_other,nosuid,profile="a,b"'
        mv "$DIR/args" "$DIR/args1"
        mount -T "$DIR/fstab" "$DIR/m"
        mv "$DIR/args" "$DIR/args2"
        echo 4 > "$DIR/exit"
        mount -t smpfs s3://b/p "$DIR/m" || echo "$?" > "$DIR/code"
    "#;
    let mut c = Command::new("unshare");
    c.args(["--mount", "--propagation", "private", "/bin/sh", "-c", script]);
    let out = c.env("HELPER", MOUNT).env("DIR", world.dir.path()).env("SMPFS_BIN", world.path("smpfs")).output();
    let out = match out {
        Ok(out) if out.status.success() => out,
        Ok(out) if nix_root() && !matches!(out.status.code(), Some(77 | 1)) => {
            panic!("{}", String::from_utf8_lossy(&out.stderr));
        }
        other => {
            println!("skipped: mount(8) was not tried; it needs root and overlayfs: {other:?}");
            return;
        }
    };
    let lines = |name: &str| -> Vec<String> {
        std::fs::read_to_string(world.path(name)).unwrap_or_default().lines().map(str::to_owned).collect()
    };
    let typed = lines("args1");
    assert_eq!(
        (typed[0].as_str(), &typed[typed.len() - 3..]),
        ("mount", &["--".to_owned(), "s3://b/p".into(), m.clone()][..]),
        "{out:?}"
    );
    for part in ["nosuid", "allow_other", "profile=\"a,b\""] {
        assert!(typed[2].contains(part), "{typed:?}");
    }
    let fstab = lines("args2");
    assert_eq!(fstab[fstab.len() - 2..], ["work-s3:/".to_owned(), m]);
    assert!(fstab[2].contains("ro") && fstab[2].contains("config=/etc/x"), "{fstab:?}");
    assert_eq!(lines("code"), ["32"]);
}

fn nix_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}
