//! Power losses and damage on the local disk.

use crate::world::{Mount, SEG, WHO, World, data, quick, same};
use smpfs::disk::SimDisk;
use smpfs::disk::sim::{Crash, Faults};
use smpfs::fs::{FsyncMode, Options};
use smpfs::ops::Ops;
use smpfs::store::layers::{Fault, Verb};
use smpfs::types::{Mode, Suite};

fn world() -> World {
    World::new(Mode::ZeroKnowledge, Suite::Aes256Gcm)
}

fn local() -> Options {
    Options { fsync: FsyncMode::Local, ..quick() }
}

fn die(disk: &SimDisk, mount: Mount, how: Crash) {
    disk.crash(how);
    mount.kill();
}

#[test]
fn what_was_synced_outlives_a_power_loss() {
    for seed in 0..40 {
        let (world, disk) = (world(), SimDisk::new(seed));
        // The bucket is far away all the time: everything is on the local disk alone.
        let mount = world.mount(disk.process(), local());
        mount.put("old", &data(1, 300_000));
        mount.drain();
        mount.faulty.black_hole(true);
        let (old, new) = (mount.open("old", libc::O_RDWR).unwrap(), mount.create("new"));
        let old = (old.0, old.1.fh);
        mount.write(old, 100_000, &data(2, 70_000)).unwrap();
        mount.write(new, 0, &data(3, 400_000)).unwrap();
        for at in [old, new] {
            mount.wait(mount.fs.fsync(WHO, at.0, at.1, false)).unwrap();
        }
        // Written and never synced: it may be lost, in whole or from some point on.
        let late = mount.create("late");
        for i in 0..20 {
            mount.write(late, i * 90_000, &data(4, 90_000)).unwrap();
        }
        die(&disk, mount, Crash::Power);
        let mount = world.mount(disk.process(), local());
        let mut expected = data(1, 300_000);
        expected[100_000..170_000].copy_from_slice(&data(2, 70_000));
        assert!(mount.get("old").unwrap() == expected, "seed {seed}: an overwritten part");
        assert!(mount.get("new").unwrap() == data(3, 400_000), "seed {seed}: a new file");
        if let Ok(late) = mount.get("late") {
            for (i, piece) in late.chunks(90_000).enumerate() {
                assert!(*piece == data(4, 90_000)[..piece.len()], "seed {seed}: piece {i} of a file that was never synced");
            }
        }
        let tree = mount.tree();
        mount.unmount();
        same("another machine", &tree, &world.fresh().tree());
    }
}

#[test]
fn damage_behind_synced_data_costs_only_what_is_behind() {
    let (world, disk) = (world(), SimDisk::new(1));
    let mount = world.mount(disk.process(), local());
    mount.names("");
    mount.faulty.black_hole(true);
    let at = mount.create("f");
    mount.write(at, 0, &data(1, 200_000)).unwrap();
    mount.wait(mount.fs.fsync(WHO, at.0, at.1, false)).unwrap();
    let good: std::collections::BTreeMap<_, _> = disk.files().into_iter().map(|(n, b)| (n, b.len())).collect();
    mount.write(at, 200_000, &data(2, 200_000)).unwrap();
    mount.mkdir("d");
    mount.create("g");
    disk.crash(Crash::Kill);
    // The drive loses a sector behind what was synced, in spool and journal, with whole records after it.
    for (name, len) in good.iter().filter(|(n, _)| n.starts_with("spool/") || n.starts_with("journal/")) {
        disk.tamper(name, |b| b[len + 40] ^= 1).unwrap();
    }
    mount.kill();
    let mount = world.mount(disk.process(), local());
    assert_eq!(mount.recovered.unreadable, 0);
    assert_eq!(mount.recovered.damaged, 2, "journal and spool");
    assert!(mount.get("f").unwrap() == data(1, 200_000));
    assert!(!mount.sink.trouble.lock().is_empty(), "the loss is told");
    mount.unmount();
    assert!(world.fresh().get("f").unwrap() == data(1, 200_000));
}

