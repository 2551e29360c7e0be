//! Settings: command line > `SMPFS_*` > store entry > file > default become one validated [`Config`].
//!
//! Every setting has one name ([`KEYS`]), used alike in config.toml, as `--flag`, as `-o option` and as variable. A value keeps
//! the place it came from until it has been checked, so that a message can say "config.toml, line 7".

mod dirs;
mod file;
mod keys;
mod suggest;
mod value;

pub use dirs::{Dirs, Identity};
pub use file::{File, StoreEntry, unknown};
pub use keys::{Config, KEYS, Key};
pub use suggest::nearest;
pub use value::{Fsync, LogFormat, LogTarget, Octal, OnUnavailable, Size, Value, Verify};

use crate::error::{Error, Kind, Result, fail};
use crate::store::StoreSpec;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

/// Variables that begin with `SMPFS_` and are no settings.
pub const VARIABLES: &[(&str, &str)] = &[
    ("SMPFS_CONFIG", "the configuration file, as `--config`"),
    ("SMPFS_LOG", "as `log-level`; wins over RUST_LOG"),
    ("SMPFS_BIN", "the smpfs binary that mount.smpfs calls"),
];

/// Variables of smpfs's own tests begin like this. A program that they start need not speak of them.
const TESTS: [&str; 2] = ["SMPFS_TEST", "SMPFS_VENV"];

/// One value of one setting, and where it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name of the setting.
    pub key: &'static str,
    /// Text of the value.
    pub value: String,
    /// Where: "--retries", "SMPFS_RETRIES", "/etc/smpfs/config.toml, line 3".
    pub origin: String,
}

/// Everything that [`load`] looks at.
pub struct Sources<'a> {
    /// `--config`: a file that must exist. Without it the default file is read if there is one.
    pub file: Option<PathBuf>,
    /// Settings from flags and options, in order: a later one wins.
    pub given: Vec<Entry>,
    /// Environment.
    pub environment: &'a dyn Fn(&str) -> Option<String>,
    /// STORE as written: a URL or the name of an entry. None when no store is wanted.
    pub store: Option<&'a str>,
    /// Who runs smpfs.
    pub identity: Identity,
}

/// A store as the user named it: a URL, and a path below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreRef {
    /// URL, as typed or as the entry has it.
    pub url: String,
    /// Path below it, without slashes at its ends; empty for none.
    pub below: String,
}

/// What [`load`] found.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// The store, when one was asked for.
    pub store: Option<StoreRef>,
}

/// Reads the file, lays the sources over each other, checks every value.
pub fn load(sources: Sources) -> Result<Loaded> {
    let dirs = sources.identity.dirs();
    let file = read_file(&sources, &dirs)?;
    let (store, entry) = match sources.store {
        Some(spec) => resolve(spec, &file).map(|(s, e)| (Some(s), e))?,
        None => (None, None),
    };
    let mut config = Config::bare().map_err(|e| Error::new(Kind::Bug, format!("a default value is wrong: {e}")))?;
    config.state_dir = dirs.state;
    config.cache_dir = dirs.cache;
    config.runtime_dir = dirs.runtime;
    let from_environment = environment(sources.environment);
    let layers = [&file.settings[..], entry.map(|e| &e.settings[..]).unwrap_or_default(), &from_environment, &sources.given];
    for given in layers.into_iter().flatten() {
        let key = Key::find(given.key).ok_or_else(|| Error::new(Kind::Bug, format!("no setting `{}`", given.key)))?;
        (key.set)(&mut config, &given.value).map_err(|e| Error::new(Kind::Invalid, format!("{}: {e}", place(given, key))))?;
    }
    if config.log_file.is_some() && config.log_target == LogTarget::Auto {
        config.log_target = LogTarget::File;
    }
    make_absolute(&mut config)?;
    check(&config)?;
    Ok(Loaded { config, store })
}

