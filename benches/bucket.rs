//! A whole mount of a bucket, against the two things that bound it: a bare client of the same store, and an in-memory mount.
//!
//! Every line is a ratio of two measurements of one run, so the speed of the machine cancels out. With SMPFS_TEST_S3 (see
//! `tests/servers/seaweedfs`) the bucket is on that server, else it is a directory.
//!
//! `cargo bench --bench bucket -- [--mib N] [--files N] [--big GIB]`: size of the large file (1024), number of small ones (1000)
//! and of the listing (10 x that), and the size of the file that shows how much memory a transfer takes (0: left out). With
//! `--files 0` only the large file is measured.
#![allow(clippy::unwrap_used)]

#[path = "../tests/support/mod.rs"]
mod support;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use smpfs::fuse::{MountOptions, mount};
use smpfs::ops::{FileType, NewNode, Ops, ROOT};
use smpfs::store::url::StoreSpec;
use smpfs::store::{self, Cond, PartAt, Span, Store};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::model::ModelFs;

const MIB: usize = 1 << 20;
/// What a mount fetches and uploads at a time: a segment.
const PIECE: usize = 8 * MIB;
/// Connections of the bare client.
const AT_ONCE: usize = 4;

struct World {
    url: String,
    scratch: tempfile::TempDir,
}

/// A mount by the real program, in a process of its own.
struct Mount<'w> {
    world: &'w World,
    dir: PathBuf,
}

impl World {
    fn smpfs(&self) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_smpfs"));
        for (var, dir) in [("SMPFS_STATE_DIR", "state"), ("SMPFS_CACHE_DIR", "cache"), ("SMPFS_RUNTIME_DIR", "run")] {
            c.env(var, self.scratch.path().join(dir));
        }
        c.env("SMPFS_PASSPHRASE_FILE", self.scratch.path().join("pass"));
        c
    }

    fn mount(&self, options: &[&str]) -> Mount<'_> {
        let dir = self.scratch.path().join("mnt");
        std::fs::create_dir_all(&dir).unwrap();
        run(self.smpfs().arg("mount").arg(&self.url).arg(&dir).args(options));
        Mount { world: self, dir }
    }
}

impl Mount<'_> {
    fn pid(&self) -> u32 {
        let text = std::fs::read_to_string(self.dir.join(".smpfs/status.json")).unwrap();
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        status["pid"].as_u64().unwrap() as u32
    }

    /// Peak resident memory of the daemon, MiB.
    fn peak_mib(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = text.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    }

    /// Processor-seconds that the daemon has taken, in user mode and in the kernel.
    fn processor_seconds(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // Behind the name in parentheses: utime and stime are fields 14 and 15, in hundredths.
        let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
        (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) as f64 / 100.0
    }

    fn status(&self) -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(self.dir.join(".smpfs/status.json")).unwrap()).unwrap()
    }

    fn requests(&self) -> u64 {
        self.status()["traffic"]["requests"].as_u64().unwrap()
    }

    /// Waits until everything is in the bucket.
    fn settle(&self) {
        let behind = |s: &serde_json::Value| ["files", "bytes", "names"].iter().any(|what| s["pending"][what] != 0);
        while behind(&self.status()) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Requests when no more come: objects are deleted after the index that named them was written.
    fn requests_in_the_end(&self) -> u64 {
        let mut last = self.requests();
        loop {
            std::thread::sleep(Duration::from_millis(500));
            match self.requests() {
                now if now == last => return now,
                now => last = now,
            }
        }
    }

    fn unmount(self) -> f64 {
        let t = Instant::now();
        run(self.world.smpfs().arg("unmount").arg(&self.dir));
        t.elapsed().as_secs_f64()
    }
}

fn run(c: &mut Command) {
    let out = c.output().unwrap();
    assert!(out.status.success(), "{c:?}: {}", String::from_utf8_lossy(&out.stderr));
}

fn arg(name: &str, default: usize) -> usize {
    let args: Vec<String> = std::env::args().collect();
    args.iter().position(|a| a == name).map_or(default, |i| args[i + 1].parse().unwrap())
}

fn mbs(mib: usize, t: f64) -> f64 {
    mib as f64 * 1.048_576 / t
}

