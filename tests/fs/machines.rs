//! Three machines at once write and remove the same names, through stores that fail, and die now and then.
//!
//! The oracle knows what close-to-open consistency leaves open and what it does not: contents that `fsync` acknowledged are in the
//! volume, under their name or a conflict name, unless somebody replaced or removed them who can have seen them. Nobody sees
//! contents before they are written, so whoever opened the file, or removed its name, earlier than that has not seen them. Of
//! two writers at once one at most has seen the other: the contents of one of them stay, whatever the machines do.

use crate::world::{Mount, WHO, World, quick, same};
use proptest::prelude::*;
use smpfs::disk::SimDisk;
use smpfs::disk::sim::Crash;
use smpfs::error::Error;
use smpfs::fs::Options;
use smpfs::ops::Ops;
use smpfs::store::layers::{Fault, Faulty};
use smpfs::types::{Mode, Suite};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const MACHINES: usize = 3;

/// What a machine does next.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// Writes a file anew and syncs it.
    Put(u8),
    /// Removes a name.
    Unlink(u8),
    /// Waits until the bucket has everything.
    Settle,
    /// Dies and comes back.
    Die,
    /// Rests for some milliseconds.
    Rest(u8),
}

/// What the oracle must know of an act, in ticks of one clock for all machines.
#[derive(Clone, Debug)]
enum Event {
    /// Contents that were acknowledged; nobody can have seen them before `written`.
    Kept { name: u8, written: u64, bytes: Vec<u8> },
    /// What was visible under the name until then is replaced or removed on purpose.
    Taken { name: u8, until: u64 },
}

struct Machine<'w> {
    world: &'w World,
    disk: SimDisk,
    mount: Mount,
    host: String,
    seed: u64,
    clock: &'w AtomicU64,
    events: Vec<Event>,
}

fn faulty(seed: u64) -> Arc<Faulty> {
    let faulty = Arc::new(Faulty::new(seed));
    faulty.seeded(None, 40, Fault::Before(smpfs::error::Kind::Unavailable));
    faulty.seeded(None, 40, Fault::After(smpfs::error::Kind::Unavailable));
    faulty.seeded(None, 20, Fault::Latency(Duration::from_millis(10)));
    faulty
}

impl<'w> Machine<'w> {
    fn new(world: &'w World, n: usize, seed: u64, clock: &'w AtomicU64) -> Machine<'w> {
        let (disk, host) = (SimDisk::new(seed), format!("m{n}"));
        let mount = Machine::mount(world, &disk, &host, seed);
        Machine { world, disk, mount, host, seed, clock, events: Vec::new() }
    }

    fn mount(world: &World, disk: &SimDisk, host: &str, seed: u64) -> Mount {
        let options = Options { host: host.to_owned(), dir_ttl: Duration::from_millis(5), ..quick() };
        world.mount_with(disk.process(), options, faulty(seed), 1 << 30)
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn put(&mut self, name: u8) -> Result<(), Error> {
        let path = format!("n{name}");
        let at = match self.mount.open(&path, libc::O_RDWR | libc::O_TRUNC) {
            Ok((ino, opened)) => {
                let until = self.tick();
                self.events.push(Event::Taken { name, until });
                (ino, opened.fh)
            }
            Err(_) => {
                let fs = &self.mount.fs;
                let root = smpfs::ops::ROOT;
                let made = self.mount.wait(fs.create(WHO, root, path.as_bytes(), 0o644, libc::O_RDWR | libc::O_EXCL))?;
                (made.0.attr.ino, made.1.fh)
            }
        };
        let written = self.tick();
        let bytes = format!("{} wrote this at {written}", self.host).into_bytes();
        let done = self.mount.write(at, 0, &bytes);
        let synced = done.and_then(|_| self.mount.wait(self.mount.fs.fsync(WHO, at.0, at.1, false)));
        if synced.is_ok() {
            self.events.push(Event::Kept { name, written, bytes });
        }
        self.mount.close(at)
    }

    fn unlink(&mut self, name: u8) -> Result<(), Error> {
        self.mount.unlink(&format!("n{name}"))?;
        let until = self.tick();
        self.events.push(Event::Taken { name, until });
        Ok(())
    }

    fn die(&mut self) {
        self.disk.crash(Crash::Kill);
        self.seed += 1;
        // The old one lets go of the disk before the new one begins.
        let placeholder = Machine::mount(self.world, &SimDisk::new(0), &self.host, 0);
        std::mem::replace(&mut self.mount, placeholder).kill();
        let again = Machine::mount(self.world, &self.disk, &self.host, self.seed);
        std::mem::replace(&mut self.mount, again).kill();
    }

    fn act(&mut self, what: Act) {
        // A refusal is an answer like any other here.
        match what {
            Act::Put(name) => drop(self.put(name)),
            Act::Unlink(name) => drop(self.unlink(name)),
            Act::Settle => drop(self.mount.wait(self.mount.fs.drain(Some(Duration::from_millis(300)), &|_| {}))),
            Act::Die => self.die(),
            Act::Rest(ms) => std::thread::sleep(Duration::from_millis(u64::from(ms))),
        }
    }
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        8 => (0..3u8).prop_map(Act::Put),
        3 => (0..3u8).prop_map(Act::Unlink),
        1 => Just(Act::Settle),
        1 => Just(Act::Die),
        3 => (0..12u8).prop_map(Act::Rest),
    ];
    prop::collection::vec(act, 1..20)
}

