//! `smpfs scrub` and `smpfs recover`: a whole volume looked through, and mended as far as it can be.

use super::failure::{Failure, Outcome};
use super::join::{self, Unlocked};
use super::lease;
use super::logs::{self, Role};
use super::scrub_state::State;
use super::status::{count, size};
use super::{harden, init, plan, secret, settings};
use crate::audit::rfc3339;
use crate::cli::{Exit, RecoverArgs, ScrubArgs, VolumeArgs};
use crate::config::{Config, Value};
use crate::crypto::sign::VerifyingKey;
use crate::env::Env;
use crate::error::{Error, Kind, Result, fail};
use crate::lease::Keeper;
use crate::scrub::{self, Find, Gc, Progress, PublicParts, Repaired, Report, Root, Scrub, Seen, Waiting, What};
use crate::store::StoreSpec;
use crate::types::Time;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How progress is shown.
const BYTES: &str = "verifying  {bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {msg}";
/// How it is shown while no contents are known.
const NO_BYTES: &str = "verifying  {msg}";
/// Without a terminal, a line of progress this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What both commands begin with.
struct Begun {
    config: Config,
    store: StoreSpec,
    runtime: tokio::runtime::Runtime,
}

fn begin(args: &VolumeArgs, config_file: Option<PathBuf>) -> Outcome<Begun> {
    harden::harden()?;
    let mut entries = Vec::new();
    for pairs in [args.secret.files.pairs(), args.store_flags.pairs(), args.common.pairs()] {
        settings::add_flags(&mut entries, pairs)?;
    }
    let loaded = settings::load(config_file, entries, Some(&args.store))?;
    settings::stray_variables().iter().for_each(|w| super::warn(w));
    let store = plan::store(loaded.store, &loaded.config)?;
    logs::start(&loaded.config, Role::Command, Path::new("smpfs.log"))?;
    Ok(Begun { config: loaded.config, store, runtime: init::runtime()? })
}

impl Begun {
    fn unlock(&self, fd: Option<u32>) -> Outcome<Unlocked> {
        // A store without a volume is told before anybody is asked for a passphrase.
        self.runtime.block_on(join::look(&self.store, &self.config))?;
        let (secret, warnings) = secret::obtain(fd, &self.config)?;
        warnings.iter().for_each(|w| super::warn(w));
        Ok(self.runtime.block_on(join::unlock(&self.store, &self.config, secret))?)
    }

    /// Where the store takes one writer at a time: the lease, before anything is read that is to be changed.
    fn lease(&self, unlocked: &mut Unlocked, state: &State) -> Outcome<Option<Arc<Keeper>>> {
        if !state.ours && crate::lease::needed(&unlocked.stack.store.caps()) {
            let what = "the volume is mounted on this machine, and its store takes one writer at a time: unmount it first";
            return Err(Failure::new(Exit::Busy, what));
        }
        Ok(self.runtime.block_on(lease::take(unlocked, state.disk(), &Env::real(), false, None))?)
    }

    fn scrub(&self, unlocked: &Unlocked, state: &State, options: scrub::Options) -> Result<Scrub> {
        let volume = &unlocked.volume;
        let _in = self.runtime.enter();
        Scrub::new(scrub::Parts {
            store: unlocked.stack.store.clone(),
            keys: volume.keys.clone(),
            params: volume.info.params,
            mode: volume.info.mode,
            roots: Root::all(volume.root(), &volume.keys),
            memory: state.memory.clone(),
            listener: state.told.clone(),
            env: Env::real(),
            options,
        })
    }

    fn options(&self, args: &VolumeArgs, quick: bool) -> Result<scrub::Options> {
        let grace = Duration::parse(&args.grace).map_err(|e| Error::new(Kind::Invalid, format!("--grace: {e}")))?;
        if grace < scrub::MIN_GRACE {
            return fail(Kind::Invalid, "--grace: an hour or more, so that objects on their way are left alone");
        }
        Ok(scrub::Options {
            jobs: args.jobs.into(),
            memory: self.config.memory_budget.0.max(64 << 20),
            deadline: self.config.operation_timeout,
            grace,
            quick,
            owner: (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()),
            ..scrub::Options::default()
        })
    }
}

