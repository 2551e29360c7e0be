//! One machine removes directories while another makes something inside: nothing that was acknowledged is lost, and nothing waits
//! for ever.

use crate::conflict::{MODES, ends, kinds as told, options, seen, two};
use crate::props::{cases, kinds};
use crate::scrub::nothing_is_damaged;
use crate::world::{Mount, WHO, World, data, quick};
use proptest::prelude::*;
use smpfs::disk::SimDisk;
use smpfs::disk::sim::Crash;
use smpfs::error::Kind;
use smpfs::format::names::{INDEX_PREFIX, Place};
use smpfs::fs::Options;
use smpfs::fs::conflict::ConflictKind;
use smpfs::ops::Ops;
use smpfs::store::layers::{Fault, Faulty, Verb};
use smpfs::types::{Mode, Suite};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const FOREVER: u32 = 1_000_000;

/// The key of the root directory's index.
fn root_key(world: &World) -> String {
    world.keys.index_key(&world.root.dir_id, Place::HEAD)
}

/// A new file, with success of fsync.
#[track_caller]
fn put_synced(m: &Mount, path: &str, bytes: &[u8]) {
    let at = m.create(path);
    m.write(at, 0, bytes).unwrap();
    m.wait(m.fs.fsync(WHO, at.0, at.1, false)).unwrap();
    m.close(at).unwrap();
}

/// What waits goes to the bucket, but for the index of the root directory.
fn drain_but_root(world: &World, m: &Mount) {
    m.faulty.script_on(Some(Verb::Put), &root_key(world), 0, FOREVER, Fault::Before(Kind::Unavailable));
    assert!(m.wait(m.fs.drain(Some(Duration::from_millis(100)), &|_| {})).is_err());
}

/// Two machines, the second of which removes `d`, `p/q` and `p`, which are empty as far as it knows.
fn removed(mode: Mode) -> (World, Mount, Mount) {
    let (world, a, b) = two(mode, |m| {
        m.mkdir("d");
        m.mkdir("p");
        m.mkdir("p/q");
    });
    b.rmdir("d").unwrap();
    b.rmdir("p/q").unwrap();
    b.rmdir("p").unwrap();
    (world, a, b)
}

#[test]
fn a_removal_costs_one_index_write_more() {
    let world = World::new(Mode::ZeroKnowledge, Suite::Aes256Gcm);
    let mount = world.mount(Arc::new(SimDisk::new(1)), options("a"));
    mount.mkdir("kept");
    mount.drain();
    let count = || ["put", "delete"].map(|v| mount.meter.snapshot().verbs.get(v).map_or(0, |c| c.requests));
    let before = count();
    mount.mkdir("d");
    mount.drain();
    let made = count();
    // Its own index and its parent's, which is written once more where its times come a moment later.
    assert!((2..=3).contains(&(made[0] - before[0])) && made[1] == before[1], "{before:?} {made:?}");
    mount.rmdir("d").unwrap();
    mount.drain();
    let removed = count();
    // Its last index and its parent's.
    assert!((2..=3).contains(&(removed[0] - made[0])) && removed[1] - made[1] == 1, "{made:?} {removed:?}");
    mount.mkdir("e");
    mount.rmdir("e").unwrap();
    mount.drain();
    assert_eq!(count(), removed, "what never was in the bucket costs nothing");
    mount.unmount();
    assert_eq!(world.keys_in_bucket().len(), 2);
}

#[test]
fn what_is_made_inside_first_calls_the_removal_off() {
    for mode in MODES {
        let (world, a, b) = removed(mode);
        put_synced(&a, "d/f", &data(1, 1000));
        put_synced(&a, "p/q/f", &data(2, 2000));
        b.drain();
        assert!(told(&b).len() >= 2 && told(&b).iter().all(|k| *k == ConflictKind::Kept), "{:?}", told(&b));
        assert!(b.get("d/f").unwrap() == data(1, 1000));
        b.put("p/q/g", &data(3, 3000));
        let expected = [
            ("d", vec![]),
            ("d/f", data(1, 1000)),
            ("p", vec![]),
            ("p/q", vec![]),
            ("p/q/f", data(2, 2000)),
            ("p/q/g", data(3, 3000)),
        ];
        ends(&world, a, b, &expected);
    }
}

