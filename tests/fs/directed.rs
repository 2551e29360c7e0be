//! What the bucket is made to hold, and at what price.

use crate::world::{Mount, SEG, WHO, World, data, quick, same};
use smpfs::crypto::secmem::SecretKey;
use smpfs::disk::SimDisk;
use smpfs::disk::sim::Crash;
use smpfs::env::Env;
use smpfs::error::Kind;
use smpfs::format::entry::{Attributes, Body, Entry};
use smpfs::fs::Options;
use smpfs::ops::{Ops, ROOT, SetAttr};
use smpfs::store::Store;
use smpfs::store::layers::{Fault, Faulty, Verb, Wrap};
use smpfs::tree::io::{IndexIo, Memory};
use smpfs::types::{DirId, Hash, Mode, Suite};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

pub const MODES: [Mode; 2] = [Mode::Standard, Mode::ZeroKnowledge];

pub fn world(mode: Mode) -> World {
    World::new(mode, Suite::Aes256Gcm)
}

/// Objects of files; the rest are index objects.
pub fn objects(world: &World) -> BTreeSet<String> {
    world.keys_in_bucket().into_iter().filter(|k| !k.starts_with(".smpfs/d/")).collect()
}

/// Waits for something that happens in the background.
#[track_caller]
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Ends a mount and checks from another machine that the bucket holds exactly what is named: every file opens, no object is left
/// over.
#[track_caller]
pub fn nothing_left_over(world: &World, mount: Mount) {
    let tree = mount.tree();
    mount.unmount();
    let other = world.fresh();
    let seen = other.tree();
    same("another machine", &tree, &seen);
    let files = seen.values().filter(|l| l.kind == smpfs::ops::FileType::File).count();
    let dirs = seen.values().filter(|l| l.kind == smpfs::ops::FileType::Dir).count();
    let all = world.keys_in_bucket();
    assert_eq!((objects(world).len(), all.len()), (files, files + dirs + 1), "{all:?}");
}

#[test]
fn an_unlinked_file_lives_until_it_is_closed() {
    for mode in MODES {
        let world = world(mode);
        let mount = world.fresh();
        mount.put("saved", &data(1, 700_000));
        mount.drain();
        let (ino, opened) = mount.open("saved", libc::O_RDWR).unwrap();
        let (saved, new) = ((ino, opened.fh), mount.create("new"));
        mount.write(new, 0, &data(2, 300_000)).unwrap();
        mount.unlink("saved").unwrap();
        mount.unlink("new").unwrap();
        assert_eq!(mount.get("saved").unwrap_err().kind(), Kind::NotFound);
        mount.drain();
        mount.fs.drop_caches();
        assert!(mount.read_open(saved, 0, 1 << 20).unwrap() == data(1, 700_000), "the object is still there");
        assert!(mount.read_open(new, 0, 1 << 20).unwrap() == data(2, 300_000));
        mount.write(saved, 5, b"still written").unwrap();
        assert_eq!(&mount.read_open(saved, 5, 13).unwrap()[..], b"still written");
        assert_eq!(mount.wait(mount.fs.getattr(WHO, saved.0)).unwrap().attr.nlink, 0);
        assert_eq!(objects(&world).len(), 1, "{:?}", objects(&world));
        // fsync of a file without a name has nothing to wait for.
        mount.wait(mount.fs.fsync(WHO, saved.0, saved.1, false)).unwrap();
        mount.close(saved).unwrap();
        mount.close(new).unwrap();
        until("the object goes", || objects(&world).is_empty());
        until("the spool is empty", || mount.disk.list("spool").unwrap().is_empty());
        nothing_left_over(&world, mount);
    }
}

#[test]
fn a_file_unlinked_while_it_is_uploaded_leaves_no_object() {
    for mode in MODES {
        for again in [false, true] {
            let world = world(mode);
            let mount = world.fresh();
            if again {
                mount.put("f", &data(3, 1000));
                mount.drain();
            }
            mount.faulty.script(Some(Verb::Put), 1, Fault::Latency(Duration::from_millis(150)));
            mount.put("f", &data(1, 500_000));
            std::thread::sleep(Duration::from_millis(60));
            mount.unlink("f").unwrap();
            mount.drain();
            until("the object goes", || objects(&world).is_empty());
            nothing_left_over(&world, mount);
        }
    }
}

