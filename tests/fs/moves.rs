//! Several machines that move, replace and remove the same files in several directories at once.

use crate::props::{cases, kinds};
use crate::scrub::{looker, nothing_is_damaged, runtime};
use crate::world::{Mount, WHO, World, data, quick};
use proptest::prelude::*;
use smpfs::disk::SimDisk;
use smpfs::disk::sim::Crash;
use smpfs::error::Kind;
use smpfs::fs::Options;
use smpfs::keyring::Known;
use smpfs::ops::Ops;
use smpfs::scrub::What;
use smpfs::store::Cond;
use smpfs::store::layers::{Fault, Faulty, Verb};
use smpfs::types::{Mode, Suite};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const DIRS: [&str; 3] = ["x", "y", "z"];
/// How long a drain may take before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(6);
const FOREVER: u32 = 1_000_000;

/// One step of a machine.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write {
        at: Place,
        fsync: bool,
    },
    Unlink {
        at: Place,
    },
    Rename {
        from: Place,
        to: Place,
    },
    /// What waits goes to the bucket, but for the index of this directory.
    Half {
        but: usize,
    },
    Drain,
    Look {
        dir: usize,
    },
    Kill,
}

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let at = || (0..DIRS.len(), 0..3u8);
    let step = prop_oneof![
        4 => (at(), any::<bool>()).prop_map(|(at, fsync)| Step::Write { at, fsync }),
        2 => at().prop_map(|at| Step::Unlink { at }),
        6 => (at(), at()).prop_map(|(from, to)| Step::Rename { from, to }),
        4 => (0..DIRS.len()).prop_map(|but| Step::Half { but }),
        2 => Just(Step::Drain),
        2 => (0..DIRS.len()).prop_map(|dir| Step::Look { dir }),
        1 => Just(Step::Kill),
    ];
    prop::collection::vec((0..2usize, step), 1..40)
}

fn path(at: Place) -> String {
    format!("{}/n{}", DIRS[at.0], at.1)
}

/// A machine, its disk, and what happened to contents that it knew.
struct Machine {
    host: &'static str,
    disk: SimDisk,
    options: Options,
    mount: Option<Mount>,
    noise: Option<u64>,
}

impl Machine {
    fn start(&mut self, world: &World) {
        let faulty = Arc::new(Faulty::new(self.noise.unwrap_or(1)));
        if let Some(seed) = &mut self.noise {
            *seed += 1;
            faulty.seeded(None, 30, Fault::Before(Kind::Unavailable));
            faulty.seeded(Some(Verb::Put), 60, Fault::After(Kind::Unavailable));
        }
        let options = Options { host: self.host.to_owned(), ..self.options.clone() };
        self.mount = Some(world.mount_with(self.disk.process(), options, faulty, 1 << 30));
    }

    fn kill(&mut self) {
        self.disk.crash(Crash::Kill);
        self.mount.take().unwrap().kill();
    }

    fn mount(&self) -> &Mount {
        self.mount.as_ref().unwrap()
    }

    /// Everything that waits goes to the bucket.
    fn drain(&self) {
        let m = self.mount();
        m.faulty.clear();
        let done = m.wait(m.fs.drain(Some(PATIENCE), &|_| {}));
        if let Err(e) = done {
            panic!(
                "{}: the drain did not end: {e}; left: {:?}; troubles: {:?}",
                self.host,
                m.fs.progress(),
                m.sink.trouble.lock().last()
            );
        }
    }
}

/// A volume with the directories, and for each the key of its index.
fn with_directories(world: &World) -> Vec<String> {
    let mount = world.fresh();
    let keys = DIRS.map(|dir| {
        let before = world.keys_in_bucket();
        mount.mkdir(dir);
        mount.drain();
        world.keys_in_bucket().into_iter().find(|k| !before.contains(k)).unwrap()
    });
    mount.unmount();
    keys.into()
}

/// What was written, acknowledged by fsync, and removed or replaced by a machine that saw it.
#[derive(Default)]
struct Books {
    written: BTreeSet<Vec<u8>>,
    acknowledged: BTreeSet<Vec<u8>>,
    given_up: BTreeSet<Vec<u8>>,
    /// Names may change between a look and what follows it: what a path may have led to counts as seen under it then.
    restless: bool,
    perhaps: BTreeMap<Place, BTreeSet<Vec<u8>>>,
}

type Place = (usize, u8);