#[test]
fn what_is_made_inside_afterwards_gets_a_new_directory() {
    for (mode, half) in MODES.into_iter().flat_map(|m| [(m, false), (m, true)]) {
        let (world, a, b) = removed(mode);
        // Frozen and named, or gone altogether.
        if half {
            drain_but_root(&world, &b)
        } else {
            b.drain()
        }
        let files = [("d/f", data(1, 1000)), ("p/q/f", data(2, 2000))].map(|(path, bytes)| {
            let at = a.create(path);
            a.write(at, 0, &bytes).unwrap();
            at
        });
        for at in files {
            a.wait(a.fs.fsync(WHO, at.0, at.1, false)).unwrap();
            a.close(at).unwrap();
        }
        let expected = [("d", vec![]), ("d/f", data(1, 1000)), ("p", vec![]), ("p/q", vec![]), ("p/q/f", data(2, 2000))];
        let found = seen(&world);
        assert_eq!(found.len(), expected.len(), "fsync has told the truth: {:?}", found.keys());
        assert!(told(&a).contains(&ConflictKind::Rescued));
        b.faulty.clear();
        a.mkdir("p/q/r");
        a.put("p/q/r/g", &data(3, 3000));
        let more = [("p/q/r", vec![]), ("p/q/r/g", data(3, 3000))];
        ends(&world, a, b, &[&expected[..], &more[..]].concat());
        nothing_is_damaged(&world);
    }
}

#[test]
fn who_is_in_a_directory_that_is_removed_goes_on_in_the_new_one() {
    let (world, a, b) = two(Mode::ZeroKnowledge, |m| {
        m.mkdir("d");
    });
    let ino = a.ino("d").unwrap();
    let at = a.create("d/f");
    a.write(at, 0, &data(1, 1000)).unwrap();
    b.rmdir("d").unwrap();
    b.drain();
    a.wait(a.fs.fsync(WHO, at.0, at.1, false)).unwrap();
    assert_eq!(a.ino("d").unwrap(), ino, "the kernel knows it by its number");
    let (found, opened) = a.wait(a.fs.create(WHO, ino, b"g", 0o644, libc::O_RDWR)).unwrap();
    a.close((found.attr.ino, opened.fh)).unwrap();
    a.write(at, 1000, &data(1, 2000)[1000..]).unwrap();
    a.close(at).unwrap();
    ends(&world, a, b, &[("d", vec![]), ("d/f", data(1, 2000)), ("d/g", vec![])]);
}

#[test]
fn both_stay_when_the_name_was_given_to_a_new_directory() {
    for made_first in [true, false] {
        let (world, a, b) = two(Mode::ZeroKnowledge, |m| {
            m.mkdir("d");
        });
        b.rmdir("d").unwrap();
        b.mkdir("d");
        b.put("d/x", &data(1, 1000));
        a.put("d/f", &data(2, 2000));
        let (first, second) = if made_first { (&a, &b) } else { (&b, &a) };
        first.drain();
        second.drain();
        // The one whose name reaches the bucket first keeps it.
        let expected = match made_first {
            true => [("d", vec![]), ("d/f", data(2, 2000)), ("d!b", vec![]), ("d!b/x", data(1, 1000))],
            false => [("d", vec![]), ("d/x", data(1, 1000)), ("d!a", vec![]), ("d!a/f", data(2, 2000))],
        };
        ends(&world, a, b, &expected);
    }
}

#[test]
fn a_directory_that_replaces_one_goes_aside_when_something_was_made_inside() {
    let (world, a, b) = two(Mode::ZeroKnowledge, |m| {
        m.mkdir("d");
        m.mkdir("new");
    });
    b.rename("new", "d").unwrap();
    b.put("d/x", &data(1, 1000));
    put_synced(&a, "d/f", &data(2, 2000));
    b.drain();
    let expected = [("d", vec![]), ("d/f", data(2, 2000)), ("d!b", vec![]), ("d!b/x", data(1, 1000))];
    ends(&world, a, b, &expected);
    nothing_is_damaged(&world);
}

