//! The process dies at every named point of a change's way into the bucket, once and later; what programs were told is there afterwards.
//!
//! The same steps are taken in the mount and in a plain directory. The step that the death cut short may have happened or not, as
//! a whole; only a write may have happened in part.

use super::world::*;
use smpfs::env::failpoint::{POINTS, Point};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

type Change = Box<dyn Fn(&Path) -> io::Result<()>>;

/// One system call, or a few that belong together.
struct Step {
    what: String,
    /// A file whose contents the step may leave between before and after.
    torn: Option<&'static str>,
    take: Change,
}

fn step(what: impl Into<String>, take: impl Fn(&Path) -> io::Result<()> + 'static) -> Step {
    Step { what: what.into(), torn: None, take: Box::new(take) }
}

fn write(name: &'static str, seed: u64, len: usize) -> Step {
    let take = move |at: &Path| File::create(at.join(name))?.write_all(&noise(seed, len));
    Step { torn: Some(name), ..step(format!("write {name}"), take) }
}

fn append(name: &'static str, seed: u64, len: usize) -> Step {
    let take = move |at: &Path| {
        let mut file = OpenOptions::new().append(true).create(true).open(at.join(name))?;
        file.write_all(&noise(seed, len))
    };
    Step { torn: Some(name), ..step(format!("append to {name}"), take) }
}

fn sync(name: &'static str) -> Step {
    step(format!("fsync {name}"), move |at: &Path| OpenOptions::new().write(true).open(at.join(name))?.sync_all())
}

fn rename(from: &'static str, to: &'static str) -> Step {
    step(format!("rename {from} {to}"), move |at: &Path| fs::rename(at.join(from), at.join(to)))
}

/// Names and small files: everything that changes them.
fn small() -> Vec<Step> {
    let mut steps = vec![
        step("mkdir a", |at| fs::create_dir(at.join("a"))),
        step("mkdir a/b", |at| fs::create_dir(at.join("a/b"))),
        write("a/one", 1, 30_000),
        write("a/two", 2, 20_000),
        sync("a/one"),
        write("a/one", 3, 50_000),
        append("a/one", 4, 10_000),
        sync("a/one"),
        step("mkdir a/b/c", |at| fs::create_dir(at.join("a/b/c"))),
        write("a/b/c/deep", 5, 5000),
        rename("a/two", "a/b/two"),
        write("a/three", 6, 7000),
        sync("a/three"),
        rename("a/b/two", "a/three"),
        step("link", |at| fs::hard_link(at.join("a/one"), at.join("a/b/uno"))),
        step("symlink", |at| symlink("nowhere", at.join("a/sym"))),
        step("chmod", |at| fs::set_permissions(at.join("a/one"), Permissions::from_mode(0o600))),
        step("unlink a/one", |at| fs::remove_file(at.join("a/one"))),
        sync("a/b/uno"),
        step("unlink a/three", |at| fs::remove_file(at.join("a/three"))),
        step("mkdir a/gone", |at| fs::create_dir(at.join("a/gone"))),
        step("rmdir a/gone", |at| fs::remove_dir(at.join("a/gone"))),
        rename("a/b/c", "moved"),
        write("moved/last", 7, 100),
    ];
    // Written to while the version before is on its way, renamed and removed with nothing of it sent.
    for i in 0..9 {
        steps.extend([append("log", 10 + i, 3000), write("passing", 20 + i, 4000)]);
        match i % 3 {
            0 => steps.push(rename("passing", "moved/passing")),
            1 => steps.push(step("unlink passing", |at| fs::remove_file(at.join("passing")))),
            _ => steps.push(sync("log")),
        }
    }
    steps
}

/// A file that is uploaded while it is written, an edit of it, and its end.
fn large() -> Vec<Step> {
    let edit = |at: &Path| OpenOptions::new().write(true).open(at.join("large"))?.write_all_at(&noise(9, 4096), 9 << 20);
    vec![
        write("small", 1, 1000),
        write("large", 8, 42 << 20),
        sync("large"),
        Step { torn: Some("large"), ..step("edit", edit) },
        sync("large"),
        write("small", 2, 2000),
        sync("small"),
        step("unlink large", |at| fs::remove_file(at.join("large"))),
    ]
}

