//! What the daemon needs of a mount: the seam between the process (signals, sockets, systemd) and the filesystem.

use crate::error::Result;
use crate::fs::status::Status;
use async_trait::async_trait;

/// A volume that is mounted and served by this process.
///
/// ```text
///  serving ──detach──> detached ──drain──> all in the bucket ──wipe──> process ends
///     └── somebody unmounts ──┘
/// ```
#[async_trait]
pub trait Mounted: Send + Sync + 'static {
    /// How it is doing. Never waits for the store or the kernel.
    fn status(&self) -> Status;
    /// Forgets what is cached in memory and on disk, and asks the kernel to do the same. Nothing that is not uploaded is lost.
    fn drop_caches(&self);
    /// Takes it out of the directory tree. `Busy` when something is open in it; with `lazy` it is detached all the same and ends
    /// when the last user closes. Fine when it is detached already.
    async fn detach(&self, lazy: bool) -> Result<()>;
    /// Returns when the kernel has let go of it, whoever unmounted it.
    async fn detached(&self);
    /// Uploads everything that is acknowledged. Temporary errors of the store (`store::temporary`) may come back: it is called again.
    async fn drain(&self) -> Result<()>;
    /// Ends the kernel session if one is left, destroys the keys, wipes caches, and lets go of local locks. With `keep_journal`
    /// what is not uploaded stays, sealed, for the next mount. Called once, last.
    async fn wipe(&self, keep_journal: bool) -> Result<()>;
}
