//! The whole path through the real binary and the real kernel: init, mount, files, status, unmount, signals, a killed daemon.
//! Skipped (and said so) where there is no /dev/fuse.

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for something that takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    dir: tempfile::TempDir,
}

impl World {
    /// A volume in a directory bucket, not mounted. None, with a line that says so, without /dev/fuse.
    fn new(test: &str) -> Option<World> {
        if !Path::new("/dev/fuse").exists() {
            println!("skipped: {test}: there is no /dev/fuse");
            return None;
        }
        let world = World { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir(world.mnt()).unwrap();
        std::fs::write(world.path("pass"), "five random words are better\n").unwrap();
        std::fs::set_permissions(world.path("pass"), PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(world.path("config.toml"), "cache-size = \"64MiB\"\nlog-target = \"file\"\nlog-file = \"${LOG}\"\n")
            .unwrap();
        let bucket = world.bucket();
        world.ok(&["init", &bucket, "--kdf-memory", "64", "--kdf-passes", "1"]);
        Some(world)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Kills the process that serves, and waits until it is gone.
    fn kill(&self) {
        let pid = self.status()["pid"].as_u64().unwrap();
        kill("-KILL", pid);
        until("the process has gone", || !super::world::alive(pid as i32));
    }

    fn mnt(&self) -> PathBuf {
        self.path("mnt")
    }

    fn bucket(&self) -> String {
        format!("dir://{}", self.path("bucket").display())
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_smpfs"));
        c.env_clear().args(words).stdin(Stdio::null());
        for place in ["state", "cache", "runtime"] {
            c.env(format!("SMPFS_{}_DIR", place.to_uppercase()), self.path(place));
        }
        c.env("SMPFS_CONFIG", self.path("config.toml"))
            .env("LOG", self.path("log"))
            .env("SMPFS_PASSPHRASE_FILE", self.path("pass"));
        c.env("PATH", "/usr/bin:/bin");
        c
    }

    fn run(&self, words: &[&str]) -> (i32, String, String) {
        let Output { status, stdout, stderr } = self.command(words).output().unwrap();
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        (status.code().unwrap_or(-1), text(stdout), text(stderr))
    }

    /// Runs and expects exit code 0.
    fn ok(&self, words: &[&str]) -> String {
        let (code, out, err) = self.run(words);
        assert_eq!(code, 0, "{words:?}: {err}\n{}", self.log());
        out
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn mount(&self, more: &[&str]) {
        let (bucket, mnt) = (self.bucket(), self.mnt());
        let words = [&["mount", &bucket, mnt.to_str().unwrap()], more].concat();
        self.ok(&words);
    }

    fn foreground(&self) -> Child {
        let (bucket, mnt) = (self.bucket(), self.mnt());
        let child = self.command(&["mount", "--foreground", &bucket, mnt.to_str().unwrap()]).spawn().unwrap();
        until("it is mounted", || self.mounted());
        child
    }

    fn unmount(&self) {
        self.ok(&["unmount", self.mnt().to_str().unwrap()]);
        assert!(!self.mounted());
    }

    fn mounted(&self) -> bool {
        let at = format!(" {} ", self.mnt().display());
        std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().any(|l| l.contains(&at) && l.contains("fuse.smpfs"))
    }

    fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.ok(&["status", "--json", self.mnt().to_str().unwrap()])).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // After a failed test: never delete below a mount.
        while self.mounted() {
            let _ = Command::new("umount").args(["-i", "-l"]).arg(self.mnt()).status();
        }
    }
}

fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn kill(signal: &str, pid: u64) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

/// Bytes that do not compress or repeat, from a counter.
fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .collect()
}

#[test]
fn files_come_back_after_unmount_and_mount() {
    let Some(world) = World::new("files_come_back") else { return };
    world.mount(&[]);
    let (mnt, big) = (world.mnt(), content(1, 3_000_000));
    std::fs::create_dir(mnt.join("study")).unwrap();
    std::fs::write(mnt.join("study/big"), &big).unwrap();
    std::fs::write(mnt.join("empty"), b"").unwrap();
    std::fs::rename(mnt.join("study/big"), mnt.join("study/renamed")).unwrap();
    let status = world.status();
    assert_eq!((status["mode"].as_str(), status["read_only"].as_bool()), (Some("zero-knowledge"), Some(false)));
    assert_eq!(status["mount_point"].as_str().map(Path::new), Some(mnt.as_path()));
    assert!(world.ok(&["status"]).contains(mnt.to_str().unwrap()));
    world.unmount();
    assert!(std::fs::read_dir(&mnt).unwrap().next().is_none());
    let (code, _, _) = world.run(&["status", mnt.to_str().unwrap()]);
    assert_eq!(code, 9);

    world.mount(&["-o", "ro,_netdev"]);
    assert_eq!(std::fs::read(mnt.join("study/renamed")).unwrap(), big);
    assert_eq!(std::fs::metadata(mnt.join("empty")).unwrap().len(), 0);
    let e = std::fs::write(mnt.join("new"), b"x").unwrap_err();
    assert_eq!(e.raw_os_error(), Some(30), "{e}");
    world.unmount();
}

#[test]
fn the_daemon_holds_no_terminal_and_no_passphrase_and_a_second_mount_is_refused() {
    let Some(world) = World::new("the_daemon_holds_no_terminal") else { return };
    world.mount(&[]);
    let pid = world.status()["pid"].as_u64().unwrap();
    let proc = |file: &str| PathBuf::from(format!("/proc/{pid}/{file}"));
    for fd in 0..3 {
        assert_eq!(std::fs::read_link(proc(&format!("fd/{fd}"))).unwrap(), Path::new("/dev/null"));
    }
    assert_eq!(std::fs::read_link(proc("cwd")).unwrap(), Path::new("/"));
    let limits = std::fs::read_to_string(proc("limits")).unwrap();
    let core = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    for file in ["cmdline", "environ"] {
        let text = std::fs::read(proc(file)).unwrap();
        assert!(!text.windows(10).any(|w| w == b"five rando"), "{file}");
    }
    let (code, _, err) = world.run(&["mount", &world.bucket(), world.mnt().to_str().unwrap()]);
    assert_eq!(code, 7, "{err}");
    world.unmount();
}

#[test]
fn open_files_refuse_an_unmount_and_lazy_takes_it_away() {
    let Some(world) = World::new("open_files_refuse") else { return };
    world.mount(&[]);
    let mnt = world.mnt();
    std::fs::write(mnt.join("f"), b"hello").unwrap();
    let open = std::fs::File::options().read(true).write(true).open(mnt.join("f")).unwrap();
    let (code, _, err) = world.run(&["unmount", mnt.to_str().unwrap()]);
    assert_eq!(code, 7, "{err}");
    assert!(err.contains(&format!("`fuser -vm {}`", mnt.display())), "{err}");
    assert_eq!(std::fs::read(mnt.join("f")).unwrap(), b"hello");
    let (code, _, err) = world.run(&["unmount", "--lazy", mnt.to_str().unwrap()]);
    assert!(code == 6 && err.contains("until they are closed"), "{code} {err}");
    assert!(!world.mounted());
    // What is open lives on, with all that it can do.
    let mut bytes = [0; 5];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"hello");
    open.write_all_at(b" world", 5).unwrap();
    open.sync_all().unwrap();
    let (code, _, err) = world.run(&["unmount", mnt.to_str().unwrap()]);
    assert_eq!(code, 7, "{err}");
    drop(open);
    until("its end", || match world.run(&["unmount", mnt.to_str().unwrap()]).0 {
        // The kernel tells of the last close a moment later.
        7 => false,
        code => [0, 9].contains(&code),
    });
    world.mount(&[]);
    assert_eq!(std::fs::read(mnt.join("f")).unwrap(), b"hello world");
    world.unmount();
}

