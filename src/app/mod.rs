//! Subcommands: what the command line does.
//!
//! [`main`] parses, runs, prints an error as a sentence and turns it into an exit code. Around a mount: [`mount`] starts the
//! process that serves ([`handshake`]), [`serve`] is its life, [`socket`] and [`client`] are how other commands talk to it, and
//! [`join`] is the one place where store, keys, filesystem and kernel are put together.

mod assemble;
mod client;
#[cfg(test)]
mod documented;
mod failure;
mod generate;
mod handshake;
mod harden;
mod init;
mod install;
mod join;
mod lease;
mod left;
mod live;
mod logs;
mod mount;
mod mounted;
mod mountpoint;
mod plan;
mod quickstart;
pub mod samples;
mod scrub;
mod scrub_state;
mod secret;
mod serve;
mod settings;
mod socket;
mod status;
mod unmount;

pub use failure::{Failure, Outcome};
pub use mounted::Mounted;

use crate::cli::{Cli, Command};
use clap::Parser;
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// The program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let serving = matches!(&cli.command, Command::Mount(args) if args.serve);
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // The process that serves has told its parent, who prints it.
            if !serving {
                warn_plain(&format!("smpfs: {failure}"));
            }
            ExitCode::from(failure.exit)
        }
    }
}

fn run(cli: Cli) -> Outcome<()> {
    let config = cli.config;
    match cli.command {
        Command::Init(args) => init::run(&args, config),
        Command::Mount(args) => mount::run(&args, config),
        Command::Unmount(args) => unmount::run(&args, config),
        Command::Status(args) => status::run(&args, config),
        Command::Scrub(args) => scrub::run(&args, config),
        Command::Recover(args) => scrub::recover(&args, config),
        Command::Quickstart(args) => quickstart::run(&args),
        Command::InstallHelpers(args) => install::run(&args),
        Command::Completions { shell } => generate::completions(shell),
        Command::Man { out } => generate::man(out.as_deref()),
        Command::Version => generate::version(),
    }
}

/// What to type to run this program again: its name where that finds it, else its path.
fn own_command() -> String {
    let Ok(exe) = std::env::current_exe() else { return "smpfs".to_owned() };
    own_command_in(&exe, std::env::var_os("PATH").unwrap_or_default())
}

fn own_command_in(exe: &Path, path: OsString) -> String {
    let found = std::env::split_paths(&path).map(|dir| dir.join("smpfs")).find(|file| file.is_file());
    if found.is_some_and(|file| file.canonicalize().is_ok_and(|file| file == exe)) {
        return "smpfs".to_owned();
    }
    let text = exe.display().to_string();
    let plain = text.chars().all(|c| c.is_alphanumeric() || "/._-+@".contains(c));
    if plain { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// Prints to standard output; a reader that has gone (`| head`) is no error.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Prints a line to standard error.
fn warn_plain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A warning for the user.
fn warn(text: &str) {
    warn_plain(&format!("smpfs: warning: {text}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_names_itself_so_that_it_can_be_typed() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().canonicalize().unwrap();
        let (ours, other) = (dir.join("my bin"), dir.join("other"));
        for place in [&ours, &other] {
            std::fs::create_dir(place).unwrap();
            std::fs::write(place.join("smpfs"), "").unwrap();
        }
        let exe = ours.join("smpfs");
        let name = |dirs: &[&Path]| own_command_in(&exe, std::env::join_paths(dirs).unwrap());
        assert_eq!(name(&[Path::new("/nowhere"), &ours]), "smpfs");
        let quoted = format!("'{}'", exe.display());
        assert_eq!([name(&[&other, &ours]), name(&[])], [quoted.clone(), quoted], "the shell would run another one");
        assert_eq!(own_command_in(Path::new("/opt/bin/smpfs"), OsString::new()), "/opt/bin/smpfs");
        std::os::unix::fs::symlink(&exe, dir.join("smpfs")).unwrap();
        assert_eq!(name(&[&dir]), "smpfs");
    }
}
