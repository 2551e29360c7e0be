//! What only the directory store promises: nothing escapes its root, writers of other processes, what a crash leaves.

use bytes::Bytes;
use smpfs::env::Env;
use smpfs::error::Kind;
use smpfs::store::dir::DirStore;
use smpfs::store::{Cond, PartAt, Span, Store};
use std::fs;
use std::path::Path;
use std::process::Command;

async fn open(root: &Path) -> DirStore {
    DirStore::open(root, true, true, Env::real()).await.unwrap()
}

fn b(text: &'static str) -> Vec<Bytes> {
    vec![Bytes::from_static(text.as_bytes())]
}

const WHOLE: Span = Span::Whole { max: 1 << 20 };

#[tokio::test]
async fn no_key_leaves_the_root() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().join("bucket");
    let store = open(&root).await;
    let keys =
        ["../out", "a/../../out", "../..", "./.", "a//b", "a/./b", "./x", "%2E%2E/out", ".%tmp/put-x", "end/", "back\\slash"]
            .map(str::to_owned);
    for key in &keys {
        store.put(key, vec![Bytes::from(key.clone())], Cond::Absent).await.unwrap_or_else(|e| panic!("{key}: {e}"));
    }
    for key in &keys {
        assert_eq!(store.get(key, WHOLE, None).await.unwrap().bytes, key.as_bytes(), "{key}");
    }
    let outside: Vec<_> = fs::read_dir(tmp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(outside, ["bucket"]);
    let mut listed: Vec<_> = store.list("", None, 100).await.unwrap().items.into_iter().map(|l| l.key).collect();
    let mut want = keys.to_vec();
    want.sort();
    assert_eq!(listed, want);
    listed.dedup();
    assert_eq!(listed.len(), keys.len());
}

#[tokio::test]
async fn an_object_and_objects_below_it_cannot_both_be() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path()).await;
    store.put("a", b("x"), Cond::Any).await.unwrap();
    let e = store.put("a/b", b("x"), Cond::Any).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Invalid);
    assert!(e.to_string().contains("both an object and objects below it"), "{e}");
    store.put("c/d", b("x"), Cond::Any).await.unwrap();
    assert_eq!(store.put("c", b("x"), Cond::Any).await.unwrap_err().kind(), Kind::Invalid);
    assert_eq!(store.head("a/b").await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(store.head("c").await.unwrap_err().kind(), Kind::NotFound);
    store.delete("c").await.unwrap();
    assert!(store.head("c/d").await.is_ok());
    let temporary: Vec<_> = fs::read_dir(tmp.path().join(".%tmp")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(temporary.iter().all(|n| n.to_string_lossy().starts_with("lock-")), "failed puts left {temporary:?}");
}

#[tokio::test]
async fn versions_and_uploads_survive_a_restart() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path()).await;
    let one = store.put("k", b("one"), Cond::Any).await.unwrap();
    let id = store.upload_start("big").await.unwrap();
    let first = store.upload_part("big", &id, PartAt { number: 1, offset: 0 }, b("first ")).await.unwrap();
    drop(store);
    let store = open(tmp.path()).await;
    assert_eq!(store.head("k").await.unwrap(), one);
    store.put("k", b("two"), Cond::Match(one.etag)).await.unwrap();
    assert_eq!(store.uploads("b").await.unwrap(), [("big".to_owned(), id.clone())]);
    let second = store.upload_part("big", &id, PartAt { number: 2, offset: 6 }, b("second")).await.unwrap();
    store.upload_complete("big", &id, &[first, second], Cond::Absent).await.unwrap();
    assert_eq!(store.get("big", WHOLE, None).await.unwrap().bytes, "first second");
}

/// Two stores on one directory are what two processes are: each takes the locks through files of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_hold_between_stores_on_one_directory() {
    let tmp = tempfile::tempdir().unwrap();
    let stores = [open(tmp.path()).await, open(tmp.path()).await];
    stores[0].put("n", b("0"), Cond::Absent).await.unwrap();
    let count = async |store: &DirStore| {
        for _ in 0..40 {
            loop {
                let got = store.get("n", WHOLE, None).await.unwrap();
                let n: u32 = std::str::from_utf8(&got.bytes).unwrap().parse().unwrap();
                match store.put("n", vec![Bytes::from((n + 1).to_string())], Cond::Match(got.meta.etag)).await {
                    Ok(_) => break,
                    Err(e) => assert_eq!(e.kind(), Kind::Stale, "{e}"),
                }
            }
        }
    };
    tokio::join!(count(&stores[0]), count(&stores[1]));
    assert_eq!(stores[1].get("n", WHOLE, None).await.unwrap().bytes, "80");
}