impl Books {
    /// Somebody removed or replaced what is at a place, and saw `there`.
    fn give_up(&mut self, at: Place, there: Option<Vec<u8>>) {
        self.given_up.extend(there);
        if self.restless {
            self.given_up.extend(self.perhaps.get(&at).into_iter().flatten().cloned());
        }
    }

    fn moved(&mut self, from: Place, to: Place) {
        let what = self.perhaps.get(&from).cloned().unwrap_or_default();
        self.perhaps.entry(to).or_default().extend(what);
    }
}

fn run(world: &World, m: &mut Machine, i: usize, step: Step, keys: &[String], books: &mut Books) {
    if let Step::Kill = step {
        m.kill();
        return m.start(world);
    }
    let mount = m.mount();
    // What is seen under a name that is about to be taken away; where nobody can look, it is let be.
    let there = match step {
        Step::Write { at, .. } | Step::Unlink { at } | Step::Rename { to: at, .. } => match mount.get(&path(at)) {
            Err(e) if e.kind() != Kind::NotFound => return,
            found => found.ok(),
        },
        _ => None,
    };
    match step {
        Step::Write { at, fsync } => {
            let new = data(i as u8, 100 + i);
            books.give_up(at, there);
            books.written.insert(new.clone());
            books.perhaps.entry(at).or_default().insert(new.clone());
            let opened = mount.open(&path(at), libc::O_RDWR | libc::O_TRUNC).map(|(ino, o)| (ino, o.fh));
            let Ok(at) = opened.or_else(|_| mount.try_create(&path(at))) else { return };
            let written = mount.write(at, 0, &new);
            if fsync && written.is_ok() && mount.wait(mount.fs.fsync(WHO, at.0, at.1, false)).is_ok() {
                books.acknowledged.insert(new);
            }
            let _ = mount.close(at);
        }
        Step::Unlink { at } => {
            if mount.unlink(&path(at)).is_ok() {
                books.give_up(at, there);
            }
        }
        Step::Rename { from, to } => {
            if from != to && mount.rename(&path(from), &path(to)).is_ok() {
                books.give_up(to, there);
                books.moved(from, to);
            }
        }
        Step::Half { but } => {
            mount.faulty.script_on(Some(Verb::Put), &keys[but], 0, FOREVER, Fault::Before(Kind::Unavailable));
            let _ = mount.wait(mount.fs.drain(Some(Duration::from_millis(40)), &|_| {}));
        }
        Step::Drain => {
            m.drain();
        }
        Step::Look { dir } => drop(mount.try_names(DIRS[dir])),
        Step::Kill => {}
    }
}

/// Everything that is in the volume opens and is whole; entries and objects belong together.
fn whole(world: &World, books: &Books) -> Result<(), TestCaseError> {
    let other = world.fresh();
    let mut kept = BTreeSet::new();
    for dir in DIRS {
        for name in other.names(dir) {
            let found = other.get(&format!("{dir}/{name}"));
            prop_assert!(found.is_ok(), "{dir}/{name}: {}", found.unwrap_err());
            let found = found.unwrap();
            prop_assert!(books.written.contains(&found) || found.is_empty(), "{dir}/{name} holds what nobody wrote");
            kept.insert(found);
        }
    }
    prop_assert_eq!(&*other.sink.corrupt.lock(), &Vec::<String>::new());
    other.unmount();
    for content in books.acknowledged.difference(&books.given_up) {
        prop_assert!(kept.contains(content), "what step {} wrote is gone", content.len() - 100);
    }
    nothing_is_damaged(world);
    Ok(())
}

/// How a machine behaves in a case.
#[derive(Clone, Copy, Debug)]
struct Manner {
    curious: bool,
    noise: Option<u64>,
    delay: u64,
}

fn manners() -> impl Strategy<Value = Manner> {
    let delay = prop::sample::select(vec![0, 3, 3_600_000]);
    (any::<bool>(), prop::option::of(0..1_000_000u64), delay).prop_map(|(curious, noise, delay)| Manner { curious, noise, delay })
}