#[test]
fn a_log_that_does_not_open_at_all_is_kept_and_told() {
    let (world, disk) = (world(), SimDisk::new(1));
    let mount = world.mount(disk.process(), local());
    mount.names("");
    mount.faulty.black_hole(true);
    mount.put("f", &data(1, 1000));
    disk.crash(Crash::Kill);
    let names: Vec<String> = disk.files().into_keys().filter(|n| n.starts_with("spool/")).collect();
    for name in &names {
        disk.tamper(name, |b| b[100] ^= 1).unwrap();
    }
    mount.kill();
    let mount = world.mount(disk.process(), quick());
    assert_eq!(mount.recovered.unreadable, 1);
    mount.put("g", b"others go on");
    mount.drain();
    assert!(disk.files().contains_key(&names[0]), "kept aside");
}

#[test]
fn data_written_during_an_upload_survives_the_crash_after_it() {
    // The first version lands and the index says so; the second layer, begun meanwhile, is all that is left in the spool.
    let (world, disk) = (world(), SimDisk::new(1));
    let mount = world.mount(disk.process(), quick());
    mount.put("f", &data(1, 3 * SEG as usize));
    mount.drain();
    let (ino, opened) = mount.open("f", libc::O_RDWR).unwrap();
    let at = (ino, opened.fh);
    mount.write(at, 0, &data(2, 1000)).unwrap();
    mount.faulty.script(Some(Verb::Put), 1, Fault::Latency(std::time::Duration::from_millis(200)));
    // Another handle is closed: what was written so far goes.
    let (_, other) = mount.open("f", libc::O_RDWR).unwrap();
    mount.wait(mount.fs.release(ino, other.fh)).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(60));
    mount.write(at, 5000, &data(3, 1000)).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(mount.sink.saved.lock().len(), 2, "the second version is in the bucket");
    mount.write(at, 9000, &data(4, 1000)).unwrap();
    die(&disk, mount, Crash::Kill);
    let mut expected = data(1, 3 * SEG as usize);
    for (from, seed) in [(0, 2), (5000, 3), (9000, 4)] {
        expected[from..from + 1000].copy_from_slice(&data(seed, 1000));
    }
    for _ in 0..2 {
        let mount = world.mount(disk.process(), quick());
        assert!(mount.get("f").unwrap() == expected);
        die(&disk, mount, Crash::Kill);
    }
    let mount = world.mount(disk.process(), quick());
    mount.unmount();
    assert!(world.fresh().get("f").unwrap() == expected);
}

#[test]
fn a_cut_on_top_of_an_upload_that_landed_unheard_outlives_two_kills() {
    for mode in [Mode::Standard, Mode::ZeroKnowledge] {
        let (world, disk) = (World::new(mode, Suite::Aes256Gcm), SimDisk::new(4));
        let patient = || Options { commit_delay: std::time::Duration::from_secs(3600), ..quick() };
        let mount = world.mount(disk.process(), patient());
        mount.put("other", b"other");
        mount.drain();
        mount.faulty.script_on(Some(Verb::Put), "", 0, 1_000_000, Fault::Before(smpfs::error::Kind::Unavailable));
        mount.put("f", &data(1, 99_299));
        die(&disk, mount, Crash::Kill);
        // The next mount uploads it. Before it hears that it did, the file is cut to nothing, and the mount dies.
        let (mount, hold) = world.held_on(disk.process(), patient());
        hold.answer(Verb::Put, "", 0);
        hold.wait(1);
        let (ino, opened) = mount.open("f", libc::O_RDWR | libc::O_TRUNC).unwrap();
        mount.close((ino, opened.fh)).unwrap();
        die(&disk, mount, Crash::Kill);
        let mount = world.mount(disk.process(), patient());
        mount.drain();
        assert_eq!(mount.get("f").unwrap().len(), 0);
        assert_eq!(world.fresh().get("f").unwrap().len(), 0);
        mount.unmount();
    }
}

#[test]
fn an_answer_that_was_lost_is_no_conflict() {
    // The store takes the new version and no try of the request ever hears so.
    let world = world();
    let mount = world.fresh();
    mount.put("f", &data(1, 1000));
    mount.drain();
    for _ in 0..3 {
        mount.faulty.script_on(Some(Verb::Put), "/o/", 0, 1, Fault::After(smpfs::error::Kind::Unavailable));
        mount.faulty.script_on(None, "/o/", 0, 12, Fault::Before(smpfs::error::Kind::Unavailable));
        mount.put("f", &data(2, 2000));
        mount.drain();
    }
    assert!(mount.get("f").unwrap() == data(2, 2000));
    mount.unmount();
    assert!(world.fresh().get("f").unwrap() == data(2, 2000));
}

