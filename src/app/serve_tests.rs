//! Tests of the daemon's life with a mount that is a few counters: everything but the kernel and the store is real.

use super::*;
use crate::app::client;
use crate::app::socket::path_of;
use crate::cli::Exit;
use crate::config::{Identity, Sources};
use crate::error::fail;
use crate::fs::status::{Health, Pending, Status};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use tokio::sync::Notify;

/// A mount with `left` files to upload, one each time `step` is called.
struct Fake {
    left: watch::Sender<u64>,
    detached: watch::Sender<bool>,
    open_files: Mutex<bool>,
    errors: Mutex<Vec<Kind>>,
    wiped: Mutex<Option<bool>>,
    draining: Notify,
}

impl Fake {
    fn new(left: u64) -> Arc<Fake> {
        Arc::new(Fake {
            left: watch::channel(left).0,
            detached: watch::channel(false).0,
            open_files: Mutex::new(false),
            errors: Mutex::default(),
            wiped: Mutex::default(),
            draining: Notify::new(),
        })
    }

    fn finish_uploads(&self) {
        self.left.send_replace(0);
    }
}

#[async_trait]
impl Mounted for Fake {
    fn status(&self) -> Status {
        let files = *self.left.borrow();
        Status {
            volume_name: "fake".into(),
            pending: Pending { files, bytes: files * 100, sent_bytes: 7, names: 0 },
            ..Status::default()
        }
    }
    fn drop_caches(&self) {}
    async fn detach(&self, lazy: bool) -> Result<()> {
        if *self.open_files.lock() && !lazy {
            return fail(Kind::Busy, "files are open in the mount");
        }
        self.detached.send_replace(true);
        Ok(())
    }
    async fn detached(&self) {
        self.detached.subscribe().wait_for(|d| *d).await.unwrap();
    }
    async fn drain(&self) -> Result<()> {
        self.draining.notify_one();
        if let Some(kind) = self.errors.lock().pop() {
            return fail(kind, "the store says no");
        }
        self.left.subscribe().wait_for(|n| *n == 0).await.unwrap();
        Ok(())
    }
    async fn wipe(&self, keep_journal: bool) -> Result<()> {
        *self.wiped.lock() = Some(keep_journal);
        Ok(())
    }
}

struct World {
    _tmp: tempfile::TempDir,
    runtime: PathBuf,
    fake: Arc<Fake>,
    process: tokio::task::JoinHandle<Outcome<()>>,
}

const DIR: &str = "/mnt/of/nobody";

impl World {
    fn start(fake: Arc<Fake>) -> World {
        let tmp = tempfile::tempdir().unwrap();
        let runtime = tmp.path().join("run");
        let config = crate::config::load(Sources {
            file: None,
            given: vec![],
            environment: &|_| None,
            store: None,
            identity: Identity { uid: 1, home: Some(tmp.path().into()), ..Default::default() },
        });
        let log =
            super::super::logs::start(&config.unwrap().config, super::super::logs::Role::Command, Path::new("/unused")).unwrap();
        let daemon = Daemon {
            mounted: fake.clone(),
            listener: Listener::bind(&runtime, Path::new(DIR)).unwrap(),
            signals: Signals::catch().unwrap(),
            log,
            unmount_timeout: None,
        };
        let process = tokio::spawn(daemon.run(|| Ok(())));
        World { _tmp: tmp, runtime, fake, process }
    }

