//! Uploads in parts, and stores that have none.

use crate::clauses::fsync;
use crate::directed::{nothing_left_over, world};
use crate::world::{SEG, World, data};
use smpfs::error::Kind;
use smpfs::store::Capability;
use smpfs::store::layers::{Fault, Verb};
use smpfs::store::memory::{CAPS, MemoryStore};
use smpfs::types::{Mode, Suite};
use std::sync::Arc;

#[test]
fn an_upload_that_somebody_aborted_is_begun_again() {
    let world = world(Mode::ZeroKnowledge);
    let mount = world.fresh();
    let mut expected = data(1, 70 * SEG as usize);
    mount.put("f", &expected);
    mount.drain();
    let open = mount.open("f", libc::O_RDWR).map(|(ino, o)| (ino, o.fh)).unwrap();
    for (n, verb) in [Verb::UploadPart, Verb::UploadPartCopy, Verb::UploadComplete].into_iter().enumerate() {
        let (begun, refused) = (mount.faulty.seen(Verb::UploadStart), mount.faulty.seen(verb));
        mount.faulty.script(Some(verb), 1, Fault::Before(Kind::NotFound));
        let at = n * 3 * SEG as usize;
        let change = data(n as u8 + 2, 1000);
        expected[at..at + 1000].copy_from_slice(&change);
        mount.write(open, at as u64, &change).unwrap();
        // Not ENOENT: the file is there, and so is its data.
        fsync(&mount, open).unwrap();
        assert!(mount.faulty.seen(verb) > refused && mount.faulty.seen(Verb::UploadStart) >= begun + 2, "{verb:?}");
        assert!(world.fresh().get("f").unwrap() == expected, "{verb:?}");
    }
    mount.close(open).unwrap();
    nothing_left_over(&world, mount);
}

#[test]
fn a_file_that_goes_in_one_piece_is_no_larger_than_the_memory_for_uploads() {
    let bucket = MemoryStore::with_caps(Capability { multipart: false, complete_if: false, part_copy: false, ..CAPS });
    let world = World::at(Arc::new(bucket), Mode::ZeroKnowledge, Suite::Aes256Gcm);
    let mount = world.fresh();
    let fits = data(1, 17 << 20);
    mount.put("fits", &fits);
    mount.drain();
    assert!(world.fresh().get("fits").unwrap() == fits);
    // These mounts have 64 MiB for uploads.
    let open = mount.create("large");
    for (i, piece) in data(2, 64 << 20).chunks(1 << 20).enumerate() {
        mount.write(open, (i as u64) << 20, piece).unwrap();
    }
    let e = fsync(&mount, open).unwrap_err();
    assert_eq!(e.kind(), Kind::TooLarge, "{e}");
    assert!(e.to_string().contains("raise memory-budget"), "{e}");
    mount.kill();
}