#[test]
fn a_remover_that_dies_half_way_loses_nothing() {
    for back in [true, false] {
        let (world, a, b) = two(Mode::ZeroKnowledge, |m| {
            for d in ["d", "e", "p", "p/q"] {
                m.mkdir(d);
            }
        });
        b.unmount();
        let disk = SimDisk::new(5);
        let b = world.mount(disk.process(), options("b"));
        for d in ["d", "e", "p/q", "p"] {
            b.rmdir(d).unwrap();
        }
        drain_but_root(&world, &b);
        disk.crash(Crash::Kill);
        b.kill();
        nothing_is_damaged(&world);
        put_synced(&a, "d/f", &data(1, 1000));
        if back {
            let b = world.mount(disk.process(), options("b"));
            ends(&world, a, b, &[("d", vec![]), ("d/f", data(1, 1000))]);
        } else {
            // Whoever looks into what was removed takes its name away.
            let c = world.fresh();
            assert!(c.names("e").is_empty() && c.names("p").is_empty());
            assert_eq!(c.names(""), BTreeSet::from(["d".to_owned()]));
            a.unmount();
            c.unmount();
            assert_eq!(seen(&world).len(), 2);
        }
        nothing_is_damaged(&world);
    }
}

#[test]
fn a_remover_that_dies_before_it_began_removes_all_the_same() {
    let (world, a, b) = two(Mode::ZeroKnowledge, |m| {
        m.mkdir("d");
        m.put("d/x", &data(1, 1000));
        m.mkdir("e");
        m.put("e/x", &data(1, 1000));
    });
    b.unmount();
    let disk = SimDisk::new(5);
    let b = world.mount(disk.process(), options("b"));
    for d in ["d", "e"] {
        b.unlink(&format!("{d}/x")).unwrap();
        b.rmdir(d).unwrap();
    }
    disk.crash(Crash::Kill);
    b.kill();
    put_synced(&a, "e/f", &data(2, 2000));
    let b = world.mount(disk.process(), options("b"));
    ends(&world, a, b, &[("e", vec![]), ("e/f", data(2, 2000))]);
    let indexes = world.keys_in_bucket().iter().filter(|k| k.starts_with(INDEX_PREFIX)).count();
    assert_eq!(indexes, 2, "the root's and the one that stays");
}

#[test]
fn a_creator_that_dies_puts_its_names_into_a_new_directory() {
    for mode in MODES {
        let (world, a, b) = two(mode, |m| {
            m.mkdir("p");
            m.mkdir("p/q");
        });
        a.unmount();
        let disk = SimDisk::new(5);
        let a = world.mount(disk.process(), options("a"));
        a.put("p/q/f", &data(1, 1000));
        a.mkdir("p/q/r");
        a.put("p/q/r/g", &data(2, 2000));
        b.rmdir("p/q").unwrap();
        b.rmdir("p").unwrap();
        b.drain();
        disk.crash(Crash::Kill);
        a.kill();
        let a = world.mount(disk.process(), options("a"));
        let expected = [("p", vec![]), ("p/q", vec![]), ("p/q/f", data(1, 1000)), ("p/q/r", vec![]), ("p/q/r/g", data(2, 2000))];
        ends(&world, a, b, &expected);
        nothing_is_damaged(&world);
    }
}

const DIRS: [&str; 5] = ["p", "q", "p/a", "p/b", "q/a"];

#[derive(Clone, Copy, Debug)]
enum Step {
    Mkdir(usize),
    Rmdir(usize),
    Put {
        dir: usize,
        name: u8,
        fsync: bool,
    },
    Unlink {
        dir: usize,
        name: u8,
    },
    /// What waits goes to the bucket, but for the index of the root directory.
    Half,
    Drain,
    Kill,
}

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let dir = || 0..DIRS.len();
    let step = prop_oneof![
        4 => dir().prop_map(Step::Mkdir),
        6 => dir().prop_map(Step::Rmdir),
        6 => (dir(), 0..2u8, any::<bool>()).prop_map(|(dir, name, fsync)| Step::Put { dir, name, fsync }),
        3 => (dir(), 0..2u8).prop_map(|(dir, name)| Step::Unlink { dir, name }),
        2 => Just(Step::Half),
        3 => Just(Step::Drain),
        1 => Just(Step::Kill),
    ];
    prop::collection::vec((0..2usize, step), 1..30)
}

struct Machine {
    host: &'static str,
    disk: SimDisk,
    options: Options,
    mount: Option<Mount>,
}

impl Machine {
    fn start(&mut self, world: &World) {
        let options = Options { host: self.host.to_owned(), ..self.options.clone() };
        self.mount = Some(world.mount_with(self.disk.process(), options, Arc::new(Faulty::new(1)), 1 << 30));
    }

    fn drain(&self) {
        let m = self.mount.as_ref().unwrap();
        m.faulty.clear();
        m.drain();
    }
}

