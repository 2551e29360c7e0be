//! Subcommands: what the command line does.
//!
//! [`main`] parses, runs, prints an error as a sentence and turns it into an exit code. Around a mount: [`mount`] starts the
//! process that serves ([`handshake`]), [`serve`] is its life, [`socket`] and [`client`] are how other commands talk to it, and
//! [`join`] is the one place where store, keys, filesystem and kernel are put together.

mod assemble;
mod client;
mod failure;
mod generate;
mod handshake;
mod harden;
mod init;
mod install;
mod join;
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
use std::io::Write;
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
