//! A machine of its own for each test: places for state, cache and sockets, a bucket, and the real `smpfs` on real kernel mounts.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Far more than anything here takes; a test that waits so long has failed.
pub const LONG: Duration = Duration::from_secs(90);
/// The passphrase of every volume here.
pub const PASSPHRASE: &str = "five random words are better";
/// A store that is away is given up soon.
pub const IMPATIENT: [&str; 10] =
    ["--retries", "2", "--retry-base", "100ms", "--retry-cap", "400ms", "--connect-timeout", "1s", "--operation-timeout", "2s"];

/// Says that a test did not run, in the words that the runner counts.
pub fn skipped(test: &str, why: &str) {
    println!("skipped: {test}: {why}");
}

/// Whether the kernel mounts for us.
pub fn can_mount() -> bool {
    OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok() && nix::unistd::geteuid().is_root()
}

/// Ends the test early, with a line that is counted, where nothing can be mounted.
macro_rules! need_mounts {
    ($test:literal) => {
        if !$crate::world::can_mount() {
            return $crate::world::skipped($test, "mounting needs /dev/fuse and root");
        }
    };
}

/// A world with an S3 bucket, or the end of the test with a line that is counted.
macro_rules! s3_world {
    ($test:literal) => {
        match $crate::world::World::s3($test) {
            Some(world) => world,
            None => return $crate::world::skipped($test, "SMPFS_TEST_S3 is not set"),
        }
    };
}

/// A directory of its own, in memory where there is such a place: forcing data to a disk that many tests share takes most of
/// their time, and what a power failure does is tested elsewhere.
pub fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// What a program said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Said {
    fn from(o: Output) -> Said {
        let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
        Said { code: o.status.code().unwrap_or(-1), out: text(o.stdout), err: text(o.stderr) }
    }
}

impl Said {
    /// The program must have ended well.
    #[track_caller]
    pub fn ok(self) -> Said {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}

/// See the head of this file.
pub struct World {
    dir: tempfile::TempDir,
    /// URL of the bucket.
    pub store: String,
    /// Where state, cache and runtime directories lie.
    pub home: PathBuf,
    env: Vec<(String, String)>,
    /// An S3 server of its own, instead of the one that the tests share.
    pub endpoint: Option<String>,
    /// The bucket is another world's.
    guest: bool,
}

impl World {
    /// With a directory as bucket.
    pub fn dir() -> World {
        let dir = scratch();
        let store = format!("dir://{}", dir.path().join("bucket").display());
        World::new(dir, store)
    }

    /// With a prefix of its own in the bucket of a real S3 server.
    pub fn s3(test: &str) -> Option<World> {
        let base = std::env::var("SMPFS_TEST_S3").ok()?;
        let dir = scratch();
        let unique = dir.path().file_name().unwrap().to_string_lossy().replace('.', "");
        let mut world = World::new(dir, format!("{}/mount/{test}-{unique}", base.trim_end_matches('/')));
        world.env.extend(std::env::vars().filter(|(k, _)| k.starts_with("AWS_")));
        Some(world)
    }

    fn new(dir: tempfile::TempDir, store: String) -> World {
        let home = dir.path().join("home");
        let world = World { dir, store, home, env: Vec::new(), endpoint: None, guest: false };
        for name in ["home", "mnt", "src"] {
            fs::create_dir(world.path(name)).unwrap();
        }
        fs::write(world.path("pass"), format!("{PASSPHRASE}\n")).unwrap();
        fs::set_permissions(world.path("pass"), Permissions::from_mode(0o600)).unwrap();
        fs::write(world.path("config.toml"), "cache-size = \"64MiB\"\n").unwrap();
        world
    }

