//! A live mount: waiting for its end, unmounting, abort, health.

use super::MountOptions;
use super::callbacks::Callbacks;
use super::dispatch::{Dispatch, Stats};
use super::mountpoint::{connection_file, explain, is_dead, mounted_at, prepare, set_read_ahead, source_name, unmount};
use super::notify;
use crate::error::{Error, Kind, Result};
use crate::ops::Ops;
use fuser::{Config, MountOption, Notifier, SessionACL};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long a mount that was unmounted takes to notice, at most.
const ENDING: Duration = Duration::from_secs(1);
/// How often a blocking wait looks again.
const LOOK: Duration = Duration::from_millis(20);

/// A mount that this process serves. Dropping it while mounted detaches the mount; [`Session::unmount`] is the orderly way.
///
/// `unmount`, `detach`, `abort` and `invalidate_all` block: from async code call them on a blocking thread, and never from within
/// an operation of the mounted filesystem.
pub struct Session {
    dir: PathBuf,
    /// "major:minor" of the mount; names it apart from another on the same directory.
    dev: String,
    dispatch: Arc<Dispatch>,
    notifier: Notifier,
    ended: watch::Receiver<bool>,
}

pub(super) fn start(ops: Arc<dyn Ops>, dir: &Path, opts: &MountOptions, rt: tokio::runtime::Handle) -> Result<Session> {
    let dir = prepare(dir)?;
    let dispatch = Dispatch::new(ops.clone(), opts, rt);
    let (ended_tx, ended) = watch::channel(false);
    let callbacks =
        Callbacks { dispatch: dispatch.clone(), max_write: opts.max_write, max_background: opts.max_background, ended: ended_tx };
    let session = fuser::Session::new(callbacks, &dir, &config(opts)).map_err(|e| explain(e, &dir))?;
    let dev = mounted_at(&dir).map(|m| m.dev);
    let background = session.spawn().map_err(|e| Error::with_source(Kind::Unavailable, "no thread to serve the mount", e))?;
    let notifier = background.notifier();
    // Its drop would unmount the path a second time, whatever is mounted there by then. One descriptor stays open for it.
    std::mem::forget(background);
    let Some(dev) = dev else {
        let _ = unmount(&dir, true);
        return crate::error::fail(Kind::Unavailable, "the mount was gone before it was served");
    };
    set_read_ahead(&dev, opts.read_ahead_kib);
    let session = Session { dir, dev, dispatch, notifier, ended };
    if let Some(queue) = ops.invalidations() {
        notify::start(queue, ops, session.notifier.clone(), session.ended.clone())?;
    }
    Ok(session)
}

fn config(opts: &MountOptions) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(source_name(&opts.source)),
        MountOption::CUSTOM("subtype=smpfs".to_owned()),
        MountOption::DefaultPermissions,
        if opts.read_only { MountOption::RO } else { MountOption::RW },
        if opts.suid { MountOption::Suid } else { MountOption::NoSuid },
        if opts.dev { MountOption::Dev } else { MountOption::NoDev },
        if opts.no_exec { MountOption::NoExec } else { MountOption::Exec },
        // Access times are not kept: an update for each read would be an upload.
        MountOption::NoAtime,
    ];
    config.acl = if opts.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(opts.threads.max(1));
    config.clone_fd = opts.threads > 1;
    config
}

impl Session {
    /// The mount point, absolute.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the mount has ended: unmounted by anybody, aborted, or its threads failed.
    pub fn is_over(&self) -> bool {
        *self.ended.borrow()
    }

    /// Returns when the mount has ended and its threads serve no request any more. Operations in tasks may still run: see
    /// [`Session::drained`]. The kernel does not send the releases and forgets it still owed: afterwards the filesystem counts
    /// every handle as closed.
    pub async fn ended(&self) {
        // An error means that the sender is gone: over as well.
        let _ = self.ended.clone().wait_for(|over| *over).await;
    }

    /// [`Session::ended`] for a thread that may block. Returns whether it ended within `timeout`.
    pub fn wait(&self, timeout: Duration) -> bool {
        self.poll_until(timeout, || self.is_over())
    }

    /// Waits until no operation is in progress, those included whose requests were answered early. Blocks.
    pub fn drained(&self, timeout: Duration) -> bool {
        self.poll_until(timeout, || self.stats().in_flight == 0)
    }

    fn poll_until(&self, timeout: Duration, done: impl Fn() -> bool) -> bool {
        let start = Instant::now();
        while !done() {
            if start.elapsed() >= timeout {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }

    /// Unmounts. `Busy` when something is open or some process's working directory is inside. Fine when it was unmounted already.
    pub fn unmount(&self) -> Result<()> {
        if self.is_mounted() { unmount(&self.dir, false) } else { Ok(()) }
    }

    /// Takes the mount out of the directory tree at once; it ends when the last user closes.
    pub fn detach(&self) -> Result<()> {
        if self.is_mounted() { unmount(&self.dir, true) } else { Ok(()) }
    }

    /// Whether this very mount is (still) on top of its directory. After [`Session::abort`] it is, though nobody serves it.
    pub fn is_mounted(&self) -> bool {
        let there = mounted_at(&self.dir).is_some_and(|m| m.dev == self.dev);
        // The kernel reuses numbers: once we serve nothing, a mount that answers is somebody else's.
        there && (!self.is_over() || is_dead(&self.dir))
    }

    /// Cuts the kernel's connection: everybody who waits gets an error at once, and the mount point is stale or gone.
    ///
    /// Goes through the kernel's list of connections; where that is not mounted (bare containers), through [`Session::force`].
    ///
    /// Does nothing once the mount has ended: the kernel gives its number to the next mount, and that one may be anybody's. So a
    /// mount that is ending just now gets a moment to end.
    pub fn abort(&self) -> Result<()> {
        if self.wait(ENDING) {
            return Ok(());
        }
        match std::fs::write(connection_file(&self.dev, "abort"), "1") {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => self.force(),
            result => result.map_err(|e| Error::from(e).context("aborting the mount")),
        }
    }

    /// A forced unmount, which cuts the connection and then unmounts unless something is open. Root only.
    pub fn force(&self) -> Result<()> {
        if !self.is_mounted() {
            return Ok(());
        }
        match umount2(&self.dir, MntFlags::MNT_FORCE | MntFlags::UMOUNT_NOFOLLOW) {
            // Busy: the connection is cut all the same.
            Ok(()) | Err(Errno::EBUSY) => Ok(()),
            Err(e) => Err(Error::from(std::io::Error::from(e)).context("forcing the mount to end")),
        }
    }

    /// Requests the kernel has not had an answer to: a health metric that returns to 0.
    pub fn waiting(&self) -> Result<u64> {
        let text = std::fs::read_to_string(connection_file(&self.dev, "waiting")).map_err(|e| {
            let what = "counting the requests that wait (is fusectl mounted on /sys/fs/fuse/connections?)";
            Error::from(e).context(what)
        })?;
        text.trim().parse().map_err(|e| Error::with_source(Kind::Unavailable, "the kernel's count of waiting requests", e))
    }

    /// What the layer counted so far.
    pub fn stats(&self) -> Stats {
        self.dispatch.stats()
    }

    /// Tells the kernel to drop the pages of every inode the filesystem names ([`Ops::inodes`]): done before an unmount that may
    /// leave open files behind. Returns how many inodes the kernel took.
    pub fn invalidate_all(&self) -> usize {
        notify::all(&self.notifier, &*self.dispatch.ops)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Err(e) = self.detach() {
            tracing::warn!("the mount could not be detached: {e}");
        }
    }
}
