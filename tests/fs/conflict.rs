//! Two machines that change the same things at once: nothing that was acknowledged may be lost.

use crate::directed::until;
use crate::world::{Mount, SEG, WHO, World, data, quick};
use smpfs::disk::SimDisk;
use smpfs::disk::sim::Crash;
use smpfs::error::Kind;
use smpfs::fs::Options;
use smpfs::fs::conflict::ConflictKind;
use smpfs::ops::{Ops, SetAttr};
use smpfs::store::layers::Verb;
use smpfs::types::{Mode, Suite};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub const MODES: [Mode; 2] = [Mode::Standard, Mode::ZeroKnowledge];

/// Names go to the bucket when a test says so, and each machine has a name.
pub fn options(host: &str) -> Options {
    Options { host: host.to_owned(), commit_delay: Duration::from_secs(3600), ..quick() }
}

fn machine(world: &World, host: &str) -> Mount {
    world.mount(Arc::new(SimDisk::new(host.len() as u64)), options(host))
}

/// Two machines, with what `prepare` made in sight of both.
pub fn two(mode: Mode, prepare: impl FnOnce(&Mount)) -> (World, Mount, Mount) {
    let world = World::new(mode, Suite::Aes256Gcm);
    let a = machine(&world, "a");
    prepare(&a);
    a.drain();
    let b = machine(&world, "b");
    b.tree();
    (world, a, b)
}

/// Names and contents of files (and names alone of directories), as a machine sees them that knows nothing. A conflict's host
/// stands for its whole mark.
pub fn seen(world: &World) -> BTreeMap<String, Vec<u8>> {
    let other = world.fresh();
    let tree = other.tree();
    assert_eq!(*other.sink.corrupt.lock(), Vec::<String>::new());
    let out = tree.into_iter().map(|(name, leaf)| (short(&name), leaf.bytes)).collect();
    other.kill();
    out
}

fn short(name: &str) -> String {
    match (name.find(" (conflict, "), name.find(')')) {
        (Some(from), Some(to)) => {
            let host = name[from + 12..].split(',').next().unwrap_or_default();
            format!("{}!{host}{}", &name[..from], &name[to + 1..])
        }
        _ => name.to_owned(),
    }
}

fn files(list: &[(&str, Vec<u8>)]) -> BTreeMap<String, Vec<u8>> {
    list.iter().map(|(n, d)| (format!("/{n}"), d.clone())).collect()
}

pub fn kinds(m: &Mount) -> Vec<ConflictKind> {
    m.sink.conflicts.lock().iter().map(|c| c.kind).collect()
}

/// Both end; every object in the bucket is named, and every name has its object.
#[track_caller]
pub fn ends(world: &World, a: Mount, b: Mount, expected: &[(&str, Vec<u8>)]) {
    a.drain();
    b.drain();
    let found = seen(world);
    let names = |t: &BTreeMap<String, Vec<u8>>| t.keys().cloned().collect::<Vec<_>>();
    let expected = files(expected);
    assert_eq!(names(&expected), names(&found));
    assert!(expected == found, "contents");
    for m in [&a, &b] {
        assert_eq!(*m.sink.corrupt.lock(), Vec::<String>::new());
    }
    a.unmount();
    b.unmount();
    assert!(seen(world) == expected, "after both have unmounted");
}

#[test]
fn both_versions_of_a_file_stay_and_the_loser_is_told_once() {
    for mode in MODES {
        let (world, a, b) = two(mode, |m| m.put("scan.dcm", &data(1, 500_000)));
        let (ino, opened) = b.open("scan.dcm", libc::O_RDWR).unwrap();
        let fd = (ino, opened.fh);
        b.write(fd, 0, &data(3, 700_000)).unwrap();
        a.put("scan.dcm", &data(2, 600_000));
        a.drain();
        let told = b.wait(b.fs.fsync(WHO, ino, opened.fh, false)).unwrap_err();
        assert_eq!(told.kind(), Kind::Stale);
        b.wait(b.fs.fsync(WHO, ino, opened.fh, false)).unwrap();
        assert_eq!(b.read_open(fd, 0, 10).unwrap_err().kind(), Kind::Stale);
        assert_eq!(b.write(fd, 0, b"more").unwrap_err().kind(), Kind::Stale);
        b.close(fd).unwrap();
        b.drain();
        assert_eq!(kinds(&b), [ConflictKind::Contents]);
        assert!(kinds(&a).is_empty());
        assert!(b.disk.list("spool").unwrap().is_empty());
        assert!(b.get("scan.dcm").unwrap() == data(2, 600_000), "opened again it is the other version");
        ends(&world, a, b, &[("scan.dcm", data(2, 600_000)), ("scan!b.dcm", data(3, 700_000))]);
    }
}