    /// Runs a client's blocking call beside the daemon.
    async fn client<T: Send + 'static>(&self, call: impl FnOnce(std::os::unix::net::UnixStream) -> T + Send + 'static) -> T {
        let socket = path_of(&self.runtime, Path::new(DIR));
        tokio::task::spawn_blocking(move || call(client::connect(&socket).unwrap().expect("nobody serves"))).await.unwrap()
    }

    async fn unmount(&self, lazy: bool, timeout: Option<Duration>) -> (Outcome<()>, Vec<Pending>) {
        self.client(move |stream| {
            let mut seen = Vec::new();
            let outcome = client::unmount(stream, lazy, false, timeout, &mut |p| seen.push(p));
            (outcome, seen)
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unmount_tells_progress_and_returns_when_all_is_sent_and_wiped() {
    let world = World::start(Fake::new(3));
    let status = world.client(client::status).await.unwrap();
    assert_eq!((status.pending.files, status.health), (3, Health::Ok));
    let fake = world.fake.clone();
    let uploads = tokio::spawn(async move {
        fake.draining.notified().await;
        sleep(Duration::from_millis(300)).await;
        fake.finish_uploads();
    });
    let (outcome, seen) = world.unmount(false, None).await;
    assert_eq!(outcome, Ok(()));
    assert_eq!(seen.first().map(|p| (p.files, p.bytes, p.sent_bytes)), Some((3, 300, 7)));
    assert_eq!(*world.fake.wiped.lock(), Some(false));
    // Who has been told "done" may mount again at once.
    assert!(Listener::bind(&world.runtime, Path::new(DIR)).is_ok());
    uploads.await.unwrap();
    assert_eq!(world.process.await.unwrap(), Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_answers_pending_and_the_uploads_go_on() {
    let world = World::start(Fake::new(2));
    let (outcome, _) = world.unmount(false, Some(Duration::from_millis(50))).await;
    let failure = outcome.unwrap_err();
    assert_eq!(failure.exit(), Exit::Pending);
    assert!(failure.message.contains("2 files, 200 B"), "{failure}");
    assert_eq!(world.client(client::status).await.unwrap().health, Health::Draining);
    assert_eq!(*world.fake.wiped.lock(), None);
    world.fake.finish_uploads();
    let World { process, fake, .. } = world;
    assert_eq!(process.await.unwrap(), Ok(()));
    assert_eq!(*fake.wiped.lock(), Some(false));
}

/// Both as the first request and in the middle of a drain that cannot end.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_the_uploads_and_keeps_what_is_left() {
    for draining in [false, true] {
        let world = World::start(Fake::new(2));
        if draining {
            assert_eq!(world.unmount(false, Some(Duration::ZERO)).await.0.unwrap_err().exit(), Exit::Pending);
        }
        let stopped = world.client(|stream| client::unmount(stream, false, true, None, &mut |_| ())).await.unwrap_err();
        assert!(stopped.exit() == Exit::Pending && stopped.message.contains("the next mount goes on"), "{stopped}");
        assert_eq!(*world.fake.wiped.lock(), Some(true), "the journal is kept");
        assert_eq!(world.process.await.unwrap().unwrap_err().exit(), Exit::Pending);
    }
    let nothing_left = World::start(Fake::new(0));
    nothing_left.client(|stream| client::unmount(stream, false, true, None, &mut |_| ())).await.unwrap();
    assert_eq!(*nothing_left.fake.wiped.lock(), Some(false));
}

#[tokio::test(flavor = "multi_thread")]
async fn open_files_refuse_an_unmount_and_lazy_does_not_care() {
    let world = World::start(Fake::new(0));
    *world.fake.open_files.lock() = true;
    let (outcome, seen) = world.unmount(false, None).await;
    assert_eq!(outcome.unwrap_err().exit(), Exit::Busy);
    assert!(seen.is_empty());
    assert_eq!(world.client(client::status).await.unwrap().health, Health::Ok);
    assert_eq!(world.unmount(true, None).await.0, Ok(()));
    assert_eq!(world.process.await.unwrap(), Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn umount_from_outside_uploads_as_well_and_an_absent_store_is_waited_for() {
    let fake = Fake::new(1);
    *fake.errors.lock() = vec![Kind::Unavailable];
    let world = World::start(fake);
    world.fake.detached.send_replace(true);
    world.fake.draining.notified().await;
    world.fake.draining.notified().await;
    world.fake.finish_uploads();
    assert_eq!(world.process.await.unwrap(), Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_cannot_succeed_keeps_the_journal() {
    let fake = Fake::new(1);
    *fake.errors.lock() = vec![Kind::Denied];
    let world = World::start(fake);
    let (outcome, _) = world.unmount(false, None).await;
    assert_eq!(outcome.unwrap_err().exit(), Exit::Denied);
    assert_eq!(*world.fake.wiped.lock(), Some(true));
    assert_eq!(world.process.await.unwrap().unwrap_err().exit(), Exit::Denied);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_mount_point_has_one_process() {
    let world = World::start(Fake::new(0));
    let second = Listener::bind(&world.runtime, Path::new(DIR));
    assert_eq!(second.err().map(|e| e.kind()), Some(Kind::Busy));
    assert!(Listener::bind(&world.runtime, Path::new("/mnt/other")).is_ok());
    // What was put in the place of a lock file is named, and waited for by nobody.
    let lock = path_of(&world.runtime, Path::new("/mnt/third")).with_extension("lock");
    nix::unistd::mkfifo(&lock, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let refused = Listener::bind(&world.runtime, Path::new("/mnt/third")).err().unwrap().to_string();
    assert!(refused.contains(&lock.display().to_string()), "{refused}");
    assert_eq!(world.unmount(false, None).await.0, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_on_the_socket_is_answered_and_does_no_harm() {
    use std::io::{Read, Write};
    let world = World::start(Fake::new(0));
    for line in ["rubbish\n", "{\"cmd\":\"format-disk\"}\n", "\n"] {
        let answer = world
            .client(move |mut s| {
                s.write_all(line.as_bytes()).unwrap();
                let mut answer = String::new();
                s.read_to_string(&mut answer).unwrap();
                answer
            })
            .await;
        assert!(answer.contains("makes no sense"), "{line}: {answer}");
    }
    // Longer than a request may be, and nothing at all: closed without an answer.
    let closed = world
        .client(move |mut s| {
            let _ = s.write_all(&[b'x'; 10_000]);
            let mut answer = Vec::new();
            let _ = s.read_to_end(&mut answer);
        })
        .await;
    let () = closed;
    assert_eq!(world.client(client::status).await.unwrap().volume_name, "fake");
    assert_eq!(world.unmount(false, None).await.0, Ok(()));
}
