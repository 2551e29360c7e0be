//! What is left on the local disk, in the process and in the bucket: no plaintext, no name, no passphrase.

use super::world::*;
use std::fs;
use std::path::{Path, PathBuf};

const CANARY: &str = "canary-plaintext-b1946ac92492d234";
const NAME: &str = "canary-name-591785b794601e21";

/// A filesystem in a file of its own; unmounted when dropped.
struct Image {
    file: PathBuf,
    at: PathBuf,
}

impl Image {
    fn new(file: PathBuf, at: PathBuf) -> Option<Image> {
        fs::create_dir_all(&at).unwrap();
        let made = shell("truncate -s 192M \"$1\"; mkfs.ext4 -q -F \"$1\"; mount -o loop \"$1\" \"$2\"", &[&file, &at]);
        (made.code == 0).then_some(Image { file, at })
    }

    /// Unmounts, and gives every byte that ever reached it.
    fn bytes(self) -> Vec<u8> {
        shell("umount \"$1\"", &[&self.at]).ok();
        fs::read(&self.file).unwrap()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if is_mounted(&self.at) {
            let _ = nix::mount::umount2(&self.at, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

fn holds(bytes: &[u8], what: &str) -> bool {
    let what = what.as_bytes();
    bytes.windows(what.len()).step_by(1).any(|w| w[0] == what[0] && w == what)
}

/// A day's work with canaries in contents, names, link targets and attributes.
fn work(world: &World) {
    let text: String = (0..40_000).map(|i| format!("{CANARY} {i}\n")).collect();
    fs::create_dir(world.file(&format!("{NAME}-dir"))).unwrap();
    let file = world.file(&format!("{NAME}-dir/{NAME}.txt"));
    write_durably(&file, text.as_bytes()).unwrap();
    assert!(fs::read_to_string(&file).unwrap() == text);
    fs::write(world.file(&format!("{NAME}-small")), CANARY).unwrap();
    std::os::unix::fs::symlink(format!("{NAME}-target"), world.file(&format!("{NAME}-link"))).unwrap();
    fs::rename(world.file(&format!("{NAME}-small")), world.file(&format!("{NAME}-renamed"))).unwrap();
    // A cold read, for the cache on the disk; and an error, for the log.
    assert!(read_at(&file, 500_000, 10_000).is_ok());
    assert!(fs::read(world.file(&format!("{NAME}-absent"))).is_err());
}

fn scan(test: &str, killed: bool) {
    let mut world = World::dir();
    let at = world.path("disk");
    let Some(image) = Image::new(world.path("image"), at.clone()) else {
        return skipped(test, "loop devices or mkfs.ext4 are not to be had");
    };
    // The scan would find what is there.
    fs::write(at.join("control"), format!("control {CANARY}")).unwrap();
    world.home = at.join("home");
    fs::create_dir(&world.home).unwrap();
    world.init(&[]);
    let log = world.home.join("log").display().to_string();
    let logging = ["--log-level", "trace", "--log-file", &log];
    let mount = world.mount(&logging);
    work(&world);
    if killed {
        fs::write(world.file(&format!("{NAME}-last")), CANARY.repeat(5000)).unwrap();
        mount.kill();
    } else {
        mount.unmount();
        let mount = world.mount(&logging);
        let file = world.file(&format!("{NAME}-dir/{NAME}.txt"));
        assert!(fs::read_to_string(file).unwrap().starts_with(CANARY));
        mount.unmount();
    }
    shell("sync", &[]).ok();
    if killed {
        // The dead mount keeps nothing on the image.
        let _ = nix::mount::umount2(&world.mnt(), nix::mount::MntFlags::MNT_DETACH);
    }
    let bytes = image.bytes();
    assert!(holds(&bytes, &format!("control {CANARY}")), "the scan finds nothing at all");
    let blank: Vec<u8> = bytes;
    let mut from = 0;
    let control = format!("control {CANARY}");
    while let Some(i) = find(&blank[from..], CANARY.as_bytes()) {
        let start = from + i;
        assert!(blank[..start + CANARY.len()].ends_with(control.as_bytes()), "plaintext at {start} of the image");
        from = start + 1;
    }
    for secret in [NAME, PASSPHRASE] {
        assert!(!holds(&blank, secret), "{secret} is on the disk");
    }
    for (key, bytes) in world.bucket().all() {
        assert!(!key.contains(NAME) && !holds(&bytes, NAME) && !holds(&bytes, CANARY), "the bucket shows something: {key}");
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|w| w[0] == what[0] && w == what)
}

#[test]
fn nothing_readable_is_on_the_disk_after_unmounting() {
    need_mounts!("nothing_readable_is_on_the_disk_after_unmounting");
    scan("nothing_readable_is_on_the_disk_after_unmounting", false);
}

#[test]
fn nothing_readable_is_on_the_disk_after_kill_9() {
    need_mounts!("nothing_readable_is_on_the_disk_after_kill_9");
    scan("nothing_readable_is_on_the_disk_after_kill_9", true);
}

#[test]
fn the_process_shows_no_secret_and_leaves_no_core() {
    need_mounts!("the_process_shows_no_secret_and_leaves_no_core");
    let world = World::dir();
    world.init(&[]);
    let mount = world.mount(&[]);
    let proc = |name: &str| fs::read(format!("/proc/{}/{name}", mount.pid)).unwrap();
    for name in ["cmdline", "environ"] {
        assert!(!holds(&proc(name), PASSPHRASE), "{name}");
    }
    let limits = String::from_utf8(proc("limits")).unwrap();
    let core = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    // Keys are locked in memory.
    let status = String::from_utf8(proc("status")).unwrap();
    let locked = status.lines().find(|l| l.starts_with("VmLck:")).unwrap().split_whitespace().nth(1).unwrap();
    let secret_fd = String::from_utf8_lossy(&proc("maps")).contains("secretmem");
    assert!(locked != "0" || secret_fd, "{status}");
    mount.unmount();
}

/// As another user, whose process would be readable by himself: a process that may not be dumped belongs to root in /proc.
#[test]
fn no_process_of_the_same_user_may_look_inside() {
    need_mounts!("no_process_of_the_same_user_may_look_inside");
    use std::os::unix::fs::MetadataExt;
    let world = World::dir();
    world.init(&[]);
    let owner = |pid: i32| fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid();
    let as_nobody = |mut c: std::process::Command| {
        use std::os::unix::process::CommandExt;
        c.uid(65_534).gid(65_534).env_clear().stdin(std::process::Stdio::piped());
        c
    };
    // A program of that user for comparison, and smpfs, waiting for the passphrase.
    let cat = std::process::Command::new("cat");
    let mut cat = as_nobody(cat).spawn().unwrap();
    // The binary may lie where that user cannot go.
    let bin = Path::new("/tmp").join(format!("smpfs-{}", std::process::id()));
    fs::copy(env!("CARGO_BIN_EXE_smpfs"), &bin).unwrap();
    let mut c = std::process::Command::new(&bin);
    c.args(["init", "memory:secrets", "--passphrase-fd", "0"]);
    let mut smpfs = as_nobody(c).spawn().unwrap();
    until("the program has started", || owner(cat.id() as i32) == 65_534);
    until("smpfs closes itself", || owner(smpfs.id() as i32) == 0);
    for child in [&mut cat, &mut smpfs] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    fs::remove_file(bin).unwrap();
}
