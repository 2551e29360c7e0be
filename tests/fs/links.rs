//! Hard links and exchanges: what names lead to, in which order they reach the bucket, and what several machines do to them at once.

use crate::world::{Mount, WHO, World, data, quick, same};
use smpfs::disk::SimDisk;
use smpfs::disk::sim::Crash;
use smpfs::error::Kind;
use smpfs::fs::Options;
use smpfs::ops::{FileType, Ino, NewNode, Ops, ROOT, SetAttr};
use smpfs::store::layers::{Fault, Verb};
use smpfs::types::{Mode, Suite};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

const MODES: [Mode; 2] = [Mode::Standard, Mode::ZeroKnowledge];

fn world(mode: Mode) -> World {
    World::new(mode, Suite::Aes256Gcm)
}

fn objects(world: &World) -> BTreeSet<String> {
    world.keys_in_bucket().into_iter().filter(|k| !k.starts_with(".smpfs/d/")).collect()
}

#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[track_caller]
fn shows(mount: &Mount, path: &str, links: u32, bytes: &[u8]) {
    assert!(mount.get(path).unwrap() == bytes, "contents of {path}");
    assert_eq!(mount.found(path).unwrap().attr.nlink, links, "links of {path}");
}

/// Another machine sees the same tree, and one object for each file, however many names it has.
#[track_caller]
fn nothing_left_over(world: &World, mount: Mount) {
    let tree = mount.tree();
    mount.unmount();
    same("another machine", &tree, &world.fresh().tree());
    let files: BTreeSet<&String> = tree.values().filter(|l| l.kind == FileType::File).map(|l| &l.first).collect();
    until("objects go", || objects(world).len() == files.len());
}

#[test]
fn names_of_one_file_share_everything() {
    for mode in MODES {
        let world = world(mode);
        let mount = world.fresh();
        mount.mkdir("d");
        mount.put("f", &data(1, 5000));
        mount.drain();
        let (ino, before) = (mount.ino("f").unwrap(), mount.found("f").unwrap().attr.ctime);
        assert_eq!(mount.link("f", "d/g").unwrap(), ino);
        assert!(mount.found("f").unwrap().attr.ctime > before, "a new name changes the inode");
        mount.put("d/g", &data(2, 7000));
        shows(&mount, "f", 2, &data(2, 7000));
        let perm = SetAttr { perm: Some(0o600), ..SetAttr::default() };
        mount.wait(mount.fs.setattr(WHO, ino, None, perm)).unwrap();
        assert_eq!(mount.found("d/g").unwrap().attr.perm, 0o600);
        mount.wait(mount.fs.setxattr(WHO, ino, b"user.x", b"1", 0)).unwrap();
        mount.drain();
        mount.link("d/g", "h").unwrap();
        mount.rename("f", "d/f").unwrap();
        for path in ["d/f", "d/g", "h"] {
            assert_eq!(mount.ino(path).unwrap(), ino, "{path}");
            shows(&mount, path, 3, &data(2, 7000));
        }
        // Between two names of one file a rename does nothing.
        mount.rename("d/f", "h").unwrap();
        mount.exchange("d/f", "h").unwrap();
        shows(&mount, "d/f", 3, &data(2, 7000));
        mount.unlink("d/g").unwrap();
        shows(&mount, "h", 2, &data(2, 7000));
        // A rename over one of them.
        mount.put("x", b"x");
        mount.rename("x", "h").unwrap();
        shows(&mount, "d/f", 1, &data(2, 7000));
        mount.drain();
        assert_eq!(mount.wait(mount.fs.getxattr(WHO, ino, b"user.x")).unwrap(), b"1");
        // And the last one, while it is open.
        let (_, opened) = mount.open("d/f", libc::O_RDWR).unwrap();
        mount.unlink("d/f").unwrap();
        mount.drain();
        assert_eq!(mount.wait(mount.fs.getattr(WHO, ino)).unwrap().attr.nlink, 0);
        assert!(mount.read_open((ino, opened.fh), 0, 9000).unwrap() == data(2, 7000));
        let refused = mount.wait(mount.fs.link(WHO, ino, ROOT, b"late")).unwrap_err();
        assert_eq!(refused.kind(), Kind::NotFound);
        mount.close((ino, opened.fh)).unwrap();
        assert_eq!(mount.names("d"), BTreeSet::new());
        mount.wait(mount.fs.rmdir(WHO, ROOT, b"d")).unwrap();
        nothing_left_over(&world, mount);
        assert_eq!(objects(&world).len(), 1);
    }
}

