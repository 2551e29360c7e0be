//! The command line: clap structs, `-o` lists, exit codes. From the same structs come completions and man pages.
//!
//! Nothing is interpreted here beyond the shape of the command line; values of settings stay text until the configuration
//! has laid all its sources over each other.

mod exit;
mod flags;
pub mod options;

pub use exit::Exit;
pub use flags::{CommonFlags, KeyFlags, MountFlags, ResourceFlags, StoreFlags};

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  smpfs quickstart                           try it, without a cloud account
  smpfs init s3://bucket/prefix              make a volume, get a recovery code
  smpfs mount s3://bucket/prefix ~/patients  returns when the mount serves
  smpfs status                               every mount of yours
  smpfs unmount ~/patients                   returns when all is in the bucket

STORE is dir:///path, s3://bucket[/prefix], memory: (tests), or NAME:[/sub] of an entry in config.toml.";

/// An encrypted cloud bucket as a local directory.
///
/// Everything that leaves this machine is sealed first: contents, names, structure. Whoever has the bucket can read nothing,
/// and whatever they change is noticed.
#[derive(Parser, Debug)]
#[command(name = "smpfs", version, after_help = EXAMPLES, after_long_help = long_help(), max_term_width = 120)]
#[command(subcommand_required = true, arg_required_else_help = true, infer_long_args = false)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Configuration file [default: ~/.config/smpfs/config.toml, /etc/smpfs/config.toml for root]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Common")]
    pub config: Option<PathBuf>,
}

/// [`EXAMPLES`] and the exit codes.
fn long_help() -> String {
    let codes: Vec<String> = Exit::ALL.iter().map(|(e, meaning)| format!("  {:>2}  {meaning}", e.code())).collect();
    format!("{EXAMPLES}\n\nExit codes:\n{}\n\nEvery setting: docs/CONFIGURATION.md", codes.join("\n"))
}

/// Subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make a volume in an empty bucket or prefix
    Init(Box<InitArgs>),
    /// Mount a volume; returns when it serves
    Mount(Box<MountArgs>),
    /// Upload what is left, unmount, wipe local traces
    #[command(visible_alias = "umount")]
    Unmount(UnmountArgs),
    /// Show mounts: health, what is not uploaded yet, caches, errors
    Status(StatusArgs),
    /// Verify a whole volume: every index, every object, every byte
    Scrub(Box<ScrubArgs>),
    /// Write lost directory indexes anew from what the objects say of themselves
    Recover(Box<RecoverArgs>),
    /// Try it: a volume in a directory, mounted, filled and verified
    Quickstart(QuickstartArgs),
    /// Link mount.smpfs and umount.smpfs where mount(8) looks for them
    InstallHelpers(InstallArgs),
    /// Print shell completions
    Completions {
        /// Shell
        shell: clap_complete::Shell,
    },
    /// Write man pages
    Man {
        /// Directory for all pages; without it, smpfs(1) goes to standard output
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Print the version and what this build can do
    Version,
}

/// How object names are chosen.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModeArg {
    /// Names and structure are hidden as well
    ZeroKnowledge,
    /// An object's key is its path; contents are sealed
    Standard,
}

/// Which cipher seals chunks.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuiteArg {
    /// AES-256-GCM: fastest where the processor has AES instructions
    #[value(name = "aes-256-gcm")]
    Aes256Gcm,
    /// ChaCha20-Poly1305: fastest elsewhere
    #[value(name = "chacha20-poly1305")]
    ChaCha20Poly1305,
}

/// `smpfs init`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  smpfs init dir:///data/bucket
  smpfs init s3://scans/v1 --mode standard --passphrase-file /etc/smpfs/pass

The recovery code is printed once, on standard output. It opens the volume when the passphrase is lost: keep it on paper.")]
pub struct InitArgs {
    /// Where the volume goes: a URL, or NAME: of an entry in config.toml
    pub store: String,
    /// What the bucket may show
    #[arg(long, value_enum, default_value = "zero-knowledge")]
    pub mode: ModeArg,
    /// Cipher of the contents
    #[arg(long, value_enum, default_value = "aes-256-gcm")]
    pub suite: SuiteArg,
    /// A name for people; it is readable in the bucket
    #[arg(long, default_value = "")]
    pub name: String,
    /// Memory that one guess of the passphrase costs, MiB (64 to 4096)
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(64..=4096), hide_short_help = true)]
    pub kdf_memory: u32,
    /// Passes over that memory (1 to 64)
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64), hide_short_help = true)]
    pub kdf_passes: u32,
    /// Lanes of it that run in parallel (1 to 16)
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=16), hide_short_help = true)]
    pub kdf_lanes: u32,
    /// Passphrase.
    #[command(flatten)]
    pub secret: SecretArgs,
    /// Store.
    #[command(flatten)]
    pub store_flags: StoreFlags,
    /// Common.
    #[command(flatten)]
    pub common: CommonFlags,
}

