//! `smpfs scrub` and `smpfs recover` as people run them: exit codes, what is printed, what the logs hold, beside a living mount.

use super::world::*;
use std::fs;
use std::time::{Duration, SystemTime};

fn json(said: &Said) -> serde_json::Value {
    serde_json::from_str(&said.out).unwrap_or_else(|e| panic!("{e}: {said:?}"))
}

#[test]
fn a_volume_on_s3_is_verified_and_cleaned() {
    need_mounts!("a_volume_on_s3_is_verified_and_cleaned");
    let world = s3_world!("a_volume_on_s3_is_verified_and_cleaned");
    world.init(&[]);
    let bucket = world.bucket();
    let mount = world.mount(&[]);
    write_durably(&world.file("small"), &noise(1, 5000)).unwrap();
    write_durably(&world.file("large"), &noise(2, 20 << 20)).unwrap();
    let store = world.store.clone();
    world.run(&["scrub", &store, "--quiet"]).ok();
    mount.unmount();
    let report = json(&world.run(&["scrub", &store, "--quiet", "--json", "--gc", "--repair"]).ok());
    assert!(report["clean"] == true && report["files"] == 2 && report["deleted"] == serde_json::json!([]), "{report}");
    world.run(&["scrub", &store, "--quiet", "--keyless"]).ok();
    let key = bucket.files()[0].clone();
    bucket.delete(&key);
    let missing = world.run(&["scrub", &store, "--quiet", "--json"]);
    assert_eq!((missing.code, &json(&missing)["finds"][0]["what"]), (10, &"missing".into()), "{missing:?}");
}

/// Files of the bucket are as old as their times.
fn make_old(world: &World, days: u64) {
    let then = SystemTime::now() - Duration::from_secs(days * 86_400);
    let mut todo = vec![world.path("bucket")];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => todo.push(entry.path()),
                false => fs::File::options().write(true).open(entry.path()).unwrap().set_modified(then).unwrap(),
            }
        }
    }
}

#[test]
fn a_volume_is_verified_beside_its_mount_and_after_it() {
    need_mounts!("a_volume_is_verified_beside_its_mount_and_after_it");
    let mut world = World::dir();
    world.init(&["--mode", "standard"]);
    let bucket = world.bucket();
    let mount = world.mount(&[]);
    fs::create_dir(world.file("study")).unwrap();
    write_durably(&world.file("study/scan.dcm"), &noise(1, 300_000)).unwrap();
    write_durably(&world.file("notes"), b"some notes").unwrap();
    let store = world.store.clone();
    let beside = world.run(&["scrub", &store, "--quiet"]).ok();
    assert!(beside.err.contains("mounted here") && beside.out.contains("2 files verified"), "{beside:?}");
    mount.unmount();
    let clean = json(&world.run(&["scrub", &store, "--quiet", "--json"]).ok());
    assert!(clean["clean"] == true && clean["files"] == 2 && clean["complete"] == true, "{clean}");
    assert!(bucket.keys().iter().all(|k| !k.contains("probe")), "{:?}", bucket.keys());

    let good = bucket.get("study/scan.dcm");
    let mut bad = good.clone();
    bad[200_000] ^= 1;
    bucket.put("study/scan.dcm", &bad);
    let found = world.run(&["scrub", &store, "--quiet"]);
    assert_eq!(found.code, 10, "{found:?}");
    assert!(!found.err.contains("ERROR"), "the report says it, and no line of the log besides: {found:?}");
    assert!(found.out.contains("corrupt") && found.out.contains("/study/scan.dcm") && found.err.contains("1 find"), "{found:?}");
    // Public values are enough to see it, and no passphrase is asked for.
    world.set("SMPFS_PASSPHRASE_FILE", "/does/not/exist");
    let public = world.run(&["scrub", &store, "--keyless", "--quiet", "--json"]);
    assert_eq!((public.code, &json(&public)["finds"][0]["key"]), (10, &"study/scan.dcm".into()), "{public:?}");
    bucket.put("study/scan.dcm", &good);
    world.run(&["scrub", &store, "--keyless", "--quiet"]).ok();
    world.set("SMPFS_PASSPHRASE_FILE", world.path("pass").to_str().unwrap());

    // The find is where the finds of mounts are, and the path is not.
    let mount = world.mount(&[]);
    let lines = mount.audit("corrupt");
    assert!(!lines.is_empty() && !format!("{lines:?}").contains("scan.dcm"), "{lines:?}");
    assert!(mount.quarantine().iter().any(|q| q["finding"]["stage"] == "leaf" || q["finding"]["stage"] == "chunk"));
    assert!(fs::read(world.file("study/scan.dcm")).unwrap() == noise(1, 300_000));
    mount.unmount();

    fs::write(world.path("pass"), "not the passphrase\n").unwrap();
    assert_eq!(world.run(&["scrub", &store, "--quiet"]).code, 3);
}