#[test]
fn files_that_are_not_uploaded_and_others_than_files_have_several_names() {
    let world = world(Mode::Standard);
    let mount = world.fresh();
    mount.names("");
    mount.faulty.black_hole(true);
    mount.faulty.black_hole(false);
    let at = mount.create("new");
    mount.write(at, 0, b"first").unwrap();
    mount.link("new", "again").unwrap();
    mount.write(at, 5, b" second").unwrap();
    mount.close(at).unwrap();
    shows(&mount, "again", 2, b"first second");
    mount.wait(mount.fs.symlink(WHO, ROOT, b"soft", b"target")).unwrap();
    let fifo = NewNode { kind: FileType::Fifo, perm: 0o644, rdev: 0 };
    mount.wait(mount.fs.mknod(WHO, ROOT, b"fifo", fifo)).unwrap();
    mount.link("soft", "soft2").unwrap();
    mount.link("fifo", "fifo2").unwrap();
    let dir = mount.mkdir("dir");
    let refused = |ino: Ino, name: &[u8]| mount.wait(mount.fs.link(WHO, ino, ROOT, name)).unwrap_err().kind();
    assert_eq!(refused(dir, b"dir2"), Kind::NotPermitted);
    assert_eq!(refused(mount.ino("soft").unwrap(), b"fifo"), Kind::Exists);
    assert_eq!(refused(mount.ino("soft").unwrap(), b".smpfs"), Kind::NotPermitted);
    mount.drain();
    for name in ["soft2", "fifo2", "soft", "fifo"] {
        assert_eq!(mount.found(name).unwrap().attr.nlink, 2, "{name}");
    }
    assert_eq!(mount.wait(mount.fs.readlink(WHO, mount.ino("soft2").unwrap())).unwrap(), b"target");
    mount.unlink("soft").unwrap();
    mount.unlink("fifo").unwrap();
    nothing_left_over(&world, mount);
}

#[test]
fn a_file_has_up_to_1024_names() {
    let world = world(Mode::ZeroKnowledge);
    let slow = Options { commit_delay: Duration::from_secs(2), ..quick() };
    let mount = world.mount(Arc::new(SimDisk::new(1)), slow);
    mount.put("f", b"x");
    let ino = mount.ino("f").unwrap();
    let link = |i: u32| mount.wait(mount.fs.link(WHO, ino, ROOT, format!("l{i}").as_bytes()));
    for i in 1..1024 {
        link(i).unwrap();
    }
    assert_eq!(link(1024).unwrap_err().errno(), libc::EMLINK);
    assert_eq!(mount.found("f").unwrap().attr.nlink, 1024);
    // A rename of one of them is none more.
    mount.rename("l7", "moved").unwrap();
    mount.unmount();
    let other = world.fresh();
    assert_eq!((other.names("").len(), other.found("moved").unwrap().attr.nlink), (1024, 1024));
}

#[test]
fn a_listing_of_links_takes_no_request_per_file() {
    let world = world(Mode::ZeroKnowledge);
    let mount = world.fresh();
    mount.mkdir("d");
    mount.mkdir("e");
    for i in 0..200 {
        mount.put(&format!("d/{i}"), &data(i as u8, 10));
        mount.link(&format!("d/{i}"), &format!("e/{i}")).unwrap();
    }
    mount.unmount();
    let other = world.fresh();
    let dir = other.ino("e").unwrap();
    let fh = other.wait(other.fs.opendir(WHO, dir)).unwrap();
    let (mut offset, mut seen) = (0, 0);
    loop {
        let part = other.wait(other.fs.readdir(WHO, dir, fh, offset, 64, true)).unwrap();
        let Some(last) = part.last() else { break };
        offset = last.next;
        let listed = part.iter().filter(|e| e.name != b"." && e.name != b"..");
        seen += listed.inspect(|e| assert_eq!((e.attr.nlink, e.attr.size, e.attr.kind), (2, 10, FileType::File))).count();
    }
    assert_eq!(seen, 200);
    let s = other.meter.snapshot();
    assert!(s.requests <= 6, "{} requests for a listing: {s:?}", s.requests);
}

#[test]
fn many_linked_files_split_the_links_directory() {
    let world = world(Mode::ZeroKnowledge);
    let mount = world.fresh();
    for i in 0..1100 {
        mount.wait(mount.fs.symlink(WHO, ROOT, format!("s{i}").as_bytes(), b"t")).unwrap();
        mount.link(&format!("s{i}"), &format!("t{i}")).unwrap();
    }
    mount.drain();
    mount.unlink("s7").unwrap();
    mount.rename("t9", "u9").unwrap();
    nothing_left_over(&world, mount);
    let other = world.fresh();
    assert_eq!(other.found("t7").unwrap().attr.nlink, 1);
    assert_eq!(other.ino("s9").unwrap(), other.ino("u9").unwrap());
}