#[test]
fn a_signal_uploads_unmounts_and_ends_with_success() {
    let Some(world) = World::new("a_signal_uploads") else { return };
    for signal in ["-TERM", "-INT"] {
        let mut child = world.foreground();
        std::fs::write(world.mnt().join(format!("file{signal}")), content(2, 500_000)).unwrap();
        for other in ["-HUP", "-USR1", "-USR2"] {
            kill(other, u64::from(child.id()));
        }
        until("the status is in the log", || world.log().contains("status: {"));
        kill(signal, u64::from(child.id()));
        assert_eq!(child.wait().unwrap().code(), Some(0), "{}", world.log());
        assert!(!world.mounted());
    }
    world.mount(&[]);
    for signal in ["-TERM", "-INT"] {
        assert_eq!(std::fs::read(world.mnt().join(format!("file{signal}"))).unwrap(), content(2, 500_000));
    }
    world.unmount();
}

#[test]
fn umount_from_outside_uploads_as_well() {
    let Some(world) = World::new("umount_from_outside") else { return };
    let mut child = world.foreground();
    std::fs::write(world.mnt().join("f"), content(3, 100_000)).unwrap();
    assert!(Command::new("umount").arg("-i").arg(world.mnt()).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0), "{}", world.log());
    world.mount(&[]);
    assert_eq!(std::fs::read(world.mnt().join("f")).unwrap(), content(3, 100_000));
    world.unmount();
}