#[test]
fn an_edit_of_a_part_is_put_together_from_what_the_winner_kept() {
    let len = 5 * SEG as usize;
    let (world, a, b) = two(Mode::ZeroKnowledge, |m| m.put("f", &data(1, len)));
    b.fs.drop_caches();
    let edit = |m: &Mount, at: u64, seed| {
        let (ino, opened) = m.open("f", libc::O_RDWR).unwrap();
        // Whoever edits has read what is there.
        m.read_open((ino, opened.fh), at, 10).unwrap();
        m.write((ino, opened.fh), at, &data(seed, SEG as usize)).unwrap();
        m.close((ino, opened.fh))
    };
    // The second one writes all of the segment that the first one changes, and nothing of the others.
    b.faulty.black_hole(true);
    b.faulty.black_hole(false);
    let (ino, opened) = b.open("f", libc::O_RDWR).unwrap();
    b.read_open((ino, opened.fh), 0, 10).unwrap();
    edit(&a, SEG, 2).unwrap();
    a.drain();
    b.write((ino, opened.fh), SEG, &data(3, SEG as usize)).unwrap();
    let _ = b.close((ino, opened.fh));
    let version = |seed| {
        let mut all = data(1, len);
        all[SEG as usize..2 * SEG as usize].copy_from_slice(&data(seed, SEG as usize));
        all
    };
    ends(&world, a, b, &[("f", version(2)), ("f!b", version(3))]);
}

#[test]
fn what_cannot_be_put_together_is_kept_as_an_incomplete_file() {
    let len = 5 * SEG as usize;
    let (world, a, b) = two(Mode::ZeroKnowledge, |m| m.put("f.dcm", &data(1, len)));
    let (ino, opened) = b.open("f.dcm", libc::O_RDWR).unwrap();
    b.read_open((ino, opened.fh), 0, 10).unwrap();
    b.fs.drop_caches();
    b.write((ino, opened.fh), 4 * SEG, b"edit").unwrap();
    a.put("f.dcm", &data(2, len));
    a.drain();
    let told = b.wait(b.fs.fsync(WHO, ino, opened.fh, false)).unwrap_err();
    assert_eq!(told.kind(), Kind::Stale);
    b.close((ino, opened.fh)).unwrap();
    b.drain();
    assert_eq!(kinds(&b), [ConflictKind::Incomplete]);
    let mut status = smpfs::fs::status::Status::default();
    b.fs.fill_status(&mut status);
    assert_eq!((status.conflicts.incomplete, status.conflicts.stuck, status.pending.files), (1, 0, 0));
    assert!(b.disk.list("spool").unwrap().is_empty());
    a.drain();
    let other = world.fresh();
    assert!(other.get("f.dcm").unwrap() == data(2, len));
    let name = other.names("").into_iter().find(|n| n != "f.dcm").unwrap();
    assert!(name.starts_with("f (conflict, b, ") && name.ends_with(", incomplete).dcm"), "{name}");
    let kept = other.get(&name).unwrap();
    let at = 4 * SEG as usize;
    assert!(kept.len() == len && kept[at..at + 4] == *b"edit" && kept[..at].iter().chain(&kept[at + 4..]).all(|byte| *byte == 0));
    a.unmount();
    b.unmount();
}