/// Where the passphrase comes from.
#[derive(Args, Clone, Debug, Default)]
pub struct SecretArgs {
    /// Settings.
    #[command(flatten)]
    pub files: KeyFlags,
    /// Read the passphrase from this open descriptor (0 is standard input)
    #[arg(long, value_name = "N", help_heading = "Passphrase (asked for on the terminal when none of these is given)")]
    pub passphrase_fd: Option<u32>,
}

/// `smpfs mount`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  smpfs mount s3://bucket/prefix ~/patients
  smpfs mount work-s3:/2026 /mnt/work --read-only --allow-other
  smpfs mount dir:///data/bucket /mnt/x -o cache-size=0,umask=027
  mount -t smpfs s3://bucket/prefix /mnt/p -o passphrase-file=/etc/smpfs/pass

Every setting is a flag, an -o option (`_` and `-` alike), a variable SMPFS_* and a key of config.toml: docs/CONFIGURATION.md. \
`--help` shows them all, `-h` the usual ones.")]
pub struct MountArgs {
    /// The volume: a URL, or NAME:[/sub] of an entry in config.toml
    pub store: String,
    /// An empty directory
    pub dir: PathBuf,
    /// Options as mount(8) takes them: key=value,flag,... (quote commas: "a,b" or \,)
    #[arg(short = 'o', value_name = "OPTIONS", action = clap::ArgAction::Append)]
    pub options: Vec<String>,
    /// Stay in the foreground; log to the terminal
    #[arg(long, short)]
    pub foreground: bool,
    /// Ignore options that smpfs does not know
    #[arg(short = 's', long)]
    pub sloppy: bool,
    /// Where the store takes one writer at a time: take the lease away from the machine that holds it
    #[arg(long)]
    pub take_over: bool,
    /// Check options, store entry and directory, and mount nothing
    #[arg(long)]
    pub dry_run: bool,
    /// The process that serves: keys come on standard input, "ready" goes to standard output.
    #[arg(long, hide = true)]
    pub serve: bool,
    /// Mount.
    #[command(flatten)]
    pub mount_flags: MountFlags,
    /// Passphrase.
    #[command(flatten)]
    pub secret: SecretArgs,
    /// Store.
    #[command(flatten)]
    pub store_flags: StoreFlags,
    /// Memory and disk.
    #[command(flatten)]
    pub resources: ResourceFlags,
    /// Common.
    #[command(flatten)]
    pub common: CommonFlags,
}

/// `smpfs unmount`.
#[derive(Args, Debug)]
#[command(
    after_help = "Exits with 0 only when everything is in the bucket; with 6 when the time was over before: smpfs then goes on uploading, \
and `smpfs unmount DIR` waits again. With --stop the uploads end, also those of an unmount that is under way; what is left lies sealed in the \
state directory, and the next mount of the volume sends it."
)]
pub struct UnmountArgs {
    /// Where it is mounted
    pub dir: PathBuf,
    /// Wait this long for uploads (90s, 5m) [default: until all is sent]
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<String>,
    /// Detach at once even when files are open
    #[arg(long, short)]
    pub lazy: bool,
    /// Upload no more: end at once, and keep what is left, sealed on this machine, for the next mount
    #[arg(long, conflicts_with = "timeout")]
    pub stop: bool,
    /// No progress
    #[arg(long, short)]
    pub quiet: bool,
    /// Common.
    #[command(flatten)]
    pub common: CommonFlags,
}

/// `smpfs status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Only this mount
    pub dir: Option<PathBuf>,
    /// JSON for programs
    #[arg(long)]
    pub json: bool,
    /// Common.
    #[command(flatten)]
    pub common: CommonFlags,
}

/// `smpfs scrub`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  smpfs scrub s3://bucket/prefix               read and verify everything
  smpfs scrub s3://bucket/prefix --keyless     what needs no passphrase
  smpfs scrub s3://bucket/prefix --quick --gc  delete old objects nothing names

Needs no mount, and runs beside living ones. Exits with 0 when nothing was found, with 10 when something was and is still so.")]
pub struct ScrubArgs {
    /// Link left-over files back that tell their place, and mend what loses nothing
    #[arg(long, conflicts_with = "keyless")]
    pub repair: bool,
    /// Without a passphrase: signatures, and everything they cover, with public values alone
    #[arg(long)]
    pub keyless: bool,
    /// Delete objects that no index names, and abort uploads that nobody goes on with
    #[arg(long, conflicts_with = "keyless")]
    pub gc: bool,
    /// With --gc: only say what would be deleted
    #[arg(long, requires = "gc")]
    pub dry_run: bool,
    /// Read indexes and the listing only, no contents
    #[arg(long, conflicts_with = "keyless")]
    pub quick: bool,
    /// JSON for programs
    #[arg(long)]
    pub json: bool,
    /// Volume and how it is read.
    #[command(flatten)]
    pub volume: VolumeArgs,
}

