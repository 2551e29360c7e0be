//! The control socket of a mount: `smpfs status` and `smpfs unmount` talk to the process that serves, one JSON object a line.
//!
//! ```text
//!  {"cmd":"status"}                                   -> {"status":{...}}
//!  {"cmd":"unmount","lazy":false,"timeout_s":90}      -> {"progress":{...}}* then {"done":null} or {"failed":{"exit":6,...}}
//! ```
//! It lies in the runtime directory (0700), named by a hash of the mount point, mode 0600. A lock file beside it is held while the
//! process lives, so that two mounts of one directory cannot take each other's place.

use super::failure::Failure;
use super::mounted::Mounted;
use super::mountpoint::private_dir;
use crate::cli::Exit;
use crate::error::{Error, Kind, Result, fail};
use crate::fs::status::{Pending, Status};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

/// Connections served at once; more wait.
const MAX_CONNECTIONS: usize = 16;
/// Longest request, bytes.
const MAX_REQUEST: u64 = 4096;
/// A client that says nothing for so long is let go.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an unmount waits for files that are open before it says that it does not.
const LINGER: Duration = Duration::from_secs(1);
/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// What a client asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "kebab-case")]
pub enum Request {
    /// One [`Status`].
    Status,
    /// Unmount, upload, wipe.
    Unmount {
        /// Detach even when files are open.
        #[serde(default)]
        lazy: bool,
        /// Do not upload what is left: keep it sealed for the next mount, and end.
        #[serde(default)]
        stop: bool,
        /// Answer after so many seconds even when data is left; the uploads go on.
        #[serde(default)]
        timeout_s: Option<f64>,
    },
}

/// What it is told, one line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Answer to `status`.
    Status(Box<Status>),
    /// What is left to upload.
    Progress(Pending),
    /// All is in the bucket, local traces are wiped.
    Done,
    /// It ended otherwise.
    Failed(Failure),
}

/// Where a mount stands, as connections see it.
#[derive(Clone, Debug)]
pub enum Phase {
    /// Mounted.
    Serving,
    /// Taken out of the directory tree while files are open, which are served until they are closed.
    Lingering,
    /// Unmounted, uploading.
    Draining,
    /// Over.
    Ended(std::result::Result<(), Failure>),
}

/// A client's wish to unmount, for the main loop: it answers when the mount is detached, or why it is not.
pub struct Unmount {
    /// Even when files are open.
    pub lazy: bool,
    /// What is left is kept for the next mount.
    pub stop: bool,
    /// Where the answer goes.
    pub answer: oneshot::Sender<std::result::Result<(), Failure>>,
}

/// Path of the socket of the mount at `dir` (canonical).
pub fn path_of(runtime: &Path, dir: &Path) -> PathBuf {
    runtime.join(format!("{}.sock", name_of(dir)))
}

/// A short name for a mount point: 64 bits of a hash, hexadecimal.
pub fn name_of(dir: &Path) -> String {
    let hash = Sha256::digest(dir.as_os_str().as_bytes());
    data_encoding::HEXLOWER.encode(&hash[..8])
}

/// The bound socket and its lock. Dropping it removes the socket.
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    _lock: Flock<std::fs::File>,
}