#[test]
fn renames_of_what_is_not_uploaded_yet() {
    for mode in MODES {
        let world = world(mode);
        let mount = world.fresh();
        mount.mkdir("d");
        mount.mkdir("e");
        mount.put("d/old", &data(1, 10_000));
        mount.put("d/over", &data(2, 10_000));
        mount.drain();
        mount.faulty.script(Some(Verb::Put), 3, Fault::Latency(Duration::from_millis(80)));
        mount.put("d/new", &data(3, 600_000));
        mount.put("d/old", &data(4, 20_000));
        mount.rename("d/new", "e/new").unwrap();
        mount.rename("d/old", "d/over").unwrap();
        mount.mkdir("d/sub");
        mount.put("d/sub/x", &data(5, 5000));
        mount.rename("d", "e/d").unwrap();
        mount.rename("e/d/sub", "s").unwrap();
        mount.put("s/y", &data(6, 5000));
        let expect = [("e/new", 3, 600_000), ("e/d/over", 4, 20_000), ("s/x", 5, 5000), ("s/y", 6, 5000)];
        for round in 0..2 {
            for (path, seed, len) in expect {
                assert!(mount.get(path).unwrap() == data(seed, len), "{path}, round {round}");
            }
            mount.drain();
            mount.fs.drop_caches();
        }
        nothing_left_over(&world, mount);
    }
}

#[test]
fn a_moved_file_always_has_a_name_in_the_bucket() {
    // Index writes are let through one at a time; after each, another machine looks. Then the power fails.
    for skip in 0..6 {
        for put_name in ["a", "b"] {
            let (world, disk) = (world(Mode::ZeroKnowledge), SimDisk::new(skip.into()));
            let mount = world.mount(disk.process(), quick());
            mount.mkdir("a");
            mount.mkdir("b");
            mount.put("a/f", &data(1, 1000));
            mount.put("a/g", &data(2, 1000));
            mount.drain();
            mount.faulty.script_on(Some(Verb::Put), ".smpfs/d/", skip, 1000, Fault::Before(Kind::Unavailable));
            mount.rename("a/f", "b/f").unwrap();
            mount.rename("a/g", "b/g").unwrap();
            mount.put(&format!("{put_name}/h"), b"h");
            mount.rename("b/f", "f").unwrap();
            std::thread::sleep(Duration::from_millis(100));
            let other = world.fresh();
            let tree = other.tree();
            for (name, seed) in [("f", 1), ("g", 2)] {
                let named: Vec<_> = tree.iter().filter(|(p, _)| p.ends_with(&format!("/{name}"))).collect();
                assert!(!named.is_empty(), "skip {skip}: {name} has no name: {:?}", tree.keys());
                assert!(named.iter().all(|(_, l)| l.bytes == data(seed, 1000)));
            }
            drop(other);
            disk.crash(Crash::Kill);
            mount.kill();
            let mount = world.mount(disk.process(), quick());
            mount.drain();
            assert_eq!(mount.names("a"), if put_name == "a" { BTreeSet::from(["h".to_owned()]) } else { BTreeSet::new() });
            assert!(mount.get("f").unwrap() == data(1, 1000) && mount.get("b/g").unwrap() == data(2, 1000));
            nothing_left_over(&world, mount);
        }
    }
}

#[test]
fn swapping_names_over_three_renames_across_directories_settles() {
    let world = world(Mode::ZeroKnowledge);
    let mount = world.fresh();
    mount.mkdir("a");
    mount.mkdir("b");
    mount.put("a/f", &data(1, 1000));
    mount.put("b/f", &data(2, 1000));
    mount.drain();
    mount.rename("a/f", "t").unwrap();
    mount.rename("b/f", "a/f").unwrap();
    mount.rename("t", "b/f").unwrap();
    mount.drain();
    assert!(mount.get("a/f").unwrap() == data(2, 1000) && mount.get("b/f").unwrap() == data(1, 1000));
    nothing_left_over(&world, mount);
}

