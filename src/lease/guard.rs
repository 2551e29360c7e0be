//! Lets nothing write to the bucket without the lease.

use super::Keeper;
use crate::error::{Error, Result};
use crate::store::Store;
use crate::store::layers::{Around, Call, Op, Reply, Wrap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// How often a request under way looks whether its lease still holds: timers do not count while the machine sleeps, the lease does.
const LOOK: Duration = Duration::from_secs(1);

/// The layer: `Unavailable` while the lease has lapsed, `ReadOnly` once it is lost. A request under way is given up in that moment.
struct Guard(Arc<Keeper>);

impl Around for Guard {
    async fn around<'a, T: Reply>(&'a self, _: &'a dyn Store, op: Op<'a>, call: Call<'a, T>) -> Result<T> {
        if !op.verb.writes() {
            return call().await;
        }
        self.0.left()?;
        tokio::select! {
            done = call() => done,
            over = self.0.over() => Err(over),
        }
    }
}

impl Keeper {
    /// The store, for whoever writes under this lease.
    pub fn guard(self: &Arc<Self>, store: Arc<dyn Store>) -> Arc<dyn Store> {
        Arc::new(Wrap::new(store, Guard(self.clone())))
    }

    /// Returns when we may no longer write, with the reason.
    async fn over(&self) -> Error {
        loop {
            match self.left() {
                Err(e) => return e,
                Ok(left) => tokio::select! {
                    () = sleep(left.min(LOOK)) => {}
                    () = self.ended() => {}
                },
            }
        }
    }
}
