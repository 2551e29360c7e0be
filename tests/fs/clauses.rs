//! Promises of docs/SEMANTICS.md that need a machine of their own to look at.

use crate::directed::{MODES, nothing_left_over, objects, until, world};
use crate::world::{Mount, SEG, WHO, World, data, quick};
use smpfs::disk::SimDisk;
use smpfs::error::Kind;
use smpfs::format::names::Place;
use smpfs::fs::Options;
use smpfs::ops::{FileType, NewNode, Ops, ROOT};
use smpfs::store::layers::{Fault, Verb};
use smpfs::store::{Cond, Span};
use smpfs::types::{Mode, Suite};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// A mount whose names would wait for an hour, if nobody asked.
fn slow(world: &World) -> Mount {
    world.mount(Arc::new(SimDisk::new(1)), Options { commit_delay: Duration::from_secs(3600), ..quick() })
}

pub fn fsync(mount: &Mount, at: (u64, u64)) -> Result<(), smpfs::error::Error> {
    mount.wait(mount.fs.fsync(WHO, at.0, at.1, false))
}

fn rewrite(mount: &Mount, path: &str, bytes: &[u8]) -> (u64, u64) {
    let (ino, opened) = mount.open(path, libc::O_RDWR | libc::O_TRUNC).unwrap();
    mount.write((ino, opened.fh), 0, bytes).unwrap();
    (ino, opened.fh)
}

#[test]
fn another_machine_sees_what_was_fsynced() {
    for mode in MODES {
        let world = world(mode);
        let mount = slow(&world);
        mount.mkdir("a");
        mount.mkdir("a/b");
        let at = mount.create("a/b/new");
        mount.write(at, 0, &data(1, 2 * SEG as usize)).unwrap();
        fsync(&mount, at).unwrap();
        assert!(world.fresh().get("a/b/new").unwrap() == data(1, 2 * SEG as usize));
        // An edit, through a descriptor that stays open, and a file that moves before it is asked for.
        mount.write(at, 1000, &data(2, 500)).unwrap();
        mount.rename("a/b/new", "a/moved").unwrap();
        fsync(&mount, at).unwrap();
        let mut expected = data(1, 2 * SEG as usize);
        expected[1000..1500].copy_from_slice(&data(2, 500));
        assert!(world.fresh().get("a/moved").unwrap() == expected);
        // While the store is away it fails, and the upload goes on trying.
        mount.faulty.script(Some(Verb::Put), 1000, Fault::Before(Kind::Denied));
        mount.write(at, 0, b"later").unwrap();
        assert!(fsync(&mount, at).is_err());
        mount.faulty.clear();
        mount.close(at).unwrap();
        mount.drain();
        assert_eq!(&world.fresh().get("a/moved").unwrap()[..5], b"later");
        mount.unmount();
    }
}

#[test]
fn fsync_waits_for_every_name_on_the_way_to_the_root() {
    let world = world(Mode::ZeroKnowledge);
    let options = Options { deadline: Duration::from_millis(200), ..quick() };
    let mount = world.mount(Arc::new(SimDisk::new(1)), options);
    // Every index can be written but that of the root.
    let root = world.keys.index_key(&world.root.dir_id, Place::HEAD);
    mount.faulty.script_on(Some(Verb::Put), &root, 0, 1_000_000, Fault::Before(Kind::Unavailable));
    mount.mkdir("a");
    let dir = mount.mkdir("a/b");
    let at = mount.create("a/b/f");
    mount.write(at, 0, b"here").unwrap();
    until("all but the root is written", || world.keys_in_bucket().len() == 3 && mount.fs.progress().names <= 3);
    for _ in 0..2 {
        assert_eq!(fsync(&mount, at).unwrap_err().errno(), libc::EIO);
        assert_eq!(mount.wait(mount.fs.fsyncdir(WHO, dir)).unwrap_err().errno(), libc::EIO);
    }
    mount.faulty.clear();
    until("the store is believed again", || fsync(&mount, at).is_ok());
    assert_eq!(world.fresh().get("a/b/f").unwrap(), b"here");
    mount.close(at).unwrap();
    nothing_left_over(&world, mount);
}