#[test]
fn sizes_up_and_down_and_holes() {
    let world = world(Mode::ZeroKnowledge);
    let mount = world.fresh();
    let len = 3 * SEG as usize + 1000;
    mount.put("f", &data(1, len));
    mount.drain();
    let mut expected = data(1, len);
    let ino = mount.ino("f").unwrap();
    let sizes = [len - 1, SEG as usize + 5, 2 * SEG as usize, 0, 17, 4 * SEG as usize, SEG as usize];
    for (i, size) in sizes.into_iter().enumerate() {
        mount.wait(mount.fs.setattr(WHO, ino, None, SetAttr { size: Some(size as u64), ..SetAttr::default() })).unwrap();
        expected.resize(size, 0);
        assert!(mount.get("f").unwrap() == expected, "cut {i}");
        if i % 2 == 1 {
            mount.drain();
            mount.fs.drop_caches();
            assert!(mount.get("f").unwrap() == expected, "cut {i}, uploaded");
        }
    }
    mount.fs.forget(ino, 1);
    // A write far behind the end leaves a hole that costs no space in the bucket.
    let at = mount.create("sparse");
    mount.write(at, 40 * SEG, b"end").unwrap();
    mount.close(at).unwrap();
    let before = mount.meter.snapshot().bytes_up;
    mount.drain();
    assert!(mount.meter.snapshot().bytes_up - before < 2 * SEG, "holes are not sent");
    let sparse = mount.get("sparse").unwrap();
    assert!(sparse.len() as u64 == 40 * SEG + 3 && sparse[..40 * SEG as usize].iter().all(|b| *b == 0));
    nothing_left_over(&world, mount);
}

#[test]
fn appends_go_to_the_end_whoever_writes() {
    let world = world(Mode::Standard);
    let mount = world.fresh();
    mount.put("f", b"begin ");
    mount.drain();
    let (ino, a) = mount.open("f", libc::O_WRONLY | libc::O_APPEND).unwrap();
    let (_, b) = mount.open("f", libc::O_WRONLY | libc::O_APPEND).unwrap();
    for i in 0..50 {
        let fh = if i % 2 == 0 { a.fh } else { b.fh };
        mount.write((ino, fh), 0, format!("{i} ").as_bytes()).unwrap();
        if i % 10 == 0 {
            mount.wait(mount.fs.fsync(WHO, ino, fh, false)).unwrap();
        }
    }
    mount.close((ino, a.fh)).unwrap();
    mount.close((ino, b.fh)).unwrap();
    let expected: String = (0..50).map(|i| format!("{i} ")).collect();
    assert_eq!(String::from_utf8(mount.get("f").unwrap()).unwrap(), format!("begin {expected}"));
    nothing_left_over(&world, mount);
}

#[test]
fn an_edit_sends_what_changed() {
    let world = world(Mode::ZeroKnowledge);
    let mount = world.fresh();
    // Above the limit of a single request: parts that did not change are copied inside the store.
    let len = 100 * SEG as usize;
    mount.put("f", &data(1, len));
    mount.drain();
    let before = mount.meter.snapshot();
    let (ino, opened) = mount.open("f", libc::O_RDWR).unwrap();
    mount.write((ino, opened.fh), 50 * SEG + 7, &data(2, 1000)).unwrap();
    mount.close((ino, opened.fh)).unwrap();
    mount.drain();
    let after = mount.meter.snapshot();
    let sent = after.bytes_up - before.bytes_up;
    assert!(sent < 4 * SEG, "{sent} bytes sent for an edit of 1000");
    let mut expected = data(1, len);
    expected[50 * SEG as usize + 7..][..1000].copy_from_slice(&data(2, 1000));
    mount.fs.drop_caches();
    assert!(mount.get("f").unwrap() == expected);
    nothing_left_over(&world, mount);
}