/// Where a value stands, and its setting where the place does not say that already.
fn place(given: &Entry, key: &Key) -> String {
    let origin = &given.origin;
    let named = origin.trim_start_matches("-o").trim_start_matches([' ', '-']) == key.name || *origin == key.variable();
    if named { origin.clone() } else { format!("{origin}: {}", key.name) }
}

fn read_file(sources: &Sources, dirs: &Dirs) -> Result<File> {
    let named = sources.file.clone().or_else(|| (sources.environment)("SMPFS_CONFIG").map(PathBuf::from));
    let path = named.clone().unwrap_or_else(|| dirs.config_file.clone());
    let mut text = String::new();
    let read = std::fs::File::open(&path).and_then(|f| f.take(file::MAX_LEN + 1).read_to_string(&mut text));
    match read {
        Ok(n) if n as u64 > file::MAX_LEN => fail(Kind::Invalid, format!("{}: longer than 1 MiB", path.display())),
        Ok(_) => file::parse(&path, &text, sources.environment),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && named.is_none() => Ok(File::default()),
        // A user's home may be closed to a service; only a file that was asked for must be readable.
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied && named.is_none() => Ok(File::default()),
        Err(e) => Err(Error::with_source(Kind::Invalid, format!("cannot read the configuration {}", path.display()), e)),
    }
}

fn environment(variable: &dyn Fn(&str) -> Option<String>) -> Vec<Entry> {
    let mut out: Vec<Entry> = KEYS
        .iter()
        .filter_map(|k| variable(&k.variable()).map(|value| Entry { key: k.name, value, origin: k.variable() }))
        .filter(|e| !e.value.is_empty())
        .collect();
    if let Some(name) = ["SMPFS_LOG", "RUST_LOG"].into_iter().find(|n| variable(n).is_some_and(|v| !v.is_empty())) {
        let value = variable(name).unwrap_or_default();
        out.insert(0, Entry { key: "log-level", value, origin: name.into() });
    }
    out
}

/// Sentences about variables that look like settings and are none: a warning each, since others may use the prefix too.
pub fn stray_variables(names: impl Iterator<Item = String>) -> Vec<String> {
    let known: Vec<String> = KEYS.iter().map(Key::variable).chain(VARIABLES.iter().map(|(n, _)| n.to_string())).collect();
    let stray = names.filter(|n| n.starts_with("SMPFS_") && !TESTS.iter().any(|t| n.starts_with(t)) && !known.contains(n));
    stray
        .map(|n| match nearest(&n, known.iter().map(String::as_str)) {
            Some(near) => format!("the variable {n} is unknown; did you mean {near}?"),
            None => format!("the variable {n} is unknown and ignored"),
        })
        .collect()
}

/// A daemon changes to `/`: paths that were given relative to where the command was typed must keep their meaning.
fn make_absolute(c: &mut Config) -> Result<()> {
    let named = [&mut c.passphrase_file, &mut c.recovery_code_file, &mut c.log_file].into_iter().flatten();
    for path in named.chain([&mut c.cache_dir, &mut c.state_dir, &mut c.runtime_dir]) {
        *path = std::path::absolute(&*path).map_err(|e| Error::with_source(Kind::Invalid, "a path in the settings", e))?;
    }
    Ok(())
}

