//! `kill -9` in the middle of things: what was acknowledged is there afterwards, and the bucket holds whole versions meanwhile.

use super::world::*;
use std::fs;
use std::io::Write;

const BLOCK: usize = 64 << 10;

#[test]
fn killed_in_the_middle_of_a_write() {
    need_mounts!("killed_in_the_middle_of_a_write");
    for world in [Some(World::dir()), World::s3("killed_in_the_middle_of_a_write")] {
        let Some(mut world) = world else {
            return skipped("killed_in_the_middle_of_a_write, on S3", "SMPFS_TEST_S3 is not set");
        };
        world.init(&[]);
        let mount = world.mount(&[]);
        let data = noise(7, 96 << 20);
        let path = world.file("stream");
        let acknowledged = std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let (path, data) = (&path, &data);
            let writer = scope.spawn(move || {
                let mut f = fs::File::create(path).unwrap();
                let mut done = 0;
                for block in data.chunks(BLOCK) {
                    // Each write is answered before the next one begins: what it says is acknowledged.
                    if f.write_all(block).is_err() {
                        break;
                    }
                    done += block.len();
                    let _ = tell.send(done);
                }
                done
            });
            until("some megabytes", || told.try_iter().last().is_some_and(|n| n > 9 << 20));
            mount.kill();
            writer.join().unwrap()
        });
        assert!(acknowledged < data.len(), "it was not killed in the middle");
        for machine in ["home", "elsewhere"] {
            world.become_another_machine(machine);
            let mount = world.mount(&[]);
            let there = fs::read(world.file("stream")).unwrap();
            assert!(there.len() >= acknowledged && there.len() <= acknowledged + BLOCK, "{} of {acknowledged}", there.len());
            assert!(there[..acknowledged] == data[..acknowledged]);
            mount.unmount();
        }
        assert_eq!(world.bucket().unfinished(), 0);
    }
}

/// A file is replaced and another one is new; the process dies while both are on their way.
fn killed_in_mid_upload(mut world: World) {
    world.init(&[]);
    let (old, new) = (noise(1, 20 << 20), noise(2, 40 << 20));
    let mount = world.mount(&[]);
    write_durably(&world.file("replaced"), &old).unwrap();
    mount.unmount();
    let mount = world.mount(&["--upload-limit", "2MiB"]);
    let before = mount.status()["traffic"]["bytes_up"].as_u64().unwrap();
    fs::write(world.file("replaced"), &new).unwrap();
    fs::write(world.file("new"), &new).unwrap();
    until("a part is sent", || mount.status()["traffic"]["bytes_up"].as_u64().unwrap() > before + (7 << 20));
    mount.kill();

    // Another machine sees the old version, whole, and the new file not at all.
    world.become_another_machine("elsewhere");
    let mount = world.mount(&["--read-only"]);
    let seen = fs::read(world.file("replaced")).unwrap();
    assert!(seen == old, "{} bytes, the new version: {}", seen.len(), seen == new);
    assert!(!world.file("new").exists());
    mount.unmount();

    for machine in ["home", "third"] {
        world.become_another_machine(machine);
        let mount = world.mount(&[]);
        assert!(fs::read(world.file("replaced")).unwrap() == new, "{machine}");
        assert!(fs::read(world.file("new")).unwrap() == new, "{machine}");
        mount.unmount();
    }
    let bucket = world.bucket();
    assert_eq!(bucket.files().len(), 2, "{:?}", bucket.keys());
}

#[test]
fn killed_in_the_middle_of_an_upload() {
    need_mounts!("killed_in_the_middle_of_an_upload");
    killed_in_mid_upload(World::dir());
}

#[test]
fn killed_in_the_middle_of_an_upload_to_s3() {
    need_mounts!("killed_in_the_middle_of_an_upload_to_s3");
    killed_in_mid_upload(s3_world!("killed_in_the_middle_of_an_upload_to_s3"));
}

/// Killed again and again at any moment, the same files come out.
#[test]
fn killed_at_any_moment() {
    need_mounts!("killed_at_any_moment");
    let mut world = World::dir();
    world.init(&[]);
    for round in 0..6u64 {
        let mount = world.mount(&[]);
        // What earlier rounds acknowledged is there, whatever happened to them.
        for earlier in 0..round {
            for i in 0..10 {
                let bytes = fs::read(world.file(&format!("{earlier}/{i}"))).unwrap();
                assert!(bytes == noise(earlier * 10 + i, 30_000 * i as usize), "{earlier}/{i}");
            }
            let seen = fs::read(world.file("shared")).unwrap();
            assert!(seen == noise(100 + round - 1, 200_000), "round {round}");
        }
        fs::create_dir(world.file(&round.to_string())).unwrap();
        for i in 0..10 {
            fs::write(world.file(&format!("{round}/{i}")), noise(round * 10 + i, 30_000 * i as usize)).unwrap();
        }
        fs::write(world.file("shared"), noise(100 + round, 200_000)).unwrap();
        // From "nothing is uploaded yet" to "everything is".
        std::thread::sleep(std::time::Duration::from_millis(round * 150));
        mount.kill();
    }
    world.mount(&[]).unmount();
    world.become_another_machine("elsewhere");
    let mount = world.mount(&[]);
    for i in 0..10 {
        assert!(fs::read(world.file(&format!("5/{i}"))).unwrap() == noise(50 + i, 30_000 * i as usize));
    }
    assert!(fs::read(world.file("shared")).unwrap() == noise(105, 200_000));
    mount.unmount();
    let bucket = world.bucket();
    assert_eq!(bucket.unfinished(), 0);
}