impl Listener {
    /// Binds the socket of the mount at `dir`. `Busy` when another process serves, or still uploads for, that mount point.
    pub fn bind(runtime: &Path, dir: &Path) -> Result<Listener> {
        private_dir(runtime)?;
        let path = path_of(runtime, dir);
        let lock = path.with_extension("lock");
        let mut how = std::fs::OpenOptions::new();
        // A pipe in its place must not hang the mount.
        how.create(true).truncate(false).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let lock = how.open(&lock).map_err(|e| Error::from(e).context(format!("opening the lock file {}", lock.display())))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
            nix::errno::Errno::EWOULDBLOCK => Error::new(
                Kind::Busy,
                format!("another smpfs process serves {0} or still uploads for it; see `smpfs status {0}`", dir.display()),
            ),
            e => Error::with_source(Kind::Unavailable, "locking the control socket", e),
        })?;
        // Ours alone now: what lies there is from a process that was killed.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(|e| {
            Error::from(e)
                .context(format!("the control socket {} (a path of up to 107 bytes; see --runtime-dir)", path.display()))
        })?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Listener { listener, path, _lock: lock })
    }

    /// Serves connections until dropped.
    pub async fn serve(&self, server: &Server) {
        loop {
            let Ok(permit) = server.slots.clone().acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let server = server.clone();
                    tokio::spawn(async move {
                        // A client that goes away in the middle is no news.
                        let _ = server.talk(stream).await;
                        drop(permit);
                    });
                }
                // Out of descriptors, most likely: give others time to close theirs.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What a connection needs.
#[derive(Clone)]
pub struct Server {
    /// The mount.
    pub mounted: Arc<dyn Mounted>,
    /// Where it stands.
    pub phase: watch::Receiver<Phase>,
    /// To the main loop.
    pub unmounts: mpsc::Sender<Unmount>,
    slots: Arc<Semaphore>,
}

impl Server {
    /// A server for `mounted`.
    pub fn new(mounted: Arc<dyn Mounted>, phase: watch::Receiver<Phase>, unmounts: mpsc::Sender<Unmount>) -> Server {
        Server { mounted, phase, unmounts, slots: Arc::new(Semaphore::new(MAX_CONNECTIONS)) }
    }

    /// Waits until connections have got their last line, `limit` at most. The accepting task must have ended.
    pub async fn finish(&self, limit: Duration) {
        let _ = timeout(limit, self.slots.acquire_many(MAX_CONNECTIONS as u32)).await;
    }

    async fn talk(&self, stream: UnixStream) -> std::io::Result<()> {
        let (from, mut to) = stream.into_split();
        let mut line = String::new();
        let read = timeout(PATIENCE, BufReader::new(from.take(MAX_REQUEST)).read_line(&mut line)).await;
        if !matches!(read, Ok(Ok(1..))) {
            return Ok(());
        }
        match serde_json::from_str(&line) {
            Ok(Request::Status) => say(&mut to, &Reply::Status(Box::new(self.status()))).await,
            Ok(Request::Unmount { lazy, stop, timeout_s }) => {
                let limit = timeout_s.map(|s| Duration::try_from_secs_f64(s).unwrap_or(Duration::MAX));
                self.unmount(&mut to, lazy, stop, limit).await
            }
            Err(e) => say(&mut to, &Reply::Failed(Failure::new(Exit::Usage, format!("the request makes no sense: {e}")))).await,
        }
    }

    fn status(&self) -> Status {
        let mut status = self.mounted.status();
        if !matches!(*self.phase.borrow(), Phase::Serving) {
            status.health = crate::fs::status::Health::Draining;
        }
        status
    }

    async fn unmount<W: AsyncWriteExt + Unpin>(
        &self,
        to: &mut W,
        lazy: bool,
        stop: bool,
        limit: Option<Duration>,
    ) -> std::io::Result<()> {
        let deadline = limit.and_then(|l| Instant::now().checked_add(l));
        let (answer, answered) = oneshot::channel();
        // A main loop that is gone has published how it ended.
        if self.unmounts.send(Unmount { lazy, stop, answer }).await.is_ok()
            && let Ok(Err(failure)) = answered.await
        {
            return say(to, &Reply::Failed(failure)).await;
        }
        let (mut phase, since) = (self.phase.clone(), Instant::now());
        loop {
            let (ended, lingers) = match &*phase.borrow_and_update() {
                Phase::Ended(how) => (Some(how.clone()), false),
                now => (None, matches!(now, Phase::Lingering)),
            };
            match ended {
                Some(Ok(())) => return say(to, &Reply::Done).await,
                Some(Err(failure)) => return say(to, &Reply::Failed(failure)).await,
                None => {}
            }
            if lingers && since.elapsed() >= LINGER {
                return say(to, &Reply::Failed(lingering())).await;
            }
            let pending = self.mounted.status().pending;
            say(to, &Reply::Progress(pending)).await?;
            let Some(pause) = pause_until(deadline) else { return say(to, &Reply::Failed(still_pending(pending))).await };
            // Both ends of the wait lead to another look; a closed channel means that the end was published before.
            let _ = timeout(pause, phase.changed()).await;
        }
    }
}

/// Time until the next look, or `None` when the deadline has passed.
fn pause_until(deadline: Option<Instant>) -> Option<Duration> {
    let left = deadline.map_or(PROGRESS_EVERY, |d| d.saturating_duration_since(Instant::now()));
    (!left.is_zero()).then(|| left.min(PROGRESS_EVERY))
}

/// The sentence for a lazy unmount while files are open.
fn lingering() -> Failure {
    let what =
        "unmounted, but files are open: they are served until they are closed, and then smpfs uploads what is left and ends";
    Failure::new(Exit::Pending, what)
}

/// The sentence for an unmount whose time was over.
pub fn still_pending(pending: Pending) -> Failure {
    Failure::new(
        Exit::Pending,
        format!(
            "unmounted, and not everything is in the bucket yet ({}): smpfs goes on uploading. `smpfs unmount` waits again, and with --stop it ends \
             the uploads and keeps what is left, sealed, for the next mount",
            super::status::unsent(&pending)
        ),
    )
}

async fn say<W: AsyncWriteExt + Unpin>(to: &mut W, reply: &Reply) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    match timeout(PATIENCE, to.write_all(&line)).await {
        Ok(written) => written,
        Err(_) => fail_io("the client does not read"),
    }
}

fn fail_io(what: &'static str) -> std::io::Result<()> {
    Err(std::io::Error::new(std::io::ErrorKind::TimedOut, what))
}

/// Sockets in a runtime directory, in a stable order.
pub fn list(runtime: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(runtime) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return fail(Kind::Denied, format!("the runtime directory {} cannot be read: {e}", runtime.display())),
    };
    let mut found: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "sock")).collect();
    found.sort();
    Ok(found)
}
