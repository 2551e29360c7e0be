//! An unlocked volume becomes a mount: local state, caches, filesystem, control tree, kernel.

use super::join::{Unlocked, mount_options, volume_dir};
use super::lease;
use super::left;
use super::live::{Facts, Live, Local, Reporter, Teller};
use super::mounted::Mounted;
use super::plan::Plan;
use crate::audit::{self, Audit, Event, Quarantine};
use crate::config::Config;
use crate::control::Control;
use crate::disk::{Disk, RealDisk};
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::fs::{self, Fs, FsParts, Recovered};
use crate::fuse::MountOptions;
use crate::keyring::Volume;
use crate::lease::Keeper;
use crate::read::budget::MIN_BUDGET;
use crate::read::cache::LowerCache;
use crate::read::diskcache::DiskCache;
use crate::read::{OnUnavailable, ReadOptions, Reader};
use crate::types::Time;
use crate::wipe::{self, Pattern, Run};
use std::sync::Arc;
use std::time::Instant;

/// Folder of the cache directory in which mounts have their own.
const CACHE_FOLDER: &str = "chunks";

/// What the memory budget is divided into.
fn shares(budget: u64) -> (u64, u64) {
    let uploads = (budget / 4).clamp(16 << 20, 128 << 20);
    (budget.saturating_sub(uploads).max(MIN_BUDGET), uploads)
}

fn read_options(config: &Config, budget: u64) -> ReadOptions {
    ReadOptions {
        budget,
        prefetch_max: config.prefetch_window.0,
        deadline: config.operation_timeout,
        on_unavailable: match config.on_unavailable {
            crate::config::OnUnavailable::Fail => OnUnavailable::Fail,
            crate::config::OnUnavailable::Wait => OnUnavailable::Wait,
        },
        verify_full: config.verify == crate::config::Verify::Full,
        ..ReadOptions::default()
    }
}

fn fs_options(config: &Config, read_only: bool) -> fs::Options {
    fs::Options {
        read_only,
        uid: config.uid,
        gid: config.gid,
        umask: config.umask.map(|o| o.0),
        root_owner: (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()),
        attr_ttl: config.attribute_ttl.min(config.metadata_ttl),
        dir_ttl: config.metadata_ttl,
        fsync: match config.fsync {
            crate::config::Fsync::Remote => fs::FsyncMode::Remote,
            crate::config::Fsync::Local => fs::FsyncMode::Local,
        },
        deadline: config.operation_timeout,
        uploads: config.upload_concurrency.max(1) as usize,
        retry: (config.retry_base, config.retry_cap),
        host: lease::host(),
        ..fs::Options::default()
    }
}

/// The sealed cache in a directory of its own; what killed mounts left is wiped first. A cache that cannot be had is no reason
/// not to mount.
fn open_cache(config: &Config, chunk: u64, env: &Env) -> Option<(Arc<DiskCache>, Run)> {
    if config.cache_size.0 == 0 {
        return None;
    }
    let made = RealDisk::open(&config.cache_dir).map(|d| Arc::new(d) as Arc<dyn Disk>).and_then(|disk| {
        let (found, wiped) = wipe::leftovers(&*disk, CACHE_FOLDER, &Pattern::Zeros);
        if found > 0 {
            tracing::info!("wiped {} files that {found} killed mounts left in the cache", wiped.files);
        }
        let run = Run::claim(disk.clone(), CACHE_FOLDER, env)?;
        let path = format!("{}/chunks", run.dir());
        Ok((Arc::new(DiskCache::create(disk, &path, config.cache_size.0, chunk as usize, env)?), run))
    });
    made.map_err(|e| tracing::warn!("mounting without a disk cache: {e}")).ok()
}

/// Local state of a volume, opened and locked, but for its cache.
struct Opened {
    disk: Arc<dyn Disk>,
    local: Local,
    reporter: Arc<Reporter>,
}

fn open_local(config: &Config, volume: &Volume, env: &Env) -> Result<Opened> {
    let id = volume.info.params.volume_id;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(&volume_dir(config, id))?);
    let lock = disk.lock("lock").map_err(|e| e.context("this volume is mounted already by this user on this machine"))?;
    let wrap = volume.keys.local_log().clone();
    let audit = Audit::open(disk.clone(), "audit", id, &wrap, env, audit::Limits::default())?;
    let quarantine = Quarantine::open(disk.clone(), "quarantine", id, &wrap, env, audit::QuarantineLimits::default())?;
    let reporter = Arc::new(Reporter::new(audit, quarantine, env.clone()));
    let known = Arc::new(volume.known(disk.clone(), "known", env)?);
    Ok(Opened { disk, local: Local { lock, known, cache: None }, reporter })
}

