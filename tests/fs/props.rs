//! Generated sequences of operations, run on the filesystem and on the reference model.

use crate::support::model::ModelFs;
use crate::support::opgen::{self, Op, OpsTarget, Outcome, Target};
use crate::world::{Mount, WHO, World, quick, same, tree};
use proptest::prelude::*;
use smpfs::disk::SimDisk;
use smpfs::disk::sim::Crash;
use smpfs::error::Kind;
use smpfs::fs::Options;
use smpfs::ops::Ops;
use smpfs::store::layers::{Fault, Faulty, Verb};
use smpfs::types::{Mode, Suite};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

pub fn cases(n: u32) -> ProptestConfig {
    let n = std::env::var("PROPTEST_CASES").ok().and_then(|v| v.parse().ok()).unwrap_or(n);
    ProptestConfig { cases: n, max_shrink_iters: 150, max_shrink_time: 15_000, ..ProptestConfig::default() }
}

pub fn kinds() -> impl Strategy<Value = (Mode, Suite)> {
    let mode = prop::sample::select(vec![Mode::Standard, Mode::ZeroKnowledge]);
    (mode, prop::sample::select(vec![Suite::Aes256Gcm, Suite::ChaCha20Poly1305]))
}

fn sequences(max: usize) -> impl Strategy<Value = Vec<Op>> {
    opgen::ops(max)
}

/// Sequences that fall into pieces at every `Reopen`.
fn pieces(sequence: &[Op]) -> Vec<&[Op]> {
    sequence.split(|op| matches!(op, Op::Reopen)).collect()
}

/// Runs a piece on both and compares every outcome; what is open at the end is closed.
fn compare(model: &ModelFs, mount: &Mount, piece: &[Op]) -> Result<(), TestCaseError> {
    let (mut a, mut b) = (OpsTarget::new(model), OpsTarget::new(&*mount.fs));
    for (i, op) in piece.iter().enumerate() {
        let (expected, found) = (a.apply(op), b.apply(op));
        prop_assert!(expected == found, "operation {i} {op:?}: model {}, filesystem {}", short(&expected), short(&found));
    }
    a.close_all();
    b.close_all();
    Ok(())
}

fn short(o: &Outcome) -> String {
    match o {
        Outcome::Bytes(b) => format!("{} bytes, SHA-256 {:?}", b.len(), smpfs::crypto::hash::sha256(&[b])),
        o => format!("{o:?}"),
    }
}

fn model_tree(model: &ModelFs) -> crate::world::Tree {
    tree(&tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(), model).unwrap()
}

/// After a drain a machine that knows nothing sees the same tree, and the local disk holds nothing any more.
#[track_caller]
fn settled(world: &World, model: &ModelFs, mount: Mount) {
    let expected = model_tree(model);
    same("the mount", &expected, &mount.tree());
    let spool = mount.disk.clone();
    mount.unmount();
    assert!(spool.list("spool").unwrap().is_empty(), "the spool is empty after a drain");
    let other = world.fresh();
    same("another machine", &expected, &other.tree());
    assert_eq!(*other.sink.corrupt.lock(), Vec::<String>::new());
    other.unmount();
}

/// A store that fails in every way that it can.
fn unreliable(seed: u64) -> Arc<Faulty> {
    let faulty = Arc::new(Faulty::new(seed));
    for (verb, rate, fault) in [
        (None, 60, Fault::Before(Kind::Unavailable)),
        (None, 60, Fault::After(Kind::Unavailable)),
        (None, 10, Fault::Latency(Duration::from_millis(20))),
        (Some(Verb::Put), 3, Fault::Stall),
        (Some(Verb::Get), 30, Fault::Flip),
        (Some(Verb::Get), 30, Fault::Short),
    ] {
        faulty.seeded(verb, rate, fault);
    }
    faulty
}

