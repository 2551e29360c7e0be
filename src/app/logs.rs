//! Log lines: to the terminal, systemd's journal or a file; as text or JSON; with a level that a signal changes.
//!
//! smpfs's own lines hold no names of files, keys or passphrases at any level. Libraries are less careful (that of FUSE logs every
//! request with its names): below info they are heard only where a directive names them.

use crate::config::{Config, LogFormat, LogTarget};
use crate::error::{Error, Kind, Result};
use parking_lot::Mutex;
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{FilterExt, dynamic_filter_fn};
use tracing_subscriber::fmt::{self, FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Filter, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// A log file is put aside at this length; one older file is kept.
const MAX_FILE: u64 = 10 << 20;

/// A line as commands print their own warnings.
struct Sentence;

impl<S, N> FormatEvent<S, N> for Sentence
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut to: fmt::format::Writer<'_>,
        line: &tracing::Event<'_>,
    ) -> std::fmt::Result {
        let word = if *line.metadata().level() == tracing::Level::ERROR { "error" } else { "warning" };
        write!(to, "smpfs: {word}: ")?;
        ctx.format_fields(to.by_ref(), line)?;
        writeln!(to)
    }
}

/// Changes the level while running.
pub struct LogHandle {
    filter: Option<reload::Handle<EnvFilter, Registry>>,
    detailed: Arc<AtomicBool>,
    base: String,
    step: Mutex<usize>,
}

type Boxed = Box<dyn Layer<reload_target::Target> + Send + Sync>;

/// The subscriber below the output layers.
mod reload_target {
    use super::*;
    pub type Target = tracing_subscriber::layer::Layered<reload::Layer<EnvFilter, Registry>, Registry>;
}

/// Who logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A subcommand on a terminal: warnings only, unless a level was asked for.
    Command,
    /// A mount in the foreground.
    Foreground,
    /// A mount without a terminal. Warnings also go to standard error, which is the user's until the mount serves.
    Daemon,
}

/// Begins logging. `own_file` is where a daemon without journald logs.
pub fn start(config: &Config, role: Role, own_file: &Path) -> Result<LogHandle> {
    let base = match (role, config.log_level.as_str()) {
        (Role::Command, "info") => "warn".to_owned(),
        (_, level) => level.to_owned(),
    };
    let parsed = EnvFilter::try_new(directives(&base))
        .map_err(|e| Error::with_source(Kind::Invalid, format!("log-level: `{base}` is no level or list of directives"), e))?;
    let detailed = Arc::new(AtomicBool::new(wants_details(&base, &parsed)));
    let (filter, handle) = reload::Layer::new(parsed);
    let mut layers: Vec<Boxed> = vec![output(config, role, own_file, &detailed)?];
    if role == Role::Daemon {
        let heard = for_people(&detailed).and(LevelFilter::WARN);
        let warnings = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
        layers.push(match detailed.load(Ordering::Relaxed) {
            true => warnings.without_time().with_target(false).with_filter(heard).boxed(),
            false => warnings.event_format(Sentence).with_filter(heard).boxed(),
        });
    }
    // A second start in one process (tests) keeps the first.
    let started = tracing_subscriber::registry().with(filter).with(layers).try_init().is_ok();
    Ok(LogHandle { filter: started.then_some(handle), detailed, base, step: Mutex::new(0) })
}

/// The filter of a level or a list of directives. A level alone below info is that of smpfs: libraries stay at info.
fn directives(given: &str) -> String {
    let each = given.split(',').map(str::trim).map(|item| match item.to_ascii_lowercase().as_str() {
        level @ ("debug" | "trace") => format!("info,smpfs={level}"),
        _ => item.to_owned(),
    });
    each.collect::<Vec<_>>().join(",")
}

/// Whether somebody looks for what is wrong, and not only for what to do about it.
fn wants_details(given: &str, parsed: &EnvFilter) -> bool {
    parsed.max_level_hint().is_none_or(|level| level >= LevelFilter::DEBUG) || given.contains("aws")
}

/// Keeps from a terminal what the AWS SDK says on the way to an error: the error is told in a sentence of ours.
fn for_people<S: tracing::Subscriber>(detailed: &Arc<AtomicBool>) -> impl Filter<S> + Send + Sync + 'static {
    let detailed = detailed.clone();
    dynamic_filter_fn(move |line, _| {
        *line.level() == tracing::Level::ERROR || !line.target().starts_with("aws") || detailed.load(Ordering::Relaxed)
    })
}

impl LogHandle {
    /// Next level: what was configured, debug, trace, and back. Returns it.
    pub fn cycle(&self) -> String {
        let mut step = self.step.lock();
        *step = (*step + 1) % 3;
        let level = [self.base.as_str(), "debug", "trace"][*step].to_owned();
        if let (Some(filter), Ok(parsed)) = (&self.filter, EnvFilter::try_new(directives(&level))) {
            self.detailed.store(wants_details(&level, &parsed), Ordering::Relaxed);
            // Fails only when the subscriber is gone, and then nobody logs.
            let _ = filter.reload(parsed);
        }
        level
    }
}

