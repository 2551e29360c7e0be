//! Two things at once, in the order that once went wrong.

use crate::directed::{nothing_left_over, objects, until, world};
use crate::hold::SlowDisk;
use crate::world::{Mount, SEG, WHO, World, data, quick};
use smpfs::disk::SimDisk;
use smpfs::disk::sim::Crash;
use smpfs::error::Kind;
use smpfs::fs::Options;
use smpfs::ops::{Ops, ROOT, SetAttr};
use smpfs::store::layers::{Fault, Faulty, Verb};
use smpfs::types::{Mode, Suite};
use std::sync::Arc;
use std::time::Duration;

const ZK: Mode = Mode::ZeroKnowledge;
const FOREVER: u32 = 1_000_000;

/// Whatever is asked again is asked of the bucket.
fn curious() -> Options {
    Options { dir_ttl: Duration::ZERO, ..quick() }
}

fn die(disk: &SimDisk, mount: Mount) {
    disk.crash(Crash::Kill);
    mount.kill();
}

fn rw(mount: &Mount, path: &str) -> (u64, u64) {
    let (ino, opened) = mount.open(path, libc::O_RDWR).unwrap();
    (ino, opened.fh)
}

fn fsync(mount: &Mount, at: (u64, u64)) -> Result<(), smpfs::error::Error> {
    mount.wait(mount.fs.fsync(WHO, at.0, at.1, false))
}

fn rmdir(mount: &Mount, name: &str) -> Result<(), smpfs::error::Error> {
    mount.wait(mount.fs.rmdir(WHO, ROOT, name.as_bytes()))
}

/// Index writes are carried out, and the mount never hears of it.
fn deaf(mount: &Mount) {
    mount.faulty.script_on(Some(Verb::Put), ".smpfs/d/", 0, FOREVER, Fault::After(Kind::Unavailable));
    for verb in [Verb::Head, Verb::Get] {
        mount.faulty.script_on(Some(verb), ".smpfs/d/", 0, FOREVER, Fault::Before(Kind::Unavailable));
    }
}

#[test]
fn a_recovered_file_is_not_saved_before_its_entry_is_found() {
    let (world, disk) = (world(ZK), SimDisk::new(1));
    let mount = world.mount(disk.process(), quick());
    mount.mkdir("d");
    mount.put("d/f", &data(1, 5000));
    mount.drain();
    mount.faulty.script(Some(Verb::Put), FOREVER, Fault::Before(Kind::Unavailable));
    mount.put("d/f", &data(2, 6000));
    die(&disk, mount);
    let faulty = Arc::new(Faulty::new(1));
    faulty.script_on(None, ".smpfs/d/", 0, FOREVER, Fault::Before(Kind::Unavailable));
    let mount = world.mount_with(disk.process(), quick(), faulty, 1 << 30);
    assert_eq!(mount.recovered.files, 1);
    assert!(mount.wait(mount.fs.drain(Some(Duration::from_millis(700)), &|_| {})).is_err());
    assert_eq!((mount.faulty.seen(Verb::Put), mount.faulty.seen(Verb::Delete)), (0, 0), "nobody knows yet what it replaces");
    mount.faulty.clear();
    mount.drain();
    assert!(world.fresh().get("d/f").unwrap() == data(2, 6000));
    nothing_left_over(&world, mount);
}

#[test]
fn a_file_that_another_machine_renamed_is_not_deleted_when_its_upload_lands() {
    for mode in [Mode::Standard, ZK] {
        let world = world(mode);
        let (a, b) = (world.mount(Arc::new(SimDisk::new(1)), curious()), world.fresh());
        a.put("f", &data(1, 5000));
        a.drain();
        let objects = objects(&world);
        let part = objects.first().unwrap();
        a.faulty.script_on(Some(Verb::Put), part, 0, FOREVER, Fault::Before(Kind::Unavailable));
        a.put("f", &data(2, 6000));
        b.rename("f", "g").unwrap();
        b.unmount();
        until("the rename is seen", || !a.names("").contains("f"));
        a.faulty.clear();
        a.drain();
        assert_eq!(crate::directed::objects(&world), objects, "the object stays: another name has it");
        assert!(world.fresh().get("g").unwrap() == data(2, 6000));
        a.kill();
    }
}