/// What `scrub` and `recover` have in common: a whole volume, read without a mount.
#[derive(Args, Debug)]
pub struct VolumeArgs {
    /// The volume: a URL, or NAME:[/sub] of an entry in config.toml
    pub store: String,
    /// How old an object that no index names must be to count as left over (an hour or more)
    #[arg(long, value_name = "TIME", default_value = "7d")]
    pub grace: String,
    /// Objects read at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: u16,
    /// No progress
    #[arg(long, short)]
    pub quiet: bool,
    /// Passphrase.
    #[command(flatten)]
    pub secret: SecretArgs,
    /// Store.
    #[command(flatten)]
    pub store_flags: StoreFlags,
    /// Common.
    #[command(flatten)]
    pub common: CommonFlags,
}

/// `smpfs recover`.
#[derive(Args, Debug)]
#[command(after_help = "\
Unmount the volume everywhere first. What is lost with an index and what comes back: docs/SEMANTICS.md. Indexes that can be read are \
not touched; damaged ones are kept in the quarantine of this machine before they are replaced.")]
pub struct RecoverArgs {
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Do it without asking
    #[arg(long, short)]
    pub yes: bool,
    /// Volume and how it is read.
    #[command(flatten)]
    pub volume: VolumeArgs,
}

/// `smpfs quickstart`.
#[derive(Args, Debug)]
#[command(after_help = "Needs no cloud account. Ctrl-C unmounts and removes everything, unless --keep is given.")]
pub struct QuickstartArgs {
    /// Put bucket and mount point here [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Leave the sealed bucket there at the end
    #[arg(long)]
    pub keep: bool,
    /// Do it all and exit, without waiting for Ctrl-C
    #[arg(long)]
    pub once: bool,
}

/// `smpfs install-helpers`.
#[derive(Args, Debug)]
pub struct InstallArgs {
    /// Where mount(8) looks for helpers
    #[arg(long, value_name = "DIR", default_value = "/sbin")]
    pub dir: PathBuf,
    /// Take the links away again
    #[arg(long)]
    pub remove: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
    }

    /// Sentences are wrapped to the terminal, so they hold no line ends of their own; tables fit into 80 columns as they are.
    #[test]
    fn what_follows_the_options_fits_every_terminal() {
        let cli = Cli::command();
        for command in std::iter::once(&cli).chain(cli.get_subcommands()) {
            let texts = [command.get_after_help(), command.get_after_long_help()].into_iter().flatten();
            for block in texts.flat_map(|t| t.to_string().split("\n\n").map(str::to_owned).collect::<Vec<_>>()) {
                let mut lines = block.lines();
                if let Some(row) = lines.clone().skip(1).find(|l| l.chars().count() > 80) {
                    panic!("too long for a terminal of 80 columns: {row}");
                }
                let table = lines.next().is_some_and(|first| first.ends_with(':'));
                assert!(table || lines.next().is_none(), "a line end inside a sentence: {block}");
            }
        }
    }

    #[test]
    fn a_mount_as_people_type_it() {
        let line =
            "smpfs mount s3://b/p /mnt -o ro,_netdev -o cache-size=0 --memory-budget 1GiB --allow-other --read-only=false -f";
        let Command::Mount(m) = Cli::try_parse_from(line.split(' ')).unwrap().command else { panic!("not a mount") };
        assert_eq!((m.store.as_str(), m.dir.to_str(), m.options.len(), m.foreground), ("s3://b/p", Some("/mnt"), 2, true));
        assert_eq!(m.mount_flags.pairs(), [("read-only", "false".to_owned()), ("allow-other", "true".to_owned())]);
        assert_eq!(m.resources.pairs(), [("memory-budget", "1GiB".to_owned())]);
    }

    #[test]
    fn no_option_takes_a_passphrase_itself() {
        let mut all = Cli::command();
        all.build();
        for sub in all.get_subcommands() {
            for arg in sub.get_arguments() {
                let name = arg.get_long().unwrap_or_default();
                assert!(!matches!(name, "passphrase" | "password" | "recovery-code" | "key"), "{name}");
            }
            assert!(sub.get_about().is_some(), "{} has no help", sub.get_name());
        }
        assert!(Cli::try_parse_from(["smpfs", "mount", "s3://b", "/m", "--passphrase", "x"]).is_err());
    }

    #[test]
    fn help_names_every_exit_code() {
        let text = Cli::command().render_long_help().to_string();
        for (_, meaning) in Exit::ALL {
            assert!(text.contains(meaning), "{meaning}");
        }
    }
}
