//! Sixty-four threads at work on a mount whose store takes connections and answers nothing.

use super::server::Server;
use super::world::*;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const READERS: u64 = 32;
const WRITERS: u64 = 32;
/// A process that hangs for longer than this hangs for good: the store is given two seconds for an answer, and an fsync waits for
/// contents and name.
const PATIENCE: Duration = Duration::from_secs(30);
/// Blocks of a file that is written.
const BLOCK: usize = 4096;
const BLOCKS: u64 = 16;

/// How long the store answers nothing: `SMPFS_TEST_BLACK_HOLE` seconds.
fn darkness() -> Duration {
    let seconds = std::env::var("SMPFS_TEST_BLACK_HOLE").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(8))
}

/// Longest system call of all threads, milliseconds.
#[derive(Default)]
struct Longest(AtomicU64);

impl Longest {
    fn time<T>(&self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = work();
        self.0.fetch_max(start.elapsed().as_millis() as u64, Ordering::Relaxed);
        done
    }

    #[track_caller]
    fn check(&self) {
        let longest = Duration::from_millis(self.0.load(Ordering::Relaxed));
        assert!(longest < PATIENCE, "a call took {longest:?}");
    }
}

/// Writes blocks here and there until it is told to stop, with an fsync now and then. What was acknowledged.
fn writes(path: &Path, seed: u64, stop: &AtomicBool, longest: &Longest) -> Vec<u8> {
    let mut now = vec![0; BLOCK * BLOCKS as usize];
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path).unwrap();
    file.set_len(now.len() as u64).unwrap();
    for i in 0u64.. {
        if stop.load(Ordering::Acquire) {
            break;
        }
        let (at, block) = (i * 7 % BLOCKS * BLOCK as u64, noise(seed * 1000 + i, BLOCK));
        longest.time(|| file.write_all_at(&block, at)).unwrap();
        now[at as usize..at as usize + BLOCK].copy_from_slice(&block);
        if i % 8 == 7 {
            // In the dark it fails, in time; what was written stays written.
            let _ = longest.time(|| file.sync_data());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    now
}

fn reads(path: &Path, cached: bool, stop: &AtomicBool, longest: &Longest) {
    let mut buf = vec![0; 64 << 10];
    for i in 0u64.. {
        if stop.load(Ordering::Acquire) {
            break;
        }
        let read = longest.time(|| File::open(path).and_then(|f| f.read_at(&mut buf, i % 4 * (64 << 10))));
        assert!(read.is_ok() || !cached, "what is cached can be read: {read:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Processes that wait for the store can be killed.
fn kills(world: &World) {
    let cats: Vec<_> = (0..8)
        .map(|i| {
            Command::new("cat").arg(world.file(&format!("cold{i}"))).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    for mut cat in cats {
        let start = Instant::now();
        let _ = cat.kill();
        cat.wait().unwrap();
        assert!(start.elapsed() < PATIENCE, "a killed process did not end");
    }
}

#[test]
fn sixty_four_threads_and_a_store_that_answers_nothing() {
    need_mounts!("sixty_four_threads_and_a_store_that_answers_nothing");
    let Some(server) = Server::start() else {
        return skipped("sixty_four_threads_and_a_store_that_answers_nothing", "SMPFS_TEST_S3 is not set");
    };
    let mut world = server.world();
    world.init(&[]);
    let mount = world.mount(&IMPATIENT);
    for i in 0..READERS {
        fs::write(world.file(&format!("cold{i}")), noise(500 + i, 256 << 10)).unwrap();
        fs::write(world.file(&format!("warm{i}")), noise(600 + i, 256 << 10)).unwrap();
    }
    mount.unmount();
    let mount = world.mount(&[&IMPATIENT[..], &["--memory-budget", "128MiB"]].concat());
    for i in 0..READERS {
        assert!(fs::read(world.file(&format!("warm{i}"))).unwrap() == noise(600 + i, 256 << 10));
    }
    let (stop, longest, written) = (AtomicBool::new(false), Longest::default(), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        let (world, stop, longest, written) = (&world, &stop, &longest, &written);
        for i in 0..WRITERS {
            scope.spawn(move || {
                let name = format!("written{i}");
                let bytes = writes(&world.file(&name), i, stop, longest);
                written.lock().unwrap().push((name, bytes));
            });
        }
        for i in 0..READERS {
            let cached = i % 2 == 0;
            let name = format!("{}{i}", if cached { "warm" } else { "cold" });
            scope.spawn(move || reads(&world.file(&name), cached, stop, longest));
        }
        std::thread::sleep(Duration::from_millis(500));
        server.freeze();
        let end = Instant::now() + darkness();
        while Instant::now() < end {
            longest.time(|| shell("df \"$1\"; ls -l \"$1\"", &[&world.mnt()]).ok());
            kills(world);
        }
        server.thaw();
        stop.store(true, Ordering::Release);
    });
    longest.check();
    assert!(peak(mount.pid) < 128 + 100, "{} MiB", peak(mount.pid));
    // Without a new mount, everything goes on.
    let written = written.into_inner().unwrap();
    for i in 0..READERS {
        let cold = world.file(&format!("cold{i}"));
        until("the store is back", || fs::read(&cold).is_ok_and(|b| b == noise(500 + i, 256 << 10)));
    }
    for (name, bytes) in &written {
        let file = OpenOptions::new().write(true).open(world.file(name)).unwrap();
        until("an fsync", || file.sync_all().is_ok());
        assert!(fs::read(world.file(name)).unwrap() == *bytes, "{name}");
    }
    mount.unmount();
    world.become_another_machine("elsewhere");
    let mount = world.mount(&["--read-only"]);
    for (name, bytes) in &written {
        assert!(fs::read(world.file(name)).unwrap() == *bytes, "{name}, elsewhere");
    }
    mount.unmount();
}

/// Unmounting ends in time while the store answers nothing, says so, and loses nothing.
#[test]
fn an_unmount_while_the_store_answers_nothing() {
    need_mounts!("an_unmount_while_the_store_answers_nothing");
    let Some(server) = Server::start() else {
        return skipped("an_unmount_while_the_store_answers_nothing", "SMPFS_TEST_S3 is not set");
    };
    let world = server.world();
    world.init(&[]);
    let mut mount = world.mount(&IMPATIENT);
    server.freeze();
    fs::write(world.file("file"), noise(1, 100_000)).unwrap();
    let start = Instant::now();
    let said = world.run(&["unmount", world.mnt().to_str().unwrap(), "--timeout", "3s"]);
    assert!(said.code != 0 && start.elapsed() < PATIENCE, "{said:?} after {:?}", start.elapsed());
    assert!(said.err.contains("1 file"), "{said:?}");
    server.thaw();
    if alive(mount.pid) {
        mount.signal(nix::sys::signal::Signal::SIGTERM);
    }
    mount.reap();
    let mount = world.mount(&[]);
    assert!(fs::read(world.file("file")).unwrap() == noise(1, 100_000));
    mount.unmount();
}