#[test]
fn another_machine_sees_a_directory_that_was_fsynced() {
    for mode in MODES {
        let world = world(mode);
        let mount = slow(&world);
        mount.mkdir("up");
        let dir = mount.mkdir("up/d");
        mount.put("up/d/closed", &data(1, 5000));
        let open = mount.create("up/d/open");
        mount.write(open, 0, &data(2, 6000)).unwrap();
        mount.create("up/d/empty");
        mount.mkdir("up/d/sub");
        mount.wait(mount.fs.symlink(WHO, dir, b"link", b"closed")).unwrap();
        mount.put("up/d/gone", b"x");
        mount.unlink("up/d/gone").unwrap();
        mount.wait(mount.fs.fsyncdir(WHO, dir)).unwrap();
        let other = world.fresh();
        let names = ["closed", "open", "empty", "sub", "link"].map(str::to_owned);
        assert_eq!(other.names("up/d"), BTreeSet::from(names));
        assert!(other.get("up/d/closed").unwrap() == data(1, 5000));
        assert!(other.get("up/d/open").unwrap() == data(2, 6000));
        assert!(other.get("up/d/empty").unwrap().is_empty());
        // A removal, and a name that went elsewhere.
        mount.unlink("up/d/closed").unwrap();
        mount.rename("up/d/link", "up/link").unwrap();
        mount.wait(mount.fs.fsyncdir(WHO, dir)).unwrap();
        let other = world.fresh();
        assert_eq!(other.names("up/d"), BTreeSet::from(["open", "empty", "sub"].map(str::to_owned)));
        assert!(other.names("up").contains("link"), "it arrived before it left");
        // What cannot be uploaded is told, and not waited for.
        mount.faulty.script_on(Some(Verb::Put), "", 0, 1000, Fault::Before(Kind::Denied));
        mount.put("up/d/refused", b"x");
        let told = mount.wait(mount.fs.fsyncdir(WHO, dir)).unwrap_err();
        assert_eq!(told.kind(), Kind::Denied, "{told}");
        mount.faulty.clear();
        mount.close(open).unwrap();
        nothing_left_over(&world, mount);
    }
}

#[test]
fn an_upload_that_is_refused_is_reported_once_and_tried_again() {
    for kind in [Kind::Denied, Kind::NoSpace] {
        let world = world(Mode::ZeroKnowledge);
        let mount = world.fresh();
        mount.put("f", &data(1, 1000));
        mount.drain();
        mount.faulty.script_on(Some(Verb::Put), "/o/", 0, 1_000_000, Fault::Before(kind));
        let puts = || mount.faulty.seen(Verb::Put);
        let (before, tries) = (puts(), 5);
        mount.put("f", &data(2, 2000));
        until("it is refused again and again", || puts() > before + tries);
        // Two descriptors: the first one that asks is told, the other one not, however often it is refused meanwhile.
        let open = || mount.open("f", libc::O_RDWR).map(|(ino, o)| (ino, o.fh)).unwrap();
        let (first, second) = (open(), open());
        assert_eq!(mount.close(first).unwrap_err().kind(), kind);
        let seen = puts();
        until("it is refused once more", || puts() > seen + tries);
        mount.close(second).unwrap();
        // fsync promises that the bucket has it: it says so as long as that is not true.
        let third = open();
        assert_eq!(fsync(&mount, third).unwrap_err().kind(), kind);
        assert_eq!(fsync(&mount, third).unwrap_err().kind(), kind);
        mount.close(third).unwrap();
        assert!(mount.get("f").unwrap() == data(2, 2000), "the data stay");
        assert_eq!(mount.fs.progress().files, 1);
        assert!(!mount.disk.list("spool").unwrap().is_empty());
        mount.faulty.clear();
        mount.drain();
        assert!(world.fresh().get("f").unwrap() == data(2, 2000), "{kind:?}: it arrives");
        nothing_left_over(&world, mount);
    }
}