/// STORE as written -> the store, and the entry it came from.
fn resolve<'f>(spec: &str, file: &'f File) -> Result<(StoreRef, Option<&'f StoreEntry>)> {
    let (name, below) = spec.split_once(':').unwrap_or((spec, ""));
    let is_url = below.starts_with("//") || (name == "memory" && spec.contains(':'));
    if is_url {
        return Ok((StoreRef { url: spec.to_owned(), below: String::new() }, None));
    }
    let Some(entry) = file.stores.get(name) else {
        if spec.starts_with(['/', '.', '~']) {
            return fail(
                Kind::Invalid,
                format!("`{spec}` is a path and no URL; a bucket in a directory is written {}", as_url(spec)),
            );
        }
        let near = nearest(name, file.stores.keys().map(String::as_str));
        let hint = match near {
            Some(near) => format!("did you mean `{near}:`?"),
            None if file.stores.is_empty() => "the configuration has no [stores.NAME] entry".to_owned(),
            None => format!("entries: {}", file.stores.keys().cloned().collect::<Vec<_>>().join(", ")),
        };
        let urls = "dir:///path, s3://bucket/prefix, memory:";
        return fail(Kind::Invalid, format!("`{spec}` is neither a URL ({urls}) nor a configured store; {hint}"));
    };
    Ok((StoreRef { url: entry.url.clone(), below: below.trim_matches('/').to_owned() }, Some(entry)))
}

/// The URL that was probably meant by a path.
fn as_url(path: &str) -> String {
    match std::path::absolute(path) {
        Ok(absolute) if !path.starts_with('~') => StoreSpec::Dir { path: absolute }.to_string(),
        _ => "dir:///absolute/path".to_owned(),
    }
}

const MIB: u64 = 1 << 20;

/// A setting and its value, for a message about bounds.
fn said(c: &Config, name: &str) -> String {
    let Some(key) = Key::find(name) else { return name.to_owned() };
    let value = (key.get)(c);
    let default = if value == key.default { ", the default" } else { "" };
    format!("{name} is {value}{default}")
}

/// Bounds that one setting alone cannot know.
fn check(c: &Config) -> Result<()> {
    let bound = |ok: bool, names: &[&str], what: &str| match ok {
        true => Ok(()),
        false => {
            let values: Vec<String> = names.iter().map(|name| said(c, name)).collect();
            let values = if values.is_empty() { String::new() } else { format!(" ({})", values.join("; ")) };
            fail(Kind::Invalid, format!("{what}{values}"))
        }
    };
    bound(c.memory_budget.0 >= 32 * MIB, &["memory-budget"], "memory-budget must be 32MiB or more")?;
    let both = ["prefetch-window", "memory-budget"];
    bound(c.prefetch_window.0 * 2 <= c.memory_budget.0, &both, "prefetch-window must be at most half of memory-budget")?;
    bound(c.cache_size.0 == 0 || c.cache_size.0 >= 64 * MIB, &["cache-size"], "cache-size must be 0 (off) or 64MiB or more")?;
    bound(c.spool_size.0 >= 64 * MIB, &["spool-size"], "spool-size must be 64MiB or more")?;
    bound((1..=64).contains(&c.fuse_threads), &["fuse-threads"], "fuse-threads must be 1 to 64")?;
    bound((1..=1024).contains(&c.request_concurrency), &["request-concurrency"], "request-concurrency must be 1 to 1024")?;
    bound((1..=256).contains(&c.upload_concurrency), &["upload-concurrency"], "upload-concurrency must be 1 to 256")?;
    bound((1..=100).contains(&c.retries), &["retries"], "retries must be 1 to 100")?;
    bound(c.retry_base <= c.retry_cap, &["retry-base", "retry-cap"], "retry-base must not exceed retry-cap")?;
    let second = Duration::from_secs(1);
    bound(c.connect_timeout >= second, &["connect-timeout"], "connect-timeout must be 1s or more")?;
    let both = ["operation-timeout", "connect-timeout"];
    bound(c.operation_timeout >= c.connect_timeout, &both, "operation-timeout must not be shorter than connect-timeout")?;
    for (name, limit) in [("download-limit", c.download_limit), ("upload-limit", c.upload_limit)] {
        let right = limit.0 == 0 || limit.0 >= 16 << 10;
        bound(right, &[name], &format!("{name} must be 0 (none) or 16KiB per second or more"))?;
    }
    bound(c.log_target != LogTarget::File || c.log_file.is_some(), &[], "log-target = file needs log-file")?;
    Ok(())
}

#[cfg(test)]
mod tests;
