//! What a mount is to be, once everything the user said has been put together and checked.

use super::mountpoint;
use super::settings::{self, KernelFlags};
use crate::cli::MountArgs;
use crate::config::{Config, StoreRef};
use crate::error::{Error, Kind, Result, fail};
use crate::store::StoreSpec;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A checked mount.
#[derive(Debug)]
pub struct Plan {
    /// Settings.
    pub config: Config,
    /// Where the volume is.
    pub store: StoreSpec,
    /// Mount point, canonical.
    pub dir: PathBuf,
    /// Flags for the kernel.
    pub kernel: KernelFlags,
    /// Take the volume's lease from whoever holds it.
    pub take_over: bool,
    /// Sentences for the user.
    pub warnings: Vec<String>,
}

impl Plan {
    /// Puts a command line, environment and configuration file together.
    pub fn new(args: &MountArgs, config_file: Option<PathBuf>) -> Result<Plan> {
        let given = settings::of_mount(args)?;
        let file = config_file.or(given.config_file);
        let loaded = settings::load(file, given.entries, Some(&args.store))?;
        let mut warnings = given.warnings;
        warnings.extend(settings::stray_variables());
        let store = store(loaded.store, &loaded.config)?;
        let dir = mountpoint::canonical(&args.dir)?;
        if let StoreSpec::Dir { path } = &store
            && path.starts_with(&dir)
        {
            return fail(Kind::Invalid, format!("the bucket {} lies inside the mount point {}", path.display(), dir.display()));
        }
        Ok(Plan { config: loaded.config, store, dir, kernel: given.kernel, take_over: given.take_over, warnings })
    }

    /// Where a daemon without journald logs.
    pub fn log_file(&self) -> PathBuf {
        self.config.state_dir.join(format!("mount-{}.log", super::socket::name_of(&self.dir)))
    }
}

/// The store that was named, with the settings that concern it.
pub fn store(named: Option<StoreRef>, config: &Config) -> Result<StoreSpec> {
    let named = named.ok_or_else(|| Error::new(Kind::Bug, "no store was asked for"))?;
    let mut spec = StoreSpec::parse(&named.url)?.join(&named.below)?;
    if let StoreSpec::S3(s3) = &mut spec {
        let set = |slot: &mut Option<String>, value: &Option<String>| {
            if value.is_some() {
                slot.clone_from(value);
            }
        };
        set(&mut s3.endpoint, &config.endpoint);
        set(&mut s3.region, &config.region);
        set(&mut s3.profile, &config.profile);
        set(&mut s3.storage_class, &config.storage_class);
        set(&mut s3.kms_key, &config.kms_key);
        s3.path_style = config.path_style.or(s3.path_style);
    }
    Ok(spec)
}

/// The command line of the process that serves: the same, with `--serve`, without anything that concerns the terminal.
pub fn serving_args(args: &MountArgs, config_file: Option<&Path>) -> Vec<OsString> {
    let mut line: Vec<OsString> = vec!["mount".into(), "--serve".into()];
    let mut option = |name: &str, value: &dyn AsRef<std::ffi::OsStr>| {
        let mut word = OsString::from(name);
        word.push(value);
        line.push(word);
    };
    if let Some(file) = config_file {
        option("--config=", &file);
    }
    for list in &args.options {
        option("-o", list);
    }
    let groups = [
        args.mount_flags.pairs(),
        args.secret.files.pairs(),
        args.store_flags.pairs(),
        args.resources.pairs(),
        args.common.pairs(),
    ];
    for (name, value) in groups.into_iter().flatten() {
        option(&format!("--{name}="), &value);
    }
    if args.sloppy {
        line.push("-s".into());
    }
    if args.take_over {
        line.push("--take-over".into());
    }
    line.extend(["--".into(), OsString::from(&args.store), args.dir.clone().into_os_string()]);
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn parse(words: impl IntoIterator<Item = OsString>) -> (MountArgs, Option<PathBuf>) {
        let cli = Cli::try_parse_from(std::iter::once("smpfs".into()).chain(words)).unwrap();
        match cli.command {
            Command::Mount(args) => (*args, cli.config),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_serving_process_gets_the_same_settings_and_no_terminal_options() {
        let line = "--config /c.toml mount -s -o ro,-x=1 -o uid=3 --cache-size 0 --allow-other --region=eu --passphrase-fd 5 \
                    --passphrase-file /p --log-level debug --take-over -- -odd ./dir";
        let (given, file) = parse(line.split_whitespace().map(OsString::from));
        let (served, served_file) = parse(serving_args(&given, file.as_deref()));
        assert!(served.serve && served.sloppy && served.take_over && !served.foreground);
        assert_eq!(served.secret.passphrase_fd, None);
        assert_eq!((served_file, &served.store, &served.dir), (file, &given.store, &given.dir));
        assert_eq!(served.options, given.options);
        assert_eq!((&served.mount_flags, &served.resources), (&given.mount_flags, &given.resources));
        assert_eq!(
            (&served.store_flags, &served.common, &served.secret.files),
            (&given.store_flags, &given.common, &given.secret.files)
        );
    }

    #[test]
    fn settings_reach_the_store() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir(tmp.path().join("m")).unwrap();
        let dir = tmp.path().canonicalize().unwrap().join("m");
        let at = |store: &str, more: &[&str]| {
            let words = ["mount", store, dir.to_str().unwrap()].into_iter().chain(more.iter().copied());
            let (args, _) = parse(words.map(OsString::from));
            Plan::new(&args, None)
        };
        let plan = at("s3://bucket/p", &["-o", "path_style,region=eu-1,nosuid", "--endpoint", "http://127.0.0.1:9"]).unwrap();
        let StoreSpec::S3(s3) = &plan.store else { panic!("{:?}", plan.store) };
        assert_eq!((s3.region.as_deref(), s3.path_style, s3.prefix.as_str()), (Some("eu-1"), Some(true), "p/"));
        assert_eq!(plan.dir, dir);
        let inside = format!("dir://{}/bucket", dir.display());
        assert!(at(&inside, &[]).unwrap_err().to_string().contains("inside the mount point"));
        assert_eq!(at("sftp://x", &[]).unwrap_err().kind(), Kind::Unsupported);
    }
}