/// What must be in the volume at the end.
fn owed(events: &[Event]) -> Vec<&Vec<u8>> {
    let taken = |name: u8, written: u64| {
        events.iter().any(|e| matches!(e, Event::Taken { name: n, until } if *n == name && *until > written))
    };
    let owed = events.iter().filter_map(|e| match e {
        Event::Kept { name, written, bytes } if !taken(*name, *written) => Some(bytes),
        _ => None,
    });
    owed.collect()
}

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|v| v.parse().ok()).unwrap_or(30);
    ProptestConfig { cases, max_shrink_iters: 20, max_shrink_time: 15_000, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_three_machines_acknowledged_is_there(
        plans in prop::collection::vec(acts(), MACHINES),
        mode in prop::sample::select(vec![Mode::Standard, Mode::ZeroKnowledge]),
        seed in any::<u32>(),
    ) {
        let (world, clock) = (World::new(mode, Suite::Aes256Gcm), AtomicU64::new(0));
        let start = |n: usize| Machine::new(&world, n, u64::from(seed) + 1000 * n as u64, &clock);
        let mut machines: Vec<Machine<'_>> = (0..MACHINES).map(start).collect();
        std::thread::scope(|scope| {
            for (machine, plan) in machines.iter_mut().zip(&plans) {
                scope.spawn(move || plan.iter().for_each(|act| machine.act(*act)));
            }
        });
        for _ in 0..2 {
            for m in &machines {
                m.mount.faulty.clear();
                m.mount.drain();
            }
        }
        let other = world.fresh();
        let tree = other.tree();
        prop_assert_eq!(&*other.sink.corrupt.lock(), &Vec::<String>::new());
        let there: BTreeSet<&Vec<u8>> = tree.values().map(|leaf| &leaf.bytes).collect();
        let events: Vec<Event> = machines.iter().flat_map(|m| m.events.clone()).collect();
        for bytes in owed(&events) {
            prop_assert!(there.contains(bytes), "\"{}\" is gone: {events:#?}", String::from_utf8_lossy(bytes));
        }
        for m in &machines {
            // They see what the others did last once their listings are old.
            for _ in 0..500 {
                if m.mount.try_tree().is_ok_and(|t| t == tree) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            same(&m.host, &tree, &m.mount.tree());
        }
        machines.into_iter().for_each(|m| m.mount.unmount());
    }
}

/// The oracle itself: it asks for what must be there, and for nothing else.
#[test]
fn the_oracle_tells_what_is_owed() {
    let kept = |name, written, text: &str| Event::Kept { name, written, bytes: text.as_bytes().to_vec() };
    let events =
        [kept(0, 5, "first"), Event::Taken { name: 0, until: 7 }, kept(0, 9, "second"), Event::Taken { name: 1, until: 20 }];
    assert_eq!(owed(&events), [b"second"]);
    // Two at once, neither of whom has seen the other.
    assert_eq!(owed(&[Event::Taken { name: 0, until: 1 }, kept(0, 2, "one"), kept(0, 3, "two")]).len(), 2);
}