#[test]
fn a_link_never_leads_nowhere_in_the_bucket() {
    // Index writes are let through one at a time; after each, another machine looks. Then the process dies.
    for skip in 0..14 {
        let (world, disk) = (world(Mode::ZeroKnowledge), SimDisk::new(skip.into()));
        let mount = world.mount(disk.process(), quick());
        mount.mkdir("a");
        mount.mkdir("b");
        mount.put("a/f", &data(1, 1000));
        mount.put("a/g", &data(2, 1000));
        mount.link("a/g", "b/g").unwrap();
        mount.drain();
        mount.faulty.script_on(Some(Verb::Put), ".smpfs/d/", skip, 1000, Fault::Before(Kind::Unavailable));
        mount.link("a/f", "b/f").unwrap();
        std::thread::sleep(Duration::from_millis(20));
        mount.rename("b/f", "f").unwrap();
        mount.unlink("a/f").unwrap();
        mount.link("f", "b/h").unwrap();
        mount.rename("a/g", "b/h2").unwrap();
        mount.unlink("b/g").unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let other = world.fresh();
        // Whatever is listed opens.
        let tree = other.tree();
        let files: Vec<_> = tree.iter().filter(|(_, l)| l.kind == FileType::File).collect();
        for (path, leaf) in &files {
            let names = files.iter().filter(|(_, l)| l.first == leaf.first).count();
            // A first name that was removed right after the second one came may be seen as it was before.
            let as_before = path.as_str() == "/a/f" && leaf.links == 1;
            assert!(as_before || leaf.links as usize >= names, "skip {skip}: {path} has {names} names and counts {}", leaf.links);
        }
        for seed in [1, 2] {
            assert!(files.iter().any(|(_, l)| l.bytes == data(seed, 1000)), "skip {skip}: file {seed} has no name");
        }
        drop(other);
        disk.crash(Crash::Kill);
        mount.kill();
        let mount = world.mount(disk.process(), quick());
        mount.drain();
        assert_eq!(mount.names("a"), BTreeSet::new());
        shows(&mount, "f", 2, &data(1, 1000));
        shows(&mount, "b/h", 2, &data(1, 1000));
        shows(&mount, "b/h2", 1, &data(2, 1000));
        nothing_left_over(&world, mount);
    }
}

#[test]
fn fsync_of_a_linked_file_puts_its_names_into_the_bucket() {
    let world = world(Mode::ZeroKnowledge);
    let slow = Options { commit_delay: Duration::from_secs(3600), ..quick() };
    let mount = world.mount(Arc::new(SimDisk::new(1)), slow);
    let at = mount.create("f");
    mount.write(at, 0, b"bytes").unwrap();
    mount.mkdir("d");
    mount.link("f", "d/g").unwrap();
    mount.wait(mount.fs.fsync(WHO, at.0, at.1, false)).unwrap();
    let other = world.fresh();
    for path in ["f", "d/g"] {
        shows(&other, path, 2, b"bytes");
    }
}

#[test]
fn an_exchange_takes_both_names_at_once() {
    for mode in MODES {
        let (world, disk) = (world(mode), SimDisk::new(4));
        let mut mount = world.mount(disk.process(), quick());
        for d in ["a", "b", "a/sub"] {
            mount.mkdir(d);
        }
        mount.put("a/f", &data(1, 1000));
        mount.put("a/sub/x", &data(2, 1000));
        mount.drain();
        mount.put("b/new", &data(3, 1000));
        mount.link("a/f", "b/linked").unwrap();
        let kind = |r: Result<(), smpfs::error::Error>| r.unwrap_err().kind();
        assert_eq!(kind(mount.exchange("a/f", "b/none")), Kind::NotFound);
        assert_eq!(kind(mount.exchange("a", "a/sub")), Kind::Invalid);
        assert_eq!(kind(mount.exchange("a/sub", "a")), Kind::Invalid);
        let both = mount.wait(mount.fs.rename(WHO, ROOT, b"a", ROOT, b"b", libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE));
        assert_eq!(kind(both), Kind::Invalid);
        let white = mount.wait(mount.fs.rename(WHO, ROOT, b"a", ROOT, b"z", libc::RENAME_WHITEOUT));
        assert_eq!(kind(white), Kind::Invalid);
        let before = ["a", "b"].map(|d| mount.found(d).unwrap().attr.mtime);
        // A directory and a file that is not uploaded; a link and a directory; two directories.
        mount.exchange("a/sub", "b/new").unwrap();
        for (d, before) in ["a", "b"].into_iter().zip(before) {
            assert!(mount.found(d).unwrap().attr.mtime > before, "{d}");
        }
        mount.exchange("b/linked", "b/new").unwrap();
        mount.exchange("a", "b").unwrap();
        for round in 0..3 {
            shows(&mount, "b/f", 2, &data(1, 1000));
            shows(&mount, "a/new", 2, &data(1, 1000));
            shows(&mount, "a/linked/x", 1, &data(2, 1000));
            shows(&mount, "b/sub", 1, &data(3, 1000));
            assert_eq!(mount.ino("b/f").unwrap(), mount.ino("a/new").unwrap());
            match round {
                0 => {
                    // A first version that lands unheard at a readable key stays there when the name is another by then: `scrub --gc` finds it.
                    if mode == Mode::Standard {
                        crate::directed::until("contents are uploaded", || mount.fs.progress().files == 0);
                    }
                    disk.crash(Crash::Kill);
                    mount.kill();
                    mount = world.mount(disk.process(), quick());
                }
                _ => mount.drain(),
            }
        }
        nothing_left_over(&world, mount);
    }
}