#[test]
fn a_killed_daemon_leaves_what_the_next_mount_cleans_and_goes_on_with() {
    let Some(world) = World::new("a_killed_daemon") else { return };
    let mnt = world.mnt();
    world.mount(&[]);
    let file = std::fs::File::create(mnt.join("f")).unwrap();
    std::io::Write::write_all(&mut &file, &content(4, 300_000)).unwrap();
    file.sync_all().unwrap();
    drop(file);
    world.kill();
    assert!(std::fs::read_dir(&mnt).is_err(), "a dead mount");
    world.mount(&[]);
    assert_eq!(std::fs::read(mnt.join("f")).unwrap(), content(4, 300_000));
    world.kill();
    // Nothing was written since.
    let (code, _, err) = world.run(&["unmount", mnt.to_str().unwrap()]);
    assert!(code == 0 && err.contains("nothing waits for an upload"), "{err}");
    assert!(!world.mounted());
}

#[test]
fn what_a_killed_daemon_left_is_told_until_it_is_sent() {
    let Some(world) = World::new("what_a_killed_daemon_left") else { return };
    let mnt = world.mnt();
    let dir = mnt.to_str().unwrap();
    world.mount(&["-o", "fsync=local,upload-limit=16KiB"]);
    let file = std::fs::File::create(mnt.join("f")).unwrap();
    std::io::Write::write_all(&mut &file, &content(4, 300_000)).unwrap();
    file.sync_all().unwrap();
    drop(file);
    world.kill();
    let (code, text, err) = world.run(&["status", dir]);
    assert!(code == 11 && text.contains("dead: the mount process ended") && text.contains("KiB"), "{text} {err}");
    let all = || serde_json::from_str::<serde_json::Value>(&world.ok(&["status", "--json"])).unwrap();
    let said = all();
    assert_eq!(
        (&said[0]["health"], said[0]["mount_point"].as_str(), said.as_array().unwrap().len()),
        (&"dead".into(), Some(dir), 1)
    );
    assert!(said[0]["spool"]["used"].as_u64().unwrap() > 300_000, "{said}");
    let (code, _, err) = world.run(&["unmount", dir]);
    assert!(code == 11 && err.contains("KiB") && err.contains("until the next mount"), "{err}");
    // Also without a mount point.
    let said = all();
    assert_eq!((&said[0]["health"], &said[0]["mount_point"]), (&"dead".into(), &"".into()));
    assert!(said[0]["store"].as_str().unwrap().ends_with("/bucket"), "{said}");
    let (code, _, err) = world.run(&["mount", &world.bucket(), dir]);
    assert!(code == 0 && err.contains("taking over 1 file"), "{err}");
    world.unmount();
    assert_eq!(world.ok(&["status"]), "nothing is mounted\n");
}

#[test]
fn the_recovery_code_opens_the_volume() {
    let Some(world) = World::new("the_recovery_code") else { return };
    std::fs::remove_dir_all(world.path("bucket")).unwrap();
    std::fs::remove_dir_all(world.path("state")).unwrap();
    let out = world.ok(&["init", &world.bucket(), "--kdf-memory", "64", "--kdf-passes", "1"]);
    let code = out.lines().map(str::trim).find(|l| l.matches('-').count() == 13).unwrap();
    std::fs::write(world.path("code"), code.to_lowercase()).unwrap();
    std::fs::set_permissions(world.path("code"), PermissionsExt::from_mode(0o600)).unwrap();
    world.mount(&["--recovery-code-file", world.path("code").to_str().unwrap()]);
    world.unmount();
    // Where a passphrase is expected it opens as well.
    world.mount(&["--passphrase-file", world.path("code").to_str().unwrap()]);
    world.unmount();
}

