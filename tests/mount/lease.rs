//! A store that ignores conditions takes one writer at a time: who writes holds the lease.

use super::rclone::Rclone;
use super::world::*;
use std::fs;

const LEASE: &str = ".smpfs/lease";

fn world(server: &Rclone) -> World {
    let mut world = World::dir();
    world.endpoint = Some(server.url());
    world.set("AWS_ENDPOINT_URL_S3", &server.url());
    Rclone::CREDENTIALS.iter().for_each(|(name, value)| world.set(name, value));
    world.store = "s3://bucket/v".to_owned();
    world
}

fn host() -> String {
    nix::unistd::gethostname().unwrap().into_string().unwrap()
}

#[test]
fn a_store_that_ignores_conditions_takes_one_writer() {
    let test = "a_store_that_ignores_conditions_takes_one_writer";
    need_mounts!("a_store_that_ignores_conditions_takes_one_writer");
    let Some(server) = Rclone::start() else { return skipped(test, "rclone is not installed (tests/setup)") };
    let a = world(&server);
    let lease = server.bucket().join("v").join(LEASE);
    a.init(&[]);
    let b = a.beside();
    let here = a.mount(&[]);
    assert!(lease.exists());
    let status = here.status();
    assert!(status["lease"]["state"] == "held" && status["read_only"] == false, "{status}");
    write_durably(&a.file("one"), b"one").unwrap();

    // Somebody else hears who writes, and may read.
    let said = b.try_mount(&[]);
    assert_eq!(said.code, 7, "{said:?}");
    for part in [host().as_str(), "since 20", "Unmount it there", "--read-only", "--take-over"] {
        assert!(said.err.contains(part), "{part}: {said:?}");
    }
    let there = b.mount(&["--read-only"]);
    assert_eq!(fs::read(b.file("one")).unwrap(), b"one");
    assert_eq!(there.status()["lease"]["state"], "");
    there.unmount();

    // Killed, it has its own back at once.
    here.kill();
    assert!(lease.exists());
    let here = a.mount(&[]);
    assert_eq!(fs::read(a.file("one")).unwrap(), b"one");

    // By hand another machine takes it, and this one stops before that one begins.
    let said = b.try_mount(&["-o", "take-over"]).ok();
    assert!(said.err.contains("taking the lease of the volume over") && said.err.contains(&host()), "{said:?}");
    let status = here.status();
    assert!(status["lease"]["state"] == "lost" && status["read_only"] == true && status["health"] == "degraded", "{status}");
    assert_eq!(errno(fs::write(a.file("two"), b"two")), libc::EROFS);
    assert_eq!(fs::read(a.file("one")).unwrap(), b"one");
    assert_eq!(here.audit("lease").len(), 1);
    write_durably(&b.file("three"), b"three").unwrap();

    // The lease is nothing to find.
    b.run(&["scrub", &b.store, "--quick"]).ok();
    // Nor may anything be mended beside a mount that writes.
    let said = b.run(&["scrub", &b.store, "--quick", "--repair"]);
    assert!(said.code == 7 && said.err.contains("one writer at a time"), "{said:?}");

    here.unmount();
    assert!(lease.exists(), "the other one's");
    b.run(&["unmount", b.mnt().to_str().unwrap(), "--timeout", "60s"]).ok();
    assert!(!lease.exists());
    a.run(&["scrub", &a.store, "--quick", "--repair"]).ok();
    assert!(!lease.exists());
}

#[test]
fn a_store_with_conditions_has_no_lease() {
    need_mounts!("a_store_with_conditions_has_no_lease");
    let a = World::dir();
    a.init(&[]);
    let here = a.mount(&["--take-over"]);
    write_durably(&a.file("one"), b"one").unwrap();
    assert_eq!(here.status()["lease"]["state"], "");
    assert!(!a.bucket().keys().iter().any(|key| key == LEASE));
    here.unmount();
    assert!(!a.bucket().keys().iter().any(|key| key == LEASE));
}