/// Runs `smpfs scrub`.
pub fn run(args: &ScrubArgs, config_file: Option<PathBuf>) -> Outcome<()> {
    let begun = begin(&args.volume, config_file)?;
    if args.keyless {
        return keyless(&begun, args);
    }
    let options = begun.options(&args.volume, args.quick)?;
    let mut unlocked = begun.unlock(args.volume.secret.passphrase_fd)?;
    let state = State::open(&begun.config, &unlocked, &Env::real())?;
    if !state.ours {
        super::warn(
            "the volume is mounted here, and its mount holds what this machine remembers: whether an index or a file was set back to an \
             older state is not checked now, and nothing is noted in audit log and quarantine. Run it again after `smpfs unmount` for that",
        );
    }
    if args.gc && state.has_unsent()? {
        let what =
            "an earlier mount on this machine left changes that are not in the bucket: mount the volume and unmount it first";
        return Err(Failure::new(Exit::Pending, what));
    }
    let changes = args.repair || (args.gc && !args.dry_run);
    let lease = if changes { begun.lease(&mut unlocked, &state)? } else { None };
    let scrub = begun.scrub(&unlocked, &state, options)?;
    let mut done = Done::default();
    let outcome = begun.runtime.block_on(whole(&scrub, args, &state, &mut done));
    begun.runtime.block_on(lease::release(lease.as_ref()));
    let closed = state.close();
    let report = scrub.report();
    tell(&report, &done, args)?;
    outcome?;
    closed?;
    verdict(&report, &done, args.dry_run)
}

/// What was done besides looking.
#[derive(Default)]
pub(super) struct Done {
    pub(super) gc: Option<Gc>,
    pub(super) repaired: Option<Repaired>,
}

async fn whole(scrub: &Scrub, args: &ScrubArgs, state: &State, done: &mut Done) -> Result<()> {
    let mut seen: Seen = watched(scrub.check(), || scrub.progress(), args.volume.quiet).await?;
    if args.repair {
        let repaired = watched(scrub.repair(&mut seen), || scrub.progress(), true).await?;
        state.note(format!("scrub --repair: {} linked, {} advanced", repaired.linked.len(), repaired.advanced.len()));
        done.repaired = Some(repaired);
    }
    if args.gc {
        let lost = seen.returnable();
        if !args.dry_run && lost > 0 {
            let (files, them) = (count(lost, "file"), if lost == 1 { "it" } else { "them" });
            super::warn(&format!(
                "{files} that no index names will be deleted for good; `smpfs recover` could link {them} back. Ctrl-C within the next seconds stops it"
            ));
        }
        let gc = watched(scrub.gc(&mut seen, args.dry_run), || scrub.progress(), true).await?;
        if !args.dry_run {
            state.note(format!("scrub --gc: {} objects and {} uploads deleted", gc.objects.len(), gc.uploads.len()));
        }
        done.gc = Some(gc);
    }
    Ok(())
}

/// What can be checked with public values.
fn keyless(begun: &Begun, args: &ScrubArgs) -> Outcome<()> {
    let (stack, info) = begun.runtime.block_on(join::look(&begun.store, &begun.config))?;
    let owner = VerifyingKey::from_bytes(&info.owner)?;
    let parts = PublicParts { store: stack.store.clone(), params: info.params, owner, jobs: args.volume.jobs.into() };
    let last = parking_lot::Mutex::new(Progress::default());
    let work = scrub::check_public(&parts, |p| *last.lock() = p);
    let report = begun.runtime.block_on(watched(work, || *last.lock(), args.volume.quiet))?;
    tell(&report, &Done::default(), args)?;
    verdict(&report, &Done::default(), false)
}

