//! Where it all is joined: store, keys, filesystem, control tree and kernel become one mount. Kept thin on purpose.

use super::mounted::Mounted;
use super::plan::Plan;
use super::secret::Secret;
use crate::audit;
use crate::config::{Config, OnUnavailable};
use crate::disk::RealDisk;
use crate::env::Env;
use crate::error::{Kind, Result, fail};
use crate::fuse::MountOptions;
use crate::keyring::{self, ConfigPins, InitParams, RecoveryCode, Volume, VolumeInfo};
use crate::store::{self, Stack, StoreSpec};
use crate::types::VolumeId;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// A volume that was made.
pub struct Created {
    /// URL for people.
    pub store: String,
    /// Shown once.
    pub recovery_code: Zeroizing<String>,
    /// Sentences for people.
    pub warnings: Vec<String>,
}

/// An unlocked volume and the store it lies in.
pub struct Unlocked {
    /// The store with its layers.
    pub stack: Stack,
    /// Keys.
    pub volume: Volume,
    /// What the store does not do: a sentence each.
    pub notes: Vec<String>,
}

/// Whether somebody should act on what a store does not do. What smpfs works around is for the log and the status.
fn wants_attention(stack: &Stack) -> bool {
    let caps = stack.store.caps();
    !caps.write || crate::lease::needed(&caps)
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
        OnUnavailable::Fail => config.operation_timeout + Duration::from_secs(5),
        OnUnavailable::Wait => Duration::from_secs(365 * 86_400),
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

/// What this machine remembers of volumes.
fn pins(config: &Config) -> Result<ConfigPins> {
    Ok(ConfigPins::new(Arc::new(RealDisk::open(&config.state_dir)?)))
}

/// Makes a volume in an empty bucket or prefix.
pub async fn create(spec: &StoreSpec, params: InitParams, passphrase: Zeroizing<Vec<u8>>, config: &Config) -> Result<Created> {
    let stack = open_store(spec, config, true).await?;
    let mut warnings = stack.probe().await?;
    let made = keyring::init(&*stack.store, params, passphrase, Some(&pins(config)?), &Env::real()).await?;
    warnings.extend(made.warnings);
    Ok(Created { store: stack.store.url(), recovery_code: made.recovery.text(), warnings })
}

/// Whether there is a volume at all, and the one that was there before: asked before a person is asked for a passphrase.
pub async fn check(plan: &Plan) -> Result<()> {
    look(&plan.store, &plan.config).await.map(drop)
}

/// The store and the public side of its volume, checked against what this machine remembers.
pub async fn look(spec: &StoreSpec, config: &Config) -> Result<(Stack, VolumeInfo)> {
    let stack = open_store(spec, config, false).await?;
    let (info, _) = keyring::check_config(&*stack.store, Some(&pins(config)?)).await?;
    Ok((stack, info))
}

/// Opens the store, asks it what it can do, and unlocks the volume.
pub async fn unlock(spec: &StoreSpec, config: &Config, secret: Secret) -> Result<Unlocked> {
    let (stack, info) = look(spec, config).await?;
    let volume = match keyring::unlock(&*stack.store, key(secret)?, Some(&pins(config)?)).await {
        Err(e) if e.kind() == Kind::Locked => {
            note_failure(&volume_dir(config, info.params.volume_id));
            return Err(e);
        }
        done => done?,
    };
    let notes = stack.probe().await?;
    for note in &notes {
        if wants_attention(&stack) { tracing::warn!("{note}") } else { tracing::info!("{note}") }
    }
    Ok(Unlocked { stack, volume, notes })
}

/// Where a volume's local state lies.
pub fn volume_dir(config: &Config, id: VolumeId) -> PathBuf {
    volumes_dir(&config.state_dir).join(id.hex())
}

/// Where the local state of all volumes lies.
pub fn volumes_dir(state: &Path) -> PathBuf {
    state.join("volumes")
}

/// Notes a wrong secret where the audit log of the volume finds it at the next mount: its key is not to be had now.
fn note_failure(dir: &Path) {
    let noted = RealDisk::open(dir).and_then(|disk| audit::note_failed_unlock(&disk, "audit", Env::real().clock.now()));
    if let Err(e) = noted {
        tracing::warn!("the failed unlock could not be noted: {e}");
    }
}

/// A passphrase, or a recovery code that was given in its place. Nobody's passphrase looks like a code by accident: the code has
/// check digits.
fn key(secret: Secret) -> Result<keyring::Secret> {
    let code = std::str::from_utf8(&secret.bytes).ok().map(RecoveryCode::parse);
    match code {
        Some(Ok(code)) => Ok(keyring::Secret::Recovery(code)),
        // Typed at the prompt it would be a wrong passphrase, and the code of another volume is a wrong one: so is this.
        Some(Err(e)) if secret.recovery_code => fail(Kind::Locked, e.message().to_owned()),
        None if secret.recovery_code => fail(Kind::Locked, "a recovery code is plain text"),
        _ => Ok(keyring::Secret::Passphrase(secret.bytes)),
    }
}

/// Opens the store, unlocks the volume, mounts it.
pub async fn mount(plan: &Plan, secret: Secret) -> Result<Arc<dyn Mounted>> {
    super::assemble::assemble(plan, unlock(&plan.store, &plan.config, secret).await?).await
}