#[test]
fn a_full_local_disk_is_told_to_the_writer_and_loses_nothing() {
    let (world, disk) = (world(), SimDisk::new(1));
    let mount = world.mount(disk.process(), local());
    mount.names("");
    mount.faulty.black_hole(true);
    mount.put("before", &data(9, 100_000));
    disk.set_faults(Faults { capacity: Some(1 << 20), ..Faults::default() });
    let at = mount.create("f");
    let (mut written, mut refused) = (0, None);
    for i in 0..100u64 {
        match mount.write(at, i * 30_000, &data(i as u8, 30_000)) {
            Ok(n) => written += u64::from(n),
            Err(e) => {
                refused = Some(e);
                break;
            }
        }
    }
    assert_eq!(refused.unwrap().errno(), libc::ENOSPC);
    assert!(written > 300_000, "{written}");
    let read = mount.read_open(at, 0, 1 << 22).unwrap();
    assert_eq!(read.len() as u64, written);
    disk.set_faults(Faults::default());
    die(&disk, mount, Crash::Kill);
    let mount = world.mount(disk.process(), quick());
    assert!(mount.get("f").unwrap() == read);
    mount.unmount();
    let other = world.fresh();
    assert!(other.get("f").unwrap() == read && other.get("before").unwrap() == data(9, 100_000));
}

#[test]
fn a_full_spool_waits_for_uploads_and_then_says_so() {
    let world = world();
    let mount = world.mount_with(
        std::sync::Arc::new(SimDisk::new(1)),
        quick(),
        std::sync::Arc::new(smpfs::store::layers::Faulty::new(1)),
        1 << 20,
    );
    // Much more than the spool holds, file by file: uploads make room.
    for i in 0..8 {
        mount.put(&format!("f{i}"), &data(i, 500_000));
    }
    mount.faulty.black_hole(true);
    let at = mount.create("big");
    let mut end = 0;
    let refused = loop {
        match mount.write(at, end, &data(7, 100_000)) {
            Ok(n) => end += u64::from(n),
            Err(e) => break e,
        }
    };
    assert_eq!(refused.errno(), libc::ENOSPC);
    mount.faulty.black_hole(false);
    mount.close(at).unwrap();
    mount.drain();
    for i in 0..8 {
        assert!(mount.get(&format!("f{i}")).unwrap() == data(i, 500_000));
    }
    assert_eq!(mount.get("big").unwrap().len() as u64, end);
    mount.unmount();
}

#[test]
fn a_deletion_whose_answer_was_lost_does_not_hit_the_next_file() {
    let world = World::new(Mode::Standard, Suite::Aes256Gcm);
    let mount = world.fresh();
    for round in 0..5 {
        mount.put("f", &data(round, 1000));
        mount.drain();
        // The object is gone, and the mount does not know: it tries again a little later.
        mount.faulty.script(Some(Verb::Delete), 2, Fault::After(smpfs::error::Kind::Unavailable));
        mount.unlink("f").unwrap();
        mount.put("f", &data(round + 100, 1000));
        mount.drain();
        mount.fs.drop_caches();
        assert!(mount.get("f").unwrap() == data(round + 100, 1000), "round {round}");
        mount.unlink("f").unwrap();
    }
    mount.put("f", b"last");
    mount.unmount();
    assert_eq!(world.fresh().get("f").unwrap(), b"last");
}

#[test]
fn a_landed_version_does_not_hide_what_was_about_to_follow_it() {
    // The first of two layers is in the bucket and the journal knows; the second has noted its intent, and the process dies.
    let (world, disk) = (world(), SimDisk::new(1));
    let mount = world.mount(disk.process(), quick());
    mount.put("f", &data(1, 5000));
    mount.drain();
    // Index writes fail from now on, so that the first layer's log stays.
    mount.faulty.script_on(Some(Verb::Put), ".smpfs/d/", 0, 100_000, Fault::Before(smpfs::error::Kind::Unavailable));
    mount.put("f", &data(2, 6000));
    while mount.sink.saved.lock().len() < 2 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    mount.faulty.script_on(Some(Verb::Put), ".smpfs/o/", 0, 100_000, Fault::Before(smpfs::error::Kind::Unavailable));
    mount.put("f", &data(3, 7000));
    std::thread::sleep(std::time::Duration::from_millis(200));
    die(&disk, mount, Crash::Kill);
    let mount = world.mount(disk.process(), quick());
    mount.drain();
    assert!(mount.get("f").unwrap() == data(3, 7000));
    mount.unmount();
    assert!(world.fresh().get("f").unwrap() == data(3, 7000));
}