/// Two machines that know of each other's changes only when they lose a race.
fn two(world: &World) -> [Mount; 2] {
    let slow = Options { commit_delay: Duration::from_secs(3600), ..quick() };
    [1, 2].map(|seed| world.mount(Arc::new(SimDisk::new(seed)), slow.clone()))
}

/// A file with the names given, which both machines have seen.
fn with_names(world: &World, names: &[&str]) -> [Mount; 2] {
    let first = world.fresh();
    first.mkdir("d");
    first.put(names[0], &data(1, 1000));
    for name in &names[1..] {
        first.link(names[0], name).unwrap();
    }
    first.unmount();
    let both = two(world);
    for mount in &both {
        assert!(mount.tree().len() > names.len());
    }
    both
}

#[track_caller]
fn ends_with(world: &World, mounts: [Mount; 2], expected: &[(&str, u32, u8)]) {
    for mount in &mounts {
        assert_eq!(*mount.sink.corrupt.lock(), Vec::<String>::new());
    }
    let other = world.fresh();
    let files: Vec<String> = other.tree().into_iter().filter(|(_, l)| l.kind == FileType::File).map(|(p, _)| p).collect();
    assert_eq!(files, expected.iter().map(|(p, ..)| format!("/{p}")).collect::<Vec<_>>());
    for (path, links, seed) in expected {
        shows(&other, path, *links, &data(*seed, 1000));
    }
    let count = other.tree().values().filter(|l| l.kind == FileType::File).map(|l| l.first.clone()).collect::<BTreeSet<_>>();
    until("objects go", || objects(world).len() == count.len());
    for mount in mounts {
        mount.kill();
    }
}

#[test]
fn two_machines_that_remove_a_name_each_remove_all() {
    let world = world(Mode::ZeroKnowledge);
    let [a, b] = with_names(&world, &["x", "d/y"]);
    a.unlink("x").unwrap();
    b.unlink("d/y").unwrap();
    a.drain();
    b.drain();
    ends_with(&world, [a, b], &[]);
}

#[test]
fn a_name_that_another_machine_gave_keeps_a_file_that_was_removed_here() {
    let world = world(Mode::ZeroKnowledge);
    let [a, b] = with_names(&world, &["x", "d/y"]);
    let (ino, opened) = a.open("x", libc::O_RDONLY).unwrap();
    a.unlink("x").unwrap();
    a.unlink("d/y").unwrap();
    b.link("x", "d/z").unwrap();
    b.link("x", "d/zz").unwrap();
    b.drain();
    a.drain();
    a.close((ino, opened.fh)).unwrap();
    shows(&a, "d/z", 2, &data(1, 1000));
    ends_with(&world, [a, b], &[("d/z", 2, 1), ("d/zz", 2, 1)]);
}

#[test]
fn links_of_two_machines_are_all_counted() {
    let world = world(Mode::Standard);
    let [a, b] = with_names(&world, &["x"]);
    a.link("x", "d/a").unwrap();
    b.link("x", "d/b").unwrap();
    a.drain();
    b.drain();
    b.rename("d/b", "d/c").unwrap();
    b.drain();
    let other = world.fresh();
    for path in ["d/a", "d/c", "x"] {
        // One too many at most: both made a link of the first name.
        let links = other.found(path).unwrap().attr.nlink;
        assert!((3..=4).contains(&links), "{links}");
        assert!(other.get(path).unwrap() == data(1, 1000));
    }
    for name in ["x", "d/a"] {
        other.unlink(name).unwrap();
    }
    other.unmount();
    let other = world.fresh();
    assert!(other.get("d/c").unwrap() == data(1, 1000));
    assert_eq!(objects(&world).len(), 1);
}

