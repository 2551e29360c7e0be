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

/// `smpfs man [--out DIR]`.
pub fn man(out: Option<&Path>) -> Outcome<()> {
    match out {
        Some(dir) => {
            std::fs::create_dir_all(dir)?;
            Ok(clap_mangen::generate_to(Cli::command(), dir)?)
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
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