fn case(sequence: &[(usize, Step)], (mode, suite): (Mode, Suite), manner: Manner) -> Result<(), TestCaseError> {
    let world = World::new(mode, suite);
    let keys = with_directories(&world);
    let delay = Duration::from_millis(manner.delay);
    let mut options = Options { commit_delay: delay, deadline: Duration::from_millis(300), ..quick() };
    if manner.curious {
        options.dir_ttl = Duration::ZERO;
    }
    let mut machines = ["a", "b"].map(|host| {
        let options = options.clone();
        let mut m = Machine { host, disk: SimDisk::new(2), options, mount: None, noise: manner.noise };
        m.start(&world);
        m
    });
    let mut books = Books { restless: manner.curious || manner.noise.is_some() || manner.delay < 1000, ..Books::default() };
    for (i, (who, step)) in sequence.iter().enumerate() {
        run(&world, &mut machines[*who], i, *step, &keys, &mut books);
    }
    for _ in 0..3 {
        for m in &machines {
            m.mount().faulty.clear();
            m.drain();
        }
    }
    for m in machines {
        m.mount.unwrap().unmount();
    }
    whole(&world, &books)
}

proptest! {
    #![proptest_config(cases(20))]

    #[test]
    fn two_machines_that_move_the_same_files_lose_nothing(sequence in steps(), kind in kinds(), manner in manners()) {
        case(&sequence, kind, manner)?;
    }
}

/// Two machines, a file `x/f` that both know, and the keys of the directories' indexes. Names go to the bucket when a test says so.
fn two(world: &World) -> (Mount, Mount, Vec<String>) {
    let keys = with_directories(world);
    let [a, b] = ["a", "b"].map(|host| world.mount(Arc::new(SimDisk::new(1)), patient(host)));
    a.put("x/f", &data(1, 5000));
    a.drain();
    assert!(b.get("x/f").unwrap() == data(1, 5000));
    (a, b, keys)
}

fn patient(host: &str) -> Options {
    let (commit_delay, deadline) = (Duration::from_secs(3600), Duration::from_millis(500));
    Options { host: host.to_owned(), commit_delay, deadline, ..quick() }
}

/// The new name comes into the bucket, and the old one does not go.
fn move_half(mount: &Mount, old_index: &str) {
    mount.faulty.script_on(Some(Verb::Put), old_index, 0, FOREVER, Fault::Before(Kind::Unavailable));
    mount.rename("x/f", "y/g").unwrap();
    assert!(mount.wait(mount.fs.drain(Some(Duration::from_millis(100)), &|_| {})).is_err());
}

/// All names of the directories with their contents, as a machine sees them that knows nothing.
fn files(world: &World) -> Vec<(String, Vec<u8>)> {
    let other = world.fresh();
    let out = DIRS.iter().flat_map(|d| other.names(d).into_iter().map(move |n| format!("{d}/{n}")));
    let out = out.map(|path| (path.clone(), other.get(&path).unwrap())).collect();
    assert_eq!(*other.sink.corrupt.lock(), Vec::<String>::new());
    other.unmount();
    out
}

const KINDS: [Mode; 2] = [Mode::Standard, Mode::ZeroKnowledge];

#[test]
fn what_is_removed_while_it_moves_is_gone_under_both_names() {
    for (mode, killed) in KINDS.into_iter().flat_map(|m| [(m, false), (m, true)]) {
        let world = World::new(mode, Suite::Aes256Gcm);
        let (a, b, keys) = two(&world);
        a.unmount();
        let disk = SimDisk::new(3);
        let mut a = world.mount(disk.process(), patient("a"));
        move_half(&a, &keys[0]);
        assert_eq!(files(&world).len(), 2, "both names are in the bucket");
        b.unlink("x/f").unwrap();
        b.drain();
        if killed {
            disk.crash(Crash::Kill);
            a.kill();
            a = world.mount(disk.process(), patient("a"));
        }
        a.faulty.clear();
        a.drain();
        assert_eq!(files(&world), []);
        assert!(b.names("y").is_empty());
        b.unmount();
        a.unmount();
    }
}

#[test]
fn what_was_seen_under_its_new_name_survives_the_removal_of_the_old_one() {
    for mode in KINDS {
        let world = World::new(mode, Suite::Aes256Gcm);
        let (a, b, keys) = two(&world);
        move_half(&a, &keys[0]);
        // Looked up, as a listing does.
        assert!(b.names("y").contains("g"));
        b.ino("y/g").unwrap();
        b.unlink("x/f").unwrap();
        b.drain();
        assert_eq!(files(&world), [("y/g".to_owned(), data(1, 5000))]);
        a.faulty.clear();
        a.drain();
        assert_eq!(files(&world), [("y/g".to_owned(), data(1, 5000))]);
        b.unmount();
        a.unmount();
    }
}