fn output(config: &Config, role: Role, own_file: &Path, detailed: &Arc<AtomicBool>) -> Result<Boxed> {
    let json = config.log_format == LogFormat::Json;
    let target = match (config.log_target, role) {
        (LogTarget::Auto, Role::Command) => LogTarget::Stderr,
        (LogTarget::Auto, Role::Foreground) if stderr_is_journal() => LogTarget::Journald,
        (LogTarget::Auto, Role::Foreground) => LogTarget::Stderr,
        (LogTarget::Auto, Role::Daemon) if Path::new("/run/systemd/journal/socket").exists() => LogTarget::Journald,
        (LogTarget::Auto | LogTarget::Stderr, Role::Daemon) => LogTarget::File,
        (target, _) => target,
    };
    match target {
        LogTarget::Journald => match tracing_journald::layer() {
            Ok(layer) => Ok(layer.boxed()),
            Err(e) => Err(Error::with_source(Kind::Unavailable, "log-target: systemd's journal does not answer", e)),
        },
        LogTarget::File => {
            let path = config.log_file.as_deref().unwrap_or(own_file);
            let writer = std::sync::Mutex::new(Rotating::open(path)?);
            let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false);
            Ok(if json { layer.json().boxed() } else { layer.boxed() })
        }
        LogTarget::Auto | LogTarget::Stderr => {
            let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
            let people = for_people(detailed);
            Ok(match json {
                true => layer.json().with_filter(people).boxed(),
                false if role == Role::Command && !detailed.load(Ordering::Relaxed) => {
                    layer.event_format(Sentence).with_filter(people).boxed()
                }
                false => layer.with_filter(people).boxed(),
            })
        }
    }
}

/// systemd names the journal's stream by device and inode in JOURNAL_STREAM; a shell below a service inherits the variable, so
/// only a match with the real descriptor counts.
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    std::fs::metadata("/proc/self/fd/2").is_ok_and(|m| stream == format!("{}:{}", m.dev(), m.ino()))
}

/// A log file that does not grow without end.
struct Rotating {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Rotating {
    fn open(path: &Path) -> Result<Rotating> {
        let open = || -> std::io::Result<Rotating> {
            let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
            let len = file.metadata()?.len();
            Ok(Rotating { path: path.to_owned(), file, len })
        };
        open().map_err(|e| Error::from(e).context(format!("the log file {} cannot be opened", path.display())))
    }
}

impl Write for Rotating {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        if self.len + line.len() as u64 > MAX_FILE {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            std::fs::rename(&self.path, old)?;
            self.file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)?;
            self.len = 0;
        }
        let n = self.file.write(line)?;
        self.len += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_file_is_put_aside_when_it_is_full() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("m.log");
        let mut log = Rotating::open(&path).unwrap();
        log.write_all(&vec![b'a'; MAX_FILE as usize]).unwrap();
        log.write_all(b"next\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"next\n");
        assert_eq!(std::fs::metadata(tmp.path().join("m.log.1")).unwrap().len(), MAX_FILE);
        assert_eq!(Rotating::open(&path).unwrap().len, 5);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn levels_go_round() {
        let handle = LogHandle { filter: None, detailed: Arc::default(), base: "info".into(), step: Mutex::new(0) };
        assert_eq!([handle.cycle(), handle.cycle(), handle.cycle(), handle.cycle()], ["debug", "trace", "info", "debug"]);
    }

    #[test]
    fn a_level_below_info_is_of_smpfs_alone_unless_a_directive_names_a_library() {
        for (given, want) in [
            ("info", "info"),
            ("debug", "info,smpfs=debug"),
            ("TRACE", "info,smpfs=trace"),
            ("warn,smpfs::store=debug", "warn,smpfs::store=debug"),
            ("trace, fuser=debug", "info,smpfs=trace,fuser=debug"),
        ] {
            assert_eq!(directives(given), want);
            EnvFilter::try_new(directives(given)).unwrap();
        }
    }

    /// What a terminal shows of one line of each library at a level.
    fn seen(level: &str) -> String {
        #[derive(Clone, Default)]
        struct Text(Arc<Mutex<Vec<u8>>>);
        impl Write for Text {
            fn write(&mut self, b: &[u8]) -> std::io::Result<usize> {
                self.0.lock().extend_from_slice(b);
                Ok(b.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let text = Text::default();
        let parsed = EnvFilter::try_new(directives(level)).unwrap();
        let detailed = Arc::new(AtomicBool::new(wants_details(level, &parsed)));
        let to = text.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || to.clone()).with_filter(for_people(&detailed));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(parsed).with(layer), || {
            tracing::warn!(target: "aws_config::imds", "sdk-warns");
            tracing::error!(target: "aws_config::imds", "sdk-fails");
            tracing::debug!(target: "fuser::request", "a-name");
            tracing::warn!(target: "smpfs::app", "we-warn");
            tracing::trace!(target: "smpfs::app", "we-trace");
        });
        let text = String::from_utf8(text.0.lock().clone()).unwrap();
        let words = ["sdk-warns", "sdk-fails", "a-name", "we-warn", "we-trace"].into_iter().filter(|w| text.contains(w));
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_terminal_hears_the_sdk_only_when_somebody_looks_for_details() {
        assert_eq!(seen("warn"), "sdk-fails we-warn");
        assert_eq!(seen("info"), "sdk-fails we-warn");
        assert_eq!(seen("debug"), "sdk-warns sdk-fails we-warn");
        assert_eq!(seen("trace"), "sdk-warns sdk-fails we-warn we-trace");
        assert_eq!(seen("warn,aws_config=warn"), "sdk-warns sdk-fails we-warn");
        assert_eq!(seen("info,fuser=debug"), "sdk-warns sdk-fails a-name we-warn");
    }
}