    /// Sets a variable for everything that runs in this world.
    pub fn set(&mut self, name: &str, value: &str) {
        self.env.retain(|(k, _)| k != name);
        self.env.push((name.to_owned(), value.to_owned()));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn mnt(&self) -> PathBuf {
        self.path("mnt")
    }

    /// A file in the mount.
    pub fn file(&self, name: &str) -> PathBuf {
        self.mnt().join(name)
    }

    /// From here on it is another machine: nothing that this one remembered is known.
    pub fn become_another_machine(&mut self, name: &str) {
        self.home = self.path(name);
        fs::create_dir_all(&self.home).unwrap();
    }

    /// A second machine that mounts the same volume at the same time.
    pub fn beside(&self) -> World {
        let mut world = World::new(scratch(), self.store.clone());
        (world.env, world.endpoint, world.guest) = (self.env.clone(), self.endpoint.clone(), true);
        world
    }

    /// `smpfs` with an environment in which only this world exists.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_smpfs"));
        c.env_clear().args(words).stdin(Stdio::null()).env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
        for place in ["state", "cache", "runtime"] {
            c.env(format!("SMPFS_{}_DIR", place.to_uppercase()), self.home.join(place));
        }
        c.env("SMPFS_CONFIG", self.path("config.toml")).env("SMPFS_PASSPHRASE_FILE", self.path("pass"));
        c.envs(self.env.iter().map(|(k, v)| (k, v)));
        c
    }

    pub fn run(&self, words: &[&str]) -> Said {
        run(self.command(words))
    }

    /// Makes the volume, cheaply.
    #[track_caller]
    pub fn init(&self, more: &[&str]) -> Said {
        self.run(&[&["init", &self.store, "--kdf-memory", "64", "--kdf-passes", "1"], more].concat()).ok()
    }

    /// Tries to mount.
    pub fn try_mount(&self, more: &[&str]) -> Said {
        let dir = self.mnt();
        let log = self.path("mount.log");
        let debug = ["--log-level", "warn,smpfs=debug", "--log-file", log.to_str().unwrap()];
        let debug = if more.contains(&"--log-level") { &[] } else { &debug[..] };
        self.run(&[&["mount", &self.store, dir.to_str().unwrap()], debug, more].concat())
    }

    /// Mounts in the background.
    #[track_caller]
    pub fn mount(&self, more: &[&str]) -> Mount<'_> {
        self.try_mount(more).ok();
        let mut mount = Mount { world: self, pid: 0, child: None };
        mount.pid = mount.status()["pid"].as_u64().unwrap() as i32;
        mount
    }

    /// Mounts in the foreground, and waits until it serves.
    #[track_caller]
    pub fn foreground(&self, more: &[&str]) -> Mount<'_> {
        let dir = self.mnt();
        let words = [&["mount", "--foreground", &self.store, dir.to_str().unwrap()], more].concat();
        let log = fs::File::create(self.path("foreground.log")).unwrap();
        let child = self.command(&words).stderr(log).stdout(Stdio::null()).spawn().unwrap();
        let mount = Mount { world: self, pid: child.id() as i32, child: Some(child) };
        until("a mount in the foreground", || self.file(".smpfs/version").exists());
        mount
    }

    /// The bucket, past the mount.
    pub fn bucket(&self) -> super::bucket::Bucket {
        super::bucket::Bucket::open(self)
    }

    /// What the mount process wrote into its log.
    pub fn logs(&self) -> String {
        fs::read_to_string(self.path("mount.log")).unwrap_or_default()
    }

    /// Takes whatever is mounted away.
    fn clear(&self) {
        let dir = self.mnt();
        for _ in 0..4 {
            if !is_mounted(&dir) {
                break;
            }
            let _ = nix::mount::umount2(&dir, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.clear();
        if self.store.starts_with("s3:") && self.endpoint.is_none() && !self.guest {
            self.bucket().empty();
        }
        if std::thread::panicking() {
            let log: Vec<String> = self.logs().lines().map(str::to_owned).collect();
            let tail = log.len().saturating_sub(60);
            eprintln!("--- the last lines of its log\n{}", log[tail..].join("\n"));
        }
    }
}

/// A mount. One that a test leaves behind is killed.
pub struct Mount<'w> {
    pub world: &'w World,
    /// The process that serves.
    pub pid: i32,
    child: Option<Child>,
}