/// Runs `smpfs recover`.
pub fn recover(args: &RecoverArgs, config_file: Option<PathBuf>) -> Outcome<()> {
    let begun = begin(&args.volume, config_file)?;
    let options = begun.options(&args.volume, true)?;
    let grace = options.grace;
    let mut unlocked = begun.unlock(args.volume.secret.passphrase_fd)?;
    let state = State::open(&begun.config, &unlocked, &Env::real())?;
    if !state.ours {
        return Err(Failure::new(Exit::Busy, "the volume is mounted on this machine: unmount it first, here and elsewhere"));
    }
    let lease = if args.dry_run { None } else { begun.lease(&mut unlocked, &state)? };
    let scrub = begun.scrub(&unlocked, &state, options)?;
    let done = recover_with(&begun, args, &scrub, &state, grace);
    begun.runtime.block_on(lease::release(lease.as_ref()));
    done
}

fn recover_with(begun: &Begun, args: &RecoverArgs, scrub: &Scrub, state: &State, grace: std::time::Duration) -> Outcome<()> {
    let outlook = begun.runtime.block_on(watched(scrub.outlook(), || scrub.progress(), true))?;
    let waiting = waits(outlook.waiting(), grace, &args.volume.grace);
    if outlook.is_empty() {
        let rest = if waiting.is_empty() { "no file is left over" } else { "no file is left over that is old enough" };
        super::print(&format!("Nothing to recover: every index can be read, and {rest}.\n{waiting}"));
        return Ok(state.close()?);
    }
    let lines: Vec<String> = outlook.lines().iter().map(|l| shown(l)).collect();
    super::print(&format!("{}\n{waiting}", lines.join("\n")));
    if args.dry_run {
        return Ok(state.close()?);
    }
    if !args.yes && !agreed()? {
        state.close()?;
        return Err(Failure::new(Exit::Other, "nothing was changed"));
    }
    let done = begun.runtime.block_on(watched(scrub.recover(outlook), || scrub.progress(), true))?;
    let files = done.found + (done.linked.len() + done.homeless.len()) as u64;
    state.note(format!("recover: {} indexes written anew, {files} files back", done.dirs.len()));
    super::print(&format!(
        "{} written anew with {} that could still be read; {} back, {} of them in /lost+found.\n\
         Gone with a lost index: names and keys of its subdirectories, links, owners, extended attributes, later renames.\n",
        count(done.dirs.len() as u64, "index"),
        count(done.kept, "entry"),
        count(files, "file"),
        done.homeless.len()
    ));
    Ok(state.close()?)
}

/// What a recovery leaves out because it is young, and how to get it; empty when there is nothing.
fn waits(waiting: Waiting, grace: Duration, given: &str) -> String {
    if waiting.files == 0 {
        return String::new();
    }
    let one = waiting.files == 1;
    let (is, it, it_was) = if one { ("is", "it", "it was") } else { ("are", "them", "they were") };
    let files = count(waiting.files, "file");
    let Some(newest) = waiting.newest else {
        return format!("{files} that no index names {is} left out: the store does not tell when {it_was} written.\n");
    };
    let sec = newest.sec.saturating_add(i64::try_from(grace.as_secs()).unwrap_or(i64::MAX)).saturating_add(60);
    let at = rfc3339(Time { sec, nsec: 0 });
    let date = format!("{} {} UTC", at.get(..10).unwrap_or(&at), at.get(11..16).unwrap_or_default());
    let sooner = if grace > scrub::MIN_GRACE {
        "with `--grace 1h`, when no mount runs anywhere and the last write is an hour ago, or "
    } else {
        ""
    };
    format!(
        "{files} that no index names {is} left out: younger than {given} (--grace), a mount may be about to name {it}.\n\
         To link {it} back, run again {sooner}after {date}.\n"
    )
}