/// A request may fail while the store does; never with another answer than the right one or EIO.
fn patient(target: &mut OpsTarget<'_>, op: &Op) -> Outcome {
    let mut found = target.apply(op);
    for _ in 0..50 {
        if found != Outcome::Errno(libc::EIO) {
            break;
        }
        found = target.apply(op);
    }
    found
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn the_filesystem_behaves_as_the_model(sequence in sequences(50), (mode, suite) in kinds(), tight in any::<bool>()) {
        let (world, model) = (World::new(mode, suite), ModelFs::new());
        // Listings that are dropped at once, files that wait for each other, indexes that are written all the time.
        let narrow = Options { max_entries: 1, max_dirty_files: 1, uploads: 1, commit_delay: Duration::ZERO, ..quick() };
        let mount = world.mount(Arc::new(SimDisk::new(7)), if tight { narrow } else { quick() });
        for piece in pieces(&sequence) {
            compare(&model, &mount, piece)?;
        }
        settled(&world, &model, mount);
    }

    #[test]
    fn a_tree_outlives_mounts(sequence in sequences(60), how in prop::collection::vec(0..3u8, 8), (mode, suite) in kinds()) {
        let (world, model, disk) = (World::new(mode, suite), ModelFs::new(), SimDisk::new(3));
        let mut mount = world.mount(disk.process(), quick());
        for (piece, how) in pieces(&sequence).into_iter().zip(how.iter().cycle()) {
            compare(&model, &mount, piece)?;
            match how {
                0 => mount.unmount(),
                1 => {
                    mount.drain();
                    disk.crash(Crash::Kill);
                    mount.kill();
                }
                _ => {
                    disk.crash(Crash::Kill);
                    mount.kill();
                }
            }
            mount = world.mount(disk.process(), quick());
            prop_assert_eq!(mount.recovered.unreadable, 0);
        }
        settled(&world, &model, mount);
    }

    #[test]
    fn a_kill_at_any_moment_loses_nothing(sequence in sequences(40), (mode, suite) in kinds(), delay in 0..30u64) {
        let (world, model, disk) = (World::new(mode, suite), ModelFs::new(), SimDisk::new(5));
        let mut mount = world.mount(disk.process(), quick());
        for piece in pieces(&sequence) {
            {
                // Files stay open: the process dies with them.
                let (mut a, mut b) = (OpsTarget::new(&model), OpsTarget::new(&*mount.fs));
                for op in piece {
                    let (expected, found) = (a.apply(op), b.apply(op));
                    prop_assert!(expected == found, "{op:?}: model {}, filesystem {}", short(&expected), short(&found));
                }
                a.close_all();
            }
            std::thread::sleep(Duration::from_millis(delay));
            disk.crash(Crash::Kill);
            mount.kill();
            mount = world.mount(disk.process(), quick());
        }
        settled(&world, &model, mount);
    }

    #[test]
    fn faults_of_the_store_cost_time_and_nothing_else(sequence in sequences(40), (mode, suite) in kinds(), seed in any::<u64>()) {
        let (world, model) = (World::new(mode, suite), ModelFs::new());
        let faulty = unreliable(seed);
        let mount = world.mount_with(Arc::new(SimDisk::new(9)), quick(), faulty.clone(), 1 << 30);
        let (mut a, mut b) = (OpsTarget::new(&model), OpsTarget::new(&*mount.fs));
        for op in sequence.iter().filter(|op| !matches!(op, Op::Sync { .. })) {
            let (expected, found) = (a.apply(op), patient(&mut b, op));
            prop_assert!(expected == found, "{op:?}: model {}, filesystem {}", short(&expected), short(&found));
        }
        a.close_all();
        b.close_all();
        mount.drain();
        faulty.clear();
        settled(&world, &model, mount);
    }

    #[test]
    fn kills_and_faults_together_lose_nothing(sequence in sequences(60), (mode, suite) in kinds(), seed in any::<u64>(), delay in 0..40u64) {
        let (world, model, disk) = (World::new(mode, suite), ModelFs::new(), SimDisk::new(seed));
        let open = |n: u64| world.mount_with(disk.process(), quick(), unreliable(seed.wrapping_add(n)), 1 << 30);
        let mut mount = open(0);
        let sequence: Vec<Op> = sequence.into_iter().filter(|op| !matches!(op, Op::Sync { .. })).collect();
        // Killed at every reopening, and now and then in between.
        let pieces = pieces(&sequence).into_iter().flat_map(|p| p.chunks(15));
        for (n, piece) in pieces.enumerate() {
            {
                let (mut a, mut b) = (OpsTarget::new(&model), OpsTarget::new(&*mount.fs));
                for op in piece {
                    let (expected, found) = (a.apply(op), patient(&mut b, op));
                    prop_assert!(expected == found, "{op:?}: model {}, filesystem {}", short(&expected), short(&found));
                }
                a.close_all();
            }
            std::thread::sleep(Duration::from_millis(delay));
            disk.crash(Crash::Kill);
            mount.kill();
            mount = open(n as u64 + 1);
            prop_assert_eq!(mount.recovered.unreadable + mount.recovered.damaged, 0);
        }
        mount.drain();
        mount.faulty.clear();
        settled(&world, &model, mount);
    }

    #[test]
    fn two_machines_on_the_same_names_lose_nothing(
        sequence in prop::collection::vec((0..2usize, 0..7u8, 0..4u8, 0..4u8), 1..40),
        (mode, suite) in kinds(),
    ) {
        let world = World::new(mode, suite);
        let alone = |host: &str| Options { host: host.to_owned(), commit_delay: Duration::from_secs(3600), ..quick() };
        let machines = ["a", "b"].map(|host| world.mount(Arc::new(SimDisk::new(2)), alone(host)));
        // Contents that fsync acknowledged, and those that somebody removed or replaced who saw them.
        let (mut acknowledged, mut given_up) = (BTreeSet::new(), BTreeSet::new());
        for (i, (who, what, from, to)) in sequence.iter().enumerate() {
            let m = &machines[*who];
            let (from, to) = (format!("n{from}"), format!("n{to}"));
            // What it sees under the name that it is about to take away; where it cannot look, it lets be.
            let there = match m.get(if *what == 4 { &to } else { &from }) {
                Err(e) if e.kind() != Kind::NotFound => continue,
                found => found.ok(),
            };
            match what {
                0..=2 => {
                    given_up.extend(there);
                    let new = crate::world::data(i as u8, 100 + i);
                    let at = match m.open(&from, libc::O_RDWR | libc::O_TRUNC) {
                        Ok((ino, opened)) => (ino, opened.fh),
                        Err(_) => m.create(&from),
                    };
                    let written = m.write(at, 0, &new);
                    if *what < 2 && written.is_ok() && m.wait(m.fs.fsync(WHO, at.0, at.1, false)).is_ok() {
                        acknowledged.insert(new);
                    }
                    let _ = m.close(at);
                }
                3 => {
                    if m.unlink(&from).is_ok() {
                        given_up.extend(there);
                    }
                }
                4 if from != to => {
                    if m.rename(&from, &to).is_ok() {
                        given_up.extend(there);
                    }
                }
                _ => m.drain(),
            }
        }
        for _ in 0..2 {
            machines.iter().for_each(Mount::drain);
        }
        let other = world.fresh();
        let kept: BTreeSet<Vec<u8>> = other.tree().into_values().map(|leaf| leaf.bytes).collect();
        prop_assert_eq!(&*other.sink.corrupt.lock(), &Vec::<String>::new());
        for content in acknowledged.difference(&given_up) {
            prop_assert!(kept.contains(content), "what operation {} wrote is gone", content.len() - 100);
        }
        for m in machines {
            prop_assert_eq!(&*m.sink.corrupt.lock(), &Vec::<String>::new());
            m.unmount();
        }
    }

    #[test]
    fn two_machines_see_one_tree(first in sequences(40), second in sequences(40), (mode, suite) in kinds()) {
        // Each works in a directory of its own, both in the root and in one that they share.
        let world = World::new(mode, suite);
        let ttl = Options { dir_ttl: Duration::ZERO, ..quick() };
        let [a, b] = [1, 2].map(|seed| world.mount(Arc::new(SimDisk::new(seed)), ttl.clone()));
        a.mkdir("shared");
        a.drain();
        let dir = loop {
            if let Ok(ino) = b.ino("shared") {
                break ino;
            }
        };
        b.fs.forget(dir, 1);
        std::thread::scope(|s| {
            for (who, mount, sequence) in [("a", &a, &first), ("b", &b, &second)] {
                s.spawn(move || {
                    for (i, op) in sequence.iter().enumerate() {
                        let name = format!("{who}{}", i % 7);
                        let data = crate::world::data(i as u8, 1000 * i);
                        match op {
                            Op::Unlink { .. } | Op::Rmdir { .. } => drop(mount.unlink(&format!("shared/{name}"))),
                            Op::Rename { .. } => drop(mount.rename(&format!("shared/{name}"), &format!("{name}-moved"))),
                            Op::Sync { .. } => mount.drain(),
                            Op::Link { .. } | Op::Symlink { .. } => {
                                drop(mount.link(&format!("shared/{name}"), &format!("{name}-linked{i}")));
                            }
                            _ => mount.put(&format!("shared/{name}"), &data),
                        }
                    }
                });
            }
        });
        a.drain();
        b.drain();
        let other = world.fresh();
        let tree = other.tree();
        for mount in [&a, &b] {
            for _ in 0..500 {
                if mount.names("shared") == other.names("shared") && mount.names("") == other.names("") {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            // A file that is open while its new version is noticed refuses further reads: it is opened again.
            for _ in 0..100 {
                if mount.try_tree().is_ok_and(|t| t == tree) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            same("a machine that took part", &tree, &mount.tree());
        }
        // What each of them did last is there.
        for (who, mount) in [("a", &a), ("b", &b)] {
            let mine = |t: &crate::world::Tree| t.keys().filter(|k| k.contains(&format!("/{who}"))).cloned().collect::<Vec<_>>();
            prop_assert_eq!(mine(&tree), mine(&mount.tree()));
            prop_assert_eq!(&*mount.sink.corrupt.lock(), &Vec::<String>::new());
        }
        b.kill();
        a.kill();
    }
}
