//! Generated sequences of operations, run on the filesystem and on the reference model.

use crate::support::model::ModelFs;
use crate::support::opgen::{self, How, Op, OpsTarget, Outcome, Target};
use crate::world::{Mount, World, quick, same, tree};
use proptest::prelude::*;
use smpfs::disk::SimDisk;
use smpfs::disk::sim::Crash;
use smpfs::error::Kind;
use smpfs::fs::Options;
use smpfs::store::layers::{Fault, Faulty, Verb};
use smpfs::types::{Mode, Suite};
use std::sync::Arc;
use std::time::Duration;

fn cases(n: u32) -> ProptestConfig {
    ProptestConfig { cases: n, max_shrink_iters: 150, max_shrink_time: 15_000, ..ProptestConfig::default() }
}

fn kinds() -> impl Strategy<Value = (Mode, Suite)> {
    let mode = prop::sample::select(vec![Mode::Standard, Mode::ZeroKnowledge]);
    (mode, prop::sample::select(vec![Suite::Aes256Gcm, Suite::ChaCha20Poly1305]))
}

/// Sequences of what this version can: no hard links, no exchanges.
fn sequences(max: usize) -> impl Strategy<Value = Vec<Op>> {
    opgen::ops(max).prop_map(|ops| {
        let plain = ops.into_iter().filter(|op| !matches!(op, Op::Link { .. }));
        plain
            .map(|op| match op {
                Op::Rename { from, to, how: How::Exchange } => Op::Rename { from, to, how: How::Replace },
                op => op,
            })
            .collect()
    })
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
        let mount = world.mount_with(Arc::new(SimDisk::new(9)), quick(), faulty.clone(), 1 << 30);
        let (mut a, mut b) = (OpsTarget::new(&model), OpsTarget::new(&*mount.fs));
        for op in sequence.iter().filter(|op| !matches!(op, Op::Sync { .. })) {
            let expected = a.apply(op);
            // A request may fail while the store does; never with another answer than the right one or EIO.
            let mut found = b.apply(op);
            for _ in 0..50 {
                if found == expected || found != Outcome::Errno(libc::EIO) {
                    break;
                }
                found = b.apply(op);
            }
            prop_assert!(expected == found, "{op:?}: model {}, filesystem {}", short(&expected), short(&found));
        }
        a.close_all();
        b.close_all();
        mount.drain();
        faulty.clear();
        settled(&world, &model, mount);
    }
}