#[test]
fn renaming_a_directory_costs_the_same_whatever_is_below() {
    for mode in MODES {
        let world = world(mode);
        let mount = world.fresh();
        for (dir, files) in [("few", 1), ("many", 150)] {
            mount.mkdir(dir);
            mount.mkdir(&format!("{dir}/sub"));
            for i in 0..files {
                mount.put(&format!("{dir}/sub/{i}"), &data(i as u8, 500));
            }
        }
        mount.drain();
        let before = objects(&world);
        let cost = |from: &str, to: &str| {
            let start = mount.meter.snapshot();
            mount.rename(from, to).unwrap();
            mount.drain();
            let end = mount.meter.snapshot();
            // Index objects are put; no object is read, copied or deleted.
            let other = ["get", "copy", "delete", "upload_start", "list"];
            let count = |s: &smpfs::store::layers::Snapshot, v: &str| s.verbs.get(v).map_or(0, |c| c.requests);
            assert!(other.iter().all(|v| count(&start, v) == count(&end, v)), "{mode:?} {from}: {end:?}");
            end.requests - start.requests
        };
        for (from, to) in [("few", "f"), ("many", "m")] {
            let requests = cost(from, to);
            assert!(requests <= 3, "{mode:?}: {requests} requests for {from}");
        }
        mount.mkdir("into");
        mount.drain();
        for (from, to) in [("f", "into/f"), ("m", "into/m")] {
            let requests = cost(from, to);
            assert!(requests <= 6, "{mode:?}: {requests} requests for {from}");
        }
        assert_eq!(objects(&world), before, "the objects keep their keys");
        assert!(mount.get("into/m/sub/149").unwrap() == data(149, 500));
        nothing_left_over(&world, mount);
    }
}

#[test]
fn special_files_and_attributes_outlive_the_mount() {
    let world = world(Mode::ZeroKnowledge);
    let mount = world.fresh();
    let dir = mount.mkdir("d");
    let made = [
        ("fifo", FileType::Fifo, 0),
        ("socket", FileType::Socket, 0),
        ("null", FileType::CharDev, libc::makedev(1, 3)),
        ("disk", FileType::BlockDev, libc::makedev(259, 70_000)),
        ("wide", FileType::CharDev, libc::makedev(4095, 0xf_ffff)),
    ];
    for (name, kind, rdev) in made {
        let new = NewNode { kind, perm: 0o640, rdev };
        mount.wait(mount.fs.mknod(WHO, dir, name.as_bytes(), new)).unwrap();
    }
    mount.put("d/file", b"x");
    mount.wait(mount.fs.symlink(WHO, dir, b"link", b"file")).unwrap();
    let long = vec![7; 60_000];
    let attributes: [(&str, &[u8], &[u8]); 8] = [
        ("d/file", b"user.short", b"one"),
        ("d/file", b"user.empty", b""),
        ("d/file", b"user.long", &long),
        ("d/file", b"security.label", b"two"),
        ("d", b"user.of a directory", b"three"),
        ("d/link", b"trusted.of a link", b"four"),
        ("d/fifo", b"trusted.of a pipe", b"five"),
        ("", b"user.of the root", b"six"),
    ];
    for (path, name, value) in attributes {
        mount.wait(mount.fs.setxattr(WHO, mount.ino(path).unwrap(), name, value, 0)).unwrap();
    }
    for path in ["d/fifo", "d/link"] {
        let refused = mount.wait(mount.fs.setxattr(WHO, mount.ino(path).unwrap(), b"user.x", b"", 0)).unwrap_err();
        assert_eq!(refused.errno(), libc::EPERM, "{path}");
    }
    let acl = mount.wait(mount.fs.setxattr(WHO, dir, b"system.posix_acl_access", b"", 0)).unwrap_err();
    assert_eq!(acl.errno(), libc::EOPNOTSUPP);
    mount.wait(mount.fs.setxattr(WHO, mount.ino("d/file").unwrap(), b"user.gone", b"x", 0)).unwrap();
    mount.wait(mount.fs.removexattr(WHO, mount.ino("d/file").unwrap(), b"user.gone")).unwrap();
    mount.rename("d/null", "null").unwrap();
    let check = |m: &Mount| {
        for (name, kind, rdev) in made {
            let path = if name == "null" { "null".to_owned() } else { format!("d/{name}") };
            let a = m.found(&path).unwrap().attr;
            assert_eq!((a.kind, a.rdev, a.perm), (kind, rdev, 0o640), "{name}");
        }
        for (path, name, value) in attributes {
            let ino = m.ino(path).unwrap();
            assert!(m.wait(m.fs.getxattr(WHO, ino, name)).unwrap() == value, "{path}");
            let names: BTreeSet<Vec<u8>> = m.wait(m.fs.listxattr(WHO, ino)).unwrap().into_iter().collect();
            let expected = attributes.iter().filter(|(p, ..)| *p == path).map(|(_, n, _)| n.to_vec()).collect();
            assert_eq!(names, expected, "{path}");
        }
    };
    check(&mount);
    mount.drain();
    check(&world.fresh());
    nothing_left_over_special(&world, mount);
    check(&world.fresh());
}

