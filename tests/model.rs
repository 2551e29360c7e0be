//! The reference model against a real directory of this machine: the oracle is checked before it judges others. And the control
//! tree in front of the model, without a kernel.
#![allow(clippy::unwrap_used)]

mod support;

use proptest::prelude::*;
use smpfs::control::{Control, ControlSource, Node};
use smpfs::error::{Kind, Result, fail};
use smpfs::ops::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::model::ModelFs;
use support::opgen;

/// tmpfs where there is one: its semantics are the plainest.
fn scratch() -> tempfile::TempDir {
    let shm = std::path::Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm).unwrap() } else { tempfile::tempdir().unwrap() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(300), max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn the_model_behaves_as_a_real_directory(sequence in opgen::ops(60)) {
        let dir = scratch();
        // umask would take bits away from what the model is asked for.
        nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        let real = opgen::run_dir(dir.path(), &sequence);
        let model = ModelFs::new();
        let modelled = opgen::run(&model, &sequence);
        for (i, (a, b)) in real.iter().zip(&modelled).enumerate() {
            prop_assert!(a == b, "operation {i} {:?}: real {a:?}, model {b:?}", sequence[i]);
        }
        // Nothing leaks: all handles closed, all lookups forgotten but the root's.
        prop_assert_eq!(model.held(), (0, 1));
    }
}

#[tokio::test]
async fn a_listing_goes_on_whatever_changes_meanwhile() {
    let fs = ModelFs::new();
    for i in 0..100 {
        fs.add_behind(ROOT, format!("f{i:03}").as_bytes());
    }
    let who = Caller::default();
    let fh = fs.opendir(who, ROOT).await.unwrap();
    let (mut offset, mut seen) = (0, Vec::new());
    for round in 0.. {
        let part = fs.readdir(who, ROOT, fh, offset, 7, false).await.unwrap();
        let Some(last) = part.last() else { break };
        offset = last.next;
        seen.extend(part.into_iter().map(|e| e.name));
        // Names before and behind the cursor go and come.
        if round < 10 {
            fs.remove_behind(ROOT, format!("f{round:03}").as_bytes());
            fs.remove_behind(ROOT, format!("f{:03}", 99 - round).as_bytes());
        }
    }
    let stayed = (10..90).map(|i| format!("f{i:03}").into_bytes());
    for name in stayed {
        assert_eq!(seen.iter().filter(|n| **n == name).count(), 1, "a name that stayed is listed once");
    }
}

#[derive(Default)]
struct Counting(AtomicUsize);

impl ControlSource for Counting {
    fn render(&self, node: Node) -> Result<Vec<u8>> {
        let n = self.0.fetch_add(1, Ordering::SeqCst);
        match node {
            Node::Quarantine => fail(Kind::Unavailable, "no record yet"),
            _ => Ok(format!("{node:?} {n}\n").into_bytes()),
        }
    }
}

const ROOT_USER: Caller = Caller { uid: 0, gid: 0, pid: 1 };
const OWNER: Caller = Caller { uid: 1000, gid: 1000, pid: 1 };
const OTHER: Caller = Caller { uid: 1001, gid: 1001, pid: 1 };

fn control() -> (Arc<ModelFs>, Arc<Counting>, Control) {
    let (model, source) = (Arc::new(ModelFs::new()), Arc::new(Counting::default()));
    let since = smpfs::types::Time { sec: 1_700_000_000, nsec: 0 };
    let control = Control::new(model.clone(), source.clone(), OWNER.uid, OWNER.gid, since);
    (model, source, control)
}

async fn node(fs: &Control, name: &str) -> Attr {
    let dir = fs.lookup(OWNER, ROOT, b".smpfs").await.unwrap().attr.ino;
    fs.lookup(OWNER, dir, name.as_bytes()).await.unwrap().attr
}

#[tokio::test]
async fn control_files_are_rendered_at_open_only() {
    let (_, source, fs) = control();
    let status = node(&fs, "status").await;
    for _ in 0..1000 {
        fs.getattr(OWNER, status.ino).await.unwrap();
        assert!(fs.getattr_now(OWNER, status.ino).is_some());
    }
    assert_eq!(source.0.load(Ordering::SeqCst), 0);
    let one = fs.open(OWNER, status.ino, libc::O_RDONLY).await.unwrap();
    let two = fs.open(OWNER, status.ino, libc::O_RDONLY).await.unwrap();
    assert!(one.direct_io && !one.keep_cache);
    for _ in 0..3 {
        assert_eq!(&fs.read(OWNER, status.ino, one.fh, 0, 100).await.unwrap()[..], b"Status 0\n");
        assert_eq!(&fs.read(OWNER, status.ino, two.fh, 7, 1).await.unwrap()[..], b"1");
        assert!(fs.read(OWNER, status.ino, two.fh, 9, 10).await.unwrap().is_empty());
        assert!(fs.read(OWNER, status.ino, two.fh, u64::MAX, u32::MAX).await.unwrap().is_empty());
    }
    assert_eq!(fs.lseek(OWNER, status.ino, one.fh, 3, libc::SEEK_HOLE).await.unwrap(), 9);
    assert_eq!(fs.lseek(OWNER, status.ino, one.fh, 9, libc::SEEK_DATA).await.unwrap_err().errno(), libc::ENXIO);
    fs.release(status.ino, one.fh).await.unwrap();
    assert_eq!(fs.read(OWNER, status.ino, one.fh, 0, 1).await.unwrap_err().kind(), Kind::Stale);
    let broken = node(&fs, "quarantine").await;
    assert_eq!(fs.open(OWNER, broken.ino, 0).await.unwrap_err().kind(), Kind::Unavailable);
}

