//! A store that does not answer: at mount time, and under a living mount.

use super::server::Server;
use super::world::*;
use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// With the impatient settings nothing may take longer than this.
const SOON: Duration = Duration::from_secs(30);

#[track_caller]
fn soon<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = work();
    assert!(start.elapsed() < SOON, "{what} took {:?}", start.elapsed());
    done
}

/// What is in `df` and `ls` needs no store.
fn looks_alive(world: &World, names: &[&str]) {
    soon("df", || shell("df \"$1\"", &[&world.mnt()]).ok());
    let listed = soon("ls", || shell("ls -l \"$1\"", &[&world.mnt()]).ok()).out;
    for name in names {
        assert!(listed.contains(name), "{name}: {listed}");
    }
}

fn lost_and_found(mut world: World, lose: impl Fn(&World), restore: impl Fn(&World)) {
    world.init(&[]);
    let (cached, cold, during) = (noise(1, 300_000), noise(2, 300_000), noise(3, 300_000));
    let mount = world.mount(&IMPATIENT);
    for (name, bytes) in [("cached", &cached), ("cold", &cold), ("again", &cold), ("unlinked", &cold)] {
        fs::write(world.file(name), bytes).unwrap();
    }
    mount.unmount();

    let mount = world.mount(&IMPATIENT);
    assert!(fs::read(world.file("cached")).unwrap() == cached);
    looks_alive(&world, &["cached", "cold"]);
    lose(&world);
    assert!(soon("a cached read", || fs::read(world.file("cached"))).unwrap() == cached);
    assert_eq!(errno(soon("a cold read", || fs::read(world.file("cold")))), libc::EIO);
    looks_alive(&world, &["cached", "cold"]);
    // Writing goes on; who wants to know whether the bucket has it is told that it has not.
    fs::write(world.file("during"), &during).unwrap();
    fs::write(world.file("again"), &during).unwrap();
    fs::File::create(world.file("created")).unwrap();
    fs::create_dir(world.file("folder")).unwrap();
    fs::rename(world.file("during"), world.file("folder/during")).unwrap();
    fs::remove_file(world.file("unlinked")).unwrap();
    let file = fs::File::options().append(true).open(world.file("folder/during")).unwrap();
    std::io::Write::write_all(&mut &file, b"more").unwrap();
    assert_eq!(errno(soon("fsync", || file.sync_all())), libc::EIO);
    drop(file);
    let whole = [&during[..], b"more"].concat();
    assert!(fs::read(world.file("folder/during")).unwrap() == whole);
    looks_alive(&world, &["again", "created", "folder"]);
    until("the status tells", || mount.status()["health"] == "offline");
    assert!(mount.status()["pending"]["files"].as_u64().unwrap() >= 2);

    restore(&world);
    until("the store is back", || fs::read(world.file("cold")).is_ok_and(|b| b == cold));
    until("the uploads catch up", || mount.status()["pending"]["files"] == 0);
    assert_eq!(mount.audit("corrupt"), Vec::<serde_json::Value>::new());
    mount.unmount();
    world.become_another_machine("elsewhere");
    let mount = world.mount(&["--read-only"]);
    for (name, bytes) in [("cached", &cached), ("cold", &cold), ("again", &during), ("folder/during", &whole)] {
        assert!(fs::read(world.file(name)).unwrap() == *bytes, "{name}");
    }
    assert_eq!(fs::metadata(world.file("created")).unwrap().len(), 0);
    assert!(!world.file("unlinked").exists());
    mount.unmount();
}

fn hide(world: &World) {
    fs::rename(world.path("bucket"), world.path("away")).unwrap();
}

fn show(world: &World) {
    assert!(!world.path("bucket").exists(), "something was written where the bucket had been");
    fs::rename(world.path("away"), world.path("bucket")).unwrap();
}

#[test]
fn a_directory_that_vanishes_and_comes_back() {
    need_mounts!("a_directory_that_vanishes_and_comes_back");
    lost_and_found(World::dir(), hide, show);
}

#[test]
fn a_server_that_stops_answering_and_goes_on() {
    need_mounts!("a_server_that_stops_answering_and_goes_on");
    let Some(server) = Server::start() else {
        return skipped("a_server_that_stops_answering_and_goes_on", "SMPFS_TEST_S3 is not set");
    };
    lost_and_found(server.world(), |_| server.freeze(), |_| server.thaw());
}

#[test]
fn a_server_that_is_killed_and_started_again() {
    need_mounts!("a_server_that_is_killed_and_started_again");
    let Some(server) = Server::start() else {
        return skipped("a_server_that_is_killed_and_started_again", "SMPFS_TEST_S3 is not set");
    };
    lost_and_found(server.world(), |_| server.kill(), |_| server.restart());
}