/// Ends the mount; what has no object leaves none.
fn nothing_left_over_special(world: &World, mount: Mount) {
    mount.unmount();
    assert_eq!(objects(world).len(), 1, "{:?}", objects(world));
}

/// Breaks the only object of a file: one bit of its trailer, or all of it.
fn harm(world: &World, key: &str, gone: bool) {
    let rt = tokio::runtime::Builder::new_current_thread().build().unwrap();
    rt.block_on(async {
        if gone {
            return world.bucket.delete(key).await.unwrap();
        }
        let mut bytes = world.bucket.get(key, Span::Whole { max: 1 << 30 }, None).await.unwrap().bytes.to_vec();
        let end = bytes.len();
        bytes[end - 100] ^= 1;
        world.bucket.put(key, vec![bytes.into()], Cond::Any).await.unwrap();
    });
}

#[test]
fn a_damaged_or_missing_object_is_written_anew() {
    for (mode, gone) in
        [(Mode::Standard, false), (Mode::Standard, true), (Mode::ZeroKnowledge, false), (Mode::ZeroKnowledge, true)]
    {
        let world = world(mode);
        let mount = world.fresh();
        mount.put("truncated", &data(1, 50_000));
        mount.put("covered", &data(2, 50_000));
        mount.unmount();
        for key in objects(&world) {
            harm(&world, &key, gone);
        }
        let mount = world.fresh();
        for name in ["truncated", "covered"] {
            assert_eq!(mount.get(name).unwrap_err().errno(), libc::EIO, "{mode:?} {gone} {name}");
        }
        let first = rewrite(&mount, "truncated", &data(3, 20_000));
        let (ino, opened) = mount.open("covered", libc::O_RDWR).unwrap();
        let second = (ino, opened.fh);
        mount.write(second, 30_000, &data(4, 40_000)).unwrap();
        mount.write(second, 0, &data(5, 30_000)).unwrap();
        let covered = [data(5, 30_000), data(4, 40_000)].concat();
        // What was written is read before any of it is in the bucket.
        assert!(mount.read_open(second, 0, 1 << 20).unwrap() == covered);
        assert!(mount.get("truncated").unwrap() == data(3, 20_000));
        for at in [first, second] {
            fsync(&mount, at).unwrap_or_else(|e| panic!("{mode:?} {gone}: {e}"));
            mount.close(at).unwrap();
        }
        let other = world.fresh();
        assert!(other.get("truncated").unwrap() == data(3, 20_000) && other.get("covered").unwrap() == covered);
        nothing_left_over(&world, mount);
    }
}