#[test]
fn what_is_left_over_is_deleted_on_request() {
    need_mounts!("what_is_left_over_is_deleted_on_request");
    let world = World::dir();
    world.init(&[]);
    let bucket = world.bucket();
    let mount = world.mount(&[]);
    write_durably(&world.file("keep"), b"kept").unwrap();
    let before = bucket.files();
    write_durably(&world.file("gone"), &noise(1, 5000)).unwrap();
    let key = bucket.files().into_iter().find(|k| !before.contains(k)).unwrap();
    let object = bucket.get(&key);
    fs::remove_file(world.file("gone")).unwrap();
    mount.unmount();
    assert!(!bucket.keys().contains(&key));
    bucket.put(&key, &object);
    let store = world.store.clone();
    let scrub = |more: &[&str]| world.run(&[&["scrub", &store, "--quiet", "--quick"], more].concat());
    let young = scrub(&["--gc"]).ok();
    assert!(young.out.contains("1 object that no index names is younger than 7d") && bucket.keys().contains(&key), "{young:?}");
    assert!(young.out.contains("smpfs recover --grace 1h") && young.out.contains("Nothing was there to delete"), "{young:?}");
    let too_young = world.run(&["recover", &store, "--quiet", "--yes"]).ok();
    for part in ["1 file that no index names is left out: younger than 7d", "--grace 1h", "after 20"] {
        assert!(too_young.out.contains(part), "{part}: {too_young:?}");
    }
    assert!(!too_young.out.contains("no file is left over."), "{too_young:?}");
    make_old(&world, 8);
    assert_eq!(scrub(&["--gc", "--grace", "5m"]).code, 2);
    let dry = scrub(&["--gc", "--dry-run"]);
    assert!(dry.code == 10 && dry.out.contains(&format!("would go     {key}")), "{dry:?}");
    assert!(bucket.keys().contains(&key));
    assert!(dry.out.contains("`smpfs recover` can link it back"), "{dry:?}");
    let wet = scrub(&["--gc"]).ok();
    assert!(wet.err.contains("1 file that no index names will be deleted for good"), "{wet:?}");
    assert!(wet.out.contains(&format!("deleted      {key}")), "{wet:?}");
    assert!(!bucket.keys().contains(&key));
    // Linked back instead.
    bucket.put(&key, &object);
    make_old(&world, 8);
    let mended = scrub(&["--repair"]).ok();
    assert!(mended.out.contains("mended       /gone"), "{mended:?}");
    let mount = world.mount(&[]);
    assert!(fs::read(world.file("gone")).unwrap() == noise(1, 5000) && fs::read(world.file("keep")).unwrap() == b"kept");
    assert_eq!(mount.audit("control").len(), 3, "{:?}", mount.audit("control"));
    mount.unmount();
}

#[test]
fn a_lost_root_comes_back() {
    need_mounts!("a_lost_root_comes_back");
    let mut world = World::dir();
    world.init(&[]);
    let bucket = world.bucket();
    let root = bucket.indexes()[0].clone();
    let mount = world.mount(&[]);
    write_durably(&world.file("top"), &noise(1, 50_000)).unwrap();
    fs::create_dir(world.file("d")).unwrap();
    write_durably(&world.file("d/deep"), &noise(2, 50_000)).unwrap();
    let store = world.store.clone();
    assert_eq!(world.run(&["recover", &store, "--quiet", "--yes"]).code, 7, "it is mounted");
    mount.unmount();
    assert!(world.run(&["recover", &store, "--quiet"]).ok().out.contains("Nothing to recover"));
    make_old(&world, 8);
    let mut bad = bucket.get(&root);
    bad[300] ^= 1;
    bucket.put(&root, &bad);
    assert_eq!(world.try_mount(&[]).code, 5);
    assert_eq!(world.run(&["scrub", &store, "--quiet"]).code, 10);
    for refused in [&["--dry-run"][..], &[]] {
        let said = world.run(&[&["recover", &store, "--quiet"], refused].concat());
        assert_eq!(said.code, if refused.is_empty() { 2 } else { 0 }, "{said:?}");
        assert!(said.out.contains("1 file of it by what the objects say") && bucket.get(&root) == bad, "{said:?}");
    }
    let said = world.run(&["recover", &store, "--quiet", "--yes"]).ok();
    assert!(said.out.contains("2 files back"), "{said:?}");
    for machine in ["the same", "another"] {
        let mount = world.mount(&[]);
        assert!(fs::read(world.file("top")).unwrap() == noise(1, 50_000), "{machine}");
        let dirs: Vec<_> = fs::read_dir(world.file("lost+found")).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(dirs.len() == 1 && fs::read(dirs[0].join("deep")).unwrap() == noise(2, 50_000), "{machine}");
        if machine == "the same" {
            assert!(mount.quarantine().iter().any(|q| q["finding"]["object"] == root.as_str() && q["evidence"].is_string()));
        }
        mount.unmount();
        world.become_another_machine("another");
    }
}