#[test]
fn names_made_twice_both_stay() {
    for mode in MODES {
        let (world, a, b) = two(mode, |_| ());
        a.put("f", &data(1, 1000));
        b.put("f", &data(2, 2000));
        a.mkdir("d");
        a.put("d/x", &data(3, 3000));
        b.mkdir("d");
        b.put("d/x", &data(4, 4000));
        a.drain();
        b.drain();
        assert_eq!(kinds(&b), [ConflictKind::Name, ConflictKind::Name]);
        // The machine that lost goes on in its own directory, under its new name.
        let mine = b.names("").into_iter().find(|n| n.starts_with("d (conflict")).unwrap();
        b.put(&format!("{mine}/y"), &data(5, 5000));
        let expected = [
            ("f", data(1, 1000)),
            ("f!b", data(2, 2000)),
            ("d", vec![]),
            ("d/x", data(3, 3000)),
            ("d!b", vec![]),
            ("d!b/x", data(4, 4000)),
            ("d!b/y", data(5, 5000)),
        ];
        ends(&world, a, b, &expected);
    }
}

#[test]
fn a_deletion_counts_for_what_was_seen() {
    for mode in MODES {
        for written_first in [true, false] {
            let (world, a, b) = two(mode, |m| m.put("f", &data(1, 1000)));
            a.put("f", &data(2, 2000));
            b.unlink("f").unwrap();
            let (first, second) = if written_first { (&a, &b) } else { (&b, &a) };
            first.drain();
            second.drain();
            let expected = if written_first { ConflictKind::Kept } else { ConflictKind::Rescued };
            assert_eq!(kinds(second), [expected]);
            assert!(second.get("f").unwrap() == data(2, 2000));
            ends(&world, a, b, &[("f", data(2, 2000))]);
        }
    }
}

#[test]
fn a_name_that_changed_meanwhile_is_not_replaced() {
    for mode in MODES {
        for written_first in [true, false] {
            let (world, a, b) = two(mode, |m| m.put("f", &data(1, 1000)));
            a.put("f", &data(2, 2000));
            b.put("new", &data(3, 3000));
            b.rename("new", "f").unwrap();
            let (first, second) = if written_first { (&a, &b) } else { (&b, &a) };
            first.drain();
            second.drain();
            let expected = match written_first {
                true => [("f", data(2, 2000)), ("f!b", data(3, 3000))],
                false => [("f", data(3, 3000)), ("f!a", data(2, 2000))],
            };
            ends(&world, a, b, &expected);
        }
    }
}

#[test]
fn two_renames_of_one_file_make_two_files() {
    for mode in MODES {
        for across in [false, true] {
            let (world, a, b) = two(mode, |m| {
                m.put("f", &data(1, 400_000));
                m.mkdir("d");
            });
            let (x, y) = if across { ("d/x", "d/y") } else { ("x", "y") };
            a.rename("f", x).unwrap();
            b.rename("f", y).unwrap();
            a.drain();
            b.drain();
            assert_eq!(kinds(&b), [ConflictKind::Rescued]);
            // Each is a file of its own: taking one away leaves the other.
            a.unlink(x).unwrap();
            a.drain();
            ends(&world, a, b, &[("d", vec![]), (y, data(1, 400_000))]);
        }
    }
}

#[test]
fn a_rename_and_a_deletion_of_one_file() {
    for mode in MODES {
        for across in [false, true] {
            for renamed_first in [true, false] {
                let (world, a, b) = two(mode, |m| {
                    m.put("f", &data(1, 1000));
                    m.mkdir("d");
                });
                let to = if across { "d/x" } else { "x" };
                a.rename("f", to).unwrap();
                b.unlink("f").unwrap();
                let (first, second) = if renamed_first { (&a, &b) } else { (&b, &a) };
                first.drain();
                second.drain();
                match renamed_first {
                    true => ends(&world, a, b, &[("d", vec![]), (to, data(1, 1000))]),
                    // The object was deleted before the rename was known: nothing is left to be kept.
                    false => ends(&world, a, b, &[("d", vec![])]),
                }
            }
        }
    }
}

#[test]
fn a_rename_takes_along_what_is_written_meanwhile() {
    for mode in MODES {
        for across in [false, true] {
            let (world, a, b) = two(mode, |m| {
                m.put("f", &data(1, 1000));
                m.mkdir("d");
            });
            let to = if across { "d/x" } else { "x" };
            a.put("f", &data(2, 2000));
            a.drain();
            b.rename("f", to).unwrap();
            b.drain();
            assert!(b.get(to).unwrap() == data(2, 2000));
            ends(&world, a, b, &[("d", vec![]), (to, data(2, 2000))]);
        }
    }
}