#[test]
fn an_edit_of_a_damaged_file_is_told_and_stays() {
    for gone in [false, true] {
        let world = world(Mode::ZeroKnowledge);
        let disk = SimDisk::new(1);
        let mount = world.mount(disk.process(), quick());
        mount.put("f", &data(1, 2 * SEG as usize));
        mount.drain();
        let key = objects(&world).pop_first().unwrap();
        let good = mount.wait(world.bucket.get(&key, Span::Whole { max: 1 << 30 }, None)).unwrap().bytes;
        mount.unmount();
        harm(&world, &key, gone);
        let mount = world.mount(disk.process(), quick());
        let (ino, opened) = mount.open("f", libc::O_RDWR).unwrap();
        let at = (ino, opened.fh);
        mount.write(at, 70_000, &data(2, 5000)).unwrap();
        assert_eq!(fsync(&mount, at).unwrap_err().kind(), Kind::Corrupt);
        assert!(mount.read_open(at, 70_000, 5000).unwrap() == data(2, 5000), "what was written can be read");
        assert_eq!(mount.read_open(at, 0, 5000).unwrap_err().errno(), libc::EIO);
        mount.close(at).unwrap();
        assert!(mount.wait(mount.fs.drain(Some(Duration::from_millis(300)), &|_| {})).is_err());
        assert!(!mount.disk.list("spool").unwrap().is_empty());
        // Also over the end of the mount; with the object back from a backup it goes on.
        disk.crash(smpfs::disk::sim::Crash::Kill);
        mount.kill();
        let mount = world.mount(disk.process(), quick());
        assert_eq!(mount.recovered.files, 1);
        mount.wait(world.bucket.put(&key, vec![good], Cond::Any)).unwrap();
        mount.drain();
        let mut expected = data(1, 2 * SEG as usize);
        expected[70_000..75_000].copy_from_slice(&data(2, 5000));
        assert!(world.fresh().get("f").unwrap() == expected, "gone: {gone}");
        nothing_left_over(&world, mount);
    }
}

#[test]
fn names_in_memory_stay_within_their_bound() {
    let world = world(Mode::ZeroKnowledge);
    let mount = world.fresh();
    const DIRS: usize = 30;
    const NAMES: usize = 40;
    for d in 0..DIRS {
        let dir = mount.mkdir(&format!("d{d}"));
        for i in 0..NAMES {
            mount.wait(mount.fs.symlink(WHO, dir, format!("n{i}").as_bytes(), b"t")).unwrap();
        }
    }
    mount.unmount();
    let max = 400;
    let mount = world.mount(Arc::new(SimDisk::new(3)), Options { max_entries: max, ..quick() });
    // A name that the kernel knows keeps its directory.
    let used = mount.ino("d7").unwrap();
    mount.wait(mount.fs.lookup(WHO, used, b"n3")).unwrap();
    for round in 0..2 {
        for d in 0..DIRS {
            let ino = mount.ino(&format!("d{d}")).unwrap();
            assert_eq!(mount.names(&format!("d{d}")).len(), NAMES);
            mount.fs.forget(ino, 2);
            // Counted now and then: a sixteenth of the bound may come on top, and the listing that was just read.
            let held = mount.fs.names_held();
            assert!(held.entries <= max + max / 16 + NAMES + 1, "round {round}: {held:?}");
        }
    }
    let before = mount.meter.snapshot().requests;
    assert_eq!(mount.names("d7").len(), NAMES);
    assert_eq!(mount.meter.snapshot().requests, before, "a directory in use is held whole");
    mount.unmount();
}