#[test]
fn layers_are_put_back_in_the_order_in_which_they_were_made() {
    // Between the two layers the file was forgotten and opened anew. Many files, for the logs have random names.
    let (world, disk) = (world(ZK), SimDisk::new(1));
    let mount = world.mount(disk.process(), quick());
    let names: Vec<String> = (0..12).map(|i| format!("f{i}")).collect();
    names.iter().for_each(|n| mount.put(n, &data(1, 5000)));
    mount.drain();
    mount.faulty.script_on(Some(Verb::Put), ".smpfs/d/", 0, FOREVER, Fault::Before(Kind::Unavailable));
    names.iter().for_each(|n| mount.put(n, &data(2, 6000)));
    until("the second versions landed", || mount.sink.saved.lock().len() == 2 * names.len());
    mount.faulty.script_on(Some(Verb::Put), ".smpfs/o/", 0, FOREVER, Fault::Before(Kind::Unavailable));
    names.iter().for_each(|n| mount.put(n, &data(3, 7000)));
    die(&disk, mount);
    let mount = world.mount(disk.process(), quick());
    for name in &names {
        assert!(mount.get(name).unwrap() == data(3, 7000), "{name}");
    }
    mount.drain();
    let other = world.fresh();
    assert!(names.iter().all(|n| other.get(n).unwrap() == data(3, 7000)));
    nothing_left_over(&world, mount);
}

/// Long enough for a thread to come to where it waits. When it is not, the test shows less, and nothing wrong.
fn a_moment() {
    std::thread::sleep(Duration::from_millis(80));
}

/// The start of a file is written first and then its end: who sees the new end sees the new start. A reader looks at the file a few
/// times before it has what it reads from; after `looks` of them an upload lands, and the end is written.
fn read_across_a_landing_upload(looks: usize) {
    let world = world(ZK);
    let disk = SlowDisk::new(Arc::new(SimDisk::new(1)));
    let (mount, hold) = world.held_on(disk.clone(), quick());
    let end = SEG as usize + 1000;
    mount.put("f", &vec![0; end]);
    mount.drain();
    let (writer, reader) = (rw(&mount, "f"), rw(&mount, "f"));
    assert!(mount.read_open(reader, 0, end).unwrap() == vec![0; end], "the old version is open");
    mount.write(writer, 0, &[1; 1000]).unwrap();
    hold.answer(Verb::Put, ".smpfs/o/", 0);
    let other = rw(&mount, "f");
    mount.close(other).unwrap();
    hold.wait(1);
    mount.write(writer, 30_000, b"there is a log").unwrap();
    std::thread::scope(|scope| {
        let mount = &mount;
        let write = move |offset: u64| assert_eq!(mount.write(writer, offset, &[1; 1000]).unwrap(), 1000);
        // One after the other holds the file, and lets the reader look once when it is done.
        disk.hold();
        scope.spawn(move || write(10_000));
        disk.wait(1);
        let seen = scope.spawn(move || mount.wait(mount.fs.read(WHO, reader.0, reader.1, 0, end as u32)).unwrap());
        a_moment();
        for look in 0..looks {
            disk.hold();
            scope.spawn(move || write(12_000));
            a_moment();
            disk.release();
            disk.wait(look + 2);
            a_moment();
        }
        hold.release();
        a_moment();
        scope.spawn(move || write(SEG));
        a_moment();
        disk.release();
        let seen = seen.join().unwrap();
        assert!(seen[0] >= seen[SEG as usize], "start {}, end {}, {looks}", seen[0], seen[SEG as usize]);
    });
    mount.close(writer).unwrap();
    mount.close(reader).unwrap();
    nothing_left_over(&world, mount);
}

#[test]
fn a_read_across_a_landing_upload_is_of_one_moment() {
    (0..4).for_each(read_across_a_landing_upload);
}

