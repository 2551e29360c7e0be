//! A full disk under the spool, and memory while a large file passes through.

use super::world::*;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;

/// A small filesystem of its own; taken away when dropped.
struct Small(std::path::PathBuf);

impl Small {
    fn new(at: &std::path::Path, size: &str) -> Small {
        fs::create_dir_all(at).unwrap();
        let options = format!("size={size},mode=0700");
        nix::mount::mount(Some("none"), at, Some("tmpfs"), nix::mount::MsFlags::empty(), Some(options.as_str())).unwrap();
        Small(at.to_owned())
    }
}

impl Small {
    fn grow(&self, size: &str) {
        let options = format!("size={size}");
        let again = nix::mount::MsFlags::MS_REMOUNT;
        nix::mount::mount(Some("none"), &self.0, Some("tmpfs"), again, Some(options.as_str())).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Writes until it is told that there is no room. Returns what was acknowledged.
fn fill(f: &mut fs::File, data: &[u8]) -> usize {
    let mut done = 0;
    while done < data.len() {
        match f.write(&data[done..(done + (64 << 10)).min(data.len())]) {
            Ok(n) => done += n,
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::ENOSPC), "{e}");
                return done;
            }
        }
    }
    panic!("{done} bytes found room");
}

fn full_spool(world: &mut World, more: &[&str]) {
    let options = [&IMPATIENT[..], more].concat();
    let mount = world.mount(&options);
    write_durably(&world.file("before"), &noise(1, 500_000)).unwrap();
    // Nothing can be uploaded, so nothing makes room.
    fs::rename(world.path("bucket"), world.path("away")).unwrap();
    let data = noise(2, 80 << 20);
    let mut f = fs::File::create(world.file("big")).unwrap();
    let done = fill(&mut f, &data);
    assert!(done > 4 << 20, "{done}");
    // Reading, and removing other files, still works.
    assert!(read_at(&world.file("big"), 0, done).unwrap() == data[..done]);
    fs::rename(world.path("away"), world.path("bucket")).unwrap();
    until("there is room again", || f.write_all_at(&data[done..done + 1000], done as u64).is_ok());
    let done = done + 1000;
    drop(f);
    until("the uploads catch up", || mount.status()["pending"]["files"] == 0);
    fs::write(world.file("after"), "after").unwrap();
    mount.unmount();
    world.become_another_machine("elsewhere");
    let mount = world.mount(&[]);
    assert!(fs::read(world.file("big")).unwrap() == data[..done]);
    assert!(fs::read(world.file("before")).unwrap() == noise(1, 500_000));
    assert_eq!(fs::read(world.file("after")).unwrap(), b"after");
    mount.unmount();
}

#[test]
fn a_full_disk_under_the_spool() {
    need_mounts!("a_full_disk_under_the_spool");
    let mut world = World::dir();
    let _small = Small::new(&world.home.join("state"), "16m");
    world.init(&[]);
    full_spool(&mut world, &[]);
}

#[test]
fn a_spool_at_its_limit() {
    need_mounts!("a_spool_at_its_limit");
    let mut world = World::dir();
    world.init(&[]);
    full_spool(&mut world, &["--spool-size", "64MiB"]);
}

/// Killed with the disk full: what was acknowledged is found by the next mount, though there is no room to write anything.
#[test]
fn killed_with_the_disk_full() {
    need_mounts!("killed_with_the_disk_full");
    let mut world = World::dir();
    let small = Small::new(&world.home.join("state"), "16m");
    world.init(&[]);
    let mount = world.mount(&IMPATIENT);
    fs::rename(world.path("bucket"), world.path("away")).unwrap();
    let data = noise(2, 64 << 20);
    let mut f = fs::File::create(world.file("big")).unwrap();
    let done = fill(&mut f, &data);
    mount.kill();
    drop(f);
    fs::rename(world.path("away"), world.path("bucket")).unwrap();
    // A mount has to write a little before it can upload anything: it says what to do, and loses nothing.
    let said = world.try_mount(&[]);
    if said.code == 0 {
        world.run(&["unmount", world.mnt().to_str().unwrap()]).ok();
    } else {
        assert!(said.err.contains("space"), "{said:?}");
    }
    small.grow("17m");
    for machine in ["home", "elsewhere"] {
        world.become_another_machine(machine);
        let mount = world.mount(&[]);
        assert!(fs::read(world.file("big")).unwrap() == data[..done], "{machine}");
        mount.unmount();
    }
    drop(small);
}

#[test]
fn memory_stays_bounded_while_a_large_file_passes() {
    need_mounts!("memory_stays_bounded_while_a_large_file_passes");
    let world = World::dir();
    world.init(&[]);
    let block = noise(5, 1 << 20);
    let mount = world.mount(&["--memory-budget", "128MiB"]);
    let mut f = fs::File::create(world.file("large")).unwrap();
    for i in 0..1024u32 {
        f.write_all(&i.to_le_bytes()).unwrap();
        f.write_all(&block[4..]).unwrap();
    }
    f.sync_all().unwrap();
    drop(f);
    let written = peak(mount.pid);
    assert!(written < 228, "{written} MiB while writing");
    mount.unmount();
    let mount = world.mount(&["--memory-budget", "128MiB"]);
    let f = fs::File::open(world.file("large")).unwrap();
    let mut buffer = vec![0; 1 << 20];
    for i in 0..1024u32 {
        f.read_exact_at(&mut buffer, u64::from(i) << 20).unwrap();
        assert!(buffer[..4] == i.to_le_bytes() && buffer[4..] == block[4..], "block {i}");
    }
    let read = peak(mount.pid);
    assert!(read < 228, "{read} MiB while reading");
    println!("peak memory: {written} MiB while writing, {read} MiB while reading");
    drop(f);
    mount.unmount();
}