#[test]
fn a_thousand_small_files_cost_a_thousand_puts_and_a_few() {
    let world = world(Mode::ZeroKnowledge);
    // However slow the machine is: no index is written before somebody waits for it.
    let patient = Options { commit_delay: Duration::from_secs(3600), ..quick() };
    let mount = world.mount(std::sync::Arc::new(SimDisk::new(1)), patient);
    mount.mkdir("d");
    for i in 0..1000 {
        mount.put(&format!("d/{i}"), &data(i as u8, 900));
    }
    mount.drain();
    let s = mount.meter.snapshot();
    let puts = s.verbs["put"].requests;
    assert!((1000..1030).contains(&puts), "{puts} puts");
    assert!(!s.verbs.contains_key("list"));
    mount.unmount();
    // A cold listing with attributes: no request per file.
    let other = world.fresh();
    let dir = other.ino("d").unwrap();
    let fh = other.wait(other.fs.opendir(WHO, dir)).unwrap();
    let (mut offset, mut n) = (0, 0);
    while let Some(last) = other.wait(other.fs.readdir(WHO, dir, fh, offset, 128, true)).unwrap().last() {
        assert!(last.next > offset);
        offset = last.next;
        n += 1;
    }
    assert!(n > 5);
    let s = other.meter.snapshot();
    assert!(s.requests <= 4, "{} requests for a listing: {s:?}", s.requests);
    assert_eq!(other.names("d").len(), 1000);
}

#[test]
fn a_listing_ends_though_all_that_it_shows_is_renamed() {
    let world = world(Mode::ZeroKnowledge);
    let mount = world.fresh();
    mount.mkdir("d");
    let dir = mount.ino("d").unwrap();
    for i in 0..40 {
        mount.put(&format!("d/n{i}"), b"");
    }
    let fh = mount.wait(mount.fs.opendir(WHO, dir)).unwrap();
    for round in 0..2 {
        let (mut offset, mut seen) = (0, Vec::new());
        loop {
            let part = mount.wait(mount.fs.readdir(WHO, dir, fh, offset, 1, false)).unwrap();
            let Some(last) = part.last() else { break };
            offset = last.next;
            for entry in part {
                if entry.name.starts_with(b"n") {
                    let mv = |from: &[u8], to: &[u8]| mount.wait(mount.fs.rename(WHO, dir, from, dir, to, 0)).unwrap();
                    mv(&entry.name, b"moved");
                    mv(b"moved", &entry.name);
                }
                seen.push(entry.name);
            }
            assert!(seen.len() <= 42, "a name was listed again");
        }
        // The second one begins anew, as after rewinddir(3), and shows what had new cookies by then.
        assert_eq!(seen.len(), 42, "round {round}");
        assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 42);
    }
    mount.put("d/late", b"");
    let late = |offset| mount.wait(mount.fs.readdir(WHO, dir, fh, offset, 100, false)).unwrap().iter().any(|e| e.name == b"late");
    assert!(!late(2) && late(0) && late(2), "what comes later is shown by the next listing");
    mount.unmount();
}

#[test]
fn status_tells_of_names_that_wait() {
    let world = world(Mode::ZeroKnowledge);
    let mount = world.mount(std::sync::Arc::new(SimDisk::new(1)), Options { commit_delay: Duration::from_secs(3600), ..quick() });
    mount.mkdir("d");
    let status = |m: &Mount| {
        let mut s = smpfs::fs::status::Status::default();
        m.fs.fill_status(&mut s);
        s.pending
    };
    assert!(status(&mount).names > 0 && !status(&mount).is_empty());
    mount.drain();
    assert!(status(&mount).is_empty());
    mount.unmount();
}

#[test]
fn closing_what_was_only_read_uploads_nothing_of_a_writer() {
    let world = world(Mode::ZeroKnowledge);
    let mount = world.fresh();
    mount.put("f", &data(1, 1000));
    mount.drain();
    let puts = mount.faulty.seen(Verb::Put);
    let [writer, reader] = [libc::O_RDWR, libc::O_RDONLY].map(|flags| mount.open("f", flags).map(|(i, o)| (i, o.fh)).unwrap());
    mount.write(writer, 0, b"half").unwrap();
    mount.close(reader).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(mount.faulty.seen(Verb::Put), puts);
    // The last one to close it sees to that, whatever it did.
    let reader = mount.open("f", libc::O_RDONLY).map(|(i, o)| (i, o.fh)).unwrap();
    mount.close(writer).unwrap();
    mount.close(reader).unwrap();
    mount.drain();
    assert_eq!(&world.fresh().get("f").unwrap()[..4], b"half");
    mount.unmount();
}

