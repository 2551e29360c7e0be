//! Mending: left-over files linked back, entries that follow their objects, lost indexes written anew; and the independent reader on
//! what comes out.

use crate::scrub::{Looker, Scene, looker, runtime};
use crate::world::{Mount, SEG, WHO, World, data};
use smpfs::env::Clock;
use smpfs::error::Kind;
use smpfs::format::names::Place;
use smpfs::ops::Ops;
use smpfs::scrub::{Recovered, Waiting, What};
use smpfs::types::Mode;
use std::collections::BTreeSet;
use std::sync::Arc;

fn check(scene: &Scene, looker: &Looker) -> smpfs::scrub::Seen {
    scene.rt.block_on(looker.scrub.check()).unwrap()
}

/// Removes a file and puts its object back, as if its name had been lost. `index` is put back as well, when the name stays.
fn lose_name(scene: &Scene, mount: &Mount, path: &str, key: &str) {
    let object = scene.get(key);
    mount.unlink(path).unwrap();
    mount.drain();
    crate::directed::until("the object goes", || !scene.world.keys_in_bucket().contains(key));
    scene.put(key, &object);
}

#[test]
fn left_over_files_are_linked_back_under_a_name_that_is_free() {
    for mode in [Mode::Standard, Mode::ZeroKnowledge] {
        let scene = Scene::new(mode);
        let mount = scene.world.fresh();
        mount.mkdir("d");
        let free = scene.file(&mount, "d/free", &data(1, 9000));
        let taken = scene.file(&mount, "taken", &data(2, 300_000));
        lose_name(&scene, &mount, "d/free", &free);
        lose_name(&scene, &mount, "taken", &taken);
        mount.put("taken", b"another");
        mount.drain();
        let (young, missing) = (scene.looker(), scene.file(&mount, "missing", b"x"));
        let mut seen = check(&scene, &young);
        assert_eq!(scene.rt.block_on(young.scrub.repair(&mut seen)).unwrap(), Default::default(), "too young");
        scene.days(8);
        scene.delete(&missing);
        let looker = scene.looker();
        let mut seen = check(&scene, &looker);
        let done = scene.rt.block_on(looker.scrub.repair(&mut seen)).unwrap();
        let linked: BTreeSet<String> = done.linked.into_iter().map(|p| String::from_utf8(p).unwrap()).collect();
        let renamed = linked.iter().find(|p| p.starts_with("/recovered (")).unwrap().clone();
        assert_eq!(linked, BTreeSet::from(["/d/free".to_owned(), renamed.clone()]), "{mode:?}");
        assert!(renamed.ends_with(") taken"));
        // A second time there is nothing to do, and what is missing is told and stays.
        let again = scene.looker();
        let mut seen = check(&scene, &again);
        let report = again.scrub.report();
        assert_eq!((report.finds.len(), report.count(What::Missing)), (1, 1), "{report:?}");
        assert_eq!(scene.rt.block_on(again.scrub.repair(&mut seen)).unwrap(), Default::default());
        let other = scene.world.fresh();
        assert!(other.get("d/free").unwrap() == data(1, 9000) && other.get(&renamed[1..]).unwrap() == data(2, 300_000));
        assert_eq!(other.get("taken").unwrap(), b"another");
        assert!(other.names("").contains("missing"));
        // What came back is an ordinary file.
        other.put("d/free", b"written again");
        other.unlink(&renamed[1..]).unwrap();
        other.unlink("missing").unwrap();
        other.drain();
        crate::directed::until("the object goes", || !scene.world.keys_in_bucket().contains(&taken));
        assert!(scene.report().is_clean());
    }
}

#[test]
fn an_entry_that_is_behind_its_object_follows_it() {
    let scene = Scene::new(Mode::ZeroKnowledge);
    let mount = scene.world.fresh();
    mount.put("f", b"first");
    mount.drain();
    let head = scene.world.keys.index_key(&scene.world.root.dir_id, Place::HEAD);
    let before = scene.get(&head);
    mount.put("f", b"the second");
    mount.drain();
    // As if the writer had stopped between object and index.
    scene.put(&head, &before);
    let looker = scene.looker();
    let mut seen = check(&scene, &looker);
    assert_eq!(looker.scrub.report().count(What::Lagging), 1, "{:?}", looker.scrub.report());
    let done = scene.rt.block_on(looker.scrub.repair(&mut seen)).unwrap();
    assert_eq!(done.advanced, [b"/f".to_vec()]);
    assert!(scene.report().is_clean());
    assert_eq!(scene.world.fresh().get("f").unwrap(), b"the second");
}