/// The filesystem over it, with its root read: a mount whose root cannot be read does not begin.
async fn open_fs(
    config: &Config,
    unlocked: &Unlocked,
    o: &Opened,
    env: &Env,
    mut options: fs::Options,
) -> Result<(Arc<Fs>, Reader)> {
    let (volume, store) = (&unlocked.volume, &unlocked.stack.store);
    let (read_budget, upload_memory) = shares(config.memory_budget.0);
    let lower = o.local.cache.as_ref().map(|(c, _)| c.clone() as Arc<dyn LowerCache>);
    let (params, keys) = (volume.info.params, volume.keys.clone());
    let reading = read_options(config, read_budget);
    let reader = Reader::new(store.clone(), params, keys.clone(), o.reporter.clone(), lower, reading)?;
    options.root_time = Time { sec: volume.info.created, nsec: 0 };
    let parts = FsParts {
        store: store.clone(),
        keys,
        params,
        mode: volume.info.mode,
        root: volume.root(),
        known: o.local.known.clone(),
        reader: reader.clone(),
        disk: o.disk.clone(),
        spool_max: config.spool_size.0,
        upload_memory,
        sink: o.reporter.clone(),
        env: env.clone(),
        options,
    };
    let (fs, found) = Fs::open(parts).await?;
    if found != Recovered::default() {
        let Recovered { names, files, damaged, unreadable } = found;
        // A warning, so that it is seen on the terminal: these are the changes that were missing in the bucket.
        if names + files > 0 {
            tracing::warn!("{}", left::taken_over(files, names));
        }
        if damaged + unreadable > 0 {
            tracing::error!("{damaged} local logs are damaged and {unreadable} unreadable: some of what was written is lost");
        }
    }
    fs.check_root().await?;
    Ok((fs, reader))
}

/// Mounts an unlocked volume.
pub async fn assemble(plan: &Plan, mut unlocked: Unlocked) -> Result<Arc<dyn Mounted>> {
    let config = &plan.config;
    let env = Env::real();
    let read_only = config.read_only || !unlocked.stack.store.caps().write;
    let mut opened = open_local(config, &unlocked.volume, &env)?;
    // Before anything is read: what is known of the volume from now on no other machine changes.
    let keeper = match read_only {
        true => None,
        false => lease::take(&mut unlocked, &*opened.disk, &env, plan.take_over, Some(opened.reporter.clone())).await?,
    };
    opened.local.cache = open_cache(config, unlocked.volume.info.params.geometry.chunk_size(), &env);
    let options = fs::Options { lease: keeper.clone(), ..fs_options(config, read_only) };
    let live = start(plan, unlocked, opened, &env, options).await;
    if live.is_err() {
        lease::release(keeper.as_ref()).await;
    }
    live
}

/// The same with everything that it needs in hand.
async fn start(plan: &Plan, unlocked: Unlocked, opened: Opened, env: &Env, options: fs::Options) -> Result<Arc<dyn Mounted>> {
    let config = &plan.config;
    let (read_only, keeper): (bool, Option<Arc<Keeper>>) = (options.read_only, options.lease.clone());
    let (fs, reader) = open_fs(config, &unlocked, &opened, env, options).await?;
    let Opened { local, reporter, .. } = opened;
    reporter.event(Event::Mount { read_only, version: env!("CARGO_PKG_VERSION").to_owned() });
    let Unlocked { stack, volume, notes } = unlocked;
    let facts = Facts {
        info: volume.info,
        store: stack.store.url(),
        mount_point: plan.dir.display().to_string(),
        config: config.clone(),
    };
    let cache = local.cache.as_ref().map(|(c, _)| c.clone());
    let teller = Arc::new(Teller { fs: fs.clone(), reader, stack, reporter, facts, notes, cache, since: Instant::now() });
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let overlay = Control::new(fs, teller.clone(), uid, gid, env.clock.now());
    let (dir, options) = (plan.dir.clone(), MountOptions { read_only, ..mount_options(plan) });
    let runtime = tokio::runtime::Handle::current();
    let session = tokio::task::spawn_blocking(move || crate::fuse::mount(Arc::new(overlay), &dir, &options, runtime));
    let session = session.await.map_err(|e| Error::with_source(Kind::Bug, "mounting stopped", e))??;
    Ok(Arc::new(Live { session: Arc::new(session), teller, keeper, local: parking_lot::Mutex::new(Some(local)) }))
}