#[test]
fn a_file_written_to_while_it_is_renamed_elsewhere_is_kept() {
    for mode in MODES {
        for across in [false, true] {
            let (world, a, b) = two(mode, |m| {
                m.put("f", &data(1, 1000));
                m.mkdir("d");
            });
            let to = if across { "d/x" } else { "x" };
            b.rename("f", to).unwrap();
            a.put("f", &data(2, 2000));
            b.drain();
            a.drain();
            b.drain();
            let found = seen(&world);
            assert!(found.values().any(|v| *v == data(2, 2000)), "{:?}", found.keys());
            assert!(found.keys().any(|k| k == &format!("/{to}")), "{:?}", found.keys());
            a.unmount();
            b.unmount();
        }
    }
}

#[test]
fn a_directory_renamed_twice_stays_where_the_first_put_it() {
    for mode in MODES {
        let (world, a, b) = two(mode, |m| {
            m.mkdir("d");
            m.put("d/f", &data(1, 1000));
        });
        a.rename("d", "x").unwrap();
        b.rename("d", "y").unwrap();
        b.put("y/g", &data(2, 2000));
        a.drain();
        b.drain();
        assert_eq!(kinds(&b), [ConflictKind::Undone]);
        ends(&world, a, b, &[("x", vec![]), ("x/f", data(1, 1000)), ("x/g", data(2, 2000))]);
    }
}

#[test]
fn a_directory_renamed_while_something_is_made_inside() {
    for mode in MODES {
        for renamed_first in [true, false] {
            let (world, a, b) = two(mode, |m| {
                m.mkdir("d");
                m.put("d/f", &data(1, 1000));
            });
            a.rename("d", "x").unwrap();
            b.put("d/g", &data(2, 2000));
            let (first, second) = if renamed_first { (&a, &b) } else { (&b, &a) };
            first.drain();
            second.drain();
            ends(&world, a, b, &[("x", vec![]), ("x/f", data(1, 1000)), ("x/g", data(2, 2000))]);
        }
    }
}

#[test]
fn a_change_of_attributes_never_brings_back_old_contents() {
    for mode in MODES {
        for written_first in [true, false] {
            let (world, a, b) = two(mode, |m| m.put("f", &data(1, 1000)));
            a.put("f", &data(2, 2000));
            let ino = b.ino("f").unwrap();
            b.wait(b.fs.setattr(WHO, ino, None, SetAttr { perm: Some(0o751), ..SetAttr::default() })).unwrap();
            b.wait(b.fs.setxattr(WHO, ino, b"user.k", b"v", 0)).unwrap();
            b.fs.forget(ino, 1);
            let (first, second) = if written_first { (&a, &b) } else { (&b, &a) };
            first.drain();
            second.drain();
            let other = world.fresh();
            let found = other.found("f").unwrap().attr;
            assert_eq!((found.perm, found.size), (0o751, 2000));
            assert_eq!(other.wait(other.fs.getxattr(WHO, found.ino, b"user.k")).unwrap(), b"v");
            other.kill();
            ends(&world, a, b, &[("f", data(2, 2000))]);
        }
    }
}

#[test]
fn conflicts_are_settled_after_a_crash_too() {
    for mode in MODES {
        let world = World::new(mode, Suite::Aes256Gcm);
        let a = machine(&world, "a");
        for name in ["written", "removed", "moved", "deleted"] {
            a.put(name, &data(1, 1000));
        }
        a.drain();
        let disk = SimDisk::new(9);
        let b = world.mount(disk.process(), options("b"));
        b.tree();
        // The second machine is cut off, and its process ends.
        b.faulty.black_hole(true);
        for name in ["written", "removed", "moved", "made"] {
            b.put(name, &data(3, 3000));
        }
        b.unlink("deleted").unwrap();
        disk.crash(Crash::Kill);
        b.kill();
        for name in ["written", "made", "deleted"] {
            a.put(name, &data(2, 2000));
        }
        a.unlink("removed").unwrap();
        a.rename("moved", "elsewhere").unwrap();
        a.drain();
        let b = world.mount(disk.process(), options("b"));
        b.drain();
        let expected = [
            ("written", data(2, 2000)),
            ("written!b", data(3, 3000)),
            ("made", data(2, 2000)),
            ("made!b", data(3, 3000)),
            ("deleted", data(2, 2000)),
            ("removed", data(3, 3000)),
            ("elsewhere", data(1, 1000)),
            ("moved", data(3, 3000)),
        ];
        ends(&world, a, b, &expected);
    }
}

