//! The largest file, the deepest tree, a crowded directory.

use super::world::*;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Names of the crowded directory: `SMPFS_TEST_NAMES`.
fn crowd() -> usize {
    std::env::var("SMPFS_TEST_NAMES").ok().and_then(|n| n.parse().ok()).unwrap_or(3000)
}

#[test]
fn a_file_of_eight_tebibytes() {
    need_mounts!("a_file_of_eight_tebibytes");
    let mut world = World::dir();
    world.init(&[]);
    let mount = world.mount(&[]);
    const SIZE: u64 = 8 << 40;
    let file = File::create(world.file("sparse")).unwrap();
    file.set_len(SIZE).unwrap();
    file.write_all_at(b"middle", SIZE / 2).unwrap();
    file.write_all_at(b"end", SIZE - 3).unwrap();
    assert_eq!(errno(file.write_all_at(b"x", SIZE)), libc::EFBIG);
    assert_eq!(errno(file.set_len(SIZE + 1)), libc::EFBIG);
    file.sync_all().unwrap();
    drop(file);
    mount.unmount();
    world.become_another_machine("elsewhere");
    let mount = world.mount(&[]);
    let file = File::open(world.file("sparse")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), SIZE);
    let data = nix::unistd::lseek(&file, 0, nix::unistd::Whence::SeekData).unwrap();
    // Holes in the bucket are whole segments.
    assert_eq!(data as u64, SIZE / 2);
    let mut bytes = [1; 8];
    file.read_exact_at(&mut bytes, SIZE / 2 - 1).unwrap();
    assert_eq!(&bytes, b"\0middle\0");
    file.read_exact_at(&mut bytes, SIZE - 8).unwrap();
    assert_eq!(&bytes, b"\0\0\0\0\0end");
    drop(file);
    mount.unmount();
}

/// A hundred directories deep, by paths up to the longest that the kernel takes, and further by steps.
#[test]
fn a_deep_tree() {
    need_mounts!("a_deep_tree");
    let mut world = World::dir();
    world.init(&[]);
    let mount = world.mount(&[]);
    let names: Vec<String> = (0..100).map(|i| format!("{i:03}{}", "n".repeat(i % 36))).collect();
    let deep: PathBuf = names.iter().collect();
    fs::create_dir_all(world.mnt().join(&deep)).unwrap();
    write_durably(&world.mnt().join(&deep).join("bottom"), b"deep").unwrap();
    // Twenty more with names of 255 bytes: no path reaches the last, a descriptor of a directory does.
    let long = "l".repeat(255);
    let steps = r#"cd "$1"; for i in $(seq 20); do mkdir "$2"; cd -P "$2"; done; echo beyond > file; cat file"#;
    assert_eq!(shell(steps, &[&world.mnt().join(&deep), long.as_ref()]).ok().out, "beyond\n");
    let too_long = world.mnt().join(&deep).join(std::iter::repeat_n(long.as_str(), 20).collect::<PathBuf>());
    assert_eq!(errno(fs::metadata(too_long)), libc::ENAMETOOLONG);
    assert_eq!(errno(File::create(world.file(&"l".repeat(256)))), libc::ENAMETOOLONG);
    mount.unmount();
    world.become_another_machine("elsewhere");
    let mount = world.mount(&[]);
    assert_eq!(fs::read(world.mnt().join(&deep).join("bottom")).unwrap(), b"deep");
    let down = r#"cd "$1"; for i in $(seq 20); do cd -P "$2"; done; cat file"#;
    assert_eq!(shell(down, &[&world.mnt().join(&deep), long.as_ref()]).ok().out, "beyond\n");
    shell("rm -r \"$1\"", &[&world.mnt().join(&names[0])]).ok();
    mount.unmount();
}

#[test]
fn a_crowded_directory() {
    need_mounts!("a_crowded_directory");
    let mut world = World::dir();
    world.init(&[]);
    let mount = world.mount(&[]);
    let name = |i: usize| format!("{i:06}-é.dcm");
    for i in 0..crowd() {
        File::create(world.file(&name(i))).unwrap();
    }
    let listed = |world: &World| -> BTreeSet<String> {
        fs::read_dir(world.mnt()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    };
    let all: BTreeSet<String> = (0..crowd()).map(name).collect();
    assert_eq!(listed(&world), all);
    mount.unmount();
    world.become_another_machine("elsewhere");
    let mount = world.mount(&[]);
    assert_eq!(listed(&world), all);
    // A listing that is under way while its names go shows each of them once at most, and all that stay.
    let mut seen = BTreeSet::new();
    for (i, entry) in fs::read_dir(world.mnt()).unwrap().enumerate() {
        let found = entry.unwrap().file_name().into_string().unwrap();
        assert!(seen.insert(found.clone()), "{found} twice");
        if i % 2 == 0 {
            fs::remove_file(world.file(&found)).unwrap();
        }
    }
    assert_eq!(seen, all);
    assert_eq!(listed(&world).len(), crowd() / 2);
    mount.unmount();
    world.become_another_machine("third");
    let mount = world.mount(&["--read-only"]);
    assert_eq!(listed(&world).len(), crowd() / 2);
    mount.unmount();
}