/// Asks on the terminal.
fn agreed() -> Outcome<bool> {
    if !std::io::stdin().is_terminal() {
        fail(Kind::Invalid, "there is no terminal to ask on: give --yes, or --dry-run to look first")?;
    }
    let mut to = std::io::stderr().lock();
    write!(to, "Write these indexes anew? (yes/no) ")?;
    to.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim() == "yes")
}

/// Runs work with progress on standard error, and stops it at Ctrl-C: between two requests, so nothing is left half done.
async fn watched<T>(work: impl Future<Output = Result<T>>, look: impl Fn() -> Progress, quiet: bool) -> Result<T> {
    let mut show = Show::new(quiet);
    let stop = tokio::signal::ctrl_c();
    tokio::pin!(work, stop);
    let mut tick = tokio::time::interval(LOOK_EVERY);
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            _ = &mut stop => break fail(Kind::Interrupted, "stopped; what was not looked at yet is not in the report"),
            _ = tick.tick() => show.show(look()),
        }
    };
    show.end();
    result
}

/// A bar on a terminal, a line now and then elsewhere.
struct Show {
    bar: Option<ProgressBar>,
    lines: bool,
    last: Instant,
}

impl Show {
    fn new(quiet: bool) -> Show {
        let terminal = std::io::stderr().is_terminal();
        let bar = (terminal && !quiet).then(|| ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()));
        Show { lines: !terminal && !quiet, bar, last: Instant::now() }
    }

    fn show(&mut self, p: Progress) {
        let found = if p.finds > 0 { format!(", {}", count(p.finds, "find")) } else { String::new() };
        let what = format!("{} of {}{found}", p.files, count(p.files_seen, "file"));
        if p == Progress::default() {
            return; // nothing to tell yet
        }
        if let Some(bar) = &self.bar {
            let style = ProgressStyle::with_template(if p.bytes_seen > 0 { BYTES } else { NO_BYTES });
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_length(p.bytes_seen);
            bar.set_position(p.bytes);
            bar.set_message(what);
        } else if self.lines && self.last.elapsed() >= LINE_EVERY {
            super::warn_plain(&format!("verified: {what}, {} of {}", size(p.bytes), size(p.bytes_seen)));
            self.last = Instant::now();
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The report as JSON.
#[derive(Serialize)]
struct Json<'a> {
    clean: bool,
    #[serde(flatten)]
    report: &'a Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aborted: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    linked: Option<Vec<String>>,
    dry_run: bool,
}

/// The report for programs: docs/JSON.md.
pub(super) fn json(report: &Report, done: &Done, dry_run: bool) -> Outcome<String> {
    let text = |paths: &Vec<Vec<u8>>| paths.iter().map(|p| String::from_utf8_lossy(p).into_owned()).collect();
    super::status::json(&Json {
        clean: report.is_clean(),
        report,
        deleted: done.gc.as_ref().map(|g| &g.objects[..]),
        aborted: done.gc.as_ref().map(|g| &g.uploads[..]),
        linked: done.repaired.as_ref().map(|r| text(&r.linked)),
        dry_run,
    })
}

fn tell(report: &Report, done: &Done, args: &ScrubArgs) -> Outcome<()> {
    if args.json {
        super::print(&json(report, done, args.dry_run)?);
        return Ok(());
    }
    let mut text = String::new();
    for f in &report.finds {
        text.push_str(&line(f));
    }
    text.push_str(&summary(report, args));
    if let Some(r) = &done.repaired {
        for path in r.linked.iter().chain(&r.advanced) {
            text.push_str(&format!("mended       {}\n", shown(&String::from_utf8_lossy(path))));
        }
        if r.homeless > 0 {
            text.push_str(&format!("{} of a directory that is gone: `smpfs recover` finds a place\n", count(r.homeless, "file")));
        }
    }
    if let Some(g) = &done.gc {
        let word = if args.dry_run { "would go" } else { "deleted" };
        for key in g.objects.iter().chain(&g.uploads) {
            text.push_str(&format!("{word:<12} {}\n", shown(key)));
        }
        if g.objects.is_empty() && g.uploads.is_empty() {
            text.push_str(if args.dry_run { "Nothing would be deleted.\n" } else { "Nothing was there to delete.\n" });
        }
    }
    super::print(&text);
    Ok(())
}

/// What was looked at, and in plain words whether anything was found.
fn summary(report: &Report, args: &ScrubArgs) -> String {
    let c = &report.counts;
    let objects = format!("{} ({})", count(c.objects, "object"), size(c.object_bytes));
    let mut text = if args.keyless {
        format!(
            "{} of {objects} in the bucket verified without keys, {} read: signatures, and all that they cover.\n\
             Which objects there should be, only a scrub with the passphrase can tell.\n",
            c.files,
            size(c.bytes)
        )
    } else {
        let dirs = format!("{} in {}", count(c.dirs, "directory"), count(c.indexes, "index object"));
        let read = match args.quick {
            true => "no contents read (--quick)".to_owned(),
            false => format!("{} verified ({})", count(c.files, "file"), size(c.bytes)),
        };
        format!("{dirs}, {read}; {objects} in the bucket\n")
    };
    if c.young > 0 {
        let (are, they) = if c.young == 1 { ("is", "It") } else { ("are", "They") };
        text += &format!(
            "{} that no index names {are} younger than {grace} (--grace) and too young to tell: a mount may be about to name it.\n\
             {they} will be judged by a scrub that runs {grace} or more after the upload. If a file or a directory is missing and no mount \
             runs anywhere, `smpfs recover --grace 1h` links back what has lost its name.\n",
            count(c.young, "object"),
            grace = args.volume.grace
        );
    }
    if !report.steady && report.complete {
        text += "The volume changed all the time: what no index names could not be told.\n";
    }
    if report.is_clean() && report.complete {
        text += "Nothing wrong was found.\n";
    }
    text += &advice(report);
    text
}

/// What can be done about what was found.
fn advice(report: &Report) -> String {
    let any = |all: &[What]| all.iter().any(|what| report.count(*what) > 0);
    let mut text = String::new();
    if any(&[What::Index]) {
        text += "What to do: unmount the volume everywhere; `smpfs recover STORE --dry-run` says what can be brought back of a lost index.\n";
    }
    if any(&[What::Missing, What::Corrupt, What::RolledBack]) {
        text += "What to do: bring the object back from the bucket's versions or a backup, under the key in brackets, or remove the file \
                 and write it anew. What was found is kept as evidence: `.smpfs/quarantine` in a mount lists it.\n";
    }
    text
}

fn line(f: &Find) -> String {
    let path = f.path.as_deref().map(|p| shown(&String::from_utf8_lossy(p)));
    match path {
        Some(path) => format!("{:<12} {path}  ({}): {}\n", f.what.name(), shown(&f.key), f.detail),
        None => format!("{:<12} {}: {}\n", f.what.name(), shown(&f.key), f.detail),
    }
}

/// Text from the volume, without what a terminal would take for orders.
fn shown(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

/// The exit code: what was found and has not been mended counts.
fn verdict(report: &Report, done: &Done, dry: bool) -> Outcome<()> {
    let mut left = report.finds.len() as u64 + report.counts.more_finds;
    if let Some(g) = done.gc.as_ref().filter(|_| !dry) {
        left = left.saturating_sub((g.objects.len() + g.uploads.len()) as u64);
    }
    if let Some(r) = &done.repaired {
        left = left.saturating_sub((r.linked.len() + r.advanced.len()) as u64 + r.unfrozen);
    }
    match left {
        0 => Ok(()),
        n => {
            let each = What::ALL.iter().map(|k| (k.name(), report.count(*k))).filter(|(_, n)| *n > 0);
            let each: Vec<String> = each.map(|(name, n)| format!("{n} {name}")).collect();
            Err(Failure::new(Exit::Finds, format!("{} ({})", count(n, "find"), each.join(", "))))
        }
    }
}