#[test]
fn a_conflict_is_not_bypassed_by_trying_again() {
    for opened_before in [false, true] {
        let world = world(ZK);
        let (a, b) = (world.fresh(), world.fresh());
        a.put("f", &data(1, 5000));
        a.unmount();
        let a = world.fresh();
        assert_eq!(a.names("").len(), 1);
        let at = rw(&a, "f");
        if opened_before {
            assert!(a.read_open(at, 0, 5000).unwrap() == data(1, 5000));
        }
        b.put("f", &data(2, 6000));
        b.drain();
        a.write(at, 100, b"mine").unwrap();
        let told = fsync(&a, at).unwrap_err();
        assert_eq!(told.kind(), Kind::Stale, "{told}");
        // Told once; the descriptor is of no more use, and what it wrote is a file of its own.
        for round in 0..4 {
            fsync(&a, at).unwrap();
            assert_eq!(a.read_open(at, 0, 10).unwrap_err().kind(), Kind::Stale, "round {round}");
            assert_eq!(a.write(at, 100, b"more").unwrap_err().kind(), Kind::Stale, "round {round}");
        }
        assert!(world.fresh().get("f").unwrap() == data(2, 6000), "opened before: {opened_before}");
        let _ = a.close(at);
        if !opened_before {
            // The rest of its version is nowhere any more.
            a.drain();
            let kept = world.fresh().names("").into_iter().find(|n| n.contains(", incomplete)")).unwrap();
            assert_eq!(world.fresh().get(&kept).unwrap()[100..104], *b"mine");
            b.unmount();
            a.unmount();
            continue;
        }
        a.drain();
        let names = world.fresh().names("");
        let copy: Vec<_> = names.iter().filter(|n| n.contains("(conflict, ")).collect();
        let mut mine = data(1, 5000);
        mine[100..104].copy_from_slice(b"mine");
        assert!(names.len() == 2 && copy.len() == 1, "{names:?}");
        assert!(world.fresh().get(copy[0]).unwrap() == mine);
        assert_eq!(a.disk.list("spool").unwrap().len(), 0, "nothing stays in the spool");
        b.unmount();
        a.kill();
    }
}

#[test]
fn what_was_written_while_a_recovered_file_was_looked_up_is_kept() {
    let (world, disk) = (world(ZK), SimDisk::new(1));
    let mount = world.mount(disk.process(), quick());
    mount.put("f", &data(1, 5000));
    mount.drain();
    deaf(&mount);
    mount.put("f", &data(2, 6000));
    until("the index names it, and nobody hears", || {
        !mount.sink.trouble.lock().is_empty() && world.fresh().get("f").unwrap() == data(2, 6000)
    });
    die(&disk, mount);
    let faulty = Arc::new(Faulty::new(1));
    faulty.script_on(None, ".smpfs/d/", 0, FOREVER, Fault::Before(Kind::Unavailable));
    let late = Options { retry: (Duration::from_millis(1500), Duration::from_millis(1500)), ..quick() };
    let mount = world.mount_with(disk.process(), late, faulty, 1 << 30);
    until("the first look failed", || mount.sink.trouble.lock().len() >= 2);
    mount.faulty.clear();
    until("the store is back", || mount.found("f").is_ok());
    let at = rw(&mount, "f");
    mount.write(at, 100, b"written since").unwrap();
    mount.close(at).unwrap();
    mount.drain();
    let mut expected = data(2, 6000);
    expected[100..113].copy_from_slice(b"written since");
    assert!(mount.get("f").unwrap() == expected);
    assert!(world.fresh().get("f").unwrap() == expected);
    nothing_left_over(&world, mount);
}

#[test]
fn a_file_that_is_unlinked_before_its_upload_lands_is_read_through_open_descriptors() {
    let world = world(ZK);
    let (mount, hold) = world.held(quick());
    mount.put("f", &data(1, 5000));
    mount.drain();
    let at = rw(&mount, "f");
    mount.write(at, 0, &data(2, 6000)).unwrap();
    hold.answer(Verb::Put, ".smpfs/o/", 0);
    let other = rw(&mount, "f");
    mount.close(other).unwrap();
    hold.wait(1);
    mount.unlink("f").unwrap();
    hold.release();
    until("the upload landed", || mount.sink.saved.lock().len() == 2);
    mount.drain();
    mount.fs.drop_caches();
    assert!(mount.read_open(at, 0, 1 << 20).unwrap() == data(2, 6000));
    assert_eq!(objects(&world).len(), 1);
    mount.close(at).unwrap();
    until("the object goes", || objects(&world).is_empty());
    nothing_left_over(&world, mount);
}

