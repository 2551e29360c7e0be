//! Threads for ciphers and for the disk cache, apart from those that serve requests: as many at once as there are cores.

use crate::error::{Error, Kind, Result};
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// Insertions into the disk cache that may wait at once; more are dropped.
const BACKGROUND: usize = 64;

/// A bounded share of the runtime's blocking threads.
pub(super) struct Pool {
    runtime: Handle,
    cpu: Arc<Semaphore>,
    background: Arc<Semaphore>,
    cores: usize,
}

impl Pool {
    pub(super) fn new(runtime: Handle) -> Pool {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Pool { runtime, cpu: Arc::new(Semaphore::new(cores)), background: Arc::new(Semaphore::new(BACKGROUND)), cores }
    }

    /// How many pieces of work run at once.
    pub(super) fn cores(&self) -> usize {
        self.cores
    }

    /// Runs `work` on a thread of its own and waits for it. A panic in it is an error of kind `Bug`.
    pub(super) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let permit = self.cpu.clone().acquire_owned().await;
        let task = self.runtime.spawn_blocking(move || {
            // The permit goes with the work: it may outlive a caller that gave up.
            let _permit = permit;
            work()
        });
        task.await.map_err(|e| Error::with_source(Kind::Bug, "work on stored bytes panicked", e))
    }

    /// Runs `work` some time, or not at all when too much waits already.
    pub(super) fn try_background(&self, work: impl FnOnce() + Send + 'static) {
        if let Ok(permit) = self.background.clone().try_acquire_owned() {
            self.runtime.spawn_blocking(move || {
                let _permit = permit;
                work();
            });
        }
    }
}
