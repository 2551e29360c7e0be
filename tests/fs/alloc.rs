//! Holes: fallocate(2), SEEK_DATA and SEEK_HOLE, copies between open files, and what they make the bucket hold.
// A file with one stretch of data has a list of one range.
#![allow(clippy::single_range_in_vec_init)]

use crate::world::{Mount, SEG, WHO, World, data, quick};
use smpfs::disk::SimDisk;
use smpfs::disk::sim::Crash;
use smpfs::error::{Error, Kind};
use smpfs::ops::{CopyEnd, Ops};
use smpfs::types::{Mode, Suite};
use std::ops::Range;

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;

fn world() -> World {
    World::new(Mode::ZeroKnowledge, Suite::Aes256Gcm)
}

fn opened(mount: &Mount, path: &str, flags: i32) -> (u64, u64) {
    let (ino, opened) = mount.open(path, flags).unwrap();
    (ino, opened.fh)
}

fn allocate(mount: &Mount, at: (u64, u64), range: Range<u64>, mode: i32) -> Result<(), Error> {
    mount.wait(mount.fs.fallocate(WHO, at.0, at.1, range.start, range.end - range.start, mode))
}

fn seek(mount: &Mount, at: (u64, u64), offset: u64, whence: i32) -> Result<i64, Error> {
    mount.wait(mount.fs.lseek(WHO, at.0, at.1, offset as i64, whence))
}

fn copy(mount: &Mount, from: (u64, u64, u64), to: (u64, u64, u64), len: u64) -> Result<u32, Error> {
    let end = |(ino, fh, offset)| CopyEnd { ino, fh, offset };
    mount.wait(mount.fs.copy_file_range(WHO, end(from), end(to), len))
}

/// Data and holes of a file, as a program finds them.
fn map(mount: &Mount, at: (u64, u64)) -> Vec<Range<u64>> {
    let (mut out, mut from) = (Vec::new(), 0);
    loop {
        match seek(mount, at, from, libc::SEEK_DATA) {
            Ok(start) => {
                let end = seek(mount, at, start as u64, libc::SEEK_HOLE).unwrap() as u64;
                out.push(start as u64..end);
                from = end;
            }
            Err(e) => {
                assert_eq!(e.kind(), Kind::NoData);
                return out;
            }
        }
    }
}

#[test]
fn a_punched_hole_costs_no_bytes_and_is_a_hole_in_the_bucket() {
    let world = world();
    let mount = world.fresh();
    // Still above the limit of a single request when the hole is in it: the rest is copied inside the store.
    let len = 150 * SEG as usize;
    mount.put("f", &data(1, len));
    mount.drain();
    let full = mount.found("f").unwrap().attr;
    assert_eq!(full.blocks, full.size.div_ceil(512));
    let before = mount.meter.snapshot().bytes_up;
    let at = opened(&mount, "f", libc::O_RDWR);
    allocate(&mount, at, 10 * SEG..60 * SEG, PUNCH).unwrap();
    let mut expected = data(1, len);
    expected[10 * SEG as usize..60 * SEG as usize].fill(0);
    assert!(mount.read_open(at, 0, len).unwrap() == expected, "zeros at once");
    mount.close(at).unwrap();
    mount.drain();
    let sent = mount.meter.snapshot().bytes_up - before;
    assert!(sent < SEG, "{sent} bytes sent for a hole");
    let now = mount.found("f").unwrap().attr;
    assert_eq!(now.size, full.size);
    assert!(now.blocks * 512 < 102 * SEG, "the hole takes no blocks");
    assert!((now.mtime, now.ctime) > (full.mtime, full.ctime));
    mount.unmount();
    let other = world.fresh();
    assert!(other.get("f").unwrap() == expected);
    let at = opened(&other, "f", libc::O_RDONLY);
    assert_eq!(map(&other, at), [0..10 * SEG, 60 * SEG..150 * SEG]);
    other.close(at).unwrap();
    other.unmount();
}

