//! Where it all is joined: store, keys, filesystem, control tree and kernel become one mount. Kept thin on purpose.

use super::mounted::Mounted;
use super::plan::Plan;
use super::secret::Secret;
use crate::config::Config;
use crate::error::{Kind, Result, fail};
use crate::fuse::MountOptions;
use crate::store::{self, Stack, StoreSpec};
use crate::types::{Mode, Suite};
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// A volume to be made.
pub struct NewVolume {
    /// Where.
    pub store: StoreSpec,
    /// What the bucket may show.
    pub mode: Mode,
    /// Cipher of the contents.
    pub suite: Suite,
    /// Name for people.
    pub name: String,
    /// Argon2id: memory in MiB, passes, lanes.
    pub kdf: (u32, u32, u32),
    /// Passphrase.
    pub passphrase: Zeroizing<Vec<u8>>,
}

/// A volume that was made.
pub struct Created {
    /// URL for people.
    pub store: String,
    /// Shown once.
    pub recovery_code: Zeroizing<String>,
}

/// Opens the store with the settings' limits. `create` makes a missing directory bucket.
pub async fn open_store(spec: &StoreSpec, config: &Config, create: bool) -> Result<Stack> {
    let limit = |bytes: u64| (bytes > 0).then_some(bytes);
    let options = store::Options {
        create,
        connect_timeout: config.connect_timeout,
        operation_timeout: config.operation_timeout,
        tries: config.retries,
        backoff_base: config.retry_base,
        backoff_cap: config.retry_cap,
        max_requests: config.request_concurrency as usize,
        up_limit: limit(config.upload_limit.0),
        down_limit: limit(config.download_limit.0),
        ..store::Options::default()
    };
    store::open(spec, &options).await
}

/// How the kernel mounts it.
pub fn mount_options(plan: &Plan) -> MountOptions {
    let config = &plan.config;
    // A request outlives the store's own limit a little, so that its error is the one that is seen.
    let deadline = match config.on_unavailable {
        crate::config::OnUnavailable::Fail => config.operation_timeout + Duration::from_secs(5),
        crate::config::OnUnavailable::Wait => Duration::from_secs(365 * 86_400),
    };
    MountOptions {
        source: plan.store.to_string(),
        read_only: config.read_only,
        allow_other: config.allow_other,
        suid: plan.kernel.suid,
        dev: plan.kernel.dev,
        no_exec: !plan.kernel.exec,
        threads: config.fuse_threads as usize,
        deadline,
        ..MountOptions::default()
    }
}

/// Makes a volume in an empty bucket or prefix.
pub async fn create(new: NewVolume, config: &Config) -> Result<Created> {
    let stack = open_store(&new.store, config, true).await?;
    fail(Kind::Unsupported, format!("{}: the keyring is not joined yet", stack.store.url()))
}

/// Opens the store, unlocks the volume, mounts it.
pub async fn mount(plan: &Plan, secret: Secret) -> Result<Arc<dyn Mounted>> {
    let stack = open_store(&plan.store, &plan.config, false).await?;
    let _ = (mount_options(plan), secret);
    fail(Kind::Unsupported, format!("{}: the filesystem is not joined yet", stack.store.url()))
}