#[test]
fn an_object_outlives_its_unlink_until_the_index_tells_of_it() {
    for mode in [Mode::Standard, ZK] {
        let world = world(mode);
        let (mount, hold) = world.held(Options { commit_delay: Duration::from_secs(3600), ..quick() });
        mount.put("f", &data(1, 5000));
        mount.drain();
        let part = objects(&world).into_iter().next().unwrap();
        let at = rw(&mount, "f");
        mount.write(at, 0, &data(2, 6000)).unwrap();
        hold.answer(Verb::Put, &part, 0);
        mount.close(at).unwrap();
        hold.wait(1);
        mount.unlink("f").unwrap();
        hold.release();
        until("the upload landed", || mount.sink.saved.lock().len() == 2);
        until("nobody has the file any more", || mount.fs.progress().files == 0);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(mount.faulty.seen(Verb::Delete), 0);
        // Other machines still find the name.
        let other = world.fresh();
        assert!(other.get("f").unwrap() == data(2, 6000));
        other.kill();
        mount.drain();
        assert_eq!(world.fresh().get("f").unwrap_err().kind(), Kind::NotFound);
        nothing_left_over(&world, mount);
    }
}

/// Makes a directory of sixteen parts: while one of them is being read, another one may change.
fn crowd(mount: &Mount) {
    let dir = mount.mkdir("d");
    for i in 0..1100 {
        mount.wait(mount.fs.symlink(WHO, dir, format!("n{i}").as_bytes(), b"t")).unwrap();
    }
    mount.drain();
}

/// A name that does not lie in the first part.
fn elsewhere() -> String {
    (0..).map(|i| format!("new{i}")).find(|n| smpfs::format::index::shard_of(n.as_bytes(), 4) > 0).unwrap()
}

#[test]
fn an_index_read_before_a_write_and_merged_behind_it_undoes_nothing() {
    let world = world(ZK);
    let (mount, hold) = world.held(curious());
    crowd(&mount);
    let path = format!("d/{}", elsewhere());
    // Head and parts are asked for; the first part comes late.
    hold.answer(Verb::Get, ".smpfs/d/", 1);
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| rmdir(&mount, "d"));
        hold.wait(1);
        a_moment();
        let at = mount.create(&path);
        mount.write(at, 0, b"new").unwrap();
        fsync(&mount, at).unwrap();
        mount.close(at).unwrap();
        hold.release();
        assert_eq!(removal.join().unwrap().unwrap_err().errno(), libc::ENOTEMPTY);
    });
    assert_eq!(mount.get(&path).unwrap(), b"new");
    nothing_left_over_but_shards(&world, mount, 1101);
}

#[test]
fn an_index_read_before_another_reading_and_merged_behind_it_undoes_nothing() {
    let world = world(ZK);
    let (a, hold) = world.held(curious());
    crowd(&a);
    let path = format!("d/{}", elsewhere());
    hold.answer(Verb::Get, ".smpfs/d/", 1);
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| rmdir(&a, "d"));
        hold.wait(1);
        a_moment();
        let b = world.fresh();
        b.put(&path, b"b");
        b.unmount();
        until("the other machine's file is seen", || a.names("d").len() == 1101);
        hold.release();
        assert_eq!(removal.join().unwrap().unwrap_err().errno(), libc::ENOTEMPTY);
    });
    assert_eq!(a.names("d").len(), 1101, "what was seen is not forgotten");
    nothing_left_over_but_shards(&world, a, 1101);
}

/// Another machine sees as many names in the large directory.
fn nothing_left_over_but_shards(world: &crate::world::World, mount: Mount, names: usize) {
    mount.unmount();
    assert_eq!(world.fresh().names("d").len(), names);
    assert_eq!((objects(world).len(), world.keys_in_bucket().len()), (1, 1 + 1 + 1 + 16));
}

