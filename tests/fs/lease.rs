//! A mount that writes under a lease, and has it no more.

use crate::scrub::{Scene, public};
use crate::world::{WHO, World, data, quick};
use smpfs::disk::SimDisk;
use smpfs::disk::sim::Crash;
use smpfs::env::Env;
use smpfs::error::Kind;
use smpfs::fs::Options;
use smpfs::lease::{self, Parts};
use smpfs::ops::Ops;
use smpfs::scrub::What;
use smpfs::types::{Mode, Suite};

#[test]
fn without_its_lease_a_mount_is_read_only_and_keeps_its_spool_for_the_next() {
    let (world, disk) = (World::new(Mode::ZeroKnowledge, Suite::Aes256Gcm), SimDisk::new(3));
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (store, keys) = (world.bucket.clone(), world.keys.clone());
    let parts = Parts { store, keys, env: Env::real(), holder: [1; 16], host: "here".to_owned() };
    let keeper = rt.block_on(lease::take(parts, false, &|_| {})).unwrap();
    let mount = world.mount(disk.process(), Options { lease: Some(keeper.clone()), ..quick() });
    mount.put("f", &data(1, 300_000));
    mount.drain();
    let (ino, opened) = mount.open("f", libc::O_RDWR).unwrap();
    let at = (ino, opened.fh);
    mount.write(at, 1000, &data(2, 5000)).unwrap();

    rt.block_on(keeper.release()).unwrap();
    let before = world.keys_in_bucket();
    for refused in [
        mount.write(at, 0, b"x").map(drop),
        mount.wait(mount.fs.mkdir(WHO, smpfs::ops::ROOT, b"d", 0o755)).map(drop),
        mount.wait(mount.fs.unlink(WHO, smpfs::ops::ROOT, b"f")),
        mount.wait(mount.fs.fsync(WHO, at.0, at.1, false)),
    ] {
        assert_eq!(refused.unwrap_err().kind(), Kind::ReadOnly);
    }
    let mut expected = data(1, 300_000);
    expected[1000..6000].copy_from_slice(&data(2, 5000));
    assert!(mount.get("f").unwrap() == expected, "it is still read here");
    assert!(
        world.fresh().get("f").unwrap() == data(1, 300_000) && world.keys_in_bucket() == before,
        "nothing of it is in the bucket"
    );
    assert!(mount.fs.progress().files == 1);
    disk.crash(Crash::Kill);
    mount.kill();

    // Under a lease, or where none is needed, the next mount sends it.
    let mount = world.mount(disk.process(), quick());
    mount.unmount();
    assert!(world.fresh().get("f").unwrap() == expected);
}

#[test]
fn a_lease_is_no_find_and_never_deleted_and_what_is_none_is_foreign() {
    const LEASE: &str = ".smpfs/lease";
    let scene = Scene::new(Mode::ZeroKnowledge);
    let mount = scene.world.fresh();
    mount.put("f", &data(1, 1000));
    mount.drain();
    let (store, keys) = (scene.world.bucket.clone(), scene.world.keys.clone());
    let parts = Parts { store, keys, env: Env::real(), holder: [1; 16], host: "here".to_owned() };
    // Whoever held it is dead, for longer than any grace period.
    drop(scene.rt.block_on(lease::take(parts, false, &|_| {})).unwrap());
    scene.days(30);
    let before = scene.world.keys_in_bucket();
    assert!(before.contains(LEASE));
    let looker = scene.looker();
    let mut seen = scene.rt.block_on(looker.scrub.check()).unwrap();
    let report = looker.scrub.report();
    assert!(report.is_clean() && report.counts.young == 0, "{report:?}");
    let gone = scene.rt.block_on(looker.scrub.gc(&mut seen, false)).unwrap();
    assert!(gone.objects.is_empty() && scene.world.keys_in_bucket() == before);
    assert!(public(&scene).is_clean(), "{:?}", public(&scene));

    let mut bad = scene.get(LEASE);
    bad[100] ^= 1;
    for not_one in [bad, b"garbage".to_vec(), vec![7; 4096]] {
        scene.put(LEASE, &not_one);
        scene.days(30);
        for report in [scene.report(), public(&scene)] {
            let found: Vec<_> = report.finds.iter().map(|f| (f.what, f.key.as_str())).collect();
            assert_eq!(found, [(What::Foreign, LEASE)]);
        }
    }
}
