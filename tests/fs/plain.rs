//! A store without conditional writes: one machine writes, and looks before it does.

use crate::world::{Mount, World, data, quick};
use smpfs::disk::SimDisk;
use smpfs::disk::sim::Crash;
use smpfs::error::Kind;
use smpfs::store::layers::{Fault, Verb};
use smpfs::store::memory::MemoryStore;
use smpfs::store::{Capability, Store};
use smpfs::types::{Mode, Suite};
use std::sync::Arc;

fn world(mode: Mode) -> World {
    let caps = Capability { put_if_absent: false, put_if_match: false, complete_if: false, ..MemoryStore::new().caps() };
    World::at(Arc::new(MemoryStore::with_caps(caps)), mode, Suite::Aes256Gcm)
}

/// Ends, and another machine sees these files and no others.
fn ends(world: &World, mount: Mount, expected: &[(&str, Vec<u8>)]) {
    mount.unmount();
    let other = world.fresh();
    assert_eq!(other.names("").len(), expected.len(), "{:?}", other.names(""));
    for (name, bytes) in expected {
        assert!(other.get(name).unwrap() == *bytes, "{name}");
    }
}

#[test]
fn a_readable_key_that_is_taken_is_no_obstacle() {
    let world = world(Mode::Standard);
    let mount = world.fresh();
    mount.put("a", &data(1, 1000));
    mount.drain();
    mount.rename("a", "b").unwrap();
    mount.put("a", &data(2, 2000));
    mount.drain();
    ends(&world, mount, &[("a", data(2, 2000)), ("b", data(1, 1000))]);
}

#[test]
fn an_upload_that_landed_unheard_is_no_conflict() {
    for mode in [Mode::Standard, Mode::ZeroKnowledge] {
        for before in [false, true] {
            let world = world(mode);
            let disk = SimDisk::new(3);
            let mount = world.mount(disk.process(), quick());
            if before {
                mount.put("f", &data(1, 1000));
                mount.drain();
            }
            // Carried out each time, and never heard of.
            mount.faulty.script(Some(Verb::Put), 3, Fault::After(Kind::Unavailable));
            mount.put("f", &data(2, 2000));
            mount.drain();
            assert!(mount.get("f").unwrap() == data(2, 2000));
            mount.put("f", &data(3, 3000));
            mount.faulty.script(Some(Verb::Put), 3, Fault::After(Kind::Unavailable));
            disk.crash(Crash::Kill);
            mount.kill();
            let mount = world.mount(disk.process(), quick());
            mount.drain();
            ends(&world, mount, &[("f", data(3, 3000))]);
        }
    }
}

#[test]
fn a_large_file_is_not_completed_over_another_machines_version() {
    // Conditions on single puts, and none on completions: as some servers have it.
    let caps = Capability { complete_if: false, ..MemoryStore::new().caps() };
    let world = World::at(Arc::new(MemoryStore::with_caps(caps)), Mode::ZeroKnowledge, Suite::Aes256Gcm);
    let size = 24 << 20;
    let a = world.fresh();
    a.put("f", &data(1, size));
    a.drain();
    let b = world.fresh();
    assert!(b.get("f").unwrap() == data(1, size));
    a.put("f", &data(2, size));
    b.put("f", &data(3, size));
    a.drain();
    b.drain();
    a.unmount();
    b.unmount();
    let other = world.fresh();
    let tree = other.tree();
    let kept: Vec<&Vec<u8>> = tree.values().map(|leaf| &leaf.bytes).collect();
    assert!(kept.contains(&&data(2, size)) && kept.contains(&&data(3, size)), "{:?}", tree.keys());
}

#[test]
fn what_the_store_can_never_hold_is_refused_at_once() {
    // Three parts of a segment each, and the last with the manifest.
    let caps = Capability { max_parts: 4, ..MemoryStore::new().caps() };
    let world = World::at(Arc::new(MemoryStore::with_caps(caps)), Mode::ZeroKnowledge, Suite::Aes256Gcm);
    let mount = world.fresh();
    let seg = crate::world::SEG;
    let at = mount.create("f");
    for i in 0..3 {
        mount.write(at, i * seg, &data(i as u8, seg as usize)).unwrap();
    }
    assert_eq!(mount.write(at, 3 * seg, b"more").map_err(|e| e.kind()), Err(Kind::TooLarge));
    mount.write(at, 0, b"within").unwrap();
    mount.close(at).unwrap();
    mount.unmount();
}
