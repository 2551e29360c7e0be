//! `smpfs mount`: in the foreground, or by a process of its own that this one waits for.

use super::failure::{Failure, Outcome};
use super::handshake::{Reporter, launch};
use super::logs::{self, Role};
use super::plan::{Plan, serving_args};
use super::secret::{self, Secret};
use super::serve::{Daemon, Signals};
use super::socket::{Listener, path_of};
use super::{client, harden, init, join, mountpoint};
use crate::cli::{Exit, MountArgs};
use crate::error::{Error, Kind, Result};
use std::path::PathBuf;
use std::time::Duration;

/// How long threads get to end after everything is wiped.
const LAST_THREADS: Duration = Duration::from_secs(5);

/// How the C library is to treat freed memory, where the user has not chosen. By default it keeps eight heaps for each core, and
/// each holds on to the large buffers that uploads and reads have freed: more than twice the memory budget. With two heaps that
/// is bounded, and then it is better to keep some of what is freed than to have the kernel clear new pages for every buffer.
const HEAPS: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "2"), ("MALLOC_TRIM_THRESHOLD_", "33554432"), ("MALLOC_MMAP_THRESHOLD_", "33554432")];

/// Those of [`HEAPS`] that the user has not chosen.
fn heaps() -> Vec<(&'static str, &'static str)> {
    HEAPS.into_iter().filter(|(name, _)| std::env::var_os(name).is_none()).collect()
}

/// Runs it.
pub fn run(args: &MountArgs, config_file: Option<PathBuf>) -> Outcome<()> {
    if args.foreground && !args.dry_run {
        with_few_heaps();
    }
    harden::harden()?;
    if args.serve {
        return serve_for_parent(args, config_file);
    }
    let plan = Plan::new(args, config_file.clone())?;
    plan.warnings.iter().for_each(|w| super::warn(w));
    check_mount_point(&plan)?;
    if args.dry_run {
        secret::warnings(args.secret.passphrase_fd, &plan.config)?.iter().for_each(|w| super::warn(w));
        super::print(&format!(
            "Options, store entry and mount point are right: {} on {}. Nothing was mounted; neither the store nor the passphrase was tried.\n",
            plan.store,
            plan.dir.display()
        ));
        return Ok(());
    }
    if secret::will_prompt(args.secret.passphrase_fd, &plan.config) {
        // Nobody should type a passphrase only to hear that there is no volume.
        init::runtime()?.block_on(join::check(&plan))?;
    }
    let (secret, warnings) = secret::obtain(args.secret.passphrase_fd, &plan.config)?;
    warnings.iter().for_each(|w| super::warn(w));
    if args.foreground {
        return serve(&plan, secret, Role::Foreground, || Ok(()));
    }
    start(args, config_file, &secret).map(drop)
}

/// Starts a process that serves, and returns its id when it does.
pub fn start(args: &MountArgs, config_file: Option<PathBuf>, secret: &Secret) -> Outcome<u32> {
    let mut command = std::process::Command::new("/proc/self/exe");
    command.args(serving_args(args, config_file.as_deref()));
    command.envs(heaps());
    launch(command, secret)
}

/// Starts this process anew, same id and same arguments, with [`HEAPS`]: the C library reads it once, before main. Goes on as it
/// is where that is not possible.
fn with_few_heaps() {
    use std::os::unix::process::CommandExt;
    let mut words = std::env::args_os();
    let missing = heaps();
    if missing.is_empty() {
        return;
    }
    if let (Ok(exe), Some(name)) = (std::env::current_exe(), words.next()) {
        let e = std::process::Command::new(exe).arg0(name).args(words).envs(missing).exec();
        super::warn(&format!("memory may exceed the budget: {e}"));
    }
}

fn check_mount_point(plan: &Plan) -> Outcome<()> {
    if client::connect(&path_of(&plan.config.runtime_dir, &plan.dir))?.is_some() {
        let dir = plan.dir.display();
        return Err(Failure::new(
            Exit::Busy,
            format!(
                "{dir} is mounted already, or its uploads go on: see `smpfs status {dir}`. `smpfs unmount {dir}` waits for uploads, and with \
                 --stop ends them and keeps what is left for the next mount"
            ),
        ));
    }
    Ok(mountpoint::check(&plan.dir, &plan.config)?)
}

/// The process that serves, started by [`start`].
fn serve_for_parent(args: &MountArgs, config_file: Option<PathBuf>) -> Outcome<()> {
    let (reporter, secret) = Reporter::begin()?;
    let mut waiting = Some(reporter);
    let ended = Plan::new(args, config_file).map_err(Failure::from).and_then(|plan| {
        let ready = || waiting.take().map_or(Ok(()), Reporter::ready);
        serve(&plan, secret, Role::Daemon, ready)
    });
    if let (Err(failure), Some(reporter)) = (&ended, waiting) {
        reporter.failed(failure);
    }
    ended
}

fn serve(plan: &Plan, secret: Secret, role: Role, ready: impl FnOnce() -> Result<()>) -> Outcome<()> {
    for dir in [&plan.config.state_dir, &plan.config.runtime_dir] {
        mountpoint::private_dir(dir)?;
    }
    if plan.config.cache_size.0 > 0 {
        mountpoint::private_dir(&plan.config.cache_dir)?;
    }
    let log = logs::start(&plan.config, role, &plan.log_file())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("smpfs")
        .build()
        .map_err(|e| Error::with_source(Kind::Unavailable, "no threads to serve with", e))?;
    let ended = runtime.block_on(async {
        let mut signals = Signals::catch()?;
        let listener = Listener::bind(&plan.config.runtime_dir, &plan.dir)?;
        let mounted = tokio::select! {
            mounted = join::mount(plan, secret) => mounted?,
            () = signals.end() => return Err(Failure::new(Exit::Other, "interrupted before it was mounted")),
        };
        Daemon { mounted, listener, signals, log, unmount_timeout: plan.config.unmount_timeout }.run(ready).await
    });
    runtime.shutdown_timeout(LAST_THREADS);
    ended
}