#[tokio::test]
async fn a_bucket_that_vanished_is_unavailable_not_empty() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().join("bucket");
    let e = DirStore::open(&root, false, true, Env::real()).await.err().unwrap();
    assert_eq!(e.kind(), Kind::NotFound, "{e}");
    let store = open(&root).await;
    store.put("a/k", b("x"), Cond::Any).await.unwrap();
    fs::rename(&root, tmp.path().join("elsewhere")).unwrap();
    assert_eq!(store.head("a/k").await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(store.get("none", WHOLE, None).await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(store.list("", None, 10).await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(store.put("b", b("x"), Cond::Any).await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(store.delete("a/k").await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(store.uploads("").await.unwrap_err().kind(), Kind::Unavailable);
    assert!(!root.exists(), "a vanished bucket must not be made again");
    fs::create_dir(&root).unwrap();
    assert_eq!(
        store.head("a/k").await.unwrap_err().kind(),
        Kind::Unavailable,
        "another directory of that name is not the bucket"
    );
    fs::remove_dir(&root).unwrap();
    fs::rename(tmp.path().join("elsewhere"), &root).unwrap();
    assert_eq!(store.head("a/k").await.unwrap().len, 1);
}

#[tokio::test]
async fn links_devices_and_foreign_names_are_no_objects() {
    let tmp = tempfile::tempdir().unwrap();
    let secret = tmp.path().join("secret");
    fs::write(&secret, "outside").unwrap();
    let root = tmp.path().join("bucket");
    let store = open(&root).await;
    std::os::unix::fs::symlink(&secret, root.join("link")).unwrap();
    fs::write(root.join("bad%name"), "foreign").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    pipe(&root.join("pipe"));
    for key in ["link", "socket", "pipe"] {
        assert_eq!(store.get(key, WHOLE, None).await.unwrap_err().kind(), Kind::NotFound, "{key}");
        assert_eq!(store.head(key).await.unwrap_err().kind(), Kind::NotFound, "{key}");
    }
    assert!(store.list("", None, 10).await.unwrap().items.is_empty());
    store.put("link", b("mine"), Cond::Absent).await.unwrap();
    assert_eq!(fs::read(&secret).unwrap(), b"outside", "the link was replaced, not followed");
    store.put("pipe", b("mine"), Cond::Absent).await.unwrap();
    assert_eq!(store.get("pipe", WHOLE, None).await.unwrap().bytes, "mine");
}

fn pipe(path: &Path) {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
}

/// What should answer at once gets half a minute. A thread that hangs in an open could not be ended otherwise.
async fn at_once<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(std::time::Duration::from_secs(30), what).await.unwrap_or_else(|_| {
        eprintln!("the store hangs: a pipe lies in the place of one of its own files");
        std::process::abort()
    })
}

/// Whoever may write into the directory can put a pipe or a link in the place of every file that the store keeps for itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipe_or_a_link_in_the_place_of_its_own_files_is_named_and_hangs_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().join("bucket");
    let victim = tmp.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    let link = |path: &Path| std::os::unix::fs::symlink(&victim, path).unwrap();
    for make in [&pipe as &dyn Fn(&Path), &link] {
        let store = open(&root).await;
        let area = root.join(".%tmp");
        for n in 0..64 {
            make(&area.join(format!("lock-{n:02}")));
        }
        let e = at_once(store.put("k", b("x"), Cond::Any)).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Unavailable, "{e}");
        assert!(e.to_string().contains(".%tmp/lock-") && e.to_string().contains("remove it"), "{e}");
        assert_eq!(at_once(store.delete("k")).await.err().map(|e| e.kind()), Some(Kind::Unavailable));

        let at = PartAt { number: 1, offset: 0 };
        for own in ["data", "key", "part-1.new"] {
            let id = store.upload_start("up").await.unwrap();
            let path = area.join(format!("up-{}", id.0)).join(own);
            let _ = fs::remove_file(&path);
            make(&path);
            let e = at_once(store.upload_part("up", &id, at, b("x"))).await.unwrap_err();
            assert_eq!(e.kind(), Kind::Unavailable, "{own}: {e}");
            assert!(e.to_string().contains(own), "{own}: {e}");
            at_once(store.uploads("")).await.unwrap();
        }
        fs::remove_dir_all(&root).unwrap();
    }
    assert_eq!(fs::read(&victim).unwrap(), b"untouched");
}

#[tokio::test]
async fn what_died_long_ago_is_swept_and_what_is_young_stays() {
    let tmp = tempfile::tempdir().unwrap();
    drop(open(tmp.path()).await);
    let area = tmp.path().join(".%tmp");
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(2 * 24 * 3600);
    for name in ["put-old", "put-young"] {
        let file = fs::File::create(area.join(name)).unwrap();
        if name == "put-old" {
            file.set_modified(old).unwrap();
        }
    }
    open(tmp.path()).await;
    assert!(!area.join("put-old").exists());
    assert!(area.join("put-young").exists());
}

#[tokio::test]
async fn the_name_of_an_emptied_folder_is_free() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path()).await;
    store.put("a/b/c", b("x"), Cond::Any).await.unwrap();
    store.delete("a/b/c").await.unwrap();
    store.put("a/b", b("x"), Cond::Absent).await.unwrap();
    store.delete("a/b").await.unwrap();
    // What a delete that was interrupted leaves.
    fs::create_dir(tmp.path().join("a")).unwrap();
    store.put("a", b("x"), Cond::Absent).await.unwrap();
}