/// What fsync acknowledged, and what somebody removed or replaced who saw it.
#[derive(Default)]
struct Books {
    acknowledged: BTreeSet<Vec<u8>>,
    given_up: BTreeSet<Vec<u8>>,
    /// By path: what it may have led to. What is looked at and what is changed may be different things.
    perhaps: std::collections::BTreeMap<String, BTreeSet<Vec<u8>>>,
}

fn run(world: &World, machine: &mut Machine, i: usize, step: Step, books: &mut Books) {
    if let Step::Kill = step {
        machine.disk.crash(Crash::Kill);
        machine.mount.take().unwrap().kill();
        return machine.start(world);
    }
    let m = machine.mount.as_ref().unwrap();
    match step {
        Step::Mkdir(dir) => {
            let (up, name) = DIRS[dir].rsplit_once('/').unwrap_or(("", DIRS[dir]));
            let _ = m.ino(up).and_then(|up| m.wait(m.fs.mkdir(WHO, up, name.as_bytes(), 0o755)));
        }
        Step::Rmdir(dir) => drop(m.rmdir(DIRS[dir])),
        Step::Put { dir, name, fsync } => {
            let (path, new) = (format!("{}/n{name}", DIRS[dir]), data(i as u8, 100 + i));
            // New files only: what replaces another file's contents is for other properties.
            let Ok(at) = m.try_create(&path) else { return };
            books.perhaps.entry(path).or_default().insert(new.clone());
            let written = m.write(at, 0, &new);
            if fsync && written.is_ok() && m.wait(m.fs.fsync(WHO, at.0, at.1, false)).is_ok() {
                books.acknowledged.insert(new);
            }
            let _ = m.close(at);
        }
        Step::Unlink { dir, name } => {
            let path = format!("{}/n{name}", DIRS[dir]);
            if m.unlink(&path).is_ok() {
                books.given_up.extend(books.perhaps.get(&path).into_iter().flatten().cloned());
            }
        }
        Step::Half => {
            m.faulty.script_on(Some(Verb::Put), &root_key(world), 0, FOREVER, Fault::Before(Kind::Unavailable));
            let _ = m.wait(m.fs.drain(Some(Duration::from_millis(40)), &|_| {}));
        }
        Step::Drain => machine.drain(),
        Step::Kill => {}
    }
}

fn case(sequence: &[(usize, Step)], (mode, suite): (Mode, Suite), curious: bool, delay: u64) -> Result<(), TestCaseError> {
    let world = World::new(mode, suite);
    let first = world.fresh();
    first.mkdir("p");
    first.mkdir("p/a");
    first.unmount();
    let mut options = Options { commit_delay: Duration::from_millis(delay), deadline: Duration::from_millis(500), ..quick() };
    if curious {
        options.dir_ttl = Duration::ZERO;
    }
    let mut machines = ["a", "b"].map(|host| {
        let mut m = Machine { host, disk: SimDisk::new(3), options: options.clone(), mount: None };
        m.start(&world);
        m
    });
    let mut books = Books::default();
    for (i, (who, step)) in sequence.iter().enumerate() {
        run(&world, &mut machines[*who], i, *step, &mut books);
    }
    for _ in 0..3 {
        machines.iter().for_each(Machine::drain);
    }
    for m in machines {
        let mount = m.mount.unwrap();
        prop_assert_eq!(&*mount.sink.corrupt.lock(), &Vec::<String>::new());
        mount.unmount();
    }
    let other = world.fresh();
    let tree = other.try_tree();
    prop_assert!(tree.is_ok(), "{}", tree.unwrap_err());
    let tree = tree.unwrap();
    prop_assert_eq!(&*other.sink.corrupt.lock(), &Vec::<String>::new());
    let kept: BTreeSet<Vec<u8>> = tree.into_values().map(|l| l.bytes).collect();
    for content in books.acknowledged.difference(&books.given_up) {
        prop_assert!(kept.contains(content), "what step {} wrote is gone", content.len() - 100);
    }
    other.unmount();
    nothing_is_damaged(&world);
    Ok(())
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn two_machines_that_make_and_remove_the_same_directories_lose_nothing(
        sequence in steps(),
        kind in kinds(),
        curious: bool,
        delay in prop::sample::select(vec![0, 3, 3_600_000]),
    ) {
        case(&sequence, kind, curious, delay)?;
    }
}