#[test]
fn a_large_directory_is_split_and_listed_whole() {
    let world = world(Mode::ZeroKnowledge);
    let mount = world.fresh();
    mount.mkdir("d");
    let dir = mount.ino("d").unwrap();
    // Links cost no objects: what counts is the index.
    for i in 0..3000 {
        mount.wait(mount.fs.symlink(WHO, dir, format!("n{i:05}").as_bytes(), b"t")).unwrap();
    }
    mount.drain();
    assert_eq!(world.keys_in_bucket().len(), 1 + 1 + 16, "root, head and sixteen shards");
    // Listing goes on while names come and go.
    let fh = mount.wait(mount.fs.opendir(WHO, dir)).unwrap();
    let (mut offset, mut seen, mut round) = (0, Vec::new(), 0);
    loop {
        let part = mount.wait(mount.fs.readdir(WHO, dir, fh, offset, 200, false)).unwrap();
        let Some(last) = part.last() else { break };
        offset = last.next;
        seen.extend(part.into_iter().map(|e| String::from_utf8(e.name).unwrap()));
        mount.wait(mount.fs.unlink(WHO, dir, format!("n{round:05}").as_bytes())).unwrap();
        mount.wait(mount.fs.unlink(WHO, dir, format!("n{:05}", 2999 - round).as_bytes())).unwrap();
        round += 1;
    }
    let count = seen.iter().collect::<BTreeSet<_>>().len();
    assert_eq!(count, seen.len(), "no name twice");
    for i in round..3000 - round {
        assert!(seen.contains(&format!("n{i:05}")), "n{i:05} stayed and was not listed");
    }
    mount.put("d/one more", b"x");
    let puts = mount.meter.snapshot().verbs["put"].requests;
    mount.drain();
    mount.put("d/another", b"x");
    mount.drain();
    assert!(mount.meter.snapshot().verbs["put"].requests - puts < 40, "one shard for a name, not all");
    let names = mount.names("d");
    assert_eq!(names.len(), 3000 - 2 * round + 2);
    mount.unmount();
    let other = world.fresh();
    assert_eq!(other.names("d"), names);
    for name in &names {
        other.unlink(&format!("d/{name}")).unwrap();
    }
    let found = other.wait(other.fs.rmdir(WHO, ROOT, b"d"));
    found.unwrap();
    nothing_left_over(&world, other);
}

#[test]
fn two_machines_in_the_same_directories() {
    for (mode, many) in [(Mode::Standard, 30), (Mode::ZeroKnowledge, 1500)] {
        let world = world(mode);
        let ttl = Options { dir_ttl: Duration::ZERO, ..quick() };
        let [a, b] = [1, 2].map(|seed| world.mount(std::sync::Arc::new(SimDisk::new(seed)), ttl.clone()));
        a.mkdir("d");
        a.drain();
        until("the directory is seen", || b.names("").contains("d"));
        for i in 0..many {
            for (who, mount) in [("a", &a), ("b", &b)] {
                let dir = mount.ino("d").unwrap();
                mount.wait(mount.fs.symlink(WHO, dir, format!("{who}{i}").as_bytes(), b"t")).unwrap();
                if i % 10 == 0 {
                    mount.put(&format!("d/{who}-file{i}"), who.as_bytes());
                }
                if i % 10 == 5 {
                    mount.unlink(&format!("d/{who}{}", i - 1)).unwrap();
                    mount.rename(&format!("d/{who}{i}"), &format!("{who}-moved{i}")).unwrap();
                }
            }
        }
        a.drain();
        b.drain();
        let c = world.fresh();
        let tree = c.tree();
        assert_eq!(tree.len(), 1 + 2 * (many + many / 10 - many / 10));
        for (name, mount) in [("a", &a), ("b", &b)] {
            until(name, || mount.names("") == c.names("") && mount.names("d") == c.names("d"));
            same(name, &tree, &mount.tree());
            assert_eq!(*mount.sink.corrupt.lock(), Vec::<String>::new());
        }
        b.kill();
        a.unmount();
    }
}