fn recover(scene: &Scene, looker: &Looker) -> Recovered {
    let outlook = scene.rt.block_on(looker.scrub.outlook()).unwrap();
    assert!(!outlook.is_empty() && !outlook.lines().is_empty());
    scene.rt.block_on(looker.scrub.recover(outlook)).unwrap()
}

fn nothing_to_recover(scene: &Scene) {
    let looker = scene.looker();
    assert!(scene.rt.block_on(looker.scrub.outlook()).unwrap().is_empty());
}

#[test]
fn a_lost_root_and_a_lost_directory_come_back_from_their_files() {
    for (damage, path) in [("deleted", ""), ("flipped", ""), ("cut", "d"), ("deleted", "d"), ("put back", "d")] {
        let scene = Scene::new(Mode::ZeroKnowledge);
        let mount = scene.world.fresh();
        let d = scene.head_of(&mount, "d");
        let empty = scene.get(&d);
        mount.put("top", &data(1, 9000));
        mount.put("d/in", &data(2, 300_000));
        mount.mkdir("d/sub");
        mount.put("d/sub/deep", &data(3, 100));
        let ino = mount.ino("").unwrap();
        mount.wait(mount.fs.symlink(WHO, ino, b"link", b"top")).unwrap();
        mount.drain();
        let head = if path.is_empty() { scene.world.keys.index_key(&scene.world.root.dir_id, Place::HEAD) } else { d };
        let good = scene.get(&head);
        match damage {
            "deleted" => scene.delete(&head),
            "cut" => scene.put(&head, &good[..good.len() / 2]),
            "put back" => scene.put(&head, &empty),
            _ => scene.put(&head, &[&good[..300], &[good[300] ^ 1], &good[301..]].concat()),
        }
        let bad = scene.world.keys_in_bucket().contains(&head).then(|| scene.get(&head));
        scene.days(8);
        // The machine that has seen the newest index.
        let looker = scene.looker_with(mount.known.clone());
        let done = recover(&scene, &looker);
        let named = if path.is_empty() { "/" } else { "/d/" };
        assert_eq!(done.dirs, [named.as_bytes().to_vec()]);
        let kept: Vec<_> = looker.ear.kept.lock().iter().map(|(k, b)| (k.clone(), b.to_vec())).collect();
        assert_eq!(kept, bad.map(|b| (head.clone(), b)).into_iter().collect::<Vec<_>>(), "{damage} {path}");
        // Both the machine that saw higher generations than anybody could forge, and one that never saw the volume.
        for known in [Some(mount.known.clone()), None] {
            let l = known.map_or_else(|| scene.looker(), |k| scene.looker_with(k));
            scene.rt.block_on(l.scrub.check()).unwrap();
            assert_eq!(l.scrub.report().count(What::Index), 0, "{damage} {path}: {:?}", l.scrub.report());
            assert_eq!(l.scrub.report().count(What::Missing), 0);
        }
        let other = scene.world.fresh();
        assert!(other.get("top").unwrap() == data(1, 9000), "{damage} {path}");
        let lost = |name: &str| {
            let found = other.names("lost+found").into_iter().map(|id| format!("lost+found/{id}/{name}"));
            found.filter_map(|p| other.get(&p).ok()).next()
        };
        if path.is_empty() {
            assert_eq!(other.names(""), BTreeSet::from(["lost+found".to_owned(), "top".to_owned()]), "links are gone");
            assert!(lost("in").unwrap() == data(2, 300_000) && lost("deep").unwrap() == data(3, 100));
        } else {
            assert!(other.get("d/in").unwrap() == data(2, 300_000));
            assert!(other.names("").contains("link"), "other directories are as they were");
            assert!(lost("deep").unwrap() == data(3, 100));
        }
        nothing_to_recover(&scene);
        // A mount that was there all the time goes on: its next change meets the new index and merges.
        mount.put("d2", b"after");
        mount.drain();
        assert_eq!(scene.world.fresh().get("d2").unwrap(), b"after");
    }
}

