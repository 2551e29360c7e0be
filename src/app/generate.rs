//! Completions, man pages and the version: all from the same clap definitions.

use super::failure::Outcome;
use crate::cli::Cli;
use clap::CommandFactory;
use clap_complete::Shell;
use std::path::Path;

/// `smpfs completions SHELL`.
pub fn completions(shell: Shell) -> Outcome<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "smpfs", &mut text);
    super::print(&String::from_utf8_lossy(&text));
    Ok(())
}

/// Everything is told in a man page, also what the short help leaves out.
fn in_full(mut command: clap::Command) -> clap::Command {
    let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    for name in names {
        command = command.mut_subcommand(name, in_full);
    }
    command.mut_args(|arg| arg.hide_short_help(false))
}

/// `smpfs man [--out DIR]`.
pub fn man(out: Option<&Path>) -> Outcome<()> {
    match out {
        Some(dir) => {
            std::fs::create_dir_all(dir)?;
            Ok(clap_mangen::generate_to(in_full(Cli::command()), dir)?)
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(in_full(Cli::command())).render(&mut page)?;
            super::print(&String::from_utf8_lossy(&page));
            Ok(())
        }
    }
}

/// `smpfs version`.
pub fn version() -> Outcome<()> {
    let s3 = if cfg!(feature = "s3") { ", s3" } else { "" };
    let cipher = if cfg!(feature = "aws-lc") { "AWS-LC" } else { "RustCrypto" };
    let fuse = if Path::new("/dev/fuse").exists() { "there" } else { "missing: mounts will not work here" };
    super::print(&format!(
        "smpfs {}\n  stores      dir, memory{s3}\n  ciphers     AES-256-GCM, ChaCha20-Poly1305 ({cipher})\n  /dev/fuse   {fuse}\n",
        env!("CARGO_PKG_VERSION")
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn man_pages_tell_of_every_option() {
        let dir = tempfile::tempdir().unwrap();
        man(Some(dir.path())).unwrap();
        let page = std::fs::read_to_string(dir.path().join("smpfs-mount.1")).unwrap();
        for text in ["How long an unmount waits for uploads", "How long the kernel answers names"] {
            assert!(page.contains(text), "{text}");
        }
    }
}