#[test]
fn a_punched_hole_outlives_a_kill() {
    let (world, disk) = (world(), SimDisk::new(4));
    let mount = world.mount(disk.process(), quick());
    mount.put("f", &data(1, 3 * SEG as usize));
    mount.drain();
    mount.faulty.black_hole(true);
    let at = opened(&mount, "f", libc::O_RDWR);
    allocate(&mount, at, 5..2 * SEG + 5, PUNCH).unwrap();
    mount.write(at, 100, b"after").unwrap();
    allocate(&mount, at, 3 * SEG - 7..3 * SEG + 9, ZERO).unwrap();
    disk.crash(Crash::Kill);
    mount.kill();
    let mount = world.mount(disk.process(), quick());
    let mut expected = data(1, 3 * SEG as usize);
    expected[5..2 * SEG as usize + 5].fill(0);
    expected[100..105].copy_from_slice(b"after");
    expected[3 * SEG as usize - 7..].fill(0);
    expected.resize(3 * SEG as usize + 9, 0);
    assert!(mount.get("f").unwrap() == expected);
    mount.drain();
    mount.unmount();
    let other = world.fresh();
    assert!(other.get("f").unwrap() == expected);
    other.unmount();
}

#[test]
fn allocation_keeps_to_its_bounds() {
    let world = world();
    let mount = world.fresh();
    mount.put("f", b"0123456789");
    let at = opened(&mount, "f", libc::O_RDWR);
    let size = || mount.found("f").unwrap().attr.size;
    allocate(&mount, at, 2..8, 0).unwrap();
    allocate(&mount, at, 5..1000, KEEP).unwrap();
    allocate(&mount, at, 20..30, PUNCH).unwrap();
    allocate(&mount, at, 8..30, ZERO | KEEP).unwrap();
    assert_eq!((size(), mount.read_open(at, 0, 100).unwrap()), (10, b"01234567\0\0".to_vec()));
    allocate(&mount, at, 5..12, ZERO).unwrap();
    allocate(&mount, at, 0..15, 0).unwrap();
    assert_eq!((size(), mount.read_open(at, 0, 100).unwrap()), (15, b"01234\0\0\0\0\0\0\0\0\0\0".to_vec()));
    for mode in [libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE, PUNCH | ZERO, 1 << 20]
    {
        assert_eq!(allocate(&mount, at, 0..4096, mode).unwrap_err().errno(), libc::EOPNOTSUPP, "{mode}");
    }
    for range in [u64::MAX - 5..u64::MAX, 0..u64::MAX, 1 << 62..(1 << 62) + 1] {
        assert_eq!(allocate(&mount, at, range, 0).unwrap_err().errno(), libc::EFBIG);
    }
    assert_eq!(allocate(&mount, at, 5..5, 0).unwrap_err().errno(), libc::EINVAL);
    let reader = opened(&mount, "f", libc::O_RDONLY);
    assert_eq!(allocate(&mount, reader, 0..5, PUNCH).unwrap_err().errno(), libc::EBADF);
    let dir = mount.mkdir("d");
    let fh = mount.wait(mount.fs.opendir(WHO, dir)).unwrap();
    assert_eq!(allocate(&mount, (dir, fh), 0..5, 0).unwrap_err().errno(), libc::EISDIR);
    // The bytes of an unlinked file can go as any others; a descriptor for appending punches where it is told to.
    let appender = opened(&mount, "f", libc::O_RDWR | libc::O_APPEND);
    mount.unlink("f").unwrap();
    allocate(&mount, appender, 1..3, PUNCH).unwrap();
    assert_eq!(mount.read_open(at, 0, 5).unwrap(), b"0\0\x0034");
    for open in [at, reader, appender] {
        mount.close(open).unwrap();
    }
    mount.unmount();
}

#[test]
fn zeros_in_a_file_that_is_uploaded_ahead() {
    let world = world();
    let mount = world.fresh();
    let at = mount.create("f");
    let len = 90 * SEG as usize;
    let mut expected = data(3, len);
    for (i, piece) in expected.chunks(SEG as usize).enumerate() {
        mount.write(at, i as u64 * SEG, piece).unwrap();
    }
    for range in [40 * SEG + 9..43 * SEG, 0..100, 88 * SEG..90 * SEG] {
        allocate(&mount, at, range.clone(), PUNCH).unwrap();
        expected[range.start as usize..range.end as usize].fill(0);
    }
    assert!(mount.read_open(at, 0, len).unwrap() == expected);
    mount.close(at).unwrap();
    mount.drain();
    mount.unmount();
    let other = world.fresh();
    assert!(other.get("f").unwrap() == expected);
    let at = opened(&other, "f", libc::O_RDONLY);
    assert_eq!(map(&other, at), [0..41 * SEG, 43 * SEG..88 * SEG]);
    other.close(at).unwrap();
    other.unmount();
}