#[test]
fn the_journal_and_the_spool_stay_small() {
    let world = world(Mode::ZeroKnowledge);
    let mount = world.fresh();
    let size = |m: &Mount, dir: &str| m.disk.list(dir).unwrap().iter().map(|e| e.len).sum::<u64>();
    for round in 0..30 {
        for i in 0..100 {
            let dir = ROOT;
            let name = format!("{round}-{i}-{}", "x".repeat(150));
            mount.wait(mount.fs.symlink(WHO, dir, name.as_bytes(), &[b'y'; 1000])).unwrap();
            mount.wait(mount.fs.unlink(WHO, dir, name.as_bytes())).unwrap();
        }
        mount.drain();
        assert!(size(&mount, "journal") < 2 << 20, "round {round}: {} bytes", size(&mount, "journal"));
    }
    mount.put("f", &data(1, 3_000_000));
    mount.drain();
    assert_eq!(size(&mount, "spool"), 0);
    nothing_left_over(&world, mount);
}

#[test]
fn times_and_owners_outlive_the_mount() {
    let world = world(Mode::ZeroKnowledge);
    let mount = world.fresh();
    mount.mkdir("d");
    mount.put("d/f", b"x");
    mount.drain();
    let ino = mount.ino("d/f").unwrap();
    let time = smpfs::types::Time { sec: 1_000_000_000, nsec: 123_456_789 };
    let set = SetAttr {
        uid: Some(7),
        gid: Some(8),
        perm: Some(0o4711),
        mtime: Some(smpfs::ops::SetTime::To(time)),
        ..SetAttr::default()
    };
    mount.wait(mount.fs.setattr(WHO, ino, None, set)).unwrap();
    let paths = ["", "d", "d/f"];
    mount.drain();
    let before = paths.map(|p| mount.found(p).unwrap().attr);
    mount.unmount();
    let other = world.fresh();
    let after = paths.map(|p| other.found(p).unwrap().attr);
    assert_eq!(before[2].mtime, time);
    for (path, (b, a)) in paths.iter().zip(before.iter().zip(&after)) {
        assert_eq!(
            (b.mtime, b.ctime, b.btime, b.uid, b.gid, b.perm, b.nlink),
            (a.mtime, a.ctime, a.btime, a.uid, a.gid, a.perm, a.nlink),
            "{path}"
        );
    }
}

#[test]
fn a_readable_key_that_is_taken_is_no_alarm() {
    let world = world(Mode::Standard);
    let mount = world.fresh();
    mount.put("f", &data(1, 1000));
    mount.drain();
    mount.rename("f", "g").unwrap();
    mount.put("f", &data(2, 1000));
    // Somebody has put a file of their own into the bucket.
    mount.wait(world.bucket.put("plain", vec![bytes::Bytes::from_static(b"abc")], smpfs::store::Cond::Absent)).unwrap();
    mount.put("plain", &data(3, 1000));
    mount.drain();
    assert_eq!(*mount.sink.corrupt.lock(), Vec::<String>::new());
    for (name, seed) in [("g", 1), ("f", 2), ("plain", 3)] {
        assert!(mount.get(name).unwrap() == data(seed, 1000));
    }
    let foreign = mount.wait(world.bucket.get("plain", smpfs::store::Span::Whole { max: 9 }, None)).unwrap();
    assert_eq!(&foreign.bytes[..], b"abc", "what is not ours stays");
    mount.unmount();
}

struct Forgetful;

