//! Two mounts of one volume, each with a state of its own, as on two machines: what programs see of each other's work.

use super::world::*;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// A name is looked at again after this.
const TTL: &str = "--metadata-ttl=200ms";

fn past_the_ttl() {
    std::thread::sleep(Duration::from_millis(400));
}

/// Names in a directory; the host and the time of a conflict left out.
fn names(dir: &Path) -> Vec<String> {
    let short = |name: String| match (name.find(" (conflict, "), name.find(')')) {
        (Some(from), Some(to)) => format!("{}!{}", &name[..from], &name[to + 1..]),
        _ => name,
    };
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| short(e.unwrap().file_name().into_string().unwrap())).collect();
    names.sort();
    names
}

fn conflict_copy(dir: &Path, stem: &str) -> Vec<u8> {
    let is_it = |e: &fs::DirEntry| e.file_name().to_string_lossy().starts_with(&format!("{stem} (conflict, "));
    let copy = fs::read_dir(dir).unwrap().map(Result::unwrap).find(is_it).expect("a name with a conflict's mark");
    fs::read(copy.path()).unwrap()
}

fn work_side_by_side(a: World, mode: &str) {
    a.init(&["--mode", mode]);
    let b = a.beside();
    let (here, there) = (a.mount(&[TTL]), b.mount(&[TTL]));

    // What one has closed and fsynced, the next open on the other one gives, and never a mixture.
    for round in 0..4 {
        let bytes = noise(round, 300_000 + round as usize);
        let (writer, reader) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        write_durably(&writer.file("report.dcm"), &bytes).unwrap();
        past_the_ttl();
        assert!(fs::read(reader.file("report.dcm")).unwrap() == bytes, "round {round}");
        assert_eq!(fs::metadata(reader.file("report.dcm")).unwrap().len(), bytes.len() as u64);
    }

    // Both change one file: both versions stay, and the one that came second hears of it. What it changes a part of it has read.
    there.drop_caches();
    assert!(fs::read(b.file("report.dcm")).unwrap() == noise(3, 300_003));
    let mine = OpenOptions::new().write(true).open(b.file("report.dcm")).unwrap();
    mine.write_all_at(&noise(7, 1000), 50_000).unwrap();
    let (mut edited, theirs) = (noise(3, 300_003), noise(8, 200_000));
    edited[50_000..51_000].copy_from_slice(&noise(7, 1000));
    let told = [write_durably(&a.file("report.dcm"), &theirs), mine.sync_all()].map(|told| told.err().map(|e| e.raw_os_error()));
    drop(mine);
    // Whoever came second hears of it. On a machine that is slow enough the first may have been uploaded, and seen, before the second
    // replaced it: no conflict.
    let (loser, kept, copy) = match told {
        [None, Some(e)] => (e.map(|_| &there), theirs, edited),
        [Some(e), None] => (e.map(|_| &here), edited, theirs),
        [None, None] => (None, theirs, edited),
        both => panic!("{both:?}"),
    };
    assert!(told.iter().flatten().all(|e| *e == Some(libc::ESTALE)), "{told:?}");
    // Different things under one name, made at once.
    for (world, seed) in [(&a, 9), (&b, 10)] {
        fs::create_dir(world.file("study")).unwrap();
        fs::write(world.file(&format!("study/{seed}")), noise(seed, 5000)).unwrap();
    }
    // Renamed by one and written by the other; removed by one and not looked at by the other.
    fs::write(a.file("draft"), b"draft").unwrap();
    fs::write(a.file("old"), b"old").unwrap();
    for world in [&a, &b] {
        File::open(world.mnt()).unwrap().sync_all().unwrap();
    }
    past_the_ttl();
    let draft = OpenOptions::new().append(true).open(b.file("draft")).unwrap();
    fs::remove_file(b.file("old")).unwrap();
    fs::rename(a.file("draft"), a.file("final")).unwrap();
    File::open(a.mnt()).unwrap().sync_all().unwrap();
    draft.write_all_at(b" and more", 5).unwrap();
    drop(draft);

    if let Some(loser) = loser {
        until("the audit log tells", || loser.audit("conflict").iter().any(|l| l["kind"] == "contents"));
        assert!(loser.status()["conflicts"]["settled"].as_u64().unwrap() >= 1);
    }
    let clash = loser.is_some();
    for mount in [&here, &there] {
        assert!(mount.quarantine().is_empty());
    }
    there.unmount();
    here.unmount();

    let c = a.beside();
    let mount = c.mount(&["--read-only"]);
    assert!(fs::read(c.file("report.dcm")).unwrap() == kept);
    if clash {
        assert!(conflict_copy(&c.mnt(), "report") == copy, "what the slower one had written, whole");
    }
    let all = names(&c.mnt());
    assert!(
        all.contains(&"study".to_owned()) && all.contains(&"study!".to_owned()) && !all.contains(&"old".to_owned()),
        "{all:?}"
    );
    let draft = all.iter().filter(|n| n.starts_with("draft") || n.starts_with("final"));
    let texts: Vec<_> = draft.map(|n| fs::read_to_string(c.file(n)).unwrap()).collect();
    assert!(texts.contains(&"draft and more".to_owned()), "{all:?} {texts:?}");
    mount.unmount();
}

#[test]
fn two_machines_see_and_keep_each_others_work() {
    need_mounts!("two_machines_see_and_keep_each_others_work");
    for mode in ["zero-knowledge", "standard"] {
        work_side_by_side(World::dir(), mode);
    }
}

#[test]
fn two_machines_see_and_keep_each_others_work_on_s3() {
    need_mounts!("two_machines_see_and_keep_each_others_work_on_s3");
    let world = s3_world!("two_machines_see_and_keep_each_others_work_on_s3");
    work_side_by_side(world, "zero-knowledge");
}
