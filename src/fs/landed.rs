//! What the spool still holds of versions that are in the bucket while no index names them.

use crate::write::layer::Layer;
use crate::write::spool::{DestroyLogs, Spool, SpoolLog};
use std::sync::Arc;

/// A layer whose version is in the bucket and not in the index yet. Dropped, it destroys its logs.
pub(super) struct Landed {
    /// For as long as its logs are there.
    pub(super) layer: Option<Arc<Layer>>,
    pub(super) logs: DestroyLogs,
    /// Logs of what lies above: they must say on what before what they lay on goes.
    above: Vec<Arc<SpoolLog>>,
}

impl Drop for Landed {
    fn drop(&mut self) {
        if let Some(e) = self.above.iter().filter(|_| !self.logs.0.is_empty()).find_map(|log| log.sync_above().err()) {
            tracing::warn!("a spool log stays until the next mount: {e}");
            self.logs.0.clear();
        }
    }
}

impl Landed {
    pub(super) fn new(layer: Option<Arc<Layer>>, above: &Layer) -> Landed {
        let logs = layer.iter().flat_map(|l| l.logs().iter().cloned()).collect();
        Landed { layer, logs: DestroyLogs(logs), above: above.logs().to_vec() }
    }
}

/// Notes in a layer's log that its file was unlinked here.
pub(super) fn note_gone(layer: &Layer, spool: &Spool) {
    if let Err(e) = layer.note_gone(spool) {
        tracing::debug!("the spool could not note that a file was unlinked: {e}");
    }
}