#[test]
fn a_moved_file_keeps_a_name_while_the_move_is_recovered() {
    // Moved twice, and nothing of it is in the bucket when the process dies. The next mount writes one index and dies as well.
    for seed in 0..8 {
        let (world, disk) = (world(), SimDisk::new(seed));
        let mount = world.mount(disk.process(), quick());
        for dir in ["a", "b", "c"] {
            mount.mkdir(dir);
        }
        mount.put("a/f", &data(1, 1000));
        mount.drain();
        mount.faulty.script_on(Some(Verb::Put), ".smpfs/d/", 0, 1_000_000, Fault::Before(smpfs::error::Kind::Unavailable));
        mount.rename("a/f", "b/g").unwrap();
        mount.rename("b/g", "c/h").unwrap();
        die(&disk, mount, Crash::Kill);
        for _ in 0..2 {
            let faulty = std::sync::Arc::new(smpfs::store::layers::Faulty::new(seed));
            faulty.script_on(Some(Verb::Put), ".smpfs/d/", 1, 1_000_000, Fault::Before(smpfs::error::Kind::Unavailable));
            let mount = world.mount_with(disk.process(), quick(), faulty, 1 << 30);
            while mount.faulty.seen(Verb::Put) < 2 && !mount.fs.progress().is_empty() {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            let tree = world.fresh().tree();
            let named = tree.values().filter(|l| l.bytes == data(1, 1000)).count();
            assert!(named > 0, "seed {seed}: the file has no name: {:?}", tree.keys());
            die(&disk, mount, Crash::Kill);
        }
        let mount = world.mount(disk.process(), quick());
        mount.unmount();
        let tree = world.fresh().tree();
        assert_eq!(tree.keys().collect::<Vec<_>>(), ["/a", "/b", "/c", "/c/h"]);
    }
}

#[test]
fn what_was_moved_before_a_kill_has_a_name_in_the_bucket_all_the_time() {
    let (world, disk) = (world(), SimDisk::new(3));
    let mount = world.mount(disk.process(), quick());
    mount.mkdir("a");
    mount.drain();
    let before = world.keys_in_bucket();
    mount.mkdir("b");
    mount.drain();
    let b = world.keys_in_bucket().into_iter().find(|k| !before.contains(k)).unwrap();
    mount.put("a/f", &data(1, 9000));
    mount.mkdir("a/d");
    mount.put("a/d/g", &data(2, 9000));
    mount.drain();
    // Neither directory can be written when the names move, and once more on the way.
    mount.faulty.script_on(Some(Verb::Put), ".smpfs/d/", 0, u32::MAX, Fault::Before(smpfs::error::Kind::Unavailable));
    mount.rename("a/f", "between").unwrap();
    mount.rename("between", "b/f").unwrap();
    mount.rename("a/d", "b/d").unwrap();
    die(&disk, mount, Crash::Kill);
    let faulty = std::sync::Arc::new(smpfs::store::layers::Faulty::new(1));
    faulty.script_on(Some(Verb::Put), &b, 0, u32::MAX, Fault::Before(smpfs::error::Kind::Unavailable));
    let mount = world.mount_with(disk.process(), quick(), faulty.clone(), 1 << 30);
    // The old directory can be written, and is: with this name. The new one cannot.
    mount.put("a/marker", b"x");
    crate::directed::until("the marker is in the bucket", || world.fresh().names("a").contains("marker"));
    let other = world.fresh();
    assert!(other.get("a/f").unwrap() == data(1, 9000) && other.get("a/d/g").unwrap() == data(2, 9000));
    faulty.clear();
    mount.drain();
    let tree = mount.tree();
    assert!(tree.contains_key("/b/f") && tree.contains_key("/b/d/g") && !tree.contains_key("/a/f"), "{:?}", tree.keys());
    mount.unmount();
    same("another machine", &tree, &world.fresh().tree());
}

/// An editor's way to save, and a removal, with `fsync=local`: the old data may go only when the change of names cannot be lost.
#[test]
fn what_was_synced_and_then_replaced_or_removed_is_not_lost_to_a_power_loss() {
    for seed in 0..30 {
        let (world, disk) = (world(), SimDisk::new(seed));
        let mount = world.mount(disk.process(), local());
        mount.names("");
        mount.faulty.black_hole(true);
        for (name, content) in [("f", 1), ("t", 2), ("gone", 3)] {
            let at = mount.create(name);
            mount.write(at, 0, &data(content, 50_000)).unwrap();
            mount.wait(mount.fs.fsync(WHO, at.0, at.1, false)).unwrap();
            mount.close(at).unwrap();
        }
        mount.rename("t", "f").unwrap();
        mount.unlink("gone").unwrap();
        // The uploads give up, and let go of what nobody wants any more.
        std::thread::sleep(std::time::Duration::from_millis(60));
        die(&disk, mount, Crash::Power);
        let mount = world.mount(disk.process(), local());
        let f = mount.get("f").unwrap();
        assert!(f == data(1, 50_000) || f == data(2, 50_000), "seed {seed}: {} bytes", f.len());
        assert!(mount.get("gone").is_ok_and(|g| g == data(3, 50_000)) || mount.found("gone").is_err(), "seed {seed}");
        mount.unmount();
    }
}

/// What lies above a version that lands is told so before what lay below goes, also when the power is lost.
#[test]
fn what_was_synced_above_an_upload_outlives_a_power_loss() {
    for seed in 0..20 {
        let (world, disk) = (world(), SimDisk::new(seed));
        let mount = world.mount(disk.process(), local());
        mount.put("f", &data(1, 3 * SEG as usize));
        mount.drain();
        let (ino, opened) = mount.open("f", libc::O_RDWR).unwrap();
        let at = (ino, opened.fh);
        mount.write(at, 0, &data(2, 1000)).unwrap();
        mount.faulty.script(Some(Verb::Put), 1, Fault::Latency(std::time::Duration::from_millis(150)));
        let (_, other) = mount.open("f", libc::O_RDWR).unwrap();
        mount.wait(mount.fs.release(ino, other.fh)).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        mount.write(at, 5000, &data(3, 1000)).unwrap();
        mount.wait(mount.fs.fsync(WHO, at.0, at.1, false)).unwrap();
        for _ in 0..200 {
            if disk.files().keys().filter(|n| n.starts_with("spool/")).count() == 1 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        die(&disk, mount, Crash::Power);
        let mount = world.mount(disk.process(), local());
        let mut expected = data(1, 3 * SEG as usize);
        expected[..1000].copy_from_slice(&data(2, 1000));
        expected[5000..6000].copy_from_slice(&data(3, 1000));
        assert!(mount.get("f").unwrap() == expected, "seed {seed}");
        mount.unmount();
        assert_eq!(world.fresh().names("").len(), 1, "seed {seed}: no conflict with itself");
    }
}

/// A file that was written to and then moved is found under its new name, also when both directories are in the bucket and the
/// contents are not.
#[test]
fn a_file_that_moved_with_unsent_contents_keeps_them_through_a_kill() {
    for mode in [Mode::Standard, Mode::ZeroKnowledge] {
        let (world, disk) = (World::new(mode, Suite::Aes256Gcm), SimDisk::new(6));
        let mount = world.mount(disk.process(), quick());
        mount.mkdir("a");
        mount.mkdir("b");
        mount.put("a/f", &data(1, 5000));
        mount.drain();
        let (ino, opened) = mount.open("a/f", libc::O_RDWR).unwrap();
        mount.write((ino, opened.fh), 36, &data(2, 100)).unwrap();
        mount.rename("a/f", "b/f").unwrap();
        crate::directed::until("names are in the bucket", || mount.fs.progress().names == 0);
        // The next commit tidies the journal up.
        mount.mkdir("b/more");
        crate::directed::until("names are in the bucket", || mount.fs.progress().names == 0);
        assert_eq!(mount.fs.progress().files, 1, "its contents wait: it is open");
        die(&disk, mount, Crash::Kill);
        let mount = world.mount(disk.process(), quick());
        let mut expected = data(1, 5000);
        expected[36..136].copy_from_slice(&data(2, 100));
        assert!(mount.get("b/f").unwrap() == expected);
        mount.unmount();
        let other = world.fresh();
        assert!(other.get("b/f").unwrap() == expected);
        assert!(other.names("a").is_empty());
    }
}
