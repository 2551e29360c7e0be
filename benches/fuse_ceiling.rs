//! The ceiling: what a mount reaches when the filesystem behind it costs nothing.
//!
//! Mounts the in-memory reference filesystem through `smpfs::fuse` and measures, each in one line with the CPU time of this
//! process (which holds both the mount and the reader):
//! sequential reads cold and from the page cache, 4 KiB random reads past the page cache, sequential writes, stat and listing.
//! A whole mount of a bucket is compared with these figures, never with another machine's.
//!
//! `cargo bench --bench fuse_ceiling [-- --small]`; needs /dev/fuse. As an ordinary user it mounts through fusermount3.
#![allow(clippy::unwrap_used)]

#[path = "../tests/support/mod.rs"]
mod support;

use smpfs::fuse::{MountOptions, Session, mount};
use smpfs::ops::{Ops, ROOT};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::model::ModelFs;

const MIB: usize = 1 << 20;

fn main() {
    if let Err(e) = OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        println!("skipped: /dev/fuse cannot be opened: {e}");
        return;
    }
    let small = std::env::args().any(|a| a == "--small");
    let mib = if small { 64 } else { 1024 };
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();

    let m = Mounted::new(ModelFs::new().keep_cache().ttl(Duration::from_secs(60)), &rt);
    m.write("sequential write, 1 MiB blocks", mib);
    // Written pages stay in the page cache; cold means that the kernel was told to drop them.
    assert!(m.session.invalidate_all() > 0);
    m.sequential("sequential read, cold", mib);
    m.sequential("sequential read, page cache", mib);
    m.random_read("4 KiB random read, page cache", mib, 400_000, 1);
    m.names(if small { 2_000 } else { 20_000 });
    m.end();

    let m = Mounted::new(ModelFs::new().direct_io(), &rt);
    m.write("sequential write, 1 MiB blocks, direct", mib);
    m.sequential("sequential read, direct", mib);
    let n = if small { 20_000 } else { 200_000 };
    m.random_read("4 KiB random read, direct, 1 reader", mib, n, 1);
    m.random_read("4 KiB random read, direct, 4 readers", mib, n, 4);
    m.end();
}

struct Mounted {
    session: Session,
    model: Arc<ModelFs>,
    dir: tempfile::TempDir,
}

impl Mounted {
    fn new(model: ModelFs, rt: &tokio::runtime::Runtime) -> Mounted {
        let (model, dir) = (Arc::new(model), tempfile::tempdir().unwrap());
        let ops: Arc<dyn Ops> = model.clone();
        let session = mount(ops, dir.path(), &MountOptions::default(), rt.handle().clone()).unwrap();
        Mounted { session, model, dir }
    }

    fn file(&self) -> std::path::PathBuf {
        self.dir.path().join("big")
    }

    fn write(&self, what: &str, mib: usize) {
        let block = vec![0xA5u8; MIB];
        measure(what, mib as f64, "MB/s", 1.048_576, || {
            let mut f = File::create(self.file()).unwrap();
            (0..mib).for_each(|_| f.write_all(&block).unwrap());
        });
    }

    fn sequential(&self, what: &str, mib: usize) {
        let mut block = vec![0u8; MIB];
        measure(what, mib as f64, "MB/s", 1.048_576, || {
            let mut f = File::open(self.file()).unwrap();
            let mut got = 0;
            loop {
                match f.read(&mut block).unwrap() {
                    0 => break,
                    n => got += n,
                }
            }
            assert_eq!(got, mib * MIB);
        });
    }

    fn random_read(&self, what: &str, mib: usize, reads: usize, readers: usize) {
        let path = self.file();
        measure(what, reads as f64, "reads/s", 1.0, || {
            std::thread::scope(|s| {
                for r in 0..readers {
                    let path = &path;
                    s.spawn(move || random_reader(path, mib, reads / readers, r as u64));
                }
            });
        });
    }

    fn names(&self, n: usize) {
        for i in 0..n {
            self.model.add_behind(ROOT, format!("file-{i:05}").as_bytes());
        }
        let big = fs::metadata(self.file()).unwrap().len();
        measure("list with attributes, cold", n as f64, "names/s", 1.0, || {
            let sizes = fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len());
            assert_eq!(sizes.sum::<u64>(), big, "all files but one are empty");
        });
        let path = self.dir.path().join("file-00000");
        measure("stat, kernel cache", 200_000.0, "stats/s", 1.0, || {
            (0..200_000).for_each(|_| assert_eq!(fs::metadata(&path).unwrap().len(), 0));
        });
    }

    fn end(self) {
        self.session.unmount().unwrap();
        assert!(self.session.wait(Duration::from_secs(60)));
    }
}

fn random_reader(path: &Path, mib: usize, reads: usize, seed: u64) {
    let f = File::open(path).unwrap();
    const BLOCK: u64 = 4096;
    let mut buf = [0u8; BLOCK as usize];
    let blocks = (mib * MIB) as u64 / BLOCK;
    // A small generator is enough to defeat readahead.
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for _ in 0..reads {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        f.read_exact_at(&mut buf, x % blocks * BLOCK).unwrap();
    }
}

/// One line: the rate, and the CPU time it cost.
fn measure(what: &str, amount: f64, unit: &str, scale: f64, f: impl FnOnce()) {
    let (start, cpu) = (Instant::now(), cpu_seconds());
    f();
    let (wall, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    println!("{what:<42} {:>12.0} {unit:<8} {wall:>7.2} s wall {cpu:>7.2} s CPU", amount * scale / wall);
}

fn cpu_seconds() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let sec = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    sec(usage.user_time()) + sec(usage.system_time())
}
