//! `smpfs unmount`: asks the process that serves, and shows what is left to upload.

use super::failure::{Failure, Outcome};
use super::socket::path_of;
use super::status::{count, unsent};
use super::{client, mountpoint, settings};
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

/// Runs it.
pub fn run(args: &UnmountArgs, config_file: Option<PathBuf>) -> Outcome<()> {
    let config = settings::load_common(config_file, &args.common)?.config;
    let timeout = match &args.timeout {
        Some(text) => Some(Duration::parse(text).map_err(|e| Error::new(Kind::Invalid, format!("--timeout: {e}")))?),
        None => config.unmount_timeout,
    };
    let dir = mountpoint::canonical(&args.dir)?;
    unmount(&config.runtime_dir, &dir, args.lazy, timeout, args.quiet)
}

/// Unmounts `dir` (canonical) and waits.
pub fn unmount(runtime: &Path, dir: &Path, lazy: bool, timeout: Option<Duration>, quiet: bool) -> Outcome<()> {
    let Some(stream) = client::connect(&path_of(runtime, dir))? else {
        return Err(nobody_serves(dir));
    };
    let mut progress = Progress::new(quiet);
    let outcome = client::unmount(stream, lazy, timeout, &mut |pending| progress.show(pending));
    progress.end();
    match outcome {
        Err(failure) if failure.message == client::GONE => Err(after_its_end(runtime, dir, failure)),
        outcome => outcome,
    }
}

/// The process died while we talked to it: give the kernel a moment to take its sockets and its mount away, then clean up.
fn after_its_end(runtime: &Path, dir: &Path, failure: Failure) -> Failure {
    std::thread::sleep(DYING);
    match client::connect(&path_of(runtime, dir)) {
        Ok(None) => match nobody_serves(dir) {
            nothing if nothing.exit() == Exit::NotFound => failure,
            found => found,
        },
        _ => failure,
    }
}

/// No process answers for this directory: nothing of ours, or what a killed process left.
fn nobody_serves(dir: &Path) -> Failure {
    match crate::fuse::clear_stale(dir) {
        Ok(true) => Failure::new(
            Exit::Pending,
            format!(
                "the process that served {} had gone; the dead mount is cleaned up. What was not uploaded lies sealed in the state directory: the next mount uploads it",
                dir.display()
            ),
        ),
        Ok(false) => {
            Failure::new(Exit::NotFound, format!("no smpfs mount of yours on {}; `smpfs status` lists them", dir.display()))
        }
        Err(e) => e.into(),
    }
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