#[test]
fn a_file_that_gets_a_second_name_elsewhere_outlives_what_is_done_to_its_first_one() {
    type Act = fn(&Mount);
    // What is done, and what is there afterwards: names, links, contents.
    type Case<'a> = (&'a str, Act, &'a [(&'a str, u32, u8)]);
    let cases: [Case<'_>; 5] = [
        ("unlink", |b| b.unlink("x").unwrap(), &[("d/a", 1, 1)]),
        ("rename", |b| b.rename("x", "d/b").unwrap(), &[("d/a", 2, 1), ("d/b", 2, 1)]),
        (
            "replace",
            |b| {
                b.put("new", &data(3, 1000));
                b.rename("new", "x").unwrap();
            },
            &[("d/a", 1, 1), ("x", 1, 3)],
        ),
        ("write", |b| b.put("x", &data(2, 1000)), &[("d/a", 2, 2), ("x", 2, 2)]),
        (
            "chmod",
            |b| {
                let set = SetAttr { perm: Some(0o600), ..SetAttr::default() };
                b.wait(b.fs.setattr(WHO, b.ino("x").unwrap(), None, set)).unwrap();
            },
            &[("d/a", 2, 1), ("x", 2, 1)],
        ),
    ];
    for (what, act, expected) in cases {
        let world = world(Mode::ZeroKnowledge);
        let [a, b] = with_names(&world, &["x"]);
        a.link("x", "d/a").unwrap();
        act(&b);
        a.drain();
        b.drain();
        println!("{what}");
        if what == "chmod" {
            assert_eq!(world.fresh().found("d/a").unwrap().attr.perm, 0o600);
        }
        ends_with(&world, [a, b], expected);
    }
}

#[test]
fn a_link_whose_inode_is_lost_is_listed_and_an_error() {
    for whole in [true, false] {
        let world = world(Mode::ZeroKnowledge);
        let mount = world.fresh();
        mount.put("plain", b"plain");
        mount.put("x", b"x");
        mount.link("x", "y").unwrap();
        mount.drain();
        let links = world.keys.index_key(&world.keys.links_dir().dir_id, smpfs::format::names::Place::HEAD);
        let older = mount.wait(world.bucket.get(&links, smpfs::store::Span::Whole { max: 1 << 20 }, None)).unwrap().bytes;
        mount.put("z", b"z");
        mount.link("z", "w").unwrap();
        mount.unmount();
        let other = world.fresh();
        // On a machine that has never seen it: gone, or set back to before the second file had two names.
        match whole {
            true => other.wait(world.bucket.delete(&links)).unwrap(),
            false => drop(other.wait(world.bucket.put(&links, vec![older], smpfs::store::Cond::Any)).unwrap()),
        }
        assert_eq!(other.names("").len(), 5);
        for name in ["z", "w"] {
            assert_eq!(other.found(name).unwrap_err().errno(), libc::EIO, "{name}");
        }
        assert_eq!(other.found("x").is_ok(), !whole);
        assert!(!other.sink.corrupt.lock().is_empty());
        assert_eq!(other.get("plain").unwrap(), b"plain");
        let fh = other.wait(other.fs.opendir(WHO, ROOT)).unwrap();
        let listed = other.wait(other.fs.readdir(WHO, ROOT, fh, 0, 100, true));
        match whole {
            // As any other index that is gone.
            true => assert_eq!(listed.unwrap_err().errno(), libc::EIO),
            false => {
                let lost: Vec<_> = listed.unwrap().into_iter().filter(|e| e.name == b"z" || e.name == b"w").collect();
                assert!(lost.len() == 2 && lost.iter().all(|e| e.ttl == Duration::ZERO), "the kernel asks, and hears of it");
                let ino = lost[0].attr.ino;
                assert_eq!(other.wait(other.fs.getattr(WHO, ino)).unwrap_err().errno(), libc::EIO);
                assert_eq!(other.wait(other.fs.open(WHO, ino, libc::O_RDONLY)).unwrap_err().errno(), libc::EIO);
                // Such a name can be removed.
                other.unlink("z").unwrap();
                assert_eq!(other.names("").len(), 4);
            }
        }
        other.kill();
    }
}
