//! `smpfs unmount`: asks the process that serves, and shows what is left to upload.

use super::failure::{Failure, Outcome};
use super::socket::path_of;
use super::status::{count, unsent};
use super::{client, left, mountpoint, settings};
use crate::cli::{Exit, UnmountArgs};
use crate::config::Value;
use crate::error::{Error, Kind};
use crate::fs::status::Pending;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a killed process takes to let go of everything, about.
const DYING: Duration = Duration::from_millis(500);
/// How uploads are shown.
const BYTES: &str = "uploading  {bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left  {msg}";
/// How they are shown when only names are left.
const NAMES: &str = "uploading  {msg}";
/// Without a terminal, a line of progress this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Where a mount's socket and its local state lie.
#[derive(Clone, Copy)]
pub struct Places<'a> {
    /// Sockets.
    pub runtime: &'a Path,
    /// State.
    pub state: &'a Path,
}

/// How to unmount.
#[derive(Clone, Copy, Default)]
pub struct How {
    /// Even when files are open.
    pub lazy: bool,
    /// Keep what is left for the next mount, and end.
    pub stop: bool,
    /// How long to wait for uploads.
    pub timeout: Option<Duration>,
    /// No progress.
    pub quiet: bool,
}

/// Runs it.
pub fn run(args: &UnmountArgs, config_file: Option<PathBuf>) -> Outcome<()> {
    let config = settings::load_common(config_file, &args.common)?.config;
    let timeout = match &args.timeout {
        Some(text) => Some(Duration::parse(text).map_err(|e| Error::new(Kind::Invalid, format!("--timeout: {e}")))?),
        None => config.unmount_timeout,
    };
    let dir = mountpoint::canonical(&args.dir)?;
    let places = Places { runtime: &config.runtime_dir, state: &config.state_dir };
    let how = How { lazy: args.lazy, stop: args.stop, timeout, quiet: args.quiet };
    unmount(places, &dir, how)
}

/// Unmounts `dir` (canonical) and waits.
pub fn unmount(places: Places<'_>, dir: &Path, how: How) -> Outcome<()> {
    let Some(stream) = client::connect(&path_of(places.runtime, dir))? else {
        return nobody_serves(places, dir);
    };
    let mut progress = Progress::new(how.quiet);
    let outcome = client::unmount(stream, how.lazy, how.stop, how.timeout, &mut |pending| progress.show(pending));
    progress.end();
    match outcome {
        Err(failure) if failure.message == client::GONE => after_its_end(places, dir, failure),
        outcome => outcome,
    }
}

/// The process died while we talked to it: give the kernel a moment to take its sockets and its mount away, then clean up.
fn after_its_end(places: Places<'_>, dir: &Path, failure: Failure) -> Outcome<()> {
    std::thread::sleep(DYING);
    match client::connect(&path_of(places.runtime, dir)) {
        Ok(None) => match nobody_serves(places, dir) {
            Err(nothing) if nothing.exit() == Exit::NotFound => Err(failure),
            found => found,
        },
        _ => Err(failure),
    }
}

/// No process answers for this directory: nothing of ours, or what a killed process left.
fn nobody_serves(places: Places<'_>, dir: &Path) -> Outcome<()> {
    let shown = dir.display();
    let source = crate::fuse::dead_mounts().into_iter().find(|m| m.dir == dir).map(|m| m.source);
    if !crate::fuse::clear_stale(dir)? {
        return Err(Failure::new(Exit::NotFound, format!("no smpfs mount of yours on {shown}; `smpfs status` lists them")));
    }
    let store = source.unwrap_or_default();
    let what = match left::of_store(places.state, &store) {
        Some((_, left)) if left.is_empty() => {
            super::warn_plain(&format!(
                "the process that served {shown} had gone; the dead mount is cleaned up, and nothing waits for an upload"
            ));
            return Ok(());
        }
        Some((_, left)) => left.words(),
        None => "what it had not uploaded".to_owned(),
    };
    let text = format!(
        "the process that served {shown} had gone; the dead mount is cleaned up. Sealed in the state directory: {what}. Nothing is uploaded until \
         the next mount: `smpfs mount {store} {shown}`"
    );
    Err(Failure::new(Exit::Dead, text))
}

/// How the bar looks and what it says, when `done` bytes have been sent. With nothing to do there is nothing to show, and names
/// alone have no bytes to count.
fn shown(pending: &Pending, done: u64) -> Option<(&'static str, String)> {
    match (done + pending.bytes, pending.is_empty()) {
        (0, true) => None,
        (0, false) => Some((NAMES, unsent(pending))),
        _ => Some((BYTES, count(pending.files, "file"))),
    }
}

/// Progress on standard error: a bar on a terminal, a line now and then elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    lines: bool,
    /// Bytes that had been sent when it began.
    base: Option<u64>,
    last_line: Option<Instant>,
}

impl Progress {
    fn new(quiet: bool) -> Progress {
        let terminal = std::io::stderr().is_terminal();
        let bar = (terminal && !quiet).then(|| ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()));
        Progress { lines: !terminal && !quiet, bar, base: None, last_line: None }
    }

    fn show(&mut self, pending: Pending) {
        let base = *self.base.get_or_insert(pending.sent_bytes);
        let done = pending.sent_bytes.saturating_sub(base);
        if let (Some(bar), Some((template, message))) = (&self.bar, shown(&pending, done)) {
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_length(done + pending.bytes);
            bar.set_position(done);
            bar.set_message(message);
        }
        let due = self.last_line.is_none_or(|t| t.elapsed() >= LINE_EVERY);
        if self.lines && due && !pending.is_empty() {
            super::warn_plain(&format!("uploading: {} left", unsent(&pending)));
            self.last_line = Some(Instant::now());
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_shows_bytes_where_there_are_any_names_else_and_nothing_for_nothing() {
        let pending = |files, bytes, names| Pending { files, bytes, names, sent_bytes: 0 };
        assert_eq!(shown(&pending(0, 0, 0), 0), None);
        assert_eq!(shown(&pending(0, 0, 2), 0), Some((NAMES, "2 changes to names".into())));
        assert_eq!(shown(&pending(1, 5, 2), 0), Some((BYTES, "1 file".into())));
        assert_eq!(shown(&pending(0, 0, 0), 5), Some((BYTES, "0 files".into())), "it ends where it went to");
    }
}