#[test]
fn what_another_machine_saved_is_seen_by_the_next_open() {
    for mode in MODES {
        let (world, a, b) = two(mode, |m| {
            m.mkdir("d");
            m.put("d/f", &data(1, 1000));
        });
        b.kill();
        let b = world.mount(Arc::new(SimDisk::new(5)), Options { dir_ttl: Duration::ZERO, ..options("b") });
        for round in 2..6 {
            let (ino, opened) = b.open("d/f", libc::O_RDONLY).unwrap();
            assert!(b.open("d/f", libc::O_RDONLY).unwrap().1.keep_cache);
            a.put("d/f", &data(round, 1000));
            a.put(&format!("d/{round}"), b"new");
            a.drain();
            assert!(b.get(&format!("d/{round}")).unwrap() == b"new");
            let again = b.wait(b.fs.open(WHO, ino, libc::O_RDONLY)).unwrap();
            assert!(!again.keep_cache, "the kernel drops its pages of the old version");
            assert!(b.read_open((ino, again.fh), 0, 9999).unwrap() == data(round, 1000), "the first look shows it");
            assert_eq!(b.read_open((ino, opened.fh), 0, 9999).unwrap_err().kind(), Kind::Stale);
            a.unlink(&format!("d/{round}")).unwrap();
            a.drain();
            assert_eq!(b.names("d").len(), 1);
        }
        b.kill();
        a.unmount();
    }
}

#[test]
fn looking_costs_one_request_for_a_directory_in_its_time() {
    let (world, a, b) = two(Mode::ZeroKnowledge, |m| {
        m.mkdir("d");
        m.put("d/f", &data(1, 1000));
    });
    b.kill();
    for (ttl, most) in [(Duration::from_secs(3600), 0), (Duration::ZERO, 8)] {
        let b = world.mount(Arc::new(SimDisk::new(5)), Options { dir_ttl: ttl, ..options("b") });
        b.get("d/f").unwrap();
        let before = b.meter.snapshot().requests;
        b.get("d/f").unwrap();
        let after = b.meter.snapshot().requests;
        assert!(after - before <= most, "{} requests", after - before);
        b.kill();
    }
    a.unmount();
}

#[test]
fn a_store_that_is_away_keeps_nobody_waiting_for_news() {
    let (world, a, b) = two(Mode::ZeroKnowledge, |m| m.put("f", &data(1, 1000)));
    b.kill();
    let b = world.mount(Arc::new(SimDisk::new(5)), Options { dir_ttl: Duration::ZERO, ..options("b") });
    b.get("f").unwrap();
    b.faulty.black_hole(true);
    a.put("g", b"new");
    a.drain();
    for _ in 0..50 {
        assert_eq!(b.names("").len(), 1, "what is known is served");
        b.get("f").unwrap();
    }
    b.faulty.black_hole(false);
    until("the news are seen", || b.names("").contains("g"));
    b.kill();
    a.unmount();
}

#[test]
fn what_was_renamed_here_and_removed_there_is_gone_under_a_conflict_name_too() {
    // Whichever of the two names is settled first.
    for (mode, (old, new)) in MODES.into_iter().flat_map(|m| [(m, ("x", "y")), (m, ("y", "x"))]) {
        let (world, a, b) = two(mode, |m| m.put(old, &data(1, 100)));
        a.rename(old, new).unwrap();
        b.unlink(old).unwrap();
        b.put(new, &data(2, 200));
        b.drain();
        // The name that the file was given here is taken: it gives way, and there is nothing left that it could name.
        a.drain();
        ends(&world, a, b, &[(new, data(2, 200))]);
    }
}