#[test]
fn a_name_that_landed_unheard_is_gone_after_its_unlink() {
    let world = world(ZK);
    let mount = world.fresh();
    assert!(mount.names("").is_empty());
    deaf(&mount);
    mount.wait(mount.fs.symlink(WHO, ROOT, b"f", b"target")).unwrap();
    until("the index names it, and nobody hears", || !mount.sink.trouble.lock().is_empty() && world.fresh().names("").len() == 1);
    mount.unlink("f").unwrap();
    mount.faulty.clear();
    mount.drain();
    assert!(world.fresh().names("").is_empty());
    nothing_left_over(&world, mount);
}

#[test]
fn a_directory_that_another_machine_filled_meanwhile_is_not_removed() {
    let world = world(ZK);
    let a = world.mount(Arc::new(SimDisk::new(1)), curious());
    for d in ["d", "e", "from"] {
        a.mkdir(d);
    }
    a.drain();
    assert!(a.names("d").is_empty() && a.names("e").is_empty());
    let b = world.fresh();
    b.put("d/x", &data(1, 5000));
    b.put("e/x", &data(2, 5000));
    b.unmount();
    assert_eq!(rmdir(&a, "d").unwrap_err().errno(), libc::ENOTEMPTY);
    assert_eq!(a.rename("from", "e").unwrap_err().errno(), libc::ENOTEMPTY);
    a.drain();
    let other = world.fresh();
    assert!(other.get("d/x").unwrap() == data(1, 5000) && other.get("e/x").unwrap() == data(2, 5000));
    nothing_left_over(&world, a);
}

#[test]
fn a_file_that_is_cut_while_it_is_being_forgotten_stays_cut() {
    let world = world(ZK);
    let disk = SlowDisk::new(Arc::new(SimDisk::new(1)));
    let mount = world.mount(disk.clone(), quick());
    mount.put("f", &data(1, 3000));
    mount.drain();
    let ino = mount.ino("f").unwrap();
    let last = rw(&mount, "f");
    std::thread::scope(|scope| {
        disk.hold();
        let set = SetAttr { size: Some(1000), ..SetAttr::default() };
        let mount = &mount;
        let cut = scope.spawn(move || mount.wait(mount.fs.setattr(WHO, ino, None, set)).unwrap());
        disk.wait(1);
        // Meanwhile the last descriptor is closed, and there is nothing to upload yet.
        mount.wait(mount.fs.release(last.0, last.1)).unwrap();
        disk.release();
        assert_eq!(cut.join().unwrap().attr.size, 1000);
    });
    assert_eq!(mount.found("f").unwrap().attr.size, 1000);
    assert!(mount.get("f").unwrap() == data(1, 1000));
    nothing_left_over(&world, mount);
}

#[test]
fn a_full_spool_is_told() {
    use smpfs::fs::status::{Health, Status};
    let (world, disk) = (world(ZK), SimDisk::new(1));
    let mount = world.mount_with(disk.process(), quick(), Arc::new(Faulty::new(1)), 1 << 20);
    let health = |mount: &Mount| {
        let mut status = Status::default();
        mount.fs.fill_status(&mut status);
        status.health
    };
    mount.put("f", &data(1, 1000));
    mount.drain();
    assert_eq!(health(&mount), Health::Ok);
    mount.faulty.black_hole(true);
    let at = rw(&mount, "f");
    let refused = (0..32u64).find_map(|i| mount.write(at, i * 60_000, &data(i as u8, 60_000)).err());
    assert_eq!(refused.unwrap().errno(), libc::ENOSPC);
    assert_eq!(health(&mount), Health::Degraded, "writers are refused");
    die(&disk, mount);
}

