//! From the command line to a configuration: flags and `-o` lists become entries, with the place they came from.

use crate::cli::options::{KernelFlag, Meaning, meaning, split};
use crate::cli::{CommonFlags, MountArgs};
use crate::config::{self, Entry, Identity, Key, Loaded, Sources};
use crate::error::{Error, Kind, Result, fail};
use std::path::PathBuf;

/// Mount flags that the kernel enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelFlags {
    /// Honour set-user-id bits.
    pub suid: bool,
    /// Honour device nodes.
    pub dev: bool,
    /// Programs may run.
    pub exec: bool,
}

impl Default for KernelFlags {
    fn default() -> Self {
        KernelFlags { suid: false, dev: false, exec: true }
    }
}

/// Everything `-o` and flags of a mount say.
#[derive(Debug, Default)]
pub struct Given {
    /// Settings, options first: a flag wins over an option.
    pub entries: Vec<Entry>,
    /// Kernel flags.
    pub kernel: KernelFlags,
    /// `-o take-over`.
    pub take_over: bool,
    /// `-o config=`.
    pub config_file: Option<PathBuf>,
    /// Options that `-s` made smpfs ignore.
    pub warnings: Vec<String>,
}

/// Collects what a mount's command line says.
pub fn of_mount(args: &MountArgs) -> Result<Given> {
    let mut given = Given { take_over: args.take_over, ..Given::default() };
    for list in &args.options {
        for option in split(list)? {
            add_option(&mut given, meaning(option)?, args.sloppy)?;
        }
    }
    for pairs in [args.mount_flags.pairs(), args.secret.files.pairs(), args.store_flags.pairs(), args.resources.pairs()] {
        add_flags(&mut given.entries, pairs)?;
    }
    add_flags(&mut given.entries, args.common.pairs())?;
    Ok(given)
}

fn add_option(given: &mut Given, meaning: Meaning, sloppy: bool) -> Result<()> {
    match meaning {
        Meaning::Ignored => {}
        Meaning::TakeOver => given.take_over = true,
        Meaning::Config(path) => given.config_file = Some(path.into()),
        Meaning::Kernel(KernelFlag::Suid(on)) => given.kernel.suid = on,
        Meaning::Kernel(KernelFlag::Dev(on)) => given.kernel.dev = on,
        Meaning::Kernel(KernelFlag::Exec(on)) => given.kernel.exec = on,
        Meaning::Setting(name, value) => match (Key::find(&name), value) {
            (Some(key), Some(value)) => given.entries.push(Entry { key: key.name, value, origin: format!("-o {name}") }),
            (Some(key), None) if key.switch => {
                given.entries.push(Entry { key: key.name, value: "true".into(), origin: format!("-o {name}") });
            }
            (Some(key), None) => return fail(Kind::Invalid, format!("-o {name}: it needs a value ({})", key.kind)),
            (None, _) if sloppy => given.warnings.push(format!("the option `{name}` is unknown and ignored (-s)")),
            (None, _) => {
                let also = ["config", "take-over", "ro", "rw", "nosuid", "nodev", "noexec"];
                return fail(Kind::Invalid, format!("-o: {}", config::unknown(&name, "option", &also)));
            }
        },
    }
    Ok(())
}

/// Adds flags as entries.
pub fn add_flags(entries: &mut Vec<Entry>, pairs: Vec<(&'static str, String)>) -> Result<()> {
    for (name, value) in pairs {
        let key = Key::find(name).ok_or_else(|| Error::new(Kind::Bug, format!("the flag --{name} is no setting")))?;
        entries.push(Entry { key: key.name, value, origin: format!("--{name}") });
    }
    Ok(())
}

/// Loads the configuration of this process.
pub fn load(file: Option<PathBuf>, given: Vec<Entry>, store: Option<&str>) -> Result<Loaded> {
    let environment = |name: &str| std::env::var(name).ok();
    config::load(Sources { file, given, environment: &environment, store, identity: Identity::of_process(environment) })
}

/// Loads it for a subcommand that has the common flags only.
pub fn load_common(file: Option<PathBuf>, common: &CommonFlags) -> Result<Loaded> {
    let mut entries = Vec::new();
    add_flags(&mut entries, common.pairs())?;
    load(file, entries, None)
}

/// Sentences about variables that look like settings and are none.
pub fn stray_variables() -> Vec<String> {
    config::stray_variables(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command, KeyFlags, MountFlags, ResourceFlags, StoreFlags};
    use crate::config::KEYS;
    use clap::Parser;

    fn mount(line: &str) -> Result<Given> {
        let words = ["smpfs", "mount", "s3://b", "/m"].into_iter().chain(line.split(' ').filter(|w| !w.is_empty()));
        match Cli::try_parse_from(words).unwrap().command {
            Command::Mount(args) => of_mount(&args),
            other => panic!("{other:?}"),
        }
    }

    fn pairs(given: &Given) -> Vec<(&str, &str)> {
        given.entries.iter().map(|e| (e.key, e.value.as_str())).collect()
    }

    #[test]
    fn every_setting_is_a_flag_of_mount_and_every_flag_a_setting() {
        let names = [KeyFlags::NAMES, StoreFlags::NAMES, MountFlags::NAMES, ResourceFlags::NAMES, CommonFlags::NAMES].concat();
        for key in KEYS {
            assert!(names.contains(&key.name), "--{} is missing", key.name);
        }
        for name in &names {
            assert!(Key::find(name).is_some(), "--{name} is no setting");
        }
        assert_eq!(names.len(), KEYS.len());
    }

    #[test]
    fn options_and_flags_in_order() {
        let given = mount("-o ro,_netdev,cache_size=0,noexec,config=/c --cache-size 1GiB --read-only=false").unwrap();
        assert_eq!(pairs(&given), [("read-only", "true"), ("cache-size", "0"), ("read-only", "false"), ("cache-size", "1GiB")]);
        assert_eq!(given.kernel, KernelFlags { suid: false, dev: false, exec: false });
        assert_eq!(given.config_file, Some("/c".into()));
        assert_eq!(given.entries[1].origin, "-o cache-size");
        let by_hand = |line: &str| mount(line).unwrap().take_over;
        assert_eq!(["", "-o take_over", "--take-over"].map(by_hand), [false, true, true]);
    }

    #[test]
    fn unknown_options_are_fatal_unless_sloppy() {
        let said = mount("-o cache_sise=0").unwrap_err().to_string();
        assert_eq!(said, "-o: unknown option `cache-sise`; did you mean `cache-size`?");
        assert!(mount("-o passphrase=geheim").unwrap_err().to_string().contains("passphrase-file"));
        assert!(!mount("-o passphrase=geheim").unwrap_err().to_string().contains("geheim"));
        assert_eq!(mount("-s -o frobnicate,ro").unwrap().warnings.len(), 1);
        assert!(mount("-o uid").unwrap_err().to_string().contains("needs a value"));
        assert_eq!(pairs(&mount("-o allow_other").unwrap()), [("allow-other", "true")]);
    }
}