fn main() {
    if let Err(e) = OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        println!("skipped: /dev/fuse cannot be opened: {e}");
        return;
    }
    let (mib, files, big) = (arg("--mib", 1024), arg("--files", 1000), arg("--big", 0));
    let scratch = tempfile::tempdir().unwrap();
    let url = match std::env::var("SMPFS_TEST_S3") {
        Ok(bucket) => format!("{}/bench-{}", bucket.trim_end_matches('/'), std::process::id()),
        Err(_) => format!("dir://{}", scratch.path().join("bucket").display()),
    };
    std::fs::write(scratch.path().join("pass"), "a passphrase for benches\n").unwrap();
    let world = World { url, scratch };
    run(world.smpfs().args(["init", &world.url, "--kdf-memory", "64", "--kdf-passes", "1"]));
    println!("bucket {}", world.url.split("://").next().unwrap());
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let spec: StoreSpec = world.url.parse().unwrap();
    let bare = rt.block_on(store::open(&spec, &store::Options { create: true, ..store::Options::default() })).unwrap().store;

    sequential(&world, &rt, &bare, mib);
    edits(&world);
    if files > 0 {
        random(&world, &rt);
        small_files(&world, files);
        a_life_of_files(&world, files * 10);
        wrong_passphrase(&world);
    }
    if big > 0 {
        passes_through(&world, big);
    }
}

/// Incompressible, cheap to make.
fn block(n: u64) -> Vec<u8> {
    let mut x = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(MIB);
    while out.len() < MIB {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend_from_slice(&x.to_le_bytes());
    }
    out
}

fn write_file(path: &Path, mib: usize) {
    let mut f = File::create(path).unwrap();
    let data = block(7);
    for _ in 0..mib {
        f.write_all(&data).unwrap();
    }
    f.sync_all().unwrap();
}

fn read_file(path: &Path) -> usize {
    let mut f = File::open(path).unwrap();
    let mut buf = vec![0; MIB];
    let mut n = 0;
    loop {
        match f.read(&mut buf).unwrap() {
            0 => return n / MIB,
            got => n += got,
        }
    }
}

