//! An unlocked volume becomes a mount: local state, caches, filesystem, control tree, kernel.

use super::join::{Unlocked, mount_options, volume_dir};
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
use crate::read::budget::MIN_BUDGET;
use crate::read::cache::LowerCache;
use crate::read::diskcache::DiskCache;
use crate::read::{OnUnavailable, ReadOptions, Reader};
use crate::wipe::{self, Pattern, Run};
use std::sync::Arc;

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
        umask: config.umask.map(|o| o.0 as u16),
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

/// Mounts an unlocked volume.
pub async fn assemble(plan: &Plan, unlocked: Unlocked) -> Result<Arc<dyn Mounted>> {
    let Unlocked { stack, volume } = unlocked;
    let config = &plan.config;
    let env = Env::real();
    let caps = stack.store.caps();
    let read_only = config.read_only || caps.max_put == 0;
    let id = volume.info.params.volume_id;
    let state: Arc<dyn Disk> = Arc::new(RealDisk::open(&volume_dir(config, id))?);
    let lock = state.lock("lock").map_err(|e| e.context("this volume is mounted already by this user on this machine"))?;
    let wrap = volume.keys.local_log().clone();
    let audit = Audit::open(state.clone(), "audit", id, &wrap, &env, audit::Limits::default())?;
    let quarantine = Quarantine::open(state.clone(), "quarantine", id, &wrap, &env, audit::QuarantineLimits::default())?;
    let reporter = Arc::new(Reporter::new(audit, quarantine, env.clone()));
    let known = Arc::new(volume.known(state.clone(), "known", &env)?);
    let cache = open_cache(config, volume.info.params.geometry.chunk_size(), &env);
    let (read_budget, upload_memory) = shares(config.memory_budget.0);
    let reader = Reader::new(
        stack.store.clone(),
        volume.info.params,
        volume.keys.clone(),
        reporter.clone(),
        cache.as_ref().map(|(c, _)| c.clone() as Arc<dyn LowerCache>),
        read_options(config, read_budget),
    )?;
    let parts = FsParts {
        store: stack.store.clone(),
        keys: volume.keys.clone(),
        params: volume.info.params,
        mode: volume.info.mode,
        root: volume.root(),
        known: known.clone(),
        reader: reader.clone(),
        disk: state.clone(),
        spool_max: config.spool_size.0,
        upload_memory,
        sink: reporter.clone(),
        env: env.clone(),
        options: fs::Options {
            root_time: crate::types::Time { sec: volume.info.created, nsec: 0 },
            ..fs_options(config, read_only)
        },
    };
    let (fs, recovered) = Fs::open(parts).await?;
    if recovered != Recovered::default() {
        tracing::info!(
            "taken over from an earlier mount: {} names and {} files to upload, {} logs that cannot be read",
            recovered.names,
            recovered.files,
            recovered.unreadable
        );
    }
    // The root must be readable before anybody is told that the mount serves.
    fs.check_root().await?;
    reporter.event(Event::Mount { read_only, version: env!("CARGO_PKG_VERSION").to_owned() });
    let facts = Facts {
        info: volume.info.clone(),
        store: stack.store.url(),
        mount_point: plan.dir.display().to_string(),
        config: config.clone(),
    };
    let disk_cache = cache.as_ref().map(|(c, _)| c.clone());
    let teller =
        Arc::new(Teller { fs: fs.clone(), reader, stack, reporter, facts, cache: disk_cache, since: std::time::Instant::now() });
    let me = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let overlay = Control::new(fs, teller.clone(), me.0, me.1, env.clock.now());
    let (dir, options) = (plan.dir.clone(), MountOptions { read_only, ..mount_options(plan) });
    let runtime = tokio::runtime::Handle::current();
    let session = tokio::task::spawn_blocking(move || crate::fuse::mount(Arc::new(overlay), &dir, &options, runtime));
    let session = session.await.map_err(|e| Error::with_source(Kind::Bug, "mounting stopped", e))??;
    let local = Local { lock, known, cache };
    Ok(Arc::new(Live { session: Arc::new(session), teller, local: parking_lot::Mutex::new(Some(local)) }))
}