#[test]
fn a_name_that_leads_to_what_this_machine_deleted_is_taken_away() {
    let world = World::new(Mode::ZeroKnowledge, Suite::Aes256Gcm);
    let (a, b, keys) = two(&world);
    move_half(&a, &keys[0]);
    b.unlink("x/f").unwrap();
    b.drain();
    // The mover is away; the other one meets the name, and even moves on what is in its way.
    a.kill();
    assert!(b.names("y").is_empty());
    b.put("y/g", &data(2, 6000));
    b.drain();
    assert_eq!(files(&world), [("y/g".to_owned(), data(2, 6000))]);
    b.unmount();
}

#[test]
fn fsync_of_what_was_moved_waits_until_its_old_name_is_gone() {
    let world = World::new(Mode::ZeroKnowledge, Suite::Aes256Gcm);
    let (a, b, keys) = two(&world);
    move_half(&a, &keys[0]);
    let (ino, opened) = a.open("y/g", libc::O_RDWR).unwrap();
    let at = (ino, opened.fh);
    let fsync = || a.wait(a.fs.fsync(WHO, at.0, at.1, false));
    assert_eq!(fsync().unwrap_err().errno(), libc::EIO, "another machine may still delete it under the old name");
    a.write(at, 0, &data(3, 5000)).unwrap();
    assert_eq!(fsync().unwrap_err().errno(), libc::EIO);
    // It does: what was written is in the spool, and becomes a file of its own.
    b.unlink("x/f").unwrap();
    b.drain();
    a.faulty.clear();
    assert_eq!(fsync().unwrap_err().kind(), Kind::Stale, "told once");
    let _ = a.close(at);
    a.drain();
    assert_eq!(files(&world), [("y/g".to_owned(), data(3, 5000))]);
    b.unmount();
    a.unmount();
}

#[test]
fn an_entry_that_is_behind_its_file_catches_up_when_it_is_read() {
    let world = World::new(Mode::ZeroKnowledge, Suite::Aes256Gcm);
    let (a, b, keys) = two(&world);
    // Written here, and moved there before the index tells of it.
    a.faulty.script_on(Some(Verb::Put), &keys[0], 0, FOREVER, Fault::Before(Kind::Unavailable));
    a.put("x/f", &data(2, 6000));
    assert!(a.wait(a.fs.drain(Some(Duration::from_millis(100)), &|_| {})).is_err());
    b.rename("x/f", "y/g").unwrap();
    b.drain();
    a.faulty.clear();
    a.drain();
    b.unmount();
    a.unmount();
    let lagging = || {
        let rt = runtime();
        let l = looker(&world, &rt, Arc::new(Known::in_memory()));
        rt.block_on(l.scrub.check()).unwrap();
        l.scrub.report().count(What::Lagging)
    };
    assert_eq!(lagging(), 1);
    assert!(files(&world).iter().all(|(_, bytes)| *bytes == data(2, 6000)));
    assert_eq!(lagging(), 0);
}

#[test]
fn what_was_seen_and_removed_before_its_writer_heard_of_it_leads_nowhere() {
    for (mode, killed) in KINDS.into_iter().flat_map(|m| [(m, false), (m, true)]) {
        let world = World::new(mode, Suite::Aes256Gcm);
        let (a, b, keys) = two(&world);
        a.unmount();
        let disk = SimDisk::new(3);
        let mut a = world.mount(disk.process(), patient("a"));
        a.put("x/n", &data(2, 3000));
        // The name comes into the bucket; nobody answers, and nobody can look.
        a.faulty.script_on(Some(Verb::Put), &keys[0], 0, FOREVER, Fault::After(Kind::Unavailable));
        assert!(a.names("x").contains("n"));
        a.faulty.script_on(Some(Verb::Get), &keys[0], 0, FOREVER, Fault::Before(Kind::Unavailable));
        assert!(a.wait(a.fs.drain(Some(Duration::from_millis(100)), &|_| {})).is_err());
        let other = world.fresh();
        other.unlink("x/n").unwrap();
        other.unmount();
        if killed {
            disk.crash(Crash::Kill);
            a.kill();
            a = world.mount(disk.process(), patient("a"));
        }
        a.faulty.clear();
        a.drain();
        // Its writer cannot tell whether anybody saw it: it is there again, whole.
        let expected = [("x/f".to_owned(), data(1, 5000)), ("x/n".to_owned(), data(2, 3000))];
        assert!(files(&world) == expected, "{:?}, killed: {killed}, {mode:?}", a.names("x"));
        b.unmount();
        a.unmount();
    }
}