/// An index is lost soon after its files were written: what lay below it has no directory any more, and is too young to be moved.
#[test]
fn what_is_too_young_is_told_and_comes_back_when_it_is_older() {
    let scene = Scene::new(Mode::ZeroKnowledge);
    let mount = scene.world.fresh();
    let head = scene.head_of(&mount, "a");
    mount.put("a/f1", &data(1, 9000));
    mount.mkdir("a/deep");
    mount.put("a/deep/f2", &data(2, 9000));
    mount.drain();
    scene.delete(&head);
    let looker = scene.looker_with(mount.known.clone());
    let outlook = scene.rt.block_on(looker.scrub.outlook()).unwrap();
    let written = scene.clock.now();
    assert_eq!(outlook.waiting(), Waiting { files: 1, newest: Some(written) });
    let done = scene.rt.block_on(looker.scrub.recover(outlook)).unwrap();
    assert_eq!((done.found, done.homeless.len()), (1, 0), "{done:?}");
    // What is left out is told as long as it is there, and before it can be deleted.
    let again = scene.looker();
    let outlook = scene.rt.block_on(again.scrub.outlook()).unwrap();
    assert!(outlook.is_empty() && outlook.waiting().files == 1, "{:?}", outlook.waiting());
    scene.days(8);
    let old = scene.looker();
    let seen = check(&scene, &old);
    assert_eq!(seen.returnable(), 1);
    let report = old.scrub.report();
    assert!(report.finds.iter().any(|f| f.detail.contains("`smpfs recover` can link it back")), "{report:?}");
    let done = recover(&scene, &scene.looker());
    assert_eq!(done.homeless.len(), 1, "{done:?}");
    nothing_to_recover(&scene);
    let path = String::from_utf8(done.homeless[0].clone()).unwrap();
    assert!(scene.world.fresh().get(path.trim_start_matches('/')).unwrap() == data(2, 9000));
}

#[test]
fn a_directory_with_shards_keeps_what_is_in_the_others() {
    let scene = Scene::new(Mode::ZeroKnowledge);
    let mount = scene.world.fresh();
    let many = mount.mkdir("many");
    for i in 0..1100 {
        mount.wait(mount.fs.symlink(WHO, many, format!("n{i}").as_bytes(), b"t")).unwrap();
    }
    mount.drain();
    let before = scene.world.keys_in_bucket();
    for i in 0..40 {
        mount.put(&format!("many/f{i}"), &data(i, 300));
    }
    mount.drain();
    scene.days(8);
    let shards: Vec<String> = before.into_iter().filter(|k| k.starts_with(".smpfs/d/") && scene.get(k).len() > 4300).collect();
    assert!(shards.len() >= 16, "{}", shards.len());
    let mut bad = scene.get(&shards[3]);
    bad[1000] ^= 1;
    scene.put(&shards[3], &bad);
    let looker = scene.looker_with(mount.known.clone());
    let done = recover(&scene, &looker);
    assert!(done.dirs == [b"/many/".to_vec()] && done.kept > 900 && done.kept < 1140, "{done:?}");
    let other = scene.world.fresh();
    for i in 0..40 {
        assert!(other.get(&format!("many/f{i}")).unwrap() == data(i, 300), "{i}");
    }
    assert_eq!(other.names("many").len() as u64, done.kept + done.found);
    // The old shards are left over; nothing else is found.
    let old = scene.looker();
    scene.days(8);
    let mut seen = check(&scene, &old);
    let report = old.scrub.report();
    assert_eq!(report.finds.len(), report.count(What::Orphan) + report.count(What::Foreign), "{report:?}");
    assert_eq!(report.count(What::Foreign), 1, "the damaged shard is nobody's");
    scene.rt.block_on(old.scrub.gc(&mut seen, false)).unwrap();
    assert_eq!(scene.report().count(What::Orphan), 0);
    assert_eq!(scene.world.fresh().names("many"), other.names("many"));
}

#[test]
fn whole_indexes_are_not_touched() {
    let scene = Scene::new(Mode::Standard);
    let mount = scene.world.fresh();
    mount.mkdir("d");
    mount.put("d/f", b"x");
    mount.drain();
    let before = scene.all();
    nothing_to_recover(&scene);
    assert!(scene.all() == before);
}