impl Mount<'_> {
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), signal).unwrap();
    }

    /// Kills the process that serves, and waits until it is gone.
    pub fn kill(mut self) {
        self.signal(nix::sys::signal::Signal::SIGKILL);
        self.reap();
        self.pid = 0;
    }

    /// Waits for the end of the process; its exit code when it is a child of the test.
    pub fn reap(&mut self) -> Option<i32> {
        let code = self.child.take().map(|mut c| c.wait().unwrap().code().unwrap_or(-1));
        let pid = self.pid;
        until("the end of the mount process", || !alive(pid));
        self.pid = 0;
        code
    }

    /// `smpfs status --json`.
    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        let said = self.world.run(&["status", "--json", self.world.mnt().to_str().unwrap()]).ok();
        serde_json::from_str(&said.out).unwrap()
    }

    /// Drops every cache, the kernel's too, so that the next read asks the bucket.
    pub fn drop_caches(&self) {
        self.signal(nix::sys::signal::Signal::SIGHUP);
        // The signal is handled in the order of the loop that also counts; the kernel is told by another thread.
        std::thread::sleep(Duration::from_millis(300));
    }

    /// Unmounts in order.
    #[track_caller]
    pub fn unmount(mut self) -> Said {
        let said = self.world.run(&["unmount", self.world.mnt().to_str().unwrap(), "--timeout", "60s"]).ok();
        self.reap();
        assert!(!is_mounted(&self.world.mnt()));
        said
    }

    /// Lines of the audit log that are about an event.
    pub fn audit(&self, event: &str) -> Vec<serde_json::Value> {
        json_lines(&self.world.file(".smpfs/audit")).into_iter().filter(|l| l["event"] == event).collect()
    }

    /// Records of the quarantine.
    pub fn quarantine(&self) -> Vec<serde_json::Value> {
        json_lines(&self.world.file(".smpfs/quarantine"))
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        // What was killed on purpose leaves its mount point as it was.
        if self.pid > 0 {
            self.world.clear();
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), nix::sys::signal::Signal::SIGKILL);
        }
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
    }
}

fn json_lines(path: &Path) -> Vec<serde_json::Value> {
    fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// Runs a program that must end in time.
pub fn run(mut command: Command) -> Said {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id() as i32;
    let (done, over) = std::sync::mpsc::channel();
    let waiter = std::thread::spawn(move || {
        let _ = done.send(child.wait_with_output());
    });
    match over.recv_timeout(LONG) {
        Ok(output) => {
            waiter.join().unwrap();
            output.unwrap().into()
        }
        Err(_) => {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            panic!("{command:?} does not end");
        }
    }
}

/// Runs a line of shell; `$1` and so on are the words.
#[track_caller]
pub fn shell(script: &str, words: &[&Path]) -> Said {
    let mut c = Command::new("/bin/bash");
    c.args(["-euo", "pipefail", "-c", script, "sh"]).args(words).stdin(Stdio::null());
    run(c)
}

pub fn alive(pid: i32) -> bool {
    let threads = || fs::read_dir(format!("/proc/{pid}/task")).map_or(0, |d| d.count());
    // A zombie without threads counts as gone: whoever started it has yet to notice.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z ") || threads() > 1)
}

/// Peak memory of a process, MiB.
pub fn peak(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

pub fn is_mounted(dir: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|l| l.split(' ').nth(1) == dir.to_str())
}

/// Waits for something that must happen.
#[track_caller]
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LONG, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The errno of a result, 0 when it is none.
pub fn errno<T>(result: std::io::Result<T>) -> i32 {
    result.err().and_then(|e| e.raw_os_error()).unwrap_or(0)
}

/// Bytes that no compression shortens, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend_from_slice(&x.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Writes a file and waits until the bucket has it.
pub fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut f = fs::File::create(path)?;
    f.write_all(bytes)?;
    f.sync_all()
}

/// Reads a range.
pub fn read_at(path: &Path, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    use std::io::Seek;
    let mut f = fs::File::open(path)?;
    f.seek(std::io::SeekFrom::Start(offset))?;
    let mut out = Vec::new();
    f.take(len as u64).read_to_end(&mut out)?;
    Ok(out)
}