#[test]
fn a_log_that_nothing_was_written_to_is_not_kept() {
    let (world, disk) = (world(ZK), SimDisk::new(1));
    let mount = world.mount_with(disk.process(), quick(), Arc::new(Faulty::new(1)), 2000);
    mount.put("f", &data(1, 1000));
    mount.drain();
    mount.faulty.black_hole(true);
    let at = rw(&mount, "f");
    assert_eq!(mount.write(at, 0, &data(2, 5000)).unwrap_err().errno(), libc::ENOSPC);
    assert!(mount.disk.list("spool").unwrap().is_empty(), "a head alone means nothing");
    die(&disk, mount);
    let mount = world.mount(disk.process(), quick());
    assert_eq!(mount.recovered.files, 0);
    assert!(mount.get("f").unwrap() == data(1, 1000));
    nothing_left_over(&world, mount);
}

#[test]
fn a_reader_never_sees_a_part_of_a_file_that_was_just_replaced() {
    let world = world(ZK);
    let mount = world.fresh();
    let replace = |what: &str| {
        // The kernel has looked the name up, and opens it when it means another file.
        let ino = mount.ino("f").unwrap();
        mount.put("new", &data(9, 900));
        mount.rename("new", "f").unwrap();
        let seen = mount.wait(mount.fs.open(WHO, ino, libc::O_RDONLY)).map(|o| {
            let bytes = mount.read_open((ino, o.fh), 0, 1 << 20).unwrap();
            mount.close((ino, o.fh)).unwrap();
            bytes
        });
        if seen.is_err() {
            mount.fs.forget(ino, 1);
        }
        assert!(mount.get("f").unwrap() == data(9, 900), "{what}");
        seen
    };
    // With all of it in the bucket the old file is read, whole.
    mount.put("f", &data(1, 5000));
    mount.drain();
    assert!(replace("uploaded").unwrap() == data(1, 5000));
    mount.drain();
    // With a part of it, or nothing, in the spool alone it is gone: the kernel looks again.
    mount.faulty.script(Some(Verb::Put), FOREVER, Fault::Before(Kind::Unavailable));
    let at = rw(&mount, "f");
    mount.write(at, 0, b"edited").unwrap();
    mount.close(at).unwrap();
    assert_eq!(replace("edited").unwrap_err().errno(), libc::ESTALE);
    assert_eq!(replace("never uploaded").unwrap_err().errno(), libc::ESTALE);
    mount.faulty.clear();
    nothing_left_over(&world, mount);
}

#[test]
fn a_directory_removed_while_its_first_index_is_written_leaves_none() {
    let world = world(ZK);
    let (mount, hold) = world.held(quick());
    mount.names("");
    hold.answer(Verb::Put, ".smpfs/d/", 0);
    mount.mkdir("d");
    hold.wait(1);
    rmdir(&mount, "d").unwrap();
    hold.release();
    mount.drain();
    until("the index goes", || world.keys_in_bucket().len() == 1);
    nothing_left_over(&world, mount);
}

#[test]
fn what_another_machine_is_moving_is_not_replaced_by_itself() {
    for mode in [Mode::Standard, Mode::ZeroKnowledge] {
        let world = World::new(mode, Suite::Aes256Gcm);
        let mover = world.mount(Arc::new(SimDisk::new(1)), quick());
        let before = world.keys_in_bucket();
        mover.mkdir("x");
        mover.drain();
        let x = world.keys_in_bucket().into_iter().find(|k| !before.contains(k)).unwrap();
        mover.mkdir("y");
        mover.put("x/f", &data(1, 1000));
        mover.drain();
        // The new name is in the bucket, and the old one is still there.
        mover.faulty.script_on(Some(Verb::Put), &x, 0, u32::MAX, Fault::Before(Kind::Unavailable));
        mover.rename("x/f", "y/f").unwrap();
        until("the new name is in the bucket", || world.fresh().names("y").contains("f"));
        let other = world.mount(Arc::new(SimDisk::new(2)), quick());
        assert!(other.names("x").contains("f") && other.names("y").contains("f"));
        other.rename("x/f", "y/f").unwrap();
        other.drain();
        assert!(world.fresh().get("y/f").unwrap() == data(1, 1000));
        mover.faulty.clear();
        mover.drain();
        other.unmount();
        mover.unmount();
        let last = world.fresh();
        assert!(last.get("y/f").unwrap() == data(1, 1000));
        assert!(last.names("x").is_empty());
    }
}