#[test]
fn data_and_holes_are_found_in_layers_and_versions() {
    let world = world();
    let mount = world.fresh();
    let at = mount.create("f");
    assert_eq!(seek(&mount, at, 0, libc::SEEK_HOLE).unwrap_err().errno(), libc::ENXIO);
    mount.write(at, 3 * SEG, b"x").unwrap();
    assert_eq!(map(&mount, at), [3 * SEG..3 * SEG + 1]);
    mount.wait(mount.fs.fsync(WHO, at.0, at.1, false)).unwrap();
    // In the bucket, a segment is the grain.
    mount.write(at, 9 * SEG, b"y").unwrap();
    assert_eq!(map(&mount, at), [3 * SEG..3 * SEG + 1, 9 * SEG..9 * SEG + 1]);
    assert_eq!(seek(&mount, at, 5 * SEG, libc::SEEK_DATA).unwrap() as u64, 9 * SEG);
    assert_eq!(seek(&mount, at, 5 * SEG, libc::SEEK_HOLE).unwrap() as u64, 5 * SEG);
    assert_eq!(seek(&mount, at, 9 * SEG, libc::SEEK_HOLE).unwrap() as u64, 9 * SEG + 1);
    for offset in [9 * SEG + 1, 1 << 40, u64::MAX] {
        assert_eq!(seek(&mount, at, offset, libc::SEEK_DATA).unwrap_err().errno(), libc::ENXIO);
        assert_eq!(seek(&mount, at, offset, libc::SEEK_HOLE).unwrap_err().errno(), libc::ENXIO);
    }
    assert_eq!(seek(&mount, at, 0, libc::SEEK_END).unwrap_err().errno(), libc::EINVAL);
    mount.close(at).unwrap();
    mount.unmount();
}

#[test]
fn copies_stay_inside_and_keep_holes() {
    let world = world();
    let mount = world.fresh();
    let from = mount.create("from");
    mount.write(from, 0, &data(1, SEG as usize + 100)).unwrap();
    mount.write(from, 70 * SEG, &data(2, 5000)).unwrap();
    let to = mount.create("to");
    let len = 70 * SEG + 5000;
    let (mut done, mut calls) = (0, 0);
    while done < len {
        let n = copy(&mount, (from.0, from.1, done), (to.0, to.1, done), len - done).unwrap();
        assert!(n > 0);
        (done, calls) = (done + u64::from(n), calls + 1);
    }
    assert!(calls > 1, "one request ends in time, whatever it is asked for");
    assert!(mount.read_open(to, 0, len as usize).unwrap() == mount.read_open(from, 0, len as usize).unwrap());
    assert_eq!(map(&mount, to), map(&mount, from));
    assert_eq!(copy(&mount, (from.0, from.1, len), (to.0, to.1, 0), 10).unwrap(), 0);
    assert_eq!(copy(&mount, (to.0, to.1, 0), (to.0, to.1, 99), 100).unwrap_err().errno(), libc::EINVAL);
    assert_eq!(copy(&mount, (to.0, to.1, 0), (to.0, to.1, 100), 100).unwrap(), 100);
    assert_eq!(copy(&mount, (from.0, from.1, 0), (to.0, to.1, u64::MAX - 5), 100).unwrap_err().errno(), libc::EFBIG);
    let reader = opened(&mount, "to", libc::O_RDONLY);
    assert_eq!(copy(&mount, (from.0, from.1, 0), (reader.0, reader.1, 0), 10).unwrap_err().errno(), libc::EBADF);
    let expected = mount.read_open(to, 0, len as usize).unwrap();
    for at in [from, to, reader] {
        mount.close(at).unwrap();
    }
    let before = mount.meter.snapshot().bytes_up;
    mount.drain();
    assert!(mount.meter.snapshot().bytes_up - before < 8 * SEG, "holes are not sent");
    mount.unmount();
    let other = world.fresh();
    assert!(other.get("to").unwrap() == expected);
    other.unmount();
}