/// More names than one index object holds, and more than a journal holds without being begun anew.
fn many() -> Vec<Step> {
    let link = |i: usize| step(format!("link {i}"), move |at: &Path| symlink("x".repeat(1000), at.join(format!("many/{i}"))));
    let settle = || step("fsync of the directory", |at| File::open(at.join("many"))?.sync_all());
    let mut steps = vec![step("mkdir many", |at| fs::create_dir(at.join("many")))];
    steps.extend((0..1100).map(link));
    steps.push(settle());
    steps.extend((1100..1110).map(link));
    steps.push(settle());
    steps
}

/// What a tree holds, by path: kind, permissions, names, contents.
type Tree = BTreeMap<String, (u32, u64, Vec<u8>)>;

fn tree(root: &Path) -> Tree {
    let mut found = Tree::new();
    let mut todo = vec![String::new()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(root.join(&dir)).unwrap().map(Result::unwrap) {
            let path = format!("{dir}{}", entry.file_name().to_str().unwrap());
            if path == ".smpfs" {
                continue;
            }
            let meta = fs::symlink_metadata(root.join(&path)).unwrap();
            let (links, bytes) = match meta.file_type() {
                t if t.is_dir() => {
                    todo.push(format!("{path}/"));
                    (0, Vec::new())
                }
                t if t.is_symlink() => (0, fs::read_link(root.join(&path)).unwrap().to_str().unwrap().into()),
                _ => (meta.nlink(), fs::read(root.join(&path)).unwrap()),
            };
            found.insert(path, (meta.mode(), links, bytes));
        }
    }
    found
}

/// Without contents, for messages.
fn outline(tree: &Tree) -> Vec<String> {
    tree.iter().map(|(path, (mode, links, bytes))| format!("{path} {mode:o} {links} {}", bytes.len())).collect()
}

/// Takes steps in both places until one fails in the mount. What the mount may hold then, and the file that may be torn.
fn walk(mount: &Path, plain: &Path, steps: &[Step]) -> (String, Tree, Tree, Option<&'static str>) {
    for s in steps {
        if let Err(e) = (s.take)(mount) {
            let before = tree(plain);
            // A step of several calls may stop in the plain directory as well: that is no matter here.
            (s.take)(plain).unwrap();
            return (format!("{}: {e}", s.what), before, tree(plain), s.torn);
        }
        (s.take)(plain).unwrap();
    }
    let all = tree(plain);
    ("unmount".to_owned(), all.clone(), all, None)
}

fn without(tree: &Tree, name: &str) -> Tree {
    tree.iter().filter(|(path, _)| *path != name).map(|(p, v)| (p.clone(), v.clone())).collect()
}

/// What a write may leave: nothing, the file of before, or a part of the file of after.
fn torn(seen: &Tree, before: &Tree, after: &Tree, name: &str) -> bool {
    let bytes = |t: &Tree| t.get(name).map(|v| v.2.clone());
    let (seen, before, after) = (bytes(seen), bytes(before), bytes(after).unwrap_or_default());
    match (seen, before) {
        (None, before) => before.is_none(),
        (Some(seen), before) => {
            after.starts_with(&seen) || before.as_ref().is_some_and(|b| *b == seen) || {
                // Cut short, or written to in part, over what was there.
                let old = before.unwrap_or_default();
                seen.iter().enumerate().all(|(i, b)| old.get(i) == Some(b) || after.get(i) == Some(b))
            }
        }
    }
}