/// Written twice, where the first version has reached the bucket and the second has not.
#[test]
fn killed_between_two_versions() {
    need_mounts!("killed_between_two_versions");
    let mut world = World::dir();
    world.init(&[]);
    let mount = world.mount(&IMPATIENT);
    let mut f = fs::File::create(world.file("log")).unwrap();
    let mut all = Vec::new();
    for i in 0..8 {
        let line = noise(i, 50_000);
        f.write_all(&line).unwrap();
        all.extend(line);
        if i % 2 == 0 {
            f.sync_all().unwrap();
        }
    }
    mount.kill();
    drop(f);
    for machine in ["home", "elsewhere"] {
        world.become_another_machine(machine);
        let mount = world.mount(&[]);
        assert!(fs::read(world.file("log")).unwrap() == all, "{machine}");
        mount.unmount();
    }
}

#[test]
fn a_signal_flushes_unmounts_and_wipes() {
    need_mounts!("a_signal_flushes_unmounts_and_wipes");
    let mut world = World::dir();
    world.init(&[]);
    let mut mount = world.foreground(&[]);
    fs::write(world.file("f"), noise(1, 3_000_000)).unwrap();
    // Even with a file open.
    let open = fs::File::open(world.file("f")).unwrap();
    mount.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(mount.reap(), Some(0));
    drop((open, mount));
    assert!(!is_mounted(&world.mnt()));
    let left = shell("find \"$1\" -type f -size +0 | grep -v lock || true", &[&world.home.join("cache")]).ok();
    assert_eq!(left.out, "", "the cache is gone");
    let mount = world.mount(&[]);
    assert_eq!(mount.audit("wipe").len(), 1);
    assert!(mount.audit("unmount").iter().all(|l| l["clean"] == true));
    mount.unmount();
    world.become_another_machine("elsewhere");
    let mount = world.mount(&[]);
    assert!(fs::read(world.file("f")).unwrap() == noise(1, 3_000_000));
    mount.unmount();
}

/// Uploads are held up; whoever does not want to wait for them says so a second time.
#[test]
fn a_second_signal_keeps_journal_and_spool_and_goes() {
    need_mounts!("a_second_signal_keeps_journal_and_spool_and_goes");
    use nix::sys::signal::Signal::{SIGINT, SIGTERM};
    for (first, second) in [(SIGTERM, SIGTERM), (SIGINT, SIGTERM)] {
        let mut world = World::dir();
        world.init(&[]);
        let mut mount = world.foreground(&IMPATIENT);
        write_durably(&world.file("edited"), &noise(1, 200_000)).unwrap();
        fs::rename(world.path("bucket"), world.path("away")).unwrap();
        fs::create_dir(world.file("dir")).unwrap();
        fs::write(world.file("dir/new"), noise(2, 3_000_000)).unwrap();
        let mut f = fs::OpenOptions::new().write(true).open(world.file("edited")).unwrap();
        f.write_all(b"edited").unwrap();
        drop(f);
        mount.signal(first);
        until("it takes no more work", || !is_mounted(&world.mnt()));
        mount.signal(second);
        assert_eq!(mount.reap(), Some(6), "not everything is in the bucket");
        drop(mount);
        let kept = shell("find \"$1\" -type f -size +0", &[&world.home.join("state")]).ok().out;
        assert!(kept.contains("/spool/") && kept.contains("/journal/"), "{kept}");
        assert!(!world.path("bucket").exists());
        fs::rename(world.path("away"), world.path("bucket")).unwrap();
        let mut edited = noise(1, 200_000);
        edited[..6].copy_from_slice(b"edited");
        for machine in ["home", "elsewhere"] {
            world.become_another_machine(machine);
            let mount = world.mount(&[]);
            assert!(fs::read(world.file("dir/new")).unwrap() == noise(2, 3_000_000), "{machine}");
            assert!(fs::read(world.file("edited")).unwrap() == edited, "{machine}");
            mount.unmount();
        }
    }
}

#[test]
fn a_stale_mount_point_is_cleaned_up() {
    need_mounts!("a_stale_mount_point_is_cleaned_up");
    let world = World::dir();
    world.init(&[]);
    let mount = world.mount(&[]);
    fs::write(world.file("f"), "here").unwrap();
    mount.kill();
    assert!(is_mounted(&world.mnt()));
    assert_eq!(errno(fs::read_dir(world.mnt())), libc::ENOTCONN);
    let mount = world.mount(&[]);
    assert_eq!(fs::read(world.file("f")).unwrap(), b"here");
    mount.unmount();
}