#[test]
fn the_quickstart_runs_to_its_end_and_leaves_nothing() {
    let Some(world) = World::new("the_quickstart") else { return };
    let tour = world.path("tour");
    let (code, out, err) = world.run(&["quickstart", "--once", "--dir", tour.to_str().unwrap()]);
    let log = std::fs::read_to_string(tour.join("local/log")).unwrap_or_default();
    assert_eq!(code, 0, "{out}\n{err}\n{log}");
    for part in ["The bucket sees", "phantom.dcm", "the same", "in none of the"] {
        assert!(out.contains(part), "{part}:\n{out}");
    }
    assert!(!tour.exists());
}

/// As a service manager starts it: `READY=1` comes when the mount serves, `STOPPING=1` when it ends.
#[test]
fn systemd_is_told_when_it_serves() {
    let Some(world) = World::new("systemd_is_told") else { return };
    let notify = std::os::unix::net::UnixDatagram::bind(world.path("notify")).unwrap();
    notify.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = |word: &str| {
        let mut buffer = [0; 4096];
        loop {
            let n = notify.recv(&mut buffer).unwrap();
            if String::from_utf8_lossy(&buffer[..n]).contains(word) {
                return;
            }
        }
    };
    let (bucket, mnt) = (world.bucket(), world.mnt());
    let mut c = world.command(&["mount", "--foreground", &bucket, mnt.to_str().unwrap()]);
    let mut child = c.env("NOTIFY_SOCKET", world.path("notify")).spawn().unwrap();
    hear("READY=1");
    assert!(world.mounted());
    kill("-TERM", u64::from(child.id()));
    hear("STOPPING=1");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// A line of an fstab, mounted and unmounted by the real mount(8) and umount(8), in a mount namespace of its own whose /sbin has the
/// helpers. Skipped (and said so) without root, overlayfs, or the built helpers.
#[test]
fn mount_and_umount_of_the_system_work_from_an_fstab_line() {
    let test = "mount_and_umount_of_the_system";
    let Some(world) = World::new(test) else { return };
    let smpfs = Path::new(env!("CARGO_BIN_EXE_smpfs"));
    if !smpfs.with_file_name("mount-smpfs").exists() || !smpfs.with_file_name("umount-smpfs").exists() {
        println!("skipped: {test}: the helpers are not built; run `cargo build --workspace`");
        return;
    }
    let script = r#"
        t=$(mktemp -d) && mount -t tmpfs none "$t" && mkdir "$t/up" "$t/work" || exit 77
        sbin=$(readlink -f /sbin)
        mount -t overlay overlay -o "lowerdir=$sbin,upperdir=$t/up,workdir=$t/work" "$sbin" || exit 77
        set -e
        "$SMPFS" install-helpers >/dev/null
        mount -T "$DIR/fstab" "$DIR/mnt"
        grep -q " $DIR/mnt .*nosuid,nodev.* fuse.smpfs " /proc/self/mountinfo
        echo hello > "$DIR/mnt/f"
        # In use: refused, with the exit code of mount(8).
        (cd "$DIR/mnt"; umount "$DIR/mnt" && exit 1 || test $? = 32)
        # Returns when all is uploaded: nothing serves any more, and the next mount finds the file.
        umount "$DIR/mnt"
        "$SMPFS" status | grep -q 'nothing is mounted'
        mount -T "$DIR/fstab" "$DIR/mnt"
        grep -q hello "$DIR/mnt/f"
        umount "$DIR/mnt"
    "#;
    let [dir, state, cache] =
        ["", "state", "cache"].map(|p| world.path(p).display().to_string().trim_end_matches('/').to_owned());
    let options =
        format!("_netdev,nofail,noauto,x-systemd.automount,passphrase-file={dir}/pass,state_dir={state},cache-dir={cache}");
    std::fs::write(world.path("fstab"), format!("{} {dir}/mnt smpfs {options} 0 0\n", world.bucket())).unwrap();
    let mut c = world.command(&[]);
    let inner: Vec<_> = c.get_envs().filter_map(|(k, v)| v.map(|v| (k.to_owned(), v.to_owned()))).collect();
    c = Command::new("unshare");
    c.args(["--mount", "--propagation", "private", "/bin/sh", "-c", script]).env_clear().envs(inner);
    c.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("SMPFS", smpfs).env("DIR", &dir).stdin(Stdio::null());
    let out = c.output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    if out.status.code() == Some(77) || said.contains("unshare failed") {
        println!("skipped: {test}: it needs root and overlayfs: {said}");
        return;
    }
    assert_eq!(out.status.code(), Some(0), "{said}\n{}", world.log());
}