#[tokio::test]
async fn control_files_have_readers_and_no_writers() {
    let (_, _, fs) = control();
    for (name, perm) in [("README", 0o444), ("version", 0o444), ("status", 0o444), ("status.json", 0o444), ("audit", 0o400)] {
        let attr = node(&fs, name).await;
        assert_eq!((attr.perm, attr.uid), (perm, OWNER.uid), "{name}");
        assert_eq!(fs.open(ROOT_USER, attr.ino, libc::O_WRONLY).await.unwrap_err().kind(), Kind::Denied);
        assert_eq!(fs.open(OTHER, attr.ino, 0).await.is_ok(), perm == 0o444, "{name}");
        assert!(fs.open(OWNER, attr.ino, 0).await.is_ok() && fs.open(ROOT_USER, attr.ino, 0).await.is_ok());
        let refused = fs.setattr(ROOT_USER, attr.ino, None, SetAttr::default()).await;
        assert_eq!(refused.unwrap_err().kind(), Kind::NotPermitted);
        assert_eq!(fs.unlink(ROOT_USER, node(&fs, "version").await.ino, name.as_bytes()).await.unwrap_err().errno(), libc::EPERM);
    }
}

#[tokio::test]
async fn the_reserved_name_cannot_be_taken_or_given_away() {
    let (model, _, fs) = control();
    let who = ROOT_USER;
    let sub = fs.mkdir(who, ROOT, b"sub", 0o755).await.unwrap().attr.ino;
    let file = fs.create(who, ROOT, b"file", 0o644, libc::O_RDWR).await.unwrap().0.attr.ino;
    let exists = |r: Result<Found>| r.unwrap_err().kind() == Kind::Exists;
    assert!(exists(fs.mkdir(who, ROOT, b".smpfs", 0o755).await));
    assert!(exists(fs.symlink(who, ROOT, b".smpfs", b"x").await));
    assert!(exists(fs.link(who, file, ROOT, b".smpfs").await));
    assert_eq!(fs.create(who, ROOT, b".smpfs", 0o644, 0).await.unwrap_err().kind(), Kind::Exists);
    for r in [
        fs.rename(who, ROOT, b"file", ROOT, b".smpfs", 0).await,
        fs.rename(who, ROOT, b".smpfs", ROOT, b"x", 0).await,
        fs.rmdir(who, ROOT, b".smpfs").await,
        fs.unlink(who, ROOT, b".smpfs").await,
    ] {
        assert_eq!(r.unwrap_err().kind(), Kind::NotPermitted);
    }
    // Elsewhere it is a name as any other.
    fs.mkdir(who, sub, b".smpfs", 0o755).await.unwrap();
    // One that was there before is hidden, and counted back.
    model.add_behind(ROOT, b".smpfs");
    let before = model.held();
    let fh = fs.opendir(who, ROOT).await.unwrap();
    let (mut names, mut offset) = (Vec::new(), 0);
    loop {
        let part = fs.readdir(who, ROOT, fh, offset, 1, true).await.unwrap();
        let Some(last) = part.last() else { break };
        offset = last.next;
        for e in part {
            if e.name != b"." && e.name != b".." {
                fs.forget(e.attr.ino, 1);
            }
            names.push(String::from_utf8(e.name).unwrap());
        }
    }
    fs.releasedir(ROOT, fh).await.unwrap();
    assert_eq!(names, [".", "..", "sub", "file"]);
    assert_eq!(model.held(), before);
}

#[tokio::test]
async fn the_control_directory_lists_its_table() {
    let (_, _, fs) = control();
    let dir = fs.lookup(OWNER, ROOT, b".smpfs").await.unwrap().attr.ino;
    let fh = fs.opendir(OWNER, dir).await.unwrap();
    let (mut names, mut offset) = (Vec::new(), 0);
    while let Some(e) = fs.readdir(OWNER, dir, fh, offset, 1, true).await.unwrap().pop() {
        offset = e.next;
        names.push(String::from_utf8(e.name).unwrap());
    }
    assert_eq!(names, [".", "..", "README", "version", "status", "status.json", "audit", "quarantine"]);
}