async fn bare_put(s: &Arc<dyn Store>, mib: usize) {
    let id = s.upload_start("bare").await.unwrap();
    let data = Bytes::from(block(7).repeat(PIECE / MIB));
    let parts: Vec<_> = stream::iter(0..mib / (PIECE / MIB))
        .map(|i| {
            let (id, data) = (id.clone(), data.clone());
            async move {
                let at = PartAt { number: i as u32 + 1, offset: (i * PIECE) as u64 };
                s.upload_part("bare", &id, at, vec![data]).await
            }
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await
        .unwrap();
    s.upload_complete("bare", &id, &parts, Cond::Any).await.unwrap();
}

async fn bare_get(s: &Arc<dyn Store>, mib: usize) {
    stream::iter(0..mib / (PIECE / MIB))
        .map(|i| async move { s.get("bare", Span::Range((i * PIECE) as u64..((i + 1) * PIECE) as u64), None).await })
        .buffered(AT_ONCE)
        .try_for_each(|got| async move {
            assert_eq!(got.bytes.len(), PIECE);
            Ok(())
        })
        .await
        .unwrap();
}

fn sequential(world: &World, rt: &tokio::runtime::Runtime, bare: &Arc<dyn Store>, mib: usize) {
    let t = Instant::now();
    rt.block_on(bare_put(bare, mib));
    let bare_write = t.elapsed().as_secs_f64();
    let m = world.mount(&[]);
    let path = m.dir.join("large");
    let (t, before) = (Instant::now(), m.processor_seconds());
    write_file(&path, mib);
    let write = t.elapsed().as_secs_f64();
    let write_cpu = (m.processor_seconds() - before) * 1024.0 / mib as f64;
    let peak_write = m.peak_mib();
    m.unmount();
    report("durable sequential write", mbs(mib, write), "PUTs of a bare client", mbs(mib, bare_write), "MB/s");

    let t = Instant::now();
    rt.block_on(bare_get(bare, mib));
    let bare_read = t.elapsed().as_secs_f64();
    rt.block_on(bare.delete("bare")).unwrap();
    let m = world.mount(&[]);
    let (t, before) = (Instant::now(), m.processor_seconds());
    assert_eq!(read_file(&m.dir.join("large")), mib);
    let read = t.elapsed().as_secs_f64();
    let read_cpu = (m.processor_seconds() - before) * 1024.0 / mib as f64;
    report("cold sequential read", mbs(mib, read), "GETs of a bare client", mbs(mib, bare_read), "MB/s");
    println!("processor-seconds of smpfs for a GiB: {write_cpu:.1} writing, {read_cpu:.1} reading");
    println!("peak memory: {peak_write} MiB writing, {} MiB reading", m.peak_mib());
    m.unmount();
}

/// What changes of the large file move.
fn edits(world: &World) {
    let m = world.mount(&[]);
    let path = m.dir.join("large");
    let moved = |what: &str, change: &dyn Fn(&File)| {
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let before = m.status();
        change(&file);
        file.sync_all().unwrap();
        let after = m.status();
        let kib = |way: &str| {
            let bytes = |s: &serde_json::Value| s["traffic"][way].as_u64().unwrap();
            (bytes(&after) - bytes(&before)) as f64 / 1024.0
        };
        println!("{what}: {:.0} KiB up, {:.0} KiB down", kib("bytes_up"), kib("bytes_down"));
    };
    let len = std::fs::metadata(&path).unwrap().len();
    moved("4 KiB written in the middle", &|f| f.write_all_at(&[7; 4096], len / 2 + 12_345).unwrap());
    moved("4 KiB appended", &|f| f.write_all_at(&[7; 4096], len).unwrap());
    moved("1 MiB cut off", &|f| f.set_len(len - (1 << 20)).unwrap());
    moved("new times and permissions", &|f| f.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap());
    moved("a new name", &|_| std::fs::rename(&path, m.dir.join("renamed")).unwrap());
    m.unmount();
}

/// 10 000 small files are made, listed, read, renamed and deleted, each step on a new mount.
fn a_life_of_files(world: &World, count: usize) {
    let data = block(5);
    let name = |m: &Mount<'_>, what: &str, i: usize| m.dir.join("life").join(format!("{what}-{i:06}"));
    let step = |what: &str, work: &dyn Fn(&Mount<'_>)| {
        let m = world.mount(&[]);
        let (before, t) = (m.requests(), Instant::now());
        work(&m);
        let told = t.elapsed().as_secs_f64();
        m.settle();
        let done = t.elapsed().as_secs_f64();
        let each = (m.requests_in_the_end() - before) as f64 / count as f64;
        println!("{what} {count} files of 1 KiB: {told:.2} s, {done:.2} s until the bucket has it, {each:.3} requests each");
        m.unmount();
    };
    step("make", &|m| {
        std::fs::create_dir(m.dir.join("life")).unwrap();
        (0..count).for_each(|i| std::fs::write(name(m, "made", i), &data[i..i + 1024]).unwrap());
    });
    step("list", &|m| {
        let listed = std::fs::read_dir(m.dir.join("life")).unwrap().map(|e| e.unwrap().metadata().unwrap().len());
        assert_eq!(listed.sum::<u64>(), count as u64 * 1024);
    });
    step("read", &|m| (0..count).for_each(|i| assert_eq!(std::fs::read(name(m, "made", i)).unwrap(), data[i..i + 1024])));
    step("rename", &|m| (0..count).for_each(|i| std::fs::rename(name(m, "made", i), name(m, "kept", i)).unwrap()));
    step("delete", &|m| (0..count).for_each(|i| std::fs::remove_file(name(m, "kept", i)).unwrap()));
}

/// 4 KiB reads past the page cache, of `mib` MiB, for two seconds.
fn random_reads(path: &Path, mib: usize) -> f64 {
    let f = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
    // O_DIRECT wants aligned memory.
    let mut buf = vec![0u8; 8192];
    let skip = buf.as_ptr().align_offset(4096);
    let (mut x, mut n) = (88_172_645_463_325_252u64, 0u64);
    let t = Instant::now();
    while t.elapsed() < Duration::from_secs(2) {
        for _ in 0..64 {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            let at = x % (mib as u64 * 256) * 4096;
            assert_eq!(f.read_at(&mut buf[skip..skip + 4096], at).unwrap(), 4096);
            n += 1;
        }
    }
    n as f64 / t.elapsed().as_secs_f64()
}

fn random(world: &World, rt: &tokio::runtime::Runtime) {
    let mib = 64;
    let m = world.mount(&[]);
    let path = m.dir.join("warm");
    write_file(&path, mib);
    read_file(&path);
    // Twice: the first round brings into the mount's cache what only the page cache had.
    random_reads(&path, mib);
    let ours = random_reads(&path, mib);
    m.unmount();

    let model = Arc::new(ModelFs::new());
    rt.block_on(async {
        let new = NewNode { kind: FileType::File, perm: 0o644, rdev: 0 };
        model.mknod(Default::default(), ROOT, b"warm", new).await.unwrap();
    });
    let dir = tempfile::tempdir().unwrap();
    let session = mount(model, dir.path(), &MountOptions::default(), rt.handle().clone()).unwrap();
    write_file(&dir.path().join("warm"), mib);
    let memory = random_reads(&dir.path().join("warm"), mib);
    session.unmount().unwrap();
    report("4 KiB reads from the cache", ours, "in-memory filesystem", memory, "/s");
}

fn small_files(world: &World, files: usize) {
    let m = world.mount(&[]);
    let dir = m.dir.join("small");
    std::fs::create_dir(&dir).unwrap();
    let before = m.requests();
    let t = Instant::now();
    let data = block(3);
    for i in 0..files {
        std::fs::write(dir.join(format!("file-{i:05}")), &data[..10 << 10]).unwrap();
    }
    let made = t.elapsed().as_secs_f64();
    m.settle();
    let durable = t.elapsed().as_secs_f64();
    let requests = m.requests() - before;
    println!(
        "{files} files of 10 KiB: {made:.2} s to write, {durable:.2} s until uploaded, {:.2} requests each",
        requests as f64 / files as f64
    );
    let many = m.dir.join("many");
    std::fs::create_dir(&many).unwrap();
    for i in 0..files * 10 {
        std::fs::write(many.join(format!("entry-{i:06}")), b"").unwrap();
    }
    m.unmount();

    let m = world.mount(&[]);
    let before = m.requests();
    let t = Instant::now();
    let out = Command::new("ls").arg("-l").arg(m.dir.join("many")).output().unwrap();
    let listed = t.elapsed().as_secs_f64();
    assert_eq!(String::from_utf8_lossy(&out.stdout).lines().count(), files * 10 + 1);
    println!("ls -l of {} entries, cold: {listed:.2} s, {} requests", files * 10, m.requests() - before);
    m.unmount();
}

/// How long it takes until a wrong passphrase is told as such, in a volume with the default cost of its passphrase.
fn wrong_passphrase(world: &World) {
    let url = format!("{}/slow", world.url);
    run(world.smpfs().args(["init", &url]));
    let wrong = world.scratch.path().join("wrong");
    std::fs::write(&wrong, "not the passphrase for benches\n").unwrap();
    let dir = world.scratch.path().join("mnt");
    let t = Instant::now();
    let out = world.smpfs().arg("mount").arg(&url).arg(&dir).arg("--passphrase-file").arg(&wrong).output().unwrap();
    let told = t.elapsed().as_secs_f64();
    assert!(!out.status.success(), "a wrong passphrase mounts nothing");
    println!("a wrong passphrase: told after {told:.2} s, exit status {}", out.status.code().unwrap());
}

fn passes_through(world: &World, gib: usize) {
    let m = world.mount(&[]);
    let path = m.dir.join("huge");
    write_file(&path, gib * 1024);
    let writing = m.peak_mib();
    m.unmount();
    let m = world.mount(&[]);
    assert_eq!(read_file(&m.dir.join("huge")), gib * 1024);
    println!("{gib} GiB pass through: peak {writing} MiB writing, {} MiB reading", m.peak_mib());
    std::fs::remove_file(m.dir.join("huge")).unwrap();
    m.unmount();
}

fn report(what: &str, ours: f64, other: &str, theirs: f64, unit: &str) {
    println!("{what}: {ours:.0} {unit}; {other}: {theirs:.0} {unit}; ratio {:.2}", ours / theirs);
}
