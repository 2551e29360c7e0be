//! Log lines: to the terminal, systemd's journal or a file; as text or JSON; with a level that a signal changes.
//!
//! Names of files appear at debug and below only, keys and passphrases never.

use crate::config::{Config, LogFormat, LogTarget};
use crate::error::{Error, Kind, Result};
use parking_lot::Mutex;
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// A log file is put aside at this length; one older file is kept.
const MAX_FILE: u64 = 10 << 20;

/// Changes the level while running.
pub struct LogHandle {
    filter: Option<reload::Handle<EnvFilter, Registry>>,
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
    let parsed = EnvFilter::try_new(&base)
        .map_err(|e| Error::with_source(Kind::Invalid, format!("log-level: `{base}` is no level or list of directives"), e))?;
    let (filter, handle) = reload::Layer::new(parsed);
    let mut layers: Vec<Boxed> = vec![output(config, role, own_file)?];
    if role == Role::Daemon {
        let warnings =
            tracing_subscriber::fmt::layer().with_writer(std::io::stderr).without_time().with_target(false).with_ansi(false);
        layers.push(warnings.with_filter(tracing_subscriber::filter::LevelFilter::WARN).boxed());
    }
    // A second start in one process (tests) keeps the first.
    let started = tracing_subscriber::registry().with(filter).with(layers).try_init().is_ok();
    Ok(LogHandle { filter: started.then_some(handle), base, step: Mutex::new(0) })
}

impl LogHandle {
    /// Next level: what was configured, debug, trace, and back. Returns it.
    pub fn cycle(&self) -> String {
        let mut step = self.step.lock();
        *step = (*step + 1) % 3;
        let level = [self.base.as_str(), "debug", "trace"][*step].to_owned();
        if let (Some(filter), Ok(parsed)) = (&self.filter, EnvFilter::try_new(&level)) {
            // Fails only when the subscriber is gone, and then nobody logs.
            let _ = filter.reload(parsed);
        }
        level
    }
}

fn output(config: &Config, role: Role, own_file: &Path) -> Result<Boxed> {
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
            Ok(if json { layer.json().boxed() } else { layer.boxed() })
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
        let handle = LogHandle { filter: None, base: "info".into(), step: Mutex::new(0) };
        assert_eq!([handle.cycle(), handle.cycle(), handle.cycle(), handle.cycle()], ["debug", "trace", "info", "debug"]);
    }
}