#[test]
fn an_old_listing_that_leads_to_nothing_or_to_another_file_is_no_damage() {
    for mode in MODES {
        let world = World::new(mode, Suite::Aes256Gcm);
        let (a, b) = (machine(&world, "a"), machine(&world, "b"));
        ["x", "y", "z"].iter().for_each(|n| a.put(n, &data(1, 100)));
        a.drain();
        assert_eq!(b.names("").len(), 3);
        // Renamed here and removed there; in standard mode another file takes the readable key.
        b.rename("y", "y2").unwrap();
        for name in ["x", "y"] {
            a.unlink(name).unwrap();
            a.drain();
            a.put(name, &data(2, 200));
        }
        a.unlink("z").unwrap();
        a.drain();
        for (name, after) in [("x", Some(data(2, 200))), ("y2", None), ("z", None)] {
            let first = b.get(name).expect_err("what it leads to is gone");
            assert!(matches!(first.kind(), Kind::Stale | Kind::NotFound), "{name}: {first}");
            b.drain();
            assert!(b.get(name).ok() == after, "{name} in {mode:?}");
        }
        ends(&world, a, b, &[("x", data(2, 200)), ("y", data(2, 200))]);
    }
}

/// Writes a file under the name that it had, while it has been renamed elsewhere, and then under its new one.
fn written_under_both_names(mode: Mode, new: &str) -> (World, Mount, Mount) {
    let world = World::new(mode, Suite::Aes256Gcm);
    let (a, b) = (machine(&world, "a"), machine(&world, "b"));
    a.mkdir("d");
    a.put("x", &data(1, 1000));
    a.drain();
    assert_eq!(b.names("").len(), 2);
    a.rename("x", new).unwrap();
    a.drain();
    let old = b.open("x", libc::O_RDWR).map(|(ino, o)| (ino, o.fh)).unwrap();
    b.write(old, 0, &data(2, 2000)).unwrap();
    let _ = b.wait(b.fs.fsync(WHO, old.0, old.1, false));
    b.drain();
    // The first descriptor is still open.
    let at = b.open(new, libc::O_RDWR).map(|(ino, o)| (ino, o.fh)).unwrap();
    b.write(at, 0, &data(3, 3000)).unwrap();
    b.wait(b.fs.fsync(WHO, at.0, at.1, false)).unwrap();
    b.close(at).unwrap();
    let _ = b.close(old);
    (world, a, b)
}

#[test]
fn what_is_written_under_an_old_name_goes_along_within_a_directory() {
    for mode in MODES {
        let (world, a, b) = written_under_both_names(mode, "y");
        assert!(kinds(&b).is_empty());
        ends(&world, a, b, &[("d", Vec::new()), ("y", data(3, 3000))]);
    }
}

#[test]
fn a_file_whose_old_name_was_saved_apart_is_written_under_its_new_one() {
    for mode in MODES {
        let (world, a, b) = written_under_both_names(mode, "d/y");
        ends(&world, a, b, &[("d", Vec::new()), ("d/y", data(3, 3000)), ("x", data(2, 2000))]);
    }
}

#[test]
fn names_that_landed_unheard_before_a_kill_are_no_other_machines() {
    for mode in MODES {
        let world = World::new(mode, Suite::Aes256Gcm);
        let disk = SimDisk::new(3);
        let (mount, hold) = world.held_on(disk.process(), options("a"));
        mount.mkdir("d");
        mount.put("d/c", &data(2, 2000));
        until("the upload landed", || !mount.sink.saved.lock().is_empty());
        // The first index of the directory is written, and the process does not live to hear of it.
        hold.answer(Verb::Put, ".smpfs/d/", 0);
        let fs = mount.fs.clone();
        mount.spawn(async move { drop(fs.drain(None, &|_| {}).await) });
        hold.wait(1);
        disk.crash(Crash::Kill);
        mount.kill();
        let mount = world.mount(disk.process(), options("a"));
        mount.put("b", &data(1, 1000));
        mount.rename("b", "d/c").unwrap();
        mount.drain();
        assert!(kinds(&mount).is_empty(), "{:?}", mount.names("d"));
        assert!(seen(&world) == files(&[("d", Vec::new()), ("d/c", data(1, 1000))]));
        mount.unmount();
    }
}
