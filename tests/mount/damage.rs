//! What a hostile bucket may do, one thing at a time: the file in question gives EIO (or the mount is refused), the others are served,
//! the audit log and the quarantine tell, and the bucket is left as it was found.

use super::bucket::Bucket;
use super::world::*;
use std::collections::BTreeMap;
use std::fs;

/// A volume with a few files, and the keys of their objects.
struct Scene {
    world: World,
    bucket: Bucket,
    keys: BTreeMap<&'static str, String>,
    clean: BTreeMap<String, Vec<u8>>,
}

const SMALL: usize = 1500;
/// Three segments, the last of one chunk and a bit.
const LARGE: usize = (16 << 20) + 70_000;

fn contents(name: &str) -> Vec<u8> {
    match name {
        "large" => noise(3, LARGE),
        "empty" => Vec::new(),
        _ => noise(name.len() as u64, SMALL),
    }
}

impl Scene {
    fn new(world: World, names: &[&'static str], mode: &str) -> Scene {
        world.init(&["--mode", mode]);
        let bucket = world.bucket();
        let mut keys = BTreeMap::new();
        let mount = world.mount(&[]);
        fs::create_dir(world.file("sub")).unwrap();
        for name in names {
            let before = bucket.files();
            write_durably(&world.file(name), &contents(name)).unwrap();
            let new: Vec<String> = bucket.files().into_iter().filter(|k| !before.contains(k)).collect();
            assert_eq!(new.len(), 1, "{new:?}");
            keys.insert(*name, new[0].clone());
        }
        mount.unmount();
        let clean = bucket.all();
        Scene { world, bucket, keys, clean }
    }

    fn key(&self, name: &str) -> &str {
        &self.keys[name]
    }

    fn object(&self, name: &str) -> Vec<u8> {
        self.clean[self.key(name)].clone()
    }

    /// The file must be refused, and the others served. Then everything is put back.
    #[track_caller]
    fn refuses(&self, what: &str, mount: &Mount<'_>, bad: &[&str], good: &[&str]) {
        let before = self.bucket.all();
        let lines = mount.audit("corrupt").len();
        mount.drop_caches();
        for name in bad {
            assert_eq!(errno(fs::read(self.world.file(name))), libc::EIO, "{what}: {name}");
        }
        for name in good {
            assert!(fs::read(self.world.file(name)).unwrap() == contents(name), "{what}: {name}");
        }
        assert!(mount.audit("corrupt").len() >= lines + bad.len(), "{what}: {:?}", mount.audit("corrupt"));
        let held = mount.quarantine();
        for name in bad {
            // Keys that are paths are not shown.
            let shown = |key: &str| key.starts_with("sha256:") || key == self.key(name);
            assert!(held.iter().any(|q| shown(q["finding"]["object"].as_str().unwrap())), "{what}: {name}: {held:?}");
        }
        assert!(self.bucket.all() == before, "{what}: the bucket was changed");
        for (key, bytes) in &self.clean {
            if before.get(key) != Some(bytes) {
                self.bucket.put(key, bytes);
            }
        }
    }

    /// Everything is as it was.
    #[track_caller]
    fn serves(&self, mount: &Mount<'_>) {
        mount.drop_caches();
        for name in self.keys.keys() {
            assert!(fs::read(self.world.file(name)).unwrap() == contents(name), "{name}");
        }
    }
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bad = bytes.to_vec();
    bad[at] ^= 1 << (at % 8);
    bad
}

#[test]
fn a_flipped_byte_anywhere_in_a_small_file() {
    need_mounts!("a_flipped_byte_anywhere_in_a_small_file");
    for mode in ["zero-knowledge", "standard"] {
        let s = Scene::new(World::dir(), &["small", "other"], mode);
        let mount = s.world.mount(&[]);
        let object = s.object("small");
        let mut flips = 0;
        for at in (0..object.len()).step_by(97).chain([object.len() - 1]) {
            s.bucket.put(s.key("small"), &flipped(&object, at));
            assert_eq!(errno(fs::read(s.world.file("small"))), libc::EIO, "byte {at} of {}", object.len());
            assert_eq!(s.bucket.get(s.key("small")), flipped(&object, at));
            flips += 1;
            // An object that is still open is not opened anew: what it failed with is known.
            until("its release", || {
                let status = fs::read_to_string(s.world.file(".smpfs/status.json")).unwrap();
                serde_json::from_str::<serde_json::Value>(&status).unwrap()["open_files"] == 0
            });
        }
        assert!(fs::read(s.world.file("other")).unwrap() == contents("other"));
        assert!(mount.audit("corrupt").len() >= flips, "{} lines for {flips} flips", mount.audit("corrupt").len());
        // Records are by object, version and chunk; the log has a line for each time.
        let records = mount.quarantine().len();
        assert!(records >= 1, "{:?}", mount.quarantine());
        assert_eq!(mount.status()["health"], "degraded");
        // The audit log names no path, and the log of the process neither.
        let told = fs::read_to_string(s.world.file(".smpfs/audit")).unwrap() + &s.world.logs();
        assert!(!told.contains("small"), "{told}");
        s.bucket.put(s.key("small"), &object);
        s.serves(&mount);
        mount.unmount();
        // What was found is remembered.
        let mount = s.world.mount(&[]);
        assert_eq!(mount.quarantine().len(), records);
        mount.unmount();
    }
}

#[test]
fn a_flipped_byte_in_every_part_of_a_large_file() {
    need_mounts!("a_flipped_byte_in_every_part_of_a_large_file");
    let s = Scene::new(World::dir(), &["large", "other"], "zero-knowledge");
    let mount = s.world.mount(&[]);
    let object = s.object("large");
    let end = object.len();
    // Header (magic, file id), trailer (signature, length of the manifest, magic), manifest (its blob lies before the trailer).
    for at in [3, 40, end - 30, end - 420, end - 512, end - 600] {
        s.bucket.put(s.key("large"), &flipped(&object, at));
        s.refuses(&format!("byte {at} of {end}"), &mount, &["large"], &["other"]);
    }
    // A chunk: its range is refused and the ranges beside it are not.
    let chunk = 65_536 + 16;
    let second = 128 + (8 << 20) + 128 * 48 + 16;
    for (at, plain) in [(128 + 5 * chunk + 99, 5u64 << 16), (second + 7 * chunk + 65_540, (8 << 20) + (7 << 16))] {
        s.bucket.put(s.key("large"), &flipped(&object, at));
        let all = contents("large");
        mount.drop_caches();
        let path = s.world.file("large");
        for step in [0, 30_000, 65_535] {
            assert_eq!(errno(read_at(&path, plain + step, 1)), libc::EIO, "{at}: {step}");
        }
        for offset in [0, plain - 65_536, plain + 65_536, LARGE as u64 - 5000] {
            assert!(read_at(&path, offset, 4096).unwrap() == all[offset as usize..][..4096], "{at}: {offset}");
        }
        // Never a short file, and never bytes that are not its own.
        assert_eq!(errno(fs::read(&path)), libc::EIO, "{at}");
        assert_eq!(fs::metadata(&path).unwrap().len(), LARGE as u64);
        let found = mount.quarantine();
        assert!(found.iter().any(|q| q["finding"]["chunk"] == plain >> 16), "{found:?}");
        s.bucket.put(s.key("large"), &object);
    }
    s.serves(&mount);
    mount.unmount();
}

fn lengths_swaps_and_returns(world: World, mode: &str) {
    let s = Scene::new(world, &["small", "other", "empty", "first"], mode);
    let mount = s.world.mount(&[]);
    for name in ["small", "empty"] {
        let object = s.object(name);
        for len in [object.len() - 1, object.len() - 48, object.len() / 2, 600, 0] {
            s.bucket.put(s.key(name), &object[..len]);
            s.refuses(&format!("{len} of {} bytes", object.len()), &mount, &[name], &["other"]);
        }
        for more in [1, 65_552] {
            s.bucket.put(s.key(name), &[&object[..], &vec![0; more]].concat());
            s.refuses(&format!("{more} bytes more"), &mount, &[name], &["other"]);
        }
    }
    s.bucket.put(s.key("small"), &s.object("other"));
    s.bucket.put(s.key("other"), &s.object("small"));
    s.refuses("two objects in each other's place", &mount, &["small", "other"], &["first"]);

    s.bucket.delete(s.key("first"));
    s.refuses("a deleted object", &mount, &["first"], &["small", "other"]);

    // A foreign object: nobody's name leads to it.
    let foreign = if mode == "standard" { "foreign.dcm".to_owned() } else { format!(".smpfs/o/ab/{}", "c".repeat(62)) };
    s.bucket.put(&foreign, &s.object("small"));
    mount.drop_caches();
    let names: Vec<_> = fs::read_dir(s.world.mnt()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 5, "{names:?}");
    assert_eq!(errno(fs::metadata(s.world.file("foreign.dcm"))), libc::ENOENT);

    // The old version of a file.
    write_durably(&s.world.file("first"), b"the second version").unwrap();
    let new = s.bucket.get(s.key("first"));
    s.bucket.put(s.key("first"), &s.object("first"));
    mount.drop_caches();
    assert_eq!(errno(fs::read(s.world.file("first"))), libc::EIO);
    assert!(mount.quarantine().iter().any(|q| q["finding"]["stage"] == "rollback"), "{:?}", mount.quarantine());
    s.bucket.put(s.key("first"), &new);
    mount.drop_caches();
    assert_eq!(fs::read(s.world.file("first")).unwrap(), b"the second version");
    mount.unmount();
    // Nor on the next mount, nor on a machine that never saw the new one: the index names it.
    let mut s = s;
    s.bucket.put(s.key("first"), &s.object("first"));
    s.world.become_another_machine("elsewhere");
    let mount = s.world.mount(&[]);
    assert_eq!(errno(fs::read(s.world.file("first"))), libc::EIO);
    assert!(fs::read(s.world.file("other")).unwrap() == contents("other"));
    mount.unmount();
    assert!(s.bucket.get(&foreign) == s.object("small"), "the foreign object stays");
    assert!(s.bucket.get(s.key("first")) == s.object("first"), "so does the old version");
}

#[test]
fn objects_cut_extended_swapped_deleted_and_put_back() {
    need_mounts!("objects_cut_extended_swapped_deleted_and_put_back");
    lengths_swaps_and_returns(World::dir(), "zero-knowledge");
}

#[test]
fn objects_cut_extended_swapped_deleted_and_put_back_in_standard_mode() {
    need_mounts!("objects_cut_extended_swapped_deleted_and_put_back_in_standard_mode");
    lengths_swaps_and_returns(World::dir(), "standard");
}

#[test]
fn objects_cut_extended_swapped_deleted_and_put_back_on_s3() {
    need_mounts!("objects_cut_extended_swapped_deleted_and_put_back_on_s3");
    let world = s3_world!("objects_cut_extended_swapped_deleted_and_put_back_on_s3");
    lengths_swaps_and_returns(world, "zero-knowledge");
}

/// A volume whose root and whose folder `sub` changed twice; with every older index object.
struct Indexes {
    world: World,
    bucket: Bucket,
    root: String,
    sub: String,
    old: BTreeMap<String, Vec<u8>>,
    now: BTreeMap<String, Vec<u8>>,
}

fn indexes(world: World) -> Indexes {
    world.init(&[]);
    let bucket = world.bucket();
    let root = bucket.indexes()[0].clone();
    let mount = world.mount(&[]);
    fs::create_dir(world.file("sub")).unwrap();
    write_durably(&world.file("sub/a"), b"in sub").unwrap();
    write_durably(&world.file("top"), b"in root").unwrap();
    mount.unmount();
    let sub = bucket.indexes().into_iter().find(|k| *k != root).unwrap();
    let old = bucket.all();
    let mount = world.mount(&[]);
    write_durably(&world.file("sub/b"), b"later").unwrap();
    write_durably(&world.file("later"), b"later").unwrap();
    mount.unmount();
    let now = bucket.all();
    assert!(old[&root] != now[&root] && old[&sub] != now[&sub]);
    Indexes { world, bucket, root, sub, old, now }
}

fn index_damage(world: World) {
    let s = indexes(world);
    let mut found = 0;
    let (root, sub) = (&s.now[&s.root], &s.now[&s.sub]);
    // The root: the mount is refused with a sentence.
    let tampered: [(&str, Option<Vec<u8>>); 7] = [
        ("flipped in its head", Some(flipped(root, 9))),
        ("flipped in the middle", Some(flipped(root, root.len() / 2))),
        ("flipped at the end", Some(flipped(root, root.len() - 1))),
        ("cut", Some(root[..root.len() - 64].to_vec())),
        ("another directory's", Some(sub.clone())),
        ("an older one", Some(s.old[&s.root].clone())),
        ("gone", None),
    ];
    for (what, bytes) in tampered {
        match bytes {
            Some(bytes) => s.bucket.put(&s.root, &bytes),
            None => s.bucket.delete(&s.root),
        }
        let before = s.bucket.all();
        let said = s.world.try_mount(&[]);
        assert_eq!(said.code, 5, "{what}: {said:?}");
        assert!(!is_mounted(&s.world.mnt()), "{what}");
        assert!(s.bucket.all() == before, "{what}: the bucket was changed");
        s.bucket.put(&s.root, root);
        found += 1;
    }
    // A folder: it is refused, everything beside it is served.
    let tampered: [(&str, Option<Vec<u8>>); 5] = [
        ("flipped", Some(flipped(sub, sub.len() / 3))),
        ("extended", Some([&sub[..], b"x"].concat())),
        ("another directory's", Some(root.clone())),
        ("an older one", Some(s.old[&s.sub].clone())),
        ("gone", None),
    ];
    for (what, bytes) in tampered {
        match bytes {
            Some(bytes) => s.bucket.put(&s.sub, &bytes),
            None => s.bucket.delete(&s.sub),
        }
        let before = s.bucket.all();
        let mount = s.world.mount(&[]);
        for name in ["sub/a", "sub/b", "sub/nothing"] {
            assert_eq!(errno(fs::read(s.world.file(name))), libc::EIO, "{what}: {name}");
        }
        let listed = fs::read_dir(s.world.file("sub")).and_then(|d| d.collect::<std::io::Result<Vec<_>>>());
        assert_eq!(errno(listed), libc::EIO, "{what}");
        assert_eq!(fs::read(s.world.file("top")).unwrap(), b"in root", "{what}");
        found += 1;
        assert!(mount.audit("corrupt").len() >= found, "{what}: {:?}", mount.audit("corrupt"));
        assert!(!mount.quarantine().is_empty(), "{what}");
        mount.unmount();
        assert!(s.bucket.all() == before, "{what}: the bucket was changed");
        s.bucket.put(&s.sub, sub);
    }
    let mount = s.world.mount(&[]);
    assert_eq!(fs::read(s.world.file("sub/b")).unwrap(), b"later");
    mount.unmount();
}

#[test]
fn directory_indexes_flipped_cut_swapped_deleted_and_put_back() {
    need_mounts!("directory_indexes_flipped_cut_swapped_deleted_and_put_back");
    index_damage(World::dir());
}

#[test]
fn directory_indexes_flipped_cut_swapped_deleted_and_put_back_on_s3() {
    need_mounts!("directory_indexes_flipped_cut_swapped_deleted_and_put_back_on_s3");
    index_damage(s3_world!("directory_indexes_flipped_cut_swapped_deleted_and_put_back_on_s3"));
}

/// While it is mounted: what is known is served on, what the bucket says now is refused and told, and nothing is written over it.
#[test]
fn an_index_put_back_under_a_living_mount_is_told() {
    need_mounts!("an_index_put_back_under_a_living_mount_is_told");
    let s = indexes(World::dir());
    let mount = s.world.mount(&["--metadata-ttl", "100ms", "--attribute-ttl", "100ms"]);
    assert_eq!(fs::read(s.world.file("sub/b")).unwrap(), b"later");
    s.bucket.put(&s.sub, &s.old[&s.sub]);
    until("the audit log tells of it", || {
        assert_eq!(fs::read(s.world.file("sub/a")).unwrap(), b"in sub");
        let _ = fs::read_dir(s.world.file("sub")).map(|d| d.count());
        !mount.audit("corrupt").is_empty()
    });
    assert!(mount.quarantine().iter().any(|q| q["finding"]["stage"] == "rollback"), "{:?}", mount.quarantine());
    assert_eq!(fs::read(s.world.file("top")).unwrap(), b"in root");
    assert!(s.bucket.get(&s.sub) == s.old[&s.sub], "the bucket was changed");
    s.bucket.put(&s.sub, &s.now[&s.sub]);
    mount.unmount();
}

#[test]
fn an_edited_config_is_refused() {
    need_mounts!("an_edited_config_is_refused");
    let mut world = World::dir();
    world.init(&[]);
    world.mount(&[]).unmount();
    let bucket = world.bucket();
    let config = bucket.get(".smpfs/volume");
    let other = World::dir();
    other.init(&[]);
    let theirs = other.bucket().get(".smpfs/volume");
    for machine in ["home", "elsewhere"] {
        world.become_another_machine(machine);
        for at in (0..config.len()).step_by(29) {
            bucket.put(".smpfs/volume", &flipped(&config, at));
            let said = world.try_mount(&[]);
            assert!(said.code == 5 || said.code == 1, "byte {at} on {machine}: {said:?}");
            assert!(!is_mounted(&world.mnt()), "byte {at} on {machine}");
        }
        for bad in [&config[..config.len() - 1], &[&config[..], b"x"].concat(), &[]] {
            bucket.put(".smpfs/volume", bad);
            let said = world.try_mount(&[]);
            assert!(said.code != 0 && !is_mounted(&world.mnt()), "{} bytes on {machine}: {said:?}", bad.len());
        }
        bucket.put(".smpfs/volume", &config);
    }
    // Another volume with the same passphrase: refused where the first one was seen.
    world.become_another_machine("home");
    bucket.put(".smpfs/volume", &theirs);
    let said = world.try_mount(&[]);
    assert!(said.code != 0 && said.err.contains("volume"), "{said:?}");
    bucket.delete(".smpfs/volume");
    let said = world.try_mount(&[]);
    assert!(said.code != 0 && !is_mounted(&world.mnt()), "{said:?}");
    bucket.put(".smpfs/volume", &config);
    world.mount(&[]).unmount();
}