#[tokio::test]
async fn a_replaced_part_cannot_be_completed_and_a_failed_replacement_keeps_the_part() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path()).await;
    let id = store.upload_start("k").await.unwrap();
    let at = PartAt { number: 1, offset: 0 };
    let first = store.upload_part("k", &id, at, b("first")).await.unwrap();
    let second = store.upload_part("k", &id, at, b("again")).await.unwrap();
    assert_eq!(store.upload_complete("k", &id, &[first], Cond::Any).await.unwrap_err().kind(), Kind::Invalid);
    let none = smpfs::store::ETag("none".into());
    assert_eq!(store.upload_part_copy("k", &id, at, "absent", &none, 0..5).await.unwrap_err().kind(), Kind::NotFound);
    store.upload_complete("k", &id, &[second], Cond::Any).await.unwrap();
    assert_eq!(store.get("k", WHOLE, None).await.unwrap().bytes, "again");
}

/// A filesystem of its own, unmounted at the end of the test.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount(size: &str) -> Option<Tmpfs> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(dir.path()).output();
        mount.is_ok_and(|o| o.status.success()).then_some(Tmpfs(dir))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_no_space_and_leaves_nothing_half_done() {
    let Some(disk) = Tmpfs::mount("1m") else {
        return super::skipped("dir::a_full_disk_is_no_space_and_leaves_nothing_half_done", "mounting a tmpfs needs root");
    };
    let store = open(disk.0.path()).await;
    let old = store.put("k", b("old"), Cond::Any).await.unwrap();
    let big = Bytes::from(vec![7; 2 << 20]);
    assert_eq!(store.put("k", vec![big.clone()], Cond::Any).await.unwrap_err().kind(), Kind::NoSpace);
    assert_eq!(store.head("k").await.unwrap(), old);
    let id = store.upload_start("up").await.unwrap();
    let part = store.upload_part("up", &id, PartAt { number: 1, offset: 0 }, vec![big]).await;
    assert_eq!(part.unwrap_err().kind(), Kind::NoSpace);
    store.upload_abort("up", &id).await.unwrap();
    store.put("k2", vec![Bytes::from(vec![7; 700 << 10])], Cond::Any).await.expect("what failed was given back");
}

/// A put that is given up while it waits for the key's lock never lands, however late the lock is free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_that_was_given_up_does_not_land_later() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path()).await;
    store.put("k", b("before"), Cond::Any).await.unwrap();
    let locks: Vec<_> =
        fs::read_dir(tmp.path().join(".%tmp")).unwrap().map(|e| fs::File::open(e.unwrap().path()).unwrap()).collect();
    locks.iter().for_each(|l| l.lock().unwrap());
    let put = tokio::time::timeout(std::time::Duration::from_millis(300), store.put("k", b("late"), Cond::Any)).await;
    assert!(put.is_err(), "another process holds the lock");
    drop(locks);
    // Waits for the same lock behind the put that was given up, or finds that gone already.
    store.put("k", b("after"), Cond::Any).await.unwrap();
    let area = tmp.path().join(".%tmp");
    while fs::read_dir(&area).unwrap().any(|e| e.unwrap().file_name().to_string_lossy().starts_with("put-")) {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(store.get("k", WHOLE, None).await.unwrap().bytes, "after");
}
