//! The one thread that tells the kernel what to forget.
//!
//! A notification may wait for a page or directory lock that a request in progress holds, so it is never sent from a thread that
//! answers requests.

use crate::error::{Error, Kind, Result};
use crate::ops::{Invalidate, Invalidations, Ops};
use fuser::{INodeNo, Notifier};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How often the thread looks whether the mount is still there.
const LOOK: Duration = Duration::from_secs(1);

/// Starts the thread. It ends with the mount.
pub(super) fn start(
    queue: Arc<Invalidations>,
    ops: Arc<dyn Ops>,
    notifier: Notifier,
    ended: watch::Receiver<bool>,
) -> Result<()> {
    let run = move || {
        while !*ended.borrow() {
            if let Some(what) = queue.recv(LOOK) {
                send(&notifier, &*ops, &what);
            }
        }
    };
    let spawned = std::thread::Builder::new().name("smpfs-notify".to_owned()).spawn(run);
    spawned.map(drop).map_err(|e| Error::with_source(Kind::Unavailable, "no thread for kernel notifications", e))
}

/// Tells the kernel to forget `what`. May wait for requests in progress.
fn send(notifier: &Notifier, ops: &dyn Ops, what: &Invalidate) {
    let result = match what {
        // Offset 0 and length 0: the whole file. A negative offset: attributes only.
        Invalidate::Inode(ino) => notifier.inval_inode(INodeNo(*ino), 0, 0),
        Invalidate::Attr(ino) => notifier.inval_inode(INodeNo(*ino), -1, 0),
        Invalidate::Entry(parent, name) => notifier.inval_entry(INodeNo(*parent), OsStr::from_bytes(name)),
        Invalidate::All => {
            all(notifier, ops);
            Ok(())
        }
    };
    // Nothing can be done about it: the mount is ending, or the name is in use and its time to live will end it.
    if let Err(e) = result {
        tracing::debug!(errno = e.raw_os_error(), "the kernel did not take an invalidation");
    }
}

/// Tells the kernel to drop the pages and attributes of every inode that `ops` knows of; returns how many it took.
pub(super) fn all(notifier: &Notifier, ops: &dyn Ops) -> usize {
    ops.inodes().into_iter().filter(|&ino| notifier.inval_inode(INodeNo(ino), 0, 0).is_ok()).count()
}
