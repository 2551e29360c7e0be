//! The kernel's side: a real mount whose requests an [`Ops`] answers. The only module that knows `fuser`.
//!
//! ```text
//!  kernel ─> loop thread ─┬─ *_now answers from memory ───────────────────────> reply
//!                         └─ task (lane, permit) ─ Ops call ─┬─ in time ──────> reply
//!                                                            └─ late, killed ─> EIO, EINTR; the call goes on, its gain is undone
//!  Ops ─> Invalidations ─> one notifier thread ─> kernel
//! ```
//!
//! What was decided, and why:
//! - A loop thread never waits for an operation (a FORGET behind it would wait too). It waits only for room when more than
//!   [`MountOptions::max_write_bytes`] of written data are in tasks already: that is the one place where back-pressure must reach
//!   the writers.
//! - Every request ends: after [`MountOptions::deadline`] (or [`MountOptions::sync_deadline`] for flush and fsync) it is answered
//!   EIO. `fuser` has no FUSE_INTERRUPT, so a killed process would stay until then; a request that waits longer than a second
//!   therefore looks once a second whether its process has been killed, and is then answered EINTR.
//! - A panic in an operation is one EIO and a line in the log.
//! - `ATOMIC_O_TRUNC` is not asked for: truncation arrives as a setattr, which every filesystem has anyway.
//! - `HANDLE_KILLPRIV_V2` is not asked for: `fuser` does not pass the flag on for setattr. The kernel clears the bits itself.
//! - No writeback cache, so no thread of ours serves the kernel's page writer, and `PR_SET_IO_FLUSHER` (for which no safe
//!   wrapper exists) is not needed.
//! - No lock flags: the kernel then keeps flock and POSIX locks by itself, correctly for this machine.
//! - Unmounting is done here, not by `fuser`, whose handle unmounts the path again when dropped, whatever is mounted there by then.

mod answer;
mod callbacks;
mod dispatch;
mod mountpoint;
mod notify;
mod patience;
mod session;

pub use dispatch::Stats;
pub use mountpoint::{DeadMount, clear_stale, dead_mounts};
pub use session::Session;

use crate::error::Result;
use crate::ops::Ops;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// What /proc/mounts shows as the source: the store's URL.
    pub source: String,
    /// Refuse all changes.
    pub read_only: bool,
    /// Let other users in (their rights are still checked). As an ordinary user this needs `user_allow_other` in /etc/fuse.conf.
    pub allow_other: bool,
    /// Honour set-user-id and set-group-id bits.
    pub suid: bool,
    /// Honour device nodes.
    pub dev: bool,
    /// Forbid running programs.
    pub no_exec: bool,
    /// Threads that read requests from the kernel.
    pub threads: usize,
    /// Background requests (readahead) the kernel keeps in flight.
    pub max_background: u16,
    /// Largest write request in bytes; Linux takes up to 1 MiB by default (fs.fuse.max_pages_limit).
    pub max_write: u32,
    /// Readahead of the mount in KiB; 0 leaves the system's. Needs root.
    pub read_ahead_kib: u32,
    /// Operations in progress at most, for data and for names each; more wait.
    pub max_in_flight: usize,
    /// Bytes of write requests held at most while their operations wait or run.
    pub max_write_bytes: usize,
    /// A request unanswered for so long is answered EIO.
    pub deadline: Duration,
    /// The same for flush and fsync, which wait for an upload.
    pub sync_deadline: Duration,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions {
            source: "smpfs".to_owned(),
            read_only: false,
            allow_other: false,
            suid: false,
            dev: false,
            no_exec: false,
            threads: 2,
            max_background: 64,
            max_write: 1 << 20,
            read_ahead_kib: 1024,
            max_in_flight: 256,
            max_write_bytes: 128 << 20,
            deadline: Duration::from_secs(120),
            sync_deadline: Duration::from_secs(3600),
        }
    }
}

/// Mounts `ops` on `dir` and serves it on threads of its own, with `rt` running whatever must wait.
///
/// A stale mount of ours on `dir` (its process is gone) is detached first. As root this is mount(2), otherwise `fusermount3`.
/// Standard input, output and error must be open (on /dev/null at least).
///
/// # Errors
/// In sentences: no /dev/fuse, no such directory, already mounted, not permitted.
pub fn mount(ops: Arc<dyn Ops>, dir: &Path, opts: &MountOptions, rt: tokio::runtime::Handle) -> Result<Session> {
    session::start(ops, dir, opts, rt)
}