#[test]
fn a_full_directory_takes_no_more_names() {
    let world = world(Mode::ZeroKnowledge);
    let mount = world.mount(Arc::new(SimDisk::new(3)), Options { max_names: 5, ..quick() });
    let dir = mount.mkdir("d");
    for i in 0..5 {
        mount.wait(mount.fs.symlink(WHO, dir, format!("n{i}").as_bytes(), b"t")).unwrap();
    }
    mount.put("f", b"x");
    let full = |r: Result<(), smpfs::error::Error>| assert_eq!(r.unwrap_err().errno(), libc::ENOSPC);
    full(mount.wait(mount.fs.symlink(WHO, dir, b"one more", b"t")).map(|_| ()));
    full(mount.wait(mount.fs.mkdir(WHO, dir, b"one more", 0o755)).map(|_| ()));
    full(mount.wait(mount.fs.create(WHO, dir, b"one more", 0o644, libc::O_RDWR)).map(|_| ()));
    full(mount.rename("f", "d/one more"));
    // What changes no count goes on, and a name that went makes room.
    mount.rename("d/n0", "d/renamed").unwrap();
    mount.rename("f", "d/n1").unwrap();
    assert_eq!(mount.names("d").len(), 5);
    mount.unlink("d/n2").unwrap();
    mount.put("d/one more", b"y");
    assert_eq!(mount.wait(mount.fs.lookup(WHO, ROOT, b"f")).unwrap_err().errno(), libc::ENOENT);
    assert_eq!(Options::default().max_names, 1 << 24);
    nothing_left_over(&world, mount);
}

#[test]
fn what_was_just_written_is_read_while_the_store_is_away() {
    let world = world(Mode::ZeroKnowledge);
    let mount = world.fresh();
    mount.put("f", &data(1, 5000));
    mount.unmount();
    let mount = world.mount(Arc::new(SimDisk::new(5)), Options { deadline: Duration::from_millis(200), ..quick() });
    mount.names("");
    mount.faulty.black_hole(true);
    let (ino, opened) = mount.open("f", libc::O_RDWR).unwrap();
    let at = (ino, opened.fh);
    mount.write(at, 1000, b"edited").unwrap();
    assert_eq!(mount.read_open(at, 1000, 6).unwrap(), b"edited");
    assert_eq!(mount.read_open(at, 0, 6).unwrap_err().errno(), libc::EIO, "the rest is in the bucket alone");
    mount.faulty.black_hole(false);
    mount.close(at).unwrap();
    nothing_left_over(&world, mount);
}

/// What sqlite does: a new file is still empty and open when its directory is synced. Its upload is begun by the thread that
/// waits for it, and has to get its turn there.
#[test]
fn a_directory_with_a_file_that_is_empty_and_open_is_fsynced() {
    let world = world(Mode::ZeroKnowledge);
    let mount = slow(&world);
    let at = mount.create("empty");
    let fs = mount.fs.clone();
    let done = mount.wait(async {
        let syncing = tokio::spawn(async move { fs.fsyncdir(WHO, ROOT).await });
        tokio::time::timeout(Duration::from_secs(30), syncing).await
    });
    done.expect("it ends").unwrap().unwrap();
    assert!(world.fresh().get("empty").unwrap().is_empty());
    mount.close(at).unwrap();
    mount.unmount();
}

/// What was uploaded while a file was written does not wait to be uploaded.
#[test]
fn what_is_uploaded_ahead_is_not_pending() {
    let world = World::new(Mode::ZeroKnowledge, Suite::Aes256Gcm);
    let mount = world.fresh();
    let at = mount.create("f");
    let size = 12 * crate::world::SEG;
    for i in 0..12 {
        mount.write(at, i * crate::world::SEG, &data(i as u8, crate::world::SEG as usize)).unwrap();
    }
    let mut left = size;
    for _ in 0..500 {
        let now = mount.fs.progress();
        assert!(now.bytes <= size, "{now:?}");
        assert_eq!(now.files, 1, "it is not saved: nobody has closed it");
        left = now.bytes;
        // The next part goes with the next write.
        mount.write(at, size - 1, b"x").unwrap();
        if left <= 4 * crate::world::SEG {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(left <= 4 * crate::world::SEG, "{left} of {size}");
    mount.close(at).unwrap();
    mount.unmount();
}
