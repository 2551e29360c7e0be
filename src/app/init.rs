//! `smpfs init`: a volume in an empty bucket, and a recovery code that is shown once.

use super::failure::{Failure, Outcome};
use super::logs::{self, Role};
use super::{harden, join, plan, secret, settings};
use crate::cli::{InitArgs, ModeArg, SuiteArg};
use crate::crypto::kdf::Argon2Cost;
use crate::error::{Error, Kind, fail};
use crate::keyring::InitParams;
use crate::types::{Mode, Suite};
use std::path::{Path, PathBuf};

/// Runs it.
pub fn run(args: &InitArgs, config_file: Option<PathBuf>) -> Outcome<()> {
    harden::harden()?;
    if args.secret.files.recovery_code_file.is_some() {
        fail(Kind::Invalid, "--recovery-code-file: a new volume gets a recovery code of its own; give a passphrase")?;
    }
    let mut entries = Vec::new();
    for pairs in [args.secret.files.pairs(), args.store_flags.pairs(), args.common.pairs()] {
        settings::add_flags(&mut entries, pairs)?;
    }
    let loaded = settings::load(config_file, entries, Some(&args.store))?;
    settings::stray_variables().iter().for_each(|w| super::warn(w));
    let store = plan::store(loaded.store, &loaded.config)?;
    logs::start(&loaded.config, Role::Command, Path::new("smpfs.log"))?;
    let (passphrase, warnings) = secret::choose(args.secret.passphrase_fd, &loaded.config)?;
    warnings.iter().for_each(|w| super::warn(w));
    let params = InitParams {
        mode: match args.mode {
            ModeArg::ZeroKnowledge => Mode::ZeroKnowledge,
            ModeArg::Standard => Mode::Standard,
        },
        suite: match args.suite {
            SuiteArg::Aes256Gcm => Suite::Aes256Gcm,
            SuiteArg::ChaCha20Poly1305 => Suite::ChaCha20Poly1305,
        },
        name: args.name.clone(),
        kdf: Argon2Cost { m_kib: args.kdf_memory << 10, t: args.kdf_passes, p: args.kdf_lanes },
        ..InitParams::default()
    };
    let created = runtime()?.block_on(join::create(&store, params, passphrase, &loaded.config))?;
    created.warnings.iter().for_each(|w| super::warn(w));
    super::print(&format!(
        "Made a volume in {}.\n\n\
         Recovery code, shown this once. It opens the volume when the passphrase is lost: keep it on paper.\n\n\
         \x20   {}\n\n\
         Next: {} mount {} DIR\n",
        created.store,
        created.recovery_code.as_str(),
        super::own_command(),
        args.store
    ));
    Ok(())
}

/// Threads for a subcommand that does one thing and ends.
pub fn runtime() -> Outcome<tokio::runtime::Runtime> {
    let built = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    built.map_err(|e| Failure::from(Error::with_source(Kind::Unavailable, "no threads to work with", e)))
}