/// One death, and what is found afterwards. Whether the point was reached.
fn dies(mut world: World, point: &Point, hit: u32, mode: &str, steps: &[Step]) -> bool {
    let what = format!("{}:{hit}", point.name);
    world.init(&["--mode", mode]);
    let recovery = point.name.starts_with("recovery");
    world.set("SMPFS_TEST_DIE_AT", if recovery { "layer-frozen:2" } else { &what });
    let died = world.path("died");
    world.set("SMPFS_TEST_DIED", died.to_str().unwrap());
    let mount = world.mount(&[]);
    let pid = mount.pid;
    let plain = scratch();
    let (last, before, after, may_tear) = walk(&world.mnt(), plain.path(), steps);
    if alive(pid) && !died.exists() {
        world.run(&["unmount", world.mnt().to_str().unwrap(), "--timeout", "60s"]);
    }
    drop(mount);
    until("the end of the process", || !alive(pid));
    if recovery {
        fs::remove_file(&died).unwrap();
        world.set("SMPFS_TEST_DIE_AT", &what);
        // One that gets past the point is a mount like any other, which is ended here.
        match world.try_mount(&[]).code {
            0 => drop(world.run(&["unmount", world.mnt().to_str().unwrap(), "--timeout", "60s"]).ok()),
            _ => assert!(died.exists(), "{what}"),
        }
    }
    let reached = died.exists();
    world.set("SMPFS_TEST_DIE_AT", "");
    let mount = world.mount(&[]);
    let seen = tree(&world.mnt());
    let same = |t: &Tree| *t == seen;
    let partly = may_tear.is_some_and(|name| {
        [&before, &after].iter().any(|t| without(t, name) == without(&seen, name)) && torn(&seen, &before, &after, name)
    });
    assert!(
        same(&before) || same(&after) || partly,
        "{what}, {}, at {last}:\n{:#?}\nbefore {:#?}\nafter {:#?}",
        point.holds,
        outline(&seen),
        outline(&before),
        outline(&after)
    );
    mount.unmount();
    // Of an upload that was never noted only `smpfs scrub --gc` hears.
    let unnoted = ["upload-begun", "upload-ahead-begun"].contains(&point.name);
    assert!(world.bucket().unfinished() <= usize::from(unnoted), "{what}: an upload is left");
    let said = world.run(&["scrub", &world.store, "--quiet", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&said.out).unwrap_or_else(|e| panic!("{e}: {said:?}"));
    let finds = report["finds"].as_array().unwrap();
    assert!(finds.iter().all(|f| f["what"] == "orphan"), "{what}: {finds:?}");
    world.become_another_machine("elsewhere");
    let mount = world.mount(&["--read-only"]);
    assert!(tree(&world.mnt()) == seen, "{what}: another machine sees something else");
    mount.unmount();
    reached
}

/// The points that are met by taking `steps`.
fn die_everywhere(among: impl Fn(&str) -> bool, hits: &[u32], steps: fn() -> Vec<Step>, world: fn() -> Option<World>) {
    for point in POINTS.iter().filter(|p| among(p.name)) {
        for (i, hit) in hits.iter().enumerate() {
            let mode = ["zero-knowledge", "standard"][i % 2];
            let reached = world().is_some_and(|w| dies(w, point, *hit, mode, &steps()));
            assert!(reached || i > 0, "{} was never reached", point.name);
        }
    }
}

/// Points of large files.
const LARGE: [&str; 5] = ["upload-ahead-begun", "upload-begun", "upload-noted", "part-sent", "parts-sent"];
/// Points of large directories and long journals.
const MANY: [&str; 3] = ["journal-begun-anew", "shards-written", "shards-named"];

#[test]
fn small_changes_survive_a_death_at_every_point() {
    need_mounts!("small_changes_survive_a_death_at_every_point");
    die_everywhere(|name| !LARGE.contains(&name) && !MANY.contains(&name), &[1, 3, 8], small, || Some(World::dir()));
}

#[test]
fn large_files_survive_a_death_at_every_point() {
    need_mounts!("large_files_survive_a_death_at_every_point");
    die_everywhere(|name| LARGE.contains(&name), &[1, 4], large, || Some(World::dir()));
}

#[test]
fn large_files_on_s3_survive_a_death_at_every_point() {
    need_mounts!("large_files_on_s3_survive_a_death_at_every_point");
    drop(s3_world!("large_files_on_s3_survive_a_death_at_every_point"));
    die_everywhere(|name| LARGE.contains(&name), &[1], large, || World::s3("large_files_survive"));
}

#[test]
fn large_directories_survive_a_death_at_every_point() {
    need_mounts!("large_directories_survive_a_death_at_every_point");
    die_everywhere(|name| MANY.contains(&name), &[1], many, || Some(World::dir()));
}