#[test]
fn a_recovery_that_was_stopped_is_gone_on_with() {
    let scene = Scene::new(Mode::ZeroKnowledge);
    let mount = scene.world.fresh();
    mount.mkdir("d");
    for i in 0..5 {
        mount.put(&format!("d/{i}"), &data(i, 500));
        mount.put(&format!("{i}"), &data(i, 400));
    }
    mount.drain();
    scene.delete(&scene.world.keys.index_key(&scene.world.root.dir_id, Place::HEAD));
    scene.days(8);
    // Every put of the recovery in turn is the last one that is let through.
    for last in 0..8 {
        let looker = scene.looker();
        let outlook = scene.rt.block_on(looker.scrub.outlook()).unwrap();
        let faulty = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let flag = faulty.clone();
        looker.hook.on(smpfs::store::layers::Verb::Put, ".smpfs/d/", last, move || {
            flag.store(true, std::sync::atomic::Ordering::SeqCst);
            panic!("the process dies here");
        });
        let work = scene.rt.handle().clone().spawn(async move { looker.scrub.recover(outlook).await });
        if scene.rt.block_on(work).is_ok() {
            assert!(!faulty.load(std::sync::atomic::Ordering::SeqCst));
            break;
        }
    }
    nothing_to_recover(&scene);
    let other = scene.world.fresh();
    for i in 0..5 {
        assert!(other.get(&format!("{i}")).unwrap() == data(i, 400));
    }
    let dirs = other.names("lost+found");
    assert_eq!(dirs.len(), 1, "{dirs:?}");
    for i in 0..5 {
        let path = format!("lost+found/{}/{i}", dirs.first().unwrap());
        assert!(other.get(&path).unwrap() == data(i, 500));
    }
}

#[test]
fn the_independent_reader_reads_what_was_mended() {
    let needed = "from cryptography.hazmat.primitives.kdf.argon2 import Argon2id";
    if !std::process::Command::new("python3").args(["-c", needed]).output().is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: python3 with the package cryptography (44 or later) is not installed");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let bucket = temp.path().join("bucket");
    let world: World = crate::reader::volume(&bucket, Mode::Standard, smpfs::types::Suite::Aes256Gcm);
    let mount = world.fresh();
    mount.mkdir("d");
    mount.put("top", &data(1, 3 * SEG as usize));
    let many = mount.mkdir("many");
    for i in 0..1100 {
        mount.wait(mount.fs.symlink(WHO, many, format!("n{i}").as_bytes(), b"t")).unwrap();
    }
    mount.put("many/f", &data(2, 5000));
    mount.put("d/g", &data(3, 5000));
    mount.unmount();
    let rt = runtime();
    let root = world.keys.index_key(&world.root.dir_id, Place::HEAD);
    rt.block_on(world.bucket.delete(&root)).unwrap();
    // Objects of a week ago: the directory store takes its times from the files.
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(8 * 86_400);
    for path in ["top", "many/f", "d/g"] {
        std::fs::File::options().write(true).open(bucket.join(path)).unwrap().set_modified(old).unwrap();
    }
    let l = looker(&world, &rt, Arc::new(smpfs::keyring::Known::in_memory()));
    let outlook = rt.block_on(l.scrub.outlook()).unwrap();
    let done = rt.block_on(l.scrub.recover(outlook)).unwrap();
    assert_eq!((done.found, done.homeless.len()), (1, 2), "{done:?}");
    let files = crate::reader::read(&temp, &bucket);
    let names: BTreeSet<&str> = files.keys().map(|p| p.rsplit('/').next().unwrap()).collect();
    assert_eq!(names, BTreeSet::from(["top", "f", "g"]), "{files:?}");
    let hex = |b: &[u8]| data_encoding::HEXLOWER.encode(&smpfs::crypto::hash::sha256(&[b]));
    assert!(files.iter().all(|(p, sha)| match p.rsplit('/').next().unwrap() {
        "top" => *sha == hex(&data(1, 3 * SEG as usize)),
        "f" => *sha == hex(&data(2, 5000)),
        _ => *sha == hex(&data(3, 5000)),
    }));
    assert_eq!(rt.block_on(world.bucket.get("none", smpfs::store::Span::Last(1), None)).unwrap_err().kind(), Kind::NotFound);
}