#[test]
fn a_store_that_is_away_at_mount_time_is_told_in_time() {
    need_mounts!("a_store_that_is_away_at_mount_time_is_told_in_time");
    let world = World::dir();
    world.init(&[]);
    hide(&world);
    let said = soon("a mount", || world.try_mount(&IMPATIENT));
    assert!(said.code == 9 && said.err.contains("bucket"), "{said:?}");
    show(&world);
    let Some(server) = Server::start() else {
        return skipped("a_store_that_is_away_at_mount_time_is_told_in_time, on S3", "SMPFS_TEST_S3 is not set");
    };
    let world = server.world();
    world.init(&[]);
    server.freeze();
    let frozen = soon("a mount", || world.try_mount(&IMPATIENT));
    server.thaw();
    server.kill();
    let dead = soon("a mount", || world.try_mount(&IMPATIENT));
    for said in [frozen, dead] {
        assert_eq!(said.code, 4, "{said:?}");
        assert!(said.err.lines().count() <= 3 && said.err.contains("answer"), "{said:?}");
    }
    server.restart();
    world.mount(&[]).unmount();
}

/// Killed while the store is away: nothing that was acknowledged has reached the bucket, and all of it is there afterwards.
#[test]
fn killed_while_the_store_is_away() {
    need_mounts!("killed_while_the_store_is_away");
    let mut world = World::dir();
    world.init(&[]);
    let mount = world.mount(&IMPATIENT);
    for name in ["old", "replaced", "removed", "moved", "patched"] {
        write_durably(&world.file(name), &noise(9, 100_000)).unwrap();
    }
    fs::create_dir(world.file("dir")).unwrap();
    write_durably(&world.file("dir/old"), b"old").unwrap();
    hide(&world);
    fs::File::create(world.file("touched")).unwrap();
    fs::write(world.file("written"), noise(4, 200_000)).unwrap();
    fs::write(world.file("replaced"), noise(5, 50)).unwrap();
    fs::remove_file(world.file("removed")).unwrap();
    fs::create_dir_all(world.file("new/deep")).unwrap();
    fs::write(world.file("new/deep/file"), "deep").unwrap();
    fs::rename(world.file("moved"), world.file("new/moved")).unwrap();
    fs::rename(world.file("dir"), world.file("new/dir")).unwrap();
    std::os::unix::fs::symlink("written", world.file("link")).unwrap();
    let f = fs::File::options().write(true).open(world.file("patched")).unwrap();
    f.write_all_at(b"patch", 70_000).unwrap();
    f.set_len(90_000).unwrap();
    drop(f);
    mount.kill();
    let said = soon("a mount", || world.try_mount(&IMPATIENT));
    assert!(said.code != 0, "{said:?}");
    show(&world);
    let check = |world: &World| {
        assert_eq!(fs::metadata(world.file("touched")).unwrap().len(), 0);
        assert!(fs::read(world.file("written")).unwrap() == noise(4, 200_000));
        assert!(fs::read(world.file("replaced")).unwrap() == noise(5, 50));
        assert!(fs::read(world.file("old")).unwrap() == noise(9, 100_000));
        assert!(fs::read(world.file("new/moved")).unwrap() == noise(9, 100_000));
        assert_eq!(fs::read(world.file("new/deep/file")).unwrap(), b"deep");
        assert_eq!(fs::read(world.file("new/dir/old")).unwrap(), b"old");
        assert_eq!(fs::read_link(world.file("link")).unwrap().to_str(), Some("written"));
        let mut patched = noise(9, 90_000);
        patched[70_000..70_005].copy_from_slice(b"patch");
        assert!(fs::read(world.file("patched")).unwrap() == patched);
        for gone in ["removed", "moved", "dir"] {
            assert!(!world.file(gone).exists(), "{gone}");
        }
    };
    let mount = world.mount(&[]);
    check(&world);
    mount.unmount();
    world.become_another_machine("elsewhere");
    let mount = world.mount(&["--read-only"]);
    check(&world);
    mount.unmount();
}

/// With `fsync=local` an fsync needs no store. What it acknowledged is uploaded after the next mount, which tells how far it is.
#[test]
fn what_was_synced_locally_is_uploaded_after_a_kill() {
    need_mounts!("what_was_synced_locally_is_uploaded_after_a_kill");
    let mut world = World::dir();
    world.init(&[]);
    let mount = world.mount(&[&IMPATIENT[..], &["--fsync", "local"]].concat());
    fs::create_dir(world.file("study")).unwrap();
    hide(&world);
    let size = 3 << 20;
    for i in 0..6 {
        write_durably(&world.file(&format!("study/{i}")), &noise(i, size)).unwrap();
    }
    mount.kill();
    show(&world);
    // So slow that it can be watched.
    let mount = world.mount(&["--upload-limit", "3MiB"]);
    let first = mount.status()["pending"].clone();
    assert!(first["files"].as_u64().unwrap() > 0 && first["bytes"].as_u64().unwrap() > 0, "{first}");
    let mut left = vec![first["bytes"].as_u64().unwrap()];
    until("everything is in the bucket", || {
        let now = mount.status()["pending"].clone();
        left.push(now["bytes"].as_u64().unwrap());
        now["files"] == 0 && now["names"] == 0
    });
    left.dedup();
    assert!(left.len() > 3 && left.windows(2).all(|w| w[1] < w[0]), "it goes down step by step: {left:?}");
    mount.kill();
    world.become_another_machine("elsewhere");
    let mount = world.mount(&["--read-only"]);
    for i in 0..6 {
        assert!(fs::read(world.file(&format!("study/{i}"))).unwrap() == noise(i, size), "{i}");
    }
    mount.unmount();
}