#[test]
fn a_file_that_is_removed_while_it_is_opened_is_not_written_to() {
    for mode in KINDS {
        let world = World::new(mode, Suite::Aes256Gcm);
        let (a, b, _) = two(&world);
        b.unmount();
        let b = world.mount(Arc::new(SimDisk::new(1)), Options { dir_ttl: Duration::ZERO, ..quick() });
        let ino = b.ino("x/f").unwrap();
        a.unlink("x/f").unwrap();
        a.drain();
        // The kernel looks the name up again, and finds that it is free.
        let e = b.wait(b.fs.open(WHO, ino, libc::O_RDWR | libc::O_TRUNC)).unwrap_err();
        assert_eq!(e.errno(), libc::ESTALE);
        b.put("x/f", &data(2, 100));
        b.unmount();
        a.unmount();
        assert!(files(&world) == [("x/f".to_owned(), data(2, 100))]);
    }
}

#[test]
fn what_is_written_anew_needs_nothing_of_an_object_that_is_gone() {
    for mode in KINDS {
        let world = World::new(mode, Suite::Aes256Gcm);
        let before = world.keys_in_bucket();
        let a = world.mount(Arc::new(SimDisk::new(1)), quick());
        a.put("f", &data(1, 5000));
        a.drain();
        let at = a.open("f", libc::O_RDWR).map(|(ino, o)| (ino, o.fh)).unwrap();
        assert!(a.read_open(at, 0, 9999).unwrap() == data(1, 5000));
        let object = world.keys_in_bucket().into_iter().find(|k| !before.contains(k)).unwrap();
        a.wait(world.bucket.delete(&object)).unwrap();
        a.put("f", &data(2, 100));
        a.drain();
        let _ = a.close(at);
        let other = world.fresh();
        assert!(other.get("f").unwrap() == data(2, 100));
        other.unmount();
        a.unmount();
    }
}

#[test]
fn a_copy_whose_readable_key_is_taken_and_free_again_is_kept() {
    let world = World::new(Mode::Standard, Suite::Aes256Gcm);
    let (a, hold) = world.held(quick());
    a.put("q", &data(1, 5000));
    a.drain();
    let at = a.open("q", libc::O_RDWR | libc::O_TRUNC).map(|(ino, o)| (ino, o.fh)).unwrap();
    a.write(at, 0, &data(2, 100)).unwrap();
    let b = world.fresh();
    b.unlink("q").unwrap();
    b.unmount();
    // Something lies in the way just when the copy is written.
    a.wait(world.bucket.put("q", vec![b"of somebody else".to_vec().into()], Cond::Any)).unwrap();
    hold.answer(Verb::Put, "q", 1);
    let (fs, handle) = (a.fs.clone(), at);
    a.spawn(async move { drop(fs.fsync(WHO, handle.0, handle.1, false).await) });
    hold.wait(1);
    a.wait(world.bucket.delete("q")).unwrap();
    hold.release();
    let _ = a.close(at);
    a.unmount();
    let other = world.fresh();
    assert!(other.get("q").unwrap() == data(2, 100));
    other.unmount();
}

#[test]
fn what_was_removed_here_while_its_upload_was_beaten_does_not_come_back() {
    for mode in KINDS {
        let world = World::new(mode, Suite::Aes256Gcm);
        let (a, hold) = world.held(quick());
        a.put("q", &data(1, 5000));
        a.drain();
        let at = a.open("q", libc::O_RDWR).map(|(ino, o)| (ino, o.fh)).unwrap();
        assert!(a.read_open(at, 0, 9999).unwrap() == data(1, 5000));
        let object = world.keys_in_bucket().into_iter().find(|k| !k.starts_with(".smpfs/d/")).unwrap();
        let b = world.fresh();
        b.put("q", &data(2, 6000));
        b.unmount();
        a.write(at, 0, &data(3, 100)).unwrap();
        hold.answer(Verb::Put, &object, 0);
        let fs = a.fs.clone();
        a.spawn(async move { drop(fs.fsync(WHO, at.0, at.1, false).await) });
        hold.wait(1);
        a.unlink("q").unwrap();
        let _ = a.close(at);
        hold.release();
        // Nothing tells when the upload has met what was there instead.
        std::thread::sleep(Duration::from_millis(200));
        a.drain();
        assert_eq!(a.names(""), BTreeSet::from(["q".to_owned()]), "the removal did not know of what is there now");
        assert!(a.get("q").unwrap() == data(2, 6000));
        a.unmount();
    }
}