impl Memory for Forgetful {
    fn check(&self, _: &str, _: u64, _: &Hash) -> smpfs::error::Result<()> {
        Ok(())
    }
    fn seen(&self, _: &str) -> bool {
        false
    }
    fn remember(&self, _: &str, _: u64, _: &Hash) -> smpfs::error::Result<()> {
        Ok(())
    }
    fn forget(&self, _: &str) -> smpfs::error::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_split_that_was_given_up_half_way_is_taken_over() {
    let world = tokio::task::spawn_blocking(|| world(Mode::ZeroKnowledge)).await.unwrap();
    let faulty = std::sync::Arc::new(Faulty::new(1));
    let index = |store: std::sync::Arc<dyn Store>| {
        let caps = store.caps();
        IndexIo::new(store, caps, world.keys.clone(), std::sync::Arc::new(Forgetful), Env::real())
    };
    let first = index(std::sync::Arc::new(Wrap::new(world.bucket.clone(), faulty.clone())));
    let second = index(world.bucket.clone());
    let (id, key) = (DirId([5; 16]), SecretKey::new(&[6; 32]));
    let entry = |i: u32| {
        std::sync::Arc::new(Entry {
            name: format!("n{i:04}").into_bytes(),
            attributes: Attributes::default(),
            body: Body::Fifo,
            refs: Vec::new(),
            xattrs: Vec::new(),
        })
    };
    let entries: Vec<_> = (0..300).map(entry).collect();
    let whole = first.create(id, &key, &entries).await.unwrap();
    let sharded = first.split(id, &key, &whole, &entries).await.unwrap();
    // Every old shard is frozen, and then the first machine is gone.
    faulty.script_on(Some(Verb::Put), "", 16, 1000, Fault::Before(Kind::Unavailable));
    assert_eq!(first.split(id, &key, &sharded, &entries).await.unwrap_err().kind(), Kind::Unavailable);
    let (found, listed) = second.load(id, &key).await.unwrap();
    assert_eq!((found.frozen.len(), listed.len()), (16, 300));
    assert!(found.wants_split(300), "a frozen shard takes no entries");
    let more: Vec<_> = (0..301).map(entry).collect();
    let new = second.split(id, &key, &found, &more).await.unwrap();
    assert!(!new.wants_split(301) && new.bits == 8);
    // The first one comes back with what it knew.
    faulty.clear();
    let mine: Vec<_> = entries.iter().filter(|e| sharded.shard_of(&e.name) == 0).cloned().collect();
    let late = first.write_part(id, &key, &sharded, 0, &mine).await.unwrap_err().kind();
    assert!(matches!(late, Kind::Stale | Kind::NotFound), "{late:?}");
    assert_eq!(first.split(id, &key, &sharded, &entries).await.unwrap_err().kind(), Kind::Stale);
    let (now, listed) = first.load(id, &key).await.unwrap();
    assert_eq!((now.epoch, listed.len()), (new.epoch, 301));
}

#[test]
fn a_listing_that_was_dropped_does_not_cost_a_file_on_its_way() {
    let world = world(Mode::ZeroKnowledge);
    let narrow = Options { max_entries: 1, ..quick() };
    let mount = world.mount(std::sync::Arc::new(SimDisk::new(1)), narrow);
    for d in ["a", "b", "c"] {
        mount.mkdir(d);
        mount.put(&format!("{d}/f"), &data(1, 1000));
    }
    mount.drain();
    mount.unmount();
    let mount = world.mount(std::sync::Arc::new(SimDisk::new(2)), Options { max_entries: 1, ..quick() });
    let dir = mount.ino("a").unwrap();
    mount.put("a/f", &data(2, 2000));
    mount.drain();
    mount.faulty.script_on(Some(Verb::Put), "/o/", 0, 1, Fault::Latency(Duration::from_millis(300)));
    mount.put("a/f", &data(3, 3000));
    mount.fs.forget(dir, 10);
    for d in ["b", "c", "b", "c"] {
        let ino = mount.ino(d).unwrap();
        mount.wait(mount.fs.lookup(WHO, ino, b"f")).unwrap();
    }
    mount.drain();
    mount.fs.drop_caches();
    assert!(mount.get("a/f").unwrap() == data(3, 3000));
    nothing_left_over(&world, mount);
}
